"""What ``pip install matta`` brings runs the three lines; the rest is asked for by its extra."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import layers
import numpy as np
import pytest
from test_cli import LINES, TOML, prepare

from matta_cli.errors import MattaError, extra
from matta_cli.settings.recipe import ExportSettings
from matta_cli.settings.resolve import tomllib
from matta_cli.students import student
from matta_cli.tasks import scores
from matta_cli.tasks.ranking import libsvm
from matta_cli.tasks.token_classification import task as token_classification

ROOT = Path(__file__).parents[1]

OURS = {"dev", "docs"}  # for who works on matta itself

# Packages of extras, and what else they bring, are not there for Python (nor for its children).
GONE = """
from importlib.machinery import PathFinder
gone, usual = set({gone!r}), PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in gone else usual(name, path, target)
PathFinder.find_spec = staticmethod(find_spec)
"""
# What is typed -> the extra that is asked for.
MISSING = {
    "distill --teacher gpt2-large --optimizer soap --overwrite": "optimizers",
    "distill --teacher gpt2-large --log-to tensorboard --overwrite": "tensorboard",
    "distill --teacher gpt2-large --log-to wandb --overwrite": "wandb",
    "export --widths 0.5 --format onnx --overwrite": "onnx",
    "export --target-params 50% --name small": "search",
    "search --target-params 50%": "search",
    "eval --tasks lambada_openai": "harness",
    "convert model.gguf --out other": "gguf",
    "demo --adapter mlp_ranker": "demo",
    "demo --adapter vit": "demo",
}
CODE = """
import contextlib, io, json, sys
from pathlib import Path
from matta_cli.main import app
found = []
for line in json.load(sys.stdin):
    said, code = io.StringIO(), None
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            app(line.split())
        except SystemExit as stop:
            code = stop.code
    found.append([code, said.getvalue()])
    if line.startswith("convert model.pt"):
        Path("matta.toml").write_text(sys.argv[1])
print(json.dumps(found))
"""


def extras() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["optional-dependencies"]


def packages() -> set[str]:
    """What the extras bring, by the names that are imported."""
    lines = [line for name, own in extras().items() if name not in OURS for line in own]
    names = {line.partition(">")[0].replace("-", "_") for line in lines}
    return {"sklearn" if name == "scikit_learn" else name for name in names}


def run(folder: Path, lines: Sequence[str]) -> None:
    """Type these lines where no extra is installed: the three, and others that ask for one."""
    gone = packages()
    (folder / "sites").mkdir()
    (folder / "sites" / "sitecustomize.py").write_text(GONE.format(gone=sorted(gone)))
    here = folder / "here"
    here.mkdir()
    prepare(here)
    (here / "model.gguf").write_bytes(b"GGUF")
    path = [str(folder / "sites"), *filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)]
    more = {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, TOML],
        cwd=here,
        env={**os.environ, **more},
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = dict(zip(lines, json.loads(done.stdout), strict=True))
    for line in LINES:
        assert not found[line][0], (line, found[line][1])
    assert (here / "matta-out" / "report.html").exists()
    for line in lines[len(LINES) :]:
        code, said = found[line]
        errors = [own for own in said.splitlines() if own.startswith("Error: ")]
        assert code == 1 and len(errors) == 1, (line, said)
        wanted = f"pip install 'matta[{MISSING[line]}]'"
        assert wanted in errors[0].replace('"', "'"), (line, errors)
        assert "Writing" not in said, "it is said before the work"


@pytest.mark.slow
def test_the_core_runs_the_three_lines_and_each_missing_extra_is_one_sentence(
    tmp_path: Path,
) -> None:
    run(tmp_path, [*LINES, *MISSING])
    by_themselves = {"tagging", "quantize", "ranking"}
    assert {*MISSING.values(), *by_themselves} == {*extras()} - OURS, "every extra is asked for"


def test_spans_ask_for_the_package_that_reads_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "seqeval", None)
    monkeypatch.delitem(sys.modules, "seqeval.metrics.sequence_labeling", raising=False)
    monkeypatch.delitem(sys.modules, "seqeval.metrics", raising=False)
    with pytest.raises(MattaError, match=r"pip install 'matta\[tagging\]'"):
        token_classification._entities()


def test_queries_and_libsvm_ask_for_the_package_that_scores_and_reads_them(monkeypatch):
    for name in ("sklearn", "sklearn.metrics", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MattaError, match=r"^NDCG@10 needs .*sklearn: pip install 'matta\[ranking\]'"
    ):
        scores._ndcg(np.array([0.5, 0.1]), np.array([1, 0]))
    with pytest.raises(MattaError, match=r"^Reading 'a.svm', .*pip install 'matta\[ranking\]'"):
        libsvm.read(Path("a.svm"))


def test_a_format_asks_for_its_packages_before_anything_is_written(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    student.check(ExportSettings(format=["stock", "pt2"]))
    with pytest.raises(MattaError, match=r"^--format onnx needs .*pip install 'matta\[onnx\]'"):
        student.check(ExportSettings(format=["stock", "onnx"]))


def imported(file: layers.File) -> Iterator[str]:
    """The packages that a file imports as soon as it is imported, types aside."""
    for node in file.tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in getattr(node, "names", [])]
            yield from [node.module or ""] if isinstance(node, ast.ImportFrom) else names


def test_nothing_of_an_extra_is_imported_before_it_is_used() -> None:
    gone = packages()
    assert {"optuna", "gguf"} <= gone
    files = [file for file in layers.files(ROOT) if not file.where.startswith("benchmarks")]
    early = [(f.where, name) for f in files for name in imported(f) if name.split(".")[0] in gone]
    assert not early


def test_a_missing_package_is_one_sentence_and_a_broken_one_is_not(tmp_path: Path, monkeypatch):
    wanted = "Reading 'x' needs the package nowhere_to_be: pip install 'matta\\[gguf\\]'"
    with pytest.raises(MattaError, match=wanted):
        extra("nowhere_to_be.parquet", "Reading 'x'", "gguf")
    (tmp_path / "broken_here.py").write_text("import nowhere_to_be")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be"):
        extra("broken_here", "Reading 'x'", "gguf")
