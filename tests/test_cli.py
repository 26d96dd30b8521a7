"""The commands as users type them: the three lines, refusals, Ctrl-C, resuming, a full disk."""

from __future__ import annotations

import errno
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sample_text import byte_tokenizer
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from matta_cli.errors import command as shown
from matta_cli.main import app
from matta_cli.settings.resolve import tomllib

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
TOML = """
[data]
train = "text.txt"

[distill]
steps = 6
batch_size = 4
allow_weak_teacher = true

[export]
bootstrap = 10
"""


def command(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "matta_cli", *words],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def fine(done: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    assert done.returncode == 0, done.stderr
    return done


def gpt2(vocabulary: int, seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=32,
        n_embd=64,
        n_layer=1,
        n_head=1,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def tokenizer_of(text: str):
    end = "<|endoftext|>"
    return byte_tokenizer(text.split("\n\n"), 320, end, bos_token=end)


def prepare(folder: Path) -> None:
    """What a user has: a state dict, a text, settings, and a Teacher with its tokenizer under the
    name they type.
    """
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name].strip() for name in sorted(topics))[:40_000]
    (folder / "text.txt").write_text(text, encoding="utf-8")
    tokenizer = tokenizer_of(text)
    torch.save(gpt2(len(tokenizer)).state_dict(), folder / "model.pt")
    gpt2(len(tokenizer), seed=1).save_pretrained(folder / "gpt2-large")
    tokenizer.save_pretrained(folder / "gpt2-large")
    gpt2(len(tokenizer) + 5).save_pretrained(folder / "other-vocabulary")


LINES = (
    "convert model.pt --adapter gpt2",
    "distill --teacher gpt2-large",
    "export --widths 0.25,0.5,1.0",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which the three lines were typed (in processes of their own in a slow test)."""
    folder = tmp_path_factory.mktemp("lines")
    prepare(folder)
    done = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in LINES:
            done.append(CliRunner().invoke(app, line.split()))
            assert done[-1].exit_code == 0, done[-1].output
            (folder / "matta.toml").write_text(TOML, encoding="utf-8")  # from the second line on
    return folder, done


@pytest.fixture
def typed(finished, tmp_path, monkeypatch):
    """A function that runs a line in-process, in a copy of the finished folder."""
    shutil.copytree(finished[0], tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")

    def run(line: str):
        return CliRunner().invoke(app, line.split())

    return run


def refusal(result, *words: str) -> str:
    """The one sentence that a refused command says."""
    assert result.exit_code == 1, (result.exit_code, result.output)
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.stderr and result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and result.stderr.rstrip().endswith(errors[0]), result.stderr
    for word in words:
        assert word in errors[0], (word, errors[0])
    return errors[0]


# The three lines


def test_three_lines(finished):
    folder, (converted, distilled, exported) = finished
    out = folder / "matta-out"
    assert (
        "Lossless" in converted.stderr
        and "Next: matta distill --teacher TEACHER" in converted.stderr
    )
    assert converted.stdout.splitlines()[0].split("\t")[0] == "width"
    records = [
        json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [r["step"] for r in records] == list(range(1, 7)) and records[-1]["evaluation"]
    assert "Next: matta export --widths 0.25,0.5,1" in distilled.stderr
    assert (out / "report.html").exists() and "width 0.25" in exported.stdout
    report = json.loads((out / "report.json").read_text())
    roles = [m["role"] for m in report["models"]]
    # the Student of width 1 is the TA
    assert roles.count("student") == 3 and {"teacher", "base", "cut", "student"} == set(roles)
    students = [m for m in report["models"] if m["role"] == "student"]
    sizes = [m["parameters"] for m in sorted(students, key=lambda m: m["width"])]
    assert sizes == sorted(set(sizes))
    for name in ("convert", "data", "distill", "export"):
        assert f"[{name}]" in (out / "students" / "recipe.toml").read_text()


@pytest.mark.slow
def test_three_lines_in_processes_of_their_own(finished, tmp_path):
    prepare(tmp_path)
    converted = fine(command(tmp_path, *LINES[0].split()))
    (tmp_path / "matta.toml").write_text(TOML, encoding="utf-8")
    distilled, exported = (fine(command(tmp_path, *line.split())) for line in LINES[1:])
    for here, there in zip((converted, distilled), finished[1], strict=False):
        assert here.stdout == there.stdout
    width, before = (lines.stdout.splitlines()[0] for lines in (exported, finished[1][2]))
    assert width == before and "width 0.25" in exported.stdout
    for name in ("ta/model.safetensors", "students/width-0.5/model.safetensors"):
        assert (tmp_path / "matta-out" / name).read_bytes() == (
            finished[0] / "matta-out" / name
        ).read_bytes()


def test_settings_may_be_there_before_the_model(typed):
    """A state dict brings no tokenizer, so convert cannot read the text that matta.toml names: it
    goes by magnitude.
    """
    shutil.rmtree("matta-out")
    result = typed(LINES[0])
    assert result.exit_code == 0, result.stderr
    assert "ordered by magnitude" in result.stderr


@pytest.mark.slow
def test_students_load_without_matta_and_shrink(finished):
    students = finished[0] / "matta-out" / "students"
    weights = [
        (students / f"width-{w}" / "model.safetensors").stat().st_size for w in ("0.25", "0.5", "1")
    ]
    assert weights == sorted(set(weights))
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "for w in ('0.25', '0.5', '1'):\n"
        "    model = AutoModelForCausalLM.from_pretrained(f'width-{w}')\n"
        "    tokenizer = AutoTokenizer.from_pretrained(f'width-{w}')\n"
        "    ids = tokenizer('the object', return_tensors='pt').input_ids\n"
        "    expected = (1, ids.shape[1], model.config.vocab_size)\n"
        "    print(w, model.config.n_inner or 256, tuple(model(ids).logits.shape) == expected)\n"
        "assert not [m for m in sys.modules if m.startswith('matta')]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=students, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0.25", "64", "True", "0.5", "128", "True", "1", "256", "True"]


def test_base_is_still_width_one(finished):
    from matta_cli.models.folders import load_ta

    folder = finished[0]
    ta = load_ta(folder / "matta-out" / "ta")
    base = gpt2(ta.model.config.vocab_size)
    ids = torch.randint(ta.model.config.vocab_size, (2, 20))
    with torch.no_grad():
        assert torch.allclose(ta.at(1.0)(ids).logits, base(ids).logits, atol=1e-5)


def test_finished_work_is_not_replaced(finished):
    folder = finished[0]
    before = (folder / "matta-out" / "ta" / "model.safetensors").stat().st_mtime_ns
    done = command(folder, *LINES[0].split())
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "matta-out/ta holds finished work; pass --overwrite to replace it" in done.stderr
    assert (folder / "matta-out" / "ta" / "model.safetensors").stat().st_mtime_ns == before


def test_what_is_shown_can_be_typed():
    words = shown(
        "distill", Path("my out"), "--teacher", "TEACHER", "--data", "ünï cödé/digits.npz"
    )
    assert words == "matta distill 'my out' --teacher TEACHER --data 'ünï cödé/digits.npz'"
    assert (
        shown("export", Path("matta-out"), "--widths", "0.25,0.5")
        == "matta export --widths 0.25,0.5"
    )


@pytest.mark.parametrize(
    ("line", "following"),
    [
        ("inspect", "report --baselines plain"),
        ("recipe show --changed", "report --baselines plain"),
        ("adapters", "convert MODEL --adapter NAME"),
        (
            "distill --teacher gpt2-large --steps 3 --widths 0.25,1 --allow-weak-teacher --dry-run",
            "distill --teacher gpt2-large --widths 0.25,1 --steps 3 --allow-weak-teacher",
        ),
        ("teach --teacher gpt2-large --prompts p.jsonl", "distill --teacher ANSWERS.jsonl"),
    ],
)
def test_every_command_ends_with_the_next_one(typed, line, following):
    """Those of the three lines are checked with them."""
    result = typed(line)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[-1] == f"Next: matta {following}"


@pytest.mark.slow
def test_a_second_family_stands_beside_the_first(typed):
    """It has a report of its own, can be judged and compared, and nothing of the first changes."""
    refusal(typed("export --widths 0.5"), "--name NAME puts others beside them", "--overwrite")
    refusal(typed("export --widths 0.5 --name ../x"), "--name '../x' is no name of a family")
    before = {path: path.stat().st_mtime_ns for path in Path("matta-out").rglob("*.json")}
    result = typed("export --widths 0.75 --name small")
    assert result.exit_code == 0, result.stderr
    home = Path("matta-out/families/small")
    assert (home / "students" / "width-0.75" / "model.safetensors").exists()
    assert result.stderr.splitlines()[-1] == "Next: matta eval --name small"
    report = json.loads((home / "report.json").read_text())
    assert [m["folder"] for m in report["models"] if m["role"] == "student"] == [
        "families/small/students/width-0.75"
    ]
    told = [line for line in result.stderr.splitlines() if line.startswith("Look at this first: ")]
    assert told and all(line.partition(": ")[2] in report["notes"] for line in told)
    assert not [line for line in told if f"Note: {line.partition(': ')[2]}" in result.stderr]
    refusal(typed("export --widths 0.75 --name small"), "families/small/students holds finished")
    again = typed("report --name small --json")
    assert again.exit_code == 0, again.stderr
    students = [m["name"] for m in json.loads(again.stdout)["models"] if m["role"] == "student"]
    assert students == ["width 0.75"]
    result = typed("eval --name small --bootstrap 5 --json")
    assert result.exit_code == 0, result.stderr
    measured = [model["name"] for model in json.loads(result.stdout)["models"]]
    assert measured == ["matta-out/ta@1", f"{home}/students/width-0.75"]
    assert str(home / "students" / "recipe.toml") in result.stderr
    assert result.stderr.splitlines()[-1] == "Next: matta report --baselines plain --name small"
    pushed = typed("push --to me/model --license mit --dry-run --name small")
    assert pushed.exit_code == 0, pushed.stderr
    repositories = [line for line in pushed.stdout.splitlines() if line.startswith("me/")]
    assert repositories == ["me/model"]
    assert "--name small" in pushed.stderr.splitlines()[-1]
    refusal(typed("report --name large"), "families/large: run `matta export --name large` first")
    refusal(typed("eval --name large"), "export Students to matta-out/families/large first")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_adapters_are_told_in_plain_text(typed):
    result = typed("adapters")
    assert result.exit_code == 0 and "gpt2" in result.stdout and "`" not in result.stdout


def test_inspect_tells_a_student_from_a_ta(typed):
    assert (
        "A Student of model.pt, a gpt2 for causal_lm"
        in typed("inspect matta-out/students/width-0.5").stderr
    )
    assert "TA of model.pt, a gpt2 for causal_lm" in typed("inspect").stderr


def test_the_recipe_says_how_the_ta_was_made(typed):
    """Not what ``convert`` would do by default, whatever file or flag it was told by."""
    assert (
        typed(
            "convert model.pt --adapter gpt2 --expand 1.5 --order magnitude --out my/own"
        ).exit_code
        == 0
    )
    result = typed("recipe show my/own --toml")
    made = tomllib.loads(result.stdout)["convert"]
    assert (
        made["source"] == "model.pt" and made["expand"] == 1.5 and made["order"] == "magnitude"
    ), made


def test_overwrite_replaces(typed):
    assert typed("convert model.pt --adapter gpt2 --expand 1.0 --overwrite").exit_code == 0
    assert json.loads(Path("matta-out/ta/matta.json").read_text())["expand"] == 1.0
    for line in LINES[1:]:
        refusal(typed(line), "holds finished work")


def test_json_is_all_that_stdout_carries(typed):
    result = typed("convert model.pt --adapter gpt2 --out other --json")
    assert result.exit_code == 0 and json.loads(result.stdout)["adapter"] == "gpt2"
    result = typed("adapters --json")
    assert {"gpt2", "vit", "mlp_ranker"} <= {entry["name"] for entry in json.loads(result.stdout)}


@pytest.mark.slow
def test_a_report_with_baselines(typed):
    """Baselines are trained beside the Students, each of which gets its verdict; the report can be
    made anew without them.
    """
    result = typed(
        "export --widths 0.25,0.5 --baselines untrained,plain --margin 0.5 --overwrite --json"
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [m["name"] for m in found["models"] if m["role"] == "plain"] == [
        "plain distillation 0.25",
        "plain distillation 0.5",
    ]
    assert "plain-width-0.5 (2 of 2): training, 6 steps" in result.stderr and found["margin"] == 0.5
    result = typed("report")
    assert result.exit_code == 0 and "training, 6 steps" not in result.stderr, result.stderr
    headers, *rows = [line.split("\t") for line in result.stdout.splitlines()]
    row = dict(zip(headers, next(r for r in rows if r[0] == "width 0.5"), strict=True))
    pairs = [
        p for p in found["pairs"] if (p["a"], p["b"]) == ("width 0.5", "plain distillation 0.5")
    ]
    assert row["verdict"] == pairs[0]["verdict"] and "one run for all" in row["training"]
    assert json.loads(Path("matta-out/report.json").read_text())["pairs"] == found["pairs"]
    assert "Was it worth it?" in Path("matta-out/report.html").read_text()


# Refusals


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "convert model.pt --adapter gtp2 -o o",
            ["There is no adapter 'gtp2'", "did you mean 'gpt2'"],
        ),
        ("convert nothing.pt --adapter gpt2 -o o", ["no file or folder 'nothing.pt'"]),
        ("convert truncated.safetensors --adapter gpt2 -o o", ["truncated.safetensors is damaged"]),
        ("convert conv.pt --adapter gpt2 -o o", ["'conv.pt'", "not a GPT-2"]),
        ("convert conv.pt -o o", ["conv.pt", "no installed adapter"]),
        ("convert pickled.pt --adapter mlp_ranker -o o", ["'pickled.pt'", "--allow-pickle"]),
        ("convert model.pt --adapter gpt2 --expand 0.5 -o o", ["--expand 0.5"]),
        ("convert model.pt --adapter gpt2 --order best -o o", ["--order 'best'"]),
        ("convert gpt2-large --data nothing.txt -o o", ["'nothing.txt'"]),
        ("distill --teacher other-vocabulary --overwrite", ["325", "320"]),
        ("distill --overwrite", ["No Teacher is named", "--teacher"]),
        ("distill --teacher gpt2-large --data empty.txt --overwrite", ["'empty.txt'"]),
        ("distill --teacher gpt2-large --data nothing.txt --overwrite", ["'nothing.txt'"]),
        (
            "distill --teacher gpt2-large --config strict.toml --overwrite",
            ["too weak", "--allow-weak-teacher"],
        ),
        ("distill --teacher gpt2-large --steps 0 --overwrite", ["--steps 0"]),
        (
            "distill --teacher gpt2-large --steps many --overwrite",
            ["'--steps'", "See `matta distill --help`"],
        ),
        ("distil --teacher gpt2-large", ["'distil'", "Did you mean 'distill'? See `matta --help`"]),
        (
            "distill --teacher gpt2-large --config value.toml --overwrite",
            ["distill is a table", "not 5", "below [distill]"],
        ),
        ("distill --teacher gpt2-large --device tpu7 --overwrite", ["'tpu7'"]),
        ("distill --teacher gpt2-large --widths 5 --overwrite", ["Width 5", "up to 1"]),
        ("distill --teacher gpt2-large --config missing.toml --overwrite", ["'missing.toml'"]),
        (
            "distill --teacher gpt2-large --config typo.toml --overwrite",
            ["'step'", "did you mean 'steps'"],
        ),
        ("distill nowhere --teacher gpt2-large", ["nowhere", "matta convert"]),
        (
            "export matta-out --out other --widths 0.5",
            ["matta-out and --out other are two folders"],
        ),
        ("inspect matta-out --out other", ["matta-out and --out other are two folders"]),
        ("eval gpt2-large --name small", ["--name small and gpt2-large do not go together"]),
        (
            "demo --quick --out matta-out",
            ["matta-out holds finished work that is no demo's", "--out"],
        ),
        (
            "convert model.pt --adapter gpt2 --config heads.json -o o",
            ["'model.pt'", "--config", "num_heads"],
        ),
        ("export --widths 0.5 --margin 2 --overwrite", ["--margin 2", "from 0 to 1"]),
        ("export --widths 0 --overwrite", ["--widths '0'"]),
        ("export --widths 3 --overwrite", ["Width 3", "up to 1"]),
        ("export --widths a --overwrite", ["--widths 'a'", "0.25,0.5,1.0"]),
        ("export --widths 0.5,0.5001 --overwrite", ["0.5 and 0.5001", "same Student"]),
        (
            "export --trials 3 --overwrite",
            ["--trials is about the search for a budget", "--target-params"],
        ),
        ("export nowhere", ["nowhere", "matta convert"]),
        (
            "export --baselines plane --overwrite",
            ["--baselines 'plane'", "untrained, ground-truth, plain, scratch"],
        ),
        ("report nowhere", ["no report in nowhere", "matta export"]),
        (
            "report --baselines plane",
            ["--baselines 'plane'", "untrained, ground-truth, plain, scratch"],
        ),
        ("report --margin 1.5", ["--margin 1.5"]),
        ("search nowhere", ["nowhere", "matta convert"]),
        ("search --target-latency 5", ["--target-latency '5'", "write it as 5ms"]),
        (
            "search --target-params 20k --threads 2",
            ["--threads is about latency", "--target-latency"],
        ),
        # not "finished"
        ("export --target-params 60k --trials 0", ["--trials", "1 or more"]),
        (
            "search --target-macs 1M --target-macs 2M"
            " --target-params 1M --target-params 2M --target-params 3M",
            ["once for all"],
        ),
        ("eval --against gpt2-large", ["--against 'gpt2-large'", "width-0.25"]),
        ("eval matta-out@9", ["Width 9", "up to 1"]),
        ("eval matta-out@0.5 nothing/here/at/all", ["'nothing/here/at/all'"]),
        ("eval gpt2-large other-vocabulary", ["325", "320"]),
        ("eval gpt2-large --held-out nothing.txt", ["'nothing.txt'"]),
        ("eval gpt2-large --cascade", ["two models"]),
        ("eval gpt2-large matta-out@0.5 --cascade", ["how sure they are", "causal_lm"]),
        ("eval gpt2-large --speculative gpt2-large", ["SMALL,LARGE"]),
        ("eval gpt2-large --task-data lambada_openai", ["lambada_openai=FILE.jsonl"]),
        ("eval --out empty", ["nothing to evaluate", "empty"]),
    ],
)
def test_refusals(typed, line, words):
    save_file(
        gpt2(320).state_dict() | {"lm_head.weight": torch.zeros(320, 64)}, "whole.safetensors"
    )
    Path("truncated.safetensors").write_bytes(Path("whole.safetensors").read_bytes()[:-5000])
    torch.save(nn.ModuleDict({"conv": nn.Conv2d(1, 2, 3)}).state_dict(), "conv.pt")
    torch.save(nn.Sequential(nn.Linear(2, 1)), "pickled.pt")
    Path("empty.txt").touch()
    Path("heads.json").write_text('{"n_embd": 64, "n_head": 5, "vocab_size": 320}')
    Path("strict.toml").write_text(TOML.replace("true", "false"))
    Path("value.toml").write_text("distill = 5\n")
    Path("typo.toml").write_text("[distill]\nstep = 3\n")
    kept = sorted(Path("matta-out").rglob("*"))
    refusal(typed(line), *words)
    assert not Path("o").exists()
    assert sorted(Path("matta-out").rglob("*")) == kept, (
        "a refused command must leave finished work alone"
    )


def test_a_budget_that_is_not_possible_names_the_nearest(typed):
    kept = sorted(Path("matta-out/students").rglob("*"))
    said = refusal(
        typed("export --target-params 100 --target-macs 10 --overwrite"),
        "is not possible",
        "parameters",
        "MACs",
    )
    nearest = said.partition("the nearest possible is ")[2].partition(";")[0]
    assert sorted(Path("matta-out/students").rglob("*")) == kept
    assert typed(f"search {nearest}").exit_code == 0, nearest


def test_pickle_opens_with_the_flag(typed):
    torch.save(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)), "pickled.pt")
    Path("matta.toml").unlink()
    assert typed("convert pickled.pt --allow-pickle -o o").exit_code == 0


def test_steps_out_of_order(typed):
    shutil.rmtree("matta-out/run")
    shutil.rmtree("matta-out/students")
    refusal(typed("export"), "matta distill")
    refusal(typed("distill --teacher gpt2-large --resume"), "no checkpoint")
    shutil.rmtree("matta-out")
    refusal(typed("distill --teacher gpt2-large"), "matta convert")


def test_no_data_is_known(typed):
    Path("matta.toml").unlink()
    assert typed("convert model.pt --adapter gpt2 -o o").exit_code == 0
    assert "Salesforce/wikitext" in Path("o/matta.toml").read_text()
    refusal(typed("distill o --teacher gpt2-large"), "'Salesforce/wikitext'", "hub", "--data")


def test_damaged_output_folder(typed):
    Path("matta-out/ta/matta.json").write_text('{"format": 1, ')
    refusal(typed("export --overwrite"), "matta.json", "damaged")
    Path("matta-out/ta/matta.json").write_text('{"format": 99}')
    refusal(typed("export --overwrite"), "format 99", "upgrade")


# Budgets


def test_search_by_budgets(typed):
    result = typed("search --target-params 60k --target-memory 230kB --trials 4 --json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (
        found["choices"][0]["budget"] == "params-60k-memory-230kB"
        and found["search"]["evaluated"] > 0
    )
    assert "Next: matta export --target-params 60k --target-memory 230kB" in result.stderr
    assert "uses" in result.stderr and "loads it" in result.stderr


@pytest.mark.slow
def test_export_by_budgets(typed):
    # the sizes that were trained below them have 56,128 and 72,640 parameters; the latter's cut of
    # the base is the base
    budgets = "--target-params 57k --target-params 73k --target-memory 10MB --trials 4"
    result = typed(f"export --widths 0.5 {budgets} --overwrite")
    assert result.exit_code == 0, result.stderr
    students = Path("matta-out/students")
    assert sorted(p.name for p in students.iterdir() if p.is_dir()) == [
        "params-57k-memory-10MB",
        "params-73k-memory-10MB",
        "width-0.5",
    ]
    report = json.loads(Path("matta-out/report.json").read_text())
    assert (
        "that chose no sizes" in report["data"]
        and 'target_params = ["57k", "73k"]' in report["recipe"]
    )
    rows = {m["name"]: m for m in report["models"]}
    for name, limit in (("params-57k-memory-10MB", 57_000), ("params-73k-memory-10MB", 73_000)):
        assert 0.95 * limit <= rows[name]["parameters"] <= limit and rows[name]["parity"]["exact"]
        cut = rows.get(f"untrained cut {name}", rows["base"])
        assert cut["parameters"] == rows[name]["parameters"]
        card = (students / name / "README.md").read_text()
        assert "pipeline('text-generation', model=folder)" in card
        assert f"folder = 'matta-out/students/{name}'" in card
        card = json.loads((students / name / "matta.json").read_text())
        assert card["lineage"]["student"] == name
    result = typed("eval --bootstrap 5")
    assert result.exit_code == 0, result.stderr
    measured = [line.split("\t")[0] for line in result.stdout.split("\n\n")[0].splitlines()[2:]]
    assert sorted(measured) == [
        f"matta-out/students/{name}"
        for name in ("params-57k-memory-10MB", "params-73k-memory-10MB", "width-0.5")
    ]
    assert "that chose no sizes" in result.stderr and "Note: " not in result.stderr
    result = typed("eval --bootstrap 5 --held-out text.txt")
    assert result.stderr.count("was chosen on a half of the run's held-out examples") == 2


# Comparing


def test_eval_measures_what_export_left(typed):
    """The base and its Students, in a table or as JSON, as the report has them; a view is its
    exported copy.
    """
    result = typed("eval --teacher gpt2-large --bootstrap 20")
    assert result.exit_code == 0, result.stderr
    first, second = (part.splitlines() for part in result.stdout.split("\n\n"))
    assert first[0].split("\t")[:4] == ["model", "parameters", "MACs", "perplexity"]
    assert first[0].split("\t")[-2:] == ["agrees with TA", "agrees with Teacher"]
    assert [line.split("\t")[0] for line in first[1:]] == [
        "matta-out/ta@1",
        *(f"matta-out/students/width-{w}" for w in ("0.25", "0.5", "1")),
    ]
    assert (
        second[0].startswith("model\tmetric\tless matta-out/ta@1\tverdict\tp\tp (Holm)\ttest")
        and len(second) == 1 + 3 * 3
    )
    result = typed(
        "eval matta-out@0.5 matta-out/students/width-0.5 gpt2-large --bootstrap 20 --json"
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["models"]
    report = json.loads(Path("matta-out/report.json").read_text())
    reported = next(m for m in report["models"] if m["name"] == "width 0.5")
    for name, metric in reported["metrics"].items():
        assert (
            found[0]["metrics"][name]["value"]
            == found[1]["metrics"][name]["value"]
            == pytest.approx(metric["value"])
        )
    assert all(d["value"] == 0 and d["p"] == 1 for d in found[1]["differences"].values())
    assert found[0]["macs"] == reported["macs"] and found[0]["parameters"] == reported["parameters"]
    assert found[2]["differences"]["perplexity"]["p_holm"] < 1


def test_eval_finds_the_settings_of_the_folder_that_a_model_lies_in(typed):
    Path("matta-out").rename("elsewhere")
    for words in ("elsewhere@0.5", "elsewhere/students/width-0.5"):
        result = typed(f"eval {words} --bootstrap 5")
        assert result.exit_code == 0, result.stderr
        assert (
            str(Path("elsewhere/run/recipe.toml")) in result.stderr
            and len(result.stdout.splitlines()) == 2
        )


def test_eval_drafts(typed):
    result = typed("eval --speculative matta-out@0.25,matta-out@1 --bootstrap 5")
    assert result.exit_code == 0, result.stderr
    *_, table = result.stdout.split("\n\n")
    rows = dict(row.split("\t") for row in table.splitlines())
    assert (
        rows["matta-out@0.25 drafts for matta-out@1"] == ""
        and rows["same output"] == "100% of 8 prompts"
    )
    assert (
        1 <= float(rows["tokens per call of the larger"]) <= 6
        and "drafted tokens" in rows["acceptance"]
    )


# Stopping and going on


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_resume_finishes(finished, tmp_path, monkeypatch, number):
    folder = tmp_path / "here"
    shutil.copytree(finished[0], folder)
    shutil.rmtree(folder / "matta-out" / "run")
    log = folder / "matta-out" / "run" / "metrics.jsonl"
    words = ["distill", "--teacher", "gpt2-large", "--steps", "40000"]
    with subprocess.Popen(
        [sys.executable, "-m", "matta_cli", *words],
        cwd=folder,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (
            log.exists() and log.read_text().count("\n") > 2
        ):
            time.sleep(0.05)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said and "Go on with `matta distill --resume`." in said
    (saved,) = (folder / "matta-out" / "run" / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    assert step >= 2 and (saved / "model.safetensors").exists()
    monkeypatch.chdir(folder)
    words = ["distill", "--teacher", "gpt2-large", "--resume", "--steps", str(step + 3)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert f"Resuming from step {step}" in done.stderr
    assert (saved.parent / f"step-{step + 3}" / "model.safetensors").exists()


def test_resume_keeps_the_settings_of_the_run(typed):
    """What the interrupted run says to type, ``matta distill --resume``, is enough."""
    assert (
        typed(
            "distill --teacher gpt2-large --steps 4 --save-every 2 --seed 7 --overwrite"
        ).exit_code
        == 0
    )
    shutil.rmtree("matta-out/run/checkpoints/step-4")
    result = typed("distill --resume")
    assert result.exit_code == 0, result.stderr
    assert (
        Path("matta-out/run/checkpoints/step-4").exists()
        and not Path("matta-out/run/checkpoints/step-6").exists()
    )


def test_a_resume_that_trains_nothing_changes_no_setting(typed):
    settings = Path("matta-out/run/recipe.toml")
    before = settings.read_bytes()
    refusal(typed("distill --resume --steps 5"), "nothing to train", "--steps is 5", "step 6")
    assert settings.read_bytes() == before
    result = typed("distill --resume --lr 0.1")
    assert result.exit_code == 0 and "nothing was trained, no setting changed" in result.stderr
    assert settings.read_bytes() == before
    refusal(typed("distill --resume --overwrite"), "--resume", "--overwrite", "one of them")
    shutil.rmtree("matta-out/run/checkpoints/step-6")
    assert typed("distill --teacher gpt2-large --overwrite --save-every 2").exit_code == 0
    shutil.rmtree("matta-out/run/checkpoints/step-6")
    refusal(
        typed("distill --teacher gpt2-large"), "stopped at step 4 of 6", "--resume", "--overwrite"
    )


def test_skipped_steps_are_named(typed):
    result = typed("distill --teacher gpt2-large --overwrite --lr 1e30")
    assert (
        result.exit_code == 0 and "steps were skipped: their loss was not finite" in result.stderr
    ), result.stderr


def test_resume_is_bit_for_bit(typed):
    line = "distill --teacher gpt2-large --save-every 3"
    last = Path("matta-out/run/checkpoints/step-6")
    once = (last / "model.safetensors").read_bytes()  # six steps at once, in another process
    assert typed(f"{line} --overwrite").exit_code == 0
    assert (last / "model.safetensors").read_bytes() == once
    optimizer = (last / "optimizer" / "state.safetensors").read_bytes()
    shutil.rmtree(last)
    result = typed(f"{line} --resume")
    assert result.exit_code == 0 and "Resuming from step 3" in result.stderr
    assert (last / "model.safetensors").read_bytes() == once
    assert (last / "optimizer" / "state.safetensors").read_bytes() == optimizer
    assert (last.parent / "step-3" / "model.safetensors").read_bytes() != once


def interrupt_at(monkeypatch, owner, name: str, call: int) -> None:
    """Press Ctrl-C inside the ``call``-th call of a function."""
    real, calls = getattr(owner, name), []

    def pressed(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, pressed)


MOMENTS = {
    "in a step": ("matta_cli.training.objective:Step", "_learn_group", 14),
    "after an update": ("torch.optim:AdamW", "zero_grad", 3),
    "in an evaluation": ("matta_cli.training.loop", "measure", 4),
    "in a checkpoint": ("matta_cli.training.loop:Training", "save", 1),
}
SLOW_MOMENTS = ("in a step", "after an update", "in an evaluation")


@pytest.mark.parametrize(
    "moment",
    [pytest.param(m, marks=[pytest.mark.slow] if m in SLOW_MOMENTS else []) for m in MOMENTS],
)
def test_interrupted_anywhere_goes_on_bit_for_bit(typed, monkeypatch, moment):
    """The checkpoint's number is the number of updates that it holds, whenever Ctrl-C comes."""
    owner, name, call = MOMENTS[moment]
    once = Path("matta-out/run/checkpoints/step-6/model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        interrupt_at(patch, pkgutil.resolve_name(owner), name, call)
        result = typed("distill --teacher gpt2-large --save-every 3 --overwrite")
        assert result.exit_code == 130, result.output
    assert typed("distill --teacher gpt2-large --resume").exit_code == 0
    assert Path("matta-out/run/checkpoints/step-6/model.safetensors").read_bytes() == once
    steps = [
        json.loads(line)["step"]
        for line in Path("matta-out/run/metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 7)), "every step is logged once"


def test_interrupted_ranker_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """BatchNorm's statistics move in the forward, before the weights do: not twice, though."""
    from matta_adapters.mlp_ranker import MLPRanker, Ranker

    from matta_cli.conversion.convert import convert
    from matta_cli.errors import Interrupted
    from matta_cli.settings.recipe import Recipe
    from matta_cli.training import objective, run

    g = torch.Generator().manual_seed(0)
    rows = ["a,x,y,label"]
    for _ in range(200):
        a, x, y = int(torch.randint(5, (1,), generator=g)), *torch.randn(2, generator=g).tolist()
        rows.append(f"{a},{x:.4f},{y:.4f},{int(x + a / 2 > 1)}")
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    recipe = Recipe()
    for seed, role, width in ((0, "base", 8), (1, "teacher", 16)):
        torch.manual_seed(seed)
        layers = [
            {"layer": "Linear", "out": width},
            {"layer": "BatchNorm1d"},
            {"layer": "ReLU"},
            {"layer": "Linear", "out": 1},
        ]
        (tmp_path / role).mkdir()
        MLPRanker().save(Ranker([(5, 4)], 2, layers).eval(), tmp_path / role)
    recipe.convert.source, recipe.distill.teacher = (
        str(tmp_path / "base"),
        str(tmp_path / "teacher"),
    )
    recipe.data.train, recipe.data.categorical, recipe.data.dense = (
        str(tmp_path / "rows.csv"),
        ["a"],
        ["x", "y"],
    )
    recipe.distill.steps, recipe.distill.allow_weak_teacher, recipe.distill.device = 6, True, "cpu"
    out = tmp_path / "out"
    convert(recipe, out)
    once = (run.distill(recipe, out) / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        interrupt_at(patch, objective.Step, "_learn_group", 14)
        with pytest.raises(Interrupted):
            run.distill(recipe, out, overwrite=True)
    assert (run.distill(recipe, out, resume=True) / "model.safetensors").read_bytes() == once


EXPORT = pytest.param("export --overwrite", marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "line", ["convert model.pt --adapter gpt2", "distill --teacher gpt2-large", EXPORT]
)
def test_full_disk(typed, monkeypatch, line):
    from matta_cli.files import atomic

    if not line.startswith("export"):
        shutil.rmtree("matta-out/run")
    if line.startswith("convert"):
        shutil.rmtree("matta-out")
    kept = (
        {p: p.stat().st_size for p in Path("matta-out/students").rglob("*")}
        if line.startswith("export")
        else {}
    )

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        refusal(typed(line), "disk is full", "run the same command again")
    assert {p.name for p in Path("matta-out").rglob(".*")} <= {".lock"}, "a temporary file was left"
    if line.startswith("convert"):
        assert not Path("matta-out/ta").exists()
    if kept:
        assert {p: p.stat().st_size for p in Path("matta-out/students").rglob("*")} == kept
    again = typed(line)
    assert again.exit_code == 0, again.stderr
