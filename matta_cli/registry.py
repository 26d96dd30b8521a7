"""Adapters and tasks, found by entry point: built-ins are declared exactly as an outsider's are."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from matta_cli.errors import MattaError

if TYPE_CHECKING:
    from matta_cli.adapter import Adapter, Source
    from matta_cli.recipe import Recipe
    from matta_cli.tasks import Task


@cache
def _found(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in sorted(entry_points(group=group), key=lambda e: e.name)}


def origins() -> dict[str, str]:
    """Name of each installed adapter -> the object that provides it. Imports nothing."""
    return {name: entry.value for name, entry in _found("matta.adapters").items()}


def _load(group: str, name: str) -> type:
    entries = _found(group)
    word = group.removeprefix("matta.").removesuffix("s")
    if name not in entries:
        close = difflib.get_close_matches(name, list(entries), 1)
        hint = f"did you mean {close[0]!r}? Installed" if close else "installed"
        raise MattaError(f"There is no {word} {name!r}; {hint}: {', '.join(entries) or 'none'}.")
    try:
        return entries[name].load()
    except Exception as error:
        raise MattaError(f"The {word} {name!r} ({entries[name].value}) does not import: {error}.") from error


def adapter(name: str) -> Adapter:
    """A fresh adapter by name. Raises ``MattaError`` with the installed names, or where its import fails."""
    return _load("matta.adapters", name)()


def adapters() -> dict[str, Adapter]:
    """Every installed adapter that imports; one that does not is left out (``matta adapters`` names it)."""
    working = {}
    for name in _found("matta.adapters"):
        try:
            working[name] = adapter(name)
        except MattaError:
            continue
    return working


def detect(source: Source) -> Adapter:
    """The adapter that knows ``source``. Raises ``MattaError`` where none or several do."""
    matching = [a for a in adapters().values() if a.matches(source)]
    if len(matching) == 1:
        return matching[0]
    names = ", ".join(a.name for a in matching)
    if matching:
        raise MattaError(f"{source.name}: several adapters fit ({names}); choose one with --adapter.")
    raise MattaError(f"{source.name}: no installed adapter ({', '.join(adapters())}) knows this architecture.")


def task(name: str, recipe: Recipe) -> Task:
    """A task by name, with the recipe's settings."""
    return _load("matta.tasks", name)(recipe)
