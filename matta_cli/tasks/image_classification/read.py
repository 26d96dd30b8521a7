"""Where labelled images come from: folders, idx files, arrays."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from matta_cli.data import find
from matta_cli.errors import MattaError
from matta_cli.tasks.image_classification.examples import Source

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


HELD_OUT = ("val", "valid", "validation", "test")


def check_labels(source: Source, classes: int, name: str, *, complete: bool) -> None:
    """Raise ``MattaError`` unless the labels fit a model of ``classes``. ``complete``: the last
    class must occur too.
    """
    if not len(source.labels):
        raise find.empty(name, "images")
    low, high = int(source.labels.min()), int(source.labels.max())
    found = len(source.classes) if source.classes else high + 1
    if low < 0:
        raise MattaError(
            f"{name!r} has the label {low}, but labels are 0 to {classes - 1}, as the model has {classes} classes."
        )
    if found > classes or (found < classes and (complete or source.classes)):
        raise MattaError(
            f"{name!r} has {found} classes, but the model has {classes}: pass the data whose classes the model was trained on."
        )


def without_last_tenth(source: Source, name: str) -> tuple[Source, Source]:
    """The images without the last tenth of each class, and that tenth."""
    find.last_tenth(len(source.labels), name, "images")
    held_out = np.zeros(len(source.labels), dtype=bool)
    for label in np.unique(source.labels):
        members = np.flatnonzero(source.labels == label)
        held_out[members[len(members) - len(members) // 10 :]] = True
    if not held_out.any():  # fewer than ten of each class
        held_out[-1] = True
    return _subset(source, np.flatnonzero(~held_out)), _subset(source, np.flatnonzero(held_out))


def _subset(source: Source, indices: np.ndarray) -> Source:
    names = None if source.names is None else source.names[indices]
    return Source(
        source.labels[indices],
        lambda i: source.read(int(indices[i])),
        source.classes,
        names,
        indices,
    )


def from_folder(path: Path) -> Source:
    """One folder of images per class, as torchvision's ``ImageFolder``: classes are numbered in the
    order of their names.
    """
    from PIL import Image

    classes = sorted(p.name for p in path.iterdir() if p.is_dir())
    files = [
        (file, k) for k, name in enumerate(classes) for file in sorted((path / name).rglob("*"))
    ]
    files = [(file, k) for file, k in files if file.suffix.lower() in _IMAGES]
    if not files:
        raise MattaError(
            f"{str(path)!r} holds no images: matta looks for one folder of images per class (or train/ and val/ with those), "
            "or train-images-idx3-ubyte and the like."
        )

    def read(i: int) -> Any:
        with Image.open(files[i][0]) as image:
            image.load()
            return image

    names = np.array([file.relative_to(path).as_posix() for file, _ in files])
    return Source(np.array([k for _, k in files], dtype=np.int64), read, classes, names)


def from_idx(folder: Path, part: str) -> Source | None:
    """MNIST-style files (``train-images-idx3-ubyte``, also .gz), where torchvision puts them too
    (``*/raw``).
    """
    images = sorted(folder.rglob(f"{part}-images?idx3-ubyte*"))
    labels = sorted(folder.rglob(f"{part}-labels?idx1-ubyte*"))
    if not images:
        return None
    if not labels:
        raise MattaError(
            f"{str(folder)!r} has {images[0].name}, but no {part}-labels-idx1-ubyte beside it."
        )
    return _source(_idx_array(images[0], 3), _idx_array(labels[0], 1), str(images[0]))


def _idx_array(path: Path, dimensions: int) -> np.ndarray:
    """An idx file of unsigned bytes: two zeros, type 8, the number of dimensions, big-endian sizes,
    the bytes.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
        sizes = np.frombuffer(content, dtype=">u4", count=dimensions, offset=4).astype(int)
        if content[:4] != bytes([0, 0, 8, dimensions]):
            raise ValueError("wrong header")
        return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(sizes)
    except (OSError, EOFError, ValueError) as error:
        raise MattaError(f"{str(path)!r} is damaged, or not an idx file: {error}.") from error


def from_arrays(path: Path) -> Source:
    """``images`` uint8 [N, H, W] or [N, H, W, C], ``labels`` integers [N], from an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            missing = [name for name in ("images", "labels") if name not in stored]
            if missing:
                raise MattaError(
                    f"{str(path)!r} has no array {missing[0]!r}; it has {', '.join(stored) or 'none'}."
                )
            return _source(stored["images"], stored["labels"], str(path))
    except OSError as error:
        raise MattaError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    except (EOFError, ValueError, SyntaxError, TokenError, zipfile.BadZipFile, zlib.error) as error:
        # numpy's words offer to unpickle it
        raise MattaError(
            f"{str(path)!r} cannot be read: it is damaged, no .npz file, or its arrays hold objects; images in uint8 and "
            "labels in whole numbers are needed."
        ) from error


def _source(images: np.ndarray, labels: np.ndarray, name: str) -> Source:
    from PIL import Image

    if (
        images.dtype != np.uint8
        or images.ndim not in (3, 4)
        or (images.ndim == 4 and images.shape[3] not in (1, 3, 4))
    ):
        raise MattaError(
            f"The images in {name!r} are {images.dtype} {list(images.shape)}; uint8 [N, H, W] or [N, H, W, channels] is needed."
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise MattaError(
            f"The labels in {name!r} are {labels.dtype} {list(labels.shape)}; one whole number for each of the "
            f"{len(images)} images is needed."
        )
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    return Source(labels.astype(np.int64), lambda i: Image.fromarray(images[i]))
