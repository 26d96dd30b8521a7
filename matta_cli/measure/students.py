"""Students as they are measured: with BatchNorm statistics of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from matta_cli.data import sampling
from matta_cli.data.split import Data, Split
from matta_cli.measure import score
from matta_cli.models.ta import TA, Student
from matta_cli.nested.view import has_statistics, recompute_statistics
from matta_cli.settings.recipe import DistillSettings
from matta_cli.tasks.task import Task

# at least so many rows a batch, however few are measured at a time
STATISTICS_BATCHES, STATISTICS_ROWS = 16, 64


def measurable(
    task: Task, student: Student, train: Split, batch_size: int, device: torch.device
) -> nn.Module:
    """A dense copy of a Student on ``device``.

    Where it has BatchNorm, the statistics are its own: the averages over examples of ``train``.
    """
    model = student.dense()
    if has_statistics(model):
        # drawn at random: the first rows of a file that is sorted would stand for themselves only
        size = min(max(batch_size, STATISTICS_ROWS), len(train))
        drawn = sampling.example_order(0, 0, len(train))[: STATISTICS_BATCHES * size].split(size)
        if len(drawn) > 1 and len(drawn[-1]) < size:
            drawn = drawn[:-1]  # a short batch would weigh as much as a whole one
        parts = [train.batch(part.tolist()) for part in drawn]
        batches = [{k: v.to(device) for k, v in part.items()} for part in parts]
        recompute_statistics(model, batches, task.forward)
    return model


def own_statistics(
    task: Task, student: Student, train: Split, batch_size: int
) -> dict[str, Tensor]:
    """The buffers of a Student where it has BatchNorm, with statistics of its own; else none."""
    if not has_statistics(student.ta.model):
        return {}
    model = measurable(task, student, train, batch_size, torch.device("cpu"))
    return dict(model.named_buffers())


def measure(
    settings: DistillSettings,
    task: Task,
    ta: TA,
    data: Data,
    device: torch.device,
    processes: int = 1,
) -> dict[str, dict[str, float]]:
    """The task's metrics of each width, and of a TA that is none of them, while it is trained.

    processes: of the run; ``score.at_a_time`` says what for.
    """
    size, limit = score.at_a_time(settings, processes), settings.eval_examples

    def metrics(model: nn.Module) -> dict[str, float]:
        tables = [score.columns(task, model, split, size, device, limit) for split in data.held_out]
        return score.metrics(task, tables)

    found: dict[str, dict[str, float]] = {}
    for width in sorted(settings.widths):
        model = measurable(task, ta.student(width), data.train, size, device)
        found[f"{width:g}"] = metrics(model)
    widest = f"{ta.widest:g}"
    if widest not in found or ta.copies or has_statistics(ta.model):  # else it is that Student
        found["TA"] = metrics(ta.model.eval())
    return found
