"""The headline: what does the best small model cost, and what does it lose?"""

from __future__ import annotations

from dataclasses import dataclass

from matta_cli.report.claims import UNTOLD, claim
from matta_cli.report.numbers import count, number, percent
from matta_cli.report.schema import Interval, ModelEntry, Report, Role
from matta_cli.report.values import decimals_of, decimals_of_both, shown
from matta_cli.report.verdicts import BETTER, NO_WORSE, SAME, SLIGHTLY, UNCLEAR, WORSE

# what holds the base's quality: a loss within the margin does not count
HOLDS = (BETTER, SAME, NO_WORSE, SLIGHTLY)

# A worse Student that loses no more than this share is preferred to a larger one that loses less.
NEAR = 0.05

# Sizes this close count as the base's own size (a Student of width 1.0 is the base, up to
# rounding).
SAME_SIZE = 0.02


@dataclass(frozen=True)
class Pick:
    """A Student against the base. size: its share of the base's parameters."""

    student: ModelEntry
    base: ModelEntry
    ours: Interval
    theirs: Interval
    size: float
    verdict: str

    @property
    def loss(self) -> float:
        """How far the two values are apart, as a share of the base's."""
        return abs(self.ours.value - self.theirs.value) / (abs(self.theirs.value) or 1.0)

    @property
    def called(self) -> str:
        """``The Student of width 0.5``."""
        width = self.student.width
        which = f"“{self.student.name}”" if width is None else f"of width {width:g}"
        return f"The Student {which}"


def pick(report: Report) -> Pick | None:
    """The Student that a report is about: the smallest that holds the base's quality.

    Without one, the smallest that is a little worse; then the largest of which nothing can be said;
    then the one that loses least. None without a base whose size and quality are known.
    """
    metric, base = report.primary, next(iter(report.by_size(Role.BASE)), None)
    theirs = base.measured(metric) if base and metric else None
    if metric is None or base is None or theirs is None or not base.cost.parameters:
        return None
    picks = []
    for student in report.by_size(Role.STUDENT):
        if ours := student.measured(metric):
            size = (student.cost.parameters or 0) / base.cost.parameters
            verdict = claim(report, student, base, metric)
            picks.append(Pick(student, base, ours, theirs, size, verdict))
    smaller = [one for one in picks if one.size < 1 - SAME_SIZE]
    worse = [one for one in smaller if one.verdict == WORSE]
    good = [one for one in smaller if one.verdict in HOLDS]
    near = [one for one in worse if one.loss <= NEAR]
    unclear = [one for one in smaller if one.verdict in (UNCLEAR, UNTOLD)]
    best = [*good[:1], *near[:1], *unclear[-1:], *sorted(worse, key=lambda one: one.loss)]
    return next(iter(best or picks[-1:]), None)


def headline(report: Report) -> str:
    """One sentence with the answer, or with what was measured where there is no base."""
    metric, best = report.primary, pick(report)
    if not report.models:
        return "Nothing was measured."
    if metric is None or best is None:
        return _sizes(report)
    label, decimals = metric.label, decimals_of_both(report, metric, best.student, best.base)
    gap = abs(best.ours.value - best.theirs.value)
    by = number(gap, decimals) + (f" ({percent(best.loss)})" if best.theirs.value else "")
    both = f"{number(best.ours.value, decimals)} against {number(best.theirs.value, decimals)}"
    margin = _margin(report, best)
    tails = {
        BETTER: f"and is better than the base: {label} {both}, by the same examples.",
        SAME: f"and is no different from the base in {label}, within {margin}.",
        NO_WORSE: f"and is no worse than the base in {label}: it loses {margin} at most.",
        SLIGHTLY: f"and is slightly worse than the base in {label}, by {by}: no more than "
        f"{margin}, the margin.",
        WORSE: f"and is worse than the base in {label} by {by}.",
        UNCLEAR: f"but it is unclear whether it is worse than the base in {label}.",
        UNTOLD: f"with {label} {both}; without a comparison on the same examples no difference "
        "can be told.",
    }
    tail = tails[best.verdict] if metric.higher is not None else f"with {label} {both}."
    return f"{best.called} {_share(best.size)} {tail}"


def _sizes(report: Report) -> str:
    """The headline where there is nothing to compare: how many models, and how large."""
    students = report.by_size(Role.STUDENT)
    some = students or report.by_size() or report.models
    sizes = [count(model.cost.parameters) for model in some]
    what = "Student" if students else "model"
    if len(some) > 1:
        return f"{len(some)} {what}s, from {sizes[0]} to {sizes[-1]} parameters."
    metric = report.primary
    value = some[0].measured(metric) if metric else None
    tail = (
        f", {metric.label} {shown(value, decimals_of(report, metric))}" if metric and value else ""
    )
    return f"One {what}, {some[0].name}: {sizes[0]} parameters{tail}."


def _share(size: float) -> str:
    """A size in words."""
    if abs(size - 1) <= SAME_SIZE:
        return "is the base's size"
    share = percent(size) if size < 1 else f"{size:.1f}x"
    return f"has {share}{' of' if size < 1 else ''} the base's parameters"


def _margin(report: Report, best: Pick) -> str:
    """The loss that does not count, as a share of the base's value."""
    pair = report.pair(best.student, best.base, report.metrics[0])
    value = abs(best.theirs.value)
    return percent(pair.margin / value) if pair and value else "the margin"
