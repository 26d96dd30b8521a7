"""What the commands print with: data on stdout, words and progress on stderr."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import signal
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unicodedata import category

from matta_cli.errors import Interrupted, MattaError, no_room, number
from matta_cli.version import __version__

if TYPE_CHECKING:
    from matta_cli.progress import Listener
    from matta_cli.progress import Progress as Event

_ENDLESS = re.compile(r"\S{4200,}")  # a path has 4,096 characters at most


def _other() -> int:
    """The number of this process, where torchrun started several; only the first one, 0, prints."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


def say(text: str) -> None:
    """A line for people, on stderr."""
    if _other():
        return
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(harmless(text), markup=False)


def harmless(text: str) -> str:
    """A text without what a terminal obeys: control characters are written as Python writes them.

    So are those that turn the direction of writing, or cannot be seen. A word longer than any
    name or path loses its middle: it is a file's content, of which a sentence is to be read.
    """
    text = _ENDLESS.sub(lambda word: f"{word[0][:200]}...{word[0][-50:]}", text)
    return "".join(c if category(c)[0] != "C" or c in "\n\t" else ascii(c)[1:-1] for c in text)


def hint(command: str) -> None:
    """Which command to run next."""
    say(f"Next: {command}")


def text(value: str) -> None:
    """Data on stdout as it is."""
    sys.stdout.write(value)


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    spare: Sequence[str] = (),
    *,
    left: bool = False,
    prose: Sequence[str] = (),
) -> None:
    """Data on stdout: a table for a terminal, tab-separated where stdout is a pipe.

    spare: beginnings of headers whose columns may go, first to last, where the terminal is too
    narrow for all. left: columns are words, not numbers. prose: headers of columns of sentences,
    which take several lines so that the others stand in one.
    """
    if _other():
        return
    headers = [harmless(cell) for cell in headers]
    rows = [[harmless(" ".join(cell.split())) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [headers, *rows]:
            sys.stdout.write("\t".join(row) + "\n")
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    console = Console(highlight=False)
    columns = list(zip(headers, *rows, strict=True))
    gone: list[str] = []

    def fits(least: int = 1000) -> bool:
        cut = [[text[:_PROSE] for text in c] if c[0] in prose else c for c in columns]
        return _needs(cut, least) <= console.width

    least = 1000 if fits() else 0  # headers in several lines come before columns that go
    for start in spare:
        if fits(least):
            break
        gone += [column[0] for column in columns if column[0].startswith(start)]
        columns = [column for column in columns if not column[0].startswith(start)]
    drawn = Grid(box=SIMPLE_HEAD, pad_edge=False)
    whole = bool(prose) and fits(least)
    # names in one line can be copied: words of the others stand in several lines before that
    words = [[c[0], *(cell for cell in c[1:] if "[" in cell), *_words(c)] for c in columns[1:]]
    names_fit = _needs([*columns[:1], *words], least) <= console.width
    for i, (header, *cells) in enumerate(columns):
        side: Any = "left" if i == 0 or left or header in prose else "right"
        # nothing is broken inside an interval
        kept = whole or any("[" in cell for cell in cells) or (i == 0 and names_fit)
        one_line = header not in prose and kept
        shown = header if header in prose else textwrap.fill(header, _width(columns[i], least))
        drawn.add_column(shown, justify=side, overflow="fold", no_wrap=one_line)
    for row in zip(*(column[1:] for column in columns), strict=True):
        drawn.add_row(*map(Text, row))
    console.print(drawn)
    if gone:
        say(f"Not shown in {console.width} columns: {', '.join(gone)}.")


def _words(column: Sequence[str]) -> list[str]:
    return [word for cell in column[1:] for word in cell.split()]


Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # headers and rows


def fitting(tables: Sequence[Table], elsewhere: str = "the report") -> int:
    """Data on stdout: of tables that say ever less the first that the terminal has room for.

    A pipe gets the first. Headers may stand in several lines. What is missing is named, as it is
    ``elsewhere``. Returns which of the tables it is.
    """
    if not sys.stdout.isatty():
        table(*tables[0])
        return 0
    from rich.console import Console

    room = Console().width
    tried = ((at, least) for at in range(len(tables)) for least in _LINES)
    for at, least in tried:
        headers, rows = tables[at]
        columns = list(zip(headers, *rows, strict=True))
        if _needs(columns, least) <= room:
            break
    table([textwrap.fill(own[0], _width(own, least)) for own in columns], rows)
    if elsewhere and (gone := [header for header in tables[1][0] if header not in headers]):
        say(f"Not shown in {room} columns, but in {elsewhere}: {', '.join(gone)}.")
    return at


_PROSE = 30  # how long the lines of a sentence in a table are at the least
_LINES = (30, 12, 0)  # how long the lines of a header may be, whatever its cells; the best first


def _needs(columns: Sequence[Sequence[str]], least: int = 1000) -> int:
    """What a table needs: three places between two columns, and one at each end."""
    return sum(_width(column, least) + 3 for column in columns) - 1


def _width(column: Sequence[str], least: int) -> int:
    """What a column needs, if its header may stand in lines no longer than ``least``."""
    header, *cells = column
    return max(map(len, [*header.split(), *cells, header[:least]]))


def data(value: Any) -> None:
    """Data on stdout as JSON, in which a number that is none is null."""
    from matta_cli.report.numbers import plain

    if not _other():
        sys.stdout.write(json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, which says what goes wrong in one sentence on stderr, and exits with a code.

    The code is 1, or 128 and the number of the signal that stopped it.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        with _noticed() as pressed:
            try:
                command(*args, **kwargs)
            except Interrupted as stop:
                _fail(str(stop), stop.code)
            except (KeyboardInterrupt, Exception) as error:
                if pressed or isinstance(error, KeyboardInterrupt):
                    by = pressed[0] if pressed else signal.SIGINT
                    _fail("Stopped; nothing half-done was left behind.", 128 + by)
                if isinstance(error, BrokenPipeError):
                    raise  # whoever reads has enough
                _fail(_sentence(error) or _mistake(error), 1)

    return run


@contextmanager
def _noticed() -> Iterator[list[int]]:
    """A list that Ctrl-C and SIGTERM fill; both end the command as Ctrl-C does by itself.

    A library that is just being imported may make another error of it.
    """
    pressed: list[int] = []

    def handler(number: int, _frame: Any) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if threading.current_thread() is not threading.main_thread():
        usual = {}
    taken = {of: own for of, own in usual.items() if signal.getsignal(of) == own}
    for of in taken:
        signal.signal(of, handler)
    try:
        yield pressed
    finally:
        for of, own in taken.items():
            signal.signal(of, own)


def _sentence(error: BaseException) -> str:
    """What an error is to a person; empty where it is a mistake of matta's own."""
    kind = type(error).__name__
    if isinstance(error, MattaError):
        from matta_cli.settings.resolve import with_place

        return with_place(str(error))
    if kind == "OutOfMemoryError":
        return f"Out of memory: {str(error).splitlines()[0]} Try a smaller --batch-size."
    file = getattr(error, "filename", None)
    where = f" ({file})" if file else ""
    if no_room(error):
        full = (
            "A file may be no larger here" if number(error) == errno.EFBIG else "The disk is full"
        )
        again = "free some space and run the same command again"
        return f"{full}{where}: {again}; nothing half-written was left."
    if isinstance(error, OSError):
        return f"{error.strerror or error}{where}."
    if number(error):  # of what a library in another language wrote or read
        return f"A file could not be written or read ({os.strerror(number(error))})."
    return "Out of memory: try a smaller --batch-size." if isinstance(error, MemoryError) else ""


def _mistake(error: BaseException) -> str:
    """What is said of a mistake of matta, or within a model; its traceback is kept in a file."""
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".: ")
    wrong = f"This is a mistake of matta itself ({what}): please report it"
    if within := _running(error):
        why = "its configuration may not be that of its weights. If it runs without matta"
        wrong = f"The model fails in its {within} ({what}): {why}, please report this"
    try:
        handle, name = tempfile.mkstemp(prefix="matta-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"matta {__version__}, Python {sys.version}\n{sys.argv}\n\n")
            file.writelines(traceback.format_exception(error))
    except OSError:
        return f"{wrong}."
    return f"{wrong}, with the file {name}, which says where it happened."


def _running(error: BaseException) -> str:
    """The module of a model whose own code an error comes from; empty where that is not so."""
    within = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        where = frame.f_globals.get("__name__", "")
        if where == "torch.nn.modules.module" and frame.f_code.co_name == "_call_impl":
            within = type(frame.f_locals.get("self")).__name__
        elif where.startswith(("matta_cli", "matta_adapters")):
            within = ""
    return within


def _fail(sentence: str, code: int) -> None:
    """Say the sentence and exit. What befell all processes is said by the first of them."""
    if _other() and code < 128:
        time.sleep(3)  # what befell this one alone is said after that
        sys.stderr.write(f"Process {_other()}: {harmless(sentence)}\n")
    sentence = " ".join(sentence.splitlines())
    say(f"matta: {sentence}" if code > 128 else f"Error: {sentence}")
    sys.stdout.flush()
    sys.exit(code)


@contextmanager
def training_progress() -> Iterator[Listener]:
    """A listener that shows on stderr what long work tells: steps, ETA, losses and throughput.

    On a terminal the last line is a bar, from the first step on. Every tenth of a run leaves a row
    of losses, a column for each model; where there is no terminal, other work leaves a line too.
    """
    from rich import progress
    from rich.console import Console
    from rich.table import Column

    console = Console(stderr=True, highlight=False)
    live = console.is_terminal and not os.environ.get("CI")
    rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    columns = (
        progress.BarColumn(12),
        progress.MofNCompleteColumn(table_column=Column(no_wrap=True)),
        progress.TimeRemainingColumn(table_column=Column(no_wrap=True)),
        progress.TextColumn("{task.description}", markup=False, table_column=rest),
    )
    bar = progress.Progress(*columns, console=console, disable=not live, expand=True)
    task, told, started = bar.add_task(""), _Rows(), time.monotonic()

    def listen(event: Event) -> None:
        if event.message:
            console.print(harmless(event.message), markup=False, soft_wrap=True)
            return
        if live:
            shown = harmless(event.doing or _told(event))
            bar.update(task, completed=event.step, total=event.steps, description=shown)
            bar.start()  # not before there is something to tell
            if event.doing:
                bar.refresh()  # it will stand for a while
        elif event.doing and event.step < event.steps:
            console.print(harmless(event.doing), markup=False, soft_wrap=True)
        # what soon ends needs no lines in a log
        brief = not event.terms and (live or time.monotonic() - started < 10)
        for line in () if event.doing else told.lines(event, brief):
            console.print(harmless(line), markup=False, soft_wrap=True)

    try:
        yield listen
    finally:
        bar.stop()


class _Rows:
    """The lines of a run: a row for each tenth of it, below the names of its columns."""

    def __init__(self) -> None:
        self.tenth, self.names = 0, [""]

    def lines(self, event: Event, brief: bool) -> list[str]:
        """The lines that an event adds: none, where it is within the same tenth."""
        tenth = event.step * 10 // event.steps
        before, self.tenth = self.tenth if tenth >= self.tenth else 0, tenth
        if brief or tenth == before:
            return []
        speed = f"{event.unit}/s"
        cells = {"step": f"{event.step}/{event.steps}", speed: event.speed}
        if event.terms:
            cells["data wait"] = f"{event.waiting:.0%}"
        cells |= {f"loss {name}": f"{terms['loss']:.3f}" for name, terms in event.terms.items()}
        if event.utilisation is not None:
            cells["MFU"] = f"{event.utilisation:.0%}"
        widest = {"step": 2 * len(str(event.steps)) + 1, speed: 9}
        widths = {name: max(len(name), widest.get(name, 6)) for name in cells}
        rows = [list(cells.values())]
        if list(cells) != self.names:  # another run has begun
            self.names = list(cells)
            rows.insert(0, self.names)
        pairs = [zip(row, widths.values(), strict=True) for row in rows]
        return ["  ".join(cell.rjust(width) for cell, width in row) for row in pairs]


def _told(event: Event) -> str:
    """How fast a run goes, what it waits for, and its losses by name."""
    shown = f"{event.speed} {event.unit}/s"
    if event.utilisation is not None:
        shown = f"MFU {event.utilisation:.0%}  {shown}"
    if event.waiting >= 0.05:
        shown = f"data wait {event.waiting:.0%}  {shown}"
    losses = "  ".join(f"{name} {terms['loss']:.3f}" for name, terms in event.terms.items())
    return f"{shown}  loss {losses}" if losses else shown
