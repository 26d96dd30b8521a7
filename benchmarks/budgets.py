"""Sizes chosen layer by layer against uniform widths, on held-out data that chose nothing.

One MatTA run of a demo's base (its own data, base and Teacher); then for each uniform width,
trained or not, a search within that width's parameters. Of each: the difference of the primary
metric (search less uniform) on the same held-out examples with a paired bootstrap interval, the
share of the budget that is used, and the seconds of training by those of searching (goal: 20).
better_or_equal: no interval lies on the side where uniform is better. A search's seconds are those
of ``matta export``: opening the TA and the data, and scoring. Scores are shared between budgets, as
they are when a family is asked for.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common
from matta_cli import demo
from matta_cli.conversion.convert import convert
from matta_cli.data.split import Columns
from matta_cli.files.workspace import Workspace
from matta_cli.measure import intervals, score
from matta_cli.search.journal import import_optuna
from matta_cli.search.run import search
from matta_cli.search.search import Search
from matta_cli.settings.budget import Budget
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import Task
from matta_cli.training.run import distill

GOAL, WIDTHS = 20.0, [0.375, 0.5, 0.75, 1.0]


def difference(
    task: Task, ours: list[Columns], theirs: list[Columns], resamples: int
) -> dict[str, float]:
    """Of the primary metric, with a bootstrap interval over the same examples in both."""
    found = intervals.paired(task, ours, theirs, resamples)[task.metrics[0].name]
    return {name: found[name] for name in ("value", "low", "high")}


def measure(recipe: Recipe, out: Path, seed: int) -> dict[str, Any]:
    """One run and its searches."""
    recipe.convert.seed = recipe.distill.seed = recipe.search.seed = seed
    convert(recipe, out, overwrite=True)
    started = time.perf_counter()
    distill(recipe, out, overwrite=True)
    training = time.perf_counter() - started
    optuna = import_optuna()
    study = Search(recipe, out, optuna.storages.InMemoryStorage())
    scores = study.scores
    scores.examples = len(scores.reporting)
    task, found = scores.task, {}
    for path in Workspace(out).search.glob("*"):
        path.unlink()
    for width in WIDTHS:
        uniform = study.ta.sizes(width)
        limit = study.counts.parameters(uniform)
        budget = Budget(f"params-{limit}", (("parameters", float(limit)),))
        started = time.perf_counter()
        report, (student,) = search(recipe, out, [budget], measured=False)
        seconds = time.perf_counter() - started
        ours, theirs = (
            [scores.columns(scores.model(sizes), scores.reporting)]
            for sizes in (student.sizes, uniform)
        )
        found[f"{width:g}"] = {
            "trained": width in recipe.distill.widths,
            "parameters": limit,
            "used": report.choices[0].used["parameters"],
            "sizes": student.sizes,
            "uniform": score.metrics(task, theirs),
            "search": score.metrics(task, ours),
            "difference": difference(task, ours, theirs, 1000),
            "seconds": seconds,
            "training_over_search": training / seconds,
            "evaluated": report.searched["evaluated"],
        }
    higher = task.metrics[0].higher
    worse = [
        w
        for w, f in found.items()
        if (f["difference"]["high"] < 0 if higher else f["difference"]["low"] > 0)
    ]
    return {
        "seed": seed,
        "metric": task.metrics[0].label,
        "higher_is_better": higher,
        "training_seconds": training,
        "examples": {
            "chosen_by": report.searched["examples"],
            "measured_on": len(scores.reporting),
        },
        "widths": found,
        "worse": worse,
    }


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument("--adapter", default="gpt2", choices=["gpt2", "vit", "mlp_ranker"])
    arguments.add_argument("--seeds", type=int, default=2)
    arguments.add_argument("--steps", type=int, default=0, help="of the MatTA run; 0: the demo's")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        recipe = demo.prepare(options.adapter, Path(temp), quick=options.quick)
        recipe.distill.steps = options.steps or recipe.distill.steps
        recipe.distill.allow_weak_teacher = options.quick
        recipe.distill.device = str(common.device())
        found = [
            measure(recipe, Path(temp), seed)
            for seed in range(1 if options.quick else options.seeds)
        ]
    ratios = [f["training_over_search"] for seed in found for f in seed["widths"].values()]
    equal = not any(seed["worse"] for seed in found)
    common.result(
        "budgets",
        training_over_search=min(ratios),
        goal=GOAL,
        holds=min(ratios) >= GOAL and equal,
        better_or_equal=equal,
        adapter=options.adapter,
        steps=recipe.distill.steps,
        runs=found,
        quick=options.quick,
    )


if __name__ == "__main__":
    main()
