"""Budgets: what sizes cost against built models, choices that keep to a budget, and the search that
makes them.
"""

from __future__ import annotations

import copy
import itertools
import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kills import leftovers
from matta_adapters.mlp_ranker import MLPRanker, Ranker
from test_adapters import gpt2, layer, made, ranker, vit

from matta_cli.adapter import Source
from matta_cli.conversion.convert import convert
from matta_cli.data.split import halves
from matta_cli.errors import Interrupted, MattaError
from matta_cli.measure import cost
from matta_cli.measure.counts import Counts
from matta_cli.measure.score import reported
from matta_cli.models import plugins, save
from matta_cli.models.folders import load_ta
from matta_cli.models.ta import TA
from matta_cli.nested import grow
from matta_cli.nested.sizes import depth, full_sizes, grown_sizes, kind, nested_axes
from matta_cli.progress import quiet
from matta_cli.report.numbers import percent
from matta_cli.search.front import unbeaten
from matta_cli.search.run import search
from matta_cli.search.scores import Scores
from matta_cli.search.search import Search
from matta_cli.search.space import SLOPE, Space
from matta_cli.settings.budget import LIMITS, NEAR, Budget, parse
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task
from matta_cli.training.run import distill

WIDTHS = [0.25, 0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("parameters", "60M", 60e6),
        ("parameters", "1.5b", 1.5e9),
        ("parameters", "250", 250.0),
        ("latency", "5ms", 5e-3),
        ("latency", ".2 s", 0.2),
        ("prefill", "100ms", 0.1),
        ("latency", "80µs", 80e-6),
        ("bytes", "200MB", 200e6),
        ("bytes", "1.5GiB", 1.5 * 2**30),
        ("macs", "3G", 3e9),
    ],
)
def test_amounts(name, text, value):
    assert LIMITS[name].amount(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "text"),
    [("latency", "5"), ("bytes", "60M"), ("parameters", "5ms"), ("macs", "0"), ("macs", "-1G")],
)
def test_what_is_no_amount_is_refused(name, text):
    with pytest.raises(MattaError, match="write it as"):
        LIMITS[name].amount(text)


def test_the_ith_of_each_flag_makes_the_ith_budget():
    found = parse(
        {"parameters": ["10M", "20M"], "latency": ["5ms"], "bytes": [], "macs": ["1G", "2G"]}
    )
    assert [budget.name for budget in found] == [
        "params-10M-latency-5ms-macs-1G",
        "params-20M-latency-5ms-macs-2G",
    ]
    assert [dict(budget.limits) for budget in found][1] == {
        "parameters": 20e6,
        "latency": 5e-3,
        "macs": 2e9,
    }
    assert parse({"parameters": [], "latency": [], "bytes": [], "macs": []}) == []
    with pytest.raises(MattaError, match="2 times and --target-params 3 times"):
        parse({"parameters": ["1M", "2M", "3M"], "macs": ["1G", "2G"]})
    with pytest.raises(MattaError, match="given twice"):
        parse({"parameters": ["1M", "1M"]})


def test_a_budget_may_be_a_share_of_the_base():
    (found,) = parse({"parameters": ["50%"], "bytes": ["12 %"], "macs": ["1G"]})
    assert found.name == "params-50pct-memory-12pct-macs-1G"
    assert found.typed == "--target-params 50% --target-memory 12% --target-macs 1G"
    assert set(found.names) == {"parameters", "bytes", "macs"}
    amounts = found.of({"parameters": 60.0, "bytes": 300.0})
    assert dict(amounts.limits) == {"parameters": 30.0, "bytes": 36.0, "macs": 1e9}
    with pytest.raises(MattaError, match=r"--target-latency 50% is not possible: say it in time"):
        parse({"latency": ["50%"]})
    with pytest.raises(MattaError, match="above 0 and below 100 %"):
        parse({"parameters": ["100%"]})


def held(name: str, *kinds: str) -> tuple[TA, object]:
    """A model of the adapters' suite with its axes (of these kinds, or all), as a TA that did not
    grow.
    """
    adapter, model, _ = made(name)
    adapter.spec = ""
    wanted = kinds or tuple(dict.fromkeys(kind(axis.name) for axis in adapter.axes(model)))
    axes = nested_axes(adapter, model, wanted)
    return TA(adapter, model, axes, full_sizes(axes), {}), tasks_task.task(adapter.task, Recipe())


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "gpt2-untied",
        "llama-qwen3",
        "vit-token",
        "vit-attention-pool",
        "vit-norms",
        "bert",
        "mlp_ranker-batchnorm",
        "mlp_ranker-linear",
    ],
)
def test_costs_are_those_of_the_built_model(name, tmp_path):
    """All kinds of axes at once, at random sizes: parameters and MACs exactly, bytes a little more
    than the file's.
    """
    ta, task = held(name)
    example = task.example(ta.model)
    costs = Counts(task, ta, example)
    assert costs.exact, "MACs fell back to running each Student"
    draw = random.Random(7)
    for turn in range(4):
        sizes = {axis.name: draw.randrange(axis.step, axis.size + 1, axis.step) for axis in ta.axes}
        student = ta.student(sizes).dense()
        assert costs.parameters(sizes) == sum(p.numel() for p in student.parameters())
        assert costs.macs(sizes) == cost.macs(task, student, cost.repeated(example, 1))
        folder = tmp_path / str(turn)
        folder.mkdir()
        save.save_model(ta.adapter, student, folder)
        size = cost.weight_bytes(folder)
        tensors, digits = len(student.state_dict()), len(str(size))
        assert size <= costs.bytes(sizes) <= size + 8 + 2 * digits * tensors


def test_macs_that_are_no_product_are_counted():
    """A kernel that is not a matrix product we know: the slow way gives the same numbers."""
    ta, task = held("gpt2")
    costs = Counts(task, ta, task.example(ta.model))
    sizes = {axis.name: axis.step for axis in ta.axes}
    fast = costs.macs(sizes)
    costs._macs = None
    assert not costs.exact and costs.macs(sizes) == fast


def grown(name: str, model: torch.nn.Module, *kinds: str) -> tuple[TA, Counts]:
    """A model grown to width 2.0 as convert does it."""
    adapter = plugins.adapter(name)
    if name == "vit":
        model = adapter.load(Source(name, module=model))
    axes = nested_axes(adapter, model, kinds)
    sizes = {a.name: 2 * a.size if grow.growable(model, a) else a.size for a in axes}
    base = full_sizes(axes)
    large = grow.grow(adapter, model, axes, sizes)
    layers = depth(axes)
    if layers is not None:
        base = grown_sizes(axes, base, sizes[layers.name])
    ta = TA(adapter, large, nested_axes(adapter, large, kinds), base, {"multiple": 8})
    task = tasks_task.task(adapter.task, Recipe())
    return ta, Counts(task, ta, task.example(large))


CASES = {
    "gpt2": lambda: grown("gpt2", gpt2(n_layer=4, n_embd=48, n_head=3)),
    "gpt2-all": lambda: grown(
        "gpt2", gpt2(n_layer=4, n_embd=48, n_head=3), "mlp", "heads", "hidden", "depth"
    ),
    "gpt2-deep": lambda: grown("gpt2", gpt2(n_layer=12, n_embd=48, n_head=3)),
    "vit": lambda: grown("vit", vit(depth=4)),
    "mlp_ranker": lambda: grown(
        "mlp_ranker",
        ranker([(11, 8), (7, 8)], 9, layer(48, "BatchNorm1d", "ReLU"), layer(32, "ReLU")),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_ten_random_budgets(case, tmp_path):
    """For each cost, and for two at once: the built Student is never over a budget, and as large as
    trained sizes let it be: of many layers within 5 % of it.
    """
    ta, costs = CASES[case]()
    space = Space(ta, WIDTHS)
    low, high = costs(space.smallest()), costs(ta.sizes(2.0))
    draw = random.Random(3)
    for turn in range(10):
        names = [["parameters"], ["bytes"], ["macs"], ["parameters", "macs"]][turn % 4]
        share = draw.uniform(0.02, 0.98)
        budget = Budget("b", tuple((n, low[n] * (high[n] / low[n]) ** share) for n in names))
        ahead = (
            {name: draw.uniform(0, SLOPE) for name in space.free()} if turn % 2 else space.rule(0.0)
        )

        def share(sizes, budget=budget, names=names):
            return max(budget.used(costs(sizes, names)).values())

        sizes = space.decode(ahead, share)
        student = ta.student(sizes).dense()
        folder = tmp_path / str(turn)
        folder.mkdir()
        save.save_model(ta.adapter, student, folder)
        measured = {
            "parameters": cost.parameters(student),
            "bytes": cost.weight_bytes(folder),
            "macs": cost.macs(costs.task, student, costs.example),
        }
        used = max(budget.used(measured).values())
        assert used <= 1, (budget, used)
        assert all(sizes[name] in menu for name, menu in space.menus.items())
        larger = [
            sizes | {name: menu[menu.index(sizes[name]) + 1]}
            for name, menu in space.menus.items()
            if sizes[name] < menu[-1]
        ]
        assert used >= 1 - NEAR or (case != "gpt2-deep" and all(share(s) > 1 for s in larger))


def test_the_rule_is_matformers():
    """Widths that never fall with depth, of two neighbouring sizes at most, which were trained."""
    ta, costs = CASES["gpt2"]()
    space = Space(ta, WIDTHS)
    low, high = costs.parameters(space.smallest()), costs.parameters(ta.sizes(2.0))
    seen = set()
    for limit in np.linspace(low, high, 40):
        sizes = list(
            space.decode(
                space.rule(0.0), lambda s, limit=limit: costs.parameters(s) / limit
            ).values()
        )
        menu = [48, 96, 192, 384]
        levels = [menu.index(size) for size in sizes]
        assert levels == sorted(levels) and levels[-1] - levels[0] <= 1
        seen.add(tuple(levels))
    assert len(seen) == 13, "each of the four layers goes up three times"
    assert space.decode(space.rule(0.0), lambda s: 1.01) is None


def test_stock_only_gives_what_transformers_loads():
    ta, costs = CASES["gpt2"]()
    space = Space(ta, WIDTHS)
    limit = 1.3 * costs.parameters(ta.sizes(0.5))
    found = space.by_kind(lambda s: costs.parameters(s) / limit, lambda s: ta.student(s).stock)
    assert found and all(ta.student(sizes).stock for sizes in found)
    shares = [costs.parameters(sizes) / limit for sizes in found]
    assert shares == sorted(shares, reverse=True) and shares[0] <= 1
    assert found[0] == ta.sizes(0.5), "the next width below the budget"
    mixed = {**ta.sizes(0.5), "mlp.0": 48}
    assert not ta.student(mixed).stock


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Recipe, Path]:
    """A ranker, distilled for a few steps."""
    folder = tmp_path_factory.mktemp("ranker")
    g = torch.Generator().manual_seed(0)
    rows = ["a,x,y,label"]
    for _ in range(900):
        a, x, y = int(torch.randint(5, (1,), generator=g)), *torch.randn(2, generator=g).tolist()
        rows.append(f"{a},{x:.4f},{y:.4f},{int(x + a / 2 > 1)}")
    (folder / "rows.csv").write_text("\n".join(rows) + "\n")
    recipe = Recipe()
    for seed, role, width in ((0, "base", 16), (1, "teacher", 32)):
        torch.manual_seed(seed)
        (folder / role).mkdir()
        inner = [
            *layer(width, "BatchNorm1d", "ReLU"),
            *layer(width, "ReLU"),
            {"layer": "Linear", "out": 1},
        ]
        MLPRanker().save(Ranker([(5, 8)], 2, inner).eval(), folder / role)
    recipe.convert.source, recipe.distill.teacher = str(folder / "base"), str(folder / "teacher")
    recipe.convert.expand = 2.0
    recipe.data.train, recipe.data.categorical, recipe.data.dense = (
        str(folder / "rows.csv"),
        ["a"],
        ["x", "y"],
    )
    recipe.distill.steps, recipe.distill.allow_weak_teacher, recipe.distill.device = 20, True, "cpu"
    recipe.search.trials, recipe.export.bootstrap = 6, 20
    convert(recipe, folder / "out")
    distill(recipe, folder / "out")
    return recipe, folder / "out"


def start_over(out: Path) -> None:
    for path in (out / "search").glob("*"):
        path.unlink()


def budgets(*limits: float) -> list[Budget]:
    return parse({"parameters": [str(limit) for limit in limits]})


def test_search_keeps_to_its_budgets_and_starts_from_its_scores(trained):
    recipe, out = trained
    report, chosen = search(recipe, out, budgets(500, 1500))
    result, ta = report.to_json(), load_ta(out)
    for one, choice, limit in zip(chosen, report.choices, (500, 1500), strict=True):
        used = cost.parameters(ta.student(one.sizes).dense()) / limit
        assert 0.8 < used <= 1 and choice.used == {"parameters": used}
        said = f"{one.name}: the largest Student found uses {percent(used)} of the budget."
        assert (said in report.notes) == (used < 0.95)
    assert result == json.loads((out / "search" / "search.json").read_text())
    assert "<svg" in (out / "search" / "search.html").read_text()
    assert result["search"]["evaluated"] > 6
    names = [model["name"] for model in result["models"]]
    assert len(set(names)) == len(names) and {"params-500", "params-1500"} <= set(names)
    again, same = search(recipe, out, budgets(500, 1500))
    assert again.searched["evaluated"] == 0 and [c.sizes for c in same] == [c.sizes for c in chosen]
    free, none = search(recipe, out)
    assert none == [] and free.choices == [] and len(free.models) > 1


def test_the_choice_is_the_best_of_those_that_use_the_budget_up(trained):
    recipe, out = copy.deepcopy(trained[0]), trained[1]
    recipe.search.trials = 20
    run = Search(recipe, out, optuna.storages.InMemoryStorage())
    (student,) = run.run(budgets(310), quiet)
    near = {run.parameters(one): one.value for one in run.scored.values()}
    near = {size: value for size, value in near.items() if 0.95 * 310 <= size <= 310}
    assert len(set(near.values())) > 1 and near[max(near)] < max(near.values())
    assert near[run.counts.parameters(student.sizes)] == max(near.values())


def test_where_nothing_uses_a_budget_up_the_choice_is_of_the_largest(trained):
    recipe, out = copy.deepcopy(trained[0]), trained[1]
    recipe.search.trials = 20
    run = Search(recipe, out, optuna.storages.InMemoryStorage())
    run.scores.value = lambda sizes: -float(run.counts.parameters(sizes))  # smaller is better
    (student,) = run.run(budgets(1100), quiet)
    sizes = sorted(run.parameters(one) for one in run.scored.values())
    most = max(size for size in sizes if size <= 1100)
    near = [size for size in sizes if most - 0.05 * 1100 <= size <= most]
    assert most < 0.95 * 1100 and len(near) > 1
    assert run.counts.parameters(student.sizes) == near[0]


def test_the_front_is_what_nothing_beats(trained):
    recipe, out = trained
    report, _ = search(recipe, out)
    front = [(m.cost.parameters, m.searched.chosen_by) for m in report.models if m.searched.front]
    # dearer is better
    assert front == sorted(front) and len({value for _, value in front}) == len(front)


def test_a_search_reports_what_has_a_direction(trained):
    """A ranker's calibration is best at 1: neither more nor less of it is better."""
    recipe, out = trained
    report, _ = search(recipe, out)
    assert {"auc", "calibration"} <= set(report.models[0].metrics)
    assert "auc" in (names := [metric.name for metric in report.metrics])
    assert "calibration" not in names and all(m.higher is not None for m in report.metrics)


def test_a_stopped_search_goes_on_to_the_same_choice(trained, monkeypatch):
    recipe, out = trained
    start_over(out)
    _, once = search(recipe, out, budgets(1200))
    start_over(out)
    real, calls = Scores.columns, []

    def pressed(self, sizes, part):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(self, sizes, part)

    with monkeypatch.context() as patch:
        patch.setattr(Scores, "columns", pressed)
        with pytest.raises(Interrupted, match="the same command goes on"):
            search(recipe, out, budgets(1200))
    report, chosen = search(recipe, out, budgets(1200))
    assert [c.sizes for c in chosen] == [c.sizes for c in once]
    assert 0 < report.searched["evaluated"] < report.searched["scored"]


def test_a_search_that_is_refused_leaves_nothing(trained, tmp_path):
    recipe, here = trained[0], tmp_path / "out"
    shutil.copytree(trained[1], here, ignore=shutil.ignore_patterns("search"))
    with pytest.raises(MattaError, match="is not possible"):
        search(recipe, here, budgets(30))
    assert not (here / "search").exists() and leftovers(here) == []
    (here / "search").mkdir()
    with pytest.raises(MattaError, match="is not possible"):
        search(recipe, here, budgets(30))
    assert (here / "search").exists()  # which somebody else has made


def test_a_search_of_stock_students_where_none_is(trained, tmp_path):
    """A ranker's Students are of no stock library: the front was empty, with a traceback."""
    recipe, here = copy.deepcopy(trained[0]), tmp_path / "out"
    shutil.copytree(trained[1], here, ignore=shutil.ignore_patterns("search"))
    recipe.search.stock_only, recipe.search.trials = True, 1
    with pytest.raises(MattaError, match=r"stock library: leave out --stock-only\.$"):
        search(recipe, here)


def test_an_impossible_budget_names_the_nearest(trained):
    recipe, out = trained
    with pytest.raises(MattaError) as refused:
        search(recipe, out, budgets(30))
    smallest = cost.parameters(load_ta(out).student(0.25).dense())
    assert f"{smallest} parameters" in str(refused.value) and f"--target-params {smallest}" in str(
        refused.value
    )
    stays = "The largest that stay are mlp.*.weight [4, 4] (x2) with 32 parameters, mlp.*.bias"
    assert stays in str(refused.value)
    _, chosen = search(recipe, out, budgets(smallest))
    assert chosen[0].width == 0.25


def test_a_share_of_the_base_is_a_budget(trained):
    recipe, out = trained
    (chosen,) = search(recipe, out, parse({"parameters": ["60%"]}))[1]
    base = cost.parameters(load_ta(out).student(1.0).dense())
    assert chosen.name == "params-60pct" and chosen.parameters <= 0.6 * base
    assert dict(chosen.budget.limits) == {"parameters": pytest.approx(0.6 * base)}


def test_examples_to_choose_by_are_not_reported_on(trained, monkeypatch):
    recipe, out = trained
    data = tasks_task.task("ranking", recipe).data(out / "ta", load_ta(out).model)
    split = data.held_out[0]
    choosing, reporting = halves(split)
    assert not set(choosing.indices) & set(reporting.indices) and len(choosing) + len(
        reporting
    ) == len(split)
    assert torch.equal(choosing.batch([3])["dense"], split.batch([choosing.indices[3]])["dense"])
    assert choosing.digest() != reporting.digest()
    (left,) = reported(data, 0).held_out
    assert left.indices == reporting.indices

    start_over(out)
    real, seen = Scores.columns, []
    monkeypatch.setattr(
        Scores,
        "columns",
        lambda self, sizes, part: seen.append(part.indices) or real(self, sizes, part),
    )
    report, _ = search(recipe, out, budgets(500))
    scored, measured = report.searched["evaluated"], len(report.models)
    assert seen == [choosing.indices] * scored + [reporting.indices] * measured


POINTS = st.lists(st.tuples(*[st.integers(0, 4) | st.floats(0, 1)] * 3), min_size=1, max_size=14)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(POINTS)
def test_no_point_of_a_front_is_beaten_by_another(points):
    """Nor is any left out that none beats: what is not on it, some point of it beats or equals."""
    front = unbeaten(points)
    matrix = np.array(points, dtype=float)
    for i, point in enumerate(matrix):
        no_worse, better = (matrix <= point).all(1), (matrix < point).any(1)
        assert not (i in front and (no_worse & better).any())
        assert (matrix[front] <= point).all(1).any()
    assert len({tuple(matrix[i]) for i in front}) == len(front)


@pytest.mark.parametrize("measured", [True, False])
def test_no_row_of_a_search_is_beaten_in_every_column(trained, monkeypatch, measured):
    """In what the table shows, which is of other examples than sizes are chosen by."""
    recipe, out = copy.deepcopy(trained[0]), trained[1]
    clock(monkeypatch, lambda macs: 1e-6 * macs)
    random = np.random.default_rng(0)
    monkeypatch.setattr(  # quality that has nothing to do with size, nor one half with the other
        Scores, "columns", lambda self, sizes, part: {"score": random.random(60), "label": LABELS}
    )
    start_over(out)
    report, _ = search(recipe, out, parse({"latency": ["1ms"]}), measured=measured)
    start_over(out)
    rows = []
    for m in report.models:
        quality = m.metrics["auc"].value if measured else m.searched.chosen_by
        costs = m.cost.parameters, m.cost.bytes, m.cost.macs, m.latency(8)
        rows.append((m.searched.front, np.array([-quality, *costs])))
    front = [row for on_front, row in rows if on_front]
    assert front and not any((a <= b).all() and (a < b).any() for _, a in rows for b in front)


LABELS = np.arange(60) % 2


def clock(monkeypatch, seconds):
    """A machine on which a forward takes so many seconds, by its MACs."""

    def latencies(task, models, batch, rounds=30):
        one = cost.repeated(batch, 1)
        taken = {name: seconds(cost.macs(task, model, one)) for name, model in models.items()}
        return {name: {"median": value, "p95": value} for name, value in taken.items()}

    monkeypatch.setattr(cost, "latencies", latencies)


@pytest.mark.parametrize("power", [0.3, 1, 4])
def test_a_latency_is_used_up_on_any_machine(trained, monkeypatch, power):
    """Whatever seconds a MAC takes, six trials find what is near the limit, measured, not guessed:
    of the sizes that can be had, none that fits is much slower.
    """
    recipe, out = copy.deepcopy(trained[0]), trained[1]
    ta = load_ta(out)
    every = Space(ta, WIDTHS)
    task = tasks_task.task("ranking", recipe)
    counts = Counts(task, ta, task.example(ta.model))
    most = counts.macs(ta.sizes(2.0))

    def seconds(macs):
        return 1e-3 + 0.1 * (macs / most) ** power

    clock(monkeypatch, seconds)
    menus = itertools.product(*every.menus.values())
    possible = sorted({seconds(counts.macs(dict(zip(every.menus, m, strict=True)))) for m in menus})
    for at in range(len(possible) // 5, len(possible) - 1, len(possible) // 4):
        limit = 1.01 * possible[at] / 0.95
        run = Search(recipe, out, optuna.storages.InMemoryStorage())
        (budget,) = parse({"latency": [f"{limit * 1e3:.6f}ms"]})
        (chosen,) = run.run([budget], quiet)
        best = max(own for own in possible if own <= 0.95 * limit) / limit
        shares = {
            key: seconds(counts.macs(one.student.sizes)) / limit for key, one in run.scored.items()
        }
        within = {key: share for key, share in shares.items() if share <= 0.95}
        assert max(within.values()) >= best - 0.07
        near = [run.scored[key].value for key, share in within.items() if share >= 0.8]
        own = run.key(chosen.sizes)
        assert within[own] >= max(within.values()) - 0.2
        assert not near or run.scored[own].value >= max(near)
        front, latency = run.front(["latency"]), run.timings.known["latency"]
        assert all(run.key(one.student.sizes) in latency.measured for one in front)
    start_over(out)


@pytest.mark.slow
def test_latency_is_met_when_measured_again(trained):
    """Ten budgets between the fastest and the slowest Student."""
    recipe, out = copy.deepcopy(trained[0]), trained[1]
    recipe.export.batch_size, recipe.export.threads = 4096, 1
    ta = load_ta(out)
    task = tasks_task.task("ranking", recipe)
    batch = cost.repeated(task.example(ta.model), 4096)

    def seconds(sizes) -> float:
        return cost.latencies(task, {"": ta.student(sizes).dense()}, batch)[""]["median"]

    with cost.threads(1):
        low, high = seconds(0.25), seconds(2.0)
        draw = random.Random(0)
        for _ in range(10):
            limit = low * 1.3 + draw.random() * (high - low)
            report, chosen = search(recipe, out, parse({"latency": [f"{limit * 1e6:.0f}us"]}))
            assert report.choices[0].used["latency"] <= 1
            assert min(seconds(chosen[0].sizes) for _ in range(3)) <= limit


def test_without_optuna_the_extra_is_named(trained, monkeypatch):
    recipe, out = trained
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MattaError, match=r"pip install 'matta\[search\]'"):
        search(recipe, out)
