"""Image classification: folders, MNIST-style files, arrays or hub datasets -> normalised images,
top-1 and top-5.
"""

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
from matta_cli.losses import classes as losses_classes
from matta_cli.losses.classes import of_classes
from matta_cli.losses.targets import Logits, Term
from matta_cli.tasks import calibration
from matta_cli.tasks.image_classification.examples import (
    Images,
    Preparation,
    Renormalized,
    Source,
    size_text,
)
from matta_cli.tasks.image_classification.read import (
    HELD_OUT,
    check_labels,
    from_arrays,
    from_folder,
    from_idx,
    without_last_tenth,
)
from matta_cli.tasks.task import Metric, Task


class ImageClassification(Task):
    """One of C classes per image. Batches: ``image`` float32 [B, C, H, W], normalised; ``label``
    int64 [B].

    Images of the model's own size are used as they are; all others go through the evaluation
    transform that timm derives from the model (resize, centre crop). There is no augmentation, so
    an example is the same whenever it is drawn: the defaults of timm would flip digits and crop an
    eighth of a small image, and a run could not be resumed exactly. Where nothing is held out, the
    last tenth of each class is.
    """

    name = "image_classification"
    output = "classes"
    metrics = (
        Metric("top1", "top-1 accuracy", higher=True),
        Metric("top5", "top-5 accuracy", higher=True),
        Metric("ece", "calibration error (ECE)", higher=False),
    )
    alike = "images of the same class"

    def data(self, folder: Path, model: nn.Module, *, training: bool = True) -> Data:
        find.no_streaming(self.recipe.data.streaming, "images")
        settings, classes = self.recipe.data, self.outputs(model)
        train: Source | None = None
        held_out: Source | None = None
        if settings.held_out:
            only, own = self._open(settings.held_out, "--held-out")
            held_out = own or only
        if training or held_out is None:
            train, own = self._open(settings.train, "--data")
            if train is None:
                raise find.empty(settings.train, "images to train on")
            if held_out is None and own is None:
                train, own = without_last_tenth(train, settings.train)
            held_out = held_out or own
        assert held_out is not None
        held_out_name = settings.held_out or settings.train
        check_labels(held_out, classes, held_out_name, complete=False)
        prepare = Preparation(folder, model)
        measured = Images(held_out, prepare, held_out_name)
        split = sample(measured, settings.eval_examples)
        description = f"{held_out_name}: held out {len(split):,} images"
        if train is None or not training:
            return Data(measured, (split,), description, "images")
        check_labels(train, classes, settings.train, complete=True)
        if train.classes and held_out.classes and train.classes != held_out.classes:
            odd = sorted(set(train.classes) ^ set(held_out.classes))
            raise MattaError(
                f"{held_out_name!r} and {settings.train!r} have different classes: only one has {odd[0]!r}."
            )
        description = (
            f"{settings.train}: {len(train.labels):,} images of {classes:,} classes; {description}"
        )
        return Data(Images(train, prepare, settings.train), (split,), description, "images")

    def outputs(self, model: nn.Module) -> int:
        own: Any = model
        return int(
            own.config.num_labels
            if hasattr(getattr(own, "config", None), "num_labels")
            else own.num_classes
        )

    def fit_teacher(self, teacher: nn.Module, folder: Path | None, model: nn.Module) -> nn.Module:
        teacher = super().fit_teacher(teacher, folder, model)
        theirs, ours = Preparation(folder or Path(), teacher), Preparation(Path(), model)
        if theirs.shape != ours.shape:
            raise MattaError(
                f"The Teacher reads images of {size_text(theirs.shape)}, the model of {size_text(ours.shape)}: "
                "they must be the same."
            )
        same = torch.equal(theirs.mean, ours.mean) and torch.equal(theirs.std, ours.std)
        return teacher if same else Renormalized(teacher, ours, theirs)

    def forward(self, model: Any, batch: Batch) -> Tensor:
        output = model(batch["image"])
        return getattr(output, "logits", output)

    def example(self, model: nn.Module, size: int = 4) -> Batch:
        import timm

        shape = timm.data.resolve_model_data_config(model)["input_size"]
        return {"image": torch.randn(size, *shape, generator=torch.Generator().manual_seed(0))}

    def counts(self, batch: Batch) -> dict[str, float]:
        return losses_classes.counts(batch["label"])

    def objective(
        self,
        logits: Logits,
        batch: Batch,
        terms: Sequence[Term],
        over: dict[str, float] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self.recipe.distill
        over = over or self.counts(batch)
        return of_classes(
            logits, batch["label"], terms, over, settings.temperature, settings.divergence
        )

    def items(self, batch: Batch) -> int:
        return len(batch["label"])

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """``correct1``; ``correct5`` where there are more than 5 classes; ``finite``: 0 where the
        logits are not numbers; ``confidence``, the probability of the likeliest class, and
        ``margin``, by how much it exceeds that of the next.
        """
        label = batch["label"][:, None]
        found = {"correct1": (logits.argmax(1, keepdim=True) == label).any(1).double()}
        if logits.shape[1] > 5:
            found["correct5"] = (logits.topk(5, dim=1).indices == label).any(1).double()
        first, second = logits.double().softmax(1).topk(2, dim=1).values.unbind(1)
        return found | {
            "finite": logits.isfinite().all(1).double(),
            "confidence": first,
            "margin": first - second,
        }

    def right(self, columns: Columns) -> Columns:
        pairs = (("top1", "correct1"), ("top5", "correct5"))
        return {metric: columns[column] for metric, column in pairs if column in columns}

    def summarize(self, columns: Columns) -> dict[str, float]:
        found = {metric: float(right.mean()) for metric, right in self.right(columns).items()}
        if "confidence" in columns:
            found["ece"] = calibration.error(columns["confidence"], columns["correct1"])
        return found

    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return {"class": logits.argmax(1)}

    def agreement(self, ours: Columns, theirs: Columns) -> Columns:
        same = (ours["class"] == theirs["class"]).astype(float)
        return {"same": same, "of": np.ones_like(same)}

    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        right, chance = columns["correct1"], 1 / outputs
        if not columns["finite"].all():
            return f"{int((columns['finite'] == 0).sum())} of its {len(right)} outputs are not finite numbers."
        if right.mean() > chance + 2 * np.sqrt(chance * (1 - chance) / len(right)):
            return None
        return (
            f"its top-1 accuracy is {right.mean():.4f} on {len(right):,} images, and guessing among {outputs:,} classes "
            f"gives {chance:.4f}."
        )

    def _open(self, text: str, flag: str) -> tuple[Source | None, Source | None]:
        """What there is to train on and to measure on."""
        path = find.find(text, flag)
        if path is None:
            return self._hub(text, flag)
        if path.is_file():
            if path.suffix != ".npz":
                raise MattaError(
                    f"{text!r} is a file; images come as a folder, as .npz (images, labels), or from the hub."
                )
            return from_arrays(path), None
        found = from_idx(path, "train"), from_idx(path, "t10k")
        if any(found):
            return found
        if (path / "train").is_dir():
            held_out = next((path / name for name in HELD_OUT if (path / name).is_dir()), None)
            return from_folder(path / "train"), from_folder(held_out) if held_out else None
        return from_folder(path), None

    def _hub(self, text: str, flag: str) -> tuple[Source | None, Source | None]:
        settings = self.recipe.data
        splits = find.hub_dataset(text, settings.config)
        rows = find.hub_held_out(splits, text, settings.held_out_split)
        held_out = self._rows(rows, text) if rows is not None else None
        if flag == "--held-out" and held_out is not None:
            return None, held_out
        return self._rows(find.hub_split(splits, text, settings.split), text), held_out

    def _rows(self, rows: Any, name: str) -> Source:
        image, label = self.recipe.data.image, self.recipe.data.label
        for column, setting in ((image, "data.image"), (label, "data.label")):
            if column not in rows.column_names:
                raise find.no_column(name, column, setting, rows.column_names)
        labels = np.array(rows[label])
        classes = getattr(rows.features[label], "names", None)
        if labels.dtype.kind not in "iu":
            classes, labels = np.unique(labels.astype(str), return_inverse=True)
        return Source(
            labels.astype(np.int64),
            lambda i: rows[i][image],
            list(classes) if classes is not None else None,
        )
