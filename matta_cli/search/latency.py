"""Seconds on this machine: of a forward, or of what a language model generates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from matta_cli.adapter import Sizes
from matta_cli.data.split import Batch
from matta_cli.errors import MattaError, extra
from matta_cli.measure import cost, generation
from matta_cli.measure.counts import Counts, Key
from matta_cli.models.ta import TA
from matta_cli.report.schema import Generation
from matta_cli.settings.budget import TIMED, Budget
from matta_cli.settings.recipe import ExportSettings
from matta_cli.tasks.task import Task

ROUNDS = 8  # of timing what is tried; what is chosen is timed longer

Timer = Callable[[Mapping[str, Any], int], dict[str, float]]


class Latency:
    """Seconds on this machine, measured; and a guess of those that were not.

    The guess says what to time next, and nothing else goes by it. It is a curve over MACs through
    all that was measured, which never falls where an axis grows (isotonic regression).

    timer: the median seconds of each model in so many rounds.
    """

    def __init__(self, ta: TA, counts: Counts, threads: int, timer: Timer) -> None:
        self.ta, self.counts, self.threads, self.timer = ta, counts, threads, timer
        self.measured: dict[Key, float] = {}
        self.careful: set[Key] = set()  # of these, what was timed three times
        self._sizes: dict[Key, dict[str, int]] = {}
        self._points: dict[Key, tuple[int, float]] = {}
        self._curve: tuple[Sequence[float], Sequence[float]] = ((0.0,), (0.0,))

    def time(self, models: Mapping[str, Any], rounds: int = cost.ROUNDS) -> dict[str, float]:
        """The median seconds of each model."""
        with cost.threads(self.threads):
            return self.timer(models, rounds)

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
        fit = extra("sklearn.isotonic", "A search for a latency", "search")
        key = self.ta.key(sizes)
        self.measured[key], self._sizes[key] = seconds, dict(sizes)
        self._points[key] = self.counts.macs(sizes), seconds
        fitted = fit.IsotonicRegression().fit(*zip(*self._points.values(), strict=True))
        self._curve = fitted.X_thresholds_, fitted.y_thresholds_


class Timings:
    """What budgets limit of a Student's time, as it is measured.

    known: by its name. generation: how models are timed that generate. notes: what is to be known
    of that.
    """

    def __init__(
        self, task: Task, ta: TA, counts: Counts, batch: Batch, settings: ExportSettings
    ) -> None:
        self.task, self.ta, self.counts = task, ta, counts
        self.batch, self.settings = batch, settings
        self.known: dict[str, Latency] = {}
        self.generation: Generation | None = None
        self.notes: list[str] = []

    def of(self, budgets: Sequence[Budget], sizes: Sizes) -> list[Budget]:
        """The same budgets, by the names of what is timed for them: a token, where models generate.

        sizes: of a Student that it is tried with. Raises ``MattaError`` for a limit on the time to
        the first token where models do not generate.
        """
        limited = {name for budget in budgets for name in budget.names} & set(TIMED)
        if not limited:
            return list(budgets)
        why = self._try(sizes)
        if why and "prefill" in limited:
            instead = "--target-latency is the time of a forward"
            raise MattaError(f"--target-prefill is not possible: {why}; {instead}.")
        if why and self.task.generates:
            self.notes.append(f"--target-latency is the time of a forward here: {why}.")
        found = list(budgets) if why else [budget.decoding() for budget in budgets]
        for name in dict.fromkeys(name for budget in found for name in budget.names):
            if name in TIMED:
                threads, timer = self.settings.threads, partial(self._time, name)
                self.known[name] = Latency(self.ta, self.counts, threads, timer)
        return found

    def _try(self, sizes: Sizes) -> str:
        """Why models do not generate, in words; empty where they do."""
        if not self.task.generates:
            return f"these are models for {self.task.name}, which generate nothing"
        how, model = (
            generation.lengths(self.settings, self.ta.model),
            self.ta.student(sizes).dense(),
        )
        why = generation.cannot(model, generation.prompts(self.batch, 1, how.prompt))
        if why:
            return f"a Student cannot generate with a cache ({why})"
        self.generation = how
        return ""

    def _time(self, name: str, models: Mapping[str, Any], rounds: int) -> dict[str, float]:
        size, how = self.settings.batch_size, self.generation
        if how is None:
            taken = cost.latencies(self.task, models, cost.repeated(self.batch, size), rounds)
            return {model: seconds["median"] for model, seconds in taken.items()}
        ids = generation.prompts(self.batch, size, how.prompt)
        found = generation.latencies(models, ids, how.new if name == "decode" else 0, rounds)
        return {model: times[name]["median"] for model, times in found.items()}
