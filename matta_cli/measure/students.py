"""Students as they are measured: with BatchNorm statistics of their own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from matta_cli.data import sampling
from matta_cli.data.split import Data, Split
from matta_cli.measure import score
from matta_cli.models.ta import TA, Student
from matta_cli.nested.sizes import full_sizes
from matta_cli.nested.view import has_statistics, recompute_statistics, statistics_of
from matta_cli.settings.recipe import DistillSettings
from matta_cli.tasks.task import Task

# what statistics are the averages over, whichever command makes them, on whatever device
BATCHES, ROWS = 16, 64


def measurable(task: Task, student: Student, train: Split, device: torch.device) -> nn.Module:
    """A dense copy of a Student on ``device``.

    Where it has BatchNorm, the statistics are its own: those that are known, or else the averages
    over examples of ``train``.
    """
    model = student.dense().to(device)
    if has_statistics(model) and student.statistics is None:
        # drawn at random: the first rows of a file that is sorted would stand for themselves only
        size = min(ROWS, len(train))
        drawn = sampling.example_order(0, 0, len(train))[: BATCHES * size].split(size)
        if len(drawn) > 1 and len(drawn[-1]) < size:
            drawn = drawn[:-1]  # a short batch would weigh as much as a whole one
        parts = [train.batch(part.tolist()) for part in drawn]
        batches = [{k: v.to(device) for k, v in part.items()} for part in parts]
        recompute_statistics(model, batches, task.forward)
    return model


def own_statistics(task: Task, student: Student, train: Split) -> dict[str, Tensor]:
    """The statistics of a Student where it has BatchNorm, as ``measurable`` makes them."""
    if not has_statistics(student.ta.model):
        return {}
    return statistics_of(measurable(task, student, train, torch.device("cpu")))


def settled(task: Task, ta: TA, widths: Iterable[float], train: Split, device: torch.device) -> TA:
    """A TA that knows the statistics of these widths and its own, as its weights are now.

    What is measured while it trains, what a checkpoint holds, what is exported and what ``load_ta``
    gives are then the same models.
    """
    if not has_statistics(ta.model):
        return ta
    bare = replace(ta, statistics={})
    every = [*map(bare.student, widths), bare.student(full_sizes(ta.axes))]
    models = [(one.key, measurable(task, one, train, device)) for one in every]
    known = {key: statistics_of(model) for key, model in models}
    return replace(ta, statistics=known)


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

    def metrics(student: Student) -> dict[str, float]:
        model = measurable(task, student, data.train, device)
        tables = [score.columns(task, model, split, size, device, limit) for split in data.held_out]
        return score.metrics(task, tables)

    found = {f"{width:g}": metrics(ta.student(width)) for width in sorted(settings.widths)}
    whole = full_sizes(ta.axes)
    if ta.copies or all(ta.sizes(width) != whole for width in settings.widths):
        found["TA"] = metrics(ta.student(whole))
    return found
