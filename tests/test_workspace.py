"""One meaning of the last sound checkpoint, whoever asks for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from matta_cli.errors import MattaError
from matta_cli.files import atomic
from matta_cli.files.workspace import Workspace
from matta_cli.models.folders import ta_folder


@pytest.fixture
def space(tmp_path) -> Workspace:
    """A workspace whose run has the checkpoints 2 and 4, the last of which is damaged."""
    space = Workspace(tmp_path / "out")
    space.ta.mkdir(parents=True)
    (space.ta / "matta.json").write_text("{}")
    for step in (2, 4):
        folder = space.checkpoint(step)
        folder.mkdir(parents=True)
        (folder / "trainer.json").write_text(
            json.dumps({"step": step, "seconds": 1.0, "recipe": "", "optimizer": {}})
        )
        (folder / "model.safetensors").write_text(f"weights of step {step}")
        atomic.seal(folder)
    damage(space.checkpoint(4))
    return space


def damage(folder: Path) -> None:
    (folder / "model.safetensors").write_text("weights of stop 4")


def test_a_damaged_checkpoint_stands_for_nothing(space):
    sound = space.checkpoint(2)
    assert space.sound() == (sound, [space.checkpoint(4)])
    assert space.trained("auto") == (sound, [space.checkpoint(4)])
    assert space.current_ta() == sound
    assert ta_folder(space.root) == sound
    damage(sound)
    assert space.current_ta() == space.ta  # as it was converted


def test_a_damaged_checkpoint_that_is_asked_for_is_refused(space):
    with pytest.raises(MattaError, match=r"step-4 is damaged; .*run has step-2, step-4"):
        space.trained("step-4")
    with pytest.raises(MattaError, match=r"step-6 is not there"):
        space.trained("step-6")
