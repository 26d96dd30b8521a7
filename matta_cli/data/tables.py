"""Columns of numbers and of names from CSV, tab-separated values and Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matta_cli.data import divided, find, records
from matta_cli.data.lines import encoding
from matta_cli.data.tally import columns_told
from matta_cli.errors import MattaError

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".csv", ".tsv", ".parquet")

_BLOCK = 1 << 26  # bytes that types are told from; a cell is shorter
_SCAN = 1 << 22
_EXACT = 1 << 53  # from there on whole numbers are not all told apart by float64


class Table:
    """The rows of files of one part, one file after the other.

    names: columns that hold names, such as queries, which are text whatever they look like. Raises
    ``MattaError`` where a file cannot be read, rows are cut or merged, or files have other columns.
    """

    def __init__(self, paths: Sequence[Path], names: Sequence[str] = ()) -> None:
        self.paths = list(paths)
        tables = [_read(path, names) for path in paths]

        import pyarrow as pa

        try:
            self.columns = pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            differ = f"{str(paths[0])!r} and the files beside it do not have the same columns"
            raise MattaError(f"{differ}: {str(error).splitlines()[0]}") from None
        self.ends = [sum(len(table) for table in tables[: k + 1]) for k in range(len(tables))]
        for name in self.columns.column_names if len(tables) > 1 else ():
            if any(name not in table.column_names for table in tables):
                lacks = next(
                    p for p, t in zip(paths, tables, strict=True) if name not in t.schema.names
                )
                raise MattaError(
                    f"{str(lacks)!r} has no column {name!r}, as the files beside it do."
                )

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def name(self) -> str:
        """The files, for people."""
        return str(self.paths[0] if len(self.paths) == 1 else self.paths[0].parent)

    @property
    def known(self) -> list[str]:
        return list(self.columns.column_names)

    def told(self, read: Sequence[str]) -> list[str]:
        """Sentences on how much of each file was read. read: the columns that are used.

        Raises ``MattaError`` where another one says of which part a row is.
        """
        for column in divided.asked(self.known, read):
            divided.refuse(self.name, column, self.columns[column].unique().to_pylist())
        columns = columns_told(read, [name for name in self.known if name not in read])
        starts = [0, *self.ends]
        return [
            f"{str(path)!r}: {end - start:,} rows read{_lines(path)}{columns}."
            for path, start, end in zip(self.paths, starts, self.ends, strict=False)
        ]

    def where(self, row: int) -> str:
        """Which row of which file one is, counted from 1."""
        file = next(k for k, end in enumerate(self.ends) if row < end)
        start = self.ends[file - 1] if file else 0
        of = f" of {str(self.paths[file])!r}" if len(self.paths) > 1 else ""
        return f"row {row - start + 1:,}{of}"

    def holds_numbers(self, column: str) -> bool:
        import pyarrow as pa

        kind = self.columns[column].type
        kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
        return any(of(kind) for of in (*kinds, pa.types.is_decimal))

    def numbers(self, column: str, hint: str, *, holes: bool = False) -> np.ndarray:
        """A column of numbers [n], of its own type; with ``holes``, NaN where there is none.

        Raises ``MattaError`` that ends in ``hint`` where others are missing or not finite.
        """
        import numpy as np
        import pyarrow as pa

        values = self.columns[column]
        if pa.types.is_decimal(values.type):
            values = values.cast(pa.float64())
        numbers = values.to_numpy()  # float64, with NaN, where some are missing
        if values.null_count:
            numbers = numbers.astype(np.float64)
        wrong = ~np.isfinite(numbers)
        if holes and values.null_count:
            wrong &= self.columns[column].is_valid().to_numpy()
        self.complete(column, wrong, "misses values, or has some not finite", hint)
        return numbers

    def keys(self, column: str) -> np.ndarray:
        """A column of names [n] as text. Raises ``MattaError`` where some are missing."""
        import numpy as np
        import pyarrow as pa

        values, hint = self.columns[column], "give each row its own"
        if pa.types.is_floating(values.type):  # whole numbers that some program made floats
            numbers = values.to_numpy()
            self.complete(column, np.isnan(numbers), "misses values", hint)
            odd = (numbers != np.floor(numbers)) | (np.abs(numbers) >= _EXACT)
            rounded = "holds names that were rounded to decimals"
            self.complete(column, odd, rounded, "store them as whole numbers or as text")
            values = pa.chunked_array([pa.array(numbers.astype(np.int64))])
        try:
            if pa.types.is_nested(values.type) or pa.types.is_binary(values.type):
                raise pa.ArrowInvalid("bytes may happen to be text")
            texts = np.array(values.cast(pa.string()).to_pylist(), dtype=object)
        except pa.ArrowException:
            holds = f"Column {column!r} of {self.name!r} holds {values.type}"
            raise MattaError(f"{holds}, but names are text or whole numbers.") from None
        self.complete(column, np.array([not text for text in texts]), "misses values", hint)
        return texts.astype(str)

    def shown(self, column: str) -> str:
        """What a column holds that is no numbers, in words, with an example where it is text."""
        there = (value for value in self.columns[column].to_pylist() if value is not None)
        texts = [value for value in there if isinstance(value, str)]
        example = next((text for text in texts if not _is_number(text)), texts[0] if texts else "")
        return f"text such as {example!r}" if texts else f"no numbers ({self.columns[column].type})"

    def complete(self, column: str, wrong: np.ndarray, what: str, hint: str) -> None:
        """Raise ``MattaError`` with the number of rows that are ``wrong``, and the first."""
        import numpy as np

        if wrong.any():
            which = f"Column {column!r} of {self.name!r} {what}, {int(wrong.sum()):,} in all"
            first = self.where(int(np.flatnonzero(wrong)[0]))
            raise MattaError(f"{which}, the first in {first}: {hint}.")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read(path: Path, names: Sequence[str]) -> Any:
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.suffix.lower() == ".parquet":
            table = parquet.read_table(path)
            records.check_names(path, table.column_names)
            return table
        _, quoted, nul = _scanned(path)
        if nul and encoding(path).startswith("utf-8"):
            _complain(path)
        tabs = path.suffix.lower() == ".tsv"
        known = next(records.cells(path))[1]
        table = csv.read_csv(
            path,
            csv.ReadOptions(block_size=_BLOCK, encoding=encoding(path)),
            csv.ParseOptions(
                delimiter="\t" if tabs else ",",
                quote_char=False if tabs else '"',
                newlines_in_values=quoted and not tabs,
            ),
            csv.ConvertOptions(column_types={name: pa.string() for name in names if name in known}),
        )
    except (pa.ArrowException, OSError, UnicodeError) as error:
        if path.suffix.lower() != ".parquet":
            _complain(path)
        raise find.unreadable(path, error) from None
    # pyarrow takes whatever quotation marks there are for what it can
    if quoted and len(table) != (count := sum(1 for _ in records.cells(path)) - 1):
        merged = f"{str(path)!r} has {count:,} rows, but {len(table):,} were read"
        raise MattaError(f"{merged}: check its quotation marks.")
    return _without_empty(table, path)


def _without_empty(table: Any, path: Path) -> Any:
    """A table without its columns that have neither a name nor values, where these are several:
    spreadsheets write such.
    """
    nameless = {k for k, name in enumerate(table.column_names) if not name.strip()}
    if len(nameless) < 2:
        return table
    if any(table.column(k).null_count < len(table) for k in nameless):
        raise MattaError(f"{str(path)!r} has several columns without a name: give each its own.")
    return table.select([k for k in range(table.num_columns) if k not in nameless])


def _complain(path: Path) -> None:
    """Raise what the other reader has to say, which is strict, and knows lines."""
    for _ in records.cells(path):
        pass


def _lines(path: Path) -> str:
    if path.suffix.lower() == ".parquet":
        return ""
    return f" of {_scanned(path)[0]:,} lines (one names the columns)"


def _scanned(path: Path) -> tuple[int, bool, bool]:
    """The number of a file's lines, and whether it has quotation marks and NUL bytes."""
    count, quoted, nul, last = 0, False, False, b""
    bytewise = encoding(path).startswith("utf-8")
    with path.open("rb") as file:
        while block := file.read(_SCAN):
            count += block.count(b"\n")
            if bytewise:  # ends of lines may be of either character, or of both
                count += block.count(b"\r") - block.count(b"\r\n")
                count -= last == b"\r" and block[:1] == b"\n"
            last = block[-1:]
            quoted, nul = quoted or b'"' in block, nul or b"\0" in block
    return count + (last not in (b"", b"\n", b"\r")), quoted, nul
