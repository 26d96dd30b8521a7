"""Optimizers by name, the learning rate, and steps that train a part of the TA."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli.adapter import Sizes
from matta_cli.errors import MattaError, install
from matta_cli.models.ta import TA
from matta_cli.nested.cut import Cut
from matta_cli.settings.recipe import DistillSettings


def make_optimizer(
    settings: DistillSettings, model: nn.Module, extra: list[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer over a model and ``extra`` parameters; vectors (biases, norms) are not decayed.

    AdamW is torch's, fused on CUDA. Muon, for matrices other than embeddings and with AdamW for all
    else, is torch's where it has one. Shampoo (Gupta et al. 2018, arXiv 1802.09568; the blocked
    variant of Anil et al. 2020, 2002.09018) and SOAP (2409.11321) are pytorch-optimizer's, an
    extra. Raises ``MattaError`` where that package is needed and missing.
    """
    name, lr = settings.optimizer, settings.lr
    parameters = [p for p in [*model.parameters(), *extra] if p.requires_grad]
    decayed = {"weight_decay": settings.weight_decay}
    matrices: dict[str, Any] = {"params": [p for p in parameters if p.dim() > 1], **decayed}
    vectors = {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0}
    fused = device.type == "cuda" or None
    if name == "adamw":
        return torch.optim.AdamW([matrices, vectors], lr=lr, fused=fused)
    if name == "muon":
        embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
        looked_up = {id(p) for module in embeddings for p in module.parameters()}
        own = [p for p in matrices["params"] if p.dim() == 2 and id(p) not in looked_up]
        rest = [p for p in matrices["params"] if p.dim() > 2 or id(p) in looked_up]
        others = [{"params": rest, **decayed}, vectors]
        return _muon({"params": own, **decayed}, [g for g in others if g["params"]], lr, fused)
    pytorch_optimizer, grafting = _package(name)
    groups = [group for group in (matrices, vectors) if group["params"]]
    if name == "soap":
        return pytorch_optimizer.SOAP(groups, lr=lr)
    return pytorch_optimizer.ScalableShampoo(
        groups,
        lr=lr,
        decoupled_weight_decay=True,
        decoupled_learning_rate=False,
        graft_type=grafting.RMSPROP,
        moving_average_for_momentum=True,
        start_preconditioning_step=10,
        preconditioning_compute_steps=10,
        block_size=256,
    )


def _package(name: str) -> tuple[Any, Any]:
    """pytorch-optimizer, and its kinds of grafting. name: the optimizer that it is needed for."""
    try:
        import pytorch_optimizer
        from pytorch_optimizer.optimizer.shampoo import LayerWiseGrafting
    except ImportError:
        needs = f"The optimizer {name!r} needs pytorch-optimizer"
        raise MattaError(f"{needs}: {install('optimizers')}.") from None
    return pytorch_optimizer, LayerWiseGrafting


def _muon(
    matrices: dict[str, Any], others: list[dict[str, Any]], lr: float, fused: bool | None
) -> torch.optim.Optimizer:
    """Muon for matrices, its steps as large as AdamW's (arXiv 2502.16982)."""
    if not matrices["params"]:
        return torch.optim.AdamW(others, lr=lr, fused=fused)
    if not hasattr(torch.optim, "Muon"):  # torch below 2.9
        adamw = {"lr": lr, "use_muon": False, "betas": (0.9, 0.999), "eps": 1e-8}
        groups = [{**matrices, "use_muon": True, "lr": lr, "momentum": 0.95}]
        groups += [{**group, **adamw} for group in others]
        return _package("muon")[0].Muon(groups, lr=lr, use_adjusted_lr=True)
    muon = torch.optim.Muon([matrices], lr=lr, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    if not others:
        return muon
    return _Together([muon, torch.optim.AdamW(others, lr=lr, fused=fused)])


class _Together(torch.optim.Optimizer):
    """Several optimizers, each of its own parameters, as one."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        groups = [group for part in parts for group in part.param_groups]
        super().__init__([p for group in groups for p in group["params"]], {})
        self.parts, self.param_groups = parts, groups
        for part in parts:
            part.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step of each. closure: not supported, as nowhere here."""
        for part in self.parts:
            part.step()


def learning_rate(settings: DistillSettings, step: int) -> float:
    """Linear warm-up, then as ``settings.schedule`` has it."""
    s = settings
    warmup = max(1, round(s.warmup * s.steps))
    if step < warmup:
        return s.lr * (step + 1) / warmup
    if s.schedule == "cosine":
        done = (step - warmup) / max(1, s.steps - warmup)
        return s.lr * (0.55 + 0.45 * math.cos(math.pi * done))
    decay = max(1, round(s.decay * s.steps))
    return s.lr * min(1.0, (s.steps - step) / decay)


@contextmanager
def untouched(ta: TA, trained: Sizes, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Take a step within: the weights beyond the sizes ``trained``, and their moments, stay.

    Their gradient is zero, but decay and momentum would move them all the same. What an optimizer
    knows about a matrix as a whole (the statistics and roots of Shampoo and SOAP, and SOAP's
    moments, which lie in their eigenbases) is not theirs alone: it has seen a gradient with zeros.
    """
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    if any(trained[axis.name] < axis.size for axis in ta.axes):
        named = dict(ta.model.named_parameters())
        plan = Cut(ta.axes, trained, {name: p.shape for name, p in named.items()})
        for name, parameter in named.items():
            # layers that were left out have no gradient
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
