"""Images as files have them, damaged and odd ones too, looked through before they are used."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from matta_cli.data.tokens import stored
from matta_cli.errors import MattaError, said
from matta_cli.files.reading import refuse_pointer
from matta_cli.tasks.image_classification.examples import ORIENTATION, Source, plain

# by the bytes alone PIL would take PostScript for an image as well, and have Ghostscript run it
_COMMON = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "JPEG2000", "AVIF")
_DECODED = (*_COMMON, "DIB", "ICO", "PCX", "TGA")
_WHY = {
    "DecompressionBombError": "it has too many pixels to be opened: scale it down",
    "UnidentifiedImageError": "it is no image of a kind that is read",
}
_KEPT = 1000  # so many images are checked once, and not at every start
_THREADS = 4

# what may be odd about an image, and what becomes of it
_ODD = {
    "frames": "have several frames, of which the first is used",
    "transparent": "have transparent pixels, and transparency is left out, as timm does",
    "turned": "are turned upright, as their EXIF data says",
    "deep": "have 16 bits a channel, and are scaled to 8",
}


@cache
def _formats() -> list[str]:
    """The formats that PIL decodes by itself here, of those that images come in."""
    from PIL import Image

    Image.init()
    return [name for name in _DECODED if name in Image.OPEN]


def decoded(content: bytes, *, small: bool = False) -> Any:
    """The PIL image in a file's bytes. small: in less detail, where that is faster."""
    from PIL import Image

    image = Image.open(io.BytesIO(content), formats=_formats())
    if small:
        image.draft(None, (1, 1))
    image.load()
    return image


def check(source: Source, chosen: Sequence[int], name: str) -> tuple[np.ndarray, list[str]]:
    """A number for each of the chosen images, alike for equal ones, and sentences on odd ones.

    Raises ``MattaError`` with the number of images that cannot be read, and the first.
    """
    if source.content is None:
        return np.zeros(0, np.int64), []
    known: dict[str, Any] = {}

    def numbers() -> Any:
        found, known["odd"] = _checked(source, chosen, name)
        yield found

    if source.identity is None or len(chosen) < _KEPT:
        [found] = numbers()
        return found, known["odd"]
    identity = ["images", name, source.identity, [int(i) for i in chosen]]
    found, card = stored(identity, "<i8", numbers, lambda: known)
    return found, card["odd"]


def _checked(source: Source, chosen: Sequence[int], name: str) -> tuple[np.ndarray, list[str]]:
    assert source.content is not None
    content = source.content

    def look(i: int) -> tuple[int, list[str], str]:
        try:
            own = content(i)
            digest = hashlib.blake2b(own, digest_size=8).digest()
            odd = _odd(own) if source.encoded else _transparent(source.read(i))
            return int.from_bytes(digest, "little", signed=True), odd, ""
        except Exception as error:
            # what PIL raises for a damaged file is open-ended
            return 0, [], _WHY.get(type(error).__name__) or said(error)

    # threads only help where something is decoded
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        looked = list((pool.map if source.encoded else map)(look, map(int, chosen)))
    wrong = [(int(i), why) for i, (_, _, why) in zip(chosen, looked, strict=True) if why]
    if wrong:
        first, why = wrong[0]
        if source.names is not None:
            refuse_pointer(Path(source.root) / str(source.names[first]))
        some = f"{len(wrong):,} of {len(chosen):,} images of {name!r} cannot be read"
        which = f"the first is {source.called(first, name)} ({why})"
        raise MattaError(f"{some}; {which}: mend or remove them.")
    counts: Counter[str] = Counter(kind for _, odd, _ in looked for kind in odd)
    odd = []
    for kind, count in counts.items():
        first = next(int(i) for i, own in zip(chosen, looked, strict=True) if kind in own[1])
        such = source.called(first, name)
        odd.append(f"{count:,} of {len(chosen):,} images {_ODD[kind]}; the first is {such}.")
    return np.array([number for number, _, _ in looked], np.int64), odd


def _odd(content: bytes) -> list[str]:
    """What is odd about an image; raises what PIL does where it is damaged."""
    image = decoded(content, small=True)
    plain(image)
    odd = ["frames"] if getattr(image, "is_animated", False) else []
    odd += _transparent(image)
    odd += ["turned"] if image.getexif().get(ORIENTATION, 1) != 1 else []
    return odd + (["deep"] if image.mode.startswith("I") else [])


def _transparent(image: Any) -> list[str]:
    if not ("A" in image.getbands() or "a" in image.mode or "transparency" in image.info):
        return []
    return ["transparent"] if image.convert("RGBA").getextrema()[3][0] < 255 else []
