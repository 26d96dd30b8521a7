"""docs/results.md and its plots, from the records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from benchmarks.quality.arms import Arm
from benchmarks.quality.gains import (
    Arms,
    gain_over_plain,
    interval,
    label,
    paired,
    relative,
    values,
)
from benchmarks.quality.problem import Problem
from benchmarks.quality.tables import (
    Found,
    claims,
    family,
    interaction,
    peers_beside,
    problem_section,
    shown,
    table,
    tally,
    tas,
    versus,
)
from matta_cli.files import atomic

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
    "(one; five for the ranker on 160 queries): a Student's by its own metric, a family's by the "
    "mean over its widths. Arms of MatTA's compute take the rate of the same arm at equal steps. * "
    "marks an end of the grid: a rate beyond it might be better."
)


def text(
    problems: Sequence[Problem],
    some: Mapping[str, Sequence[Arm]],
    found: Found,
    quick: bool,
    tuning: float = 0.0,
) -> str:
    """The whole page. tuning: the device-seconds that the choice of learning rates took."""
    every = [r for arms in found.values() for records in arms.values() for r in records]
    devices = " and ".join(sorted({r["device"] for r in every})) or "none yet"
    seconds = sum(r["seconds"] for r in every)
    arms_ = [records for arms in found.values() for records in arms.values()]
    seeds = max((len({r["seed"] for r in records}) for records in arms_), default=0)
    out = [
        "# Results",
        "",
        f"Made by `{COMMAND}{' --quick' if quick else ''}`, which writes every number and plot "
        f"here from its records. Device: {devices}, one thread for each training; "
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
    out += ["## Does MatTA beat plain distillation?", ""]
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
    out += family(problems, found) + interaction(problems, found)
    out += peers_beside(problems, some, found)
    for problem, arms in own:
        out += problem_section(problem, some[problem.name], arms)
    return "\n".join(out)


def plot(problem: Problem, some: Sequence[Arm], arms: Arms) -> str | None:
    """Gains over plain distillation with their intervals, one line for each arm, as SVG."""
    name, there = (
        problem.metrics[0],
        [arm for arm in some if arm.name in arms] if "plain" in arms else [],
    )
    found = [(arm.label, gain_over_plain(problem, name, arm.name, arms)) for arm in there]
    rows = [(said, of) for said, of in found if of is not None]
    if not rows:
        return None
    low, high = min(0.0, *(of.low for _, of in rows)), max(0.0, *(of.high for _, of in rows))
    room = (high - low) * 0.05 or 1.0
    left, right, top, line = 300, 700, 46, 24
    height = top + line * len(rows) + 40

    def x(value: float) -> float:
        return left + (value - low + room) / (high - low + 2 * room) * (right - left)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="720" height="{height}" fill="#fff"/>',
        f'<text x="12" y="24" font-weight="bold">{escape(problem.title)}: '
        f"{escape(label(problem, name))}, gain in %</text>",
        f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{top - 8}" y2="{height - 32}" stroke="#888"/>',
        f'<text x="{x(0):.1f}" y="{height - 14}" text-anchor="middle" fill="#555">0 (plain)</text>',
    ]
    for k, (said, of) in enumerate(rows):
        y = top + line * k + 6
        colour = "#1a7f37" if of.low > 0 else "#b42318" if of.high < 0 else "#555"
        out += [
            f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(said)}</text>',
            f'<line x1="{x(of.low):.1f}" x2="{x(of.high):.1f}" y1="{y}" y2="{y}" '
            f'stroke="{colour}" stroke-width="2"/>',
            f'<circle cx="{x(of.value):.1f}" cy="{y}" r="4" fill="{colour}">'
            f"<title>{of}</title></circle>",
        ]
    ends = [(low, "end" if x(low) > left + 60 else "start"), (high, "end")]
    out += [
        f'<text x="{x(v):.1f}" y="{height - 14}" text-anchor="{a}" fill="#555">{v:+.1f}</text>'
        for v, a in ends
        if abs(x(v) - x(0)) > 60
    ]
    return "".join(out) + "</svg>\n"


def write(
    folder: Path,
    problems: Sequence[Problem],
    some: Mapping[str, Sequence[Arm]],
    found: Found,
    said: str,
) -> None:
    """The page and its plots."""
    (folder / "results").mkdir(parents=True, exist_ok=True)
    atomic.atomic_write(folder / "results.md", said.rstrip() + "\n")
    for problem in problems:
        drawn = plot(problem, some[problem.name], found.get(problem.name, {}))
        if drawn:
            atomic.atomic_write(folder / "results" / f"{problem.name}.svg", drawn)


MARKS = (
    "<!-- the table is made by python -m benchmarks.quality --recipe -->",
    "<!-- end of the table -->",
)


def write_recipe(
    folder: Path, problems: Sequence[Problem], some: Mapping[str, Sequence[Arm]], found: Found
) -> None:
    """Put the tables of the search for the recipe between their marks in ``folder/recipe.md``."""
    shown = [problem for problem in problems if "matta" in found.get(problem.name, {})]
    arms = {arm.name: arm for problem in problems for arm in some[problem.name]}
    out = []
    for reference, said in (
        ("matta", "variant of MatTA, one Student"),
        ("family", "variant of the family (mean over its widths)"),
    ):
        names = [
            name
            for name, arm in arms.items()
            if ("widths" in arm.distill) == (reference == "matta")
        ]
        rows = [
            [name, *(_screened(problem, name, reference, found[problem.name]) for problem in shown)]
            for name in names
        ]
        out += table([said, *(f"{p.title}: {label(p, p.metrics[0])}" for p in shown)], rows)
    path = folder / "recipe.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    atomic.atomic_write(path, f"{before}{MARKS[0]}\n\n" + "\n".join(out) + f"\n{MARKS[1]}{after}")


def _screened(problem: Problem, name: str, reference: str, arms: Arms) -> str:
    """A cell: the gain over the reference of each seed, or of more than two the interval; the
    reference's own value.
    """
    if name not in arms or reference not in arms:
        return "–"
    widths = [
        f"{width:g}" for width in (problem.widths if reference == "family" else (problem.size,))
    ]
    first = problem.metrics[0]
    own, theirs = (
        [values(problem, arms[arm], first, width, "dev") for width in widths]
        for arm in (name, reference)
    )
    if name == reference:
        return ", ".join(shown(at) for at in own)
    pairs = [paired(*both) for both in zip(own, theirs, strict=True)]
    each = np.mean([relative(problem, first, *both) for both, _ in pairs], axis=0)
    if not len(each):
        return "–"
    loose = any(loose for _, loose in pairs)
    if len(each) > 2:
        return f"{interval(each.tolist(), loose)}, {len(each)} seeds"
    return ", ".join(f"{e:+.1f}" for e in each) + (" †" if loose else "")
