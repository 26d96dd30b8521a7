"""Token classification: a tag of each word; span F1 and token accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from matta_cli.data import find
from matta_cli.data.folders import shown
from matta_cli.data.lines import plain
from matta_cli.data.split import Batch, Columns, Data, Split, sample
from matta_cli.errors import MattaError, install
from matta_cli.losses import classes as losses
from matta_cli.losses.classes import IGNORED
from matta_cli.losses.targets import Counts, Logits, Losses, Term
from matta_cli.report.schema import Metric
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.class_names import contradiction, known_as, names_of
from matta_cli.tasks.task import above, raw
from matta_cli.tasks.texts.encoder import Encoder
from matta_cli.tasks.texts.task import LabelTask
from matta_cli.tasks.token_classification import schemes
from matta_cli.tasks.token_classification.examples import Tagged
from matta_cli.tasks.token_classification.read import Rows, read_rows
from matta_cli.tasks.unlabelled import sorted_out

_F1 = Metric("f1", "span F1", higher=True)
_ACCURACY = Metric("accuracy", "token accuracy", higher=True)
_OUTSIDE = "O"
_MARKS = ("B-", "I-", "E-", "S-")  # of a tag that is part of a span
_PADDING = -1
_WORDS = 6  # of which the tags are shown


class TokenClassification(LabelTask):
    """One of C tags of each word.

    A tag is what is said at a word's first token; of the others nothing is learned or measured. So
    outputs are of words, whatever a model's tokens are.

    Batches, W words at most: the tokens; ``first`` int64 [B, W], the place of each word's first
    token, -1 where it has none; ``label`` int64 [B, W], -100 where it has none; ``known`` bool [B,
    W], the words that all models read.
    """

    name = "token_classification"
    output = "tags"
    models = "Taggers"
    alike = "words of the same tag"
    metrics: tuple[Metric, ...] = (_F1, _ACCURACY)

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.names: list[str] = []
        self.widest = 0  # words of the longest text that is measured

    def encoder(
        self, folder: Path, model: nn.Module, notes: list[str], *, guest: bool = False
    ) -> Encoder:
        own = super().encoder(folder, model, notes, guest=guest)
        return replace(own, prompt="", types=False)

    def data(self, folder: Path, model: nn.Module, *, training: bool = True) -> Data:
        settings = self.recipe.data
        find.no_streaming(settings, "words and tags")
        count, names = self.outputs(model), names_of(model)
        self.names = [names.get(k, str(k)) for k in range(count)]
        spans = _spans(self.names)
        self.metrics = (_F1, _ACCURACY) if spans else (_ACCURACY,)
        if spans:
            _entities()  # what is missing is said before anything is read
        train, held_out = read_rows(settings, training)
        train, held_out, lacking = sorted_out(self, train, held_out, "texts")
        self.notes += [*lacking, *contradiction(model)]
        encode = self.encoder(folder, model, self.notes)

        def opened(rows: Rows, part: str) -> Tagged:
            made = Tagged(rows, self._numbers(rows, names), encode, self.readers, self.names)
            words = sum(map(len, rows.words))
            seen = set(np.concatenate(made.tags).tolist()) - {IGNORED}
            rows.notes += schemes.told(rows, part) if spans else []
            absent = [tag for k, tag in enumerate(self.names) if seen and k not in seen]
            if absent:  # as where the model's are BIOES and the data's BIO
                rows.notes.append(f"{part}: no word has the tag {shown(absent, 8)}.")
            if lost := made.lost():
                why = f"beyond the {encode.length:,} tokens that are read of a text, or no token"
                rows.notes.append(f"{part}: {lost:,} of {words:,} words are {why}: left out.")
            if lost := made.unread():
                rows.notes.append(f"{part}: {lost:,} more words are beyond what the Teacher reads.")
            return made

        name = settings.held_out or settings.train
        measured = opened(held_out, f"{name!r}, held out")
        self.widest = max(map(len, held_out.words))
        split = sample(measured, settings.eval_examples)
        if train is None:
            return self.described(measured, "", [split], "texts", "texts", held_out.notes)
        texts = opened(train, f"{settings.train!r}, to train on")
        notes = list(dict.fromkeys((*train.notes, *held_out.notes)))
        seen = {plain(" ".join(own)) for own in train.words}
        if both := sum(plain(" ".join(own)) in seen for own in held_out.words):
            where = f"also stand in the data to train on, of {len(held_out):,}"
            notes.append(f"{both:,} held-out texts {where}.")
        size = f"{len(train):,} texts of {sum(map(len, train.words)):,} words"
        return self.described(
            texts, size, [split], "texts", "texts", notes, unlabelled=not train.known.all()
        )

    def _numbers(self, rows: Rows, names: dict[int, str]) -> list[np.ndarray]:
        """The numbers of each text's tags, ``IGNORED`` where it has none.

        Raises ``MattaError`` for one that is not known.
        """
        known: dict[Any, int] = {**known_as(names)}
        known |= schemes.other(rows, known)
        for k in range(len(self.names)):
            known[f"LABEL_{k}"] = k
            if not names:
                known[k] = known[str(k)] = k

        def number(tag: Any) -> int:
            plain = isinstance(tag, (str, int)) and not isinstance(tag, bool)
            return known.get(tag, -1) if plain else -1

        found = []
        for tags, words, where in zip(rows.tags, rows.words, rows.where, strict=True):
            numbers = [number(tag) for tag in tags] or [IGNORED] * len(words)
            if -1 in numbers:
                at = numbers.index(-1)
                every = [t for own in rows.tags for t in own]
                odd = sum(number(tag) < 0 for tag in every)
                have = f" ({odd:,} words have such tags)" if odd > 1 else ""
                has = f"The word {words[at]!r} of {where} has the tag {tags[at]!r}{have}"
                list_of = shown([repr(names[k]) for k in sorted(names)], 20)
                if names and not isinstance(tags[at], str):
                    list_of += ": write tags by their names"
                hint = list_of or f"numbers from 0 to {len(self.names) - 1}, as they have no names"
                raise MattaError(f"{has}, which is none of the model's: {hint}.")
            found.append(np.array(numbers, np.int64))
        return found

    def first(self, split: Split) -> str:
        """Also the tag that is said at each of the first words' first tokens."""
        batch, words = split.batch([0]), list[str]()
        for place, tag in zip(batch["first"][0].tolist(), batch["label"][0].tolist(), strict=True):
            if place != _PADDING and len(words) < _WORDS:
                named = "none" if tag == IGNORED else self.names[tag]
                words.append(f"{self.tokenizer.decode(batch['input_ids'][0][place])!r} {named}")
        rest = ", ..." if len(words) < int((batch["first"][0] != _PADDING).sum()) else ""
        return f"{self.shown(batch)}, tags {', '.join(words)}{rest}"

    def forward(self, model: Any, batch: Batch) -> Tensor:
        """Logits of words [B, W, tags]; of a word without a token they are nobody's."""
        made = raw(model(**self.inputs(model, batch)))
        first = batch[getattr(model, "reads", "") + "first"].clamp(min=0)
        return made.gather(1, first[..., None].expand(-1, -1, made.shape[-1]))

    def example(self, model: nn.Module, size: int = 4) -> Batch:
        batch = super().example(model, size)
        length, mask = batch["input_ids"].shape[1], batch["attention_mask"].bool()
        first = torch.arange(length).expand(size, -1).masked_fill(~mask, _PADDING)
        label = torch.zeros_like(first).masked_fill(~mask, IGNORED)
        return batch | {"first": first, "label": label, "known": mask}

    def taught(self, batch: Batch) -> Tensor:
        return batch["first"] != _PADDING

    def counts(self, batch: Batch) -> Counts:
        known = float(batch["known"].sum())
        return {"labels": known, "outputs": known}

    def positions(self, batch: Batch) -> float:
        return float(batch["label"].numel())

    def objective(
        self, logits: Logits, batch: Batch, terms: Sequence[Term], over: Counts | None = None
    ) -> Losses:
        own, over = self.recipe.distill, over or self.counts(batch)
        label, known = batch["label"], batch["known"]
        return losses.of_classes(
            logits, label, terms, over, own.temperature, own.compile, counted=known
        )

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Per text: ``right`` of ``words``, ``truth`` and ``said`` of each tag, ``finite``; where
        tags are of spans, those that are ``found`` of ``spans``, where ``marked`` are said.
        """
        label, own = batch["label"], logits.argmax(-1)
        there = label != IGNORED
        hot = [
            torch.nn.functional.one_hot(tags.masked_fill(~there, 0), logits.shape[-1])
            for tags in (label, own)
        ]
        truth, said = ((tags * there[..., None]).sum(1).double() for tags in hot)
        columns = {"truth": truth, "said": said, "words": there.sum(1).double()}
        columns["right"] = ((label == own) & there).sum(1).double()
        finite = logits.isfinite().all(-1) | ~there
        columns["finite"] = finite.all(1).double()
        if not _spans(self.names):
            return columns
        entities, counts = _entities(), []
        for row, mine, here in zip(label.cpu(), own.cpu(), there.cpu(), strict=True):
            spans, marked = (
                set(entities([self.names[k] for k in tags[here].tolist()])) for tags in (row, mine)
            )
            counts.append((len(spans & marked), len(spans), len(marked)))
        table = torch.tensor(counts, dtype=torch.float64)
        return columns | dict(zip(("found", "spans", "marked"), table.unbind(1), strict=True))

    def summarize(self, columns: Columns) -> dict[str, float]:
        """Span F1 over all texts, as seqeval's; 0 where there are no spans, and none is said."""
        values = {"accuracy": float(columns["right"].sum() / max(1.0, columns["words"].sum()))}
        if "found" in columns:
            both = float(columns["spans"].sum() + columns["marked"].sum())
            values = {"f1": 2 * float(columns["found"].sum()) / max(1.0, both), **values}
        return values

    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        said = logits.argmax(-1).masked_fill(batch["label"] == IGNORED, _PADDING)
        more = max(0, self.widest - said.shape[1])
        return {"tag": torch.nn.functional.pad(said, (0, more), value=_PADDING)[:, : self.widest]}

    def agreement(self, ours: Columns, theirs: Columns) -> Columns:
        one, other = ours["tag"], theirs["tag"]
        there = one != _PADDING
        same = ((one == other) & there).sum(1).astype(float)
        return {"same": same, "of": there.sum(1).astype(float)}

    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        """Chance is what its tags, dealt out to words at random, would get right."""
        if not columns["finite"].all():
            wrong = int((columns["finite"] == 0).sum())
            return f"what it says of {wrong} of {len(columns['finite'])} texts is not finite."
        words = float(columns["words"].sum())
        shares = [columns[name].sum(0) / max(1.0, words) for name in ("truth", "said")]
        chance, right = float((shares[0] * shares[1]).sum()), self.summarize(columns)["accuracy"]
        if above(right, chance, int(words)):
            return None
        guessing = f"the same tags dealt out at random get {chance:.4f}"
        return f"its token accuracy is {right:.4f} on {int(words):,} words, and {guessing}."


def _spans(names: Sequence[str]) -> bool:
    """Whether tags are of spans: all but ``O`` say which part of one a word is."""
    marked = [name for name in names if name != _OUTSIDE]
    return bool(marked) and all(name.startswith(_MARKS) for name in marked)


def _entities() -> Any:
    """seqeval's reading of spans in a row of tags."""
    try:
        from seqeval.metrics.sequence_labeling import get_entities
    except ImportError:
        raise MattaError(f"Span F1 needs seqeval: {install('tagging')}.") from None
    return get_entities
