"""How large each axis of a Student is."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from torch import nn

from matta_cli.adapter import Adapter, Axis, Sizes
from matta_cli.errors import MattaError


def full_sizes(axes: Sequence[Axis]) -> dict[str, int]:
    """Every axis at its whole size."""
    return {axis.name: axis.size for axis in axes}


def scaled(base: int, width: float, step: int = 1, multiple: int = 1) -> int:
    """``width`` x ``base`` units, rounded to whole steps (and, for 64 units and more, to
    ``multiple``); at least one step.

    Width 1.0 is always exactly the base, whatever the multiple.
    """
    if width == 1.0:
        return base
    grain = math.lcm(step, multiple) if base >= 64 else step
    size = max(step, round(base * width / grain) * grain)
    # rounding must not turn smaller into larger
    return min(base, size) if width < 1 else max(base, size)


def sizes_at(
    axes: Sequence[Axis],
    base: Sizes,
    width: float,
    multiple: int = 1,
    shares: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """The sizes of a width (1.0 = the base). An axis that could not grow stays at the size it has.

    shares: by kind of axis, what it is scaled by in place of the width.
    """
    scale = {axis.name: (shares or {}).get(kind(axis.name), width) for axis in axes}
    return {
        axis.name: min(axis.size, scaled(base[axis.name], scale[axis.name], axis.step, multiple))
        for axis in axes
    }


def kind(name: str) -> str:
    """The kind of an axis: ``mlp.0`` and ``mlp.1`` are both of kind ``mlp``."""
    return re.sub(r"\.?\d+", "", name)


def nested_axes(adapter: Adapter, model: nn.Module, wanted: Sequence[str] = ()) -> list[Axis]:
    """The axes of the kinds ``wanted`` (none: the adapter's default). Raises ``MattaError`` for a
    kind that there is not.
    """
    axes = adapter.axes(model)
    there = list(dict.fromkeys(kind(axis.name) for axis in axes))
    missing = [name for name in wanted if name not in there]
    if missing:
        raise MattaError(
            f"--axes {missing[0]!r} is not an axis of this model; it has {', '.join(there)}."
        )
    chosen = wanted or [name for name in adapter.default if name in there] or there
    return [axis for axis in axes if kind(axis.name) in chosen]


def kinds(sizes: Sizes) -> dict[str, list[int]]:
    """Sizes by kind of axis."""
    found: dict[str, list[int]] = {}
    for name, size in sizes.items():
        found.setdefault(kind(name), []).append(size)
    return found


# Layers


def layer_of(name: str, layers: str) -> int | None:
    """The number of the layer that a tensor belongs to, in the list of that path; None where it
    belongs to none.
    """
    found = re.match(rf"{re.escape(layers)}\.(\d+)\.", name)
    return int(found[1]) if found else None


def _numbered(axis: Axis, before: int, after: int) -> str:
    """The name of a layer's axis where the layer has another number."""
    return re.sub(rf"(?<!\d){before}(?!\d)", str(after), axis.name, count=1)


def depth(axes: Sequence[Axis]) -> Axis | None:
    """The axis of layers, if there is one."""
    return next((axis for axis in axes if axis.layers), None)


def kept_layers(axis: Axis, size: int) -> list[int]:
    """The numbers of the layers that a Student of so many keeps, in the order that they have in the
    model.
    """
    return sorted((axis.order or range(axis.size))[:size])


def sources(axis: Axis, size: int) -> list[int]:
    """Of each layer of a model that has grown to ``size`` layers, the one that it is, or for a new
    one that it is a copy of.

    New layers come after the others, as copies of the last ones in the same order.
    """
    new = size - axis.size
    return [*range(axis.size), *(axis.size - 1 - (new - 1 - k) % axis.size for k in range(new))]


def _renamed(
    axes: Sequence[Axis], layers: Axis, chosen: Sequence[int], values: Sizes
) -> dict[str, int]:
    """Values by name of axis, as a model names them whose layers are those ``chosen`` from this
    one's.
    """
    found: dict[str, int] = {}
    for axis in axes:
        number = (
            layer_of(axis.slices[0].tensor, layers.layers)
            if axis.slices and not axis.layers
            else None
        )
        places = [after for after, before in enumerate(chosen) if before == number]
        for after in places:
            found[_numbered(axis, chosen[after], after)] = values.get(axis.name, axis.size)
        if number is None:
            found[axis.name] = len(chosen) if axis is layers else values.get(axis.name, axis.size)
    return found


def own_sizes(axes: Sequence[Axis], sizes: Sizes) -> dict[str, int]:
    """A Student's sizes by its own names: layers that are left out are gone, the others numbered
    anew.
    """
    layers = depth(axes)
    if layers is None:
        return dict(sizes)
    return _renamed(axes, layers, kept_layers(layers, sizes.get(layers.name, layers.size)), sizes)


def grown_sizes(axes: Sequence[Axis], sizes: Sizes, count: int) -> dict[str, int]:
    """``sizes`` by the names of a model of ``count`` layers: each new layer has those of the layer
    that it is a copy of.
    """
    layers = depth(axes)
    if layers is None:
        return dict(sizes)
    return {
        **_renamed(axes, layers, sources(layers, count), sizes),
        layers.name: sizes.get(layers.name, layers.size),
    }
