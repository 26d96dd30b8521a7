"""Ranking: AUC and NDCG of scored rows, alone or in queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from matta_cli.data import find
from matta_cli.data.split import Batch, Columns, Data, sample
from matta_cli.errors import MattaError
from matta_cli.losses import rows as losses
from matta_cli.losses.targets import Counts, Logits, Losses, Term, weighted
from matta_cli.report.schema import Metric
from matta_cli.tasks import calibration
from matta_cli.tasks.ranking.examples import members
from matta_cli.tasks.ranking.read import features_of, read_rows, repeated
from matta_cli.tasks.task import Task

_CUTOFF = 10  # NDCG@10

# kind -> the loss against labels, and against a Teacher's scores
_LOSSES: dict[str, tuple[Any, Any]] = {
    "pointwise": (losses.pointwise, losses.pointwise_distill),
    "pairwise": (losses.pairwise, losses.pairwise_distill),
    "listwise": (losses.listwise, losses.listwise_distill),
}


class Ranking(Task):
    """One score per row.

    An example is a query with all its rows where the data has groups, else a single row. A label
    above 0 is relevant: for AUC, and for the pointwise loss.

    Batches, N rows: ``dense`` float32 [N, D] and ``categorical`` int64 [N, F], those that the model
    has; ``label`` float32 [N], grades 0, 1, 2, ... or 0 and 1; with groups also ``group`` int64
    [N], numbered within the batch, and ``group_id`` int64 [N], numbered within the split.
    """

    name = "ranking"
    alike = "pairs of rows in the same order"
    metrics = (
        Metric("auc", "AUC", higher=True),
        Metric("auc_loss", "AUC loss (1 - AUC)", higher=False),
        Metric("ndcg@10", "NDCG@10", higher=True),
        Metric("calibration", "predicted / observed", higher=None),
        Metric("ece", "calibration error (ECE)", higher=False),
    )

    def data(self, folder: Path, model: nn.Module, *, training: bool = True) -> Data:
        settings, kind = self.recipe.data, self.recipe.distill.ranking_loss
        find.no_streaming(settings, "ranking")
        train, held_out, told = read_rows(settings, model, training)
        notes = list(dict.fromkeys(told))
        relevant = held_out.label > 0
        if relevant.all() or not relevant.any():
            labels = f"only labels {'above 0' if relevant[0] else 'of 0 or less'}"
            where = f"The held-out rows of {settings.held_out or settings.train!r} have {labels}"
            hint = "AUC needs both, so pass --held-out with rows of both kinds."
            raise MattaError(f"{where}: {hint}")
        if training and kind != "pointwise" and train.group is None:
            none = f"The {kind} loss compares rows of a query, but {settings.train!r} has none"
            name = "name the column in data.group (LibSVM: qid, or a .query or .group file)"
            raise MattaError(f"{none}: {name}, or use --ranking-loss pointwise.")
        split = sample(held_out, settings.eval_examples)
        if not training:
            return self.described(held_out, "", [split], held_out.unit, "rows", notes)
        queries = "" if train.group is None else f" in {len(train):,} queries"
        size = f"{len(train.label):,} rows{queries}"
        if both := repeated(train, held_out):
            of = f"of {len(held_out.label):,}"
            notes.append(f"{both:,} held-out rows also stand in the data to train on, {of}.")
        return self.described(train, size, [split], held_out.unit, "rows", notes)

    def outputs(self, model: nn.Module) -> int:
        return 1

    def fit_teacher(
        self, teacher: nn.Module, folder: Path | None, model: nn.Module, home: Path | None = None
    ) -> nn.Module:
        teacher = super().fit_teacher(teacher, folder, model)
        known = _features(model)
        for what, theirs in _features(teacher).items():
            ours = known[what]
            if theirs is not None and theirs != ours:
                numbers = f"The Teacher reads {theirs} {what}, the model {ours}"
                raise MattaError(f"{numbers}: they must be the same.")
        return teacher

    def forward(self, model: Any, batch: Batch) -> Tensor:
        """Scores [N]."""
        # a model may take one of the two alone
        return model(**{name: batch[name] for name in ("dense", "categorical") if name in batch})

    def example(self, model: nn.Module, size: int = 4) -> Batch:
        (fields, dense), random = features_of(model), torch.Generator().manual_seed(0)
        batch: Batch = {}
        if dense:
            batch["dense"] = torch.randn(size, dense, generator=random)
        if fields:
            codes = [torch.randint(count, (size,), generator=random) for count, _ in fields]
            batch["categorical"] = torch.stack(codes, 1)
        return batch

    def counts(self, batch: Batch) -> Counts:
        """Rows, pairs (the truth's are those that differ in label) or queries."""
        kind = self._kind(batch)
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
        kind = self._kind(batch)
        truth, distill = _LOSSES[kind]
        group = () if kind == "pointwise" else (batch["group"],)

        def value(term: Term) -> Tensor:
            if isinstance(term.target, Logits):
                teacher = term.target.whole().flatten()
                total = distill(scores, teacher, *group, self.recipe.distill.temperature)
                return total / max(1.0, counts["outputs"])
            labels = batch["label"] if term.target is None else term.target
            if not isinstance(labels, Tensor):
                given = "a score or a label for each row, not the likeliest of many."
                raise MattaError(f"A ranking's Teacher gives {given}")
            return truth(scores, labels, *group) / max(1.0, counts["labels"])

        return weighted(terms, value, scores.new_zeros(()))

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Per row: ``score`` and ``label``; with groups three more.

        ``group``: the query's number in the split. ``ndcg``: of the row's query; NaN where nothing
        in it is relevant. ``share``: the row's part of its query, 1 / rows.
        """
        columns = {"score": logits.detach().double(), "label": batch["label"].double()}
        if "group" not in batch:
            return columns
        given = (columns["score"], columns["label"], batch["group"])
        scores, labels, group = (values.cpu().numpy() for values in given)
        sizes, ndcg = np.bincount(group), np.empty(len(group))
        for number in range(len(sizes)):
            rows = group == number
            ndcg[rows] = _ndcg(scores[rows], labels[rows])
        columns |= {"group": batch["group_id"], "ndcg": torch.from_numpy(ndcg)}
        return columns | {"share": torch.from_numpy(1 / sizes[group])}

    def summarize(self, columns: Columns) -> dict[str, float]:
        """AUC over all rows; NDCG as the mean over queries with something relevant.

        NaN where a metric is not defined. Scores of the pointwise loss are log odds of being
        relevant, whose calibration is measured, too.
        """
        relevant = columns["label"] > 0
        auc = _auc(relevant, columns["score"])
        values = {"auc": auc, "auc_loss": 1 - auc}
        if "ndcg" in columns:
            counted = ~np.isnan(columns["ndcg"])
            ndcg, share = columns["ndcg"][counted], columns["share"][counted]
            total = float(share.sum())
            values["ndcg@10"] = float((ndcg * share).sum()) / total if total else float("nan")
        if self.recipe.distill.ranking_loss == "pointwise":
            with np.errstate(invalid="ignore"):
                odds = np.exp(-np.logaddexp(0, -columns["score"]))
            observed = float(relevant.sum()) or float("nan")
            values["calibration"] = float(odds.sum() / observed)
            values["ece"] = calibration.error(odds, relevant)
        return values

    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        group = {"group": batch["group_id"]} if "group_id" in batch else {}
        return {"score": logits.detach().double()} | group

    def agreement(self, ours: Columns, theirs: Columns) -> Columns:
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

    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        relevant, finite = columns["label"] > 0, np.isfinite(columns["score"])
        if not finite.all():
            return f"{int((~finite).sum())} of its {len(finite)} scores are not finite numbers."
        positive, rows = int(relevant.sum()), len(relevant)
        if not 0 < positive < rows:
            return None
        auc = _auc(relevant, columns["score"])
        # the standard error of the Mann-Whitney statistic where scores and labels are independent
        error = np.sqrt((rows + 1) / (12 * positive * (rows - positive)))
        if auc > 0.5 + 2 * error:
            return None
        guessing = f"guessing gives 0.5 (standard error {error:.4f})"
        return f"its AUC is {auc:.4f} on {rows:,} rows, and {guessing}."

    def _kind(self, batch: Batch) -> str:
        """The loss that the recipe names, where the batch allows it."""
        kind = self.recipe.distill.ranking_loss
        if kind not in _LOSSES:
            known = "it can be pointwise, pairwise or listwise."
            raise MattaError(f"--ranking-loss is {kind!r}; {known}")
        if kind != "pointwise" and "group" not in batch:
            none = "but the data has no queries: name them in data.group."
            raise MattaError(f"The {kind} loss compares rows of a query, {none}")
        return kind


def _auc(relevant: np.ndarray, scores: np.ndarray) -> float:
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
    from sklearn.metrics import ndcg_score

    gains = np.exp2(np.maximum(labels, 0)) - 1
    if not gains.any():
        return float("nan")
    if not np.isfinite(scores).all():
        return 0.0
    return 1.0 if len(gains) == 1 else float(ndcg_score([gains], [scores], k=_CUTOFF))


def _features(model: Any) -> dict[str, Any]:
    """The features that a model reads, by what they are called; None where it does not say."""
    fields = getattr(model, "fields", None)
    cardinalities = None if fields is None else [cardinality for cardinality, _ in fields]
    return {"dense features": getattr(model, "dense", None), "categorical features": cardinalities}
