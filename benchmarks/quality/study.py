"""The cells of the study: one arm, one seed, one learning rate. Each is run once, and kept."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.quality import peers
from benchmarks.quality.arms import Arm
from benchmarks.quality.problem import Problem, test_of
from benchmarks.quality.problems import PROBLEMS
from benchmarks.quality.training import Run, alone, changed, converted, measured, of_one
from matta_cli.data.split import Data
from matta_cli.models.ta import TA
from matta_cli.nested.sizes import kinds
from matta_cli.settings.presets import PRESETS
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import Task
from matta_cli.tasks.task import task as open_task
from matta_cli.training.teacher import ModelTeacher
from matta_cli.verdict import baselines

# all of it is written out, so that another default of the engine is another study
PAPER = PRESETS["paper"].values

# the first seed that settings are chosen on, by dev; results have the seeds 0, 1, 2, ..., on test
TUNED_ON = 1000


@dataclass(frozen=True)
class Cell:
    """What is trained: an arm on a problem, from a seed, at a learning rate."""

    problem: str
    arm: Arm
    seed: int
    rate: float
    quick: bool = False

    def key(self) -> str:
        """What makes it the same one again: a digest of the problem and of all settings."""
        problem = PROBLEMS[self.problem]
        known = ("adapter", "steps", "batch", "distill", "convert", "widths", "size", "bases")
        own = {name: getattr(problem, name) for name in known} | {"made": problem.made}
        changes = {k: v for k, v in asdict(self.arm).items() if v}
        arm = {k: v for k, v in changes.items() if k not in ("name", "label", "truth")}
        parts = [self.problem, own, arm, self.seed, self.rate, self.quick, PAPER]
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(base: Path) -> str:
    """Of a base's weights.

    The same code and seed give others where kernels round otherwise: on another machine, say.
    """
    return hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()[:8]


def run(cell: Cell, cache: Path, folders: Sequence[Path]) -> dict[str, Any]:
    """Train a cell and measure its Students: on dev where settings are chosen by it, or on test."""
    torch.set_num_threads(1)
    problem, arm = PROBLEMS[cell.problem], cell.arm
    recipe = problem.recipe(cache, problem.data(folders), cell.seed, quick=cell.quick)
    recipe.distill.lr, recipe.distill.allow_weak_teacher = cell.rate, True
    recipe.distill.optimizer = arm.optimizer or recipe.distill.optimizer
    convert = {**PAPER["convert"], **problem.convert}
    distill = {**PAPER["distill"], **problem.distill, **arm.distill}
    recipe = changed(recipe, convert=convert, distill=distill)
    task, ta, teacher, data = converted(recipe)
    splits = {"dev": data.held_out}
    if cell.seed < TUNED_ON:
        test = replace(recipe, data=replace(recipe.data, held_out=test_of(recipe)))
        own, base = open_task(task.name, test), Path(recipe.convert.source)
        splits = {"test": own.data(base, ta.model, training=False).held_out}
    stages = _stages(problem, arm, recipe, (task, ta, teacher, data))
    done = []
    for own_recipe, model, source in stages:
        if isinstance(source, ModelTeacher):
            source.model.eval().requires_grad_(False)
        done.append(Run(own_recipe, task, model, source, data)())
    last, trained, _ = stages[-1]
    width = arm.width or problem.size
    sizes = {f"{width:g}": trained.widest}
    if not (arm.alone or arm.two_stage):
        sizes = {f"{one:g}": one for one in recipe.distill.widths if one <= ta.widest}
        sizes["TA"] = ta.widest
    each = {}
    for size in dict.fromkeys(sizes.values()):
        each[size] = measured(task, trained, size, data, splits)
    return {
        "key": cell.key(),
        "problem": cell.problem,
        "arm": arm.name,
        "seed": cell.seed,
        "rate": cell.rate,
        "quick": cell.quick,
        "device": common.where(),
        "steps": last.distill.steps,
        "seconds": round(sum(one.seconds for one in done), 2),
        "flops": sum(one.flops * one.recipe.distill.steps for one in done),
        "widths": {name: each[size] for name, size in sizes.items()},
        "base": digest(Path(recipe.convert.source)),
        **({"peer": peers.named(arm.peer)} if arm.peer else {}),
    }


Stage = tuple[Recipe, TA, Any]  # a training: its settings, its TA, its Teacher


def _stages(
    problem: Problem, arm: Arm, recipe: Recipe, opened: tuple[Task, TA, Any, Data]
) -> list[Stage]:
    """The trainings of an arm, one after the other, with as many steps as the arm may take."""
    task, ta, teacher, data = opened
    width, steps = arm.width or problem.size, recipe.distill.steps
    plain = [baselines.settings(recipe, steps) for _ in range(2)]
    stages: list[Stage] = [(recipe, ta, teacher)]
    if arm.alone:
        taught = arm.alone == "plain"
        own = baselines.settings(recipe, steps, taught=taught)
        student = peers.PRUNE[arm.peer](task, ta, width, data) if arm.peer else alone(ta, width)
        stages = [(own, student, teacher if taught else None)]
    elif arm.two_stage:
        whole, small = of_one(ta.adapter, ta.model, list(kinds(ta.base))), alone(ta, width)
        stages = [(plain[0], whole, teacher), (plain[1], small, ModelTeacher(task, whole.model))]

    def flops(own: Recipe, model: TA, source: Any) -> float:
        return Run(own, task, model, source, data).flops

    if arm.compute:  # as many matrix products as MatTA takes for one Student of that width
        reference = flops(changed(recipe, distill={"widths": [width]}), ta, teacher)
        each = sum(flops(*stage) for stage in stages)
        for own, _, _ in stages:
            own.distill.steps = max(1, round(steps * reference / each))
    return stages


def run_all(
    cells: Iterable[Any],
    store: Store,
    cache: Path,
    folders: Sequence[Path],
    jobs: int,
    say: Callable[[str], None],
    again: bool = False,
    one: Callable[[Any, Path, Sequence[Path]], dict[str, Any]] | None = None,
) -> None:
    """Run the cells that the store does not have, several at a time, each on one thread.

    one: what runs a cell; none: ``run``. again: all of them. Those that share a GPU take turns on
    it: a record's seconds are then its part of them.
    """
    missing = [
        cell
        for key, cell in {cell.key(): cell for cell in cells}.items()
        if again or key not in store
    ]
    if not missing:
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    began, done = time.perf_counter(), 0
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        waiting = {pool.submit(one or run, cell, cache, folders): cell for cell in missing}
        for future in as_completed(waiting):
            cell, record = waiting[future], future.result()
            if torch.cuda.is_available():
                record["seconds"] = round(record["seconds"] / min(jobs, len(missing)), 2)
            store.add(record)
            done += 1
            left = (time.perf_counter() - began) / done * (len(missing) - done)
            arm = cell.arm if isinstance(cell.arm, str) else cell.arm.name
            done_so_far = f"{done}/{len(missing)} {cell.problem} {arm} seed {cell.seed}"
            say(f"{done_so_far}: {record['seconds']:.0f} s; {left / 60:.0f} min left")


class Store:
    """Records of cells in a file, one JSON object a line; what was interrupted goes on from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # by key; several, where a cell was run from bases of other bits
        self.records: dict[str, list[dict[str, Any]]] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._keep(json.loads(line))

    def __contains__(self, key: str) -> bool:
        return key in self.records

    def of(self, cell: Cell) -> list[dict[str, Any]]:
        """The records of a cell, one for each base, in the order that the bases came."""
        return self.records.get(cell.key(), [])

    def seeds(self) -> range:
        """The seeds of all results that there are."""
        every = (record["seed"] for records in self.records.values() for record in records)
        return range(max((seed + 1 for seed in every if seed < TUNED_ON), default=0))

    def found(self, cells: Mapping[str, Sequence[Cell]]) -> dict[str, list[dict[str, Any]]]:
        """The records of cells by arm, where there are any."""
        there = {
            arm: [record for cell in own for record in self.of(cell)] for arm, own in cells.items()
        }
        return {arm: records for arm, records in there.items() if records}

    def add(self, record: dict[str, Any]) -> None:
        self._keep(record)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(record) + "\n")

    def _keep(self, record: dict[str, Any]) -> None:
        """The last one of a base counts."""
        kept = self.records.setdefault(record["key"], [])
        bases = [other.get("base") for other in kept]
        at = bases.index(record.get("base")) if record.get("base") in bases else len(kept)
        kept[at : at + 1] = [record]
