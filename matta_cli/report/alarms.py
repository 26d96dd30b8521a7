"""What a person should look at before trusting the numbers of a report."""

from __future__ import annotations

from collections.abc import Sequence

from matta_cli.report.claims import UNTOLD, Comparison, against_float, claim, compared, says, why
from matta_cli.report.findings import with_cuts
from matta_cli.report.schema import Metric, ModelEntry, Report, Role
from matta_cli.report.values import both, distinct, listed
from matta_cli.report.verdicts import BETTER, UNCLEAR, WORSE


def alarms(report: Report, rivals: Sequence[Comparison]) -> list[str]:
    """The sentences; none when all is well. rivals: Students against plain distillation."""
    found = _parity(report)
    found += [one.sentence for one in rivals if one.verdict == WORSE]
    found += [one.sentence for one in against_float(report) if one.verdict == WORSE]
    found += _unclear(rivals) + _unclear(compared(report, Role.BASE))
    found += _larger_but_worse(report)
    if report.primary and report.primary.higher is not None:
        # other metrics mostly repeat what the first one says of noise
        found += _no_better_than_cut(report, report.primary)
    return found + _harmed(report) + _uncompared(report)


def _parity(report: Report) -> list[str]:
    found = []
    for model in report.students:
        if model.parity and model.parity.exact is False:
            gap = model.parity.max_difference
            by = "" if gap is None else f" (largest difference {gap:.3g})"
            not_exact = "the exported checkpoint does not give exactly the outputs of the trained"
            why = "do not serve it before you know why."
            found.append(f"{model.name}: {not_exact} slice{by}; {why}")
    return found


def _unclear(comparisons: Sequence[Comparison]) -> list[str]:
    """One alarm for all comparisons that are unclear, about the one of the widest interval."""
    unclear = [one for one in comparisons if one.verdict == UNCLEAR]
    if not unclear:
        return []
    widest = max(unclear, key=lambda one: one.pair.high - one.pair.low)
    also = [one.student.name for one in unclear if one is not widest]
    more = f" Nor can it be said of {listed(also)}." if also else ""
    return [f"{widest.sentence}{more} Evaluate on more data."]


def _larger_but_worse(report: Report) -> list[str]:
    """One alarm for each larger Student, against the best of the smaller ones that beat it.

    They are those of the first metric in which any does; in which others it is worse, too.
    """
    found, students = [], report.by_size(Role.STUDENT)
    for large in students:
        size, beaten = large.cost.parameters or 0, []
        smaller = [one for one in students if (one.cost.parameters or 0) < size]
        for metric in distinct(report):
            ahead = [one for one in smaller if claim(report, large, one, metric) == WORSE]
            if best := _best(ahead, metric):
                beaten.append((metric, best))
        if beaten:
            metric, best = beaten[0]
            values = f"{metric.label}: {both(report, metric, large, best)}"
            also = [other.label for other, _ in beaten[1:]]
            more = f", and in {listed(also)}" if also else ""
            found.append(f"{large.name} is larger than {best.name} but worse in {values}{more}.")
    return found


def _best(models: Sequence[ModelEntry], metric: Metric) -> ModelEntry | None:
    sign = 1.0 if metric.higher else -1.0
    return max(models, key=lambda one: sign * one.metrics[metric.name].value, default=None)


def _no_better_than_cut(report: Report, metric: Metric) -> list[str]:
    found = []
    for student, cut in with_cuts(report, metric):
        verdict = claim(report, student, cut, metric)
        if verdict not in (BETTER, UNTOLD):
            said = says(verdict, student.name, "its untrained cut", metric)
            values = both(report, metric, student, cut)
            pair = report.pair(student, cut, metric)
            if pair is not None and pair.low > 0:  # its p-value alone is in the way
                few = f"is ahead of its untrained cut, but {why(pair)}"
                more = "measure with more (export.bootstrap)"
                found.append(f"{student.name} {few}: {more}: {values}.")
                continue
            found.append(f"{said}: {values}; it cannot be said that training helped.")
    return found


def _harmed(report: Report) -> list[str]:
    """At the base's own width there is no smaller cut to beat: level is fine, worse is not."""
    found, base = [], report.base
    for student in report.students:
        worse = [m for m in distinct(report) if base and claim(report, student, base, m) == WORSE]
        if base and student.width == 1.0 and worse:
            values = f"{worse[0].label}: {both(report, worse[0], student, base)}"
            more = f", and in {listed([m.label for m in worse[1:]])}" if worse[1:] else ""
            harm = f"has the base's size but is worse in {values}{more}; training did it harm."
            found.append(f"{student.name} {harm}")
    return found


def _uncompared(report: Report) -> list[str]:
    """One alarm for all metrics in which there are Students and others, and no comparison.

    A search compares none: what it found is compared when it is exported.
    """
    if any(model.searched for model in report.models):
        return []
    labels = []
    for metric in distinct(report):
        students = report.scored(metric, Role.STUDENT)
        others = report.scored(metric, Role.BASE) + students[1:]
        if metric.higher is not None and students and others:
            known = (report.pair(a, b, metric) for a in report.models for b in report.models)
            labels += [] if any(known) else [metric.label]
    if not labels:
        return []
    none = f"No models were compared on the same examples in {listed(labels)}"
    return [f"{none}: no difference can be called real; matta report compares them."]
