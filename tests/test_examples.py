"""The examples: their settings exist, their scripts work, and each runs on a small slice."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matta_adapters.mlp_ranker import MLPRanker, Ranker
from matta_adapters.vit import ViT
from torch.distributed.run import get_args_parser

import matta_cli
from matta_cli.conversion.convert import convert
from matta_cli.family import export
from matta_cli.nested.sizes import own_sizes
from matta_cli.settings.recipe import Recipe
from matta_cli.settings.resolve import read_toml, resolve
from matta_cli.training.run import distill

EXAMPLES = Path(__file__).parents[1] / "examples"
RECIPES = sorted(path for path in EXAMPLES.glob("*/*.toml") if path.name != "pyproject.toml")
PREPARE = EXAMPLES / "ranker_movielens" / "prepare.py"


def test_there_are_examples() -> None:
    names = {
        "gpt2_wikitext",
        "vit_fashion_mnist",
        "ranker_movielens",
        "minilm_sts",
        "elastic_service",
        "fixed_sizes",
        "gpt2_medium_paper",
        "smollm2_family",
        "text_classifier",
        "tagger",
    }
    assert names <= {path.parent.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_setting_of_an_example_exists(path: Path) -> None:
    recipe = Recipe()
    recipe.update(read_toml(path), str(path))
    assert recipe.distill.widths == recipe.export.widths  # what is exported was trained


def run_example(name: str, folder: Path, file: str = "matta.toml", **data: Any) -> dict[str, Any]:
    """The three commands with the example's recipe, on ``folder/base`` and ``folder/teacher``.
    Returns the report.
    """
    out = folder / "matta-out"
    flags: dict[str, dict[str, Any]] = {
        "convert": {"source": str(folder / "base")},
        "data": {**data, "eval_examples": 40},
        "distill": {
            "teacher": str(folder / "teacher"),
            "steps": 4,
            "batch_size": 4,
            "device": "cpu",
        },
        "export": {"batch_size": 2, "bootstrap": 5},
    }
    flags["distill"]["allow_weak_teacher"] = True  # these Teachers are random
    recipe, read = resolve(flags, out, EXAMPLES / name / file)
    assert read == [EXAMPLES / name / file]
    convert(recipe, out)
    distill(recipe, out)
    report = export(recipe, out).to_json()

    ta = matta_cli.load_ta(out)
    students = [
        matta_cli.load_student(out / "students" / f"width-{width:g}")
        for width in recipe.export.widths
    ]
    sizes = [sum(p.numel() for p in student.parameters()) for student in students]
    assert sizes == sorted(set(sizes)), "Students of different widths have different sizes"
    for width, student in zip(recipe.export.widths, students, strict=True):
        own, wanted = (
            {a.name: a.size for a in ta.adapter.axes(student)},
            own_sizes(ta.axes, ta.sizes(width)),
        )
        assert {name: own[name] for name in wanted} == wanted
    assert (out / "report.html").is_file()
    return report


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2_wikitext", "gpt2_medium_paper"])
def test_gpt2(name: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        AutoModelForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        PreTrainedTokenizerFast,
    )

    letters = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for role, width in (("base", 16), ("teacher", 32)):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=len(letters), n_positions=32, n_embd=width, n_layer=2, n_head=2
        )
        GPT2LMHeadModel(config).save_pretrained(tmp_path / role)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=letters[0]).save_pretrained(
            tmp_path / role
        )
    text = tmp_path / "wiki.txt"
    text.write_text(
        " = Robert Boulter = \n\n"
        "Robert Boulter is an English film , television and theatre actor .\n\n" * 40
    )

    report = run_example(
        name, tmp_path, train=str(text), config="", streaming=False, sequence_length=32
    )
    assert report["task"] == "causal_lm"
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "matta-out" / "students" / "width-0.5")
    assert stock.config.n_inner == 32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recipe"), [("vit_fashion_mnist", "matta.toml"), ("fixed_sizes", "thinkingvit.toml")]
)
def test_vit_fashion_mnist(name: str, recipe: str, tmp_path: Path) -> None:
    import timm

    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        with gzip.open(raw / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">4i", 0x803, count, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 0x801, count) + labels.tobytes()
        )
    shape = {
        "img_size": 28,
        "patch_size": 7,
        "in_chans": 1,
        "num_classes": 10,
        "depth": 2,
        "num_heads": 2,
    }
    for role, width in (("base", 16), ("teacher", 32)):
        torch.manual_seed(0)
        model: Any = timm.create_model("vit_tiny_patch16_224", embed_dim=width, **shape)
        (tmp_path / role).mkdir()
        ViT().save(model, tmp_path / role)

    report = run_example(name, tmp_path, recipe, train=str(raw))
    assert report["task"] == "image_classification"
    stock: Any = timm.create_model(
        f"local-dir:{tmp_path / 'matta-out' / 'students' / 'width-0.5'}", pretrained=True
    )
    assert stock.blocks[0].mlp.fc1.out_features == 32
    assert stock.blocks[0].attn.num_heads == (1 if recipe == "thinkingvit.toml" else 2)


@pytest.mark.slow
def test_minilm_sts(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModel, BertConfig, BertModel, PreTrainedTokenizerFast

    words = [
        "a",
        "cat",
        "dog",
        "sees",
        "the",
        "house",
        "and",
        "one",
        "more",
        "of",
        "many",
        "things",
    ]
    random = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 20)):
        pairs = [[" ".join(random.choice(words, 6)) for _ in range(2)] for _ in range(count)]
        lines = [
            f"main\tfile\t2012\t{i}\t{i % 6}.0\t{one}\t{other}\n"
            for i, (one, other) in enumerate(pairs)
        ]
        (tmp_path / f"sts-{part}.csv").write_text("".join(lines))
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for role, width in (("base", 16), ("teacher", 32)):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
        )
        BertModel(config).save_pretrained(tmp_path / role)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(
            tmp_path / role
        )

    files = {"train": str(tmp_path / "sts-train.csv"), "held_out": str(tmp_path / "sts-test.csv")}
    report = run_example("minilm_sts", tmp_path, **files)
    assert report["task"] == "sentence_embedding"
    stock = AutoModel.from_pretrained(tmp_path / "matta-out" / "students" / "width-0.5")
    assert stock.config.intermediate_size == 32


def movielens(folder: Path, users: int = 10, items: int = 12) -> None:
    """A small MovieLens-100K in GroupLens's own format: all users rate all items, odd sums well."""
    folder.mkdir()
    ratings = [
        (u, i, 5 if (u + i) % 2 else 3, 880000000 + 100 * i)
        for u in range(1, users + 1)
        for i in range(1, items + 1)
    ]
    (folder / "u.data").write_text(
        "".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in reversed(ratings))
    )
    jobs = ["artist", "doctor", "writer"]
    (folder / "u.user").write_text(
        "".join(
            f"{u}|{10 + 5 * u}|{'MF'[u % 2]}|{jobs[u % 3]}|0{u}000\n" for u in range(1, users + 1)
        )
    )
    lines = []
    for i in range(1, items + 1):
        # Action, Adventure or Animation; and Drama
        genres = ["1" if g in (1 + i % 3, 8) else "0" for g in range(19)]
        lines.append(
            f"{i}|Caf\xe9 {i} (1995)|01-Jan-1995||http://example.org/{i}|{'|'.join(genres)}\n"
        )
    (folder / "u.item").write_text("".join(lines), encoding="latin-1")


def prepared(folder: Path, output: Path) -> pd.DataFrame:
    done = subprocess.run(
        [sys.executable, PREPARE, folder, output], capture_output=True, text=True, check=True
    )
    assert "Wrote" in done.stdout and str(output) in done.stdout
    return pd.read_csv(output)


def test_prepare_reads_movielens(tmp_path: Path) -> None:
    movielens(tmp_path / "ml-100k")
    rows = prepared(tmp_path / "ml-100k", tmp_path / "ratings.csv")

    recipe, _ = resolve({}, tmp_path, EXAMPLES / "ranker_movielens" / "matta.toml")
    assert list(rows) == [*recipe.data.categorical, recipe.data.label]
    assert len(rows) == 120 and all(dtype.kind == "i" for dtype in rows.dtypes)
    assert (
        [int(rows[c].nunique()) for c in rows]
        == [int(rows[c].max()) + 1 for c in rows]
        == [10, 12, 7, 2, 3, 3, 2]
    )
    # user 2 (20 years, M, writer) on item 3 (the genre Action before Drama): 2 + 3 is odd, so rated
    # 5
    (row,) = rows[(rows["user"] == 1) & (rows["item"] == 2)].to_dict("records")
    assert row == {
        "user": 1,
        "item": 2,
        "age_group": 1,
        "gender": 1,
        "occupation": 2,
        "genre": 0,
        "label": 1,
    }
    # everyone's latest rating is held out
    assert set(rows["item"][-10:]) == {11} and rows["user"][-10:].nunique() == 10


def test_prepare_reads_recbole_as_it_reads_movielens(tmp_path: Path) -> None:
    movielens(tmp_path / "ml-100k")
    expected = prepared(tmp_path / "ml-100k", tmp_path / "expected.csv")
    atomic = tmp_path / "atomic"
    atomic.mkdir()
    users = [line.split("|") for line in (tmp_path / "ml-100k" / "u.user").read_text().splitlines()]
    (atomic / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        + (tmp_path / "ml-100k" / "u.data").read_text()
    )
    (atomic / "ml-100k.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        + "".join("\t".join(fields) + "\n" for fields in users)
    )
    genres = ["Action", "Adventure", "Animation"]
    (atomic / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        + "".join(f'{i}\t"Quoted {i}\t1995\t{genres[i % 3]} Drama\n' for i in range(1, 13))
    )
    pd.testing.assert_frame_equal(prepared(atomic, tmp_path / "ratings.csv"), expected)


def test_prepare_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, PREPARE, tmp_path, tmp_path / "o.csv"], capture_output=True, text=True
    )
    assert done.returncode == 1 and "neither u.data nor a .inter file" in done.stderr


@pytest.mark.slow
def test_ranker_movielens(tmp_path: Path) -> None:
    movielens(tmp_path / "ml-100k", users=20)
    rows = prepared(tmp_path / "ml-100k", tmp_path / "ratings.csv")
    values = [int(rows[column].max()) + 1 for column in list(rows)[:-1]]
    for role, width in (("base", 4), ("teacher", 8)):
        torch.manual_seed(0)
        layers = [
            {"layer": "Linear", "out": 4 * width},
            {"layer": "ReLU"},
            {"layer": "Linear", "out": 1},
        ]
        (tmp_path / role).mkdir()
        MLPRanker().save(Ranker([(n, width) for n in values], 0, layers), tmp_path / role)

    report = run_example("ranker_movielens", tmp_path, train=str(tmp_path / "ratings.csv"))
    assert report["task"] == "ranking"


SMOLLM2 = EXAMPLES / "smollm2_family"


def test_smollm2_text_is_split_by_documents(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    (docs / "translations" / "it").mkdir(parents=True)
    (docs / "sources").mkdir()
    for i in range(40):
        (docs / f"part{i}.rst").write_text(f"Part {i}\n======\n\nOf {i} things.\n")
    with gzip.open(docs / "packed.rst.gz", "wt") as file:
        file.write("Packed\n")
    (docs / "sources" / "part1.txt").write_text((docs / "part1.rst").read_text())  # a copy
    (docs / "translations" / "it" / "uno.rst").write_text("Uno\n")
    (docs / "empty.txt").write_text(" \n")
    (docs / "figure.svg").write_text("<svg/>")
    run = [sys.executable, str(SMOLLM2 / "prepare.py"), "text", str(docs), str(tmp_path / "data")]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    parts = {}
    for part in ("train", "dev", "held_out"):
        rows = pd.read_json(tmp_path / "data" / f"{part}.jsonl", lines=True)
        parts[part] = list(rows["text"])
        assert f"Wrote {len(rows)} documents" in done.stdout
    whole = [f"Part {i}\n======\n\nOf {i} things." for i in range(40)] + ["Packed"]
    assert sorted(parts["train"] + parts["dev"] + parts["held_out"]) == sorted(whole)
    assert (len(parts["dev"]), len(parts["held_out"])) == (1, 2)

    few = [*run[:4], str(tmp_path / "few"), "--documents", "20"]
    done = subprocess.run(few, capture_output=True, text=True, check=True)
    assert "Wrote 18 documents" in done.stdout and "Wrote 1 documents" in done.stdout
    again = subprocess.run([*few[:-1], "2"], capture_output=True, text=True)
    assert again.returncode == 1 and "too few documents" in again.stderr


@pytest.mark.slow
def test_smollm2_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sample_text import byte_tokenizer, prose
    from transformers import LlamaConfig, LlamaForCausalLM

    text = prose(300)
    tokenizer = byte_tokenizer([text], 280)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 2, "vocab_size": len(tokenizer)}
    LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.2)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "data").mkdir()
    for part in ("train", "dev", "held_out"):
        rows = [json.dumps({"text": line}) for line in prose(400, len(part)).splitlines()]
        (tmp_path / "data" / f"{part}.jsonl").write_text("\n".join(rows))
    (tmp_path / "passages.jsonl").write_text(json.dumps({"text": "the cat sat on the mat"}))
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("smollm2_run", SMOLLM2 / "run.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    trained: list[tuple[str, int, list[float]]] = []

    def distilled(recipe: Recipe, out: Path, **more: Any) -> Path:
        trained.append((out.name, recipe.distill.steps, recipe.distill.widths))
        return distill(recipe, out, **more)

    monkeypatch.setattr(script, "distill", distilled)
    given = ["run.py", "--passages", "passages.jsonl", "--steps", "3", "--limit", "8"]
    given += ["--sequence-length", "64", "--batch-size", "4", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", given)
    script.main()
    results = json.loads((tmp_path / "results" / "results.json").read_text())["models"]
    arms = [one["arm"] for one in results]
    own = ["family", "domain_ta", "ground_truth", "plain"]
    assert [arms.count(arm) for arm in ("base", "untrained cut", *own)] == [1, *[3] * 5]
    assert all(one["metrics"]["perplexity"]["value"] > 1 for one in results)
    assert all("last_word_accuracy" in one["metrics"] for one in results)
    # each width has weights of its own, and those that it was trained to
    assert len({one["metrics"]["perplexity"]["value"] for one in results}) == len(results)
    table = capsys.readouterr().out
    assert all(f"results/{arm}" in table for arm in ("base/ta@0.5", "plain-0.5@0.5", "family@0.75"))

    plan = json.loads((tmp_path / "results" / "plan.json").read_text())
    flops, steps = plan["flops_of_a_row"], plan["steps"]
    # by hand: a row through a Teacher is one forward, and through what learns three
    assert flops["plain"] == flops["family"] and steps["family"] == 3 and steps["plain"] == 1
    one = flops["family"] - flops["ground_truth"]
    macs = [model["macs"] for model in results if model["arm"] == "family"]
    assert one == 2 * next(m["macs"] for m in results if m["arm"] == "base")
    assert flops["ground_truth"] == pytest.approx(6 * sum(macs) / 3)
    assert flops["domain_ta"] > flops["family"]
    assert steps["domain_ta"] == round(3 * flops["family"] / flops["domain_ta"])
    assert steps["ground_truth"] == round(flops["family"] / flops["ground_truth"])
    assert [name for name, *_ in trained][:2] == ["family", "domain_ta"] and len(trained) == 8
    assert ("plain-0.5", 1, [0.5]) in trained and ("family", 3, [0.25, 0.5, 0.75]) in trained

    trained.clear()  # what is finished is not done again
    script.main()
    again = json.loads((tmp_path / "results" / "results.json").read_text())["models"]
    assert not trained and again == results
    monkeypatch.setattr(sys, "argv", [*given, "--steps", "4"])
    with pytest.raises(SystemExit):
        script.main()
    assert "begun with --steps 3" in capsys.readouterr().err


def test_the_slurm_script_is_bash_and_its_flags_exist() -> None:
    script = EXAMPLES / "slurm" / "distill.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    used = set(
        re.findall(
            r"--[a-z-]+",
            script.read_text().partition("srun torchrun")[2].partition("-m matta_cli")[0],
        )
    )
    known = get_args_parser().format_help()
    assert len(used) == 5 and all(flag in known for flag in used), used
