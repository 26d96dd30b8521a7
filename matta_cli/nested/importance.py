"""Importance of the units of an axis: which come first, and so stay in the smaller Students."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli.adapter import Adapter, Axis, Slice
from matta_cli.nested import grow
from matta_cli.nested.view import StudentView


def _per_unit(values: Tensor, axis: Axis, place: Slice) -> Tensor:
    """Sum of each unit's values in one slice, [size]; its places are summed."""
    other = [d for d in range(values.dim()) if d != place.dim]
    return _by_unit(values.sum(other) if other else values, axis, place)


def _by_unit(places: Tensor, axis: Axis, place: Slice) -> Tensor:
    """One number per unit [size], from one per place of a slice's dimension.

    Blocks, and the places of a unit, are summed.
    """
    own = places[place.start : place.start + place.blocks * axis.size * place.unit]
    return own.view(place.blocks, axis.size, place.unit).sum((0, 2))


def _grouped(scores: Tensor, axis: Axis) -> Tensor:
    return scores.view(-1, axis.step).sum(1)


# a parameter's values by name, as large as it is, made when asked for
Values = Callable[[str], Tensor | None]


def _summed(axis: Axis, names: Collection[str], values: Values) -> Tensor:
    """The sum of values over everything that belongs to a unit, float32 [size / step].

    What belongs to a layer is what it adds to what passes by it, or where that is not known all
    that it has.
    """
    if not axis.layers:
        own = [(place, values(place.tensor)) for place in axis.slices if place.tensor in names]
        units = [_per_unit(value, axis, place) for place, value in own if value is not None]
        return _grouped(torch.stack(units).sum(0), axis)
    adds = {place.tensor for place in axis.slices}
    sums = torch.zeros(axis.size)
    for i in range(axis.size):
        start = f"{axis.layers}.{i}."
        within = [name.removeprefix(start) for name in names if name.startswith(start)]
        there = [values(start + name) for name in within if not adds or name in adds]
        sums[i] = sum(float(value.sum()) for value in there if value is not None)
    return sums


def magnitude(model: nn.Module, axes: Sequence[Axis]) -> dict[str, Tensor]:
    """The norm of all weights of a unit, over all its slices: axis -> float32 [size / step]."""
    parameters = dict(model.named_parameters())

    def squares(name: str) -> Tensor:
        return parameters[name].detach().float().pow(2)

    return {axis.name: _summed(axis, parameters, squares).sqrt() for axis in axes}


def by_gradient(
    model: nn.Module,
    axes: Sequence[Axis],
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    second: bool,
) -> dict[str, Tensor]:
    """How much the loss would change without a unit. axis -> float32 [size / step].

    First order: |sum of weight x gradient| over all slices of the unit, the mean over batches
    (Molchanov et al. 2019, arXiv 1906.10771). Second order: half the squared weights by the squared
    gradients, a diagonal Fisher matrix in place of the Hessian's (LeCun et al. 1989, "Optimal Brain
    Damage"; Theis et al. 2018, 1801.05787). model: not training; its gradients are cleared.
    """
    scores = {axis.name: torch.zeros(axis.size // axis.step) for axis in axes}
    parameters = dict(model.named_parameters())

    def products(name: str) -> Tensor | None:
        parameter = parameters[name]
        if parameter.grad is None:
            return None
        product = (parameter.detach() * parameter.grad).float().cpu()
        return product.pow(2) / 2 if second else product

    count = 0
    for batch in batches:
        model.zero_grad(set_to_none=True)
        loss(model, batch).backward()
        for axis in axes:
            scores[axis.name] += _summed(axis, parameters, products).abs()
        count += 1
    model.zero_grad(set_to_none=True)
    return {name: score / max(1, count) for name, score in scores.items()}


@torch.no_grad()
def activation(
    model: nn.Module,
    axes: Sequence[Axis],
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any],
    present: Callable[[Any], Tensor | None] = lambda batch: None,
) -> dict[str, Tensor]:
    """How much a unit adds to what reads it: axis -> float32 [size / step].

    That is its mean absolute activation times the norm of its outgoing weights. The activations
    are the inputs of the modules that own the outgoing weights. An axis whose readers are not
    modules with one input, and one of layers, falls back to magnitude.
    present: which positions of a batch are no padding, bool [B, L], where some are.
    """
    watch = _Watch()
    modules = dict(model.named_modules())
    for axis in axes:
        for place in axis.slices if not axis.layers else ():
            owner = modules.get(place.tensor.rpartition(".")[0])
            if place.outgoing and owner is not None and _is_input(owner, place.dim):
                watch.add(owner, axis, place)
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            watch.follow(functools.partial(forward, model, batch), present(batch))
    finally:
        watch.end()
        model.train(was_training)

    scores = magnitude(model, axes)
    parameters = dict(model.named_parameters())
    for axis in axes:
        adds = []
        for place in axis.slices:
            if (axis.name, place.tensor) in watch.sums:
                weights = parameters[place.tensor].float().pow(2)
                norm = _per_unit(weights, axis, place).sqrt()
                adds.append(watch.sums[axis.name, place.tensor] * norm)
        if adds:
            scores[axis.name] = _grouped(torch.stack(adds).sum(0), axis)
    return scores


class _Seen(Exception):
    """All that is watched in a forward has been seen."""


class _Watch:
    """Sums the mean absolute activations of units over the batches of a model's forwards."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str], Tensor] = {}  # (axis, tensor that reads it) -> [size]
        self.present: Tensor | None = None
        self._handles: list[Any] = []
        # calls of what is watched: in the forward that goes on, and in a whole one
        self._calls, self._all = 0, 0

    def add(self, owner: nn.Module, axis: Axis, place: Slice) -> None:
        """Watch what a module reads."""
        key = (axis.name, place.tensor)

        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0]
            x = x.movedim(1, -1) if isinstance(owner, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else x
            units = _by_unit(self._rows(x).abs().mean(0), axis, place)
            self.sums[key] = self.sums[key] + units if key in self.sums else units
            self._calls += 1
            if self._calls == self._all:
                raise _Seen

        self._handles.append(owner.register_forward_pre_hook(hook))

    def follow(self, forward: Callable[[], Any], present: Tensor | None) -> None:
        """Run a forward, after the first one only as far as there is something to watch.

        The output layer of a language model, say, is a fifth of its work.
        """
        self.present, self._calls = present, 0
        try:
            forward()
            self._all = self._calls
        except _Seen:
            pass

    def _rows(self, x: Tensor) -> Tensor:
        """Activations [..., C] as float32 [positions that are no padding, C]."""
        x, mask = x.detach().float(), self.present
        return x[mask] if mask is not None and x.shape[:-1] == mask.shape else x.flatten(0, -2)

    def end(self) -> None:
        for handle in self._handles:
            handle.remove()


@torch.no_grad()
def removal(
    adapter: Adapter,
    model: nn.Module,
    axes: Sequence[Axis],
    some: Sequence[Axis],
    batches: Sequence[Any],
    forward: Callable[[Any, Any], Tensor],
    loss: Callable[[Tensor, Tensor, Any], Tensor],
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """What the outputs lose when one group of units goes, or one layer, for ``some`` axes.

    Returns axis -> float32 [size / step]. It takes as many forwards as there are groups, for each
    batch. loss: of outputs against those of the whole model, least where they are equal. An axis
    with one group has nothing to compare. The model is the same afterwards.
    """
    whole = [forward(model, batch) for batch in batches]

    def total(outputs: Sequence[Tensor]) -> float:
        pairs = zip(outputs, whole, batches, strict=True)
        return sum(float(loss(out, expected, batch)) for out, expected, batch in pairs)

    least = total(whole)
    scores = {}
    for axis in some:
        count = axis.size // axis.step
        scores[axis.name] = torch.zeros(count)
        for group in range(count if count > 1 else 0):
            others = [g for g in range(count) if g != group]
            last = replace(axis, order=(*others, group)) if axis.layers else axis
            swap = torch.arange(count)
            swap[[group, -1]] = swap[[-1, group]]
            # the last group is what a Student leaves out
            grow.reorder(model, [axis], {axis.name: swap})
            moved = [last if a is axis else a for a in axes]
            view = StudentView(adapter, model, moved, {axis.name: axis.size - axis.step}).eval()
            outputs = [forward(view, batch) for batch in batches]
            grow.reorder(model, [axis], {axis.name: swap})
            scores[axis.name][group] = (total(outputs) - least) / len(batches)
            tick()
    return scores


def _is_input(owner: nn.Module, dim: int) -> bool:
    """Whether this dimension of the weights of a stock layer is that of its input."""
    if isinstance(owner, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return dim == 0
    return dim == 1 or not isinstance(owner, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))


def order(scores: Tensor, *, layers: bool = False) -> Tensor:
    """The permutation that puts the most important group first; equal scores keep their order.

    Of ``layers``, the first and the last come first: what stands between them was made for their
    kind of input and output.
    """
    if layers:
        scores = scores.clone()
        scores[[0, -1]] = torch.inf
    return scores.argsort(descending=True, stable=True)
