"""``matta teach``: run a Teacher once, and keep what it says for any number of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from matta_cli import console
from matta_cli.commands import options
from matta_cli.errors import command
from matta_cli.settings.resolve import resolve


def teach(
    folder: options.Folder = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", "-t", help="Folder, hub id, timm name or state dict.")
    ] = None,
    to: Annotated[Path, typer.Option(help="Folder for what the Teacher says.")] = Path(
        "teacher-outputs"
    ),
    out: options.Out = Path("matta-out"),
    data: options.DataPath = None,
    held_out: options.HeldOut = None,
    sequence_length: options.SequenceLength = None,
    top_k: Annotated[
        int, typer.Option(help="Outputs to keep of each position, where there are more than 64.")
    ] = 64,
    batch_size: Annotated[int | None, typer.Option(help="Examples at a time.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, bf16, fp16, fp32, tf32.")] = None,
    device: options.Device = None,
    allow_weak_teacher: Annotated[
        bool, typer.Option("--allow-weak-teacher", help="Go on with a Teacher at chance.")
    ] = False,
    config: options.Config = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Run a Teacher once over the training data and write what it says, for `matta distill
    --teacher FOLDER`.

    Example: matta teach --teacher gpt2-large --to gpt2-large-outputs
    """
    out = options.output(folder, out)
    settings = {
        "teacher": teacher,
        "batch_size": batch_size,
        "precision": precision,
        "device": device,
        "allow_weak_teacher": allow_weak_teacher or None,
    }
    recipe, read = resolve(
        {"distill": settings, "data": options.data_flags(data, held_out, None, sequence_length)},
        out,
        config,
    )
    for path in read:
        console.say(f"Settings from {path}.")

    from matta_cli.training.teach import teach as run

    with console.training_progress() as listen:
        written = run(recipe, out, to, k=top_k, overwrite=overwrite, listen=listen)
    console.say(f"Wrote {written}.")
    same = {"--data": data, "--held-out": held_out, "--sequence-length": sequence_length}
    given = [word for flag, value in same.items() if value for word in (flag, value)]
    console.hint(command("distill", out, "--teacher", written, *given))
