"""Rows to rank from files: tables (CSV, TSV, Parquet) and LibSVM."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matta_cli.data import find, folders, records, tables
from matta_cli.data.folders import shown
from matta_cli.data.tables import Table
from matta_cli.errors import MattaError
from matta_cli.settings.recipe import DataSettings
from matta_cli.tasks.ranking import libsvm
from matta_cli.tasks.ranking.examples import Rows
from matta_cli.tasks.scores import numbered
from matta_cli.tasks.unlabelled import divided

_INDEX = re.compile(r"__index_level_\d+__")  # pandas' index in Parquet: no column to pandas
_LOOKED = 4096  # values of a column of which it is told whether float32 tells them apart
_SHOWN = 12  # features that are said by name
_FLOAT32 = 1 << 24  # whole numbers beyond are not all told apart by float32

Parts = tuple[list[Path] | None, list[Path] | None]  # to train on, and held out


def read_rows(settings: DataSettings, model: Any, training: bool) -> tuple[Rows, Rows, list[str]]:
    """Rows to train on and to measure on, and notes; without ``training`` the first may be any."""
    notes: list[str] = []
    train, held_out = None, None
    if settings.held_out:
        own, beside = _files(settings.held_out, "--held-out", settings, notes)
        held_out = beside or own
    if training or not held_out:
        train, beside = _files(settings.train, "--data", settings, notes)
        held_out = held_out or beside
    elif (path := Path(settings.train).expanduser()).is_file() and not _is_table([path]):
        train = [path]
    if train and held_out and _is_table(train) != _is_table(held_out):
        differ = f"{str(train[0])!r} and {str(held_out[0])!r} are of different formats"
        raise MattaError(f"{differ}: pass two of the same.")
    groups = [files for files in (train, held_out) if files]
    if _is_table(groups[-1]):
        # of LibSVM files, only together do they tell whether columns count from 0 or from 1
        groups = groups if training else groups[-1:]
        rows = list[Rows]()
        for files in groups:  # features are known by their names: parts may have another order
            order = rows[0].features if rows else () if training else _known_order(settings)
            rows.append(_table(files, settings, model, notes, order))
    else:
        rows = _libsvm(groups, model, notes)
    if held_out:
        return rows[0], rows[-1], notes
    name = settings.train
    return *divided(rows[0], name, "rows", lambda own: _last(own, name)), notes


def _files(text: str, flag: str, settings: DataSettings, notes: list[str]) -> Parts:
    """The file that ``text`` names, or the files of a folder by part."""
    path = find.find(text, flag)
    if path is None or not (path.is_file() or path.is_dir()):
        needed = f"{flag} is a CSV, Parquet or LibSVM file of rows to rank, or a folder of them."
        raise MattaError(f"{text!r} is no file: {needed}")
    if path.is_file():
        return [path], None
    known = {own.suffix.lower() for own in folders.walk(path)} - {*libsvm.SIDECARS, *libsvm.UNREAD}
    files = folders.data_files(path, sorted(known & set(tables.SUFFIXES) or known))
    if not files.files:
        raise find.empty(text, "rows to rank (CSV, Parquet, LibSVM)", files.note())
    parts, said = folders.parts(files, settings.config)
    notes += said
    return find.hub_parts(parts, text, settings, True, lambda own: own)


def _known_order(settings: DataSettings) -> Sequence[str]:
    """The columns of the table to train on, where that is not read; none where it is not there."""
    path = Path(settings.train).expanduser()
    if not settings.train or not path.exists():
        return ()
    found = folders.data_files(path, tables.SUFFIXES) if path.is_dir() else None
    files = [path] if found is None else folders.parts(found, settings.config)[0].get("train", [])
    try:
        return records.names(files[0]) if files and _is_table(files) else ()
    except MattaError:
        return ()


def _is_table(files: Sequence[Path]) -> bool:
    return files[0].suffix.lower() in tables.SUFFIXES


def features_of(model: Any) -> tuple[list[tuple[int, int]], int]:
    """The model's embeddings (cardinality, width) and its number of dense features."""
    if not hasattr(model, "fields") or not hasattr(model, "dense"):
        read = "`fields` (cardinality and width of each embedding) and `dense` (number of dense "
        read += f"features), but {type(model).__name__} has none."
        raise MattaError(f"The ranking task reads the model's {read}")
    return list(model.fields), int(model.dense)


def _last(rows: Rows, name: str) -> np.ndarray:
    """The last tenth of the queries (or rows), bool [n]."""
    start = find.last_tenth(len(rows), name, rows.unit)
    last: np.ndarray = (np.arange(len(rows)) if rows.group is None else rows.group) >= start
    return last


def _libsvm(groups: Sequence[list[Path]], model: Any, notes: list[str]) -> list[Rows]:
    """The rows of LibSVM files (``label [qid:3] 1:0.5 ...``), of each part."""
    fields, width = features_of(model)
    if fields:
        only = f"The model has {len(fields)} embeddings, but LibSVM files hold dense features only"
        hint = "pass CSV or Parquet, and name the columns in data.categorical and data.dense."
        raise MattaError(f"{only}: {hint}")
    loaded = [[libsvm.read(path) for path in files] for files in groups]
    every = [file for files in loaded for file in files]
    first = min(file.first for file in every)
    names = shown(list(dict.fromkeys(repr(str(file.path)) for file in every)))
    notes.append(
        f"{names}: columns are taken to count from {first}, as "
        + ("one has the number 0." if first == 0 else "none has the number 0.")
    )
    for file in every:
        columns = file.features.shape[1] - first
        if columns > width:
            numbers = f"{columns} columns, but the model reads {width} dense features."
            raise MattaError(f"{str(file.path)!r} has {numbers}")
        notes += file.notes
        own = file.features[:_LOOKED, first:].toarray()
        for k, values in enumerate(own.T, first):
            with np.errstate(over="ignore"):
                notes += _merged(values, values.astype(np.float32), f"Column {k} of {file.path}")
    return [_joined([_libsvm_rows(file, first, width) for file in files]) for files in loaded]


def _libsvm_rows(file: libsvm.File, first: int, width: int) -> Rows:
    own = file.features[:, first:].toarray()
    # sparse rows need not name the last features
    dense = np.zeros((len(own), width), dtype=np.float32)
    with np.errstate(over="ignore"):
        dense[:, : own.shape[1]] = own
        label = file.label.astype(np.float32)
    for values, what in ((dense, "features"), (label[:, None], "labels")):
        wrong = np.flatnonzero(~np.isfinite(values).all(1))
        if len(wrong):
            missing = f"{str(file.path)!r} has {what} that are missing or not finite"
            rows = f"in {len(wrong):,} rows, the first of them row {wrong[0] + 1:,}"
            raise MattaError(f"{missing}, {rows}: give them numbers.")
    return Rows(dense, None, label, file.group)


def _joined(parts: Sequence[Rows]) -> Rows:
    """The rows of several files; each has its own queries."""
    if len(parts) == 1:
        return parts[0]
    grouped = [part.group for part in parts if part.group is not None]
    if grouped and len(grouped) < len(parts):
        raise MattaError("Some of the LibSVM files name queries, and some do not: all must.")
    starts = np.cumsum([0, *(int(group.max()) + 1 for group in grouped)])
    group = [own + start for own, start in zip(grouped, starts, strict=False)]
    return Rows(
        np.concatenate([part.dense for part in parts if part.dense is not None]),
        None,
        np.concatenate([part.label for part in parts]),
        np.concatenate(group) if group else None,
    )


def _table(
    files: Sequence[Path],
    settings: DataSettings,
    model: Any,
    notes: list[str],
    order: Sequence[str],
) -> Rows:
    """The rows of tables, in the columns that the recipe names.

    order: the features, or all columns, of the table to train on, where this is another one.
    """
    read = Counter([*settings.categorical, *settings.dense])
    # names may have zeros in front, but what is a feature, too, is a number
    keys = [own for own in (settings.group, settings.id) if own and own not in read]
    table = tables.Table(files, keys)
    name, known = table.name, table.known
    wanted = [(column, "data.categorical") for column in settings.categorical]
    wanted += [(column, "data.dense") for column in settings.dense]
    wanted += [(settings.group, "data.group")] if settings.group else []
    wanted += [(settings.id, "data.id")] if settings.id else []
    for column, setting in wanted:
        find.check_column(name, column, setting, known)
    _refuse_twice(settings, read)
    fields, width = features_of(model)
    if len(settings.categorical) != len(fields):
        named = f"data.categorical names {len(settings.categorical)} columns"
        hint = "name one for each, in the model's order."
        raise MattaError(f"The model has {len(fields)} embeddings, but {named}: {hint}")
    if not len(table):
        raise find.empty(name, "rows")
    label, lacks = _label(table, settings)
    pairs = zip(settings.categorical, fields, strict=True)
    codes = [_codes(table, column, cardinality) for column, (cardinality, _) in pairs]
    dense = _dense_columns(table, settings, width, lacks, order)
    used = [column for column, _ in wanted if column not in settings.dense]
    used += [*dense, *([settings.label] if settings.label in known else [])]
    notes += table.told(list(dict.fromkeys(used)))
    if dense and not settings.dense and not order:
        listed = shown(dense, _SHOWN)
        notes.append(f"{name!r}: dense features, in the model's order (else data.dense): {listed}.")
    numbers = [_numbers(table, column) for column in dense]
    notes += _odd(table, dict(zip(dense, numbers, strict=True)), label, bool(settings.dense))
    return Rows(
        np.stack(numbers, axis=1) if numbers else None,
        np.stack(codes, axis=1) if codes else None,
        label,
        numbered(table.keys(settings.group)) if settings.group else None,
        table.keys(settings.id) if settings.id else None,
        column=settings.label,
        lacks=lacks,
        name=name,
        features=tuple(dense),
    )


def _refuse_twice(settings: DataSettings, read: Counter[str]) -> None:
    """Raise ``MattaError`` where one of the features is named twice, or is the label."""
    if settings.label in read:
        leak = "is the label (data.label), and also among the features"
        raise MattaError(f"{settings.label!r} {leak} (data.dense, data.categorical): take it out.")
    if twice := [column for column, count in read.items() if count > 1]:
        several = "is named twice in data.dense and data.categorical"
        raise MattaError(f"{twice[0]!r} {several}: name each column once.")


def _label(table: Table, settings: DataSettings) -> tuple[np.ndarray, str]:
    """The labels, NaN where there is none, and why a table without any lacks them."""
    column, none = settings.label, np.full(len(table), np.nan, np.float32)
    try:
        find.check_column(table.name, column, "data.label", table.known)
    except MattaError as lack:
        return none, str(lack)
    if table.columns[column].null_count == len(table):
        return none, ""
    return _numbers(table, column, holes=True), ""


def _dense_columns(
    table: Table, settings: DataSettings, width: int, lacks: str, order: Sequence[str]
) -> list[str]:
    """The columns of the dense features: those of ``data.dense``, else all numbers left over.

    lacks: why there is no label, which may stand under another name. order: as of ``_table``.
    """
    taken = {settings.label, settings.group, settings.id, *settings.categorical}
    left = [c for c in table.known if c not in taken and not _INDEX.fullmatch(c)]
    dense = list(settings.dense)
    if not dense and width:
        dense = [column for column in left if table.holds_numbers(column)]
        known = [column for column in order if column in dense]
        if len(order) == width > len(known):
            lost = next(column for column in order if column not in dense)
            has = f"{table.name!r} has no numbers in a column {lost!r}, as the data to train on has"
            raise MattaError(f"{has}: features are known by the names of their columns.")
        dense = known if len(known) == width else dense
    if len(dense) == width:
        return dense
    if lacks:
        raise MattaError(lacks)
    given = ", ".join(dense) or "none"
    text = [c for c in left if c not in dense and not table.holds_numbers(c)]
    if text:
        given += f"; {text[0]!r} holds {table.shown(text[0])} and is left out"
    reads = f"The model reads {width} dense features, but {table.name!r} gives {len(dense)}"
    raise MattaError(f"{reads} ({given}): name the model's in data.dense, in its order.")


def _numbers(table: Table, column: str, *, holes: bool = False) -> np.ndarray:
    """A column as float32, with ``holes`` NaN where there is no number."""
    if not table.holds_numbers(column):
        which = f"Column {column!r} of {table.name!r} holds {table.shown(column)}"
        raise MattaError(f"{which}, but dense features and labels are numbers.")
    values = table.numbers(column, "fill them in", holes=holes)
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    large = ~np.isfinite(numbers) & np.isfinite(values)
    table.complete(column, large, "has values too large for float32", "scale them down")
    if values.dtype.kind in "iu":
        with np.errstate(invalid="ignore"):
            again = numbers.astype(values.dtype)  # float64 would round both alike
        lost = (np.abs(values.astype(np.float64)) > _FLOAT32) & (again != values)
        rounded = "has whole numbers that float32 would round"
        hint = "scale them, or store them as decimals if that does not matter"
        table.complete(column, lost, rounded, f"{hint} (names of things go to data.categorical)")
    return numbers


def _odd(table: Table, read: dict[str, np.ndarray], label: np.ndarray, named: bool) -> list[str]:
    """Sentences on features that are odd. read: by column. named: whether the user chose them."""
    notes = []
    for column, own in read.items():
        which = f"{table.name!r}: {column!r}"
        # as an index does, and ids
        counts = not named and len(own) > 2 and (np.diff(own) == 1).all() and own[0] in (0, 1)
        if counts:
            do = "if that is no feature, name the others in data.dense"
            notes.append(f"{which} counts the rows, and is read: {do}.")
        if np.array_equal(own, label):
            notes.append(f"{which} is the same as the label, and a feature (data.dense).")
        notes += _merged(table.numbers(column, ""), own, f"Column {column!r} of {table.name!r}")
    return notes


def _merged(values: np.ndarray, numbers: np.ndarray, which: str) -> list[str]:
    """A sentence where many values that differ are the same number in float32; some are looked at.

    Times in seconds are such.
    """
    before, after = (len(np.unique(own[:_LOOKED])) for own in (values, numbers))
    if 2 * after > before:
        return []
    scale = "subtract what they have in common, or scale them, if they matter"
    return [f"{which}: {before:,} values that differ are {after:,} in float32: {scale}."]


def _codes(table: Table, column: str, cardinality: int) -> np.ndarray:
    """A categorical column as int64, within the model's embedding."""
    which = f"Column {column!r} of {table.name!r}"
    encode = f"encode it as whole numbers 0..{cardinality - 1}, as your model was trained"
    if not table.holds_numbers(column):
        raise MattaError(f"{which} holds {table.shown(column)}: {encode}.")
    values = table.numbers(column, encode)
    if values.dtype.kind == "f":
        table.complete(column, values != np.floor(values), "has values no whole numbers", encode)
    out = (values < 0) | (values >= cardinality)
    if out.any():
        first = values[out][0]
        shown = f"{first:.0f}" if values.dtype.kind == "f" else str(first)
        known = f"has the value {shown}, but the model knows {cardinality}"
        table.complete(column, out, known, encode)
    return values.astype(np.int64)


def repeated(train: Rows, held_out: Rows) -> int:
    """How many of the held-out rows also stand among those to train on, feature by feature.

    0 where most of those are alike anyway: features of few values make many equal rows.
    """

    def seen(rows: Rows) -> list[bytes]:
        parts = [part for part in (rows.dense, rows.categorical) if part is not None]
        whole = [np.ascontiguousarray(part).view(np.uint8) for part in parts]
        return [row.tobytes() for row in np.concatenate(whole, 1)]

    own = seen(train)
    known = set(own)
    if 2 * len(known) < len(own):
        return 0
    return sum(row in known for row in seen(held_out))
