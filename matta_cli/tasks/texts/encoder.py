"""How texts become the tokens that a model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from matta_cli.data.split import Batch
from matta_cli.errors import MattaError
from matta_cli.files.reading import finite
from matta_cli.models.left_out import LeftOut
from matta_cli.models.tokenizer import home, open_tokenizer, same_tokens
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.texts.stored import stored

INPUTS = ("input_ids", "attention_mask", "token_type_ids")

_ENDLESS = 1 << 20  # positions of a model that has no greatest number of them
_GRAIN = 8  # lengths of batches are multiples of this
AT_ONCE = 1 << 12  # texts that are tokenized at once


class Tokens:
    """The tokens of texts, one text after the other.

    ids: int32. types: int8, which text of a pair a token is of, where a model is told; else None.
    """

    def __init__(self, ids: Sequence[np.ndarray], types: Sequence[np.ndarray] | None) -> None:
        # one array: millions of small ones would take ten times their contents
        self.ids = np.concatenate(ids)
        self.types = None if types is None else np.concatenate(types)
        self.ends = np.append(0, np.cumsum([len(row) for row in ids]))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def rows(self, indices: Sequence[int]) -> list[slice]:
        """Where the tokens of some texts are."""
        return [slice(self.ends[i], self.ends[i + 1]) for i in indices]


@dataclass(frozen=True)
class Encoder:
    """How texts become tokens, ``length`` of them at most.

    lower: in lower case. fixed: all batches have the greatest length, for graphs that are compiled
    once. prompt: what every text begins with. types: whether the model is told which text of a
    pair a token is of. left_out: what counts the tokens that the tokenizer lacks, if any.
    """

    tokenizer: Any
    length: int
    lower: bool = False
    fixed: bool = False
    prompt: str = ""
    types: bool = False
    left_out: LeftOut | None = None

    def __call__(self, first: Sequence[str], second: Sequence[str] | None = None) -> Tokens:
        """The tokens of texts or pairs, cut to the length, with those that begin and end.

        Raises ``MattaError`` for a text of which the tokenizer makes none.
        """
        ids: list[np.ndarray] = []
        types: list[np.ndarray] | None = [] if self.types and second is not None else None
        options = {"truncation": True, "max_length": self.length, "return_attention_mask": False}
        for start in range(0, len(first), AT_ONCE):
            given = self._given(first, second, slice(start, start + AT_ONCE))
            made = self.tokenizer(*given, **options)
            if self.left_out is not None:
                self.left_out.add([text for own in given for text in own])
            ids += [np.array(row, np.int32) for row in made["input_ids"]]
            for text, row in zip(given[0], made["input_ids"], strict=True):
                if not row:
                    none = "makes no tokens, not even those that begin and end a text, of"
                    raise MattaError(f"The tokenizer {none} {text!r:.60}: no model reads that.")
            if types is not None:
                types += [np.array(row, np.int8) for row in made["token_type_ids"]]
        return Tokens(ids, types)

    def _given(
        self, first: Sequence[str], second: Sequence[str] | None, part: slice
    ) -> list[list[str]]:
        texts = [[self.prompt + text for text in first[part]]]
        texts += [] if second is None else [list(second[part])]
        return [[t.lower() for t in own] if self.lower else own for own in texts]

    def cut(self, tokens: Tokens, first: Sequence[str], second: Sequence[str] | None) -> int:
        """How many of these texts are longer than the length. tokens: as they were made of them."""
        full = np.flatnonzero(np.diff(tokens.ends) == self.length).tolist()
        whole = [[own[i] for i in full] for own in (first, second) if own is not None]
        if not full:
            return 0
        given = self._given(whole[0], whole[1] if len(whole) > 1 else None, slice(None))
        options = {"truncation": True, "max_length": _ENDLESS}  # else it warns of each long one
        made = self.tokenizer(*given, return_attention_mask=False, **options)
        return sum(len(row) > self.length for row in made["input_ids"])

    def batch(self, parts: Sequence[tuple[Tokens, Sequence[int]]]) -> Batch:
        """``INPUTS`` of some texts of each of the parts; L is a multiple of 8, or the greatest."""
        rows = [(tokens, row) for tokens, some in parts for row in tokens.rows(some)]
        longest = self.length if self.fixed else max(row.stop - row.start for _, row in rows)
        length = min(self.length, -(-longest // _GRAIN) * _GRAIN)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        types = torch.zeros_like(ids)
        for k, (tokens, row) in enumerate(rows):
            size = row.stop - row.start
            ids[k, :size] = torch.from_numpy(tokens.ids[row].astype(np.int64))
            mask[k, :size] = 1
            if tokens.types is not None:
                types[k, :size] = torch.from_numpy(tokens.types[row].astype(np.int64))
        told = any(tokens.types is not None for tokens, _ in parts)
        made = {"input_ids": ids, "attention_mask": mask}
        return made | ({"token_type_ids": types} if told else {})

    def differs(self, other: Encoder) -> str:
        """Why ``other``'s model cannot be given what this one makes, in words; empty where it can.

        It may have fewer tokens of a text than ``other`` would give it.
        """
        if not same_tokens(self.tokenizer, other.tokenizer, whole=True):
            return "its tokenizer is another one"
        if self.lower != other.lower:
            return "of its texts and the model's one are in lower case"
        if self.prompt != other.prompt:
            return f"its texts begin with {other.prompt!r}, the model's with {self.prompt!r}"
        if self.types != other.types:
            return "of it and the model one is told which text of a pair a token is of"
        if self.length > other.length:
            return f"it reads {other.length:,} tokens of a text, the model {self.length:,}"
        return ""


def encoder(
    folder: Path,
    model: nn.Module,
    recipe: Recipe,
    longest: int,
    notes: list[str] | None = None,
    *,
    guest: bool = False,
) -> Encoder:
    """How a model reads texts: by the tokenizer in its folder, else the recipe's.

    longest: the most tokens of a text, where neither the recipe, nor the model, nor what
    sentence-transformers left in the folder says less. notes: takes what is to be said of that.
    guest: whether the recipe is another model's: the tokenizer is then the folder's, and the length
    no more than the model has.
    """
    own, length, most = config_of(model), recipe.data.sequence_length, positions(model)
    length = min(length, most) if guest else length
    named = "" if guest else recipe.convert.tokenizer
    tokenizer = open_tokenizer(folder, named, own.vocab_size, own)
    said = stored(folder)
    (notes if notes is not None else []).extend(said.notes)
    if length > most or 0 < length < 3:
        known = f"the model has {most:,} positions, and 3 are needed."
        raise MattaError(f"--sequence-length is {length:,}, but {known}")
    # as sentence-transformers has it: what the folder says goes before the tokenizer's own
    told = tokenizer.model_max_length
    told = int(min(told, longest)) if finite(told) else longest  # some files have 512.0
    length = length or min(most, said.length or told)
    if length < 3:
        reads = f"The model's files say that it reads {length:,} tokens of a text"
        where = "model_max_length in tokenizer_config.json, or max_seq_length"
        raise MattaError(f"{reads}, and 3 are needed: put the right number there ({where}).")
    types = (getattr(own, "type_vocab_size", 0) or 0) > 1
    types = types and "token_type_ids" in tokenizer.model_input_names
    fixed = bool(recipe.distill.compile)
    left_out = None if guest else LeftOut.of(home(folder), tokenizer)
    return Encoder(tokenizer, length, said.lower, fixed, said.prompt, types, left_out)


def positions(model: nn.Module) -> int:
    """How many tokens a model reads at most.

    RoBERTa and its relatives count from the number of the padding on, and have as many fewer.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            padding = module.padding_idx
            return module.num_embeddings - (0 if padding is None else padding + 1)
    most = getattr(config_of(model), "max_position_embeddings", None)
    return int(most) if most and most > 0 else _ENDLESS


def config_of(model: nn.Module) -> Any:
    """The config of a model of transformers. Raises ``MattaError`` where there is none."""
    if not hasattr(model, "config"):
        needed = "Models that read texts are those of transformers, with a config"
        raise MattaError(f"{needed}: this one has none.")
    return model.config
