"""Float or fewer bits: which of the two is the better Student of a budget of memory.

Within the same bytes a Student in int8 has more units than one in float, and each a little off.
How many bytes a quantized one has, and how good it is, is measured where one may be chosen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from matta_cli.conversion.proof import calibration
from matta_cli.errors import MattaError
from matta_cli.formats import quantized
from matta_cli.measure import cost
from matta_cli.measure.counts import Key
from matta_cli.measure.students import measurable
from matta_cli.models.ta import Student
from matta_cli.nested.view import statistics_of
from matta_cli.progress import Listener, Progress
from matta_cli.report.numbers import in_bytes
from matta_cli.search.search import TRIES, Search
from matta_cli.settings.budget import LIMITS, Budget


@dataclass(frozen=True)
class Measured:
    """A quantized Student: its bytes, those in float, and its score where sizes are chosen."""

    bytes: int
    in_float: int
    value: float


class Bits:
    """The choice of bits of one search. measured: what was quantized, by its sizes."""

    def __init__(self, search: Search, listen: Listener) -> None:
        self.search, self.listen = search, listen
        self.kind = quantized.usual(search.ta.model)
        self.measured: dict[Key, Measured] = {}
        self.notes: list[str] = []

    def choose(self, budgets: Sequence[Budget]) -> list[Student]:
        """The best Student of each budget, in float or in fewer bits.

        Raises ``MattaError`` for a budget that neither can meet.
        """
        search, smallest = self.search, self.search.space.smallest()
        # how many bytes others take lies between what these do
        least = self.measure(search.ta.student(smallest)).bytes
        self.measure(search.ta.student(max(search.space.uniform)))
        wide = {b.name: self._aimed(b) for b in budgets if dict(b.limits)["bytes"] >= least}
        plain = [b for b in budgets if search.used(b)(smallest) <= 1]
        for budget in budgets:
            if budget.name not in wide and budget not in plain:
                near = LIMITS["bytes"].rounded_up(least)
                has = f"the smallest Student here has {in_bytes(least)} in {self.kind}"
                what = f"The budget {budget.name} is not possible: {has}, so the nearest possible"
                raise MattaError(f"{what} is --target-memory {near}.")
        found = search.run([*plain, *wide.values()], self.listen)
        by_name = {student.name: student for student in found}
        fewer = {name: by_name[aimed.name] for name, aimed in wide.items()}
        return [self._better(b, by_name.get(b.name), fewer.get(b.name)) for b in budgets]

    def _better(self, budget: Budget, in_float: Student | None, fewer: Student | None) -> Student:
        """The better one of the best in float and the best in fewer bits, by their scores."""
        fewer = self._within(budget, fewer) if fewer else None
        fewer = self._smaller(budget, fewer) if fewer else None
        scored = self.search.scored
        if fewer is None:
            if in_float is None:
                hint = "give it more room"
                raise MattaError(f"No Student that was found meets {budget.name}: {hint}.")
            larger = f"no Student that was found is within it in {self.kind}"
            self.notes.append(f"{budget.name}: {larger}, so this one is in float.")
            return in_float
        value = self.measure(fewer).value
        if in_float is not None:
            own = scored[self.search.key(in_float.sizes)].value
            self.notes.append(self._told(budget, in_float, own, fewer))
            if not self.search.scores.better(value, own):
                return in_float
        else:
            larger = "no Student that was found is within it in float"
            self.notes.append(f"{budget.name}: {larger}, so this one is in {self.kind}.")
        self.search.stored[self.search.key(fewer.sizes)] = self.measure(fewer).bytes
        return replace(fewer, name=f"{budget.name} float", budget=budget, quantized=self.kind)

    def _told(self, budget: Budget, in_float: Student, own: float, fewer: Student) -> str:
        """What was chosen between."""
        label, taken = self.search.scores.metric.label, self.measure(fewer)
        size = in_bytes(self.search.counts.bytes(in_float.sizes))
        plain = f"{own:.4g} in float ({in_float.shown()}, {size})"
        few = f"{taken.value:.4g} in {self.kind} ({fewer.shown()}, {in_bytes(taken.bytes)})"
        return f"{budget.name}: {label} while sizes were chosen was {plain} and {few}."

    def _within(self, budget: Budget, best: Student) -> Student | None:
        """The best one whose bytes, once it is quantized, are within; None where none was found."""
        for _ in range(TRIES):
            if self.measure(best).bytes <= dict(budget.limits)["bytes"]:
                return best
            aimed = self._aimed(budget)
            if self.search.used(aimed)(self.search.space.smallest()) > 1:
                return None
            [best] = self.search.run([aimed], self.listen)
        return None

    def _smaller(self, budget: Budget, best: Student) -> Student:
        """It, or a trained width of fewer bytes that is better in fewer bits, too, if one is.

        A search looks for what uses a budget up. What was trained as it is may be better still,
        above all where a budget has room for more than there is.
        """
        search, size = self.search, self.search.counts.bytes
        own = search.scored[search.key(best.sizes)].value
        for one in search.order(search.allowed()):
            student = one.student
            if not search.scores.better(one.value, own):
                break
            if student.width is None or size(student.sizes) >= size(best.sizes):
                continue
            taken, largest = self.measure(student), self.measure(best)
            if search.scores.better(taken.value, largest.value):
                values = f"{taken.value:.4g}, and the larger {best.shown()} {largest.value:.4g}"
                has = f"{student.shown()} in {self.kind} had {search.scores.metric.label} {values}"
                self.notes.append(f"{budget.name}: while sizes were chosen {has}.")
                return student
            break
        return best

    def _aimed(self, budget: Budget) -> Budget:
        """A budget of the float bytes that what was measured so far makes of a limit in fewer bits.

        It comes closer with each Student that is measured.
        """
        known = sorted(self.measured.values(), key=lambda one: one.bytes)
        limits, taken = dict(budget.limits), [one.bytes for one in known]
        limits["bytes"] = float(np.interp(limits["bytes"], taken, [one.in_float for one in known]))
        return replace(budget, name=f"{budget.name} in fewer bits", limits=tuple(limits.items()))

    def measure(self, student: Student) -> Measured:
        """Quantize a Student, and score it on the examples that sizes are chosen by."""
        key = self.search.key(student.sizes)
        if key not in self.measured:
            self.listen(Progress(message=f"Quantizing {student.shown()} ({self.kind})."))
            with tempfile.TemporaryDirectory(prefix="matta-bits-") as temp:
                self.measured[key] = self._measure(student, Path(temp))
        return self.measured[key]

    def _measure(self, student: Student, temp: Path) -> Measured:
        scores, export = self.search.scores, self.search.recipe.export
        task, train = scores.task, scores.data.train
        folder, to = temp / "float", temp / self.kind
        folder.mkdir()
        to.mkdir()
        model = measurable(task, student, train, torch.device("cpu")).eval()
        student.save(folder, statistics_of(model))
        probe = cost.repeated(scores.choosing.batch([0, 1]), 3)
        loader = student.ta.adapter.loader if student.stock else ""
        threads, batches = export.threads, partial(calibration, task, train)
        with quantized.Maker(task, model, folder, loader, probe, batches, threads) as maker:
            maker.write(self.kind, to)
        copy = quantized.opened(to, model, threads).to(scores.device)
        whole = self.search.counts.bytes(student.sizes)
        return Measured(cost.weight_bytes(to), whole, self._score(copy))

    def _score(self, copy: nn.Module) -> float:
        return self.search.scores.value_of(copy)
