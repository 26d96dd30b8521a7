"""One run for a family of four at 0.4 of the cost of four separate runs: what it costs and gives.

Arms: four separate distillations; a family by divided rows; every row through all; the largest
alone with the family's compute; the largest, cut and healed (as Minitron does). All but the first
take 0.4 of the FLOPs of the four. Each arm has its own learning rate, from one grid, by the dev
data of a seed of its own; where the best one lies at the grid's end, the grid is made longer.
Results are on test data, paired over five seeds, and no more: that is the stop rule. Each cell is
kept as soon as it is done: the same command, run again, goes on.

    python -m benchmarks.family --data FOLDER            # hours
    python -m benchmarks.family --data FOLDER --quick    # ten minutes, to stdout
    python -m benchmarks.family --page                   # docs/results.md, of what was measured

"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import common
from benchmarks.family import cells, page
from benchmarks.family.cells import ARMS, MAIN, PROBLEMS, Cell
from benchmarks.quality import gains
from benchmarks.quality.__main__ import say
from benchmarks.quality.problem import Missing, Problem
from benchmarks.quality.study import TUNED_ON, Store, run_all

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "family.jsonl"
LONGER = 2  # times that a grid is made longer at most, by a factor of two


def best_rate(problem: Problem, arm: str, length: str, store: Store) -> tuple[float, list[float]]:
    """The rate with the best primary metric on dev, the mean over the arm's widths.

    Of those that were tried, which come second, in order; 0 where none was.
    """
    metric, values = problem.metrics[0], {}
    for record in (record for own in store.records.values() for record in own):
        same = (record["problem"], record["arm"], record["length"], record["seed"])
        if same == (_short(problem), arm, length, TUNED_ON) and not record["quick"]:
            own = record["widths"].values()
            values[record["rate"]] = fmean(width["dev"][metric] for width in own)
    if not values:
        return 0.0, []
    best = max if gains.higher(problem, metric) else min
    return best(values, key=lambda rate: values[rate]), sorted(values)


def _short(problem: Problem) -> str:
    return problem.name.removeprefix("family-")


def tuning(problem: Problem, arm: str, length: str, store: Store) -> list[Cell]:
    """The cells that are still to be run for an arm's learning rate; none where it is found.

    A longer run starts from what the short one came to, and its neighbours.
    """
    rates = list(problem.rates)
    if length != "short":
        found, _ = best_rate(problem, arm, "short", store)
        rates = [found / 2, found] if found else []
    best, tried = best_rate(problem, arm, length, store)
    wanted = [rate for rate in rates if rate not in tried]
    low, high = min(rates), max(rates)
    if not wanted and best == tried[0] and tried[0] > low / 2**LONGER:
        wanted = [tried[0] / 2]
    elif not wanted and best == tried[-1] and tried[-1] < high * 2**LONGER:
        wanted = [tried[-1] * 2]
    return [Cell(_short(problem), length, arm, TUNED_ON, rate) for rate in wanted]


class Study:
    """The problems whose data is here, and the arms and lengths that were asked for."""

    def __init__(self, options: Any) -> None:
        self.options, self.quick = options, options.quick
        self.cache = options.cache or Path(tempfile.gettempdir()) / "matta-quality"
        self.problems = []
        for name, problem in PROBLEMS.items():
            if options.task not in (name, "all") or (self.quick and not problem.quick):
                continue
            try:
                problem.data(options.data)
                self.problems.append(problem)
            except Missing as missing:
                say(f"{name} is left out: {missing}.")

    def run(self, store: Store, todo: Iterable[Cell]) -> None:
        o = self.options
        run_all(todo, store, self.cache, o.data, o.jobs, say, one=cells.run)

    def arms(self, problem: Problem) -> list[str]:
        """Those that were asked for, or that the problem is there for."""
        asked = self.options.arms
        return asked.split(",") if asked else list(problem.only or MAIN)

    def tune(self, store: Store, problem: Problem, length: str) -> None:
        """Find the learning rates of the arms."""
        while todo := [
            c for arm in self.arms(problem) for c in tuning(problem, arm, length, store)
        ]:
            self.run(store, todo)

    def results(self, store: Store, problem: Problem, length: str) -> None:
        """Run the seeds, all arms of one before those of the next."""
        seeds = range(2 if self.quick else self.options.seeds)
        middle = problem.rates[len(problem.rates) // 2]
        todo = []
        for seed in seeds:
            for arm in self.arms(problem):
                rate = middle if self.quick else best_rate(problem, arm, length, store)[0]
                todo.append(Cell(_short(problem), length, arm, seed, rate, self.quick))
        self.run(store, todo)


def _options() -> Any:
    arguments = common.parser(__doc__)
    add = arguments.add_argument
    add("--task", choices=[*PROBLEMS, "all"], default="all")
    add("--length", choices=[*cells.LENGTHS, "all"], default="all")
    add("--seeds", type=int, default=5, help="of the results; default: 5")
    add("--data", type=Path, action="append", default=[], help="folder that holds folders of data")
    add("--cache", type=Path, help="for bases and Teachers; default: a folder in /tmp")
    add("--jobs", type=int, default=os.cpu_count(), help="cells at a time, each on one thread")
    add("--arms", help=f"only these, of {','.join(ARMS)}; default: the main ones")
    add("--page", action="store_true", help="only write docs/results.md from what was measured")
    return arguments.parse_args()


def main(lengths: Sequence[str] = tuple(cells.LENGTHS)) -> None:
    options = _options()
    if options.page:
        page.write(ROOT / "docs" / "results.md", page.text(Store(RESULTS)))
        return
    study = Study(options)
    asked = [length for length in lengths if options.length in (length, "all")]
    with tempfile.TemporaryDirectory() as temp:
        store = Store(Path(temp) / "quick.jsonl" if options.quick else RESULTS)
        for length in asked[:1] if options.quick else asked:
            for problem in study.problems:
                if not options.quick:
                    study.tune(store, problem, length)
                study.results(store, problem, length)
        if options.quick:
            print(page.text(store))
        else:
            page.write(ROOT / "docs" / "results.md", page.text(store))


if __name__ == "__main__":
    main()
