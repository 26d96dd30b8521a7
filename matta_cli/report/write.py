"""The report's files: JSON, Markdown and a web page."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from matta_cli.files.atomic import atomic_write
from matta_cli.report import page
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
    texts = Environment(
        loader=PackageLoader("matta_cli.report"),
        finalize=_escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    texts.filters |= {"fence": _fence, "raw": Markup}
    headers, cells = rows(story.report)
    return texts.get_template("report.md").render(story=story, headers=headers, rows=cells)


def _escaped(text: Any) -> Any:
    """Names and data are the user's: they must not become markup, or break out of a table cell."""
    if isinstance(text, Markup):
        return text
    one_line = escape(" ".join(str(text).split()), quote=False)
    # A bracket makes a link only before ( [ or : so intervals stay readable in the raw text.
    return re.sub(r"([\\`*_|#~]|\](?=[(\[:]))", r"\\\1", one_line)


def _fence(text: str, language: str) -> Markup:
    """A block of code that nothing in it can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}{language}\n{text.rstrip()}\n{fence}")
