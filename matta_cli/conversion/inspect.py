"""inspect: what a TA holds: its axes, the importance of their units, and what each width comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from matta_cli.adapter import Sizes
from matta_cli.files.workspace import Workspace
from matta_cli.models.folders import load_ta
from matta_cli.models.ta import IMPORTANCE, TA
from matta_cli.nested import grow
from matta_cli.nested import sizes as nested_sizes

_BARS = "▁▂▃▄▅▆▇█"


def inspect(folder: Path, widths: Sequence[float] = ()) -> dict[str, Any]:
    """What is known of the TA in a folder, as JSON has it.

    axes: by kind. importance: by axis, the scores of its groups of units in the order in which
    Students lose them, the last one first to go; of layers, by number. widths: see ``menu``.
    """
    # as it was converted
    folder = Workspace(folder).ta if Workspace(folder).converted else folder
    ta = load_ta(folder)
    where = _scores_file(folder)
    loaded = load_file(str(where)) if where is not None else {}
    scores = {axis.name: loaded[axis.name].tolist() for axis in ta.axes if axis.name in loaded}
    kinds = []
    for kind in nested_sizes.kinds(ta.base):
        axes = [axis for axis in ta.axes if nested_sizes.kind(axis.name) == kind]
        kinds.append(
            {
                "kind": kind,
                "axes": len(axes),
                "base": [ta.base[axis.name] for axis in axes],
                "ta": [axis.size for axis in axes],
                "step": axes[0].step,
                "grows": all(grow.growable(ta.model, axis) for axis in axes),
            }
        )
    usual = [width for width in (0.25, 0.5, 0.75) if width <= ta.widest]
    shown = sorted({*(widths or usual), 1.0, ta.widest})
    return {
        "folder": str(folder),
        "adapter": ta.adapter.name,
        "task": ta.adapter.task,
        "source": ta.card["lineage"]["source"],
        "student": ta.card["lineage"].get("student"),
        "order": ta.card.get("order", "none"),
        "axes": kinds,
        "importance": scores,
        "widths": menu(ta, shown),
    }


def strips(
    ta: TA, folder: Path, students: Mapping[str, Sizes], cells: int = 64
) -> list[dict[str, Any]]:
    """Each axis of a TA: its size at the base and in the TA, what each of ``students`` keeps, and
    the importance of its units.

    importance: of the base's units as ``convert`` ordered them (of layers by number), the means of
    ``cells`` parts at most; empty where ``folder`` knows none.
    """
    where = _scores_file(folder)
    loaded = load_file(str(where)) if where is not None else {}
    found = []
    for axis in ta.axes:
        scores = loaded[axis.name].tolist() if axis.name in loaded else []
        count = min(cells, len(scores))
        parts = [
            scores[i * len(scores) // count : (i + 1) * len(scores) // count] for i in range(count)
        ]
        found.append(
            {
                "name": axis.name,
                "kind": nested_sizes.kind(axis.name),
                "base": ta.base[axis.name],
                "ta": axis.size,
                "step": axis.step,
                "layers": bool(axis.layers),
                "importance": [sum(part) / len(part) for part in parts],
                "kept": {name: sizes.get(axis.name, axis.size) for name, sizes in students.items()},
            }
        )
    return found


def _scores_file(folder: Path) -> Path | None:
    """The file of importance scores that ``convert`` left for a folder, if it is there."""
    places = [folder / IMPORTANCE]
    # of a run's checkpoint
    places += [Workspace(parent).ta / IMPORTANCE for parent in folder.resolve().parents[:3]]
    return next((place for place in places if place.exists()), None)


def menu(ta: TA, widths: Sequence[float]) -> list[dict[str, Any]]:
    """What each width comes to: sizes, parameters, the layers that it keeps, what loads it."""
    rows = []
    for width in widths:
        student = ta.student(width)
        rows.append(
            {
                "width": width,
                "role": "base" if width == 1.0 else "TA" if width == ta.widest else "Student",
                "sizes": student.sizes,
                "shown": student.shown(),
                "parameters": student.parameters,
                "layers": student.layers,
                "stock": student.stock,
                "loads": student.loads,
            }
        )
    return rows


def picture(scores: Sequence[float], columns: int = 32) -> str:
    """Scores as a line of bars, each the mean of its part, as high as it is large."""
    count = min(columns, len(scores))
    parts = [
        scores[i * len(scores) // count : (i + 1) * len(scores) // count] for i in range(count)
    ]
    means = [sum(part) / len(part) for part in parts]
    top = max(max(means), 1e-30)
    return "".join(
        _BARS[min(len(_BARS) - 1, int(max(0.0, mean) / top * len(_BARS)))] for mean in means
    )


def numbers(found: list[int]) -> str:
    """``0-3, 7``: whole numbers in order, those that follow one another together."""
    parts: list[list[int]] = []
    for number in found:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}" if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
