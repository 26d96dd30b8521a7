"""The adapter auto: what it finds in any architecture, leaves whole, and refuses."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import auto_models
import numpy as np
import pytest
import timm
import torch
import torch_pruning
from matta_adapters import tracing
from matta_adapters.auto import Auto
from matta_adapters.calls import Inputs
from matta_adapters.vit import ViT
from torch import nn
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

from matta_cli.adapter import Source
from matta_cli.conversion.convert import convert
from matta_cli.errors import MattaError
from matta_cli.formats import programs
from matta_cli.models.folders import load_student, load_ta
from matta_cli.models.load import load_model
from matta_cli.models.source import open_source
from matta_cli.nested import grow, importance, view
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task
from matta_cli.testing import check_adapter

IMAGES, TOKENS = "1x3x32x32", "input_ids=1x9:int64"
EXAMPLES = {
    "resnet18": (IMAGES, ""),
    "mobilenet": ("1x3x64x64", ""),
    "convnext": ("1x3x64x64", ""),
    "swin": (IMAGES, ""),
    "efficientnet": ("1x3x64x64", ""),
    "regnet": ("1x3x64x64", ""),
    "mixer": (IMAGES, ""),
    "vit": (IMAGES, ""),
    "bert": (TOKENS, "causal_lm"),
    "llama": (TOKENS, "causal_lm"),
    "tied_llama": (TOKENS, "causal_lm"),
    "fused": (TOKENS, "causal_lm"),
    "TwoTowers": ("categorical=3x2:int64", "ranking"),
    "plain_cnn": ("1x1x8x8", ""),
    "flattened": ("1x3x8x8", ""),
    "concatenated": ("1x3x8x8", ""),
    "grouped": ("1x3x12x12", ""),
    "own_norm": ("1x3x8x8", ""),
    "placed": ("1x3x8x8", ""),
    "half_cut": ("1x3x8x8", ""),
}


def source(name: str, **more) -> Source:
    example, task = EXAMPLES.get(name, ("1x3x8x8", ""))
    return Source(
        name, **{"builder": f"auto_models:{name}", "example": example, "task": task, **more}
    )


def made(name: str) -> tuple[Auto, nn.Module]:
    adapter = Auto()
    model = auto_models.trained(adapter.load(source(name)))
    adapter.axes(model)
    return adapter, model


def batch(name: str) -> tuple[tuple, dict]:
    """Inputs of a model, made here and not by the adapter."""
    g = torch.Generator().manual_seed(3)
    example, task = EXAMPLES[name]
    shape = [int(n) for n in re.search(r"[\dx]*x\d+", example)[0].split("x")]
    if task == "causal_lm":
        return (), {"input_ids": torch.randint(30, (3, 9), generator=g)}
    if task == "ranking":
        return (), {"categorical": torch.randint(11, (5, 2), generator=g)}
    return (torch.randn(3, *shape[1:], generator=g),), {}


def outputs(model: nn.Module, name: str) -> torch.Tensor:
    args, kwargs = batch(name)
    with torch.no_grad():
        out = model(*args, **kwargs)
    return getattr(out, "logits", out)


def slices(axis) -> set:
    return {(s.tensor, s.dim, s.blocks, s.start, s.outgoing) for s in axis.slices}


def by_name(adapter: Auto, model: nn.Module) -> dict:
    return {axis.name: axis for axis in adapter.axes(model)}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


CNNS = ("convnext", "swin", "efficientnet", "regnet")
SLOW = ("mobilenet", "resnet18", *CNNS)  # many axes


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in EXAMPLES]
)
def test_contract(name):
    adapter, model = made(name)
    args, kwargs = batch(name)
    check_adapter(adapter, model, kwargs or args)


def test_vit_axes_are_those_of_the_hand_written_adapter():
    adapter, model = made("vit")
    found = by_name(adapter, model)
    for i, axis in enumerate(a for a in ViT().axes(model) if a.name.startswith("mlp.")):
        own = found[f"blocks.{i}.mlp.fc1"]
        assert (own.size, own.step, slices(own)) == (axis.size, axis.step, slices(axis))
    heads = found["blocks.1.attn.qkv"]
    assert (heads.size, heads.step) == (64, 16)
    qkv = {("blocks.1.attn.qkv.weight", 0, 3, 0, False), ("blocks.1.attn.qkv.bias", 0, 3, 0, False)}
    assert slices(heads) == qkv | {("blocks.1.attn.proj.weight", 1, 1, 0, True)}
    residual = found["patch_embed.proj"]
    assert {"cls_token", "pos_embed", "norm.bias", "head.weight"} <= {
        s.tensor for s in residual.slices
    }
    assert len(found) == 5 and adapter.notes == []


def test_vit_students_are_narrower_vits():
    """timm's own module with fewer heads and channels, filled by hand, computes the Student."""
    adapter, model = made("vit")
    sizes = {
        "blocks.0.attn.qkv": 32,
        "blocks.1.attn.qkv": 32,
        "blocks.0.mlp.fc1": 100,
        "blocks.1.mlp.fc1": 100,
    }
    student = view.materialize(adapter, model, adapter.axes(model), sizes)
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for block in masked.blocks:
            block.attn.proj.weight[:, 32:] = 0
            block.mlp.fc2.weight[:, 100:] = 0
    assert torch.allclose(outputs(student, "vit"), outputs(masked, "vit"), atol=1e-5)
    assert student.blocks[0].attn.num_heads == 2 and model.blocks[0].attn.num_heads == 4


def test_grouped_queries_are_llamas_own_with_fewer_heads():
    """transformers' own model with 4 query heads for 8: of each key/value head the first two."""
    adapter, model = made("llama")
    found = by_name(adapter, model)
    axis = found["model.layers.1.self_attn.q_proj"]
    assert (axis.size, axis.step) == (16, 4)
    student = view.materialize(
        adapter,
        model,
        adapter.axes(model),
        {f"model.layers.{i}.self_attn.q_proj": 8 for i in range(2)},
    )
    config = {**model.config.to_dict(), "num_attention_heads": 4, "head_dim": 4}
    own = LlamaForCausalLM(LlamaConfig(**config)).eval()
    # 8 heads of 4; heads 0-3 read key/value head 0, heads 4-7 head 1
    keep = [*range(8), *range(16, 24)]
    state = dict(model.state_dict())
    for i in range(2):
        attention = f"model.layers.{i}.self_attn"
        state[f"{attention}.q_proj.weight"] = state[f"{attention}.q_proj.weight"][keep]
        state[f"{attention}.o_proj.weight"] = state[f"{attention}.o_proj.weight"][:, keep]
    own.load_state_dict(state)
    assert torch.allclose(outputs(student, "llama"), outputs(own, "llama"), atol=1e-5)
    assert student.model.layers[0].self_attn.num_key_value_groups == 2
    assert any("model.layers.0.self_attn.k_proj" in note for note in adapter.notes)


def test_a_group_without_end_is_bounded(monkeypatch):
    """torch-pruning's own walk never returns here; it is bounded, and the layers are named."""
    monkeypatch.setattr(tracing, "grouped_queries", lambda *_: None)
    config = {**auto_models.llama().config.to_dict(), "num_attention_heads": 4}
    began = time.monotonic()
    found = tracing.nest(
        LlamaForCausalLM(LlamaConfig(**config)).eval(),
        Inputs(kwargs={"input_ids": torch.randint(2, (2, 9))}),
        "llama",
    )
    assert time.monotonic() - began < 60
    (named,) = (names for reason, names in found.whole.items() if "finds no end" in reason)
    assert "model.layers.0.self_attn.q_proj" in named
    assert "model.layers.0.mlp.gate_proj" in {axis.name for axis in found.axes}


def pruned(model: nn.Module, name: str, layer: str, kept: int) -> nn.Module:
    """torch-pruning's own surgery on a copy: output channels from ``kept`` on are removed."""
    twin = copy.deepcopy(model).requires_grad_(True)
    args, kwargs = batch(name)
    graph = torch_pruning.DependencyGraph()
    graph.build_dependency(
        twin,
        args,
        forward_fn=lambda m, _: getattr(m(*args, **kwargs), "logits", m(*args, **kwargs)),
        verbose=False,
    )
    module = twin.get_submodule(layer)
    pruner = graph.get_pruner_of_module(module)
    size = pruner.get_out_channels(module)
    graph.get_pruning_group(module, pruner.prune_out_channels, list(range(kept, size))).prune()
    return twin.eval()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("plain_cnn", "stem.0"),
        ("plain_cnn", "inner.0"),
        pytest.param("resnet18", "layer2.0.conv2", marks=pytest.mark.slow),
        pytest.param("resnet18", "layer3.1.conv1", marks=pytest.mark.slow),
        pytest.param("mobilenet", "blocks.1.0.conv_pw", marks=pytest.mark.slow),
        pytest.param("mobilenet", "blocks.2.0.se.conv_reduce", marks=pytest.mark.slow),
        pytest.param("mobilenet", "blocks.2.0.conv_pwl", marks=pytest.mark.slow),
        pytest.param("convnext", "stages.2.downsample.1", marks=pytest.mark.slow),
        ("convnext", "stages.1.blocks.0.mlp.fc1"),
        ("mixer", "blocks.1.mlp_tokens.fc1"),
        ("vit", "patch_embed.proj"),
        ("bert", "bert.encoder.layer.1.intermediate.dense"),
        ("bert", "bert.embeddings.word_embeddings"),
        ("llama", "model.layers.0.mlp.gate_proj"),
        ("concatenated", "right"),
        ("TwoTowers", "left.0"),
    ],
)
def test_students_are_what_torch_pruning_cuts(name, layer):
    adapter, model = made(name)
    size = by_name(adapter, model)[layer].size
    student = view.materialize(adapter, model, adapter.axes(model), {layer: size // 2})
    reference = pruned(model, name, layer, size // 2)
    assert parameters(student) == parameters(reference) < parameters(model)
    assert torch.allclose(outputs(student, name), outputs(reference, name), rtol=1e-4, atol=1e-4)


def test_parameter_counts_are_those_of_smaller_models():
    adapter, model = made("plain_cnn")
    sizes = {"stem.0": 8, "inner.0": 5}
    student = view.materialize(adapter, model, adapter.axes(model), sizes)
    stem, inner = 9 * 8 + 2 * 8, (9 * 8 * 5 + 5) + 2 * 5
    back, head = (9 * 5 * 8 + 8) + 2 * 8, 8 * 10 + 10
    assert parameters(student) == stem + inner + back + head
    assert (
        student.stem[1].num_features == 8
        and student.inner[0].out_channels == 5
        and student.back[0].in_channels == 5
    )

    adapter, model = made("TwoTowers")
    sizes = {"user": 4, "item": 4, "left.0": 8, "left.2": 3, "right.0": 6}
    student = view.materialize(adapter, model, adapter.axes(model), sizes)
    assert parameters(student) == 11 * 4 + 13 * 4 + (4 * 8 + 8) + (8 * 3 + 3) + (4 * 6 + 6) + (
        6 * 3 + 3
    )


@pytest.mark.slow
def test_a_depthwise_convolution_has_a_group_for_each_channel_left():
    adapter, model = made("mobilenet")
    depthwise = model.blocks[1][0].conv_dw
    assert depthwise.groups == 40
    student = view.materialize(adapter, model, adapter.axes(model), {"blocks.1.0.conv_pw": 24})
    assert student.blocks[1][0].conv_dw.groups == 24 and student.blocks[1][
        0
    ].conv_dw.weight.shape == (24, 1, 3, 3)


def test_one_module_with_fused_layers_keeps_its_parts_apart():
    """Heads must not halve with the MLP, nor the gate be taken for its value."""
    adapter, model = made("fused")
    found = by_name(adapter, model)
    assert (found["block.qkv"].size, found["block.qkv"].step, found["block.up"].size) == (16, 8, 20)
    assert {(s.tensor, s.blocks) for s in found["block.up"].slices} == {
        ("block.up.weight", 2),
        ("block.up.bias", 2),
        ("block.down.weight", 1),
    }
    student = view.materialize(
        adapter, model, adapter.axes(model), {"block.up": 10, "block.qkv": 8}
    )
    masked = copy.deepcopy(model)
    with torch.no_grad():
        masked.block.down.weight[:, 10:] = 0
        masked.block.out.weight[:, 8:] = 0
    assert torch.allclose(outputs(student, "fused"), outputs(masked, "fused"), atol=1e-5)
    assert student.block.heads == 1
    only_mlp = adapter.build(model, {"block.up": 10})
    assert only_mlp.block.heads == 2


def test_concatenated_units_lie_behind_one_another():
    adapter, model = made("concatenated")
    axis = by_name(adapter, model)["right"]
    assert ("head.weight", 1, 1, 8, True) in slices(axis)
    grown = grow.grow(adapter, model, adapter.axes(model), {"left": 11, "right": 14})
    assert ("head.weight", 1, 1, 11, True) in slices(by_name(adapter, grown)["right"])
    assert torch.allclose(outputs(grown, "concatenated"), outputs(model, "concatenated"), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "axes", "note"),
    [
        ("flattened", {"first", "hidden"}, r"whole blocks.*: second\."),
        ("grouped", {"first"}, r"convolutions in groups stay as they are: second, third\."),
        ("own_norm", {"second"}, r"did not run, or not to the same outputs.*: first\."),
        ("placed", {"second"}, r"did not run, or not to the same outputs.*: first\."),
        ("half_cut", {"head"}, r"the graph does not reach them.*: body\."),
    ],
)
def test_left_whole_and_named(name, axes, note):
    adapter, model = made(name)
    assert set(by_name(adapter, model)) == axes
    assert any(re.search(note, text) for text in adapter.notes), adapter.notes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "most", "left"),
    [
        ("convnext", 0.4, ""),
        ("efficientnet", 0.3, ""),
        ("regnet", 0.7, r"convolutions in groups stay as they are"),
        (
            "swin",
            0.4,
            r"did not run, or not to the same outputs.*: layers\.0\.blocks\.0\.attn\.qkv",
        ),
    ],
)
def test_how_much_of_a_timm_model_can_shrink(name, most, left):
    """At half of all axes, of all parameters; and what is left whole is named."""
    adapter, model = made(name)
    axes = adapter.axes(model)
    half = {axis.name: max(axis.step, axis.size // 2) for axis in axes}
    student = view.materialize(adapter, model, axes, half)
    assert parameters(student) < most * parameters(model)
    assert any(re.search(left, note) for note in adapter.notes) if left else True


def test_a_group_norm_moves_in_its_groups():
    adapter, model = made("grouped")
    axis = by_name(adapter, model)["first"]
    assert (axis.size, axis.step) == (12, 4) and not grow.growable(model, axis)
    student = view.materialize(adapter, model, adapter.axes(model), {"first": 8})
    assert student.norm.num_groups == 2
    masked = copy.deepcopy(model)
    with torch.no_grad():
        masked.second.weight[:, 8:] = 0
    assert torch.allclose(outputs(student, "grouped"), outputs(masked, "grouped"), atol=1e-5)


def test_a_reader_that_makes_the_units_is_not_asked_for_its_inputs():
    """Two towers meet in a product, which no layer reads.

    Importance by activation falls back to magnitude there.
    """
    adapter, model = made("TwoTowers")
    axes = adapter.axes(model)
    scores = importance.activation(
        model, axes, [batch("TwoTowers")[1]], lambda m, given: m(**given)
    )
    assert torch.equal(scores["left.2"], importance.magnitude(model, axes)["left.2"])
    assert not torch.equal(scores["left.0"], importance.magnitude(model, axes)["left.0"])


@pytest.mark.parametrize(
    ("name", "more", "sentence"),
    [
        ("cut", {}, r"more \(Linear\) cannot be traced"),
        (
            "plain_cnn",
            {"example": "1x3x8x8"},
            r"does not run on its example \(1x3x8x8\).*\(in stem\.0 \(Conv2d\)\)",
        ),
        ("plain_cnn", {"example": "1x1xq"}, r"--example '1x1xq' is not understood at '1x1xq'"),
        ("plain_cnn", {"example": "1x1x8x8:float33"}, "not understood"),
        ("plain_cnn", {"example": "x=1x1x8x8,1x2"}, "inputs without a name come before"),
        ("plain_cnn", {"example": "x=1x1x8x8"}, "Pass --task"),
        (
            "plain_cnn",
            {"example": "x=1x1x8x8", "task": "image_classification"},
            "one unnamed tensor",
        ),
        ("llama", {"task": ""}, r"Pass --task \(causal_lm, image_classification, ranking, "),
        ("llama", {"example": "inputs_embeds=1x9x32"}, "input_ids=...:int64 alone"),
        (
            "TwoTowers",
            {"task": "ranking", "example": "3x2:int64"},
            "calls a model with dense=... or categorical",
        ),
        ("not_a_module", {}, "gives a dict, but a torch.nn.Module is needed"),
        ("broken", {}, "broken does not build: RuntimeError: no such file: weights.bin"),
        ("missing", {}, "has no attribute 'missing'"),
        ("not_a_function", {}, "is no function, but of type int"),
        (
            "plain_cnn",
            {"builder": "no_such_package.models:build"},
            "there is no module 'no_such_package' here",
        ),
        ("plain_cnn", {"tensors": {"head.weight": torch.zeros(2, 2)}}, "stem.0.weight is missing"),
        ("plain_cnn", {"builder": "", "tensors": {}}, "holds tensors only: name the function"),
        (
            "plain_cnn",
            {"builder": "", "module": nn.Linear(2, 2)},
            "its checkpoint alone cannot build again",
        ),
    ],
)
def test_refusals(name, more, sentence):
    with pytest.raises(MattaError, match=sentence):
        Auto().load(source(name, **more))


def test_layers_that_have_numbers_for_names_are_of_a_kind_with_a_name():
    adapter = Auto()
    axes = adapter.axes(adapter.load(source("sequential", example="1x1x8x8")))
    assert {axis.name: axis.size for axis in axes} == {"layer.0": 8, "layer.2": 6}


def test_a_language_model_of_transformers_needs_neither_task_nor_example(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = GraniteConfig(vocab_size=31, num_attention_heads=2, num_key_value_heads=2, **sizes)
    GraniteForCausalLM(config).save_pretrained(tmp_path)
    adapter = Auto()
    adapter.load(open_source(str(tmp_path)))
    assert adapter.task == "causal_lm" and adapter.example == "input_ids=1x16:int64"
    assert any("Taken as a language model" in note for note in adapter.notes)


def test_without_an_example_there_are_no_axes(tmp_path):
    recipe = Recipe()
    recipe.update({"convert": {"source": "auto_models:plain_cnn", "adapter": "auto"}}, "test")
    with pytest.raises(MattaError, match="pass --example"):
        convert(recipe, tmp_path / "out")
    adapter = Auto()
    model = adapter.load(source("plain_cnn", example=""))
    with pytest.raises(MattaError, match="pass --example"):
        adapter.axes(model)
    with pytest.raises(MattaError, match="was not loaded by the adapter 'auto'"):
        adapter.axes(auto_models.plain_cnn())


def test_a_folder_cannot_bring_code_along(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter, model = made("plain_cnn")
    folder = Path("downloaded/students/width-1")
    folder.mkdir(parents=True)
    adapter.save(model, folder)
    Path("downloaded/evil.py").write_text(
        "from pathlib import Path\nPath('ran').touch()\nfrom auto_models import plain_cnn\n"
    )
    card = json.loads((folder / "auto.json").read_text())
    for builder in ("downloaded.evil:plain_cnn", "os:getcwd"):
        (folder / "auto.json").write_text(json.dumps({**card, "builder": builder}))
        with pytest.raises(MattaError, match="is not run"):
            Auto().load(Source("d", folder=folder))
    (folder / "auto.json").write_text(
        json.dumps({**card, "builder": "transformers:AutoTokenizer", "arguments": {"config": {}}})
    )
    with pytest.raises(MattaError, match="AutoTokenizer is no model"):
        Auto().load(Source("d", folder=folder))
    assert not Path("ran").exists()
    (folder / "auto.json").write_text(json.dumps({**card, "whole": {}}))
    with pytest.raises(MattaError, match=r"auto\.json is damaged"):
        Auto().load(Source("d", folder=folder))
    # beside it, not in it, and named before: the user's own
    Path("mine.py").write_text("from auto_models import plain_cnn\n")
    (folder / "auto.json").write_text(json.dumps({**card, "builder": "mine:plain_cnn"}))
    with pytest.raises(MattaError, match=r"nobody has named .*`matta adapters mine:plain_cnn`"):
        Auto().load(Source("d", folder=folder))
    Auto().load(Source("mine", builder="mine:plain_cnn", example="1x1x8x8"))
    assert torch.equal(
        outputs(Auto().load(Source("d", folder=folder)), "plain_cnn"), outputs(model, "plain_cnn")
    )


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("axes", 0, "step"), "x"),
        (("axes", 0, "order"), ["x"]),
        (("axes", 0, "slices", 0, "start"), 1e308),
        (("axes", 0, "slices", 0, "start"), 64),
        (("axes", 0, "slices", 0, "dim"), 7),
        (("axes", 0, "slices", 0, "tensor"), "nowhere"),
        (("exports",), "x"),
        (("task",), 1),
        (("arguments", "config", "hidden_size"), 1e308),
    ],
)
def test_a_damaged_plan_is_told(at, value, tmp_path):
    small = {"hidden_size": 8, "intermediate_size": 16, "vocab_size": 16}
    config = GraniteConfig(**small, num_hidden_layers=1, num_attention_heads=1)
    GraniteForCausalLM(config).save_pretrained(tmp_path / "model")
    adapter, folder = Auto(), tmp_path / "ta"
    own = {"task": "causal_lm", "example": "input_ids=1x8:int64"}
    model = adapter.load(Source("m", folder=tmp_path / "model", **own))
    folder.mkdir()
    adapter.save(model, folder)
    Auto().load(Source("ta", folder=folder))
    plan = json.loads((folder / "auto.json").read_text())
    within = plan
    for part in at[:-1]:
        within = within[part]
    within[at[-1]] = value
    (folder / "auto.json").write_text(json.dumps(plan))
    with pytest.raises(MattaError, match=r"auto\.json is damaged|no longer builds|does not build"):
        Auto().load(Source("ta", folder=folder))


def test_an_example_can_be_a_function():
    adapter = Auto()
    model = adapter.load(source("flattened", example="auto_models:two_images"))
    assert {axis.name for axis in adapter.axes(model)} == {"first", "hidden"}
    assert adapter.task == "image_classification" and model.pretrained_cfg["input_size"] == [
        3,
        8,
        8,
    ]


def test_timm_and_transformers_models_need_no_builder(tmp_path):
    given = auto_models.trained(timm.create_model("resnet10t", num_classes=5, in_chans=1))
    timm.models.save_for_hf(
        given, str(tmp_path / "timm"), model_args={"num_classes": 5, "in_chans": 1}
    )
    auto_models.trained(auto_models.tied_llama()).save_pretrained(tmp_path / "llama")
    for name, task, example in (("timm", "", "1x1x32x32"), ("llama", "causal_lm", TOKENS)):
        adapter = Auto()
        model = adapter.load(Source(name, folder=tmp_path / name, task=task, example=example))
        ones = (
            {"input_ids": torch.ones(2, 7, dtype=torch.long)}
            if task
            else {"x": torch.ones(2, 1, 32, 32)}
        )
        axes = adapter.axes(model)
        small = view.materialize(adapter, model, axes, {axes[1].name: axes[1].step})
        (tmp_path / f"{name}-saved").mkdir()
        adapter.save(small, tmp_path / f"{name}-saved")
        again = Auto().load(Source(name, folder=tmp_path / f"{name}-saved"))
        with torch.no_grad():
            first, second = small(**ones), again(**ones)
        assert torch.allclose(
            getattr(first, "logits", first), getattr(second, "logits", second), atol=1e-6
        )
        assert parameters(small) == parameters(again) < parameters(model)


def test_arguments_that_timm_does_not_keep_are_asked_for(tmp_path):
    """As releases before 1.0.30 are: what they do not tell is refused where it matters.

    It matters where it changes the model, activations included.
    """
    for arguments, sentence in (
        ({}, ""),
        ({"act_layer": "silu"}, "timm 1.0.30 or later"),
        ({"stem_width": 24}, "timm 1.0.30"),
    ):
        model = timm.create_model("resnet10t", num_classes=5, **arguments)
        vars(model).pop("_model_args", None)
        given = Source("resnet", module=model, example="1x3x32x32")
        if sentence:
            with pytest.raises(MattaError, match=sentence):
                Auto().load(given)
        else:
            assert repr(Auto().load(given)) == repr(model)


def test_a_builder_is_recognised(tmp_path, monkeypatch):
    assert open_source("my_pkg.models:build").builder == "my_pkg.models:build"
    monkeypatch.chdir(tmp_path)
    Path("a:b").mkdir()
    assert open_source("a:b").folder == Path("a:b")  # what is there comes first


def test_a_teacher_that_a_function_builds():
    model, _ = load_model("auto_models:plain_cnn", "image_classification", example="1x1x8x8")
    assert model.num_classes == 10 and model.pretrained_cfg["input_size"] == [1, 8, 8]


PROGRAM = """
import sys, torch
images = torch.load({images!r})
torch.save(torch.export.load({path!r}).module()(images), {out!r})
others = ("matta", "my_pkg", "auto_models", "timm")
assert not [name for name in sys.modules if name.startswith(others)]
"""


def matta(folder: Path, *words: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "from matta_cli.main import main; main()", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_the_three_lines(tmp_path):
    package = tmp_path / "my_pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text(Path(auto_models.__file__).read_text())
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (80, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(80) % 10)
    model = auto_models.trained(auto_models.plain_cnn())
    torch.save(model.state_dict(), tmp_path / "model.pt")
    (tmp_path / "matta.toml").write_text(
        "[distill]\nallow_weak_teacher = true\n[export]\nbootstrap = 5\n"
    )

    said = matta(
        tmp_path,
        "convert",
        "my_pkg.models:plain_cnn",
        "--weights",
        "model.pt",
        "--adapter",
        "auto",
        "--example",
        "1x1x8x8",
        "--data",
        "images.npz",
    )
    assert "Lossless" in said and "normalised with ImageNet's mean" in said
    matta(
        tmp_path,
        "distill",
        "--teacher",
        "my_pkg.models:plain_cnn",
        "--steps",
        "3",
        "--batch-size",
        "8",
    )
    matta(tmp_path, "export", "--widths", "0.5,1.0")

    report = json.loads((tmp_path / "matta-out/report.json").read_text())
    students = {entry["width"]: entry for entry in report["models"] if entry["role"] == "student"}
    assert set(students) == {0.5, 1.0} and students[1.0]["parameters"] == parameters(model)
    assert students[0.5]["loader"].startswith("torch.export.load(")
    batch_of_five = torch.randn(5, 1, 8, 8)
    torch.save(batch_of_five, tmp_path / "batch.pt")
    os.chdir(tmp_path)
    try:
        sys.path.insert(0, str(tmp_path))
        student = load_student("matta-out/students/width-0.5")
    finally:
        sys.path.remove(str(tmp_path))
        os.chdir(Path(__file__).parents[1])
    assert student.stem[0].out_channels == 8
    program = tmp_path / "elsewhere"
    (tmp_path / "matta-out/students/width-0.5/student.pt2").rename(program.with_suffix(".pt2"))
    script = PROGRAM.format(
        images=str(tmp_path / "batch.pt"),
        path=str(program.with_suffix(".pt2")),
        out=str(tmp_path / "out.pt"),
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert torch.allclose(torch.load(tmp_path / "out.pt"), student(batch_of_five), atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["TwoTowers", *(pytest.param(n, marks=pytest.mark.slow) for n in ("llama", "resnet18", *CNNS))],
)
def test_convert(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe()
    example, task = EXAMPLES[name]
    values = {"source": f"auto_models:{name}", "example": example, "task": task, "expand": 2.0}
    recipe.update({"convert": values}, "test")
    done = convert(recipe, Path("out"))  # detected by its form: no --adapter is needed
    ta = load_ta("out")
    assert (
        ta.adapter.name == "auto"
        and ta.adapter.task == (task or "image_classification")
        and done.difference < 1e-5
    )
    assert ta.widest == 2.0 and ta.adapter.axes(ta.model) == ta.axes
    assert not Path("out/ta/student.pt2").exists()  # of Students alone
    args, kwargs = batch(name)
    given = {"image": args[0]} if args else kwargs
    programs.save_pt2(tasks_task.task(ta.adapter.task, recipe), ta.model, given, Path("ta.pt2"))
    program = torch.export.load("ta.pt2").module()
    with torch.no_grad():
        assert torch.allclose(
            program(*args, **kwargs), outputs(ta.model, name), rtol=1e-4, atol=1e-4
        )
    assert all(ta.student(ta.sizes(width)).stock for width in done.widths)


def test_weights_need_a_builder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a.weight": torch.zeros(2)}, "m.pt")
    recipe = Recipe()
    recipe.update({"convert": {"source": "m.pt", "weights": "m.pt", "adapter": "auto"}}, "test")
    with pytest.raises(MattaError, match=r"--weights belongs to a function"):
        convert(recipe, Path("out"))
    recipe.update(
        {"convert": {"source": "auto_models:plain_cnn", "weights": ".", "adapter": "auto"}}, "test"
    )
    with pytest.raises(MattaError, match=r"but m\.pt: pass m\.pt"):
        convert(recipe, Path("out"))


def test_a_model_that_does_not_export_says_so(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise RuntimeError("data-dependent branch")

    monkeypatch.setattr(torch.export, "export", refuse)
    adapter, model = made("plain_cnn")
    assert adapter.loader == "" and any(
        "does not export (data-dependent branch)" in note for note in adapter.notes
    )
