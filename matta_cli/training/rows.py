"""Which rows of a step go through which models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matta_cli.data import sampling
from matta_cli.models.ta import TA
from matta_cli.nested.exits import Group, groups
from matta_cli.nested.sizes import full_sizes
from matta_cli.settings.recipe import DistillSettings

WHOLE = "TA"  # what the TA itself is called among the models of a step


@dataclass(frozen=True)
class Piece:
    """Examples that go through the same models, as many as are in memory at a time.

    rows: their numbers in the split. groups: the models, by name, that they go through, those in
    one group by one forward. among: of each model, what the weight of its loss is divided by.
    """

    rows: list[int]
    groups: Sequence[Group]
    among: Mapping[str, float]


class Rows:
    """How the rows of each step are given to the models that it trains: ``TA`` and the widths.

    ``all``: each row goes through every model. ``divided``: each goes through one of them, or
    through several depths of one, which share a forward.
    """

    def __init__(self, settings: DistillSettings, ta: TA) -> None:
        self.settings = settings
        trained, widths = settings.ta_weight > 0, sorted(set(settings.widths))
        if trained and not ta.copies:
            # a Student as wide as the TA is the TA, which is trained already
            narrower = [width for width in widths if width < ta.widest]
            widths = narrower if settings.rows == "divided" else narrower or widths
        self.students = {f"{width:g}": width for width in widths}
        models = {name: ta.sizes(width) for name, width in self.students.items()}
        if trained:
            models = {WHOLE: full_sizes(ta.axes), **models}
        alone = ta.copies or settings.shard
        self.groups = [(name,) for name in models] if alone else groups(ta.axes, models)
        shares = self._shares(ta)
        self.shares = [sum(shares[name] for name in group) for group in self.groups]
        self.among = self._among(shares)

    def _shares(self, ta: TA) -> dict[str, float]:
        """The share of the rows of each model, where they are divided."""
        s, names = self.settings, [name for group in self.groups for name in group]
        given = dict.fromkeys(names, 1.0)
        if s.shares:
            of_width = dict(zip(s.widths, s.shares, strict=False))
            given = {name: of_width[width] for name, width in self.students.items()}
            if WHOLE in names:
                given[WHOLE] = of_width.get(ta.widest, s.shares[-1])
        return {name: share / sum(given.values()) for name, share in given.items()}

    def _among(self, shares: Mapping[str, float]) -> dict[str, float]:
        if self.settings.rows == "all":
            return {name: 1 if name == WHOLE else len(self.students) for name in shares}
        whole = zip(self.groups, self.shares, strict=True)
        return {name: share / shares[name] for group, share in whole for name in group}

    def pieces(self, rows: Sequence[int], step: int) -> list[Piece]:
        """These rows of a step, ``micro_batch`` at a time, and what they go through."""
        if self.settings.rows == "all":
            return self._small(rows, self.groups)
        counts = sampling.division(self.settings.seed, step, len(rows), self.shares)
        # every so manieth row to one group, so that several devices divide a batch as one does
        turns = len(self.groups)
        rows = [row for turn in range(turns) for row in rows[turn::turns]]
        pieces, start = [], 0
        for group, count in zip(self.groups, counts, strict=True):
            pieces += self._small(rows[start : start + count], [group])
            start += count
        return pieces

    def _small(self, rows: Sequence[int], groups: Sequence[Group]) -> list[Piece]:
        size = self.settings.micro_batch or len(rows)
        starts = range(0, len(rows), size) if rows else ()
        return [Piece(list(rows[start : start + size]), groups, self.among) for start in starts]

    def models(self, rows: int, step: int) -> set[str]:
        """The models that train in a step of so many rows."""
        pieces = self.pieces(range(rows), step)
        return {name for piece in pieces for group in piece.groups for name in group}

    def sizes(self, rows: int) -> dict[str, set[int]]:
        """The numbers of rows, of a step of so many, that may go through each model at a time."""
        counts = [[rows] * len(self.groups)]
        if self.settings.rows == "divided":
            # only at these offsets a bound moves
            sums = [sum(self.shares[:k]) * rows for k in range(len(self.shares))]
            offsets = {0.0, *(math.ceil(bound) - bound for bound in sums)}
            counts = [sampling.divided(rows, self.shares, offset) for offset in offsets]
        found: dict[str, set[int]] = {}
        for division in counts:
            for group, count in zip(self.groups, division, strict=True):
                small = {len(piece.rows) for piece in self._small(range(count), [group])}
                for name in group:
                    found.setdefault(name, set()).update(small)
        return found
