"""One score of each row, alone or among the rows of a query: losses and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from matta_cli.data.split import Batch, Columns
from matta_cli.errors import MattaError, extra
from matta_cli.losses import rows as losses
from matta_cli.losses.targets import Counts, Logits, Losses, Term, weighted
from matta_cli.tasks.kind import Kind

_CUTOFF = 10  # NDCG@10

# kind -> the loss against labels, and against a Teacher's scores
_LOSSES: dict[str, tuple[Any, Any]] = {
    "pointwise": (losses.pointwise, losses.pointwise_distill),
    "pairwise": (losses.pairwise, losses.pairwise_distill),
    "listwise": (losses.listwise, losses.listwise_distill),
}


class Scored(Kind):
    """Scores, whose loss is ``distill.ranking_loss``.

    Batches of N rows have ``label`` float32 [N], and where rows belong to queries ``group`` int64
    [N], numbered within the batch, and ``group_id`` int64 [N], numbered within the split.
    """

    reading = "odds"

    def counts(self, batch: Batch) -> Counts:
        """Rows, pairs (the truth's are those that differ in label) or queries."""
        kind = self.loss(batch)
        if kind == "pairwise":
            i, j = losses.pairs(batch["group"])
            differ = float((batch["label"][i] != batch["label"][j]).sum())
            return {"labels": differ, "outputs": float(len(i))}
        things = batch["label"] if kind == "pointwise" else batch["group"].unique()
        return {"labels": float(len(things)), "outputs": float(len(things))}

    def objective(
        self, logits: Logits, batch: Batch, terms: Sequence[Term], over: Counts | None = None
    ) -> Losses:
        counts, scores = over or self.counts(batch), logits.whole().flatten()
        kind = self.loss(batch)
        truth, distill = _LOSSES[kind]
        group = () if kind == "pointwise" else (batch["group"],)

        def value(term: Term) -> Tensor:
            if isinstance(term.target, Logits):
                teacher = term.target.whole().flatten()
                total = distill(scores, teacher, *group, self.settings.temperature)
                return total / max(1.0, counts["outputs"])
            labels = batch["label"] if term.target is None else term.target
            if not isinstance(labels, Tensor):
                given = "a score or a label for each row, not the likeliest of many."
                raise MattaError(f"A ranking's Teacher gives {given}")
            return truth(scores, labels, *group) / max(1.0, counts["labels"])

        return weighted(terms, value, scores.new_zeros(()))

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Per row: ``score`` and ``label``; with queries four more.

        ``group``: the query's number in the split. ``ndcg`` and ``reciprocal``: of the row's query;
        NaN where nothing in it is relevant. ``share``: the row's part of its query, 1 / rows.
        """
        columns = {"score": logits.detach().flatten().double(), "label": batch["label"].double()}
        if "group" not in batch:
            return columns
        given = (columns["score"], columns["label"], batch["group"])
        scores, labels, group = (values.cpu().numpy() for values in given)
        sizes = np.bincount(group)
        of = {"ndcg": np.empty(len(group)), "reciprocal": np.empty(len(group))}
        for number in range(len(sizes)):
            rows = group == number
            of["ndcg"][rows] = _ndcg(scores[rows], labels[rows])
            of["reciprocal"][rows] = _reciprocal(scores[rows], labels[rows])
        columns |= {"group": batch["group_id"], "share": torch.from_numpy(1 / sizes[group])}
        return columns | {name: torch.from_numpy(values) for name, values in of.items()}

    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        group = {"group": batch["group_id"]} if "group_id" in batch else {}
        return {"score": logits.detach().flatten().double()} | group

    def agreement(self, ours: Columns, theirs: Columns) -> Columns:
        return agreement(ours, theirs)

    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        relevant, finite = columns["label"] > 0, np.isfinite(columns["score"])
        if not finite.all():
            return f"{int((~finite).sum())} of its {len(finite)} scores are not finite numbers."
        positive, rows = int(relevant.sum()), len(relevant)
        if not 0 < positive < rows:
            return None
        area = auc(relevant, columns["score"])
        # the standard error of the Mann-Whitney statistic where scores and labels are independent
        error = np.sqrt((rows + 1) / (12 * positive * (rows - positive)))
        if area > 0.5 + 2 * error:
            return None
        guessing = f"guessing gives 0.5 (standard error {error:.4f})"
        return f"its AUC is {area:.4f} on {rows:,} rows, and {guessing}."

    def loss(self, batch: Batch) -> str:
        """The loss that the recipe names, where the batch allows it."""
        kind = self.settings.ranking_loss
        if kind not in _LOSSES:
            known = "it can be pointwise, pairwise or listwise."
            raise MattaError(f"--ranking-loss is {kind!r}; {known}")
        if kind != "pointwise" and "group" not in batch:
            none = "but the data has no queries: name them in data.group."
            raise MattaError(f"The {kind} loss compares rows of a query, {none}")
        return kind


def members(group: np.ndarray) -> list[np.ndarray]:
    """The row numbers of each group; ``group`` [n] holds 0 .. q - 1."""
    order = np.argsort(group, kind="stable")
    return np.split(order, np.cumsum(np.bincount(group))[:-1])


def numbered(query: np.ndarray) -> np.ndarray:
    """Queries [n] of any kind as int64 [n], 0 .. q - 1 in the order in which they first occur."""
    _, first, codes = np.unique(query, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[codes]


def of_queries(columns: Columns, name: str) -> float:
    """The mean of a column over the queries that have something relevant; NaN without any."""
    counted = ~np.isnan(columns[name])
    values, share = columns[name][counted], columns["share"][counted]
    total = float(share.sum())
    return float((values * share).sum()) / total if total else float("nan")


def agreement(ours: Columns, theirs: Columns) -> Columns:
    """Of each query all pairs of its rows; rows that stand alone are taken two by two."""
    if "group" in ours:
        queries = members(np.unique(ours["group"], return_inverse=True)[1])
    else:
        queries = list(np.arange(len(ours["score"]) // 2 * 2).reshape(-1, 2))
    same, of = np.zeros(len(queries)), np.zeros(len(queries))
    for k, rows in enumerate(queries):
        i, j = np.triu_indices(len(rows), 1)
        own, other = (table["score"][rows] for table in (ours, theirs))
        same[k] = (np.sign(own[i] - own[j]) == np.sign(other[i] - other[j])).sum()
        of[k] = len(i)
    return {"same": same, "of": of}


def auc(relevant: np.ndarray, scores: np.ndarray) -> float:
    """The share of pairs of a relevant row and another in which it scores higher (Mann-Whitney).

    Ties count half. NaN where all rows are relevant, or none is, or a score is not finite.
    """
    from scipy.stats import rankdata

    if relevant.all() or not relevant.any() or not np.isfinite(scores).all():
        return float("nan")
    positive = int(relevant.sum())
    above = rankdata(scores)[relevant].sum() - positive * (positive + 1) / 2
    return float(above / (positive * (len(relevant) - positive)))


def _ndcg(scores: np.ndarray, labels: np.ndarray) -> float:
    """NDCG@10 of one query with gains 2^grade - 1; ties share their gains.

    NaN where nothing is relevant. 0 where a score is not finite: such a query must not drop out of
    the mean.
    """
    measures = extra("sklearn.metrics", "NDCG@10", "ranking")
    gains = np.exp2(np.maximum(labels, 0)) - 1
    if not gains.any():
        return float("nan")
    if not np.isfinite(scores).all():
        return 0.0
    return 1.0 if len(gains) == 1 else float(measures.ndcg_score([gains], [scores], k=_CUTOFF))


def _reciprocal(scores: np.ndarray, labels: np.ndarray) -> float:
    """1 / the rank of the first relevant row of one query; of equal scores, the worst rank.

    NaN where nothing is relevant; 0 where a score is not finite.
    """
    relevant = labels > 0
    if not relevant.any():
        return float("nan")
    if not np.isfinite(scores).all():
        return 0.0
    best = scores[relevant].max()
    ahead = int((scores[~relevant] >= best).sum())
    return 1.0 / (ahead + 1)
