"""Files and folders that appear whole or not at all, and sums that tell whether they still are."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from matta_cli.errors import MattaError


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
    """A temporary file beside ``path`` that takes its place on success, and else disappears."""
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
    """A temporary folder beside ``path`` that takes its place on success.

    On failure it disappears, and with it the folders above that were made for it. Raises
    ``MattaError`` where ``path`` is there and may not be replaced.
    """
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


def seal(folder: Path) -> None:
    """Write down the sha256 of every file of a folder (``SHA256SUMS``, as sha256sum reads it)."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sums = "".join(f"{_sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in files)
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")


def is_sound(folder: Path) -> bool:
    """Whether every file of a sealed folder is there and as it was written."""
    try:
        lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        sums = [line.split("  ", 1) for line in lines]
        return bool(sums) and all(_sha256(folder / name) == value for value, name in sums)
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def alone(folder: Path, said: str) -> Iterator[None]:
    """Hold a folder's lock, which the system frees however the process ends.

    Raises ``MattaError`` where another process holds it; ``said`` begins its sentence.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(str(own(folder / ".lock")))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise MattaError(f"{said} in {folder}: wait for it, or take another folder.") from None
    try:
        yield
    finally:
        lock.release()


def own(path: Path) -> Path:
    """``path``, which is written to as it is there.

    Raises ``MattaError`` where it is a link: a folder from elsewhere could have any file changed.
    """
    if path.is_symlink():
        raise MattaError(f"{path} is a link to {path.resolve()}: it is not written to; remove it.")
    return path


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    return "sha256:" + _sha256(path)


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as opened:
        while chunk := opened.read(1 << 22):
            total.update(chunk)
    return total.hexdigest()


def text_digest(text: str) -> str:
    """sha256 of a text."""
    return "sha256:" + hashlib.sha256(text.encode("utf-8")).hexdigest()


def digest(folder: Path) -> str:
    """sha256 over a folder's weight files."""
    files = sorted(folder.glob("*.safetensors"))
    return "sha256:" + hashlib.sha256("".join(_sha256(file) for file in files).encode()).hexdigest()
