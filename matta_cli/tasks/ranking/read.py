"""Rows to rank from files: tables (CSV, TSV, Parquet) and LibSVM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matta_cli.data import find
from matta_cli.errors import MattaError
from matta_cli.settings.recipe import DataSettings
from matta_cli.tasks.ranking.examples import Rows, numbered

_TABLES = (".csv", ".tsv", ".parquet")
_NUMBERS = "biuf"  # the kinds of numpy's types that are numbers


def read_rows(settings: DataSettings, model: Any, training: bool) -> tuple[Rows, Rows]:
    """Rows to train on, and to measure on; without ``training`` the first may be any."""
    given, held_out, paths = settings.train, settings.held_out, []
    if training or not held_out:
        paths.append(_path(given, "--data"))
    elif (beside := Path(given).expanduser()).is_file() and beside.suffix not in _TABLES:
        # LibSVM: only together do files tell whether columns count from 0 or from 1
        paths.append(beside)
    if held_out:
        paths.append(_path(held_out, "--held-out"))
    tables = [path for path in paths if path.suffix in _TABLES]
    if tables and len(tables) < len(paths):
        differ = f"{str(paths[0])!r} and {str(paths[-1])!r} are of different formats"
        raise MattaError(f"{differ}: pass two of the same.")
    rows = [_table(path, settings, model) for path in tables] or _libsvm(paths, model)
    return (rows[0], rows[-1]) if held_out else _without_last_tenth(rows[0], given)


def features_of(model: Any) -> tuple[list[tuple[int, int]], int]:
    """The model's embeddings (cardinality, width) and its number of dense features."""
    if not hasattr(model, "fields") or not hasattr(model, "dense"):
        read = "`fields` (cardinality and width of each embedding) and `dense` (number of dense "
        read += f"features), but {type(model).__name__} has none."
        raise MattaError(f"The ranking task reads the model's {read}")
    return list(model.fields), int(model.dense)


def _path(text: str, flag: str) -> Path:
    path = find.find(text, flag)
    if path is None or not path.is_file():
        needed = f"{flag} is a CSV, Parquet or LibSVM file of rows to rank."
        raise MattaError(f"{text!r} is no file: {needed}")
    return path


def _without_last_tenth(rows: Rows, name: str) -> tuple[Rows, Rows]:
    """The rows without the last tenth of the queries (or rows), and that tenth."""
    start = find.last_tenth(len(rows), name, rows.unit)
    last = (np.arange(len(rows)) if rows.group is None else rows.group) >= start
    return rows.part(np.flatnonzero(~last)), rows.part(np.flatnonzero(last))


def _libsvm(paths: Sequence[Path], model: Any) -> list[Rows]:
    """The rows of LibSVM files (``label [qid:3] 1:0.5 ...``)."""
    from sklearn.datasets import load_svmlight_files

    fields, width = features_of(model)
    if fields:
        only = f"The model has {len(fields)} embeddings, but LibSVM files hold dense features only"
        hint = "pass CSV or Parquet, and name the columns in data.categorical and data.dense."
        raise MattaError(f"{only}: {hint}")
    for path in paths:
        if path.stat().st_size == 0:
            raise find.empty(str(path), "rows")
    try:
        loaded = load_svmlight_files([str(path) for path in paths], query_id=True)
    except (ValueError, OSError) as error:
        names = " and ".join(repr(str(path)) for path in paths)
        raise MattaError(f"{names}: not LibSVM, as in `1 qid:3 1:0.5 4:2`: {error}.") from error
    each = zip(paths, loaded[0::3], loaded[1::3], loaded[2::3], strict=True)
    return [_libsvm_rows(*one, width) for one in each]


def _libsvm_rows(path: Path, features: Any, label: Any, query: Any, width: int) -> Rows:
    """One LibSVM file's rows. Queries: ``qid``, else the sizes in a ``.query`` file beside it."""
    if not len(label):
        raise find.empty(str(path), "rows")
    columns = features.shape[1]
    if columns > width:
        numbers = f"{columns} columns, but the model reads {width} dense features."
        raise MattaError(f"{str(path)!r} has {numbers}")
    # sparse rows need not name the last features
    dense = np.zeros((len(label), width), dtype=np.float32)
    dense[:, :columns] = features.toarray()
    if not np.isfinite(dense).all():
        missing = f"{str(path)!r} has features that are missing or not finite"
        raise MattaError(f"{missing}: give them numbers.")
    sidecar = path.with_name(path.name + ".query")
    group: np.ndarray | None = None
    if len(query) == len(label):
        group = numbered(query)
    elif sidecar.exists():
        group = _sizes(sidecar, path, len(label))
    return Rows(dense, None, label.astype(np.float32), group)


def _sizes(sidecar: Path, path: Path, rows: int) -> np.ndarray:
    """Group numbers [rows] from a file with one group size a line, as LightGBM has it."""
    try:
        sizes = [int(line) for line in sidecar.read_text(encoding="utf-8").split()]
    except ValueError:
        needed = "must hold the number of rows of one query in each line."
        raise MattaError(f"{str(sidecar)!r} {needed}") from None
    if sum(sizes) != rows or min(sizes) < 1:
        numbers = f"counts {sum(sizes)} rows, but {str(path)!r} has {rows}."
        raise MattaError(f"{str(sidecar)!r} {numbers}")
    return np.repeat(np.arange(len(sizes)), sizes)


def _table(path: Path, settings: DataSettings, model: Any) -> Rows:
    """The rows of a table, in the columns that the recipe names."""
    table, name = find.read_table(path), str(path)
    wanted = [(settings.label, "data.label")]
    wanted += [(column, "data.categorical") for column in settings.categorical]
    wanted += [(column, "data.dense") for column in settings.dense]
    wanted += [(settings.group, "data.group")] if settings.group else []
    wanted += [(settings.id, "data.id")] if settings.id else []
    for column, setting in wanted:
        find.check_column(name, column, setting, table)
    fields, width = features_of(model)
    if len(settings.categorical) != len(fields):
        named = f"data.categorical names {len(settings.categorical)} columns"
        hint = "name one for each, in the model's order."
        raise MattaError(f"The model has {len(fields)} embeddings, but {named}: {hint}")
    if not len(table[settings.label]):
        raise find.empty(name, "rows")
    label = _numbers(table, settings.label, name)
    pairs = zip(settings.categorical, fields, strict=True)
    codes = [_codes(table, column, cardinality, name) for column, (cardinality, _) in pairs]
    dense = _dense_columns(table, settings, width, name)
    numbers = [_numbers(table, column, name) for column in dense]
    return Rows(
        np.stack(numbers, axis=1) if numbers else None,
        np.stack(codes, axis=1) if codes else None,
        label,
        numbered(table[settings.group].astype(str)) if settings.group else None,
        table[settings.id].astype(str) if settings.id else None,
    )


def _dense_columns(
    table: dict[str, np.ndarray], settings: DataSettings, width: int, name: str
) -> list[str]:
    """The columns of the dense features: those of ``data.dense``, else all numbers left over."""
    taken = {settings.label, settings.group, settings.id, *settings.categorical}
    left = {column: values for column, values in table.items() if column not in taken}
    dense = list(settings.dense)
    if not dense and width:
        dense = [column for column, values in left.items() if values.dtype.kind in _NUMBERS]
    if len(dense) == width:
        return dense
    given = ", ".join(dense) or "none"
    text = [c for c, v in left.items() if c not in dense and v.dtype.kind not in _NUMBERS]
    if text:
        given += f"; {text[0]!r} holds {_shown(table[text[0]])} and is left out"
    reads = f"The model reads {width} dense features, but {name!r} gives {len(dense)} ({given})"
    raise MattaError(f"{reads}: name the model's in data.dense, in its order.")


def _numbers(table: dict[str, np.ndarray], column: str, name: str) -> np.ndarray:
    """A column as float32."""
    values, which = table[column], f"Column {column!r} of {name!r}"
    if values.dtype.kind not in _NUMBERS:
        needed = "dense features and labels are numbers."
        raise MattaError(f"{which} holds {_shown(values)}, but {needed}")
    numbers = values.astype(np.float32)
    missing = int((~np.isfinite(numbers)).sum())
    if missing:
        which = f"{which} misses values, or has some not finite"
        raise MattaError(f"{which}, {missing} in all: fill them in.")
    return numbers


def _codes(table: dict[str, np.ndarray], column: str, cardinality: int, name: str) -> np.ndarray:
    """A categorical column as int64, within the model's embedding."""
    values, which = table[column], f"Column {column!r} of {name!r}"
    encode = f"encode it as whole numbers 0..{cardinality - 1}, as your model was trained"
    if values.dtype.kind not in _NUMBERS:
        raise MattaError(f"{which} holds {_shown(values)}: {encode}.")
    if values.dtype.kind == "f" and not (np.isfinite(values) & (values == np.floor(values))).all():
        raise MattaError(f"{which} has values that are missing or no whole numbers: {encode}.")
    codes = values.astype(np.int64)
    out = codes[(codes < 0) | (codes >= cardinality)]
    if len(out):
        known = f"has the value {out[0]}, but the model knows {cardinality}"
        raise MattaError(f"{which} {known}: {encode}.")
    return codes


def _shown(values: np.ndarray) -> str:
    """What a column holds that is no numbers, in words, with an example where it is text."""
    there = [value for value in values if value is not None]
    example = next((value for value in there if not _is_number(value)), there[0] if there else None)
    if isinstance(example, str):
        return f"text such as {example!r}"
    return f"no numbers ({values.dtype})"


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
