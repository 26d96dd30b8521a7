"""Files of other hands: opened only if they are files, and read as what they should hold.

What they hold instead is one sentence, which names the file and the field.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_origin

from typing_extensions import NotRequired, TypedDict, get_type_hints, is_typeddict

from matta_cli.errors import MattaError, said

if TYPE_CHECKING:
    from torch import Tensor

_POINTER = b"version https://git-lfs.github.com/spec/"
LARGEST = 1 << 28  # bytes of a file that is read whole, and held in memory


class Versioned(TypedDict):
    """What has a format, by which older versions of matta know that they cannot read it."""

    format: int


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """The fields of a ``TypedDict``: of each its kind, and whether it has to be there."""
    found = {}
    for name, own in get_type_hints(kind, include_extras=True).items():
        optional = get_origin(own) is NotRequired
        found[name] = (get_args(own)[0] if optional else own, not optional)
    return found


def regular(path: Path) -> Path:
    """The path of a file. Raises ``MattaError`` for a pipe or a device, which may never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise MattaError(f"{str(path)!r} is a pipe or a device: put a file there.")
    return path


def refuse_pointer(path: Path) -> None:
    """Raise ``MattaError`` for what git LFS leaves in the place of a file that was not fetched."""
    try:
        with regular(path).open("rb") as file:
            pointer = file.read(len(_POINTER)) == _POINTER
    except OSError:  # who opens it says so
        return
    if pointer:
        fetch = "fetch it (git lfs pull), or download it anew"
        raise MattaError(f"{str(path)!r} is a pointer of git LFS, and not yet the file: {fetch}.")


def real(path: Path) -> Path:
    """Where a path leads, links followed; one that leads to itself stays as it is."""
    return Path(os.path.realpath(path))  # Path.resolve() raises there before Python 3.13


def only_files(folder: Path) -> Path:
    """A folder of files and folders. Raises ``MattaError`` where anything else lies in it."""
    for path in folder.iterdir():
        regular(path)
    return folder


def text(path: Path) -> str:
    """The text in a file, without the mark that some programs begin UTF-8 with.

    Raises ``MattaError`` where it is none, and ``OSError`` as the system does.
    """
    if regular(path).stat().st_size > LARGEST:
        raise MattaError(f"{str(path)!r} is too large for such a file, with {LARGEST:,} bytes.")
    refuse_pointer(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise MattaError(f"{str(path)!r} is not text in UTF-8: {error}.") from None


def parsed(json_text: str) -> Any:
    """What JSON says. Raises ``ValueError`` where it is none."""
    try:
        return json.loads(json_text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def lenient(path: Path) -> Any:
    """What a JSON file holds, for who can do without it; None where none can be read."""
    try:
        return parsed(text(path))
    except (OSError, ValueError, MattaError):
        return None


def stored(path: Path, kind: Any, again: str, newest: int | None = None) -> Any:
    """The JSON of a file, of a kind (see ``checked``), with ``format`` up to the newest known.

    Raises ``MattaError`` where it is another; ``again`` says what then helps. Raises ``OSError``
    where there is no file.
    """
    try:
        value = parsed(text(path))
        if newest is not None and checked(value, Versioned)["format"] > newest:
            known = f"this matta reads up to {newest}: upgrade matta"
            raise MattaError(f"{path} has format {value['format']}; {known}.")
        return checked(value, kind)
    except ValueError as error:
        raise MattaError(f"{path} is damaged ({error}): {again}.") from None


def checked(value: Any, kind: Any, where: str = "it") -> Any:
    """A value of JSON, if it is of a kind: a type as annotations have it, or a ``TypedDict``.

    Raises ``ValueError``, which names the field, where it is not.
    """
    parts, origin = get_args(kind), get_origin(kind)
    if NoneType in parts:
        return None if value is None else checked(value, parts[0], where)
    if kind is Any:
        return value
    fields = _fields(kind) if is_typeddict(kind) else {}
    plain = dict if fields else origin or kind
    fits = isinstance(value, (int, float) if plain is float else plain)
    if not fits or (isinstance(value, bool) and plain is not bool):
        article = "an" if plain.__name__ == "int" else "a"
        raise ValueError(f"{where} is {value!r:.60}, where {article} {plain.__name__} belongs")
    if plain in (int, float) and not (abs(value) < 2**63 if plain is int else finite(value)):
        raise ValueError(f"{where} is no number that can be")
    for name, (own, needed) in fields.items():
        inner = name if where == "it" else f"{where}.{name}"
        if name in value:
            checked(value[name], own, inner)
        elif needed:
            raise ValueError(f"{inner} is missing")
    if origin is list:
        for number, item in enumerate(value):
            checked(item, parts[0], f"{where}[{number}]")
    if origin is dict:
        for name, item in value.items():
            checked(item, parts[1], f"{where}[{name!r}]")
    return value


def whole(path: Path, again: str) -> None:
    """Raise ``MattaError`` where a safetensors file is cut or damaged; its values are not read."""
    from safetensors import safe_open

    def look(name: str) -> None:
        with safe_open(name, "pt"):
            pass

    _opened(path, again, look)


def tensors(path: Path, again: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ``MattaError`` where it holds none."""
    from safetensors.torch import load_file

    found: dict[str, Tensor] = _opened(path, again, load_file)
    return found


def _opened(path: Path, again: str, opens: Callable[[str], Any]) -> Any:
    from safetensors import SafetensorError

    refuse_pointer(path)
    try:
        return opens(str(regular(path)))
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise MattaError(f"{path} is damaged ({said(error)}): {again}.") from None


def header(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, by name, and where their values begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return entries, 8 + length


def finite(value: float) -> bool:
    """Whether a number is one, and small enough to be reckoned with."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def record(value: Any) -> Mapping[str, Any]:
    """A value of JSON that is read leniently, field by field: an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}
