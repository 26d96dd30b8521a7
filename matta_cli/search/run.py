"""search: which sizes within a budget are the best ones, on held-out data."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from matta_cli.errors import Interrupted, MattaError
from matta_cli.files import atomic
from matta_cli.files.workspace import Workspace
from matta_cli.measure import cost, intervals
from matta_cli.progress import Listener, Progress, quiet
from matta_cli.report import page
from matta_cli.report.numbers import plain
from matta_cli.report.schema import Report
from matta_cli.search.search import Search, import_optuna
from matta_cli.settings import checks
from matta_cli.settings.budget import NEAR, Budget
from matta_cli.settings.recipe import Recipe
from matta_cli.version import __version__

DESIGN = 6  # mixed Students that the predictor of latency is fitted to


@dataclass
class Chosen:
    """The Student of one budget. used: the share of each limit that it takes. width: where its
    sizes are those of a width.
    """

    budget: Budget
    sizes: dict[str, int]
    used: dict[str, float]
    width: float | None


def check(recipe: Recipe) -> None:
    """Raise ``MattaError`` for settings that no search can have."""
    checks.check(recipe.search)
    checks.check(recipe.export)


def search(
    recipe: Recipe,
    out: Path,
    budgets: Sequence[Budget] = (),
    *,
    measured: bool = True,
    listen: Listener = quiet,
) -> tuple[dict[str, Any], list[Chosen]]:
    """Search sizes of the trained TA in ``out`` within each budget, or without any from the
    smallest Student to the largest.

    Returns what ``out/search/search.json`` holds (a report whose models are the Pareto front and
    the Students of the budgets), and these Students. Not ``measured``: nothing but the scores is
    written, and the front has no metrics. Raises ``MattaError`` where there is no trained TA, no
    data, or a budget is not possible.
    """
    check(recipe)
    optuna = import_optuna()
    space = Workspace(out)
    if not space.ta.is_dir():
        raise MattaError(f"There is no TA in {str(space.ta)!r}: make one with `matta convert`.")
    folder = space.search
    folder.mkdir(exist_ok=True)
    with atomic.alone(folder, "Another search is running"):
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(folder / "trials.jsonl"))
        )
        started = time.perf_counter()
        try:
            run = Search(recipe, out, storage)
            chosen = _searched(run, budgets, listen)
            result = _result(run, chosen, measured)
        except KeyboardInterrupt:
            raise Interrupted(
                "Stopped; what was scored is kept: the same command goes on from there."
            ) from None
        result["search"]["seconds"] = time.perf_counter() - started
        if measured:
            atomic.atomic_write(
                folder / "search.json", json.dumps(plain(result), indent=1, allow_nan=False) + "\n"
            )
            atomic.atomic_write(folder / "search.html", page.render(Report.from_json(result)))
    return result, chosen


def _searched(run: Search, budgets: Sequence[Budget], listen: Listener) -> list[Chosen]:
    """Score the uniform widths and what is tried within each budget; choose a Student for each."""
    every = [budget for budget in budgets if "latency" in dict(budget.limits)]
    if every:
        listen(Progress(message="Timing some Students, to guess the latency of others."))
        generator = np.random.default_rng(0)
        mixed = [
            {name: int(generator.choice(menu)) for name, menu in run.space.menus.items()}
            for _ in range(DESIGN)
        ]
        run.latency.fit([*run.uniform().values(), *mixed])
    run.refuse_impossible(budgets)
    # the guess, made of views, is corrected near each limit by what dense copies take
    for budget in every:
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
        listen(
            Progress(done, total, per_second=run.evaluated * run.examples / taken, unit="examples")
        )

    for width, sizes in run.uniform().items():
        run.value(sizes, width)
        tick()
    for budget in some:
        run.run(budget, trials, tick)
    chosen = []
    for budget in budgets:
        best = run.choose(budget)
        names = [name for name, _ in budget.limits]
        chosen.append(
            Chosen(budget, best.sizes, budget.used(run.cost(best.sizes, names)), best.width)
        )
    return chosen


def _result(run: Search, chosen: Sequence[Chosen], measured: bool) -> dict[str, Any]:
    """The report of a search: each model's metrics are measured on examples that no sizes were
    chosen by.
    """
    recipe, ta, task = run.recipe, run.ta, run.task
    asked = list(dict.fromkeys(name for one in chosen for name, _ in one.budget.limits)) or [
        "parameters"
    ]
    names = list(dict.fromkeys(["parameters", "bytes", "macs", *asked]))
    front = run.front(asked)
    by_key = {run.key(c.sizes): c for c in front}
    for one in chosen:
        by_key.setdefault(run.key(one.sizes), run.found[run.key(one.sizes)]).names.append(
            one.budget.name
        )
    members = sorted(by_key.values(), key=lambda c: run.costs.parameters(c.sizes))
    numbers = itertools.count(1)
    entries: list[dict[str, Any]] = []
    for c in members:
        name = ", ".join(c.names) or (
            f"width {c.width:g}" if c.width is not None else f"mix {next(numbers)}"
        )
        costs = run.cost(c.sizes, names)
        stock = run.is_stock(c.sizes)
        seconds = run.latency.measured.get(run.costs.key(c.sizes))
        tables = [run.columns(c.sizes, run.reporting)] if measured else []
        entries.append(
            {
                "name": name,
                "role": "student",
                "width": c.width,
                "folder": None,
                "stock": stock,
                "loader": "",
                "loads": ta.adapter.loader.partition(".")[0] if stock else "matta_cli.load_student",
                "sizes": c.sizes,
                "shown": ta.student(c.sizes).shown(whole=True),
                "layers": ta.student(c.sizes).layers,
                "trained": all(c.sizes[axis] in menu for axis, menu in run.space.trained.items()),
                "parameters": costs["parameters"],
                "bytes": costs["bytes"],
                "macs": costs["macs"],
                "latency": {}
                if seconds is None
                else {str(recipe.export.batch_size): {"median": seconds}},
                "guessed_latency": None
                if "latency" not in costs or seconds is not None
                else costs["latency"],
                "chosen_by": c.value,
                "front": c in front,
                "parity": None,
                "metrics": {
                    name: vars(found)
                    for name, found in intervals.intervals(
                        task, tables, recipe.export.bootstrap
                    ).items()
                },
            }
        )
    present = {metric for entry in entries for metric in entry["metrics"]}
    by_budget = {name: entry for c, entry in zip(members, entries, strict=True) for name in c.names}
    choices, notes = [], []
    for one in chosen:
        entry = by_budget[one.budget.name]
        choices.append(
            {
                "budget": one.budget.name,
                "limits": dict(one.budget.limits),
                "used": one.used,
                "model": entry["name"],
                "stock": entry["stock"],
                "trained": entry["trained"],
            }
        )
        if max(one.used.values()) < 1 - NEAR:
            notes.append(
                f"{one.budget.name}: the largest Student found uses {max(one.used.values()):.1%} of the budget."
            )
        if not entry["trained"]:
            notes.append(
                f"{one.budget.name} has a layer of a size that was never trained: --sizes trained leaves such out."
            )
        own = run.found[run.key(one.sizes)]
        smaller = [c for c in run.order(front) if run.used(one.budget)(c.sizes) <= 1]
        if smaller and smaller[0] is not own and smaller[0].value != own.value:
            share = max(
                one.budget.used(
                    run.cost(smaller[0].sizes, [n for n, _ in one.budget.limits])
                ).values()
            )
            notes.append(
                f"{one.budget.name}: a Student that uses {share:.0%} of the budget scored better while choosing."
            )
    return {
        "format": 1,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "matta": __version__,
        "task": task.name,
        "adapter": ta.adapter.name,
        "unit": run.data.unit,
        "data": f"{run.data.description}; sizes chosen by {min(run.examples, len(run.choosing))} held-out examples, "
        f"measured on {min(run.examples, len(run.reporting))} others",
        "device": cost.device_card(run.device)
        | ({"threads": recipe.export.threads} if recipe.export.threads else {}),
        "metrics": [
            {"name": m.name, "label": m.label, "higher": m.higher}
            for m in task.metrics
            if m.name in present
        ],
        "batch_size": recipe.export.batch_size,
        "costs": asked,
        "models": entries,
        "choices": choices,
        "notes": notes,
        "search": {
            "scored": len(run.found),
            "evaluated": run.evaluated,
            "examples": run.examples,
            "training_seconds": run.training_seconds,
        },
        "lineage": ta.card["lineage"],
        "recipe": recipe.text(("data", "export", "search")),
    }
