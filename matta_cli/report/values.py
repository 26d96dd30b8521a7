"""The values of a report as all of its texts show them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matta_cli.report.numbers import (
    MISSING,
    count,
    finite,
    in_bytes,
    in_seconds,
    number,
    places_for,
)
from matta_cli.report.schema import Interval, Metric, ModelEntry, Pair, Report
from matta_cli.report.verdicts import BETTER, SLIGHTLY, WORSE
from matta_cli.settings.budget import LIMITS, TIMED

_MOST = 8  # decimals

# a metric that says another one again, in another way
REPEATS = {"auc_loss": "auc"}


def distinct(report: Report) -> list[Metric]:
    """The metrics of a report without those that say another one again."""
    known = {metric.name for metric in report.metrics}
    return [metric for metric in report.metrics if REPEATS.get(metric.name) not in known]


def of_tokens(report: Report) -> str:
    """`` of 128 tokens``: what MACs and times of an example are of; empty where it has none."""
    known = next((model.cost.tokens for model in report.models if model.cost.tokens), None)
    return f" of {known:,} tokens" if known else ""


def in_one(loader: str) -> str:
    """An expression that loads a model, with its path in one piece."""
    return loader.replace("' + '", "")


def decimals_of(report: Report, metric: Metric) -> int:
    """Decimals of a metric: the narrowest interval shows two digits of its half width.

    And models that surely differ are not shown as the same.
    """
    return apart(report, metric, _usual_decimals(report, metric))


def apart(report: Report, metric: Metric, places: int) -> int:
    """So many decimals, or as many more as show what is better or worse as another value."""
    known = {m.name: v.value for m in report.models if (v := m.measured(metric))}
    for pair in report.pairs:
        real = pair.metric == metric.name and pair.verdict in (BETTER, SLIGHTLY, WORSE)
        if real and known.keys() >= {pair.a, pair.b} and known[pair.a] != known[pair.b]:
            a, b, tried = known[pair.a], known[pair.b], range(places, _MOST)
            needed = next((p for p in tried if number(a, p) != number(b, p)), places)
            places = max(needed, gain_places([pair])) if needed > places else places
    return places


def _usual_decimals(report: Report, metric: Metric) -> int:
    values = [value for model in report.models if (value := model.measured(metric))]
    spans = [v.high - v.low for v in values if v.low is not None and v.high is not None]
    if any(span > 0 for span in spans):
        return places_for([span / 2 for span in spans])
    sizes = [abs(value.value) for value in values if value.value]
    return min(5, max(0, 2 - math.floor(math.log10(max(sizes))))) if sizes else 3


def gain_places(pairs: Sequence[Pair]) -> int:
    """Decimals that show two digits of the narrowest interval of some gains."""
    halves = [(pair.high - pair.low) / 2 for pair in pairs if pair.high > pair.low]
    return places_for(halves or [pair.margin for pair in pairs])


def decimals_of_both(report: Report, metric: Metric, a: ModelEntry, b: ModelEntry) -> int:
    """Decimals that show two models' values; as many more as their difference needs to be seen."""
    places, pair = decimals_of(report, metric), report.pair(a, b, metric)
    values = {v.value for m in (a, b) if (v := m.measured(metric))}
    hidden = len(values) == 2 and len({number(value, places) for value in values}) == 1
    return max(places, gain_places([pair])) if pair and hidden else places


def span(value: Interval, decimals: int) -> str:
    """``[19.90, 20.30]``; nothing where no interval was measured."""
    if value.low is None or value.high is None:
        return ""
    return f"[{number(value.low, decimals)}, {number(value.high, decimals)}]"


def shown(value: Interval, decimals: int) -> str:
    """``20.10 [19.90, 20.30]``."""
    return f"{number(value.value, decimals)} {span(value, decimals)}".strip()


def both(report: Report, metric: Metric, a: ModelEntry, b: ModelEntry) -> str:
    """``20.90 [20.40, 21.40] against 20.00 [19.50, 20.50]``."""
    places = decimals_of_both(report, metric, a, b)
    values = (a.measured(metric), b.measured(metric))
    return " against ".join(shown(value, places) if value else MISSING for value in values)


def seconds_of(model: ModelEntry) -> float | None:
    """The device-seconds of its training; a Student's are those of the run that made them all."""
    seconds = model.training.seconds if model.training else None
    return seconds if finite(seconds) else None


def short(text: str, most: int = 24) -> str:
    """A text that is cut where it is too long."""
    return text if len(text) <= most else text[: most - 1] + "…"


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def amount(name: str, value: float) -> str:
    """An amount of a limit's name as people read it: ``1.23 M parameters``."""
    if name in TIMED:
        return f"a {LIMITS[name].label} of {in_seconds(value)}"
    if name == "bytes":
        return f"{in_bytes(value)} of weights"
    return f"{count(value)} {LIMITS[name].label}"
