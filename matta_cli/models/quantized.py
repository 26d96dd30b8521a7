"""Weights in a few bits each, opened as the numbers that they stand for, by transformers.

A GGUF file, or a folder whose config.json has a ``quantization_config``. What comes out is an
ordinary module: nothing of it, or of its configuration, says any more how it was stored.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from matta_cli import trust
from matta_cli.adapter import Source
from matta_cli.errors import MattaError, install, said
from matta_cli.models import foreign, gguf_settings

_FROM = "pass the folder that it was made from"
# what tokenizers of GGUF files were written to: it is copied from there until the process ends
_beside: list[tempfile.TemporaryDirectory[str]] = []


def is_gguf(path: Path, name: str) -> bool:
    """Whether a file is GGUF, whatever its name. Raises ``MattaError`` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise MattaError(f"{name!r} cannot be read: {error.strerror or error}.") from error


def open_gguf(path: Path, name: str) -> Source:
    """A language model in a GGUF file, with the tokenizer and the chat template that it holds.

    Raises ``MattaError`` where the extra ``gguf`` is missing, or transformers cannot read the file.
    """
    lacking = [p for p in ("gguf", "accelerate") if importlib.util.find_spec(p) is None]
    if lacking:
        needs = f"{name!r} is a GGUF file, and reading it needs {' and '.join(lacking)}"
        raise MattaError(f"{needs}: {install('gguf')}.")
    (reader, kinds), stored = _read(path, name), None
    gguf_settings.check(reader, name)
    if len(kinds) == 1:  # all matrices have the same half of the bits
        stored = {"F16": torch.float16, "BF16": torch.bfloat16}.get(kinds[0])
    kinds = [kind for kind in kinds if kind not in ("F64", "F32", "F16", "BF16")]
    own = tempfile.TemporaryDirectory(prefix="matta-gguf-", ignore_cleanup_errors=True)
    _beside.append(own)
    # alone, so that no other file of its folder is read
    alone, beside = Path(own.name) / "file", Path(own.name) / "beside"
    alone.mkdir()
    beside.mkdir()
    # transformers prefers a file of that name in the current folder: none has this name
    file = f"{Path(own.name).name}.gguf"
    (alone / file).symlink_to(path.resolve())
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    given: dict[str, Any] = {"gguf_file": file, "trust_remote_code": False}
    try:
        with trust.sealed(), quiet():
            told = AutoConfig.from_pretrained(alone, **given)
            config = gguf_settings.completed(told, reader, name, _FROM)
            own_way = {**given, **_unpacked(), "config": config}
            model = _whole(AutoModelForCausalLM, alone, name, **own_way)
            AutoTokenizer.from_pretrained(alone, **given).save_pretrained(beside)
    except MattaError:
        raise
    except Exception as error:  # transformers and its readers raise what they run into
        what = f"transformers cannot open the GGUF file {name!r}"
        raise MattaError(f"{what}: {said(error)}. Instead {_FROM}.") from error
    for tensor in model.parameters() if stored is not None else ():
        if tensor.dim() > 1:
            tensor.data = tensor.data.to(stored)  # as it is stored: nothing is lost
    notes = []
    if kinds:
        to = "they are opened as the numbers that they stand for, and Students are not quantized"
        notes.append(f"The weights of {name} are rounded ({', '.join(kinds)}): {to}.")
    return Source(name, module=_plain(model), beside=beside, notes=tuple(notes))


def open_quantized(folder: Path, config: Mapping[str, Any], name: str) -> Source | None:
    """A folder of transformers whose weights are quantized; None for any other.

    config: its config.json. Raises ``MattaError`` where transformers cannot dequantize them here.
    """
    stored = config.get("quantization_config")
    if not isinstance(stored, Mapping):
        return None
    how = str(stored.get("quant_method") or "quantization_config")
    what = f"{name!r} is quantized ({how})"
    import transformers

    classes = config.get("architectures")
    named = classes[0] if isinstance(classes, list) and classes else ""
    kind = getattr(transformers, str(named), None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise MattaError(f"{what}, and its config.json names no class of transformers: {_FROM}.")
    try:
        with trust.sealed(), quiet():
            model: Any = _whole(kind, folder, name, **_dequantizing(stored, how))
            if getattr(model, "hf_quantizer", None) is not None and not _is_plain(model):
                model = _unpack(model) if how == "torchao" else model.dequantize()
    except MattaError:
        raise
    except Exception as error:  # each method has a package of its own, which raises its own
        why = f"transformers cannot dequantize it here: {said(error)}"
        raise MattaError(f"{what}, and {why}. Instead {_FROM}.") from error
    if not _is_plain(model):
        raise MattaError(f"{what}, and transformers leaves it so: {_FROM}.")
    opened = "its weights are opened as the numbers that they stand for"
    note = f"{name} is quantized ({how}): {opened}, and Students are not quantized."
    return Source(name, module=_plain(model), beside=folder, notes=(note,))


def _read(path: Path, name: str) -> tuple[Any, list[str]]:
    """A reader of a GGUF file, and the types of its matrices.

    Raises ``MattaError`` where it is damaged, or one of several parts.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        parts = reader.fields.get("split.count")
        count = int(parts.parts[-1][0]) if parts is not None else 1
        kinds = sorted({t.tensor_type.name for t in reader.tensors if len(t.shape) > 1})
    except Exception as error:  # the reader walks through the bytes as they are
        raise MattaError(f"{name!r} is damaged, or no GGUF file: {said(error)}.") from error
    if count > 1:
        join = "join them with llama.cpp's `llama-gguf-split --merge`, and pass the one file"
        raise MattaError(f"{name!r} is one of {count} parts of a GGUF file: {join}.")
    return reader, kinds


def _unpacked() -> dict[str, Any]:
    """What makes transformers unpack GGUF weights, where it might leave them in their blocks."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _dequantizing(stored: Mapping[str, Any], how: str) -> dict[str, Any]:
    """What makes transformers dequantize while it loads, where the method can do so."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as METHODS

    known: Any = METHODS.get(how)
    if known is None or "dequantize" not in known.__init__.__code__.co_varnames:
        return {}
    return {"quantization_config": known.from_dict({**stored, "dequantize": True})}


def _whole(kind: Any, folder: Path, name: str, **given: Any) -> nn.Module:
    """The model of a class of transformers.

    Raises ``MattaError`` where weights of it are missing, which transformers draws by chance, or
    where it leaves scales out, by which others are to be multiplied.
    """
    model, report = kind.from_pretrained(
        str(folder),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **{"torch_dtype": "auto", **given},
    )
    scales = [key for key in sorted(report["unexpected_keys"]) if foreign.PACKED.search(key)]
    if scales:
        raise MattaError(
            f"{name!r} is quantized, and transformers leaves {scales[0]} out: {_FROM}."
        )
    refuse_missing(model, report, name)
    return model


def refuse_missing(model: nn.Module, report: Mapping[str, Any], name: str) -> None:
    """Raise ``MattaError`` where weights are missing, which transformers draws by chance, or have
    other shapes than their configuration says.

    report: what it says of a loading.
    """
    for key, there, needed in sorted(report["mismatched_keys"]):
        shapes = f"{key} has shape {list(there)}, not {list(needed)} as its config.json says"
        raise MattaError(f"{name!r} does not fit a {type(model).__name__}: {shapes}.")
    if missing := sorted(report["missing_keys"]):
        lacks = f"{missing[0]} and others are" if missing[1:] else f"{missing[0]} is"
        raise MattaError(f"{name!r} is no whole {type(model).__name__}: {lacks} not in it.")


def _unpack(model: Any) -> nn.Module:
    """A model whose weights are torchao's, anew with the numbers that they stand for.

    The one that transformers loaded remembers how, and cannot be saved.
    """
    tensors: dict[str, Any] = model.state_dict()
    plain = {name: t.dequantize() if hasattr(t, "qdata") else t for name, t in tensors.items()}
    del model.config.quantization_config
    fresh = type(model)(model.config).to(model.dtype)
    fresh.load_state_dict(plain)
    fresh.generation_config = model.generation_config
    return fresh


def _is_plain(model: nn.Module) -> bool:
    """Whether all tensors are floating point numbers of 16 bits or more, in ordinary layers."""
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.dim() > 1)]
    wide = all(t.is_floating_point() and t.element_size() > 1 for t in tensors)
    wide = wide and not any(hasattr(t, "qdata") for t in tensors)
    return wide and not any("quant" in type(m).__module__ for m in model.modules())


def _plain(model: Any) -> nn.Module:
    """``model`` without what transformers remembers of how it was stored."""
    known = ("hf_quantizer", "quantization_config", "quantization_method")
    for owner in (model, model.config):
        # the last: transformers 5.20 would save what it dequantized by the names of what it read
        for attribute in (*known, "_weight_conversions"):
            if attribute in vars(owner):
                delattr(owner, attribute)
    model.is_quantized = False
    model.config.architectures = [type(model).__name__]
    return model.cpu().eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers tells of each tensor; matta says what was opened itself."""
    from transformers.utils import logging as theirs

    bars, verbosity = theirs.is_progress_bar_enabled(), theirs.get_verbosity()
    level = logging.root.manager.disable
    theirs.disable_progress_bar()
    theirs.set_verbosity_error()
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its bars go there, whatever is said
            yield
    finally:
        logging.disable(level)
        theirs.set_verbosity(verbosity)
        if bars:
            theirs.enable_progress_bar()
