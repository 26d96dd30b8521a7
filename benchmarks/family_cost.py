"""One MatTA run that yields four Students, against four distillations of them one by one, for as
many steps.

The separate runs train stock dense models, cut from the same TA at the same widths, from the same
Teacher with the same losses (but for the TA's), data order, batch, learning rate and optimizer. The
runs take their steps in turns, so that drift of the machine hits all alike. The data and the base
and Teacher trained on it are those of ``matta demo``. Of the ratio: ratio is one run's time over
the four's (goal: 0.4), ratio_shared_teacher lets the four share one Teacher pass a step. Steps
are the same, updates are not: with three Students a step, a width between the outer ones is drawn
in every other step.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import common
from matta_cli import demo
from matta_cli.conversion.convert import convert
from matta_cli.data import sampling
from matta_cli.data.split import Columns, Data
from matta_cli.devices.device import precision
from matta_cli.files.workspace import Workspace
from matta_cli.losses.targets import Logits, Term
from matta_cli.measure import intervals, score
from matta_cli.models.folders import load_ta
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import Task
from matta_cli.training import optimizer
from matta_cli.training.loop import Training
from matta_cli.training.setup import opened
from matta_cli.training.teacher import ModelTeacher

GOAL, WIDTHS = 0.4, [0.25, 0.5, 0.75, 1.0]


class Alone:
    """Plain distillation of one dense model."""

    def __init__(
        self, recipe: Recipe, task: Task, model: nn.Module, teacher: ModelTeacher, data: Data
    ) -> None:
        self.recipe, self.task, self.model, self.teacher, self.data = (
            recipe,
            task,
            model,
            teacher,
            data,
        )
        self.device = common.device()
        self.optimizer = optimizer.make_optimizer(
            recipe.distill, model.to(self.device).train(), [], self.device
        )
        self.order: dict[int, torch.Tensor] = {}
        self.teacher_seconds = 0.0

    def __call__(self, step: int) -> None:
        settings, task = self.recipe.distill, self.task
        sampling.seed_step(settings.seed, step)
        drawn = sampling.indices(
            settings.seed, step, settings.batch_size, len(self.data.train), self.order
        )
        batch = {k: v.to(self.device) for k, v in self.data.train.batch(drawn).items()}
        with precision(settings.precision, self.device):
            started = _now()
            taught = self.teacher(batch, drawn)
            self.teacher_seconds += _now() - started
            terms = [
                Term("truth", 1 - settings.teacher_mix),
                Term("teacher", settings.teacher_mix, taught),
            ]
            loss, values = task.objective(Logits(task.forward(self.model, batch)), batch, terms)
        loss.backward()
        # looked at in every step, as a run does for its log
        torch.stack([v.float() for v in values.values()]).tolist()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = optimizer.learning_rate(settings, step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def tables(task: Task, model: nn.Module, data: Data, recipe: Recipe) -> list[Columns]:
    """The held-out columns of one model."""
    batch = recipe.distill.batch_size
    return [
        score.columns(task, model.eval(), split, batch, common.device()) for split in data.held_out
    ]


def _measured(task: Task, own: list[Columns], resamples: int) -> dict[str, dict[str, Any]]:
    """The metrics of one model, with their intervals."""
    found = intervals.intervals(task, own, resamples)
    return {name: vars(interval) for name, interval in found.items()}


def difference(
    task: Task, ours: list[Columns], theirs: list[Columns], resamples: int
) -> dict[str, float]:
    """Of the primary metric, with a bootstrap interval over the same examples in both."""
    found = intervals.paired(task, ours, theirs, resamples)[task.metrics[0].name]
    return {name: found[name] for name in ("value", "low", "high")}


class _Seed:
    """The runs of one seed: nested ones, by Students in a step, and separate ones, by width."""

    def __init__(self, recipe: Recipe, out: Path, per_step: list[int], seed: int) -> None:
        self.recipe, self.out = recipe, out
        recipe.convert.seed = recipe.distill.seed = seed
        convert(recipe, out, overwrite=True)
        self.setup = opened(recipe, out, common.device())
        self.task, self.data = self.setup.task, self.setup.data
        ta, teacher = self.setup.ta, self.setup.teacher
        assert isinstance(teacher, ModelTeacher)
        self.families = {count: self._family(count) for count in per_step}
        self.alone = {}
        for width in recipe.distill.widths:
            dense = ta.student(width).dense()
            self.alone[width] = Alone(recipe, self.task, dense, teacher, self.data)

    def _family(self, count: int) -> Training:
        own, space = Recipe(), Workspace(self.out)
        own.convert, own.data, own.export = (
            self.recipe.convert,
            self.recipe.data,
            self.recipe.export,
        )
        vars(own.distill).update({**vars(self.recipe.distill), "students_per_step": count})
        return Training(replace(self.setup, recipe=own, ta=load_ta(space.ta)), space)

    def train(self) -> dict[str, float]:
        """Take all steps, the runs in turns. Returns the seconds of each."""
        steps = range(self.recipe.distill.steps)

        def together(run: Training) -> Callable[[int], Any]:
            batches = run.batches(steps)
            return lambda step: run.take(step, next(batches))

        runs: dict[str, Callable[[int], Any]] = {}
        runs |= {f"family_{count}": together(run) for count, run in self.families.items()}
        runs |= {f"alone_{width:g}": run for width, run in self.alone.items()}
        seconds = dict.fromkeys(runs, 0.0)
        for step in steps:
            for name, run in runs.items():
                started = _now()
                run(step)
                seconds[name] += _now() - started
        return seconds

    def columns(self, model: Any) -> Any:
        return tables(self.task, model, self.data, self.recipe)


def measure(recipe: Recipe, out: Path, per_step: list[int], seed: int) -> dict[str, Any]:
    """All runs of one seed: their seconds and what their Students come to."""
    runs = _Seed(recipe, out, per_step, seed)
    seconds, task, resamples = runs.train(), runs.task, recipe.export.bootstrap
    separate = sum(seconds[f"alone_{width:g}"] for width in runs.alone)
    teaching = sum(run.teacher_seconds for run in runs.alone.values())
    shared = separate - teaching * (1 - 1 / len(runs.alone))
    separately = {width: runs.columns(run.model) for width, run in runs.alone.items()}
    of_separate, families = {}, {}
    for width, own in separately.items():
        of_separate[f"{width:g}"] = _measured(task, own, resamples)
    for count, run in runs.families.items():
        drawn = [run.step.widths(step) for step in range(recipe.distill.steps)]
        updates = Counter(f"{width:g}" for widths in drawn for width in widths)
        students = {}
        for width, theirs in separately.items():
            own = runs.columns(run.ta.student(width).dense())
            students[f"{width:g}"] = {
                "updates": updates[f"{width:g}"],
                "metrics": _measured(task, own, resamples),
                "difference": difference(task, own, theirs, resamples),
            }
        taken = seconds[f"family_{count}"]
        families[str(count)] = {
            "ratio": taken / separate,
            "ratio_shared_teacher": taken / shared,
            "students": students,
            "ta": _measured(task, runs.columns(run.ta.model), resamples),
        }
    return {
        "seed": seed,
        "seconds": seconds,
        "teacher_seconds_of_the_four": teaching,
        "families": families,
        "separate": of_separate,
    }


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument("--adapter", default="vit", choices=["vit", "gpt2"])
    arguments.add_argument("--seeds", type=int, default=2)
    arguments.add_argument("--steps", type=int, default=0, help="of every run; 0: the demo's")
    arguments.add_argument(
        "--students-per-step",
        type=int,
        nargs="+",
        default=[3],
        help="one MatTA run for each number",
    )
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        recipe = demo.prepare(options.adapter, Path(temp), quick=options.quick)
        recipe.distill.widths = WIDTHS
        recipe.distill.steps = options.steps or recipe.distill.steps
        recipe.distill.allow_weak_teacher = options.quick
        seeds = range(1 if options.quick else options.seeds)
        found = [measure(recipe, Path(temp), options.students_per_step, seed) for seed in seeds]
    first = str(options.students_per_step[0])
    ratios: dict[str, dict[str, float]] = {"ratio": {}, "ratio_shared_teacher": {}}
    for kind, of_kind in ratios.items():
        for count in found[0]["families"]:
            of_kind[count] = statistics.mean(seed["families"][count][kind] for seed in found)
    ratio = ratios["ratio"][first]
    common.result(
        "family_cost",
        ratio=ratio,
        goal=GOAL,
        holds=ratio <= GOAL,
        ratios=ratios["ratio"],
        ratios_shared_teacher=ratios["ratio_shared_teacher"],
        adapter=options.adapter,
        steps=recipe.distill.steps,
        seeds=found,
        quick=options.quick,
    )


if __name__ == "__main__":
    main()
