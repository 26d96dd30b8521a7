"""Examples without ground truth: learned from the Teacher alone, or left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np

from matta_cli.data import find
from matta_cli.errors import MattaError
from matta_cli.tasks.task import Task


class Examples(Protocol):
    """What a user has of a part. known: bool [n], whether there is ground truth of each example.

    column: what it is in, if that has a name. lacks: why a file has none of any, in a sentence with
    its name and the column; else empty. called: an example by its place, for people.
    """

    @property
    def column(self) -> str: ...

    @property
    def known(self) -> np.ndarray: ...

    @property
    def lacks(self) -> str: ...

    def part(self, chosen: Any) -> Any: ...

    def called(self, i: int) -> str: ...


E = TypeVar("E", bound=Examples)


class Unlabelled(MattaError):
    """There is no ground truth to train on, where some is needed."""


def missing(value: Any) -> bool:
    """Whether a cell holds nothing."""
    return value is None or (isinstance(value, str) and not value.strip()) or value != value


def sorted_out(
    task: Task, train: E | None, held_out: E, what: str, none: str = ""
) -> tuple[E | None, E, list[str]]:
    """What to train on and what to measure on, where ground truth is needed without the rest.

    Also sentences on that. what: examples, for people. none: how one says that there are none of
    several labels. Raises ``MattaError`` where nothing is left.
    """
    settings = task.recipe.data
    notes: list[str] = []
    if task.unmeasured:
        return train, held_out, notes
    name, hint = settings.held_out or settings.train, "Measuring needs labels: pass --held-out with"
    if train is not None and not settings.held_out:  # a part that others were to predict, say
        alone = "or as --data what has labels alone, whose last tenth is then held out"
        hint = f"{hint} some, {alone}."
    else:
        hint = f"{hint} some."
    held_out = _known(held_out, f"{name!r}, held out", what, hint, none, notes)
    if train is None:
        return None, held_out, notes
    part = f"{settings.train!r}, to train on"
    hint = "Set distill.teacher_mix = 1 to learn from the Teacher alone."
    if task.recipe.distill.teacher_mix < 1:  # else no loss asks for any
        if not train.known.any():
            lacks = train.lacks or f"{_some(train, part, what)}."
            raise Unlabelled(f"{lacks} {hint}")
        return _known(train, part, what, hint, none, notes), held_out, notes
    if not train.known.all():
        notes.append(f"{_some(train, part, what)}: all are learned from the Teacher alone.")
    return train, held_out, notes


def divided(rows: E, name: str, what: str, last: Callable[[E], np.ndarray]) -> tuple[E, E]:
    """Rows without those that ``last`` tells of them, bool [n], and these, which have labels if
    any has.
    """
    known = np.flatnonzero(rows.known if rows.known.any() else np.ones_like(rows.known))
    if rows.lacks and len(known) < 2:
        raise MattaError(rows.lacks)
    whole = len(known) == len(rows.known)
    find.last_tenth(len(known), name, what if whole else f"{what} with a label")
    away = np.zeros(len(rows.known), bool)
    away[known] = last(rows if whole else rows.part(known))
    return rows.part(np.flatnonzero(~away)), rows.part(np.flatnonzero(away))


def spread(labels: np.ndarray, known: np.ndarray, hole: float) -> np.ndarray:
    """Labels [m, ...] of the ``known``, bool [n], with a ``hole`` in place of the others'."""
    if known.all():
        return labels
    found = np.full((len(known), *labels.shape[1:]), hole, labels.dtype)
    found[known] = labels
    return found


def _known(rows: E, part: str, what: str, hint: str, none: str, notes: list[str]) -> E:
    """The rows that have ground truth."""
    there = np.flatnonzero(rows.known)
    if rows.lacks and not len(there):
        raise MattaError(f"{rows.lacks} {hint}")
    if len(there) == len(rows.known):
        return rows
    some = _some(rows, part, what)
    if not len(there):
        raise MattaError(f"{some}. {hint}")
    notes.append(f"{some}, and are left out.{none and ' '}{none}")
    found: E = rows.part(there)
    return found


def _some(rows: Examples, part: str, what: str) -> str:
    holes = np.flatnonzero(~rows.known)
    label = repr(rows.column) if rows.column else "label"
    first = f"the first: {rows.called(int(holes[0]))}"
    return f"{part}: {len(holes):,} of {len(rows.known):,} {what} have no {label} ({first})"
