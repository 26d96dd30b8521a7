"""The paper's claims, tested: MatTA beside every other way to train the same Students.

Every arm starts from the same base and takes the same steps on the same data (again: as much
compute); learning rates are chosen for every arm from the same grid, on ``dev``, on a seed of its
own; results are on ``test``, paired over seeds. Each cell (an arm, a seed, a learning rate) is kept
as soon as it is done: the same command, run again, goes on. Writes docs/results.md, or where --out
says.

    python -m benchmarks.quality --data FOLDER            # everything, five seeds
    python -m benchmarks.quality --data FOLDER --quick    # less of it, two seeds, to stdout

The quick form takes nine minutes on two cores.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import common
from benchmarks.quality import gains, page, peers, study
from benchmarks.quality.arms import Arm, arms
from benchmarks.quality.problem import Missing, Problem
from benchmarks.quality.problems import PROBLEMS
from matta_cli.files import atomic

ROOT = Path(__file__).parents[2]
KINDS = {
    "lm": ["lm", "lm_large"],
    "vit": ["vit", "vit_long"],
    "ranker": ["ranker", "ranker_time", "lambdarank"],
    "encoder": ["encoder"],
}
RESULTS = ROOT / "benchmarks" / "results" / "quality.jsonl"
QUICK = ("plain", "matta")


def of(problem: Problem, quick: bool) -> list[Arm]:
    """The arms of a problem."""
    others = (peers.applies(problem.name), problem.optimizers)
    every = arms(problem.widths, problem.size, problem.labelled, *others)
    return [arm for arm in every if arm.name in (QUICK if quick else problem.only or [arm.name])]


def tuning(problem: Problem, arm: Arm) -> list[study.Cell]:
    """What chooses an arm's learning rate: the same grid for every arm."""
    seeds = range(study.TUNED_ON, study.TUNED_ON + problem.tuning_seeds)
    return [study.Cell(problem.name, arm, seed, rate) for seed in seeds for rate in problem.rates]


def results(
    problem: Problem, arm: Arm, seeds: Iterable[int], store: study.Store, quick: bool
) -> list[study.Cell]:
    """What an arm's results are: none as long as its learning rate is not chosen."""
    rate = problem.middle if quick else chosen(problem, arm, store)
    if rate is None:
        return []
    return [study.Cell(problem.name, arm, seed, rate, quick) for seed in seeds]


def chosen(problem: Problem, arm: Arm, store: study.Store) -> float | None:
    """The learning rate with the best primary metric on dev, the mean over seeds.

    More steps of the same training take that of the fewer.
    """
    own = next(a for a in of(problem, False) if a.name == arm.tuned_as)
    width = f"{own.width or problem.size:g}"
    metric = problem.metrics[0]
    values: dict[float, list[float]] = {}
    for cell in tuning(problem, own):
        if not store.of(cell):
            return None
        measured = store.of(cell)[0]["widths"]
        values.setdefault(cell.rate, []).append(measured[width]["dev"][metric])
    best = max if gains.higher(problem, metric) else min
    return best(values, key=lambda rate: fmean(values[rate]))


def in_turn(cells: Sequence[Sequence[study.Cell]]) -> list[study.Cell]:
    """The cells of several problems, one of each after the other: what each needs is then made at
    the same time.
    """
    return [cell for row in zip_longest(*cells) for cell in row if cell is not None]


def tuned_for(problems: Iterable[Problem], store: study.Store) -> float:
    """The device-seconds that the choice of learning rates took."""
    cells = {
        cell.key(): cell
        for problem in problems
        for arm in of(problem, False)
        for cell in tuning(problem, arm)
    }
    return float(sum(record["seconds"] for cell in cells.values() for record in store.of(cell)))


def _options() -> Any:
    """What was typed, and the parser that refuses what cannot be meant."""
    arguments = common.parser(__doc__)
    add = arguments.add_argument
    add("--task", choices=[*KINDS, "all"], default="all")
    add("--seeds", type=int, default=5, help="of the results; default: 5")
    add("--data", type=Path, action="append", default=[], help="folder that holds folders of data")
    add("--cache", type=Path, help="for bases and Teachers; default: a folder in /tmp")
    # cells share a GPU in turns: with more of them, none ends
    jobs = 2 if common.device().type == "cuda" else os.cpu_count()
    said = "cells at a time, each on one thread; default: %(default)s"
    add("--jobs", type=int, default=jobs, help=said)
    said = "run what there are results of again, from bases made here"
    add("--again", action="store_true", help=said)
    add("--arms", help="only these, by their names in arms.py: plain,matta,...; default: all")
    add("--out", type=Path, help="where the page goes; default: docs (quick: nowhere)")
    options = arguments.parse_args()
    options.error = arguments.error
    return options


def write_page(folder: Path, said: str) -> None:
    """Put what the records say of the paper's recipe below what the family's say, in results.md."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.md"
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    above, _, _ = before.partition("## The paper's recipe")
    atomic.atomic_write(path, f"{above}{said.rstrip()}\n")


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


class Study:
    """The problems whose data is here, and the arms that were asked for."""

    def __init__(self, options: Any) -> None:
        self.options, self.quick = options, options.quick
        self.cache = options.cache or Path(tempfile.gettempdir()) / "matta-quality"
        self.docs = options.out or ROOT / "docs"
        self.every = list(PROBLEMS.values())  # the page shows all that there is, run now or not
        self.problems = self._present()
        self.some = {p.name: of(p, self.quick) for p in self.every}
        # names may have commas, with a space after
        wanted = set(re.split(",(?! )", options.arms)) if options.arms else None
        known = {arm.name for own in self.some.values() for arm in own}
        if unknown := sorted((wanted or set()) - known):
            names = ",".join(arm.name for arm in self.some["lm"])
            options.error(f"--arms {unknown[0]} is not known: {names}")
        self.asked = {
            name: [arm for arm in own if wanted is None or arm.name in wanted]
            for name, own in self.some.items()
        }

    def _present(self) -> list[Problem]:
        task, present = self.options.task, []
        for name in (name for kind in KINDS if task in (kind, "all") for name in KINDS[kind]):
            try:
                PROBLEMS[name].data(self.options.data)
                if PROBLEMS[name].quick or not self.quick:
                    present.append(PROBLEMS[name])
            except Missing as missing:
                say(f"{name} is left out: {missing}.")
        return present

    def run(self, store: study.Store, cells: list[study.Cell], again: bool = False) -> None:
        """Run the cells that the store does not have."""
        study.run_all(cells, store, self.cache, self.options.data, self.options.jobs, say, again)

    def results(self, store: study.Store) -> None:
        """Run the arms, and write the page."""
        asked = {}
        for name, own in self.asked.items():
            asked[name] = [arm for arm in own if not arm.peer or peers.installed(arm.peer)]
        if not self.quick:
            self.run(store, in_turn([self._grid(p, asked[p.name]) for p in self.problems]))
        seeds = range(min(2, self.options.seeds) if self.quick else self.options.seeds)
        cells = []
        for p in self.problems:
            each = (results(p, arm, seeds, store, self.quick) for arm in asked[p.name])
            cells.append([cell for own in each for cell in own])
        self.run(store, in_turn(cells), self.options.again)
        there, records = store.seeds(), {}
        for p in self.every:
            own = {a.name: results(p, a, there, store, self.quick) for a in self.some[p.name]}
            records[p.name] = store.found(own)
        seconds = 0.0 if self.quick else tuned_for(self.every, store)
        said = page.text(self.every, self.some, records, self.quick, seconds)
        if self.quick:
            print(said)
        if self.options.out or not self.quick:
            write_page(self.docs, said)

    def _grid(self, problem: Problem, asked: Sequence[Arm]) -> list[study.Cell]:
        """What chooses the learning rates of the arms that are asked for."""
        tuned = {arm.tuned_as for arm in asked}
        arms = [arm for arm in self.some[problem.name] if arm.name in tuned]
        return [cell for arm in arms for cell in tuning(problem, arm)]


def main() -> None:
    own = Study(_options())
    with tempfile.TemporaryDirectory() as temp:
        own.results(study.Store(Path(temp) / "quick.jsonl" if own.quick else RESULTS))


if __name__ == "__main__":
    main()
