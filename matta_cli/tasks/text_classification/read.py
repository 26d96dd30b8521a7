"""From the recipe's data to texts, and what the user says of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from matta_cli.data import find, records, sources
from matta_cli.data.lines import plain
from matta_cli.data.sources import Source
from matta_cli.errors import MattaError
from matta_cli.settings.recipe import DataSettings
from matta_cli.tasks.scores import numbered
from matta_cli.tasks.unlabelled import divided, missing

_DO = "A table has a row for each text, with the columns text and label (folders are no labels)."


@dataclass
class Rows:
    """Texts, or pairs of them, and what the user says of each.

    label: as it stands there; of several columns of one label each, a list. hot: whether that is a
    list of 0 and 1. query, id: names, where their columns are asked for. number: which of the
    user's rows it is. place: its number in its file, or in the split. ends: of each source its
    name, what its places are numbers of, and where its rows end here. lacks: as of ``Examples``.
    """

    first: list[str] = field(default_factory=list)
    second: list[str] | None = None
    label: list[Any] = field(default_factory=list)
    hot: bool = False
    query: list[str] = field(default_factory=list)
    id: list[str] = field(default_factory=list)
    number: list[int] = field(default_factory=list)
    place: list[int] = field(default_factory=list)
    ends: list[tuple[str, str, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    column: str = ""
    lacks: str = ""

    def __len__(self) -> int:
        return len(self.first)

    @property
    def known(self) -> np.ndarray:
        """Which rows have a label, bool [n]."""
        hot = self.hot
        holes = [
            all(map(missing, value)) if hot and isinstance(value, list) else missing(value)
            for value in self.label
        ]
        return ~np.array(holes, bool)

    def called(self, i: int) -> str:
        """A row by its place in its file, or in the split."""
        name, unit, _ = next(own for own in self.ends if i < own[2])
        return f"{unit} {self.place[i]:,} of {name!r}"

    def part(self, chosen: Sequence[int]) -> Rows:
        """The rows of these numbers."""

        def some(values: list[Any]) -> list[Any]:
            return [values[i] for i in chosen] if values else values

        lists = ("first", "label", "query", "id", "number", "place")
        parts: dict[str, Any] = {name: some(getattr(self, name)) for name in lists}
        second = None if self.second is None else some(self.second)
        ends = np.array([end for _, _, end in self.ends])
        kept = np.searchsorted(np.sort(np.asarray(chosen, np.int64)), ends)
        named = zip(self.ends, kept.tolist(), strict=True)
        places = [(name, unit, end) for (name, unit, _), end in named]
        return replace(self, **parts, second=second, ends=places)

    def alike(self) -> list[tuple[str, str]]:
        """What is read of each row, by which copies are known."""
        both = zip(self.first, self.second or [""] * len(self), strict=True)
        return [(plain(first), plain(second)) for first, second in both]


def read_rows(
    settings: DataSettings, names: dict[int, str], outputs: int, training: bool
) -> tuple[Rows | None, Rows]:
    """Rows to train on (None unless ``training``) and to measure on.

    names: of the model's labels, which may be columns.
    """

    def read(found: Sequence[Source], notes: Sequence[str]) -> Rows:
        rows = Rows(notes=list(notes))
        for source in found:
            _add(rows, source, settings, names, outputs)
        if not len(rows):
            raise find.empty(found[0].name, "rows with a text")
        return rows

    def of_files(files: Sequence[Path], notes: Sequence[str]) -> Rows:
        for path in files:
            if path.suffix.lower() not in records.TABLES:
                raise find.of_no_kind(path, "that has texts and labels", records.TABLES, _DO)
        label = [settings.label, *([settings.score] if outputs == 1 else [])]
        return read([sources.of_file(path, settings, label) for path in files], notes)

    return sources.parts(
        settings,
        training,
        records.TABLES,
        "texts and labels",
        _DO,
        of_files,
        lambda rows, name: read([sources.of_split(rows, name)], ()),
        lambda rows: divided(rows, settings.train, "texts", lambda own: _last(own, outputs)),
    )


def _add(
    rows: Rows, source: Source, settings: DataSettings, names: dict[int, str], outputs: int
) -> None:
    """Take what a source has."""
    texts = sources.text_columns(source, settings)
    labels = _labels(source, settings, names, outputs, rows)
    others = [column for column in (settings.group, settings.id) if column]
    pairs, hot = len(texts) == 2, len(labels) > 1
    differ = bool(labels and rows.column) and hot != rows.hot
    if rows.ends and (differ or pairs != (rows.second is not None)):
        first = rows.ends[0][0]
        raise MattaError(f"{first!r} and {source.name!r} do not have the same columns.")
    rows.hot, seen = hot or rows.hot, len(rows.number)
    rows.column = (labels[0] if len(labels) == 1 else settings.label) if labels else rows.column
    rows.second = (rows.second or []) if pairs else None
    classes = source.classes(labels[0]) if len(labels) == 1 else None
    empty = 0
    start = rows.number[-1] + 1 if seen else 0
    number = start - 1
    for place, values in source.rows([*texts, *labels, *others], ""):
        number += 1
        where = f"{source.unit} {place:,}"
        own = [
            records.text_of(value, column, source.name, where) or ""
            for value, column in zip(values, texts, strict=False)
        ]
        if not all(text.strip() for text in own):
            empty += 1
            continue
        for text in own:
            source.tally.look(source.name, text)
        rows.first.append(own[0])
        if rows.second is not None:
            rows.second.append(own[1])
        label = values[len(texts) : len(texts) + len(labels)]
        one = None if hot else sources.class_named(next(iter(label), None), classes)
        rows.label.append(list(label) if hot else one)
        rows.number.append(number)
        rows.place.append(place)
        keys = iter(values[len(texts) + len(labels) :])
        for column, kept in ((settings.group, rows.query), (settings.id, rows.id)):
            if column:
                kept.append(next(keys))
    rows.ends.append((source.name, source.unit, len(rows)))
    for column, kept in ((settings.group, rows.query), (settings.id, rows.id)):
        kept[seen:] = _keys(kept[seen:], column, lambda i: rows.called(seen + i))
    rows.notes += [*source.notes(), *sources.left_out(source, empty, pairs)]
    rows.notes += sources.instead(source.name, texts, [settings.text], source.columns)
    if outputs == 1 and labels:
        rows.notes += sources.instead(source.name, labels, [settings.score], source.columns)


def _labels(
    source: Source, settings: DataSettings, names: dict[int, str], outputs: int, rows: Rows
) -> list[str]:
    """The column of the label; else one for each of the model's labels, or that of a score.

    None where there is no label: the rows are told what they lack.
    """
    if settings.label in source.columns:
        return [settings.label]
    every = [names[k] for k in sorted(names)]
    if len(every) > 1 and set(every) <= set(source.columns):
        return every
    if outputs == 1 and settings.score in source.columns:
        return [settings.score]
    try:
        find.check_column(source.name, settings.label, "data.label", source.columns)
    except MattaError as lack:
        rows.lacks = str(lack)
    return []


def _keys(values: Sequence[Any], column: str, called: Callable[[int], str]) -> list[str]:
    """The names of queries or of rows. called: a row, for people.

    Raises ``MattaError`` where some are missing, or are no names, with their number.
    """
    odd = [
        i
        for i, value in enumerate(values)
        if not isinstance(value, (str, int)) or isinstance(value, bool) or not str(value).strip()
    ]
    if odd:
        first = values[odd[0]]
        holds = "misses a value" if first is None or first == "" else f"holds {first!r}"
        more = f" ({len(odd):,} of {len(values):,} rows have no name)" if odd[1:] else ""
        has = f"Column {column!r} {holds} in {called(odd[0])}{more}"
        raise MattaError(f"{has}: give each row a name.")
    return [str(value) for value in values]


def _last(rows: Rows, outputs: int) -> np.ndarray:
    """The last tenth of the queries, or of the rows of each label, bool [n]."""
    if rows.query:
        query = numbered(np.array(rows.query))
        return query >= find.last_tenth(int(query.max()) + 1, rows.ends[0][0], "queries")
    last = np.arange(len(rows)) >= len(rows) - max(1, len(rows) // 10)
    if outputs == 1:
        return last
    each = find.last_of_each(np.array([repr(label) for label in rows.label]))
    return each if each.any() else last
