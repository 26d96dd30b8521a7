"""The tables of docs/results.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from benchmarks.quality import peers
from benchmarks.quality.arms import NAMES, PEER_WIDTH, SHARE, Arm
from benchmarks.quality.gains import (
    Arms,
    Record,
    Values,
    by_seed,
    gain,
    gain_over_plain,
    interval,
    label,
    pair,
    paired,
    relative,
    seeds_of,
    values,
    verdict,
)
from benchmarks.quality.problem import Problem
from matta_cli.measure import intervals

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


def rate_of(problem: Problem, rate: float) -> str:
    """A learning rate, marked where none beyond it was tried."""
    return f"{rate:g}{'*' if rate in (min(problem.rates), max(problem.rates)) else ''}"


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


_FAMILIES = ("family", "family-cheap")


def family(problems: Sequence[Problem], found: Found) -> list[str]:
    """One nested run against separate runs; and one that may cost no more than a part of them."""
    rows, costs = [], []
    for problem in problems:
        arms, alone = found.get(problem.name, {}), {}
        for width in problem.widths:
            name = "plain" if width == problem.size else f"plain@{width:g}"
            alone[width] = arms.get(name, [])
        families = [arm for arm in _FAMILIES if arm in arms]
        if families and all(alone.values()):
            rows += _family_rows(problem, arms, alone)
            costs += [_family_cost(problem, arm, arms[arm], alone) for arm in families]
    if not rows:
        return []
    each = [part for kind in ("whole", "cheap") for part in (kind, "gain in %", "verdict")]
    of_costs = ["task", "family", "sizes", "steps", "device-s", "alone, s"]
    of_costs += [f"ratio (goal {SHARE:g})", "of FLOPs"]
    whole, cheap = tally(row[6] for row in rows), tally(row[9] for row in rows)
    return [
        "## The family: one nested run, or one distillation for each size?",
        "",
        "The whole family takes the steps of a run alone, with all widths and a TA in each; it "
        "also yields that TA. The cheap family takes one width a step, no TA, and so many steps "
        f"that its matrix products are {SHARE:g} of those of all runs alone; what is marked – in "
        "its seconds was run on another machine.",
        "",
        *table(["task", "width", "metric", "alone", *each], rows),
        f"Of the widths, whole family: {whole}; cheap family: {cheap}.",
        "",
        *table(of_costs, costs),
    ]


def _family_rows(
    problem: Problem, arms: Arms, alone: Mapping[float, Sequence[Record]]
) -> list[list[str]]:
    """A row for each width: its separate run, and both families."""
    rows, name = [], problem.metrics[0]
    for width, records in alone.items():
        theirs = values(problem, records, name, f"{width:g}")
        row = [problem.title, f"{width:g}", label(problem, name), shown(theirs)]
        for arm in _FAMILIES:
            ours = values(problem, arms[arm], name, f"{width:g}") if arm in arms else {}
            of = gain(problem, name, ours, theirs)
            row += [shown(ours), f"{of}", verdict(of)] if of else ["–", "–", "–"]
        rows.append(row)
    return rows


def _family_cost(
    problem: Problem, arm: str, records: Sequence[Record], alone: Mapping[float, Sequence[Record]]
) -> list[str]:
    """What a family took, over what its members took one by one."""
    every = (records, *alone.values())
    flops = mean_of(records, "flops") / sum(mean_of(r, "flops") for r in alone.values())
    # seconds of two machines have no ratio
    beside = set.intersection(*({pair(r) for r in own} for own in every))
    seconds = ["–"] * 3
    if beside:
        means = [mean_of([r for r in own if pair(r) in beside], "seconds") for own in every]
        together, apart = means[0], sum(means[1:])
        seconds = [f"{together:.0f}", f"{apart:.0f}", f"{together / apart:.2f}"]
    kind, steps = "whole" if arm == "family" else "cheap", f"{mean_of(records, 'steps'):.0f}"
    return [problem.title, kind, str(len(alone)), steps, *seconds, f"{flops:.2f}"]


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
        "## Sharing and the optimizer, two by two",
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
        "## Pruning tools at the same size",
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


def problem_section(problem: Problem, some: Sequence[Arm], arms: Arms) -> list[str]:
    """All arms of one problem."""
    if "plain" not in arms:
        return []
    size, gains = f"{problem.size:g}", {}
    for key in arms:
        gains[key] = [gain_over_plain(problem, name, key, arms) for name in problem.metrics]
    missing = [arm.label for arm in some if arm.name not in arms]
    firsts = {key: of[0] for key, of in gains.items() if of[0] is not None}
    corrected = dict(zip(firsts, intervals.holm([of.p for of in firsts.values()]), strict=True))
    rows = []
    for arm in some:
        records = arms.get(arm.name)
        if not records or size not in records[0]["widths"]:
            continue
        row = [arm.label]
        for name, of in zip(problem.metrics, gains[arm.name], strict=True):
            row += [shown(values(problem, records, name, size)), str(of) if of else "–"]
        p = corrected.get(arm.name)
        row.append("–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}")
        flops = mean_of(records, "flops") / mean_of(arms["plain"], "flops")
        row += [f"{mean_of(records, 'seconds'):.1f}", f"{flops:.2f}"]
        row += [f"{mean_of(records, 'steps'):.0f}", rate_of(problem, records[0]["rate"])]
        rows.append([*row, str(len({record["seed"] for record in records}))])
    columns = [part for name in problem.metrics for part in (label(problem, name), "gain in %")]
    picture = f"![Gains over plain distillation: {problem.title}](results/{problem.name}.svg)"
    return [
        f"## {problem.title}",
        "",
        f"Regime: {problem.regime}. Width {size}, {problem.steps} steps of {problem.batch}.",
        "",
        *([picture, ""] if firsts else []),
        *table(["arm", *columns, "p", "device-s", "FLOPs", "steps", "lr", "seeds"], rows),
        *([f"Not run yet: {'; '.join(missing)}.", ""] if missing else []),
    ]
