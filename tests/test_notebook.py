"""The Python API as a notebook shows it: its names, its results, its errors, its bar."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_cli import TOML, gpt2, prepare
from test_report import judged_report

import matta_cli
from matta_cli import keywords, notebook
from matta_cli.errors import MattaError
from matta_cli.report import cell
from matta_cli.report.schema import Report
from matta_cli.settings import resolve


def test_dir_shows_the_api_and_imports_nothing() -> None:
    code = "import sys, matta_cli; print(*dir(matta_cli)); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {*matta_cli.__all__, "__version__"}
    assert {"convert", "distill", "export", "judge", "load_ta"} <= set(done.stdout.split())


def test_a_report_says_in_short_what_is_in_it_and_escapes_names() -> None:
    report = judged_report()
    for model in report["models"]:
        model["name"] = model["name"].replace("width 0.25", "<script>alert(1)</script>")
    told = notebook.Told(report)
    short = repr(told)
    assert short.startswith("Report: The Student of width 0.5 ") and "\n" not in short
    assert len(short) < 500 and told["models"] == report["models"], "it is the JSON all the same"
    shown = told._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert "<strong>The Student of width 0.5 " in shown and "perplexity" in shown
    assert shown.count("<tr>") == 1 + len(report["models"])
    empty = cell.html(Report())
    assert "Nothing was measured." in empty and "<table>" not in empty


def test_a_ta_says_in_short_what_it_is(tmp_path: Path) -> None:
    source = str(tmp_path / "a<b.pt")
    torch.save(gpt2(320).state_dict(), source)
    ta = matta_cli.convert(source, tmp_path / "out", adapter="gpt2", progress=False)
    assert repr(ta).startswith(f"TA of {source}: ") and "nested along mlp" in repr(ta)
    assert len(repr(ta)) < 300
    shown = ta._repr_html_()
    assert "a&lt;b" in shown and f"<td>{ta.student(0.5).parameters:,}</td>" in shown


SPOKEN = {
    "--lr 0 is not possible: it must be above 0.": "lr=0 is not possible: it must be above 0.",
    "--order 'best' is not known: auto.": "order='best' is not known: auto.",
    "ta holds finished work; pass --overwrite to replace it, or --out for another folder.": (
        "ta holds finished work; pass overwrite=True to replace it, or out for another folder."
    ),
    "pass --teacher with the model": "pass teacher with the model",
    "pass --widths 0.25,0.5,1.0, say.": "pass widths=[0.25,0.5,1.0], say.",
    "--batch 0 is not possible": "batch_size=0 is not possible",
    "There is no file 'x': check --data.": "There is no file 'x': check data.",
    "so pass --held-out with other data.": "so pass held_out with other data.",
    "Pass --allow-weak-teacher to go on": "Pass allow_weak_teacher=True to go on",
    "run `matta export a --widths 1` first": "run `matta_cli.export(...)` first",
    "run `matta adapters ./a.py:B` and then": "run `matta adapters ./a.py:B` and then",
    "--name NAME puts others beside them, --overwrite replaces them": (
        "name=NAME puts others beside them, overwrite=True replaces them"
    ),
    "a--b and --nothing-known 3 stay": "a--b and --nothing-known 3 stay",
}


@pytest.mark.parametrize("sentence", SPOKEN)
def test_errors_name_keyword_arguments(sentence: str) -> None:
    assert keywords.spoken(sentence) == SPOKEN[sentence]


def test_errors_of_calls_name_keyword_arguments(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MattaError, match=r"^expand=0\.5 is not possible"):
        matta_cli.convert("gpt2", expand=0.5)
    with pytest.raises(MattaError, match=r"make one with `matta_cli.convert\(...\)`"):
        matta_cli.load_ta("nowhere")
    with pytest.raises(MattaError, match=r"keyword arguments: \[distill\] has no setting"):
        matta_cli.distill("gpt2-large", learning_rate=1.0)


@pytest.mark.parametrize(
    ("sentence", "place"),
    [
        ("It has no column 'text'. Set data.text to it.", 'that is `text = "..."` below `[data]`.'),
        ("Name the column in data.group.", 'In matta.toml that is `group = "..."` below `[data]`.'),
        (
            "Set data.text, or data.sentences for pairs, to the right one.",
            'that is `text = "..."` or `sentences = ["...", "..."]` below `[data]`.',
        ),
        ("Set distill.teacher_mix = 1.", "that is `teacher_mix = ...` below `[distill]`."),
        ("data.workers is 5, but one core is here.", ""),
        ("Set data.nothing.", ""),
        ("Set data.text in matta.toml.", ""),
    ],
)
def test_an_error_says_where_a_setting_without_a_flag_is_written(sentence: str, place: str) -> None:
    found = resolve.with_place(sentence)
    assert found.startswith(sentence) and place in found
    assert place or found == sentence


def test_a_checkpoint_is_a_path_that_says_in_short_what_it_is(tmp_path: Path) -> None:
    saved = notebook.Trained(tmp_path / "out" / "run" / "checkpoints" / "step-6")
    assert repr(saved) == f"Trained({str(saved)!r})" and saved.parent.name == "checkpoints"
    assert (saved / "matta.json").suffix == ".json" and isinstance(saved, Path)
    assert "step-6" in saved._repr_html_() and "<table>" not in saved._repr_html_()


def test_a_script_shows_nothing(tmp_path: Path, capfd) -> None:
    with notebook.shown(None) as listen:
        listen(notebook.Progress(message="Nobody asked."))
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_the_three_calls_in_a_notebook(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    prepare(tmp_path)
    (tmp_path / "matta.toml").write_text(TOML)
    cells = [
        "import matta_cli\nmatta_cli.convert('model.pt', adapter='gpt2', order='magnitude')",
        "matta_cli.distill('gpt2-large')",
        "matta_cli.export([0.25, 0.5], device='cpu')",
        "matta_cli.export([0.25, 0.5])",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    client = nbclient.NotebookClient(
        book, timeout=300, allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    made, trained, exported, refused = (own.outputs for own in book.cells)
    assert "nested along mlp" in made[-1].data["text/plain"]
    assert any("on 104" in own.get("text", "") or "Data:" in own.get("text", "") for own in trained)
    assert "<td" in trained[-1].data["text/html"] and "width 0.5" in trained[-1].data["text/html"]
    assert "<table>" in exported[-1].data["text/html"]
    assert exported[-1].data["text/plain"].startswith("Report: ")
    assert "overwrite=True" in refused[-1].evalue and refused[-1].ename == "MattaError"
