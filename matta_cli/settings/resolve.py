"""Where settings come from: flags, files, a run that was started, defaults."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matta_cli.errors import MattaError
from matta_cli.files import reading
from matta_cli.files.workspace import Workspace
from matta_cli.settings import gone
from matta_cli.settings.checks import check_value
from matta_cli.settings.presets import PRESETS
from matta_cli.settings.recipe import SECTIONS, Recipe, about
from matta_cli.trust import Read

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_JUDGED = ("margin", "bootstrap")  # by what models are compared
_CODE = {"convert": ("source", "adapter", "example"), "distill": ("teacher",)}  # may name some


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, as ``of_file`` has them.

    Raises ``MattaError`` where there is none, or it is no TOML.
    """
    try:
        return of_file(tomllib.loads(reading.text(path)), path)
    except FileNotFoundError:
        raise MattaError(f"There is no configuration file {str(path)!r}.") from None
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, too many digits, too deep
        raise MattaError(f"{path} is not valid TOML: {error}.") from None


def of_file(tables: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Tables of settings that ``file`` holds: what may name code in them is a ``trust.Read``."""
    found = dict(tables)
    for section, names in _CODE.items():
        table = found.get(section)
        if isinstance(table, Mapping):
            marked = {n: Read(v, file) for n, v in table.items() if n in names and type(v) is str}
            found[section] = {**table, **marked}
    return found


def with_place(sentence: str) -> str:
    """An error that asks for a setting without a flag, and where such a setting is written."""
    asked = re.search(rf"\b(?:[Ss]et|in|to) ({'|'.join(SECTIONS)})\.[a-z_]+", sentence)
    if not asked or "matta.toml" in sentence:
        return sentence
    table = SECTIONS[asked[1]]
    lines: list[str] = []
    for key in dict.fromkeys(re.findall(rf"\b{asked[1]}\.([a-z_]+)", sentence)):
        if key in table.__dataclass_fields__ and not about(f"{asked[1]}.{key}").flag:
            usual = getattr(table(), key)
            value = "..." if not isinstance(usual, (str, list)) else '"..."'
            value = f"[{value}, {value}]" if isinstance(usual, list) else value
            lines.append(f"`{key} = {value}`")
    place = f" In matta.toml that is {' or '.join(lines)} below `[{asked[1]}]`."
    return sentence + (place if lines else "")


def _update_by(recipe: Recipe, path: Path, *sections: str) -> None:
    """Take these tables over from a recipe that was written beside a result."""
    table = gone.recorded(read_toml(path))
    recipe.update({name: table[name] for name in sections if name in table}, str(path))


def run_recipe(out: Path) -> Recipe:
    """The recipe that the run in ``out`` was started with: its data, and how it was trained."""
    recipe = Recipe()
    _update_by(recipe, Workspace(out).recipe, "data", "distill")
    return recipe


def instead_of_widths(export: Mapping[str, Any]) -> dict[str, Any]:
    """The [export] table of flags, in which a budget stands for the widths if none are named."""
    budgets = any(value for name, value in export.items() if name.startswith("target_"))
    return {**export, "widths": []} if budgets and export["widths"] is None else dict(export)


def resolve(
    flags: Mapping[str, Mapping[str, Any]],
    out: Path | None,
    config: Path | None = None,
    *,
    ran: bool = False,
    exported: Workspace | None = None,
    origin: str = "command line",
) -> tuple[Recipe, list[Path]]:
    """Defaults < preset < ``out/matta.toml`` < ``config`` (else ``./matta.toml``) < flags.

    Returns the files that were read, too. A flag that is None was not given; ``origin`` names them
    in an error. The preset is the one that the last of these names. With ``ran``, and no
    ``config``, the recipe of the run in ``out`` stands above the files: going on with a run, or
    exporting it, needs no flag that it was started with. What the report in ``exported`` was
    measured on, and by which margin, stands above that. What killed processes left in
    ``out`` is mended first. Other training data by a flag brings neither the configuration of a
    hub dataset nor held-out data along from a file. Raises
    ``MattaError`` for what a file or a flag cannot be.
    """
    tables: list[tuple[Mapping[str, Any], str]] = []
    read = []
    if out is not None:
        Workspace(out).mend()
    nearer = config if config is not None else Path("matta.toml")
    for path in dict.fromkeys([*([Workspace(out).settings] if out is not None else []), nearer]):
        if path.exists() or path == config:
            tables.append((read_toml(path), str(path)))
            read.append(path)
    if out is not None:
        converted, started = Workspace(out).ta / "recipe.toml", Workspace(out).recipe
        if converted.exists():  # how the TA was made is settled
            made = read_toml(converted).get("convert", {})
            if isinstance(made, Mapping):
                made = {name: value for name, value in made.items() if value != ""}
            tables.append(({"convert": made}, str(converted)))
        if ran and config is None and started.exists():
            run = gone.recorded(read_toml(started))
            tables.append(({k: run[k] for k in ("data", "distill") if k in run}, str(started)))
            read.append(started)
        students = exported.students / "recipe.toml" if exported is not None else None
        if students is not None and config is None and students.exists():
            kept = gone.recorded(read_toml(students))
            judged = {k: v for k, v in kept.get("export", {}).items() if k in _JUDGED}
            tables.append(({"data": kept.get("data", {}), "export": judged}, str(students)))
            read.append(students)
    given = {s: {k: v for k, v in table.items() if v is not None} for s, table in flags.items()}
    if "train" in given.get("data", {}):
        given["data"] = {"config": "", "held_out": "", **given["data"]}
    return _layered([*tables, (given, origin)]), read


def _layered(tables: Sequence[tuple[Mapping[str, Any], str]]) -> Recipe:
    """The recipe of tables and their origins, each above those before it, all above the preset."""
    recipe = Recipe()
    for table, origin in tables:  # all are checked, whatever the preset is
        recipe.update(table, origin)
    name = recipe.distill.preset
    check_value("distill.preset", name)
    recipe = Recipe()
    recipe.update(PRESETS[name].values, f"the preset {name}")
    for table, origin in tables:
        recipe.update(table, origin)
    return recipe
