"""BERT encoders as Hugging Face transformers has them (``BertModel``: BERT, MiniLM, BGE, E5), alone
or in the folder of sentence-transformers. What nests: the hidden units of each block's MLP, the
heads of each block, and the blocks. Not the
residual stream: its channels, in their order, are the embedding.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from matta_adapters.skeleton import fill, read_config, skeleton, some
from matta_adapters.stock import built, opened, quiet
from matta_cli.adapter import Adapter, Axis, Sizes, Slice, Source
from matta_cli.errors import MattaError

# What checkpoints carry besides the encoder: heads of other tasks, and a constant that old versions
# saved as a tensor
_OTHERS = re.compile(r"(cls|classifier|qa_outputs)\.|embeddings\.position_ids$")
# the modules of sentence-transformers after which an encoder is all there is
_STEPS = ("Transformer", "Pooling", "Normalize")


class Bert(Adapter):
    """Any ``BertModel``: a folder of transformers or sentence-transformers, a bare state dict, or
    an opened module.

    The pooling that a folder names is kept in the model's configuration (``sentence_pooling``)
    unless it is the mean.
    """

    name = "bert"
    task = "sentence_embedding"
    default = ("mlp",)
    loader = "transformers.AutoModel.from_pretrained({folder})"

    def matches(self, source: Source) -> bool:
        if source.folder is not None:
            return read_config(source.folder).get("model_type") == "bert"
        if source.tensors is not None:
            names = {key.removeprefix("bert.") for key in source.tensors}
            return {
                "embeddings.word_embeddings.weight",
                "encoder.layer.0.attention.self.query.weight",
            } <= names
        return source.module is not None and any(
            c.__name__ == "BertModel" for c in type(source.module).__mro__
        )

    def load(self, source: Source) -> nn.Module:
        self.notes = []
        if not self.matches(source):
            raise MattaError(
                f"{source.name!r} is not a BERT encoder: no model_type 'bert' and no tensors of that form."
            )
        if source.folder is not None:
            model: Any = self._from_folder(source.folder, source)
        elif source.tensors is not None:
            model = self._from_tensors(source.tensors, source)
        else:
            model = copy.deepcopy(source.module)
        if model.config.is_decoder or model.config.add_cross_attention:
            raise MattaError(
                f"{source.name!r} is a BERT decoder (is_decoder, add_cross_attention), which embeds no sentences."
            )
        return model.cpu().float().eval()

    def axes(self, model: Any) -> list[Axis]:
        """mlp.I, heads.I (in channels, whole heads at a time), depth."""
        mlps, heads = [], []
        for i, layer in enumerate(model.encoder.layer):
            path = f"encoder.layer.{i}"
            slices = (
                Slice(f"{path}.intermediate.dense.weight", 0),
                Slice(f"{path}.intermediate.dense.bias", 0),
                Slice(f"{path}.output.dense.weight", 1, outgoing=True),
            )
            mlps.append(Axis(f"mlp.{i}", layer.intermediate.dense.weight.shape[0], slices))
            own, out = (
                layer.attention.self,
                Slice(f"{path}.attention.output.dense.weight", 1, outgoing=True),
            )
            parts = [f"{path}.attention.self.{part}" for part in ("query", "key", "value")]
            inner = [
                Slice(f"{part}.{tensor}", 0) for part in parts for tensor in ("weight", "bias")
            ]
            heads.append(
                Axis(
                    f"heads.{i}", own.query.weight.shape[0], (*inner, out), own.attention_head_size
                )
            )
        # a block's norms come after the sum, so that no block can start as the identity
        return [*mlps, *heads, Axis("depth", len(model.encoder.layer), (), layers="encoder.layer")]

    def build(self, model: nn.Module, sizes: Sizes) -> nn.Module:
        student = skeleton(self, model, sizes)
        for layer in student.encoder.layer:
            attention = layer.attention.self
            attention.all_head_size = attention.query.weight.shape[0]
            attention.num_attention_heads = attention.all_head_size // attention.attention_head_size
        student.config.num_hidden_layers = len(student.encoder.layer)
        widths = _widths(student)
        if len(widths) == 1:
            (student.config.intermediate_size,) = widths
        return student

    def unsupported(self, model: Any) -> str:
        if len(_widths(model)) > 1:
            shown = ", ".join(
                str(layer.intermediate.dense.weight.shape[0]) for layer in model.encoder.layer
            )
            return f"a transformers BERT has one intermediate_size for all blocks, which per-layer MLP widths ({shown}) are not"
        heads = [layer.attention.self.num_attention_heads for layer in model.encoder.layer]
        if set(heads) != {model.config.num_attention_heads}:
            return (
                f"a transformers BERT that is {model.config.hidden_size} wide has {model.config.num_attention_heads} heads in "
                f"every block, not {', '.join(map(str, heads))}: its heads share out the width"
            )
        return ""

    def save(self, model: Any, folder: Path) -> None:
        with quiet():
            model.save_pretrained(folder)

    def _from_folder(self, folder: Path, source: Source) -> nn.Module:
        from transformers import BertModel

        name = source.name
        pooling = self._pooling(folder, name)
        model, report = opened(BertModel, source)
        missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
        unexpected = sorted(key for key in report["unexpected_keys"] if not _OTHERS.search(key))
        wrong = [f"{key} is missing" for key in missing] + [
            f"{key} is not a BERT's" for key in unexpected
        ]
        if wrong:
            raise MattaError(f"{name!r} does not fit a BERT encoder: {some(wrong)}.")
        if any(key.startswith("pooler.") for key in report["missing_keys"]):
            model.pooler = None  # transformers made up random weights for it
        heads = sorted(
            {key.partition(".")[0] for key in report["unexpected_keys"]}
            & {"cls", "classifier", "qa_outputs"}
        )
        if heads:
            self.notes.append(
                f"The head of another task ({', '.join(heads)}) is left out: the encoder alone is nested."
            )
        if pooling:
            model.config.sentence_pooling = pooling
        return model

    def _pooling(self, folder: Path, name: str) -> str:
        """What makes one embedding of a sentence's tokens: ``cls``, or empty for the mean.

        Raises ``MattaError`` where a folder of sentence-transformers does more than an encoder,
        such pooling and a norm.
        """
        known = str(read_config(folder).get("sentence_pooling", ""))
        try:
            steps = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
            paths = {step["type"].rpartition(".")[2]: step["path"] for step in steps}
        except OSError:
            if not known:
                self.notes.append(
                    "An embedding is the mean over a sentence's tokens (assumed: there is no 1_Pooling)."
                )
            return known
        except (ValueError, KeyError, TypeError, AttributeError):
            raise MattaError(
                f"{str(folder / 'modules.json')!r} is damaged: it lists no modules."
            ) from None
        others = sorted(paths.keys() - set(_STEPS))
        if others:
            raise MattaError(
                f"{name!r} ends in {', '.join(others)}, which the bert adapter does not know: only {_STEPS}."
            )
        config = read_config(folder / paths["Pooling"]) if "Pooling" in paths else {}
        mode = config.get("pooling_mode") or [
            key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
            for key, used in config.items()
            if key.startswith("pooling_mode_") and used
        ]
        mode = mode if isinstance(mode, str) else "+".join(mode)
        if mode not in ("", "mean", "cls"):
            raise MattaError(
                f"{name!r} pools by {mode}, which is not supported: only the mean over tokens, or the first one."
            )
        return "cls" if mode == "cls" else ""

    def _from_tensors(self, tensors: Mapping[str, Tensor], source: Source) -> nn.Module:
        from transformers import BertConfig, BertModel

        named = {
            key.removeprefix("bert."): tensor
            for key, tensor in tensors.items()
            if not _OTHERS.search(key)
        }
        _, model = built(
            source,
            lambda: (
                BertConfig(**source.config) if source.config else self._config(named, source.name)
            ),
            lambda config: BertModel(config, add_pooling_layer="pooler.dense.weight" in named),
        )
        if source.sizes:
            return fill(self.build(model, source.sizes), named, source.name)
        sizes = {}
        for axis in self.axes(model):
            if axis.layers:
                continue
            weight = named.get(axis.slices[0].tensor)
            sizes[axis.name] = axis.size if weight is None else weight.shape[0]
        return fill(self.build(model, sizes), named, source.name)

    def _config(self, named: Mapping[str, Tensor], name: str) -> Any:
        """The configuration that the shapes tell; what they do not tell goes into the notes."""
        from transformers import BertConfig

        embeddings = [
            named.get(f"embeddings.{part}_embeddings.weight")
            for part in ("word", "position", "token_type")
        ]
        inner = named.get("encoder.layer.0.intermediate.dense.weight")
        if inner is None or any(tensor is None for tensor in embeddings):
            raise MattaError(
                f"{name!r} looks like a BERT, but its embeddings or its first MLP are missing."
            )
        (vocab, width), (positions, _), (types, _) = (
            tensor.shape for tensor in embeddings if tensor is not None
        )
        if width % 64:
            raise MattaError(
                f"{name!r} is {width} wide, which is no multiple of 64, so its number of heads cannot be told from the "
                "tensors: pass its config.json with --config."
            )
        layers = 1 + max(
            int(m.group(1)) for key in named if (m := re.match(r"encoder\.layer\.(\d+)\.", key))
        )
        self.notes.append(
            f"Read off the tensors: {layers} layers, {width} wide, {width // 64} heads (assumed: 64 per head), MLP "
            f"{inner.shape[0]}, vocabulary {vocab}, {positions} positions, GELU and mean pooling assumed. If that is wrong, "
            "pass --config config.json."
        )
        return BertConfig(
            vocab_size=vocab,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            intermediate_size=inner.shape[0],
            max_position_embeddings=positions,
            type_vocab_size=types,
        )


def _widths(model: Any) -> set[int]:
    return {layer.intermediate.dense.weight.shape[0] for layer in model.encoder.layer}
