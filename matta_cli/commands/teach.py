"""``matta teach``: run a Teacher once, and keep what it says for any number of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from matta_cli import console
from matta_cli.commands import early, options
from matta_cli.errors import command
from matta_cli.settings.recipe import Recipe

_To = Annotated[Path, options.option("--to", "Folder for what the Teacher says.")]
_TopK = Annotated[
    int,
    options.option(
        "--top-k", "The likeliest outputs of each position to keep, where there are more than 64."
    ),
]
_Draws = Annotated[
    int | None,
    options.option(
        "--draws",
        "How many of the other outputs are drawn by their probability; 0: their mass.",
        default="as many as 192 bytes hold",
    ),
]
_Prompts = Annotated[
    Path | None,
    options.option(
        "--prompts", "Write the tokens of each training example to this JSONL, and ask no Teacher."
    ),
]


def teach(
    folder: options.Folder = None,
    teacher: options.Teacher = None,
    teacher_adapter: options.TeacherAdapter = None,
    teacher_config: options.TeacherConfig = None,
    to: _To = Path("teacher-outputs"),
    out: options.Out = options.OUT,
    train: options.Train = None,
    held_out: options.HeldOut = None,
    sequence_length: options.SequenceLength = None,
    train_on: options.TrainOn = None,
    prompts: _Prompts = None,
    top_k: _TopK = 24,
    draws: _Draws = None,
    batch_size: options.AtATime = None,
    precision: options.Precision = None,
    device: options.Device = None,
    allow_weak_teacher: options.AllowWeakTeacher = None,
    file: options.File = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write what a Teacher says of the training data, for `matta distill --teacher FOLDER`.

    Example: matta teach --teacher gpt2-large --to gpt2-large-outputs
    """
    flags = options.tables(locals(), "distill", "data")
    out, to = options.output(folder, out), options.home(to)
    options.named(teacher_adapter)
    recipe = options.resolved(flags, out, file)
    early.training(recipe, out)

    if prompts is not None:
        _write_prompts(recipe, out, options.home(prompts))
        return

    from matta_cli.training.teach import teach as run

    with console.training_progress() as listen:
        written = run(recipe, out, to, k=top_k, draws=draws, overwrite=overwrite, listen=listen)
    console.say(f"Wrote {written}.")
    same = {"--data": train, "--held-out": held_out, "--sequence-length": sequence_length}
    same["--train-on"] = train_on
    given = [word for flag, value in same.items() if value for word in (flag, value)]
    console.hint(command("distill", out, "--teacher", written, *given))


def _write_prompts(recipe: Recipe, out: Path, to: Path) -> None:
    from matta_cli.training.prompt_logprobs import write_prompts

    with console.training_progress() as listen:
        count = write_prompts(recipe, out, to, listen)
    console.say(f"Wrote {to}: {count:,} training examples, to be sent to a server.")
    console.hint(command("distill", out, "--teacher", "ANSWERS.jsonl"))
