"""The verdict of a comparison: one rule for headlines, alarms, tables and ``matta eval``.

It is made of nothing but the differences of two models on the same examples, and of one margin.
"""

from __future__ import annotations

BETTER = "better"
SAME = "no different"
NO_WORSE = "no worse"
SLIGHTLY = "slightly worse"
WORSE = "worse"
WIDE = "too wide to say"
VERDICTS = (BETTER, SAME, NO_WORSE, SLIGHTLY, WORSE, WIDE)

SURE = 0.05  # a p-value below which chance is ruled out


def judged(low: float, high: float, margin: float, p: float | None = None) -> str:
    """What the 95 % interval of a gain says, where losing ``margin`` (0 or more) does not count.

    p: that there is no difference. A difference is real where the interval leaves zero out and
    chance is ruled out: then the model is better, or worse (slightly, where it loses the margin at
    most), and never called no different. The verdict depends on these two models alone, not on
    which others were compared, so that all who compare them say the same.
    """
    sure = p is None or p < SURE
    if low > 0 and sure:
        return BETTER
    if high < 0 and sure:
        return SLIGHTLY if low >= -margin else WORSE
    if low >= -margin:
        return SAME if high <= margin else NO_WORSE
    return WIDE
