"""What the training of a run took."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matta_cli.data.split import Data
from matta_cli.files import workspace
from matta_cli.settings.resolve import run_recipe
from matta_cli.tasks.task import Task


def cost_of_run(out: Path, which: str, task: Task, data: Data) -> dict[str, Any]:
    """What the training of the run in ``out`` took, to a checkpoint that was named, else to its
    end. See ``training``.
    """
    steps, seconds = steps_and_seconds(out / "run", which)
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


def steps_and_seconds(run: Path, which: str) -> tuple[int, float]:
    """The steps and device-seconds of a run to a checkpoint that was named, else to its end: only
    then is the best known.
    """
    counters = counters_of(workspace.newest(run))
    steps, seconds = counters.get("step", 0), device_seconds(counters)
    if which.startswith("step-") and steps:
        named = int(which.removeprefix("step-"))
        return named, seconds * named / steps
    return steps, seconds


def device_seconds(counters: Mapping[str, Any]) -> float:
    return float(counters.get("seconds", 0.0)) * counters.get("processes", 1)


def counters_of(folder: Path | None) -> dict[str, Any]:
    return (
        json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
        if folder is not None
        else {}
    )
