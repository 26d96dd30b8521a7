"""Vision transformers as timm has them (``vit_*``, ``deit*``).

What nests: the hidden units of each block's MLP; and, where the blocks are timm's plain ones, the
heads of each block, the residual stream, and the blocks.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matta_adapters import shapes
from matta_adapters.advice import instead
from matta_adapters.shapes import makes, reads
from matta_adapters.skeleton import fill, read_config, skeleton
from matta_adapters.wrapped import is_wrapped, unwrapped
from matta_cli import trust
from matta_cli.adapter import Adapter, Axis, Sizes, Slice, Source
from matta_cli.errors import MattaError

_NAMES = ("vit_", "deit", "flexivit_", "test_vit")
_FIRST = {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.norm1.weight"}
_NEEDED = ("pos_embed", "head.weight", "blocks.0.mlp.fc1.weight")
# Arguments of timm that are true where a tensor is there. Not every timm knows all of them.
_OPTIONAL = {
    "pre_norm": "norm_pre.weight",
    "qk_norm": "blocks.0.attn.q_norm.weight",
    "scale_attn_norm": "blocks.0.attn.norm.weight",
    "scale_mlp_norm": "blocks.0.mlp.norm.weight",
}


class ViT(Adapter):
    """Any timm ``VisionTransformer`` with plain MLPs: a timm folder, a timm name, a bare state
    dict, or an opened module.
    """

    name = "vit"
    task = "image_classification"
    default = ("mlp",)
    loader = "timm.create_model('local-dir:' + {folder}, pretrained=True)"

    def matches(self, source: Source) -> bool:
        if source.folder is not None:
            return str(read_config(source.folder).get("architecture", "")).startswith(_NAMES)
        if source.tensors is not None:
            return set(source.tensors) >= _FIRST
        if source.module is not None:
            kinds = [(c.__module__.split(".")[0], c.__name__) for c in type(source.module).__mro__]
            return ("timm", "VisionTransformer") in kinds
        return source.name.startswith(_NAMES)

    def load(self, source: Source) -> nn.Module:
        import timm

        self.notes = []
        if not self.matches(source):
            kind = "a vision transformer of timm (vit_*, deit*)"
            raise MattaError(
                f"{source.name!r} is not {kind}: {_mismatch(source)}.{instead(source)}"
            )
        if source.folder is not None and is_wrapped(source.folder):
            source = unwrapped(source, source.folder)
        if source.tensors is not None:
            model: Any = self._from_tensors(source.tensors, source)
        elif source.module is not None:
            model = copy.deepcopy(source.module).cpu().float()
            if not getattr(model, "pretrained_cfg", None):
                # It was built from the class, not by timm.create_model.
                stock = timm.create_model("vit_base_patch16_224", depth=1)
                model.pretrained_cfg = stock.pretrained_cfg
        else:
            where = f"local-dir:{source.folder}" if source.folder else source.name
            model = _create(where, source.name)
        _check(model, source)
        _set_input(model)
        return model.float().eval()

    def axes(self, model: Any) -> list[Axis]:
        """mlp.I, heads.I (in channels, by whole heads), hidden (in steps of a head), depth."""
        axes = []
        for i, (path, mlp) in enumerate(_mlps(model)):
            slices = makes(model, path, "fc1", "norm") + reads(model, path, "fc2")
            axes.append(Axis(f"mlp.{i}", mlp.fc1.weight.shape[0], tuple(slices)))
        if not _is_plain(model):
            return axes
        step = model.blocks[0].attn.head_dim
        for i, block in enumerate(model.blocks):
            path = f"blocks.{i}.attn"
            slices = makes(model, path, "qkv", blocks=3)
            slices += makes(model, path, "norm") + reads(model, path, "proj")
            axes.append(Axis(f"heads.{i}", block.attn.proj.weight.shape[1], tuple(slices), step))
        width = model.patch_embed.proj.weight.shape[0]
        axes.append(Axis("hidden", width, tuple(_stream(model)), step))
        names = [name for name, _ in model.blocks[0].named_parameters()]
        added = [Slice(n, 0) for n in names if n.startswith(("attn.proj.", "mlp.fc2."))]
        axes.append(Axis("depth", len(model.blocks), tuple(added), layers="blocks"))
        return axes

    def build(self, model: nn.Module, sizes: Sizes) -> nn.Module:
        student = skeleton(self, model, sizes)
        for block in student.blocks if _is_plain(student) else ():
            block.attn.attn_dim = block.attn.proj.weight.shape[1]
            block.attn.num_heads = block.attn.attn_dim // block.attn.head_dim
        width = student.patch_embed.proj.weight.shape[0]
        student.embed_dim = student.num_features = student.head_hidden_size = width
        return student

    def save(self, model: nn.Module, folder: Path) -> None:
        from timm.models import save_for_hf

        save_for_hf(model, str(folder), model_args=_arguments(model), safe_serialization=True)

    def unsupported(self, model: Any) -> str:
        import timm

        widths = [mlp.fc1.weight.shape[0] for _, mlp in _mlps(model)]
        architecture = model.pretrained_cfg["architecture"]
        blocks = model.blocks if _is_plain(model) else ()
        heads = {block.attn.proj.weight.shape[1] for block in blocks} or {model.embed_dim}
        kind = f"a timm {architecture}"
        reason = shapes.one_for_all(kind, "mlp_ratio", widths)
        reason = reason or shapes.heads_as_wide(kind, heads, model.embed_dim)
        if reason:
            return reason
        with torch.device("meta"):
            stock = _anatomy(timm.create_model(architecture, **_arguments(model)))
        own = _anatomy(model)
        for name in {**own, **stock}:
            if own.get(name) != stock.get(name):
                return (
                    f"timm cannot rebuild this {architecture} from its arguments: "
                    f"{name} would differ"
                )
        return ""

    def _from_tensors(self, tensors: Mapping[str, Tensor], source: Source) -> nn.Module:
        import timm

        config = dict(source.config)
        given = dict(config.get("model_args", {} if "architecture" in config else config))
        given |= {key: config[key] for key in ("num_classes", "global_pool") if key in config}
        kind = "deit_base_distilled" if "head_dist.weight" in tensors else "vit_base"
        architecture = config.get("architecture", f"{kind}_patch16_224")
        args = self._told(tensors, given, source.name, stock="architecture" not in config)
        args |= {**given, "pretrained_cfg_overlay": config.get("pretrained_cfg")}
        try:
            with trust.sealed(), torch.device("meta"):
                model: Any = timm.create_model(architecture, **args)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise MattaError(
                f"timm cannot build {architecture} for {source.name!r}: {error}"
            ) from error
        _check(model, source)
        _set_input(model)
        if "pretrained_cfg" not in config:
            mean, std = (tuple(model.pretrained_cfg[key]) for key in ("mean", "std"))
            self.notes.append(
                f"Images are normalised with mean {mean} and standard deviation {std} (assumed)."
            )
        # timm's own arguments say the sizes of the other kinds.
        sizes = source.sizes or shapes.stored_sizes(self.axes(model), tensors, ("mlp.",))
        return fill(self.build(model, sizes), tensors, source.name)

    def _told(
        self, tensors: Mapping[str, Tensor], given: Mapping[str, Any], name: str, *, stock: bool
    ) -> dict[str, Any]:
        """Arguments of ``timm.create_model`` that the shapes tell; what they do not tell is noted.

        stock: the architecture is assumed, too.
        """
        missing = [key for key in _NEEDED if key not in tensors]
        if missing:
            raise MattaError(
                f"{name!r} looks like a timm vision transformer, but has no {missing[0]}: "
                "matta needs that form."
            )
        if "attn_pool.latent" in tensors and "global_pool" not in given:
            raise MattaError(f"{name!r} pools by attention: pass its config.json with --config.")
        width, channels, *patch = tensors["patch_embed.proj.weight"].shape
        args: dict[str, Any] = {}
        if stock and "num_heads" not in given:
            args["num_heads"] = shapes.heads_of(width, name)
        token, norm = "cls_token" in tensors, "fc_norm.weight" in tensors
        registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
        args |= {
            "patch_size": tuple(patch),
            "in_chans": channels,
            "num_classes": tensors["head.weight"].shape[0],
            "embed_dim": width,
            "depth": shapes.count_layers(tensors, "blocks"),
            "mlp_ratio": mlp_ratio_of(tensors["blocks.0.mlp.fc1.weight"].shape[0], width),
            "class_token": token,
            "reg_tokens": registers,
            "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
            "global_pool": "token" if token and not norm else "avg",
            "fc_norm": norm,
            **_optional(tensors),
        }
        if stock and "num_heads" not in given:
            self.notes.append(
                f"Read off the tensors: {args['depth']} blocks, {width} wide, "
                f"{args['num_classes']} classes; {args['num_heads']} attention heads (assumed: "
                f"{shapes.HEAD} wide each). If not, pass --config config.json."
            )
        if "img_size" not in given:
            prefix = token + registers + ("dist_token" in tensors)
            args |= self._grid(tensors["pos_embed"].shape[1], prefix, patch, name)
        if "global_pool" not in given:
            pool = "the class token" if args["global_pool"] == "token" else "the average token"
            size = args.get("img_size", given.get("img_size"))
            self.notes.append(f"Images are {size} large, and {pool} is classified (assumed).")
        return args

    def _grid(self, length: int, prefix: int, patch: Sequence[int], name: str) -> dict[str, Any]:
        """How large the images are, by the number of position embeddings.

        prefix: how many tokens there are besides the patches; ``patch``: height and width of one.
        """
        for patches, beside in ((length - prefix, False), (length, prefix > 0)):
            side = math.isqrt(max(patches, 0))
            if side and side * side == patches:
                if beside:
                    self.notes.append(
                        "The position embeddings leave out the class token "
                        "(assumed: they form a square)."
                    )
                return {"img_size": (side * patch[0], side * patch[1]), "no_embed_class": beside}
        raise MattaError(
            f"{name!r} has {length} position embeddings, which is no square image: "
            "pass its config.json (with img_size) with --config."
        )


def _mlps(model: Any) -> list[tuple[str, Any]]:
    """Path and module of every MLP whose width timm's ``mlp_ratio`` sets."""
    mlps = [(f"blocks.{i}.mlp", block.mlp) for i, block in enumerate(model.blocks)]
    pool: Any = getattr(model, "attn_pool", None)
    return [*mlps, ("attn_pool.mlp", pool.mlp)] if hasattr(pool, "mlp") else mlps


def _is_plain(model: Any) -> bool:
    """Whether all blocks are timm's plain ones, and nothing but the head reads their result."""
    from timm.layers import Attention
    from timm.models.vision_transformer import Block

    plain = all(type(block) is Block and type(block.attn) is Attention for block in model.blocks)
    gated = any(getattr(block.attn, "gate", None) is not None for block in model.blocks)
    return plain and not gated and getattr(model, "attn_pool", None) is None


def _stream(model: Any) -> Iterator[Slice]:
    """Every place where the channels of the residual stream appear."""
    for name, tensor in model.named_parameters():
        first, within = name.split(".")[0], name.split(".", 2)[-1]
        if first in ("cls_token", "reg_token", "dist_token", "pos_embed"):
            yield Slice(name, 2)
        elif first in ("patch_embed", "norm_pre", "norm", "fc_norm"):
            yield Slice(name, 0)
        elif first in ("head", "head_dist"):
            if tensor.dim() == 2:
                yield Slice(name, 1, outgoing=True)
        elif within in ("attn.qkv.weight", "mlp.fc1.weight"):
            yield Slice(name, 1, outgoing=True)
        elif within.startswith(("norm1.", "norm2.", "ls1.", "ls2.", "attn.proj.", "mlp.fc2.")):
            yield Slice(name, 0)


def _mismatch(source: Source) -> str:
    """Why a source does not match, as the end of a sentence."""
    if source.folder is not None:
        given = read_config(source.folder).get("architecture")
        if given is None:
            return "its config.json cannot be read, or names no architecture"
        return f"its config.json says architecture {given!r}"
    if source.tensors is not None:
        return f"it has no tensor {min(_FIRST - set(source.tensors))}"
    if source.module is not None:
        return f"it is a {type(source.module).__name__}"
    return "it has another name"


def _check(model: nn.Module, source: Source) -> None:
    """Raise ``MattaError`` for a model of timm that is built otherwise than this adapter knows."""
    from timm.layers import Mlp, PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    unknown, odd = "which the vit adapter does not know", ""
    mlps = [getattr(block, "mlp", block) for block in getattr(model, "blocks", ())]
    others = [type(mlp).__name__ for mlp in mlps if type(mlp) is not Mlp]
    if not isinstance(model, VisionTransformer):
        odd = f"is a {type(model).__name__}, {unknown}"
    elif type(model.patch_embed) is not PatchEmbed:
        odd = f"has a stem of its own ({type(model.patch_embed).__name__}), {unknown}"
    elif others:
        plain = "the vit adapter nests plain MLPs (Linear, activation, Linear)"
        odd = f"has {others[0]} in its blocks: {plain}"
    elif isinstance(model.head, nn.Identity):
        raise MattaError(
            f"{source.name!r} has no classification head (num_classes is {model.num_classes}): "
            "fine-tune it on your classes first."
        )
    elif not isinstance(model.head, nn.Linear):
        odd = f"has a {type(model.head).__name__} for a head, {unknown}"
    if odd:
        raise MattaError(f"{source.name!r} {odd}.{instead(source)}")


def _set_input(model: Any) -> None:
    """Make the preprocessing that timm derives from ``pretrained_cfg`` that of this very model."""
    channels, cfg = model.patch_embed.proj.weight.shape[1], dict(model.pretrained_cfg)
    cfg |= {"input_size": (channels, *model.patch_embed.img_size), "num_classes": model.num_classes}
    for key in ("mean", "std"):
        if key in cfg and len(cfg[key]) != channels:
            cfg[key] = (sum(cfg[key]) / len(cfg[key]),) * channels
    model.pretrained_cfg = model.default_cfg = cfg


def _create(name: str, shown: str) -> nn.Module:
    import timm

    try:
        with trust.sealed():
            return timm.create_model(name, pretrained=True)
    except Exception as error:  # timm, its hub client and its downloader each raise their own
        sentence = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        hint = " If the hub cannot be reached, pass a local folder or state dict."
        hint = "" if name.startswith("local-dir:") else hint
        raise MattaError(f"timm cannot load {shown!r}: {sentence[:300]}.{hint}") from error


def _optional(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of timm that add tensors, where these are there."""
    args: dict[str, Any] = {name: True for name, key in _OPTIONAL.items() if key in tensors}
    if "blocks.0.ls1.gamma" in tensors:
        args["init_values"] = 1e-5  # only that there are some matters: their values are loaded
    return args


def _arguments(model: Any) -> dict[str, Any]:
    """Arguments that make ``timm.create_model(architecture, ...)`` build this very module."""
    known = {k: v for k, v in getattr(model, "_model_args", {}).items() if _is_json(v)}
    patch, block = model.patch_embed, model.blocks[0]
    derived: dict[str, Any] = {
        "img_size": tuple(patch.img_size),
        "patch_size": tuple(patch.patch_size),
        "in_chans": patch.proj.weight.shape[1],
        "num_classes": model.num_classes,
        "global_pool": model.global_pool,
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": mlp_ratio_of(block.mlp.fc1.weight.shape[0], model.embed_dim),
        "qkv_bias": block.attn.qkv.bias is not None,
        "class_token": model.cls_token is not None,
        "reg_tokens": model.num_reg_tokens,
        "no_embed_class": model.no_embed_class,
        "pos_embed": "none" if model.pos_embed is None else "learn",
        "fc_norm": not isinstance(model.fc_norm, nn.Identity),
        "dynamic_img_size": model.dynamic_img_size,
        **_optional(model.state_dict()),
    }
    if known.get("init_values") and "init_values" in derived:
        derived["init_values"] = known["init_values"]
    return known | derived  # timm keeps its arguments itself from 1.0.30 on


def _anatomy(model: nn.Module) -> dict[str, Any]:
    """What decides the function besides the weights: shapes, activations, norms.

    Dropout is not among it: it is off when serving.
    """
    parts: dict[str, Any] = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for name, part in model.named_modules():
        if name.endswith(("act", "norm", "norm1", "norm2")):
            parts[name] = repr(part)
    return parts


def mlp_ratio_of(hidden: int, dim: int) -> float:
    """An ``mlp_ratio`` for which timm's ``int(dim * mlp_ratio)`` is ``hidden`` exactly."""
    return hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
