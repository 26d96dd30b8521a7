"""``matta convert``: dense model -> TA folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from matta_cli import console
from matta_cli.commands import options
from matta_cli.errors import MattaError, command
from matta_cli.settings.resolve import resolve


def convert(
    source: Annotated[
        str | None,
        typer.Argument(
            help="Folder, hub id, timm name, .safetensors or .pt state dict, pkg.mod:build."
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", "-a", help="Its name, or FILE.py:Class; default: detected."),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="State dict for pkg.mod:build.")] = None,
    example: Annotated[
        str | None, typer.Option(help="Inputs for auto: 1x3x224x224, ids=1x16:int64, pkg.mod:fn.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task for auto: causal_lm, image_classification, ranking.")
    ] = None,
    out: options.Out = Path("matta-out"),
    expand: Annotated[
        float | None, typer.Option(help="The TA's width; 1.0 nests inside the base.")
    ] = None,
    axes: Annotated[
        str | None, typer.Option(help="Kinds of axes to nest, as mlp,heads,hidden,depth.")
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(help="Unit order: auto, activation, taylor, hessian, magnitude, none."),
    ] = None,
    data: options.DataPath = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer folder or hub id, if the source has none.")
    ] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option(
            "--config", "-c", help="Recipe (.toml), or the model's architecture (config.json)."
        ),
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle", help="Open pickles, which can run code: trusted files only."
        ),
    ] = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Grow a dense model into a Teaching Assistant (TA) whose width 1.0 is the model itself, and
    prove it.

    Example: matta convert model.pt --adapter gpt2
    """
    toml = [p for p in config or [] if p.suffix != ".json"]
    architecture = [p for p in config or [] if p.suffix == ".json"]
    if len(toml) > 1 or len(architecture) > 1:
        raise MattaError("--config takes one recipe (.toml) and one architecture (.json) at most.")
    flags = {
        "convert": {
            "source": source,
            "adapter": adapter,
            "weights": weights,
            "example": example,
            "task": task,
            "expand": expand,
            "order": order,
            "tokenizer": tokenizer,
            "axes": options.words(axes),
        },
        "data": options.data_flags(data, None) if data is not None else {},
    }
    # not the output folder's: convert writes that file, with a corpus that the user did not ask to
    # calibrate on
    recipe, read = resolve(flags, None, toml[0] if toml else None)
    for path in read:
        console.say(f"Settings from {path}.")

    from matta_cli.conversion import inspect
    from matta_cli.conversion.convert import convert as run

    config_json = architecture[0] if architecture else None
    with console.training_progress() as listen:
        done = run(
            recipe,
            out,
            overwrite=overwrite,
            allow_pickle=allow_pickle,
            model_config=config_json,
            listen=listen,
        )
    ta = done.ta
    source = recipe.convert.source
    for note in done.notes:
        console.say(f"Note: {note}")
    console.say(
        f"{source}, by the adapter {ta.adapter.name}; units ordered by {done.order}; the TA is width {ta.widest:g}."
    )
    console.say(
        f"Lossless: width 1.0 of the TA differs from {source} by at most {done.difference:.1e} (relative)."
    )
    rows = inspect.menu(ta, done.widths)
    if json:
        console.data(
            {
                "folder": str(done.folder),
                "adapter": ta.adapter.name,
                "difference": done.difference,
                "widths": rows,
            }
        )
    else:
        console.table(
            ["width", "role", "sizes", "parameters", "loads with"],
            [
                [f"{r['width']:g}", r["role"], r["shown"], f"{r['parameters']:,}", r["loads"]]
                for r in rows
            ],
        )
        for row in rows:
            if row["role"] == "Student" and row["layers"]:
                console.say(
                    f"Width {row['width']:g} keeps layers {inspect.numbers(row['layers'])}."
                )
    console.say(f"Wrote {done.folder}; settings for what follows are in {out / 'matta.toml'}.")
    console.hint(
        command("distill", out, "--teacher", "TEACHER", *([] if data is None else ["--data", data]))
    )
