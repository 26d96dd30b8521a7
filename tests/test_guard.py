"""What goes wrong that nobody foresaw, and Ctrl-C where no step can end: one sentence each."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from test_cli import ENVIRONMENT
from typer.testing import CliRunner

from matta_cli import console
from matta_cli.commands import options
from matta_cli.main import app


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C is heard, also where whoever started the tests ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_mistake_of_matta_is_one_sentence_and_a_file(monkeypatch, tmp_path):
    def broken(*_: object) -> None:
        raise TypeError("a mistake\nof its own")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(options, "resolved", broken)
    done = CliRunner().invoke(app, ["recipe", "show"])
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1
    said = "This is a mistake of matta itself (TypeError: a mistake of its own): please report it"
    assert said in done.stderr
    kept = Path(re.search(r"with the file (\S+),", done.stderr)[1]).read_text()
    assert "Traceback" in kept and "in broken" in kept


def test_what_fails_within_a_model_is_the_models(monkeypatch, tmp_path):
    """A GPT-2 whose config.json had -1 heads was called a mistake of matta."""
    from torch import nn, ones

    def runs(*_: object) -> None:
        nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 5))(ones(1, 2))

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(options, "resolved", runs)
    done = CliRunner().invoke(app, ["recipe", "show"])
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("Error: The model fails in its Linear (RuntimeError: mat1 and")
    assert "mistake of matta" not in done.stderr and list(tmp_path.glob("matta-error-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_that_a_library_makes_another_error_of_is_a_stop(capsys, number):
    before = signal.getsignal(number)

    def importing() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(1)
        except KeyboardInterrupt:
            raise AttributeError("module 'numpy' has no attribute 'nonzero'") from None

    with pytest.raises(SystemExit) as stop:
        console.guarded(importing)()
    assert stop.value.code == 128 + number
    assert capsys.readouterr().err == "matta: Stopped; nothing half-done was left behind.\n"
    assert signal.getsignal(number) is before


def test_ctrl_c_while_a_line_is_taken_apart(monkeypatch):
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(typer.core.TyperGroup, "invoke", pressed)
    done = CliRunner().invoke(app, ["recipe", "show"])
    assert done.exit_code == 130
    assert done.stderr == "matta: Stopped before anything was begun.\n"


def test_ctrl_c_while_the_command_line_is_imported(tmp_path):
    (tmp_path / "typer.py").write_text("import time; print('here', flush=True); time.sleep(60)")
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    with subprocess.Popen(
        [sys.executable, "-m", "matta_cli", "export"],
        env={**ENVIRONMENT, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT)
    assert said == "matta: Stopped before anything was begun.\n"


def test_what_a_terminal_obeys_is_written_out(capsys):
    console.say("a name \x1b[31mred\x1b[0m, \x9b2J and \u202eturned")
    console.table(["\x1b]0;title\x07"], [["[bold]\x1b[2J[/bold]\nnext"]])
    shown = capsys.readouterr()
    assert shown.err == "a name \\x1b[31mred\\x1b[0m, \\x9b2J and \\u202eturned\n"
    assert shown.out == "\\x1b]0;title\\x07\n[bold]\\x1b[2J[/bold] next\n"


def test_a_word_without_end_is_not_shown_whole(capsys):
    console.say(f"{'b' * 4_000} is a name, and {'a' * 100_000} is no number in 'rows.svm'.")
    shown = capsys.readouterr().err
    assert f"{'b' * 4_000} is a name, and a" in shown and "a... is no" not in shown
    assert len(shown) < 4_500 and shown.endswith("aaa is no number in 'rows.svm'.\n")


def test_an_error_is_one_line_whatever_is_in_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("matta.toml").write_text('["\\u001b[31mx\\nError: no"]\na = 1\n')
    done = CliRunner().invoke(app, ["recipe", "show"])
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1
    assert "\x1b" not in done.stderr and "\\x1b[31mx" in done.stderr


def test_the_home_folder_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "matta.toml").write_text("[distill]\nsteps = 77\n")
    done = CliRunner().invoke(app, ["recipe", "show", "--out", "~", "--changed"])
    assert done.exit_code == 0 and "distill.steps\t77" in done.stdout
