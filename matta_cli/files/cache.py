"""The folder in which matta keeps what can be made again."""

from __future__ import annotations

from pathlib import Path

from matta_cli import trust


def cache() -> Path:
    """The folder of all token files."""
    return trust.home() / "tokens"
