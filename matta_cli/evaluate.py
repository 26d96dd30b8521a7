"""Measuring quality: metrics on held-out data, with bootstrap intervals over examples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from matta_cli import devices, sampling
from matta_cli.errors import MattaError
from matta_cli.tasks import Batch, Columns, Split, Task


class Part:
    """Some of a split's examples, as a split."""

    def __init__(self, split: Split, indices: Sequence[int]) -> None:
        self.split, self.indices = split, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Sequence[int]) -> Batch:
        return self.split.batch([self.indices[i] for i in indices])

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        return self.split.keys([self.indices[i] for i in indices], ids=ids)

    def digest(self) -> str:
        return hashlib.sha256(f"{self.split.digest()} {self.indices}".encode()).hexdigest()


def halves(split: Split) -> tuple[Part, Part]:
    """Two parts of a split, each example in one of them, always the same: one to choose by, one to report on.

    Raises ``MattaError`` for a split of one example.
    """
    if len(split) < 2:
        raise MattaError("There is one held-out example only: choosing sizes needs some to choose by and others to report on.")
    order = sampling.example_order(0, 0, len(split)).tolist()
    return Part(split, sorted(order[: len(order) // 2])), Part(split, sorted(order[len(order) // 2 :]))


def columns(
    task: Task,
    model: Any,
    split: Split,
    batch_size: int,
    device: torch.device,
    limit: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Columns:
    """Per-example columns of ``model`` over the first ``limit`` examples of a split (0: all)."""
    return _columns(task, model, split, batch_size, device, limit, tick, [task.score])[0]


def columns_and_answers(
    task: Task, model: Any, split: Split, batch_size: int, device: torch.device, limit: int = 0
) -> tuple[Columns, Columns]:
    """``columns``, and what ``task.agreement`` compares, from the same forwards."""
    functions = [task.score, task.answers]
    own, answers = _columns(task, model, split, batch_size, device, limit, lambda: None, functions)
    return own, answers


def _columns(
    task: Task,
    model: Any,
    split: Split,
    batch_size: int,
    device: torch.device,
    limit: int,
    tick: Callable[[], None],
    functions: Sequence[Callable[[Tensor, Batch], Mapping[str, Tensor]]],
) -> list[Columns]:
    count = min(limit, len(split)) if limit else len(split)
    gathered: list[dict[str, list[np.ndarray]]] = [{} for _ in functions]
    with torch.no_grad(), devices.products("fp32", device):  # models are compared: convolutions are not to round as in TF32
        for start in range(0, count, batch_size):
            batch = {k: v.to(device) for k, v in split.batch(range(start, min(start + batch_size, count))).items()}
            logits = task.forward(model, batch)
            for own, function in zip(gathered, functions, strict=True):
                for name, values in function(logits, batch).items():
                    own.setdefault(name, []).append(values.cpu().numpy())
            tick()
    first, *others = [{name: np.concatenate(parts) for name, parts in own.items()} for own in gathered]
    return [task.gathered(first), *others]


def metrics(task: Task, per_split: list[Columns]) -> dict[str, float]:
    """The task's metrics from the columns of every held-out split."""
    found: dict[str, float] = {}
    for table in per_split:
        found |= task.summarize(table)
    return found


def intervals(task: Task, per_split: list[Columns], resamples: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Metrics with percentile bootstrap 95 % intervals (Efron 1979), resampling examples, or whole groups.

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

    A query's rows are drawn together; the ``group`` of a draw numbers the queries drawn, so that one drawn twice is two.
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
        yield [{name: values[chosen] for name, values in table.items()} | {"group": group} for table in tables]
