"""``matta search``: which sizes within a budget are the best, and the Pareto front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matta_cli import console
from matta_cli.commands import options
from matta_cli.errors import MattaError, command
from matta_cli.settings.resolve import resolve


def search(
    folder: options.Folder = None,
    target_params: options.TargetParams = None,
    target_latency: options.TargetLatency = None,
    target_memory: options.TargetMemory = None,
    target_macs: options.TargetMacs = None,
    batch: options.Batch = None,
    device: options.Device = None,
    threads: options.Threads = None,
    stock_only: options.StockOnly = False,
    sizes: options.Sizes = None,
    trials: options.Trials = None,
    examples: options.Examples = None,
    out: options.Out = Path("matta-out"),
    data: options.DataPath = None,
    held_out: options.HeldOut = None,
    checkpoint: options.Checkpoint = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Search sizes of the trained TA, layer by layer: the best within each budget, and what nothing
    beats at its cost.

    Stopped, the same command goes on. Example: matta search --target-params 60M
    """
    out = options.output(folder, out)
    targets = options.targets(target_params, target_latency, target_memory, target_macs)
    flags: dict[str, dict[str, Any]] = {
        "export": {"checkpoint": checkpoint, "batch_size": batch, "threads": threads, **targets},
        "search": options.search_flags(stock_only, sizes, trials, examples),
        "distill": {"device": device},
        "data": options.data_flags(data, held_out),
    }
    recipe, read = resolve(flags, out, config, ran=True)
    for path in read:
        console.say(f"Settings from {path}.")

    from matta_cli.report import search_table
    from matta_cli.report.schema import Report
    from matta_cli.search.run import search as run
    from matta_cli.settings import budget

    timing = {"batch": batch, "threads": threads}
    flag = next((f"--{name}" for name, value in timing.items() if value is not None), "")
    if flag and not recipe.export.target_latency:
        raise MattaError(
            f"{flag} is about latency, and nothing is timed here: pass --target-latency 5ms, say."
        )
    with console.training_progress() as listen:
        result, _ = run(recipe, out, budget.asked(recipe), listen=listen)
    report = Report.from_json(result)
    if json:
        console.data(result)
    else:
        console.table(*search_table.front_rows(report), spare=["bytes", "MACs", "sizes"])
    for line in search_table.choices(report):
        console.say(line)
    for note in result["notes"]:
        console.say(f"Note: {note}")
    console.say(
        f"The front: {out / 'search' / 'search.json'}, and as a plot {out / 'search' / 'search.html'}."
    )
    words = [
        (f"--{name.replace('_', '-')}", text)
        for name, texts in targets.items()
        for text in texts or ()
    ]
    words += [
        (f"--{name.replace('_', '-')}", value)
        for name, value in {**timing, **flags["search"]}.items()
        if value is not None
    ]
    given = [
        word for name, value in words for word in ([name] if value is True else [name, str(value)])
    ]
    middle = sorted(model["parameters"] for model in result["models"])[len(result["models"]) // 2]
    limit = [] if any(targets.values()) else ["--target-params", str(middle)]
    console.hint(command("export", out, *limit, *given))
