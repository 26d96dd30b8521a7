"""From a module that can be run to its axes: torch-pruning's dependency graph proposes, the module
itself decides.

Each proposed axis is tried on a copy with random weights: its units can be permuted, cut and
(mostly) appended. What fails is left whole and named. Nothing of torch-pruning is left in what is
found: axes are data, as those of any other adapter.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from matta_adapters.skeleton import shaped
from matta_cli.adapter import Axis, Sizes, Slice
from matta_cli.errors import MattaError, said

Place = tuple[str, int, bool]  # tensor, dim, whether it reads the units
Repeats = tuple[tuple[str, str, int], ...]  # (module, attribute, value at the axis's whole size)
_CONV = nn.modules.conv._ConvNd
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads", "num_q_heads")
_WIDTHS = ("head_dim", "attention_head_size", "head_size", "dim_head", "d_head")
_FEW = 2  # an axis of one unit has nothing to shrink


@dataclass
class Inputs:
    """How a model is called: positional and keyword tensors."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        def one(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        return Inputs(
            tuple(map(one, self.args)), {key: one(value) for key, value in self.kwargs.items()}
        )

    def tensors(self) -> list[Tensor]:
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)]


@dataclass
class Found:
    """What a model holds. repeats: axis -> attributes that repeat its size. whole: reason -> layers
    that were left whole.
    """

    axes: list[Axis] = field(default_factory=list)
    repeats: dict[str, Repeats] = field(default_factory=dict)
    whole: dict[str, list[str]] = field(default_factory=dict)

    def leave(self, reason: str, name: str) -> None:
        self.whole.setdefault(reason, []).append(name)


def resized(axes: Sequence[Axis], sizes: Sizes) -> list[Axis]:
    """The axes of a model built at ``sizes``; what lies behind an axis in the same dimension moves
    with it.
    """
    changes: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for axis in axes:
        for s in axis.slices:
            change = s.blocks * (sizes.get(axis.name, axis.size) - axis.size)
            changes.setdefault((s.tensor, s.dim), []).append((s.start, change))

    def moved(s: Slice) -> Slice:
        return replace(
            s, start=s.start + sum(by for at, by in changes[s.tensor, s.dim] if at < s.start)
        )

    return [
        replace(axis, size=sizes.get(axis.name, axis.size), slices=tuple(map(moved, axis.slices)))
        for axis in axes
    ]


def built(
    model: nn.Module,
    axes: Sequence[Axis],
    repeats: Mapping[str, Repeats],
    whole: Sizes,
    sizes: Sizes,
) -> nn.Module:
    """A fresh module like ``model`` at ``sizes``. whole: the sizes at which ``repeats`` holds."""
    made: nn.Module = shaped(model, axes, sizes)
    touched = {s.tensor.rpartition(".")[0] for axis in axes for s in axis.slices}
    was = dict(model.named_modules())
    for name, module in made.named_modules():
        if name in touched:
            _repeat_shapes(module, was[name])
    modules = dict(made.named_modules())
    for axis in axes:
        size = sizes.get(axis.name, axis.size)
        for name, attribute, value in repeats.get(axis.name, ()):
            setattr(modules[name], attribute, value * size // whole[axis.name])
    return made


def _repeat_shapes(module: Any, was: Any) -> None:
    """Set the attributes of a stock layer that repeat the shapes of its tensors."""
    weight = getattr(module, "weight", None)
    if weight is None:
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, _CONV):
        if was.groups > 1:  # depthwise: one group per channel, so they shrink together
            module.groups = module.in_channels = module.out_channels = weight.shape[0]
        else:
            out, into = (1, 0) if module.transposed else (0, 1)
            module.out_channels, module.in_channels = weight.shape[out], weight.shape[into]
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = weight.shape[1]
    elif hasattr(module, "nf") and hasattr(module, "nx"):  # transformers' Conv1D
        module.nx, module.nf = weight.shape
    elif hasattr(module, "normalized_shape"):
        module.normalized_shape = tuple(weight.shape)
    elif hasattr(module, "num_features"):
        module.num_features = len(weight)
    elif hasattr(module, "num_channels"):
        module.num_channels = len(weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)


# Running, and refusing what does not run


def output_of(given: Any) -> Tensor:
    """The one tensor that a model gives. Raises ``MattaError`` where there is none."""
    output = getattr(given, "logits", given)
    if not isinstance(output, Tensor):
        raise MattaError(
            f"The model gives a {type(given).__name__}; a tensor, or something with .logits, is needed."
        )
    return output


def run(model: nn.Module, inputs: Inputs, state: Mapping[str, Tensor] | None = None) -> Tensor:
    if state is None:
        return output_of(model(*inputs.args, **inputs.kwargs))
    return output_of(functional_call(model, dict(state), inputs.args, inputs.kwargs))


def check_traceable(model: nn.Module, inputs: Inputs, name: str) -> Tensor:
    """The model's output, with its graph. Raises ``MattaError`` with the module that fails, or that
    cuts the graph.
    """
    stack: list[tuple[str, nn.Module]] = []
    cutting: list[tuple[str, nn.Module]] = []
    handles = []

    def enter(path: str) -> Any:
        return lambda module, _inputs: stack.append((path, module))

    def leave(module: nn.Module, given: Any, output: Any) -> None:
        place = stack.pop()
        tensors = [t for t in given if isinstance(t, Tensor)]
        flows = any(t.requires_grad for t in tensors) or (
            tensors and any(True for _ in module.parameters())
        )
        if (
            flows
            and isinstance(output, Tensor)
            and output.is_floating_point()
            and not output.requires_grad
        ):
            cutting.append(place)

    for path, module in model.named_modules():
        handles += [
            module.register_forward_pre_hook(enter(path)),
            module.register_forward_hook(leave),
        ]
    try:
        with torch.enable_grad():
            output = run(model, inputs)
    except MattaError:
        raise
    except Exception as error:  # it is the user's code that runs
        where = f"in {_shown(*stack[-1])}" if stack else "before its first layer"
        raise MattaError(
            f"{name}: the model does not run on --example: {said(error)} ({where})."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not output.requires_grad:
        inner = [
            place for place in cutting if not any(_inside(other[0], place[0]) for other in cutting)
        ]
        where = _shown(*inner[-1]) if inner else _shown("", model)
        raise MattaError(
            f"{name}: {where} cannot be traced: its output is cut from the graph (detach, no_grad, or an integer); "
            "write an adapter for this model (CONTRIBUTING.md)."
        )
    if not torch.isfinite(output).all():
        raise MattaError(f"{name}: the model's outputs on --example are not finite.")
    return output


def _inside(path: str, outer: str) -> bool:
    return path != outer and (not outer or path.startswith(f"{outer}."))


def _shown(path: str, module: nn.Module) -> str:
    return f"{path} ({type(module).__name__})" if path else type(module).__name__


# The dependency graph


class _Graph:
    """torch-pruning's dependency graph of a copy, read as places in the model's own tensors."""

    def __init__(self, model: nn.Module, inputs: Inputs, name: str) -> None:
        import torch_pruning

        twin = copy.deepcopy(model).requires_grad_(True)
        # torch-pruning does not see through transformers' Conv1D
        self.transposed = _linear_twins(twin)
        self.graph = torch_pruning.DependencyGraph()
        self.index = torch_pruning._helpers._HybridIndex
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.graph.build_dependency(
                    twin,
                    inputs,
                    forward_fn=lambda m, given: run(m, given),
                    ignored_params=[],
                    verbose=False,
                )
        except Exception as error:  # torch-pruning raises whatever its own tables run into
            raise MattaError(
                f"{name}: {_shown('', model)} cannot be traced by torch-pruning: {said(error)}; write an adapter "
                "(CONTRIBUTING.md)."
            ) from error
        self.names = {id(m): n for n, m in twin.named_modules()} | {
            id(p): n for n, p in twin.named_parameters()
        }
        tensors = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers()),
        }
        self.first: dict[str, str] = {}  # axes name a tied tensor by its first name
        known: dict[int, str] = {}
        for key, tensor in tensors.items():
            self.first[key] = known.setdefault(id(tensor), key)
        self.shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        self.nodes = self.graph.module2node

    def producers(self) -> Iterator[tuple[str, nn.Module]]:
        """Layers that make channels, in the model's own order."""
        order = {name: i for i, name in enumerate(self.names.values())}
        kinds = (nn.Linear, _CONV, nn.Embedding)
        found = [
            (self.names[id(m)], m)
            for m in self.nodes
            if isinstance(m, kinds) and id(m) in self.names
        ]
        yield from sorted(found, key=lambda item: order[item[0]])

    def unseen(self, model: nn.Module) -> list[str]:
        """Layers that would make channels, if the forward pass reached them as layers."""
        known = {self.names[id(m)] for m in self.nodes if id(m) in self.names}
        return [
            n
            for n, m in model.named_modules()
            if isinstance(m, (nn.Linear, _CONV, nn.Embedding)) and n not in known
        ]

    def group(self, root: nn.Module) -> tuple[dict[tuple[Any, bool], set[tuple[int, int]]], bool]:
        """What shrinks with all output channels of ``root``: (module, reads) -> (its index, root's
        channel).

        Also whether the walk came to its end: torch-pruning's own never does on grouped-query
        attention.
        """
        pruner = self.graph.get_pruner_of_module(root)
        channels = pruner.get_out_channels(root)
        stack = [
            (
                self.nodes[root],
                pruner.prune_out_channels,
                tuple(self.index(i, i) for i in range(channels)),
            )
        ]
        seen: set[Any] = set()
        members: dict[tuple[Any, bool], set[tuple[int, int]]] = {}
        limit = 10 * len(self.nodes) + 1000
        while stack:
            step = stack.pop()
            if step in seen:
                continue
            seen.add(step)
            if len(seen) > limit:
                return members, False
            node, handler, index = step
            if id(node.module) in self.names:
                own = self.graph.get_pruner_of_module(node.module)
                reads = handler == own.prune_in_channels and handler != own.prune_out_channels
                members.setdefault((node.module, reads), set()).update(
                    (i.idx, i.root_idx) for i in index
                )
            for dependency in node.dependencies:
                if dependency.is_triggered_by(handler):
                    found: Any = list(index)
                    for mapping in dependency.index_mapping:
                        found = mapping(found) if mapping is not None else found
                    if found:
                        stack.append((dependency.target, dependency.handler, tuple(found)))
        return members, True

    def places(self, module: Any, reads: bool) -> list[Place]:
        """The dimensions of tensors that a member stands for. Raises ``LookupError`` for a kind of
        layer that stays whole.
        """
        name = self.names[id(module)]
        if isinstance(module, nn.Parameter):
            return [(self.first[name], self.nodes[module].pruning_dim, False)]
        weight, bias = f"{name}.weight", f"{name}.bias"
        if isinstance(module, _CONV) and module.groups > 1:
            if module.transposed or not module.groups == module.in_channels == module.out_channels:
                raise LookupError("convolutions in groups")
            found: list[Place] = [(weight, 0, False), (bias, 0, False)]
        elif isinstance(module, (nn.Linear, _CONV)):
            swapped = name in self.transposed or getattr(module, "transposed", False)
            found = [(weight, int(reads != swapped), reads)] + ([] if reads else [(bias, 0, False)])
        elif isinstance(module, nn.Embedding):
            found = [(weight, 1, False)]
        elif isinstance(
            module,
            (*_NORMS, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm),
        ):
            found = [
                (f"{name}.{part}", 0, False)
                for part in ("weight", "bias", "running_mean", "running_var")
            ]
        elif isinstance(module, nn.PReLU):
            found = [(weight, 0, False)] if module.num_parameters > 1 else []
        else:
            raise LookupError(f"layers of type {type(module).__name__}")
        return [(self.first[t], dim, reading) for t, dim, reading in found if t in self.shapes]


def _linear_twins(model: nn.Module) -> set[str]:
    """Replace every Conv1D of transformers ([in, out] weights) by the linear layer it is; their
    names.
    """
    found = {
        name
        for name, m in model.named_modules()
        if type(m).__name__ == "Conv1D" and hasattr(m, "nf")
    }
    for name in found:
        old: Any = model.get_submodule(name)
        into, out = old.weight.shape
        twin = nn.Linear(into, out, dtype=old.weight.dtype)
        with torch.no_grad():
            twin.weight.copy_(old.weight.T)
            twin.bias.copy_(old.bias)
        model.set_submodule(name, twin)
    return found


# From groups to axes


Pairs = dict[Place, set[tuple[int, int]]]


def _candidates(
    pairs: Pairs, shapes: Mapping[str, Sequence[int]]
) -> list[tuple[int, tuple[Slice, ...]]]:
    """Size and slices that these (place -> (index, root channel)) may mean: as they were traced,
    then by the lengths alone.
    """
    lengths = {(tensor, dim, reads): shapes[tensor][dim] for tensor, dim, reads in pairs}
    # a place that is too short was reached along another dimension of the activations (token
    # mixing)
    traced = _blocks(
        {
            place: found
            for place, found in pairs.items()
            if all(i < lengths[place] for i, _ in found)
        }
    )
    candidates = [traced] if traced is not None else []
    size = min(lengths.values())
    if size < max(lengths.values()) and not any(length % size for length in lengths.values()):
        # a gate and its value, or q, k and v, in one layer, by an operation that torch-pruning does
        # not follow
        candidates.append(
            (size, tuple(_once([Slice(t, d, lengths[t, d, r] // size, 0, r) for t, d, r in pairs])))
        )
    return candidates


def _blocks(pairs: Pairs) -> tuple[int, tuple[Slice, ...]] | None:
    parent: dict[int, int] = {}

    def top(r: int) -> int:
        while parent.setdefault(r, r) != r:
            parent[r] = r = parent[parent[r]]
        return r

    for found in pairs.values():  # root channels that meet at one index are one unit
        at: dict[int, int] = {}
        for i, r in found:
            a, b = sorted((top(at.setdefault(i, r)), top(r)))
            parent[b] = a
    unit = {r: u for u, r in enumerate(sorted({top(r) for r in parent}))}
    size, slices = len(unit), []
    for (tensor, dim, reads), found in pairs.items():
        units = {i: unit[top(r)] for i, r in found}
        start = min(units)
        if len(units) % size or any(units.get(start + k) != k % size for k in range(len(units))):
            return None
        slices.append(Slice(tensor, dim, len(units) // size, start, reads))
    return size, tuple(_once(slices))


def _once(slices: Sequence[Slice]) -> list[Slice]:
    """Without the second mention of a tied tensor."""
    found: dict[tuple[str, int, int], Slice] = {}
    for s in slices:
        found.setdefault((s.tensor, s.dim, s.start), s)
    return list(found.values())


@dataclass
class _Grouped:
    """Grouped-query attention: the query heads of each key/value head are an axis; the key/value
    heads (``shared``) stay.
    """

    size: int
    slices: tuple[Slice, ...]
    step: int
    shared: list[str]

    @property
    def candidate(self) -> tuple[int, tuple[Slice, ...]]:
        return self.size, self.slices


def _grouped_queries(
    members: Mapping[tuple[Any, bool], Any], graph: _Graph, model: nn.Module
) -> _Grouped | None:
    made = {m: m.out_features for m, reads in members if isinstance(m, nn.Linear) and not reads}
    read = [m for m, reads in members if isinstance(m, nn.Linear) and reads]
    if len(made) < 2 or len(read) != 1:
        return None
    wide, narrow = max(made.values()), min(made.values())
    queries = [m for m, width in made.items() if width == wide]
    scope = _scope([graph.names[id(m)] for m in (*made, *read)])
    widths = {v for _, a, v in _numbers(model, scope) if a in _WIDTHS and narrow % v == 0}
    if (
        len(queries) != 1
        or wide % narrow
        or wide == narrow
        or len(widths) != 1
        or read[0].in_features != wide
    ):
        return None
    (width,) = widths
    size, blocks = wide // narrow * width, narrow // width
    places = [*graph.places(queries[0], False), *graph.places(read[0], True)]
    linear = {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and n.startswith(f"{scope}.")
    }
    shared = [n for n, m in linear.items() if m.out_features == narrow]
    return _Grouped(
        size, tuple(Slice(t, dim, blocks, 0, reads) for t, dim, reads in places), width, shared
    )


def _scope(owners: Sequence[str]) -> str:
    """The module that holds all of these."""
    split = [name.split(".") for name in owners]
    common: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _numbers(model: nn.Module, scope: str) -> Iterator[tuple[str, str, int]]:
    """Module, attribute and value of every positive whole number that the modules of a scope keep
    beside their layers.
    """
    layers = (nn.Linear, _CONV, nn.Embedding, *_NORMS, nn.modules.batchnorm._BatchNorm, nn.Dropout)
    for name, module in model.named_modules():
        if (
            (name == scope or _inside(name, scope))
            and not isinstance(module, layers)
            and type(module).__name__ != "Conv1D"
        ):
            for attribute, value in vars(module).items():
                if (
                    isinstance(value, int)
                    and not isinstance(value, bool)
                    and value > 0
                    and not attribute.startswith("_")
                ):
                    yield name, attribute, value


# Trying on the model itself


class _Trial:
    """The model with random weights, on which an axis is tried."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.generator = torch.Generator().manual_seed(0)
        for dtype, self.tolerance in ((torch.float64, 1e-5), (torch.float32, 1e-4)):
            self.model = _randomized(copy.deepcopy(model).to(dtype), self.generator)
            self.inputs = inputs.map(lambda t, d=dtype: t.to(d) if t.is_floating_point() else t)  # type: ignore[misc]
            try:
                with torch.no_grad():
                    self.expected = run(self.model, self.inputs)
                break
            except RuntimeError:  # somewhere it insists on float32
                continue
        self.state = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        self.whole: dict[str, int] = {}

    def same(self, got: Tensor) -> bool:
        scale = float(self.expected.abs().max()) or 1.0
        return (
            got.shape == self.expected.shape
            and float((got - self.expected).abs().max()) <= self.tolerance * scale
        )

    def holds(self, axis: Axis, repeats: Repeats) -> str:
        """``grows``, ``shrinks`` (a norm sees new units), ``outputs`` (it is what the model gives),
        or empty.
        """
        try:
            return self._holds(axis, repeats)
        except (
            RuntimeError,
            ValueError,
            TypeError,
            IndexError,
            AssertionError,
            ZeroDivisionError,
            KeyError,
        ):
            return ""

    @torch.no_grad()
    def _holds(self, axis: Axis, repeats: Repeats) -> str:
        half = max(1, axis.size // axis.step // 2) * axis.step
        small = self._run(axis, repeats, list(range(half)))
        if small.shape != self.expected.shape:
            return "outputs"
        order = torch.randperm(axis.size // axis.step, generator=self.generator)
        mixed = (order[:, None] * axis.step + torch.arange(axis.step)).flatten().tolist()
        if not self.same(run(self.model, self.inputs, self._taken(axis, mixed))):
            return ""
        if not any(s.outgoing for s in axis.slices):
            return "shrinks"
        silent = run(
            self.model, self.inputs, self._taken(axis, list(range(axis.size)), silent_from=half)
        )
        scale = float(self.expected.abs().max()) or 1.0
        if float((silent - small).abs().max()) > self.tolerance * scale:
            return "shrinks"
        more = [
            *range(axis.size),
            *torch.randint(axis.size, (2 * axis.step,), generator=self.generator).tolist(),
        ]
        return (
            "grows"
            if self.same(self._run(axis, repeats, more, silent_from=axis.size))
            else "shrinks"
        )

    def together(self, found: Found) -> bool:
        """All axes at once: half of each runs, and more of each that can grow changes nothing."""
        for factor in (0.5, 2):
            sizes = {a.name: max(1, int(a.size // a.step * factor)) * a.step for a in found.axes}
            try:
                with torch.device("meta"):
                    made = built(
                        self.model,
                        found.axes,
                        found.repeats,
                        {a.name: a.size for a in found.axes},
                        sizes,
                    )
                    meta = self.inputs.map(lambda t: t.to("meta"))
                    with torch.no_grad():
                        if run(made, meta).shape != self.expected.shape:
                            return False
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
                if not self._runs(found, sizes):
                    return False
        return True

    def _runs(self, found: Found, sizes: Sizes) -> bool:
        """Where the meta device does not serve: the same with real numbers."""
        made = built(
            self.model, found.axes, found.repeats, {a.name: a.size for a in found.axes}, sizes
        )
        try:
            with torch.no_grad():
                return run(made.eval(), self.inputs).shape == self.expected.shape
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
            return False

    def _run(
        self, axis: Axis, repeats: Repeats, units: list[int], silent_from: int | None = None
    ) -> Tensor:
        with torch.device("meta"):
            made = built(
                self.model,
                [axis],
                {axis.name: repeats},
                {axis.name: axis.size},
                {axis.name: len(units)},
            )
        return run(made, self.inputs, self._taken(axis, units, silent_from))

    def _taken(
        self, axis: Axis, units: list[int], silent_from: int | None = None
    ) -> dict[str, Tensor]:
        """The tensors with these units of the axis, in this order. Those from ``silent_from`` on
        are not read.
        """
        state = dict(self.state)
        for s in axis.slices:
            index, quiet = list(range(s.start)), []
            for block in range(s.blocks):
                quiet += (
                    [len(index) + k for k in range(silent_from, len(units))]
                    if silent_from is not None
                    else []
                )
                index += [s.start + block * axis.size + u for u in units]
            tensor = state[s.tensor]
            index += range(s.start + s.blocks * axis.size, tensor.shape[s.dim])
            tensor = tensor.index_select(s.dim, torch.tensor(index))
            if s.outgoing and quiet:
                tensor.index_fill_(s.dim, torch.tensor(quiet), 0.0)
            elif quiet and silent_from == axis.size and tensor.dim() > 1:
                # new units are like none that is there
                tensor.index_copy_(
                    s.dim, torch.tensor(quiet), _drawn(tensor, s.dim, len(quiet), self.generator)
                )
            state[s.tensor] = tensor
        return state


def _drawn(tensor: Tensor, dim: int, count: int, generator: torch.Generator) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = count
    return torch.randn(shape, generator=generator, dtype=tensor.dtype) * tensor.std()


@torch.no_grad()
def _randomized(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Weights of order one everywhere: a layer scale of 1e-6, or a bias of zero, would hide what
    goes wrong behind it.
    """
    layers = {
        id(m.weight)
        for m in model.modules()
        if isinstance(m, (nn.Linear, _CONV)) or type(m).__name__ == "Conv1D"
    }
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    tensors |= {
        n: b
        for n, b in model.named_buffers()
        if n.rpartition(".")[2] in ("running_mean", "running_var")
    }
    for name, tensor in tensors.items():
        drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        if id(tensor) in layers:
            tensor.copy_(drawn * 1.5 / math.sqrt(max(1, tensor[0].numel())))
        elif name.endswith("running_var"):
            tensor.copy_(0.5 + drawn.abs())
        else:
            tensor.copy_(1 + 0.3 * drawn)
    return model.eval()


# The whole


def nest(model: nn.Module, inputs: Inputs, name: str) -> Found:
    """The axes of ``model`` on ``inputs``. Raises ``MattaError``, with the module, where it cannot
    be run or traced.
    """
    traced = copy.deepcopy(model).eval().requires_grad_(True)
    check_traceable(traced, inputs, name)
    graph, trial, found = _Graph(model.eval(), inputs, name), _Trial(model, inputs), Found()
    taken: set[tuple[str, int, int]] = set()  # (tensor, dim, start) that belong to an axis
    done: set[str] = set()  # producers that were dealt with
    for root_name, root in graph.producers():
        if root_name in done:
            continue
        members, ended = graph.group(root)
        done |= {
            graph.names[id(m)]
            for m, reads in members
            if not reads and not isinstance(m, nn.Parameter)
        }
        reason, candidates = (
            _read(graph, members)
            if ended
            else ("torch-pruning finds no end to what depends on them", [])
        )
        if candidates and _accept(found, trial, taken, model, root_name, candidates):
            continue
        grouped = _grouped_queries(members, graph, model)
        queries = grouped.slices[0].tensor.removesuffix(".weight") if grouped is not None else ""
        if grouped is not None and _accept(
            found, trial, taken, model, queries, [grouped.candidate], [grouped.step]
        ):
            done |= {queries, *grouped.shared}
            for name_ in grouped.shared:
                found.leave("several query heads share each of their heads", name_)
        else:
            found.leave(reason, root_name)
    for unseen in graph.unseen(model):
        found.leave(
            "the graph does not reach them (unused, detached, or run by other code than their own)",
            unseen,
        )
    while found.axes and not trial.together(found):
        last = found.axes.pop()
        found.repeats.pop(last.name, None)
        found.leave("the model did not run with them and the others at other sizes", last.name)
    return found


def _read(
    graph: _Graph, members: Mapping[tuple[Any, bool], Any]
) -> tuple[str, list[tuple[int, tuple[Slice, ...]]]]:
    """What the members of a group may mean as slices; and what to say where none of it holds."""
    pairs: Pairs = {}
    try:
        for (module, reads), indices in members.items():
            for place in graph.places(module, reads):
                pairs.setdefault(place, set()).update(indices)
    except LookupError as kind:
        return f"{kind.args[0]} stay as they are", []
    candidates = _candidates(pairs, graph.shapes)
    if not candidates or all(
        s.blocks > 1 for _, slices in candidates for s in slices if s.outgoing
    ):
        return (
            "their units do not lie in whole blocks in what reads them (flattened, say)",
            candidates,
        )
    return "the model did not run, or not to the same outputs, when they were tried", candidates


def _accept(
    found: Found,
    trial: _Trial,
    taken: set[tuple[str, int, int]],
    model: nn.Module,
    name: str,
    candidates: Sequence[tuple[int, tuple[Slice, ...]]],
    steps: Sequence[int] = (),
) -> bool:
    """Try what the candidates may mean, the simplest first; the first that holds becomes an axis.
    False where none does.
    """
    shrinking: tuple[Axis, Repeats] | None = None
    # of an nn.Sequential: a kind needs a word
    name = name if name.strip("0123456789.") else f"layer.{name}"
    for size, slices in candidates:
        if any((s.tensor, s.dim, s.start) in taken for s in slices):
            continue
        for step, repeats in _meanings(model, size, slices, steps):
            axis = Axis(name, size, slices, step)
            verdict = trial.holds(axis, repeats)
            if verdict == "shrinks" and not any(s.outgoing for s in slices):
                axis = _with_reader(axis)
                verdict = trial.holds(axis, repeats)
            if verdict == "outputs":
                return True  # what the model gives, and so no axis; nothing to say
            if verdict == "grows":
                return _add(found, taken, axis, repeats)
            if verdict == "shrinks" and shrinking is None and _norm_spans(model, axis):
                shrinking = axis, repeats
    return shrinking is not None and _add(found, taken, *shrinking)


def _add(found: Found, taken: set[tuple[str, int, int]], axis: Axis, repeats: Repeats) -> bool:
    if axis.size // axis.step >= _FEW:
        found.axes.append(axis)
        taken |= {(s.tensor, s.dim, s.start) for s in axis.slices}
        if repeats:
            found.repeats[axis.name] = repeats
    return True


def _with_reader(axis: Axis) -> Axis:
    """Where no layer reads the units (a product of two towers): silent in the last layer that makes
    them, they are silent.
    """
    owner = axis.slices[-1].tensor.rpartition(".")[0]
    return replace(
        axis,
        slices=tuple(
            replace(s, outgoing=s.tensor.rpartition(".")[0] == owner) for s in axis.slices
        ),
    )


def _norm_spans(model: nn.Module, axis: Axis) -> bool:
    owners = [model.get_submodule(s.tensor.rpartition(".")[0]) for s in axis.slices]
    return any(isinstance(owner, _NORMS) or "RMSNorm" in type(owner).__name__ for owner in owners)


def _meanings(
    model: nn.Module, size: int, slices: Sequence[Slice], steps: Sequence[int]
) -> Iterator[tuple[int, Repeats]]:
    """Steps, and attributes that may repeat the size, from the simplest on."""
    owners = [s.tensor.rpartition(".")[0] for s in slices]
    scope = _scope(owners)
    numbers = list(_numbers(model, scope))
    norms = [(o, m) for o in owners if isinstance(m := model.get_submodule(o), nn.GroupNorm)]
    groups = tuple({(o, "num_groups", m.num_groups) for o, m in norms if m.num_groups > 1})
    if not steps:
        widths = {v for _, a, v in numbers if a in _WIDTHS} | {
            size // v for _, a, v in numbers if a in _HEADS
        }
        widths |= {size // value for _, _, value in groups}
        steps = [1, *sorted(w for w in widths if 1 < w <= size and size % w == 0)]
    for step in steps:
        same = tuple(n for n in numbers if n[2] == size)
        if step == 1:
            yield 1, ()
            if same:
                yield 1, same
            continue
        # heads; or heads per group, of so many groups
        counts = (size // step, slices[0].blocks * size // step)
        heads = tuple(
            n
            for n in numbers
            if (n[1] in _HEADS and n[2] in counts)
            or (("group" in n[1] or "rep" in n[1]) and n[2] == size // step)
        )
        yield from dict.fromkeys(
            (step, tuple(dict.fromkeys(r))) for r in ((*same, *heads), heads, same, groups, ())
        )
