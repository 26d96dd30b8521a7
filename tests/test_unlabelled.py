"""Rows without a label: followed by the Teacher alone, else left out and counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_adapters import images
from transformers import BertForTokenClassification

from matta_cli.conversion.convert import convert
from matta_cli.errors import MattaError
from matta_cli.losses.classes import IGNORED
from matta_cli.models.folders import load_ta
from matta_cli.models.load import load_model
from matta_cli.report.schema import ModelEntry, Role
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import task
from matta_cli.training.run import distill
from matta_cli.training.spent import Spent
from matta_cli.verdict import baselines
from tests.text_models import bert, labels

ALONE = {"teacher_mix": 1.0}
ROWS = [("the film was good", "good"), ("it was bad", ""), ("the book", "bad"), ("plot", "")]


def opened(name: str, model: Any, home: Any, distill: Any = None, **data: Any) -> Any:
    recipe = Recipe()
    recipe.update({"data": data, "distill": distill or {}}, "test")
    return task(name, recipe).data(home, model)


def table(path: Path, header: str, rows: Any) -> Path:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def noted(data: Any, sentence: str) -> bool:
    return any(sentence in note for note in data.notes)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    bert(tmp_path / "model", **labels("bad", "good"))
    return tmp_path / "model"


def of_texts(home: Path, distill: Any = None, **data: Any) -> Any:
    model, _ = load_model(str(home), "text_classification")
    return opened("text_classification", model, home, distill, **data)


def test_texts_without_a_label_are_followed_or_left_out(home: Path, tmp_path: Path) -> None:
    train = str(table(tmp_path / "train.csv", "text,label", ROWS * 5))
    data = of_texts(home, ALONE, train=train, held_out=train)
    assert data.train.batch(range(4))["label"].tolist() == [1, IGNORED, 0, IGNORED]
    assert data.unlabelled and len(data.held_out[0]) == 10
    assert noted(data, "10 of 20 texts have no 'label' (the first: line 3 of ")
    assert noted(data, "train.csv', to train on: 5 bad, 5 good.")
    assert noted(data, "all are learned from the Teacher alone")
    data = of_texts(home, train=train, held_out=train)
    assert len(data.train) == 10 and not data.unlabelled and noted(data, "and are left out.")
    assert data.train.keys([1]).tolist() == [2]  # as the user counts rows
    # what is held out of the same file has labels
    data = of_texts(home, ALONE, train=train)
    assert (len(data.train), len(data.held_out[0])) == (19, 1)
    assert data.held_out[0].batch([0])["label"] != IGNORED


def test_texts_without_a_column_of_labels(home: Path, tmp_path: Path) -> None:
    train = str(table(tmp_path / "train.csv", "text", [row[:1] for row in ROWS * 5]))
    test = str(table(tmp_path / "test.csv", "text,label", ROWS))
    data = of_texts(home, ALONE, train=train, held_out=test)
    assert len(data.train) == 20 and len(data.held_out[0]) == 2
    for settings, given, sentence in (
        ({}, test, "has no column 'label'; it has text.* Set distill.teacher_mix = 1"),
        (ALONE, train, "has no column 'label'.*Measuring needs labels"),
        (ALONE, "", "has no column 'label'.*pass --held-out with some"),
    ):
        with pytest.raises(MattaError, match=sentence):
            of_texts(home, settings, train=train, held_out=given)
    empty = str(table(tmp_path / "e.csv", "text,label", [("film", ""), ("book", "")]))
    with pytest.raises(MattaError, match=r"2 of 2 texts have no 'label' .the first: line 2 of"):
        of_texts(home, train=empty, held_out=test)


def test_rows_of_json_need_not_have_a_label(home: Path, tmp_path: Path) -> None:
    """Whichever of them come first."""
    rows = [{"text": "plot"}, {"text": "the film", "label": "good"}, {"text": "it"}] * 5
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = of_texts(home, train=str(path), held_out=str(path))
    assert len(data.train) == 5 and noted(data, "10 of 15 texts have no 'label' (the first: line 1")
    with path.open("a") as file:
        file.write('{"label": "good"}\n')
    with pytest.raises(MattaError, match="has no column 'text'"):
        of_texts(home, train=str(path), held_out=str(path))


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", None])
def test_what_models_read_alone_needs_no_labels(problem: str | None, tmp_path: Path) -> None:
    """As convert does, which puts units in order."""
    outputs = {"num_labels": 1} if problem == "regression" else labels("bad", "good")
    bert(tmp_path / "m", problem_type=problem, **outputs)
    train = str(table(tmp_path / "train.csv", "text", [row[:1] for row in ROWS * 5]))
    recipe = Recipe()
    recipe.update({"data": {"train": train}}, "test")
    reads = task("text_classification", recipe)
    model, _ = load_model(str(tmp_path / "m"), reads.name)
    with pytest.raises(MattaError, match="Measuring needs labels: pass --held-out"):
        reads.data(tmp_path / "m", model)
    reads.unmeasured = True
    data = reads.data(tmp_path / "m", model)
    assert len(data.train) == 18 and not any("label" in note for note in data.notes)


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_numbers_and_several_labels_may_be_missing(problem: str, tmp_path: Path) -> None:
    several = problem.startswith("multi")
    outputs = labels("bad", "good") if several else {"num_labels": 1}
    bert(tmp_path / "m", problem_type=problem, **outputs)
    given = [["good"], None, [], ["bad", "good"]] if several else [0.5, None, 2, 1]
    rows = [{"text": "the film", "label": value} for value in given] * 5
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = of_texts(tmp_path / "m", ALONE, train=str(path), held_out=str(path))
    label = data.train.batch(range(4))["label"]
    assert torch.isnan(label[1]).all() and torch.isfinite(label[[0, 2, 3]]).all()
    assert len(data.held_out[0]) == 15
    assert noted(data, "A text with none of the labels has the list []") == several


def test_columns_of_labels_are_all_filled_in_or_none(home: Path, tmp_path: Path) -> None:
    rows = [("the film", 1, 0), ("a book", "", ""), ("plot", 0, 1)]
    test = table(tmp_path / "t.csv", "text,bad,good", rows)
    data = of_texts(home, ALONE, train=str(test), held_out=str(test))
    assert len(data.held_out[0]) == 2 and torch.isnan(data.train.batch([1])["label"]).all()
    table(test, "text,bad,good", [*rows, ("it", 1, "")])
    with pytest.raises(MattaError, match=r"empty in part in 1 of .* first in line 5"):
        of_texts(home, train=str(test), held_out=str(test))


@pytest.mark.parametrize("form", ["rows", "column", "words.conll"])
def test_words_without_tags(form: str, tmp_path: Path) -> None:
    pytest.importorskip("seqeval")
    bert(tmp_path / "m", BertForTokenClassification, **labels("O", "B-X"))
    model, _ = load_model(str(tmp_path / "m"), "token_classification")
    tagged = [{"tokens": ["good", "film"], "tags": ["B-X", "O"]}] * 3
    rows = tagged + [{"tokens": ["the", "plot", "was"], "tags": None}] * 2
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, count = test, 2
    if form == "column":
        train, count = tmp_path / "t.jsonl", 5
        train.write_text("".join(json.dumps({"tokens": row["tokens"]}) + "\n" for row in rows))
    elif form == "words.conll":
        train, count = tmp_path / form, 5
        train.write_text("\n\n".join("\n".join(row["tokens"]) for row in rows) + "\n")
    given = {"train": str(train), "held_out": str(test)}
    data = opened("token_classification", model, tmp_path / "m", ALONE, **given)
    assert noted(data, f"{count} of 5 texts have no {'label' if 'conll' in form else repr('tags')}")
    batch = data.train.batch([0, 4])
    assert batch["known"].tolist() == [[True, True, False], [True] * 3]
    assert (batch["label"][1] == IGNORED).all() and len(data.held_out[0]) == 3
    if form == "rows":
        data = opened("token_classification", model, tmp_path / "m", **given)
        assert len(data.train) == 3 and noted(data, "and are left out")
    else:
        with pytest.raises(MattaError, match=r"tags.*|a word and its tag are needed.*teacher_mix"):
            opened("token_classification", model, tmp_path / "m", **given)


@pytest.mark.parametrize("form", ["cells", "column", "folder"])
def test_images_without_a_label(form: str, tmp_path: Path) -> None:
    names = ["cat", "dog"]
    model = images("vit", num_labels=2)
    model.config.id2label = dict(enumerate(names))
    for i in range(8):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / f"{i}.png")
    rows = [(f"{i}.png", "" if i % 4 == 1 else names[i % 2]) for i in range(8)]
    test = table(tmp_path / "test.csv", "file_name,label", rows)
    train, count = test, 2
    if form == "column":
        train, count = table(tmp_path / "train.csv", "file_name", [row[:1] for row in rows]), 8
    elif form == "folder":
        shutil.copytree(tmp_path, tmp_path / "plain", ignore=shutil.ignore_patterns("*.csv"))
        train, count = tmp_path / "plain", 8
    given = {"train": str(train), "held_out": str(test)}
    data = opened("image_classification", model, None, ALONE, **given)
    assert noted(data, f"{count} of 8 images have no") and len(data.held_out[0]) == 6
    assert data.train.batch([0, 1])["label"].tolist() == [
        0 if form == "cells" else IGNORED,
        IGNORED,
    ]
    if form == "cells":
        data = opened("image_classification", model, None, **given)
        assert len(data.train) == 6 and noted(data, "and are left out")
        assert data.train.keys([1]).tolist() == [2]
    else:
        with pytest.raises(MattaError, match=r"(column 'label'|without labels).*teacher_mix = 1"):
            opened("image_classification", model, None, **given)


class Scorer(torch.nn.Module):
    fields: list[Any] = []
    dense = 1


def test_rows_to_rank_without_a_label(tmp_path: Path) -> None:
    rows = [(k / 9, "" if k % 3 == 0 else k % 2) for k in range(12)]
    test = table(tmp_path / "t.csv", "age,label", rows)
    train = table(tmp_path / "u.csv", "age", [row[:1] for row in rows])
    data = opened("ranking", Scorer(), None, ALONE, train=str(train), held_out=str(test))
    assert len(data.held_out[0]) == 8 and np.isnan(data.train.batch(range(12))["label"]).all()
    with pytest.raises(MattaError, match=r"no column 'label'.*teacher_mix = 1"):
        opened("ranking", Scorer(), None, train=str(train), held_out=str(test))
    data = opened("ranking", Scorer(), None, train=str(test), held_out=str(test))
    assert len(data.train) == 8 and data.train.keys([2]).tolist() == [4]
    assert noted(data, "4 of 12 rows have no 'label' (the first: row 1 of ")


@pytest.mark.slow
def test_a_run_without_labels(home: Path, tmp_path: Path) -> None:
    """The Teacher is all that is followed; the order of units must not ask for labels either."""
    train = table(tmp_path / "train.csv", "text", [row[:1] for row in ROWS * 10])
    test = table(tmp_path / "test.csv", "text,label", ROWS * 5)
    recipe = Recipe()
    data = {"train": str(train), "held_out": str(test)}
    settings = {"teacher": str(home), "steps": 3, "device": "cpu", **ALONE}
    settings |= {"allow_weak_teacher": True}
    recipe.update({"data": data, "distill": settings, "convert": {"source": str(home)}}, "test")
    recipe.convert.order = "taylor"
    with pytest.raises(MattaError, match="--order taylor goes by the labels, which some"):
        convert(recipe, tmp_path / "out")
    recipe.convert.order = "auto"
    convert(recipe, tmp_path / "out")
    distill(recipe, tmp_path / "out")
    log = (tmp_path / "out" / "run" / "metrics.jsonl").read_text()
    assert "truth" not in log and "teacher" in log
    sizes = load_ta(tmp_path / "out" / "ta").sizes(0.5)
    student = ModelEntry("width 0.5", Role.STUDENT, 0.5, folder="students/width-0.5", sizes=sizes)
    run = Spent(steps=3)
    notes = baselines.train(tmp_path / "out", ["ground-truth"], [student, student], run)
    none = "There is no baseline trained on labels alone: the data to train on has none."
    assert notes == [none] and not any((tmp_path / "out" / "baselines").iterdir())
