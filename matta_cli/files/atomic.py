"""Files and folders that appear whole or not at all, and sums that tell whether they still are."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from matta_cli.errors import MattaError
from matta_cli.files import reading

if TYPE_CHECKING:
    from filelock import FileLock


# what is written lies beside its place, in .NAME.matta-xxxxxxxx, which holds these
_LOCK, _NEW, _OLD = "lock", "new", "old"


def atomic_write(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the whole new one."""
    with atomic_file(path) as temp:
        temp.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place on success, and else disappears."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _beside(path) as place:
        yield place / _NEW
        _synced(place / _NEW)
        (place / _NEW).replace(path)


@contextlib.contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place on success.

    On failure it disappears, and with it the folders above that were made for it. Raises
    ``MattaError`` where ``path`` is there and may not be replaced.
    """
    refuse_existing(path, overwrite)
    new = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _beside(path) as place:
            (place / _NEW).mkdir()
            yield place / _NEW
            for file in (place / _NEW).rglob("*"):
                if file.is_file():
                    _synced(file)
            refuse_existing(path, overwrite)  # another process may have been faster
            if path.exists():
                path.replace(place / _OLD)
            (place / _NEW).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # where another process has written there
            for parent in new:
                parent.rmdir()
        raise


@contextlib.contextmanager
def called(name: str, folder: Path) -> Iterator[None]:
    """Have what is wrong with files of a folder that will be gone be said of what they are of."""
    try:
        yield
    except MattaError as error:
        if str(folder) not in str(error):
            raise
        raise MattaError(str(error).replace(str(folder), name)) from error


def remove(path: Path) -> None:
    """Remove a folder: at once as far as anyone can see, whatever becomes of this process."""
    with contextlib.suppress(OSError), _beside(path) as place:
        path.replace(place / _NEW)


def sweep(folder: Path, name: str = "") -> None:
    """Clear away what killed processes have left half-written in a folder (of one name's alone).

    What one of them had moved out of the way, and not yet replaced, is replaced. The work of
    living processes stays.
    """
    from filelock import FileLock, Timeout

    for place in sorted(folder.glob(f".{glob.escape(name) if name else '*'}.matta-*")):
        # where the folder cannot be written, or cannot be locked, all stays as it is
        with contextlib.suppress(OSError, NotImplementedError, Timeout):
            if not (place / _LOCK).exists():
                place.rmdir()  # empty: whoever made it was killed at once, or makes another one
                continue
            with FileLock(str(place / _LOCK), timeout=0):
                _clear(place, place.with_name(place.name[1:].rpartition(".matta-")[0]))


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A new folder beside ``path`` for what is to take its place; it is locked, and goes again."""
    sweep(path.parent, path.name)
    place, lock = _locked(path)
    try:
        yield place
    finally:
        _clear(place, path)
        lock.release()


def _locked(path: Path) -> tuple[Path, FileLock]:
    """Such a folder, and its lock."""
    from filelock import FileLock

    while True:
        place = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.matta-"))
        lock = FileLock(str(place / _LOCK))
        try:
            lock.acquire(timeout=0)
        except NotImplementedError:  # a file system without locks
            (place / _LOCK).touch()
        if (place / _LOCK).exists():  # else another process took it for a dead one's
            return place, lock


def _clear(place: Path, path: Path) -> None:
    """Remove the folder in which something was written that was to be at ``path``.

    If that is gone, what was to take its place takes it now: it was whole by then.
    """
    if (place / _OLD).exists() and not path.exists():
        with contextlib.suppress(OSError):
            (place / _NEW).replace(path)
        if not path.exists():
            (place / _OLD).replace(path)
    for inner in (_NEW, _OLD):
        if (place / inner).is_dir():
            shutil.rmtree(place / inner, ignore_errors=True)
    # with the lock last: what a kill leaves of it can be told from what is being made
    shutil.rmtree(place, ignore_errors=True)


def _synced(file: Path) -> None:
    """Make sure that a file is on the disk; some writers leave what only the owner can read."""
    file.chmod(0o644)
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


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


def sealed(folder: Path) -> dict[str, str]:
    """The files of a sealed folder as they were written: name in it -> sha256.

    Raises ``ValueError`` where the sums are damaged, and as ``reading.text`` does.
    """
    lines = reading.text(folder / "SHA256SUMS").splitlines()
    return {name: value for value, name in (line.split("  ", 1) for line in lines)}


def is_sound(folder: Path) -> bool:
    """Whether every file of a sealed folder is there and as it was written."""
    try:
        sums = sealed(folder)
        return bool(sums) and all(_sha256(folder / name) == sum for name, sum in sums.items())
    except (OSError, ValueError, MattaError):
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
        where = reading.real(path)
        raise MattaError(f"{path} is a link to {where}: it is not written to; remove it.")
    return path


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    return "sha256:" + _sha256(path)


def _sha256(path: Path) -> str:
    if not path.is_file():  # a device has no end
        raise FileNotFoundError(errno.ENOENT, "There is no such file", str(path))
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
