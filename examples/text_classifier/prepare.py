"""vaderSentiment's ground truth -> two CSV files of texts and labels.

Usage: python prepare.py vaderSentiment-2.5.tar.gz data

The archive on PyPI holds 10,605 sentences of film reviews, each with the mean of twenty people's
ratings from -4 to 4 (Hutto and Gilbert 2014). A text is negative below -0.5, positive above 0.5,
else neutral. A tenth is held out.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

INNER, TABLE = "hutto_ICWSM_2014.tar.gz", "movieReviewSnippets_GroundTruth.txt"
EDGE = 0.5
HELD_OUT = 0.1  # share of the texts


def rows(archive: Path) -> Iterator[tuple[str, float]]:
    """The text and the mean rating of each row."""
    with tarfile.open(archive) as outer, tarfile.open(fileobj=member(outer, INNER)) as inner:
        for line in member(inner, TABLE).read().decode("utf-8", "replace").splitlines():
            _, rating, text = line.split("\t", 2)
            yield text.strip(), float(rating)


def member(archive: tarfile.TarFile, name: str) -> io.BytesIO:
    """A file of an archive, whatever folder it is in."""
    for path in archive.getnames():
        file = archive.extractfile(path) if path.endswith(f"/{name}") else None
        if file is not None:
            return io.BytesIO(file.read())
    raise SystemExit(f"The archive holds no {name}: version 2.5 of vaderSentiment does.")


def label(rating: float) -> str:
    """What a mean rating comes to."""
    return "negative" if rating < -EDGE else "positive" if rating > EDGE else "neutral"


def held_out(text: str) -> bool:
    """Whether a text is held out: always the same ones, wherever they stand."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT * 2**32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for text, rating in rows(given.archive):
        parts["test" if held_out(text) else "train"].append((text, label(rating)))
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, own in parts.items():
        path = given.folder / f"{name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *own])
        print(f"Wrote {len(own):,} texts to {path}.")


if __name__ == "__main__":
    main()
