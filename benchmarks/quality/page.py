"""The part of docs/results.md on the paper's recipe, from the records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.quality.arms import Arm
from benchmarks.quality.problem import Problem
from benchmarks.quality.tables import (
    Found,
    all_arms,
    claims,
    interaction,
    peers_beside,
    table,
    tally,
    tas,
    versus,
)

COMMAND = "python -m benchmarks.quality"
_METHOD = (
    "a seed has a base of its own, an order of the data, and new units of the TA. All numbers are "
    "of test data that chose nothing; gains are over the seeds that both arms have, means over an "
    "arm's own (in the tables of two arms: over both's). Device-s are of the machine and the load "
    "that an arm was run at, which differ, and a GPU's are shared evenly among the trainings that "
    "are on it together: compare arms by FLOPs, which are multiples of plain distillation's."
)
_GAIN = (
    "**Gain** is the mean of paired differences to plain distillation (Teacher → Student, same "
    "size, same steps, same data), in per cent of plain distillation's mean, positive where the "
    "arm is better, with its 95 % interval (Student's t over seeds; test examples are the same "
    "ones for all, and their sampling is not in it); p is that of the paired t-test, corrected "
    "within a table (Holm). A verdict is by the interval of its own row alone, uncorrected: of "
    "twenty rows without any difference, one is expected to show one. † marks pairs of the same "
    "seed whose bases and Teacher were made on two machines, which round otherwise: they are "
    "looser. Where there are more than five seeds, the others were added after the first five had "
    "been seen."
)
_RATES = (
    "**Learning rates** come from one grid for every arm of a task, by the dev data of other seeds "
    "(one; five for the ranker on 160 queries). Arms of MatTA's compute take the rate of the same "
    "arm at equal steps."
)


def text(
    problems: Sequence[Problem],
    some: Mapping[str, Sequence[Arm]],
    found: Found,
    quick: bool,
    tuning: float = 0.0,
) -> str:
    """The part of the page. tuning: the device-seconds that the choice of learning rates took."""
    every = [r for arms in found.values() for records in arms.values() for r in records]
    devices = " and ".join(sorted({r["device"] for r in every})) or "none yet"
    seconds = sum(r["seconds"] for r in every)
    arms_ = [records for arms in found.values() for records in arms.values()]
    seeds = max((len({r["seed"] for r in records}) for records in arms_), default=0)
    out = [
        "## The paper's recipe, one Student, beside plain distillation",
        "",
        f"Made by `{COMMAND}{' --quick' if quick else ''}` from its records; all arms have the "
        f"preset `paper`. Device: {devices}, one thread for each training; "
        f"{seconds / 3600:.1f} "
        f"device-hours of training are shown, and {tuning / 3600:.1f} more chose the learning "
        f"rates. Up to {seeds} paired seeds: {_METHOD}",
        "",
        _GAIN,
        "",
        _RATES,
        "",
    ]
    missing = [f"{p.title} ({p.regime})" for p in problems if "plain" not in found.get(p.name, {})]
    out += [f"Not run yet: {'; '.join(missing)}.", ""] if missing else []
    own = [(problem, found.get(problem.name, {})) for problem in problems]
    of_all = [claims(problem, arms) for problem, arms in own]
    rows = [row for each in of_all for row in each]
    header = ["task", "metric", "plain", "MatTA", "gain in %", "verdict", "goal"]
    out += table(header, rows) if rows else ["Nothing has been run yet.", ""]
    out += [
        f"By the first metric of each task: {tally(each[0][5] for each in of_all if each)}. "
        "What was tried to do better is in [recipe.md](recipe.md).",
        "",
    ]
    rows = [row for problem, arms in own for row in tas(problem, arms)]
    if rows:
        header = ["task", "metric", "Student in it", "TA", "width", "TA over its Student, %"]
        said = "The TA in which that Student was trained, larger than it, and what it has to teach:"
        out += [said, "", *table([*header, "TA over plain, %"], rows)]
    rows = [row for problem, arms in own for row in versus(problem, arms, "base", "no-teacher")]
    if rows:
        header = ["task", "metric", "base, continued", "MatTA without Teacher", "gain in %"]
        said = "Where there is no Teacher, and both learn from ground truth alone:"
        out += [said, "", *table([*header, "verdict"], rows)]
    out += interaction(problems, found)
    out += peers_beside(problems, some, found)
    out += all_arms(problems, some, found)
    return "\n".join(out)
