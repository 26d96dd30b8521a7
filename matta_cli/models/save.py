"""A model as a folder, in its stock library's format or in matta's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from matta_cli.adapter import Adapter
from matta_cli.errors import MattaError
from matta_cli.files import reading
from matta_cli.models.source import TEMPLATE
from matta_cli.nested.sizes import full_sizes, own_sizes


def save_model(
    adapter: Adapter,
    model: nn.Module,
    folder: Path,
    state: Mapping[str, Tensor] | None = None,
    *,
    own: bool = False,
) -> str:
    """Write a model in the stock library's format, or where that has no such sizes in matta's own.

    state: the values of its tensors, where ``model`` is as ``build`` gave it. They are written one
    by one, so that views of a larger model need no second copy in memory but of one tensor at a
    time. own: matta's own format in any case. Returns why the stock format was not possible; empty
    where it was. ``open_source`` knows both.
    """
    reason = adapter.unsupported(model)
    if reason or own:
        _save_own(adapter, model, folder)
    else:
        adapter.save(model, folder)
    if state is not None and not _overwritten(folder, model, state):
        model.load_state_dict(state, strict=False)  # the stock format has other names for them
        adapter.save(model, folder)
    return reason


def _save_own(adapter: Adapter, model: nn.Module, folder: Path) -> None:
    axes = adapter.axes(model)
    smallest = own_sizes(axes, {axis.name: axis.step for axis in axes})
    (folder / TEMPLATE).mkdir()
    adapter.save(adapter.build(model, smallest), folder / TEMPLATE)
    for weights in (folder / TEMPLATE).glob("*.safetensors"):
        weights.unlink()
    sizes = json.dumps(full_sizes(axes), indent=1) + "\n"
    (folder / TEMPLATE / "sizes.json").write_text(sizes, encoding="utf-8")
    kept: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        kept.setdefault(id(tensor), name)  # of tied tensors the first name
    own = model.state_dict()
    tensors = {name: own[name].contiguous() for name in kept.values()}
    save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})


@torch.no_grad()
def _overwritten(folder: Path, model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Write ``state`` over the values in a folder's safetensors files; False, and nothing written,
    if the names are others.
    """
    named = model.state_dict(keep_vars=True)
    known = {id(named[name]): tensor for name, tensor in state.items() if name in named}
    # a tied one by every name
    values = {name: known[id(tensor)] for name, tensor in named.items() if id(tensor) in known}
    files = sorted(folder.glob("*.safetensors"))
    headers = [reading.header(path) for path in files]
    if any(name not in values for entries, _ in headers for name in entries):
        return False
    for path, (entries, start) in zip(files, headers, strict=True):
        with path.open("r+b") as file:
            for name, entry in entries.items():
                tensor = values[name].detach().to("cpu", named[name].dtype).contiguous()
                if list(tensor.shape) != entry["shape"]:
                    shapes = f"{entry['shape']}, not {list(tensor.shape)}"
                    raise MattaError(f"The tensor {name} was saved with shape {shapes}.")
                file.seek(start + entry["data_offsets"][0])
                file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return True


def weights_digest(model: nn.Module) -> str:
    """sha256 over a model's tensors, by name."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return "sha256:" + total.hexdigest()
