"""convert: base -> TA. Order each axis by importance, grow it, prove that width 1.0 is still the
base, save.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save_file

from matta_cli.conversion.ordering import ORDERS, importance
from matta_cli.conversion.proof import largest_difference, probe, prove
from matta_cli.errors import MattaError
from matta_cli.files import atomic, card
from matta_cli.files.workspace import Workspace
from matta_cli.models import load, plugins, save
from matta_cli.models.source import open_source, open_weights
from matta_cli.models.ta import IMPORTANCE, TA
from matta_cli.models.tokenizer import copy_companions
from matta_cli.nested import grow
from matta_cli.nested import importance as nested_importance
from matta_cli.nested import sizes as nested_sizes
from matta_cli.nested.sizes import full_sizes, grown_sizes, nested_axes, scaled
from matta_cli.progress import Listener, quiet
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task


@dataclass
class Converted:
    """What ``convert`` did: the TA, its folder, and what a person should know."""

    ta: TA
    folder: Path
    order: str
    difference: float
    widths: list[float]
    notes: list[str]


def parse_sizes(lines: Sequence[str], kinds: Sequence[str]) -> dict[str, dict[str, float]]:
    """``0.5: depth=0.75 mlp=0.5`` as shares by width and kind of axis. Raises ``MattaError`` for
    anything else.
    """
    found: dict[str, dict[str, float]] = {}
    for line in lines:
        try:
            width, _, rest = line.partition(":")
            shares = {
                name: float(value)
                for name, _, value in (part.partition("=") for part in rest.split())
            }
            key = f"{float(width):g}"
        except ValueError:
            raise MattaError(
                f"convert.sizes {line!r} is not understood: write it as '0.5: depth=0.75 mlp=0.5'."
            ) from None
        unknown = [name for name in shares if name not in kinds]
        if unknown:
            raise MattaError(
                f"convert.sizes {line!r}: {unknown[0]!r} is not nested here; {', '.join(kinds)} are."
            )
        if float(width) >= 1 or not all(
            0 < share <= 1 for share in (float(width), *shares.values())
        ):
            raise MattaError(
                f"convert.sizes {line!r} is not possible: a width is below 1, a share above 0 and up to 1."
            )
        found[key] = shares
    return found


def convert(
    recipe: Recipe,
    out: Path,
    *,
    overwrite: bool = False,
    allow_pickle: bool = False,
    model_config: Path | None = None,
    listen: Listener = quiet,
) -> Converted:
    """Grow ``recipe.convert.source`` into a TA in ``out/ta`` whose width 1.0 gives the source's
    outputs.

    Raises ``MattaError`` where the source cannot be opened, no adapter fits it, or the difference
    at width 1.0 exceeds ``recipe.convert.tolerance``; nothing is left behind then.
    """
    settings = recipe.convert
    if not settings.source:
        raise MattaError(
            "No model is named: pass a folder, a hub id, a timm name or a state dict to `matta convert`."
        )
    if not 1.0 <= settings.expand <= 64:
        raise MattaError(
            f"--expand {settings.expand:g} is not possible: it is the TA's width, from 1.0 to 64."
        )
    if settings.order not in ORDERS:
        raise MattaError(f"--order {settings.order!r} is not known: {', '.join(ORDERS)}.")
    space = Workspace(out)
    atomic.refuse_existing(space.ta, overwrite)
    with space.alone() if space.run.exists() else nullcontext():
        return _convert(recipe, space, overwrite, allow_pickle, model_config, listen)


def _convert(
    recipe: Recipe,
    space: Workspace,
    overwrite: bool,
    allow_pickle: bool,
    model_config: Path | None,
    listen: Listener,
) -> Converted:
    settings = recipe.convert
    source = open_source(settings.source, model_config=model_config, allow_pickle=allow_pickle)
    source = replace(source, example=settings.example, task=settings.task)
    if settings.weights:
        if not source.builder:
            raise MattaError(
                f"--weights belongs to a function that builds the model (pkg.mod:build), not to {source.name!r}."
            )
        source = replace(source, tensors=open_weights(settings.weights, allow_pickle=allow_pickle))
    adapter = plugins.adapter(settings.adapter) if settings.adapter else plugins.detect(source)
    base = adapter.load(source)
    # the base is made into the TA: two copies of it are one too many
    source = replace(source, tensors=None, module=None)
    load.own_memory(base)
    # a task of its own may come from what it asks for
    base_axes = nested_axes(adapter, base, settings.axes)
    task = tasks_task.task(adapter.task, recipe)
    notes = [*([] if settings.adapter else plugins.problems()), *adapter.notes]
    if not base_axes:
        raise MattaError(
            f"{source.name}: the adapter {adapter.name!r} found nothing in this model that can be nested."
        )

    settings_left = _settings_file(recipe, adapter.task)
    may_write = _may_write_settings(space)
    with atomic.atomic_folder(space.ta, overwrite=overwrite) as folder:
        if source.beside is not None:
            copy_companions(source.beside, folder)
        if settings.tokenizer:
            tokenizer = open_source(settings.tokenizer)
            if tokenizer.beside is None or not copy_companions(tokenizer.beside, folder):
                raise MattaError(f"--tokenizer {settings.tokenizer!r} holds no tokenizer files.")

        sizes = full_sizes(base_axes)
        shares = parse_sizes(settings.sizes, list(nested_sizes.kinds(sizes)))
        ta = TA(
            adapter, base, base_axes, dict(sizes), {"multiple": settings.multiple, "sizes": shares}
        )
        batches = probe(task, ta, folder)
        if batches is None and recipe.data.train:
            notes.append(
                f"{recipe.data.train!r} was not read: {source.name} brings no tokenizer; --tokenizer names one."
            )
        order = settings.order
        if order == "auto":
            order = "activation" if batches else "magnitude"
        if order not in ("magnitude", "none") and not batches:
            raise MattaError(
                f"--order {order} needs calibration data: pass --data, or choose --order magnitude."
            )
        # from here on the base itself is made into the TA
        proof = prove(task, base, batches or [task.example(base)])
        scores = importance(task, adapter, base, base_axes, order, batches or [], listen)
        orders = {
            axis.name: nested_importance.order(scores[axis.name], layers=bool(axis.layers))
            for axis in base_axes
            if scores
        }
        grow.reorder(base, base_axes, orders)
        ranked = {
            axis.name: scores[axis.name] if axis.layers else scores[axis.name][orders[axis.name]]
            for axis in base_axes
            if scores
        }

        stuck = [axis.name for axis in base_axes if not grow.growable(base, axis)]
        for axis in base_axes:
            if axis.name not in stuck and settings.expand > 1:
                sizes[axis.name] = max(
                    axis.size, scaled(axis.size, settings.expand, axis.step, settings.multiple)
                )
        if stuck and settings.expand > 1:
            notes.append(
                f"{', '.join(stuck)} cannot grow without changing the function (a norm spans it): left at base size."
            )
        ta.model = grow.grow(adapter, base, base_axes, sizes, settings.seed, consume=True)
        ta.axes = nested_axes(adapter, ta.model, settings.axes)
        depth = nested_sizes.depth(ta.axes)
        if depth is not None:
            ta.base = grown_sizes(base_axes, ta.base, depth.size)
            first = orders[depth.name].tolist() if orders else range(ta.base[depth.name])
            kept = (*first, *range(ta.base[depth.name], depth.size))  # what has grown comes last
            ta.axes = [replace(axis, order=kept) if axis is depth else axis for axis in ta.axes]

        difference = largest_difference(task, ta.at(1.0), proof)
        if difference > settings.tolerance:
            raise MattaError(
                f"Width 1.0 of the TA differs from {source.name} by {difference:.1e} (relative), more than the tolerance "
                f"{settings.tolerance:.0e}: the adapter {adapter.name!r} does not describe this model right."
            )
        reason = save.save_model(adapter, ta.model, folder)
        if reason:
            notes.append(f"The TA is saved in matta's own format: {reason}.")
        else:
            adapter.export(ta.model, folder)
        (folder / IMPORTANCE).parent.mkdir()
        save_file(ranked, str(folder / IMPORTANCE))
        lineage = {"source": source.name, "digest": atomic.digest(folder)}
        card.write_card(
            folder,
            adapter,
            ta.axes,
            ta.base,
            lineage,
            settings=atomic.text_digest(settings_left),
            expand=settings.expand,
            multiple=settings.multiple,
            sizes=shares,
            order=order,
            difference=difference,
            **({"example": settings.example} if settings.example else {}),
        )
        ta.card = card.read_card(folder)
        atomic.atomic_write(folder / "recipe.toml", recipe.text(("convert", "data")))
        atomic.atomic_write(folder / "README.md", _readme(ta, source.name, difference))
    widths = [
        width for width in sorted({*recipe.export.widths, 1.0, ta.widest}) if width <= ta.widest
    ]
    last, _ = space.sound()
    if last is not None and card.read_card(last)["lineage"]["digest"] != lineage["digest"]:
        notes.append(
            f"The run in {space.run} trained another TA than this one: distill again with --overwrite."
        )
    if may_write:
        atomic.atomic_write(space.settings, settings_left)
    else:
        notes.append(f"{space.settings} has been edited and stays as it is.")
    return Converted(ta, space.ta, order, difference, widths, notes)


def _readme(ta: TA, source: str, difference: float) -> str:
    stock = ta.student(full_sizes(ta.axes)).stock
    how = (
        ta.adapter.loader.format(folder=repr("this/folder"))
        if stock
        else "matta_cli.load_student('this/folder')"
    )
    return (
        f"# Teaching Assistant of {source}\n\nMade by `matta convert` with the adapter `{ta.adapter.name}`: width 1.0 of its "
        f"nested weights is the base (largest relative difference {difference:.1e}); the whole is width {ta.widest:g}.\n\n"
        f"It loads with `{how}`, and `matta.json` holds its axes.\n"
    )


def _settings_file(recipe: Recipe, task: str) -> str:
    """The text of ``matta.toml``, ready to edit."""
    left = Recipe()
    left.data, left.distill, left.export = copy.deepcopy(recipe.data), recipe.distill, recipe.export
    if task == "causal_lm" and not left.data.train:
        left.data.train, left.data.config = "Salesforce/wikitext", "wikitext-103-raw-v1"
    header = "Settings of `matta distill` and `matta export` for this folder. Flags come first, then ./matta.toml, then this file."
    return left.text(("data", "distill", "export"), header=header)


def _may_write_settings(space: Workspace) -> bool:
    """Whether ``out/matta.toml`` is missing, or still as ``convert`` left it: one that was edited
    is the user's own.
    """
    path = space.settings
    if not path.exists():
        return True
    try:
        left = card.read_card(space.ta).get("settings")
    except MattaError:
        return False
    return left == atomic.text_digest(path.read_text(encoding="utf-8"))
