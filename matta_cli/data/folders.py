"""What of a folder is data, and which part of it trains."""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from matta_cli.data import cards
from matta_cli.errors import MattaError

# the words that ``datasets`` knows in the names of files and folders, and a few more
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "vali", "dev", "held", "heldout", "holdout"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_BETWEEN = re.compile(r"[\W\d_]+")  # what stands between the words of a name
HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")  # where TestData has two words
_JOINED = re.compile(r"(?<=[a-z])(set|data|file|split)$")  # trainset is a train set
# what tells a part only beside a file that is called alike but for it: these may be languages
_SHORT = {"train": ("tr", "trn"), "validation": ("va", "vl", "vld"), "test": ("te", "ts", "tst")}
_FOLD = re.compile(r"(?:^|[\W\d_])fold[\W_]*(\d+)(?![^\W\d_])")
_SHARD = re.compile(r"(\d+)-of-(\d{1,9})(-[0-9a-f]+)?(\.|$)")  # some have a digest at the end
_CODE = 3  # letters of a word that may be one of those, or a language

# what other programs leave in folders
_FOREIGN = (
    *("__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information"),
    *("lost+found", "found.000"),
    *("thumbs.db", "desktop.ini", "icon\r", "_temporary", "_spark_metadata"),
)
# what only a log tells to be the rows of a table: Delta's, Hudi's, Iceberg's
_LOGS = ("_delta_log", ".hoodie", "metadata/*.metadata.json")
_UNFINISHED = ("~", ".bak", ".old", ".orig", ".tmp", ".swp", ".part", ".crdownload")
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
    not opened. twice: those that another one holds, too. others: those of no kind that is read.
    """

    folder: Path
    files: list[Path]
    left_out: list[Path]
    closed: list[Path] = field(default_factory=list)
    twice: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

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
        above = {name for path in self.files for name in path.relative_to(self.folder).parts[:-1]}
        keys = [name for name in sorted(above) if "=" in name and not part_in(name)]
        if keys:
            said = f"what the names of folders say of rows is not read ({shown(keys)})"
            notes.append(f"{str(self.folder)!r}: {said}: put it into a column if it is needed.")
        notes += [f"{str(self.folder)!r}: {lacks}." for lacks in _shards(self.files)]
        if self.others:
            kinds = Counter(path.suffix or path.name for path in self.others).most_common(4)
            counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds)
            notes.append(f"{str(self.folder)!r}: left out, as of no kind that is read: {counts}.")
        return notes


def _shards(files: Sequence[Path]) -> list[str]:
    """Words on files that are some of several (``train-00000-of-00003``), where others lack."""
    found: dict[tuple[str, int], set[str]] = {}
    for path in files:
        if shard := _SHARD.search(path.name):
            name = path.name[: shard.start()].rstrip("-_. ") or path.parent.name
            found.setdefault((name, int(shard[2])), set()).add(shard[1])
    return [
        f"of the {count:,} files of {name!r} only {len(there):,} are here"
        for (name, count), there in found.items()
        if len(there) < count
    ]


def hidden(name: str) -> bool:
    """Whether a file or folder of that name is some program's own, and never data."""
    small = name.lower()
    return small.startswith((".", "~$")) or small in _FOREIGN or small.endswith(_UNFINISHED)


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, but hidden ones, in the order of their paths.

    Links to folders are followed, as those to files are, but none into a folder that was seen.
    """
    found: list[Path] = []
    seen: set[str] = set()
    links = [folder]
    while links:
        tops, links = links, []
        for where, inside, names in (own for top in tops for own in os.walk(top)):
            if (real := os.path.realpath(where)) in seen:
                inside.clear()
                continue
            seen.add(real)
            inside[:] = [name for name in inside if not hidden(name)]
            links += [Path(where) / name for name in inside if (Path(where) / name).is_symlink()]
            found += [Path(where) / name for name in names if not hidden(name)]
    return iter(sorted(path for path in found if path.is_file()))


def data_files(folder: Path, suffixes: Collection[str]) -> Files:
    """The files of these kinds that are data.

    A README, a licence and the like are none, nor is Markdown where there is data of another kind,
    nor copies. Of one name in several kinds the first of these is taken.
    """
    if logs := [path for pattern in _LOGS for path in folder.glob(pattern)]:
        table = f"{str(folder)!r} is a table whose rows only its log tells ({logs[0].name})"
        raise MattaError(f"{table}: write them out as Parquet, and pass that.")
    there = list(walk(folder))
    known = [path for path in there if path.suffix.lower() in suffixes]
    data = [path for path in known if not is_beside(path) and path.stat().st_size]
    tables = [path for path in data if path.suffix.lower() != ".md"]
    chosen = tables or data
    taken, once = set(chosen), _once(chosen, folder, list(suffixes))
    return Files(
        folder,
        [path for path in chosen if path in once],
        [path for path in known if path not in taken],
        [p for p in there if p.suffix.lower() in _CLOSED and p.suffix.lower() not in suffixes],
        [path for path in chosen if path not in once],
        [p for p in there if p.suffix.lower() not in (*suffixes, *_CLOSED) and not is_beside(p)],
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


def is_beside(path: Path) -> bool:
    """Whether a file is a README, a licence, a card or the like."""
    stem, suffix = path.stem.lower(), path.suffix.lower()
    if suffix == ".json":
        return stem in _CARDS
    if suffix not in (".md", ".txt", ".rst", ".cff", ""):
        return False
    first = _BETWEEN.split(path.stem)[0]
    # security_matters.txt and NOTICE TO QUIT.txt may be books; LICENSE_MIT.txt is none
    loud = first.isupper() and first.lower() in _BESIDE and " " not in stem
    return stem in _BESIDE or loud or first.lower() == "readme"


def part_of(path: Path, folder: Path) -> str:
    """The part that a file's name or its folders' tell: train, validation, test; else empty."""
    names = reversed(path.relative_to(folder).parts)
    return next((part for name in names if (part := part_in(name))), "")


def part_in(name: str) -> str:
    """The part that a word of a name tells; else empty."""
    words = set(_words_of(name))
    # what is not sure to train does not
    order = ("test", "validation", "train")
    return next((part for part in order if words & set(_WORDS[part])), "")


def without_part(name: str) -> str:
    """What is left of a name without the words that tell a part, and numbers."""
    every = {word for own in _WORDS.values() for word in own}
    return " ".join(word for word in _words_of(name) if word and word not in every)


def _words_of(name: str) -> list[str]:
    return [_JOINED.sub("", own) for own in _BETWEEN.split(HUMP.sub("_", name).lower())]


def partners(paths: Sequence[Path], folder: Path) -> dict[Path, str]:
    """The parts of what is called alike but for them: mytrain and mytest, or data_tr and data_te.

    They count only where something to train on is among them.
    """
    groups: dict[tuple[str, str], dict[str, list[Path]]] = {}
    for path in paths:
        parts = path.relative_to(folder).with_suffix("").parts
        for k, name in enumerate(parts):
            where = "/".join(parts[:k])
            for core, part in _cores(name.lower()):
                own = groups.setdefault((where, core), {}).setdefault(part, [])
                own += [] if path in own else [path]
    found: dict[Path, str] = {}
    for named in groups.values():
        others = named.pop("", [])  # data_de beside data_tr and data_te: these are languages
        if "train" in named and len(named) > 1 and not others:
            found |= {path: part for part, there in named.items() for path in there}
    return found


def _cores(name: str) -> Iterator[tuple[str, str]]:
    """A name without each word, or piece of one, that may tell a part, and which; numbers aside."""
    words = re.split(r"([\W\d_]+)", name)
    for k, word in enumerate(words):
        rest = [words[:k], words[k + 1 :]]

        def core(left: str, rest: list[list[str]] = rest) -> str:
            return re.sub(r"\d+", "", "".join([*rest[0], left, *rest[1]]))

        short = next((part for part, own in _SHORT.items() if word in own), "")
        if short or (word.isalpha() and len(word) <= _CODE):
            yield core("*"), short
        for part, own in _WORDS.items():
            for piece in own:
                if word == piece:
                    yield core("**"), part
                if word.startswith(piece) and word != piece:
                    yield core(f"*-{word.removeprefix(piece)}"), part
                if word.endswith(piece) and word != piece:
                    yield core(f"{word.removesuffix(piece)}-*"), part


def chosen(named: Collection[str]) -> str:
    """Words on which of these parts is measured on, where there are two for that."""
    both = {"validation", "test"} <= set(named)
    return "; measured on is validation (else data.held_out_split)" if both else ""


def _refuse_folds(folder: Path, named: dict[str, list[Path]]) -> None:
    """Raise ``MattaError`` where files are several folds: what one tests on the others train on."""
    sides: dict[bool, set[str]] = {True: set(), False: set()}
    for part, paths in named.items():
        names = (name for path in paths for name in path.relative_to(folder).parts)
        sides[part == "train"] |= {fold_of(name) for name in names} - {""}
    if len(both := sides[True] & sides[False]) > 1:
        has = f"{str(folder)!r} has {len(both)} folds, and what one tests on the others train on"
        raise MattaError(f"{has}: pass the folder or the files of one.")


def fold_of(name: str) -> str:
    """The number of a fold of a cross-validation that a name tells; else empty."""
    found = _FOLD.search(name.lower())
    return found[1] if found else ""


def part_named(name: str) -> str:
    """The part whose name a folder bears, and nothing else; else empty."""
    return next((part for part, words in _WORDS.items() if name.lower() in words), "")


def parts(files: Files, config: str = "") -> tuple[dict[str, list[Path]], list[str]]:
    """The files by part, as ``datasets`` tells them, and sentences on that: as the data's card has
    it (``config``: one of the configurations there), else by their names.

    Without names they are all to train on. Beside a named part to train on, files of no part are
    left out.
    """
    config, told = cards.stated(files.folder, config)
    read = {part: [p for p in files.files if p in own] for part, own in told.items()}
    return _as_told(files, config, read) if any(read.values()) else _by_name(files)


def _by_name(files: Files) -> tuple[dict[str, list[Path]], list[str]]:
    """``parts`` of files whose names tell them."""
    found: dict[str, list[Path]] = {"train": [], "validation": [], "test": [], "": []}
    alike = partners(files.files, files.folder)
    for path in files.files:
        found[part_of(path, files.folder) or alike.get(path, "")].append(path)
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
    _refuse_folds(files.folder, named)
    counts = ", ".join(_told(files.folder, part, own) for part, own in named.items())
    notes.append(
        f"{str(files.folder)!r}: files by the part that their names tell: {counts}{chosen(named)}."
    )
    return named, notes


def _told(folder: Path, part: str, paths: Sequence[Path]) -> str:
    """A part and how many files it has; also which are held out for a word among others: these may
    be called so by chance (Val Kilmer.txt).
    """
    held = [path for path in paths if part != "train" and without_part(_SHARD.sub("", path.stem))]
    names = shown([path.relative_to(folder).as_posix() for path in held])
    return f"{part} {len(paths)}" + (f" ({names})" if held else "")


def _as_told(
    files: Files, config: str, told: dict[str, list[Path]]
) -> tuple[dict[str, list[Path]], list[str]]:
    """``parts`` of files whose card tells them."""
    own = {path for paths in told.values() for path in paths}
    others = [path for path in files.files if path not in own]
    notes = []
    if others:
        names = shown([path.relative_to(files.folder).as_posix() for path in others])
        notes.append(f"{str(files.folder)!r}: left out, as README.md names other files: {names}.")
    if cards.ALL in told:
        found, more = _by_name(replace(files, files=told[cards.ALL]))
        return found, [*notes, *more]
    named: dict[str, list[Path]] = {}
    for part, paths in told.items():
        if paths:
            named.setdefault(part_named(part) or part, []).extend(paths)
    if lacks := [part for part, paths in told.items() if not paths]:
        of = f"README.md has the parts {shown(lacks)}, too, of which no file is here"
        notes.append(f"{str(files.folder)!r}: {of}.")
    counts = ", ".join(f"{part} {len(paths)}" for part, paths in named.items())
    of = f"files by part, as README.md has them (configuration {config!r})"
    return named, [*files.note(), *notes, f"{str(files.folder)!r}: {of}: {counts}{chosen(named)}."]


def shown(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
