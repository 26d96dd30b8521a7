"""What is trained: an arm on a problem, at a length, from a seed, at a learning rate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.quality.images import vit_of
from benchmarks.quality.language import lm
from benchmarks.quality.problem import Make, Problem, test_of
from benchmarks.quality.problems import PROBLEMS as OTHERS
from benchmarks.quality.rankers import movielens
from benchmarks.quality.study import TUNED_ON, digest
from benchmarks.quality.training import Run, alone, changed, converted, measured, of_one
from matta_cli.models.ta import TA
from matta_cli.nested.sizes import kinds
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import Task
from matta_cli.tasks.task import task as open_task
from matta_cli.training.teacher import ModelTeacher
from matta_cli.verdict import baselines

WIDTHS = (0.25, 0.5, 0.75, 1.0)
SEPARATE = tuple(f"separate@{width:g}" for width in WIDTHS)
SHARE = 0.4  # of what four separate runs cost, that everything else may cost
BY = {"muon": ", by Muon", "soap": ", by SOAP"}  # other optimizers than AdamW, in words
LENGTHS = {"short": 1, "long": 4}  # steps of a separate run, by those of the short one

# what all arms share; written out, so that another default of the engine is another study
SHARED: dict[str, Any] = {
    "rows": "divided",
    "schedule": "wsd",
    "decay": 0.2,
    "warmup": 0.05,
    "teacher_mix": 0.9,
    "temperature": 2.0,
    "ta_student_weight": 0.0,
    "weight_decay": 0.01,
    "clip": 1.0,
    "optimizer": "adamw",
}
CONVERTED: dict[str, Any] = {"expand": 1.0, "order": "auto"}


def _by_itself(folder: Path, recipe: Recipe, data: Mapping[str, Path], seed: int) -> None:
    """The language model of the other study, taught by the Teacher itself, not by its file."""
    lm(folder, recipe, data, seed)
    recipe.distill.teacher = str(folder / "teacher")


def _problem(name: str, title: str, steps: int, rates: tuple[float, ...], **more: Any) -> Problem:
    """A problem of the other study: its data, bases and Teacher, at four widths."""
    other = OTHERS[name]
    changes = {"widths": WIDTHS, "steps": steps, "rates": rates, "size": 1.0, **more}
    shares = other.shares or other.name
    return replace(other, name=f"family-{name}", title=title, shares=shares, **changes)


def _regime(problem: Problem, regime: str, title: str, make: Make, *arms: str) -> Problem:
    """A problem where a TA wider than the base may be worth its rows: without the lowest rate.

    arms: besides those that are compared in all of them.
    """
    own, said = f"{problem.name}_{regime}", f"{problem.title}, {title}"
    only = (*SEPARATE, "divided", "wider", "wider+taught", *arms)
    more = {"rates": problem.rates[1:], "make": make, "only": only, "quick": False}
    return replace(problem, name=own, title=said, **more)


def _strange(problem: Problem, title: str, make: Make) -> Problem:
    """A problem whose Teacher does not know all of the domain, and so is no authority."""
    own = _regime(problem, "strange", title, make, "learned", "followed", "labels")
    return replace(own, distill={"teacher_mix": 0.3})


_VIT = _problem("vit", "ViT on Fashion-MNIST", 200, (1e-3, 2e-3, 4e-3, 8e-3))
_RANKER = _problem("ranker_time", "Ranker on MovieLens, by time", 300, (8e-3, 16e-3, 32e-3, 64e-3))
PROBLEMS = {
    problem.name.removeprefix("family-"): problem
    for problem in (
        _problem("lm", "GPT-2 on WikiText-2", 250, (4e-3, 8e-3, 16e-3, 32e-3), make=_by_itself),
        _VIT,
        _RANKER,
        _problem("encoder", "all-MiniLM-L6-v2 on STS", 30, (6.25e-5, 1.25e-4, 2.5e-4, 5e-4)),
        _regime(_VIT, "few", "400 images in place of 4,000", vit_of(few=400)),
        _regime(_RANKER, "few", "4,000 rows in place of 80,000", movielens(True, few=4000)),
        _strange(_VIT, "by a Teacher that has seen six of ten classes", vit_of(known=6)),
        _strange(
            _RANKER,
            "by a Teacher that has seen 58 % of the rows, by genre",
            movielens(True, genres=5),
        ),
    )
}


@dataclass(frozen=True)
class Arm:
    """One way to come to Students of all widths, or of one.

    width: of the only Student, where it is trained by itself. share: steps are so many that it
    costs this share of four separate runs; 0: as many steps as each of those. heal: width 1.0 is
    trained alone by half of it, then cut, and each cut trained by a part of the other half.
    """

    name: str
    label: str
    width: float = 0.0
    share: float = SHARE
    heal: bool = False
    distill: Mapping[str, Any] = field(default_factory=dict)
    convert: Mapping[str, Any] = field(default_factory=dict)

    @property
    def widths(self) -> tuple[float, ...]:
        """Those that it has a result for."""
        return (self.width,) if self.width else WIDTHS


def separate(**distill: Any) -> list[Arm]:
    """Each width by itself, from its own cut of the base."""
    own = distill.get("optimizer", "")
    more, label = f"/{own}" if own else "", f"separate runs{BY.get(own, '')}"
    return [Arm(f"separate@{w:g}{more}", label, w, 0.0, distill=distill) for w in WIDTHS]


def _arms() -> dict[str, Arm]:
    wider = {"expand": 2.0}
    taught = {"ta_student_weight": 0.5, "ramp": 0.2, "students_learn_from": "both"}
    followed = {"students_learn_from": "ta", "ta_student_weight": 0.7, "ramp": 0.2}
    found = [
        *separate(),
        Arm("divided", "a family, rows divided"),
        Arm("all", "a family, every row through all", distill={"rows": "all"}),
        Arm("largest", "width 1.0 alone, all the compute", 1.0),
        Arm("healed", "width 1.0, cut and healed", heal=True),
        Arm("taught", "rows divided, width 1.0 teaches", distill=taught),
        Arm("wider", "rows divided, a TA of width 2", convert=wider),
        Arm("wider+taught", "rows divided, a TA of width 2 teaches", distill=taught, convert=wider),
        Arm(
            "paper",
            "every row through all, a TA of width 2 teaches",
            distill={"rows": "all", **taught},
            convert=wider,
        ),
        Arm(
            "learned",
            "rows divided, a TA of width 2 learns the domain, Students follow it",
            distill=followed,
            convert=wider,
        ),
        Arm(
            "followed", "rows divided, width 1.0 learns it, the others follow it", distill=followed
        ),
        Arm("labels", "rows divided, ground truth alone", distill={"teacher_mix": 0.0}),
    ]
    for optimizer, by in BY.items():
        own = {"optimizer": optimizer}
        found += separate(**own)
        found.append(Arm(f"divided/{optimizer}", f"a family, rows divided{by}", distill=own))
    return {arm.name: arm for arm in found}


ARMS = _arms()
MAIN = (*SEPARATE, "divided", "all", "largest", "healed")


@dataclass(frozen=True)
class Cell:
    """An arm on a problem at a length, from a seed, at a learning rate."""

    problem: str
    length: str
    arm: str
    seed: int
    rate: float
    quick: bool = False

    def key(self) -> str:
        """What makes it the same one again: a digest of the problem and of all settings."""
        problem, arm = PROBLEMS[self.problem], ARMS[self.arm]
        known = ("adapter", "made", "steps", "batch", "widths", "distill", "convert", "bases")
        own = {name: getattr(problem, name) for name in known}
        changes = [SHARED, CONVERTED, vars(arm), self.length, self.seed, self.rate, self.quick]
        changes[2] = {k: v for k, v in vars(arm).items() if k != "label"}
        text = json.dumps([self.problem, own, *changes], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def run(cell: Cell, cache: Path, folders: Sequence[Path]) -> dict[str, Any]:
    """Train a cell and measure its Students: on dev where settings are chosen by it, or on test."""
    torch.set_num_threads(1)
    problem, arm = PROBLEMS[cell.problem], ARMS[cell.arm]
    recipe = problem.recipe(cache, problem.data(folders), cell.seed, quick=cell.quick)
    recipe.distill.steps *= LENGTHS[cell.length]
    recipe.distill.lr, recipe.distill.allow_weak_teacher = cell.rate, True
    recipe = changed(
        recipe,
        convert={**CONVERTED, **arm.convert},
        distill={**SHARED, **problem.distill, **arm.distill},
    )
    task, ta, teacher, data = converted(recipe)
    splits = {"dev": data.held_out}
    if cell.seed < TUNED_ON:
        test = replace(recipe, data=replace(recipe.data, held_out=test_of(recipe)))
        own, base = open_task(task.name, test), Path(recipe.convert.source)
        splits = {"test": own.data(base, ta.model, training=False).held_out}
    found: dict[float, tuple[TA, float]] = {}
    done: list[Run] = []
    for steps, own_recipe, start, widths in _trainings(arm, recipe, task, ta, teacher, data):
        own_recipe.distill.steps = steps
        trained = start(found)
        if isinstance(teacher, ModelTeacher):
            teacher.model.eval().requires_grad_(False)
        done.append(Run(own_recipe, task, trained, teacher, data)())
        found |= {w: (trained, w if len(widths) > 1 else trained.widest) for w in widths}
    each = {f"{w:g}": measured(task, m, at, data, splits) for w, (m, at) in found.items()}
    return {
        "key": cell.key(),
        **vars(cell),
        "device": common.where(),
        "steps": [one.recipe.distill.steps for one in done],
        "seconds": round(sum(one.seconds for one in done), 2),
        "flops": sum(one.flops * one.recipe.distill.steps for one in done),
        "widths": {name: each[name] for name in sorted(each)},
        "base": digest(Path(recipe.convert.source)),
    }


# steps, settings, what is trained (of what was trained before), and the widths that come of it
Training = tuple[int, Recipe, Callable[[Mapping[float, Any]], TA], tuple[float, ...]]


def _trainings(
    arm: Arm, recipe: Recipe, task: Task, ta: TA, teacher: Any, data: Any
) -> Iterable[Training]:
    """The trainings of an arm, one after the other, with as many steps as each may take."""
    steps, plain = recipe.distill.steps, baselines.settings(recipe, recipe.distill.steps)

    def flops(own: Recipe, model: TA) -> float:
        return Run(own, task, model, teacher, data).flops

    cost = {w: flops(plain, alone(ta, w)) for w in WIDTHS}
    budget = arm.share * steps * sum(cost.values())
    own_kinds = list(kinds(ta.base))
    if arm.heal:
        large, rest = round(budget / 2 / cost[1.0]), [w for w in WIDTHS if w < 1]
        each = round(budget / 2 / sum(cost[w] for w in rest))
        yield max(1, large), changed(plain), lambda _: alone(ta, 1.0), (1.0,)
        for width in rest:
            yield max(1, each), changed(plain), _cut(ta, width, own_kinds), (width,)
    elif arm.width:
        width = arm.width
        count = round(budget / cost[width]) if arm.share else steps
        yield max(1, count), changed(plain), lambda _: alone(ta, width), (width,)
    else:
        count = round(budget / flops(recipe, ta)) if arm.share else steps
        yield max(1, count), recipe, lambda _: ta, WIDTHS


def _cut(ta: TA, width: float, own: list[str]) -> Callable[[Mapping[float, Any]], TA]:
    """A width's cut of the largest one that was trained, in the order that its units have."""

    def cut(found: Mapping[float, Any]) -> TA:
        whole = TA(ta.adapter, found[1.0][0].model, ta.axes, ta.base, ta.card)
        return of_one(ta.adapter, whole.student(width).dense(), own)

    return cut
