"""What a run would do and cost, found out by taking a few of its steps and forgetting them."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from matta_cli.devices import processes
from matta_cli.devices.device import pick, resolved
from matta_cli.files.workspace import Workspace
from matta_cli.measure import cost, score
from matta_cli.progress import Listener, Progress, quiet
from matta_cli.report.numbers import duration, in_bytes
from matta_cli.settings.recipe import Recipe
from matta_cli.training import setup
from matta_cli.training.loop import Parts, Training, intervals
from matta_cli.training.state import size_of, state_of
from matta_cli.training.teacher import ModelTeacher

# timed rounds, after a step to warm up; seconds after which no other round begins
TIMED, LONGEST = 3, 60.0

# parts of a step (``micro_batch`` each) that are run of those that go through the same models; the
# rest of them take as much time as the second one
FEW = 2

# a round number by which FLOPs are told as time, for a device that is not at hand
FLOPS_SHOWN = 100e12


@dataclass(frozen=True)
class Plan:
    """What a run would do and cost. Bytes are bytes, times are seconds.

    items: what a step holds, and the run, in the data's ``unit``. Of the TA and the Teacher, the
    latter None where it is a file. standing: weights, gradients, optimizer and Teacher together.
    """

    device: str
    devices: int
    precision: str
    data: str
    unit: str
    steps: int
    examples_per_step: int
    items_per_step: int
    items: int
    teacher_parameters: int | None
    teacher_bytes: int | None
    ta_parameters: int
    ta_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    logits_bytes: int
    logits_whole: bool
    standing_bytes: int
    peak_memory_bytes: int | None
    checkpoint_bytes: int
    disk_bytes: int
    step_seconds: float
    evaluations: int
    evaluation_seconds: float
    seconds: float
    model_flops_per_step: float | None
    model_flops: float | None

    def json(self) -> dict[str, Any]:
        """The plan as JSON has it, where items are called by their unit."""
        values = asdict(self)
        unit = values.pop("unit")
        named = {"items_per_step": f"{unit}_per_step", "items": unit}
        return {named.get(name, name): value for name, value in values.items()}


def plan(recipe: Recipe, out: Path, count: int = 1, listen: Listener = quiet) -> Plan:
    """What ``distill`` would do with this recipe on ``count`` devices like this one.

    Writes nothing. Where ``micro_batch`` divides a step into more than two parts, the time of a
    step is put together from one part and two. With several devices a step is timed on one device's
    part of the batch, without the exchange between devices, and memory is that of a run that is not
    sharded. Raises ``MattaError`` for all that ``distill`` refuses.
    """
    recipe = copy.deepcopy(recipe)
    settings = recipe.distill
    setup.check_count(settings.batch_size, count)
    settings.batch_size //= count
    settings.shard, settings.log_to = False, []
    device = pick(processes.local(settings.device))
    made = setup.opened(recipe, out, device, listen=listen)
    task, data = made.task, made.data
    frozen = made.teacher.model if isinstance(made.teacher, ModelTeacher) else None
    with tempfile.TemporaryDirectory() as temp:
        training = Training(made, Workspace(Path(temp)), count_flops=True)
        with closing(training.batches(range(1))) as stream:
            parts = next(stream)
        with cost.peak(device) as peak:
            step = _step_seconds(training, parts, listen)
        evaluation = _evaluation_seconds(training)
    evaluations, checkpoints = (-(-settings.steps // every) for every in intervals(settings))
    kept = min(settings.keep or checkpoints, checkpoints) + bool(settings.best)
    items = sum(task.items(batch) for batch, _ in parts) * count
    flops = training.flops * count if training.flops else None
    ta, state = _bytes(made.ta.model), size_of(state_of(training.optimizer)[0].values())
    teacher = None if frozen is None else _bytes(frozen)
    logits = task.positions(parts[0][0]) * task.outputs(made.ta.model) * 4
    return Plan(
        device=str(device),
        devices=count,
        precision=resolved(settings.precision, device),
        data=data.description,
        unit=data.unit,
        steps=settings.steps,
        examples_per_step=settings.batch_size * count,
        items_per_step=items,
        items=items * settings.steps,
        teacher_parameters=None if frozen is None else cost.parameters(frozen),
        teacher_bytes=teacher,
        ta_parameters=cost.parameters(made.ta.model),
        ta_bytes=ta,
        gradient_bytes=ta,
        optimizer_bytes=state,
        logits_bytes=int(logits),
        logits_whole=not training.step.chunked,
        standing_bytes=2 * ta + state + (teacher or 0),
        peak_memory_bytes=peak.bytes,
        checkpoint_bytes=ta + state,
        disk_bytes=(ta + state) * kept,
        step_seconds=step,
        evaluations=evaluations,
        evaluation_seconds=evaluation,
        seconds=step * settings.steps + evaluation * evaluations,
        model_flops_per_step=flops,
        model_flops=flops * settings.steps if flops else None,
    )


def _step_seconds(training: Training, parts: Parts, listen: Listener) -> float:
    """Seconds of a step of these parts, of which few are run."""
    alike: dict[Any, Parts] = {}
    for part in parts:
        alike.setdefault(tuple(part[1].groups), []).append(part)

    def few(length: int) -> Parts:
        return [part for own in alike.values() for part in own[:length]]

    def timed(length: int, which: str) -> float:
        listen(Progress(message=f"Timing a step, {which}."))
        started = time.perf_counter()
        training.take(0, few(length))
        if training.device.type == "cuda":
            torch.cuda.synchronize(training.device)
        return time.perf_counter() - started

    longest = max(map(len, alike.values()))
    lengths = [1, FEW] if longest > FEW else [longest]
    taken: dict[int, list[float]] = {length: [] for length in lengths}
    timed(lengths[-1], "one to warm up")
    began = time.perf_counter()
    for turn in range(TIMED):
        if turn and time.perf_counter() - began > LONGEST:
            break
        for length, times in taken.items():
            times.append(timed(length, f"{turn + 1} of {TIMED}"))
    medians = [statistics.median(times) for times in taken.values()]
    if len(lengths) == 1:
        return medians[0]
    more = max(0.0, medians[1] - medians[0]) / (len(few(FEW)) - len(few(1)))
    return medians[1] + more * (len(parts) - len(few(FEW)))


def _evaluation_seconds(training: Training) -> float:
    """Seconds of an evaluation, from those of the TA on a few examples."""
    settings, split = training.settings, training.data.held_out[0]
    size = score.at_a_time(settings)
    examples = min(settings.eval_examples or 10**9, len(split))
    timed = min(size, examples)
    started = time.perf_counter()
    score.columns(training.task, training.ta.model.eval(), split, size, training.device, timed)
    each = (time.perf_counter() - started) / timed
    return each * examples * (len(settings.widths) + 1)


def rows(plan: Plan) -> list[list[str]]:
    """A plan as lines of a table, for people."""
    size, each = in_bytes, "on each device"
    teacher = "-" if plan.teacher_parameters is None else f"{plan.teacher_parameters:,}"
    whole = "whole in memory" if plan.logits_whole else "never whole in memory"
    step = f"{plan.examples_per_step:,} examples ({plan.items_per_step:,} {plan.unit})"
    lines = [
        ["data", plan.data],
        ["steps", f"{plan.steps:,} of {step}"],
        [f"{plan.unit} in all", f"{plan.items:,}"],
        ["device", f"{plan.devices} x {plan.device}, {plan.precision}"],
        ["Teacher", f"{teacher} parameters, {size(plan.teacher_bytes)}"],
        ["TA", f"{plan.ta_parameters:,} parameters, {size(plan.ta_bytes)}, gradients as much"],
        ["optimizer state", size(plan.optimizer_bytes)],
        ["logits of one model", f"{size(plan.logits_bytes)}, {whole}"],
        ["weights, gradients, optimizer", f"{size(plan.standing_bytes)} with the Teacher, {each}"],
        ["peak memory", f"{size(plan.peak_memory_bytes)} {each}"],
        ["a checkpoint", size(plan.checkpoint_bytes)],
        ["disk in all", size(plan.disk_bytes)],
        ["a step", f"{plan.step_seconds:.3g} s"],
        ["an evaluation", f"{plan.evaluation_seconds:.3g} s, {plan.evaluations} of them"],
        ["time in all", duration(plan.seconds)],
    ]
    if plan.model_flops_per_step and plan.model_flops:
        seconds = plan.model_flops / FLOPS_SHOWN / plan.devices
        told = f"{duration(seconds)} at {FLOPS_SHOWN / 1e12:g} TFLOP/s a device"
        lines.append(["model FLOPs of a step", f"{plan.model_flops_per_step:.3g}"])
        lines.append(["model FLOPs in all", f"{plan.model_flops:.3g}: {told}"])
    return lines


def _bytes(model: nn.Module) -> int:
    return size_of([*model.parameters(), *model.buffers()])
