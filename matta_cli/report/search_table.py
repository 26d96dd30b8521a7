"""The table of a search, and what it chose."""

from __future__ import annotations

from matta_cli.report.numbers import MISSING, count, in_bytes, in_seconds
from matta_cli.report.schema import Report, Searched
from matta_cli.report.values import decimals_of, shown
from matta_cli.settings.budget import LIMITS, TIMED

_WORDS = {name: LIMITS[name].label for name in ("macs", *TIMED)}


def front_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """The Students of a search: each is on the front, or the choice of a budget."""
    own = [model.searched or Searched() for model in report.models]
    batch = report.batch_size or 1
    timed = [of for of in TIMED if any(model.latency(batch, of) for model in report.models)]
    headers = ["Student", "parameters", "bytes", "MACs", *(f"{of} b{batch}" for of in timed)]
    headers += [metric.label for metric in report.metrics[:1]] + ["front", "loads with", "sizes"]
    rows = []
    for model, one in zip(report.models, own, strict=True):
        cost = model.cost
        row = [model.name, count(cost.parameters), in_bytes(cost.bytes), count(cost.macs)]
        row += [in_seconds(model.latency(batch, of)) for of in timed]
        for metric in report.metrics[:1]:
            value = model.measured(metric)
            row.append(shown(value, decimals_of(report, metric)) if value else MISSING)
        rows.append([*row, "yes" if one.front else "no", one.loads, one.shown])
    return headers, rows


def choices(report: Report, exported: Report | None = None) -> list[str]:
    """Of each budget of a search: what was chosen, how much of it that uses, what loads it.

    exported: the report on what was chosen, whose times are then told, not the search's.
    """
    found = []
    for choice in report.choices:
        model, shares = report.model(choice.model), dict(choice.used)
        for of in TIMED:
            if exported is not None and of in shares:
                taken = exported.model(choice.budget).latency(exported.batch_size or 1, of)
                shares[of] = (taken or 0.0) / choice.limits[of]
        used = " and ".join(
            f"{100 * share:.1f} % of its {_WORDS.get(cost, cost)}" for cost, share in shares.items()
        )
        sizes = model.searched.shown if model.searched else ""
        what = sizes if model.width is None else f"width {model.width:g}"
        what += f", in {choice.quantized}" if choice.quantized else ""
        by = "the stock library" if choice.stock else "matta_cli.load_student"
        loads = "" if choice.quantized else f"; {by} loads it"
        found.append(f"{choice.budget}: {what}; it uses {used}{loads}.")
    return found
