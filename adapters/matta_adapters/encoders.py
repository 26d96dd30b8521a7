"""Encoders of transformers, whose differences are a table: BERT and its relatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from matta_adapters import shapes
from matta_adapters.encoder import Encoder
from matta_adapters.shapes import makes, reads
from matta_adapters.skeleton import some
from matta_cli.adapter import Axis, Slice
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


class Roberta(Encoder):
    """RoBERTa, XLM-R, CamemBERT, alone or with a head that classifies texts or tokens."""

    name = "roberta"
    classes = {
        "roberta": "RobertaModel",
        "xlm-roberta": "XLMRobertaModel",
        "camembert": "CamembertModel",
    }
    kind = "a RoBERTa, XLM-R or CamemBERT encoder of transformers"
    prefix = "roberta."
    bodies = ("roberta.",)  # without it their names are a BERT's
    tensors = Bert.tensors


class Electra(Encoder):
    """ELECTRA's discriminator, alone or with a head that classifies texts or tokens."""

    name = "electra"
    classes = {"electra": "ElectraModel"}
    kind = "an ELECTRA encoder of transformers"
    prefix = "electra."
    bodies = ("electra.",)  # without it their names are a BERT's
    tensors = Bert.tensors
    own = ("embeddings", "embeddings_project", "encoder")

    def _stream(self, model: Any) -> tuple[str, ...]:
        narrow = hasattr(model.base_model, "embeddings_project")
        return ("embeddings_project",) if narrow else self.stream

    def _repeat(self, student: Any) -> None:
        if not hasattr(student.base_model, "embeddings_project"):
            student.config.embedding_size = student.config.hidden_size


class DistilBert(Encoder):
    """DistilBERT, alone or with a head that classifies texts or tokens."""

    name = "distilbert"
    classes = {"distilbert": "DistilBertModel"}
    kind = "a DistilBERT encoder of transformers"
    prefix = "distilbert."
    bodies = ("distilbert.", "")
    tensors = ("transformer.layer.0.attention.q_lin.weight", "transformer.layer.0.ffn.lin1.weight")
    own = ("embeddings", "transformer")
    layers, attention = "transformer.layer", "attention"
    qkv = tuple(f"attention.{part}_lin" for part in "qkv")
    out = "attention.out_lin"
    up, down = ("ffn.lin1",), "ffn.lin2"
    norms = ("sa_layer_norm", "output_layer_norm")
    inner = "hidden_dim"

    def _fit(self, attention: Any, heads: int) -> None:
        attention.n_heads, attention.dim = heads, heads * attention.attention_head_size


class MPNet(Encoder):
    """MPNet, alone or with a head that classifies texts or tokens."""

    name = "mpnet"
    classes = {"mpnet": "MPNetModel"}
    kind = "an MPNet encoder of transformers"
    prefix = "mpnet."
    bodies = ("mpnet.", "")
    tensors = ("encoder.layer.0.attention.attn.q.weight", "encoder.relative_attention_bias.weight")
    attention = "attention.attn"
    qkv = tuple(f"attention.attn.{part}" for part in "qkv")
    out = "attention.attn.o"
    norms = ("attention.LayerNorm", "output.LayerNorm")

    def _heads(self, model: Any) -> list[Axis]:
        """One axis for all blocks, counted in heads: all blocks share each head's relative bias."""
        channels = self._channels(model)
        bias = f"{self._body(model)}encoder.relative_attention_bias.weight"
        slices = [Slice(bias, 1)]
        for path in self._paths(model):
            slices += makes(model, path, *self.qkv, unit=channels)
            slices += reads(model, path, self.out, unit=channels)
        return [Axis("heads", model.get_parameter(bias).shape[1], tuple(slices))]

    def _repeat(self, student: Any) -> None:
        student.base_model.encoder.n_heads = self._made(student)[0] // self._channels(student)


class ModernBert(Encoder):
    """ModernBERT, alone or with a head that classifies texts or tokens."""

    name = "modernbert"
    classes = {"modernbert": "ModernBertModel"}
    kind = "a ModernBERT encoder of transformers"
    prefix = "model."
    bodies = ("model.", "")
    tensors = ("embeddings.tok_embeddings.weight", "layers.0.attn.Wqkv.weight")
    own = ("embeddings", "layers", "final_norm")
    stream = ("embeddings.tok_embeddings", "embeddings.norm", "final_norm")
    layers, attention = "layers", "attn"
    qkv, out = ("attn.Wqkv",), "attn.Wo"
    up, down = ("mlp.Wi",), "mlp.Wo"
    norms = ("attn_norm", "mlp_norm")
    alike = False  # a block's number says how far it attends, and the first has no norm

    def _channels(self, model: Any) -> int:
        return int(model.get_submodule(f"{self._paths(model)[0]}.attn").head_dim)

    def _fit(self, attention: Any, heads: int) -> None:
        """It counts its heads by its tensors."""


class Deberta(Encoder):
    """DeBERTa-v2 and -v3, alone or with a head that classifies texts or tokens."""

    name = "deberta"
    classes = {"deberta-v2": "DebertaV2Model"}
    kind = "a DeBERTa-v2 or -v3 encoder of transformers"
    prefix = "deberta."
    bodies = ("deberta.", "")
    tensors = (
        "embeddings.word_embeddings.weight",
        "encoder.layer.0.attention.self.query_proj.weight",
    )
    own = ("embeddings", "encoder")
    stream = (*Encoder.stream, "encoder.rel_embeddings", "encoder.LayerNorm")
    qkv = tuple(
        f"attention.self.{part}_proj" for part in ("query", "key", "value", "pos_key", "pos_query")
    )

    def _stream(self, model: Any) -> tuple[str, ...]:
        if model.base_model.embeddings.embed_proj is None:
            return self.stream
        return ("embeddings.embed_proj", "embeddings.LayerNorm", *self.stream[-2:])

    def _hidden(self, model: Any) -> Axis:
        """The stream also goes through a convolution beside the first block, where there is one."""
        axis = super()._hidden(model)
        if model.base_model.encoder.conv is None:
            return axis
        path = f"{self._body(model)}encoder.conv"
        conv = makes(model, path, "conv", "LayerNorm") + reads(model, path, "conv")
        return Axis(axis.name, axis.size, (*axis.slices, *conv), axis.step)

    def _repeat(self, student: Any) -> None:
        config = student.config
        config.pooler_hidden_size = config.hidden_size
        if hasattr(config, "embedding_size") and student.base_model.embeddings.embed_proj is None:
            config.embedding_size = config.hidden_size
