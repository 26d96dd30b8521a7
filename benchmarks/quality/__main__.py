"""The paper's claims, tested: MatTA beside plain distillation and every other way to train the same
Students.

Every arm starts from the same base and takes the same steps on the same data (again: as much
compute); learning rates are chosen for every arm from the same grid, on ``dev``, on a seed of its
own; results are on ``test``, paired over seeds. Each cell (an arm, a seed, a learning rate) is kept
as soon as it is done: the same command, run again, goes on. Writes the page and its
plots: docs/results.md, or where --out says. ``--recipe`` runs the search for the recipe instead
(docs/recipe.md).

    python -m benchmarks.quality --data FOLDER                 # everything, five seeds python -m
    benchmarks.quality --data FOLDER --quick         # less of it, two seeds, to stdout: nine
    minutes on two cores
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

from benchmarks import common
from benchmarks.quality import page, peers, study
from benchmarks.quality.arms import Arm, arms, variants
from benchmarks.quality.problem import Missing, Problem
from benchmarks.quality.problems import PROBLEMS

ROOT = Path(__file__).parents[2]
KINDS = {
    "lm": ["lm", "lm_large"],
    "vit": ["vit", "vit_long"],
    "ranker": ["ranker", "ranker_time", "lambdarank"],
    "encoder": ["encoder"],
}
RESULTS, SCREENED = (
    ROOT / "benchmarks" / "results" / f"{name}.jsonl" for name in ("quality", "quality-recipe")
)
QUICK = (
    "plain",
    "matta",
    "family",
    "family-cheap",
    "plain@0.25",
    "plain@0.5",
    "plain@0.75",
    "plain@1",
)
SCREENING_SEEDS, CONFIRMING_SEEDS = 2, 7
# a lead of the screening, and what it is compared with
CONFIRMED = ("matta", "spread of the new units' weights x 2")


def of(problem: Problem, quick: bool) -> list[Arm]:
    """The arms of a problem."""
    expand = float(problem.convert.get("expand", 2.0))
    found = arms(
        problem.widths,
        problem.size,
        expand,
        problem.labelled,
        peers.applies(problem.name),
        problem.optimizers,
    )
    return [arm for arm in found if arm.name in (QUICK if quick else problem.only or [arm.name])]


def tuning(problem: Problem, arm: Arm) -> list[study.Cell]:
    """What chooses an arm's learning rate: the same grid for every arm."""
    seeds = range(study.TUNED_ON, study.TUNED_ON + problem.tuning_seeds)
    return [study.Cell(problem.name, arm, seed, rate) for seed in seeds for rate in problem.rates]


def screening(problem: Problem, arm: Arm) -> list[study.Cell]:
    """What tells of a variant of the recipe: the seeds that settings are chosen on, the middle
    learning rate.
    """
    seeds = CONFIRMING_SEEDS if arm.name in CONFIRMED else SCREENING_SEEDS
    return [study.Cell(problem.name, arm, study.TUNED_ON + k, problem.middle) for k in range(seeds)]


def results(
    problem: Problem, arm: Arm, seeds: Iterable[int], store: study.Store, quick: bool
) -> list[study.Cell]:
    """What an arm's results are: none as long as its learning rate is not chosen."""
    rate = problem.middle if quick else chosen(problem, arm, store)
    return (
        [] if rate is None else [study.Cell(problem.name, arm, seed, rate, quick) for seed in seeds]
    )


def chosen(problem: Problem, arm: Arm, store: study.Store) -> float | None:
    """The learning rate with the best primary metric on dev, the mean over seeds; of a family, over
    its widths too.

    More steps of the same training take that of the fewer.
    """
    own = next(a for a in of(problem, False) if a.name == arm.tuned_as)
    widths = problem.widths if own.is_family else (own.width or problem.size,)
    metric = problem.metrics[0]
    values: dict[float, list[float]] = {}
    for cell in tuning(problem, own):
        if not store.of(cell):
            return None
        found = store.of(cell)[0]["widths"]
        values.setdefault(cell.rate, []).extend(
            found[f"{width:g}"]["dev"][metric] for width in widths
        )
    return (max if page.higher(problem, metric) else min)(
        values, key=lambda rate: fmean(values[rate])
    )


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


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument("--task", choices=[*KINDS, "all"], default="all")
    arguments.add_argument("--seeds", type=int, default=5, help="of the results; default: 5")
    arguments.add_argument(
        "--data", type=Path, action="append", default=[], help="folder that holds folders of data"
    )
    arguments.add_argument(
        "--cache", type=Path, default=None, help="for bases and Teachers; default: a folder in /tmp"
    )
    # cells share a GPU in turns: with more of them, none ends
    jobs = 2 if common.device().type == "cuda" else os.cpu_count()
    arguments.add_argument(
        "--jobs",
        type=int,
        default=jobs,
        help="cells at a time, each on one thread; default: %(default)s",
    )
    arguments.add_argument(
        "--again",
        action="store_true",
        help="run what there are results of again, from bases made here",
    )
    arguments.add_argument(
        "--arms", help="only these, by their names in arms.py: plain,matta,...; default: all"
    )
    arguments.add_argument(
        "--recipe",
        action="store_true",
        help="search for the recipe: variants of MatTA, on dev, on the tasks that have all arms",
    )
    arguments.add_argument(
        "--out", type=Path, default=None, help="where the page goes; default: docs (quick: nowhere)"
    )
    options = arguments.parse_args()
    if options.recipe and options.quick:
        arguments.error(
            "--recipe has no quick form: it takes minutes a task, and --arms takes names of variants"
        )
    names = [name for task in KINDS if options.task in (task, "all") for name in KINDS[task]]
    cache = options.cache or Path(tempfile.gettempdir()) / "matta-quality"

    def say(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    problems = []
    for name in names:
        try:
            PROBLEMS[name].data(options.data)
            if PROBLEMS[name].quick or not options.quick:
                problems.append(PROBLEMS[name])
        except Missing as missing:
            say(f"{name} is left out: {missing}.")
    seeds = range(min(2, options.seeds) if options.quick else options.seeds)

    def run(store: study.Store, cells: list[study.Cell], again: bool = False) -> None:
        study.run_all(cells, store, cache, options.data, options.jobs, say, again)

    every = list(PROBLEMS.values())  # the page shows all that there is, whatever was run now
    some = {
        p.name: variants(p.size, p.adapter) if options.recipe else of(p, options.quick)
        for p in every
    }
    # names may have commas, with a space after
    wanted = set(re.split(",(?! )", options.arms)) if options.arms else None
    if unknown := sorted((wanted or set()) - {arm.name for own in some.values() for arm in own}):
        arguments.error(
            f"--arms {unknown[0]} is not known: {','.join(arm.name for arm in some['lm'])}"
        )
    asked = {
        p.name: [a for a in some[p.name] if wanted is None or a.name in wanted] for p in problems
    }
    if options.recipe:
        store = study.Store(SCREENED)
        for problem in (problem for problem in problems if not problem.only):
            run(
                store,
                [cell for arm in asked[problem.name] for cell in screening(problem, arm)],
                options.again,
            )
        found = {
            p.name: store.found({arm.name: screening(p, arm) for arm in some[p.name]})
            for p in every
        }
        page.write_recipe(options.out or ROOT / "docs", every, some, found)
        return
    with tempfile.TemporaryDirectory() as temp:
        store = study.Store(Path(temp) / "quick.jsonl" if options.quick else RESULTS)
        asked = {
            name: [a for a in own if not a.peer or peers.installed(a.peer)]
            for name, own in asked.items()
        }
        if not options.quick:
            tuned = {name: {a.tuned_as for a in own} for name, own in asked.items()}
            grids = [
                [c for a in some[p.name] if a.name in tuned[p.name] for c in tuning(p, a)]
                for p in problems
            ]
            run(store, in_turn(grids))
        run(
            store,
            in_turn(
                [
                    [c for a in asked[p.name] for c in results(p, a, seeds, store, options.quick)]
                    for p in problems
                ]
            ),
            options.again,
        )
        there = store.seeds()
        found = {
            p.name: store.found(
                {arm.name: results(p, arm, there, store, options.quick) for arm in some[p.name]}
            )
            for p in every
        }
        said = page.text(
            every, some, found, options.quick, 0.0 if options.quick else tuned_for(every, store)
        )
        if options.quick:
            print(said)
        if options.out or not options.quick:
            page.write(options.out or ROOT / "docs", every, some, found, said)


if __name__ == "__main__":
    main()
