"""The contract as a test kit: ``check_adapter(adapter, model, inputs)`` in an adapter author's own
tests.

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

from matta_cli.adapter import Adapter, Axis, Sizes, Source
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
    """Check ``adapter`` against the contract on ``model`` (float32, on the CPU, small) and
    ``inputs`` of its forward.

    inputs: keyword arguments as a mapping, or positional arguments as a sequence. They should reach
    every part of the
    model: a gradient is expected in every tensor that an axis names.

    Raises ``AssertionError`` at the first thing that is wrong.
    """
    modes = {name: module.training for name, module in model.named_modules()}
    model.eval()
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    expected = _run(model, inputs)
    axes = adapter.axes(model)
    small = {axis.name: max(axis.step, axis.size // 2 // axis.step * axis.step) for axis in axes}

    _check_axes(axes, model)
    _check_build(adapter, model, axes, small, inputs)
    _check_units(adapter, model, axes, inputs, expected)
    _check_gradients(adapter, model, axes, small, inputs)
    _check_files(adapter, model, inputs, expected)

    after = model.state_dict()
    changed = [
        name for name in before if name not in after or not torch.equal(before[name], after[name])
    ]
    _require(
        not changed,
        f"The model itself was changed ({_few(changed)}): axes, build and save must leave it alone.",
    )
    _require(
        adapter.axes(model) == axes,
        "The model's axes are no longer what they were: build or save changed the model.",
    )
    for name, module in model.named_modules():
        module.training = modes[name]


def _check_axes(axes: Sequence[Axis], model: nn.Module) -> None:
    state = model.state_dict()
    _require(
        len(axes) > 0, "The model has no axes, so nothing can nest: axes() must name at least one."
    )
    names = [axis.name for axis in axes]
    twice = [name for name in names if names.count(name) > 1]
    _require(
        not twice,
        f"Axes need names of their own, but {_few(twice)} occurs twice: put the layer's number into it.",
    )
    places: set[tuple[str, int, int]] = set()
    for axis in axes:
        _require(
            min(axis.size, axis.step) > 0,
            f"Axis {axis.name} has size {axis.size}, step {axis.step}: they are positive.",
        )
        _require(
            axis.size % axis.step == 0,
            f"Axis {axis.name} has {axis.size} units, which are no multiple of {axis.step}.",
        )
        if axis.layers:
            _check_layers(axis, model)
            continue
        _require(
            len(axis.slices) > 0,
            f"Axis {axis.name} has no slices: name every tensor in which its units appear.",
        )
        for s in axis.slices:
            where = f"Axis {axis.name}, slice of {s.tensor}"
            _require(
                s.tensor in state,
                f"{where}: the model has no tensor of that name in its state_dict().",
            )
            shape = list(state[s.tensor].shape)
            _require(
                0 <= s.dim < len(shape), f"{where}: there is no dimension {s.dim} in shape {shape}."
            )
            length = shape[s.dim] - s.start
            _require(
                s.start >= 0
                and min(s.blocks, s.unit) > 0
                and s.blocks * axis.size * s.unit <= length,
                f"{where}: {s.blocks} x {axis.size} units of {s.unit} from {s.start} do not fit dimension {s.dim} of {shape}.",
            )
            place = {
                (s.tensor, s.dim, i)
                for i in range(s.start, s.start + s.blocks * axis.size * s.unit)
            }
            _require(
                not place & places,
                f"{where}: these units already belong to another slice of dimension {s.dim}.",
            )
            places |= place
        _require(
            any(s.outgoing for s in axis.slices),
            f"Axis {axis.name} has no slice with outgoing=True: mark the tensors that read the units (after the activation).",
        )


def _check_layers(axis: Axis, model: nn.Module) -> None:
    there = dict(model.named_modules())
    _require(
        axis.layers in there,
        f"Axis {axis.name}: the model has no module {axis.layers!r} (its layers).",
    )
    layers = list(there[axis.layers].children())
    _require(
        len(layers) == axis.size,
        f"Axis {axis.name} has {axis.size} layers, but {axis.layers} has {len(layers)}.",
    )
    for place in axis.slices:
        lacking = [i for i, layer in enumerate(layers) if place.tensor not in layer.state_dict()]
        _require(
            not lacking,
            f"Axis {axis.name}: layer {_few(list(map(str, lacking)))} has no tensor {place.tensor}.",
        )


def _check_build(
    adapter: Adapter, model: nn.Module, axes: Sequence[Axis], small: Sizes, inputs: Inputs
) -> None:
    state, own = model.state_dict(), own_sizes(axes, small)
    with torch.device("meta"):
        student = adapter.build(model, own).eval()
    real = [name for name, tensor in student.state_dict().items() if not tensor.is_meta]
    _require(
        not real,
        f'build under torch.device("meta") made real tensors ({_few(real)}): create them on the default device.',
    )
    shapes = {name: list(tensor.shape) for name, tensor in student.state_dict().items()}
    plan = cut.Cut(axes, small, {name: tensor.shape for name, tensor in state.items()})
    # a tied tensor is cut by the one name that slices give
    first = {id(p): name for name, p in model.named_parameters()}
    named = (
        (plan.name(n), first.get(id(t), n), t.shape)
        for n, t in model.state_dict(keep_vars=True).items()
    )
    wanted = {
        theirs: plan.shape(name, shape) for theirs, name, shape in named if theirs is not None
    }
    wrong = [
        f"{n} is {shapes.get(n)}, not {wanted.get(n)}"
        for n in wanted | shapes
        if shapes.get(n) != wanted.get(n)
    ]
    _require(
        not wrong,
        f"build at half size has shapes that the slices do not cut: {_few(wrong)}. Is a slice missing?",
    )
    counted, built = (
        cut.count_parameters(model, axes, small),
        sum(p.numel() for p in student.parameters()),
    )
    _require(
        counted == built,
        f"The half-size model has {built} parameters, but by the slices it has {counted}.",
    )
    sizes = {axis.name: axis.size for axis in adapter.axes(student)}
    _require(
        sizes == own,
        f"axes() of the built model on the meta device says {sizes}, but {own} was built.",
    )

    for given in ({}, full_sizes(axes)):
        _require(
            torch.equal(_run(_copy(adapter, model, given), inputs), _run(model, inputs)),
            "build at full size with the model's own tensors computes something else: settings of the model got lost in build.",
        )
    view = StudentView(adapter, model, axes, small).eval()
    dense = materialize(adapter, model, axes, small)
    _require(
        torch.equal(_run(view, inputs), _run(dense, inputs)),
        "The half-size model run on views differs from the same model with its own copy of the tensors: does its forward read "
        "something that is not a parameter or buffer?",
    )


def _check_units(
    adapter: Adapter, model: nn.Module, axes: Sequence[Axis], inputs: Inputs, expected: Tensor
) -> None:
    """Each axis by itself can be permuted, and grown by silent units, without changing the
    function.
    """
    generator = torch.Generator().manual_seed(0)
    for axis in axes:
        if axis.layers:
            continue  # layers stay where they are
        twin = _copy(adapter, model)
        grow.reorder(
            twin, [axis], {axis.name: torch.randperm(axis.size // axis.step, generator=generator)}
        )
        got = _run(twin, inputs)
        _require(
            torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * _scale(expected)),
            f"Permuting the units of axis {axis.name} changes the outputs by up to {(got - expected).abs().max():.3g}: a slice "
            "is missing, or has the wrong dim, start, blocks or unit, or step is smaller than what must move together.",
        )
    more = {axis.name: axis.size + 2 * axis.step for axis in axes if grow.growable(model, axis)}
    for sizes in [{name: size} for name, size in more.items()] + [more]:
        got = _run(grow.grow(adapter, model, axes, sizes), inputs)
        _require(
            torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * _scale(expected)),
            f"Growing {_few(list(sizes))} by units with outgoing weights of zero changes the outputs by up to "
            f"{(got - expected).abs().max():.3g}: mark every tensor that reads the units with outgoing=True.",
        )


def _check_gradients(
    adapter: Adapter, model: nn.Module, axes: Sequence[Axis], small: Sizes, inputs: Inputs
) -> None:
    twin = _copy(adapter, model).requires_grad_()
    leaves = dict(twin.named_parameters())
    with torch.enable_grad():
        kept = torch.stack(
            [t.sum() for t in cut.cut(leaves, _of(axes, leaves), small).values()]
        ).sum()
        gradients = torch.autograd.grad(kept, list(leaves.values()), materialize_grads=True)
        masks = dict(zip(leaves, gradients, strict=True))  # 1 where a unit is kept
        _forward(StudentView(adapter, twin, axes, small).eval(), inputs).square().sum().backward()
    spilt = [
        n for n, p in leaves.items() if p.grad is not None and bool(p.grad[masks[n] == 0].any())
    ]
    _require(
        not spilt,
        f"Training the half-size model also changes units outside of it, in {_few(spilt)}.",
    )
    plan = cut.Cut(_of(axes, leaves), small, {name: p.shape for name, p in leaves.items()})
    named = {
        s.tensor
        for axis in axes
        for s in axis.slices
        if not axis.layers and plan.name(s.tensor) is not None
    }
    asleep = [
        n for n, p in leaves.items() if n in named and (p.grad is None or not bool(p.grad.any()))
    ]
    _require(
        not asleep,
        f"No gradient of the half-size model reaches {_few(asleep)}: its forward does not use it, or detaches it.",
    )


def _check_files(adapter: Adapter, model: nn.Module, inputs: Inputs, expected: Tensor) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reason = adapter.unsupported(model)
        _require(not reason, f"unsupported() refuses a model that load could have given: {reason}.")
        adapter.save(model, folder)
        pickles = [path.name for path in folder.rglob("*") if path.suffix in _PICKLES]
        _require(
            not pickles,
            f"save wrote {_few(pickles)}: only safetensors and JSON may be written, never pickles.",
        )
        source = Source(name=name, folder=folder)
        _require(adapter.matches(source), "matches() does not know the folder that save() wrote.")
        loaded = type(adapter)().load(source)
        _require(not loaded.training, "load must give the model in eval mode.")
        odd = [
            n
            for n, t in loaded.state_dict().items()
            if t.is_floating_point() and t.dtype is not torch.float32
        ]
        _require(not odd, f"load must give float32 tensors, but {_few(odd)} is not.")
        same = torch.allclose(
            _run(loaded, inputs), expected, rtol=1e-5, atol=1e-5 * _scale(expected)
        )
        # another attention kernel may round otherwise
        _require(same, "The model computes something else after save and load.")
        _require(
            adapter.axes(loaded) == adapter.axes(model),
            "The model has other axes after save and load.",
        )
        _check_own_format(adapter, model)
        empty = folder / "empty"
        empty.mkdir()
        for foreign in (
            Source("", folder=empty),
            Source("", tensors={}),
            Source("", module=nn.Identity()),
            Source("no such"),
        ):
            _require(not adapter.matches(foreign), f"matches() claims to know {foreign}.")


def _check_own_format(adapter: Adapter, model: nn.Module) -> None:
    """What the stock format cannot express is saved and loaded all the same: each axis at half size
    by itself.
    """
    for axis in adapter.axes(model):
        size = max(axis.step, axis.size // 2 // axis.step * axis.step)
        student = materialize(adapter, model, [axis], {axis.name: size})
        with tempfile.TemporaryDirectory() as name:
            reason = save.save_model(adapter, student, Path(name))
            try:
                loaded = type(adapter)().load(open_source(f"local-dir:{name}"))
            except MattaError as error:
                half = f"A model with axis {axis.name} at half size"
                raise AssertionError(f"{half} does not load ({reason}): {error}") from error
            same = all(
                torch.equal(a, b)
                for a, b in zip(
                    student.state_dict().values(), loaded.state_dict().values(), strict=True
                )
            )
            _require(
                same,
                f"A model with axis {axis.name} at half size comes back with other tensors ({reason}).",
            )


def _copy(adapter: Adapter, model: nn.Module, sizes: Sizes | None = None) -> nn.Module:
    """The same model, built anew by the adapter, with its own copy of the tensors."""
    twin = adapter.build(model, sizes or {}).eval()
    twin.load_state_dict(model.state_dict())
    return twin


def _of(axes: Sequence[Axis], tensors: Mapping[str, Tensor]) -> list[Axis]:
    """The axes, with slices of these tensors only (buffers have no gradient)."""
    return [
        a if a.layers else replace(a, slices=tuple(s for s in a.slices if s.tensor in tensors))
        for a in axes
    ]


def _forward(module: Any, inputs: Inputs) -> Tensor:
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})
    try:
        output = module(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise AssertionError(
            f"The model does not run ({str(error).splitlines()[0]}). If it ran before it was built at other sizes, a slice "
            "is missing or has the wrong dim, or an attribute that repeats a size (out_features, say) kept its old value."
        ) from error
    output = raw(output)
    _require(
        isinstance(output, Tensor),
        f"The model returns a {type(output).__name__}; a tensor, .logits or .last_hidden_state is needed.",
    )
    return output


def _run(module: Any, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return _forward(module, inputs)


def _scale(tensor: Tensor) -> float:
    return max(1.0, float(tensor.abs().max()))


def _few(items: Sequence[str]) -> str:
    return ", ".join(list(items)[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
