"""The held-out examples that a report is measured on, and what models make of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from matta_cli.data.split import Batch, Data
from matta_cli.devices.device import pick
from matta_cli.measure import generation, score
from matta_cli.measure.intervals import Sampled, intervals_of
from matta_cli.measure.students import measurable
from matta_cli.models.ta import TA, Student
from matta_cli.nested.view import has_statistics
from matta_cli.report.schema import Generation, Interval
from matta_cli.settings.budget import asked
from matta_cli.settings.quantize import calibrates
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task
from matta_cli.tasks.task import Task


@dataclass
class HeldOut:
    """The held-out examples of a report, and by name the models that were scored on them.

    at_a_time: how many examples go through a model together. generation: how models are timed that
    generate.
    """

    recipe: Recipe
    task: Task
    data: Data
    device: torch.device
    at_a_time: int
    generation: Generation | None = None
    models: dict[str, list[Sampled]] = field(default_factory=dict)

    @classmethod
    def opened(cls, recipe: Recipe, ta: TA, folder: Path, processes: int) -> HeldOut:
        """The recipe's data, opened for the TA in ``folder``. processes: of the run that made it.

        Where sizes are chosen for a budget, the examples that they are chosen by are left out.
        Raises ``MattaError`` where the data is missing or does not fit, or the prompt that models
        are to be timed with.
        """
        device, at_a_time = pick(recipe.distill.device), score.at_a_time(recipe.distill, processes)
        task = tasks_task.task(ta.adapter.task, recipe)
        timed = generation.lengths(recipe.export, ta.model) if task.generates else None
        # what BatchNorm's statistics, and the ranges of activations, are read off
        training = has_statistics(ta.model) or calibrates(recipe.export.quantize)
        data = task.data(folder, ta.model, training=training)
        if asked(recipe.export):
            chose = score.chooses(task, ta.model, data, torch.device("cpu"))
            data = score.reported(data, chose)
        return cls(recipe, task, data, device, at_a_time, timed)

    def first(self, count: int) -> Batch:
        """A batch of the first so many examples, or of all where there are fewer."""
        split = self.data.held_out[0]
        return split.batch(range(min(count, len(split))))

    def dense(self, student: Student) -> nn.Module:
        """A dense copy of a Student on the device, with BatchNorm statistics of its own."""
        cpu = torch.device("cpu")
        model = measurable(self.task, student, self.data.train, cpu)
        return model.to(self.device)

    def add(self, name: str, model: nn.Module) -> None:
        """Score a dense model on every split."""
        limit = self.recipe.data.eval_examples
        own = self.models[name] = []
        model = model.to(self.device).eval()
        for split in self.data.held_out:
            columns = score.columns(self.task, model, split, self.at_a_time, self.device, limit)
            own.append(Sampled(self.task, columns))

    def again(self, name: str, other: str) -> dict[str, Interval]:
        """The metrics of a model that is the same as one that was scored."""
        self.models[name] = self.models[other]
        return self.metrics(name)

    def metrics(self, name: str) -> dict[str, Interval]:
        """The metrics of a model that was scored, with their intervals."""
        return intervals_of(self.models[name], self.recipe.export.bootstrap)
