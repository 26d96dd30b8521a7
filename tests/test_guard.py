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
from test_cli import ENVIRONMENT
from typer.testing import CliRunner

from matta_cli import console
from matta_cli.commands import options
from matta_cli.main import app


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


def test_ctrl_c_that_a_library_makes_another_error_of_is_a_stop(capsys):
    def importing() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            raise AttributeError("module 'numpy' has no attribute 'nonzero'") from None

    with pytest.raises(SystemExit) as stop:
        console.guarded(importing)()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "matta: Stopped; nothing half-done was left behind.\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


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
