"""What a Student of any sizes costs, by arithmetic that equals the built model."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from matta_cli.adapter import Axis, Sizes
from matta_cli.data.split import Batch
from matta_cli.measure import cost
from matta_cli.models.ta import TA
from matta_cli.nested.sizes import depth, full_sizes, kept_layers, kind, layer_of, own_sizes
from matta_cli.tasks.task import Task

# as safetensors has them
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}


# Sums of products


@dataclass(frozen=True)
class _Affine:
    """A length as a function of sizes: what it is with all axes whole, less what each axis leaves
    out.
    """

    whole: int
    axes: tuple[tuple[Axis, int], ...] = ()  # and how much of the length one of the axis's steps is

    def __call__(self, sizes: Sizes) -> int:
        return self.whole - sum(
            (axis.size - sizes[axis.name]) // axis.step * each for axis, each in self.axes
        )


@dataclass(frozen=True)
class _Product:
    """``times`` x the lengths multiplied; counted where the Student keeps the layer (None: it
    belongs to none).
    """

    lengths: tuple[_Affine, ...]
    layer: int | None


class _Sum:
    def __init__(self, products: Mapping[_Product, int], layers: Axis | None) -> None:
        self.constant = sum(
            math.prod(length.whole for length in p.lengths) * times
            for p, times in products.items()
            if p.layer is None and not any(length.axes for length in p.lengths)
        )
        self.products = [
            (p, times)
            for p, times in products.items()
            if p.layer is not None or any(length.axes for length in p.lengths)
        ]
        self.layers = layers

    def __call__(self, sizes: Sizes) -> int:
        kept = (
            set(kept_layers(self.layers, sizes[self.layers.name]))
            if self.layers is not None
            else None
        )
        total = self.constant
        for product, times in self.products:
            if kept is None or product.layer is None or product.layer in kept:
                total += times * math.prod(length(sizes) for length in product.lengths)
        return total


class Costs:
    """What a Student of any sizes costs, without building it. ``example``: one example of the task,
    which MACs are counted on.

    exact: whether the sum for MACs gave torch's count at the sizes tried; where not, each Student
    is run on views and counted.
    """

    def __init__(self, task: Task, ta: TA, example: Batch) -> None:
        device = next(ta.model.parameters()).device
        self.task, self.ta = task, ta
        self.example = {
            name: tensor.to(device) for name, tensor in cost.repeated(example, 1).items()
        }
        self.layers = depth(ta.axes)
        self.whole = full_sizes(ta.axes)
        self._counted: dict[tuple[tuple[str, int], ...], int] = {}
        parameters, self._stored = self._tensors()
        self._parameters = _Sum(parameters, self.layers)
        self._macs = self._products()

    @property
    def exact(self) -> bool:
        return self._macs is not None

    def parameters(self, sizes: Sizes) -> int:
        """Parameters; tied tensors count once."""
        return self._parameters(sizes)

    def bytes(self, sizes: Sizes) -> int:
        """Bytes of the weights' file: its tensors, and safetensors' header (a few digits more than
        it has at most).
        """
        kept = None if self.layers is None else kept_layers(self.layers, sizes[self.layers.name])
        data, header, count = 0, len('{"__metadata__":{"format":"pt"}}'), 0
        for product, each, fixed in self._stored:
            if kept is None or product.layer is None or product.layer in kept:
                shape = [length(sizes) for length in product.lengths]
                data += math.prod(shape) * each
                header += fixed + sum(len(str(n)) for n in shape)
                count += 1
        header += count * (2 * len(str(data)) + 1)  # where a tensor begins and ends
        return data + 8 + -(-header // 8) * 8

    def macs(self, sizes: Sizes) -> int:
        """Multiply-accumulates of one example."""
        if self._macs is not None:
            return self._macs(sizes)
        key = self.key(sizes)
        if key not in self._counted:
            self._counted[key] = self._count(sizes)
        return self._counted[key]

    def __call__(
        self, sizes: Sizes, names: Sequence[str] = ("parameters", "bytes", "macs")
    ) -> dict[str, float]:
        return {name: getattr(self, name)(sizes) for name in names}

    def key(self, sizes: Sizes) -> tuple[tuple[str, int], ...]:
        """What tells one Student from another: the sizes of the layers that it leaves out do not
        matter.
        """
        return tuple(sorted(own_sizes(self.ta.axes, sizes).items()))

    # Parameters and bytes: from shapes and slices

    def _tensors(self) -> tuple[dict[_Product, int], list[tuple[_Product, int, int]]]:
        """The parameters; and of each stored tensor its shape, bytes per value, and bytes in the
        header but for digits.
        """
        model = self.ta.model
        places: dict[tuple[str, int], list[tuple[Axis, int]]] = {}
        for axis in self.ta.axes:
            for place in () if axis.layers else axis.slices:
                places.setdefault((place.tensor, place.dim), []).append(
                    (axis, place.blocks * place.unit * axis.step)
                )

        def product(name: str, tensor: torch.Tensor) -> _Product:
            lengths = (
                _Affine(n, tuple(places.get((name, dim), ()))) for dim, n in enumerate(tensor.shape)
            )
            return _Product(tuple(lengths), self._layer(name))

        parameters = dict(model.named_parameters())
        names = {id(tensor): name for name, tensor in [*model.named_buffers(), *parameters.items()]}
        stored = model.state_dict(keep_vars=True)
        # of tied tensors the first
        first = {names.get(id(tensor), name): tensor for name, tensor in stored.items()}
        entries = []
        for name, tensor in first.items():
            entry = {"dtype": _DTYPES.get(tensor.dtype, "F8_E4M3"), "shape": [], "data_offsets": []}
            fixed = len(json.dumps({name: entry}, separators=(",", ":"))) + max(0, tensor.dim() - 1)
            entries.append((product(name, tensor), tensor.element_size(), fixed))
        return dict(Counter(product(name, tensor) for name, tensor in parameters.items())), entries

    def _layer(self, name: str) -> int | None:
        return None if self.layers is None else layer_of(f"{name}.", self.layers.layers)

    # MACs: from the shapes of the matrix products

    def _count(self, sizes: Sizes) -> int:
        return cost.macs(self.task, self.ta.at(sizes).eval(), self.example)

    def _trace(self, sizes: Sizes) -> list[tuple[str, list[int]]]:
        """Of each matrix product the part of the model that it belongs to, and the lengths that are
        multiplied in it.
        """
        view = self.ta.at(sizes).eval()
        with _watching(view.skeleton, self._part) as found:
            self.task.forward(view, self.example)
        return found

    def _part(self, name: str) -> str:
        """The layer, by its path, that a module or tensor is in: up to the first number; empty
        where there is none.
        """
        if self.layers is not None and self._layer(name) is not None:
            return f"{self.layers.layers}.{self._layer(name)}"
        found = re.match(r"(.*?(?<![^.])\d+)(?=\.|$)", name)
        return found[1] if found else ""

    def _products(self) -> _Sum | None:
        """The MACs as a sum of products, or None where they are not one."""
        try:
            whole = self._trace(self.whole)
            lengths: list[list[list[tuple[Axis, int]]]] = [[[] for _ in dims] for _, dims in whole]
            for axes in self._together():
                smaller = self._trace(
                    {**self.whole, **{axis.name: axis.size - axis.step for axis in axes.values()}}
                )
                if [part for part, _ in smaller] != [part for part, _ in whole]:
                    return None
                for at, ((part, before), (_, after)) in enumerate(zip(whole, smaller, strict=True)):
                    for dim, (a, b) in enumerate(zip(before, after, strict=True)):
                        if a != b:
                            axis = axes.get(part) or axes.get("")
                            if axis is None:
                                return None
                            lengths[at][dim].append((axis, a - b))
        except _NoProduct:
            return None
        products: Counter[_Product] = Counter()
        for (part, dims), places in zip(whole, lengths, strict=True):
            affine = tuple(_Affine(n, tuple(p)) for n, p in zip(dims, places, strict=True))
            products[_Product(affine, self._layer(part))] += 1
        found = _Sum(dict(products), self.layers)
        draw = random.Random(0)
        for _ in range(3):
            sizes = {a.name: draw.randrange(a.step, a.size + 1, a.step) for a in self.ta.axes}
            if found(sizes) != self._count(sizes):
                return None
        return found if found(self.whole) == self._count(self.whole) else None

    def _together(self) -> Iterator[dict[str, Axis]]:
        """Axes that one trace tells apart, by part of the model: those of a kind that lie in one
        layer each. "": any part.
        """
        by_kind: dict[str, list[Axis]] = {}
        for axis in self.ta.axes:
            if not axis.layers and axis.size > axis.step:
                by_kind.setdefault(kind(axis.name), []).append(axis)
        for axes in by_kind.values():
            parts = [{self._part(place.tensor) for place in axis.slices} for axis in axes]
            own = [next(iter(p)) if len(p) == 1 else "" for p in parts]
            if "" not in own and len(set(own)) == len(own):
                yield dict(zip(own, axes, strict=True))
            else:
                yield from ({"": axis} for axis in axes)


class _NoProduct(Exception):
    """An operation whose MACs are not a product of lengths that we know."""


def _matmul(args: Sequence[Any], out: Any) -> list[int]:
    a, b = args
    return [*a.shape, b.shape[-1]]


def _convolution(args: Sequence[Any], out: Any) -> list[int]:
    x, weight, transposed = args[0], args[1], args[6]
    return [x.shape[0], *(x if transposed else out).shape[2:], *weight.shape]


_aten = torch.ops.aten


_KNOWN: dict[Any, Callable[[Sequence[Any], Any], list[int]]] = {
    _aten.mm: _matmul,
    _aten.bmm: _matmul,
    _aten.addmm: lambda args, out: _matmul(args[1:], out),
    _aten.baddbmm: lambda args, out: _matmul(args[1:], out),
    _aten.convolution: _convolution,
    _aten._convolution: _convolution,
}


class _Watch(TorchDispatchMode):
    """Notes the lengths of each matrix product, and the part of the model that it is in: the last
    of ``inside``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[int]]] = []
        self.inside = [""]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        if packet not in flop_registry and func is not torch.ops.prim.device.default:
            with self:
                made = func.decompose(*args, **kwargs or {})
            if made is not NotImplemented:
                return made
        out = func(*args, **kwargs or {})
        if packet in _KNOWN:
            self.found.append((self.inside[-1], _KNOWN[packet](args, out)))
        elif packet in flop_registry:
            raise _NoProduct(str(packet))
        return out


@contextmanager
def _watching(
    modules: nn.Module, part: Callable[[str], str]
) -> Iterator[list[tuple[str, list[int]]]]:
    """The matrix products of the forward that runs meanwhile."""
    watch = _Watch()

    def enter(where: str) -> Callable[..., None]:
        return lambda *_: watch.inside.append(where)

    def leave(*_: Any) -> None:
        watch.inside.pop()

    hooks: list[Any] = []
    for name, module in modules.named_modules():
        if part(name):
            hooks += [
                module.register_forward_pre_hook(enter(part(name))),
                module.register_forward_hook(leave),
            ]
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), watch:
            yield watch.found
    finally:
        for hook in hooks:
            hook.remove()
