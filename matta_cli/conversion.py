"""convert: base -> TA. Order each axis by importance, grow it, prove that width 1.0 is still the base, save."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from matta_cli import checkpoint, models, ranking, registry, supernet
from matta_cli.adapter import Adapter, Axis, Sizes
from matta_cli.errors import MattaError
from matta_cli.losses import Logits, Term
from matta_cli.progress import Listener, Progress, quiet
from matta_cli.recipe import Recipe
from matta_cli.tasks import Task

CALIBRATION_BATCHES = 8
PROOF_BYTES = 1 << 26  # of the base's outputs, which are kept to compare
REMOVAL_BYTES = 1 << 28  # of the base's outputs, against which removals are measured
REMOVED = 128  # groups of an axis, each of which costs a forward
IMPORTANCE = "importance/scores.safetensors"  # in a TA folder: the scores of each axis as converted, the first unit's first
ORDERS = ("auto", "activation", "taylor", "hessian", "magnitude", "none")


@dataclass
class TA:
    """A Teaching Assistant in memory: the grown model, its axes, and the base's sizes in them."""

    adapter: Adapter
    model: nn.Module
    axes: list[Axis]
    base: dict[str, int]
    card: dict[str, Any]
    copies: dict[float, nn.Module] = field(default_factory=dict)  # Students that share no weights, in the ablation of that

    def sizes(self, width: float | Sizes) -> dict[str, int]:
        """The sizes of a width (sizes are their own). Raises ``MattaError`` for a width that is not in (0, widest]."""
        if isinstance(width, Mapping):
            return dict(width)
        if not 0 < width <= self.widest:
            raise MattaError(f"Width {width:g} is not possible: this TA holds widths above 0 and up to {self.widest:g}.")
        shares = self.card.get("sizes", {}).get(f"{width:g}")
        return supernet.sizes_at(self.axes, self.base, width, self.card.get("multiple", 1), shares)

    @property
    def widest(self) -> float:
        """The TA's own width: the most that any axis grew."""
        return max((axis.size / self.base[axis.name] for axis in self.axes), default=1.0)

    def at(self, width: float | Sizes, *, head: str = "", live: bool = False) -> Any:
        """The Student of a width, or of sizes, run on views of the TA's tensors: no copy. ``StudentView`` has the rest."""
        if not isinstance(width, Mapping) and width in self.copies:
            return self.copies[width]
        return supernet.StudentView(self.adapter, self.model, self.axes, self.sizes(width), head=head, live=live)

    def student(self, width: float | Sizes) -> nn.Module:
        """The Student of a width, or of sizes, as a dense module of its own."""
        if not isinstance(width, Mapping) and width in self.copies:
            return copy.deepcopy(self.copies[width]).eval()
        return supernet.materialize(self.adapter, self.model, self.axes, self.sizes(width))

    def save(
        self, width: float | Sizes, folder: Path, buffers: Mapping[str, Tensor], *, own: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> str:  # fmt: skip
        """Write the Student of a width, or of sizes, as ``save_model`` does. ``buffers``: BatchNorm statistics of its own."""
        if not isinstance(width, Mapping) and width in self.copies:
            return models.save_model(self.adapter, copy.deepcopy(self.copies[width]).to(dtype), folder, own=own)
        sizes = self.sizes(width)
        view = supernet.StudentView(self.adapter, self.model, self.axes, sizes)
        student = self.adapter.build(self.model, supernet.own_sizes(self.axes, sizes)).to(dtype)
        return models.save_model(self.adapter, student, folder, {**view.state(), **buffers}, own=own)


def ta_folder(folder: str | Path) -> Path:
    """Where the TA lies that a folder stands for: itself, or for an output folder the last checkpoint, else its ``ta``."""
    folder = Path(folder)
    if not (folder / "matta.json").exists() and (folder / "ta" / "matta.json").exists():
        return checkpoint.current_ta(folder)
    return folder


def load_ta(folder: str | Path) -> TA:
    """The TA in a folder: ``matta-out/ta``, a checkpoint of a run, or an output folder (trained, if it has been)."""
    folder = ta_folder(folder)
    if not folder.is_dir():
        raise MattaError(f"There is no TA folder {str(folder)!r}: make one with `matta convert`.")
    card = checkpoint.read_card(folder)
    adapter = registry.adapter(card["adapter"], folder)
    model = adapter.load(models.open_source(f"local-dir:{folder}"))
    axes: list[Axis] = card["axes"]
    found = {axis.name: axis.size for axis in adapter.axes(model)}
    if any(found.get(axis.name) != axis.size for axis in axes):
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
    return registry.adapter(card["adapter"], folder).load(models.open_source(f"local-dir:{folder}"))


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
    """``0.5: depth=0.75 mlp=0.5`` as shares by width and kind of axis. Raises ``MattaError`` for anything else."""
    found: dict[str, dict[str, float]] = {}
    for line in lines:
        try:
            width, _, rest = line.partition(":")
            shares = {name: float(value) for name, _, value in (part.partition("=") for part in rest.split())}
            key = f"{float(width):g}"
        except ValueError:
            raise MattaError(f"convert.sizes {line!r} is not understood: write it as '0.5: depth=0.75 mlp=0.5'.") from None
        unknown = [name for name in shares if name not in kinds]
        if unknown:
            raise MattaError(f"convert.sizes {line!r}: {unknown[0]!r} is not nested here; {', '.join(kinds)} are.")
        if float(width) >= 1 or not all(0 < share <= 1 for share in (float(width), *shares.values())):
            raise MattaError(f"convert.sizes {line!r} is not possible: a width is below 1, a share above 0 and up to 1.")
        found[key] = shares
    return found


def importance(
    task: Task, adapter: Adapter, model: nn.Module, axes: Sequence[Axis], order: str, batches: Sequence[dict[str, Tensor]],
    listen: Listener = quiet,
) -> dict[str, Tensor]:  # fmt: skip
    """The score of each group of units by one of ``ORDERS``: axis -> float32 [size / step]; empty for ``none``.

    ``activation`` says little of layers, and of channels that a norm spans, since all of them change when one goes: those are
    scored by what the outputs lose without them, where they are ``REMOVED`` groups or fewer.
    """
    if order == "none":
        return {}
    if order == "magnitude":
        return ranking.magnitude(model, axes)
    if order == "activation":
        some = [axis for axis in axes if axis.layers or not supernet.growable(model, axis)]
        some = [axis for axis in some if axis.size // axis.step <= REMOVED]
        rest = [axis for axis in axes if axis not in some]
        few = _few(task, model, batches, REMOVAL_BYTES) if some else []
        steps = (len(batches) if rest else 0) + sum(axis.size // axis.step for axis in some)
        started, done = time.perf_counter(), 0

        def tick() -> None:
            nonlocal done
            done += 1
            listen(Progress(done, steps, per_second=done / (time.perf_counter() - started), unit="forwards"))

        def counted(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            tick()
            return task.forward(model, batch)

        found = ranking.activation(model, rest, batches, counted, task.present) if rest else {}
        return found | ranking.removal(adapter, model, axes, some, few, task.forward, task.distill_loss, tick)

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return task.objective(Logits(task.forward(model, batch)), batch, [Term("truth", 1.0)])[0]

    return ranking.by_gradient(model, axes, batches, loss, second=order == "hessian")


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


Proof = list[tuple[dict[str, Tensor], Tensor]]  # inputs, and what the base makes of them


@torch.no_grad()
def _proof(task: Task, base: nn.Module, batches: Sequence[dict[str, Tensor]]) -> Proof:
    """Examples of the batches with the base's outputs: as many as ``PROOF_BYTES`` of outputs hold, one at least."""
    found: Proof = []
    for batch in _few(task, base, batches, PROOF_BYTES):
        outputs = task.forward(base, batch).clone()
        if not torch.isfinite(outputs).all():
            raise MattaError("The model's outputs are not finite: its weights hold NaN or infinity.")
        found.append((batch, outputs))
    return found


@torch.no_grad()
def _few(task: Task, model: nn.Module, batches: Sequence[dict[str, Tensor]], room: float) -> list[dict[str, Tensor]]:
    """As many examples of the batches as have ``room`` bytes of outputs, one at least."""
    found = []
    each = task.forward(model, {name: tensor[:1] for name, tensor in batches[0].items()}).numel() * 4
    for batch in batches:
        count = max(1, min(len(next(iter(batch.values()))), int(room / each)))
        found.append({name: tensor[:count] for name, tensor in batch.items()})
        room -= count * each
        if room < each:
            break
    return found


@torch.no_grad()
def _difference(task: Task, student: Any, proof: Proof) -> float:
    """The largest difference of a model's outputs from the base's, relative to the largest output of the base."""
    worst, scale = 0.0, 1e-12
    for batch, expected in proof:
        worst = max(worst, (expected - task.forward(student, dict(batch))).abs().max().item())
        scale = max(scale, expected.abs().max().item())
    return worst / scale


def convert(
    recipe: Recipe, out: Path, *, overwrite: bool = False, allow_pickle: bool = False, model_config: Path | None = None,
    listen: Listener = quiet,
) -> Converted:  # fmt: skip
    """Grow ``recipe.convert.source`` into a TA in ``out/ta`` whose width 1.0 gives the source's outputs.

    Raises ``MattaError`` where the source cannot be opened, no adapter fits it, or the difference at width 1.0
    exceeds ``recipe.convert.tolerance``; nothing is left behind then.
    """
    settings = recipe.convert
    if not settings.source:
        raise MattaError("No model is named: pass a folder, a hub id, a timm name or a state dict to `matta convert`.")
    if not 1.0 <= settings.expand <= 64:
        raise MattaError(f"--expand {settings.expand:g} is not possible: it is the TA's width, from 1.0 to 64.")
    if settings.order not in ORDERS:
        raise MattaError(f"--order {settings.order!r} is not known: {', '.join(ORDERS)}.")
    checkpoint.refuse_existing(out / "ta", overwrite)
    with checkpoint.alone(out, checkpoint.TRAINING) if (out / "run").exists() else nullcontext():
        return _convert(recipe, out, overwrite, allow_pickle, model_config, listen)


def _convert(
    recipe: Recipe, out: Path, overwrite: bool, allow_pickle: bool, model_config: Path | None, listen: Listener
) -> Converted:
    settings = recipe.convert
    source = models.open_source(settings.source, model_config=model_config, allow_pickle=allow_pickle)
    source = replace(source, example=settings.example, task=settings.task)
    if settings.weights:
        if not source.builder:
            raise MattaError(f"--weights belongs to a function that builds the model (pkg.mod:build), not to {source.name!r}.")
        source = replace(source, tensors=models.open_weights(settings.weights, allow_pickle=allow_pickle))
    adapter = registry.adapter(settings.adapter) if settings.adapter else registry.detect(source)
    base = adapter.load(source)
    source = replace(source, tensors=None, module=None)  # the base is made into the TA: two copies of it are one too many
    models.own_memory(base)
    base_axes = supernet.nested_axes(adapter, base, settings.axes)  # a task of its own may come from what it asks for
    task = registry.task(adapter.task, recipe)
    notes = [*([] if settings.adapter else registry.problems()), *adapter.notes]
    if not base_axes:
        raise MattaError(f"{source.name}: the adapter {adapter.name!r} found nothing in this model that can be nested.")

    settings_left = _settings_file(recipe, adapter.task)
    may_write = _may_write_settings(out)
    with checkpoint.atomic_folder(out / "ta", overwrite=overwrite) as folder:
        if source.beside is not None:
            models.copy_companions(source.beside, folder)
        if settings.tokenizer:
            tokenizer = models.open_source(settings.tokenizer)
            if tokenizer.beside is None or not models.copy_companions(tokenizer.beside, folder):
                raise MattaError(f"--tokenizer {settings.tokenizer!r} holds no tokenizer files.")

        sizes = supernet.full_sizes(base_axes)
        shares = parse_sizes(settings.sizes, list(supernet.kinds(sizes)))
        ta = TA(adapter, base, base_axes, dict(sizes), {"multiple": settings.multiple, "sizes": shares})
        batches = _probe(task, ta, folder)
        if batches is None and recipe.data.train:
            notes.append(f"{recipe.data.train!r} was not read: {source.name} brings no tokenizer; --tokenizer names one.")
        order = settings.order
        if order == "auto":
            order = "activation" if batches else "magnitude"
        if order not in ("magnitude", "none") and not batches:
            raise MattaError(f"--order {order} needs calibration data: pass --data, or choose --order magnitude.")
        proof = _proof(task, base, batches or [task.example(base)])  # from here on the base itself is made into the TA
        scores = importance(task, adapter, base, base_axes, order, batches or [], listen)
        orders = {axis.name: ranking.order(scores[axis.name], layers=bool(axis.layers)) for axis in base_axes if scores}
        supernet.reorder(base, base_axes, orders)
        ranked = {axis.name: scores[axis.name] if axis.layers else scores[axis.name][orders[axis.name]]
                  for axis in base_axes if scores}  # fmt: skip

        stuck = [axis.name for axis in base_axes if not supernet.growable(base, axis)]
        for axis in base_axes:
            if axis.name not in stuck and settings.expand > 1:
                sizes[axis.name] = max(axis.size, supernet.scaled(axis.size, settings.expand, axis.step, settings.multiple))
        if stuck and settings.expand > 1:
            notes.append(f"{', '.join(stuck)} cannot grow without changing the function (a norm spans it): left at base size.")
        ta.model = supernet.grow(adapter, base, base_axes, sizes, settings.seed, consume=True)
        ta.axes = supernet.nested_axes(adapter, ta.model, settings.axes)
        depth = supernet.depth(ta.axes)
        if depth is not None:
            ta.base = supernet.grown_sizes(base_axes, ta.base, depth.size)
            first = orders[depth.name].tolist() if orders else range(ta.base[depth.name])
            kept = (*first, *range(ta.base[depth.name], depth.size))  # what has grown comes last
            ta.axes = [replace(axis, order=kept) if axis is depth else axis for axis in ta.axes]

        difference = _difference(task, ta.at(1.0), proof)
        if difference > settings.tolerance:
            raise MattaError(
                f"Width 1.0 of the TA differs from {source.name} by {difference:.1e} (relative), more than the tolerance "
                f"{settings.tolerance:.0e}: the adapter {adapter.name!r} does not describe this model right."
            )
        reason = models.save_model(adapter, ta.model, folder)
        if reason:
            notes.append(f"The TA is saved in matta's own format: {reason}.")
        else:
            adapter.export(ta.model, folder)
        (folder / IMPORTANCE).parent.mkdir()
        save_file(ranked, str(folder / IMPORTANCE))
        lineage = {"source": source.name, "digest": checkpoint.digest(folder)}
        checkpoint.write_card(
            folder, adapter, ta.axes, ta.base, lineage,
            settings=checkpoint.text_digest(settings_left),
            expand=settings.expand, multiple=settings.multiple, sizes=shares, order=order, difference=difference,
            **({"example": settings.example} if settings.example else {}),
        )  # fmt: skip
        ta.card = checkpoint.read_card(folder)
        checkpoint.atomic_write(folder / "recipe.toml", recipe.text(("convert", "data")))
        checkpoint.atomic_write(folder / "README.md", _readme(ta, source.name, difference))
    widths = [width for width in sorted({*recipe.export.widths, 1.0, ta.widest}) if width <= ta.widest]
    last, _ = checkpoint.newest_sound(out / "run")
    if last is not None and checkpoint.read_card(last)["lineage"]["digest"] != lineage["digest"]:
        notes.append(f"The run in {out / 'run'} trained another TA than this one: distill again with --overwrite.")
    if may_write:
        checkpoint.atomic_write(out / "matta.toml", settings_left)
    else:
        notes.append(f"{out / 'matta.toml'} has been edited and stays as it is.")
    return Converted(ta, out / "ta", order, difference, widths, notes)


def unsupported(ta: TA, sizes: Sizes) -> str:
    """Why the stock library cannot load a Student of these sizes; empty where it can."""
    if not ta.adapter.loader:
        return f"the adapter {ta.adapter.name!r} has no stock library"
    with torch.device("meta"):
        return ta.adapter.unsupported(ta.adapter.build(ta.model, supernet.own_sizes(ta.axes, sizes)))


def is_stock(ta: TA, sizes: Sizes) -> bool:
    """Whether the stock library can load a Student of these sizes."""
    return not unsupported(ta, sizes)


def _readme(ta: TA, source: str, difference: float) -> str:
    stock = is_stock(ta, supernet.full_sizes(ta.axes))
    how = ta.adapter.loader.format(folder=repr("this/folder")) if stock else "matta_cli.load_student('this/folder')"
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
