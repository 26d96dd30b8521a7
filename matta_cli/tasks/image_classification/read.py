"""Where labelled images come from: folders, idx files, arrays, hub datasets."""

from __future__ import annotations

import contextlib
import gzip
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from matta_cli.data import find, folders, records, sources
from matta_cli.data.folders import shown
from matta_cli.errors import MattaError
from matta_cli.files.reading import refuse_pointer, regular
from matta_cli.losses.classes import IGNORED
from matta_cli.settings.recipe import DataSettings
from matta_cli.tasks.image_classification import layouts
from matta_cli.tasks.image_classification.examples import Source
from matta_cli.tasks.image_classification.labels import read_labels
from matta_cli.tasks.image_classification.layouts import IMAGES
from matta_cli.tasks.image_classification.pictures import decoded
from matta_cli.tasks.image_classification.tables import Known, beside, from_tables
from matta_cli.tasks.unlabelled import divided


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


def trained_on(settings: DataSettings, known: Known) -> Source | None:
    """The images to train on, where others are measured on: their names of classes tell numbers.

    None where none are named, or they are not here.
    """
    path = Path(settings.train).expanduser()
    if not settings.held_out or not settings.train or not path.exists():
        return None
    with contextlib.suppress(MattaError):
        train, own = _local(path, settings.train, settings, known, True, [])
        return own if train is None else train
    return None


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
    if not source.classes and labels.min(initial=high) > 0 and high == classes:
        meant = f"the model's are 0 to {classes - 1}: count them from 0."
        raise MattaError(f"The labels of {name!r} end at {high}, but {meant}")
    if count > classes or (count < classes and (complete or source.classes)):
        numbers = f"{name!r} has {count} classes, but the model has {classes}"
        whole = "pass the data whose classes the model was trained on"
        folder = Path(source.root) if source.root and not source.column else None
        more = layouts.elsewhere(folder, classes) if folder else ""
        raise MattaError(f"{numbers}: {whole} (a folder, be it empty, for each).{more}")


def _local(
    path: Path, text: str, settings: DataSettings, known: Known, training: bool, notes: list[str]
) -> tuple[Source | None, Source | None]:
    """What a file or folder holds to train on, and to measure on."""
    if path.is_file():
        if path.suffix == ".npz":
            return _from_arrays(path), None
        if _holds_images(path, settings):
            return _from_hub(find.parquet_dataset([path]), text, settings, known), None
        if path.suffix.lower() in records.TABLES:
            return from_tables([path], settings, known, notes), None
        forms = "images come as a folder, as a table of paths and labels, as .npz, or from the hub."
        raise MattaError(f"{text!r} is a file; {forms}")
    if packed := _packed(path, settings):
        found, said = folders.parts(packed, settings.config)
        notes += said

        def rows(files: list[Path]) -> Source:
            return _from_hub(find.parquet_dataset(files), text, settings, known)

        return find.hub_parts(found, text, settings, training, rows)
    idx = [_from_idx(path, part) for part in ("train", "t10k")]
    if any(idx):
        return idx[0], idx[1]
    tables = beside(path, settings, known)
    if tables.files:
        found, said = folders.parts(tables, settings.config)
        names = [file.relative_to(path).as_posix() for file in tables.files]
        notes += [*said, f"{text!r}: labels are those of {shown(names)}."]

        def opened(files: list[Path]) -> Source:
            source = from_tables(files, settings, known, notes)
            if len(found) == 1:
                notes.extend(_unlisted(path, text, source))
            return source

        return find.hub_parts(found, text, settings, training, opened)
    parts, others = layouts.parts(path)
    if not parts:
        if not settings.held_out:
            layouts.refuse_lists(path)
        return _from_folder(path, "", notes), None
    if others:
        why = "beside train, validation and test they are no parts"
        notes.append(f"{text!r}: left out, as {why}: {shown(others)}.")
    said = [p if p == own.name.lower() else f"{p} ({own.name})" for p, (own, _) in parts.items()]
    listed = ", ".join(said)
    if any(within for _, within in parts.values()):
        listed = f"{', '.join(parts)}, of each class"
    notes.append(f"{text!r}: parts by the names of folders: {listed}{folders.chosen(parts)}.")
    return find.hub_parts(
        parts, text, settings, training, lambda own: _from_folder(own[0], own[1], notes)
    )


def _holds_images(path: Path, settings: DataSettings) -> bool:
    """Whether a file is Parquet with the images themselves, as ``datasets`` writes them."""
    import pyarrow as pa

    if path.suffix.lower() != ".parquet":
        return False
    field = dict(records.kinds(path)).get(settings.image)
    return field is not None and (pa.types.is_struct(field) or pa.types.is_binary(field))


def _packed(path: Path, settings: DataSettings) -> folders.Files | None:
    """The files of a folder that hold the images themselves, as a clone from the hub has them."""
    if not any(True for pattern in ("*.parquet", "*/*.parquet") for _ in path.glob(pattern)):
        return None
    files = folders.data_files(path, (".parquet",))
    return files if files.files and _holds_images(files.files[0], settings) else None


def _unlisted(folder: Path, text: str, source: Source) -> list[str]:
    """A sentence on images in a folder that stand in none of its table's rows, if there are any."""
    listed = set() if source.names is None else {source.called(i) for i in range(len(source.names))}
    rest = [own for own in layouts.images(folder) if repr(str(own)) not in listed]
    names = shown([own.relative_to(folder).as_posix() for own in rest])
    return [f"{text!r}: {len(rest):,} images stand in no row: {names}."] if rest else []


def _last(source: Source) -> np.ndarray:
    """The last tenth of the images of each class, bool [n]."""
    count = len(source.labels)
    several = source.labels.ndim == 2
    tenth = np.arange(count) >= count - max(1, count // 10)
    held_out = tenth if several else find.last_of_each(source.labels)
    if not held_out.any():  # fewer than ten of each class
        held_out[-1] = True
    return held_out


def _from_folder(path: Path, part: str, notes: list[str]) -> Source:
    """One folder of images per class; ``numbered`` says which number it has. Or without classes.

    part: the one that is taken of each class, where each has several.
    """
    classes = layouts.classes(layouts.inner(path))
    layouts.refuse_folds(path, classes)
    levels = dict.fromkeys((path, layouts.inner(path)))
    empty = [p.name for own in levels for p in layouts.subfolders(own) if not layouts.is_class(p)]
    if empty:
        notes.append(f"{str(path)!r}: folders without images are no classes: {shown(empty)}.")
    there = [(f, k) for k, own in enumerate(classes) for f in folders.walk(own)]
    if part:
        there = [(f, k) for f, k in there if layouts.within(f, classes[k]) == part]
    files = [(file, k) for file, k in there if file.suffix.lower() in IMAGES]
    if files and (loose := layouts.direct(layouts.inner(path))):
        first = shown([own.name for own in sorted(loose)])
        notes.append(f"{str(path)!r}: left out, as images of a class lie in its folder: {first}.")
    if others := [file for file, _ in there if file.suffix.lower() not in IMAGES]:
        kinds = Counter(file.suffix or file.name for file in others).most_common(4)
        counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds)
        known = " ".join(IMAGES)
        notes.append(f"{str(path)!r}: left out, as images are {known}: {counts}.")
    lacks = ""
    if not files:
        files = [(file, IGNORED) for file in layouts.images(path)]
        forms = "one folder of images per class (or train/ and val/ with those)"
        also = "a table of file_name and label beside the images, or train-images-idx3-ubyte"
        what = "images without labels" if files else "no images"
        lacks = f"{str(path)!r} holds {what}: matta looks for {forms}, or {also}."
        lacks += layouts.elsewhere(path)
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
    """MNIST-style files, also .gz, if there are any (or in ``*/raw``, as torchvision has them).

    Raises ``MattaError`` where several data sets lie there, or images lack their labels.
    """
    images = sorted(path for path in folder.rglob(f"{part}-images?idx3-ubyte*") if path.is_file())
    if not images:
        return None
    if others := [path for path in images if path.parent != images[0].parent]:
        both = f"{str(images[0].parent)!r} and in {str(others[0].parent)!r}"
        raise MattaError(f"There are {images[0].name} in {both}: pass one of these folders.")
    labels = sorted(images[0].parent.glob(f"{part}-labels?idx1-ubyte*"))
    if not labels:
        missing = f"no {part}-labels-idx1-ubyte beside it."
        raise MattaError(f"{str(images[0].parent)!r} has {images[0].name}, but {missing}")
    return _source(_idx_array(images[0], 3), _idx_array(labels[0], 1), str(images[0]))


def _idx_array(path: Path, dimensions: int) -> np.ndarray:
    """An idx file: two zeros, type 8 (bytes), the number of dimensions, sizes, the bytes."""
    refuse_pointer(path)
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
    refuse_pointer(path)
    try:
        with np.load(path, allow_pickle=False) as stored:
            for name in ("images", "labels"):
                if name not in stored:
                    there = f"it has {', '.join(stored) or 'none'}."
                    do = "Save what belongs together as images and labels, a file for each part."
                    raise MattaError(f"{str(path)!r} has no array {name!r}; {there} {do}")
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
    if len(images) and images.max() == 1:
        wrong = f"The images in {name!r} hold 0 and 1 alone, which are all but black of 0 to 255"
        raise MattaError(f"{wrong}: multiply them by 255.")
    if not grey and images.shape[3] == 1:
        images = images[..., 0]
    return Source(
        labels.astype(np.int64),
        lambda i: Image.fromarray(images[i]),
        content=lambda i: images[i].tobytes(),
        encoded=False,
        name=name,
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

    kind = rows.features[column]
    if kind == datasets.Value("binary") or (isinstance(kind, dict) and "bytes" in kind):
        rows = rows.cast_column(column, datasets.Image())  # who wrote them did not say so
    if not isinstance(rows.features[column], datasets.Image):
        holds = f"Column {column!r} of {name!r} holds {rows.features[column]}"
        raise MattaError(f"{holds}, but images are needed: set data.image to their column.")
    stored = rows.cast_column(column, datasets.Image(decode=False))

    def content(i: int) -> bytes:
        own = stored[i][column]
        if own is None or (own["bytes"] is None and not own["path"]):
            raise ValueError("there is none in its row")
        if own["bytes"] is not None:
            return bytes(own["bytes"])
        return regular(Path(own["path"])).read_bytes()  # the data may name a device, or a pipe

    return content
