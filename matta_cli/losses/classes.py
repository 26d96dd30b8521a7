"""Losses of classes: cross-entropy and the softened divergence, a few rows at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from matta_cli.losses.targets import Counts, Logits, Losses, Rows, Sampled, Target, Term, TopK

IGNORED = -100  # a label that is not predicted

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
    backend: str = "",
    counted: Tensor | None = None,
) -> Losses:
    """The weighted sum of terms, and each of them, for ``logits`` [..., classes].

    labels: int64 [...]. They (and Teachers that gave only labels) make a cross-entropy; Teachers
    the divergence of the distributions softened by ``temperature``, KL(target || model), times its
    square (Hinton et al. 2015, arXiv 1503.02531). Sums over rows are divided by ``over`` (see
    ``counts``). Gradients reach the logits; a target is a constant. backend: of torch.compile, for
    what is done to each few rows; empty: not compiled. counted: bool [...], the positions that have
    a part in the terms; None: all.

    All terms share one pass over the rows, a few at a time, with gradients in closed form: a
    softmax over a large vocabulary that autograd records would keep several float32 copies of all
    logits.
    """
    parts = []
    for term in terms:
        target = labels if term.target is None else term.target
        if isinstance(target, Tensor):
            scale = 1 / max(1.0, over["labels"])
            parts.append(_Part(scale, term.weight, target.flatten(), 1.0))
        else:
            scale = temperature**2 / max(1.0, over["outputs"])
            parts.append(_Part(scale, term.weight, target, temperature))
    rows = None if counted is None else counted.flatten().nonzero().flatten()
    if rows is not None:
        backend = ""  # a graph is of one number of rows, and these are of many
    total, values = _Summed.apply(logits, parts, backend, rows, *logits.tensors)
    return total, dict(zip((term.name for term in terms), values.unbind(), strict=True))


@dataclass(frozen=True)
class _Part:
    """One term as the rows see it. scale: of the value. weight: in the sum of all terms."""

    scale: float
    weight: float
    target: Target
    temperature: float


class _Gradient:
    """Gathers the gradient of ``Logits`` from that of their rows."""

    def __init__(self, logits: Logits, prepared: Logits, some: bool = False) -> None:
        """some: not all rows will be added; the others' gradient is zero."""
        hidden, weight, bias = logits.tensors
        self.prepared, self.shape = prepared, hidden.shape
        made = torch.zeros_like if some else torch.empty_like
        self.hidden = made(hidden.flatten(0, -2))
        # in float32 whatever the product's type: it is a sum over all rows
        self.weight = None if weight is None else torch.zeros_like(weight, dtype=torch.float32)
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)

    def add(self, here: Rows, grad: Tensor) -> None:
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

    rows: int64 [n], those that have a part; None: all. tensors: those of the logits, so that
    autograd knows of them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Logits,
        parts: Sequence[_Part],
        backend: str,
        rows: Tensor | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        model, given = logits.prepared(), [part.target for part in parts]
        targets = [t.prepared() if isinstance(t, Logits) else t for t in given]
        own = _Gradient(logits, model, rows is not None) if any(ctx.needs_input_grad) else None
        sums = torch.zeros(len(parts), device=model.hidden.device, dtype=torch.float32)
        scales = sums.new_tensor([part.scale for part in parts])
        weights = sums.new_tensor([part.weight for part in parts])
        known = any(isinstance(target, (TopK, Sampled)) for target in targets)
        summed = _compiled(backend) if backend and not known else _rows
        temperatures = [part.temperature for part in parts]
        for here in chunks(model, *given, rows=rows):
            some = [_some(target, here) for target in targets]
            found, gradient = summed(
                model.part(here), some, temperatures, weights * scales, own is not None
            )
            sums += found
            if own is not None and gradient is not None:
                own.add(here, gradient)
        values = sums * scales
        ctx.gradient = own
        ctx.mark_non_differentiable(values)
        return (values * weights).sum(), values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None  # scaled in place, so it serves once
        if gradient is None:
            raise RuntimeError("This loss has been differentiated before; compute it again.")
        return None, None, None, None, *gradient.times(upstream)


def chunks(model: Logits, *others: Target, rows: Tensor | None = None) -> list[Rows]:
    """The rows of ``prepared`` logits, or these, so many at a time as memory is spared for."""
    products = [t for t in (model, *others) if isinstance(t, Logits) and t.weight is not None]
    most = _PRODUCT_CHUNK if products else _CHUNK
    if model.hidden.device.type == "cuda":
        most = _CUDA_CHUNK
    step = max(1, most // model.classes)
    if rows is not None:
        return list(rows.split(step))
    count = model.count
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _some(target: Target, here: Rows) -> Tensor | TopK | Sampled:
    """A few rows of a target: labels, fresh float32 logits, or what is known of them."""
    if isinstance(target, Tensor):
        return target[here]
    if isinstance(target, Sampled):
        return target.at(here)
    if isinstance(target, Logits):
        return target.part(here)
    return TopK(target.log_probs[here], target.index[here], target.rest[here], target.classes)


@functools.cache
def _compiled(backend: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    return torch.compile(_rows, backend=backend, dynamic=False)


def _rows(
    z: Tensor,
    targets: Sequence[Tensor | TopK | Sampled],
    temperatures: Sequence[float],
    factors: Tensor,
    need: bool,
) -> tuple[Tensor, Tensor | None]:
    """The value of each term on a few rows [n, classes], summed over them, without its scale.

    factors: of the terms, by which they are summed up into the gradient of the logits ``z``, the
    second of what is returned, where there is ``need`` of it. A target with fewer classes is
    followed in these alone. Changes ``z`` and the targets.
    """
    values: list[Tensor] = []
    gradient: Tensor | None = None
    softened: dict[tuple[float, int], Tensor] = {}
    for k, (target, tau) in enumerate(zip(targets, temperatures, strict=True)):
        count = _classes(target, z.shape[-1])
        if (tau, count) not in softened:
            softened[tau, count] = torch.log_softmax(z[:, :count] / tau, -1)
        log_p = softened[tau, count]
        if isinstance(target, Tensor) and not target.is_floating_point():
            value, own = _cross_entropy(log_p, target, need)
        elif isinstance(target, Sampled):
            value, own = _expected(log_p, target, tau, need)
        else:
            soft = target.log_q(slice(None), log_p) if isinstance(target, TopK) else target
            log_q = soft if isinstance(target, TopK) else torch.log_softmax(soft.div_(tau), -1)
            value, own = _divergence(log_p, log_q, tau, need)
        values.append(value)
        if own is not None:
            own = own.mul_(factors[k])
            if gradient is None:
                gradient = own if count == z.shape[-1] else torch.zeros_like(z)
            if gradient is not own:
                gradient[:, :count].add_(own)
    return torch.stack(values), gradient


def _classes(target: Tensor | TopK | Sampled, most: int) -> int:
    """How many classes a target knows."""
    if isinstance(target, (TopK, Sampled)):
        return target.classes or most
    return target.shape[-1] if target.is_floating_point() else most


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
    log_p: Tensor, log_q: Tensor, temperature: float, need: bool
) -> tuple[Tensor, Tensor | None]:
    """KL(q || p), summed over rows, and its gradient for the model's logits.

    log_p: [n, classes], of the model; log_q: of the target.
    """
    q = log_q.exp()
    value = torch.dot(q.flatten(), (log_q - log_p).flatten())
    return value, log_p.exp().sub_(q).div_(temperature) if need else None


def _expected(
    log_p: Tensor, target: Sampled, temperature: float, need: bool
) -> tuple[Tensor, Tensor | None]:
    """What is on average KL(q || p), summed over rows, and its gradient, by what was drawn of q."""
    q = target.probabilities(log_p)
    value = -torch.dot(q.flatten(), log_p.flatten()) - target.entropy.sum().to(q.dtype)
    return value, log_p.exp().sub_(q).div_(temperature) if need else None
