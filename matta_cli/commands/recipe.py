"""``matta recipe show``: the settings as they stand, each with a sentence and a source."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from matta_cli import console
from matta_cli.commands import options
from matta_cli.errors import MattaError
from matta_cli.settings.presets import PRESETS
from matta_cli.settings.recipe import SECTIONS, Recipe, about

app = typer.Typer(help="The settings of a run.", no_args_is_help=True)
# what makes a run what it is, on one screen; all else is about one kind of data, device or export
RECIPE = (
    *("convert.expand", "convert.axes", "convert.order"),
    *("data.train", "data.sequence_length"),
    *("distill.preset", "distill.teacher", "distill.widths", "distill.rows"),
    *("distill.steps", "distill.batch_size", "distill.lr", "distill.schedule", "distill.optimizer"),
    *("distill.teacher_mix", "distill.temperature"),
    *("distill.ta_student_weight", "distill.ramp", "distill.precision", "export.widths"),
)
_Ran = Annotated[
    bool, options.option("--ran", "As the run in the folder was started, above the files.")
]
_Every = Annotated[bool, options.option("--all", "Every setting there is.")]
_Changed = Annotated[bool, options.option("--changed", "Only what is not the default.")]
_Toml = Annotated[bool, options.option("--toml", "Print TOML, ready for --config.")]


def show(
    folder: options.Folder = None,
    out: options.Out = options.OUT,
    file: options.File = None,
    ran: _Ran = False,
    every: _Every = False,
    changed: _Changed = False,
    toml: _Toml = False,
    json: options.Json = False,
) -> None:
    """Print the recipe: each setting's value, what it is, and the source of its default.

    Those are shown that make a run what it is, and those that are not the default. A source is a
    paper, or our own choice. --json and --toml have every setting. Example: matta recipe show --all
    """
    if every and changed:
        raise MattaError("--all shows every setting, --changed few of them: pass one of both.")
    out = options.output(folder, out)
    recipe = options.resolved({}, out, file, ran)
    if toml:
        console.text(recipe.text())
    else:
        _show(recipe, every, changed, json)
    console.hint(options.following(out))


def _show(recipe: Recipe, every: bool, changed: bool, json: bool) -> None:
    """Print settings, and the presets."""
    rows = _rows(recipe)
    own = [row for row in rows if row["value"] != row["default"]]
    if json:
        console.data(own if changed else rows)
        return
    known = [row for row in rows if row["setting"] in RECIPE or row in own]
    rows = rows if every else own if changed else known
    headers = ["setting", "value", "default", "what", "source"]
    short = rows is known and not own
    left_out = ("source", "default") if short else ("source",) if rows is known else ()
    cells = []
    for row in rows:
        default = "" if row["value"] == row["default"] else _shown(row["default"])
        what = about(row["setting"]).told
        told = [row["setting"], _shown(row["value"]), default, what, row["source"]]
        cells.append([own for of, own in zip(headers, told, strict=True) if of not in left_out])
    headers = [of for of in headers if of not in left_out]
    console.table(headers, cells, ["source", "default"], left=True, prose=headers[1:])
    for name, preset in PRESETS.items():
        console.say(f"Preset {name}: {preset.purpose}. Measured: {preset.measured}.")
    if rows is known:
        console.say("Every setting, and where its default comes from: matta recipe show --all")


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
