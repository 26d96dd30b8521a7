"""The Pareto front: what nothing else beats."""

from __future__ import annotations

from collections.abc import Sequence


def unbeaten(points: Sequence[Sequence[float]]) -> list[int]:
    """The numbers of the points that no other beats, where less is better in every column.

    One beats another if it is no worse in any column, and better in one. Of equal ones the first
    stands for all.
    """
    return [
        i
        for i, point in enumerate(points)
        if not any(_before(other, point, j < i) for j, other in enumerate(points) if j != i)
    ]


def _before(other: Sequence[float], point: Sequence[float], first: bool) -> bool:
    no_worse = all(a <= b for a, b in zip(other, point, strict=True))
    return no_worse and (first or tuple(other) != tuple(point))
