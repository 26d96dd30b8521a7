"""What each setting may be: every check of one value by itself, in one place."""

from __future__ import annotations

import math
from typing import Any

from matta_cli.errors import MattaError
from matta_cli.settings.recipe import SECTIONS, about, called

LARGEST = 1e30  # times the square of a temperature it still is a number of 32 bits


def check(table: Any) -> None:
    """Raise ``MattaError`` for the first value of a table that its setting cannot have."""
    section = next(name for name, made in SECTIONS.items() if isinstance(table, made))
    for key, value in vars(table).items():
        check_value(f"{section}.{key}", value)


def check_value(name: str, value: Any) -> None:
    """Raise ``MattaError`` if the setting of this full name, ``distill.lr`` say, cannot have it."""
    known = about(name)
    for word in value if isinstance(value, list) else [value]:
        if known.choices and word not in known.choices:
            listed = ", ".join(known.choices)
            raise MattaError(f"{called(name)} {word!r} is not known: {listed}.")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    rule = ""
    if not math.isfinite(value):
        rule = "it must be finite"
    elif not known.holds(value):
        rule = known.rule or f"it must be {known.range}"
    elif value > LARGEST:
        rule = "it is too large"
    if rule:
        raise MattaError(f"{called(name)} {value:g} is not possible: {rule}.")
