"""``matta recipe show``: every setting as it stands, with a sentence and a source."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from matta_cli import console
from matta_cli.commands import options
from matta_cli.settings.recipe import Recipe
from matta_cli.settings.resolve import resolve

app = typer.Typer(help="The settings of a run.", no_args_is_help=True)


def show(
    folder: options.Folder = None,
    out: options.Out = Path("matta-out"),
    config: options.Config = None,
    ran: Annotated[
        bool, typer.Option("--ran", help="As the run in the folder was started, above the files.")
    ] = False,
    changed: Annotated[
        bool, typer.Option("--changed", help="Only what is not the default.")
    ] = False,
    toml: Annotated[bool, typer.Option("--toml", help="Print TOML, ready for --config.")] = False,
    json: options.Json = False,
) -> None:
    """Print every setting: its value, what it is, and where the default comes from (a paper, or our
    own choice).

    Example: matta recipe show --changed
    """
    recipe, read = resolve({}, options.output(folder, out), config, ran=ran)
    for path in read:
        console.say(f"Settings from {path}.")
    if toml:
        console.text(recipe.text())
        return
    found = []
    default = Recipe()
    for section in dataclasses.fields(recipe):
        settings, plain = getattr(recipe, section.name), getattr(default, section.name)
        for setting in dataclasses.fields(settings):
            value, usual = getattr(settings, setting.name), getattr(plain, setting.name)
            if not changed or value != usual:
                found.append(
                    {
                        "setting": f"{section.name}.{setting.name}",
                        "value": value,
                        "default": usual,
                        "what": setting.metadata["doc"],
                        "source": setting.metadata["source"],
                    }
                )
    if json:
        console.data(found)
        return
    console.table(
        ["setting", "value", "default", "what", "source"],
        [
            [
                r["setting"],
                _shown(r["value"]),
                "" if r["value"] == r["default"] else _shown(r["default"]),
                r["what"],
                r["source"],
            ]
            for r in found
        ],
        left=True,
    )


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return str(value) if value != "" else "-"


app.command()(console.guarded(show))


@app.callback()
def _group() -> None:
    """The settings of a run."""
