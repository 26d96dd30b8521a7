"""What several tasks share: finding and reading the user's data, and choosing examples of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matta_cli.errors import MattaError
from matta_cli.tasks import Batch, Split

if TYPE_CHECKING:
    import numpy as np

_SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".npz", ".svm", ".libsvm", ".train", ".test", ".gz")


class Part:
    """Some examples of a split, in a given order, as a split."""

    def __init__(self, whole: Split, indices: Sequence[int] | np.ndarray) -> None:
        self.whole = whole
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Sequence[int]) -> Batch:
        return self.whole.batch([int(self.indices[i]) for i in indices])

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        return self.whole.keys([int(self.indices[i]) for i in indices], ids=ids)

    def digest(self) -> str:
        return digest([self.whole.digest(), repr(list(map(int, self.indices)))])


def digest(parts: Iterable[str | np.ndarray]) -> str:
    """sha256 of texts and arrays."""
    import numpy as np

    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() if isinstance(part, str) else memoryview(np.ascontiguousarray(part)))  # type: ignore[arg-type]
    return "sha256:" + total.hexdigest()


def no_ids(what: str) -> MattaError:
    """The error for a Teacher's file that is keyed by id where examples have none."""
    return MattaError(f"A Teacher's file with a column 'id' is not supported for {what}: number its rows in a column 'row'.")


def sample(whole: Split, limit: int) -> Split:
    """At most ``limit`` examples (0: all), always the same, in a fixed random order, so that any first few represent all.

    Image folders come sorted by class, so their first few would not.
    """
    import numpy as np

    order = np.random.default_rng(0).permutation(len(whole))
    return Part(whole, order[:limit] if limit else order)


def find(text: str, flag: str = "--data") -> Path | None:
    """The local file or folder that ``text`` names, or None where it can only be a hub dataset id.

    Raises ``MattaError`` where it is empty, or looks like a path and nothing is there. ``flag`` names the setting in it.
    """
    if not text:
        raise MattaError(f"There is no data: pass {flag} with a file, a folder or a hub dataset id.")
    path = Path(text).expanduser()
    if path.exists():
        return path
    if text.startswith((".", "/", "~")) or text.endswith((*_SUFFIXES, "/")) or text.count("/") > 1:
        raise MattaError(f"There is no file or folder {text!r}: check {flag}.")
    return None


def empty(text: str, what: str) -> MattaError:
    """The error for data that is there but holds nothing. ``what``: the kind of thing that was looked for."""
    return MattaError(f"{text!r} holds no {what}: pass --data with other data.")


def no_column(text: str, column: str, setting: str, known: Sequence[str]) -> MattaError:
    """The error for a column that is not there. ``setting`` is the recipe's setting that names it, if any does."""
    hint = f" Set {setting} to the right one." if setting else ""
    return MattaError(f"{text!r} has no column {column!r}; it has {', '.join(known) or 'none'}.{hint}")


def last_tenth(count: int, text: str, what: str) -> int:
    """Where the held-out last tenth of ``count`` things begins: at least one is held out, and at least one is left."""
    if count < 2:
        raise MattaError(f"{text!r} holds {count} {what}: too little to hold some out, so pass --held-out with other data.")
    return count - max(1, count // 10)


def read_table(path: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV, TSV or Parquet file: numbers as numbers (missing ones NaN), everything else as objects.

    Raises ``MattaError`` where the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            options = pyarrow.csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
            table = pyarrow.csv.read_csv(path, parse_options=options)
        return {name: table[name].to_numpy() for name in table.column_names}
    except (pa.ArrowException, OSError) as error:
        raise MattaError(f"{str(path)!r} cannot be read: {str(error).splitlines()[0]}") from None


def hub_dataset(name: str, config: str = "") -> dict[str, Any]:
    """All splits of a hub dataset, by name, through ``datasets`` (its cache works offline).

    Raises ``MattaError`` where the hub cannot be reached or has no such dataset or configuration.
    """
    import datasets

    try:
        return dict(datasets.load_dataset(name, config or None))
    except datasets.exceptions.DatasetNotFoundError:
        raise MattaError(f"{name!r} is neither a local file or folder nor a dataset on the hub: check --data.") from None
    except ConnectionError:
        raise MattaError(
            f"Could not reach {name!r} on the hub, and nothing local has that name: pass --data with a local file or folder."
        ) from None
    except Exception as error:  # what datasets raises for a foreign or damaged repository is open-ended
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MattaError(f"The hub dataset {name!r} cannot be opened: {said}") from error


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
