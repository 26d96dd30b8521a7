"""What commands say of costs is one thing: of the same examples, which are said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

from matta_cli.comparison.compare import Asked, evaluation
from matta_cli.main import app
from matta_cli.measure import cost
from matta_cli.measure.held_out import HeldOut
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import task
from tests.text_models import bert, labels


def test_eval_counts_macs_as_the_report_does(tmp_path):
    """Texts of a batch are as long as the longest, whatever the first one is."""
    model = bert(tmp_path / "it", **labels("bad", "good"))
    data = tmp_path / "data.csv"
    rows = [f"{'the film was good ' * (1 + 2 * (k % 2))},{'good'}" for k in range(20)]
    data.write_text("\n".join(["text,label", *rows, "the plot,bad"]) + "\n")
    recipe = Recipe()
    recipe.data.train, recipe.export.bootstrap, recipe.export.batch_size = str(data), 5, 2
    made = task("text_classification", recipe)
    held_out = HeldOut(recipe, made, made.data(tmp_path / "it", model), torch.device("cpu"), 8)
    of_report = cost.repeated(held_out.first(recipe.export.batch_size), 1)
    result: Any = evaluation(recipe, Asked([str(tmp_path / "it")]), tmp_path)
    assert result["models"][0]["macs"] == cost.macs(made, model, of_report)
    assert result["tokens"] == cost.tokens(of_report) == 16


def test_convert_says_of_what_its_macs_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bert(Path("it"), **labels("bad", "good"))
    for more in ([], ["--target-macs", "80%"]):
        done = CliRunner().invoke(app, ["convert", "it", "--overwrite", *more])
        assert done.exit_code == 0 and "MACs are those of an example of 32 tokens." in done.stderr
    assert "; MACs are of an example of 32 tokens." in done.stderr


def test_an_output_folder_that_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("it").mkdir()
    Path("file").touch()
    Path("link").symlink_to("nowhere")
    for out, said in (("file", "is no folder: name a"), ("link", "is a link to nothing: name a")):
        done = CliRunner().invoke(app, ["convert", "it", "--out", out])
        assert done.exit_code == 1 and f"--out '{out}' {said}" in done.stderr
