"""Sentences and pairs of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from matta_cli.data import find, split
from matta_cli.data.split import Batch
from matta_cli.errors import MattaError
from matta_cli.tasks.texts.encoder import Encoder
from matta_cli.tasks.texts.task import Read, Readers, batch

# of the highest score: pairs from there on are searched for (4 of 5 in the STS benchmark)
_ALIKE = 0.8
_WORDS = 8  # words of a text that is cut in two


@dataclass(frozen=True)
class Texts:
    """Sentences, or pairs of them and a score [n] of how alike they are, as the user has them.

    Blank ones keep their place. notes: sentences for people on what was read.
    """

    first: list[str]
    second: list[str] | None = None
    score: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def part(self, rows: slice) -> Texts:
        """Some of the sentences or pairs."""
        second = None if self.second is None else self.second[rows]
        score = None if self.score is None else self.score[rows]
        return Texts(self.first[rows], second, score, self.notes)

    def whole(self) -> Texts:
        """The pairs of which neither sentence is blank."""
        if self.second is None:
            return self
        pairs = zip(self.first, self.second, strict=True)
        kept = [i for i, (first, second) in enumerate(pairs) if first.strip() and second.strip()]
        first, second = ([own[i] for i in kept] for own in (self.first, self.second))
        return Texts(first, second, None if self.score is None else self.score[kept], self.notes)

    def all(self) -> list[str]:
        """Every sentence in its place, both of a pair one after the other."""
        if self.second is None:
            return self.first
        return [s for pair in zip(self.first, self.second, strict=True) for s in pair]

    def sentences(self) -> dict[str, int]:
        """The sentences that are not blank, once each -> the place of the first of them."""
        places: dict[str, int] = {}
        for place, sentence in enumerate(self.all()):
            if sentence.strip():
                places.setdefault(sentence.strip(), place)
        return places


class Sentences:
    """Sentences (text -> its place in the user's data) as a split."""

    def __init__(
        self, sentences: Mapping[str, int], encode: Encoder, name: str, readers: Readers
    ) -> None:
        if not sentences:
            raise find.empty(name, "sentences")
        self.places = np.array(list(sentences.values()), np.int64)
        self.read = Read(encode, readers, list(sentences))

    def __len__(self) -> int:
        return len(self.places)

    def batch(self, indices: Sequence[int]) -> Batch:
        return batch([(self.read, indices)])

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        if ids:
            raise split.no_ids("sentences")
        return self.places[list(indices)]

    def digest(self) -> str:
        return split.digest([self.places, *self.read.first])


class Pairs:
    """Pairs of sentences as a split.

    Texts that are no pairs are cut in two: does the first half find the second? what: which of both
    it is, for people. score: float64 [n], NaN where nobody scored. alike: bool [n]. Raises
    ``MattaError`` where there are none, or their scores do not tell them apart.
    """

    def __init__(self, texts: Texts, encode: Encoder, name: str, readers: Readers) -> None:
        texts = texts.whole()
        first, second, score = texts.first, texts.second, texts.score
        self.what = "pairs of sentences"
        if second is None:
            whole = [text.split() for text in texts.sentences()]
            whole = [words for words in whole if len(words) >= _WORDS]
            first = [" ".join(words[: len(words) // 2]) for words in whole]
            second = [" ".join(words[len(words) // 2 :]) for words in whole]
            self.what = "sentences, whose first half is to find the second "
            self.what += "(no scored pairs: pass some with --held-out)"
        elif score is None:
            self.what += ", the first of which is to find the second "
            self.what += "(no scores: data.score names their column)"
        if not first:
            raise find.empty(name, f"pairs of sentences, nor text of {_WORDS} words to cut in two")
        holes = np.flatnonzero(~np.isfinite([] if score is None else score))
        if len(holes):
            some = f"{len(holes):,} of the scores of {name!r} are missing or not finite"
            raise MattaError(f"{some}, the first that of pair {holes[0] + 1:,}: fill them in.")
        if score is not None and score.min() == score.max():
            same = f"The scores of {name!r} are all the same"
            raise MattaError(f"{same}: pairs must differ in how alike they are.")
        self.score = np.full(len(first), np.nan) if score is None else score
        self.alike = np.ones(len(first), bool) if score is None else score >= _ALIKE * score.max()
        self.first, self.second = (Read(encode, readers, own) for own in (first, second))

    def __len__(self) -> int:
        return len(self.score)

    def batch(self, indices: Sequence[int]) -> Batch:
        chosen = list(indices)
        made = batch([(self.first, chosen), (self.second, chosen)])
        made["score"] = torch.from_numpy(self.score[chosen]).float()
        return made | {"alike": torch.from_numpy(self.alike[chosen])}

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        return np.asarray(indices, dtype=np.int64)

    def digest(self) -> str:
        return split.digest([*self.first.first, *self.second.first, self.score])
