"""``matta eval``: any models of one task, measured and compared on the same examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matta_cli import console
from matta_cli.commands import early, eval_tables, options
from matta_cli.commands.options import option
from matta_cli.errors import MattaError
from matta_cli.files.workspace import Workspace
from matta_cli.settings.checks import check_value

if TYPE_CHECKING:
    from matta_cli.comparison.compare import Asked

_Folders = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FOLDER...",
        help="Students, TAs (FOLDER, or FOLDER@0.5 for a width), Teachers, bases: folders, hub "
        "ids, timm names.",
        show_default="the base and the Students in --out, or of --name",
    ),
]
_Against = Annotated[
    str | None, option("--against", "Which one the others are compared with.", default="the first")
]
_Teacher = Annotated[str | None, option("--teacher -t", "A Teacher to agree with or not.")]
_TA = Annotated[
    str | None, option("--ta", "The TA to agree with or not.", default="that of the models")
]
_Task = Annotated[str | None, option("--task", "What the models are for, where they do not say.")]
_Tasks = Annotated[
    str | None, option("--tasks", "Tasks of lm-evaluation-harness, such as lambada_openai.")
]
_TaskData = Annotated[
    list[str] | None,
    option("--task-data", "A local file of a task's examples: lambada_openai=FILE.jsonl."),
]
_TaskLimit = Annotated[int, option("--task-limit", "Examples of each of the --tasks; 0: all.")]
_Speculative = Annotated[
    str | None, option("--speculative", "SMALL,LARGE: generate with one drafting for the other.")
]
_Draft = Annotated[int, option("--draft-tokens", "Tokens that SMALL drafts at a time.")]
_Cascade = Annotated[
    bool, option("--cascade", "Ask a larger model only where a smaller is unsure.")
]
_Unsure = Annotated[str, option("--unsure", "By what a model is unsure: confidence or margin.")]


def eval(
    folders: _Folders = None,
    against: _Against = None,
    teacher: _Teacher = None,
    ta: _TA = None,
    out: options.Out = options.OUT,
    name: options.Name = "",
    train: options.Train = None,
    held_out: options.HeldOut = None,
    passages: options.Passages = None,
    sequence_length: options.SequenceLength = None,
    train_on: options.TrainOn = None,
    batch_size: options.AtATime = None,
    bootstrap: options.Bootstrap = None,
    margin: options.Margin = None,
    task: _Task = None,
    tasks: _Tasks = None,
    task_data: _TaskData = None,
    task_limit: _TaskLimit = 0,
    speculative: _Speculative = None,
    draft_tokens: _Draft = 5,
    cascade: _Cascade = False,
    unsure: _Unsure = "confidence",
    device: options.Device = None,
    file: options.File = None,
    json: options.Json = False,
) -> None:
    """Measure models with intervals, and compare them on the same examples.

    Example: matta eval matta-out@0.5 matta-out/students/width-0.5 gpt2 --held-out test.txt
    """
    typed = locals()
    flags = options.tables(typed, "data")
    flags["distill"] = {"device": device, "batch_size": batch_size}
    flags["export"] = {"bootstrap": bootstrap, "margin": margin}
    if task_limit < 0:
        raise MattaError(f"--task-limit {task_limit} is not possible: 0 is all examples.")
    out = options.home(out)
    space = Workspace(out, name)
    early.models(typed, space)

    from matta_cli.comparison.compare import evaluation
    from matta_cli.comparison.subjects import chosen_by, home

    out = home(folders or [], out)
    recipe = options.resolved(flags, out, file, ran=True, exported=space)
    early.data(recipe)
    for setting in ("bootstrap", "margin"):
        check_value(f"export.{setting}", getattr(recipe.export, setting))
    asked = _asked(typed, space)
    asked.unchosen = train is None and held_out is None and bool(chosen_by(asked.models))
    for name in chosen_by(asked.models) if not asked.unchosen else ():
        chosen = f"{name} was chosen on a half of the run's held-out examples"
        console.say(f"Look at this first: {chosen}: measured on these, it looks too good.")
    result = evaluation(recipe, asked, out, say=console.say)
    if json:
        console.data(result)
    else:
        eval_tables.show(result)
    console.hint(options.following(out, name))


def _asked(typed: Mapping[str, Any], space: Workspace) -> Asked:
    """What to measure: the command's parameters, by their names."""
    from matta_cli.comparison.compare import Asked
    from matta_cli.comparison.subjects import students_of

    given = {name: value for name, value in typed.items() if value is not None}
    given |= {name: options.words(typed[name]) for name in ("speculative", "tasks")}
    given["models"] = typed["folders"] or ([] if given["speculative"] else students_of(space))
    given["task_data"] = _files(typed["task_data"] or [])
    return Asked(**{f.name: given[f.name] for f in fields(Asked) if f.name in given})


def _files(given: list[str]) -> dict[str, str]:
    """``TASK=FILE`` by task. Raises ``MattaError`` for anything else."""
    files = {}
    for text in given:
        name, _, path = text.partition("=")
        if not name or not path:
            example = "write it as lambada_openai=FILE.jsonl"
            raise MattaError(f"--task-data {text!r} is not understood: {example}.")
        files[name] = path
    return files
