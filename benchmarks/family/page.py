"""The tables of the study, from the records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.family.cells import ARMS, BY, LENGTHS, MAIN, PROBLEMS, WIDTHS
from benchmarks.quality import gains
from benchmarks.quality.problem import Problem
from benchmarks.quality.study import TUNED_ON, Store
from benchmarks.quality.tables import table
from matta_cli.files import atomic

Record = dict[str, Any]
Records = Mapping[str, Sequence[Record]]  # by arm, one for each seed


HEAD = Path(__file__).with_name("head.md").read_text(encoding="utf-8")


def text(store: Store) -> str:
    """All tables, as Markdown."""
    lines = [HEAD]
    for name, problem in PROBLEMS.items():
        for length in LENGTHS:
            records = found(store, name, length)
            if any(arm.startswith("separate") for arm in records):
                lines += [f"### {problem.title}, {said(records, length)}", ""]
                lines += [*rows(problem, records), ""]
    return "\n".join(lines)


def write(path: Path, said: str) -> None:
    """Put the tables above what the page has of the paper's recipe."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    _, mark, rest = before.partition("## The paper's recipe")
    atomic.atomic_write(path, f"{said.rstrip()}\n\n{mark}{rest}".rstrip() + "\n")


def found(store: Store, problem: str, length: str) -> Records:
    """The results of a problem at a length, by arm, each at the rate that most seeds have."""
    own: dict[str, list[Record]] = {}
    for record in (record for each in store.records.values() for record in each):
        if (record["problem"], record["length"]) == (problem, length) and record["seed"] < TUNED_ON:
            own.setdefault(record["arm"], []).append(record)
    return {arm: sorted(own[arm], key=lambda r: r["seed"]) for arm in ARMS if arm in own}


def said(records: Records, length: str) -> str:
    """How long the separate runs are, and how many seeds there are."""
    first = next(own for arm, own in records.items() if arm.startswith("separate"))
    return f"{length}: {first[0]['steps'][0]:,} steps a separate run{seeds(first)}"


def seeds(records: Sequence[Record]) -> str:
    """How many there are of what has one record for each, as the end of a sentence."""
    return f", {len(records)} seed{'s' if len(records) > 1 else ''}"


def rows(problem: Problem, records: Records) -> list[str]:
    """A table: the separate runs' values, and the others' gains over them, at each width."""
    metric = problem.metrics[0]
    name = gains.label(problem, metric)
    header = ["arm", "FLOPs", "device-s", *(f"width {width:g}" for width in WIDTHS)]
    lines: list[list[str]] = []
    most = max(len(own) for arm, own in records.items() if arm.startswith("separate"))
    for more in ("", *(f"/{optimizer}" for optimizer in BY)):
        alone = {width: records.get(f"separate@{width:g}{more}", []) for width in WIDTHS}
        if not all(alone.values()):
            continue
        shown = [fmean(_values(problem, metric, alone[w], w).values()) for w in WIDTHS]
        fewer = seeds(alone[1.0]) if len(alone[1.0]) < most else ""
        label = f"{ARMS[f'separate@1{more}'].label}{fewer}"
        lines.append([f"{label}: {name}", "1", "1", *(f"{value:.4g}" for value in shown)])
        for arm, own in records.items():
            if arm.startswith("separate") or arm.partition("/")[1:] != more.partition("/")[1:]:
                continue
            each = [_gain(problem, metric, own, alone[width], width) for width in WIDTHS]
            costs = [f"{cost(own, alone, key):.2f}" for key in ("flops", "seconds")]
            costs[1:] = costs[1:] if arm.partition("/")[0] in MAIN else ["–"]
            fewer = seeds(own) if len(own) < most else ""
            lines.append([f"{ARMS[arm].label}{fewer}", *costs, *each])
    return table(header, lines)


def _values(problem: Problem, metric: str, own: Sequence[Record], width: float) -> gains.Values:
    return gains.values(problem, own, metric, f"{width:g}")


def _gain(
    problem: Problem, metric: str, ours: Sequence[Record], theirs: Sequence[Record], width: float
) -> str:
    if f"{width:g}" not in ours[0]["widths"]:
        return "–"
    both = _values(problem, metric, ours, width), _values(problem, metric, theirs, width)
    gain = gains.gain(problem, metric, *both)
    if gain is None:
        one = gains.relative(problem, metric, *gains.paired(*both)[0])
        return f"{fmean(one):+.1f}" if one else "–"
    return str(gain)


def cost(ours: Sequence[Record], alone: Mapping[float, Sequence[Record]], key: str) -> float:
    """What an arm costs, by what the separate runs of the same seeds cost together."""
    same = {record["seed"] for record in ours}
    theirs = [r[key] for own in alone.values() for r in own if r["seed"] in same]
    return float(sum(record[key] for record in ours) / sum(theirs))
