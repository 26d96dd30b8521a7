"""distill: train the TA and its nested Students in one run, Teacher -> TA -> Student, online
(MatTA, arXiv 2505.23337).
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError

from matta_cli.devices import processes
from matta_cli.devices.device import pick
from matta_cli.devices.processes import World
from matta_cli.errors import MattaError
from matta_cli.files import atomic
from matta_cli.files.workspace import Workspace, counters_of, step_of
from matta_cli.models import tokenizer
from matta_cli.models.folders import load_ta, refuse_other_ta
from matta_cli.progress import Listener, Progress, quiet
from matta_cli.settings.recipe import Recipe
from matta_cli.settings.resolve import run_recipe
from matta_cli.training import optimizer
from matta_cli.training.loop import Training
from matta_cli.training.setup import opened
from matta_cli.training.teacher import ModelTeacher


def distill(
    recipe: Recipe,
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    listen: Listener = quiet,
) -> Path:
    """Train ``out/ta`` into ``out/run`` by the recipe. Returns the last checkpoint, a TA folder.

    Under torchrun every process calls this; the batch is divided among them, and the first one
    writes. Raises ``MattaError`` for settings that make no sense, a Teacher that does not fit or is
    at chance, missing data, a non-finite loss, a full disk or memory; ``Interrupted`` after Ctrl-C,
    once the checkpoint is saved.
    """
    device = pick(processes.local(recipe.distill.device))
    with processes.joined(device) as world:
        return _distill(
            recipe, out, device, world, overwrite, resume, listen if world.first else quiet
        )


def _distill(
    recipe: Recipe,
    out: Path,
    device: torch.device,
    world: World,
    overwrite: bool,
    resume: bool,
    listen: Listener,
) -> Path:
    space = Workspace(out)
    if world.first:
        space.mend()
    world.wait()
    last, damaged = space.newest(), list[Path]()
    if resume and overwrite:
        raise MattaError(
            "--resume goes on with the run, and --overwrite replaces it: pass one of them."
        )
    if resume:
        last, damaged = space.sound()
        for path in damaged:
            listen(Progress(message=f"{path} is damaged and is left out."))
        if last is None:
            raise MattaError(
                f"There is no {'sound ' if damaged else ''}checkpoint in {space.run} to resume from."
            )
    # what stopped before its first checkpoint is not worth a refusal
    if last is not None and not (resume or overwrite):
        _refuse_stopped(space, last)
        atomic.refuse_existing(space.run, overwrite)
    task, ta, teacher, data = opened(recipe, out, device, world, listen)
    given = teacher.folder if isinstance(teacher, ModelTeacher) else None
    if (
        given is not None
        and task.name == "causal_lm"
        and not tokenizer.has_tokenizer(space.ta)
        and world.first
    ):
        tokenizer.copy_companions(given, space.ta)
    world.wait()
    if resume:
        assert last is not None
        digest = ta.card["lineage"]["digest"]
        ta = load_ta(last)
        refuse_other_ta(digest, ta, last)
    world.wait()
    lock = space.alone() if world.first else nullcontext()
    with lock, space.set_aside(keep=resume or not world.first):
        world.wait()
        training = Training(recipe, space, task, ta, teacher, data, device, world)
        if resume and last is not None:
            training.load(last)
            training.damaged = set(damaged)
            if world.first:
                _rewind(space.log, training.counters.step)
            listen(
                Progress(
                    message=f"Resuming from step {training.counters.step}{_other_count(last, world)}."
                )
            )
        with _explained(training):
            return training.run_steps(listen)


def _other_count(last: Path, world: World) -> str:
    """What to say where a run goes on in another number of processes than it was saved by."""
    before = counters_of(last).get("processes", 1)
    if before == world.size:
        return ""
    devices_now = f"{world.size} device{'s' if world.size > 1 else ''}"
    return f", on {devices_now} what ran on {before}: the same batches, sums in another order"


def _refuse_stopped(space: Workspace, last: Path) -> None:
    """Raise ``MattaError`` if the run whose last checkpoint that is stopped before its end."""
    try:
        wanted = run_recipe(space.root).distill.steps
    except MattaError:  # what it was to be is not known
        return
    step = step_of(last)
    if step < wanted:
        raise MattaError(
            f"A run in {space.run} has stopped at step {step} of {wanted}; pass --resume to go on with it, or "
            "--overwrite to start again."
        )


@contextmanager
def _explained(training: Training) -> Iterator[None]:
    """Say in a sentence what a run died of: no memory, no disk, another process."""
    settings, counters = training.recipe.distill, training.counters
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MattaError(_out_of_memory(training, str(error))) from None
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        last = training.space.newest()
        what = (
            "The disk is full"
            if full
            else f"A file could not be written ({str(error).splitlines()[0]})"
        )
        then = (
            f"{last} is kept: make room there, then go on with `{training.again}`"
            if last
            else ("nothing was saved: make room there, then run the same command again")
        )
        raise MattaError(
            f"{what} at step {counters.step} of {settings.steps}, in {training.space.run}; {then}."
        ) from error
    except RuntimeError as error:
        said = str(error)
        if "can't allocate memory" in said:
            raise MattaError(_out_of_memory(training, said)) from None
        if training.world.size > 1 and any(
            word in said for word in ("Connection", "NCCL", "gloo", "peer")
        ):
            last = (
                training.save()
                if not settings.shard and training.world.first
                else training.space.newest()
            )
            raise MattaError(
                f"Another process of the run has died at step {training.counters.step}; {last} holds what was reached: go on "
                f"with `{training.again}`."
            ) from error
        raise


def _out_of_memory(training: Training, said: str) -> str:
    """What took the memory, and what helps."""
    teacher = getattr(training.step.teacher, "model", None)
    weights = sum(p.numel() * p.element_size() for p in training.parameters)
    state = sum(
        t.numel() * t.element_size() for t in optimizer.state_of(training.optimizer)[0].values()
    )
    theirs = (
        sum(p.numel() * p.element_size() for p in teacher.parameters())
        if teacher is not None
        else 0
    )
    settings = training.recipe.distill
    now = settings.micro_batch or settings.batch_size // training.world.size
    help_ = [f"--micro-batch {max(1, now // 2)}"] if now > 1 else []
    help_ += [] if settings.checkpoint_activations else ["--checkpoint-activations"]
    help_ += ["a smaller --sequence-length"] if training.task.name == "causal_lm" else []
    wanted = next(
        (part.strip() for part in said.replace("\n", " ").split(".") if "allocate" in part), ""
    )
    return (
        f"Out of memory on {training.device} at step {training.counters.step}: weights and gradients of the TA take "
        f"{2 * weights / 1e9:.2f} GB, the optimizer {state / 1e9:.2f} GB, the Teacher {theirs / 1e9:.2f} GB, activations of "
        f"{now} examples the rest ({wanted}). Try {' or '.join(help_) or 'a larger device'}."
    )


def _rewind(log: Path, step: int) -> None:
    """Drop the records after a checkpoint: the steps they tell of are taken again."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            continue  # a line that was cut short by a kill
    atomic.atomic_write(log, "".join(kept))
