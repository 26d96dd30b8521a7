"""``matta.json``: what makes a stock checkpoint a TA or a Student."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from matta_cli import trust
from matta_cli.adapter import Adapter, Axis
from matta_cli.errors import MattaError
from matta_cli.files import reading
from matta_cli.files.atomic import atomic_write
from matta_cli.version import __version__

FORMAT = 1


class _Slice(TypedDict):
    tensor: str
    dim: int
    blocks: NotRequired[int]
    start: NotRequired[int]
    outgoing: NotRequired[bool]
    unit: NotRequired[int]


class _Axis(TypedDict):
    name: str
    size: int
    slices: list[_Slice]
    step: NotRequired[int]
    layers: NotRequired[str]
    order: NotRequired[list[int]]


class _Lineage(TypedDict):
    source: str
    digest: str
    student: NotRequired[str | None]
    width: NotRequired[float | None]
    budget: NotRequired[str | None]
    dropped: NotRequired[list[str]]
    quantized: NotRequired[str]
    of: NotRequired[str]
    tokens: NotRequired[list[int]]  # how many of how many; empty: all
    weights: NotRequired[str]  # a digest of the base's, as it was opened


class Card(reading.Versioned):
    """What ``matta.json`` holds."""

    adapter: str
    task: str
    axes: list[_Axis]
    base: dict[str, int]
    lineage: _Lineage
    multiple: NotRequired[int]
    sizes: NotRequired[dict[str, dict[str, float]]]
    dtype: NotRequired[str]
    order: NotRequired[str]
    difference: NotRequired[float]
    expand: NotRequired[float]
    settings: NotRequired[str]
    example: NotRequired[str]
    opened_with: NotRequired[list[str]]


def write_card(
    folder: Path,
    adapter: Adapter,
    axes: Sequence[Axis],
    base: Mapping[str, int],
    lineage: Mapping[str, Any],
    **more: Any,
) -> None:
    """Write ``matta.json``. ``more``: whatever else the folder has to say of itself."""
    card = {
        "format": FORMAT,
        "matta": __version__,
        "adapter": adapter.spec or adapter.name,
        "task": adapter.task,
        "axes": [asdict(axis) for axis in axes],
        "base": dict(base),
        "lineage": dict(lineage),
        **more,
    }
    atomic_write(folder / "matta.json", json.dumps(card, indent=1) + "\n")


def _no_card(folder: Path) -> str:
    below = [p for kind in ("students/*", "*") for p in sorted(folder.glob(f"{kind}/matta.json"))]
    if not below:
        return f"{folder} is not a folder written by matta (it has no matta.json)."
    one = below[0].parent
    return f"{folder} is no model itself (it has no matta.json): pass one below it, such as {one}."


def read_card(folder: Path) -> dict[str, Any]:
    """``matta.json`` of a folder.

    Raises ``MattaError`` where it is missing, broken or of a newer format.
    """
    path = folder / "matta.json"
    again = "write it again with the command that made it"
    try:
        card: dict[str, Any] = reading.stored(path, Card, again, FORMAT)
    except FileNotFoundError:
        raise MattaError(_no_card(folder)) from None
    if trust.is_code(card.get("example", "")):
        what = "its example is no shapes, but a function, which is not run"
        raise MattaError(f"{path} is damaged ({what}): {again}.")
    card["axes"] = axes = [Axis.restored(axis) for axis in card["axes"]]
    for axis in axes:
        size, order = card["base"].get(axis.name, 0), axis.order
        if not 0 < size <= axis.size or axis.step < 1:
            raise MattaError(f"{path} is damaged (the sizes of {axis.name!r}): {again}.")
        if order and sorted(order) != list(range(axis.size)):
            raise MattaError(f"{path} is damaged (the order of {axis.name!r}): {again}.")
    return card
