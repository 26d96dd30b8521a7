"""Tables in which a column says of which part each row is, as some programs keep them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matta_cli.data import folders
from matta_cli.errors import MattaError

# what such columns are called; those of the second kind are true or false
_PARTS = {"split", "set", "subset", "partition", "part", "phase", "usage", "dataset", "datasplit"}
_FLAGS = {"valid", "validation", "val", "test", "train", "training", "dev", "holdout", "heldout"}
_MOST = 8  # values of such a column
_BOTH = {"0", "1", "0.0", "1.0", "true", "false"}


def asked(names: Sequence[str], read: Sequence[str]) -> list[str]:
    """The columns that may say it, of those that are not read."""
    plain = {name: "".join(c for c in name.lower() if c.isalpha()) for name in names}
    return [n for n, own in plain.items() if n not in read and (own in _PARTS or _is_flag(own))]


def _is_flag(plain: str) -> bool:
    return plain.startswith("is") and plain[2:] in _FLAGS


def refuse_in(rows: Any, name: str, read: Sequence[str]) -> None:
    """``refuse`` what columns of a hub dataset's split say, but of a stream."""
    for column in asked(rows.column_names, read) if hasattr(rows, "data") else ():
        refuse(name, column, rows[column])


def _are_parts(values: set[str]) -> bool:
    """Whether each value is of a part, and not of a collection alone: ``oasst_train``."""
    parts = {value: folders.part_in(value) for value in values}  # also PublicTest
    if len({*parts.values()}) < 2 or "" in parts.values():
        return False
    rests: dict[str, set[str]] = {}
    for value, part in parts.items():
        rests.setdefault(folders.without_part(value), set()).add(part)
    return "" in rests or any(len(own) > 1 for own in rests.values())


def refuse(name: str, column: str, values: Iterable[Any]) -> None:
    """Raise ``MattaError`` where the values of a column put rows into several parts.

    name: of the data. Else what is to be tested on would be trained on.
    """
    found = {str(value).strip() for value in values if value is not None} - {""}
    if len(found) < 2 or len(found) > _MOST:
        return
    flag = {value.lower() for value in found} <= _BOTH and column.lower().startswith("is")
    first = [{str(k) for k in range(start, start + len(found))} for start in (0, 1)]
    numbered = column.lower() == "split" and found in first
    if flag or numbered or _are_parts(found):
        values = ", ".join(sorted(found))
        says = f"Column {column!r} of {name!r} says of which part a row is ({values})"
        do = "write the rows of each part to a file of its own, such as train.csv and test.csv"
        raise MattaError(f"{says}, which matta does not read: {do}, or remove the column.")
