"""The parts of a chart, by their places: across in percent of its width, down in pixels.

So one drawing fits every width and its text keeps its size. ``templates/charts.html`` draws them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from matta_cli.report.numbers import number

# pixels of a chart on a telephone and on a desk, for names that are to cover nothing
NARROW, WIDE = 300.0, 1000.0

_LETTER = 6.9  # pixels


class Tick(NamedTuple):
    """only: ``narrow`` or ``wide`` where it is drawn on such pages alone."""

    at: float
    text: str
    only: str = ""


class Scale:
    """One axis of a chart: data to places, with ticks."""

    def __init__(
        self, values: Sequence[float], start: float, end: float, log: bool = False, pad: float = 0.0
    ):
        low, high = min(values), max(values)
        self.log = log and low > 0
        a, b = self._to(low), self._to(high)
        room = (b - a) * pad or (0.0 if b > a else 0.05 if self.log else abs(a) * 0.05 or 1.0)
        self.a, self.b = a - room, b + room
        if not self.log and low >= 0 > self.a:
            self.a = 0.0  # a negative latency or accuracy on an axis looks like a mistake
        self.start, self.end = start, end
        self.low, self.high = (10**self.a, 10**self.b) if self.log else (self.a, self.b)

    def _to(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def __call__(self, value: float) -> float:
        return self.start + (self._to(value) - self.a) / (self.b - self.a) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round numbers, about so many at most."""
        if self.log:
            decades = range(math.floor(self.a), math.ceil(self.b) + 1)
            for marks in ((1, 2, 5), (1, 3), (1,)):
                every = [mark * 10.0**decade for decade in decades for mark in marks]
                ticks = [tick for tick in every if self.low <= tick <= self.high]
                if 2 <= len(ticks) <= most:
                    return ticks
        rough = (self.high - self.low) / most
        unit = 10 ** math.floor(math.log10(rough))
        step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough)
        first = math.ceil(self.low / step)
        return [k * step for k in range(first, math.floor(self.high / step) + 1)]


def wide_range(values: Iterable[float], times: float = 8) -> bool:
    """Whether a logarithmic axis suits some values."""
    values = list(values)
    return min(values) > 0 and max(values) / min(values) > times


def spaced(value: float) -> str:
    """``1 500``."""
    return f"{value:,.10g}".replace(",", " ")


def named(scale: Scale, most: int) -> list[Tick]:
    """The ticks of an axis with numbers, which have the same decimals."""
    ticks = scale.ticks(most)
    if scale.log:
        return [Tick(scale(tick), spaced(tick)) for tick in ticks]
    step = min((b - a for a, b in pairwise(ticks)), default=1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [Tick(scale(tick), number(tick, decimals)) for tick in ticks]


def across(scale: Scale, text: Callable[[float], str]) -> list[Tick]:
    """The ticks of the axis across: fewer where there is little room."""
    many, few = scale.ticks(10), scale.ticks(4)
    found = [Tick(scale(tick), text(tick), "" if tick in few else "wide") for tick in many]
    return found + [Tick(scale(tick), text(tick), "narrow") for tick in few if tick not in many]


@dataclass(frozen=True)
class Line:
    """Places, or data, joined by a line. shift: pixels to the right."""

    kind: str
    places: list[tuple[float, float]]
    shift: float = 0.0
    fade: float = 1.0
    name: str = ""


@dataclass(frozen=True)
class Point:
    """A mark that a tooltip explains. bar: the ends of its interval. name: of a Student."""

    kind: str
    x: float
    y: float
    tip: str
    shift: float = 0.0
    bar: tuple[float, float] | None = None
    name: str = ""
    fade: float = 1.0


@dataclass(frozen=True)
class Name:
    """A name at a place. shift: pixels to the right. only: see ``Tick``.

    lead: where a short line to it begins, down.
    """

    x: float
    y: float
    text: str
    shift: float = 0.0
    anchor: str = "start"
    kind: str = ""
    only: str = ""
    lead: float | None = None


@dataclass
class Chart:
    """A chart. left, right: the pixels beside it that its texts take. band: its top and height."""

    alt: str
    title: str
    height: float
    bottom: float
    x: list[Tick]
    y: list[Tick]
    x_title: str = ""
    right: float = 14.0
    band: tuple[float, float] | None = None
    lines: list[Line] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    names: list[Name] = field(default_factory=list)

    @property
    def left(self) -> float:
        return 14.0 + _LETTER * max((len(tick.text) for tick in self.y), default=0)


class _Box(NamedTuple):
    x0: float
    y0: float
    x1: float
    y1: float

    def within(self, other: _Box) -> bool:
        between = self.x0 > other.x0 and self.x1 < other.x1
        return between and self.y0 > other.y0 and self.y1 < other.y1

    def meets(self, other: _Box) -> bool:
        abreast = min(self.x1, other.x1) > max(self.x0, other.x0)
        return abreast and min(self.y1, other.y1) > max(self.y0, other.y0)


# where a name may stand beside its mark: pixels across, pixels down, which end of it stands there
_BESIDE = [
    *((11, 4, "start"), (-11, 4, "end"), (0, -13, "middle"), (0, 21, "middle")),
    *((-5, -13, "start"), (-5, 21, "start"), (5, 21, "end"), (5, -13, "end")),
    *((-11, 18, "end"), (-11, -10, "end"), (11, 18, "start"), (11, -10, "start")),
    *((0, 35, "middle"), (0, -27, "middle")),
]


def beside(chart: Chart, wanted: Sequence[tuple[Point, str]], only: str) -> list[Name]:
    """A name for each mark where it covers no mark, and no line if it can be.

    wanted: the most important first. A mark that has no such place gets no name.
    """
    width = NARROW if only == "narrow" else WIDE
    marks, lines = _taken(chart, width)
    room, found = _Box(0, 0, width + chart.right, chart.bottom), []
    for point, text in wanted:
        spots = [(dx, point.y + dy, anchor) for dx, dy, anchor in _BESIDE]
        if point.bar:  # or beyond its ends
            spots += [(0, point.bar[0] - 7, "middle"), (0, point.bar[1] + 16, "middle")]
        free = []
        for dx, y, anchor in spots:
            name = Name(point.x, y, text, point.shift + dx, anchor, point.kind, only)
            box = _room_of(name, width)
            if box.within(room) and not any(map(box.meets, marks)):
                free.append((any(map(box.meets, lines)), box, name))
        if free:
            _, box, name = min(free, key=lambda one: one[0])
            marks.append(box)
            found.append(name)
    return found


def _room_of(name: Name, width: float) -> _Box:
    """The room that a name takes."""
    long = _LETTER * len(name.text)
    left = name.x / 100 * width + name.shift
    left -= {"start": 0.0, "middle": long / 2, "end": long}[name.anchor]
    return _Box(left, name.y - 10, left + long, name.y + 3)


def _taken(chart: Chart, width: float) -> tuple[list[_Box], list[_Box]]:
    """The room of the marks of a chart and their bars, and that of its lines."""
    marks, lines = [], []
    for point in chart.points:
        x = point.x / 100 * width + point.shift
        marks.append(_Box(x - 7, point.y - 7, x + 7, point.y + 7))
        if point.bar:
            marks.append(_Box(x - 4, point.bar[0], x + 4, point.bar[1]))
    for line in chart.lines:
        places = [(x / 100 * width + line.shift, y) for x, y in line.places]
        for (x0, y0), (x1, y1) in pairwise(places):
            steps = max(1, int(math.hypot(x1 - x0, y1 - y0) / 6))
            for share in (k / steps for k in range(steps + 1)):
                x, y = x0 + (x1 - x0) * share, y0 + (y1 - y0) * share
                lines.append(_Box(x - 2, y - 2, x + 2, y + 2))
    return marks, lines
