"""``matta export``: trained TA -> Students + report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from matta_cli import console
from matta_cli.commands import options
from matta_cli.recipe import read_toml, resolve


def export(
    folder: options.Folder = None,
    widths: Annotated[str | None, typer.Option(help="Widths to export, such as 0.25,0.5,1.0.")] = None,
    out: options.Out = Path("matta-out"),
    data: options.DataPath = None,
    held_out: options.HeldOut = None,
    passages: options.Passages = None,
    sequence_length: options.SequenceLength = None,
    device: options.Device = None,
    config: options.Config = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Cut Students out of the trained TA as ordinary dense checkpoints, and report what each costs and how good it is.

    Example: matta export --widths 0.25,0.5,1.0
    """
    out = folder or out
    flags: dict[str, dict[str, Any]] = {
        "export": {"widths": options.parse_widths(widths)},
        "distill": {"device": device},
        "data": options.data_flags(data, held_out, passages, sequence_length),
    }
    recipe, read = resolve(flags, out, config)
    # What the run was trained with is part of what is exported: its data and Teacher hold unless a flag says otherwise.
    run_file = out / "run" / "recipe.toml"
    if config is None and run_file.exists():
        run_recipe = read_toml(run_file)
        ran = {name: run_recipe[name] for name in ("data", "distill")}
        recipe.update(ran, str(run_file))
        recipe.update({s: {k: v for k, v in t.items() if v is not None} for s, t in flags.items()}, "command line")
        read.append(run_file)
    for path in read:
        console.say(f"Settings from {path}.")

    from matta_cli.extraction import export as run

    result = run(recipe, out, overwrite=overwrite, say=console.say)
    show(result, out, json)


def show(result: dict[str, object], out: Path, json: bool) -> None:
    """Print a report: the table (or JSON) on stdout, its notes and its path on stderr."""
    from matta_cli import report as rendering

    if json:
        console.data(result)
    else:
        console.table(*rendering.rows(result))
    for note in result["notes"]:  # type: ignore[attr-defined]
        console.say(f"Note: {note}")
    console.say(f"Students: {out / 'students'}")
    console.say(f"Report: {out / 'report.html'}")
