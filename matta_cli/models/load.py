"""From a source to a model."""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from matta_cli import trust
from matta_cli.adapter import Adapter, Source
from matta_cli.errors import MattaError, said
from matta_cli.files.reading import lenient, record
from matta_cli.files.workspace import Workspace
from matta_cli.models import plugins
from matta_cli.models.foreign import layout
from matta_cli.models.quantized import quiet, refuse_missing
from matta_cli.models.source import open_source, read_json
from matta_cli.progress import Say

_SHOWN = 20  # classes that are said by name
# the class of transformers that opens a model of any architecture for a task
_AUTO = {
    "causal_lm": "AutoModelForCausalLM",
    "image_classification": "AutoModelForImageClassification",
    "text_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
}


def load_model(
    text: str,
    task: str,
    *,
    adapter: Adapter | None = None,
    only: Adapter | None = None,
    model_config: Path | None = None,
    allow_pickle: bool = False,
    example: str = "",
    say: Say = lambda _: None,
) -> tuple[nn.Module, Source]:
    """A model for ``task``, such as a Teacher: float32, on the CPU, in eval mode; and its source.

    A registered adapter of the task loads it, else the stock class that transformers or timm has
    for the task. A matta output folder stands for the TA in it. ``adapter`` is asked first; it need
    not be registered. only: the adapter that loads it, and no other. example: how it will be
    called, for a Teacher that a function builds. say: hears what the adapter had to assume.
    """
    source = open_source(text, model_config=model_config, allow_pickle=allow_pickle)
    source = replace(source, drop_head=True, task=task)  # what is left out is said
    if source.builder or only:
        source = replace(source, example=example)
    if source.folder is not None and not (source.folder / "config.json").exists():
        space = Workspace(source.folder)
        if space.ta.is_dir():
            source = replace(open_source(f"local-dir:{space.current_ta()}"), name=source.name)
    if only:
        return _loaded(only, source, say), source
    refusal: MattaError | None = None
    asked = [*([adapter] if adapter else []), *plugins.adapters().values()]
    source = plugins.bare(source, asked)
    for known in asked:
        if known.task in (task, "") and plugins.knows(known, source):
            try:
                return _loaded(known, source, say), source
            except MattaError as error:  # what cannot be nested may still teach
                refusal = error
    try:
        return _load_stock(source, task, say).float().eval(), source
    except MattaError as error:
        raise (refusal or error) from None


def _loaded(adapter: Adapter, source: Source, say: Say) -> nn.Module:
    """The model as an adapter loads it."""
    model = opened(adapter, source).float().eval()
    for note in adapter.notes:
        say(note)
    return model


def opened(adapter: Adapter, source: Source) -> nn.Module:
    """The model that an adapter makes of a source.

    Raises ``MattaError`` where it is for another task than the source is wanted for, and where the
    adapter cannot: whatever the libraries under it make of what is wrong.
    """
    try:
        model = adapter.load(source)
    except MattaError:
        raise
    except Exception as error:
        what = f"{source.name!r} cannot be opened by the adapter {adapter.name!r}"
        raise MattaError(f"{what}: {type(error).__name__}: {said(error)}.") from error
    _refuse_drawn(model, source)
    if source.task not in ("", adapter.task):
        asked = f"{adapter.task}, not for {source.task}"
        raise MattaError(f"{source.name!r} is a model for {asked}.")
    if source.classes and _named(model, source.classes):
        listed = ", ".join(f"{k} {name}" for k, name in enumerate(source.classes[:_SHOWN]))
        more = ", ..." if source.classes[_SHOWN:] else ""
        told = f"Classes are numbered as the file of the weights says: {listed}{more}."
        adapter.notes = [*adapter.notes, told]
    return model


def _refuse_drawn(model: Any, source: Source) -> None:
    """Raise ``MattaError`` where timm leaves out a folder's classifier, and draws one by chance.

    It does where the folder says two numbers of classes.
    """
    config = record(lenient(source.folder / "config.json")) if source.folder else {}
    if "architecture" not in config:
        return
    told = config.get("num_classes", record(config.get("pretrained_cfg")).get("num_classes"))
    own = getattr(model, "num_classes", None)
    if told is not None and own and told != own:
        both = f"num_classes {told} and, in model_args or by its architecture, {own}"
        drawn = "timm would draw a classifier by chance: put the number of its weights there"
        raise MattaError(f"The config.json of {source.name!r} says {both}: {drawn}.")


def _named(model: Any, classes: Sequence[str]) -> bool:
    """Give a model's classes these names, if there are as many, and it has none for them."""
    config, stored = getattr(model, "config", None), getattr(model, "pretrained_cfg", None)
    if isinstance(stored, dict):  # of timm
        fits = getattr(model, "num_classes", 0) == len(classes) and not stored.get("label_names")
        if fits:
            model.pretrained_cfg = model.default_cfg = {**stored, "label_names": list(classes)}
        return fits
    made_up = {k: f"LABEL_{k}" for k in range(len(classes))}
    if config is None or getattr(config, "id2label", None) != made_up:
        return False
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: k for k, name in enumerate(classes)}
    return True


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


def _load_stock(source: Source, task: str, say: Say) -> nn.Module:
    """The model as transformers or timm loads it. Raises ``MattaError`` where it has not all of its
    weights: transformers draws the others by chance.
    """
    if source.module is not None:
        return source.module.cpu()
    if source.tensors is not None:
        what = f"{source.name!r} is a state dict of no architecture known for {task}"
        raise MattaError(f"{what}; {layout(source.tensors)}.")
    try:
        with trust.sealed():
            images = task == "image_classification"
            if images and (source.folder is None or _of_timm(source.folder)):
                import timm

                name = f"local-dir:{source.folder}" if source.folder else source.name
                model = timm.create_model(name, pretrained=True)
                _refuse_drawn(model, source)
                return model
            if task in _AUTO and source.folder is not None:
                import transformers

                _refuse_other(source.folder, source.name, task)
                return _whole(getattr(transformers, _AUTO[task]), source, say)
    except MattaError:
        raise
    except Exception as error:  # the stock libraries raise whatever their own dependencies raise
        raise MattaError(f"{source.name!r} cannot be loaded for {task}: {said(error)}") from error
    raise MattaError(f"{source.name!r} is no model for {task} that matta can load.")


def _whole(kind: Any, source: Source, say: Say) -> nn.Module:
    """The model of a class of transformers in a folder. What of the folder it leaves out is said.

    Raises ``MattaError`` where weights of it are missing.
    """
    with quiet():
        model, report = kind.from_pretrained(
            str(source.folder),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            torch_dtype=torch.float32,  # else it rounds weights to what their config.json says
        )
    refuse_missing(model, report, source.name)
    if unread := sorted(report["unexpected_keys"]):
        more = f" and {len(unread) - 3} more" if unread[3:] else ""
        what = type(model).__name__
        say(f"What is not of a {what} is left out: {', '.join(unread[:3])}{more}.")
    return model


def _refuse_other(folder: Path, name: str, task: str) -> None:
    """Raise ``MattaError`` where a folder says that its model has the head of another task.

    Heads may have tensors of the same names.
    """
    given, head = read_json(folder / "config.json").get("architectures"), _AUTO[task]
    named = str(given[0]) if isinstance(given, list) and given else ""
    texts = task in ("text_classification", "token_classification")
    if texts and named and not named.endswith(head.removeprefix("AutoModel")):
        wrong = f"{name!r} is a {named}, not a model for {task}"
        raise MattaError(f"{wrong}: its head has another task.")


def _of_timm(folder: Path) -> bool:
    return "architecture" in read_json(folder / "config.json")
