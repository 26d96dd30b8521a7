"""The Python API: the three steps as plain functions, settings by keyword
(``matta_cli.settings.recipe`` has all).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from matta_cli.models.folders import load_student, load_ta
from matta_cli.models.ta import TA
from matta_cli.settings.recipe import SearchSettings
from matta_cli.settings.resolve import resolve

__all__ = ["TA", "convert", "distill", "export", "judge", "load_student", "load_ta", "teach"]


_SAID = "keyword arguments"  # what settings are called in errors


def convert(
    source: str,
    out: str | Path = "matta-out",
    *,
    data: str | None = None,
    config: str | Path | None = None,
    allow_pickle: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> TA:
    """Grow the model ``source`` into a TA in ``out/ta`` and return it. ``settings``: the recipe's
    [convert] table.

    config: the model's config.json, for a state dict whose sizes do not tell it. allow_pickle: open
    pickles (code).
    """
    from matta_cli.conversion.convert import convert as run

    flags = {"convert": {"source": source, **settings}, "data": {"train": data}}
    recipe, _ = resolve(flags, None, origin=_SAID)
    architecture = None if config is None else Path(config)
    return run(
        recipe, Path(out), overwrite=overwrite, allow_pickle=allow_pickle, model_config=architecture
    ).ta


def distill(
    teacher: str,
    out: str | Path = "matta-out",
    *,
    data: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    **settings: Any,
) -> Path:
    """Train the TA in ``out`` and return its last checkpoint. ``settings``: the recipe's [distill]
    table.
    """
    from matta_cli.training.run import distill as run

    flags = {"distill": {"teacher": teacher, **settings}, "data": {"train": data}}
    return run(
        resolve(flags, Path(out), ran=resume, origin=_SAID)[0],
        Path(out),
        overwrite=overwrite,
        resume=resume,
    )


def teach(
    teacher: str,
    to: str | Path,
    out: str | Path = "matta-out",
    *,
    data: str | None = None,
    k: int = 64,
    overwrite: bool = False,
    **settings: Any,
) -> Path:
    """Write what ``teacher`` says about the training examples to the folder ``to``, a Teacher for
    ``distill``.

    k: outputs kept of each position, where there are more than 64. ``settings``: the recipe's
    [distill] table.
    """
    from matta_cli.training.teach import teach as run

    flags = {"distill": {"teacher": teacher, **settings}, "data": {"train": data}}
    return run(
        resolve(flags, Path(out), origin=_SAID)[0], Path(out), Path(to), k=k, overwrite=overwrite
    )


def export(
    widths: list[float] | None = None,
    out: str | Path = "matta-out",
    *,
    overwrite: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Export Students of these widths to ``out/students`` and return the report. ``settings``:
    [export] and [search].

    Budgets (``target_params=["60M"]`` and the like) stand for the widths, where none are given.
    """
    from matta_cli.family import export as run

    if widths is None and any(
        value for name, value in settings.items() if name.startswith("target_")
    ):
        widths = []
    of_search = {f.name for f in fields(SearchSettings)}
    flags = {
        "export": {"widths": widths}
        | {name: value for name, value in settings.items() if name not in of_search},
        "search": {name: value for name, value in settings.items() if name in of_search},
    }
    recipe = resolve(flags, Path(out), ran=True, origin=_SAID)[0]
    return run(recipe, Path(out), overwrite=overwrite).to_json()


def judge(
    baselines: Sequence[str] = ("untrained", "ground-truth", "plain"),
    out: str | Path = "matta-out",
    *,
    margin: float | None = None,
) -> dict[str, Any]:
    """Train baselines of the Students exported to ``out``, where they are missing, and return the
    report with its verdicts.

    margin: the share of a baseline's value that a Student may lose and be called no worse.
    """
    from matta_cli.verdict.judge import remake

    return remake(Path(out), baselines, margin=margin).to_json()
