"""The table of a search."""

from __future__ import annotations

from matta_cli.report.numbers import MISSING, count, finite, in_bytes, in_seconds
from matta_cli.report.story import (
    Dict,
    decimals_of,
    label_of,
    latency_of,
    metrics_of,
    models_of,
    name_of,
    shown,
    value_of,
)

# --- a search -------------------------------------------------------------------------------------


def front_rows(report: Dict) -> tuple[list[str], list[list[str]]]:
    """The Students that a search found, as a table: each is on the front, or the choice of a
    budget.
    """
    metrics = metrics_of(report)
    headers = ["Student", "parameters", "bytes", "MACs"]
    timed = any(m.get("latency") or m.get("guessed_latency") for m in models_of(report))
    headers += [f"latency b{report['batch_size']}"] * timed
    headers += [label_of(metric) for metric in metrics[:1]] + ["front", "loads with", "sizes"]
    rows = []
    for model in models_of(report):
        seconds = latency_of(model, report["batch_size"])
        guess = model.get("guessed_latency")
        row = [
            name_of(model),
            count(model["parameters"]),
            in_bytes(model["bytes"]),
            count(model["macs"]),
        ]
        row += [
            in_seconds(seconds) if seconds else f"~{in_seconds(guess)}" if guess else MISSING
        ] * timed
        for metric in metrics[:1]:
            value = value_of(model, metric)
            row.append(shown(value, decimals_of(report, metric)) if value else MISSING)
        rows.append([*row, "yes" if model["front"] else "no", model["loads"], model["shown"]])
    return headers, rows


def choices(report: Dict) -> list[str]:
    """A sentence for each budget of a search: what was chosen, how far from the budget it is, and
    what loads it.
    """
    found = []
    models = {name_of(model): model for model in models_of(report)}
    for choice in report.get("choices") or []:
        model = models[choice["model"]]
        used = " and ".join(
            f"{100 * share:.1f} % of its {cost.replace('macs', 'MACs')}"
            for cost, share in choice["used"].items()
        )
        what = f"width {model['width']:g}" if finite(model.get("width")) else model["shown"]
        by = "the stock library loads it" if choice["stock"] else "matta_cli.load_student loads it"
        found.append(f"{choice['budget']}: {what}; it uses {used}; {by}.")
    return found
