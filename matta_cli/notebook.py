"""What a call of the API shows while it runs, and what its results look like in a notebook."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

from matta_cli.progress import Listener, Progress, quiet
from matta_cli.report import cell
from matta_cli.report.schema import Report
from matta_cli.training.quality import quality


class Told(dict[str, Any]):
    """A report as ``report.json`` has it, which says in short what is in it."""

    def __repr__(self) -> str:
        return cell.line(Report.from_json(self))

    def _repr_html_(self) -> str:
        return cell.html(Report.from_json(self))


class Trained(type(Path())):  # type: ignore[misc]  # a path is of the system's own class
    """The folder of a run's last checkpoint, which says how good the models are there."""

    def _repr_html_(self) -> str:
        found = quality(Path(self).parents[2])  # the output folder
        return cell.table(f"Trained: {self}", *(found.rows() if found else ([], [])))


def _in_notebook() -> bool:
    """Whether the call is made in a notebook's kernel."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    return running is not None and hasattr(running, "kernel")


@contextmanager
def shown(progress: bool | None) -> Iterator[Listener]:
    """A listener for a call: with a bar in a notebook and on a terminal, else without.

    progress: whether there is one at all; None: where somebody can see it.
    """
    if progress is not False and _in_notebook():
        bar = _Bar()
        try:
            yield bar.listen
        finally:
            bar.end()
    elif progress or (progress is None and sys.stderr.isatty()):
        from matta_cli.console import training_progress

        with training_progress() as listen:
            yield listen
    else:
        yield quiet


class _Bar:
    """A bar in the output of a cell, which is gone when the call is over; sentences stay."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.step = -1

    def listen(self, event: Progress) -> None:
        if event.message:
            print(event.message)
        elif event.steps and (event.step * 100 // event.steps != self.step or event.doing):
            self.step = event.step * 100 // event.steps
            self._show(event)

    def _show(self, event: Progress) -> None:
        from IPython.display import HTML, display

        losses = (f"{name} {own['loss']:.3f}" for name, own in event.terms.items() if "loss" in own)
        words = event.doing or f"{event.speed} {event.unit}/s, loss {', '.join(losses)}"
        bar = f'<progress value="{event.step}" max="{event.steps}"></progress>'
        drawn = HTML(f"{bar} {event.step}/{event.steps} {escape(words)}")
        if self.handle is None:
            self.handle = display(drawn, display_id=True)
        else:
            self.handle.update(drawn)

    def end(self) -> None:
        if self.handle is not None:
            from IPython.display import HTML

            self.handle.update(HTML(""))
