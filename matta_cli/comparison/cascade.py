"""A cascade: a small model answers, and where it is unsure a larger one does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from matta_cli.data.split import Columns
from matta_cli.errors import MattaError
from matta_cli.measure import intervals
from matta_cli.tasks.task import Task

UNSURE = ("confidence", "margin")


LEAST = 40  # examples, half of which choose


_SHARES = np.arange(0.05, 1.0, 0.05)  # of the examples that are passed on


def check(task: Task, columns: Iterable[str], examples: int, unsure: str) -> None:
    """Raise ``MattaError`` where models whose answers have these columns do not say how sure they
    are, or of too few.
    """
    if unsure not in UNSURE:
        raise MattaError(f"--unsure {unsure!r} is not known: {', '.join(UNSURE)}.")
    if unsure not in columns:
        raise MattaError(
            f"A cascade needs models that say how sure they are of a class; those of {task.name} do not."
        )
    if examples < LEAST:
        raise MattaError(
            f"A cascade's threshold is chosen on half of the held-out examples, {LEAST} at least: pass more of them."
        )


def curve(
    task: Task,
    small: Columns,
    large: Columns,
    macs: tuple[int, int],
    resamples: int,
    unsure: str = "confidence",
) -> dict[str, Any]:
    """Quality and MACs of a cascade of two models over its threshold, in the manner of ThinkingViT
    (arXiv 2507.10800).

    small, large: their columns for the same examples, in random order. macs: per example, of each;
    an example that is passed on costs both. unsure: the column below whose threshold an example is
    passed on, the probability of the likeliest class or its margin over the next. Every second
    example chooses the thresholds: twenty shares that are passed on, and among these (and both
    models alone) the cheapest that is as good as the large model. All numbers are those of the
    other half.

    Raises ``MattaError`` for what ``check`` refuses.
    """
    check(task, small, len(next(iter(small.values()))), unsure)
    metric = task.metrics[0]
    assert metric.higher, "the primary metric of a task whose answers are right or wrong"
    halves = [
        ({k: v[i::2] for k, v in small.items()}, {k: v[i::2] for k, v in large.items()})
        for i in (0, 1)
    ]

    def point(half: int, threshold: float | None, passed: np.ndarray) -> dict[str, Any]:
        ours, theirs = halves[half]
        mixed = {name: np.where(passed, theirs[name], own) for name, own in ours.items()}
        alone = passed.all() and threshold is None
        cost = macs[1] if alone else macs[0] + float(passed.mean()) * macs[1]
        return {
            "threshold": threshold,
            "passed_on": float(passed.mean()),
            "macs": cost,
            "columns": mixed,
        }

    thresholds = np.unique(np.quantile(np.nan_to_num(halves[0][0][unsure]), _SHARES)).tolist()

    def points(half: int) -> list[dict[str, Any]]:
        sure = np.nan_to_num(halves[half][0][unsure])
        between = [point(half, t, sure < t) for t in thresholds]
        return [
            point(half, None, np.zeros(len(sure), bool)),
            *between,
            point(half, None, np.ones(len(sure), bool)),
        ]

    first = points(0)
    quality = [task.summarize(p["columns"])[metric.name] for p in first]
    chosen = min(
        (i for i, q in enumerate(quality) if q >= quality[-1]), key=lambda i: first[i]["macs"]
    )
    last = points(1)
    for p in last:
        p["metrics"] = task.summarize(p["columns"])
    best = last[chosen]
    against = {
        which: intervals.paired(task, [best["columns"]], [halves[1][side]], resamples)
        for side, which in enumerate(("small", "large"))
    }
    kind = "small alone" if chosen == 0 else "large alone" if chosen == len(last) - 1 else "cascade"
    shown = [{k: v for k, v in p.items() if k != "columns"} for p in last]
    return {
        "unsure": unsure,
        "examples": {
            "chosen_on": len(halves[0][0][unsure]),
            "measured_on": len(halves[1][0][unsure]),
        },
        "macs": {"small": macs[0], "large": macs[1]},
        "small": shown[0]["metrics"],
        "large": shown[-1]["metrics"],
        "curve": shown[1:-1],
        "chosen": {
            "kind": kind,
            **shown[chosen],
            "metrics": {
                name: vars(own)
                for name, own in intervals.intervals(task, [best["columns"]], resamples).items()
            },
            "against": against,
        },
    }
