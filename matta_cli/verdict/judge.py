"""The verdict: every Student against its baselines, on the same held-out examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from matta_cli.errors import MattaError
from matta_cli.files import atomic, reading
from matta_cli.files.workspace import Workspace
from matta_cli.formats import quantized
from matta_cli.measure.held_out import HeldOut
from matta_cli.measure.pairs import compared
from matta_cli.models.folders import load_student, load_ta, reached
from matta_cli.models.ta import TA
from matta_cli.progress import Listener, Say, Steps, quiet
from matta_cli.report.schema import ModelEntry, Report, Role
from matta_cli.report.story import Story, tell
from matta_cli.report.write import write
from matta_cli.settings import gone
from matta_cli.settings.recipe import Recipe
from matta_cli.settings.resolve import read_toml, run_recipe
from matta_cli.students import card
from matta_cli.training import log, spent
from matta_cli.verdict import baselines
from matta_cli.verdict.baselines import Baseline

# a baseline's role in the report, and what it is called there
_ROLES = {
    "ground-truth": (Role.ALONE, "trained alone"),
    "plain": (Role.PLAIN, "plain distillation"),
    "scratch": (Role.SCRATCH, "from scratch"),
}


def remake(
    out: Path,
    kinds: Sequence[str] = (),
    *,
    name: str = "",
    margin: float | None = None,
    device: str | None = None,
    listen: Listener = quiet,
) -> Report:
    """Make ``out/report.*`` anew from the Students there and the baselines that are finished.

    kinds: baselines (``baselines.KINDS``) to train first, where they are missing. margin: the share
    of a baseline's value that a Student may lose and be no worse. name: of a family that stands
    beside the first one. The data are those of the export.
    Raises ``MattaError`` where nothing was exported, or a baseline cannot be trained.
    """
    baselines.check(kinds, margin or 0.0)
    space = Workspace(out, name)
    space.mend()
    report = _exported(space)
    # alarms are sounded anew, if they still hold
    report.notes = tell(report).notes
    recipe = _recipe(space, margin, device)
    baselines.check(kinds, recipe.export.margin)
    students = report.students
    run = spent.of_run(space, recipe.export.checkpoint)
    if any(kind in baselines.TRAINED for kind in kinds):
        where = recipe.distill.device
        notes = baselines.train(out, kinds, students, run, device=where, listen=listen)
        report.notes += [note for note in notes if note not in report.notes]
    finished = baselines.finished(out, students, run)
    converted = load_ta(space.ta)
    held_out = HeldOut.opened(recipe, converted, space.ta, run.processes)
    roles = [role for role, _ in _ROLES.values()]
    report.models = [model for model in report.models if model.role not in roles]
    say = Steps(listen, len(report.models) + len(finished) + 1)
    for entry in report.models:
        model = _opened(entry, report, out, converted, held_out)
        if model is not None:
            say(f"Measuring {entry.name}.")
            held_out.add(entry.name, model)
    report.models += [_entry(baseline, report, held_out, out, say) for baseline in finished]
    report.margin = recipe.export.margin
    say("Comparing them on the same examples.")
    report.pairs = compared(report, held_out)
    told = tell(report)
    report.notes += told.alarms
    write(report, space.report.parent)
    _into_cards(told, out)
    say.end()
    return report


def _exported(space: Workspace) -> Report:
    """The report of the export. Raises ``MattaError`` where it or one of its Students is gone."""
    out, path, again = space.root, space.report, space.exporting
    try:
        report = Report.from_json(reading.stored(path, dict[str, Any], f"run `{again}` again"))
        for cut in report.of(Role.CUT):
            report.model(str(cut.of))
    except FileNotFoundError:
        raise space.no_report() from None
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise MattaError(f"{path} is damaged ({error!r}): run `{again}` again.") from None
    for student in report.of(Role.STUDENT, Role.QUANTIZED):
        name = Path(str(student.folder))
        if name.is_absolute() or ".." in name.parts:
            raise MattaError(f"{path} names {str(name)!r}, which lies outside of {out}.")
        if not (out / name).is_dir():
            raise MattaError(f"{out / name} is gone: run `{again}` again.")
        atomic.own(atomic.own(out / name) / "README.md")  # the verdict goes there
    return report


def _recipe(space: Workspace, margin: float | None, device: str | None) -> Recipe:
    """The recipe that the Students were exported by, but for what is given."""
    recipe, path = Recipe(), space.students / "recipe.toml"
    settings = read_toml(path)
    settings.pop("search", None)  # how sizes were found is of no use now, and settings of it change
    recipe.update(gone.recorded(settings), str(path))
    if device is not None:
        recipe.distill.device = device
    if margin is not None:
        recipe.export.margin = margin
    return recipe


def _opened(
    entry: ModelEntry, report: Report, out: Path, converted: TA, held_out: HeldOut
) -> nn.Module | None:
    """A model that the report compares with others; None where it is none, or has gone since."""
    if entry.role is Role.STUDENT:
        return load_student(out / str(entry.folder))
    if entry.role is Role.QUANTIZED:
        like = load_student(out / str(report.model(str(entry.of)).folder))
        return quantized.opened(out / str(entry.folder), like)
    if entry.role is Role.BASE:
        return converted.student(1.0).dense()
    if entry.role is Role.CUT:
        return held_out.dense(converted.student(report.model(str(entry.of)).sizes))
    return _trained_ta(report, out, held_out) if entry.role is Role.TA else None


def _trained_ta(report: Report, out: Path, held_out: HeldOut) -> nn.Module | None:
    """The TA that the Students were cut out of, if its checkpoint is still there."""
    try:
        run = reached(out, held_out.recipe.export.checkpoint)
    except MattaError:
        return None
    return run.ta.model if atomic.digest(run.folder) == report.lineage.get("ta") else None


def _entry(
    baseline: Baseline, report: Report, held_out: HeldOut, out: Path, say: Say
) -> ModelEntry:
    """A baseline, measured. It costs what its Student costs, which has the same shapes."""
    student = report.model(baseline.student)
    role, words = _ROLES[baseline.kind]
    name = f"{words} {student.name.removeprefix('width ')}"
    say(f"Measuring {name}.")
    held_out.add(name, held_out.dense(baselines.load(baseline).student(1.0)))
    size = run_recipe(out).distill.batch_size
    primary = report.metrics[0].name if report.metrics else ""
    curve = log.evaluations(Workspace(baseline.folder), primary)
    return ModelEntry(
        name,
        role,
        student.width,
        of=student.name,
        cost=student.cost,
        metrics=held_out.metrics(name),
        training=spent.training(held_out.task, held_out.data, baseline.spent, size),
        curve=[(step, values["1"]) for step, values in curve if values.get("1") is not None],
    )


def _into_cards(told: Story, out: Path) -> None:
    """Write the verdict on each Student into its model card."""
    verdicts = {rival.student.name: rival.sentence for rival in told.rivals}
    for student in told.report.students:
        path = out / str(student.folder) / "README.md"
        text = path.read_text(encoding="utf-8", errors="replace")
        atomic.atomic_write(path, card.with_verdict(text, verdicts.get(student.name, "")))
