"""Model files as training frameworks write them, and as matta does not open them."""

from __future__ import annotations

import json
import re

import pytest
import torch
from matta_adapters.gpt2 import GPT2
from safetensors.torch import save_file
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

from matta_cli.adapter import Source
from matta_cli.conversion.convert import convert
from matta_cli.data.text import local
from matta_cli.errors import MattaError
from matta_cli.models import plugins
from matta_cli.models.load import load_model
from matta_cli.models.source import open_source
from matta_cli.settings.recipe import Recipe

IDS = torch.arange(12)[None]


def gpt2(**more):
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 32, "n_head": 2, "n_layer": 2}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, **more)
    model = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():  # no bias is zero, no two matrices are alike
        nn.init.normal_(parameter, 0, 0.1)
    return model


def outputs(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def opened(path, config, adapter="gpt2"):
    """The model in a file, as ``convert`` opens it, and what is said of it."""
    source = open_source(str(path), model_config=config)
    known = plugins.adapter(adapter)
    source = plugins.bare(source, [known])
    return known.load(source), [*source.notes, *known.notes]


def prefixed(word):
    return lambda state: {f"{word}{key}": tensor for key, tensor in state.items()}


def fsdp(state):
    inner = {k.replace("h.0.", "h.0._checkpoint_wrapped_module."): t for k, t in state.items()}
    return prefixed("_fsdp_wrapped_module.")(inner)


WRAPPED = {
    "lightning": lambda s: {
        "state_dict": prefixed("model.")(s),
        "epoch": 1,
        "hyper_parameters": {},
    },
    "lightning-net": lambda s: {"state_dict": prefixed("net.lm.")(s)},
    "backbone": prefixed("backbone."),
    "fsdp": fsdp,
    "deepspeed": lambda s: {"module": s, "ds_version": "0.16", "optimizer": {"state": {}}},
    "ddp-compile": lambda s: {"model": prefixed("module._orig_mod.")(s)},
    "compile-ddp": lambda s: {"model": prefixed("_orig_mod.module.")(s)},
    "own-word": lambda s: {"policy": s, "optimizer": {"state": {}}, "step": 3},
    "extra-state": lambda s: {**s, "transformer.h.0._extra_state": None},
    "numbers-beside": lambda s: {**s, "epoch": 3},
    "fabric": lambda s: {"model": {"state_dict": prefixed("_forward_module.")(s)}},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_wrappers_of_training_frameworks(tmp_path, how):
    model = gpt2()
    model.config.save_pretrained(tmp_path)
    torch.save(WRAPPED[how](model.state_dict()), tmp_path / "m.ckpt")
    again, _ = opened(tmp_path / "m.ckpt", tmp_path / "config.json")
    assert torch.equal(outputs(again), outputs(model))


def test_a_word_before_all_names_is_left_out_only_where_it_has_to_be(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True)
    model = LlamaForCausalLM(config).eval()
    config.save_pretrained(tmp_path)
    state = {k: t for k, t in model.state_dict().items() if k != "lm_head.weight"}
    assert all(key.startswith("model.") for key in state)
    for number, wrapped in enumerate((state, prefixed("model.")(state))):
        torch.save(wrapped, tmp_path / "m.pt")
        again, notes = opened(tmp_path / "m.pt", tmp_path / "config.json", "llama")
        assert torch.equal(outputs(again), outputs(model))
        assert len(notes) == number  # the word is named where it goes


def test_of_two_states_the_average_is_taken_and_said(tmp_path):
    one, two = gpt2(), gpt2()
    nn.init.normal_(two.transformer.wpe.weight, 0, 1)
    one.config.save_pretrained(tmp_path)
    both = {"model": one.state_dict(), "model_ema": two.state_dict()}
    torch.save(both, tmp_path / "m.pt")
    again, notes = opened(tmp_path / "m.pt", tmp_path / "config.json")
    assert torch.equal(outputs(again), outputs(two))
    assert "'model_ema' and 'model'" in notes[0]
    torch.save({"student": one.state_dict(), "teacher": two.state_dict()}, tmp_path / "m.pt")
    with pytest.raises(MattaError, match=r"several state dicts \('student', 'teacher'\)"):
        open_source(str(tmp_path / "m.pt"))


@pytest.mark.parametrize("bias", [True, False])
def test_a_checkpoint_of_nanogpt(tmp_path, bias):
    model = gpt2(activation_function="gelu")
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = {k: t.T if k.endswith(linear) else t for k, t in model.state_dict().items()}
    if not bias:
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
        state = {key: tensor for key, tensor in state.items() if not key.endswith(".bias")}
    told = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 50}
    torch.save({"model": state, "model_args": {**told, "bias": bias}}, tmp_path / "ckpt.pt")
    again, notes = opened(tmp_path / "ckpt.pt", None)
    assert torch.allclose(outputs(again), outputs(model), atol=1e-6)
    assert "nanoGPT" in notes[-1] and "gelu" in notes[-1]


def test_weights_of_a_builders_model_inside_a_training_module(tmp_path, monkeypatch):
    net = "nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))"
    source = f"from torch import nn\ndef build():\n    return {net}\n"
    (tmp_path / "net_of_mine.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    tensors = prefixed("encoder.net.")(model.state_dict())
    auto = plugins.adapter("auto")
    given = Source("net_of_mine:build", builder="net_of_mine:build", tensors=tensors)
    again = auto.load(given)
    assert torch.equal(again[2].weight, model[2].weight)


FOREIGN_FILES = {
    "m.onnx": ("ONNX", "exported from"),
    "tf_model.h5": ("TensorFlow", "save_pretrained"),
    "flax_model.msgpack": ("Flax", "save_pretrained"),
    "m.npz": ("NumPy", "state dict"),
}


@pytest.mark.parametrize("name", FOREIGN_FILES)
def test_files_of_other_formats_say_what_to_do(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    for what in (tmp_path / name, tmp_path):
        with pytest.raises(MattaError) as error:
            open_source(str(what))
        assert all(word in str(error.value) for word in FOREIGN_FILES[name])


def test_folders_that_are_no_checkpoints_say_what_to_do(tmp_path):
    def refused(folder, match):
        with pytest.raises(MattaError, match=match):
            open_source(str(folder))

    model = gpt2()
    model.save_pretrained(tmp_path / "lora")
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    refused(tmp_path / "lora", "merge_and_unload")
    model.save_pretrained(tmp_path / "q")
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "q" / "config.json").write_text(json.dumps(config))
    refused(tmp_path / "q", "quantized .gptq.*folder that it was made from")
    model.save_pretrained(tmp_path / "run" / "checkpoint-20")
    refused(tmp_path / "run", "checkpoint-20")
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    refused(tmp_path / "zero", "zero_to_fp32")
    (tmp_path / "fsdp").mkdir()
    for name in (".metadata", "__0_0.distcp"):
        (tmp_path / "fsdp" / name).touch()
    refused(tmp_path / "fsdp", "dcp_to_torch_save")


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"base_model.model.h.0.lora_A.weight": torch.ones(2, 2)}, "merge_and_unload"),
        ({"h.0.attn.qweight": torch.ones(2, 2, dtype=torch.int32)}, "quantized"),
        ({"h.0.attn.weight": torch.ones(2, 2, dtype=torch.int8)}, "quantized"),
        ({"h.0.attn.weight": torch.ones(0), "h.0.attn.bias": torch.ones(2)}, "zero_to_fp32"),
    ],
)
def test_tensors_that_cannot_be_trained_say_what_to_do(tmp_path, tensors, match):
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(MattaError, match=match):
        open_source(str(tmp_path / "m.safetensors"))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("layers.0.attention.wq.weight", "Meta's Llama"),
        ("vit.encoder.layer.0.attention.attention.query.weight", "a transformers ViT"),
        ("visual.transformer.resblocks.0.ln_1.weight", "CLIP"),
        ("my.very.own.weight", "its tensors are my.very.own.weight"),
    ],
)
def test_tensors_that_no_adapter_knows_are_named(name, match):
    with pytest.raises(MattaError, match=re.escape(match)):
        plugins.detect(Source("m", tensors={name: torch.ones(1)}))


def test_two_files_of_weights_in_a_folder_are_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gpt2().save_pretrained("m")
    torch.save(gpt2().state_dict(), "m/pytorch_model.bin")
    recipe = Recipe()
    recipe.convert.source = "m"
    done = convert(recipe, tmp_path / "out")
    assert any("model.safetensors is opened" in note for note in done.notes)
    _, source = load_model("m", "causal_lm", adapter=GPT2())
    assert any("model.safetensors is opened" in note for note in source.notes)


def test_a_timm_model_that_transformers_saved(tmp_path):
    told = {"embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": 32}
    mean = {"mean": [0.4] * 3, "std": [0.3] * 3, "input_size": [3, 32, 32]}
    more = {"num_classes": 3, "label_names": ["a", "b", "c"], "pretrained_cfg": mean}
    stored = {"architecture": "vit_tiny_patch16_224", "model_args": told, **more}
    model = TimmWrapperForImageClassification(TimmWrapperConfig.from_dict(stored)).eval()
    model.save_pretrained(tmp_path)
    again = plugins.adapter("vit").load(open_source(str(tmp_path)))
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(again(image), model(image).logits, atol=1e-6)
    assert list(again.pretrained_cfg["mean"]) == [0.4] * 3


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


@pytest.mark.parametrize(
    "lay, wrong",
    [
        (lambda own: own.rename(own.with_name("model-00001-of-00002.safetensors")), "index.json"),
        (lambda own: own.write_text(POINTER), r"model.safetensors' is a pointer of git LFS"),
        (lambda own: own.write_bytes(own.read_bytes()[:-8]), r"damaged .*: download it again, or"),
    ],
    ids=["shard", "lfs", "cut"],
)
def test_folders_whose_weights_are_not_all_there(tmp_path, lay, wrong):
    gpt2().save_pretrained(tmp_path)
    lay(tmp_path / "model.safetensors")
    with pytest.raises(MattaError, match=wrong):
        open_source(str(tmp_path))


def test_a_folder_without_weights(tmp_path):
    gpt2().config.save_pretrained(tmp_path)
    with pytest.raises(MattaError, match=r"holds no weights beside its config\.json: put model"):
        opened(tmp_path, None)


def test_shards_that_an_index_names_have_to_be_there(tmp_path):
    gpt2().save_pretrained(tmp_path, max_shard_size="20KB")
    assert open_source(str(tmp_path)).folder == tmp_path
    first = min(tmp_path.glob("model-*.safetensors"))
    first.unlink()
    with pytest.raises(MattaError, match=rf"lacks 1 of the files that its .*, {first.name} first"):
        open_source(str(tmp_path))
    gpt2().save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "model.safetensors").rename(tmp_path / "model.safetensors")
    open_source(str(tmp_path))  # which comes first


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.parquet"])
def test_data_that_git_lfs_did_not_fetch(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(MattaError, match=rf"{name}' is a pointer of git LFS.* \(git lfs pull\)"):
        for _ in local([tmp_path / name], "text", name).read():
            pass


def test_a_config_that_no_library_reads(tmp_path):
    gpt2().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    text = path.read_text()
    path.write_text(text.replace("gelu_new", "geluu"))
    with pytest.raises(MattaError, match=r"transformers cannot load .*'geluu' is not known to it"):
        opened(tmp_path, None)
    path.write_text(text, encoding="utf-8-sig")
    with pytest.raises(MattaError, match=r"config.json begins with a byte order mark, .* without"):
        opened(tmp_path, None)
