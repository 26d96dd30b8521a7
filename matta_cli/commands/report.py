"""``matta report``: the report anew, with baselines beside the Students."""

from __future__ import annotations

from pathlib import Path

from matta_cli import console
from matta_cli.commands import options
from matta_cli.commands.export import show


def report(
    folder: options.Folder = None,
    baselines: options.Baselines = None,
    margin: options.Margin = None,
    out: options.Out = Path("matta-out"),
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Make the report of an exported folder anew, with a verdict on each Student against baselines
    of its size.

    Example: matta report --baselines untrained,ground-truth,plain
    """
    out = options.output(folder, out)

    from matta_cli.verdict.judge import remake

    with console.training_progress() as listen:
        result = remake(
            out,
            options.words(baselines) or [],
            margin=margin,
            device=device,
            say=console.say,
            listen=listen,
        )
    show(result.to_json(), out, json)
