"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

MISSING = "–"

_COUNT = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")]
_BYTES = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")]
_TIME = [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")]


def finite(value: Any) -> TypeGuard[float]:
    """Whether something is a number, and neither NaN nor infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _scaled(value: Any, units: list[tuple[float, str]], tick: bool = False, places: int = 3) -> str:
    """So many significant digits, and a unit. tick: 10 M rather than 10.0 M."""
    if not finite(value):
        return MISSING
    if value == 0:
        return f"0 {units[-1][1]}".strip()
    at = next((i for i, (size, _) in enumerate(units) if abs(value) >= size), len(units) - 1)
    if at and float(f"{abs(value) / units[at][0]:.3g}") >= units[at - 1][0] / units[at][0]:
        at -= 1  # 999.9 k rounds to 1.00 M, not to 1000 k
    size, unit = units[at]
    scaled = value / size
    whole = size == 1 and float(value).is_integer()  # 7 parameters, not 7.00
    before = math.floor(math.log10(float(f"{abs(scaled):.3g}")))
    digits = 0 if whole else max(0, places - 1 - before)
    text = f"{scaled:.{digits}f}"
    if tick and "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{text} {unit}".strip()


def count(value: Any, tick: bool = False, places: int = 3) -> str:
    """``12.3 M``; a dash where it is no number, as in the other units."""
    return _scaled(value, _COUNT, tick, places)


def in_bytes(value: Any, tick: bool = False, places: int = 3) -> str:
    """``45.6 MB``."""
    return _scaled(value, _BYTES, tick, places)


def in_seconds(value: Any, tick: bool = False, places: int = 3) -> str:
    """``4.56 ms``."""
    return _scaled(value, _TIME, tick, places)


def percent(share: float) -> str:
    """A share as ``64 %``, or ``1.2 %`` below ten."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def number(value: float, decimals: int) -> str:
    """With so many decimals, or in thousands and millions where it is large."""
    return f"{value:.{decimals}f}" if abs(value) < 1e5 else count(value)


def places_for(halves: Sequence[float]) -> int:
    """Decimals for two digits of the smallest."""
    small = min((half for half in halves if half > 0), default=1.0)
    return min(5, max(0, 1 - math.floor(math.log10(float(f"{small:.2g}")))))


def signed(value: float, places: int) -> str:
    """With its sign, which zero has none of."""
    text = number(abs(value), places)
    return text if float(text.split()[0]) == 0 else f"{'+' if value > 0 else '−'}{text}"


def duration(seconds: float) -> str:
    """Seconds below 100, minutes below 100, hours."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def plain(value: Any) -> Any:
    """What JSON can hold: a number that is NaN or infinite becomes null, every key is text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
