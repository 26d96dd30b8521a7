"""Generating with a language model: seconds until a prompt's first token, and for each one after.

Tokens are the likeliest ones, one forward each with the cache of keys and values, and there are
always as many: nothing ends them early.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli.data.split import Batch
from matta_cli.errors import MattaError
from matta_cli.measure import cost
from matta_cli.report.schema import Generation
from matta_cli.settings.recipe import ExportSettings
from matta_cli.tasks.task import config, raw

PROMPT = 128  # tokens, where there is room
_SAME = 1e-3, 5e-2  # as shares of the largest logit, in float32 and in less: rounding


def lengths(settings: ExportSettings, model: nn.Module) -> Generation:
    """How many tokens a prompt has, and how many are generated after it.

    Raises ``MattaError`` where a prompt was asked for that leaves no room.
    """
    most = config(model, "max_position_embeddings")
    prompt, new = settings.prompt_tokens, settings.new_tokens
    if not most:
        return Generation(prompt or PROMPT, new)
    if prompt + 1 > most:
        room = f"the model has {most:,} positions, and a token is to follow"
        raise MattaError(f"export.prompt_tokens {prompt:,} is not possible: {room}.")
    prompt = prompt or max(1, min(PROMPT, most // 2))
    return Generation(prompt, min(new, most - prompt))


def prompts(batch: Batch, rows: int, tokens: int) -> Tensor:
    """So many prompts of so many tokens, int64 [rows, tokens], out of a batch of text."""
    ids = batch["input_ids"]
    longer = ids.repeat(1, -(-tokens // ids.shape[1]))[:, :tokens]
    return longer.repeat(-(-rows // len(longer)), 1)[:rows]


def read(model: nn.Module, ids: Tensor) -> tuple[Tensor, Any]:
    """Logits of what comes after a prompt [B, V], and the cache of what was read.

    Raises ``TypeError`` where a model keeps no cache.
    """
    known = _known(model)
    # no more logits than are needed, as the library's own generating has it
    last = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    output = model(input_ids=ids, use_cache=True, **last)
    cache = getattr(output, _cache(known), None)
    if cache is None:
        raise TypeError("it keeps no cache of keys and values")
    return raw(output)[:, -1], cache


def step(model: nn.Module, token: Tensor, cache: Any) -> Tensor:
    """Logits of what comes after a token [B, 1], which is added to the cache."""
    more = {_cache(_known(model)): cache}
    return raw(model(input_ids=token, use_cache=True, **more))[:, -1]


@torch.no_grad()
def generate(model: nn.Module, ids: Tensor, new: int) -> tuple[Tensor, float, float]:
    """The likeliest token after a prompt and ``new`` after that, int64 [B, 1 + new].

    And the seconds until the first, and until the last one from there.
    """
    began = cost.now(ids.device)
    logits, cache = read(model, ids)
    tokens = [logits.argmax(-1, keepdim=True)]
    first = cost.now(ids.device)
    for _ in range(new):
        tokens.append(step(model, tokens[-1], cache).argmax(-1, keepdim=True))
    return torch.cat(tokens, 1), first - began, cost.now(ids.device) - first


def latencies(
    models: Mapping[str, nn.Module], ids: Tensor, new: int, rounds: int = cost.ROUNDS
) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds of each model: ``prefill`` until the first token, ``decode`` for each one after it.

    Of each the ``cost.spread`` over the rounds; without ``new`` tokens there is no ``decode``.
    """

    def one(model: nn.Module) -> dict[str, float]:
        _, first, rest = generate(model, ids, new)
        return {"prefill": first, **({"decode": rest / new} if new else {})}

    runs = {name: partial(one, model) for name, model in models.items()}
    found = {}
    for name, turns in cost.in_turns(runs, rounds).items():
        found[name] = {what: cost.spread([turn[what] for turn in turns]) for what in turns[0]}
    return found


@torch.no_grad()
def cannot(model: nn.Module, ids: Tensor) -> str:
    """Why a model cannot generate with a cache, in words; empty where it can.

    It can if a token that is read after the cache of those before it gives what it gives among
    them. ids: a prompt [1, L].
    """
    ids = ids if ids.shape[1] > 1 else ids.repeat(1, 2)
    try:
        whole = raw(model(input_ids=ids))[:, -1]
        half, (_, cache) = whole.dtype != torch.float32, read(model, ids[:, :-1])
        cached = step(model, ids[:, -1:], cache)
        # a model that has diverged is as slow as another
        whole, cached = whole.float().nan_to_num(), cached.float().nan_to_num()
        tolerance = _SAME[half] * whole.abs().max()
        if (cached - whole).abs().max() <= tolerance:
            return ""
        return "with the cache it gives other logits than without"
    except Exception as error:  # what a stranger's module does with what it does not know
        return f"{error}".strip().partition("\n")[0] or type(error).__name__


def _known(model: nn.Module) -> Mapping[str, Any]:
    return inspect.signature(model.forward).parameters


def _cache(known: Mapping[str, Any]) -> str:
    """What a model calls its cache: transformers has renamed it."""
    return "cache" if "cache" in known else "past_key_values"
