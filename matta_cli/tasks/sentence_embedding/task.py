"""Sentence embeddings: embeddings like the Teacher's; similarity of pairs, and retrieval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matta_cli.data import find
from matta_cli.data.lines import plain
from matta_cli.data.split import Batch, Columns, Data, Split, sample
from matta_cli.errors import MattaError
from matta_cli.losses.rows import cosine_distance, relation
from matta_cli.losses.targets import Counts, Logits, Losses, Term, weighted
from matta_cli.report.schema import Metric
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.sentence_embedding.examples import Pairs, Sentences
from matta_cli.tasks.sentence_embedding.read import read_texts
from matta_cli.tasks.task import above, agreeing, raw
from matta_cli.tasks.texts.task import Read, TextTask

# cosines that differ by less are equal: the same sentence in another batch rounds otherwise
_TIE = 1e-5
_ROWS = 512  # sentences that are compared with all others at once

_METRICS = {
    "spearman": "Spearman of cosine and score",
    "pearson": "Pearson",
    "recall@1": "retrieval recall@1",
}


class SentenceEmbedding(TextTask):
    """Embeddings of sentences.

    There is no ground truth: the Teacher alone is followed, in its cosines and coordinates.

    Batches of P pairs: the tokens of the P first sentences, then of the P second ones;
    ``score`` float32 [P], NaN where nobody scored them, and ``alike`` bool [P], whether the first
    sentence must find the second among all second ones.
    """

    name = "sentence_embedding"
    output = "numbers in an embedding"
    alike = "sentences with the same nearest one"
    labelled, embeds = False, True

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.dims = sorted(set(recipe.distill.output_dims), reverse=True)
        self.parts = (None, *self.dims)  # the whole embedding, and its first numbers
        metrics = []
        for d in self.parts:
            which = "" if d is None else f", first {d}"
            metrics += [Metric(_at(n, d), f"{label}{which}", True) for n, label in _METRICS.items()]
        self.metrics = tuple(metrics)

    def data(self, folder: Path, model: nn.Module, *, training: bool = True) -> Data:
        settings = self.recipe.data
        find.no_streaming(settings, "sentence embeddings")
        width = self.outputs(model)
        if any(not 0 < d < width for d in self.dims):
            numbers = f"embeddings have {width} numbers; name fewer."
            raise MattaError(f"distill.output_dims {self.dims} is not possible: {numbers}")
        train, held_out = read_texts(settings, training)
        encode = self.encoder(folder, model, self.notes)
        pairs = Pairs(held_out, encode, settings.held_out or settings.train, self.readers)
        split = sample(pairs, settings.eval_examples)
        name = settings.held_out or settings.train
        lost = _lost([pairs.first, pairs.second], f"{name!r}, held out")
        if train is None:
            notes = [*held_out.notes, *lost]
            return self.described(split, "", [split], pairs.what, "sentences", notes)
        own = train.sentences()
        sentences = Sentences(own, encode, settings.train, self.readers)
        size = f"{len(sentences):,} sentences"
        notes = list(dict.fromkeys((*train.notes, *held_out.notes)))
        notes += [*_lost([sentences.read], f"{settings.train!r}, to train on"), *lost]
        seen, measured = set(map(plain, own)), held_out.sentences()
        if both := sum(plain(sentence) in seen for sentence in measured):
            where = f"also stand in the data to train on, of {len(measured):,}"
            notes.append(f"{both:,} held-out sentences {where}.")
        return self.described(sentences, size, [split], pairs.what, "sentences", notes)

    def first(self, split: Split) -> str:
        batch = split.batch([0])
        if "score" not in batch:
            return self.shown(batch)
        second = self.shown({name: tensor[1:] for name, tensor in batch.items()})
        score = float(batch["score"][0])
        scored = f", score {score:g}" if math.isfinite(score) else ""
        return f"{self.shown(batch)} and {second}{scored}"

    def outputs(self, model: nn.Module) -> int:
        config: Any = model.config
        return int(config.hidden_size)

    def fit_teacher(
        self, teacher: nn.Module, folder: Path | None, model: nn.Module, home: Path | None = None
    ) -> nn.Module:
        """Embeddings may be of another width than the model's."""
        return self.fit_tokens(teacher, folder, model, home)

    def forward(self, model: Any, batch: Batch) -> Tensor:
        """Embeddings [B, width]: the mean over the tokens, or the first one's hidden state."""
        inputs = self.inputs(model, batch)
        hidden, mask = raw(model(**inputs)).float(), inputs["attention_mask"]
        if getattr(model.config, "sentence_pooling", "mean") == "cls":
            return hidden[:, 0]
        weights = mask[..., None].float()
        return (hidden * weights).sum(1) / weights.sum(1)

    def counts(self, batch: Batch) -> Counts:
        return {"labels": 0.0, "outputs": float(len(batch["input_ids"]))}

    def objective(
        self, logits: Logits, batch: Batch, terms: Sequence[Term], over: Counts | None = None
    ) -> Losses:
        """Cosine distance from the target, and the relational loss.

        The first where both have as many coordinates; the second of the whole embedding and of
        every one of ``distill.output_dims``, averaged. The first numbers of a Teacher's embedding
        mean nothing by themselves, so the first ones of the model's take on the similarities of its
        whole. Sentences are compared within the batch that is given: ``micro_batch`` examples, on
        each device.
        """
        counts, own = over or self.counts(batch), logits.whole()
        weight = self.recipe.distill.relation_weight / len(self.parts)

        def value(term: Term) -> Tensor:
            if not isinstance(term.target, Logits):
                taught = "Sentence embeddings are learned from a Teacher's embeddings alone"
                raise MattaError(f"{taught}, not from labels.")
            target = term.target.whole()
            total = relation(own, target)
            for d in self.dims:
                total = total + relation(own[:, :d], target)
            total = total * weight
            if own.shape[1] == target.shape[1]:
                total = total + cosine_distance(own, target)
            return total / max(1.0, counts["outputs"])

        return weighted(terms, value, own.sum() * 0)

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Per pair: ``first`` and ``second`` embedding, ``score``, ``alike``; else no columns."""
        columns = self.answers(logits, batch)
        if not columns:
            return {}
        return {**columns, "score": batch["score"].double(), "alike": batch["alike"]}

    def gathered(self, columns: Columns) -> Columns:
        """Per pair: ``score``, ``alike``, and of the embedding and its parts ``cosine``, ``found``.

        ``found`` says whether no other second sentence is nearer to the first.
        """
        if "first" not in columns:
            return columns
        table = {"score": columns["score"], "alike": columns["alike"]}
        for d in self.parts:
            first, second = (_normalized(columns[name][:, :d]) for name in ("first", "second"))
            cosine = (first * second).sum(1)
            nearest = np.concatenate([near.max(1) for near in _cosines(first, second)])
            table |= {_at("cosine", d): cosine, _at("found", d): cosine >= nearest - _TIE}
        return table

    def right(self, columns: Columns) -> Columns:
        alike = columns["alike"].astype(bool)
        if not alike.any():
            return {}
        return {_at("recall@1", d): columns[_at("found", d)][alike] for d in self.parts}

    def summarize(self, columns: Columns) -> dict[str, float]:
        """Correlations of cosine and score, where pairs have scores; the share of pairs found."""
        values, right = {}, self.right(columns)
        score = columns["score"]
        for d in self.parts:
            if np.isfinite(score).all():
                cosine = columns[_at("cosine", d)]
                values[_at("spearman", d)] = _correlation(_ranks(cosine), _ranks(score))
                values[_at("pearson", d)] = _correlation(cosine, score)
            if right:
                values[_at("recall@1", d)] = float(right[_at("recall@1", d)].mean())
        return values

    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        if "score" not in batch:
            return {}
        first, second = logits.detach().float().chunk(2)
        return {"first": first, "second": second}

    def agreement(self, ours: Columns, theirs: Columns) -> Columns:
        """Of each pair's first sentence: whether the same second one, of all, is the nearest."""
        return agreeing(_nearest(ours) == _nearest(theirs))

    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        if "cosine" not in columns:
            return None
        if not np.isfinite(columns["cosine"]).all():
            return "its embeddings are not finite numbers."
        values, count = self.summarize(columns), len(columns["score"])
        if "spearman" in values:
            # the standard error where cosine and score are independent
            spearman, error = values["spearman"], 1 / math.sqrt(max(1, count - 1))
            if spearman > 2 * error:
                return None
            told = f"the Spearman correlation of {count:,} pairs is {spearman:.3f}"
            return f"{told}, and guessing gives 0 ({error:.3f})."
        recall, chance, asked = values.get("recall@1"), 1 / count, int(columns["alike"].sum())
        if count == 1 or recall is None or above(recall, chance, asked):
            return None
        return f"it finds {recall:.3f} of {asked:,} sentences, and guessing finds {chance:.3f}."


def _at(name: str, dims: int | None) -> str:
    return name if dims is None else f"{name}/{dims}"


def _normalized(rows: np.ndarray) -> np.ndarray:
    return F.normalize(torch.from_numpy(rows), dim=-1).numpy()


def _cosines(first: np.ndarray, second: np.ndarray) -> Iterator[np.ndarray]:
    """The cosines of all first sentences with all second ones, a few rows at a time."""
    return (first[i : i + _ROWS] @ second.T for i in range(0, len(first), _ROWS))


def _nearest(columns: Columns) -> np.ndarray:
    """Of each first sentence the number of the second one that is nearest, int64 [n]."""
    first, second = _normalized(columns["first"]), _normalized(columns["second"])
    return np.concatenate([near.argmax(1) for near in _cosines(first, second)])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    with np.errstate(invalid="ignore"):  # NaN where one of them is constant
        return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def _lost(read: Sequence[Read], part: str) -> list[str]:
    """A sentence on sentences that are longer than the model reads, if some are."""
    cut, count = sum(own.cut() for own in read), sum(len(own.first) for own in read)
    longer = f"longer than the {read[0].encode.length:,} tokens that are read of a text"
    return [f"{part}: {cut:,} of {count:,} sentences are {longer}, and are cut."] if cut else []
