"""Losses of rows: cosines of embeddings; pointwise, pairwise and listwise losses of ranking.

All return a sum, which the caller divides by the number of sentences, rows, pairs or groups, and
compute in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_distance(own: Tensor, target: Tensor) -> Tensor:
    """1 - cos of each embedding in ``own`` [n, d] and its target [n, d], summed over n."""
    return (1 - F.cosine_similarity(own.float(), target.float(), dim=-1)).sum()


def relation(own: Tensor, target: Tensor) -> Tensor:
    """Squared error of the cosines of each sentence with the others, summed over the sentences.

    own: [n, d], target: [n, e]: the numbers of coordinates may differ (Park et al. 2019, arXiv
    1904.05068). It is averaged over the others; 0 for one sentence.
    """
    own, target = (F.normalize(e.float(), dim=-1) for e in (own, target))
    gap = own @ own.T - target @ target.T  # the diagonal is 0
    return gap.square().sum() / max(1, len(own) - 1)


def pointwise(scores: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of ``scores`` [rows] for ``labels`` [rows], summed over the rows.

    Labels are relevance probabilities: grades above 1 count as 1, negative labels (LibSVM's -1) as
    0.
    """
    relevant = labels.float().clamp(0, 1)
    return F.binary_cross_entropy_with_logits(scores.float(), relevant, reduction="sum")


def pointwise_distill(scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy for the Teacher's softened probabilities [rows], less the Teacher's entropy."""
    own, target = scores.float() / temperature, teacher.float() / temperature
    return bernoulli_kl(own, target).sum() * temperature**2


def pairwise(scores: Tensor, labels: Tensor, group: Tensor) -> Tensor:
    """RankNet's logistic loss, summed over the pairs of a group's rows that differ in label.

    scores, labels, group: [rows]; group holds integers in any order. Burges et al. 2005, "Learning
    to Rank using Gradient Descent".
    """
    i, j = pairs(group)
    sign = torch.sign(labels[i].float() - labels[j].float())
    return (F.softplus(-sign * (scores[i].float() - scores[j].float())) * (sign != 0)).sum()


def pairwise_distill(scores: Tensor, teacher: Tensor, group: Tensor, temperature: float) -> Tensor:
    """RankNet with the Teacher's soft preferences as targets, over all pairs of a group.

    The preference is sigmoid(margin / temperature). That is RankNet's own loss for uncertain pairs
    (Burges et al. 2005, section 3) less the Teacher's entropy. Rather than a squared difference of
    margins, because it is on the scale of ``pairwise`` and does not ask for the Teacher's units.
    """
    i, j = pairs(group)
    margin, target = scores[i].float() - scores[j].float(), teacher[i].float() - teacher[j].float()
    return bernoulli_kl(margin / temperature, target / temperature).sum() * temperature**2


def listwise(scores: Tensor, labels: Tensor, group: Tensor) -> Tensor:
    """ListNet: cross-entropy of the softmax of a group's scores for that of its labels.

    scores, labels, group: [rows]. Summed over the groups. Cao et al. 2007, "Learning to Rank: From
    Pairwise Approach to Listwise Approach".
    """
    log_p, log_q = _log_softmax(scores, group), _log_softmax(labels, group)
    return -(log_q.exp() * log_p).sum()


def listwise_distill(scores: Tensor, teacher: Tensor, group: Tensor, temperature: float) -> Tensor:
    """KL(Teacher || model) of softened scores; the rows of a group are the classes."""
    log_p = _log_softmax(scores / temperature, group)
    log_q = _log_softmax(teacher / temperature, group)
    return (log_q.exp() * (log_q - log_p)).sum() * temperature**2


def pairs(group: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers (i, j) of all pairs within a group, without a matrix of rows x rows."""
    order = torch.argsort(group, stable=True)
    _, sizes = group[order].unique_consecutive(return_counts=True)
    position = torch.arange(len(group), device=group.device)
    # rows that follow in the same group
    partners = sizes.cumsum(0).repeat_interleave(sizes) - 1 - position
    first = position.repeat_interleave(partners)
    start = (partners.cumsum(0) - partners).repeat_interleave(partners)
    second = first + 1 + torch.arange(len(first), device=group.device) - start
    return order[first], order[second]


def bernoulli_kl(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(Teacher || model) of Bernoulli distributions given by their logits, elementwise."""
    target = teacher.sigmoid()
    cross = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return cross - F.binary_cross_entropy_with_logits(teacher, target, reduction="none")


def _log_softmax(scores: Tensor, group: Tensor) -> Tensor:
    """log softmax over the rows of each group: [rows] -> [rows]."""
    scores = scores.float()
    values, index = group.unique(return_inverse=True)
    top = torch.full((len(values),), -torch.inf, device=scores.device)
    top = top.scatter_reduce(0, index, scores.detach(), "amax")
    shifted = scores - top[index]
    return shifted - torch.zeros_like(top).index_add(0, index, shifted.exp()).log()[index]
