"""What else the numbers of a report support, a sentence each."""

from __future__ import annotations

from collections.abc import Sequence

from matta_cli.report.claims import (
    BETTER,
    NO_WORSE,
    SAME,
    WORSE,
    Comparison,
    claim,
    compared,
    worth,
)
from matta_cli.report.headline import Pick
from matta_cli.report.numbers import in_seconds, number
from matta_cli.report.schema import Interval, Metric, ModelEntry, Report, Role, scored
from matta_cli.report.values import decimals_of, listed, shown

Scored = tuple[ModelEntry, Interval]


def findings(report: Report, best: Pick | None, rivals: Sequence[Comparison]) -> list[str]:
    """The sentences. rivals: Students against plain distillation of their size."""
    metric = report.primary
    if metric is None:
        return []
    found = [worth(rivals)]
    if best:
        found += [_against_base(report, metric, best), _faster(report, best)]
    if metric.higher is not None:
        found += [_trained(report, metric), _ta(report, metric)]
    return [sentence for sentence in found if sentence]


def _against_base(report: Report, metric: Metric, best: Pick) -> str:
    decimals, label = decimals_of(report, metric), metric.label
    own = (one.gain for one in compared(report, Role.BASE) if one.student is best.student)
    gain = next((f"; the gain on the same examples is {gain}" for gain in own), "")
    theirs = f"the base's {shown(best.theirs, decimals)}"
    return (
        f"{label[:1].upper() + label[1:]} is {shown(best.ours, decimals)} against {theirs}{gain}."
    )


def _faster(report: Report, best: Pick) -> str:
    """Only where even a slow run of the Student beats the base's usual one is it called faster."""
    fast = []
    for batch in batches(report):
        own, usual = best.student.timing(batch), best.base.latency(batch)
        if own.median and own.p95 and usual and own.p95 < usual:
            times = f"{in_seconds(own.median)} against {in_seconds(usual)}"
            fast.append(f"{usual / own.median:.1f}x at batch {batch} ({times})")
    return f"{best.called} is faster than the base: {listed(fast)}." if fast else ""


def _trained(report: Report, metric: Metric) -> str:
    pairs = with_cuts(report, metric)
    if not pairs:
        return ""
    better = sum(claim(report, ours, cut, metric) == BETTER for (ours, _), (cut, _) in pairs)
    decimals = decimals_of(report, metric)
    after, before = [number(value.value, decimals) for _, value in pairs[0]]
    widths = f"width{'s' if len(pairs) > 1 else ''}"
    beat = f"Training beat the untrained cut, beyond the intervals, at {better} of {len(pairs)}"
    return f"{beat} {widths}; at the smallest, {metric.label} went from {before} to {after}."


def _ta(report: Report, metric: Metric) -> str:
    ta, base = next(iter(scored(report.of(Role.TA), metric)), None), report.base
    today = base.measured(metric) if base else None
    if ta is None or base is None or today is None:
        return ""
    words = {
        BETTER: "better than",
        SAME: "no different from",
        NO_WORSE: "no worse than",
        WORSE: "worse than",
    }
    if not (how := words.get(claim(report, ta[0], base, metric))):
        return ""
    decimals = decimals_of(report, metric)
    values = f"{shown(ta[1], decimals)} against {shown(today, decimals)}"
    return f"The Teaching Assistant is {how} the base: {metric.label} {values}."


def batches(report: Report) -> list[int]:
    """The batch sizes at which some model was timed."""
    return sorted({batch for model in report.models for batch in model.cost.latency})


def with_cuts(report: Report, metric: Metric) -> list[tuple[Scored, Scored]]:
    """Each Student with its untrained cut, by size, where both have a value of a metric.

    At width 1.0 there is none: that cut is the base itself.
    """
    cuts = [one for one in scored(report.of(Role.CUT), metric) if one[0].width != 1.0]
    found = []
    for student, ours in scored(report.by_size(Role.STUDENT), metric):
        own = [one for one in cuts if one[0].of == student.name]
        if student.width is not None:  # older files name no Student
            own += [(m, v) for m, v in cuts if m.of is None and m.width == student.width]
        found += [((student, ours), cut) for cut in own[:1]]
    return found
