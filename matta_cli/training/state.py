"""What a checkpoint keeps of an optimizer: tensors and numbers by their path, never a pickle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from matta_cli.devices import processes


def size_of(tensors: Iterable[Tensor]) -> int:
    """The bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def state_of(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's tensors and its numbers, by path (``/state/0/exp_avg``, ``/groups/1/lr``)."""
    state = optimizer.state_dict()
    named = {str(index): own for index, own in state["state"].items()}
    tree = {"state": named, "groups": _settings(state["param_groups"])}
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for path, value, *_ in _leaves(tree):
        if isinstance(value, Tensor):
            tensors[path] = processes.gathered(value.detach()).clone().contiguous()
        else:
            numbers[path] = value
    return tensors, numbers


@torch.no_grad()
def restore(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]
) -> None:
    """Put ``state_of``'s answer back into a fresh optimizer.

    A step at learning rate 0 makes the state, whatever it consists of; then it is filled. The
    weights stay as they are. Raises ``KeyError`` or ``RuntimeError`` for another optimizer's state.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.clone() for p in parameters]
    rates = [group["lr"] for group in optimizer.param_groups]
    known = {path.split("/")[2] for path in [*tensors, *numbers] if path.startswith("/state/")}
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.zeros_like(parameter) if str(index) in known else None
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for parameter, old in zip(parameters, before, strict=True):
        parameter.copy_(old)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    there = ((str(index), p) for index, p in enumerate(parameters) if p in optimizer.state)
    state = {index: optimizer.state[p] for index, p in there}
    groups = _settings(optimizer.param_groups)
    for path, value, holder, key in _leaves({"state": state, "groups": groups}):
        if isinstance(value, Tensor):
            processes.scatter(value, tensors[path])
        elif path in numbers:
            if not _alike(numbers[path], value):
                raise RuntimeError(f"{path} is {numbers[path]!r}")
            _put(holder, key, numbers[path])
    for own, filled in zip(optimizer.param_groups, groups, strict=True):
        own.update(filled)


def _settings(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each group without its parameters."""
    return [{k: v for k, v in group.items() if k != "params"} for group in groups]


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any, Any, Any]]:
    """Every tensor and number inside nested dicts, lists and plain objects.

    Of each its path, the value itself, what holds it, and under which key.
    """
    for key, value in list(_items(node)):
        here = f"{path}/{key}"
        if isinstance(value, (Tensor, int, float, bool, str)) or value is None:
            yield here, value, node, key
        else:
            yield from _leaves(value, here)


def _items(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, (list, tuple)):
        yield from enumerate(node)
    elif hasattr(node, "__dict__"):
        yield from vars(node).items()


def _alike(kept: Any, fresh: Any) -> bool:
    """Whether what a file kept may stand where an optimizer has ``fresh``: a number for a number.

    A switch may be unset on one device, and on or off on another.
    """
    if isinstance(fresh, (int, float)) and not isinstance(fresh, bool):
        return isinstance(kept, (int, float)) and not isinstance(kept, bool)
    return kept is None or isinstance(kept, (bool, str))


def _put(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, (dict, list)):
        holder[key] = value
    elif not isinstance(holder, tuple):
        setattr(holder, key, value)
