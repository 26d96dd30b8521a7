"""What names can stand for, told without importing what they name: nothing here imports torch."""

from __future__ import annotations

import difflib
import re
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from matta_cli import trust
from matta_cli.errors import MattaError

FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")  # of weights that matta opens
_WIDTH = re.compile(r"(.+)@(\d*\.?\d+)")


@cache
def installed(group: str) -> dict[str, list[EntryPoint]]:
    """Entry points by name, sorted.

    Two of one name are both kept: which one is meant is not for matta to say.
    """
    by_name: dict[str, list[EntryPoint]] = {}
    for entry in sorted(entry_points(group=group), key=lambda e: (e.name, e.value)):
        # what lies beside code that the user named is not installed
        if entry.dist is not None and str(entry.dist.locate_file("")) in trust.BESIDE:
            continue
        by_name.setdefault(entry.name, []).append(entry)
    return by_name


def origin(entry: EntryPoint) -> str:
    """The object that an entry point names, and the package that it is of."""
    return f"{entry.value} of {entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def entry(group: str, name: str) -> EntryPoint:
    """The entry point of a name. Raises ``MattaError`` where there is none, or several."""
    there = installed(group)
    word = group.removeprefix("matta.").removesuffix("s")
    if name not in there:
        close = difflib.get_close_matches(name, list(there), 1)
        hint = f"did you mean {close[0]!r}? Installed" if close else "installed"
        raise MattaError(f"There is no {word} {name!r}; {hint}: {', '.join(there) or 'none'}.")
    found, *others = there[name]
    if others:
        several = f"There are several {word}s of the name {name!r}"
        each = " and ".join(origin(e) for e in there[name])
        raise MattaError(f"{several}: {each}. Uninstall all but one.")
    return found


def origins() -> dict[str, str]:
    """Name of each installed adapter -> the object that provides it."""
    return {name: entries[0].value for name, entries in installed("matta.adapters").items()}


def looks_like_path(name: str) -> bool:
    """Whether a model's name can only be that of a file or a folder, by how it is written."""
    if name.startswith((".", "/", "~")) or name.endswith((*FILES, ".gguf", "/")):
        return True
    return "\\" in name or name.count("/") > 1


def prefixed(name: str) -> tuple[str, str]:
    """Where a model's name says that it lies (``local-dir``, ``hf-hub``; empty), and the rest."""
    prefix, _, rest = name.partition(":")
    return (prefix, rest) if prefix in ("local-dir", "hf-hub") and rest else ("", name)


def refuse_missing(name: str) -> None:
    """Raise ``MattaError`` where a model's name is a path, and nothing is there."""
    where, rest = prefixed(name)
    if where == "local-dir" and not Path(rest).expanduser().is_dir():
        raise MattaError(f"There is no folder {rest!r}.")
    path = not (where or trust.is_code(name)) and looks_like_path(name)
    if path and not Path(name).expanduser().exists():
        raise MattaError(f"There is no file or folder {name!r}.")


def folder_and_width(name: str) -> tuple[str, float | None]:
    """``FOLDER@0.5`` as a folder and a width, where there is such a folder; else the whole."""
    found = _WIDTH.fullmatch(name)
    return (found[1], float(found[2])) if found and Path(found[1]).is_dir() else (name, None)
