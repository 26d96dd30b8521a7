"""Optimizers by name, the learning rate, and what a checkpoint keeps of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli.devices import processes
from matta_cli.errors import MattaError
from matta_cli.models.ta import TA
from matta_cli.nested import cut
from matta_cli.settings.recipe import Recipe

OPTIMIZERS = ("adamw", "shampoo", "soap", "muon")


def make_optimizer(
    recipe: Recipe, ta: nn.Module, extra: list[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The recipe's optimizer over a model and ``extra`` parameters; vectors (biases, norms) are not
    decayed.

    AdamW is torch's, fused on CUDA. Shampoo (Gupta et al. 2018, arXiv 1802.09568; the blocked
    variant of Anil et al. 2020, 2002.09018), SOAP (2409.11321) and Muon with AdamW for embeddings
    and vectors are pytorch-optimizer's, an extra. Raises ``MattaError`` for another name, or where
    that package is missing.
    """
    s = recipe.distill
    parameters = [p for p in [*ta.parameters(), *extra] if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": s.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if s.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=s.lr, fused=device.type == "cuda" or None)
    if s.optimizer not in OPTIMIZERS:
        raise MattaError(
            f"distill.optimizer {s.optimizer!r} is not known: {', '.join(OPTIMIZERS)}."
        )
    try:
        import pytorch_optimizer
        from pytorch_optimizer.optimizer.shampoo import LayerWiseGrafting
    except ImportError:
        raise MattaError(
            f"The optimizer {s.optimizer!r} needs pytorch-optimizer: pip install 'matta[optimizers]'."
        ) from None
    groups = [group for group in groups if group["params"]]
    if s.optimizer == "shampoo":
        return pytorch_optimizer.ScalableShampoo(
            groups,
            lr=s.lr,
            decoupled_weight_decay=True,
            decoupled_learning_rate=False,
            graft_type=LayerWiseGrafting.RMSPROP,
            moving_average_for_momentum=True,
            start_preconditioning_step=10,
            preconditioning_compute_steps=10,
            block_size=256,
        )
    if s.optimizer == "soap":
        return pytorch_optimizer.SOAP(groups, lr=s.lr)
    looked_up = {id(p) for m in ta.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    hidden = [p for p in parameters if p.dim() == 2 and id(p) not in looked_up]
    others = [p for p in parameters if p.dim() != 2 or id(p) in looked_up]
    adamw = {"use_muon": False, "betas": (0.9, 0.999), "eps": 1e-8}
    groups = [
        {
            "params": hidden,
            "weight_decay": s.weight_decay,
            "use_muon": True,
            "lr": s.lr,
            "momentum": 0.95,
        },
        {
            "params": [p for p in others if p.dim() > 1],
            "weight_decay": s.weight_decay,
            "lr": s.lr,
            **adamw,
        },
        {"params": [p for p in others if p.dim() <= 1], "weight_decay": 0.0, "lr": s.lr, **adamw},
    ]
    return pytorch_optimizer.Muon(
        [group for group in groups if group["params"]], lr=s.lr, use_adjusted_lr=True
    )


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then cosine down to a tenth of the peak."""
    settings = recipe.distill
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, settings.steps - warmup)
    return settings.lr * (0.55 + 0.45 * math.cos(math.pi * done))


# Slices without a part in a step


@contextmanager
def untouched(ta: TA, trained: dict[str, int], optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Take a step within: the weights beyond the sizes ``trained``, and their moments, stay as before.

    Their gradient is zero, but decay and momentum would move them all the same. What an optimizer
    knows about a matrix as a whole (the statistics and roots of Shampoo and SOAP, and SOAP's
    moments, which lie in their eigenbases) is not theirs alone: it has seen a gradient with zeros.
    """
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    if any(trained[axis.name] < axis.size for axis in ta.axes):
        plan = cut.Cut(ta.axes, trained, {name: p.shape for name, p in ta.model.named_parameters()})
        for name, parameter in ta.model.named_parameters():
            # layers that were left out have none
            if name in plan.parts and parameter.grad is not None:
                mask = plan.mask(name, parameter)
                moments = _moments(optimizer.state.get(parameter, {}), plan.parts[name])
                same = [t for t in moments if t.shape == parameter.shape]
                kept += [(t, t.detach().clone(), mask) for t in (parameter, *same)]
    yield
    with torch.no_grad():
        for tensor, before, mask in kept:
            tensor.copy_(torch.where(mask, tensor, before))


def _moments(state: dict[str, Any], cuts: list[tuple[int, Any]]) -> list[Tensor]:
    """The tensors of a parameter's state that speak of each of its numbers, units being cut off.

    cuts: the dimensions in which units are cut off, and where.
    """
    bases = state.get("Q") or []  # SOAP's, one for each dimension, and empty for one that is large
    if any(len(bases[dim]) for dim, _ in cuts if bases):
        return []
    grafted = vars(state["graft"]) if "graft" in state else {}  # Shampoo's
    values = (*state.values(), *grafted.values())
    return [value for value in values if isinstance(value, Tensor)]


# What a checkpoint keeps: tensors and numbers by their path in the state, never a pickle


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor and number inside nested dicts, lists and plain objects, with its path."""
    if isinstance(node, (Tensor, int, float, bool, str)) or node is None:
        yield path, node
        return
    for key, value in _items(node):
        yield from leaves(value, f"{path}/{key}")


def fill(node: Any, found: dict[str, Any], path: str = "") -> None:
    """Set every tensor and number inside ``node`` to what ``found`` has at its path. The
    counterpart of ``leaves``.
    """
    for key, value in list(_items(node)):
        here = f"{path}/{key}"
        if isinstance(value, Tensor):
            processes.scatter(value, found[here])
        elif isinstance(value, (int, float, bool, str)) or value is None:
            if here in found:
                _put(node, key, found[here])
        else:
            fill(value, found, here)


def _items(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, (list, tuple)):
        yield from enumerate(node)
    elif hasattr(node, "__dict__"):
        yield from vars(node).items()


def _put(node: Any, key: Any, value: Any) -> None:
    if isinstance(node, (dict, list)):
        node[key] = value
    elif not isinstance(node, tuple):
        setattr(node, key, value)


def state_of(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's tensors and its numbers, by path."""
    state = optimizer.state_dict()
    groups = [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]
    found = dict(
        leaves({"state": {str(k): v for k, v in state["state"].items()}, "groups": groups})
    )
    tensors = {
        path: processes.gathered(t.detach()).clone().contiguous()
        for path, t in found.items()
        if isinstance(t, Tensor)
    }
    return tensors, {path: value for path, value in found.items() if path not in tensors}


@torch.no_grad()
def restore(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]
) -> None:
    """Put ``state_of``'s answer back into a fresh optimizer.

    A step at learning rate 0 makes the state, whatever it consists of; then it is filled. The
    weights stay as they are.
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
    state = {
        str(index): optimizer.state[p] for index, p in enumerate(parameters) if p in optimizer.state
    }
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    fill({"state": state, "groups": groups}, {**tensors, **numbers})
    for own, filled in zip(optimizer.param_groups, groups, strict=True):
        own.update(filled)
