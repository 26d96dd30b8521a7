"""Training one arm with the project's own engine, in memory."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from benchmarks import common
from matta_cli.adapter import Sizes
from matta_cli.conversion.convert import convert
from matta_cli.data.split import Data
from matta_cli.files.workspace import Workspace
from matta_cli.measure import score
from matta_cli.measure.students import measurable
from matta_cli.models import plugins, save
from matta_cli.models.ta import TA
from matta_cli.nested import sizes
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task
from matta_cli.tasks.task import Task
from matta_cli.training.loop import Training
from matta_cli.training.setup import Setup, opened
from matta_cli.training.teacher import ModelTeacher, Teacher
from matta_cli.verdict import baselines


def alone(ta: TA, width: float) -> TA:
    """The Student of a width as a TA that holds nothing else."""
    return of_one(ta.adapter, ta.student(width).dense(), list(sizes.kinds(ta.base)))


def of_one(adapter: Any, model: nn.Module, kinds: list[str]) -> TA:
    """A model as a TA of one width."""
    axes = sizes.nested_axes(adapter, model, kinds)
    return TA(adapter, model, axes, sizes.full_sizes(axes), {})


class Run:
    """One training: takes its steps, counts what they cost. seconds: of one device.

    On a CPU those that this process was at work, so that others beside it do not count.
    """

    def __init__(
        self, recipe: Recipe, task: Task, ta: TA, teacher: Teacher | None, data: Data
    ) -> None:
        task = tasks_task.task(task.name, recipe)
        teacher = (
            ModelTeacher(task, teacher.model) if isinstance(teacher, ModelTeacher) else teacher
        )
        self.recipe, self.data, self.seconds = recipe, data, 0.0
        setup = Setup(recipe, task, ta, teacher, data, common.device())
        self.training = Training(setup, Workspace(Path()), count_flops=True)
        assert self.training.flops is not None
        self.flops = self.training.flops  # of one step

    def __call__(self) -> Run:
        steps = range(self.recipe.distill.steps)
        batches = self.training.batches(steps)
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        started = clock()
        for step in steps:
            self.training.take(step, next(batches))
        if torch.cuda.is_available():  # what is still under way counts
            torch.cuda.synchronize()
        self.seconds = clock() - started
        return self


_SHARE = ContextVar("share of their training that models from scratch take", default=1.0)


@contextmanager
def shortened(share: float) -> Iterator[None]:
    """Within, ``shorter`` is by that share."""
    token = _SHARE.set(share)
    try:
        yield
    finally:
        _SHARE.reset(token)


def shorter(steps: int) -> int:
    """The share of so many steps, or epochs, of a model from scratch: all of them unless
    ``shortened``.
    """
    return max(1, round(_SHARE.get() * steps))


def scratch(recipe: Recipe, model: nn.Module, folder: Path, steps: int, rate: float) -> None:
    """Train a model on ground truth alone, and save it in ``folder``: what its user did before
    meeting matta.
    """
    adapter = plugins.adapter(recipe.convert.adapter)
    own = baselines.settings(recipe, shorter(steps), taught=False)
    own.distill.lr, own.distill.optimizer = rate, "adamw"
    own.data.held_out = own.data.held_out or own.data.train
    task = tasks_task.task(adapter.task, own)
    data = task.data(folder, model)
    ta = of_one(adapter, model, [])
    Run(own, task, ta, None, data)()
    folder.mkdir(exist_ok=True)
    save.save_model(adapter, ta.model, folder)


def converted(recipe: Recipe) -> tuple[Task, TA, Any, Data]:
    """The TA of a recipe, and what it is trained with."""
    with TemporaryDirectory() as temp:
        convert(recipe, Path(temp))
        setup = opened(recipe, Path(temp), common.device())
        return setup.task, setup.ta, setup.teacher, setup.data


def measured(
    task: Task, ta: TA, width: float | Sizes, data: Data, held_out: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """The metrics of a width, or of sizes, on held-out splits by name."""
    batch = max(task.recipe.distill.batch_size, 64)
    model = measurable(task, ta.student(width), data.train, common.device()).eval()
    found = {}
    for name, splits in held_out.items():
        tables = [score.columns(task, model, split, batch, common.device()) for split in splits]
        found[name] = score.metrics(task, tables)
    return found


def changed(recipe: Recipe, *, convert: Any = (), distill: Any = ()) -> Recipe:
    """A copy of a recipe with other settings. Raises for a setting that there is not."""
    found = copy.deepcopy(recipe)
    found.update({"convert": dict(convert), "distill": dict(distill)}, "the study")
    return found
