"""Language models whose weights torchao has quantized, as transformers saves and loads them."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from matta_cli import trust
from matta_cli.errors import MattaError, install, said
from matta_cli.files.reading import lenient
from matta_cli.models.quantized import quiet

_WRITTEN = {"Int8WeightOnlyConfig", "PerRow"}
LOADER = "transformers.AutoModelForCausalLM.from_pretrained({folder})"


def needs(what: str) -> None:
    """Raise ``MattaError`` where torchao is not installed."""
    if importlib.util.find_spec("torchao") is None:
        raise MattaError(f"{what} needs torchao for this model: {install('quantize')}.")


def fits(model: nn.Module, loader: str) -> bool:
    """Whether torchao's weights are for a model: transformers loads it, and it has linear layers.

    loader: the expression that loads it. GPT-2, say, has layers of another kind.
    """
    own: Any = model
    if not loader.startswith("transformers.AutoModelForCausalLM."):
        return False
    last = own.get_output_embeddings()
    return any(isinstance(m, nn.Linear) and m is not last for m in model.modules())


def quantize(folder: Path, to: Path) -> None:
    """Write the model of a folder with weights of 8 bits, a scale for each output.

    Embeddings and the output layer stay as they are. Raises
    ``MattaError`` where transformers or torchao cannot.
    """
    with _sealed(folder):
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        how: Any = TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
        model = _from(folder, quantization_config=how, torch_dtype="auto")
        model.save_pretrained(str(to))


def opened(folder: Path) -> nn.Module:
    """What ``quantize`` wrote: it computes in float32 with weights of 8 bits, on the CPU.

    Raises ``MattaError`` for a configuration that names anything else: torchao looks such names up.
    """
    import torch

    config = lenient(folder / "config.json")
    stored = config.get("quantization_config") if isinstance(config, dict) else None
    if strange := sorted(_named(stored) - _WRITTEN):
        what = f"its config.json names {strange[0]!r}, which matta does not write there"
        raise MattaError(f"{str(folder)!r} is no Student that matta quantized: {what}.")
    with _sealed(folder):
        return _from(folder, torch_dtype=torch.float32).eval()


def _named(stored: Any) -> set[str]:
    """The classes that a stored configuration names."""
    parts = stored.values() if isinstance(stored, dict) else stored
    if not isinstance(stored, (dict, list)):
        return set()
    own = {str(stored["_type"])} if isinstance(stored, dict) and "_type" in stored else set()
    return own.union(*map(_named, parts))


def _from(folder: Path, **given: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder), trust_remote_code=False, **given)


@contextmanager
def _sealed(folder: Path) -> Iterator[None]:
    level = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)  # while torchao is imported
        with trust.sealed(), quiet():
            yield
    except MattaError:
        raise
    except Exception as error:  # each package under it raises its own
        what = f"torchao and transformers cannot quantize {folder.name}"
        raise MattaError(f"{what}: {said(error)[:300]}") from error
    finally:
        logging.disable(level)
