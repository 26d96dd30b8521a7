"""The files that belong to a model besides its weights."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from matta_cli.errors import MattaError, said
from matta_cli.files import atomic, reading
from matta_cli.files.card import read_card
from matta_cli.files.workspace import Workspace

_COMPANIONS = (
    "tokenizer*.json",
    "tokenizer.model",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "spiece.model",
    "sentencepiece*.model",
    "*.tiktoken",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    # what sentence-transformers adds to an encoder; its further steps (1_Pooling) are folders
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "[0-9]_*/*.json",
)

_AGAIN = "convert again with --tokenizer"
_TOKENIZER = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"),
    *("spiece.model", "*.tiktoken"),
)


def companions(source: Path) -> dict[str, Path]:
    """The tokenizer, preprocessing, pooling and the like of a checkpoint: name in it -> file."""
    there = {path for pattern in _COMPANIONS for path in source.glob(pattern) if path.is_file()}
    return {path.relative_to(source).as_posix(): path for path in sorted(there)}


def copy_companions(source: Path, target: Path) -> list[str]:
    """Copy what belongs to a checkpoint besides its weights; return the names."""
    files = companions(source)
    for name, path in files.items():
        if path.resolve() != (target / name).resolve():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target / name)
    return list(files)


def home(folder: Path) -> Path:
    """Where the tokenizer of a model's folder lies: in it, or, of a TA without one, in its run.

    A TA that was converted without a tokenizer is trained with its Teacher's, which each checkpoint
    holds.
    """
    space = Workspace(folder.parent)
    last = space.newest() if folder == space.ta and not _holds(folder) else None
    if last is None or not _holds(last):
        return folder
    ours = read_card(last)["lineage"] == read_card(folder)["lineage"]
    return last if ours else folder


def has_tokenizer(folder: Path) -> bool:
    """Whether a model's folder, or its ``home``, holds a tokenizer's files."""
    return _holds(home(folder))


def _holds(folder: Path) -> bool:
    return any(path.is_file() for pattern in _TOKENIZER for path in folder.glob(pattern))


def open_tokenizer(folder: Path, given: str, vocabulary: int) -> Any:
    """The tokenizer of a model's folder (its ``home``), else the one of ``convert.tokenizer``.

    Raises ``MattaError`` where there is none, it does not open, or the model has no ``vocabulary``
    for its tokens.
    """
    from transformers import AutoTokenizer

    # without its files, transformers makes up a tokenizer of one token from the model's config.json
    own = has_tokenizer(folder)
    if not own and not given:
        raise MattaError(f"There is no tokenizer in {str(folder)!r}: {_AGAIN} FOLDER_OR_HUB_ID.")
    where = str(home(folder)) if own else given
    if Path(where).is_dir():
        reading.only_files(Path(where))
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(where)
    except Exception as error:  # transformers raises what its backends raise
        what = f"The tokenizer in {where!r} cannot be opened"
        raise MattaError(f"{what}: {_AGAIN} FOLDER_OR_HUB_ID. ({said(error)})") from error
    if len(tokenizer) < 2:
        what = f"The tokenizer in {where!r} has {len(tokenizer)} tokens"
        raise MattaError(f"{what}: {_AGAIN}.")
    if len(tokenizer) > vocabulary:
        sizes = f"{len(tokenizer):,} tokens, but the model's vocabulary {vocabulary:,}"
        raise MattaError(f"The tokenizer has {sizes}: pass the model's own with --tokenizer.")
    return tokenizer


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 of all that decides which tokens a text becomes."""
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        return atomic.text_digest(tokenizer.backend_tokenizer.to_str())
    # one written in Python has no serialized form but its files
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_vocabulary(folder)
        paths = sorted(Path(folder).iterdir())
        files = [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in paths]
    added = sorted(tokenizer.get_added_vocab().items())
    return atomic.text_digest(json.dumps([type(tokenizer).__name__, files, added]))
