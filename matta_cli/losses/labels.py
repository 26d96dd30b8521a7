"""Losses of labels of which an example may have any number: each is a yes or a no of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from matta_cli.errors import MattaError
from matta_cli.losses.rows import bernoulli_kl
from matta_cli.losses.targets import Counts, Logits, Losses, Term, weighted


def counts(labels: Tensor) -> Counts:
    """What the losses of labels [n, labels] are averaged over: the examples."""
    return {"labels": float(len(labels)), "outputs": float(len(labels))}


def of_labels(
    logits: Logits, labels: Tensor, terms: Sequence[Term], over: Counts, temperature: float
) -> Losses:
    """The weighted sum of terms, and each of them, for ``logits`` [n, labels], which are log odds.

    labels: float [n, labels], 1 where an example has the label and 0 where not. They (and Teachers
    that gave only labels) make a binary cross-entropy; Teachers the divergence of the probabilities
    softened by ``temperature``, times its square. Each is the mean over the labels, summed over the
    examples and divided by ``over`` (see ``counts``).
    """
    own = logits.whole().float()

    def value(term: Term) -> Tensor:
        target = labels if term.target is None else term.target
        if isinstance(target, Logits):
            theirs = target.whole().float() / temperature
            apart = bernoulli_kl(own / temperature, theirs).mean(-1).sum() * temperature**2
            return apart / max(1.0, over["outputs"])
        if not isinstance(target, Tensor) or target.shape != own.shape:
            given = "a number for each of its labels, not the likeliest of them"
            raise MattaError(f"The Teacher of a model of several labels gives {given}.")
        each = F.binary_cross_entropy_with_logits(own, target.float(), reduction="none")
        return each.mean(-1).sum() / max(1.0, over["labels"])

    return weighted(terms, value, own.new_zeros(()))
