"""Llama and what is built like it (Mistral, Qwen2, Qwen3), as transformers has them.

What nests: the hidden units of each block's gated MLP, the heads of each block, the residual
stream, and the blocks. Heads that share a key and a value stay together, and a head itself is never
cut: its width sets the rotary embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from matta_adapters.shapes import makes, one_for_all, reads
from matta_adapters.skeleton import skeleton
from matta_adapters.stock import CausalLM, empty
from matta_cli.adapter import Axis, Sizes, Slice, Source
from matta_cli.errors import MattaError

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_PARTS = ("self_attn.k_proj", "mlp.gate_proj", "mlp.down_proj")
# What reads the residual stream in a block, and what adds to it.
_READERS = (*(f"self_attn.{part}_proj" for part in "qkv"), "mlp.gate_proj", "mlp.up_proj")
_WRITERS = ("self_attn.o_proj", "mlp.down_proj")


class Llama(CausalLM):
    """Llama, Mistral, Qwen2, Qwen3: a transformers folder, a state dict with its config.json, or an
    opened module.
    """

    name = "llama"
    classes = _CLASSES
    kind = f"one of {', '.join(_CLASSES)} of transformers"
    tensors, bodies = tuple(f"layers.0.{part}.weight" for part in _PARTS), ("model.", "")
    refused = {"quantization_config": "is quantized: matta needs the weights that it was made from"}
    embedding = "model.embed_tokens.weight"
    old = re.compile(r"rotary_emb\.inv_freq$")  # the configuration says what they are

    def matches(self, source: Source) -> bool:
        other = source.config.get("model_type", "llama") not in self.classes
        return not (source.tensors is not None and other) and super().matches(source)

    def axes(self, model: Any) -> list[Axis]:
        """mlp.I, heads.I (in channels of the keys, whole heads at a time), hidden, depth."""
        config, layers, axes = model.config, model.model.layers, []
        stream = makes(model, "model", "embed_tokens", "norm")
        if model.lm_head.weight is not model.model.embed_tokens.weight:
            stream.append(Slice("lm_head.weight", 1, outgoing=True))
        for i, block in enumerate(layers):
            path, attention = f"model.layers.{i}", block.self_attn
            mlp = makes(model, path, "mlp.gate_proj", "mlp.up_proj")
            mlp += reads(model, path, "mlp.down_proj")
            axes.append(Axis(f"mlp.{i}", block.mlp.down_proj.weight.shape[1], tuple(mlp)))
            # Heads are counted in the channels of the keys; each takes along those of the queries
            # that share it.
            size = attention.k_proj.weight.shape[0]
            shared = attention.q_proj.weight.shape[0] // size
            heads = makes(model, path, "self_attn.q_proj", unit=shared)
            heads += makes(model, path, "self_attn.k_proj", "self_attn.v_proj")
            heads += reads(model, path, "self_attn.o_proj", unit=shared)
            axes.append(Axis(f"heads.{i}", size, tuple(heads), step=attention.head_dim))
            stream += makes(model, path, "input_layernorm", "post_attention_layernorm")
            stream += reads(model, path, *_READERS)
            stream += makes(model, path, *_WRITERS)
        width, queries = model.model.embed_tokens.weight.shape[1], config.num_attention_heads
        # LlamaConfig wants a whole multiple of the heads; where these have grown and it is none, of
        # the fewest that there can be: those that share a key.
        whole = [count for count in (queries, shared) if width % count == 0]
        step = whole[0] if config.model_type == "llama" and whole else 1
        axes.append(Axis("hidden", width, tuple(stream), step))
        if len(set(getattr(config, "layer_types", None) or [""])) == 1:
            # Else a block's number says how it attends.
            own = [name for name, _ in layers[0].named_parameters()]
            added = tuple(Slice(name, 0) for name in own if name.startswith(_WRITERS))
            axes.append(Axis("depth", len(layers), added, layers="model.layers"))
        return axes

    def build(self, model: Any, sizes: Sizes) -> nn.Module:
        student = skeleton(self, model, sizes)
        config, layers = student.config, student.model.layers
        for i, block in enumerate(layers):
            block.self_attn.layer_idx = i
        config.num_hidden_layers = len(layers)
        if len(getattr(config, "layer_types", None) or layers) != len(layers):
            config.layer_types = [config.layer_types[0]] * len(layers)
        for name, given in _sizes(student).items():
            if len(set(given)) == 1 and given[0] != getattr(config, name):
                # From here on it is not hidden_size / num_attention_heads.
                config.head_dim = layers[0].self_attn.head_dim
                setattr(config, name, given[0])
        return student

    def unsupported(self, model: Any) -> str:
        kind = model.config.model_type
        for name, given in _sizes(model).items():
            if uneven := one_for_all(f"a transformers {kind}", name, given, "different ones"):
                return uneven
        width, heads = model.config.hidden_size, model.config.num_attention_heads
        if kind == "llama" and width % heads:
            return (
                f"a transformers llama that is {width} wide cannot have {heads} heads: "
                "they must divide the width"
            )
        return ""

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


def _sizes(model: Any) -> dict[str, list[int]]:
    """What the configuration says once for all blocks -> what it is in each, by the tensors."""
    blocks, attentions = model.model.layers, [block.self_attn for block in model.model.layers]
    return {
        "hidden_size": [model.model.embed_tokens.weight.shape[1]],
        "intermediate_size": [block.mlp.down_proj.weight.shape[1] for block in blocks],
        "num_attention_heads": [a.q_proj.weight.shape[0] // a.head_dim for a in attentions],
        "num_key_value_heads": [a.k_proj.weight.shape[0] // a.head_dim for a in attentions],
    }
