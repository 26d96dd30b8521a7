"""export: trained TA -> Students as ordinary dense checkpoints, proven, and the report on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matta_cli.conversion.inspect import numbers, strips
from matta_cli.files import atomic
from matta_cli.files.workspace import Workspace
from matta_cli.measure import cost
from matta_cli.measure.held_out import HeldOut
from matta_cli.measure.pairs import compared
from matta_cli.models.folders import Reached
from matta_cli.models.ta import TA, Student
from matta_cli.progress import Steps
from matta_cli.report import search_table
from matta_cli.report.numbers import in_seconds
from matta_cli.report.schema import Machine, ModelEntry, Report, Role, Run, now
from matta_cli.report.story import tell
from matta_cli.report.write import write as write_report
from matta_cli.settings.budget import LIMITS, TIMED
from matta_cli.settings.recipe import Recipe
from matta_cli.settings.resolve import run_recipe
from matta_cli.students import card, entries, quantized
from matta_cli.students.card import left_out
from matta_cli.students.parity import ROUNDED, proven
from matta_cli.students.quantized import Quantized
from matta_cli.students.student import PROBED, Written, check, write
from matta_cli.training import log, spent
from matta_cli.version import __version__


def steps(recipe: Recipe, students: Sequence[Student]) -> int:
    """About how many sentences ``export`` says: one before each part of its work."""
    cuts = sum(student.width != 1.0 for student in students)
    measured = len(students) + cuts + 2 + bool(recipe.distill.teacher)  # with base and TA
    written = len(students) * (1 + len(recipe.export.format))
    copies = 2 * sum(len(quantized.kinds(student, recipe.export)) for student in students)
    return written + measured + copies + len(("reload", "time", "compare"))


def export(
    space: Workspace,
    students: Sequence[Student],
    held_out: HeldOut,
    run: Reached,
    converted: TA,
    say: Steps,
    *,
    searched: Report | None = None,
    overwrite: bool = False,
) -> Report:
    """Write Students of a run's TA into those of a workspace, and its report on them.

    held_out: what they are measured on, and by which recipe. converted: the TA before the run.
    searched: how the sizes of those for a budget were found. Raises ``MattaError`` for formats that
    are not possible, and for a Student that does not load again to the outputs of the nested view.
    """
    recipe, task = held_out.recipe, held_out.task
    check(recipe.export)
    lineage = {**run.ta.card["lineage"], "ta": atomic.digest(run.folder)}
    with atomic.atomic_folder(space.students, overwrite=overwrite) as folder:
        written: list[Written] = []
        copies: list[Quantized] = []
        batches = quantized.calibrating(held_out)
        for student in students:  # one by one: each is let go before the next one is cut
            say(f"Writing {student.name}.")
            where = folder / student.folder
            written.append(write(student, where, held_out, run, lineage, say))
            copies += quantized.write(written[-1], held_out, run, batches, say)
        say("Reloading every Student in a fresh process.")
        proof = proven(written, copies, task, run.ta.model, held_out.first(PROBED))
        own = [entries.student_entry(one, proof, space, task.name) for one in written]
        twins = [(quantized.entry(one, proof, space), one) for one in copies]
        folders = [one.folder for one in written]
        measured = entries.models(held_out, run, converted, own, folders, twins, space.root, say)
        report = _report(space, held_out, run, measured, say)
        report.lineage = lineage
        saved_in = _saved_in(report.students)
        report.notes = [*_notes(students, held_out, run), *measured.notes, *saved_in]
        report.notes += quantized.drop_broken(report, {one.name: one.folder for one in copies})
        if searched is not None:
            report.notes += [*search_table.choices(searched, report), *searched.notes]
        report.notes += _over(students, report)
        report.notes += tell(report).alarms
        for entry in report.of(Role.STUDENT, Role.QUANTIZED):
            where = folder / Path(str(entry.folder)).name
            atomic.seal(where)  # which files are matta's; the card is there to be changed
            told = card.text(entry, report, recipe.data, where)
            atomic.atomic_write(where / "README.md", told)
        atomic.atomic_write(folder / "recipe.toml", recipe.text())
        # before the Students appear: what fails here leaves none without their report
        write_report(report, space.report.parent)
    return report


def _notes(students: Sequence[Student], held_out: HeldOut, run: Reached) -> list[str]:
    """What a reader of the report must know of the widths, and of the run."""
    settings, at = run.recipe.distill, run.counters
    widths = [s.width for s in students if s.budget is None and s.width is not None]
    known = spent.trained_widths(settings, run.ta)
    menu = ", ".join(f"{width:g}" for width in known)
    notes = []
    if dropped := left_out(run.ta.card["lineage"]):
        notes.append(f"Not of the model that was converted: {dropped}.")
    notes += [
        f"Width {width:g} was never trained ({menu} were): train what you export."
        for width in widths
        if width not in known
    ]
    for width in widths:
        kept = run.ta.student(width).layers
        if kept is not None and width != 1.0:
            notes.append(f"Width {width:g} keeps layers {numbers(kept)} of the base's.")
    if at.get("best_step") == at["step"]:
        by = f"the {held_out.task.metrics[0].label} of width {settings.best:g} during training"
        notes.append(f"Step {at['step']} was the best by {by} ({at['best_value']:.4g}).")
    elif at["step"] < settings.steps:
        notes.append(f"The run stopped at step {at['step']} of {settings.steps}.")
    return notes


def _saved_in(students: Sequence[ModelEntry]) -> list[str]:
    """A note where weights are saved in fewer bits than they were trained in."""
    half = [s.parity for s in students if s.parity is not None and s.parity.dtype != "float32"]
    if not half:
        return []
    far = [parity.rounded for parity in half if parity.rounded is not None]
    what = f"Students are saved in {half[0].dtype} (export.dtype)"
    if not far:
        return [f"{what}, in which they cannot be run here."]
    bound = f"at most {max(far):.2g} of the largest output from the trained slice's in float32"
    return [f"{what}: computed so, their outputs are {bound} ({ROUNDED[half[0].dtype]:g} allowed)."]


def _over(students: Sequence[Student], report: Report) -> list[str]:
    """A note for each Student that takes longer now than its budget's limit."""
    notes = []
    for student in students:
        for name, limit in student.budget.limits if student.budget else ():
            if name not in TIMED:
                continue
            taken = report.model(student.name).latency(report.batch_size or 1, name)
            if taken is not None and taken > limit:
                over = f"{in_seconds(taken)} instead of {in_seconds(limit)}"
                again = f"measured once more for this report, its {LIMITS[name].label} is over"
                notes.append(f"{student.name}: {again} the limit: {over}.")
    return notes


def _report(
    space: Workspace, held_out: HeldOut, run: Reached, measured: entries.Measured, say: Steps
) -> Report:
    """The report on these models, without its notes."""
    recipe, task = held_out.recipe, held_out.task
    models = measured.entries
    with cost.threads(recipe.export.threads):
        machine = Machine(**cost.device_card(held_out.device))
    metrics = task.reported(models)
    took = spent.of_run(space, recipe.export.checkpoint)
    training = spent.training(task, held_out.data, took, run_recipe(space.root).distill.batch_size)
    for entry in models:
        if entry.role in (Role.STUDENT, Role.TA):
            entry.training = training
    curve = log.evaluations(space, metrics[0].name if metrics else "")
    report = Report(
        task=task.name,
        adapter=run.ta.adapter.name,
        data=held_out.data.description,
        unit=held_out.data.unit,
        matta=__version__,
        created=now(),
        device=machine,
        metrics=metrics,
        batch_size=recipe.export.batch_size,
        generation=measured.generation,
        models=models,
        run=Run(run.counters["step"], run.counters["seconds"], curve),
        margin=recipe.export.margin,
        recipe=recipe.text(),
    )
    kept = {student.name: student.sizes for student in report.students}
    report.axes = strips(run.ta, space.ta, kept)
    say("Comparing them on the same examples.")
    report.pairs = compared(report, held_out)
    return report
