"""What a model makes of held-out examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from matta_cli.data.split import Batch, Columns, Data, Split, halves
from matta_cli.devices.device import products
from matta_cli.errors import MattaError
from matta_cli.settings.recipe import DistillSettings
from matta_cli.tasks.task import Task

FEWEST = 8  # examples that go through a model together, where a step has no more than a few

Score = Callable[[Tensor, Batch], Mapping[str, Tensor]]  # a column's values, one for each example


def at_a_time(settings: DistillSettings, processes: int = 1) -> int:
    """How many examples go through a model at a time when it is measured.

    As many as a device trains at a time: what fits into its memory then does so now. processes: of
    the run, which share a step's examples.
    """
    each = max(FEWEST, settings.batch_size // processes)
    return min(settings.micro_batch or each, each)


def columns(
    task: Task, model: Any, split: Split, batch_size: int, device: torch.device, limit: int = 0
) -> Columns:
    """Per-example columns of ``model`` over the first ``limit`` examples of a split (0: all)."""
    return _columns(task, model, split, batch_size, device, limit, [task.score])[0]


def columns_and_answers(
    task: Task, model: Any, split: Split, batch_size: int, device: torch.device, limit: int = 0
) -> tuple[Columns, Columns]:
    """``columns``, and what ``task.agreement`` compares, from the same forwards."""
    functions = [task.score, task.answers]
    own, answers = _columns(task, model, split, batch_size, device, limit, functions)
    return own, answers


def _columns(
    task: Task,
    model: Any,
    split: Split,
    batch_size: int,
    device: torch.device,
    limit: int,
    functions: Sequence[Score],
) -> list[Columns]:
    count = min(limit, len(split)) if limit else len(split)
    parts: list[dict[str, list[np.ndarray]]] = [{} for _ in functions]
    # models are compared: convolutions are not to round as in TF32
    with torch.no_grad(), products("fp32", device):
        for start in range(0, count, batch_size):
            some = split.batch(range(start, min(start + batch_size, count)))
            batch = {name: tensor.to(device) for name, tensor in some.items()}
            logits = task.forward(model, batch)
            for own, function in zip(parts, functions, strict=True):
                for name, values in function(logits, batch).items():
                    own.setdefault(name, []).append(values.cpu().numpy())
    first, *others = [{n: np.concatenate(values) for n, values in own.items()} for own in parts]
    return [task.gathered(first), *others]


def metrics(task: Task, per_split: Sequence[Columns]) -> dict[str, float]:
    """The task's metrics from the columns of every held-out split."""
    found: dict[str, float] = {}
    for table in per_split:
        found |= task.summarize(table)
    return found


def chooses(task: Task, model: Any, data: Data, device: torch.device) -> int:
    """Which of the held-out splits sizes are chosen by: the first that has the primary metric."""
    primary = task.metrics[0]
    for at, split in enumerate(data.held_out):
        if primary.name in task.summarize(columns(task, model, split, 8, device, 8)):
            return at
    raise MattaError(f"Sizes are chosen by {primary.label}, which the held-out data does not give.")


def reported(data: Data, at: int) -> Data:
    """The data without the held-out examples that sizes are chosen by."""
    half = halves(data.held_out[at])[1]
    splits = tuple(half if i == at else split for i, split in enumerate(data.held_out))
    said = f"{data.description}; measured on {len(half)} that chose no sizes"
    return replace(data, held_out=splits, description=said)
