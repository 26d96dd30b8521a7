"""Losses as plain functions: softened divergences for classes, cosines for embeddings, and pointwise, pairwise and listwise
losses for ranking.

Losses are in nats and are 0 where both models agree; those with a temperature are multiplied by its square, so that their
gradients keep their size whatever the temperature (Hinton et al. 2015, arXiv 1503.02531).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100  # a label that is not predicted
DIVERGENCES = ("forward", "reverse", "js")
_NEVER = -1e4  # the log of a probability of nothing: times 0 it is 0, which -inf is not
# Logits at a time, in float32. On a CPU few enough that the allocator keeps the memory (8 MiB), or, where they are made
# from hidden states, enough for an efficient matrix product (16 MiB: at 32 a step takes as long, but what glibc keeps of
# pieces just below its largest threshold is a tenth of the peak); on CUDA enough to fill it.
_CHUNK, _PRODUCT_CHUNK, _CUDA_CHUNK = 1 << 21, 1 << 22, 1 << 26


@dataclass(frozen=True)
class Logits:
    """Logits [..., classes]: as they are (``hidden``), or as the product hidden [..., d] x weight [classes, d] + bias.

    As a product they never need to stand whole in memory: losses make the rows that they are at.
    """

    hidden: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    kept: Tensor | None = None  # the product's first rows, [rows, classes], where they have been made already

    @property
    def count(self) -> int:
        """Rows: the positions, images or scores."""
        return self.hidden.shape[:-1].numel()

    @property
    def classes(self) -> int:
        return self.hidden.shape[-1] if self.weight is None else self.weight.shape[0]

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.hidden, self.weight, self.bias

    def whole(self) -> Tensor:
        """The logits themselves, [..., classes]."""
        return self.hidden if self.weight is None else F.linear(self.hidden, self.weight, self.bias)

    def detach(self) -> Logits:
        hidden, weight, bias = (None if t is None else t.detach() for t in self.tensors)
        assert hidden is not None
        return Logits(hidden, weight, bias, self.kept)

    @torch.no_grad()
    def keep(self, size: int) -> Logits:
        """The same, with the first rows of the product made now and kept, for several losses to read: up to ``size`` bytes.

        They are kept in the type that products are computed in here, so that reading them changes nothing.
        """
        if self.weight is None or not size:
            return self
        ready = self.prepared()
        rows = size // (self.classes * ready.hidden.element_size())
        return Logits(*self.tensors, F.linear(ready.hidden[:rows], ready.weight, ready.bias) if rows else None)  # type: ignore[arg-type]

    def prepared(self) -> Logits:
        """Detached, as [rows, ...], in the type that products are computed in here (autocast's, if that is on)."""
        hidden, weight, bias = self.detach().tensors
        hidden = hidden.flatten(0, -2)
        if weight is None:
            return Logits(hidden)
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        return Logits(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), self.kept)

    def part(self, here: slice) -> Tensor:
        """A fresh float32 copy of some rows of ``prepared`` logits."""
        if self.weight is None:
            return self.hidden[here].to(torch.float32, copy=True)
        if self.kept is not None and here.stop <= len(self.kept):
            return self.kept[here].to(torch.float32, copy=True)
        return F.linear(self.hidden[here], self.weight, self.bias).float()


@dataclass(frozen=True)
class TopK:
    """A softened distribution of which only the k likeliest classes are known, and the mass of all others together.

    log_probs: float [rows, k]. index: int64 [rows, k]. rest: float [rows], the log of the others' mass. Divergences from it
    are those of k + 1 outcomes: among the others a model may do as it likes.
    """

    log_probs: Tensor
    index: Tensor
    rest: Tensor

    def log_q(self, here: slice, log_p: Tensor) -> Tensor:
        """[n, classes]: the known classes, and the rest spread as the model ``log_p`` spreads it.

        Spread so, the full divergence is the one of k + 1 outcomes, and so is its gradient.
        """
        index, known = self.index[here], self.log_probs[here].float()
        others = log_p.scatter(1, index, -torch.inf).logsumexp(1, keepdim=True)
        rest = self.rest[here].float()[:, None]
        return (log_p + (rest - others)).clamp_(min=_NEVER).scatter_(1, index, known)


Target = Logits | TopK | Tensor  # a Tensor holds labels: int64 classes, or float relevance of a ranking


@dataclass(frozen=True)
class Term:
    """One part of a model's loss: its name, its weight, and whom it follows (None: the batch's own labels)."""

    name: str
    weight: float
    target: Target | None = None


def counts(labels: Tensor) -> dict[str, float]:
    """What the losses of classes are averaged over: the labels that count, and all positions."""
    return {"labels": float((labels != IGNORED).sum()), "outputs": float(labels.numel())}


def of_classes(
    logits: Logits, labels: Tensor, terms: Sequence[Term], over: dict[str, float], temperature: float, divergence: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of terms, and each of them (detached), for ``logits`` [..., classes] and ``labels`` int64 [...].

    Labels (and Teachers that gave only labels): cross-entropy. Teachers: the divergence of the distributions softened by
    ``temperature``, times its square. Sums over rows are divided by ``over`` (see ``counts``). Gradients reach the logits,
    and a target that requires them. All terms share one pass over the rows, a few at a time, with gradients in closed form: a
    softmax over a large vocabulary that autograd records would keep several float32 copies of all logits.
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
    """The weighted sum of parts, and the value of each, over all rows. Gradients are made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Logits, parts: Sequence[_Part], *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        triples = [tensors[i : i + 3] for i in range(0, len(tensors), 3)]
        wanted = [any(ctx.needs_input_grad[2 + i : 5 + i]) for i in range(0, len(tensors), 3)]
        model = logits.prepared()
        gradients: list[_Gradient | None] = [_Gradient(triples[0], model) if wanted[0] else None]  # type: ignore[arg-type]
        targets: list[Logits | TopK | Tensor] = []
        for part, triple, need in zip(parts, triples[1:], wanted[1:], strict=True):
            targets.append(part.target.prepared() if isinstance(part.target, Logits) else part.target)
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
                    value, grad = _divergence(part.divergence, log_p, log_q, part.temperature, wanted[0])
                    back = gradients[k + 1]
                    if back is not None:  # a divergence's gradient for its other side is that of its mirror image
                        mirrored = {"forward": "reverse", "reverse": "forward"}.get(part.divergence, part.divergence)
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
    most = _CUDA_CHUNK if model.hidden.device.type == "cuda" else _PRODUCT_CHUNK if product else _CHUNK
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


def _divergence(kind: str, log_p: Tensor, log_q: Tensor, temperature: float, need: bool) -> tuple[Tensor, Tensor | None]:
    """Summed divergence of the model's rows ``log_p`` from the target's ``log_q``, and its gradient for the model's logits.

    forward: KL(q || p), the paper's. reverse: KL(p || q) (Gu et al. 2024, arXiv 2306.08543). js: Jensen-Shannon.
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


# Embeddings. Lengths do not matter. Both return a sum over the sentences, and compute in float32.


def cosine_distance(own: Tensor, target: Tensor) -> Tensor:
    """1 - cos of each embedding in ``own`` [n, d] and its target [n, d], summed over n."""
    return (1 - F.cosine_similarity(own.float(), target.float(), dim=-1)).sum()


def relation(own: Tensor, target: Tensor) -> Tensor:
    """Squared error of the cosines of each sentence with the others, averaged over the others, summed over the sentences.

    own: [n, d], target: [n, e]: the numbers of coordinates may differ (Park et al. 2019, arXiv 1904.05068). 0 for one sentence.
    """
    own, target = (F.normalize(e.float(), dim=-1) for e in (own, target))
    gap = own @ own.T - target @ target.T  # the diagonal is 0
    return gap.square().sum() / max(1, len(own) - 1)


# Ranking. Every function returns a sum, which the caller divides by the number of rows, pairs or groups.


def pointwise(scores: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of ``scores`` [rows] for ``labels`` [rows], summed over the rows.

    Labels are relevance probabilities: grades above 1 count as 1, negative labels (LibSVM's -1) as 0.
    """
    return F.binary_cross_entropy_with_logits(scores.float(), labels.float().clamp(0, 1), reduction="sum")


def pointwise_distill(scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Binary cross-entropy of ``scores`` [rows] for the teacher's softened probabilities, less the teacher's entropy."""
    return _bernoulli_kl(scores.float() / temperature, teacher.float() / temperature).sum() * temperature**2


def pairwise(scores: Tensor, labels: Tensor, group: Tensor) -> Tensor:
    """RankNet's logistic loss, summed over all pairs of rows that share a group and differ in label.

    scores, labels, group: [rows]; group holds integers in any order. Burges et al. 2005, "Learning to Rank using Gradient
    Descent".
    """
    i, j = pairs(group)
    sign = torch.sign(labels[i].float() - labels[j].float())
    return (F.softplus(-sign * (scores[i].float() - scores[j].float())) * (sign != 0)).sum()


def pairwise_distill(scores: Tensor, teacher: Tensor, group: Tensor, temperature: float) -> Tensor:
    """RankNet with the teacher's soft preference sigmoid(margin / temperature) as the target, over all pairs of a group.

    That is RankNet's own loss for uncertain pairs (Burges et al. 2005, section 3) less the teacher's entropy. Rather than a
    squared difference of margins, because it is on the scale of ``pairwise`` and does not ask for the teacher's units.
    """
    i, j = pairs(group)
    margin, target = scores[i].float() - scores[j].float(), teacher[i].float() - teacher[j].float()
    return _bernoulli_kl(margin / temperature, target / temperature).sum() * temperature**2


def listwise(scores: Tensor, labels: Tensor, group: Tensor) -> Tensor:
    """ListNet: cross-entropy of the softmax of scores for the softmax of labels in each group, summed over the groups.

    scores, labels, group: [rows]. Cao et al. 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach".
    """
    log_p, log_q = _log_softmax(scores, group), _log_softmax(labels, group)
    return -(log_q.exp() * log_p).sum()


def listwise_distill(scores: Tensor, teacher: Tensor, group: Tensor, temperature: float) -> Tensor:
    """KL(teacher || model) of softened scores with the rows of a group as the classes, summed over the groups."""
    log_p, log_q = _log_softmax(scores / temperature, group), _log_softmax(teacher / temperature, group)
    return (log_q.exp() * (log_q - log_p)).sum() * temperature**2


def _bernoulli_kl(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || model) of Bernoulli distributions given by their logits, elementwise."""
    target = teacher.sigmoid()
    cross = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return cross - F.binary_cross_entropy_with_logits(teacher, target, reduction="none")


def pairs(group: Tensor) -> tuple[Tensor, Tensor]:
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
