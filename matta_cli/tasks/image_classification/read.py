"""Where labelled images come from: folders, idx files, arrays, hub datasets."""

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
from matta_cli.settings.recipe import DataSettings
from matta_cli.tasks.image_classification.examples import Source

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_HELD_OUT = ("val", "valid", "validation", "test")


def read_images(settings: DataSettings, training: bool) -> tuple[Source | None, Source]:
    """Images to train on (None unless ``training``) and to measure on."""

    def opened(text: str, flag: str, training: bool) -> tuple[Source | None, Source | None]:
        path = find.find(text, flag)
        if path is None:
            splits = find.hub_dataset(text, settings.config)
            return find.hub_parts(
                splits, text, settings, training, lambda rows: _from_hub(rows, text, settings)
            )
        train, held_out = _local(path, text)
        if train is None and flag == "--data":
            raise find.empty(text, "images to train on")
        return train, held_out

    return find.to_train_and_measure(
        settings, training, opened, lambda source: _without_last_tenth(source, settings.train)
    )


def check_labels(source: Source, classes: int, name: str, *, complete: bool) -> None:
    """Raise ``MattaError`` unless labels fit the classes; ``complete``: the last must occur too."""
    if not len(source.labels):
        raise find.empty(name, "images")
    low, high = int(source.labels.min()), int(source.labels.max())
    count = len(source.classes) if source.classes else high + 1
    if low < 0:
        meant = f"labels are 0 to {classes - 1}, as the model has {classes} classes."
        raise MattaError(f"{name!r} has the label {low}, but {meant}")
    if count > classes or (count < classes and (complete or source.classes)):
        numbers = f"{name!r} has {count} classes, but the model has {classes}"
        raise MattaError(f"{numbers}: pass the data whose classes the model was trained on.")


def _local(path: Path, text: str) -> tuple[Source | None, Source | None]:
    """What a file or folder holds to train on, and to measure on."""
    if path.is_file():
        if path.suffix == ".npz":
            return _from_arrays(path), None
        forms = "images come as a folder, as .npz (images, labels), or from the hub."
        raise MattaError(f"{text!r} is a file; {forms}")
    train, held_out = (_from_idx(path, part) for part in ("train", "t10k"))
    if train or held_out:
        return train, held_out
    if not (path / "train").is_dir():
        return _from_folder(path), None
    beside = next((path / name for name in _HELD_OUT if (path / name).is_dir()), None)
    return _from_folder(path / "train"), _from_folder(beside) if beside else None


def _without_last_tenth(source: Source, name: str) -> tuple[Source, Source]:
    """The images without the last tenth of each class, and that tenth."""
    find.last_tenth(len(source.labels), name, "images")
    held_out = np.zeros(len(source.labels), dtype=bool)
    for label in np.unique(source.labels):
        members = np.flatnonzero(source.labels == label)
        held_out[members[len(members) - len(members) // 10 :]] = True
    if not held_out.any():  # fewer than ten of each class
        held_out[-1] = True
    return source.part(np.flatnonzero(~held_out)), source.part(np.flatnonzero(held_out))


def _from_folder(path: Path) -> Source:
    """One folder of images per class, numbered by name, as torchvision's ``ImageFolder``."""
    from PIL import Image

    classes = sorted(p.name for p in path.iterdir() if p.is_dir())
    files = []
    for k, name in enumerate(classes):
        inside = sorted((path / name).rglob("*"))
        files += [(file, k) for file in inside if file.suffix.lower() in _IMAGES]
    if not files:
        forms = "one folder of images per class (or train/ and val/ with those)"
        also = "train-images-idx3-ubyte and the like"
        raise MattaError(f"{str(path)!r} holds no images: matta looks for {forms}, or {also}.")

    def read(i: int) -> Any:
        with Image.open(files[i][0]) as image:
            image.load()
            return image

    names = np.array([file.relative_to(path).as_posix() for file, _ in files])
    return Source(np.array([k for _, k in files], dtype=np.int64), read, classes, names)


def _from_idx(folder: Path, part: str) -> Source | None:
    """MNIST-style files, also .gz, if there are any (or in ``*/raw``, as torchvision has them)."""
    images = sorted(folder.rglob(f"{part}-images?idx3-ubyte*"))
    labels = sorted(folder.rglob(f"{part}-labels?idx1-ubyte*"))
    if not images:
        return None
    if not labels:
        missing = f"no {part}-labels-idx1-ubyte beside it."
        raise MattaError(f"{str(folder)!r} has {images[0].name}, but {missing}")
    return _source(_idx_array(images[0], 3), _idx_array(labels[0], 1), str(images[0]))


def _idx_array(path: Path, dimensions: int) -> np.ndarray:
    """An idx file: two zeros, type 8 (bytes), the number of dimensions, sizes, the bytes."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
        sizes = np.frombuffer(content, dtype=">u4", count=dimensions, offset=4).astype(int)
        if content[:4] != bytes([0, 0, 8, dimensions]):
            raise ValueError("wrong header")
        return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(sizes)
    except (OSError, EOFError, ValueError) as error:
        raise MattaError(f"{str(path)!r} is damaged, or not an idx file: {error}.") from error


def _from_arrays(path: Path) -> Source:
    """``images`` uint8 [N, H, W] or [N, H, W, C], ``labels`` integers [N], from an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            for name in ("images", "labels"):
                if name not in stored:
                    there = f"it has {', '.join(stored) or 'none'}."
                    raise MattaError(f"{str(path)!r} has no array {name!r}; {there}")
            return _source(stored["images"], stored["labels"], str(path))
    except OSError as error:
        raise MattaError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    except (EOFError, ValueError, SyntaxError, TokenError, zipfile.BadZipFile, zlib.error) as error:
        # numpy's words offer to unpickle it
        why = "it is damaged, no .npz file, or its arrays hold objects"
        needed = "images in uint8 and labels in whole numbers are needed."
        raise MattaError(f"{str(path)!r} cannot be read: {why}; {needed}") from error


def _source(images: np.ndarray, labels: np.ndarray, name: str) -> Source:
    from PIL import Image

    grey = images.ndim == 3
    if images.dtype != np.uint8 or not (
        grey or (images.ndim == 4 and images.shape[3] in (1, 3, 4))
    ):
        given = f"The images in {name!r} are {images.dtype} {list(images.shape)}"
        raise MattaError(f"{given}; uint8 [N, H, W] or [N, H, W, channels] is needed.")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        given = f"The labels in {name!r} are {labels.dtype} {list(labels.shape)}"
        needed = f"one whole number for each of the {len(images)} images is needed."
        raise MattaError(f"{given}; {needed}")
    if not grey and images.shape[3] == 1:
        images = images[..., 0]
    return Source(labels.astype(np.int64), lambda i: Image.fromarray(images[i]))


def _from_hub(rows: Any, name: str, settings: DataSettings) -> Source:
    image, label = settings.image, settings.label
    for column, setting in ((image, "data.image"), (label, "data.label")):
        find.check_column(name, column, setting, rows.column_names)
    labels = np.array(rows[label])
    classes = getattr(rows.features[label], "names", None)
    if labels.dtype.kind not in "iu":
        classes, labels = np.unique(labels.astype(str), return_inverse=True)
    names = list(classes) if classes is not None else None
    return Source(labels.astype(np.int64), lambda i: rows[i][image], names)
