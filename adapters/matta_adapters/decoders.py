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

from matta_adapters.shapes import heads_as_wide, makes, one_for_all, reads
from matta_adapters.skeleton import skeleton
from matta_adapters.stock import CausalLM, empty
from matta_cli.adapter import Axis, Sizes, Slice, Source
from matta_cli.errors import MattaError

_QUANTIZED = "is quantized: matta needs the weights that it was made from"


class Decoder(CausalLM):
    """A decoder whose parts have the names that a subclass gives; its own are Llama's.

    layers: the path of the blocks. last_norm, norms: those of the residual stream, after the blocks
    and in each; what a model does not have is passed over. In a block, by paths from it: attention,
    the module of that name; qkv, what makes queries, keys and values, one name where they are one
    tensor; out, what reads the heads; up, what makes the MLP's units; down, what reads them.
    interleaved: whether a fused tensor has query, key and value of one head side by side.
    wide: whether the heads together are as wide as the stream, so that the library can load them.
    inner: the configuration's name of the MLP's units.
    """

    refused = {"quantization_config": _QUANTIZED}
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
    interleaved = False
    wide = False
    inner = "intermediate_size"

    def matches(self, source: Source) -> bool:
        other = source.config.get("model_type") not in (None, *self.classes)
        return not (source.tensors is not None and other) and super().matches(source)

    def axes(self, model: Any) -> list[Axis]:
        """mlp.I, heads.I (in channels of the keys, whole heads at a time), hidden, depth."""
        blocks, axes = model.get_submodule(self.layers), []
        stream: list[Slice] = []
        for path in self._enters(model):
            body, _, name = path.rpartition(".")
            stream += makes(model, body, name)
        stream += self._whole(model, self.last_norm)
        for i, block in enumerate(blocks):
            path = f"{self.layers}.{i}"
            mlp = makes(model, path, *self.up, blocks=self._fused(block))
            mlp += reads(model, path, self.down)
            units = block.get_submodule(self.down).weight.shape[1]
            axes.append(Axis(f"mlp.{i}", units, tuple(mlp)))
            axes.append(self._heads(model, path, block, i))
            for norm in self.norms:
                stream += self._whole(model, f"{path}.{norm}")
            stream += reads(model, path, *self.qkv, *self.up)
            stream += makes(model, path, self.out, self.down)
        stream += self._head(model)
        width = blocks[0].get_submodule(self.down).weight.shape[0]
        axes.append(Axis("hidden", width, tuple(stream), self._step(model)))
        if self._alike(model.config):
            own = [name for name, _ in blocks[0].named_parameters()]
            writers = (f"{self.out}.", f"{self.down}.")
            added = [Slice(name, 0) for name in own if name.startswith(writers)]
            added = added if self._before(model.config) else []
            axes.append(Axis("depth", len(blocks), tuple(added), layers=self.layers))
        return axes

    def _enters(self, model: Any) -> tuple[str, ...]:
        """The modules that make the residual stream before the blocks."""
        return (self.embedding.removesuffix(".weight"),)

    def _whole(self, model: Any, path: str) -> list[Slice]:
        """A norm of the stream, where the model has it."""
        body, _, name = path.rpartition(".")
        there = getattr(model.get_submodule(body), name, None) is not None
        return makes(model, body, name) if there else []

    def _fused(self, block: Any) -> int:
        """How many times an MLP's units lie in what makes them: a gate may lie with them."""
        up, down = (block.get_submodule(name).weight for name in (self.up[0], self.down))
        return int(up.shape[0] // down.shape[1])

    def _heads(self, model: Any, path: str, block: Any, i: int) -> Axis:
        """Heads are counted in the channels of the keys.

        Each takes along those of the queries that share it.
        """
        given = block.get_submodule(self.qkv[0]).weight.shape[0]
        made = block.get_submodule(self.out).weight.shape[1]
        if self.interleaved:
            shared, size = 1, made
            slices = makes(model, path, *self.qkv, unit=3)
        elif len(self.qkv) == 1:
            size = (given - made) // 2
            shared = made // size
            slices = makes(model, path, *self.qkv, unit=shared)
            keys = makes(model, path, *self.qkv, blocks=2)
            slices += [Slice(s.tensor, s.dim, s.blocks, start=made) for s in keys]
        else:
            size = block.get_submodule(self.qkv[1]).weight.shape[0]
            shared = given // size
            slices = makes(model, path, self.qkv[0], unit=shared)
            slices += makes(model, path, *self.qkv[1:])
        slices += reads(model, path, self.out, unit=shared)
        return Axis(f"heads.{i}", size, tuple(slices), step=self._channels(block))

    def _channels(self, block: Any) -> int:
        """How wide one head is."""
        return int(block.get_submodule(self.attention).head_dim)

    def _head(self, model: Any) -> list[Slice]:
        """What reads the stream after the blocks, unless it is the embedding itself."""
        tied = model.lm_head.weight is model.get_input_embeddings().weight
        return [] if tied else [Slice("lm_head.weight", 1, outgoing=True)]

    def _step(self, model: Any) -> int:
        """In what steps the stream may shrink, so that the library can load it."""
        if self.wide:
            return self._channels(model.get_submodule(self.layers)[0])
        return 1

    def _alike(self, config: Any) -> bool:
        """Whether all blocks compute alike; else a block's number says how it attends."""
        return len(set(getattr(config, "layer_types", None) or [""])) == 1

    def _before(self, config: Any) -> bool:
        """Whether norms come before what they serve, so that a block can begin as the identity."""
        return True

    def build(self, model: Any, sizes: Sizes) -> nn.Module:
        student = skeleton(self, model, sizes)
        config, blocks = student.config, student.get_submodule(self.layers)
        for i, block in enumerate(blocks):
            block.get_submodule(self.attention).layer_idx = i
        config.num_hidden_layers = len(blocks)
        if len(getattr(config, "layer_types", None) or blocks) != len(blocks):
            config.layer_types = [config.layer_types[0]] * len(blocks)
        for name, given in self._sizes(student).items():
            if len(set(given)) == 1 and given[0] != getattr(config, name):
                if not self.wide:  # from here on it is not hidden_size / num_attention_heads
                    config.head_dim = self._channels(blocks[0])
                setattr(config, name, given[0])
        self._fit(student)
        return student

    def _fit(self, student: Any) -> None:
        """Set what modules keep of their sizes beside their tensors."""

    def unsupported(self, model: Any) -> str:
        kind = model.config.model_type
        for name, given in self._sizes(model).items():
            if uneven := one_for_all(f"a transformers {kind}", name, given, "different ones"):
                return uneven
        (width, *_), (heads, *_) = (
            self._sizes(model)[name] for name in ("hidden_size", "num_attention_heads")
        )
        if self.wide:
            channels = {heads * self._channels(model.get_submodule(self.layers)[0])}
            return heads_as_wide(f"a transformers {kind}", channels, width)
        return self._uneven(kind, width, heads)

    def _uneven(self, kind: str, width: int, heads: int) -> str:
        """Why the library refuses a stream of this width with so many heads."""
        return ""

    def _sizes(self, model: Any) -> dict[str, list[int]]:
        """What the configuration says once for all blocks -> what it is in each, by the tensors."""
        blocks, sizes = model.get_submodule(self.layers), {}
        down = [block.get_submodule(self.down).weight.shape for block in blocks]
        sizes["hidden_size"], sizes[self.inner] = [down[0][0]], [shape[1] for shape in down]
        made = [block.get_submodule(self.out).weight.shape[1] for block in blocks]
        channels = self._channels(blocks[0])
        sizes["num_attention_heads"] = [size // channels for size in made]
        if hasattr(model.config, "num_key_value_heads"):
            sizes["num_key_value_heads"] = [
                self._heads(model, f"{self.layers}.{i}", block, i).size // channels
                for i, block in enumerate(blocks)
            ]
        return sizes

    def _empty(self, named: Mapping[str, Tensor], untied: bool, source: Source) -> Any:
        import transformers

        given = dict(source.config)
        kind = given.pop("model_type", None)
        if kind not in self.classes:
            raise MattaError(
                f"{source.name!r} is a state dict, and its heads and rotary embeddings cannot be "
                "told from tensors: pass its config.json, whose model_type is "
                f"{', '.join(self.classes)}, with --config."
            )
        return empty(
            lambda: transformers.AutoConfig.for_model(kind, **given),
            getattr(transformers, self.classes[kind]),
            f"transformers cannot build a {kind} from --config",
        )


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

    def _enters(self, model: Any) -> tuple[str, ...]:
        narrow = model.model.decoder.project_in is not None
        first = "project_in" if narrow else "embed_tokens"
        return tuple(f"model.decoder.{name}" for name in (first, "embed_positions"))

    def _head(self, model: Any) -> list[Slice]:
        if model.model.decoder.project_out is None:
            return super()._head(model)
        return [Slice("model.decoder.project_out.weight", 1, outgoing=True)]

    def _before(self, config: Any) -> bool:
        return bool(config.do_layer_norm_before)

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
