"""A report told: its headline, alarms, findings, table and facts, for every format to render.

Nothing here measures, prints or imports torch. Every sentence is computed from the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from matta_cli.report.alarms import alarms
from matta_cli.report.claims import Comparison, compared
from matta_cli.report.findings import findings
from matta_cli.report.headline import Pick, headline, pick
from matta_cli.report.labels import Labels, labels
from matta_cli.report.numbers import duration
from matta_cli.report.schema import ModelEntry, Parity, Report, Role
from matta_cli.report.table import Column, columns
from matta_cli.report.values import in_one, listed, of_tokens


@dataclass(frozen=True)
class Loading:
    """How to load a model. known: what is to be known of its checkpoint. lines: Python."""

    model: ModelEntry
    known: list[str]
    lines: str


@dataclass(frozen=True)
class Story:
    """What a report has to say, in words.

    pick: the Student that the headline is about. rivals: Students against plain distillation.
    columns: the table; reading: how to read it. labels: how well each is told. notes: those of the
    report that are not alarms. facts: how it was made, (what, which).
    """

    report: Report
    headline: str
    alarms: list[str]
    findings: list[str]
    pick: Pick | None
    rivals: list[Comparison]
    columns: list[Column]
    reading: str
    labels: Labels | None
    loading: list[Loading]
    notes: list[str]
    facts: list[tuple[str, str]]


def tell(report: Report) -> Story:
    """All that a report has to say, computed once."""
    best, rivals = pick(report), compared(report, Role.PLAIN)
    warned = alarms(report, rivals)
    return Story(
        report=report,
        headline=headline(report),
        alarms=warned,
        findings=findings(report, best, rivals),
        pick=best,
        rivals=rivals,
        columns=columns(report),
        reading=_reading(report),
        labels=labels(report),
        loading=_loading(report.models),
        notes=[note for note in report.notes if note not in warned],
        facts=_facts(report),
    )


def created(report: Report) -> str:
    """When a report was made: ``2026-11-24 06:00:00 UTC``."""
    return report.created.replace("T", " ").replace("Z", " UTC")


def _reading(report: Report) -> str:
    """How to read the table, in one line."""
    better = []
    for higher, way in ((True, "higher"), (False, "lower")):
        if labels := [metric.label for metric in report.metrics if metric.higher is higher]:
            better.append(f"{listed(labels)}: {way} is better")
    usual = ["brackets are 95 % intervals", behind(report)]
    if own := report.generation:
        usual += [
            f"prefill is the time from a prompt of {own.prompt:,} tokens to the first one after it",
            f"decode that for each of the next {own.new:,}, one by one with the cache of keys and "
            "values",
            "tokens/s are those of the whole batch while it decodes",
        ]
    return "; ".join([*better, *usual]) + "."


def behind(report: Report) -> str:
    """What MACs, and times of a forward, are of; and what ``b8`` stands for."""
    timed = any(model.cost.latency for model in report.models)
    batch = report.batch_size or 1
    shown = batch > 1 and any(model.cost.latency or model.cost.decode for model in report.models)
    told = f"; b{batch} is a batch of {batch}" if shown else ""
    if not (tokens := of_tokens(report)):
        return f"MACs are per example at batch 1{told}"
    more = f", and latencies of examples{tokens} each" if timed else ""
    return f"MACs are per example{tokens} at batch 1{more}{told}"


def _loading(models: Sequence[ModelEntry]) -> list[Loading]:
    """Three lines for each model that an expression loads."""
    found = []
    for model in models:
        if model.loader:
            stock = f"{model.quantized}, loads without matta"
            if not model.quantized:
                stock = (
                    "stock checkpoint, loads without matta" if model.stock else "loads with matta"
                )
            module = re.match(r"[A-Za-z_]\w*(?=\.)", model.loader)
            needs = f"import {module[0]}\n" if module else ""
            mode = "\nmodel.eval()" if "onnxruntime" not in needs else ""
            lines = f"{needs}model = {in_one(model.loader)}{mode}"
            found.append(Loading(model, [stock, *_equal(model.parity)], lines))
    return found


def _equal(parity: Parity | None) -> list[str]:
    """What was found when a model was loaded again."""
    if parity is None or parity.exact is None:
        return []
    if not parity.exact:
        return ["outputs differ from the slice"]
    if parity.rounded is None:
        return ["outputs equal to the trained slice, bit for bit"]
    near = f"in {parity.dtype}, outputs within {parity.rounded:.2g} of the largest, of float32's"
    return [near, "the same when loaded again, bit for bit"]


def _facts(report: Report) -> list[tuple[str, str]]:
    """How a report was made: what is known of it."""
    run, lineage = report.run, report.lineage
    steps = f"{run.steps:,} steps".replace(",", " ") if run and run.steps else ""
    took = f" in {duration(run.seconds)}" if steps and run and run.seconds is not None else ""
    versions = {"matta": report.matta, "torch": report.device.torch}
    facts = {
        "Data": report.data,
        "Task and adapter": " · ".join(filter(None, (report.task, report.adapter))),
        "Training": steps + took,
        "Device": report.device.name,
        "Threads": report.device.threads,
        "Made from": lineage.get("source"),
        "Digest": lineage.get("digest"),
        "Versions": " · ".join(f"{name} {which}" for name, which in versions.items() if which),
        "Created": created(report),
    }
    return [(what, str(value)) for what, value in facts.items() if value not in (None, "")]
