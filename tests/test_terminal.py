"""What commands show in a terminal: tables that fit it, and the progress of long work."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace

import pytest
from test_report import good_report, judged_report

from matta_cli import console
from matta_cli.commands import eval_tables
from matta_cli.errors import MattaError
from matta_cli.progress import Progress, Steps
from matta_cli.report import terminal
from matta_cli.report.schema import Report


class Terminal(io.StringIO):
    def isatty(self):
        return True

    @property
    def text(self):
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


@pytest.fixture
def screen(monkeypatch):
    """A terminal of so many columns, as stdout and stderr."""

    def made(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("CI", raising=False)
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, Terminal())
        return sys.stdout, sys.stderr

    return made


@pytest.mark.parametrize("columns", [64, 72, 80, 100, 120, 140, 200, 300])
@pytest.mark.parametrize("made", [good_report, judged_report])
def test_the_table_of_a_report_fits_and_keeps_names_and_verdicts(screen, made, columns):
    report = Report.from_json(made())
    out, _ = screen(columns)
    console.fitting(terminal.tables(report))
    lines = out.text.splitlines()
    assert max(map(len, lines)) <= columns
    for model in report.models:  # each in one line, whose cells are whole
        (line,) = (own for own in lines if re.match(rf" ?{re.escape(model.name)}  ", own))
        assert "…" not in line
        if model.role == "student" and columns < 200:
            assert re.search("better|no different|no worse|worse|unclear", line)
    text = out.text
    if columns == 80:
        assert "parameters" in text and "perplexity" in text and "b8" in text and "[" not in text
        assert re.search(r"width 0.5 +7.9 M", text), "fewer digits, not fewer columns"
    if columns == 140:
        assert all(word in text for word in ("MACs", "bytes", "accuracy", "[19.90, 20.30]"))


def test_less_and_less_is_told_and_the_rest_is_named(screen):
    report, told = Report.from_json(good_report()), []
    for columns in (300, 140, 100, 80, 60, 40):
        out, said = screen(columns)
        console.fitting(terminal.tables(report))
        headers = next(line for line in out.text.splitlines() if "model" in line)
        told.append(len(headers.split()))
        missing = re.search("Not shown in .*: (.*)", said.text)
        assert ("MACs" in out.text) != bool(missing and "MACs" in missing[1])
    assert told == sorted(told, reverse=True)


def test_a_pipe_gets_the_whole_table(capsys):
    report = Report.from_json(good_report())
    console.fitting(terminal.tables(report))
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert len({len(line) for line in lines}) == 1 and "latency b8 median (p95)" in lines[0]


def test_the_batch_that_was_budgeted_is_the_one_in_the_table(screen):
    report = Report.from_json(good_report())
    report.batch_size = 1
    out, _ = screen(90)
    console.fitting(terminal.tables(report))
    line = next(line for line in out.text.splitlines() if "width 0.5" in line)
    assert "b1" in out.text and "b8" not in out.text and "7.9 ms" in line


def step(number, **losses):
    terms = {name.replace("w", "0."): {"loss": value} for name, value in losses.items()}
    return Progress(number, 20, terms, per_second=5026.4, unit="rows")


def test_losses_stand_in_columns_with_names(monkeypatch, capsys):
    """A row for each tenth of a run, below the names of its columns; another run has its own."""
    monkeypatch.setenv("COLUMNS", "60")
    with console.training_progress() as listen:
        for number in range(1, 21):
            listen(step(number, TA=0.1234, w25=12.5, w5=0.5))
        listen(Progress(message="Another run."))
        listen(step(2, w5=0.25))
        listen(replace(step(4, w5=0.25), per_second=0.214))
    lines = capsys.readouterr().err.rstrip("\n").splitlines()  # rich before 15 ends in a blank one
    assert len(lines) == 1 + 10 + 1 + 3
    assert lines[0].split("  ")[-3:] == ["loss TA", "loss 0.25", "loss 0.5"]
    ends = [match.end() for match in re.finditer(r"(?:loss |data )?\S+", lines[0])]
    for line in lines[1:11]:
        assert [match.end() for match in re.finditer(r"\S+", line)] == ends
    assert lines[1].split() == ["2/20", "5,026", "0%", "0.123", "12.500", "0.500"]
    assert lines[12].split() == ["step", "rows/s", "data", "wait", "loss", "0.5"]
    assert lines[14].split()[1] == "0.21", "slow, and not 0"


def test_no_bar_before_the_first_step(screen):
    """What fails at the start leaves nothing above its error."""
    _, err = screen(80)
    with pytest.raises(MattaError), console.training_progress() as listen:
        listen(Progress(message="Settings from matta.toml."))
        raise MattaError("There is no data.")
    assert err.text.strip() == "Settings from matta.toml."
    with console.training_progress() as listen:
        listen(step(1, w5=0.5))
    assert "1/20" in err.text and "0/" not in err.text.replace("1/20", "").replace("rows/s", "")


def test_steps_that_are_not_alike_have_a_bar_with_an_eta(screen, capsys):
    _, err = screen(80)
    with console.training_progress() as listen:
        steps = Steps(listen, 3)
        for word in ("Measuring base.", "Measuring width 0.5.", "Comparing.", "One more."):
            steps(word)
        steps.end()
    assert re.search(r"1/3 \S+ Measuring width 0.5\.", err.text)
    assert re.search(r"3/3 0:00:00 Done\.", err.text) and "4/3" not in err.text
    assert "items/s" not in err.text


def test_without_a_terminal_each_part_of_the_work_is_a_line(capsys):
    with console.training_progress() as listen:
        steps = Steps(listen, 2)
        steps("Measuring base.")
        steps("Comparing.")
        steps.end()
    assert capsys.readouterr().err.strip().splitlines() == ["Measuring base.", "Comparing."]


@pytest.mark.parametrize(("columns", "gone"), [(80, True), (140, False)])
def test_names_stand_in_one_line_beside_sentences(screen, columns, gone):
    """Names can be copied: sentences take several lines, and what can be spared goes."""
    names = ["distill.allow_weak_teacher", "convert.target_params"]
    what = "a sentence on what this is for, which is longer than any line that it could stand in"
    out, err = screen(columns)
    rows = [[name, "0.25, 0.5, 1.0", what, "our choice, as it is"] for name in names]
    console.table(["setting", "value", "what", "source"], rows, ["source"], prose=["what"])
    lines = out.text.splitlines()
    assert max(map(len, lines)) <= columns
    assert [line.split()[0] for line in lines if "." in line[:20]] == names
    assert ("Not shown in 80 columns: source." in err.text) == gone
    assert " ".join(out.text.split()).count("a sentence") == 2


def test_the_path_of_a_student_can_be_copied():
    report = Report.from_json(good_report())
    for one in report.models:
        one.loader = "torch.export.load('o/width-1' + '/student.pt2').module()"
    assert "torch.export.load('o/width-1/student.pt2').module()" in terminal.loading(report)


def evaluated():
    """What ``eval`` gives of three rankers, one of which drafts for another (which none does)."""

    def about(value, half):
        return {"value": value, "low": value - half, "high": value + half}

    names = ["matta-out/ta@1", "matta-out/students/width-0.25", "matta-out/students/width-0.5"]
    labels = {"auc": "AUC", "auc_loss": "AUC loss (1 - AUC)", "ece": "calibration error (ECE)"}
    less = {**about(-0.0123, 0.0034), "test": "t", "verdict": "worse"}
    less |= {"examples": 40, "p": 0.01, "p_holm": 0.02}
    models = []
    for name in names:
        model = {"name": name, "parameters": 1234567, "macs": 123456789}
        model["metrics"] = {metric: about(0.7123, 0.0123) for metric in labels}
        model["agreement"] = {"ta": about(0.91, 0.01)}
        model["differences"] = dict.fromkeys(labels, less) if name != names[0] else {}
        models.append(model)
    metrics = [{"name": name, "label": label, "higher": True} for name, label in labels.items()]
    drafted = {"small": "a", "large": "b", "tokens_per_second": {"drafted": 10.0, "alone": 37.0}}
    drafted |= {"ratio": {"median": 0.27, "low": 0.25, "high": 0.3}, "acceptance": 0.5}
    drafted |= {"proposed": 100, "tokens_per_call": 2.5, "identical": 1.0, "prompts": 8}
    agreement = {"of": "pairs of rows in the same order", "ta": "x"}
    result = {"metrics": metrics, "against": names[0], "margin": 0.01, "tokens": 128}
    return {**result, "agreement": agreement, "models": models, "speculative": drafted}


@pytest.mark.parametrize("columns", [60, 80, 99, 200])
def test_the_tables_of_eval_break_no_interval_and_say_nothing_twice(
    screen, columns, tmp_path, monkeypatch
):
    (tmp_path / "matta-out").mkdir()
    monkeypatch.chdir(tmp_path)
    out, said = screen(columns)
    eval_tables.show(evaluated())
    lines = out.text.splitlines()
    assert max(map(len, lines)) <= columns
    for interval, times in (("0.712 [0.700, 0.725]", 6), ("-0.0123 [-0.0157, -0.0089]", 4)):
        assert sum(line.count(interval) for line in lines) == times
    assert "AUC loss" not in out.text and "[" in out.text
    assert "MACs are of an example of 128 tokens." in said.text
    if columns >= 80:
        assert "3.7 times slower (ratio 0.270 [0.250, 0.300])" in out.text
        # a line of the models' table, and two of the differences': no name is broken
        assert out.text.count(" students/width-0.25 ") == 3 and " ta@1" in out.text
    assert "The models lie in matta-out." in said.text


def test_a_pipe_gets_every_column_of_eval(capsys):
    eval_tables.show(evaluated())
    table = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert table[0].split("\t")[:4] == ["model", "parameters", "MACs", "AUC"]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, "with so few resamples or examples that it may be chance (p = 0.095)"),
        ({"examples": 2}, "by 2 examples, and fewer than 6 cannot tell"),
        ({"verdict": "worse"}, None),
    ],
)
def test_eval_says_what_makes_a_narrow_interval_unclear(changed, why, screen):
    _, said = screen(120)
    result = evaluated()
    less = result["models"][1]["differences"]["auc"]
    less |= {"verdict": "unclear", "p": 0.095, **changed}
    eval_tables.show(result)
    if why:
        assert f"{result['models'][1]['name']} is unclear in AUC: {why}." in said.text
    else:
        assert "unclear" not in said.text


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(0.27, "3.7 times slower"), (2.0, "2 times faster"), (1.02, "about as fast")],
)
def test_a_ratio_is_said_in_words(ratio, words):
    assert eval_tables._times(ratio) == words
