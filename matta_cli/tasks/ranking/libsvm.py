"""LibSVM files, and the files beside them that say how many rows a query has."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from matta_cli.data import find
from matta_cli.data.lines import lines
from matta_cli.errors import MattaError, extra, said
from matta_cli.files.reading import refuse_pointer
from matta_cli.tasks.scores import numbered

SIDECARS = (".query", ".group")  # as LightGBM and XGBoost name them
# what these programs also read beside a file, and matta does not
UNREAD = (".weight", ".init", ".position", ".base_margin", ".feature_weights")

_SHOWN = 24  # bytes of a word that is none


@dataclass(frozen=True)
class File:
    """The rows of a file: features, sparse [n, columns], whose columns count from 0 or from 1.

    first: 0 where a row has a column 0, else 1. group: int64 [n], the row's query.
    """

    path: Path
    features: Any
    label: np.ndarray
    group: np.ndarray | None
    first: int
    notes: tuple[str, ...]


def read(path: Path) -> File:
    """The rows of a file. Queries: ``qid``, else the sizes in a file beside it.

    Raises ``MattaError`` where the file is not LibSVM, rows lack a query that others have, or two
    of these contradict each other.
    """
    reader = extra("sklearn.datasets", f"Reading {str(path)!r}, which is LibSVM,", "ranking")
    refuse_pointer(path)
    if path.stat().st_size == 0:
        raise find.empty(str(path), "rows")
    try:
        with _opened(path) as file:
            features, label, query = reader.load_svmlight_file(file, query_id=True, zero_based=True)
    except (ValueError, OSError, EOFError, OverflowError, zlib.error) as error:
        why = _odd(path) or said(error).rstrip(".")
        wrong = f"{str(path)!r}: not LibSVM, as in `1 qid:3 1:0.5 4:2`: {why}"
        other = "Tables are .csv, .tsv and .parquet; all else is read as LibSVM."
        raise MattaError(f"{wrong}. {other}") from None
    rows = len(label)
    if not rows:
        raise find.empty(str(path), "rows")
    group = numbered(query) if len(query) == rows else None
    if 0 < len(query) < rows:
        raise _without_query(path, rows - len(query))
    beside = [path.with_name(path.name + suffix) for suffix in SIDECARS]
    sizes = {own: _sizes(own, path, rows) for own in beside if own.exists()}
    every = [*([] if group is None else [group]), *sizes.values()]
    if any(not np.array_equal(every[0], other) for other in every[1:]):
        named = [*([] if group is None else ["its qid"]), *(repr(str(own)) for own in sizes)]
        of = f"{str(path)!r}: " if group is not None else ""
        raise MattaError(f"{of}{' and '.join(named)} differ: keep one.")
    notes = [f"{str(path)!r}: {rows:,} rows read."]
    for own in (path.with_name(path.name + suffix) for suffix in UNREAD):
        if own.exists():
            notes.append(f"{str(own)!r} is not read: to matta all rows count alike.")
    for own, sized in sizes.items() if group is None else ():
        group = sized
        notes.append(f"{str(own)!r} says which rows are one query's.")
    first = 0 if (features.indices == 0).any() or not features.nnz else 1
    return File(path, features, label, group, first, tuple(notes))


def _opened(path: Path) -> BinaryIO:
    """The file, after a byte order mark."""
    kinds: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open}
    file = kinds.get(path.suffix, Path.open)(path, "rb")
    if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        file.seek(0)
    return file


def _odd(path: Path) -> str:
    """What is wrong with the first line that is not LibSVM, in words; empty where none is found."""
    with contextlib.suppress(OSError, EOFError, zlib.error), _opened(path) as file:
        for number, line in enumerate(file, 1):
            before = -1.0
            for k, word in enumerate(line.split(b"#")[0].split()):
                name, mark, value = word.partition(b":")
                at = before if not k or name == b"qid" else _number(name, whole=True)
                numbers = [_number(value if k else word, whole=name == b"qid"), at]
                shown = f"{word[:_SHOWN].decode(errors='replace')!r} in line {number:,}"
                if None in numbers or bool(k) != bool(mark):
                    return f"{shown} is none of its numbers"
                if k and name != b"qid" and at is not None:
                    if at <= before:
                        return f"{shown} follows column {before:.0f}, but columns ascend"
                    before = at
    return ""


def _number(word: bytes, *, whole: bool) -> float | None:
    """The number that a word is, of which queries and columns have 64 bits."""
    try:
        found = int(word) if whole else float(word)
    except ValueError:
        return None
    return None if whole and abs(found) >= 1 << 63 else found


def _without_query(path: Path, count: int) -> MattaError:
    first = 0
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            row = line.split(b"#")[0].split()
            if row and not any(word.startswith(b"qid:") for word in row):
                first = number
                break
    missing = f"{str(path)!r} has {count:,} rows without a qid, the first in line {first:,}"
    return MattaError(f"{missing}, and others with one: give all of them theirs.")


def _sizes(sidecar: Path, path: Path, rows: int) -> np.ndarray:
    """Group numbers [rows] from a file with one group size a line, as LightGBM has it."""
    sizes: list[int] = []
    for number, line in enumerate(lines(sidecar), 1):
        try:
            sizes += [int(word) for word in line.split()]
        except ValueError:
            sizes.append(0)
        if sizes and min(sizes) < 1:
            needed = "must hold the number of rows of one query in each line"
            raise MattaError(f"{str(sidecar)!r} {needed}, but line {number:,} does not.")
    if sum(sizes) != rows:
        numbers = f"counts {sum(sizes)} rows, but {str(path)!r} has {rows}."
        raise MattaError(f"{str(sidecar)!r} {numbers}")
    return np.repeat(np.arange(len(sizes)), sizes)
