"""From the recipe's data to sentences and pairs of them, and the tokenizer that they go through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from matta_cli.data import find
from matta_cli.errors import MattaError
from matta_cli.models.tokenizer import open_tokenizer
from matta_cli.settings.recipe import DataSettings, Recipe
from matta_cli.tasks.sentence_embedding.examples import Encoder, Texts
from matta_cli.tasks.sentence_embedding.stored import stored

LONGEST = 512  # tokens of a sentence, where nothing says less

_LINES, _TABLES = (".txt", ".md"), (".csv", ".tsv", ".jsonl", ".parquet")


def read_texts(settings: DataSettings, training: bool) -> tuple[Texts | None, Texts]:
    """What to train on (None unless ``training``) and what to measure on."""

    def opened(text: str, flag: str, training: bool) -> tuple[Texts | None, Texts | None]:
        path = find.find(text, flag)
        if path is not None:
            return _local(path, text, settings), None
        splits = find.hub_dataset(text, settings.config)

        def columns(rows: Any) -> Texts:
            return from_table(text, rows.column_names, rows.__getitem__, settings)

        return find.hub_parts(splits, text, settings, training, columns)

    def divided(texts: Texts) -> tuple[Texts, Texts]:
        start = find.last_tenth(len(texts.first), settings.train, "sentences")
        return texts.part(slice(start)), texts.part(slice(start, None))

    return find.to_train_and_measure(settings, training, opened, divided)


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


def _local(path: Path, text: str, settings: DataSettings) -> Texts:
    """The sentences of a file, or of all files in a folder that can be read."""
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in (*_LINES, *_TABLES))
    if not files:
        raise find.empty(text, f"text ({', '.join((*_LINES, *_TABLES))})")
    read = [_file(file, settings) for file in files]
    if len(read) == 1:
        return read[0]
    # of several files, which need not be alike, the sentences are all that counts
    return Texts([sentence for part in read for sentence in part.all()])


def _file(path: Path, settings: DataSettings) -> Texts:
    if path.suffix in (".csv", ".tsv") and (benchmark := _benchmark(path)):
        return benchmark
    if path.suffix in _TABLES:
        table = find.read_table(path)
        return from_table(str(path), list(table), table.__getitem__, settings)
    try:
        return Texts(path.read_text(encoding="utf-8").split("\n"))
    except (UnicodeDecodeError, OSError):
        needed = "is not a text file in UTF-8, one sentence in each line."
        raise MattaError(f"{str(path)!r} {needed}") from None


def _benchmark(path: Path) -> Texts | None:
    """A file of the STS benchmark in its own form: tabs, no header, the score fifth; else None."""
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if line]
        if not rows or min(map(len, rows)) < 7:
            return None
        score = np.array([float(row[4]) for row in rows])
    except (UnicodeDecodeError, OSError, ValueError):
        return None
    return Texts([row[5] for row in rows], [row[6] for row in rows], score)


def from_table(
    name: str, known: Sequence[str], column: Callable[[str], Any], settings: DataSettings
) -> Texts:
    """A table's pairs where it has both of ``data.sentences``, else its ``data.text``."""
    if len(settings.sentences) != 2:
        raise MattaError(f"data.sentences is {settings.sentences}, but a pair has two columns.")
    if not set(settings.sentences) <= set(known):
        wanted = "data.text, or data.sentences for pairs,"
        find.check_column(name, settings.text, wanted, known)
        return Texts(_strings(column(settings.text)))
    first, second = (_strings(column(sentence)) for sentence in settings.sentences)
    if settings.score not in known:
        return Texts(first, second)
    try:
        return Texts(first, second, np.asarray(column(settings.score), dtype=np.float64))
    except (TypeError, ValueError):
        which = f"Column {settings.score!r} of {name!r} (data.score)"
        raise MattaError(f"{which} does not hold numbers.") from None


def _strings(values: Iterable[Any]) -> list[str]:
    return ["" if value is None else str(value) for value in values]
