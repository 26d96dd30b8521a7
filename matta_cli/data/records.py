"""Rows of files as they stand: JSON, JSON lines, CSV, tab-separated values, Parquet.

Nothing is guessed: a cell of CSV is text, and what is no text is not made into some.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matta_cli.data import divided, find
from matta_cli.data.lines import lines
from matta_cli.data.tally import Tally
from matta_cli.errors import MattaError

TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")

_ROWS = 256  # rows of Parquet that are read at once
_LONGEST = 1 << 30  # characters of a cell

Row = tuple[int, tuple[Any, ...]]  # its place in the file, and its values

_KINDS = {list: "a list", dict: "an object", bytes: "bytes", bool: "true or false"}
_KINDS |= {int: "a number", float: "a number"}


def unit(path: Path) -> str:
    """What the places of a file's rows are numbers of."""
    return "row" if path.suffix.lower() in (".json", ".parquet") else "line"


def names(path: Path, optional: Sequence[str] = ()) -> list[str]:
    """The columns of a file; of JSON those of the first row, and of any row these."""
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        return next(cells(path))[1]
    if kind == ".parquet":
        return _parquet(path, lambda file: list(file.schema_arrow.names))
    _, first = next(_objects(path), (0, {}))
    found, left = list(first), [name for name in optional if name not in first]
    for _, own in _objects(path) if left else ():
        if there := [name for name in left if name in own]:
            found, left = [*found, *there], [name for name in left if name not in there]
        if not left:
            break
    return found


def rows(
    path: Path, columns: Sequence[str], setting: str, tally: Tally, optional: Sequence[str] = ()
) -> Iterator[Row]:
    """The values of a file in these columns, row by row; None where JSON lacks an optional one.

    ``setting`` names the columns in an error. Raises ``MattaError`` where the file cannot be read,
    or has no such column.
    """
    for column in divided.asked(names(path), columns):
        told = (values[0] for _, values in _rows(path, [column], setting, [column], {}))
        divided.refuse(str(path), column, told)
    count, known = 0, dict[str, None]()
    for row in _rows(path, columns, setting, optional, known):
        count += 1
        yield row
    kind, of = path.suffix.lower(), f" of {count:,}"
    tally.columns[str(path)] = (list(columns), [name for name in known if name not in columns])
    if kind in (".csv", ".tsv"):
        of = f" of {sum(1 for _ in lines(path)):,} lines (one names the columns)"
    elif kind == ".parquet":
        of = f" of {_parquet(path, lambda file: file.metadata.num_rows):,}"
    tally.files[str(path)] = (count, of, tally.files.get(str(path), (0, "", 0))[2])


def _rows(
    path: Path,
    columns: Sequence[str],
    setting: str,
    optional: Sequence[str],
    known: dict[str, None],
) -> Iterator[Row]:
    """``rows``; takes the names of all columns that there are to those ``known``."""
    kind = path.suffix.lower()
    known.update(dict.fromkeys(names(path) if kind in (".csv", ".tsv", ".parquet") else ()))
    if kind in (".csv", ".tsv"):
        table = cells(path)
        header = next(table)[1]
        for column in columns:
            find.check_column(str(path), column, setting, header)
        places = [header.index(column) for column in columns]
        for number, row in table:
            yield number, tuple(row[place] for place in places)
    elif kind == ".parquet":
        yield from enumerate(_batches(path, columns, setting), 1)
    else:
        for number, own in _objects(path):
            known.update(dict.fromkeys(own))
            for column in columns:
                if column not in optional:
                    find.check_column(f"{path}:{number}", column, setting, own)
            yield number, tuple(own.get(column) for column in columns)


def strings(path: Path, column: str, setting: str, tally: Tally) -> Iterator[str | None]:
    """The texts in a column; None where there is none. Raises ``MattaError`` for other values."""
    empty, own = 0, Tally()
    for number, (value,) in rows(path, [column], setting, tally):
        text = text_of(value, column, str(path), f"{unit(path)} {number:,}")
        empty += text is None or not text.strip()
        own.look(str(path), text or "")
        yield text
    count, of, _ = tally.files[str(path)]
    tally.files[str(path)] = (count, of, empty)
    tally.odd |= own.odd  # of a file that is read whole, as often as it is


def text_of(value: Any, column: str, name: str, where: str) -> str | None:
    """A value as it is where it is text or none. Raises ``MattaError`` for any other."""
    if value is None:
        return None
    if not isinstance(value, str):
        holds = _KINDS.get(type(value), f"a {type(value).__name__}")
        hint = "name a column of text"
        if isinstance(value, (list, dict)):
            hint += ", or write what the model is to read into one (a chat by its template)"
        wrong = f"Column {column!r} of {name!r} holds {holds} in {where}, but text is needed"
        raise MattaError(f"{wrong}: {hint}.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            half = f"Column {column!r} of {name!r} holds half of a character in {where}"
            raise MattaError(f"{half} (a lone surrogate): mend it.") from None
    return value


def cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of CSV or of tab-separated values, the header first; each with its first line.

    CSV may be quoted, tab-separated values never are. Empty lines are none. Raises ``MattaError``
    where quotation marks do not match, or rows are of another length than the header.
    """
    tabs = path.suffix.lower() == ".tsv"
    csv.field_size_limit(_LONGEST)
    reader = csv.reader(
        lines(path, newline=""),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=True,
    )
    header: list[str] = []
    number = 1
    try:
        for row in reader:
            first, number = number, reader.line_num + 1
            if not row:
                continue
            if not header:
                header = row
                _check_header(path, header)
            elif len(row) != len(header):
                others = 1 + sum(len(row) not in (0, len(header)) for row in reader)
                wrong = f"{str(path)!r}: {others:,} rows have another number of cells than the "
                wrong += f"header, which has {len(header)}; the first, in line {first:,}, "
                wrong += f"{len(row)}"
                quoted = "" if tabs else " (a cell with a comma stands in quotation marks)"
                raise MattaError(f"{wrong}: mend them{quoted}.")
            yield first, row
    except csv.Error as error:
        wrong = f"{str(path)!r}: the row that begins in line {number:,} is not valid CSV ({error})"
        hint = "a cell that begins with a quotation mark ends with one, and doubles those inside"
        raise MattaError(f"{wrong}: {hint}.") from None
    if not header:
        raise find.empty(str(path), "rows")


def check_names(path: Path, header: Sequence[str]) -> None:
    """Raise ``MattaError`` where two columns have one name; spreadsheets leave some without any."""
    twice = [name for name, count in Counter(header).items() if count > 1 and name.strip()]
    if twice:
        several = f"{str(path)!r} has several columns {twice[0]!r}"
        raise MattaError(f"{several}: give each a name of its own.")


def _check_header(path: Path, header: Sequence[str]) -> None:
    check_names(path, header)
    other = next((mark for mark in ";\t|," if len(header) == 1 and mark in header[0]), "")
    if other:
        one = f"{str(path)!r} has one column, {header[0]!r}: cells seem to be parted by {other!r}"
        tabs = "call it .tsv" if other == "\t" else "save it so"
        raise MattaError(f"{one}, but matta reads commas in .csv and tabs in .tsv: {tabs}.")


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The values in a JSONL file, each with the number of its line; empty lines are left out.

    Raises ``MattaError`` where the file cannot be read, or at a line that is not JSON.
    """
    for number, line in enumerate(lines(path), 1):
        line = line.lstrip("\ufeff")  # of a file that was appended
        if not line.strip():
            continue
        yield number, _parsed(line, f"{str(path)!r}, line {number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, where))
    except json.JSONDecodeError as error:
        raise MattaError(f"{where} is not valid JSON: {error}.") from None
    except (ValueError, RecursionError):
        raise MattaError(f"{where} holds a number too long or nests too deep to be read.") from None


def _object(pairs: Sequence[tuple[str, Any]], where: str) -> dict[str, Any]:
    """An object of JSON. Raises ``MattaError`` where a key stands twice: a value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise MattaError(f"{where} has the key {twice!r} twice in one object: keep one.")
    return found


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of JSON lines or of JSON: its list, its columns, or its lines."""
    read = json_lines if path.suffix.lower() == ".jsonl" else _json
    for number, value in read(path):
        if not isinstance(value, dict):
            needed = "is no object with a value for each column"
            raise MattaError(f"{str(path)!r}, {unit(path)} {number:,} {needed}.")
        yield number, value


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    text = "".join(lines(path))
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, repr(str(path))))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # lines of JSON, as many programs name them
            yield from json_lines(path)
            return
        raise MattaError(f"{str(path)!r} is not valid JSON: {error}.") from None
    except (ValueError, RecursionError):
        value = _parsed(text, repr(str(path)))
    if isinstance(value, list):
        yield from enumerate(value, 1)
        return
    columns = value if isinstance(value, dict) else {}
    if columns and all(isinstance(own, dict) for own in columns.values()):
        # pandas writes columns as objects of index and value
        index = list(next(iter(columns.values())))
        if any(set(own) != set(index) for own in columns.values()):
            differ = "has columns that name different rows: give all the same"
            raise MattaError(f"{str(path)!r} {differ}.")
        columns = {name: [own[row] for row in index] for name, own in columns.items()}
    if columns and not any(isinstance(own, list) for own in columns.values()):
        yield 1, columns
        return
    lists = all(isinstance(own, list) for own in columns.values())
    if not columns or not lists or len({len(own) for own in columns.values()}) > 1:
        needed = "is neither a list of objects nor an object of columns of one length"
        raise MattaError(f"{str(path)!r} {needed}: write one of these, or JSON lines.")
    for number, row in enumerate(zip(*columns.values(), strict=True), 1):
        yield number, dict(zip(columns, row, strict=True))


def kinds(path: Path) -> list[tuple[str, Any]]:
    """The columns of a Parquet file, and their types."""
    schema = _parquet(path, lambda file: file.schema_arrow)
    return list(zip(schema.names, schema.types, strict=True))


def classes(path: Path, column: str) -> list[str] | None:
    """What the numbers of a column stand for, where ``datasets`` has said so in a Parquet file."""
    if path.suffix.lower() != ".parquet":
        return None
    schema = _parquet(path, lambda file: file.schema_arrow)
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        told = told[0] if isinstance(told, list) else told.get("feature", told)
        names = told["names"] if told["_type"] == "ClassLabel" else None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return names or None


def _parquet(path: Path, asked: Callable[[Any], Any]) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            return asked(file)
    except (pa.ArrowException, OSError) as error:
        raise find.unreadable(path, error) from None


def _plain(values: Any) -> Any:
    """A column, of decimals as floats."""
    import pyarrow as pa

    return values.cast(pa.float64()) if pa.types.is_decimal(values.type) else values


def _batches(path: Path, columns: Sequence[str], setting: str) -> Iterator[tuple[Any, ...]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            known = file.schema_arrow.names
            check_names(path, known)
            for column in columns:
                find.check_column(str(path), column, setting, known)
            for batch in file.iter_batches(batch_size=_ROWS, columns=list(columns)):
                values = [_plain(batch.column(column)).to_pylist() for column in columns]
                yield from zip(*values, strict=True)
    except (pa.ArrowException, OSError) as error:
        raise find.unreadable(path, error) from None
    except UnicodeDecodeError:
        raise MattaError(f"{str(path)!r} holds text that is not in UTF-8: mend it.") from None
