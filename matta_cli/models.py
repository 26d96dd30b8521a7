"""From what the user typed (a folder, a file, a timm name, a hub id) to an opened model."""

from __future__ import annotations

import ctypes
import json
import mmap
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from matta_cli import checkpoint, registry, supernet
from matta_cli.adapter import Adapter, Source
from matta_cli.errors import MattaError, refused_code, said

_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_BUILDER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_WRAPPED = ("state_dict", "model", "model_state_dict")  # where training scripts put the state dict
_TEMPLATE = "template"  # in a folder of matta's own format: the stock configuration of a smaller model, and the sizes
_COMPANIONS = (
    "tokenizer*.json",
    "tokenizer.model",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "spiece.model",
    "sentencepiece*.model",
    "*.tiktoken",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    # what sentence-transformers adds to an encoder; its further steps (1_Pooling) are folders
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "[0-9]_*/*.json",
)
_OTHER_FOLDERS = "[!0-9]*/*"  # exports to other formats; the steps of sentence-transformers (1_Pooling) have a number


def open_source(text: str, *, model_config: Path | None = None, allow_pickle: bool = False) -> Source:
    """Find and open what ``text`` names: a local folder comes first, then a local file, a builder, a timm name, a hub id.

    model_config: the user's ``--config``, a JSON file about the architecture, for sources that do not bring their own.
    allow_pickle: whether a file may run code while it is opened (whole pickled modules need that).

    Raises ``MattaError`` where nothing of that name is found or the file cannot be opened.
    """
    config = _read_json(model_config) if model_config is not None else {}
    prefix, _, rest = text.partition(":")
    wanted = prefix if prefix in ("local-dir", "hf-hub") and rest else ""
    name = rest if wanted else text
    path = Path(name).expanduser()
    if wanted != "hf-hub":
        if path.is_dir():
            if (path / _TEMPLATE).is_dir():
                return _open_own(path, text)
            return Source(name=text, config=config, folder=path, beside=path)
        if path.is_file():
            return _open_file(path, text, config, allow_pickle)
        if wanted == "local-dir":
            raise MattaError(f"There is no folder {name!r}.")
        if _BUILDER.fullmatch(name):
            return Source(name=name, config=config, builder=name)
        if _looks_like_path(name):
            raise MattaError(f"There is no file or folder {name!r}.")
        if _is_timm_name(name):
            return Source(name=name, config=config)
    folder = _download(name, text)
    return Source(name=text, config=config, folder=folder, beside=folder)


def open_weights(text: str, *, allow_pickle: bool = False) -> Mapping[str, Tensor]:
    """The state dict in the file ``text``. Raises ``MattaError`` where it is something else."""
    source = open_source(text, allow_pickle=allow_pickle)
    tensors = source.module.state_dict() if source.module is not None else source.tensors
    if tensors is None:
        raise MattaError(f"--weights {text!r} is no state dict: pass a file, {', '.join(_FILES)}.")
    return tensors


def load_model(
    text: str,
    task: str,
    *,
    adapter: Adapter | None = None,
    model_config: Path | None = None,
    allow_pickle: bool = False,
    example: str = "",
) -> tuple[nn.Module, Source]:
    """A frozen-quality model for ``task`` (a Teacher): float32, CPU, eval mode, and the source it came from.

    A registered adapter of the task loads it, else the stock class that transformers or timm has for the task. A matta
    output folder stands for the TA in it. ``adapter`` is asked first; it need not be registered. example: how it will be
    called, for a Teacher that a function builds.
    """
    source = open_source(text, model_config=model_config, allow_pickle=allow_pickle)
    if source.builder:
        source = replace(source, example=example, task=task)
    if source.folder is not None and not (source.folder / "config.json").exists() and (source.folder / "ta").is_dir():
        current = open_source(f"local-dir:{checkpoint.current_ta(source.folder)}")
        source = replace(current, name=source.name)
    refusal: MattaError | None = None
    for known in [*([adapter] if adapter else []), *registry.adapters().values()]:
        if known.task in (task, "") and registry.knows(known, source):
            try:
                model = known.load(source).float().eval()
                if known.task != task:
                    raise MattaError(f"{source.name!r} is a model for {known.task}, not for {task}.")
                return model, source
            except MattaError as error:  # what cannot be nested may still teach
                refusal = error
    try:
        return _load_stock(source, task).float().eval(), source
    except MattaError as error:
        raise (refusal or error) from None


def save_model(
    adapter: Adapter, model: nn.Module, folder: Path, state: Mapping[str, Tensor] | None = None, *, own: bool = False
) -> str:
    """Write a model into a folder: in the stock library's format, or where that cannot express its sizes in matta's own.

    state: the values of its tensors, where ``model`` is as ``build`` gave it. They are written one by one, so that views of a
    larger model need no second copy in memory but of one tensor at a time. own: matta's own format in any case.
    Returns why the stock format was not possible; empty where it was. ``open_source`` knows both.
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
    smallest = supernet.own_sizes(axes, {axis.name: axis.step for axis in axes})
    (folder / _TEMPLATE).mkdir()
    adapter.save(adapter.build(model, smallest), folder / _TEMPLATE)
    for weights in (folder / _TEMPLATE).glob("*.safetensors"):
        weights.unlink()
    sizes = supernet.full_sizes(axes)
    (folder / _TEMPLATE / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")
    kept: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        kept.setdefault(id(tensor), name)  # of tied tensors the first name
    own = model.state_dict()
    save_file({name: own[name].contiguous() for name in kept.values()}, str(folder / "model.safetensors"), {"format": "pt"})


@torch.no_grad()
def _overwritten(folder: Path, model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Write ``state`` over the values in a folder's safetensors files; False, and nothing written, if the names are others."""
    named = model.state_dict(keep_vars=True)
    known = {id(named[name]): tensor for name, tensor in state.items() if name in named}
    values = {name: known[id(tensor)] for name, tensor in named.items() if id(tensor) in known}  # a tied one by every name
    files = sorted(folder.glob("*.safetensors"))
    headers = [_header(path) for path in files]
    if any(name not in values for entries, _ in headers for name in entries):
        return False
    for path, (entries, start) in zip(files, headers, strict=True):
        with path.open("r+b") as file:
            for name, entry in entries.items():
                tensor = values[name].detach().to("cpu", named[name].dtype).contiguous()
                if list(tensor.shape) != entry["shape"]:
                    raise MattaError(f"The tensor {name} was saved with shape {entry['shape']}, not {list(tensor.shape)}.")
                file.seek(start + entry["data_offsets"][0])
                file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return True


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, by name, and where their values begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return entries, 8 + length


def own_memory(model: nn.Module) -> None:
    """Give tensors that are mapped from a file memory of their own, and let go of the file's.

    Its pages would else stay as long as any tensor of the file is in use. Where the system does not tell what is mapped,
    all stays as it is.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return
    files = [(int(a, 16), int(b, 16)) for a, b in re.findall(r"^(\w+)-(\w+) \S+ \S+ \S+ [1-9]\d* ", maps, re.MULTILINE)]
    for tensor in (*model.parameters(), *model.buffers()):
        at, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
        if not any(start <= at < stop for start, stop in files):
            continue
        tensor.data = tensor.data.clone()
        at, end = -(-at // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if end > at:
            advise(ctypes.c_void_p(at), ctypes.c_size_t(end - at), mmap.MADV_DONTNEED)


def _open_own(folder: Path, text: str) -> Source:
    """A folder of matta's own format."""
    sizes = _read_json(folder / _TEMPLATE / "sizes.json")
    config = _read_json(folder / _TEMPLATE / "config.json")
    found = _open_file(folder / "model.safetensors", text, config, allow_pickle=False)
    return replace(found, sizes=sizes, beside=folder)


def copy_companions(source: Path, target: Path) -> list[str]:
    """Copy what belongs to a checkpoint besides its weights (tokenizer, preprocessing, pooling, ...). Returns the names."""
    found = {path for pattern in _COMPANIONS for path in source.glob(pattern) if path.is_file()}
    names = sorted(path.relative_to(source).as_posix() for path in found)
    for name in names:
        if (source / name).resolve() != (target / name).resolve():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, target / name)
    return names


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer's files."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "*.tiktoken")
    return any(path.is_file() for pattern in names for path in folder.glob(pattern))


def open_tokenizer(folder: Path, given: str, vocabulary: int) -> Any:
    """The tokenizer in a model's folder, else the one that ``convert.tokenizer`` names.

    Raises ``MattaError`` where there is none, it does not open, or the model has no ``vocabulary`` for its tokens.
    """
    from transformers import AutoTokenizer

    # without its files, transformers makes up a tokenizer of one token from the model's config.json
    own = has_tokenizer(folder)
    if not own and not given:
        raise MattaError(f"There is no tokenizer in {str(folder)!r}: convert again with --tokenizer FOLDER_OR_HUB_ID.")
    where = str(folder) if own else given
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(where)
    except Exception as error:  # transformers raises what its backends raise
        raise MattaError(
            f"The tokenizer in {where!r} cannot be opened: convert again with --tokenizer FOLDER_OR_HUB_ID. ({said(error)})"
        ) from error
    if len(tokenizer) < 2:
        raise MattaError(f"The tokenizer in {where!r} has {len(tokenizer)} tokens: convert again with --tokenizer.")
    if len(tokenizer) > vocabulary:
        raise MattaError(
            f"The tokenizer has {len(tokenizer):,} tokens, but the model's vocabulary {vocabulary:,}: pass the model's own "
            "with --tokenizer."
        )
    return tokenizer


def strip_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict keys as the bare module has them, without what ``torch.compile`` and DDP put before them."""
    named = {key.replace("_orig_mod.", ""): tensor for key, tensor in tensors.items()}
    while named and all(key.startswith("module.") for key in named):
        named = {key.removeprefix("module."): tensor for key, tensor in named.items()}
    return named


def _open_file(path: Path, text: str, config: Mapping[str, Any], allow_pickle: bool) -> Source:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return Source(name=text, config=config, tensors=strip_prefixes(load_file(str(path))))
        except (SafetensorError, OSError) as error:
            raise MattaError(f"{text!r} is damaged, or not a safetensors file: {error}.") from error
    if path.suffix not in _FILES:
        raise MattaError(f"{text!r} is not a model file: matta opens {', '.join(_FILES)}, or a folder.")
    opened = _torch_load(path, text, allow_pickle)
    while isinstance(opened, Mapping):
        if opened and all(isinstance(value, Tensor) for value in opened.values()):
            return Source(name=text, config=config, tensors=strip_prefixes(opened))
        inner = [opened[key] for key in _WRAPPED if isinstance(opened.get(key), (Mapping, nn.Module))]
        if not inner:
            keys = ", ".join(repr(key) for key in list(opened)[:4]) or "nothing"
            raise MattaError(f"{text!r} holds a dictionary with {keys}, but no state dict (tensors by name).")
        opened = inner[0]
    if isinstance(opened, nn.Module):
        return Source(name=text, config=config, module=_unwrapped(opened))
    raise MattaError(f"{text!r} holds a {type(opened).__name__}, but a state dict (tensors by name) is needed.")


def _torch_load(path: Path, text: str, allow_pickle: bool) -> Any:
    damaged = f"{text!r} is damaged, or not a file that torch.save wrote"
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"  # only this format can be mapped into memory
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it goes on to raise
            # weights_only is the wall between a file from the internet and code that runs: it never goes without the flag
            return torch.load(path, map_location="cpu", weights_only=not allow_pickle, mmap=zipped)
    except Exception as error:  # what torch.load raises on a foreign file is open-ended, with the flag even more so
        message = str(error)
        if "TorchScript" in message:
            raise MattaError(f"{text!r} is a TorchScript archive: save the model's state dict instead.") from error
        if code := refused_code(error):
            raise MattaError(
                f"{text!r} holds more than a state dict, and opening it runs code that it names ({code}): save "
                "model.state_dict() instead, or, if you trust its author, convert it with --allow-pickle."
            ) from error
        if isinstance(error, (ImportError, AttributeError)):
            raise MattaError(f"{text!r} needs code that is not installed here: {message.splitlines()[0]}.") from error
        raise MattaError(f"{damaged}.") from error


def _unwrapped(module: nn.Module) -> nn.Module:
    """The user's own module, without torch.compile's and DDP's wrappers."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and type(module).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _download(name: str, text: str) -> Path:
    """The hub's model folder ``name``, downloaded: JSON, tokenizer files, and safetensors (pickles only if there are none)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    kinds = ["*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja"]
    others = [_OTHER_FOLDERS]
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*kinds, "*.safetensors"], ignore_patterns=others))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*kinds, "pytorch_model*.bin"], ignore_patterns=others))
    except HFValidationError:
        raise MattaError(f"{text!r} is neither a local folder or file, nor a timm name, nor can it be a hub id.") from None
    except GatedRepoError:
        raise MattaError(f"{text!r} is gated on the hub: ask for access on its page and log in with `hf auth login`.") from None
    except RepositoryNotFoundError:
        raise MattaError(
            f"{text!r} is neither a local folder nor file, and the hub has no such model (or it is private: `hf auth login`)."
        ) from None
    except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's errors
        raise MattaError(
            f"{text!r} is neither a local folder nor file, and the hub could not be reached: pass a local path, "
            "or try again online."
        ) from error
    return folder


def _load_stock(source: Source, task: str) -> nn.Module:
    """The model as transformers or timm loads it."""
    if source.module is not None:
        return source.module.cpu()
    if source.tensors is not None:
        raise MattaError(f"{source.name!r} is a state dict of no architecture known for {task}: pass a folder instead.")
    try:
        if task == "image_classification":
            if source.folder is None or "architecture" in _read_json(source.folder / "config.json"):
                import timm

                return timm.create_model(f"local-dir:{source.folder}" if source.folder else source.name, pretrained=True)
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise MattaError(f"There is no file {str(path)!r}.") from None
    except ValueError as error:
        raise MattaError(f"{str(path)!r} is not valid JSON: {error}.") from None
    if not isinstance(config, dict):
        raise MattaError(f"{str(path)!r} is not a JSON object.")
    return config


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith((*_FILES, "/")) or "\\" in name or name.count("/") > 1


def _is_timm_name(name: str) -> bool:
    if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)?", name):
        return False
    import timm

    return timm.is_model(name.split(".")[0])


def weights_digest(model: nn.Module) -> str:
    """sha256 over a model's tensors, by name."""
    import hashlib

    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return "sha256:" + total.hexdigest()
