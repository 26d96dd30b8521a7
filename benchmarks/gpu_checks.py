"""What ``gpu_suite`` checks on tiny models: gradients against float64, and a resumed run."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import common
from matta_cli.conversion.convert import convert
from matta_cli.data.split import Batch
from matta_cli.files.workspace import Workspace
from matta_cli.models import plugins
from matta_cli.models.ta import TA
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task
from matta_cli.training.objective import Step
from matta_cli.training.run import distill
from matta_cli.training.teacher import ModelTeacher


def tools(name: str, **settings: Any) -> tuple[Recipe, TA, nn.Module, Batch]:
    """A tiny model as TA, a Teacher and a batch."""
    recipe = Recipe()
    recipe.distill.ramp = 0.0
    recipe.update(
        {"distill": {"precision": "fp32", "widths": [0.5, 1.0], "rows": "all"}}, "benchmark"
    )
    recipe.update({"distill": settings}, "benchmark")
    generator = torch.Generator().manual_seed(2)
    if name == "vit":
        ta, teacher = common.grown(name, common.vit(128, 2)), common.vit(192, 2)
        batch = {
            "image": torch.randn(4, 3, 64, 64, generator=generator),
            "label": torch.randint(100, (4,), generator=generator),
        }
    else:
        ta = common.grown(
            name, common.gpt2(128, 2, 64, 512, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        )
        teacher = common.gpt2(192, 2, 64, 512)
        batch = {"input_ids": torch.randint(512, (4, 64), generator=generator)}
    with torch.no_grad():
        for parameter in ta.model.parameters():  # the new units must have a say
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return recipe, ta, teacher.requires_grad_(False), batch


def to(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def gradients(name: str, device: torch.device, **settings: Any) -> dict[str, Tensor]:
    """A step's gradients of the TA."""
    # dynamo counts the graphs of all steps of a process, and runs eagerly what is too many
    torch._dynamo.reset()
    recipe, ta, teacher, batch = tools(name, **settings)
    ta.model.to(device)
    task = tasks_task.task(ta.adapter.task, recipe)
    batch = to(batch, device)
    step = Step(recipe.distill, task, ta, ModelTeacher(task, teacher.to(device)), batch, device)
    common.take(step, batch, 1)
    return {name: p.grad.double() for name, p in ta.model.named_parameters() if p.grad is not None}


def reference(name: str, device: torch.device) -> dict[str, Tensor]:
    """The same by autograd, all in float64, with the losses written out."""
    recipe, ta, teacher, batch = tools(name)
    settings, batch = recipe.distill, to(batch, device)
    batch |= {"image": batch["image"].double()} if name == "vit" else {}
    ta.model.to(device).double()
    teacher = teacher.to(device).double()
    task = tasks_task.task(ta.adapter.task, recipe)
    tau = settings.temperature

    def kd(z: Tensor, t: Tensor) -> Tensor:
        given = F.log_softmax(t / tau, -1)
        rows = z.shape[:-1].numel()
        return (
            F.kl_div(F.log_softmax(z / tau, -1), given, log_target=True, reduction="sum")
            * tau**2
            / rows
        )

    def truth(z: Tensor) -> Tensor:
        if name == "vit":
            return F.cross_entropy(z, batch["label"])
        return F.cross_entropy(z[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())

    def own(z: Tensor) -> Tensor:
        return (1 - settings.teacher_mix) * truth(z) + settings.teacher_mix * kd(
            z, task.forward(teacher, batch)
        )

    z_ta = task.forward(ta.model, batch)
    total = own(z_ta)
    for width in settings.widths:
        z = task.forward(ta.at(width), batch)
        total = total + (own(z) + settings.ta_student_weight * kd(z, z_ta.detach())) / len(
            settings.widths
        )
    total.backward()
    return {name: p.grad for name, p in ta.model.named_parameters() if p.grad is not None}


@contextmanager
def small_chunks() -> Iterator[None]:
    """Tiny models' logits, too, are made in several pieces."""
    from matta_cli.losses import classes

    names = ("_CHUNK", "_PRODUCT_CHUNK", "_CUDA_CHUNK")
    before = {name: getattr(classes, name) for name in names}
    for name in names:
        setattr(classes, name, 1 << 8)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(classes, name, value)


def gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative error of a tensor, by its norm."""
    assert found.keys() == expected.keys()
    return max(
        float((found[n].cpu() - expected[n].cpu()).norm() / expected[n].norm().cpu())
        for n in expected
    )


def correctness(name: str, device: torch.device, backend: str) -> dict[str, Any]:
    """The errors of a small model's gradients in each way of training it, with their bounds."""
    exact = reference(name, device)
    eager = gradients(name, device)

    def error(expected: dict[str, Tensor], bound: float, **settings: Any) -> tuple[float, float]:
        return gap(gradients(name, device, **settings), expected), bound

    found = {
        "fp32": (gap(eager, exact), 1e-4),
        "bf16": error(exact, 0.05, precision="bf16"),
        "tf32": error(exact, 0.01, precision="tf32"),
        "checkpointed": error(eager, 1e-4, checkpoint_activations=True),
        "compiled": error(eager, 1e-4, compile=backend),
    }
    if device.type == "cuda":  # kernels of their own
        found["compiled_bf16"] = error(exact, 0.05, compile=backend, precision="bf16")
    with small_chunks():
        found["chunked"] = error(eager, 1e-4, logits="chunked")
        found["chunked_bf16"] = error(exact, 0.05, logits="chunked", precision="bf16")
    recipe, ta, _, batch = tools(name)
    ta.model.to(device)
    task = tasks_task.task(ta.adapter.task, recipe)
    half = ta.student(0.5)
    with torch.no_grad():
        models = (half.view().eval(), half.dense())
        view, dense = (task.forward(model, to(batch, device)) for model in models)
    found["view"] = (float((view - dense).abs().max() / dense.abs().max()), 1e-5)
    return {
        check: {"error": error, "bound": bound, "holds": error <= bound}
        for check, (error, bound) in found.items()
    }


def resumed() -> dict[str, Any]:
    """The losses of a run that is resumed half-way, against those of one that is not.

    The images are noise.
    """
    with tempfile.TemporaryDirectory() as temp:
        out = Path(temp)
        recipe = Recipe()
        generator = np.random.default_rng(0)
        images = generator.integers(256, size=(400, 64, 64, 3), dtype="uint8")
        np.savez(out / "noise.npz", images=images, labels=np.arange(400) % 100)
        adapter = plugins.adapter("vit")
        for role, width in (("base", 64), ("teacher", 128)):
            (out / role).mkdir()
            adapter.save(common.vit(width, 2), out / role)
        recipe.convert.source, recipe.distill.teacher = str(out / "base"), str(out / "teacher")
        recipe.convert.adapter, recipe.convert.order = "vit", "none"
        recipe.data.train = str(out / "noise.npz")
        settings = {"steps": 8, "save_every": 4, "eval_every": 8, "allow_weak_teacher": True}
        recipe.update({"distill": settings}, "benchmark")
        convert(recipe, out)
        last = distill(recipe, out)

        def logged() -> list[float]:
            records = [json.loads(line) for line in Workspace(out).log.read_text().splitlines()]
            return [terms["loss"] for record in records for terms in record["terms"].values()]

        straight = logged()
        shutil.rmtree(last)
        distill(recipe, out, resume=True)
        error = max(abs(a - b) / abs(a) for a, b in zip(straight, logged(), strict=True))
    return {"error": error, "bound": 1e-3, "holds": error <= 1e-3}
