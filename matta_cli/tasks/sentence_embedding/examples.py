"""Sentences and pairs of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from matta_cli.data import find, split
from matta_cli.data.split import Batch
from matta_cli.errors import MattaError

LINES, TABLES = (".txt", ".md"), (".csv", ".tsv", ".jsonl", ".parquet")


LONGEST = 512  # tokens of a sentence, where nothing says less


# of the highest score: pairs from there on are searched for (4 of 5 in the STS benchmark)
_ALIKE = 0.8


WORDS = 8  # words of a text that is cut in two


GRAIN = 8  # lengths of batches are multiples of this


@dataclass(frozen=True)
class Texts:
    """Sentences, or pairs of them, as the user's data has them; ``score`` [n] says how alike a pair
    is.
    """

    first: list[str]
    second: list[str] | None = None
    score: np.ndarray | None = None

    def part(self, rows: slice) -> Texts:
        second, score = (None if part is None else part[rows] for part in (self.second, self.score))
        return Texts(self.first[rows], second, score)  # type: ignore[arg-type]

    def all(self) -> list[str]:
        """Every sentence in its place, both of a pair one after the other."""
        return (
            self.first
            if self.second is None
            else [s for pair in zip(self.first, self.second, strict=True) for s in pair]
        )

    def sentences(self) -> dict[str, int]:
        """The sentences that are not blank, once each -> the place of the first of them."""
        found: dict[str, int] = {}
        for place, sentence in enumerate(self.all()):
            if sentence.strip():
                found.setdefault(sentence.strip(), place)
        return found


@dataclass(frozen=True)
class Encoder:
    """How sentences become tokens. fixed: all batches have the greatest length, for graphs that are
    compiled once.
    """

    tokenizer: Any
    length: int
    lower: bool = False
    fixed: bool = False

    def __call__(self, sentences: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each sentence, int32, with those that begin and end it; what is too long is
        cut.
        """
        found: list[np.ndarray] = []
        for start in range(0, len(sentences), 1 << 12):
            part = [s.lower() if self.lower else s for s in sentences[start : start + (1 << 12)]]
            ids = self.tokenizer(
                part, truncation=True, max_length=self.length, return_attention_mask=False
            )["input_ids"]
            found += [np.array(row, np.int32) for row in ids]
        return found

    def batch(self, rows: Sequence[np.ndarray]) -> Batch:
        """``input_ids`` and ``attention_mask`` int64 [n, L], L a multiple of 8 but for the longest
        possible.
        """
        longest = self.length if self.fixed else max(map(len, rows))
        length = min(self.length, -(-longest // GRAIN) * GRAIN)
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
        return self.encode.batch(
            [self.tokens[self.ends[i - 1] if i else 0 : self.ends[i]] for i in indices]
        )

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        if ids:
            raise split.no_ids("sentences")
        return self.places[list(indices)]

    def digest(self) -> str:
        return split.digest([self.places, self.tokens, self.ends])


class Pairs:
    """Pairs of sentences as a split. Texts that are no pairs are cut in two: does the first half
    find the second?
    """

    def __init__(self, texts: Texts, encode: Encoder, name: str) -> None:
        first, second, score = texts.first, texts.second, texts.score
        self.what = "pairs of sentences"
        if second is None:
            cut = [words for text in texts.sentences() if len(words := text.split()) >= WORDS]
            first = [" ".join(words[: len(words) // 2]) for words in cut]
            second = [" ".join(words[len(words) // 2 :]) for words in cut]
            self.what = "sentences, whose first half is to find the second (no scored pairs: pass some with --held-out)"
        if not first:
            raise find.empty(name, f"pairs of sentences, nor text of {WORDS} words to cut in two")
        self.score = np.full(len(first), np.nan) if score is None else score
        if score is not None and (not np.isfinite(score).all() or score.min() == score.max()):
            raise MattaError(
                f"The scores of {name!r} are missing in places, or all the same: pairs must differ in how alike they are."
            )
        self.alike = np.ones(len(first), bool) if score is None else score >= _ALIKE * score.max()
        self.encode, self.first, self.second = encode, encode(first), encode(second)

    def __len__(self) -> int:
        return len(self.first)

    def batch(self, indices: Sequence[int]) -> Batch:
        chosen = list(indices)
        batch = self.encode.batch([rows[i] for rows in (self.first, self.second) for i in chosen])
        score, alike = (
            torch.from_numpy(self.score[chosen]).float(),
            torch.from_numpy(self.alike[chosen]),
        )
        return batch | {"score": score, "alike": alike}

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        return np.asarray(indices, dtype=np.int64)

    def digest(self) -> str:
        return split.digest([*self.first, *self.second, self.score])


def read_benchmark(path: Path) -> Texts | None:
    """A file of the STS benchmark in its own form: tab-separated, no header, no quotes, the score
    fifth, then the sentences.
    """
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if line]
        if not rows or min(map(len, rows)) < 7:
            return None
        return Texts(
            [row[5] for row in rows],
            [row[6] for row in rows],
            np.array([float(row[4]) for row in rows]),
        )
    except (UnicodeDecodeError, OSError, ValueError):
        return None


def strings(values: Iterable[Any]) -> list[str]:
    return ["" if value is None else str(value) for value in values]
