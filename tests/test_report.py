"""The report says what the numbers support, in three formats, and nothing that they do not."""

import copy
import itertools
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from matta_cli.report import charts, numbers, page, search_table, story, table, terminal, write
from matta_cli.report.schema import Report, Role


def tell(data):
    """The story of a report that is JSON, as files have it."""
    return story.tell(Report.from_json(data))


def html(data):
    return page.html(tell(data))


def markdown(data):
    return write.markdown(tell(data))


def rows(data):
    return table.rows(Report.from_json(data))


PERPLEXITY = {"name": "ppl", "label": "perplexity", "higher": False}
ACCURACY = {"name": "acc", "label": "accuracy", "higher": True}


def model(name, role, width, millions, ppl, acc, half=0.2, **more):
    return {
        "name": name,
        "role": role,
        "width": width,
        "folder": None,
        "loader": "",
        "stock": False,
        "parameters": int(millions * 1e6),
        "macs": int(millions * 1.1e7),
        "bytes": int(millions * 4e6),
        "latency": {
            "1": {"median": millions * 1e-3, "p95": millions * 1.04e-3},
            "8": {"median": millions * 5e-3, "p95": millions * 5.2e-3},
        },
        "peak_memory": int(millions * 9e6),
        "metrics": {
            "ppl": {"value": ppl, "low": ppl - half, "high": ppl + half},
            "acc": {"value": acc, "low": acc - 0.004, "high": acc + 0.004},
        },
        "parity": None,
        **more,
    }


def student(width, millions, ppl, acc, **more):
    folder = f"students/width-{width:g}"
    rest = {"folder": folder, "loader": f"timm.create_model('local-dir:{folder}')", "stock": True}
    return model(
        f"width {width:g}",
        "student",
        width,
        millions,
        ppl,
        acc,
        **{**rest, "parity": {"exact": True}, **more},
    )


@pytest.fixture
def good():
    return good_report()


@pytest.fixture
def judged():
    return judged_report()


def good_report():
    """A report with nothing wrong in it, whose models were compared on the same examples."""
    return paired(
        {
            "format": 1,
            "created": "2026-11-24T06:00:00Z",
            "matta": "0.1.0",
            "task": "causal_lm",
            "adapter": "gpt2",
            "data": "some held-out text",
            "unit": "tokens",
            "device": {"name": "cpu of a kind", "threads": 2, "torch": "2.14.1"},
            "metrics": [PERPLEXITY, ACCURACY],
            "batch_size": 8,
            "models": [
                model("Teacher", "teacher", None, 774, 12.0, 0.61),
                model("base", "base", 1.0, 12.3, 20.1, 0.50),
                model("TA", "ta", 2.0, 24, 16.0, 0.56),
                student(0.25, 4.5, 25.0, 0.44),
                student(0.5, 7.89, 20.0, 0.501),
                student(1.0, 12.3, 18.0, 0.53),
                model("untrained cut 0.25", "cut", 0.25, 4.5, 90.0, 0.1),
                model("untrained cut 0.5", "cut", 0.5, 7.89, 40.0, 0.3),
            ],
            "notes": ["a note of mine"],
            "training": {
                "steps": 300,
                "seconds": 81.2,
                "curve": [{"step": s, "values": {"0.25": 90 - s / 5, "TA": 16}} for s in (0, 300)],
            },
            "lineage": {"source": "model.pt", "digest": "sha256:abc"},
            "recipe": "steps = 300\n",
        }
    )


def paired(data):
    """A report with the comparisons that an export makes, by the values and their intervals."""
    kept = [pair for pair in data.get("pairs", []) if not pair.get("made")]
    known = {(pair["a"], pair["b"], pair["metric"]) for pair in kept}
    for a, b in itertools.permutations(data["models"], 2):
        larger = b["role"] == "student" and a["parameters"] > b["parameters"]
        students = a["role"] == "student" and (b["role"] == "base" or larger)
        cut = a["role"] == "student" and b["role"] == "cut" and a["width"] == b["width"]
        for metric in (PERPLEXITY, ACCURACY):
            name, sign = metric["name"], 1 if metric["higher"] else -1
            ours, theirs = (one["metrics"].get(name) for one in (a, b))
            wanted = students or cut or (a["role"], b["role"]) == ("ta", "base")
            if wanted and ours and theirs and (a["name"], b["name"], name) not in known:
                gain = sign * (ours["value"] - theirs["value"])
                half = 0.7 * (theirs["high"] - theirs["value"])
                pair = {"a": a["name"], "b": b["name"], "metric": name, "gain": gain, "made": True}
                ends = {"low": gain - half, "high": gain + half}
                kept.append({**pair, **ends, "margin": 0.01 * theirs["value"]})
    return {**data, "pairs": kept}


def judged_report():
    """The same with baselines: width 0.25 is better than plain distillation, 0.5 no different, 1 no
    worse.
    """
    good = good_report()
    for width, millions, ppl, gain, low, high, verdict in (
        (0.25, 4.5, 27.0, 2.0, 1.5, 2.6, "better"),
        (0.5, 7.89, 20.05, 0.05, -0.1, 0.15, "no different"),
        (1.0, 12.3, 18.2, 0.2, -0.1, 0.5, "no worse"),
    ):
        training = {"steps": 300, "examples": 2400, "items": 307200, "seconds": 30.0 + width}
        for role, name in (("plain", "plain distillation"), ("alone", "trained alone")):
            curve = [[0, 90.0], [150, 40.0], [300, ppl]]
            more = {"of": f"width {width:g}", "training": training, "curve": curve}
            good["models"].append(
                model(
                    f"{name} {width:g}",
                    role,
                    width,
                    millions,
                    ppl + (role == "alone"),
                    0.44,
                    **more,
                )
            )
        pair = {
            "a": f"width {width:g}",
            "b": f"plain distillation {width:g}",
            "metric": "ppl",
            "margin": 0.2,
        }
        good.setdefault("pairs", []).append(
            {**pair, "gain": gain, "low": low, "high": high, "verdict": verdict}
        )
        named(good, f"width {width:g}")["training"] = {**training, "seconds": 81.2}
    kept = {"width 0.25": 4, "width 0.5": 8, "width 1": 16}
    good["axes"] = [
        {
            "name": f"mlp.{i}",
            "kind": "mlp",
            "base": 16,
            "ta": 32,
            "step": 1,
            "layers": False,
            "kept": kept,
            "importance": [1 / (k + 1) for k in range(16)],
        }
        for i in range(3)
    ]
    return good


def named(data, name):
    return next(m for m in data["models"] if m["name"] == name)


def score(data, name, metric, value, low, high):
    named(data, name)["metrics"][metric] = {"value": value, "low": low, "high": high}
    if data.get("pairs") and low is not None:
        data["pairs"] = paired(data)["pairs"]


class Page(HTMLParser):
    """What a browser would see: balanced tags, attributes, and text outside scripts and styles."""

    VOID = {"meta", "input", "br", "link", "img"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words, self.styles = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.styles if self.open and self.open[-1] in ("style", "script") else self.words).append(
            data
        )

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def stored(name):
    path = Path(__file__).parent / "reports" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["today", "search"])
def test_a_report_comes_back_from_its_file(name):
    assert Report.from_json(stored(name)).to_json() == stored(name)
    again = Report.from_json(stored(name))
    assert again == Report.from_json(again.to_json())


def test_a_report_has_what_its_file_holds():
    report, found = Report.from_json(stored("today")), Report.from_json(stored("search"))
    student = report.model("width 0.5")
    assert student.role is Role.STUDENT and student.cost.parameters == 14688
    assert student.latency(2) == 0.001 and student.latency(4) is None
    assert student.programs["onnx"].parity.max_difference == 2.4e-07
    assert report.model("plain distillation 0.5").curve[0][0] == 2
    assert report.run.curve[0][1]["TA"] == pytest.approx(0.678, abs=1e-3)
    assert report.margin == 0.01 and report.pairs[0].verdict == "unclear"
    assert report.model("TA").searched is None and not report.choices
    assert found.model("params-24k").searched.shown and found.choices[0].model == "params-24k"
    assert search_table.choices(found) == [
        "params-24k: mlp 112 (x2), depth 2; it uses 99.1 % of its parameters; "
        "the stock library loads it."
    ]
    headers, cells = search_table.front_rows(found)
    assert headers[4] == "latency b2" and [row[4] for row in cells] == ["–", "1.20 ms"]
    with pytest.raises(KeyError):
        report.model("width 3")


def test_a_file_of_an_older_version_opens(tmp_path):
    report = Report.from_json(stored("older"))
    assert [metric.label for metric in report.metrics] == ["perplexity"]
    names = ["base", "width 0.5", "width 0.25", "untrained cut 0.5"]
    assert [model.name for model in report.models] == names
    half, quarter = report.model("width 0.5"), report.model("width 0.25")
    assert half.role is quarter.role is Role.STUDENT and half.curve == []
    assert half.latency(1) is half.latency(8) is None and quarter.cost.parameters is None
    assert quarter.measured(report.primary) is None
    assert math.isnan(quarter.metrics["perplexity"].value)
    assert [axis.importance for axis in report.axes] == [[]]
    assert report.pair(half, report.base, report.primary) is None
    assert "no difference can be told" in story.tell(report).headline
    write.write(report, tmp_path)
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert Report.from_json(written).to_json() == written == report.to_json()
    assert written["models"][2]["metrics"]["perplexity"]["value"] is None
    words = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    for text in (words, (tmp_path / "report.md").read_text(encoding="utf-8")):
        assert not re.search(r"\b(None|nan)\b", text)


def test_numbers_are_compact_and_never_round_to_a_thousand():
    assert numbers.count(12_345_678) == "12.3 M"
    assert numbers.count(999_999) == "1.00 M"
    assert numbers.count(7) == "7"
    assert numbers.in_seconds(0.00456) == "4.56 ms"
    assert numbers.in_bytes(45_600_000) == "45.6 MB"
    assert numbers.count(0) == "0"
    assert numbers.count(None) == numbers.count(float("nan")) == numbers.MISSING


def test_rows_give_every_column_in_order(good):
    headers, table = rows(good)
    assert headers == [
        "model",
        "width",
        "parameters",
        "MACs",
        "checkpoint",
        "latency b1 median (p95)",
        "latency b8 median (p95)",
        "examples/s b1",
        "examples/s b8",
        "peak memory",
        "perplexity ↓",
        "accuracy ↑",
    ]
    assert table[1] == [
        "base",
        "1",
        "12.3 M",
        "135 M",
        "49.2 MB",
        "12.3 ms (12.8 ms)",
        "61.5 ms (64.0 ms)",
        "81.3",
        "130",
        "111 MB",
        "20.10 [19.90, 20.30]",
        "0.5000 [0.4960, 0.5040]",
    ]


def test_every_value_of_the_table_is_in_all_formats(good):
    headers, table = rows(good)
    page, text = Page(html(good)).text, re.sub(r"\\(.)", r"\1", markdown(good))
    for value in [*headers, *(cell for row in table for cell in row)]:
        assert value in page
        assert value in text
    for word in (
        "a note of mine",
        "some held-out text",
        "cpu of a kind",
        "model.pt",
        "sha256:abc",
        "steps = 300",
    ):
        assert word in page
        assert word in text
    assert (
        "import timm model = timm.create_model('local-dir:students/width-0.25') model.eval()"
        in page
    )


def test_the_page_is_whole_and_fetches_nothing(good):
    page = Page(html(good))
    loads = {"src", "href", "srcset", "data", "action", "poster", "xlink:href", "background"}
    assert [a for a in page.attributes if a[1] in loads] == []
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|https?:", " ".join(page.styles))
    assert not {"link", "img", "iframe", "object", "embed"} & set(page.tags)
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    assert {value for _, key, value in page.attributes if key == "for"} <= set(ids)


def test_a_hostile_name_stays_a_name(good):
    evil = '<script>alert("1")</script>"\' onload=x | [a](http://b) `c` \n# d'
    named(good, "width 0.5")["name"] = evil
    good["notes"] = good["data"] = evil
    good["notes"], good["recipe"] = [evil], evil + "\n```\n# out"
    good["lineage"]["source"] = good["adapter"] = evil
    good["metrics"][0] = {**PERPLEXITY, "label": evil}
    good["training"]["curve"][0]["values"][evil] = 3.0
    named(good, "base")["loader"] = evil
    page = Page(html(good))
    assert page.tags.count("script") == 1
    assert [a for a in page.attributes if a[1].startswith("on")] == []
    assert 'alert("1")' in page.text
    text = markdown(good)
    outside = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", text)  # code blocks show text as it is
    assert "<script" not in outside
    assert not re.search(r"(?<!\\)\]\(", outside)
    assert "\n# d" not in outside
    assert "# out" not in outside
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {13}


def compare(data, a, b, word, gain, low, high, metric="ppl", margin=0.2):
    """Put the comparison of two models on the same examples into a report."""
    pair = {"a": a, "b": b, "metric": metric, "gain": gain, "low": low, "high": high}
    keys = ("a", "b", "metric")
    others = [one for one in data.get("pairs", []) if any(one[k] != pair[k] for k in keys)]
    data["pairs"] = [*others, {**pair, "margin": margin}]
    report = Report.from_json(data)
    a, b = report.model(a), report.model(b)
    (measure,) = (one for one in report.metrics if one.name == metric)
    assert report.pair(a, b, measure).verdict == word


def test_what_was_not_compared_is_neither_better_nor_worse(good):
    """Models that were never compared on the same examples, as in older files."""
    good["pairs"] = []
    assert tell(good).headline == (
        "The Student of width 0.5 has 64 % of the base's parameters with perplexity 20.00 against "
        "20.10; without a comparison on the same examples no difference can be told."
    )
    one_alarm(
        good,
        "No models were compared on the same examples in perplexity and accuracy: no difference",
        "matta report compares them",
    )
    # intervals that are far apart are of no help: what they have in common is not known
    score(good, "width 0.5", "ppl", 16.1, 16.0, 16.2)
    score(good, "width 0.25", "ppl", 40.0, 39.9, 40.1)
    score(good, "untrained cut 0.25", "ppl", 20.0, 19.9, 20.1)
    told = tell(good)
    said = " ".join([told.headline, *told.alarms, *told.findings])
    assert not re.search("better|worse|no different|beat|harm|training helped", said)


@pytest.mark.parametrize(
    ("word", "gain", "low", "high", "tail"),
    [
        ("better", 0.3, 0.1, 0.5, "and is better than the base: perplexity 19.80 against 20.10"),
        (
            "slightly worse",
            -0.1,
            -0.2,
            -0.05,
            "and is slightly worse than the base in perplexity, by 0.10 (0.5 %): no more than 1 %, "
            "the margin.",
        ),
        (
            "no different",
            0.1,
            -0.1,
            0.2,
            "and is no different from the base in perplexity, within 1 %.",
        ),
        (
            "no worse",
            0.3,
            -0.1,
            0.5,
            "and is no worse than the base in perplexity: it loses 1 % at most.",
        ),
        ("worse", -0.3, -0.5, -0.1, "and is worse than the base in perplexity by 0.30 (1.5 %)."),
        ("unclear", 0.1, -0.5, 0.5, "but it is unclear whether it is worse"),
    ],
)
def test_headline_says_the_verdict_of_the_same_examples(good, word, gain, low, high, tail):
    del good["models"][3]  # the smaller Student
    score(good, "width 0.5", "ppl", 20.1 - gain, 19.8, 20.6)
    compare(good, "width 0.5", "base", word, gain, low, high, margin=0.201)
    assert tail in tell(good).headline


def test_overlapping_intervals_hide_no_loss(good):
    """Where the intervals of two models overlap by far, their difference may still be sure."""
    score(good, "base", "ppl", 20.0, 19.5, 20.5)
    for name in ("width 0.25", "width 0.5"):
        score(good, name, "ppl", 20.9, 20.4, 21.4)
    for name in ("width 0.25", "width 0.5"):
        compare(good, name, "base", "worse", -0.9, -1.1, -0.7)
    assert "is worse than the base in perplexity by 0.90 (4.5 %)" in tell(good).headline
    for name in ("width 0.25", "width 0.5"):
        compare(good, name, "base", "unclear", -0.9, -2.0, 0.2)
        compare(good, name, f"untrained cut {name[6:]}", "better", 20.0, 19.0, 21.0)
    assert "unclear whether" in tell(good).headline
    one_alarm(
        good,
        "unclear whether width 0.25 is better or worse than the base in perplexity: −0.90",
        "a loss above 0.20 would count. Nor can it be said of width 0.5. Evaluate on more data.",
    )


def test_headline_turns_with_the_metric(good):
    good["metrics"] = [ACCURACY]
    score(good, "width 0.25", "acc", 0.6, 0.59, 0.61)
    assert "width 0.25" in tell(good).headline
    assert "is better than the base" in tell(good).headline


def test_a_metric_without_a_direction_is_never_better_or_worse(good):
    calibration = {"name": "cal", "label": "calibration", "higher": None}
    good["metrics"].append(calibration)
    for m, value in zip(good["models"], (1.0, 0.95, 1.0, 1.1, 1.3, 1.0, 0.5, 0.5), strict=True):
        m["metrics"]["cal"] = {"value": value, "low": value - 0.01, "high": value + 0.01}
    page, text = Page(html(good)).text, markdown(good)
    assert tell(good).alarms == [] and "calibration" in page
    assert "calibration" in rows(good)[0] and "calibration:" not in text
    good["metrics"] = [calibration]
    for said in (Page(html(good)).text, markdown(good)):
        assert not re.search("better|worse|beat|budget|No interval|no intervals", said)


def test_faster_is_said_only_beyond_the_spread(good):
    assert "1.6x at batch 1" in markdown(good)
    # a slow run is no faster than the base's usual one
    named(good, "width 0.5")["latency"]["1"]["p95"] = 0.0124
    assert "at batch 1 (" not in markdown(good)
    assert "1.6x at batch 8" in markdown(good)


def test_no_alarm_on_a_good_report(good):
    assert tell(good).alarms == []
    assert "Look at this first" not in html(good) + markdown(good)


def one_alarm(data, *words):
    found = tell(data).alarms
    assert len(found) == 1, found
    assert all(word in found[0] for word in words), found
    assert found[0].split(";")[0] in markdown(data)
    assert found[0] in Page(html(data)).text


def test_alarm_larger_but_worse(good):
    score(good, "width 0.5", "acc", 0.40, 0.396, 0.404)
    one_alarm(good, "width 0.5 is larger than width 0.25 but worse in accuracy")
    score(good, "width 0.5", "acc", 0.438, 0.434, 0.442)  # worse, but within the interval
    assert tell(good).alarms == []


def test_alarm_larger_but_worse_where_lower_is_better(good):
    score(good, "width 0.5", "ppl", 26.0, 25.8, 26.2)
    one_alarm(
        good,
        "width 0.5 is larger than width 0.25 but worse in perplexity: 26.00 [25.80, 26.20] "
        "against 25.00",
    )


def test_alarm_no_better_than_the_untrained_cut(good):
    score(good, "untrained cut 0.25", "ppl", 25.1, 24.9, 25.3)
    compare(good, "width 0.25", "untrained cut 0.25", "no worse", 0.1, -0.1, 0.3)
    one_alarm(
        good,
        "width 0.25 is no worse than its untrained cut in perplexity: 25.00 [24.80, 25.20] "
        "against 25.10",
    )
    compare(good, "width 0.25", "untrained cut 0.25", "better", 0.1, 0.05, 0.3)
    assert tell(good).alarms == []
    good["pairs"].pop()
    score(good, "untrained cut 0.25", "ppl", 20.0, 19.9, 20.1)
    one_alarm(good, "width 0.25 is worse than its untrained cut")


def test_at_the_base_width_level_is_fine_and_worse_is_not(good):
    score(good, "width 1", "ppl", 20.1, 19.9, 20.3)
    good["models"].append(model("untrained cut 1", "cut", 1.0, 12.3, 20.1, 0.5))
    assert tell(good).alarms == []
    score(good, "base", "ppl", 19.0, 18.9, 19.1)
    one_alarm(good, "width 1 has the base's size but is worse in perplexity")


def test_alarm_interval_absent(good):
    good["metrics"] = [ACCURACY, PERPLEXITY]
    for m in good["models"]:
        for value in m["metrics"].values():
            value["low"] = value["high"] = None
    del good["pairs"]
    one_alarm(good, "No models were compared on the same examples in accuracy and perplexity")


def test_noise_is_an_alarm_in_the_first_metric_only(good):
    compare(good, "width 1", "base", "unclear", 0.0, -0.2, 0.2, "acc", 0.005)
    score(good, "untrained cut 0.25", "acc", 0.45, 0.446, 0.454)  # better than its Student
    assert tell(good).alarms == []
    good["metrics"].reverse()
    assert ["its untrained cut in accuracy" in a for a in tell(good).alarms] == [False, True]
    assert "unclear whether width 1 is better" in tell(good).alarms[0]


def test_an_alarm_is_not_repeated_as_a_note(good):
    score(good, "untrained cut 0.25", "ppl", 20.0, 19.9, 20.1)
    (alarm,) = tell(good).alarms
    good["notes"].append(alarm)
    assert Page(html(good)).text.count(alarm) == markdown(good).count(alarm.split(";")[0]) == 1
    assert "a note of mine" in Page(html(good)).text


def test_alarm_parity(good):
    named(good, "width 0.25")["parity"] = {"exact": False, "max_difference": 0.00125}
    one_alarm(good, "width 0.25: the exported checkpoint does not give exactly", "0.00125")


@pytest.mark.parametrize(
    "key",
    [
        "latency",
        "peak_memory",
        "macs",
        "bytes",
        "parity",
        "loader",
        "width",
        "parameters",
        "metrics",
    ],
)
@pytest.mark.parametrize("gone", ["missing", "null"])
def test_copes_with_parts_of_models_missing(good, key, gone):
    for m in good["models"]:
        if gone == "null":
            m[key] = None
        else:
            del m[key]
    Page(html(good))
    headers, table = rows(good)
    assert all(len(row) == len(headers) for row in table)
    assert "None" not in markdown(good)
    assert isinstance(tell(good).alarms, list)


@pytest.mark.parametrize(
    "gone",
    [
        "training",
        "notes",
        "lineage",
        "recipe",
        "device",
        "data",
        "metrics",
        "models",
        "created",
        "unit",
    ],
)
def test_copes_with_parts_of_the_report_missing(good, gone):
    del good[gone]
    assert "None" not in markdown(good) + Page(html(good)).text


@pytest.mark.parametrize("keep", ["Teacher", "base", "TA", "width 0.5", "untrained cut 0.5"])
def test_a_report_of_one_model(good, keep):
    good["models"] = [named(good, keep)]
    page = Page(html(good)).text
    assert keep in page
    assert (
        named(good, keep)["parameters"]
        and numbers.count(named(good, keep)["parameters"]) in tell(good).headline
    )
    assert tell(good).alarms == []


@pytest.mark.parametrize(
    "values",
    [(0.0, 0.0), (1e-9, 1e9), (-3.0, 5.0), (1.0, 1.0), (float("nan"), 2.0), (float("inf"), 1.0)],
)
def test_odd_numbers_draw_without_error(good, values):
    for m, value in zip(good["models"][1:3], values, strict=True):
        m["metrics"]["ppl"] = {"value": value, "low": value, "high": value}
        m["latency"]["1"]["median"] = value
    text = html(good)
    Page(text)
    assert not re.search(r'"(-?nan|-?inf)"', text)


def test_write_is_three_files_and_clean_json(good, tmp_path):
    score(good, "base", "ppl", float("nan"), None, None)
    before = copy.deepcopy({**good, "models": []})
    write.write(Report.from_json(good), tmp_path / "new")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    back = json.loads(
        (tmp_path / "new" / "report.json").read_text(encoding="utf-8"), parse_constant=refuse
    )
    assert named(back, "base")["metrics"]["ppl"]["value"] is None
    assert back["format"] == 1 and {**good, "models": []} == before
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8") == html(good)


def verdict(data, name, word, gain, low, high):
    compare(data, name, f"plain distillation {name[6:]}", word, gain, low, high)


def test_the_verdict_is_said_in_every_format(judged):
    assert tell(judged).alarms == []
    headers, table = rows(judged)
    row = dict(zip(headers, next(r for r in table if r[0] == "width 0.25"), strict=True))
    assert row["gain over plain"] == "+2.00 [+1.50, +2.60]" and row["verdict"] == "better"
    assert row["training"] == "81 s 307 k tokens, one run for all"
    said = (
        "Against plain distillation of the same size, start, data and steps: better at 1 of 3 "
        "sizes, no different at 1 and no worse at 1. The nested run took 81 s of a device for all "
        "its Students and the TA, these 3 runs 92 s."
    )
    page = Page(html(judged)).text
    assert said in markdown(judged) and said in page
    assert (
        "width 0.25 is better than plain distillation 0.25 in perplexity, by 2.00 "
        "(7.4 %; 95 %: +1.50 to +2.60)." in page
    )
    assert (
        "width 0.5 is no different from plain distillation 0.5 in perplexity: +0.05" in page
        and "within ±0.20." in page
    )
    assert "width 1 is no worse than plain distillation 1 in perplexity: +0.20" in page


def test_a_student_worse_than_plain_distillation_is_an_alarm(judged):
    verdict(judged, "width 0.5", "worse", -1.0, -1.4, -0.6)
    one_alarm(
        judged,
        "width 0.5 is worse than plain distillation 0.5 in perplexity, by 1.00",
        "95 %: −1.40 to −0.60",
    )


def test_an_interval_too_wide_to_say_is_an_alarm(judged):
    verdict(judged, "width 0.5", "unclear", -1.0, -4.0, 2.0)
    one_alarm(
        judged,
        "unclear whether width 0.5 is better or worse than plain",
        "a loss above 0.20 would count",
    )
    verdict(judged, "width 0.25", "unclear", -1.0, -3.0, 2.0)
    one_alarm(
        judged,
        "whether width 0.5 is better or worse than plain",
        "Nor can it be said of width 0.25. Evaluate",
    )


def test_models_compared_on_the_same_examples_are_not_judged_by_their_own_intervals(judged):
    """Paired, a difference shows that the intervals of the two, overlapping, would hide; and the
    other way round.
    """
    score(judged, "width 0.5", "acc", 0.437, 0.433, 0.441)
    two = "width 0.5", "width 0.25"
    compare(judged, *two, "worse", -0.003, -0.005, -0.002, "acc", 0.001)
    one_alarm(judged, "width 0.5 is larger than width 0.25 but worse in accuracy")
    score(judged, "width 0.5", "acc", 0.40, 0.396, 0.404)
    compare(judged, *two, "no different", -0.003, -0.005, 0.002, "acc", 0.006)
    assert tell(judged).alarms == []


def test_a_verdict_that_its_numbers_deny_is_made_anew(judged):
    """A file's own word (of an older version, or edited) counts for nothing."""
    for one in judged["pairs"]:
        if one["b"] == "plain distillation 0.5":
            one |= {"verdict": "better", "gain": -1.0, "low": -1.4, "high": -0.6}
    one_alarm(judged, "width 0.5 is worse than plain distillation 0.5 in perplexity, by 1.00")


@pytest.mark.parametrize("gone", ["gain", "low", "margin", "a", "metric"])
def test_copes_with_parts_of_comparisons_missing(judged, gone):
    for pair in judged["pairs"]:
        del pair[gone]
    for axis in judged["axes"]:
        axis["importance"] = axis["kept"] = None
    for m in judged["models"]:
        m["curve"] = m["training"] = None
    assert "None" not in markdown(judged) + Page(html(judged)).text


def test_importing_it_loads_no_torch():
    code = "import sys, matta_cli.report.write, matta_cli.report.search_table; "
    code += "sys.exit(bool({'torch', 'rich', 'typer'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_harm_in_several_metrics_is_one_alarm(good):
    """The first with its numbers, the others by name."""
    for metric, worse in (("ppl", (22.0, 21.8, 22.2)), ("acc", (0.40, 0.396, 0.404))):
        score(good, "width 1", metric, *worse)
        score(good, "width 0.5", metric, *worse)
    said = [one for one in tell(good).alarms if "training did it harm" in one]
    assert len(said) == 1 and said[0].startswith("width 1 has the base's size but is worse in ")
    assert said[0].endswith(", and in accuracy; training did it harm."), said


def test_a_student_that_is_worse_in_several_metrics_is_one_alarm(good):
    score(good, "width 0.5", "ppl", 26.0, 25.8, 26.2)
    score(good, "width 0.5", "acc", 0.40, 0.396, 0.404)
    one_alarm(good, "width 0.5 is larger than width 0.25 but worse in perplexity: ", "in accuracy")


def test_what_is_to_be_looked_at_first_comes_first(good):
    score(good, "width 0.5", "ppl", 26.0, 25.8, 26.2)
    page = html(good)
    first = page.index("Look at this first")
    assert page.index("</h1>") < first < page.index('class="tiles"') < page.index('"findings"')


def test_the_chart_of_training_ends_at_the_last_step(good):
    good["training"]["curve"] = [{"step": 300, "values": {"0.25": 30.0}}]  # evaluated once
    chart = charts.curves(Report.from_json(good))
    assert [place[0] for line in chart.lines for place in line.places] == [100.0]
    ticks = [float(tick.text.replace(" ", "")) for tick in chart.x]
    assert min(ticks) == 0 and max(ticks) <= 300


def test_tokens_stand_behind_macs_and_latency(good):
    assert "tokens" not in tell(good).reading
    for one in good["models"]:
        one["tokens"] = 128
    assert (
        "MACs are per example of 128 tokens at batch 1, and latencies of examples of 128 tokens "
        "each; b8 is a batch of 8."
    ) in tell(good).reading
    page = html(good)
    assert "MACs per example of 128 tokens" in page and "one example of 128 tokens" in page
    assert Report.from_json(good).to_json()["models"][0]["tokens"] == 128


def test_a_search_says_what_a_mix_is_and_how_to_get_it():
    found = stored("search")
    assert tell(found).alarms == [], "what a search found is compared when it is exported"
    older = html(found)
    assert "how to get one" not in older, "a file of an older matta does not say"
    found["models"][1] |= {"name": "mix <1>", "command": "matta export --target-params 24000"}
    page = html(found)
    assert "A mix is a Student whose layers differ in size" in page
    assert "mix &lt;1&gt;" in page and "<code>matta export --target-params 24000</code>" in page


def labelled(data, names, drop=None):
    """The report with F1 of labels: the base's rise from 0.5, Students have ``drop`` less."""
    for entry in data["models"]:
        for k, name in enumerate(names):
            value = 0.5 + k / 200
            if entry["role"] == "student":
                value -= drop[k] if drop else 0.01
            entry["metrics"][f"f1:{name}"] = {"value": value, "low": None, "high": None}
    return data


def test_a_few_labels_are_all_shown(good):
    labelled(good, ["cat", "a|b <i>", "none"])
    for entry in good["models"]:
        entry["metrics"]["f1:none"]["value"] = None  # JSON's NaN
    text, seen = markdown(good), html(good)
    heads = "| label | Teacher | base | width 0.25 | width 0.5 | width 1 |"
    assert heads in text and "| cat | 0.500 | 0.500 | 0.490 | 0.490 | 0.490 |" in text
    assert r"| a\|b &lt;i&gt; |" in text
    assert "Of 1 labels there is no held-out example" in text
    assert "<h2>Labels</h2>" in seen and "<span>a|b &lt;i&gt;</span>" in seen
    assert "## Labels" not in markdown(good_report())


def test_of_many_labels_those_that_lost_most_are_shown(good):
    names = [f"label {k}" for k in range(40)]
    labelled(good, names, drop=[0.3 if k in (7, 23) else k / 1000 for k in range(40)])
    found = tell(good).labels
    assert [row[0] for row in found.rows[:3]] == ["label 7", "label 23", "label 39"]
    assert len(found.rows) == 12 and "12 of 40 labels where Students lose most" in found.said
    good["models"] = [entry for entry in good["models"] if entry["role"] != "base"]
    assert tell(good).labels.rows[0][0] == "label 7" and "with the least" in tell(good).labels.said


def test_a_difference_that_is_told_is_seen(good):
    """On the same examples it may be far smaller than what each model is known to."""
    good["metrics"] = [ACCURACY]
    for name, value in (("base", 0.5012), ("width 0.5", 0.5034), ("untrained cut 0.5", 0.5001)):
        score(good, name, "acc", value, value - 0.1, value + 0.1)
    for name in ("width 0.25", "width 1", "untrained cut 0.25", "TA", "Teacher"):
        score(good, name, "acc", 0.4, 0.3, 0.5)
    alike = {"metric": "acc", "margin": 0.005}
    compare(good, "width 0.25", "base", "worse", -0.1, -0.11, -0.09, **alike)
    compare(good, "width 0.5", "base", "better", 0.0022, 0.0011, 0.0033, **alike)
    assert "better than the base: accuracy 0.5034 against 0.5012, by" in tell(good).headline
    for heads, rows in terminal.tables(Report.from_json(good)):  # in narrow tables, too
        at = [index for index, head in enumerate(heads) if head.startswith("accuracy")]
        cells = {row[0]: row[at[0]].split()[0] for row in rows if at}
        assert not at or cells["width 0.5"] != cells["base"], heads
    compare(good, "width 0.5", "base", "unclear", 0.0002, -0.1, 0.1, **alike)
    alarm = next(own for own in tell(good).alarms if "than the base" in own)
    # what is shown as nothing is no share of anything
    assert "accuracy: 0.000 (95 %: −0.100 to +0.100)" in alarm


def test_what_few_resamples_hide_is_not_said_of_intervals(good):
    for name, p in (("width 0.25", 0.095), ("width 0.5", 0.002)):
        compare(good, name, f"untrained cut {name[6:]}", "better", 20.0, 19.0, 21.0)
        good["pairs"][-1]["p"] = p
    said = " ".join(tell(good).findings)
    assert "Training is sure to have beaten the untrained cut at 1 of 2 widths;" in said


def test_a_student_in_fewer_bits_is_not_called_equal(good):
    parity = {"exact": True, "max_difference": 0.0, "dtype": "int8", "rounded": 0.0123}
    good["models"][4] |= {"parity": parity}
    text = markdown(good)
    near = "outputs within 0.012 of the largest, of float32's, the same when loaded again"
    assert text.count(f"in int8, {near}") == 1 and near.partition("'")[0] in html(good)
    assert text.count("outputs equal to the trained slice, bit for bit") == 2


def test_the_page_tells_the_rule_that_verdicts_follow(judged):
    """A p-value of its own decides, and none that is corrected for other pairs."""
    for pair in judged["pairs"]:
        pair |= {"p": 0.01, "p_holm": 0.2}
    words = {pair.verdict for pair in Report.from_json(judged).pairs}
    assert "better" in words and "Each pair is judged by itself" in Page(html(judged)).text


def test_the_units_of_an_axis_are_counted_from_one(judged):
    assert "mlp.0 unit 1 100%" in " ".join(html(judged).split("<title>")[1:]).replace("\n", " ")
    for axis in judged["axes"]:
        axis["base"] = 32
    told = html(judged)
    assert "mlp.0\nunits 1 to 2\n100% of" in told and "mlp.0\nunits 31 to 32\n6% of" in told
