"""``matta distill``: TA + Teacher -> trained TA."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from matta_cli import console
from matta_cli.commands import options
from matta_cli.recipe import resolve


def distill(
    folder: options.Folder = None,
    teacher: Annotated[str | None, typer.Option("--teacher", "-t", help="Folder, hub id, timm name or state dict.")] = None,
    out: options.Out = Path("matta-out"),
    data: options.DataPath = None,
    held_out: options.HeldOut = None,
    passages: options.Passages = None,
    sequence_length: options.SequenceLength = None,
    widths: Annotated[str | None, typer.Option(help="The Students' widths, such as 0.25,0.5,1.0.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of data order, widths and dropout.")] = None,
    ranking_loss: Annotated[str | None, typer.Option(help="For rankers: pointwise, pairwise, listwise.")] = None,
    device: options.Device = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    max_bad_steps: Annotated[int | None, typer.Option(help="Non-finite steps in a row before the run stops.")] = None,
    allow_weak_teacher: Annotated[bool, typer.Option("--allow-weak-teacher", help="Train with a Teacher at chance.")] = False,
    config: options.Config = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Train the TA and its nested Students in one run, Teacher -> TA -> Student.

    Example: matta distill --teacher gpt2-large
    """
    out = folder or out
    settings = {
        "teacher": teacher, "steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed,
        "ranking_loss": ranking_loss, "device": device,
        "save_every": save_every, "max_bad_steps": max_bad_steps, "widths": options.parse_widths(widths), 
        "allow_weak_teacher": allow_weak_teacher or None,
    }  # fmt: skip
    recipe, read = resolve(
        {"distill": settings, "data": options.data_flags(data, held_out, passages, sequence_length)}, out, config, ran=resume
    )
    for path in read:
        console.say(f"Settings from {path}.")

    from matta_cli.distillation import distill as run

    console.say(f"TA in {out / 'ta'}; Teacher {recipe.distill.teacher or '(none)'}.")
    with console.training_progress() as listen:
        saved = run(recipe, out, overwrite=overwrite, resume=resume, listen=listen)
    console.say(f"Wrote {saved}.")
    shown = ",".join(f"{w:g}" for w in recipe.distill.widths)
    console.hint(options.command_line("export", out, f"--widths {shown}"))
