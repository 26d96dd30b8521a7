"""``matta export``: trained TA -> Students + report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from matta_cli import console
from matta_cli.commands import options
from matta_cli.recipe import resolve


def export(
    folder: options.Folder = None,
    widths: Annotated[str | None, typer.Option(help="Widths to export, such as 0.25,0.5,1.0.")] = None,
    out: options.Out = Path("matta-out"),
    data: options.DataPath = None,
    held_out: options.HeldOut = None,
    passages: options.Passages = None,
    sequence_length: options.SequenceLength = None,
    checkpoint: Annotated[str | None, typer.Option(help="best, last or step-N.", show_default="the best, if kept")] = None,
    baselines: options.Baselines = None,
    margin: options.Margin = None,
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
        "export": {"widths": options.parse_widths(widths), "checkpoint": checkpoint, "margin": margin},
        "distill": {"device": device},
        "data": options.data_flags(data, held_out, passages, sequence_length),
    }
    # what the run was trained with holds for what is exported: its data and Teacher, unless a flag says otherwise
    recipe, read = resolve(flags, out, config, ran=True)
    for path in read:
        console.say(f"Settings from {path}.")

    from matta_cli.extraction import export as run

    kinds = options.words(baselines) or []
    if kinds:
        from matta_cli.baselines import check

        check(kinds)  # before the work, not after it
    result = run(recipe, out, overwrite=overwrite, say=console.say)
    if kinds:
        from matta_cli.judging import remake

        with console.training_progress() as listen:
            result = remake(out, kinds, say=console.say, listen=listen)
    show(result, out, json)


def show(result: dict[str, Any], out: Path, json: bool) -> None:
    """Print a report: the table (or JSON) on stdout, its notes and its path on stderr."""
    from matta_cli import report as rendering

    if json:
        console.data(result)
    else:
        headers, rows = rendering.rows(result)
        batch = f"latency b{result['batch_size']}"
        others = [m["label"] for m in result["metrics"][:0:-1]]
        spare = ["examples/s", "peak memory", "checkpoint", batch, "MACs", "width", *others, "training", "latency"]
        console.table(headers, rows, spare)
    for note in result["notes"]:
        console.say(f"Note: {note}")
    console.say(f"Students: {out / 'students'}")
    console.say(f"Report: {out / 'report.html'}")
