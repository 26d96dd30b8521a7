"""convert: from a base to a TA.

Each axis is ordered by importance and grown; that width 1.0 is still the base is proven.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from matta_cli.adapter import PROGRAM, Adapter, Axis, Source
from matta_cli.conversion.inspect import menu
from matta_cli.conversion.ordering import importance
from matta_cli.conversion.proof import Proof, largest_difference, probe, prove
from matta_cli.conversion.target import Target, Targets
from matta_cli.conversion.trim import trim
from matta_cli.errors import MattaError
from matta_cli.files import atomic
from matta_cli.files.card import read_card, write_card
from matta_cli.files.workspace import Workspace
from matta_cli.measure.kept import floor
from matta_cli.models import plugins
from matta_cli.models.dtype import stored_dtype
from matta_cli.models.load import opened, own_memory
from matta_cli.models.save import save_model, weights_digest
from matta_cli.models.source import open_source, open_weights
from matta_cli.models.ta import IMPORTANCE, TA
from matta_cli.models.tokenizer import copy_companions, two_formats, two_templates
from matta_cli.nested import grow
from matta_cli.nested.importance import order as importance_order
from matta_cli.nested.sizes import depth, full_sizes, grown_sizes, kinds, nested_axes, scaled
from matta_cli.progress import Listener, Progress, quiet
from matta_cli.report.render import escaped
from matta_cli.settings.budget import Budget, asked
from matta_cli.settings.checks import check
from matta_cli.settings.convert import ConvertSettings
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import Task
from matta_cli.tasks.task import task as open_task
from matta_cli.trust import is_code


@dataclass
class Converted:
    """What ``convert`` did: the TA, its folder, and what a person should know.

    menu: what each of the widths comes to, see ``inspect.menu``. floor: what none goes below, in
    a sentence.
    """

    ta: TA
    folder: Path
    order: str
    difference: float
    widths: list[float]
    menu: list[dict[str, Any]]
    floor: str
    notes: list[str]


def parse_sizes(lines: Sequence[str], kinds: Sequence[str]) -> dict[str, dict[str, float]]:
    """``0.5: depth=0.75 mlp=0.5`` as shares by width and kind of axis.

    Raises ``MattaError`` for anything else.
    """
    by_width: dict[str, dict[str, float]] = {}
    for line in lines:
        text, _, rest = line.partition(":")
        try:
            width, parts = float(text), [part.partition("=") for part in rest.split()]
            shares = {name: float(share) for name, _, share in parts}
        except ValueError:
            hint = "write it as '0.5: depth=0.75 mlp=0.5'"
            raise MattaError(f"convert.sizes {line!r} is not understood: {hint}.") from None
        unknown = [name for name in shares if name not in kinds]
        if unknown:
            nested = f"{unknown[0]!r} is not nested here; {', '.join(kinds)} are"
            raise MattaError(f"convert.sizes {line!r}: {nested}.")
        if width >= 1 or not all(0 < share <= 1 for share in (width, *shares.values())):
            limits = "a width is below 1, a share above 0 and up to 1"
            raise MattaError(f"convert.sizes {line!r} is not possible: {limits}.")
        by_width[f"{width:g}"] = shares
    return by_width


def convert(
    recipe: Recipe,
    out: Path,
    *,
    overwrite: bool = False,
    allow_pickle: bool = False,
    model_config: Path | None = None,
    listen: Listener = quiet,
) -> Converted:
    """Grow ``recipe.convert.source`` into a TA in ``out/ta`` whose width 1.0 is the source.

    Raises ``MattaError`` where the source cannot be opened, no adapter fits it, or the difference
    at width 1.0 exceeds ``recipe.convert.tolerance``; nothing is left behind then.
    """
    settings = recipe.convert
    if not settings.source:
        what = "pass a folder, a hub id, a timm name or a state dict to `matta convert`"
        raise MattaError(f"No model is named: {what}.")
    check(settings)
    space = Workspace(out)
    space.mend()
    atomic.refuse_existing(space.ta, overwrite)
    # a run must not begin on a TA that is being replaced
    alone = space.alone() if space.ta.exists() or space.run.exists() else nullcontext()
    with alone, tempfile.TemporaryDirectory(prefix="matta-") as scratch:
        source = _source(settings, model_config, allow_pickle)
        return _convert(recipe, space, source, Path(scratch), overwrite, listen)


def _source(settings: ConvertSettings, model_config: Path | None, allow_pickle: bool) -> Source:
    source = open_source(settings.source, model_config=model_config, allow_pickle=allow_pickle)
    source = replace(source, example=settings.example, task=settings.task)
    source = replace(source, drop_head=settings.drop_head)
    if not settings.weights:
        return source
    if not source.builder:
        owner = "a function that builds the model (pkg.mod:build)"
        raise MattaError(f"--weights belongs to {owner}, not to {source.name!r}.")
    return replace(source, tensors=open_weights(settings.weights, allow_pickle=allow_pickle))


@dataclass
class _Base:
    """A source's adapter and model, what is left of the source, in which numbers it is stored,
    notes, and of how many tokens how many were kept, if not all.
    """

    adapter: Adapter
    model: nn.Module
    source: Source
    dtype: str
    notes: list[str]
    tokens: list[int]


def _base(recipe: Recipe, source: Source, scratch: Path) -> _Base:
    """scratch: an empty folder for the model's other files, where they change."""
    settings = recipe.convert
    named = plugins.adapter(settings.adapter) if settings.adapter else None
    source = plugins.bare(source, [named] if named else plugins.adapters().values())
    adapter = named or plugins.detect(source)
    base, stored = opened(adapter, source), stored_dtype(source)
    # the base is made into the TA: two copies of it are one too many
    source = replace(source, tensors=None, module=None)
    own_memory(base)
    notes = [*source.notes, *([] if named else plugins.problems()), *adapter.notes]
    if not settings.trim_vocab:
        return _Base(adapter, base, source, stored, notes, [])
    done = trim(open_task(adapter.task, recipe), adapter, base, source, scratch)
    notes.append(done.note)
    return _Base(adapter, base, done.source, stored, notes, [done.kept, done.size])


def _convert(
    recipe: Recipe,
    space: Workspace,
    source: Source,
    scratch: Path,
    overwrite: bool,
    listen: Listener,
) -> Converted:
    settings, name = recipe.convert, source.name
    made = _base(recipe, source, scratch)
    adapter, base, source, notes = made.adapter, made.model, made.source, made.notes
    axes = nested_axes(adapter, base, settings.axes)
    if not axes:
        what = f"the adapter {adapter.name!r} found nothing in this model that can be nested"
        raise MattaError(f"{name}: {what}.")
    # the adapter's load says which task the model has, where it knows several
    task = open_task(adapter.task, recipe)
    target = None
    if budgets := asked(settings):
        target = _target(Targets(task, adapter, base, settings, made.dtype), budgets, listen)
        recipe = _aimed(recipe, target)
        settings = recipe.convert
        axes = nested_axes(adapter, base, settings.axes)
    settings_left = _settings_file(recipe, adapter.task)
    may_write = _may_write_settings(space, settings_left)
    notes += target.told(None if may_write else space.settings) if target else []
    if settings.drop_head and not adapter.dropped:
        notes.append(f"--drop-head left nothing out: {name} has no head besides.")
    card = _card(settings, axes, source) | {"dtype": made.dtype, "tokens": made.tokens}
    card["weights"] = weights_digest(base)  # by which a Teacher that is the base is known
    ta = TA(adapter, base, axes, full_sizes(axes), card)
    own = settings.tokenizer or name  # what the files beside the weights are of
    with atomic.atomic_folder(space.ta, overwrite=overwrite) as folder, atomic.called(own, folder):
        _copy_companions(source, settings, folder)
        home = source.beside or folder
        notes += filter(None, [two_formats(home, own), two_templates(home, own)])
        told: list[str] = []  # of the data, which is none of the TA's
        batches = probe(task, ta, folder, told)
        if batches is None and recipe.data.train:
            unread = f"{recipe.data.train!r} was not read"
            notes.append(f"{unread}: {name} brings no tokenizer; --tokenizer names one.")
        order = _order(settings.order, bool(batches))
        # from here on the base itself is made into the TA
        proof = prove(task, base, batches or [task.example(base)])
        scores = importance(task, adapter, base, axes, order, batches or [], listen)
        ranked = _grow(ta, settings, scores, notes)
        difference = _proven(task, ta, proof, settings.tolerance, name)
        ta.card = {**card, "order": order, "difference": difference}
        _save(ta, recipe, name, ranked, settings_left, folder, notes)
        atomic.refuse_existing(space.ta, overwrite)  # another process may have been faster
        if may_write:  # before the TA appears: a kill here leaves no TA without its settings
            atomic.atomic_write(space.settings, settings_left)
    _remark(space, ta, may_write, notes)
    widths = sorted({*(w for w in recipe.export.widths if w <= ta.widest), 1.0, ta.widest})
    known = menu(task, ta, widths), floor(ta).sentence
    return Converted(ta, space.ta, order, difference, widths, *known, [*notes, *told])


def _proven(task: Task, ta: TA, proof: Proof, tolerance: float, name: str) -> float:
    """How far width 1.0 is from the base. Raises ``MattaError`` where it is another model."""
    difference = largest_difference(task, ta.student(1.0).view(), proof)
    if difference > tolerance:
        raise MattaError(
            f"Width 1.0 of the TA differs from {name} by {difference:.1e} (relative), more than "
            f"the tolerance {tolerance:.0e}: the adapter {ta.adapter.name!r} does not describe "
            "this model right."
        )
    return difference


def _card(settings: ConvertSettings, axes: Sequence[Axis], source: Source) -> dict[str, Any]:
    """What the TA's card says of how it is made, before it is.

    opened_with: the flags without which its source alone does not open.
    """
    given = {"--config": source.config, "--weights": settings.weights}
    return {
        "multiple": settings.multiple,
        "sizes": parse_sizes(settings.sizes, list(kinds(full_sizes(axes)))),
        "opened_with": [flag for flag, value in given.items() if value],
    }


def _target(targets: Targets, budgets: Sequence[Budget], listen: Listener) -> Target:
    """The axes and widths that budgets ask for."""
    if any("macs" in budget.names for budget in budgets):
        listen(Progress(message="Counting MACs, by a few forwards for each choice of axes."))
    return targets.choose(budgets)


def _aimed(recipe: Recipe, target: Target) -> Recipe:
    """The recipe with the axes and widths of a target, which distill trains and export exports."""
    aimed = copy.deepcopy(recipe)
    aimed.convert.axes = target.axes
    aimed.distill.widths, aimed.export.widths = target.widths, target.widths
    return aimed


def _copy_companions(source: Source, settings: ConvertSettings, folder: Path) -> None:
    if source.beside is not None:
        copy_companions(source.beside, folder)
    if settings.tokenizer and not settings.trim_vocab:  # which is beside the source by then
        tokenizer = open_source(settings.tokenizer)
        if tokenizer.beside is None or not copy_companions(tokenizer.beside, folder):
            raise MattaError(f"--tokenizer {settings.tokenizer!r} holds no tokenizer files.")


def _order(wanted: str, calibrated: bool) -> str:
    """The order of units that a setting comes to, with calibration data or without."""
    if wanted == "auto":
        return "activation" if calibrated else "magnitude"
    if wanted not in ("magnitude", "none", "prefix") and not calibrated:
        hint = "pass --data, or choose --order magnitude"
        raise MattaError(f"--order {wanted} needs calibration data: {hint}.")
    return wanted


def _grow(
    ta: TA, settings: ConvertSettings, scores: Mapping[str, Tensor], notes: list[str]
) -> dict[str, Tensor]:
    """Order the units of a TA that is still the base, and grow it; empties the base.

    Returns the scores of each axis in the new order; those of layers by number.
    """
    base, axes = ta.model, ta.axes
    orders, ranked = {}, {}
    for axis in (axis for axis in axes if axis.name in scores):
        own = scores[axis.name]
        orders[axis.name] = importance_order(own, layers=bool(axis.layers))
        ranked[axis.name] = own if axis.layers else own[orders[axis.name]]
    grow.reorder(base, axes, orders)

    sizes = full_sizes(axes)
    stuck = [axis.name for axis in axes if not grow.growable(base, axis)]
    for axis in axes:
        if axis.name not in stuck and settings.expand > 1:
            size = scaled(axis.size, settings.expand, axis.step, settings.multiple)
            sizes[axis.name] = max(axis.size, size)
    if stuck and settings.expand > 1:
        why = "cannot grow without changing the function (a norm spans it): left at base size"
        notes.append(f"{', '.join(stuck)} {why}.")
    ta.model = grow.grow(ta.adapter, base, axes, sizes, settings.seed, consume=True)
    ta.axes = nested_axes(ta.adapter, ta.model, settings.axes)
    layers = depth(ta.axes)
    if layers is not None:
        ta.base = grown_sizes(axes, ta.base, layers.size)
        count = ta.base[layers.name]
        first = orders[layers.name].tolist() if layers.name in orders else range(count)
        kept = (*first, *range(count, layers.size))  # what has grown comes last
        ta.axes = [replace(axis, order=kept) if axis is layers else axis for axis in ta.axes]
    return ranked


def _save(
    ta: TA,
    recipe: Recipe,
    source: str,
    ranked: dict[str, Tensor],
    settings_left: str,
    folder: Path,
    notes: list[str],
) -> None:
    """Write the TA, its card, the scores of its units and a README into ``folder``."""
    reason = save_model(ta.adapter, ta.model, folder)
    if reason:
        notes.append(f"The TA is saved in matta's own format: {reason}.")
    (folder / IMPORTANCE).parent.mkdir()
    save_file(ranked, str(folder / IMPORTANCE))
    more = {"settings": atomic.text_digest(settings_left), "expand": recipe.convert.expand}
    more |= ta.card
    example = ta.adapter.example or recipe.convert.example
    if example and not is_code(example):  # no folder names a function to call
        more["example"] = example
    lineage: dict[str, Any] = {"source": source, "digest": atomic.digest(folder)}
    lineage |= {"dropped": ta.adapter.dropped, "tokens": more.pop("tokens")}
    lineage["weights"] = more.pop("weights")
    write_card(folder, ta.adapter, ta.axes, ta.base, lineage, **more)
    ta.card = read_card(folder)
    atomic.atomic_write(folder / "recipe.toml", recipe.text(("convert", "data")))
    atomic.atomic_write(folder / "README.md", _readme(ta))


def _remark(space: Workspace, ta: TA, wrote_settings: bool, notes: list[str]) -> None:
    """Note what else lies in the folder and does not belong to this TA, or was left alone."""
    last, _ = space.sound()
    digest = ta.card["lineage"]["digest"]
    if last is not None and read_card(last)["lineage"]["digest"] != digest:
        again = "distill again with --overwrite"
        notes.append(f"The run in {space.run} trained another TA than this one: {again}.")
    if not wrote_settings:
        notes.append(f"{space.settings} has been edited and stays as it is.")


def _readme(ta: TA) -> str:
    source, difference = ta.card["lineage"]["source"], ta.card["difference"]
    loader = "matta_cli.load_student({folder})"
    if ta.adapter.loader != PROGRAM and ta.student(full_sizes(ta.axes)).stock:
        loader = ta.adapter.loader  # a program is written of Students alone
    return (
        f"# Teaching Assistant of {escaped(source)}\n\n"
        f"Made by `matta convert` with the adapter `{ta.adapter.name}`: width 1.0 of its nested "
        f"weights is the base (largest relative difference {difference:.1e}); the whole is width "
        f"{ta.widest:g}.\n\n"
        f"It loads with `{loader.format(folder=repr('this/folder'))}`, and `matta.json` holds its "
        "axes.\n"
    )


def _settings_file(recipe: Recipe, task: str) -> str:
    """The text of ``matta.toml``, ready to edit."""
    left = Recipe()
    left.data, left.distill, left.export = copy.deepcopy(recipe.data), recipe.distill, recipe.export
    if task == "causal_lm" and not left.data.train:
        left.data.train, left.data.config = "Salesforce/wikitext", "wikitext-103-raw-v1"
    header = (
        "Settings of `matta distill` and `matta export` for this folder. "
        "Flags come first, then ./matta.toml, then this file. What is the default is a comment."
    )
    return left.text(("data", "distill", "export"), header=header, to_edit=True)


def _may_write_settings(space: Workspace, settings_left: str) -> bool:
    """Whether ``matta.toml`` is missing, still as ``convert`` left it, or what it leaves now.

    One that was edited is the user's own.
    """
    if not space.settings.exists():
        return True
    there = atomic.file_digest(space.settings)
    try:
        left = read_card(space.ta).get("settings")
    except MattaError:
        left = ""
    return there in (left, atomic.text_digest(settings_left))
