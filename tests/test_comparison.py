"""Paired comparisons against independent references: scipy, statsmodels, closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from matta_cli.errors import MattaError
from matta_cli.measure import intervals
from matta_cli.report.verdicts import BETTER, SAME, UNCLEAR, judged
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import calibration
from matta_cli.tasks.causal_lm.task import CausalLM
from matta_cli.tasks.image_classification.task import ImageClassification
from matta_cli.tasks.ranking.task import Ranking


def images(n: int, share: float, seed: int, like: dict | None = None) -> dict:
    """Right or wrong per image; with ``like``, the same but for some images."""
    random = np.random.default_rng(seed)
    right = (random.random(n) < share).astype(float)
    if like is not None:
        right = np.where(random.random(n) < 0.8, like["correct1"], right)
    sure = random.uniform(0.3, 1, n)
    return {"correct1": right, "finite": np.ones(n), "confidence": sure}


def text(n: int, seed: int) -> dict:
    random = np.random.default_rng(seed)
    tokens = np.full(n, 31.0)
    return {
        "nll": random.gamma(4, 10, n),
        "tokens": tokens,
        "correct": random.binomial(31, 0.3, n).astype(float),
    }


def queries(count: int, seed: int, noise: float) -> dict:
    """Queries of 1 to 9 rows with grades; the same ones whatever the seed, which draws the noise in
    the scores.
    """
    fixed = np.random.default_rng(0)
    group = np.repeat(np.arange(count), fixed.integers(1, 10, count))
    label = fixed.integers(0, 4, len(group)).astype(float)
    score = label + noise * np.random.default_rng(seed).normal(size=len(group))
    batch = {"label": label, "group": group, "group_id": group}
    import torch

    task = Ranking(Recipe())
    found = task.score(torch.from_numpy(score), {k: torch.from_numpy(v) for k, v in batch.items()})
    return {name: values.numpy() for name, values in found.items()}


def test_a_model_is_no_different_from_itself():
    recipe = Recipe()
    for task, table in (
        (ImageClassification(recipe), images(50, 0.7, 0)),
        (CausalLM(recipe), text(50, 0)),
        (Ranking(recipe), queries(20, 1, 2.0)),
    ):
        found = intervals.paired(task, [table], [{k: v.copy() for k, v in table.items()}], 50)
        assert found.keys() == task.summarize(table).keys()
        for difference in found.values():
            assert {k: difference[k] for k in ("value", "low", "high", "p")} == {
                "value": 0,
                "low": 0,
                "high": 0,
                "p": 1,
            }


def test_right_or_wrong_is_mcnemar():
    from statsmodels.stats.contingency_tables import mcnemar

    b = images(300, 0.7, 0)
    a = images(300, 0.9, 1, like=b)
    found = intervals.paired(ImageClassification(Recipe()), [a], [b], 500)["top1"]
    table = [
        [int(((a["correct1"] == x) & (b["correct1"] == y)).sum()) for y in (1, 0)] for x in (1, 0)
    ]
    assert found["test"] == "McNemar"
    assert found["p"] == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-12)
    assert 0 < found["p"] < 0.05 and found["value"] == pytest.approx(
        (table[0][1] - table[1][0]) / 300
    )
    assert found["low"] > 0


def test_interval_of_a_mean_is_the_normal_one_and_narrower_than_unpaired():
    a, n = text(400, 0), 400
    b = a | {
        "nll": a["nll"],
        "correct": a["correct"] + np.random.default_rng(5).choice([-2.0, 0, 1], n),
    }
    found = intervals.paired(CausalLM(Recipe()), [a], [b], 2000)["next_token_accuracy"]
    each = (a["correct"] - b["correct"]) / 31
    half = 1.96 * each.std(ddof=1) / np.sqrt(n)
    assert found["value"] == pytest.approx(each.mean())
    assert found["low"] == pytest.approx(each.mean() - half, abs=0.07 * half)
    assert found["high"] == pytest.approx(each.mean() + half, abs=0.07 * half)
    single = intervals.intervals(CausalLM(Recipe()), [a], 200)["next_token_accuracy"]
    assert single.high - single.low > 1.5 * (found["high"] - found["low"])


def test_bootstrap_of_a_ratio_is_scipys():
    from scipy.stats import bootstrap

    a, b = text(200, 0), text(200, 1)
    a["nll"] = 0.8 * b["nll"] + 0.1 * a["nll"]
    found = intervals.paired(CausalLM(Recipe()), [a], [b], 2000)["perplexity"]

    def difference(x, y, axis=-1):
        return np.exp(x.sum(axis) / (31 * 200)) - np.exp(y.sum(axis) / (31 * 200))

    theirs = bootstrap(
        (a["nll"], b["nll"]), difference, paired=True, method="percentile", n_resamples=5000, rng=3
    )
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert found["low"] == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
    assert found["high"] == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)
    draws = theirs.bootstrap_distribution
    assert found["p"] == pytest.approx(2 * min((draws <= 0).mean(), (draws >= 0).mean()), abs=0.03)


def test_few_examples_show_nothing():
    """Three sequences, each clearly better: by chance alone that happens one time in four."""
    b = text(3, 0)
    found = intervals.paired(CausalLM(Recipe()), [b | {"nll": 0.5 * b["nll"]}], [b], 500)[
        "perplexity"
    ]
    assert found["high"] < 0 and found["p"] == 0.25


def test_p_values_are_uniform_where_nothing_differs():
    """Two models that are right at random, alike: p below 0.1 about one time in ten."""
    random = np.random.default_rng(0)
    task = CausalLM(Recipe())
    below = 0
    for _ in range(200):
        tables = [
            {"nll": random.gamma(4, 10, 60), "tokens": np.full(60, 31.0), "correct": np.zeros(60)}
            for _ in range(2)
        ]
        below += intervals.paired(task, tables[:1], tables[1:], 99)["perplexity"]["p"] < 0.1
    assert 8 <= below <= 34  # 20 expected; five standard deviations would be 21


def test_queries_are_drawn_whole():
    """The interval is that of a mean over queries; one over rows, of which a query has up to nine,
    would be far narrower.
    """
    task, n = Ranking(Recipe()), 120
    a, b = queries(n, 1, 1.0), queries(n, 2, 3.0)
    found = intervals.paired(task, [a], [b], 400)["ndcg@10"]
    _, first = np.unique(a["group"], return_index=True)
    each = (a["ndcg"] - b["ndcg"])[first]
    each = each[~np.isnan(each)]
    half = 1.96 * each.std(ddof=1) / np.sqrt(len(each))
    assert found["test"] == "bootstrap" and found["value"] == pytest.approx(each.mean())
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=0.15)
    assert found["p"] < 0.05


@pytest.mark.slow
def test_holm_is_statsmodels():
    from statsmodels.stats.multitest import multipletests

    for p in ([0.01, 0.04, 0.03, 0.005], [0.5], [0.9, 0.8, 1.0], [0.02, 0.02, 0.02]):
        assert intervals.holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())
    assert intervals.holm([]) == []


def test_against_corrects_for_the_number_of_models():
    tables = {"base": [images(300, 0.7, 0)]}
    tables |= {
        f"m{i}": [images(300, share, i + 1, tables["base"][0])]
        for i, share in enumerate((0.95, 0.7, 0.72))
    }
    task = ImageClassification(Recipe())
    found = intervals.against(task, tables, "base", 50)
    assert list(found) == ["m0", "m1", "m2"]
    assert [d["top1"]["p_holm"] for d in found.values()] == intervals.holm(
        [d["top1"]["p"] for d in found.values()]
    )
    assert (
        found["m0"]["top1"]["p_holm"] == pytest.approx(3 * found["m0"]["top1"]["p"])
        and found["m0"]["top1"]["p"] < 0.01
    )


def test_other_examples_are_refused_and_undefined_differences_say_nothing():
    task = ImageClassification(Recipe())
    with pytest.raises(MattaError, match="same examples; these have 30 and 40 rows"):
        intervals.paired(task, [images(30, 0.5, 0)], [images(40, 0.5, 0)], 5)
    a, b = queries(20, 1, 1.0), queries(20, 2, 1.0)
    a["score"] = a["score"] * np.nan
    found = intervals.paired(Ranking(Recipe()), [a], [b], 20)["auc"]
    assert np.isnan(found["value"]) and found["p"] == 1


def test_an_interval_holds_its_own_value():
    """Examples that are calibrated to the last one: hardly any resample of them is."""

    class Calibration:
        def summarize(self, columns):
            return {"ece": calibration.error(columns["sure"], columns["right"])}

        def right(self, columns):
            return {}

    sure = np.repeat([0.2, 0.5, 0.8], 10)
    right = np.concatenate([np.arange(10) < count for count in (2, 5, 8)])
    columns = {"sure": sure, "right": right.astype(float)}
    found = intervals.intervals(Calibration(), [columns], 200)["ece"]
    assert found.low <= found.value <= found.high


def test_few_examples_do_not_show_that_nothing_is_lost():
    """Six examples of which two models get the same ones right say little of others."""
    task = intervals.Means()

    def found(first, second, sureness=0.1):
        a, b = np.array(first, float), np.array(second, float)
        ours = {"accuracy": a, "sureness": np.full(len(a), 0.2)}
        theirs = {"accuracy": b, "sureness": np.full(len(b), 0.2 + sureness)}
        return intervals.paired(task, [ours], [theirs], 200)["accuracy"]

    six = [1, 1, 0, 0, 1, 0]
    one = found(six, six)
    assert one["low"] == -one["high"] == pytest.approx(-(1 - 0.025 ** (1 / 6)))
    assert pytest.approx((1 - one["high"]) ** 6) == 0.025
    assert judged(one["low"], one["high"], 0.005, one["p"]) == UNCLEAR
    many = found(six * 200, six * 200)
    assert judged(many["low"], many["high"], 0.005, many["p"]) == SAME
    # nor do three gains without a loss say that no more than the margin is lost
    bare = [{"last": np.zeros(24)}]
    assert intervals.paired(task, bare, bare, 200)["last"]["high"] > 0.1
    gained = found([1] * 6, [1, 1, 0, 0, 1, 0])
    assert gained["low"] < -0.4 and gained["high"] < 1
    # what says the very same of each example is the same
    assert found(six, six, 0.0)["high"] == 0
    # where chance is ruled out, the drawn ends stay
    sure = found([1] * 20, [0] * 10 + [1] * 10)
    assert sure["low"] > 0.2 and judged(sure["low"], sure["high"], 0.01, sure["p"]) == BETTER


def test_queries_are_counted_not_their_rows():
    columns = {"ndcg": np.ones(40), "group": np.repeat([0, 1], 20)}
    assert intervals.paired(intervals.Means(), [columns], [columns], 50)["ndcg"]["examples"] == 2


def test_few_examples_do_not_show_that_all_are_right():
    right = {"all": np.ones(24), "none": np.zeros(24), "some": np.arange(24) % 2.0}
    found = intervals.intervals(intervals.Means(), [right], 200)
    room = 1 - 0.025 ** (1 / 24)
    assert (found["all"].low, found["all"].high) == (pytest.approx(1 - room), 1)
    assert (found["none"].low, found["none"].high) == (0, pytest.approx(room))
    assert 0.2 < found["some"].low < found["some"].high < 0.8
