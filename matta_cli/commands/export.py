"""``matta export``: trained TA -> Students + report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matta_cli import console
from matta_cli.commands import early, options
from matta_cli.errors import MattaError, beside, command
from matta_cli.files.workspace import Workspace
from matta_cli.settings.resolve import instead_of_widths

if TYPE_CHECKING:
    from matta_cli.report.schema import Report
    from matta_cli.settings.recipe import Recipe


def export(
    folder: options.Folder = None,
    widths: options.Widths = None,
    format: options.Format = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    target_params: options.TargetParams = None,
    target_latency: options.TargetLatency = None,
    target_prefill: options.TargetPrefill = None,
    target_memory: options.TargetMemory = None,
    target_macs: options.TargetMacs = None,
    batch_size: options.Batch = None,
    threads: options.Threads = None,
    stock_only: options.StockOnly = None,
    trials: options.Trials = None,
    examples: options.Examples = None,
    out: options.Out = options.OUT,
    name: options.Name = "",
    train: options.Train = None,
    held_out: options.HeldOut = None,
    passages: options.Passages = None,
    sequence_length: options.SequenceLength = None,
    train_on: options.TrainOn = None,
    checkpoint: options.Checkpoint = None,
    baselines: options.Baselines = None,
    margin: options.Margin = None,
    device: options.Device = None,
    file: options.File = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Cut Students out of the trained TA as dense checkpoints; report what each costs and is worth.

    Example: matta export --widths 0.25,0.5,1.0, or matta export --target-params 60M
    """
    flags = options.tables(locals(), "export", "search", "data", "distill")
    flags["export"] = instead_of_widths(flags["export"])
    out = options.output(folder, out)
    # the run's data and Teacher hold for what is exported, unless a flag says otherwise
    recipe = options.resolved(flags, out, file, ran=True)
    early.trained(recipe, out)

    from matta_cli.family import export as run
    from matta_cli.verdict.baselines import check

    _refuse_idle(options.again("search", flags["search"]), recipe)
    kinds = options.words(baselines)
    check(kinds, recipe.export.margin)  # before the work, not after it
    with console.training_progress() as listen:
        report = run(recipe, out, name=name, overwrite=overwrite, listen=listen)
    if kinds:
        from matta_cli.verdict.judge import remake

        with console.training_progress() as listen:
            report = remake(out, kinds, name=name, listen=listen)
    show(report, out, name, json)


def _refuse_idle(searching: list[str], recipe: Recipe) -> None:
    """Raise ``MattaError`` for words about a search where none is asked for."""
    from matta_cli.settings.budget import asked

    if searching and not asked(recipe.export):
        nothing = "is about the search for a budget, and there is none: pass --target-params 60M"
        raise MattaError(f"{searching[0]} {nothing}, say.")


def show(report: Report, out: Path, name: str, json: bool) -> None:
    """Print a report: the table (or JSON) on stdout; its notes, and what is next, on stderr.

    name: of the family that it is on.
    """
    from matta_cli.report import terminal
    from matta_cli.report.findings import quantized
    from matta_cli.report.story import behind, tell

    story = tell(report)
    for alarm in story.alarms:
        console.say(f"Look at this first: {alarm}")
    if json:
        console.data(report.to_json())
    else:
        console.fitting(terminal.tables(report))
        console.say(f"{behind(report)}.")
    for note in [*quantized(report), *story.notes]:
        console.say(f"Note: {note}")
    console.say(story.headline)
    space = Workspace(out, name)
    console.say(f"Students: {space.students}")
    if loads := terminal.loading(report):
        console.say(f"In Python: {loads}")
    console.say(f"Report: {space.report.with_suffix('.html')}")
    console.hint(command("eval", *beside(name), *options.elsewhere(out)))
