"""Many numbers of classes in few bytes: those of a row in order, as Elias (1974) and Fano (1971).

The lowest bits of each number stand as they are. What is left of them hardly rises from one to the
next, and is written as how far it rises: as many zeros, and a one for each number. A number of many
among many takes little more than two bits above the bits that tell neighbours apart, where a plain
one takes sixteen.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _low(count: int, classes: int) -> int:
    """The bits of each number that stand as they are."""
    return max(0, (classes // count).bit_length() - 1)


def _sizes(count: int, classes: int) -> tuple[int, int]:
    """The bytes of the lowest bits, and those of what is left."""
    low = _low(count, classes)
    return -(-count * low // 8), -(-(count + ((classes - 1) >> low) + 1) // 8)


def size(count: int, classes: int) -> int:
    """The bytes that ``count`` numbers below ``classes`` take."""
    return sum(_sizes(count, classes))


def most(classes: int, limit: int) -> int:
    """How many numbers below ``classes`` so many bytes hold: at least one, ``classes`` at most."""
    fit = (n for n in range(1, min(classes, 8 * limit) + 1) if size(n, classes) <= limit)
    return max(fit, default=1)


def pack(numbers: Tensor, classes: int) -> Tensor:
    """Numbers below ``classes``, int64 [n, count], as uint8 [n, ``size``]; their order is lost."""
    count, low = numbers.shape[1], _low(numbers.shape[1], classes)
    ordered, device = numbers.sort(1).values, numbers.device
    places = (ordered >> low) + torch.arange(count, device=device)
    lowest = (ordered[:, :, None] >> torch.arange(low, device=device)) & 1
    first, second = _sizes(count, classes)
    bits = numbers.new_zeros(len(numbers), 8 * (first + second), dtype=torch.uint8)
    bits[:, : count * low] = lowest.flatten(1).to(torch.uint8)
    bits[:, 8 * first :].scatter_(1, places, 1)
    return (bits.unflatten(1, (-1, 8)) << _eight(device)).sum(2, dtype=torch.uint8)


def unpack(packed: Tensor, count: int, classes: int) -> Tensor:
    """The numbers of rows, int64 [n, count], each row in order.

    Raises ``ValueError`` for bytes that ``pack`` did not write.
    """
    low, first = _low(count, classes), _sizes(count, classes)[0]
    if packed.shape[1] != size(count, classes):
        raise ValueError(f"{packed.shape[1]} bytes in place of {size(count, classes)}")
    bits = ((packed[:, :, None] >> _eight(packed.device)) & 1).flatten(1)
    rest = bits[:, 8 * first :]
    if (rest.sum(1) != count).any():
        raise ValueError(f"not {count} numbers in each row")
    places = rest.nonzero()[:, 1].view(len(packed), count)
    numbers = (places - torch.arange(count, device=packed.device)) << low
    for bit in range(low):
        numbers += bits[:, bit : count * low : low].long() << bit
    if len(numbers) and int(numbers.max()) >= classes:
        raise ValueError(f"a number that is none of {classes}")
    return numbers


def _eight(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
