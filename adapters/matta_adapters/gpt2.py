"""GPT-2 as Hugging Face transformers has it (``GPT2LMHeadModel``).

What nests: the hidden units of each block's MLP, the heads of each block, the residual stream, and
the blocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from matta_adapters import shapes
from matta_adapters.shapes import makes, reads
from matta_adapters.skeleton import skeleton, some
from matta_adapters.stock import CausalLM, empty
from matta_cli.adapter import Axis, Sizes, Slice, Source
from matta_cli.errors import MattaError

_WRITERS = ("attn.c_proj", "mlp.c_proj")  # what adds to the residual stream
_LINEAR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
_NORMS = (".ln_1", ".ln_2", "ln_f")
_GELU = "gelu_new"  # of a GPT-2 whose configuration does not say
_END = {50257: 50256}  # <|endoftext|> of GPT-2's own vocabulary; that of another is not known


class GPT2(CausalLM):
    """Any ``GPT2LMHeadModel``: a transformers folder, a bare state dict, or an opened module."""

    name = "gpt2"
    classes = {"gpt2": "GPT2LMHeadModel"}
    kind = "a GPT-2 of transformers"
    tensors, bodies = ("h.0.attn.c_attn.weight",), ("transformer.", "")
    refused = {
        "add_cross_attention": "has cross-attention (add_cross_attention), which matta cannot nest"
    }
    embedding = "transformer.wte.weight"
    old = re.compile(r"\.attn\.(bias|masked_bias)$")  # causal masks

    def axes(self, model: Any) -> list[Axis]:
        """mlp.I, heads.I (in channels, by whole heads), hidden (in steps of a head), depth."""
        body, axes = model.transformer, []
        step = body.h[0].attn.head_dim
        stream = makes(model, "transformer", "wte", "wpe")
        for i, block in enumerate(body.h):
            path = f"transformer.h.{i}"
            mlp = (*makes(model, path, "mlp.c_fc"), *reads(model, path, "mlp.c_proj"))
            heads = makes(model, path, "attn.c_attn", blocks=3)
            heads += reads(model, path, "attn.c_proj")
            axes.append(Axis(f"mlp.{i}", block.mlp.c_fc.weight.shape[1], mlp))
            axes.append(Axis(f"heads.{i}", _channels(block), tuple(heads), block.attn.head_dim))
            written = makes(model, path, *_WRITERS)
            stream += makes(model, path, "ln_1", "ln_2")
            stream += reads(model, path, "attn.c_attn", "mlp.c_fc")
            stream += [*written[::2], *written[1::2]]  # the weights, then the biases
        stream += makes(model, "transformer", "ln_f")
        if model.lm_head.weight is not body.wte.weight:
            stream.append(Slice("lm_head.weight", 1, outgoing=True))
        axes.append(Axis("hidden", body.wte.weight.shape[1], tuple(stream), step))
        if not model.config.scale_attn_by_inverse_layer_idx:
            # Else a block's number is part of what it computes.
            added = [Slice(f"{name}.{part}", 0) for name in _WRITERS for part in ("weight", "bias")]
            axes.append(Axis("depth", len(body.h), tuple(added), layers="transformer.h"))
        return axes

    def build(self, model: nn.Module, sizes: Sizes) -> nn.Module:
        student = skeleton(self, model, sizes)
        config, body = student.config, student.transformer
        for i, block in enumerate(body.h):
            block.attn.embed_dim = block.attn.split_size = _channels(block)
            block.attn.num_heads = block.attn.split_size // block.attn.head_dim
            block.attn.layer_idx = i
        config.n_embd = body.embed_dim = body.wte.weight.shape[1]
        config.n_layer, config.n_head = len(body.h), body.h[0].attn.num_heads
        widths = set(_widths(student))
        if len(widths) == 1 and widths != {config.n_inner or 4 * config.n_embd}:
            (config.n_inner,) = widths
        return student

    def unsupported(self, model: Any) -> str:
        kind, body = "a transformers GPT-2", model.transformer
        heads = {_channels(block) for block in body.h}
        uneven = shapes.one_for_all(kind, "n_inner", _widths(model))
        return uneven or shapes.heads_as_wide(kind, heads, body.wte.weight.shape[1])

    def _from_tensors(self, tensors: Mapping[str, Tensor], source: Source) -> Any:
        tensors, turned = _as_conv1d(tensors)
        if turned:
            form = source.config.get("activation_function", _GELU)
            self.notes.append(
                "The linear layers were stored as [out, in], as nanoGPT has them, and are turned; "
                f"the activation is {form} (nanoGPT's own is gelu; --config says another)."
            )
        return super()._from_tensors(tensors, source)

    def _empty(self, named: Mapping[str, Tensor], untied: bool, source: Source) -> Any:
        from transformers import GPT2Config, GPT2LMHeadModel

        def config() -> Any:
            return GPT2Config(**(source.config or self._told(named, untied, source.name)))

        failing = f"{source.name!r}: transformers cannot build a model from its --config"
        return empty(config, GPT2LMHeadModel, failing)

    def _told(self, named: Mapping[str, Tensor], untied: bool, name: str) -> dict[str, Any]:
        """The configuration that the shapes tell; what they do not tell goes into the notes."""
        keys = ("wte", "wpe", "h.0.mlp.c_fc")
        found = {key: named.get(f"transformer.{key}.weight") for key in keys}
        needed = {key: t.shape for key, t in found.items() if t is not None and t.ndim == 2}
        absent = [f"{key}.weight" for key in keys if key not in needed]
        if absent:
            raise MattaError(
                f"{name!r} looks like a GPT-2, but lacks matrices of these names: {some(absent)}."
            )
        (vocab, width), (positions, _), (_, inner) = needed.values()
        heads, layers = shapes.heads_of(width, name), shapes.count_layers(named, "transformer.h")
        told = f"MLP {inner}, vocabulary {vocab}, {positions} positions, GELU (tanh form) assumed"
        self.notes.append(shapes.read_off(layers, width, told))
        return {
            "vocab_size": vocab,
            "n_positions": positions,
            "n_embd": width,
            "n_layer": layers,
            "n_head": heads,
            "n_inner": inner if inner != 4 * width else None,
            "tie_word_embeddings": not untied,
            "bos_token_id": _END.get(vocab),
            "eos_token_id": _END.get(vocab),
        }


def _as_conv1d(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """GPT-2's tensors as transformers has them, and whether they were turned for that.

    Its linear layers keep their weights as [in, out], those of nanoGPT as [out, in]: the fused
    q, k, v, three times as wide as they are long, tell. nanoGPT may leave out biases, which are
    then zeros.
    """
    first = next((t for k, t in tensors.items() if k.endswith("h.0.attn.c_attn.weight")), None)
    if first is None or first.dim() != 2 or first.shape[0] != 3 * first.shape[1]:
        return dict(tensors), False
    named: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        layer, _, part = key.rpartition(".")
        linear = part == "weight" and layer.endswith(_LINEAR) and tensor.dim() == 2
        named[key] = tensor.T.contiguous() if linear else tensor
        if part == "weight" and layer.endswith((*_LINEAR, *_NORMS)):
            missing = tensor.new_zeros(tensor.shape[0])
            named[f"{layer}.bias"] = tensors.get(f"{layer}.bias", missing)
    return named, True


def _channels(block: Any) -> int:
    """How many channels a block's heads have together."""
    return block.attn.c_proj.weight.shape[0]


def _widths(model: Any) -> list[int]:
    """The hidden units of each block's MLP."""
    return [block.mlp.c_fc.weight.shape[1] for block in model.transformer.h]
