"""Cutting, ordering and growing on axes as data, against brute force and computations by hand."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch
from matta_adapters.gpt2 import GPT2
from matta_adapters.mlp_ranker import MLPRanker, Ranker
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from matta_cli.adapter import Adapter, Axis, Slice
from matta_cli.errors import MattaError
from matta_cli.nested import cut, grow, importance
from matta_cli.nested.sizes import full_sizes, grown_sizes, kinds, scaled, sizes_at
from matta_cli.nested.view import StudentView, has_statistics, materialize, recompute_statistics

FIELDS = [(11, 4), (5, 3), (7, 6)]


def linear(out: int, *others: str, **settings) -> list[dict]:
    return [{"layer": "Linear", "out": out, **settings}, *({"layer": other} for other in others)]


def ranker(*hidden: list[dict], fields=FIELDS, dense: int = 3, dtype=torch.float64) -> Ranker:
    torch.manual_seed(0)
    model = Ranker(
        fields,
        dense,
        [*(layer for group in hidden for layer in group), {"layer": "Linear", "out": 1}],
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, std=0.2)
    return model.to(dtype).eval()


def batchnormed() -> Ranker:
    return ranker(linear(16, "BatchNorm1d", "ReLU"), linear(8, "BatchNorm1d", "GELU"))


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=31, n_embd=24, n_head=3, n_layer=2, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config).eval()


def rows(model: Ranker, count: int = 9, seed: int = 1) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    fields = [torch.randint(cardinality, (count,), generator=g) for cardinality, _ in model.fields]
    given = {"categorical": torch.stack(fields, 1)} if fields else {}
    return given | {
        "dense": torch.randn(count, model.dense, generator=g, dtype=torch.float64).to(dtype)
    }


def scores(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch)


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def kept_by_brute_force(
    axes: list[Axis], sizes: dict[str, int], tensor: str, dim: int, total: int
) -> list[int]:
    """Position by position: it goes if any axis says that the unit lying there goes."""
    kept = []
    for position in range(total):
        gone = False
        for axis in axes:
            for place in axis.slices:
                if (place.tensor, place.dim) != (tensor, dim):
                    continue
                offset = position - place.start
                if 0 <= offset < place.blocks * axis.size * place.unit:
                    gone |= offset // place.unit % axis.size >= sizes.get(axis.name, axis.size)
        if not gone:
            kept.append(position)
    return kept


def check_cut(axes: list[Axis], sizes: dict[str, int], shape: tuple[int, ...]) -> None:
    tensor = torch.arange(int(torch.tensor(shape).prod())).view(shape)
    plan = cut.Cut(axes, sizes, {"t": shape})
    expected = tensor
    for dim, total in enumerate(shape):
        expected = expected.index_select(
            dim, torch.tensor(kept_by_brute_force(axes, sizes, "t", dim, total))
        )
    assert torch.equal(plan("t", tensor), expected)
    assert plan.shape("t", shape) == list(expected.shape)
    assert torch.equal(plan("other", tensor), tensor), "a tensor without axes stays whole"


@pytest.mark.parametrize("kept", [2, 4, 8])
@pytest.mark.parametrize("dim", [0, 1])
def test_cut_of_a_fused_qkv(kept, dim):
    axis = Axis("heads.0", 8, (Slice("t", dim, blocks=3),), step=2)
    check_cut([axis], {"heads.0": kept}, (24, 24))


def test_cut_with_a_start_keeps_what_lies_around():
    axis = Axis("a", 5, (Slice("t", 0, blocks=2, start=3),))
    check_cut([axis], {"a": 2}, (17, 4))
    assert cut.Cut([axis], {"a": 2}, {"t": (17, 4)})("t", torch.arange(17)).tolist() == [
        0,
        1,
        2,
        3,
        4,
        8,
        9,
        13,
        14,
        15,
        16,
    ]


def test_cut_of_several_axes_in_one_dimension():
    axes = [
        Axis("b", 3, (Slice("t", 1, start=4),)),
        Axis("a", 4, (Slice("t", 1),)),
        Axis("c", 6, (Slice("t", 0),)),
    ]
    for a, b, c in itertools.product((1, 4), (1, 2, 3), (1, 6)):
        check_cut(axes, {"a": a, "b": b, "c": c}, (6, 9))


@pytest.mark.parametrize("seed", range(25))
def test_cut_random(seed):
    r = random.Random(seed)
    axes, sizes, at = [], {}, r.randrange(3)
    for number in range(r.randint(1, 4)):
        step, groups, blocks, unit = (
            r.randint(1, 3),
            r.randint(1, 4),
            r.randint(1, 3),
            r.randint(1, 3),
        )
        size = step * groups
        places = (Slice("t", 0, blocks, at, unit=unit), Slice("t", 1, blocks, at))
        axes.append(Axis(f"axis.{number}", size, places[: r.randint(1, 2)], step))
        sizes[f"axis.{number}"] = step * r.randint(1, groups)
        at += blocks * size * unit + r.randrange(3)
    r.shuffle(axes)
    check_cut(axes, sizes, (at + r.randrange(2), at))


def test_cut_is_a_view_where_one_stretch_is_left_and_always_differentiable():
    weight = torch.randn(6, 4, requires_grad=True)
    plain = cut.Cut([Axis("a", 6, (Slice("t", 0),))], {"a": 2}, {"t": (6, 4)})("t", weight)
    assert plain.data_ptr() == weight.data_ptr() and plain.shape == (2, 4)
    fused = cut.Cut([Axis("a", 3, (Slice("t", 0, blocks=2),))], {"a": 1}, {"t": (6, 4)})(
        "t", weight
    )
    fused.sum().backward()
    assert weight.grad.sum(1).tolist() == [4, 0, 0, 4, 0, 0]


@pytest.mark.parametrize("size", [0, -2, 3, 10])
def test_cut_refuses_impossible_sizes(size):
    with pytest.raises(
        MattaError, match=rf"'a' cannot have {size} units: a multiple of 2 from 2 to 8"
    ):
        cut.Cut([Axis("a", 8, (Slice("t", 0),), step=2)], {"a": size}, {"t": (8,)})


@pytest.mark.parametrize("multiple", [1, 7, 8, 64, 100])
@pytest.mark.parametrize(
    ("base", "step"), [(1, 1), (63, 1), (64, 1), (99, 3), (129, 1), (768, 64), (1000, 8)]
)
def test_width_one_is_the_base_whatever_the_multiple(base, step, multiple):
    assert scaled(base, 1.0, step, multiple) == base
    found = [scaled(base, w / 20, step, multiple) for w in range(1, 41)]
    assert all(size % step == 0 and size >= step for size in found)
    # the base is no whole multiple
    uneven = [size for w, size in zip(range(1, 41), found, strict=True) if w != 20]
    assert uneven == sorted(uneven)
    axes = [Axis("a", base * 2, (), step)]
    assert sizes_at(axes, {"a": base}, 1.0, multiple) == {"a": base}


def test_scaled_rounds_large_axes_to_the_multiple():
    assert scaled(256, 0.3, 1, 8) == 80 and scaled(256, 0.3, 1, 1) == 77
    assert scaled(20, 0.3, 1, 8) == 6, "small axes keep their grain"
    assert scaled(96, 0.3, 12, 8) == 24, "both the step and the multiple divide it"
    assert scaled(8, 0.01, 2) == 2


def test_axis_that_could_not_grow_stays():
    axes = [Axis("a", 10, ()), Axis("b", 20, ())]
    assert sizes_at(axes, {"a": 10, "b": 10}, 2.0) == {"a": 10, "b": 20}


def test_kinds():
    assert kinds({"mlp.0": 1, "mlp.11": 2, "heads.3": 3}) == {"mlp": [1, 2], "heads": [3]}


MODELS = {"ranker": (MLPRanker(), batchnormed), "gpt2": (GPT2(), gpt2)}


def some_sizes(axes: list[Axis], r: random.Random) -> dict[str, int]:
    return {axis.name: axis.step * r.randint(1, axis.size // axis.step) for axis in axes}


@pytest.mark.parametrize("name", MODELS)
def test_students_are_nested(name):
    adapter, make = MODELS[name]
    model = make()
    axes = adapter.axes(model)
    widths = (0.25, 0.5, 1.0)
    students = [
        materialize(adapter, model, axes, sizes_at(axes, full_sizes(axes), w)) for w in widths
    ]
    for small, large in itertools.pairwise(students):
        larger_axes = adapter.axes(large)
        sizes = full_sizes(adapter.axes(small))
        assert sizes != full_sizes(larger_axes)
        for key, tensor in cut.cut(tensors(large), larger_axes, sizes).items():
            assert torch.equal(tensor, tensors(small)[key]), key
    for key, tensor in tensors(students[-1]).items():
        assert torch.equal(tensor, tensors(model)[key])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", MODELS)
def test_count_is_that_of_the_built_module(name, seed):
    adapter, make = MODELS[name]
    model = make()
    axes = adapter.axes(model)
    sizes = some_sizes(axes, random.Random(seed))
    built = adapter.build(model, sizes)
    assert cut.count_parameters(model, axes, sizes) == sum(p.numel() for p in built.parameters())
    assert cut.count_parameters(model, axes, {}) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("seed", range(4))
def test_view_is_the_dense_student_and_its_gradients_reach_the_model(seed):
    adapter, model = MLPRanker(), batchnormed()
    axes = adapter.axes(model)
    sizes = some_sizes(axes, random.Random(seed))
    view, dense = StudentView(adapter, model, axes, sizes), materialize(adapter, model, axes, sizes)
    batch = rows(model)
    assert torch.allclose(scores(view, batch), scores(dense, batch), rtol=1e-12)
    view(**batch).sum().backward()
    dense(**batch).sum().backward()
    found = {
        name: tensor if tensor.grad is None else tensor.grad
        for name, tensor in tensors(model).items()
    }
    gradients = cut.cut(found, axes, sizes)
    for name, parameter in dense.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12), name
    assert sum((p.grad != 0).sum() for p in model.parameters()) == sum(
        (p.grad != 0).sum() for p in dense.parameters()
    )


def test_narrow_training_leaves_the_buffers_alone():
    adapter, model = MLPRanker(), batchnormed().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert len(before) == 6
    axes = adapter.axes(model)
    for sizes in ({}, {"hidden.0": 4}, {"hidden.0": 16, "hidden.1": 2}):
        view = StudentView(adapter, model, axes, sizes).train()
        view(**rows(model)).sum().backward()
        assert view.skeleton.training
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, before[name]), (name, sizes)
    model(**rows(model))
    assert not torch.equal(model.mlp[1].running_mean, before["mlp.1.running_mean"])


def test_statistics_are_the_exact_mean_over_batches():
    model = ranker(linear(6, "BatchNorm1d", "ReLU", "Dropout"), linear(4, "ReLU"), fields=[])
    batches = [rows(model, 5, seed) for seed in range(7)]
    momentum = model.mlp[1].momentum
    recompute_statistics(model, batches, lambda m, batch: m(**batch))
    with torch.no_grad():
        hidden = [model.mlp[0](batch["dense"]) for batch in batches]
    mean = torch.stack([h.mean(0) for h in hidden]).mean(0)
    variance = torch.stack([h.var(0, correction=1) for h in hidden]).mean(0)
    assert torch.allclose(model.mlp[1].running_mean, mean, rtol=1e-12)
    assert torch.allclose(model.mlp[1].running_var, variance, rtol=1e-12)
    assert model.mlp[1].momentum == momentum and not any(m.training for m in model.modules())


def test_has_statistics():
    assert has_statistics(batchnormed()) and not has_statistics(gpt2())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MODELS)
def test_reorder_and_its_inverse(name, seed):
    adapter, make = MODELS[name]
    model = make()
    axes = adapter.axes(model)
    before = {key: tensor.clone() for key, tensor in tensors(model).items()}
    g = torch.Generator().manual_seed(seed)
    orders = {axis.name: torch.randperm(axis.size // axis.step, generator=g) for axis in axes}
    batch = (
        rows(model) if name == "ranker" else {"input_ids": torch.randint(31, (2, 8), generator=g)}
    )
    expected = scores(model, batch)
    grow.reorder(model, axes, orders)
    moved = [key for key, tensor in tensors(model).items() if not torch.equal(tensor, before[key])]
    assert len(moved) >= 4
    got = scores(model, batch)
    assert torch.allclose(
        getattr(got, "logits", got), getattr(expected, "logits", expected), rtol=1e-4, atol=1e-5
    )
    grow.reorder(model, axes, {axis: order.argsort() for axis, order in orders.items()})
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors(model).items())


def test_reorder_puts_the_first_of_the_order_first():
    model = nn.Module()
    model.qkv = nn.Parameter(torch.arange(14.0)[:, None])
    axis = Axis("heads", 4, (Slice("qkv", 0, blocks=3, start=1),), step=2)
    grow.reorder(model, [axis], {"heads": torch.tensor([1, 0])})
    assert model.qkv.flatten().tolist() == [0, 3, 4, 1, 2, 7, 8, 5, 6, 11, 12, 9, 10, 13]


def test_reorder_moves_all_places_of_a_unit():
    """Two key heads, two wide, read by three query heads each: a key head takes them along."""
    model = nn.Module()
    model.keys, model.queries = nn.Parameter(torch.arange(4.0)), nn.Parameter(torch.arange(13.0))
    axis = Axis("heads", 4, (Slice("keys", 0), Slice("queries", 0, start=1, unit=3)), step=2)
    grow.reorder(model, [axis], {"heads": torch.tensor([1, 0])})
    assert model.keys.tolist() == [2, 3, 0, 1]
    assert model.queries.tolist() == [0, 7, 8, 9, 10, 11, 12, 1, 2, 3, 4, 5, 6]


def test_growth_keeps_the_function_and_silences_what_is_new():
    adapter, model = MLPRanker(), batchnormed()
    axes = adapter.axes(model)
    before = {key: tensor.clone() for key, tensor in tensors(model).items()}
    sizes = {axis.name: 2 * axis.size + i for i, axis in enumerate(axes)}
    grown = grow.grow(adapter, model, axes, sizes, seed=3)
    batch = rows(model, 50)
    assert (scores(grown, batch) - scores(model, batch)).abs().max() < 1e-12 * scores(
        model, batch
    ).abs().max()
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors(model).items()), (
        "the model is left alone"
    )
    grown_axes = adapter.axes(grown)
    assert full_sizes(grown_axes) == sizes and not grown.training
    base = cut.cut(tensors(grown), grown_axes, full_sizes(axes))
    assert all(torch.equal(tensor, before[key]) for key, tensor in base.items()), (
        "the base is a prefix"
    )
    for axis in axes:  # one at a time: where a new unit reads a new one, nothing need be zero
        others = {other.name: other.size for other in axes if other.name != axis.name}
        alone = cut.cut(tensors(grown), grown_axes, others)
        for place in axis.slices:
            new = alone[place.tensor].narrow(
                place.dim, place.start + axis.size, sizes[axis.name] - axis.size
            )
            assert (new == 0).all() == place.outgoing, (axis.name, place.tensor)
            if place.tensor.endswith("running_var"):
                assert (new > 0).all()


def test_new_units_have_the_spread_of_the_base():
    adapter, model = MLPRanker(), ranker(linear(64, "ReLU"), linear(64, "ReLU"), dense=40)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(0.2)
    axes = adapter.axes(model)
    grown = grow.grow(adapter, model, axes, {axis.name: 3 * axis.size for axis in axes})
    old, new = model.mlp[2].weight, grown.mlp[2].weight[64:, :64]
    assert 0.9 < new.std() / old.std() < 1.1 and (new.mean() - old.mean()).abs() < 0.2 * old.std()
    old, new = model.embeddings[0].weight, grown.embeddings[0].weight[:, 4:]
    assert 0.6 < new.std() / old.std() < 1.6


def test_growth_depends_on_its_seed_only():
    adapter, model = MLPRanker(), batchnormed()
    axes = adapter.axes(model)
    first, again, other = (
        grow.grow(adapter, model, axes, {"hidden.0": 24}, seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first.mlp[0].weight, again.mlp[0].weight)
    assert not torch.equal(first.mlp[0].weight, other.mlp[0].weight)


def test_new_units_learn():
    adapter, model = MLPRanker(), batchnormed()
    grown = grow.grow(adapter, model, adapter.axes(model), {"hidden.0": 32, "hidden.1": 16})
    grown(**rows(model, 40)).square().sum().backward()
    last = [module for module in grown.mlp if isinstance(module, nn.Linear)][-1]
    assert (last.weight.grad[:, 8:] != 0).float().mean() > 0.5


class Gated(nn.Module):
    """down(silu(gate) * value), with gate and value fused into one Linear behind outputs that skip
    the hidden layer.
    """

    def __init__(self, skip: int, hidden: int) -> None:
        super().__init__()
        self.skip, self.hidden = skip, hidden
        self.up = nn.Linear(4, skip + 2 * hidden)
        self.down = nn.Linear(skip + hidden, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip, gate, value = self.up(x).split([self.skip, self.hidden, self.hidden], -1)
        return self.down(torch.cat([skip, nn.functional.silu(gate) * value], -1))


class GatedAdapter(Adapter):
    """Two axes that share dimensions, one of them fused. Nothing here is saved."""

    def axes(self, model: nn.Module) -> list[Axis]:
        s, h = model.skip, model.hidden
        up = (Slice("up.weight", 0), Slice("up.bias", 0))
        fused = (Slice("up.weight", 0, 2, s), Slice("up.bias", 0, 2, s))
        return [
            Axis("hidden", h, (*fused, Slice("down.weight", 1, start=s, outgoing=True)), 2),
            Axis("skip", s, (*up, Slice("down.weight", 1, outgoing=True))),
        ]

    def build(self, model: nn.Module, sizes) -> nn.Module:
        return Gated(sizes.get("skip", model.skip), sizes.get("hidden", model.hidden)).double()

    def matches(self, source) -> bool:
        return False

    def load(self, source) -> nn.Module:
        raise NotImplementedError

    def save(self, model, folder) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "sizes", [{"hidden": 10}, {"skip": 5}, {"hidden": 8, "skip": 3}, {"hidden": 12, "skip": 7}]
)
def test_growth_of_fused_blocks_beside_another_axis(sizes, reverse):
    torch.manual_seed(0)
    adapter, model = GatedAdapter(), Gated(3, 6).double()
    axes = adapter.axes(model)[:: -1 if reverse else 1]
    sizes = {**full_sizes(axes), "hidden": 6, **sizes}
    grown = grow.grow(adapter, model, axes, sizes)
    x = torch.randn(9, 4, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(grown(x), model(x), rtol=1e-12)
        back = materialize(adapter, grown, adapter.axes(grown), full_sizes(axes))
        assert all(torch.equal(t, tensors(model)[key]) for key, t in tensors(back).items())
        grow.reorder(
            model, axes, {"hidden": torch.tensor([2, 0, 1]), "skip": torch.tensor([1, 2, 0])}
        )
        assert torch.allclose(grown(x), model(x), rtol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_growth_of_gpt2(seed):
    """In MLPs, heads and depth at once: the same function, and what was there is still in it."""
    adapter, model = GPT2(), gpt2()
    r = random.Random(seed)
    axes = [axis for axis in adapter.axes(model) if axis.name != "hidden"]
    assert all(grow.growable(model, axis) for axis in axes)
    sizes = {axis.name: axis.size + axis.step * r.randint(0, 5) for axis in axes}
    grown = grow.grow(adapter, model, axes, sizes, seed)
    ids = torch.randint(31, (2, 8), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        assert torch.allclose(grown(ids).logits, model(ids).logits, atol=1e-5)
    larger = [axis for axis in adapter.axes(grown) if axis.name != "hidden"]
    assert full_sizes(larger) == grown_sizes(axes, sizes, sizes["depth"])
    back = materialize(adapter, grown, larger, grown_sizes(axes, full_sizes(axes), sizes["depth"]))
    assert all(torch.equal(tensor, tensors(model)[key]) for key, tensor in tensors(back).items())


def test_the_residual_stream_of_gpt2_cannot_grow():
    adapter, model = GPT2(), gpt2()
    with pytest.raises(MattaError, match="'hidden' cannot grow from 24 to 32"):
        grow.grow(adapter, model, adapter.axes(model), {"hidden": 32})


@pytest.mark.parametrize("order", [(), (3, 0, 2, 1), (1, 3, 0, 2)])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_student_of_few_layers_is_the_stock_model_of_those_layers(order, count):
    torch.manual_seed(0)
    config = {
        "vocab_size": 31,
        "n_embd": 24,
        "n_head": 3,
        "n_positions": 8,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    model = GPT2LMHeadModel(GPT2Config(**config, n_layer=4)).eval()
    adapter = GPT2()
    axes = [replace(axis, order=order) if axis.layers else axis for axis in adapter.axes(model)]
    sizes = full_sizes(axes) | {"depth": count, "mlp.3": 40, "mlp.0": 60}
    kept = sorted((order or (0, 1, 2, 3))[:count])
    reference = GPT2LMHeadModel(GPT2Config(**config, n_layer=count)).eval()
    for new, old in enumerate(kept):
        block, size = reference.transformer.h[new], sizes[f"mlp.{old}"]
        block.load_state_dict(model.transformer.h[old].state_dict())
        # cut: GELU(0) = 0
        block.mlp.c_fc.weight.data[:, size:] = block.mlp.c_fc.bias.data[size:] = 0
    for name in ("wte", "wpe", "ln_f"):
        getattr(reference.transformer, name).load_state_dict(
            getattr(model.transformer, name).state_dict()
        )
    ids = torch.randint(31, (2, 8))
    view, dense = (
        StudentView(adapter, model, axes, sizes).eval(),
        materialize(adapter, model, axes, sizes),
    )
    with torch.no_grad():
        assert torch.equal(view(input_ids=ids).logits, dense(ids).logits)
        assert torch.allclose(dense(ids).logits, reference(ids).logits, atol=1e-6)
    assert dense.config.n_layer == count and [
        block.attn.layer_idx for block in dense.transformer.h
    ] == list(range(count))
    assert cut.count_parameters(model, axes, sizes) == sum(p.numel() for p in dense.parameters())
    view(input_ids=ids).logits.sum().backward()
    for number, block in enumerate(model.transformer.h):
        assert (block.ln_1.weight.grad is not None) == (number in kept)


@pytest.mark.parametrize("size", [7, 15])
def test_growth_refuses_to_shrink(size):
    adapter, model = MLPRanker(), batchnormed()
    with pytest.raises(MattaError, match=f"'hidden.0' cannot grow from 16 to {size}"):
        grow.grow(adapter, model, adapter.axes(model), {"hidden.0": size})


class Fused(MLPRanker):
    """One tensor in which two axes lie one after the other, the first with two places to a unit."""

    def build(self, model, sizes):
        built = nn.Module()
        built.fused = nn.Parameter(torch.zeros(2 * sizes["a"] + sizes["b"]))
        return built


def test_growth_behind_units_with_several_places():
    model = nn.Module()
    model.fused = nn.Parameter(torch.tensor([1.0, 2, 3, 4, 5, 6, 7]))
    axes = [
        Axis("a", 2, (Slice("fused", 0, unit=2, outgoing=True),)),
        Axis("b", 3, (Slice("fused", 0, start=4, outgoing=True),)),
    ]
    grown = grow.grow(Fused(), model, axes, {"a": 3, "b": 5})
    assert grown.fused.tolist() == [1, 2, 3, 4, 0, 0, 5, 6, 7, 0, 0]


def test_a_norm_over_an_axis_forbids_growth():
    adapter, model = MLPRanker(), ranker(linear(16, "LayerNorm", "ReLU"), linear(8, "ReLU"))
    axes = {axis.name: axis for axis in adapter.axes(model)}
    assert not grow.growable(model, axes["hidden.0"]) and grow.growable(model, axes["hidden.1"])
    with pytest.raises(MattaError, match=r"'hidden.0' cannot grow"):
        grow.grow(adapter, model, list(axes.values()), {"hidden.0": 32})


def test_activation_ranking_by_hand():
    model = ranker(linear(4, "ReLU"), fields=[], dense=2, dtype=torch.float32)
    with torch.no_grad():
        model.mlp[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 1.0]]))
        model.mlp[0].bias.zero_()
        model.mlp[2].weight.copy_(torch.tensor([[1.0, -3.0, 2.0, 0.5]]))
    axes = MLPRanker().axes(model)
    batches = [
        {"dense": torch.tensor([[1.0, 2.0], [-3.0, 0.0]])},
        {"dense": torch.tensor([[2.0, 0.0], [0.0, 4.0]])},
    ]
    # mean ReLU outputs: batch 1: [.5, 1, 1.5, 1.5], batch 2: [1, 2, 0, 3]; their sums times
    # |outgoing|
    by_hand = torch.tensor([1.5 * 1, 3 * 3, 1.5 * 2, 4.5 * 0.5])
    found = importance.activation(model, axes, batches, lambda m, batch: m(**batch))
    assert torch.allclose(found["hidden.0"], by_hand)
    assert importance.order(found["hidden.0"]).tolist() == [1, 2, 3, 0]
    assert not model.mlp[2]._forward_pre_hooks


def test_activation_ranking_of_groups_and_starts():
    """Embeddings lie one after the other in what the first Linear reads."""
    model = ranker(linear(4, "ReLU"), dtype=torch.float32)
    axes = MLPRanker().axes(model)
    batch = rows(model, 30)
    found = importance.activation(model, axes, [batch], lambda m, b: m(**b))
    at = 0
    for k, (_, width) in enumerate(FIELDS):
        read = model.embeddings[k](batch["categorical"][:, k]).abs().mean(0)
        norm = model.mlp[0].weight[:, at : at + width].norm(dim=0)
        assert torch.allclose(found[f"embedding.{k}"], read * norm, rtol=1e-5)
        at += width


def test_ranking_leaves_the_mode_and_statistics_alone():
    model = batchnormed().float().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    importance.activation(
        model, MLPRanker().axes(model), [rows(model)], lambda m, batch: m(**batch)
    )
    assert model.training and all(torch.equal(b, before[n]) for n, b in model.named_buffers())


def test_magnitude_by_hand():
    model = ranker(linear(3, "ReLU"), fields=[], dense=2, dtype=torch.float32)
    with torch.no_grad():
        model.mlp[0].weight.copy_(torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))
        model.mlp[0].bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
        model.mlp[2].weight.copy_(torch.tensor([[4.0, 1.0, 2.0]]))
    assert importance.magnitude(model, MLPRanker().axes(model))["hidden.0"].tolist() == [
        5.0,
        2.0,
        2.0,
    ]
    assert importance.order(torch.tensor([2.0, 5.0, 2.0])).tolist() == [1, 0, 2], (
        "equal scores keep their order"
    )


def test_magnitude_moves_whole_groups():
    model = gpt2()
    for name, found in importance.magnitude(model, GPT2().axes(model)).items():
        axis = next(axis for axis in GPT2().axes(model) if axis.name == name)
        assert found.shape == (axis.size // axis.step,) and (found > 0).all()


def test_activation_falls_back_to_magnitude():
    model = nn.Module()
    model.bare = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    axes = [Axis("a", 2, (Slice("bare", 1),))]
    found = importance.activation(model, axes, [], lambda m, b: None)
    assert torch.allclose(found["a"], torch.tensor([10.0, 20.0]).sqrt())


def test_better_order_keeps_the_function_better():
    """What the order is for: a Student of the ordered model is nearer to the model than one of the
    unordered.
    """
    adapter, model = (
        MLPRanker(),
        ranker(linear(32, "ReLU"), fields=[], dense=8, dtype=torch.float32),
    )
    with torch.no_grad():
        model.mlp[2].weight.mul_(torch.linspace(0.01, 3, 32))  # the last units matter most
    axes, batch = adapter.axes(model), rows(model, 200)
    ordered = adapter.build(model, {})
    ordered.load_state_dict(model.state_dict())
    found = importance.activation(ordered, axes, [batch], lambda m, b: m(**b))
    grow.reorder(ordered, axes, {name: importance.order(s) for name, s in found.items()})
    errors = [
        (scores(materialize(adapter, m, axes, {"hidden.0": 16}), batch) - scores(model, batch))
        .square()
        .mean()
        for m in (ordered.eval(), model)
    ]
    assert errors[0] < 0.5 * errors[1]


def test_importance_of_units_with_several_places_by_hand():
    model = nn.Linear(5, 1, bias=False)
    model.weight.data = torch.tensor([[9.0, 3.0, 4.0, 1.0, 0.0]])
    axes = [Axis("a", 2, (Slice("weight", 1, start=1, outgoing=True, unit=2),))]
    assert importance.magnitude(model, axes)["a"].tolist() == [5.0, 1.0]
    batch = torch.tensor([[7.0, 1.0, -2.0, 5.0, 5.0]])
    outer = nn.Sequential(model)
    axes = [Axis("a", 2, (Slice("0.weight", 1, start=1, outgoing=True, unit=2),))]
    assert importance.activation(outer, axes, [batch], lambda m, b: m(b))["a"].tolist() == [
        15.0,
        10.0,
    ]
