"""Text classification: a label, several labels, or a number of each text or pair of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from matta_cli.data import find
from matta_cli.data.split import Batch, Data, Split, sample
from matta_cli.errors import MattaError
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.class_names import contradiction, kinds_of_answer
from matta_cli.tasks.kind import KindTask
from matta_cli.tasks.several import SeveralLabels
from matta_cli.tasks.task import raw
from matta_cli.tasks.text_classification.examples import Texts
from matta_cli.tasks.text_classification.kinds import Number, OneLabel
from matta_cli.tasks.text_classification.labels import Labels
from matta_cli.tasks.text_classification.ranked import Ranked
from matta_cli.tasks.text_classification.read import Rows, read_rows
from matta_cli.tasks.texts.task import LabelTask
from matta_cli.tasks.unlabelled import sorted_out

_NONE = "A text with none of the labels has the list [] for a label."
# of every kind, the primary metrics first; data tells the kind
_KINDS = (OneLabel, SeveralLabels, Ranked, Number)
_METRICS = [*(kind.metrics[0] for kind in _KINDS), *(m for k in _KINDS for m in k.metrics)]


class TextClassification(KindTask, LabelTask):
    """What a model says of a text or a pair of texts.

    Which of the kinds it is, the model's config tells (``num_labels``, ``problem_type``), and where
    that leaves it open, the data: a list of labels is several, a column of queries makes one output
    a reranker's score, and another output alone is a number.

    Batches: the tokens, and ``label`` as the kind has it (``kinds``); of rerankers also ``group``
    int64 [B], numbered within the batch, and ``group_id`` int64 [B], numbered within the split.
    """

    name = "text_classification"
    output = "labels"
    models = "Text classifiers"
    metrics = tuple({metric.name: metric for metric in _METRICS}.values())
    longest = 1024

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.kind = OneLabel(recipe.distill)
        self.names: list[str] = []  # of the model's labels, where they have any
        self.told = False  # whether data has said which kind it is

    def data(self, folder: Path, model: nn.Module, *, training: bool = True) -> Data:
        settings = self.recipe.data
        find.no_streaming(settings, "texts and labels")
        labels = Labels(model)
        train, held_out = read_rows(settings, labels.names, labels.outputs, training)
        none = _NONE if labels.several else ""
        train, held_out, lacking = sorted_out(self, train, held_out, "texts", none)
        self.notes += [*lacking, *contradiction(model)]
        parts = [held_out, *([] if train is None else [train])]
        _refuse_mixed(held_out, train)
        labels.part(parts)
        self.kind = labels.kind(self.recipe.distill, settings.group, parts)
        self.metrics, self.told = self.kind.metrics, True
        self.names = [labels.names[k] for k in sorted(labels.names)]
        read = labels.read(self.kind, parts)
        encode = self.encoder(folder, model, self.notes)

        def opened(rows: Rows, at: int, name: str) -> Texts:
            made = Texts(rows, read[at], encode, self.readers, labels.called)
            part = f"{name!r}, {'to train on' if at else 'held out'}"
            rows.notes += labels.told(self.kind, read[at][rows.known], part)
            if cut := made.read.cut():
                longer = f"longer than the {encode.length:,} tokens that are read of a text"
                rows.notes.append(f"{part}: {cut:,} of {len(rows):,} are {longer}, and are cut.")
            return made

        name = settings.held_out or settings.train
        if not self.unmeasured and (why := self.kind.unmeasured(read[0])):
            raise MattaError(f"The held-out labels of {name!r} are {why}: pass others.")
        measured = opened(held_out, 0, name)
        split = sample(measured, settings.eval_examples)
        what = self.kind.unit or "texts"
        if train is None:
            return self.described(measured, "", [split], what, "texts", held_out.notes)
        texts = opened(train, 1, settings.train)
        size = f"{len(train):,} texts"
        size += f" of {len(texts):,} queries" if self.kind.unit == "queries" else ""
        notes = list(dict.fromkeys((*train.notes, *held_out.notes)))
        own, there = set(train.alike()), held_out.alike()
        if both := sum(text in own for text in there):
            where = f"also stand in the data to train on, of {len(there):,}"
            notes.append(f"{both:,} held-out texts {where}.")
        return self.described(
            texts, size, [split], what, "texts", notes, unlabelled=not train.known.all()
        )

    def first(self, split: Split) -> str:
        batch = split.batch([0])
        return self.shown(batch) + self.and_label(batch["label"][0], self.names)

    def refuse_other(self, teacher: nn.Module, model: nn.Module) -> None:
        kinds_of_answer(teacher, model, self.notes)
        theirs, ours = Labels(teacher), Labels(model)
        if theirs.outputs == 1 and theirs.odds != ours.odds and not self.recipe.data.group:
            both = "one gives a probability (a Sigmoid in its config.json), the other a number"
            raise MattaError(f"Of the Teacher and the model {both}: they must be alike to distil.")

    def forward(self, model: Any, batch: Batch) -> Tensor:
        """Logits [B, labels]."""
        return raw(model(**self.inputs(model, batch)))

    def example(self, model: nn.Module, size: int = 4) -> Batch:
        if not self.told:
            self.kind = Labels(model).kind(self.recipe.distill, "")
        return super().example(model, size)


def _refuse_mixed(held_out: Rows, train: Rows | None) -> None:
    """Raise ``MattaError`` where one part has texts, and the other pairs."""
    if train is not None and (train.second is None) != (held_out.second is None):
        pairs, texts = (held_out, train) if train.second is None else (train, held_out)
        both = f"{pairs.ends[0][0]!r} has pairs of texts, and {texts.ends[0][0]!r} single ones"
        raise MattaError(f"{both}: give both the same columns.")
