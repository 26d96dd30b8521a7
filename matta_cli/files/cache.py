"""The folder in which matta keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """The folder of all token files."""
    home = (
        os.environ.get("MATTA_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "matta"
    )
    return Path(home).expanduser() / "tokens"
