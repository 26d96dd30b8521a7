"""Text classification on tiny real models: data, labels, losses, metrics, and Teachers.

Losses are compared with torch's own, metrics with scikit-learn and scipy.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torch.nn.functional as F

from matta_cli.comparison.compare import Asked, evaluation
from matta_cli.conversion.convert import convert
from matta_cli.errors import MattaError
from matta_cli.family import export
from matta_cli.formats.programs import save_onnx
from matta_cli.losses import rows as losses
from matta_cli.losses.targets import Logits, Term
from matta_cli.models.load import load_model
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.text_classification.task import TextClassification
from matta_cli.training.file_teacher import FileTeacher
from matta_cli.training.run import distill
from matta_cli.training.teach import teach
from tests.text_models import BAD, GOOD, PLAIN, bert, labels, roberta

THREE = ("bad", "good", "mixed")


def task(distill: dict[str, Any] | None = None, **data: Any) -> TextClassification:
    recipe = Recipe()
    recipe.update({"data": data, "distill": distill or {}}, "test")
    return TextClassification(recipe)


def text(generator: np.random.Generator, *words: str) -> str:
    own = [*generator.choice(PLAIN, generator.integers(3, 9)), *words]
    return " ".join(generator.permutation(own))


def reviews(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts and what they are, as a word in them tells."""
    generator, found = np.random.default_rng(seed), []
    for _ in range(count):
        label = str(generator.choice(["bad", "good"]))
        found.append(
            (text(generator, str(generator.choice(GOOD if label == "good" else BAD))), label)
        )
    return found


def table(path: Path, header: list[str], rows: Any) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def reviewed(tmp_path: Path, count: int = 60) -> dict[str, str]:
    train = table(tmp_path / "train.csv", ["text", "label"], reviews(count))
    test = table(tmp_path / "test.csv", ["text", "label"], reviews(count // 2, 1))
    return {"train": str(train), "held_out": str(test)}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of a model of three labels, and its tokenizer."""
    bert(tmp_path / "model", **labels(*THREE))
    return tmp_path / "model"


def opened(found: TextClassification, home: Path) -> Any:
    model, _ = load_model(str(home), "text_classification")
    return found.data(home, model)


def test_texts_without_tokens_and_tokenizers_without_length_are_told(
    home: Path, tmp_path: Path
) -> None:
    found = task(**reviewed(tmp_path))
    settings = home / "tokenizer_config.json"
    before = json.loads(settings.read_text())
    settings.write_text(json.dumps({**before, "model_max_length": 0}))
    with pytest.raises(MattaError, match="reads 0 tokens of a text, and 3 are needed"):
        opened(found, home)
    settings.write_text(json.dumps(before))
    kept = json.loads((home / "tokenizer.json").read_text())
    kept["post_processor"]["single"] = []
    (home / "tokenizer.json").write_text(json.dumps(kept))
    with pytest.raises(MattaError, match=r"The tokenizer makes no tokens, .*: no model reads that"):
        opened(found, home)


def test_labels_are_the_models_by_name_or_by_number(home: Path, tmp_path: Path) -> None:
    rows = [("the film", "good"), ("a book", "Bad"), ("it was", " mixed "), ("very sad", "good")]
    named = task(train=str(table(tmp_path / "n.csv", ["text", "label"], rows * 5)))
    data = opened(named, home)
    assert data.train.batch(range(4))["label"].tolist() == [1, 0, 2, 1]
    assert any("to train on: " in note and "9 good" in note for note in data.notes)
    for values in ([1, 0, 2, 1], ["1", "0", "2", "1"], [1.0, 0.0, 2.0, 1.0], ["LABEL_1"] * 4):
        given = [{"text": text, "label": v} for (text, _), v in zip(rows, values, strict=True)]
        path = lines(tmp_path / "v.jsonl", given * 5)
        found = opened(task(train=str(path)), home).train.batch(range(4))["label"].tolist()
        assert found == ([1, 0, 2, 1] if values[0] != "LABEL_1" else [1] * 4)


def test_numbers_that_are_names_are_taken_for_names(tmp_path: Path) -> None:
    """Of stars 1 to 3 the label 3 is no number of an output, and 1 is the first of them."""
    bert(tmp_path / "stars", **labels("1", "2", "3"))
    rows = [{"text": "the film", "label": v} for v in (1, 2, 3, 1)]
    data = opened(task(train=str(lines(tmp_path / "s.jsonl", rows * 5))), tmp_path / "stars")
    assert data.train.batch(range(4))["label"].tolist() == [0, 1, 2, 0]
    rows = [{"text": "the film", "label": v} for v in (1, 2, 2, 1)]  # numbers of outputs, too
    data = opened(task(train=str(lines(tmp_path / "s.jsonl", rows * 5))), tmp_path / "stars")
    assert data.train.batch(range(4))["label"].tolist() == [0, 1, 1, 0]
    rows = [{"text": "the film", "label": v} for v in (0, 1, 2, 1)]  # 0 is none of the names
    data = opened(task(train=str(lines(tmp_path / "s.jsonl", rows * 5))), tmp_path / "stars")
    assert data.train.batch(range(4))["label"].tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize(
    "rows, message",
    [
        (
            [("a", "good"), ("b", "great"), ("c", "great")],
            "holds 'great' in line 3.*2 rows.*'mixed'",
        ),
        ([("a", "good"), ("b", "3"), ("c", "bad")], "holds '3' in line 3"),
        ([("a", 0), ("b", 1), ("c", 7)], "holds '7' in line 4"),
        ([("", "good"), (" ", "bad")], "no rows with a text"),
    ],
)
def test_what_is_no_label_is_named(home: Path, tmp_path: Path, rows: Any, message: str) -> None:
    path = table(tmp_path / "t.csv", ["text", "label"], rows)
    with pytest.raises(MattaError, match=message):
        opened(task(train=str(path), held_out=str(path)), home)


def test_labels_without_names_are_numbers(tmp_path: Path) -> None:
    bert(tmp_path / "m", num_labels=3)
    path = table(tmp_path / "t.csv", ["text", "label"], [("a", "good"), ("b", "bad")] * 5)
    with pytest.raises(MattaError, match=r"no names: give numbers from 0 to 2, or.*id2label"):
        opened(task(train=str(path)), tmp_path / "m")


def test_texts_that_are_empty_long_or_repeated_are_counted(home: Path, tmp_path: Path) -> None:
    rows = [
        ("the film was good", "good"),
        ("", "bad"),
        (" ".join(["very"] * 40), "bad"),
        ("👍 ok", 0),
    ]
    rows[3] = ("👍 \u4f60", "good")
    train = table(tmp_path / "train.csv", ["text", "label"], rows)
    test = table(tmp_path / "test.csv", ["text", "label"], [*reviews(4), rows[0]])
    data = opened(task(train=str(train), held_out=str(test)), home)
    told = " ".join(data.notes)
    assert "1 rows without text are left out" in told
    assert "1 of 3 are longer than the 24 tokens" in told
    assert "1 held-out texts also stand" in told and "no text has the label mixed" in told
    batch = data.train.batch([0, 1, 2])
    assert batch["input_ids"].shape == (3, 24) and batch["attention_mask"].sum(1).tolist()[1] == 24
    assert data.train.keys([0, 1, 2]).tolist() == [0, 2, 3]


def test_the_last_tenth_of_each_label_is_held_out(home: Path, tmp_path: Path) -> None:
    rows = [(f"the film {i}", "bad" if i < 70 else "good") for i in range(100)]
    data = opened(task(train=str(table(tmp_path / "t.csv", ["text", "label"], rows))), home)
    split = data.held_out[0]
    assert sorted(split.keys(range(len(split))).tolist()) == [*range(63, 70), *range(97, 100)]


def test_pairs_tell_which_text_a_token_is_of(tmp_path: Path) -> None:
    bert(tmp_path / "m", **labels("no", "yes"))
    rows = [("the film", "was good", "yes"), ("a book", "very sad and poor", "no")] * 5
    path = table(tmp_path / "t.csv", ["sentence1", "sentence2", "label"], rows)
    found = task(train=str(path))
    data, (model, _) = opened(found, tmp_path / "m"), load_model(str(tmp_path / "m"), found.name)
    batch = data.train.batch([0, 1])
    assert batch["token_type_ids"][0].tolist() == [0] * 4 + [1] * 3 + [0] * 9
    one = {k: v for k, v in batch.items() if k != "token_type_ids"}
    assert not torch.allclose(found.forward(model, batch), found.forward(model, one), atol=1e-4)


def test_a_label_is_learned_by_its_cross_entropy_and_scored(home: Path, tmp_path: Path) -> None:
    found = task({"temperature": 2.0}, **reviewed(tmp_path))
    data, (model, _) = opened(found, home), load_model(str(home), "text_classification")
    batch = data.train.batch(range(40))
    logits = found.forward(model, batch).detach()
    truth = found.loss(logits, batch)
    torch.testing.assert_close(truth, F.cross_entropy(logits, batch["label"]))
    other = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    expected = 4 * F.kl_div(
        (logits / 2).log_softmax(1), (other / 2).softmax(1), reduction="batchmean"
    )
    torch.testing.assert_close(found.distill_loss(logits, other, batch), expected)
    columns = {k: v.numpy() for k, v in found.score(logits, batch).items()}
    values, said = found.summarize(columns), logits.argmax(1).numpy()
    label = batch["label"].numpy()
    f1 = sklearn.metrics.f1_score(label, said, average="macro", zero_division=0)
    assert values["macro_f1"] == pytest.approx(f1)
    assert values["accuracy"] == pytest.approx((said == label).mean())


def test_a_constant_answer_is_no_better_than_guessing(home: Path, tmp_path: Path) -> None:
    found = task(**reviewed(tmp_path))
    label = torch.tensor([0] * 90 + [1] * 10)
    constant = torch.tensor([[2.0, 0, 0]]).repeat(100, 1)
    said = {k: v.numpy() for k, v in found.score(constant, {"label": label}).items()}
    assert "accuracy is 0.9000" in (found.at_chance(said, 3) or "")
    right = torch.eye(3)[label] * 3
    said = {k: v.numpy() for k, v in found.score(right, {"label": label}).items()}
    assert found.at_chance(said, 3) is None


SEVERAL = [["good", "mixed"], [], ["bad"], ["good"], ["mixed"], ["bad", "mixed"]] * 4
HOT = [[int(name in own) for name in THREE] for own in SEVERAL]


@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_several_labels_in_a_cell(problem: str | None, tmp_path: Path) -> None:
    names = ("bad", "good, in part", "mixed")
    bert(tmp_path / "m", problem_type=problem, **labels(*names))
    filled = [row if any(row) else [1, 0, 0] for row in HOT]
    own = [[name for name, yes in zip(names, row, strict=True) if yes] for row in filled]
    for join in ("|".join, "; ".join, " | ".join, json.dumps, str):
        path = table(tmp_path / "t.csv", ["text", "label"], [("film", join(row)) for row in own])
        data = opened(task(train=str(path), held_out=str(path)), tmp_path / "m")
        assert data.train.batch(range(len(own)))["label"].int().tolist() == filled


def test_an_unknown_label_of_a_cell_is_named(tmp_path: Path) -> None:
    bert(tmp_path / "m", problem_type="multi_label_classification", **labels(*THREE))
    path = table(tmp_path / "t.csv", ["text", "label"], [("a", "bad|good"), ("b", "good|great")])
    message = r"Column 'label' holds 'great' in line 3 of .*, which is none of the model's: 'bad'"
    with pytest.raises(MattaError, match=message):
        opened(task(train=str(path), held_out=str(path)), tmp_path / "m")
    table(path, ["text", "label"], [("a", "0|1"), ("b", "2"), ("c", "[]"), ("d", "")])
    data = opened(task(train=str(path), held_out=str(path)), tmp_path / "m")
    label = data.train.batch(range(3))["label"].int().tolist()
    assert label == [[1, 1, 0], [0, 0, 1], [0, 0, 0]] and len(data.train) == 3
    table(path, ["text", "label"], [("a", "bad, good"), ("b", "mixed")])
    data = opened(task(train=str(path), held_out=str(path)), tmp_path / "m")
    assert data.train.batch(range(2))["label"].int().tolist() == [[1, 1, 0], [0, 0, 1]]
    table(path, ["text", "label"], [("a", "1, 0, 1"), ("b", "0, 0, 1")])
    data = opened(task(train=str(path), held_out=str(path)), tmp_path / "m")
    assert data.train.batch(range(2))["label"].int().tolist() == [[1, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize("form", ["names", "numbers", "hot", "decimals", "columns"])
def test_several_labels_in_every_form(home: Path, tmp_path: Path, form: str) -> None:
    generator = np.random.default_rng(0)
    texts = [text(generator) for _ in SEVERAL]
    given: list[Any] = {
        "names": SEVERAL,
        "numbers": [[THREE.index(name) for name in own] for own in SEVERAL],
        "hot": HOT,
        "decimals": [[float(v) for v in own] for own in HOT],
        "columns": HOT,
    }[form]
    if form == "columns":
        rows = [[t, *own] for t, own in zip(texts, HOT, strict=True)]
        path = table(tmp_path / "t.csv", ["text", *THREE], rows)
    else:
        both = zip(texts, given, strict=True)
        path = lines(tmp_path / "t.jsonl", [{"text": t, "label": v} for t, v in both])
    found = task(train=str(path), held_out=str(path))
    data, (model, _) = opened(found, home), load_model(str(home), "text_classification")
    batch = data.train.batch(range(24))
    assert batch["label"].int().tolist() == HOT
    logits = found.forward(model, batch).detach()
    expected = F.binary_cross_entropy_with_logits(logits, batch["label"])
    torch.testing.assert_close(found.loss(logits, batch), expected)
    # the Teacher's cross-entropy is smallest at the Teacher's own probabilities
    assert found.distill_loss(logits, logits, batch).abs() < 1e-6
    values = found.summarize({k: v.numpy() for k, v in found.score(logits, batch).items()})
    label, score = batch["label"].numpy(), logits.numpy()
    metrics = sklearn.metrics
    for name in ("micro", "macro"):
        f1 = metrics.f1_score(label, score > 0, average=name, zero_division=0)
        assert values[f"{name}_f1"] == pytest.approx(f1)
    assert values["map"] == pytest.approx(metrics.average_precision_score(label, score))
    doubled = {
        k: v.numpy()[[*range(24), *range(24)]] for k, v in found.score(logits, batch).items()
    }
    assert found.summarize(doubled)["map"] == pytest.approx(values["map"])  # ties


def test_one_label_and_several_do_not_go_together(tmp_path: Path) -> None:
    bert(tmp_path / "m", problem_type="single_label_classification", **labels(*THREE))
    path = lines(tmp_path / "t.jsonl", [{"text": "a", "label": ["bad", "good"]}] * 12)
    with pytest.raises(MattaError, match="several labels of each text, but the model is for one"):
        opened(task(train=str(path)), tmp_path / "m")


@pytest.mark.parametrize("odds", [False, True])
def test_a_number_is_learned_and_scored(tmp_path: Path, odds: bool) -> None:
    sigmoid = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    stored = {"sentence_transformers": sigmoid}
    bert(tmp_path / "m", num_labels=1, **(stored if odds else {}))
    bert(tmp_path / "other", num_labels=1, **({} if odds else stored))
    generator = np.random.default_rng(0)
    scores = generator.random(40).round(2).tolist()
    rows = [(text(generator), text(generator), score) for score in scores]
    path = table(tmp_path / "t.csv", ["sentence1", "sentence2", "score"], rows)
    found = task(train=str(path), held_out=str(path))
    data = opened(found, tmp_path / "m")
    batch = data.train.batch(range(40))
    label = torch.tensor(scores)
    torch.testing.assert_close(batch["label"], label)
    logits = torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
    own = logits[:, 0]
    expected = F.binary_cross_entropy_with_logits(own, label) if odds else F.mse_loss(own, label)
    torch.testing.assert_close(found.loss(logits, batch), expected)
    assert found.distill_loss(logits, logits, batch).abs() < 1e-6
    values = found.summarize({k: v.numpy() for k, v in found.score(logits, batch).items()})
    said = own.sigmoid().double() if odds else own.double()
    assert values["spearman"] == pytest.approx(scipy.stats.spearmanr(said, label).statistic)
    assert values["pearson"] == pytest.approx(
        scipy.stats.pearsonr(said, label.double()).statistic, 1e-4
    )
    assert values["mae"] == pytest.approx(float((said - label).abs().mean()), rel=1e-6)
    model, other = (load_model(str(tmp_path / name), found.name)[0] for name in ("m", "other"))
    with pytest.raises(MattaError, match="one gives a probability"):
        found.fit_teacher(other, tmp_path / "other", model, tmp_path / "m")
    table(path, ["text", "label"], [("a", "1.5"), ("b", "1.5")])
    with pytest.raises(MattaError, match="all the same number"):
        opened(task(train=str(path), held_out=str(path)), tmp_path / "m")
    table(path, ["text", "label"], [("a", "1.5"), ("b", "high")])
    with pytest.raises(MattaError, match=r"holds 'high' in line 3.*numbers"):
        opened(task(train=str(path), held_out=str(path)), tmp_path / "m")


def test_a_reranker_is_scored_query_by_query(tmp_path: Path) -> None:
    bert(tmp_path / "m", num_labels=1)
    generator = np.random.default_rng(0)
    rows = [
        (f"the {PLAIN[q]}", text(generator), int(k == q % 3))
        for q in range(8)
        for k in range(2 + q % 3 + (q % 3 > 1))
    ]
    path = table(tmp_path / "t.csv", ["sentence1", "sentence2", "label"], rows)
    for loss in ("pointwise", "listwise"):
        found = task({"ranking_loss": loss}, train=str(path), held_out=str(path), group="sentence1")
        data = opened(found, tmp_path / "m")
        batch = data.train.batch(range(len(data.train)))
        assert len(data.train) == 8 and len(batch["label"]) == len(rows)
        logits = torch.randn(len(rows), 1, generator=torch.Generator().manual_seed(0))
        alone = {"label": batch["label"]}
        given = alone if loss == "pointwise" else alone | {"group": batch["group"]}
        expected = getattr(losses, loss)(logits[:, 0], **{"labels": given.pop("label"), **given})
        count = len(rows) if loss == "pointwise" else 8
        torch.testing.assert_close(found.loss(logits, batch), expected / count)
        values = found.summarize({k: v.numpy() for k, v in found.score(logits, batch).items()})
        queries = [logits[batch["group"] == q, 0].numpy() for q in range(8)]
        truths = [batch["label"][batch["group"] == q].numpy() for q in range(8)]
        kept = [(t, s) for t, s in zip(truths, queries, strict=True) if t.any()]
        ndcg = [sklearn.metrics.ndcg_score([t], [s], k=10) for t, s in kept]
        # with one relevant text in each query it is the mean reciprocal rank
        mrr = [sklearn.metrics.label_ranking_average_precision_score([t], [s]) for t, s in kept]
        assert values == pytest.approx({"ndcg@10": np.mean(ndcg), "mrr": np.mean(mrr)})
    table(path, ["sentence1", "sentence2", "label"], [(*row[:2], 0) for row in rows])
    with pytest.raises(MattaError, match="none above 0"):
        opened(task(train=str(path), held_out=str(path), group="sentence1"), tmp_path / "m")
    table(path, ["sentence1", "sentence2", "label"], rows)
    with pytest.raises(MattaError, match=r"data.group names queries.*this one has 3"):
        bert(tmp_path / "three", num_labels=3)
        opened(task(train=str(path), group="sentence1"), tmp_path / "three")


def test_a_teacher_of_another_family_reads_its_own_tokens(home: Path, tmp_path: Path) -> None:
    """And its labels are matched by name, whatever their order."""
    teacher = roberta(tmp_path / "teacher", **labels("Mixed", "GOOD", "bad"))
    found = task(**reviewed(tmp_path))
    model, _ = load_model(str(home), found.name)
    other, source = load_model(str(tmp_path / "teacher"), found.name)
    fitted = found.fit_teacher(other, source.beside, model, home)
    assert {"matched by their names" in n for n in found.notes} == {True, False}
    data = opened(found, home)
    batch = data.train.batch([3, 5, 8])
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    texts = [data.train.read.first[i] for i in (3, 5, 8)]
    given = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = teacher(**given).logits[:, [2, 1, 0]]
    torch.testing.assert_close(found.forward(fitted, batch), expected, rtol=1e-4, atol=1e-5)
    roberta(tmp_path / "teacher", **labels("bad", "good", "neutral"))
    other, source = load_model(str(tmp_path / "teacher"), found.name)
    with pytest.raises(MattaError, match=r"it has no 'mixed'\. Name them alike"):
        found.fit_teacher(other, source.beside, model, home)


def settings(home: Path, tmp_path: Path, **more: Any) -> Recipe:
    recipe = Recipe()
    recipe.update(
        {
            "convert": {"source": str(home)},
            "data": reviewed(tmp_path),
            "distill": {
                "teacher": str(home),
                "steps": 12,
                "lr": 3e-3,
                "widths": [0.5, 1.0],
                "allow_weak_teacher": True,
                **more,
            },
            "export": {"widths": [0.5, 1.0], "bootstrap": 20},
        },
        "test",
    )
    return recipe


def terms(out: Path) -> list[dict[str, float]]:
    """Each step's terms of width 0.5."""
    log = (out / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["terms"]["0.5"] for line in log if "terms" in line]


@pytest.mark.slow
def test_a_whole_run_and_a_teachers_file(tmp_path: Path) -> None:
    """The Teacher is another family's; what it wrote teaches the same."""
    home = tmp_path / "model"
    bert(home, **labels("bad", "good"))
    roberta(tmp_path / "teacher", **labels("good", "bad"))
    recipe, out = settings(home, tmp_path, teacher=str(tmp_path / "teacher")), tmp_path / "out"
    convert(recipe, out)
    convert(recipe, tmp_path / "other")
    written = teach(recipe, out, tmp_path / "taught")
    distill(recipe, out)
    report = export(recipe, out)
    assert [m.name for m in report.metrics] == ["accuracy", "macro_f1", "ece"]
    assert {model.name for model in report.models} >= {"Teacher", "base", "width 0.5"}
    student = out / "students" / "width-0.5"
    card = (student / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert re.search(r"AutoModelForSequenceClassification.from_pretrained", card)
    from transformers import pipeline

    said = pipeline("text-classification", str(student))("the film was good")
    assert said[0]["label"] in ("bad", "good")

    recipe.distill.teacher = str(written)
    distill(recipe, tmp_path / "other")
    logs = [terms(folder) for folder in (out, tmp_path / "other")]
    for one, other in zip(*logs, strict=True):
        assert one["teacher"] == pytest.approx(other["teacher"], rel=1e-3)
    assert logs[0][-1]["teacher"] < logs[0][0]["teacher"]


def test_a_file_of_several_labels(home: Path, tmp_path: Path) -> None:
    rows = [{"text": f"the film {i}", "label": own} for i, own in enumerate(SEVERAL)]
    path = lines(tmp_path / "t.jsonl", rows)
    found = task(train=str(path), held_out=str(path))
    data = opened(found, home)

    def written(column: str, values: list[Any]) -> FileTeacher:
        given = [{"row": i, column: v} for i, v in enumerate(values)]
        return FileTeacher(str(lines(tmp_path / "said.jsonl", given)), found, data, 3)

    soft = [[0.9, 0.8, 0.1]] * len(rows)
    target = written("probabilities", soft)(data.train.batch([0, 1]), [0, 1])
    assert isinstance(target, Logits)
    torch.testing.assert_close(target.whole().sigmoid(), torch.tensor(soft[:2]))
    hard = written("label", HOT)(data.train.batch([0, 2]), [0, 2])
    assert isinstance(hard, torch.Tensor) and hard.tolist() == [HOT[0], HOT[2]]
    own = found.objective(
        Logits(torch.zeros(2, 3)), data.train.batch([0, 2]), [Term("t", 1.0, hard)]
    )
    assert own[0].item() == pytest.approx(np.log(2))
    with pytest.raises(MattaError, match="no probabilities"):
        written("probabilities", [[1.5, 0.8, 0.1]] * len(rows))


def test_eval_compares_models_that_share_no_token(home: Path, tmp_path: Path) -> None:
    """Each reads its own tokens of the same texts, and counts what it reads itself."""
    roberta(tmp_path / "other", **labels("mixed", "bad", "good"))
    recipe = Recipe()
    recipe.update({"data": reviewed(tmp_path), "export": {"bootstrap": 20}}, "test")
    asked = Asked([str(home), str(tmp_path / "other")], task="text_classification")
    result = evaluation(recipe, asked, tmp_path / "none")
    values = [model["metrics"]["accuracy"]["value"] for model in result["models"]]
    for folder, value in zip((home, tmp_path / "other"), values, strict=True):
        alone = task(held_out=recipe.data.held_out)
        model, _ = load_model(str(folder), alone.name)
        data = alone.data(folder, model, training=False)
        batch = data.train.batch(range(len(data.train)))
        right = alone.forward(model, batch).argmax(1) == batch["label"]
        assert value == pytest.approx(right.double().mean().item())


@pytest.mark.slow
def test_an_onnx_program_takes_any_number_of_texts_of_any_length(tmp_path: Path) -> None:
    """Of pairs, too, which have a third input."""
    onnxruntime = pytest.importorskip("onnxruntime")
    home = tmp_path / "m"
    bert(home, **labels("no", "yes"))
    rows = [("the film", "was good", "yes"), ("a book", "very sad and poor", "no")] * 10
    path = table(tmp_path / "t.csv", ["sentence1", "sentence2", "label"], rows)
    found = task(train=str(path))
    data, (model, _) = opened(found, home), load_model(str(home), found.name)
    save_onnx(found, model, data.train.batch(range(4)), tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    assert {i.name for i in session.get_inputs()} == {
        "input_ids",
        "attention_mask",
        "token_type_ids",
    }
    for count, longer in ((1, 0), (3, 0), (7, 5)):
        batch = found.inputs(model, data.train.batch(range(count)))
        batch = {name: F.pad(tensor, (0, longer)) for name, tensor in batch.items()}
        said = session.run(["output"], {name: t.numpy() for name, t in batch.items()})[0]
        with torch.no_grad():
            expected = model(**batch).logits.numpy()
        np.testing.assert_allclose(said, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_sizes_are_searched_by_the_metric_of_the_kind(tmp_path: Path) -> None:
    """Of a model of a number no accuracy is asked."""
    pytest.importorskip("optuna")
    home = tmp_path / "m"
    bert(home, num_labels=1)
    generator = np.random.default_rng(0)
    rows = [(text(generator), score) for score in generator.random(60).round(2).tolist()]
    path = table(tmp_path / "t.csv", ["text", "score"], rows)
    recipe, out = settings(home, tmp_path), tmp_path / "out"
    recipe.update({"data": {"train": str(path), "held_out": str(path)}}, "test")
    recipe.distill.steps = 2
    convert(recipe, out)
    distill(recipe, out)
    recipe.update({"export": {"target_params": ["95%"]}, "search": {"trials": 1}}, "test")
    report = export(recipe, out)
    assert [m.name for m in report.metrics] == ["spearman", "pearson", "mae"]


@pytest.mark.parametrize("score", ["1700000123", "1e39"])
def test_numbers_that_float32_would_change_are_refused(tmp_path: Path, score: str) -> None:
    bert(tmp_path / "model", num_labels=1)
    rows = [(own, k) for k, (own, _) in enumerate(reviews(20))]
    rows[2] = (rows[2][0], score)
    found = task(train=str(table(tmp_path / "train.csv", ["text", "label"], rows)))
    with pytest.raises(MattaError, match=rf"holds '{score}' in line 4 .*, which float32 would"):
        opened(found, tmp_path / "model")


def test_rows_without_a_name_are_counted(tmp_path: Path) -> None:
    bert(tmp_path / "model", num_labels=1)
    rows = [(own, k % 2, "" if k in (3, 5) else k // 4) for k, (own, _) in enumerate(reviews(20))]
    path = table(tmp_path / "train.csv", ["text", "label", "query"], rows)
    with pytest.raises(MattaError, match=r"misses a value in line 5 of .* \(2 of 20 rows have no"):
        opened(task(train=str(path), group="query"), tmp_path / "model")


@pytest.mark.parametrize("label", [[[]], [{}], {"a": 1}, [["good"]]])
def test_a_label_of_another_kind_is_named(home: Path, tmp_path: Path, label: Any) -> None:
    rows = [{"text": own, "label": THREE[k % 3]} for k, (own, _) in enumerate(reviews(20))]
    rows[4]["label"] = label
    path = lines(tmp_path / "t.jsonl", rows)
    with pytest.raises(MattaError, match=r"holds .* in line 5 .*, which is none of the model's"):
        opened(task(train=str(path), held_out=str(path)), home)
