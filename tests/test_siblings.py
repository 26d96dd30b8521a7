"""Siblings of cases from the field: what data and folders look like that nobody made for matta."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matta_adapters.gpt2 import GPT2
from matta_adapters.mlp_ranker import Ranker
from PIL import Image
from test_adapters import images
from tokenizers import processors
from transformers import (
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    ViTImageProcessor,
)

from matta_cli.data.find import find
from matta_cli.data.folders import data_files
from matta_cli.errors import MattaError
from matta_cli.models import plugins
from matta_cli.models.source import open_source
from matta_cli.settings.recipe import DataSettings, Recipe
from matta_cli.tasks.image_classification.examples import Preparation
from matta_cli.tasks.task import task
from tests.sample_text import byte_tokenizer, prose
from tests.text_models import bert, labels

LAYERS = [{"layer": "Linear", "out": 4}, {"layer": "ReLU"}, {"layer": "Linear", "out": 1}]


def opened(name: str, model: Any, folder: Path | None, train: Path, held_out: Any = "", **own: Any):
    made = task(name, Recipe(data=DataSettings(str(train), held_out=str(held_out or ""), **own)))
    return made.data(folder, model)


@pytest.fixture
def table() -> pd.DataFrame:
    random = np.random.default_rng(0)
    made = pd.DataFrame(random.normal(size=(40, 3)).round(3), columns=["a", "b", "c"])
    return made.assign(label=[k % 2 for k in range(40)])


def test_features_are_known_by_the_names_of_their_columns(table, tmp_path):
    ranker = Ranker([], 3, LAYERS)
    train, held_out = tmp_path / "train.csv", tmp_path / "other.csv"
    table.to_csv(train, index=False)
    table[["c", "label", "b", "a"]].to_csv(held_out, index=False)
    data = opened("ranking", ranker, None, train, held_out)
    rows = data.held_out[0].whole.batch(range(40))["dense"].numpy()
    np.testing.assert_allclose(rows, table[["a", "b", "c"]], rtol=1e-6)
    assert any("in the model's order (else data.dense): a, b, c" in note for note in data.notes)
    # where nothing is trained on, its header alone tells the order
    measured = task("ranking", Recipe(data=DataSettings(str(train), held_out=str(held_out))))
    again = measured.data(None, ranker, training=False).held_out[0].whole.batch(range(40))
    np.testing.assert_array_equal(again["dense"].numpy(), rows)
    table.rename(columns={"b": "d"}).to_csv(held_out, index=False)
    with pytest.raises(MattaError, match=r"other.csv' has no numbers in a column 'b', as the data"):
        opened("ranking", ranker, None, train, held_out)


def test_of_a_folder_each_file_is_read_once_and_what_is_not_opened_is_said(tmp_path):
    rows = "text,label\na,0\nb,1\n"
    for name in ("train.csv", "train (1).csv", "Copy of train.csv", "test.csv", "train.csv.bak"):
        (tmp_path / name).write_text(rows)
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 0}\n')
    (tmp_path / "valid.csv.gz").write_bytes(gzip.compress(rows.encode()))
    for name in ("Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_text("x")
    found = data_files(tmp_path, (".csv", ".jsonl"))
    assert [path.name for path in found.files] == ["test.csv", "train.csv"]
    closed, twice = found.note()
    assert "opens no such files (unpack or convert them): valid.csv.gz." in closed
    assert twice.endswith("is read: Copy of train.csv, train (1).csv, train.jsonl.")
    for name in ("rank.train", "rank.test", "rank.fold2"):
        (tmp_path / name).write_text(f"1 qid:1 1:{len(name)}\n")
    kinds = (".train", ".test", ".fold2")
    assert len(data_files(tmp_path, kinds).files) == 3
    with pytest.raises(MattaError, match=r"valid.csv.gz' is packed: unpack it"):
        find(str(tmp_path / "valid.csv.gz"))


def picture(path: Path, red: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (red, 0, 0)).save(path)


def of_images(folder: Path, outputs: int, names: tuple[str, ...] = ()):
    model = images("vit", num_labels=outputs)
    if names:
        model.config.id2label = dict(enumerate(names))
    return opened("image_classification", model, None, folder)


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_whole_numbers_that_became_floats_are_whole_numbers(tmp_path, kind):
    """Alphabetically 10.0 comes before 2.0: each class would be another one."""
    for k in range(24):
        picture(tmp_path / f"{k:02}.png", k)
    rows = pd.DataFrame({"path": [f"{k:02}.png" for k in range(24)], "label": [*range(12)] * 2})
    rows["label"] = rows["label"].astype(float)
    if kind == "csv":
        rows.to_csv(tmp_path / "a.csv", index=False)
    elif kind == "parquet":
        rows.to_parquet(tmp_path / "a.parquet")
    else:
        rows.to_json(tmp_path / "a.jsonl", orient="records", lines=True, double_precision=1)
    data = of_images(tmp_path, 12)
    assert data.train.batch(range(12))["label"].tolist() == [*range(12)]


def test_paths_as_windows_writes_them(tmp_path):
    for k in range(6):
        picture(tmp_path / "a" / f"{k}.png", k)
    rows = "".join(f"a\\{k}.png,{k % 2}\n" for k in range(6))
    (tmp_path / "a.csv").write_text("path,label\n" + rows)
    assert len(of_images(tmp_path / "a.csv", 2).train) == 5


@pytest.mark.parametrize(
    "pattern",
    [
        "{part}ing_set/{part}ing_set/{label}/{k}.png",
        "set/images/{part}/{label}/{k}.png",
        "{label}/{part}/{k}.png",
        "seg_{part}/{label}/{k}.png",
    ],
)
def test_parts_within_folders_of_all_kinds(tmp_path, pattern):
    for part, count in (("train", 4), ("test", 2)):
        for label in ("cat", "dog"):
            for k in range(count):
                picture(tmp_path / pattern.format(part=part, label=label, k=k), k)
    for label in ("cat", "dog"):
        where = tmp_path / pattern.format(part="train", label=label, k=0)
        (where.parent / "9.heic").write_text("x")
    data = of_images(tmp_path, 2, ("cat", "dog"))
    assert len(data.train) == 8 and len(data.held_out[0]) == 4
    assert any("parts by the names of folders" in note for note in data.notes)
    assert any(note.endswith("2 .heic.") for note in data.notes)


def test_a_part_may_lack_a_class(tmp_path):
    for name in ("1", "2", "10"):
        for k in range(4):
            picture(tmp_path / "train" / name / f"{k}.png", k)
            if name != "10":
                picture(tmp_path / "val" / name / f"{k}.png", 9 + k)
    held_out = of_images(tmp_path, 3).held_out[0].whole.batch(range(8))
    assert held_out["label"].tolist() == [0] * 4 + [2] * 4
    rows = "".join(f"train/1/{k}.png,{k % 3 + 1}\n" for k in (0, 1, 3, 2))
    (tmp_path / "a.csv").write_text("path,label\n" + rows)
    with pytest.raises(MattaError, match=r"end at 3, but the model's are 0 to 2: count them"):
        of_images(tmp_path / "a.csv", 3)


def test_colours_that_a_grey_model_does_not_see_are_said(tmp_path):
    for k in range(8):
        picture(tmp_path / str(k % 2) / f"{k}.png", k)
    made = task("image_classification", Recipe(data=DataSettings(str(tmp_path))))
    data = made.data(None, images("vit", num_labels=2, num_channels=1))
    assert any("reads grey images" in note for note in data.notes)


@pytest.mark.parametrize("lacks", [("resample",), ("image_mean", "image_std")])
def test_what_a_processor_does_not_say_is_as_its_own_class_has_it(tmp_path, lacks):
    """ViT's own are bilinear, and a mean of a half; timm's usual ones are neither."""
    model = images("vit", num_labels=2)
    whole = ViTImageProcessor(size={"height": 32, "width": 32})
    whole.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    card = {key: value for key, value in json.loads(path.read_text()).items() if key not in lacks}
    path.write_text(json.dumps(card))
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    prepare = Preparation(tmp_path, model)
    made = prepare.input(prepare.pixels(Image.fromarray(pixels)))
    wanted = whole(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    assert (made - wanted).abs().max() < 0.02
    assert any(f"does not say {', '.join(lacks)}: those of a ViT" in n for n in prepare.notes)


def test_copies_in_other_case_and_with_other_blanks_are_counted(tmp_path):
    two = bert(tmp_path / "two", **labels("bad", "good"))
    train, held_out = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    texts = [(f"the film was good {k}", k % 2) for k in range(8)]
    write(train, texts)
    write(held_out, [(f" The  FILM was good {k}", k % 2) for k in range(4)])
    notes = opened("text_classification", two, tmp_path / "two", train, held_out).notes
    assert any(note.startswith("4 held-out texts also stand in the data") for note in notes)


def write(path: Path, rows: list[tuple[str, Any]]) -> None:
    lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    path.write_text("".join(lines))


def test_yes_and_no_are_labels_of_two(tmp_path):
    three = bert(tmp_path / "three", num_labels=3)
    write(tmp_path / "a.jsonl", [(f"the film {k}", bool(k % 2)) for k in range(8)])
    with pytest.raises(MattaError, match=r"holds True in line 8 .* none of the model's"):
        opened("text_classification", three, tmp_path / "three", tmp_path / "a.jsonl")


def tagged(folder: Path, *tags: str) -> list[str]:
    names = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    tagger = bert(folder / "tagger", BertForTokenClassification, **labels(*names))
    lines = "\n".join(f"{w} {t}" for w, t in zip(["the", "film", "was", "good"], tags, strict=True))
    (folder / "a.conll").write_text(f"{lines}\n\n" * 4)
    data = opened("token_classification", tagger, folder / "tagger", folder / "a.conll")
    tags = data.train.batch([0])["label"][0].tolist()
    return [*data.notes, str([names[k] for k in tags])]


def test_spans_may_be_marked_otherwise_than_the_model_marks_them(tmp_path):
    plain = ["B-PER", "I-PER", "O", "B-LOC"]
    assert not any("scheme" in note or "IOB1" in note for note in tagged(tmp_path, *plain))
    for marked in (["B-PER", "E-PER", "O", "S-LOC"], ["B-PER", "L-PER", "O", "U-LOC"]):
        *notes, tags = tagged(tmp_path, *marked)
        assert tags == str(plain)
        assert "6 words have tags of another scheme" in " ".join(notes)
    notes = tagged(tmp_path, "I-PER", "I-PER", "O", "I-LOC")
    assert "to train on: 6 of 6 spans begin with I-, as in IOB1: if" in " ".join(notes)


def test_what_only_one_of_teacher_and_model_names_is_said(tmp_path):
    made = task("image_classification", Recipe())
    ours, theirs = (images("vit", num_labels=3) for _ in range(2))
    ours.config.id2label = {0: "cat", 1: "dog", 2: "sky"}
    made.fit_teacher(theirs, None, ours, None)
    assert any("in the model's order: only one of both names them" in note for note in made.notes)


def test_a_teacher_whose_texts_begin_with_another_token_is_said(tmp_path):
    plain = byte_tokenizer([prose(20)], 280)
    begun = byte_tokenizer([prose(20)], 280)
    begun.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", begun.eos_token_id)]
    )
    for name, tokenizer in (("model", plain), ("teacher", begun)):
        tokenizer.save_pretrained(tmp_path / name)
    made, model = task("causal_lm", Recipe()), language_model(len(plain))
    made.fit_teacher(model, tmp_path / "model", model, tmp_path / "model")
    assert made.notes == []
    made.fit_teacher(model, tmp_path / "teacher", model, tmp_path / "model")
    assert made.notes[0].startswith("The Teacher's tokenizer begins a text with <|end|>, the mod")


def language_model(tokens: int = 40) -> GPT2LMHeadModel:
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=tokens, **sizes)).eval()


def test_what_a_training_module_has_beside_its_model(tmp_path):
    """A loss or a metric is left out, and said; of two models none is chosen silently."""
    state, path = language_model().state_dict(), tmp_path / "a.ckpt"
    module = {f"model.{name}": tensor for name, tensor in state.items()}
    more = {"criterion.weight": torch.ones(3), "val_f1.total": torch.tensor(3)}
    torch.save({"state_dict": module | more}, path)
    source = plugins.bare(open_source(str(path)), [GPT2()])
    assert source.tensors is not None and source.tensors.keys() == state.keys()
    assert source.notes[-1].endswith("are taken; left out: 'criterion.', 'val_f1.'.")
    other = {f"teacher.{name}": tensor for name, tensor in state.items()}
    for beside in (other, {"projection.weight": torch.ones(3)}):
        torch.save({"state_dict": module | beside}, path)
        with pytest.raises(MattaError, match=r"of several modules \(model\., .*: save the state"):
            plugins.bare(open_source(str(path)), [GPT2()])


def test_folders_whose_weights_have_other_names_or_sizes(tmp_path):
    language_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 48}))
    with pytest.raises(MattaError, match=r"wte.weight has shape \[40, 16\], not \[48, 16\]"):
        GPT2().load(open_source(str(tmp_path)))
    (tmp_path / "config.json").rename(tmp_path / "c.json")
    with pytest.raises(MattaError, match=r"Pass .*model.safetensors with --config FILE.json"):
        plugins.detect(open_source(str(tmp_path)))
    (tmp_path / "c.json").rename(tmp_path / "config.json")
    (tmp_path / "optimizer.bin").touch()
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    with pytest.raises(MattaError, match=r"but weights.safetensors: pass .* with --config .*"):
        open_source(str(tmp_path))
    (tmp_path / "weights.safetensors").rename(tmp_path / "optimizer.safetensors")
    (tmp_path / "global_step9").mkdir()
    (tmp_path / "global_step9" / "mp_rank_00_model_states.pt").touch()
    with pytest.raises(MattaError, match=r"pass .*mp_rank_00_model_states.pt"):
        open_source(str(tmp_path))


def test_a_text_of_a_tagger_may_begin_with_a_hashtag(tmp_path):
    tagger = bert(tmp_path, head=BertForTokenClassification, **labels("O", "B"))
    for comment in ("", "# id = 3\n", "# newdoc\n\n"):
        words = tmp_path / "tags.conll"
        words.write_text(comment + "#film\tB\nthe\tO\n\n" * 4)
        batch = opened("token_classification", tagger, tmp_path, words).train.batch(range(3))
        assert batch["label"].tolist() == [[1, 0]] * 3


def test_columns_of_json_are_put_together_by_their_index(tmp_path):
    """As pandas writes them: the same rows may stand in another order."""
    rows = {str(k): f"the film {k}" for k in range(8)}
    marks = {str(k): k % 2 for k in reversed(range(8))}
    (tmp_path / "a.json").write_text(json.dumps({"text": rows, "label": marks}))
    model = bert(tmp_path, **labels("bad", "good"))
    data = opened("text_classification", model, tmp_path, tmp_path / "a.json")
    assert data.train.batch(range(4))["label"].tolist() == [0, 1, 0, 1]
    marks.pop("3")
    (tmp_path / "a.json").write_text(json.dumps({"text": rows, "label": marks}))
    with pytest.raises(MattaError, match=r"a.json' has columns that name different rows"):
        opened("text_classification", model, tmp_path, tmp_path / "a.json")
    # rows by their index are no columns, and not all are named
    (tmp_path / "a.json").write_text(json.dumps({str(k): {"text": "a"} for k in range(99)}))
    with pytest.raises(MattaError, match=r"it has 0, 1, .*, 29 and 69 more\. Set data.text"):
        opened("text_classification", model, tmp_path, tmp_path / "a.json")


def test_labels_that_are_counted_from_one_are_told_what_to_write(tmp_path):
    write(tmp_path / "a.jsonl", [(f"the film {k}", 1 + k % 2) for k in range(8)])
    with pytest.raises(MattaError, match=r"'bad', 'good'; write these, or their numbers, from 0"):
        opened(
            "text_classification",
            bert(tmp_path, **labels("bad", "good")),
            tmp_path,
            tmp_path / "a.jsonl",
        )


@pytest.mark.parametrize("words", [("True", "False"), ("1.0", "0.0"), ("1", "0")])
def test_a_column_for_each_label_may_hold_words(tmp_path, words):
    model = bert(tmp_path, problem_type="multi_label_classification", **labels("a", "b"))
    path, (yes, no) = tmp_path / "hot.csv", words
    path.write_text("text,a,b\n" + f"film,{yes},{no}\nbook,{no},{no}\n" * 3)
    data = opened("text_classification", model, tmp_path, path)
    assert data.train.batch([0, 1])["label"].tolist() == [[1, 0], [0, 0]]
    path.write_text("text,a,b\n" + f"film,{yes},{no}\nbook,{no},0.5\n" * 3)
    with pytest.raises(MattaError, match=r"The columns of labels hold .* in line 7 .* 0 or 1, of"):
        opened("text_classification", model, tmp_path, path)


def test_whole_numbers_beyond_float64_are_not_lost(table, tmp_path):
    path = tmp_path / "big.parquet"
    for kind in (np.int64, np.uint64):
        table.assign(a=np.full(len(table), 2**62 + 1, kind)).to_parquet(path)
        with pytest.raises(MattaError, match="has whole numbers that float32 would round, 40 in"):
            opened("ranking", Ranker([], 3, LAYERS), None, path)
    table.assign(a=np.full(len(table), 2**62)).to_parquet(path)
    opened("ranking", Ranker([], 3, LAYERS), None, path)


@pytest.mark.parametrize(
    "line, wrong",
    [
        ("0 qid:a 1:2", "'qid:a' in line 2 is none of its numbers"),
        ("0 qid:1 1:NULL", "'1:NULL' in line 2 is none of its numbers"),
        ("0 qid:1 3:1 2:1", "'2:1' in line 2 follows column 3, but columns ascend"),
        ("0 0.5 0.5", "'0.5' in line 2 is none of its numbers"),
    ],
)
def test_what_is_no_libsvm_is_named(tmp_path, line, wrong):
    (tmp_path / "a.svm").write_text(f"1 qid:1 1:0.5 # first\n{line}\n")
    with pytest.raises(MattaError, match=re.escape(wrong)):
        opened("ranking", Ranker([], 3, LAYERS), None, tmp_path / "a.svm")


def test_pairs_without_a_score_are_said(tmp_path):
    (tmp_path / "a.csv").write_text("sentence1,sentence2,rating\n" + "the film,a book,3\n" * 20)
    model = BertModel(bert(tmp_path).config)
    data = opened("sentence_embedding", model, tmp_path, tmp_path / "a.csv")
    assert "(no scores: data.score names their column)" in data.description
