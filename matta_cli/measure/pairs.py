"""The comparisons of a report and of ``matta eval``: which models, and what each comes to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matta_cli.data.split import Columns
from matta_cli.measure import intervals
from matta_cli.measure.held_out import HeldOut
from matta_cli.measure.intervals import Difference, Metrics, differences, holm
from matta_cli.report.schema import Metric, ModelEntry, Pair, Report, Role
from matta_cli.settings.recipe import ExportSettings

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
        [(one, report.model(str(one.of))) for one in report.of(Role.QUANTIZED)],
        [(ta, base) for ta in report.of(Role.TA) for base in bases],
    ]


def compared(report: Report, held_out: HeldOut) -> list[Pair]:
    """Every comparison of a report, of the models that were scored.

    It is in each metric that has a direction: nothing is better or worse in another.
    """
    scored, settings = held_out.models, held_out.recipe.export
    pairs: list[Pair] = []
    for family in families(report):
        there = [(a, b) for a, b in family if a.name in scored and b.name in scored]
        found = [differences(scored[a.name], scored[b.name], settings.bootstrap) for a, b in there]
        for metric in (metric for metric in report.metrics if metric.higher is not None):
            rows = [
                (*models, own[metric.name])
                for models, own in zip(there, found, strict=True)
                # a report that another version wrote may lack a value
                if metric.name in own and metric.name in models[1].metrics
            ]
            corrected = holm([own["p"] for _, _, own in rows])
            for (a, b, own), p_holm in zip(rows, corrected, strict=True):
                if math.isfinite(own["value"]):  # what is not defined says nothing
                    theirs = b.metrics[metric.name].value
                    own["p_holm"] = p_holm
                    pairs.append(pair(a.name, b.name, metric, own, theirs, settings.margin))
    return pairs


def pair(a: str, b: str, metric: Metric, own: Difference, theirs: float, margin: float) -> Pair:
    """The comparison that a difference of ``a`` and ``b`` makes, whose verdict all go by.

    theirs: the value of ``b``. margin: as a share of it.
    """
    sign = 1.0 if metric.higher else -1.0
    low, high = sorted((sign * own["low"] + 0.0, sign * own["high"] + 0.0))
    return Pair(
        a,
        b,
        metric.name,
        gain=sign * own["value"] + 0.0,
        low=low,
        high=high,
        margin=margin * abs(theirs),
        p=own["p"],
        p_holm=own["p_holm"],
        test=own["test"],
        examples=own["examples"],
    )


class Judged(Difference):
    """A difference, and the verdict that ``eval`` gives; empty in a metric without a direction."""

    verdict: str


def against(
    task: Metrics,
    metrics: Sequence[Metric],
    tables: Mapping[str, Sequence[Columns]],
    reference: str,
    settings: ExportSettings,
) -> dict[str, dict[str, Judged]]:
    """Each other model less ``reference``, with verdicts in the metrics that have a direction."""
    known = {metric.name: metric for metric in metrics if metric.higher is not None}
    theirs = {k: v for own in tables[reference] for k, v in task.summarize(own).items()}
    found: dict[str, dict[str, Judged]] = {}
    measured = intervals.against(task, tables, reference, settings.bootstrap)
    for model, by_metric in measured.items():
        found[model] = {}
        for name, own in by_metric.items():
            judged = found[model][name] = Judged(**own, verdict="")
            if name in known and math.isfinite(own["value"]):
                one = pair(model, reference, known[name], own, theirs[name], settings.margin)
                judged["verdict"] = one.verdict
    return found
