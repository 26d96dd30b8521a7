"""What a run works with, checked before anything is trained."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from matta_cli.data.split import Data
from matta_cli.devices.device import PRECISIONS
from matta_cli.devices.processes import World
from matta_cli.errors import MattaError
from matta_cli.files.workspace import Workspace
from matta_cli.losses import classes
from matta_cli.models import tokenizer
from matta_cli.models.folders import load_ta
from matta_cli.models.ta import TA
from matta_cli.nested import view
from matta_cli.progress import Listener, Progress
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task
from matta_cli.tasks.task import Task
from matta_cli.training import log, optimizer, teacher_file
from matta_cli.training.teacher import ModelTeacher, asks_teacher, check_teacher, load_teacher
from matta_cli.training.teacher_file import FileTeacher


def opened(
    recipe: Recipe, out: Path, device: torch.device, world: World, listen: Listener
) -> tuple[Task, TA, ModelTeacher | FileTeacher | None, Data]:
    """What a run works with, checked: the task, the TA as it was converted, the Teacher, the data.

    There is no Teacher where none is named and the recipe has no term for one (``teacher_mix = 0``:
    labels alone).
    """
    folder = Workspace(out).ta
    ta = load_ta(folder)
    _check(recipe, ta, world)
    task = tasks_task.task(ta.adapter.task, recipe)
    if view.has_statistics(ta.model) and min(_parts(recipe, world)) < 2:
        raise MattaError(
            "--batch-size 1 is not possible: the model has BatchNorm, which needs 2 examples or more at a time."
        )
    if not recipe.distill.teacher and not asks_teacher(recipe.distill, task):
        data = task.data(folder, ta.model)
        listen(Progress(message=f"Data: {data.description}"))
        return task, ta, None, data
    if teacher_file.is_file(recipe.distill.teacher):
        data = task.data(folder, ta.model)
        listen(Progress(message=f"Data: {data.description}"))
        said = FileTeacher(recipe.distill.teacher, task, data, task.outputs(ta.model))
        said.check(recipe)
        return task, ta, said, data
    model, source = load_teacher(recipe, task, ta, device)
    if (
        source.beside is not None
        and task.name == "causal_lm"
        and not tokenizer.has_tokenizer(folder)
    ):
        folder = source.beside  # the same vocabulary, so the Teacher's tokenizer is the model's
    data = task.data(folder, ta.model)
    listen(Progress(message=f"Data: {data.description}"))
    check_teacher(recipe, task, model, task.outputs(ta.model), data.held_out[0], device)
    return task, ta, ModelTeacher(task, model, folder), data


def _parts(recipe: Recipe, world: World) -> set[int]:
    """The numbers of examples that go through the models at a time."""
    each = recipe.distill.batch_size // world.size
    size = recipe.distill.micro_batch or each
    return {min(size, each), each % size or size}


def _check(recipe: Recipe, ta: TA, world: World) -> None:
    """Settings that make no sense, each with a sentence, before anything is loaded."""
    s = recipe.distill
    for name, value in (
        ("steps", s.steps),
        ("batch-size", s.batch_size),
        ("lr", s.lr),
        ("max-bad-steps", s.max_bad_steps),
        ("temperature", s.temperature),
    ):
        if not value > 0:
            raise MattaError(f"--{name} {value:g} is not possible: it must be above 0.")
    for name in ("teacher_mix", "ramp", "warmup"):
        if not 0 <= getattr(s, name) <= 1:
            raise MattaError(
                f"distill.{name} {getattr(s, name):g} is not possible: it is a share from 0 to 1."
            )
    for name in (
        "student_weight",
        "ta_weight",
        "ta_student_weight",
        "hidden_weight",
        "weight_decay",
        "clip",
        "micro_batch",
        "keep",
        "save_every",
        "eval_every",
        "eval_examples",
        "relation_weight",
    ):
        if not 0 <= getattr(s, name) < math.inf:
            raise MattaError(
                f"distill.{name} {getattr(s, name):g} is not possible: it must be 0 or more."
            )
    for name, known in (
        ("ranking_loss", ("pointwise", "pairwise", "listwise")),
        ("divergence", classes.DIVERGENCES),
        ("students_learn_from", ("both", "ta", "teacher")),
        ("logits", ("auto", "chunked", "whole")),
        ("precision", PRECISIONS),
        ("optimizer", optimizer.OPTIMIZERS),
        ("compile", ("", *_backends(s.compile))),
    ):
        if getattr(s, name) not in known:
            flag = (
                f"--{name.replace('_', '-')}"
                if name in ("ranking_loss", "precision", "optimizer")
                else f"distill.{name}"
            )
            raise MattaError(
                f"{flag} {getattr(s, name)!r} is not known: {', '.join(k for k in known if k)}."
            )
    log.check(s.log_to)
    if not s.widths:
        raise MattaError("There are no widths to train: name some in distill.widths.")
    for width in s.widths:
        ta.sizes(width)
    if s.students_per_step < 1:
        raise MattaError(
            f"distill.students_per_step {s.students_per_step} is not possible: a step has 1 Student or more."
        )
    if s.sampling and (
        len(s.sampling) != len(s.widths) or not all(0 < w < math.inf for w in s.sampling)
    ):
        raise MattaError(
            f"distill.sampling {s.sampling} is not possible: it is one number above 0 for each of {s.widths}."
        )
    if s.best and s.best not in s.widths:
        raise MattaError(
            f"distill.best {s.best:g} is not one of the widths {', '.join(f'{w:g}' for w in s.widths)}."
        )
    if s.ta_width:
        ta.sizes(s.ta_width)
        if not s.detach_ta:
            raise MattaError(
                "distill.ta_width is not supported with detach_ta = false: it then teaches at its whole width."
            )
    own_views = (
        s.hidden_weight
        or s.logits == "chunked"
        or s.checkpoint_activations
        or s.compile
        or not s.dropout
    )
    if not s.shared and own_views:
        raise MattaError(
            "distill.shared = false is an ablation: hidden_weight, logits = 'chunked', checkpoint_activations, compile and "
            "dropout = false are not supported with it."
        )
    if s.shard and world.size == 1:
        raise MattaError(
            "distill.shard needs several devices: pass --devices 2 or more, start it with torchrun, or pass --no-shard."
        )
    own_way = s.optimizer != "adamw" or not s.shared or not s.detach_ta or s.ta_weight == 0
    if s.shard and (own_way or s.hidden_weight or s.compile):
        raise MattaError(
            "distill.shard is not supported with another optimizer than adamw, with shared = false, detach_ta = false, "
            "ta_weight = 0, hidden_weight or compile."
        )
    check_count(s.batch_size, world.size)
    if s.compile and len(_parts(recipe, world)) > 1:
        raise MattaError(
            f"--compile needs batches of one size: --micro-batch {s.micro_batch} does not divide the batch."
        )


def check_count(batch_size: int, devices: int) -> None:
    """Raise ``MattaError`` where a batch cannot be divided among the devices."""
    if batch_size % devices:
        raise MattaError(
            f"--batch-size {batch_size} cannot be divided among {devices} devices: take a multiple."
        )


def _backends(wanted: str) -> list[str]:
    """torch.compile's backends, looked up only where one is wanted: that takes a second."""
    return torch._dynamo.list_backends(None) if wanted else []
