"""``matta distill``: TA + Teacher -> trained TA."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from matta_cli import console
from matta_cli.commands import options
from matta_cli.errors import MattaError, command
from matta_cli.files.workspace import Workspace
from matta_cli.settings.resolve import resolve

_RUN, _MEMORY, _WHERE = "Run", "Memory and speed", "Devices"


def distill(
    folder: options.Folder = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", "-t", help="Folder, hub id, timm name or state dict.")
    ] = None,
    out: options.Out = Path("matta-out"),
    data: options.DataPath = None,
    held_out: options.HeldOut = None,
    passages: options.Passages = None,
    sequence_length: options.SequenceLength = None,
    widths: Annotated[
        str | None, typer.Option(help="The Students' widths, such as 0.25,0.5,1.0.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples per step, over all devices.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, shampoo, soap, muon.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of data order, widths and dropout.")
    ] = None,
    ranking_loss: Annotated[
        str | None, typer.Option(help="For rankers: pointwise, pairwise, listwise.")
    ] = None,
    allow_weak_teacher: Annotated[
        bool, typer.Option("--allow-weak-teacher", help="Train with a Teacher at chance.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what would happen and what it costs, and stop.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.", rich_help_panel=_RUN)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace finished work.", rich_help_panel=_RUN)
    ] = False,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints.", rich_help_panel=_RUN)
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Steps between evaluations.", rich_help_panel=_RUN)
    ] = None,
    best: Annotated[
        float | None,
        typer.Option(help="Keep the best checkpoint by this width's metric.", rich_help_panel=_RUN),
    ] = None,
    max_bad_steps: Annotated[
        int | None,
        typer.Option(help="Non-finite steps in a row before the run stops.", rich_help_panel=_RUN),
    ] = None,
    log_to: Annotated[
        str | None, typer.Option(help="tensorboard,wandb.", rich_help_panel=_RUN)
    ] = None,
    config: options.Config = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="Examples in memory at a time.", rich_help_panel=_MEMORY)
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, bf16, fp16, fp32, tf32.", rich_help_panel=_MEMORY)
    ] = None,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile", help="torch.compile: one graph per width.", rich_help_panel=_MEMORY
        ),
    ] = False,
    checkpoint_activations: Annotated[
        bool,
        typer.Option(
            "--checkpoint-activations", help="Less memory, more time.", rich_help_panel=_MEMORY
        ),
    ] = False,
    device: Annotated[
        str | None,
        typer.Option("--device", help="cpu, cuda, cuda:N, auto.", rich_help_panel=_WHERE),
    ] = None,
    devices: Annotated[
        int | None, typer.Option(help="Processes, one per device.", rich_help_panel=_WHERE)
    ] = None,
    shard: Annotated[
        bool | None,
        typer.Option(
            "--shard/--no-shard", help="Shard over the devices (FSDP2).", rich_help_panel=_WHERE
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Train the TA and its nested Students in one run, Teacher -> TA -> Student.

    Example: matta distill --teacher gpt2-large
    """
    out = options.output(folder, out)
    if devices is not None:
        if devices < 1:
            raise MattaError(f"--devices {devices} is not possible: a run has 1 device or more.")
        if devices > 1 and "RANK" not in os.environ and not dry_run:
            from matta_cli.devices.processes import launch

            sys.exit(launch(devices, _without_devices(sys.argv[1:])))
    settings = {
        "teacher": teacher,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "optimizer": optimizer,
        "ranking_loss": ranking_loss,
        "device": device,
        "save_every": save_every,
        "eval_every": eval_every,
        "best": best,
        "max_bad_steps": max_bad_steps,
        "widths": options.parse_widths(widths),
        "micro_batch": micro_batch,
        "precision": precision,
        "compile": "inductor" if compile else None,
        "allow_weak_teacher": allow_weak_teacher or None,
        "checkpoint_activations": checkpoint_activations or None,
        "shard": shard,
        "log_to": None
        if log_to is None
        else [name.strip() for name in log_to.split(",") if name.strip()],
    }
    recipe, read = resolve(
        {
            "distill": settings,
            "data": options.data_flags(data, held_out, passages, sequence_length),
        },
        out,
        config,
        ran=resume,
    )
    for path in read:
        console.say(f"Settings from {path}.")

    console.say(f"TA in {Workspace(out).ta}; Teacher {recipe.distill.teacher or '(none)'}.")
    if dry_run:
        from matta_cli.training.plan import plan, rows

        with console.training_progress() as listen:
            found = plan(recipe, out, devices or 1, listen=listen)
        if json:
            console.data(found.json())
        else:
            console.table(["what", "how much"], rows(found))
        return
    from matta_cli.training.run import distill as run

    with console.training_progress() as listen:
        saved = run(recipe, out, overwrite=overwrite, resume=resume, listen=listen)
    if json:
        console.data({"checkpoint": str(saved)})
    console.say(f"Wrote {saved}.")
    shown = ",".join(f"{w:g}" for w in recipe.distill.widths)
    console.hint(command("export", out, "--widths", shown))


def _without_devices(arguments: list[str]) -> list[str]:
    """The command line of one of the processes."""
    kept: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word == "--devices":
            next(rest, None)
        elif not word.startswith("--devices="):
            kept.append(word)
    return kept
