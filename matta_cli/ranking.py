"""Importance of the units of an axis: which come first, and so stay in the smaller Students."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli.adapter import Axis, Slice


def _per_unit(tensor: Tensor, axis: Axis, place: Slice) -> Tensor:
    """Squared norm of each unit's weights in one slice, float32 [size]; blocks are summed."""
    squares = tensor.detach().float().pow(2)
    other = [d for d in range(squares.dim()) if d != place.dim]
    squares = squares.sum(other) if other else squares
    return squares[place.start :].narrow(0, 0, place.blocks * axis.size).view(place.blocks, axis.size).sum(0)


def _grouped(scores: Tensor, axis: Axis) -> Tensor:
    return scores.view(-1, axis.step).sum(1)


def magnitude(model: nn.Module, axes: Sequence[Axis]) -> dict[str, Tensor]:
    """Group magnitude: the norm of all weights of a unit, over all its slices. axis -> float32 [size / step]."""
    parameters = dict(model.named_parameters())
    scores = {}
    for axis in axes:
        total = torch.stack([_per_unit(parameters[p.tensor], axis, p) for p in axis.slices if p.tensor in parameters]).sum(0)
        scores[axis.name] = _grouped(total, axis).sqrt()
    return scores


@torch.no_grad()
def activation(
    model: nn.Module, axes: Sequence[Axis], batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any]
) -> dict[str, Tensor]:
    """Mean absolute activation of a unit times the norm of its outgoing weights: how much it adds to what reads it.

    The activations are the inputs of the modules that own the outgoing weights. An axis whose readers are not
    modules with one input falls back to magnitude. axis -> float32 [size / step].
    """
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    sums: dict[tuple[str, str], Tensor] = {}
    hooks = []

    def watch(axis: Axis, place: Slice) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].detach().float()
            x = x.movedim(1, -1) if isinstance(_module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else x
            x = x.abs().flatten(0, -2).mean(0)
            units = x[place.start :].narrow(0, 0, place.blocks * axis.size).view(place.blocks, axis.size).sum(0)
            key = (axis.name, place.tensor)
            sums[key] = sums[key] + units if key in sums else units

        return hook

    for axis in axes:
        for place in axis.slices:
            owner = modules.get(place.tensor.rpartition(".")[0])
            if place.outgoing and owner is not None and _is_input(owner, place.dim):
                hooks.append(owner.register_forward_pre_hook(watch(axis, place)))
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            forward(model, batch)
    finally:
        for handle in hooks:
            handle.remove()
        model.train(was_training)

    scores = magnitude(model, axes)
    for axis in axes:
        seen = [p for p in axis.slices if (axis.name, p.tensor) in sums]
        if seen:
            total = torch.stack(
                [sums[axis.name, p.tensor] * _per_unit(parameters[p.tensor], axis, p).sqrt() for p in seen]
            ).sum(0)
            scores[axis.name] = _grouped(total, axis)
    return scores


def _is_input(owner: nn.Module, dim: int) -> bool:
    """Whether this dimension of the weights of a stock layer is that of its input."""
    if isinstance(owner, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return dim == 0
    return dim == 1 or not isinstance(owner, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))


def order(scores: Tensor) -> Tensor:
    """The permutation that puts the most important group first; equal scores keep their order."""
    return scores.argsort(descending=True, stable=True)
