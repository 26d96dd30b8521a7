"""What lies in a folder: a TA, a Student, what a run has reached."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from matta_cli.errors import MattaError
from matta_cli.files.card import read_card
from matta_cli.files.workspace import Workspace, counters_of, refuse_no_ta
from matta_cli.models import plugins
from matta_cli.models.load import opened
from matta_cli.models.source import download, open_source
from matta_cli.models.ta import STATISTICS, TA, UNSHARED, Key, UnsharedTA
from matta_cli.nested.sizes import full_sizes
from matta_cli.progress import Say
from matta_cli.settings import gone
from matta_cli.settings.recipe import Recipe
from matta_cli.settings.resolve import of_file, tomllib

_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # user/name on the hub


def ta_folder(folder: str | Path) -> Path:
    """Where the TA lies that a folder stands for: itself, or the latest one of an output folder."""
    folder = Path(folder)
    if not (folder / "matta.json").exists():
        Workspace(folder).mend()
    if not (folder / "matta.json").exists() and Workspace(folder).converted:
        return Workspace(folder).current_ta()
    return folder


def load_ta(folder: str | Path) -> TA:
    """The TA in a folder: ``matta-out/ta``, a checkpoint of a run, or an output folder.

    Of an output folder it is the trained one, if there is one. ``TA.at`` runs its widths. Raises
    ``MattaError`` where there is no TA, or what is there is damaged.
    """
    folder = ta_folder(folder)
    refuse_no_ta(folder)
    card = read_card(folder)
    adapter = plugins.adapter(card["adapter"], folder)
    model = opened(adapter, open_source(f"local-dir:{folder}"))
    known = {axis.name: axis for axis in adapter.axes(model)}
    if any(axis.name not in known or known[axis.name].size != axis.size for axis in card["axes"]):
        what = "the weights and matta.json disagree on the axes; convert the model again"
        raise MattaError(f"{folder}: {what}.")
    # where its units lie the model itself says
    axes = [replace(known[axis.name], order=axis.order) for axis in card["axes"]]
    ta = TA(adapter, model, axes, card["base"], card)
    ta.statistics = _statistics(ta, folder)
    unshared = {}
    for path in sorted((folder / UNSHARED).glob("width-*")):
        try:
            width = float(path.name.removeprefix("width-"))
        except ValueError:
            continue  # a copy that somebody has put beside them
        unshared[width] = opened(adapter, open_source(f"local-dir:{path}"))
    if not unshared:
        return ta
    whole = UnsharedTA.of(ta, unshared)
    whole.statistics |= {whole.student(width).key: {} for width in unshared}
    return whole


def _statistics(ta: TA, folder: Path) -> dict[Key, dict[str, Tensor]]:
    """The BatchNorm statistics that a folder has of Students.

    As converted, width 1.0 is the base, with the base's own. A checkpoint's whole TA has its own.
    """
    if "steps" not in ta.card:
        return {ta.key(ta.sizes(1.0)): {}}
    if not (folder / STATISTICS).exists():  # none are needed, or an older matta kept none
        return {}
    found: dict[Key, dict[str, Tensor]] = {ta.key(full_sizes(ta.axes)): {}}
    try:
        for name, tensor in load_file(str(folder / STATISTICS)).items():
            width, _, buffer = name.partition("/")
            found.setdefault(ta.student(float(width)).key, {})[buffer] = tensor
    except (SafetensorError, ValueError) as error:
        raise MattaError(f"{folder / STATISTICS} is damaged: {error}.") from None
    return found


def load_student(folder: str | Path) -> nn.Module:
    """The dense Student (or TA) in a folder, or of a hub id, by its adapter.

    In eval mode on the CPU.
    """
    where = Path(folder)
    if not where.is_dir():
        if not _ID.fullmatch(str(folder)):
            raise MattaError(f"There is no folder {str(folder)!r}.")
        where = download(str(folder), str(folder))
    card = read_card(where)
    if kind := card["lineage"].get("quantized"):
        instead = "its README.md says what loads it, and `matta eval` measures it"
        raise MattaError(f"{str(folder)!r} is a Student in {kind}, and no dense module: {instead}.")
    return opened(plugins.adapter(card["adapter"], where), open_source(f"local-dir:{where}"))


def refuse_other_ta(digest: str, ta: TA, folder: Path) -> None:
    """Raise ``MattaError`` if the TA of a run did not come from the TA that lies beside it now."""
    if ta.card["lineage"]["digest"] != digest:
        again = "distill again with --overwrite"
        raise MattaError(
            f"{folder} trained another TA than the one that was converted since: {again}."
        )


@dataclass(frozen=True)
class Reached:
    """What a run has come to: a checkpoint's folder, its TA and counters, and the run's recipe."""

    folder: Path
    ta: TA
    counters: dict[str, Any]
    recipe: Recipe


def reached(out: Path, which: str, say: Say = lambda _: None) -> Reached:
    """The trained TA in ``out``, of the checkpoint that ``export.checkpoint``'s words name.

    Damaged ones are named by ``say``. Raises ``MattaError`` where there is none, or where it
    trained another TA than the one in ``out/ta``.
    """
    space = Workspace(out)
    space.mend()
    last, damaged = space.trained(which)
    for path in damaged:
        say(f"{path} is damaged and is left out.")
    if last is None:
        space.refuse_untrained()
    ta = load_ta(last)
    refuse_other_ta(read_card(space.ta)["lineage"]["digest"], ta, last)
    counters = counters_of(last)
    recipe = Recipe()
    try:
        recorded = tomllib.loads(counters["recipe"])
    except (ValueError, RecursionError) as error:
        what = f"{last} is damaged (the recipe in trainer.json: {error})"
        raise MattaError(f"{what}: name another with --checkpoint.") from None
    recipe.update(gone.recorded(of_file(recorded, last / "trainer.json")), str(last))
    return Reached(last, ta, counters, recipe)
