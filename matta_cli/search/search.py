"""Which sizes within a budget are the best ones, on held-out data.

Candidates are the uniform widths, and sizes of each layer by itself (Mix'n'Match; MatFormer,
arXiv 2310.07707), which are those of the widths that were trained. What is tried within a budget
goes into a journal of optuna's, so that a search goes on where it was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matta_cli.adapter import Sizes
from matta_cli.errors import MattaError
from matta_cli.measure.counts import Counts, Key
from matta_cli.measure.kept import forbidding
from matta_cli.models import folders
from matta_cli.models.ta import Student
from matta_cli.progress import Listener, Progress
from matta_cli.report.values import amount
from matta_cli.search.front import unbeaten
from matta_cli.search.journal import import_optuna, kept_trials
from matta_cli.search.latency import Latency, Timings
from matta_cli.search.scores import Scores
from matta_cli.search.space import SLOPE, SLOPES, Share, Space
from matta_cli.settings.budget import LIMITS, NEAR, TIMED, Budget
from matta_cli.settings.recipe import Recipe

LEVELS = 8  # budgets of a search without one: between the smallest Student and the largest
TRIES = 4  # how often a proposal is made anew after it was timed
UNSURE = 0.2  # times so close are as good as equal, on a machine that does other things, too
MARGIN = 0.05  # of a limit on time that is left free: it is never the same twice


@dataclass(frozen=True)
class Scored:
    """A Student, and its primary metric on the examples that sizes are chosen by."""

    student: Student
    value: float


class Search:
    """One search of a trained TA: its sizes, what they cost, and all that has been scored."""

    def __init__(self, recipe: Recipe, out: Path, storage: Any) -> None:
        self.recipe, self.settings, self.storage = recipe, recipe.search, storage
        reached = folders.reached(out, recipe.export.checkpoint)
        self.ta, used = reached.ta, reached.recipe.distill
        if self.ta.copies:
            nothing = "there are no nested weights to search sizes in"
            raise MattaError(f"The run had distill.shared = false: {nothing}.")
        taught = [self.ta.widest] if used.ta_weight > 0 else []
        self.space = Space(self.ta, sorted({*used.widths, *taught}))
        self.training_seconds = float(reached.counters["seconds"])
        self.scores = scores = Scores(recipe, reached, storage)
        size, part = recipe.export.batch_size, scores.reporting
        some = part.batch(range(min(size, len(part))))
        self.counts = Counts(scores.task, self.ta, some)
        here = {name: tensor.to(scores.device) for name, tensor in some.items()}
        self.timings = Timings(scores.task, self.ta, self.counts, here, recipe.export)
        self.scored: dict[Key, Scored] = {}
        self.stored: dict[Key, int] = {}  # bytes of what was chosen in fewer bits
        self._stock: dict[Key, bool] = {}

    def key(self, sizes: Sizes) -> Key:
        return self.ta.key(sizes)

    def stock(self, sizes: Sizes) -> bool:
        """Whether the stock library can load a Student of these sizes."""
        key = self.key(sizes)
        if key not in self._stock:
            self._stock[key] = self.ta.student(sizes).stock
        return self._stock[key]

    def allowed(self) -> list[Scored]:
        """All Students that were scored and may be chosen."""
        only = self.settings.stock_only
        return [one for one in self.scored.values() if not only or self.stock(one.student.sizes)]

    def score(self, which: float | Mapping[str, int]) -> float:
        """The primary metric of the Student of a width, or of sizes."""
        student = self.ta.student(which)
        value = self.scores.value(student.sizes)
        return self.scored.setdefault(self.key(student.sizes), Scored(student, value)).value

    def parameters(self, one: Scored) -> int:
        return self.counts.parameters(one.student.sizes)

    def costs(self, sizes: Sizes, names: Sequence[str]) -> dict[str, float]:
        """Costs by name. Times are those measured; of what is not timed yet a guess."""
        costs = self.counts(sizes, [name for name in names if name not in TIMED])
        for name, latency in self._latencies(names).items():
            costs[name] = latency.measured.get(self.key(sizes)) or latency.guess(sizes)
        return costs

    def _latencies(self, names: Sequence[str]) -> dict[str, Latency]:
        """Those of these costs that are timed."""
        return {name: self.timings.known[name] for name in names if name in TIMED}

    def used(self, budget: Budget) -> Share:
        """The share of a budget that sizes take: of its limits the one that they use most.

        Of a limit on time a margin stays free.
        """

        def share(sizes: Sizes) -> float:
            return max(budget.used(self._with_margin(self.costs(sizes, budget.names))).values())

        return share

    def _with_margin(self, costs: Mapping[str, float]) -> dict[str, float]:
        return {n: value / (1 - MARGIN) if n in TIMED else value for n, value in costs.items()}

    # Searching

    def run(self, budgets: Sequence[Budget], listen: Listener) -> list[Student]:
        """Score the uniform widths, and sizes within each budget; the best Student of each.

        Without budgets, sizes are tried from the smallest Student to the largest. Raises
        ``MattaError`` for a budget that is not possible.
        """
        budgets = self.timings.of(budgets, self.space.uneven())
        self._start(budgets, listen)
        some = budgets or self.levels()
        trials = self.settings.trials if budgets else max(1, self.settings.trials // 4)
        total, done = len(self.space.uniform) + trials * len(some), 0
        scores, started = self.scores, time.perf_counter()

        def tick() -> None:
            nonlocal done
            done += 1
            rate = scores.evaluated * scores.examples / (time.perf_counter() - started)
            listen(Progress(done, total, per_second=rate, unit="examples"))

        for width in self.space.uniform:
            self.score(width)
            tick()
        for budget in some:
            self._try(budget, trials, tick)
        return [self.choice(budget) for budget in budgets]

    def _start(self, budgets: Sequence[Budget], listen: Listener) -> None:
        """Time some Students where time is limited, and refuse budgets that are not possible."""
        for note in self.timings.notes:
            listen(Progress(message=f"Note: {note}"))
        for name, latency in self.timings.known.items():
            first = f"Timing the uniform widths ({LIMITS[name].label})"
            listen(Progress(message=f"{first}, to guess which sizes to time next."))
            latency.start(list(self.space.uniform.values()))
        self.refuse_impossible(budgets)

    def refuse_impossible(self, budgets: Sequence[Budget]) -> None:
        """Raise ``MattaError`` for a budget that even the smallest Student exceeds.

        It names the nearest possible limits.
        """
        smallest = self.space.smallest()
        for budget in budgets:
            for latency in self._latencies(budget.names).values():
                if self.key(smallest) not in latency.careful:
                    latency.measure(smallest, careful=True)
            least = self.costs(smallest, budget.names)
            needed = self._with_margin(least)
            over = [LIMITS[name] for name, share in budget.used(needed).items() if share > 1]
            if over:
                has = " and ".join(amount(limit.name, least[limit.name]) for limit in over)
                texts = {limit.flag: limit.rounded_up(needed[limit.name]) for limit in over}
                near = " ".join(f"--target-{flag} {text}" for flag, text in texts.items())
                stays = forbidding(self.ta.model, self.ta.axes, smallest)
                raise MattaError(
                    f"The budget {budget.name} is not possible: the smallest Student here has "
                    f"{has}, so the nearest possible is {near}; a smaller width has to be trained "
                    f"for less (distill.widths). {stays}"
                )

    def levels(self) -> list[Budget]:
        """Budgets of parameters from the smallest Student to the largest, in equal ratios."""
        every = [self.counts.parameters(sizes) for sizes in self.space.uniform.values()]
        low, high = every[0], every[-1]
        limits = [round(low * (high / low) ** (i / (LEVELS - 1))) for i in range(1, LEVELS)]
        distinct = dict.fromkeys(limits)
        return [Budget(f"params-{n}", (("parameters", float(n)),)) for n in distinct]

    def _try(self, budget: Budget, trials: int, tick: Callable[[], None]) -> None:
        """Score sizes within a budget.

        First by MatFormer's rule, then by steeper ones, then what optuna proposes.
        """
        used = self.used(budget)
        if self.settings.stock_only:
            for sizes in self.space.by_kind(used, self.stock)[: max(1, trials)]:
                self._timed(budget, sizes)
                self.score(sizes)
                tick()
            return
        optuna, axes = import_optuna(), self.space.free()
        name = f"{self.scores.digest} {budget.name} {self.settings.seed}"
        direction = self.scores.direction
        kept = optuna.create_study(
            study_name=name, storage=self.storage, direction=direction, load_if_exists=True
        )
        # in memory: sampling takes notes of each number
        study = optuna.create_study(direction=direction)
        distributions = {n: optuna.distributions.FloatDistribution(0.0, SLOPE) for n in axes}

        def score(ahead: Mapping[str, float]) -> float:
            sizes = self._filling({n: ahead[n] for n in axes}, budget)
            tick()
            return self.score(sizes)

        def add(ahead: Mapping[str, float]) -> None:
            values = {"value": score(ahead), "params": ahead, "distributions": distributions}
            study.add_trial(optuna.trial.create_trial(**values))

        def fits(trial: Any) -> bool:
            return all(0 <= trial.params[name] <= SLOPE for name in axes)

        for trial in kept_trials(kept, fits):
            add(trial.params)
        for number in range(len(study.trials), trials):
            if number < len(SLOPES):
                add(self.space.rule(SLOPES[number]))
            else:
                # a search that goes on draws what it would have drawn
                study.sampler = optuna.samplers.TPESampler(
                    seed=self.settings.seed * 100_003 + number,
                    multivariate=True,
                    n_startup_trials=8,
                )
                trial = study.ask(distributions)
                study.tell(trial, score(trial.params))
            kept.add_trial(study.trials[-1])

    def _timed(self, budget: Budget, sizes: Sizes) -> None:
        """Time sizes where the budget limits time, and they were not yet."""
        for latency in self._latencies(budget.names).values():
            if self.key(sizes) not in latency.measured:
                latency.measure(sizes)

    def _filling(self, ahead: Mapping[str, float], budget: Budget) -> dict[str, int]:
        """The largest sizes within a budget whose axes are so far ``ahead`` of one another.

        Where time is limited, sizes are timed until it is known which are the last ones within.
        """
        used, limits = self.used(budget), dict(budget.limits)
        latencies = self._latencies(budget.names)

        def share(sizes: Sizes) -> float:
            for name, latency in latencies.items():
                if latency.doubtful(sizes, limits[name] * (1 - MARGIN)):
                    latency.measure(sizes)
            return used(sizes)

        tried: list[tuple[float, dict[str, int]]] = []
        for _ in range(TRIES):
            sizes = self.space.decode(ahead, share)
            assert sizes is not None  # impossible budgets were refused
            known = all(self.key(sizes) in latency.measured for latency in latencies.values())
            self._timed(budget, sizes)
            tried.append((used(sizes), sizes))
            if known or 1 - NEAR <= used(sizes) <= 1:
                break
        within = [one for one in tried if one[0] <= 1]
        return max(within or tried[-1:], key=lambda one: one[0])[1]

    # Choosing

    def choice(self, budget: Budget) -> Student:
        """The best Student within a budget.

        Its times are measured once more, for longer, and have to meet their limits.
        """
        best, again = self._best(budget), TRIES
        latencies = self._latencies(budget.names).values()
        while latencies:
            if hasty := [one for one in latencies if self.key(best.sizes) not in one.careful]:
                for latency in hasty:
                    latency.measure(best.sizes, careful=True)
                if self.used(budget)(best.sizes) > 1 and not self.settings.stock_only:
                    self.score(self._filling(self.space.rule(0.0), budget))
            elif again and self.used(budget)(best.sizes) < 1 - NEAR and self._slower(budget):
                # a machine that was busy for a moment may have kept the next ones out
                again -= 1
                sizes = self._slower(budget)[0]
                for latency in latencies:
                    latency.measure(sizes, careful=True)
                self.score(sizes)
            else:
                break
            best = self._best(budget)
        return replace(best, name=budget.name, budget=budget)

    def _slower(self, budget: Budget) -> list[dict[str, int]]:
        """Sizes that only a short timing kept out of a budget, the nearest first."""
        only, limits, found = self.settings.stock_only, dict(budget.limits), []
        for name, latency in self._latencies(budget.names).items():
            rest = replace(budget, limits=tuple(one for one in budget.limits if one[0] != name))
            fits = self.used(rest) if rest.limits else lambda sizes: 0.0
            slower = latency.slower(limits[name] * (1 - MARGIN))
            found += [one for one in slower if fits(one) <= 1 and (not only or self.stock(one))]
        return found

    def _best(self, budget: Budget) -> Student:
        """The best of those that use a budget up, or else of those nearly as large as can be."""
        used = self.used(budget)
        shares = [(one, used(one.student.sizes)) for one in self.allowed()]
        most = max((share for _, share in shares if share <= 1), default=None)
        if most is None:
            only = self.settings.stock_only
            hint = "leave out --stock-only" if only else "try again, or give it more room"
            raise MattaError(f"No Student that was found meets the budget {budget.name}: {hint}.")
        near = UNSURE if self._latencies(budget.names) else NEAR
        enough = 1 - near if most >= 1 - near else most - near
        return self.order([one for one, share in shares if enough <= share <= 1])[0].student

    def order(self, scored: Sequence[Scored]) -> list[Scored]:
        """The best first.

        Of equals a uniform width, which was trained as it is, and then the smallest.
        """
        sign = -1 if self.scores.metric.higher else 1

        def rank(one: Scored) -> tuple[float, bool, int]:
            return sign * one.value, one.student.width is None, self.parameters(one)

        return sorted(scored, key=rank)

    def front(self, names: Sequence[str]) -> list[Scored]:
        """What no other beats in quality and these costs, each of which is measured or counted."""
        ordered, sign = self.order(self.allowed()), -1 if self.scores.metric.higher else 1
        for latency in self._latencies(names).values():
            for one in ordered:
                if self.key(one.student.sizes) not in latency.measured:
                    latency.measure(one.student.sizes)
        every = [self.costs(one.student.sizes, names) for one in ordered]
        pairs = zip(ordered, every, strict=True)
        points = [(sign * one.value, *costs.values()) for one, costs in pairs]
        return sorted((ordered[i] for i in unbeaten(points)), key=self.parameters)
