"""What a folder of sentence-transformers says about the sentences that its encoder reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matta_cli.errors import MattaError
from matta_cli.files.reading import finite, lenient, record

# the one beside the weights, whatever kind of encoder it was first written for
_CARDS = "sentence_*_config.json"


# what it passes on to transformers, and of that what changes no embedding
_ARGUMENTS = tuple(
    f"{what}_{kind}" for what in ("config", "model", "tokenizer") for kind in ("args", "kwargs")
)
_HARMLESS = {"torch_dtype", "dtype", "attn_implementation", "add_pooling_layer", "revision"}


@dataclass(frozen=True)
class Stored:
    """length: tokens of a sentence, 0 where nothing is said. lower: in lower case. prompt: what is
    put before each sentence. notes: what is not honoured, for people.
    """

    length: int = 0
    lower: bool = False
    prompt: str = ""
    notes: list[str] = field(default_factory=list)


def stored(folder: Path | None) -> Stored:
    """What is said in a folder; nothing where it is no folder of sentence-transformers.

    Raises ``MattaError`` for what would give other embeddings, and cannot be done here.
    """
    if folder is None:
        return Stored()
    cards = [path for where in (folder, folder / "0_Transformer") for path in where.glob(_CARDS)]
    card = record(lenient(sorted(cards)[0])) if cards else {}
    own = record(lenient(folder / "config_sentence_transformers.json"))
    known = own.get("prompts")
    given = known.items() if isinstance(known, dict) else ()
    prompts = {name: text for name, text in given if isinstance(text, str) and text}
    named, notes = own.get("default_prompt_name"), []
    prompt = prompts.get(named, "")
    pooling = record(lenient(folder / "1_Pooling" / "config.json"))
    if prompt and pooling.get("include_prompt") is False:
        why = "its embedding leaves the prompt out (include_prompt), which matta cannot"
        raise MattaError(f"{str(folder)!r} has a prompt before each sentence, but {why}.")
    if prompt:
        notes.append(f"Each sentence begins with the folder's prompt {prompt!r}.")
    elif prompts:
        unless = "as sentence-transformers leaves them out unless one is asked for"
        do = "if the encoder needs one, write it into the data"
        notes.append(f"The prompts {', '.join(map(repr, prompts))} are not used, {unless}: {do}.")
    alike = own.get("similarity_fn_name")
    if alike not in (None, "cosine"):
        notes.append(f"The folder compares embeddings by {alike}; matta does by the cosine.")
    if own.get("truncate_dim"):
        hint = "distill.output_dims trains first numbers"
        notes.append(f"The folder's truncate_dim is not used: embeddings are whole ({hint}).")
    if more := [key for key in _ARGUMENTS if _asks(card.get(key))]:
        what = f"The folder's {sorted(cards)[0].name} sets {', '.join(more)}"
        notes.append(f"{what}, which sentence-transformers passes on and matta does not.")
    length = card.get("max_seq_length")
    if length is not None and not (isinstance(length, (int, float)) and finite(length)):
        what = f"max_seq_length {length!r} in {cards[0]}"
        raise MattaError(f"{what} is no number of tokens: put the right one there.")
    return Stored(int(length or 0), bool(card.get("do_lower_case")), prompt, notes)


def _asks(arguments: Any) -> bool:
    """Whether arguments may change an embedding."""
    given = set(record(arguments)) - _HARMLESS
    return any(not str(name).startswith("trust_") for name in given)
