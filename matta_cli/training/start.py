"""Before the first step: how good the base and the Teacher are, on the same examples."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from matta_cli.data.split import Columns, Data, Split
from matta_cli.errors import MattaError, said
from matta_cli.files.reading import lenient
from matta_cli.files.workspace import Workspace
from matta_cli.measure import score
from matta_cli.measure.intervals import Difference, Sampled, differences
from matta_cli.models.ta import TA
from matta_cli.progress import Listener, Progress
from matta_cli.report.schema import Metric
from matta_cli.report.verdicts import SURE
from matta_cli.settings.recipe import DistillSettings
from matta_cli.tasks.task import Task
from matta_cli.training.file_teacher import FileTeacher
from matta_cli.training.teacher import ModelTeacher, Teacher

EXAMPLES = 200  # held-out examples, at the least, that tell a Teacher from guessing
RESAMPLES = 200
# of the base's value: what a Teacher may be worse by and be the same. The base itself, made into
# a TA and opened again, differs by less.
SAME = 1e-3
OPENED = "Is it opened as it was trained (--teacher-config, --teacher-adapter)?"


@dataclass(frozen=True)
class Start:
    """What the base and the Teacher measured before the first step of a run.

    They are the examples of the run's own evaluations. values: by model, by metric.
    """

    examples: int
    values: dict[str, dict[str, float]]

    def of_metric(self, name: str) -> dict[str, float]:
        """The values of one metric, by model."""
        return {model: own[name] for model, own in self.values.items() if name in own}

    def written(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def of(cls, space: Workspace) -> Start | None:
        """What a run in ``space`` began from; None where that is not known."""
        try:
            stored = lenient(space.start)
            values = {str(name): dict(own) for name, own in stored["values"].items()}
            return cls(int(stored["examples"]), values)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


class Starting:
    """Measures a base and a Teacher, and says which is better."""

    def __init__(
        self,
        settings: DistillSettings,
        task: Task,
        ta: TA,
        data: Data,
        device: torch.device,
        processes: int = 1,
    ) -> None:
        """ta: as it was converted: its width 1.0 is the base. processes: of the run."""
        self.settings, self.task, self.data, self.device = settings, task, data, device
        self.outputs = task.outputs(ta.model)
        ta.model.to(device)
        self.base: Any = ta.student(1.0).view().eval()
        self.size = score.at_a_time(settings, processes)

    def measured(self, teacher: Teacher | None, listen: Listener, *, itself: bool = False) -> Start:
        """The base and the Teacher, where that is a model, on the examples of the evaluations.

        itself: the Teacher is the base, and what is measured is of both. Raises ``MattaError`` for
        a Teacher that does not run on the data, or is too weak; of one that may be weak, ``listen``
        hears so.
        """
        split, few = self.data.held_out[0], self.settings.eval_examples
        enough = max(few, EXAMPLES) if few else len(split)
        tables = {"base": self._columns(self.base, split, enough)}
        if isinstance(teacher, ModelTeacher):
            tables["Teacher"] = tables["base"] if itself else self._run(teacher, split, enough)
            self._compare(tables, "held-out", listen, refuse=True)
        elif isinstance(teacher, FileTeacher):
            # it speaks of training examples only: a base that has learned them looks better there
            some = teacher.sample()
            ours = self._columns(self.base, some, len(some))
            both = {"base": ours, "Teacher": teacher.columns(some)}
            self._compare(both, "training", listen, refuse=False)
        if 0 < few < min(enough, len(split)):
            tables = {"base": self._columns(self.base, split, few)}
            if isinstance(teacher, ModelTeacher):
                again = tables["base"] if itself else self._columns(teacher.model, split, few)
                tables["Teacher"] = again
        count = min(few or len(split), len(split))
        return Start(count, {name: self.task.summarize(own) for name, own in tables.items()})

    def _columns(self, model: Any, split: Split, limit: int) -> Columns:
        return score.columns(self.task, model, split, self.size, self.device, limit)

    def _run(self, teacher: ModelTeacher, split: Split, limit: int) -> Columns:
        try:
            return self._columns(teacher.model, split, limit)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            # whatever its own code makes of it
            why = f"does not run on this data: {said(error)}"
            raise MattaError(f"The Teacher {self.settings.teacher!r} {why}.") from error

    def _compare(
        self, tables: dict[str, Columns], which: str, listen: Listener, *, refuse: bool
    ) -> None:
        """Say what both measured on these examples, held-out or training ones.

        Raises ``MattaError`` for a Teacher that guesses, and with ``refuse`` for one that is worse
        than the base beyond the interval of their difference.
        """
        weak, name = self.settings.allow_weak_teacher, self.settings.teacher
        chance = self.task.at_chance(tables["Teacher"], self.outputs)
        if chance and not weak:
            self._refuse(f"is too weak: {chance.rstrip('.')}.")
        told = self._difference(tables)
        if told is None:
            nothing = f"the {which} examples do not give any metric of both"
            listen(Progress(message=f"The Teacher was not compared with the base: {nothing}."))
            return
        count = f"{told.found['examples']:,} {which} examples"
        same = tables["base"] is tables["Teacher"]
        measured = f"on {count}, {told.once if same else told.sentence}"
        if told.surely and refuse and not weak:
            self._refuse(f"is worse than the base: {measured}. {OPENED}")
        listen(Progress(message=f"Before training, {measured}."))
        warning = ""
        if chance:
            warning = f"only guesses: {chance}"
        elif told.worse:
            surely = "is worse than the base"
            by_chance = "measures worse than the base, which may be chance"
            warning = f"{surely if told.surely else by_chance}. {OPENED}"
        if warning:
            listen(Progress(message=f"WARNING: the Teacher {name!r} {warning}"))

    def _refuse(self, what: str) -> None:
        anyway = "Pass --allow-weak-teacher to go on"
        raise MattaError(f"The Teacher {self.settings.teacher!r} {what} {anyway}.")

    def _difference(self, tables: dict[str, Columns]) -> _Told | None:
        """The Teacher beside the base, in the first metric that both have."""
        if not all(tables.values()):
            return None  # what a task does not score
        base, theirs = (Sampled(self.task, tables[name]) for name in ("base", "Teacher"))
        there = (m for m in self.task.metrics if m.higher is not None and m.name in theirs.values)
        metric = next((m for m in there if math.isfinite(base.values.get(m.name, math.nan))), None)
        if metric is None:
            return None
        found = differences([theirs], [base], RESAMPLES)[metric.name]
        return _Told(metric, base.values[metric.name], theirs.values[metric.name], found)


@dataclass(frozen=True)
class _Told:
    """A metric of the base and of the Teacher, and their difference."""

    metric: Metric
    base: float
    teacher: float
    found: Difference

    def _worse(self, difference: float) -> bool:
        sign = 1 if self.metric.higher else -1
        return sign * difference < -SAME * abs(self.base)

    @property
    def worse(self) -> bool:
        return self._worse(self.found["value"])

    @property
    def surely(self) -> bool:
        """Whether it is worse at both ends of the interval, and not by chance."""
        ends = self._worse(self.found["low"]) and self._worse(self.found["high"])
        return ends and self.found["p"] < SURE

    @property
    def once(self) -> str:
        """Of a Teacher that is the base."""
        return f"{self.metric.label}: the base, which is the Teacher, too, has {self.base:.4g}"

    @property
    def sentence(self) -> str:
        ends = f"95 % interval {self.found['low']:+.3g} to {self.found['high']:+.3g}"
        values = f"the base has {self.base:.4g} and the Teacher {self.teacher:.4g}"
        return f"{self.metric.label}: {values} ({self.found['value']:+.3g}, {ends})"
