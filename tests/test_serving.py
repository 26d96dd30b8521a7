"""One TA serves all widths: without copies, from many threads, with ``generate``."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from test_adapters import FIELDS, gpt2, inputs, layer, logits, made, ranker
from torch import Tensor, nn

from matta_cli.adapter import Adapter
from matta_cli.models.ta import TA
from matta_cli.nested.sizes import full_sizes, nested_axes

WIDTHS = (0.25, 0.5, 0.75, 1.0)
KINDS = {
    "gpt2": ("mlp", "depth"),
    "llama-llama": ("mlp", "heads", "hidden", "depth"),
    "bert": ("mlp", "heads", "depth"),
    "vit-token": ("mlp", "hidden", "depth"),
}


def nested(adapter: Adapter, model: nn.Module, *kinds: str) -> TA:
    axes = nested_axes(adapter, model, kinds)
    return TA(adapter, model, axes, full_sizes(axes), {})


def storages(*models: nn.Module) -> dict[int, int]:
    """Bytes by the address of the memory that models lie in."""
    tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    memory = [tensor.untyped_storage() for tensor in tensors]
    return {one.data_ptr(): one.nbytes() for one in memory}


@pytest.mark.parametrize("name", KINDS)
def test_threads_at_several_widths_at_once(name):
    adapter, model, batch = made(name)
    ta = nested(adapter, model, *KINDS[name])
    expected = {width: logits(ta.student(width).dense(), batch) for width in WIDTHS}
    assert not any(torch.equal(expected[0.25], expected[width]) for width in WIDTHS[1:])

    def worker(seed: int) -> list[tuple[float, Tensor]]:
        order = random.Random(seed).choices(WIDTHS, k=25)
        return [(width, logits(ta.at(width), batch)) for width in order]

    with ThreadPoolExecutor(6) as threads:
        answers = [answer for some in threads.map(worker, range(6)) for answer in some]
    assert len(answers) == 150
    for width, answer in answers:
        torch.testing.assert_close(answer, expected[width], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama-llama"])
def test_threads_generate_at_two_widths(name):
    adapter, model, batch = made(name)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # as initialised, all tokens are alike
            nn.init.normal_(parameter, std=0.5)
    ta = nested(adapter, model, "mlp", "depth")
    ids = batch["input_ids"][:1, :4]
    given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
    given["pad_token_id"] = 0
    alone = {width: ta.student(width).dense().generate(ids, **given) for width in (0.5, 1.0)}
    assert not torch.equal(alone[0.5], alone[1.0])
    with ThreadPoolExecutor(4) as threads:
        both = [
            (width, threads.submit(ta.at(width).generate, ids, **given)) for width in [*alone] * 4
        ]
    for width, tokens in both:
        assert torch.equal(tokens.result(), alone[width])


@pytest.mark.parametrize("name", KINDS)
def test_all_widths_lie_in_the_memory_of_one(name):
    adapter, model, _ = made(name)
    ta = nested(adapter, model, *KINDS[name])
    whole = storages(model)
    served = [ta.at(width) for width in WIDTHS]
    weights = [nn.ParameterList(one.parameters()) for one in served]
    assert storages(*weights).keys() <= whole.keys()
    buffers = [list(one.buffers()) for one in (model, *served)]
    more = storages(*served).keys() - whole.keys()  # constants, such as positions
    assert len(more) == sum(map(len, buffers[1:])) <= len(WIDTHS) * len(buffers[0])


def test_a_fused_qkv_with_fewer_heads_is_the_only_copy():
    adapter, model, _ = made("gpt2")
    ta, whole = nested(adapter, model, "mlp", "heads"), storages(model)
    copies = {
        name
        for name, tensor in ta.at(0.5).named_parameters()
        if tensor.untyped_storage().data_ptr() not in whole
    }
    parts = [f"transformer.h.{i}.attn.c_attn.{part}" for i in (0, 1) for part in ("weight", "bias")]
    assert copies == {*parts}


def test_resident_memory_does_not_grow_with_widths():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not tell how much memory a process has")
    adapter, _, _ = made("gpt2")
    model = gpt2(n_embd=384, n_head=6, n_layer=6)
    ta, batch = nested(adapter, model, "mlp", "depth"), inputs(model)
    logits(ta.at(1.0), batch)
    before, weights = resident(), sum(storages(model).values())
    for width in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        logits(ta.at(width), batch)
    grown = resident() - before
    assert weights > 40e6 and grown < 0.25 * weights, (grown, weights)


def test_the_same_module_until_the_weights_change():
    adapter, model, batch = made("gpt2")
    ta = nested(adapter, model, "mlp", "heads")
    first = ta.at(0.5)
    assert ta.at(ta.sizes(0.5)) is first and ta.at(1.0) is not first
    assert not first.training and not any(p.requires_grad for p in first.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    expected = logits(ta.student(0.5).dense(), batch)
    assert torch.equal(logits(ta.at(0.5), batch), expected)
    model.double()  # moves them
    assert logits(ta.at(0.5), batch).dtype is torch.float64


def test_a_width_has_its_own_statistics():
    model = ranker(FIELDS, 3, layer(8, "BatchNorm1d", "ReLU"))
    adapter, _, _ = made("mlp_ranker-batchnorm")
    ta, batch = nested(adapter, model), inputs(model)
    known = {name: torch.full_like(b, 2.0) for name, b in ta.student(0.5).dense().named_buffers()}
    assert known
    ta.statistics[ta.student(0.5).key] = known
    dense = ta.student(0.5).dense()
    assert torch.equal(logits(ta.at(0.5), batch), logits(dense, batch))
