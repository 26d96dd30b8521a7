"""The study's arithmetic and its page; and a whole small run of it, where there is data."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import dump_svmlight_file

from benchmarks.quality import gains, page, study, tables, training
from benchmarks.quality.__main__ import RESULTS, chosen, of, results, tuned_for, tuning
from benchmarks.quality.arms import Arm
from benchmarks.quality.problem import QUICK_SHARE, Missing
from benchmarks.quality.problems import PROBLEMS

ROOT = Path(__file__).parents[1]
VIT, LM = PROBLEMS["vit"], PROBLEMS["lm"]


def record(arm: str, seed: int, value: float, seconds: float = 1.0) -> dict:
    width = arm.partition("@")[2] or "1"
    widths = {width: {"dev": {"top1": value}, "test": {"top1": value}}}
    if arm == "matta":
        widths["TA"] = {split: {"top1": value + 0.01} for split in ("dev", "test")}
    return {
        "arm": arm,
        "seed": seed,
        "seconds": seconds,
        "flops": seconds,
        "steps": 10,
        "rate": 1e-3,
        "device": "cpu",
        "widths": widths,
    }


def test_gain_is_relative_paired_and_positive_where_it_is_better():
    plain, ours = [0.80, 0.82, 0.78], [0.82, 0.83, 0.81]
    errors = [{(s, ""): 1 - v for s, v in enumerate(values)} for values in (ours, plain)]
    found = gains.gain(VIT, "top1", *errors)
    # errors of plain: 0.2 in the mean
    each = [100 * (a - b) / 0.2 for a, b in zip(ours, plain, strict=True)]
    assert found.value == pytest.approx(sum(each) / 3) and found.value > 0
    expected = stats.ttest_1samp(each, 0)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))

    def values(*of: float, seeds=(0, 1)) -> dict[tuple[int, str], float]:
        return {(seed, "base"): value for seed, value in zip(seeds, of, strict=True)}

    assert gains.gain(
        LM, "perplexity", values(40.0, 41.0), values(50.0, 50.0)
    ).value == pytest.approx(19.0)
    assert gains.gain(
        LM, "next_token_accuracy", values(0.3, 0.3), values(0.2, 0.2)
    ).value == pytest.approx(50.0)
    few = gains.gain(LM, "last_word_accuracy", values(0.002, 0.004), values(0.0, 0.002))
    assert few.value == pytest.approx(200), "a seed without any right answer counts like the others"
    one = gains.gain(VIT, "top1", values(0.1, 0.1, seeds=(0, 5)), values(0.2, 0.2, seeds=(0, 6)))
    assert one is None, "one common seed has no interval"


def test_the_page_calls_a_gain_by_its_interval_only():
    seeds = range(3)
    found = {"plain": [record("plain", s, 0.80 + s / 100) for s in seeds]}
    for arm, by in (("matta", 0.02), ("two-stage", -0.02)):
        found[arm] = [record(arm, s, 0.80 + s / 100 + by + s / 1000) for s in seeds]
    found["base"] = [record("base", s, 0.80 + s / 100 + 0.05 * (-1) ** s) for s in seeds]

    def word(arm: str) -> str:
        return gains.verdict(
            gains.gain(
                VIT, "top1", *(gains.values(VIT, found[a], "top1", "1") for a in (arm, "plain"))
            )
        )

    words = {arm: word(arm) for arm in ("matta", "two-stage", "base")}
    assert words == {"matta": "better", "two-stage": "worse", "base": "no difference shown"}
    found["unshared"] = found["plain"]
    found |= {
        "unshared/shampoo": found["plain"],
        "matta/shampoo": [record("matta/soap", s, 0.86 + s / 90) for s in seeds],
    }
    text = page.text([VIT], {"vit": of(VIT, False)}, {"vit": found}, False)
    [row] = [
        line
        for line in text.splitlines()
        if line.startswith(f"| {VIT.title} | top-1 error | 0.1690 | 0.1590 | 2 |")
    ]
    # the TA is better by 0.01; errors of 0.169 and 0.19 in the mean
    over_student, over_plain = row.split(" | ")[-2:]
    assert over_student.startswith("+5.9 [+5.9,") and over_plain.startswith(
        f"{100 * 0.031 / 0.19:+.1f} ["
    )
    assert "By the first metric of each task: 1 better, 0 no difference shown, 0 worse." in text
    assert "super-additive |" in text and " † |" not in text
    [row] = [line for line in text.splitlines() if line.startswith("| two-stage TA")]
    assert row.endswith(f"| {gains.gain_over_plain(VIT, 'top1', 'two-stage', found)} |")


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_says_what_its_metrics_are(name):
    """An adapter of several tasks has none until it knows the model's head."""
    problem = PROBLEMS[name]
    for metric in problem.metrics:
        assert gains.label(problem, metric) and gains.higher(problem, metric) in (True, False)


def test_pairs_share_the_base_where_they_can():
    """Of the same seed and base; where an arm has no such pairs, of the same seed, and marked."""
    here = [{**record("plain", s, 0.8), "base": f"here {s}"} for s in range(2)]
    plain = [*(record("plain", s, 0.6) for s in range(3)), *here]
    matta = [{**record("matta", s, 0.9), "base": f"here {s}"} for s in range(2)]
    elsewhere = [{**record("two-stage", s, 0.9), "base": f"elsewhere {s}"} for s in range(2)]
    exact, loose = (
        gains.gain(VIT, "top1", *(gains.values(VIT, r, "top1", "1") for r in (ours, plain)))
        for ours in (matta, elsewhere)
    )
    assert exact.value == pytest.approx(50) and not exact.loose and "†" not in str(exact)
    assert loose.loose and str(loose).endswith("] †")
    text = page.text(
        [VIT],
        {"vit": of(VIT, False)},
        {"vit": {"plain": plain, "matta": matta, "two-stage": elsewhere}},
        False,
    )
    assert "Up to 3 paired seeds" in text, "seeds are counted once"


def test_a_seed_run_on_two_machines_is_one_draw():
    """Its pairs are averaged: as many rows again of the same seeds must not narrow the interval."""
    plain, matta = (
        [record(arm, s, value + s / 50) for s in range(3)]
        for arm, value in (("plain", 0.6), ("matta", 0.7))
    )
    again = [[{**r, "base": "made anew"} for r in records] for records in (plain, matta)]

    def gain(ours: list[dict], theirs: list[dict]) -> gains.Gain:
        return gains.gain(
            VIT, "top1", *(gains.values(VIT, records, "top1", "1") for records in (ours, theirs))
        )

    assert gain(matta + again[1], plain + again[0]) == pytest.approx(gain(matta, plain))
    assert gain([matta[0], again[1][0]], [plain[0], again[0][0]]) is None, (
        "one seed has no interval"
    )


def test_a_cell_is_another_one_when_anything_that_counts_is_another():
    arm = Arm("matta", "MatTA", {"widths": [1.0]})
    cell = study.Cell("vit", arm, 0, 1e-3)
    others = [
        study.Cell("lm", arm, 0, 1e-3),
        study.Cell("vit", arm, 1, 1e-3),
        study.Cell("vit", arm, 0, 2e-3),
        study.Cell("vit", arm, 0, 1e-3, quick=True),
        study.Cell("vit", replace(arm, distill={"widths": [0.5]}), 0, 1e-3),
        study.Cell("vit", replace(arm, optimizer="soap"), 0, 1e-3),
    ]
    # made by the same code
    others += [study.Cell(name, arm, 0, 1e-3) for name in ("ranker", "ranker_time")]
    assert len({c.key() for c in (cell, *others)}) == 9
    assert study.Cell("vit", replace(arm, label="another word"), 0, 1e-3).key() == cell.key()


def test_learning_rates_are_chosen_on_dev_by_every_arm_alike(tmp_path):
    store = study.Store(tmp_path / "s.jsonl")
    arm = next(a for a in of(VIT, False) if a.name == "plain")
    more = next(a for a in of(VIT, False) if a.name == "plain+compute")
    assert chosen(VIT, arm, store) is None and results(VIT, arm, range(2), store, False) == []
    for cell, dev in zip(tuning(VIT, arm), (0.7, 0.9, 0.8), strict=True):
        made = record("plain", cell.seed, dev)
        made["widths"]["1"]["test"]["top1"] = 1 - dev  # of no account
        store.add({"key": cell.key(), **made})
    assert study.Store(tmp_path / "s.jsonl").records == store.records
    assert store.seeds() == range(0), "seeds that settings are chosen on are no results"
    cell = study.Cell("vit", arm, 6, VIT.rates[1])
    for value, base in ((0.5, "here"), (0.4, "made anew"), (0.6, "here")):
        store.add({"key": cell.key(), **record("plain", 6, value), "base": base})
    assert store.seeds() == range(7)
    for kept in (store, study.Store(tmp_path / "s.jsonl")):
        top1 = {r["base"]: r["widths"]["1"]["test"]["top1"] for r in kept.of(cell)}
        assert top1 == {"here": 0.6, "made anew": 0.4}, "the last of each base"
    assert chosen(VIT, arm, store) == chosen(VIT, more, store) == VIT.rates[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_is_too_large_for_a_cpu_is_left_out_there():
    with pytest.raises(Missing, match="too large for a CPU"):
        PROBLEMS["lm_large"].data([Path("/")])


def test_models_from_scratch_take_a_share_of_their_steps_in_the_quick_run(tmp_path):
    told = []

    def make(folder, recipe, data, seed):
        told.append((folder.name.endswith("-quick"), recipe.distill.steps, training._SHARE.get()))

    problem = replace(VIT, make=make)
    for quick in (False, True, False):
        problem.recipe(tmp_path, {}, 0, quick=quick)
    assert told == [(False, 400, 1.0), (True, 50, QUICK_SHARE), (False, 400, 1.0)]


def test_two_arms_side_by_side_are_means_over_the_seeds_of_both():
    """Else a gain and the two means beside it would contradict each other."""
    plain = [record("plain", seed, value) for seed, value in enumerate((0.80, 0.70, 0.30))]
    [row] = tables.claims(
        VIT, {"plain": plain, "matta": [record("matta", seed, 0.85) for seed in range(2)]}
    )
    assert row[2:4] == ["0.2500", "0.1500"]


def test_records_are_found_whatever_python_wrote_them():
    """Their keys have a digest of code, and what ``ast`` says of code differs between Pythons."""
    store = study.Store(RESULTS)
    missing = {
        p.name
        for p in PROBLEMS.values()
        for cell in tuning(p, of(p, False)[0])
        if cell.key() not in store
    }
    assert not missing


@pytest.mark.slow
def test_the_page_says_what_the_records_say():
    """Nothing in docs/results.md is typed by hand, and it is up to date."""
    store, every = study.Store(RESULTS), list(PROBLEMS.values())
    some = {p.name: of(p, False) for p in every}
    found = {
        p.name: store.found(
            {a.name: results(p, a, store.seeds(), store, False) for a in some[p.name]}
        )
        for p in every
    }
    said = page.text(every, some, found, False, tuned_for(every, store)).rstrip() + "\n"
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8").endswith(said)


@pytest.mark.slow
def test_quick_study(tmp_path):
    """From data in its own format to the page, in the files of LightGBM's ranking example; what
    they hold is made up.
    """
    random = np.random.default_rng(0)
    data = tmp_path / "lambdarank"
    data.mkdir()
    for part, queries in (("train", 170), ("test", 20)):
        rows = random.normal(size=(8 * queries, 12))
        grades = (rows[:, 0] + rows[:, 1] * rows[:, 2]).clip(0, 4).astype(int)
        dump_svmlight_file(rows, grades, str(data / f"rank.{part}"))
        (data / f"rank.{part}.query").write_text("8\n" * queries)
    command = [
        sys.executable,
        "-m",
        "benchmarks.quality",
        "--quick",
        "--task",
        "ranker",
        "--data",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*command, "--cache", str(tmp_path / "cache")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "| Ranker on 160 queries | NDCG@10 |" in done.stdout
    assert "ranker is left out: there is no folder 'ml-100k'" in done.stderr
