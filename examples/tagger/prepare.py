"""usaddress's labelled addresses -> two CoNLL files of words and tags.

Usage: python prepare.py usaddress-0.5.16.tar.gz data

The archive on PyPI holds 1,576 addresses of the United States as people write them, whose parts
were labelled by hand (MIT licence). A run of words of one label becomes a span: B-StreetName
I-StreetName. A tenth is held out.
"""

from __future__ import annotations

import argparse
import hashlib
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

FILES = ("labeled.xml", "us50_messiest_manual_label.xml")
HELD_OUT = 0.1  # share of the addresses


def addresses(archive: Path) -> Iterator[list[tuple[str, str]]]:
    """The words of each address, each with its label."""
    with tarfile.open(archive) as opened:
        for path in sorted(opened.getnames()):
            file = opened.extractfile(path) if path.endswith(FILES) else None
            if file is None:
                continue
            for address in ElementTree.parse(file).getroot():
                yield [(w, part.tag) for part in address for w in (part.text or "").split()]


def spans(labels: list[str]) -> list[str]:
    """Tags that say where a run of one label begins."""
    before = ["", *labels]
    return [f"{'I' if a == b else 'B'}-{b}" for a, b in zip(before, labels, strict=False)]


def held_out(words: list[str]) -> bool:
    """Whether an address is held out: always the same ones, wherever they stand."""
    digest = hashlib.sha256(" ".join(words).lower().encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT * 2**32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    parts: dict[str, list[str]] = {"train": [], "test": []}
    for address in addresses(given.archive):
        words, labels = [word for word, _ in address], [label for _, label in address]
        rows = zip(words, spans(labels), strict=True)
        text = "".join(f"{word} {tag}\n" for word, tag in rows)
        if text:
            parts["test" if held_out(words) else "train"].append(text)
    if not parts["train"]:
        raise SystemExit(f"{given.archive} holds none of {', '.join(FILES)}.")
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, own in parts.items():
        path = given.folder / f"{name}.conll"
        path.write_text("\n".join(own), encoding="utf-8")
        print(f"Wrote {len(own):,} addresses to {path}.")


if __name__ == "__main__":
    main()
