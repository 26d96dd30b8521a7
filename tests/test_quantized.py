"""Weights in a few bits: GGUF files, and folders with a ``quantization_config``."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from matta_cli.conversion.convert import convert
from matta_cli.errors import MattaError
from matta_cli.models.dtype import stored_dtype
from matta_cli.models.folders import load_ta
from matta_cli.models.load import load_model
from matta_cli.models.source import open_source
from matta_cli.models.tokenizer import tokenizer_of
from matta_cli.settings.recipe import Recipe

needs_gguf = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("gguf", "accelerate")),
    reason="the extra gguf is not installed",
)
LETTERS = "abcdefghijklmnopqrstuvwxyz.,'Ġ"
TOKENS = ["<unk>", "<s>", "</s>", *LETTERS, "th", "the"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
IDS = torch.tensor([[3, 7, 11, 34, 5, 9]])


def llama(**more: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(TOKENS)}
    config = LlamaConfig(**{**sizes, "max_position_embeddings": 64, **more})
    model = LlamaForCausalLM(config).eval()
    for tensor in model.parameters():  # biases and norms, too
        torch.nn.init.normal_(tensor, 1.0 if tensor.dim() == 1 else 0.0, 0.1)
    return model


def write_gguf(path: Path, model: LlamaForCausalLM, kind: str = "F32", **more: Any) -> None:
    """``model`` as llama.cpp keeps it, with a tokenizer of letters and a chat template."""
    import gguf

    c, writer = model.config, gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for key, value in more.items():
        writer.add_uint16(key.replace("_", "."), value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    wanted = gguf.GGMLQuantizationType[kind]
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        heads = {"q": c.num_attention_heads, "k": c.num_key_value_heads}.get(name[-13:-12])
        if heads and "self_attn" in name:  # llama.cpp turns neighbouring channels, not halves
            halves = values.reshape(heads, 2, -1, values.shape[1])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        own = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else wanted
        data = gguf.quants.quantize(np.ascontiguousarray(values), own)
        writer.add_tensor(names.get_name(name, (".weight",)), data, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@needs_gguf
def test_a_gguf_file_is_the_model_that_it_was_written_from(tmp_path: Path) -> None:
    model = llama()
    write_gguf(tmp_path / "m.gguf", model)
    (tmp_path / "config.json").write_text("{}")  # none of the file's
    recipe = Recipe()
    recipe.convert.source, recipe.convert.order = str(tmp_path / "m.gguf"), "none"
    convert(recipe, tmp_path / "out")

    ta = load_ta(tmp_path / "out" / "ta")
    with torch.no_grad():
        assert torch.allclose(ta.model(IDS).logits, model(IDS).logits, atol=1e-5)
    stock: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "ta")
    config = json.loads((tmp_path / "out" / "ta" / "config.json").read_text())
    assert type(stock) is LlamaForCausalLM and "quantization_config" not in config
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out" / "ta")
    assert tokenizer("the cat")["input_ids"][-4:] == [TOKENS.index(t) for t in "Ġcat"]
    assert TOKENS.index("the") in tokenizer("the cat")["input_ids"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "user: hi"

    teacher, source = load_model(str(tmp_path / "m.gguf"), "causal_lm")
    with torch.no_grad():
        assert torch.allclose(teacher(IDS).logits, model(IDS).logits, atol=1e-5)
    assert tokenizer_of(source.beside)("the")["input_ids"] == tokenizer("the")["input_ids"]
    write_gguf(tmp_path / "half.gguf", model, "F16")
    assert stored_dtype(open_source(str(tmp_path / "half.gguf"))) == "float16"


@needs_gguf
def test_no_other_file_is_opened_in_its_place(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    model, other = llama(), llama()
    write_gguf(tmp_path / "mine.gguf", model)
    with torch.no_grad():
        other.lm_head.weight.neg_()
    write_gguf(tmp_path / "model.gguf", other)
    opened = open_source("mine.gguf").module
    assert opened is not None
    assert torch.equal(opened.state_dict()["lm_head.weight"], model.lm_head.weight)


@needs_gguf
def test_rounded_weights_are_opened_as_what_they_stand_for(tmp_path: Path) -> None:
    model = llama()
    write_gguf(tmp_path / "renamed.bin", model, "Q8_0")  # it is known by its content
    source = open_source(str(tmp_path / "renamed.bin"))
    assert source.module is not None and "rounded (Q8_0)" in source.notes[0]
    for name, tensor in model.state_dict().items():
        opened = source.module.state_dict()[name].float()
        assert torch.allclose(opened, tensor, atol=tensor.abs().max().item() / 127)
        assert tensor.dim() == 1 or not torch.equal(opened, tensor)


@needs_gguf
def test_gguf_files_that_do_not_open_say_what_to_do(tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(MattaError, match=match):
            open_source(str(tmp_path / "m.gguf"))

    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(60))
    refused("damaged, or no GGUF file")
    write_gguf(tmp_path / "m.gguf", llama(), split_count=3)
    refused("one of 3 parts.*gguf-split --merge")
    write_gguf(tmp_path / "m.gguf", llama())
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: len(whole) // 2])
    refused("damaged, or no GGUF file")
    (tmp_path / "m.gguf").write_bytes(whole.replace(b"llama", b"lemma"))
    refused("transformers cannot open .*lemma")
    with pytest.raises(MattaError, match=r"pass the file, .*m\.gguf"):
        open_source(str(tmp_path))


def test_a_gguf_file_without_its_readers_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(60))
    found = importlib.util.find_spec
    lacking: dict[str, Any] = {"gguf": None, "accelerate": "there"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: lacking.get(name, found(name, *more))
    )
    with pytest.raises(MattaError, match=r"reading it needs gguf: pip install 'matta\[gguf\]'"):
        open_source(str(tmp_path / "m.gguf"))


def write_fp8(folder: Path, model: LlamaForCausalLM, **method: Any) -> None:
    """``model`` in 8 bits by blocks, as DeepSeek's releases have it."""
    model.bfloat16().save_pretrained(folder)
    tensors, block = {}, 32
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensors[name] = tensor
        if "proj" in name:
            rows, columns = (size // block for size in tensor.shape)
            blocks = tensor.float().view(rows, block, columns, block)
            scale = blocks.abs().amax((1, 3)) / 448
            rounded = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            tensors[name] = rounded.view(tensor.shape)
            tensors[f"{name}_scale_inv"] = scale
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    usual = {"quant_method": "fp8", "weight_block_size": [block, block]}
    config["quantization_config"] = {**usual, **method}
    (folder / "config.json").write_text(json.dumps(config))


def test_a_quantized_folder_is_dequantized_or_refused(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers' FP8 needs accelerate")
    model = llama()
    write_fp8(tmp_path / "m", model)
    recipe = Recipe()
    recipe.convert.source, recipe.convert.order = str(tmp_path / "m"), "none"
    done = convert(recipe, tmp_path / "out")
    assert any("is quantized (fp8)" in note for note in done.notes)
    ta = load_ta(tmp_path / "out" / "ta")
    for name, tensor in model.state_dict().items():
        opened, own = ta.model.state_dict()[name], tensor.float()
        assert torch.allclose(opened, own, atol=own.abs().max().item() / 16), name
    config = json.loads((tmp_path / "out" / "ta" / "config.json").read_text())
    assert "quantization_config" not in config

    for method, match in (("unheard-of", "leaves .*scale_inv out"), ("gptq", "gptq.*cannot deq")):
        write_fp8(tmp_path / "m", llama(), quant_method=method)
        with pytest.raises(MattaError, match=match):
            open_source(str(tmp_path / "m"))
