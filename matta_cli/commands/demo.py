"""``matta demo``: the whole of it, offline, on real input that installed packages carry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from matta_cli import console
from matta_cli.commands import options
from matta_cli.commands.export import show
from matta_cli.demo import named, prepare
from matta_cli.errors import command

_Adapter = Annotated[str, options.option("--adapter -a", "gpt2, vit or mlp_ranker.")]
_Out = Annotated[
    Path | None, options.option("--out -o", "Output folder.", default="matta-demo-ADAPTER")
]
_Quick = Annotated[
    bool,
    options.option("--quick", "A tenth of the training: checks an installation, shows little."),
]


def demo(
    adapter: _Adapter = "gpt2", out: _Out = None, quick: _Quick = False, json: options.Json = False
) -> None:
    """Train a small base and a Teacher, then convert, distill and export, without a network.

    It takes two minutes at most on two cores. Example: matta demo --adapter vit
    """
    own = named(adapter)
    long = "less than a minute" if quick else f"about {own.minutes}"
    console.say(
        f"A family of small models from {own.what}, in five steps: {long} on two cores, nothing is "
        "downloaded."
    )

    out = options.home(out or Path(f"matta-demo-{adapter}"))
    with console.training_progress() as listen:
        recipe = prepare(adapter, out, quick=quick, listen=listen)

    from matta_cli.conversion.convert import convert
    from matta_cli.family import export
    from matta_cli.files.atomic import atomic_write
    from matta_cli.training.run import distill

    settings = out / "demo" / "recipe.toml"
    atomic_write(settings, recipe.text(("data", "distill", "export")))
    source, widths = recipe.convert.source, ",".join(f"{w:g}" for w in recipe.export.widths)
    made = ("--adapter", adapter, "--config", settings, "--out", out)
    _step(3, "nest smaller models in the base", "convert", source, *made)
    difference = f"{convert(recipe, out, overwrite=True).difference:.1e}"
    console.say(
        f"Lossless: width 1.0 of the TA differs from the base by at most {difference} (relative)."
    )
    _step(4, "train them all at once", "distill", out, "--teacher", recipe.distill.teacher)
    with console.training_progress() as listen:
        distill(recipe, out, overwrite=True, listen=listen)
    _step(5, "cut them out, and measure each", "export", out, "--widths", widths)
    with console.training_progress() as listen:
        report = export(recipe, out, overwrite=True, listen=listen)
    show(report, out, "", json)
    console.say("With a model of your own:")
    console.hint(command("convert", "MODEL", "--adapter", adapter))


def _step(number: int, what: str, *words: object) -> None:
    """Say which step comes, and the command that does the same."""
    console.say(f"{number} of 5: {what}, as `{command(*words)}` does.")
