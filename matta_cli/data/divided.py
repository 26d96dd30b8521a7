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


def refuse(name: str, column: str, values: Iterable[Any]) -> None:
    """Raise ``MattaError`` where the values of a column put rows into several parts.

    name: of the data. Else what is to be tested on would be trained on.
    """
    found = {str(value).strip() for value in values if value is not None} - {""}
    if len(found) < 2 or len(found) > _MOST:
        return
    flag = {value.lower() for value in found} <= _BOTH and column.lower().startswith("is")
    numbered = column.lower() == "split" and all(value.isdecimal() for value in found)
    parts = {folders.part_in(value) for value in found}  # also PublicTest
    if flag or numbered or (len(parts) > 1 and "" not in parts):
        values = ", ".join(sorted(found))
        says = f"Column {column!r} of {name!r} says of which part a row is ({values})"
        do = "write the rows of each part to a file of its own, such as train.csv and test.csv"
        raise MattaError(f"{says}, which matta does not read: {do}, or remove the column.")
