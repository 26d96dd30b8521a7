"""From labels as the user has them to those that a model knows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from matta_cli.data.folders import shown
from matta_cli.errors import MattaError
from matta_cli.losses.classes import IGNORED
from matta_cli.settings.recipe import DistillSettings
from matta_cli.tasks.class_names import names_of, numbers_of, simplified
from matta_cli.tasks.kind import Kind
from matta_cli.tasks.labels import is_hot, parted, yes
from matta_cli.tasks.several import SeveralLabels
from matta_cli.tasks.task import config
from matta_cli.tasks.text_classification.kinds import Number, OneLabel
from matta_cli.tasks.text_classification.ranked import Ranked
from matta_cli.tasks.text_classification.read import Rows
from matta_cli.tasks.unlabelled import missing, spread

_SHOWN = 20  # labels of which it is said how many texts have them
_SIGMOID = "Sigmoid"
_SAYS = '"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}'


class Labels:
    """A model's labels: how many outputs it has, their names, and what it is known to say."""

    def __init__(self, model: Any) -> None:
        self.outputs = int(config(model, "num_labels"))
        self.names = names_of(model) if self.outputs > 1 else {}
        self.called = [self.names.get(k, str(k)) for k in range(self.outputs)]
        self.known = numbers_of(model)
        self._numerals = any(name.isdecimal() for name in self.names.values())
        self.problem = config(model, "problem_type")
        stored = config(model, "sentence_transformers")
        own = stored.get("activation_fn") if isinstance(stored, dict) else None
        own = own or config(model, "sbert_ce_default_activation_function")
        self.odds = str(own or "").endswith(_SIGMOID)
        self.several = self.problem == "multi_label_classification"

    def kind(self, settings: DistillSettings, group: str, parts: Sequence[Rows] = ()) -> Kind:
        """What the model says, by its config and by what the data has.

        group: the column of queries. Raises ``MattaError`` where both do not go together.
        """
        if self.outputs == 1:
            if self.problem not in (None, "regression"):
                says = f"The model's config.json says problem_type {self.problem!r}"
                raise MattaError(f"{says}, which needs several labels, but it has one output.")
            return Ranked(settings) if group else Number(settings, self.odds)
        if group:
            one = "data.group names queries, whose texts a model of one output ranks; this one has"
            raise MattaError(f"{one} {self.outputs}: leave it out.")
        if self.problem == "regression":
            what = f"A model of {self.outputs} numbers (problem_type 'regression')"
            raise MattaError(f"{what} is not supported: only one of one number.")
        lists = any(rows.hot or any(isinstance(v, list) for v in rows.label) for rows in parts)
        if self.problem == "single_label_classification" and lists:
            several = "The data has several labels of each text, but the model is for one"
            raise MattaError(f"{several} (problem_type {self.problem!r} in its config.json).")
        if self.problem == "multi_label_classification" or (lists and self.problem is None):
            return SeveralLabels(settings, self.called)
        return OneLabel(settings)

    def part(self, parts: Sequence[Rows]) -> None:
        """Make lists of cells that hold several labels."""
        if self.outputs == 1:
            return

        def is_label(text: str) -> bool:
            return self._named(text) is not None or self._counted(text) is not None

        found = iter(
            parted([v for rows in parts for v in rows.label], is_label, several=self.several)
        )
        for rows in parts:
            rows.label = [next(found) for _ in rows.label]
        self._single(parts)

    def _single(self, parts: Sequence[Rows]) -> None:
        """Labels that stand in a list each, as tools of annotation write them: for a model of one
        label they are that; where its config leaves that open, what they are read as is said.
        """
        every = [value for rows in parts for value in rows.label if not missing(value)]
        if any(rows.hot for rows in parts) or not every or self.several:
            return
        if not all(isinstance(value, list) for value in every):
            return
        hot = is_hot(every, self.outputs)
        if not all((sum(value) if hot else len(value)) == 1 for value in every):
            return
        if self.problem == "single_label_classification":
            for rows in parts:
                rows.label = [_only(v, hot) if isinstance(v, list) else v for v in rows.label]
            return
        say = '"problem_type": "single_label_classification"'
        told = "Each text has one label, in a list: it is read as one of several that may be there"
        do = f"If the model is for one label, say {say} in its config.json."
        parts[0].notes.append(f"{told}. {do}")

    def read(self, kind: Kind, parts: Sequence[Rows]) -> list[np.ndarray]:
        """The labels of rows to train on and to measure on, together, as ``kind`` has them.

        Where there is none, ``IGNORED`` or NaN. Raises ``MattaError`` for what the model does not
        know.
        """
        known = [rows.known for rows in parts]
        given = [
            rows if own.all() else rows.part(np.flatnonzero(own).tolist())
            for rows, own in zip(parts, known, strict=True)
        ]
        for rows in given:
            _refuse_holes(rows)
        hole = math.nan
        if isinstance(kind, OneLabel):
            labels, hole = self._one(given), IGNORED
        elif isinstance(kind, SeveralLabels):
            labels = self._several(given)
        else:
            labels = [np.array(_numbers(rows), np.float32) for rows in given]
        return [spread(values, own, hole) for values, own in zip(labels, known, strict=True)]

    def _one(self, parts: Sequence[Rows]) -> list[np.ndarray]:
        values = [value for rows in parts for value in rows.label]
        number = self._numbering(values, parts[0].notes)
        wrong = self._unknown()
        odd = [value for value in values if number(value) is None]
        if 0 < len(odd) < len(values) and all(self._counted(value) is not None for value in odd):
            known = shown([repr(self.names[k]) for k in sorted(self.names)], _SHOWN)
            wrong = f"a number, while others are names ({known}): write all by their names"
        return [np.array(_each(rows, number, wrong), np.int64) for rows in parts]

    def _several(self, parts: Sequence[Rows]) -> list[np.ndarray]:
        lists = [value for rows in parts for value in rows.label if isinstance(value, list)]
        hot = any(rows.hot for rows in parts) or is_hot(lists, self.outputs)
        every = [one for rows in parts for value in rows.label for one in _listed(value)]
        number = self._numbering([] if hot else every, parts[0].notes)

        def row(value: Any) -> np.ndarray | None:
            found = np.zeros(self.outputs, np.float32)
            own = _listed(value)
            if hot:
                numbers = [yes(one) for one in own]
                fits = len(own) == self.outputs and None not in numbers
                return np.array(numbers, np.float32) if fits else None
            for place in map(number, own):
                if place is None:
                    return None
                found[place] = 1
            return found

        columns = ", ".join(self.names.values()) if self.names else f"{self.outputs} labels"
        wrong = f"but a label is 0 or 1, of each of {columns}" if hot else self._unknown()
        return [
            np.array(_each(rows, row, wrong), np.float32).reshape(-1, self.outputs)
            for rows in parts
        ]

    def _numbering(self, values: Sequence[Any], notes: list[str]) -> Callable[[Any], int | None]:
        """The number of a label: by its name if all of them are names, else as it stands.

        notes: takes which it is, where labels could be both.
        """
        named, counted = self._named, self._counted
        distinct = {str(value): value for value in values}.values()
        names = [named(value) is not None for value in distinct]
        numbers = [counted(value) is not None for value in distinct]
        either = [v for v in distinct if all(names) and all(numbers) and named(v) != counted(v)]
        if either:
            first = either[0]
            name, other = (repr(self.called[of(first) or 0]) for of in (named, counted))
            taken = "labels are taken for its names, which are numbers"
            notes.append(f"The label {first!r} is the model's {name}, not its {other}: {taken}.")
        if not all(names) and all(numbers):
            self._refuse_shifted(distinct)
        return counted if not all(names) and (all(numbers) or not any(names)) else named

    def _refuse_shifted(self, labels: Iterable[Any]) -> None:
        """Raise ``MattaError`` where numbers may be those in the model's names (``1 star``), which
        count otherwise than its labels do.
        """
        digits = {k: re.findall(r"\d+", name) for k, name in self.names.items()}
        inside = {k: int(own[0]) for k, own in digits.items() if len(own) == 1}
        given = {self._counted(value) for value in labels}
        unlike = len(inside) == self.outputs > len(given - {None}) and inside[0] != 0
        if unlike and given <= set(inside.values()):
            first = min(number for number in given if number is not None)
            both = f"may be the model's {self.names[first]!r}, or one with {first} in its name"
            raise MattaError(f"The label {first} {both}: write labels by their names.")

    def _named(self, value: Any) -> int | None:
        """The number of a label by its name, also of a number that some program made a float."""
        text = str(value).strip()
        number = _number(value) if self._numerals else None
        if number is not None and number == int(number):
            text = str(int(number))
        return self.known.get(text, self.known.get(simplified(text)))

    def _counted(self, value: Any) -> int | None:
        """The number of a label that is one, also in a cell of text; yes or no is one of two."""
        number = None if isinstance(value, bool) and self.outputs > 2 else _number(value)
        whole = number is not None and number == int(number) and 0 <= number < self.outputs
        return int(number or 0) if whole else None

    def _unknown(self) -> str:
        if not self.names:
            hint = "write their names into id2label of its config.json"
            numbers = f"whose labels have no names: give numbers from 0 to {self.outputs - 1}"
            return f"which is none of the model's, {numbers}, or {hint}"
        known = shown([repr(self.names[k]) for k in sorted(self.names)], _SHOWN)
        do = f"write these, or their numbers, from 0 to {self.outputs - 1}"
        return f"which is none of the model's: {known}; {do}"

    def told(self, kind: Kind, label: np.ndarray, part: str) -> list[str]:
        """How many texts have each label, if these are few; and which labels none has."""
        if not len(label):
            return []
        if isinstance(kind, OneLabel):
            counts = np.bincount(label, minlength=self.outputs)
        elif isinstance(kind, SeveralLabels):
            counts = label.sum(0).astype(int)
        else:
            told = f"{part}: labels from {float(label.min()):g} to {float(label.max()):g}"
            if not isinstance(kind, Number):
                told += f"; {int((label > 0).sum()):,} of {len(label):,} are relevant (above 0)"
            elif not kind.odds and self.problem is None and 0 <= label.min() <= label.max() <= 1:
                # its default, which its folders do not say; Trainers write 'regression'
                told += ". A CrossEncoder of sentence-transformers gives probabilities: if the "
                told += f"model is one, say {_SAYS} in its config.json"
            return [f"{told}."]
        absent = [own for own, count in zip(self.called, counts, strict=True) if not count]
        notes = [f"{part}: no text has the label {shown(absent)}."] if absent else []
        if self.outputs <= _SHOWN:
            each = zip(self.called, counts.tolist(), strict=True)
            there = ", ".join(f"{count:,} {own}" for own, count in each if count)
            notes.insert(0, f"{part}: {there}.")
        return notes


def _only(label: list[Any], hot: bool) -> Any:
    """The one label in a list. hot: whether that says of each label if it is there."""
    return label.index(1) if hot else label[0]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _number(value: Any) -> float | None:
    """A number, also one that is written in a cell of CSV; None for anything else."""
    try:
        number = float(value) if isinstance(value, (str, int, float)) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _numbers(rows: Rows) -> list[float]:
    """Labels that are numbers. Raises ``MattaError`` for what float32 does not hold."""

    def single(value: Any) -> float | None:
        number = float(value)
        with np.errstate(over="ignore"):
            near = float(np.float32(number))
        return None if number.is_integer() and near != number else near

    _each(rows, _number, "but labels are numbers")
    return _each(rows, single, "which float32 would round, or cannot hold: scale the labels down")


def _refuse_holes(rows: Rows) -> None:
    """Raise ``MattaError`` where a row has some of several labels' columns empty."""
    holes = [i for i, v in enumerate(rows.label) if rows.hot and any(map(missing, v))]
    if holes:
        some = f"The columns of labels are empty in part in {len(holes):,} of {len(rows):,} rows"
        raise MattaError(f"{some}, the first in {rows.called(holes[0])}: fill them in with 0 or 1.")


def _each(rows: Rows, convert: Callable[[Any], Any], wrong: str) -> list[Any]:
    """What ``convert`` makes of each label. Raises ``MattaError`` where that is None."""
    known: dict[str, Any] = {}
    found = []
    for value in rows.label:
        key = repr(value)
        if key not in known:
            known[key] = convert(value)
        found.append(known[key])
    odd = [i for i, value in enumerate(found) if value is None]
    if odd:
        several = f" ({len(odd):,} rows have such labels)" if len(odd) > 1 else ""
        value = rows.label[odd[0]]
        own = _listed(value)
        unknown = [one for one in own if convert(one) is None]
        some = 0 < len(unknown) < len(own) or len(unknown) == len(own) == 1
        bad = unknown[0] if some else value
        where = "The columns of labels hold" if rows.hot else f"Column {rows.column!r} holds"
        has = f"{where} {bad!r} in {rows.called(odd[0])}"
        raise MattaError(f"{has}{several}, {wrong}.")
    return found
