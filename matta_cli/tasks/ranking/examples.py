"""Rows of features, and the queries that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from matta_cli.data import split
from matta_cli.data.split import Batch
from matta_cli.errors import MattaError
from matta_cli.tasks.scores import members


@dataclass
class Rows:
    """Rows as a split: an example is a query with all its rows, or one row where there are none.

    dense: float32 [n, D]. categorical: int64 [n, F]. label: float32 [n], NaN where there is none.
    group: int64 [n], the row's query, 0 .. q - 1. ids: text [n], the rows' names. numbers: int64
    [n], where these are a part of the user's rows. name: of the data. features: the columns of
    ``dense``, where they have names. column, lacks: as of ``Examples``.
    """

    dense: np.ndarray | None
    categorical: np.ndarray | None
    label: np.ndarray
    group: np.ndarray | None
    ids: np.ndarray | None = None
    numbers: np.ndarray | None = None
    column: str = ""
    lacks: str = ""
    name: str = ""
    features: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.members = None if self.group is None else members(self.group)

    def __len__(self) -> int:
        return len(self.label) if self.members is None else len(self.members)

    @property
    def unit(self) -> str:
        """What the examples are, for people."""
        return "rows" if self.group is None else "queries"

    def part(self, rows: np.ndarray) -> Rows:
        """The rows of these numbers, int64 [n]; their queries are numbered anew."""
        group = None if self.group is None else np.unique(self.group[rows], return_inverse=True)[1]
        parts = (self.dense, self.categorical, self.ids)
        dense, categorical, ids = (None if part is None else part[rows] for part in parts)
        numbers = rows if self.numbers is None else self.numbers[rows]
        about = self.column, self.lacks, self.name, self.features
        return Rows(dense, categorical, self.label[rows], group, ids, numbers, *about)

    @property
    def known(self) -> np.ndarray:
        """Which rows have a label, bool [n]."""
        return np.isfinite(self.label)

    def called(self, i: int) -> str:
        number = i if self.numbers is None else int(self.numbers[i])
        return f"row {number + 1:,} of {self.name!r}"

    def _of(self, indices: Sequence[int]) -> np.ndarray:
        """The rows of these examples, query by query."""
        if self.members is None:
            return np.asarray(indices, dtype=np.int64)
        return np.concatenate([self.members[i] for i in indices])

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        """One for each row: numbers in the user's table; ids are of the column ``data.id``."""
        rows = self._of(indices)
        if ids:
            if self.ids is None:
                needed = "A Teacher's file with a column 'id' needs the data's own"
                raise MattaError(f"{needed}: name its column in data.id.")
            return self.ids[rows]
        return rows if self.numbers is None else self.numbers[rows]

    def digest(self) -> str:
        parts = (self.dense, self.categorical, self.label, self.group)
        return split.digest([part for part in parts if part is not None])

    def batch(self, indices: Sequence[int]) -> Batch:
        """The rows of these examples; see ``Ranking``."""
        rows, arrays = self._of(indices), {}
        if self.members is not None:
            chosen = np.array(indices, dtype=np.int64)
            sizes = [len(self.members[i]) for i in chosen]
            arrays["group"] = np.repeat(np.arange(len(chosen)), sizes)
            arrays["group_id"] = np.repeat(chosen, sizes)
        arrays["label"] = self.label[rows]
        if self.dense is not None:
            arrays["dense"] = self.dense[rows]
        if self.categorical is not None:
            arrays["categorical"] = self.categorical[rows]
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
