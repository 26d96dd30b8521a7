"""One of several classes of each image, with its losses and metrics."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from matta_cli.data.split import Batch, Columns
from matta_cli.report.schema import Metric
from matta_cli.tasks import calibration
from matta_cli.tasks.classes import OneOfClasses, sureness
from matta_cli.tasks.task import above


class OneClass(OneOfClasses):
    """One of C classes of each image."""

    alike = "images of the same class"
    metrics = (
        Metric("top1", "top-1 accuracy", higher=True),
        Metric("top5", "top-5 accuracy", higher=True),
        Metric("ece", "calibration error (ECE)", higher=False),
    )

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """``correct1``, ``correct5`` where there are more than 5 classes, and ``sureness``."""
        label = batch["label"][:, None]
        columns = {"correct1": (logits.argmax(1, keepdim=True) == label).any(1).double()}
        if logits.shape[1] > 5:
            columns["correct5"] = (logits.topk(5, dim=1).indices == label).any(1).double()
        return columns | sureness(logits)

    def right(self, columns: Columns) -> Columns:
        pairs = (("top1", "correct1"), ("top5", "correct5"))
        return {metric: columns[column] for metric, column in pairs if column in columns}

    def summarize(self, columns: Columns) -> dict[str, float]:
        values = {metric: float(right.mean()) for metric, right in self.right(columns).items()}
        if "confidence" in columns:
            values["ece"] = calibration.error(columns["confidence"], columns["correct1"])
        return values

    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        right, finite, chance = columns["correct1"], columns["finite"], 1 / outputs
        if not finite.all():
            return f"{int((finite == 0).sum())} of its {len(right)} outputs are not finite numbers."
        if above(right.mean(), chance, len(right)):
            return None
        guessing = f"guessing among {outputs:,} classes gives {chance:.4f}"
        return f"its top-1 accuracy is {right.mean():.4f} on {len(right):,} images, and {guessing}."
