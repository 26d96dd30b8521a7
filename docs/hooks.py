"""What mkdocs makes of docs/ beyond its pages: the navigation, and pages that are generated.

A page of the navigation that is not there is left out, and one that it does not name comes last.
"""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
NAV: dict[str, list[str]] = {
    "": ["index.md"],
    "Compress": [
        "models.md",
        "language-models.md",
        "text-classifiers.md",
        "sentence-encoders.md",
        "vision.md",
        "rankers.md",
        "your-own-module.md",
        "write-an-adapter.md",
    ],
    "Train": ["data.md", "teacher-files.md", "many-gpus.md", "recipe.md"],
    "Choose": ["budgets.md", "worth-it.md", "quantization.md"],
    "Use": ["students.md", "serving.md", "python.md"],
    "Know": ["how-it-works.md", "limits.md", "results.md", "support.md"],
    "Look up": ["commands.md", "settings.md", "changelog.md", "security.md", "contributing.md"],
}
# files of the project that are pages of the site, too
COPIED = {
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
}
COPIED |= {
    f"examples/{path.parent.name}/README.md": f"examples/{path.parent.name}.md"
    for path in sorted((ROOT / "examples").glob("*/README.md"))
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Set the navigation."""
    docs = {path.name for path in (ROOT / "docs").glob("*.md")}
    there = docs | set(COPIED.values()) | {"commands.md", "settings.md"}
    named = {page for pages in NAV.values() for page in pages}
    sections = {**NAV, "More": sorted(docs - named)}
    sections["Examples"] = [page for page in COPIED.values() if page.startswith("examples/")]
    config.nav = []
    for title, pages in sections.items():
        found = [page for page in pages if page in there]
        config.nav += [{title: found}] if title and found else found
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are generated, and those that are files elsewhere in the project."""
    for source, page in COPIED.items():
        if files.get_file_from_path(page) is None:
            text = (ROOT / source).read_text(encoding="utf-8")
            files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "commands.md", content=_commands()))
    files.append(File.generated(config, "settings.md", content=_settings()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links within the project to pages of the site; those to other files are plain text."""
    of_page = {page_: source for source, page_ in COPIED.items() if page_ != "index.md"}
    source = of_page.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def link(found: re.Match[str]) -> str:
        image, text, target = found.groups()
        name, hash_, anchor = target.partition("#")
        if re.match(r"\w+:", target) or not name:
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
        if not (ROOT / path).exists():
            raise PluginError(f"{source} links to {target!r}, which is not there")
        there = path if path in COPIED else f"{path}/README.md"
        there = COPIED.get(there) or path.removeprefix("docs/")
        if files.get_file_from_path(there) is None:
            return found[0] if image else text
        here = posixpath.dirname(page.file.src_uri) or "."
        return f"{image}[{text}]({posixpath.relpath(there, here)}{hash_}{anchor})"

    # commands are told as they are: what the shell's own words mean is nothing to colour
    markdown = markdown.replace("```bash\n", "```text\n")
    blocks = re.split(r"(^```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(b if b.startswith("```") else _LINK.sub(link, b) for b in blocks)


def _run(*words: str) -> str:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PluginError(f"{' '.join(words)}: {done.stderr}")
    return done.stdout


def _commands() -> str:
    """Every command's --help, by Typer's own generator."""
    text = _run("typer", "matta_cli.main", "utils", "docs", "--name", "matta")
    return text.replace("# `matta`", "# Commands", 1)


def _settings() -> str:
    """What ``matta recipe show --all`` prints, a table for each table of the file."""
    printed = _run("matta_cli", "recipe", "show", "--all")
    shown = [line.split("\t") for line in printed.splitlines()]
    lists = "Every setting of `matta.toml`, as `matta recipe show --all` prints it."
    page = ["# Settings", "", lists]
    table = ""
    for setting, value, _, what, source in shown[1:]:
        of, _, name = setting.partition(".")
        if of != table:
            table = of
            page += ["", f"## {table}", "", "| setting | default | what |", "|---|---|---|"]
        what += "" if source == "our choice" else f" ({source})"
        page.append(f"| `{name}` | {value} | {what.replace('|', '&#124;')} |")
    return "\n".join(page)
