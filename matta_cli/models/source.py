"""From what the user typed to an opened source, without running code."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli import trust
from matta_cli.adapter import Source
from matta_cli.errors import MattaError, refused_code
from matta_cli.files import reading
from matta_cli.models import checkpoint, foreign, inside, names, quantized

# in a folder of matta's own format: the stock configuration of a smaller model, and the sizes
TEMPLATE = "template"
# exports to other formats; the steps of sentence-transformers (1_Pooling) have a number
_OTHER_FOLDERS = "[!0-9]*/*"
_BESIDE_WEIGHTS = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja")


def open_source(
    text: str, *, model_config: Path | None = None, allow_pickle: bool = False
) -> Source:
    """Find and open what ``text`` names.

    A local folder comes first, then a local file, a builder, a timm name, a hub id.
    model_config: the user's ``--config``, a JSON file about the architecture, for sources that do
    not bring their own. allow_pickle: whether a file may run code while it is opened (whole pickled
    modules need that).

    Raises ``MattaError`` where nothing of that name is found, it cannot be opened, or a file names
    code (``trust.Read``) that may not run.
    """
    config = read_json(model_config) if model_config is not None else {}
    trust.check_config(config, str(model_config))
    wanted, name = names.prefixed(text)
    path = Path(name).expanduser()
    if wanted != "hf-hub":
        if path.is_dir():
            return _open_dir(path, text, config)
        if path.is_file():
            return _open_file(path, text, config, allow_pickle)
        names.refuse_missing(text)
        if trust.is_code(name):
            trust.found(name).check()
            return Source(name=name, config=config, builder=name)
        if _is_timm_name(name):
            return Source(name=name, config=config)
    return _open_dir(download(name, text), text, config)


def open_weights(text: str, *, allow_pickle: bool = False) -> Mapping[str, Tensor]:
    """The state dict in the file ``text``. Raises ``MattaError`` where it is something else."""
    source = open_source(text, allow_pickle=allow_pickle)
    tensors = source.module.state_dict() if source.module is not None else source.tensors
    if tensors is None:
        known = ", ".join(names.FILES)
        raise MattaError(f"--weights {text!r} is no state dict: pass a file, {known}.")
    return tensors


def _open_dir(folder: Path, text: str, config: Mapping[str, Any]) -> Source:
    inside.check(folder)
    own = (folder / TEMPLATE).is_dir()
    return _open_own(folder, text) if own else _open_folder(folder, text, config)


def _open_own(folder: Path, text: str) -> Source:
    """A folder of matta's own format."""
    sizes = read_json(folder / TEMPLATE / "sizes.json")
    config = read_json(folder / TEMPLATE / "config.json")
    source = _open_file(folder / "model.safetensors", text, config, allow_pickle=False)
    return replace(source, sizes=sizes, beside=folder)


def _open_folder(folder: Path, text: str, config: Mapping[str, Any]) -> Source:
    """A folder of a stock library's, which opens it."""
    stored = folder / "config.json"
    foreign.refuse_folder(folder, text)
    own = read_json(stored) if stored.is_file() else {}
    if quantized_source := quantized.open_quantized(folder, own, text):
        return quantized_source
    headers = foreign.headers(folder)
    foreign.refuse_narrow(headers, text)
    note = foreign.chosen_weights(folder, text)
    if own and checkpoint.is_wrapped([name for entries in headers.values() for name in entries]):
        return _open_wrapped(folder, list(headers), text, config or own)
    pickled = folder / "pytorch_model.bin"
    if own and not headers and pickled.is_file() and not _is_plain(pickled):
        return replace(_open_file(pickled, text, config or own, False), beside=folder)
    return Source(text, config, folder=folder, beside=folder, notes=(note,) if note else ())


def _is_plain(path: Path) -> bool:
    """Whether a file holds a state dict as libraries expect it: bare, by the module's own names.

    Raises ``MattaError`` where it holds something else than weights.
    """
    opened = _torch_load(path, str(path), allow_pickle=False)
    state = checkpoint.find(opened, str(path)).state
    if isinstance(state, nn.Module):
        return False
    foreign.refuse_tensors(state, str(path))
    return set(state) <= set(opened)


def _open_wrapped(folder: Path, files: list[Path], text: str, config: Mapping[str, Any]) -> Source:
    """A folder whose weights have the names of a compiled or parallel module, which libraries do
    not know: its tensors, by the bare module's.
    """
    again = "save it again, as a safetensors file"
    named = {key: own for file in files for key, own in reading.tensors(file, again).items()}
    what = "stand for a module that was wrapped (torch.compile, DDP, FSDP)"
    note = f"The names of the weights in {text} {what}: they are read without that."
    tensors = checkpoint.strip_prefixes(named)
    return Source(text, config, tensors=tensors, beside=folder, notes=(note,))


def _open_file(path: Path, text: str, config: Mapping[str, Any], allow_pickle: bool) -> Source:
    if quantized.is_gguf(path, text):
        return quantized.open_gguf(path, text)
    foreign.refuse_file(path, text)
    reading.refuse_pointer(path)
    if path.suffix == ".safetensors":
        tensors = reading.tensors(path, "save it again, as a safetensors file")
        opened: Any = tensors
    elif path.suffix not in names.FILES:
        opens = f"matta opens {', '.join(names.FILES)}, or a folder"
        raise MattaError(f"{text!r} is not a model file: {opens}.")
    else:
        opened = _torch_load(path, text, allow_pickle)
    found = checkpoint.find(opened, text)
    told = Source(text, notes=found.notes, classes=found.classes)
    if isinstance(found.state, nn.Module):
        return replace(told, config=config, module=found.state)
    _refuse_odd(found.state, text)
    foreign.refuse_tensors(found.state, text)
    return replace(told, config=config or found.config, tensors=found.state)


def _refuse_odd(tensors: Mapping[str, Tensor], text: str) -> None:
    """Raise ``MattaError`` for a state dict whose tensors are not dense."""
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "quantised" if tensor.is_quantized else "sparse, or without values"
            raise MattaError(f"{text!r}: the tensor {name!r} is {kind}: save it dense.")


def _torch_load(path: Path, text: str, allow_pickle: bool) -> Any:
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"  # only this format can be mapped into memory
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it goes on to raise
            # weights_only is the wall between a file from the internet and code that runs: it never
            # goes without the flag
            return torch.load(path, map_location="cpu", weights_only=not allow_pickle, mmap=zipped)
    except Exception as error:
        # what torch.load raises on a foreign file is open-ended, with the flag even more so
        raise MattaError(f"{text!r} {_why_unopened(error)}.") from error


def _why_unopened(error: Exception) -> str:
    """What is wrong with a file that torch.load does not open, and what to do."""
    if "TorchScript" in str(error):
        return "is a TorchScript archive: save the model's state dict instead"
    if code := refused_code(error):
        return (
            f"holds more than a state dict, and opening it runs code that it names ({code}): save "
            "model.state_dict() instead, or, if you trust its author, convert it with "
            "--allow-pickle"
        )
    if isinstance(error, (ImportError, AttributeError)):
        return f"needs code that is not installed here: {str(error).splitlines()[0]}"
    return "is damaged, or not a file that torch.save wrote"


def download(name: str, text: str) -> Path:
    """The hub's model folder ``name``, downloaded; pickled weights only if there are no others."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    def get(weights: str) -> Path:
        wanted = [*_BESIDE_WEIGHTS, weights]
        found = snapshot_download(name, allow_patterns=wanted, ignore_patterns=[_OTHER_FOLDERS])
        return Path(found)

    nowhere = f"{text!r} is neither a local folder nor file"
    try:
        folder = get("*.safetensors")
        if (folder / "matta.json").is_file():  # it may be of matta's own format
            snapshot_download(name, allow_patterns=[f"{TEMPLATE}/*.json"])
        return folder if any(folder.glob("*.safetensors")) else get("pytorch_model*.bin")
    except HFValidationError:
        what = f"{text!r} is neither a local folder or file, nor a timm name"
        raise MattaError(f"{what}, nor can it be a hub id.") from None
    except GatedRepoError:
        hint = "ask for access on its page and log in with `hf auth login`"
        raise MattaError(f"{text!r} is gated on the hub: {hint}.") from None
    except RepositoryNotFoundError:
        none = "the hub has no such model (or it is private: `hf auth login`)"
        raise MattaError(f"{nowhere}, and {none}.") from None
    except Exception as error:
        # the hub's client raises its own, its HTTP library's and the system's errors
        hint = "the hub could not be reached: pass a local path, or try again online"
        raise MattaError(f"{nowhere}, and {hint}.") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ``MattaError`` where there is none."""
    if path.is_dir():
        raise MattaError(f"{str(path)!r} is a folder: pass {path / 'config.json'}.")
    try:
        config = reading.parsed(reading.text(path))
    except OSError:
        raise MattaError(f"There is no file {str(path)!r}.") from None
    except ValueError as error:
        raise MattaError(f"{str(path)!r} is not valid JSON: {error}.") from None
    if not isinstance(config, dict):
        raise MattaError(f"{str(path)!r} is not a JSON object.")
    return config


def _is_timm_name(name: str) -> bool:
    if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)?", name):
        return False
    import timm

    return timm.is_model(name.split(".")[0])
