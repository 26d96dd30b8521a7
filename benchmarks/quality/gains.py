"""Gains of one arm over another, over paired seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.quality.problem import Problem
from matta_cli.models import plugins
from matta_cli.report.schema import Metric
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task

Record = dict[str, Any]
Arms = Mapping[str, Sequence[Record]]  # arm -> its records, one for each seed
Values = Mapping[tuple[int, str], float]  # by seed, and by the base that it came to on the machine

LOSSES = {"top1": "top-1 error"}  # shares of right answers that are shown as what is missing to 1


class Gain(NamedTuple):
    """By how many per cent of the other's mean an arm is better, over paired seeds.

    low, high: the ends of its 95 % interval, by Student's t.
    """

    value: float
    low: float
    high: float
    p: float
    # whether the pairs share the seed alone: their bases were made on different machines
    loose: bool = False

    def __str__(self) -> str:
        return f"{self.value:+.1f} [{self.low:+.1f}, {self.high:+.1f}]{' †' if self.loose else ''}"


def _metrics(problem: Problem) -> dict[str, Metric]:
    task = tasks_task.task(problem.task or plugins.adapter(problem.adapter).task, Recipe())
    return {metric.name: metric for metric in task.metrics}


def higher(problem: Problem, name: str) -> bool:
    """Whether more of a metric, as it is recorded, is better."""
    return bool(_metrics(problem)[name].higher)


def label(problem: Problem, name: str) -> str:
    """What a metric is called where it is shown."""
    return LOSSES.get(name) or _metrics(problem)[name].label


def values(
    problem: Problem, records: Sequence[Record], name: str, width: str, split: str = "test"
) -> Values:
    """A metric as it is shown, by seed and base."""
    own = {pair(record): record["widths"][width][split][name] for record in records}
    return {seed: 1 - value if name in LOSSES else value for seed, value in own.items()}


def pair(record: Record) -> tuple[int, str]:
    """What two arms share that are compared: the seed, and the very base that it came to."""
    return record["seed"], record.get("base", "")


def paired(*arms: Values) -> tuple[list[Values], bool]:
    """The values of arms where all have one: by seed and base, where that leaves two or more.

    Else they are by seed alone. Returns them in one order, and whether they share the seed alone.
    """
    alone: list[Values] = [{(seed, ""): value for (seed, _), value in arm.items()} for arm in arms]
    exact, seeds = (sorted(set.intersection(*map(set, each))) for each in (arms, alone))
    if seeds_of(exact) >= min(2, len(seeds)):
        return [{key: arm[key] for key in exact} for arm in arms], False
    return [{key: arm[key] for key in seeds} for arm in alone], True


def gain(problem: Problem, name: str, ours: Values, theirs: Values) -> Gain | None:
    """Of ``ours`` over ``theirs``, over the pairs that both have; None for fewer than two."""
    (ours, theirs), loose = paired(ours, theirs)
    return interval(relative(problem, name, ours, theirs), loose) if seeds_of(ours) > 1 else None


def relative(
    problem: Problem, name: str, ours: Values, theirs: Values, by: Values | None = None
) -> list[float]:
    """By how many per cent of a mean ours are better, at each seed.

    The mean is that of ``by``, or without it of ``theirs``.
    """
    sign = -1 if name in LOSSES or not higher(problem, name) else 1
    # of one seed, a count of few right answers may be zero
    unit = float(np.mean(by_seed(theirs if by is None else by)))
    gains = {seed: 100 * sign * (ours[seed] - theirs[seed]) for seed in ours}
    return by_seed({seed: each / unit if unit else 0.0 for seed, each in gains.items()})


def by_seed(each: Values) -> list[float]:
    """One number for a seed, in order.

    Where it was run from several bases, which are one draw rounded otherwise, it is their mean.
    """
    grouped: dict[int, list[float]] = {}
    for (seed, _), value in each.items():
        grouped.setdefault(seed, []).append(value)
    return [float(np.mean(values)) for _, values in sorted(grouped.items())]


def seeds_of(pairs: Iterable[tuple[int, str]]) -> int:
    return len({seed for seed, _ in pairs})


def gain_over_plain(problem: Problem, name: str, arm: str, arms: Arms) -> Gain | None:
    """Of an arm whose Students are of the size that the claim is about; None where it has none."""
    size = f"{problem.size:g}"
    if arm == "plain" or size not in arms[arm][0]["widths"]:
        return None
    return gain(problem, name, *(values(problem, arms[a], name, size) for a in (arm, "plain")))


def interval(each: Sequence[float], loose: bool = False) -> Gain:
    """The mean of paired differences, its 95 % interval, and the p-value of a paired t-test."""
    from scipy import stats

    mean, error = float(np.mean(each)), float(np.std(each, ddof=1) / math.sqrt(len(each)))
    if error == 0:
        return Gain(mean, mean, mean, 1.0 if mean == 0 else 0.0, loose)
    reach = float(stats.t.ppf(0.975, len(each) - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, len(each) - 1))
    return Gain(mean, mean - reach, mean + reach, p, loose)


def verdict(of: Gain | None) -> str:
    """What a gain's own interval says, uncorrected."""
    if of is None:
        return "too few seeds"
    return "better" if of.low > 0 else "worse" if of.high < 0 else "no difference shown"
