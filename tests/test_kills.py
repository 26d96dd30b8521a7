"""A killed process loses nothing and leaves nothing: the next command finds a whole folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from kills import killed_at, leftovers
from test_runs import ranker, table
from typer.testing import CliRunner

from matta_cli.errors import MattaError
from matta_cli.files import atomic
from matta_cli.files.workspace import Workspace
from matta_cli.main import app
from matta_cli.training import run
from matta_cli.training.setup import opened


def write(path: Path, text: str) -> None:
    with atomic.atomic_folder(path, overwrite=True) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "b.txt").write_text(text)


def content(path: Path) -> list[str]:
    return [(path / name).read_text() for name in ("a.txt", "b.txt")]


def test_a_folder_that_is_replaced_is_whole_whenever_that_is_killed(tmp_path):
    space = Workspace(tmp_path)
    seen = set()
    for moment in range(1000):
        write(space.ta, "old")
        killed = killed_at(moment, lambda: write(space.ta, "new"), tmp_path)
        space.mend()
        assert leftovers(tmp_path) == []
        seen.add(tuple(content(space.ta)))
        if not killed:
            break
    assert moment > 5 and seen == {("old", "old"), ("new", "new")}


def test_a_file_that_is_replaced_is_whole_whenever_that_is_killed(tmp_path):
    path, seen = tmp_path / "report.json", set()
    for moment in range(1000):
        atomic.atomic_write(path, "old")
        killed = killed_at(moment, lambda: atomic.atomic_write(path, "new"), tmp_path)
        atomic.sweep(tmp_path)
        assert leftovers(tmp_path) == []
        seen.add(path.read_text())
        if not killed:
            break
    assert moment > 3 and seen == {"old", "new"}


@pytest.mark.parametrize("at", ["shutil.rmtree", "filelock.FileLock.acquire"])
def test_ctrl_c_leaves_nothing_while_a_file_begins_or_ends(tmp_path, monkeypatch, at):
    owner, name = at.rsplit(".", 1)
    of: Any = shutil if owner == "shutil" else FileLock
    usual = getattr(of, name)

    def pressed(*given: Any, **more: Any) -> Any:
        monkeypatch.setattr(of, name, usual)
        raise KeyboardInterrupt

    monkeypatch.setattr(of, name, pressed)
    with pytest.raises(KeyboardInterrupt):
        atomic.atomic_write(tmp_path / "report.json", "new")
    assert leftovers(tmp_path) == []


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    space = Workspace(tmp_path)
    with atomic.atomic_folder(space.ta) as folder:
        (folder / "a.txt").write_text("new")
        (folder / "b.txt").write_text("new")
        assert not killed_at(1000, space.mend, tmp_path)  # another process
        space.mend()
    assert content(space.ta) == ["new", "new"]


def test_what_another_process_has_finished_meanwhile_is_not_replaced(tmp_path):
    space = Workspace(tmp_path)

    def both() -> None:
        with atomic.atomic_folder(space.ta) as folder:
            (folder / "a.txt").write_text("second")
            write(space.ta, "first")

    with pytest.raises(MattaError, match="holds finished work; pass --overwrite"):
        both()
    assert content(space.ta) == ["first", "first"] and leftovers(tmp_path) == []


@pytest.mark.slow
def test_a_run_that_another_process_has_finished_meanwhile_is_kept(begun, tmp_path, monkeypatch):
    before, after = begun("distill")
    shutil.copytree(before, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")

    def slow(*given: Any) -> Any:
        setup = opened(*given)
        shutil.copytree(after / "matta-out" / "run", "matta-out/run")
        return setup

    monkeypatch.setattr(run, "opened", slow)
    done = CliRunner().invoke(app, COMMANDS["distill"][1].split())
    assert done.exit_code == 1 and "matta-out/run holds finished work" in done.stderr
    assert differing(state(Path.cwd()), state(after)) == []


def test_a_ta_that_another_process_replaces_meanwhile_is_not_trained(begun, tmp_path, monkeypatch):
    shutil.copytree(begun("distill")[0], tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")

    def slow(*given: Any) -> Any:
        setup = opened(*given)
        typed("convert model.pt --expand 3 --overwrite")
        return setup

    monkeypatch.setattr(run, "opened", slow)
    done = CliRunner().invoke(app, COMMANDS["distill"][1].split())
    assert done.exit_code == 1 and "has written to matta-out meanwhile" in done.stderr
    assert not Path("matta-out/run").exists()


# Whole commands, on a ranker of 4 features. A kill at each change of the disk is too many for a
# suite that runs often: there it is some of them, and all of them in the slow one.

TRAIN = "--data train.csv --batch-size 8 --allow-weak-teacher"
# what is typed -> after what, and the line
COMMANDS = {
    "convert": ("", "convert model.pt --expand 2"),
    "convert anew": ("distill", "convert model.pt --expand 3 --overwrite"),
    "distill": ("convert", f"distill --teacher teacher.pt --steps 4 --eval-every 2 {TRAIN}"),
    "distill anew": (
        "distill",
        f"distill --teacher teacher.pt --steps 2 --eval-every 1 --overwrite {TRAIN}",
    ),
    "teach": ("convert", f"teach --teacher teacher.pt --to said {TRAIN}"),
    "teach anew": ("teach", f"teach --teacher model.pt --to said --overwrite {TRAIN}"),
    "search": ("distill", "search --target-params 60 --trials 4"),
    "export": ("distill", "export --widths 0.5,1"),
    "export anew": ("export", "export --widths 0.25,1 --overwrite"),
    "report": ("export", "report --baselines ground-truth"),
}
# what differs from run to run: times, and what is counted by times
_TIMED = {
    "seconds",
    "rows_per_second",
    "tokens_per_second",
    "waiting",
    "created",
    "latency",
    "prefill",
    "decode",
    "peak_memory",
    "evaluated",
}
_TOLD = (".html", ".md", "SHA256SUMS")


def typed(line: str) -> None:
    """A command, in this process; one that does not end well is an error with what it said."""
    with contextlib.suppress(MattaError):
        done = CliRunner().invoke(app, line.split())
        assert done.exit_code == 0, done.output


def again(line: str) -> None:
    """The same command once more, after a kill: it says itself where it goes on otherwise."""
    done = CliRunner().invoke(app, line.split())
    if "pass --resume to go on with it" in done.output:
        return typed(f"{line} --resume")
    finished = "finished" in done.output and "--overwrite" in done.output
    assert done.exit_code == 0 or finished, done.output
    return None


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in _TIMED}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def state(folder: Path) -> dict[str, Any]:
    """What lies in a folder, by path, without times."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name == ".lock":
            continue
        if name.endswith(_TOLD):
            found[name] = None
        elif path.suffix in (".json", ".jsonl") and path.name != "trials.jsonl":
            lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
            found[name] = [without_times(json.loads(line)) for line in lines]
        else:
            found[name] = None if path.name == "trials.jsonl" else path.read_bytes()
    return found


def differing(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    return sorted(name for name in {*one, *two} if one.get(name, 0) != two.get(name, 0))


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Of each command a folder that has what it needs, and one in which it has run undisturbed."""
    home, before = tmp_path_factory.mktemp("begun"), Path.cwd()
    start = home / "start"
    start.mkdir()
    table(start / "train.csv", rows=120)
    torch.save(ranker().state_dict(), start / "model.pt")
    torch.save(ranker(1).state_dict(), start / "teacher.pt")
    made = {"": (start, start)}

    def run(name: str) -> tuple[Path, Path]:
        if name not in made:
            earlier, line = COMMANDS[name]
            there = run(earlier)[1]
            shutil.copytree(there, home / name)
            os.chdir(home / name)
            typed(line)
            os.chdir(before)
            made[name] = there, home / name
        return made[name]

    return run


@pytest.mark.parametrize("name", ["convert", "distill", "teach", "search"])
def test_a_command_that_was_killed_is_typed_again(begun, tmp_path, monkeypatch, name):
    kill_and_type_again(begun(name), COMMANDS[name][1], tmp_path, monkeypatch, range(4, 40, 11))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_was_killed_at_any_moment_is_typed_again(begun, tmp_path, monkeypatch, name):
    # what starts processes of its own takes seconds at each moment
    moments = range(0, 10_000, 7 if name in ("export", "export anew", "report") else 1)
    last = kill_and_type_again(begun(name), COMMANDS[name][1], tmp_path, monkeypatch, moments)
    assert 10 < last < 9_000


def kill_and_type_again(
    folders: tuple[Path, Path], line: str, home: Path, monkeypatch: Any, moments: Iterable[int]
) -> int:
    """Kill a command at these moments, each time from the start. Returns the last one it had."""
    start, end = folders
    wanted, moment = state(end), 0
    for moment in moments:
        folder = home / str(moment)
        shutil.copytree(start, folder)
        monkeypatch.chdir(folder)
        if not killed_at(moment, lambda: typed(line), folder):
            break
        again(line)
        assert differing(state(folder), wanted) == [], f"killed at change {moment}"
        assert leftovers(folder) == [], f"killed at change {moment}"
        shutil.rmtree(folder)
    return moment
