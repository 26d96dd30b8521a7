"""A task is what is trained and measured: data -> batches, losses, metrics. It belongs to the kind
of output.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matta_cli.data.split import Batch, Columns, Data
from matta_cli.errors import MattaError
from matta_cli.losses.targets import Logits, Term
from matta_cli.models.plugins import load_class

if TYPE_CHECKING:
    from torch import Tensor, nn

    from matta_cli.settings.recipe import Recipe


def raw(output: Any) -> Tensor:
    """The tensor that a module's output stands for: its logits, the last hidden states of an
    encoder, or itself.
    """
    for name in ("logits", "last_hidden_state"):
        output = getattr(output, name, output)
    return output


@dataclass(frozen=True)
class Metric:
    """One number of the report. ``higher`` says which direction is better; None: neither, it should
    be 1.
    """

    name: str
    label: str
    higher: bool | None


class Task(ABC):
    """One kind of output. ``metrics[0]`` is the primary one."""

    name: str = ""
    output: str = "outputs"  # what ``outputs`` counts, for people
    alike: str = "same prediction"  # what ``agreement`` is a share of, for people
    metrics: tuple[Metric, ...] = ()
    # whether there is ground truth to learn; without, the Teacher is all that is followed
    labelled = True
    # whether outputs are coordinates rather than logits: a Teacher may then have another number of
    # them
    embeds = False

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @abstractmethod
    def data(self, folder: Path, model: nn.Module, *, training: bool = True) -> Data:
        """Open the recipe's data for ``model``, whose folder holds what belongs to it (tokenizer,
        preprocessing).

        Raises ``MattaError`` where no data is named, nothing is there, it is empty, or it does not
        fit the model. With ``training=False`` only the held-out splits are needed (``train`` may
        then be a held-out split).
        """

    @abstractmethod
    def outputs(self, model: nn.Module) -> int:
        """The number of outputs (vocabulary, classes, scores) that a Teacher must share."""

    def fit_teacher(self, teacher: nn.Module, folder: Path | None, model: nn.Module) -> nn.Module:
        """The Teacher as it must be called on ``model``'s batches. ``folder`` is the Teacher's own,
        where it has one.

        Raises ``MattaError`` with both numbers where its outputs or inputs are not the model's.
        """
        theirs, ours = self.outputs(teacher), self.outputs(model)
        if theirs != ours:
            raise MattaError(
                f"The Teacher has {theirs:,} {self.output}, the model {ours:,}: they must be the same to distil."
            )
        return teacher

    @abstractmethod
    def forward(self, model: Any, batch: Batch) -> Tensor:
        """Logits of ``model`` (anything callable like the module) on a batch."""

    @abstractmethod
    def example(self, model: nn.Module, size: int = 4) -> Batch:
        """A made-up batch of inputs of the right form, always the same, for proofs and timings
        where there is no data.
        """

    def present(self, batch: Batch) -> Tensor | None:
        """Which positions of a batch are no padding, bool [B, L]; None where none is."""
        return None

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, float]:
        """What the terms are averaged over: ``labels`` (those of the ground truth) and ``outputs``
        (those of a Teacher).
        """

    @abstractmethod
    def objective(
        self,
        logits: Logits,
        batch: Batch,
        terms: Sequence[Term],
        over: dict[str, float] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the terms of a model's loss, a scalar, and each term by name,
        detached and unweighted.

        over: the ``counts`` to divide by, where the batch is a part of something larger; the sum
        over the parts is then the mean over the whole.
        """

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The ground-truth loss of whole logits, a scalar."""
        return self.objective(Logits(logits), batch, [Term("truth", 1.0)])[0]

    def distill_loss(self, logits: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The loss of whole logits against a (detached) teacher's logits, a scalar on the scale of
        ``loss``.
        """
        return self.objective(
            Logits(logits), batch, [Term("teacher", 1.0, Logits(teacher.detach()))]
        )[0]

    @abstractmethod
    def items(self, batch: Batch) -> int:
        """How many of ``Data.unit`` a batch holds."""

    @abstractmethod
    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Per-example columns (one row per example of the batch) from which ``summarize`` computes
        the metrics.
        """

    def gathered(self, columns: Columns) -> Columns:
        """The columns of all examples of a split. What takes all of them at once, such as a search,
        is worked out here.
        """
        return columns

    @abstractmethod
    def summarize(self, columns: Columns) -> dict[str, float]:
        """The metrics that these columns allow. Called again on resampled rows for the bootstrap
        interval.
        """

    def right(self, columns: Columns) -> Columns:
        """Of the metrics that are a share of examples got right: metric -> 0 or 1 per example that
        counts.
        """
        return {}

    @abstractmethod
    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Per-example columns of what a model says, in which ``agreement`` compares two; empty
        where that is not done.
        """

    @abstractmethod
    def agreement(self, ours: Columns, theirs: Columns) -> Columns:
        """What two models' answers to the same examples have in common: of ``of`` things in each
        example the ``same``.
        """

    @abstractmethod
    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        """A sentence with both numbers if a model with these columns is no better than guessing,
        else None.
        """


def task(name: str, recipe: Recipe) -> Task:
    """A task by name, with the recipe's settings."""
    return load_class("matta.tasks", name)(recipe)
