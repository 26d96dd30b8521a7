"""The kinds of fewer bits that ``export.quantize`` names."""

from __future__ import annotations

from collections.abc import Iterable

INT8, STATIC, INT4 = "int8", "int8-static", "int4"
AUTO = "auto"  # int8, or what stands for it, wherever it is the better Student of a budget
CALIBRATED = (STATIC,)  # what reads the ranges of activations off training examples


def calibrates(kinds: Iterable[str]) -> bool:
    """Whether some of these kinds need training examples, or may: ``auto`` stands for any."""
    return any(kind in (AUTO, *CALIBRATED) for kind in kinds)
