"""Image classification: top-1 and top-5 accuracy of labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from matta_cli.data import find
from matta_cli.data.split import Batch, Columns, Data, sample
from matta_cli.errors import MattaError
from matta_cli.losses import classes as losses
from matta_cli.losses.targets import Counts, Logits, Losses, Term
from matta_cli.report.schema import Metric
from matta_cli.tasks import calibration
from matta_cli.tasks.image_classification.examples import (
    Images,
    Preparation,
    Renormalized,
    shape_of,
)
from matta_cli.tasks.image_classification.names import numbered
from matta_cli.tasks.image_classification.pictures import check
from matta_cli.tasks.image_classification.read import check_labels, read_images
from matta_cli.tasks.task import Task, above, config, raw


class ImageClassification(Task):
    """One of C classes per image.

    Images of the model's own size are used as they are; all others go through the evaluation
    transform that timm derives from the model (resize, centre crop). There is no augmentation, so
    an example is the same whenever it is drawn: the defaults of timm would flip digits and crop an
    eighth of a small image, and a run could not be resumed exactly. Where nothing is held out, the
    last tenth of each class is.

    Batches: ``image`` float32 [B, C, H, W], normalised; ``label`` int64 [B].
    """

    name = "image_classification"
    output = "classes"
    alike = "images of the same class"
    metrics = (
        Metric("top1", "top-1 accuracy", higher=True),
        Metric("top5", "top-5 accuracy", higher=True),
        Metric("ece", "calibration error (ECE)", higher=False),
    )

    shape: tuple[int, int, int] | None = None

    def data(self, folder: Path, model: nn.Module, *, training: bool = True) -> Data:
        settings = self.recipe.data
        find.no_streaming(settings, "images")
        classes, given = self.outputs(model), settings.train
        notes: list[str] = []
        train, held_out = read_images(settings, training, notes)
        name = settings.held_out or given
        held_out, said = numbered(held_out, model, name)
        check_labels(held_out, classes, name, complete=False)
        prepare = Preparation(folder, model)
        self.shape = prepare.shape
        self.notes += prepare.notes
        measured = Images(held_out, prepare, name)
        split = sample(measured, settings.eval_examples)
        # before any of them is needed, not in the middle of a run
        digests, odd = check(held_out, [int(i) for i in split.indices], name)
        notes += [*said, *odd]
        if train is None:
            return self.described(measured, "", [split], "images", "images", notes)
        train, said = numbered(train, model, given)
        check_labels(train, classes, given, complete=True)
        if train.classes and held_out.classes and train.classes != held_out.classes:
            odd_one = sorted(set(train.classes) ^ set(held_out.classes))[0]
            differ = f"{name!r} and {given!r} have different classes"
            raise MattaError(f"{differ}: only one has {odd_one!r}.")
        own, odd = check(train, range(len(train.labels)), given)
        notes += [note for note in (*said, *odd) if note not in notes]
        if both := int(np.isin(digests, own).sum()):
            of = f"of {len(digests):,}"
            notes.append(f"{both:,} held-out images also stand in the data to train on, {of}.")
        size = f"{len(train.labels):,} images of {classes:,} classes"
        images = Images(train, prepare, given)
        return self.described(images, size, [split], "images", "images", notes)

    def outputs(self, model: nn.Module) -> int:
        own: Any = model
        labels = config(model, "num_labels")
        return int(own.num_classes if labels is None else labels)

    def fit_teacher(
        self, teacher: nn.Module, folder: Path | None, model: nn.Module, home: Path | None = None
    ) -> nn.Module:
        teacher = super().fit_teacher(teacher, folder, model)
        theirs, ours = Preparation(folder, teacher), Preparation(home, model)
        if theirs.shape != ours.shape:
            sizes = ["x".join(map(str, shape)) for shape in (theirs.shape, ours.shape)]
            differ = f"The Teacher reads images of {sizes[0]}, the model of {sizes[1]}"
            raise MattaError(f"{differ}: they must be the same.")
        if theirs.how != ours.how:
            own, model_s = (", ".join(map(str, p.how.values())) for p in (theirs, ours))
            given = f"it sees what the model sees ({model_s})"
            self.notes.append(f"The Teacher's own images are made otherwise ({own}): {given}.")
        same = torch.equal(theirs.mean, ours.mean) and torch.equal(theirs.std, ours.std)
        return teacher if same else Renormalized(teacher, ours, theirs)

    def forward(self, model: Any, batch: Batch) -> Tensor:
        return raw(model(batch["image"]))

    def example(self, model: nn.Module, size: int = 4) -> Batch:
        # of the size of the data, where that is known: some models take any
        shape = self.shape or shape_of(model)
        return {"image": torch.randn(size, *shape, generator=torch.Generator().manual_seed(0))}

    def counts(self, batch: Batch) -> Counts:
        return losses.counts(batch["label"])

    def objective(
        self, logits: Logits, batch: Batch, terms: Sequence[Term], over: Counts | None = None
    ) -> Losses:
        own, over = self.recipe.distill, over or self.counts(batch)
        label = batch["label"]
        return losses.of_classes(logits, label, terms, over, own.temperature, own.compile)

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """``correct1``, and ``correct5`` where there are more than 5 classes; three more.

        ``finite``: 0 where the logits are not numbers. ``confidence``: the probability of the
        likeliest class. ``margin``: by how much it exceeds that of the next.
        """
        label = batch["label"][:, None]
        columns = {"correct1": (logits.argmax(1, keepdim=True) == label).any(1).double()}
        if logits.shape[1] > 5:
            columns["correct5"] = (logits.topk(5, dim=1).indices == label).any(1).double()
        columns["finite"] = logits.isfinite().all(1).double()
        first, second = logits.double().softmax(1).topk(2, dim=1).values.unbind(1)
        return columns | {"confidence": first, "margin": first - second}

    def right(self, columns: Columns) -> Columns:
        pairs = (("top1", "correct1"), ("top5", "correct5"))
        return {metric: columns[column] for metric, column in pairs if column in columns}

    def summarize(self, columns: Columns) -> dict[str, float]:
        values = {metric: float(right.mean()) for metric, right in self.right(columns).items()}
        if "confidence" in columns:
            values["ece"] = calibration.error(columns["confidence"], columns["correct1"])
        return values

    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return {"class": logits.argmax(1)}

    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        right, finite, chance = columns["correct1"], columns["finite"], 1 / outputs
        if not finite.all():
            return f"{int((finite == 0).sum())} of its {len(right)} outputs are not finite numbers."
        if above(right.mean(), chance, len(right)):
            return None
        guessing = f"guessing among {outputs:,} classes gives {chance:.4f}"
        return f"its top-1 accuracy is {right.mean():.4f} on {len(right):,} images, and {guessing}."
