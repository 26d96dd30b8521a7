"""``matta report``: the report anew, with baselines beside the Students."""

from __future__ import annotations

from matta_cli import console
from matta_cli.commands import early, options
from matta_cli.commands.export import show


def report(
    folder: options.Folder = None,
    baselines: options.Baselines = None,
    margin: options.Margin = None,
    out: options.Out = options.OUT,
    name: options.Name = "",
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Make the report anew, with a verdict on each exported Student against models of its size.

    Example: matta report --baselines untrained,ground-truth,plain
    """
    out, kinds = options.output(folder, out), options.words(baselines)
    early.exported(out, name)

    from matta_cli.verdict.judge import remake

    with console.training_progress() as listen:
        made = remake(out, kinds, name=name, margin=margin, device=device, listen=listen)
    show(made, out, name, json)
