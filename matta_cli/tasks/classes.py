"""One of several classes of each example: what all tasks of such have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from matta_cli.data.split import Batch
from matta_cli.losses import classes as losses
from matta_cli.losses.classes import IGNORED
from matta_cli.losses.targets import Counts, Logits, Losses, Term
from matta_cli.tasks.kind import Kind, called


class OneOfClasses(Kind):
    """One of C classes of each example. Batches: ``label`` int64 [B]."""

    def counts(self, batch: Batch) -> Counts:
        return losses.counts(batch["label"])

    def objective(
        self, logits: Logits, batch: Batch, terms: Sequence[Term], over: Counts | None = None
    ) -> Losses:
        own, over = self.settings, over or self.counts(batch)
        label = batch["label"]
        return losses.of_classes(logits, label, terms, over, own.temperature, own.compile)

    def named(self, label: Tensor, names: Sequence[str]) -> str:
        number = int(label)
        return "" if number == IGNORED else called(number, names)

    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return {"class": logits.argmax(1)}


def sureness(logits: Tensor) -> dict[str, Tensor]:
    """How sure a model is of each example, of logits [B, C].

    ``finite``: 0 where the logits are not numbers. ``confidence``: the probability of the likeliest
    class. ``margin``: by how much it exceeds that of the next.
    """
    first, second = logits.double().softmax(1).topk(2, dim=1).values.unbind(1)
    finite = logits.isfinite().all(1).double()
    return {"finite": finite, "confidence": first, "margin": first - second}
