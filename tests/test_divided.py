"""Tables in which a column says of which part a row is: nothing to be tested on is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from matta_adapters.mlp_ranker import Ranker
from test_adapters import images
from test_exports import chat, opened, small, two  # noqa: F401
from test_siblings import LAYERS, of_images, picture

from matta_cli.data import sources
from matta_cli.errors import MattaError
from matta_cli.tasks.class_names import known_as
from tests.sample_text import save_table

PARTS = ["train", "train", "Test", "dev"] * 5


def table(path: Path, **columns: Any) -> Path:
    rows = {"text": [f"the film {k}" for k in range(20)], "label": [0, 1] * 10, **columns}
    return save_table(path, rows)


TOLD = r"says of which part a row is \(.*\), which matta does not read: write the rows of each part"


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "column, values",
    [
        ("split", PARTS),
        ("Set", PARTS),
        ("is_valid", [True, False] * 10),
        ("Usage", ["Training", "Training", "PublicTest", "PrivateTest"] * 5),
        ("split", [0, 0, 0, 1, 2] * 4),  # as of Waterbirds
        ("dataset", ["train-clean", "dev-clean", "test-clean", "test-other"] * 5),
    ],
)
def test_texts(two, tmp_path, suffix, column, values):  # noqa: F811
    path = table(tmp_path / f"a{suffix}", **{column: values})
    with pytest.raises(MattaError, match=f"Column '{column}' of .*a{suffix}' {TOLD}"):
        opened("text_classification", two[1], two[0], path)


@pytest.mark.parametrize(
    "columns",
    [
        {"split": ["train"] * 20},  # one part alone
        {"split": ["a", "train"] * 10},
        {"split": range(20)},
        {"split": [10, 20, 30, 40] * 5},
        {"dataset": ["oasst_train", "wiki_test"] * 10},  # of which collection a row is
        {"set": [0, 1] * 10},
        {"part": ["/train/a", "b"] * 10},
        {"is_valid": [True] * 20},
        {"is_question": [True, False] * 10},
        {"valid": [True, False] * 10},  # of a text, whether it is right
    ],
)
def test_columns_that_tell_no_parts(two, tmp_path, columns):  # noqa: F811
    path = table(tmp_path / "a.csv", **columns)
    assert len(opened("text_classification", two[1], two[0], path)[0].train) == 18


def test_other_tasks(small, chat, tmp_path):  # noqa: F811
    with pytest.raises(MattaError, match=TOLD):
        opened("causal_lm", small[1], small[0], table(tmp_path / "a.csv", split=PARTS))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = (json.dumps({"messages": turns, "split": part}) + "\n" for part in PARTS)
    (tmp_path / "b.jsonl").write_text("".join(rows))
    with pytest.raises(MattaError, match=TOLD):
        opened("causal_lm", chat[1], chat[0], tmp_path / "b.jsonl")
    path = table(tmp_path / "c.csv", a=np.arange(20) / 7, split=PARTS)
    with pytest.raises(MattaError, match=TOLD):
        opened("ranking", Ranker([], 1, LAYERS), None, path)
    data = opened("ranking", Ranker([], 1, LAYERS), None, table(path, a=np.arange(20) / 7))[0]
    assert len(data.train) == 18
    for k in range(20):
        picture(tmp_path / f"{k}.png", k)
    path = table(tmp_path / "d.csv", file_name=[f"{k}.png" for k in range(20)], split=PARTS)
    with pytest.raises(MattaError, match=TOLD):
        opened("image_classification", images("vit", num_labels=2), None, path)
    hub = sources.of_split(datasets.Dataset.from_dict({"text": ["a"] * 20, "split": PARTS}), "hub")
    with pytest.raises(MattaError, match=f"Column 'split' of 'hub' {TOLD}"):
        list(hub.rows(["text"], "data"))


def test_names_of_classes_have_synonyms(tmp_path):
    """As those of ImageNet; folders have mostly one of them."""
    assert known_as({0: "tench, Tinca", 1: "eel, tench", 2: "Tinca"}) == {
        "tench, tinca": 0,
        "eel, tench": 1,
        "eel": 1,
        "tinca": 2,
        "tench, Tinca": 0,
        "Tinca": 2,
    }
    assert known_as({0: "Golden Retriever"})["goldenretriever"] == 0
    assert known_as({0: "GoldenRetriever"})["golden retriever"] == 0
    assert "abc" not in known_as({0: "a b c", 1: "a bc"})
    for k in range(8):
        picture(tmp_path / ("tench", "goldfish")[k % 2] / f"{k}.png", k)
    data = of_images(tmp_path, 2, ("tench, Tinca tinca", "goldfish, Carassius auratus"))
    names = [data.train.source.called(i) for i in range(7)]
    label = data.train.batch(range(7))["label"].tolist()
    assert label == [int("goldfish" in name) for name in names]


def test_columns_that_a_spreadsheet_left_empty_are_none(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,label,,\n" + "".join(f"{k / 7},{k % 2},,\n" for k in range(20)))
    assert len(opened("ranking", Ranker([], 1, LAYERS), None, path)[0].train) == 18
    path.write_text("a,label,,\n" + "".join(f"{k / 7},{k % 2},1,\n" for k in range(20)))
    with pytest.raises(MattaError, match="several columns without a name: give each its own"):
        opened("ranking", Ranker([], 1, LAYERS), None, path)
