"""Whether probabilities mean what they say."""

from __future__ import annotations

import numpy as np

BINS = 15


def error(probability: np.ndarray, happened: np.ndarray) -> float:
    """Expected calibration error: the mean distance of what was expected from what happened.

    Over 15 bins of equal width. probability: [n] in 0 .. 1, of what ``happened`` (0 or 1). A
    class's confidence and whether it is right (Guo et al. 2017, arXiv 1706.04599), or a ranker's
    probability and whether the row is relevant. NaN where a probability is not a number.
    """
    if not np.isfinite(probability).all():
        return float("nan")
    # bins are open below, as in the paper
    place = np.clip(np.ceil(probability * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(place, probability - happened, BINS)
    return float(np.abs(gaps).sum() / len(probability))
