"""``matta export``: trained TA -> Students + report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from matta_cli import console
from matta_cli.commands import options
from matta_cli.errors import MattaError
from matta_cli.settings.resolve import resolve


def export(
    folder: options.Folder = None,
    widths: Annotated[
        str | None, typer.Option(help="Widths to export, such as 0.25,0.5,1.0.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="stock or matta; pt2, onnx beside it; commas between.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the weights: float32, bfloat16, float16.")
    ] = None,
    target_params: options.TargetParams = None,
    target_latency: options.TargetLatency = None,
    target_memory: options.TargetMemory = None,
    target_macs: options.TargetMacs = None,
    batch: options.Batch = None,
    threads: options.Threads = None,
    stock_only: options.StockOnly = False,
    sizes: options.Sizes = None,
    trials: options.Trials = None,
    examples: options.Examples = None,
    out: options.Out = Path("matta-out"),
    data: options.DataPath = None,
    held_out: options.HeldOut = None,
    passages: options.Passages = None,
    sequence_length: options.SequenceLength = None,
    checkpoint: options.Checkpoint = None,
    baselines: options.Baselines = None,
    margin: options.Margin = None,
    device: options.Device = None,
    config: options.Config = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Cut Students out of the trained TA as ordinary dense checkpoints, and report what each costs
    and how good it is.

    Example: matta export --widths 0.25,0.5,1.0, or matta export --target-params 60M
    """
    out = options.output(folder, out)
    targets = options.targets(target_params, target_latency, target_memory, target_macs)
    # a budget stands for the widths
    chosen = options.parse_widths(widths) or ([] if any(targets.values()) else None)
    flags: dict[str, dict[str, Any]] = {
        "export": {
            "widths": chosen,
            "checkpoint": checkpoint,
            "batch_size": batch,
            "threads": threads,
            **targets,
            "format": options.words(format),
            "dtype": dtype,
            "margin": margin,
        },
        "search": options.search_flags(stock_only, sizes, trials, examples),
        "distill": {"device": device},
        "data": options.data_flags(data, held_out, passages, sequence_length),
    }
    # what the run was trained with holds for what is exported: its data and Teacher, unless a flag
    # says otherwise
    recipe, read = resolve(flags, out, config, ran=True)
    for path in read:
        console.say(f"Settings from {path}.")

    from matta_cli.family import export as run
    from matta_cli.settings.budget import asked
    from matta_cli.verdict.baselines import check

    flag = next(
        (
            f"--{name.replace('_', '-')}"
            for name, value in flags["search"].items()
            if value is not None
        ),
        "",
    )
    if flag and not asked(recipe):
        raise MattaError(
            f"{flag} is about the search for a budget, and there is none: pass --target-params 60M, say."
        )
    kinds = options.words(baselines) or []
    check(kinds, recipe.export.margin)  # before the work, not after it
    with console.training_progress() as listen:
        result = run(recipe, out, overwrite=overwrite, say=console.say, listen=listen)
    if kinds:
        from matta_cli.verdict.judge import remake

        with console.training_progress() as listen:
            result = remake(out, kinds, say=console.say, listen=listen)
    show(result.to_json(), out, json)


def show(result: dict[str, Any], out: Path, json: bool) -> None:
    """Print a report: the table (or JSON) on stdout, its notes and its path on stderr."""
    from matta_cli.report import table
    from matta_cli.report.schema import Report

    if json:
        console.data(result)
    else:
        headers, rows = table.rows(Report.from_json(result))
        batch = f"latency b{result['batch_size']}"
        others = [m["label"] for m in result["metrics"][:0:-1]]
        spare = [
            "examples/s",
            "peak memory",
            "checkpoint",
            batch,
            "MACs",
            "width",
            *others,
            "training",
            "latency",
        ]
        console.table(headers, rows, spare)
    for note in result["notes"]:
        console.say(f"Note: {note}")
    console.say(f"Students: {out / 'students'}")
    console.say(f"Report: {out / 'report.html'}")
