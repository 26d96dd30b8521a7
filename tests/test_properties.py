"""Properties of every adapter on random models, sizes and orders.

View = dense Student = the stock library's own smaller model; nesting; reordering and its inverse;
growth and its cut.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matta_adapters.mlp_ranker import Ranker
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from matta_cli.adapter import Axis
from matta_cli.models import plugins
from matta_cli.nested import cut, grow
from matta_cli.nested import sizes as nested_sizes
from matta_cli.nested.sizes import full_sizes, grown_sizes, kind, own_sizes
from matta_cli.nested.view import StudentView, materialize
from matta_cli.tasks.task import raw

# the same examples each time: a suite that fails by chance helps nobody who did not write it
ROUNDS = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
IDS = torch.arange(14).view(2, 7) % 11
PIXELS = torch.linspace(-2, 2, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
LAYERS = {
    "gpt2": "transformer.h",
    "llama": "model.layers",
    "bert": "encoder.layer",
    "vit": "blocks",
}

Dims = dict[str, int]  # layers, heads, groups (heads per key), head (channels), mlp, hidden


def stock(name: str, dims: Dims) -> Any:
    """A model of these dimensions as its own library builds it, every weight random."""
    layers, heads, mlp, hidden = dims["layers"], dims["heads"], dims["mlp"], dims["hidden"]
    ids = {"vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(1)
    if name == "gpt2":
        model: Any = GPT2LMHeadModel(
            GPT2Config(
                **ids, n_positions=8, n_embd=hidden, n_layer=layers, n_head=heads, n_inner=mlp
            )
        )
    elif name == "llama":
        settings = {
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "head_dim": dims["head"],
        }
        settings |= {"num_attention_heads": heads * dims["groups"], "num_key_value_heads": heads}
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("llama", **ids, **settings, max_position_embeddings=8)
        )
    elif name == "bert":
        settings = {
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "vocab_size": 11,
        }
        model = BertModel(
            BertConfig(**settings, num_attention_heads=heads, max_position_embeddings=8)
        )
    else:
        settings = {
            "img_size": 16,
            "patch_size": 8,
            "num_classes": 3,
            "embed_dim": hidden,
            "num_heads": heads,
        }
        model = timm.create_model(
            "vit_tiny_patch16_224", **settings, depth=layers, mlp_ratio=(mlp + 0.5) / hidden
        )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


@torch.no_grad()
def outputs(model: Any, name: str) -> Tensor:
    if name == "mlp_ranker":
        return model(
            dense=torch.linspace(-1, 1, 10).view(5, 2), categorical=torch.arange(5).view(5, 1) % 4
        )
    return raw(model(PIXELS) if name == "vit" else model(input_ids=IDS))


@st.composite
def models(draw: st.DrawFn) -> tuple[str, Any, Dims]:
    name = draw(st.sampled_from([*LAYERS, "mlp_ranker"]))
    if name == "mlp_ranker":
        torch.manual_seed(1)
        width = draw(st.integers(2, 9))
        layers = [
            {"layer": "Linear", "out": width},
            {"layer": "BatchNorm1d"},
            {"layer": "ReLU"},
            {"layer": "Linear", "out": 1},
        ]
        model = Ranker([(4, draw(st.integers(2, 5)))], 2, layers).eval()
        model.mlp[1].running_var.uniform_(0.5, 2.0)
        nn.init.normal_(model.mlp[1].running_mean)
        return name, model, {}
    heads, head = draw(st.integers(1, 4)), 2 * draw(st.integers(1, 3))
    dims = {
        "layers": draw(st.integers(1, 4)),
        "heads": heads,
        "groups": draw(st.integers(1, 3)),
        "head": head,
    }
    queries = heads * dims["groups"]  # transformers wants a Llama to be so many times as wide
    dims |= {
        "mlp": draw(st.integers(2, 17)),
        "hidden": queries * draw(st.integers(1, 5)) if name == "llama" else heads * head,
    }
    return name, stock(name, dims), dims


def drawn(data: st.DataObject, axes: list[Axis]) -> dict[str, int]:
    return {a.name: a.step * data.draw(st.integers(1, a.size // a.step), a.name) for a in axes}


def ordered(data: st.DataObject, axes: list[Axis]) -> list[Axis]:
    """The axes, that of depth in a random order of importance."""
    return [
        replace(a, order=tuple(data.draw(st.permutations(range(a.size))))) if a.layers else a
        for a in axes
    ]


@ROUNDS
@given(models(), st.data())
def test_view_is_the_dense_student_is_the_stock_model(
    drawing: tuple[str, Any, Dims], data: st.DataObject
) -> None:
    name, model, dims = drawing
    adapter = plugins.adapter(name)
    axes = ordered(data, adapter.axes(model))
    if name == "mlp_ranker":
        sizes = drawn(data, axes)
        want = stock_ranker(model, sizes)
    else:
        kept = {
            key: data.draw(st.integers(1, dims[key]), key) for key in ("layers", "heads", "mlp")
        }
        kept["hidden"] = kept["heads"] * dims["head"]
        # its width, in steps of the whole model's heads, must be a multiple of those that are kept
        if name == "llama":
            step = dims["heads"] * dims["groups"]
            widths = range(step, dims["hidden"] + 1, step)
            pairs = [
                (h, w)
                for h in range(1, dims["heads"] + 1)
                for w in widths
                if w % (h * dims["groups"]) == 0
            ]
            kept["heads"], kept["hidden"] = data.draw(st.sampled_from(pairs))
        if name == "bert":  # its heads share out the width, which is the embedding
            kept |= {"heads": dims["heads"], "hidden": dims["hidden"]}
        by_kind = {
            "depth": kept["layers"],
            "mlp": kept["mlp"],
            "heads": kept["heads"] * dims["head"],
            "hidden": kept["hidden"],
        }
        sizes = {axis.name: by_kind[kind(axis.name)] for axis in axes}
        want = stock(name, {**dims, **kept})
    view = StudentView(adapter, model, axes, sizes)
    missing, unexpected = want.load_state_dict(view.state(), strict=False)
    # constants that no checkpoint holds
    assert set(unexpected) <= {key for key, _ in want.named_buffers()}
    assert all("lm_head" in key for key in missing)  # tied
    dense = materialize(adapter, model, axes, sizes)
    assert torch.equal(outputs(view, name), outputs(dense, name))
    torch.testing.assert_close(
        outputs(view, name), outputs(want.eval(), name), rtol=1e-5, atol=1e-5
    )
    assert cut.count_parameters(model, axes, sizes) == sum(p.numel() for p in want.parameters())


def stock_ranker(model: Ranker, sizes: dict[str, int]) -> Ranker:
    layers = copy.deepcopy(model.layers())
    layers[0]["out"] = sizes["hidden.0"]
    return Ranker([(model.fields[0][0], sizes["embedding.0"])], model.dense, layers)


@ROUNDS
@given(models(), st.data())
def test_sizes_of_each_layer_by_itself_leave_out_what_they_say(
    drawing: tuple[str, Any, Dims], data: st.DataObject
) -> None:
    """The same as the whole model with the other units silenced and the other layers gone."""
    name, model, _ = drawing
    adapter = plugins.adapter(name)
    axes = ordered(
        data, [a for a in adapter.axes(model) if kind(a.name) != "hidden" or name == "mlp_ranker"]
    )
    sizes = drawn(data, axes)
    silenced = copy.deepcopy(model)
    for axis in axes:
        for place in axis.slices if not axis.layers else ():
            if place.outgoing:
                weight = silenced.get_parameter(place.tensor).data
                index = [slice(None)] * weight.dim()
                for block in range(place.blocks):
                    first = place.start + (block * axis.size + sizes[axis.name]) * place.unit
                    index[place.dim] = slice(
                        first, place.start + (block + 1) * axis.size * place.unit
                    )
                    weight[tuple(index)] = 0
    depth = nested_sizes.depth(axes)
    if depth is not None:
        layers = silenced.get_submodule(depth.layers)
        stay = [layers[i] for i in sorted(depth.order[: sizes[depth.name]])]
        silenced.set_submodule(
            depth.layers,
            type(layers)(stay) if isinstance(layers, nn.ModuleList) else nn.Sequential(*stay),
        )
        if name in ("gpt2", "llama"):
            silenced.config.num_hidden_layers = len(stay)
            silenced.config.use_cache = False  # layers keep their places in a cache
    view = StudentView(adapter, model, axes, sizes).eval()
    torch.testing.assert_close(outputs(view, name), outputs(silenced, name), rtol=1e-4, atol=1e-4)


@ROUNDS
@given(models(), st.data())
def test_a_smaller_student_is_a_cut_of_a_larger_one(
    drawing: tuple[str, Any, Dims], data: st.DataObject
) -> None:
    name, model, _ = drawing
    adapter = plugins.adapter(name)
    axes = adapter.axes(model)
    large = drawn(data, axes)
    small = {
        a.name: a.step * data.draw(st.integers(1, large[a.name] // a.step), a.name) for a in axes
    }
    between = materialize(adapter, model, axes, large)
    once = cut.cut(tensors(model), axes, small)
    # a Llama's width comes in steps of its heads, of which this one has others
    steps = {kind(axis.name): axis.step for axis in axes}
    its = [replace(axis, step=steps[kind(axis.name)]) for axis in adapter.axes(between)]
    twice = cut.cut(tensors(between), its, own_sizes(axes, small))
    assert once.keys() == twice.keys()
    for key, tensor in once.items():
        assert torch.equal(tensor, twice[key])


@ROUNDS
@given(models(), st.data())
def test_reordering_and_its_inverse_is_the_identity(
    drawing: tuple[str, Any, Dims], data: st.DataObject
) -> None:
    name, model, _ = drawing
    adapter = plugins.adapter(name)
    axes = [axis for axis in adapter.axes(model) if not axis.layers]
    orders = {
        a.name: torch.tensor(data.draw(st.permutations(range(a.size // a.step)), a.name))
        for a in axes
    }
    before = {key: tensor.clone() for key, tensor in tensors(model).items()}
    expected = outputs(model, name)
    grow.reorder(model, axes, orders)
    torch.testing.assert_close(outputs(model, name), expected, rtol=1e-4, atol=1e-4)
    grow.reorder(model, axes[::-1], {key: order.argsort() for key, order in orders.items()})
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors(model).items())


@ROUNDS
@given(models(), st.data())
def test_growth_and_its_cut_is_the_identity(
    drawing: tuple[str, Any, Dims], data: st.DataObject
) -> None:
    name, model, _ = drawing
    adapter = plugins.adapter(name)
    axes = adapter.axes(model)
    sizes = {
        a.name: a.size + a.step * data.draw(st.integers(0, 4), a.name)
        if grow.growable(model, a)
        else a.size
        for a in axes
    }
    grown = grow.grow(adapter, model, axes, sizes, seed=data.draw(st.integers(0, 99)))
    torch.testing.assert_close(outputs(grown, name), outputs(model, name), rtol=1e-4, atol=1e-4)
    depth = nested_sizes.depth(axes)
    back = grown_sizes(axes, full_sizes(axes), sizes[depth.name] if depth else 0)
    again = cut.cut(tensors(grown), adapter.axes(grown), back)
    assert again.keys() == tensors(model).keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in tensors(model).items())


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
