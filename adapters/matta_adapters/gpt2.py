"""GPT-2 as Hugging Face transformers has it (``GPT2LMHeadModel``).

What nests: the hidden units of each block's MLP, the heads of each block, the residual stream, and
the blocks.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matta_adapters.skeleton import fill, read_config, skeleton, some
from matta_adapters.stock import built, from_folder, quiet
from matta_cli.adapter import Adapter, Axis, Sizes, Slice, Source
from matta_cli.errors import MattaError

# causal masks that old checkpoints carry as tensors
_OLD_BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$")


class GPT2(Adapter):
    """Any ``GPT2LMHeadModel``: a transformers folder, a bare state dict, or an opened module."""

    name = "gpt2"
    task = "causal_lm"
    default = ("mlp",)
    loader = "transformers.AutoModelForCausalLM.from_pretrained({folder})"

    def matches(self, source: Source) -> bool:
        if source.folder is not None:
            return read_config(source.folder).get("model_type") == "gpt2"
        if source.tensors is not None:
            return any(
                re.fullmatch(r"(transformer\.)?h\.0\.attn\.c_attn\.weight", key)
                for key in source.tensors
            )
        return source.module is not None and any(
            c.__name__ == "GPT2LMHeadModel" for c in type(source.module).__mro__
        )

    def load(self, source: Source) -> nn.Module:
        self.notes = []
        if not self.matches(source):
            raise MattaError(
                f"{source.name!r} is not a GPT-2: no model_type 'gpt2' and no tensor h.0.attn.c_attn.weight."
            )
        if source.folder is not None:
            from transformers import GPT2LMHeadModel

            model: Any = from_folder(GPT2LMHeadModel, source, _OLD_BUFFERS)
        elif source.tensors is not None:
            model = self._from_tensors(source.tensors, source)
        else:
            assert source.module is not None
            model = copy.deepcopy(source.module).cpu().float()
        if model.config.add_cross_attention:
            raise MattaError(
                f"{source.name!r} has cross-attention (add_cross_attention), which matta cannot nest."
            )
        return model.eval()

    def axes(self, model: Any) -> list[Axis]:
        """mlp.I, heads.I (in channels, whole heads at a time), hidden (in steps of a head), depth."""
        found, stream = [], [Slice("transformer.wte.weight", 1), Slice("transformer.wpe.weight", 1)]
        for i, block in enumerate(_blocks(model)):
            path = f"transformer.h.{i}"  # transformers' Conv1D keeps its weight as [in, out]
            mlp = (
                Slice(f"{path}.mlp.c_fc.weight", 1),
                Slice(f"{path}.mlp.c_fc.bias", 0),
                Slice(f"{path}.mlp.c_proj.weight", 0, outgoing=True),
            )
            heads = (
                Slice(f"{path}.attn.c_attn.weight", 1, blocks=3),
                Slice(f"{path}.attn.c_attn.bias", 0, blocks=3),
                Slice(f"{path}.attn.c_proj.weight", 0, outgoing=True),
            )
            found.append(Axis(f"mlp.{i}", block.mlp.c_fc.weight.shape[1], mlp))
            found.append(
                Axis(
                    f"heads.{i}", block.attn.c_proj.weight.shape[0], heads, step=block.attn.head_dim
                )
            )
            stream += [
                Slice(f"{path}.{norm}.{name}", 0)
                for norm in ("ln_1", "ln_2")
                for name in ("weight", "bias")
            ]
            stream += [
                Slice(f"{path}.{reader}.weight", 0, outgoing=True)
                for reader in ("attn.c_attn", "mlp.c_fc")
            ]
            stream += [
                Slice(f"{path}.{writer}.weight", 1) for writer in ("attn.c_proj", "mlp.c_proj")
            ]
            stream += [
                Slice(f"{path}.{writer}.bias", 0) for writer in ("attn.c_proj", "mlp.c_proj")
            ]
        stream += [Slice("transformer.ln_f.weight", 0), Slice("transformer.ln_f.bias", 0)]
        if model.lm_head.weight is not model.transformer.wte.weight:
            stream.append(Slice("lm_head.weight", 1, outgoing=True))
        width, attention = model.transformer.wte.weight.shape[1], _blocks(model)[0].attn
        found.append(Axis("hidden", width, tuple(stream), step=attention.head_dim))
        # else a block's number is part of what it computes
        if not model.config.scale_attn_by_inverse_layer_idx:
            writers = (
                "attn.c_proj.weight",
                "attn.c_proj.bias",
                "mlp.c_proj.weight",
                "mlp.c_proj.bias",
            )
            slices = tuple(Slice(name, 0) for name in writers)
            found.append(Axis("depth", len(_blocks(model)), slices, layers="transformer.h"))
        return found

    def build(self, model: nn.Module, sizes: Sizes) -> nn.Module:
        student = skeleton(self, model, sizes)
        config, attention = student.config, student.transformer.h[0].attn
        for i, block in enumerate(_blocks(student)):
            block.attn.embed_dim = block.attn.split_size = block.attn.c_proj.weight.shape[0]
            block.attn.num_heads = block.attn.split_size // block.attn.head_dim
            block.attn.layer_idx = i
        config.n_embd = student.transformer.embed_dim = student.transformer.wte.weight.shape[1]
        config.n_layer, config.n_head = (
            len(_blocks(student)),
            attention.c_proj.weight.shape[0] // attention.head_dim,
        )
        widths = _widths(student)
        if len(widths) == 1 and widths != {config.n_inner or 4 * config.n_embd}:
            (config.n_inner,) = widths
        return student

    def save(self, model: Any, folder: Path) -> None:
        with quiet():
            model.save_pretrained(folder)

    def unsupported(self, model: Any) -> str:
        if len(_widths(model)) > 1:
            widths = ", ".join(str(block.mlp.c_fc.weight.shape[1]) for block in _blocks(model))
            return f"a transformers GPT-2 has one n_inner for all blocks, which per-layer MLP widths ({widths}) are not"
        width = model.transformer.wte.weight.shape[1]
        heads = {block.attn.c_proj.weight.shape[0] for block in _blocks(model)}
        if heads != {width}:
            found = ", ".join(map(str, sorted(heads)))
            return f"a transformers GPT-2 has as many channels in its heads ({found}) as in its residual stream ({width})"
        return ""

    def _from_tensors(self, tensors: Mapping[str, Tensor], source: Source) -> nn.Module:
        from transformers import GPT2Config, GPT2LMHeadModel

        named = {}
        for key, tensor in tensors.items():
            if not _OLD_BUFFERS.search(key):
                named[
                    key if key.startswith(("transformer.", "lm_head.")) else f"transformer.{key}"
                ] = tensor
        wte = named.get("transformer.wte.weight")
        head = named.get("lm_head.weight")
        untied = (
            wte is not None
            and head is not None
            and (head.shape != wte.shape or not torch.equal(head, wte))
        )
        config, model = built(
            source,
            lambda: (
                GPT2Config(**source.config)
                if source.config
                else self._config(named, untied, source.name)
            ),
            GPT2LMHeadModel,
        )
        if config.tie_word_embeddings:
            if untied:
                raise MattaError(
                    f"{source.name!r} has a head of its own (lm_head.weight), but --config ties it to wte.weight."
                )
            if wte is not None:
                named["lm_head.weight"] = wte
        model.tie_weights()  # part of the initialisation that was skipped
        if source.sizes:
            return fill(self.build(model, source.sizes), named, source.name)
        fc = {i: named.get(f"transformer.h.{i}.mlp.c_fc.weight") for i in range(config.n_layer)}
        widths = {f"mlp.{i}": weight.shape[-1] for i, weight in fc.items() if weight is not None}
        if len(set(widths.values())) > 1:
            model = self.build(model, widths)
        return fill(model, named, source.name)

    def _config(self, named: Mapping[str, Tensor], untied: bool, name: str) -> Any:
        """The configuration that the shapes tell; what they do not tell goes into the notes."""
        from transformers import GPT2Config

        needed = {
            key: named.get(f"transformer.{key}.weight") for key in ("wte", "wpe", "h.0.mlp.c_fc")
        }
        absent = [
            f"{key}.weight" for key, tensor in needed.items() if tensor is None or tensor.ndim != 2
        ]
        if absent:
            raise MattaError(f"{name!r} looks like a GPT-2, but {some(absent)} is missing.")
        (vocab, width), (positions, _), (_, inner) = (
            tensor.shape for tensor in needed.values() if tensor is not None
        )
        if width % 64:
            raise MattaError(
                f"{name!r} is {width} wide, which is no multiple of 64, so its number of heads cannot be told from the "
                "tensors: pass its config.json with --config."
            )
        layers = 1 + max(
            int(m.group(1)) for key in named if (m := re.match(r"transformer\.h\.(\d+)\.", key))
        )
        self.notes.append(
            f"Read off the tensors: {layers} layers, {width} wide, {width // 64} heads (assumed: 64 per head), MLP {inner}, "
            f"vocabulary {vocab}, {positions} positions, GELU (tanh form) assumed. If that is wrong, pass --config config.json."
        )
        # GPT-2's <|endoftext|>; another vocabulary's is not known
        end = 50256 if vocab == 50257 else None
        return GPT2Config(
            vocab_size=vocab,
            n_positions=positions,
            n_embd=width,
            n_layer=layers,
            n_head=width // 64,
            n_inner=inner if inner != 4 * width else None,
            tie_word_embeddings=not untied,
            bos_token_id=end,
            eos_token_id=end,
        )


def _blocks(model: Any) -> Any:
    return model.transformer.h


def _widths(model: nn.Module) -> set[int]:
    return {block.mlp.c_fc.weight.shape[1] for block in _blocks(model)}
