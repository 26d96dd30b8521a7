"""The first five minutes: what `matta` says of itself, and what it refuses within a moment."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import matta_cli
from matta_cli.commands import early
from matta_cli.errors import MattaError
from matta_cli.main import app
from matta_cli.settings.recipe import Recipe

# What is typed wrong -> what is said of it.
MISTYPED = {
    "convert nothing.pt": "There is no file or folder 'nothing.pt'",
    "convert ./nothing --adapter gpt2": "There is no file or folder './nothing'",
    "convert gpt2 --adapter gtp2": "There is no adapter 'gtp2'; did you mean 'gpt2'?",
    "convert gpt2 --task rankin": "There is no task 'rankin'; did you mean 'ranking'?",
    "convert gpt2 --data no.txt": "There is no file or folder 'no.txt': check --data",
    "convert mine:build --weights no.pt": "There is no file or folder 'no.pt'",
    "distill nowhere --teacher gpt2": "There is no TA folder 'nowhere/ta'",
    "distill here --teacher ./nothing": "There is no file or folder './nothing'",
    "distill here --teacher gpt2 --data no.txt": "There is no file or folder 'no.txt'",
    "distill here --teacher gpt2 --held-out no.txt": "'no.txt': check --held-out",
    "teach nowhere --teacher gpt2": "There is no TA folder 'nowhere/ta'",
    "export nowhere": "There is no TA folder 'nowhere/ta'",
    "export here": "There is no trained TA in here/run: run `matta distill here` first",
    "search here --target-params 1M": "There is no trained TA in here/run",
    "report nowhere": "There is no report in nowhere: run `matta export nowhere` first",
    "inspect nowhere": "There is no TA folder 'nowhere'",
    "eval ./nothing": "There is no file or folder './nothing'",
    "eval here gpt2 --teacher ./nothing": "There is no file or folder './nothing'",
    "eval --out nowhere": "There is nothing to evaluate: name models, or export Students",
    "eval gpt2 --task rankin": "There is no task 'rankin'; did you mean 'ranking'?",
    "push nowhere --to me/gpt2": "There is no folder 'nowhere': pass those of exported Students",
    "push --out nowhere --to me/gpt2": "There are no Students in nowhere/students",
    "demo --adapter gtp2": "There is no demo of 'gtp2': choose from gpt2, vit, mlp_ranker",
}


def typed(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "matta_cli", *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_alone_it_says_what_it_does_and_what_to_type() -> None:
    done = typed()
    assert done.returncode == 0 and done.stderr.splitlines()[-1] == "Next: matta demo"
    lines = [line.strip() for line in done.stdout.splitlines()]
    shown = [line for line in lines if line.startswith("matta ")][1:]
    assert [line.split("    ")[0].split()[1] for line in shown[:3]] == [
        "convert",
        "distill",
        "export",
    ]
    assert shown[0].startswith("matta convert model.pt --adapter gpt2 ")
    assert max(map(len, done.stdout.splitlines())) <= 100
    known = {command.callback.__name__ for command in app.registered_commands} | {"--help"}
    assert {line.split()[1] for line in shown} <= known, "what is shown is a command"


@pytest.mark.slow
def test_the_doctor_says_what_a_bug_report_needs(tmp_path: Path) -> None:
    """Also where the hub does not answer, which it waits for but a moment."""
    own = tmp_path / "cache"
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        home = {"HF_HUB_CACHE": str(own), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address}
        done = typed("doctor", "--json", **home)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["matta"] == matta_cli.__version__
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert found["devices"][0].startswith(f"cpu: {os.cpu_count()} cores")
    assert found["hub"]["address"] == address and found["hub"]["reached"] is False
    assert found["cache"]["the hub"]["folder"] == str(own) and not own.exists()
    wanted = {package for package in ("optuna", "onnxruntime") if find_spec(package)}
    lacks = {package for extra in found["extras"].values() for package in extra["missing"]}
    assert not wanted & lacks and "dev" not in found["extras"]
    assert done.stderr.splitlines()[-1] == "Next: matta demo"


def test_the_doctor_asks_no_hub_where_that_is_forbidden(monkeypatch, capsys) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit):
        app(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    rows = dict(line.split("\t") for line in lines if line.count("\t") == 1)
    assert rows["hub"].endswith("not asked, HF_HUB_OFFLINE is set") and "extra onnx" in rows
    assert lines[1] == f"matta\t{matta_cli.__version__}"


def test_what_is_not_there_is_said_before_torch_is_imported(tmp_path: Path) -> None:
    """Each in a third of a second of a processor, measured; bounded here by one."""
    (tmp_path / "here" / "ta").mkdir(parents=True)
    code = (
        "import contextlib, io, json, sys, time\n"
        "from matta_cli.main import app\n"
        "found = []\n"
        "for line in json.load(sys.stdin):\n"
        "    said, started, code = io.StringIO(), time.process_time(), None\n"
        "    with contextlib.redirect_stderr(said):\n"
        "        try:\n            app(line.split())\n"
        "        except SystemExit as stop:\n            code = stop.code\n"
        "    took = time.process_time() - started\n"
        "    found.append([code, said.getvalue(), took, 'torch' in sys.modules])\n"
        "print(json.dumps([time.process_time(), found]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        input=json.dumps(list(MISTYPED)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    whole, found = json.loads(done.stdout)
    for line, (code, said, took, heavy) in zip(MISTYPED, found, strict=True):
        errors = [text for text in said.splitlines() if text.startswith("Error: ")]
        assert code == 1 and len(errors) == 1 and MISTYPED[line] in errors[0], (line, said)
        assert not heavy, f"{line} imports torch before it says so"
        assert took < 1, (line, took)
    imports = whole - sum(took for _, _, took, _ in found)
    assert imports < 1, imports


def test_data_that_are_not_read_need_not_be_there(tmp_path: Path) -> None:
    """A Student can be measured where the data that it was trained on are not."""
    recipe = Recipe()
    recipe.data.train, recipe.data.held_out = str(tmp_path / "gone.txt"), str(tmp_path)
    early.data(recipe)
    with pytest.raises(MattaError, match=r"gone\.txt"):
        early.data(recipe, training=True)
    recipe.data.held_out = ""
    with pytest.raises(MattaError, match=r"gone\.txt"):
        early.data(recipe)
