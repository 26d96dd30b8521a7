"""Which parts of which tensors a Student keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli.adapter import Axis, Sizes, Slice
from matta_cli.errors import MattaError
from matta_cli.nested.sizes import kept_layers, layer_of

# Cutting


Part = tuple[int, int]  # start, length


def _parts(places: list[tuple[Slice, int, int]], total: int) -> list[Part]:
    """The stretches of a dimension of ``total`` that stay, given (slice, full size, kept size) of
    every axis in it.
    """
    gone: list[Part] = []
    for place, full, kept in places:
        for block in range(place.blocks):
            gone.append(
                (place.start + (block * full + kept) * place.unit, (full - kept) * place.unit)
            )
    parts, at = [], 0
    for start, length in sorted(g for g in gone if g[1]):
        if start > at:
            parts.append((at, start - at))
        at = start + length
    if at < total:
        parts.append((at, total - at))
    return parts


class Cut:
    """Which stretches of which tensors a Student of ``sizes`` keeps. Made once, applied at every
    step.
    """

    def __init__(
        self, axes: Sequence[Axis], sizes: Sizes, shapes: Mapping[str, Sequence[int]]
    ) -> None:
        places: dict[tuple[str, int], list[tuple[Slice, int, int]]] = {}
        # of the tensors of layers: the Student's name, None where it has no such layer
        self.names: dict[str, str | None] = {}
        for axis in axes:
            kept = sizes.get(axis.name, axis.size)
            if kept % axis.step or not 0 < kept <= axis.size:
                raise MattaError(
                    f"Axis {axis.name!r} cannot have {kept} units: a multiple of {axis.step} from {axis.step} to "
                    f"{axis.size} is needed."
                )
            if axis.layers:
                chosen = kept_layers(axis, kept)
                after = {before: after for after, before in enumerate(chosen)}
                for name in shapes:
                    number = layer_of(name, axis.layers)
                    if number is not None:
                        within = name.removeprefix(f"{axis.layers}.{number}")
                        self.names[name] = (
                            f"{axis.layers}.{after[number]}{within}" if number in after else None
                        )
            elif kept < axis.size:
                for place in axis.slices:
                    places.setdefault((place.tensor, place.dim), []).append(
                        (place, axis.size, kept)
                    )
        self.parts: dict[str, list[tuple[int, list[Part]]]] = {}
        for (tensor, dim), cuts in places.items():
            self.parts.setdefault(tensor, []).append((dim, _parts(cuts, shapes[tensor][dim])))

    def name(self, name: str) -> str | None:
        """The Student's name of a tensor; None for a tensor of a layer that it leaves out."""
        return self.names.get(name, name)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """What is kept of one tensor: a view where one stretch is left per dimension, else a
        differentiable copy.
        """
        for dim, parts in self.parts.get(name, ()):
            pieces = [tensor.narrow(dim, start, length) for start, length in parts]
            tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
        return tensor

    def mask(self, name: str, tensor: Tensor) -> Tensor:
        """True where a tensor's values are kept: bool, of a shape that broadcasts to the tensor's."""
        mask = torch.ones((1,) * tensor.dim(), dtype=torch.bool, device=tensor.device)
        for dim, parts in self.parts.get(name, ()):
            kept = torch.zeros(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
            for start, length in parts:
                kept[start : start + length] = True
            mask = mask & kept.view([-1 if d == dim else 1 for d in range(tensor.dim())])
        return mask

    def shape(self, name: str, shape: Sequence[int]) -> list[int]:
        """The shape that is kept, by arithmetic alone."""
        kept = list(shape)
        for dim, parts in self.parts.get(name, ()):
            kept[dim] = sum(length for _, length in parts)
        return kept


def cut(state: Mapping[str, Tensor], axes: Sequence[Axis], sizes: Sizes) -> dict[str, Tensor]:
    """A Student's tensors as views of ``state``, by its own names."""
    plan = Cut(axes, sizes, {name: t.shape for name, t in state.items()})
    named = ((plan.name(name), name, tensor) for name, tensor in state.items())
    return {own: plan(name, tensor) for own, name, tensor in named if own is not None}


def count_parameters(model: nn.Module, axes: Sequence[Axis], sizes: Sizes) -> int:
    """Parameters of a Student without building it; tied tensors count once."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    plan = Cut([_only(axis, shapes) for axis in axes], sizes, shapes)
    return sum(
        math.prod(plan.shape(name, shape))
        for name, shape in shapes.items()
        if plan.name(name) is not None
    )


def _only(axis: Axis, names: Mapping[str, Any]) -> Axis:
    return (
        axis
        if axis.layers
        else replace(axis, slices=tuple(s for s in axis.slices if s.tensor in names))
    )


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
