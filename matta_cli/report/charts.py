"""The charts of a report: quality against cost, gains, training, importance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from matta_cli.report.claims import Comparison
from matta_cli.report.numbers import count, finite, in_bytes, in_seconds, number, signed
from matta_cli.report.schema import Metric, ModelEntry, Report, Role
from matta_cli.report.svg import (
    Chart,
    Line,
    Name,
    Point,
    Scale,
    Tick,
    across,
    beside,
    named,
    spaced,
    wide_range,
)
from matta_cli.report.values import decimals_of, of_tokens, short, shown
from matta_cli.report.verdicts import BETTER, NO_WORSE, SAME, SLIGHTLY, UNCLEAR, WORSE

# what each role is called in a key, in the key's order
KINDS = {
    Role.STUDENT: "Student",
    Role.QUANTIZED: "Student in fewer bits",
    Role.PLAIN: "plain distillation",
    Role.ALONE: "trained alone, on labels",
    Role.SCRATCH: "from scratch",
    Role.CUT: "untrained cut",
    Role.BASE: "base",
    Role.TA: "Teaching Assistant",
    Role.TEACHER: "Teacher",
}

# roles of one model for each size, joined by a line; what a page is about is drawn last
_LINES = (Role.CUT, Role.SCRATCH, Role.ALONE, Role.PLAIN, Role.STUDENT)
_DEPTH = (*_LINES[:-1], Role.BASE, Role.TA, Role.TEACHER, Role.QUANTIZED, Role.STUDENT)

# Models of one size cost the same: they stand beside one another, some pixels apart, or their bars
# would cover each other.
_SHIFT = {Role.ALONE: -9.0, Role.PLAIN: 9.0, Role.SCRATCH: 18.0}


@dataclass(frozen=True)
class Axis:
    """A cost that quality is drawn against."""

    name: str
    what: str
    read: Callable[[ModelEntry], Any]
    unit: Callable[..., str]


def axes(report: Report) -> list[Axis]:
    """The costs that a report's models are drawn against.

    Where there are Students in fewer bits, bytes come first: of parameters and MACs they have as
    many as their float ones, and stand in no chart of these.
    """
    tokens = of_tokens(report)
    each = f", one example{tokens}" if tokens else ", batch 1"
    time = Axis("latency", f"median latency{each}", lambda m: m.latency(1), in_seconds)
    if report.generation:
        what = "median time for a generated token, batch 1"
        time = Axis("decode", what, lambda m: m.latency(1, "decode"), in_seconds)
    fewer = report.of(Role.QUANTIZED)
    return [
        *([Axis("bytes", "bytes of weights", lambda m: m.cost.bytes, in_bytes)] if fewer else []),
        Axis("parameters", "parameters", lambda m: _own(m, m.cost.parameters), count),
        time,
        Axis("MACs", f"MACs per example{tokens}", lambda m: _own(m, m.cost.macs), count),
    ]


def _own(model: ModelEntry, cost: int | None) -> int | None:
    return None if model.quantized else cost


def pareto(report: Report, models: Sequence[ModelEntry], axis: Axis) -> Chart | None:
    """Quality against a cost, a point for each model; None where no model has both."""
    metric = report.metrics[0]
    known = [(m, v, axis.read(m)) for m in models if (v := m.measured(metric))]
    known = [one for one in known if finite(one[2])]
    if not known:
        return None
    xs = [cost for _, _, cost in known]
    ys = [end for _, v, _ in known for end in (v.value, v.low, v.high) if end is not None]
    # a perplexity halves and doubles
    y = Scale(ys, 416.0, 10.0, metric.higher is not True and wide_range(ys, 3), 0.07)
    x = Scale(xs, 0.0, 100.0, wide_range(xs), 0.1)
    way = {True: ", higher is better ↑", False: ", lower is better ↓", None: ""}[metric.higher]
    chart = Chart(
        alt=f"{metric.label} against {axis.what}, a point for each model, with 95 % intervals",
        title=f"{metric.label}{way}{' (log scale)' if y.log else ''}",
        height=440,
        bottom=416,
        x=across(x, lambda tick: axis.unit(tick, True)),
        y=named(y, 6),
        x_title=f"{axis.what}{' (log scale)' if x.log else ''} →",
    )
    places = decimals_of(report, metric)
    points: list[tuple[ModelEntry, Point]] = []
    for model, value, cost in sorted(known, key=lambda one: _DEPTH.index(one[0].role)):
        bar = None
        if value.low is not None and value.high is not None:
            bar = (y(value.high), y(value.low))
        paid = f"{axis.unit(cost)}{' ' if axis.unit is count else ', '}{axis.what}"
        tip = f"{model.name}\n{metric.label} {shown(value, places)}\n{paid}"
        name = model.name if model.role in (Role.STUDENT, Role.QUANTIZED) else ""
        at = (x(cost), y(value.value), tip, _SHIFT.get(model.role, 0.0), bar, name)
        points.append((model, Point(model.role.value, *at)))
        if model.role is Role.BASE and bar:
            chart.band = (bar[0], max(1.0, bar[1] - bar[0]))
    chart.points = [point for _, point in points]
    for role in _LINES:
        some = [(m.cost.parameters or 0, p.x, p.y) for m, p in points if m.role is role]
        if len(some) > 1:
            line = [(px, py) for _, px, py in sorted(some)]
            chart.lines.append(Line(role.value, line, _SHIFT.get(role, 0.0)))
    for only in ("wide", "narrow"):
        chart.names += beside(chart, _wanted(points, only), only)
    return chart


def _wanted(points: Sequence[tuple[ModelEntry, Point]], only: str) -> list[tuple[Point, str]]:
    """Which marks are to have a name, the most important first."""
    copies = [(p, m.name) for m, p in points if m.role is Role.QUANTIZED]
    single = [(p, m.name) for m, p in points if m.role not in (*_LINES, Role.QUANTIZED)]
    students = []
    for model, point in sorted(points, key=lambda one: one[1].x):
        if model.role is Role.STUDENT:
            # little room: the key says what a blue dot is, so its width is name enough
            tight = only == "narrow" and model.width is not None
            students.append((point, f"{model.width:g}" if tight else model.name))
    ends = []
    for role in _LINES[:-1]:  # one name for the line of each
        if some := [(point.x, model.name, point) for model, point in points if model.role is role]:
            _, name, end = (min if role is Role.CUT else max)(some, key=lambda one: one[0])
            every = KINDS[role].partition(",")[0] + "s" * (role is Role.CUT)
            ends.append((end, every if len(some) > 1 else name))
    return [(point, short(name)) for point, name in (*single, *students, *ends, *copies)]


def _trained(report: Report) -> dict[str, list[tuple[float, float]]]:
    """The first metric at each evaluation of the run, by the name of the width (or "TA")."""
    series: dict[str, list[tuple[float, float]]] = {}
    for step, values in report.run.curve if report.run else []:
        for key, value in values.items():
            if finite(value):
                series.setdefault(key, []).append((step, value))
    return series


def curves(report: Report) -> Chart | None:
    """The run's evaluations; None without any."""
    series = _trained(report)
    widths = sorted((key for key in series if _is_width(key)), key=float)
    drawn = []
    for i, key in enumerate(widths):  # of one hue, the smaller the fainter
        fade = 0.4 + 0.6 * (i + 1) / len(widths)
        drawn.append(Line("student", series[key], 0.0, fade, f"width {key}"))
    others = sorted(key for key in series if key not in widths)
    drawn += [Line("ta", series[key], name=short(key, 16)) for key in others]
    return trace(report, drawn, "while training")


def _is_width(key: str) -> bool:
    try:
        return float(key) > 0
    except ValueError:
        return False


def rival_curves(report: Report) -> list[Chart]:
    """For each Student its training and that of its baselines, where both are known."""
    found, run = [], _trained(report)
    for student in report.by_size(Role.STUDENT):
        own = run.get(f"{student.width:g}") if student.width is not None else None
        drawn = [Line("student", own, name="nested")] if own else []
        for model in report.models:
            curve = [(float(step), value) for step, value in model.curve if finite(value)]
            if model.of == student.name and curve:
                drawn.append(Line(model.role.value, curve, name=model.role.value))
        if len(drawn) > 1 and (chart := trace(report, drawn, f"of {short(student.name)}")):
            found.append(chart)
    return found


def trace(report: Report, drawn: Sequence[Line], title: str) -> Chart | None:
    """A metric by steps, a line for each series of data, named where it ends."""
    if not drawn:
        return None
    metric = report.primary or Metric("value", "value")
    xs, ys = ([place[i] for one in drawn for place in one.places] for i in (0, 1))
    y = Scale(ys, 232.0, 10.0, metric.higher is not True and wide_range(ys, 3), 0.06)
    x = Scale([0.0, *xs], 0.0, 100.0)  # from the first step to the last one, and no further
    chart = Chart(
        alt=f"{metric.label} {title}, {len(drawn)} lines",
        title=f"{metric.label} {title}",
        height=256,
        bottom=232,
        x=[tick for tick in across(x, spaced) if "." not in tick.text],
        y=named(y, 5),
        x_title="step →",
        right=18 + 6.9 * max(len(one.name) for one in drawn),
    )
    places = decimals_of(report, metric)
    for one in drawn:
        chart.lines.append(replace(one, places=[(x(step), y(value)) for step, value in one.places]))
        for step, value in one.places:
            tip = f"{one.name}\nstep {step:g}\n{metric.label} {number(value, places)}"
            chart.points.append(Point(one.kind, x(step), y(value), tip, fade=one.fade))
    chart.names = _ends(chart.lines, chart.bottom - 2)
    return chart


def _ends(lines: Sequence[Line], bottom: float) -> list[Name]:
    """The names of lines at their ends, pushed apart where they would cover one another."""
    lines = sorted(lines, key=lambda line: line.places[-1][1])
    at = [line.places[-1][1] for line in lines]
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + 15)
    at[-1] = min(at[-1], bottom)
    for i in range(len(at) - 2, -1, -1):  # where that pushed past the axis, up again
        at[i] = min(at[i], at[i + 1] - 15)
    names = []
    for y, line in zip(at, lines, strict=True):
        end = line.places[-1][1]
        names.append(Name(100.0, y + 4, line.name, 11.0, kind=line.kind, lead=end))
    return names


# verdict -> class
WORDS = {BETTER: "better", WORSE: "worse", UNCLEAR: "unclear"}
WORDS |= dict.fromkeys((SAME, NO_WORSE, SLIGHTLY), "level")


@dataclass(frozen=True)
class Forest:
    """Each Student's gain over plain distillation, around zero; the band is the margin."""

    rivals: Sequence[Comparison]
    x: Scale
    ticks: list[Tick]

    @property
    def left(self) -> float:
        return 14.0 + 7.8 * max(len(short(one.student.name)) for one in self.rivals)


def forest(rivals: Sequence[Comparison]) -> Forest | None:
    """The chart of gains; None without any."""
    if not rivals:
        return None
    pairs = [one.pair for one in rivals]
    ends = [end for p in pairs for end in (p.low, p.high, p.gain, -p.margin, p.margin)]
    x = Scale([*ends, 0.0], 0.0, 100.0, pad=0.06)
    step = min((b - a for a, b in pairwise(x.ticks(10))), default=1.0)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    return Forest(rivals, x, across(x, lambda tick: signed(tick, places)))
