"""Llama and what is built like it (Mistral, Qwen2, Qwen3), as transformers has them.

What nests: the hidden units of each block's gated MLP, the heads of each block, the residual
stream, and the blocks. Heads
that share a key and a value stay together, and a head itself is never cut: its width sets the
rotary embedding.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from matta_adapters.skeleton import fill, read_config, skeleton
from matta_adapters.stock import from_folder, no_init, quiet
from matta_cli.adapter import Adapter, Axis, Sizes, Slice, Source
from matta_cli.errors import MattaError, said

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_OLD_BUFFERS = re.compile(r"rotary_emb\.inv_freq$")  # the configuration says what they are
_NAMES = ("self_attn.k_proj.weight", "mlp.gate_proj.weight", "mlp.down_proj.weight")


class Llama(Adapter):
    """Llama, Mistral, Qwen2, Qwen3: a transformers folder, a state dict with its config.json, or an
    opened module.
    """

    name = "llama"
    task = "causal_lm"
    loader = "transformers.AutoModelForCausalLM.from_pretrained({folder})"
    default = ("mlp",)

    def matches(self, source: Source) -> bool:
        if source.folder is not None:
            return read_config(source.folder).get("model_type") in _CLASSES
        if source.tensors is not None:
            if source.config.get("model_type", "llama") not in _CLASSES:
                return False
            return any(
                {f"{body}layers.0.{name}" for name in _NAMES} <= set(source.tensors)
                for body in ("model.", "")
            )
        return any(c.__name__ in _CLASSES.values() for c in type(source.module).__mro__)

    def load(self, source: Source) -> nn.Module:
        import transformers

        self.notes = []
        if not self.matches(source):
            raise MattaError(
                f"{source.name!r} is none of {', '.join(_CLASSES)}: no such model_type, or no layers.0.mlp.gate_proj.weight."
            )
        if source.folder is not None:
            cls = getattr(transformers, _CLASSES[read_config(source.folder)["model_type"]])
            model: Any = from_folder(cls, source, _OLD_BUFFERS)
        elif source.tensors is not None:
            model = self._from_tensors(source.tensors, source)
        else:
            model = copy.deepcopy(source.module).cpu().float()  # type: ignore[union-attr]
        if getattr(model.config, "quantization_config", None):
            raise MattaError(
                f"{source.name!r} is quantized: matta needs the weights that it was made from."
            )
        return model.eval()

    def axes(self, model: Any) -> list[Axis]:
        """mlp.I, heads.I (in channels of the keys, whole heads at a time), hidden, depth."""
        config, tied = model.config, model.lm_head.weight is model.model.embed_tokens.weight
        residual = [Slice("model.embed_tokens.weight", 1), Slice("model.norm.weight", 0)]
        residual += [] if tied else [Slice("lm_head.weight", 1, outgoing=True)]
        found = []
        for i, block in enumerate(model.model.layers):
            path, attention = f"model.layers.{i}", block.self_attn

            def linear(
                name: str, dim: int, unit: int = 1, path: str = path, block: Any = block
            ) -> list[Slice]:
                """A layer where its outputs (dim 0, and the bias) or its inputs (dim 1) shrink."""
                slices = [Slice(f"{path}.{name}.weight", dim, outgoing=dim == 1, unit=unit)]
                if dim == 0 and block.get_submodule(name).bias is not None:
                    slices.append(Slice(f"{path}.{name}.bias", 0, unit=unit))
                return slices

            hidden = [
                *linear("mlp.gate_proj", 0),
                *linear("mlp.up_proj", 0),
                *linear("mlp.down_proj", 1),
            ]
            found.append(Axis(f"mlp.{i}", block.mlp.down_proj.weight.shape[1], tuple(hidden)))

            # counted in the channels of the keys; each takes along those of the queries that share
            # it
            size = attention.k_proj.weight.shape[0]
            shared = attention.q_proj.weight.shape[0] // size
            heads = [
                *linear("self_attn.q_proj", 0, shared),
                *linear("self_attn.k_proj", 0),
                *linear("self_attn.v_proj", 0),
            ]
            heads += linear("self_attn.o_proj", 1, shared)
            found.append(Axis(f"heads.{i}", size, tuple(heads), step=attention.head_dim))

            residual += [
                Slice(f"{path}.{norm}.weight", 0)
                for norm in ("input_layernorm", "post_attention_layernorm")
            ]
            for name in (
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "mlp.gate_proj",
                "mlp.up_proj",
            ):
                residual += linear(name, 1)
            residual += [*linear("self_attn.o_proj", 0), *linear("mlp.down_proj", 0)]
        width, queries = model.model.embed_tokens.weight.shape[1], config.num_attention_heads
        # LlamaConfig wants a whole multiple; one whose heads have grown need not be
        step = queries if config.model_type == "llama" and width % queries == 0 else 1
        found.append(Axis("hidden", width, tuple(residual), step))
        # else a block's number says how it attends
        if len(set(getattr(config, "layer_types", None) or [""])) == 1:
            writers = [
                name
                for name, _ in model.model.layers[0].named_parameters()
                if ".o_proj." in name or ".down_proj." in name
            ]
            depth = tuple(Slice(name, 0) for name in writers)
            found.append(Axis("depth", len(model.model.layers), depth, layers="model.layers"))
        return found

    def build(self, model: Any, sizes: Sizes) -> nn.Module:
        student = skeleton(self, model, sizes)
        config, layers = student.config, student.model.layers
        for i, block in enumerate(layers):
            block.self_attn.layer_idx = i
        config.num_hidden_layers = len(layers)
        if len(getattr(config, "layer_types", None) or layers) != len(layers):
            config.layer_types = [config.layer_types[0]] * len(layers)
        head_dim = student.model.layers[0].self_attn.head_dim
        for name, found in _sizes(student).items():
            if len(set(found)) == 1 and found[0] != getattr(config, name):
                # from here on it is not hidden_size / num_attention_heads
                config.head_dim = head_dim
                setattr(config, name, found[0])
        return student

    def unsupported(self, model: Any) -> str:
        kind = model.config.model_type
        for name, found in _sizes(model).items():
            if len(set(found)) > 1:
                given = ", ".join(map(str, found))
                return f"a transformers {kind} has one {name} for all blocks, which different ones ({given}) are not"
        width, heads = model.config.hidden_size, model.config.num_attention_heads
        if kind == "llama" and width % heads:
            return f"a transformers llama that is {width} wide cannot have {heads} heads: they must divide the width"
        return ""

    def save(self, model: Any, folder: Path) -> None:
        with quiet():
            model.save_pretrained(folder)

    def _from_tensors(self, tensors: Mapping[str, Tensor], source: Source) -> nn.Module:
        import transformers

        given = dict(source.config)
        kind = given.pop("model_type", None)
        if kind not in _CLASSES:
            raise MattaError(
                f"{source.name!r} is a state dict, and its heads and rotary embeddings cannot be told from tensors: pass its "
                f"config.json, whose model_type is {', '.join(_CLASSES)}, with --config."
            )
        try:
            config = transformers.AutoConfig.for_model(kind, **given)
            with no_init():
                model: Any = getattr(transformers, _CLASSES[kind])(config)
        except Exception as error:  # transformers and its checks of configurations raise their own
            raise MattaError(
                f"transformers cannot build a {kind} from --config: {said(error)}"
            ) from error
        model.tie_weights()  # part of the initialisation that was skipped
        named = {
            key if key.startswith(("model.", "lm_head.")) else f"model.{key}": tensor
            for key, tensor in tensors.items()
        }
        named = {key: tensor for key, tensor in named.items() if not _OLD_BUFFERS.search(key)}
        embedding, head = named.get("model.embed_tokens.weight"), named.get("lm_head.weight")
        if config.tie_word_embeddings and embedding is not None:
            if head is not None and (head.shape != embedding.shape or not head.equal(embedding)):
                raise MattaError(
                    f"{source.name!r} has a head of its own (lm_head.weight), but --config ties it to embed_tokens.weight."
                )
            named["lm_head.weight"] = embedding
        if source.sizes:
            return fill(self.build(model, source.sizes), named, source.name)
        down = {
            f"mlp.{i}": named.get(f"model.layers.{i}.mlp.down_proj.weight")
            for i in range(config.num_hidden_layers)
        }
        widths = {axis: weight.shape[-1] for axis, weight in down.items() if weight is not None}
        if len(set(widths.values())) > 1:
            model = self.build(model, widths)
        return fill(model, named, source.name)


def _sizes(model: Any) -> dict[str, list[int]]:
    """What the configuration says once for all blocks -> what it is in each, by the tensors."""
    blocks, attentions = model.model.layers, [block.self_attn for block in model.model.layers]
    return {
        "hidden_size": [model.model.embed_tokens.weight.shape[1]],
        "intermediate_size": [block.mlp.down_proj.weight.shape[1] for block in blocks],
        "num_attention_heads": [a.q_proj.weight.shape[0] // a.head_dim for a in attentions],
        "num_key_value_heads": [a.k_proj.weight.shape[0] // a.head_dim for a in attentions],
    }
