"""The sizes that Students may have, and which of them lie within a budget."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from matta_cli.adapter import Sizes
from matta_cli.models.ta import TA
from matta_cli.nested.sizes import kind
from matta_cli.settings.budget import NEAR

SLOPE = 2.0  # how many trained sizes two layers of one Student may lie apart
# what is tried first: MatFormer's rule, a steeper one, and one that falls with depth
SLOPES = (0.0, SLOPE / 2, -SLOPE / 2)

Share = Callable[[Sizes], float]  # of a budget, how much sizes take; above 1 is over it


class Space:
    """The sizes that Students may have: of each axis those of the widths that were trained.

    Sizes between them are never tried: they were no better than the trained ones below them.
    """

    def __init__(self, ta: TA, widths: Sequence[float]) -> None:
        self.ta = ta
        self.uniform = {width: ta.sizes(width) for width in sorted(widths)}
        by_width = self.uniform.values()
        self.menus = {a.name: sorted({sizes[a.name] for sizes in by_width}) for a in ta.axes}

    def smallest(self) -> dict[str, int]:
        return {name: menu[0] for name, menu in self.menus.items()}

    def uneven(self) -> dict[str, int]:
        """Sizes of which those of each axis are the smallest and the largest in turn."""
        pairs = enumerate(self.menus.items())
        return {name: menu[-1 if number % 2 else 0] for number, (name, menu) in pairs}

    def free(self) -> list[str]:
        """The axes that have more than one size, in the order of the model."""
        return [name for name, menu in self.menus.items() if len(menu) > 1]

    def rule(self, slope: float) -> dict[str, float]:
        """How far each axis is ahead of the others of its kind, from the first layer to the last.

        It is in trained sizes; a slope of 0 is MatFormer's rule (see ``decode``).
        """
        kinds: dict[str, list[str]] = {}
        for name in self.free():
            kinds.setdefault(kind(name), []).append(name)
        ahead = {}
        for names in kinds.values():
            for i, name in enumerate(names):
                share = i / max(1, len(names) - 1)
                ahead[name] = abs(slope) * (share if slope >= 0 else 1 - share)
        return ahead

    def decode(self, ahead: Mapping[str, float], used: Share) -> dict[str, int] | None:
        """The largest sizes within a budget whose axes are so far ``ahead`` of one another.

        All axes rise together from their smallest sizes, each by ``ahead`` earlier, until the
        budget is used up. Of axes that are level the later ones rise first: widths then never fall
        with depth and are of two neighbouring sizes at most, which is MatFormer's rule
        (arXiv 2310.07707). What is left of the budget goes to axes that still fit, in their turn.
        None where even the smallest sizes are over the budget.
        """
        if used(self.smallest()) > 1:
            return None
        rises = [
            (step - before, -i, name)
            for i, (name, before) in enumerate(ahead.items())
            for step in range(1, len(self.menus[name]))
        ]
        names = [name for _, _, name in sorted(rises)]
        low, high = 0, len(names)  # costs grow with every rise
        while low < high:
            middle = (low + high + 1) // 2
            fits = used(self._risen(names[:middle])) <= 1
            low, high = (middle, high) if fits else (low, middle - 1)
        sizes = self._risen(names[:low])
        for name in names[low:]:
            if used(sizes) >= 1 - NEAR:
                break
            menu = self.menus[name]
            larger = sizes | {name: menu[menu.index(sizes[name]) + 1]}
            sizes = larger if used(larger) <= 1 else sizes
        return sizes

    def _risen(self, names: Sequence[str]) -> dict[str, int]:
        """The smallest sizes, with each axis a trained size larger for each time it is named."""
        times = Counter(names)
        return {axis: menu[times[axis]] for axis, menu in self.menus.items()}

    def by_kind(self, used: Share, allowed: Callable[[Sizes], bool]) -> list[dict[str, int]]:
        """Sizes within a budget in which each kind of axis is at one width.

        Those are what a stock library can load, if any. They are in the order of what they use,
        the most first.
        """
        kinds = list(dict.fromkeys(kind(axis.name) for axis in self.ta.axes))
        distinct: dict[tuple[int, ...], dict[str, int]] = {}
        for widths in itertools.product(self.uniform, repeat=len(kinds)):
            width_of = dict(zip(kinds, widths, strict=True))
            sizes = {name: self.uniform[width_of[kind(name)]][name] for name in self.menus}
            if used(sizes) <= 1:
                distinct.setdefault(tuple(sizes.values()), sizes)
        return sorted(filter(allowed, distinct.values()), key=used, reverse=True)
