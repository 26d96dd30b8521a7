"""What Students keep of the base, and what no Student goes below."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from matta_cli.adapter import Axis, Sizes
from matta_cli.measure import cost
from matta_cli.measure.counts import Counts
from matta_cli.models.ta import TA
from matta_cli.nested.cut import Cut, count_parameters, of_parameters
from matta_cli.nested.sizes import full_sizes, kind, kinds
from matta_cli.report.numbers import count, percent
from matta_cli.tasks.task import Task

NAMED = 3  # tensors that an error names
FEW = 2  # tensors that a sentence in passing names
SMALL = 0.05  # a floor that is in nobody's way
LEAST = 0.01  # of the base: what is less is not worth a name, or another command


def kept(task: Task, ta: TA, widths: Iterable[float]) -> dict[float, dict[str, float]]:
    """The shares of the base's ``parameters``, ``macs`` and ``bytes`` that each width keeps.

    MACs are those of one example that the task makes up.
    """
    example = cost.repeated(task.example(ta.model, 1), 1)
    counts = Counts(task, ta, example)

    def costs(width: float) -> dict[str, float]:
        sizes = ta.sizes(width)
        macs = cost.macs(task, ta.student(width).view().eval(), counts.example)
        return {**counts(sizes, ("parameters", "bytes")), "macs": macs}

    base = costs(1.0)
    found = {width: base if width == 1.0 else costs(width) for width in widths}
    return {
        width: {name: own[name] / base[name] if base[name] else 1.0 for name in base}
        for width, own in found.items()
    }


@dataclass(frozen=True)
class Stays:
    """A tensor, or one of each of several layers, as a Student has it.

    parameters: of all of them together.
    """

    name: str
    shape: tuple[int, ...]
    times: int
    parameters: int

    @property
    def shown(self) -> str:
        """``transformer.h.*.attn.c_attn.weight [64, 192] (x12)``."""
        times = f" (x{self.times})" if self.times > 1 else ""
        return f"{self.name} {list(self.shape)}{times}"


def staying(model: nn.Module, axes: Sequence[Axis], sizes: Sizes) -> list[Stays]:
    """The parameters of a Student of ``model``, the largest first; those of its layers together."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    plan = Cut([of_parameters(axis, shapes) for axis in axes], sizes, shapes)
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name in shapes:
        if plan.name(name) is not None:
            key = re.sub(r"(?<=\.)\d+(?=\.)", "*", name), tuple(plan.shape(name, shapes[name]))
            alike.setdefault(key, []).append(name)
    there = [
        Stays(key if named[1:] else named[0], shape, len(named), math.prod(shape) * len(named))
        for (key, shape), named in alike.items()
    ]
    return sorted(there, key=lambda one: -one.parameters)


def forbidding(model: nn.Module, axes: Sequence[Axis], sizes: Sizes) -> str:
    """A sentence on what makes Students of these sizes as large as they are."""
    there = staying(model, axes, sizes)[:NAMED]
    named = ", ".join(f"{one.shown} with {count(one.parameters)} parameters" for one in there)
    return f"The largest that stay are {named}."


def smallest(axes: Sequence[Axis]) -> dict[str, int]:
    """The smallest sizes that axes can have."""
    return {axis.name: axis.step for axis in axes}


@dataclass(frozen=True)
class Floor:
    """What every Student keeps at the least, as shares of the base's parameters.

    stays: the largest of what then stays. more: all kinds that
    the model has, where with these it were less, and what it were.
    """

    share: float
    stays: list[tuple[str, float]]
    more: tuple[list[str], float] | None

    @property
    def sentence(self) -> str:
        if self.share < SMALL:
            return f"No width keeps less than {percent(self.share)} of the parameters."
        told = f"No width keeps less than {percent(self.share)} of the parameters"
        if self.stays:
            told += f" ({', '.join(f'{name} {percent(share)}' for name, share in self.stays)})"
        if self.more is not None:
            kinds, share = self.more
            told += f"; with `--axes {','.join(kinds)}` it is {percent(share)}"
        return f"{told}."


def floor(ta: TA) -> Floor:
    """What no width of a TA goes below."""
    whole = count_parameters(ta.model, ta.axes, ta.sizes(1.0))
    there = staying(ta.model, ta.axes, smallest(ta.axes))
    share = sum(one.parameters for one in there) / whole
    large = [(one.name, one.parameters / whole) for one in there[:FEW]]
    every = ta.adapter.axes(ta.model)
    known, more = list(kinds(full_sizes(every))), None
    if {kind(axis.name) for axis in ta.axes} < set(known):
        least = count_parameters(ta.model, every, smallest(every)) / whole
        more = (known, least) if share - least >= LEAST else None
    return Floor(share, [one for one in large if one[1] >= LEAST], more)
