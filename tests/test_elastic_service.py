"""The example of a service that picks a width for each request, at toy size, over real HTTP."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import test_sentence_embedding as encoders
import torch
from test_examples import EXAMPLES, run_example

folder = encoders.folder  # a fixture
HERE = EXAMPLES / "elastic_service"
ARMS = ("1.0", "0.25,0.5,1.0")


@pytest.fixture
def out(folder: Path, tmp_path: Path) -> Path:
    """The output folder of a run of the example's recipe."""
    shutil.copytree(folder, tmp_path / "base")
    shutil.copytree(folder, tmp_path / "teacher")
    (tmp_path / "train.txt").write_text("\n".join(encoders.sentences(80, 7)))
    encoders.benchmark(tmp_path / "sts.csv", encoders.pairs(40))
    files = {"train": str(tmp_path / "train.txt"), "held_out": str(tmp_path / "sts.csv")}
    report = run_example("elastic_service", tmp_path, **files)
    assert {m["width"] for m in report["models"] if m["role"] == "student"} == {0.25, 0.5, 1.0}
    return tmp_path / "matta-out"


def opened() -> Any:
    """The service's module."""
    spec = importlib.util.spec_from_file_location("elastic_service", HERE / "app.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["elastic_service"] = module  # FastAPI looks its types up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_service_and_its_load(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in ("fastapi", "uvicorn", "httpx"):
        pytest.importorskip(needed)
    monkeypatch.setenv("MATTA_OUT", str(out))
    monkeypatch.setenv("TARGET_MS", "100")
    service = opened()
    measured, service.cost = service.cost, {0.25: 0.004, 0.5: 0.01, 1.0: 0.02}
    chosen = [service.width_for(queue) for queue in (1, 2, 3, 5, 6, 12, 100)]
    assert chosen == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25]
    service.pace = 2.0  # all of them take twice as long
    assert [service.width_for(queue) for queue in (1, 2, 3)] == [1.0, 0.5, 0.25]
    service.cost, service.pace = measured, 1.0
    text = encoders.sentences(2)
    for width in (0.25, 1.0):
        seconds, vectors = service.embed(text, width)
        tokens = service.tokenizer(text, padding=True, return_tensors="pt")
        with torch.no_grad():
            states = service.ta.student(width).dense()(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        mean = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
        assert seconds > 0
        torch.testing.assert_close(torch.tensor(vectors), mean, atol=1e-5, rtol=1e-5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(HERE / "load.py"), "--file", str(out.parent / "sts.csv")]
    command += ["--seconds", "1", "--rounds", "1", "--loads", "0.5,2", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout.splitlines()[-1])["stages"]
    both = [(load, arm) for load in (0.5, 2.0) for arm in ARMS]
    assert [(one["load"], one["widths"]) for one in stages] == both
    for one in stages:
        assert one["requests"] > 0 and 0 < one["p50"] <= one["p95"]
        assert set(one["shares"]) <= {f"{float(width):g}" for width in one["widths"].split(",")}
