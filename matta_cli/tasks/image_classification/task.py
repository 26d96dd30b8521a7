"""Image classification: top-1 and top-5 accuracy of labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from matta_cli.data import find
from matta_cli.data.split import Batch, Data, Split, sample
from matta_cli.errors import MattaError
from matta_cli.report.schema import Metric
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.class_names import contradiction, kinds_of_answer, known_as, names_of, order_of
from matta_cli.tasks.image_classification.examples import (
    Fitted,
    Images,
    Preparation,
    Source,
    shape_of,
)
from matta_cli.tasks.image_classification.kinds import OneClass
from matta_cli.tasks.image_classification.labels import hot, is_several
from matta_cli.tasks.image_classification.names import (
    knows,
    numbered,
    refuse_mixed,
    refuse_others,
    together,
)
from matta_cli.tasks.image_classification.pictures import check
from matta_cli.tasks.image_classification.read import check_labels, read_images, trained_on
from matta_cli.tasks.image_classification.tables import Known
from matta_cli.tasks.kind import KindTask
from matta_cli.tasks.several import SeveralLabels
from matta_cli.tasks.task import config, raw
from matta_cli.tasks.unlabelled import sorted_out


class ImageClassification(KindTask):
    """One of C classes of each image, or any number of C labels.

    Which of these, the model's config tells (``problem_type``), and where that leaves it open, the
    data: lists of labels, and a column for each label, are several.

    Images of the model's own size are used as they are; all others go through the evaluation
    transform that timm derives from the model (resize, centre crop), or that the processor of
    transformers makes. There is no augmentation, so an example is the same whenever it is drawn:
    the defaults of timm would flip digits and crop an eighth of a small image, and a run could not
    be resumed exactly. Where nothing is held out, the last tenth of each class is.

    Batches: ``image`` float32 [B, C, H, W], normalised; ``label`` as the kind has it.
    """

    name = "image_classification"
    output = "classes"
    # the primary metric of each kind first; data tells the kind
    metrics: tuple[Metric, ...] = (*OneClass.metrics, *SeveralLabels.metrics)
    tokens = False

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.kind = OneClass(recipe.distill)
        self.names: list[str] = []  # of its classes, where they have any
        self.shape: tuple[int, int, int] | None = None  # of an image, once data tells it

    def data(self, folder: Path, model: nn.Module, *, training: bool = True) -> Data:
        settings = self.recipe.data
        find.no_streaming(settings, "images")
        classes, given = self.outputs(model), settings.train
        notes: list[str] = []
        several = config(model, "problem_type") == "multi_label_classification"
        known = Known(classes, _named(model), several)
        train, held_out = read_images(settings, known, training, notes)
        train, held_out, lacking = sorted_out(self, train, held_out, "images")
        notes += [*lacking, *contradiction(model)]
        # of a model whose names are not the data's, the data to train on tells the numbers
        known_by = train or (None if knows(held_out, model) else trained_on(settings, known))
        if known_by is not None:
            held_out, known_by = together(held_out, known_by)
        train = None if train is None else known_by
        name = settings.held_out or given
        parts = [held_out] if train is None else [held_out, train]
        called = [f"{name}, held out" if name == given else name, given]
        refuse_mixed(dict(zip(called, parts, strict=False)), model)
        if train is None and known_by is not None:
            refuse_others(held_out, known_by, name, given)
        several = is_several(model, classes, parts)
        held_out, said = numbered(held_out, model, name)
        check_labels(held_out, classes, name, complete=False)
        if several:
            held_out = hot(held_out, classes)
            called = held_out.classes or [str(k) for k in range(classes)]
            self.kind = SeveralLabels(self.recipe.distill, called)
        self.metrics, self.names = self.kind.metrics, held_out.classes or _named(model)
        prepare = Preparation(folder, model)
        self.shape = prepare.shape
        self.notes += prepare.notes
        if prepare.mode == "L" and len(held_out.labels) and _has_colours(held_out):
            self.notes.append("The model reads grey images: colours are lost.")
        measured = Images(held_out, prepare, name)
        split = sample(measured, settings.eval_examples)
        # before any of them is needed, not in the middle of a run
        digests, odd = check(held_out, [int(i) for i in split.indices], name)
        notes += [*said, *odd, *prepare.left(held_out)]
        if train is None:
            return self.described(measured, "", [split], "images", "images", notes)
        train, said = numbered(train, model, given)
        check_labels(train, classes, given, complete=not several)
        train = hot(train, classes) if several else train
        refuse_others(held_out, train, name, given)
        own, odd = check(train, range(len(train.labels)), given)
        notes += [note for note in (*said, *odd) if note not in notes]
        if both := int(np.isin(digests, own).sum()):
            of = f"of {len(digests):,}"
            notes.append(f"{both:,} held-out images also stand in the data to train on, {of}.")
        size = f"{len(train.labels):,} images of {classes:,} {'labels' if several else 'classes'}"
        images = Images(train, prepare, given)
        images.contents = own
        return self.described(
            images, size, [split], "images", "images", notes, unlabelled=not train.known.all()
        )

    def first(self, split: Split) -> str:
        source = getattr(split, "source", None)
        batch = split.batch([0])
        image = batch["image"][0]
        shape, name = "x".join(map(str, image.shape)), "" if source is None else source.called(0)
        values = f"values {float(image.min()):.2f} to {float(image.max()):.2f}"
        return f"{name} as {shape}, {values}" + self.and_label(batch["label"][0], self.names)

    def outputs(self, model: nn.Module) -> int:
        own: Any = model
        labels = config(model, "num_labels")
        return int(own.num_classes if labels is None else labels)

    def fit_teacher(
        self, teacher: nn.Module, folder: Path | None, model: nn.Module, home: Path | None = None
    ) -> nn.Module:
        teacher = super().fit_teacher(teacher, folder, model)
        kinds_of_answer(teacher, model, self.notes)
        theirs, ours = Preparation(folder, teacher), Preparation(home, model)
        if theirs.shape != ours.shape:
            sizes = ["x".join(map(str, shape)) for shape in (theirs.shape, ours.shape)]
            differ = f"The Teacher reads images of {sizes[0]}, the model of {sizes[1]}"
            raise MattaError(f"{differ}: they must be the same.")
        if theirs.how != ours.how:
            own, model_s = (", ".join(map(str, p.how.values())) for p in (theirs, ours))
            given = f"it sees what the model sees ({model_s})"
            self.notes.append(f"The Teacher's own images are made otherwise ({own}): {given}.")
        order = self._order(teacher, model)
        same = torch.equal(theirs.mean, ours.mean) and torch.equal(theirs.std, ours.std)
        return teacher if same and not order else Fitted(teacher, ours, theirs, order)

    def _order(self, teacher: nn.Module, model: nn.Module) -> list[int]:
        """Which of the Teacher's classes the model's are, as far as names tell it; empty: as is."""
        theirs, ours = known_as(names_of(teacher)), known_as(names_of(model))
        if theirs and ours and not theirs.keys() & ours.keys():
            names = f"{next(iter(theirs))!r}, not {next(iter(ours))!r}"
            other = f"The Teacher's classes have other names than the model's ({names})"
            self.notes.append(f"{other}: they are taken to be in its order.")
            return []
        # that neither names any is usual among models of timm
        return order_of(teacher, model, "classes", self.notes) if theirs or ours else []

    def forward(self, model: Any, batch: Batch) -> Tensor:
        return raw(model(batch["image"]))

    def example(self, model: nn.Module, size: int = 4) -> Batch:
        # of the size of the data, where that is known: some models take any
        shape = self.shape or shape_of(model)
        return {"image": torch.randn(size, *shape, generator=torch.Generator().manual_seed(0))}


def _has_colours(source: Source) -> bool:
    try:
        return len(source.read(0).getbands()) > 2
    except Exception:  # it is looked through, and named, later
        return False


def _named(model: Any) -> list[str]:
    """The names of a model's classes in its order; none where it does not know them."""
    names = names_of(model)
    return [names[k] for k in sorted(names)]
