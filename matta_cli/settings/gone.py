"""Settings that earlier versions had, and what their recipes mean now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matta_cli.errors import MattaError

# the value that each had by default, and what there is instead
_GONE: dict[str, tuple[Any, str]] = {
    "distill.students_per_step": (3, "the rows of a step are divided among all widths"),
    "distill.sampling": ([], "distill.shares says how rows are divided"),
    "distill.student_weight": (1.0, "distill.ta_weight weighs the TA's loss against it"),
    "distill.divergence": ("forward", "it is the forward KL(Teacher || model)"),
    "distill.detach_ta": (True, "the TA -> Student term does not train the TA"),
    "distill.ta_width": (0.0, "the TA teaches at its whole width"),
    "distill.hidden_weight": (0.0, "Students follow outputs"),
}
# what runs did that had no word for it
_BEFORE = {"rows": "all", "schedule": "cosine"}


def passed_over(name: str, value: Any, origin: str) -> bool:
    """Whether a setting is one that there was, at its default, and so says nothing.

    Raises ``MattaError``, which calls it by its ``origin``, where it says something else.
    """
    if name not in _GONE:
        return False
    default, instead = _GONE[name]
    if value != default:
        raise MattaError(f"{origin}: the setting {name} is gone, {instead}: take it out.")
    return True


def recorded(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe that was written beside results, maybe by an older version, in today's settings."""
    distill = values.get("distill")
    if not isinstance(distill, Mapping):
        return dict(values)
    before = {} if "rows" in distill else _BEFORE
    table = {k: v for k, v in distill.items() if f"distill.{k}" not in _GONE}
    if table.get("students_learn_from") == "teacher":
        table |= {"students_learn_from": "both", "ta_student_weight": 0.0}
    return {**values, "distill": {**before, **table}}


def refuse_to_go_on(values: Mapping[str, Any], origin: str) -> None:
    """Raise ``MattaError`` where a run was trained by settings that are gone."""
    distill = values.get("distill")
    for key, value in distill.items() if isinstance(distill, Mapping) else ():
        default, _ = _GONE.get(f"distill.{key}", (value, ""))
        if value != default:
            was = f"{origin}: the run was trained with distill.{key} = {value}, which is gone"
            raise MattaError(f"{was}: export it as it is, or start again with --overwrite.")
