"""Words with their tags as a split: what is said of a text is a row of each word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from matta_cli.data import split
from matta_cli.data.split import Batch
from matta_cli.errors import MattaError
from matta_cli.losses.classes import IGNORED
from matta_cli.tasks.texts.encoder import AT_ONCE, Encoder, Tokens
from matta_cli.tasks.texts.task import Readers
from matta_cli.tasks.token_classification.read import Rows

NOWHERE = -1  # the place of a word that has no token


class Pieces:
    """The tokens of texts, and of each word the place of its first token, or ``NOWHERE``.

    A word has none that is cut off with the end of its text, or that the tokenizer leaves out.
    Raises ``MattaError`` for a tokenizer that does not say where its tokens come from.
    """

    def __init__(self, encode: Encoder, words: Sequence[Sequence[str]]) -> None:
        if not getattr(encode.tokenizer, "is_fast", False):
            kind = type(encode.tokenizer).__name__
            needed = "a tokenizer that says where its tokens come from (tokenizer.json)"
            raise MattaError(f"Words and tags need {needed}; a {kind} does not.")
        ids: list[np.ndarray] = []
        self.first: list[np.ndarray] = []
        options = {"truncation": True, "max_length": encode.length}
        for start in range(0, len(words), AT_ONCE):
            part = [list(own) for own in words[start : start + AT_ONCE]]
            part = [[w.lower() for w in own] for own in part] if encode.lower else part
            texts = [" ".join(own) for own in part]
            more = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
            made = encode.tokenizer(texts, **more, **options)
            if encode.left_out is not None:
                encode.left_out.add(texts)
            ids += [np.array(row, np.int32) for row in made["input_ids"]]
            each = zip(part, made["offset_mapping"], made["special_tokens_mask"], strict=True)
            self.first += [_first(own, *map(np.array, told)) for own, *told in each]
        self.tokens = Tokens(ids, None)


def _first(words: Sequence[str], spans: np.ndarray, special: np.ndarray) -> np.ndarray:
    """The place of the first token of each word, int16 or more [words], by the tokens' spans.

    A blank that is a token of its own is the first one of the word behind it, as it is where words
    are tokenized one by one, and so in what taggers have learned. special: of each token whether it
    begins or ends a text.
    """
    sizes = np.array([len(word) for word in words])
    begin = np.cumsum(sizes + 1) - sizes - 1
    real = np.flatnonzero(spans[:, 1] > spans[:, 0])  # not those that begin and end a text
    if not len(real):
        return np.full(len(words), NOWHERE)
    at = np.searchsorted(spans[real, 1], begin, side="right")  # the first that ends in the word
    place = real[np.minimum(at, len(real) - 1)]
    inside = (at < len(real)) & (spans[place, 0] < begin + sizes)
    before = np.maximum(place - 1, 0)
    # it holds nothing, or the blank alone; what holds more is of the word before
    blank = (special[before] == 0) & (place > 0) & (spans[before, 0] >= begin - 1)
    blank &= spans[before, 1] <= begin
    return np.where(inside, place - blank, NOWHERE)


class Tagged:
    """Texts as a split: words, and the number of each word's tag."""

    def __init__(
        self,
        rows: Rows,
        tags: Sequence[np.ndarray],
        encode: Encoder,
        readers: Readers,
        names: Sequence[str],
    ) -> None:
        self.rows, self.tags, self.names = rows, list(tags), list(names)
        self.encode, self.readers = encode, readers
        self.numbers = np.array(rows.number, np.int64)
        self.own = Pieces(encode, rows.words)
        self.others: dict[str, Pieces] = {}
        self._foreign()

    def _foreign(self) -> dict[str, Pieces]:
        """The tokens of every other model, by its prefix."""
        return self.readers.made(self.others, lambda encode: Pieces(encode, self.rows.words))

    def __len__(self) -> int:
        return len(self.tags)

    def lost(self) -> int:
        """How many words the model does not read."""
        return sum(int((first == NOWHERE).sum()) for first in self.own.first)

    def unread(self) -> int:
        """How many of the words that it reads another model does not."""
        others = [pieces.first for pieces in self._foreign().values()]
        return sum(
            int(((own != NOWHERE) & (one == NOWHERE)).sum())
            for first in others
            for own, one in zip(self.own.first, first, strict=True)
        )

    def batch(self, indices: Sequence[int]) -> Batch:
        """These texts; see ``TokenClassification``."""
        chosen = list(indices)
        width = self.encode.length if self.encode.fixed else max(len(self.tags[i]) for i in chosen)
        made = self.encode.batch([(self.own.tokens, chosen)])
        first = _padded([self.own.first[i] for i in chosen], width, NOWHERE)
        tags = _padded([self.tags[i] for i in chosen], width, IGNORED)
        made |= {"first": first, "label": tags.masked_fill(first == NOWHERE, IGNORED)}
        known = first != NOWHERE
        for prefix, pieces in self._foreign().items():
            own = self.readers.encoders[prefix].batch([(pieces.tokens, chosen)])
            own["first"] = _padded([pieces.first[i] for i in chosen], width, NOWHERE)
            made |= {prefix + name: tensor for name, tensor in own.items()}
            known &= own["first"] != NOWHERE
        return made | {"known": known}

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        if ids:
            raise split.no_ids("words and tags")
        return self.numbers[list(indices)]

    def digest(self) -> str:
        """Over the words, what their tags are called, and which of them the model reads."""
        words = ["\0".join(own) + "\0\0" for own in self.rows.words]
        return split.digest(["\0".join(self.names), *words, self.numbers, *self.own.first])


def _padded(rows: Sequence[np.ndarray], width: int, value: int) -> torch.Tensor:
    """Rows of numbers as int64 [n, width]."""
    made = torch.full((len(rows), width), value)
    for k, row in enumerate(rows):
        made[k, : min(width, len(row))] = torch.from_numpy(row[:width].astype(np.int64))
    return made
