"""Scores of the texts of a query: rerankers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from matta_cli.data.split import Batch, Columns
from matta_cli.losses.targets import Counts, Logits, Losses, Term
from matta_cli.report.schema import Metric
from matta_cli.settings.recipe import DistillSettings
from matta_cli.tasks import scores
from matta_cli.tasks.kind import Kind


class Ranked(Kind):
    """A score of each text, among those of its query; see ``tasks.scores``."""

    reading = "odds"
    alike = "pairs of texts in the same order"
    unit = "queries"
    metrics = (
        Metric("ndcg@10", "NDCG@10", higher=True),
        Metric("mrr", "mean reciprocal rank (MRR)", higher=True),
    )

    def __init__(self, settings: DistillSettings) -> None:
        super().__init__(settings)
        self.scored = scores.Scored(settings)

    def unmeasured(self, label: np.ndarray) -> str:
        relevant = label > 0
        if relevant.any() and not relevant.all():
            return ""
        return "all above 0 (relevant)" if relevant.any() else "none above 0 (relevant)"

    def counts(self, batch: Batch) -> Counts:
        return self.scored.counts(batch)

    def objective(
        self, logits: Logits, batch: Batch, terms: Sequence[Term], over: Counts | None = None
    ) -> Losses:
        return self.scored.objective(logits, batch, terms, over)

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return self.scored.columns(logits, batch)

    def summarize(self, columns: Columns) -> dict[str, float]:
        """Means over the queries that have something relevant (a label above 0)."""
        return {
            "ndcg@10": scores.of_queries(columns, "ndcg"),
            "mrr": scores.of_queries(columns, "reciprocal"),
        }

    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return scores.answers(logits, batch)

    def agreement(self, ours: Columns, theirs: Columns) -> Columns:
        return scores.agreement(ours, theirs)

    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        return scores.at_chance(columns)
