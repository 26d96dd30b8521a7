"""Decoders of transformers, whose differences are a table: Llama, Gemma, Phi-3, GPT-NeoX, OPT.

What nests: the hidden units of each block's MLP, the heads of each block, the residual stream, and
the blocks. Heads that share a key and a value stay together, and a head itself is never cut: its
width sets the rotary embedding.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from matta_adapters.blocks import Blocks
from matta_adapters.shapes import makes
from matta_adapters.stock import CausalLM
from matta_cli.adapter import Axis, Slice, Source


class Decoder(CausalLM, Blocks):
    """A decoder whose parts have the names that a subclass gives; its own are Llama's."""

    embedding = "model.embed_tokens.weight"
    old = re.compile(r"rotary_emb\.inv_freq$")  # the configuration says what they are
    bodies = ("model.", "")

    layers = "model.layers"
    last_norm = "model.norm"
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    attention = "self_attn"
    qkv: tuple[str, ...] = tuple(f"self_attn.{part}_proj" for part in "qkv")
    out = "self_attn.o_proj"
    up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down = "mlp.down_proj"

    def _enters(self, model: Any) -> list[Slice]:
        body, _, name = self.embedding.removesuffix(".weight").rpartition(".")
        return makes(model, body, name)

    def _head(self, model: Any) -> list[Slice]:
        # unless it is the embedding itself
        tied = model.lm_head.weight is model.get_input_embeddings().weight
        return [] if tied else [Slice("lm_head.weight", 1, outgoing=True)]

    def _empty(self, named: Mapping[str, Tensor], untied: bool, source: Source) -> Any:
        return self._configured(source, "heads and rotary embeddings")


class Llama(Decoder):
    """Llama, Mistral, Qwen2, Qwen3: a transformers folder, a state dict with its config.json, or an
    opened module.
    """

    name = "llama"
    classes = {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
    }
    kind = f"one of {', '.join(classes)} of transformers"
    tensors = tuple(
        f"layers.0.{part}.weight" for part in ("self_attn.k_proj", "mlp.gate_proj", "mlp.down_proj")
    )

    def _step(self, model: Any) -> int:
        if model.config.model_type != "llama":
            return 1
        return _dividing(self, model)

    def _uneven(self, kind: str, width: int, heads: int) -> str:
        return _undivided(kind, width, heads) if kind == "llama" else ""


class Gemma(Decoder):
    """Gemma 2 and Gemma 3 (text alone): embeddings are scaled, norms stand on both sides."""

    name = "gemma"
    classes = {"gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}
    kind = f"one of {', '.join(classes)} of transformers"
    tensors = ("layers.0.mlp.gate_proj.weight", "layers.0.pre_feedforward_layernorm.weight")
    norms = (*Decoder.norms, "pre_feedforward_layernorm", "post_feedforward_layernorm")

    def _step(self, model: Any) -> int:
        return _dividing(self, model)

    def _uneven(self, kind: str, width: int, heads: int) -> str:
        return _undivided(kind, width, heads)

    def load(self, source: Source) -> nn.Module:
        model = super().load(source)
        self._fit(model)
        return model

    def _fit(self, student: Any) -> None:
        # The factor goes by the width. As a buffer a Student would take that of the larger model.
        embed, factor = student.model.embed_tokens, student.config.hidden_size**0.5
        embed._buffers.pop("embed_scale", None)
        embed.scalar_embed_scale = factor
        embed.embed_scale = torch.tensor(factor, device="cpu")  # without dimensions: for any device


class Phi3(Decoder):
    """Phi-3, Phi-3.5, Phi-4: queries, keys and values are one tensor, gates and units another."""

    name = "phi3"
    classes = {"phi3": "Phi3ForCausalLM"}
    kind = "a Phi-3 of transformers"
    tensors = ("layers.0.self_attn.qkv_proj.weight", "layers.0.mlp.gate_up_proj.weight")
    qkv = ("self_attn.qkv_proj",)
    up = ("mlp.gate_up_proj",)

    def _fit(self, student: Any) -> None:
        sizes = self._sizes(student)
        pairs = zip(sizes["num_attention_heads"], sizes["num_key_value_heads"], strict=True)
        for block, (heads, keys) in zip(student.model.layers, pairs, strict=True):
            attention = block.self_attn
            attention.num_key_value_heads = keys
            attention.config = student.config
            if heads != student.config.num_attention_heads:  # it splits by its configuration
                attention.config = copy.copy(student.config)
                attention.config.num_attention_heads = heads


class GPTNeoX(Decoder):
    """GPT-NeoX and Pythia: query, key and value of a head lie side by side in one tensor."""

    name = "gpt_neox"
    classes = {"gpt_neox": "GPTNeoXForCausalLM"}
    kind = "a GPT-NeoX of transformers"
    tensors = ("layers.0.attention.query_key_value.weight", "layers.0.mlp.dense_h_to_4h.weight")
    bodies = ("gpt_neox.", "")
    embedding = "gpt_neox.embed_in.weight"
    old = re.compile(r"(rotary_emb\.inv_freq|attention\.(masked_)?bias)$")
    layers, last_norm = "gpt_neox.layers", "gpt_neox.final_layer_norm"
    attention, qkv, out = "attention", ("attention.query_key_value",), "attention.dense"
    up, down = ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"
    interleaved, wide = True, True

    def _channels(self, block: Any) -> int:
        return int(block.attention.head_size)


class OPT(Decoder):
    """OPT: learned positions, and in some sizes embeddings that are narrower than the blocks."""

    name = "opt"
    classes = {"opt": "OPTForCausalLM"}
    kind = "an OPT of transformers"
    tensors = ("decoder.layers.0.fc1.weight", "decoder.embed_positions.weight")
    embedding = "model.decoder.embed_tokens.weight"
    layers = "model.decoder.layers"
    last_norm = "model.decoder.final_layer_norm"
    norms = ("self_attn_layer_norm", "final_layer_norm")
    out, up, down, inner = "self_attn.out_proj", ("fc1",), "fc2", "ffn_dim"
    wide = True

    def axes(self, model: Any) -> list[Axis]:
        """As a decoder's; the residual stream stays whole where norms of it have no weights."""
        whole = not model.config.layer_norm_elementwise_affine
        return [axis for axis in super().axes(model) if not (whole and axis.name == "hidden")]

    def _enters(self, model: Any) -> list[Slice]:
        narrow = model.model.decoder.project_in is not None
        first = "project_in" if narrow else "embed_tokens"
        return makes(model, "model.decoder", first, "embed_positions")

    def _head(self, model: Any) -> list[Slice]:
        if model.model.decoder.project_out is None:
            return super()._head(model)
        return [Slice("model.decoder.project_out.weight", 1, outgoing=True)]

    def _before(self, config: Any) -> bool:
        return bool(config.do_layer_norm_before)

    def unsupported(self, model: Any) -> str:
        """As a decoder's; and transformers projects embeddings where these are narrower alone."""
        made, stream = model.model.decoder.project_in, self._sizes(model)["hidden_size"][0]
        if made is not None and made.weight.shape[1] == stream:
            as_wide = f"a transformers opt whose blocks are as wide as its embeddings ({stream})"
            return f"{as_wide} has no projection between them, which this one has"
        return super().unsupported(model)

    def _fit(self, student: Any) -> None:
        config, decoder = student.config, student.model.decoder
        if decoder.project_in is None:
            config.word_embed_proj_dim = config.hidden_size
        for block in decoder.layers:
            attention = block.self_attn
            attention.embed_dim = attention.out_proj.weight.shape[1]
            attention.num_heads = attention.embed_dim // attention.head_dim
            block.embed_dim = config.hidden_size


def _dividing(adapter: Decoder, model: Any) -> int:
    """The step of a stream whose configuration wants a whole multiple of the heads.

    Where these have grown and it is none, of the fewest that there can be: those that share a key.
    """
    sizes = adapter._sizes(model)
    width, queries = sizes["hidden_size"][0], model.config.num_attention_heads
    shared = sizes["num_attention_heads"][0] // sizes["num_key_value_heads"][0]
    whole = [count for count in (queries, shared) if width % count == 0]
    return whole[0] if whole else 1


def _undivided(kind: str, width: int, heads: int) -> str:
    if width % heads == 0:
        return ""
    return (
        f"a transformers {kind} that is {width} wide cannot have {heads} heads: "
        "they must divide the width"
    )
