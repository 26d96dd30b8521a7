"""A command that is stopped at a random moment, and typed again, ends as one undisturbed."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from random import Random

import pytest
import torch
from stops import ran, stopped
from test_cli import gpt2, tokenizer_of
from test_kills import COMMANDS as RANKED
from test_kills import TRAIN
from test_runs import ranker, table

STOPS = int(os.environ.get("MATTA_STOPS", "150"))
LONGEST = 1800  # seconds after which no other command is stopped

_SAID = "--teacher words --data text.txt --batch-size 4 --allow-weak-teacher"
# what is typed -> after what, and the line; "" and "text" are what a user begins with
COMMANDS = {
    **RANKED,
    "resume": ("distill", f"distill --teacher teacher.pt --steps 6 --resume {TRAIN}"),
    "export programs": ("distill", "export --widths 0.5 --format pt2"),
    "search anew": ("search", "search --target-params 50 --trials 4"),
    "export found": ("search", "export --widths 0.5 --target-params 60"),
    "eval": ("export", "eval matta-out@0.5 model.pt --data train.csv"),
    "words convert": ("words", "convert words --expand 2 --data text.txt"),
    "words distill": ("words convert", f"distill --steps 3 --eval-every 1 {_SAID}"),
    "words teach": ("words convert", f"teach --to said {_SAID}"),
    "words export": ("words distill", "export --widths 0.5,1 --data text.txt"),
}


class Begun:
    """Of each command a folder that has what it needs, and one in which it ran undisturbed."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.made: dict[str, tuple[Path, Path, float]] = {}
        for name, make in (("", _ranked), ("words", _worded)):
            folder = home / (name or "ranked")
            folder.mkdir(parents=True)
            make(folder)
            self.made[name] = folder, folder, 0.0

    def __call__(self, name: str) -> tuple[Path, Path, float]:
        """The folder before, the one after, and how long the command takes."""
        if name not in self.made:
            earlier, line = COMMANDS[name]
            before, after = self(earlier)[1], self.home / f"after {name}"
            for _ in range(2):  # the first one imports what the others have by then
                shutil.rmtree(after, ignore_errors=True)
                shutil.copytree(before, after)
                done = ran(after, line, self.home / "said")
                assert done.code == 0, f"{name}: {done.said}"
            self.made[name] = before, after, done.seconds
        return self.made[name]


def _ranked(folder: Path) -> None:
    table(folder / "train.csv", rows=120)
    torch.save(ranker().state_dict(), folder / "model.pt")
    torch.save(ranker(1).state_dict(), folder / "teacher.pt")


def _worded(folder: Path) -> None:
    text = "\n\n".join(f"The {n}th paragraph of a text says what {n * n} is." for n in range(80))
    (folder / "text.txt").write_text(text)
    gpt2(320).save_pretrained(folder / "words")
    tokenizer_of(text).save_pretrained(folder / "words")


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    return Begun(tmp_path_factory.mktemp("begun") / "here")


@pytest.mark.slow
@pytest.mark.parametrize("by", ["SIGKILL", "SIGINT"])
def test_a_command_that_was_stopped_at_a_random_moment_is_typed_again(begun, tmp_path, by):
    random, wrong, began = Random(0), [], time.monotonic()
    names = list(COMMANDS)
    for number in range(STOPS):
        if time.monotonic() - began > LONGEST:
            break
        name = names[number % len(names)]
        before, after, seconds = begun(name)
        line, copy = COMMANDS[name][1], tmp_path / str(number)
        signal_ = getattr(signal, by)
        wrong += [stopped(before, after, line, copy, random, 1.05 * seconds, signal_)]
    assert [why for why in wrong if why] == []
