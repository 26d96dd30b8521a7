"""A report in a notebook: its head and its table as the output of a cell, or one line."""

from __future__ import annotations

from collections.abc import Sequence

from matta_cli.report import terminal
from matta_cli.report.render import template
from matta_cli.report.schema import Report
from matta_cli.report.story import tell
from matta_cli.report.values import listed


def line(report: Report) -> str:
    """One line: the headline, and which models it is on."""
    names = [model.name for model in report.models]
    return f"Report: {tell(report).headline} Models: {listed(names or ['none'])}."


def html(report: Report) -> str:
    """The headline, what is to be looked at first, and the table."""
    story = tell(report)
    heads, rows = terminal.tables(report)[1] if report.metrics else ([], [])
    return table(story.headline, heads, rows, story.alarms, story.reading)


def table(
    headline: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    alarms: Sequence[str] = (),
    reading: str = "",
) -> str:
    """A headline and a table. All texts are escaped."""
    return template("cell.html").render(
        headline=headline, heads=heads, rows=rows, alarms=alarms, reading=reading
    )
