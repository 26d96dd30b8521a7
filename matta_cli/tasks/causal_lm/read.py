"""From the recipe's data to text, and from text to tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from matta_cli.data import find, folders, records, sources
from matta_cli.data.tally import Tally
from matta_cli.data.text import PLAIN, READ, Text, batches, cut, first, hub, local, pieces, repeated
from matta_cli.data.tokens import stored
from matta_cli.errors import MattaError
from matta_cli.models.left_out import LeftOut
from matta_cli.models.tokenizer import around, tokenizer_digest
from matta_cli.settings.recipe import DataSettings
from matta_cli.tasks.causal_lm.chat import PAIR, TALKS
from matta_cli.tasks.causal_lm.examples import Paragraphs, Parts, encode, refuse_beyond

# bytes of text whose tokens are kept in memory; those of more are kept on disk
_IN_MEMORY = 1 << 26
_SAMPLE = 1 << 22  # bytes of text of which all is made into tokens, where a sample is enough
_STRETCHES = 8  # at most, and half of these at least, are the sample of more

# by which corpora end their documents; to other tokenizers than their own they are letters
_MARKS = ("<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "</s>", "<eos>")


def read_text(settings: DataSettings, training: bool) -> tuple[Text | None, Text]:
    """Text to train on (None unless ``training``) and to measure on."""
    if settings.max_tokens < 0:
        meant = "a number of tokens, or 0."
        raise MattaError(f"data.max_tokens is {settings.max_tokens}, but it is {meant}")

    def opened(text: str, flag: str, training: bool) -> tuple[Text | None, Text | None]:
        path = find.find(text, flag)
        if path is None or (settings.streaming and path.is_dir()):
            return _hub(str(path or text), text, settings, training)
        if settings.streaming and flag == "--data":
            what = "data.streaming is for datasets of the hub and folders that `datasets` opens"
            hint = "leave data.streaming out (matta never holds the text of a file in memory)."
            raise MattaError(f"{what}, but {text!r} is a file: {hint}")
        if not path.is_dir():
            return local([path], settings.text, text, _unread([path], settings, text)), None
        files = folders.data_files(path, READ)
        if not files.files:
            raise find.empty(text, f"text ({', '.join(READ)})", [*files.note(), PLAIN])
        parts, notes = folders.parts(files, settings.config)

        def part(files: list[Path]) -> Text:
            return local(files, settings.text, text, [*notes, *_unread(files, settings, text)])

        return find.hub_parts(parts, text, settings, training, part)

    divided = first if settings.streaming else cut
    return find.to_train_and_measure(settings, training, opened, divided)


def _unread(files: Sequence[Path], settings: DataSettings, name: str) -> list[str]:
    """A sentence where there are conversations, too, beside the text that is read."""
    table = bool(files) and files[0].suffix.lower() in records.TABLES
    return _beside(records.names(files[0]), settings, name) if table else []


def _beside(known: Sequence[str], settings: DataSettings, name: str) -> list[str]:
    """A sentence where of these columns some hold conversations, and text is read."""
    told = (sources.instead(name, [settings.text], own, known) for own in (*TALKS, PAIR))
    return next((own for own in told if own), [])


def _hub(
    where: str, text: str, settings: DataSettings, training: bool
) -> tuple[Text | None, Text | None]:
    """A hub dataset, or a folder that is streamed: what to train on, and what is held out."""
    if settings.streaming:
        splits, fingerprint = find.hub_stream(where, settings.config)
    else:
        splits, fingerprint = find.hub_dataset(text, settings.config), ""

    def opened(rows: Any) -> Text:
        identity = [text, str(rows.split), fingerprint or rows._fingerprint]
        made = hub(rows, settings.text, text, identity)
        known = rows.column_names or ()
        return replace(made, notes=(*made.notes, *_beside(known, settings, text)))

    return find.hub_parts(splits, text, settings, training, opened)


def read_passages(text: str) -> list[str]:
    """The passages of the JSONL file that ``text`` names; none where it is empty."""
    if not text:
        return []
    path = find.find(text, "--passages")
    if path is None:
        raise MattaError(f"There is no file {text!r}: check --passages.")
    found = records.strings(path, "text", "", Tally())
    return [passage for passage in found if passage is not None]


def frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that begin each document, and those that end it."""
    begin, end = around(tokenizer)
    return begin, end or _end_of_text(tokenizer)


def _end_of_text(tokenizer: Any) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def tokens(
    tokenizer: Any,
    text: Text,
    vocabulary: int,
    limit: int,
    seen: Paragraphs | None = None,
    left_out: LeftOut | None = None,
    sampled: bool = False,
) -> tuple[np.ndarray, list[str]]:
    """All of a text as one row of tokens [n], at most ``limit`` (0: all).

    With ``seen`` also passages of what was read. left_out: counts the tokens that the tokenizer
    lacks. sampled: stretches from all over a long text are enough, of which nothing is counted;
    all of it is read. Each document begins and ends with what the tokenizer's own call puts there;
    where that ends it with nothing, with the end-of-text token if there is one. Tokens are uint16
    where the vocabulary allows. Raises ``MattaError`` where the tokenizer makes tokens outside the
    ``vocabulary``.
    """
    dtype = "<u2" if vocabulary <= 1 << 16 else "<i4"
    begin, end = frame(tokenizer)
    sampled = sampled and not limit and text.size is not None and text.size > _SAMPLE
    left_out = None if sampled else left_out
    before = [] if left_out is None else list(left_out.counts)

    def arrays() -> Iterator[np.ndarray]:
        for ids in _ids(tokenizer, text, begin, end, seen, left_out, sampled):
            refuse_beyond(ids, vocabulary)
            yield np.array(ids, dtype)

    def more() -> dict[str, Any]:
        own: dict[str, Any] = {} if seen is None else {"passages": seen.passages()}
        if left_out is not None:
            own["left_out"] = [now - old for now, old in zip(left_out.counts, before, strict=True)]
        return {**text.tally.kept(), **own}

    if sampled or (text.size is not None and text.size < _IN_MEMORY):
        row = np.concatenate(list(arrays()))[: limit or None]
        return row, more().get("passages", [])
    identity: list[Any] = [text.identity, tokenizer_digest(tokenizer), tokenizer.eos_token_id]
    if begin or end != _end_of_text(tokenizer):
        identity += [begin, end]
    if seen is not None:
        # with the limit, on which the passages depend: a longer file would hold others
        identity = [identity, limit]
    row, card = stored(identity, dtype, arrays, more, limit)
    if left_out is not None and left_out.counts == before:  # they were kept from another time
        known = card.get("left_out", [0, 0, 0])
        left_out.counts = [old + own for old, own in zip(before, known, strict=True)]
    text.tally.take(card)
    return row, card.get("passages", [])


# the tokens that stand before it, and of each piece what to make tokens of, itself, and whether it
# is the last one of its document
_Stretch = tuple[list[int], list[tuple[str, str, bool]]]


def _ids(
    tokenizer: Any,
    text: Text,
    begin: list[int],
    end: list[int],
    seen: Paragraphs | None,
    left_out: LeftOut | None,
    sampled: bool,
) -> Iterator[list[int]]:
    """The tokens of a text's stretches, one after the other; as ``tokens`` has the arguments."""

    def after(last: bool) -> list[int]:
        """What stands before the piece that follows one; last: of a document."""
        # an end that is a beginning, too, serves as both
        return begin if last and begin != end else []

    def stretches() -> Iterator[_Stretch]:
        start, parts = begin, Parts(tokenizer)
        for batch in batches(pieces(text.read())):
            yield start, [(parts.next(piece, last), piece, last) for piece, last in batch]
            start = after(batch[-1][1])

    twice = _Twice(text, begin, end, tokenizer)
    for start, stretch in _spread(stretches()) if sampled else stretches():
        ids: list[int] = []
        encoded = encode(tokenizer, [whole for whole, _, _ in stretch])
        if left_out is not None:
            left_out.add([piece for _, piece, _ in stretch])
        for own, (_, piece, last) in zip(encoded, stretch, strict=True):
            ids += start + own + (end if last else [])
            start = after(last)
            if not sampled:
                twice.look(own, piece, last)
            if seen is not None:
                seen.add(piece)
        yield ids


def _spread(stretches: Iterable[_Stretch]) -> list[_Stretch]:
    """At most ``_STRETCHES``, evenly spread."""
    kept: list[_Stretch] = []
    every = 1
    for number, stretch in enumerate(stretches):
        if number % every == 0:
            kept.append(stretch)
        if len(kept) > _STRETCHES:  # every second one stands for both
            kept, every = kept[::2], 2 * every
    return kept


class _Twice:
    """Counts the documents that begin or end with what the tokenizer puts there, too, and the marks
    of other tokenizers in them.
    """

    def __init__(self, text: Text, begin: list[int], end: list[int], tokenizer: Any) -> None:
        known = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in _MARKS}
        none = (None, tokenizer.unk_token_id)
        self.foreign = [mark for mark, number in known.items() if number in none]
        self.begin, self.end, self.opens = begin, end, True
        self.tally, self.part = text.tally, repr(text.identity)
        self.tally.odd.pop(self.part, None)  # of another reading

    def look(self, ids: list[int], piece: str, last: bool) -> None:
        """ids: of a piece of a document; last: its last one."""
        if marks := sum(piece.count(mark) for mark in self.foreign):
            self.tally.count(self.part, "marks", marks)
        if self.opens and self.begin and ids[: len(self.begin)] == self.begin:
            self.tally.count(self.part, "begun")
        if last and self.end and ids[-len(self.end) :] == self.end:
            self.tally.count(self.part, "ended")
        self.opens = last


def notes_on(train: Text | None, held_out: Text) -> list[str]:
    """What there is to say of texts whose tokens were read."""
    notes = [*held_out.notes]
    if train is None:
        return [*notes, *held_out.tally.notes(held_out.name)]
    notes = [*train.notes, *(note for note in notes if note not in train.notes)]
    notes += train.tally.notes(train.name)
    if held_out.tally is not train.tally:
        notes += held_out.tally.notes(held_out.name)
    if train.size is None or held_out.size is None:
        return notes  # a stream is not read once more

    def counts() -> Iterator[np.ndarray]:
        yield np.array(repeated(train, held_out))

    if train.size < _IN_MEMORY:
        [both] = counts()
    else:
        both, _ = stored([train.identity, held_out.identity], "<i8", counts, dict)
    if both[0]:
        where = f"also stand in the text to train on, of {both[1]:,}"
        notes.append(
            f"{held_out.name!r}: {both[0]:,} held-out lines {where} (16 characters or more)."
        )
    return notes
