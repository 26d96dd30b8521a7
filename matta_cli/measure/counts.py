"""Parameters, bytes and MACs of a Student of any sizes, by arithmetic: what its model has."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from matta_cli.adapter import Axis, Sizes
from matta_cli.data.split import Batch
from matta_cli.measure import cost
from matta_cli.models.ta import TA, Key
from matta_cli.nested.sizes import depth, full_sizes, kept_layers, kind, layer_of
from matta_cli.tasks.task import Task

# as safetensors has them
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}

_Places = defaultdict[Any, list[tuple[Axis, int]]]


@dataclass(frozen=True)
class _Length:
    """A length as a function of sizes: that with all axes whole, less what each axis leaves out."""

    whole: int
    axes: tuple[tuple[Axis, int], ...]  # and how much of the length a step of the axis is

    def __call__(self, sizes: Sizes) -> int:
        steps = ((axis.size - sizes[axis.name]) // axis.step * each for axis, each in self.axes)
        return self.whole - sum(steps)


@dataclass(frozen=True)
class _Product:
    """Lengths that are multiplied, in a layer of the model (None: outside its layers)."""

    lengths: tuple[_Length, ...]
    layer: int | None

    def shape(self, sizes: Sizes) -> list[int]:
        return [length(sizes) for length in self.lengths]


class Counts:
    """What a Student of any sizes costs, without building it.

    ``example`` is one example of the task, which MACs are counted on. ``exact`` says whether a sum
    of products gave torch's own count of MACs at the sizes that were tried; where not, each
    Student is run on views and counted.
    """

    def __init__(self, task: Task, ta: TA, example: Batch) -> None:
        device = next(ta.model.parameters()).device
        one = cost.repeated(example, 1)
        self.task, self.ta = task, ta
        self.example = {name: tensor.to(device) for name, tensor in one.items()}
        self._layers = depth(ta.axes)
        self._counted: dict[Key, int] = {}
        self._parameters, self._stored = self._tensors()

    @cached_property
    def _macs(self) -> Mapping[_Product, int] | None:
        """What ``macs`` sums up. Forwards are run for it, so where nobody asks they are not."""
        return self._sum_of_macs()

    @property
    def exact(self) -> bool:
        return self._macs is not None

    def parameters(self, sizes: Sizes) -> int:
        """Parameters; tied tensors count once."""
        return self._sum(self._parameters, sizes)

    def bytes(self, sizes: Sizes) -> int:
        """Bytes of the weights' file: its tensors, and safetensors' header or a little more."""
        kept = self._kept(sizes)
        data, header, count = 0, len('{"__metadata__":{"format":"pt"}}'), 0
        for product, bytes_each, entry in self._stored:
            if kept(product):
                shape = product.shape(sizes)
                data += math.prod(shape) * bytes_each
                header += entry + sum(len(str(n)) for n in shape)
                count += 1
        header += count * (2 * len(str(data)) + 1)  # where a tensor begins and ends
        return data + 8 + -(-header // 8) * 8

    def macs(self, sizes: Sizes) -> int:
        """Multiply-accumulates of one example."""
        if self._macs is not None:
            return self._sum(self._macs, sizes)
        key = self.ta.key(sizes)
        if key not in self._counted:
            self._counted[key] = self._count(sizes)
        return self._counted[key]

    def __call__(
        self, sizes: Sizes, names: Iterable[str] = ("parameters", "bytes", "macs")
    ) -> dict[str, Any]:
        return {name: getattr(self, name)(sizes) for name in names}

    def _sum(self, products: Mapping[_Product, int], sizes: Sizes) -> int:
        """The sum of products, each so many times, that the Student keeps."""
        kept = self._kept(sizes)
        some = ((product, times) for product, times in products.items() if kept(product))
        return sum(times * math.prod(product.shape(sizes)) for product, times in some)

    def _kept(self, sizes: Sizes) -> Callable[[_Product], bool]:
        if self._layers is None:
            return lambda product: True
        kept = {None, *kept_layers(self._layers, sizes[self._layers.name])}
        return lambda product: product.layer in kept

    def _layer(self, name: str) -> int | None:
        return None if self._layers is None else layer_of(f"{name}.", self._layers.layers)

    # Parameters and bytes: from shapes and slices

    def _tensors(self) -> tuple[dict[_Product, int], list[tuple[_Product, int, int]]]:
        """The parameters, and how often there are such.

        And of each stored tensor its shape, the bytes of a value, and those of its entry in the
        file's header but for digits.
        """
        model = self.ta.model
        places: _Places = defaultdict(list)
        for axis in self.ta.axes:
            for place in () if axis.layers else axis.slices:
                each = place.blocks * place.unit * axis.step
                places[place.tensor, place.dim].append((axis, each))

        def product(name: str, tensor: torch.Tensor) -> _Product:
            lengths = (_Length(n, tuple(places[name, dim])) for dim, n in enumerate(tensor.shape))
            return _Product(tuple(lengths), self._layer(name))

        parameters = dict(model.named_parameters())
        names = {id(tensor): name for name, tensor in [*model.named_buffers(), *parameters.items()]}
        state = model.state_dict(keep_vars=True)
        # of tied tensors the first
        first = {names.get(id(tensor), name): tensor for name, tensor in state.items()}
        stored, saved = [], self.ta.saved_as(self.task.recipe.export.dtype)
        for name, tensor in first.items():
            dtype = saved if tensor.is_floating_point() else tensor.dtype
            entry = {"dtype": _DTYPES.get(dtype, "F8_E4M3"), "shape": [], "data_offsets": []}
            written = len(json.dumps({name: entry}, separators=(",", ":")))
            commas = max(0, tensor.dim() - 1)
            stored.append((product(name, tensor), dtype.itemsize, written + commas))
        return Counter(product(name, tensor) for name, tensor in parameters.items()), stored

    # MACs: from the lengths of the matrix products

    def _count(self, sizes: Sizes) -> int:
        return cost.macs(self.task, self.ta.student(sizes).view().eval(), self.example)

    def _sum_of_macs(self) -> dict[_Product, int] | None:
        """The MACs as a sum of products, or None where they are not one.

        A length depends on the axes that change it when they are a step smaller.
        """
        whole = full_sizes(self.ta.axes)
        places: _Places = defaultdict(list)
        try:
            traced = self._trace(whole)
            for axes in self._together():
                smaller = whole | {axis.name: axis.size - axis.step for axis in axes.values()}
                for part, at, less in _shorter(traced, self._trace(smaller)):
                    places[at].append((axes[part] if part in axes else axes[""], less))
        except (_NoProduct, KeyError):
            return None
        products: Counter[_Product] = Counter()
        for i, (part, dims) in enumerate(traced):
            lengths = (_Length(n, tuple(places[i, dim])) for dim, n in enumerate(dims))
            products[_Product(tuple(lengths), self._layer(part))] += 1
        draw, tried = random.Random(0), []
        for _ in range(2):  # each a forward, which takes long in a large model
            tried.append({a.name: draw.randrange(a.step, a.size + 1, a.step) for a in self.ta.axes})
        equal = (self._sum(products, sizes) == self._count(sizes) for sizes in tried)
        return products if all(equal) else None

    def _together(self) -> Iterator[dict[str, Axis]]:
        """Axes that one trace tells apart, by the part of the model that each lies in.

        They are of one kind. An axis that is in several parts comes alone, under "".
        """
        by_kind: defaultdict[str, list[Axis]] = defaultdict(list)
        for axis in self.ta.axes:
            if not axis.layers and axis.size > axis.step:
                by_kind[kind(axis.name)].append(axis)
        for axes in by_kind.values():
            parts = [{self._part(place.tensor) for place in axis.slices} for axis in axes]
            own = [next(iter(p)) if len(p) == 1 else "" for p in parts]
            if "" not in own and len(set(own)) == len(own):
                yield dict(zip(own, axes, strict=True))
            else:
                yield from ({"": axis} for axis in axes)

    def _part(self, name: str) -> str:
        """The layer that a module or tensor is in: its path up to the first number, or nothing."""
        layer = self._layer(name)
        if self._layers is not None and layer is not None:
            return f"{self._layers.layers}.{layer}"
        match = re.match(r"(.*?(?<![^.])\d+)(?=\.|$)", name)
        return match[1] if match else ""

    def _trace(self, sizes: Sizes) -> list[_Traced]:
        """The matrix products of a Student's forward."""
        traced: list[_Traced] = []

        def note(operation: Any) -> Callable[..., int]:
            def noted(*shapes: Any, out_shape: Sequence[int], **_: Any) -> int:
                paths = (name.partition(".")[2] for name in counter.mod_tracker.parents)
                part = self._part(max(paths, key=len))
                traced.append((part, _lengths(operation, shapes, out_shape)))
                return 0

            return noted

        formulas = {operation: note(operation) for operation in flop_registry}
        counter = FlopCounterMode(display=False, custom_mapping=formulas)
        student = self.ta.student(sizes).module()  # without gradients, which the counter looks for
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            self.task.forward(student, self.example)
        return traced


# A matrix product: the part of the model that it is in, and the lengths that it multiplies.
_Traced = tuple[str, list[int]]
_aten = torch.ops.aten
_MATMULS = (_aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm)
_CONVOLUTIONS = (_aten.convolution, _aten._convolution)


class _NoProduct(Exception):
    """An operation whose MACs are not a product of lengths that we know."""


def _lengths(operation: Any, shapes: Sequence[Any], out: Sequence[int]) -> list[int]:
    """The lengths whose product is an operation's MACs, by the shapes of its arguments."""
    if operation in _MATMULS:
        a, b = shapes[-2:]  # after what is added, if anything
        return [*a, b[-1]]
    if operation in _CONVOLUTIONS:
        x, weight, transposed = shapes[0], shapes[1], shapes[6]
        return [x[0], *(x if transposed else out)[2:], *weight]
    raise _NoProduct


def _shorter(
    whole: Sequence[_Traced], smaller: Sequence[_Traced]
) -> Iterator[tuple[str, tuple[int, int], int]]:
    """Which lengths are shorter: the part, the product and the place in it, and by how much."""
    if [part for part, _ in smaller] != [part for part, _ in whole]:
        raise _NoProduct
    for i, ((part, before), (_, after)) in enumerate(zip(whole, smaller, strict=True)):
        for dim, (a, b) in enumerate(zip(before, after, strict=True)):
            if a != b:
                yield part, (i, dim), a - b
