"""Encoders of transformers, whose differences are a table: BERT and its relatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from matta_adapters import shapes
from matta_adapters.encoder import Encoder
from matta_adapters.skeleton import some
from matta_cli.errors import MattaError


class Bert(Encoder):
    """Any ``BertModel`` (BERT, MiniLM, BGE, E5), alone or with a head that classifies texts or
    tokens: a folder of transformers or sentence-transformers, a state dict, or an opened module.
    """

    name = "bert"
    classes = {"bert": "BertModel"}
    kind = "a BERT encoder of transformers"
    prefix = "bert."
    bodies = ("bert.", "")
    tensors = ("embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight")

    def _told(self, named: Mapping[str, Tensor], name: str) -> dict[str, Any]:
        """The configuration that the shapes tell; what they do not tell goes into the notes."""
        named = {key.removeprefix(self.prefix): tensor for key, tensor in named.items()}
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
        classifier = named.get("classifier.weight")
        labels = {} if classifier is None else {"num_labels": len(classifier)}
        told += ", GELU assumed" if labels else ", GELU and mean pooling assumed"
        self.notes.append(shapes.read_off(layers, width, told))
        return labels | {
            "vocab_size": vocab,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": inner.shape[0],
            "max_position_embeddings": positions,
            "type_vocab_size": types,
        }
