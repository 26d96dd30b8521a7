"""Importance of the units of an axis: which come first, and so stay in the smaller Students."""

from __future__ import annotations

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
    """One number per unit [size] of one per place of a slice's dimension: blocks, and the places of
    a unit, are summed.
    """
    length = place.blocks * axis.size * place.unit
    return (
        places[place.start :]
        .narrow(0, 0, length)
        .view(place.blocks, axis.size, place.unit)
        .sum((0, 2))
    )


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
        here = [(place, values(place.tensor)) for place in axis.slices if place.tensor in names]
        return _grouped(
            torch.stack([_per_unit(v, axis, place) for place, v in here if v is not None]).sum(0),
            axis,
        )
    adds = {place.tensor for place in axis.slices}
    found = torch.zeros(axis.size)
    for i in range(axis.size):
        start = f"{axis.layers}.{i}."
        own = [
            name
            for name in names
            if name.startswith(start) and (not adds or name.removeprefix(start) in adds)
        ]
        found[i] = sum(float(v.sum()) for v in map(values, own) if v is not None)
    return found


def magnitude(model: nn.Module, axes: Sequence[Axis]) -> dict[str, Tensor]:
    """Group magnitude: the norm of all weights of a unit, over all its slices. axis -> float32
    [size / step].
    """
    parameters = dict(model.named_parameters())
    return {
        a.name: _summed(a, parameters, lambda n: parameters[n].detach().float().pow(2)).sqrt()
        for a in axes
    }


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
    """Mean absolute activation of a unit times the norm of its outgoing weights: how much it adds
    to what reads it.

    The activations are the inputs of the modules that own the outgoing weights. An axis whose
    readers are not modules with one input falls back to magnitude. A layer's score is how much it
    turns what passes by it: 1 less the cosine of its input and output, the mean over positions
    (block influence; Men et al. 2024, arXiv 2403.03853).
    present: which positions of a batch are no padding, bool [B, L], where some are. axis -> float32
    [size / step].
    """
    modules = dict(model.named_modules())
    sums: dict[tuple[str, str], Tensor] = {}
    hooks = []
    mask: Tensor | None = None

    def seen_of(x: Tensor) -> Tensor:
        """Activations [..., C] as float32 [positions that are no padding, C]."""
        x = x.detach().float()
        return x[mask] if mask is not None and x.shape[:-1] == mask.shape else x.flatten(0, -2)

    def watch(axis: Axis, place: Slice) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0]
            x = x.movedim(1, -1) if isinstance(_module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else x
            units = _by_unit(seen_of(x).abs().mean(0), axis, place)
            key = (axis.name, place.tensor)
            sums[key] = sums[key] + units if key in sums else units

        return hook

    for axis in axes:
        for place in axis.slices if not axis.layers else ():
            owner = modules.get(place.tensor.rpartition(".")[0])
            if place.outgoing and owner is not None and _is_input(owner, place.dim):
                hooks.append(owner.register_forward_pre_hook(watch(axis, place)))
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            mask = present(batch)
            forward(model, batch)
    finally:
        for handle in hooks:
            handle.remove()
        model.train(was_training)

    scores = magnitude(model, axes)
    parameters = dict(model.named_parameters())
    for axis in axes:
        seen = [p for p in axis.slices if (axis.name, p.tensor) in sums]
        if seen:
            norms = [_per_unit(parameters[p.tensor].float().pow(2), axis, p).sqrt() for p in seen]
            total = torch.stack(
                [sums[axis.name, p.tensor] * norm for p, norm in zip(seen, norms, strict=True)]
            ).sum(0)
            scores[axis.name] = _grouped(total, axis)
    return scores


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
    """What the outputs lose when one group of units goes, or one layer: axis -> float32 [size /
    step], for ``some`` axes.

    As many forwards as there are groups, for each batch. loss: of outputs against those of the
    whole model, least where they are equal. An axis with one group has nothing to compare. The
    model is the same afterwards.
    """
    whole = [forward(model, batch) for batch in batches]
    least = sum(float(loss(out, out, batch)) for out, batch in zip(whole, batches, strict=True))
    scores = {}
    for axis in some:
        count = axis.size // axis.step
        found = torch.zeros(count)
        for group in range(count if count > 1 else 0):
            others = [g for g in range(count) if g != group]
            moved = [
                replace(a, order=(*others, group)) if a is axis and a.layers else a for a in axes
            ]
            swap = torch.arange(count)
            swap[[group, -1]] = swap[[-1, group]]
            # the last group is what a Student leaves out
            grow.reorder(model, [axis], {axis.name: swap})
            view = StudentView(adapter, model, moved, {axis.name: axis.size - axis.step}).eval()
            losses = [
                float(loss(forward(view, batch), out, batch))
                for out, batch in zip(whole, batches, strict=True)
            ]
            grow.reorder(model, [axis], {axis.name: swap})
            found[group] = (sum(losses) - least) / len(batches)
            tick()
        scores[axis.name] = found
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
