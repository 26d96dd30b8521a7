"""A TA in memory, and the folders that it is loaded from."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli.adapter import Adapter, Axis, Sizes
from matta_cli.errors import MattaError, command
from matta_cli.files import card, workspace
from matta_cli.files.card import read_card
from matta_cli.files.workspace import mend
from matta_cli.models import plugins, source
from matta_cli.models.save import save_model
from matta_cli.nested.sizes import own_sizes, sizes_at
from matta_cli.nested.view import StudentView, materialize
from matta_cli.settings.recipe import Recipe
from matta_cli.settings.resolve import tomllib

# in a TA folder: the scores of each axis as converted, the first unit's first
IMPORTANCE = "importance/scores.safetensors"


@dataclass
class TA:
    """A Teaching Assistant in memory: the grown model, its axes, and the base's sizes in them."""

    adapter: Adapter
    model: nn.Module
    axes: list[Axis]
    base: dict[str, int]
    card: dict[str, Any]
    # Students that share no weights, in the ablation of that
    copies: dict[float, nn.Module] = field(default_factory=dict)

    def sizes(self, width: float | Sizes) -> dict[str, int]:
        """The sizes of a width (sizes are their own). Raises ``MattaError`` for a width that is not
        in (0, widest].
        """
        if isinstance(width, Mapping):
            return dict(width)
        if not 0 < width <= self.widest:
            raise MattaError(
                f"Width {width:g} is not possible: this TA holds widths above 0 and up to {self.widest:g}."
            )
        shares = self.card.get("sizes", {}).get(f"{width:g}")
        return sizes_at(self.axes, self.base, width, self.card.get("multiple", 1), shares)

    @property
    def widest(self) -> float:
        """The TA's own width: the most that any axis grew."""
        return max((axis.size / self.base[axis.name] for axis in self.axes), default=1.0)

    def at(self, width: float | Sizes, *, head: str = "", live: bool = False) -> Any:
        """The Student of a width, or of sizes, run on views of the TA's tensors: no copy.
        ``StudentView`` has the rest.
        """
        if not isinstance(width, Mapping) and width in self.copies:
            return self.copies[width]
        return StudentView(
            self.adapter, self.model, self.axes, self.sizes(width), head=head, live=live
        )

    def student(self, width: float | Sizes) -> nn.Module:
        """The Student of a width, or of sizes, as a dense module of its own."""
        if not isinstance(width, Mapping) and width in self.copies:
            return copy.deepcopy(self.copies[width]).eval()
        return materialize(self.adapter, self.model, self.axes, self.sizes(width))

    def save(
        self,
        width: float | Sizes,
        folder: Path,
        buffers: Mapping[str, Tensor],
        *,
        own: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> str:
        """Write the Student of a width, or of sizes, as ``save_model`` does. ``buffers``: BatchNorm
        statistics of its own.
        """
        if not isinstance(width, Mapping) and width in self.copies:
            return save_model(
                self.adapter, copy.deepcopy(self.copies[width]).to(dtype), folder, own=own
            )
        sizes = self.sizes(width)
        view = StudentView(self.adapter, self.model, self.axes, sizes)
        student = self.adapter.build(self.model, own_sizes(self.axes, sizes)).to(dtype)
        return save_model(self.adapter, student, folder, {**view.state(), **buffers}, own=own)


def ta_folder(folder: str | Path) -> Path:
    """Where the TA lies that a folder stands for: itself, or for an output folder the last
    checkpoint, else its ``ta``.
    """
    folder = Path(folder)
    if not (folder / "matta.json").exists() and (folder / "ta" / "matta.json").exists():
        return workspace.current_ta(folder)
    return folder


def load_ta(folder: str | Path) -> TA:
    """The TA in a folder: ``matta-out/ta``, a checkpoint of a run, or an output folder (trained, if
    it has been).
    """
    folder = ta_folder(folder)
    if not folder.is_dir():
        raise MattaError(f"There is no TA folder {str(folder)!r}: make one with `matta convert`.")
    card = read_card(folder)
    adapter = plugins.adapter(card["adapter"], folder)
    model = adapter.load(source.open_source(f"local-dir:{folder}"))
    axes: list[Axis] = card["axes"]
    found = {axis.name: axis.size for axis in adapter.axes(model)}
    if any(found.get(axis.name) != axis.size for axis in axes):
        raise MattaError(
            f"{folder}: the weights and matta.json disagree on the axes; convert the model again."
        )
    copies = {
        float(path.name.removeprefix("width-")): adapter.load(
            source.open_source(f"local-dir:{path}")
        )
        for path in sorted((folder / "unshared").glob("width-*"))
    }
    return TA(adapter, model, axes, card["base"], card, copies)


def load_student(folder: str | Path) -> nn.Module:
    """The dense Student (or TA) in a folder, by its adapter. In eval mode on the CPU."""
    folder = Path(folder)
    if not folder.is_dir():
        raise MattaError(f"There is no folder {str(folder)!r}.")
    card = read_card(folder)
    return plugins.adapter(card["adapter"], folder).load(source.open_source(f"local-dir:{folder}"))


def unsupported(ta: TA, sizes: Sizes) -> str:
    """Why the stock library cannot load a Student of these sizes; empty where it can."""
    if not ta.adapter.loader:
        return f"the adapter {ta.adapter.name!r} has no stock library"
    with torch.device("meta"):
        return ta.adapter.unsupported(ta.adapter.build(ta.model, own_sizes(ta.axes, sizes)))


def is_stock(ta: TA, sizes: Sizes) -> bool:
    """Whether the stock library can load a Student of these sizes."""
    return not unsupported(ta, sizes)


def refuse_other_ta(digest: str, ta: TA, folder: Path) -> None:
    """Raise ``MattaError`` if the TA of a run did not come from the TA that lies beside it now."""
    if ta.card["lineage"]["digest"] != digest:
        raise MattaError(
            f"{folder} trained another TA than the one that was converted since: distill again with --overwrite."
        )


@dataclass(frozen=True)
class Reached:
    """What a run has come to: a checkpoint's folder, its TA, its counters, and the recipe that it
    was trained by.
    """

    folder: Path
    ta: TA
    counters: dict[str, Any]
    recipe: Recipe


def reached(out: Path, which: str, say: Callable[[str], None] = lambda _: None) -> Reached:
    """The trained TA in ``out``, of the checkpoint that ``export.checkpoint``'s words name. Damaged
    ones are named by ``say``.

    Raises ``MattaError`` where there is none, or where it trained another TA than the one in
    ``out/ta``.
    """
    mend(out)
    last, damaged = workspace.chosen(out / "run", which)
    for path in damaged:
        say(f"{path} is damaged and is left out.")
    if last is None:
        raise MattaError(
            f"There is no trained TA in {out / 'run'}: run `{command('distill', out)}` first."
        )
    ta = load_ta(last)
    refuse_other_ta(card.read_card(out / "ta")["lineage"]["digest"], ta, last)
    counters = json.loads((last / "trainer.json").read_text(encoding="utf-8"))
    recipe = Recipe()
    recipe.update(tomllib.loads(counters["recipe"]), str(last))
    return Reached(last, ta, counters, recipe)
