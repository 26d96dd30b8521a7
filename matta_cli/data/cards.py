"""What the card of a data set (its README.md) says of its files: which part each one is of."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matta_cli.errors import MattaError

ALL = ""  # the part of files whose own names tell it


def stated(folder: Path, config: str) -> tuple[str, dict[str, set[Path]]]:
    """The configuration of a data set that is read, and its files by part; none where none is told.

    config: the one that is asked for; empty: the default one, as ``datasets`` has it. Raises
    ``MattaError`` where there are several and none is the default, or none of that name.
    """
    known = {_text(own.get("config_name")) or "default": own for own in _configs(folder)}
    if not known:
        return "", {}
    default = [name for name, own in known.items() if own.get("default") is True]
    default += ["default"] if "default" in known else []
    name = config or next(iter(default if len(known) > 1 else known), "")
    if name not in known:
        has = f"The README.md of {str(folder)!r} names the configurations {', '.join(known)}"
        wrong = f"{has}, but not {config!r}" if config else has
        raise MattaError(f"{wrong}: set data.config to the one that is meant.")
    found: dict[str, set[Path]] = {}
    for part, pattern in _patterns(known[name]):
        found.setdefault(part, set()).update(_matching(folder, pattern))
    return name, found if any(found.values()) else {}


def classes(path: Path, column: str) -> list[str] | None:
    """What the numbers in a file's column stand for, where the card of its data set says so.

    The card lies beside the file, or, as of ``data/train.csv``, one folder above.
    """
    told = [_head(folder).get("dataset_info") for folder in (path.parent, path.parent.parent)]
    infos = [own for info in told for own in (info if isinstance(info, list) else [info])]
    listed = [own.get("features") for own in infos if isinstance(own, dict)]
    features = [own for those in listed for own in (those if isinstance(those, list) else [])]
    found = [_names(own) for own in features if isinstance(own, dict) and own.get("name") == column]
    # of several configurations that differ nobody knows which one is meant
    return found[0] if found and all(own == found[0] for own in found) else None


def _names(feature: dict[str, Any]) -> list[str] | None:
    """The names of a feature of classes, or of lists of them."""
    for key in ("list", "sequence", "dtype"):
        kind = feature.get(key)
        label = kind.get("class_label") if isinstance(kind, dict) else None
        names = label.get("names") if isinstance(label, dict) else None
        if isinstance(names, dict):
            known = {str(k): name for k, name in names.items()}
            names = [known.get(str(k)) for k in range(len(known))]
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return names
    return None


def _configs(folder: Path) -> list[dict[str, Any]]:
    """What the card's head lists, as far as it is of a form that is known."""
    listed = _head(folder).get("configs")
    return [own for own in listed if isinstance(own, dict)] if isinstance(listed, list) else []


def _head(folder: Path) -> dict[str, Any]:
    """What stands above the card's text."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    now = path.stat()
    return _read(path, now.st_size, now.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read(path: Path, _size: int, _time: int) -> dict[str, Any]:
    """A card's head, which is asked for again for each file that lies beside it."""
    from huggingface_hub import metadata_load

    try:
        head: Any = metadata_load(path)
    except Exception:  # a card is for people first: one that is damaged tells nothing
        return {}
    return head if isinstance(head, dict) else {}


def _patterns(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Parts, and patterns of the files that are of each."""
    files, inside = config.get("data_files"), config.get("data_dir")
    start = f"{inside.strip('/')}/" if isinstance(inside, str) and inside.strip("./") else ""
    if files is None and start:
        yield ALL, f"{start}**/*"
    if isinstance(files, dict):
        files = [{"split": part, "path": path} for part, path in files.items()]
    for own in files if isinstance(files, list) else [files]:
        entry = own if isinstance(own, dict) else {"path": own}
        paths = entry.get("path")
        for path in paths if isinstance(paths, list) else [paths]:
            if isinstance(path, str):
                yield _text(entry.get("split")) or "train", start + path


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _matching(folder: Path, pattern: str) -> set[Path]:
    """The files in a folder that a pattern is of: none that lie outside of it."""
    inside = Path(pattern)
    if not inside.parts or inside.anchor or ".." in inside.parts:
        return set()
    try:
        return {path for path in folder.glob(str(inside)) if path.is_file()}
    except ValueError:  # a part such as a**b, before Python 3.13
        return set()
