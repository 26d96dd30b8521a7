"""The files of a model's folder: regular ones that lie in it, and none that it only points to."""

from __future__ import annotations

import os
import re
from codecs import BOM_UTF8
from pathlib import Path

from matta_cli import trust
from matta_cli.errors import MattaError
from matta_cli.files.reading import lenient, only_files, real, record, refuse_pointer

_KINDS = ("json", "safetensors", "onnx", "bin", "pt", "pth", "ckpt", "model", "jinja")
_PATTERNS = (*(f"*.{kind}" for kind in _KINDS), "*.tiktoken", "vocab.*", "merges.txt")
_PATTERNS += ("[0-9]*/*.json", "template/*.json", "importance/*.safetensors")
_PATTERNS += ("additional_chat_templates/*",)


def check(folder: Path) -> None:
    """Raise ``MattaError`` where a folder points to files, or to code, that are not its own.

    And where a pipe or a device lies in it, or a folder in the place of a file. Links that the
    hub's cache is made of stay within that, and count as its files.
    """
    only_files(folder)
    for path in sorted({path for pattern in _PATTERNS for path in folder.glob(pattern)}):
        if inside(folder, path).is_dir():
            raise MattaError(f"{path} is a folder, where a file belongs: put that in its place.")
        refuse_pointer(path)
    config = folder / "config.json"
    if config.is_file() and config.read_bytes()[: len(BOM_UTF8)] == BOM_UTF8:
        mark = "begins with a byte order mark, with which no library reads it"
        raise MattaError(f"{config} {mark}: save it as UTF-8 without one.")
    if (folder / "adapter_config.json").is_file():
        _refuse_adapter(folder)
    for path in folder.glob("*.index.json"):
        shards = lenient(path)
        weights = shards.get("weight_map") if isinstance(shards, dict) else None
        for name in sorted({*map(str, weights.values())} if isinstance(weights, dict) else ()):
            _named(folder, path, name)
    steps = lenient(folder / "modules.json")
    for step in steps if isinstance(steps, list) else ():
        if not isinstance(step, dict):
            continue
        _named(folder, folder / "modules.json", str(step.get("path", "")))
    _tokenizer(folder, folder / "tokenizer_config.json")
    for name in ("config.json", "template/config.json"):
        trust.check_config(lenient(folder / name), str(folder / name))


def _refuse_adapter(folder: Path) -> None:
    """Raise ``MattaError`` for a folder of peft, which is no model or is one and more."""
    kind = str(record(lenient(folder / "adapter_config.json")).get("peft_type", ""))
    what = f"{str(folder)!r} is an adapter of another model ({kind or 'such as LoRA'})"
    if re.search("PROMPT|PREFIX|P_TUNING", kind):
        beside = "what it learned stands beside the model's weights, and cannot be merged into them"
        raise MattaError(f"{what}: {beside}, so that matta cannot nest it.")
    merge = "merge it into its model first (merge_and_unload, then save_pretrained)"
    merged = ""
    if any(folder.glob("model*.safetensors")):
        merged = "; if the weights beside it are merged, take adapter_config.json out"
    raise MattaError(f"{what}: {merge}{merged}.")


def _tokenizer(folder: Path, path: Path) -> None:
    """Check the files that a tokenizer's configuration names, which some releases open."""
    settings = lenient(path)
    for key, value in settings.items() if isinstance(settings, dict) else ():
        # many name one of the machine that they were written on, which is not there
        named = isinstance(value, str) and str(key).endswith("_file") and (folder / value).exists()
        names = [value] if named and key != "special_tokens_map_file" else []
        names += value if key == "fast_tokenizer_files" and isinstance(value, list) else []
        for name in names:
            _named(folder, path, str(name))


def inside(folder: Path, path: Path) -> Path:
    """``path``. Raises ``MattaError`` where it is no regular file, or one outside of ``folder``."""
    root, there = real(folder), real(path)
    if not (there.is_relative_to(root) or _of_cache(there, root)):
        copied = "it is not followed: put a copy in its place, if it is meant"
        raise MattaError(f"{path} is a link to {there}, outside of its folder: {copied}.")
    if not there.exists():
        raise MattaError(f"{path} is a link to nothing: put the file in its place.")
    if not (there.is_file() or there.is_dir()):
        raise MattaError(f"{path} is no regular file: put one in its place.")
    return path


def _named(folder: Path, by: Path, name: str) -> None:
    """Check the file or folder that ``by`` names."""
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise MattaError(f"{by} names {name!r}, which lies outside of its folder: it is not read.")
    if path.exists():
        inside(folder, path)


def _of_cache(blob: Path, root: Path) -> bool:
    """Whether a file is what a snapshot of the hub's cache links to.

    It lies among the blobs of the same repository, or among those that the repositories of a cache
    share, and belongs to this user, or to whom the snapshot belongs.
    """
    snapshots = next((path for path in root.parents if path.name == "snapshots"), None)
    if snapshots is None or "--" not in snapshots.parent.name:
        return False
    blobs = snapshots.parent / "blobs", snapshots.parent.parent / "blobs"
    if not any(blob.is_relative_to(path) for path in blobs):
        return False
    own = os.getuid() if hasattr(os, "getuid") else 0
    return blob.stat().st_uid in (own, snapshots.stat().st_uid, 0)
