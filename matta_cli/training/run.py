"""distill: train the TA and its nested Students in one run, Teacher -> TA -> Student, online.

The method is MatTA's (arXiv 2505.23337).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from matta_cli.devices import processes
from matta_cli.devices.device import pick
from matta_cli.devices.processes import World
from matta_cli.errors import MattaError
from matta_cli.files import atomic, reading
from matta_cli.files.card import read_card
from matta_cli.files.workspace import Workspace, counters_of, step_of
from matta_cli.models.folders import load_ta, refuse_other_ta
from matta_cli.progress import Listener, Progress, quiet
from matta_cli.settings import gone
from matta_cli.settings.recipe import Recipe
from matta_cli.settings.resolve import read_toml, run_recipe
from matta_cli.training import resumed
from matta_cli.training.failure import explained
from matta_cli.training.log import lines
from matta_cli.training.loop import Training
from matta_cli.training.setup import Setup, opened


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
    worse than the base, missing data, a non-finite loss, a full disk or memory; ``Interrupted``
    after Ctrl-C, once the checkpoint is saved.
    """
    device, space = pick(processes.local(recipe.distill.device)), Workspace(out)
    with processes.joined(device) as world:
        listen = listen if world.first else quiet
        if world.first:
            space.mend()
        world.wait()
        last, damaged = _begun(space, overwrite, resume, listen)
        setup = opened(recipe, out, device, world, listen)

        def unchanged() -> None:
            """Raise ``MattaError`` where another process has trained here since."""
            same = read_card(space.ta)["lineage"]["digest"] == setup.ta.card["lineage"]["digest"]
            if _begun(space, overwrite, resume, quiet)[0] != last or not same:
                again = "type the same command again"
                raise MattaError(f"Another process has written to {out} meanwhile: {again}.")

        return _train(setup, space, last, damaged, unchanged, listen)


def _begun(
    space: Workspace, overwrite: bool, resume: bool, listen: Listener
) -> tuple[Path | None, list[Path]]:
    """The checkpoint that a run goes on from, None for a new one, and the damaged ones after it.

    Raises ``MattaError`` where there is none to resume from, or a run that may not be replaced.
    """
    if resume and overwrite:
        ways = "--resume goes on with the run, and --overwrite replaces it"
        raise MattaError(f"{ways}: pass one of them.")
    if not resume:
        last = space.newest()
        # what stopped before its first checkpoint is not worth a refusal
        if last is not None and not overwrite:
            _refuse_stopped(space, last)
            atomic.refuse_existing(space.run, overwrite)
        return None, []
    last, damaged = space.sound()
    for path in damaged:
        listen(Progress(message=f"{path} is damaged and is left out."))
    if last is None:
        space.refuse_training()
        none = f"There is no {'sound ' if damaged else ''}checkpoint"
        raise MattaError(f"{none} in {space.run} to resume from.")
    return last, damaged


def _refuse_stopped(space: Workspace, last: Path) -> None:
    """Raise ``MattaError`` if the run whose last checkpoint that is stopped before its end."""
    try:
        wanted = run_recipe(space.root).distill.steps
    except MattaError:  # what it was to be is not known
        return
    if step_of(last) < wanted:
        stopped = f"A run in {space.run} has stopped at step {step_of(last)} of {wanted}"
        ways = "pass --resume to go on with it, or --overwrite to start again"
        raise MattaError(f"{stopped}; {ways}.")


def _train(
    setup: Setup,
    space: Workspace,
    last: Path | None,
    damaged: list[Path],
    unchanged: Callable[[], None],
    listen: Listener,
) -> Path:
    """Take the steps of a run, from the checkpoint ``last`` on where there is one.

    unchanged: raises ``MattaError`` where that has become another one by now.
    """
    world = setup.world
    if last is not None:
        if space.recipe.exists():
            gone.refuse_to_go_on(read_toml(space.recipe), str(space.recipe))
        digest = setup.ta.card["lineage"]["digest"]
        setup.ta = load_ta(last)
        refuse_other_ta(digest, setup.ta, last)
        if world.first:
            resumed.check(setup, last, listen)
    world.wait()
    with ExitStack() as held:
        if world.first:
            held.enter_context(space.alone())
            unchanged()
            held.enter_context(space.set_aside(keep=last is not None))
        world.wait()
        training = Training(setup, space)
        if last is not None:
            training.load(last)
            training.damaged = set(damaged)
            step = training.counters.step
            if world.first:
                _rewind(space.log, step)
            listen(Progress(message=f"Resuming from step {step}{_other_count(last, world)}."))
        if world.first and setup.start is not None:
            space.run.mkdir(parents=True, exist_ok=True)
            atomic.atomic_write(space.start, setup.start.written())
        with explained(training):
            return training.run_steps(listen)


def _other_count(last: Path, world: World) -> str:
    """What to say where a run goes on in another number of processes than it was saved by."""
    before = counters_of(last).get("processes", 1)
    if before == world.size:
        return ""
    now = f"{world.size} device{'s' if world.size > 1 else ''}"
    return f", on {now} what ran on {before}: the same batches, rows and sums in another order"


def _rewind(log: Path, step: int) -> None:
    """Drop the records after a checkpoint: the steps they tell of are taken again."""
    kept = []
    for line in lines(log):
        try:
            if reading.parsed(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # a line that was cut short by a kill
    atomic.atomic_write(log, "".join(kept))
