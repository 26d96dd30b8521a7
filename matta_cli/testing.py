"""The contract as a test kit: ``check_adapter(adapter, model, inputs)`` in an adapter author's own tests.

It checks, on a real model, everything that the engine relies on, with a few lines of its own for cutting, reordering and
growing, so that it does not share a mistake with the engine. Each failure is an ``AssertionError`` with a sentence that
says what is wrong and what usually causes it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from matta_cli.adapter import Adapter, Axis, Sizes, Source
from matta_cli.errors import MattaError

Inputs = Mapping[str, Any] | Sequence[Any]
State = dict[str, Tensor]
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def check_adapter(adapter: Adapter, model: nn.Module, inputs: Inputs) -> None:
    """Check ``adapter`` against the contract on ``model`` (float32, on the CPU, small) and ``inputs`` of its forward.

    inputs: keyword arguments as a mapping, or positional arguments as a sequence. They should reach every part of the
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
    changed = [name for name in before if name not in after or not torch.equal(before[name], after[name])]
    _require(not changed, f"The model itself was changed ({_few(changed)}): axes, build and save must leave it alone.")
    _require(adapter.axes(model) == axes, "The model's axes are no longer what they were: build or save changed the model.")
    for name, module in model.named_modules():
        module.training = modes[name]


def _check_axes(axes: Sequence[Axis], model: nn.Module) -> None:
    state = model.state_dict()
    _require(len(axes) > 0, "The model has no axes, so nothing can nest: axes() must name at least one.")
    names = [axis.name for axis in axes]
    twice = [name for name in names if names.count(name) > 1]
    _require(not twice, f"Axes need names of their own, but {_few(twice)} occurs twice: put the layer's number into it.")
    places: set[tuple[str, int, int]] = set()
    for axis in axes:
        _require(min(axis.size, axis.step) > 0, f"Axis {axis.name} has size {axis.size}, step {axis.step}: they are positive.")
        _require(axis.size % axis.step == 0, f"Axis {axis.name} has {axis.size} units, which are no multiple of {axis.step}.")
        _require(len(axis.slices) > 0, f"Axis {axis.name} has no slices: name every tensor in which its units appear.")
        for s in axis.slices:
            where = f"Axis {axis.name}, slice of {s.tensor}"
            _require(s.tensor in state, f"{where}: the model has no tensor of that name in its state_dict().")
            shape = list(state[s.tensor].shape)
            _require(0 <= s.dim < len(shape), f"{where}: there is no dimension {s.dim} in shape {shape}.")
            length = shape[s.dim] - s.start
            _require(
                s.start >= 0 and s.blocks > 0 and s.blocks * axis.size <= length,
                f"{where}: {s.blocks} blocks of {axis.size} units from {s.start} do not fit into dimension {s.dim} of {shape}.",
            )
            place = {(s.tensor, s.dim, i) for i in range(s.start, s.start + s.blocks * axis.size)}
            _require(not place & places, f"{where}: these units already belong to another slice of dimension {s.dim}.")
            places |= place


def _check_build(adapter: Adapter, model: nn.Module, axes: Sequence[Axis], small: Sizes, inputs: Inputs) -> None:
    state = model.state_dict()
    part = _cut(state, model, axes, small)
    student = _on_meta(adapter, model, small)
    real = [name for name, tensor in student.state_dict().items() if not tensor.is_meta]
    _require(not real, f'build under torch.device("meta") made real tensors ({_few(real)}): create them on the default device.')
    shapes = {name: list(tensor.shape) for name, tensor in student.state_dict().items()}
    wanted = {name: list(tensor.shape) for name, tensor in part.items()}
    wrong = [f"{n} is {shapes.get(n)}, not {wanted.get(n)}" for n in wanted | shapes if shapes.get(n) != wanted.get(n)]
    _require(
        not wrong, f"build at half size has shapes that the slices do not cut: {_few(wrong)}. Is a slice missing in axes()?"
    )
    sizes = {axis.name: axis.size for axis in adapter.axes(student)}
    _require(sizes == dict(small), f"axes() of the built model on the meta device says {sizes}, but {dict(small)} was built.")

    kept = {axis.name: axis.size for axis in axes}
    for given in ({}, kept):
        whole = adapter.build(model, given).eval()
        whole.load_state_dict(state)
        _require(
            torch.equal(_run(whole, inputs), _run(model, inputs)),
            "build at full size with the model's own tensors computes something else: settings of the model got lost in build.",
        )
    dense = adapter.build(model, small).eval()
    dense.load_state_dict(part)
    _require(
        torch.equal(_run(student, inputs, part), _run(dense, inputs)),
        "The half-size model run on views differs from the same model with its own copy of the tensors: does its forward read "
        "something that is not a parameter or buffer?",
    )


def _check_units(adapter: Adapter, model: nn.Module, axes: Sequence[Axis], inputs: Inputs, expected: Tensor) -> None:
    """Each axis by itself can be permuted, and grown by silent units, without changing the function."""
    state = model.state_dict()
    generator = torch.Generator().manual_seed(0)
    for axis in axes:
        groups = torch.randperm(axis.size // axis.step, generator=generator)
        order = (groups[:, None] * axis.step + torch.arange(axis.step)).flatten()
        got = _run(model, inputs, _pick(state, axis, order))
        _require(
            torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * _scale(expected)),
            f"Permuting the units of axis {axis.name} changes the outputs by up to {(got - expected).abs().max():.3g}: a slice "
            "is missing, or has the wrong dim, start or blocks, or step is smaller than what must move together.",
        )
        if not _growable(model, axis):
            continue
        size = axis.size + 2 * axis.step
        grown = adapter.build(model, {axis.name: size}).eval()
        got = _run(grown, inputs, _grow(state, axis, size))
        _require(
            torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * _scale(expected)),
            f"Growing axis {axis.name} by units with outgoing weights of zero changes the outputs by up to "
            f"{(got - expected).abs().max():.3g}: mark the tensors that read the units with outgoing=True.",
        )


def _check_gradients(adapter: Adapter, model: nn.Module, axes: Sequence[Axis], small: Sizes, inputs: Inputs) -> None:
    state = model.state_dict()
    leaves = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    ties = _ties(model)
    whole = {name: leaves.get(ties[name], tensor) for name, tensor in state.items()}
    with torch.enable_grad():
        output = _forward(_on_meta(adapter, model, small), inputs, _cut(whole, model, axes, small))
        output.square().sum().backward()
    outside = {name: torch.zeros_like(leaf, dtype=torch.bool) for name, leaf in leaves.items()}
    for (name, dim), runs in _kept(model, axes, small).items():
        if name in outside:
            cut_off = torch.ones(leaves[name].shape[dim], dtype=torch.bool)
            for start, length in runs:
                cut_off[start : start + length] = False
            outside[name].movedim(dim, 0)[cut_off] = True
    spilt = [n for n, leaf in leaves.items() if leaf.grad is not None and bool(leaf.grad[outside[n]].any())]
    _require(not spilt, f"Training the half-size model also changes units outside of it, in {_few(spilt)}.")
    named = {ties[s.tensor] for axis in axes for s in axis.slices}
    asleep = [n for n, leaf in leaves.items() if n in named and (leaf.grad is None or not bool(leaf.grad.any()))]
    _require(
        not asleep,
        f"No gradient of the half-size model reaches {_few(asleep)}: its forward does not use it, or detaches it.",
    )


def _check_files(adapter: Adapter, model: nn.Module, inputs: Inputs, expected: Tensor) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            adapter.save(model, folder)
        except MattaError as error:
            raise AssertionError(f"save refuses a model that load could have given: {error}") from error
        pickles = [path.name for path in folder.rglob("*") if path.suffix in _PICKLES]
        _require(not pickles, f"save wrote {_few(pickles)}: only safetensors and JSON may be written, never pickles.")
        source = Source(name=name, folder=folder)
        _require(adapter.matches(source), "matches() does not know the folder that save() wrote.")
        loaded = type(adapter)().load(source)
        _require(not loaded.training, "load must give the model in eval mode.")
        odd = [n for n, t in loaded.state_dict().items() if t.is_floating_point() and t.dtype is not torch.float32]
        _require(not odd, f"load must give float32 tensors, but {_few(odd)} is not.")
        same = torch.allclose(_run(loaded, inputs), expected, rtol=1e-5, atol=1e-5 * _scale(expected))
        _require(same, "The model computes something else after save and load.")  # another attention kernel may round otherwise
        _require(adapter.axes(loaded) == adapter.axes(model), "The model has other axes after save and load.")
        empty = folder / "empty"
        empty.mkdir()
        for foreign in (Source("", folder=empty), Source("", tensors={}), Source("", module=nn.Identity()), Source("no such")):
            _require(not adapter.matches(foreign), f"matches() claims to know {foreign}.")


def _ties(model: nn.Module) -> dict[str, str]:
    """For every tensor of the state dict its first name: tied tensors share one."""
    first: dict[int, str] = {}
    tensors = model.state_dict(keep_vars=True)
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}


def _kept(model: nn.Module, axes: Sequence[Axis], sizes: Sizes) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """What stays of each dimension that shrinks, as runs (start, length). Keys: first name of the tensor, dimension."""
    ties, state = _ties(model), model.state_dict()
    lost: dict[tuple[str, int], set[int]] = {}
    for axis in axes:
        for s in axis.slices:
            for start in range(s.start, s.start + s.blocks * axis.size, axis.size):
                gone = range(start + sizes[axis.name], start + axis.size)
                lost.setdefault((ties[s.tensor], s.dim), set()).update(gone)
    kept: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for (name, dim), gone_here in lost.items():
        runs: list[tuple[int, int]] = []
        for i in range(state[name].shape[dim]):
            if i in gone_here:
                continue
            if runs and sum(runs[-1]) == i:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((i, 1))
        kept[name, dim] = runs
    return kept


def _cut(state: Mapping[str, Tensor], model: nn.Module, axes: Sequence[Axis], sizes: Sizes) -> State:
    """The tensors of a Student: views where one run of a dimension stays."""
    ties, part = _ties(model), dict(state)
    for (first, dim), runs in _kept(model, axes, sizes).items():
        for name in state:
            if ties[name] == first:
                pieces = [part[name].narrow(dim, start, length) for start, length in runs]
                part[name] = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
    return part


def _pick(state: Mapping[str, Tensor], axis: Axis, order: Tensor) -> State:
    """The axis's units in another order."""
    new = dict(state)
    for s in axis.slices:
        index = torch.arange(new[s.tensor].shape[s.dim])
        for block in range(s.blocks):
            start = s.start + block * axis.size
            index[start : start + axis.size] = start + order
        new[s.tensor] = new[s.tensor].index_select(s.dim, index)
    return new


def _grow(state: Mapping[str, Tensor], axis: Axis, size: int) -> State:
    """The axis with more units, which nothing listens to; their other tensors are anything (here: positive numbers)."""
    new = dict(state)
    for s in axis.slices:
        tensor = new[s.tensor]
        parts = [tensor.narrow(s.dim, 0, s.start)]
        for block in range(s.blocks):
            shape = list(tensor.shape)
            shape[s.dim] = size - axis.size
            extra = torch.zeros(shape) if s.outgoing else torch.full(shape, 0.37)
            parts += [tensor.narrow(s.dim, s.start + block * axis.size, axis.size), extra.to(tensor.dtype)]
        end = s.start + s.blocks * axis.size
        parts.append(tensor.narrow(s.dim, end, tensor.shape[s.dim] - end))
        new[s.tensor] = torch.cat(parts, s.dim)
    return new


def _growable(model: nn.Module, axis: Axis) -> bool:
    """Not where a norm mixes the axis's own units: its mean and variance would see the new ones."""
    norms = [model.get_submodule(s.tensor.rpartition(".")[0]) for s in axis.slices]
    mixing = (nn.LayerNorm, nn.GroupNorm)
    return not any(isinstance(norm, mixing) or "rmsnorm" in type(norm).__name__.lower() for norm in norms)


def _on_meta(adapter: Adapter, model: nn.Module, sizes: Sizes) -> nn.Module:
    with torch.device("meta"):
        return adapter.build(model, sizes).eval()


def _forward(module: nn.Module, inputs: Inputs, state: State | None = None) -> Tensor:
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})
    try:
        if state is None:
            output = module(*args, **kwargs)
        else:  # of tied tensors functional_call wants one, and ties the other itself
            own = {name for name, _ in [*module.named_parameters(), *module.named_buffers()]}
            output = functional_call(module, {name: tensor for name, tensor in state.items() if name in own}, args, kwargs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise AssertionError(
            f"The model does not run ({str(error).splitlines()[0]}). If it ran before it was built at other sizes, a slice "
            "is missing or has the wrong dim, or an attribute that repeats a size (out_features, say) kept its old value."
        ) from error
    output = getattr(output, "logits", output)
    _require(isinstance(output, Tensor), f"The model returns a {type(output).__name__}; a tensor, or .logits, is needed.")
    return output


def _run(module: nn.Module, inputs: Inputs, state: State | None = None) -> Tensor:
    with torch.no_grad():
        return _forward(module, inputs, state)


def _scale(tensor: Tensor) -> float:
    return max(1.0, float(tensor.abs().max()))


def _few(items: Sequence[str]) -> str:
    return ", ".join(list(items)[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
