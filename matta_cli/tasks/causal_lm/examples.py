"""Sequences of tokens, and passages whose last word is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from matta_cli.data import split
from matta_cli.data.split import Batch
from matta_cli.errors import MattaError


class Packed:
    """Tokens cut into sequences of ``length``. ``shorter``: too few tokens for one make one shorter
    sequence.
    """

    def __init__(
        self, tokens: np.ndarray, length: int, name: str, *, shorter: bool = False
    ) -> None:
        if shorter:
            length = min(length, len(tokens))
        if len(tokens) < max(2, length):
            raise MattaError(
                f"{name!r} has {len(tokens):,} tokens, too few for a sequence of {max(2, length):,}: pass more text, or a "
                "smaller --sequence-length."
            )
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    def batch(self, indices: Sequence[int]) -> Batch:
        """``input_ids`` int64 [B, L]."""
        rows = self.tokens[: len(self) * self.length].reshape(-1, self.length)
        return {"input_ids": torch.from_numpy(rows[list(indices)].astype(np.int64))}

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        if ids:
            raise split.no_ids("text")
        return np.asarray(indices, dtype=np.int64)

    def digest(self) -> str:
        return split.digest([f"{self.length} {self.tokens.dtype} ", self.tokens])


class Passages:
    """Passages whose last word is to be predicted, as LAMBADA defines it (Paperno et al. 2016,
    arXiv 1606.06031).

    The last word is what follows the last space; it counts if every one of its tokens is the
    likeliest given all before it. Longer passages than ``length`` tokens lose their beginning.
    Passages without a space, or whose last word is longer than that, are left out.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], length: int) -> None:
        # tokens, and how many of them are the last word
        self.rows: list[tuple[np.ndarray, int]] = []
        self.padding = tokenizer.pad_token_id or tokenizer.eos_token_id or 0
        texts = [text for text in texts if text.rpartition(" ")[0].strip()]
        contexts = encode(tokenizer, [text.rpartition(" ")[0] for text in texts])
        for context, whole in zip(contexts, encode(tokenizer, texts), strict=True):
            word = len(whole) - len(context)
            if 0 < word < min(length, len(whole)):
                self.rows.append((np.array(whole[-length:], dtype=np.int64), word))

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        return np.asarray(indices, dtype=np.int64)

    def digest(self) -> str:
        return split.digest([tokens for tokens, _ in self.rows])

    def batch(self, indices: Sequence[int]) -> Batch:
        """``input_ids`` int64 [B, L] padded on the right (a causal model never looks there),
        ``target`` bool [B, L].
        """
        rows = [self.rows[i] for i in indices]
        ids = torch.full((len(rows), max(len(tokens) for tokens, _ in rows)), self.padding)
        target = torch.zeros_like(ids, dtype=torch.bool)
        for k, (tokens, word) in enumerate(rows):
            ids[k, : len(tokens)] = torch.from_numpy(tokens)
            target[k, len(tokens) - word : len(tokens)] = True
        return {"input_ids": ids, "target": target}


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)[
        "input_ids"
    ]
