"""The Teacher: a frozen model, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matta_cli import adapter
from matta_cli.data.split import Batch, Split
from matta_cli.errors import MattaError, said
from matta_cli.losses.targets import Logits, Target
from matta_cli.measure import score
from matta_cli.models import load
from matta_cli.models.ta import TA
from matta_cli.nested import view
from matta_cli.settings.recipe import DistillSettings, Recipe
from matta_cli.tasks.task import Task

CHANCE_EXAMPLES = 256


def load_teacher(
    recipe: Recipe, task: Task, ta: TA, device: torch.device
) -> tuple[nn.Module, adapter.Source]:
    """The frozen Teacher on ``device``. Raises ``MattaError`` if its outputs are not the TA's or
    its weights are broken.
    """
    name = recipe.distill.teacher
    if not name:
        raise MattaError(
            "No Teacher is named: pass --teacher with a local folder, a hub id, a timm name or a state dict."
        )
    example = ta.card.get("example", "")
    teacher, source = load.load_model(name, ta.adapter.task, adapter=ta.adapter, example=example)
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
        raise MattaError(
            f"Teacher {name!r}: all its weight matrices are zero: the file holds no trained model."
        )


def check_teacher(
    recipe: Recipe, task: Task, teacher: nn.Module, outputs: int, split: Split, device: torch.device
) -> None:
    """Refuse a Teacher that does not run on the data, or is no better than guessing on the first
    examples.
    """
    settings = recipe.distill
    enough = settings.batch_size if settings.allow_weak_teacher else CHANCE_EXAMPLES
    try:
        table = score.columns(task, teacher, split, settings.batch_size, device, enough)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        # whatever its own code makes of it
        raise MattaError(
            f"The Teacher {settings.teacher!r} does not run on this data: {said(error)}."
        ) from error
    sentence = None if settings.allow_weak_teacher else task.at_chance(table, outputs)
    if sentence:
        raise MattaError(
            f"The Teacher {settings.teacher!r} is too weak: {sentence.rstrip('.')}. Pass --allow-weak-teacher to go on."
        )


# a batch, and the numbers of its examples in the split
Teacher = Callable[[Batch, list[int]], Target]


def head(model: nn.Module) -> str:
    """The name of the linear layer that makes a model's outputs; empty where there is none."""
    found: Any = None
    for getter in ("get_output_embeddings", "get_classifier"):
        try:
            found = found or getattr(model, getter)()
        except (AttributeError, NotImplementedError):
            continue
    if not isinstance(found, nn.Linear):
        found = next((m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear)), None)
    return (
        next((name for name, module in model.named_modules() if module is found), "")
        if found is not None
        else ""
    )


@torch.no_grad()
def is_product(
    task: Task, whole: Any, hidden: Any, output: tuple[Tensor, Tensor | None], batch: Batch
) -> bool:
    """Whether a model's logits are its last linear layer's outputs and nothing is done to them (no
    capping, no scaling).
    """
    try:
        expected, got = task.forward(whole, batch), F.linear(task.forward(hidden, batch), *output)
    except (RuntimeError, IndexError, ValueError):
        return False
    return expected.numel() == got.numel() and torch.allclose(
        expected.flatten(), got.flatten(), rtol=1e-3, atol=1e-3
    )


class ModelTeacher:
    """A frozen model as the Teacher of a step."""

    def __init__(self, task: Task, model: nn.Module, folder: Path | None = None) -> None:
        self.task, self.model, self.folder = task, model, folder
        self.output: tuple[Tensor, Tensor | None] | None = None

    def split_head(self, batch: Batch) -> bool:
        """From now on give hidden states and the output matrix, not logits, if those are their
        product. Returns whether.
        """
        name = head(self.model)
        if not name:
            return False
        layer: Any = self.model.get_submodule(name)
        body, output = view.without(self.model, name), (layer.weight, layer.bias)
        if not is_product(self.task, self.model, body, output, batch):
            return False
        self.model, self.output = body, output
        return True

    @torch.no_grad()
    def __call__(self, batch: Batch, rows: list[int]) -> Logits:
        """Logits of a batch, detached."""
        out = self.task.forward(self.model, batch)
        return Logits(out) if self.output is None else Logits(out, *self.output)


def asks_teacher(settings: DistillSettings, task: Task) -> bool:
    """Whether any term of the loss needs the Teacher."""
    return not task.labelled or settings.teacher_mix > 0 or settings.hidden_weight > 0
