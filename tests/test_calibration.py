"""What ``convert`` reads to order units, and how far it runs the model for that."""

from __future__ import annotations

import pytest
import torch
from matta_adapters.gpt2 import GPT2
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from matta_cli.conversion.proof import probe, prove
from matta_cli.main import app
from matta_cli.models.ta import TA
from matta_cli.nested.importance import activation
from matta_cli.nested.sizes import full_sizes
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import task as open_task
from tests.sample_text import byte_tokenizer, prose


def gpt2(positions=256):
    torch.manual_seed(0)
    sizes = {"n_positions": positions, "n_embd": 16, "n_head": 2, "n_layer": 2}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=300, **sizes, bos_token_id=0, eos_token_id=0)
    ).eval()


def forward(model, batch):
    return model(input_ids=batch["input_ids"], use_cache=False).logits


def test_scores_are_those_of_whole_forwards_but_the_output_layer_runs_once():
    model, adapter = gpt2(), GPT2()
    axes = [axis for axis in adapter.axes(model) if axis.name.startswith("mlp")]
    random = torch.Generator().manual_seed(0)
    batches = [
        {"input_ids": torch.randint(300, (2, 9), generator=random)},
        {"input_ids": torch.randint(300, (3, 20), generator=random)},
        {"input_ids": torch.randint(300, (1, 5), generator=random)},
    ]
    calls = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    scores = activation(model, axes, batches, forward)
    assert len(calls) == 1
    sums = {}
    for i, block in enumerate(model.transformer.h):
        seen = []
        hook = lambda _, inputs, seen=seen: seen.append(inputs[0].flatten(0, -2).abs().mean(0))  # noqa: E731
        handle = block.mlp.c_proj.register_forward_pre_hook(hook)
        for batch in batches:
            forward(model, batch)
        handle.remove()
        norm = block.mlp.c_proj.weight.float().pow(2).sum(1).sqrt()
        sums[f"mlp.{i}"] = sum(seen[1:], seen[0]) * norm
    assert all(torch.equal(scores[name], expected) for name, expected in sums.items())


@pytest.mark.parametrize(("length", "sequences"), [(256, 32), (0, 32), (8, 128)])
def test_text_is_read_by_tokens_whatever_the_batch_size(tmp_path, length, sequences):
    text = prose(1500)
    byte_tokenizer([text[:2000]], 290).save_pretrained(tmp_path)
    (tmp_path / "t.txt").write_text(text)
    model, adapter = gpt2(), GPT2()
    axes = adapter.axes(model)
    for size in (3, 16):
        recipe = Recipe()
        recipe.data.train, recipe.data.sequence_length = str(tmp_path / "t.txt"), length
        recipe.distill.batch_size = size
        task = open_task("causal_lm", recipe)
        batches = probe(task, TA(adapter, model, axes, full_sizes(axes), {}), tmp_path, [])
        assert sequences <= sum(len(batch["input_ids"]) for batch in batches) < sequences + size


def test_the_proof_takes_as_much_of_a_long_text_as_it_keeps(monkeypatch):
    model, task = gpt2(), open_task("causal_lm", Recipe())
    monkeypatch.setattr("matta_cli.conversion.proof.PROOF_BYTES", 8 * 300 * 4)
    calls = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    batches = [{"input_ids": torch.arange(24).view(2, 12)}] * 3
    [(batch, outputs)] = prove(task, model, batches)
    assert len(calls) == 1 and torch.equal(batch["input_ids"], torch.arange(8)[None])
    assert torch.equal(outputs, task.forward(model, batch))


def test_convert_takes_a_sequence_length():
    shown = CliRunner().invoke(app, ["convert", "--help"], env={"COLUMNS": "200"})
    assert "--sequence-length" in shown.output
