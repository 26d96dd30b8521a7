"""The contract as a test kit: ``check_adapter(adapter, model, inputs)`` in an author's own tests.

It checks, on a real model, everything that the engine relies on. Each failure is an
``AssertionError`` with a sentence that says what is wrong and what usually causes it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli.adapter import Adapter, Axis, Sizes, Slice, Source
from matta_cli.errors import MattaError
from matta_cli.models import save
from matta_cli.models.source import open_source
from matta_cli.nested import cut, grow
from matta_cli.nested.sizes import full_sizes, own_sizes
from matta_cli.nested.view import StudentView, materialize
from matta_cli.tasks.task import raw

Inputs = Mapping[str, Any] | Sequence[Any]
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def check_adapter(adapter: Adapter, model: nn.Module, inputs: Inputs) -> None:
    """Check ``adapter`` on ``model`` (float32, on the CPU, small) and ``inputs`` of its forward.

    inputs: keyword arguments as a mapping, or positional arguments as a sequence. They should reach
    every part of the model: a gradient is expected in every tensor that an axis names, but those
    that ``load`` has frozen (``requires_grad``) because no forward reads them. Raises
    ``AssertionError`` at the first thing that breaks the contract.
    """
    modes = {name: module.training for name, module in model.named_modules()}
    model.eval()
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    expected = _run(model, inputs)
    axes = adapter.axes(model)

    _check_axes(axes, model)
    small = {axis.name: _half(axis) for axis in axes}
    _check_shapes(adapter, model, axes, small)
    _check_forwards(adapter, model, axes, small, inputs)
    _check_units(adapter, model, axes, inputs, expected)
    _check_gradients(adapter, model, axes, small, inputs)
    _check_files(adapter, model, inputs, expected)

    after = model.state_dict()
    changed = [n for n, old in before.items() if n not in after or not torch.equal(old, after[n])]
    alone = "axes, build and save must leave it alone"
    _require(not changed, f"The model itself was changed ({_few(changed)}): {alone}.")
    changed_axes = "The model's axes are no longer what they were: build or save changed the model."
    _require(adapter.axes(model) == axes, changed_axes)
    for name, module in model.named_modules():
        module.training = modes[name]


def _check_axes(axes: Sequence[Axis], model: nn.Module) -> None:
    """Names, sizes and steps, and that every slice is there."""
    nothing = "The model has no axes, so nothing can nest: axes() must name at least one."
    _require(len(axes) > 0, nothing)
    names = [axis.name for axis in axes]
    twice = [name for name in names if names.count(name) > 1]
    own = "Axes need names of their own"
    _require(not twice, f"{own}, but {_few(twice)} occurs twice: put the layer's number into it.")
    places: set[tuple[str, int, int]] = set()
    for axis in axes:
        has = f"Axis {axis.name} has"
        positive = min(axis.size, axis.step) > 0
        _require(positive, f"{has} size {axis.size}, step {axis.step}: they are positive.")
        whole = axis.size % axis.step == 0
        _require(whole, f"{has} {axis.size} units, which are no multiple of {axis.step}.")
        if axis.layers:
            _check_layers(axis, model)
            continue
        every = "name every tensor in which its units appear"
        _require(len(axis.slices) > 0, f"{has} no slices: {every}.")
        for place in axis.slices:
            units = _units(axis, place, model)
            where = f"Axis {axis.name}, slice of {place.tensor}"
            another = f"these units already belong to another slice of dimension {place.dim}"
            _require(not units & places, f"{where}: {another}.")
            places |= units
        readers = "mark the tensors that read the units (after the activation)"
        outgoing = any(place.outgoing for place in axis.slices)
        _require(outgoing, f"{has} no slice with outgoing=True: {readers}.")


def _units(axis: Axis, place: Slice, model: nn.Module) -> set[tuple[str, int, int]]:
    """What a slice names, if it fits its tensor: the tensor, the dimension, the index."""
    state, where = model.state_dict(), f"Axis {axis.name}, slice of {place.tensor}"
    there = place.tensor in state
    _require(there, f"{where}: the model has no tensor of that name in its state_dict().")
    shape = list(state[place.tensor].shape)
    inside = 0 <= place.dim < len(shape)
    _require(inside, f"{where}: there is no dimension {place.dim} in shape {shape}.")
    count = place.blocks * axis.size * place.unit
    units = f"{place.blocks} x {axis.size} units of {place.unit} from {place.start}"
    positive = place.start >= 0 and min(place.blocks, place.unit) > 0
    fits = positive and place.start + count <= shape[place.dim]
    _require(fits, f"{where}: {units} do not fit dimension {place.dim} of {shape}.")
    return {(place.tensor, place.dim, i) for i in range(place.start, place.start + count)}


def _check_layers(axis: Axis, model: nn.Module) -> None:
    """An axis of layers names a module that holds as many, all with the tensors it speaks of."""
    there = dict(model.named_modules())
    lacking = f"Axis {axis.name}: the model has no module {axis.layers!r} (its layers)."
    _require(axis.layers in there, lacking)
    layers = list(there[axis.layers].children())
    says = f"Axis {axis.name} has {axis.size} layers"
    _require(len(layers) == axis.size, f"{says}, but {axis.layers} has {len(layers)}.")
    for place in axis.slices:
        without = [str(i) for i, one in enumerate(layers) if place.tensor not in one.state_dict()]
        tensor = f"has no tensor {place.tensor}"
        _require(not without, f"Axis {axis.name}: layer {_few(without)} {tensor}.")


def _check_shapes(adapter: Adapter, model: nn.Module, axes: Sequence[Axis], small: Sizes) -> None:
    """build at half size gives the shapes that the slices cut, and axes of those sizes."""
    state, own = model.state_dict(keep_vars=True), own_sizes(axes, small)
    with torch.device("meta"):
        student = adapter.build(model, own).eval()
    made = student.state_dict()
    real = [name for name, tensor in made.items() if not tensor.is_meta]
    meta = f'build under torch.device("meta") made real tensors ({_few(real)})'
    _require(not real, f"{meta}: create them on the default device.")
    shapes = {name: list(tensor.shape) for name, tensor in made.items()}
    plan = cut.Cut(axes, small, {name: tensor.shape for name, tensor in state.items()})
    # a tied tensor is cut by the one name that slices give
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    wanted = {}
    for name, tensor in state.items():
        theirs = plan.name(name)
        if theirs is not None:
            wanted[theirs] = plan.shape(first.get(id(tensor), name), tensor.shape)
    names = [name for name in wanted | shapes if shapes.get(name) != wanted.get(name)]
    wrong = _few([f"{name} is {shapes.get(name)}, not {wanted.get(name)}" for name in names])
    half = "build at half size has shapes that the slices do not cut"
    _require(not names, f"{half}: {wrong}. Is a slice missing?")
    counted = cut.count_parameters(model, axes, small)
    built = sum(parameter.numel() for parameter in student.parameters())
    parameters = f"The half-size model has {built} parameters"
    _require(counted == built, f"{parameters}, but by the slices it has {counted}.")
    sizes = {axis.name: axis.size for axis in adapter.axes(student)}
    said = f"axes() of the built model on the meta device says {sizes}"
    _require(sizes == own, f"{said}, but {own} was built.")


def _check_forwards(
    adapter: Adapter, model: nn.Module, axes: Sequence[Axis], small: Sizes, inputs: Inputs
) -> None:
    """build at full size is the model, and at half size views compute what a copy computes."""
    lost = "computes something else: settings of the model got lost in build."
    for given in ({}, full_sizes(axes)):
        same = torch.equal(_run(_copy(adapter, model, given), inputs), _run(model, inputs))
        _require(same, f"build at full size with the model's own tensors {lost}")
    view = StudentView(adapter, model, axes, small).eval()
    dense = materialize(adapter, model, axes, small)
    same = torch.equal(_run(view, inputs), _run(dense, inputs))
    differs = "differs from the same model with its own copy of the tensors"
    reads = "does its forward read something that is not a parameter or buffer?"
    _require(same, f"The half-size model run on views {differs}: {reads}")


def _check_units(
    adapter: Adapter, model: nn.Module, axes: Sequence[Axis], inputs: Inputs, expected: Tensor
) -> None:
    """Each axis can be permuted, and grown by silent units, without changing the function."""
    generator = torch.Generator().manual_seed(0)
    for axis in axes:
        if axis.layers:
            continue  # layers stay where they are
        twin = _copy(adapter, model)
        order = torch.randperm(axis.size // axis.step, generator=generator)
        grow.reorder(twin, [axis], {axis.name: order})
        changes, close = _changes(_run(twin, inputs), expected, 1e-4)
        causes = "a slice is missing, or has the wrong dim, start, blocks or unit, or step"
        moved = f"Permuting the units of axis {axis.name} {changes}"
        _require(close, f"{moved}: {causes} is smaller than what must move together.")
    more = {axis.name: axis.size + 2 * axis.step for axis in axes if grow.growable(model, axis)}
    for sizes in [{name: size} for name, size in more.items()] + [more]:
        got = _run(grow.grow(adapter, model, axes, sizes), inputs)
        changes, close = _changes(got, expected, 1e-4)
        grown = f"Growing {_few(list(sizes))} by units with outgoing weights of zero {changes}"
        mark = "mark every tensor that reads the units with outgoing=True"
        _require(close, f"{grown}: {mark}.")


def _check_gradients(
    adapter: Adapter, model: nn.Module, axes: Sequence[Axis], small: Sizes, inputs: Inputs
) -> None:
    """Training the half-size model reaches every tensor that axes name, and only its own units."""
    twin = _copy(adapter, model).requires_grad_()
    leaves = dict(twin.named_parameters())
    with torch.enable_grad():
        kept = cut.cut(leaves, _of(axes, leaves), small)
        total = torch.stack([tensor.sum() for tensor in kept.values()]).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        masks = dict(zip(leaves, gradients, strict=True))  # 1 where a unit is kept
        _forward(StudentView(adapter, twin, axes, small).eval(), inputs).square().sum().backward()
    reached = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    spilt = [name for name, grad in reached.items() if bool(grad[masks[name] == 0].any())]
    also = "Training the half-size model also changes units outside of it"
    _require(not spilt, f"{also}, in {_few(spilt)}.")
    plan = cut.Cut(_of(axes, leaves), small, {name: leaf.shape for name, leaf in leaves.items()})
    named = {place.tensor for axis in axes if not axis.layers for place in axis.slices}
    awake = {name for name, grad in reached.items() if bool(grad.any())}
    named -= {name for name, leaf in model.named_parameters() if not leaf.requires_grad}
    asleep = [n for n in leaves if n in named - awake and plan.name(n) is not None]
    nothing = f"No gradient of the half-size model reaches {_few(asleep)}"
    _require(not asleep, f"{nothing}: its forward does not use it, or detaches it.")


def _check_files(adapter: Adapter, model: nn.Module, inputs: Inputs, expected: Tensor) -> None:
    """save writes no pickle, and load gives the model back from what it wrote."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reason = adapter.unsupported(model)
        _require(not reason, f"unsupported() refuses a model that load could have given: {reason}.")
        adapter.save(model, folder)
        pickles = [path.name for path in folder.rglob("*") if path.suffix in _PICKLES]
        only = "only safetensors and JSON may be written, never pickles"
        _require(not pickles, f"save wrote {_few(pickles)}: {only}.")
        source = Source(name=name, folder=folder)
        _require(adapter.matches(source), "matches() does not know the folder that save() wrote.")
        loaded = type(adapter)().load(source)
        _require(not loaded.training, "load must give the model in eval mode.")
        floats = {n: t for n, t in loaded.state_dict().items() if t.is_floating_point()}
        odd = [name for name, tensor in floats.items() if tensor.dtype is not torch.float32]
        _require(not odd, f"load must give float32 tensors, but {_few(odd)} is not.")
        # another attention kernel may round otherwise
        _, same = _changes(_run(loaded, inputs), expected, 1e-5)
        _require(same, "The model computes something else after save and load.")
        same = adapter.axes(loaded) == adapter.axes(model)
        _require(same, "The model has other axes after save and load.")
        _check_own_format(adapter, model)
        empty = folder / "empty"
        empty.mkdir()
        none = Source("", tensors={}), Source("", module=nn.Identity()), Source("no such")
        for foreign in (Source("", folder=empty), *none):
            _require(not adapter.matches(foreign), f"matches() claims to know {foreign}.")


def _check_own_format(adapter: Adapter, model: nn.Module) -> None:
    """What the stock format cannot express is saved and loaded: each axis at half size alone."""
    for axis in adapter.axes(model):
        student = materialize(adapter, model, [axis], {axis.name: _half(axis)})
        half = f"A model with axis {axis.name} at half size"
        with tempfile.TemporaryDirectory() as name:
            reason = save.save_model(adapter, student, Path(name))
            try:
                loaded = type(adapter)().load(open_source(f"local-dir:{name}"))
            except MattaError as error:
                raise AssertionError(f"{half} does not load ({reason}): {error}") from error
            saved = student.state_dict().values()
            pairs = zip(saved, loaded.state_dict().values(), strict=True)
            same = all(torch.equal(ours, theirs) for ours, theirs in pairs)
            _require(same, f"{half} comes back with other tensors ({reason}).")


def _half(axis: Axis) -> int:
    """Half of an axis, in whole steps."""
    return max(axis.step, axis.size // 2 // axis.step * axis.step)


def _copy(adapter: Adapter, model: nn.Module, sizes: Sizes | None = None) -> nn.Module:
    """The same model, built anew by the adapter, with its own copy of the tensors."""
    twin = adapter.build(model, sizes or {}).eval()
    twin.load_state_dict(model.state_dict())
    return twin


def _of(axes: Sequence[Axis], tensors: Mapping[str, Tensor]) -> list[Axis]:
    """The axes, with slices of these tensors only (buffers have no gradient)."""
    found = []
    for axis in axes:
        slices = tuple(place for place in axis.slices if place.tensor in tensors)
        found.append(axis if axis.layers else replace(axis, slices=slices))
    return found


def _forward(module: Any, inputs: Inputs) -> Tensor:
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})
    try:
        output = module(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise AssertionError(
            f"The model does not run ({str(error).splitlines()[0]}). If it ran before it was built "
            "at other sizes, a slice is missing or has the wrong dim, or an attribute that repeats "
            "a size (out_features, say) kept its old value."
        ) from error
    output = raw(output)
    needed = "a tensor, .logits or .last_hidden_state is needed"
    tensor = isinstance(output, Tensor)
    _require(tensor, f"The model returns a {type(output).__name__}; {needed}.")
    return output


def _run(module: Any, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return _forward(module, inputs)


def _changes(got: Tensor, expected: Tensor, tolerance: float) -> tuple[str, bool]:
    """How much outputs differ, in words, and whether that is no more than rounding."""
    scale = max(1.0, float(expected.abs().max()))
    if got.shape != expected.shape:
        return f"changes the outputs from {list(expected.shape)} to {list(got.shape)}", False
    close = torch.allclose(got, expected, rtol=tolerance, atol=tolerance * scale)
    return f"changes the outputs by up to {(got - expected).abs().max():.3g}", close


def _few(items: Sequence[str]) -> str:
    return ", ".join(list(items)[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
