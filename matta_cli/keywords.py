"""Errors of the Python API: they name keyword arguments where the command line has flags."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from matta_cli.errors import MattaError
from matta_cli.settings.recipe import SECTIONS, called
from matta_cli.settings.resolve import with_place

_P = ParamSpec("_P")
_R = TypeVar("_R")

CALLS = ("convert", "distill", "export", "judge", "teach")  # commands that are functions, too
# flags that are no settings, and what they are called as keywords
_OWN = {"--out": "out", "--name": "name", "--to": "to", "--top-k": "k", "--draws": "draws"}
_OWN |= {"--config": "config", "--baselines": "baselines"}
_DATA = {"train": "data", "held_out": "held_out"}
_SWITCHES = {"--overwrite": "overwrite", "--resume": "resume", "--allow-pickle": "allow_pickle"}
_FLAG = re.compile(r"(--[a-z][a-z-]*[a-z])(?: ('[^']*'|[\w.,%]*\d[\w.,%]*|[A-Z]{2,}[\w.]*))?")


@functools.cache
def _known() -> dict[str, tuple[str, bool, bool]]:
    """Flag -> its keyword, whether that is a switch, and whether it takes a list."""
    found = {flag: (name, False, False) for flag, name in _OWN.items()}
    found |= {flag: (name, True, False) for flag, name in _SWITCHES.items()}
    for section, made in SECTIONS.items():
        for name, default in vars(made()).items():
            # of the data a call takes two keywords; the rest is set in a file
            keyword = _DATA.get(name, f"data.{name}") if section == "data" else name
            own = keyword, isinstance(default, bool), isinstance(default, list)
            found.setdefault(called(f"{section}.{name}"), own)
    return found


def spoken(sentence: str) -> str:
    """A sentence of the command line in the words of the API: ``--lr 0`` is ``lr=0``."""
    parts = re.split(r"(`matta [^`]*`)", sentence)
    return "".join(_call(part) if part.startswith("`") else _flags(part) for part in parts)


def _call(command: str) -> str:
    """`matta export ...` as `matta_cli.export(...)`, where there is such a function."""
    verb = command.strip("`").split()[1]
    verb = "judge" if verb == "report" else verb
    return f"`matta_cli.{verb}(...)`" if verb in CALLS else command


def _flags(text: str) -> str:
    def keyword(found: re.Match[str]) -> str:
        flag, value = found[1], found[2]
        if flag not in _known():
            return found[0]
        name, switch, several = _known()[flag]
        rest = "" if value is None else f" {value}"
        if switch:
            return f"{name}=True{rest}"
        if value is None or name.startswith("data."):
            return name + rest
        bare = value.rstrip(".,")
        given = f"[{bare}]" if several and bare[0].isdigit() else bare
        return f"{name}={given}{value[len(bare) :]}"

    return _FLAG.sub(keyword, text)


def by_keyword(call: Callable[_P, _R]) -> Callable[_P, _R]:
    """A function of the API whose errors name its keyword arguments."""

    @functools.wraps(call)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return call(*args, **kwargs)
        except MattaError as error:
            error.args = (spoken(with_place(str(error))),)
            raise

    return run
