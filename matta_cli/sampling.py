"""What a step draws. Everything is a pure function of (seed, step), so a resumed run draws what it would have drawn."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch


def example_order(seed: int, epoch: int, count: int) -> torch.Tensor:
    """The order of an epoch's examples, int64 [count]."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def indices(seed: int, step: int, batch_size: int, count: int, order: dict[int, torch.Tensor]) -> list[int]:
    """The examples of a step: epochs follow one another without a gap. ``order`` caches the epochs in use."""
    drawn = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, offset = divmod(position, count)
        if epoch not in order:
            order.clear()
            order[epoch] = example_order(seed, epoch, count)
        drawn.append(int(order[epoch][offset]))
    return drawn


def sandwich(seed: int, step: int, widths: Sequence[float]) -> list[float]:
    """The Students of a step (sandwich rule, Yu & Huang 2019): the smallest, the largest, and one random between."""
    menu = sorted(set(widths))
    drawn = [menu[0], menu[-1]] if len(menu) > 1 else menu[:1]
    if len(menu) > 2:
        drawn.insert(1, random.Random(f"{seed}:{step}").choice(menu[1:-1]))
    return drawn


def seed_step(seed: int, step: int) -> None:
    """Seed what a step draws besides (dropout, augmentation)."""
    random.seed(f"{seed}:{step}")
    torch.manual_seed((seed * 2_147_483_647 + step) % (1 << 63))
