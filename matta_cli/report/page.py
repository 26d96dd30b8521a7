"""A report as one web page that fetches nothing and works without JavaScript."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, NamedTuple

from markupsafe import Markup

from matta_cli.report import charts
from matta_cli.report.numbers import count, in_bytes, in_seconds, number, percent
from matta_cli.report.render import template
from matta_cli.report.schema import ModelEntry, Report, Role
from matta_cli.report.story import Story, created, tell
from matta_cli.report.svg import Chart
from matta_cli.report.table import Column, training_of
from matta_cli.report.values import decimals_of, of_tokens, shown, span

STRIPS = 24  # axes that are drawn


def render(report: Report) -> str:
    """The page of a report."""
    return html(tell(report))


def html(story: Story) -> str:
    """The page of a story."""
    report = story.report
    about = ("matta", report.task, report.adapter, created(report)[:10])
    axes = [axis for axis in report.axes if axis.base]
    drawn = [axis for axis in axes if axis.importance][:STRIPS] or axes[:STRIPS]
    return template("page.html").render(
        story=story,
        report=report,
        over=" · ".join(part for part in about if part),
        css=_file("page.css"),
        js=_file("page.js"),
        tiles=_tiles(story),
        forest=charts.forest(story.rivals),
        verdict_class=charts.WORDS,
        times={model.name: training_of(report, model)[0] for model in report.models},
        plots=_plots(report),
        budget=_budget(story),
        table=_table(story),
        searched=[m for m in report.models if m.searched and m.searched.command],
        curves=charts.curves(report),
        rival_curves=charts.rival_curves(report),
        strips=drawn,
        grown=any(axis.ta > axis.base for axis in drawn),
        left_out=len(axes) - len(drawn),
    )


def _file(name: str) -> Markup:
    return Markup(files("matta_cli.report").joinpath(name).read_text(encoding="utf-8"))


class Tile(NamedTuple):
    """A number of the Student that the page is about, and the base's."""

    what: str
    value: str
    detail: str
    base: str


def _tiles(story: Story) -> list[Tile]:
    best, metric = story.pick, story.report.primary
    if best is None or metric is None:
        return []
    places = decimals_of(story.report, metric)
    ours, base = number(best.ours.value, places), f"base {shown(best.theirs, places)}"
    tiles = [Tile(metric.label, ours, span(best.ours, places), base)]
    for cost in _costs(story.report):
        own, theirs = cost.read(best.student), cost.read(best.base)
        if cost.tile and own is not None and theirs:
            share = f"{percent(own / theirs)} of the base"
            what = cost.tile + (of_tokens(story.report) if "example" in cost.of else "")
            tiles.append(Tile(what, cost.unit(own), share, f"base {cost.unit(theirs)}"))
    return tiles[:4]


class Cost(NamedTuple):
    """A cost: its name, what a budget of it is said to be of, how the slider writes it."""

    name: str
    of: str
    kind: str
    unit: Callable[[Any], str]
    read: Callable[[ModelEntry], Any]
    tile: str = ""


_LATENCY = Cost(
    "latency", "for one example", "time", in_seconds, lambda m: m.latency(1), "latency, batch 1"
)
_GENERATION = (
    Cost(
        "decode",
        "for a token",
        "time",
        in_seconds,
        lambda m: m.latency(1, "decode"),
        "time for a token, batch 1",
    ),
    Cost("prefill", "to the first token", "time", in_seconds, lambda m: m.latency(1, "prefill")),
)
_COSTS = (
    Cost("parameters", "parameters", "count", count, lambda m: m.cost.parameters, "parameters"),
    Cost("MACs", "MACs per example", "count", count, lambda m: m.cost.macs, "MACs per example"),
    Cost("memory", "of memory at most", "bytes", in_bytes, lambda m: m.cost.peak_memory),
    Cost("checkpoint", "on disk", "bytes", in_bytes, lambda m: m.cost.bytes, "checkpoint"),
)


def _costs(report: Report) -> tuple[Cost, ...]:
    return *_COSTS[:2], *(_GENERATION if report.generation else [_LATENCY]), *_COSTS[2:]


@dataclass(frozen=True)
class Plots:
    """Quality against each cost: its name, the chart, the chart without untrained cuts.

    key: the roles in it and what they are called.
    """

    charts: list[tuple[str, Chart, Chart | None]]
    key: list[tuple[str, str]]
    has_base: bool

    @property
    def has_cuts(self) -> bool:
        return any(trained for _, _, trained in self.charts)


def _plots(report: Report) -> Plots | None:
    metric = report.primary
    if metric is None:
        return None
    known = [model for model in report.models if model.measured(metric)]
    # Untrained cuts are often so bad that they flatten everything else: the same plot without.
    trained = [model for model in known if model.role is not Role.CUT]
    found = []
    for axis in charts.axes(report):
        if chart := charts.pareto(report, known, axis):
            both = 0 < len(trained) < len(known)
            less = charts.pareto(report, trained, axis) if both else None
            found.append((axis.name, chart, less))
    roles = {model.role for model in known}
    key = [(role.value, name) for role, name in charts.KINDS.items() if role in roles]
    return Plots(found, key, Role.BASE in roles) if found else None


def _budget(story: Story) -> dict[str, Any] | None:
    """What the slider chooses from, as JSON; None where there is nothing to choose."""
    report, metric = story.report, story.report.primary
    if metric is None or metric.higher is None:
        return None
    places = decimals_of(report, metric)
    verdicts = {one.student.name: one.verdict for one in story.rivals}
    students, every = report.scored(metric, Role.STUDENT, Role.QUANTIZED), _costs(report)
    kinds = []  # a budget of what all Students cost alike decides nothing
    for at, cost in enumerate(every):
        if len({cost.read(student) for student in students} - {None}) > 1:
            kinds.append((at, cost))
    if len(students) < 2 or not kinds:
        return None
    rows = []
    for student in students:
        value = student.metrics[metric.name]
        rows.append(
            {
                "name": student.name,
                "quality": value.value,
                "shown": shown(value, places),
                "verdict": verdicts.get(student.name, ""),
                "costs": [cost.read(student) for cost in every],
            }
        )
    told = {
        "label": metric.label,
        "higher": metric.higher,
        "rows": rows,
        "units": [cost.kind for _, cost in kinds],
        "at": [i for i, _ in kinds],
        "whats": [cost.of for _, cost in kinds],
    }
    return {"told": json.dumps(told), "names": [cost.name for _, cost in kinds]}


class Table(NamedTuple):
    """The page's table. shares: whether it says what part of the base's parameters models have."""

    heads: list[Markup]
    rows: list[tuple[ModelEntry, list[tuple[str, str]]]]
    shares: bool


def _table(story: Story) -> Table:
    """Quality and size come first: on a telephone the first columns are seen without scrolling."""
    report, primary = story.report, story.report.primary
    metrics = [metric.name for metric in report.metrics]
    first = ["model", primary.name if primary else "", "gain", "verdict", *metrics, "parameters"]
    order = {kind: at for at, kind in reversed(list(enumerate(first)))}
    columns = sorted(story.columns, key=lambda column: order.get(column.kind, len(first)))
    base = next(iter(report.by_size(Role.BASE)), None)
    size = base.cost.parameters if base else None
    rows = []
    for at, model in enumerate(report.models):
        cells = [column.cells[at] for column in columns]
        for i, column in enumerate(columns):
            if column.kind == "parameters" and size and model.cost.parameters is not None:
                cells[i] = (cells[i][0], percent(model.cost.parameters / size))
        rows.append((model, cells))
    return Table([_head(column) for column in columns], rows, bool(size))


def _head(column: Column) -> Markup:
    """'latency b8 median (p95)' as two lines; no arrow alone on a line, nor a bracket over two."""
    if found := re.fullmatch(r"(\w+) (b\d+) (median \(p95\))", column.header):
        return Markup("{}&nbsp;{} <small>{}</small>").format(*found.groups())
    if found := re.fullmatch(r"(.*?)((?:\([^()]*\)|\S+) [↑↓])", column.header):
        return Markup('{}<span class="whole">{}</span>').format(*found.groups())
    return Markup("{}").format(column.header)
