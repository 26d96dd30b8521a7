"""How well models tell labels of which an example may have any number."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from matta_cli.data.split import Columns
from matta_cli.report.labels import PREFIX
from matta_cli.report.schema import Metric
from matta_cli.tasks import calibration

_MARKS = ("|", ";", ",")  # between the labels of a cell
_WORDS = {"true": "1", "false": "0"}

METRICS = (
    Metric("map", "mean average precision (mAP)", higher=True),
    Metric("macro_f1", "macro-F1", higher=True),
    Metric("micro_f1", "micro-F1", higher=True),
    Metric("label_ece", "calibration error (ECE) of the labels", higher=False),
)


def score(logits: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
    """``score``: log odds, float64 [n, labels]. ``label``: whether an example has it, bool."""
    return {"score": logits.detach().double(), "label": labels > 0.5}


def answers(logits: Tensor) -> Mapping[str, Tensor]:
    """Which labels a model gives: those that are likelier than not, bool [n, labels]."""
    return {"labels": logits > 0}


def summarize(columns: Columns, names: Sequence[str]) -> dict[str, float]:
    """The metrics, and ``f1:NAME`` of each label, whose ``names`` are in the order of the columns.

    All are as scikit-learn defines them; a mean over the labels is one over those that some of the
    examples have. NaN where a score is not a number.
    """
    scores, own = columns["score"], columns["label"].astype(bool)
    if not np.isfinite(scores).all():
        empty = [metric.name for metric in METRICS] + [f"{PREFIX}{name}" for name in names]
        return dict.fromkeys(empty, float("nan"))
    given = scores > 0
    there: np.ndarray = own.max(axis=0)
    right, said = (own & given).sum(0), own.sum(0) + given.sum(0)
    each = 2 * right / np.maximum(said, 1)
    odds = np.exp(-np.logaddexp(0, -scores))
    values = {
        "map": _mean(average_precision(own[:, there], scores[:, there])),
        "macro_f1": _mean(each[there]),
        "micro_f1": 2 * float(right.sum()) / max(1, int(said.sum())),
        "label_ece": calibration.error(odds.ravel(), own.ravel()),
    }
    return values | {
        f"{PREFIX}{name}": float(f1) if known else float("nan")
        for name, f1, known in zip(names, each, there, strict=True)
    }


def average_precision(own: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Of each label, the mean over its examples of the precision at their score, float [labels].

    own: bool [n, labels], at least one of each. It is scikit-learn's ``average_precision_score``,
    for all labels at once: intervals take it thousands of times.
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked, hits = np.take_along_axis(scores, order, 0), np.take_along_axis(own, order, 0)
    found, rows = hits.cumsum(0), len(scores)
    # examples of one score are told together: precision is that at the last of them
    at = np.arange(rows)[:, None]
    last = np.full(scores.shape, rows - 1)
    last[:-1] = np.where(ranked[:-1] != ranked[1:], at[:-1], rows - 1)
    last = np.minimum.accumulate(last[::-1], axis=0)[::-1]
    precision = np.take_along_axis(found, last, 0) / (last + 1)
    return (precision * hits).sum(0) / hits.sum(0)


def at_chance(columns: Columns) -> str | None:
    """A sentence with both numbers if the scores order the examples no better than chance does."""
    from scipy.stats import rankdata

    scores, own = columns["score"], columns["label"].astype(bool)
    wrong = int((~np.isfinite(scores)).any(1).sum())
    if wrong:
        return f"{wrong:,} of its {len(scores):,} outputs are not finite numbers."
    rows, positive = len(own), own.sum(0)
    there = (positive > 0) & (positive < rows)
    if not there.any():
        return None
    some, count = own[:, there], positive[there]
    ranks = (rankdata(scores[:, there], axis=0) * some).sum(0)
    areas = (ranks - count * (count + 1) / 2) / (count * (rows - count))
    # of one label, as of rankings: labels may be so alike that many say no more than one
    error = np.sqrt((rows + 1) / (12 * count * (rows - count))).mean()
    if areas.mean() > 0.5 + 2 * error:
        return None
    guessing = f"guessing gives 0.5 (standard error {error:.4f})"
    measured = f"its AUC is {areas.mean():.4f} on average over the labels"
    return f"{measured}, of {rows:,} examples, and {guessing}."


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def parted(
    cells: Sequence[Any], is_label: Callable[[str], bool], *, several: bool = False
) -> list[Any]:
    """Cells of text that hold several labels as lists of these; the others as they are.

    Such a cell is a list in brackets, as JSON or Python writes it, or labels with one mark between
    them, the same in all cells: of | and ; and the comma the first by which all cells fall into
    labels. several: whether cells are known to hold several, so that one of which a part is no
    label falls into parts, too.
    """
    found = [_in_brackets(cell) for cell in cells]
    distinct = {cell for cell in found if isinstance(cell, str)}
    texts = {text for text in distinct if text.strip() and not is_label(text.strip())}

    def parts(text: str, mark: str) -> list[str]:
        return [part.strip() for part in text.split(mark) if part.strip()]

    fits = [m for m in _MARKS if all(is_label(own) for text in texts for own in parts(text, m))]
    if not fits and several:
        counts = {mark: sum(mark in text for text in texts) for mark in _MARKS}
        fits = [mark for mark in _MARKS if counts[mark] and counts[mark] == max(counts.values())]
    if not texts or not fits:
        return found
    made: dict[str, list[Any]] = {text: parts(text, fits[0]) for text in texts}
    digits = {text: [int(p) for p in own if p in ("0", "1")] for text, own in made.items()}
    if is_hot(list(digits.values()), len(next(iter(made.values())))):
        made = digits  # of each label if it is there
    return [made.get(value, value) if isinstance(value, str) else value for value in found]


def _in_brackets(cell: Any) -> Any:
    """The list that a cell of text is, else the cell."""
    text = cell.strip() if isinstance(cell, str) else ""
    if not (text.startswith("[") and text.endswith("]")):
        return cell
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return cell
    plain = isinstance(found, list) and all(type(one) in (str, int, float) for one in found)
    return found if plain else cell


def yes(cell: Any) -> float | None:
    """Whether an example has a label, of the cell that says so: 1 or 0; None for any other."""
    text = str(cell).strip().lower()
    try:
        number = float(_WORDS.get(text, text))
    except ValueError:
        return None
    return number if number in (0, 1) else None


def is_hot(lists: Sequence[Sequence[Any]], outputs: int) -> bool:
    """Whether lists say of each label if it is there, rather than name those that are."""
    whole = all(len(own) == outputs for own in lists)
    numbers = all(not isinstance(v, str) and v in (0, 1) for own in lists for v in own)
    decimals = any(isinstance(v, float) for own in lists for v in own)
    if not whole or not numbers:
        return False
    # of two labels, lists that name both each time would say nothing
    return decimals or outputs == 2 or any(len(set(own)) < len(own) for own in lists)
