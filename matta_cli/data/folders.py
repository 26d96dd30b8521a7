"""What of a folder is data, and which part of it trains."""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# the words that ``datasets`` knows in the names of files and folders, and a few more
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "vali", "dev", "held", "heldout", "holdout"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_BETWEEN = re.compile(r"[-._ 0-9]+")  # what stands between the words of a name

# what other programs leave in folders
_FOREIGN = (
    *("__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information"),
    *("thumbs.db", "desktop.ini", "icon\r"),
)
_UNFINISHED = ("~", ".bak", ".orig", ".tmp", ".swp", ".part", ".crdownload")
PACKED = (".gz", ".bz2", ".xz", ".zst")  # endings of one file that was compressed
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
# what holds data in a form that is not opened
_CLOSED = (
    *(*PACKED, *ARCHIVES, ".arrow", ".feather", ".ndjson", ".avro", ".orc", ".tfrecord"),
    *(".xlsx", ".xls", ".ods", ".sqlite", ".db"),
)
# forms in which the same rows may stand twice
_FORMS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")
_START = 1 << 16  # bytes by which files of one size are told apart at first
# what stands beside data, and is none
_BESIDE = (
    *("readme", "license", "licence", "copying", "notice", "citation", "authors", "contributing"),
    *("changelog", "changes", "security", "code_of_conduct", "requirements"),
)
_CARDS = ("dataset_info", "dataset_infos", "dataset_dict", "state", "package", "config")


@dataclass(frozen=True)
class Files:
    """The files of a folder that are data, in the order of their paths.

    left_out: those of a known kind that are not, such as README.md. closed: those of a form that is
    not opened. twice: those that another one holds, too.
    """

    folder: Path
    files: list[Path]
    left_out: list[Path]
    closed: list[Path] = field(default_factory=list)
    twice: list[Path] = field(default_factory=list)

    def note(self) -> list[str]:
        """Sentences on what was left out, if anything was."""
        notes = []
        for paths, why in (
            (self.left_out, "left out, as it is no data"),
            (self.closed, "left out, as matta opens no such files (unpack or convert them)"),
            (self.twice, "left out, as a file of that name in another form, or a copy, is read"),
        ):
            if paths:
                names = shown([path.relative_to(self.folder).as_posix() for path in paths])
                notes.append(f"{str(self.folder)!r}: {why}: {names}.")
        return notes


def hidden(name: str) -> bool:
    """Whether a file or folder of that name is some program's own, and never data."""
    small = name.lower()
    return small.startswith(".") or small in _FOREIGN or small.endswith(_UNFINISHED)


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, but hidden ones, in the order of their paths."""
    found: list[Path] = []
    for where, inside, names in os.walk(folder):
        inside[:] = [name for name in inside if not hidden(name)]
        found += [Path(where) / name for name in names if not hidden(name)]
    return iter(sorted(path for path in found if path.is_file()))


def data_files(folder: Path, suffixes: Collection[str]) -> Files:
    """The files of these kinds that are data.

    A README, a licence and the like are none, nor is Markdown where there is data of another kind,
    nor copies. Of one name in several kinds the first of these is taken.
    """
    there = list(walk(folder))
    known = [path for path in there if path.suffix.lower() in suffixes]
    data = [path for path in known if not _is_beside(path)]
    tables = [path for path in data if path.suffix.lower() != ".md"]
    chosen = tables or data
    taken, once = set(chosen), _once(chosen, folder, list(suffixes))
    return Files(
        folder,
        [path for path in chosen if path in once],
        [path for path in known if path not in taken],
        [p for p in there if p.suffix.lower() in _CLOSED and p.suffix.lower() not in suffixes],
        [path for path in chosen if path not in once],
    )


def _once(files: Sequence[Path], folder: Path, kinds: list[str]) -> set[Path]:
    """The files without those that hold the same: by their name, in another kind, or by content."""
    first: dict[Path, Path] = {}
    for path in sorted(files, key=lambda path: kinds.index(path.suffix.lower())):
        # elsewhere an ending may be a part of the name: rank.train and rank.test
        first.setdefault(path.with_suffix("") if path.suffix.lower() in _FORMS else path, path)
    sizes = {path: path.stat().st_size for path in first.values()}
    counts = Counter(sizes.values())
    kept: set[Path] = set()
    like: dict[tuple[int, str, bytes], list[Path]] = {}
    # "Copy of a.csv" and "a (1).csv" after "a.csv"
    for path in sorted(first.values(), key=lambda path: (len(path.name), path)):
        # few are read whole, and those are copies
        start = _start(path) if counts[sizes[path]] > 1 else b""
        alike = like.setdefault((sizes[path], part_of(path, folder), start), [])
        if not any(filecmp.cmp(path, other, shallow=False) for other in alike):
            alike.append(path)
            kept.add(path)
    return kept


def _start(path: Path) -> bytes:
    """A digest of how a file begins; of one that cannot be read, which is said later, its path."""
    try:
        with path.open("rb") as file:
            return hashlib.sha256(file.read(_START)).digest()
    except OSError:
        return str(path).encode(errors="replace")


def _is_beside(path: Path) -> bool:
    stem, suffix = path.stem.lower(), path.suffix.lower()
    if suffix == ".json":
        return stem in _CARDS
    return suffix in (".md", ".txt") and _BETWEEN.split(stem)[0] in _BESIDE


def part_of(path: Path, folder: Path) -> str:
    """The part that a file's name or its folders' tell: train, validation, test; else empty."""
    for name in reversed(path.relative_to(folder).parts):
        words = set(_BETWEEN.split(name.lower()))
        for part in ("test", "validation", "train"):  # what is not sure to train does not
            if words & set(_WORDS[part]):
                return part
    return ""


def part_named(name: str) -> str:
    """The part whose name a folder bears, and nothing else; else empty."""
    return next((part for part, words in _WORDS.items() if name.lower() in words), "")


def parts(files: Files) -> tuple[dict[str, list[Path]], list[str]]:
    """The files by part, as ``datasets`` tells them by their names, and sentences on that.

    Without names they are all to train on. Beside a named part to train on, files of no part are
    left out.
    """
    found: dict[str, list[Path]] = {"train": [], "validation": [], "test": [], "": []}
    for path in files.files:
        found[part_of(path, files.folder)].append(path)
    notes, unnamed = files.note(), found.pop("")
    named = {part: own for part, own in found.items() if own}
    if not named:
        return {"train": unnamed}, notes
    if "train" in named and unnamed:
        names = shown([path.relative_to(files.folder).as_posix() for path in unnamed])
        why = "their names tell no part, beside those that train"
        notes.append(f"{str(files.folder)!r}: left out, as {why}: {names}.")
    elif unnamed:
        named = {"train": unnamed, **named}
    counts = ", ".join(f"{part} {len(own)}" for part, own in named.items())
    notes.append(f"{str(files.folder)!r}: files by the part that their names tell: {counts}.")
    return named, notes


def shown(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
