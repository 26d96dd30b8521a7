"""From what the user typed to files, tables and hub datasets, to train on and to measure on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from matta_cli.data import folders
from matta_cli.errors import MattaError, said
from matta_cli.files.reading import refuse_pointer

if TYPE_CHECKING:
    import numpy as np

    from matta_cli.settings.recipe import DataSettings

_TEXT = (".txt", ".md", ".jsonl", ".json")
_ROWS = (".csv", ".tsv", ".parquet", ".npz", ".svm", ".libsvm", ".train", ".test", ".gz")

_NAMED = 30  # columns of which the names are said
_NAME = 4  # words of the name of a column, at most

_AMBIGUOUS = "is neither a local file or folder nor a dataset on the hub: check --data."
_OFFLINE = "on the hub, and nothing local has that name: pass --data with a local file or folder."

T = TypeVar("T")


def find(text: str, flag: str = "--data") -> Path | None:
    """The local file or folder that ``text`` names, or None where it can only be a hub dataset id.

    Raises ``MattaError`` where it is empty, no file, or looks like a path and nothing is there.
    ``flag`` names the setting in it.
    """
    if not text:
        missing = f"pass {flag} with a file, a folder or a hub dataset id."
        raise MattaError(f"There is no data: {missing}")
    path = Path(text).expanduser()
    if path.is_file() and _is_packed(path):
        raise MattaError(f"{text!r} is packed: unpack it, and pass what was in it.")
    if path.is_file() or path.is_dir():
        return path
    if path.exists():
        twice = "is a pipe or a device, but data is read more than once"
        raise MattaError(f"{text!r} {twice}: save it to a file first.")
    ends = (*_TEXT, *_ROWS, "/")
    if text.startswith((".", "/", "~")) or text.endswith(ends) or text.count("/") > 1:
        raise MattaError(f"There is no file or folder {text!r}: check {flag}.")
    return None


def _is_packed(path: Path) -> bool:
    """Whether a file is an archive, or a table that was compressed; LibSVM may be."""
    *_, before, last = "", "", *(suffix.lower() for suffix in path.suffixes)
    packed = before in (*_TEXT, ".csv", ".tsv", ".parquet", ".tar") and last in folders.PACKED
    return packed or last in folders.ARCHIVES


def no_streaming(settings: DataSettings, what: str) -> None:
    """Raise ``MattaError`` where ``data.streaming`` is set and the task has no use for it."""
    if settings.streaming:
        raise MattaError(f"data.streaming is not supported for {what}: leave it out.")


def empty(text: str, what: str, more: Iterable[str] = ()) -> MattaError:
    """The error for data that is there but holds nothing of the kind ``what``.

    more: sentences on what is there.
    """
    return MattaError(" ".join([f"{text!r} holds no {what}: pass other data.", *more]))


def of_no_kind(path: Path, what: str, kinds: Sequence[str], do: str) -> MattaError:
    """The error for a file whose ending is none of the ``kinds``. do: what else can be done."""
    known = f"matta reads {', '.join(kinds)}"
    return MattaError(f"{str(path)!r} is of no kind {what}: {known}. {do}")


def check_column(
    text: str, column: str, setting: str, known: Iterable[str], more: str = ""
) -> None:
    """Raise ``MattaError`` unless a column is known; ``setting`` is the one that names it.

    more: what else can be done.
    """
    known = list(known)
    if column in known:
        return
    hint = f" Set {setting} to the right one." if setting else ""
    # a blank at an end is else not seen
    named = [n if n == n.strip() and n.isprintable() else repr(n) for n in known]
    there = folders.shown(named, _NAMED) or "none"
    if text.endswith((".csv", ".tsv")) and any(map(_is_no_name, known)):
        hint += " If its first line is a row, put one before it that names the columns."
    raise MattaError(f"{text!r} has no column {column!r}; it has {there}.{hint}{more}")


def _is_no_name(cell: str) -> bool:
    """Whether a cell of the first line is rather one of a row: a number, or a sentence."""
    return bool(re.fullmatch(r"[-+]?\d+([.,]\d+)?", cell.strip())) or len(cell.split()) > _NAME


def last_tenth(count: int, text: str, what: str) -> int:
    """Where the held-out last tenth of ``count`` things begins; at least one is, and one is left.

    Raises ``MattaError`` where there are fewer than two.
    """
    if count < 2:
        few = f"{text!r} holds {count} {what}: too little to hold some out"
        raise MattaError(f"{few}, so pass --held-out with other data.")
    return count - max(1, count // 10)


def last_of_each(label: np.ndarray) -> np.ndarray:
    """The last tenth of the examples of each label [n], bool [n]; of fewer than ten, none."""
    import numpy as np

    found = np.zeros(len(label), bool)
    order = np.argsort(label, kind="stable")
    _, counts = np.unique(label, return_counts=True)
    ends = np.cumsum(counts)
    starts = ends - counts // 10
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        found[order[start:end]] = True
    return found


def to_train_and_measure(
    settings: DataSettings,
    training: bool,
    opened: Callable[[str, str, bool], tuple[T | None, T | None]],
    divided: Callable[[T], tuple[T, T]],
) -> tuple[T | None, T]:
    """What to train on (None unless ``training``) and what to measure on.

    opened: of a name and the flag that gave it, what is there to train on and the held-out part
    that comes with it, either of which may be missing; the first is asked for where the third
    argument is true. divided: something without its last tenth, and that tenth.
    """
    if settings.held_out:
        only, own = opened(settings.held_out, "--held-out", False)
        train = opened(settings.train, "--data", True)[0] if training else None
        held_out = only if own is None else own
    else:
        train, held_out = opened(settings.train, "--data", training)
        if held_out is None and train is not None:
            train, held_out = divided(train)
    assert held_out is not None
    return (train if training else None), held_out


def unreadable(path: Path, error: Exception) -> MattaError:
    """The error for a file that pyarrow could not read; raised where it is known why."""
    refuse_pointer(path)
    return MattaError(f"{str(path)!r} cannot be read: {str(error).splitlines()[0]}")


def hub_dataset(name: str, config: str = "") -> dict[str, Any]:
    """All splits of a hub dataset, by name, through ``datasets`` (its cache works offline).

    Raises ``MattaError`` where the hub cannot be reached or has no such dataset or configuration.
    """
    import datasets

    with _opening(name):
        return dict(datasets.load_dataset(name, config or None))


def parquet_dataset(files: Sequence[Path]) -> Any:
    """The rows of Parquet files, as ``datasets`` opens them: as if they came from the hub."""
    import datasets

    with _opening(str(files[0])):
        names = [str(file) for file in files]
        return datasets.load_dataset("parquet", data_files=names, split="train")


def hub_stream(name: str, config: str = "") -> tuple[dict[str, Any], str]:
    """All splits of a hub dataset, to be read on demand, and their fingerprint.

    ``name`` may also be a local folder that ``datasets`` opens. The splits are what
    ``load_dataset(..., streaming=True)`` gives; the fingerprint is another one once any of the
    files is. Raises ``MattaError`` as ``hub_dataset`` does.
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
        raise MattaError(f"{name!r} {_AMBIGUOUS}") from None
    except ConnectionError:
        raise MattaError(f"Could not reach {name!r} {_OFFLINE}") from None
    except Exception as error:
        # what datasets raises for a foreign or damaged repository is open-ended
        raise MattaError(f"The hub dataset {name!r} cannot be opened: {said(error)}") from error


def hub_split(splits: dict[str, Any], name: str, split: str, setting: str) -> Any:
    """One split of a hub dataset, or a ``MattaError`` that names those there are.

    setting: what names the split.
    """
    if split not in splits:
        do = f"name one of these in {setting}, or pass other data"
        raise MattaError(f"{name!r} has no split {split!r}; it has {', '.join(splits)}: {do}.")
    return splits[split]


def hub_held_out(splits: dict[str, Any], name: str, split: str) -> Any | None:
    """The named held-out split, else validation, else test, else None."""
    if split:
        return hub_split(splits, name, split, "data.held_out_split")
    return next((splits[known] for known in ("validation", "test") if known in splits), None)


def hub_parts(
    splits: dict[str, Any],
    name: str,
    settings: DataSettings,
    training: bool,
    opened: Callable[[Any], T],
) -> tuple[T | None, T | None]:
    """What to train on and what to measure on, of a hub dataset's splits, each ``opened``.

    Without ``training``, the first is opened only where nothing is held out.
    """
    rows = hub_held_out(splits, name, settings.held_out_split)
    held_out = None if rows is None else opened(rows)
    if held_out is not None and not training:
        return None, held_out
    return opened(hub_split(splits, name, settings.split, "data.split")), held_out
