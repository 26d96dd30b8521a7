"""What may be claimed of two models: the verdict of their comparison on the same examples.

Without one (in a file of an older matta) nothing is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matta_cli.report.numbers import duration, number, percent, places_for, signed
from matta_cli.report.schema import Metric, ModelEntry, Pair, Report, Role
from matta_cli.report.values import gain_places, listed, seconds_of
from matta_cli.report.verdicts import (
    BETTER,
    NO_WORSE,
    SAME,
    SLIGHTLY,
    UNCLEAR,
    VERDICTS,
    WORSE,
    why_unclear,
)

# of two models that were not compared
UNTOLD = "untold"

THAN = {
    BETTER: "better than",
    SAME: "no different from",
    NO_WORSE: "no worse than",
    SLIGHTLY: "slightly worse than",
    WORSE: "worse than",
}


def says(verdict: str, a: str, b: str, metric: Metric) -> str:
    """What a verdict says of ``a`` against ``b``, without its numbers and its full stop."""
    if verdict in THAN:
        return f"{a} is {THAN[verdict]} {b} in {metric.label}"
    return f"It is unclear whether {a} is better or worse than {b} in {metric.label}"


def claim(report: Report, a: ModelEntry, b: ModelEntry, metric: Metric) -> str:
    """What may be said of ``a`` against ``b``: a verdict, or ``UNTOLD``.

    Nothing is better or worse in a metric that has no direction, or without a comparison on the
    same examples: the two models' own intervals say nothing of their difference.
    """
    pair = report.pair(a, b, metric) if metric.higher is not None else None
    return pair.verdict if pair else UNTOLD


def why(pair: Pair) -> str:
    """Why a pair is unclear, where that is not how wide its interval is; else empty."""
    return why_unclear(pair.low, pair.high, pair.p, pair.examples)


@dataclass(frozen=True)
class Comparison:
    """A Student against another model, on the same examples. places: decimals of the gain."""

    student: ModelEntry
    other: ModelEntry
    metric: Metric
    pair: Pair
    places: int

    @property
    def verdict(self) -> str:
        return self.pair.verdict

    @property
    def gain(self) -> str:
        """``+0.50 (1.2 %; 95 %: +0.20 to +0.80)``; the share is of the other's value."""
        pair, value = self.pair, self.other.measured(self.metric)
        gain = signed(pair.gain, self.places)
        share = f"{percent(abs(pair.gain / value.value))}; " if value and value.value else ""
        ends = f"{signed(pair.low, self.places)} to {signed(pair.high, self.places)}"
        # what is shown as zero is no share of anything
        return f"{gain} ({share if gain[0] in '+−' else ''}95 %: {ends})"

    @property
    def by_how_much(self) -> str:
        """``by 0.50 (1.2 %; ...)`` where there is a difference; else the gain."""
        real = self.verdict in (BETTER, SLIGHTLY, WORSE)
        return f"by {self.gain.lstrip('+−')}" if real else self.gain

    @property
    def sentence(self) -> str:
        """The verdict in words, with its numbers."""
        other = "the base" if self.other.role is Role.BASE else self.other.name
        said = says(self.verdict, self.student.name, other, self.metric)
        margin = number(self.pair.margin, places_for([self.pair.margin]))
        reason = why(self.pair) or f"where a loss above {margin} would count"
        tail = {
            SAME: f": {self.gain}, within ±{margin}.",
            NO_WORSE: f": {self.gain}, a loss of {margin} at most.",
            SLIGHTLY: f", {self.by_how_much}, no more than the margin of {margin}.",
            UNCLEAR: f": {self.gain}, {reason}.",
        }
        return said + tail.get(self.verdict, f", {self.by_how_much}.")


def compared(report: Report, role: Role) -> list[Comparison]:
    """Each Student, by size, against its model of a role (or the base), in the first metric."""
    students, others = report.by_size(Role.STUDENT), report.of(role)
    both = [(own, other) for own in students for other in others]
    return _compared(report, [(a, b) for a, b in both if role is Role.BASE or b.of == a.name])


def against_float(report: Report) -> list[Comparison]:
    """Each quantized Student against its float one, in the first metric."""
    both = [(one, own) for one in report.of(Role.QUANTIZED) for own in report.students]
    return _compared(report, [(one, own) for one, own in both if own.name == one.of])


def _compared(report: Report, both: Sequence[tuple[ModelEntry, ModelEntry]]) -> list[Comparison]:
    """What is known of the first of each two models against the second."""
    metric = report.primary
    if metric is None or metric.higher is None:
        return []
    found = [(a, b, pair) for a, b in both if (pair := report.pair(a, b, metric))]
    places = gain_places([pair for _, _, pair in found])
    return [Comparison(a, b, metric, pair, places) for a, b, pair in found]


def worth(rivals: Sequence[Comparison]) -> str:
    """One sentence: what nesting came to against distilling each size alone; empty without any."""
    if not rivals:
        return ""
    counts = [(word, sum(one.verdict == word for one in rivals)) for word in VERDICTS]
    said = [f"{word} at {n}" for word, n in counts if n]
    said[0] += f" of {len(rivals)} size{'s' if len(rivals) > 1 else ''}"
    start = "Against plain distillation of the same size, start, data and steps"
    sentence = f"{start}: {listed(said)}."
    run = seconds_of(rivals[0].student)
    alone = [seconds for one in rivals if (seconds := seconds_of(one.other)) is not None]
    if run is not None and len(alone) == len(rivals):
        many = f"these {len(alone)} runs" if len(alone) > 1 else "that run"
        sentence += f" The nested run took {duration(run)} of a device for all its Students and "
        sentence += f"the TA, {many} {duration(sum(alone))}."
    return sentence
