"""What the built-in adapters share: a copy of a module at other sizes, and filling it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli.adapter import Adapter, Axis, Sizes
from matta_cli.errors import MattaError


def skeleton(adapter: Adapter, model: nn.Module, sizes: Sizes) -> Any:
    """A deep copy of ``model`` whose tensors have the shapes that ``sizes`` give, and no values.

    It lies on the current default device; memory that nobody has written to costs nothing yet.
    Everything else (configuration, dropout, attention implementation, ties between tensors) is the
    model's own, and no time goes into initialising weights that are overwritten anyway. Layers are
    left out at the end, or added as copies of the last one. The attributes of plain layers that
    repeat a shape (``out_features``) are set; those of the architecture's own modules keep their
    old value: the adapter sets them.
    """
    for axis in adapter.axes(model):
        depth = sizes.get(axis.name, axis.size)
        if axis.layers and depth != axis.size:
            layers: Any = model.get_submodule(axis.layers)
            new = [shaped(layers[-1], (), {}) for _ in range(depth - axis.size)]
            model = _with_layers(model, axis.layers, [*layers[:depth], *new])
    return shaped(model, adapter.axes(model), sizes)


def shaped(model: nn.Module, axes: Iterable[Axis], sizes: Sizes) -> Any:
    """The same with all layers, for axes that are known already."""
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    # Buffers that are not in the state dict are constants: they are copied.
    tensors = {name: tensors[name] for name in model.state_dict() if name in tensors}
    shapes = {id(tensor): list(tensor.shape) for tensor in tensors.values()}
    for axis in axes:
        change = sizes.get(axis.name, axis.size) - axis.size
        for s in () if axis.layers else axis.slices:
            shapes[id(tensors[s.tensor])][s.dim] += s.blocks * s.unit * change
    memo: dict[int, object] = {}
    for tensor in tensors.values():
        fresh: Tensor = torch.empty(shapes[id(tensor)], dtype=tensor.dtype)
        if isinstance(tensor, nn.Parameter):
            fresh = nn.Parameter(fresh, requires_grad=tensor.requires_grad)
        memo.setdefault(id(tensor), fresh)
    made, was = copy.deepcopy(model, memo), dict(model.named_modules())
    for name, module in made.named_modules():
        _repeat_shape(module, was[name])
    return made


def _with_layers(model: nn.Module, path: str, layers: list[nn.Module]) -> nn.Module:
    """``model`` with other layers in the list at ``path``; it shares all else with ``model``."""
    made = copy.copy(model)
    if not path:
        made._modules = {str(i): layer for i, layer in enumerate(layers)}
        return made
    child, _, rest = path.partition(".")
    made._modules = dict(model._modules)
    made._modules[child] = _with_layers(model.get_submodule(child), rest, layers)
    return made


def _repeat_shape(module: Any, was: Any) -> None:
    """Set the attributes of a layer that repeat the shape of its weight, where that has changed."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.shape == was.weight.shape:
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        first, second = weight.shape[:2]
        if 1 < module.groups == module.in_channels == module.out_channels:
            # Depthwise: there is one group for each channel, so they shrink together.
            module.groups = module.in_channels = module.out_channels = first
        elif module.transposed:
            module.in_channels, module.out_channels = first, second * module.groups
        else:
            module.out_channels, module.in_channels = first, second * module.groups
    elif {"nx", "nf"} <= set(vars(module)):  # transformers' Conv1D
        module.nx, module.nf = weight.shape
    elif hasattr(module, "normalized_shape"):
        module.normalized_shape = tuple(weight.shape)
    else:
        for name in ("num_features", "num_channels", "num_parameters"):
            if hasattr(module, name):
                setattr(module, name, len(weight))


def fill(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> nn.Module:
    """Load ``tensors`` into ``model`` as float32 and set it to eval mode.

    ``name`` is the user's name for the source. Raises ``MattaError`` naming the first few tensors
    that are missing, not known, or of another shape.
    """
    own = model.state_dict()
    tensors = as_named(own, tensors)
    wrong = [f"{key} is missing" for key in own if key not in tensors]
    wrong += [f"{key} is not one of the architecture's" for key in tensors if key not in own]
    for key in own:
        if key in tensors and tensors[key].shape != own[key].shape:
            given, needed = list(tensors[key].shape), list(own[key].shape)
            wrong.append(f"{key} has shape {given}, not {needed}")
    if wrong:
        raise MattaError(
            f"{name!r} does not fit: {some(wrong)}. Is this the right --adapter (and --config)?"
        )
    state = {key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}
    model.load_state_dict(state)
    return model.eval()


def as_named(own: Iterable[str], tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A state dict by a module's ``own`` names where one word stands before all of its own.

    A training script's module around the model puts it there (``model.``, ``net.``).
    """
    known, named = set(own), tensors
    while named and not known & set(named):
        words = {key.partition(".")[0] for key in named}
        if len(words) > 1 or not all("." in key for key in named):
            return tensors
        named = {key.partition(".")[2]: tensor for key, tensor in named.items()}
    return named


def some(items: Iterable[str], limit: int = 3) -> str:
    """The first few of many, as text."""
    items = list(items)
    more = f"; and {len(items) - limit} more" if len(items) > limit else ""
    return "; ".join(items[:limit]) + more


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint folder; empty where there is none that can be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
