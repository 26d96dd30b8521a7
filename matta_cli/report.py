"""The report: one dict of numbers in, a table, Markdown and a self-contained web page out.

Nothing here measures, prints or imports torch. Every sentence is computed from the numbers, and claims a difference only
where two 95 % intervals do not overlap; where they overlap but are wide, it says that nothing can be said.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import partial
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

Dict = dict[str, Any]

# Two overlapping intervals that would hide a difference of this share of the value say nothing.
BLIND = 0.10
# A worse Student that loses no more than this share is preferred to a larger one that loses less.
NEAR = 0.05
# Sizes this close count as the base's own size (a Student of width 1.0 is the base, up to rounding).
SAME_SIZE = 0.02
MISSING = "–"


# --- numbers as people read them ---------------------------------------------------------------------------------------


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _scaled(value: Any, units: list[tuple[float, str]], tick: bool = False) -> str:
    """Three significant digits and a unit; `tick` drops trailing zeros (10 M rather than 10.0 M)."""
    if not _finite(value):
        return MISSING
    if value == 0:
        return f"0 {units[-1][1]}".strip()
    at = next((i for i, (size, _) in enumerate(units) if abs(value) >= size), len(units) - 1)
    if at and float(f"{abs(value) / units[at][0]:.3g}") >= units[at - 1][0] / units[at][0]:
        at -= 1  # 999.9 k rounds to 1.00 M, not to 1000 k
    size, unit = units[at]
    scaled = value / size
    whole = size == 1 and float(value).is_integer()  # 7 parameters, not 7.00
    digits = 0 if whole else max(0, 2 - math.floor(math.log10(float(f"{abs(scaled):.3g}"))))
    text = f"{scaled:.{digits}f}"
    if tick and "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{text} {unit}".strip()


_COUNT = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")]
_BYTES = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")]
_TIME = [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")]


def _count(value: Any, tick: bool = False) -> str:
    return _scaled(value, _COUNT, tick)


def _bytes(value: Any) -> str:
    return _scaled(value, _BYTES)


def _seconds(value: Any, tick: bool = False) -> str:
    return _scaled(value, _TIME, tick)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _number(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if abs(value) < 1e5 else _count(value)


# --- reading the report ------------------------------------------------------------------------------------------------


class _Value(NamedTuple):
    value: float
    low: float | None
    high: float | None


def _models(report: Dict, role: str | None = None) -> list[Dict]:
    return [m for m in report.get("models") or [] if role is None or m.get("role") == role]


def _metrics(report: Dict) -> list[Dict]:
    return report.get("metrics") or []


def _label(metric: Dict) -> str:
    return str(metric.get("label") or metric["name"])


def _name(model: Dict) -> str:
    return str(model.get("name") or model.get("role") or "model")


def _value(model: Dict, metric: Dict) -> _Value | None:
    got = (model.get("metrics") or {}).get(metric["name"]) or {}
    if not _finite(got.get("value")):
        return None
    ends = sorted(end for end in (got.get("low"), got.get("high")) if _finite(end))
    return _Value(got["value"], *ends) if len(ends) == 2 else _Value(got["value"], None, None)


def _latency(model: Dict, batch: int, what: str = "median") -> float | None:
    value = ((model.get("latency") or {}).get(str(batch)) or {}).get(what)
    return value if _finite(value) else None


def _batches(report: Dict) -> list[int]:
    return sorted({int(batch) for m in _models(report) for batch in m.get("latency") or {}})


def _decimals(report: Dict, metric: Dict) -> int:
    """Enough decimals for the narrowest interval to show two digits of its half width; the same for the whole column."""
    values = [v for m in _models(report) if (v := _value(m, metric))]
    halves = [(v.high - v.low) / 2 for v in values if v.low is not None and v.high is not None and v.high > v.low]
    if halves:
        return min(5, max(0, 1 - math.floor(math.log10(float(f"{min(halves):.2g}")))))
    sizes = [abs(v.value) for v in values if v.value]
    return min(5, max(0, 2 - math.floor(math.log10(max(sizes))))) if sizes else 3


def _interval(value: _Value, decimals: int) -> str:
    if value.low is None or value.high is None:
        return ""
    return f"[{_number(value.low, decimals)}, {_number(value.high, decimals)}]"


def _shown(value: _Value, decimals: int) -> str:
    return f"{_number(value.value, decimals)} {_interval(value, decimals)}".strip()


def _by_size(models: list[Dict]) -> list[Dict]:
    sized = [m for m in models if _finite(m.get("parameters"))]
    return sorted(sized, key=lambda m: m["parameters"])


# --- what may be claimed -----------------------------------------------------------------------------------------------


def _verdict(a: _Value, b: _Value, metric: Dict) -> str:
    """a against b: better, worse, level (the intervals overlap), blind (they overlap, and are wide), unknown (none)."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return "unknown"
    if a.low > b.high:
        return "better" if metric.get("higher") else "worse"
    if a.high < b.low:
        return "worse" if metric.get("higher") else "better"
    return "blind" if _hidden(a, b) > BLIND else "level"


def _hidden(a: _Value, b: _Value) -> float:
    """The largest difference, as a share of the value, that two overlapping intervals could hide."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return math.inf
    width = (a.high - a.low + b.high - b.low) / 2
    scale = max(abs(a.value), abs(b.value))
    return 0.0 if width == 0 else width / scale if scale else math.inf


class _Pick(NamedTuple):
    student: Dict
    base: Dict
    ratio: float
    verdict: str


def _pick(report: Dict) -> _Pick | None:
    """The Student that the headline is about: the smallest that holds the base's quality, else the best compromise."""
    metrics, bases = _metrics(report), _by_size(_models(report, "base"))
    if not metrics or not bases or not bases[0]["parameters"]:
        return None
    metric, base = metrics[0], bases[0]
    b = _value(base, metric)
    if b is None:
        return None
    picks = []
    for student in _by_size(_models(report, "student")):
        if s := _value(student, metric):
            picks.append(_Pick(student, base, student["parameters"] / base["parameters"], _verdict(s, b, metric)))
    smaller = [p for p in picks if p.ratio < 1 - SAME_SIZE]
    if not smaller:
        return picks[-1] if picks else None
    if good := [p for p in smaller if p.verdict in ("better", "level")]:
        return good[0]
    if worse := [p for p in smaller if p.verdict == "worse"]:
        losses = [(abs(_get(p.student, metric).value - b.value) / (abs(b.value) or 1.0), p) for p in worse]
        near = [p for loss, p in losses if loss <= NEAR]
        return near[0] if near else min(losses, key=lambda pair: pair[0])[1]
    return smaller[-1]


def _get(model: Dict, metric: Dict) -> _Value:
    value = _value(model, metric)
    assert value is not None
    return value


def _called(model: Dict) -> str:
    width = model.get("width")
    return f"The Student of width {width:g}" if _finite(width) else f"The Student “{_name(model)}”"


def _size(ratio: float) -> str:
    if abs(ratio - 1) <= SAME_SIZE:
        return "is the base's size"
    return f"has {_percent(ratio)} of the base's parameters" if ratio < 1 else f"has {ratio:.1f}x the base's parameters"


def headline(report: Dict) -> str:
    """One sentence that answers: what does the best small model cost, and what does it lose?"""
    models, metrics = _models(report), _metrics(report)
    if not models:
        return "Nothing was measured."
    pick = _pick(report)
    if pick is None:
        students = _by_size(_models(report, "student"))
        some = students or _by_size(models) or models
        sizes = [_count(m.get("parameters")) for m in some]
        what = "Student" if students else "model"
        if len(some) > 1:
            return f"{len(some)} {what}s, from {sizes[0]} to {sizes[-1]} parameters."
        value = _value(some[0], metrics[0]) if metrics else None
        tail = f", {_label(metrics[0])} {_shown(value, _decimals(report, metrics[0]))}" if value else ""
        return f"One {what}, {_name(some[0])}: {sizes[0]} parameters{tail}."
    metric = metrics[0]
    label, decimals = _label(metric), _decimals(report, metric)
    s, b = _get(pick.student, metric), _get(pick.base, metric)
    pair = f"{_number(s.value, decimals)} against {_number(b.value, decimals)}"
    gap = abs(s.value - b.value)
    by = f"{_number(gap, decimals)}" + (f" ({_percent(gap / abs(b.value))})" if b.value else "")
    tail = {
        "better": f"and is better than the base: {label} {pair}, beyond the 95 % intervals.",
        "level": f"and is no worse than the base in {label}, within the 95 % intervals.",
        "worse": f"and is worse than the base in {label} by {by}.",
        "blind": f"but the 95 % intervals are too wide to tell its {label} from the base's.",
        "unknown": f"with {label} {pair} (no intervals were measured, so no difference is claimed).",
    }[pick.verdict]
    return f"{_called(pick.student)} {_size(pick.ratio)} {tail}"


def _findings(report: Dict) -> list[str]:
    """What else the numbers support, a sentence each."""
    found: list[str] = []
    metrics, pick = _metrics(report), _pick(report)
    if not metrics:
        return found
    metric = metrics[0]
    label, decimals = _label(metric), _decimals(report, metric)
    if pick:
        s, b = _get(pick.student, metric), _get(pick.base, metric)
        hides = f"; a difference of {_percent(_hidden(s, b))} could hide in the intervals" if pick.verdict == "level" else ""
        found.append(
            f"{label[:1].upper() + label[1:]} is {_shown(s, decimals)} against the base's {_shown(b, decimals)}{hides}."
        )
        fast = []
        for batch in _batches(report):
            ours, theirs = _latency(pick.student, batch), _latency(pick.base, batch)
            slow = _latency(pick.student, batch, "p95")
            # Only where even a slow run of the Student beats the base's usual one is it called faster.
            if ours and theirs and slow and slow < theirs:
                fast.append(f"{theirs / ours:.1f}x at batch {batch} ({_seconds(ours)} against {_seconds(theirs)})")
        if fast:
            found.append(f"{_called(pick.student)} is faster than the base: {_list(fast)}.")
    pairs = [(s, c) for s, c in _pairs(report) if _value(s, metric) and _value(c, metric)]
    if pairs:
        better = [p for p in pairs if _verdict(_get(p[0], metric), _get(p[1], metric), metric) == "better"]
        small, cut = pairs[0]
        found.append(
            f"Training beat the untrained cut, beyond the intervals, at {len(better)} of {len(pairs)} "
            f"width{'s' if len(pairs) > 1 else ''}; at the smallest, {label} went from "
            f"{_number(_get(cut, metric).value, decimals)} to {_number(_get(small, metric).value, decimals)}."
        )
    ta, base = _models(report, "ta"), _models(report, "base")
    if ta and base and (t := _value(ta[0], metric)) and (today := _value(base[0], metric)):
        says = {"better": "better than the base", "worse": "worse than the base", "level": "level with the base"}
        if verdict := says.get(_verdict(t, today, metric)):
            pair = f"{_shown(t, decimals)} against {_shown(today, decimals)}"
            found.append(f"The Teaching Assistant is {verdict}: {label} {pair}.")
    return found


def _pairs(report: Dict) -> list[tuple[Dict, Dict]]:
    """Each Student with its untrained cut. At width 1.0 there is none: that cut is the base itself."""
    cuts = {m.get("width"): m for m in _models(report, "cut")}
    students = _by_size(_models(report, "student"))
    return [(s, cuts[s["width"]]) for s in students if s.get("width") in cuts and s.get("width") not in (None, 1.0)]


def alarms(report: Dict) -> list[str]:
    """What a person should look at before trusting the numbers. Empty when all is well."""
    found: list[str] = []
    for model in _models(report, "student"):
        parity = model.get("parity") or {}
        if parity.get("exact") is False:
            gap = parity.get("max_difference")
            by = f" (largest difference {gap:.3g})" if _finite(gap) else ""
            found.append(
                f"{_name(model)}: the exported checkpoint does not give exactly the outputs of the trained slice{by}; "
                "do not serve it before you know why."
            )
    students = _by_size(_models(report, "student"))
    bases = _models(report, "base")
    for metric in _metrics(report):
        label, decimals = _label(metric), _decimals(report, metric)
        scored = [(m, v) for m in students if (v := _value(m, metric))]
        reference = _value(bases[0], metric) if bases else None

        for at, (large, value) in enumerate(scored):
            ahead = [
                (m, v)
                for m, v in scored[:at]
                if m["parameters"] < large["parameters"] and _verdict(v, value, metric) == "better"
            ]
            if ahead:  # one alarm for each larger Student, against the best of the smaller ones
                small, best = (max if metric.get("higher") else min)(ahead, key=lambda pair: pair[1].value)
                found.append(
                    f"{_name(large)} is larger than {_name(small)} but worse in {label}: "
                    f"{_shown(value, decimals)} against {_shown(best, decimals)}."
                )

        for student, cut in _pairs(report):
            s, c = _value(student, metric), _value(cut, metric)
            verdict = _verdict(s, c, metric) if s and c else "unknown"
            if s and c and verdict not in ("better", "unknown"):
                how = "worse than" if verdict == "worse" else "no better, within the intervals, than"
                found.append(
                    f"{_name(student)} is {how} its untrained cut in {label}: {_shown(s, decimals)} against "
                    f"{_shown(c, decimals)}; it cannot be said that training helped."
                )
        # At the base's own width there is no smaller cut to beat: level is fine, worse is not.
        for student, value in scored:
            if student.get("width") == 1.0 and reference and _verdict(value, reference, metric) == "worse":
                found.append(
                    f"{_name(student)} has the base's size but is worse in {label}: {_shown(value, decimals)} against "
                    f"{_shown(reference, decimals)}; training did it harm."
                )

        # Against the base; in a report without one, against the largest Student.
        against = reference or (scored[-1][1] if len(scored) > 1 else None)
        others = scored if reference else scored[:-1]
        wide = [(m, _hidden(v, against)) for m, v in others if against and _verdict(v, against, metric) == "blind"]
        if wide:
            than = _name(bases[0]) if reference else _name(scored[-1][0])
            found.append(
                f"The intervals of {label} are too wide to tell {_list([_name(m) for m, _ in wide])} from {than}: "
                f"a difference of {_percent(max(h for _, h in wide))} could hide in them. Evaluate on more data."
            )
        if against and others and all(_verdict(v, against, metric) == "unknown" for _, v in others):
            found.append(f"No interval was measured for {label}: no difference in it can be called real.")
    return found


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


# --- the table ---------------------------------------------------------------------------------------------------------


def _columns(report: Dict) -> list[tuple[str, list[tuple[str, str]]]]:
    """(header, [(main, detail) for each model]); a column that no model fills is left out."""
    models = _models(report)

    def column(header: str, cell: Callable[[Dict], str], detail: Callable[[Dict], str] = lambda m: "") -> None:
        cells = [(cell(m), detail(m)) for m in models]
        if any(main != MISSING for main, _ in cells):
            columns.append((header, cells))

    columns: list[tuple[str, list[tuple[str, str]]]] = []
    column("model", _name)
    column("width", lambda m: f"{m['width']:g}" if _finite(m.get("width")) else MISSING)
    column("parameters", lambda m: _count(m.get("parameters")))
    column("MACs", lambda m: _count(m.get("macs")))
    column("checkpoint", lambda m: _bytes(m.get("bytes")))
    for batch in _batches(report):

        def tail(m: Dict, batch: int = batch) -> str:
            p95 = _latency(m, batch, "p95")
            return "" if p95 is None else f"({_seconds(p95)})"

        column(f"latency b{batch} median (p95)", lambda m, batch=batch: _seconds(_latency(m, batch)), tail)  # type: ignore[misc]
    column("peak memory", lambda m: _bytes(m.get("peak_memory")))
    for metric in _metrics(report):
        places = _decimals(report, metric)

        def main(m: Dict, metric: Dict = metric, places: int = places) -> str:
            value = _value(m, metric)
            return MISSING if value is None else _number(value.value, places)

        def interval(m: Dict, metric: Dict = metric, places: int = places) -> str:
            value = _value(m, metric)
            return "" if value is None else _interval(value, places)

        column(f"{_label(metric)} {'↑' if metric.get('higher') else '↓'}", main, interval)
    return columns


def rows(report: Dict) -> tuple[list[str], list[list[str]]]:
    """Headers and rows for a terminal table."""
    columns = _columns(report)
    cells = [[f"{main} {detail}".strip() for main, detail in column] for _, column in columns]
    return [header for header, _ in columns], [list(row) for row in zip(*cells, strict=True)]


# --- words that both Markdown and the page use -------------------------------------------------------------------------


def _facts(report: Dict) -> list[tuple[str, str]]:
    device, training, lineage = (report.get(key) or {} for key in ("device", "training", "lineage"))
    trained = ""
    if training.get("steps"):
        trained = f"{training['steps']:,} steps".replace(",", " ")
        if _finite(training.get("seconds")):
            trained += f" in {_duration(training['seconds'])}"
    facts = [
        ("Data", report.get("data")),
        ("Task and adapter", " · ".join(str(report[key]) for key in ("task", "adapter") if report.get(key))),
        ("Training", trained),
        ("Device", device.get("name")),
        ("Threads", device.get("threads")),
        ("Made from", lineage.get("source")),
        ("Digest", lineage.get("digest")),
        (
            "Versions",
            " · ".join(f"{name} {v}" for name, v in (("matta", report.get("matta")), ("torch", device.get("torch"))) if v),
        ),
        ("Created", _when(report)),
    ]
    return [(what, str(value)) for what, value in facts if value not in (None, "")]


def _when(report: Dict) -> str:
    return str(report.get("created") or "").replace("T", " ").replace("Z", " UTC")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _loading(model: Dict) -> str:
    """Three lines that load one Student, from its loader expression."""
    loader = str(model.get("loader") or "")
    if not loader:
        return ""
    module = re.match(r"[A-Za-z_]\w*(?=\.)", loader)
    return (f"import {module[0]}\n" if module else "") + f"model = {loader}\nmodel.eval()"


def _needs(model: Dict) -> str:
    return "stock checkpoint, loads without matta" if model.get("stock") else "loads with matta"


def _parity(model: Dict) -> str:
    exact = (model.get("parity") or {}).get("exact")
    return (
        "" if exact is None else "outputs equal to the trained slice, bit for bit" if exact else "outputs differ from the slice"
    )


def _reading(report: Dict) -> str:
    """How to read the table, in one line."""
    up = [_label(m) for m in _metrics(report) if m.get("higher")]
    down = [_label(m) for m in _metrics(report) if not m.get("higher")]
    better = [f"{_list(names)}: {way} is better" for names, way in ((up, "higher"), (down, "lower")) if names]
    return "; ".join([*better, "brackets are 95 % intervals; MACs are per example at batch 1"]) + "."


# --- Markdown ----------------------------------------------------------------------------------------------------------


def _md(text: Any) -> str:
    """Names and data are the user's: they must not become markup, or break out of a table cell."""
    one_line = " ".join(str(text).split())
    # A bracket makes a link only before ( [ or : so intervals stay readable in the raw text.
    return re.sub(r"([\\`*_|#~]|\](?=[(\[:]))", r"\\\1", escape(one_line, quote=False))


def _fence(text: str, language: str = "") -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def markdown(report: Dict) -> str:
    parts = ["# matta report", f"**{_md(headline(report))}**"]
    if warned := alarms(report):
        parts += ["## Look at this first", "\n".join(f"- ⚠ {_md(text)}" for text in warned)]
    if found := _findings(report):
        parts.append("\n".join(f"- {_md(text)}" for text in found))
    headers, table = rows(report)
    if table:
        lines = [headers, ["---"] + ["---:"] * (len(headers) - 1)]
        cells = [[_md(h) for h in headers], lines[1], *([_md(cell) for cell in row] for row in table)]
        parts += ["## Models", "\n".join("| " + " | ".join(row) + " |" for row in cells), _md(_reading(report))]
    loading = [m for m in _models(report) if _loading(m)]
    if loading:
        parts.append("## Load one")
        for model in loading:
            about = ", ".join(text for text in (_needs(model), _parity(model)) if text)
            parts += [f"{_md(_name(model))} ({about}):", _fence(_loading(model), "python")]
    if notes := report.get("notes"):
        parts += ["## Notes", "\n".join(f"- {_md(note)}" for note in notes)]
    if facts := _facts(report):
        parts += ["## How it was made", "\n".join(f"- {what}: {_md(value)}" for what, value in facts)]
    if recipe := report.get("recipe"):
        parts += ["### Recipe", _fence(str(recipe), "toml")]
    return "\n\n".join(parts) + "\n"


# --- charts ------------------------------------------------------------------------------------------------------------


class _Scale:
    """One axis of a chart: data to pixels, with ticks."""

    def __init__(self, values: list[float], start: float, end: float, log: bool, pad: float, ticks: int):
        low, high = min(values), max(values)
        self.log = log and low > 0
        a, b = self._to(low), self._to(high)
        room = (b - a) * pad or (0.05 if self.log else abs(a) * 0.05 or 1.0)
        self.a, self.b = a - room, b + room
        if not self.log and low >= 0 > self.a:
            self.a = 0.0  # a negative latency or accuracy on an axis looks like a mistake
        self.start, self.end = start, end
        self.low, self.high = (10**self.a, 10**self.b) if self.log else (self.a, self.b)
        self.ticks = self._ticks(max(3, ticks))  # at three, one tick at least falls inside

    def _to(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def __call__(self, value: float) -> float:
        return self.start + (self._to(value) - self.a) / (self.b - self.a) * (self.end - self.start)

    def _ticks(self, most: int) -> list[float]:
        if self.log:
            decades = range(math.floor(self.a), math.ceil(self.b) + 1)
            for marks in ((1, 2, 5), (1, 3), (1,)):
                ticks = [m * 10.0**d for d in decades for m in marks if self.low <= m * 10.0**d <= self.high]
                if 3 <= len(ticks) <= most:
                    return ticks
        span = self.high - self.low
        rough = span / most
        unit = 10 ** math.floor(math.log10(rough))
        step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough)
        first = math.ceil(self.low / step)
        return [k * step for k in range(first, math.floor(self.high / step) + 1)]


def _wide_range(values: list[float], times: float = 8) -> bool:
    return min(values) > 0 and max(values) / min(values) > times


def _tick_numbers(ticks: list[float]) -> list[str]:
    step = min((b - a for a, b in pairwise(ticks)), default=1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 2
    return [_number(t, decimals) for t in ticks]


def _frame(x: _Scale, y: _Scale, box: tuple[float, float, float, float], names: tuple[list[str], list[str]]) -> list[str]:
    """Grid, ticks and tick labels."""
    left, _, right, bottom = box
    out = []
    for tick, text in zip(y.ticks, names[1], strict=True):
        out.append(f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        out.append(f'<text class="tick" x="{left - 8:.1f}" y="{y(tick) + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for tick, text in zip(x.ticks, names[0], strict=True):
        out.append(f'<line class="axis" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{bottom:.1f}" y2="{bottom + 5:.1f}"/>')
        out.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 19:.1f}" text-anchor="middle">{escape(text)}</text>')
    out.append(f'<line class="axis" x1="{left:.1f}" x2="{right:.1f}" y1="{bottom:.1f}" y2="{bottom:.1f}"/>')
    return out


def _mark(role: str, x: float, y: float) -> str:
    """A shape as well as a colour for each role, so that neither is needed alone."""
    at = f'class="mark {role}"'
    if role == "base":
        return f'<rect {at} x="{x - 5.5:.1f}" y="{y - 5.5:.1f}" width="11" height="11"/>'
    if role == "ta":
        return f'<path {at} d="M{x:.1f} {y - 7.5:.1f}l7.5 7.5-7.5 7.5-7.5-7.5z"/>'
    if role == "teacher":
        return f'<path {at} d="M{x:.1f} {y - 7.5:.1f}l7.5 13h-15z"/>'
    return f'<circle {at} cx="{x:.1f}" cy="{y:.1f}" r="{5 if role == "cut" else 6}"/>'


_ROLES = ("student", "cut", "base", "ta", "teacher")
_KINDS = {"student": "Student", "cut": "untrained cut", "base": "base", "ta": "Teaching Assistant", "teacher": "Teacher"}


def _role(model: Dict) -> str:
    role = str(model.get("role"))
    return role if role in _ROLES else "student"


class _Box(NamedTuple):
    x0: float
    y0: float
    x1: float
    y1: float

    def overlap(self, other: _Box) -> float:
        across = min(self.x1, other.x1) - max(self.x0, other.x0)
        down = min(self.y1, other.y1) - max(self.y0, other.y0)
        return across * down if across > 0 and down > 0 else 0.0


def _place(wanted: list[tuple[float, float, str, bool]], busy: list[_Box], lines: list[_Box], room: _Box) -> list[str]:
    """Put each label where it covers the least; one that finds no free place is left to the tooltip unless it must show."""
    out: list[str] = []
    placed: list[_Box] = []
    for x, y, text, must in wanted:
        width, best = 6.7 * len(text) + 4, None
        for far in (11, 22, 36, 52):
            # to the right, left, above, below, then the corners: the order breaks ties
            for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (0.7, -0.8), (-0.7, -0.8), (0.7, 0.8), (-0.7, 0.8)):
                cx = x + dx * far
                x0 = cx if dx > 0 else cx - width if dx < 0 else cx - width / 2
                cy = y + dy * (far + 4)
                box = _Box(x0, cy - 8, x0 + width, cy + 8)
                outside = box.x0 < room.x0 or box.x1 > room.x1 or box.y0 < room.y0 or box.y1 > room.y1
                cost = 1e4 * outside + far + 20 * sum(map(box.overlap, placed))
                cost += 8 * sum(map(box.overlap, busy)) + 1.5 * sum(map(box.overlap, lines))
                if best is None or cost < best[0]:
                    best = (cost, box, far, dx)
        assert best is not None
        cost, box, far, dx = best
        if cost > 200 and not must:
            continue
        placed.append(box)
        middle = (box.x0 + box.x1) / 2
        if far > 22:
            edge = box.x0 if dx > 0 else box.x1 if dx < 0 else middle
            out.append(f'<line class="lead" x1="{x:.1f}" y1="{y:.1f}" x2="{edge:.1f}" y2="{(box.y0 + box.y1) / 2:.1f}"/>')
        out.append(f'<text class="name" x="{middle:.1f}" y="{box.y1 - 4:.1f}" text-anchor="middle">{escape(text)}</text>')
    return out


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


_Axis = tuple[str, str, Callable[[Dict], Any], Callable[..., str]]
_AXES: list[_Axis] = [
    ("parameters", "parameters", lambda m: m.get("parameters"), _count),
    ("latency", "median latency, batch 1", lambda m: _latency(m, 1), _seconds),
    ("MACs", "MACs per example", lambda m: m.get("macs"), _count),
]


def _pareto(report: Dict, axis: _Axis, width: int, height: int) -> str:
    metric = _metrics(report)[0]
    _, what, read, unit = axis
    places = _decimals(report, metric)
    points = [(m, float(read(m)), v) for m in _models(report) if _finite(read(m)) and (v := _value(m, metric))]
    xs = [x for _, x, _ in points]
    ys = [y for _, _, v in points for y in v if y is not None]
    log_y = not metric.get("higher") and _wide_range(ys, 3)  # a perplexity halves and doubles
    top, bottom, right = 30.0, height - 48.0, width - 14.0
    y = _Scale(ys, bottom, top, log_y, 0.07, 6)
    y_names = _tick_numbers(y.ticks) if not y.log else [f"{t:,.10g}".replace(",", " ") for t in y.ticks]
    left = 18.0 + 6.6 * max(map(len, y_names))
    x = _Scale(xs, left, right, _wide_range(xs), 0.08, int((right - left) / 80))
    out = _frame(x, y, (left, top, right, bottom), ([unit(t, True) for t in x.ticks], y_names))
    way = "higher is better ↑" if metric.get("higher") else "lower is better ↓"
    way += " (log scale)" if y.log else ""
    out.append(f'<text class="title" x="{left:.1f}" y="14">{escape(_short(_label(metric), 28))}, {way}</text>')
    logs = " (log scale)" if x.log else ""
    out.append(f'<text class="title" x="{right:.1f}" y="{height - 6}" text-anchor="end">{escape(what)}{logs} →</text>')

    for m, _, v in points:  # the base's interval, across: what "no worse than the base" means to the eye
        if _role(m) == "base" and v.low is not None and v.high is not None:
            low, high = y(v.low), y(v.high)
            out.append(
                f'<rect class="band" x="{left:.1f}" y="{high:.1f}" '
                f'width="{right - left:.1f}" height="{max(1, low - high):.1f}"/>'
            )

    lines: list[_Box] = []
    for role in ("cut", "student"):
        path = sorted((p[0].get("parameters") or 0, x(p[1]), y(p[2].value)) for p in points if _role(p[0]) == role)
        if len(path) > 1:
            out.append(f'<polyline class="line {role}" points="{" ".join(f"{px:.1f},{py:.1f}" for _, px, py in path)}"/>')
            for (_, ax, ay), (_, bx, by) in pairwise(path):
                steps = max(1, int(math.hypot(bx - ax, by - ay) / 6))
                for k in range(steps + 1):
                    px, py = ax + (bx - ax) * k / steps, ay + (by - ay) * k / steps
                    lines.append(_Box(px - 3, py - 3, px + 3, py + 3))

    busy, wanted, last = [], [], {}
    for m, px, v in sorted(points, key=lambda p: _ROLES.index(_role(p[0])) not in (0, 1)):  # landmarks drawn on top
        cx, cy, role = x(px), y(v.value), _role(m)
        tip = [
            _name(m),
            f"{_label(metric)} {_shown(v, places)}",
            f"{unit(px)} {what}" if unit is _count else f"{unit(px)}, {what}",
        ]
        out.append(
            f'<g class="pt {role}" tabindex="0" role="img" aria-label="{escape(", ".join(tip))}" '
            f'data-tip="{escape(chr(10).join(tip))}">'
        )
        out.append(f"<title>{escape(chr(10).join(tip))}</title>")
        if v.low is not None and v.high is not None:
            a, b = y(v.high), y(v.low)
            out.append(f'<path class="bar" d="M{cx:.1f} {a:.1f}V{b:.1f}M{cx - 4:.1f} {a:.1f}h8M{cx - 4:.1f} {b:.1f}h8"/>')
            busy.append(_Box(cx - 4, a, cx + 4, b))
        out.append(f'<circle class="hit" cx="{cx:.1f}" cy="{cy:.1f}" r="16"/>{_mark(role, cx, cy)}</g>')
        busy.append(_Box(cx - 8, cy - 8, cx + 8, cy + 8))
        last[role] = (cx, cy)
        if role != "cut":
            # little room: the key says what a blue dot is, so its width is name enough
            tight = role == "student" and width < 500 and _finite(m.get("width"))
            wanted.append((cx, cy, f"{m['width']:g}" if tight else _short(_name(m)), role != "student"))
    cuts = sorted((x(px), y(v.value), m) for m, px, v in points if _role(m) == "cut") if "cut" in last else []
    wanted.sort(key=lambda w: not w[3])
    if cuts:  # one label for their line: each stands straight above or below its Student
        wanted.append((cuts[0][0], cuts[0][1], "untrained cuts" if len(cuts) > 1 else _short(_name(cuts[0][2])), True))
    out += _place(wanted, busy, lines, _Box(left + 2, top - 6, right + 10, bottom - 2))
    alt = f"{_label(metric)} against {what}, one point for each model, with 95 % intervals"
    return f'<svg viewBox="0 0 {width} {height}" role="group" aria-label="{escape(alt)}">{"".join(out)}</svg>'


class _End(NamedTuple):
    x: float
    y: float
    name: str
    kind: str


def _curves(report: Dict, width: int, height: int) -> str:
    metric = (_metrics(report) or [{"name": "value"}])[0]
    series: dict[str, list[tuple[float, float]]] = {}
    for row in (report.get("training") or {}).get("curve") or []:
        for key, value in (row.get("values") or {}).items():
            if _finite(value) and _finite(row.get("step")):
                series.setdefault(str(key), []).append((row["step"], value))
    if not series:
        return ""

    def order(key: str) -> tuple[int, float, str]:
        try:
            return (0, float(key), key)
        except ValueError:
            return (1, 0.0, key)

    keys = sorted(series, key=order)
    xs, ys = ([p[i] for points in series.values() for p in points] for i in (0, 1))
    names = {key: f"width {key}" if order(key)[0] == 0 else _short(key, 16) for key in keys}
    top, bottom, right = 30.0, height - 46.0, width - 16 - 6.7 * max(len(n) for n in names.values())
    y = _Scale(ys, bottom, top, not metric.get("higher") and _wide_range(ys, 3), 0.06, 5)
    y_names = _tick_numbers(y.ticks) if not y.log else [f"{t:,.10g}".replace(",", " ") for t in y.ticks]
    left = 18.0 + 6.6 * max(map(len, y_names))
    x = _Scale(xs, left, right, False, 0.0 if len(set(xs)) > 1 else 0.5, int((right - left) / 70))
    ticks = [t for t in x.ticks if float(t).is_integer()]
    x.ticks = ticks or x.ticks
    out = _frame(x, y, (left, top, right, bottom), ([f"{t:,.10g}".replace(",", " ") for t in x.ticks], y_names))
    out.append(f'<text class="title" x="{left:.1f}" y="14">{escape(_short(_label(metric), 28))} while training</text>')
    out.append(f'<text class="title" x="{right:.1f}" y="{height - 6}" text-anchor="end">step →</text>')
    ends: list[_End] = []
    widths = [key for key in keys if order(key)[0] == 0]
    for key in keys:
        points = [(x(a), y(b)) for a, b in series[key]]
        # widths are one hue, the smaller the fainter; anything else (the TA) has its own colour and dashes
        kind = "student" if key in widths else "ta"
        fade = 1.0 if kind == "ta" else 0.4 + 0.6 * (widths.index(key) + 1) / len(widths)
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        out.append(f'<polyline class="curve {kind}" style="opacity:{fade:.2f}" points="{path}"/>')
        for (step, value), (px, py) in zip(series[key], points, strict=True):
            tip = f"{names[key]}\nstep {step:g}\n{_label(metric)} {_number(value, _decimals(report, metric))}"
            out.append(
                f'<g class="pt" data-tip="{escape(tip)}"><title>{escape(tip)}</title>'
                f'<circle class="hit" cx="{px:.1f}" cy="{py:.1f}" r="9"/>'
                f'<circle class="dot {kind}" style="opacity:{fade:.2f}" cx="{px:.1f}" cy="{py:.1f}" r="2.6"/></g>'
            )
        ends.append(_End(*points[-1], names[key], kind))
    ends.sort(key=lambda end: end.y)
    at = [end.y for end in ends]
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + 15)
    at[-1] = min(at[-1], bottom - 2)
    for i in range(len(at) - 2, -1, -1):  # where that pushed past the axis, up again from the bottom
        at[i] = min(at[i], at[i + 1] - 15)
    for (px, py, name, kind), label_y in zip(ends, at, strict=True):
        out.append(f'<path class="lead" d="M{px + 3:.1f} {py:.1f}L{right + 8:.1f} {label_y:.1f}"/>')
        out.append(f'<text class="name {kind}" x="{right + 11:.1f}" y="{label_y + 4:.1f}">{escape(name)}</text>')
    alt = f"{_label(metric)} while training, one line for each width"
    return f'<svg viewBox="0 0 {width} {height}" role="group" aria-label="{escape(alt)}">{"".join(out)}</svg>'


# --- the page ----------------------------------------------------------------------------------------------------------


def _both(draw: Callable[[int, int], str], tall: int, narrow_tall: int) -> str:
    """Drawn twice, for a wide page and for a telephone: a scaled-down drawing would have unreadable text."""
    return f'<div class="wide">{draw(960, tall)}</div><div class="narrow">{draw(360, narrow_tall)}</div>'


def _tiles(report: Dict) -> str:
    pick = _pick(report)
    if pick is None:
        return ""
    metric, tiles = _metrics(report)[0], []
    s, b = pick.student, pick.base
    places = _decimals(report, metric)
    sv, bv = _get(s, metric), _get(b, metric)
    tiles.append((_label(metric), _number(sv.value, places), _interval(sv, places), f"base {_shown(bv, places)}"))
    for what, ours, theirs, unit in (
        ("parameters", s.get("parameters"), b.get("parameters"), _count),
        ("MACs per example", s.get("macs"), b.get("macs"), _count),
        ("latency, batch 1", _latency(s, 1), _latency(b, 1), _seconds),
        ("checkpoint", s.get("bytes"), b.get("bytes"), _bytes),
    ):
        if _finite(ours) and _finite(theirs) and theirs:
            tiles.append((what, unit(ours), _percent(ours / theirs) + " of the base", f"base {unit(theirs)}"))
    cells = "".join(
        f"<div><dt>{escape(what)}</dt><dd><b>{escape(big)}</b> <i>{escape(small)}</i><span>{escape(below)}</span></dd></div>"
        for what, big, small, below in tiles[:4]
    )
    return f'<p class="over">{escape(_name(s))}, against the base</p><dl class="tiles">{cells}</dl>'


def _figure(report: Dict) -> str:
    if not _metrics(report):
        return ""
    metric = _metrics(report)[0]
    scored = [m for m in _models(report) if _value(m, metric)]
    axes = [axis for axis in _AXES if any(_finite(axis[2](m)) for m in scored)]
    if not axes:
        return ""
    # Radio buttons, a tick box and CSS switch the plots, so they work without JavaScript.
    one = " hidden" if len(axes) == 1 else ""
    controls = "".join(
        f'<input type="radio" name="axis" id="axis-{i}"{"" if i else " checked"}{one}>'
        f'<label for="axis-{i}"{one}>{axis[0]}</label>'
        for i, axis in enumerate(axes)
    )
    views = [("all", report)]
    rest = [m for m in _models(report) if _role(m) != "cut"]
    if any(m in rest for m in scored) and any(m not in rest for m in scored):
        # Untrained cuts are often so bad that they flatten everything else: the same plot without them.
        views.append(("trained", {**report, "models": rest}))
        controls += '<input type="checkbox" id="cuts" checked><label for="cuts" class="box">untrained cuts</label>'
    plots = "".join(
        f'<div class="plot plot-{i} {view}">{_both(partial(_pareto, part, axis), 460, 380)}</div>'
        for i, axis in enumerate(axes)
        for view, part in views
        if any(_finite(axis[2](m)) and _value(m, metric) for m in _models(part))
    )
    roles = [role for role in _ROLES if any(_role(m) == role for m in scored)]
    key = "".join(f'<li><svg viewBox="0 0 18 18" aria-hidden="true">{_mark(r, 9, 9)}</svg>{_KINDS[r]}</li>' for r in roles)
    hint = "Bars are 95 % intervals" + ("; the band is the base's." if "base" in roles else ".")
    return (
        f'<section><h2>Quality against cost</h2><div class="switch">{controls}<div class="plots">{plots}</div></div>'
        f'<ul class="key">{key}<li class="hint">{hint}</li></ul></section>'
    )


def _table(report: Dict) -> str:
    columns = _columns(report)
    if not columns:
        return ""
    # Quality and size come first here: on a telephone the first columns are those seen without scrolling.
    columns.sort(key=lambda c: 0 if c[0] == "model" else 1 if c[0][-1:] in "↑↓" else 2 if c[0] == "parameters" else 3)
    base = next((m for m in _by_size(_models(report, "base"))), None)
    head = "".join(f'<th scope="col">{_small(header)}</th>' for header, _ in columns)
    body = []
    for at, model in enumerate(_models(report)):
        role, cells = _role(model), []
        for header, column in columns:
            main, detail = column[at]
            if header == "model":
                mark = f'<svg viewBox="0 0 18 18" aria-hidden="true">{_mark(role, 9, 9)}</svg>'
                cells.append(f'<th scope="row"><div>{mark}<span>{escape(main)}</span></div></th>')
                continue
            if header == "parameters" and base and base["parameters"] and _finite(model.get("parameters")):
                detail = _percent(model["parameters"] / base["parameters"]) if model is not base else "100 %"
            small = f" <small>{escape(detail)}</small>" if detail else ""
            cells.append(f"<td>{escape(main)}{small}</td>")
        body.append(f'<tr class="{role}">{"".join(cells)}</tr>')
    share = " The share under each parameter count is of the base's." if base else ""
    return (
        f'<section><h2>Every model</h2><div class="scroll" tabindex="0" role="region" aria-label="Every model">'
        f"<table><thead><tr>{head}</tr></thead>"
        f'<tbody>{"".join(body)}</tbody></table></div><p class="hint">{escape(_reading(report))}{share}</p></section>'
    )


def _small(header: str) -> str:
    """'latency b8 median (p95)' as two lines."""
    if found := re.fullmatch(r"(latency b\d+) (median \(p95\))", header):
        return f"{found[1].replace(' ', '&nbsp;')} <small>{found[2]}</small>"
    return re.sub(r" (?=[↑↓]$)", "&nbsp;", escape(header))  # an arrow never stands alone on a line


def html(report: Dict) -> str:
    title = headline(report)
    over = " · ".join(str(part) for part in ("matta", report.get("task"), report.get("adapter"), _when(report)[:10]) if part)
    parts = [f'<header><p class="over">{escape(over)}</p><h1>{escape(title)}</h1>{_tiles(report)}']
    if found := _findings(report):
        parts.append('<ul class="found">' + "".join(f"<li>{escape(text)}</li>" for text in found) + "</ul>")
    parts.append("</header>")
    if warned := alarms(report):
        items = "".join(f"<li>{escape(text)}</li>" for text in warned)
        parts.append(f'<section class="alarm" role="note"><h2>Look at this first</h2><ul>{items}</ul></section>')
    parts += [_figure(report), _table(report)]
    if _curves(report, 960, 320):
        parts.append(f"<section><h2>Training</h2>{_both(partial(_curves, report), 320, 300)}</section>")
    loading = [m for m in _models(report) if _loading(m)]
    if loading:
        cards = []
        for model in loading:
            facts = [_count(model.get("parameters")) + " parameters", _needs(model), _parity(model)]
            about = " · ".join(f for f in facts if f and not f.startswith(MISSING))
            cards.append(
                f"<article><h3>{escape(_name(model))}</h3><p>{escape(about)}</p>"
                f'<div class="code"><pre tabindex="0"><code>{escape(_loading(model))}</code></pre></div></article>'
            )
        parts.append(f'<section><h2>Load one in three lines</h2><div class="cards">{"".join(cards)}</div></section>')
    if notes := report.get("notes"):
        parts.append("<section><h2>Notes</h2><ul>" + "".join(f"<li>{escape(str(n))}</li>" for n in notes) + "</ul></section>")
    made = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for what, value in _facts(report))
    recipe = str(report.get("recipe") or "")
    if made or recipe:
        more = (
            f"<details><summary>The recipe, every setting resolved</summary><pre><code>{escape(recipe)}</code></pre></details>"
        )
        parts.append(f'<section><h2>How it was made</h2><dl class="facts">{made}</dl>{more if recipe else ""}</section>')
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"  # nothing is ever fetched
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>\n<body><main>\n"
        + "\n".join(part for part in parts if part)
        + f"\n</main><script>{_JS}</script></body></html>\n"
    )


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity: a number that is not one is written as null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(report: Dict, folder: Path | str) -> None:
    """report.json, report.md and report.html, each whole or not at all."""
    from matta_cli.checkpoint import atomic_write  # here, because that module imports torch and this one must not

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "report.json", json.dumps(_plain(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    atomic_write(folder / "report.md", markdown(report))
    atomic_write(folder / "report.html", html(report))


# Okabe and Ito's colours, told apart with any colour vision; lighter ones of the same hues on a dark page.
_CSS = """
:root{--bg:#fcfcfa;--card:#fff;--ink:#1b1f24;--soft:#5c646e;--rule:#dfe2e5;--grid:#eceef0;--student:#0072b2;--cut:#7a828c;
  --base:#1b1f24;--ta:#c4500a;--teacher:#00795a;--warn:#fff4e0;--warn-rule:#e69f00;--code:#f3f4f5}
@media(prefers-color-scheme:dark){
:root{--bg:#14171b;--card:#1b1f25;--ink:#e8eaed;--soft:#9fa8b3;--rule:#343a42;--grid:#262b32;--student:#56b4e9;
  --cut:#929ba6;--base:#f0f2f4;--ta:#f08c4a;--teacher:#3cc79d;--warn:#2b2415;--warn-rule:#e69f00;--code:#1f242b}
}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;font-variant-numeric:tabular-nums;
  -webkit-text-size-adjust:100%}
main{max-width:1180px;margin:0 auto;padding:44px 28px 72px}
h1{font-size:clamp(1.45rem,1.05rem + 1.9vw,2.25rem);line-height:1.22;letter-spacing:-.015em;margin:.15em 0 .8em;
  max-width:32em;text-wrap:balance;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 .7em}h3{font-size:1rem;margin:0;overflow-wrap:anywhere}section{margin-top:52px}
p{margin:.4em 0}.over{color:var(--soft);font-size:.82rem;margin:0 0 .5em;overflow-wrap:anywhere}
.hint,.key{color:var(--soft);font-size:.84rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:1px;margin:0;background:var(--rule);
  border:1px solid var(--rule);border-radius:10px;overflow:hidden}
.tiles div{background:var(--card);padding:14px 16px}.tiles dt{color:var(--soft);font-size:.84rem}.tiles dd{margin:0}
.tiles b{font-size:1.5rem;letter-spacing:-.01em;display:block}.tiles i{font-style:normal;font-size:.84rem}
.tiles span{display:block;color:var(--soft);font-size:.84rem}.found{margin:22px 0 0;padding-left:1.15em;max-width:52em}
.found li{margin:.25em 0}
.alarm{background:var(--warn);border-left:4px solid var(--warn-rule);border-radius:4px;padding:16px 20px;margin-top:32px}
.alarm h2{margin-bottom:.3em}.alarm ul{margin:0;padding-left:1.15em}li{overflow-wrap:anywhere}
.switch input{position:absolute;opacity:0;pointer-events:none}
.switch label{display:inline-block;padding:4px 14px;border:1px solid var(--rule);margin-right:-1px;font-size:.88rem;
  cursor:pointer;color:var(--soft)}
.switch label:first-of-type{border-radius:7px 0 0 7px}.switch label:nth-last-of-type(1 of :not(.box)){border-radius:0 7px 7px 0}
.switch .box{border-color:transparent!important;background:none!important;color:var(--soft)!important}
.switch .box::before{content:"☐ "}.switch input:checked+.box::before{content:"☑ "}
#cuts:checked~.plots .trained,#cuts:not(:checked)~.plots .all{display:none!important}
.switch input:checked+label{background:var(--ink);color:var(--bg);border-color:var(--ink)}
.switch input:focus-visible+label{outline:2px solid var(--student);outline-offset:2px}.plots{margin-top:16px}
.plot{display:none}
#axis-0:checked~.plots .plot-0,#axis-1:checked~.plots .plot-1,#axis-2:checked~.plots .plot-2{display:block}
.narrow{display:none}.wide svg,.narrow svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:12px;fill:var(--soft)}svg .title{fill:var(--ink);font-weight:600}
svg .name{fill:var(--ink);font-weight:600;paint-order:stroke;stroke:var(--bg);stroke-width:4px;stroke-linejoin:round}
.grid{stroke:var(--grid)}.axis{stroke:var(--soft)}.lead{stroke:var(--soft);stroke-width:.8;fill:none}
.band{fill:var(--base);opacity:.08}.line,.curve{fill:none;stroke-width:2;stroke-linejoin:round}
.line.student,.curve.student{stroke:var(--student)}.line.cut{stroke:var(--cut);stroke-dasharray:5 5}
.curve.ta{stroke:var(--ta);stroke-dasharray:7 3}.mark{stroke:var(--bg);stroke-width:1.5}
.mark.student,.dot.student{fill:var(--student)}.mark.base{fill:var(--base)}.mark.ta,.dot.ta{fill:var(--ta)}
.mark.teacher{fill:var(--teacher)}.mark.cut{fill:var(--bg);stroke:var(--cut);stroke-width:2}
.bar{stroke:var(--student);stroke-width:1.5;fill:none}.cut .bar{stroke:var(--cut)}.base .bar{stroke:var(--base)}
.ta .bar{stroke:var(--ta)}.teacher .bar{stroke:var(--teacher)}.hit{fill:transparent}.pt{outline:none}
.pt:hover .mark,.pt:focus .mark{stroke:var(--ink);stroke-width:2.5}
.key{list-style:none;display:flex;flex-wrap:wrap;gap:4px 20px;padding:0;margin:14px 0 0}
.key li{display:flex;align-items:center;gap:6px}.key svg,th svg{width:16px;height:16px;flex:none}
.scroll{overflow-x:auto;border:1px solid var(--rule);border-radius:10px;background:var(--card)}
table{border-collapse:collapse;width:100%;font-size:.88rem}
th,td{padding:9px 11px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule);vertical-align:top}
tbody tr:last-child>*{border-bottom:0}thead th{color:var(--soft);font-weight:600;white-space:normal;vertical-align:bottom}
th:first-child{text-align:left;position:sticky;left:0;background:var(--card)}
th[scope=row] div{display:flex;gap:8px;align-items:center}
th[scope=row] span{white-space:normal;overflow-wrap:anywhere;min-width:6.5em;max-width:15em}th svg .mark{stroke:var(--card)}
th svg .mark.cut{stroke:var(--cut);fill:var(--card)}
td small,thead small{display:block;color:var(--soft);font-size:.92em;font-weight:400}tr.cut td,tr.cut th{color:var(--soft)}
tr.cut th{font-weight:400}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:26px 24px}
.cards article{min-width:0}.cards p{color:var(--soft);font-size:.84rem;margin:0 0 .5em}
pre{background:var(--code);border-radius:8px;padding:12px 14px;margin:0;overflow-x:auto;
  font:.82rem/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
.code{position:relative}.code pre{white-space:pre-wrap;overflow-wrap:anywhere;padding-right:76px}
.code button{position:absolute;top:7px;right:7px;font:inherit;font-size:.75rem;padding:1px 9px;
  border:1px solid var(--rule);border-radius:6px;background:var(--card);color:var(--soft);cursor:pointer}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:10px 28px;margin:0 0 18px}
.facts dt{color:var(--soft);font-size:.84rem}.facts dd{margin:0;overflow-wrap:anywhere}
summary{cursor:pointer;margin-bottom:10px}
#tip{position:fixed;z-index:9;pointer-events:none;background:var(--ink);color:var(--bg);padding:7px 11px;
  border-radius:7px;font-size:.82rem;line-height:1.45;white-space:pre-line;max-width:min(300px,90vw);
  overflow-wrap:anywhere}
@media(max-width:680px){
main{padding:26px 16px 48px}section{margin-top:40px}.wide{display:none}.narrow{display:block}
.tiles{grid-template-columns:1fr 1fr}.tiles div{padding:11px 12px}.tiles b{font-size:1.25rem}th,td{padding:8px 10px}
th[scope=row] span{max-width:7em}
}
@media print{
.switch label,.code button{display:none}section{break-inside:avoid}
}
"""

# Tooltips and copy buttons only: without it the page has native tooltips, and the axis still switches.
_JS = """
(function(){
var tip=document.createElement('div');tip.id='tip';tip.hidden=true;document.body.appendChild(tip);
function hide(){tip.hidden=true}
document.querySelectorAll('[data-tip]').forEach(function(el){
 var t=el.querySelector('title');if(t)t.remove();
 function show(){tip.textContent=el.dataset.tip;tip.hidden=false;
  var r=el.querySelector('.hit').getBoundingClientRect(),w=tip.offsetWidth,h=tip.offsetHeight;
  tip.style.left=Math.max(6,Math.min(innerWidth-w-6,r.left+r.width/2-w/2))+'px';
  tip.style.top=(r.top-h-4>0?r.top-h-4:r.bottom+4)+'px'}
 el.addEventListener('pointerenter',show);el.addEventListener('focus',show);
 el.addEventListener('pointerleave',hide);el.addEventListener('blur',hide)});
addEventListener('scroll',hide,{passive:true});
document.querySelectorAll('.code').forEach(function(box){
 var b=document.createElement('button');b.type='button';b.textContent='copy';
 b.addEventListener('click',function(){var pre=box.querySelector('pre');
  function mark(){getSelection().selectAllChildren(pre);b.textContent='selected'}
  if(!navigator.clipboard)mark();
  else navigator.clipboard.writeText(pre.textContent).then(function(){b.textContent='copied'},mark);
  setTimeout(function(){b.textContent='copy'},1500)});
 box.appendChild(b)});
})();
"""
