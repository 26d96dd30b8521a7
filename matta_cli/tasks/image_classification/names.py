"""Which class a name is: as the model says, else in the order in which its library numbers them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from matta_cli.data.folders import shown
from matta_cli.errors import MattaError
from matta_cli.losses.classes import IGNORED
from matta_cli.tasks.class_names import names_of, numbers_of, simplified
from matta_cli.tasks.image_classification.examples import Source
from matta_cli.tasks.kind import called
from matta_cli.tasks.unlabelled import spread

_PREFIX = re.compile(r"^n?\d+[\s._-]+")  # of a name, in some collections
_CODE = re.compile(r"n?\d+")  # of a class that has its name elsewhere, as WordNet's
_SHOWN = 20  # classes that are said by name


def numbered(source: Source, model: Any, name: str) -> tuple[Source, list[str]]:
    """Images whose classes have the numbers that the model gives them, and a sentence on that.

    Raises ``MattaError`` where some names, or all, are none of the model's, and no codes either.
    """
    if source.classes is None:
        return source, []
    names, known = names_of(model), numbers_of(model)
    found = [known.get(own, known.get(simplified(own))) for own in source.classes]
    bare = [known.get(simplified(_PREFIX.sub("", own))) for own in source.classes]
    if not any(number is not None for number in found) and None not in bare:
        found = bare  # 001.ape, or n02085620-ape
    if any(number is not None for number in found):
        odd = [own for own, number in zip(source.classes, found, strict=True) if number is None]
        if odd:
            classes = shown([names[k] for k in sorted(names)] or list(known), 6)
            unknown = f"{name!r} has the class {odd[0]!r}, which is none of the model's ({classes})"
            raise MattaError(f"{unknown}: name it as the model does, or leave it out.")
        given = [number for number in found if number is not None]
        twice = next((number for number in given if given.count(number) > 1), None)
        if twice is not None:
            raise MattaError(f"{name!r} has two classes that are the model's number {twice}.")
        every = [names.get(k, f"LABEL_{k}") for k in range(max(known.values()) + 1)]
        return _renumbered(source, given, every, name, "by the names that the model has")
    own = source.classes
    if names and not source.ordered and not all(map(_CODE.fullmatch, own)):
        both = f"{name!r} has the classes {shown(own, 6)}, and the model"
        model_s = shown([names[k] for k in sorted(names)], 6)
        do = "call them as the model does, or by its numbers (0, 1, ...)"
        raise MattaError(f"{both} {model_s}: {do}.")
    order, how = list(range(len(own))), "in the order of their names"
    if source.ordered:
        how = "as the data numbers them"
    elif names and _are_numbers(own):
        order = sorted(order, key=lambda k: int(own[k]))
        how = "as their names say"
    elif _is_timm(model):
        order = sorted(order, key=lambda k: _natural(own[k]))
        how = "in the natural order of their names, as timm does"
    if names:
        how += f" (none is one of the model's own, such as {names[min(names)]!r})"
    places = [int(place) for place in np.argsort(np.array(order))]
    return _renumbered(source, places, [own[k] for k in order], name, how)


def _renumbered(
    source: Source, numbers: list[int], classes: list[str], name: str, how: str
) -> tuple[Source, list[str]]:
    """numbers: of each of the source's classes."""
    source = _moved(source, numbers, classes)
    present = sorted(set(numbers))
    listed = ", ".join(called(k, classes) for k in present[:_SHOWN])
    if len(present) > _SHOWN:
        listed += f", ... {called(present[-1], classes)}"
    said = f"{name!r}: classes are numbered {how}: {listed}."
    return source, [said]


def _moved(source: Source, numbers: list[int], classes: list[str]) -> Source:
    """Images whose classes are some of these ones, and have these numbers among them."""
    known = source.known
    if source.labels.ndim == 2:
        labels = np.zeros((len(known), len(classes)), np.float32)
        labels[:, numbers] = source.labels
        labels[~known] = np.nan
    else:
        labels = spread(np.array(numbers, np.int64)[source.labels[known]], known, IGNORED)
    return replace(source, labels=labels, classes=classes)


def together(one: Source, other: Source) -> tuple[Source, Source]:
    """Two parts of the same data, of which one may lack some classes of the other."""
    if one.classes is None or other.classes is None or one.ordered or other.ordered:
        return one, other
    if len(one.classes) < len(other.classes):
        return together(other, one)[::-1]
    if not set(other.classes) < set(one.classes):
        return one, other
    return one, _moved(other, [one.classes.index(own) for own in other.classes], one.classes)


def knows(source: Source, model: Any) -> bool:
    """Whether the model has a name of one of these classes, or they need none."""
    known = numbers_of(model)
    own = source.classes
    return own is None or source.ordered or any(simplified(name) in known for name in own)


def refuse_others(held_out: Source, train: Source, name: str, given: str) -> None:
    """Raise ``MattaError`` where what is measured has other classes than what is trained on.

    name, given: of the data of both.
    """
    theirs, ours = held_out.classes, train.classes
    if theirs and ours and theirs != ours:
        odd_one = next(iter(sorted(set(ours) ^ set(theirs))), theirs[0])
        differ = f"{name!r} and {given!r} have different classes"
        raise MattaError(f"{differ}: only one has {odd_one!r}. Give both the same names.")


def refuse_mixed(parts: Mapping[str, Source], model: Any) -> None:
    """Raise ``MattaError`` where one part has numbers for labels, and another names that the model
    does not know: nobody knows which names the numbers stand for.

    parts: by the name of their data.
    """
    known = numbers_of(model)
    there = {name: own for name, own in parts.items() if own.known.any()}
    named = [name for name, own in there.items() if own.classes and not own.ordered]
    named = [n for n in named if not any(simplified(c) in known for c in there[n].classes or ())]
    bare = [name for name, own in there.items() if own.classes is None]
    if named and bare:
        both = f"The labels of {bare[0]!r} are numbers, and those of {named[0]!r} names"
        raise MattaError(f"{both}: give both the same.")


def _are_numbers(names: Sequence[str]) -> bool:
    """Whether classes are called by all the numbers from 0 on, as ImageNetV2's are."""
    numbers = [int(name) for name in names if name.isdecimal() and name.isascii()]
    return sorted(numbers) == list(range(len(names)))


def _is_timm(model: Any) -> bool:
    return any(kind.__module__.split(".")[0] == "timm" for kind in type(model).__mro__)


def _natural(name: str) -> list[Any]:
    """timm's key of sorting: runs of digits count as numbers."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if k % 2 else part for k, part in enumerate(parts)]
