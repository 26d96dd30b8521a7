"""Taggers on tiny real models: files of words and tags, labels of words, seqeval's F1, Teachers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, BertForTokenClassification, RobertaForTokenClassification

from matta_cli.conversion.convert import convert
from matta_cli.errors import MattaError
from matta_cli.family import export
from matta_cli.models.load import load_model
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.token_classification.task import TokenClassification
from matta_cli.training.run import distill
from matta_cli.training.teach import teach
from tests.text_models import BAD, GOOD, PLAIN, bert, labels, roberta

TAGS = ("O", "B-GOOD", "I-GOOD", "B-BAD", "I-BAD")
seqeval = pytest.importorskip("seqeval.metrics")


def task(distill: dict[str, Any] | None = None, **data: Any) -> TokenClassification:
    recipe = Recipe()
    recipe.update({"data": data, "distill": distill or {}}, "test")
    return TokenClassification(recipe)


def texts(count: int, seed: int = 0) -> list[tuple[list[str], list[str]]]:
    """Words, of which runs are good or bad."""
    generator, found = np.random.default_rng(seed), []
    for _ in range(count):
        words: list[str] = []
        tags: list[str] = []
        for _ in range(int(generator.integers(2, 4))):
            kind = str(generator.choice(["O", "GOOD", "BAD"]))
            own = {"O": PLAIN, "GOOD": GOOD, "BAD": BAD}[kind]
            run = [str(word) for word in generator.choice(own, int(generator.integers(1, 4)))]
            marks = ["B-", *["I-"] * (len(run) - 1)]
            words += run
            tags += ["O"] * len(run) if kind == "O" else [mark + kind for mark in marks]
        found.append((words, tags))
    return found


def conll(path: Path, rows: list[tuple[list[str], list[str]]]) -> Path:
    lines = ["-DOCSTART- -X- O\n"]
    for words, tags in rows:
        lines.append("".join(f"{w} NN {t}\n" for w, t in zip(words, tags, strict=True)))
    path.write_text("\n".join(lines))
    return path


def jsonl(path: Path, rows: list[tuple[list[str], list[Any]]], words: str = "tokens") -> Path:
    path.write_text("".join(json.dumps({words: w, "tags": t}) + "\n" for w, t in rows))
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of a tagger and its tokenizer, which knows words whole: pieces are of ``-``."""
    bert(tmp_path / "model", BertForTokenClassification, **labels(*TAGS))
    return tmp_path / "model"


def opened(found: TokenClassification, home: Path) -> Any:
    model, _ = load_model(str(home), found.name)
    return found.data(home, model)


@pytest.mark.parametrize("form", ["conll", "txt", "jsonl", "numbers"])
def test_words_and_tags_from_files(home: Path, tmp_path: Path, form: str) -> None:
    rows = texts(30)
    numbers = [(words, [TAGS.index(t) for t in tags]) for words, tags in rows]
    if form in ("conll", "txt"):
        path = conll(tmp_path / f"t.{form}", rows)
    elif form == "jsonl":
        path = jsonl(tmp_path / "t.jsonl", rows)
    else:  # as a hub dataset has them
        import datasets

        kind = datasets.Sequence(datasets.ClassLabel(names=list(TAGS)))
        strings = datasets.Sequence(datasets.Value("string"))
        features = datasets.Features({"tokens": strings, "tags": kind})
        table = {"tokens": [w for w, _ in rows], "tags": [t for _, t in numbers]}
        split = datasets.Dataset.from_dict(table, features)
        from matta_cli.data import sources
        from matta_cli.tasks.token_classification import read

        given = read.Rows()
        read._add(given, sources.of_split(split, "it"), Recipe().data)
        assert given.tags == [tags for _, tags in rows]
        return
    data = opened(task(train=str(path)), home)
    batch = data.train.batch([0, 1])
    for row, (_, tags) in zip(batch["label"].tolist(), numbers[:2], strict=True):
        assert row[: len(tags)] == tags and set(row[len(tags) :]) <= {-100}
    assert len(data.train) == 27 and len(data.held_out[0]) == 3


def test_universal_dependencies_give_parts_of_speech(tmp_path: Path) -> None:
    bert(tmp_path / "m", BertForTokenClassification, **labels("DET", "NOUN", "AUX"))
    lines = ["1 the _ DET", "2-3 films _ _", "2 film _ NOUN", "3 was _ AUX"]
    one = "".join(f"{line} {' '.join('_' * 6)}\n".replace(" ", "\t") for line in lines)
    path = tmp_path / "t.conllu"
    path.write_text(f"# text = the film was\n{one}\n" * 12)
    found = task(train=str(path))
    assert opened(found, tmp_path / "m").train.batch([0])["label"].tolist() == [[0, 1, 2]]
    assert [m.name for m in found.metrics] == ["accuracy"]


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "the O\nfilm B-FILM\n\nbook B-FILM\n",
            r"'film' of the text from line 1.*'B-FILM' \(2 words",
        ),
        ("the O\nfilm X O\n", "has 3 columns in line 2, but 2, as the lines before"),
        ("the\nfilm\n", "has one column: a word and its tag are needed"),
        ("\n\n", "no texts with words and tags"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(
    home: Path, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "t.conll").write_text(text)
    with pytest.raises(MattaError, match=message):
        opened(task(train=str(tmp_path / "t.conll"), held_out=str(tmp_path / "t.conll")), home)


@pytest.mark.parametrize("tag", [{"a": 1}, [1], True, 1.0])
def test_a_tag_is_text_or_a_whole_number(tmp_path: Path, tag: Any) -> None:
    bert(tmp_path / "m", BertForTokenClassification, num_labels=3)
    path = jsonl(tmp_path / "t.jsonl", [(["the"], [0]), (["film"], [tag])])
    with pytest.raises(MattaError, match=r"'film' of line 2.* has the tag .* numbers from 0 to 2"):
        opened(task(train=str(path), held_out=str(path)), tmp_path / "m")


def test_a_blank_that_does_not_break_is_a_part_of_a_word(home: Path, tmp_path: Path) -> None:
    (tmp_path / "t.conll").write_text("the O\nvery\u00a0good  B-GOOD\n\n" * 2)
    data = opened(task(train=str(tmp_path / "t.conll")), home)
    assert data.train.rows.words == [["the", "very\u00a0good"]]


def test_tags_that_no_word_has_are_told(tmp_path: Path) -> None:
    """As where the model's are BIOES, and the data's are BIO."""
    kinds = ("O", *(f"{mark}-{kind}" for kind in ("GOOD", "BAD") for mark in "BIES"))
    bert(tmp_path / "m", BertForTokenClassification, **labels(*kinds))
    path = str(conll(tmp_path / "t.conll", texts(30)))
    data = opened(task(train=path, held_out=path), tmp_path / "m")
    told = [note for note in data.notes if "no word has the tag" in note]
    assert len(told) == 2 and all("E-GOOD, S-GOOD, E-BAD, S-BAD." in note for note in told)


def test_each_word_needs_a_tag(home: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "t.jsonl", [(["the", "film"], ["O"])])
    with pytest.raises(MattaError, match="2 words and 1 tags in line 1"):
        opened(task(train=str(path), held_out=str(path)), home)
    path = jsonl(tmp_path / "t.jsonl", [(["the", "film"], ["O", None])])
    with pytest.raises(MattaError, match=r"The word 'film' of line 1.*has no tag"):
        opened(task(train=str(path), held_out=str(path)), home)


def test_a_word_is_what_its_first_token_says(home: Path, tmp_path: Path) -> None:
    """Words of several tokens, words without any, and words beyond the model's length."""
    words = ["the", "film-plot", "\u200b", "very"]
    rows = [(words, ["O", "B-GOOD", "O", "B-BAD"]), (["good"] * 40, ["B-GOOD"] * 40)]
    path = jsonl(tmp_path / "t.jsonl", rows)
    found = task(train=str(path), held_out=str(path))
    data, (model, _) = opened(found, home), load_model(str(home), found.name)
    batch = data.train.batch([0, 1])
    tokens = AutoTokenizer.from_pretrained(home).convert_ids_to_tokens(batch["input_ids"][0])
    said = [tokens[k] if k >= 0 else None for k in batch["first"][0, :4].tolist()]
    assert said == ["the", "film", said[2], "very"]
    assert batch["label"][1].tolist() == [1] * 22 + [-100] * 18  # 24 tokens with both ends
    assert any("18 of 44 words" in note or "19 of 44 words" in note for note in data.notes)
    logits = found.forward(model, batch)
    raw = model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits
    assert torch.equal(logits[0, 1], raw[0, int(batch["first"][0, 1])])
    there = batch["label"] != -100
    expected = F.cross_entropy(logits[there], batch["label"][there])
    torch.testing.assert_close(found.loss(logits, batch), expected)


def test_f1_is_seqevals(home: Path, tmp_path: Path) -> None:
    rows = texts(60)
    path = conll(tmp_path / "t.conll", rows)
    found = task(train=str(path), held_out=str(path))
    data = opened(found, home)
    batch = data.train.batch(range(60))
    noise = torch.randn(*batch["label"].shape, 5, generator=torch.Generator().manual_seed(0))
    logits = noise + 2 * F.one_hot(batch["label"].clamp(min=0), 5)
    values = found.summarize({k: v.numpy() for k, v in found.score(logits, batch).items()})
    said = [
        [TAGS[k] for k in row[: len(tags)]]
        for row, (_, tags) in zip(logits.argmax(-1).tolist(), rows, strict=True)
    ]
    truth = [tags for _, tags in rows]
    assert 0.1 < values["f1"] < 0.9
    assert values["f1"] == pytest.approx(seqeval.f1_score(truth, said))
    assert values["accuracy"] == pytest.approx(seqeval.accuracy_score(truth, said))
    constant = torch.zeros_like(logits)
    constant[..., 0] = 1
    columns = {k: v.numpy() for k, v in found.score(constant, batch).items()}
    assert "dealt out at random" in (found.at_chance(columns, 5) or "")


def test_a_teacher_of_other_tokens_and_another_order_says_the_same_words(
    home: Path, tmp_path: Path
) -> None:
    order = [3, 4, 0, 1, 2]
    teacher = roberta(
        tmp_path / "teacher", RobertaForTokenClassification, **labels(*(TAGS[k] for k in order))
    )
    path = conll(tmp_path / "t.conll", texts(20))
    found = task(train=str(path), held_out=str(path))
    model, _ = load_model(str(home), found.name)
    other, source = load_model(str(tmp_path / "teacher"), found.name)
    fitted = found.fit_teacher(other, source.beside, model, home)
    batch = found.data(home, model).train.batch([0, 1, 2])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    for k, (words, _) in enumerate(texts(3)):
        given = tokenizer(" ".join(words), return_tensors="pt")
        with torch.no_grad():
            logits = teacher(**given).logits[0, 1:-1]
        expected = logits[:, [order.index(tag) for tag in range(5)]]
        said = found.forward(fitted, batch)[k, : len(words)]
        torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_whole_run_of_a_tagger(home: Path, tmp_path: Path) -> None:
    roberta(tmp_path / "teacher", RobertaForTokenClassification, **labels(*TAGS))
    data = {
        "train": str(conll(tmp_path / "train.conll", texts(60))),
        "held_out": str(conll(tmp_path / "test.conll", texts(30, 1))),
    }
    distilled = {"teacher": str(tmp_path / "teacher"), "steps": 10, "widths": [0.5]}
    recipe, out = Recipe(), tmp_path / "out"
    more = {"convert": {"source": str(home)}, "export": {"widths": [0.5], "bootstrap": 20}}
    more["distill"] = {**distilled, "lr": 3e-3, "allow_weak_teacher": True}
    recipe.update({**more, "data": data}, "test")
    convert(recipe, out)
    convert(recipe, tmp_path / "other")
    written = teach(recipe, out, tmp_path / "taught")
    distill(recipe, out)
    report = export(recipe, out)
    assert [m.name for m in report.metrics] == ["f1", "accuracy"]
    assert {model.name for model in report.models} >= {"Teacher", "base", "width 0.5"}
    card = (out / "students" / "width-0.5" / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert "AutoModelForTokenClassification.from_pretrained" in card
    recipe.distill.teacher = str(written)
    distill(recipe, tmp_path / "other")
    logs = [
        [
            json.loads(line)["terms"]["0.5"]["teacher"]
            for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
            if "terms" in line
        ]
        for folder in (out, tmp_path / "other")
    ]
    assert logs[0] == pytest.approx(logs[1], rel=1e-3) and logs[0][-1] < logs[0][0]
