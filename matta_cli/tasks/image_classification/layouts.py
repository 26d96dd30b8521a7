"""Which folders of images are parts and which are classes; and what stands in other files."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from matta_cli.data import folders, records
from matta_cli.data.folders import shown
from matta_cli.errors import MattaError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

_LISTS = (".txt", ".mat", ".json", ".lst")  # of images, in whatever form
_MOST = 5000  # files of a folder that are looked at for what is no image
_START = 1 << 16  # bytes of a list that are looked at
_NUMBERED = re.compile(r"(\d+\s+[01]\s+)+(\d+\s*)?")  # CUB-200's, of numbers of images
# the folder in the path of a file
_ABOVE = re.compile(r"([^/\s\"']{1,255})/[^/\s\"']{1,255}(?=[\s\"']|$)")
_TABLES = "tables train.csv and val.csv with a path (file_name) and a label of each image"


def subfolders(path: Path) -> list[Path]:
    return sorted(own for own in path.iterdir() if own.is_dir() and not folders.hidden(own.name))


def parts(path: Path) -> tuple[dict[str, tuple[Path, str]], list[str]]:
    """The subfolders that are parts, and the names of the others; none where all are classes.

    Of each part its folder and, where that has classes which hold parts each, the part's name
    there. A class may be called train: a part is a folder of classes, or stands among parts only.
    """
    path = inner(path)
    inside = classes(path)
    surely = {own: part for own in inside if (part := _surely(own.name))}
    alike = folders.partners(inside, path)
    named = next((own for own in (surely, alike) if len(own) == len(inside)), {})
    if not named:
        whole = {own: part for own in inside if (part := folders.part_of(own, path))}
        whole = whole or alike
        nested = any(images(below) for own in whole if not direct(own) for below in classes(own))
        named = whole if nested else {}
    found: dict[str, tuple[Path, str]] = {}
    for own, part in named.items():
        found.setdefault(part, (own, ""))
    if found:
        taken = {own for own, _ in found.values()}
        return found, [own.name for own in subfolders(path) if own not in taken]
    below = [{folders.part_named(one.name) for one in classes(own)} for own in inside]
    if len(inside) > 1 and all(own and "" not in own for own in below):
        return {part: (path, part) for part in sorted(set.union(*below))}, []
    return {}, []


def _surely(name: str) -> str:
    """The part that a name is, but for numbers: train2017, test1."""
    return folders.part_named(re.sub(r"[\W\d_]+", "", name))


def inner(path: Path) -> Path:
    """The folder of folders that a folder holds and nothing else, as archives are packed."""
    inside = classes(path)
    while len(inside) == 1 and classes(inside[0]) and not direct(path) + direct(inside[0]):
        path, inside = inside[0], classes(inside[0])
    return path


def within(file: Path, folder: Path) -> str:
    """The part whose folder, of those in ``folder``, a file lies in."""
    return folders.part_named(file.relative_to(folder).parts[0])


def direct(path: Path) -> list[Path]:
    return [own for own in path.iterdir() if own.suffix.lower() in IMAGES]


def images(path: Path) -> list[Path]:
    return [file for file in folders.walk(path) if file.suffix.lower() in IMAGES]


def classes(path: Path) -> list[Path]:
    """The folders in one that may be classes."""
    return [own for own in subfolders(path) if is_class(own)]


def is_class(folder: Path) -> bool:
    """Whether a folder may be a class: it holds images, or no files at all."""
    others = False
    for name in _names(folder):
        if name.lower().endswith(IMAGES):
            return True
        others = True
    return not others


def _names(folder: Path) -> Iterator[str]:
    """The names of the files below a folder, in no order, so that the first come at once."""
    inside, seen = [folder], set[str]()
    while inside:
        here = inside.pop()
        if (real := os.path.realpath(here)) in seen:
            continue
        seen.add(real)
        with contextlib.suppress(OSError), os.scandir(here) as entries:
            for entry in entries:
                if folders.hidden(entry.name):
                    continue
                if entry.is_dir():
                    inside.append(Path(entry.path))
                else:
                    yield entry.name


def refuse_lists(path: Path) -> None:
    """Raise ``MattaError`` where files say which of a folder's images train and which do not.

    Nobody would notice that images to be tested on were trained on.
    """
    found: dict[str, list[Path]] = {}
    beside = [own for own in subfolders(path) if not is_class(own)]
    for file in (file for own in (path, *beside) for file in _inside(own)):
        part = folders.part_in(file.name) if file.suffix.lower() in _LISTS else ""
        if part and _names_images(file, path):
            found.setdefault("train" if "split" in file.stem.lower() else part, []).append(file)
    split = any("split" in file.stem.lower() for file in found.get("train", []))
    if "train" not in found or (len(found) < 2 and not split):
        return
    every = [file.relative_to(path).as_posix() for own in found.values() for file in own]
    say = f"Which images of {str(path)!r} are to train on seems to stand in {shown(sorted(every))}"
    do = f"lay the images in train/CLASS and val/CLASS, or write {_TABLES}"
    raise MattaError(f"{say}, which matta does not read: {do}. Or move these files elsewhere.")


def _names_images(file: Path, path: Path) -> bool:
    """Whether a file seems to list images of a folder: what a training left there does not."""
    if file.suffix.lower() == ".mat":
        return True  # it is not opened
    try:
        with file.open("rb") as opened:
            text = opened.read(_START).decode(errors="replace")
    except OSError:
        return True
    below = {own.name for own in classes(inner(path)) if not own.name.isdecimal()}  # epoch 1/10
    if _NUMBERED.fullmatch(text) or below & set(_ABOVE.findall(text)):
        return True
    if any(f"{suffix}{end}" in text.lower() for suffix in IMAGES for end in ('"', " ", "\n", "\r")):
        return True
    first = [line.split()[0] for line in text.splitlines()[:20] if line.strip()]
    return bool(first) and set(first[:-1] or first) <= {own.stem for own in images(path)}


def refuse_folds(path: Path, inside: Sequence[Path]) -> None:
    """Raise ``MattaError`` where folders are parts of a cross-validation, and no classes."""
    if len(inside) > 1 and all(folders.fold_of(own.name) for own in inside):
        names = shown([own.name for own in inside])
        say = f"{str(path)!r} has the folders {names}, which are folds, and no classes"
        raise MattaError(f"{say}: lay those to train on in train/CLASS, and another in val/CLASS.")


def elsewhere(path: Path, outputs: int = 0) -> str:
    """What to do where a folder has not the classes that are looked for, by what lies there.

    outputs: of the model. Empty where nothing is found.
    """
    below = [one for own in classes(path) for one in classes(own)]
    if outputs and len(below) == outputs:
        first = below[0].relative_to(path).as_posix()
        say = f"The folders within its folders, such as {first}, are {outputs:,}"
        return f" {say}: if these are the classes, lay them side by side (links will do)."
    tops = [path, *([path.parent] if folders.part_of(path, path.parent) else [])]
    return next((told for top in tops if (told := _beside(top))), "")


def _beside(top: Path) -> str:
    """What to do with files in a folder that are no images, the tables first."""
    others = [file for file in _files(top) if file.suffix.lower() not in IMAGES]
    for file in others:
        if file.suffix.lower() in (".csv", ".tsv", ".jsonl", ".parquet"):
            try:
                columns = ", ".join(map(repr, records.names(file)))
            except MattaError:
                continue
            has = f"{file.relative_to(top).as_posix()} has the columns {columns}"
            return f" {has}: if it has the labels, set data.image and data.label to two of them."
    if not others:
        return ""
    there = shown([file.relative_to(top).as_posix() for file in others])
    if not is_class(top):
        return f" Files there: {there}. Unpack archives, and save arrays as .npz (images, labels)."
    return f" Files there: {there}. If labels stand in them, write {_TABLES}."


def _files(path: Path) -> list[Path]:
    """The files in a folder and in those below it, but those that are no data; of many some."""
    found = [own for folder in (path, *subfolders(path)) for own in _inside(folder)]
    return [own for own in found if not folders.hidden(own.name) and not folders.is_beside(own)]


def _inside(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        some = itertools.islice(entries, _MOST)
        return sorted(Path(entry.path) for entry in some if entry.is_file())
    return []
