"""From labels as the user has them to classes by number; one of each image, or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from matta_cli.errors import MattaError
from matta_cli.losses.classes import IGNORED
from matta_cli.tasks.image_classification.examples import Source
from matta_cli.tasks.labels import is_hot
from matta_cli.tasks.task import config
from matta_cli.tasks.unlabelled import missing, spread


def is_several(model: Any, outputs: int, parts: Sequence[Source]) -> bool:
    """Whether images may have several labels each, by the model's config and by what the data has.

    Raises ``MattaError`` where both do not go together.
    """
    problem, lists = config(model, "problem_type"), any(part.labels.ndim == 2 for part in parts)
    where = f"(problem_type {problem!r} in its config.json)"
    if problem == "regression":
        raise MattaError(f"The model gives numbers {where}: images have classes or labels here.")
    if lists and problem == "single_label_classification":
        both = "The data has several labels of each image, but the model is for one"
        raise MattaError(f"{both} {where}.")
    several = lists or problem == "multi_label_classification"
    if outputs < 2 and not several:
        says = "say problem_type 'multi_label_classification' in its config.json"
        raise MattaError(
            f"The model has one output, and one class is no choice: for a yes, {says}."
        )
    return several


def hot(source: Source, outputs: int) -> Source:
    """Images with 0 or 1 for each of the model's labels, float32 [N, outputs]."""
    labels, known = np.zeros((len(source.labels), outputs), np.float32), source.known
    if source.labels.ndim == 1:
        labels[np.flatnonzero(known), source.labels[known]] = 1
    else:
        labels[:, : source.labels.shape[1]] = source.labels
    labels[~known] = np.nan
    return replace(source, labels=labels)


def read_labels(
    values: Sequence[Any],
    names: Sequence[str] | None,
    column: str,
    name: str,
    called: Callable[[int], str],
    outputs: int,
    *,
    cells: bool = False,
) -> tuple[np.ndarray, list[str] | None]:
    """The numbers of labels, and what they are called, if they have names.

    One label of each image: int64 [N]. Lists of labels: float32 [N, labels], 0 or 1. They are names
    or whole numbers, or, as many as the model has ``outputs``, 0 and 1 for each of its labels.
    Where there is none: ``IGNORED``, or NaN. names: what numbers stand for, where the data says so.
    called: a row, for people. cells: whether whole numbers may be text, as in CSV.
    """
    # what the hub's datasets give for a class that is not known
    known = ~np.array([missing(v) or (v == -1 and names is not None) for v in values], bool)
    if not known.any():
        return np.full(len(values), IGNORED), None if names is None else list(names)
    there = np.flatnonzero(known).tolist()
    labels, classes = _read(
        [values[i] for i in there],
        names,
        f"Column {column!r} of {name!r}",
        lambda i: called(there[i]),
        outputs,
        cells=cells,
    )
    return spread(labels, known, IGNORED if labels.ndim == 1 else np.nan), classes


def _read(
    values: Sequence[Any],
    names: Sequence[str] | None,
    which: str,
    called: Callable[[int], str],
    outputs: int,
    *,
    cells: bool,
) -> tuple[np.ndarray, list[str] | None]:
    """``read_labels`` where all are there. which: the column, for people."""
    lists = [list(v) if _is_list(v) else [v] for v in values]
    several = any(map(_is_list, values))
    flat = [one for own in lists for one in own]
    if several and is_hot(lists, outputs):
        return np.array(lists, np.float32), None if names is None else list(names)
    wholes = [whole(one, cells=cells) for one in flat]
    if all(one is not None for one in wholes):
        flat = wholes
    numbers, known = _numbers(flat, names)
    if numbers is None:
        first = type(flat[0]) if _is_label(flat[0]) else None  # one of all kinds, or the odd one
        odd = next(i for i, own in enumerate(lists) if any(type(one) is not first for one in own))
        bad = next(one for one in lists[odd] if type(one) is not first)
        what = f"{type(bad).__name__} in {called(odd)}"
        holds = f"{which} holds {what}"
        raise MattaError(f"{holds}, but labels are all names, or all whole numbers.")
    if not several:
        return numbers, known
    if len(numbers) and numbers.min() < 0:
        at = int(np.repeat(np.arange(len(lists)), [len(own) for own in lists])[numbers.argmin()])
        low = f"{which} has the label {numbers.min()} in {called(at)}"
        raise MattaError(f"{low}: labels are numbers from 0 on.")
    count = len(known) if known is not None else int(numbers.max(initial=0)) + 1
    found = np.zeros((len(lists), count), np.float32)
    found[np.repeat(np.arange(len(lists)), [len(own) for own in lists]), numbers] = 1
    return found, known


def _numbers(
    flat: list[Any], names: Sequence[str] | None
) -> tuple[np.ndarray | None, list[str] | None]:
    """Labels by number, and their names; None for what is neither names nor whole numbers."""
    if all(isinstance(value, str) for value in flat):
        known, numbers = np.unique(flat, return_inverse=True)
        return numbers.astype(np.int64), [str(value) for value in known]
    if all(isinstance(value, int) and not isinstance(value, bool) for value in flat):
        return np.array(flat, np.int64), None if names is None else list(names)
    return None, None


def whole(value: Any, *, cells: bool) -> int | None:
    """A whole number, also one that some program made a float, or with ``cells`` a text."""
    text = value.strip() if cells and isinstance(value, str) else ""
    number, _, rest = text.partition(".")
    if number.removeprefix("-").isdecimal() and not rest.strip("0"):
        return int(number)
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))


def _is_label(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)
