"""From the recipe's data to words and their tags: CoNLL's files, and rows of lists."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from matta_cli.data import find, records, sources
from matta_cli.data.lines import lines
from matta_cli.data.sources import Source
from matta_cli.errors import MattaError
from matta_cli.settings.recipe import DataSettings
from matta_cli.tasks.unlabelled import divided

CONLL = (".conll", ".conllu", ".iob", ".iob2", ".bio", ".txt")
_ROWS = (".jsonl", ".json", ".parquet")
_DOCUMENT = "-DOCSTART-"
_BLANKS = re.compile(" +")
_DO = "A file of a word and its tag in each line has to be called .conll."
_PREFIX = re.compile(r"[a-z]{2,3}(-[a-z]+)*:")  # before each word of WikiANN's own files
_UD = (1, 3)  # of a line of CoNLL-U: the word and its part of speech


@dataclass
class Rows:
    """Words of texts, and a tag of each, as the user has them, or no tags at all.

    number: which of the user's texts it is. where: its place, in words. column, lacks: as of
    ``Examples``.
    """

    words: list[list[str]] = field(default_factory=list)
    tags: list[list[Any]] = field(default_factory=list)
    number: list[int] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    column: str = ""
    lacks: str = ""

    def __len__(self) -> int:
        return len(self.words)

    @property
    def known(self) -> np.ndarray:
        """Which texts have tags, bool [n]."""
        return np.array([bool(tags) for tags in self.tags], bool)

    def called(self, i: int) -> str:
        return self.where[i]

    def part(self, chosen: Sequence[int]) -> Rows:
        """Some of the texts."""
        lists = ("words", "tags", "number", "where")
        some: dict[str, Any] = {name: [getattr(self, name)[i] for i in chosen] for name in lists}
        return replace(self, **some)


def read_rows(settings: DataSettings, training: bool) -> tuple[Rows | None, Rows]:
    """Texts to train on (None unless ``training``) and to measure on."""

    def of_files(files: Sequence[Path], notes: Sequence[str]) -> Rows:
        rows = Rows(notes=list(notes))
        for path in files:
            kind = path.suffix.lower()
            if kind in _ROWS:
                _add(rows, sources.of_file(path, settings, [settings.tags]), settings)
            elif kind in CONLL:
                _add_conll(rows, path)
            else:
                raise find.of_no_kind(path, "that has words and tags", (*CONLL, *_ROWS), _DO)
        return _some(rows, str(files[0]))

    def of_split(split: Any, name: str) -> Rows:
        rows = Rows()
        _add(rows, sources.of_split(split, name), settings)
        return _some(rows, name)

    def last(rows: Rows) -> np.ndarray:
        return np.arange(len(rows)) >= find.last_tenth(len(rows), settings.train, "texts")

    return sources.parts(
        settings,
        training,
        (*CONLL, *_ROWS),
        "words and tags",
        _DO,
        of_files,
        of_split,
        lambda rows: divided(rows, settings.train, "texts", last),
    )


def _some(rows: Rows, name: str) -> Rows:
    if not len(rows):
        raise find.empty(name, "texts with words and tags")
    return rows


def _add(rows: Rows, source: Source, settings: DataSettings) -> None:
    """Take the rows of two columns of lists."""
    find.check_column(source.name, settings.words, "data.words", source.columns)
    rows.column, classes = settings.tags, None
    columns = [settings.words, settings.tags]
    try:
        find.check_column(source.name, settings.tags, "data.tags", source.columns)
        classes = source.classes(settings.tags)
    except MattaError as lack:
        rows.lacks, columns = str(lack), columns[:1]
    empty = 0
    start = rows.number[-1] + 1 if rows.number else 0
    for number, (place, values) in enumerate(source.rows(columns, "data.words"), start):
        words, tags = values[0], values[1] if len(values) > 1 else None
        where = f"{source.unit} {place:,} of {source.name!r}"
        for column, value in ((settings.words, words), (settings.tags, tags)):
            if not isinstance(value, (list, type(None))):
                holds = f"Column {column!r} holds {value!r:.60} in {where}"
                raise MattaError(f"{holds}, but a list is needed: one of each word.")
        words, tags = words or [], tags or []
        if tags and len(words) != len(tags):
            both = f"{len(words)} words and {len(tags)} tags"
            raise MattaError(f"There are {both} in {where}: each word needs one.")
        empty += not words
        if words:
            named = [_named(tag, classes) for tag in tags]
            texts = [records.text_of(word, settings.words, source.name, where) for word in words]
            _take(rows, [text or "" for text in texts], named, number, where)
    rows.notes += source.notes()
    if empty:
        rows.notes.append(f"{source.name!r}: {empty:,} rows without words are left out.")


def _named(tag: Any, classes: list[str] | None) -> Any:
    if classes is not None and isinstance(tag, int) and 0 <= tag < len(classes):
        return classes[tag]
    return tag


def _take(rows: Rows, words: list[str], tags: list[Any], number: int, where: str) -> None:
    """One text. Raises ``MattaError`` where a word is blank or has no tag."""
    blank = next((k for k, word in enumerate(words) if not word.strip()), None)
    if blank is not None:
        raise MattaError(f"Word {blank + 1} of {where} is empty: leave it out, with its tag.")
    hole = next((k for k, tag in enumerate(tags) if tag is None or tag == ""), None)
    if hole is not None:
        raise MattaError(f"The word {words[hole]!r} of {where} has no tag: give it one.")
    rows.words.append(words)
    rows.tags.append(tags)
    rows.number.append(number)
    rows.where.append(where)


def _add_conll(rows: Rows, path: Path) -> None:
    """Take a file with a word a line, its tag last (of CoNLL-U the part of speech), and an empty
    line after each text. Where there are words alone, they have no tags.
    """
    start = rows.number[-1] + 1 if rows.number else 0
    count, counts = 0, []
    for first, words, tags in _texts(path):
        counts.append(words in ([str(k + at) for k in range(len(words))] for at in (0, 1)))
        if not tags:
            rows.lacks = f"{str(path)!r} has one column: a word and its tag are needed."
        _take(rows, words, tags, start + count, f"the text from line {first:,} of {str(path)!r}")
        count += 1
    own = [word for words in rows.words[len(rows) - count :] for word in words]
    mark = _PREFIX.match(own[0]) if len(own) > 1 else None
    if mark and all(word.startswith(mark[0]) for word in own):
        raise MattaError(f"All words of {str(path)!r} begin with {mark[0]!r}: take that out.")
    if counts and all(counts) and max(map(len, rows.words[-count:])) > 1:
        has = f"The first column of {str(path)!r} counts the words of each text"
        raise MattaError(f"{has}, where the words themselves belong: remove it.")
    width, read = _form(path)[0], "the first (words) and the last (tags)"
    if path.suffix.lower() == ".conllu":
        width, read = 10, "the second (words) and the fourth (parts of speech, as tags)"
    of = f"; of {width} columns {read} are read" if width > 2 else ""
    rows.notes.append(f"{str(path)!r}: {count:,} texts read{of}.")


def _texts(path: Path) -> Iterator[tuple[int, list[str], list[str]]]:
    """The line on which each text begins, its words and its tags."""
    universal = path.suffix.lower() == ".conllu"
    first, (width, tabs) = 0, (0, True) if universal else _form(path)
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate(lines(path), 1):
        cells = _cells(line)
        if not line.strip() or cells[0] == _DOCUMENT:
            if words:
                yield first, words, tags
            words, tags = [], []
            continue
        other = universal or len(cells) != width or ("\t" in line) != tabs
        if line.startswith("#") and not words and other:
            continue  # a comment
        width = width or len(cells)
        if len(cells) != width or (universal and width <= max(_UD)):
            has = f"{str(path)!r} has {len(cells)} columns in line {number:,}"
            needs = "10" if universal else f"{width}, as the lines before it have"
            raise MattaError(f"{has}, but {needs} are needed: mend it.")
        if universal and not cells[0].isdecimal():
            continue  # of a word in several parts, or of one that is not there
        at = _UD if universal else (0, -1)
        first = first if words else number
        words.append(cells[at[0]])
        tags += [cells[at[1]]] if width > 1 else []
    if words:
        yield first, words, tags


def _cells(line: str) -> list[str]:
    # a blank of another kind is a part of a word
    return line.rstrip("\n").split("\t") if "\t" in line else _BLANKS.split(line.strip(" \n"))


def _form(path: Path) -> tuple[int, bool]:
    """How many columns the first line has that is surely of a word, and whether tabs part them.

    A text may begin with a hashtag. 0: all may be comments.
    """
    for line in lines(path):
        cells = _cells(line)
        if line.strip() and not line.startswith("#") and cells[0] != _DOCUMENT:
            return len(cells), "\t" in line
    return 0, False
