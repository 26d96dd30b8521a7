"""Models stored in half the bits: computed in float32, and exported as they were stored."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sample_text
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from matta_cli.adapter import Source
from matta_cli.conversion.convert import convert
from matta_cli.errors import MattaError
from matta_cli.family import export
from matta_cli.measure.counts import Counts
from matta_cli.models.dtype import stored_dtype
from matta_cli.models.folders import load_ta
from matta_cli.settings.recipe import Recipe
from matta_cli.students import parity
from matta_cli.tasks.task import task
from matta_cli.training.run import distill


def recipe(folder: Path, **more: Any) -> Recipe:
    tables = {
        "convert": {"source": str(folder / "base"), "order": "magnitude"},
        "data": {"train": str(folder / "text.txt"), "sequence_length": 16, "eval_examples": 8},
        "distill": {"teacher": str(folder / "base"), "steps": 1, "batch_size": 4},
        "export": {"widths": [0.5], "bootstrap": 5, "batch_size": 2, **more},
    }
    tables["distill"] |= {"widths": [0.5, 1.0], "allow_weak_teacher": True, "device": "cpu"}
    found = Recipe()
    found.update(tables, "test")
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run of a Llama in bfloat16 whose folder is in several shards."""
    folder = tmp_path_factory.mktemp("bf16")
    text = sample_text.prose(200)
    (folder / "text.txt").write_text(text)
    tokenizer = sample_text.byte_tokenizer([text], 280)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.2)).bfloat16()
    model.save_pretrained(folder / "base", max_shard_size="20KB")
    tokenizer.save_pretrained(folder / "base")
    assert len(list((folder / "base").glob("*.safetensors"))) > 1
    convert(recipe(folder), folder / "out")
    distill(recipe(folder), folder / "out")
    return folder


def stored(folder: Path) -> Counter[str]:
    """How many tensors of each type lie in a folder."""
    found: Counter[str] = Counter()
    for path in folder.glob("*.safetensors"):
        found.update(str(tensor.dtype) for tensor in load_file(path).values())
    return found


@pytest.mark.slow
def test_students_are_stored_as_the_base_was(trained: Path) -> None:
    report = export(recipe(trained), trained / "out", overwrite=True)
    student = trained / "out" / "students" / "width-0.5"
    assert set(stored(trained / "out" / "ta")) == {"torch.float32"}
    assert set(stored(student)) == {"torch.bfloat16"}
    assert AutoModelForCausalLM.from_pretrained(student).dtype == torch.bfloat16
    assert len(AutoTokenizer.from_pretrained(student)) == 280

    (entry,) = report.students
    proof = entry.parity
    assert proof is not None and proof.exact and proof.dtype == "bfloat16"
    # computed in its own digits it is near what was trained, and not the same
    assert proof.rounded is not None and 1e-4 < proof.rounded < 0.1
    assert any("saved in bfloat16 (export.dtype)" in note for note in report.notes)
    assert "| weights saved in | bfloat16: outputs within" in (student / "README.md").read_text()
    base = report.model("base")
    assert base.cost.bytes == pytest.approx(2 * (base.cost.parameters or 0), rel=0.1)
    # what a budget counts is what is written
    ta = load_ta(trained / "out")
    own = task("causal_lm", recipe(trained))
    counted = Counts(own, ta, own.example(ta.model, 1)).bytes(ta.sizes(0.5))
    assert 0 <= counted - (student / "model.safetensors").stat().st_size < 100


@pytest.mark.slow
def test_another_type_where_it_is_asked_for(trained: Path) -> None:
    report = export(recipe(trained, dtype="float32"), trained / "out", overwrite=True)
    assert set(stored(trained / "out" / "students" / "width-0.5")) == {"torch.float32"}
    assert not any("export.dtype" in note for note in report.notes)
    proof = report.students[0].parity
    assert proof is not None and proof.exact and proof.rounded is None


@pytest.mark.slow
def test_a_student_that_rounding_spoils_is_not_exported(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity.ROUNDED, "bfloat16", 1e-5)
    export(recipe(trained, dtype="float32"), trained / "out", overwrite=True)
    with pytest.raises(MattaError, match=r"computed in bfloat16, differs .*--dtype float32"):
        export(recipe(trained), trained / "out", overwrite=True)
    assert set(stored(trained / "out" / "students" / "width-0.5")) == {"torch.float32"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_how_weights_are_stored_is_read_from_them(tmp_path: Path, dtype: str) -> None:
    linear = torch.nn.Linear(8, 8).to(getattr(torch, dtype))
    few = {"norm": torch.ones(4), "ids": torch.arange(99)}  # what is fewer does not count
    assert stored_dtype(Source("m", module=linear)) == dtype
    assert stored_dtype(Source("m", tensors={**few, **linear.state_dict()})) == dtype
    (tmp_path / "config.json").write_text(f'{{"torch_dtype": "{dtype}"}}')
    assert stored_dtype(Source("m", folder=tmp_path)) == dtype
    assert stored_dtype(Source("vit_tiny_patch16_224")) == "float32"
