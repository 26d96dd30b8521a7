"""``matta push``: exported Students -> the hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from matta_cli import console
from matta_cli.commands import early, options
from matta_cli.errors import MattaError, beside, command
from matta_cli.files.workspace import Workspace

_Students = Annotated[
    list[Path] | None,
    typer.Argument(metavar="STUDENT", help="Folders of Students; none: all of --out, or --name."),
]
_To = Annotated[str, typer.Option("--to", help="Where on the hub: USER/NAME.", metavar="USER/NAME")]
_License = Annotated[
    str | None, options.option("--license", "License of the base, where its card has none.")
]
_Private = Annotated[bool, options.option("--private", "Let nobody else see what is made.")]
_DryRun = Annotated[
    bool, options.option("--dry-run", "Print the files and the cards; send nothing.")
]
_Overwrite = Annotated[
    bool, options.option("--overwrite", "Add a commit to a repository that is there.")
]


def push(
    students: _Students = None,
    to: _To = "",
    license: _License = None,
    private: _Private = False,
    dry_run: _DryRun = False,
    overwrite: _Overwrite = False,
    out: options.Out = options.OUT,
    name: options.Name = "",
) -> None:
    """Send Students to the Hugging Face hub: a repository for each, a collection for several.

    Example: matta push matta-out/students/width-0.5 --to me/gpt2-half, or matta push --to me/gpt2
    """
    if not to:
        raise MattaError("--to is missing: say where on the hub, --to USER/NAME.")
    out = options.home(out)
    folders = [options.home(folder) for folder in students or ()]
    early.one_of(name, folders)
    folders = folders or _exported(Workspace(out, name))
    early.students(folders)

    from huggingface_hub.utils import disable_progress_bars

    from matta_cli.students.push import CARD, Hub, plan

    repositories = plan(folders, to, license or "")
    for one in repositories:
        if one.foreign:
            console.say(f"Not of matta, and not sent: {', '.join(one.foreign)} in {one.folder}.")
    if dry_run:
        for one in repositories:
            console.text(f"{one.name}\n")
            for file, path in one.files.items():
                size = len(one.card.encode()) if file == CARD else path.stat().st_size
                console.text(f"  {console.harmless(file)}\t{size}\n")
            console.text(f"\n{console.harmless(one.card)}\n")
        console.say("Nothing was sent: leave out --dry-run to send it.")
        more = _more(out, name, license, private)
        console.hint(command("push", *(students or ()), "--to", to, *more))
        return
    if not sys.stderr.isatty():  # of uploads; they are no lines
        disable_progress_bars()
    hub = Hub.opened(console.say)
    for place in hub.push(repositories, to, private=private, overwrite=overwrite):
        console.text(f"{place}\n")
    console.hint(options.following(out, name))


def _more(out: Path, name: str, license: str | None, private: bool) -> list[object]:
    """The other words of a command that was a dry run."""
    licensed = ["--license", license] if license else []
    kept = ["--private"] if private else []
    return [*licensed, *kept, *options.elsewhere(out), *beside(name)]


def _exported(space: Workspace) -> list[Path]:
    """The Students of a family. Raises ``MattaError`` where there are none."""
    there = space.exported()
    if not there:
        raise MattaError(f"There are no Students in {space.students}: run `matta export` first.")
    return there
