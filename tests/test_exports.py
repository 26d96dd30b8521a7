"""Data as other programs leave it: what could be taken in two ways is told, or read as they do.

The second file of siblings of cases from the field, after ``test_siblings``.
"""

from __future__ import annotations

import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from matta_adapters.encoders import Bert
from matta_adapters.mlp_ranker import Ranker
from PIL import Image
from test_adapters import images
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from matta_cli.adapter import Source
from matta_cli.errors import MattaError
from matta_cli.models import load, plugins
from matta_cli.models.checkpoint import find
from matta_cli.models.source import open_source
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.image_classification.read import read_images
from matta_cli.tasks.image_classification.tables import Known
from matta_cli.tasks.ranking import libsvm
from matta_cli.tasks.task import task
from matta_cli.tasks.texts.encoder import Encoder
from matta_cli.tasks.token_classification.examples import Pieces
from matta_cli.training import teacher_file
from matta_cli.training.file_teacher import FileTeacher
from tests.sample_text import CHATML, byte_tokenizer, prose, save_table
from tests.test_siblings import LAYERS, of_images, picture
from tests.text_models import GOOD, bert, bert_tokenizer, labels

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
    return save_table(path, {"text": TEXTS, "label": LABELS, **columns})


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
    files = (f"configs: [{{data_files: {own}}}]" for own in ("[3]", "."))
    for odd in ("configs: 3", ": [", "configs: [x]", *files):
        (tmp_path / "README.md").write_text(f"---\n{odd}\n---\n")
        assert len(of_texts(two, tmp_path)[0].train) == 20


def of_hub(path: Path, names: list[str], **columns: Any) -> Path:
    """A Parquet file as ``datasets`` writes it, with labels that are numbers of these names."""
    rows = datasets.Dataset.from_dict(columns)
    for column in ("label", "tags"):
        if column in columns:
            one = datasets.ClassLabel(names=names)
            lists = isinstance(columns[column][0], list)
            rows = rows.cast_column(column, datasets.List(one) if lists else one)
    rows.to_parquet(path)
    return path


def test_numbers_of_a_clone_are_the_names_that_it_gives_them(two, tmp_path):
    """Its own order need not be the model's, and they were read as the model's."""
    path = of_hub(tmp_path / "a.parquet", ["bad", "good"], text=TEXTS, label=LABELS)
    assert of_texts(two, path)[0].train.label[:4].tolist() == [1, 0, 1, 0]
    path = of_hub(tmp_path / "b.parquet", ["bad", "good"], text=TEXTS, label=[[0], [0, 1]] * 10)
    assert of_texts(two, path)[0].train.label[:2].tolist() == [[0, 1], [1, 1]]
    tagger = bert(tmp_path / "t", BertForTokenClassification, **labels("O", "B-X"))
    own = {"tokens": [["the", "film"]] * 20, "tags": [[0, 1]] * 20}
    path = of_hub(tmp_path / "c.parquet", ["B-X", "O"], **own)
    data, _ = opened("token_classification", tagger, tmp_path / "t", path)
    assert data.train.tags[0].tolist() == [1, 0]
    for k in range(20):
        picture(tmp_path / f"{k}.png", k)
    files = [f"{k}.png" for k in range(20)]
    path = of_hub(tmp_path / "d.parquet", ["b", "a"], file_name=files, label=LABELS)
    images = opened("image_classification", image_model("a", "b"), None, path)[0]
    assert images.train.batch(range(4))["label"].tolist() == [1, 0, 1, 0]


def image_model(*names: str) -> Any:
    model = images("vit", num_labels=len(names))
    model.config.id2label = dict(enumerate(names))
    return model


@pytest.mark.parametrize("who", ["datasets", "others"])
def test_a_clone_may_hold_the_images_themselves(tmp_path, monkeypatch, who):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    stored = []
    for k in range(20):
        content = io.BytesIO()
        Image.new("RGB", (32, 32), (k, 0, 0)).save(content, "PNG")
        stored.append({"bytes": content.getvalue(), "path": f"{k}.png"})
    (tmp_path / "ds" / "data").mkdir(parents=True)
    for part in ("train", "test"):
        path = tmp_path / "ds" / "data" / f"{part}-00000-of-00001.parquet"
        if who == "datasets":
            of_hub(path, ["b", "a"], image=stored, label=LABELS)
        else:
            pd.DataFrame({"image": stored, "label": LABELS}).to_parquet(path)
    data, notes = opened("image_classification", image_model("a", "b"), None, tmp_path / "ds")
    assert "train 1, test 1" in notes and len(data.train) == len(data.held_out[0]) == 20
    batch = data.train.batch(range(20))
    assert batch["label"][:2].tolist() == ([1, 0] if who == "datasets" else [0, 1])
    assert (batch["image"][:, 0, 0, 0].diff() > 0).all()
    assert len(opened("image_classification", image_model("a", "b"), None, path)[0].train) == 18


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_numbers_that_are_names_of_classes_are_these(tmp_path, kind):
    """As folders called 1, 2, ... 10 give them, in the order of the alphabet."""
    for k in range(20):
        picture(tmp_path / f"{k}.png", k)
    names = ("1", "10", "2", "3")
    own = {"text": TEXTS, "file_name": [f"{k}.png" for k in range(20)]}
    path = write(tmp_path / f"a.{kind}", **own, label=[1, 2, 3, 10] * 5)
    data, _ = opened("image_classification", image_model(*names), None, path)
    assert data.train.batch(range(4))["label"].tolist() == [0, 2, 3, 1]
    write(path, **own, label=[1.0, 2.0, 3.0, 1.0] * 5)
    data, _ = opened("image_classification", image_model(*names), None, path)
    assert data.train.batch(range(4))["label"].tolist() == [0, 2, 3, 0]


def test_labels_that_are_numbers_and_names_are_said(tmp_path):
    stars = bert(tmp_path / "stars", **labels("1", "2", "3"))
    said = "The label '2' is the model's '2', not the model's '3': labels are taken for its names"
    for own, numbers, told in (
        ([1, 2, 3], [0, 1, 2], False),
        ([0, 1, 2], [0, 1, 2], False),
        ([1, 2], [0, 1], True),
        ([1.0, 2.0, 3.0], [0, 1, 2], False),  # as pandas has whole numbers beside a hole
    ):
        path = write(tmp_path / "a.csv", label=[own[k % len(own)] for k in range(20)])
        data, notes = opened("text_classification", stars, tmp_path / "stars", path)
        assert data.train.label[: len(own)].tolist() == numbers
        assert ("taken for its names, which are numbers" in notes) == told, (said, notes)


def test_one_label_in_a_list(tmp_path):
    """As tools of annotation write it."""
    path = write(tmp_path / "a.jsonl", label=[[("good", "bad")[k]] for k in LABELS])
    model = bert(tmp_path / "m", **labels("good", "bad"))
    data, notes = opened("text_classification", model, tmp_path / "m", path)
    assert data.train.label.shape == (18, 2) and "in a list: it is read as one of" in notes
    model.config.problem_type = "single_label_classification"
    data, notes = opened("text_classification", model, tmp_path / "m", path)
    assert data.train.label[:4].tolist() == LABELS[:4] and "in a list" not in notes
    write(path, label=[["good", "bad"][: k + 1] for k in LABELS])
    with pytest.raises(MattaError, match="several labels of each text, but the model is for one"):
        opened("text_classification", model, tmp_path / "m", path)


def test_texts_that_are_odd_are_counted(two, small, tmp_path):
    texts = [f'he said "{text}" aloud' for text in TEXTS]
    path = write(tmp_path / "a.tsv", text=[*texts[:17], "NA", "nan", '"all of it"'])
    _, notes = of_texts(two, path)
    assert "a.tsv': 18 texts stand in quotation marks, and those inside" in notes
    assert "a.tsv': 2 texts are NA, nan or the like" in notes
    _, notes = opened("causal_lm", small[1], small[0], path, sequence_length=8)
    assert "18 texts stand in" in notes and "2 texts are NA" in notes
    path = write(tmp_path / "b.csv", text=texts)
    assert "marks" not in of_texts(two, path)[1]
    ended = write(tmp_path / "c.csv", text=[f"{text}<|end|>" for text in TEXTS])
    _, notes = opened("causal_lm", small[1], small[0], ended, sequence_length=8)
    assert "20 documents end with what is put behind each, so it stands there twice" in notes


def test_two_data_sets_of_idx_files_are_not_mixed(tmp_path):
    """Images of one had the labels of the other, where there were as many."""

    def idx(path: Path, *shape: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        sizes = np.array(shape, ">u4").tobytes()
        path.write_bytes(bytes([0, 0, 8, len(shape)]) + sizes + bytes(int(np.prod(shape))))

    for name in ("MNIST", "FashionMNIST"):
        idx(tmp_path / name / "raw" / "train-images-idx3-ubyte", 4, 32, 32)
    with pytest.raises(MattaError, match=r"train-images-idx3-ubyte in .*FashionMNIST/raw' and in"):
        opened("image_classification", image_model("a", "b"), None, tmp_path)
    (tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte").unlink()
    idx(tmp_path / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte", 4)
    with pytest.raises(MattaError, match=r"MNIST/raw' has .* but no train-labels-idx1-ubyte"):
        opened("image_classification", image_model("a", "b"), None, tmp_path)


def test_numbers_in_one_part_and_names_in_another(tmp_path):
    for k in range(20):
        picture(tmp_path / f"{k}.png", k)
    files = [f"{k}.png" for k in range(20)]
    write(tmp_path / "train.csv", file_name=files)
    write(tmp_path / "val.csv", file_name=files, label=[("dog", "cat")[k] for k in LABELS])
    assert opened("image_classification", image_model("dog", "cat"), None, tmp_path)
    unnamed = images("vit", num_labels=2)
    with pytest.raises(MattaError, match=r"labels of '.*' are numbers, and those of .* names: giv"):
        opened("image_classification", unnamed, None, tmp_path)


def test_what_lightgbm_lays_beside_a_file_is_no_data(tmp_path):
    rows = "".join(f"{k % 2} 1:{k} 2:{k / 7}\n" for k in range(12))
    for part in ("train", "test"):
        (tmp_path / f"rank.{part}").write_text(rows)
    (tmp_path / "rank.train.weight").write_text("0.5\n" * 12)
    data, notes = opened("ranking", Ranker([], 3, LAYERS), None, tmp_path)
    assert len(data.train) == 12 and "rank.train.weight' is not read: to matta all" in notes
    assert "columns are taken to count from 1" in notes


@pytest.mark.parametrize("first", [0, 1])
def test_a_column_that_counts_words_is_told(tmp_path, first):
    """As GermEval's: the words were 1, 2, 3."""
    tagger = bert(tmp_path, BertForTokenClassification, **labels("O", "B-X"))
    words = enumerate(["the", "film", "was"], first)
    text = "".join(f"{k}\t{word}\tB-X\tO\n" for k, word in words) + "\n"
    (tmp_path / "a.conll").write_text(text * 6)
    with pytest.raises(MattaError, match=r"column of .*a.conll' counts the words of each text"):
        opened("token_classification", tagger, tmp_path, tmp_path / "a.conll")


LOGITS = np.eye(2)[LABELS] * 4.0
ODDS = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)


@pytest.mark.parametrize(
    "name, values, wrong",
    [
        ("logits", ODDS, r"column 'logits' holds probabilities \(they are shares of 1 in each row"),
        ("logits", np.log(ODDS), ""),
        ("probabilities", ODDS, ""),
        ("top_logits", LOGITS, "are log-probabilities, but their probabilities sum to 55.6"),
        ("top_logits", np.log(ODDS), ""),
        ("logits", LOGITS[:, None], r"'logits' has the shape \[18, 1, 2\]: give each row one list"),
        ("label", LOGITS, r"'label' has the shape \[18, 2\]: give each row one number"),
    ],
)
def test_a_teachers_file_of_other_numbers_than_it_says(two, tmp_path, name, values, wrong):
    recipe = Recipe()
    settings = {"data": {"train": str(write(tmp_path / "a.csv"))}, "distill": {"temperature": 1.0}}
    recipe.update(settings, "test")
    made = task("text_classification", recipe)
    data = made.data(*two)
    said = {"row": range(20), name: values.tolist()}
    said |= {"top_index": [[0, 1]] * 20} if name == "top_logits" else {}
    pd.DataFrame(said).to_parquet(tmp_path / "said.parquet")
    if wrong:
        with pytest.raises(MattaError, match=wrong):
            FileTeacher(str(tmp_path / "said.parquet"), made, data, 2)
    else:
        teacher = FileTeacher(str(tmp_path / "said.parquet"), made, data, 2)
        assert made.summarize(teacher.columns(teacher.sample()))["accuracy"] == 1


def test_scores_that_are_probabilities_are_said(tmp_path):
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(40, 2)), columns=["a", "b"])
    table.assign(label=(table["a"] > 0).astype(int)).to_csv(tmp_path / "a.csv", index=False)
    recipe = Recipe()
    recipe.data.train = str(tmp_path / "a.csv")
    made = task("ranking", recipe)
    data = made.data(tmp_path, Ranker([], 2, LAYERS))
    for scores, said in ((table["a"], False), (1 / (1 + np.exp(-table["a"])), True)):
        own = pd.DataFrame({"row": range(40), "score": scores})
        own.to_parquet(tmp_path / "said.parquet")
        teacher = FileTeacher(str(tmp_path / "said.parquet"), made, data, 1)
        assert ("call the column 'probabilities' if" in " ".join(teacher.notes)) == said


def test_images_of_the_models_own_size_are_said_to_be_left_as_they_are(tmp_path):
    model = timm.create_model("test_vit", num_classes=2, img_size=32)
    for size, said in ((32, True), (40, False)):
        for k in range(20):
            Image.new("RGB", (size, size), (k, 0, 0)).save(tmp_path / f"{k}.png")
        path = write(tmp_path / "a.csv", file_name=[f"{k}.png" for k in range(20)])
        _, notes = opened("image_classification", model, None, path)
        left = "are used as they are: timm would enlarge and cut them (crop_pct 0.95)"
        assert (left in notes) == said
    model.pretrained_cfg = {**model.pretrained_cfg, "crop_pct": 1.0}
    assert "enlarge" not in opened("image_classification", model, None, path)[1]


def test_sentences_that_are_cut_are_said(tmp_path):
    """By sentence-transformers' own length, which goes before the tokenizer's."""
    model = bert(tmp_path).bert
    own = bert_tokenizer()
    own.model_max_length = 4
    own.save_pretrained(tmp_path)
    texts = [f"the film was good and the plot was {'very ' * (k % 4)}fine" for k in range(20)]
    path = write(tmp_path / "a.csv", text=texts)
    _, notes = opened("sentence_embedding", model, tmp_path, path, held_out=path)
    assert "to train on: 4 of 4 sentences are longer than the 4 tokens that are read" in notes
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    _, notes = opened("sentence_embedding", model, tmp_path, path)
    assert "to train on: 2 of 4 sentences are longer than the 12 tokens" in notes


def test_names_of_the_first_berts(tmp_path):
    model = bert(tmp_path)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"): own
        for name, own in model.state_dict().items()
    }
    assert old.keys() != model.state_dict().keys()
    config = model.config.to_dict()
    for state in (old, model.state_dict()):
        source = Source("bert.pt", config, tensors=state)
        assert Bert().matches(source)
        opened = Bert().load(source).state_dict()
        assert all(torch.equal(opened[k], own) for k, own in model.state_dict().items())
    # a module of one's own may call its norms so
    assert find(old, "bert.pt").state.keys() == old.keys()


def test_files_of_a_folder_that_are_not_read_are_counted(small, tmp_path):
    for name in ("a.txt", "b.rst", "c.rst", "LICENSE"):
        (tmp_path / name).write_text(prose(40))
    _, notes = opened("causal_lm", small[1], small[0], tmp_path, sequence_length=8)
    assert "left out, as of no kind that is read: 2 .rst." in notes
    (tmp_path / "a.txt").unlink()
    with pytest.raises(MattaError, match="holds no text"):
        opened("causal_lm", small[1], small[0], tmp_path, sequence_length=8)


def test_numbers_that_float32_does_not_tell_apart_are_said(tmp_path):
    """Times in seconds were all the same."""
    times = [1_700_000_000.0 + k for k in range(20)]
    path = write(tmp_path / "a.csv", time=times, other=[k / 7 for k in range(20)])
    data, notes = opened("ranking", Ranker([], 2, LAYERS), None, path)
    assert "Column 'time' of" in notes and "20 values that differ are 1 in float32" in notes
    assert "Column 'other'" not in notes
    rows = "".join(f"{k % 2} 1:{own} 2:1\n" for k, own in enumerate(times))
    (tmp_path / "a.svm").write_text(rows)
    _, notes = opened("ranking", Ranker([], 2, LAYERS), None, tmp_path / "a.svm")
    assert "Column 1 of" in notes and "Column 2 of" not in notes


def test_a_label_is_no_feature(tmp_path):
    path = write(tmp_path / "a.csv", price=range(20))
    for dense, wrong in ((["price", "label"], "'label' is the label"), (["price"] * 2, "twice")):
        with pytest.raises(MattaError, match=wrong):
            opened("ranking", Ranker([], 2, LAYERS), None, path, dense=dense)


def test_decimals_are_numbers(tmp_path):
    """As Spark and databases write them."""
    one = bert(tmp_path, num_labels=1)
    path = write(tmp_path / "a.parquet", label=[Decimal(k) / 4 for k in range(20)])
    data, _ = opened("text_classification", one, tmp_path, path)
    assert data.train.label[:3].tolist() == [0, 0.25, 0.5]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = byte_tokenizer([prose(40)], 290)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    sizes = {"n_positions": 256, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return folder, GPT2LMHeadModel(GPT2Config(vocab_size=300, **sizes))


def learned(chat: tuple[Path, Any], path: Path, **row: Any) -> tuple[str, str]:
    """What is learned of twenty such rows, and what is said of them."""
    pd.DataFrame([row] * 20).to_json(path, orient="records", lines=True)
    data, notes = opened("causal_lm", chat[1], chat[0], path, sequence_length=256)
    batch = data.train.batch([0])
    tokenizer = AutoTokenizer.from_pretrained(chat[0])
    return tokenizer.decode(batch["input_ids"][0][batch["predicted"][0]]), notes


def test_roles_and_marks_of_other_programs(chat, tmp_path):
    said = ["the cat", "sat on"]
    for user, own in (("User", "Assistant"), ("human", "gpt"), ("user", "assistant")):
        turns = [{"role": user, "content": said[0]}, {"role": own, "content": said[1]}]
        assert learned(chat, tmp_path / "a.jsonl", messages=turns)[0].startswith("sat on")
        last = {"role": own, "content": "came home"}
        more = [{**turns[1], "train": False}, turns[0], last]
        text, _ = learned(chat, tmp_path / "b.jsonl", messages=[turns[0], *more])
        assert text.startswith("came home")
    turns = [{"role": "user", "content": said[0]}, {"role": "model", "content": said[1]}]
    with pytest.raises(MattaError, match=r"that answers something .*its roles: user, model"):
        learned(chat, tmp_path / "c.jsonl", messages=turns)
    text, notes = learned(chat, tmp_path / "d.jsonl", prompt="the cat", completion=" sat<|end|>")
    assert text.count("<|end|>") == 2 and "20 completions end with the token that ends" in notes


def test_links_to_folders_are_followed(two, tmp_path):
    """As torchvision and timm follow them; one that leads up has no end."""
    write(tmp_path / "elsewhere" / "test.csv")
    write(tmp_path / "data" / "train.csv", text=[f"{text} too" for text in TEXTS])
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "more" / "up").symlink_to(tmp_path)
    (tmp_path / "data" / "again").symlink_to(".")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    data, notes = of_texts(two, tmp_path / "data")
    assert "train 1, test 1" in notes and len(data.held_out[0]) == 20


def test_what_a_folder_has_in_place_of_data_is_said(two, tmp_path):
    (tmp_path / "data-00000-of-00001.arrow").touch()
    with pytest.raises(MattaError, match=r"holds no texts and labels .* no such files .*\.arrow"):
        of_texts(two, tmp_path)


def test_lines_with_tabs_are_said(two, tmp_path):
    text = " and the plot was very fine"
    (tmp_path / "a.txt").write_text("\n".join(f"{own}{text}\t{own}" for own in TEXTS))
    _, notes = opened("sentence_embedding", two[1].bert, two[0], tmp_path / "a.txt")
    assert "20 of 20 lines have tabs, and are a sentence each: a table of pairs" in notes


def test_what_numbers_labels_are_is_said(tmp_path):
    one = bert(tmp_path, num_labels=1)
    path = write(tmp_path / "a.csv", label=[k % 6 for k in range(20)])
    held_out = write(tmp_path / "b.csv", label=[k % 6 / 5 for k in range(20)])
    _, notes = opened("text_classification", one, tmp_path, path, held_out=held_out)
    assert "to train on: labels from 0 to 5." in notes
    assert "held out: labels from 0 to 1. A CrossEncoder of sentence-transformers gives" in notes
    one.config.problem_type = "regression"
    _, notes = opened("text_classification", one, tmp_path, path, held_out=held_out)
    assert "held out: labels from 0 to 1." in notes and "CrossEncoder" not in notes


def arrays(path: Path, images: Any, labels: Any = LABELS) -> Path:
    np.savez(path, images=np.asarray(images, np.uint8), labels=np.array(labels))
    return path


def test_arrays_of_another_range_and_with_transparency(tmp_path):
    grey, model = np.arange(20)[:, None, None] + np.zeros((20, 32, 32)), image_model("a", "b")
    with pytest.raises(MattaError, match=r"a.npz' hold 0 and 1 alone, .* multiply them by 255"):
        opened("image_classification", model, None, arrays(tmp_path / "a.npz", grey > 3))
    clear = np.repeat(grey[..., None], 4, -1)
    _, notes = opened("image_classification", model, None, arrays(tmp_path / "b.npz", clear))
    assert "18 of 18 images have transparent pixels, and transparency is left out" in notes
    holes = arrays(tmp_path / "c.npz", grey, [-100, *LABELS[1:]])
    _, notes = opened("image_classification", model, None, holes)
    assert "(the first: image 0 of '" in notes and "c.npz')" in notes


@pytest.mark.parametrize(
    "told",
    [
        {"class_to_idx": {"1": 0, "10": 1, "2": 2}},
        {"classes": ["1", "10", "2"]},
        {"idx_to_class": {0: "1", 1: "10", 2: "2"}},
    ],
)
def test_classes_that_a_checkpoint_names(tmp_path, told):
    """torchvision numbers folders by letters, and timm as people count."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=1)
    torch.save({"state_dict": model.state_dict(), **told}, tmp_path / "m.pth")
    own, adapter = open_source(str(tmp_path / "m.pth")), plugins.adapter("vit")
    for k in range(30):
        picture(tmp_path / "data" / ("1", "2", "10")[k % 3] / f"{k}.png", k)
    data, _ = opened("image_classification", load.opened(adapter, own), None, tmp_path / "data")
    batch = data.train.batch(range(len(data.train)))
    names = [name.split("/")[0] for name in data.train.source.names]
    assert [("1", "10", "2")[k] for k in batch["label"].tolist()] == names
    assert "as the file of the weights says: 0 1, 1 10, 2 2." in adapter.notes[-1]


def test_classes_of_a_checkpoint_that_names_others(tmp_path):
    for told in ({"classes": ["a"]}, {"class_to_idx": {"a": 0, "b": 2}}, {"classes": [1, 2]}):
        assert find({"state_dict": {"a.weight": torch.ones(1)}, **told}, "x").classes == ()
    one = bert(tmp_path, num_labels=2)
    torch.save({"model": one.state_dict(), "label2id": {"no": 1, "yes": 0}}, tmp_path / "a.pt")
    source = open_source(str(tmp_path / "a.pt"), model_config=tmp_path / "config.json")
    assert load.opened(plugins.adapter("bert"), source).config.id2label == {0: "yes", 1: "no"}


FEATURES = """---
dataset_info:
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': bad
          '1': good
---
"""


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_numbers_of_a_clone_are_the_names_that_its_card_gives_them(two, tmp_path, kind):
    (tmp_path / "README.md").write_text(FEATURES)
    for own in (LABELS, [float(k) for k in LABELS], [("bad", "good")[k] for k in LABELS]):
        write(tmp_path / "data" / f"train.{kind}", label=own)
        data, _ = of_texts(two, tmp_path)
        assert data.train.label[:4].tolist() == [1, 0, 1, 0]
    for k in range(20):
        picture(tmp_path / "data" / f"{k}.png", k)
    files = [f"{k}.png" for k in range(20)]
    path = write(tmp_path / "data" / f"train.{kind}", file_name=files)
    found = opened("image_classification", image_model("good", "bad"), None, path)[0]
    assert found.train.batch(range(4))["label"].tolist() == [1, 0, 1, 0]
    (tmp_path / "README.md").write_text(FEATURES.replace("name: label", "name: other"))
    assert of_texts(two, write(path))[0].train.label[:4].tolist() == [0, 1, 0, 1]


def test_images_that_tables_name_twice_are_read_once(tmp_path):
    """As where labels.csv stands beside metadata.csv."""
    for k in range(20):
        picture(tmp_path / f"{k}.png", k)
    files = [f"{k}.png" for k in range(20)]
    table = pd.DataFrame({"file_name": files, "label": LABELS})
    table.assign(path="old/" + table["file_name"]).to_csv(tmp_path / "metadata.csv", index=False)
    write(tmp_path / "labels.csv", file_name=[f"./{name}" for name in files])
    data, notes = opened("image_classification", image_model("a", "b"), None, tmp_path)
    assert len(data.train) == 18 and "20 rows name images that others have named" in notes
    assert "metadata.csv': 'file_name' is read, not 'path'" in notes


@pytest.mark.parametrize("kind", ["unigram", "bytes"])
def test_a_blank_of_its_own_is_the_first_token_of_a_word(kind):
    """As XLM-R and RoBERTa have it, and what taggers learned to say at it."""
    if kind == "unigram":
        letters = [("<unk>", 0.0), ("<s>", 0.0), ("\u2581", -2.0), ("\u2581the", -1.0)]
        letters += [(letter, -3.0) for letter in "abcdehint"]
        tokenizer = Tokenizer(models.Unigram(letters, unk_id=0))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    else:
        letters = ["<unk>", "<s>", *pre_tokenizers.ByteLevel.alphabet()]
        numbers = {letter: k for k, letter in enumerate(letters)}
        numbers |= {"th": len(letters), "\u0120th": len(letters) + 1}
        tokenizer = Tokenizer(models.BPE(numbers, [("t", "h"), ("\u0120", "th")]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.post_processor = processors.RobertaProcessing(("<s>", 1), ("<s>", 1))
    own = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")
    own.add_prefix_space = True
    for words in (["the", "cat", "in"], ["a", "the", "\U0001f642", "-", "the"], ["hat"]):
        made = Pieces(Encoder(own, 64), [words])
        stock = own(words, is_split_into_words=True)
        assert made.tokens.ids.tolist() == stock["input_ids"]
        assert made.first[0].tolist() == [stock.word_ids().index(k) for k in range(len(words))]


@pytest.mark.parametrize("form", ["{:03}.{}", "n{:08}-{}", "{} {}"])
def test_numbers_before_names_of_classes(tmp_path, form):
    """As CUB's and Stanford's folders have them: their order is not the model's."""
    for k in range(20):
        picture(tmp_path / form.format(k % 2 + 1, ("zebra", "Wild_ape")[k % 2]) / f"{k}.png", k)
    _, notes = opened("image_classification", image_model("wild ape", "zebra"), None, tmp_path)
    assert "numbered by the names that the model has: 0 wild ape, 1 zebra." in notes
