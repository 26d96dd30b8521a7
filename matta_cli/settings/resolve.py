"""Where settings come from: flags, files, a run that was started, defaults."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matta_cli.errors import MattaError
from matta_cli.files.workspace import Workspace
from matta_cli.settings.recipe import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MattaError(f"There is no configuration file {str(path)!r}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MattaError(f"{path} is not valid TOML: {error}.") from None


def _update_by_run(recipe: Recipe, started: Path) -> None:
    """Take over what a run was started with: its data, and how it was trained."""
    table = read_toml(started)
    recipe.update(
        {name: table[name] for name in ("data", "distill") if name in table}, str(started)
    )


def run_recipe(out: Path) -> Recipe:
    """The recipe that the run in ``out`` was started with: its data, and how it was trained."""
    recipe = Recipe()
    _update_by_run(recipe, Workspace(out).recipe)
    return recipe


def resolve(
    flags: Mapping[str, Any],
    out: Path | None,
    config: Path | None = None,
    *,
    ran: bool = False,
    origin: str = "command line",
) -> tuple[Recipe, list[Path]]:
    """Defaults < ``out/matta.toml`` < ``config`` (else ``./matta.toml``) < flags. Returns the files
    that were read too.

    A flag that is None was not given; ``origin`` names them in an error. With ``ran``, and no
    ``config``, the recipe of the run in ``out`` stands above the files: going on with a run, or
    exporting it, needs no flag that it was started with.
    """
    recipe, read = Recipe(), []
    nearer = config if config is not None else Path("matta.toml")
    for path in dict.fromkeys([*([Workspace(out).settings] if out is not None else []), nearer]):
        if path.exists() or path == config:
            recipe.update(read_toml(path), str(path))
            read.append(path)
    converted = Workspace(out).ta / "recipe.toml" if out is not None else None
    if converted is not None and converted.exists():  # how the TA was made is settled
        made = read_toml(converted).get("convert", {})
        recipe.update(
            {"convert": {name: value for name, value in made.items() if value != ""}},
            str(converted),
        )
    started = Workspace(out).recipe if ran and out is not None and config is None else None
    if started is not None and started.exists():
        _update_by_run(recipe, started)
        read.append(started)
    given = {s: {k: v for k, v in table.items() if v is not None} for s, table in flags.items()}
    recipe.update(given, origin)
    return recipe, read
