"""Seconds of a forward on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from matta_cli.adapter import Sizes
from matta_cli.data.split import Batch
from matta_cli.measure import cost
from matta_cli.measure.counts import Counts, Key
from matta_cli.models.ta import TA
from matta_cli.tasks.task import Task

ROUNDS = 8  # of timing what is tried; what is chosen is timed longer


class Latency:
    """Seconds of a forward on this machine, measured; and a guess of those that were not.

    The guess says what to time next, and nothing else goes by it. It is a curve over MACs through
    all that was measured, which never falls where an axis grows (isotonic regression).
    """

    def __init__(self, task: Task, ta: TA, counts: Counts, example: Batch, threads: int) -> None:
        self.task, self.ta, self.counts = task, ta, counts
        self.example, self.threads = example, threads
        self.measured: dict[Key, float] = {}
        self.careful: set[Key] = set()  # of these, what was timed three times
        self._sizes: dict[Key, dict[str, int]] = {}
        self._points: dict[Key, tuple[int, float]] = {}
        self._curve: tuple[Sequence[float], Sequence[float]] = ((0.0,), (0.0,))

    def time(self, models: Mapping[str, Any], rounds: int = cost.ROUNDS) -> dict[str, float]:
        """The median seconds of a forward of each model."""
        with cost.threads(self.threads):
            taken = cost.latencies(self.task, models, self.example, rounds)
        return {name: timing["median"] for name, timing in taken.items()}

    def start(self, uniform: Sequence[Sizes]) -> None:
        """Time the Students of the uniform widths, in turns: what guesses are made of at first."""
        dense = {str(i): self.ta.student(sizes).dense() for i, sizes in enumerate(uniform)}
        taken = self.time(dense, ROUNDS)
        for sizes, seconds in zip(uniform, taken.values(), strict=True):
            self._learn(sizes, seconds)

    def guess(self, sizes: Sizes) -> float:
        return float(np.interp(self.counts.macs(sizes), *self._curve))

    def doubtful(self, sizes: Sizes, limit: float) -> bool:
        """Whether what was measured, of fewer MACs and of more, leaves open if sizes are within."""
        if self.ta.key(sizes) in self.measured:
            return False
        macs, (at, seconds) = self.counts.macs(sizes), self._curve
        below = [taken for known, taken in zip(at, seconds, strict=True) if known <= macs]
        above = [taken for known, taken in zip(at, seconds, strict=True) if known >= macs]
        return (not below or below[-1] <= limit) and (not above or above[0] > limit)

    def measure(self, sizes: Sizes, *, careful: bool = False) -> float:
        """The seconds of a dense Student of these sizes; careful: of three medians the middle."""
        model, rounds = {"": self.ta.student(sizes).dense()}, cost.ROUNDS if careful else ROUNDS
        taken = sorted(self.time(model, rounds)[""] for _ in range(3 if careful else 2))
        # what else the machine does only adds to a short timing
        self._learn(sizes, taken[1 if careful else 0])
        if careful:
            self.careful.add(self.ta.key(sizes))
        return self.measured[self.ta.key(sizes)]

    def slower(self, limit: float) -> list[dict[str, int]]:
        """Sizes that a short timing found over a limit, the nearest first."""
        over = {key: own for key, own in self.measured.items() if own > limit}
        order = sorted(over.keys() - self.careful, key=over.__getitem__)
        return [self._sizes[key] for key in order]

    def _learn(self, sizes: Sizes, seconds: float) -> None:
        from sklearn.isotonic import IsotonicRegression

        key = self.ta.key(sizes)
        self.measured[key], self._sizes[key] = seconds, dict(sizes)
        self._points[key] = self.counts.macs(sizes), seconds
        fitted = IsotonicRegression().fit(*zip(*self._points.values(), strict=True))
        self._curve = fitted.X_thresholds_, fitted.y_thresholds_
