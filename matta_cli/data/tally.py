"""How much was read of data: rows and columns, and what is odd about texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from matta_cli.data import folders

_SHOWN = 8  # columns that are said by name
# what R, pandas and spreadsheets write in a cell of text where there is none
_HOLES = {"NA", "<NA>", "NaN", "nan", "None", "null", "NULL", "N/A", "#N/A"}
# what is odd about texts, and what becomes of them
_ODD = {
    "holes": "texts are NA, nan or the like, as programs write what is missing, and are read as "
    "they stand: empty these cells to leave them out",
    "quoted": "texts stand in quotation marks, and those inside are doubled, as pandas writes .tsv "
    "but matta does not read it: save the table as .csv",
    "begun": "documents begin with what the tokenizer puts before each, so it stands there twice: "
    "take it out of the text",
    "marks": "marks stand in the text that end documents for another tokenizer (<|endoftext|>, "
    "</s> or the like) and are letters for the model's: give each document a row without them",
    "ended": "documents end with what is put behind each, so it stands there twice: take it out of "
    "the text",
}


@dataclass
class Tally:
    """How much was read of which file: rows, of how much the file has, and those without text.

    columns: of a file those that are read, and its others. odd: of a file, or of a part of it, how
    many texts are odd in which of the ways in ``_ODD``.
    """

    files: dict[str, tuple[int, str, int]] = field(default_factory=dict)
    columns: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)
    odd: dict[str, dict[str, int]] = field(default_factory=dict)

    def look(self, name: str, text: str) -> None:
        """Count what is odd about a cell of text in the file of this name."""
        kind = name[-4:].lower()
        inner = text[1:-1] if text[:1] == text[-1:] == '"' else ""
        if kind in (".csv", ".tsv") and text in _HOLES:
            self.count(name, "holes")
        elif kind == ".tsv" and '""' in inner and '"' not in inner.replace('""', ""):
            self.count(name, "quoted")

    def count(self, name: str, kind: str, more: int = 1) -> None:
        own = self.odd.setdefault(name, {})
        own[kind] = own.get(kind, 0) + more

    def notes(self, name: str) -> list[str]:
        """Sentences on what was read, if it was of rows, and on what is odd."""
        counts: Counter[str] = Counter()
        for own in self.odd.values():
            counts.update(own)
        odd = [f"{name!r}: {counts[kind]:,} {what}." for kind, what in _ODD.items() if counts[kind]]
        return [*self._rows(name), *odd]

    def kept(self) -> dict[str, Any]:
        """What JSON can hold, to ``take`` another time."""
        return {"read": self.files, "columns": self.columns, "odd": self.odd}

    def take(self, kept: dict[str, Any]) -> None:
        self.odd.update(kept.get("odd", {}))
        self.columns.update({name: (*own,) for name, own in kept.get("columns", {}).items()})
        self.files.update({name: (*own,) for name, own in kept["read"].items()})

    def _rows(self, name: str) -> list[str]:
        if not self.files:
            return []
        rows = sum(count for count, _, _ in self.files.values())
        empty = sum(count for _, _, count in self.files.values())
        of = f" of {len(self.files):,} files"
        if len(self.files) == 1:
            [(name, (_, of, _))] = self.files.items()
        left = f", {empty:,} of them without text and left out" if empty else ""
        return [f"{name!r}: {rows:,} rows read{of}{left}{self._columns()}."]

    def _columns(self) -> str:
        """Which columns are read and which are not, in words."""
        read = dict.fromkeys(column for own, _ in self.columns.values() for column in own)
        rest = dict.fromkeys(column for _, own in self.columns.values() for column in own)
        return columns_told(list(read), [column for column in rest if column not in read])


def columns_told(read: Sequence[str], rest: Sequence[str]) -> str:
    """The columns of a table that are read, and the others, in words that end a sentence."""
    if not read:
        return ""
    # a blank at an end is else not seen, nor a name that is empty
    named = [[n if n and n == n.strip() else repr(n) for n in own] for own in (read, rest)]
    unread = f"; not read: {folders.shown(named[1], _SHOWN)}" if rest else ""
    return f"; columns read: {folders.shown(named[0], _SHOWN)}{unread}"
