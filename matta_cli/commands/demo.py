"""``matta demo``: the whole of it, offline, on real input that installed packages carry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from matta_cli import console
from matta_cli.commands import options
from matta_cli.commands.export import show
from matta_cli.errors import command


def demo(
    adapter: Annotated[
        str, typer.Option("--adapter", "-a", help="gpt2, vit or mlp_ranker.")
    ] = "gpt2",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Output folder.", show_default="matta-demo-ADAPTER"),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="A tenth of the training: checks an installation, shows little."
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Train a small base and a Teacher, then convert, distill and export: four minutes on two
    cores, no network.

    Example: matta demo --adapter vit
    """
    from matta_cli.conversion.convert import convert
    from matta_cli.demo import prepare
    from matta_cli.family import export
    from matta_cli.files.atomic import atomic_write
    from matta_cli.training.run import distill

    out = out or Path(f"matta-demo-{adapter}")
    with console.training_progress() as listen:
        recipe = prepare(adapter, out, quick=quick, listen=listen)
    base, teacher = recipe.convert.source, recipe.distill.teacher
    widths = ",".join(f"{w:g}" for w in recipe.export.widths)
    console.say("The rest is what these three commands do:")
    settings = out / "demo" / "recipe.toml"
    atomic_write(settings, recipe.text(("data", "distill", "export")))
    for words in (
        ("convert", base, "--adapter", adapter, "--config", settings, "--out", out),
        ("distill", out, "--teacher", teacher),
        ("export", out, "--widths", widths),
    ):
        console.say(f"  {command(*words)}")
    done = convert(recipe, out, overwrite=True)
    console.say(
        f"Lossless: width 1.0 of the TA differs from the base by at most {done.difference:.1e} (relative)."
    )
    with console.training_progress() as listen:
        distill(recipe, out, overwrite=True, listen=listen)
    result = export(recipe, out, overwrite=True, say=console.say)
    show(result.to_json(), out, json)
