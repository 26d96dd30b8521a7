"""Losses of classes: cross-entropy and softened divergences, a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from matta_cli.losses.targets import Logits, Term, TopK

IGNORED = -100  # a label that is not predicted


DIVERGENCES = ("forward", "reverse", "js")


# Logits at a time, in float32. On a CPU few enough that the allocator keeps the memory (8 MiB), or,
# where they are made from hidden states, enough for an efficient matrix product (16 MiB: at 32 a
# step takes as long, but what glibc keeps of pieces just below its largest threshold is a tenth of
# the peak); on CUDA enough to fill it.
_CHUNK, _PRODUCT_CHUNK, _CUDA_CHUNK = 1 << 21, 1 << 22, 1 << 26


def counts(labels: Tensor) -> dict[str, float]:
    """What the losses of classes are averaged over: the labels that count, and all positions."""
    return {"labels": float((labels != IGNORED).sum()), "outputs": float(labels.numel())}


def of_classes(
    logits: Logits,
    labels: Tensor,
    terms: Sequence[Term],
    over: dict[str, float],
    temperature: float,
    divergence: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of terms, and each of them (detached), for ``logits`` [..., classes] and
    ``labels`` int64 [...].

    Labels (and Teachers that gave only labels): cross-entropy. Teachers: the divergence of the
    distributions softened by ``temperature``, times its square. Sums over rows are divided by
    ``over`` (see ``counts``). Gradients reach the logits, and a target that requires them. All
    terms share one pass over the rows, a few at a time, with gradients in closed form: a softmax
    over a large vocabulary that autograd records would keep several float32 copies of all logits.
    """
    parts = []
    tensors: list[Tensor | None] = [*logits.tensors]
    for term in terms:
        hard = labels.flatten() if term.target is None else term.target
        if isinstance(hard, Tensor):
            parts.append(_Part(1 / max(1.0, over["labels"]), term.weight, hard.flatten(), 1.0, ""))
        else:
            scale = temperature**2 / max(1.0, over["outputs"])
            parts.append(_Part(scale, term.weight, hard, temperature, divergence))
        tensors += hard.tensors if isinstance(hard, Logits) else (None, None, None)
    total, values = _Summed.apply(logits, parts, *tensors)
    return total, dict(zip((term.name for term in terms), values.unbind(), strict=True))


@dataclass(frozen=True)
class _Part:
    """One term as the rows see it. scale: of the value. weight: in the sum of all terms."""

    scale: float
    weight: float
    target: Logits | TopK | Tensor
    temperature: float
    divergence: str


class _Gradient:
    """Gathers the gradient of ``Logits`` from that of their rows."""

    def __init__(self, like: tuple[Tensor, Tensor | None, Tensor | None], prepared: Logits) -> None:
        hidden, weight, bias = like
        self.prepared, self.shape = prepared, hidden.shape
        self.hidden = torch.empty_like(hidden.flatten(0, -2))
        # in float32 whatever the product's type: it is a sum over all rows
        self.weight = None if weight is None else torch.zeros_like(weight, dtype=torch.float32)
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)

    def add(self, here: slice, grad: Tensor) -> None:
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
        found = [self.hidden.view(self.shape), self.weight, self.bias]
        return [None if g is None else g.mul_(factor) for g in found]


class _Summed(torch.autograd.Function):
    """The weighted sum of parts, and the value of each, over all rows. Gradients are made in the
    forward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Logits, parts: Sequence[_Part], *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        triples = [tensors[i : i + 3] for i in range(0, len(tensors), 3)]
        wanted = [any(ctx.needs_input_grad[2 + i : 5 + i]) for i in range(0, len(tensors), 3)]
        model = logits.prepared()
        gradients: list[_Gradient | None] = [_Gradient(triples[0], model) if wanted[0] else None]  # type: ignore[arg-type]
        targets: list[Logits | TopK | Tensor] = []
        for part, triple, need in zip(parts, triples[1:], wanted[1:], strict=True):
            targets.append(
                part.target.prepared() if isinstance(part.target, Logits) else part.target
            )
            gradients.append(_Gradient(triple, targets[-1]) if need else None)  # type: ignore[arg-type]
        values = torch.zeros(len(parts), device=model.hidden.device, dtype=torch.float32)
        for here in chunks(model, *(p.target for p in parts if isinstance(p.target, Logits))):
            z, own = model.part(here), None
            softened: dict[float, Tensor] = {}
            for k, (part, target) in enumerate(zip(parts, targets, strict=True)):
                if part.temperature not in softened:
                    softened[part.temperature] = torch.log_softmax(z / part.temperature, -1)
                log_p, factor = softened[part.temperature], part.weight * part.scale
                if isinstance(target, Tensor):
                    value, grad = _cross_entropy(log_p, target[here], wanted[0])
                else:
                    if isinstance(target, TopK):
                        log_q = target.log_q(here, log_p)
                    else:
                        log_q = torch.log_softmax(target.part(here).div_(part.temperature), -1)
                    value, grad = _divergence(
                        part.divergence, log_p, log_q, part.temperature, wanted[0]
                    )
                    back = gradients[k + 1]
                    # a divergence's gradient for its other side is that of its mirror image
                    if back is not None:
                        mirrored = {"forward": "reverse", "reverse": "forward"}.get(
                            part.divergence, part.divergence
                        )
                        theirs = _divergence(mirrored, log_q, log_p, part.temperature, True)[1]
                        assert theirs is not None
                        back.add(here, theirs.mul_(factor))
                values[k] += value * part.scale
                if grad is not None:
                    own = grad.mul_(factor) if own is None else own.add_(grad, alpha=factor)
            if gradients[0] is not None and own is not None:
                gradients[0].add(here, own)
        ctx.gradients = gradients
        ctx.mark_non_differentiable(values)
        weights = torch.tensor([part.weight for part in parts], device=values.device)
        return (values * weights).sum(), values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place, so they serve once
        if gradients is None:
            raise RuntimeError("This loss has been differentiated before; compute it again.")
        found: list[Tensor | None] = []
        for gradient in gradients:
            found += [None] * 3 if gradient is None else gradient.times(upstream)
        return None, None, *found


def chunks(model: Logits, *others: Logits) -> list[slice]:
    """The rows of ``prepared`` logits, so many at a time as memory is spared for."""
    count, product = model.count, any(logits.weight is not None for logits in (model, *others))
    most = (
        _CUDA_CHUNK if model.hidden.device.type == "cuda" else _PRODUCT_CHUNK if product else _CHUNK
    )
    step = max(1, most // model.classes)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


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
    """Summed divergence of the model's rows ``log_p`` from the target's ``log_q``, and its gradient
    for the model's logits.

    forward: KL(q || p), the paper's. reverse: KL(p || q) (Gu et al. 2024, arXiv 2306.08543). js:
    Jensen-Shannon.
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
