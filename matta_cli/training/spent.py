"""What the training of a run took."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matta_cli.data.split import Data
from matta_cli.files.workspace import Workspace, counters_of
from matta_cli.settings.resolve import run_recipe
from matta_cli.tasks.task import Task


def cost_of_run(out: Path, which: str, task: Task, data: Data) -> dict[str, Any]:
    """What the training of the run in ``out`` took, to a checkpoint that was named, else to its
    end. See ``training``.
    """
    steps, seconds = steps_and_seconds(Workspace(out), which)
    return training(task, data, steps, run_recipe(out).distill.batch_size, seconds)


def training(task: Task, data: Data, steps: int, batch_size: int, seconds: float) -> dict[str, Any]:
    """What training took, as a report has it. items: in the data's unit, from what the first
    examples hold.
    """
    count = min(64, len(data.train))
    each = task.items(data.train.batch(range(count))) / count
    examples = steps * batch_size
    return {
        "steps": steps,
        "examples": examples,
        "items": round(each * examples),
        "seconds": seconds,
    }


def steps_and_seconds(space: Workspace, which: str) -> tuple[int, float]:
    """The steps and device-seconds of a run to a checkpoint that was named, else to its end: only
    then is the best known.
    """
    counters = counters_of(space.newest())
    steps, seconds = counters.get("step", 0), device_seconds(counters)
    if which.startswith("step-") and steps:
        named = int(which.removeprefix("step-"))
        return named, seconds * named / steps
    return steps, seconds


def device_seconds(counters: Mapping[str, Any]) -> float:
    return float(counters.get("seconds", 0.0)) * counters.get("processes", 1)
