"""What is wrong with what was typed is said within a moment: before anything imports torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matta_cli.commands import options
from matta_cli.data import find
from matta_cli.errors import MattaError
from matta_cli.files.atomic import refuse_existing
from matta_cli.files.workspace import Workspace, refuse_no_student
from matta_cli.models import names
from matta_cli.settings.quantize import calibrates
from matta_cli.settings.recipe import Recipe


def conversion(recipe: Recipe, out: Path, overwrite: bool, data: str | None) -> None:
    """Raise ``MattaError`` where a model to convert is not there, or an adapter or a task.

    data: what was typed of it; what a file says of it may never be read.
    """
    settings = recipe.convert
    names.refuse_missing(settings.source)
    if settings.weights:
        names.refuse_missing(settings.weights)
    if settings.adapter and ":" not in settings.adapter and not settings.adapter.endswith(".py"):
        names.entry("matta.adapters", settings.adapter)
    if settings.task:
        names.entry("matta.tasks", settings.task)
    if data:
        find.find(data)
    if os.path.lexists(out) and not out.is_dir():
        what = "a link to nothing" if out.is_symlink() and not out.exists() else "no folder"
        raise MattaError(f"--out {str(out)!r} is {what}: name a folder, which need not be there.")
    Workspace(out).mend()
    refuse_existing(Workspace(out).ta, overwrite)


def training(recipe: Recipe, out: Path) -> None:
    """Raise ``MattaError`` where there is no TA to train, no such Teacher, or no such data."""
    Workspace(out).refuse_unconverted()
    names.refuse_missing(recipe.distill.teacher)
    data(recipe, training=True)


def trained(recipe: Recipe, out: Path) -> None:
    """Raise ``MattaError`` where there is no trained TA to export, or no such data."""
    Workspace(out).refuse_unconverted()
    if Workspace(out).newest() is None:
        Workspace(out).refuse_untrained()
    data(recipe, training=calibrates(recipe.export.quantize))


def exported(out: Path, name: str) -> None:
    """Raise ``MattaError`` where there is no report to be made anew. name: of a family."""
    Workspace(out).mend()
    if not Workspace(out, name).report.exists():
        raise Workspace(out, name).no_report()


def students(folders: Iterable[Path]) -> None:
    """Raise ``MattaError`` where a folder that should hold a Student is not there."""
    for path in folders:
        refuse_no_student(path)


def one_of(family: str, named: Sequence[str | Path]) -> None:
    """Raise ``MattaError`` where models are named beside a family."""
    if family and named:
        which = "it is the Students of a family, or those that are named"
        raise MattaError(f"--name {family} and {named[0]} do not go together: {which}.")


def models(typed: Mapping[str, Any], space: Workspace) -> None:
    """Raise ``MattaError`` where there is nothing to evaluate, a model is not there, or a task.

    typed: the parameters of ``eval``, by their names. space: whose Students are measured unasked.
    """
    own = [*(typed["folders"] or []), *options.words(typed["speculative"])]
    one_of(space.family, own)
    if not own and not space.exported():
        raise space.nothing_to_evaluate()
    for name in filter(None, (*own, typed["teacher"], typed["ta"])):
        names.refuse_missing(names.folder_and_width(name)[0])
    if typed["task"]:
        names.entry("matta.tasks", typed["task"])


def data(recipe: Recipe, training: bool = False) -> None:
    """Raise ``MattaError`` where data that are read are a path, and not there.

    Without ``training``, data to train on are read only where none are held out.
    """
    settings = recipe.data
    train = settings.train if training or not settings.held_out else ""
    for text, flag in ((train, "--data"), (settings.held_out, "--held-out")):
        if text:
            find.find(text, flag)
