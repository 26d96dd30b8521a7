"""docs/results.md and its plots, from the records alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.quality import peers
from benchmarks.quality.arms import NAMES, PEER_WIDTH, SHARE, Arm
from benchmarks.quality.problem import Problem
from matta_cli.files import atomic
from matta_cli.measure import intervals
from matta_cli.models import plugins
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task
from matta_cli.tasks.task import Metric

Record = dict[str, Any]
Values = Mapping[tuple[int, str], float]  # by seed, and by the base that it came to on the machine
Found = Mapping[str, Mapping[str, Sequence[Record]]]  # problem -> arm -> its records, one per seed

LOSSES = {"top1": "top-1 error"}  # shares of right answers that are shown as what is missing to 1
# per cent, over plain distillation
GOALS = {"last_word_accuracy": 10.0, "top1": 8.0, "auc_loss": 8.0}
COMMAND = "python -m benchmarks.quality"


class Gain(NamedTuple):
    """By how many per cent of the other's mean an arm is better, over paired seeds. low, high: 95
    %, Student's t.
    """

    value: float
    low: float
    high: float
    p: float
    # whether the pairs share the seed alone: their bases were made on different machines
    loose: bool = False

    def __str__(self) -> str:
        return f"{self.value:+.1f} [{self.low:+.1f}, {self.high:+.1f}]{' †' if self.loose else ''}"


def _metrics(problem: Problem) -> dict[str, Metric]:
    task = tasks_task.task(plugins.adapter(problem.adapter).task, Recipe())
    return {metric.name: metric for metric in task.metrics}


def higher(problem: Problem, name: str) -> bool:
    """Whether more of a metric, as it is recorded, is better."""
    return bool(_metrics(problem)[name].higher)


def label(problem: Problem, name: str) -> str:
    return LOSSES.get(name) or _metrics(problem)[name].label


def values(
    problem: Problem, records: Sequence[Record], name: str, width: str, split: str = "test"
) -> Values:
    """A metric as it is shown, by seed and base."""
    found = {pair(record): record["widths"][width][split][name] for record in records}
    return {seed: 1 - value if name in LOSSES else value for seed, value in found.items()}


def pair(record: Record) -> tuple[int, str]:
    """What two arms share that are compared: the seed, and the very base that it came to."""
    return record["seed"], record.get("base", "")


def paired(*arms: Values) -> tuple[list[Values], bool]:
    """The values of arms where all have one: by seed and base, or else, where that leaves fewer
    than two, by seed alone.

    Returns them in one order, and whether they share the seed alone.
    """
    alone: list[Values] = [{(seed, ""): value for (seed, _), value in arm.items()} for arm in arms]
    exact, seeds = (sorted(set.intersection(*map(set, each))) for each in (arms, alone))
    if _seeds(exact) >= min(2, len(seeds)):
        return [{key: arm[key] for key in exact} for arm in arms], False
    return [{key: arm[key] for key in seeds} for arm in alone], True


def gain(problem: Problem, name: str, ours: Values, theirs: Values) -> Gain | None:
    """Of ``ours`` over ``theirs``, over the pairs that both have; None for fewer than two."""
    (ours, theirs), loose = paired(ours, theirs)
    return interval(relative(problem, name, ours, theirs), loose) if _seeds(ours) > 1 else None


def relative(
    problem: Problem, name: str, ours: Values, theirs: Values, by: Values | None = None
) -> list[float]:
    """By how many per cent of the mean of ``by`` (none: of ``theirs``) ours are better, at each
    seed.
    """
    sign = -1 if name in LOSSES or not higher(problem, name) else 1
    # of one seed, a count of few right answers may be zero
    unit = float(np.mean(by_seed(theirs if by is None else by)))
    return by_seed(
        {seed: 100 * sign * (ours[seed] - theirs[seed]) / unit if unit else 0.0 for seed in ours}
    )


def by_seed(each: Values) -> list[float]:
    """One number for a seed, in order: the mean where it was run from several bases, which are one
    draw, rounded otherwise.
    """
    grouped: dict[int, list[float]] = {}
    for (seed, _), value in each.items():
        grouped.setdefault(seed, []).append(value)
    return [float(np.mean(values)) for _, values in sorted(grouped.items())]


def _seeds(pairs: Iterable[tuple[int, str]]) -> int:
    return len({seed for seed, _ in pairs})


def _gain_over_plain(
    problem: Problem, name: str, arm: str, arms: Mapping[str, Sequence[Record]]
) -> Gain | None:
    """Of an arm whose Students are of the size that the claim is about; None where there is none."""
    size = f"{problem.size:g}"
    if arm == "plain" or size not in arms[arm][0]["widths"]:
        return None
    return gain(problem, name, *(values(problem, arms[a], name, size) for a in (arm, "plain")))


def interval(each: Sequence[float], loose: bool = False) -> Gain:
    """The mean of paired differences, its 95 % interval and the p-value of there being none (paired
    t-test).
    """
    from scipy import stats

    mean, error = float(np.mean(each)), float(np.std(each, ddof=1) / math.sqrt(len(each)))
    if error == 0:
        return Gain(mean, mean, mean, 1.0 if mean == 0 else 0.0, loose)
    reach = float(stats.t.ppf(0.975, len(each) - 1)) * error
    return Gain(
        mean,
        mean - reach,
        mean + reach,
        float(2 * stats.t.sf(abs(mean) / error, len(each) - 1)),
        loose,
    )


def _shown(each: Values) -> str:
    """The mean over seeds."""
    value = float(np.mean(by_seed(each)))
    return f"{value:.1f}" if value >= 10 else f"{value:.4f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def _rate(problem: Problem, rate: float) -> str:
    """A learning rate, marked where none beyond it was tried."""
    return f"{rate:g}{'*' if rate in (min(problem.rates), max(problem.rates)) else ''}"


def _mean(records: Sequence[Record], name: str) -> float:
    return float(np.mean([record[name] for record in records]))


def text(
    problems: Sequence[Problem],
    some: Mapping[str, Sequence[Arm]],
    found: Found,
    quick: bool,
    tuning: float = 0.0,
) -> str:
    """The whole page. tuning: the device-seconds that the choice of learning rates took."""
    seconds = sum(
        r["seconds"] for arms in found.values() for records in arms.values() for r in records
    )
    devices = sorted(
        {r["device"] for arms in found.values() for records in arms.values() for r in records}
    )
    seeds = max(
        (len({r["seed"] for r in records}) for arms in found.values() for records in arms.values()),
        default=0,
    )
    out = [
        "# Results",
        "",
        f"Made by `{COMMAND}{' --quick' if quick else ''}`, which writes every number and plot here from its records. "
        f"Device: {' and '.join(devices) or 'none yet'}, one thread for each training; {seconds / 3600:.1f} device-hours of "
        f"training are shown, and {tuning / 3600:.1f} more chose the learning rates. Up to {seeds} paired seeds: a seed has a "
        "base of its own, an order of the data, and new units of the TA. All numbers are of test data that chose nothing; "
        "gains are over the seeds that both arms have, means over an arm's own (in the tables of two arms: over both's). "
        "Device-s are of the machine and the load that an arm was run at, which differ, and a GPU's are shared evenly among "
        "the trainings that are on it together: compare arms "
        "by FLOPs, which are multiples of plain distillation's.",
        "",
        "**Gain** is the mean of paired differences to plain distillation (Teacher → Student, same size, same steps, same "
        "data), in per cent of plain distillation's mean, positive where the arm is better, with its 95 % interval (Student's "
        "t over seeds; test examples are the same ones for all, and their sampling is not in it); p is that of the paired "
        "t-test, corrected within a table (Holm). A verdict is by the interval of its own row alone, uncorrected: of twenty "
        "rows without any difference, one is expected to show one. † marks pairs of the same seed whose bases and Teacher "
        "were made on two machines, which round otherwise: they are looser. Where there are more than five seeds, the others "
        "were added after the first five had been seen.",
        "",
        "**Learning rates** come from one grid for every arm of a task, by the dev data of other seeds (one; five for the "
        "ranker on 160 queries): a Student's by its own metric, a family's by the mean over its widths. Arms of MatTA's "
        "compute take the rate of the same arm at equal steps. * marks an end of the grid: a rate beyond it "
        "might be better.",
        "",
    ]
    missing = [f"{p.title} ({p.regime})" for p in problems if "plain" not in found.get(p.name, {})]
    out += [f"Not run yet: {'; '.join(missing)}.", ""] if missing else []
    out += ["## Does MatTA beat plain distillation?", ""]
    rows = [row for problem in problems for row in _claims(problem, found.get(problem.name, {}))]
    header = ["task", "metric", "plain", "MatTA", "gain in %", "verdict", "goal"]
    out += _table(header, rows) if rows else ["Nothing has been run yet.", ""]
    firsts = [_claims(problem, found.get(problem.name, {}))[:1] for problem in problems]
    out += [
        f"By the first metric of each task: {_tally(row[5] for [row] in filter(None, firsts))}. "
        "What was tried to do better is in [recipe.md](recipe.md).",
        "",
    ]
    rows = [row for problem in problems for row in _tas(problem, found.get(problem.name, {}))]
    if rows:
        out += [
            "The TA in which that Student was trained, larger than it, and what it has to teach:",
            "",
        ]
        out += _table(
            [
                "task",
                "metric",
                "Student in it",
                "TA",
                "width",
                "TA over its Student, %",
                "TA over plain, %",
            ],
            rows,
        )
    rows = [
        row
        for problem in problems
        for row in _versus(problem, found.get(problem.name, {}), "base", "no-teacher")
    ]
    if rows:
        out += ["Where there is no Teacher, and both learn from ground truth alone:", ""]
        out += _table(
            ["task", "metric", "base, continued", "MatTA without Teacher", "gain in %", "verdict"],
            rows,
        )
    out += _family(problems, found)
    out += _interaction(problems, found)
    out += _peers(problems, some, found)
    for problem in problems:
        out += _problem(problem, some[problem.name], found.get(problem.name, {}))
    return "\n".join(out)


def verdict(of: Gain | None) -> str:
    if of is None:
        return "too few seeds"
    return "better" if of.low > 0 else "worse" if of.high < 0 else "no difference shown"


def _tally(verdicts: Iterable[str]) -> str:
    """How often each verdict was given."""
    counted = Counter(verdicts)
    return ", ".join(
        f"{counted.get(said, 0)} {said}" for said in ("better", "no difference shown", "worse")
    )


def _versus(
    problem: Problem, arms: Mapping[str, Sequence[Record]], reference: str, arm: str
) -> list[list[str]]:
    """A row for each metric: an arm beside its reference, where both have a seed. None where one of
    them has not been run.
    """
    if reference not in arms or arm not in arms:
        return []
    rows = []
    for name in problem.metrics:
        theirs, ours = (
            values(problem, arms[each], name, f"{problem.size:g}") for each in (reference, arm)
        )
        of, (both, _) = gain(problem, name, ours, theirs), paired(theirs, ours)
        means = map(_shown, both if both[0] else (theirs, ours))
        rows.append([problem.title, label(problem, name), *means, str(of or "–"), verdict(of)])
    return rows


def _claims(problem: Problem, arms: Mapping[str, Sequence[Record]]) -> list[list[str]]:
    """MatTA beside plain distillation, and whether the goal is met."""
    rows = _versus(problem, arms, "plain", "matta")
    for name, row in zip(problem.metrics, rows, strict=bool(rows)):
        of, goal = _gain_over_plain(problem, name, "matta", arms), GOALS.get(name)
        met = of is not None and goal is not None and of.value >= goal and of.low > 0
        row.append("" if goal is None else f"{goal:g} %: {'met' if met else 'missed'}")
    return rows


def _tas(problem: Problem, arms: Mapping[str, Sequence[Record]]) -> list[list[str]]:
    """The TA of MatTA's one Student beside that Student and a plain-distilled one, by the first
    metric.
    """
    if not {"plain", "matta"} <= set(arms):
        return []
    name, size = problem.metrics[0], f"{problem.size:g}"
    student, ta = (values(problem, arms["matta"], name, width) for width in (size, "TA"))
    gains = (
        gain(problem, name, ta, other)
        for other in (student, values(problem, arms["plain"], name, size))
    )
    width = f"{problem.convert.get('expand', 2.0):g}"
    return [
        [
            problem.title,
            label(problem, name),
            _shown(student),
            _shown(ta),
            width,
            *(str(of or "–") for of in gains),
        ]
    ]


def _family(problems: Sequence[Problem], found: Found) -> list[str]:
    """One nested run against separate runs of the same sizes; and one that may cost no more than a
    part of them.
    """
    rows, costs = [], []
    for problem in problems:
        arms, name = found.get(problem.name, {}), problem.metrics[0]
        alone = {
            w: arms.get("plain" if w == problem.size else f"plain@{w:g}", [])
            for w in problem.widths
        }
        families = [arm for arm in ("family", "family-cheap") if arm in arms]
        if not families or not all(alone.values()):
            continue
        for width, records in alone.items():
            theirs = values(problem, records, name, f"{width:g}")
            row = [problem.title, f"{width:g}", label(problem, name), _shown(theirs)]
            for arm in ("family", "family-cheap"):
                ours = values(problem, arms[arm], name, f"{width:g}") if arm in arms else {}
                of = gain(problem, name, ours, theirs)
                row += [_shown(ours), f"{of}", verdict(of)] if of else ["–", "–", "–"]
            rows.append(row)
        for arm in families:
            flops = _mean(arms[arm], "flops") / sum(_mean(r, "flops") for r in alone.values())
            # seconds of two machines have no ratio
            beside = set.intersection(
                *({pair(record) for record in records} for records in (arms[arm], *alone.values()))
            )
            seconds = ["–"] * 3
            if beside:
                own, *others = (
                    [r for r in records if pair(r) in beside]
                    for records in (arms[arm], *alone.values())
                )
                together, apart = (
                    _mean(own, "seconds"),
                    sum(_mean(records, "seconds") for records in others),
                )
                seconds = [f"{together:.0f}", f"{apart:.0f}", f"{together / apart:.2f}"]
            kind = "whole" if arm == "family" else "cheap"
            costs.append(
                [
                    problem.title,
                    kind,
                    str(len(alone)),
                    f"{_mean(arms[arm], 'steps'):.0f}",
                    *seconds,
                    f"{flops:.2f}",
                ]
            )
    if not rows:
        return []
    header = [
        "task",
        "width",
        "metric",
        "alone",
        *(part for kind in ("whole", "cheap") for part in (kind, "gain in %", "verdict")),
    ]
    return [
        "## The family: one nested run, or one distillation for each size?",
        "",
        "The whole family takes the steps of a run alone, with all widths and a TA in each; it also yields that TA. The cheap "
        f"family takes one width a step, no TA, and so many steps that its matrix products are {SHARE:g} of those of all runs "
        "alone; what is marked – in its seconds was run on another machine.",
        "",
        *_table(header, rows),
        f"Of the widths, whole family: {_tally(row[6] for row in rows)}; cheap family: {_tally(row[9] for row in rows)}.",
        "",
        *_table(
            [
                "task",
                "family",
                "sizes",
                "steps",
                "device-s",
                "alone, s",
                f"ratio (goal {SHARE:g})",
                "of FLOPs",
            ],
            costs,
        ),
    ]


def _interaction(problems: Sequence[Problem], found: Found) -> list[str]:
    """Sharing and optimizer, two by two."""
    rows = []
    for problem, other in ((p, other) for p in problems for other in p.optimizers):
        arms, name = found.get(problem.name, {}), problem.metrics[0]
        four = ("unshared", "matta", f"unshared/{other}", f"matta/{other}")
        if not all(arm in arms for arm in four):
            continue
        each, loose = paired(
            *(values(problem, arms[arm], name, f"{problem.size:g}") for arm in four)
        )
        base, shared, changed, both = each
        if _seeds(base) < 2:
            continue
        expected = {key: changed[key] + shared[key] - base[key] for key in base}
        effects = [
            interval(relative(problem, name, ours, base), loose) for ours in (shared, changed, both)
        ]
        of = interval(relative(problem, name, both, expected, base), loose)
        said = (
            "super-additive"
            if of.low > 0
            else "sub-additive"
            if of.high < 0
            else "no interaction shown"
        )
        means = (_shown(base), *(str(effect) for effect in effects), str(of))
        under = "–"
        if f"plain/{other}" in arms:
            pair_of = (
                values(problem, arms[f"{arm}/{other}"], name, f"{problem.size:g}")
                for arm in ("matta", "plain")
            )
            under = str(gain(problem, name, *pair_of) or "–")
        rows.append([problem.title, NAMES[other], label(problem, name), *means, said, under])
    if not rows:
        return []
    header = [
        "task",
        "optimizer",
        "metric",
        "unshared, AdamW",
        "sharing",
        "optimizer alone",
        "both",
        "interaction",
        "",
        "over plain",
    ]
    return [
        "## Sharing and the optimizer, two by two",
        "",
        "Gains in % over MatTA without sharing, by AdamW. The interaction is what sharing and the optimizer together give "
        "beyond the sum of what each gives alone; the paper calls its own, with Shampoo, super-additive. Over plain: MatTA's "
        "gain over plain distillation where both have that optimizer.",
        "",
        *_table(header, rows),
    ]


def _peers(
    problems: Sequence[Problem], some: Mapping[str, Sequence[Arm]], found: Found
) -> list[str]:
    """MatTA against other tools at the same size."""
    rows, width = [], f"{PEER_WIDTH:g}"
    for problem in problems:
        arms, name = found.get(problem.name, {}), problem.metrics[0]
        end = "" if f"{problem.size:g}" == width else f"@{width}"
        matta = f"matta{end}"
        if matta not in arms or not any(
            arm.peer and arm.name in arms for arm in some[problem.name]
        ):
            continue
        ours = values(problem, arms[matta], name, width)
        beside = (matta, f"plain{end}", f"plain{end}+compute")
        for arm in some[problem.name]:
            if arm.name not in arms or not (arm.peer or arm.name in beside):
                continue
            records = arms[arm.name]
            own = values(problem, records, name, width)
            of = None if arm.name == matta else gain(problem, name, ours, own)
            rows.append(
                [
                    problem.title,
                    arm.label,
                    label(problem, name),
                    _shown(own),
                    str(of or "–"),
                    "" if of is None else verdict(of),
                    f"{_mean(records, 'seconds'):.1f}",
                    f"{_mean(records, 'steps'):.0f}",
                    str(len({r["seed"] for r in records})),
                ]
            )
    tools = sorted(
        {
            r["peer"]
            for arms in found.values()
            for records in arms.values()
            for r in records
            if "peer" in r
        }
    )
    said = [
        f"- {peer} on {problem.title}: {why}."
        for problem in problems
        for peer, why in peers.refused(problem.name).items()
    ]
    if not rows:
        return []
    header = [
        "task",
        "arm",
        "metric",
        "mean",
        "MatTA's gain over it, %",
        "MatTA is",
        "device-s",
        "steps",
        "seeds",
    ]
    return [
        "## Pruning tools at the same size",
        "",
        f"Each tool cuts the base to the parameters of width {width}, and the cut is distilled from the same Teacher: as many "
        f"steps as MatTA takes with that one Student, and as many matrix products. The tools, from PyPI: {', '.join(tools)} "
        "(ModelOpt by its fastnas). They do not cut all models:",
        "",
        *said,
        "",
        *_table(header, rows),
    ]


def _problem(
    problem: Problem, some: Sequence[Arm], arms: Mapping[str, Sequence[Record]]
) -> list[str]:
    if "plain" not in arms:
        return []
    size = f"{problem.size:g}"
    gains = {
        key: [_gain_over_plain(problem, name, key, arms) for name in problem.metrics]
        for key in arms
    }
    missing = [arm.label for arm in some if arm.name not in arms]
    firsts = {key: of[0] for key, of in gains.items() if of[0] is not None}
    corrected = dict(zip(firsts, intervals.holm([of.p for of in firsts.values()]), strict=True))
    rows = []
    for arm in some:
        records = arms.get(arm.name)
        if not records or size not in records[0]["widths"]:
            continue
        row = [arm.label]
        for k, name in enumerate(problem.metrics):
            shown = values(problem, records, name, size)
            of = gains[arm.name][k]
            row += [_shown(shown), str(of) if of else "–"]
        p = corrected.get(arm.name)
        row += [
            "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}",
            f"{_mean(records, 'seconds'):.1f}",
        ]
        seeds = len({record["seed"] for record in records})
        rows.append(
            [
                *row,
                f"{_mean(records, 'flops') / _mean(arms['plain'], 'flops'):.2f}",
                f"{_mean(records, 'steps'):.0f}",
                _rate(problem, records[0]["rate"]),
                str(seeds),
            ]
        )
    columns = [part for name in problem.metrics for part in (label(problem, name), "gain in %")]
    return [
        f"## {problem.title}",
        "",
        f"Regime: {problem.regime}. Width {size}, {problem.steps} steps of {problem.batch}.",
        "",
        *(
            [f"![Gains over plain distillation: {problem.title}](results/{problem.name}.svg)", ""]
            if firsts
            else []
        ),
        *_table(["arm", *columns, "p", "device-s", "FLOPs", "steps", "lr", "seeds"], rows),
        *([f"Not run yet: {'; '.join(missing)}.", ""] if missing else []),
    ]


def plot(problem: Problem, some: Sequence[Arm], arms: Mapping[str, Sequence[Record]]) -> str | None:
    """Gains over plain distillation with their intervals, one line for each arm, as SVG."""
    name, there = (
        problem.metrics[0],
        [arm for arm in some if arm.name in arms] if "plain" in arms else [],
    )
    found = [(arm.label, _gain_over_plain(problem, name, arm.name, arms)) for arm in there]
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
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="720" height="{height}" fill="#fff"/>',
        f'<text x="12" y="24" font-weight="bold">{escape(problem.title)}: {escape(label(problem, name))}, gain in %</text>',
        f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{top - 8}" y2="{height - 32}" stroke="#888"/>',
        f'<text x="{x(0):.1f}" y="{height - 14}" text-anchor="middle" fill="#555">0 (plain)</text>',
    ]
    for k, (said, of) in enumerate(rows):
        y = top + line * k + 6
        colour = "#1a7f37" if of.low > 0 else "#b42318" if of.high < 0 else "#555"
        out += [
            f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(said)}</text>',
            f'<line x1="{x(of.low):.1f}" x2="{x(of.high):.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>',
            f'<circle cx="{x(of.value):.1f}" cy="{y}" r="4" fill="{colour}"><title>{of}</title></circle>',
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
        out += _table([said, *(f"{p.title}: {label(p, p.metrics[0])}" for p in shown)], rows)
    path = folder / "recipe.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    atomic.atomic_write(path, f"{before}{MARKS[0]}\n\n" + "\n".join(out) + f"\n{MARKS[1]}{after}")


def _screened(
    problem: Problem, name: str, reference: str, arms: Mapping[str, Sequence[Record]]
) -> str:
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
        return ", ".join(_shown(at) for at in own)
    pairs = [paired(*both) for both in zip(own, theirs, strict=True)]
    each = np.mean([relative(problem, first, *both) for both, _ in pairs], axis=0)
    if not len(each):
        return "–"
    loose = any(loose for _, loose in pairs)
    if len(each) > 2:
        return f"{interval(each.tolist(), loose)}, {len(each)} seeds"
    return ", ".join(f"{e:+.1f}" for e in each) + (" †" if loose else "")
