"""Labelled images as a split, prepared as the model wants them."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from matta_cli.data import split
from matta_cli.data.split import Batch
from matta_cli.errors import MattaError, said
from matta_cli.files.reading import finite
from matta_cli.losses.classes import IGNORED
from matta_cli.tasks.image_classification.stored import stored
from matta_cli.tasks.task import config, raw

ORIENTATION = 0x0112  # a tag of EXIF
_BITS = 258  # a tag of TIFF: bits of a sample
_LOOKED = 8  # images whose size is looked at
_IN_MEMORY = 1 << 30  # bytes of prepared pixels that are kept


@dataclass(frozen=True)
class Source:
    """Labelled images.

    labels: int64 [N], ``IGNORED`` where there is none; where each may have several, float32 [N,
    labels], 0 or 1, or NaN. read: the image of a number, as PIL. classes: their names, where there
    are any. names: the images' paths, where they are files. numbers: int64 [N], where these are a
    part of the user's images. content: the bytes of an image, those of a file where ``encoded``;
    None where nobody has them. identity: what JSON can hold, another one whenever images may be
    others. ordered: whether the data itself numbers its classes. root: the folder of the paths.
    name: of the data. column, lacks: as of ``Examples``.
    """

    labels: np.ndarray
    read: Callable[[int], Any]
    classes: list[str] | None = None
    names: np.ndarray | None = None
    numbers: np.ndarray | None = None
    content: Callable[[int], bytes] | None = None
    encoded: bool = True
    identity: list[Any] | None = None
    ordered: bool = False
    root: str = ""
    name: str = ""
    column: str = ""
    lacks: str = ""

    @property
    def known(self) -> np.ndarray:
        """Which images have a label, bool [N]."""
        if self.labels.ndim == 2:
            return np.isfinite(self.labels).all(1)
        known: np.ndarray = self.labels != IGNORED
        return known

    def part(self, indices: np.ndarray) -> Source:
        """The images of these numbers, int64 [n]."""
        names = None if self.names is None else self.names[indices]
        read, content = self.read, self.content
        return replace(
            self,
            labels=self.labels[indices],
            read=lambda i: read(int(indices[i])),
            names=names,
            numbers=indices if self.numbers is None else self.numbers[indices],
            content=None if content is None else lambda i: content(int(indices[i])),
            identity=None if self.identity is None else [self.identity, indices.tolist()],
        )

    def called(self, i: int, name: str = "") -> str:
        """An image by its path, else by its number in the data of this name."""
        if self.names is not None:
            return repr(str(Path(self.root) / str(self.names[i])))
        of = name or self.name
        return f"image {i if self.numbers is None else int(self.numbers[i])} of {of!r}"


class Preparation:
    """From a PIL image to the model's pixels, uint8 [C, H, W], and from those to its input."""

    def __init__(self, folder: Path | None, model: Any) -> None:
        """folder: the model's, where it has one."""
        from timm.data import create_transform, resolve_model_data_config
        from torchvision.transforms import CenterCrop, Compose

        self.notes: list[str] = []
        settings = resolve_model_data_config(model)
        channels, *size = shape_of(model)
        crops = self.zooms = False
        if _of_transformers(model) is not None:
            fixed = (getattr(model, "pretrained_cfg", None) or {}).get("fixed_input_size", True)
            found = stored(folder, channels, size, fixed=fixed)
            settings |= found.settings
            self.notes += found.notes
            size, crops, self.zooms = found.size, found.crops, found.zooms
        self.shape: tuple[int, int, int] = (channels, size[0], size[1])
        self.mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
        if self.mode is None:
            reads = f"The model reads images of {channels} channels"
            raise MattaError(f"{reads}; matta reads images of 1, 3 or 4.")
        settings["input_size"] = self.shape
        how = ("interpolation", "crop_pct", "crop_mode")
        self.how = {key: settings[key] for key in how if key in settings}
        try:
            self.fit = create_transform(**settings, is_training=False, normalize=False)
        except (KeyError, ValueError, TypeError, AssertionError) as error:
            asks = ", ".join(f"{key} {value!r}" for key, value in self.how.items())
            wrong = f"The model's images are to be made by {asks}, which timm cannot"
            raise MattaError(f"{wrong} ({said(error)}): mend its config.json.") from None
        if _of_transformers(model) is not None:
            steps = [
                _centred(size) if isinstance(s, CenterCrop) else s for s in self.fit.transforms
            ]
            self.fit = _centred(size) if crops else Compose(steps)
        self.mean, self.std = (_per_channel(settings[key], channels) for key in ("mean", "std"))
        if not bool((self.std > 0).all()):
            shown = self.std.flatten().tolist()
            raise MattaError(f"The model's images are to be divided by std {shown}: mend that.")

    def pixels(self, image: Any) -> np.ndarray:
        """An image of any size and mode as uint8 [C, H, W]."""
        image = plain(image).convert(self.mode)
        if self.zooms or image.size != (self.shape[2], self.shape[1]):
            image = self.fit(image)
            if not hasattr(image, "getbands"):  # else it was cropped, and is a picture still
                return np.asarray(image)
        return np.asarray(image).reshape(*self.shape[1:], self.shape[0]).transpose(2, 0, 1)

    def left(self, source: Source) -> list[str]:
        """A sentence where images are of the model's own size, and timm would enlarge and cut them.

        A few are looked at.
        """
        percent, size = self.how.get("crop_pct") or 1, (self.shape[2], self.shape[1])
        some = np.unique(np.linspace(0, len(source.labels) - 1, _LOOKED).astype(int))
        if self.zooms or percent >= 1 or self.how.get("crop_mode") not in (None, "center"):
            return []
        for i in some.tolist() if len(source.labels) else ():
            with contextlib.suppress(Exception):  # what cannot be read is named later
                if source.read(i).size == size:
                    own = f"Images of the model's own size, such as {source.called(i)}, are used"
                    zoom = f"timm would enlarge and cut them (crop_pct {percent:g})"
                    return [f"{own} as they are: {zoom}."]
        return []

    def input(self, pixels: np.ndarray) -> Tensor:
        """Pixels uint8 [..., C, H, W] as float32, normalised."""
        return torch.from_numpy(pixels).float().div_(255).sub_(self.mean).div_(self.std)


def _centred(size: Sequence[int]) -> Callable[[Any], Any]:
    """Takes the middle of a picture as transformers does: torchvision's may be one pixel on."""

    def crop(image: Any) -> Any:
        height, width = size
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))

    return crop


def shape_of(model: Any) -> tuple[int, int, int]:
    """Channels, height and width of the images that a model was made for."""
    from timm.data import resolve_model_data_config

    own = _of_transformers(model)
    if own is not None:
        side = own.image_size
        height, width = (side, side) if isinstance(side, int) else side
        return int(own.num_channels), int(height), int(width)
    channels, *size = resolve_model_data_config(model)["input_size"]
    if hasattr(getattr(model, "patch_embed", None), "img_size"):
        # what it was built for, not what its namesake was
        channels = model.patch_embed.proj.weight.shape[1]
        size = list(model.patch_embed.img_size or size)
    return channels, size[0], size[1]


def _of_transformers(model: Any) -> Any:
    """The configuration of transformers that says the size of a model's images, if there is one."""
    own = config(model, "vision_config") or getattr(model, "config", None)
    return own if getattr(own, "image_size", None) is not None else None


def plain(image: Any) -> Any:
    """An image upright, of 8 bits a channel. Raises ``ValueError`` where its range is not known."""
    from PIL import Image, ImageOps

    kind, form = image.mode, image.format
    if kind.startswith("I;16") or (kind == "I" and form in ("PNG", "PPM")):
        bits = image.tag_v2.get(_BITS, 16) if form == "TIFF" else 16
        top = 2 ** int(bits[0] if isinstance(bits, tuple) else bits) - 1
        values = np.asarray(image).astype(np.int64).clip(0, top)
        scaled = Image.fromarray(((values * 255 + top // 2) // top).astype(np.uint8))
        scaled.info, turned = image.info, image.getexif().get(ORIENTATION, 1)
        scaled.getexif()[ORIENTATION] = turned
        image = scaled
    elif kind in ("I", "F"):
        numbers = "whole numbers of 32 bits" if kind == "I" else "numbers with decimals"
        raise ValueError(f"its pixels are {numbers}, of which the range is not known: save 8 bits")
    return image if image.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)


class Fitted(nn.Module):
    """A model that is called on another one's images, and answers in that one's order.

    given, wanted: how the images are prepared, and how its own would be. order: of its outputs,
    those that are the other one's; empty: as they are.
    """

    scale: Tensor
    shift: Tensor
    order: Tensor | None

    def __init__(
        self, model: nn.Module, given: Preparation, wanted: Preparation, order: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.model = model
        self.config: Any = getattr(model, "config", None)
        self.num_classes: Any = getattr(model, "num_classes", None)
        self.register_buffer("scale", given.std / wanted.std, persistent=False)
        self.register_buffer("shift", (given.mean - wanted.mean) / wanted.std, persistent=False)
        self.register_buffer("order", torch.tensor(order) if order else None, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        made = raw(self.model(image * self.scale + self.shift))
        return made if self.order is None else made[..., self.order]


class Images:
    """Labelled images as a split.

    Pixels are prepared when first asked for, and kept if all of them need less than 1 GiB. What is
    kept lies in memory that forked workers share: there is one copy, and what one of them
    prepared is there for all. Two that prepare the same image write the same bytes.

    contents: a number for each image as it is stored, where they have been looked through.
    """

    def __init__(self, source: Source, prepare: Preparation, name: str) -> None:
        self.source, self.prepare, self.name = source, prepare, name
        shape = (len(source.labels), *prepare.shape)
        self.kept = _shared(shape, np.uint8) if np.prod(shape) < _IN_MEMORY else None
        self.known = _shared(shape[:1], bool)
        self.contents = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.source.labels)

    def batch(self, indices: Sequence[int]) -> Batch:
        """``image`` float32 [B, C, H, W] and ``label`` [B] or [B, labels]."""
        chosen = np.array(indices, dtype=np.int64)
        if self.kept is None:
            pixels = np.stack([self._read(int(i)) for i in chosen])
        else:
            for i in chosen[~self.known[chosen]]:
                self.kept[i] = self._read(int(i))
                self.known[i] = True
            pixels = self.kept[chosen]
        label = torch.from_numpy(self.source.labels[chosen])
        return {"image": self.prepare.input(pixels), "label": label}

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        """Numbers in the user's data; ids are paths within the folder of images."""
        chosen = np.asarray(indices, dtype=np.int64)
        if ids:
            if self.source.names is None:
                raise split.no_ids("images that are not files in a folder")
            return self.source.names[chosen]
        return chosen if self.source.numbers is None else self.source.numbers[chosen]

    def digest(self) -> str:
        """Over all labels, names and ``contents``, and the pixels of 64 images."""
        some = np.unique(np.linspace(0, len(self) - 1, 64).astype(int))
        names = [] if self.source.names is None else list(self.source.names)
        parts = [self.source.labels, self.contents, *names]
        return split.digest([*parts, *(self._read(int(i)) for i in some)])

    def _read(self, i: int) -> np.ndarray:
        try:
            return self.prepare.pixels(self.source.read(i))
        except Exception as error:
            # what PIL raises for a damaged file is open-ended
            which = self.source.called(i, self.name)
            raise MattaError(f"{which} cannot be read: {said(error)}.") from error


def _shared(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros that a process shares with those it forks; pages take memory once written."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size), dtype=dtype).reshape(shape)


def _per_channel(values: Sequence[float], channels: int) -> Tensor:
    """Statistics as [C, 1, 1]; for another number of channels than theirs, their mean.

    Raises ``MattaError`` for what is no list of numbers.
    """
    if (
        not isinstance(values, (list, tuple))
        or not all(isinstance(v, (int, float)) and finite(v) for v in values)
        or not values
    ):
        means = "The mean and std of the model's pretrained_cfg are lists of numbers"
        raise MattaError(f"{means}, a number for each channel, and not {values!r:.40}: mend them.")
    if len(values) != channels:
        values = [sum(values) / len(values)] * channels
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)
