"""Folders of images as well-known collections lay them: what is no class, and what is elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import timm
from test_adapters import images
from test_siblings import of_images, picture

from matta_cli.errors import MattaError
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import task


def lay(folder: Path, *names: str) -> Path:
    """Images, and files with a word in them."""
    for k, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jpg":
            picture(path, k)
        else:
            path.write_text("x\n")
    return folder


# what lists of images say, as these collections write them
LISTS = {
    "meta/train.txt": "pie/0\npie/1\n",
    "labels/train1.txt": "pie/0.jpg\n",
    "train_test_split.txt": "1 1\n2 0\n",
    "lists/train_list.mat": "\0",
    "train2018.json": '{"images": [{"file_name": "a/b.jpg"}]}',
    "train.txt": "0 1 1\n3 2 1\n",
}


CLASSES = [f"images/{label}/{k}.jpg" for label in ("pie", "soup") for k in range(4)]


def test_folders_without_images_are_no_classes(tmp_path):
    lay(tmp_path, *CLASSES, "devkit/meta.mat", "Annotation/pie/0.xml")
    (tmp_path / "images" / "tea").mkdir()  # one that has none yet
    data = of_images(tmp_path, 3, ("pie", "soup", "tea"))
    assert len(data.train) == 7
    assert any("without images are no classes: Annotation, devkit." in n for n in data.notes)


@pytest.mark.parametrize(
    "lists",
    [
        ("meta/train.txt", "meta/test.txt"),  # Food-101
        ("labels/train1.txt", "labels/val1.txt"),  # DTD
        ("train_test_split.txt",),  # CUB-200
        ("lists/train_list.mat", "lists/test_list.mat"),  # Stanford Dogs
        ("train2018.json", "val2018.json"),
        ("train.txt", "test.txt"),
    ],
)
def test_lists_of_what_trains_are_not_passed_over(tmp_path, lists):
    data = lay(tmp_path / "data", *CLASSES, *lists)
    for name in lists:
        (data / name).write_text(LISTS.get(name) or LISTS[lists[0]])
    with pytest.raises(MattaError, match=rf"to train on seems to stand in .*{lists[0]}.*: lay the"):
        of_images(data, 2)
    model = images("vit", num_labels=2)
    other = lay(tmp_path / "other", *CLASSES)
    made = task("image_classification", Recipe())
    made.recipe.update({"data": {"train": str(data), "held_out": str(other)}}, "test")
    assert len(made.data(None, model).train) == 8


def test_what_a_training_left_beside_images_is_no_list(tmp_path):
    files = {"train_log.txt": "data/pi, epoch 1/10 loss 0.3\n", "test_results.json": '{"acc": 0.9}'}
    files |= {"train_test_split.txt": "seed=42\n", "training.txt": "0 is pie\n"}
    lay(tmp_path, *(name.removeprefix("images/") for name in CLASSES), *files)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert len(of_images(tmp_path, 2).train) == 7


def test_a_class_called_train_may_have_folders(tmp_path):
    names = [f"{own}/{k}.jpg" for own in ("bus", "train", "tram") for k in range(4)]
    lay(tmp_path, *names, "train/steam/5.jpg")
    assert len(of_images(tmp_path, 3).train) == 12


@pytest.mark.parametrize(
    "files, outputs, told",
    [
        (
            ("a/x/0.jpg", "a/y/1.jpg", "b/z/2.jpg"),
            3,
            "such as a/x, are 3: if these are the classes",
        ),
        (("train/0.jpg", "test1/0.jpg"), 2, "test1' holds images without labels: matta looks"),
        (
            ("cars_train/0.jpg", "cars_test/0.jpg", "devkit/a.mat"),
            2,
            "Files there: devkit/a.mat. If",
        ),
        (
            ("train/a/0.jpg", "train/b/0.jpg", "val/images/1.jpg", "val/annotations.txt"),
            2,
            "ations.t",
        ),
        (("0.jpg", "0.cls"), 2, "Files there: 0.cls. If labels stand in them, write tables"),
        (("data_batch_1", "batches.meta"), 2, "data_batch_1. Unpack archives, and save arrays as"),
        (("fold1/a/0.jpg", "fold2/a/0.jpg"), 2, "fold1, fold2, which are folds, and no classes"),
    ],
)
def test_what_lies_elsewhere_is_told(tmp_path, files, outputs, told):
    with pytest.raises(MattaError, match=r".") as error:
        of_images(lay(tmp_path, *files), outputs)
    assert told in str(error.value)


def test_a_table_of_other_columns_is_told(tmp_path):
    lay(tmp_path, "train/0.jpg", "train/1.jpg", "test/2.jpg")
    (tmp_path / "labels.csv").write_text("id,breed\n0,a\n1,b\n")
    with pytest.raises(MattaError, match=r"labels.csv has the columns 'id', 'breed': if it has"):
        of_images(tmp_path, 2)
    rows = pd.DataFrame({"image_id": ["0", "1"], "label": [0, 1]})
    rows.to_csv(tmp_path / "labels.csv", index=False)
    made = task("image_classification", Recipe())
    made.recipe.update({"data": {"train": str(tmp_path / "labels.csv"), "image": "image_id"}}, "t")
    with pytest.raises(MattaError, match=r"of the table. There is 'train/0.jpg': write all so"):
        made.data(None, images("vit", num_labels=2))


def measured(model: Any, train: Path, held_out: Path) -> Any:
    made = task("image_classification", Recipe())
    made.recipe.update({"data": {"train": str(train), "held_out": str(held_out)}}, "test")
    return made.data(None, model, training=False).held_out[0].whole.batch(range(4))["label"]


def test_what_is_measured_has_the_numbers_of_what_was_trained_on(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=1)
    train = lay(tmp_path / "train", *(f"{c}/{k}.jpg" for c in "abc" for k in range(2)))
    fewer = lay(tmp_path / "fewer", *(f"{c}/{k}.jpg" for c in "bc" for k in range(2)))
    others = lay(tmp_path / "others", *(f"{c}/{k}.jpg" for c in "bcd" for k in range(2)))
    assert measured(model, train, fewer).tolist() == [1, 1, 2, 2]
    with pytest.raises(MattaError, match=r"others' and '.*train' have different classes: only"):
        measured(model, train, others)
    # where nobody knows the names, the numbers must at least be as many
    assert measured(model, tmp_path / "gone", others).tolist() == [0, 0, 1, 1]
    with pytest.raises(MattaError, match=r"fewer' has 2 classes, but the model has 3"):
        measured(model, tmp_path / "gone", fewer)
