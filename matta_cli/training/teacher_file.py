"""A file of what a larger model said about each training example, and how it is read.

The larger model may read other features than the TA: all that is shared is the examples. A file is
Parquet, JSONL or safetensors with a key (``row``, or ``id`` where ``data.id`` names that column of
the data) and one of

    label          the Teacher's class, or a ranker's grade
    probabilities  one per class (soft labels), or one number for a ranker
    logits         one per class (per position and token for language models)
    score          a ranker's logit
    embedding      of a sentence, of any width
    top_logits     of the k likeliest classes, with top_index, and, if known, rest: the log of the
                   others' mass; or drawn: others, drawn in proportion to their probabilities
                   (one or several times), with entropy: of the whole distribution, in nats

``top_logits`` and ``rest`` are log-probabilities, up to one constant, of the distribution softened
by ``temperature`` (a column, 1 where there is none), which must be ``distill.temperature``. Without
``rest`` it is what they leave of 1. The file is one of these, or a folder that ``matta teach``
wrote: ``teacher.json`` and shards of safetensors, with logits where there are few outputs (and
embeddings), else with the k likeliest of the softened distribution and what was drawn of the rest,
which it packs (``matta_cli.training.packed``; how many there are stands in the card).
Of conversations these are at the positions that are learned. A third kind is what servers give:
``matta_cli.training.prompt_logprobs``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from typing_extensions import NotRequired

from matta_cli.data import records
from matta_cli.errors import MattaError
from matta_cli.files import atomic, reading

FORMAT = 3
CARD = "teacher.json"
PACKED = "packed"  # of a shard: what was drawn, as ``matta_cli.training.packed`` writes it
POSITIONS = "positions"  # of a shard: how many of each example there are, if they are not as many


class Card(reading.Versioned):
    """What ``teacher.json`` holds."""

    outputs: int
    data: str
    description: str
    per_shard: int
    shards: int
    digests: list[str]
    complete: bool
    temperature: NotRequired[float | None]
    draws: NotRequired[int]


LOGGED = "prompt_logprobs"  # of a server: see the module of that name
VALUES = ("label", "probabilities", "logits", "score", "embedding", "top_logits")
_KNOWN = {"row", "id", *VALUES, "top_index", "rest", "drawn", "entropy", "temperature"}


def is_file(name: str) -> bool:
    """Whether a Teacher's name is that of such a file, and not of a model."""
    path = Path(name).expanduser()
    if path.is_dir():
        return (path / CARD).exists()
    if path.suffix in (".parquet", ".jsonl"):
        if not path.is_file():
            raise MattaError(f"There is no file {name!r}: check --teacher.")
        return True
    if path.suffix != ".safetensors" or not reading.regular(path).exists():
        return False
    try:
        with safe_open(str(path), framework="pt") as opened:
            names = set(opened.keys())
    except (OSError, SafetensorError):
        return False
    return bool(names) and names <= _KNOWN


@dataclass
class Table:
    """What a file holds, in memory or on disk.

    key: [n] numbers, or names (``by_id``). values: name -> [n, ...]; where examples are of unequal
    lengths (``ragged``), all positions of those asked for, one after the other. card: the
    temperature, and of a folder what ``matta teach`` knew.
    """

    key: np.ndarray
    by_id: bool
    values: dict[str, Any]
    card: dict[str, Any]
    ragged: bool = False


class Ragged:
    """Values of examples of unequal lengths: [all positions, ...], and where each one ends."""

    def __init__(self, values: np.ndarray, ends: np.ndarray) -> None:
        self.values, self.ends = values, np.append(0, ends)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """All positions of some examples, one after the other."""
        return np.concatenate([self.values[self.ends[p] : self.ends[p + 1]] for p in places])


def read(path: Path) -> Table:
    """What a Teacher's file or folder holds. Raises ``MattaError`` for one that cannot be read."""
    return _shards(path) if path.is_dir() else _own(path)


def _own(path: Path) -> Table:
    """A user's own file."""
    named = f"Teacher {str(path)!r}"
    values = _tensors(path) if path.suffix == ".safetensors" else _columns(path)
    if "id" in values and "row" in values:
        keep = "keep one as the key"
        raise MattaError(f"{named}: it has both a column 'row' and a column 'id': {keep}.")
    if "id" not in values and "row" not in values:
        neither = "it has neither a column 'row', the numbers of the examples, nor 'id'"
        has = ", ".join(values) or "nothing that is known"
        raise MattaError(f"{named}: {neither}; it has {has}.")
    for name, value in values.items():
        if name in _KNOWN and name != "id" and value.dtype.kind not in "biuf":
            raise MattaError(f"{named}: column {name!r} holds no numbers ({value.dtype}).")
    rows = {name: value.shape[:1] for name, value in values.items() if name in _KNOWN}
    if () in rows.values() or len(set(rows.values())) > 1:
        lengths = ", ".join(f"{name} {list(shape)}" for name, shape in rows.items())
        raise MattaError(f"{named}: its columns are not of one length ({lengths}).")
    by_id = "id" in values
    try:
        key = np.asarray(values.pop("id")).astype(str) if by_id else np.asarray(values.pop("row"))
    except UnicodeDecodeError:
        raise MattaError(f"{named}: column 'id' must hold text or numbers, not bytes.") from None
    if (key.dtype.kind not in "iu" and not by_id) or key.ndim != 1:
        raise MattaError(f"{named}: column 'row' must hold whole numbers.")
    known = {name: v for name, v in values.items() if name in _KNOWN}
    temperature = np.unique(np.asarray(known.pop("temperature", 1.0)))
    if len(temperature) != 1:
        raise MattaError(f"{named}: column 'temperature' must be the same number in every row.")
    return Table(key, by_id, known, {"temperature": float(temperature[0])})


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as arrays, floats as float32."""
    tensors = reading.tensors(path, "make it again").items()
    return {n: (t.float() if t.is_floating_point() else t).numpy() for n, t in tensors}


def _columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of a Parquet or JSONL file as arrays [n] or [n, ...].

    Raises ``MattaError`` for missing values, and for lists of unequal lengths.
    """
    import pyarrow as pa
    from pyarrow import parquet

    named = f"Teacher {str(path)!r}"
    reading.refuse_pointer(path)
    columns = {}
    try:
        read = _lines(path) if path.suffix == ".jsonl" else None
        table = parquet.read_table(path) if read is None else pa.table(read)
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        raise MattaError(f"{named} cannot be read: {str(error).splitlines()[0]}") from None
    for name in [name for name in table.column_names if name in _KNOWN]:
        column = table[name]
        if column.null_count:
            missing = f"{column.null_count} missing values"
            raise MattaError(f"{named}: column {name!r} has {missing}.")
        try:
            nested = pa.types.is_nested(column.type)
            lists = np.array(column.to_pylist(), dtype=np.float32) if nested else None
        except ValueError:
            unequal = f"the lists of column {name!r} are of unequal lengths"
            raise MattaError(f"{named}: {unequal}, or hold no numbers.") from None
        except (TypeError, OverflowError):
            raise MattaError(f"{named}: column {name!r} holds lists of no numbers.") from None
        columns[name] = column.to_numpy() if lists is None else lists
    return columns


def _lines(path: Path) -> dict[str, list[Any]]:
    """The known columns of lines of JSON.

    pyarrow's own reader takes no line of more than a megabyte, and names for dates.
    """
    rows = []
    for number, row in records.json_lines(path):
        if not isinstance(row, dict):
            raise MattaError(f"Teacher {str(path)!r}: line {number:,} is no object.")
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row if name in _KNOWN)
    return {name: [row.get(name) for row in rows] for name in names}


class _Sharded:
    """One tensor that lies in several files, read where it is asked for."""

    def __init__(
        self, files: list[Any], name: str, starts: np.ndarray, ends: list[np.ndarray] | None = None
    ) -> None:
        """ends: of each file, where its examples end, if they are of unequal lengths."""
        self.files, self.name, self.starts, self.ends = files, name, starts, ends

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        rows = []
        for place in places:
            shard = int(np.searchsorted(self.starts, place, side="right")) - 1
            at = int(place - self.starts[shard])
            first, last = at, at + 1
            if self.ends is not None:
                first, last = (int(end) for end in self.ends[shard][at : at + 2])
            rows.append(self.files[shard].get_slice(self.name)[first:last])
        return np.concatenate(rows)


def _shards(folder: Path) -> Table:
    """A folder of ``matta teach``."""
    named, again = f"Teacher {str(folder)!r}", "run `matta teach` again"
    card = read_teacher_card(folder)
    if card is None or not card.get("complete"):
        raise MattaError(f"{named} is not finished: run the `matta teach` that began it again.")
    if not 0 < card["shards"] == len(card["digests"]):
        raise MattaError(f"{named} is damaged ({CARD}: its digests): {again}.")
    for number, digest in enumerate(card["digests"]):
        if not is_whole(folder / shard_name(number), digest):
            raise MattaError(f"{named} is damaged ({shard_name(number)}): {again}.")
    paths = [str(folder / shard_name(number)) for number in range(card["shards"])]
    try:
        # as arrays: torch joins no numbers of two bytes without a sign
        files = [safe_open(path, framework="numpy") for path in paths]
        keys = [file.get_tensor("row") for file in files]
        names = [*files[0].keys()]
        if PACKED in names and card.get("draws", 0) < 1:
            raise ValueError(f"{CARD}: draws")
        ragged = POSITIONS in names
        counts = [file.get_tensor(POSITIONS) for file in files] if ragged else []
        for number, (file, key) in enumerate(zip(files, keys, strict=True)):
            rows = int(counts[number].sum()) if ragged else len(key)
            _check_shapes(shard_name(number), file, files[0], rows)
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise MattaError(f"{named} is damaged ({str(error).splitlines()[0]}): {again}.") from None
    starts = np.cumsum([0, *(len(key) for key in keys[:-1])])
    ends = [np.append(0, np.cumsum(own)) for own in counts] if ragged else None
    names = [name for name in names if name not in ("row", POSITIONS)]
    values = {name: _Sharded(files, name, starts, ends) for name in names}
    return Table(np.concatenate(keys), False, values, card, ragged)


def _check_shapes(name: str, shard: Any, first: Any, rows: int) -> None:
    """Raise ``ValueError`` where a shard's tensors have not so many rows, or differ in shape."""

    def shapes(file: Any) -> dict[str, list[int]]:
        own = (key for key in file.keys() if key not in ("row", POSITIONS))  # noqa: SIM118
        return {key: list(file.get_slice(key).get_shape()) for key in own}

    here, there = shapes(shard), shapes(first)
    for key in {*here, *there}:
        mine, theirs = here.get(key), there.get(key)
        if not mine or not theirs or mine[0] != rows or mine[1:] != theirs[1:]:
            raise ValueError(f"{name}: {key} has the shape {mine}")
    if here.get("top_logits") != here.get("top_index"):
        raise ValueError(f"{name}: top_logits and top_index are of different shapes")


def read_teacher_card(folder: Path) -> dict[str, Any] | None:
    """What ``matta teach`` wrote about its folder; None where it has written nothing.

    Raises ``MattaError`` for one that is damaged, or of a newer format.
    """
    path = folder / CARD
    try:
        return reading.stored(path, Card, "run `matta teach --overwrite` again", FORMAT)
    except FileNotFoundError:
        return None


def is_whole(shard: Path, digest: str) -> bool:
    """Whether a shard is there and as it was written."""
    return shard.exists() and atomic.file_digest(shard) == digest


def shard_name(number: int) -> str:
    """What a shard's file is called."""
    return f"shard-{number:05}.safetensors"
