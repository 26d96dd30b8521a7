"""Reorder the units of a model, and append new ones, without changing its function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from matta_cli.adapter import Adapter, Axis, Sizes, Slice
from matta_cli.errors import MattaError
from matta_cli.nested.cut import tensors_of
from matta_cli.nested.sizes import full_sizes, grown_sizes, sources

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def _places(groups: Tensor, length: int) -> Tensor:
    """The places of these groups, each of which is ``length`` long."""
    return (groups[:, None] * length + torch.arange(length)).flatten()


def _units(slice_: Slice, axis: Axis, order: Tensor, total: int) -> Tensor:
    """The index of a whole dimension after ordering the axis's groups of units by ``order``."""
    units = _places(order, axis.step * slice_.unit)
    index = torch.arange(total)
    for block in range(slice_.blocks):
        start = slice_.start + block * len(units)
        index[start : start + len(units)] = start + units
    return index


@torch.no_grad()
def reorder(model: nn.Module, axes: Sequence[Axis], orders: Mapping[str, Tensor]) -> None:
    """Permute axes in place so that group ``orders[name][0]`` comes first.

    The function is unchanged. orders: axis name -> int64 [size / step], a permutation. Layers stay
    where they are: theirs goes into ``Axis.order``.
    """
    tensors = tensors_of(model)
    for axis in axes:
        if axis.name not in orders or axis.layers:
            continue
        for place in axis.slices:
            tensor = tensors[place.tensor]
            index = _units(place, axis, orders[axis.name].cpu(), tensor.shape[place.dim])
            tensor.copy_(tensor.index_select(place.dim, index.to(tensor.device)))


def growable(model: nn.Module, axis: Axis) -> bool:
    """Whether new units can leave the function unchanged: a norm over the axis would see them."""
    if axis.layers:
        return bool(axis.slices)
    modules = dict(model.named_modules())
    owners = [modules.get(place.tensor.rpartition(".")[0]) for place in axis.slices]
    norms = [o for o in owners if isinstance(o, _NORMS) or "RMSNorm" in type(o).__name__]
    return not norms and any(place.outgoing for place in axis.slices)


def _spread(
    tensor: Tensor, shape: Sequence[int], dim: int, chosen: Tensor, generator: torch.Generator
) -> Tensor:
    """Values for new units: normal, at the tensor's own mean and spread.

    Vectors (biases, BatchNorm scales and variances) are taken from the units ``chosen``: so the
    values of one unit stay together, and a variance stays positive.
    """
    if tensor.dim() == 1:
        return tensor.index_select(dim, chosen)
    own = tensor.float()
    drawn = torch.randn(shape, generator=generator) * own.std(correction=0) + own.mean()
    return drawn.to(tensor.dtype)


@torch.no_grad()
def grow(
    adapter: Adapter,
    model: nn.Module,
    axes: Sequence[Axis],
    sizes: Sizes,
    seed: int = 0,
    *,
    consume: bool = False,
) -> nn.Module:
    """A larger model with the same function: units are appended, their outgoing weights zero.

    Their incoming weights are drawn at the spread of the model's own weights: at a library's small
    initial scale the new units stay asleep. New layers are copies of the last ones (and of their
    grown units) that add nothing. With ``consume`` the model's tensors are emptied one by one, so
    that no more than the larger model is in memory. Raises ``MattaError`` for an axis that cannot
    grow, or for sizes below the present ones.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = full_sizes(axes) | dict(sizes)
    plan = _Growth()
    own: Sizes = sizes
    for axis in axes:
        size = sizes[axis.name]
        if size == axis.size:
            continue
        if size < axis.size or size % axis.step or not growable(model, axis):
            what = f"Axis {axis.name!r} cannot grow from {axis.size} to {size}"
            raise MattaError(f"{what} and keep the function.")
        if axis.layers:
            plan.copy_layers(axis, size)
            own = grown_sizes(axes, sizes, size)
        else:
            chosen = torch.randint(axis.size, (size - axis.size,), generator=generator)
            for place in axis.slices:
                plan.places.setdefault(place.tensor, []).append((axis, place, chosen))

    grown = adapter.build(model, own)
    targets = tensors_of(grown)
    for name, tensor in tensors_of(model).items():
        value = _appended(tensor.detach().cpu(), plan.places.get(name, ()), generator)
        targets[name].copy_(value)
        for copied, silent in plan.copies_of(name):
            targets[copied].copy_(torch.zeros_like(value) if silent else value)
        if consume:
            tensor.data = torch.empty(0, dtype=tensor.dtype)
    return grown.eval()


class _Growth:
    """Where units are appended, and which layers are copied.

    places: tensor -> (axis, slice, the units that vectors are taken from).
    """

    def __init__(self) -> None:
        self.places: dict[str, list[tuple[Axis, Slice, Tensor]]] = {}
        self.copies: dict[str, list[str]] = {}  # a layer's path -> those of its copies
        self.silent: set[str] = set()  # tensors within a layer that are zero in its copies

    def copy_layers(self, axis: Axis, size: int) -> None:
        for after, before in list(enumerate(sources(axis, size)))[axis.size :]:
            copies = self.copies.setdefault(f"{axis.layers}.{before}.", [])
            copies.append(f"{axis.layers}.{after}.")
        self.silent |= {place.tensor for place in axis.slices}

    def copies_of(self, name: str) -> list[tuple[str, bool]]:
        """The names of a tensor in the copies of its layer, and whether it is zero there."""
        copies = []
        for layer, others in self.copies.items():
            if name.startswith(layer):
                within = name.removeprefix(layer)
                copies += [(other + within, within in self.silent) for other in others]
        return copies


def _appended(
    tensor: Tensor, places: Sequence[tuple[Axis, Slice, Tensor]], generator: torch.Generator
) -> Tensor:
    """A tensor with new units appended in each of its places."""
    original = tensor
    # dimension -> where earlier axes grew, by how much
    added: dict[int, list[tuple[int, int]]] = {}
    for axis, place, chosen in places:
        dim, length, new = place.dim, axis.size * place.unit, len(chosen) * place.unit
        earlier = added.setdefault(dim, [])
        shift = sum(count for start, count in earlier if start < place.start)
        pieces, at = [], 0
        for block in range(place.blocks):
            end = shift + place.start + (block + 1) * length
            # spread of the model's own weights: what other axes appended is partly zero
            own = original.narrow(dim, place.start + block * length, length)
            shape = [*tensor.shape]
            shape[dim] = new
            draw = _spread(own, shape, dim, _places(chosen, place.unit), generator)
            pieces.append(tensor.narrow(dim, at, end - at))
            pieces.append(torch.zeros_like(draw) if place.outgoing else draw)
            at = end
        pieces.append(tensor.narrow(dim, at, tensor.shape[dim] - at))
        tensor = torch.cat(pieces, dim)
        earlier.append((place.start, new * place.blocks))
    return tensor
