"""The verdict of a comparison: one rule for headlines, alarms, tables and ``matta eval``.

It is made of nothing but the differences of two models on the same examples, and of one margin.
"""

from __future__ import annotations

BETTER = "better"
SAME = "no different"
NO_WORSE = "no worse"
SLIGHTLY = "slightly worse"
WORSE = "worse"
UNCLEAR = "unclear"
VERDICTS = (BETTER, SAME, NO_WORSE, SLIGHTLY, WORSE, UNCLEAR)

SURE = 0.05  # a p-value below which chance is ruled out
FEWEST = 6  # examples that can rule it out: of five, all are alike by chance once in sixteen times


def judged(
    low: float, high: float, margin: float, p: float | None = None, examples: int | None = None
) -> str:
    """What the 95 % interval of a gain says, where losing ``margin`` (0 or more) does not count.

    p: that there is no difference. examples: how many were drawn from; ``FEWEST`` have to be, since
    the resamples of fewer lie close together whatever others would say. None: enough.

    A difference is real where the interval leaves zero out and chance is ruled out: then the model
    is better, or worse (slightly, where it loses the margin at most), and never called no
    different. The verdict depends on these two models alone, not on which others were compared, so
    that all who compare them say the same.
    """
    if examples is not None and examples < FEWEST:
        return UNCLEAR
    sure = p is None or p < SURE
    if low > 0 and sure:
        return BETTER
    if high < 0 and sure:
        return SLIGHTLY if low >= -margin else WORSE
    if low >= -margin:
        return SAME if high <= margin else NO_WORSE
    return UNCLEAR


def why_unclear(low: float, high: float, p: float | None, examples: int | None) -> str:
    """Why a gain is unclear whose interval is not the reason, to be said after it; else empty."""
    if examples is not None and examples < FEWEST:
        said = f"{examples} example{'s' if examples > 1 else ''}"
        return f"by {said}, and fewer than {FEWEST} cannot tell"
    if p is not None and (low > 0 or high < 0):
        return f"with so few resamples or examples that it may be chance (p = {p:.2g})"
    return ""
