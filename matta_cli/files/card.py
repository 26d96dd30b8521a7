"""``matta.json``: what makes a stock checkpoint a TA or a Student."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matta_cli import trust
from matta_cli.adapter import Adapter, Axis
from matta_cli.errors import MattaError
from matta_cli.files.atomic import atomic_write
from matta_cli.version import __version__

FORMAT = 1


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


def read_card(folder: Path) -> dict[str, Any]:
    """``matta.json`` of a folder.

    Raises ``MattaError`` where it is missing, broken or of a newer format.
    """
    path = folder / "matta.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if card["format"] > FORMAT:
            known = f"this matta reads up to {FORMAT}: upgrade matta"
            raise MattaError(f"{path} has format {card['format']}; {known}.")
        if trust.is_code(card.get("example", "")):
            raise ValueError("its example is no shapes, but a function, which is not run")
        card["axes"] = [Axis.restored(axis) for axis in card["axes"]]
    except FileNotFoundError:
        what = f"{folder} is not a folder written by matta (it has no matta.json)."
        raise MattaError(what) from None
    except (ValueError, KeyError, TypeError) as error:
        what = f"{path} is damaged ({error}); write it again with the command that made it."
        raise MattaError(what) from None
    return card
