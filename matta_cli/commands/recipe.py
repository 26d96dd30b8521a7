"""``matta recipe show``: every setting as it stands, with a sentence and a source."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from matta_cli import console
from matta_cli.commands import options
from matta_cli.settings.presets import PRESETS
from matta_cli.settings.recipe import SECTIONS, Recipe, about

app = typer.Typer(help="The settings of a run.", no_args_is_help=True)
_Ran = Annotated[
    bool, options.option("--ran", "As the run in the folder was started, above the files.")
]
_Changed = Annotated[bool, options.option("--changed", "Only what is not the default.")]
_Toml = Annotated[bool, options.option("--toml", "Print TOML, ready for --config.")]


def show(
    folder: options.Folder = None,
    out: options.Out = options.OUT,
    file: options.File = None,
    ran: _Ran = False,
    changed: _Changed = False,
    toml: _Toml = False,
    json: options.Json = False,
) -> None:
    """Print every setting: its value, what it is, and the source of its default.

    That is a paper, or our own choice. Example: matta recipe show --changed
    """
    out = options.output(folder, out)
    recipe = options.resolved({}, out, file, ran)
    if toml:
        console.text(recipe.text())
    else:
        _show(recipe, changed, json)
    console.hint(options.following(out))


def _show(recipe: Recipe, changed: bool, json: bool) -> None:
    """Print the settings, or those that are not the default, and the presets."""
    rows = [row for row in _rows(recipe) if not changed or row["value"] != row["default"]]
    if json:
        console.data(rows)
        return
    cells = []
    for row in rows:
        default = "" if row["value"] == row["default"] else _shown(row["default"])
        what = about(row["setting"]).told
        cells.append([row["setting"], _shown(row["value"]), default, what, row["source"]])
    headers, prose = ["setting", "value", "default", "what", "source"], ["value", "default", "what"]
    console.table(headers, cells, ["source", "default"], left=True, prose=[*prose, "source"])
    for name, preset in PRESETS.items():
        console.say(f"Preset {name}: {preset.purpose}. Measured: {preset.measured}.")


def _rows(recipe: Recipe) -> list[dict[str, Any]]:
    """What there is to say of each setting."""
    rows, default = [], Recipe()
    for section in SECTIONS:
        usual = vars(getattr(default, section))
        for key, value in vars(getattr(recipe, section)).items():
            name = f"{section}.{key}"
            known = about(name)
            row = {"setting": name, "value": value, "default": usual[key]}
            more = {"choices": list(known.choices)} if known.choices else {}
            rows.append({**row, "what": known.text, "source": known.source, **more})
    return rows


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return str(value) if value != "" else "-"


app.command()(console.guarded(show))


@app.callback()
def _group() -> None:
    """The settings of a run."""
