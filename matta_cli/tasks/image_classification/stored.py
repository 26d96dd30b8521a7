"""What a transformers folder's ``preprocessor_config.json`` says about the images of its model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matta_cli.errors import MattaError

_FILE = "preprocessor_config.json"
_MODES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_OTHER = ("do_flip_channel_order", "do_color_quantize")  # what changes pixels in another way


@dataclass
class Prepared:
    """Settings of timm's transform, and the height and width of what it makes.

    notes: what was assumed, or is not honoured, for people.
    """

    settings: dict[str, Any]
    size: list[int]
    notes: list[str] = field(default_factory=list)


def stored(folder: Path | None, channels: int, size: list[int], *, fixed: bool = True) -> Prepared:
    """How the images of a model of this ``size`` (height, width) are made.

    fixed: whether the model takes no images of another size. Raises ``MattaError`` for a file that
    is damaged, or asks for what matta does not do.
    """
    squash = {"crop_pct": 1.0, "crop_mode": "squash"}
    path = folder / _FILE if folder is not None else None
    if path is None or not path.is_file():
        assumed = "images are squashed to the model's size and normalised as ImageNet's (assumed)"
        return Prepared(squash, size, [f"There is no {_FILE}: {assumed}."])
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        found = _read(card, channels, size, squash, fixed)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError):
        wrong = "is damaged, or of a kind that is not known: save it anew, or remove it"
        raise MattaError(f"{str(path)!r} {wrong}.") from None
    if odd := [key for key in _OTHER if card.get(key)]:
        raise MattaError(f"{str(path)!r} asks for {odd[0]}, which matta does not do.")
    return found


def _read(
    card: dict[str, Any], channels: int, size: list[int], squash: dict[str, Any], fixed: bool
) -> Prepared:
    settings: dict[str, Any] = dict(squash)
    if card.get("resample") in _MODES:
        settings["interpolation"] = _MODES[card["resample"]]
    given = card.get("size") or {}
    edge = given.get("shortest_edge") if isinstance(given, dict) else None
    crop = _sides(card.get("crop_size")) if card.get("do_center_crop") else None
    made = crop or _sides(given)
    if edge and (crop or card.get("crop_pct")):
        side = crop[0] if crop else edge
        # timm takes the whole number below side / crop_pct: half a pixel more makes that the edge
        share = float(card["crop_pct"]) if card.get("crop_pct") else side / (edge + 0.5)
        settings |= {"crop_pct": min(1.0, share), "crop_mode": "center"}
    elif edge:
        settings |= {"crop_pct": 1.0, "crop_mode": "center"}
    notes = []
    if made and not fixed:
        size = made
    if made and made != size:
        sizes = [" x ".join(map(str, both)) for both in (made, size)]
        notes.append(f"{_FILE} makes images of {sizes[0]}; the model's own {sizes[1]} are used.")
    # a pixel of 0 to 255 is multiplied by the factor, then normalised
    factor = float(card.get("rescale_factor") or 1 / 255) if card.get("do_rescale", True) else 1.0
    plain = card.get("do_normalize") is False
    for key, usual in (("mean", 0.0), ("std", 1.0)):
        values = [usual] * channels if plain else card.get(f"image_{key}")
        if values is None and factor != 1 / 255:
            raise ValueError(f"no image_{key}")
        if values is not None:
            values = values if isinstance(values, list) else [values] * channels
            settings[key] = tuple(float(value) / (255 * factor) for value in values)
    return Prepared(settings, size, notes)


def _sides(given: Any) -> list[int] | None:
    """Height and width; None where only an edge, or nothing, is said."""
    if isinstance(given, dict):
        height, width = given.get("height"), given.get("width")
        return [int(height), int(width)] if height and width else None
    return [given, given] if isinstance(given, int) else None
