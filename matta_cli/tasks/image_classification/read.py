"""Where labelled images come from: folders, idx files, arrays, hub datasets."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from matta_cli.data import find, folders, records, sources
from matta_cli.data.folders import shown
from matta_cli.errors import MattaError
from matta_cli.losses.classes import IGNORED
from matta_cli.settings.recipe import DataSettings
from matta_cli.tasks.image_classification.examples import Source
from matta_cli.tasks.image_classification.labels import read_labels
from matta_cli.tasks.image_classification.pictures import decoded
from matta_cli.tasks.image_classification.tables import Known, beside, from_tables
from matta_cli.tasks.unlabelled import divided

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def read_images(
    settings: DataSettings, known: Known, training: bool, notes: list[str]
) -> tuple[Source | None, Source]:
    """Images to train on (None unless ``training``) and to measure on.

    known: of the model's labels. What there is to say of a folder goes to the ``notes``.
    """

    def opened(text: str, flag: str, training: bool) -> tuple[Source | None, Source | None]:
        path = find.find(text, flag)
        if path is None:
            splits = find.hub_dataset(text, settings.config)
            return find.hub_parts(
                splits,
                text,
                settings,
                training,
                lambda rows: _from_hub(rows, text, settings, known),
            )
        train, held_out = _local(path, text, settings, known, training, notes)
        if training and train is None and flag == "--data":
            raise find.empty(text, "images to train on")
        return train, held_out

    return find.to_train_and_measure(
        settings, training, opened, lambda source: divided(source, settings.train, "images", _last)
    )


def check_labels(source: Source, classes: int, name: str, *, complete: bool) -> None:
    """Raise ``MattaError`` unless labels fit the classes; ``complete``: the last must occur too."""
    if not len(source.labels):
        raise find.empty(name, "images")
    labels, complete = source.labels[source.known], complete and bool(source.known.all())
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if labels.ndim == 2:
        low, high = 0, labels.shape[1] - 1
    count = len(source.classes) if source.classes else high + 1
    if low < 0:
        meant = f"labels are 0 to {classes - 1}, as the model has {classes} classes."
        raise MattaError(f"{name!r} has the label {low}, but {meant}")
    if count > classes or (count < classes and (complete or source.classes)):
        numbers = f"{name!r} has {count} classes, but the model has {classes}"
        raise MattaError(f"{numbers}: pass the data whose classes the model was trained on.")


def _local(
    path: Path, text: str, settings: DataSettings, known: Known, training: bool, notes: list[str]
) -> tuple[Source | None, Source | None]:
    """What a file or folder holds to train on, and to measure on."""
    if path.is_file():
        if path.suffix == ".npz":
            return _from_arrays(path), None
        if path.suffix.lower() in records.TABLES:
            return from_tables([path], settings, known), None
        forms = "images come as a folder, as a table of paths and labels, as .npz, or from the hub."
        raise MattaError(f"{text!r} is a file; {forms}")
    idx = [_from_idx(path, part) for part in ("train", "t10k")]
    if any(idx):
        return idx[0], idx[1]
    tables = beside(path, settings, known)
    if tables.files:
        found, said = folders.parts(tables)
        names = [file.relative_to(path).as_posix() for file in tables.files]
        notes += [*said, f"{text!r}: labels are those of {shown(names)}."]
        return find.hub_parts(
            found, text, settings, training, lambda files: from_tables(files, settings, known)
        )
    parts, others = _parts(path)
    if not parts:
        return _from_folder(path), None
    if others:
        why = "beside train, validation and test they are no parts"
        notes.append(f"{text!r}: left out, as {why}: {shown(others)}.")
    return find.hub_parts(parts, text, settings, training, _from_folder)


def _parts(path: Path) -> tuple[dict[str, Path], list[str]]:
    """The subfolders that are parts, and the names of the others; none where all are classes.

    A class may be called train: a part is a folder of classes, or stands among parts only.
    """
    inside = _folders(path)
    named = {own: part for own in inside if (part := folders.part_named(own.name))}
    nested = any(_images(below) for own in named for below in _folders(own))
    if not named or not (nested or len(named) == len(inside)):
        return {}, []
    parts: dict[str, Path] = {}
    for own, part in named.items():
        parts.setdefault(part, own)
    return parts, [own.name for own in inside if own not in parts.values()]


def _folders(path: Path) -> list[Path]:
    return sorted(own for own in path.iterdir() if own.is_dir() and not folders.hidden(own.name))


def _images(path: Path) -> list[Path]:
    return [file for file in folders.walk(path) if file.suffix.lower() in _IMAGES]


def _last(source: Source) -> np.ndarray:
    """The last tenth of the images of each class, bool [n]."""
    count = len(source.labels)
    several = source.labels.ndim == 2
    tenth = np.arange(count) >= count - max(1, count // 10)
    held_out = tenth if several else find.last_of_each(source.labels)
    if not held_out.any():  # fewer than ten of each class
        held_out[-1] = True
    return held_out


def _from_folder(path: Path) -> Source:
    """One folder of images per class; ``numbered`` says which number it has. Or without classes."""
    classes = _folders(path)
    files = [(file, k) for k, own in enumerate(classes) for file in _images(own)]
    lacks = ""
    if not files:
        files = [(file, IGNORED) for file in _images(path)]
        forms = "one folder of images per class (or train/ and val/ with those)"
        also = "a table of file_name and label beside the images, or train-images-idx3-ubyte"
        what = "images without labels" if files else "no images"
        lacks = f"{str(path)!r} holds {what}: matta looks for {forms}, or {also}."
    if not files:
        raise MattaError(lacks)
    status = [file.stat() for file, _ in files]
    names = [file.relative_to(path).as_posix() for file, _ in files]
    sizes = [(now.st_size, now.st_mtime_ns) for now in status]

    def content(i: int) -> bytes:
        return files[i][0].read_bytes()

    return Source(
        np.array([k for _, k in files], dtype=np.int64),
        lambda i: decoded(content(i)),
        None if lacks else [own.name for own in classes],
        np.array(names),
        content=content,
        identity=[str(path.resolve()), names, sizes],
        root=str(path),
        lacks=lacks,
    )


def _from_idx(folder: Path, part: str) -> Source | None:
    """MNIST-style files, also .gz, if there are any (or in ``*/raw``, as torchvision has them)."""
    images, labels = (
        sorted(path for path in folder.rglob(f"{part}-{kind}-ubyte*") if path.is_file())
        for kind in ("images?idx3", "labels?idx1")
    )
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
    except (OSError, EOFError, ValueError, zlib.error) as error:
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
    return Source(
        labels.astype(np.int64),
        lambda i: Image.fromarray(images[i]),
        content=lambda i: images[i].tobytes(),
        encoded=False,
    )


def _from_hub(rows: Any, name: str, settings: DataSettings, known: Known) -> Source:
    image, label, lacks = settings.image, settings.label, ""
    find.check_column(name, image, "data.image", rows.column_names)
    values: list[Any] = [None] * len(rows)
    classes = None
    try:
        find.check_column(name, label, "data.label", rows.column_names)
        values, classes = list(rows[label]), sources.of_split(rows, name).classes(label)
    except MattaError as lack:
        lacks = str(lack)
    labels, own = read_labels(
        values, classes, label, name, lambda i: f"row {i + 1:,}", known.outputs
    )
    content = _contents(rows, image, name)
    return Source(
        labels,
        lambda i: decoded(content(i)),
        own,
        content=content,
        identity=[name, getattr(rows, "_fingerprint", "")],
        ordered=classes is not None,
        name=name,
        column=label,
        lacks=lacks,
    )


def _contents(rows: Any, column: str, name: str) -> Callable[[int], bytes]:
    """The bytes of each image of a hub dataset, as they are stored."""
    import datasets

    if not isinstance(rows.features[column], datasets.Image):
        holds = f"Column {column!r} of {name!r} holds {rows.features[column]}"
        raise MattaError(f"{holds}, but images are needed: set data.image to their column.")
    stored = rows.cast_column(column, datasets.Image(decode=False))

    def content(i: int) -> bytes:
        own = stored[i][column]
        if own is None or (own["bytes"] is None and not own["path"]):
            raise ValueError("there is none in its row")
        return own["bytes"] if own["bytes"] is not None else Path(own["path"]).read_bytes()

    return content
