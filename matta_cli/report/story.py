"""The report: one dict of numbers in; a headline, alarms, a table and Markdown out. The web page is
drawn in ``page``.

Nothing here measures, prints or imports torch. Every sentence is computed from the numbers. What is
said of two models is the verdict of their comparison on the same examples. Without one (in a file
of an older matta) a difference is claimed only where two 95 % intervals do not overlap.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from matta_cli.report.numbers import (
    MISSING,
    count,
    duration,
    finite,
    in_bytes,
    in_seconds,
    number,
    percent,
    places_for,
    signed,
)

Dict = dict[str, Any]


# A worse Student that loses no more than this share is preferred to a larger one that loses less.
NEAR = 0.05


# Sizes this close count as the base's own size (a Student of width 1.0 is the base, up to
# rounding).
SAME_SIZE = 0.02


# --- reading the report ---------------------------------------------------------------------------


class Value(NamedTuple):
    value: float
    low: float | None
    high: float | None


def models_of(report: Dict, role: str | None = None) -> list[Dict]:
    return [m for m in report.get("models") or [] if role is None or m.get("role") == role]


def metrics_of(report: Dict) -> list[Dict]:
    return report.get("metrics") or []


def label_of(metric: Dict) -> str:
    return str(metric.get("label") or metric["name"])


def name_of(model: Dict) -> str:
    return str(model.get("name") or model.get("role") or "model")


def value_of(model: Dict, metric: Dict) -> Value | None:
    got = (model.get("metrics") or {}).get(metric["name"]) or {}
    if not finite(got.get("value")):
        return None
    ends = sorted(end for end in (got.get("low"), got.get("high")) if finite(end))
    return Value(got["value"], *ends) if len(ends) == 2 else Value(got["value"], None, None)


def latency_of(model: Dict, batch: int, what: str = "median") -> float | None:
    value = ((model.get("latency") or {}).get(str(batch)) or {}).get(what)
    return value if finite(value) else None


def _batches(report: Dict) -> list[int]:
    return sorted({int(batch) for m in models_of(report) for batch in m.get("latency") or {}})


def decimals_of(report: Dict, metric: Dict) -> int:
    """Enough decimals for the narrowest interval to show two digits of its half width; the same for
    the whole column.
    """
    values = [v for m in models_of(report) if (v := value_of(m, metric))]
    halves = [
        (v.high - v.low) / 2
        for v in values
        if v.low is not None and v.high is not None and v.high > v.low
    ]
    if halves:
        return places_for(halves)
    sizes = [abs(v.value) for v in values if v.value]
    return min(5, max(0, 2 - math.floor(math.log10(max(sizes))))) if sizes else 3


def interval_of(value: Value, decimals: int) -> str:
    if value.low is None or value.high is None:
        return ""
    return f"[{number(value.low, decimals)}, {number(value.high, decimals)}]"


def shown(value: Value, decimals: int) -> str:
    return f"{number(value.value, decimals)} {interval_of(value, decimals)}".strip()


def by_size(models: list[Dict]) -> list[Dict]:
    sized = [m for m in models if finite(m.get("parameters"))]
    return sorted(sized, key=lambda m: m["parameters"])


# --- what may be claimed --------------------------------------------------------------------------


class Pair(NamedTuple):
    """Two models on the same examples: what ``a`` gains over ``b`` (above zero is better, whatever
    the metric's direction).
    """

    a: str
    b: str
    gain: float
    low: float
    high: float
    margin: float
    verdict: str


BETTER, SAME, NO_WORSE, WORSE, WIDE = (
    "better",
    "no different",
    "no worse",
    "worse",
    "too wide to say",
)


# Two models that were not compared on the same examples: their intervals overlap; they have none.
UNTOLD, UNKNOWN = "untold", "unknown"


_SAYS = {
    BETTER: "{a} is better than {b} in {label}",
    SAME: "{a} is no different from {b} in {label}",
    NO_WORSE: "{a} is no worse than {b} in {label}",
    WORSE: "{a} is worse than {b} in {label}",
    WIDE: "The interval is too wide to say whether {a} is better or worse than {b} in {label}",
    UNTOLD: "Without a comparison on the same examples it cannot be told whether {a} is better or worse than {b} in {label}",
}


def judged(low: float, high: float, margin: float, sure: bool = True) -> str:
    """What a 95 % interval of a gain says, where a loss of no more than ``margin`` (0 or more) does
    not count.

    sure: whether chance alone is ruled out for all comparisons that were made at once: a claim
    needs that, an alarm does not.
    """
    if low > 0 and sure:
        return BETTER
    if low >= -margin:
        return SAME if high <= margin else NO_WORSE
    return WORSE if high < 0 else WIDE


def pair_of(report: Dict, a: Dict, b: Dict, metric: Dict) -> Pair | None:
    """The comparison of two models on the same examples, if there is one."""
    for pair in report.get("pairs") or []:
        if (pair.get("a"), pair.get("b"), pair.get("metric")) == (
            name_of(a),
            name_of(b),
            metric["name"],
        ):
            gain, low, high, margin = (pair.get(key) for key in ("gain", "low", "high", "margin"))
            if not (finite(gain) and finite(low) and finite(high) and finite(margin)):
                return None
            return Pair(
                pair["a"],
                pair["b"],
                gain,
                low,
                high,
                margin,
                pair.get("verdict") or judged(low, high, margin, False),
            )
    return None


def claim(report: Dict, a: Dict, b: Dict, metric: Dict) -> str:
    """What may be said of ``a`` against ``b`` in a metric: a verdict, ``UNTOLD`` or ``UNKNOWN``.

    The verdict of the comparison on the same examples; without one, what two intervals that do not
    overlap say. Nothing is better or worse in a metric that has no direction.
    """
    if metric.get("higher") is None:
        return UNKNOWN
    if pair := pair_of(report, a, b, metric):
        return pair.verdict
    ours, theirs = value_of(a, metric), value_of(b, metric)
    if not ours or not theirs or None in (*ours, *theirs):
        return UNKNOWN
    if metric["higher"]:
        above, below = ours.low > theirs.high, ours.high < theirs.low
    else:
        above, below = ours.high < theirs.low, ours.low > theirs.high
    return BETTER if above else WORSE if below else UNTOLD


def rivals(report: Dict, role: str = "plain") -> list[tuple[Dict, Dict, Pair]]:
    """Each Student with its baseline of a role and their comparison in the first metric, by size."""
    found = []
    for student in by_size(models_of(report, "student")) if metrics_of(report) else []:
        for model in models_of(report, role):
            if model.get("of") == name_of(student) and (
                pair := pair_of(report, student, model, metrics_of(report)[0])
            ):
                found.append((student, model, pair))
    return found


def by_how_much(report: Dict, pair: Pair) -> str:
    """``by 0.012 (0.5 %; 95 %: 0.004 to 0.020)``, or the interval alone where that says nothing."""
    gain = _gain(report, pair)
    return f"by {gain.lstrip('+−')}" if pair.verdict in (BETTER, WORSE) else gain


def _gain(report: Dict, pair: Pair) -> str:
    """A gain with its sign, its share of the other's value and its interval."""
    metric = metrics_of(report)[0]
    gains = [p for _, _, p in rivals(report)] or [pair]
    places = places_for(
        [(p.high - p.low) / 2 for p in gains if p.high > p.low]
        or [p.margin for p in gains if p.margin]
    )
    other = next(
        (v for m in models_of(report) if name_of(m) == pair.b and (v := value_of(m, metric))), None
    )
    share = (
        f"{percent(abs(pair.gain / other.value))}; " if other and other.value and pair.gain else ""
    )
    span = f"{signed(pair.low, places)} to {signed(pair.high, places)}"
    return f"{signed(pair.gain, places)} ({share}95 %: {span})"


def sentence_of(report: Dict, student: Dict, baseline: Dict, pair: Pair) -> str:
    """A plain verdict on a Student against a baseline of its size."""
    label, much = label_of(metrics_of(report)[0]), by_how_much(report, pair)
    says = _SAYS[pair.verdict].format(a=name_of(student), b=name_of(baseline), label=label)
    margin = number(pair.margin, places_for([pair.margin]))
    return {
        BETTER: f"{says}, {much}.",
        SAME: f"{says}: {much}, within ±{margin}.",
        NO_WORSE: f"{says}: {much}, a loss of {margin} at most.",
        WORSE: f"{says}, {much}.",
        WIDE: f"{says}: {much}, where a loss above {margin} would count.",
    }[pair.verdict]


def worth(report: Dict) -> str:
    """One sentence: what nesting came to against distilling each size alone. Empty where that was
    not tried.
    """
    found = rivals(report)
    if not found:
        return ""
    counts = [
        (word, sum(pair.verdict == word for _, _, pair in found))
        for word in (BETTER, SAME, NO_WORSE, WORSE, WIDE)
    ]
    said = [f"{word} at {n}" for word, n in counts if n]
    sizes = f" of {len(found)} size{'s' if len(found) > 1 else ''}"
    sentence = f"Against plain distillation of the same size, start, data and steps: {_list([said[0] + sizes, *said[1:]])}."
    alone, run = [seconds_of(baseline) for _, baseline, _ in found], seconds_of(found[0][0])
    if finite(run) and all(map(finite, alone)):
        many = f"these {len(alone)} runs" if len(alone) > 1 else "that run"
        sentence += f" The nested run took {duration(run)} of a device for all its Students and the TA, {many} "
        sentence += f"{duration(sum(seconds or 0.0 for seconds in alone))}."
    return sentence


def seconds_of(model: Dict) -> float | None:
    """The device-seconds of a model's training; a Student's are those of the run that made all of
    them.
    """
    seconds = (model.get("training") or {}).get("seconds")
    return seconds if finite(seconds) else None


class Pick(NamedTuple):
    student: Dict
    base: Dict
    ours: Value
    theirs: Value
    ratio: float
    verdict: str


def headliner(report: Dict) -> Pick | None:
    """The Student that the headline is about: the smallest that holds the base's quality, else the
    best compromise.
    """
    metrics, bases = metrics_of(report), by_size(models_of(report, "base"))
    if not metrics or not bases or not bases[0]["parameters"]:
        return None
    metric, base = metrics[0], bases[0]
    if not (theirs := value_of(base, metric)):
        return None
    picks = [
        Pick(
            student,
            base,
            ours,
            theirs,
            student["parameters"] / base["parameters"],
            claim(report, student, base, metric),
        )
        for student in by_size(models_of(report, "student"))
        if (ours := value_of(student, metric))
    ]
    smaller = [p for p in picks if p.ratio < 1 - SAME_SIZE]
    if not smaller:
        return picks[-1] if picks else None
    if good := [p for p in smaller if p.verdict in (BETTER, SAME, NO_WORSE)]:
        return good[0]
    worse = [p for p in smaller if p.verdict == WORSE]
    losses = [abs(p.ours.value - theirs.value) / (abs(theirs.value) or 1.0) for p in worse]
    if near := [p for p, loss in zip(worse, losses, strict=True) if loss <= NEAR]:
        return near[0]
    unclear = [p for p in smaller if p.verdict != WORSE]
    return unclear[-1] if unclear else worse[losses.index(min(losses))]


def _called(model: Dict) -> str:
    width = model.get("width")
    return f"The Student of width {width:g}" if finite(width) else f"The Student “{name_of(model)}”"


def _size(ratio: float) -> str:
    if abs(ratio - 1) <= SAME_SIZE:
        return "is the base's size"
    return (
        f"has {percent(ratio)} of the base's parameters"
        if ratio < 1
        else f"has {ratio:.1f}x the base's parameters"
    )


def headline(report: Dict) -> str:
    """One sentence that answers: what does the best small model cost, and what does it lose?"""
    models, metrics = models_of(report), metrics_of(report)
    if not models:
        return "Nothing was measured."
    pick = headliner(report)
    if pick is None:
        students = by_size(models_of(report, "student"))
        some = students or by_size(models) or models
        sizes = [count(m.get("parameters")) for m in some]
        what = "Student" if students else "model"
        if len(some) > 1:
            return f"{len(some)} {what}s, from {sizes[0]} to {sizes[-1]} parameters."
        value = value_of(some[0], metrics[0]) if metrics else None
        tail = (
            f", {label_of(metrics[0])} {shown(value, decimals_of(report, metrics[0]))}"
            if value
            else ""
        )
        return f"One {what}, {name_of(some[0])}: {sizes[0]} parameters{tail}."
    metric = metrics[0]
    label, decimals = label_of(metric), decimals_of(report, metric)
    s, b = pick.ours, pick.theirs
    pair = f"{number(s.value, decimals)} against {number(b.value, decimals)}"
    if metric.get("higher") is None:
        return f"{_called(pick.student)} {_size(pick.ratio)} with {label} {pair}."
    gap = abs(s.value - b.value)
    by = number(gap, decimals) + (f" ({percent(gap / abs(b.value))})" if b.value else "")
    loss = _margin(report, pick)
    tail = {
        BETTER: f"and is better than the base: {label} {pair}, beyond the 95 % intervals.",
        SAME: f"and is no different from the base in {label}, within {loss}.",
        NO_WORSE: f"and is no worse than the base in {label}: it loses {loss} at most.",
        WORSE: f"and is worse than the base in {label} by {by}.",
        WIDE: f"but the 95 % interval is too wide to say whether it is worse than the base in {label}.",
        UNTOLD: f"with {label} {pair}; without a comparison on the same examples no difference can be told.",
        UNKNOWN: f"with {label} {pair} (no intervals were measured, so no difference is claimed).",
    }[pick.verdict]
    return f"{_called(pick.student)} {_size(pick.ratio)} {tail}"


def _margin(report: Dict, pick: Pick) -> str:
    """The loss that does not count, as a share of the base's value."""
    pair = pair_of(report, pick.student, pick.base, metrics_of(report)[0])
    value = pick.theirs.value
    return percent(pair.margin / abs(value)) if pair and value else "the margin"


def findings(report: Dict) -> list[str]:
    """What else the numbers support, a sentence each."""
    found: list[str] = []
    metrics, pick = metrics_of(report), headliner(report)
    if not metrics:
        return found
    if said := worth(report):
        found.append(said)
    metric = metrics[0]
    label, decimals = label_of(metric), decimals_of(report, metric)
    if pick:
        ours, theirs = pick.ours, pick.theirs
        values = f"{shown(ours, decimals)} against the base's {shown(theirs, decimals)}"
        pair = pair_of(report, pick.student, pick.base, metric)
        gain = f"; the gain on the same examples is {_gain(report, pair)}" if pair else ""
        found.append(f"{label[:1].upper() + label[1:]} is {values}{gain}.")
        fast = []
        for batch in _batches(report):
            quick, usual = latency_of(pick.student, batch), latency_of(pick.base, batch)
            slow = latency_of(pick.student, batch, "p95")
            # Only where even a slow run of the Student beats the base's usual one is it called
            # faster.
            if quick and usual and slow and slow < usual:
                fast.append(
                    f"{usual / quick:.1f}x at batch {batch} ({in_seconds(quick)} against {in_seconds(usual)})"
                )
        if fast:
            found.append(f"{_called(pick.student)} is faster than the base: {_list(fast)}.")
    pairs = _pairs(report, metric) if metric.get("higher") is not None else []
    if pairs:
        better = sum(claim(report, student, cut, metric) == BETTER for student, _, cut, _ in pairs)
        _, small, _, cut = pairs[0]
        found.append(
            f"Training beat the untrained cut, beyond the intervals, at {better} of {len(pairs)} "
            f"width{'s' if len(pairs) > 1 else ''}; at the smallest, {label} went from "
            f"{number(cut.value, decimals)} to {number(small.value, decimals)}."
        )
    ta, base = models_of(report, "ta"), models_of(report, "base")
    if ta and base and (t := value_of(ta[0], metric)) and (today := value_of(base[0], metric)):
        says = {
            BETTER: "better than",
            SAME: "no different from",
            NO_WORSE: "no worse than",
            WORSE: "worse than",
        }
        if how := says.get(claim(report, ta[0], base[0], metric)):
            values = f"{shown(t, decimals)} against {shown(today, decimals)}"
            found.append(f"The Teaching Assistant is {how} the base: {label} {values}.")
    return found


def _pairs(report: Dict, metric: Dict) -> list[tuple[Dict, Value, Dict, Value]]:
    """Each Student and its untrained cut, with their values. At width 1.0 there is none: that cut
    is the base itself.
    """
    cuts = {
        m.get("of") or m.get("width"): m for m in models_of(report, "cut") if m.get("width") != 1.0
    }
    paired = [
        (s, cuts.get(name_of(s)) or cuts.get(s.get("width")))
        for s in by_size(models_of(report, "student"))
    ]
    found = [(s, value_of(s, metric), cut, value_of(cut, metric)) for s, cut in paired if cut]
    return [(student, ours, cut, theirs) for student, ours, cut, theirs in found if ours and theirs]


def alarms(report: Dict) -> list[str]:
    """What a person should look at before trusting the numbers. Empty when all is well."""
    found: list[str] = []
    for model in models_of(report, "student"):
        parity = model.get("parity") or {}
        if parity.get("exact") is False:
            gap = parity.get("max_difference")
            by = f" (largest difference {gap:.3g})" if finite(gap) else ""
            found.append(
                f"{name_of(model)}: the exported checkpoint does not give exactly the outputs of the trained slice{by}; "
                "do not serve it before you know why."
            )
    found += [sentence_of(report, *rival) for rival in rivals(report) if rival[2].verdict == WORSE]
    found += _unclear(report, rivals(report)) + _unclear(report, _against_base(report))
    students, bases = by_size(models_of(report, "student")), models_of(report, "base")
    for metric in metrics_of(report):
        # other metrics mostly repeat what it says of noise
        primary = metric is metrics_of(report)[0]
        label, decimals = label_of(metric), decimals_of(report, metric)
        scored = [(m, v) for m in students if (v := value_of(m, metric))]
        reference = value_of(bases[0], metric) if bases else None

        for large, value in scored:
            smaller = [(m, v) for m, v in scored if m["parameters"] < large["parameters"]]
            # one alarm for each larger Student, against the best of the smaller ones
            if ahead := [(m, v) for m, v in smaller if claim(report, large, m, metric) == WORSE]:
                small, best = (max if metric.get("higher") else min)(
                    ahead, key=lambda pair: pair[1].value
                )
                found.append(
                    f"{name_of(large)} is larger than {name_of(small)} but worse in {label}: "
                    f"{shown(value, decimals)} against {shown(best, decimals)}."
                )

        for student, ours, untrained, cut in _pairs(report, metric) if primary else []:
            verdict = claim(report, student, untrained, metric)
            if verdict not in (BETTER, UNKNOWN):
                says = _SAYS[verdict].format(a=name_of(student), b="its untrained cut", label=label)
                found.append(
                    f"{says}: {shown(ours, decimals)} against {shown(cut, decimals)}; "
                    "it cannot be said that training helped."
                )

        # At the base's own width there is no smaller cut to beat: level is fine, worse is not.
        for student, value in scored:
            if (
                student.get("width") == 1.0
                and reference
                and claim(report, student, bases[0], metric) == WORSE
            ):
                found.append(
                    f"{name_of(student)} has the base's size but is worse in {label}: {shown(value, decimals)} against "
                    f"{shown(reference, decimals)}; training did it harm."
                )

        # Against the base; in a report without one, against the largest Student.
        against = bases[0] if reference else scored[-1][0] if len(scored) > 1 else None
        others = [m for m, _ in (scored if reference else scored[:-1])]
        directed = metric.get("higher") is not None
        if (
            directed
            and against
            and others
            and all(claim(report, m, against, metric) == UNKNOWN for m in others)
        ):
            found.append(
                f"No interval was measured for {label}: no difference in it can be called real."
            )
    return found


def _against_base(report: Dict) -> list[tuple[Dict, Dict, Pair]]:
    """Each Student with the base and their comparison in the first metric, by size."""
    found = []
    for student in by_size(models_of(report, "student")) if metrics_of(report) else []:
        for base in models_of(report, "base"):
            if pair := pair_of(report, student, base, metrics_of(report)[0]):
                found.append((student, base, pair))
    return found


def _unclear(report: Dict, compared: list[tuple[Dict, Dict, Pair]]) -> list[str]:
    """One alarm for all comparisons that are too wide to say anything, about the widest."""
    if not (unclear := [one for one in compared if one[2].verdict == WIDE]):
        return []
    widest = max(unclear, key=lambda one: one[2].high - one[2].low)
    also = [name_of(student) for student, _, _ in unclear if student is not widest[0]]
    more = f" Nor can it be said of {_list(also)}." if also else ""
    return [f"{sentence_of(report, *widest)}{more} Evaluate on more data."]


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


# --- the table ------------------------------------------------------------------------------------


def columns_of(report: Dict) -> list[tuple[str, list[tuple[str, str]]]]:
    """(header, [(main, detail) for each model]); a column that no model fills is left out."""
    models = models_of(report)
    columns = [
        ("model", [(name_of(m), "") for m in models]),
        ("width", [(f"{m['width']:g}" if finite(m.get("width")) else MISSING, "") for m in models]),
        ("parameters", [(count(m.get("parameters")), "") for m in models]),
        ("MACs", [(count(m.get("macs")), "") for m in models]),
        ("checkpoint", [(in_bytes(m.get("bytes")), "") for m in models]),
    ]
    for batch in _batches(report):
        times = [(in_seconds(latency_of(m, batch)), latency_of(m, batch, "p95")) for m in models]
        cells = [(median, "" if p95 is None else f"({in_seconds(p95)})") for median, p95 in times]
        columns.append((f"latency b{batch} median (p95)", cells))
    for batch in _batches(report):
        speeds = [latency_of(m, batch) for m in models]
        columns.append(
            (f"examples/s b{batch}", [(count(batch / s) if s else MISSING, "") for s in speeds])
        )
    columns.append(("peak memory", [(in_bytes(m.get("peak_memory")), "") for m in models]))
    for metric in metrics_of(report):
        places = decimals_of(report, metric)
        values = [value_of(m, metric) for m in models]
        cells = [
            (number(v.value, places), interval_of(v, places)) if v else (MISSING, "")
            for v in values
        ]
        way = {True: " ↑", False: " ↓"}.get(metric.get("higher"), "")
        columns.append((f"{label_of(metric)}{way}", cells))
    gains = [_reference(report, m) for m in models]
    places = places_for([(p.high - p.low) / 2 for p in gains if p])
    spans = [f"[{signed(p.low, places)}, {signed(p.high, places)}]" if p else "" for p in gains]
    cells = [
        (signed(p.gain, places) if p else MISSING, span)
        for p, span in zip(gains, spans, strict=True)
    ]
    columns.append(("gain over plain", cells))
    columns.append(("verdict", [(p.verdict if p else MISSING, "") for p in gains]))
    columns.append(("training", [trained(report, m) for m in models]))
    return [
        (header, cells) for header, cells in columns if any(main != MISSING for main, _ in cells)
    ]


def _reference(report: Dict, model: Dict) -> Pair | None:
    """A model against plain distillation of its size, in the first metric."""
    of = name_of(model) if model.get("role") == "student" else model.get("of")
    plain = next((m for m in models_of(report, "plain") if m.get("of") == of), None)
    return (
        pair_of(report, model, plain, metrics_of(report)[0])
        if plain and metrics_of(report)
        else None
    )


def trained(report: Dict, model: Dict) -> tuple[str, str]:
    """What a model's training took: device-seconds, and how much it saw."""
    training, unit = model.get("training") or {}, report.get("unit") or "examples"
    if not finite(training.get("seconds")):
        return MISSING, ""
    seen = training.get("items")
    parts = [f"{count(seen)} {unit}"] if finite(seen) else []
    parts += ["one run for all"] if model.get("role") in ("student", "ta") else []
    return duration(training["seconds"]), ", ".join(parts)


def rows(report: Dict) -> tuple[list[str], list[list[str]]]:
    """Headers and rows for a terminal table."""
    columns = columns_of(report)
    cells = [[f"{main} {detail}".strip() for main, detail in column] for _, column in columns]
    return [header for header, _ in columns], [list(row) for row in zip(*cells, strict=True)]


# --- words that both Markdown and the page use ----------------------------------------------------


def facts_of(report: Dict) -> list[tuple[str, str]]:
    device, training, lineage = (report.get(key) or {} for key in ("device", "training", "lineage"))
    steps, seconds = training.get("steps"), training.get("seconds")
    trained = (
        f"{steps:,} steps".replace(",", " ")
        + (f" in {duration(seconds)}" if finite(seconds) else "")
        if steps
        else ""
    )
    versions = {"matta": report.get("matta"), "torch": device.get("torch")}
    facts = [
        ("Data", report.get("data")),
        (
            "Task and adapter",
            " · ".join(str(report[key]) for key in ("task", "adapter") if report.get(key)),
        ),
        ("Training", trained),
        ("Device", device.get("name")),
        ("Threads", device.get("threads")),
        ("Made from", lineage.get("source")),
        ("Digest", lineage.get("digest")),
        (
            "Versions",
            " · ".join(f"{name} {version}" for name, version in versions.items() if version),
        ),
        ("Created", when(report)),
    ]
    return [(what, str(value)) for what, value in facts if value not in (None, "")]


def when(report: Dict) -> str:
    return str(report.get("created") or "").replace("T", " ").replace("Z", " UTC")


def loadable(report: Dict) -> list[tuple[Dict, list[str], str]]:
    """(model, what is known of its checkpoint, three lines that load it) for each model with a
    loader expression.
    """
    equal = {
        True: ["outputs equal to the trained slice, bit for bit"],
        False: ["outputs differ from the slice"],
        None: [],
    }
    found = []
    for model in models_of(report):
        if loader := str(model.get("loader") or ""):
            needs = (
                "stock checkpoint, loads without matta"
                if model.get("stock")
                else "loads with matta"
            )
            module = re.match(r"[A-Za-z_]\w*(?=\.)", loader)
            lines = (f"import {module[0]}\n" if module else "") + f"model = {loader}\nmodel.eval()"
            found.append((model, [needs, *equal[(model.get("parity") or {}).get("exact")]], lines))
    return found


def notes_of(report: Dict) -> list[str]:
    """The notes that are not alarms too: those stand at the top already."""
    warned = alarms(report)
    return [str(note) for note in report.get("notes") or [] if note not in warned]


def reading(report: Dict) -> str:
    """How to read the table, in one line."""
    up = [label_of(m) for m in metrics_of(report) if m.get("higher") is True]
    down = [label_of(m) for m in metrics_of(report) if m.get("higher") is False]
    better = [
        f"{_list(names)}: {way} is better"
        for names, way in ((up, "higher"), (down, "lower"))
        if names
    ]
    return (
        "; ".join([*better, "brackets are 95 % intervals; MACs are per example at batch 1"]) + "."
    )
