"""Students as they are measured: with BatchNorm statistics of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from matta_cli.adapter import Sizes
from matta_cli.data import sampling
from matta_cli.data.split import Data, Split
from matta_cli.measure import score
from matta_cli.models.ta import TA
from matta_cli.nested import view
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import Task

# at least so many rows a batch, whatever training uses
STATISTICS_BATCHES, STATISTICS_ROWS = 16, 64


# Evaluation


def student_for_evaluation(
    task: Task, ta: TA, width: float | Sizes, train: Split, batch_size: int, device: torch.device
) -> nn.Module:
    """A dense copy of a Student, with BatchNorm statistics of its own where it has BatchNorm."""
    student = ta.student(width)
    if view.has_statistics(student):
        # drawn at random: the first rows of a file that is sorted would stand for themselves only
        size = min(max(batch_size, STATISTICS_ROWS), len(train))
        drawn = sampling.example_order(0, 0, len(train))[: STATISTICS_BATCHES * size]
        batches = [
            {k: v.to(device) for k, v in train.batch(part.tolist()).items()}
            for part in drawn.split(size)
        ]
        if len(batches) > 1 and len(drawn) % size:
            del batches[-1]  # a short batch would weigh as much as a whole one
        view.recompute_statistics(student, batches, task.forward)
    return student


def own_statistics(
    task: Task, ta: TA, width: float | Sizes, train: Split, batch_size: int
) -> dict[str, Tensor]:
    """The buffers of a Student where it has BatchNorm, with statistics of its own; else none."""
    if not view.has_statistics(ta.model):
        return {}
    return dict(
        student_for_evaluation(
            task, ta, width, train, batch_size, torch.device("cpu")
        ).named_buffers()
    )


def measure(
    recipe: Recipe, task: Task, ta: TA, data: Data, device: torch.device
) -> dict[str, dict[str, float]]:
    """The task's metrics of the TA and of each width, by name."""
    size, limit = (
        recipe.distill.micro_batch or recipe.distill.batch_size,
        recipe.distill.eval_examples,
    )
    found: dict[str, dict[str, float]] = {}
    for width in [*sorted(recipe.distill.widths), None]:
        if (
            width is None
            and f"{ta.widest:g}" in found
            and not ta.copies
            and not view.has_statistics(ta.model)
        ):
            found["TA"] = found[f"{ta.widest:g}"]  # the same model
            continue
        model = (
            ta.model.eval()
            if width is None
            else student_for_evaluation(task, ta, width, data.train, size, device)
        )
        tables = [score.columns(task, model, split, size, device, limit) for split in data.held_out]
        found["TA" if width is None else f"{width:g}"] = score.metrics(task, tables)
    return found
