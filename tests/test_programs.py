"""Students in other formats: programs of torch.export and ONNX, matta's own checkpoint, half the
bits.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from matta_adapters.mlp_ranker import Ranker
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from matta_cli.conversion.convert import convert
from matta_cli.errors import MattaError
from matta_cli.family import export
from matta_cli.formats import programs
from matta_cli.models import plugins
from matta_cli.models.folders import load_student
from matta_cli.models.save import save_model
from matta_cli.models.source import open_source
from matta_cli.nested.sizes import full_sizes, nested_axes, sizes_at
from matta_cli.nested.view import StudentView, materialize
from matta_cli.settings.recipe import Recipe
from matta_cli.students import parity
from matta_cli.tasks import task as tasks_task
from matta_cli.training.run import distill

IDS = {"vocab_size": 31, "bos_token_id": 0, "eos_token_id": 0}


def made(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(**IDS, n_embd=16, n_head=2, n_layer=2, n_positions=12, initializer_range=0.2)
        ).eval()
    if name == "llama":
        sizes = {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        config = AutoConfig.for_model(
            "llama", **IDS, **sizes, num_key_value_heads=2, max_position_embeddings=12
        )
        return AutoModelForCausalLM.from_config(config).eval()
    if name == "bert":
        sizes = {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        return BertModel(BertConfig(vocab_size=31, **sizes, max_position_embeddings=12)).eval()
    if name == "vit":
        sizes = {"img_size": 16, "embed_dim": 16, "num_heads": 2, "depth": 2, "num_classes": 5}
        return timm.create_model(
            "test_vit", **sizes, pretrained_cfg_overlay={"input_size": (3, 16, 16)}
        ).eval()
    return ranker()


def ranker() -> Ranker:
    torch.manual_seed(0)
    layers = [{"layer": "Linear", "out": 16}, {"layer": "ReLU"}, {"layer": "Linear", "out": 1}]
    return Ranker([(7, 4)], 3, layers).eval()


def examples(name: str, count: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    if name == "vit":
        return {"image": torch.randn(count, 3, 16, 16, generator=generator)}
    if name == "mlp_ranker":
        categorical = torch.randint(7, (count, 1), generator=generator)
        return {"dense": torch.randn(count, 3, generator=generator), "categorical": categorical}
    batch = {"input_ids": torch.randint(31, (count, length), generator=generator)}
    if name == "bert":
        batch["attention_mask"] = (
            torch.arange(length) < torch.randint(2, length + 1, (count, 1), generator=generator)
        ).long()
    return batch


# in a process that has neither matta nor the libraries of the architectures
ALONE = """
import json, sys
for name in ("matta_cli", "matta_adapters", "transformers", "timm"):
    sys.modules[name] = None
import onnxruntime, torch
from safetensors.torch import load_file, save_file
args, kwargs, where = json.loads(sys.argv[1])
batch = load_file(where + "/batch.safetensors")
program = torch.export.load(where + "/student.pt2").module()
session = onnxruntime.InferenceSession(where + "/student.onnx")
names = [i.name for i in session.get_inputs()]
assert names == [*args, *kwargs], names
found = {"pt2": [], "onnx": []}
for start in range(0, 1000, 250):
    part = {name: tensor[start : start + 250] for name, tensor in batch.items()}
    by_position, by_name = [part[a] for a in args], {k: part[v] for k, v in kwargs.items()}
    with torch.no_grad():
        found["pt2"].append(program(*by_position, **by_name))
    given = {**dict(zip(args, by_position)), **by_name}
    given = {name: tensor.numpy() for name, tensor in given.items()}
    found["onnx"].append(torch.from_numpy(session.run(["output"], given)[0]))
outputs = {name: torch.cat(parts).contiguous() for name, parts in found.items()}
save_file(outputs, where + "/out.safetensors")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "vit", "bert", "mlp_ranker"])
def test_programs_and_stock_agree_with_the_view_on_a_thousand_examples(
    name: str, tmp_path: Path
) -> None:
    adapter, model = plugins.adapter(name), made(name)
    axes = nested_axes(adapter, model)
    sizes = sizes_at(axes, full_sizes(axes), 0.5)
    view = StudentView(adapter, model, axes, sizes)
    save_model(adapter, materialize(adapter, model, axes, sizes), tmp_path)
    student = adapter.load(open_source(f"local-dir:{tmp_path}"))
    task = tasks_task.task(adapter.task, Recipe())  # an encoder's depends on its head
    few = examples(name, 3, 5)
    programs.save_pt2(task, student, few, tmp_path / "student.pt2")
    programs.save_onnx(task, student, few, tmp_path / "student.onnx")
    # other numbers of examples, and of tokens, than the programs were made with
    many = examples(name, 1000, 9)
    save_file(many, str(tmp_path / "batch.safetensors"))
    args, kwargs = programs.call_names(task, student, few)
    job = json.dumps([args, kwargs, str(tmp_path)])
    done = subprocess.run([sys.executable, "-c", ALONE, job], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = load_file(str(tmp_path / "out.safetensors"))
    expected = programs.Listening(view).run(task, many).output
    found["stock"] = programs.Listening(student).run(task, many).output
    for kind, got in found.items():
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max())), kind


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished run of a ViT."""
    folder = tmp_path_factory.mktemp("formats")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(60) % 5)
    (folder / "base").mkdir()
    plugins.adapter("vit").save(made("vit"), folder / "base")
    convert(recipe(folder), folder / "out")
    distill(recipe(folder), folder / "out")
    return folder


def recipe(folder: Path, **more: object) -> Recipe:
    found = Recipe()
    run = {
        "teacher": str(folder / "base"),
        "steps": 2,
        "batch_size": 8,
        "widths": [0.5, 1.0],
        "allow_weak_teacher": True,
    }
    tables = {
        "convert": {"source": str(folder / "base")},
        "data": {"train": str(folder / "images.npz")},
        "distill": run,
    }
    found.update(
        {**tables, "export": {"widths": [0.5], "bootstrap": 5, "batch_size": 2, **more}}, "test"
    )
    return found


@pytest.mark.slow
def test_programs_beside_a_checkpoint(trained: Path) -> None:
    report = export(recipe(trained, format=["pt2", "onnx"]), trained / "out", overwrite=True)
    (entry,) = report.students
    assert entry.stock and set(entry.programs) == {"pt2", "onnx"}
    assert all(made.parity.max_difference < 1e-5 for made in entry.programs.values())
    folder = trained / "out/students/width-0.5"
    card = (folder / "README.md").read_text()
    for text in (
        "timm.create_model(",
        "torch.export.load(",
        "onnxruntime.InferenceSession(",
        "[distill]",
        "sha256:",
        "intervals are of 95 %",
    ):
        assert text in card
    program = torch.export.load(folder / "student.pt2").module()
    x = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(program(x), load_student(folder)(x), atol=1e-5)


@pytest.mark.slow
def test_the_own_format_where_it_is_wanted(trained: Path) -> None:
    report = export(recipe(trained, format=["matta"]), trained / "out", overwrite=True)
    (entry,) = report.students
    assert not entry.stock and entry.loader.startswith("matta_cli.load_student")
    assert entry.parity.exact
    folder = trained / "out/students/width-0.5"
    assert (folder / "template").is_dir() and not (folder / "config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_the_bits(trained: Path, dtype: str) -> None:
    export(recipe(trained), trained / "out", overwrite=True)
    whole = load_file(str(trained / "out/students/width-0.5/model.safetensors"))
    report = export(recipe(trained, dtype=dtype), trained / "out", overwrite=True)
    half = load_file(str(trained / "out/students/width-0.5/model.safetensors"))
    for name, tensor in whole.items():
        assert torch.equal(half[name], tensor.to(getattr(torch, dtype)))
    (entry,) = report.students
    assert entry.parity.exact and entry.cost.bytes < 0.6 * sum(t.nbytes for t in whole.values())


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"format": ["gguf"]}, "--format 'gguf' is not known: stock, matta, pt2, onnx."),
        ({"format": ["stock", "matta"]}, "--format stock,matta is not possible"),
        (
            {"format": ["onnx"], "dtype": "float16"},
            "--format onnx with --dtype float16 is not supported",
        ),
        ({"dtype": "int8"}, "--dtype 'int8' is not known: auto, float32, bfloat16, float16."),
    ],
)
def test_refusals(trained: Path, more: dict, sentence: str) -> None:
    before = sorted((trained / "out").rglob("*"))
    with pytest.raises(MattaError) as caught:
        export(recipe(trained, **more), trained / "out", overwrite=True)
    assert sentence in str(caught.value) and sorted((trained / "out").rglob("*")) == before


def test_what_stock_cannot_express_is_refused_where_stock_is_wanted(
    trained: Path, tmp_path: Path
) -> None:
    wanted = recipe(trained, format=["stock"])
    wanted.convert.axes = ["heads"]
    convert(wanted, tmp_path / "out")
    distill(wanted, tmp_path / "out")
    with pytest.raises(
        MattaError, match=r"width 0\.5 cannot be a stock checkpoint: a timm test_vit"
    ):
        export(wanted, tmp_path / "out")
    assert not (tmp_path / "out/students").exists()


def test_a_module_that_does_not_trace_is_named() -> None:
    class Odd(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if float(x.sum()) > 0 else x

    with pytest.raises(MattaError, match="A Odd cannot be exported as a program"):
        programs.program(
            tasks_task.task("image_classification", Recipe()),
            Odd(3, 3),
            {"image": torch.ones(2, 3)},
        )


def test_what_stands_at_padding_is_not_compared():
    there = torch.tensor([[True, True, True], [True, False, False]])
    expected = torch.randn(2, 3, 5)
    got = expected.clone()
    got[1, 2] = torch.nan
    assert parity._parity("a program", got, expected, there).exact
    got[1, 0, 0] += 1
    with pytest.raises(MattaError, match="gives other outputs than before, by"):
        parity._parity("a program", got, expected, there)
    logits = torch.randn(2, 3)  # of classes: no position is padding
    with pytest.raises(MattaError, match="gives other outputs than before"):
        parity._parity("a program", logits + there.logical_not(), logits, there)
