"""What the commands print with: data on stdout, words and progress on stderr."""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unicodedata import category

from matta_cli.errors import Interrupted, MattaError
from matta_cli.version import __version__

if TYPE_CHECKING:
    from matta_cli.progress import Listener
    from matta_cli.progress import Progress as Event


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

    So are those that turn the direction of writing, or cannot be seen.
    """
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
) -> None:
    """Data on stdout: a table for a terminal, tab-separated where stdout is a pipe.

    spare: beginnings of headers whose columns may go, first to last, where the terminal is too
    narrow for all. left: columns are words, not numbers.
    """
    headers = [harmless(cell) for cell in headers]
    rows = [[harmless(" ".join(cell.split())) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [headers, *rows]:
            sys.stdout.write("\t".join(row) + "\n")
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    columns = list(zip(headers, *rows, strict=True))
    gone = []
    for start in spare:
        if sum(max(map(len, column)) + 2 for column in columns) <= console.width:
            break
        gone += [column[0] for column in columns if column[0].startswith(start)]
        columns = [column for column in columns if not column[0].startswith(start)]
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, (header, *_) in enumerate(columns):
        drawn.add_column(header, justify="left" if i == 0 or left else "right", overflow="fold")
    for row in zip(*(column[1:] for column in columns), strict=True):
        drawn.add_row(*map(Text, row))
    console.print(drawn)
    if gone:
        say(f"Not shown in {console.width} columns: {', '.join(gone)}.")


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
                    _fail("Stopped; nothing half-done was left behind.", 130)
                if isinstance(error, BrokenPipeError):
                    raise  # whoever reads has enough
                _fail(_sentence(error) or _mistake(error), 1)

    return run


@contextmanager
def _noticed() -> Iterator[list[int]]:
    """A list that Ctrl-C fills besides what it does by itself.

    A library that is just being imported may make another error of it.
    """
    pressed: list[int] = []

    def handler(number: int, _frame: Any) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _sentence(error: BaseException) -> str:
    """What an error is to a person; empty where it is a mistake of matta's own."""
    kind = type(error).__name__
    if isinstance(error, MattaError):
        return str(error)
    if kind == "OutOfMemoryError":
        return f"Out of memory: {str(error).splitlines()[0]} Try a smaller --batch-size."
    file = getattr(error, "filename", None)
    where = f" ({file})" if file else ""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or (kind == "SafetensorError" and "No space left" in str(error)):
        again = "free some space and run the same command again"
        return f"The disk is full{where}: {again}; nothing half-written was left."
    if isinstance(error, OSError):
        return f"{error.strerror or error}{where}."
    return "Out of memory: try a smaller --batch-size." if isinstance(error, MemoryError) else ""


def _mistake(error: BaseException) -> str:
    """What is said of a mistake of matta's own, whose traceback is kept in a file."""
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".: ")
    wrong = f"This is a mistake of matta itself ({what}): please report it"
    try:
        handle, name = tempfile.mkstemp(prefix="matta-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"matta {__version__}, Python {sys.version}\n{sys.argv}\n\n")
            file.writelines(traceback.format_exception(error))
    except OSError:
        return f"{wrong}."
    return f"{wrong}, with the file {name}, which says where it happened."


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

    They are one line that changes, or where no terminal is a line for every tenth of the work.
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
    with progress.Progress(*columns, console=console, disable=not live, expand=True) as bar:
        task, said, started = bar.add_task("starting"), 0, time.monotonic()

        def listen(event: Event) -> None:
            nonlocal said
            if event.message:
                console.print(harmless(event.message), markup=False, soft_wrap=True)
                return
            shown = _told(event)
            bar.update(task, completed=event.step, total=event.steps, description=shown)
            tenth = event.step * 10 // event.steps
            if tenth < said:
                said = 0  # another run has begun
            # what soon ends needs no lines in a log
            brief = not event.terms and time.monotonic() - started < 10
            if not live and tenth > said and not brief:
                said = tenth
                line = f"step {event.step}/{event.steps}  {shown}"
                console.print(line, markup=False, soft_wrap=True)

        yield listen


def _told(event: Event) -> str:
    """How fast a run goes, what it waits for, and its losses."""
    shown = f"{event.per_second:,.0f} {event.unit}/s"
    if event.utilisation is not None:
        shown = f"MFU {event.utilisation:.0%}  {shown}"
    if event.waiting >= 0.05:
        shown = f"data wait {event.waiting:.0%}  {shown}"
    losses = "  ".join(f"{name} {terms['loss']:.3f}" for name, terms in event.terms.items())
    return f"{shown}  loss {losses}" if losses else shown
