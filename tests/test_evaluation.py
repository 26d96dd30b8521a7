"""matta eval: measured against computations of their own, in float64 and by brute force, on tiny
real models.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from matta_adapters.decoders import Llama
from matta_adapters.gpt2 import GPT2
from matta_adapters.mlp_ranker import MLPRanker, Ranker
from sample_text import byte_tokenizer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from matta_cli.comparison import cascade, compare, speculation
from matta_cli.comparison.compare import Asked
from matta_cli.conversion.convert import convert
from matta_cli.errors import MattaError
from matta_cli.family import export
from matta_cli.models import save
from matta_cli.models.folders import load_student, load_ta
from matta_cli.models.ta import TA
from matta_cli.models.tokenizer import copy_companions
from matta_cli.nested import sizes
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import calibration
from matta_cli.tasks.image_classification.task import ImageClassification
from matta_cli.tasks.ranking.task import Ranking
from matta_cli.tasks.sentence_embedding.task import SentenceEmbedding
from matta_cli.training.run import distill

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "warm",
    "mat",
    "and",
    "saw",
    "dogs",
    "run",
    "past",
    "old",
    "trees",
    "near",
    "two",
]
MOST = dict.fromkeys(("value", "low", "high"), 1.0)


def prose(lines: int, seed: int = 0) -> list[str]:
    """Lines in which the word decides the next one, mostly: something to learn."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(lines):
        place, line = int(random.integers(len(WORDS))), []
        for _ in range(int(random.integers(11, 20))):
            line.append(WORDS[place])
            place = (
                place + 1 if random.random() < 0.9 else int(random.integers(len(WORDS)))
            ) % len(WORDS)
        found.append(" ".join(line))
    return found


def tokenizer_in(folder: Path, seed: int = 1) -> None:
    """Bytes, and a few pieces of words: most words are several tokens."""
    byte_tokenizer(prose(30, seed), 290).save_pretrained(folder)


def gpt2(seed: int = 0, **changes) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    plain = {"vocab_size": 290, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**{**plain, "bos_token_id": 0, "eos_token_id": 0, **changes})
    return GPT2LMHeadModel(config).eval()


def trained(model: nn.Module, rows: torch.Tensor, steps: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        batch = rows[[(8 * step + k) % len(rows) for k in range(8)]]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base that has learned something, its TA, a Student of it in the stock format, a Teacher,
    and data.
    """
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("eval")
    (folder / "text.txt").write_text("\n".join(prose(120, 2)), encoding="utf-8")
    (folder / "passages.jsonl").write_text(
        "\n".join(json.dumps({"text": line}) for line in prose(60, 3)), encoding="utf-8"
    )
    for name, seed in (("base", 0), ("teacher", 1)):
        (folder / name).mkdir()
        tokenizer_in(folder / name)
        ids = AutoTokenizer.from_pretrained(folder / "base")("\n".join(prose(150, 4)))["input_ids"]
        rows = torch.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32)
        trained(gpt2(seed), rows, 100 - 60 * seed).save_pretrained(folder / name)
    settings = recipe(folder)
    settings.convert.source, settings.data.train = str(folder / "base"), str(folder / "text.txt")
    convert(settings, folder / "out")
    ta = load_ta(folder / "out")
    student = folder / "out" / "students" / "width-0.5"
    student.mkdir(parents=True)
    save.save_model(ta.adapter, ta.student(0.5).dense(), student)
    copy_companions(folder / "base", student)
    card = json.loads((folder / "out" / "ta" / "matta.json").read_text())
    (student / "matta.json").write_text(json.dumps({**card, "axes": []}))
    return folder


def recipe(folder: Path, **data) -> Recipe:
    found = Recipe()
    own = {
        "held_out": str(folder / "text.txt"),
        "passages": str(folder / "passages.jsonl"),
        "sequence_length": 32,
    }
    found.update(
        {"data": {**own, **data}, "export": {"bootstrap": 40}, "distill": {"batch_size": 8}}, "test"
    )
    return found


def measured(folder: Path, *names: str, **asked) -> dict:
    return compare.evaluation(
        recipe(folder), Asked([str(folder / name) for name in names], **asked), folder / "out"
    )


def by_name(result: dict) -> dict[str, dict]:
    return {Path(m["name"]).name: m for m in result["models"]}


def test_a_view_and_its_exported_copy_are_one_model(folder):
    """And the base is the TA at width 1.0; the metrics are those of transformers' own loss, in
    float64.
    """
    result = measured(
        folder,
        "out@0.5",
        "out/students/width-0.5",
        "out@1",
        "base",
        teacher=str(folder / "teacher"),
    )
    found = by_name(result)
    same = found["width-0.5"]["differences"]
    assert same.keys() == {"perplexity", "next_token_accuracy", "last_word_accuracy"}
    for difference in same.values():
        assert (difference["value"], difference["low"], difference["high"], difference["p"]) == (
            0,
            0,
            0,
            1,
        )
        assert difference["p_holm"] == 1
    assert (
        found["out@0.5"]["metrics"] == found["width-0.5"]["metrics"]
        and not found["out@0.5"]["differences"]
    )
    assert (
        found["out@0.5"]["parameters"]
        == found["width-0.5"]["parameters"]
        < found["base"]["parameters"]
    )
    assert found["out@0.5"]["macs"] < found["out@1"]["macs"] == found["base"]["macs"]
    for name, metric in found["base"]["metrics"].items():
        assert found["out@1"]["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-5)
    better = found["base"]["differences"]["perplexity"]
    assert better["high"] < 0 and better["test"] == "bootstrap", (
        "half of the hidden units is worse than all of them"
    )
    assert found["base"]["differences"]["last_word_accuracy"]["test"] == "McNemar"

    from transformers import AutoTokenizer

    text = (folder / "text.txt").read_text(encoding="utf-8")
    ids = [*AutoTokenizer.from_pretrained(folder / "base")(text)["input_ids"], 0]
    rows = torch.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32)
    model, teacher = (
        AutoModelForCausalLM.from_pretrained(folder / n).double().eval()
        for n in ("base", "teacher")
    )
    with torch.no_grad():
        ours, theirs = model(input_ids=rows, labels=rows), teacher(input_ids=rows)
    assert found["base"]["metrics"]["perplexity"]["value"] == pytest.approx(
        math.exp(ours.loss), rel=1e-4
    )
    agree = (ours.logits.argmax(-1) == theirs.logits.argmax(-1))[:, :-1].double().mean().item()
    assert found["base"]["agreement"]["teacher"]["value"] == pytest.approx(agree, abs=1e-3)
    assert 0.1 < agree < 0.95 and found["base"]["agreement"]["ta"] == MOST, (
        "a TA as converted is the base"
    )
    assert result["agreement"]["of"] == "positions with the same likeliest next token"


def test_a_ta_that_is_measured_agrees_with_itself(folder, tmp_path):
    """And not with the one in the output folder, which is another."""
    other = tmp_path / "other"
    shutil.copytree(folder / "out" / "ta", other / "ta")
    result = compare.evaluation(recipe(folder), Asked([str(other)]), folder / "out")
    assert result["agreement"]["ta"] == str(other)


def test_against_and_refusals(folder, tmp_path):
    result = measured(folder, "base", "teacher", against=str(folder / "teacher"))
    found = by_name(result)
    assert found["base"]["differences"] and not found["teacher"]["differences"]
    backwards = by_name(measured(folder, "base", "teacher"))["teacher"]["differences"]["perplexity"]
    assert backwards["value"] == -found["base"]["differences"]["perplexity"]["value"]
    gpt2(vocab_size=310).save_pretrained(folder / "wide")
    other = folder / "other-tokens"
    gpt2().save_pretrained(other)
    tokenizer_in(other, 5)
    for names, asked, words in (
        (["base", "wide"], {}, "it has 310 tokens in its vocabulary, .*base 290"),
        (["base", "other-tokens"], {}, "different tokenizers"),
        (["base"], {"against": "nobody"}, "'nobody' is none of the models"),
        (["out@3"], {}, "Width 3 is not possible"),
        (["base"], {"cascade": True}, "two models or more"),
        (["base", "out@0.5"], {"cascade": True}, "how sure they are"),
        (["base"], {"speculative": ["x"]}, "SMALL,LARGE"),
        (["base"], {"speculative": ["x", "x"]}, "SMALL,LARGE"),
        (
            ["base"],
            {"task": "image_classification"},
            "not for image_classification|cannot be loaded",
        ),
    ):
        with pytest.raises(MattaError, match=words):
            measured(folder, *names, **asked)


def test_a_ta_that_does_not_fit_is_left_out(folder, tmp_path):
    """An output folder that lies about holds another model: that must not keep others from being
    measured.
    """
    alone = tmp_path / "alone"
    gpt2(3, n_embd=16, n_positions=256).save_pretrained(alone)
    tokenizer_in(alone)
    said: list[str] = []
    result = compare.evaluation(recipe(folder), Asked([str(alone)]), folder / "out", said.append)
    assert "ta" not in result["agreement"] and any(
        "Without agreement with the TA" in line for line in said
    )


def test_a_student_with_batchnorm_is_the_same_wherever_it_is_named(tmp_path):
    """First, second, or as what others agree with: its statistics are its own."""
    g = torch.Generator().manual_seed(0)
    rows = ["a,x,y,label"]
    for _ in range(400):
        a, x, y = int(torch.randint(5, (1,), generator=g)), *torch.randn(2, generator=g).tolist()
        rows.append(f"{a},{x:.4f},{y:.4f},{int(x + a / 2 > 1)}")
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    torch.manual_seed(0)
    inner = [{"layer": "Linear", "out": 16}, {"layer": "BatchNorm1d"}, {"layer": "ReLU"}]
    model = Ranker([(5, 8)], 2, [*inner, *inner, {"layer": "Linear", "out": 1}]).eval()
    (tmp_path / "base").mkdir()
    MLPRanker().save(model, tmp_path / "base")
    settings = Recipe()
    settings.convert.source, settings.data.train = (
        str(tmp_path / "base"),
        str(tmp_path / "rows.csv"),
    )
    settings.data.categorical, settings.data.dense = ["a"], ["x", "y"]
    settings.export.bootstrap, settings.distill.device = 5, "cpu"
    convert(settings, tmp_path / "out")
    small, base = (str(tmp_path / f"out@{width}") for width in (0.25, 1))

    def value(names: list[str], **asked: str) -> float:
        result = compare.evaluation(settings, Asked(names, **asked), tmp_path / "out")
        if asked:
            return result["models"][0]["agreement"][next(iter(asked))]["value"]
        return next(m for m in result["models"] if m["name"] == small)["metrics"]["auc"]["value"]

    assert value([small, base]) == value([base, small]) == value([small])
    again = str(tmp_path / "out" / "ta@0.25")  # the same Student by another name
    assert value([small], teacher=again) == value([small], ta=again) == 1.0
    assert value([base], teacher=small) == value([small], teacher=base) < 1.0


@pytest.mark.parametrize("expand", [pytest.param(1.0, marks=pytest.mark.slow), 2.0])
def test_batchnorm_has_one_rule(tmp_path, expand):
    """While it trains, in the TA, exported, in the report, in ``eval`` and by ``load_ta`` a width
    is the same model; and width 1.0 as converted is the base.
    """
    g = torch.Generator().manual_seed(0)
    rows = ["x,y,z,label"]
    for _ in range(500):
        x, y, z = (3 + torch.randn(3, generator=g)).tolist()
        rows.append(f"{x:.4f},{y:.4f},{z:.4f},{int(x + y * z / 3 > 6)}")
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    for role, width in (("base", 16), ("teacher", 32)):
        torch.manual_seed(width)
        inner = [{"layer": "Linear", "out": width}, {"layer": "BatchNorm1d"}, {"layer": "ReLU"}]
        (tmp_path / role).mkdir()
        model = Ranker([], 3, [*inner, *inner, {"layer": "Linear", "out": 1}]).eval()
        model.mlp[1].running_mean.fill_(0.3)  # of the base's own
        MLPRanker().save(model, tmp_path / role)
    settings, out = Recipe(), tmp_path / "out"
    settings.convert.source, settings.convert.expand = str(tmp_path / "base"), expand
    settings.data.train, settings.distill.teacher = (
        str(tmp_path / "rows.csv"),
        str(tmp_path / "teacher"),
    )
    settings.distill.steps, settings.distill.batch_size, settings.distill.lr = 4, 24, 0.05
    settings.distill.widths = settings.export.widths = [0.25, 1.0]
    settings.distill.eval_every, settings.distill.allow_weak_teacher = 2, True
    settings.export.bootstrap, settings.distill.device = 5, "cpu"
    settings.distill.eval_examples = 0
    if expand > 1:  # the TA learns, too
        settings.distill.ta_weight = 1.0
    convert(settings, out)
    distill(settings, out)
    report = export(settings, out)

    def auc(name, size):
        settings.distill.batch_size = size  # it changes no statistics
        found = compare.evaluation(settings, Asked([str(name)]), out)
        return found["models"][0]["metrics"]["auc"]["value"]

    log = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = {name: own["auc"] for name, own in log[-1]["evaluation"].items()}
    inputs = torch.randn(6, 3, generator=g) + 3
    names = {"0.25": "width 0.25", "1": "width 1"} | ({"TA": "TA"} if expand > 1 else {})
    assert set(trained) == set(names) and len(set(trained.values())) == len(trained)
    for name, value in trained.items():
        assert report.model(names[name]).metrics["auc"].value == pytest.approx(value, abs=1e-9)
        if name == "TA":
            assert auc(out, 200) == pytest.approx(value, abs=1e-9)
            continue
        student = out / "students" / f"width-{name}"
        assert auc(student, 64) == auc(f"{out}@{name}", 200) == pytest.approx(value, abs=1e-9)
        with torch.no_grad():
            nested, dense = load_ta(out).at(float(name)), load_student(student)
            assert torch.equal(nested(dense=inputs), dense(dense=inputs))
            assert torch.equal(
                load_ta(out).student(float(name)).dense()(dense=inputs), dense(dense=inputs)
            )
    base = report.base.metrics["auc"].value
    assert base == auc(tmp_path / "base", 24) == auc(f"{out / 'ta'}@1", 96)
    # widths that were not trained get theirs from the training data, the same each time
    assert auc(f"{out}@0.5", 24) == auc(f"{out}@0.5", 300)


def ece_by_hand(probability, happened, bins=15) -> float:
    total = 0.0
    for k in range(bins):
        inside = [
            i
            for i, p in enumerate(probability)
            if k / bins < p <= (k + 1) / bins or (k == 0 and p == 0)
        ]
        if inside:
            gap = np.mean([float(happened[i]) for i in inside]) - np.mean(
                [float(probability[i]) for i in inside]
            )
            total += len(inside) / len(probability) * abs(gap)
    return total


def test_calibration_error():
    random = np.random.default_rng(0)
    probability = np.concatenate([random.random(500), [0.0, 1.0, 1 / 3, 2 / 3]])
    happened = random.random(504) < probability**2
    assert calibration.error(probability, happened) == pytest.approx(
        ece_by_hand(probability, happened), abs=1e-12
    )
    assert (
        calibration.error(probability, happened)
        > 0.1
        > calibration.error(probability, random.random(504) < probability)
    )
    edge = calibration.error(np.array([1 / 3, 0.35]), np.array([1, 0]))
    assert edge == pytest.approx((2 / 3 + 0.35) / 2), "a bin holds its upper end"
    assert np.isnan(calibration.error(np.array([0.5, np.nan]), np.ones(2)))


def test_classifiers_calibration_and_agreement():
    torch.manual_seed(0)
    task, label = ImageClassification(Recipe()), torch.randint(7, (200,))
    ours, theirs = (
        torch.randn(200, 7) + 2 * torch.nn.functional.one_hot(label, 7) for _ in range(2)
    )
    batch = {"label": label}
    table = {name: values.numpy() for name, values in task.score(ours, batch).items()}
    p = np.exp(ours.double().numpy())
    p /= p.sum(1, keepdims=True)
    found = task.summarize(table)
    assert found["ece"] == pytest.approx(
        ece_by_hand(p.max(1), p.argmax(1) == label.numpy()), abs=1e-9
    )
    assert table["margin"] == pytest.approx(np.sort(p)[:, -1] - np.sort(p)[:, -2])
    answers = [
        {k: v.numpy() for k, v in task.answers(logits, batch).items()} for logits in (ours, theirs)
    ]
    agreement = task.agreement(*answers)
    assert (
        agreement["same"].sum() == (ours.argmax(1) == theirs.argmax(1)).sum()
        and agreement["of"].sum() == 200
    )


def test_rankers_calibration_and_agreement():
    random, task = np.random.default_rng(0), Ranking(Recipe())
    score, label = random.normal(size=300), (random.random(300) < 0.3).astype(float)
    found = task.summarize({"score": score, "label": label})
    p = 1 / (1 + np.exp(-score))
    assert found["calibration"] == pytest.approx(p.sum() / label.sum())
    assert found["ece"] == pytest.approx(ece_by_hand(p, label), abs=1e-12)
    assert found["auc_loss"] == 1 - found["auc"]
    pairwise = Recipe()
    pairwise.distill.ranking_loss = "pairwise"
    assert (
        not {"ece", "calibration"}
        & Ranking(pairwise).summarize({"score": score, "label": label}).keys()
    )

    other, group = score + random.normal(size=300), np.sort(random.integers(0, 40, 300))
    agreement = task.agreement({"score": score, "group": group}, {"score": other, "group": group})
    same = of = 0
    for i in range(300):
        for j in range(i):
            if group[i] == group[j]:
                of += 1
                same += (score[i] > score[j]) == (other[i] > other[j])
    assert (agreement["same"].sum(), agreement["of"].sum()) == (same, of) and 0.5 < same / of < 0.95
    alone = task.agreement({"score": score}, {"score": other})
    assert alone["of"].tolist() == [1.0] * 150 and alone["same"].mean() == pytest.approx(
        same / of, abs=0.12
    )


def test_encoders_agree_where_they_find_the_same():
    random, task = np.random.default_rng(0), SentenceEmbedding(Recipe())
    ours = {name: random.normal(size=(50, 8)) for name in ("first", "second")}
    turn = np.linalg.qr(random.normal(size=(8, 8)))[0]
    turned = {name: 3 * values @ turn for name, values in ours.items()}
    assert task.agreement(ours, turned)["same"].all(), (
        "neither lengths nor the axes of an embedding matter"
    )
    # another width
    other = {name: np.concatenate([v, random.normal(size=(50, 3))], 1) for name, v in ours.items()}
    cosines = [
        [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in t["second"]] for a in t["first"]]
        for t in (ours, other)
    ]
    expected = [int(np.argmax(a) == np.argmax(b)) for a, b in zip(*cosines, strict=True)]
    assert task.agreement(ours, other)["same"].tolist() == expected and 5 < sum(expected) < 48


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("adapter", "make"), [(GPT2(), lambda: gpt2(n_layer=3, n_head=4)), (Llama(), llama)]
)
@pytest.mark.parametrize("kinds", [["mlp"], ["mlp", "heads", "hidden", "depth"], ["heads"]])
def test_a_view_generates_without_a_copy(adapter, make, kinds):
    model = make()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    axes = sizes.nested_axes(adapter, model, kinds)
    ta = TA(adapter, model, axes, sizes.full_sizes(axes), {})
    view, student = ta.at(0.5), ta.student(0.5).dense()
    ids = torch.arange(3, 11)[None]
    options = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": 20,
        "do_sample": False,
        "pad_token_id": 0,
    }
    assert view.generate(ids, **options).tolist() == student.generate(ids, **options).tolist()
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    copies = [
        name
        for name, p in view.named_parameters()
        if p.untyped_storage().data_ptr() not in storages
    ]
    pieces = "heads" in kinds and isinstance(adapter, GPT2)
    assert bool(copies) == pieces and all(".c_attn." in name for name in copies), (
        "only a fused qkv is in pieces"
    )
    assert sum(1 for _ in view.parameters()) == sum(1 for _ in student.parameters()), (
        "tied tensors stay tied"
    )
    before = view(ids).logits
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(-1)
    assert not torch.allclose(view(ids).logits, before), "the weights are the TA's own"


def greedy(model, ids: list[int], count: int) -> list[int]:
    for _ in range(count):
        ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids


@torch.no_grad()
def test_speculation_counts_what_a_loop_counts():
    """Draft, compare, keep what is alike and one more, in plain Python."""
    large = gpt2(0, n_positions=64, eos_token_id=None)
    small = gpt2(0, n_positions=64, eos_token_id=None)
    for parameter in [*large.parameters()]:
        nn.init.normal_(parameter, std=0.25)
    for own, other in zip(small.parameters(), large.parameters(), strict=True):
        own.copy_(other + 0.02 * torch.randn_like(other))
    prompts, new, draft = torch.arange(12).view(3, 4) + 20, 25, 4
    proposed = accepted = calls = 0
    for prompt in prompts.tolist():
        wanted, ids = greedy(large, prompt, new), list(prompt)
        while len(ids) < len(prompt) + new:
            count = min(draft, len(prompt) + new - len(ids) - 1)
            guess = greedy(small, ids, count)[len(ids) :]
            alike = 0
            while alike < count and guess[alike] == wanted[len(ids) + alike]:
                alike += 1
            proposed, accepted, calls = proposed + count, accepted + alike, calls + 1
            ids = wanted[: len(ids) + alike + 1]
    found = speculation.measure(small, large, prompts, new, draft, rounds=1)
    assert (found["proposed"], found["accepted"]) == (
        proposed,
        accepted,
    ) and 0.1 < accepted / proposed < 0.95
    assert found["acceptance"] == accepted / proposed and found["identical"] == 1.0
    assert found["tokens_per_call"] == 3 * new / calls and found["new_tokens"] == 3 * new
    same = speculation.measure(copy.deepcopy(large), large, prompts, new, draft, rounds=1)
    assert same["acceptance"] == 1.0 and small.generation_config.num_assistant_tokens != draft
    with pytest.raises(MattaError, match="vocabularies differ"):
        speculation.measure(gpt2(vocab_size=300), large, prompts, new, draft, 1)
    with pytest.raises(MattaError, match="leave none of the 64 positions"):
        speculation.measure(small, large, torch.zeros(1, 64, dtype=torch.long), new, draft, 1)


@pytest.mark.slow
def test_students_of_one_ta_draft_for_each_other(folder, monkeypatch):
    monkeypatch.setattr(speculation, "NEW", 12)
    monkeypatch.setattr(speculation, "ROUNDS", 1)
    names = [str(folder / "out@0.5"), str(folder / "out@1")]
    result = measured(folder, "base", speculative=names)
    assert [m["name"] for m in result["models"]] == [str(folder / "base"), *names]
    found = result["speculative"]
    assert found["identical"] == 1.0 and 0 < found["acceptance"] <= 1 and found["prompts"] == 8
    assert found["tokens_per_second"].keys() == {"alone", "drafted"}


def test_cascade_on_a_planted_case():
    """A small model that is right where it is sure, and a larger one that is right nine times of
    ten everywhere.
    """
    random, n, task = np.random.default_rng(0), 4000, ImageClassification(Recipe())
    sure = random.random(n)
    small = {
        "correct1": (random.random(n) < np.where(sure > 0.6, 0.95, 0.4)).astype(float),
        "confidence": sure,
        "margin": sure,
    }
    large = {
        "correct1": (random.random(n) < 0.9).astype(float),
        "confidence": np.full(n, 0.9),
        "margin": np.full(n, 0.8),
    }
    found = cascade.curve(task, small, large, (100, 1000), 50)
    best = found["chosen"]
    assert best["kind"] == "cascade" and 0.4 < best["threshold"] < 0.75
    assert found["examples"] == {"chosen_on": 2000, "measured_on": 2000}
    held = np.arange(n) % 2 == 1
    for point in [*found["curve"], best]:
        asked = sure[held] < point["threshold"]
        right = np.where(asked, large["correct1"][held], small["correct1"][held])
        value = point["metrics"]["top1"]
        assert (value["value"] if isinstance(value, dict) else value) == pytest.approx(right.mean())
        assert (
            point["macs"] == pytest.approx(100 + asked.mean() * 1000)
            and point["passed_on"] == asked.mean()
        )
    assert best["macs"] < 0.85 * 1000 and best["against"]["small"]["top1"]["low"] > 0.1
    assert abs(best["against"]["large"]["top1"]["value"]) < 0.03
    assert (
        found["small"]["top1"] == small["correct1"][held].mean()
        and found["large"]["top1"] == large["correct1"][held].mean()
    )
    by_margin = cascade.curve(task, small | {"margin": 1 - sure}, large, (100, 1000), 5, "margin")[
        "chosen"
    ]
    assert by_margin["kind"] != "cascade" or by_margin["macs"] > best["macs"], (
        "what does not tell when to ask costs more"
    )


def test_cascade_says_where_it_does_not_pay():
    task, n = ImageClassification(Recipe()), 400
    confidence = np.random.default_rng(1).random(n)
    bad, good = (
        {"correct1": np.full(n, x), "confidence": confidence, "margin": confidence}
        for x in (0.0, 1.0)
    )
    assert cascade.curve(task, bad, good, (10, 20), 5)["chosen"]["kind"] == "large alone"
    assert cascade.curve(task, bad, good, (10, 20), 5)["chosen"]["macs"] == 20
    assert cascade.curve(task, good, bad, (10, 20), 5)["chosen"]["kind"] == "small alone"
    with pytest.raises(MattaError, match="40 at least"):
        cascade.curve(
            task,
            {k: v[:39] for k, v in bad.items()},
            {k: v[:39] for k, v in good.items()},
            (10, 20),
            5,
        )
    with pytest.raises(MattaError, match="--unsure 'luck' is not known"):
        cascade.curve(task, bad, good, (10, 20), 5, "luck")


def test_cascade_of_two_classifiers(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "images.npz",
        images=random.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8),
        labels=np.arange(60) % 3,
    )
    for name, width in (("small", 16), ("large", 32)):
        torch.manual_seed(0)
        model = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=16,
            patch_size=8,
            embed_dim=width,
            depth=1,
            num_heads=2,
            num_classes=3,
            pretrained_cfg_overlay={
                "input_size": (3, 16, 16),
                "mean": (0.5,) * 3,
                "std": (0.5,) * 3,
            },
        )
        from matta_adapters.vit import ViT

        (tmp_path / name).mkdir()
        ViT().save(model, tmp_path / name)
    settings = Recipe()
    settings.update(
        {"data": {"held_out": str(tmp_path / "images.npz")}, "export": {"bootstrap": 10}}, "test"
    )
    names = [str(tmp_path / "large"), str(tmp_path / "small")]
    result = compare.evaluation(settings, Asked(names, cascade=True), tmp_path / "out")
    (found,) = result["cascade"]
    assert found["models"] == names[::-1] and found["macs"]["small"] < found["macs"]["large"]
    assert (
        all(set(m["metrics"]) == {"top1", "ece"} for m in result["models"])
        and "ta" not in result["agreement"]
    )
    shutil.copytree(tmp_path / "large", tmp_path / "twin")
    with pytest.raises(MattaError, match="cost the same"):
        compare.evaluation(
            settings, Asked([names[0], str(tmp_path / "twin")], cascade=True), tmp_path / "out"
        )

    from typer.testing import CliRunner

    from matta_cli.main import app

    monkeypatch.chdir(tmp_path)
    line = "eval large small --held-out images.npz --bootstrap 10 --cascade"
    printed = CliRunner().invoke(app, line.split())
    assert printed.exit_code == 0, printed.stderr
    *_, table = printed.stdout.split("\n\n")
    rows = [row.split("\t") for row in table.splitlines()]
    assert rows[0] == ["small, then large", "confidence", "passed on", "MACs", "top-1 accuracy"]
    assert (rows[1][0], rows[-1][0]) == ("small", "large") and len(rows) == 3 + len(found["curve"])
    assert (
        rows[1][4] == f"{found['small']['top1']:.4f}" and "Chosen on 30 examples" in printed.stderr
    )


def sat(path: Path) -> list[dict]:
    """Questions as AGIEval's repository has them."""
    random, rows = np.random.default_rng(5), []
    for k in range(12):
        options = [f"({letter}){WORDS[int(random.integers(len(WORDS)))]} {k}" for letter in "ABCD"]
        rows.append(
            {
                "passage": "" if k % 2 else None,
                "question": " ".join(prose(1, k)[0].split()[:9]),
                "options": options,
                "label": "ABCD"[k % 4],
                "other": {},
            }
        )
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return rows


def test_harness_that_is_not_installed(folder, monkeypatch):
    from matta_cli.comparison import harness

    monkeypatch.setattr(harness, "_manager", harness._manager.__wrapped__)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MattaError, match=r"pip install 'matta\[harness\]'"):
        measured(folder, "base", tasks=["lambada_openai"])


def test_questions_of_agieval(tmp_path):
    from matta_cli.comparison import harness

    question = (
        '{"passage": "It is 3. ", "question": "How much?", "options": ["(A)2", "(B)3"], '
        '"label": "B"}'
    )
    (tmp_path / "sat.jsonl").write_text(question + '\n\n{"query": "as is"}\n')
    found = list(harness._rows(tmp_path / "sat.jsonl"))
    assert found == [
        {
            "query": "It is 3. Q: How much? Answer Choices: (A)2 (B)3\n"
            "A: Among A through B, the answer is",
            "choices": ["(A)2", "(B)3"],
            "gold": [1],
        },
        {"query": "as is"},
    ]


def log_likelihood(model, tokenizer, context: str, continuation: str) -> float:
    ids, start = (
        tokenizer(context + continuation)["input_ids"],
        len(tokenizer(context)["input_ids"]),
    )
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(logs[i - 1, ids[i]].item() for i in range(start, len(ids)))


@pytest.mark.slow
def test_harness_agrees_with_our_own(folder, tmp_path):
    """LAMBADA's task on local passages is the last-word accuracy; AGIEval's is the likelihood of
    each option.
    """
    pytest.importorskip("lm_eval")
    pytest.importorskip("accelerate")
    from transformers import AutoTokenizer

    rows = sat(tmp_path / "sat.jsonl")
    files = {
        "lambada_openai": str(folder / "passages.jsonl"),
        "agieval_sat_math": str(tmp_path / "sat.jsonl"),
    }
    result = measured(folder, "base", "out@0.5", tasks=list(files), task_data=files)
    found = by_name(result)
    for entry in found.values():
        lambada, ours = (
            entry["tasks"]["lambada_openai"],
            entry["metrics"]["last_word_accuracy"]["value"],
        )
        assert lambada["metrics"]["acc"]["value"] == ours and lambada["examples"] == 60
    assert 0.1 < found["base"]["metrics"]["last_word_accuracy"]["value"] < 1
    difference = found["out@0.5"]["tasks"]["lambada_openai"]["differences"]["acc"]
    own = found["out@0.5"]["differences"]["last_word_accuracy"]
    assert (difference["value"], difference["p"], difference["test"]) == (
        own["value"],
        own["p"],
        "McNemar",
    )
    assert "perplexity" not in found["out@0.5"]["tasks"]["lambada_openai"]["differences"], (
        "that is no mean"
    )

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder / "base").eval(),
        AutoTokenizer.from_pretrained(folder / "base"),
    )
    right = []
    for row in rows:
        text = f"Q: {row['question']} Answer Choices: {' '.join(row['options'])}\n"
        text += "A: Among A through D, the answer is"
        likely = [log_likelihood(model, tokenizer, text, " " + option) for option in row["options"]]
        right.append(int(np.argmax(likely)) == "ABCD".index(row["label"]))
    assert found["base"]["tasks"]["agieval_sat_math"]["metrics"]["acc"]["value"] == pytest.approx(
        np.mean(right)
    )

    lambada = {
        "tasks": ["lambada_openai"],
        "task_data": {"lambada_openai": files["lambada_openai"]},
        "task_limit": 20,
    }
    alone = compare.evaluation(Recipe(), Asked([str(folder / "base")], **lambada), tmp_path)
    assert alone["data"] == "" and not alone["metrics"], "the tasks bring their own data"
    assert alone["models"][0]["tasks"]["lambada_openai"]["examples"] == 20
    for asked, words in (
        ({"tasks": ["lambda_openai"]}, "no task 'lambda_openai'"),
        (
            {"tasks": ["lambada_openai"], "task_data": {"piqa": "x"}},
            "'piqa', which is none of the --tasks",
        ),
        ({"tasks": ["lambada_openai"], "task_data": {"lambada_openai": "x"}}, "no file 'x'"),
        (
            {"tasks": ["agieval"], "task_data": {"agieval": files["agieval_sat_math"]}},
            "stands for several tasks",
        ),
    ):
        with pytest.raises(MattaError, match=words):
            measured(folder, "base", **asked)
    (tmp_path / "bad.jsonl").write_text('{"question": "?", "options": ["(A)1"], "label": "B"}')
    with pytest.raises(MattaError, match="cannot have the answer 'B'"):
        measured(
            folder,
            "base",
            tasks=["agieval_sat_math"],
            task_data={"agieval_sat_math": str(tmp_path / "bad.jsonl")},
        )


@pytest.mark.slow
def test_harness_on_the_published_files(tmp_path):
    """LAMBADA and SAT Math as published, with GPT-2's own tokenizer, on a model trained on some
    passages for a moment.
    """
    import os

    pytest.importorskip("lm_eval")
    pytest.importorskip("accelerate")
    data = Path(os.environ.get("MATTA_TEST_DATA") or "")
    if not os.environ.get("MATTA_TEST_DATA") or not (data / "lambada_test.jsonl").exists():
        pytest.skip("needs MATTA_TEST_DATA with lambada_test.jsonl, sat_math.jsonl and gpt2-bpe")
    import shutil

    from transformers import GPT2TokenizerFast

    tokenizer = GPT2TokenizerFast.from_pretrained(str(data / "gpt2-bpe"))
    lines = (data / "lambada_test.jsonl").read_text(encoding="utf-8").split("\n")[:8]
    model = gpt2(vocab_size=50257, n_positions=256, n_layer=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    # it learns some passages' ends by heart, so that not all last words are wrong
    for step in range(800):
        ids = torch.tensor([tokenizer(json.loads(lines[step % 8])["text"])["input_ids"]])
        logits = model.lm_head(model.transformer(input_ids=ids).last_hidden_state[:, -4:-1])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -3:].flatten()).backward()
        optimizer.step()
    model.eval().save_pretrained(tmp_path / "model")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(data / "gpt2-bpe" / name, tmp_path / "model" / name)
    files = {
        "lambada_openai": str(data / "lambada_test.jsonl"),
        "agieval_sat_math": str(data / "sat_math.jsonl"),
    }
    settings = recipe(
        tmp_path,
        held_out=str(tmp_path / "text.txt"),
        passages=files["lambada_openai"],
        eval_examples=0,
    )
    (tmp_path / "text.txt").write_text("\n".join(prose(20)), encoding="utf-8")
    asked = Asked([str(tmp_path / "model")], tasks=list(files), task_data=files)
    (entry,) = compare.evaluation(settings, asked, tmp_path)["models"]
    lambada = entry["tasks"]["lambada_openai"]
    assert lambada["examples"] == 5153 and entry["tasks"]["agieval_sat_math"]["examples"] == 220
    assert lambada["metrics"]["acc"]["value"] == pytest.approx(
        entry["metrics"]["last_word_accuracy"]["value"], abs=1e-9
    )
    assert lambada["metrics"]["acc"]["value"] > 0


def test_two_queries_have_no_interval_and_a_row_is_what_macs_are_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random, recipe = np.random.default_rng(0), Recipe()
    rows = [f"{n // 4},{a},{b},{int(a > b)}" for n, (a, b) in enumerate(random.normal(size=(8, 2)))]
    Path("rows.csv").write_text("\n".join(["q,a,b,label", *rows]) + "\n")
    recipe.data.held_out, recipe.data.group = "rows.csv", "q"
    layers = [{"layer": "Linear", "out": 8}, {"layer": "ReLU"}, {"layer": "Linear", "out": 1}]
    Path("base").mkdir()
    MLPRanker().save(Ranker([], 2, layers), Path("base"))
    recipe.convert.source, recipe.convert.order = "base", "none"
    convert(recipe, Path("out"))
    names = ["out@1", "out@0.5"]
    large, small = compare.evaluation(recipe, Asked(names, ta="out@1"), Path("out"))["models"]
    assert (large["macs"], small["macs"]) == (2 * 8 + 8, 2 * 4 + 4)
    assert {own["low"] for own in small["metrics"].values()} == {None}
    assert small["agreement"]["ta"]["low"] is None
    assert small["differences"]["auc"]["examples"] == 2
    assert small["differences"]["auc"]["verdict"] == "unclear"
