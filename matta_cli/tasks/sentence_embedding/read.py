"""From the recipe's data to sentences and pairs of them, and the tokenizer that they go through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from matta_cli.data import find, folders, records
from matta_cli.data.lines import lines
from matta_cli.errors import MattaError
from matta_cli.models.tokenizer import open_tokenizer
from matta_cli.settings.recipe import DataSettings, Recipe
from matta_cli.tasks.sentence_embedding.examples import Encoder, Texts
from matta_cli.tasks.sentence_embedding.stored import stored

LONGEST = 512  # tokens of a sentence, where nothing says less

_LINES = (".txt", ".md")


def read_texts(settings: DataSettings, training: bool) -> tuple[Texts | None, Texts]:
    """What to train on (None unless ``training``) and what to measure on."""

    def opened(text: str, flag: str, training: bool) -> tuple[Texts | None, Texts | None]:
        path = find.find(text, flag)
        if path is not None and not path.is_dir():
            return _texts([path], settings), None
        if path is not None:
            own = folders.data_files(path, (*_LINES, *records.TABLES))
            if not own.files:
                raise find.empty(text, f"text ({', '.join((*_LINES, *records.TABLES))})")
            parts, notes = folders.parts(own)
            return find.hub_parts(
                parts, text, settings, training, lambda files: _texts(files, settings, notes)
            )
        splits = find.hub_dataset(text, settings.config)
        return find.hub_parts(
            splits, text, settings, training, lambda rows: from_hub(rows, text, settings)
        )

    def divided(texts: Texts) -> tuple[Texts, Texts]:
        start = find.last_tenth(len(texts.first), settings.train, "sentences")
        return texts.part(slice(start)), texts.part(slice(start, None))

    return find.to_train_and_measure(settings, training, opened, divided)


def from_hub(rows: Any, name: str, settings: DataSettings) -> Texts:
    """The sentences or pairs of a hub dataset's split."""

    def read(columns: Sequence[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
        values = (rows[column] for column in columns)
        for number, own in enumerate(zip(*values, strict=True), 1):
            yield f"row {number:,}", own

    return from_rows(name, rows.column_names, read, settings)


def encoder(
    folder: Path, model: nn.Module, recipe: Recipe, notes: list[str] | None = None
) -> Encoder:
    """The tokenizer in the model's folder, else the recipe's, as sentence-transformers uses it.

    notes: takes what is to be said of that.
    """
    own, length = config_of(model), recipe.data.sequence_length
    tokenizer = open_tokenizer(folder, recipe.convert.tokenizer, own.vocab_size)
    said = stored(folder)
    (notes if notes is not None else []).extend(said.notes)
    positions = int(own.max_position_embeddings)
    if length > positions or 0 < length < 3:
        known = f"the model has {positions:,} positions, and 3 are needed."
        raise MattaError(f"--sequence-length is {length:,}, but {known}")
    most = said.length or LONGEST
    length = length or min(positions, tokenizer.model_max_length, most)
    return Encoder(tokenizer, length, said.lower, bool(recipe.distill.compile), said.prompt)


def config_of(model: nn.Module) -> Any:
    """The config of a model of transformers. Raises ``MattaError`` where there is none."""
    if not hasattr(model, "config"):
        needed = "Sentence encoders are models of transformers, with a config"
        raise MattaError(f"{needed}: this one has none.")
    return model.config


def _texts(files: Sequence[Path], settings: DataSettings, notes: Sequence[str] = ()) -> Texts:
    """The sentences of files, of one part."""
    read = [_file(file, settings) for file in files]
    notes = [*notes, *(note for texts in read for note in texts.notes)]
    if len(read) == 1:
        return replace(read[0], notes=tuple(notes))
    if all(texts.score is not None for texts in read):  # shards of pairs
        scores = np.concatenate([texts.score for texts in read if texts.score is not None])
        first = [text for texts in read for text in texts.first]
        second = [text for texts in read for text in texts.second or []]
        return Texts(first, second, scores, notes=tuple(notes))
    # of several files, which need not be alike, the sentences are all that counts
    return Texts([sentence for part in read for sentence in part.all()], notes=tuple(notes))


def _file(path: Path, settings: DataSettings) -> Texts:
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv") and (benchmark := _benchmark(path)):
        return benchmark
    if kind in records.TABLES:
        tally = records.Tally()

        def rows(columns: Sequence[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
            for number, values in records.rows(path, columns, "data.text", tally):
                yield f"{records.unit(path)} {number:,}", values

        texts = from_rows(str(path), records.names(path), rows, settings)
        return replace(texts, notes=(*tally.notes(str(path)), *texts.notes))
    if kind not in _LINES:
        known = f"matta reads {', '.join((*_LINES, *records.TABLES))}"
        raise MattaError(f"{str(path)!r} is of no kind that is known as sentences: {known}.")
    return Texts("".join(lines(path)).split("\n"))


def _benchmark(path: Path) -> Texts | None:
    """A file of the STS benchmark in its own form: tabs, no header, the score fifth; else None."""
    rows = [line.rstrip("\n").split("\t") for line in lines(path) if line.strip()]
    if not rows or min(map(len, rows)) < 7:
        return None
    try:
        score = np.array([float(row[4]) for row in rows])
    except ValueError:
        return None
    note = f"{str(path)!r}: {len(rows):,} rows read of {len(rows):,} lines."
    return Texts([row[5] for row in rows], [row[6] for row in rows], score, notes=(note,))


def from_rows(
    name: str,
    known: Sequence[str],
    rows: Callable[[Sequence[str]], Iterable[tuple[str, tuple[Any, ...]]]],
    settings: DataSettings,
) -> Texts:
    """A table's pairs where it has both of ``data.sentences``, else its ``data.text``.

    rows: of columns, each row's place, in words, and its values.
    """
    if len(settings.sentences) != 2:
        raise MattaError(f"data.sentences is {settings.sentences}, but a pair has two columns.")
    columns = list(settings.sentences)
    if not set(columns) <= set(known):
        find.check_column(name, settings.text, "data.text, or data.sentences for pairs,", known)
        columns = [settings.text]
    texts: list[list[str]] = [[] for _ in columns]
    scored = len(columns) == 2 and settings.score in known
    scores: list[float] = []
    empty = 0
    for where, values in rows([*columns, *([settings.score] if scored else [])]):
        for column, own, value in zip(columns, texts, values, strict=False):
            own.append(records.text_of(value, column, name, where) or "")
        empty += not all(own[-1].strip() for own in texts)
        if scored:
            scores.append(_score(values[-1], settings.score, name, where))
    what = "without text" if len(columns) == 1 else "without one of both texts"
    notes = (f"{name!r}: {empty:,} rows {what} are left out.",) if empty else ()
    second = texts[1] if len(columns) == 2 else None
    return Texts(texts[0], second, np.array(scores) if scored else None, notes=notes)


def _score(value: Any, column: str, name: str, where: str) -> float:
    """A score; NaN where there is none."""
    if value is None or value == "":
        return float("nan")
    try:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise MattaError(
        f"Column {column!r} of {name!r} (data.score) does not hold numbers: {where} has {value!r}."
    )
