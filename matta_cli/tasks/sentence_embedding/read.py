"""From the recipe's data to sentences and pairs of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from matta_cli.data import find, records, sources
from matta_cli.data.lines import lines
from matta_cli.data.sources import Source
from matta_cli.errors import MattaError
from matta_cli.settings.recipe import DataSettings
from matta_cli.tasks.sentence_embedding.examples import Texts

_LINES = (".txt", ".md")
_DO = "Files of a sentence a line have to be called .txt."


def read_texts(settings: DataSettings, training: bool) -> tuple[Texts | None, Texts]:
    """What to train on (None unless ``training``) and what to measure on."""

    def divided(texts: Texts) -> tuple[Texts, Texts]:
        start = find.last_tenth(len(texts.first), settings.train, "sentences")
        return texts.part(slice(start)), texts.part(slice(start, None))

    return sources.parts(
        settings,
        training,
        (*_LINES, *records.TABLES),
        "text",
        _DO,
        lambda files, notes: _texts(files, settings, notes),
        lambda rows, name: from_source(sources.of_split(rows, name), settings),
        divided,
    )


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
    if kind in records.TABLES:
        return from_source(sources.of_file(path, settings), settings)
    if kind not in _LINES:
        kinds = (*_LINES, *records.TABLES)
        raise find.of_no_kind(path, "that is known as sentences", kinds, _DO)
    texts = "".join(lines(path)).split("\n")
    tabs, there = sum("\t" in text for text in texts), sum(bool(text.strip()) for text in texts)
    notes = []
    if 2 * tabs > there:
        have = f"{tabs:,} of {there:,} lines have tabs, and are a sentence each"
        do = "a table of pairs is a .tsv whose first line names its columns"
        notes = [f"{str(path)!r}: {have}: {do}."]
    return Texts(texts, notes=tuple(notes))


def from_source(source: Source, settings: DataSettings) -> Texts:
    """The pairs of rows that have both of ``data.sentences``, else their ``data.text``."""
    name, known = source.name, source.columns
    columns = sources.text_columns(source, settings)
    texts: list[list[str]] = [[] for _ in columns]
    scored = len(columns) == 2 and settings.score in known
    scores: list[float] = []
    empty = 0
    wanted = [*columns, *([settings.score] if scored else [])]
    for number, values in source.rows(wanted, "data.text"):
        where = f"{source.unit} {number:,}"
        for column, own, value in zip(columns, texts, values, strict=False):
            own.append(records.text_of(value, column, name, where) or "")
            source.tally.look(name, own[-1])
        empty += not all(own[-1].strip() for own in texts)
        if scored:
            scores.append(_score(values[-1], settings.score, name, where))
    notes = [*source.notes(), *sources.left_out(source, empty, len(columns) == 2)]
    notes += sources.instead(name, columns, [settings.text], known)
    second = texts[1] if len(columns) == 2 else None
    return Texts(texts[0], second, np.array(scores) if scored else None, notes=tuple(notes))


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
