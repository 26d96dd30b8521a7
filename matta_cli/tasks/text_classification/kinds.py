"""What a model says of a text: one label or a number; each with its losses and metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from matta_cli.data.split import Batch, Columns
from matta_cli.errors import MattaError
from matta_cli.losses import rows
from matta_cli.losses.targets import Counts, Logits, Losses, Term, weighted
from matta_cli.report.schema import Metric
from matta_cli.settings.recipe import DistillSettings
from matta_cli.tasks import calibration
from matta_cli.tasks.classes import OneOfClasses, sureness
from matta_cli.tasks.kind import Kind
from matta_cli.tasks.scores import agreement
from matta_cli.tasks.task import above


class OneLabel(OneOfClasses):
    """One of C labels of each text."""

    alike = "texts of the same label"
    metrics = (
        Metric("accuracy", "accuracy", higher=True),
        Metric("macro_f1", "macro-F1", higher=True),
        Metric("ece", "calibration error (ECE)", higher=False),
    )

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Per text: ``label``, ``said``, ``right``, and ``sureness``."""
        label, said = batch["label"], logits.argmax(1)
        right = (label == said).double()
        return {"label": label, "said": said, "right": right} | sureness(logits)

    def right(self, columns: Columns) -> Columns:
        return {"accuracy": columns["right"]}

    def summarize(self, columns: Columns) -> dict[str, float]:
        """Macro-F1 is the mean over the labels that occur, in the truth or in what is said."""
        return {
            "accuracy": float(columns["right"].mean()),
            "macro_f1": _macro_f1(columns["label"], columns["said"]),
            "ece": calibration.error(columns["confidence"], columns["right"]),
        }

    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        """Chance is what its labels, dealt out to texts at random, would get right."""
        right, label, said = columns["right"], columns["label"], columns["said"]
        count = len(right)
        if not columns["finite"].all():
            wrong = int((columns["finite"] == 0).sum())
            return f"{wrong} of its {count} outputs are not finite numbers."
        size = int(max(label.max(), said.max())) + 1
        shares = [np.bincount(own, minlength=size) / count for own in (label, said)]
        chance = float((shares[0] * shares[1]).sum())
        if above(right.mean(), chance, count) or (chance == 1 and right.all()):
            return None
        guessing = f"the same labels dealt out at random get {chance:.4f}"
        return f"its accuracy is {right.mean():.4f} on {count:,} texts, and {guessing}."


class Number(Kind):
    """A number of each text. Batches: ``label`` float32 [B].

    odds: whether it is the probability of an output that is its log odds, as a ``CrossEncoder`` of
    sentence-transformers may have it; else the output itself.
    """

    alike = "pairs of texts in the same order"
    metrics = (
        Metric("spearman", "Spearman", higher=True),
        Metric("pearson", "Pearson", higher=True),
        Metric("mae", "mean absolute error", higher=False),
    )

    def __init__(self, settings: DistillSettings, odds: bool) -> None:
        super().__init__(settings)
        self.odds = odds
        self.reading = "odds" if odds else "values"

    def unmeasured(self, label: np.ndarray) -> str:
        return "all the same number" if label.min() == label.max() else ""

    def counts(self, batch: Batch) -> Counts:
        return dict.fromkeys(("labels", "outputs"), float(len(batch["label"])))

    def objective(
        self, logits: Logits, batch: Batch, terms: Sequence[Term], over: Counts | None = None
    ) -> Losses:
        """The squared error; of log odds the cross-entropy."""
        over, own = over or self.counts(batch), logits.whole().flatten().float()
        temperature = self.settings.temperature

        def value(term: Term) -> Tensor:
            target = batch["label"] if term.target is None else term.target
            if isinstance(target, Logits):
                teacher = target.whole().flatten().float()
                total = rows.pointwise_distill(own, teacher, temperature) if self.odds else None
                total = F.mse_loss(own, teacher, reduction="sum") if total is None else total
                return total / max(1.0, over["outputs"])
            if not isinstance(target, Tensor):
                raise MattaError("A Teacher of numbers gives one for each text.")
            if self.odds:
                return rows.pointwise(own, target) / max(1.0, over["labels"])
            return F.mse_loss(own, target.float(), reduction="sum") / max(1.0, over["labels"])

        return weighted(terms, value, own.new_zeros(()))

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Per text: ``said`` and ``label``."""
        said = logits.detach().flatten().double()
        return {"said": said.sigmoid() if self.odds else said, "label": batch["label"].double()}

    def summarize(self, columns: Columns) -> dict[str, float]:
        """A correlation is NaN where one side is constant, or not finite."""
        from scipy.stats import pearsonr, rankdata

        said, label = columns["said"], columns["label"]
        values = {"spearman": math.nan, "pearson": math.nan}
        if np.ptp(said) > 0 and np.ptp(label) > 0 and np.isfinite(said).all():
            values["spearman"] = float(pearsonr(rankdata(said), rankdata(label)).statistic)
            values["pearson"] = float(pearsonr(said, label).statistic)
        return values | {"mae": float(np.abs(said - label).mean())}

    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return {"score": logits.detach().flatten().double()}

    def agreement(self, ours: Columns, theirs: Columns) -> Columns:
        return agreement(ours, theirs)

    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        said, count = columns["said"], len(columns["said"])
        if not np.isfinite(said).all():
            return f"{int((~np.isfinite(said)).sum())} of its {count} numbers are not finite."
        # the standard error where both are independent
        spearman, error = self.summarize(columns)["spearman"], 1 / math.sqrt(max(1, count - 1))
        if spearman > 2 * error:
            return None
        told = f"the Spearman correlation with the labels of {count:,} texts is {spearman:.3f}"
        return f"{told}, and guessing gives 0 ({error:.3f})."


def _macro_f1(label: np.ndarray, said: np.ndarray) -> float:
    """As scikit-learn's ``f1_score``, whose checks would take most of the time of resampling."""
    size = int(max(label.max(), said.max())) + 1
    hits = np.bincount(label[label == said], minlength=size)
    both = np.bincount(label, minlength=size) + np.bincount(said, minlength=size)
    there = both > 0
    return float((2 * hits[there] / both[there]).mean())
