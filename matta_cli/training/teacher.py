"""The Teacher: a frozen model, checked before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from matta_cli.adapter import Adapter, Source
from matta_cli.data.split import Batch
from matta_cli.errors import MattaError, command
from matta_cli.files.workspace import Workspace
from matta_cli.losses.targets import Logits, Target
from matta_cli.models import load, plugins, tokenizer
from matta_cli.models.ta import TA
from matta_cli.nested import view
from matta_cli.progress import Say
from matta_cli.settings.recipe import DistillSettings
from matta_cli.tasks.task import Task

# from a batch, and the numbers of its examples in the split, to what is said about them
Teacher = Callable[[Batch, list[int]], Target]


def load_teacher(
    settings: DistillSettings,
    task: Task,
    ta: TA,
    out: Path,
    device: torch.device,
    say: Say = lambda _: None,
    home: Path | None = None,
) -> tuple[nn.Module, Source]:
    """The frozen Teacher on ``device``, and where it came from.

    out: the output folder that the TA lies in. say: hears what was assumed of the Teacher. home:
    where the tokenizer and the like of the TA lie. Raises ``MattaError`` if its outputs are not the
    TA's or its weights are broken.
    """
    name = settings.teacher
    if not name:
        forms = "a larger model of the same outputs (a folder, a hub id, a timm name, a state dict)"
        itself = command("distill", out, "--teacher", _itself(ta, out))
        raise MattaError(
            f"No Teacher is named: pass --teacher with {forms}, or the model itself, which is a "
            f"Teacher of its smaller Students: `{itself}`."
        )
    try:
        teacher, source = load.load_model(
            name,
            ta.adapter.task,
            adapter=ta.adapter,
            only=_adapter(settings.teacher_adapter, out),
            model_config=Path(settings.teacher_config) if settings.teacher_config else None,
            example=ta.card.get("example", ""),
            say=lambda note: say(f"Note: Teacher {name!r}: {_flags(note)}"),
        )
    except MattaError as error:
        raise MattaError(_flags(str(error))) from error
    for tensor, values in teacher.named_parameters():
        if not torch.isfinite(values).all():
            raise MattaError(f"Teacher {name!r}: its weight {tensor!r} holds NaN or infinity.")
    if all(not p.any() for p in teacher.parameters() if p.dim() > 1):
        empty = "all its weight matrices are zero: the file holds no trained model"
        raise MattaError(f"Teacher {name!r}: {empty}.")
    try:
        teacher = task.fit_teacher(teacher, source.beside, ta.model, home)
    except MattaError as error:
        raise MattaError(f"Teacher {name!r}: {error}") from None
    both = tokenizer.two_formats(source.beside) if source.beside else ""
    for note in filter(None, (*source.notes, both, *task.notes)):
        say(f"Note: Teacher {name!r}: {note}")
    task.notes.clear()
    return teacher.to(device).eval().requires_grad_(False), source


def is_base(settings: DistillSettings, digest: str, ta: TA) -> bool:
    """Whether a Teacher is the model that a TA was made of, opened as that was.

    digest: of the Teacher's weights (``weights_digest``).
    """
    otherwise = settings.teacher_config or settings.teacher_adapter
    return not otherwise and digest == ta.card["lineage"].get("weights")


def _itself(ta: TA, out: Path) -> str:
    """What opens the model that a TA was made of: what its user typed, or the TA's folder."""
    source = str(ta.card["lineage"]["source"])
    alone = not ta.card.get("opened_with") and (
        Path(source).expanduser().exists() or ":" not in source
    )
    return source if alone else str(Workspace(out).ta)


def _adapter(spec: str, out: Path) -> Adapter | None:
    """The adapter that ``distill.teacher_adapter`` names.

    A settings file may come from anywhere: code that it names runs if the user named it before.
    """
    return plugins.adapter(spec, Workspace(out).ta) if spec else None


def _flags(sentence: str) -> str:
    """A sentence on opening a model, with the flags that a Teacher has."""
    return re.sub(r"--(adapter|config)\b", r"--teacher-\1", sentence)


def halve(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights of a frozen model's products in ``dtype``, the type that autocast casts to.

    It then has the same outputs, bit for bit, in half the memory, and casts nothing at each call.
    What is no product's alone (an embedding that is the output layer, too) stays as it is.
    """
    used: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            used[id(parameter)] = used.get(id(parameter), 0) + 1
    products = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D)
    for module in model.modules():
        for parameter in module.parameters(recurse=False) if isinstance(module, products) else ():
            if used[id(parameter)] == 1:
                parameter.data = parameter.data.to(dtype)


def asks_teacher(settings: DistillSettings, task: Task) -> bool:
    """Whether any term of the loss needs the Teacher."""
    return not task.labelled or settings.teacher_mix > 0


def head(model: nn.Module) -> str:
    """The name of the linear layer that makes a model's outputs; empty where there is none."""
    layer: Any = None
    for getter in ("get_output_embeddings", "get_classifier"):
        try:
            layer = layer or getattr(model, getter)()
        except (AttributeError, NotImplementedError):
            continue
    if not isinstance(layer, nn.Linear):
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        layer = linear[-1] if linear else None
    return next((name for name, module in model.named_modules() if module is layer), "")


@torch.no_grad()
def is_product(
    task: Task, whole: Any, hidden: Any, output: tuple[Tensor, Tensor | None], batch: Batch
) -> bool:
    """Whether a model's logits are what its last linear layer makes of hidden states.

    They are not where anything is done to them afterwards, such as capping or scaling. whole: the
    model. hidden: the model without that layer. output: the layer's weight and bias.
    """
    try:
        expected, got = task.forward(whole, batch), F.linear(task.forward(hidden, batch), *output)
    except (RuntimeError, IndexError, ValueError):
        return False
    if expected.numel() != got.numel():
        return False
    return torch.allclose(expected.flatten(), got.flatten(), rtol=1e-3, atol=1e-3)


class ModelTeacher:
    """A frozen model as the Teacher of a step."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        self.task, self.model = task, model
        # what is run, and the layer that makes logits of what it gives, if that is left out
        self.body = model
        self.output: tuple[Tensor, Tensor | None] | None = None

    def split_head(self, batch: Batch) -> bool:
        """From now on give hidden states and the output matrix, if the logits are their product.

        Returns whether they are.
        """
        name = head(self.model)
        if self.output is None and name:
            layer: Any = self.model.get_submodule(name)
            body, output = view.without(self.model, name), (layer.weight, layer.bias)
            if is_product(self.task, self.model, body, output, batch):
                self.body, self.output = body, output
        return self.output is not None

    @torch.no_grad()
    def __call__(self, batch: Batch, rows: list[int]) -> Logits:
        """Logits of a batch, detached."""
        out = self.task.forward(self.body, batch)
        return Logits(out) if self.output is None else Logits(out, *self.output)
