"""Conversations as examples: one to a row, however long, with what is to be predicted of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from matta_cli.data import divided, find, folders, records, split, tally
from matta_cli.data.split import Batch
from matta_cli.data.text import READ
from matta_cli.data.tokens import stored
from matta_cli.errors import MattaError, said
from matta_cli.models.tokenizer import padding, tokenizer_digest
from matta_cli.settings.recipe import DataSettings
from matta_cli.tasks.causal_lm.chat import PAIR, TALKS, Chat, Left
from matta_cli.tasks.causal_lm.examples import refuse_beyond

_IN_MEMORY = 1 << 26  # bytes of rows whose tokens are kept in memory; those of more, on disk
_GRAIN = 8  # batches are padded to a multiple of this
_FORMAT = 4  # of how rows become tokens: another one is another key of what is kept


@dataclass
class Outcome:
    """What became of rows. left: by reason, how many, and the first; cut: those that were cut.
    unwritten: by key, how many turns have one that the chat template does not write.
    """

    left: dict[str, list[Any]] = field(default_factory=dict)
    cut: int = 0
    unwritten: dict[str, int] = field(default_factory=dict)

    def leave(self, reason: str, where: str) -> None:
        # what a template says of one row is told of the first alone
        kind, _, why = reason.partition(" (")
        self.left.setdefault(kind, [0, f"{where}{': ' + why.rstrip(')') if why else ''}"])[0] += 1

    def notes(self, name: str, length: int) -> list[str]:
        notes = []
        if self.left:
            told = [f"{n:,} {kind} (the first: {at})" for kind, (n, at) in self.left.items()]
            notes.append(f"{name!r}: rows left out: {'; '.join(told)}.")
        if self.cut:
            longer = f"longer than {length:,} tokens and lost what follows"
            notes.append(f"{name!r}: {self.cut:,} of the conversations were {longer}.")
        if keys := [f"{key!r} ({count:,})" for key, count in self.unwritten.items() if count]:
            turns = f"turns have {', '.join(keys)}, which the chat template does not write"
            notes.append(f"{name!r}: {turns}: left out.")
        return notes


class Conversations:
    """Conversations as a split.

    tokens: int32, of each its number in the user's data, its length, and its tokens, those to be
    predicted as their complement (-1 - token), one after the other. starts: where each begins.
    fixed: to how many tokens all are padded; 0: each batch as it needs.
    """

    def __init__(
        self, tokens: np.ndarray, starts: np.ndarray, name: str, padding: int, fixed: int = 0
    ) -> None:
        self.tokens, self.starts, self.name = tokens, starts, name
        self.padding, self.fixed = padding, fixed

    @classmethod
    def of(cls, tokens: np.ndarray, name: str, padding: int, fixed: int) -> Conversations:
        starts, place = [], 0
        while place < len(tokens):
            starts.append(place)
            place += 2 + int(tokens[place + 1])
        return cls(tokens, np.array(starts, np.int64), name, padding, fixed)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def longest(self) -> int:
        """Tokens of the longest one."""
        return int(self.tokens[self.starts + 1].max())

    def divided(self, name: str) -> tuple[Conversations, Conversations]:
        """All without the last tenth, and that."""
        place = find.last_tenth(len(self), name, "conversations")
        parts = self.starts[:place], self.starts[place:]
        first, last = (
            Conversations(self.tokens, part, name, self.padding, self.fixed) for part in parts
        )
        return first, last

    def first(self, tokens: int) -> Conversations:
        """The first ones, of so many tokens at most, but one at the least."""
        ends = np.cumsum(self.tokens[self.starts + 1])
        kept = self.starts[: max(1, int(np.searchsorted(ends, tokens, side="right")))]
        return Conversations(self.tokens, kept, self.name, self.padding, self.fixed)

    def size(self) -> tuple[int, int]:
        """How many tokens there are, and how many of them are to be predicted."""
        row = self._row()
        numbers = self.tokens[self.starts]  # which are never negative
        lengths = self.tokens[self.starts + 1]
        return len(row) - len(numbers) - len(lengths), int((row < 0).sum())

    def _row(self) -> np.ndarray:
        last = self.starts[-1]
        return self.tokens[self.starts[0] : last + 2 + self.tokens[last + 1]]

    def rows(self, indices: Sequence[int] | None = None) -> Iterator[np.ndarray]:
        """The tokens of these conversations, or of all, as they are kept."""
        for i in range(len(self)) if indices is None else indices:
            start = int(self.starts[i])
            yield self.tokens[start + 2 : start + 2 + int(self.tokens[start + 1])]

    def batch(self, indices: Sequence[int]) -> Batch:
        """``input_ids`` int64, ``attention_mask`` int64 and ``predicted`` bool, all [B, L].

        They are padded on the right: a causal model never looks there from a token of its own.
        """
        rows = list(self.rows(indices))
        longest = max(map(len, rows))
        length = self.fixed or -(-longest // _GRAIN) * _GRAIN
        ids = torch.full((len(rows), length), self.padding)
        mask, predicted = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for k, row in enumerate(rows):
            own = torch.from_numpy(row.astype(np.int64))
            ids[k, : len(row)] = torch.where(own < 0, -1 - own, own)
            mask[k, : len(row)], predicted[k, : len(row)] = 1, own < 0
        return {"input_ids": ids, "attention_mask": mask, "predicted": predicted}

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        if ids:
            raise split.no_ids("conversations")
        return self.tokens[self.starts[list(indices)]].astype(np.int64)

    def digest(self) -> str:
        return split.digest(["conversations ", self._row()])


def repeated(train: Conversations, held_out: Conversations) -> list[str]:
    """A sentence on how many held-out conversations are also trained on, if any are."""
    known = {hash(row.tobytes()) for row in train.rows()}
    count = sum(hash(row.tobytes()) in known for row in held_out.rows())
    if not count:
        return []
    where = f"held-out conversations also stand in what is trained on, of {len(held_out):,}"
    return [f"{held_out.name!r}: {count:,} {where}."]


@dataclass(frozen=True)
class Source:
    """Rows of conversations, to be read from the beginning as often as needed.

    name: the user's. identity: another one whenever the rows may be others. size: their bytes,
    about. read: of each row its place in words, and its values. notes: sentences. tally: of what
    was read, once it was.
    """

    name: str
    identity: list[Any]
    size: int
    read: Callable[[], Iterator[tuple[str, Sequence[Any]]]]
    notes: tuple[str, ...] = ()
    tally: tally.Tally = field(default_factory=tally.Tally)


def columns(settings: DataSettings, training: bool) -> tuple[str, ...]:
    """The columns that hold conversations, as the data has them; none where it is text.

    Raises ``MattaError`` where what is measured on is of another kind than what is trained on.
    """
    named = [("--held-out", settings.held_out)] if settings.held_out else []
    if training or not named:
        named.append(("--data", settings.train))
    kinds = {flag: (name, _kind(name, flag, settings)) for flag, name in named}
    if len({kind for _, kind in kinds.values()}) > 1:
        words = {(): "text", PAIR: "prompts and completions"}
        words |= {column: f"{column[0]!r}" for column in TALKS}
        each = [f"{flag} {name!r} holds {words[kind]}" for flag, (name, kind) in kinds.items()]
        raise MattaError(f"{' and '.join(each)}: both must be of one kind.")
    return next(kind for _, kind in kinds.values())


def _kind(name: str, flag: str, settings: DataSettings) -> tuple[str, ...]:
    path = find.find(name, flag)
    if settings.streaming:
        return ()  # a stream is read as text, whose column is checked where it begins
    if path is None:
        splits = find.hub_dataset(name, settings.config)
        known: list[str] = next((rows.column_names for rows in splits.values()), [])
        return _of(known, settings.text, name)
    files = [path]
    if path.is_dir():
        parts, _ = folders.parts(folders.data_files(path, READ), settings.config)
        files = next((own for own in parts.values() if own), files)
    first = files[0]
    if first.suffix.lower() not in records.TABLES or not first.is_file():
        return ()
    return _of(records.names(first), settings.text, name)


def _of(known: Sequence[str], text: str, name: str) -> tuple[str, ...]:
    """The columns among these that hold conversations, if any do. name: the data's."""
    if text in known and (text,) not in TALKS:
        return ()
    for columns in (*TALKS, PAIR):
        if set(known) >= set(columns):
            return columns
    if known:
        chats = " Those of conversations are 'messages', or 'prompt' and 'completion'."
        find.check_column(name, text, "data.text", known, chats)
    return ()


class Reader:
    """Opens the conversations of a recipe.

    length: tokens of the longest that is not cut. fixed: whether all are padded to that.
    """

    def __init__(
        self, settings: DataSettings, tokenizer: Any, length: int, vocabulary: int, fixed: bool
    ) -> None:
        self.settings, self.tokenizer, self.vocabulary = settings, tokenizer, vocabulary
        self.length, self.fixed = length, fixed
        self.notes: list[str] = []

    def __call__(
        self, own: tuple[str, ...], training: bool
    ) -> tuple[Conversations | None, Conversations]:
        """Those to train on (None unless ``training``) and those to measure on."""
        settings = self.settings

        def opened(
            text: str, flag: str, training: bool
        ) -> tuple[Conversations | None, Conversations | None]:
            path = find.find(text, flag)
            if path is None:
                splits = find.hub_dataset(text, settings.config)
                return find.hub_parts(
                    splits, text, settings, training, lambda rows: self._hub(rows, own, text)
                )
            if not path.is_dir():
                return self._encoded(_local([path], own, text), own), None
            parts, notes = folders.parts(folders.data_files(path, READ), settings.config)
            return find.hub_parts(
                parts,
                text,
                settings,
                training,
                lambda files: self._encoded(_local(files, own, text, notes), own),
            )

        return find.to_train_and_measure(
            settings, training, opened, lambda whole: whole.divided(whole.name)
        )

    def _hub(self, rows: Any, own: tuple[str, ...], name: str) -> Conversations:
        for column in own:
            find.check_column(name, column, "", rows.column_names)
        divided.refuse_in(rows, name, own)
        kept = rows.select_columns(list(own))

        def read() -> Iterator[tuple[str, Sequence[Any]]]:
            try:
                for number, row in enumerate(kept, 1):
                    yield f"row {number:,}", [row[column] for column in own]
            except OSError as error:
                raise MattaError(f"Reading {name!r} failed: {said(error)}") from error

        identity = ["hub", name, str(rows.split), rows._fingerprint]
        source = Source(name, identity, rows.data.nbytes, read, _taken(name, own))
        rest = [column for column in rows.column_names if column not in own]
        source.tally.files[name] = (len(rows), f" of {len(rows):,}", 0)
        source.tally.columns[name] = (list(own), rest)
        return self._encoded(source, own)

    def _encoded(self, source: Source, own: tuple[str, ...]) -> Conversations:
        """What a source's rows become."""
        everything = self.settings.train_on == "all"
        chat = Chat(self.tokenizer, own, everything, source.name)
        became = Outcome()

        def arrays() -> Iterator[np.ndarray]:
            return self._arrays(source, chat, became)

        if source.size < _IN_MEMORY:
            parts = list(arrays())
            tokens = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        else:
            identity = ["conversations", _FORMAT, source.identity, chat.identity(), chat.template]
            identity += [tokenizer_digest(self.tokenizer), self.length]
            more = lambda: {**asdict(became), "rows": source.tally.kept()}  # noqa: E731
            tokens, card = stored(identity, "<i4", arrays, more)
            became = Outcome(card["left"], card["cut"], card["unwritten"])
            source.tally.take(card["rows"])
        told = became.notes(source.name, self.length)
        if chat.ended:
            twice = "completions end with the token that ends each, so it stands there twice"
            told.append(f"{source.name!r}: {chat.ended:,} {twice}: take it out of the text.")
        if not len(tokens):
            why = told[0].partition(": ")[2] if told else "it has no rows."
            raise MattaError(f"{source.name!r} holds no conversation to learn or measure: {why}")
        for note in (*source.notes, *source.tally.notes(source.name), *told):
            if note not in self.notes:
                self.notes.append(note)
        fixed, filler = self.length if self.fixed else 0, padding(self.tokenizer, self.vocabulary)
        return Conversations.of(tokens, source.name, filler, fixed)

    def _arrays(self, source: Source, chat: Chat, became: Outcome) -> Iterator[np.ndarray]:
        for number, (where, values) in enumerate(source.read()):
            try:
                ids, learned = chat.encoded(values, where)
            except Left as left:
                became.leave(str(left), where)
                continue
            refuse_beyond(ids, self.vocabulary)
            row = np.array(ids[: self.length], np.int32)
            predicted = np.array(learned[: self.length], bool)
            predicted[:1] = False  # nothing comes before the first, to predict it by
            if not predicted.any():
                full = any(learned[self.length :])
                what = f"whose prompt alone fills {self.length:,} tokens"
                became.leave(what if full else "with nothing to predict", where)
                continue
            became.cut += len(ids) > self.length
            yield np.array([number, len(row)], np.int32)
            yield np.where(predicted, -1 - row, row).astype(np.int32)
        became.unwritten = dict(chat.unwritten)


def _local(files: Sequence[Path], own: tuple[str, ...], name: str, notes: Any = ()) -> Source:
    """The rows of files, one file after the other."""
    status = [(str(file.resolve()), file.stat()) for file in files]
    identity = ["files", *([file, now.st_size, now.st_mtime_ns] for file, now in status)]

    counts = tally.Tally()

    def read() -> Iterator[tuple[str, Sequence[Any]]]:
        for file in files:
            if file.suffix.lower() not in records.TABLES:
                kinds = f"conversations are read from {', '.join(records.TABLES)}"
                raise MattaError(f"{str(file)!r} holds text among files of conversations: {kinds}.")
            of = f" of {str(file)!r}" if len(files) > 1 else ""
            for number, values in records.rows(file, own, "", counts):
                yield f"{records.unit(file)} {number:,}{of}", values

    size = sum(now.st_size for _, now in status)
    return Source(name, identity, size, read, (*notes, *_taken(name, own)), counts)


def _taken(name: str, own: Sequence[str]) -> tuple[str, ...]:
    """A sentence on what some columns are taken for."""
    one = "each row is a conversation of its own, and none are joined"
    return (f"{name!r}: taken as conversations, from {' and '.join(map(repr, own))}: {one}.",)
