"""Students in fewer bits: every adapter's load as their cards say, and are judged in the report."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import test_auto
import torch
from matta_adapters.mlp_ranker import MLPRanker, Ranker
from safetensors.torch import load_file, save_file
from test_adapters import ADAPTERS, MODELS, layer, made
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from matta_cli.adapter import Adapter
from matta_cli.comparison.compare import Asked, evaluation
from matta_cli.comparison.subjects import students_of
from matta_cli.conversion.convert import convert
from matta_cli.errors import MattaError
from matta_cli.family import export
from matta_cli.files.workspace import Workspace
from matta_cli.formats import quantized, torchao
from matta_cli.formats.programs import Listening, call_names
from matta_cli.formats.quantized import Maker
from matta_cli.measure import cost
from matta_cli.measure.cost import repeated
from matta_cli.measure.held_out import HeldOut
from matta_cli.models.folders import load_student, load_ta
from matta_cli.models.save import save_model
from matta_cli.report.claims import against_float
from matta_cli.report.schema import ModelEntry, Report, Role
from matta_cli.search import bits
from matta_cli.search import run as searching
from matta_cli.search.scores import Scores
from matta_cli.settings.budget import asked
from matta_cli.settings.recipe import Recipe
from matta_cli.students import quantized as students
from matta_cli.tasks import task as tasks_task
from matta_cli.training.run import distill
from matta_cli.verdict.judge import remake
from tests.sample_text import byte_tokenizer, prose

NO_TORCHAO = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed"
)
ROWS, FIELD = 1200, 20


def trained(rows: dict[str, torch.Tensor], label: torch.Tensor) -> Ranker:
    """A ranker that knows these rows: what rounding costs is then seen in its AUC."""
    torch.manual_seed(0)
    model = Ranker([(FIELD, 4)], 4, [*layer(160, "ReLU"), *layer(96, "ReLU"), *layer(1)])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = nn.functional.binary_cross_entropy_with_logits(model(**rows).flatten(), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished run of a ranker."""
    folder = tmp_path_factory.mktemp("quantize")
    generator = np.random.default_rng(0)
    dense = generator.normal(size=(ROWS, 4)).astype(np.float32)
    field, weight = generator.integers(0, FIELD, ROWS), generator.normal(size=FIELD)
    noise = generator.normal(size=ROWS)
    label = (dense[:, 0] * dense[:, 1] + weight[field] + noise > 0).astype(int)
    columns = {f"d{i}": dense[:, i] for i in range(4)}
    pd.DataFrame({**columns, "c": field, "label": label}).to_csv(folder / "rows.csv", index=False)
    rows = {"dense": torch.from_numpy(dense), "categorical": torch.from_numpy(field)[:, None]}
    (folder / "base").mkdir()
    MLPRanker().save(trained(rows, torch.from_numpy(label).float()), folder / "base")
    convert(recipe(folder), folder / "out")
    distill(recipe(folder), folder / "out")
    return folder


def recipe(folder: Path, **more: Any) -> Recipe:
    found = Recipe()
    data = {"train": str(folder / "rows.csv"), "categorical": ["c"]}
    run = {"steps": 20, "batch_size": 64, "widths": [0.5, 1.0], "teacher": str(folder / "base")}
    tables = {
        "convert": {"source": str(folder / "base")},
        "data": {**data, "dense": ["d0", "d1", "d2", "d3"]},
        "distill": {**run, "allow_weak_teacher": True},
        "export": {"widths": [1.0], "bootstrap": 50, "batch_size": 2, **more},
    }
    found.update(tables, "test")
    return found


@pytest.fixture(scope="module")
def reported(ranked: Path) -> Report:
    return export(recipe(ranked, quantize=["int8", "int4"]), ranked / "out", overwrite=True)


def copies(report: Report) -> list[ModelEntry]:
    return report.of(Role.QUANTIZED)


def test_a_quantized_student_is_an_entry_like_any_other(reported: Report, ranked: Path) -> None:
    own = reported.model("width 1")
    assert [one.name for one in copies(reported)] == ["width 1 int8", "width 1 int4"]
    for one in copies(reported):
        (program,) = (ranked / "out" / str(one.folder)).glob("*.onnx")
        assert one.of == "width 1" and one.quantized in one.name
        assert one.cost.bytes == program.stat().st_size < 0.6 * (own.cost.bytes or 0)
        assert one.cost.macs == own.cost.macs and one.cost.parameters == own.cost.parameters
        assert one.latency(2) and one.parity and 0 < (one.parity.rounded or 0) < 0.2
        value = one.measured(reported.metrics[0])
        assert value and value.low is not None and value.low < value.value
    int8, int4 = copies(reported)
    assert (int4.cost.bytes or 0) < (int8.cost.bytes or 0)
    # of 16 steps outputs are further away than of 256
    assert int4.parity and int8.parity and int4.parity.rounded > int8.parity.rounded
    again = Report.from_json(json.loads(json.dumps(reported.to_json())))
    assert [one.quantized for one in copies(again)] == ["int8", "int4"]


def test_it_is_judged_against_its_float_one_by_the_margin_of_all(reported: Report) -> None:
    found = against_float(reported)
    assert [(one.student.name, one.other.name) for one in found] == [
        ("width 1 int8", "width 1"),
        ("width 1 int4", "width 1"),
    ]
    for one in found:
        assert one.pair.margin == pytest.approx(0.01 * one.other.metrics["auc"].value)
        gain = one.student.metrics["auc"].value - one.other.metrics["auc"].value
        assert one.pair.gain == pytest.approx(gain) and one.sentence in str(tell_of(reported))


def tell_of(report: Report) -> list[str]:
    from matta_cli.report.story import tell

    return tell(report).findings


def test_the_report_made_again_measures_it_again(reported: Report, ranked: Path) -> None:
    again = remake(ranked / "out")
    pairs = [(one.student.name, one.pair.gain) for one in against_float(again)]
    assert pairs == [(one.student.name, one.pair.gain) for one in against_float(reported)]


def test_eval_measures_what_the_report_did(reported: Report, ranked: Path) -> None:
    names = students_of(Workspace(ranked / "out"))
    found = evaluation(recipe(ranked), Asked(names), ranked / "out")
    values = {Path(model["name"]).name: model["metrics"] for model in found["models"]}
    for one in copies(reported):
        measured = values[Path(str(one.folder)).name]["auc"]["value"]
        assert measured == pytest.approx(one.metrics["auc"].value)


def test_a_copy_alone_and_as_a_module_is_refused(
    reported: Report, ranked: Path, tmp_path: Path
) -> None:
    folder = ranked / "out/students/width-1-int8"
    with pytest.raises(MattaError, match="is a Student in int8, and no dense module"):
        load_student(folder)
    folder = folder.rename(tmp_path / "alone")
    try:
        with pytest.raises(MattaError, match=r"beside the float Student .*width-1, which is not"):
            evaluation(recipe(ranked), Asked([str(folder)]), ranked / "out")
    finally:
        folder.rename(ranked / "out/students/width-1-int8")


def test_a_program_that_is_a_link_to_elsewhere_is_refused(
    reported: Report, ranked: Path, tmp_path: Path
) -> None:
    folder = ranked / "out/students/width-1-int8"
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "student.onnx").symlink_to(folder / "student.onnx")
    with pytest.raises(MattaError, match=r"is a link to .* it is not followed"):
        quantized.opened(tmp_path / "copy", nn.Identity())
    (tmp_path / "copy" / "student.onnx").unlink()
    (tmp_path / "copy" / "student.onnx").write_bytes(b"no program")
    with pytest.raises(MattaError, match=r"onnxruntime cannot open .*student\.onnx: "):
        quantized.opened(tmp_path / "copy", nn.Identity())


def test_what_is_broken_is_left_out(reported: Report, tmp_path: Path) -> None:
    """The gate is the metric's: one that surely loses more than a share of its float one's goes."""
    report = Report.from_json(reported.to_json())
    folders = {one.name: tmp_path / one.name for one in copies(report)}
    for folder in folders.values():
        folder.mkdir()
    assert students.drop_broken(report, folders) == [] and len(copies(report)) == 2
    pair = next(pair for pair in report.pairs if (pair.a, pair.metric) == ("width 1 int4", "auc"))
    value = report.model("width 1").metrics["auc"].value
    broken = replace(pair, gain=-0.2 * value, low=-0.3 * value, high=-0.11 * value, p=0.01)
    report.pairs[report.pairs.index(pair)] = broken
    (note,) = students.drop_broken(report, folders)
    assert note.startswith("width 1 int4 is worse than width 1 in AUC, by ")
    assert note.endswith("more than 10 % of the value, so width 1 int4 is left out.")
    assert [one.name for one in copies(report)] == ["width 1 int8"]
    assert not any("width 1 int4" in (pair.a, pair.b) for pair in report.pairs)
    assert folders["width 1 int8"].exists() and not folders["width 1 int4"].exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"quantize": ["int2"]}, "--quantize 'int2' is not known: int8, int8-static, int4, auto."),
        ({"quantize": ["auto"]}, "--quantize auto is for --target-memory"),
        (
            {"quantize": ["auto"], "target_memory": ["1MB"], "target_latency": ["1s"]},
            "--quantize auto with a limit on time is not supported",
        ),
    ],
)
def test_refusals(ranked: Path, more: dict[str, Any], sentence: str) -> None:
    before = sorted((ranked / "out").rglob("*"))
    with pytest.raises(MattaError) as caught:
        export(recipe(ranked, **more), ranked / "out", overwrite=True)
    assert sentence in str(caught.value) and sorted((ranked / "out").rglob("*")) == before


@pytest.mark.parametrize(
    ("kind", "trains"), [("auto", True), ("int8-static", True), ("int8", False)]
)
def test_what_is_calibrated_has_examples_of_its_own(
    ranked: Path, tmp_path: Path, kind: str, trains: bool
) -> None:
    rows = (ranked / "rows.csv").read_text().splitlines()
    (tmp_path / "held.csv").write_text("\n".join(rows[:51]))
    own = recipe(ranked, quantize=[kind])
    own.data.held_out = str(tmp_path / "held.csv")
    data = HeldOut.opened(own, load_ta(ranked / "out" / "ta"), ranked / "out" / "ta", 1).data
    assert len(data.held_out[0]) == 50 and len(data.train) == (ROWS if trains else 50)


def test_a_missing_package_is_one_sentence(ranked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    with pytest.raises(MattaError, match=r"needs onnx.*: pip install 'matta\[onnx\]'\.$"):
        export(recipe(ranked, quantize=["int8"]), ranked / "out", overwrite=True)


@pytest.mark.slow
def test_a_budget_is_met_by_more_units_of_fewer_bits(
    ranked: Path, reported: Report, tmp_path: Path
) -> None:
    """Where int8 has room for all of the units, and float for a part of them, both are measured."""
    int8, _ = copies(reported)
    limit = (int8.cost.bytes or 0) + 500
    assert limit < (reported.model("width 1").cost.bytes or 0)
    given = {"widths": [], "target_memory": [f"{limit}B"], "quantize": ["auto"]}
    own = recipe(ranked, **given)
    own.search.trials = 3
    out = shutil.copytree(ranked / "out", tmp_path / "out")
    report = export(own, out, overwrite=True)
    name = f"memory-{limit}B"
    (chosen,) = copies(report)
    assert (chosen.name, chosen.of, chosen.quantized) == (name, f"{name} float", "int8")
    assert (chosen.cost.bytes or 0) <= limit < (report.model(f"{name} float").cost.bytes or 0)
    assert (out / "students" / name / "student.onnx").is_file()
    assert any(re.search(rf"^{name}: width 1, in int8; it uses 9\d\.\d %", n) for n in report.notes)
    found = re.compile(r"AUC while sizes were chosen was (.*) in float .* and (.*) in int8")
    (told,) = (match for note in report.notes if (match := found.search(note)))
    assert float(told[2]) > float(told[1])


def test_a_smaller_width_that_is_better_in_fewer_bits_is_chosen(
    ranked: Path, tmp_path: Path
) -> None:
    """A budget with room for all: here the smaller width is the better one, as scores have it."""
    own = recipe(ranked, widths=[], target_memory=["1MB"], quantize=["auto"])
    own.search.trials = 2
    with pytest.MonkeyPatch.context() as patch:

        def score(self: Any, sizes: Any) -> float:
            return 0.9 if sizes == self.ta.sizes(0.5) else 0.8

        def measured(self: bits.Bits, student: Any, temp: Path) -> bits.Measured:
            whole, value = self.search.counts.bytes(student.sizes), self.search.scores.value
            return bits.Measured(whole // 4, whole, value(student.sizes))

        patch.setattr(Scores, "value", score)
        patch.setattr(bits.Bits, "_measure", measured)
        out = shutil.copytree(ranked / "out", tmp_path / "out")
        report, (chosen,) = searching.search(own, out, asked(own.export), measured=False)
    assert (chosen.sizes, chosen.quantized) == (load_ta(out / "ta").sizes(0.5), "int8")
    assert any("in int8 had AUC 0.9, and the larger" in note for note in report.notes)


@pytest.mark.slow
def test_a_budget_that_float_meets_better_stays_in_float(ranked: Path, tmp_path: Path) -> None:
    """A rule of nothing but the scores: here those of int8 are all but chance."""
    own = recipe(ranked, widths=[], target_memory=["40kB"], quantize=["auto"])
    own.search.trials = 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits.Bits, "_score", lambda self, copy: 0.5)
        out = shutil.copytree(ranked / "out", tmp_path / "out")
        report = export(own, out, overwrite=True)
    assert not copies(report) and report.model("memory-40kB").cost.bytes <= 40_000


@pytest.mark.slow
def test_a_budget_that_only_fewer_bits_meet_says_so(ranked: Path, tmp_path: Path) -> None:
    own = recipe(ranked, widths=[], target_memory=["15kB"], quantize=["auto"])
    own.search.trials = 2
    report = export(own, shutil.copytree(ranked / "out", tmp_path / "out"), overwrite=True)
    (chosen,) = copies(report)
    assert (chosen.cost.bytes or 0) <= 15_000
    why = "memory-15kB: no Student that was found is within it in float, so this one is in int8."
    assert why in report.notes


@pytest.mark.slow
def test_a_budget_that_no_bits_meet(ranked: Path) -> None:
    own = recipe(ranked, widths=[], target_memory=["2kB"], quantize=["auto"])
    near = r"the smallest Student here has .* in int8, so the nearest possible is --target-memory"
    with pytest.raises(MattaError, match=near):
        export(own, ranked / "out", overwrite=True)


# In a process of its own, with what a card says alone: it prepares what the lines need, and runs.
RUN = """
import sys, torch
sys.modules["matta_cli"] = None
{lines}
model = globals().get("session") or model
from safetensors.torch import load_file, save_file
given = load_file({inputs!r})
if hasattr(model, "run"):
    out = torch.from_numpy(model.run(None, {{n: t.numpy() for n, t in given.items()}})[0])
else:
    with torch.no_grad():
        out = model(**given).logits
save_file({{"out": out.contiguous()}}, {to!r})
"""


def run_lines(lines: str, inputs: dict[str, torch.Tensor], folder: Path) -> torch.Tensor:
    """What a card's lines of Python give for these inputs of the model."""
    given, to = folder / "given.safetensors", folder / "out.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in inputs.items()}, str(given))
    code = RUN.format(lines=lines, inputs=str(given), to=str(to))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(str(to))["out"]


def lines_of(card: Path) -> str:
    """All that a card has of Python, one after the other."""
    return "\n".join(re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL))


@pytest.mark.slow
def test_the_lines_of_the_card_run(reported: Report, ranked: Path, tmp_path: Path) -> None:
    folder = ranked / "out/students/width-1-int8"
    like = load_student(ranked / "out/students/width-1")
    task = tasks_task.task("ranking", recipe(ranked))
    batch = task.example(like, 5)
    out = run_lines(lines_of(folder / "README.md"), batch, tmp_path)
    assert torch.equal(out, task.forward(quantized.opened(folder, like), batch))


# Every adapter, on the models of its own suite


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", [*ADAPTERS, "auto"])
def test_every_adapter(name: str, kind: str, tmp_path: Path) -> None:
    """The file is loaded by its own line, gives what is measured, and is near the float model."""
    adapter, model, batch = toy(name)
    (tmp_path / "float").mkdir()
    save_model(adapter, model, tmp_path / "float")
    to = tmp_path / kind
    to.mkdir()
    task = tasks_task.task(adapter.task, Recipe())
    by_torchao = torchao.fits(model, adapter.loader)
    if by_torchao and kind == "int4" and importlib.util.find_spec("torchao"):
        with pytest.raises(MattaError, match="torchao computes with weights of 4 bits on GPUs"):
            quantized.refuse(kind, model, adapter.loader)
        return
    assert by_torchao == (adapter.task == "causal_lm" and name not in ("gpt2", "auto"))
    if by_torchao and importlib.util.find_spec("torchao") is None:
        with pytest.raises(
            MattaError, match=r"needs torchao .*: pip install 'matta\[quantize\]'\."
        ):
            quantized.refuse(kind, model, adapter.loader)
        return
    own = Maker(task, model, tmp_path / "float", adapter.loader, repeated(batch, 3), list, 1)
    with own as maker:
        line = maker.write(kind, to)
        beside = maker.beside
    copy = quantized.opened(to, model, 1)
    got, expected = (Listening(one).run(task, batch).output for one in (copy, model))
    far = float((got - expected).norm() / expected.norm())  # the largest alone says little
    assert 0 < far < {"int8": 0.15, "int4": 0.6}[kind]
    if beside is not None:
        exact, there = Listening(beside).run(task, batch).output, task.present(batch)
        if there is not None:  # at padding, attention has no one right answer
            exact, expected = exact[there], expected[there]
        assert torch.allclose(exact, expected, atol=1e-4)
    heard = Listening(model).run(task, batch)
    names = [*call_names(task, model, batch)[0], *heard.kwargs]
    values = zip(names, [*heard.args, *heard.kwargs.values()], strict=True)
    given = {name: value for name, value in values if isinstance(value, torch.Tensor)}
    loads = line.format(folder=repr(str(to)))
    again = run_lines(f"import {line.partition('.')[0]}\nmodel = {loads}", given, tmp_path)
    assert float((again - got).abs().max()) <= 0.01 * float(got.abs().max())


def toy(name: str) -> tuple[Adapter, nn.Module, dict[str, torch.Tensor]]:
    """A model of an adapter, and a batch of its task."""
    if name == "auto":
        adapter, model = test_auto.made("mixer")
    else:
        adapter, model, _ = made(next(one for one in MODELS if one.partition("-")[0] == name))
    return adapter, model, tasks_task.task(adapter.task, Recipe()).example(model, 5)


@pytest.mark.slow
def test_convolutions_are_calibrated(tmp_path: Path) -> None:
    adapter, model = test_auto.made("resnet18")
    task = tasks_task.task(adapter.task, Recipe())
    instead = r"those of convolutions.* Pass --quantize int8-static\."
    for kind in ("int8", "int4"):
        with pytest.raises(MattaError, match=instead):
            quantized.refuse(kind, model, adapter.loader)
    quantized.refuse("int8-static", model, adapter.loader)
    assert quantized.usual(model) == "int8-static"
    batch = task.example(model, 6)
    seen = []

    def calibration() -> list[dict[str, torch.Tensor]]:
        seen.append(batch)
        return [batch]

    with Maker(task, model, tmp_path, "", repeated(batch, 3), calibration, 1) as maker:
        maker.write("int8-static", tmp_path)
    copy = quantized.opened(tmp_path, model, 1)
    got, expected = (Listening(one).run(task, batch).output for one in (copy, model))
    assert seen and 0 < (got - expected).abs().max() < 0.2 * expected.abs().max()
    assert (tmp_path / "student.onnx").stat().st_size < 1.2 * cost.parameters(model)


# Language models, from a run to where they are opened again


def spoken(folder: Path, model: Any) -> tuple[Path, Report]:
    """A run of a language model and its export in int8, in an output folder."""
    (folder / "train.txt").write_text(prose(80))
    model.save_pretrained(folder / "base")
    byte_tokenizer([prose(60)], 300).save_pretrained(folder / "base")
    found = Recipe()
    run = {"teacher": str(folder / "base"), "steps": 2, "batch_size": 4, "widths": [1.0]}
    data = {"train": str(folder / "train.txt"), "eval_examples": 8, "sequence_length": 16}
    times = {"batch_size": 2, "new_tokens": 2, "prompt_tokens": 4}
    tables = {
        "convert": {"source": str(folder / "base")},
        "data": data,
        "distill": {**run, "allow_weak_teacher": True},
        "export": {"widths": [1.0], "bootstrap": 20, "quantize": ["int8"], **times},
    }
    found.update(tables, "test")
    convert(found, folder / "out")
    distill(found, folder / "out")
    return folder / "out", export(found, folder / "out")


@NO_TORCHAO
@pytest.mark.slow
def test_a_language_model_by_torchao(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes, **heads))
    out, report = spoken(tmp_path, model)
    (copy,), own = copies(report), report.model("width 1")
    assert copy.latency(2, "decode") and copy.latency(1, "prefill") and own.cost.bytes
    # embeddings and the output layer, half of so small a model, stay as they are
    assert 0.5 < (copy.cost.bytes or 0) / own.cost.bytes < 0.8
    folder = out / str(copy.folder)
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert not [*folder.glob("*.bin"), *folder.glob("*.pt")]
    batch = {"input_ids": torch.arange(20).reshape(2, 10)}
    said = run_lines(lines_of(folder / "README.md"), batch, tmp_path)
    quantized_one = quantized.opened(folder, nn.Identity())
    with torch.no_grad():
        assert torch.allclose(said, quantized_one(**batch).logits, atol=1e-5)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_type"]["default"]["_type"] = "AWQConfig"
    odd = shutil.copytree(folder, tmp_path / "odd")
    (odd / "config.json").write_text(json.dumps(config))
    with pytest.raises(MattaError, match=r"names 'AWQConfig', which matta does not write there\.$"):
        quantized.opened(odd, nn.Identity())
    # opened as any model of few bits is: as the numbers that its weights stand for
    found = Recipe()
    found.update({"convert": {"source": str(folder)}}, "test")
    found.convert.order = "none"
    opened = convert(found, tmp_path / "again").ta.model.model.layers[0].mlp.up_proj.weight
    whole = load_student(out / str(own.folder)).model.layers[0].mlp.up_proj.weight
    step = whole.abs().amax(1, keepdim=True) / 127
    assert ((opened - whole).abs() <= 0.51 * step).all() and (opened != whole).any()


@pytest.mark.slow
def test_a_language_model_as_a_program(tmp_path: Path) -> None:
    """GPT-2 has no linear layers for torchao: its program reads prompts, and keeps no cache."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_embd=32, n_head=2, n_layer=2, n_positions=32)
    out, report = spoken(tmp_path, GPT2LMHeadModel(config))
    (copy,), own = copies(report), report.model("width 1")
    assert copy.loader.startswith("onnxruntime.") and own.latency(2, "decode")
    assert copy.latency(2, "prefill") and copy.latency(2, "decode") is None
    assert any("In onnxruntime, too, width 1 takes" in note for note in report.notes)
    small = str(out / str(copy.folder))
    asked = Asked([small], speculative=[small, str(out / str(own.folder))])
    with pytest.raises(MattaError, match="a program of ONNX, which does not generate"):
        evaluation(Recipe(), asked, out)
