"""search: which sizes within a budget are the best ones, on held-out data.

Candidates are the uniform widths, and sizes of each layer by itself (Mix'n'Match; MatFormer, arXiv 2310.07707). A layer's sizes
are those of the widths that were trained: others were worse in our pilots. What is tried, and its score, goes into a journal of
optuna's, so that a search goes on where it was stopped, and another one of the same TA on the same data starts from its scores.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from matta_cli import (
    __version__,
    checkpoint,
    cost,
    devices,
    distillation,
    evaluate,
    inspection,
    page,
    registry,
    report,
    supernet,
)  # fmt: skip
from matta_cli.adapter import Sizes
from matta_cli.budgets import COSTS, NEAR, Budget, Costs
from matta_cli.conversion import TA, is_stock
from matta_cli.errors import Interrupted, MattaError
from matta_cli.progress import Listener, Progress, quiet
from matta_cli.recipe import Recipe
from matta_cli.tasks import Batch, Data, Task

LEVELS = 8  # budgets of a search without one: between the smallest Student and the largest
SLOPE = 2.0  # how many trained sizes two layers of one Student may lie apart
SLOPES = (0.0, SLOPE / 2, -SLOPE / 2)  # what is tried first: MatFormer's rule, a steeper one, and one that falls with depth
BETWEEN = 4  # parts that ``search.sizes = "any"`` makes of the stretch between two trained sizes
MARGIN = 0.05  # of a latency's limit that is left free: it is never the same twice
SHARE = 64  # examples trained on for each one that sizes are chosen by: 32 trials are then a small part of the training
DESIGN, ROUNDS = 6, 8  # mixed Students that the predictor of latency is fitted to, and rounds of timing them


# What may be tried


class Space:
    """The sizes that Students may have: of each axis those that were trained, and where asked for some between them."""

    def __init__(self, ta: TA, widths: Sequence[float], between: str) -> None:
        self.ta, self.between = ta, between
        self.widths = sorted(widths)
        uniform = [ta.sizes(width) for width in self.widths]
        self.menus = {axis.name: sorted({sizes[axis.name] for sizes in uniform}) for axis in ta.axes}
        multiple = ta.card.get("multiple", 1)
        self.grains = {a.name: math.lcm(a.step, multiple) if ta.base[a.name] >= 64 else a.step for a in ta.axes}
        self.trained = {name: set(menu) for name, menu in self.menus.items()}
        if between == "any":
            self.menus = {name: self._refined(name, menu) for name, menu in self.menus.items()}
        self.scale = BETWEEN if between == "any" else 1

    def _refined(self, name: str, menu: list[int]) -> list[int]:
        grain, found = self.grains[name], set(menu)
        for low, high in itertools.pairwise(menu):
            found |= {low + (high - low) * k // (BETWEEN * grain) * grain for k in range(1, BETWEEN)}
        return sorted(found)

    def smallest(self) -> dict[str, int]:
        return {name: menu[0] for name, menu in self.menus.items()}

    def free(self) -> list[str]:
        """The axes that have more than one size, in the order of the model."""
        return [name for name, menu in self.menus.items() if len(menu) > 1]

    def rule(self, slope: float) -> dict[str, float]:
        """What the i-th of an axis's kind is ahead of the first, in trained sizes: 0 is MatFormer's rule (see ``decode``)."""
        kinds: dict[str, list[str]] = {}
        for name in self.free():
            kinds.setdefault(supernet.kind(name), []).append(name)
        ahead = {n: i / max(1, len(names) - 1) for names in kinds.values() for i, n in enumerate(names)}
        return {name: abs(slope) * (share if slope >= 0 else 1 - share) for name, share in ahead.items()}

    def decode(self, ahead: Mapping[str, float], used: Callable[[Sizes], float]) -> dict[str, int] | None:
        """The largest sizes within a budget whose axes are so far ``ahead`` of one another; None where even the least is over.

        All axes rise together from their smallest sizes, each by ``ahead`` earlier, until the budget (``used``: the share of it
        that sizes take) is used up. Of axes that are level the later ones rise first: widths then never fall with depth and
        are of two neighbouring sizes at most, which is MatFormer's rule.
        """
        sizes = self.smallest()
        if used(sizes) > 1:
            return None
        order = list(ahead)
        rises = [(k - ahead[n] * self.scale, -i, n) for i, n in enumerate(order) for k in range(1, len(self.menus[n]))]
        names = [name for _, _, name in sorted(rises)]

        def after(count: int) -> dict[str, int]:
            levels = dict.fromkeys(order, 0)
            for name in names[:count]:
                levels[name] += 1
            return sizes | {name: self.menus[name][level] for name, level in levels.items()}

        low, high = 0, len(names)  # costs grow with every rise
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if used(after(middle)) <= 1 else (low, middle - 1)
        filled = self._filled(after(low), names[low:], used, part=False)
        if self.between == "trained" or used(filled) >= 1 - NEAR:
            return filled
        return max(filled, self._filled(after(low), names[low:], used, part=True), key=used)

    def _filled(
        self, sizes: dict[str, int], names: Sequence[str], used: Callable[[Sizes], float], *, part: bool
    ) -> dict[str, int]:
        """Use up what is left of a budget: raise each of these axes in turn that fits, until it is near.

        Where that does not do, axes whose next size is over the budget go a part of the way, as few as will do; with ``part``
        in their turn, before those after them rise.
        """
        stopped: dict[str, int] = {}  # axes whose next size is over the budget, and that size
        for name in names:
            if used(sizes) >= 1 - NEAR:
                return sizes
            if name not in stopped:
                menu = self.menus[name]
                larger = menu[menu.index(sizes[name]) + 1]
                if used(sizes | {name: larger}) <= 1:
                    sizes = sizes | {name: larger}
                else:
                    stopped[name] = larger
                    sizes = self._part_of_the_way(sizes, name, larger, used) if part else sizes
        while not part and self.between != "trained" and stopped and used(sizes) < 1 - NEAR:
            ways = {name: self._part_of_the_way(sizes, name, larger, used) for name, larger in stopped.items()}
            best = max(ways, key=lambda name: used(ways[name]))
            sizes = ways[best]
            del stopped[best]
        return sizes

    def _part_of_the_way(self, sizes: dict[str, int], name: str, larger: int, used: Callable[[Sizes], float]) -> dict[str, int]:
        """One axis as large as the budget lets it be."""
        grain = self.grains[name]
        low, high = 0, max(0, (larger - sizes[name] - 1) // grain)
        while low < high:
            middle = (low + high + 1) // 2
            fits = used(sizes | {name: sizes[name] + middle * grain}) <= 1
            low, high = (middle, high) if fits else (low, middle - 1)
        return sizes | {name: sizes[name] + low * grain}

    def by_kind(self, used: Callable[[Sizes], float], stock: Callable[[Sizes], bool]) -> list[dict[str, int]]:
        """Sizes within a budget that the stock library can load: every kind of axis at one width; those that use most first.

        Where none comes near, one kind is at a size between, as large as the budget lets it be.
        """
        kinds = list(dict.fromkeys(supernet.kind(axis.name) for axis in self.ta.axes))
        base = {width: self.ta.sizes(width) for width in self.widths}
        found: dict[tuple[int, ...], dict[str, int]] = {}
        for chosen in itertools.product(self.widths, repeat=len(kinds)):
            at = dict(zip(kinds, chosen, strict=True))
            sizes = {axis.name: base[at[supernet.kind(axis.name)]][axis.name] for axis in self.ta.axes}
            if used(sizes) <= 1:
                found.setdefault(tuple(sizes.values()), sizes)
        fitting = sorted((s for s in found.values() if stock(s)), key=used, reverse=True)
        if self.between == "trained" or (fitting and used(fitting[0]) >= 1 - NEAR and self.between == "auto"):
            return fitting
        widened = [self._kind_part_of_the_way(s, kind, used, stock) for s in fitting for kind in kinds]
        return sorted([*fitting, *(s for s in widened if s is not None)], key=used, reverse=True)

    def _kind_part_of_the_way(
        self, sizes: dict[str, int], kind: str, used: Callable[[Sizes], float], stock: Callable[[Sizes], bool]
    ) -> dict[str, int] | None:
        own = [axis for axis in self.ta.axes if supernet.kind(axis.name) == kind]
        first, grain = own[0], self.grains[own[0].name]

        def after(steps: int) -> dict[str, int]:
            share = (sizes[first.name] + steps * grain) / sizes[first.name]
            grown = {a.name: int(sizes[a.name] * share / a.step) * a.step for a in own}
            return sizes | {name: min(size, self.menus[name][-1]) for name, size in grown.items()}

        low, high = 0, (self.menus[first.name][-1] - sizes[first.name]) // grain
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if used(after(middle)) <= 1 else (low, middle - 1)
        for steps in range(low, max(0, low - 16), -1):
            if stock(after(steps)):
                return after(steps)
        return None


# Latency


class Latency:
    """Seconds of a forward on this machine, measured; and a guess for sizes that were not, only to rank what is tried.

    The guess is a sum of what the sizes of each kind come to, the layers and the MACs, with weights of zero or more fitted by
    least squares: it never falls where an axis grows.
    """

    def __init__(self, task: Task, ta: TA, costs: Costs, example: Batch, threads: int) -> None:
        self.task, self.ta, self.costs, self.example, self.threads = task, ta, costs, example, threads
        self.weights = np.zeros(0)
        self.correction = 1.0
        self.measured: dict[tuple[tuple[str, int], ...], float] = {}

    def time(self, models: Mapping[str, Any], rounds: int = cost.ROUNDS) -> dict[str, float]:
        """The median seconds of a forward of each model."""
        with cost.threads(self.threads):
            taken = cost.latencies(self.task, models, self.example, rounds)
        return {name: found["median"] for name, found in taken.items()}

    def fit(self, several: Sequence[Sizes]) -> None:
        """Time Students, as views, and fit the guess to them."""
        taken = self.time({str(i): self.ta.at(sizes).eval() for i, sizes in enumerate(several)}, ROUNDS)
        from scipy.optimize import nnls

        features = np.array([self._features(sizes) for sizes in several], dtype=np.float64)
        scale = features.max(0)
        seconds = np.array([taken[str(i)] for i in range(len(several))])
        self.weights = nnls(features / scale / seconds[:, None], np.ones(len(seconds)))[0] / scale  # errors as shares

    def _features(self, sizes: Sizes) -> list[float]:
        own = supernet.own_sizes(self.ta.axes, sizes)
        return [1.0, float(self.costs.macs(sizes)), *(float(sum(found)) for found in supernet.kinds(own).values())]

    def guess(self, sizes: Sizes) -> float:
        return float(np.dot(self.weights, self._features(sizes))) * self.correction

    def measure(self, sizes: Sizes) -> float:
        """The median of a dense Student of these sizes, of three measurements the middle one; corrects the guess by it."""
        model = {"": self.ta.student(sizes)}
        found = sorted(self.time(model)[""] for _ in range(3))[1]
        self.measured[self.costs.key(sizes)] = found
        self.correction *= found / self.guess(sizes)
        return found


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
        self.study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
        self.known = {t.user_attrs["key"]: t.value for t in self.study.trials if t.value is not None}

    def add(self, key: str, value: float) -> None:
        self.known[key] = value
        self.study.add_trial(self.optuna.trial.create_trial(value=value, user_attrs={"key": key}))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MattaError("Searching sizes needs optuna: pip install 'matta[search]'.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def chooses(task: Task, model: Any, data: Data, device: torch.device) -> int:
    """Which of the held-out splits sizes are chosen by: the first that has the primary metric."""
    for at, split in enumerate(data.held_out):
        if task.metrics[0].name in task.summarize(evaluate.columns(task, model, split, 8, device, 8)):
            return at
    raise MattaError(f"Sizes are chosen by {task.metrics[0].label}, which the held-out data does not give.")


def reported(data: Data, at: int) -> Data:
    """The data without the held-out examples that sizes are chosen by."""
    half = evaluate.halves(data.held_out[at])[1]
    splits = tuple(half if i == at else split for i, split in enumerate(data.held_out))
    return replace(data, held_out=splits, description=f"{data.description}; measured on {len(half)} that chose no sizes")


class Search:
    """One search: the TA, the two halves of the held-out data, and all that has been scored."""

    def __init__(self, recipe: Recipe, out: Path, storage: Any) -> None:
        self.recipe, self.storage = recipe, storage
        self.settings = settings = recipe.search
        reached = distillation.reached(out, recipe.export.checkpoint)
        self.ta, used = reached.ta, reached.recipe
        ta = self.ta
        if ta.copies:
            raise MattaError("The run had distill.shared = false: there are no nested weights to search sizes in.")
        taught = [used.distill.ta_width or ta.widest] if used.distill.ta_weight > 0 else []
        self.space = Space(ta, sorted({*used.distill.widths, *taught}), settings.sizes)
        self.training_seconds = float(reached.counters["seconds"])
        self.device = devices.pick(recipe.distill.device)
        ta.model.to(self.device).eval()
        self.task: Task = registry.task(ta.adapter.task, recipe)
        self.metric = self.task.metrics[0]
        self.normed = supernet.has_statistics(ta.model)
        self.data: Data = self.task.data(reached.folder, ta.model, training=self.normed)
        self.split = chooses(self.task, ta.model, self.data, self.device)
        self.choosing, self.reporting = evaluate.halves(self.data.held_out[self.split])
        few = used.distill.steps * used.distill.batch_size // SHARE
        self.examples = settings.examples or max(16, min(few, recipe.data.eval_examples or 2000))
        some = self.reporting.batch(range(min(recipe.export.batch_size, len(self.reporting))))
        self.costs = Costs(self.task, ta, some)
        batch = cost.repeated({name: tensor.to(self.device) for name, tensor in some.items()}, recipe.export.batch_size)
        self.latency = Latency(self.task, ta, self.costs, batch, recipe.export.threads)
        parts = (checkpoint.digest(reached.folder), self.choosing.digest(), self.examples, self.metric.name)
        self.digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        self.scores = Scores(_optuna(), storage, f"scores {self.digest}", bool(self.metric.higher))
        self.found: dict[str, Candidate] = {}
        self.stock: dict[str, bool] = {}
        self.evaluated = 0

    def key(self, sizes: Sizes) -> str:
        return json.dumps(self.costs.key(sizes))

    def is_stock(self, sizes: Sizes) -> bool:
        key = self.key(sizes)
        if key not in self.stock:
            self.stock[key] = is_stock(self.ta, sizes)
        return self.stock[key]

    def allowed(self, sizes: Sizes) -> bool:
        return not self.settings.stock_only or self.is_stock(sizes)

    def model(self, sizes: Sizes) -> Any:
        """A Student to score: on views of the TA, or where it needs statistics of its own (BatchNorm) a copy."""
        if not self.normed:
            return self.ta.at(sizes).eval()
        size = self.recipe.distill.batch_size
        return distillation.student_for_evaluation(self.task, self.ta, sizes, self.data.train, size, self.device)

    def columns(self, sizes: Sizes, part: evaluate.Part) -> Any:
        size = max(8, self.recipe.distill.batch_size)
        return evaluate.columns(self.task, self.model(sizes), part, size, self.device, self.examples)

    def value(self, sizes: Sizes, width: float | None = None) -> float:
        """The primary metric on the examples that sizes are chosen by; worked out once for each Student."""
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
            found["latency"] = self.latency.measured.get(self.costs.key(sizes), 0.0) or self.latency.guess(sizes)
        return found

    def used(self, budget: Budget) -> Callable[[Sizes], float]:
        """The share of a budget that sizes take, the most of its limits. Of a latency's limit a margin stays free."""
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
        """Raise ``MattaError`` for a budget that even the smallest Student exceeds, with the nearest possible ones."""
        smallest = self.space.smallest()
        for budget in budgets:
            names = [name for name, _ in budget.limits]
            if "latency" in names and self.costs.key(smallest) not in self.latency.measured:
                self.latency.measure(smallest)
            least = self.cost(smallest, names)
            room = {name: value / (1 - MARGIN) if name == "latency" else value for name, value in least.items()}
            over = [name for name, share in budget.used(room).items() if share > 1]
            if over:
                has = " and ".join(f"{_shown(name, least[name])}" for name in over)
                near = " ".join(f"--target-{COSTS[name].flag} {_rounded_up(name, room[name])}" for name in over)
                raise MattaError(
                    f"The budget {budget.name} is not possible: the smallest Student here has {has}, so the nearest possible "
                    f"is {near}; a smaller width has to be trained for less (distill.widths)."
                )

    def levels(self) -> list[Budget]:
        """Budgets of parameters from the smallest Student to the largest, in equal ratios."""
        low, high = (self.costs.parameters(self.ta.sizes(width)) for width in (self.space.widths[0], self.space.widths[-1]))
        limits = [round(low * (high / low) ** (i / (LEVELS - 1))) for i in range(1, LEVELS)]
        return [Budget(f"params-{limit}", (("parameters", float(limit)),)) for limit in dict.fromkeys(limits)]

    def run(self, budget: Budget, trials: int, tick: Callable[[], None]) -> None:
        """Score sizes within a budget: MatFormer's rule first, steeper ones, then what optuna proposes."""
        used = self.used(budget)
        if self.settings.stock_only:
            for sizes in self.space.by_kind(used, self.is_stock)[: max(1, trials)]:
                self.value(sizes)
                tick()
            return
        optuna, axes = _optuna(), self.space.free()
        name = f"{self.digest} {budget.name} {self.space.between} {self.settings.seed}"
        direction = "maximize" if self.metric.higher else "minimize"
        kept = optuna.create_study(study_name=name, storage=self.storage, direction=direction, load_if_exists=True)
        study = optuna.create_study(direction=direction)  # in memory: sampling takes notes of each number
        distributions = {n: optuna.distributions.FloatDistribution(0.0, SLOPE) for n in axes}

        def score(ahead: dict[str, float]) -> float:
            found = self.space.decode({n: ahead[n] for n in axes}, used)
            assert found is not None  # impossible budgets were refused
            tick()
            return self.value(found)

        def done(ahead: dict[str, float]) -> Any:
            return optuna.trial.create_trial(value=score(ahead), params=ahead, distributions=distributions)

        for trial in kept.trials:
            study.add_trial(done(trial.params))
        for number in range(len(study.trials), trials):
            if number < len(SLOPES):
                study.add_trial(done(self.space.rule(SLOPES[number])))
            else:
                seed = self.settings.seed * 100_003 + number  # a search that goes on draws what it would have drawn
                study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=8)
                trial = study.ask(distributions)
                study.tell(trial, score(trial.params))
            kept.add_trial(study.trials[-1])

    def best(self, budget: Budget) -> Candidate:
        """The best of all that was scored within a budget: of those that use it up, where there are any."""
        used = self.used(budget)
        fitting = [(c, used(c.sizes)) for c in self.found.values()]
        fitting = [(c, share) for c, share in fitting if share <= 1 and self.allowed(c.sizes)]
        if not fitting:
            hint = "leave out --stock-only" if self.settings.stock_only else "try again, or give it more room"
            raise MattaError(f"No Student that was found meets the budget {budget.name}: {hint}.")
        most = max(share for _, share in fitting)
        near = [c for c, share in fitting if share >= 1 - NEAR] or [c for c, share in fitting if share == most]
        return self.order(near)[0]

    def order(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The best first; of equals a uniform width, which was trained as it is, and then the smallest."""
        sign = -1 if self.metric.higher else 1
        return sorted(candidates, key=lambda c: (sign * c.value, c.width is None, self.costs.parameters(c.sizes)))

    def choose(self, budget: Budget) -> Candidate:
        """The best Student within a budget. Latency is measured again on a dense copy, and has to meet its limit."""
        limits = dict(budget.limits)
        while "latency" in limits:
            best = self.best(budget)
            key = self.costs.key(best.sizes)
            if key in self.latency.measured:
                return best
            self.latency.measure(best.sizes)
            if self.used(budget)(best.sizes) > 1:
                sizes = self.space.decode(self.space.rule(0.0), self.used(budget))  # by the corrected guess
                if sizes is not None and not self.settings.stock_only:
                    self.value(sizes)
        return self.best(budget)

    def front(self, names: Sequence[str]) -> list[Candidate]:
        """What nothing else beats in quality at the same cost or less, for one of these costs at least."""
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
        return f"a latency of {report.in_seconds(value)}"
    return f"{report.in_bytes(value)} of weights" if name == "bytes" else f"{report.count(value)} {COSTS[name].label}"


def _rounded_up(name: str, value: float) -> str:
    """An amount of three digits that is no less, as a flag takes it."""
    units = [(factor, unit) for unit, factor in COSTS[name].units.items() if factor <= value and "I" not in unit]
    factor, unit = max(units, default=min((f, u) for u, f in COSTS[name].units.items()))
    unit = {"K": "k", "S": "s", "MS": "ms", "US": "us", "µS": "us", "ΜS": "us", "KB": "kB"}.get(unit, unit)
    unit = "G" if unit == "B" and name != "bytes" else unit
    digits = max(0, 2 - math.floor(math.log10(value / factor)))
    return f"{math.ceil(value / factor * 10**digits - 1e-9) / 10**digits:.{digits}f}{unit}"


@dataclass
class Chosen:
    """The Student of one budget. used: the share of each limit that it takes. width: where its sizes are those of a width."""

    budget: Budget
    sizes: dict[str, int]
    used: dict[str, float]
    width: float | None


def check(recipe: Recipe) -> None:
    """Raise ``MattaError`` for settings that no search can have."""
    if recipe.search.sizes not in ("auto", "trained", "any"):
        raise MattaError(f"--sizes {recipe.search.sizes!r} is not known: auto, trained or any.")
    if recipe.search.trials < 1 or recipe.search.examples < 0 or recipe.export.batch_size < 1 or recipe.export.threads < 0:
        raise MattaError("--trials and --batch must be 1 or more, --examples and --threads 0 or more.")


def search(
    recipe: Recipe, out: Path, budgets: Sequence[Budget] = (), *, measured: bool = True, listen: Listener = quiet
) -> tuple[dict[str, Any], list[Chosen]]:
    """Search sizes of the trained TA in ``out`` within each budget, or without any from the smallest Student to the largest.

    Returns what ``out/search/search.json`` holds (a report whose models are the Pareto front and the Students of the budgets),
    and these Students. Not ``measured``: nothing but the scores is written, and the front has no metrics. Raises ``MattaError``
    where there is no trained TA, no data, or a budget is not possible.
    """
    check(recipe)
    optuna = _optuna()
    if not (out / "ta").is_dir():
        raise MattaError(f"There is no TA in {str(out / 'ta')!r}: make one with `matta convert`.")
    folder = out / "search"
    folder.mkdir(exist_ok=True)
    with checkpoint.alone(folder, "Another search is running"):
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "trials.jsonl")))
        started = time.perf_counter()
        try:
            run = Search(recipe, out, storage)
            chosen = _searched(run, budgets, listen)
            result = _result(run, chosen, measured)
        except KeyboardInterrupt:
            raise Interrupted("Stopped; what was scored is kept: the same command goes on from there.") from None
        result["search"]["seconds"] = time.perf_counter() - started
        if measured:
            checkpoint.atomic_write(folder / "search.json", json.dumps(report.plain(result), indent=1, allow_nan=False) + "\n")
            checkpoint.atomic_write(folder / "search.html", page.html(result))
    return result, chosen


def _searched(run: Search, budgets: Sequence[Budget], listen: Listener) -> list[Chosen]:
    """Score the uniform widths and what is tried within each budget; choose a Student for each."""
    every = [budget for budget in budgets if "latency" in dict(budget.limits)]
    if every:
        listen(Progress(message="Timing some Students, to guess the latency of others."))
        generator = np.random.default_rng(0)
        mixed = [{name: int(generator.choice(menu)) for name, menu in run.space.menus.items()} for _ in range(DESIGN)]
        run.latency.fit([*run.uniform().values(), *mixed])
    run.refuse_impossible(budgets)
    for budget in every:  # the guess, made of views, is corrected near each limit by what dense copies take
        sizes = run.space.decode(run.space.rule(0.0), run.used(budget))
        if sizes is not None:
            run.latency.measure(sizes)
    some = budgets or run.levels()
    trials = run.settings.trials if budgets else max(1, run.settings.trials // 4)
    total, done = len(run.space.widths) + trials * len(some), 0
    started = time.perf_counter()

    def tick() -> None:
        nonlocal done
        done += 1
        taken = time.perf_counter() - started
        listen(Progress(done, total, per_second=run.evaluated * run.examples / taken, unit="examples"))

    for width, sizes in run.uniform().items():
        run.value(sizes, width)
        tick()
    for budget in some:
        run.run(budget, trials, tick)
    chosen = []
    for budget in budgets:
        best = run.choose(budget)
        names = [name for name, _ in budget.limits]
        chosen.append(Chosen(budget, best.sizes, budget.used(run.cost(best.sizes, names)), best.width))
    return chosen


def _result(run: Search, chosen: Sequence[Chosen], measured: bool) -> dict[str, Any]:
    """The report of a search: each model's metrics are measured on examples that no sizes were chosen by."""
    recipe, ta, task = run.recipe, run.ta, run.task
    asked = list(dict.fromkeys(name for one in chosen for name, _ in one.budget.limits)) or ["parameters"]
    names = list(dict.fromkeys(["parameters", "bytes", "macs", *asked]))
    front = run.front(asked)
    by_key = {run.key(c.sizes): c for c in front}
    for one in chosen:
        by_key.setdefault(run.key(one.sizes), run.found[run.key(one.sizes)]).names.append(one.budget.name)
    members = sorted(by_key.values(), key=lambda c: run.costs.parameters(c.sizes))
    numbers = itertools.count(1)
    entries: list[dict[str, Any]] = []
    for c in members:
        name = ", ".join(c.names) or (f"width {c.width:g}" if c.width is not None else f"mix {next(numbers)}")
        costs = run.cost(c.sizes, names)
        stock = run.is_stock(c.sizes)
        seconds = run.latency.measured.get(run.costs.key(c.sizes))
        tables = [run.columns(c.sizes, run.reporting)] if measured else []
        entries.append({
            "name": name, "role": "student", "width": c.width, "folder": None, "stock": stock, "loader": "",
            "loads": ta.adapter.loader.partition(".")[0] if stock else "matta_cli.load_student",
            "sizes": c.sizes, "shown": inspection.shown(ta, c.sizes, whole=True),
            "layers": inspection.layers(ta, c.sizes),
            "trained": all(c.sizes[axis] in menu for axis, menu in run.space.trained.items()),
            "parameters": costs["parameters"], "bytes": costs["bytes"], "macs": costs["macs"],
            "latency": {} if seconds is None else {str(recipe.export.batch_size): {"median": seconds}},
            "guessed_latency": None if "latency" not in costs or seconds is not None else costs["latency"],
            "chosen_by": c.value, "front": c in front, "parity": None,
            "metrics": evaluate.intervals(task, tables, recipe.export.bootstrap),
        })  # fmt: skip
    present = {metric for entry in entries for metric in entry["metrics"]}
    by_budget = {name: entry for c, entry in zip(members, entries, strict=True) for name in c.names}
    choices, notes = [], []
    for one in chosen:
        entry = by_budget[one.budget.name]
        choices.append({
            "budget": one.budget.name, "limits": dict(one.budget.limits), "used": one.used, "model": entry["name"],
            "stock": entry["stock"], "trained": entry["trained"],
        })  # fmt: skip
        if max(one.used.values()) < 1 - NEAR:
            notes.append(f"{one.budget.name}: the largest Student found uses {max(one.used.values()):.1%} of the budget.")
        if not entry["trained"]:
            notes.append(f"{one.budget.name} has a layer of a size that was never trained: --sizes trained leaves such out.")
        own = run.found[run.key(one.sizes)]
        smaller = [c for c in run.order(front) if run.used(one.budget)(c.sizes) <= 1]
        if smaller and smaller[0] is not own and smaller[0].value != own.value:
            share = max(one.budget.used(run.cost(smaller[0].sizes, [n for n, _ in one.budget.limits])).values())
            notes.append(f"{one.budget.name}: a Student that uses {share:.0%} of the budget scored better while choosing.")
    return {
        "format": 1, "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), "matta": __version__,
        "task": task.name, "adapter": ta.adapter.name, "unit": run.data.unit,
        "data": f"{run.data.description}; sizes chosen by {min(run.examples, len(run.choosing))} held-out examples, "
        f"measured on {min(run.examples, len(run.reporting))} others",
        "device": cost.device_card(run.device) | ({"threads": recipe.export.threads} if recipe.export.threads else {}),
        "metrics": [{"name": m.name, "label": m.label, "higher": m.higher} for m in task.metrics if m.name in present],
        "batch_size": recipe.export.batch_size, "costs": asked, "models": entries, "choices": choices, "notes": notes,
        "search": {"scored": len(run.found), "evaluated": run.evaluated, "examples": run.examples,
                   "training_seconds": run.training_seconds},
        "lineage": ta.card["lineage"], "recipe": recipe.text(("data", "export", "search")),
    }  # fmt: skip
