"""An output folder: where the TA, the run, the Students and the report of one base lie."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from typing_extensions import NotRequired, TypedDict

from matta_cli.errors import MattaError, beside, command
from matta_cli.files import atomic, reading
from matta_cli.files.atomic import alone, is_sound

TRAINING = "Another run is training"  # what is said of the process that holds a folder's lock


@dataclass(frozen=True)
class Workspace:
    """The paths of an output folder, and what its run has reached.

    A baseline's folder is a workspace too: it has a TA and a run of its own. family: the name of a
    family of Students that stands beside the first one, with a report of its own.
    """

    root: Path
    family: str = ""

    @property
    def ta(self) -> Path:
        """The TA as ``convert`` made it."""
        return self.root / "ta"

    @property
    def settings(self) -> Path:
        """``matta.toml``, which ``convert`` leaves for the commands that follow."""
        return self.root / "matta.toml"

    @property
    def run(self) -> Path:
        """What ``distill`` writes: recipe, log, checkpoints."""
        return self.root / "run"

    @property
    def recipe(self) -> Path:
        """The recipe that the run was started with."""
        return self.run / "recipe.toml"

    @property
    def log(self) -> Path:
        """A line of JSON for each step of the run."""
        return self.run / "metrics.jsonl"

    @property
    def start(self) -> Path:
        """What the base and the Teacher measured before the run's first step."""
        return self.run / "start.json"

    @property
    def students(self) -> Path:
        """The exported Students, a folder each."""
        return self._home / "students"

    @property
    def baselines(self) -> Path:
        """What Students are judged by, a workspace each."""
        return self.root / "baselines"

    @property
    def search(self) -> Path:
        """The scores and the front of a search."""
        return self.root / "search"

    @property
    def report(self) -> Path:
        """``report.json``; its Markdown and its page lie beside it."""
        return self._home / "report.json"

    @property
    def _home(self) -> Path:
        return self.root / "families" / self.family if self.family else self.root

    @property
    def converted(self) -> bool:
        """Whether there is a TA here."""
        return (self.ta / "matta.json").exists()

    def refuse_exported(self, overwrite: bool) -> None:
        """Raise ``MattaError`` where Students are here that may not be replaced, or a name is none.

        It says how others go beside them.
        """
        if self.family and not re.fullmatch(r"\w[\w.-]*", self.family):
            rule = "it is letters, digits, dots and dashes, as small-2"
            raise MattaError(f"--name {self.family!r} is no name of a family: {rule}.")
        if self.students.exists() and not overwrite:
            beside = "--name NAME puts others beside them, --overwrite replaces them"
            raise MattaError(f"{self.students} holds finished work: {beside}.")

    def refuse_unconverted(self) -> None:
        """Raise ``MattaError`` where there is no TA here."""
        refuse_no_ta(self.ta)

    def refuse_untrained(self) -> NoReturn:
        """Raise ``MattaError``: the run here is training, or there is none."""
        self.refuse_training()
        first = f"run `{command('distill', self.root)}` first"
        raise MattaError(f"There is no trained TA in {self.run}: {first}.")

    def exported(self) -> list[Path]:
        """The folders of the exported Students, by name."""
        return sorted(path.parent for path in self.students.glob("*/matta.json"))

    @property
    def exporting(self) -> str:
        """The command that exports the Students here."""
        return command("export", self.root, *beside(self.family))

    def nothing_to_evaluate(self) -> MattaError:
        """The error where nothing is exported here, and no models are named."""
        first = f"name models, or export Students to {self._home} first"
        return MattaError(f"There is nothing to evaluate: {first}.")

    def no_report(self) -> MattaError:
        """The error where there is no report here."""
        return MattaError(f"There is no report in {self._home}: run `{self.exporting}` first.")

    def alone(self) -> AbstractContextManager[None]:
        """Hold the folder's lock while its TA or its run changes."""
        return alone(self.root, TRAINING)

    def refuse_training(self) -> None:
        """Raise ``MattaError`` while the folder's TA or its run changes."""
        if self.root.is_dir():
            with self.alone():
                pass

    # Checkpoints

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.run / "checkpoints" / f"step-{step}"

    def checkpoints(self) -> list[Path]:
        """The folders of the run's checkpoints, oldest first."""
        return _checkpoints(self.run)

    def newest(self) -> Path | None:
        """The last checkpoint that was written, sound or not."""
        return _newest(self.run)

    def sound(self) -> tuple[Path | None, list[Path]]:
        """The last checkpoint that is as it was written, and the damaged ones after it."""
        damaged: list[Path] = []
        for path in reversed(self.checkpoints()):
            if is_sound(path):
                return path, damaged
            damaged.append(path)
        return None, damaged

    def trained(self, which: str = "auto") -> tuple[Path | None, list[Path]]:
        """A sound checkpoint by the words of ``export.checkpoint``, and damaged ones passed over.

        Raises ``MattaError`` where the one that was asked for is not there or is damaged.
        """
        last, damaged = self.sound()
        if last is None or which == "last":
            return last, damaged
        best = counters_of(last).get("best_step", 0)
        name = which if which.startswith("step-") else f"step-{best}"
        if which == "auto" and not best:
            return last, damaged
        if which not in ("auto", "best") and not which.removeprefix("step-").isdigit():
            raise MattaError(f"--checkpoint {which!r} is not known: best, last or step-N.")
        if which == "best" and not best:
            kept = "kept no best checkpoint: `matta distill --best WIDTH` does"
            raise MattaError(f"{self.run} {kept}.")
        path = self.run / "checkpoints" / Path(name).name  # a file said it
        if is_sound(path):
            return path, damaged
        if which == "auto":
            return last, [*damaged, path]
        there = ", ".join(p.name for p in self.checkpoints())
        state = "damaged" if path.exists() else "not there"
        raise MattaError(f"{path} is {state}; {self.run} has {there}.")

    def current_ta(self) -> Path:
        """The last sound checkpoint of the run, else the TA as it was converted."""
        return self.sound()[0] or self.ta

    # A run that is replaced lies beside its successor until that has a checkpoint

    @property
    def _replaced(self) -> Path:
        return self.run.with_name(f".{self.run.name}.old")

    @contextmanager
    def set_aside(self, *, keep: bool) -> Iterator[None]:
        """Move a finished run out of the way, to bring it back if its successor saves nothing."""
        if not keep and self.run.exists():
            atomic.remove(self._replaced)
            self.run.replace(self._replaced)
        try:
            yield
        finally:
            self._settle()

    def mend(self) -> None:
        """Clear away what killed processes have left, and bring back what they had moved away.

        What living ones are at stays, and so does all that may not be changed.
        """
        families = [path / "students" for path in self.root.glob("families/*")]
        below = self.students, self.baselines, *families
        inner = [path for folder in below if folder.is_dir() for path in folder.iterdir()]
        homes = [folder.parent for folder in families]
        for folder in (self.root, *homes, self.run, self.run / "checkpoints", self.search, *inner):
            atomic.sweep(folder)
        for baseline in inner:
            if baseline.parent == self.baselines:
                Workspace(baseline).mend()
        if self._replaced.exists():
            with suppress(OSError, MattaError), self.alone():
                self._settle()

    def _settle(self) -> None:
        """Keep one run: this one if it has a checkpoint, else the one that it was to replace."""
        if self.newest() is None and _newest(self._replaced) is not None:
            atomic.remove(self.run)
            self._replaced.replace(self.run)
        elif self._replaced.exists():
            atomic.remove(self._replaced)
        if self.run.exists() and not self.checkpoints():
            atomic.remove(self.run)


def refuse_no_ta(folder: Path) -> None:
    """Raise ``MattaError`` where a folder that should hold a TA is not there."""
    if not folder.is_dir():
        raise MattaError(f"There is no TA folder {str(folder)!r}: make one with `matta convert`.")


def refuse_no_student(folder: Path) -> None:
    """Raise ``MattaError`` where a folder that should hold a Student is not there."""
    if not folder.is_dir():
        hint = "pass those of exported Students"
        raise MattaError(f"There is no folder {str(folder)!r}: {hint}.")


class Trainer(TypedDict):
    """What ``trainer.json`` of a checkpoint holds."""

    step: int
    seconds: float
    recipe: str
    optimizer: dict[str, Any]
    bad_in_a_row: NotRequired[int]
    bad_steps: NotRequired[int]
    best_value: NotRequired[float | None]
    best_step: NotRequired[int]
    loss_scale: NotRequired[dict[str, Any]]
    processes: NotRequired[int]
    made_of: NotRequired[dict[str, str]]
    matta: NotRequired[str]


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(checkpoint.name.removeprefix("step-"))


def counters_of(checkpoint: Path | None) -> dict[str, Any]:
    """What a run had come to at a checkpoint; empty where there is none."""
    if checkpoint is None:
        return {}
    again = "go on from another checkpoint"
    try:
        return reading.stored(checkpoint / "trainer.json", Trainer, again)
    except FileNotFoundError:
        raise MattaError(f"{checkpoint} has no trainer.json: {again}.") from None


def _checkpoints(run: Path) -> list[Path]:
    named = [p for p in (run / "checkpoints").glob("step-*") if p.is_dir()]
    # a copy that somebody has put beside them ("step-60-backup") is none
    return sorted((p for p in named if p.name.removeprefix("step-").isdecimal()), key=step_of)


def _newest(run: Path) -> Path | None:
    found = (path for path in reversed(_checkpoints(run)) if (path / "trainer.json").exists())
    return next(found, None)
