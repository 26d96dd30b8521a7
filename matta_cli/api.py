"""The Python API: the steps as plain functions, whose keywords are the settings of the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from matta_cli.keywords import by_keyword
from matta_cli.models import folders, plugins
from matta_cli.models.ta import TA
from matta_cli.notebook import Told, Trained, shown
from matta_cli.settings.recipe import Recipe, SearchSettings
from matta_cli.settings.resolve import instead_of_widths, resolve

__all__ = ["TA", "convert", "distill", "export", "judge", "load_student", "load_ta", "teach"]


load_student, load_ta = by_keyword(folders.load_student), by_keyword(folders.load_ta)


def _recipe(flags: dict[str, dict[str, Any]], out: Path | None, ran: bool = False) -> Recipe:
    return resolve(flags, out, ran=ran, origin="keyword arguments")[0]


def _data(train: str | None, held_out: str | None) -> dict[str, str | None]:
    return {"train": train, "held_out": held_out}


def _named(settings: dict[str, Any]) -> None:
    """Take it that the user has named the adapter of a Teacher, whose code they pass."""
    if settings.get("teacher_adapter"):
        plugins.adapter(settings["teacher_adapter"])


@by_keyword
def convert(
    source: str,
    out: str | Path = "matta-out",
    *,
    data: str | None = None,
    config: str | Path | None = None,
    preset: str | None = None,
    allow_pickle: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> TA:
    """Grow the model ``source`` into a TA in ``out/ta`` and return it.

    settings: of the recipe's [convert] table. data: what units are ordered by. config: the model's
    config.json, for a state dict whose sizes do not tell it. preset: a recipe by its name, such as
    paper; what is trained then follows it, too. allow_pickle: open pickles, which can run code.
    progress: whether there is a bar; None: in a notebook and on a terminal. Raises ``MattaError``
    where the source cannot be opened, or no adapter fits it.
    """
    from matta_cli.conversion.convert import convert as run

    flags = {"convert": {"source": source, **settings}, "data": {"train": data}}
    flags["distill"] = {"preset": preset}
    recipe, more = _recipe(flags, None), {"overwrite": overwrite, "allow_pickle": allow_pickle}
    file = None if config is None else Path(config)
    with shown(progress) as listen:
        return run(recipe, Path(out), model_config=file, listen=listen, **more).ta


@by_keyword
def distill(
    teacher: str,
    out: str | Path = "matta-out",
    *,
    data: str | None = None,
    held_out: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> Path:
    """Train the TA in ``out`` and return its last checkpoint.

    settings: of the recipe's [distill] table. held_out: what models are measured on; None: the last
    tenth of the data. progress: as in ``convert``. Raises ``MattaError`` for settings, a Teacher or
    data that do not go together, and ``Interrupted`` after Ctrl-C, when all is saved.
    """
    from matta_cli.training.run import distill as run

    flags = {"distill": {"teacher": teacher, **settings}, "data": _data(data, held_out)}
    _named(settings)
    recipe = _recipe(flags, Path(out), resume)
    with shown(progress) as listen:
        saved = run(recipe, Path(out), overwrite=overwrite, resume=resume, listen=listen)
    return Trained(saved)


@by_keyword
def teach(
    teacher: str,
    to: str | Path,
    out: str | Path = "matta-out",
    *,
    data: str | None = None,
    held_out: str | None = None,
    k: int = 24,
    draws: int = 96,
    overwrite: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> Path:
    """Write what ``teacher`` says of the training data to the folder ``to``, and return it.

    ``distill`` takes that folder for a Teacher. Where there are more than 64 outputs, k: how many
    of the likeliest are kept of each position; draws: how many of the others are drawn. settings:
    of the recipe's [distill] table. Raises as ``distill`` does.
    """
    from matta_cli.training.teach import teach as run

    flags = {"distill": {"teacher": teacher, **settings}, "data": _data(data, held_out)}
    _named(settings)
    recipe, kept = _recipe(flags, Path(out)), {"k": k, "draws": draws}
    with shown(progress) as listen:
        return run(recipe, Path(out), Path(to), overwrite=overwrite, listen=listen, **kept)


@by_keyword
def export(
    widths: list[float] | None = None,
    out: str | Path = "matta-out",
    *,
    name: str = "",
    data: str | None = None,
    held_out: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Export Students of these widths to ``out/students`` and return the report, as JSON has it.

    settings: of [export] and [search]. Budgets, such as ``target_params=["60M"]``, stand for the
    widths where none are given. name: of a family beside the first one. data, held_out, device:
    others than the run's. Raises ``MattaError`` for widths that the TA does not hold, budgets that
    are not possible, and Students that do not reload to the same outputs.
    """
    from matta_cli.family import export as run

    names = {field.name for field in fields(SearchSettings)}
    search = {name: value for name, value in settings.items() if name in names}
    rest = {name: value for name, value in settings.items() if name not in names}
    flags = {"export": instead_of_widths({"widths": widths, **rest}), "search": search}
    flags |= {"data": _data(data, held_out), "distill": {"device": device}}
    recipe, where = _recipe(flags, Path(out), True), Path(out)
    with shown(progress) as listen:
        made = run(recipe, where, name=name, overwrite=overwrite, listen=listen)
    return Told(made.to_json())


@by_keyword
def judge(
    baselines: Sequence[str] = ("untrained", "ground-truth", "plain"),
    out: str | Path = "matta-out",
    *,
    name: str = "",
    margin: float | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train missing baselines of the exported Students; return the report with its verdicts.

    margin: the share of a baseline's value that a Student may lose and be called no worse. name: of
    a family beside the first one. Raises
    ``MattaError`` where nothing was exported, or a baseline cannot be trained.
    """
    from matta_cli.verdict.judge import remake

    with shown(progress) as listen:
        made = remake(Path(out), baselines, name=name, margin=margin, device=device, listen=listen)
    return Told(made.to_json())
