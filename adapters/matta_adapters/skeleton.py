"""What the built-in adapters share: a copy of a module at other sizes, filling it with a state
dict, its config.json.
"""

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
    """A deep copy of ``model`` whose tensors have the shapes that ``sizes`` give, on the current
    default device, and no values: memory that nobody has written to costs nothing yet.

    Everything else (configuration, dropout, attention implementation, ties between tensors) is the
    model's own, and no time goes into initialising weights that are overwritten anyway. Layers are
    left out at the end, or added as copies of the last one. The attributes of plain layers that
    repeat a shape (``out_features``) are set; those of the architecture's own
    modules keep their old value: the adapter sets them.
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
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
    # other buffers are constants: copied
    tensors = {name: tensors[name] for name in model.state_dict() if name in tensors}
    shapes = {id(tensor): list(tensor.shape) for tensor in tensors.values()}
    for axis in axes:
        for s in () if axis.layers else axis.slices:
            shapes[id(tensors[s.tensor])][s.dim] += (
                s.blocks * s.unit * (sizes.get(axis.name, axis.size) - axis.size)
            )
    memo: dict[int, object] = {}
    for tensor in tensors.values():
        fresh: Tensor = torch.empty(shapes[id(tensor)], dtype=tensor.dtype)
        if isinstance(tensor, nn.Parameter):
            fresh = nn.Parameter(fresh, requires_grad=tensor.requires_grad)
        memo.setdefault(id(tensor), fresh)
    found = copy.deepcopy(model, memo)
    for module in found.modules():
        _repeat_shape(module)
    return found


def _with_layers(model: nn.Module, path: str, layers: list[nn.Module]) -> nn.Module:
    """``model`` with other layers in the list at ``path``. Shares all else with ``model``, which
    stays as it is.
    """
    found = copy.copy(model)
    if not path:
        found._modules = {str(i): layer for i, layer in enumerate(layers)}
        return found
    child, _, rest = path.partition(".")
    found._modules = dict(model._modules)
    found._modules[child] = _with_layers(model.get_submodule(child), rest, layers)
    return found


def _repeat_shape(module: nn.Module) -> None:
    """Set the attributes of a plain layer that repeat the shape of its weight."""
    weight: Any = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return
    found: dict[str, Any] = {}
    if isinstance(module, nn.Linear):
        found = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    elif isinstance(module, nn.Embedding):
        found = {"num_embeddings": weight.shape[0], "embedding_dim": weight.shape[1]}
    elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        found = {"out_channels": weight.shape[0], "in_channels": weight.shape[1] * module.groups}
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        found = {"num_features": weight.shape[0]}
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        found = {"normalized_shape": tuple(weight.shape)}
    elif {"nx", "nf"} <= set(vars(module)):  # transformers' Conv1D
        found = {"nx": weight.shape[0], "nf": weight.shape[1]}
    for name, value in found.items():
        setattr(module, name, value)


def fill(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> nn.Module:
    """Load ``tensors`` into ``model`` as float32 and set it to eval mode. ``name`` is the user's
    name for the source.

    Raises ``MattaError`` naming the first few tensors that are missing, not known, or of another
    shape.
    """
    own = model.state_dict()
    wrong = [f"{key} is missing" for key in own if key not in tensors]
    wrong += [f"{key} is not one of the architecture's" for key in tensors if key not in own]
    wrong += [
        f"{key} has shape {list(tensors[key].shape)}, not {list(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    if wrong:
        raise MattaError(
            f"{name!r} does not fit: {some(wrong)}. Is this the right --adapter (and --config)?"
        )
    model.load_state_dict(
        {
            key: tensor.float() if tensor.is_floating_point() else tensor
            for key, tensor in tensors.items()
        }
    )
    return model.eval()


def some(items: Iterable[str], limit: int = 3) -> str:
    """The first few of many, as text."""
    items = list(items)
    return "; ".join(items[:limit]) + (
        f"; and {len(items) - limit} more" if len(items) > limit else ""
    )


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint folder; empty where there is none that can be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
