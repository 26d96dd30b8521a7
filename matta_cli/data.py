"""What several tasks share: finding and reading the user's data, and choosing examples of it."""

from __future__ import annotations

import atexit
import hashlib
import signal
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matta_cli.errors import MattaError, said
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


class _Steps:
    """A split as a map-style dataset whose examples are whole steps."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, indices: Sequence[int]) -> Batch | MattaError:
        try:
            return self.split.batch(indices)
        except MattaError as error:  # raised in a worker it would arrive inside the worker's traceback
            return error


def loader(split: Split, drawn: Iterable[Sequence[int]], workers: int = 0, pin: bool = False) -> Generator[Batch, None, None]:
    """The batches of ``drawn``, one for each of its lists of examples, in its order, whatever the number of ``workers``.

    workers: processes that fetch ahead, two batches each; 0: the calling process, on demand. They are forks, which share the
    split's arrays, and leave signals to the calling process, so that a run that is stopped still gets the batch it waits for.
    pin: batches in page-locked memory. ``drawn`` is asked ahead of time, so it must not draw from torch's global generator.
    Raises ``MattaError`` at once where ``workers`` is negative or not possible here, and at its batch what the split raises,
    and where a worker dies. Closing it ends the workers.
    """
    import multiprocessing

    import torch
    from torch.utils.data import DataLoader

    if workers < 0:
        raise MattaError(f"data.workers is {workers}, but it is a number of processes: 0 (none beside the run's own) or more.")
    if workers and "fork" not in multiprocessing.get_all_start_methods():
        raise MattaError(f"data.workers is {workers}, but this system cannot fork processes: set it to 0.")
    steps: Any = _Steps(split)
    order: Any = drawn
    batches = DataLoader(
        steps,
        sampler=order,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_deaf,
        generator=torch.Generator(),  # else the loader would draw its workers' seed from the run's
    )
    return _raising(batches, workers)


def _raising(batches: Iterable[Any], workers: int) -> Generator[Batch, None, None]:
    import multiprocessing

    others = set(multiprocessing.active_children())
    fetched: Any = iter(batches)
    own = set(multiprocessing.active_children()) - others

    def end() -> None:
        if own:
            fetched._shutdown_workers()  # torch's own way; without it, torch takes the end of a worker for a crash
        while own:  # one may wait for a lock that a dead one held
            own.pop().kill()

    # Python's exit would wait for ever for a process that is deaf to its SIGTERM; what it leaves of this module is little
    unregister = atexit.unregister
    atexit.register(end)
    try:
        for batch in fetched:
            if isinstance(batch, MattaError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error) and "is killed by signal" not in str(error):
            raise
        raise MattaError(
            f"One of the {workers} processes that read the data died, perhaps for want of memory or of shared memory "
            "(/dev/shm): lower data.workers or --batch-size."
        ) from error
    finally:
        unregister(end)
        end()


def _deaf(_worker: int) -> None:
    """Ignore what the terminal and schedulers send to all processes of a run."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


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


def no_streaming(streaming: bool, what: str) -> None:
    """Raise ``MattaError`` where ``data.streaming`` is set and the task has no use for it."""
    if streaming:
        raise MattaError(f"data.streaming is not supported for {what}: leave it out.")


def empty(text: str, what: str) -> MattaError:
    """The error for data that is there but holds nothing. ``what``: the kind of thing that was looked for."""
    return MattaError(f"{text!r} holds no {what}: pass other data.")


def no_column(text: str, column: str, setting: str, known: Sequence[str]) -> MattaError:
    """The error for a column that is not there. ``setting`` is the recipe's setting that names it, if any does."""
    hint = f" Set {setting} to the right one." if setting else ""
    shown = ", ".join(name if name == name.strip() else repr(name) for name in known)  # a blank at an end is else not seen
    return MattaError(f"{text!r} has no column {column!r}; it has {shown or 'none'}.{hint}")


def last_tenth(count: int, text: str, what: str) -> int:
    """Where the held-out last tenth of ``count`` things begins: at least one is held out, and at least one is left."""
    if count < 2:
        raise MattaError(f"{text!r} holds {count} {what}: too little to hold some out, so pass --held-out with other data.")
    return count - max(1, count // 10)


def read_table(path: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV, TSV, JSONL or Parquet file: numbers as numbers (missing ones NaN), everything else as objects.

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
            raise MattaError(f"{str(path)!r} has several columns {twice[0]!r}: give each a name of its own.")
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
    """All splits of a hub dataset, or of a local folder that ``datasets`` opens, to be read on demand; and their fingerprint.

    It is what ``load_dataset(..., streaming=True)`` gives; the fingerprint is another one once any of the files is.
    Raises ``MattaError`` as ``hub_dataset`` does.
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
        raise MattaError(f"{name!r} is neither a local file or folder nor a dataset on the hub: check --data.") from None
    except ConnectionError:
        raise MattaError(
            f"Could not reach {name!r} on the hub, and nothing local has that name: pass --data with a local file or folder."
        ) from None
    except Exception as error:  # what datasets raises for a foreign or damaged repository is open-ended
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
