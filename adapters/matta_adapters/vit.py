"""Vision transformers as timm has them (``vit_*``, ``deit*``).

What nests: the hidden units of each block's MLP; and, where the blocks are timm's plain ones, the
heads of each block, the residual stream, and the blocks.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matta_adapters.skeleton import fill, read_config, skeleton
from matta_cli.adapter import Adapter, Axis, Sizes, Slice, Source
from matta_cli.errors import MattaError

_NAMES = ("vit_", "deit", "flexivit_", "test_vit")


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
            return {
                "patch_embed.proj.weight",
                "blocks.0.attn.qkv.weight",
                "blocks.0.norm1.weight",
            } <= set(source.tensors)
        if source.module is not None:
            classes = [
                (c.__module__.split(".")[0], c.__name__) for c in type(source.module).__mro__
            ]
            return ("timm", "VisionTransformer") in classes
        return source.name.startswith(_NAMES)

    def load(self, source: Source) -> nn.Module:
        import timm

        self.notes = []
        if not self.matches(source):
            raise MattaError(f"{source.name!r} is not a timm vision transformer (vit_* or deit*).")
        if source.tensors is not None:
            model: Any = self._from_tensors(source.tensors, source)
        elif source.module is not None:
            model = copy.deepcopy(source.module).cpu().float()
            # built from the class, not by timm.create_model
            if not getattr(model, "pretrained_cfg", None):
                model.pretrained_cfg = timm.create_model(
                    "vit_base_patch16_224", depth=1
                ).pretrained_cfg
        else:
            model = _create(
                f"local-dir:{source.folder}" if source.folder else source.name, source.name
            )
        _check(model, source.name)
        _set_input(model)
        return model.float().eval()

    def axes(self, model: Any) -> list[Axis]:
        """mlp.I, heads.I (in channels, whole heads at a time), hidden (in steps of a head), depth."""
        found = []
        for i, (path, mlp) in enumerate(_mlps(model)):
            slices = [Slice(f"{path}.fc1.weight", 0), Slice(f"{path}.fc1.bias", 0)]
            slices += [Slice(f"{path}.norm.{name}", 0) for name, _ in mlp.norm.named_parameters()]
            slices.append(Slice(f"{path}.fc2.weight", 1, outgoing=True))
            found.append(Axis(f"mlp.{i}", mlp.fc1.weight.shape[0], tuple(slices)))
        if not _is_plain(model):
            return found
        step = model.blocks[0].attn.head_dim
        for i, block in enumerate(model.blocks):
            own, path = block.attn, f"blocks.{i}.attn"
            slices = [
                Slice(f"{path}.qkv.{name}", 0, blocks=3) for name, _ in own.qkv.named_parameters()
            ]
            slices += [Slice(f"{path}.norm.{name}", 0) for name, _ in own.norm.named_parameters()]
            slices.append(Slice(f"{path}.proj.weight", 1, outgoing=True))
            found.append(Axis(f"heads.{i}", own.proj.weight.shape[1], tuple(slices), step=step))
        found.append(
            Axis("hidden", model.patch_embed.proj.weight.shape[0], tuple(_stream(model)), step=step)
        )
        names = [name for name, _ in model.blocks[0].named_parameters()]
        writers = [name for name in names if name.startswith(("attn.proj.", "mlp.fc2."))]
        found.append(
            Axis(
                "depth",
                len(model.blocks),
                tuple(Slice(name, 0) for name in writers),
                layers="blocks",
            )
        )
        return found

    def build(self, model: nn.Module, sizes: Sizes) -> nn.Module:
        student = skeleton(self, model, sizes)
        for block in student.blocks if _is_plain(student) else ():
            block.attn.attn_dim = block.attn.proj.weight.shape[1]
            block.attn.num_heads = block.attn.attn_dim // block.attn.head_dim
        student.embed_dim = student.num_features = student.head_hidden_size = (
            student.patch_embed.proj.weight.shape[0]
        )
        return student

    def save(self, model: nn.Module, folder: Path) -> None:
        from timm.models import save_for_hf

        save_for_hf(model, str(folder), model_args=_arguments(model), safe_serialization=True)

    def unsupported(self, model: Any) -> str:
        import timm

        widths = [mlp.fc1.weight.shape[0] for _, mlp in _mlps(model)]
        architecture = _config(model)["architecture"]
        if len(set(widths)) > 1:
            shown = ", ".join(map(str, widths))
            return f"a timm {architecture} has one mlp_ratio for all blocks, which per-layer MLP widths ({shown}) are not"
        heads = (
            {block.attn.proj.weight.shape[1] for block in model.blocks}
            if _is_plain(model)
            else {model.embed_dim}
        )
        if heads != {model.embed_dim}:
            found = ", ".join(map(str, sorted(heads)))
            return (
                f"a timm {architecture} has as many channels in its heads ({found}) as in its residual stream "
                f"({model.embed_dim})"
            )
        with torch.device("meta"):
            stock = _anatomy(timm.create_model(architecture, **_arguments(model)))
        own = _anatomy(model)
        differing = [name for name in {**own, **stock} if own.get(name) != stock.get(name)]
        return (
            f"timm cannot rebuild this {architecture} from its arguments: {differing[0]} would differ"
            if differing
            else ""
        )

    def _from_tensors(self, tensors: Mapping[str, Tensor], source: Source) -> nn.Module:
        import timm

        config = dict(source.config)
        given = dict(config.get("model_args", {} if "architecture" in config else config))
        given |= {key: config[key] for key in ("num_classes", "global_pool") if key in config}
        distilled = "head_dist.weight" in tensors
        stock = "deit_base_distilled_patch16_224" if distilled else "vit_base_patch16_224"
        architecture = config.get("architecture", stock)
        args = (
            self._shapes(tensors, given, source.name, assume_heads="architecture" not in config)
            | given
        )
        try:
            with torch.device("meta"):
                model = timm.create_model(
                    architecture, pretrained_cfg_overlay=config.get("pretrained_cfg"), **args
                )
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise MattaError(
                f"timm cannot build {architecture} for {source.name!r}: {error}"
            ) from error
        _check(model, source.name)
        _set_input(model)
        if "pretrained_cfg" not in config:
            mean, std = (tuple(_config(model)[key]) for key in ("mean", "std"))
            self.notes.append(
                f"Images are normalised with mean {mean} and standard deviation {std} (assumed)."
            )
        if source.sizes:
            return fill(self.build(model, source.sizes), tensors, source.name)
        sizes = {}
        for axis in self.axes(model):
            if not axis.name.startswith("mlp."):
                continue  # timm's own arguments say the others
            weight = tensors.get(axis.slices[0].tensor)
            sizes[axis.name] = axis.size if weight is None else weight.shape[0]
        return fill(self.build(model, sizes), tensors, source.name)

    def _shapes(
        self,
        tensors: Mapping[str, Tensor],
        given: Mapping[str, Any],
        name: str,
        *,
        assume_heads: bool,
    ) -> dict[str, Any]:
        """Arguments of ``timm.create_model`` that the shapes tell; what they do not tell goes into
        the notes.
        """
        missing = [
            key
            for key in ("pos_embed", "head.weight", "blocks.0.mlp.fc1.weight")
            if key not in tensors
        ]
        if missing:
            raise MattaError(
                f"{name!r} looks like a timm vision transformer, but has no {missing[0]}: matta needs that form."
            )
        if "attn_pool.latent" in tensors and "global_pool" not in given:
            raise MattaError(f"{name!r} pools by attention: pass its config.json with --config.")
        dim, channels, *patch = tensors["patch_embed.proj.weight"].shape
        if assume_heads and "num_heads" not in given:
            if dim % 64:
                raise MattaError(
                    f"{name!r} is {dim} wide, which is no multiple of 64, so its number of heads cannot be told from the "
                    "tensors: pass its config.json with --config."
                )
            self.notes.append(
                f"{dim // 64} attention heads (assumed: 64 wide each). If not, pass --config config.json."
            )
        inner = tensors["blocks.0.mlp.fc1.weight"].shape[0]
        class_token, registers = (
            "cls_token" in tensors,
            tensors["reg_token"].shape[1] if "reg_token" in tensors else 0,
        )
        prefix = class_token + registers + ("dist_token" in tensors)
        args: dict[str, Any] = {
            "patch_size": tuple(patch),
            "in_chans": channels,
            "num_classes": tensors["head.weight"].shape[0],
            "embed_dim": dim,
            "depth": 1
            + max(int(m.group(1)) for key in tensors if (m := re.match(r"blocks\.(\d+)\.", key))),
            "mlp_ratio": _ratio(inner, dim),
            "class_token": class_token,
            "reg_tokens": registers,
            "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
            "global_pool": "token" if class_token and "fc_norm.weight" not in tensors else "avg",
            "fc_norm": "fc_norm.weight" in tensors,
        }
        optional = {
            "qk_norm": "blocks.0.attn.q_norm.weight",
            "scale_attn_norm": "blocks.0.attn.norm.weight",
            "scale_mlp_norm": "blocks.0.mlp.norm.weight",
            "pre_norm": "norm_pre.weight",
        }
        # not every timm knows all of them
        args |= {key: True for key, tensor in optional.items() if tensor in tensors}
        if assume_heads and dim % 64 == 0:
            args["num_heads"] = dim // 64
        if "blocks.0.ls1.gamma" in tensors:
            # only whether there is layer scale matters: its values are loaded
            args["init_values"] = 1e-5
        if "img_size" not in given:
            args |= self._grid(tensors["pos_embed"].shape[1], prefix, patch, name)
        if "global_pool" not in given:
            pool = "the class token" if args["global_pool"] == "token" else "the average token"
            size = args.get("img_size", given.get("img_size"))
            self.notes.append(f"Images are {size} large, and {pool} is classified (assumed).")
        return args

    def _grid(self, length: int, prefix: int, patch: list[int], name: str) -> dict[str, Any]:
        for patches, beside in ((length - prefix, False), (length, True)):
            side = math.isqrt(max(patches, 0))
            if side and side * side == patches:
                if beside and prefix:
                    self.notes.append(
                        "The position embeddings leave out the class token (assumed: they form a square)."
                    )
                return {
                    "img_size": (side * patch[0], side * patch[1]),
                    "no_embed_class": beside and prefix > 0,
                }
        raise MattaError(
            f"{name!r} has {length} position embeddings, which is no square image: "
            "pass its config.json (with img_size) with --config."
        )


def _mlps(model: Any) -> list[tuple[str, Any]]:
    """Path and module of every MLP whose width timm's ``mlp_ratio`` sets."""
    found = [(f"blocks.{i}.mlp", block.mlp) for i, block in enumerate(model.blocks)]
    pool: Any = getattr(model, "attn_pool", None)
    if hasattr(pool, "mlp"):
        found.append(("attn_pool.mlp", pool.mlp))
    return found


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


def _config(model: Any) -> dict[str, Any]:
    return model.pretrained_cfg


def _check(model: nn.Module, name: str) -> None:
    from timm.layers import Mlp, PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(model, VisionTransformer) or type(model.patch_embed) is not PatchEmbed:
        raise MattaError(
            f"{name!r} is a {type(model).__name__} with a stem of its own, which the vit adapter does not know."
        )
    mlps = [getattr(block, "mlp", block) for block in model.blocks]
    odd = [type(mlp).__name__ for mlp in mlps if type(mlp) is not Mlp]
    if odd:
        raise MattaError(
            f"{name!r} has {odd[0]} in its blocks: the vit adapter nests plain MLPs (Linear, activation, Linear)."
        )
    if not isinstance(model.head, nn.Linear):
        raise MattaError(
            f"{name!r} has no classification head (num_classes is 0): fine-tune it on your classes first."
        )


def _set_input(model: Any) -> None:
    """Make the preprocessing that timm derives from ``pretrained_cfg`` that of this very model, not
    of its namesake.
    """
    channels, cfg = model.patch_embed.proj.weight.shape[1], dict(model.pretrained_cfg)
    cfg |= {"input_size": (channels, *model.patch_embed.img_size), "num_classes": model.num_classes}
    for key in ("mean", "std"):
        if key in cfg and len(cfg[key]) != channels:
            cfg[key] = (sum(cfg[key]) / len(cfg[key]),) * channels
    model.pretrained_cfg = model.default_cfg = cfg


def _create(name: str, shown: str) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # timm, its hub client and its downloader each raise their own
        sentence = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        help_ = (
            ""
            if name.startswith("local-dir:")
            else " If the hub cannot be reached, pass a local folder or state dict."
        )
        raise MattaError(f"timm cannot load {shown!r}: {sentence[:300]}.{help_}") from error


def _arguments(model: Any) -> dict[str, Any]:
    """Arguments that make ``timm.create_model(architecture, ...)`` build this very module."""
    known = {k: v for k, v in getattr(model, "_model_args", {}).items() if _is_json(v)}
    pos, patch = model.pos_embed, model.patch_embed
    derived: dict[str, Any] = {
        "img_size": tuple(patch.img_size),
        "patch_size": tuple(patch.patch_size),
        "in_chans": patch.proj.weight.shape[1],
        "num_classes": model.num_classes,
        "global_pool": model.global_pool,
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": model.blocks[0].attn.num_heads,
        "mlp_ratio": _ratio(model.blocks[0].mlp.fc1.weight.shape[0], model.embed_dim),
        "qkv_bias": model.blocks[0].attn.qkv.bias is not None,
        "class_token": model.cls_token is not None,
        "reg_tokens": model.num_reg_tokens,
        "no_embed_class": model.no_embed_class,
        "pos_embed": "none" if pos is None else "learn",
        "fc_norm": not isinstance(model.fc_norm, nn.Identity),
        "dynamic_img_size": model.dynamic_img_size,
    }
    block, none = model.blocks[0], nn.Identity()
    # timm keeps them from 1.0.30 on
    norms = {"pre_norm": model.norm_pre, "qk_norm": getattr(block.attn, "q_norm", none)}
    norms |= {
        "scale_attn_norm": getattr(block.attn, "norm", none),
        "scale_mlp_norm": block.mlp.norm,
    }
    derived |= {name: True for name, norm in norms.items() if not isinstance(norm, nn.Identity)}
    if hasattr(block.ls1, "gamma"):
        derived["init_values"] = known.get("init_values") or 1e-5
    return known | derived


def _anatomy(model: nn.Module) -> dict[str, Any]:
    """What decides the function besides the weights: shapes, activations, norms (not dropout: it is
    off when serving).
    """
    parts: dict[str, Any] = {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
    }
    return parts | {
        name: repr(part)
        for name, part in model.named_modules()
        if name.endswith(("act", "norm", "norm1", "norm2"))
    }


def _ratio(hidden: int, dim: int) -> float:
    """An ``mlp_ratio`` for which timm's ``int(dim * mlp_ratio)`` is ``hidden`` exactly."""
    return hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
