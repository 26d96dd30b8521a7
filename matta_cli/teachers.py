"""The Teacher: a frozen model, checked before anything is trained."""

from __future__ import annotations

import torch
from torch import nn

from matta_cli import evaluate, models
from matta_cli.conversion import TA
from matta_cli.errors import MattaError, said
from matta_cli.recipe import Recipe
from matta_cli.tasks import Split, Task

CHANCE_EXAMPLES = 256


def load_teacher(recipe: Recipe, task: Task, ta: TA, device: torch.device) -> tuple[nn.Module, models.Source]:
    """The frozen Teacher on ``device``. Raises ``MattaError`` if its outputs are not the TA's or its weights are broken."""
    name = recipe.distill.teacher
    if not name:
        raise MattaError("No Teacher is named: pass --teacher with a local folder, a hub id, a timm name or a state dict.")
    example = ta.card.get("example", "")
    teacher, source = models.load_model(name, ta.adapter.task, adapter=ta.adapter, example=example)
    _refuse_broken(name, teacher)
    try:
        teacher = task.fit_teacher(teacher, source.beside, ta.model)
    except MattaError as error:
        raise MattaError(f"Teacher {name!r}: {error}") from None
    return teacher.to(device).eval().requires_grad_(False), source


def _refuse_broken(name: str, teacher: nn.Module) -> None:
    """Raise ``MattaError`` for weights that are not finite, or a matrix of nothing but zeros."""
    for tensor, values in teacher.named_parameters():
        if not torch.isfinite(values).all():
            raise MattaError(f"Teacher {name!r}: its weight {tensor!r} holds NaN or infinity.")
    if all(not p.any() for p in teacher.parameters() if p.dim() > 1):
        raise MattaError(f"Teacher {name!r}: all its weight matrices are zero: the file holds no trained model.")


def check_teacher(recipe: Recipe, task: Task, teacher: nn.Module, outputs: int, split: Split, device: torch.device) -> None:
    """Refuse a Teacher that does not run on the data, or is no better than guessing on the first examples."""
    settings = recipe.distill
    enough = settings.batch_size if settings.allow_weak_teacher else CHANCE_EXAMPLES
    try:
        table = evaluate.columns(task, teacher, split, settings.batch_size, device, enough)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:  # whatever its own code makes of it
        raise MattaError(f"The Teacher {settings.teacher!r} does not run on this data: {said(error)}.") from error
    sentence = None if settings.allow_weak_teacher else task.at_chance(table, outputs)
    if sentence:
        raise MattaError(
            f"The Teacher {settings.teacher!r} is too weak: {sentence.rstrip('.')}. Pass --allow-weak-teacher to go on."
        )
