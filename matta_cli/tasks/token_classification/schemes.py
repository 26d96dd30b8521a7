"""Ways to mark spans of words: BIO, with or without marks of their ends, and IOB1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matta_cli.tasks.token_classification.read import Rows

# marks of BIOES and BILOU, and what BIO has for them
_MARKS = {"E-": "I-", "L-": "I-", "S-": "B-", "U-": "B-"}


def other(rows: Rows, known: Mapping[Any, int]) -> dict[str, int]:
    """The numbers of tags that mark the ends of spans, for a model that does not. It is said."""
    found = {
        f"{mark}{tag[2:]}": number
        for tag, number in known.items()
        for mark, plain in _MARKS.items()
        if tag.startswith(plain)
    }
    found = {tag: number for tag, number in found.items() if tag not in known}
    moved = sum(isinstance(tag, str) and tag in found for tags in rows.tags for tag in tags)
    if moved:
        how = "E- and L- are read as I-, S- and U- as B-, which the model has"
        rows.notes.append(f"{moved:,} words have tags of another scheme: {how}.")
    return found


def told(rows: Rows, part: str) -> list[str]:
    """A sentence where most spans begin with I-, as in IOB1; models have mostly learned IOB2."""
    begun = {"B": 0, "I": 0}
    for tags in rows.tags:
        before = ""
        for tag in map(str, tags):
            mark, _, kind = tag.partition("-")
            if mark in begun and (mark == "B" or kind != before):
                begun[mark] += 1
            before = kind
    if begun["I"] <= begun["B"]:
        return []
    count = f"{begun['I']:,} of {sum(begun.values()):,} spans begin with I-, as in IOB1"
    return [f"{part}: {count}: if the model has learned IOB2, write B- there."]
