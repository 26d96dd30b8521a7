"""A cascade: a small model answers, and where it is unsure a larger one does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from matta_cli.data.split import Columns
from matta_cli.errors import MattaError
from matta_cli.measure import intervals
from matta_cli.tasks.task import Task

UNSURE = ("confidence", "margin")
LEAST = 40  # examples, half of which choose
_SHARES = np.arange(0.05, 1.0, 0.05)  # of the examples that are passed on


@dataclass
class _Point:
    """A cascade at one threshold: the share that is passed on, what it costs, what it answers."""

    threshold: float | None
    passed_on: float
    macs: float
    columns: Columns

    def shown(self, task: Task) -> dict[str, Any]:
        numbers = {k: v for k, v in vars(self).items() if k != "columns"}
        return numbers | {"metrics": task.summarize(self.columns)}


def check(task: Task, columns: Iterable[str], examples: int, unsure: str) -> None:
    """Raise ``MattaError`` where models do not say how sure they are, or of too few examples.

    columns: those of the models' answers.
    """
    if unsure not in UNSURE:
        raise MattaError(f"--unsure {unsure!r} is not known: {', '.join(UNSURE)}.")
    if unsure not in columns:
        who = f"those of {task.name} do not"
        raise MattaError(f"A cascade needs models that say how sure they are of a class; {who}.")
    if examples < LEAST:
        half = f"half of the held-out examples, {LEAST} at least: pass more of them"
        raise MattaError(f"A cascade's threshold is chosen on {half}.")


def curve(
    task: Task,
    small: Columns,
    large: Columns,
    macs: tuple[int, int],
    resamples: int,
    unsure: str = "confidence",
) -> dict[str, Any]:
    """Quality and MACs of a cascade of two models over its threshold.

    In the manner of ThinkingViT (arXiv 2507.10800). small, large: their columns for the same
    examples, in random order. macs: per example, of each; an example that is passed on costs both.
    unsure: the column below whose threshold an example is passed on, the probability of the
    likeliest class or its margin over the next. Every second example chooses the thresholds: twenty
    shares that are passed on, and among these (and both models alone) the cheapest that is as good
    as the large model. All numbers are those of the other half.

    Raises ``MattaError`` for what ``check`` refuses.
    """
    check(task, small, len(next(iter(small.values()))), unsure)
    metric = task.metrics[0]
    assert metric.higher, "the primary metric of a task whose answers are right or wrong"
    choosing, measuring = (
        [{k: v[half::2] for k, v in columns.items()} for columns in (small, large)]
        for half in (0, 1)
    )
    sure = np.nan_to_num(choosing[0][unsure])
    thresholds = np.unique(np.quantile(sure, _SHARES)).tolist()
    first = _points(choosing, macs, thresholds, unsure)
    quality = [task.summarize(p.columns)[metric.name] for p in first]
    as_good = [i for i, q in enumerate(quality) if q >= quality[-1]]
    chosen = min(as_good, key=lambda i: first[i].macs)
    last = _points(measuring, macs, thresholds, unsure)
    best = [last[chosen].columns]
    shown = [point.shown(task) for point in last]
    metrics = intervals.intervals(task, best, resamples)
    return {
        "unsure": unsure,
        "examples": {"chosen_on": len(sure), "measured_on": len(measuring[0][unsure])},
        "macs": {"small": macs[0], "large": macs[1]},
        "small": shown[0]["metrics"],
        "large": shown[-1]["metrics"],
        "curve": shown[1:-1],
        "chosen": {
            "kind": {0: "small alone", len(last) - 1: "large alone"}.get(chosen, "cascade"),
            **shown[chosen],
            "metrics": {name: vars(own) for name, own in metrics.items()},
            "against": {
                which: intervals.paired(task, best, [alone], resamples)
                for which, alone in zip(("small", "large"), measuring, strict=True)
            },
        },
    }


def _points(
    both: Sequence[Columns], macs: tuple[int, int], thresholds: Sequence[float], unsure: str
) -> list[_Point]:
    """The small model alone, the cascade at each threshold, and the large model alone."""
    small, large = both

    def point(threshold: float | None, passed: np.ndarray, cost: float) -> _Point:
        mixed = {name: np.where(passed, large[name], own) for name, own in small.items()}
        return _Point(threshold, float(passed.mean()), cost, mixed)

    sure = np.nan_to_num(small[unsure])
    none, every = np.zeros(len(sure), bool), np.ones(len(sure), bool)
    between = [point(t, sure < t, macs[0] + float((sure < t).mean()) * macs[1]) for t in thresholds]
    return [point(None, none, float(macs[0])), *between, point(None, every, macs[1])]
