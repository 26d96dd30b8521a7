"""The sizes that Students may have."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

from matta_cli.adapter import Sizes
from matta_cli.models.ta import TA
from matta_cli.nested import sizes as nested_sizes
from matta_cli.settings.budget import NEAR

SLOPE = 2.0  # how many trained sizes two layers of one Student may lie apart


# what is tried first: MatFormer's rule, a steeper one, and one that falls with depth
SLOPES = (0.0, SLOPE / 2, -SLOPE / 2)


BETWEEN = 4  # parts that ``search.sizes = "any"`` makes of the stretch between two trained sizes


# What may be tried


class Space:
    """The sizes that Students may have: of each axis those that were trained, and where asked for
    some between them.
    """

    def __init__(self, ta: TA, widths: Sequence[float], between: str) -> None:
        self.ta, self.between = ta, between
        self.widths = sorted(widths)
        uniform = [ta.sizes(width) for width in self.widths]
        self.menus = {
            axis.name: sorted({sizes[axis.name] for sizes in uniform}) for axis in ta.axes
        }
        multiple = ta.card.get("multiple", 1)
        self.grains = {
            a.name: math.lcm(a.step, multiple) if ta.base[a.name] >= 64 else a.step for a in ta.axes
        }
        self.trained = {name: set(menu) for name, menu in self.menus.items()}
        if between == "any":
            self.menus = {name: self._refined(name, menu) for name, menu in self.menus.items()}
        self.scale = BETWEEN if between == "any" else 1

    def _refined(self, name: str, menu: list[int]) -> list[int]:
        grain, found = self.grains[name], set(menu)
        for low, high in itertools.pairwise(menu):
            found |= {
                low + (high - low) * k // (BETWEEN * grain) * grain for k in range(1, BETWEEN)
            }
        return sorted(found)

    def smallest(self) -> dict[str, int]:
        return {name: menu[0] for name, menu in self.menus.items()}

    def free(self) -> list[str]:
        """The axes that have more than one size, in the order of the model."""
        return [name for name, menu in self.menus.items() if len(menu) > 1]

    def rule(self, slope: float) -> dict[str, float]:
        """What the i-th of an axis's kind is ahead of the first, in trained sizes: 0 is MatFormer's
        rule (see ``decode``).
        """
        kinds: dict[str, list[str]] = {}
        for name in self.free():
            kinds.setdefault(nested_sizes.kind(name), []).append(name)
        ahead = {
            n: i / max(1, len(names) - 1) for names in kinds.values() for i, n in enumerate(names)
        }
        return {
            name: abs(slope) * (share if slope >= 0 else 1 - share) for name, share in ahead.items()
        }

    def decode(
        self, ahead: Mapping[str, float], used: Callable[[Sizes], float]
    ) -> dict[str, int] | None:
        """The largest sizes within a budget whose axes are so far ``ahead`` of one another; None
        where even the least is over.

        All axes rise together from their smallest sizes, each by ``ahead`` earlier, until the
        budget (``used``: the share of it that sizes take) is used up. Of axes that are level the
        later ones rise first: widths then never fall with depth and are of two neighbouring sizes
        at most, which is MatFormer's rule.
        """
        sizes = self.smallest()
        if used(sizes) > 1:
            return None
        order = list(ahead)
        rises = [
            (k - ahead[n] * self.scale, -i, n)
            for i, n in enumerate(order)
            for k in range(1, len(self.menus[n]))
        ]
        names = [name for _, _, name in sorted(rises)]

        def after(count: int) -> dict[str, int]:
            levels = dict.fromkeys(order, 0)
            for name in names[:count]:
                levels[name] += 1
            return sizes | {name: self.menus[name][level] for name, level in levels.items()}

        low, high = 0, len(names)  # costs grow with every rise
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if used(after(middle)) <= 1 else (low, middle - 1)
        filled = self._filled(after(low), names[low:], used, part=False)
        if self.between == "trained" or used(filled) >= 1 - NEAR:
            return filled
        return max(filled, self._filled(after(low), names[low:], used, part=True), key=used)

    def _filled(
        self,
        sizes: dict[str, int],
        names: Sequence[str],
        used: Callable[[Sizes], float],
        *,
        part: bool,
    ) -> dict[str, int]:
        """Use up what is left of a budget: raise each of these axes in turn that fits, until it is
        near.

        Where that does not do, axes whose next size is over the budget go a part of the way, as few
        as will do; with ``part`` in their turn, before those after them rise.
        """
        stopped: dict[str, int] = {}  # axes whose next size is over the budget, and that size
        for name in names:
            if used(sizes) >= 1 - NEAR:
                return sizes
            if name not in stopped:
                menu = self.menus[name]
                larger = menu[menu.index(sizes[name]) + 1]
                if used(sizes | {name: larger}) <= 1:
                    sizes = sizes | {name: larger}
                else:
                    stopped[name] = larger
                    sizes = self._part_of_the_way(sizes, name, larger, used) if part else sizes
        while not part and self.between != "trained" and stopped and used(sizes) < 1 - NEAR:
            ways = {
                name: self._part_of_the_way(sizes, name, larger, used)
                for name, larger in stopped.items()
            }
            best = max(ways, key=lambda name: used(ways[name]))
            sizes = ways[best]
            del stopped[best]
        return sizes

    def _part_of_the_way(
        self, sizes: dict[str, int], name: str, larger: int, used: Callable[[Sizes], float]
    ) -> dict[str, int]:
        """One axis as large as the budget lets it be."""
        grain = self.grains[name]
        low, high = 0, max(0, (larger - sizes[name] - 1) // grain)
        while low < high:
            middle = (low + high + 1) // 2
            fits = used(sizes | {name: sizes[name] + middle * grain}) <= 1
            low, high = (middle, high) if fits else (low, middle - 1)
        return sizes | {name: sizes[name] + low * grain}

    def by_kind(
        self, used: Callable[[Sizes], float], stock: Callable[[Sizes], bool]
    ) -> list[dict[str, int]]:
        """Sizes within a budget that the stock library can load: every kind of axis at one width;
        those that use most first.

        Where none comes near, one kind is at a size between, as large as the budget lets it be.
        """
        kinds = list(dict.fromkeys(nested_sizes.kind(axis.name) for axis in self.ta.axes))
        base = {width: self.ta.sizes(width) for width in self.widths}
        found: dict[tuple[int, ...], dict[str, int]] = {}
        for chosen in itertools.product(self.widths, repeat=len(kinds)):
            at = dict(zip(kinds, chosen, strict=True))
            sizes = {
                axis.name: base[at[nested_sizes.kind(axis.name)]][axis.name]
                for axis in self.ta.axes
            }
            if used(sizes) <= 1:
                found.setdefault(tuple(sizes.values()), sizes)
        fitting = sorted((s for s in found.values() if stock(s)), key=used, reverse=True)
        if self.between == "trained" or (
            fitting and used(fitting[0]) >= 1 - NEAR and self.between == "auto"
        ):
            return fitting
        widened = [
            self._kind_part_of_the_way(s, kind, used, stock) for s in fitting for kind in kinds
        ]
        return sorted([*fitting, *(s for s in widened if s is not None)], key=used, reverse=True)

    def _kind_part_of_the_way(
        self,
        sizes: dict[str, int],
        kind: str,
        used: Callable[[Sizes], float],
        stock: Callable[[Sizes], bool],
    ) -> dict[str, int] | None:
        own = [axis for axis in self.ta.axes if nested_sizes.kind(axis.name) == kind]
        first, grain = own[0], self.grains[own[0].name]

        def after(steps: int) -> dict[str, int]:
            share = (sizes[first.name] + steps * grain) / sizes[first.name]
            grown = {a.name: int(sizes[a.name] * share / a.step) * a.step for a in own}
            return sizes | {name: min(size, self.menus[name][-1]) for name, size in grown.items()}

        low, high = 0, (self.menus[first.name][-1] - sizes[first.name]) // grain
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if used(after(middle)) <= 1 else (low, middle - 1)
        for steps in range(low, max(0, low - 16), -1):
            if stock(after(steps)):
                return after(steps)
        return None
