"""The table of a report: a row for each model, a column for whatever some model has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matta_cli.report.findings import batches
from matta_cli.report.numbers import MISSING, count, duration, in_bytes, in_seconds, number, signed
from matta_cli.report.schema import Metric, ModelEntry, Pair, Report, Role
from matta_cli.report.values import decimals_of, gain_places, seconds_of, span
from matta_cli.settings.budget import TIMED


@dataclass(frozen=True)
class Column:
    """A column: (what stands in a cell, what stands below it) for each model.

    kind: what it is about, such as ``latency``; of a metric, its name.
    """

    header: str
    kind: str
    cells: list[tuple[str, str]]


def rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Headers and rows for a terminal."""
    found = columns(report)
    cells = [[f"{main} {detail}".strip() for main, detail in column.cells] for column in found]
    return [column.header for column in found], [list(row) for row in zip(*cells, strict=True)]


def columns(report: Report) -> list[Column]:
    """The columns; one that no model fills is left out."""
    found: list[Column] = []

    def add(header: str, cell: Callable[[ModelEntry], str], kind: str = "") -> None:
        found.append(Column(header, kind or header, [(cell(m), "") for m in report.models]))

    add("model", lambda m: m.name)
    add("width", lambda m: MISSING if m.width is None else f"{m.width:g}")
    add("parameters", lambda m: count(m.cost.parameters))
    add("MACs", lambda m: count(m.cost.macs))
    add("checkpoint", lambda m: in_bytes(m.cost.bytes))
    found += [_time(report, batch, of) for of in TIMED for batch in batches(report, of)]
    found += [speed(report, batch) for batch in batches(report, report.timed)]
    add("peak memory", lambda m: in_bytes(m.cost.peak_memory))
    found += [_quality(report, metric) for metric in report.metrics]
    found += _against_plain(report)
    taken = [training_of(report, model) for model in report.models]
    found.append(Column("training", "training", taken))
    return [column for column in found if any(main != MISSING for main, _ in column.cells)]


def _time(report: Report, batch: int, of: str) -> Column:
    cells = []
    for timing in (model.timing(batch, of) for model in report.models):
        slow = "" if timing.p95 is None else f"({in_seconds(timing.p95)})"
        cells.append((in_seconds(timing.median), slow))
    return Column(f"{of} b{batch} median (p95)", of, cells)


def speed(report: Report, batch: int, places: int = 3) -> Column:
    """How many examples a second go through a model, or how many tokens it generates.

    places: digits that are shown.
    """
    seconds = [model.latency(batch, report.timed) for model in report.models]
    cells = [(count(batch / taken, places=places) if taken else MISSING, "") for taken in seconds]
    unit = "tokens" if report.generation else "examples"
    return Column(f"{unit}/s b{batch}", "speed", cells)


def _quality(report: Report, metric: Metric) -> Column:
    places, cells = decimals_of(report, metric), []
    for value in (model.measured(metric) for model in report.models):
        shown = (number(value.value, places), span(value, places)) if value else (MISSING, "")
        cells.append(shown)
    return Column(f"{metric.label}{metric.way}", metric.name, cells)


def _against_plain(report: Report) -> list[Column]:
    """What each model gains over plain distillation of its size in the first metric."""
    pairs = [_plain_pair(report, model) for model in report.models]
    places = gain_places([pair for pair in pairs if pair])
    gains, verdicts = [], []
    for pair in pairs:
        ends = f"[{signed(pair.low, places)}, {signed(pair.high, places)}]" if pair else ""
        gains.append((signed(pair.gain, places) if pair else MISSING, ends))
        verdicts.append((pair.verdict if pair else MISSING, ""))
    gain = Column("gain over plain", "gain", gains)
    return [gain, Column("verdict", "verdict", verdicts)]


def _plain_pair(report: Report, model: ModelEntry) -> Pair | None:
    of = model.name if model.role is Role.STUDENT else model.of
    plain = next((other for other in report.of(Role.PLAIN) if other.of == of), None)
    metric = report.primary
    return report.pair(model, plain, metric) if plain and metric else None


def training_of(report: Report, model: ModelEntry) -> tuple[str, str]:
    """What a model's training took: device-seconds, and how much it saw."""
    seconds = seconds_of(model)
    if model.training is None or seconds is None:
        return MISSING, ""
    seen = model.training.items
    parts = [] if seen is None else [f"{count(seen)} {report.unit or 'examples'}"]
    parts += ["one run for all"] if model.role in (Role.STUDENT, Role.TA) else []
    return duration(seconds), ", ".join(parts)
