"""From a module that can be run to its axes: a dependency graph proposes, the module decides.

What fails is left whole and named. Nothing of torch-pruning is left in what is found: axes are
data, as those of any other adapter.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from matta_adapters.calls import Inputs, checked_output
from matta_adapters.graph import (
    LAYERS,
    NORMS,
    WIDTHS,
    Candidate,
    Graph,
    grouped_queries,
    numbers,
    scope_of,
)
from matta_adapters.trial import Repeats, Trial
from matta_cli.adapter import Axis, Sizes, Slice

_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads", "num_q_heads")
_ENDLESS = "torch-pruning finds no end to what depends on them"
_FEW = 2  # an axis of one unit has nothing to shrink


@dataclass
class Nested:
    """What nests in a model.

    repeats: axis -> attributes that repeat its size. whole: reason -> layers that were left whole.
    """

    axes: list[Axis] = field(default_factory=list)
    repeats: dict[str, Repeats] = field(default_factory=dict)
    whole: dict[str, list[str]] = field(default_factory=dict)

    def leave(self, reason: str, *names: str) -> None:
        """Note that these layers stay whole."""
        if names:
            self.whole.setdefault(reason, []).extend(names)


def nest(model: nn.Module, inputs: Inputs, name: str) -> Nested:
    """The axes of ``model`` on ``inputs``.

    Raises ``MattaError``, with the module, where it cannot be run or traced.
    """
    checked_output(copy.deepcopy(model).eval().requires_grad_(True), inputs, name)
    tracing = _Tracing(model.eval(), inputs, name)
    tracing.try_groups()
    nested = tracing.nested
    nested.leave(
        "the graph does not reach them (unused, detached, or run by other code than their own)",
        *tracing.graph.unseen(model),
    )
    nested.leave(
        "they are parameters of modules of the model's own (experts, say), not of layers",
        *tracing.raw(),
    )
    while nested.axes and not tracing.trial.together(nested.axes, nested.repeats):
        last = nested.axes.pop()
        nested.repeats.pop(last.name, None)
        nested.leave("the model did not run with them and the others at other sizes", last.name)
    return nested


def resized(axes: Sequence[Axis], sizes: Sizes) -> list[Axis]:
    """The axes of a model built at ``sizes``.

    What lies behind an axis in the same dimension moves with it.
    """
    changes: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for axis in axes:
        for s in axis.slices:
            change = s.blocks * (sizes.get(axis.name, axis.size) - axis.size)
            changes.setdefault((s.tensor, s.dim), []).append((s.start, change))

    def moved(s: Slice) -> Slice:
        before = [change for start, change in changes[s.tensor, s.dim] if start < s.start]
        return replace(s, start=s.start + sum(before))

    return [
        replace(axis, size=sizes.get(axis.name, axis.size), slices=tuple(map(moved, axis.slices)))
        for axis in axes
    ]


class _Tracing:
    """One model's graph, the trial of what it proposes, and what held so far."""

    def __init__(self, model: nn.Module, inputs: Inputs, name: str) -> None:
        self.model = model
        self.graph, self.trial = Graph(model, inputs, name), Trial(model, inputs)
        self.nested = Nested()
        self.taken: set[tuple[str, int, int]] = set()  # tensor, dim and start of all slices

    def try_groups(self) -> None:
        """Try what the graph groups with each layer; name what is left whole."""
        done: set[str] = set()
        for path, root in self.graph.producers():
            if path in done:
                continue
            members, ended = self.graph.group(root)
            makers = [m for m, reads in members if not reads and not isinstance(m, nn.Parameter)]
            done |= {self.graph.names[id(m)] for m in makers}
            reason, candidates = self.graph.read(members) if ended else (_ENDLESS, [])
            if candidates and self.accept(path, candidates):
                continue
            grouped = grouped_queries(members, self.graph, self.model)
            if grouped and self.accept(grouped.queries, [grouped.candidate], [grouped.step]):
                done |= {grouped.queries, *grouped.shared}
                self.nested.leave("several query heads share each of their heads", *grouped.shared)
            else:
                self.nested.leave(reason, path)

    def raw(self) -> list[str]:
        """Matrices, and what has more dimensions, that no layer owns and no axis shrinks.

        One that stands once for all examples (a class token) is no matrix.
        """
        taken = {tensor for tensor, _, _ in self.taken}
        named = []
        for path, module in self.model.named_modules():
            if isinstance(module, LAYERS) or type(module).__name__ == "Conv1D":
                continue
            for name, tensor in module.named_parameters(path, recurse=False):
                if tensor.dim() > 1 and len(tensor) > 1 and name not in taken:
                    named.append(name)
        return named

    def accept(self, path: str, candidates: Sequence[Candidate], steps: Sequence[int] = ()) -> bool:
        """Try what the candidates may mean, the simplest first; the first that holds is an axis.

        path: the layer that makes the units. False where none holds.
        """
        shrinking: tuple[Axis, Repeats] | None = None
        # Layers of an nn.Sequential have numbers for names, but a kind of axis needs a word.
        name = path if path.strip("0123456789.") else f"layer.{path}"
        for size, slices in candidates:
            if any((s.tensor, s.dim, s.start) in self.taken for s in slices):
                continue
            for step, repeats in self.meanings(size, slices, steps):
                axis = Axis(name, size, slices, step)
                verdict = self.trial.holds(axis, repeats)
                if verdict == "shrinks" and not any(s.outgoing for s in slices):
                    axis = _with_reader(axis)
                    verdict = self.trial.holds(axis, repeats)
                if verdict == "outputs":
                    return True  # what the model gives, and so no axis; nothing to say
                if verdict == "grows":
                    return self.add(axis, repeats)
                if verdict == "shrinks" and shrinking is None and self.norm_spans(axis):
                    shrinking = axis, repeats
        return shrinking is not None and self.add(*shrinking)

    def add(self, axis: Axis, repeats: Repeats) -> bool:
        """Keep an axis that holds, if it has something to shrink."""
        if axis.size // axis.step >= _FEW:
            self.nested.axes.append(axis)
            self.taken |= {(s.tensor, s.dim, s.start) for s in axis.slices}
            if repeats:
                self.nested.repeats[axis.name] = repeats
        return True

    def norm_spans(self, axis: Axis) -> bool:
        """Whether a norm is among the layers of an axis."""
        owners = [self.model.get_submodule(path) for path in _owners(axis.slices)]
        return any(isinstance(m, NORMS) or "RMSNorm" in type(m).__name__ for m in owners)

    def meanings(
        self, size: int, slices: Sequence[Slice], steps: Sequence[int]
    ) -> Iterator[tuple[int, Repeats]]:
        """Steps, and attributes that may repeat the size, from the simplest on."""
        owners = _owners(slices)
        beside = list(numbers(self.model, scope_of(owners)))
        modules = {path: self.model.get_submodule(path) for path in owners}
        norms = {path: m for path, m in modules.items() if isinstance(m, nn.GroupNorm)}
        groups = [(p, "num_groups", m.num_groups) for p, m in norms.items() if m.num_groups > 1]
        if not steps:
            widths = {value for _, name, value in beside if name in WIDTHS}
            widths |= {size // value for _, name, value in beside if name in _HEADS}
            widths |= {size // value for _, _, value in groups}
            steps = [1, *sorted(w for w in widths if 1 < w <= size and size % w == 0)]
        same = [number for number in beside if number[2] == size]
        for step in steps:
            if step == 1:
                yield 1, ()
                if same:
                    yield 1, tuple(same)
                continue
            # Heads; or heads per group, of so many groups.
            counts = (size // step, slices[0].blocks * size // step)
            heads = [
                (path, name, value)
                for path, name, value in beside
                if (name in _HEADS and value in counts)
                or (("group" in name or "rep" in name) and value == size // step)
            ]
            options: list[Repeats] = [(*same, *heads), tuple(heads), tuple(same), tuple(groups), ()]
            for repeats in dict.fromkeys(tuple(dict.fromkeys(option)) for option in options):
                yield step, repeats


def _owners(slices: Sequence[Slice]) -> list[str]:
    """The modules whose tensors these are."""
    return [s.tensor.rpartition(".")[0] for s in slices]


def _with_reader(axis: Axis) -> Axis:
    """The axis where no layer reads the units (a product of two towers).

    Silent in the last layer that makes them, they are silent.
    """
    owner = _owners(axis.slices)[-1]
    read = [replace(s, outgoing=s.tensor.rpartition(".")[0] == owner) for s in axis.slices]
    return replace(axis, slices=tuple(read))
