"""The pages of docs/: their blocks of code, and how they are run in a reader's folder.

A block of bash, or an indented one that begins with a command, is typed, line by line. A block of
Python is run, or with ``title="name.py"`` is a file that the reader writes. A block of TOML is what
the reader puts into matta.toml. A block behind ``<!-- not run: reason -->`` is left out.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from matta_cli.main import app
from matta_cli.settings.resolve import tomllib
from tests import toys

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
_BLOCK = re.compile(
    r'^(?:<!-- not run: (?P<reason>[^\n]*?) *-->\n)?```(?P<kind>\w*)(?: title="(?P<title>[^"]+)")?'
    r"\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}(?:matta|python|pip) .*\n)(?:(?: {4}.*)?\n)*")
_SHELL = set("|&;<>$*`")


@dataclass(frozen=True)
class Block:
    """A block of code: its language, the file that it is, and why it is not run."""

    kind: str
    title: str | None
    text: str
    reason: str | None

    def commands(self) -> list[str]:
        """The lines of a block of bash, those that go on in the next one joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if shlex.split(line, comments=True)]


def fenced(text: str) -> str:
    """The page with the indented commands as blocks of bash."""

    def fence(found: re.Match[str]) -> str:
        return f"```bash\n{textwrap.dedent(found[0]).strip()}\n```\n\n"

    return _INDENTED.sub(fence, text)


def blocks(text: str) -> list[Block]:
    return [
        Block(found["kind"], found["title"], found["text"], found["reason"])
        for found in _BLOCK.finditer(fenced(text))
    ]


def extras(words: list[str]) -> list[str]:
    """The extras that ``pip install`` names."""
    named = re.findall(r"\[([\w,-]+)\]", " ".join(words))
    return [extra for one in named for extra in one.split(",")]


@dataclass
class Reader:
    """Somebody who types a page in ``folder``, which has what the pages say that they have."""

    folder: Path
    said: str = ""
    settings: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(toys.SETTINGS))
    _space: dict[str, Any] = field(default_factory=dict)
    _written: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._save_settings()

    def type(self, block: Block) -> None:
        """Do what a block says. Raises ``AssertionError`` where that fails."""
        if block.reason is not None:
            return
        if block.kind == "bash":
            for command in block.commands():
                self._command(command)
        elif block.title not in (None, "matta.toml"):
            self._write(str(block.title), block.text)
        elif block.kind == "toml":
            for table, values in tomllib.loads(block.text).items():
                self.settings.setdefault(table, {}).update(values)
            self._save_settings()
        elif block.kind == "python":
            exec(compile(block.text, "a block of the page", "exec"), self._space)

    def _command(self, command: str) -> None:
        words = shlex.split(command, comments=True)
        if words[:2] == ["pip", "install"]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            missing = set(extras(words)) - set(project["optional-dependencies"])
            assert not missing, f"{command}: there is no extra {missing}"
        elif words[0] == "matta" and not _SHELL & set(command):
            done = CliRunner(env={"COLUMNS": "200"}).invoke(app, words[1:])
            self.said += done.output
            assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception!r}"
        else:
            shell = f'matta() {{ {shlex.quote(sys.executable)} -m matta_cli "$@"; }}\n'
            shell += f'python() {{ {shlex.quote(sys.executable)} "$@"; }}\n'
            script = ["bash", "-euo", "pipefail", "-c", shell + command]
            ran = subprocess.run(
                script, cwd=self.folder, capture_output=True, text=True, check=False
            )
            self.said += ran.stdout + ran.stderr
            assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"

    def _write(self, name: str, text: str) -> None:
        """A file of the reader's, to which a later block of the same title is added."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text() + "\n\n" if name in self._written else ""
        path.write_text(before + text)
        self._written.add(name)

    def _save_settings(self) -> None:
        lines = []
        for table, values in self.settings.items():
            lines += [f"[{table}]", *(f"{k} = {json.dumps(v)}" for k, v in values.items())]
        (self.folder / "matta.toml").write_text("\n".join(lines) + "\n")
