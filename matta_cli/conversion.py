"""convert: base -> TA. Order each axis by importance, grow it, prove that width 1.0 is still the base, save."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli import checkpoint, models, ranking, registry, supernet
from matta_cli.adapter import Adapter, Axis
from matta_cli.errors import MattaError
from matta_cli.recipe import Recipe
from matta_cli.tasks import Task

CALIBRATION_BATCHES = 8


@dataclass
class TA:
    """A Teaching Assistant in memory: the grown model, its axes, and the base's sizes in them."""

    adapter: Adapter
    model: nn.Module
    axes: list[Axis]
    base: dict[str, int]
    card: dict[str, Any]
    copies: dict[float, nn.Module] = field(default_factory=dict)  # Students that share no weights, in the ablation of that

    def sizes(self, width: float) -> dict[str, int]:
        """Uniform sizes at a width. Raises ``MattaError`` for a width that is not in (0, widest]."""
        if not 0 < width <= self.widest:
            raise MattaError(f"Width {width:g} is not possible: this TA holds widths above 0 and up to {self.widest:g}.")
        return supernet.sizes_at(self.axes, self.base, width, self.card.get("multiple", 1))

    @property
    def widest(self) -> float:
        """The TA's own width: the most that any axis grew."""
        return max((axis.size / self.base[axis.name] for axis in self.axes), default=1.0)

    def at(self, width: float, *, head: str = "", live: bool = False) -> Any:
        """The Student of a width, run on views of the TA's tensors: no copy. See ``StudentView`` for ``head`` and ``live``."""
        if width in self.copies:
            return self.copies[width]
        return supernet.StudentView(self.adapter, self.model, self.axes, self.sizes(width), head=head, live=live)

    def student(self, width: float) -> nn.Module:
        """The Student of a width as a dense module of its own."""
        if width in self.copies:
            return copy.deepcopy(self.copies[width]).eval()
        return supernet.materialize(self.adapter, self.model, self.axes, self.sizes(width))


def load_ta(folder: str | Path) -> TA:
    """The TA in a folder: ``matta-out/ta``, a checkpoint of a run, or an output folder (trained, if it has been)."""
    folder = Path(folder)
    if not (folder / "matta.json").exists() and (folder / "ta" / "matta.json").exists():
        folder = checkpoint.current_ta(folder)
    if not folder.is_dir():
        raise MattaError(f"There is no TA folder {str(folder)!r}: make one with `matta convert`.")
    card = checkpoint.read_card(folder)
    adapter = registry.adapter(card["adapter"])
    model = adapter.load(models.open_source(f"local-dir:{folder}"))
    axes: list[Axis] = card["axes"]
    found = {axis.name: axis.size for axis in adapter.axes(model)}
    if found != supernet.full_sizes(axes):
        raise MattaError(f"{folder}: the weights and matta.json disagree on the axes; convert the model again.")
    copies = {
        float(path.name.removeprefix("width-")): adapter.load(models.open_source(f"local-dir:{path}"))
        for path in sorted((folder / "unshared").glob("width-*"))
    }
    return TA(adapter, model, axes, card["base"], card, copies)


def load_student(folder: str | Path) -> nn.Module:
    """The dense Student (or TA) in a folder, by its adapter. In eval mode on the CPU."""
    folder = Path(folder)
    if not folder.is_dir():
        raise MattaError(f"There is no folder {str(folder)!r}.")
    card = checkpoint.read_card(folder)
    return registry.adapter(card["adapter"]).load(models.open_source(f"local-dir:{folder}"))


@dataclass
class Converted:
    """What ``convert`` did: the TA, its folder, and what a person should know."""

    ta: TA
    folder: Path
    order: str
    difference: float
    stock: dict[float, bool]
    notes: list[str]


def _probe(task: Task, ta: TA, folder: Path) -> list[dict[str, Tensor]] | None:
    """Batches of the user's data for calibration and proof, or None where no data is named."""
    if not task.recipe.data.train:
        return None
    if task.name == "causal_lm" and not task.recipe.convert.tokenizer and not models.has_tokenizer(folder):
        return None  # a bare state dict brings no tokenizer; `matta distill` takes the Teacher's
    train = task.data(folder, ta.model).train
    size = min(task.recipe.distill.batch_size, len(train))
    count = min(CALIBRATION_BATCHES, max(1, len(train) // size))
    spread = torch.linspace(0, len(train) - size, count).long().tolist()
    return [train.batch(range(start, start + size)) for start in spread]


def _difference(task: Task, base: nn.Module, student: Any, batches: Sequence[Mapping[str, Tensor]]) -> float:
    """The largest difference between two models' outputs, relative to the largest output of the first."""
    worst, scale = 0.0, 1e-12
    with torch.no_grad():
        for batch in batches:
            expected, got = task.forward(base, dict(batch)), task.forward(student, dict(batch))
            if not torch.isfinite(expected).all():
                raise MattaError("The model's outputs are not finite: its weights hold NaN or infinity.")
            worst = max(worst, (expected - got).abs().max().item())
            scale = max(scale, expected.abs().max().item())
    return worst / scale


def convert(
    recipe: Recipe, out: Path, *, overwrite: bool = False, allow_pickle: bool = False, model_config: Path | None = None
) -> Converted:
    """Grow ``recipe.convert.source`` into a TA in ``out/ta`` whose width 1.0 gives the source's outputs.

    Raises ``MattaError`` where the source cannot be opened, no adapter fits it, or the difference at width 1.0
    exceeds ``recipe.convert.tolerance``; nothing is left behind then.
    """
    settings = recipe.convert
    if not settings.source:
        raise MattaError("No model is named: pass a folder, a hub id, a timm name or a state dict to `matta convert`.")
    if not 1.0 <= settings.expand <= 64:
        raise MattaError(f"--expand {settings.expand:g} is not possible: it is the TA's width, from 1.0 to 64.")
    if settings.order not in ("auto", "activation", "magnitude", "none"):
        raise MattaError(f"--order {settings.order!r} is not known: auto, activation, magnitude or none.")
    checkpoint.refuse_existing(out / "ta", overwrite)
    source = models.open_source(settings.source, model_config=model_config, allow_pickle=allow_pickle)
    source = replace(source, example=settings.example, task=settings.task)
    if settings.weights:
        if not source.builder:
            raise MattaError(f"--weights belongs to a function that builds the model (pkg.mod:build), not to {source.name!r}.")
        source = replace(source, tensors=models.open_weights(settings.weights, allow_pickle=allow_pickle))
    adapter = registry.adapter(settings.adapter) if settings.adapter else registry.detect(source)
    base = adapter.load(source)
    task = registry.task(adapter.task, recipe)
    base_axes = adapter.axes(base)
    notes = list(adapter.notes)
    if not base_axes:
        raise MattaError(f"{source.name}: the adapter {adapter.name!r} found nothing in this model that can be nested.")

    settings_left = _settings_file(recipe, adapter.task)
    may_write = _may_write_settings(out)
    with checkpoint.atomic_folder(out / "ta", overwrite=overwrite) as folder:
        if source.folder is not None:
            models.copy_companions(source.folder, folder)
        if settings.tokenizer:
            tokenizer = models.open_source(settings.tokenizer)
            if tokenizer.folder is None or not models.copy_companions(tokenizer.folder, folder):
                raise MattaError(f"--tokenizer {settings.tokenizer!r} holds no tokenizer files.")

        work = adapter.build(base, {})
        work.load_state_dict(base.state_dict())
        work.eval()
        sizes = {axis.name: axis.size for axis in base_axes}
        ta = TA(adapter, work, base_axes, dict(sizes), {"multiple": settings.multiple})
        batches = _probe(task, ta, folder)
        order = settings.order
        if order == "auto":
            order = "activation" if batches else "magnitude"
        if order == "activation" and not batches:
            raise MattaError("--order activation needs calibration data: pass --data, or choose --order magnitude.")
        if order != "none":
            if order == "activation":
                scores = ranking.activation(work, base_axes, batches or [], task.forward)
            else:
                scores = ranking.magnitude(work, base_axes)
            supernet.reorder(work, base_axes, {name: ranking.order(s) for name, s in scores.items()})

        stuck = [axis.name for axis in base_axes if not supernet.growable(work, axis)]
        for axis in base_axes:
            if axis.name not in stuck and settings.expand > 1:
                sizes[axis.name] = max(axis.size, supernet.scaled(axis.size, settings.expand, axis.step, settings.multiple))
        if stuck and settings.expand > 1:
            notes.append(f"{', '.join(stuck)} cannot grow without changing the function (a norm spans it): left at base size.")
        ta.model = supernet.grow(adapter, work, base_axes, sizes, settings.seed)
        ta.axes = adapter.axes(ta.model)

        difference = _difference(task, base, ta.at(1.0), batches or [task.example(base)])
        if difference > settings.tolerance:
            raise MattaError(
                f"Width 1.0 of the TA differs from {source.name} by {difference:.1e} (relative), more than the tolerance "
                f"{settings.tolerance:.0e}: the adapter {adapter.name!r} does not describe this model right."
            )
        adapter.save(ta.model, folder)
        adapter.export(ta.model, folder)
        lineage = {"source": source.name, "digest": checkpoint.digest(folder)}
        checkpoint.write_card(
            folder, adapter, ta.axes, ta.base, lineage,
            settings=checkpoint.text_digest(settings_left),
            expand=settings.expand, multiple=settings.multiple, order=order, difference=difference,
            **({"example": settings.example} if settings.example else {}),
        )  # fmt: skip
        ta.card = checkpoint.read_card(folder)
        checkpoint.atomic_write(folder / "recipe.toml", recipe.text(("convert", "data")))
        checkpoint.atomic_write(folder / "README.md", _readme(ta, source.name, difference))
    stock = {
        width: is_stock(ta, ta.sizes(width)) for width in sorted({*recipe.export.widths, 1.0, ta.widest}) if width <= ta.widest
    }
    if may_write:
        checkpoint.atomic_write(out / "matta.toml", settings_left)
    else:
        notes.append(f"{out / 'matta.toml'} has been edited and stays as it is.")
    return Converted(ta, out / "ta", order, difference, stock, notes)


def is_stock(ta: TA, sizes: Mapping[str, int]) -> bool:
    """Whether the stock library can load a Student of these sizes: it has a loader, which may want kinds of axes uniform."""
    uniform = all(len(set(found)) == 1 for found in supernet.kinds(sizes).values())
    return bool(ta.adapter.loader) and (uniform or ta.adapter.per_layer)


def _readme(ta: TA, source: str, difference: float) -> str:
    how = ta.adapter.loader.format(folder=repr("this/folder")) or "matta_cli.load_student('this/folder')"
    return (
        f"# Teaching Assistant of {source}\n\nMade by `matta convert` with the adapter `{ta.adapter.name}`: width 1.0 of its "
        f"nested weights is the base (largest relative difference {difference:.1e}); the whole is width {ta.widest:g}.\n\n"
        f"It loads as an ordinary model, `{how}`, and `matta.json` holds its axes.\n"
    )


def _settings_file(recipe: Recipe, task: str) -> str:
    """The text of ``matta.toml``, ready to edit."""
    left = Recipe()
    left.data, left.distill, left.export = copy.deepcopy(recipe.data), recipe.distill, recipe.export
    if task == "causal_lm" and not left.data.train:
        left.data.train, left.data.config = "Salesforce/wikitext", "wikitext-103-raw-v1"
    header = (
        "Settings of `matta distill` and `matta export` for this folder. Flags come first, then ./matta.toml, then this file."
    )
    return left.text(("data", "distill", "export"), header=header)


def _may_write_settings(out: Path) -> bool:
    """Whether ``out/matta.toml`` is missing, or still as ``convert`` left it: one that was edited is the user's own."""
    path = out / "matta.toml"
    if not path.exists():
        return True
    try:
        left = checkpoint.read_card(out / "ta").get("settings")
    except MattaError:
        return False
    return left == checkpoint.text_digest(path.read_text(encoding="utf-8"))
