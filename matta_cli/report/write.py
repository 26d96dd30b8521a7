"""The report's files."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

from matta_cli.report.numbers import plain
from matta_cli.report.story import (
    Dict,
    alarms,
    facts_of,
    findings,
    headline,
    loadable,
    name_of,
    notes_of,
    reading,
    rows,
)

# --- Markdown -------------------------------------------------------------------------------------


def _md(text: Any) -> str:
    """Names and data are the user's: they must not become markup, or break out of a table cell."""
    one_line = " ".join(str(text).split())
    # A bracket makes a link only before ( [ or : so intervals stay readable in the raw text.
    return re.sub(r"([\\`*_|#~]|\](?=[(\[:]))", r"\\\1", escape(one_line, quote=False))


def _fence(text: str, language: str = "") -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def markdown(report: Dict) -> str:
    parts = ["# matta report", f"**{_md(headline(report))}**"]
    if warned := alarms(report):
        parts += ["## Look at this first", "\n".join(f"- ⚠ {_md(text)}" for text in warned)]
    if found := findings(report):
        parts.append("\n".join(f"- {_md(text)}" for text in found))
    headers, table = rows(report)
    if table:
        rule = ["---"] + ["---:"] * (len(headers) - 1)
        cells = [[_md(h) for h in headers], rule, *([_md(cell) for cell in row] for row in table)]
        parts += [
            "## Models",
            "\n".join("| " + " | ".join(row) + " |" for row in cells),
            _md(reading(report)),
        ]
    if loading := loadable(report):
        parts.append("## Load one")
        for model, known, lines in loading:
            parts += [f"{_md(name_of(model))} ({', '.join(known)}):", _fence(lines, "python")]
    if notes := notes_of(report):
        parts += ["## Notes", "\n".join(f"- {_md(note)}" for note in notes)]
    if facts := facts_of(report):
        parts += [
            "## How it was made",
            "\n".join(f"- {what}: {_md(value)}" for what, value in facts),
        ]
    if recipe := report.get("recipe"):
        parts += ["### Recipe", _fence(str(recipe), "toml")]
    return "\n\n".join(parts) + "\n"


def write(report: Dict, folder: Path | str) -> None:
    """report.json, report.md and report.html, each whole or not at all."""
    # here, because that module imports torch and this one must not
    from matta_cli.files.atomic import atomic_write
    from matta_cli.report.page import html  # here, because that module imports this one

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(
        folder / "report.json",
        json.dumps(plain(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    )
    atomic_write(folder / "report.md", markdown(report))
    atomic_write(folder / "report.html", html(report))
