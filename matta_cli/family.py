"""A family of Students out of one run: of the widths that were asked for, and for budgets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from matta_cli.errors import MattaError
from matta_cli.files.workspace import Workspace
from matta_cli.measure.held_out import HeldOut
from matta_cli.models.folders import load_ta, reached
from matta_cli.models.ta import TA
from matta_cli.progress import Listener, Progress, Steps, quiet
from matta_cli.report.schema import Report
from matta_cli.search import run as search
from matta_cli.settings.budget import asked
from matta_cli.settings.recipe import Recipe
from matta_cli.students import export as students
from matta_cli.students import quantized
from matta_cli.students.student import check


def export(
    recipe: Recipe, out: Path, *, name: str = "", overwrite: bool = False, listen: Listener = quiet
) -> Report:
    """Cut Students of the recipe's widths and budgets out of the trained TA into ``out/students``.

    The report on them is written to ``out/report.*``, and returned. With a name they are a family
    beside that one, in ``out/families``. Raises ``MattaError`` for
    widths that the TA does not hold, budgets that are not possible, a Student that does not reload
    to the view's outputs, or missing data.
    """
    budgets = asked(recipe.export)
    check(recipe.export)  # before the work, not after it
    if budgets:
        search.check(recipe)
    converted = load_ta(Workspace(out).ta)
    quantized.check(recipe.export, converted)
    widths = sorted(set(recipe.export.widths))
    if not widths and not budgets:
        raise MattaError("There are no widths to export: pass --widths 0.25,0.5,1.0, say.")
    _refuse_equal(converted, widths)
    space = Workspace(out, name)
    space.refuse_exported(overwrite)

    def say(text: str) -> None:
        listen(Progress(message=text))

    run = reached(out, recipe.export.checkpoint, say)
    say(f"Found the TA of step {run.counters['step']} in {run.folder}.")
    family = [run.ta.student(width) for width in widths]
    searched: Report | None = None
    if budgets:
        searched, chosen = search.search(recipe, out, budgets, measured=False, listen=listen)
        # the search has put its own TA on the device
        family += [replace(student, ta=run.ta) for student in chosen]
    held_out = HeldOut.opened(recipe, run.ta, run.folder, run.counters.get("processes", 1))
    steps = Steps(listen, students.steps(recipe, family))
    report = students.export(
        space, family, held_out, run, converted, steps, searched=searched, overwrite=overwrite
    )
    steps.end()
    return report


def _refuse_equal(ta: TA, widths: Sequence[float]) -> None:
    """Raise ``MattaError`` for a width that the TA does not hold, and for two of the same sizes."""
    sizes = {width: ta.sizes(width) for width in widths}
    for a, b in itertools.pairwise(widths):
        if sizes[a] == sizes[b]:
            same = f"Widths {a:g} and {b:g} give the same Student at this TA's sizes"
            raise MattaError(f"{same}: leave one out.")
