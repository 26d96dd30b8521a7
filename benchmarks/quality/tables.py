"""The tables of docs/results.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from benchmarks.quality import peers
from benchmarks.quality.arms import NAMES, PEER_WIDTH, Arm
from benchmarks.quality.gains import (
    Arms,
    Record,
    Values,
    by_seed,
    gain,
    gain_over_plain,
    interval,
    label,
    paired,
    relative,
    seeds_of,
    values,
    verdict,
)
from benchmarks.quality.problem import Problem

Found = Mapping[str, Arms]  # by problem

# per cent, over plain distillation
GOALS = {"last_word_accuracy": 10.0, "top1": 8.0, "auc_loss": 8.0}


def shown(each: Values) -> str:
    """The mean over seeds."""
    value = float(np.mean(by_seed(each)))
    return f"{value:.1f}" if value >= 10 else f"{value:.4f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def mean_of(records: Sequence[Record], name: str) -> float:
    return float(np.mean([record[name] for record in records]))


def tally(verdicts: Iterable[str]) -> str:
    """How often each verdict was given."""
    counted = Counter(verdicts)
    return ", ".join(
        f"{counted.get(said, 0)} {said}" for said in ("better", "no difference shown", "worse")
    )


def versus(problem: Problem, arms: Arms, reference: str, arm: str) -> list[list[str]]:
    """A row for each metric: an arm beside its reference, where both have been run."""
    if reference not in arms or arm not in arms:
        return []
    rows = []
    for name in problem.metrics:
        theirs, ours = (
            values(problem, arms[each], name, f"{problem.size:g}") for each in (reference, arm)
        )
        of, (both, _) = gain(problem, name, ours, theirs), paired(theirs, ours)
        means = map(shown, both if both[0] else (theirs, ours))
        rows.append([problem.title, label(problem, name), *means, str(of or "–"), verdict(of)])
    return rows


def claims(problem: Problem, arms: Arms) -> list[list[str]]:
    """MatTA beside plain distillation, and whether the goal is met."""
    rows = versus(problem, arms, "plain", "matta")
    for name, row in zip(problem.metrics, rows, strict=bool(rows)):
        of, goal = gain_over_plain(problem, name, "matta", arms), GOALS.get(name)
        met = of is not None and goal is not None and of.value >= goal and of.low > 0
        row.append("" if goal is None else f"{goal:g} %: {'met' if met else 'missed'}")
    return rows


def tas(problem: Problem, arms: Arms) -> list[list[str]]:
    """MatTA's TA beside its one Student and a plain-distilled one, by the first metric."""
    if not {"plain", "matta"} <= set(arms):
        return []
    name, size = problem.metrics[0], f"{problem.size:g}"
    student, ta = (values(problem, arms["matta"], name, width) for width in (size, "TA"))
    others = (student, values(problem, arms["plain"], name, size))
    gains = [str(gain(problem, name, ta, other) or "–") for other in others]
    width = f"{problem.convert.get('expand', 2.0):g}"
    means = [shown(student), shown(ta)]
    return [[problem.title, label(problem, name), *means, width, *gains]]


def interaction(problems: Sequence[Problem], found: Found) -> list[str]:
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
        if seeds_of(base) < 2:
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
        means = (shown(base), *(str(effect) for effect in effects), str(of))
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
    header = ["task", "optimizer", "metric", "unshared, AdamW", "sharing", "optimizer alone"]
    header += ["both", "interaction", "", "over plain"]
    return [
        "### Sharing and the optimizer, two by two",
        "",
        "Gains in % over MatTA without sharing, by AdamW. The interaction is what sharing and the "
        "optimizer together give beyond the sum of what each gives alone; the paper calls its own, "
        "with Shampoo, super-additive. Over plain: MatTA's gain over plain distillation where both "
        "have that optimizer.",
        "",
        *table(header, rows),
    ]


def peers_beside(
    problems: Sequence[Problem], some: Mapping[str, Sequence[Arm]], found: Found
) -> list[str]:
    """MatTA against other tools at the same size."""
    rows, tools, said = [], set(), []
    for problem in problems:
        arms = found.get(problem.name, {})
        rows += _peer_rows(problem, some[problem.name], arms)
        tools |= {r["peer"] for records in arms.values() for r in records if "peer" in r}
        refused = peers.refused(problem.name)
        said += [f"- {peer} on {problem.title}: {why}." for peer, why in refused.items()]
    if not rows:
        return []
    header = ["task", "arm", "metric", "mean", "MatTA's gain over it, %", "MatTA is"]
    return [
        "### Pruning tools at the same size",
        "",
        f"Each tool cuts the base to the parameters of width {PEER_WIDTH:g}, and the cut is "
        "distilled from the same Teacher: as many steps as MatTA takes with that one Student, and "
        f"as many matrix products. The tools, from PyPI: {', '.join(sorted(tools))} (ModelOpt by "
        "its fastnas). They do not cut all models:",
        "",
        *said,
        "",
        *table([*header, "device-s", "steps", "seeds"], rows),
    ]


def _peer_rows(problem: Problem, some: Sequence[Arm], arms: Arms) -> list[list[str]]:
    """MatTA and what it is compared with; none where no other tool's arm has been run."""
    rows, width, name = [], f"{PEER_WIDTH:g}", problem.metrics[0]
    end = "" if f"{problem.size:g}" == width else f"@{width}"
    matta = f"matta{end}"
    there = [arm for arm in some if arm.name in arms]
    if matta not in arms or not any(arm.peer for arm in there):
        return []
    ours = values(problem, arms[matta], name, width)
    for arm in there:
        if not (arm.peer or arm.name in (matta, f"plain{end}", f"plain{end}+compute")):
            continue
        records = arms[arm.name]
        own = values(problem, records, name, width)
        of = None if arm.name == matta else gain(problem, name, ours, own)
        row = [problem.title, arm.label, label(problem, name), shown(own), str(of or "–")]
        row += ["" if of is None else verdict(of), f"{mean_of(records, 'seconds'):.1f}"]
        seeds = len({r["seed"] for r in records})
        rows.append([*row, f"{mean_of(records, 'steps'):.0f}", str(seeds)])
    return rows


def all_arms(
    problems: Sequence[Problem], some: Mapping[str, Sequence[Arm]], found: Found
) -> list[str]:
    """The gain of every arm over plain distillation on every problem, by its first metric."""
    shown_ = [problem for problem in problems if "plain" in found.get(problem.name, {})]
    labels = {arm.name: arm.label for own in some.values() for arm in own}
    rows = []
    for name, said in labels.items():
        each = []
        for problem in shown_:
            arms = found[problem.name]
            there = name != "plain" and arms.get(name)
            of = gain_over_plain(problem, problem.metrics[0], name, arms) if there else None
            each.append(str(of) if of else "–")
        if set(each) != {"–"}:
            rows.append([said, *each])
    if not rows:
        return []
    return [
        "### Every arm over plain distillation, in %",
        "",
        *table(["arm", *(problem.title for problem in shown_)], rows),
    ]
