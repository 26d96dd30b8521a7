"""Examples that are fetched by number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from matta_cli.data import sampling
from matta_cli.errors import MattaError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Batch = dict[str, "Tensor"]
Columns = dict[str, "np.ndarray"]


class Split(Protocol):
    """Examples fetched by number, so that a run's order is a pure function of its seed."""

    def __len__(self) -> int:
        """How many examples there are (sequences, images, or queries/rows)."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """These examples as CPU tensors."""

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        """What a Teacher's file calls these examples: numbers in the user's data, or their names.

        int64, one for each output: a query of a ranking has one for each of its rows. ids: the
        names that the user's data has; raises ``MattaError`` where there are none.
        """

    def digest(self) -> str:
        """sha256 over the examples."""


@dataclass(frozen=True)
class Data:
    """What a run trains on and is measured on.

    held_out: one or more splits; each is scored by itself (an LM has running text, and passages for
    the last word). description: one line for people: what it is, how much of it. unit: what a
    task's ``items`` counts in: "tokens", "images", "rows". notes: sentences for people on what was
    read, left out or assumed. unlabelled: whether some to train on have no ground truth.
    """

    train: Split
    held_out: tuple[Split, ...]
    description: str
    unit: str
    notes: tuple[str, ...] = ()
    unlabelled: bool = False


class Part:
    """Some examples of a split, in a given order, as a split."""

    def __init__(self, whole: Split, indices: Sequence[int] | np.ndarray) -> None:
        self.whole = whole
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Sequence[int]) -> Batch:
        return self.whole.batch([int(self.indices[i]) for i in indices])

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        return self.whole.keys([int(self.indices[i]) for i in indices], ids=ids)

    def digest(self) -> str:
        return digest([self.whole.digest(), repr(list(map(int, self.indices)))])


def digest(parts: Iterable[str | np.ndarray]) -> str:
    """sha256 of texts and arrays."""
    import numpy as np

    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).data)
    return "sha256:" + total.hexdigest()


def no_ids(what: str) -> MattaError:
    """The error for a Teacher's file that is keyed by id where examples have none."""
    unsupported = f"A Teacher's file with a column 'id' is not supported for {what}"
    return MattaError(f"{unsupported}: number its rows in a column 'row'.")


def sample(whole: Split, limit: int) -> Part:
    """At most ``limit`` examples (0: all), always the same, in a fixed random order."""
    import numpy as np

    # so that any first few represent all: image folders come sorted by class
    order = np.random.default_rng(0).permutation(len(whole))
    return Part(whole, order[:limit] if limit else order)


def halves(split: Split) -> tuple[Part, Part]:
    """Two halves of a split, always the same: one to choose by, one to report on.

    Raises ``MattaError`` for a split of one example.
    """
    if len(split) < 2:
        needed = "choosing sizes needs some to choose by and others to report on."
        raise MattaError(f"There is one held-out example only: {needed}")
    order = sampling.example_order(0, 0, len(split)).tolist()
    half = len(order) // 2
    return Part(split, sorted(order[:half])), Part(split, sorted(order[half:]))
