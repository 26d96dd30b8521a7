"""What matta writes: every file and folder appears whole or not at all; nothing here is ever unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matta_cli.adapter import Adapter, Axis
from matta_cli.errors import MattaError

FORMAT = 1


def atomic_write(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temp).chmod(0o644)
        Path(temp).replace(path)
    except BaseException:
        Path(temp).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place on success and disappears on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temp
        with temp.open("rb") as opened:
            os.fsync(opened.fileno())
        temp.chmod(0o644)
        temp.replace(path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place on success and disappears on failure, and folders made for it."""
    refuse_existing(path, overwrite)
    new = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temp
        for file in temp.rglob("*"):
            if file.is_file():
                file.chmod(0o644)  # some writers leave what only the owner can read
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        temp.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            path.replace(old / path.name)
            temp.replace(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temp.replace(path)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        with contextlib.suppress(OSError):  # where another process has written there
            for parent in new:
                parent.rmdir()
        raise


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise ``MattaError`` if finished work lies at ``path`` and may not be replaced."""
    if path.exists() and not overwrite:
        # the folder of what has been converted is where the rest must be, too
        elsewhere = ", or --out for another folder" if path.name == "ta" else ""
        raise MattaError(f"{path} holds finished work; pass --overwrite to replace it{elsewhere}.")


def steps(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, oldest first."""
    found = [p for p in (run / "checkpoints").glob("step-*") if p.is_dir()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(path.name.removeprefix("step-"))


def newest(run: Path) -> Path | None:
    """The last checkpoint of a run, or None."""
    return next((p for p in reversed(steps(run)) if (p / "trainer.json").exists()), None)


def seal(folder: Path) -> None:
    """Write down the sha256 of every file of a folder (``SHA256SUMS``, as sha256sum reads it)."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sums = "".join(f"{_sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in files)
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")


def is_sound(folder: Path) -> bool:
    """Whether every file of a sealed folder is there and as it was written."""
    try:
        lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        return bool(lines) and all(_sha256(folder / name) == value for value, name in (line.split("  ", 1) for line in lines))
    except (OSError, ValueError):
        return False


def newest_sound(run: Path) -> tuple[Path | None, list[Path]]:
    """The last checkpoint of a run that is as it was written, and the damaged ones after it."""
    damaged: list[Path] = []
    for path in reversed(steps(run)):
        if is_sound(path):
            return path, damaged
        damaged.append(path)
    return None, damaged


def chosen(run: Path, which: str) -> tuple[Path | None, list[Path]]:
    """A sound checkpoint of a run by ``export.checkpoint``'s words, and damaged ones that were passed over.

    Raises ``MattaError`` where the one that was asked for is not there or is damaged.
    """
    last, damaged = newest_sound(run)
    if last is None or which == "last":
        return last, damaged
    best = json.loads((last / "trainer.json").read_text(encoding="utf-8")).get("best_step", 0)
    name = which if which.startswith("step-") else f"step-{best}"
    if which == "auto" and not best:
        return last, damaged
    if which not in ("auto", "best") and not which.removeprefix("step-").isdigit():
        raise MattaError(f"--checkpoint {which!r} is not known: best, last or step-N.")
    if which == "best" and not best:
        raise MattaError(f"{run} kept no best checkpoint: `matta distill --best WIDTH` does.")
    path = run / "checkpoints" / name
    if is_sound(path):
        return path, damaged
    if which == "auto":
        return last, [*damaged, path]
    raise MattaError(
        f"{path} is {'damaged' if path.exists() else 'not there'}; {run} has {', '.join(p.name for p in steps(run))}."
    )


TRAINING = "Another run is training"  # who holds the lock of an output folder


@contextlib.contextmanager
def alone(folder: Path, said: str) -> Iterator[None]:
    """Hold a folder's lock, which the system frees however the process ends. Raises ``MattaError`` if another one holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(str(folder / ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise MattaError(f"{said} in {folder}: wait for it, or take another folder.") from None
    try:
        yield
    finally:
        lock.release()


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    return "sha256:" + _sha256(path)


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(1 << 22):
            total.update(chunk)
    return total.hexdigest()


def current_ta(out: Path) -> Path:
    """The TA that an output folder stands for: the last checkpoint of its run, else the TA as it was converted."""
    return newest(out / "run") or out / "ta"


def text_digest(text: str) -> str:
    """sha256 of a text."""
    return "sha256:" + hashlib.sha256(text.encode("utf-8")).hexdigest()


def digest(folder: Path) -> str:
    """sha256 over a folder's weight files."""
    files = sorted(folder.glob("*.safetensors"))
    return "sha256:" + hashlib.sha256("".join(_sha256(file) for file in files).encode()).hexdigest()


def write_card(
    folder: Path, adapter: Adapter, axes: Sequence[Axis], base: Mapping[str, int], lineage: Mapping[str, Any], **more: Any
) -> None:
    """``matta.json``: what makes a stock checkpoint a TA or a Student."""
    from matta_cli import __version__

    card = {
        "format": FORMAT,
        "matta": __version__,
        "adapter": adapter.spec or adapter.name,
        "task": adapter.task,
        "axes": [asdict(axis) for axis in axes],
        "base": dict(base),
        "lineage": dict(lineage),
        **more,
    }
    atomic_write(folder / "matta.json", json.dumps(card, indent=1) + "\n")


def read_card(folder: Path) -> dict[str, Any]:
    """``matta.json`` of a folder. Raises ``MattaError`` where it is missing, broken or of a newer format."""
    path = folder / "matta.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if card["format"] > FORMAT:
            raise MattaError(f"{path} has format {card['format']}; this matta reads up to {FORMAT}: upgrade matta.")
        card["axes"] = [Axis.restored(axis) for axis in card["axes"]]
    except FileNotFoundError:
        raise MattaError(f"{folder} is not a folder written by matta (it has no matta.json).") from None
    except (ValueError, KeyError, TypeError) as error:
        raise MattaError(f"{path} is damaged ({error}); write it again with the command that made it.") from None
    return card
