"""Recipes by name: what each is for, what it was measured to give, and what it sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matta_cli.settings.setting import MATTA


@dataclass(frozen=True)
class Preset:
    """Values in place of the defaults. Files and flags stand above them."""

    purpose: str
    measured: str
    values: Mapping[str, Mapping[str, Any]]


PRESETS = {
    "default": Preset(
        "a family of Students for a fraction of what separate runs cost",
        "better than separate runs at 0.4 of their FLOPs where steps are scarce (docs/results.md)",
        {},
    ),
    "paper": Preset(
        f"as {MATTA}, has it: a TA wider than the base learns beside the Students and teaches "
        "them, and every row goes through all of them",
        "in few steps of equal compute worse; one Student at equal steps no different from plain "
        "distillation (docs/results.md)",
        {
            "convert": {"expand": 2.0},
            "distill": {
                "rows": "all",
                "schedule": "cosine",
                "ta_student_weight": 0.5,
                "ramp": 0.2,
                "students_learn_from": "both",
            },
        },
    ),
}
