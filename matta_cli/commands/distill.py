"""``matta distill``: TA + Teacher -> trained TA."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from matta_cli import console
from matta_cli.commands import early, options
from matta_cli.commands.options import DEVICES, MEMORY, RUN, option
from matta_cli.errors import MattaError, command
from matta_cli.files.workspace import Workspace
from matta_cli.settings.recipe import Recipe

_DryRun = Annotated[
    bool, option("--dry-run", "Say what would happen and what it costs, and stop.", panel=RUN)
]
_Resume = Annotated[bool, option("--resume", "Go on from the last checkpoint.", panel=RUN)]
_Compile = Annotated[bool, option("--compile", "torch.compile: one graph per width.", panel=MEMORY)]
_Devices = Annotated[int | None, option("--devices", "Processes, one per device.", panel=DEVICES)]


def distill(
    folder: options.Folder = None,
    teacher: options.Teacher = None,
    teacher_adapter: options.TeacherAdapter = None,
    teacher_config: options.TeacherConfig = None,
    preset: options.Preset = None,
    out: options.Out = options.OUT,
    train: options.Train = None,
    held_out: options.HeldOut = None,
    passages: options.Passages = None,
    sequence_length: options.SequenceLength = None,
    train_on: options.TrainOn = None,
    widths: options.TrainedWidths = None,
    steps: options.Steps = None,
    batch_size: options.BatchSize = None,
    lr: options.Lr = None,
    optimizer: options.Optimizer = None,
    seed: options.Seed = None,
    ranking_loss: options.RankingLoss = None,
    allow_weak_teacher: options.AllowWeakTeacher = None,
    dry_run: _DryRun = False,
    resume: _Resume = False,
    overwrite: options.Overwrite = False,
    save_every: options.SaveEvery = None,
    eval_every: options.EvalEvery = None,
    best: options.Best = None,
    max_bad_steps: options.MaxBadSteps = None,
    log_to: options.LogTo = None,
    file: options.File = None,
    micro_batch: options.MicroBatch = None,
    precision: options.Precision = None,
    compile: _Compile = False,
    checkpoint_activations: options.Checkpointing = None,
    device: options.Device = None,
    devices: _Devices = None,
    shard: options.Shard = None,
    json: options.Json = False,
) -> None:
    """Train the TA and its nested Students in one run, Teacher -> TA -> Student.

    Example: matta distill --teacher gpt2-large
    """
    typed, out = locals(), options.output(folder, out)
    flags = options.tables(typed, "distill", "data")
    flags["distill"]["compile"] = "inductor" if compile else None
    _start(devices, dry_run)
    recipe = options.resolved(flags, out, file, ran=resume)
    early.training(recipe, out)
    options.named(teacher_adapter)
    console.say(f"TA in {Workspace(out).ta}; Teacher {recipe.distill.teacher or '(none)'}.")
    if dry_run:
        _plan(recipe, out, typed, flags)
        return
    from matta_cli.training.run import distill as run

    with console.training_progress() as listen:
        saved = run(recipe, out, overwrite=overwrite, resume=resume, listen=listen)
    _show(saved, out, json)
    shown = ",".join(f"{w:g}" for w in recipe.distill.widths)
    console.hint(command("export", out, "--widths", shown))


def _show(saved: Path, out: Path, json: bool) -> None:
    """Print how good the models are (a table, or JSON) on stdout, and where they lie."""
    from matta_cli.training.quality import quality

    found = quality(out)
    if json:
        console.data({"checkpoint": str(saved), "quality": found and found.json()})
    elif found is not None:
        console.table(*found.rows())
    if found is not None:
        console.say(f"Measured on {found.examples:,} held-out examples{found.limit}.")
    console.say(f"Wrote {saved}.")


def _start(devices: int | None, dry_run: bool) -> None:
    """Run the same command in a process for each of several devices, and end as they do.

    These have a rank, and start no others.
    """
    if devices is not None and devices < 1:
        raise MattaError(f"--devices {devices} is not possible: a run has 1 device or more.")
    if devices is None or devices == 1 or "RANK" in os.environ or dry_run:
        return
    cores = os.cpu_count() or 1
    if devices > max(8, cores):  # no machine has more GPUs than these
        has = f"this machine has {cores} core{'s' * (cores > 1)}, and each is a process"
        raise MattaError(f"--devices {devices} is not possible: {has}.")
    from matta_cli.devices.processes import launch

    sys.exit(launch(devices, sys.argv[1:]))


def _plan(
    recipe: Recipe, out: Path, typed: Mapping[str, Any], flags: Mapping[str, Iterable[str]]
) -> None:
    """Print what a run would do, what it would cost, and how it is begun: by the same words."""
    from matta_cli.training.plan import plan, rows

    with console.training_progress() as listen:
        planned = plan(recipe, out, typed["devices"] or 1, listen=listen)
    if typed["json"]:
        console.data(planned.json())
    else:
        console.table(["what", "how much"], rows(planned))
    same = (options.again(table, {name: typed[name] for name in flags[table]}) for table in flags)
    console.hint(command("distill", out, *itertools.chain(*same)))
