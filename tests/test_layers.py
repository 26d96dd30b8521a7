"""Who may import whom: commands -> engine -> contract <- adapters, and nothing heavy before it is
needed.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "matta_cli"
ADAPTERS = sorted((ROOT / "adapters" / "matta_adapters").glob("*.py"))
# what may know of a command line
FRONT = {"matta_cli.console", "matta_cli.main", "matta_cli.__main__"}
HEAVY = (
    "torch",
    "transformers",
    "timm",
    "datasets",
    "numpy",
    "pyarrow",
    "sklearn",
    "torch_pruning",
    "matta_adapters",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
ENGINE = {
    n: p for n, p in MODULES.items() if n not in FRONT and not n.startswith("matta_cli.commands")
}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def names_of(node: ast.AST, path: Path) -> set[str]:
    """The modules that an import statement names, absolutely."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if not isinstance(node, ast.ImportFrom):
        return set()
    assert node.level == 0, f"{path}: relative imports hide who imports whom"
    base = node.module or ""
    inner = {f"{base}.{alias.name}" for alias in node.names} & set(MODULES)
    return inner or {base}  # `from matta_cli import data` names matta_cli.data


def imports(path: Path) -> set[str]:
    """Every module imported anywhere in a file, inside functions too."""
    return {name for node in ast.walk(tree(path)) for name in names_of(node, path)}


def imports_on_import(path: Path) -> set[str]:
    """The modules imported while the file is being imported: not in functions, nor for type
    checkers only.
    """
    found, stack = set(), list(tree(path).body)
    while stack:
        node = stack.pop()
        found |= names_of(node, path)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            stack += node.orelse
            continue
        stack += ast.iter_child_nodes(node)
    return found


def within(names: set[str], *packages: str) -> set[str]:
    return {n for n in names if any(n == p or n.startswith(f"{p}.") for p in packages)}


def test_there_is_something_to_check():
    assert len(ENGINE) > 15 and len(ADAPTERS) >= 4
    assert "torch" in imports(MODULES["matta_cli.nested.view"]) and "rich.console" in imports(
        MODULES["matta_cli.console"]
    )
    assert "rich.console" not in imports_on_import(MODULES["matta_cli.console"])
    assert "matta_cli.files.atomic" in imports_on_import(
        MODULES["matta_cli.conversion.convert"]
    )  # `from matta_cli.files import atomic`


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda p: p.stem)
def test_adapters_import_only_the_contract(path):
    assert within(imports(path), "matta_cli") <= {"matta_cli.adapter", "matta_cli.errors"}


def test_the_contract_imports_nothing_of_matta():
    for name in ("matta_cli.adapter", "matta_cli.errors"):
        assert not within(imports(MODULES[name]), "matta_cli", "matta_adapters")


@pytest.mark.parametrize("name", ENGINE)
def test_engine_knows_no_command_line_and_no_adapter(name):
    found = imports(ENGINE[name])
    assert not within(found, "typer", "rich", "click", "matta_cli.commands", *FRONT)
    # a program that uses the engine; its ranker is built from the adapter's own class
    if name != "matta_cli.demo":
        assert not within(found, "matta_adapters")


@pytest.mark.parametrize("path", [*ENGINE.values(), *ADAPTERS], ids=lambda p: p.stem)
def test_engine_does_not_print(path):
    calls = [
        n for n in ast.walk(tree(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    ]
    assert not [n.lineno for n in calls if n.func.id == "print"]


def test_nobody_imports_click():
    for path in [*MODULES.values(), *ADAPTERS]:
        assert not within(imports(path), "click"), path


def test_no_import_cycles():
    graph = {
        name: within(imports_on_import(path), "matta_cli") - {name}
        for name, path in MODULES.items()
    }
    assert sum(map(len, graph.values())) > 20
    assert set(TopologicalSorter(graph).static_order()) >= set(MODULES)  # raises CycleError


def test_adapters_folder_is_no_package():
    assert not (ROOT / "adapters" / "__init__.py").exists()


def test_package_docstrings():
    for path in [*MODULES.values(), *ADAPTERS]:
        assert ast.get_docstring(tree(path)) or path.name == "__main__.py", path


@pytest.mark.parametrize("words", [["--help"], ["distill", "--help"], ["--version"]], ids=" ".join)
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys\n"
        "from matta_cli.main import app\n"
        f"try:\n    app({words!r})\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_json_on_stdout_has_no_nan(capsys):
    from matta_cli import console

    console.data({"a": [1.5, float("nan")], "b": (float("inf"), 2)})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": [1.5, None],
        "b": [None, 2],
    }
