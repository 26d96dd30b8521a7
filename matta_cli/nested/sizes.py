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
    """``width`` x ``base`` units in whole steps; of 64 units and more also in ``multiple``.

    It is one step at least. Width 1.0 is always exactly the base, whatever the multiple.
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
    """The sizes of a width (1.0 = the base). An axis that could not grow stays at its size.

    shares: by kind of axis, what it is scaled by in place of the width.
    """
    sizes = {}
    for axis in axes:
        share = (shares or {}).get(kind(axis.name), width)
        sizes[axis.name] = min(axis.size, scaled(base[axis.name], share, axis.step, multiple))
    return sizes


def kind(name: str) -> str:
    """The kind of an axis: ``mlp.0`` and ``mlp.1`` are both of kind ``mlp``."""
    return re.sub(r"\.?\d+", "", name)


def kinds(sizes: Sizes) -> dict[str, list[int]]:
    """Sizes by kind of axis."""
    by_kind: dict[str, list[int]] = {}
    for name, size in sizes.items():
        by_kind.setdefault(kind(name), []).append(size)
    return by_kind


def nested_axes(adapter: Adapter, model: nn.Module, wanted: Sequence[str] = ()) -> list[Axis]:
    """The axes of the kinds ``wanted``; of none: those that the adapter nests by default.

    Raises ``MattaError`` for a kind that the model does not have.
    """
    axes = adapter.axes(model)
    there = list(dict.fromkeys(kind(axis.name) for axis in axes))
    for name in wanted:
        if name not in there:
            known = ", ".join(there)
            raise MattaError(f"--axes {name!r} is not an axis of this model; it has {known}.")
    nested = wanted or [name for name in adapter.default if name in there] or there
    return [axis for axis in axes if kind(axis.name) in nested]


# Layers


def layer_of(name: str, layers: str) -> int | None:
    """The number of a tensor's layer in the list of that path; None where it is in none."""
    match = re.match(rf"{re.escape(layers)}\.(\d+)\.", name)
    return int(match[1]) if match else None


def depth(axes: Sequence[Axis]) -> Axis | None:
    """The axis of layers, if there is one."""
    return next((axis for axis in axes if axis.layers), None)


def kept_layers(axis: Axis, size: int) -> list[int]:
    """The numbers of the layers that a Student of ``size`` layers keeps, in the model's order."""
    return sorted((axis.order or range(axis.size))[:size])


def sources(axis: Axis, size: int) -> list[int]:
    """For each layer of a model grown to ``size`` layers, the layer whose weights it begins with.

    New layers come after the others, as copies of the last ones in the same order.
    """
    new = size - axis.size
    return [*range(axis.size), *(axis.size - 1 - (new - 1 - k) % axis.size for k in range(new))]


def own_sizes(axes: Sequence[Axis], sizes: Sizes) -> dict[str, int]:
    """A Student's sizes by its own names: layers that are left out are gone, others renumbered."""
    layers = depth(axes)
    if layers is None:
        return dict(sizes)
    return _renamed(axes, layers, kept_layers(layers, sizes.get(layers.name, layers.size)), sizes)


def grown_sizes(axes: Sequence[Axis], sizes: Sizes, count: int) -> dict[str, int]:
    """``sizes`` by the names of a model of ``count`` layers: a copied layer has its source's."""
    layers = depth(axes)
    if layers is None:
        return dict(sizes)
    renamed = _renamed(axes, layers, sources(layers, count), sizes)
    return {**renamed, layers.name: sizes.get(layers.name, layers.size)}


def _renamed(
    axes: Sequence[Axis], layers: Axis, origins: Sequence[int], sizes: Sizes
) -> dict[str, int]:
    """Sizes by the names of a model whose layers come from the layers ``origins`` of this one."""
    renamed: dict[str, int] = {}
    for axis in axes:
        size, number = sizes.get(axis.name, axis.size), None
        if axis.slices and not axis.layers:
            number = layer_of(axis.slices[0].tensor, layers.layers)
        if number is None:
            renamed[axis.name] = len(origins) if axis is layers else size
        for after, before in enumerate(origins):
            if before == number:
                name = re.sub(rf"(?<!\d){before}(?!\d)", str(after), axis.name, count=1)
                renamed[name] = size
    return renamed
