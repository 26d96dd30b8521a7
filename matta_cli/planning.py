"""What a run would do and cost, found out by taking a few of its steps and forgetting them."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from matta_cli import cost, devices, distillation, evaluate, optimization
from matta_cli.devices import World
from matta_cli.distillation import Training
from matta_cli.progress import Listener, Progress, quiet
from matta_cli.recipe import Recipe
from matta_cli.step import ModelTeacher

TIMED = 3  # steps, after one to warm up


def plan(recipe: Recipe, out: Path, count: int = 1, listen: Listener = quiet) -> dict[str, Any]:
    """What ``distill`` would do with this recipe on ``count`` devices like this one. Writes nothing.

    Bytes are bytes, times are seconds. With several devices a step is timed on one device's part of the batch, without the
    exchange between devices, and memory is that of a run that is not sharded. Raises ``MattaError`` for all that
    ``distill`` refuses.
    """
    recipe = copy.deepcopy(recipe)
    settings = recipe.distill
    each = settings.batch_size // count
    distillation.check_count(settings.batch_size, count)
    settings.batch_size, settings.shard, settings.log_to = each, False, []
    device = devices.pick(devices.local(settings.device))
    task, ta, teacher, data = distillation.opened(recipe, out, device, World(), listen)
    frozen = teacher.model if isinstance(teacher, ModelTeacher) else None
    evaluations = settings.steps // (settings.eval_every or max(1, settings.steps // 10))
    with tempfile.TemporaryDirectory() as temp:
        started = time.perf_counter()
        training = Training(recipe, Path(temp) / "run", task, ta, teacher, data, device, World(), count_flops=True)
        taken: list[float] = []
        stream = training.batches(range(1 + TIMED))
        with cost.peak(device) as peak, closing(stream):
            for step in range(1 + TIMED):
                listen(Progress(message=f"Timing step {step + 1} of {1 + TIMED}."))
                started = time.perf_counter()
                batches = next(stream)
                training.take(step, batches)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                taken.append(time.perf_counter() - started)
        items = sum(task.items(batch) for batch, _ in batches)
        outputs = task.counts(batches[0][0])["outputs"]
        state = sum(t.numel() * t.element_size() for t in optimization.state_of(training.optimizer)[0].values())
        size, examples = settings.micro_batch or each, min(settings.eval_examples or 10**9, len(data.held_out[0]))
        timed = min(size, examples)
        started = time.perf_counter()
        evaluate.columns(task, ta.model.eval(), data.held_out[0], size, device, timed)
        evaluation = (time.perf_counter() - started) / timed * examples * (len(settings.widths) + 1)
    per_step = statistics.median(taken[1:])
    weights = _bytes(ta.model)
    logits = int(outputs * task.outputs(ta.model) * 4)
    return {
        "device": str(device), "devices": count, "precision": devices.resolved(settings.precision, device),
        "data": data.description, "steps": settings.steps, "examples_per_step": each * count,
        f"{data.unit}_per_step": items * count, f"{data.unit}": items * count * settings.steps,
        "teacher_parameters": cost.parameters(frozen) if frozen is not None else None,
        "teacher_bytes": _bytes(frozen) if frozen is not None else None,
        "ta_parameters": cost.parameters(ta.model), "ta_bytes": weights, "gradient_bytes": weights,
        "optimizer_bytes": state, "logits_bytes": logits, "logits_whole": not training.step.chunked,
        "peak_memory_bytes": peak.bytes, "checkpoint_bytes": weights + state,
        "disk_bytes": (weights + state) * (min(settings.keep or evaluations, evaluations) + bool(settings.best)),
        "step_seconds": per_step, "evaluations": evaluations, "evaluation_seconds": evaluation,
        "seconds": per_step * settings.steps + evaluation * evaluations,
        "model_flops_per_step": training.flops * count if training.flops else None,
    }  # fmt: skip


def rows(found: dict[str, Any]) -> list[list[str]]:
    """A plan as lines of a table, for people."""
    unit = next(key for key in found if key.endswith("_per_step") and not key.startswith(("examples", "model"))).split("_")[0]
    size = lambda value: "-" if value is None else _size(value)  # noqa: E731
    count = lambda value: "-" if value is None else f"{value:,}"  # noqa: E731
    whole = "whole in memory" if found["logits_whole"] else "never whole in memory"
    lines = [
        ["data", found["data"]],
        ["steps", f"{found['steps']:,} of {found['examples_per_step']:,} examples ({found[f'{unit}_per_step']:,} {unit})"],
        [f"{unit} in all", count(found[unit])],
        ["device", f"{found['devices']} x {found['device']}, {found['precision']}"],
        ["Teacher", f"{count(found['teacher_parameters'])} parameters, {size(found['teacher_bytes'])}"],
        ["TA", f"{count(found['ta_parameters'])} parameters, {size(found['ta_bytes'])}, gradients as much"],
        ["optimizer state", size(found["optimizer_bytes"])],
        ["logits of one model", f"{size(found['logits_bytes'])}, {whole}"],
        ["peak memory", f"{size(found['peak_memory_bytes'])} on each device"],
        ["a checkpoint", size(found["checkpoint_bytes"])],
        ["disk in all", size(found["disk_bytes"])],
        ["a step", f"{found['step_seconds']:.3g} s"],
        ["an evaluation", f"{found['evaluation_seconds']:.3g} s, {found['evaluations']} of them"],
        ["time in all", _duration(found["seconds"])],
    ]
    if found["model_flops_per_step"]:
        lines.append(["model FLOPs of a step", f"{found['model_flops_per_step']:.3g}"])
    return lines


def _bytes(model: torch.nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
