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

from matta_cli.data.split import Batch
from matta_cli.devices import processes
from matta_cli.devices.device import pick, resolved
from matta_cli.devices.processes import World
from matta_cli.files.workspace import Workspace
from matta_cli.measure import cost, score
from matta_cli.progress import Listener, Progress, quiet
from matta_cli.settings.recipe import Recipe
from matta_cli.training import optimizer, setup
from matta_cli.training.loop import Training, intervals
from matta_cli.training.teacher import ModelTeacher

# timed rounds, after a step to warm up; seconds after which no other round begins
TIMED, LONGEST = 3, 60.0


# parts of a step (``micro_batch`` each) that are run; the rest of it takes as much time as the
# second of them
FEW = 2


# a round number by which FLOPs are told as time, for a device that is not at hand
FLOPS_SHOWN = 100e12


def plan(recipe: Recipe, out: Path, count: int = 1, listen: Listener = quiet) -> dict[str, Any]:
    """What ``distill`` would do with this recipe on ``count`` devices like this one. Writes
    nothing.

    Where ``micro_batch`` divides a step into more than two parts, the time of a step is put
    together from one part and two. Bytes are bytes, times are seconds. With several devices a step
    is timed on one device's part of the batch, without the exchange between devices, and memory is
    that of a run that is not sharded. Raises ``MattaError`` for all that ``distill`` refuses.
    """
    recipe = copy.deepcopy(recipe)
    settings = recipe.distill
    each = settings.batch_size // count
    setup.check_count(settings.batch_size, count)
    settings.batch_size, settings.shard, settings.log_to = each, False, []
    device = pick(processes.local(settings.device))
    task, ta, teacher, data = setup.opened(recipe, out, device, World(), listen)
    frozen = teacher.model if isinstance(teacher, ModelTeacher) else None
    evaluations, checkpoints = (-(-settings.steps // every) for every in intervals(settings))
    with tempfile.TemporaryDirectory() as temp:
        training = Training(
            recipe,
            Workspace(Path(temp)),
            task,
            ta,
            teacher,
            data,
            device,
            World(),
            count_flops=True,
        )
        stream = training.batches(range(1))
        with closing(stream):
            batches = next(stream)
        lengths = [1, FEW] if len(batches) > FEW else [len(batches)]
        taken: dict[int, list[float]] = {length: [] for length in lengths}
        with cost.peak(device) as peak:
            _timed(training, batches[: lengths[-1]], listen, "one to warm up")
            began = time.perf_counter()
            for turn in range(TIMED):
                if turn and time.perf_counter() - began > LONGEST:
                    break
                for length, times in taken.items():
                    times.append(
                        _timed(training, batches[:length], listen, f"{turn + 1} of {TIMED}")
                    )
        items = sum(task.items(batch) for batch, _ in batches)
        outputs = task.counts(batches[0][0])["outputs"]
        state = sum(
            t.numel() * t.element_size() for t in optimizer.state_of(training.optimizer)[0].values()
        )
        size, examples = (
            settings.micro_batch or each,
            min(settings.eval_examples or 10**9, len(data.held_out[0])),
        )
        timed = min(size, examples)
        started = time.perf_counter()
        score.columns(task, ta.model.eval(), data.held_out[0], size, device, timed)
        evaluation = (time.perf_counter() - started) / timed * examples * (len(settings.widths) + 1)
    medians = [statistics.median(times) for times in taken.values()]
    rest = max(0.0, medians[-1] - medians[0]) if len(lengths) > 1 else 0.0
    per_step = medians[-1] + rest * (len(batches) - lengths[-1])
    flops = training.flops * count if training.flops else None
    weights = _bytes(ta.model)
    standing = 2 * weights + state + (_bytes(frozen) if frozen is not None else 0)
    logits = int(outputs * task.outputs(ta.model) * 4)
    return {
        "device": str(device),
        "devices": count,
        "precision": resolved(settings.precision, device),
        "data": data.description,
        "steps": settings.steps,
        "examples_per_step": each * count,
        f"{data.unit}_per_step": items * count,
        f"{data.unit}": items * count * settings.steps,
        "teacher_parameters": cost.parameters(frozen) if frozen is not None else None,
        "teacher_bytes": _bytes(frozen) if frozen is not None else None,
        "ta_parameters": cost.parameters(ta.model),
        "ta_bytes": weights,
        "gradient_bytes": weights,
        "optimizer_bytes": state,
        "logits_bytes": logits,
        "logits_whole": not training.step.chunked,
        "standing_bytes": standing,
        "peak_memory_bytes": peak.bytes,
        "checkpoint_bytes": weights + state,
        "disk_bytes": (weights + state)
        * (min(settings.keep or checkpoints, checkpoints) + bool(settings.best)),
        "step_seconds": per_step,
        "evaluations": evaluations,
        "evaluation_seconds": evaluation,
        "seconds": per_step * settings.steps + evaluation * evaluations,
        "model_flops_per_step": flops,
        "model_flops": flops * settings.steps if flops else None,
    }


def _timed(
    training: Training, batches: list[tuple[Batch, list[int]]], listen: Listener, which: str
) -> float:
    """Seconds of a step of these parts."""
    listen(Progress(message=f"Timing a step, {which}."))
    started = time.perf_counter()
    training.take(0, batches)
    if training.device.type == "cuda":
        torch.cuda.synchronize(training.device)
    return time.perf_counter() - started


def rows(found: dict[str, Any]) -> list[list[str]]:
    """A plan as lines of a table, for people."""
    unit = next(
        key
        for key in found
        if key.endswith("_per_step") and not key.startswith(("examples", "model"))
    ).split("_")[0]
    size = lambda value: "-" if value is None else _size(value)  # noqa: E731
    count = lambda value: "-" if value is None else f"{value:,}"  # noqa: E731
    whole = "whole in memory" if found["logits_whole"] else "never whole in memory"
    lines = [
        ["data", found["data"]],
        [
            "steps",
            f"{found['steps']:,} of {found['examples_per_step']:,} examples ({found[f'{unit}_per_step']:,} {unit})",
        ],
        [f"{unit} in all", count(found[unit])],
        ["device", f"{found['devices']} x {found['device']}, {found['precision']}"],
        [
            "Teacher",
            f"{count(found['teacher_parameters'])} parameters, {size(found['teacher_bytes'])}",
        ],
        [
            "TA",
            f"{count(found['ta_parameters'])} parameters, {size(found['ta_bytes'])}, gradients as much",
        ],
        ["optimizer state", size(found["optimizer_bytes"])],
        ["logits of one model", f"{size(found['logits_bytes'])}, {whole}"],
        [
            "weights, gradients, optimizer",
            f"{size(found['standing_bytes'])} with the Teacher, on each device",
        ],
        ["peak memory", f"{size(found['peak_memory_bytes'])} on each device"],
        ["a checkpoint", size(found["checkpoint_bytes"])],
        ["disk in all", size(found["disk_bytes"])],
        ["a step", f"{found['step_seconds']:.3g} s"],
        ["an evaluation", f"{found['evaluation_seconds']:.3g} s, {found['evaluations']} of them"],
        ["time in all", _duration(found["seconds"])],
    ]
    if found["model_flops_per_step"]:
        total, rate = found["model_flops"], FLOPS_SHOWN * found["devices"]
        lines.append(["model FLOPs of a step", f"{found['model_flops_per_step']:.3g}"])
        told = f"{_duration(total / rate)} at {FLOPS_SHOWN / 1e12:g} TFLOP/s a device"
        lines.append(["model FLOPs in all", f"{total:.3g}: {told}"])
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
