"""``matta convert``: dense model -> TA folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from matta_cli import console
from matta_cli.commands import early, options
from matta_cli.errors import MattaError, command

if TYPE_CHECKING:
    from matta_cli.conversion.convert import Converted

_Files = Annotated[
    list[Path] | None,
    options.option("--config -c", "Recipe (.toml), or the model's architecture (config.json)."),
]
_AllowPickle = Annotated[
    bool, options.option("--allow-pickle", "Open pickles, which can run code: trusted files only.")
]


def convert(
    source: options.Source = None,
    adapter: options.Adapter = None,
    weights: options.Weights = None,
    example: options.Example = None,
    task: options.AutoTask = None,
    drop_head: options.DropHead = None,
    trim_vocab: options.TrimVocab = None,
    out: options.Out = options.OUT,
    expand: options.Expand = None,
    axes: options.Axes = None,
    target_params: options.AimParams = None,
    target_memory: options.AimMemory = None,
    target_macs: options.AimMacs = None,
    order: options.Order = None,
    preset: options.Preset = None,
    train: options.Train = None,
    sequence_length: options.SequenceLength = None,
    train_on: options.TrainOn = None,
    tokenizer: options.Tokenizer = None,
    files: _Files = None,
    allow_pickle: _AllowPickle = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Grow a dense model into a Teaching Assistant (TA); prove that its width 1.0 is that model.

    Example: matta convert model.pt --adapter gpt2
    """
    flags = options.tables(locals(), "convert", "data", "distill")
    out = options.home(out)
    files = [options.home(path) for path in files or []]
    toml = [path for path in files if path.suffix != ".json"]
    architecture = [path for path in files if path.suffix == ".json"]
    if len(toml) > 1 or len(architecture) > 1:
        raise MattaError("--config takes one recipe (.toml) and one architecture (.json) at most.")
    # not the output folder's settings: convert writes that file, with a corpus that the user did
    # not ask to calibrate on
    recipe = options.resolved(flags, None, toml[0] if toml else None)
    early.conversion(recipe, out, overwrite, train)

    from matta_cli.conversion.convert import convert as run

    more = {"overwrite": overwrite, "allow_pickle": allow_pickle}
    with console.training_progress() as listen:
        config_json = architecture[0] if architecture else None
        done = run(recipe, out, model_config=config_json, listen=listen, **more)
    _show(done, recipe.convert.source, json)
    console.say(f"Wrote {done.folder}; settings for what follows are in {out / 'matta.toml'}.")
    same = [] if train is None else ["--data", train]
    console.hint(command("distill", out, "--teacher", "TEACHER", *same))


def _show(done: Converted, source: str, json: bool) -> None:
    """Print what was made, and what each width comes to."""
    from matta_cli.conversion.inspect import numbers

    ta, rows = done.ta, done.menu
    for note in done.notes:
        console.say(f"Note: {note}")
    how = f"by the adapter {ta.adapter.name}; units ordered by {done.order}"
    console.say(f"{source}, {how}; the TA is width {ta.widest:g}.")
    differs = f"differs from {source} by at most {done.difference:.1e} (relative)"
    console.say(f"Lossless: width 1.0 of the TA {differs}.")
    if json:
        made = {"folder": str(done.folder), "adapter": ta.adapter.name}
        more = {"difference": done.difference, "floor": done.floor, "widths": rows}
        console.data({**made, **more})
    else:
        options.show_widths(rows)
    console.say(done.floor)
    for row in rows:
        if row["role"] == "Student" and row["layers"]:
            console.say(f"Width {row['width']:g} keeps layers {numbers(row['layers'])}.")
