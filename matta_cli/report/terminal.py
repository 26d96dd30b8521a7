"""The table of a report as a terminal shows it: as much as there is room for."""

from __future__ import annotations

import re

from matta_cli.report import table
from matta_cli.report.claims import claim
from matta_cli.report.headline import pick
from matta_cli.report.numbers import MISSING, count, in_bytes, in_seconds, number
from matta_cli.report.schema import Metric, ModelEntry, Report, Role
from matta_cli.report.table import speed
from matta_cli.report.values import apart, decimals_of, distinct, in_one, span

Table = tuple[list[str], list[list[str]]]  # headers, and a row for each model


def tables(report: Report) -> list[Table]:
    """The table in full, and then ever narrower ones.

    Intervals go first, then digits, then what is told last. Names, which say the widths, stay.
    """
    every, most = distinct(report), len(_costs(report))
    levels = [(every, True, 3, most), (every, False, 3, most), (every, False, 2, most)]
    levels += [(every, False, 2, costs) for costs in range(most - 1, 3, -1)]
    levels += [(every[: len(every) - less], False, 2, 4) for less in range(1, len(every))]
    levels += [(every[:1], False, 2, costs) for costs in (3, 2, 1, 0)]
    return [table.rows(report), *(_table(report, *level) for level in levels)]


def _table(
    report: Report, metrics: list[Metric], intervals: bool, digits: int, costs: int
) -> Table:
    """One with so many digits, and so many of the costs, the most important first."""
    columns = {"model": [model.name for model in report.models]}
    known = _costs(report, digits)
    kept, first = list(known)[:costs], ("parameters", "MACs", "bytes")
    for header in (*first, *(other for other in known if other not in first)):
        if header in kept:
            columns[header] = known[header]
    for metric in metrics:
        columns[metric.label + metric.way] = _values(report, metric, intervals, digits)
    verdicts = [_verdict(report, model) for model in report.models]
    against = {other for _, other in verdicts if other}
    columns[f"against {' or '.join(sorted(against))}"] = [verdict for verdict, _ in verdicts]
    some = {header: cells for header, cells in columns.items() if set(cells) != {MISSING}}
    return list(some), [list(row) for row in zip(*some.values(), strict=True)]


def _costs(report: Report, digits: int = 3) -> dict[str, list[str]]:
    """The columns of costs with so many digits, the most important first."""
    models, batch = report.models, report.batch_size or 1
    known = {"parameters": [count(model.cost.parameters, places=digits) for model in models]}
    if report.generation:
        for size in dict.fromkeys((1, batch)):
            own = speed(report, size, digits)
            known[own.header] = [cell for cell, _ in own.cells]
        known["prefill b1"] = [
            in_seconds(model.latency(1, "prefill"), places=digits) for model in models
        ]
    else:
        known[f"latency b{batch}"] = [
            in_seconds(model.latency(batch), places=digits) for model in models
        ]
    known["bytes"] = [in_bytes(model.cost.bytes, places=digits) for model in models]
    known["MACs"] = [count(model.cost.macs, places=digits) for model in models]
    return known


def _values(report: Report, metric: Metric, intervals: bool, digits: int) -> list[str]:
    cells, places = [], decimals_of(report, metric)
    if digits < 3:
        places = apart(report, metric, max(min(places, 2), places - 1))
    for value in (model.measured(metric) for model in report.models):
        known = MISSING if value is None else number(value.value, places)
        ends = span(value, places) if value is not None and intervals else ""
        cells.append(f"{known} {ends}".strip())
    return cells


def _verdict(report: Report, model: ModelEntry) -> tuple[str, str]:
    """What may be said of a Student, and against what: plain distillation of its size, or the base.

    Of one in fewer bits: against its float one. ``table`` has the former in full.
    """
    metric, other, word = report.primary, report.base, "base"
    if model.role is Role.QUANTIZED:
        other = next((one for one in report.students if one.name == model.of), None)
        word = "float"
    elif plain := next((one for one in report.of(Role.PLAIN) if one.of == model.name), None):
        other, word = plain, "plain"
    judged = model.role in (Role.STUDENT, Role.QUANTIZED)
    if metric is None or other is None or not judged or not report.pair(model, other, metric):
        return MISSING, ""
    return claim(report, model, other, metric), word


def loading(report: Report) -> str:
    """The line of Python that loads the Student that the report is about; empty without any."""
    best = pick(report)
    students = [best.student] if best else report.students
    loads = next((model.loader for model in students if model.loader), "")
    module = re.match(r"[A-Za-z_]\w*(?=\.)", loads)
    return f"import {module[0]}; model = {in_one(loads)}" if module else in_one(loads)
