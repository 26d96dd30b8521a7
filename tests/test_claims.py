"""What a report says of two models, wherever it says it, is what their examples say.

Headline, alarms, findings, the page's verdicts and ``matta eval`` never disagree: the truth is
worked out here from the examples' own values, by other arithmetic than theirs.
"""

import json
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from matta_cli.data.split import Data
from matta_cli.measure import pairs
from matta_cli.measure.held_out import HeldOut
from matta_cli.measure.intervals import Means, Sampled
from matta_cli.report import claims, page, terminal, verdicts
from matta_cli.report.schema import Cost, Interval, Metric, ModelEntry, Pair, Report, Role
from matta_cli.report.story import tell
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import labels

METRICS = [Metric("loss", "loss", False), Metric("hits", "hits", True), Metric("size", "size")]
LABELS = {metric.label: metric for metric in (*METRICS, *labels.METRICS)}
_NAMED = "|".join(map(re.escape, LABELS))
WORDS = {
    "better than": "gain",
    "no different from": "level",
    "no worse than": "level",
    "slightly worse than": "loss",
    "worse than": "loss",
    "unclear": "level",
}
GAINS = {word: WORDS.get(f"{word} than", "level") for word in verdicts.VERDICTS}


def truth(ours, theirs, higher):
    """Whether ``ours`` gain or lose, or neither: a paired z test with room for chance; None where
    it is too near to call.
    """
    gains = (ours - theirs) if higher else (theirs - ours)
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    if error == 0:
        return "level" if gains.mean() == 0 else None
    z = gains.mean() / error
    return "gain" if z > 3 else "loss" if z < -3 else "level" if abs(z) < 1.2 else None


@dataclass
class Made:
    """A report of models whose values are known, and these values: model -> metric -> array."""

    report: Report
    tables: dict[str, dict[str, np.ndarray]]
    held_out: HeldOut

    def truth(self, a, b, metric):
        """As ``truth``; None of metrics that are no means of what examples come to."""
        if metric.name not in self.tables[a] or metric.higher is None:
            return None
        return truth(self.tables[a][metric.name], self.tables[b][metric.name], metric.higher)

    def compared(self, a, b):
        return a in self.held_out.models and b in self.held_out.models


class Labelled:
    """Several labels of each example, as the tasks measure them."""

    def summarize(self, columns):
        return labels.summarize(columns, ["red", "blue"])

    def right(self, columns):
        return {}


def values(random, hard, effect, spread):
    """What a model comes to on examples that are as hard as this."""
    count = len(hard)
    loss = 3 + hard + effect + spread * random.normal(size=count) / 4
    hits = (hard + effect + spread * random.normal(size=count) / 2 < 0.5).astype(float)
    return {"loss": loss, "hits": hits, "size": random.normal(size=count)}


def scores(random, hard, effect, spread):
    """The log odds that a model gives to two labels of each example."""
    own = np.stack([hard > 0, hard > 0.8], 1)
    noise = (spread + effect) * random.normal(size=own.shape)
    return {"score": own - 0.5 + noise, "label": own}


@st.composite
def reports(draw):
    """Students and what stands beside each, with any effects, some of which were not compared."""
    several = draw(st.sampled_from([False, False, False, True]))
    task, made = (Labelled(), scores) if several else (Means(), values)
    names = [("base", Role.BASE, 1.0, None, 100), ("TA", Role.TA, 2.0, None, 200)]
    for width in draw(st.lists(st.sampled_from([0.25, 0.5, 0.75, 1.0]), min_size=1, unique=True)):
        name, size = f"width {width:g}", int(100 * width)
        names.append((name, Role.STUDENT, width, None, size))
        if width < 1:
            names.append((f"untrained cut {width:g}", Role.CUT, width, name, size))
        if draw(st.booleans()):
            names.append((f"plain distillation {width:g}", Role.PLAIN, width, name, size))
        for kind in draw(st.sampled_from([(), (), ("int8",)])):
            names.append((f"{name} {kind}", Role.QUANTIZED, width, name, None))
    most = 90 if several else 300
    random, count = np.random.default_rng(draw(st.integers(0, 10**6))), draw(st.integers(80, most))
    # examples differ by far more than models do: intervals of their own hide what differences show
    hard = random.normal(size=count)
    spread = draw(st.sampled_from([0.1, 0.5, 2.0]))
    tables, models = {}, []
    metrics = draw(st.permutations(labels.METRICS if several else METRICS))
    for name, role, width, of, size in names:
        effect = draw(st.sampled_from([0.0, 0.005, 0.02, 0.1, 0.4]))
        tables[name] = made(random, hard, effect, spread)
        cost = Cost(size, bytes=draw(st.sampled_from([None, 100])))
        models.append(ModelEntry(name, role, width, of=of, cost=cost))
    recipe = Recipe()
    recipe.export.bootstrap = 100
    recipe.export.margin = draw(st.sampled_from([0.0, 0.01, 0.1]))
    held_out = HeldOut(recipe, task, Data((), (), "", ""), torch.device("cpu"), 8)
    gone = draw(st.sets(st.sampled_from([name for name, *_ in names]), max_size=2))
    for model in models:
        own = [Sampled(task, tables[model.name])]
        held_out.models[model.name] = own
        model.metrics = held_out.metrics(model.name)
        if model.name in gone:
            del held_out.models[model.name]
    report = Report(metrics=metrics, models=models, margin=recipe.export.margin)
    report.pairs = pairs.compared(report, held_out)
    return Made(report, tables, held_out)


def test_what_a_report_lacks_the_value_of_is_not_compared():
    """An edited report.json, or one that another version wrote."""
    random, task = np.random.default_rng(0), Means()
    hard = random.normal(size=80)
    held_out = HeldOut(Recipe(), task, Data((), (), "", ""), torch.device("cpu"), 8)
    models = []
    for name, role, width in (("base", Role.BASE, 1.0), ("width 0.5", Role.STUDENT, 0.5)):
        held_out.models[name] = [Sampled(task, values(random, hard, 0.1, 0.5))]
        models.append(ModelEntry(name, role, width, metrics=held_out.metrics(name)))
    report = Report(metrics=METRICS, models=models)
    both = {(pair.a, pair.b, pair.metric) for pair in pairs.compared(report, held_out)}
    del models[0].metrics[METRICS[0].name]
    left = {(pair.a, pair.b, pair.metric) for pair in pairs.compared(report, held_out)}
    assert left == {pair for pair in both if pair[2] != METRICS[0].name} != both


def claimed(story):
    """Every claim of one model over another that a story's sentences make: (a, b, metric, what)."""
    metric, found = story.report.primary, []
    words = "|".join(WORDS)
    if story.pick and (said := re.search(words, story.headline)):
        found.append((story.pick.student.name, story.pick.base.name, metric, WORDS[said[0]]))
    cuts = {m.of: m.name for m in story.report.of(Role.CUT)}
    wide = rf".*unclear whether (.+) is b.* than (.+) in ({_NAMED}): "
    other = r"(plain \S+ \S+|width \S+)"
    for said in story.alarms:
        if hit := re.match(rf"(.+) is larger than (.+) but worse in ({_NAMED})", said):
            smaller = "base" if hit[2] == "the base" else hit[2]
            found.append((hit[1], smaller, LABELS[hit[3]], "loss"))
        elif hit := re.match(rf"(width \S+) has the base's size but is worse in ({_NAMED})", said):
            found.append((hit[1], "base", LABELS[hit[2]], "loss"))
        elif hit := re.match(rf"(.+) is ({words}) its untrained cut in ({_NAMED})", said):
            found.append((hit[1], cuts[hit[1]], LABELS[hit[3]], WORDS[hit[2]]))
        elif hit := re.match(wide, said):
            b = {"its untrained cut": cuts.get(hit[1]), "the base": "base"}.get(hit[2], hit[2])
            found.append((hit[1], b, LABELS[hit[3]], "level"))
        elif hit := re.match(rf"(.+) is ({words}) {other} in ({_NAMED})", said):
            found.append((hit[1], hit[3], LABELS[hit[4]], WORDS[hit[2]]))
        else:
            assert said.startswith("No models were compared"), said
    for said in story.findings:
        if hit := re.match(rf"The Teaching Assistant is ({words}) the base", said):
            found.append(("TA", "base", metric, WORDS[hit[1]]))
        elif hit := re.match(rf"(.+ int\d) is ({words}) (width \S+) in ({_NAMED})", said):
            found.append((hit[1], hit[3], LABELS[hit[4]], WORDS[hit[2]]))
        elif hit := re.match(wide, said):
            found.append((hit[1], hit[2], LABELS[hit[3]], "level"))
        else:
            assert not re.search(r" int\d", said), said
    found += [(r.student.name, r.other.name, metric, GAINS[r.verdict]) for r in story.rivals]
    return found


def evaluated(made, against):
    """What ``matta eval`` says of the same examples, models less ``against``."""
    tables = {name: [made.tables[name]] for name in made.held_out.models}
    settings = made.held_out.recipe.export
    return pairs.against(made.held_out.task, made.report.metrics, tables, against, settings)


def seen_apart(report):
    """No table shows two models as equal of which one is said to be better or worse."""
    for heads, rows in terminal.tables(report):
        table = {row[0]: dict(zip(heads, row, strict=True)) for row in rows}
        for pair in report.pairs:
            head = next(m.label + m.way for m in report.metrics if m.name == pair.metric)
            values = [report.model(own).metrics[pair.metric].value for own in (pair.a, pair.b)]
            if head in heads and GAINS[pair.verdict] != "level" and values[0] != values[1]:
                assert table[pair.a][head].split()[0] != table[pair.b][head].split()[0], head


ROUNDS = settings(
    max_examples=30,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@ROUNDS
@given(reports())
def test_headline_alarms_verdicts_and_eval_never_disagree(made):
    report = made.report
    story = tell(report)
    claims_of = claimed(story)
    for a, b, metric, what in claims_of:
        assert made.compared(a, b), f"nothing is known of {a} and {b}"
        assert made.truth(a, b, metric) in (what, None), (a, b, what)
    for said in [*story.alarms, *story.findings]:  # training that helped is not denied, nor made up
        for student in report.students:
            cut = next((m.name for m in report.of(Role.CUT) if m.of == student.name), "")
            if cut and said.startswith(f"{student.name} is") and "training helped" in said:
                assert made.truth(student.name, cut, report.primary) != "gain"
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    for a, b, metric, what in claims_of:
        assert GAINS[report.pair(report.model(a), report.model(b), metric).verdict] == what
    for reference in list(made.held_out.models)[:2]:
        words = evaluated(made, reference)
        for pair in report.pairs:
            if reference == pair.b:
                assert words[pair.a][pair.metric]["verdict"] == pair.verdict
            elif reference == pair.a:  # the other way round
                turned = {"gain": "loss", "loss": "gain", "level": "level"}[GAINS[pair.verdict]]
                assert GAINS[words[pair.b][pair.metric]["verdict"]] == turned
        for model, by_metric in words.items():
            for metric in report.metrics:
                word = by_metric[metric.name]["verdict"]
                assert bool(word) == (metric.higher is not None)
                assert made.truth(model, reference, metric) in (GAINS.get(word), None)
    known = {(one.a, one.b) for one in report.pairs}
    assert all(made.compared(*both) for both in known)
    shown = {model.name: {} for model in report.models}
    for column in story.columns:
        for model, (cell, _) in zip(report.models, column.cells, strict=True):
            shown[model.name][column.kind] = cell
    seen_apart(report)
    said = page.html(story)
    for rival in story.rivals:
        assert rival.sentence in said and shown[rival.student.name]["verdict"] == rival.verdict


@pytest.mark.parametrize(
    ("low", "high", "margin", "p", "word"),
    [
        (0.1, 0.3, 0.05, 0.01, verdicts.BETTER),
        (0.01, 0.03, 0.05, None, verdicts.BETTER),
        (0.1, 0.3, 0.05, 0.2, verdicts.NO_WORSE),
        (0.01, 0.03, 0.05, 0.06, verdicts.SAME),
        (0.0, 0.0, 0.0, 1.0, verdicts.SAME),
        (-0.04, 0.04, 0.05, 1.0, verdicts.SAME),
        (-0.04, 0.2, 0.05, 0.3, verdicts.NO_WORSE),
        (-0.029, -0.010, 0.04, 0.006, verdicts.SLIGHTLY),
        (-0.029, -0.010, 0.008, 0.006, verdicts.WORSE),
        (-0.04, -0.01, 0.05, 0.06, verdicts.SAME),
        (-0.3, -0.01, 0.05, 0.06, verdicts.UNCLEAR),
        (-0.3, 0.3, 0.05, 1.0, verdicts.UNCLEAR),
    ],
)
def test_the_words(low, high, margin, p, word):
    assert verdicts.judged(low, high, margin, p) == word


@pytest.mark.parametrize("low, high, p", [(0.0, 0.0, 1.0), (2.0, 2.5, 0.01), (-2.5, -2.0, 0.01)])
def test_five_examples_tell_nothing(low, high, p):
    """The resamples of one query are all that query: its interval has no width."""
    assert verdicts.judged(low, high, 0.05, p, 5) == verdicts.UNCLEAR
    assert verdicts.judged(low, high, 0.05, p, 6) != verdicts.UNCLEAR
    assert verdicts.why_unclear(low, high, p, 1).startswith("by 1 example,")


def test_there_is_a_sentence_for_each_word():
    said = {claims.says(word, "a", "b", METRICS[0]) for word in verdicts.VERDICTS}
    assert len(said) == len(verdicts.VERDICTS) and "a is slightly worse than b in loss" in said


@pytest.mark.parametrize(
    "p, said", [(0.33, "so few resamples or examples"), (0.9, "training helped")]
)
def test_what_too_few_resamples_hide_is_not_called_no_help(p, said):
    """172 against 300 was said to be no help, as five resamples rule nothing out."""
    values = {"width 0.5": 172.0, "untrained cut 0.5": 300.0}
    models = [
        ModelEntry(name, role, 0.5, of=of, cost=Cost(50), metrics={"loss": Interval(values[name])})
        for name, role, of in (
            ("width 0.5", Role.STUDENT, None),
            ("untrained cut 0.5", Role.CUT, "width 0.5"),
        )
    ]
    low = 100.0 if p < 0.5 else -100.0
    pair = Pair("width 0.5", "untrained cut 0.5", "loss", 128.0, low, 150.0, 3.0, p)
    [alarm] = [
        one
        for one in tell(Report(metrics=METRICS[:1], models=models, pairs=[pair])).alarms
        if "cut" in one
    ]
    assert said in alarm and "172" in alarm
