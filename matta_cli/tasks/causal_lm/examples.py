"""Sequences of tokens, and passages whose last word is asked for."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from matta_cli.data import split
from matta_cli.data.split import Batch
from matta_cli.errors import MattaError
from matta_cli.models.tokenizer import padding

_PASSAGES = 500  # passages taken from held-out paragraphs
_CANDIDATES = 1 << 14  # lines that are held to choose them from
_WORDS = 10  # words of a paragraph that makes a passage
_BETWEEN = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])")  # two words of letters
_NEAR = 1 << 12  # characters of a piece's end in which words are looked for
_TAIL = 1 << 14  # characters of a passage: its beginning counts for nothing


class Packed:
    """Tokens cut into sequences of ``length``, or a ``shorter`` one where there are too few.

    begin: the tokens that every text begins with, and so does each sequence: a model that has seen
    no other is worse at those. The next token of the text is there to be read, not predicted, as
    the first one is in a sequence without them. Raises ``MattaError`` where there are too few
    tokens for a sequence.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        length: int,
        name: str,
        begin: Sequence[int] = (),
        *,
        shorter: bool = False,
    ) -> None:
        own = max(2, length - len(begin))
        if shorter:
            own = max(2, min(own, len(tokens)))
        if len(tokens) < own:
            few = f"{name!r} has {len(tokens):,} tokens, too few for a sequence of {own:,}"
            raise MattaError(f"{few}: pass more text, or a smaller --sequence-length.")
        self.tokens, self.own, self.begin = tokens, own, list(begin)
        self.length = own + len(begin)

    def __len__(self) -> int:
        return len(self.tokens) // self.own

    def batch(self, indices: Sequence[int]) -> Batch:
        """``input_ids`` int64 [B, L]."""
        starts = np.asarray(list(indices), dtype=np.int64) * self.own
        if self.begin:  # what a text begins with here already stands there once
            there = self.tokens[starts[:, None] + np.arange(len(self.begin))]
            starts += len(self.begin) * (there == self.begin).all(1)
            starts = np.minimum(starts, len(self.tokens) - self.own)
        rows = self.tokens[starts[:, None] + np.arange(self.own)].astype(np.int64)
        begin = np.tile(np.array(self.begin, dtype=np.int64), (len(rows), 1))
        return {"input_ids": torch.from_numpy(np.concatenate([begin, rows], 1))}

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        if ids:
            raise split.no_ids("text")
        return np.asarray(indices, dtype=np.int64)

    def digest(self) -> str:
        begin = f"{self.begin} " if self.begin else ""
        return split.digest([f"{self.length} {begin}{self.tokens.dtype} ", self.tokens])


class Passages:
    """Passages whose last word is to be predicted, as LAMBADA defines it.

    The last word is what follows the last space; it counts if every one of its tokens is the
    likeliest given all before it (Paperno et al. 2016, arXiv 1606.06031). Longer passages than
    ``length`` tokens lose their beginning. Passages without a space, or whose last word is longer
    than that, are left out. ``begin``: the tokens that every text begins with.
    """

    def __init__(
        self,
        tokenizer: Any,
        texts: Sequence[str],
        length: int,
        begin: Sequence[int] = (),
        vocabulary: int = sys.maxsize,
    ) -> None:
        # tokens, and how many of them are the last word
        self.rows: list[tuple[np.ndarray, int]] = []
        self.padding = padding(tokenizer, vocabulary)
        texts = [text for text in texts if text.rpartition(" ")[0].strip()]
        contexts = encode(tokenizer, [text.rpartition(" ")[0] for text in texts])
        for context, whole in zip(contexts, encode(tokenizer, texts), strict=True):
            word, room = len(whole) - len(context), length - len(begin)
            if 0 < word < min(room, len(whole)):
                self.rows.append((np.array([*begin, *whole[-room:]], dtype=np.int64), word))

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        return np.asarray(indices, dtype=np.int64)

    def digest(self) -> str:
        return split.digest([tokens for tokens, _ in self.rows])

    def batch(self, indices: Sequence[int]) -> Batch:
        """``input_ids`` and ``target``, padded on the right: a causal model never looks there."""
        rows = [self.rows[i] for i in indices]
        ids = torch.full((len(rows), max(len(tokens) for tokens, _ in rows)), self.padding)
        target = torch.zeros_like(ids, dtype=torch.bool)
        for k, (tokens, word) in enumerate(rows):
            ids[k, : len(tokens)] = torch.from_numpy(tokens)
            target[k, len(tokens) - word : len(tokens)] = True
        return {"input_ids": ids, "target": target}


class Paragraphs:
    """At most 500 passages from the lines of text that have ten words or more.

    They are evenly spread, of however much text. What follows the last word (a full stop, a
    quotation mark) is taken off; a passage that then does not end in a word of letters is left out.
    A longer one than 16,384 characters loses its beginning.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count, self.every = 0, 1

    def add(self, text: str) -> None:
        """Look through whole lines of a document."""
        for line in text.splitlines():
            line = re.sub(r"[\W_]+$", "", line[-_TAIL:]).strip()
            word = line.rpartition(" ")[2]
            if len(line.split()) < _WORDS or not re.fullmatch(r"[^\W\d_]+([-'’][^\W\d_]+)*", word):
                continue
            if self.count % self.every == 0:
                self.lines.append(line)
            self.count += 1
            if len(self.lines) > _CANDIDATES:  # every second one stands for both
                self.lines, self.every = self.lines[::2], 2 * self.every

    def passages(self) -> list[str]:
        """The passages of all text that was added."""
        if len(self.lines) <= _PASSAGES:
            return self.lines
        return [self.lines[i] for i in np.linspace(0, len(self.lines) - 1, _PASSAGES).astype(int)]


class Parts:
    """Pieces of text cut anew, so that their tokens, one after the other, are those of the whole.

    Where a piece ends, at a line's end, some tokenizers join what is before with what comes (a full
    stop and the line's end), and some put a blank before each text that they are given. Between two
    words, at the blank before the second, none joins; where a blank is put there, it is left out.
    """

    def __init__(self, tokenizer: Any) -> None:
        one, other, both, blank = encode(tokenizer, ["a", "b", "a b", " b"])
        self.given = one + blank != both and one + other == both
        self.rest, self.begun = "", False

    def next(self, piece: str, last: bool) -> str:
        """What to make tokens of, for this piece of a document; ``last``: its last one."""
        text, given = self.rest + piece, self.given and self.begun
        between = [] if last else [*_BETWEEN.finditer(text, max(0, len(text) - _NEAR))]
        end = between[-1].start() if between else len(text)
        self.rest, self.begun = text[end:], not last
        return text[given and text.startswith(" ") : end]


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, without any that would begin or end it."""
    if not texts:
        return []
    options = {"add_special_tokens": False, "return_attention_mask": False}
    return tokenizer(list(texts), **options)["input_ids"]


def refuse_beyond(ids: Sequence[int], vocabulary: int) -> None:
    """Raise ``MattaError`` where a token is none of the model's ``vocabulary``."""
    if max(ids, default=0) >= vocabulary:
        made = f"The tokenizer makes the token {max(ids):,}"
        known = f"the model's vocabulary is {vocabulary:,}"
        raise MattaError(f"{made}, but {known}: pass the model's own with --tokenizer.")
