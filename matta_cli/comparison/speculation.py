"""A small model drafts for a larger one: assisted generation against the larger model alone."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli.data.split import Split
from matta_cli.errors import MattaError

PROMPTS, PROMPT, NEW = 8, 32, 64  # prompts; tokens of each; tokens that are generated
ROUNDS = 3


def prompts(split: Split) -> Tensor:
    """The beginnings of the first held-out texts, int64 [N, P]: half of each, or 32 tokens."""
    batch = split.batch(range(min(PROMPTS, len(split))))
    texts = batch["input_ids"]
    # conversations are padded: no prompt reaches beyond the shortest
    length = int(batch.get("attention_mask", torch.ones_like(texts)).sum(1).min())
    return texts[:, : max(1, min(PROMPT, length // 2))]


def measure(
    small: nn.Module,
    large: nn.Module,
    prompts: Tensor,
    new: int = NEW,
    draft: int = 5,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Speculative decoding (Leviathan et al. 2023, arXiv 2211.17192), greedy, one prompt at a time.

    Drafted and alone take turns, so that drift of the machine hits both alike.

    prompts: int64 [N, P], on the models' device. new: tokens to generate from each. draft: tokens
    that are proposed at a time. rounds: times that all prompts are timed. ``acceptance`` is the
    share of proposed tokens that the larger model would have chosen, too; ``identical`` the share
    of prompts with the same tokens as from the larger model alone, which greedy decoding gives up
    to rounding; ``ratio`` the median round's tokens per second over those of the larger model
    alone, and the least and most of any round.

    Raises ``MattaError`` where the models are not of transformers, or of different vocabularies.
    """
    new = min(new, _room(small, large, prompts, draft))
    count = _Count(large)
    found: dict[str, list[Tensor]] = {"alone": [], "drafted": []}
    seconds: dict[str, list[float]] = {"alone": [], "drafted": []}
    try:
        with _plainly(small, large, draft):
            for turn in range(1 + rounds):  # the first one warms up, and is counted
                taken = {"alone": 0.0, "drafted": 0.0}
                for number, prompt in enumerate(prompts):
                    order = ("alone", "drafted") if (turn + number) % 2 else ("drafted", "alone")
                    for how in order:
                        count.on = turn == 0 and how == "drafted"
                        helper = {"assistant_model": small} if how == "drafted" else {}
                        output, spent = _generate(large, prompt[None], new, **helper)
                        taken[how] += spent
                        if turn == 0:
                            found[how].append(output[0, len(prompt) :].cpu())
                if turn:
                    for how, value in taken.items():
                        seconds[how].append(value)
    finally:
        count.remove()
    return _summary(prompts, draft, count, found, seconds)


def _room(small: nn.Module, large: nn.Module, prompts: Tensor, draft: int) -> int:
    """How many tokens may be generated. Raises ``MattaError`` where the two cannot be used."""
    for model in (small, large):
        if not callable(getattr(model, "generate", None)):
            what = f"models of transformers that generate; one is a {type(model).__name__}"
            raise MattaError(f"--speculative needs {what}.")
    own, other = _config(small), _config(large)
    if own.vocab_size != other.vocab_size:
        both = f"{own.vocab_size:,} and {other.vocab_size:,} tokens"
        raise MattaError(f"--speculative: the vocabularies differ, {both}.")
    if draft < 1:
        why = "one or more are proposed at a time"
        raise MattaError(f"--draft-tokens {draft} is not possible: {why}.")
    most = [getattr(c, "max_position_embeddings", None) for c in (own, other)]
    positions = min(p for p in most if p)
    length = prompts.shape[1]
    if positions <= length:
        none = f"leave none of the {positions} positions"
        raise MattaError(f"--speculative: prompts of {length} tokens {none}.")
    return positions - length


@contextlib.contextmanager
def _plainly(small: Any, large: Any, draft: int) -> Iterator[None]:
    """While one model drafts so many tokens at a time, and both take the likeliest token.

    What their folders say of generating (beams, penalties, tokens that are forced) is another way
    to choose, and left out: all but the tokens that begin, end and fill up.
    """
    from transformers.utils import logging

    before, level = [model.generation_config for model in (small, large)], logging.get_verbosity()
    for model, own in zip((small, large), before, strict=True):
        kept = ("bos_token_id", "eos_token_id", "pad_token_id")
        model.generation_config = type(own)(**{name: getattr(own, name, None) for name in kept})
    small.generation_config.update(
        num_assistant_tokens=draft,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
    )
    try:
        logging.set_verbosity_error()  # assisted generation warns of how it calls generate itself
        yield
    finally:
        logging.set_verbosity(level)
        small.generation_config, large.generation_config = before


def _summary(
    prompts: Tensor,
    draft: int,
    count: _Count,
    found: Mapping[str, list[Tensor]],
    seconds: Mapping[str, list[float]],
) -> dict[str, Any]:
    tokens = {how: sum(map(len, outputs)) for how, outputs in found.items()}
    # a call reads what is new to it: the prompt, or the token of the call before, and what is
    # proposed
    proposed = count.tokens - prompts.numel() - (count.calls - len(prompts))
    # a call adds what it accepts and one token of its own
    accepted = tokens["drafted"] - count.calls
    speeds = {how: [tokens[how] / s for s in seconds[how]] for how in seconds}
    ratios = [a / b for a, b in zip(speeds["drafted"], speeds["alone"], strict=True)]
    same = [torch.equal(a, b) for a, b in zip(found["alone"], found["drafted"], strict=True)]
    return {
        "prompts": len(prompts),
        "new_tokens": tokens["alone"],
        "draft_tokens": draft,
        "proposed": proposed,
        "accepted": accepted,
        "acceptance": accepted / max(1, proposed),
        "tokens_per_call": tokens["drafted"] / max(1, count.calls),
        "tokens_per_second": {how: statistics.median(s) for how, s in speeds.items()},
        "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
        "identical": sum(same) / len(same),
    }


class _Count:
    """Calls of a model, and the tokens that they read, while ``on``."""

    def __init__(self, model: nn.Module) -> None:
        self.calls = self.tokens = 0
        self.on = False
        self.handle = model.register_forward_pre_hook(self._hook, with_kwargs=True)

    def _hook(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.on:
            self.calls += 1
            self.tokens += (kwargs["input_ids"] if "input_ids" in kwargs else args[0]).shape[1]

    def remove(self) -> None:
        self.handle.remove()


@torch.no_grad()
def _generate(model: Any, ids: Tensor, new: int, **options: Any) -> tuple[Tensor, float]:
    """Greedily ``new`` tokens more, and the seconds that it took."""
    config = model.generation_config
    padding = config.pad_token_id if config.pad_token_id is not None else 0
    options |= {"max_new_tokens": new, "do_sample": False, "use_cache": True}
    mask = torch.ones_like(ids)
    started = time.perf_counter()
    output = model.generate(ids, attention_mask=mask, pad_token_id=padding, **options)
    if ids.device.type == "cuda":
        torch.cuda.synchronize(ids.device)
    return output, time.perf_counter() - started


def _config(model: Any) -> Any:
    return model.config
