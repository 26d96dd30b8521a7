"""The study of families: how rates are found, what a table says, and a whole small run of it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.family import page
from benchmarks.family.__main__ import RESULTS, best_rate, tuning
from benchmarks.family.cells import ARMS, MAIN, PROBLEMS, WIDTHS, Cell
from benchmarks.quality import images, rankers
from benchmarks.quality.study import TUNED_ON, Store

ROOT = Path(__file__).parents[1]
VIT = PROBLEMS["vit"]


def record(arm, seed, value, *, length="short", rate=1e-3, seconds=1.0):
    split = "dev" if seed >= TUNED_ON else "test"
    cell = Cell("vit", length, arm, seed, rate)
    widths = {f"{w:g}": {split: {"top1": value}} for w in ARMS[arm].widths}
    more = {"seconds": seconds, "flops": seconds, "steps": [10], "widths": widths, "base": "b"}
    return {"key": cell.key(), **vars(cell), **more}


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (1, [0, 1, 2, 3]),  # inside the grid: no more is tried
        (0, [-2, -1, 0, 1, 2, 3]),  # at its end: twice half of the lowest
        (3, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_a_grid_whose_end_is_best_is_made_longer_but_not_without_end(tmp_path, best, tried):
    """A metric that gets better towards the best rate, and beyond the end goes on to do so."""
    store, rates = Store(tmp_path / "s.jsonl"), VIT.rates
    beyond = {0: -9, 1: 1, 3: 9}[best]
    while todo := tuning(VIT, "divided", "short", store):
        for cell in todo:
            place = round(math.log2(cell.rate / rates[0]))
            store.add(record("divided", TUNED_ON, 0.5 - abs(place - beyond) / 100, rate=cell.rate))
    found, order = best_rate(VIT, "divided", "short", store)
    assert order == pytest.approx([rates[0] * 2.0**k for k in tried])
    assert found == pytest.approx(rates[0] * 2.0 ** {0: -2, 1: 1, 3: 5}[best])
    [first, *_] = tuning(VIT, "divided", "long", store)
    assert first.rate == found / 2 and first.length == "long"


def test_a_table_has_gains_and_what_they_cost(tmp_path):
    store = Store(tmp_path / "s.jsonl")
    for seed in range(3):
        for width in WIDTHS:
            store.add(record(f"separate@{width:g}", seed, 0.80 + seed / 100))
        store.add(record("divided", seed, 0.82 + seed / 100 + seed / 1000, seconds=1.6))
    said = page.text(store).splitlines()
    assert "### ViT on Fashion-MNIST, short: 10 steps a separate run, 3 seeds" in said
    [row] = [line for line in said if line.startswith("| a family, rows divided |")]
    # errors of 0.19 in the mean; better by 0.02, 0.021 and 0.022
    assert row.startswith(f"| a family, rows divided | 0.40 | 0.40 | {2.1 / 0.19:+.1f} [")
    before = tmp_path / "results.md"
    before.write_text("old\n## The paper's recipe, and so on\nkept\n")
    page.write(before, "new\n")
    assert before.read_text() == "new\n\n## The paper's recipe, and so on\nkept\n"


def test_a_cell_is_another_one_when_anything_that_counts_is_another():
    cell = Cell("vit", "short", "divided", 0, 1e-3)
    others = [
        Cell("lm", "short", "divided", 0, 1e-3),
        Cell("vit", "long", "divided", 0, 1e-3),
        Cell("vit", "short", "all", 0, 1e-3),
        Cell("vit", "short", "divided", 1, 1e-3),
        Cell("vit", "short", "divided", 0, 2e-3),
        Cell("vit", "short", "divided", 0, 1e-3, quick=True),
    ]
    assert len({c.key() for c in (cell, *others)}) == 7


def test_the_page_says_what_the_records_say():
    """Nothing in the tables of docs/results.md is typed by hand, and they are up to date."""
    store = Store(RESULTS)
    done = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    assert {r["key"] for r in done} == {
        Cell(*(r[k] for k in ("problem", "length", "arm", "seed", "rate", "quick"))).key()
        for r in done
    }
    said = page.text(store).rstrip()
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8").startswith(said + "\n")


def test_fewer_examples_keep_what_the_teacher_says_of_each(tmp_path):
    """Images and rows are cut, and the Teacher's file with them, row by row."""
    values = np.arange(40)
    save_file({"row": torch.arange(40), "logits": torch.from_numpy(values)}, tmp_path / "t")
    np.savez(tmp_path / "train.npz", images=values[:, None, None], labels=values)
    images._cut(tmp_path / "train.npz", tmp_path / "t", 7, tmp_path)
    cut, said = np.load(tmp_path / "train.npz"), load_file(tmp_path / "train.safetensors")
    assert cut["labels"].tolist() == said["logits"].tolist() == list(range(7))

    pandas.DataFrame({"user": values}).to_csv(tmp_path / "train.csv", index=False)
    rankers._write_scores(tmp_path, {"train": values})
    rankers._cut(tmp_path, tmp_path / "train.safetensors", 5, tmp_path)
    users = pandas.read_csv(tmp_path / "train.csv")["user"].tolist()
    said = load_file(tmp_path / "train.safetensors")
    assert users == said["score"].tolist() == [0, 9, 19, 29, 39]
    assert said["row"].tolist() == list(range(5))


@pytest.mark.slow
def test_quick_study(tmp_path):
    """From a data set in its own format to the table; what it holds is made up."""
    import gzip

    random = np.random.default_rng(0)
    data = tmp_path / "fashion-mnist"
    data.mkdir()
    for name, count in (("train", 12000), ("t10k", 600)):
        labels = random.integers(10, size=count, dtype=np.uint8)
        images = random.integers(40, size=(count, 28, 28), dtype=np.uint8)
        images[:, :, :4] += 20 * labels[:, None, None]
        for kind, header, values in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            content = bytes(header) + values.tobytes()
            (data / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(content, 1))
    command = [sys.executable, "-m", "benchmarks.family", "--quick", "--task", "vit"]
    command += ["--data", str(tmp_path), "--cache", str(tmp_path / "cache"), "--jobs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for arm in (ARMS[name] for name in MAIN if not name.startswith("separate")):
        [row] = [line for line in done.stdout.splitlines() if line.startswith(f"| {arm.label} |")]
        assert float(row.split("|")[2]) == pytest.approx(0.4, abs=0.03)
