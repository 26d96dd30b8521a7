"""What the built-in adapters read off shapes, and the slices of plain layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from matta_cli.adapter import Axis, Slice
from matta_cli.errors import MattaError

HEAD = 64  # how wide a head is, where only tensors are known


def makes(model: nn.Module, path: str, *names: str, blocks: int = 1, unit: int = 1) -> list[Slice]:
    """Where the units lie that these layers of the module at ``path`` make, biases and all."""
    found = []
    for name in (f"{path}.{name}".removeprefix(".") for name in names):
        layer = model.get_submodule(name)
        for own, _ in layer.named_parameters(recurse=False):
            # An embedding is [entries, out]; transformers' Conv1D keeps its weight as [in, out].
            last = own == "weight" and (isinstance(layer, nn.Embedding) or hasattr(layer, "nf"))
            found.append(Slice(f"{name}.{own}", int(last), blocks, unit=unit))
    return found


def reads(model: nn.Module, path: str, *names: str, unit: int = 1) -> list[Slice]:
    """Where the units lie that these layers of the module at ``path`` read: in their weights."""
    found = []
    for name in (f"{path}.{name}".removeprefix(".") for name in names):
        dim = 0 if hasattr(model.get_submodule(name), "nf") else 1
        found.append(Slice(f"{name}.weight", dim, outgoing=True, unit=unit))
    return found


def there(model: nn.Module, path: str) -> list[Slice]:
    """Where the units lie of a parameter, or that a module makes; nowhere where the model has none
    of that name.
    """
    above, _, name = path.rpartition(".")
    if isinstance(getattr(model.get_submodule(above), name, None), nn.Parameter):
        return [Slice(path, 0)]
    return makes(model, "", path) if module_at(model, path) is not None else []


def module_at(model: nn.Module, path: str) -> Any:
    """The module at a path; None where there is none."""
    above, _, name = path.rpartition(".")
    found = getattr(model.get_submodule(above), name, None)
    return found if isinstance(found, nn.Module) else None


def stored_sizes(
    axes: Iterable[Axis], tensors: Mapping[str, Tensor], kinds: tuple[str, ...]
) -> dict[str, int]:
    """The sizes of the axes of these kinds (``mlp.``) in a state dict, where it tells them."""
    sizes = {}
    for axis in axes:
        if axis.name.startswith(kinds):
            first = axis.slices[0]
            weight = tensors.get(first.tensor)
            if weight is not None and weight.dim() > first.dim:
                sizes[axis.name] = weight.shape[first.dim] // (first.blocks * first.unit)
    return sizes


def read_off(layers: int, width: int, more: str) -> str:
    """A note on a transformer whose configuration was read off its tensors."""
    return (
        f"Read off the tensors: {layers} layers, {width} wide, {width // HEAD} heads (assumed: "
        f"{HEAD} per head), {more}. If that is wrong, pass --config config.json."
    )


def count_layers(tensors: Iterable[str], path: str) -> int:
    """How many layers the list at ``path`` (``encoder.layer``) has by these names of tensors."""
    number = re.compile(rf"{re.escape(path)}\.(\d+)\.")
    return 1 + max(int(match[1]) for name in tensors if (match := number.match(name)))


def heads_of(width: int, name: str) -> int:
    """How many heads a model of this width has, if it is as most are.

    Raises ``MattaError`` where its heads cannot be as wide as most models'.
    """
    if width % HEAD:
        raise MattaError(
            f"{name!r} is {width} wide, which is no multiple of {HEAD}, so its number of heads "
            "cannot be told from the tensors: pass its config.json with --config."
        )
    return width // HEAD


def one_for_all(
    kind: str, setting: str, given: Iterable[int], what: str = "per-layer MLP widths"
) -> str:
    """Why a stock format cannot express these numbers of each block; empty if they are all one."""
    given = list(given)
    if len(set(given)) < 2:
        return ""
    shown = ", ".join(map(str, given))
    return f"{kind} has one {setting} for all blocks, which {what} ({shown}) are not"


def heads_as_wide(kind: str, channels: set[int], width: int) -> str:
    """Why a stock format cannot express heads of so many channels; empty if it can."""
    if channels == {width}:
        return ""
    shown = ", ".join(map(str, sorted(channels)))
    return f"{kind} has as many channels in its heads ({shown}) as in its residual stream ({width})"
