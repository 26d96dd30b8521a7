"""Sentences and pairs of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from matta_cli.data import find, split
from matta_cli.data.split import Batch
from matta_cli.errors import MattaError

# of the highest score: pairs from there on are searched for (4 of 5 in the STS benchmark)
_ALIKE = 0.8
_WORDS = 8  # words of a text that is cut in two
_GRAIN = 8  # lengths of batches are multiples of this
_AT_ONCE = 1 << 12  # sentences that are tokenized at once


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


@dataclass(frozen=True)
class Encoder:
    """How sentences become tokens, ``length`` of them at most.

    lower: in lower case. fixed: all batches have the greatest length, for graphs that are compiled
    once. prompt: what every sentence begins with.
    """

    tokenizer: Any
    length: int
    lower: bool = False
    fixed: bool = False
    prompt: str = ""

    def __call__(self, sentences: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each sentence, int32, cut to the length, with those that begin and end."""
        options = {"truncation": True, "max_length": self.length, "return_attention_mask": False}
        rows: list[np.ndarray] = []
        for start in range(0, len(sentences), _AT_ONCE):
            part = [self.prompt + s for s in sentences[start : start + _AT_ONCE]]
            part = [sentence.lower() if self.lower else sentence for sentence in part]
            rows += [
                np.array(row, np.int32) for row in self.tokenizer(part, **options)["input_ids"]
            ]
        return rows

    def batch(self, rows: Sequence[np.ndarray]) -> Batch:
        """``input_ids`` and ``attention_mask``; L is a multiple of 8, or the greatest length."""
        longest = self.length if self.fixed else max(map(len, rows))
        length = min(self.length, -(-longest // _GRAIN) * _GRAIN)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for k, row in enumerate(rows):
            ids[k, : len(row)] = torch.from_numpy(row.astype(np.int64))
            mask[k, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}


class Sentences:
    """Sentences (text -> its place in the user's data) as a split."""

    def __init__(self, sentences: Mapping[str, int], encode: Encoder, name: str) -> None:
        if not sentences:
            raise find.empty(name, "sentences")
        self.places, self.encode = np.array(list(sentences.values()), np.int64), encode
        tokens = encode(list(sentences))
        # one array: millions of small ones would take ten times their contents
        self.tokens, self.ends = np.concatenate(tokens), np.cumsum([len(row) for row in tokens])

    def __len__(self) -> int:
        return len(self.places)

    def batch(self, indices: Sequence[int]) -> Batch:
        starts = [self.ends[i - 1] if i else 0 for i in indices]
        rows = [self.tokens[start : self.ends[i]] for start, i in zip(starts, indices, strict=True)]
        return self.encode.batch(rows)

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        if ids:
            raise split.no_ids("sentences")
        return self.places[list(indices)]

    def digest(self) -> str:
        return split.digest([self.places, self.tokens, self.ends])


class Pairs:
    """Pairs of sentences as a split.

    Texts that are no pairs are cut in two: does the first half find the second? what: which of both
    it is, for people. score: float64 [n], NaN where nobody scored. alike: bool [n]. Raises
    ``MattaError`` where there are none, or their scores do not tell them apart.
    """

    def __init__(self, texts: Texts, encode: Encoder, name: str) -> None:
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
        self.encode, self.first, self.second = encode, encode(first), encode(second)

    def __len__(self) -> int:
        return len(self.first)

    def batch(self, indices: Sequence[int]) -> Batch:
        chosen = list(indices)
        batch = self.encode.batch([rows[i] for rows in (self.first, self.second) for i in chosen])
        batch["score"] = torch.from_numpy(self.score[chosen]).float()
        return batch | {"alike": torch.from_numpy(self.alike[chosen])}

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        return np.asarray(indices, dtype=np.int64)

    def digest(self) -> str:
        return split.digest([*self.first, *self.second, self.score])
