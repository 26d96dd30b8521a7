"""Text as a stream, read chunk by chunk as often as needed: no corpus has to fit in memory."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matta_cli.data import divided, find, lines, records
from matta_cli.data.tally import Tally
from matta_cli.errors import MattaError, said

READ = (".txt", ".md", *records.TABLES)

# documents held out of a stream that has no held-out split: its last tenth is not known
_FIRST = 1000

PLAIN = "Files of plain text, whatever is in them, have to be called .txt."

_CHUNK = 1 << 20  # characters that are read at once
_PIECE = 1 << 14  # characters that are tokenized at once: many pieces of one text run in parallel
_LONGEST = 1 << 20  # characters of a piece that has no line's end to be cut at
_BATCH = 1 << 20  # characters of a list of pieces
_ROWS = 256  # rows of a hub dataset that are read at once
_COMPARED = 16  # characters of a line that two texts are compared by

Chunk = tuple[str, bool]  # a part of a document, and whether the document ends there

# a line's end begins a piece
_LINE = re.compile(r"(?<=\S)\n")


@dataclass(frozen=True)
class Text:
    """Documents that ``read`` goes through from the beginning, in the same order at every call.

    name: the user's. identity: what JSON can hold, and another one whenever the documents may be
    others. size: bytes, about; None where nobody knows. read: the chunks of all documents that are
    not blank; raises ``MattaError`` where there are none. tally: what was read, once it was. notes:
    sentences on what is read.
    """

    name: str
    identity: list[Any]
    size: int | None
    read: Callable[[], Iterator[Chunk]]
    tally: Tally = field(default_factory=Tally)
    notes: tuple[str, ...] = ()


def local(files: Sequence[Path], column: str, name: str, notes: Sequence[str] = ()) -> Text:
    """The documents of files, one after the other.

    A .txt or .md file is one document; each row of the others, in ``column``, is one.
    """
    for file in files:
        if file.suffix.lower() not in READ:
            raise find.of_no_kind(file, "that is known as text", READ, PLAIN)
    status = [(str(file.resolve()), file.stat()) for file in files]
    size = sum(now.st_size for _, now in status)
    identity = ["files", column, *([file, now.st_size, now.st_mtime_ns] for file, now in status)]
    tally = Tally()

    def read() -> Iterator[Chunk]:
        every = (chunk for file in files for chunk in _file(file, column, tally))
        return _nonblank(every, _no_text(name))

    return Text(name, identity, size, read, tally, tuple(notes))


def hub(rows: Any, column: str, name: str, identity: list[Any]) -> Text:
    """The rows of a hub dataset's split (``Dataset`` or ``IterableDataset``), each a document."""
    size, tally = rows.data.nbytes if hasattr(rows, "data") else None, Tally()
    if rows.column_names is not None:
        find.check_column(name, column, "data.text", rows.column_names)
        divided.refuse_in(rows, name, [column])
        tally.columns[name] = ([column], [own for own in rows.column_names if own != column])
        rows = rows.select_columns([column])

    def read() -> Iterator[Chunk]:
        return _nonblank(_hub_rows(rows, column, name, tally), _no_text(name))

    return Text(name, ["hub", column, *identity], size, read, tally)


def first(text: Text, count: int = _FIRST) -> tuple[Text, Text]:
    """The documents after the first ``count`` to train on, and those, to be held out."""
    few = f"its first {count:,} documents are held out, and it has no more than those"
    hint = "pass --held-out with other text, or leave data.streaming out."
    error = MattaError(f"{text.name!r} has no held-out split, so {few}: {hint}")

    def read(held_out: bool) -> Iterator[Chunk]:
        documents = 0
        for chunk, last in text.read():
            if (documents < count) == held_out:
                yield chunk, last
            documents += last
            if held_out and documents == count:
                return

    after, before = ([*text.identity, which, count] for which in ("after", "first"))
    train = replace(text, identity=after, read=lambda: _nonblank(read(False), error))
    return train, replace(text, identity=before, read=lambda: read(True))


def cut(text: Text) -> tuple[Text, Text]:
    """The documents without the last tenth of their text, cut where a line or word ends, and it."""
    place = functools.cache(lambda: _place(text))
    little = f"{text.name!r} holds too little text to hold some out"
    error = MattaError(f"{little}, so pass --held-out with other text.")

    def read(held_out: bool) -> Iterator[Chunk]:
        position, end = 0, place()
        for chunk, last in text.read():
            before, position = position, position + len(chunk)
            if held_out and position > end:
                yield chunk[max(0, end - before) :], last
            elif not held_out and position > end:
                yield chunk[: end - before], True
                return
            elif not held_out:
                yield chunk, last

    def part(held_out: bool) -> Text:
        identity = [*text.identity, "last tenth" if held_out else "without last tenth"]
        return replace(text, identity=identity, read=lambda: _nonblank(read(held_out), error))

    return part(False), part(True)


def _place(text: Text) -> int:
    """The character at which the last tenth begins. Reads the text twice, but holds nothing."""
    total = sum(len(chunk) for chunk, _ in text.read())
    place = find.last_tenth(total, text.name, "characters")
    position, document, breaks = 0, 0, {"\n": -1, " ": -1}
    for chunk, last in text.read():
        for mark in breaks:
            at = chunk.rfind(mark, 0, place + 1 - position)
            breaks[mark] = position + at if at >= 0 else breaks[mark]
        position += len(chunk)
        if position > place:
            break
        if last:
            document = position
    earliest = max(document, place - total // 10)  # a fifth at most is held out
    return next((at for at in breaks.values() if at >= earliest), place)


def pieces(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Documents cut where lines end, after 16,384 characters or more, whatever the chunks are."""
    text = ""
    for chunk, last in chunks:
        text += chunk
        start = 0
        while len(text) - start > (0 if last else _LONGEST):
            end = _end(text, start)
            yield text[start:end], last and end == len(text)
            start = end
        text = "" if last else text[start:]


def _end(text: str, start: int) -> int:
    """Where the piece from ``start`` ends: at a line's end, else the text's, else before a word."""
    line = _LINE.search(text, start + _PIECE, start + _LONGEST)
    if line:
        return line.start()
    if len(text) - start <= _LONGEST:
        return len(text)
    space = text.rfind(" ", start + _PIECE, start + _LONGEST)
    return space if space > 0 else start + _LONGEST


def batches(chunks: Iterable[Chunk]) -> Iterator[list[Chunk]]:
    """Pieces in lists of about 1 Mi characters; their tokens take fifty times that in memory."""
    batch: list[Chunk] = []
    size = 0
    for piece, last in chunks:
        batch.append((piece, last))
        size += len(piece)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _no_text(name: str) -> MattaError:
    return find.empty(name, f"text ({', '.join(READ)})")


def _nonblank(chunks: Iterable[Chunk], error: MattaError) -> Iterator[Chunk]:
    """The chunks of documents that are not blank. Raises ``error`` if there are none."""
    held, shown, any_shown = "", False, False
    for chunk, last in chunks:
        held += chunk
        shown = shown or bool(held.strip())
        if shown:
            yield held, last
            held, any_shown = "", True
        if last:
            held, shown = "", False
    if not any_shown:
        raise error


def _file(path: Path, column: str, tally: Tally) -> Iterator[Chunk]:
    """The chunks of one file's documents, blank ones too."""
    if path.suffix.lower() in records.TABLES:
        yield from _documents(records.strings(path, column, "data.text", tally))
        return
    for chunk in lines.chunks(path, _CHUNK):
        yield chunk, False
    yield "", True


def _hub_rows(rows: Any, column: str, name: str, tally: Tally) -> Iterator[Chunk]:
    count, empty = 0, 0
    try:
        for batch in rows.iter(batch_size=_ROWS):
            find.check_column(name, column, "data.text", batch)
            for value in batch[column]:
                count += 1
                text = records.text_of(value, column, name, f"row {count:,}")
                empty += text is None or not text.strip()
                yield from _documents([text])
    except MattaError:
        raise
    except Exception as error:
        # a stream breaks in as many ways as there are networks and file formats
        failed = f"Reading {name!r} from the hub failed; try again."
        raise MattaError(f"{failed} ({said(error)})") from error
    tally.files[name] = (count, f" of {count:,}", empty)


def _documents(values: Iterable[str | None]) -> Iterator[Chunk]:
    return ((value, True) for value in values if value is not None)


def repeated(train: Text, held_out: Text) -> tuple[int, int]:
    """How many of the held-out lines also stand in the text to train on, and of how many.

    Lines of 16 characters or more are compared: shorter ones, such as headings, say nothing.
    """
    held = Counter(_long_lines(held_out))
    both = {line for line in _long_lines(train) if line in held}
    return sum(held[line] for line in both), sum(held.values())


def _long_lines(text: Text) -> Iterator[int]:
    """A number for each of the longer lines: texts would take more memory."""
    for piece, _ in pieces(text.read()):
        own = map(lines.plain, piece.split("\n"))
        yield from (hash(line) for line in own if len(line) >= _COMPARED)
