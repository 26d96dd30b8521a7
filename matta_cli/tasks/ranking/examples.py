"""Rows of features, and the queries that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from matta_cli.data import find, split
from matta_cli.data.split import Batch
from matta_cli.errors import MattaError

TABLES = (".csv", ".tsv", ".parquet")


@dataclass
class Rows:
    """Rows as a split. dense: float32 [n, D]. categorical: int64 [n, F]. label: float32 [n]. group:
    int64 [n], 0 .. q - 1.

    ids: text [n], the rows' names. numbers: int64 [n], where these are a part of the user's rows.
    """

    dense: np.ndarray | None
    categorical: np.ndarray | None
    label: np.ndarray
    group: np.ndarray | None
    ids: np.ndarray | None = None
    numbers: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.members: list[np.ndarray] | None = None
        if self.group is not None:
            order = np.argsort(self.group, kind="stable")
            self.members = np.split(order, np.cumsum(np.bincount(self.group))[:-1])

    def __len__(self) -> int:
        return len(self.label) if self.members is None else len(self.members)

    def rows(self, rows: np.ndarray) -> Rows:
        group = None if self.group is None else np.unique(self.group[rows], return_inverse=True)[1]
        dense, categorical, ids = (
            None if part is None else part[rows]
            for part in (self.dense, self.categorical, self.ids)
        )
        return Rows(dense, categorical, self.label[rows], group, ids, rows)

    def _of(self, indices: Sequence[int]) -> np.ndarray:
        """The rows of these examples."""
        chosen = np.asarray(indices, dtype=np.int64)
        return chosen if self.members is None else np.concatenate([self.members[i] for i in chosen])

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        """One for each row: numbers in the user's table; ids are those of the column ``data.id``."""
        rows = self._of(indices)
        if ids:
            if self.ids is None:
                raise MattaError(
                    "A Teacher's file with a column 'id' needs the data's own: name its column in data.id."
                )
            return self.ids[rows]
        return rows if self.numbers is None else self.numbers[rows]

    def digest(self) -> str:
        parts = (self.dense, self.categorical, self.label, self.group)
        return split.digest([part for part in parts if part is not None])

    def batch(self, indices: Sequence[int]) -> Batch:
        """The rows of these queries (or these rows), query by query."""
        chosen = np.array(indices, dtype=np.int64)
        found: Batch = {}
        rows = self._of(indices)
        if self.members is not None:
            sizes = [len(self.members[i]) for i in chosen]
            found["group"] = torch.from_numpy(np.repeat(np.arange(len(chosen)), sizes))
            found["group_id"] = torch.from_numpy(np.repeat(chosen, sizes))
        found["label"] = torch.from_numpy(self.label[rows])
        if self.dense is not None:
            found["dense"] = torch.from_numpy(self.dense[rows])
        if self.categorical is not None:
            found["categorical"] = torch.from_numpy(self.categorical[rows])
        return found


def table_path(text: str, flag: str) -> Path:
    path = find.find(text, flag)
    if path is None or not path.is_file():
        raise MattaError(
            f"{text!r} is no file: {flag} is a CSV, Parquet or LibSVM file of rows to rank."
        )
    return path


def without_last_tenth(rows: Rows, name: str) -> tuple[Rows, Rows]:
    """The rows without the last tenth of the queries (or rows), and that tenth."""
    start = find.last_tenth(len(rows), name, "rows" if rows.group is None else "queries")
    last = (np.arange(len(rows.label)) if rows.group is None else rows.group) >= start
    return rows.rows(np.flatnonzero(~last)), rows.rows(np.flatnonzero(last))


def features_of(model: Any) -> tuple[list[tuple[int, int]], int]:
    """The model's embeddings (cardinality, width) and its number of dense features."""
    if not hasattr(model, "fields") or not hasattr(model, "dense"):
        raise MattaError(
            f"The ranking task reads the model's `fields` (cardinality and width of each embedding) and `dense` (number of "
            f"dense features), but {type(model).__name__} has none."
        )
    return list(model.fields), int(model.dense)


def read_libsvm(paths: Sequence[Path], model: Any) -> list[Rows]:
    """LibSVM files (``label [qid:3] 1:0.5 ...``). Queries: ``qid``, else the sizes in a ``.query``
    file beside each.
    """
    from sklearn.datasets import load_svmlight_files

    fields, width = features_of(model)
    if fields:
        raise MattaError(
            f"The model has {len(fields)} embeddings, but LibSVM files hold dense features only: pass CSV or Parquet, and name "
            "the columns in data.categorical and data.dense."
        )
    for path in paths:
        if path.stat().st_size == 0:
            raise find.empty(str(path), "rows")
    try:
        loaded = load_svmlight_files([str(path) for path in paths], query_id=True)
    except (ValueError, OSError) as error:
        names = " and ".join(repr(str(path)) for path in paths)
        raise MattaError(f"{names}: not LibSVM, as in `1 qid:3 1:0.5 4:2`: {error}.") from error
    found = []
    for path, features, label, query in zip(
        paths, loaded[0::3], loaded[1::3], loaded[2::3], strict=True
    ):
        if not len(label):
            raise find.empty(str(path), "rows")
        if features.shape[1] > width:
            raise MattaError(
                f"{str(path)!r} has {features.shape[1]} columns, but the model reads {width} dense features."
            )
        # sparse rows need not name the last features
        dense = np.zeros((len(label), width), dtype=np.float32)
        dense[:, : features.shape[1]] = features.toarray()
        if not np.isfinite(dense).all():
            raise MattaError(
                f"{str(path)!r} has features that are missing or not finite: give them numbers."
            )
        sidecar = path.with_name(path.name + ".query")
        group: np.ndarray | None = None
        if len(query) == len(label):
            _, first, codes = np.unique(query, return_index=True, return_inverse=True)
            group = np.argsort(np.argsort(first))[codes]
        elif sidecar.exists():
            group = _sizes(sidecar, path, len(label))
        found.append(Rows(dense, None, label.astype(np.float32), group))
    return found


def _sizes(sidecar: Path, path: Path, rows: int) -> np.ndarray:
    """Group numbers [rows] from a file with one group size a line, as LightGBM has it."""
    try:
        sizes = [int(line) for line in sidecar.read_text(encoding="utf-8").split()]
    except ValueError:
        raise MattaError(
            f"{str(sidecar)!r} must hold the number of rows of one query in each line."
        ) from None
    if sum(sizes) != rows or min(sizes) < 1:
        raise MattaError(
            f"{str(sidecar)!r} counts {sum(sizes)} rows, but {str(path)!r} has {rows}."
        )
    return np.repeat(np.arange(len(sizes)), sizes)


def as_numbers(values: np.ndarray, column: str, name: str) -> np.ndarray:
    """A column as float32."""
    if values.dtype.kind not in "biuf":
        raise MattaError(
            f"Column {column!r} of {name!r} holds {shown(values)}, but dense features and labels are numbers."
        )
    numbers = values.astype(np.float32)
    missing = int((~np.isfinite(numbers)).sum())
    if missing:
        raise MattaError(
            f"Column {column!r} of {name!r} misses values, or has some not finite, {missing} in all: fill them in."
        )
    return numbers


def as_codes(values: np.ndarray, column: str, cardinality: int, name: str) -> np.ndarray:
    """A categorical column as int64, within the model's embedding."""
    encode = f"encode it as whole numbers 0..{cardinality - 1}, as your model was trained"
    if values.dtype.kind not in "biuf":
        raise MattaError(f"Column {column!r} of {name!r} holds {shown(values)}: {encode}.")
    if values.dtype.kind == "f" and not (
        np.isfinite(values).all() and (values == np.floor(values)).all()
    ):
        raise MattaError(
            f"Column {column!r} of {name!r} has values that are missing or no whole numbers: {encode}."
        )
    codes = values.astype(np.int64)
    out = codes[(codes < 0) | (codes >= cardinality)]
    if len(out):
        raise MattaError(
            f"Column {column!r} of {name!r} has the value {out[0]}, but the model knows {cardinality}: {encode}."
        )
    return codes


def shown(values: np.ndarray) -> str:
    there = [value for value in values if value is not None]
    example = next((value for value in there if not _is_number(value)), there[0] if there else None)
    return (
        f"text such as {example!r}" if isinstance(example, str) else f"no numbers ({values.dtype})"
    )


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def cardinalities(model: Any) -> list[int] | None:
    fields = getattr(model, "fields", None)
    return None if fields is None else [cardinality for cardinality, _ in fields]
