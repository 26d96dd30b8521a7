"""How good the models of a run are at its end: base, Teacher, TA and Students."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matta_cli.files.card import read_card
from matta_cli.files.workspace import Workspace, step_of
from matta_cli.report.numbers import MISSING, finite, plain
from matta_cli.report.schema import Metric
from matta_cli.settings.resolve import run_recipe
from matta_cli.tasks.task import task
from matta_cli.training.log import evaluations
from matta_cli.training.start import Start


@dataclass(frozen=True)
class Quality:
    """The models of a run in its first metric, on the same held-out examples.

    values: base, Teacher, a TA that is none of the Students, and the Students by their names.
    limit: in words, what kept the examples to so many, if anything did.
    """

    metric: Metric
    examples: int
    values: dict[str, float]
    limit: str = ""

    def json(self) -> dict[str, Any]:
        how = {"metric": self.metric.name, "higher_is_better": self.metric.higher}
        return {**how, "examples": self.examples, "models": plain(self.values)}

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Headers and rows of a table."""
        shown = [f"{v:.4g}" if finite(v) else MISSING for v in self.values.values()]
        headers = ["model", f"{self.metric.label}{self.metric.way}"]
        return headers, [list(row) for row in zip(self.values, shown, strict=True)]


def quality(out: Path) -> Quality | None:
    """What the last evaluation of the run in ``out`` found, beside what the run began from.

    Nothing is measured again. None where the run was not evaluated at its last checkpoint, or what
    it began from is not known.
    """
    space = Workspace(out)
    start, last = Start.of(space), space.newest()
    if start is None or last is None:
        return None
    recipe, limit = run_recipe(out), ""
    if start.examples == recipe.distill.eval_examples:
        limit = " (distill.eval_examples); the report takes those of data.eval_examples"
    metrics = task(read_card(space.ta)["task"], recipe).metrics
    for metric in (metric for metric in metrics if metric.higher is not None):
        found = [
            values for step, values in evaluations(space, metric.name) if step == step_of(last)
        ]
        if found and found[-1]:
            students = {_named(name): value for name, value in found[-1].items()}
            ta = {"TA": students.pop("TA")} if "TA" in students else {}
            values = {**start.of_metric(metric.name), **ta, **students}
            return Quality(metric, start.examples, values, limit)
    return None


def _named(model: str) -> str:
    """What a table calls a model of the log: ``width 0.5``."""
    return model if model == "TA" else f"width {model}"
