"""What a search found, as a report: ``search.json``, and a plot."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from matta_cli.adapter import Sizes
from matta_cli.errors import beside, command
from matta_cli.files.atomic import atomic_write
from matta_cli.measure import cost, intervals
from matta_cli.measure.counts import Key
from matta_cli.models.ta import Student
from matta_cli.report import page
from matta_cli.report.numbers import percent
from matta_cli.report.schema import (
    Choice,
    Cost,
    Interval,
    Machine,
    ModelEntry,
    Report,
    Role,
    Searched,
    Timing,
    now,
)
from matta_cli.search.front import unbeaten
from matta_cli.search.search import Scored, Search
from matta_cli.settings.budget import NEAR, TIMED, Budget
from matta_cli.version import __version__


def report_of(search: Search, students: Sequence[Student], out: Path, *, measured: bool) -> Report:
    """The report of a search: its models are the Pareto front and the Students of the budgets.

    out: the output folder that was searched. measured: whether each has metrics, on examples that
    no sizes were chosen by.
    """
    scores, ta, recipe = search.scores, search.ta, search.recipe
    limited = [name for student in students for name in _budget(student).names]
    costs = list(dict.fromkeys(limited)) or ["parameters"]
    front = search.front(costs)
    models = _entries(search, students, front, out)
    if measured:
        for model in models:
            model.metrics = _metrics(search, model.sizes)
    models = _not_beaten(search, models, {search.key(student.sizes) for student in students})
    choices = [_choice(search, student, models) for student in students]
    pairs = zip(students, choices, strict=True)
    notes = [note for student, one in pairs for note in _notes(search, student, one, front)]
    sizes = [min(scores.examples, len(half)) for half in (scores.choosing, scores.reporting)]
    held_out = f"sizes chosen by {sizes[0]} held-out examples, measured on {sizes[1]} others"
    device = Machine(**cost.device_card(scores.device))
    return Report(
        task=scores.task.name,
        adapter=ta.adapter.name,
        data=f"{scores.data.description}; {held_out}",
        unit=scores.data.unit,
        matta=__version__,
        created=now(),
        device=replace(device, threads=recipe.export.threads or device.threads),
        metrics=scores.task.reported(models),
        batch_size=recipe.export.batch_size,
        generation=search.timings.generation,
        models=models,
        notes=[*search.timings.notes, *notes],
        costs=costs,
        choices=choices,
        searched={
            "scored": len(search.scored),
            "evaluated": scores.evaluated,
            "examples": scores.examples,
            "training_seconds": search.training_seconds,
        },
        lineage=ta.card["lineage"],
        recipe=recipe.text(("data", "export", "search")),
    )


def write(report: Report, folder: Path) -> None:
    """``search.json`` and ``search.html``, each whole or not at all."""
    text = json.dumps(report.to_json(), indent=1, allow_nan=False)
    atomic_write(folder / "search.json", text + "\n")
    atomic_write(folder / "search.html", page.render(report))


def _budget(student: Student) -> Budget:
    assert student.budget is not None, "a Student that was chosen for a budget"
    return student.budget


def _entries(
    search: Search, students: Sequence[Student], front: Sequence[Scored], out: Path
) -> list[ModelEntry]:
    """The models of the report, the smallest first. Budgets of the same sizes share a model."""
    budgets: dict[Key, list[str]] = {}
    typed: dict[Key, str] = {}
    for student in students:
        budgets.setdefault(search.key(student.sizes), []).append(student.name)
        typed.setdefault(search.key(student.sizes), _budget(student).typed)
    on_front = {search.key(one.student.sizes): one for one in front}
    members = on_front | {key: search.scored[key] for key in budgets}
    mixes = itertools.count(1)
    entries = []
    for one in sorted(members.values(), key=search.parameters):
        key = search.key(one.student.sizes)
        name = ", ".join(budgets.get(key, [])) or one.student.name or f"mix {next(mixes)}"
        words = typed.get(key, "").split() or _words(search, one)
        # beside the first family, which may be there
        named = re.sub(r"[^\w.-]+", "-", name.partition(",")[0])
        typed_so = command("export", out, *words, *beside(named))
        entry = _entry(search, name, one, typed_so, front=key in on_front)
        entries.append(entry)
    return entries


def _words(search: Search, one: Scored) -> list[str]:
    """The flags by which ``export`` comes to a Student that no budget was chosen for.

    It keeps the scores, so that of all within its own parameters it is the best one known.
    """
    if one.student.width is not None:
        return ["--widths", f"{one.student.width:g}"]
    return ["--target-params", str(search.parameters(one))]


def _entry(search: Search, name: str, one: Scored, typed: str, *, front: bool) -> ModelEntry:
    student, sizes = one.student, one.student.sizes
    key, batch = search.key(sizes), search.recipe.export.batch_size
    own = Cost(**search.counts(sizes), tokens=cost.tokens(search.counts.example))
    for of, known in search.timings.known.items():
        if taken := known.measured.get(key):
            setattr(own, of, {batch: Timing(taken)})
    return ModelEntry(
        name=name,
        role=Role.STUDENT,
        width=student.width,
        stock=search.stock(sizes),
        sizes=sizes,
        layers=student.layers,
        cost=own,
        searched=Searched(
            loads=student.loads,
            shown=student.shown(whole=True),
            front=front,
            chosen_by=one.value,
            command=typed,
        ),
    )


def _not_beaten(
    search: Search, models: Sequence[ModelEntry], chosen: Collection[Key]
) -> list[ModelEntry]:
    """The models without those that another beats in every column that the table shows.

    Quality there is of other examples than sizes are chosen by. What was ``chosen`` stays, off the
    front.
    """
    primary, batch = search.scores.metric, search.recipe.export.batch_size
    sign, known = -1 if primary.higher else 1, search.timings.known
    timed = [of for of in known if all(model.latency(batch, of) for model in models)]
    points = []
    for model in models:
        own = model.measured(primary)
        quality = own.value if own else model.searched and model.searched.chosen_by
        cost = model.cost
        times = [model.latency(batch, of) for of in timed]
        columns = [cost.parameters, cost.bytes, cost.macs, *times]
        points.append([sign * (quality or 0.0), *(value or 0.0 for value in columns)])
    kept, best = [], set(unbeaten(points))
    for at, model in enumerate(models):
        if model.searched and model.searched.front and at not in best:
            model.searched = replace(model.searched, front=False)
        if at in best or search.key(model.sizes) in chosen:
            kept.append(model)
    return kept


def _metrics(search: Search, sizes: Sizes) -> dict[str, Interval]:
    """A Student's metrics on the examples that no sizes were chosen by."""
    scores = search.scores
    tables = [scores.columns(scores.model(sizes), scores.reporting)]
    return intervals.intervals(scores.task, tables, search.recipe.export.bootstrap)


def _choice(search: Search, student: Student, models: Sequence[ModelEntry]) -> Choice:
    budget, key = _budget(student), search.key(student.sizes)
    model = next(model for model in models if search.key(model.sizes) == key)
    costs = search.costs(student.sizes, budget.names)
    if student.quantized:
        costs["bytes"] = search.stored[key]
    used, limits = budget.used(costs), dict(budget.limits)
    own = budget.name, limits, used, model.name, model.stock
    return Choice(*own, trained=True, quantized=student.quantized)


def _notes(search: Search, student: Student, choice: Choice, front: Sequence[Scored]) -> list[str]:
    """How much of a budget is left over, and whether a Student that leaves more scored better."""
    budget, most, notes = _budget(student), max(choice.used.values()), []
    # of time some is left in any case
    if most < 1 - NEAR and not set(TIMED) & set(budget.names):
        uses = f"uses {percent(most)} of the budget"
        notes.append(f"{budget.name}: the largest Student found {uses}.")
    if student.quantized:
        return notes
    own, used = search.scored[search.key(student.sizes)], search.used(budget)
    within = [one for one in search.order(front) if used(one.student.sizes) <= 1]
    if within and search.scores.better(within[0].value, own.value):
        costs = search.costs(within[0].student.sizes, budget.names)
        uses = f"uses {percent(max(budget.used(costs).values()))} of the budget"
        notes.append(f"{budget.name}: a Student that {uses} scored better while choosing.")
    return notes
