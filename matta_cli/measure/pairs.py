"""The comparisons of a report: which models it compares, and what each comparison says."""

from __future__ import annotations

import math
from collections.abc import Iterator

from matta_cli.measure.held_out import HeldOut
from matta_cli.measure.intervals import Difference, differences, holm
from matta_cli.report.claims import judged
from matta_cli.report.schema import Metric, ModelEntry, Pair, Report, Role

# resamples for each comparison made at once: with fewer, Holm's correction could not reach 0.05
EACH = 50

SURE = 0.05  # a p-value, corrected, below which chance is ruled out

Compared = tuple[ModelEntry, ModelEntry]


def families(report: Report) -> list[list[Compared]]:
    """The models that a report compares, the first with the second.

    What stands in one family is corrected together (Holm).
    """
    students, bases = report.students, report.of(Role.BASE)
    plain = {model.of: model for model in report.of(Role.PLAIN)}
    cuts = {model.of: model for model in report.of(Role.CUT)}
    others = [model for model in report.of(Role.ALONE, Role.SCRATCH) if model.of in plain]
    sized = sorted(students, key=lambda model: model.cost.parameters or 0)
    smaller = [(large, small) for i, large in enumerate(sized) for small in sized[:i]]
    return [
        [(student, plain[student.name]) for student in students if student.name in plain],
        [(other, plain[other.of]) for other in others],
        [(student, cuts[student.name]) for student in students if student.name in cuts],
        [(a, b) for a, b in smaller if a.cost.parameters != b.cost.parameters],
        [(student, base) for student in students for base in bases],
        [(ta, base) for ta in report.of(Role.TA) for base in bases],
    ]


def compared(report: Report, held_out: HeldOut) -> list[Pair]:
    """Every comparison of a report, in each of its metrics, of the models that were scored."""
    scored = held_out.models
    there = [
        [(a, b) for a, b in family if a.name in scored and b.name in scored]
        for family in families(report)
    ]
    recipe = held_out.recipe
    resamples = max(recipe.export.bootstrap, EACH * max(map(len, there)))
    pairs: list[Pair] = []
    for family in there:
        found = [differences(scored[a.name], scored[b.name], resamples) for a, b in family]
        for metric in report.metrics:
            rows = [
                (*models, own[metric.name])
                for models, own in zip(family, found, strict=True)
                if metric.name in own
            ]
            pairs += _corrected(rows, metric, recipe.export.margin)
    return pairs


def _corrected(
    rows: list[tuple[ModelEntry, ModelEntry, Difference]], metric: Metric, margin: float
) -> Iterator[Pair]:
    """The pairs of a family in one metric. margin: as a share of the second model's value."""
    sign = 1.0 if metric.higher else -1.0
    for (a, b, own), p in zip(rows, holm([own["p"] for _, _, own in rows]), strict=True):
        if not math.isfinite(own["value"]):
            continue  # a difference that is not defined says nothing
        low, high = sorted((sign * own["low"] + 0.0, sign * own["high"] + 0.0))
        loss = margin * abs(b.metrics[metric.name].value)
        yield Pair(
            a.name,
            b.name,
            metric.name,
            gain=sign * own["value"] + 0.0,
            low=low,
            high=high,
            margin=loss,
            verdict=judged(low, high, loss, p < SURE),
            p=own["p"],
            p_holm=p,
            test=own["test"],
        )
