"""Dataclasses as JSON has them, and back, each field by its type.

Files that another version wrote open: what they do not have takes its default, what is not known
here is passed over, and a number that is none is NaN, or None where that may be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from enum import Enum
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from matta_cli.report.numbers import finite, plain

if TYPE_CHECKING:
    from typing_extensions import Self

_kinds: Any = cache(get_type_hints)


class Stored:
    """A dataclass with JSON both ways."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them; a number that is NaN or infinite is null."""
        return {name: _json(value) for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The object that ``to_json`` made this of. Raises ``KeyError`` if a field is missing."""
        kinds = _kinds(cls).items()
        known = {name: _restored(kind, value[name]) for name, kind in kinds if name in value}
        known = {name: item for name, item in known.items() if item is not MISSING}
        for field in fields(cls):  # type: ignore[arg-type]
            if field.name not in known and field.default is field.default_factory is MISSING:
                raise KeyError(field.name)
        return cls(**known)


def _json(value: Any) -> Any:
    if isinstance(value, Stored):
        return value.to_json()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    return [_json(item) for item in value] if isinstance(value, (list, tuple)) else plain(value)


def _restored(kind: Any, value: Any) -> Any:
    """A value of JSON as a type has it; ``MISSING`` where it is of no use."""
    try:
        return _of_kind(kind, value)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError):
        return MISSING  # a field is missing, a role is not known here, or it is of another type


def _of_kind(kind: Any, value: Any) -> Any:
    parts, origin = get_args(kind), get_origin(kind)
    if NoneType in parts:
        found = _restored(next(part for part in parts if part is not NoneType), value)
        lost = found is MISSING or (isinstance(found, float) and math.isnan(found))
        return None if lost else found
    if kind is Any:
        return value
    if kind is float:
        return value if finite(value) else math.nan
    if kind is int:
        return value if finite(value) else MISSING
    if value is None:
        return MISSING
    if origin is dict:
        items = {parts[0](key): _restored(parts[1], item) for key, item in value.items()}
        return {key: item for key, item in items.items() if item is not MISSING}
    if origin is list:
        return [item for item in (_restored(parts[0], v) for v in value) if item is not MISSING]
    if origin is tuple:
        place = [_restored(part, item) for part, item in zip(parts, value, strict=True)]
        return MISSING if MISSING in place else tuple(place)
    return kind.from_json(value) if issubclass(kind, Stored) else kind(value)
