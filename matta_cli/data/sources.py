"""Where rows of text come from: files of a part, or a split of a hub dataset."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from matta_cli.data import cards, divided, find, folders, records
from matta_cli.data.lines import lines
from matta_cli.data.tally import Tally
from matta_cli.errors import MattaError
from matta_cli.settings.recipe import DataSettings

T = TypeVar("T")

_NUMBER = re.compile(r"(-?\d{1,9})(\.0*)?")  # of a class
_BENCHMARK = 7  # cells of a row of the STS benchmark's own files: the score is the fifth


@dataclass(frozen=True)
class Source:
    """The rows of a file, or of a split of a hub dataset.

    name, unit: for people, also of what their places are numbers. columns: their names. rows: of
    some columns, and the setting that names them. classes: of a column of numbers that stand for
    names, these; else None. tally: counts what was read of a file.
    """

    name: str
    columns: Sequence[str]
    rows: Callable[[Sequence[str], str], Iterable[records.Row]]
    unit: str = "row"
    classes: Callable[[str], list[str] | None] = lambda _: None
    tally: Tally = field(default_factory=Tally)

    def notes(self) -> list[str]:
        """A sentence on what was read, once it was."""
        return self.tally.notes(self.name)


def text_columns(source: Source, settings: DataSettings) -> list[str]:
    """Both of ``data.sentences`` where the source has them, else ``data.text``."""
    _check_pair(settings)
    if set(settings.sentences) <= set(source.columns):
        return list(settings.sentences)
    setting = "data.text, or data.sentences for pairs,"
    find.check_column(source.name, settings.text, setting, source.columns)
    return [settings.text]


def instead(
    name: str, taken: Sequence[str], others: Sequence[str], known: Sequence[str]
) -> list[str]:
    """A sentence where columns are read in place of ``others``, which are there, too; else none."""
    if not set(others) <= set(known) or set(others) & set(taken):
        return []
    read, other = (" and ".join(map(repr, own)) for own in (taken, others))
    those = "that" if len(others) == 1 else "those"
    do = f"rename or remove {'it' if len(taken) == 1 else 'them'} to take {those}"
    return [f"{name!r}: {read} {'is' if len(taken) == 1 else 'are'} read, not {other} ({do})."]


def left_out(source: Source, empty: int, pairs: bool) -> list[str]:
    """A sentence on rows that are left out, as they miss a text; none without such rows."""
    what = "without one of both texts" if pairs else "without text"
    return [f"{source.name!r}: {empty:,} rows {what} are left out."] if empty else []


def parts(
    settings: DataSettings,
    training: bool,
    kinds: Sequence[str],
    what: str,
    do: str,
    of_files: Callable[[Sequence[Path], Sequence[str]], T],
    of_split: Callable[[Any, str], T],
    divided: Callable[[T], tuple[T, T]],
) -> tuple[T | None, T]:
    """What to train on (None unless ``training``), and what to measure on.

    kinds: the suffixes of files that hold ``what``. do: what to do where there are none. of_files:
    makes it of files of one part and sentences on them; of_split: of a split of a hub dataset, and
    its name. divided: as of ``find.to_train_and_measure``.
    """

    def opened(text: str, flag: str, training: bool) -> tuple[T | None, T | None]:
        path = find.find(text, flag)
        if path is None:
            splits = find.hub_dataset(text, settings.config)
            return find.hub_parts(
                splits, text, settings, training, lambda rows: of_split(rows, text)
            )
        if not path.is_dir():
            return of_files([path], ()), None
        own = folders.data_files(path, kinds)
        if not own.files:
            raise find.empty(text, f"{what} ({', '.join(kinds)})", [*own.note(), do])
        found, notes = folders.parts(own, settings.config)
        return find.hub_parts(found, text, settings, training, lambda files: of_files(files, notes))

    return find.to_train_and_measure(settings, training, opened, divided)


def of_file(path: Path, settings: DataSettings, optional: Sequence[str] = ()) -> Source:
    """A file of rows, also one of the STS benchmark in its own form.

    optional: columns that rows of JSON need not have.
    """
    _check_pair(settings)
    if path.suffix.lower() in (".csv", ".tsv") and (found := _benchmark(path, settings)):
        return found
    tally = Tally()
    return Source(
        str(path),
        records.names(path, optional),
        lambda columns, setting: records.rows(path, columns, setting, tally, optional),
        records.unit(path),
        lambda column: named_classes(path, column),
        tally=tally,
    )


def named_classes(path: Path, column: str) -> list[str] | None:
    """What the numbers in a file's column stand for, where the file or its card says so."""
    return records.classes(path, column) or cards.classes(path, column)


def class_named(value: Any, classes: Sequence[str] | None) -> Any:
    """A label by the name that its number stands for in the data; None for one of no class.

    A number may be text or a float, as CSV and pandas have it; other labels are as they are.
    """
    if classes is None or value is None or isinstance(value, bool):
        return value
    if isinstance(value, list):
        return [class_named(one, classes) for one in value]
    number = _NUMBER.fullmatch(str(value).strip())
    if number is None or value in classes:
        return value
    at = int(number[1])
    return classes[at] if 0 <= at < len(classes) else None


def of_split(rows: Any, name: str) -> Source:
    """A split of a hub dataset."""

    tally = Tally()

    def read(columns: Sequence[str], setting: str) -> Iterator[records.Row]:
        for column in columns:
            find.check_column(name, column, setting, rows.column_names)
        tally.files[name] = (len(rows), f" of {len(rows):,}", 0)
        rest = [column for column in rows.column_names if column not in columns]
        divided.refuse_in(rows, name, columns)
        tally.columns[name] = (list(columns), rest)
        return enumerate(zip(*(rows[column] for column in columns), strict=True), 1)

    def classes(column: str) -> list[str] | None:
        kind = rows.features[column]
        names = getattr(getattr(kind, "feature", kind), "names", None)
        return None if names is None else list(names)

    return Source(name, rows.column_names, read, classes=classes, tally=tally)


def _benchmark(path: Path, settings: DataSettings) -> Source | None:
    """A file of the STS benchmark in its own form: tabs, no header, the score fifth; else None."""
    cells = []
    for row in (line.rstrip("\n").split("\t") for line in lines(path) if line.strip()):
        if len(row) < _BENCHMARK:
            return None
        cells.append(row)
    if not cells:
        return None
    try:
        scores = [float(row[4]) for row in cells]
    except ValueError:
        return None
    columns = [*settings.sentences, settings.score]
    known = dict(zip(columns, ([r[5] for r in cells], [r[6] for r in cells], scores), strict=True))
    read = "the fifth column (score), the sixth and the seventh (sentences)"
    tally = Tally({str(path): (len(cells), f" of {len(cells):,} lines: {read}", 0)})

    def rows(wanted: Sequence[str], _setting: str) -> Iterator[records.Row]:
        return enumerate(zip(*(known[column] for column in wanted), strict=True), 1)

    return Source(str(path), columns, rows, "line", tally=tally)


def _check_pair(settings: DataSettings) -> None:
    if len(settings.sentences) != 2:
        raise MattaError(f"data.sentences is {settings.sentences}, but a pair has two columns.")
