"""A task is what is trained and measured; it belongs to the kind of output."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matta_cli.data.split import Batch, Columns, Data, Split
from matta_cli.errors import MattaError
from matta_cli.losses.targets import Counts, Logits, Losses, Term
from matta_cli.models.plugins import load_class
from matta_cli.report.schema import Metric, ModelEntry
from matta_cli.settings.checks import check

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from matta_cli.models.left_out import LeftOut
    from matta_cli.settings.recipe import Recipe


_LONGEST = 160  # characters of a text that is shown


class Task(ABC):
    """One kind of output.

    metrics: the primary one first. output: what ``outputs`` counts, for people. alike: what
    ``agreement`` is a share of, for people. labelled: whether there is ground truth to learn;
    without, the Teacher is all that is followed. embeds: whether outputs are coordinates rather
    than logits: a Teacher may then have another number of them. generates: whether it is served
    token by token, each after those before it. reading: what outputs mean together: ``classes``,
    of which one is right; ``odds``, each the log odds of a thing of its own; ``values``. tokens:
    whether what is read are tokens that all models must share.
    """

    name: str = ""
    output: str = "outputs"
    alike: str = "same prediction"
    metrics: tuple[Metric, ...] = ()
    labelled = True
    embeds = False
    generates = False
    reading = "classes"
    tokens = True

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        # what had to be assumed since data were last described, in sentences for the user
        self.notes: list[str] = []
        # whether data is opened for what models read alone: ground truth may be missing
        self.unmeasured = False
        # whether some of the data is enough, from all over it: all of it is looked at, but only
        # that is made into tokens
        self.sampled = False
        # counts the tokens that the model lacks of the data, where it was left some only
        self.left_out: LeftOut | None = None

    @abstractmethod
    def data(self, folder: Path, model: nn.Module, *, training: bool = True) -> Data:
        """Open the recipe's data for ``model``.

        ``folder`` is the model's own, which holds what belongs to it (tokenizer, preprocessing).
        With ``training=False`` only the held-out splits are needed (``train`` may then be one of
        them). Raises ``MattaError`` where no data is named, nothing is there, it is empty, or it
        does not fit the model.
        """

    def described(
        self,
        train: Split,
        size: str,
        held_out: Sequence[Split],
        measured: str,
        unit: str,
        notes: Sequence[str] = (),
        *,
        unlabelled: bool = False,
    ) -> Data:
        """The data, with a description of it, and with notes.

        size: how much there is to train on, in words; empty: that is not told. measured: what the
        first held-out split is of, in words. unlabelled: as of ``Data``.
        """
        named = self.recipe.data
        told = f"held out {len(held_out[0]):,} {measured}"
        if named.held_out or not size:
            told = f"{named.held_out or named.train}: {told}"
        if size:
            told = f"{named.train}: {size}; {told}"
        lost = [] if self.left_out is None else self.left_out.told()
        shown = self.first(train)
        first = [f"The first example, as the model gets it: {shown}."] if shown else []
        every, self.notes = (*notes, *lost, *self.notes, *first), []
        return Data(train, tuple(held_out), told, unit, every, unlabelled)

    def first(self, split: Split) -> str:
        """The first example of a split, as the model gets it, in words; empty: it is not told.

        It shows whatever was misread before anything is trained.
        """
        return ""

    def reported(self, models: Iterable[ModelEntry]) -> list[Metric]:
        """The metrics that these models have and of which a report can say what is better."""
        present = {name for model in models for name in model.metrics}
        return [m for m in self.metrics if m.name in present and m.higher is not None]

    @abstractmethod
    def outputs(self, model: nn.Module) -> int:
        """The number of outputs (vocabulary, classes, scores) that a Teacher must share."""

    def fit_teacher(
        self, teacher: nn.Module, folder: Path | None, model: nn.Module, home: Path | None = None
    ) -> nn.Module:
        """The Teacher as it must be called on ``model``'s batches.

        ``folder`` is the Teacher's own, where it has one; ``home`` the model's. Raises
        ``MattaError`` with both numbers where its outputs or inputs are not the model's.
        """
        theirs, ours = self.outputs(teacher), self.outputs(model)
        if theirs != ours:
            numbers = f"The Teacher has {theirs:,} {self.output}, the model {ours:,}"
            raise MattaError(f"{numbers}: they must be the same to distil.")
        return teacher

    def narrowed(self, model: nn.Module, outputs: int) -> nn.Module:
        """A model with its first so many outputs, where the rest are nobody's; else ``model``."""
        return model

    @abstractmethod
    def forward(self, model: Any, batch: Batch) -> Tensor:
        """Logits of ``model`` (anything callable like the module) on a batch."""

    def logits(self, model: nn.Module, batch: Batch) -> int:
        """How many numbers a model gives for a batch."""
        return self.forward(model, batch).numel()

    def shortened(self, batch: Batch, share: float) -> Batch:
        """A batch with this share of each example, where a part of one is an example, too."""
        return batch

    @abstractmethod
    def example(self, model: nn.Module, size: int = 4) -> Batch:
        """A made-up batch of inputs, always the same: for proofs and timings without data."""

    def present(self, batch: Batch) -> Tensor | None:
        """Which positions of a batch are no padding, bool [B, L]; None where none is."""
        return None

    def positions(self, batch: Batch) -> float:
        """How many rows of logits a model gives for a batch."""
        return self.counts(batch)["outputs"]

    def taught(self, batch: Batch) -> Tensor | None:
        """Which positions of a batch have a part in the losses, bool [B, L]; None: all."""
        return None

    def leave_last_out(self) -> None:  # noqa: B027
        """From now on what follows an example's last token has no part: no Teacher says it."""

    @abstractmethod
    def counts(self, batch: Batch) -> Counts:
        """What the terms are averaged over: ``labels`` and ``outputs``."""

    @abstractmethod
    def objective(
        self, logits: Logits, batch: Batch, terms: Sequence[Term], over: Counts | None = None
    ) -> Losses:
        """The weighted sum of the terms of a model's loss, a scalar, and each term by name.

        The terms by name are detached and unweighted. over: the ``counts`` to divide by, where the
        batch is a part of something larger; the sum over the parts is then the mean over the whole.
        """

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The ground-truth loss of whole logits, a scalar."""
        return self.objective(Logits(logits), batch, [Term("truth", 1.0)])[0]

    def distill_loss(self, logits: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The loss of whole logits against a Teacher's, a scalar on the scale of ``loss``."""
        term = Term("teacher", 1.0, Logits(teacher.detach()))
        return self.objective(Logits(logits), batch, [term])[0]

    def items(self, batch: Batch) -> int:
        """How many of ``Data.unit`` a batch holds; unless a task says otherwise, its rows."""
        return len(next(iter(batch.values())))

    def calibration(self, one: Batch) -> int:
        """How many examples the order of a base's units is read off. one: a batch of one of them.

        More order them little better (``benchmarks/ordering_examples``).
        """
        return 128

    @abstractmethod
    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Columns from which ``summarize`` computes the metrics, a row for each example."""

    def gathered(self, columns: Columns) -> Columns:
        """A split's columns, with what takes all examples at once, such as a search, worked out."""
        return columns

    @abstractmethod
    def summarize(self, columns: Columns) -> dict[str, float]:
        """The metrics that these columns, or resampled rows of them, allow."""

    def right(self, columns: Columns) -> Columns:
        """Metric -> 0 or 1 per example that counts, of metrics that are a share got right."""
        return {}

    @abstractmethod
    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Columns of what a model says, for ``agreement``; none where two are not compared."""

    def agreement(self, ours: Columns, theirs: Columns) -> Columns:
        """What two models' answers to the same examples have in common.

        Of ``of`` things in each example the ``same``. Here the answers are one column, [n] or
        [n, things], whose values are compared.
        """
        [column] = ours
        return agreeing(ours[column] == theirs[column])

    @abstractmethod
    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        """A sentence with both numbers if these columns are no better than guessing, else None."""


def task(name: str, recipe: Recipe) -> Task:
    """A task by name, with the recipe's settings.

    Raises ``MattaError`` for settings of its data that cannot be.
    """
    check(recipe.data)
    return load_class("matta.tasks", name)(recipe)


def excerpt(text: str) -> str:
    """A text in quotation marks, of a long one its beginning and its end."""
    if len(text) <= _LONGEST:
        return repr(text)
    return f"{text[: _LONGEST // 2]!r} ... {text[-_LONGEST // 2 :]!r}"


def raw(output: Any) -> Tensor:
    """A module's logits, the last hidden states of an encoder, or the output itself."""
    for name in ("logits", "last_hidden_state"):
        output = getattr(output, name, output)
    return output


def config(model: Any, name: str) -> Any:
    """A value of the config of a transformers model; None where there is none."""
    return getattr(getattr(model, "config", None), name, None)


def agreeing(same: np.ndarray) -> Columns:
    """``Task.agreement`` of answers that are the same where ``same`` [n] or [n, things] is true."""
    import numpy as np

    if same.ndim == 1:
        same = same[:, None]
    return {"same": same.sum(1).astype(float), "of": np.full(len(same), float(same.shape[1]))}


def above(share: float, chance: float, count: int) -> bool:
    """Whether a share of ``count`` exceeds chance by more than two standard errors."""
    return share > chance + 2 * math.sqrt(chance * (1 - chance) / max(1, count))
