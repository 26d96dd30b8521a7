"""Ranking: AUC and NDCG of scored rows, alone or in queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from matta_cli.data import find
from matta_cli.data.folders import shown
from matta_cli.data.split import Batch, Columns, Data, Split, sample
from matta_cli.errors import MattaError
from matta_cli.report.schema import Metric
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import calibration, scores
from matta_cli.tasks.kind import KindTask
from matta_cli.tasks.ranking.read import features_of, read_rows, repeated
from matta_cli.tasks.unlabelled import sorted_out

_SHOWN = 8  # features of a row that is shown


class Rows(scores.Scored):
    """A score of each row, alone or among those of its query."""

    alike = "pairs of rows in the same order"
    metrics = (
        Metric("auc", "AUC", higher=True),
        Metric("auc_loss", "AUC loss (1 - AUC)", higher=False),
        Metric("ndcg@10", "NDCG@10", higher=True),
        Metric("calibration", "predicted / observed", higher=None),
        Metric("ece", "calibration error (ECE)", higher=False),
    )

    def summarize(self, columns: Columns) -> dict[str, float]:
        """AUC over all rows; NDCG as the mean over queries with something relevant.

        NaN where a metric is not defined. Scores of the pointwise loss are log odds of being
        relevant, whose calibration is measured, too.
        """
        relevant = columns["label"] > 0
        auc = scores.auc(relevant, columns["score"])
        values = {"auc": auc, "auc_loss": 1 - auc}
        if "ndcg" in columns:
            values["ndcg@10"] = scores.of_queries(columns, "ndcg")
        if self.settings.ranking_loss == "pointwise":
            with np.errstate(invalid="ignore"):
                odds = np.exp(-np.logaddexp(0, -columns["score"]))
            observed = float(relevant.sum()) or float("nan")
            values["calibration"] = float(odds.sum() / observed)
            values["ece"] = calibration.error(odds, relevant)
        return values


class Ranking(KindTask):
    """One score per row.

    An example is a query with all its rows where the data has groups, else a single row. A label
    above 0 is relevant: for AUC, and for the pointwise loss.

    Batches, N rows: ``dense`` float32 [N, D] and ``categorical`` int64 [N, F], those that the model
    has; ``label`` float32 [N], grades 0, 1, 2, ... or 0 and 1; with groups also ``group`` int64
    [N], numbered within the batch, and ``group_id`` int64 [N], numbered within the split.
    """

    name = "ranking"
    metrics = Rows.metrics

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.kind = Rows(recipe.distill)

    def data(self, folder: Path, model: nn.Module, *, training: bool = True) -> Data:
        settings, kind = self.recipe.data, self.recipe.distill.ranking_loss
        find.no_streaming(settings, "ranking")
        train, held_out, told = read_rows(settings, model, training)
        own = train if training else None
        own, held_out, lacking = sorted_out(self, own, held_out, "rows")
        train = held_out if own is None else own
        notes = list(dict.fromkeys([*told, *lacking]))
        relevant = held_out.label > 0
        if not self.unmeasured and (relevant.all() or not relevant.any()):
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
        unlabelled = not train.known.all()
        return self.described(
            train, size, [split], held_out.unit, "rows", notes, unlabelled=unlabelled
        )

    def first(self, split: Split) -> str:
        """The first row, by the names of its columns where they have any, else by their numbers."""
        batch, parts = split.batch([0]), []
        for kind, names in (
            ("dense", getattr(split, "features", ())),
            ("categorical", self.recipe.data.categorical),
        ):
            if kind in batch:
                values = [f"{value:g}" for value in batch[kind][0].tolist()]
                named = names or [str(k) for k in range(1, len(values) + 1)]
                own = [" ".join(pair) for pair in zip(named, values, strict=True)]
                parts.append(f"{kind} {shown(own, _SHOWN)}")
        label = float(batch["label"][0])
        parts.append(f"label {label:g}" if label == label else "no label")
        of = f", one of the {len(batch['label']):,} rows of its query" if "group" in batch else ""
        return "; ".join(parts) + of

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


def _features(model: Any) -> dict[str, Any]:
    """The features that a model reads, by what they are called; None where it does not say."""
    fields = getattr(model, "fields", None)
    cardinalities = None if fields is None else [cardinality for cardinality, _ in fields]
    return {"dense features": getattr(model, "dense", None), "categorical features": cardinalities}
