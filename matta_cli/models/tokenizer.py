"""The files that belong to a model besides its weights."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matta_cli import trust
from matta_cli.errors import MattaError, said
from matta_cli.files import atomic, reading
from matta_cli.files.card import read_card
from matta_cli.files.workspace import Workspace
from matta_cli.models import left_out
from matta_cli.models.inside import check, inside
from matta_cli.models.source import TEMPLATE

_COMPANIONS = (
    "tokenizer*.json",
    left_out.NAME,
    "tokenizer.model",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
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
# texts that tokenizers cut up in different ways
_PROBES = (
    "The quick Brown fox, can't JUMP; it's 12,345.67 over!",
    "  two spaces,\ta tab\n\nand an empty line ",
    "Ångström, naïve cafe\u0301, ﬁne “quotes”…",
    "привет мир, 你好世界, こんにちは, مرحبا, 🙂👍🏽",
    "def f(x):\n    return x**2  # https://example.org/a_b?c=1",
    "1000000 007 x86_64 CamelCase snake_case ALLCAPS",
)


def companions(source: Path) -> dict[str, Path]:
    """The tokenizer, preprocessing, pooling and the like of a checkpoint: name in it -> file.

    Raises ``MattaError`` where one is a link to elsewhere.
    """
    there = {path for pattern in _COMPANIONS for path in source.glob(pattern)}
    files = [inside(source, path) for path in sorted(there)]
    return {path.relative_to(source).as_posix(): path for path in files if path.is_file()}


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


def open_tokenizer(
    folder: Path, given: str, vocabulary: int, config: Any = None, *, spare: bool = False
) -> Any:
    """The tokenizer of a model's folder (its ``home``), else the one of ``convert.tokenizer``.

    config: the model's, by which transformers chooses the tokenizer's class; its folder may not
    hold it (yet). spare: whether tokens may have been added that the model has no rows for, as
    some do for padding. Raises ``MattaError`` where there is none, it does not open, or the model
    has no ``vocabulary`` for its tokens.
    """
    from transformers import AutoTokenizer

    # without its files, transformers makes up a tokenizer of one token from the model's config.json
    own = has_tokenizer(folder)
    if not own and not given:
        raise MattaError(f"There is no tokenizer in {str(folder)!r}: {_AGAIN} FOLDER_OR_HUB_ID.")
    where = str(home(folder)) if own else given
    if Path(where).is_dir():
        check(Path(where))
    try:
        with trust.sealed():
            known = _configured(Path(where), config)
            tokenizer: Any = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **known)
        tokenizer(_PROBES[0])  # what is wrong in a setting is only seen where it is used
    except Exception as error:  # transformers raises what its backends raise
        what = f"The tokenizer in {where!r} cannot be opened"
        raise MattaError(f"{what}: {_AGAIN} FOLDER_OR_HUB_ID. ({said(error)})") from error
    if len(tokenizer) < 2:
        what = f"The tokenizer in {where!r} has {len(tokenizer)} tokens"
        raise MattaError(f"{what}: {_AGAIN}.")
    more = spare_tokens(tokenizer, vocabulary)
    if len(tokenizer) > vocabulary and not (spare and more):
        sizes = f"{len(tokenizer):,} tokens, but the model's vocabulary {vocabulary:,}"
        raise MattaError(f"The tokenizer has {sizes}: pass the model's own with --tokenizer.")
    return tokenizer


def _configured(folder: Path, config: Any) -> dict[str, Any]:
    """The configuration by which transformers chooses the class of the tokenizer in a folder."""
    from transformers import AutoConfig, PretrainedConfig

    if not isinstance(config, PretrainedConfig) and (folder / TEMPLATE / "config.json").is_file():
        config = AutoConfig.from_pretrained(folder / TEMPLATE)  # of a model in matta's own format
    return {"config": config} if isinstance(config, PretrainedConfig) else {}


def spare_tokens(tokenizer: Any, vocabulary: int) -> list[str]:
    """The tokens that a model of this ``vocabulary`` has no rows for, where all were added."""
    added = {number: token for token, number in tokenizer.get_added_vocab().items()}
    beyond = range(vocabulary, len(tokenizer))
    return [added[n] for n in beyond] if all(n in added for n in beyond) else []


def padding(tokenizer: Any, vocabulary: int) -> int:
    """The token that fills up what is shorter: one that the model has a row for."""
    asked = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((n for n in asked if n is not None and n < vocabulary), 0)


def tokenizer_of(folder: Path | None, given: str = "") -> Any:
    """The tokenizer of a model's folder, else ``given``; None where there is neither."""
    if folder is not None and has_tokenizer(folder):
        return open_tokenizer(folder, "", sys.maxsize)
    return open_tokenizer(folder or Path(), given, sys.maxsize) if given else None


def two_templates(folder: Path, name: str = "") -> str:
    """A note where a folder has another chat template in a second file; empty where there is none.

    transformers takes the one that has a file to itself. name: what the folder is called.
    """
    alone = folder / "chat_template.jinja"
    known = reading.record(reading.lenient(folder / "tokenizer_config.json")).get("chat_template")
    try:
        if known is None or known == reading.text(alone):
            return ""
    except (OSError, MattaError):
        return ""
    which = f"that of {alone.name} is used, as transformers does"
    return f"{name or folder} has two chat templates: {which}, not that of tokenizer_config.json."


def two_formats(folder: Path, name: str = "") -> str:
    """A note where a folder has another tokenizer in a second format; transformers takes the first.

    Empty where there is one, or where both hold the same vocabulary. name: as above.
    """
    stored = folder / "tokenizer.json"
    if not stored.is_file():
        return ""
    try:
        known = reading.lenient(stored)["model"]["vocab"]
    except (KeyError, TypeError):
        return ""
    others = [p for p in ("tokenizer.model", "spiece.model") if (folder / p).is_file()]
    for name in ("vocab.json", "vocab.txt"):
        vocabulary = _vocabulary(folder / name)
        if isinstance(known, dict) and vocabulary and vocabulary != known:
            others.append(name)
    if not others:
        return ""
    which = "tokenizer.json is the one that is used, as transformers does"
    return f"{name or folder} has a tokenizer in several formats: {which}, not {', '.join(others)}."


def _vocabulary(path: Path) -> Mapping[str, int]:
    if path.suffix == ".json":
        return reading.record(reading.lenient(path))
    try:
        text = reading.text(path)
    except (OSError, MattaError):
        return {}
    lines = text.split("\n")[: -1 if text.endswith("\n") else None]
    return {word: number for number, word in enumerate(lines)}


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer's own call puts before a text, and those that it puts behind."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole, begin, end = tokenizer("a")["input_ids"], [], []
    for start in range(len(whole) - len(bare) + 1) if bare else ():
        if whole[start : start + len(bare)] == bare:
            begin, end = whole[:start], whole[start + len(bare) :]
            break
    first = tokenizer.bos_token_id
    if not begin and first is not None and getattr(tokenizer, "add_bos_token", False):
        begin = [first]
    return begin, end


def same_tokens(one: Any, other: Any, *, whole: bool = False) -> bool:
    """Whether two tokenizers make the same tokens of any text; one may know some more at its end.

    whole: the tokens that begin and end a text, too. Vocabulary and merges are compared, and what
    becomes of texts that are hard to cut up, some of them of the vocabulary itself.
    """
    backends: list[Any] = [
        getattr(tokenizer, "backend_tokenizer", None) for tokenizer in (one, other)
    ]
    if None in backends:
        return tokenizer_digest(one) == tokenizer_digest(other)
    cards = [json.loads(backend.to_str()) for backend in backends]
    added = [{token["id"]: token["content"] for token in card["added_tokens"]} for card in cards]
    if cards[0]["model"] != cards[1]["model"]:
        return False
    if any(added[0][id] != added[1][id] for id in added[0].keys() & added[1].keys()):
        return False
    known = list(cards[0]["model"].get("vocab") or [])
    words = [token if isinstance(token, str) else token[0] for token in known]
    some = " ".join(re.sub(r"^(##|Ġ|▁)", "", word) for word in words[:: max(1, len(words) // 200)])
    texts = [*_PROBES, some, some.upper(), some.title()]
    # unbounded, but said to be bounded: else transformers warns of texts that no model reads
    options = {"add_special_tokens": whole, "truncation": True, "max_length": 1 << 20}
    made = [t(texts, **options)["input_ids"] for t in (one, other)]
    return made[0] == made[1]


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
