"""Whether an axis holds: it is tried on the model itself, with random weights.

Its units are permuted, cut and appended; what the model then gives says what the axis can do.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from matta_adapters.calls import Inputs, run
from matta_adapters.graph import CONV
from matta_adapters.skeleton import shaped
from matta_cli.adapter import Axis, Sizes

Repeats = tuple[tuple[str, str, int], ...]  # (module, attribute, value at the axis's whole size)
# What a model raises that cannot be run at other sizes.
_FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, ZeroDivisionError)


def built(
    model: nn.Module,
    axes: Sequence[Axis],
    repeats: Mapping[str, Repeats],
    sizes: Sizes,
    whole: Sizes | None = None,
) -> nn.Module:
    """A fresh module like ``model`` at ``sizes``, with the attributes that repeat them.

    whole: the sizes at which ``repeats`` holds, where the axes have others by now.
    """
    made: nn.Module = shaped(model, axes, sizes)
    for axis in axes:
        size = sizes.get(axis.name, axis.size)
        of = axis.size if whole is None else whole[axis.name]
        for path, attribute, value in repeats.get(axis.name, ()):
            setattr(made.get_submodule(path), attribute, value * size // of)
    return made


def _as(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Numbers as ``dtype``; ids and masks as they are."""
    return lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor


class Trial:
    """The model with random weights, in float64 where it runs so, on which axes are tried."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.generator = torch.Generator().manual_seed(0)
        for dtype, self.tolerance in ((torch.float64, 1e-5), (torch.float32, 1e-4)):
            self.model = _randomized(copy.deepcopy(model).to(dtype), self.generator)
            self.inputs = inputs.map(_as(dtype))
            try:
                with torch.no_grad():
                    self.expected = run(self.model, self.inputs)
                break
            except RuntimeError:  # somewhere it insists on float32
                continue
        self.state = dict(self.model.named_parameters()) | dict(self.model.named_buffers())

    def holds(self, axis: Axis, repeats: Repeats) -> str:
        """What an axis can do: ``grows``, ``shrinks`` (a norm sees new units), or empty: nothing.

        ``outputs`` where its units are what the model gives.
        """
        try:
            return self._holds(axis, repeats)
        except _FAILURES:
            return ""

    def together(self, axes: Sequence[Axis], repeats: Mapping[str, Repeats]) -> bool:
        """Whether the model runs with half of each axis at once, and with twice of each."""
        for factor in (0.5, 2):
            sizes = {a.name: max(1, int(a.size // a.step * factor)) * a.step for a in axes}
            shape = self._shape(axes, repeats, sizes, "meta")
            if shape is None:  # the meta device does not serve: the same with real numbers
                shape = self._shape(axes, repeats, sizes, "cpu")
            if shape != self.expected.shape:
                return False
        return True

    @torch.no_grad()
    def _holds(self, axis: Axis, repeats: Repeats) -> str:
        half = max(1, axis.size // axis.step // 2) * axis.step
        small = self._run(axis, repeats, list(range(half)))
        if small.shape != self.expected.shape:
            return "outputs"
        order = torch.randperm(axis.size // axis.step, generator=self.generator)
        mixed = (order[:, None] * axis.step + torch.arange(axis.step)).flatten().tolist()
        permuted = run(self.model, self.inputs, self._taken(axis, mixed))
        if not self._alike(permuted, self.expected):
            return ""
        if not any(s.outgoing for s in axis.slices):
            return "shrinks"
        every = list(range(axis.size))
        silenced = run(self.model, self.inputs, self._taken(axis, every, silent_from=half))
        if not self._alike(silenced, small):
            return "shrinks"
        new = torch.randint(axis.size, (2 * axis.step,), generator=self.generator).tolist()
        grown = self._run(axis, repeats, [*every, *new], silent_from=axis.size)
        return "grows" if self._alike(grown, self.expected) else "shrinks"

    def _alike(self, one: Tensor, other: Tensor) -> bool:
        if one.shape != other.shape:
            return False
        scale = float(self.expected.abs().max()) or 1.0
        return float((one - other).abs().max()) <= self.tolerance * scale

    @torch.no_grad()
    def _shape(
        self, axes: Sequence[Axis], repeats: Mapping[str, Repeats], sizes: Sizes, device: str
    ) -> torch.Size | None:
        """The shape of what the model gives at ``sizes``; None where it does not run."""
        try:
            with torch.device(device):
                made = built(self.model, axes, repeats, sizes)
                return run(made, self.inputs.map(lambda t: t.to(device))).shape
        except _FAILURES:
            return None

    def _run(
        self, axis: Axis, repeats: Repeats, units: list[int], silent_from: int | None = None
    ) -> Tensor:
        with torch.device("meta"):
            made = built(self.model, [axis], {axis.name: repeats}, {axis.name: len(units)})
        return run(made, self.inputs, self._taken(axis, units, silent_from))

    def _taken(
        self, axis: Axis, units: list[int], silent_from: int | None = None
    ) -> dict[str, Tensor]:
        """The tensors with these units of the axis, in this order.

        Units from ``silent_from`` on are not read.
        """
        state = dict(self.state)
        for s in axis.slices:
            index = list(range(s.start))
            silent: list[int] = []
            for block in range(s.blocks):
                if silent_from is not None:
                    silent += range(len(index) + silent_from, len(index) + len(units))
                index += [s.start + block * axis.size + unit for unit in units]
            tensor = state[s.tensor]
            index += range(s.start + s.blocks * axis.size, tensor.shape[s.dim])
            tensor = tensor.index_select(s.dim, torch.tensor(index))
            places = torch.tensor(silent)
            if s.outgoing and silent:
                tensor.index_fill_(s.dim, places, 0.0)
            elif silent and silent_from == axis.size and tensor.dim() > 1:
                # New units are like none that is there.
                tensor.index_copy_(s.dim, places, self._drawn(tensor, s.dim, len(silent)))
            state[s.tensor] = tensor
        return state

    def _drawn(self, tensor: Tensor, dim: int, count: int) -> Tensor:
        """Random values of a tensor's spread for ``count`` units along ``dim``."""
        shape = [*tensor.shape[:dim], count, *tensor.shape[dim + 1 :]]
        return torch.randn(shape, generator=self.generator, dtype=tensor.dtype) * tensor.std()


@torch.no_grad()
def _randomized(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Weights of order one everywhere.

    A layer scale of 1e-6, or a bias of zero, would hide what goes wrong behind it.
    """
    kinds = (nn.Linear, CONV)
    linear = [m for m in model.modules() if isinstance(m, kinds) or type(m).__name__ == "Conv1D"]
    layers = {id(m.weight) for m in linear}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] in ("running_mean", "running_var"):
            tensors[name] = buffer
    for name, tensor in tensors.items():
        drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        if id(tensor) in layers:
            tensor.copy_(drawn * 1.5 / math.sqrt(max(1, tensor[0].numel())))
        elif tensor.dim() > 1 and len(tensor) > 1 and id(tensor) not in tables:
            # a matrix, or several (experts), of a module of the model's own: which of its
            # dimensions is the input is not known
            tensor.copy_(drawn * 1.5 / math.prod(tensor.shape[-2:]) ** 0.25)
        elif name.endswith("running_var"):
            tensor.copy_(0.5 + drawn.abs())
        else:
            tensor.copy_(1 + 0.3 * drawn)
    return model.eval()
