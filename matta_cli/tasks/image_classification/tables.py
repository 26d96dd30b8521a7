"""Images whose labels stand in a table beside them: a column of paths, one or more of labels."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from matta_cli.data import find, folders, records, sources
from matta_cli.data.tally import Tally
from matta_cli.errors import MattaError
from matta_cli.settings.recipe import DataSettings
from matta_cli.tasks.class_names import simplified
from matta_cli.tasks.image_classification import layouts
from matta_cli.tasks.image_classification.examples import Source
from matta_cli.tasks.image_classification.labels import read_labels, whole
from matta_cli.tasks.image_classification.pictures import decoded
from matta_cli.tasks.labels import parted, yes
from matta_cli.tasks.unlabelled import missing

_BESIDE = (".csv", ".tsv", ".jsonl", ".parquet")  # .json beside images may be anything, and large
_PATHS = ("file_name", "path")


@dataclass(frozen=True)
class Known:
    """What is known of a model's labels: how many, their names in its order, if it has any, and
    whether its config says that an example has several.
    """

    outputs: int
    names: list[str]
    several: bool = False

    def is_label(self, text: str) -> bool:
        """Whether a cell of text is one of them."""
        number = text.isdecimal() and int(text) < self.outputs
        return number or simplified(text) in self._simplified

    @cached_property
    def _simplified(self) -> set[str]:
        return set(map(simplified, self.names))


@dataclass
class _Rows:
    """Rows of tables: the path of each image, its label, and the row for people."""

    paths: list[Path] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    called: list[str] = field(default_factory=list)
    hot: bool = False
    lacks: str = ""

    def once(self) -> int:
        """Leave out rows that say again what another one has said, and count them.

        Raises ``MattaError`` where an image stands in several rows with different labels.
        """
        first: dict[str, int] = {}
        for i, path in enumerate(self.paths):
            before = first.setdefault(os.path.normpath(path), i)
            if repr(self.labels[before]) != repr(self.labels[i]):
                both = f"{self.called[before]} and in {self.called[i]}"
                twice = f"{str(path)!r} stands with different labels in {both}"
                raise MattaError(f"{twice}: give each image one row, and several labels as a list.")
        again, kept = len(self.paths) - len(first), list(first.values())
        self.paths = [self.paths[i] for i in kept]
        self.labels, self.called = ([own[i] for i in kept] for own in (self.labels, self.called))
        return again


def beside(folder: Path, settings: DataSettings, known: Known) -> folders.Files:
    """The tables of images in a folder, and in those of its parts (``train``)."""
    parts = (own for own in folder.iterdir() if own.is_dir() and folders.part_named(own.name))
    there = [file for own in (folder, *sorted(parts)) for file in sorted(own.iterdir())]
    kinds = [file for file in there if file.suffix.lower() in _BESIDE and file.is_file()]
    return folders.Files(folder, [f for f in kinds if _is_table(f, settings, known)], [])


def from_tables(
    files: Sequence[Path], settings: DataSettings, known: Known, notes: list[str]
) -> Source:
    """The images of these tables. Paths are taken from the folder of their table.

    notes: takes what there is to say. Raises ``MattaError`` for rows without an image, whose image
    is not there, or that contradict another.
    """
    rows = _Rows()
    for file in files:
        notes += _add(rows, file, settings, known)
    if not rows.paths:
        raise find.empty(str(files[0]), "images")
    missing = [i for i, path in enumerate(rows.paths) if not path.is_file()]
    if missing:
        some = f"{len(missing):,} of {len(rows.paths):,} images are not there"
        first = f"the first is {str(rows.paths[missing[0]])!r} ({rows.called[missing[0]]})"
        wrong = f"{some}; {first}: paths are taken from the folder of the table."
        raise MattaError(wrong + _found(rows.paths[missing[0]], files[0].parent))
    if again := rows.once():
        several = f"{again:,} rows name images that others have named, with the same label"
        notes.append(f"{str(files[0])!r}: {several}: each image is read once.")
    base = Path(os.path.commonpath([str(file.parent) for file in files]))
    names = [Path(os.path.relpath(path, base)).as_posix() for path in rows.paths]
    names_of = [sources.named_classes(file, settings.label) for file in files]
    given = None if any(own != names_of[0] for own in names_of) else names_of[0]
    labels, classes = _labels(rows, files, settings.label, known, given)
    status = [path.stat() for path in rows.paths]

    def content(i: int) -> bytes:
        return rows.paths[i].read_bytes()

    return Source(
        labels,
        lambda i: decoded(content(i)),
        classes,
        np.array(names),
        content=content,
        identity=[str(base.resolve()), names, [(now.st_size, now.st_mtime_ns) for now in status]],
        ordered=given is not None and classes == given,
        root=str(base),
        column="" if rows.hot else settings.label,
        lacks=rows.lacks,
    )


def _found(missing: Path, folder: Path) -> str:
    """A sentence with another path of an image, where a file of its name is there."""
    for own in layouts.images(folder):
        if missing.name in (own.name, own.stem):
            return f" There is {own.relative_to(folder).as_posix()!r}: write all so."
    return ""


def _labels(
    rows: _Rows, files: Sequence[Path], column: str, known: Known, given: list[str] | None
) -> tuple[np.ndarray, list[str] | None]:
    """The labels of rows, and the names of their classes, where there are any.

    given: what their numbers stand for, where the data says so.
    """
    if rows.hot:
        return np.array(rows.labels, np.float32), list(known.names)
    rows.labels = parted(rows.labels, known.is_label, several=known.several)
    wholes = [None if missing(v) else whole(v, cells=True) for v in rows.labels]
    # numbers that are all names of classes are these, be they text, floats or numbers
    if given is None and {str(n) for n in wholes if n is not None} <= set(known.names):
        rows.labels = [v if n is None else str(n) for v, n in zip(rows.labels, wholes, strict=True)]
    lists = [label if isinstance(label, list) else [label] for label in rows.labels]
    there = {repr(one) for own in lists for one in own if not missing(one)}
    cells = not there <= set(map(repr, known.names))
    row = rows.called.__getitem__
    return read_labels(rows.labels, given, column, str(files[0]), row, known.outputs, cells=cells)


def _columns(columns: Sequence[str], settings: DataSettings, known: Known) -> tuple[str, list[str]]:
    """The column of the images, and that of the label, or one for each of the model's labels.

    What is not there is empty.
    """
    image = next((name for name in (settings.image, *_PATHS) if name in columns), "")
    if settings.label in columns:
        return image, [settings.label]
    hot = len(known.names) > 1 and set(known.names) <= set(columns)
    return image, known.names if hot else []


def _is_table(file: Path, settings: DataSettings, known: Known) -> bool:
    try:
        return all(_columns(records.names(file), settings, known))
    except MattaError:
        return False


def _add(rows: _Rows, file: Path, settings: DataSettings, known: Known) -> list[str]:
    """Take the rows of a table. Returns sentences on that."""
    columns, name = records.names(file, [settings.label]), str(file)
    image, labels = _columns(columns, settings, known)
    if not image:
        find.check_column(name, _PATHS[0], "data.image", columns)
    try:
        if not labels:
            find.check_column(name, settings.label, "data.label", columns)
    except MattaError as lack:
        rows.lacks = str(lack)
    hot = len(labels) > 1
    if rows.paths and rows.hot != hot:
        raise MattaError(f"{name!r} does not have the same columns as the tables before it.")
    rows.hot = hot
    tally, wanted = Tally(), [image, *labels]
    for place, (path, *own) in records.rows(file, wanted, "", tally, [settings.label]):
        where = f"{records.unit(file)} {place:,}"
        text = records.text_of(path, image, name, where)
        if text is None or not text.strip():
            raise MattaError(f"Column {image!r} of {name!r} has no path in {where}: fill it in.")
        there = file.parent / text
        if "\\" in text and not there.is_file():  # as Windows writes paths
            there = file.parent / text.replace("\\", "/")
        rows.paths.append(there)
        rows.labels.append(_yes(own, name, where) if hot else next(iter(own), None))
        rows.called.append(f"{where} of {name!r}")
    others = [other for other in _PATHS if other in columns and other != image]
    several = (sources.instead(name, [image], [other], columns) for other in others)
    return [*tally.notes(name), *(note for own in several for note in own)]


def _yes(values: Sequence[Any], name: str, where: str) -> list[float]:
    """The cells of the labels' own columns: 0 or 1; where all are empty, NaN."""
    if all(map(missing, values)):
        return [math.nan] * len(values)
    found = [yes(value) for value in values]
    if None not in found:
        return [float(own or 0) for own in found]
    value = values[found.index(None)]
    raise MattaError(f"{name!r} holds {value!r} in {where}, but the column of a label is 0 or 1.")
