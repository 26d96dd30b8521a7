"""What may nest in a module, by torch-pruning's dependency graph of it.

The graph groups what shrinks together; a group is read here as slices of the model's own tensors.
It only proposes: ``trial`` decides on the module itself.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from matta_adapters.calls import Inputs, inside, run, shown
from matta_cli.adapter import Slice
from matta_cli.errors import MattaError, said

CONV = nn.modules.conv._ConvNd
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
MAKERS = (nn.Linear, CONV, nn.Embedding)  # layers that make channels
WIDTHS = ("head_dim", "attention_head_size", "head_size", "dim_head", "d_head")
_STATISTICS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
LAYERS = (*MAKERS, *NORMS, nn.modules.batchnorm._BatchNorm, nn.Dropout)

Place = tuple[str, int, bool]  # tensor, dim, whether it reads the units
Pairs = dict[Place, set[tuple[int, int]]]  # place -> (its index, the channel of the root)
Members = dict[tuple[Any, bool], set[tuple[int, int]]]  # (module, reads) -> the same
Candidate = tuple[int, tuple[Slice, ...]]  # a size and the slices of an axis, perhaps


class Graph:
    """torch-pruning's dependency graph of a copy, read as places in the model's own tensors."""

    def __init__(self, model: nn.Module, inputs: Inputs, name: str) -> None:
        import torch_pruning

        twin = copy.deepcopy(model).requires_grad_(True)
        # torch-pruning does not see through transformers' Conv1D.
        self.transposed = _linear_twins(twin)
        self.graph = torch_pruning.DependencyGraph()
        self.index = torch_pruning._helpers._HybridIndex
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.graph.build_dependency(
                    twin, inputs, forward_fn=run, ignored_params=[], verbose=False
                )
        except Exception as error:  # torch-pruning raises whatever its own tables run into
            raise MattaError(
                f"{name}: {shown('', model)} cannot be traced by torch-pruning: {said(error)}; "
                "write an adapter (CONTRIBUTING.md)."
            ) from error
        self.names = {id(m): path for path, m in twin.named_modules()}
        self.names |= {id(p): path for path, p in twin.named_parameters()}
        tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        tensors |= dict(model.named_buffers())
        known: dict[int, str] = {}  # axes name a tied tensor by its first name
        self.first = {path: known.setdefault(id(t), path) for path, t in tensors.items()}
        self.shapes = {path: tuple(tensor.shape) for path, tensor in tensors.items()}
        self.nodes = self.graph.module2node

    def producers(self) -> list[tuple[str, nn.Module]]:
        """Layers that make channels, in the model's own order."""
        order = {name: i for i, name in enumerate(self.names.values())}
        makers = [m for m in self.nodes if isinstance(m, MAKERS) and id(m) in self.names]
        named = [(self.names[id(m)], m) for m in makers]
        return sorted(named, key=lambda item: order[item[0]])

    def unseen(self, model: nn.Module) -> list[str]:
        """Layers that would make channels, if the forward pass reached them as layers."""
        known = {self.names[id(m)] for m in self.nodes if id(m) in self.names}
        makers = [path for path, m in model.named_modules() if isinstance(m, MAKERS)]
        return [path for path in makers if path not in known]

    def group(self, root: nn.Module) -> tuple[Members, bool]:
        """What shrinks with all output channels of ``root``.

        Also whether the walk came to its end: torch-pruning's own never does on grouped-query
        attention.
        """
        pruner = self.graph.get_pruner_of_module(root)
        every = tuple(self.index(i, i) for i in range(pruner.get_out_channels(root)))
        stack = [(self.nodes[root], pruner.prune_out_channels, every)]
        seen: set[Any] = set()
        members: Members = {}
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
                pairs = members.setdefault((node.module, reads), set())
                pairs.update((i.idx, i.root_idx) for i in index)
            for dependency in node.dependencies:
                if not dependency.is_triggered_by(handler):
                    continue
                mapped: Any = list(index)
                for mapping in dependency.index_mapping:
                    mapped = mapping(mapped) if mapping is not None else mapped
                if mapped:
                    stack.append((dependency.target, dependency.handler, tuple(mapped)))
        return members, True

    def read(self, members: Members) -> tuple[str, list[Candidate]]:
        """What a group may mean as slices; and what to say of it where none of that holds."""
        pairs: Pairs = {}
        try:
            for (module, reads), indices in members.items():
                for place in self.places(module, reads):
                    pairs.setdefault(place, set()).update(indices)
        except LookupError as kind:
            return f"{kind.args[0]} stay as they are", []
        candidates = _candidates(pairs, self.shapes)
        read = [s for _, slices in candidates for s in slices if s.outgoing]
        if not candidates or all(s.blocks > 1 for s in read):
            reason = "their units do not lie in whole blocks in what reads them (flattened, say)"
            return reason, candidates
        return "the model did not run, or not to the same outputs, when they were tried", candidates

    def places(self, module: Any, reads: bool) -> list[Place]:
        """The dimensions of tensors that a member stands for.

        Raises ``LookupError`` for a kind of layer that stays whole.
        """
        name = self.names[id(module)]
        if isinstance(module, nn.Parameter):
            return [(self.first[name], self.nodes[module].pruning_dim, False)]
        weight, bias = f"{name}.weight", f"{name}.bias"
        if isinstance(module, CONV) and module.groups > 1:
            if module.transposed or not module.groups == module.in_channels == module.out_channels:
                raise LookupError("convolutions in groups")
            places: list[Place] = [(weight, 0, False), (bias, 0, False)]
        elif isinstance(module, (nn.Linear, CONV)):
            swapped = name in self.transposed or getattr(module, "transposed", False)
            places = [(weight, int(reads != swapped), reads)]
            places += [] if reads else [(bias, 0, False)]
        elif isinstance(module, nn.Embedding):
            places = [(weight, 1, False)]
        elif isinstance(module, (*NORMS, *_STATISTICS)):
            places = [(f"{name}.{part}", 0, False) for part in _NORM_PARTS]
        elif isinstance(module, nn.PReLU):
            places = [(weight, 0, False)] if module.num_parameters > 1 else []
        else:
            raise LookupError(f"layers of type {type(module).__name__}")
        return [(self.first[t], dim, reading) for t, dim, reading in places if t in self.shapes]


def _linear_twins(model: nn.Module) -> set[str]:
    """Replace every Conv1D of transformers, whose weight is [in, out], by the linear layer it is.

    Returns their names.
    """
    layers = dict(model.named_modules())
    names = {n for n, m in layers.items() if type(m).__name__ == "Conv1D" and hasattr(m, "nf")}
    for name in names:
        old: Any = layers[name]
        into, out = old.weight.shape
        twin = nn.Linear(into, out, dtype=old.weight.dtype)
        with torch.no_grad():
            twin.weight.copy_(old.weight.T)
            twin.bias.copy_(old.bias)
        model.set_submodule(name, twin)
    return names


def _candidates(pairs: Pairs, shapes: Mapping[str, Sequence[int]]) -> list[Candidate]:
    """What these places may mean: as they were traced, then by the lengths alone."""
    lengths = {place: shapes[place[0]][place[1]] for place in pairs}
    # A place that is too short was reached along another dimension (token mixing).
    fitting = {p: found for p, found in pairs.items() if all(i < lengths[p] for i, _ in found)}
    traced = _blocks(fitting)
    candidates = [traced] if traced is not None else []
    size = min(lengths.values())
    if size < max(lengths.values()) and not any(length % size for length in lengths.values()):
        # A gate and its value, or q, k and v, in one layer, by an operation that torch-pruning does
        # not follow.
        slices = [Slice(p[0], p[1], length // size, 0, p[2]) for p, length in lengths.items()]
        candidates.append((size, _once(slices)))
    return candidates


def _blocks(pairs: Pairs) -> Candidate | None:
    """An axis whose units lie in whole blocks at each place, as traced; None where they do not."""
    parent: dict[int, int] = {}

    def top(r: int) -> int:
        while parent.setdefault(r, r) != r:
            parent[r] = r = parent[parent[r]]
        return r

    for met in pairs.values():  # root channels that meet at one index are one unit
        at: dict[int, int] = {}
        for i, r in met:
            a, b = sorted((top(at.setdefault(i, r)), top(r)))
            parent[b] = a
    unit = {r: u for u, r in enumerate(sorted({top(r) for r in parent}))}
    size, slices = len(unit), []
    for (tensor, dim, reads), met in pairs.items():
        units = {i: unit[top(r)] for i, r in met}
        start = min(units)
        if len(units) % size or any(units.get(start + k) != k % size for k in range(len(units))):
            return None
        slices.append(Slice(tensor, dim, len(units) // size, start, reads))
    return size, _once(slices)


def _once(slices: Iterable[Slice]) -> tuple[Slice, ...]:
    """Without the second mention of a tied tensor."""
    first: dict[tuple[str, int, int], Slice] = {}
    for s in slices:
        first.setdefault((s.tensor, s.dim, s.start), s)
    return tuple(first.values())


@dataclass
class Grouped:
    """Grouped-query attention: the query heads of each key/value head are an axis.

    shared: the layers of the key/value heads, which stay whole. step: the width of a head.
    """

    candidate: Candidate
    step: int
    shared: list[str]

    @property
    def queries(self) -> str:
        """The layer that makes the queries."""
        return self.candidate[1][0].tensor.removesuffix(".weight")


def grouped_queries(members: Members, graph: Graph, model: nn.Module) -> Grouped | None:
    """The query heads that a group means if it is grouped-query attention; None if it is not."""
    linear = [(m, reads) for m, reads in members if isinstance(m, nn.Linear)]
    made = {m: m.out_features for m, reads in linear if not reads}
    read = [m for m, reads in linear if reads]
    if len(made) < 2 or len(read) != 1:
        return None
    wide, narrow = max(made.values()), min(made.values())
    queries = [m for m, width in made.items() if width == wide]
    scope = scope_of([graph.names[id(m)] for m in (*made, *read)])
    widths = {v for _, a, v in numbers(model, scope) if a in WIDTHS and narrow % v == 0}
    if len(queries) != 1 or wide % narrow or wide == narrow or read[0].in_features != wide:
        return None
    if len(widths) != 1:
        return None
    (width,) = widths
    size, blocks = wide // narrow * width, narrow // width
    places = [*graph.places(queries[0], False), *graph.places(read[0], True)]
    slices = tuple(Slice(tensor, dim, blocks, 0, reads) for tensor, dim, reads in places)
    within = {n: m for n, m in model.named_modules() if n.startswith(f"{scope}.")}
    layers = {n: m for n, m in within.items() if isinstance(m, nn.Linear)}
    shared = [n for n, m in layers.items() if m.out_features == narrow]
    return Grouped((size, slices), width, shared)


def scope_of(paths: Sequence[str]) -> str:
    """The module that holds all of these."""
    common: list[str] = []
    for parts in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def numbers(model: nn.Module, scope: str) -> Iterator[tuple[str, str, int]]:
    """The positive whole numbers that the modules of a scope keep beside their layers.

    Gives the module's path, the attribute and the value.
    """
    for path, module in model.named_modules():
        if path != scope and not inside(path, scope):
            continue
        if isinstance(module, LAYERS) or type(module).__name__ == "Conv1D":
            continue
        for name, value in vars(module).items():
            whole = isinstance(value, int) and not isinstance(value, bool)
            if whole and value > 0 and not name.startswith("_"):
                yield path, name, value
