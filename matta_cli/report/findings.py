"""What else the numbers of a report support, a sentence each."""

from __future__ import annotations

from collections.abc import Sequence

from matta_cli.report.claims import THAN, Comparison, against_float, claim, compared, worth
from matta_cli.report.headline import Pick
from matta_cli.report.numbers import in_seconds, number, percent
from matta_cli.report.schema import Metric, ModelEntry, Report, Role
from matta_cli.report.values import both, decimals_of, decimals_of_both, listed, shown
from matta_cli.report.verdicts import BETTER


def findings(report: Report, best: Pick | None, rivals: Sequence[Comparison]) -> list[str]:
    """The sentences. rivals: Students against plain distillation of their size."""
    metric = report.primary
    if metric is None:
        return []
    found = [worth(rivals)]
    found += [_against_base(report, metric, best), _faster(report, best)] if best else []
    found += quantized(report)
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
    fast, of = [], report.timed
    for batch in batches(report, of):
        own, usual = best.student.timing(batch, of), best.base.latency(batch, of)
        if own.median and own.p95 and usual and own.p95 < usual:
            token = " a token" if of == "decode" else ""
            times = f"{in_seconds(own.median)}{token} against {in_seconds(usual)}"
            fast.append(f"{usual / own.median:.1f}x at batch {batch} ({times})")
    how = "generates" if of == "decode" else "is"
    return f"{best.called} {how} faster than the base: {listed(fast)}." if fast else ""


def quantized(report: Report) -> list[str]:
    """What each quantized Student loses against its float one, and what it costs."""
    found = []
    for one in against_float(report):
        own, other = one.student.cost.bytes, one.other.cost.bytes
        share = f" It has {percent(own / other)} of the bytes." if own and other else ""
        found.append(one.sentence + share)
    return found


def _trained(report: Report, metric: Metric) -> str:
    pairs = with_cuts(report, metric)
    pairs = [(student, cut) for student, cut in pairs if report.pair(student, cut, metric)]
    if not pairs:
        return ""
    better = sum(claim(report, student, cut, metric) == BETTER for student, cut in pairs)
    decimals = decimals_of_both(report, metric, *pairs[0])
    after, before = (number(m.metrics[metric.name].value, decimals) for m in pairs[0])
    widths = f"width{'s' if len(pairs) > 1 else ''}"
    beat = f"Training is sure to have beaten the untrained cut at {better} of {len(pairs)}"
    return f"{beat} {widths}; at the smallest, {metric.label} went from {before} to {after}."


def _ta(report: Report, metric: Metric) -> str:
    ta, base = next(iter(report.of(Role.TA)), None), report.base
    how = THAN.get(claim(report, ta, base, metric)) if ta and base else None
    if not ta or not base or not how:
        return ""
    values = both(report, metric, ta, base)
    return f"The Teaching Assistant is {how} the base: {metric.label} {values}."


def batches(report: Report, of: str = "latency") -> list[int]:
    """The batch sizes at which this was timed of some model."""
    every = (getattr(model.cost, of) for model in report.models)
    return sorted({batch for times in every for batch in times})


def with_cuts(report: Report, metric: Metric) -> list[tuple[ModelEntry, ModelEntry]]:
    """Each Student with its untrained cut, by size, where both have a value of a metric.

    At width 1.0 there is none: that cut is the base itself.
    """
    cuts = [cut for cut in report.scored(metric, Role.CUT) if cut.width != 1.0]
    found = []
    for student in report.scored(metric, Role.STUDENT):
        own = [cut for cut in cuts if cut.of == student.name]
        if student.width is not None:  # older files name no Student
            own += [cut for cut in cuts if cut.of is None and cut.width == student.width]
        found += [(student, cut) for cut in own[:1]]
    return found
