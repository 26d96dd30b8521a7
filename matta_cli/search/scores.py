"""How good Students are, on held-out examples that sizes are chosen by."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from matta_cli.adapter import Sizes
from matta_cli.data.split import Columns, Part, halves
from matta_cli.devices import device
from matta_cli.files import atomic
from matta_cli.measure import score
from matta_cli.measure.students import measurable
from matta_cli.models.folders import Reached
from matta_cli.nested.view import has_statistics
from matta_cli.search.journal import import_optuna, kept_trials
from matta_cli.settings.quantize import calibrates
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task

# examples trained on for each one that sizes are chosen by: 32 trials are then a small part of the
# training
SHARE = 64


class Scores:
    """The primary metric of Students of any sizes, each worked out once.

    One half of the held-out examples is for choosing sizes, the other for reporting on them. The
    values lie in a study of optuna's that nothing else is in, so that another search of the same
    TA on the same examples starts from them.
    """

    def __init__(self, recipe: Recipe, reached: Reached, storage: Any) -> None:
        self.ta, used = reached.ta, reached.recipe.distill
        processes = reached.counters.get("processes", 1)
        self.at_a_time = score.at_a_time(recipe.distill, processes)
        self.device = device.pick(recipe.distill.device)
        model = self.ta.model.to(self.device).eval()
        self.task = task.task(self.ta.adapter.task, recipe)
        self.normed = has_statistics(model)
        # what BatchNorm's statistics, and the ranges of activations, are read off
        training = self.normed or calibrates(recipe.export.quantize)
        self.data = self.task.data(reached.folder, model, training=training)
        self.metric = self.task.metrics[0]  # which data may tell
        at = score.chooses(self.task, model, self.data, self.device)
        self.choosing, self.reporting = halves(self.data.held_out[at])
        few = used.steps * used.batch_size // SHARE
        most = recipe.data.eval_examples or 2000
        self.examples = recipe.search.examples or max(16, min(few, most))
        what = atomic.digest(reached.folder), self.choosing.digest(), self.examples
        self.digest = hashlib.sha256(repr((*what, self.metric.name)).encode()).hexdigest()[:16]
        self.study = import_optuna().create_study(
            study_name=f"scores {self.digest}",
            storage=storage,
            direction=self.direction,
            load_if_exists=True,
        )
        kept = kept_trials(self.study, lambda trial: isinstance(trial.user_attrs["key"], str))
        self.known = {trial.user_attrs["key"]: trial.value for trial in kept}
        self.evaluated = 0

    @property
    def direction(self) -> str:
        return "maximize" if self.metric.higher else "minimize"

    def better(self, value: float, than: float) -> bool:
        return value > than if self.metric.higher else value < than

    def model(self, sizes: Sizes) -> Any:
        """A Student to score: a view, or where it needs statistics of its own a dense copy."""
        if not self.normed:
            return self.ta.student(sizes).view().eval()
        student = self.ta.student(sizes)
        return measurable(self.task, student, self.data.train, self.device)

    def columns(self, model: Any, part: Part) -> Columns:
        """What a model makes of each example of a half, of as many as are for choosing."""
        return score.columns(self.task, model, part, self.at_a_time, self.device, self.examples)

    def value_of(self, model: Any) -> float:
        """A model's primary metric on the examples that sizes are chosen by."""
        value = self.task.summarize(self.columns(model, self.choosing))[self.metric.name]
        bad = -1e30 if self.metric.higher else 1e30
        return value if math.isfinite(value) else bad

    def value(self, sizes: Sizes) -> float:
        """The primary metric on the examples that sizes are chosen by."""
        key = json.dumps(self.ta.key(sizes))
        if key not in self.known:
            value = self.value_of(self.model(sizes))
            self.evaluated += 1
            self.known[key] = value
            trial = import_optuna().trial.create_trial(value=value, user_attrs={"key": key})
            self.study.add_trial(trial)
        return self.known[key]
