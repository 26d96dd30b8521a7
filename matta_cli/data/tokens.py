"""Token files: a corpus is tokenized once, onto disk, and memory-mapped from then on.

They lie in ``$MATTA_CACHE/tokens``, else in ``~/.cache/matta/tokens``: a folder for each corpus and
tokenizer, named by a digest of both. Nothing is ever deleted from there by itself; any folder may
be, at any time, and is made again when needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from matta_cli import trust
from matta_cli.errors import MattaError
from matta_cli.files import atomic, reading
from matta_cli.files.cache import cache

FORMAT = 3  # also that of how text becomes tokens: another one is another key

_BLOCK = 1 << 22  # bytes that are checked at once


def stored(
    identity: Any,
    dtype: str,
    write: Callable[[], Iterator[np.ndarray]],
    more: Callable[[], dict[str, Any]],
    limit: int = 0,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Tokens ``dtype`` [n] on disk, and their card.

    They come from the cache, else of ``write``, whose arrays are put end to end. ``identity``: what
    JSON can hold; the tokens are its function. ``limit``: the first so many tokens are enough
    (0: all); a file that holds more serves as well. ``more`` goes into the card and is asked after
    the last array. What is damaged, short or of another key is made anew. Of several processes one
    writes, and the others wait. Raises ``MattaError`` where the folder cannot be written.
    """
    from filelock import FileLock

    identity = json.loads(json.dumps({"format": FORMAT, "dtype": dtype, "of": identity}))
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    folder = cache() / key
    with _writable(folder.parent):
        trust.made_home()
        folder.parent.mkdir(exist_ok=True)
        lock = FileLock(str(folder.with_suffix(".lock")))
        lock.acquire()
    try:
        card = _sound(folder, identity, limit)
        if card is None:
            atomic.sweep(folder.parent)
            with _writable(folder.parent), atomic.atomic_folder(folder, overwrite=True) as fresh:
                written = _write(fresh / "tokens.bin", dtype, write(), limit)
                card = {"identity": identity, **written, **more()}
                atomic.atomic_write(fresh / "card.json", json.dumps(card) + "\n")
        if not card["count"]:
            return np.zeros(0, dtype), card  # an empty file cannot be mapped
        tokens = np.memmap(folder / "tokens.bin", dtype=dtype, mode="r", shape=(card["count"],))
        return tokens[:limit] if limit else tokens, card
    finally:
        lock.release()


def _write(path: Path, dtype: str, arrays: Iterator[np.ndarray], limit: int) -> dict[str, Any]:
    """Write the arrays until there are ``limit`` tokens. Returns what tells a sound file."""
    count, crc, complete = 0, 0, True
    with path.open("wb") as file:
        for array in arrays:
            if limit and count + len(array) >= limit:
                array, complete = array[: limit - count], False
            content = array.astype(dtype, copy=False).tobytes()
            file.write(content)
            count, crc = count + len(array), zlib.crc32(content, crc)
            if not complete:
                break
    return {"count": count, "crc32": crc, "complete": complete}


def _sound(folder: Path, identity: Any, limit: int) -> dict[str, Any] | None:
    """The card of a token file that is as it was written and long enough, else None."""
    try:
        card = reading.lenient(folder / "card.json")
        if card["identity"] != identity or not (card["complete"] or 0 < limit <= card["count"]):
            return None
        path, crc = folder / "tokens.bin", 0
        if path.stat().st_size != card["count"] * np.dtype(identity["dtype"]).itemsize:
            return None
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                crc = zlib.crc32(block, crc)
        return card if crc == card["crc32"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        failed = f"The tokens cannot be kept in {folder}: {error.strerror or error}"
        raise MattaError(f"{failed}; set MATTA_CACHE to a folder with room.") from error
