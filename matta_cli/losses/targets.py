"""What a model is compared with, and logits that need not stand whole in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_NEVER = -1e4  # the log of a probability of nothing: times 0 it is 0, which -inf is not

# What losses are averaged over: "labels" (those of the ground truth) and "outputs" (of a Teacher).
Counts = dict[str, float]

# The weighted sum of terms, a scalar, and each term by its name, detached and unweighted.
Losses = tuple[Tensor, dict[str, Tensor]]


# Some of many rows: those between two of them, or these, int64 [n] in their order.
Rows = slice | Tensor


@dataclass(frozen=True)
class Logits:
    """Logits [..., classes]: as they are (``hidden``), or as a product that makes them.

    The product is hidden [..., d] x weight [classes, d] + bias. It never needs to stand whole in
    memory: losses make the rows that they are at. kept: its first rows, [rows, classes], where they
    have been made already.
    """

    hidden: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    kept: Tensor | None = None

    @property
    def count(self) -> int:
        """Rows: the positions, images or scores."""
        return self.hidden.shape[:-1].numel()

    @property
    def classes(self) -> int:
        """The number of logits in a row."""
        return self.hidden.shape[-1] if self.weight is None else self.weight.shape[0]

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """All that a gradient may reach."""
        return self.hidden, self.weight, self.bias

    def whole(self) -> Tensor:
        """The logits themselves, [..., classes]."""
        return self.hidden if self.weight is None else F.linear(self.hidden, self.weight, self.bias)

    def detach(self) -> Logits:
        """The same, outside the graph that gradients go through."""
        weight, bias = (None if t is None else t.detach() for t in (self.weight, self.bias))
        return Logits(self.hidden.detach(), weight, bias, self.kept)

    @torch.no_grad()
    def keep(self, size: int) -> Logits:
        """The same, with as many rows of the product made now as ``size`` bytes hold.

        Several losses then read them. They are kept in the type that products are computed in here,
        so that reading them changes nothing.
        """
        if self.weight is None or not size:
            return self
        ready = self.prepared()
        rows = size // (self.classes * ready.hidden.element_size())
        assert ready.weight is not None
        made = F.linear(ready.hidden[:rows], ready.weight, ready.bias) if rows else None
        return Logits(*self.tensors, made)

    def prepared(self) -> Logits:
        """Detached, as [rows, ...], in the type of products here (autocast's, if that is on)."""
        hidden, weight, bias = self.detach().tensors
        hidden = hidden.flatten(0, -2)
        if weight is None:
            return Logits(hidden)
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        bias = None if bias is None else bias.to(dtype)
        return Logits(hidden.to(dtype), weight.to(dtype), bias, self.kept)

    def part(self, here: Rows) -> Tensor:
        """A fresh float32 copy of some rows of ``prepared`` logits."""
        if self.weight is None:
            return self.hidden[here].to(torch.float32, copy=True)
        stop = here.stop if isinstance(here, slice) else int(here[-1]) + 1
        if self.kept is not None and stop <= len(self.kept):
            return self.kept[here].to(torch.float32, copy=True)
        return F.linear(self.hidden[here], self.weight, self.bias).float()


@dataclass(frozen=True)
class TopK:
    """A softened distribution of which only the k likeliest classes are known.

    log_probs: float [rows, k]. index: int64 [rows, k]. rest: float [rows], the log of the mass of
    all other classes together. Divergences from it are those of k + 1 outcomes: among the others a
    model may do as it likes. classes: how many there are, of which the model may have more; 0: as
    many as the model's.
    """

    log_probs: Tensor
    index: Tensor
    rest: Tensor
    classes: int = 0

    def log_q(self, here: Rows, log_p: Tensor) -> Tensor:
        """[n, classes]: the known classes, and the rest spread as the model ``log_p`` spreads it.

        Spread so, the full divergence is the one of k + 1 outcomes, and so is its gradient.
        """
        index, known = self.index[here], self.log_probs[here].float()
        others = log_p.scatter(1, index, -torch.inf).logsumexp(1, keepdim=True)
        rest = self.rest[here].float()[:, None]
        return (log_p + (rest - others)).clamp_(min=_NEVER).scatter_(1, index, known)


@dataclass(frozen=True)
class Sampled:
    """A softened distribution of which the likeliest classes are known, and others were drawn.

    log_probs: float [rows, k], of the classes index: int64 [rows, k]. drawn: int64 [rows, m]: from
    the other classes, in proportion to their probabilities, one or several times. Each stands for
    an m-th of the others' mass, so that gradients are on average those of the whole distribution
    (Anshumann et al. 2025, arXiv 2503.16870). entropy: float [rows], of that, in nats.
    classes: as of ``TopK``.
    """

    log_probs: Tensor
    index: Tensor
    drawn: Tensor
    entropy: Tensor
    classes: int = 0

    def probabilities(self, like: Tensor) -> Tensor:
        """[rows, classes], each row of which sums to 1; of the type and size of ``like``."""
        known = self.log_probs.to(like.dtype).exp()
        rest = (1 - known.sum(1, keepdim=True)).clamp_(min=0) / self.drawn.shape[1]
        return (
            torch.zeros_like(like)
            .scatter_(1, self.index, known)
            .scatter_add_(1, self.drawn, rest.expand_as(self.drawn))
        )

    def at(self, here: Rows) -> Sampled:
        """Some of the rows."""
        known, drawn = (self.log_probs[here], self.index[here]), self.drawn[here]
        return Sampled(*known, drawn, self.entropy[here], self.classes)

    def spread(self) -> TopK:
        """The same without what was drawn: how the rest is spread is then not known."""
        left = torch.log1p(-self.log_probs.double().exp().sum(1).clamp(max=1))
        return TopK(self.log_probs, self.index, left.float(), self.classes)


# A Tensor holds labels: int64 classes, or float relevance of a ranking.
Target = Logits | TopK | Sampled | Tensor


@dataclass(frozen=True)
class Term:
    """One part of a model's loss. target: whom it follows; None: the batch's own labels."""

    name: str
    weight: float
    target: Target | None = None


def weighted(terms: Sequence[Term], value: Callable[[Term], Tensor], start: Tensor) -> Losses:
    """The weighted sum of each term's ``value``, a scalar. ``start``: a zero to add them to."""
    total, values = start, {}
    for term in terms:
        one = value(term)
        total = total + term.weight * one
        values[term.name] = one.detach()
    return total, values
