"""Values of settings: of the type that is needed, and as TOML."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any, get_args, get_origin

from matta_cli.errors import MattaError


def typed(value: Any, hint: Any, where: str) -> Any:
    """``value`` as the setting's type, without guessing: 1 passes for a float, "1" does not.

    Raises ``MattaError``, which says ``where``, for a value of another type.
    """
    if get_origin(hint) is list and isinstance(value, (list, tuple)):
        return [typed(v, get_args(hint)[0], where) for v in value]
    number = isinstance(value, int) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    if get_origin(hint) is None and isinstance(value, hint) and (number or hint is not int):
        return value
    name = "list" if get_origin(hint) is list else hint.__name__
    article = "an" if name == "int" else "a"
    raise MattaError(f"{where} is {value!r}, but {article} {name} is needed.")


def toml(value: Any) -> str:
    """A value as TOML."""
    return json.dumps(value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """What an error says of a word that is not known: the nearest one, else all."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else f"; known: {', '.join(known)}"
