"""The report as one web page: plots, tables and code in a file that fetches nothing and works without JavaScript."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import partial
from html import escape
from itertools import pairwise
from typing import Any, NamedTuple

from matta_cli.report import (
    BETTER,
    NO_WORSE,
    SAME,
    WIDE,
    WORSE,
    Dict,
    alarms,
    by_how_much,
    by_size,
    columns_of,
    count,
    decimals_of,
    facts_of,
    findings,
    finite,
    headline,
    headliner,
    in_bytes,
    in_seconds,
    interval_of,
    label_of,
    latency_of,
    loadable,
    metrics_of,
    models_of,
    name_of,
    notes_of,
    number,
    percent,
    reading,
    rivals,
    sentence_of,
    shown,
    signed,
    trained,
    value_of,
    when,
    worth,
)

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


def _plain_number(value: float) -> str:
    return f"{value:,.10g}".replace(",", " ")


def _tick_numbers(scale: _Scale) -> list[str]:
    if scale.log:
        return [_plain_number(t) for t in scale.ticks]
    step = min((b - a for a, b in pairwise(scale.ticks)), default=1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 2
    return [number(t, decimals) for t in scale.ticks]


def _title(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="title" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, alt: str, parts: list[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="group" aria-label="{escape(alt)}">{"".join(parts)}</svg>'


def _frame(x: _Scale, y: _Scale, x_names: list[str], y_names: list[str]) -> list[str]:
    """Grid, ticks and tick labels."""
    left, right, bottom = x.start, x.end, y.start
    out = []
    for tick, text in zip(y.ticks, y_names, strict=True):
        out.append(f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        out.append(f'<text class="tick" x="{left - 8:.1f}" y="{y(tick) + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for tick, text in zip(x.ticks, x_names, strict=True):
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
    if role == "plain":
        return f'<path {at} d="M{x:.1f} {y + 7:.1f}l-6.5 -12h13z"/>'
    if role == "alone":
        return f'<path {at} d="M{x - 2.2:.1f} {y - 6.5:.1f}h4.4v4.3h4.3v4.4h-4.3v4.3h-4.4v-4.3h-4.3v-4.4h4.3z"/>'
    if role == "scratch":
        return f'<path {at} d="M{x:.1f} {y - 6.5:.1f}l6.2 4.5-2.4 7.3h-7.6l-2.4-7.3z"/>'
    return f'<circle {at} cx="{x:.1f}" cy="{y:.1f}" r="{5 if role == "cut" else 6}"/>'


def _badge(role: str) -> str:
    return f'<svg viewBox="0 0 18 18" aria-hidden="true">{_mark(role, 9, 9)}</svg>'


_ROLES = ("student", "plain", "alone", "scratch", "cut", "base", "ta", "teacher")
_KINDS = {
    "student": "Student", "plain": "plain distillation", "alone": "trained alone, on labels", "scratch": "from scratch",
    "cut": "untrained cut", "base": "base", "ta": "Teaching Assistant", "teacher": "Teacher",
}  # fmt: skip
_LINES = ("cut", "scratch", "alone", "plain", "student")  # roles of one model for each size: joined by a line, named once


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


def _along(x0: float, y0: float, x1: float, y1: float) -> list[_Box]:
    """A line as small boxes."""
    steps = max(1, int(math.hypot(x1 - x0, y1 - y0) / 6))
    middles = [(x0 + (x1 - x0) * k / steps, y0 + (y1 - y0) * k / steps) for k in range(steps + 1)]
    return [_Box(x - 3, y - 3, x + 3, y + 3) for x, y in middles]


def _place(wanted: list[tuple[float, float, str, bool]], busy: list[_Box], lines: list[_Box], room: _Box) -> list[str]:
    """Put each label where it covers the least; one that finds no free place is left to the tooltip unless it must show."""
    out: list[str] = []
    placed: list[_Box] = []
    leads: list[_Box] = []  # from a mark to a label that stands away from it
    for x, y, text, must in wanted:
        width = 6.7 * len(text) + 4
        found = []
        for far in (11, 22, 36, 52):
            # to the right, left, above, below, then the corners: the order breaks ties
            for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (0.7, -0.8), (-0.7, -0.8), (0.7, 0.8), (-0.7, 0.8)):
                cx, cy = x + dx * far, y + dy * (far + 4)
                x0 = cx if dx > 0 else cx - width if dx < 0 else cx - width / 2
                box = _Box(x0, cy - 8, x0 + width, cy + 8)
                lead = _along(x + 7 * dx, y + 7 * dy, cx, cy) if far > 11 else []
                outside = box.x0 < room.x0 or box.x1 > room.x1 or box.y0 < room.y0 or box.y1 > room.y1
                cost = 1e4 * outside + far + 20 * sum(map(box.overlap, placed)) + 8 * sum(map(box.overlap, busy))
                cost += 1.5 * sum(map(box.overlap, lines)) + 8 * sum(map(box.overlap, leads))
                cost += 8 * sum(old.overlap(part) for old in placed for part in lead)
                found.append((cost, box, f"M{x + 7 * dx:.1f} {y + 7 * dy:.1f}L{cx:.1f} {cy:.1f}", lead))
        cost, box, path, lead = min(found, key=lambda place: place[0])
        if cost > 200 and not must:
            continue
        placed.append(box)
        leads += lead
        if lead:
            out.append(f'<path class="lead" d="{path}"/>')
        middle = (box.x0 + box.x1) / 2
        out.append(f'<text class="name" x="{middle:.1f}" y="{box.y1 - 4:.1f}" text-anchor="middle">{escape(text)}</text>')
    return out


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


_Axis = tuple[str, str, Callable[[Dict], Any], Callable[..., str]]
_AXES: list[_Axis] = [
    ("parameters", "parameters", lambda m: m.get("parameters"), count),
    ("latency", "median latency, batch 1", lambda m: latency_of(m, 1), in_seconds),
    ("MACs", "MACs per example", lambda m: m.get("macs"), count),
]


def _pareto(report: Dict, axis: _Axis, width: int, height: int) -> str:
    metric = metrics_of(report)[0]
    _, what, read, unit = axis
    places = decimals_of(report, metric)
    points = [(m, float(read(m)), v) for m in models_of(report) if finite(read(m)) and (v := value_of(m, metric))]
    xs = [x for _, x, _ in points]
    ys = [y for _, _, v in points for y in v if y is not None]
    log_y = not metric.get("higher") and _wide_range(ys, 3)  # a perplexity halves and doubles
    top, bottom, right = 30.0, height - 48.0, width - 14.0
    y = _Scale(ys, bottom, top, log_y, 0.07, 6)
    y_names = _tick_numbers(y)
    left = 18.0 + 6.6 * max(map(len, y_names))
    x = _Scale(xs, left, right, _wide_range(xs), 0.08, int((right - left) / 80))
    out = _frame(x, y, [unit(t, True) for t in x.ticks], y_names)
    way = "higher is better ↑" if metric.get("higher") else "lower is better ↓"
    out.append(_title(left, 14, f"{_short(label_of(metric), 28)}, {way}{' (log scale)' if y.log else ''}"))
    out.append(_title(right, height - 6, f"{what}{' (log scale)' if x.log else ''} →", "end"))

    for m, _, v in points:  # the base's interval, across: what "no worse than the base" means to the eye
        if _role(m) == "base" and v.low is not None and v.high is not None:
            size = f'width="{right - left:.1f}" height="{max(1, y(v.low) - y(v.high)):.1f}"'
            out.append(f'<rect class="band" x="{left:.1f}" y="{y(v.high):.1f}" {size}/>')

    lines: list[_Box] = []
    for role in _LINES:
        path = sorted((p[0].get("parameters") or 0, x(p[1]), y(p[2].value)) for p in points if _role(p[0]) == role)
        if len(path) > 1:
            out.append(f'<polyline class="line {role}" points="{" ".join(f"{px:.1f},{py:.1f}" for _, px, py in path)}"/>')
            for (_, *start), (_, *end) in pairwise(path):
                lines += _along(*start, *end)

    busy, wanted = [], []
    depth = (*_LINES[:-1], "base", "ta", "teacher", "student")  # what the page is about is drawn on top
    for m, px, v in sorted(points, key=lambda p: depth.index(_role(p[0]))):
        cx, cy, role = x(px), y(v.value), _role(m)
        cost = f"{unit(px)} {what}" if unit is count else f"{unit(px)}, {what}"
        says = (name_of(m), f"{label_of(metric)} {shown(v, places)}", cost)
        tip, spoken = escape("\n".join(says)), escape(", ".join(says))
        named = f'data-name="{escape(name_of(m))}" ' if role == "student" else ""
        out.append(f'<g class="pt {role}" {named}tabindex="0" role="img" aria-label="{spoken}" data-tip="{tip}">')
        out.append(f"<title>{tip}</title>")
        if v.low is not None and v.high is not None:
            a, b = y(v.high), y(v.low)
            out.append(f'<path class="bar" d="M{cx:.1f} {a:.1f}V{b:.1f}M{cx - 4:.1f} {a:.1f}h8M{cx - 4:.1f} {b:.1f}h8"/>')
            busy.append(_Box(cx - 4, a, cx + 4, b))
        out.append(f'<circle class="hit" cx="{cx:.1f}" cy="{cy:.1f}" r="16"/>{_mark(role, cx, cy)}</g>')
        busy.append(_Box(cx - 8, cy - 8, cx + 8, cy + 8))
        if role not in _LINES or role == "student":
            # little room: the key says what a blue dot is, so its width is name enough
            tight = role == "student" and width < 500 and finite(m.get("width"))
            wanted.append((cx, cy, f"{m['width']:g}" if tight else _short(name_of(m)), role != "student"))
    wanted.sort(key=lambda w: not w[3])
    for role in _LINES[:-1]:  # one label for the line of each
        if some := [p for p in points if _role(p[0]) == role]:
            m, px, v = (min if role == "cut" else max)(some, key=lambda p: p[1])
            text = "untrained cuts" if role == "cut" else _KINDS[role].partition(",")[0]
            wanted.append((x(px), y(v.value), text if len(some) > 1 else _short(name_of(m)), role == "cut"))
    out += _place(wanted, busy, lines, _Box(left + 2, top - 6, right + 10, bottom - 2))
    alt = f"{label_of(metric)} against {what}, one point for each model, with 95 % intervals"
    return _svg(width, height, alt, out)


class _Series(NamedTuple):
    """One line of a chart of training."""

    name: str
    kind: str
    fade: float
    points: list[tuple[float, float]]


def _width_of(key: str) -> float | None:
    try:
        return float(key)
    except ValueError:
        return None


def _trained(report: Dict) -> dict[str, list[tuple[float, float]]]:
    """The first metric at each evaluation of the run, by the name of the width (or "TA")."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in (report.get("training") or {}).get("curve") or []:
        for key, value in (row.get("values") or {}).items():
            if finite(value) and finite(row.get("step")):
                series.setdefault(str(key), []).append((row["step"], value))
    return series


def _curves(report: Dict, width: int, height: int) -> str:
    series = _trained(report)
    keys = sorted(series, key=lambda key: ((w := _width_of(key)) is None, w or 0.0, key))
    widths = [key for key in keys if _width_of(key) is not None]
    drawn = []
    for key in keys:
        # widths are one hue, the smaller the fainter; anything else (the TA) has its own colour and dashes
        fade = 0.4 + 0.6 * (widths.index(key) + 1) / len(widths) if key in widths else 1.0
        name = f"width {key}" if key in widths else _short(key, 16)
        drawn.append(_Series(name, "student" if key in widths else "ta", fade, series[key]))
    return _lines(report, drawn, width, height, "while training")


def _beside(report: Dict) -> list[tuple[str, list[_Series]]]:
    """For each Student its training and that of its baselines, where both are known."""
    found = []
    run = _trained(report)
    for student in by_size(models_of(report, "student")):
        own = run.get(f"{student['width']:g}") if finite(student.get("width")) else None
        drawn = [_Series("nested", "student", 1.0, own)] if own else []
        for model in models_of(report):
            curve = [(a, b) for a, b in model.get("curve") or [] if finite(a) and finite(b)]
            if model.get("of") == name_of(student) and curve:
                drawn.append(_Series({"plain": "plain", "alone": "alone", "scratch": "scratch"}[_role(model)],
                                     _role(model), 1.0, curve))  # fmt: skip
        if len(drawn) > 1:
            found.append((name_of(student), drawn))
    return found


def _lines(report: Dict, drawn: list[_Series], width: int, height: int, title: str) -> str:
    metric = (metrics_of(report) or [{"name": "value"}])[0]
    if not drawn:
        return ""
    xs, ys = ([p[i] for one in drawn for p in one.points] for i in (0, 1))
    top, bottom, right = 30.0, height - 46.0, width - 16 - 6.7 * max(len(one.name) for one in drawn)
    y = _Scale(ys, bottom, top, not metric.get("higher") and _wide_range(ys, 3), 0.06, 5)
    y_names = _tick_numbers(y)
    left = 18.0 + 6.6 * max(map(len, y_names))
    x = _Scale(xs, left, right, False, 0.0 if len(set(xs)) > 1 else 0.5, int((right - left) / 70))
    x.ticks = [t for t in x.ticks if float(t).is_integer()] or x.ticks
    out = _frame(x, y, [_plain_number(t) for t in x.ticks], y_names)
    out += [_title(left, 14, f"{_short(label_of(metric), 28)} {title}"), _title(right, height - 6, "step →", "end")]
    ends: list[tuple[float, float, str, str]] = []
    for one in drawn:
        points = [(x(a), y(b)) for a, b in one.points]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        out.append(f'<polyline class="curve {one.kind}" style="opacity:{one.fade:.2f}" points="{path}"/>')
        for (step, value), (px, py) in zip(one.points, points, strict=True):
            tip = escape(f"{one.name}\nstep {step:g}\n{label_of(metric)} {number(value, decimals_of(report, metric))}")
            out.append(
                f'<g class="pt" data-tip="{tip}"><title>{tip}</title>'
                f'<circle class="hit" cx="{px:.1f}" cy="{py:.1f}" r="9"/>'
                f'<circle class="dot {one.kind}" style="opacity:{one.fade:.2f}" cx="{px:.1f}" cy="{py:.1f}" r="2.6"/></g>'
            )
        ends.append((*points[-1], one.name, one.kind))
    ends.sort(key=lambda end: end[1])
    at = [end[1] for end in ends]
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + 15)
    at[-1] = min(at[-1], bottom - 2)
    for i in range(len(at) - 2, -1, -1):  # where that pushed past the axis, up again from the bottom
        at[i] = min(at[i], at[i + 1] - 15)
    for (px, py, name, kind), label_y in zip(ends, at, strict=True):
        out.append(f'<path class="lead" d="M{px + 3:.1f} {py:.1f}L{right + 8:.1f} {label_y:.1f}"/>')
        out.append(f'<text class="name {kind}" x="{right + 11:.1f}" y="{label_y + 4:.1f}">{escape(name)}</text>')
    return _svg(width, height, f"{label_of(metric)} {title}, {len(drawn)} lines", out)


_WORDS = {BETTER: "better", SAME: "level", NO_WORSE: "level", WORSE: "worse", WIDE: "wide"}  # verdict -> class


def _forest(report: Dict, width: int, height: int) -> str:
    """Each Student's gain over plain distillation with its interval, around zero; the band is the margin."""
    found = rivals(report)
    ends = [e for _, _, p in found for e in (p.low, p.high, p.gain, -p.margin, p.margin)] + [0.0]
    left = 16.0 + 7.2 * max(len(_short(name_of(s))) for s, _, _ in found)
    top, bottom, right = 14.0, 14.0 + 38 * len(found), width - 22.0
    x = _Scale([e for e in ends if finite(e)], left, right, False, 0.06, int((right - left) / 80))
    places = max(0, -math.floor(math.log10(min((b - a for a, b in pairwise(x.ticks)), default=1.0)) + 1e-9))
    out = []
    for tick in x.ticks:
        out.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{bottom:.1f}"/>')
        out.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 18:.1f}" text-anchor="middle">'
                   f"{escape(signed(tick, places))}</text>")  # fmt: skip
    out.append(f'<line class="axis" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{top}" y2="{bottom:.1f}"/>')
    for i, (student, baseline, pair) in enumerate(found):
        y, kind = top + 38 * i + 19, _WORDS.get(pair.verdict, "wide")
        tip = escape(f"{name_of(student)}: {pair.verdict}\n{by_how_much(report, pair)}\nagainst {name_of(baseline)}")
        band = f'x="{x(-pair.margin):.1f}" width="{max(1.0, x(pair.margin) - x(-pair.margin)):.1f}"'
        out.append(f'<rect class="band" {band} y="{y - 13:.1f}" height="26"/>')
        out.append(
            f'<text class="name" x="{left - 10:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(_short(name_of(student)))}</text>'
        )
        out.append(f'<g class="pt gain {kind}" tabindex="0" role="img" aria-label="{tip}" data-tip="{tip}"><title>{tip}</title>'
                   f'<path class="bar" d="M{x(pair.low):.1f} {y:.1f}H{x(pair.high):.1f}M{x(pair.low):.1f} {y - 5:.1f}v10'
                   f'M{x(pair.high):.1f} {y - 5:.1f}v10"/><circle class="hit" cx="{x(pair.gain):.1f}" cy="{y:.1f}" r="16"/>'
                   f'<circle class="mark" cx="{x(pair.gain):.1f}" cy="{y:.1f}" r="6"/></g>')  # fmt: skip
    out.append(_title(right, bottom + 38, f"gain in {_short(label_of(metrics_of(report)[0]), 24)} →", "end"))
    out.append(_title(left, bottom + 38, "← loss"))
    return _svg(width, int(bottom + 46), "Gain of each Student over plain distillation of its size, with 95 % intervals", out)


def _importance(axis: Dict, width: int, _: int) -> str:
    """One axis as a strip: its units from the most important on, the TA's new ones after them, and where Students end."""
    scores = [score for score in axis.get("importance") or [] if finite(score)]
    left, right, y, tall = 96.0, width - 8.0, 4.0, 20.0
    base, whole = axis["base"], max(axis["ta"], axis["base"])
    across = lambda units: left + (right - left) * units / whole  # noqa: E731
    out = [
        f'<text class="tick" x="{left - 8:.1f}" y="{y + 14:.1f}" text-anchor="end">{escape(_short(axis["name"], 14))}</text>'
    ]
    if whole > base:
        out.append(f'<rect class="new" x="{across(base):.1f}" y="{y}" width="{right - across(base):.1f}" height="{tall}"/>')
    top = max(scores, default=0.0) or 1.0
    each = base / max(1, len(scores))
    for i, score in enumerate(scores):
        share = max(0.0, score) / top
        tall_here = max(1.0, tall * share)
        tip = escape(
            f"{axis['name']}\nunits {round(i * each) + 1} to {round((i + 1) * each)}\n{share:.0%} of the most important"
        )
        if axis.get("layers"):
            tip = escape(f"{axis['name']}\nlayer {i}\n{share:.0%} of the most important")
        out.append(
            f'<g class="pt" data-tip="{tip}"><title>{tip}</title><rect class="hit" x="{across(i * each):.1f}" y="{y}" '
            f'width="{across(each) - left:.2f}" height="{tall}"/><rect class="unit" x="{across(i * each):.1f}" '
            f'y="{y + tall - tall_here:.1f}" width="{max(0.5, across(each) - left - 0.5):.2f}" height="{tall_here:.1f}"/></g>'
        )
    out.append(f'<line class="axis" x1="{left:.1f}" x2="{right:.1f}" y1="{y + tall:.1f}" y2="{y + tall:.1f}"/>')
    if not axis.get("layers"):  # a Student does not keep the first layers but the most important ones
        for name, kept in (axis.get("kept") or {}).items():
            tip = escape(f"{name} ends here\n{kept} of {base} units")
            out.append(
                f'<g class="pt" data-tip="{tip}"><title>{tip}</title><line class="end" x1="{across(kept):.1f}" '
                f'x2="{across(kept):.1f}" y1="{y - 3:.1f}" y2="{y + tall + 3:.1f}"/><rect class="hit" '
                f'x="{across(kept) - 4:.1f}" y="{y}" width="8" height="{tall}"/></g>'
            )
    return _svg(width, int(y + tall + 4), f"Importance of the units of {axis['name']}", out)


# --- the page ----------------------------------------------------------------------------------------------------------


def _both(draw: Callable[[int, int], str], tall: int, narrow_tall: int) -> str:
    """Drawn twice, for a wide page and for a telephone: a scaled-down drawing would have unreadable text."""
    return f'<div class="wide">{draw(960, tall)}</div><div class="narrow">{draw(360, narrow_tall)}</div>'


def _tiles(report: Dict) -> str:
    pick = headliner(report)
    if pick is None:
        return ""
    metric, s, b = metrics_of(report)[0], pick.student, pick.base
    places = decimals_of(report, metric)
    base = f"base {shown(pick.theirs, places)}"
    tiles = [(label_of(metric), number(pick.ours.value, places), interval_of(pick.ours, places), base)]
    for what, ours, theirs, unit in (
        ("parameters", s.get("parameters"), b.get("parameters"), count),
        ("MACs per example", s.get("macs"), b.get("macs"), count),
        ("latency, batch 1", latency_of(s, 1), latency_of(b, 1), in_seconds),
        ("checkpoint", s.get("bytes"), b.get("bytes"), in_bytes),
    ):
        if finite(ours) and finite(theirs) and theirs:
            tiles.append((what, unit(ours), percent(ours / theirs) + " of the base", f"base {unit(theirs)}"))
    cells = "".join(
        f"<div><dt>{escape(what)}</dt><dd><b>{escape(big)}</b> <i>{escape(small)}</i><span>{escape(below)}</span></dd></div>"
        for what, big, small, below in tiles[:4]
    )
    return f'<p class="over">{escape(name_of(s))}, against the base</p><dl class="tiles">{cells}</dl>'


def _figure(report: Dict) -> str:
    if not metrics_of(report):
        return ""
    metric = metrics_of(report)[0]
    scored = [m for m in models_of(report) if value_of(m, metric)]
    axes = [axis for axis in _AXES if any(finite(axis[2](m)) for m in scored)]
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
    rest = [m for m in models_of(report) if _role(m) != "cut"]
    if any(m in rest for m in scored) and any(m not in rest for m in scored):
        # Untrained cuts are often so bad that they flatten everything else: the same plot without them.
        views.append(("trained", {**report, "models": rest}))
        controls += '<input type="checkbox" id="cuts" checked><label for="cuts" class="box">untrained cuts</label>'
    plots = "".join(
        f'<div class="plot plot-{i} {view}">{_both(partial(_pareto, part, axis), 460, 380)}</div>'
        for i, axis in enumerate(axes)
        for view, part in views
        if any(finite(axis[2](m)) and value_of(m, metric) for m in models_of(part))
    )
    roles = [role for role in _ROLES if any(_role(m) == role for m in scored)]
    key = "".join(f"<li>{_badge(role)}{_KINDS[role]}</li>" for role in roles)
    hint = "Bars are 95 % intervals" + ("; the band is the base's." if "base" in roles else ".")
    return (
        f'<section><h2>Quality against cost</h2><div class="switch">{controls}<div class="plots">{plots}</div></div>'
        f'<ul class="key">{key}<li class="hint">{hint}</li></ul></section>'
    )


def _table(report: Dict) -> str:
    columns = columns_of(report)
    if not columns:
        return ""
    # Quality and size come first here: on a telephone the first columns are those seen without scrolling.
    columns.sort(key=lambda c: 0 if c[0] == "model" else 1 if c[0][-1:] in "↑↓" else 2 if c[0] == "parameters" else 3)
    base = next((m for m in by_size(models_of(report, "base"))), None)
    head = "".join(f'<th scope="col">{_small(header)}</th>' for header, _ in columns)
    body = []
    for at, model in enumerate(models_of(report)):
        role, cells = _role(model), []
        for header, column in columns:
            main, detail = column[at]
            if header == "model":
                cells.append(f'<th scope="row"><div>{_badge(role)}<span>{escape(main)}</span></div></th>')
                continue
            if header == "parameters" and base and base["parameters"] and finite(model.get("parameters")):
                detail = percent(model["parameters"] / base["parameters"])
            small = f" <small>{escape(detail)}</small>" if detail else ""
            cells.append(f"<td>{escape(main)}{small}</td>")
        body.append(f'<tr class="{role}">{"".join(cells)}</tr>')
    share = " The share under each parameter count is of the base's." if base else ""
    return (
        f'<section><h2>Every model</h2><div class="scroll" tabindex="0" role="region" aria-label="Every model">'
        f"<table><thead><tr>{head}</tr></thead>"
        f'<tbody>{"".join(body)}</tbody></table></div><p class="hint">{escape(reading(report))}{share}</p></section>'
    )


def _verdicts(report: Dict) -> str:
    """Was it worth it? Each Student against plain distillation of its size."""
    found = rivals(report)
    if not found:
        return ""
    items = "".join(
        f'<li><span class="verdict {_WORDS.get(pair.verdict, "wide")}">{escape(pair.verdict)}</span> '
        f"<span>{escape(sentence_of(report, student, baseline, pair))} <small>It took {escape(trained(report, student)[0])} "
        f"(all Students), the baseline {escape(trained(report, baseline)[0])}.</small></span></li>"
        for student, baseline, pair in found
    )
    hint = (
        "Each bar is the 95 % interval of the difference on the same held-out examples, the band the margin of what may be "
        "lost. “Better” is said only where chance is ruled out over all sizes at once (Holm). One run was made of each, so "
        "the intervals say nothing about other seeds."
    )
    return (
        f'<section><h2>Was it worth it?</h2><p class="lead-in">{escape(worth(report))}</p>{_both(partial(_forest, report), 0, 0)}'
        f'<ul class="verdicts">{items}</ul><p class="hint">{hint}</p></section>'
    )


_BUDGETS: list[tuple[str, str, Callable[[Dict], Any], str]] = [
    ("parameters", "parameters", lambda m: m.get("parameters"), "count"),
    ("MACs", "MACs per example", lambda m: m.get("macs"), "count"),
    ("latency", "latency, batch 1", lambda m: latency_of(m, 1), "time"),
    ("memory", "peak memory", lambda m: m.get("peak_memory"), "bytes"),
    ("checkpoint", "bytes on disk", lambda m: m.get("bytes"), "bytes"),
]


def _budget(report: Dict) -> str:
    """A slider that names the best Student within a budget. It needs JavaScript, and is hidden without."""
    students = by_size(models_of(report, "student"))
    if not metrics_of(report) or len(students) < 2:
        return ""
    metric = metrics_of(report)[0]
    places, verdicts = decimals_of(report, metric), {name_of(s): pair.verdict for s, _, pair in rivals(report)}
    rows: list[dict[str, Any]] = [
        {
            "name": name_of(s), "quality": v.value, "shown": shown(v, places), "verdict": verdicts.get(name_of(s), ""),
            "costs": [read(s) if finite(read(s)) else None for _, _, read, _ in _BUDGETS],
        }
        for s in students if (v := value_of(s, metric))
    ]  # fmt: skip
    costs = [{row["costs"][i] for row in rows} - {None} for i in range(len(_BUDGETS))]
    kinds = [(i, label, unit) for i, (label, _, _, unit) in enumerate(_BUDGETS) if len(costs[i]) > 1]
    if len(rows) < 2 or not kinds:
        return ""
    told = {"label": label_of(metric), "higher": bool(metric.get("higher")), "rows": rows, "units": [k[2] for k in kinds],
            "at": [k[0] for k in kinds], "whats": [_BUDGETS[k[0]][1] for k in kinds]}  # fmt: skip
    choices = "".join(
        f'<input type="radio" name="budget" id="budget-{n}" value="{n}"{"" if n else " checked"}>'
        f'<label for="budget-{n}">{label}</label>'
        for n, (_, label, _) in enumerate(kinds)
    )
    return (
        f'<section id="budget" hidden data-told="{escape(json.dumps(told))}"><h2>Which Student for my budget?</h2>'
        f'<div class="switch">{choices}</div><label class="slide"><span id="limit"></span>'
        '<input type="range" id="slider" min="0" max="1000" value="600" aria-describedby="answer"></label>'
        '<p id="answer" role="status"></p></section>'
    )


_STRIPS = 24  # axes that are drawn


def _axes(report: Dict) -> str:
    """What nests, and how important its units were found to be."""
    axes = [a for a in report.get("axes") or [] if finite(a.get("base")) and finite(a.get("ta")) and a["base"]]
    if not axes:
        return ""
    drawn = [a for a in axes if a.get("importance")][:_STRIPS] or axes[:_STRIPS]
    strips = "".join(_both(partial(_importance, axis), 0, 0) for axis in drawn)
    more = f" {len(axes) - len(drawn)} more axes are in report.json." if len(axes) > len(drawn) else ""
    grown = " Grey is what the TA has grown." if any(a["ta"] > a["base"] for a in drawn) else ""
    hint = "The units of each axis, the most important first, as high as they are important; a line is where a Student ends."
    return f'<section><h2>Axes and importance</h2><div class="strips">{strips}</div><p class="hint">{hint}{grown}{more}</p></section>'


def _small(header: str) -> str:
    """'latency b8 median (p95)' as two lines."""
    if found := re.fullmatch(r"(latency b\d+) (median \(p95\))", header):
        return f"{found[1].replace(' ', '&nbsp;')} <small>{found[2]}</small>"
    # neither an arrow alone on a line, nor a bracket over two
    return re.sub(r"(\([^()]*\)|\S+) [↑↓]$", r'<span class="whole">\g<0></span>', escape(header))


def _items(texts: list[str]) -> str:
    return "".join(f"<li>{escape(text)}</li>" for text in texts)


def html(report: Dict) -> str:
    title = headline(report)
    over = " · ".join(str(part) for part in ("matta", report.get("task"), report.get("adapter"), when(report)[:10]) if part)
    parts = [f'<header><p class="over">{escape(over)}</p><h1>{escape(title)}</h1>{_tiles(report)}']
    if found := findings(report):
        parts.append(f'<ul class="found">{_items(found)}</ul>')
    parts.append("</header>")
    if warned := alarms(report):
        parts.append(f'<section class="alarm" role="note"><h2>Look at this first</h2><ul>{_items(warned)}</ul></section>')
    parts += [_verdicts(report), _figure(report), _budget(report), _table(report)]
    if _curves(report, 960, 320):
        small = [_lines(report, drawn, 440, 260, f"of {_short(name)}") for name, drawn in _beside(report)]
        beside = "".join(f"<article>{chart}</article>" for chart in small)
        beside = f'<div class="cards beside">{beside}</div>' if beside else ""
        parts.append(f"<section><h2>Training</h2>{_both(partial(_curves, report), 320, 300)}{beside}</section>")
    parts.append(_axes(report))
    if loading := loadable(report):
        cards = []
        for model, known, lines in loading:
            size = [f"{count(model['parameters'])} parameters"] if finite(model.get("parameters")) else []
            cards.append(
                f"<article><h3>{escape(name_of(model))}</h3><p>{escape(' · '.join(size + known))}</p>"
                f'<div class="code"><pre tabindex="0"><code>{escape(lines)}</code></pre></div></article>'
            )
        parts.append(f'<section><h2>Load one in three lines</h2><div class="cards">{"".join(cards)}</div></section>')
    if notes := notes_of(report):
        parts.append(f"<section><h2>Notes</h2><ul>{_items(notes)}</ul></section>")
    made = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for what, value in facts_of(report))
    more = ""
    if recipe := str(report.get("recipe") or ""):
        more = f"<summary>The recipe, every setting resolved</summary><pre><code>{escape(recipe)}</code></pre>"
        more = f"<details>{more}</details>"
    if made or more:
        parts.append(f'<section><h2>How it was made</h2><dl class="facts">{made}</dl>{more}</section>')
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"  # nothing is ever fetched
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>\n<body><main>\n"
        + "\n".join(part for part in parts if part)
        + f"\n</main><script>{_JS}</script></body></html>\n"
    )


# Okabe and Ito's colours, told apart with any colour vision; lighter ones of the same hues on a dark page.
_CSS = """
:root{--bg:#fcfcfa;--card:#fff;--ink:#1b1f24;--soft:#5c646e;--rule:#dfe2e5;--grid:#eceef0;--student:#0072b2;--cut:#7a828c;--plain:#8a4f9e;--alone:#8c6d00;--scratch:#b03a5b;
  --base:#1b1f24;--ta:#c4500a;--teacher:#00795a;--better:#00795a;--worse:#b3261e;--warn:#fff4e0;--warn-rule:#e69f00;--code:#f3f4f5}
@media(prefers-color-scheme:dark){
:root{--bg:#14171b;--card:#1b1f25;--ink:#e8eaed;--soft:#9fa8b3;--rule:#343a42;--grid:#262b32;--student:#56b4e9;
  --plain:#c89be0;--alone:#dcbc4a;--scratch:#f08aa8;--cut:#929ba6;--base:#f0f2f4;--ta:#f08c4a;--teacher:#3cc79d;--better:#3cc79d;--worse:#ff8a80;--warn:#2b2415;--warn-rule:#e69f00;--code:#1f242b}
}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;font-variant-numeric:tabular-nums;
  -webkit-text-size-adjust:100%}main{max-width:1180px;margin:0 auto;padding:44px 28px 72px}
h1{font-size:clamp(1.45rem,1.05rem + 1.9vw,2.25rem);line-height:1.22;letter-spacing:-.015em;margin:.15em 0 .8em;
  max-width:32em;text-wrap:balance;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 .7em}h3{font-size:1rem;margin:0;overflow-wrap:anywhere}section{margin-top:52px}
p{margin:.4em 0}.over{color:var(--soft);font-size:.82rem;margin:0 0 .5em;overflow-wrap:anywhere}
.hint,.key{color:var(--soft);font-size:.84rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:1px;margin:0;background:var(--rule);
  border:1px solid var(--rule);border-radius:10px;overflow:hidden}.tiles div{background:var(--card);padding:14px 16px}
.tiles dt{color:var(--soft);font-size:.84rem}.tiles dd{margin:0}
.tiles b{font-size:1.5rem;letter-spacing:-.01em;display:block}.tiles i{font-style:normal;font-size:.84rem}
.tiles span{display:block;color:var(--soft);font-size:.84rem}.found{margin:22px 0 0;padding-left:1.15em;max-width:52em}
.found li{margin:.25em 0}
.alarm{background:var(--warn);border-left:4px solid var(--warn-rule);border-radius:4px;padding:16px 20px;margin-top:32px}
.alarm h2{margin-bottom:.3em}.alarm ul{margin:0;padding-left:1.15em}li{overflow-wrap:anywhere}
.switch input{position:absolute;opacity:0;pointer-events:none}
.switch label{display:inline-block;padding:4px 14px;border:1px solid var(--rule);margin-right:-1px;font-size:.88rem;
  cursor:pointer;color:var(--soft)}.switch label:first-of-type{border-radius:7px 0 0 7px}
.switch label:nth-last-child(1 of label:not(.box)){border-radius:0 7px 7px 0}
.switch .box{border-color:transparent!important;background:none!important;color:var(--soft)!important}
.switch .box::before{content:"☐ "}.switch input:checked+.box::before{content:"☑ "}
#cuts:checked~.plots .trained,#cuts:not(:checked)~.plots .all{display:none!important}
.switch input:checked+label{background:var(--ink);color:var(--bg);border-color:var(--ink)}
.switch input:focus-visible+label{outline:2px solid var(--student);outline-offset:2px}.plots{margin-top:16px}
.plot{display:none}#axis-0:checked~.plots .plot-0,#axis-1:checked~.plots .plot-1,#axis-2:checked~.plots .plot-2{display:block}
.narrow{display:none}.wide svg,.narrow svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:12px;fill:var(--soft)}svg .title{fill:var(--ink);font-weight:600}
svg .name{fill:var(--ink);font-weight:600;paint-order:stroke;stroke:var(--bg);stroke-width:4px;stroke-linejoin:round}
.grid{stroke:var(--grid)}.axis{stroke:var(--soft)}.lead{stroke:var(--soft);stroke-width:.8;fill:none}
.band{fill:var(--base);opacity:.08}.line,.curve{fill:none;stroke-width:2;stroke-linejoin:round}
.line.student,.curve.student{stroke:var(--student)}.line.cut{stroke:var(--cut);stroke-dasharray:5 5}
.plain.line,.plain.curve{stroke:var(--plain)}.alone.line,.alone.curve{stroke:var(--alone)}
.scratch.line,.scratch.curve{stroke:var(--scratch)}.line.plain,.line.alone,.line.scratch{stroke-width:1.2}
.mark.plain,.dot.plain{fill:var(--plain)}.mark.alone,.dot.alone{fill:var(--alone)}
.mark.scratch,.dot.scratch{fill:var(--scratch)}.plain .bar{stroke:var(--plain)}.alone .bar{stroke:var(--alone)}
.scratch .bar{stroke:var(--scratch)}.plain .bar,.alone .bar,.scratch .bar,.cut .bar{stroke-width:1}
.chosen .mark{stroke:var(--ink);stroke-width:3}
.gain.better .mark,.gain.better .bar{fill:var(--better);stroke:var(--better)}
.gain.worse .mark,.gain.worse .bar{fill:var(--worse);stroke:var(--worse)}
.gain.level .mark,.gain.level .bar{fill:var(--student);stroke:var(--student)}
.gain.wide .mark,.gain.wide .bar{fill:var(--soft);stroke:var(--soft)}.gain .bar{stroke-width:2.2}
.verdicts{list-style:none;padding:0;margin:18px 0 0;display:grid;gap:12px}
.verdicts li{display:grid;grid-template-columns:9.5em 1fr;gap:4px 14px;align-items:baseline;max-width:62em}
.verdicts small{color:var(--soft);font-size:.84rem}.lead-in{max-width:52em;margin:0 0 18px}
.verdict{font-size:.84rem;font-weight:600;border:1px solid currentColor;border-radius:99px;padding:1px 11px;
  justify-self:start;white-space:nowrap}.verdict.better{color:var(--better)}.verdict.worse{color:var(--worse)}
.verdict.level{color:var(--student)}.verdict.wide{color:var(--soft)}
.slide{display:block;margin:16px 0 4px;max-width:560px}.slide span{display:block;font-size:.88rem;color:var(--soft)}
.slide input{width:100%;margin:8px 0 0;accent-color:var(--student)}#answer{font-weight:600;max-width:52em;min-height:3.1em}
.strips{display:grid;gap:4px}.new{fill:var(--grid)}.unit{fill:var(--student)}.end{stroke:var(--ink);stroke-width:1.5}
.beside{margin-top:24px}
.curve.ta{stroke:var(--ta);stroke-dasharray:7 3}.mark{stroke:var(--bg);stroke-width:1.5}
.mark.student,.dot.student{fill:var(--student)}.mark.base{fill:var(--base)}.mark.ta,.dot.ta{fill:var(--ta)}
.mark.teacher{fill:var(--teacher)}.mark.cut{fill:var(--bg);stroke:var(--cut);stroke-width:2}
.bar{stroke:var(--student);stroke-width:1.5;fill:none}.cut .bar{stroke:var(--cut)}.base .bar{stroke:var(--base)}
.ta .bar{stroke:var(--ta)}.teacher .bar{stroke:var(--teacher)}.hit{fill:transparent}.pt{outline:none}
.pt:hover .mark,.pt:focus .mark{stroke:var(--ink);stroke-width:2.5}
.key{list-style:none;display:flex;flex-wrap:wrap;gap:4px 20px;padding:0;margin:14px 0 0}
.key li{display:flex;align-items:center;gap:6px}.key svg,th svg{width:16px;height:16px;flex:none}
.scroll{overflow-x:auto;border:1px solid var(--rule);border-radius:10px;background:var(--card)}
.whole{white-space:nowrap}table{border-collapse:collapse;width:100%;font-size:.88rem}
th,td{padding:9px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule);vertical-align:top}
tbody tr:last-child>*{border-bottom:0}thead th{color:var(--soft);font-weight:600;white-space:normal;vertical-align:bottom}
th:first-child{text-align:left;position:sticky;left:0;background:var(--card)}
th[scope=row] div{display:flex;gap:8px;align-items:center}
th[scope=row] span{white-space:normal;overflow-wrap:anywhere;min-width:6.5em;max-width:15em}th svg .mark{stroke:var(--card)}
th svg .mark.cut{stroke:var(--cut);fill:var(--card)}
td small,thead small{display:block;color:var(--soft);font-size:.92em;font-weight:400}tr.cut td,tr.cut th{color:var(--soft)}
tr.cut th{font-weight:400}.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:26px 24px}
.cards article{min-width:0}.cards p{color:var(--soft);font-size:.84rem;margin:0 0 .5em}
pre{background:var(--code);border-radius:8px;padding:12px 14px;margin:0;overflow-x:auto;
  font:.82rem/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
.code{position:relative}.code pre{white-space:pre-wrap;overflow-wrap:anywhere}
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
.tiles{grid-template-columns:1fr 1fr}.tiles div{padding:11px 10px}.tiles b{font-size:1.25rem}.tiles span{font-size:.78rem}
.verdicts li{grid-template-columns:1fr}
.switch .box{padding-left:0}th,td{padding:8px 9px}
th[scope=row] span{max-width:7em}
}
@media print{
.switch label,.code button{display:none}section{break-inside:avoid}
}
"""

# Tooltips, copy buttons and the slider only: without it the page has native tooltips, and the axis still switches.
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
var box=document.getElementById('budget');
if(!box)return;
box.hidden=false;
var told=JSON.parse(box.dataset.told),slider=document.getElementById('slider'),limit=document.getElementById('limit'),
 answer=document.getElementById('answer');
function text(value,unit){
 var names=unit==='time'?['s','ms','µs','ns']:unit==='bytes'?['TB','GB','MB','kB','B']:['T','G','M','k',''];
 var size=unit==='time'?1:1e12,i=0;
 while(i<names.length-1&&value<size){size/=1000;i++}
 return (Number((value/size).toPrecision(3))+' '+names[i]).trim()}
function choose(){
 var n=+box.querySelector('input[name=budget]:checked').value,at=told.at[n],unit=told.units[n];
 var rows=told.rows.filter(function(r){return r.costs[at]!==null}).sort(function(a,b){return a.costs[at]-b.costs[at]});
 var low=rows[0].costs[at]*.8,high=rows[rows.length-1].costs[at]*1.1,budget=low*Math.pow(high/low,slider.value/1000),best=null;
 rows.forEach(function(r){if(r.costs[at]<=budget&&(!best||(told.higher?r.quality>best.quality:r.quality<best.quality)))best=r});
 limit.textContent='At most '+text(budget,unit)+' of '+told.whats[n];
 answer.textContent=best?best.name+': '+told.label+' '+best.shown+', with '+text(best.costs[at],unit)+
  (best.verdict?'. Against plain distillation of its size: '+best.verdict:'')+'.':
  'None: the least that a Student needs is '+text(rows[0].costs[at],unit)+', '+rows[0].name+'.';
 document.querySelectorAll('[data-name]').forEach(function(el){
  el.classList.toggle('chosen',!!best&&el.dataset.name===best.name)})}
slider.addEventListener('input',choose);
box.querySelectorAll('input[name=budget]').forEach(function(el){el.addEventListener('change',choose)});
choose();
})();
"""
