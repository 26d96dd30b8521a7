"""matta: one dense PyTorch model into a family of good small ones.

The whole public API: ``convert``, ``distill``, ``export``, ``judge``, ``teach``, ``load_ta``,
``load_student``; the contract is in ``matta_cli.adapter`` and its test kit in
``matta_cli.testing``. Everything is imported on first use, so that ``import matta_cli`` costs
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matta_cli.version import __version__ as __version__

__all__ = ["convert", "distill", "export", "judge", "load_student", "load_ta", "teach"]

if TYPE_CHECKING:
    from matta_cli.api import convert, distill, export, judge, load_student, load_ta, teach


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from matta_cli import api

        return getattr(api, name)
    raise AttributeError(f"module 'matta_cli' has no attribute {name!r}")
