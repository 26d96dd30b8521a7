"""inspect: what a TA holds: its axes, the importance of its units, what each width comes to."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matta_cli.adapter import Sizes
from matta_cli.errors import MattaError
from matta_cli.files import reading
from matta_cli.files.workspace import Workspace
from matta_cli.measure import cost
from matta_cli.measure.kept import floor, kept
from matta_cli.models.folders import load_ta
from matta_cli.models.ta import IMPORTANCE, TA
from matta_cli.nested.grow import growable
from matta_cli.nested.sizes import kind, kinds
from matta_cli.report.schema import AxisStrip
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import Task
from matta_cli.tasks.task import task as open_task

_BARS = "▁▂▃▄▅▆▇█"


def inspect(folder: Path, widths: Sequence[float] = ()) -> dict[str, Any]:
    """What is known of the TA in a folder, as JSON has it.

    axes: by kind. importance: by axis, the scores of its groups of units in the order in which
    Students lose them, the last one first to go; of layers, by number. widths: see ``menu``.
    """
    Workspace(folder).mend()
    # as it was converted
    folder = Workspace(folder).ta if Workspace(folder).converted else folder
    ta = load_ta(folder)
    task = open_task(ta.adapter.task, Recipe())
    lineage = ta.card["lineage"]
    usual = [width for width in (0.25, 0.5, 0.75) if width <= ta.widest]
    return {
        "folder": str(folder),
        "adapter": ta.adapter.name,
        "task": ta.adapter.task,
        "source": lineage["source"],
        "student": lineage.get("student"),
        "order": ta.card.get("order", "none"),
        "axes": [_kind(ta, name) for name in kinds(ta.base)],
        "importance": _scores(ta, folder),
        "widths": menu(task, ta, sorted({*(widths or usual), 1.0, ta.widest})),
        "floor": floor(ta).sentence,
    }


def _kind(ta: TA, name: str) -> dict[str, Any]:
    """The axes of one kind together."""
    axes = [axis for axis in ta.axes if kind(axis.name) == name]
    return {
        "kind": name,
        "axes": len(axes),
        "base": [ta.base[axis.name] for axis in axes],
        "ta": [axis.size for axis in axes],
        "step": axes[0].step,
        "grows": all(growable(ta.model, axis) for axis in axes),
    }


def strips(ta: TA, folder: Path, students: Mapping[str, Sizes], cells: int = 64) -> list[AxisStrip]:
    """Each axis of a TA with what each of ``students`` keeps, for a report.

    Its importance is that of the base's units as ``convert`` ordered them (of layers by number),
    the means of ``cells`` parts at most; empty where ``folder`` knows none.
    """
    scores = _scores(ta, folder)
    axes = []
    for axis in ta.axes:
        kept = {name: sizes.get(axis.name, axis.size) for name, sizes in students.items()}
        importance = _means(scores.get(axis.name, []), cells)
        own = (axis.name, kind(axis.name), ta.base[axis.name], axis.size, axis.step)
        axes.append(AxisStrip(*own, bool(axis.layers), importance, kept))
    return axes


def _scores(ta: TA, folder: Path) -> dict[str, list[float]]:
    """The importance scores that ``convert`` left for a folder, by axis; empty without any."""
    places = [folder / IMPORTANCE]
    # of a run's checkpoint
    places += [Workspace(parent).ta / IMPORTANCE for parent in folder.resolve().parents[:3]]
    for place in places:
        if place.exists():
            again = "convert the model again"
            scores = reading.tensors(place, again)
            there = [axis.name for axis in ta.axes if axis.name in scores]
            for name in there:
                if scores[name].dim() != 1 or not scores[name].numel():
                    raise MattaError(f"{place} is damaged (the scores of {name!r}): {again}.")
            # a score that is no number says nothing of its unit
            return {name: scores[name].double().nan_to_num(0.0).tolist() for name in there}
    return {}


def _means(scores: Sequence[float], parts: int) -> list[float]:
    """The means of so many parts of the scores, or of as many as there are scores."""
    count = min(parts, len(scores))
    ends = [i * len(scores) // count for i in range(count + 1)] if count else [0]
    return [sum(scores[a:b]) / (b - a) for a, b in itertools.pairwise(ends)]


def menu(task: Task, ta: TA, widths: Sequence[float]) -> list[dict[str, Any]]:
    """What each width comes to: sizes, parameters, what it keeps of the base, what loads it.

    kept: the shares of the base's parameters, MACs and bytes. tokens: of how many an example is
    that MACs are of; None where it has none.
    """
    rows, shares = [], kept(task, ta, widths)
    tokens = cost.tokens(task.example(ta.model, 1))
    for width in widths:
        student = ta.student(width)
        rows.append(
            {
                "width": width,
                "role": "base" if width == 1.0 else "TA" if width == ta.widest else "Student",
                "sizes": student.sizes,
                "shown": student.shown(),
                "parameters": student.parameters,
                "kept": shares[width],
                "tokens": tokens,
                "layers": student.layers,
                "stock": student.stock,
                "loads": student.loads,
            }
        )
    return rows


def picture(scores: Sequence[float], columns: int = 32) -> str:
    """Scores as a line of bars, each the mean of its part, as high as it is large."""
    means = _means(scores, columns)
    top = max(max(means), 1e-30)
    heights = [int(max(0.0, mean) / top * len(_BARS)) for mean in means]
    return "".join(_BARS[min(len(_BARS) - 1, height)] for height in heights)


def numbers(found: list[int]) -> str:
    """``0-3, 7``: whole numbers in order, those that follow one another together."""
    parts: list[list[int]] = []
    for number in found:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}" if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
