"""What a step draws: a pure function of (seed, step), so a resumed run draws the same again."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import torch


def example_order(seed: int, epoch: int, count: int) -> torch.Tensor:
    """The order of an epoch's examples, int64 [count]."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def indices(
    seed: int, step: int, batch_size: int, count: int, order: dict[int, torch.Tensor]
) -> list[int]:
    """The examples of a step: epochs of ``count`` follow one another without a gap.

    ``order`` keeps the order of the epoch in use from one call to the next.
    """
    drawn: list[int] = []
    position, end = step * batch_size, (step + 1) * batch_size
    while position < end:
        epoch, offset = divmod(position, count)
        if epoch not in order:
            order.clear()
            order[epoch] = example_order(seed, epoch, count)
        own = order[epoch][offset : offset + end - position].tolist()
        drawn += own
        position += len(own)
    return drawn


def division(seed: int, step: int, count: int, shares: Sequence[float]) -> list[int]:
    """How many of the ``count`` rows of a step each model gets. shares: of each, summing to 1.

    What is not a whole number is rounded so that it is right on average over the steps (systematic
    sampling: one random offset for all bounds).
    """
    offset = random.Random(f"rows:{seed}:{step}").random()
    return divided(count, shares, offset)


def divided(count: int, shares: Sequence[float], offset: float) -> list[int]:
    """``division`` of a known offset, from 0 to below 1."""
    sums = itertools.accumulate(shares[:-1], initial=0.0)
    # that a share of a third makes whole numbers of multiples of three
    bounds = [math.floor(round(share * count, 6) + offset) for share in sums] + [count]
    return [high - low for low, high in itertools.pairwise(bounds)]


def seed_step(seed: int, step: int) -> None:
    """Seed what a step draws besides (dropout, augmentation)."""
    random.seed(f"{seed}:{step}")
    torch.manual_seed((seed * 2_147_483_647 + step) % (1 << 63))
