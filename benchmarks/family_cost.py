"""One MatTA run that yields four Students, against four separate distillations of stock models from the same Teacher.

The stock models are cut out of the same converted TA, at the same widths, and see the same batches in the same order, for the
same number of steps, with the same optimizer, learning rates and losses (without the TA's). A MatTA step trains the TA and
some of the Students (``--students-per-step``; a Student in between gets fewer updates than its separate twin). Bases and
Teachers are those of ``matta demo``, trained on real data. Times are of training alone, without evaluation and checkpoints.
Quality is the held-out metric of each Student, with its bootstrap interval, for each seed.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import common
from matta_cli import demo, evaluate, optimization, sampling
from matta_cli.conversion import TA, convert
from matta_cli.devices import World
from matta_cli.distillation import Training, opened, student_for_evaluation
from matta_cli.losses import Logits, Term
from matta_cli.recipe import Recipe
from matta_cli.tasks import Data, Task

WIDTHS = [0.25, 0.5, 0.75, 1.0]


def quality(recipe: Recipe, task: Task, data: Data, model: nn.Module, device: torch.device) -> dict[str, float]:
    """The primary metric on the first held-out split, with its 95 % interval."""
    table = evaluate.columns(task, model.eval(), data.held_out[0], 64, device, recipe.data.eval_examples)
    return evaluate.intervals(task, [table], 200)[task.metrics[0].name]


def matta(recipe: Recipe, out: Path, device: torch.device) -> tuple[float, dict[float, dict[str, float]], dict[float, int]]:
    """Seconds, the quality of each width, and how often it was trained."""
    task, ta, teacher, data = opened(recipe, out, device, World(), lambda _: None)
    training = Training(recipe, out / "unused", task, ta, teacher, data, device, World())
    steps = range(recipe.distill.steps)
    started = time.perf_counter()
    for step, batches in zip(steps, training.batches(steps), strict=True):
        training.take(step, batches)
    seconds = time.perf_counter() - started
    updates = {width: sum(width in training.step.widths(step) for step in steps) for width in WIDTHS}
    students = {w: student_for_evaluation(task, ta, w, data.train, recipe.distill.batch_size, device) for w in WIDTHS}
    return seconds, {width: quality(recipe, task, data, student, device) for width, student in students.items()}, updates


def alone(recipe: Recipe, out: Path, width: float, device: torch.device) -> tuple[float, float, dict[str, float]]:
    """Seconds of one separate distillation, those of its Teacher's forward passes, and the Student's quality."""
    settings = recipe.distill
    task, ta, teacher, data = opened(recipe, out, device, World(), lambda _: None)
    student = ta.student(width).to(device).train()
    optimizer = optimization.make_optimizer(recipe, student, [], device)
    order: dict[int, torch.Tensor] = {}
    asked, started = 0.0, time.perf_counter()
    for step in range(settings.steps):
        sampling.seed_step(settings.seed, step)
        rows = sampling.indices(settings.seed, step, settings.batch_size, len(data.train), order)
        batch = {name: tensor.to(device) for name, tensor in data.train.batch(rows).items()}
        before = time.perf_counter()
        taught = teacher(batch, rows)
        asked += time.perf_counter() - before
        terms = [Term("truth", 1 - settings.teacher_mix), Term("teacher", settings.teacher_mix, taught)]
        task.objective(Logits(task.forward(student, batch)), batch, terms)[0].backward()
        nn.utils.clip_grad_norm_(student.parameters(), settings.clip)
        for group in optimizer.param_groups:
            group["lr"] = optimization.learning_rate(recipe, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - started
    own = TA(ta.adapter, student.eval(), ta.adapter.axes(student), {a.name: a.size for a in ta.adapter.axes(student)}, {})
    own_student = student_for_evaluation(task, own, 1.0, data.train, settings.batch_size, device)
    return seconds, asked, quality(recipe, task, data, own_student, device)


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument("--adapter", choices=list(demo.STEPS), default="vit", help="whose demo gives the data and models")
    arguments.add_argument("--seeds", type=int, default=2)
    arguments.add_argument("--students-per-step", type=int, default=3)
    options = arguments.parse_args()
    device = common.device()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temp:
        recipe = demo.prepare(options.adapter, Path(temp), quick=options.quick)
        recipe.distill.widths, recipe.distill.students_per_step = WIDTHS, options.students_per_step
        recipe.distill.allow_weak_teacher = options.quick
        convert(recipe, Path(temp))
        for seed in range(options.seeds):
            recipe.distill.seed = seed
            seconds, family, updates = matta(recipe, Path(temp), device)
            separate = {width: alone(recipe, Path(temp), width, device) for width in WIDTHS}
            total, asked = (sum(part[i] for part in separate.values()) for i in (0, 1))
            students = {
                f"{width:g}": {"matta": family[width], "alone": separate[width][2], "updates": updates[width]}
                for width in WIDTHS
            }
            one_teacher = total - asked * (len(WIDTHS) - 1) / len(WIDTHS)
            ratios = {"ratio": seconds / total, "ratio_one_teacher_pass": seconds / one_teacher}
            runs.append({"seed": seed, "matta_s": seconds, "alone_s": total, **ratios, "students": students})
    middle = {name: statistics.median(run[name] for run in runs) for name in ("ratio", "ratio_one_teacher_pass")}
    common.result(
        "family_cost", **middle, goal=0.4, holds=middle["ratio"] <= 0.4, adapter=options.adapter, steps=recipe.distill.steps,
        students_per_step=options.students_per_step, runs=runs, quick=options.quick,
    )  # fmt: skip


if __name__ == "__main__":
    main()
