"""Which parts of which tensors a Student keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from matta_cli.adapter import Axis, Sizes, Slice
from matta_cli.errors import MattaError
from matta_cli.nested.sizes import kept_layers, layer_of

Part = tuple[int, int]  # start, length


class Cut:
    """Which stretches of which tensors a Student of ``sizes`` keeps: made once, applied often.

    shapes: of all tensors of the model, by name. Raises ``MattaError`` for sizes that an axis
    cannot have.
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
                needed = f"a multiple of {axis.step} from {axis.step} to {axis.size} is needed"
                raise MattaError(f"Axis {axis.name!r} cannot have {kept} units: {needed}.")
            if axis.layers:
                self._renumber(axis, kept, shapes)
            elif kept < axis.size:
                for place in axis.slices:
                    at = (place.tensor, place.dim)
                    places.setdefault(at, []).append((place, axis.size, kept))
        self.parts: dict[str, list[tuple[int, list[Part]]]] = {}
        for (tensor, dim), cuts in places.items():
            self.parts.setdefault(tensor, []).append((dim, _parts(cuts, shapes[tensor][dim])))

    def _renumber(self, axis: Axis, kept: int, shapes: Mapping[str, Sequence[int]]) -> None:
        after = {before: after for after, before in enumerate(kept_layers(axis, kept))}
        for name in shapes:
            number = layer_of(name, axis.layers)
            if number is not None:
                within = name.removeprefix(f"{axis.layers}.{number}")
                own = f"{axis.layers}.{after.get(number)}{within}"
                self.names[name] = own if number in after else None

    def name(self, name: str) -> str | None:
        """The Student's name of a tensor; None for a tensor of a layer that it leaves out."""
        return self.names.get(name, name)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """What is kept of one tensor, differentiable.

        It is a view where one stretch is left in each dimension, else a copy.
        """
        for dim, parts in self.parts.get(name, ()):
            pieces = [tensor.narrow(dim, start, length) for start, length in parts]
            tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
        return tensor

    def mask(self, name: str, tensor: Tensor) -> Tensor:
        """True where a tensor's values are kept: bool, of a shape that broadcasts to its own."""
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


def _parts(places: Sequence[tuple[Slice, int, int]], total: int) -> list[Part]:
    """The stretches of a dimension of ``total`` places that stay.

    places: (slice, full size, kept size) of every axis that lies in the dimension.
    """
    gone: list[Part] = []
    for place, full, kept in places:
        for block in range(place.blocks):
            start = place.start + (block * full + kept) * place.unit
            gone.append((start, (full - kept) * place.unit))
    parts, at = [], 0
    for start, length in sorted(g for g in gone if g[1]):
        if start > at:
            parts.append((at, start - at))
        at = start + length
    if at < total:
        parts.append((at, total - at))
    return parts


def cut(state: Mapping[str, Tensor], axes: Sequence[Axis], sizes: Sizes) -> dict[str, Tensor]:
    """A Student's tensors as views of ``state``, by its own names."""
    plan = Cut(axes, sizes, {name: t.shape for name, t in state.items()})
    named = ((plan.name(name), name, tensor) for name, tensor in state.items())
    return {own: plan(name, tensor) for own, name, tensor in named if own is not None}


def count_parameters(model: nn.Module, axes: Sequence[Axis], sizes: Sizes) -> int:
    """Parameters of a Student without building it; tied tensors count once."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    plan = Cut([of_parameters(axis, shapes) for axis in axes], sizes, shapes)
    kept = [name for name in shapes if plan.name(name) is not None]
    return sum(math.prod(plan.shape(name, shapes[name])) for name in kept)


def of_parameters(axis: Axis, shapes: Mapping[str, Sequence[int]]) -> Axis:
    """The axis without its slices of buffers. Those of an axis of layers name no whole tensor."""
    if axis.layers:
        return axis
    return replace(axis, slices=tuple(s for s in axis.slices if s.tensor in shapes))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and buffers by name; of tied ones the first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
