"""Ranking: LibSVM, CSV or Parquet rows, alone or in queries -> scores, AUC and NDCG."""

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
from matta_cli.losses.rows import (
    listwise,
    listwise_distill,
    pairs,
    pairwise,
    pairwise_distill,
    pointwise,
    pointwise_distill,
)
from matta_cli.losses.targets import Logits, Term
from matta_cli.tasks import calibration
from matta_cli.tasks.ranking.examples import (
    TABLES,
    Rows,
    as_codes,
    as_numbers,
    cardinalities,
    features_of,
    read_libsvm,
    shown,
    table_path,
    without_last_tenth,
)
from matta_cli.tasks.task import Metric, Task

_CUTOFF = 10  # NDCG@10


class Ranking(Task):
    """One score per row. An example is a query with all its rows where the data has groups, else a
    single row.

    Batches, N rows: ``dense`` float32 [N, D] and ``categorical`` int64 [N, F], those that the model
    has; ``label`` float32 [N], grades 0, 1, 2, ... or 0 and 1; with groups also ``group`` int64
    [N], numbered within the batch, and ``group_id`` int64 [N], numbered within the split. A label
    above 0 is relevant: for AUC, and for the pointwise loss.
    """

    name = "ranking"
    metrics = (
        Metric("auc", "AUC", higher=True),
        Metric("auc_loss", "AUC loss (1 - AUC)", higher=False),
        Metric("ndcg@10", "NDCG@10", higher=True),
        Metric("calibration", "predicted / observed", higher=None),
        Metric("ece", "calibration error (ECE)", higher=False),
    )
    alike = "pairs of rows in the same order"

    def data(self, folder: Path, model: nn.Module, *, training: bool = True) -> Data:
        settings = self.recipe.data
        find.no_streaming(settings.streaming, "ranking")
        paths = []
        if training or not settings.held_out:
            paths.append(table_path(settings.train, "--data"))
        elif (
            settings.train
            and Path(settings.train).is_file()
            and Path(settings.train).suffix not in TABLES
        ):
            # LibSVM: only together do files tell whether columns count from 0 or from 1
            paths.append(Path(settings.train))
        if settings.held_out:
            paths.append(table_path(settings.held_out, "--held-out"))
        tables = self._read(paths, model)
        if settings.held_out:
            train, held_out = tables[0], tables[-1]
        else:
            train, held_out = without_last_tenth(tables[0], settings.train)
        name = settings.held_out or settings.train
        if len(np.unique(held_out.label > 0)) < 2:
            raise MattaError(
                f"The held-out rows of {name!r} have only labels {'above 0' if held_out.label[0] > 0 else 'of 0 or less'}: "
                "AUC needs both, so pass --held-out with rows of both kinds."
            )
        if training and self.recipe.distill.ranking_loss != "pointwise" and train.group is None:
            raise MattaError(
                f"The {self.recipe.distill.ranking_loss} loss compares rows of a query, but {settings.train!r} has none: name "
                "the column in data.group (LibSVM: qid, or a .query file), or use --ranking-loss pointwise."
            )
        split = sample(held_out, settings.eval_examples)
        unit = "rows" if held_out.group is None else "queries"
        description = f"{name}: held out {len(split):,} {unit}"
        if training:
            queries = "" if train.group is None else f" in {len(train):,} queries"
            description = f"{settings.train}: {len(train.label):,} rows{queries}; {description}"
        return Data(train if training else held_out, (split,), description, "rows")

    def outputs(self, model: nn.Module) -> int:
        return 1

    def fit_teacher(self, teacher: nn.Module, folder: Path | None, model: nn.Module) -> nn.Module:
        teacher = super().fit_teacher(teacher, folder, model)
        for what, count in (("dense features", _dense), ("categorical features", cardinalities)):
            theirs, ours = count(teacher), count(model)
            if theirs is not None and theirs != ours:
                raise MattaError(
                    f"The Teacher reads {theirs} {what}, the model {ours}: they must be the same."
                )
        return teacher

    def forward(self, model: Any, batch: Batch) -> Tensor:
        """Scores [N]."""
        return model(dense=batch.get("dense"), categorical=batch.get("categorical"))

    def example(self, model: nn.Module, size: int = 4) -> Batch:
        ranker: Any = model
        generator = torch.Generator().manual_seed(0)
        batch: Batch = {}
        if ranker.dense:
            batch["dense"] = torch.randn(size, ranker.dense, generator=generator)
        if ranker.fields:
            columns = [
                torch.randint(cardinality, (size,), generator=generator)
                for cardinality, _ in ranker.fields
            ]
            batch["categorical"] = torch.stack(columns, 1)
        return batch

    def counts(self, batch: Batch) -> dict[str, float]:
        """Rows (pointwise), pairs (pairwise; the truth knows only those that differ in label) or
        queries (listwise).
        """
        kind = self._loss(batch)
        rows = float(len(batch["label"]))
        if kind == "pointwise":
            return {"labels": rows, "outputs": rows}
        if kind == "listwise":
            queries = float(batch["group"].unique().numel())
            return {"labels": queries, "outputs": queries}
        i, j = pairs(batch["group"])
        return {
            "labels": float((batch["label"][i] != batch["label"][j]).sum()),
            "outputs": float(len(i)),
        }

    def objective(
        self,
        logits: Logits,
        batch: Batch,
        terms: Sequence[Term],
        over: dict[str, float] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        over, scores = over or self.counts(batch), logits.whole().flatten()
        total, found = scores.new_zeros(()), {}
        for term in terms:
            if isinstance(term.target, Logits):
                value = self._distill(scores, term.target.whole().flatten(), batch) / max(
                    1.0, over["outputs"]
                )
            else:
                labels = batch["label"] if term.target is None else term.target
                if not isinstance(labels, Tensor):
                    raise MattaError(
                        "A ranking's Teacher gives a score or a label for each row, not the likeliest of many."
                    )
                value = self._truth(scores, labels, batch) / max(1.0, over["labels"])
            total = total + term.weight * value
            found[term.name] = value.detach()
        return total, found

    def _truth(self, scores: Tensor, labels: Tensor, batch: Batch) -> Tensor:
        kind = self._loss(batch)
        if kind == "pointwise":
            return pointwise(scores, labels)
        return {"pairwise": pairwise, "listwise": listwise}[kind](scores, labels, batch["group"])

    def _distill(self, scores: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        kind, temperature = self._loss(batch), self.recipe.distill.temperature
        if kind == "pointwise":
            return pointwise_distill(scores, teacher, temperature)
        function = {"pairwise": pairwise_distill, "listwise": listwise_distill}[kind]
        return function(scores, teacher, batch["group"], temperature)

    def items(self, batch: Batch) -> int:
        return len(batch["label"])

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Per row: ``score`` and ``label``; with groups also ``group`` (the query's number in the
        split), ``ndcg`` (of the row's query; NaN where nothing in it is relevant) and ``share``
        (the row's part of its query: 1 / rows).
        """
        found = {"score": logits.detach().double(), "label": batch["label"].double()}
        if "group" not in batch:
            return found
        scores, labels, group = (
            t.cpu().numpy() for t in (found["score"], found["label"], batch["group"])
        )
        quality = np.array(
            [_ndcg(scores[group == g], labels[group == g]) for g in range(int(group.max()) + 1)]
        )
        per_row = {"ndcg": quality[group], "share": 1 / np.bincount(group)[group]}
        return (
            found
            | {"group": batch["group_id"]}
            | {name: torch.from_numpy(values) for name, values in per_row.items()}
        )

    def summarize(self, columns: Columns) -> dict[str, float]:
        """AUC over all rows; NDCG as the mean over queries with something relevant. NaN where a
        metric is not defined.

        Scores of the pointwise loss are log odds of being relevant, whose calibration is measured,
        too.
        """
        auc = _auc(columns["label"] > 0, columns["score"])
        found = {"auc": auc, "auc_loss": 1 - auc}
        if "ndcg" in columns:
            counted = ~np.isnan(columns["ndcg"])
            share = columns["share"][counted]
            total = float(share.sum())
            found["ndcg@10"] = (
                float((columns["ndcg"][counted] * share).sum()) / total if total else float("nan")
            )
        if self.recipe.distill.ranking_loss == "pointwise":
            relevant = columns["label"] > 0
            with np.errstate(invalid="ignore"):
                probability = np.exp(-np.logaddexp(0, -columns["score"]))
            found["calibration"] = (
                float(probability.sum() / relevant.sum()) if relevant.any() else float("nan")
            )
            found["ece"] = calibration.error(probability, relevant)
        return found

    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        group = {"group": batch["group_id"]} if "group_id" in batch else {}
        return {"score": logits.detach().double()} | group

    def agreement(self, ours: Columns, theirs: Columns) -> Columns:
        """Of each query all pairs of its rows; rows that stand alone are taken two by two, each
        once.
        """
        if "group" in ours:
            _, codes = np.unique(ours["group"], return_inverse=True)
            members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        else:
            rows = len(ours["score"]) // 2 * 2
            members = list(np.arange(rows).reshape(-1, 2))
        same, of = [], []
        for rows_of in members:
            i, j = np.triu_indices(len(rows_of), 1)
            signs = [
                np.sign(table["score"][rows_of][i] - table["score"][rows_of][j])
                for table in (ours, theirs)
            ]
            same.append(float((signs[0] == signs[1]).sum()))
            of.append(float(len(i)))
        return {"same": np.array(same), "of": np.array(of)}

    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        if not np.isfinite(columns["score"]).all():
            bad = int((~np.isfinite(columns["score"])).sum())
            return f"{bad} of its {len(columns['score'])} scores are not finite numbers."
        positive = int((columns["label"] > 0).sum())
        negative = len(columns["label"]) - positive
        if not positive or not negative:
            return None
        auc = _auc(columns["label"] > 0, columns["score"])
        # the standard error of the Mann-Whitney statistic where scores and labels are independent
        error = np.sqrt((positive + negative + 1) / (12 * positive * negative))
        if auc > 0.5 + 2 * error:
            return None
        return f"its AUC is {auc:.4f} on {positive + negative:,} rows, and guessing gives 0.5 (standard error {error:.4f})."

    def _loss(self, batch: Batch) -> str:
        kind = self.recipe.distill.ranking_loss
        if kind not in ("pointwise", "pairwise", "listwise"):
            raise MattaError(
                f"--ranking-loss is {kind!r}; it can be pointwise, pairwise or listwise."
            )
        if kind != "pointwise" and "group" not in batch:
            raise MattaError(
                f"The {kind} loss compares rows of a query, but the data has no queries: name them in data.group."
            )
        return kind

    def _read(self, paths: Sequence[Path], model: Any) -> list[Rows]:
        tables = [path for path in paths if path.suffix in TABLES]
        if tables and len(tables) < len(paths):
            raise MattaError(
                f"{str(paths[0])!r} and {str(paths[-1])!r} are of different formats: pass two of the same."
            )
        return [self._table(path, model) for path in paths] if tables else read_libsvm(paths, model)

    def _table(self, path: Path, model: Any) -> Rows:
        settings, table, name = self.recipe.data, find.read_table(path), str(path)
        named = [
            (settings.label, "data.label"),
            *((column, "data.categorical") for column in settings.categorical),
        ]
        named += [(column, "data.dense") for column in settings.dense]
        named += [(settings.group, "data.group")] if settings.group else []
        named += [(settings.id, "data.id")] if settings.id else []
        for column, setting in named:
            if column not in table:
                raise find.no_column(name, column, setting, list(table))
        fields, width = features_of(model)
        if len(settings.categorical) != len(fields):
            raise MattaError(
                f"The model has {len(fields)} embeddings, but data.categorical names {len(settings.categorical)} columns: "
                "name one for each, in the model's order."
            )
        if not len(table[settings.label]):
            raise find.empty(name, "rows")
        label = as_numbers(table[settings.label], settings.label, name)
        categorical = [
            as_codes(table[column], column, cardinality, name)
            for column, (cardinality, _) in zip(settings.categorical, fields, strict=True)
        ]
        dense, taken = (
            list(settings.dense),
            {settings.label, settings.group, settings.id, *settings.categorical},
        )
        if not dense and width:
            dense = [
                column
                for column, values in table.items()
                if column not in taken and values.dtype.kind in "biuf"
            ]
        if len(dense) != width:
            text = [
                c
                for c, values in table.items()
                if c not in {*taken, *dense} and values.dtype.kind not in "biuf"
            ]
            given = ", ".join(dense) or "none"
            given += f"; {text[0]!r} holds {shown(table[text[0]])} and is left out" if text else ""
            raise MattaError(
                f"The model reads {width} dense features, but {name!r} gives {len(dense)} ({given}): name the model's in "
                "data.dense, in its order."
            )
        group = None
        if settings.group:
            _, first, codes = np.unique(
                table[settings.group].astype(str), return_index=True, return_inverse=True
            )
            # numbered as they first occur, so that the last tenth is the last
            group = np.argsort(np.argsort(first))[codes]
        return Rows(
            np.stack([as_numbers(table[column], column, name) for column in dense], axis=1)
            if dense
            else None,
            np.stack(categorical, axis=1) if categorical else None,
            label,
            group,
            table[settings.id].astype(str) if settings.id else None,
        )


def _auc(relevant: np.ndarray, scores: np.ndarray) -> float:
    """The share of pairs of a relevant row and another in which it scores higher (Mann-Whitney);
    ties count half.
    """
    from scipy.stats import rankdata

    if relevant.all() or not relevant.any() or not np.isfinite(scores).all():
        return float("nan")
    positive = int(relevant.sum())
    above = rankdata(scores)[relevant].sum() - positive * (positive + 1) / 2
    return float(above / (positive * (len(relevant) - positive)))


def _ndcg(scores: np.ndarray, labels: np.ndarray) -> float:
    """NDCG@10 of one query with gains 2^grade - 1; ties share their gains. NaN where nothing is
    relevant.

    0 where a score is not finite: such a query must not drop out of the mean.
    """
    from sklearn.metrics import ndcg_score

    gains = np.exp2(np.maximum(labels, 0)) - 1
    if not gains.any():
        return float("nan")
    if not np.isfinite(scores).all():
        return 0.0
    return 1.0 if len(gains) == 1 else float(ndcg_score([gains], [scores], k=_CUTOFF))


def _dense(model: Any) -> int | None:
    return getattr(model, "dense", None)
