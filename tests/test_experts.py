"""A mixture of experts by ``auto``: their raw parameters stay whole, and are named."""

import copy

import pytest
import torch
from matta_adapters.auto import Auto
from transformers import MixtralConfig, MixtralForCausalLM

from matta_cli.adapter import Source
from matta_cli.nested import grow


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moe")
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    MixtralForCausalLM(MixtralConfig(**sizes, **heads)).save_pretrained(folder)
    return Source("moe", folder=folder, example="input_ids=1x16:int64", task="causal_lm")


def test_experts_are_left_whole_and_named(mixtral):
    adapter = Auto()
    model = adapter.load(mixtral)
    axes = adapter.axes(model)
    [said] = [note for note in adapter.notes if "experts, say" in note]
    assert all(f"layers.{i}.mlp.experts.down_proj" in said for i in (0, 1))
    assert not any("experts" in s.tensor for axis in axes for s in axis.slices)
    # and no axis is taken for one that it is not, however large the experts' outputs are
    assert len(axes) == 2
    ids = torch.randint(64, (4, 24))
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        for axis in axes:
            moved = copy.deepcopy(model)
            order = torch.arange(axis.size // axis.step).flip(0)
            grow.reorder(moved, [axis], {axis.name: order})
            assert torch.allclose(moved(input_ids=ids).logits, whole, atol=1e-5)
