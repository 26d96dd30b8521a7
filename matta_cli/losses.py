"""Losses as plain functions: softened KL for classes, and pointwise, pairwise and listwise losses for ranking.

Every function returns a float32 scalar. Losses are in nats; those with a temperature are multiplied by its square, so that
their gradients keep their size whatever the temperature (Hinton et al. 2015, arXiv 1503.02531), and are 0 where both models
agree.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100  # a label that is not predicted
_CHUNK = 1 << 24  # logits at a time in float32 (64 MiB): for a vocabulary of 50,257, 333 tokens


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of ``logits`` [..., classes] for ``labels`` [...] (integers; ``IGNORED`` ones do not count)."""
    labels = labels.flatten()
    total = _summed(lambda a, b: F.cross_entropy(a.float(), b, ignore_index=IGNORED, reduction="sum"), logits, labels)
    return total / (labels != IGNORED).sum().clamp(min=1)


def kl(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || model) of the softened distributions times temperature², mean over positions.

    logits, teacher: [..., classes] of the same shape. Hinton et al. 2015, arXiv 1503.02531.
    """

    def chunk(model: Tensor, target: Tensor) -> Tensor:
        log_p = F.log_softmax(model.float() / temperature, dim=-1)
        log_q = F.log_softmax(target.float() / temperature, dim=-1)
        return F.kl_div(log_p, log_q, reduction="sum", log_target=True)

    total = _summed(chunk, logits, teacher.flatten(0, -2))
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


def _summed(chunk: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor) -> Tensor:
    """The sum of ``chunk(logits, targets)`` over slices of positions.

    A softmax over a large vocabulary keeps float32 copies of all logits for the backward pass, which is most of the memory
    of a step; so large inputs go slice by slice, and each slice is computed again in the backward pass.
    """
    rows = logits.flatten(0, -2)
    step = max(1, _CHUNK // rows.shape[-1])
    if len(rows) <= step:
        return chunk(rows, targets)
    total = torch.zeros((), device=rows.device)
    for piece in zip(rows.split(step), targets.split(step), strict=True):  # not by slicing: each slice's gradient is full-size
        total = total + checkpoint(chunk, *piece, use_reentrant=False, preserve_rng_state=False)
    return total


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
