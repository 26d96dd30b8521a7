"""Seconds of a forward on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from matta_cli.adapter import Sizes
from matta_cli.data.split import Batch
from matta_cli.measure import cost
from matta_cli.measure.counts import Counts, Key, key_of
from matta_cli.models.ta import TA
from matta_cli.tasks.task import Task

ROUNDS = 8  # of timing the uniform widths, which the guess is made of


class Latency:
    """Seconds of a forward on this machine, measured; and a guess of those that were not.

    The guess only ranks what is tried. It lies between the two nearest uniform widths, in
    proportion to MACs, and is scaled by what was measured since; it never falls where an axis
    grows.
    """

    def __init__(self, task: Task, ta: TA, counts: Counts, example: Batch, threads: int) -> None:
        self.task, self.ta, self.counts = task, ta, counts
        self.example, self.threads = example, threads
        self.macs: list[int] = []
        self.seconds: list[float] = []
        self.correction = 1.0
        self.measured: dict[Key, float] = {}

    def time(self, models: Mapping[str, Any], rounds: int = cost.ROUNDS) -> dict[str, float]:
        """The median seconds of a forward of each model."""
        with cost.threads(self.threads):
            taken = cost.latencies(self.task, models, self.example, rounds)
        return {name: timing["median"] for name, timing in taken.items()}

    def start(self, uniform: Sequence[Sizes]) -> None:
        """Time the Students of the uniform widths, from the smallest, which guesses are made of."""
        dense = {str(i): self.ta.student(sizes).dense() for i, sizes in enumerate(uniform)}
        taken = self.time(dense, ROUNDS)
        self.macs = [self.counts.macs(sizes) for sizes in uniform]
        self.seconds = np.maximum.accumulate(list(taken.values())).tolist()

    def guess(self, sizes: Sizes) -> float:
        macs = self.counts.macs(sizes)
        return float(np.interp(macs, self.macs, self.seconds)) * self.correction

    def measure(self, sizes: Sizes) -> float:
        """The seconds of a dense Student of these sizes, which correct the guess.

        Of three medians the middle one.
        """
        model = {"": self.ta.student(sizes).dense()}
        seconds = sorted(self.time(model)[""] for _ in range(3))[1]
        self.measured[key_of(self.ta, sizes)] = seconds
        self.correction *= seconds / self.guess(sizes)
        return seconds
