"""The one mechanism: a Student is an ordinary dense module run on views of the TA's tensors.

Everything here works on axes as data, for every architecture: cut (views), reorder, grow, count. A tensor of a layer that
a Student leaves out is left out, and those of the layers after it get the numbers of the Student's.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from matta_cli.adapter import Adapter, Axis, Sizes, Slice
from matta_cli.errors import MattaError

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def full_sizes(axes: Sequence[Axis]) -> dict[str, int]:
    """Every axis at its whole size."""
    return {axis.name: axis.size for axis in axes}


def scaled(base: int, width: float, step: int = 1, multiple: int = 1) -> int:
    """``width`` x ``base`` units, rounded to whole steps (and, for 64 units and more, to ``multiple``); at least one step.

    Width 1.0 is always exactly the base, whatever the multiple.
    """
    if width == 1.0:
        return base
    grain = math.lcm(step, multiple) if base >= 64 else step
    size = max(step, round(base * width / grain) * grain)
    return min(base, size) if width < 1 else max(base, size)  # rounding must not turn smaller into larger


def sizes_at(
    axes: Sequence[Axis], base: Sizes, width: float, multiple: int = 1, shares: Mapping[str, float] | None = None
) -> dict[str, int]:
    """The sizes of a width (1.0 = the base). An axis that could not grow stays at the size it has.

    shares: by kind of axis, what it is scaled by in place of the width.
    """
    scale = {axis.name: (shares or {}).get(kind(axis.name), width) for axis in axes}
    return {axis.name: min(axis.size, scaled(base[axis.name], scale[axis.name], axis.step, multiple)) for axis in axes}


def kind(name: str) -> str:
    """The kind of an axis: ``mlp.0`` and ``mlp.1`` are both of kind ``mlp``."""
    return re.sub(r"\.?\d+", "", name)


def nested_axes(adapter: Adapter, model: nn.Module, wanted: Sequence[str] = ()) -> list[Axis]:
    """The axes of the kinds ``wanted`` (none: the adapter's default). Raises ``MattaError`` for a kind that there is not."""
    axes = adapter.axes(model)
    there = list(dict.fromkeys(kind(axis.name) for axis in axes))
    missing = [name for name in wanted if name not in there]
    if missing:
        raise MattaError(f"--axes {missing[0]!r} is not an axis of this model; it has {', '.join(there)}.")
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
    """The number of the layer that a tensor belongs to, in the list of that path; None where it belongs to none."""
    found = re.match(rf"{re.escape(layers)}\.(\d+)\.", name)
    return int(found[1]) if found else None


def _numbered(axis: Axis, before: int, after: int) -> str:
    """The name of a layer's axis where the layer has another number."""
    return re.sub(rf"(?<!\d){before}(?!\d)", str(after), axis.name, count=1)


def depth(axes: Sequence[Axis]) -> Axis | None:
    """The axis of layers, if there is one."""
    return next((axis for axis in axes if axis.layers), None)


def kept_layers(axis: Axis, size: int) -> list[int]:
    """The numbers of the layers that a Student of so many keeps, in the order that they have in the model."""
    return sorted((axis.order or range(axis.size))[:size])


def sources(axis: Axis, size: int) -> list[int]:
    """Of each layer of a model that has grown to ``size`` layers, the one that it is, or for a new one that it is a copy of.

    New layers come after the others, as copies of the last ones in the same order.
    """
    new = size - axis.size
    return [*range(axis.size), *(axis.size - 1 - (new - 1 - k) % axis.size for k in range(new))]


def _renamed(axes: Sequence[Axis], layers: Axis, chosen: Sequence[int], values: Sizes) -> dict[str, int]:
    """Values by name of axis, as a model names them whose layers are those ``chosen`` from this one's."""
    found: dict[str, int] = {}
    for axis in axes:
        number = layer_of(axis.slices[0].tensor, layers.layers) if axis.slices and not axis.layers else None
        places = [after for after, before in enumerate(chosen) if before == number]
        for after in places:
            found[_numbered(axis, chosen[after], after)] = values.get(axis.name, axis.size)
        if number is None:
            found[axis.name] = len(chosen) if axis is layers else values.get(axis.name, axis.size)
    return found


def own_sizes(axes: Sequence[Axis], sizes: Sizes) -> dict[str, int]:
    """A Student's sizes by its own names: layers that are left out are gone, the others numbered anew."""
    layers = depth(axes)
    if layers is None:
        return dict(sizes)
    return _renamed(axes, layers, kept_layers(layers, sizes.get(layers.name, layers.size)), sizes)


def grown_sizes(axes: Sequence[Axis], sizes: Sizes, count: int) -> dict[str, int]:
    """``sizes`` by the names of a model of ``count`` layers: each new layer has those of the layer that it is a copy of."""
    layers = depth(axes)
    if layers is None:
        return dict(sizes)
    return {**_renamed(axes, layers, sources(layers, count), sizes), layers.name: sizes.get(layers.name, layers.size)}


# Cutting


Part = tuple[int, int]  # start, length


def _parts(places: list[tuple[Slice, int, int]], total: int) -> list[Part]:
    """The stretches of a dimension of ``total`` that stay, given (slice, full size, kept size) of every axis in it."""
    gone: list[Part] = []
    for place, full, kept in places:
        for block in range(place.blocks):
            gone.append((place.start + (block * full + kept) * place.unit, (full - kept) * place.unit))
    parts, at = [], 0
    for start, length in sorted(g for g in gone if g[1]):
        if start > at:
            parts.append((at, start - at))
        at = start + length
    if at < total:
        parts.append((at, total - at))
    return parts


class Cut:
    """Which stretches of which tensors a Student of ``sizes`` keeps. Made once, applied at every step."""

    def __init__(self, axes: Sequence[Axis], sizes: Sizes, shapes: Mapping[str, Sequence[int]]) -> None:
        places: dict[tuple[str, int], list[tuple[Slice, int, int]]] = {}
        self.names: dict[str, str | None] = {}  # of the tensors of layers: the Student's name, None where it has no such layer
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
                        self.names[name] = f"{axis.layers}.{after[number]}{within}" if number in after else None
            elif kept < axis.size:
                for place in axis.slices:
                    places.setdefault((place.tensor, place.dim), []).append((place, axis.size, kept))
        self.parts: dict[str, list[tuple[int, list[Part]]]] = {}
        for (tensor, dim), cuts in places.items():
            self.parts.setdefault(tensor, []).append((dim, _parts(cuts, shapes[tensor][dim])))

    def name(self, name: str) -> str | None:
        """The Student's name of a tensor; None for a tensor of a layer that it leaves out."""
        return self.names.get(name, name)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """What is kept of one tensor: a view where one stretch is left per dimension, else a differentiable copy."""
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
    return sum(math.prod(plan.shape(name, shape)) for name, shape in shapes.items() if plan.name(name) is not None)


def _only(axis: Axis, names: Mapping[str, Any]) -> Axis:
    return axis if axis.layers else replace(axis, slices=tuple(s for s in axis.slices if s.tensor in names))


class StudentView:
    """A Student run on views of a live model: call it like the model; gradients reach the model's own tensors.

    The dense skeleton lives on the meta device and outside any module tree, so wrappers of the model do not see it.
    Buffers (BatchNorm statistics) are copies: a narrow forward must not write into those of wider ones. Put the
    Student's own statistics in ``buffers`` after ``recompute_statistics``. With ``live``, for the whole model alone, they are
    the model's own, and a forward updates them.
    With ``head``, the name of the linear layer that makes the outputs, that layer is left out: a call gives what it reads,
    and ``output`` the layer's tensors.
    """

    def __init__(
        self, adapter: Adapter, model: nn.Module, axes: Sequence[Axis], sizes: Sizes, *, head: str = "", live: bool = False
    ) -> None:
        self.model, self.axes, self.sizes, self.head, self.live = model, axes, dict(sizes), head, live
        with torch.device("meta"):
            self.skeleton = adapter.build(model, own_sizes(axes, sizes))
        if head:
            self.skeleton.set_submodule(head, nn.Identity())
        self.cut = Cut(axes, sizes, {name: t.shape for name, t in _tensors(model).items()})
        self.buffers: dict[str, Tensor] = {}
        self.training = model.training
        self.config = getattr(model, "config", None)  # tasks read it off whatever they call
        self.run: Any = _runner(self.skeleton)

    def state(self) -> dict[str, Tensor]:
        """The Student's tensors: parameters are views, buffers copies."""
        out = f"{self.head}." if self.head else "\0"
        state = {}
        for name, parameter in self.model.named_parameters():
            own = self.cut.name(name)
            if own is not None and not name.startswith(out):
                state[own] = self.cut(name, parameter)
        for name, buffer in self.model.named_buffers():
            own = self.cut.name(name)
            if own in self.buffers:
                state[own] = self.buffers[own]
            elif own is not None:
                state[own] = buffer if self.live else self.cut(name, buffer).clone()
        return state

    def module(self) -> nn.Module:
        """The Student as an ordinary module whose tensors are these views, for what calls more than ``forward``, such as
        ``generate`` of transformers. In eval mode; no gradient reaches the model.

        Copies are buffers, and tensors that are cut into several pieces (a fused qkv with fewer heads).
        """
        module = copy.deepcopy(self.skeleton)  # on the meta device: nothing but names and shapes
        state = self.state()
        places: dict[int, list[str]] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            places.setdefault(id(parameter), []).append(name)
        for tied in places.values():
            own = nn.Parameter(state[tied[0]].detach(), requires_grad=False)
            for name in tied:
                where, _, last = name.rpartition(".")
                module.get_submodule(where).register_parameter(last, own)
        for name, _ in list(module.named_buffers()):
            where, _, last = name.rpartition(".")
            module.get_submodule(where)._buffers[last] = state[name]
        return module.eval()

    def output(self) -> tuple[Tensor, Tensor | None]:
        """Weight [outputs, d] and bias [outputs] (or None) of the ``head``, as views."""
        named = dict(self.model.named_parameters(remove_duplicate=False))
        first = {id(p): name for name, p in self.model.named_parameters()}  # axes name a tied tensor by its first name

        def own(name: str) -> Tensor:
            return self.cut(first[id(named[name])], named[name])

        weight, bias = f"{self.head}.weight", f"{self.head}.bias"
        return own(weight), own(bias) if bias in named else None

    def train(self, mode: bool = True) -> StudentView:
        self.training = mode
        return self

    def eval(self) -> StudentView:
        return self.train(False)

    def without_dropout(self) -> None:
        """Drop nothing, also while training. The model's own settings stay as they are."""
        for module in self.skeleton.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0

    def recompute(self) -> None:
        """Keep no activations inside repeated blocks: the backward pass makes them again (Chen et al. 2016, 1604.06174)."""
        blocks = repeated_blocks(self.skeleton)
        if not blocks:
            raise MattaError("Activation checkpointing is not supported for this model: it has no repeated blocks.")
        for block in blocks:
            _recompute(block)

    def compile(self, **options: Any) -> None:
        """Run as one compiled graph (``torch.compile``'s options); shapes are fixed."""
        self.run = torch.compile(self.run, dynamic=False, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.skeleton.training != self.training:
            self.skeleton.train(self.training)
        return self.run(self.state(), args, kwargs)


def _runner(skeleton: nn.Module) -> Any:
    def run(state: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        return functional_call(skeleton, state, args, kwargs)

    return run


def without(model: nn.Module, name: str) -> nn.Module:
    """``model`` with the layer ``name`` replaced by an identity. Shares all else with ``model``, which stays as it is."""
    found = copy.copy(model)
    found._modules = dict(model._modules)
    child, _, rest = name.partition(".")
    setattr(found, child, without(model.get_submodule(child), rest) if rest else nn.Identity())
    return found


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The model's layers: the children, all of one class, of its outermost lists of two or more modules with parameters."""
    found: list[nn.Module] = []
    stack = [model]
    while stack:
        module = stack.pop()
        children = list(module.children())
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(children) > 1 and len({type(c) for c in children}) == 1:
            if any(True for _ in children[0].parameters()):
                found += children
        else:
            stack += children
    return found


def _recompute(block: nn.Module) -> None:
    """Checkpoint a block of a skeleton. The tensors of the call are kept for the second pass: by then the skeleton is empty."""
    plain = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or not block.training:
            return plain(*args, **kwargs)
        state = dict(block.named_parameters())
        buffers = dict(block.named_buffers())

        def again(*args: Any, **kwargs: Any) -> Any:
            block.forward = plain  # type: ignore[method-assign]
            try:
                return functional_call(block, {**state, **buffers}, args, kwargs)
            finally:
                block.forward = forward  # type: ignore[method-assign]

        return checkpoint(again, *args, use_reentrant=False, **kwargs)

    block.forward = forward  # type: ignore[method-assign]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def materialize(adapter: Adapter, model: nn.Module, axes: Sequence[Axis], sizes: Sizes) -> nn.Module:
    """The same Student as a dense module of its own: the slices, copied out. In eval mode, on ``model``'s device."""
    view = StudentView(adapter, model, axes, sizes)
    student = adapter.build(model, own_sizes(axes, sizes))
    device = next(model.parameters()).device
    student.to(device)
    with torch.no_grad():
        targets = _tensors(student)
        for name, tensor in view.state().items():
            targets[name].copy_(tensor)
    return student.eval()


def has_statistics(model: nn.Module) -> bool:
    """Whether a model carries BatchNorm statistics, which every Student needs of its own."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in model.modules())


@torch.no_grad()
def recompute_statistics(model: nn.Module, batches: Sequence[Any], forward: Any) -> None:
    """Set a dense model's BatchNorm statistics to the exact average over ``batches``; ``forward(model, batch)`` runs it."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    model.eval()  # only the norms train: dropout would disturb the statistics
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain cumulative average
        norm.train()
    for batch in batches:
        forward(model, batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


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
    """Permute axes in place so that group ``orders[name][0]`` comes first. The function is unchanged.

    orders: axis name -> int64 [size / step], a permutation. Layers stay where they are: theirs goes into ``Axis.order``.
    """
    tensors = _tensors(model)
    for axis in axes:
        if axis.name not in orders or axis.layers:
            continue
        for place in axis.slices:
            tensor = tensors[place.tensor]
            index = _units(place, axis, orders[axis.name].cpu(), tensor.shape[place.dim])
            tensor.copy_(tensor.index_select(place.dim, index.to(tensor.device)))


def growable(model: nn.Module, axis: Axis) -> bool:
    """Whether new units can leave the function unchanged: a norm over the axis would see them, and so forbids it."""
    if axis.layers:
        return bool(axis.slices)
    modules = dict(model.named_modules())
    owners = (modules.get(place.tensor.rpartition(".")[0]) for place in axis.slices)
    has_reader = any(place.outgoing for place in axis.slices)
    return has_reader and not any(isinstance(owner, _NORMS) or "RMSNorm" in type(owner).__name__ for owner in owners)


def _spread(tensor: Tensor, shape: Sequence[int], dim: int, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Values for new units: normal at the tensor's own mean and spread; one value per unit is taken from chosen units.

    Vectors (biases, BatchNorm scales and variances) are resampled together, so that a variance stays positive.
    """
    if tensor.dim() == 1:
        return tensor.index_select(dim, chosen)
    spread = tensor.float().std(correction=0)
    return (torch.randn(shape, generator=generator) * spread + tensor.float().mean()).to(tensor.dtype)


@torch.no_grad()
def grow(
    adapter: Adapter, model: nn.Module, axes: Sequence[Axis], sizes: Sizes, seed: int = 0, *, consume: bool = False
) -> nn.Module:
    """A larger model with the same function: units are appended, their outgoing weights zero.

    Their incoming weights are drawn at the spread of the model's own weights: at a library's small initial scale the
    new units stay asleep. New layers are copies of the last ones (and of their grown units) that add nothing. With
    ``consume`` the model's tensors are emptied one by one, so that no more than the larger model is in memory. Raises
    ``MattaError`` for an axis that cannot grow, or for sizes below the present ones.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = full_sizes(axes) | dict(sizes)
    places: dict[str, list[tuple[Axis, Slice, Tensor]]] = {}  # tensor -> where units are appended, copied from which
    copies: dict[tuple[str, int], list[int]] = {}  # layer -> its copies
    silent: set[str] = set()
    own = dict(sizes)
    for axis in axes:
        new = sizes[axis.name] - axis.size
        if new == 0:
            continue
        if new < 0 or sizes[axis.name] % axis.step or not growable(model, axis):
            raise MattaError(f"Axis {axis.name!r} cannot grow from {axis.size} to {sizes[axis.name]} and keep the function.")
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
    targets = _tensors(grown)
    for name, tensor in _tensors(model).items():
        value = _appended(tensor.detach().cpu(), places.get(name, ()), generator)
        targets[name].copy_(value)
        for (path, before), afters in copies.items():
            start = f"{path}.{before}."
            for after in afters if name.startswith(start) else ():
                within = name.removeprefix(start)
                targets[f"{path}.{after}.{within}"].copy_(torch.zeros_like(value) if within in silent else value)
        if consume:
            tensor.data = torch.empty(0, dtype=tensor.dtype)
    return grown.eval()


def _appended(tensor: Tensor, places: Sequence[tuple[Axis, Slice, Tensor]], generator: torch.Generator) -> Tensor:
    """A tensor with new units appended in each of its places."""
    original = tensor
    added: dict[int, list[tuple[int, int]]] = {}  # dimension -> where earlier axes grew, by how much
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
            pieces += [tensor.narrow(dim, at, end - at), torch.zeros_like(draw) if place.outgoing else draw]
            at = end
        pieces.append(tensor.narrow(dim, at, tensor.shape[dim] - at))
        tensor = torch.cat(pieces, dim)
        earlier.append((place.start, new * place.blocks))
    return tensor
