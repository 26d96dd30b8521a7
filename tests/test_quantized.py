"""Weights in a few bits: GGUF files, and folders with a ``quantization_config``."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

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


SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(TOKENS)}
SIZES |= {"max_position_embeddings": 64}


def drawn(model: Any) -> Any:
    """The model with weights of its own in biases and norms, too."""
    torch.manual_seed(0)
    for tensor in model.parameters():
        torch.nn.init.normal_(tensor, 1.0 if tensor.dim() == 1 else 0.0, 0.1)
    return model.eval()


def llama(**more: Any) -> LlamaForCausalLM:
    return drawn(LlamaForCausalLM(LlamaConfig(**{**SIZES, **more})))


def write_gguf(
    path: Path,
    model: Any,
    kind: str = "F32",
    architecture: str = "llama",
    tensors: Mapping[str, torch.Tensor] | None = None,
    **more: Any,
) -> None:
    """``model`` as llama.cpp keeps it, with a tokenizer of letters and a chat template.

    tensors: besides the model's. more: metadata by its key, with _ for . in it.
    """
    import gguf

    c, writer = model.config, gguf.GGUFWriter(str(path), architecture)
    old, gemma = architecture == "gpt2", architecture.startswith("gemma")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(4 * c.n_embd if old else c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    if old:
        writer.add_layer_norm_eps(c.layer_norm_epsilon)
    else:
        writer.add_head_count_kv(c.num_key_value_heads)
        writer.add_layer_norm_rms_eps(c.rms_norm_eps)
        more.setdefault(f"{architecture}__rope__freq_base", 10000.0)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("llama" if gemma else "gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])
    if gemma:
        writer.add_token_scores([-float(number) for number in range(len(TOKENS))])
    else:
        writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for key, value in more.items():
        add = {float: writer.add_float32, str: writer.add_string}.get(type(value))
        (add or writer.add_uint32)(key.replace("__", "."), value)
    kinds = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], c.num_hidden_layers)
    wanted = gguf.GGMLQuantizationType[kind]
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        values = tensor.numpy()
        heads = {"q": c.num_attention_heads, "k": getattr(c, "num_key_value_heads", 0)}
        if architecture == "llama" and (own := heads.get(name[-13:-12])) and "self_attn" in name:
            # llama.cpp turns neighbouring channels, not halves
            halves = values.reshape(own, 2, -1, values.shape[1])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        if old and ".c_" in name:
            values = values.T  # GPT-2 has its layers as [in, out]
        if gemma and name.endswith("norm.weight"):
            values = values + 1
        own_kind = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else wanted
        data = gguf.quants.quantize(np.ascontiguousarray(values), own_kind)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), data, raw_dtype=own_kind)
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor.numpy())
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


LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 32.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
GEMMA = {**SIZES, "head_dim": 8, "sliding_window": 4, **CAPS}
PHI = {**SIZES, "pad_token_id": 0, "sliding_window": 4}


def rope_freqs() -> torch.Tensor:
    """What llama.cpp divides frequencies by, of those that stock transformers has."""
    plain, scaled = (llama(**more).model.rotary_emb.inv_freq for more in ({}, ROTARY))
    return plain / scaled


def key_names(architecture: str, **keys: Any) -> dict[str, Any]:
    return {f"{architecture}__{key}": value for key, value in keys.items()}


FIVE = transformers.__version__ >= "5"
ROTARY = {"rope_parameters": LLAMA3} if FIVE else {"rope_scaling": LLAMA3}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
GEMMA3 = {**SIZES, "head_dim": 8, "sliding_window": 4, "num_hidden_layers": 6}
WHOLE = {"full_attention": {**LINEAR, "rope_theta": 1e6}}
WHOLE["sliding_attention"] = {"rope_type": "default", "rope_theta": 10000.0}
OLD = {"rope_scaling": LINEAR, "rope_theta": 1e6}
GEMMA3 |= {"rope_parameters": WHOLE} if FIVE else OLD
HEAD = {"attention__key_length": 8, "attention__value_length": 8}
# what a file says, and transformers' reader leaves out: the model, its architecture, keys, tensors
TOLD: dict[str, tuple[Any, str, dict[str, Any], Any]] = {
    "llama 3": (lambda: llama(**ROTARY), "llama", {}, lambda: {"rope_freqs.weight": rope_freqs()}),
    "linear": (
        lambda: llama(rope_parameters=LINEAR) if FIVE else llama(rope_scaling=LINEAR),
        "llama",
        {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
        dict,
    ),
    "linear on whole attention": (
        lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA3)),
        "gemma3",
        {**HEAD, "attention__sliding_window": 4, "rope__scaling__type": "linear"}
        | {"rope__scaling__factor": 4.0, "rope__freq_base": 1e6},
        dict,
    ),
    "caps": (
        lambda: Gemma2ForCausalLM(Gemma2Config(**GEMMA)),
        "gemma2",
        {**HEAD, "attention__sliding_window": 4, **CAPS},
        dict,
    ),
    "window": (
        lambda: Phi3ForCausalLM(Phi3Config(**PHI)),
        "phi3",
        {"attention__sliding_window": 4, "rope__dimension_count": 16},
        dict,
    ),
    "heads": (lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)), "qwen3", HEAD, dict),
    "positions": (
        lambda: GPT2LMHeadModel(
            GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=len(TOKENS), n_positions=64)
        ),
        "gpt2",
        {},
        dict,
    ),
}


@needs_gguf
@pytest.mark.parametrize("name", TOLD)
def test_what_a_gguf_file_says_of_its_model_holds(tmp_path: Path, name: str) -> None:
    make, architecture, keys, tensors = TOLD[name]
    model = drawn(make())
    own = key_names(architecture, **keys)
    if architecture == "phi3":
        own["tokenizer__ggml__padding_token_id"] = 0
    write_gguf(tmp_path / "m.gguf", model, architecture=architecture, tensors=tensors(), **own)
    opened: Any = open_source(str(tmp_path / "m.gguf")).module
    ids = torch.randint(3, len(TOKENS), (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(opened(ids).logits, model(ids).logits, atol=1e-5)


@needs_gguf
def test_a_gguf_file_whose_positions_are_scaled_in_another_way_is_refused(tmp_path: Path) -> None:
    def refused(match: str, tensors: Any = None, model: Any = None, **more: Any) -> None:
        write_gguf(tmp_path / "m.gguf", model or llama(), tensors=tensors, **more)
        with pytest.raises(MattaError, match=match):
            open_source(str(tmp_path / "m.gguf"))

    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    refused(r"'.*m\.gguf' scales rotary positions \(yarn\)", **key_names("llama", **yarn))
    odd = {"rope_freqs.weight": 1 + torch.rand(8)}
    refused(r"scales rotary frequencies \(rope_freqs\.weight\), which", odd)
    refused(r"positions \(longrope\)", {"rope_factors_long.weight": torch.ones(8)})
    few = {**key_names("phi3", rope__dimension_count=8), "tokenizer__ggml__padding_token_id": 0}
    refused("turns 8 of 16 channels", model=TOLD["window"][0](), architecture="phi3", **few)
    write_gguf(tmp_path / "m.gguf", llama(), tensors={"rope_freqs.weight": torch.ones(8)})
    assert open_source(str(tmp_path / "m.gguf")).module is not None


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
    write_gguf(tmp_path / "m.gguf", llama(), split__count=3)
    refused("one of 3 parts.*gguf-split --merge")
    write_gguf(tmp_path / "m.gguf", llama())
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: len(whole) // 2])
    refused("damaged, or no GGUF file")
    (tmp_path / "m.gguf").write_bytes(whole.replace(b"llama", b"lemma"))
    refused("transformers cannot open .*lemma")
    at = whole.index(b"llama.block_count") + len(b"llama.block_count") + 4
    (tmp_path / "m.gguf").write_bytes(whole[:at] + b"\xff" * 4 + whole[at + 4 :])
    refused(r"m\.gguf' sets num_hidden_layers to 4294967295, more than")
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
