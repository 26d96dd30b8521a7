"""The rules of ``tests/layers.py``, asked of this tree; and what ``--help`` must not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import layers
import pytest

import matta_cli
from matta_cli.main import app

ROOT = Path(__file__).parents[1]
HEAVY = ["torch", "transformers", "timm", "datasets", "numpy", "pyarrow", "sklearn", "scipy"]
HEAVY += ["torch_pruning", "matta_adapters"]


@pytest.mark.parametrize("file", layers.files(ROOT), ids=lambda file: file.where)
def test_a_file_keeps_the_rules(file: layers.File) -> None:
    assert layers.offences(file) == []


def test_no_files_import_one_another_in_a_circle() -> None:
    assert layers.circles(ROOT) == []


def test_there_is_something_to_check() -> None:
    by_name = {file.name: file for file in layers.files(ROOT)}
    assert len(by_name) > 150
    assert "torch" in by_name["matta_cli.nested.view"].imports()
    assert "rich.console" in by_name["matta_cli.console"].imports()  # within a function
    # `from matta_cli.files import atomic` is of the module, not of the package
    assert "matta_cli.files.atomic" in by_name["matta_cli.conversion.convert"].imports()
    packages = {path.parent.name for path in (ROOT / "matta_cli").glob("*/__init__.py")}
    assert packages <= set(layers.ROW)
    assert not packages & set(matta_cli.__all__), "importing it would shadow the function"
    assert not (ROOT / "adapters" / "__init__.py").exists()


# A tree of small files, each with a sentence, and one that breaks a rule.
SOUND = {
    "matta_cli/__init__.py": "",
    "matta_cli/errors.py": "",
    "matta_cli/console.py": "def say():\n    import rich.console",
    "matta_cli/commands/__init__.py": "",
    "matta_cli/commands/do.py": "import typer\nfrom matta_cli import console",
    "matta_cli/files/__init__.py": "",
    "matta_cli/files/workspace.py": "def ta(root):\n    return root / 'ta'",
    "matta_cli/losses/__init__.py": "",
    "matta_cli/losses/rows.py": "from matta_cli import errors",
    "matta_cli/losses/more.py": "from matta_cli.losses import rows",
    "matta_cli/report/__init__.py": "",
    "matta_cli/report/schema.py": "def read(report):\n    return report.get('models')",
    "matta_cli/tasks/__init__.py": "",
    "matta_cli/tasks/task.py": "from matta_cli.losses import rows",
    "matta_cli/demo.py": "def f():\n    import matta_adapters.one",
    "adapters/matta_adapters/__init__.py": "",
    "adapters/matta_adapters/one.py": "from matta_cli.adapter import Adapter",
    "benchmarks/__init__.py": "",
    "benchmarks/one.py": "print(1)",
}
ROWS = "matta_cli/losses/rows.py"
TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "
BROKEN = {
    "upwards": (ROWS, "from matta_cli.tasks import task", "imports matta_cli.tasks.task, upwards"),
    "upwards in a function": (ROWS, "def f():\n    import matta_cli.tasks.task", "upwards"),
    "upwards for types": (ROWS, f"{TYPES}from matta_cli.tasks.task import T", "upwards"),
    "to the face": (ROWS, "from matta_cli import console", "imports matta_cli.console, upwards"),
    "to the API": (ROWS, "from matta_cli import convert", "imports matta_cli, upwards"),
    "sideways": (ROWS, "from matta_cli.files import workspace", "sideways"),
    "in the first row": ("matta_cli/adapter.py", "from matta_cli import errors", "sideways"),
    "relative": (ROWS, "from . import more", "a relative import"),
    "no row": ("matta_cli/odd.py", "", "odd has no row"),
    "typer": (ROWS, "def f():\n    import typer", "the engine imports typer"),
    "rich": (ROWS, "from rich.table import Table", "the engine imports rich.table"),
    "click": ("matta_cli/commands/do.py", "import click", "imports click"),
    "an adapter": (ROWS, "import matta_adapters.one", "the engine imports matta_adapters.one"),
    "in an adapter": (
        "adapters/matta_adapters/one.py",
        "def f():\n    from matta_cli.losses import rows",
        "an adapter imports matta_cli.losses.rows",
    ),
    "printing": (ROWS, "def f():\n    print(1)", "line 3 prints"),
    "an adapter prints": ("adapters/matta_adapters/one.py", "print(1)", "line 2 prints"),
    "an init": ("matta_cli/losses/__init__.py", "X = 1", "an __init__ with more than a docstring"),
    "a long file": ("benchmarks/one.py", "x = 1\n" * 400, "401 lines"),
    "a long function": (ROWS, "def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
    "a long line": ("adapters/matta_adapters/one.py", f"x = '{'x' * 95}'", "has 101 columns"),
    "fmt": ("benchmarks/one.py", "x = 1  # " + "fmt: skip", "line 2 is not formatted"),
    "a report": (ROWS, "def f(r):\n    return r.get('metrics', [])", ".get('metrics')"),
    "a path": (ROWS, "def f(out):\n    return out / 'ta' / 'x'", "spells the folder 'ta'"),
    "a deeper path": (ROWS, "def f(out):\n    return out / 'run/x'", "spells the folder 'run/x'"),
    "a path by Path": (ROWS, "def f(o):\n    return Path(o, 'baselines')", "folder 'baselines'"),
    "a path in a text": (ROWS, "def f(x):\n    return f'students/{x}'", "folder 'students/'"),
}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, code in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f'"""A sentence."""\n{code}')
    return root


def test_a_sound_tree_breaks_no_rule(tmp_path: Path) -> None:
    root = tree(tmp_path, SOUND)
    assert [wrong for file in layers.files(root) for wrong in layers.offences(file)] == []
    assert layers.circles(root) == []


@pytest.mark.parametrize("what", BROKEN)
def test_each_rule_is_seen_failing(what: str, tmp_path: Path) -> None:
    name, code, said = BROKEN[what]
    root = tree(tmp_path, {**SOUND, name: code})
    (wrong,) = (wrong for file in layers.files(root) for wrong in layers.offences(file))
    assert wrong.startswith(f"{name}: ") and said in wrong


def test_a_file_without_a_docstring_is_seen(tmp_path: Path) -> None:
    root = tree(tmp_path, SOUND)
    (root / ROWS).write_text("x = 1\n")
    (file,) = (file for file in layers.files(root) if file.where == ROWS)
    assert layers.offences(file) == [f"{ROWS}: has no docstring"]


@pytest.mark.parametrize("late", ["", "def f():\n    ", TYPES], ids=["at once", "late", "types"])
def test_a_circle_is_seen_of_any_kind(late: str, tmp_path: Path) -> None:
    """Also within a package, where rows say nothing."""
    root = tree(tmp_path, {**SOUND, ROWS: f"{late}from matta_cli.losses import more"})
    (circle,) = layers.circles(root)
    assert set(circle) == {"matta_cli.losses.rows", "matta_cli.losses.more"}


def test_help_imports_nothing_heavy() -> None:
    """Neither does the help of any command."""
    names = [command.callback.__name__ for command in app.registered_commands]
    assert len(names) == 12
    lines = [["--version"], ["--help"], ["recipe", "--help"], ["recipe", "show", "--help"]]
    code = (
        "import sys\n"
        "from matta_cli.main import app\n"
        f"for words in {lines + [[name, '--help'] for name in names]!r}:\n"
        "    try:\n        app(words)\n"
        "    except SystemExit as stop:\n        assert not stop.code, words\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_json_on_stdout_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    from matta_cli import console

    console.data({"a": [1.5, float("nan")], "b": (float("inf"), 2)})
    read = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert read == {"a": [1.5, None], "b": [None, 2]}
