"""What a model says of an example, where one task has several kinds of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from matta_cli.data.split import Batch, Columns
from matta_cli.losses.targets import Counts, Logits, Losses, Term
from matta_cli.report.schema import Metric
from matta_cli.settings.recipe import DistillSettings
from matta_cli.tasks.task import Task, agreeing


def called(number: int, names: Sequence[str]) -> str:
    """A label by its number and its name, in words; one that does not begin with a letter stands
    in quotation marks: 0 '1 star'.
    """
    if number >= len(names):
        return str(number)
    name = names[number]
    return f"{number} {name if name[:1].isalpha() else repr(name)}"


class Kind(ABC):
    """What a model says of an example. The methods are those of ``Task``.

    reading, alike: as of ``Task``. unit: what examples are, if not what the task calls them.
    """

    reading = "classes"
    alike = ""
    unit = ""
    metrics: tuple[Metric, ...] = ()

    def __init__(self, settings: DistillSettings) -> None:
        self.settings = settings

    @abstractmethod
    def counts(self, batch: Batch) -> Counts: ...

    @abstractmethod
    def objective(
        self, logits: Logits, batch: Batch, terms: Sequence[Term], over: Counts | None = None
    ) -> Losses: ...

    @abstractmethod
    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]: ...

    @abstractmethod
    def summarize(self, columns: Columns) -> dict[str, float]: ...

    @abstractmethod
    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]: ...

    @abstractmethod
    def at_chance(self, columns: Columns, outputs: int) -> str | None: ...

    def unmeasured(self, label: np.ndarray) -> str:
        """What of held-out labels makes that nothing can be measured by them; empty: nothing."""
        return ""

    def named(self, label: Tensor, names: Sequence[str]) -> str:
        """An example's label, in words; empty where it has none. names: of the model's labels."""
        return f"{float(label):g}" if label.isfinite() else ""

    def right(self, columns: Columns) -> Columns:
        return {}

    def agreement(self, ours: Columns, theirs: Columns) -> Columns:
        [column] = ours
        return agreeing(ours[column] == theirs[column])


class KindTask(Task):
    """A task whose losses and metrics are those of a ``kind``, of which it may have several."""

    kind: Kind

    @property
    def reading(self) -> str:  # type: ignore[override]
        return self.kind.reading

    @property
    def alike(self) -> str:  # type: ignore[override]
        return self.kind.alike

    def and_label(self, label: Tensor, names: Sequence[str]) -> str:
        """What is said of an example's label, behind the example."""
        named = self.kind.named(label, names)
        return f", label {named}" if named else "" if self.unmeasured else ", no label"

    def counts(self, batch: Batch) -> Counts:
        return self.kind.counts(batch)

    def objective(
        self, logits: Logits, batch: Batch, terms: Sequence[Term], over: Counts | None = None
    ) -> Losses:
        return self.kind.objective(logits, batch, terms, over)

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return self.kind.score(logits, batch)

    def summarize(self, columns: Columns) -> dict[str, float]:
        return self.kind.summarize(columns)

    def right(self, columns: Columns) -> Columns:
        return self.kind.right(columns)

    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return self.kind.answers(logits, batch)

    def agreement(self, ours: Columns, theirs: Columns) -> Columns:
        return self.kind.agreement(ours, theirs)

    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        return self.kind.at_chance(columns, outputs)
