"""What a step draws: a pure function of (seed, step), so a resumed run draws the same again."""

from __future__ import annotations

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
    drawn = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, offset = divmod(position, count)
        if epoch not in order:
            order.clear()
            order[epoch] = example_order(seed, epoch, count)
        drawn.append(int(order[epoch][offset]))
    return drawn


def students(
    seed: int, step: int, widths: Sequence[float], count: int = 3, weights: Sequence[float] = ()
) -> list[float]:
    """The ``count`` Students of a step, smallest first (all, where there are fewer).

    Two or more: the sandwich rule (Yu & Huang 2019, arXiv 1903.05134): the smallest and the largest
    always, the others drawn from between without repetition. One: drawn from all. ``weights`` are
    the chances of each of ``widths`` to be drawn, relative to one another; none: all alike.
    """
    chance = dict(zip(widths, weights or [1.0] * len(widths), strict=True))
    menu = sorted(chance)
    if count >= len(menu):
        return menu
    drawn, left = ([], menu) if count < 2 else ([menu[0], menu[-1]], menu[1:-1])
    generator = random.Random(f"{seed}:{step}")
    while len(drawn) < count:
        [chosen] = generator.choices(left, [chance[width] for width in left])
        drawn.append(chosen)
        left = [width for width in left if width != chosen]
    return sorted(drawn)


def seed_step(seed: int, step: int) -> None:
    """Seed what a step draws besides (dropout, augmentation)."""
    random.seed(f"{seed}:{step}")
    torch.manual_seed((seed * 2_147_483_647 + step) % (1 << 63))
