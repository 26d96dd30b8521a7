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


# Reordering and growing


def _places(groups: Tensor, length: int) -> Tensor:
    """The places of these groups, each of which is ``length`` long."""
    return (groups[:, None] * length + torch.arange(length)).flatten()


def _units(slice_: Slice, axis: Axis, order: Tensor, total: int) -> Tensor:
    """The whole dimension's index after ordering the axis's groups of ``step`` units by ``order``."""
    units = _places(order, axis.step * slice_.unit)
    index = torch.arange(total)
    for block in range(slice_.blocks):
        start = slice_.start + block * len(units)
        index[start : start + len(units)] = start + units
    return index


@torch.no_grad()
def reorder(model: nn.Module, axes: Sequence[Axis], orders: Mapping[str, Tensor]) -> None:
    """Permute axes in place so that group ``orders[name][0]`` comes first. The function is
    unchanged.

    orders: axis name -> int64 [size / step], a permutation. Layers stay where they are: theirs goes
    into ``Axis.order``.
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
    """Whether new units can leave the function unchanged: a norm over the axis would see them, and
    so forbids it.
    """
    if axis.layers:
        return bool(axis.slices)
    modules = dict(model.named_modules())
    owners = (modules.get(place.tensor.rpartition(".")[0]) for place in axis.slices)
    has_reader = any(place.outgoing for place in axis.slices)
    return has_reader and not any(
        isinstance(owner, _NORMS) or "RMSNorm" in type(owner).__name__ for owner in owners
    )


def _spread(
    tensor: Tensor, shape: Sequence[int], dim: int, chosen: Tensor, generator: torch.Generator
) -> Tensor:
    """Values for new units: normal at the tensor's own mean and spread; one value per unit is taken
    from chosen units.

    Vectors (biases, BatchNorm scales and variances) are resampled together, so that a variance
    stays positive.
    """
    if tensor.dim() == 1:
        return tensor.index_select(dim, chosen)
    spread = tensor.float().std(correction=0)
    return (torch.randn(shape, generator=generator) * spread + tensor.float().mean()).to(
        tensor.dtype
    )


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
    # tensor -> where units are appended, copied from which
    places: dict[str, list[tuple[Axis, Slice, Tensor]]] = {}
    copies: dict[tuple[str, int], list[int]] = {}  # layer -> its copies
    silent: set[str] = set()
    own = dict(sizes)
    for axis in axes:
        new = sizes[axis.name] - axis.size
        if new == 0:
            continue
        if new < 0 or sizes[axis.name] % axis.step or not growable(model, axis):
            raise MattaError(
                f"Axis {axis.name!r} cannot grow from {axis.size} to {sizes[axis.name]} and keep the function."
            )
        if axis.layers:
            for after, before in list(enumerate(sources(axis, sizes[axis.name])))[axis.size :]:
                copies.setdefault((axis.layers, before), []).append(after)
            silent |= {place.tensor for place in axis.slices}
            own = grown_sizes(axes, sizes, sizes[axis.name])
            continue
        chosen = torch.randint(axis.size, (new,), generator=generator)
        for place in axis.slices:
            places.setdefault(place.tensor, []).append((axis, place, chosen))

    grown = adapter.build(model, own)
    targets = tensors_of(grown)
    for name, tensor in tensors_of(model).items():
        value = _appended(tensor.detach().cpu(), places.get(name, ()), generator)
        targets[name].copy_(value)
        for (path, before), afters in copies.items():
            start = f"{path}.{before}."
            for after in afters if name.startswith(start) else ():
                within = name.removeprefix(start)
                targets[f"{path}.{after}.{within}"].copy_(
                    torch.zeros_like(value) if within in silent else value
                )
        if consume:
            tensor.data = torch.empty(0, dtype=tensor.dtype)
    return grown.eval()


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
            pieces += [
                tensor.narrow(dim, at, end - at),
                torch.zeros_like(draw) if place.outgoing else draw,
            ]
            at = end
        pieces.append(tensor.narrow(dim, at, tensor.shape[dim] - at))
        tensor = torch.cat(pieces, dim)
        earlier.append((place.start, new * place.blocks))
    return tensor
