"""What a user may do about a source that an adapter does not know."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from matta_adapters.skeleton import read_config
from matta_cli.adapter import Source

_CONV = nn.modules.conv._ConvNd
_LAYERS = (nn.Embedding, nn.Linear, _CONV)
_SPACE = {1: "128", 2: "224x224", 3: "16x64x64"}  # by the dimensions of a convolution
_IDS = "1x16:int64"


def instead(source: Source) -> str:
    """A sentence with the way in that is open to a source, whatever its architecture; or none."""
    config = read_config(source.folder) if source.folder is not None else {}
    library = type(source.module).__module__.partition(".")[0]
    stock = "architecture" in config or bool(config.get("architectures"))
    if stock or library in ("timm", "transformers"):
        return " `--adapter auto` takes what timm and transformers build, if it can trace it."
    if source.builder:
        return " `--adapter auto` takes what a function builds, if it can trace it."
    if source.tensors is not None:
        return (
            " `auto` takes any module that it can trace, by the function that builds it: matta "
            f"convert my_pkg.models:build --weights {source.name} --adapter auto --example "
            f"{example_like(source.tensors)}."
        )
    return ""


def example_like(tensors: Mapping[str, Tensor]) -> str:
    """An ``--example`` for the model of these tensors, by the first weight among them."""
    for name, tensor in tensors.items():
        if name.endswith("weight") and 2 <= tensor.dim() <= 5:
            if tensor.dim() > 2:
                return f"1x{tensor.shape[1]}x{_SPACE[tensor.dim() - 2]}"
            return _IDS if "emb" in name.lower() else f"1x{tensor.shape[1]}"
    return "SHAPES"


def example_for(model: nn.Module) -> str:
    """An ``--example`` for a model, by its first layer and the names that its forward takes."""
    layer: Any = next((m for m in model.modules() if isinstance(m, _LAYERS)), None)
    names = list(inspect.signature(model.forward).parameters)
    if {"dense", "categorical"} & set(names):
        known = {"dense": "dense=1x4", "categorical": "categorical=1x3:int64"}
        return ",".join(shape for name, shape in known.items() if name in names)
    if isinstance(layer, nn.Embedding):
        return f"input_ids={_IDS}" if "input_ids" in names else _IDS
    if isinstance(layer, nn.Linear):
        return f"1x{layer.in_features}"
    channels = 3 if layer is None else layer.in_channels
    return f"1x{channels}x{_SPACE[2 if layer is None else len(layer.kernel_size)]}"
