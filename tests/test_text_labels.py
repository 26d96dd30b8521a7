"""Labels of texts that could be read in two ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from matta_cli.errors import MattaError
from matta_cli.settings.recipe import DataSettings, Recipe
from matta_cli.tasks.task import task
from tests.text_models import bert, labels


def of_texts(folder: Path, model: Any, label: list[Any]) -> Any:
    path = folder / "a.jsonl"
    rows = ({"text": f"the film {k}", "label": own} for k, own in enumerate(label))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = task("text_classification", Recipe(data=DataSettings(str(path), held_out=str(path))))
    data = made.data(folder, model)
    return data.train.batch(range(len(label)))["label"].tolist(), " ".join(data.notes)


def test_which_of_two_labels_is_there(tmp_path):
    """Such lists name both labels each time, if they name any."""
    model = bert(tmp_path, **labels("bad", "good"))
    label, notes = of_texts(tmp_path, model, [[1, 0], [0, 1]] * 4)
    assert label == [[1, 0], [0, 1]] * 4 and "one label, in a list: it is read as one of" in notes
    model.config.problem_type = "single_label_classification"
    assert of_texts(tmp_path, model, [[1, 0], [0, 1]] * 4)[0] == [0, 1] * 4
    model = bert(tmp_path, problem_type="multi_label_classification", **labels("a", "b", "c"))
    assert of_texts(tmp_path, model, [[0, 2], [1]] * 4)[0] == [[1, 0, 1], [0, 1, 0]] * 4


def test_numbers_that_may_be_those_in_the_names_are_refused(tmp_path):
    stars = bert(tmp_path, **labels("1 star", "2 stars", "3 stars"))
    with pytest.raises(MattaError, match=r"label 1 may be the model's '2 stars', or one with 1 in"):
        of_texts(tmp_path, stars, [1, 2] * 4)
    assert of_texts(tmp_path, stars, [0, 1, 2] * 4)[0] == [0, 1, 2] * 4
    assert of_texts(tmp_path, stars, ["1 star", "3 stars"] * 4)[0] == [0, 2] * 4
    plain = bert(tmp_path, **labels("a1", "b", "c3"))
    assert of_texts(tmp_path, plain, [1, 2] * 4)[0] == [1, 2] * 4


def test_numbers_among_names_are_told_so(tmp_path):
    model = bert(tmp_path, **labels("bad", "good"))
    with pytest.raises(
        MattaError, match=r"holds 0 in .*, a number, while others are names \('bad'"
    ):
        of_texts(tmp_path, model, ["bad", 0] * 4)
