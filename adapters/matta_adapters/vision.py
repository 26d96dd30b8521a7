"""Image classifiers of transformers, whose differences are a table: ViT, DeiT, BEiT, DINOv2,
SigLIP, CLIP.

What nests: the hidden units of each block's MLP, the heads of each block, the residual stream, and
the blocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from matta_adapters.blocks import Blocks
from matta_adapters.shapes import makes, one_for_all, reads, there
from matta_adapters.skeleton import fill, read_config, some
from matta_adapters.stock import opened
from matta_cli.adapter import Axis, Slice, Source
from matta_cli.errors import MattaError

_LARGEST = 64  # times that an MLP is wider than the stream
_EMBEDDINGS = ("embeddings.patch_embedding", "embeddings.position_embedding")
_CONSTANT = re.compile(r"\bposition_ids$")  # of old releases


class ImageClassifier(Blocks):
    """A classifier whose parts have the names that a subclass gives; its own are those of ViT.

    body: the encoder's path. enters: the modules in it that make the residual stream. tokens: its
    parameters that are part of the stream, and which dimension that is. classifiers: what makes the
    logits; classifier: how many times the stream lies in what each reads. unread: how the names
    begin of what no classifier reads: it is cut along, and not trained. fixed: whether images have
    the configuration's size; else they may have any. others: a pattern of what a checkpoint may
    have besides.
    """

    task = "image_classification"
    loader = "transformers.AutoModelForImageClassification.from_pretrained({folder})"

    body: str
    enters: tuple[str, ...] = ("embeddings.patch_embeddings.projection",)
    tokens: Mapping[str, int]
    classifiers: tuple[str, ...] = ("classifier",)
    classifier = 1
    unread: tuple[str, ...] = ()
    fixed = True
    others: str

    norms: tuple[str, ...] = ("layernorm_before", "layernorm_after")
    attention = "attention"
    qkv = tuple(f"attention.{part}_proj" for part in "qkv")
    out = "attention.o_proj"
    up = ("mlp.fc1",)
    down = "mlp.fc2"

    def load(self, source: Source) -> nn.Module:
        model: Any = super().load(source)
        if isinstance(model.get_submodule(self.classifiers[0]), nn.Identity):
            raise _headless(source.name)
        self._settle(model)
        own = self._config(model)
        size = own.image_size
        sides = (size, size) if isinstance(size, int) else tuple(size)
        shape = (own.num_channels, *sides)
        # as timm's models say it
        model.pretrained_cfg = {"input_size": shape, "fixed_input_size": self.fixed}
        return model

    def _settle(self, model: Any) -> None:
        """Keep what no classifier reads from being trained."""
        unread = tuple(f"{self.body}.{name}" for name in self.unread)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not (unread and name.startswith(unread)))

    def _from_folder(self, folder: Path, source: Source) -> Any:
        return self._opened(self._class(read_config(folder)["model_type"]), source)

    def _from_tensors(self, tensors: Mapping[str, Tensor], source: Source) -> Any:
        model = self._configured(source, "heads")
        if source.sizes:
            self._settle(model)
            return fill(self.build(model, source.sizes), tensors, source.name)
        return self._opened(type(model), source, model.config)

    def _opened(self, kind: Any, source: Source, config: Any = None) -> Any:
        """The model of a class of transformers. Raises ``MattaError`` where it has no head."""
        what, others = f"a {kind.__name__}", re.compile(self.others)
        heads = tuple(f"{name}." for name in self.classifiers)
        words = ("one of its tensors", others, heads, config)
        model, missing, unexpected = opened(kind, source, what, *words)
        if missing:
            raise _headless(source.name)
        left = [name for name in unexpected if not _CONSTANT.search(name)]
        if left:
            self.notes.append(f"What the classifier does not read is left out: {some(left)}.")
        return model

    def _enters(self, model: Any) -> list[Slice]:
        stream = makes(model, self.body, *self.enters)
        body = model.get_submodule(self.body)
        there = dict(body.named_parameters())
        return [
            *stream,
            *(Slice(f"{self.body}.{n}", dim) for n, dim in self.tokens.items() if n in there),
        ]

    def _head(self, model: Any) -> list[Slice]:
        return [
            Slice(f"{name}.weight", 1, blocks=self.classifier, outgoing=True)
            for name in self.classifiers
        ]


class ViT(ImageClassifier):
    """A ViT of transformers: a folder, a state dict with its config.json, or an opened module."""

    name = "vit_transformers"
    classes = {"vit": "ViTForImageClassification"}
    kind = "a ViT classifier of transformers"
    tensors: tuple[str, ...] = (
        "embeddings.position_embeddings",
        "embeddings.patch_embeddings.projection.weight",
    )
    others = r"^(vit\.)?pooler\."
    body, bodies = "vit", ("vit.",)
    layers, last_norm = "vit.layers", "vit.layernorm"
    tokens: Mapping[str, int] = {"embeddings.cls_token": 2, "embeddings.position_embeddings": 2}

    def _fit(self, student: Any) -> None:
        for block in student.get_submodule(self.layers):
            own = block.attention
            own.num_attention_heads = own.o_proj.weight.shape[1] // own.head_dim


class DeiT(ViT):
    """DeiT with one classifier, of the class token."""

    name = "deit"
    classes = {"deit": "DeiTForImageClassification"}
    kind = "a DeiT classifier of transformers"
    tensors = (*ViT.tensors, "embeddings.distillation_token")
    others = r"^(deit\.)?pooler\."
    body, bodies = "deit", ("deit.",)
    layers, last_norm = "deit.layers", "deit.layernorm"
    tokens = {**ViT.tokens, "embeddings.distillation_token": 2, "embeddings.mask_token": 2}
    unread = ("embeddings.mask_token",)

    def matches(self, source: Source) -> bool:
        """Both kinds of DeiT have one model type: classes and classifiers tell them apart."""
        if source.folder is not None:
            named = read_config(source.folder).get("architectures") or ()
            two = "DeiTForImageClassificationWithTeacher" in named
        else:
            two = "cls_classifier.weight" in (source.tensors or ())
        fits = two == (len(self.classifiers) == 2) or source.module is not None
        return fits and super().matches(source)


class DeiTDistilled(DeiT):
    """DeiT as it was distilled: the mean of two classifiers, of two tokens."""

    name = "deit_distilled"
    classes = {"deit": "DeiTForImageClassificationWithTeacher"}
    kind = "a distilled DeiT classifier of transformers"
    classifiers = ("cls_classifier", "distillation_classifier")


class BEiT(ViT):
    """BEiT: blocks have LayerScales, and heads biases of their own by relative positions."""

    name = "beit"
    classes = {"beit": "BeitForImageClassification"}
    kind = "a BEiT classifier of transformers"
    tensors = ("embeddings.cls_token", "embeddings.patch_embeddings.projection.weight")
    refused = {
        **ViT.refused,
        "use_shared_relative_position_bias": "has one relative position bias for all blocks "
        "(use_shared_relative_position_bias), which is not supported: fine-tune it with one for "
        "each block (use_relative_position_bias), as BEiT's own classifiers are",
    }
    others = r"\brelative_position_index$"
    body, bodies = "beit", ("beit.",)
    layers, last_norm = "beit.layers", "beit.layernorm"
    tokens = {**ViT.tokens, "embeddings.mask_token": 2}
    unread = ("embeddings.mask_token",)
    norms = ("layernorm_before", "layernorm_after", "lambda_1", "lambda_2")

    def _heads(self, model: Any, path: str, block: Any, i: int) -> Axis:
        """Counted in heads, since the biases are."""
        channels, table = self._channels(block), "relative_position_bias"
        slices = makes(model, path, *self.qkv, unit=channels)
        slices += reads(model, path, self.out, unit=channels)
        if getattr(block, table) is not None:
            slices.append(Slice(f"{path}.{table}.{table}_table", 1))
        heads = block.get_submodule(self.out).weight.shape[1] // channels
        return Axis(f"heads.{i}", heads, tuple(slices))

    def _head(self, model: Any) -> list[Slice]:
        return [*super()._head(model), *there(model, f"{self.body}.pooler.layernorm")]

    def _fit(self, student: Any) -> None:
        super()._fit(student)
        _name_stages(student.config)


class Dinov2(ViT):
    """DINOv2, with registers or without: blocks have LayerScales, and perhaps a gated MLP."""

    name = "dinov2"
    classes = {"dinov2": "Dinov2ForImageClassification"}
    kind = "a DINOv2 classifier of transformers"
    others = "^$"
    body, bodies = "dinov2", ("dinov2.",)
    layers, last_norm = "dinov2.encoder.layer", "dinov2.layernorm"
    tokens = {**ViT.tokens, "embeddings.mask_token": 1, "embeddings.register_tokens": 2}
    unread = ("embeddings.mask_token",)
    norms = ("norm1", "norm2", "layer_scale1", "layer_scale2")
    classifier = 2  # of the class token, and of the mean over patches
    fixed = False  # it interpolates its positions
    inner = "mlp_ratio"

    def _mlp(self, block: Any) -> tuple[tuple[str, ...], str]:
        if hasattr(block.mlp, "gate_proj"):
            return ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"
        return super()._mlp(block)

    def _ratio(self, model: Any, width: int, units: int) -> int:
        """How many times an MLP of so many units is wider than the stream; 0: no whole number."""
        gated, ratios = bool(model.config.use_swiglu_ffn), range(1, _LARGEST + 1)
        return next((ratio for ratio in ratios if _units(width, ratio, gated) == units), 0)

    def _sizes(self, model: Any) -> dict[str, list[int]]:
        sizes = super()._sizes(model)
        [width] = sizes["hidden_size"]
        return {**sizes, self.inner: [self._ratio(model, width, n) for n in sizes[self.inner]]}

    def unsupported(self, model: Any) -> str:
        kind, sizes = f"a transformers {model.config.model_type}", super()._sizes(model)
        [width], widths = sizes["hidden_size"], sizes[self.inner]
        if uneven := one_for_all(kind, self.inner, widths):
            return uneven
        if not self._ratio(model, width, widths[0]):
            thirds = "two thirds of " if model.config.use_swiglu_ffn else ""
            wide = f"MLPs of {thirds}a whole multiple of that"
            return f"{kind} that is {width} wide has {wide}, not of {widths[0]}"
        return super().unsupported(model)

    def _fit(self, student: Any) -> None:
        super()._fit(student)
        _name_stages(student.config)


class Dinov2WithRegisters(Dinov2):
    """DINOv2 with registers."""

    name = "dinov2_with_registers"
    classes = {"dinov2_with_registers": "Dinov2WithRegistersForImageClassification"}
    kind = "a DINOv2 classifier with registers of transformers"
    body, bodies = "dinov2_with_registers", ("dinov2_with_registers.",)
    layers, last_norm = f"{body}.encoder.layer", f"{body}.layernorm"


class CLIP(ImageClassifier):
    """CLIP's vision tower with a classifier, which reads the mean over patches before any norm."""

    name = "clip"
    classes = {"clip": "CLIPForImageClassification"}
    kind = "a classifier on CLIP's vision tower, of transformers"
    tensors = ("embeddings.class_embedding", "embeddings.position_embedding.weight")
    others = r"^(text_model|text_projection|visual_projection|logit_scale)\b|\bposition_ids$"
    body, bodies = "vision_model", ("vision_model.",)
    layers = "vision_model.encoder.layers"
    enters: tuple[str, ...] = (*_EMBEDDINGS, "pre_layrnorm")
    tokens: Mapping[str, int] = {"embeddings.class_embedding": 0}
    last_norm = "vision_model.post_layernorm"
    unread: tuple[str, ...] = ("post_layernorm",)
    norms = ("layer_norm1", "layer_norm2")
    attention = "self_attn"
    qkv = tuple(f"self_attn.{part}_proj" for part in "qkv")
    out = "self_attn.out_proj"
    wide = True

    def _config(self, model: Any) -> Any:
        return model.config.vision_config

    def _fit(self, student: Any) -> None:
        width = self._config(student).hidden_size
        student.vision_model.embeddings.embed_dim = width
        for block in student.get_submodule(self.layers):
            own = block.self_attn
            own.embed_dim = own.out_proj.weight.shape[1]
            own.num_heads = own.embed_dim // own.head_dim


class SigLIP(CLIP):
    """SigLIP's vision tower with a classifier, which reads the mean over patches.

    The tower's own pooling is left out: the classifier does not read it.
    """

    name = "siglip"
    classes = {
        "siglip": "SiglipForImageClassification",
        "siglip2": "Siglip2ForImageClassification",  # which is refused by name
    }
    kind = "a classifier on SigLIP's vision tower, of transformers"
    tensors = ("embeddings.patch_embedding.bias", "embeddings.position_embedding.weight")
    others = r"^(text_model|logit_scale|logit_bias|vision_model\.head)\b|\bposition_ids$"
    enters = _EMBEDDINGS
    tokens = {}
    unread = ()

    def load(self, source: Source) -> nn.Module:
        config = read_config(source.folder) if source.folder is not None else source.config
        told = config.get("model_type") or getattr(source.module, "config", None)
        if "siglip2" in (told, getattr(told, "model_type", None)):
            raise MattaError(
                f"{source.name!r} is a SigLIP 2 that reads images of any shape (NaFlex), patch by "
                "patch, which is not supported: take one of a fixed size, such as "
                "google/siglip2-base-patch16-224, whose model_type is 'siglip'."
            )
        return super().load(source)

    def _settle(self, model: Any) -> None:
        super()._settle(model)
        tower = model.vision_model
        self._config(model).vision_use_head = tower.config.vision_use_head = False
        if tower.use_head:
            count = sum(parameter.numel() for parameter in tower.head.parameters())
            tower.use_head = False
            del tower.head
            self.notes.append(
                f"SigLIP's own pooling ({count:,} parameters) is left out: the classifier reads "
                "the mean over patches instead."
            )


def _name_stages(config: Any) -> None:
    """Name the stages of a backbone, one for each block."""
    config.stage_names = ["stem", *(f"stage{i + 1}" for i in range(config.num_hidden_layers))]
    config.set_output_features_output_indices(None, None)


def _units(width: int, ratio: int, gated: bool) -> int:
    """How wide the MLPs of a DINOv2 are: where they are gated, in whole eights."""
    return (int(width * ratio * 2 / 3) + 7) // 8 * 8 if gated else width * ratio


def _headless(name: str) -> MattaError:
    return MattaError(
        f"{name!r} has no classification head: fine-tune it on your classes first "
        "(transformers.AutoModelForImageClassification)."
    )
