"""The charts of the report as SVG: quality against cost, gains, training, importance. Numbers in,
text out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from itertools import pairwise
from typing import Any, NamedTuple

from matta_cli.report.numbers import count, finite, in_seconds, number, signed
from matta_cli.report.story import (
    BETTER,
    NO_WORSE,
    SAME,
    WIDE,
    WORSE,
    Dict,
    by_how_much,
    by_size,
    decimals_of,
    label_of,
    latency_of,
    metrics_of,
    models_of,
    name_of,
    rivals,
    shown,
    value_of,
)


class _Scale:
    """One axis of a chart: data to pixels, with ticks."""

    def __init__(
        self, values: list[float], start: float, end: float, log: bool, pad: float, ticks: int
    ):
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
                ticks = [
                    m * 10.0**d
                    for d in decades
                    for m in marks
                    if self.low <= m * 10.0**d <= self.high
                ]
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
    return (
        f'<text class="title" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _svg(width: int, height: int, alt: str, parts: list[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="group" aria-label="{escape(alt)}">{"".join(parts)}</svg>'


def _frame(x: _Scale, y: _Scale, x_names: list[str], y_names: list[str]) -> list[str]:
    """Grid, ticks and tick labels."""
    left, right, bottom = x.start, x.end, y.start
    out = []
    for tick, text in zip(y.ticks, y_names, strict=True):
        out.append(
            f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        )
        out.append(
            f'<text class="tick" x="{left - 8:.1f}" y="{y(tick) + 4:.1f}" text-anchor="end">{escape(text)}</text>'
        )
    for tick, text in zip(x.ticks, x_names, strict=True):
        out.append(
            f'<line class="axis" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{bottom:.1f}" y2="{bottom + 5:.1f}"/>'
        )
        out.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 19:.1f}" text-anchor="middle">{escape(text)}</text>'
        )
    out.append(
        f'<line class="axis" x1="{left:.1f}" x2="{right:.1f}" y1="{bottom:.1f}" y2="{bottom:.1f}"/>'
    )
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


def badge(role: str) -> str:
    return f'<svg viewBox="0 0 18 18" aria-hidden="true">{_mark(role, 9, 9)}</svg>'


ROLES = ("student", "plain", "alone", "scratch", "cut", "base", "ta", "teacher")


KINDS = {
    "student": "Student",
    "plain": "plain distillation",
    "alone": "trained alone, on labels",
    "scratch": "from scratch",
    "cut": "untrained cut",
    "base": "base",
    "ta": "Teaching Assistant",
    "teacher": "Teacher",
}


_BESIDE = {"alone": -9, "plain": 9, "scratch": 18}  # pixels


# roles of one model for each size: joined by a line, named once
_LINES = ("cut", "scratch", "alone", "plain", "student")


def role_of(model: Dict) -> str:
    role = str(model.get("role"))
    return role if role in ROLES else "student"


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


def _place(
    wanted: list[tuple[float, float, str, bool]], busy: list[_Box], lines: list[_Box], room: _Box
) -> list[str]:
    """Put each label where it covers the least; one that finds no free place is left to the tooltip
    unless it must show.
    """
    out: list[str] = []
    placed: list[_Box] = []
    leads: list[_Box] = []  # from a mark to a label that stands away from it
    for x, y, text, must in wanted:
        width = 6.7 * len(text) + 4
        found = []
        for far in (11, 22, 36, 52):
            # to the right, left, above, below, then the corners: the order breaks ties
            for dx, dy in (
                (1, 0),
                (-1, 0),
                (0, -1),
                (0, 1),
                (0.7, -0.8),
                (-0.7, -0.8),
                (0.7, 0.8),
                (-0.7, 0.8),
            ):
                cx, cy = x + dx * far, y + dy * (far + 4)
                x0 = cx if dx > 0 else cx - width if dx < 0 else cx - width / 2
                box = _Box(x0, cy - 8, x0 + width, cy + 8)
                lead = _along(x + 7 * dx, y + 7 * dy, cx, cy) if far > 11 else []
                outside = (
                    box.x0 < room.x0 or box.x1 > room.x1 or box.y0 < room.y0 or box.y1 > room.y1
                )
                cost = (
                    1e4 * outside
                    + far
                    + 20 * sum(map(box.overlap, placed))
                    + 8 * sum(map(box.overlap, busy))
                )
                cost += 1.5 * sum(map(box.overlap, lines)) + 8 * sum(map(box.overlap, leads))
                cost += 8 * sum(old.overlap(part) for old in placed for part in lead)
                found.append(
                    (cost, box, f"M{x + 7 * dx:.1f} {y + 7 * dy:.1f}L{cx:.1f} {cy:.1f}", lead)
                )
        cost, box, path, lead = min(found, key=lambda place: place[0])
        if cost > 200 and not must:
            continue
        placed.append(box)
        leads += lead
        if lead:
            out.append(f'<path class="lead" d="{path}"/>')
        middle = (box.x0 + box.x1) / 2
        out.append(
            f'<text class="name" x="{middle:.1f}" y="{box.y1 - 4:.1f}" text-anchor="middle">{escape(text)}</text>'
        )
    return out


def short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


_Axis = tuple[str, str, Callable[[Dict], Any], Callable[..., str]]


AXES: list[_Axis] = [
    ("parameters", "parameters", lambda m: m.get("parameters"), count),
    ("latency", "median latency, batch 1", lambda m: latency_of(m, 1), in_seconds),
    ("MACs", "MACs per example", lambda m: m.get("macs"), count),
]


def pareto(report: Dict, axis: _Axis, width: int, height: int) -> str:
    metric = metrics_of(report)[0]
    _, what, read, unit = axis
    places = decimals_of(report, metric)
    points = [
        (m, float(read(m)), v)
        for m in models_of(report)
        if finite(read(m)) and (v := value_of(m, metric))
    ]
    xs = [x for _, x, _ in points]
    ys = [y for _, _, v in points for y in v if y is not None]
    log_y = not metric.get("higher") and _wide_range(ys, 3)  # a perplexity halves and doubles
    top, bottom, right = 30.0, height - 48.0, width - 14.0
    y = _Scale(ys, bottom, top, log_y, 0.07, 6)
    y_names = _tick_numbers(y)
    left = 18.0 + 6.6 * max(map(len, y_names))
    x = _Scale(xs, left, right, _wide_range(xs), 0.08, int((right - left) / 80))
    out = _frame(x, y, [unit(t, True) for t in x.ticks], y_names)
    way = {True: ", higher is better ↑", False: ", lower is better ↓"}.get(metric.get("higher"), "")
    out.append(
        _title(left, 14, f"{short(label_of(metric), 28)}{way}{' (log scale)' if y.log else ''}")
    )
    out.append(_title(right, height - 6, f"{what}{' (log scale)' if x.log else ''} →", "end"))

    # the base's interval, across: what "no worse than the base" means to the eye
    for m, _, v in points:
        if role_of(m) == "base" and v.low is not None and v.high is not None:
            size = f'width="{right - left:.1f}" height="{max(1, y(v.low) - y(v.high)):.1f}"'
            out.append(f'<rect class="band" x="{left:.1f}" y="{y(v.high):.1f}" {size}/>')

    def place(m: Dict, px: float) -> float:
        """Models of one size cost the same: they stand beside one another, or their bars would
        cover each other.
        """
        return x(px) + _BESIDE.get(role_of(m), 0) * (1.0 if width > 500 else 0.6)

    lines: list[_Box] = []
    for role in _LINES:
        path = sorted(
            (p[0].get("parameters") or 0, place(*p[:2]), y(p[2].value))
            for p in points
            if role_of(p[0]) == role
        )
        if len(path) > 1:
            out.append(
                f'<polyline class="line {role}" points="{" ".join(f"{px:.1f},{py:.1f}" for _, px, py in path)}"/>'
            )
            for (_, *start), (_, *end) in pairwise(path):
                lines += _along(*start, *end)

    busy, wanted = [], []
    # what the page is about is drawn on top
    depth = (*_LINES[:-1], "base", "ta", "teacher", "student")
    for m, px, v in sorted(points, key=lambda p: depth.index(role_of(p[0]))):
        cx, cy, role = place(m, px), y(v.value), role_of(m)
        cost = f"{unit(px)} {what}" if unit is count else f"{unit(px)}, {what}"
        says = (name_of(m), f"{label_of(metric)} {shown(v, places)}", cost)
        tip, spoken = escape("\n".join(says)), escape(", ".join(says))
        named = f'data-name="{escape(name_of(m))}" ' if role == "student" else ""
        out.append(
            f'<g class="pt {role}" {named}tabindex="0" role="img" aria-label="{spoken}" data-tip="{tip}">'
        )
        out.append(f"<title>{tip}</title>")
        if v.low is not None and v.high is not None:
            a, b = y(v.high), y(v.low)
            out.append(
                f'<path class="bar" d="M{cx:.1f} {a:.1f}V{b:.1f}M{cx - 4:.1f} {a:.1f}h8M{cx - 4:.1f} {b:.1f}h8"/>'
            )
            busy.append(_Box(cx - 4, a, cx + 4, b))
        out.append(
            f'<circle class="hit" cx="{cx:.1f}" cy="{cy:.1f}" r="16"/>{_mark(role, cx, cy)}</g>'
        )
        busy.append(_Box(cx - 8, cy - 8, cx + 8, cy + 8))
        if role not in _LINES or role == "student":
            # little room: the key says what a blue dot is, so its width is name enough
            tight = role == "student" and width < 500 and finite(m.get("width"))
            wanted.append(
                (cx, cy, f"{m['width']:g}" if tight else short(name_of(m)), role != "student")
            )
    wanted.sort(key=lambda w: not w[3])
    for role in _LINES[:-1]:  # one label for the line of each
        if some := [p for p in points if role_of(p[0]) == role]:
            m, px, v = (min if role == "cut" else max)(some, key=lambda p: p[1])
            text = "untrained cuts" if role == "cut" else KINDS[role].partition(",")[0]
            wanted.append(
                (
                    place(m, px),
                    y(v.value),
                    text if len(some) > 1 else short(name_of(m)),
                    role == "cut",
                )
            )
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


def curves(report: Dict, width: int, height: int) -> str:
    series = _trained(report)
    keys = sorted(series, key=lambda key: ((w := _width_of(key)) is None, w or 0.0, key))
    widths = [key for key in keys if _width_of(key) is not None]
    drawn = []
    for key in keys:
        # widths are one hue, the smaller the fainter; anything else (the TA) has its own colour and
        # dashes
        fade = 0.4 + 0.6 * (widths.index(key) + 1) / len(widths) if key in widths else 1.0
        name = f"width {key}" if key in widths else short(key, 16)
        drawn.append(_Series(name, "student" if key in widths else "ta", fade, series[key]))
    return trace(report, drawn, width, height, "while training")


def compared(report: Dict) -> list[tuple[str, list[_Series]]]:
    """For each Student its training and that of its baselines, where both are known."""
    found = []
    run = _trained(report)
    for student in by_size(models_of(report, "student")):
        own = run.get(f"{student['width']:g}") if finite(student.get("width")) else None
        drawn = [_Series("nested", "student", 1.0, own)] if own else []
        for model in models_of(report):
            curve = [(a, b) for a, b in model.get("curve") or [] if finite(a) and finite(b)]
            if model.get("of") == name_of(student) and curve:
                drawn.append(
                    _Series(
                        {"plain": "plain", "alone": "alone", "scratch": "scratch"}[role_of(model)],
                        role_of(model),
                        1.0,
                        curve,
                    )
                )
        if len(drawn) > 1:
            found.append((name_of(student), drawn))
    return found


def trace(report: Dict, drawn: list[_Series], width: int, height: int, title: str) -> str:
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
    out += [
        _title(left, 14, f"{short(label_of(metric), 28)} {title}"),
        _title(right, height - 6, "step →", "end"),
    ]
    ends: list[tuple[float, float, str, str]] = []
    for one in drawn:
        points = [(x(a), y(b)) for a, b in one.points]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        out.append(
            f'<polyline class="curve {one.kind}" style="opacity:{one.fade:.2f}" points="{path}"/>'
        )
        for (step, value), (px, py) in zip(one.points, points, strict=True):
            tip = escape(
                f"{one.name}\nstep {step:g}\n{label_of(metric)} {number(value, decimals_of(report, metric))}"
            )
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
    # where that pushed past the axis, up again from the bottom
    for i in range(len(at) - 2, -1, -1):
        at[i] = min(at[i], at[i + 1] - 15)
    for (px, py, name, kind), label_y in zip(ends, at, strict=True):
        out.append(f'<path class="lead" d="M{px + 3:.1f} {py:.1f}L{right + 8:.1f} {label_y:.1f}"/>')
        out.append(
            f'<text class="name {kind}" x="{right + 11:.1f}" y="{label_y + 4:.1f}">{escape(name)}</text>'
        )
    return _svg(width, height, f"{label_of(metric)} {title}, {len(drawn)} lines", out)


# verdict -> class
WORDS = {BETTER: "better", SAME: "level", NO_WORSE: "level", WORSE: "worse", WIDE: "unclear"}


def forest(report: Dict, width: int, height: int) -> str:
    """Each Student's gain over plain distillation with its interval, around zero; the band is the
    margin.
    """
    found = rivals(report)
    ends = [e for _, _, p in found for e in (p.low, p.high, p.gain, -p.margin, p.margin)] + [0.0]
    left = 16.0 + 8.0 * max(len(short(name_of(s))) for s, _, _ in found)
    top, bottom, right = 14.0, 14.0 + 38 * len(found), width - 22.0
    x = _Scale([e for e in ends if finite(e)], left, right, False, 0.06, int((right - left) / 80))
    places = max(
        0, -math.floor(math.log10(min((b - a for a, b in pairwise(x.ticks)), default=1.0)) + 1e-9)
    )
    out = []
    for tick in x.ticks:
        out.append(
            f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{bottom:.1f}"/>'
        )
        out.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 18:.1f}" text-anchor="middle">'
            f"{escape(signed(tick, places))}</text>"
        )
    out.append(f'<line class="axis" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{top}" y2="{bottom:.1f}"/>')
    for i, (student, baseline, pair) in enumerate(found):
        y, kind = top + 38 * i + 19, WORDS.get(pair.verdict, "unclear")
        tip = escape(
            f"{name_of(student)}: {pair.verdict}\n{by_how_much(report, pair)}\nagainst {name_of(baseline)}"
        )
        band = f'x="{x(-pair.margin):.1f}" width="{max(1.0, x(pair.margin) - x(-pair.margin)):.1f}"'
        out.append(f'<rect class="band" {band} y="{y - 13:.1f}" height="26"/>')
        name = escape(short(name_of(student)))
        out.append(
            f'<text class="name" x="{left - 10:.1f}" y="{y + 4:.1f}" text-anchor="end">{name}</text>'
        )
        out.append(
            f'<g class="pt gain {kind}" tabindex="0" role="img" aria-label="{tip}" data-tip="{tip}"><title>{tip}</title>'
            f'<path class="bar" d="M{x(pair.low):.1f} {y:.1f}H{x(pair.high):.1f}M{x(pair.low):.1f} {y - 5:.1f}v10'
            f'M{x(pair.high):.1f} {y - 5:.1f}v10"/><circle class="hit" cx="{x(pair.gain):.1f}" cy="{y:.1f}" r="16"/>'
            f'<circle class="mark" cx="{x(pair.gain):.1f}" cy="{y:.1f}" r="6"/></g>'
        )
    out.append(
        _title(right, bottom + 38, f"gain in {short(label_of(metrics_of(report)[0]), 24)} →", "end")
    )
    out.append(_title(left, bottom + 38, "← loss"))
    return _svg(
        width,
        int(bottom + 46),
        "Gain of each Student over plain distillation of its size, with 95 % intervals",
        out,
    )


def importance(axis: Dict, width: int, _: int) -> str:
    """One axis as a strip: its units from the most important on, the TA's new ones after them, and
    where Students end.
    """
    scores = [score for score in axis.get("importance") or [] if finite(score)]
    left, right, y, tall = 96.0, width - 8.0, 4.0, 20.0
    base, whole = axis["base"], max(axis["ta"], axis["base"])
    across = lambda units: left + (right - left) * units / whole  # noqa: E731
    out = [
        f'<text class="tick" x="{left - 8:.1f}" y="{y + 14:.1f}" text-anchor="end">{escape(short(axis["name"], 14))}</text>'
    ]
    if whole > base:
        out.append(
            f'<rect class="new" x="{across(base):.1f}" y="{y}" width="{right - across(base):.1f}" height="{tall}"/>'
        )
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
    out.append(
        f'<line class="axis" x1="{left:.1f}" x2="{right:.1f}" y1="{y + tall:.1f}" y2="{y + tall:.1f}"/>'
    )
    # a Student does not keep the first layers but the most important ones
    if not axis.get("layers"):
        for name, kept in (axis.get("kept") or {}).items():
            tip = escape(f"{name} ends here\n{kept} of {base} units")
            out.append(
                f'<g class="pt" data-tip="{tip}"><title>{tip}</title><line class="end" x1="{across(kept):.1f}" '
                f'x2="{across(kept):.1f}" y1="{y - 3:.1f}" y2="{y + tall + 3:.1f}"/><rect class="hit" '
                f'x="{across(kept) - 4:.1f}" y="{y}" width="8" height="{tall}"/></g>'
            )
    return _svg(width, int(y + tall + 4), f"Importance of the units of {axis['name']}", out)
