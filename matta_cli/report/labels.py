"""Of tasks with several labels of each example: the F1 of each label, model by model."""

from __future__ import annotations

from dataclasses import dataclass

from matta_cli.report.numbers import MISSING, finite, number
from matta_cli.report.schema import ModelEntry, Report, Role

PREFIX = "f1:"  # of a metric's name, before that of the label

_MOST, _WORST = 24, 12  # labels that are shown, and how many of more
_ROLES = (Role.TEACHER, Role.BASE, Role.STUDENT, Role.QUANTIZED)


@dataclass(frozen=True)
class Labels:
    """A table with a row for each label. said: what it shows, in a sentence."""

    headers: list[str]
    rows: list[list[str]]
    said: str


def labels(report: Report) -> Labels | None:
    """The F1 of each label, or of those that lost most; None where no model has any."""
    models = [m for m in report.of(*_ROLES) if any(name.startswith(PREFIX) for name in m.metrics)]
    names = dict.fromkeys(n for m in models for n in m.metrics if n.startswith(PREFIX))
    if not names:
        return None
    known = [name for name in names if any(_f1(model, name) is not None for model in models)]
    said = "F1 of each label, which is said where it is likelier than not; higher is better."
    if missing := len(names) - len(known):
        said += f" Of {missing:,} labels there is no held-out example."
    if len(known) > _MOST:
        loses = [m for m in models if m.role in (Role.STUDENT, Role.QUANTIZED)] or models
        base = report.base

        def change(name: str) -> float:
            """What Students have more than the base, on average; without one, what they have."""
            values = [value for m in loses if (value := _f1(m, name)) is not None]
            before = _f1(base, name) if base else None
            return sum(values) / max(1, len(values)) - (before or 0.0)

        some = sorted(known, key=change)[:_WORST]
        where = "where Students lose most against the base" if base else "with the least"
        said = f"The {len(some)} of {len(known):,} labels {where}. {said} The others are in "
        said += "report.json."
        known = some
    rows = [[name.removeprefix(PREFIX), *(_shown(m, name) for m in models)] for name in known]
    return Labels(["label", *(model.name for model in models)], rows, said)


def _f1(model: ModelEntry, name: str) -> float | None:
    value = model.metrics.get(name)
    return value.value if value is not None and finite(value.value) else None


def _shown(model: ModelEntry, name: str) -> str:
    value = _f1(model, name)
    return MISSING if value is None else number(value, 3)
