"""What is said of data before anything is trained: the columns, and the first example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from matta_adapters.mlp_ranker import Ranker
from test_adapters import images
from test_exports import chat, opened, small, two  # noqa: F401
from test_siblings import LAYERS, picture, tagged
from transformers import BertForTokenClassification, BertModel

from matta_cli.data import sources
from matta_cli.tasks.task import excerpt
from tests.sample_text import save_table
from tests.text_models import GOOD, bert, labels

TEXTS = [f"the film was {GOOD[k % 4]}" for k in range(20)]
FIRST = "The first example, as the model gets it: "


def table(path: Path, **columns: Any) -> Path:
    return save_table(path, {"id": range(20), "text": TEXTS, "label": [0, 1] * 10, **columns})


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_texts_and_labels(two, tmp_path, suffix):  # noqa: F811
    path = table(tmp_path / f"a{suffix}")
    for more in ({}, {"training": False, "train": "", "held_out": path}):
        train = more.pop("train", path)
        said = opened("text_classification", two[1], two[0], train, **more)[1]
        assert "; columns read: text, label; not read: id." in said
        assert said.endswith(f"{FIRST}'[CLS] the film was good [SEP]', label 0 good.")


def test_labels_of_other_kinds(tmp_path):
    hot = bert(tmp_path / "hot", problem_type="multi_label_classification", **labels("a", "b", "c"))
    path = table(tmp_path / "a.jsonl", label=[["a", "c"], []] * 10)
    said = opened("text_classification", hot, tmp_path / "hot", path)[1]
    assert "[SEP]', label 0 a, 2 c." in said
    stars = bert(tmp_path / "stars", **labels("1 star", "2 stars"))
    path = table(tmp_path / "c.csv", label=[0, 1] * 10)
    said = opened("text_classification", stars, tmp_path / "stars", path)[1]
    assert "[SEP]', label 0 '1 star'." in said
    number = bert(tmp_path / "number", num_labels=1, problem_type="regression")
    path = table(tmp_path / "b.csv", label=[k / 4 + 0.5 for k in range(20)])
    assert (
        "[SEP]', label 0.5." in opened("text_classification", number, tmp_path / "number", path)[1]
    )


def test_pairs_of_sentences(tmp_path):
    model = BertModel(bert(tmp_path).config)
    path = table(tmp_path / "a.csv", sentence1=TEXTS, sentence2=TEXTS[1:] + TEXTS[:1])
    scored = table(tmp_path / "b.csv", sentence1="the plot", sentence2="it was", score=range(20))
    said = opened("sentence_embedding", model, tmp_path, path)[1]
    assert "; columns read: sentence1, sentence2; not read: id, text, label." in said
    assert f"{FIRST}'[CLS] the film was good [SEP]'." in said
    said = opened("sentence_embedding", model, tmp_path, "", held_out=scored, training=False)[1]
    assert f"{FIRST}'[CLS] the plot [SEP]' and '[CLS] it was [SEP]', score " in said


def test_words_with_their_tags(tmp_path):
    notes = tagged(tmp_path, "B-PER", "I-PER", "O", "B-LOC")
    tags = "'the' B-PER, 'film' I-PER, 'was' O, 'good' B-LOC"
    assert f"{FIRST}'[CLS] the film was good [SEP]', tags {tags}." in notes
    words = tmp_path / "b.conll"
    words.write_text("the DT B-NP O\nfilm NN I-NP B-PER\n\n" * 4)
    model = bert(tmp_path / "tagger", BertForTokenClassification, **labels("O", "B-PER"))
    said = opened("token_classification", model, tmp_path / "tagger", words, training=False)
    assert "4 texts read; of 4 columns the first (words) and the last (tags) are read." in said[1]


def test_images(tmp_path):
    for k in range(12):
        picture(tmp_path / f"{k:02}.png", 255)
    rows = pd.DataFrame({"path": [f"{k:02}.png" for k in range(12)], "label": ["cat", "dog"] * 6})
    rows.assign(width=32).to_csv(tmp_path / "a.csv", index=False)
    model = images("vit", num_labels=2)
    said = opened("image_classification", model, None, tmp_path)[1]
    assert "12 rows read of 13 lines (one names the columns); columns read: path, label" in said
    assert "; not read: width." in said
    assert "00.png' as 3x32x32, values -2.04 to 2.25, label 0 cat." in said


def test_rows_of_a_table(tmp_path):
    path = table(
        tmp_path / "a.csv", a=np.arange(20) / 4 + 0.25, b=2.0, query=["x"] * 10 + ["y"] * 10
    )
    settings = {"dense": ["b", "a"], "group": "query"}
    said = opened("ranking", Ranker([], 2, LAYERS), None, path, **settings)[1]
    assert "; columns read: query, b, a, label; not read: id, text." in said
    assert f"{FIRST}dense b 2, a 0.25; label 0, one of the 10 rows of its query." in said


def test_text_and_conversations(small, chat, tmp_path):  # noqa: F811
    path = table(tmp_path / "a.csv")
    said = opened("causal_lm", small[1], small[0], path, sequence_length=16)[1]
    assert "; columns read: text; not read: id, label." in said and f"{FIRST}'the film" in said
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]
    (tmp_path / "b.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 4)
    said = opened("causal_lm", chat[1], chat[0], tmp_path / "b.jsonl")[1]
    assert "4 rows read of 4; columns read: messages." in said
    assert FIRST in said and ", of which 'b c<|im_end|>\\n' is learned." in said


def test_keys_of_later_rows_and_of_a_hub_dataset(two, tmp_path):  # noqa: F811
    rows = [{"text": text, "label": k % 2} for k, text in enumerate(TEXTS)]
    rows[5]["note"] = "x"
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (
        "not read: note." in opened("text_classification", two[1], two[0], tmp_path / "a.jsonl")[1]
    )
    source = sources.of_split(datasets.Dataset.from_dict({"text": TEXTS, "idx": range(20)}), "hub")
    list(source.rows(["text"], "data"))
    assert source.notes() == ["'hub': 20 rows read of 20; columns read: text; not read: idx."]


def test_a_long_text_is_shown_by_its_ends():
    text = "a" * 100 + "\n\x1b" + "b" * 100
    assert excerpt(text) == f"{'a' * 80!r} ... {'b' * 80!r}" and excerpt("\x1b") == r"'\x1b'"


def test_what_the_chat_template_leaves_out_of_a_turn_is_said(chat, tmp_path):  # noqa: F811
    user = {"role": "user", "content": "a"}
    plain = {"role": "assistant", "content": "b", "weight": 1}
    for more, told in (
        ({"reasoning_content": "so and so"}, "turns have 'reasoning_content' (2), which the chat"),
        ({"images": ["a.png"], "masked": False}, "turns have 'images' (2), 'masked' (2), wh"),
        ({"thinking": None, "tool_calls": None}, ""),
        ({"thoughts": "b"}, ""),  # it stands there
    ):
        (tmp_path / "a.jsonl").write_text(
            (json.dumps({"messages": [user, {**plain, **more}]}) + "\n") * 2
        )
        said = opened("causal_lm", chat[1], chat[0], tmp_path / "a.jsonl")[1]
        assert told in said and ("turns have" in said) == bool(told)
    last = {"role": "assistant", "content": "c"}
    row = {"messages": [user, {**plain, "loss": False, "weight": None}, user, last]}
    (tmp_path / "b.jsonl").write_text((json.dumps(row) + "\n") * 2)
    said = opened("causal_lm", chat[1], chat[0], tmp_path / "b.jsonl", sequence_length=256)[1]
    assert ", of which 'c<|im_end|>\\n' is learned." in said and "turns have" not in said
