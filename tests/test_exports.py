"""Data as other programs leave it: what could be taken in two ways is told, or read as they do.

The second file of siblings of cases from the field, after ``test_siblings``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from matta_cli.errors import MattaError
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.image_classification.read import read_images
from matta_cli.tasks.image_classification.tables import Known
from matta_cli.tasks.ranking import libsvm
from matta_cli.tasks.task import task
from matta_cli.training import teacher_file
from tests.sample_text import byte_tokenizer, prose
from tests.test_siblings import of_images, picture
from tests.text_models import GOOD, bert, labels

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
TEXTS = [f"the film was {GOOD[k % 4]} {k}" for k in range(20)]
LABELS = [k % 2 for k in range(20)]


def opened(name: str, model: Any, folder: Path | None, train: Path, **own: Any) -> Any:
    """A task's data, and all that is said of it."""
    recipe, training = Recipe(), own.pop("training", True)
    data = {key: str(value) if isinstance(value, Path) else value for key, value in own.items()}
    recipe.update({"data": {"train": str(train), **data}}, "test")
    made = task(name, recipe)
    found = made.data(folder, model, training=training)
    return found, " ".join([*found.notes, *made.notes])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("two")
    return folder, bert(folder, **labels("good", "bad"))


def of_texts(two: tuple[Path, Any], train: Path, **own: Any) -> Any:
    return opened("text_classification", two[1], two[0], train, **own)


def write(path: Path, **columns: Any) -> Path:
    """A table with ``TEXTS`` and ``LABELS``, and other columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame({"text": TEXTS, "label": LABELS, **columns})
    if path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def test_a_key_that_stands_twice_is_refused(two, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "the film", "label": 0}\n{"text": "a", "label": 1, "label": 0}\n')
    with pytest.raises(MattaError, match=r"a.jsonl', line 2 has the key 'label' twice in one obj"):
        of_texts(two, path)
    path = tmp_path / "a.json"
    path.write_text('[{"text": "the film", "label": 0, "text": "a"}]')
    with pytest.raises(MattaError, match=r"a.json' has the key 'text' twice in one object"):
        of_texts(two, path)


def test_which_of_two_columns_is_read_is_said(two, tmp_path):
    pairs = {"sentence1": TEXTS, "sentence2": TEXTS}
    one = bert(tmp_path / "one", num_labels=1)
    notes = of_texts(two, write(tmp_path / "a.csv", **pairs))[1]
    assert "a.csv': 'sentence1' and 'sentence2' are read, not 'text' (rename or" in notes
    path = write(tmp_path / "b.csv", score=[k / 4 for k in range(20)])
    notes = opened("text_classification", one, tmp_path / "one", path)[1]
    assert "b.csv': 'label' is read, not 'score' (rename or remove it to take that)" in notes
    assert "not 'score'" not in of_texts(two, path)[1]
    with pytest.raises(MattaError, match=r"a.csv' has pairs of texts, and '.*b.csv' single ones"):
        of_texts(two, path, held_out=tmp_path / "a.csv")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("small")
    byte_tokenizer([prose(40)], 290).save_pretrained(folder)
    sizes = {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return folder, GPT2LMHeadModel(GPT2Config(vocab_size=300, **sizes))


def test_conversations_beside_text_are_said(small, tmp_path):
    chats = write(tmp_path / "c.jsonl", messages=[[{"role": "user", "content": "a"}]] * 20)
    notes = opened("causal_lm", small[1], small[0], chats, sequence_length=8)[1]
    assert "c.jsonl': 'text' is read, not 'messages' (rename or remove it" in notes


def test_images_that_git_lfs_did_not_fetch(tmp_path):
    for k in range(6):
        picture(tmp_path / str(k % 2) / f"{k}.png", k)
    (tmp_path / "1" / "5.png").write_text(POINTER)
    with pytest.raises(MattaError, match=r"5.png' is a pointer of git LFS.* \(git lfs pull\)"):
        of_images(tmp_path, 2)


@pytest.mark.parametrize("name", ["rank.train", "said.parquet", "said.safetensors", "a.npz"])
def test_other_data_that_git_lfs_did_not_fetch(tmp_path, name):
    def images(path: Path) -> Any:
        recipe = Recipe()
        recipe.data.train = str(path)
        return read_images(recipe.data, Known(2, []), True, [])

    (tmp_path / name).write_text(POINTER)
    opens = {"rank.train": libsvm.read, "a.npz": images}.get(name, teacher_file.read)
    with pytest.raises(MattaError, match=rf"{name}' is a pointer of git LFS"):
        opens(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    ["split={}/part-0.parquet", "{}set.csv", "{}Data.csv", "{}_set (1).csv", "data ({}).csv"],
)
def test_parts_as_other_programs_call_them(two, tmp_path, name):
    for part in ("train", "test"):
        write(tmp_path / name.format(part), text=[f"{text} {part}" for text in TEXTS])
    data, _ = of_texts(two, tmp_path)
    assert len(data.train) == len(data.held_out[0]) == 20
    assert all(text.endswith(" train") for text in data.train.read.first)


def test_what_spark_leaves_behind_is_no_data(two, tmp_path):
    write(tmp_path / "part-0.parquet")
    write(tmp_path / "_temporary" / "0" / "part-1.parquet")
    assert len(of_texts(two, tmp_path)[0].train) == 18
    write(tmp_path / "_delta_log" / "0.jsonl")
    with pytest.raises(MattaError, match=r"whose rows only its log tells \(_delta_log\): write"):
        of_texts(two, tmp_path)


CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: a.csv
  - split: test
    path: ["b.*"]
- config_name: de
  data_files: {train: "de/*.csv", dev: "../x.csv"}
- config_name: all
  data_dir: parts
---
# Reviews
"""


def test_a_card_says_which_file_is_of_which_part(two, tmp_path):
    for name in ("a.csv", "b.csv", "c.csv", "de/x.csv", "parts/train.csv", "parts/dev.csv"):
        write(tmp_path / name, text=[f"{text} {name}" for text in TEXTS])
    assert len(of_texts(two, tmp_path)[0].train) == 20  # parts/train.csv, by its name
    (tmp_path / "README.md").write_text(CARD)
    with pytest.raises(MattaError, match=r"names the configurations en, de, all: set data.config"):
        of_texts(two, tmp_path)
    with pytest.raises(MattaError, match=r"en, de, all, but not 'fr': set data.config"):
        of_texts(two, tmp_path, config="fr")
    data, notes = of_texts(two, tmp_path, config="en")
    assert data.train.read.first[0].endswith("a.csv") and len(data.train) == 20
    assert data.held_out[0].whole.read.first[0].endswith("b.csv")
    assert "as README.md has them (configuration 'en'): train 1, test 1." in notes
    assert "README.md names other files: c.csv, de/x.csv, parts/dev.csv and 1 more." in notes
    assert of_texts(two, tmp_path, config="de")[0].train.read.first[0].endswith("x.csv")
    notes = of_texts(two, tmp_path, config="de")[1]
    assert "has the parts dev, too, of which no file is here" in notes
    data, _ = of_texts(two, tmp_path, config="all")
    assert data.held_out[0].whole.read.first[0].endswith("parts/dev.csv")
    (tmp_path / "README.md").write_text(CARD.replace("config_name: de", "config_name: default"))
    assert of_texts(two, tmp_path)[0].train.read.first[0].endswith("de/x.csv")
    for odd in ("configs: 3", ": [", "configs: [x]", "configs: [{data_files: [3]}]"):
        (tmp_path / "README.md").write_text(f"---\n{odd}\n---\n")
        assert len(of_texts(two, tmp_path)[0].train) == 20
