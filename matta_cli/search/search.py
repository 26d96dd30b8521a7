"""search: which sizes within a budget are the best ones, on held-out data.

Candidates are the uniform widths, and sizes of each layer by itself (Mix'n'Match; MatFormer, arXiv
2310.07707). A layer's sizes
are those of the widths that were trained: others were worse in our pilots. What is tried, and its
score, goes into a journal of optuna's, so that a search goes on where it was stopped, and another
one of the same TA on the same data starts from its scores.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matta_cli.adapter import Sizes
from matta_cli.data import split
from matta_cli.data.split import Data
from matta_cli.devices import device
from matta_cli.errors import MattaError
from matta_cli.files import atomic
from matta_cli.measure import score as measure_score
from matta_cli.measure import students
from matta_cli.measure.cost import repeated
from matta_cli.measure.score import at_a_time, chooses
from matta_cli.models import folders
from matta_cli.nested import view
from matta_cli.report import numbers
from matta_cli.search.costs import Costs
from matta_cli.search.latency import Latency
from matta_cli.search.space import SLOPE, SLOPES, Space
from matta_cli.settings.budget import COSTS, NEAR, Budget
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task
from matta_cli.tasks.task import Task
from matta_cli.training.spent import trained_widths

LEVELS = 8  # budgets of a search without one: between the smallest Student and the largest


MARGIN = 0.05  # of a latency's limit that is left free: it is never the same twice


# examples trained on for each one that sizes are chosen by: 32 trials are then a small part of the
# training
SHARE = 64


# Scores


@dataclass
class Candidate:
    """Sizes that were scored. value: the primary metric on the examples that sizes are chosen by."""

    sizes: dict[str, int]
    value: float
    width: float | None = None
    names: list[str] = field(default_factory=list)  # of the budgets that it was chosen for


class Scores:
    """Values by sizes, kept in a study of optuna's that nothing else is in."""

    def __init__(self, optuna: Any, storage: Any, name: str, higher: bool) -> None:
        self.optuna, self.higher = optuna, higher
        direction = "maximize" if higher else "minimize"
        self.study = optuna.create_study(
            study_name=name, storage=storage, direction=direction, load_if_exists=True
        )
        self.known = {
            t.user_attrs["key"]: t.value for t in self.study.trials if t.value is not None
        }

    def add(self, key: str, value: float) -> None:
        self.known[key] = value
        self.study.add_trial(self.optuna.trial.create_trial(value=value, user_attrs={"key": key}))


def import_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MattaError("Searching sizes needs optuna: pip install 'matta[search]'.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


class Search:
    """One search: the TA, the two halves of the held-out data, and all that has been scored."""

    def __init__(self, recipe: Recipe, out: Path, storage: Any) -> None:
        self.recipe, self.storage = recipe, storage
        self.settings = settings = recipe.search
        reached = folders.reached(out, recipe.export.checkpoint)
        self.ta, used = reached.ta, reached.recipe
        ta = self.ta
        if ta.copies:
            raise MattaError(
                "The run had distill.shared = false: there are no nested weights to search sizes in."
            )
        self.space = Space(ta, trained_widths(used.distill, ta), settings.sizes)
        self.training_seconds = float(reached.counters["seconds"])
        self.device = device.pick(recipe.distill.device)
        self.size = at_a_time(recipe.distill, reached.counters.get("processes", 1))
        ta.model.to(self.device).eval()
        self.task: Task = task.task(ta.adapter.task, recipe)
        self.metric = self.task.metrics[0]
        self.normed = view.has_statistics(ta.model)
        self.data: Data = self.task.data(reached.folder, ta.model, training=self.normed)
        self.split = chooses(self.task, ta.model, self.data, self.device)
        self.choosing, self.reporting = split.halves(self.data.held_out[self.split])
        few = used.distill.steps * used.distill.batch_size // SHARE
        self.examples = settings.examples or max(16, min(few, recipe.data.eval_examples or 2000))
        some = self.reporting.batch(range(min(recipe.export.batch_size, len(self.reporting))))
        self.costs = Costs(self.task, ta, some)
        batch = repeated(
            {name: tensor.to(self.device) for name, tensor in some.items()},
            recipe.export.batch_size,
        )
        self.latency = Latency(self.task, ta, self.costs, batch, recipe.export.threads)
        parts = (
            atomic.digest(reached.folder),
            self.choosing.digest(),
            self.examples,
            self.metric.name,
        )
        self.digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        self.scores = Scores(
            import_optuna(), storage, f"scores {self.digest}", bool(self.metric.higher)
        )
        self.found: dict[str, Candidate] = {}
        self.stock: dict[str, bool] = {}
        self.evaluated = 0

    def key(self, sizes: Sizes) -> str:
        return json.dumps(self.costs.key(sizes))

    def is_stock(self, sizes: Sizes) -> bool:
        key = self.key(sizes)
        if key not in self.stock:
            self.stock[key] = self.ta.student(sizes).stock
        return self.stock[key]

    def allowed(self, sizes: Sizes) -> bool:
        return not self.settings.stock_only or self.is_stock(sizes)

    def model(self, sizes: Sizes) -> Any:
        """A Student to score: on views of the TA, or where it needs statistics of its own
        (BatchNorm) a copy.
        """
        if not self.normed:
            return self.ta.at(sizes).eval()
        return students.measurable(
            self.task, self.ta.student(sizes), self.data.train, self.size, self.device
        )

    def columns(self, sizes: Sizes, part: split.Part) -> Any:
        return measure_score.columns(
            self.task, self.model(sizes), part, self.size, self.device, self.examples
        )

    def value(self, sizes: Sizes, width: float | None = None) -> float:
        """The primary metric on the examples that sizes are chosen by; worked out once for each
        Student.
        """
        key = self.key(sizes)
        if key not in self.scores.known:
            value = self.task.summarize(self.columns(sizes, self.choosing))[self.metric.name]
            if not math.isfinite(value):
                value = -1e30 if self.metric.higher else 1e30
            self.evaluated += 1
            self.scores.add(key, value)
        candidate = self.found.setdefault(key, Candidate(dict(sizes), self.scores.known[key]))
        candidate.width = width if width is not None else candidate.width
        return candidate.value

    def cost(self, sizes: Sizes, names: Sequence[str]) -> dict[str, float]:
        """Costs by name. Latency is the one measured, or else a guess."""
        found = self.costs(sizes, [name for name in names if name != "latency"])
        if "latency" in names:
            found["latency"] = self.latency.measured.get(
                self.costs.key(sizes), 0.0
            ) or self.latency.guess(sizes)
        return found

    def used(self, budget: Budget) -> Callable[[Sizes], float]:
        """The share of a budget that sizes take, the most of its limits. Of a latency's limit a
        margin stays free.
        """
        names = [name for name, _ in budget.limits]

        def share(sizes: Sizes) -> float:
            shares = budget.used(self.cost(sizes, names))
            if "latency" in shares:
                shares["latency"] /= 1 - MARGIN
            return max(shares.values())

        return share

    # Searching

    def uniform(self) -> dict[float, dict[str, int]]:
        return {width: self.ta.sizes(width) for width in self.space.widths}

    def refuse_impossible(self, budgets: Sequence[Budget]) -> None:
        """Raise ``MattaError`` for a budget that even the smallest Student exceeds, with the
        nearest possible ones.
        """
        smallest = self.space.smallest()
        for budget in budgets:
            names = [name for name, _ in budget.limits]
            if "latency" in names and self.costs.key(smallest) not in self.latency.measured:
                self.latency.measure(smallest)
            least = self.cost(smallest, names)
            room = {
                name: value / (1 - MARGIN) if name == "latency" else value
                for name, value in least.items()
            }
            over = [name for name, share in budget.used(room).items() if share > 1]
            if over:
                has = " and ".join(f"{_shown(name, least[name])}" for name in over)
                near = " ".join(
                    f"--target-{COSTS[name].flag} {_rounded_up(name, room[name])}" for name in over
                )
                raise MattaError(
                    f"The budget {budget.name} is not possible: the smallest Student here has {has}, so the nearest possible "
                    f"is {near}; a smaller width has to be trained for less (distill.widths)."
                )

    def levels(self) -> list[Budget]:
        """Budgets of parameters from the smallest Student to the largest, in equal ratios."""
        low, high = (
            self.costs.parameters(self.ta.sizes(width))
            for width in (self.space.widths[0], self.space.widths[-1])
        )
        limits = [round(low * (high / low) ** (i / (LEVELS - 1))) for i in range(1, LEVELS)]
        return [
            Budget(f"params-{limit}", (("parameters", float(limit)),))
            for limit in dict.fromkeys(limits)
        ]

    def run(self, budget: Budget, trials: int, tick: Callable[[], None]) -> None:
        """Score sizes within a budget: MatFormer's rule first, steeper ones, then what optuna
        proposes.
        """
        used = self.used(budget)
        if self.settings.stock_only:
            for sizes in self.space.by_kind(used, self.is_stock)[: max(1, trials)]:
                self.value(sizes)
                tick()
            return
        optuna, axes = import_optuna(), self.space.free()
        name = f"{self.digest} {budget.name} {self.space.between} {self.settings.seed}"
        direction = "maximize" if self.metric.higher else "minimize"
        kept = optuna.create_study(
            study_name=name, storage=self.storage, direction=direction, load_if_exists=True
        )
        # in memory: sampling takes notes of each number
        study = optuna.create_study(direction=direction)
        distributions = {n: optuna.distributions.FloatDistribution(0.0, SLOPE) for n in axes}

        def score(ahead: dict[str, float]) -> float:
            found = self.space.decode({n: ahead[n] for n in axes}, used)
            assert found is not None  # impossible budgets were refused
            tick()
            return self.value(found)

        def done(ahead: dict[str, float]) -> Any:
            return optuna.trial.create_trial(
                value=score(ahead), params=ahead, distributions=distributions
            )

        for trial in kept.trials:
            study.add_trial(done(trial.params))
        for number in range(len(study.trials), trials):
            if number < len(SLOPES):
                study.add_trial(done(self.space.rule(SLOPES[number])))
            else:
                # a search that goes on draws what it would have drawn
                seed = self.settings.seed * 100_003 + number
                study.sampler = optuna.samplers.TPESampler(
                    seed=seed, multivariate=True, n_startup_trials=8
                )
                trial = study.ask(distributions)
                study.tell(trial, score(trial.params))
            kept.add_trial(study.trials[-1])

    def best(self, budget: Budget) -> Candidate:
        """The best of all that was scored within a budget: of those that use it up, where there are
        any.
        """
        used = self.used(budget)
        fitting = [(c, used(c.sizes)) for c in self.found.values()]
        fitting = [(c, share) for c, share in fitting if share <= 1 and self.allowed(c.sizes)]
        if not fitting:
            hint = (
                "leave out --stock-only"
                if self.settings.stock_only
                else "try again, or give it more room"
            )
            raise MattaError(f"No Student that was found meets the budget {budget.name}: {hint}.")
        most = max(share for _, share in fitting)
        near = [c for c, share in fitting if share >= 1 - NEAR] or [
            c for c, share in fitting if share == most
        ]
        return self.order(near)[0]

    def order(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The best first; of equals a uniform width, which was trained as it is, and then the
        smallest.
        """
        sign = -1 if self.metric.higher else 1
        return sorted(
            candidates,
            key=lambda c: (sign * c.value, c.width is None, self.costs.parameters(c.sizes)),
        )

    def choose(self, budget: Budget) -> Candidate:
        """The best Student within a budget. Latency is measured again on a dense copy, and has to
        meet its limit.
        """
        limits = dict(budget.limits)
        while "latency" in limits:
            best = self.best(budget)
            key = self.costs.key(best.sizes)
            if key in self.latency.measured:
                return best
            self.latency.measure(best.sizes)
            if self.used(budget)(best.sizes) > 1:
                # by the corrected guess
                sizes = self.space.decode(self.space.rule(0.0), self.used(budget))
                if sizes is not None and not self.settings.stock_only:
                    self.value(sizes)
        return self.best(budget)

    def front(self, names: Sequence[str]) -> list[Candidate]:
        """What nothing else beats in quality at the same cost or less, for one of these costs at
        least.
        """
        chosen: dict[int, Candidate] = {}
        allowed = [c for c in self.found.values() if self.allowed(c.sizes)]
        costs = {id(c): self.cost(c.sizes, names) for c in allowed}
        for name in names:
            best: float | None = None
            for c in sorted(self.order(allowed), key=lambda c: costs[id(c)][name]):
                if best is None or (c.value > best if self.metric.higher else c.value < best):
                    best = c.value
                    chosen[id(c)] = c
        return sorted(chosen.values(), key=lambda c: self.costs.parameters(c.sizes))


def _shown(name: str, value: float) -> str:
    """An amount as people read it: ``1.23 M parameters``."""
    if name == "latency":
        return f"a latency of {numbers.in_seconds(value)}"
    return (
        f"{numbers.in_bytes(value)} of weights"
        if name == "bytes"
        else f"{numbers.count(value)} {COSTS[name].label}"
    )


def _rounded_up(name: str, value: float) -> str:
    """An amount of three digits that is no less, as a flag takes it."""
    units = [
        (factor, unit)
        for unit, factor in COSTS[name].units.items()
        if factor <= value and "I" not in unit
    ]
    factor, unit = max(units, default=min((f, u) for u, f in COSTS[name].units.items()))
    unit = {"K": "k", "S": "s", "MS": "ms", "US": "us", "µS": "us", "ΜS": "us", "KB": "kB"}.get(
        unit, unit
    )
    unit = "G" if unit == "B" and name != "bytes" else unit
    digits = max(0, 2 - math.floor(math.log10(value / factor)))
    return f"{math.ceil(value / factor * 10**digits - 1e-9) / 10**digits:.{digits}f}{unit}"
