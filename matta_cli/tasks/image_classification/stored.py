"""What a transformers folder says about the images of its model, in one of two files."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matta_cli.errors import MattaError
from matta_cli.files.reading import lenient, parsed, record, text

_FILE = "preprocessor_config.json"
_WHOLE = "processor_config.json"  # of a processor of several things, of which one is images
_MODES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_IMAGE_PROCESSOR = re.compile(r"[A-Z][A-Za-z0-9]+ImageProcessor")  # no other class is made
_SQUASH = {"crop_pct": 1.0, "crop_mode": "squash"}
_SQUARE = ("ViT", "DeiT", "Beit")  # processors to which a size that is a number is a square
# what changes pixels in another way
_OTHER = (
    "do_flip_channel_order",
    "do_color_quantize",
    "do_pad",
    "do_thumbnail",
    "do_align_long_axis",
    "do_pan_and_scan",
    "do_crop_margin",
    "rescale_offset",
)


@dataclass
class Prepared:
    """Settings of timm's transform, and the height and width of what it makes.

    notes: what was assumed, or is not honoured, for people. crops: whether images are cropped as
    they are, and not resized. zooms: whether an image of that very size is resized as well.
    """

    settings: dict[str, Any]
    size: list[int]
    notes: list[str] = field(default_factory=list)
    crops: bool = False
    zooms: bool = False


def stored(folder: Path | None, channels: int, size: list[int], *, fixed: bool = True) -> Prepared:
    """How the images of a model of this ``size`` (height, width) are made.

    fixed: whether the model takes no images of another size. Raises ``MattaError`` for a file that
    is damaged, or asks for what matta does not do.
    """
    path = _place(folder) if folder is not None else None
    if path is None:
        assumed = "images are squashed to the model's size and normalised as ImageNet's (assumed)"
        return Prepared(dict(_SQUASH), size, [f"There is no {_FILE}: {assumed}."])
    try:
        card = _card(path)
        found = _read(card, channels, size, fixed, path.name)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError):
        wrong = "is damaged, or of a kind that is not known: save it anew, or remove it"
        raise MattaError(f"The model's {path.name} {wrong}.") from None
    if odd := [key for key in _OTHER if card.get(key)]:
        raise MattaError(f"The model's {path.name} asks for {odd[0]}, which matta does not do.")
    other = path.with_name(_FILE)
    if path.name == _WHOLE and other.is_file() and lenient(other) != card:
        used = f"{_WHOLE} is used, as transformers does, and not {_FILE}"
        found.notes.append(f"The model says in two files how images are made: {used}.")
    return found


def _place(folder: Path) -> Path | None:
    """The file that says how images are made, if there is one: the one that transformers takes."""
    whole, alone = folder / _WHOLE, folder / _FILE
    if record(lenient(whole)).get("image_processor"):
        return whole
    return alone if alone.is_file() else None


def _card(path: Path) -> dict[str, Any]:
    card = parsed(text(path))
    return card if path.name == _FILE else card["image_processor"]


def _completed(card: dict[str, Any], name: str, notes: list[str]) -> dict[str, Any]:
    """The card with what its own processor takes where it says nothing, which is said."""
    wanted = ["resample"] if card.get("do_resize", True) else []
    wanted += ["image_mean", "image_std"] if card.get("do_normalize", True) else []
    if not (lacking := [key for key in wanted if card.get(key) is None]):
        return card
    given = str(card.get("image_processor_type") or card.get("feature_extractor_type") or "")
    kind = given.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    own: dict[str, Any] = {}
    if _IMAGE_PROCESSOR.fullmatch(kind):
        import transformers

        with contextlib.suppress(Exception):  # of a release without it, or one that needs more
            own = getattr(transformers, kind)().to_dict()
    found = {key: own[key] for key in lacking if own.get(key) is not None}
    whose = f"those of a {kind} are taken, as transformers does"
    if len(found) < len(lacking):
        whose = "bicubic resizing, and ImageNet's mean and deviation, are assumed"
    notes.append(f"{name} does not say {', '.join(lacking)}: {whose}.")
    return card | found


def _read(card: dict[str, Any], channels: int, size: list[int], fixed: bool, name: str) -> Prepared:
    settings: dict[str, Any] = dict(_SQUASH)
    notes: list[str] = []
    missing: list[str] = []
    card = _completed(card, name, missing)
    if card.get("resample") in _MODES:
        settings["interpolation"] = _MODES[card["resample"]]
    edge, whole = _resized(card)
    crop = _sides(card.get("crop_size")) if card.get("do_center_crop") else None
    resized = card.get("do_resize", True)
    large = edge or (whole[0] if whole else 0)
    if edge:
        settings["crop_mode"] = "center"
    if card.get("crop_pct") and edge:
        settings["crop_pct"] = min(1.0, float(card["crop_pct"]))
    elif crop and large:
        # timm takes the whole number below side / crop_pct: half a pixel more makes that the edge
        settings["crop_pct"] = min(1.0, crop[0] / (large + 0.5))
    made = crop or whole or size
    if not fixed:
        size = made
    if not resized and not crop:
        notes.append(f"{name} resizes no images: those of another size are squashed all the same.")
    elif made != size:
        sizes = [" x ".join(map(str, both)) for both in (made, size)]
        notes.append(f"{name} makes images of {sizes[0]}; the model's own {sizes[1]} are used.")
    # a pixel of 0 to 255 is multiplied by the factor, then normalised
    factor = float(card.get("rescale_factor") or 1 / 255) if card.get("do_rescale", True) else 1.0
    plain = card.get("do_normalize") is False
    for key, usual in (("mean", 0.0), ("std", 1.0)):
        values = [usual] * channels if plain else card.get(f"image_{key}")
        if values is None and factor != 1 / 255:
            raise ValueError(f"no image_{key}")
        if values is not None:
            values = list(values) if isinstance(values, (list, tuple)) else [values] * channels
            settings[key] = tuple(float(value) / (255 * factor) for value in values)
    crops = bool(crop) and not resized
    return Prepared(settings, size, notes + missing, crops, zooms=bool(crop) and large != size[0])


def _resized(card: dict[str, Any]) -> tuple[int, list[int] | None]:
    """The shorter edge that images are resized to, or 0 and the height and width, where known.

    An edge may be a bare number, which to some processors is a square.
    """
    given = card.get("size") or {}
    if isinstance(given, dict):
        return int(given.get("shortest_edge") or 0), _sides(given)
    kind = str(card.get("image_processor_type") or card.get("feature_extractor_type") or "")
    if card.get("do_center_crop") and not kind.startswith(_SQUARE):
        return int(given), None
    return 0, _sides(given)


def _sides(given: Any) -> list[int] | None:
    """Height and width; None where only an edge, or nothing, is said."""
    if isinstance(given, dict):
        height, width = given.get("height"), given.get("width")
        return [int(height), int(width)] if height and width else None
    return [given, given] if isinstance(given, int) else None
