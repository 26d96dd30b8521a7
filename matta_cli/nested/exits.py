"""Students of several depths out of one forward: each goes on from what leaves its last layer.

A Student that keeps the first layers of a deeper one shares them with it: the hidden states that
leave its last layer there are those that its own last norm and head read (Starbucks,
arXiv 2410.13230).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from matta_cli.adapter import Axis, Sizes
from matta_cli.nested.sizes import depth, kept_layers, own_sizes
from matta_cli.nested.view import StudentView

Group = tuple[str, ...]  # names of models, first the deepest, whose forward the others share


def groups(axes: Sequence[Axis], models: Mapping[str, Sizes]) -> list[Group]:
    """The models, by name, in groups that differ in nothing but how many first layers they keep.

    Groups come in the order of their first members in ``models``.
    """
    layers, place = depth(axes), list(models).index
    if layers is None:
        return [(name,) for name in models]
    found: list[list[str]] = []
    for name in sorted(models, key=lambda name: -models[name][layers.name]):
        group = next((g for g in found if _shares(axes, layers, models[g[0]], models[name])), None)
        if group is None:
            found.append([name])
        else:
            group.append(name)
    return sorted(map(tuple, found), key=lambda group: min(map(place, group)))


def _shares(axes: Sequence[Axis], layers: Axis, deep: Sizes, shallow: Sizes) -> bool:
    """Whether the shallower of two models is the first layers of the deeper one."""
    count = shallow[layers.name]
    kept = kept_layers(layers, deep[layers.name])
    if count >= len(kept) or kept[:count] != kept_layers(layers, count):
        return False
    whole, part = own_sizes(axes, deep), own_sizes(axes, shallow)
    return all(whole[name] == size for name, size in part.items() if name != layers.name)


class Exits:
    """Models of one group, the deepest of which is run whole, and the others from its layers on."""

    def __init__(
        self, axes: Sequence[Axis], deepest: StudentView, others: Mapping[str, StudentView]
    ) -> None:
        """others: by name. From now on they run on what the last call of ``deepest`` left."""
        layers = depth(axes)
        assert layers is not None
        self._left: dict[str, Any] = {}  # what leaves each one's last layer in the deepest
        self._leaves: dict[str, Tensor] = {}
        blocks = list(deepest.skeleton.get_submodule(layers.layers).children())
        for name, view in others.items():
            own = list(view.skeleton.get_submodule(layers.layers).children())
            self._catch(name, blocks[len(own) - 1])
            for block in own:
                self._replace(name, block)

    def _catch(self, name: str, block: nn.Module) -> None:
        plain = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            out = self._left[name] = plain(*args, **kwargs)
            return out

        block.forward = forward  # type: ignore[method-assign]

    def _replace(self, name: str, block: nn.Module) -> None:
        def forward(*args: Any, **kwargs: Any) -> Any:
            out, leaf = self._left[name], self._leaves[name]
            return (leaf, *out[1:]) if isinstance(out, tuple) else leaf

        block.forward = forward  # type: ignore[method-assign]

    def enter(self, name: str) -> None:
        """Let the next call of one of the others begin at what the deepest has just left for it.

        Its gradient is kept there, until ``leave`` takes them all.
        """
        hidden = _hidden(self._left[name]).detach()
        self._leaves[name] = hidden.requires_grad_(hidden.is_floating_point())

    def leave(self) -> list[tuple[Tensor, Tensor]]:
        """The tensors of the deepest one's forward that the others began at, and their gradients.

        They go into the deepest one's own backward pass: one for all.
        """
        pairs = [(_hidden(self._left[name]), leaf.grad) for name, leaf in self._leaves.items()]
        self._left.clear()
        self._leaves.clear()
        return [(tensor, gradient) for tensor, gradient in pairs if gradient is not None]


def _hidden(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out
