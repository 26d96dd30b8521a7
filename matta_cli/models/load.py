"""From a source to a model."""

from __future__ import annotations

import ctypes
import mmap
import re
from dataclasses import replace
from pathlib import Path

from torch import nn

from matta_cli.adapter import Adapter, Source
from matta_cli.errors import MattaError, said
from matta_cli.files.workspace import Workspace
from matta_cli.models import plugins
from matta_cli.models.source import open_source, read_json


def load_model(
    text: str,
    task: str,
    *,
    adapter: Adapter | None = None,
    model_config: Path | None = None,
    allow_pickle: bool = False,
    example: str = "",
) -> tuple[nn.Module, Source]:
    """A model for ``task``, such as a Teacher: float32, on the CPU, in eval mode; and its source.

    A registered adapter of the task loads it, else the stock class that transformers or timm has
    for the task. A matta output folder stands for the TA in it. ``adapter`` is asked first; it need
    not be registered. example: how it will be called, for a Teacher that a function builds.
    """
    source = open_source(text, model_config=model_config, allow_pickle=allow_pickle)
    if source.builder:
        source = replace(source, example=example, task=task)
    if source.folder is not None and not (source.folder / "config.json").exists():
        space = Workspace(source.folder)
        if space.ta.is_dir():
            source = replace(open_source(f"local-dir:{space.current_ta()}"), name=source.name)
    refusal: MattaError | None = None
    for known in [*([adapter] if adapter else []), *plugins.adapters().values()]:
        if known.task in (task, "") and plugins.knows(known, source):
            try:
                model = opened(known, source).float().eval()
                if known.task != task:
                    own = f"is a model for {known.task}, not for {task}"
                    raise MattaError(f"{source.name!r} {own}.")
                return model, source
            except MattaError as error:  # what cannot be nested may still teach
                refusal = error
    try:
        return _load_stock(source, task).float().eval(), source
    except MattaError as error:
        raise (refusal or error) from None


def opened(adapter: Adapter, source: Source) -> nn.Module:
    """The model that an adapter makes of a source.

    Raises ``MattaError`` where it cannot: whatever the libraries under it make of what is wrong.
    """
    try:
        return adapter.load(source)
    except MattaError:
        raise
    except Exception as error:
        what = f"{source.name!r} cannot be opened by the adapter {adapter.name!r}"
        raise MattaError(f"{what}: {type(error).__name__}: {said(error)}.") from error


def own_memory(model: nn.Module) -> None:
    """Give tensors that are mapped from a file memory of their own, and let go of the file's.

    Its pages would else stay as long as any tensor of the file is in use: converting GPT-2 then
    takes 1.8 times the TA's bytes instead of 1.3. Where the system does not tell what is mapped,
    all stays as it is.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return
    mapped = re.findall(r"^(\w+)-(\w+) \S+ \S+ \S+ [1-9]\d* ", maps, re.MULTILINE)
    files = [(int(start, 16), int(stop, 16)) for start, stop in mapped]
    for tensor in (*model.parameters(), *model.buffers()):
        at, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
        if not any(start <= at < stop for start, stop in files):
            continue
        tensor.data = tensor.data.clone()
        at, end = -(-at // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if end > at:
            advise(ctypes.c_void_p(at), ctypes.c_size_t(end - at), mmap.MADV_DONTNEED)


def _load_stock(source: Source, task: str) -> nn.Module:
    """The model as transformers or timm loads it."""
    if source.module is not None:
        return source.module.cpu()
    if source.tensors is not None:
        what = f"{source.name!r} is a state dict of no architecture known for {task}"
        raise MattaError(f"{what}: pass a folder instead.")
    try:
        if task == "image_classification":
            if source.folder is None or "architecture" in read_json(source.folder / "config.json"):
                import timm

                name = f"local-dir:{source.folder}" if source.folder else source.name
                return timm.create_model(name, pretrained=True)
            from transformers import AutoModelForImageClassification

            return AutoModelForImageClassification.from_pretrained(str(source.folder))
        if task == "causal_lm" and source.folder is not None:
            from transformers import AutoModelForCausalLM

            return AutoModelForCausalLM.from_pretrained(str(source.folder))
    except MattaError:
        raise
    except Exception as error:  # the stock libraries raise whatever their own dependencies raise
        raise MattaError(f"{source.name!r} cannot be loaded for {task}: {said(error)}") from error
    raise MattaError(f"{source.name!r} is no model for {task} that matta can load.")
