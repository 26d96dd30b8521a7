"""The log of a run: ``metrics.jsonl``, and where else the user wants it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matta_cli.errors import MattaError, install
from matta_cli.files import reading
from matta_cli.files.atomic import atomic_write, own
from matta_cli.files.workspace import Workspace
from matta_cli.report.numbers import finite
from matta_cli.settings.recipe import Recipe


def check(names: list[str]) -> None:
    """Raise ``MattaError`` for a log whose package, which has its name, is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            needed = f"--log-to {name} needs the package {name}"
            raise MattaError(f"{needed}: {install(name)}.")


def evaluations(space: Workspace, metric: str) -> list[tuple[int, dict[str, float]]]:
    """The evaluations of a run in training: each step's values of a metric, by model."""
    found = []
    for record in _records(space.log):
        if "evaluation" in record:
            models = reading.record(record["evaluation"]).items()
            values = {name: reading.record(own).get(metric) for name, own in models}
            numbers = {name: value for name, value in values.items() if finite(value)}
            found.append((record["step"], numbers))
    return found


def _records(log: Path) -> Iterator[Mapping[str, Any]]:
    """The records of a log, without a line that a killed process left half-written."""
    for line in lines(log):
        with contextlib.suppress(ValueError):
            if (record := reading.record(reading.parsed(line))).get("step"):
                yield record


def lines(log: Path) -> list[str]:
    """The lines of a log; what is no text in one is lost with that line alone."""
    if not reading.regular(log).is_file():
        return []
    return log.read_text(encoding="utf-8", errors="replace").splitlines()


class Log:
    """Writes each step's record to ``metrics.jsonl``, and as scalars to the recipe's other logs.

    done: the steps that lie before; what other logs hold beyond them is taken back where they allow
    it. Only the ``first`` process of a run writes.
    """

    def __init__(self, space: Workspace, recipe: Recipe, done: int, first: bool = True) -> None:
        self.space, self.recipe, self.done, self.first = space, recipe, done, first
        self.file: Any = None
        self.board: Any = None
        self.wandb: Any = None

    def __enter__(self) -> Log:
        if not self.first:
            return self
        run, names = self.space.run, self.recipe.distill.log_to
        run.mkdir(parents=True, exist_ok=True)
        atomic_write(self.space.recipe, self.recipe.text())
        self.file = own(self.space.log).open("a", encoding="utf-8")
        if "tensorboard" in names:
            from torch.utils.tensorboard import SummaryWriter

            after = self.done + 1 if self.done else None
            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=after)
        if "wandb" in names:
            self._start_wandb(run)
        return self

    def _start_wandb(self, run: Path) -> None:
        """A run of wandb, or the one that was begun: its id lies in the run's folder."""
        import wandb

        known = run / "wandb-id"
        began = known.exists() and self.done
        name = known.read_text(encoding="utf-8").strip() if began else uuid.uuid4().hex
        atomic_write(known, name + "\n")
        silent, config = wandb.Settings(silent=True, console="off"), asdict(self.recipe)
        more = {"resume": "allow", "dir": str(run), "config": config, "settings": silent}
        try:
            self.wandb = wandb.init(project="matta", id=name, **more)
        except wandb.Error as error:
            said = str(error).splitlines()[0].rstrip(".")
            ways = "Log in with `wandb login`, or set WANDB_MODE=offline"
            raise MattaError(f"--log-to wandb: {said}. {ways}.") from None

    def write(self, record: dict[str, Any]) -> None:
        """One step's record: ``step``, and numbers, nested by name."""
        if not self.first:
            return
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        flat = dict(scalars(record))
        step = int(flat.pop("step"))
        if self.board is not None:
            for name, value in flat.items():
                self.board.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(flat, step=step)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.file is not None:
            self.file.close()
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish(exit_code=0 if kind is None else 1)


def scalars(record: dict[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a nested record as ``terms/TA/loss`` and the like; null is left out."""
    for key, value in record.items():
        name = f"{path}{key}"
        if isinstance(value, dict):
            yield from scalars(value, f"{name}/")
        elif isinstance(value, (int, float)):
            yield name, float(value)
