"""Scores of the texts of a query: rerankers."""

from __future__ import annotations

import numpy as np

from matta_cli.data.split import Columns
from matta_cli.report.schema import Metric
from matta_cli.tasks import scores


class Ranked(scores.Scored):
    """A score of each text, among those of its query."""

    alike = "pairs of texts in the same order"
    unit = "queries"
    metrics = (
        Metric("ndcg@10", "NDCG@10", higher=True),
        Metric("mrr", "mean reciprocal rank (MRR)", higher=True),
    )

    def unmeasured(self, label: np.ndarray) -> str:
        relevant = label > 0
        if relevant.any() and not relevant.all():
            return ""
        return "all above 0 (relevant)" if relevant.any() else "none above 0 (relevant)"

    def summarize(self, columns: Columns) -> dict[str, float]:
        """Means over the queries that have something relevant (a label above 0)."""
        return {
            "ndcg@10": scores.of_queries(columns, "ndcg"),
            "mrr": scores.of_queries(columns, "reciprocal"),
        }
