"""The report's files: JSON, Markdown and a web page."""

from __future__ import annotations

import json
from pathlib import Path

from matta_cli.files.atomic import atomic_write
from matta_cli.report import page
from matta_cli.report.render import template
from matta_cli.report.schema import Report
from matta_cli.report.story import Story, tell
from matta_cli.report.table import rows


def write(report: Report, folder: Path | str) -> None:
    """report.json, report.md and report.html, each whole or not at all."""
    folder, story = Path(folder), tell(report)
    text = json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write(folder / "report.json", text + "\n")
    atomic_write(folder / "report.md", markdown(story))
    atomic_write(folder / "report.html", page.html(story))


def markdown(story: Story) -> str:
    """The report as Markdown."""
    headers, cells = rows(story.report)
    return template("report.md").render(story=story, headers=headers, rows=cells)
