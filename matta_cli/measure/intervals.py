"""Intervals over examples, and comparisons of models on the same examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from matta_cli.data.split import Columns
from matta_cli.errors import MattaError
from matta_cli.tasks.task import Task


def intervals(
    task: Task, per_split: list[Columns], resamples: int, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Metrics with percentile bootstrap 95 % intervals (Efron 1979), resampling examples, or whole
    groups.

    Rows that share a value of a ``group`` column (the query of a ranking) are drawn together.
    """
    found: dict[str, dict[str, float]] = {}
    for table in per_split:
        values = task.summarize(table)
        draws = [task.summarize(sample) for (sample,) in resampled([table], resamples, seed)]
        for name, value in values.items():
            drawn = np.array([d[name] for d in draws if name in d and np.isfinite(d[name])])
            low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (value, value)
            found[name] = {"value": float(value), "low": float(low), "high": float(high)}
    return found


def resampled(tables: Sequence[Columns], resamples: int, seed: int = 0) -> Iterator[list[Columns]]:
    """Resamples of several models' columns on the same examples: of each table the same rows.

    A query's rows are drawn together; the ``group`` of a draw numbers the queries drawn, so that
    one drawn twice is two.
    """
    generator = np.random.default_rng(seed)
    rows = len(next(iter(tables[0].values())))
    if "group" not in tables[0]:
        for _ in range(resamples):
            chosen = generator.integers(rows, size=rows)
            yield [{name: values[chosen] for name, values in table.items()} for table in tables]
        return
    _, codes = np.unique(tables[0]["group"], return_inverse=True)
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    for _ in range(resamples):
        drawn = generator.integers(len(members), size=len(members))
        chosen = np.concatenate([members[g] for g in drawn])
        group = np.repeat(np.arange(len(drawn)), [len(members[g]) for g in drawn])
        yield [
            {name: values[chosen] for name, values in table.items()} | {"group": group}
            for table in tables
        ]


class Metrics(Protocol):
    """What a task makes of columns; see ``matta_cli.tasks.task.Task``."""

    def summarize(self, columns: Columns) -> dict[str, float]: ...

    def right(self, columns: Columns) -> Columns: ...


class Means:
    """Metrics that are the means of their columns."""

    def summarize(self, columns: Columns) -> dict[str, float]:
        return {name: float(values.mean()) for name, values in columns.items()}

    def right(self, columns: Columns) -> Columns:
        return {name: values for name, values in columns.items() if np.isin(values, (0, 1)).all()}


def paired(
    task: Metrics, a: Sequence[Columns], b: Sequence[Columns], resamples: int, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Each metric of ``a`` minus that of ``b``, both scored on the same examples
    (``evaluate.columns`` of every split).

    Of a metric: ``value``, the difference; ``low`` and ``high``, its percentile bootstrap 95 %
    interval, with the same examples (queries, where there are some) drawn for both; ``p``,
    two-sided, that there is no difference, by the ``test``: "McNemar", the exact one (McNemar
    1947), where examples stand alone and are right or wrong, else "bootstrap", twice the share of
    draws on the other side of zero (Efron & Tibshirani 1993, section 15.4), at least 2 / (resamples
    + 1), and no less than what so few examples could show if all spoke alike (the sign test's 2 **
    (1 - examples)). A difference that is not defined is NaN, and its ``p`` 1.

    Raises ``MattaError`` where the examples cannot be the same ones.
    """
    return between(task, {"a": a, "b": b}, [("a", "b")], resamples, seed)[0]


def between(
    task: Metrics,
    tables: Mapping[str, Sequence[Columns]],
    pairs: Sequence[tuple[str, str]],
    resamples: int,
    seed: int = 0,
) -> list[dict[str, dict[str, Any]]]:
    """``paired`` of several pairs of models, all of them scored on the same examples; each is
    resampled only once.
    """
    found: list[dict[str, dict[str, Any]]] = [{} for _ in pairs]
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    for per_model in zip(*(tables[name] for name in names), strict=True):
        for other in per_model[1:]:
            _refuse_others(per_model[0], other)
        columns = dict(zip(names, per_model, strict=True))
        first = per_model[0]
        units = (
            len(np.unique(first["group"])) if "group" in first else len(next(iter(first.values())))
        )
        values = {name: task.summarize(own) for name, own in columns.items()}
        samples = resampled(per_model, resamples, seed)
        draws = [dict(zip(names, map(task.summarize, sample), strict=True)) for sample in samples]
        right = {name: {} if "group" in own else task.right(own) for name, own in columns.items()}
        for (a, b), into in zip(pairs, found, strict=True):
            differences = [_difference(one[a], one[b]) for one in draws]
            for name, value in _difference(values[a], values[b]).items():
                drawn = np.array(
                    [d[name] for d in differences if name in d and np.isfinite(d[name])]
                )
                low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (value, value)
                exact = name in right[a] and name in right[b]
                p = (
                    _mcnemar(right[a][name], right[b][name])
                    if exact
                    else _beyond_zero(value, drawn, units)
                )
                into[name] = {"value": value, "low": float(low), "high": float(high), "p": p}
                into[name]["test"] = "McNemar" if exact else "bootstrap"
    return found


def against(
    task: Metrics,
    tables: Mapping[str, Sequence[Columns]],
    reference: str,
    resamples: int,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, Any]]]:
    """``paired`` of every other model with ``reference``: model -> metric -> difference.

    ``p_holm`` is ``p`` corrected for how many models the metric was compared for.
    """
    others = [name for name in tables if name != reference]
    pairs = [(name, reference) for name in others]
    found = dict(zip(others, between(task, tables, pairs, resamples, seed), strict=True))
    for metric in dict.fromkeys(metric for one in found.values() for metric in one):
        some = [one[metric] for one in found.values() if metric in one]
        for difference, p in zip(some, holm([d["p"] for d in some]), strict=True):
            difference["p_holm"] = p
    return found


def holm(p: Sequence[float]) -> list[float]:
    """p-values of several comparisons, corrected so that one below 0.05 by chance in any of them
    has a chance of 0.05.

    Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    corrected, worst = [0.0] * len(p), 0.0
    for rank, i in enumerate(np.argsort(p, kind="stable")):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = worst
    return corrected


def _refuse_others(a: Columns, b: Columns) -> None:
    rows = [len(next(iter(table.values()))) for table in (a, b)]
    if (
        rows[0] != rows[1]
        or ("group" in a) != ("group" in b)
        or ("group" in a and not np.array_equal(a["group"], b["group"]))
    ):
        raise MattaError(
            f"Models can only be compared on the same examples; these have {rows[0]:,} and {rows[1]:,} rows."
        )


def _difference(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value - theirs[name]) for name, value in ours.items() if name in theirs}


def _mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Of the examples that only one model gets right, either is as likely to: a binomial test."""
    from scipy.stats import binomtest

    only_a, only_b = (int((x.astype(bool) & ~y.astype(bool)).sum()) for x, y in ((a, b), (b, a)))
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def _beyond_zero(value: float, drawn: np.ndarray, units: int) -> float:
    if not len(drawn) or not np.isfinite(value):
        return 1.0
    least = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, max(2 * (least + 1) / (len(drawn) + 1), 2.0 ** (1 - units)))
