"""Axes and widths for budgets that are given before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from matta_cli.adapter import Adapter
from matta_cli.errors import MattaError
from matta_cli.measure import cost
from matta_cli.measure.counts import Counts
from matta_cli.measure.kept import forbidding
from matta_cli.models.ta import TA
from matta_cli.nested.sizes import full_sizes, kinds, nested_axes
from matta_cli.report.numbers import percent
from matta_cli.report.values import amount
from matta_cli.settings.budget import LIMITS, Budget
from matta_cli.settings.convert import ConvertSettings
from matta_cli.tasks.task import Task

NARROW = 0.25  # below it more kinds of axes are taken along, rather than the width made smaller
STEPS = 100  # widths are whole hundredths


@dataclass(frozen=True)
class Target:
    """The kinds of axes and the widths that meet budgets, and a sentence on each budget."""

    axes: list[str]
    widths: list[float]
    notes: list[str]

    def told(self, left: Path | None) -> list[str]:
        """The notes. left: a file of settings that is the user's, and does not take the widths."""
        if left is None:
            return self.notes
        shown = ",".join(f"{width:g}" for width in self.widths)
        return [*self.notes, f"{left} is yours: pass --widths {shown} to distill and export."]


class Targets:
    """What a base can be shrunk to, along which of its axes."""

    def __init__(
        self, task: Task, adapter: Adapter, base: nn.Module, settings: ConvertSettings, dtype: str
    ) -> None:
        self.task, self.adapter, self.base, self.settings = task, adapter, base, settings
        self.dtype = dtype  # in which the base is stored
        self.example = cost.repeated(task.example(base, 1), 1)
        self.known = list(kinds(full_sizes(adapter.axes(base))))

    def choose(self, budgets: Sequence[Budget]) -> Target:
        """The fewest kinds of axes along which each budget has a width that is not ``NARROW``.

        They are the adapter's own, and then its others. Where all are too few, those of the widest
        width. Raises ``MattaError`` for a budget that is not possible, or asks for nothing.
        """
        found: list[tuple[float, list[str], list[float]]] = []
        for axes in self._candidates():
            ta, counts = self._nested(axes)
            own = [self._resolved(budget, ta, counts) for budget in budgets]
            widths = [self._width(budget, ta, counts) for budget in own]
            if all(widths):
                found.append((min(widths), axes, widths))
                if min(widths) >= NARROW:
                    break
        if not found:
            raise self._impossible(budgets)
        # of equals the first, which has the fewest kinds
        _, axes, widths = max(found, key=lambda one: min(one[0], NARROW))
        ta, counts = self._nested(axes)
        notes = [self._told(b, w, ta, counts) for b, w in zip(budgets, widths, strict=True)]
        return Target(axes, sorted({*widths, 1.0}), notes)

    def _candidates(self) -> list[list[str]]:
        if self.settings.axes:
            return [self.settings.axes]
        own = [name for name in self.adapter.default if name in self.known] or self.known
        rest = [name for name in self.known if name not in own]
        return [[*own, *rest[:count]] for count in range(len(rest) + 1)]

    def _nested(self, kinds_wanted: Sequence[str]) -> tuple[TA, Counts]:
        """The base as a TA of these kinds of axes, and what its Students cost."""
        axes = nested_axes(self.adapter, self.base, kinds_wanted)
        card = {"multiple": self.settings.multiple, "dtype": self.dtype}
        ta = TA(self.adapter, self.base, axes, full_sizes(axes), card)
        return ta, Counts(self.task, ta, self.example)

    def _resolved(self, budget: Budget, ta: TA, counts: Counts) -> Budget:
        """The budget in amounts. Raises ``MattaError`` where the base itself is within it."""
        own = budget.of(counts(ta.base, budget.names))
        if max(own.used(counts(ta.base, own.names)).values()) <= 1:
            limits = " and ".join(amount(name, limit) for name, limit in own.limits)
            raise MattaError(
                f"{budget.typed} asks for nothing: the model itself has no more than "
                f"{limits}. Take a smaller one, or leave it out."
            )
        return own

    def _width(self, budget: Budget, ta: TA, counts: Counts) -> float:
        """The largest width within a budget; 0 where there is none."""
        low, high = 0, STEPS - 1
        while low < high:
            middle = (low + high + 1) // 2
            costs = counts(ta.sizes(middle / STEPS), budget.names)
            fits = max(budget.used(costs).values()) <= 1
            low, high = (middle, high) if fits else (low, middle - 1)
        return low / STEPS

    def _told(self, budget: Budget, width: float, ta: TA, counts: Counts) -> str:
        costs = counts(ta.sizes(width), budget.names)
        whole = counts(ta.base, budget.names)
        each = (f"{amount(n, costs[n])} ({percent(costs[n] / whole[n])})" for n in budget.names)
        along = ", ".join(kinds(ta.base))
        of = cost.tokens(self.example)
        tokens = (
            f"; MACs are of an example of {of:,} tokens" if of and "macs" in budget.names else ""
        )
        return f"{budget.typed}: width {width:g} along {along} has {' and '.join(each)}{tokens}."

    def _impossible(self, budgets: Sequence[Budget]) -> MattaError:
        axes = self._candidates()[-1]
        ta, counts = self._nested(axes)
        least = ta.sizes(1 / STEPS)
        for budget in budgets:
            own = budget.of(counts(ta.base, budget.names))
            costs = counts(least, own.names)
            over = [LIMITS[name] for name, share in own.used(costs).items() if share > 1]
            if not over:
                continue
            has = " and ".join(amount(limit.name, costs[limit.name]) for limit in over)
            near = (f"--target-{x.flag} {x.rounded_up(costs[x.name])}" for x in over)
            sentence = (
                f"{budget.typed} is not possible: at their smallest, the axes {', '.join(axes)} "
                f"leave {has}. {forbidding(self.base, ta.axes, least)} "
                f"The nearest possible is {' '.join(near)}"
            )
            if len(axes) < len(self.known):
                every, all_counts = self._nested(self.known)
                possible = own.used(all_counts(every.sizes(1 / STEPS), own.names))
                if max(possible.values()) <= 1:
                    sentence += f"; with --axes {','.join(self.known)} it is possible"
            return MattaError(f"{sentence}.")
        return MattaError("No width meets all of these budgets: give fewer of them.")
