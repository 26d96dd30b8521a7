"""Losses of classes: cross-entropy and softened divergences, a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from matta_cli.losses.targets import Counts, Logits, Losses, Target, Term, TopK

IGNORED = -100  # a label that is not predicted

# a divergence's gradient for its other side is that of its mirror image
_MIRROR = {"forward": "reverse", "reverse": "forward", "js": "js"}

# Logits at a time, in float32. On a CPU few enough that the allocator keeps the memory (8 MiB), or,
# where they are made from hidden states, enough for an efficient matrix product (16 MiB: at 32 a
# step takes as long, but what glibc keeps of pieces just below its largest threshold is a tenth of
# the peak); on CUDA enough to fill it.
_CHUNK, _PRODUCT_CHUNK, _CUDA_CHUNK = 1 << 21, 1 << 22, 1 << 26


def counts(labels: Tensor) -> Counts:
    """What the losses of classes are averaged over: the labels that count, and all positions."""
    return {"labels": float((labels != IGNORED).sum()), "outputs": float(labels.numel())}


def of_classes(
    logits: Logits,
    labels: Tensor,
    terms: Sequence[Term],
    over: Counts,
    temperature: float,
    divergence: str,
) -> Losses:
    """The weighted sum of terms, and each of them, for ``logits`` [..., classes].

    labels: int64 [...]. They (and Teachers that gave only labels) make a cross-entropy; Teachers
    the divergence of the distributions softened by ``temperature``, times its square (Hinton et al.
    2015, arXiv 1503.02531). Sums over rows are divided by ``over`` (see ``counts``). Gradients
    reach the logits, and a target that requires them.

    All terms share one pass over the rows, a few at a time, with gradients in closed form: a
    softmax over a large vocabulary that autograd records would keep several float32 copies of all
    logits.
    """
    parts = []
    tensors: list[Tensor | None] = [*logits.tensors]
    for term in terms:
        target = labels if term.target is None else term.target
        if isinstance(target, Tensor):
            scale = 1 / max(1.0, over["labels"])
            parts.append(_Part(scale, term.weight, target.flatten(), 1.0, ""))
        else:
            scale = temperature**2 / max(1.0, over["outputs"])
            parts.append(_Part(scale, term.weight, target, temperature, divergence))
        tensors += target.tensors if isinstance(target, Logits) else (None, None, None)
    total, values = _Summed.apply(logits, parts, *tensors)
    return total, dict(zip((term.name for term in terms), values.unbind(), strict=True))


@dataclass(frozen=True)
class _Part:
    """One term as the rows see it. scale: of the value. weight: in the sum of all terms."""

    scale: float
    weight: float
    target: Target
    temperature: float
    divergence: str


class _Gradient:
    """Gathers the gradient of ``Logits`` from that of their rows."""

    def __init__(self, logits: Target, prepared: Target) -> None:
        # nothing else has tensors that require a gradient
        assert isinstance(logits, Logits) and isinstance(prepared, Logits)
        hidden, weight, bias = logits.tensors
        self.prepared, self.shape = prepared, hidden.shape
        self.hidden = torch.empty_like(hidden.flatten(0, -2))
        # in float32 whatever the product's type: it is a sum over all rows
        self.weight = None if weight is None else torch.zeros_like(weight, dtype=torch.float32)
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)

    def add(self, here: slice, grad: Tensor) -> None:
        """Take the gradient of the rows ``here``, float32 [n, classes]."""
        if self.weight is None or self.prepared.weight is None:
            self.hidden[here] = grad
            return
        if self.bias is not None:
            self.bias += grad.sum(0)
        grad = grad.to(self.prepared.weight.dtype)
        self.hidden[here] = grad @ self.prepared.weight
        rows = self.prepared.hidden[here]
        if grad.dtype == torch.float32:
            self.weight.addmm_(grad.T, rows)
        else:
            self.weight += grad.T @ rows

    def times(self, factor: Tensor) -> list[Tensor | None]:
        """The gradients of ``Logits.tensors``, scaled in place."""
        gradients = [self.hidden.view(self.shape), self.weight, self.bias]
        return [None if gradient is None else gradient.mul_(factor) for gradient in gradients]


class _Summed(torch.autograd.Function):
    """The weighted sum of parts, and each one's value; the forward pass makes the gradients.

    tensors: three each of the logits and of every part's target, so that autograd knows of them.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Logits, parts: Sequence[_Part], *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        needed = ctx.needs_input_grad[2:]
        wanted = [any(needed[i : i + 3]) for i in range(0, len(tensors), 3)]
        model, given = logits.prepared(), [part.target for part in parts]
        targets = [t.prepared() if isinstance(t, Logits) else t for t in given]
        own = _Gradient(logits, model) if wanted[0] else None
        each = zip(parts, targets, wanted[1:], strict=True)
        theirs = [_Gradient(part.target, t) if need else None for part, t, need in each]
        values = torch.zeros(len(parts), device=model.hidden.device, dtype=torch.float32)
        for here in chunks(model, *given):
            z, summed = model.part(here), None
            softened: dict[float, Tensor] = {}
            for k, (part, target, back) in enumerate(zip(parts, targets, theirs, strict=True)):
                tau, factor = part.temperature, part.weight * part.scale
                if tau not in softened:
                    softened[tau] = torch.log_softmax(z / tau, -1)
                log_p = softened[tau]
                if isinstance(target, Tensor):
                    value, grad = _cross_entropy(log_p, target[here], wanted[0])
                else:
                    log_q = _log_q(target, here, log_p, tau)
                    value, grad = _divergence(part.divergence, log_p, log_q, tau, wanted[0])
                    if back is not None:
                        mirror = _MIRROR[part.divergence]
                        other = _divergence(mirror, log_q, log_p, tau, True)[1]
                        assert other is not None
                        back.add(here, other.mul_(factor))
                values[k] += value * part.scale
                if summed is None:
                    summed = None if grad is None else grad.mul_(factor)
                elif grad is not None:
                    summed.add_(grad, alpha=factor)
            if own is not None and summed is not None:
                own.add(here, summed)
        ctx.gradients = [own, *theirs]
        ctx.mark_non_differentiable(values)
        weights = torch.tensor([part.weight for part in parts], device=values.device)
        return (values * weights).sum(), values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gathered, ctx.gradients = ctx.gradients, None  # scaled in place, so they serve once
        if gathered is None:
            raise RuntimeError("This loss has been differentiated before; compute it again.")
        gradients: list[Tensor | None] = []
        for gradient in gathered:
            gradients += [None] * 3 if gradient is None else gradient.times(upstream)
        return None, None, *gradients


def chunks(model: Logits, *others: Target) -> list[slice]:
    """The rows of ``prepared`` logits, so many at a time as memory is spared for."""
    products = [t for t in (model, *others) if isinstance(t, Logits) and t.weight is not None]
    most = _PRODUCT_CHUNK if products else _CHUNK
    if model.hidden.device.type == "cuda":
        most = _CUDA_CHUNK
    count, step = model.count, max(1, most // model.classes)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _log_q(target: Logits | TopK, here: slice, log_p: Tensor, temperature: float) -> Tensor:
    """A few rows of a target's softened log probabilities, [n, classes]."""
    if isinstance(target, TopK):
        return target.log_q(here, log_p)
    return torch.log_softmax(target.part(here).div_(temperature), -1)


def _cross_entropy(log_p: Tensor, labels: Tensor, need: bool) -> tuple[Tensor, Tensor | None]:
    """Summed cross-entropy of a few rows, and its gradient: softmax less the one-hot label."""
    counted = (labels != IGNORED).to(log_p.dtype)
    at = labels.clamp(min=0)[:, None]
    value = -(log_p.gather(1, at)[:, 0] * counted).sum()
    if not need:
        return value, None
    grad = log_p.exp()
    grad.scatter_add_(1, at, -torch.ones_like(at, dtype=grad.dtype)).mul_(counted[:, None])
    return value, grad


def _divergence(
    kind: str, log_p: Tensor, log_q: Tensor, temperature: float, need: bool
) -> tuple[Tensor, Tensor | None]:
    """Summed divergence of the model's rows from the target's, and its gradient for the logits.

    log_p: [n, classes], of the model; log_q: of the target. forward: KL(q || p), the paper's.
    reverse: KL(p || q) (Gu et al. 2024, arXiv 2306.08543). js: Jensen-Shannon.
    """
    if kind == "forward":
        q = log_q.exp()
        value = torch.dot(q.flatten(), (log_q - log_p).flatten())
        return value, log_p.exp().sub_(q).div_(temperature) if need else None
    p = log_p.exp()
    if kind == "reverse":
        gap = log_p - log_q
        rows = (p * gap).sum(-1, keepdim=True)
        return rows.sum(), p.mul_(gap.sub_(rows)).div_(temperature) if need else None
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    gap = log_p - log_m
    rows = (p * gap).sum(-1, keepdim=True)
    theirs = torch.dot(log_q.exp().flatten(), (log_q - log_m).flatten())
    return (rows.sum() + theirs) / 2, p.mul_(gap.sub_(rows)).div_(2 * temperature) if need else None
