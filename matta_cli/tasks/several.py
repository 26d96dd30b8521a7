"""Several labels of each example, each there or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from matta_cli.data.split import Batch, Columns
from matta_cli.losses.labels import counts, of_labels
from matta_cli.losses.targets import Counts, Logits, Losses, Term
from matta_cli.settings.recipe import DistillSettings
from matta_cli.tasks import labels
from matta_cli.tasks.kind import Kind, called


class SeveralLabels(Kind):
    """Which of C labels each example has. Batches: ``label`` float32 [B, C], 0 or 1.

    A label is said where its probability is above one half. names: of the labels.
    """

    reading = "odds"
    alike = "labels that are both said or both not"
    metrics = labels.METRICS

    def __init__(self, settings: DistillSettings, names: Sequence[str]) -> None:
        super().__init__(settings)
        self.names = names

    def counts(self, batch: Batch) -> Counts:
        return counts(batch["label"])

    def objective(
        self, logits: Logits, batch: Batch, terms: Sequence[Term], over: Counts | None = None
    ) -> Losses:
        over = over or self.counts(batch)
        return of_labels(logits, batch["label"], terms, over, self.settings.temperature)

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return labels.score(logits, batch["label"])

    def summarize(self, columns: Columns) -> dict[str, float]:
        return labels.summarize(columns, self.names)

    def named(self, label: Tensor, names: Sequence[str]) -> str:
        if not label.isfinite().all():
            return ""
        own = [called(k, names) for k in label.nonzero().flatten().tolist()]
        return ", ".join(own) or "none of them"

    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return labels.answers(logits)

    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        return labels.at_chance(columns)
