"""BERT encoders as Hugging Face transformers has them (``BertModel``: BERT, MiniLM, BGE, E5).

They come alone or in the folder of sentence-transformers. What nests: the hidden units of each
block's MLP, the heads of each block, and the blocks. Not the residual stream: its channels, in
their order, are the embedding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from matta_adapters import shapes
from matta_adapters.shapes import makes, reads
from matta_adapters.skeleton import fill, read_config, skeleton, some
from matta_adapters.stock import Transformers, empty, opened
from matta_cli.adapter import Axis, Sizes, Source
from matta_cli.errors import MattaError

# What checkpoints carry besides the encoder: a constant of old versions, and the heads of tasks.
_CONSTANT = re.compile(r"embeddings\.position_ids$")
_HEAD = re.compile(r"(?!(bert|embeddings|encoder|pooler)\.)(\w+)\.")
# The modules of sentence-transformers after which an encoder is all there is.
_STEPS = ("Transformer", "Pooling", "Normalize")
_QKV = tuple(f"attention.self.{part}" for part in ("query", "key", "value"))
_DECODER = "is a BERT decoder ({}), which embeds no sentences"


class Bert(Transformers):
    """Any ``BertModel``: a folder of transformers or sentence-transformers, a bare state dict, or
    an opened module.

    The pooling that a folder names is kept in the model's configuration (``sentence_pooling``)
    unless it is the mean.
    """

    name = "bert"
    task = "sentence_embedding"
    loader = "transformers.AutoModel.from_pretrained({folder})"
    classes = {"bert": "BertModel"}
    kind = "a BERT encoder of transformers"
    tensors = ("embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight")
    bodies = ("bert.", "")
    refused = {key: _DECODER.format(key) for key in ("is_decoder", "add_cross_attention")}

    def axes(self, model: Any) -> list[Axis]:
        """mlp.I, heads.I (in channels, whole heads at a time), depth."""
        mlps, heads, layers = [], [], model.encoder.layer
        for i, layer in enumerate(layers):
            path, attention = f"encoder.layer.{i}", layer.attention.self
            mlp = makes(model, path, "intermediate.dense") + reads(model, path, "output.dense")
            mlps.append(Axis(f"mlp.{i}", layer.intermediate.dense.weight.shape[0], tuple(mlp)))
            inner = makes(model, path, *_QKV) + reads(model, path, "attention.output.dense")
            size, step = attention.query.weight.shape[0], attention.attention_head_size
            heads.append(Axis(f"heads.{i}", size, tuple(inner), step))
        # A block's norms come after the sum, so that no block can start as the identity.
        return [*mlps, *heads, Axis("depth", len(layers), (), layers="encoder.layer")]

    def build(self, model: nn.Module, sizes: Sizes) -> nn.Module:
        student = skeleton(self, model, sizes)
        for layer in student.encoder.layer:
            attention = layer.attention.self
            attention.all_head_size = attention.query.weight.shape[0]
            attention.num_attention_heads = attention.all_head_size // attention.attention_head_size
        student.config.num_hidden_layers = len(student.encoder.layer)
        widths = set(_widths(student))
        if len(widths) == 1:
            (student.config.intermediate_size,) = widths
        return student

    def unsupported(self, model: Any) -> str:
        config = model.config
        if uneven := shapes.one_for_all("a transformers BERT", "intermediate_size", _widths(model)):
            return uneven
        heads = [layer.attention.self.num_attention_heads for layer in model.encoder.layer]
        if set(heads) != {config.num_attention_heads}:
            return (
                f"a transformers BERT that is {config.hidden_size} wide has "
                f"{config.num_attention_heads} heads in every block, not "
                f"{', '.join(map(str, heads))}: its heads share out the width"
            )
        return ""

    def _from_folder(self, folder: Path, source: Source) -> Any:
        from transformers import BertModel

        pooling = self._pooling(folder, source.name)
        words = ("a BERT encoder", "a BERT's")
        others = re.compile(f"{_HEAD.pattern}|{_CONSTANT.pattern}")
        model, missing, unexpected = opened(BertModel, source, *words, others, ("pooler.",))
        if missing:
            model.pooler = None  # transformers made up random weights for it
        self._leave_out(unexpected, source)
        if pooling:
            model.config.sentence_pooling = pooling
        return model

    def _leave_out(self, names: Iterable[str], source: Source) -> None:
        """Note which heads are left out. Raises ``MattaError`` where the user did not ask for it.

        names: of the tensors of the source.
        """
        self.dropped = sorted({match[2] for name in names if (match := _HEAD.match(name))})
        if not self.dropped:
            return
        heads = ", ".join(self.dropped)
        if not source.drop_head:
            raise MattaError(
                f"{source.name!r} is more than an encoder: it has a head ({heads}), and the bert "
                "adapter nests encoders of sentence embeddings alone. To leave the head out, pass "
                "--drop-head."
            )
        self.notes.append(f"The head ({heads}) is left out: the encoder alone is nested.")

    def _pooling(self, folder: Path, name: str) -> str:
        """What makes one embedding of a sentence's tokens: ``cls``, or empty for the mean.

        Raises ``MattaError`` where a folder of sentence-transformers does more than an encoder,
        such pooling and a norm.
        """
        known = str(read_config(folder).get("sentence_pooling", ""))
        listed = folder / "modules.json"
        try:
            steps = json.loads(listed.read_text(encoding="utf-8"))
            paths = {step["type"].rpartition(".")[2]: step["path"] for step in steps}
        except OSError:
            if not known:
                self.notes.append(
                    "An embedding is the mean over a sentence's tokens "
                    "(assumed: there is no modules.json)."
                )
            return known
        except (ValueError, KeyError, TypeError, AttributeError):
            raise MattaError(f"{str(listed)!r} is damaged: it lists no modules.") from None
        if others := sorted(paths.keys() - set(_STEPS)):
            raise MattaError(
                f"{name!r} ends in {', '.join(others)}, which the bert adapter does not know: "
                f"only {', '.join(_STEPS)}."
            )
        mode = _mode(read_config(folder / paths["Pooling"]) if "Pooling" in paths else {})
        if mode not in ("", "mean", "cls"):
            raise MattaError(
                f"{name!r} pools by {mode}, which is not supported: "
                "only the mean over tokens, or the first one."
            )
        return "cls" if mode == "cls" else ""

    def _from_tensors(self, tensors: Mapping[str, Tensor], source: Source) -> Any:
        from transformers import BertConfig, BertModel

        self._leave_out(tensors, source)
        known = (key for key in tensors if not _HEAD.match(key) and not _CONSTANT.search(key))
        kept = {key: tensors[key] for key in known}
        named = {key.removeprefix("bert."): tensor for key, tensor in kept.items()}
        pooler = "pooler.dense.weight" in named
        model = empty(
            lambda: BertConfig(**(source.config or self._told(named, source.name))),
            lambda config: BertModel(config, add_pooling_layer=pooler),
            f"{source.name!r}: transformers cannot build a model from its --config",
        )
        sizes = source.sizes or shapes.stored_sizes(self.axes(model), named, ("mlp.", "heads."))
        return fill(self.build(model, sizes), named, source.name)

    def _told(self, named: Mapping[str, Tensor], name: str) -> dict[str, Any]:
        """The configuration that the shapes tell; what they do not tell goes into the notes."""
        keys = [f"embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type")]
        keys.append("encoder.layer.0.intermediate.dense")
        found = {key: named.get(f"{key}.weight") for key in keys}
        needed = {key: t for key, t in found.items() if t is not None and t.ndim == 2}
        if absent := [f"{key}.weight" for key in keys if key not in needed]:
            raise MattaError(
                f"{name!r} looks like a BERT, but lacks matrices of these names: {some(absent)}."
            )
        inner = needed[keys.pop()]
        (vocab, width), (positions, _), (types, _) = (needed[key].shape for key in keys)
        heads, layers = shapes.heads_of(width, name), shapes.count_layers(named, "encoder.layer")
        told = f"MLP {inner.shape[0]}, vocabulary {vocab}, {positions} positions"
        told += ", GELU and mean pooling assumed"
        self.notes.append(shapes.read_off(layers, width, told))
        return {
            "vocab_size": vocab,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": inner.shape[0],
            "max_position_embeddings": positions,
            "type_vocab_size": types,
        }


def _mode(config: Mapping[str, Any]) -> str:
    """What a Pooling of sentence-transformers does; several modes with a plus between them."""
    modes = config.get("pooling_mode") or [
        key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for key, used in config.items()
        if key.startswith("pooling_mode_") and used
    ]
    return modes if isinstance(modes, str) else "+".join(modes)


def _widths(model: Any) -> list[int]:
    """The hidden units of each block's MLP."""
    return [layer.intermediate.dense.weight.shape[0] for layer in model.encoder.layer]
