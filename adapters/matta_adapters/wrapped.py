"""timm models in folders of transformers (``TimmWrapper``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from matta_adapters.skeleton import read_config
from matta_cli.adapter import Source
from matta_cli.errors import MattaError


def is_wrapped(folder: Path) -> bool:
    """Whether transformers wrote a folder around a timm model, with a word before all names."""
    return read_config(folder).get("model_type") == "timm_wrapper"


def unwrapped(source: Source, folder: Path) -> Source:
    """The timm model that a folder of transformers holds."""
    from safetensors.torch import load_file

    try:
        stored = load_file(str(folder / "model.safetensors"))
    except Exception as error:  # safetensors and the system each raise their own
        raise MattaError(f"{source.name!r} has no model.safetensors: {error}.") from error
    tensors = {key.removeprefix("timm_model."): tensor for key, tensor in stored.items()}
    return replace(source, folder=None, tensors=tensors, config=read_config(folder))
