"""A task is what is trained and measured: data -> batches, losses, metrics. It belongs to the kind of output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from matta_cli.errors import MattaError
from matta_cli.losses import Logits, Term

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from matta_cli.recipe import Recipe

Batch = dict[str, "Tensor"]
Columns = dict[str, "np.ndarray"]


def raw(output: Any) -> Tensor:
    """The tensor that a module's output stands for: its logits, the last hidden states of an encoder, or itself."""
    for name in ("logits", "last_hidden_state"):
        output = getattr(output, name, output)
    return output


class Split(Protocol):
    """Examples that can be fetched by number, so that the order of a run is a pure function of its seed."""

    def __len__(self) -> int:
        """How many examples there are (sequences, images, or queries/rows)."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """These examples as CPU tensors."""

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        """What a Teacher's file calls these examples: numbers in the user's data, int64, or the names that it has (``ids``).

        One for each output: a query of a ranking has one for each of its rows. Raises ``MattaError`` where there are no names.
        """

    def digest(self) -> str:
        """sha256 over the examples."""


@dataclass(frozen=True)
class Data:
    """What a run trains on and is measured on.

    held_out: one or more splits; each is scored by itself (an LM has running text, and passages for the last word).
    description: one line for people: what it is, how much of it.
    unit: what ``items`` counts in: "tokens", "images", "rows".
    """

    train: Split
    held_out: tuple[Split, ...]
    description: str
    unit: str


@dataclass(frozen=True)
class Metric:
    """One number of the report. ``higher`` says which direction is better; None: neither, it should be 1."""

    name: str
    label: str
    higher: bool | None


class Task(ABC):
    """One kind of output. ``metrics[0]`` is the primary one."""

    name: str = ""
    output: str = "outputs"  # what ``outputs`` counts, for people
    alike: str = "same prediction"  # what ``agreement`` is a share of, for people
    metrics: tuple[Metric, ...] = ()
    labelled = True  # whether there is ground truth to learn; without, the Teacher is all that is followed
    embeds = False  # whether outputs are coordinates rather than logits: a Teacher may then have another number of them

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @abstractmethod
    def data(self, folder: Path, model: nn.Module, *, training: bool = True) -> Data:
        """Open the recipe's data for ``model``, whose folder holds what belongs to it (tokenizer, preprocessing).

        Raises ``MattaError`` where no data is named, nothing is there, it is empty, or it does not fit the model.
        With ``training=False`` only the held-out splits are needed (``train`` may then be a held-out split).
        """

    @abstractmethod
    def outputs(self, model: nn.Module) -> int:
        """The number of outputs (vocabulary, classes, scores) that a Teacher must share."""

    def fit_teacher(self, teacher: nn.Module, folder: Path | None, model: nn.Module) -> nn.Module:
        """The Teacher as it must be called on ``model``'s batches. ``folder`` is the Teacher's own, where it has one.

        Raises ``MattaError`` with both numbers where its outputs or inputs are not the model's.
        """
        theirs, ours = self.outputs(teacher), self.outputs(model)
        if theirs != ours:
            raise MattaError(f"The Teacher has {theirs:,} {self.output}, the model {ours:,}: they must be the same to distil.")
        return teacher

    @abstractmethod
    def forward(self, model: Any, batch: Batch) -> Tensor:
        """Logits of ``model`` (anything callable like the module) on a batch."""

    @abstractmethod
    def example(self, model: nn.Module, size: int = 4) -> Batch:
        """A made-up batch of inputs of the right form, always the same, for proofs and timings where there is no data."""

    def present(self, batch: Batch) -> Tensor | None:
        """Which positions of a batch are no padding, bool [B, L]; None where none is."""
        return None

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, float]:
        """What the terms are averaged over: ``labels`` (those of the ground truth) and ``outputs`` (those of a Teacher)."""

    @abstractmethod
    def objective(
        self, logits: Logits, batch: Batch, terms: Sequence[Term], over: dict[str, float] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the terms of a model's loss, a scalar, and each term by name, detached and unweighted.

        over: the ``counts`` to divide by, where the batch is a part of something larger; the sum over the parts is then the
        mean over the whole.
        """

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The ground-truth loss of whole logits, a scalar."""
        return self.objective(Logits(logits), batch, [Term("truth", 1.0)])[0]

    def distill_loss(self, logits: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The loss of whole logits against a (detached) teacher's logits, a scalar on the scale of ``loss``."""
        return self.objective(Logits(logits), batch, [Term("teacher", 1.0, Logits(teacher.detach()))])[0]

    @abstractmethod
    def items(self, batch: Batch) -> int:
        """How many of ``Data.unit`` a batch holds."""

    @abstractmethod
    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Per-example columns (one row per example of the batch) from which ``summarize`` computes the metrics."""

    def gathered(self, columns: Columns) -> Columns:
        """The columns of all examples of a split. What takes all of them at once, such as a search, is worked out here."""
        return columns

    @abstractmethod
    def summarize(self, columns: Columns) -> dict[str, float]:
        """The metrics that these columns allow. Called again on resampled rows for the bootstrap interval."""

    def right(self, columns: Columns) -> Columns:
        """Of the metrics that are a share of examples got right: metric -> 0 or 1 per example that counts."""
        return {}

    @abstractmethod
    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Per-example columns of what a model says, in which ``agreement`` compares two; empty where that is not done."""

    @abstractmethod
    def agreement(self, ours: Columns, theirs: Columns) -> Columns:
        """What two models' answers to the same examples have in common: of ``of`` things in each example the ``same``."""

    @abstractmethod
    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        """A sentence with both numbers if a model with these columns is no better than guessing, else None."""
