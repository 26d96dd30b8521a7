"""What a run trained, and what that took."""

from __future__ import annotations

from dataclasses import dataclass

from matta_cli.data.split import Data
from matta_cli.files.workspace import Workspace, counters_of
from matta_cli.models.ta import TA
from matta_cli.report.schema import Training
from matta_cli.settings.recipe import DistillSettings
from matta_cli.tasks.task import Task


def trained_widths(settings: DistillSettings, ta: TA) -> list[float]:
    """The widths that a run trains: its Students', and the TA's own unless its weight is 0."""
    own = [ta.widest] if settings.ta_weight > 0 else []
    return sorted({*settings.widths, *own})


@dataclass(frozen=True)
class Spent:
    """What a run took to a checkpoint. seconds: of one device, where several shared the work.

    which: the words of ``export.checkpoint`` that named the checkpoint.
    """

    steps: int = 0
    seconds: float = 0.0
    processes: int = 1
    which: str = "last"


def of_run(space: Workspace, which: str = "last") -> Spent:
    """What a run took to the checkpoint that ``which`` names, else to its last sound one.

    ``auto`` and ``best`` take the whole run: only at its end it is known which one is the best.
    """
    counters = counters_of(space.sound()[0])
    steps, processes = counters.get("step", 0), counters.get("processes", 1)
    seconds = float(counters.get("seconds", 0.0)) * processes
    if which.startswith("step-") and steps:
        named = int(which.removeprefix("step-"))
        return Spent(named, seconds * named / steps, processes, which)
    return Spent(steps, seconds, processes, which)


def training(task: Task, data: Data, spent: Spent, batch_size: int) -> Training:
    """What training took, as a report has it. items: by what the first examples hold of them."""
    count = min(64, len(data.train))
    each = task.items(data.train.batch(range(count))) / count
    examples = spent.steps * batch_size
    return Training(spent.steps, examples, round(each * examples), spent.seconds)
