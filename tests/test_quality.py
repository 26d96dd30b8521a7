"""The study's arithmetic and its page; and a whole small run of it, where there is data."""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from matta_adapters.mlp_ranker import Ranker
from scipy import stats
from sklearn.datasets import dump_svmlight_file

from benchmarks.quality import gains, page, study, tables, training
from benchmarks.quality.__main__ import RESULTS, chosen, of, results, tuned_for, tuning
from benchmarks.quality.arms import SHARE, Arm, variants
from benchmarks.quality.problem import QUICK_SHARE, Missing
from benchmarks.quality.problems import PROBLEMS
from benchmarks.quality.training import Run, spread
from matta_cli.models import plugins
from matta_cli.models.ta import TA
from matta_cli.nested import grow, sizes
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task

ROOT = Path(__file__).parents[1]
VIT, LM = PROBLEMS["vit"], PROBLEMS["lm"]


def record(arm: str, seed: int, value: float, seconds: float = 1.0) -> dict:
    width = arm.partition("@")[2] or "1"
    widths = {width: {"dev": {"top1": value}, "test": {"top1": value}}}
    if arm.startswith("family"):
        widths = {f"{w:g}": widths["1"] for w in VIT.widths}
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
    found["family"] = [record("family", s, 0.8, 3.0) for s in seeds]
    found["family-cheap"] = [record("family-cheap", s, 0.9 + s / 100, 2.0) for s in seeds]
    found |= {
        f"plain@{w:g}": [record(f"plain@{w:g}", s, 0.8, 2.0) for s in seeds] for w in (0.25, 0.5)
    }
    found["unshared"] = found["plain"]
    found |= {
        "unshared/shampoo": found["plain"],
        "matta/shampoo": [record("matta/soap", s, 0.86 + s / 90) for s in seeds],
    }
    text = page.text([VIT], {"vit": of(VIT, False)}, {"vit": found}, False)
    assert (
        "| whole | 3 | 10 | 3 | 5 | 0.60 |" in text and "| cheap | 3 | 10 | 2 | 5 | 0.40 |" in text
    )
    [row] = [
        line for line in text.splitlines() if "| 0.25 | top-1 error | 0.2000 | 0.2000 |" in line
    ]
    assert row.endswith("| +55.0 [+42.6, +67.4] | better |"), (
        "errors of 0.1, 0.09, 0.08 for 0.2: gains of 50, 55 and 60 %"
    )
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
    assert (
        "whole family: 0 better, 3 no difference shown, 0 worse; cheap family: 3 better, 0 no"
        in text
    )
    assert "super-additive |" in text and " † |" not in text
    drawn = page.plot(VIT, of(VIT, False), found)
    assert drawn.count("<circle") == 8 and "nan" not in drawn


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
    [row] = [
        line
        for line in text.splitlines()
        if line.startswith("| Teacher → Student (plain distillation)")
    ]
    assert row.endswith("| 3 |"), "seeds are counted once"


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


def test_new_units_are_spread_and_the_base_within_is_not():
    """As the search for the recipe tries it: the TA's function stays, and the base in it."""
    torch.manual_seed(0)
    adapter = plugins.adapter("vit")
    model = timm.create_model(
        "test_vit", img_size=16, num_classes=5, embed_dim=12, num_heads=3, depth=2
    ).eval()
    axes = sizes.nested_axes(adapter, model, ["mlp"])
    grown = grow.grow(adapter, model, axes, {axis.name: 2 * axis.size for axis in axes})
    ta = TA(adapter, grown, sizes.nested_axes(adapter, grown, ["mlp"]), sizes.full_sizes(axes), {})
    before, images = (
        {k: v.clone() for k, v in grown.state_dict().items()},
        torch.randn(2, 3, 16, 16),
    )
    spread(ta, 2.0)
    assert torch.allclose(grown(images), model(images), atol=1e-5)
    for name, tensor in grown.state_dict().items():
        old, base = before[name], len(tensor) // 2
        if ".mlp.fc1." in name:
            assert torch.equal(tensor[:base], old[:base]) and torch.equal(
                tensor[base:], 2 * old[base:]
            )
        else:
            assert torch.equal(tensor, old)


def test_the_new_units_learn_at_a_rate_of_their_own():
    """A step moves them by the factor, where axes overlap by no more, and all others as ever."""
    torch.manual_seed(0)
    adapter = plugins.adapter("mlp_ranker")
    layers = [
        {"layer": "Linear", "out": 8},
        {"layer": "ReLU"},
        {"layer": "Linear", "out": 8},
        {"layer": "ReLU"},
    ]
    base = Ranker([], 5, [*layers, {"layer": "Linear", "out": 1}])
    axes = sizes.nested_axes(adapter, base)
    grown = grow.grow(adapter, base, axes, {axis.name: 2 * axis.size for axis in axes})
    dense, label = torch.randn(32, 5), torch.randint(2, (32,)).float()
    recipe = Recipe()
    (
        recipe.distill.steps,
        recipe.distill.batch_size,
        recipe.distill.teacher_mix,
        recipe.distill.widths,
    ) = 2, 16, 0.0, [1.0]
    task = tasks_task.task("ranking", recipe)

    class Split:
        def __len__(self):
            return len(label)

        def batch(self, rows):
            return {"dense": dense[list(rows)], "label": label[list(rows)]}

    def moved(rate: float) -> dict[str, torch.Tensor]:
        ta = TA(
            adapter,
            copy.deepcopy(grown),
            sizes.nested_axes(adapter, grown),
            sizes.full_sizes(axes),
            {},
        )
        run = Run(recipe, task, ta, None, SimpleNamespace(train=Split()), rate=rate)
        run.recipe.distill.steps = 1
        run()
        return {
            name: tensor.cpu() - grown.state_dict()[name]
            for name, tensor in ta.model.state_dict().items()
        }

    plain, half = moved(0.0), moved(0.5)
    for name, step in plain.items():
        new = torch.zeros_like(step, dtype=torch.bool)
        if name != "mlp.4.bias":
            new[..., 8:] = name != "mlp.0.weight"
            if name != "mlp.4.weight":
                new[8:] = True
        assert torch.allclose(half[name], torch.where(new, step / 2, step), atol=1e-7), name
    assert plain["mlp.4.weight"][:, 8:].abs().sum() > 0


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


def test_the_search_shows_gains_over_its_own_reference(tmp_path):
    """Variants of one Student against ``matta``, those of the family against ``family``, as the
    mean over its widths.
    """
    tried = {"vit": variants(1.0, "vit")}
    found = {
        name: [record("family" if wide else "matta", 1000, top1)]
        for name, top1, wide in (
            ("matta", 0.80, False),
            ("SOAP", 0.84, False),
            ("family", 0.75, True),
            ("two Students a step", 0.70, True),
        )
    }
    (tmp_path / "recipe.md").write_text(f"before\n{page.MARKS[0]}\nold\n{page.MARKS[1]}\nafter\n")
    page.write_recipe(tmp_path, [VIT], tried, {"vit": found})
    said = (tmp_path / "recipe.md").read_text()
    assert said.startswith("before\n") and said.endswith("after\n") and "old" not in said
    assert "| matta | 0.2000 |" in said and "| SOAP | +20.0 |" in said
    assert (
        "| family | 0.2500, 0.2500, 0.2500 |" in said and "| two Students a step | -20.0 |" in said
    )
    assert "| Muon | – |" in said
    more = [record("matta", 1000 + k, 0.80 + k / 100) for k in range(3)]
    twice = [record("matta", 1000 + k, 0.82 + k / 50) for k in range(3)]
    page.write_recipe(
        tmp_path, [VIT], tried, {"vit": {"matta": more, "SOAP": twice, "Muon": twice[:2]}}
    )
    said = (tmp_path / "recipe.md").read_text()
    each = stats.ttest_1samp([2 / 0.19, 3 / 0.19, 4 / 0.19], 0).confidence_interval(0.95)
    assert f"| SOAP | +15.8 [{each.low:+.1f}, {each.high:+.1f}], 3 seeds |" in said
    assert f"| Muon | {2 / 0.195:+.1f}, {3 / 0.195:+.1f} |" in said


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
    assert page.text(every, some, found, False, tuned_for(every, store)).rstrip() + "\n" == (
        ROOT / "docs" / "results.md"
    ).read_text(encoding="utf-8")
    for problem in every:
        if (drawn := page.plot(problem, some[problem.name], found[problem.name])) is not None:
            assert drawn == (ROOT / "docs" / "results" / f"{problem.name}.svg").read_text(
                encoding="utf-8"
            )


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
    assert "## Ranker on 160 queries" in done.stdout and "| MatTA, one Student |" in done.stdout
    assert "ranker is left out: there is no folder 'ml-100k'" in done.stderr
    [cheap] = [
        line
        for line in done.stdout.splitlines()
        if line.startswith("| Ranker on 160 queries | cheap |")
    ]
    assert float(cheap.split("|")[-2]) == pytest.approx(SHARE, abs=0.03), (
        "of the matrix products of three runs"
    )
