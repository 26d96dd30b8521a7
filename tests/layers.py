"""The rules of the house: who imports whom, how long things are, what is written once only.

``offences`` says which files of a tree break which rule. ``tests/test_layers.py`` asks that of this
tree, and of small ones that are made to break each rule.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

FRONT = ("main", "__main__", "console", "commands", "notebook")  # what may print, and know of typer

# A package or file imports only from rows above its own, and not from its own row, which only the
# last one may. Imports inside functions and for type checkers count.
ROWS = (
    ("adapter", "errors", "progress", "version"),
    ("trust",),
    ("losses", "files", "nested", "devices"),
    ("settings",),
    ("data", "report", "models"),
    ("tasks",),
    ("measure",),
    ("conversion", "formats"),
    ("training",),
    ("students", "search", "comparison"),
    ("verdict",),
    ("matta_cli", *FRONT, "api", "keywords", "family", "testing", "demo"),
)
ROW = {name: number for number, row in enumerate(ROWS) for name in row}
LINES, FUNCTION, COLUMNS = 400, 60, 100
FOLDERS = ("ta", "run", "students", "baselines")  # paths of a Workspace
# keys of a report's JSON
REPORTED = {"models", "metrics", "role", "pairs", "notes", "choices", "programs", "parity"}
REPORTED |= {"training", "peak_memory", "verdict", "chosen_by"}


class File:
    """A file of a tree, and what it imports from where."""

    def __init__(self, root: Path, path: Path) -> None:
        self.root, self.path = root, path
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self.nodes = list(ast.walk(self.tree))

    @property
    def where(self) -> str:
        return self.path.relative_to(self.root).as_posix()

    @property
    def name(self) -> str:
        """The module's name; that of a package for its ``__init__``."""
        parts = self.path.relative_to(self.root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def top(self) -> str:
        """What has a row: the package or file of matta_cli; empty where it is of neither."""
        return top(self.name)

    @property
    def engine(self) -> bool:
        return self.top != "" and self.top not in FRONT

    def imports(self) -> Iterator[str]:
        """Every module that is imported, anywhere in the file; ``.`` stands for a relative one."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = "." * node.level + (node.module or "")
                inner = {f"{base}.{alias.name}" for alias in node.names} & modules(self.root)
                yield from sorted(inner) or [base]


def top(name: str) -> str:
    first, *rest = name.split(".")
    return "" if first != "matta_cli" else rest[0] if rest else first


@cache
def files(root: Path) -> tuple[File, ...]:
    """The Python files of matta_cli, of the adapters and of the benchmarks."""
    folders = (root / name for name in ("matta_cli", "adapters", "benchmarks"))
    return tuple(File(root, path) for folder in folders for path in sorted(folder.rglob("*.py")))


@cache
def modules(root: Path) -> frozenset[str]:
    return frozenset(file.name for file in files(root))


def under(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


# Rules: each says what is wrong with a file.


def rows(file: File) -> Iterator[str]:
    if not file.top:
        return
    if file.top not in ROW:
        yield f"{file.top} has no row"
        return
    for name in file.imports():
        if name.startswith("."):
            yield f"a relative import, {name}"
        elif (other := top(name)) and other != file.top:
            here, there = ROW[file.top], ROW.get(other, len(ROWS))
            if there > here or (there == here < len(ROWS) - 1):
                yield f"imports {name}, {'sideways' if there == here else 'upwards'}"


def outsiders(file: File) -> Iterator[str]:
    """The command line's libraries stay in front, and adapters know the contract alone."""
    for name in file.imports():
        if under(name, "click"):
            yield f"imports {name}"
        if file.engine and under(name, "typer", "rich"):
            yield f"the engine imports {name}"
        # the demo's ranker is built from the adapter's own class
        if file.top not in ("", "demo") and under(name, "matta_adapters"):
            yield f"the engine imports {name}"
        contract = under(name, "matta_cli.adapter", "matta_cli.errors", "matta_cli.trust")
        if under(file.name, "adapters") and under(name, "matta_cli") and not contract:
            yield f"an adapter imports {name}"


def printing(file: File) -> Iterator[str]:
    if file.engine or under(file.name, "adapters"):
        for node in file.nodes:
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                yield f"line {node.lineno} prints"


def docstrings(file: File) -> Iterator[str]:
    """Every module says what it is; a package's ``__init__`` does nothing else."""
    if not ast.get_docstring(file.tree):
        yield "has no docstring"
    package = file.path.name == "__init__.py" and file.path.parent.name != "matta_cli"
    if file.top and package and len(file.tree.body) > 1:
        yield "an __init__ with more than a docstring"


def lengths(file: File) -> Iterator[str]:
    lines = file.text.splitlines()
    if len(lines) > LINES:
        yield f"{len(lines)} lines"
    for node in file.nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > FUNCTION:
                yield f"{node.name} has {length} lines"
    for number, line in enumerate(lines, 1):
        if len(line) > COLUMNS:
            yield f"line {number} has {len(line)} columns"
        if re.search(r"#\s*fmt: ?(skip|off)", line):
            yield f"line {number} is not formatted"


def reports(file: File) -> Iterator[str]:
    """A report is read as what it is, a ``Report``; its JSON is known to the schema alone."""
    if not file.top or file.where == "matta_cli/report/schema.py":
        return
    for node in file.nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            key = node.args[0]
            if node.func.attr == "get" and isinstance(key, ast.Constant) and key.value in REPORTED:
                yield f"line {node.lineno} reads a report with .get({key.value!r})"


def paths(file: File) -> Iterator[str]:
    """Folders of an output folder have one spelling, in Workspace."""
    if not file.top or file.where == "matta_cli/files/workspace.py":
        return
    for node in file.nodes:
        parts: list[ast.expr] = []
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            parts = [node.left, node.right]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            parts = node.args if called == "Path" or called.endswith("joinpath") else []
        for part in parts:
            if _text(part).split("/")[0] in FOLDERS:
                yield f"line {node.lineno} spells the folder {_text(part)!r}"
        if isinstance(node, ast.JoinedStr) and re.match(f"({'|'.join(FOLDERS)})/", _text(node)):
            yield f"line {node.lineno} spells the folder {_text(node)!r}"


def _text(node: ast.expr) -> str:
    """The text that a constant or a formatted string begins with."""
    first = node.values[0] if isinstance(node, ast.JoinedStr) and node.values else node
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""


Rule = Callable[[File], Iterator[str]]
RULES: list[Rule] = [rows, outsiders, printing, docstrings, lengths, reports, paths]


def offences(file: File) -> list[str]:
    return [f"{file.where}: {wrong}" for rule in RULES for wrong in rule(file)]


def circles(root: Path) -> list[list[str]]:
    """The ways around on which files import one another."""
    graph = {file.name: {*file.imports()} & modules(root) - {file.name} for file in files(root)}
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            found.append([*way[way.index(name) :], name])
        elif name not in done:
            for other in sorted(graph[name]):
                visit(other, [*way, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    return found
