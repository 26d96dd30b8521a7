"""search: sizes of the trained TA within each budget, as the command and export run it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from matta_cli.errors import Interrupted, MattaError
from matta_cli.files import atomic
from matta_cli.files.workspace import Workspace
from matta_cli.models.ta import Student
from matta_cli.progress import Listener, quiet
from matta_cli.report.schema import Report
from matta_cli.search.bits import Bits
from matta_cli.search.journal import journal, trials
from matta_cli.search.search import Search
from matta_cli.search.write import report_of, write
from matta_cli.settings import checks
from matta_cli.settings.budget import Budget
from matta_cli.settings.quantize import AUTO
from matta_cli.settings.recipe import Recipe


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
) -> tuple[Report, list[Student]]:
    """Search sizes of the trained TA in ``out`` within each budget.

    Without any budget it is from the smallest Student to the largest. Returns what
    ``out/search/search.json`` holds (a report whose models are the Pareto front and the Students
    of the budgets), and these Students. Not ``measured``: nothing but the scores is written, and
    the front has no metrics. Raises ``MattaError`` where there is no trained TA, no data, or a
    budget is not possible.
    """
    check(recipe)
    space = Workspace(out)
    space.refuse_unconverted()
    new = not space.search.exists()
    space.search.mkdir(exist_ok=True)
    with atomic.alone(space.search, "Another search is running"):
        storage = journal(space.search)
        started = time.perf_counter()
        try:
            run = Search(recipe, out, storage)
            base = run.ta.sizes(1.0)
            amounts = [b.of(run.counts(base, [name for name, _ in b.shares])) for b in budgets]
            auto = AUTO in recipe.export.quantize and not measured
            bits = Bits(run, listen) if auto else None
            students = bits.choose(amounts) if bits else run.run(amounts, listen)
            if not run.allowed():
                what = "No Student that was tried can be loaded by a stock library"
                raise MattaError(f"{what}: leave out --stock-only.")
            report = report_of(run, students, out, measured=measured)
            report.notes += bits.notes if bits else []
        except KeyboardInterrupt:
            kept = "what was scored is kept: the same command goes on from there"
            raise Interrupted(f"Stopped; {kept}.") from None
        except MattaError:
            if new and not trials(storage):  # it was refused before it began
                atomic.remove(space.search)
            raise
        report.searched["seconds"] = time.perf_counter() - started
        if measured:
            write(report, space.search)
    return report, students
