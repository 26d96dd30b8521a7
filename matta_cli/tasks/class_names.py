"""What a model calls its classes, and how two models' classes go together."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from matta_cli.data.folders import HUMP, shown
from matta_cli.errors import MattaError
from matta_cli.tasks.task import config


def names_of(model: Any) -> dict[int, str]:
    """The names of a model's classes by number; none where it does not know them.

    Raises ``MattaError`` where they have other numbers than a model's outputs.
    """
    names = config(model, "id2label")
    if names is None:
        given = getattr(model, "pretrained_cfg", None) or {}
        names = given.get("label_names") if isinstance(given, dict) else None
        # timm has the descriptions by name, for people; folders have the names
    if isinstance(names, (list, tuple)):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(str(key).isdecimal() for key in names):
        return {}
    known = {int(key): str(name) for key, name in names.items()}
    if known.keys() != {*range(len(known))}:
        numbers = ", ".join(map(str, sorted(known)[:6]))
        range_of = f"a model's are 0 to {len(known) - 1}: number them so"
        raise MattaError(
            f"id2label of the model's config.json has the numbers {numbers}; {range_of}."
        )
    made_up = all(name == f"LABEL_{key}" for key, name in known.items())
    return {} if made_up or len(set(known.values())) < len(known) else known


def contradiction(model: Any) -> list[str]:
    """A sentence where a model's config numbers its classes in two ways, or names two alike."""
    names, numbers = names_of(model), config(model, "label2id")
    given = config(model, "id2label")
    called = list(map(str, given.values())) if isinstance(given, dict) else []
    if twice := sorted({name for name in called if called.count(name) > 1})[:3]:
        what = "Two of the model's labels or more are called"
        known = "its labels are known by their numbers alone (id2label in config.json)"
        return [f"{what} {', '.join(map(repr, twice))}: {known}."]
    if not isinstance(numbers, dict) or all(numbers.get(own, k) == k for k, own in names.items()):
        return []
    used = "id2label is used, as transformers does"
    return [f"id2label and label2id of the model's config.json contradict each other: {used}."]


def simplified(name: str) -> str:
    """A name without what people and file systems change of it."""
    name = unicodedata.normalize("NFC", name)  # macOS writes an accent by itself
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def known_as(names: dict[int, str]) -> dict[str, int]:
    """The number of each name, also as it is when plain, or by a synonym (``tench, Tinca tinca``),
    where that is no other's; also without what parts its words (``GoldenRetriever``).
    """
    whole: dict[str, list[int]] = {}
    synonyms: dict[str, list[int]] = {}
    for number, name in names.items():
        whole.setdefault(simplified(name), []).append(number)
        for own in dict.fromkeys(map(simplified, name.split(", "))):
            synonyms.setdefault(own, []).append(number)
    joined: dict[str, list[int]] = {}
    for number, name in names.items():
        forms = {simplified(name).replace(" ", ""), simplified(HUMP.sub(" ", name))}
        for own in forms if "," not in name else ():
            joined.setdefault(own, []).append(number)
    orders = (joined, synonyms, whole)
    found = {name: own[0] for every in orders for name, own in every.items() if len(own) == 1}
    return found | {name: number for number, name in names.items()}


def numbers_of(model: Any) -> dict[str, int]:
    """The number of each class by its name, and by the one that transformers makes up."""
    count = config(model, "num_labels") or 0
    return {f"LABEL_{k}": k for k in range(count)} | known_as(names_of(model))


def kinds_of_answer(teacher: Any, model: Any, notes: list[str]) -> None:
    """Raise ``MattaError`` where a Teacher's outputs are no labels of the model's kind.

    One label of several, or any number of them: what one learns of them is not what the other says.
    notes: takes what is to be said where only the Teacher says which.
    """
    theirs, ours = config(teacher, "problem_type"), config(model, "problem_type")
    if theirs is None or theirs == ours or (config(teacher, "num_labels") or 1) < 2:
        return
    said = f"problem_type {theirs!r} in its config.json"
    if theirs == "regression" or ours is not None:
        own = repr(ours) if ours else "labels"
        raise MattaError(f"The Teacher has {said}, the model {own}: they must be alike to distil.")
    if theirs == "multi_label_classification":
        unless = "right where the data has several of an example"
        notes.append(f"The Teacher has {said}, and the model's does not say: {unless}.")


def order_of(teacher: Any, model: Any, what: str, notes: list[str]) -> list[int]:
    """The number that the Teacher has for each of the model's classes; empty: the same ones.

    what: the classes, for people. notes: takes what is to be said of that. Raises ``MattaError``
    where only one of both knows a name.
    """
    theirs, ours = names_of(teacher), names_of(model)
    if not theirs or not ours:
        who = "neither it nor the model names" if not (theirs or ours) else "only one of both names"
        if len(theirs or ours) != 1 and config(model, "num_labels") != 1:
            notes.append(f"The Teacher's {what} are taken to be in the model's order: {who} them.")
        return []
    known = known_as(theirs)
    found = [known.get(ours[k], known.get(simplified(ours[k]))) for k in sorted(ours)]
    if None in found or len(set(found)) < len(found):
        odd = [ours[k] for k, number in zip(sorted(ours), found, strict=True) if number is None]
        lists = [shown([repr(names[k]) for k in sorted(names)], 6) for names in (theirs, ours)]
        both = f"The Teacher's {what} are {lists[0]}, the model's {lists[1]}"
        lacks = f": it has no {odd[0]!r}" if odd else ""
        raise MattaError(f"{both}{lacks}. Name them alike (id2label in config.json) to distil.")
    order = [number for number in found if number is not None]
    if order == list(range(len(order))):
        return []
    notes.append(f"The Teacher's {what} are in another order: they are matched by their names.")
    return order
