"""From what the user typed to files, tables and hub datasets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matta_cli.errors import MattaError, said

if TYPE_CHECKING:
    import numpy as np

_SUFFIXES = (
    ".txt",
    ".md",
    ".jsonl",
    ".json",
    ".csv",
    ".tsv",
    ".parquet",
    ".npz",
    ".svm",
    ".libsvm",
    ".train",
    ".test",
    ".gz",
)


def find(text: str, flag: str = "--data") -> Path | None:
    """The local file or folder that ``text`` names, or None where it can only be a hub dataset id.

    Raises ``MattaError`` where it is empty, or looks like a path and nothing is there. ``flag``
    names the setting in it.
    """
    if not text:
        raise MattaError(
            f"There is no data: pass {flag} with a file, a folder or a hub dataset id."
        )
    path = Path(text).expanduser()
    if path.exists():
        return path
    if text.startswith((".", "/", "~")) or text.endswith((*_SUFFIXES, "/")) or text.count("/") > 1:
        raise MattaError(f"There is no file or folder {text!r}: check {flag}.")
    return None


def no_streaming(streaming: bool, what: str) -> None:
    """Raise ``MattaError`` where ``data.streaming`` is set and the task has no use for it."""
    if streaming:
        raise MattaError(f"data.streaming is not supported for {what}: leave it out.")


def empty(text: str, what: str) -> MattaError:
    """The error for data that is there but holds nothing. ``what``: the kind of thing that was
    looked for.
    """
    return MattaError(f"{text!r} holds no {what}: pass other data.")


def no_column(text: str, column: str, setting: str, known: Sequence[str]) -> MattaError:
    """The error for a column that is not there. ``setting`` is the recipe's setting that names it,
    if any does.
    """
    hint = f" Set {setting} to the right one." if setting else ""
    # a blank at an end is else not seen
    shown = ", ".join(name if name == name.strip() else repr(name) for name in known)
    return MattaError(f"{text!r} has no column {column!r}; it has {shown or 'none'}.{hint}")


def last_tenth(count: int, text: str, what: str) -> int:
    """Where the held-out last tenth of ``count`` things begins: at least one is held out, and at
    least one is left.
    """
    if count < 2:
        raise MattaError(
            f"{text!r} holds {count} {what}: too little to hold some out, so pass --held-out with other data."
        )
    return count - max(1, count // 10)


def read_table(path: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV, TSV, JSONL or Parquet file: numbers as numbers (missing ones NaN),
    everything else as objects.

    Raises ``MattaError`` where the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            table = pyarrow.parquet.read_table(path)
        elif path.suffix == ".jsonl":
            table = pyarrow.json.read_json(path)
        else:
            options = pyarrow.csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
            table = pyarrow.csv.read_csv(path, parse_options=options)
        twice = [name for name, count in Counter(table.column_names).items() if count > 1]
        if twice:
            raise MattaError(
                f"{str(path)!r} has several columns {twice[0]!r}: give each a name of its own."
            )
        return {name: table[name].to_numpy() for name in table.column_names}
    except (pa.ArrowException, OSError) as error:
        raise MattaError(f"{str(path)!r} cannot be read: {str(error).splitlines()[0]}") from None


def hub_dataset(name: str, config: str = "") -> dict[str, Any]:
    """All splits of a hub dataset, by name, through ``datasets`` (its cache works offline).

    Raises ``MattaError`` where the hub cannot be reached or has no such dataset or configuration.
    """
    import datasets

    with _opening(name):
        return dict(datasets.load_dataset(name, config or None))


def hub_stream(name: str, config: str = "") -> tuple[dict[str, Any], str]:
    """All splits of a hub dataset, or of a local folder that ``datasets`` opens, to be read on
    demand; and their fingerprint.

    It is what ``load_dataset(..., streaming=True)`` gives; the fingerprint is another one once any
    of the files is. Raises ``MattaError`` as ``hub_dataset`` does.
    """
    import datasets

    with _opening(name):
        builder = datasets.load_dataset_builder(name, config or None)
        return dict(builder.as_streaming_dataset()), f"{builder.config_id} {builder.hash}"


@contextmanager
def _opening(name: str) -> Iterator[None]:
    import datasets

    try:
        yield
    except datasets.exceptions.DatasetNotFoundError:
        raise MattaError(
            f"{name!r} is neither a local file or folder nor a dataset on the hub: check --data."
        ) from None
    except ConnectionError:
        raise MattaError(
            f"Could not reach {name!r} on the hub, and nothing local has that name: pass --data with a local file or folder."
        ) from None
    except Exception as error:
        # what datasets raises for a foreign or damaged repository is open-ended
        raise MattaError(f"The hub dataset {name!r} cannot be opened: {said(error)}") from error


def hub_split(splits: dict[str, Any], name: str, split: str) -> Any:
    """One split of a hub dataset, or a ``MattaError`` that names those there are."""
    if split not in splits:
        raise MattaError(f"{name!r} has no split {split!r}; it has {', '.join(splits)}.")
    return splits[split]


def hub_held_out(splits: dict[str, Any], name: str, split: str) -> Any | None:
    """The named held-out split, else validation, else test, else None."""
    if split:
        return hub_split(splits, name, split)
    return next((splits[known] for known in ("validation", "test") if known in splits), None)
