"""Intervals over examples, and comparisons of models on the same examples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypedDict

import numpy as np

from matta_cli.data.split import Columns
from matta_cli.errors import MattaError
from matta_cli.report.schema import Interval
from matta_cli.report.verdicts import FEWEST, SURE


class Metrics(Protocol):
    """What a task makes of columns; see ``matta_cli.tasks.task.Task``."""

    def summarize(self, columns: Columns) -> dict[str, float]: ...

    def right(self, columns: Columns) -> Columns: ...


class Means:
    """Metrics that are the means of their columns."""

    def summarize(self, columns: Columns) -> dict[str, float]:
        return {name: float(values.mean()) for name, values in columns.items()}

    def right(self, columns: Columns) -> Columns:
        return {name: values for name, values in columns.items() if np.isin(values, (0, 1)).all()}


class Difference(TypedDict, total=False):
    """A metric of one model minus that of another on the same examples, as JSON has it.

    low, high: its percentile bootstrap 95 % interval, with the same examples (queries, where there
    are some) drawn for both; wider by what few examples cannot show (``_unseen``). p: two-sided,
    that there is no difference; p_holm: corrected for how many models were compared. examples: how
    many there are to draw from. A difference that is not defined is NaN, and its ``p`` is 1.

    test: "McNemar", the exact one (McNemar 1947), where examples stand alone and are right or
    wrong. Else "bootstrap": twice the share of draws on the other side of zero (Efron & Tibshirani
    1993, section 15.4), at least 2 / (resamples + 1), and no less than what so few examples could
    show if all spoke alike (the sign test's 2 ** (1 - examples)).
    """

    value: float
    low: float
    high: float
    p: float
    test: str
    p_holm: float
    examples: int


class Sampled:
    """A model's metrics on the examples of a split, and on resamples of these examples.

    They are the same examples for every model, so that models are compared draw by draw.
    """

    def __init__(self, task: Metrics, columns: Columns) -> None:
        self.task, self.columns = task, columns
        self.values = task.summarize(columns)
        self._samples = resampled(columns)
        self._drawn: list[dict[str, float]] = []

    def draws(self, count: int) -> list[dict[str, float]]:
        """The metrics of the first so many resamples."""
        new = itertools.islice(self._samples, max(0, count - len(self._drawn)))
        self._drawn += map(self.task.summarize, new)
        return self._drawn[:count]

    @property
    def examples(self) -> int:
        """``examples_of`` its columns."""
        return examples_of(self.columns)

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values())))

    def right(self) -> Columns:
        """Which examples are right, by metric, where examples stand alone."""
        return {} if "group" in self.columns else self.task.right(self.columns)


def examples_of(columns: Columns) -> int:
    """How many examples are drawn from: queries, where rows belong to some."""
    return len(np.unique(columns["group"]) if "group" in columns else next(iter(columns.values())))


def resampled(columns: Columns, count: int | None = None) -> Iterator[Columns]:
    """``count`` resamples of a model's columns (without one: as many as are asked for).

    They are always the same ones. Rows of one ``group`` (the query of a ranking) are drawn
    together; the ``group`` of a draw numbers the queries drawn, so that one drawn twice is two.
    """
    generator = np.random.default_rng(0)
    turns = itertools.count() if count is None else range(count)
    rows = len(next(iter(columns.values())))
    if "group" not in columns:
        for _ in turns:
            chosen = generator.integers(rows, size=rows)
            yield {name: values[chosen] for name, values in columns.items()}
        return
    _, codes = np.unique(columns["group"], return_inverse=True)
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    for _ in turns:
        drawn = generator.integers(len(members), size=len(members))
        chosen = np.concatenate([members[g] for g in drawn])
        group = np.repeat(np.arange(len(drawn)), [len(members[g]) for g in drawn])
        yield {name: values[chosen] for name, values in columns.items()} | {"group": group}


def intervals(task: Metrics, per_split: Sequence[Columns], resamples: int) -> dict[str, Interval]:
    """The metrics of every split with percentile bootstrap 95 % intervals (Efron 1979).

    None where there are fewer than ``FEWEST`` examples, whose resamples lie too close together.
    """
    return intervals_of([Sampled(task, columns) for columns in per_split], resamples)


def intervals_of(model: Sequence[Sampled], resamples: int) -> dict[str, Interval]:
    """``intervals`` of a model that is sampled already."""
    found = {}
    for split in model:
        draws, right = split.draws(resamples), split.right()
        for name, value in split.values.items():
            low, high = _ends(value, _finite(draw.get(name, np.nan) for draw in draws))
            if name in right:
                low = min(low, 1 - _room(right[name])) if value == 1 else low
                high = max(high, _room(right[name])) if value == 0 else high
            # what is drawn of a calibration error of few examples may all lie above it
            ends = (min(low, value), max(high, value)) if split.examples >= FEWEST else ()
            found[name] = Interval(float(value), *ends)
    return found


def paired(
    task: Metrics, a: Sequence[Columns], b: Sequence[Columns], resamples: int
) -> dict[str, Difference]:
    """Each metric of ``a`` minus that of ``b``, the columns of every split of the same examples.

    Raises ``MattaError`` where the examples cannot be the same ones.
    """
    ours, theirs = ([Sampled(task, own) for own in model] for model in (a, b))
    return differences(ours, theirs, resamples)


def differences(
    a: Sequence[Sampled], b: Sequence[Sampled], resamples: int
) -> dict[str, Difference]:
    """``paired`` of two models that are sampled already."""
    found, alike = {}, _alike(a, b)
    for ours, theirs in zip(a, b, strict=True):
        _refuse_others(ours, theirs)
        drawn = list(zip(ours.draws(resamples), theirs.draws(resamples), strict=True))
        right = ours.right(), theirs.right()
        for name in (name for name in ours.values if name in theirs.values):
            value = float(ours.values[name] - theirs.values[name])
            gaps = _finite(x[name] - y[name] for x, y in drawn if name in x and name in y)
            low, high = _ends(value, gaps)
            if all(name in own for own in right):
                only = _only(*(own[name] for own in right))
                p, test = _mcnemar(*only), "McNemar"
                if not alike:
                    low, high = _unseen(low, high, *only, _room(right[0][name]), p)
            else:
                p, test = _beyond_zero(value, gaps, ours.examples), "bootstrap"
            ends = Difference(value=value, low=low, high=high, p=p, test=test)
            found[name] = Difference(**ends, examples=ours.examples)
    return found


def against(
    task: Metrics, tables: Mapping[str, Sequence[Columns]], reference: str, resamples: int
) -> dict[str, dict[str, Difference]]:
    """``paired`` of every other model with ``reference``: model -> metric -> difference.

    ``p_holm`` is ``p`` corrected for how many models the metric was compared for.
    """
    models = {name: [Sampled(task, own) for own in tables[name]] for name in tables}
    base = models.pop(reference)
    found = {name: differences(own, base, resamples) for name, own in models.items()}
    for metric in {metric for one in found.values() for metric in one}:
        compared = [one[metric] for one in found.values() if metric in one]
        for one, p in zip(compared, holm([c["p"] for c in compared]), strict=True):
            one["p_holm"] = p
    return found


def holm(p: Sequence[float]) -> list[float]:
    """p-values of several comparisons, corrected for being several.

    One below 0.05 by chance in any of them then has a chance of 0.05. Holm 1979, "A simple
    sequentially rejective multiple test procedure".
    """
    corrected, worst = [0.0] * len(p), 0.0
    for rank, i in enumerate(np.argsort(p, kind="stable")):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = worst
    return corrected


def _refuse_others(a: Sampled, b: Sampled) -> None:
    ours, theirs = (own.columns.get("group") for own in (a, b))
    alike = ours is theirs if ours is None or theirs is None else np.array_equal(ours, theirs)
    if a.rows != b.rows or not alike:
        these = f"these have {a.rows:,} and {b.rows:,} rows"
        raise MattaError(f"Models can only be compared on the same examples; {these}.")


def _alike(a: Sequence[Sampled], b: Sequence[Sampled]) -> bool:
    """Whether two models say the very same of each example, by more than what is right of it."""
    both = [(x.columns, y.columns) for x, y in zip(a, b, strict=True)]
    same = all(
        x.keys() == y.keys() and all(np.array_equal(x[k], y[k], equal_nan=True) for k in x)
        for x, y in both
    )
    return same and any(not np.isin(own, (0, 1)).all() for x, _ in both for own in x.values())


def _finite(values: Iterator[float]) -> np.ndarray:
    drawn = np.array(list(values), dtype=float)
    return drawn[np.isfinite(drawn)]


def _ends(value: float, drawn: np.ndarray) -> tuple[float, float]:
    """The ends of the 95 % interval of what was drawn; the value, where nothing was."""
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (value, value)
    return float(low), float(high)


def _only(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """How many examples only the one model gets right, and only the other."""
    x, y = a.astype(bool), b.astype(bool)
    return int((x & ~y).sum()), int((y & ~x).sum())


def _mcnemar(only_a: int, only_b: int) -> float:
    """Of the examples that only one model gets right, either is as likely to: a binomial test."""
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def _room(examples: np.ndarray) -> float:
    """The share that may be otherwise of all examples, though none of these is: 97.5 % sure.

    Of six it is 46 %, of a thousand 0.4 % (Clopper & Pearson 1934).
    """
    return float(1 - 0.025 ** (1 / len(examples)))


def _unseen(
    low: float, high: float, only_a: int, only_b: int, room: float, p: float
) -> tuple[float, float]:
    """The ends of an interval with what may be, though no example shows it and none was drawn.

    That is, where one model alone is right on none of them. Where chance is ruled out, the drawn
    ends stay.
    """
    if p >= SURE and not only_b:
        low = min(low, -room)
    if p >= SURE and not only_a:
        high = max(high, room)
    return low, high


def _beyond_zero(value: float, drawn: np.ndarray, examples: int) -> float:
    if not len(drawn) or not np.isfinite(value):
        return 1.0
    least = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, max(2 * (least + 1) / (len(drawn) + 1), 2.0 ** (1 - examples)))
