"""vaderSentiment's ground truth -> two CSV files of texts and labels.

Usage: python prepare.py vaderSentiment-2.5.tar.gz data

The archive on PyPI holds film and product reviews, tweets and editorials in sentences, each with the
mean of twenty people's ratings from -4 to 4 (Hutto and Gilbert 2014). A text is negative below -0.5,
positive above 0.5, else neutral. A tenth of the documents is held out; no document is in both files.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

SOURCES = ("movieReview", "amazonReview", "nytEditorial", "tweets")
INNER = "hutto_ICWSM_2014.tar.gz"
EDGE = 0.5
HELD_OUT = 0.1  # share of the documents


def rows(archive: Path) -> Iterator[tuple[str, str, float]]:
    """The document, the text and the mean rating of each row."""
    with tarfile.open(archive) as outer:
        name = next((name for name in outer.getnames() if name.endswith(INNER)), None)
        packed = outer.extractfile(name) if name else None
        if packed is None:
            raise SystemExit(f"{archive} holds no {INNER}: version 2.5 of vaderSentiment does.")
        with tarfile.open(fileobj=io.BytesIO(packed.read())) as inner:
            for name in sorted(inner.getnames()):
                source = Path(name).name
                file = inner.extractfile(name)
                if not source.startswith(SOURCES) or "_GroundTruth" not in source or file is None:
                    continue
                for line in file.read().decode("utf-8", "replace").splitlines():
                    number, rating, text = line.split("\t", 2)
                    yield f"{source} {number.partition('_')[0]}", text.strip(), float(rating)


def label(rating: float) -> str:
    """What a mean rating comes to."""
    return "negative" if rating < -EDGE else "positive" if rating > EDGE else "neutral"


def held_out(document: str) -> bool:
    """Whether a document is held out: always the same ones."""
    digest = hashlib.sha256(document.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT * 2**32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for document, text, rating in rows(given.archive):
        parts["test" if held_out(document) else "train"].append((text, label(rating)))
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, own in parts.items():
        path = given.folder / f"{name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *own])
        print(f"Wrote {len(own):,} texts to {path}.")


if __name__ == "__main__":
    main()
