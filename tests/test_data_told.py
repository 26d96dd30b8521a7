"""Data in forms that the field has and matta does not read: what to do is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matta_adapters.mlp_ranker import Ranker
from test_exports import opened, small, two  # noqa: F401
from test_siblings import LAYERS
from transformers import BertForTokenClassification

from matta_cli.errors import MattaError
from tests.text_models import bert, labels


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


ROW = " If its first line is a row, put one before it"


@pytest.mark.parametrize(
    "name, text, told",
    [
        ("a.csv", '"3","A title of the news","Some text"\n' * 3, ROW),
        ("a.tsv", "gj04\t1\t\tOur friends will not buy this\n" * 3, ROW),
        ("b.csv", "id,body,label\n1,a,0\n", "it has id, body, label. Set data.text, or"),
        ("c.csv", "text\tlabel\na\t0\n", "commas in .csv and tabs in .tsv: call it .tsv."),
        ("d.csv", "text;label\na;0\n", "commas in .csv and tabs in .tsv: save it so."),
        ("aclImdb/pos/0.txt", "a", "A table has a row for each text, with the columns text and"),
        ("e.train", "__label__a the film\n", "A table has a row for each text, with the columns"),
    ],
)
def test_tables_of_texts(two, tmp_path, name, text, told):  # noqa: F811
    path = write(tmp_path / name, text)
    with pytest.raises(MattaError, match=r".") as error:
        opened("text_classification", two[1], two[0], tmp_path if "/" in name else path)
    assert told in str(error.value) and (told == ROW) == (ROW in str(error.value))


def test_a_part_without_labels(two, tmp_path):  # noqa: F811
    """As competitions have it: one is to say them."""
    write(tmp_path / "train.csv", "text,label\n" + "a,0\nb,1\n" * 9)
    write(tmp_path / "test.csv", "id,text\n1,a\n")
    with pytest.raises(MattaError, match=r"or as --data what has labels alone, whose last tenth"):
        opened("text_classification", two[1], two[0], tmp_path)
    data, _ = opened("text_classification", two[1], two[0], tmp_path / "train.csv")
    assert len(data.train) == 17


def test_text_by_another_name(small, tmp_path):  # noqa: F811
    for name in ("wiki.train.raw", "text8", "a.py"):
        path = write(tmp_path / name / name, "the film " * 50)
        for given in (path, path.parent):
            with pytest.raises(MattaError, match=r"plain text, .* have to be called \.txt"):
                opened("causal_lm", small[1], small[0], given, sequence_length=8)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.bz2", "a.tar.xz", "a.tgz", "a.csv.gz"])
def test_archives(small, tmp_path, name):  # noqa: F811
    for kind, model in (("causal_lm", small[1]), ("ranking", Ranker([], 2, LAYERS))):
        with pytest.raises(MattaError, match=rf"{name}' is packed: unpack it, and pass what was"):
            opened(kind, model, small[0], write(tmp_path / name, "x"))


def test_marks_of_another_tokenizer(small, tmp_path):  # noqa: F811
    for mark, told in (("<|endoftext|>", True), ("</s>", True), ("<|end|>", False), ("<p>", False)):
        path = write(tmp_path / "a.txt", f"the cat sat on the mat {mark} " * 30)
        said = opened("causal_lm", small[1], small[0], path, sequence_length=8)[1]
        assert ("marks stand in the text that end documents for another" in said) == told


def tagger(folder: Path) -> Any:
    return bert(folder, BertForTokenClassification, **labels("O", "B-PER", "I-PER"))


def test_words_and_tags(tmp_path):
    model = tagger(tmp_path / "m")
    for name in ("conll/eng.train", "wikiann/train"):
        path = write(tmp_path / name, "EU B-PER\nrejects O\n\n" * 4)
        for given in (path, path.parent):
            with pytest.raises(MattaError, match=r"in each line has to be called \.conll"):
                opened("token_classification", model, tmp_path / "m", given)
    words = write(tmp_path / "a.txt", "en:R.H.\tB-PER\nen:Saunders\tI-PER\n\n" * 4)
    with pytest.raises(MattaError, match=r"All words of .*a.txt' begin with 'en:': take that out"):
        opened("token_classification", model, tmp_path / "m", words)


@pytest.fixture
def rated(tmp_path: Path) -> Path:
    rows = {"userId": np.arange(40) // 5, "item": np.arange(40) % 7, "label": [0, 1] * 20}
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    return tmp_path / "a.csv"


def test_a_query_may_be_a_feature_too(rated):
    columns = {"categorical": ["userId", "item"], "group": "userId"}
    data, said = opened("ranking", Ranker([(8, 2), (7, 2)], 0, LAYERS), None, rated, **columns)
    assert len(data.train) == 7 and data.train.batch([1])["categorical"][:, 0].tolist() == [1] * 5
    assert "categorical userId 0, item 0; label 0, one of the 5 rows of its query" in said


def test_features_that_count_the_rows_are_said(rated):
    frame = pd.read_csv(rated)
    frame.to_csv(rated.with_name("b.csv"), index_label="index")
    said = opened("ranking", Ranker([], 3, LAYERS), None, rated.with_name("b.csv"))[1]
    assert "'index' counts the rows, and is read: if that is no feature, name the others" in said
    assert "counts the rows" not in opened("ranking", Ranker([], 2, LAYERS), None, rated)[1]


def test_an_index_of_pandas_is_no_feature_and_a_copy_of_the_label_is_said(rated):
    path, ranker = rated.with_name("c.parquet"), Ranker([], 2, LAYERS)
    frame = pd.read_csv(rated)
    frame.sample(frac=1, random_state=0).to_parquet(path)
    said = opened("ranking", ranker, None, path)[1]
    assert "columns read: userId, item, label; not read: __index_level_0__." in said
    assert "same as the label" not in said
    frame[["item", "label"]].assign(click=frame["label"].astype(float)).to_parquet(path)
    said = opened("ranking", ranker, None, path)[1]
    assert "'click' is the same as the label, and a feature (data.dense)." in said


def test_what_is_no_libsvm_is_shown_in_short(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"PK" + bytes(range(128, 255)))
    with pytest.raises(MattaError, match=r"is none of its numbers") as error:
        opened("ranking", Ranker([], 2, LAYERS), None, tmp_path / "a.xlsx")
    assert len(str(error.value)) < 300
