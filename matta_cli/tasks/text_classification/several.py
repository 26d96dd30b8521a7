"""Several labels of each text, each there or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from matta_cli.data.split import Batch, Columns
from matta_cli.errors import MattaError
from matta_cli.losses import rows
from matta_cli.losses.targets import Counts, Logits, Losses, Term, weighted
from matta_cli.report.schema import Metric
from matta_cli.tasks.task import agreeing
from matta_cli.tasks.text_classification.kinds import Kind


class SeveralLabels(Kind):
    """Which of C labels each text has. Batches: ``label`` float32 [B, C], 0 or 1.

    A label is said where its probability is above one half.
    """

    reading = "odds"
    alike = "labels that are both said or both not"
    metrics = (
        Metric("map", "mean average precision (mAP)", higher=True),
        Metric("micro_f1", "micro-F1", higher=True),
        Metric("macro_f1", "macro-F1", higher=True),
    )

    def counts(self, batch: Batch) -> Counts:
        return dict.fromkeys(("labels", "outputs"), float(batch["label"].numel()))

    def objective(
        self, logits: Logits, batch: Batch, terms: Sequence[Term], over: Counts | None = None
    ) -> Losses:
        """Binary cross-entropy of each label."""
        over, own = over or self.counts(batch), logits.whole()

        def value(term: Term) -> Tensor:
            target = batch["label"] if term.target is None else term.target
            if isinstance(target, Logits):
                teacher = target.whole()
                total = rows.pointwise_distill(own, teacher, self.settings.temperature)
                return total / max(1.0, over["outputs"])
            if not isinstance(target, Tensor):
                raise MattaError("A Teacher of several labels gives a number for each of them.")
            return rows.pointwise(own, target) / max(1.0, over["labels"])

        return weighted(terms, value, own.new_zeros((), dtype=torch.float32))

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Per text: ``label`` and ``score`` of each label."""
        return {"label": batch["label"].bool(), "score": logits.detach().float()}

    def summarize(self, columns: Columns) -> dict[str, float]:
        """Macro-F1 and mAP are means over the labels that some text has; NaN where none has."""
        label, score = columns["label"], columns["score"]
        said, there = score > 0, label.any(0)
        hits, both = (label & said).sum(0), label.sum(0) + said.sum(0)
        macro = 2 * hits[there] / both[there]
        precisions = [_precision(label[:, k], score[:, k]) for k in np.flatnonzero(there)]
        none = math.nan
        return {
            "map": float(np.mean(precisions)) if precisions else none,
            "micro_f1": float(2 * hits.sum() / both.sum()) if both.sum() else none,
            "macro_f1": float(macro.mean()) if len(macro) else none,
        }

    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return {"label": logits > 0}

    def agreement(self, ours: Columns, theirs: Columns) -> Columns:
        return agreeing(ours["label"] == theirs["label"])

    def at_chance(self, columns: Columns) -> str | None:
        """By how often a text that has a label scores higher in it than one that has not."""
        from scipy.stats import rankdata

        label, score = columns["label"], columns["score"]
        if not np.isfinite(score).all():
            wrong = int((~np.isfinite(score).all(1)).sum())
            return f"{wrong} of its {len(score)} outputs are not finite numbers."
        more = pairs = variance = 0.0
        for k in range(label.shape[1]):
            with_it, without = int(label[:, k].sum()), int((~label[:, k]).sum())
            ranks = rankdata(score[:, k])[label[:, k]].sum()
            more += float(ranks) - with_it * (with_it + 1) / 2
            pairs += with_it * without
            variance += with_it * without * (len(label) + 1) / 12
        if not pairs or more - pairs / 2 > 2 * math.sqrt(variance):
            return None
        share = (
            f"a text that has a label scores higher in it than one without in {more / pairs:.4f}"
        )
        return f"{share} of {int(pairs):,} pairs, and guessing gives 0.5."


def _precision(label: np.ndarray, score: np.ndarray) -> float:
    """The average precision of one label, as scikit-learn's ``average_precision_score``.

    Of a text that has it: the share with it among those that score as high or higher. Without the
    checks of scikit-learn's, which would take most of the time of resampling.
    """
    if not np.isfinite(score).all():
        return 0.0
    own = score[label]
    # those that score as high: all but those below
    better = len(score) - np.searchsorted(np.sort(score), own, side="left")
    hits = len(own) - np.searchsorted(np.sort(own), own, side="left")
    return float((hits / better).mean())
