"""Image classification: folders, MNIST-style files, arrays or hub datasets -> normalised images, top-1 and top-5."""

from __future__ import annotations

import gzip
import json
import math
import mmap
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from matta_cli import calibration, losses
from matta_cli import data as common
from matta_cli.errors import MattaError
from matta_cli.losses import Logits, Term
from matta_cli.tasks import Batch, Columns, Data, Metric, Task

_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_HELD_OUT = ("val", "valid", "validation", "test")
_IN_MEMORY = 1 << 30  # bytes of prepared pixels that are kept


class ImageClassification(Task):
    """One of C classes per image. Batches: ``image`` float32 [B, C, H, W], normalised; ``label`` int64 [B].

    Images of the model's own size are used as they are; all others go through the evaluation transform that timm derives
    from the model (resize, centre crop). There is no augmentation, so an example is the same whenever it is drawn: the
    defaults of timm would flip digits and crop an eighth of a small image, and a run could not be resumed exactly.
    Where nothing is held out, the last tenth of each class is.
    """

    name = "image_classification"
    output = "classes"
    metrics = (
        Metric("top1", "top-1 accuracy", higher=True),
        Metric("top5", "top-5 accuracy", higher=True),
        Metric("ece", "calibration error (ECE)", higher=False),
    )
    alike = "images of the same class"

    def data(self, folder: Path, model: nn.Module, *, training: bool = True) -> Data:
        common.no_streaming(self.recipe.data.streaming, "images")
        settings, classes = self.recipe.data, self.outputs(model)
        train: Source | None = None
        held_out: Source | None = None
        if settings.held_out:
            only, own = self._open(settings.held_out, "--held-out")
            held_out = own or only
        if training or held_out is None:
            train, own = self._open(settings.train, "--data")
            if train is None:
                raise common.empty(settings.train, "images to train on")
            if held_out is None and own is None:
                train, own = _cut(train, settings.train)
            held_out = held_out or own
        assert held_out is not None
        held_out_name = settings.held_out or settings.train
        _check(held_out, classes, held_out_name, complete=False)
        prepare = Preparation(folder, model)
        measured = Images(held_out, prepare, held_out_name)
        split = common.sample(measured, settings.eval_examples)
        description = f"{held_out_name}: held out {len(split):,} images"
        if train is None or not training:
            return Data(measured, (split,), description, "images")
        _check(train, classes, settings.train, complete=True)
        if train.classes and held_out.classes and train.classes != held_out.classes:
            odd = sorted(set(train.classes) ^ set(held_out.classes))
            raise MattaError(f"{held_out_name!r} and {settings.train!r} have different classes: only one has {odd[0]!r}.")
        description = f"{settings.train}: {len(train.labels):,} images of {classes:,} classes; {description}"
        return Data(Images(train, prepare, settings.train), (split,), description, "images")

    def outputs(self, model: nn.Module) -> int:
        own: Any = model
        return int(own.config.num_labels if hasattr(getattr(own, "config", None), "num_labels") else own.num_classes)

    def fit_teacher(self, teacher: nn.Module, folder: Path | None, model: nn.Module) -> nn.Module:
        teacher = super().fit_teacher(teacher, folder, model)
        theirs, ours = Preparation(folder or Path(), teacher), Preparation(Path(), model)
        if theirs.shape != ours.shape:
            raise MattaError(
                f"The Teacher reads images of {_size(theirs.shape)}, the model of {_size(ours.shape)}: they must be the same."
            )
        same = torch.equal(theirs.mean, ours.mean) and torch.equal(theirs.std, ours.std)
        return teacher if same else Renormalized(teacher, ours, theirs)

    def forward(self, model: Any, batch: Batch) -> Tensor:
        output = model(batch["image"])
        return getattr(output, "logits", output)

    def example(self, model: nn.Module, size: int = 4) -> Batch:
        import timm

        shape = timm.data.resolve_model_data_config(model)["input_size"]
        return {"image": torch.randn(size, *shape, generator=torch.Generator().manual_seed(0))}

    def counts(self, batch: Batch) -> dict[str, float]:
        return losses.counts(batch["label"])

    def objective(
        self, logits: Logits, batch: Batch, terms: Sequence[Term], over: dict[str, float] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self.recipe.distill
        over = over or self.counts(batch)
        return losses.of_classes(logits, batch["label"], terms, over, settings.temperature, settings.divergence)

    def items(self, batch: Batch) -> int:
        return len(batch["label"])

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """``correct1``; ``correct5`` where there are more than 5 classes; ``finite``: 0 where the logits are not numbers;
        ``confidence``, the probability of the likeliest class, and ``margin``, by how much it exceeds that of the next."""
        label = batch["label"][:, None]
        found = {"correct1": (logits.argmax(1, keepdim=True) == label).any(1).double()}
        if logits.shape[1] > 5:
            found["correct5"] = (logits.topk(5, dim=1).indices == label).any(1).double()
        first, second = logits.double().softmax(1).topk(2, dim=1).values.unbind(1)
        return found | {"finite": logits.isfinite().all(1).double(), "confidence": first, "margin": first - second}

    def right(self, columns: Columns) -> Columns:
        pairs = (("top1", "correct1"), ("top5", "correct5"))
        return {metric: columns[column] for metric, column in pairs if column in columns}

    def summarize(self, columns: Columns) -> dict[str, float]:
        found = {metric: float(right.mean()) for metric, right in self.right(columns).items()}
        if "confidence" in columns:
            found["ece"] = calibration.error(columns["confidence"], columns["correct1"])
        return found

    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return {"class": logits.argmax(1)}

    def agreement(self, ours: Columns, theirs: Columns) -> Columns:
        same = (ours["class"] == theirs["class"]).astype(float)
        return {"same": same, "of": np.ones_like(same)}

    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        right, chance = columns["correct1"], 1 / outputs
        if not columns["finite"].all():
            return f"{int((columns['finite'] == 0).sum())} of its {len(right)} outputs are not finite numbers."
        if right.mean() > chance + 2 * np.sqrt(chance * (1 - chance) / len(right)):
            return None
        return (
            f"its top-1 accuracy is {right.mean():.4f} on {len(right):,} images, and guessing among {outputs:,} classes "
            f"gives {chance:.4f}."
        )

    def _open(self, text: str, flag: str) -> tuple[Source | None, Source | None]:
        """What there is to train on and to measure on."""
        path = common.find(text, flag)
        if path is None:
            return self._hub(text, flag)
        if path.is_file():
            if path.suffix != ".npz":
                raise MattaError(f"{text!r} is a file; images come as a folder, as .npz (images, labels), or from the hub.")
            return _arrays(path), None
        found = _idx(path, "train"), _idx(path, "t10k")
        if any(found):
            return found
        if (path / "train").is_dir():
            held_out = next((path / name for name in _HELD_OUT if (path / name).is_dir()), None)
            return _folder(path / "train"), _folder(held_out) if held_out else None
        return _folder(path), None

    def _hub(self, text: str, flag: str) -> tuple[Source | None, Source | None]:
        settings = self.recipe.data
        splits = common.hub_dataset(text, settings.config)
        rows = common.hub_held_out(splits, text, settings.held_out_split)
        held_out = self._rows(rows, text) if rows is not None else None
        if flag == "--held-out" and held_out is not None:
            return None, held_out
        return self._rows(common.hub_split(splits, text, settings.split), text), held_out

    def _rows(self, rows: Any, name: str) -> Source:
        image, label = self.recipe.data.image, self.recipe.data.label
        for column, setting in ((image, "data.image"), (label, "data.label")):
            if column not in rows.column_names:
                raise common.no_column(name, column, setting, rows.column_names)
        labels = np.array(rows[label])
        classes = getattr(rows.features[label], "names", None)
        if labels.dtype.kind not in "iu":
            classes, labels = np.unique(labels.astype(str), return_inverse=True)
        return Source(labels.astype(np.int64), lambda i: rows[i][image], list(classes) if classes is not None else None)


@dataclass(frozen=True)
class Source:
    """Labelled images. labels: int64 [N]. read: the image of a number, as PIL. classes: their names, where there are any.

    names: the images' paths, where they are files. numbers: int64 [N], where these are a part of the user's images.
    """

    labels: np.ndarray
    read: Callable[[int], Any]
    classes: list[str] | None = None
    names: np.ndarray | None = None
    numbers: np.ndarray | None = None


class Preparation:
    """From a PIL image to the model's pixels, uint8 [C, H, W], and from those to its input."""

    def __init__(self, folder: Path, model: Any) -> None:
        from timm.data import create_transform, resolve_model_data_config

        config = resolve_model_data_config(model)
        channels, *size = config["input_size"]
        if hasattr(getattr(model, "config", None), "image_size"):  # a model of transformers
            channels, side = model.config.num_channels, model.config.image_size
            size = [side, side] if isinstance(side, int) else list(side)
            config |= {"crop_pct": 1.0, "crop_mode": "squash"}
            file = folder / "preprocessor_config.json"
            stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            config |= {key: stored[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in stored}
        elif hasattr(getattr(model, "patch_embed", None), "img_size"):  # what it was built for, not what its namesake was
            channels, size = model.patch_embed.proj.weight.shape[1], list(model.patch_embed.img_size or size)
        self.shape: tuple[int, int, int] = (channels, size[0], size[1])
        self.mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
        if self.mode is None:
            raise MattaError(f"The model reads images of {channels} channels; matta reads images of 1, 3 or 4.")
        self.fit = create_transform(**config | {"input_size": self.shape}, is_training=False, normalize=False)
        self.mean, self.std = (_per_channel(config[key], channels) for key in ("mean", "std"))

    def pixels(self, image: Any) -> np.ndarray:
        image = image.convert(self.mode)
        if image.size != (self.shape[2], self.shape[1]):
            return np.asarray(self.fit(image))
        return np.asarray(image).reshape(*self.shape[1:], self.shape[0]).transpose(2, 0, 1)

    def input(self, pixels: np.ndarray) -> Tensor:
        return torch.from_numpy(pixels).float().div_(255).sub_(self.mean).div_(self.std)


class Renormalized(nn.Module):
    """A model run on images that were normalised for another one."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, given: Preparation, wanted: Preparation) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("scale", given.std / wanted.std, persistent=False)
        self.register_buffer("shift", (given.mean - wanted.mean) / wanted.std, persistent=False)

    def forward(self, image: Tensor) -> Any:
        return self.model(image * self.scale + self.shift)


def _size(shape: tuple[int, int, int]) -> str:
    return "x".join(str(n) for n in shape)


class Images:
    """Labelled images as a split. Pixels are prepared when first asked for, and kept if all of them need less than 1 GiB.

    What is kept lies in memory that forked workers share: there is one copy, and what one of them prepared is there for all.
    Two that prepare the same image write the same bytes.
    """

    def __init__(self, source: Source, prepare: Preparation, name: str) -> None:
        self.source, self.prepare, self.name = source, prepare, name
        shape = (len(source.labels), *prepare.shape)
        self.kept = _shared(shape, np.uint8) if np.prod(shape) < _IN_MEMORY else None
        self.known = _shared(shape[:1], bool)

    def __len__(self) -> int:
        return len(self.source.labels)

    def batch(self, indices: Sequence[int]) -> Batch:
        """``image`` float32 [B, C, H, W] and ``label`` int64 [B]."""
        chosen = np.array(indices, dtype=np.int64)
        if self.kept is None:
            pixels = np.stack([self._read(int(i)) for i in chosen])
        else:
            for i in chosen[~self.known[chosen]]:
                self.kept[i] = self._read(int(i))
                self.known[i] = True
            pixels = self.kept[chosen]
        return {"image": self.prepare.input(pixels), "label": torch.from_numpy(self.source.labels[chosen])}

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        """Numbers in the user's data; ids are paths within the folder of images."""
        chosen = np.asarray(indices, dtype=np.int64)
        if ids:
            if self.source.names is None:
                raise common.no_ids("images that are not files in a folder")
            return self.source.names[chosen]
        return chosen if self.source.numbers is None else self.source.numbers[chosen]

    def digest(self) -> str:
        """Over all labels and names, and the pixels of 64 images."""
        some = np.unique(np.linspace(0, len(self) - 1, 64).astype(int))
        names = [] if self.source.names is None else list(self.source.names)
        return common.digest([self.source.labels, *names, *(self._read(int(i)) for i in some)])

    def _read(self, i: int) -> np.ndarray:
        try:
            return self.prepare.pixels(self.source.read(i))
        except (OSError, ValueError) as error:  # PIL's errors for files that are no images
            raise MattaError(f"Image {i} of {self.name!r} cannot be read: {error}.") from error


def _shared(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros that a process shares with those it forks; pages take memory once they are written."""
    return np.frombuffer(mmap.mmap(-1, math.prod(shape) * np.dtype(dtype).itemsize), dtype=dtype).reshape(shape)


def _per_channel(values: Sequence[float], channels: int) -> Tensor:
    """Statistics as [C, 1, 1]; for another number of channels than they were made for, their mean."""
    if len(values) != channels:
        values = [sum(values) / len(values)] * channels
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)


def _check(source: Source, classes: int, name: str, *, complete: bool) -> None:
    """Raise ``MattaError`` unless the labels fit a model of ``classes``. ``complete``: the last class must occur too."""
    if not len(source.labels):
        raise common.empty(name, "images")
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


def _cut(source: Source, name: str) -> tuple[Source, Source]:
    """The images without the last tenth of each class, and that tenth."""
    common.last_tenth(len(source.labels), name, "images")
    held_out = np.zeros(len(source.labels), dtype=bool)
    for label in np.unique(source.labels):
        members = np.flatnonzero(source.labels == label)
        held_out[members[len(members) - len(members) // 10 :]] = True
    if not held_out.any():  # fewer than ten of each class
        held_out[-1] = True
    return _subset(source, np.flatnonzero(~held_out)), _subset(source, np.flatnonzero(held_out))


def _subset(source: Source, indices: np.ndarray) -> Source:
    names = None if source.names is None else source.names[indices]
    return Source(source.labels[indices], lambda i: source.read(int(indices[i])), source.classes, names, indices)


def _folder(path: Path) -> Source:
    """One folder of images per class, as torchvision's ``ImageFolder``: classes are numbered in the order of their names."""
    from PIL import Image

    classes = sorted(p.name for p in path.iterdir() if p.is_dir())
    files = [(file, k) for k, name in enumerate(classes) for file in sorted((path / name).rglob("*"))]
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


def _idx(folder: Path, part: str) -> Source | None:
    """MNIST-style files (``train-images-idx3-ubyte``, also .gz), where torchvision puts them too (``*/raw``)."""
    images = sorted(folder.rglob(f"{part}-images?idx3-ubyte*"))
    labels = sorted(folder.rglob(f"{part}-labels?idx1-ubyte*"))
    if not images:
        return None
    if not labels:
        raise MattaError(f"{str(folder)!r} has {images[0].name}, but no {part}-labels-idx1-ubyte beside it.")
    return _source(_idx_array(images[0], 3), _idx_array(labels[0], 1), str(images[0]))


def _idx_array(path: Path, dimensions: int) -> np.ndarray:
    """An idx file of unsigned bytes: two zeros, type 8, the number of dimensions, big-endian sizes, the bytes."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
        sizes = np.frombuffer(content, dtype=">u4", count=dimensions, offset=4).astype(int)
        if content[:4] != bytes([0, 0, 8, dimensions]):
            raise ValueError("wrong header")
        return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(sizes)
    except (OSError, EOFError, ValueError) as error:
        raise MattaError(f"{str(path)!r} is damaged, or not an idx file: {error}.") from error


def _arrays(path: Path) -> Source:
    """``images`` uint8 [N, H, W] or [N, H, W, C], ``labels`` integers [N], from an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            missing = [name for name in ("images", "labels") if name not in stored]
            if missing:
                raise MattaError(f"{str(path)!r} has no array {missing[0]!r}; it has {', '.join(stored) or 'none'}.")
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

    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
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
