"""Values of settings: of the type that is needed, and as TOML."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any, get_args, get_origin

from matta_cli.errors import MattaError


def typed(value: Any, hint: Any, where: str) -> Any:
    """``value`` as the setting's type, without guessing: 1 passes for a float, "1" does not.

    Raises ``MattaError``, which says ``where``, for a value of another type, and for what no
    settings file can hold.
    """
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):  # of a file's name, say
        raise MattaError(f"{where} is {value!r}, which is no text in UTF-8: take another name.")
    if get_origin(hint) is list and isinstance(value, (list, tuple)):
        return [typed(v, get_args(hint)[0], where) for v in value]
    number = isinstance(value, int) and not isinstance(value, bool)
    if number and not -(2**63) <= value < 2**63:
        raise MattaError(f"{where} is a whole number of more than 64 bits: take a smaller one.")
    if hint is float and number:
        return float(value)
    if get_origin(hint) is None and isinstance(value, hint) and (number or hint is not int):
        return value
    name = "list" if get_origin(hint) is list else hint.__name__
    article = "an" if name == "int" else "a"
    raise MattaError(f"{where} is {value!r}, but {article} {name} is needed.")


def toml(value: Any) -> str:
    """A value as TOML. Strings are as in JSON, but for surrogate pairs, which TOML has not."""
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, str):
        written = json.dumps(value, ensure_ascii=False)
        # a terminal obeys these, too
        return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", written)
    return repr(value) if isinstance(value, float) else json.dumps(value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """What an error says of a word that is not known: the nearest one, else all."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else f"; known: {', '.join(known)}"
