"""Seconds of a forward on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from matta_cli.adapter import Sizes
from matta_cli.data.split import Batch
from matta_cli.measure import cost
from matta_cli.models.ta import TA
from matta_cli.nested.sizes import kinds, own_sizes
from matta_cli.search.costs import Costs
from matta_cli.tasks.task import Task

# Latency

ROUNDS = 8  # of timing the Students that the guess is fitted to


class Latency:
    """Seconds of a forward on this machine, measured; and a guess for sizes that were not, only to
    rank what is tried.

    The guess is a sum of what the sizes of each kind come to, the layers and the MACs, with weights
    of zero or more fitted by
    least squares: it never falls where an axis grows.
    """

    def __init__(self, task: Task, ta: TA, costs: Costs, example: Batch, threads: int) -> None:
        self.task, self.ta, self.costs, self.example, self.threads = (
            task,
            ta,
            costs,
            example,
            threads,
        )
        self.weights = np.zeros(0)
        self.correction = 1.0
        self.measured: dict[tuple[tuple[str, int], ...], float] = {}

    def time(self, models: Mapping[str, Any], rounds: int = cost.ROUNDS) -> dict[str, float]:
        """The median seconds of a forward of each model."""
        with cost.threads(self.threads):
            taken = cost.latencies(self.task, models, self.example, rounds)
        return {name: found["median"] for name, found in taken.items()}

    def fit(self, several: Sequence[Sizes]) -> None:
        """Time Students, as views, and fit the guess to them."""
        taken = self.time(
            {str(i): self.ta.at(sizes).eval() for i, sizes in enumerate(several)}, ROUNDS
        )
        from scipy.optimize import nnls

        features = np.array([self._features(sizes) for sizes in several], dtype=np.float64)
        scale = features.max(0)
        seconds = np.array([taken[str(i)] for i in range(len(several))])
        # errors as shares
        self.weights = nnls(features / scale / seconds[:, None], np.ones(len(seconds)))[0] / scale

    def _features(self, sizes: Sizes) -> list[float]:
        own = own_sizes(self.ta.axes, sizes)
        return [
            1.0,
            float(self.costs.macs(sizes)),
            *(float(sum(found)) for found in kinds(own).values()),
        ]

    def guess(self, sizes: Sizes) -> float:
        return float(np.dot(self.weights, self._features(sizes))) * self.correction

    def measure(self, sizes: Sizes) -> float:
        """The median of a dense Student of these sizes, of three measurements the middle one;
        corrects the guess by it.
        """
        model = {"": self.ta.student(sizes).dense()}
        found = sorted(self.time(model)[""] for _ in range(3))[1]
        self.measured[self.costs.key(sizes)] = found
        self.correction *= found / self.guess(sizes)
        return found
