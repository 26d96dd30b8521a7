"""Time of a MatTA step divided by the sum of its parts run on plain stock models.

The parts: Teacher forward, TA forward and backward, and forward and backward of each Student of the step, each a dense
model of its own with the same losses. A round runs the MatTA step and then the parts; the ratio is the median over rounds.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.common import alternating, arguments, result
from matta_cli import registry, supernet
from matta_cli.conversion import TA
from matta_cli.losses import Logits, Term
from matta_cli.recipe import Recipe
from matta_cli.step import ModelTeacher, Step


def gpt2(width: int, layers: int, length: int) -> torch.nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=4096, n_positions=length, n_embd=width, n_layer=layers, n_head=width // 64)
    return GPT2LMHeadModel(config).eval()


def vit(width: int, layers: int, _length: int) -> torch.nn.Module:
    import timm

    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=64,
        patch_size=8,
        embed_dim=width,
        depth=layers,
        num_heads=width // 64,
        num_classes=100,
        pretrained_cfg_overlay={"input_size": (3, 64, 64)},
    ).eval()


def measure(name: str, quick: bool) -> dict[str, Any]:
    """Seconds of a step and of its parts for one architecture."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    width, layers, length, size = (128, 2, 64, 8) if quick else (256, 4, 128, 16)
    make = {"gpt2": gpt2, "vit": vit}[name]
    adapter = registry.adapter(name)
    recipe = Recipe()
    recipe.distill.ramp = 0.0  # every term from the first step on
    task = registry.task(adapter.task, recipe)
    base, teacher = make(width, layers, length), make(2 * width, layers, length).to(device).requires_grad_(False)
    axes = adapter.axes(base)
    sizes = {a.name: a.size for a in axes}
    grown = supernet.grow(adapter, base, axes, {a.name: 2 * a.size for a in axes}).to(device).train()
    ta = TA(adapter, grown, adapter.axes(grown), sizes, {})
    step = Step(recipe, task, ta, ModelTeacher(task, teacher), device)
    students = {w: ta.student(w).train() for w in recipe.distill.widths}
    dense_ta = ta.student(2.0).train()
    batch = {k: v.to(device) for k, v in task.example(base, size).items()}
    if name == "vit":
        batch["label"] = torch.randint(100, (size,), device=device)
    rows = list(range(size))

    def nested() -> None:
        step(batch, rows, 0)
        grown.zero_grad(set_to_none=True)

    def parts() -> None:
        with torch.no_grad():
            taught = task.forward(teacher, batch)
        own = [Term("truth", 0.1), Term("teacher", 0.9, Logits(taught))]
        logits = task.forward(dense_ta, batch)
        task.objective(Logits(logits), batch, own)[0].backward()
        both = [*own, Term("ta", 0.5, Logits(logits.detach()))]
        for student in students.values():
            task.objective(Logits(task.forward(student, batch)), batch, both)[0].backward()
            student.zero_grad(set_to_none=True)
        dense_ta.zero_grad(set_to_none=True)

    return dict(alternating({f"{name}_matta": nested, f"{name}_parts": parts}, 7 if quick else 15))


def main() -> None:
    options = arguments(__doc__)
    taken: dict[str, list[float]] = {}
    ratios = {}
    for name in ("gpt2", "vit"):
        taken |= measure(name, options.quick)
        pairs = zip(taken[f"{name}_matta"], taken[f"{name}_parts"], strict=True)
        ratios[name] = statistics.median(a / b for a, b in pairs)
    result("step_time", taken, ratio=max(ratios.values()), ratios=ratios, quick=options.quick, bound=1.10)


if __name__ == "__main__":
    main()
