"""``matta search``: which sizes within a budget are the best, and the Pareto front."""

from __future__ import annotations

from matta_cli import console
from matta_cli.commands import early, options
from matta_cli.errors import MattaError, beside, command
from matta_cli.files.workspace import Workspace
from matta_cli.report.schema import Report


def search(
    folder: options.Folder = None,
    target_params: options.TargetParams = None,
    target_latency: options.TargetLatency = None,
    target_prefill: options.TargetPrefill = None,
    target_memory: options.TargetMemory = None,
    target_macs: options.TargetMacs = None,
    batch_size: options.Batch = None,
    device: options.Device = None,
    threads: options.Threads = None,
    stock_only: options.StockOnly = None,
    trials: options.Trials = None,
    examples: options.Examples = None,
    out: options.Out = options.OUT,
    train: options.Train = None,
    held_out: options.HeldOut = None,
    passages: options.Passages = None,
    sequence_length: options.SequenceLength = None,
    train_on: options.TrainOn = None,
    checkpoint: options.Checkpoint = None,
    file: options.File = None,
    json: options.Json = False,
) -> None:
    """Search sizes of the TA layer by layer: the best in each budget, and what nothing beats.

    Stopped, the same command goes on. Example: matta search --target-params 60M
    """
    flags = options.tables(locals(), "export", "search", "distill", "data")
    out = options.output(folder, out)
    recipe = options.resolved(flags, out, file, ran=True)
    early.trained(recipe, out)

    from matta_cli.search.run import search as run
    from matta_cli.settings import budget

    timing = options.again("export", {"batch_size": batch_size, "threads": threads})
    if timing and not (recipe.export.target_latency or recipe.export.target_prefill):
        nothing = "is about latency, and nothing is timed here: pass --target-latency 5ms"
        raise MattaError(f"{timing[0]} {nothing}, say.")
    with console.training_progress() as listen:
        report, _ = run(recipe, out, budget.asked(recipe.export), listen=listen)
    _show(report, json)
    where = Workspace(out).search
    console.say(f"The front: {where / 'search.json'}, and as a plot {where / 'search.html'}.")
    targets = {name: texts for name, texts in flags["export"].items() if name.startswith("target")}
    limits = options.again("export", targets)
    if not limits:
        sizes = sorted(model.cost.parameters or 0 for model in report.models)
        limits = ["--target-params", str(sizes[len(sizes) // 2])]
    # where Students are already, others stand beside them
    own = beside("searched" if Workspace(out).exported() else "")
    kept = [*options.again("search", flags["search"]), *options.again("data", flags["data"])]
    console.hint(command("export", out, *limits, *timing, *kept, *own))


def _show(report: Report, json: bool) -> None:
    """Print the front (or JSON) on stdout, the choices and the notes on stderr."""
    from matta_cli.report import search_table

    if json:
        console.data(report.to_json())
    else:
        console.table(*search_table.front_rows(report), spare=["bytes", "MACs", "sizes"])
    if any(model.searched and model.width is None for model in report.models):
        console.say("A mix has layers of different sizes; the front's page has what exports each.")
    for line in search_table.choices(report):
        console.say(line)
    for note in report.notes:
        console.say(f"Note: {note}")
