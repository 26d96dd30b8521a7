"""Text as a stream: documents are read chunk by chunk, as often as needed, so that no corpus has to
fit in memory.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from matta_cli.data import find
from matta_cli.errors import MattaError, said

READ = (".txt", ".md", ".jsonl", ".parquet")


# documents held out of a stream that has no held-out split: its end, and so its last tenth, is not
# known
FIRST = 1000


_CHUNK = 1 << 20  # characters that are read at once


_PIECE = 1 << 14  # characters that are tokenized at once: many pieces of one text run in parallel


_LONGEST = 1 << 20  # characters of a piece that has no line's end to be cut at


_BATCH = 1 << 20  # characters of a list of pieces


_ROWS = 256  # rows of a table that are read at once


_PASSAGES = 500  # passages taken from held-out paragraphs


_CANDIDATES = 1 << 14  # lines that are held to choose them from


_WORDS = 10  # words of a paragraph that makes a passage


_TAIL = 1 << 14  # characters of a passage: its beginning counts for nothing


Chunk = tuple[str, bool]  # a part of a document, and whether the document ends there


# a line's end begins a piece: no tokenizer joins it with the word before it
_LINE = re.compile(r"(?<=\S)\n")


@dataclass(frozen=True)
class Text:
    """Documents that ``read`` goes through from the beginning, in the same order, whenever it is
    called.

    name: the user's. identity: what JSON can hold, and another one whenever the documents may be
    others. size: bytes, about; None where nobody knows. read: the chunks of all documents that are
    not blank; raises ``MattaError`` where there are none.
    """

    name: str
    identity: list[Any]
    size: int | None
    read: Callable[[], Iterator[Chunk]]


def local(path: Path, column: str, name: str) -> Text:
    """A file, or all files in a folder that can be read, in the order of their paths. One .txt or
    .md file is one document.
    """
    if not path.is_dir() and not path.is_file():
        raise MattaError(
            f"{name!r} is a pipe or a device, but text is read more than once: save it to a file first."
        )
    files = (
        sorted(p for p in path.rglob("*") if p.suffix in READ and p.is_file())
        if path.is_dir()
        else [path]
    )
    status = [(str(file.resolve()), file.stat()) for file in files]
    identity = [
        "files",
        column,
        *([file, found.st_size, found.st_mtime_ns] for file, found in status),
    ]

    def read() -> Iterator[Chunk]:
        return _nonblank((chunk for file in files for chunk in _file(file, column)), _no_text(name))

    return Text(name, identity, sum(found.st_size for _, found in status), read)


def hub(rows: Any, column: str, name: str, identity: list[Any]) -> Text:
    """The rows of a split of a hub dataset (``Dataset`` or ``IterableDataset``), each a document."""
    known = rows.column_names
    if known is not None and column not in known:
        raise find.no_column(name, column, "data.text", known)
    only = rows.select_columns([column]) if known is not None else rows
    size = rows.data.nbytes if hasattr(rows, "data") else None

    def read() -> Iterator[Chunk]:
        return _nonblank(_hub_rows(only, column, name), _no_text(name))

    return Text(name, ["hub", column, *identity], size, read)


def first(text: Text, count: int = FIRST) -> tuple[Text, Text]:
    """The documents after the first ``count`` to train on, and those, to be held out."""
    error = MattaError(
        f"{text.name!r} has no held-out split, so its first {count:,} documents are held out, and it has no more than those: "
        "pass --held-out with other text, or leave data.streaming out."
    )

    def read(held_out: bool) -> Iterator[Chunk]:
        documents = 0
        for chunk, last in text.read():
            if (documents < count) == held_out:
                yield chunk, last
            documents += last
            if held_out and documents == count:
                return

    train = replace(
        text, identity=[*text.identity, "after", count], read=lambda: _nonblank(read(False), error)
    )
    return train, replace(text, identity=[*text.identity, "first", count], read=lambda: read(True))


def cut(text: Text) -> tuple[Text, Text]:
    """The documents without the last tenth of their text, and that tenth; a document is cut where a
    line or word ends.
    """
    place = functools.cache(lambda: _place(text))
    error = MattaError(
        f"{text.name!r} holds too little text to hold some out, so pass --held-out with other text."
    )

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
    """The character at which the last tenth begins. Reads everything once, and all before it again,
    but holds nothing.
    """
    total = sum(len(chunk) for chunk, _ in text.read())
    place = find.last_tenth(total, text.name, "characters")
    position, document, breaks = 0, 0, {"\n": -1, " ": -1}
    for chunk, last in text.read():
        for mark in breaks:
            found = chunk.rfind(mark, 0, place + 1 - position)
            breaks[mark] = position + found if found >= 0 else breaks[mark]
        position += len(chunk)
        if position > place:
            break
        if last:
            document = position
    earliest = max(document, place - total // 10)  # a fifth at most is held out
    return next((found for found in breaks.values() if found >= earliest), place)


def pieces(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Documents cut where lines end, after 16,384 characters or more: the same cuts whatever the
    chunks are.
    """
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
    """Where the piece that begins at ``start`` ends: at a line's end, else the text's, else before
    a word.
    """
    line = _LINE.search(text, start + _PIECE, start + _LONGEST)
    if line:
        return line.start()
    if len(text) - start <= _LONGEST:
        return len(text)
    space = text.rfind(" ", start + _PIECE, start + _LONGEST)
    return space if space > 0 else start + _LONGEST


def batches(found: Iterable[Chunk]) -> Iterator[list[Chunk]]:
    """Pieces in lists of about 1 Mi characters: what a tokenizer makes of them takes about fifty
    times that.
    """
    batch: list[Chunk] = []
    size = 0
    for piece, last in found:
        batch.append((piece, last))
        size += len(piece)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Paragraphs:
    """At most 500 passages from the lines of text that have ten words or more, evenly spread, of
    however much text.

    What follows the last word (a full stop, a quotation mark) is taken off; a passage that then
    does not end in a word of letters is left out. A longer one than 16,384 characters loses its
    beginning.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self.count, self.every = 0, 1

    def add(self, text: str) -> None:
        """Look through whole lines of a document."""
        for line in text.splitlines():
            line = re.sub(r"[\W_]+$", "", line[-_TAIL:]).strip()
            word = line.rpartition(" ")[2]
            if len(line.split()) < _WORDS or not re.fullmatch(r"[^\W\d_]+([-'’][^\W\d_]+)*", word):
                continue
            if self.count % self.every == 0:
                self.found.append(line)
            self.count += 1
            if len(self.found) > _CANDIDATES:  # every second one stands for both
                self.found, self.every = self.found[::2], 2 * self.every

    def passages(self) -> list[str]:
        if len(self.found) <= _PASSAGES:
            return self.found
        return [self.found[i] for i in np.linspace(0, len(self.found) - 1, _PASSAGES).astype(int)]


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


def _file(path: Path, column: str) -> Iterator[Chunk]:
    if path.suffix == ".jsonl":
        yield from ((text, True) for text in jsonl(path, column))
    elif path.suffix == ".parquet":
        yield from _parquet(path, column)
    else:
        try:
            with path.open(encoding="utf-8") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk, False
        except (UnicodeDecodeError, OSError):
            raise MattaError(
                f"{str(path)!r} is not a text file in UTF-8; matta reads {', '.join(READ)}."
            ) from None
        yield "", True


def jsonl(path: Path, column: str, setting: str = "data.text") -> Iterator[str]:
    """The texts of a JSONL file, line by line. ``setting`` names the column in an error."""
    for number, row in json_lines(path):
        if not isinstance(row, dict) or column not in row:
            raise find.no_column(
                f"{path}:{number}", column, setting, list(row) if isinstance(row, dict) else []
            )
        yield str(row[column])


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The values in a JSONL file, each with the number of its line; empty lines are left out."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise MattaError(
                        f"{str(path)!r}, line {number} is not valid JSON: {error}."
                    ) from None
                yield number, row
    except (UnicodeDecodeError, OSError):
        raise MattaError(f"{str(path)!r} cannot be read as JSON lines in UTF-8.") from None


def _parquet(path: Path, column: str) -> Iterator[Chunk]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names: Sequence[str] = file.schema_arrow.names
            if column not in names:
                raise find.no_column(str(path), column, "data.text", names)
            for rows in file.iter_batches(batch_size=_ROWS, columns=[column]):
                yield from (
                    (str(value), True) for value in rows[0].to_pylist() if value is not None
                )
    except (pa.ArrowException, OSError) as error:
        raise MattaError(f"{str(path)!r} cannot be read: {str(error).splitlines()[0]}") from None


def _hub_rows(rows: Any, column: str, name: str) -> Iterator[Chunk]:
    try:
        for batch in rows.iter(batch_size=_ROWS):
            if column not in batch:
                raise find.no_column(name, column, "data.text", list(batch))
            yield from ((str(value), True) for value in batch[column] if value is not None)
    except MattaError:
        raise
    except Exception as error:
        # a stream breaks in as many ways as there are networks and file formats
        raise MattaError(
            f"Reading {name!r} from the hub failed; try again. ({said(error)})"
        ) from error
