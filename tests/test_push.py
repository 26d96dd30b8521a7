"""Students on the hub: what is sent, what is refused, and that what came loads again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub
import pytest
import torch
from huggingface_hub import ModelCard, constants
from sample_text import byte_tokenizer, prose
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from matta_cli.conversion.convert import convert
from matta_cli.family import export
from matta_cli.main import app
from matta_cli.models.folders import load_student
from matta_cli.report.schema import Report
from matta_cli.settings.recipe import Recipe
from matta_cli.training.run import distill


def made(folder: Path, license: str = "mit") -> Recipe:
    """A base with a tokenizer and a card, text, and the recipe of two steps."""
    text = prose(80)
    tokenizer = byte_tokenizer([text], 280)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 64}
    sizes |= {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**sizes))
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "base/README.md").write_text(f"---\nlicense: {license}\n---\n" if license else "")
    (folder / "text.txt").write_text(text)
    recipe = Recipe()
    recipe.convert.source, recipe.convert.expand = str(folder / "base"), 1.0
    recipe.data.train, recipe.data.sequence_length = str(folder / "text.txt"), 16
    recipe.distill.teacher, recipe.distill.steps = str(folder / "base"), 2
    recipe.convert.axes, recipe.distill.allow_weak_teacher = ["mlp", "heads"], True
    recipe.distill.batch_size, recipe.distill.widths = 4, [0.5, 1.0]
    recipe.export.widths, recipe.export.bootstrap = [0.5, 1.0], 10
    recipe.export.new_tokens, recipe.export.batch_size = 2, 2
    return recipe


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Path:
    """An output folder of two Students, of which width 0.5 is in matta's own format."""
    folder = tmp_path_factory.mktemp("family")
    recipe, out = made(folder), folder / "matta-out"
    convert(recipe, out)
    distill(recipe, out)
    export(recipe, out)
    return out


@pytest.fixture
def students(family, tmp_path, monkeypatch) -> Path:
    """A copy of them, in the current folder's ``matta-out``."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(family, tmp_path / "matta-out")
    return tmp_path / "matta-out/students"


@pytest.fixture
def there(monkeypatch) -> Iterator[hub.Hub]:
    """The hub, which this process takes for Hugging Face's."""
    with hub.running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
        yield server


def push(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["push", *arguments])


def refused(*arguments: str) -> str:
    """The one sentence on stderr."""
    result = push(*arguments)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Sending ")]
    assert result.exit_code == 1 and len(lines) == 1 and lines[0].startswith("Error: "), lines
    assert result.stdout == "" and lines[0].endswith(".")
    return lines[0]


def test_a_family_becomes_repositories_and_a_collection(students, there):
    result = push("--to", "me/small", "--private")
    assert result.exit_code == 0, result.stderr
    assert sorted(there.repositories) == ["me/small-width-0.5", "me/small-width-1"]
    for name, repository in there.repositories.items():
        folder = students / name.partition("-")[2]
        files = there.files(name)
        assert repository["private"] and repository["commits"] == 1
        there_now = (path for path in folder.rglob("*") if path.is_file())
        written = {path.relative_to(folder).as_posix() for path in there_now}
        assert set(files) == written - {"SHA256SUMS"}
        for path in set(files) - {"README.md"}:
            assert files[path] == (folder / path).read_bytes()
    (slug,) = there.collections
    collected = there.collections[slug]
    assert (collected["namespace"], collected["title"]) == ("me", "small") and collected["private"]
    assert [item["id"] for item in collected["items"]] == sorted(there.repositories)
    assert {item["type"] for item in collected["items"]} == {"model"}
    lines = result.stdout.splitlines()
    assert lines[0] == f"{there.url}/me/small-width-0.5" and lines[2].endswith(slug)


@pytest.mark.parametrize("place", ["elsewhere", "'\\xZZ'", '"open', "(" * 500])
def test_a_card_with_another_folder_stays_as_it_is(students, place):
    card = students / "width-1/README.md"
    lines = card.read_text().splitlines(keepends=True)
    changed = [f"folder = {place}\n" if own.startswith("folder = ") else own for own in lines]
    card.write_text("".join(changed))
    result = push(str(students / "width-1"), "--to", "me/whole", "--dry-run")
    assert result.exit_code == 0 and f"folder = {place}\n" in result.stdout, result.stderr


def test_the_card_says_what_the_hub_reads(students, there):
    assert push(str(students / "width-1"), "--to", "me/whole").exit_code == 0
    assert list(there.repositories) == ["me/whole"] and not there.collections
    card = ModelCard(there.files("me/whole")["README.md"].decode())
    data = card.data
    known = [getattr(data, name) for name in ("license", "pipeline_tag", "library_name")]
    assert known == ["mit", "text-generation", "transformers"]
    report = Report.from_json(json.loads((students.parent / "report.json").read_text()))
    entry = report.model("width 1")
    for result in data.eval_results:
        value = entry.metrics[result.metric_type]
        assert result.metric_value == value.value
        assert result.metric_args == {"confidence": 0.95, "low": value.low, "high": value.high}
    lines = card.text.partition("## How to run it")[2]
    assert "folder = snapshot_download('me/whole')\n" in lines and "vllm serve me/whole\n" in lines
    assert "students/width-1" not in lines


def test_what_matta_did_not_write_is_not_sent(students, there):
    folder = students / "width-0.5"
    (folder / "secret.json").write_text("{}")
    (folder / "link.txt").symlink_to("/etc/hostname")
    (folder / "more").mkdir()
    (folder / "more/notes.md").write_text("mine")
    result = push(str(folder), "--to", "me/half")
    assert result.exit_code == 0
    assert "Not of matta, and not sent: link.txt, more/notes.md, secret.json" in result.stderr
    assert not {"secret.json", "link.txt", "more/notes.md"} & set(there.files("me/half"))


def test_a_file_that_was_changed_or_is_a_link_is_refused(students, there):
    folder = students / "width-0.5"
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1] + b"x")
    assert "is not as matta wrote it" in refused(str(folder), "--to", "me/half")
    (students / "elsewhere").write_bytes(weights)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(students / "elsewhere")
    assert "is a link" in refused(str(folder), "--to", "me/half")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(weights)
    sums = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_text(sums + f"{'0' * 64}  ../../report.json\n")
    assert "outside of its folder" in refused(str(folder), "--to", "me/half")
    (folder / "SHA256SUMS").write_text("nonsense")
    assert "is damaged" in refused(str(folder), "--to", "me/half")
    assert not there.asked


def test_a_dry_run_sends_nothing(students, there, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    result = push("--to", "me/small", "--dry-run")
    assert result.exit_code == 0 and not there.asked
    size = (students / "width-0.5/model.safetensors").stat().st_size
    assert f"  model.safetensors\t{size}\n" in result.stdout
    assert "me/small-width-1\n" in result.stdout and "license: mit" in result.stdout
    assert result.stderr.splitlines() == [
        "Nothing was sent: leave out --dry-run to send it.",
        "Next: matta push --to me/small",
    ]


def test_a_license_that_is_not_known_is_asked_for(students, there):
    card = students / "width-0.5/README.md"
    card.write_text(card.read_text().replace("license: mit\n", ""))
    assert "--license apache-2.0" in refused(str(card.parent), "--to", "me/half")
    assert push(str(card.parent), "--to", "me/half", "--license", "gpl").exit_code == 0
    assert ModelCard(there.files("me/half")["README.md"].decode()).data.license == "gpl"
    told = refused(str(card.parent), "--to", "me/other", "--license", "nonsense")
    assert '"license" must be one of [apache-2.0, mit]' in told and there.url in told


def test_what_is_there_is_replaced_with_overwrite_only(students, there):
    assert push("--to", "me/small").exit_code == 0
    told = refused("--to", "me/small")
    assert "me/small-width-0.5 is on the hub already" in told and "--overwrite" in told
    assert there.repositories["me/small-width-0.5"]["commits"] == 1
    again = push("--to", "me/small", "--overwrite")
    assert again.exit_code == 0, again.stderr
    assert there.repositories["me/small-width-0.5"]["commits"] == 2
    (collected,) = there.collections.values()
    assert len(collected["items"]) == 2


LONG = "me/" + "x" * 100


@pytest.mark.parametrize("to", ["small", "me/small model", "a/b/c", "me/x--y", LONG, ""])
def test_names_that_the_hub_does_not_have(students, there, to):
    assert "--to" in refused(str(students / "width-0.5"), "--to", to) and not there.asked


def test_tokens_and_the_network(students, there, monkeypatch):
    folder = str(students / "width-0.5")
    assert "begin with a name of yours" in refused(folder, "--to", "somebody/else")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not accept your token" in refused(folder, "--to", "me/half")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(students / "none"))
    assert "There is no token" in refused(folder, "--to", "me/half")
    monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "is not reached" in refused(folder, "--to", "me/half")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused(folder, "--to", "me/half")
    assert not there.repositories


def test_a_hub_that_fails_half_way(students, there):
    there.failing = "/commit/"
    assert "the disk of the hub is full" in refused(str(students / "width-0.5"), "--to", "me/half")
    assert there.files("me/half") == {}


def test_folders_that_are_no_students(students, there):
    assert "is no Student" in refused(str(students.parent / "ta"), "--to", "me/half")
    assert "There is no folder" in refused("nowhere", "--to", "me/half")
    assert f"pass one below it, such as {students}" in refused(str(students), "--to", "me/half")
    shutil.copytree(students / "width-0.5", students.parent / "other/width-0.5")
    both = (str(students / "width-0.5"), str(students.parent / "other/width-0.5"))
    assert "have the same name" in refused(*both, "--to", "me/half")
    assert "run `matta export` first" in refused("--out", "nowhere", "--to", "me/half")


@pytest.mark.slow
def test_the_command_and_what_came_loads_by_its_name(students, there, tmp_path):
    """As a user types it, by the environment alone; the Student is of matta's own format."""
    environment = {**os.environ, "HF_ENDPOINT": there.url, "HF_TOKEN": hub.TOKEN}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    # as many threads as here: with more, sums differ in the last digit
    environment |= {"HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    folder = students / "width-0.5"
    assert (folder / "template/sizes.json").is_file()
    told = run("-m", "matta_cli", "push", str(folder), "--to", "me/half")
    assert told == f"{there.url}/me/half\n"
    torch.save(load_student(folder)(torch.arange(9)[None]).logits, "expected.pt")
    run("-c", LOADS)


LOADS = """
import torch, matta_cli
logits = matta_cli.load_student("me/half")(torch.arange(9)[None]).logits
assert torch.equal(logits, torch.load("expected.pt"))
"""
