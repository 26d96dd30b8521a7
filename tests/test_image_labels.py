"""Several labels of each image: where they come from, and what is made of them."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from test_adapters import images

from matta_cli.errors import MattaError
from matta_cli.settings.recipe import DataSettings, DistillSettings, Recipe
from matta_cli.tasks.image_classification.task import ImageClassification
from matta_cli.tasks.task import task

NAMES = ["cat", "dog", "sky"]
SETS = [["cat"], ["dog", "sky"], [], ["sky", "cat", "dog"], ["dog"]] * 4
HOT = np.array([[name in own for name in NAMES] for own in SETS], np.float32)


def model(problem: str | None = None, names=NAMES, **changes):
    made = images("vit", num_labels=len(names), **changes)
    made.config.problem_type = problem
    made.config.id2label = dict(enumerate(names))
    return made


@pytest.fixture
def folder(tmp_path):
    """Images of one colour each, whose red says which one it is."""
    (tmp_path / "images").mkdir()
    for i in range(len(SETS)):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / "images" / f"{i:02}.png")
    return tmp_path


def paths() -> list[str]:
    return [f"images/{i:02}.png" for i in range(len(SETS))]


def opened(text, own, **settings) -> tuple[ImageClassification, object]:
    recipe = Recipe(data=DataSettings(train=str(text), **settings), distill=DistillSettings())
    made = task("image_classification", recipe)
    return made, made.data(None, own)


def labels_of(data) -> np.ndarray:
    """The labels of all images, by the red of each."""
    parts = []
    for split in (data.train, *data.held_out):
        batch = split.batch(range(len(split)))
        red = ((batch["image"][:, 0, 0, 0] * 0.229 + 0.485) * 255).round().int().tolist()
        parts += zip(red, batch["label"].tolist(), strict=True)
    return np.array([own for _, own in sorted(parts)])


def write(folder, kind: str):
    rows = [{"file_name": p, "label": own} for p, own in zip(paths(), SETS, strict=True)]
    if kind == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metadata.jsonl").write_text(text)
    elif kind == "cells.csv":
        lines = [f"{p},{'|'.join(own) or '[]'}" for p, own in zip(paths(), SETS, strict=True)]
        (folder / "labels.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    elif kind == "csv":
        lines = [
            ",".join([p, *(str(int(v)) for v in own)]) for p, own in zip(paths(), HOT, strict=True)
        ]
        (folder / "labels.csv").write_text("\n".join(["path,cat,dog,sky", *lines]) + "\n")
    elif kind == "hot.jsonl":
        both = zip(paths(), HOT.tolist(), strict=True)
        hot = [{"file_name": path, "label": own} for path, own in both]
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in hot))
    else:
        datasets.Dataset.from_list(rows).to_parquet(str(folder / "a.parquet"))
    return folder


@pytest.mark.parametrize("kind", ["jsonl", "csv", "cells.csv", "hot.jsonl", "parquet"])
def test_tables_of_several_labels(kind, folder):
    made, data = opened(write(folder, kind), model())
    assert np.array_equal(labels_of(data), HOT)
    assert made.metrics[0].name == "map" and made.reading == "odds"
    assert [len(data.train), len(data.held_out[0])] == [18, 2]
    assert data.train.keys([0], ids=True).tolist() == ["images/00.png"]


def test_one_label_a_row_and_a_part_each(folder):
    rows = [f"{p},{NAMES[i % 3]}" for i, p in enumerate(paths())]
    for name, some in (("train.csv", rows[:15]), ("val.csv", rows[15:])):
        (folder / name).write_text("\n".join(["file_name,label", *some]) + "\n")
    made, data = opened(folder, model())
    assert labels_of(data).tolist() == [i % 3 for i in range(20)] and made.reading == "classes"
    assert any("labels are those of train.csv, val.csv" in note for note in data.notes)
    measured = task("image_classification", Recipe(data=DataSettings(train=str(folder))))
    assert len(measured.data(None, model(), training=False).held_out[0]) == 5
    # of a model that may say several, one label is one of them
    made, data = opened(folder, model("multi_label_classification"))
    assert np.array_equal(labels_of(data), np.eye(3)[[i % 3 for i in range(20)]])
    made, data = opened(folder / "train.csv", model())
    assert len(data.train) + len(data.held_out[0]) == 15


def test_folders_of_classes_with_a_foreign_table_beside_are_as_before(folder):
    for i, path in enumerate(paths()):
        to = folder / "classes" / NAMES[i % 3]
        to.mkdir(parents=True, exist_ok=True)
        (folder / path).rename(to / f"{i}.png")
    (folder / "classes" / "notes.csv").write_text("image,remark\n1,2\n")
    _, data = opened(folder / "classes", model())
    assert labels_of(data).tolist() == [i % 3 for i in range(20)]


def test_a_hub_dataset_with_a_sequence_of_class_labels(folder, monkeypatch):
    order = ["sky", "cat", "dog"]  # another one than the model's
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Sequence(datasets.ClassLabel(names=order))}
    )
    rows = {
        "image": [str(folder / path) for path in paths()],
        "label": [[order.index(name) for name in own] for own in SETS],
    }
    made = {"train": datasets.Dataset.from_dict(rows, features=features)}
    monkeypatch.setattr("matta_cli.data.find.hub_dataset", lambda *_: made)
    _, data = opened("owner/data", model())
    assert np.array_equal(labels_of(data), HOT)


@pytest.mark.parametrize(
    ("rows", "own", "message"),
    [
        (["images/00.png,cat", "images/99.png,dog"], {}, r"1 of 2 images are not there; the first"),
        (["images/00.png,cat", ",dog"], {}, "has no path in line 3"),
        (["images/00.png,cat", "images/01.png,"], {}, "holds 1 images with a label: too little"),
        (["images/00.png,cat", "images/01.png,cow"], {}, "class 'cow', which is none of the mod"),
        (["images/00.png,cat", "images/00.png,dog"], {}, "different labels in line 2 .*line 3"),
        (["images/00.png,0", "images/01.png,7"], {}, "has 8 classes, but the model has 3"),
        (
            ["images/00.png,0", "images/01.png,1"],
            {"problem": "regression"},
            "The model gives numbers",
        ),
        (
            ["images/00.png,cat", "images/01.png,cat"],
            {"names": ["cat"]},
            "has one output, and one class is no choice",
        ),
    ],
)
def test_tables_that_are_wrong(rows, own, message, folder):
    (folder / "a.csv").write_text("\n".join(["file_name,label", *rows]) + "\n")
    with pytest.raises(MattaError, match=message):
        opened(folder, model(**own))


def test_several_labels_for_a_model_of_one(folder):
    with pytest.raises(MattaError, match="several labels of each image, but the model is for one"):
        opened(write(folder, "jsonl"), model("single_label_classification"))
    (folder / "b.csv").write_text("file_name,cat,dog,sky\nimages/00.png,1,2,0\n")
    with pytest.raises(MattaError, match="holds '2' in line 2, but the column of a label is 0 or"):
        opened(folder / "b.csv", model())
    (folder / "b.csv").write_text("file_name,kind\nimages/00.png,1\n")
    with pytest.raises(MattaError, match=r"no column 'label'; it has file_name, kind. Set data.la"):
        opened(folder / "b.csv", model())


def test_a_teacher_whose_classes_are_in_another_order(folder):
    made, _ = opened(write(folder, "jsonl"), model())
    ours, teacher = model(), model(names=["sky", "cat", "dog"])
    fitted = made.fit_teacher(teacher, None, ours)
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = teacher(image).logits[:, [1, 2, 0]]
        assert torch.equal(made.forward(fitted, {"image": image}), expected)
    assert any("in another order: they are matched by their names" in n for n in made.notes)
    with pytest.raises(MattaError, match="it has no 'sky'"):
        made.fit_teacher(model(names=["cat", "dog", "cow"]), None, ours)
    made.notes.clear()
    assert made.fit_teacher(other := model(names=["a", "b", "c"]), None, ours) is other
    assert any("other names than the model's ('a', not 'cat')" in note for note in made.notes)


def test_labels_that_are_mixed_are_refused_and_numbers_are_numbers(folder):
    both = zip(paths(), SETS, strict=True)
    rows = [{"file_name": p, "label": [NAMES.index(name) for name in own]} for p, own in both]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, data = opened(folder, model())
    assert np.array_equal(labels_of(data), HOT)
    for label, message in ((["cat"], "holds str in line 20"), ([-1], "label -1 in line 20")):
        rows[-1]["label"] = label
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(MattaError, match=message):
            opened(folder, model())
