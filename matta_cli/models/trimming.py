"""A tokenizer, and a model that reads its tokens, with some of the tokens alone.

Any text whose tokens are all kept becomes the same tokens as before, under new numbers. Why, for
each kind of tokenizer, is said where it is seen to.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli.errors import MattaError
from matta_cli.models import left_out

# Files of a vocabulary in other formats than tokenizer.json, which alone is written anew.
_OLD = (
    *("tokenizer*.json", "tokenizer.model", "vocab.*", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "spiece.model", "sentencepiece*.model", "*.tiktoken"),
)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_MARKS = ("config.json", "generation_config.json")

Card = dict[str, Any]  # what a tokenizer.json holds


def card_of(tokenizer: Any) -> Card:
    """A tokenizer as its tokenizer.json. Raises ``MattaError`` where it cannot be trimmed."""
    backend, name = getattr(tokenizer, "backend_tokenizer", None), type(tokenizer).__name__
    if backend is None:
        raise _impossible(name, "it has no tokenizer.json")
    card: Card = json.loads(backend.to_str())
    model = card["model"]
    marks = ("continuing_subword_prefix", "end_of_word_suffix")
    kind, others = model["type"], sorted(_processors(card.get("post_processor")) - _KNOWN)
    if kind not in _NEEDS:
        raise _impossible(kind, "this kind is not known here")
    if kind == "BPE" and any(model.get(mark) for mark in marks):
        raise _impossible(kind, "it marks where words begin or end")
    if kind == "BPE" and model.get("dropout"):
        raise _impossible(kind, "its merges are left to chance (dropout)")
    if others:
        raise _impossible(kind, f"it ends in a {others[0]}, which is not known here")
    return card


def _impossible(kind: str, why: str) -> MattaError:
    return MattaError(f"--trim-vocab is not possible with this tokenizer ({kind}): {why}.")


def needed(card: Card, seen: Collection[int]) -> list[int]:
    """The numbers of the tokens to keep so that ``seen`` come out as before, in their order.

    These are, besides, special and added tokens, bytes that stand for what has no token, the
    characters of what is kept as tokens of their own, and what a kind of tokenizer needs.
    """
    ids = _ids(card["model"])
    names = {number: token for token, number in ids.items()}
    added = {token["id"] for token in card["added_tokens"]}
    kept = {*seen, *added, *(n for token, n in ids.items() if _BYTE.fullmatch(token))}
    words = [names[number] for number in kept - added if number in names]
    words = [word for word in words if not _BYTE.fullmatch(word)]
    kept |= _NEEDS[card["model"]["type"]](card, ids, words)
    return sorted(kept)


def _pieces(card: Card, ids: Mapping[str, int], words: Iterable[str]) -> set[int]:
    """WordPiece takes the longest token that goes on: of fewer tokens that is the same one, if it
    is kept.
    """
    begun = card["model"].get("continuing_subword_prefix", "")
    own = {char for word in words for char in word.removeprefix(begun)} if begun else set()
    return {ids[token] for char in own for token in (char, begun + char) if token in ids}


def _unigrams(card: Card, ids: Mapping[str, int], words: Iterable[str]) -> set[int]:
    """A Unigram takes the likeliest way through a text, and of fewer ways that is the same one.

    What has no token costs more than the least likely token, which therefore stays: a new way that
    takes a character for unknown is then less likely than the old one by its token.
    """
    vocabulary = card["model"]["vocab"]
    least = min(range(len(vocabulary)), key=lambda number: vocabulary[number][1])
    unknown = card["model"].get("unk_id")
    kept = {least, *([] if unknown is None else [unknown])}
    return kept | {ids[char] for word in words for char in word if char in ids}


def _merged(card: Card, ids: Mapping[str, int], words: Iterable[str]) -> set[int]:
    """BPE merges what comes first in its list: with fewer merges that is the same one, as long as
    all that went into a token are kept, with what they made on the way.
    """
    ranks = {pair: rank for rank, pair in enumerate(_merges(card["model"]))}
    kept = set(_alphabet(card))
    for word in words:
        parts = list(word)
        kept |= {word, *parts}
        while pairs := [ranks.get(pair, math.inf) for pair in pairwise(parts)]:
            best = min(pairs)
            if best == math.inf:
                break
            at = pairs.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            kept.add(parts[at])
    unknown = card["model"].get("unk_token")
    return {ids[token] for token in (*kept, unknown) if token in ids}


def _words(card: Card, ids: Mapping[str, int], words: Iterable[str]) -> set[int]:
    """A word is a token, or unknown."""
    unknown = card["model"].get("unk_token")
    return {ids[unknown]} if unknown in ids else set()


_NEEDS = {"WordPiece": _pieces, "Unigram": _unigrams, "BPE": _merged, "WordLevel": _words}


def trimmed(card: Card, kept: Sequence[int]) -> Card:
    """The tokenizer with these tokens alone, numbered from 0 in their order."""
    new = {old: number for number, old in enumerate(kept)}
    model: Card = dict(card["model"])
    names = {token: new[old] for token, old in _ids(model).items() if old in new}
    if model["type"] == "Unigram":
        model["vocab"] = [entry for old, entry in enumerate(model["vocab"]) if old in new]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = names
    if model["type"] == "BPE":
        model["merges"] = [
            list(pair) for pair in _merges(model) if {*pair, "".join(pair)} <= names.keys()
        ]
    made = {**card, "model": model}
    made["added_tokens"] = [{**token, "id": new[token["id"]]} for token in card["added_tokens"]]
    made["post_processor"] = _renumbered(card.get("post_processor"), new)
    if padding := card.get("padding"):
        made["padding"] = {**padding, "pad_id": new.get(padding["pad_id"], 0)}
    return made


def kept_of(own: Any, whole: Any) -> list[int] | None:
    """The numbers that a ``whole`` tokenizer has for the tokens of one that was trimmed out of it;
    None where that is no such one.
    """
    if getattr(own, "backend_tokenizer", None) is None:
        return None
    try:
        card, small = card_of(whole), json.loads(own.backend_tokenizer.to_str())
    except MattaError:
        return None
    known = {token["content"]: token["id"] for token in card["added_tokens"]}
    known = {**_ids(card["model"]), **known}
    names = {number: name for name, number in own.get_vocab().items()}
    kept = [known.get(names.get(number, ""), -1) for number in range(len(names))]
    if -1 in kept or kept != sorted(set(kept)) or len(kept) == len(known):
        return None
    if not {token["id"] for token in card["added_tokens"]} <= set(kept):
        return None  # which trimming never leaves out
    made = trimmed(card, kept)
    alike = all(made[part] == small[part] for part in ("added_tokens", "normalizer"))
    return kept if alike and made["model"] == small["model"] else None


def _ids(model: Card) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {token: number for number, (token, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _merges(model: Card) -> list[tuple[str, str]]:
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    return [(first, second) for first, second in pairs]


def _alphabet(card: Card) -> list[str]:
    """What every byte is to a tokenizer of bytes; empty for one of characters."""
    if '"ByteLevel"' not in json.dumps([card.get("pre_tokenizer"), card.get("decoder")]):
        return []
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel.alphabet()


_KNOWN = {"TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel", "Sequence"}


def _processors(processor: Card | None) -> set[str]:
    """The kinds of what puts special tokens around a text."""
    if processor is None:
        return set()
    inner = [_processors(one) for one in processor.get("processors", ())]
    return {processor["type"]}.union(*inner)


def _renumbered(processor: Card | None, new: Mapping[int, int]) -> Card | None:
    if processor is None:
        return None
    made = dict(processor)
    for name in {"sep", "cls"} & made.keys():  # of BERT's and RoBERTa's
        token, old = made[name]
        made[name] = [token, new[old]]
    if "special_tokens" in made:
        made["special_tokens"] = {
            name: {**token, "ids": [new[old] for old in token["ids"]]}
            for name, token in made["special_tokens"].items()
        }
    if "processors" in made:
        made["processors"] = [_renumbered(one, new) for one in made["processors"]]
    return made


def write(tokenizer: Any, card: Card, folder: Path, kept: Sequence[int]) -> None:
    """Put a trimmed tokenizer in the place of a folder's own, and its numbers where files name one.

    tokenizer: as it was before; it becomes the trimmed one.
    """
    from tokenizers import Tokenizer

    left_out.write(json.loads(tokenizer.backend_tokenizer.to_str()), folder)
    for path in [path for pattern in _OLD for path in folder.glob(pattern)]:
        path.unlink()
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(card))
    tokenizer.save_pretrained(str(folder), legacy_format=False)
    for path in (folder / name for name in _MARKS):
        if path.is_file():
            values = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(marks(values, kept), indent=2), encoding="utf-8")


def marks(values: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """A configuration whose special tokens (``pad_token_id``) have their new numbers."""
    new = {old: number for number, old in enumerate(kept)}
    made = dict(values)
    for name in (name for name in values if name.endswith("_token_id")):
        old = values[name]
        made[name] = [new.get(n, n) for n in old] if isinstance(old, list) else new.get(old, old)
    return made


def special(model: Any) -> set[int]:
    """The numbers of tokens that a model itself has a use for, by its configuration.

    Where positions are counted from the padding's number on, all up to that: it must stay.
    """
    size = len(model.get_input_embeddings().weight)
    named = [n for name, n in model.config.to_dict().items() if name.endswith("_token_id")]
    found = {n for value in named for n in (value if isinstance(value, list) else [value])}
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None):
            found |= set(range(module.padding_idx + 1))
    return {number for number in found if isinstance(number, int) and 0 <= number < size}


@torch.no_grad()
def keep(model: Any, kept: Sequence[int]) -> None:
    """Leave a model of transformers the embeddings and the outputs of these tokens, in place."""
    index, before = torch.tensor(kept), model.config.vocab_size
    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    tied = outer is not None and outer.weight is inner.weight
    if inner.padding_idx is not None:
        new = {old: number for number, old in enumerate(kept)}
        inner.padding_idx = new.get(inner.padding_idx)
    inner.weight, inner.num_embeddings = _rows(inner.weight, index), len(kept)
    if outer is not None:
        outer.weight = inner.weight if tied else _rows(outer.weight, index)
        outer.out_features = len(kept)
        if getattr(outer, "bias", None) is not None:
            outer.bias = _rows(outer.bias, index)
    configs = [model.config, getattr(model, "generation_config", None)]
    for config in (config for config in configs if config is not None):
        for name, value in marks(config.to_dict(), kept).items():
            if name.endswith("_token_id"):
                setattr(config, name, value)
    for owner in (model.config, *model.modules()):
        if getattr(owner, "vocab_size", None) == before:
            owner.vocab_size = len(kept)


def _rows(tensor: Tensor, index: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.index_select(0, index.to(tensor.device)), tensor.requires_grad)
