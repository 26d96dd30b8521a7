"""Losses as plain functions: softened KL for classes, and pointwise, pairwise and listwise losses for ranking.

Every function returns a float32 scalar. Losses are in nats; those with a temperature are multiplied by its square, so that
their gradients keep their size whatever the temperature (Hinton et al. 2015, arXiv 1503.02531), and are 0 where both models
agree.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100  # a label that is not predicted
# Logits at a time, in float32. On a CPU few enough that the allocator keeps the memory (8 MiB); on CUDA enough to fill it.
_CHUNK, _CUDA_CHUNK = 1 << 21, 1 << 26


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of ``logits`` [..., classes] for ``labels`` [...] (integers; ``IGNORED`` ones do not count)."""
    labels = labels.flatten()
    return _Summed.apply(logits, labels, _cross_entropy_part) / (labels != IGNORED).sum().clamp(min=1)


def kl(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || model) of the softened distributions times temperature², mean over positions.

    logits, teacher: [..., classes] of the same shape. Hinton et al. 2015, arXiv 1503.02531.
    """
    part = partial(_kl_part, temperature=temperature)
    total = _Summed.apply(logits, teacher.detach().flatten(0, -2), part)
    return total * (temperature**2 / max(1, logits.shape[:-1].numel()))


def pointwise(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy of ``scores`` [rows] for ``labels`` [rows].

    Labels are relevance probabilities: grades above 1 count as 1, negative labels (LibSVM's -1) as 0.
    """
    return F.binary_cross_entropy_with_logits(scores.float(), labels.float().clamp(0, 1))


def pointwise_distill(scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Binary cross-entropy of ``scores`` [rows] for the teacher's softened probabilities, less the teacher's entropy."""
    return _bernoulli_kl(scores.float() / temperature, teacher.float() / temperature).mean() * temperature**2


def pairwise(scores: Tensor, labels: Tensor, group: Tensor) -> Tensor:
    """RankNet's logistic loss over all pairs of rows that share a group and differ in label, mean over the pairs.

    scores, labels, group: [rows]; group holds integers in any order. Burges et al. 2005, "Learning to Rank using Gradient
    Descent". Without any such pair the loss is 0.
    """
    i, j = _pairs(group)
    sign = torch.sign(labels[i].float() - labels[j].float())
    losses = F.softplus(-sign * (scores[i].float() - scores[j].float()))
    differs = sign != 0
    return (losses * differs).sum() / differs.sum().clamp(min=1)


def pairwise_distill(scores: Tensor, teacher: Tensor, group: Tensor, temperature: float) -> Tensor:
    """RankNet with the teacher's soft preference sigmoid(margin / temperature) as the target, over all pairs of a group.

    That is RankNet's own loss for uncertain pairs (Burges et al. 2005, section 3) less the teacher's entropy. Rather than a
    squared difference of margins, because it is on the scale of ``pairwise`` and does not ask for the teacher's units.
    """
    i, j = _pairs(group)
    margin, target = scores[i].float() - scores[j].float(), teacher[i].float() - teacher[j].float()
    return _bernoulli_kl(margin / temperature, target / temperature).sum() * (temperature**2 / max(1, len(i)))


def listwise(scores: Tensor, labels: Tensor, group: Tensor) -> Tensor:
    """ListNet: cross-entropy of the softmax of scores for the softmax of labels in each group, mean over the groups.

    scores, labels, group: [rows]. Cao et al. 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach".
    """
    log_p, log_q, groups = _log_softmax(scores, group), _log_softmax(labels, group), group.unique().numel()
    return -(log_q.exp() * log_p).sum() / max(1, groups)


def listwise_distill(scores: Tensor, teacher: Tensor, group: Tensor, temperature: float) -> Tensor:
    """``kl`` with the rows of a group as the classes: KL(teacher || model) of softened scores, mean over the groups."""
    log_p, log_q = _log_softmax(scores / temperature, group), _log_softmax(teacher / temperature, group)
    return (log_q.exp() * (log_q - log_p)).sum() * (temperature**2 / max(1, group.unique().numel()))


def _cross_entropy_part(z: Tensor, labels: Tensor, need: bool) -> tuple[Tensor, Tensor | None]:
    """Summed cross-entropy of a few positions, and its gradient: softmax less the one-hot label."""
    counted = (labels != IGNORED).to(z.dtype)
    at = labels.clamp(min=0)[:, None]
    log_sum = z.logsumexp(-1)
    value = ((log_sum - z.gather(1, at)[:, 0]) * counted).sum()
    if not need:
        return value, None
    grad = z.sub_(log_sum[:, None]).exp_()
    grad.scatter_add_(1, at, -torch.ones_like(at, dtype=z.dtype)).mul_(counted[:, None])
    return value, grad


def _kl_part(z: Tensor, teacher: Tensor, need: bool, *, temperature: float) -> tuple[Tensor, Tensor | None]:
    """Summed KL of a few positions, and its gradient: (softened softmax less the teacher's) / temperature."""
    log_p = torch.log_softmax(z.div_(temperature), -1)
    log_q = torch.log_softmax(teacher.to(z.dtype) / temperature, -1)
    q = log_q.exp()
    value = torch.dot(q.flatten(), log_q.sub_(log_p).flatten())
    return value, log_p.exp_().sub_(q).div_(temperature) if need else None


class _Summed(torch.autograd.Function):
    """The sum of a loss over positions, a few at a time, with its gradient in closed form.

    A softmax over a large vocabulary that autograd records keeps several float32 copies of all logits, which is most of
    the memory of a step and much of its time. Here the only full-size tensor besides the logits is their gradient.
    ``part(z, targets, need)`` may overwrite ``z``, a float32 copy, and returns (sum, gradient of the sum if needed).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, part: Callable[..., tuple[Tensor, Tensor | None]]) -> Tensor:
        rows = logits.detach().flatten(0, -2)
        need = ctx.needs_input_grad[0]
        gradient = torch.empty_like(rows) if need else None
        total = torch.zeros((), device=rows.device, dtype=torch.float32)
        step = max(1, (_CHUNK if rows.device.type == "cpu" else _CUDA_CHUNK) // rows.shape[-1])
        for start in range(0, len(rows), step):
            here = slice(start, start + step)
            value, own = part(rows[here].to(torch.float32, copy=True), targets[here], need)
            total += value
            if gradient is not None and own is not None:
                gradient[here] = own
        ctx.gradient, ctx.shape = gradient, logits.shape
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None  # scaled in place, so it serves once
        if gradient is None:
            raise RuntimeError("This loss has been differentiated before; compute it again.")
        return gradient.mul_(upstream).view(ctx.shape), None, None


def _bernoulli_kl(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || model) of Bernoulli distributions given by their logits, elementwise."""
    target = teacher.sigmoid()
    cross = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return cross - F.binary_cross_entropy_with_logits(teacher, target, reduction="none")


def _pairs(group: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers (i, j) of all unordered pairs of different rows within a group, without a rows x rows matrix."""
    order = torch.argsort(group, stable=True)
    _, sizes = group[order].unique_consecutive(return_counts=True)
    position = torch.arange(len(group), device=group.device)
    partners = sizes.cumsum(0).repeat_interleave(sizes) - 1 - position  # rows that follow in the same group
    first = position.repeat_interleave(partners)
    start = (partners.cumsum(0) - partners).repeat_interleave(partners)
    second = first + 1 + torch.arange(len(first), device=group.device) - start
    return order[first], order[second]


def _log_softmax(scores: Tensor, group: Tensor) -> Tensor:
    """log softmax over the rows of each group: [rows] -> [rows]."""
    scores = scores.float()
    values, index = group.unique(return_inverse=True)
    top = torch.full((len(values),), -torch.inf, device=scores.device).scatter_reduce(0, index, scores.detach(), "amax")
    shifted = scores - top[index]
    return shifted - torch.zeros_like(top).index_add(0, index, shifted.exp()).log()[index]
