"""The lines of a model card are what they say: they run, and load the Student."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import test_programs
import test_push
import test_sentence_embedding
import torch
import transformers
from sample_text import byte_tokenizer, prose

from matta_cli.conversion.convert import convert
from matta_cli.family import export
from matta_cli.report import terminal
from matta_cli.report.schema import ModelEntry, Report, Role
from matta_cli.settings.recipe import Recipe
from matta_cli.students import runtimes
from matta_cli.students.card import on_hub
from matta_cli.training.run import distill

folder, texts = test_sentence_embedding.folder, test_sentence_embedding.texts  # fixtures
BLOCK = re.compile(r"(?:With ([^\n]+) \(([^\n]+)\):\n\n)?```(\w+)\n(.*?)\n```", re.DOTALL)


def blocks(card: Path) -> list[tuple[str, str, str, str]]:
    """The blocks of a card's last section: with what, who ran them, the language, the lines."""
    section = card.read_text().partition("## How to run it\n")[2]
    return BLOCK.findall(section)


def ran(card: Path) -> str:
    """What the Python of a card prints, in a process that has read the card alone."""
    python = [code for _, _, language, code in blocks(card) if language == "python"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(python)], capture_output=True, text=True, cwd=card.parent
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def family(recipe: Recipe, out: Path, *formats: str) -> Report:
    recipe.export.format, recipe.export.widths = list(formats), [0.5]
    convert(recipe, out)
    distill(recipe, out)
    return export(recipe, out)


@pytest.mark.slow
def test_a_language_model(tmp_path: Path) -> None:
    recipe = test_push.made(tmp_path)
    recipe.convert.axes = ["mlp"]
    family(recipe, tmp_path / "out", "onnx")
    card = tmp_path / "out/students/width-0.5/README.md"
    found = {name: (tried, code) for name, tried, _, code in blocks(card)}
    assert [*found] == [
        "",
        "transformers",
        "onnxruntime (onnx)",
        "transformers, as a pipeline",
        "vLLM",
        "llama.cpp",
    ]
    assert {found[name][0] for name in ("vLLM", "llama.cpp")} == {runtimes.NOT_RUN}
    assert found["vLLM"][1] == f"vllm serve {card.parent}"
    told = ran(card)
    assert "Once upon a time" in told and "input_ids" in told
    here = on_hub(card.read_text(), "me/half")
    assert "students/width-0.5" not in here.partition("## How to run it")[2]


@pytest.mark.slow
def test_a_vit(tmp_path: Path) -> None:
    import numpy as np

    from matta_cli.models import plugins

    images = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(60) % 5)
    (tmp_path / "base").mkdir()
    plugins.adapter("vit").save(test_programs.made("vit"), tmp_path / "base")
    family(test_programs.recipe(tmp_path), tmp_path / "out", "pt2")
    card = tmp_path / "out/students/width-0.5/README.md"
    names = [name for name, *_ in blocks(card)]
    assert names == ["", "timm", "torch (pt2)", "timm, with a prediction"]
    assert "tensor(" in ran(card)


@pytest.mark.slow
def test_a_sentence_encoder(folder: Path, texts: Path) -> None:
    pytest.importorskip("sentence_transformers")
    recipe = test_sentence_embedding.recipe(folder, texts, steps=1, eval_examples=8)
    report = family(recipe, texts / "out")
    card = texts / "out/students/width-0.5/README.md"
    assert "AutoModel" not in card.read_text() and "library_name: sentence-t" in card.read_text()
    assert ran(card) == "(2, 24)\n"
    assert "SentenceTransformer(" in terminal.loading(report)
    assert "AutoModel" not in (texts / "out/report.md").read_text()


def entry(loader: str, stock: bool, **more: object) -> ModelEntry:
    return ModelEntry("width 0.5", Role.STUDENT, folder="students/w", loader=loader, stock=stock)


@pytest.mark.parametrize("out", ["matta-out", "my models", "it's"])
def test_a_folder_is_named_once(out: str, tmp_path: Path) -> None:
    where = f"{out}/students/w"
    student = entry(f"transformers.AutoModelForCausalLM.from_pretrained({where!r})", True)
    assert runtimes.place(student) == where
    first, *others = runtimes.runtimes(student, "text-generation", tmp_path)
    assert first.code.endswith("from_pretrained(folder)") and first.tried == runtimes.LOADED
    assert [run.tried for run in others] == [runtimes.NOT_RUN] * 2
    assert runtimes.uneven(student, "text-generation") == ""


def test_in_fewer_bits_only_what_loaded_it_is_said(tmp_path: Path) -> None:
    loader = "onnxruntime.InferenceSession('o/students/w' + '/student.onnx')"
    student = replace(entry(loader, True), quantized="int8")
    (only,) = runtimes.runtimes(student, "text-generation", tmp_path)
    assert 'InferenceSession(folder + "/student.onnx")' in only.code
    assert only.tried == runtimes.AS_IS and not runtimes.uneven(student, "text-generation")


def test_layers_of_their_own_sizes_are_said(tmp_path: Path) -> None:
    student = entry("matta_cli.load_student('o/students/w')", False)
    told = runtimes.uneven(student, "text-generation")
    assert "neither transformers nor vLLM nor llama.cpp" in told
    (only,) = runtimes.runtimes(student, "text-generation", tmp_path)
    assert only.code == "import matta_cli\n\nmodel = matta_cli.load_student(folder)"


@pytest.mark.slow
def test_transformers_builds_no_layers_of_different_sizes_yet() -> None:
    """Where this fails, Students whose layers differ could be saved for transformers."""
    if not hasattr(transformers.PretrainedConfig(), "per_layer_config"):
        pytest.skip("this transformers has no configuration for each layer")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 9}
    for kind, name in (("llama", "intermediate_size"), ("bert", "intermediate_size")):
        config = transformers.AutoConfig.for_model(
            kind, **sizes, **{name: 32}, per_layer_config={0: {name: 8}}
        )
        of = transformers.AutoModelForCausalLM if kind == "llama" else transformers.AutoModel
        with pytest.raises(Exception, match="per-layer attribute"), torch.device("meta"):
            of.from_config(config)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["text", "token", "image"])
def test_pipelines_of_classifiers(what: str, tmp_path: Path, capsys) -> None:
    task = f"{what}-classification"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    if task == "image-classification":
        config = transformers.ViTConfig(**sizes, image_size=32, patch_size=16)
        transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
        transformers.ViTImageProcessor(size=32).save_pretrained(tmp_path)
        kind = "AutoModelForImageClassification"
    else:
        tokenizer = byte_tokenizer([prose(20)], 280, pad_token="<|end|>")
        tokenizer.save_pretrained(tmp_path)
        kind = f"AutoModelFor{'Sequence' if what == 'text' else 'Token'}Classification"
        config = transformers.BertConfig(vocab_size=len(tokenizer), **sizes)
        getattr(transformers, kind).from_config(config).save_pretrained(tmp_path)
    student = entry(f"transformers.{kind}.from_pretrained('o/students/w')", True)
    loads, runs = runtimes.runtimes(student, task, tmp_path)
    exec(f"{loads.code}\n{runs.code}", {"folder": str(tmp_path)})
    assert runs.tried == runtimes.TRIED and "'score'" in capsys.readouterr().out
