"""Sentence embeddings: any text -> embeddings like the Teacher's; similarity of pairs, and
retrieval.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matta_cli.data import find
from matta_cli.data.split import Batch, Columns, Data, sample
from matta_cli.errors import MattaError
from matta_cli.losses.rows import cosine_distance, relation
from matta_cli.losses.targets import Logits, Term
from matta_cli.models.tokenizer import open_tokenizer
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.sentence_embedding.examples import (
    LINES,
    LONGEST,
    TABLES,
    Encoder,
    Pairs,
    Sentences,
    Texts,
    read_benchmark,
    strings,
)
from matta_cli.tasks.task import Metric, Task, raw

# cosines that differ by less are equal: the same sentence in another batch rounds otherwise
_TIE = 1e-5


class SentenceEmbedding(Task):
    """Embeddings of sentences. There is no ground truth: the Teacher alone is followed, in its
    cosines and coordinates.

    Batches of sentences: ``input_ids`` int64 [B, L] and ``attention_mask`` int64 [B, L], padded on
    the right. Batches of P pairs: the same of the P first sentences, then of the P second ones;
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
        kinds = (
            ("spearman", "Spearman of cosine and score"),
            ("pearson", "Pearson"),
            ("recall@1", "retrieval recall@1"),
        )
        self.metrics = tuple(
            Metric(_at(name, d), label if d is None else f"{label}, first {d}", higher=True)
            for d in (None, *self.dims)
            for name, label in kinds
        )

    def data(self, folder: Path, model: nn.Module, *, training: bool = True) -> Data:
        settings = self.recipe.data
        find.no_streaming(settings.streaming, "sentence embeddings")
        width = self.outputs(model)
        if any(not 0 < d < width for d in self.dims):
            raise MattaError(
                f"distill.output_dims {self.dims} is not possible: embeddings have {width} numbers; name fewer."
            )
        train, held_out = self._texts(training)
        encode = self._encoder(folder, model)
        name = settings.held_out or settings.train
        pairs = Pairs(held_out, encode, name)
        split = sample(pairs, settings.eval_examples)
        description = f"{name}: held out {len(split):,} {pairs.what}"
        if train is None:
            return Data(split, (split,), description, "sentences")
        sentences = Sentences(train.sentences(), encode, settings.train)
        return Data(
            sentences,
            (split,),
            f"{settings.train}: {len(sentences):,} sentences; {description}",
            "sentences",
        )

    def outputs(self, model: nn.Module) -> int:
        config: Any = model.config
        return int(config.hidden_size)

    def fit_teacher(self, teacher: nn.Module, folder: Path | None, model: nn.Module) -> nn.Module:
        """Embeddings may be of another width than the model's; the tokens must be the same."""
        theirs, ours = (int(config.vocab_size) for config in (_config(teacher), _config(model)))
        if theirs != ours:
            raise MattaError(
                f"The Teacher has {theirs:,} tokens in its vocabulary, the model {ours:,}: they must be the same, or the "
                "Teacher a file of its embeddings."
            )
        positions, needed = (
            _config(teacher).max_position_embeddings,
            self.recipe.data.sequence_length,
        )
        needed = needed or min(LONGEST, _config(model).max_position_embeddings)
        if positions < needed:
            raise MattaError(
                f"The Teacher has {positions:,} positions, the model uses {needed:,}: set --sequence-length."
            )
        return teacher

    def forward(self, model: Any, batch: Batch) -> Tensor:
        """Embeddings [B, width], as long as they come: the mean over the tokens, or the first one's
        hidden state.
        """
        hidden = raw(
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        ).float()
        if getattr(model.config, "sentence_pooling", "mean") == "cls":
            return hidden[:, 0]
        mask = batch["attention_mask"][..., None].float()
        return (hidden * mask).sum(1) / mask.sum(1)

    def example(self, model: nn.Module, size: int = 4) -> Batch:
        config, generator = _config(model), torch.Generator().manual_seed(0)
        length = min(int(config.max_position_embeddings), 32)
        ids = torch.randint(int(config.vocab_size), (size, length), generator=generator)
        mask = torch.arange(length) < torch.arange(length, 0, -1)[:size, None]
        return {"input_ids": ids, "attention_mask": mask.long()}

    def present(self, batch: Batch) -> Tensor:
        return batch["attention_mask"].bool()

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"labels": 0.0, "outputs": float(len(batch["input_ids"]))}

    def objective(
        self,
        logits: Logits,
        batch: Batch,
        terms: Sequence[Term],
        over: dict[str, float] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cosine distance from the target where both have as many coordinates, and the relational
        loss of the whole embedding and of every one of ``distill.output_dims``, averaged. The first
        numbers of a Teacher's embedding mean nothing by themselves, so the first ones of the
        model's take on the similarities of its whole.

        Sentences are compared within the batch that is given: ``micro_batch`` examples, on each
        device.
        """
        over, own = over or self.counts(batch), logits.whole()
        total, found = own.sum() * 0, {}
        for term in terms:
            if not isinstance(term.target, Logits):
                raise MattaError(
                    "Sentence embeddings are learned from a Teacher's embeddings alone, not from labels."
                )
            target = term.target.whole()
            value = relation(own, target)
            for d in self.dims:
                value = value + relation(own[:, :d], target)
            value = value * (self.recipe.distill.relation_weight / (1 + len(self.dims)))
            if own.shape[1] == target.shape[1]:
                value = value + cosine_distance(own, target)
            value = value / max(1.0, over["outputs"])
            total = total + term.weight * value
            found[term.name] = value.detach()
        return total, found

    def items(self, batch: Batch) -> int:
        return len(batch["input_ids"])

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Per pair: both embeddings [n, width] (``first``, ``second``), ``score`` and ``alike``.
        Nothing for lone sentences.
        """
        if "score" not in batch:
            return {}
        first, second = logits.detach().float().chunk(2)
        return {
            "first": first,
            "second": second,
            "score": batch["score"].double(),
            "alike": batch["alike"],
        }

    def gathered(self, columns: Columns) -> Columns:
        """Per pair: ``cosine``, and ``found`` (whether no other second sentence is nearer to the
        first), of the whole embedding and of its first numbers; ``score`` and ``alike``.
        """
        if "first" not in columns:
            return columns
        table = {"score": columns["score"], "alike": columns["alike"]}
        for d in (None, *self.dims):
            first, second = (_normalized(columns[name][:, :d]) for name in ("first", "second"))
            cosine = (first * second).sum(1)
            nearest = np.concatenate(
                [(first[i : i + 512] @ second.T).max(1) for i in range(0, len(first), 512)]
            )
            table |= {_at("cosine", d): cosine, _at("found", d): cosine >= nearest - _TIE}
        return table

    def right(self, columns: Columns) -> Columns:
        alike = columns["alike"].astype(bool)
        return (
            {_at("recall@1", d): columns[_at("found", d)][alike] for d in (None, *self.dims)}
            if alike.any()
            else {}
        )

    def summarize(self, columns: Columns) -> dict[str, float]:
        """Correlations of cosine and score, where pairs have scores; the share of alike pairs that
        are found.
        """
        found, right = {}, self.right(columns)
        for d in (None, *self.dims):
            if np.isfinite(columns["score"]).all():
                cosine, score = columns[_at("cosine", d)], columns["score"]
                found[_at("spearman", d)] = _correlation(_ranks(cosine), _ranks(score))
                found[_at("pearson", d)] = _correlation(cosine, score)
            if _at("recall@1", d) in right:
                found[_at("recall@1", d)] = float(right[_at("recall@1", d)].mean())
        return found

    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        if "score" not in batch:
            return {}
        first, second = logits.detach().float().chunk(2)
        return {"first": first, "second": second}

    def agreement(self, ours: Columns, theirs: Columns) -> Columns:
        """Of each pair's first sentence: whether the same second sentence, of all, is the nearest;
        for any two widths.
        """
        same = (_nearest(ours) == _nearest(theirs)).astype(float)
        return {"same": same, "of": np.ones_like(same)}

    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        if "cosine" not in columns:
            return None
        if not np.isfinite(columns["cosine"]).all():
            return "its embeddings are not finite numbers."
        found, count = self.summarize(columns), len(columns["score"])
        if "spearman" in found:
            # the standard error where cosine and score are independent
            error = 1 / math.sqrt(max(1, count - 1))
            if found["spearman"] > 2 * error:
                return None
            return f"the Spearman correlation of {count:,} pairs is {found['spearman']:.3f}, and guessing gives 0 ({error:.3f})."
        chance, asked = 1 / count, int(columns["alike"].sum())
        error = math.sqrt(chance * (1 - chance) / max(1, asked))
        if count == 1 or found.get("recall@1", 1.0) > chance + 2 * error:
            return None
        return f"it finds {found['recall@1']:.3f} of {asked:,} sentences, and guessing finds {chance:.3f}."

    def _texts(self, training: bool) -> tuple[Texts | None, Texts]:
        """What to train on (None unless ``training``) and what to measure on."""
        settings = self.recipe.data
        if settings.held_out:
            only, own = self._open(settings.held_out, "--held-out")
            return (self._open(settings.train, "--data")[0] if training else None), own or only
        train, held_out = self._open(settings.train, "--data")
        if held_out is None:
            start = find.last_tenth(len(train.first), settings.train, "sentences")
            train, held_out = train.part(slice(start)), train.part(slice(start, None))
        return (train if training else None), held_out

    def _open(self, text: str, flag: str) -> tuple[Texts, Texts | None]:
        """What ``text`` names, and its own held-out split if it has one."""
        path, settings = find.find(text, flag), self.recipe.data
        if path is not None:
            files = (
                sorted(p for p in path.rglob("*") if p.suffix in (*LINES, *TABLES))
                if path.is_dir()
                else [path]
            )
            if not files:
                raise find.empty(text, f"text ({', '.join((*LINES, *TABLES))})")
            read = [self._file(file) for file in files]
            # of several files, which need not be alike, the sentences are all that counts
            return (
                read[0] if len(read) == 1 else Texts([s for part in read for s in part.all()])
            ), None
        splits = find.hub_dataset(text, settings.config)
        opened = [
            find.hub_split(splits, text, settings.split),
            find.hub_held_out(splits, text, settings.held_out_split),
        ]
        train, held_out = (
            None if s is None else self._columns(text, s.column_names, s.__getitem__)
            for s in opened
        )
        assert train is not None
        return train, held_out

    def _file(self, path: Path) -> Texts:
        if path.suffix in (".csv", ".tsv") and (found := read_benchmark(path)):
            return found
        if path.suffix in TABLES:
            table = find.read_table(path)
            return self._columns(str(path), list(table), table.__getitem__)
        try:
            return Texts(path.read_text(encoding="utf-8").split("\n"))
        except (UnicodeDecodeError, OSError):
            raise MattaError(
                f"{str(path)!r} is not a text file in UTF-8, one sentence in each line."
            ) from None

    def _columns(self, name: str, known: Sequence[str], column: Callable[[str], Any]) -> Texts:
        """A table's pairs where it has both of ``data.sentences``, else its ``data.text``."""
        settings = self.recipe.data
        if len(settings.sentences) != 2:
            raise MattaError(f"data.sentences is {settings.sentences}, but a pair has two columns.")
        if not set(settings.sentences) <= set(known):
            if settings.text not in known:
                raise find.no_column(
                    name, settings.text, "data.text, or data.sentences for pairs,", known
                )
            return Texts(strings(column(settings.text)))
        first, second = (strings(column(sentence)) for sentence in settings.sentences)
        if settings.score not in known:
            return Texts(first, second)
        try:
            return Texts(first, second, np.asarray(column(settings.score), dtype=np.float64))
        except (TypeError, ValueError):
            raise MattaError(
                f"Column {settings.score!r} of {name!r} (data.score) does not hold numbers."
            ) from None

    def _encoder(self, folder: Path, model: nn.Module) -> Encoder:
        """The tokenizer in the model's folder, else the recipe's, as sentence-transformers would
        use it.
        """
        tokenizer = open_tokenizer(folder, self.recipe.convert.tokenizer, _config(model).vocab_size)
        try:
            card = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            card = {}
        positions, length = (
            int(_config(model).max_position_embeddings),
            self.recipe.data.sequence_length,
        )
        if length > positions or 0 < length < 3:
            raise MattaError(
                f"--sequence-length is {length:,}, but the model has {positions:,} positions, and 3 are needed."
            )
        length = length or min(
            positions, tokenizer.model_max_length, int(card.get("max_seq_length") or LONGEST)
        )
        return Encoder(
            tokenizer,
            length,
            bool(card.get("do_lower_case")),
            fixed=bool(self.recipe.distill.compile),
        )


def _config(model: nn.Module) -> Any:
    if not hasattr(model, "config"):
        raise MattaError(
            "Sentence encoders are models of transformers, with a config: this one has none."
        )
    return model.config


def _at(name: str, dims: int | None) -> str:
    return name if dims is None else f"{name}/{dims}"


def _normalized(rows: np.ndarray) -> np.ndarray:
    return F.normalize(torch.from_numpy(rows), dim=-1).numpy()


def _nearest(columns: Columns) -> np.ndarray:
    """Of each first sentence the number of the second one that is nearest, int64 [n]."""
    first, second = _normalized(columns["first"]), _normalized(columns["second"])
    return np.concatenate(
        [(first[i : i + 512] @ second.T).argmax(1) for i in range(0, len(first), 512)]
    )


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    with np.errstate(invalid="ignore"):  # NaN where one of them is constant
        return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
