"""Sentence embeddings on a tiny real BERT: losses, metrics, data, and a whole run.

Losses and metrics are compared with float64 closed forms and with scipy.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM, BertModel

import matta_cli
from matta_cli.conversion.convert import convert
from matta_cli.data import find, sources
from matta_cli.data.split import sample
from matta_cli.errors import MattaError
from matta_cli.family import export
from matta_cli.losses.rows import cosine_distance, relation
from matta_cli.losses.targets import Logits, Term
from matta_cli.measure import intervals
from matta_cli.measure import score as measure_score
from matta_cli.models import plugins
from matta_cli.nested import importance
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.sentence_embedding import read
from matta_cli.tasks.sentence_embedding.examples import Pairs, Sentences, Texts
from matta_cli.tasks.sentence_embedding.task import SentenceEmbedding
from matta_cli.tasks.texts.task import Readers
from matta_cli.training.file_teacher import FileTeacher
from matta_cli.training.run import distill
from matta_cli.training.teach import teach

THINGS = ["cat", "dog", "mat", "fire", "house", "tree", "river", "song"]
DEEDS = ["sat on", "ran from", "saw", "made", "lost", "found"]


def sentence(generator: np.random.Generator) -> str:
    one, other = generator.choice(THINGS, 2)
    deed, next_ = generator.choice(DEEDS), generator.choice(DEEDS)
    return f"the {one} {deed} the {other} and then it {next_} one more"


def sentences(count: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return list(dict.fromkeys(sentence(generator) for _ in range(3 * count)))[:count]


def pairs(count: int, seed: int = 0) -> list[tuple[str, str, float]]:
    """Pairs and the share of words that they have in common, from 0 to 5."""
    found = []
    for i, first in enumerate(sentences(count, seed)):
        second = sentences(count, seed + 1)[i] if i % 3 else first + " ."
        a, b = set(first.split()), set(second.split())
        found.append((first, second, 5 * len(a & b) / len(a | b)))
    return found


def benchmark(path: Path, rows: list[tuple[str, str, float]]) -> Path:
    """A file in the STS benchmark's own form, with a quotation mark that nothing closes."""
    lines = [f'main\tfile\t2012\t{i}\t{s:.3f}\t"{a}\t{b}' for i, (a, b, s) in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def bert(width: int = 24, seed: int = 0, **changes: Any) -> BertModel:
    torch.manual_seed(seed)
    plain = {
        "vocab_size": 40,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
    }
    plain |= {"initializer_range": 0.3}  # else all sentences are much alike
    config = BertConfig(**{"hidden_size": width, "max_position_embeddings": 32, **plain, **changes})
    return BertModel(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder of a tiny model, with its tokenizer."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted(
        {
            word
            for text in (*THINGS, *DEEDS, 'the and then it one more . "')
            for word in text.split()
        }
    )
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("model")
    tokens = {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens).save_pretrained(folder)
    bert().save_pretrained(folder)
    steps = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [
        {"idx": i, "name": str(i), "type": f"sentence_transformers.models.{t}", "path": p}
        for i, (t, p) in enumerate(steps)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 20, "do_lower_case": False})
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps(
            {
                "word_embedding_dimension": 24,
                "pooling_mode_cls_token": False,
                "pooling_mode_mean_tokens": True,
            }
        )
    )
    return folder


def task(distill: dict[str, Any] | None = None, **data: Any) -> SentenceEmbedding:
    recipe = Recipe()
    recipe.update({"data": data, "distill": distill or {}}, "test")
    return SentenceEmbedding(recipe)


def unit(rows: torch.Tensor) -> np.ndarray:
    found = rows.detach().double().numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_importance_leaves_padding_out() -> None:
    """The score of a batch is the same whatever its sentences are padded to."""
    model, embedding, adapter = bert(), task(), plugins.adapter("bert")
    batch = embedding.example(model)
    batch = {name: tensor[:, :24] for name, tensor in batch.items()}
    batch["attention_mask"] = torch.arange(24) < torch.tensor([[24], [20], [9], [3]])
    longer = {name: torch.nn.functional.pad(tensor, (0, 8)) for name, tensor in batch.items()}
    axes = adapter.axes(model)
    scores, again = (
        importance.activation(model, axes, [given], embedding.forward, embedding.present)
        for given in (batch, longer)
    )
    for name, score in scores.items():
        torch.testing.assert_close(score, again[name], rtol=1e-4, atol=1e-6)
    rows = model.encoder.layer[0].output.dense.weight.norm(dim=0)
    kept = {}
    hook = model.encoder.layer[0].output.dense.register_forward_pre_hook(
        lambda _m, x: kept.setdefault("x", x[0])
    )
    embedding.forward(model, longer)
    hook.remove()
    real = kept["x"][longer["attention_mask"].bool()]
    torch.testing.assert_close(scores["mlp.0"], real.abs().mean(0) * rows, rtol=1e-4, atol=1e-6)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_losses_are_their_closed_forms() -> None:
    own, same, other = drawn(7, 6), drawn(7, 6, seed=1), drawn(7, 11, seed=2)
    a, b, c = unit(own), unit(same), unit(other)
    assert cosine_distance(own, same).item() == pytest.approx((1 - (a * b).sum(1)).sum(), rel=1e-5)
    gap = a @ a.T - c @ c.T
    expected = sum(np.mean([gap[i, j] ** 2 for j in range(7) if j != i]) for i in range(7))
    assert relation(own, other).item() == pytest.approx(expected, rel=1e-5)
    assert relation(own, 3 * own).item() == pytest.approx(0, abs=1e-9)
    assert cosine_distance(own, 3 * own).item() == pytest.approx(0, abs=1e-5)
    assert relation(own[:1], other[:1]).item() == pytest.approx(0, abs=1e-9)


def test_the_relation_does_not_see_a_rotation() -> None:
    own = drawn(5, 6)
    turn = torch.linalg.qr(drawn(6, 6, seed=1))[0]
    assert relation(own @ turn, own).item() == pytest.approx(0, abs=1e-9)
    assert cosine_distance(own @ turn, own).item() > 0.1


@pytest.mark.parametrize(("dims", "wide"), [([], False), ([2, 4], False), ([], True)])
def test_the_objective(dims: list[int], wide: bool) -> None:
    """The cosine only where widths are equal; the relation averaged over whole and parts."""
    own, teacher, ta = (
        drawn(5, 6).requires_grad_(),
        drawn(5, 9 if wide else 6, seed=1),
        drawn(5, 6, seed=2),
    )
    terms = [Term("teacher", 0.7, Logits(teacher)), Term("ta", 0.4, Logits(ta))]
    batch = {"input_ids": torch.zeros(5, 3, dtype=torch.long)}
    found = task({"output_dims": dims, "relation_weight": 3.0})
    total, values = found.objective(Logits(own), batch, terms)
    expected = {}
    for name, target in (("teacher", teacher), ("ta", ta)):
        relations = [relation(own[:, :d], target).item() for d in (6, *dims)]
        cosine = 0.0 if target.shape[1] != 6 else cosine_distance(own, target).item()
        expected[name] = (3.0 * np.mean(relations) + cosine) / 5
        assert values[name].item() == pytest.approx(expected[name], rel=1e-5)
    assert total.item() == pytest.approx(0.7 * expected["teacher"] + 0.4 * expected["ta"], rel=1e-5)
    halved, _ = found.objective(Logits(own), batch, terms, {"labels": 0.0, "outputs": 10.0})
    assert halved.item() == pytest.approx(total.item() / 2, rel=1e-5)
    total.backward()
    assert own.grad is not None and torch.isfinite(own.grad).all() and own.grad.any()
    with pytest.raises(MattaError, match="not from labels"):
        found.objective(Logits(own), batch, [Term("truth", 1.0)])


def table(
    first: torch.Tensor,
    second: torch.Tensor,
    score: np.ndarray,
    alike: np.ndarray,
    dims: tuple[int, ...] = (),
):
    found = task({"output_dims": list(dims)})
    batch = {"score": torch.from_numpy(score).float(), "alike": torch.from_numpy(alike)}
    columns = {
        name: values.numpy()
        for name, values in found.score(torch.cat([first, second]), batch).items()
    }
    assert {len(values) for values in columns.values()} == {len(first)}
    return found, found.gathered(columns)


def test_metrics_are_scipys() -> None:
    # many ties
    first, score = drawn(40, 8), np.random.default_rng(0).integers(0, 6, 40).astype(float)
    second = first + 1.2 * drawn(40, 8, seed=1)
    found, columns = table(first, second, score, score >= 4, (3,))
    measured = found.summarize(columns)
    for d, tail in ((8, ""), (3, "/3")):
        a, b = unit(first[:, :d]), unit(second[:, :d])
        cosine = (a * b).sum(1)
        assert measured["spearman" + tail] == pytest.approx(
            scipy.stats.spearmanr(cosine, score).statistic, rel=1e-5
        )
        assert measured["pearson" + tail] == pytest.approx(
            scipy.stats.pearsonr(cosine, score).statistic, rel=1e-5
        )
        hits = [(a[i] @ b.T).argmax() == i for i in range(40) if score[i] >= 4]
        assert 0 < sum(hits) < len(hits)
        assert measured["recall@1" + tail] == pytest.approx(np.mean(hits))
    assert (
        set(measured) == {metric.name for metric in found.metrics}
        and found.metrics[0].name == "spearman"
    )


def test_a_second_sentence_that_occurs_twice_is_found() -> None:
    second = drawn(4, 5)
    second[3] = second[0] * (1 + 1e-7)
    _, columns = table(second.clone(), second, np.arange(4.0), np.ones(4, bool))
    assert columns["found"].all()


def test_resampled_pairs_are_searched_among_all() -> None:
    """An interval of the recall is that of the search in the whole split.

    With fewer sentences to search in, it would be easier.
    """
    first, score = drawn(60, 4), np.arange(60.0)
    found, columns = table(first, first + 0.8 * drawn(60, 4, seed=1), score, np.ones(60, bool))
    interval = intervals.intervals(found, [columns], 200)["recall@1"]
    assert interval.low < interval.value < interval.high
    middle = (interval.low + interval.high) / 2
    assert middle == pytest.approx(interval.value, abs=0.05)


def test_chance() -> None:
    first, score = drawn(400, 16), np.random.default_rng(0).random(400)
    found, columns = table(first, drawn(400, 16, seed=1), score, score > 0.8)
    said = found.at_chance(columns, 16)
    assert said is not None and "400 pairs" in said
    found, columns = table(
        first,
        first + torch.from_numpy(1 - score)[:, None].float() * drawn(400, 16, seed=1),
        score,
        score > 0.8,
    )
    assert found.at_chance(columns, 16) is None
    unscored = columns | {"score": np.full(400, np.nan)}
    assert found.at_chance(unscored, 16) is None and "spearman" not in found.summarize(unscored)
    assert "it finds 0.000 of" in str(
        found.at_chance(unscored | {"found": np.zeros(400, bool)}, 16)
    )
    assert "finite" in str(found.at_chance(columns | {"cosine": columns["cosine"] * np.nan}, 16))


def test_batches_embed_as_one_sentence_at_a_time(folder: Path, tmp_path: Path) -> None:
    rows = pairs(30)
    held_out = benchmark(tmp_path / "sts.csv", rows)
    text = tmp_path / "train.txt"
    text.write_text("\n".join([*sentences(20), "", sentences(20)[3], "a much longer one " * 10]))
    found, model = task(train=str(text), held_out=str(held_out)), bert()
    data = found.data(folder, model)
    assert (
        data.unit == "sentences"
        and "21 sentences" in data.description
        and "30 pairs" in data.description
    )
    assert data.train.keys(range(21)).tolist() == [*range(20), 22]  # lines of the file
    batch = data.train.batch([2, 20, 7])
    assert batch["input_ids"].shape == (3, 20)  # 20 is what sentence_bert_config.json allows
    assert data.train.batch([2])["input_ids"].shape[1] == 16  # the next multiple of 8
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        got = found.forward(model, batch)
        for k, i in enumerate([2, 20, 7]):
            ids = tokenizer(
                list(data_sentences(text))[i], truncation=True, max_length=20, return_tensors="pt"
            )["input_ids"]
            torch.testing.assert_close(
                got[k], model(ids).last_hidden_state[0].mean(0), rtol=1e-4, atol=1e-5
            )
        model.config.sentence_pooling = "cls"
        torch.testing.assert_close(
            found.forward(model, batch)[0], model(**data.train.batch([2])).last_hidden_state[0, 0]
        )
    assert found.items(batch) == 3 and found.counts(batch) == {"labels": 0.0, "outputs": 3.0}


def data_sentences(text: Path) -> dict[str, None]:
    return dict.fromkeys(line.strip() for line in text.read_text().split("\n") if line.strip())


def columns_of(
    found: SentenceEmbedding, model: nn.Module, split: Any, size: int
) -> dict[str, np.ndarray]:
    return measure_score.columns(found, model, split, size, torch.device("cpu"))


def test_pairs_are_measured_as_by_hand(folder: Path, tmp_path: Path) -> None:
    rows = pairs(30)
    found, model = (
        task(
            train=str(benchmark(tmp_path / "a.csv", rows)),
            held_out=str(benchmark(tmp_path / "b.csv", rows)),
        ),
        bert(),
    )
    split = found.data(folder, model).held_out[0]
    batches, whole = columns_of(found, model, split, 7), columns_of(found, model, split, 30)
    np.testing.assert_allclose(batches["cosine"], whole["cosine"], atol=1e-5)
    tokenizer, cosine = AutoTokenizer.from_pretrained(folder), []
    with torch.no_grad():
        for a, b, _ in rows:
            vectors = [
                unit(model(**tokenizer(s, return_tensors="pt")).last_hidden_state.mean(1))[0]
                for s in ('"' + a, b)
            ]
            cosine.append(vectors[0] @ vectors[1])
    expected = scipy.stats.spearmanr(cosine, [round(score, 3) for *_, score in rows]).statistic
    assert found.summarize(batches)["spearman"] == pytest.approx(expected, abs=1e-6)
    assert whole["alike"].sum() == sum(
        score >= 0.8 * max(s for *_, s in rows) for *_, score in rows
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_tables_of_pairs(folder: Path, tmp_path: Path, suffix: str) -> None:
    import pandas as pd

    rows = pairs(20)
    frame = pd.DataFrame(
        {"a": [r[0] for r in rows], "b": [r[1] for r in rows], "how": [r[2] for r in rows]}
    )
    path = tmp_path / f"pairs{suffix}"
    if suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    found = task(train=str(path), sentences=["a", "b"], score="how")
    data = found.data(folder, bert())
    # the last tenth, as pairs, and both sentences of the others to train on
    assert len(data.held_out[0]) == 2
    texts = [s for a, b, _ in rows[:18] for s in (a, b)]
    assert len(data.train) == len(set(texts))
    scores = data.held_out[0].batch(range(2))["score"].tolist()
    assert sorted(scores) == pytest.approx(sorted(r[2] for r in rows[18:]), rel=1e-4)
    assert len(task(train=str(path), text="a").data(folder, bert()).train) == 18


def test_text_alone_is_measured_by_its_halves(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "train.txt"
    text.write_text("\n".join(sentences(100)))
    found, model = task(train=str(text)), bert()
    data = found.data(folder, model)
    assert len(data.train) == 90 and "first half is to find the second" in data.description
    held_out = found.data(folder, model, training=False)
    assert (
        held_out.held_out[0].digest() == data.held_out[0].digest()
        and "90 sentences" not in held_out.description
    )
    assert set(found.summarize(columns_of(found, model, data.held_out[0], 4))) == {"recall@1"}


def test_folders_and_datasets(folder: Path, tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("validation", 5)):
        rows = [{"sentence1": a, "sentence2": b, "score": s} for a, b, s in pairs(12, seed)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "notes.txt").write_text("\n".join(sentences(5, 99)))
    found = task(train=str(tmp_path))
    names = [s for seed in (0, 5) for a, b, _ in pairs(12, seed) for s in (a, b)]
    data = found.data(folder, bert())
    assert len(data.train) == len({*names[:24]}) and len(data.held_out[0]) == 12
    assert any("left out" in note and "notes.txt" in note for note in data.notes)

    # datasets opens a local folder with the same call
    rows = find.hub_dataset(str(tmp_path))["validation"]
    opened = read.from_source(sources.of_split(rows, "it"), found.recipe.data)
    assert opened.score is not None and opened.all() == names[24:]
    np.testing.assert_allclose(opened.score, [s for *_, s in pairs(12, 5)])


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "train.txt"
    text.write_text("\n".join(sentences(30)))
    with pytest.raises(MattaError, match=r"output_dims \[24\].*24 numbers"):
        task({"output_dims": [24]}, train=str(text)).data(folder, bert())
    with pytest.raises(MattaError, match="no tokenizer"):
        task(train=str(text)).data(tmp_path, bert())
    with pytest.raises(MattaError, match="33, but the model has 32 positions"):
        task(train=str(text), sequence_length=33).data(folder, bert())
    with pytest.raises(MattaError, match="the model's vocabulary 9"):
        task(train=str(text)).data(folder, bert(vocab_size=9))
    with pytest.raises(MattaError, match="7 tokens in its vocabulary, the model 40"):
        task().fit_teacher(bert(vocab_size=7), None, bert())
    with pytest.raises(MattaError, match="8 positions, the model uses 32"):
        task().fit_teacher(bert(max_position_embeddings=8), None, bert())
    same = benchmark(tmp_path / "same.csv", [(a, b, 3.0) for a, b, _ in pairs(10)])
    with pytest.raises(MattaError, match="all the same"):
        task(train=str(text), held_out=str(same)).data(folder, bert())
    (tmp_path / "t.csv").write_text("one,other\n" + "1,2\n" * 9)
    with pytest.raises(MattaError, match=r"no column 'text'; it has one, other.*data.sentences"):
        task(train=str(tmp_path / "t.csv")).data(folder, bert())
    (tmp_path / "short.txt").write_text("few words\n" * 30)
    with pytest.raises(MattaError, match="holds no pairs"):
        task(train=str(tmp_path / "short.txt")).data(folder, bert())


def test_digests_and_samples(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "train.txt"
    text.write_text("\n".join(sentences(30)))
    encode, readers = task(train=str(text)).encoder(folder, bert(), []), Readers()
    one, other = (
        Sentences(dict.fromkeys(part, 0), encode, "t", readers)
        for part in (sentences(5), sentences(5, 1))
    )
    assert (
        one.digest()
        == Sentences(dict.fromkeys(sentences(5), 0), encode, "t", readers).digest()
        != other.digest()
    )
    split = sample(
        Pairs(Texts(sentences(9), sentences(9, 1), np.arange(9.0)), encode, "p", readers), 4
    )
    assert len(split) == 4 and set(split.batch(range(4))) == {
        "input_ids",
        "attention_mask",
        "score",
        "alike",
    }


def recipe(folder: Path, tmp_path: Path, **distill: Any) -> Recipe:
    found = Recipe()
    data = {
        "train": str(tmp_path / "train.txt"),
        "held_out": str(tmp_path / "sts.csv"),
        "eval_examples": 0,
    }
    settings = {
        "teacher": str(folder),
        "steps": 30,
        "batch_size": 16,
        "lr": 3e-3,
        "device": "cpu",
        "eval_every": 30,
    }
    settings |= {"allow_weak_teacher": True, "dropout": False, "relation_weight": 5.0}
    found.update({"convert": {"source": str(folder), "expand": 1.0}, "data": data}, "test")
    found.update(
        {"distill": settings | distill, "export": {"batch_size": 2, "bootstrap": 20}}, "test"
    )
    return found


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "train.txt").write_text("\n".join(sentences(200, 7)))
    benchmark(tmp_path / "sts.csv", pairs(40))
    return tmp_path


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_head_that_is_left_out_is_asked_for_and_stands_in_report_and_card(
    folder: Path, texts: Path
) -> None:
    """A head is not silently an encoder. As a Teacher it is said to be one."""
    model, out = texts / "masked", texts / "out"
    shutil.copytree(folder, model)
    torch.manual_seed(0)
    BertForMaskedLM(bert().config).save_pretrained(model)
    settings = recipe(model, texts, steps=1, batch_size=4, eval_examples=8)
    with pytest.raises(MattaError, match=r"has a head \(cls\).*pass --drop-head"):
        convert(settings, out)
    assert not (out / "ta").exists()
    settings.convert.drop_head = True
    assert any("(cls) is left out" in note for note in convert(settings, out).notes)
    said: list[str] = []
    distill(settings, out, listen=lambda told: said.append(told.message))
    assert any("Teacher" in s and "(cls) is left out" in s for s in said)
    settings.export.widths = [0.5]
    report = export(settings, out).to_json()
    dropped = "its head (cls), which was left out (--drop-head)"
    assert any(dropped in note for note in report["notes"])
    assert dropped in (out / "students" / "width-0.5" / "README.md").read_text()
    assert dropped in (out / "report.md").read_text()
    settings.convert.source = str(folder)
    notes = convert(settings, texts / "whole").notes
    assert any("--drop-head left nothing out" in note for note in notes)


@pytest.mark.slow
def test_a_whole_run(folder: Path, texts: Path) -> None:
    settings, out = recipe(folder, texts, output_dims=[8]), texts / "out"
    assert convert(settings, out).order == "activation"
    distill(settings, out)
    report = export(settings, out).to_json()
    entries = {entry["name"]: entry for entry in report["models"]}
    assert [metric["name"] for metric in report["metrics"]][:1] == ["spearman"]
    assert {"spearman/8", "recall@1/8"} <= set(entries["width 0.5"]["metrics"])
    assert all(entry["parity"]["exact"] for entry in entries.values() if entry["role"] == "student")
    terms = [record["terms"] for record in records(out)]
    # width 1.0 of what has not grown is the TA: not run twice
    assert set(terms[0]) == {"TA", "0.25", "0.5"}
    for width in ("0.25", "0.5"):
        # no ground truth, although teacher_mix is 0.9
        assert set(terms[-1][width]) == {"teacher", "loss"}
        assert terms[-1][width]["loss"] == terms[-1][width]["teacher"]
        first, last = (
            np.mean([t[width]["teacher"] for t in part]) for part in (terms[:5], terms[-5:])
        )
        assert last < 0.7 * first
    student = out / "students" / "width-0.5"
    names = {str(path.relative_to(student)) for path in student.rglob("*") if path.is_file()}
    assert {
        "modules.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
        "tokenizer.json",
    } <= names
    loaded: Any = AutoModel.from_pretrained(student)
    assert loaded.config.intermediate_size == 32 and loaded.config.hidden_dropout_prob == 0.1
    own = matta_cli.load_student(student)
    batch = {
        "input_ids": torch.tensor([[2, 5, 6, 3]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.long),
    }
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**batch).last_hidden_state, own(**batch).last_hidden_state)


def test_dropout_is_the_models_own_unless_it_is_turned_off(folder: Path, texts: Path) -> None:
    settings, out = recipe(folder, texts, dropout=True, steps=1), texts / "out"
    convert(settings, out)
    distill(settings, out)
    assert records(out)[0]["terms"]["TA"]["teacher"] > 1e-3


def test_a_teacher_of_another_width(folder: Path, texts: Path) -> None:
    wide = texts / "wide"
    shutil.copytree(folder, wide)
    bert(36, seed=3).save_pretrained(wide)
    settings, out = recipe(wide, texts), texts / "out"
    settings.convert.source = str(folder)
    convert(settings, out)
    distill(settings, out)
    terms = [record["terms"]["0.5"]["teacher"] for record in records(out)]
    assert np.mean(terms[-5:]) < 0.8 * np.mean(terms[:5])


def test_a_teacher_from_a_file_is_the_model(folder: Path, texts: Path) -> None:
    settings = recipe(folder, texts, steps=3)
    convert(settings, texts / "a")
    shutil.copytree(texts / "a", texts / "b")
    distill(settings, texts / "a")
    written = teach(settings, texts / "a", texts / "taught")
    settings.distill.teacher = str(written)
    distill(settings, texts / "b")
    # the base itself, without dropout
    assert records(texts / "a")[0]["terms"]["TA"]["teacher"] == pytest.approx(0, abs=1e-5)
    for one, other in zip(records(texts / "a"), records(texts / "b"), strict=True):
        assert one["terms"]["0.25"]["teacher"] == pytest.approx(
            other["terms"]["0.25"]["teacher"], rel=1e-3
        )


def test_embeddings_of_the_users_own(folder: Path, texts: Path) -> None:
    found = task(train=str(texts / "train.txt"), held_out=str(texts / "sts.csv"))
    data, path = found.data(folder, bert()), texts / "said.jsonl"

    def written(column: str, values: np.ndarray) -> FileTeacher:
        rows = [{"row": i, column: row.tolist()} for i, row in enumerate(values)]
        path.write_text("\n".join(map(json.dumps, reversed(rows))))
        return FileTeacher(str(path), found, data, 24)

    given = np.random.default_rng(0).normal(size=(200, 11)).astype(np.float32)
    target = written("embedding", given)(data.train.batch([3, 150]), [3, 150])
    assert isinstance(target, Logits)
    np.testing.assert_allclose(target.whole().numpy(), given[[3, 150]], rtol=1e-6)
    with pytest.raises(MattaError, match="'logits' is nothing for the task sentence_embedding"):
        written("logits", given)
    with pytest.raises(MattaError, match="not all of them zero"):
        written("embedding", given * (np.arange(200) != 7)[:, None])
    with pytest.raises(MattaError, match="1 of the 200"):
        written("embedding", given[:-1])


@pytest.mark.slow
def test_the_three_lines(folder: Path, texts: Path) -> None:
    def fine(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "matta_cli", *words], cwd=texts, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    said = fine("convert", str(folder), "--adapter", "bert", "--data", "train.txt", "--expand", "1")
    assert "Lossless" in said
    fine(
        "distill",
        "--teacher",
        str(folder),
        "--steps",
        "2",
        "--data",
        "train.txt",
        "--allow-weak-teacher",
    )
    fine("export", "--widths", "0.25,0.5,1.0")
    report = json.loads((texts / "matta-out" / "report.json").read_text())
    assert [metric["name"] for metric in report["metrics"]] == ["recall@1"]
