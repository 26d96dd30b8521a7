"""The TA and the Teacher with which models are to agree, and how far they do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from matta_cli.comparison.subjects import Opener, Subject, fit
from matta_cli.data.split import Columns
from matta_cli.errors import MattaError
from matta_cli.files.card import read_card
from matta_cli.files.workspace import Workspace
from matta_cli.measure import intervals
from matta_cli.models.folders import ta_folder
from matta_cli.models.names import folder_and_width
from matta_cli.progress import Say
from matta_cli.report.verdicts import FEWEST
from matta_cli.tasks.task import Task


def near(
    opener: Opener, names: Sequence[str], first: Subject, out: Path, say: Say
) -> dict[str, Subject]:
    """The TA that nobody named: the one that a model was cut out of, or that of the output folder.

    It is made fit for the first model's examples; where it cannot be, there is none, and ``say``
    says why.
    """
    folders = [Path(name).parent for name in names]
    made_of = [str(path.parent) for path in folders if path == Workspace(path.parent).students]
    widths = [where for where, width in map(folder_and_width, names) if width is not None]
    for name in (*made_of, *widths, *names, str(out)):
        folder = ta_folder(name)
        if (folder / "matta.json").exists() and not read_card(folder)["lineage"].get("student"):
            break
    else:
        return {}
    try:
        subject = opener.open(name)
        fit(opener.task, subject, first)
    except MattaError as error:
        say(f"Without agreement with the TA in {name}: {error}")
        return {}
    return {"ta": subject}


def agreement(
    task: Task, ours: Sequence[Columns], theirs: Sequence[Columns], resamples: int
) -> dict[str, float | None]:
    """The share of answers that two models have in common, with a bootstrap interval.

    The ends are None where there are fewer than ``FEWEST`` examples. Empty where neither gives
    answers that can be alike.
    """
    for a, b in zip(ours, theirs, strict=True):
        if not a or not b:
            continue
        table = task.agreement(a, b)
        draws = [
            s["same"].sum() / max(1.0, s["of"].sum()) for s in intervals.resampled(table, resamples)
        ]
        value = float(table["same"].sum() / max(1.0, table["of"].sum()))
        if intervals.examples_of(table) < FEWEST:
            return {"value": value, "low": None, "high": None}
        low, high = np.percentile(draws, [2.5, 97.5])
        return {"value": value, "low": float(low), "high": float(high)}
    return {}
