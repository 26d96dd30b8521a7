"""Several processes on one machine (gloo): the same run, and the same end, as in one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from matta_adapters.mlp_ranker import Ranker
from typer.testing import CliRunner

from matta_cli.conversion.convert import convert
from matta_cli.devices import processes
from matta_cli.errors import MattaError
from matta_cli.main import app
from matta_cli.settings.recipe import Recipe


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two converted models: a ranker of queries of unequal sizes, and a ViT."""
    folder = tmp_path_factory.mktemp("devices")
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(60), generator.integers(2, 9, 60))
    x = generator.normal(size=(len(group), 4))
    label = (x[:, 0] + generator.normal(size=len(group)) > 0).astype(int)
    rows = [
        f"{g},{a:.5f},{b:.5f},{c:.5f},{d:.5f},{y}"
        for g, (a, b, c, d), y in zip(group, x, label, strict=True)
    ]
    (folder / "train.csv").write_text("query,a,b,c,d,label\n" + "\n".join(rows) + "\n")
    images = generator.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(60) % 10)
    for seed, name in enumerate(("model", "teacher")):
        torch.manual_seed(seed)
        layers = [{"layer": "Linear", "out": 16}, {"layer": "ReLU"}, {"layer": "Linear", "out": 1}]
        torch.save(Ranker([], 4, layers).eval().state_dict(), folder / f"ranker-{name}.pt")
        vit = timm.create_model(
            "test_vit",
            img_size=32,
            num_classes=10,
            pretrained_cfg_overlay={"input_size": (3, 32, 32)},
        )
        adapter_folder = folder / f"vit-{name}"
        adapter_folder.mkdir()
        from matta_cli.models import plugins

        plugins.adapter("vit").save(vit, adapter_folder)
    for kind, source, data in (
        ("ranker", "ranker-model.pt", "train.csv"),
        ("vit", "vit-model", "images.npz"),
    ):
        recipe = Recipe()
        recipe.convert.source, recipe.data.train = str(folder / source), str(folder / data)
        recipe.data.group = "query" if kind == "ranker" else ""
        recipe.distill.allow_weak_teacher, recipe.distill.batch_size, recipe.distill.device = (
            True,
            8,
            "cpu",
        )
        recipe.distill.teacher = str(folder / source.replace("model", "teacher"))
        recipe.distill.ranking_loss = "listwise" if kind == "ranker" else "pointwise"
        recipe.distill.logits = "chunked" if kind == "vit" else "auto"
        for name in ("one", "two", "three"):
            convert(recipe, folder / f"{kind}-{name}")
    return folder


def test_every_gradient_is_summed_once_however_many_go_together(monkeypatch):
    # two processes with the same gradients
    monkeypatch.setattr(processes.dist, "all_reduce", lambda flat: flat.mul_(2))
    for size in (1, 5, 1 << 24):
        monkeypatch.setattr(processes, "_BUCKET", size)
        parameters = [
            torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,), (1, 2), (7,))
        ]
        for parameter in parameters[:-1]:
            parameter.grad = torch.randn(parameter.shape)
        before = [None if p.grad is None else p.grad.clone() for p in parameters]
        processes.World(0, 2).share_gradients(parameters)
        assert all(
            p.grad is None if b is None else torch.equal(p.grad, 2 * b)
            for p, b in zip(parameters, before, strict=True)
        )


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CI": "1"}


def distill(out, *flags, by=()):
    """In processes of its own."""
    command = [sys.executable, *by, "-m", "matta_cli", "distill", str(out), *flags]
    return subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT, cwd=out.parent, timeout=300
    )


def distill_here(out, *flags):
    """In this process, on one device."""
    return CliRunner(env={"CI": "1"}).invoke(app, ["distill", str(out), *flags])


def curve(out):
    lines = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    terms = [
        {(m, t): v for m, terms in line["terms"].items() for t, v in terms.items()}
        for line in lines
    ]
    return terms, [line["gradient_norm"] for line in lines], lines[-1]["evaluation"]


@pytest.mark.parametrize(
    ("kind", "more", "by"),
    [
        ("ranker", ["--devices", "2"], ()),
        pytest.param("vit", ["--shard"], TORCHRUN, marks=pytest.mark.slow),
    ],
    ids=["ranker", "vit sharded"],
)
def test_two_processes_have_the_loss_curve_of_one(made, kind, more, by):
    """Queries have unequal numbers of rows, so that a mean of means would be another number. Data
    parallel, and sharded.
    """
    flags = ["--steps", "6", "--micro-batch", "2", "--widths", "0.25,0.5,0.75,1.0"]
    one, two = (
        distill_here(made / f"{kind}-one", *flags),
        distill(made / f"{kind}-two", *flags, *more, by=by),
    )
    assert one.exit_code == 0, one.stderr
    assert two.returncode == 0, two.stderr
    assert "Warning" not in two.stderr and two.stderr.count("Wrote") == 1
    assert len(re.findall(r"^ *6/6 ", two.stderr, re.MULTILINE)) == 1
    (a, norms_a, end_a), (b, norms_b, end_b) = (
        curve(made / f"{kind}-one"),
        curve(made / f"{kind}-two"),
    )
    assert len(a) == len(b) == 6
    for x, y in zip(a, b, strict=True):
        assert x == pytest.approx(y, rel=2e-4, abs=1e-5)
    assert norms_a == pytest.approx(norms_b, rel=1e-3)
    assert end_a.keys() == end_b.keys()
    for name in end_a:
        # a few held-out rows: the checkpoint is a whole model
        assert end_a[name] == pytest.approx(end_b[name], abs=0.2)

    again = distill_here(made / f"{kind}-two", "--resume", "--steps", "8", "--no-shard")
    assert again.exit_code == 0 and "on 1 device what ran on 2" in again.stderr, again.stderr
    straight = distill_here(made / f"{kind}-one", "--resume", "--steps", "8")
    assert straight.exit_code == 0, straight.stderr
    assert curve(made / f"{kind}-one")[0][-1] == pytest.approx(
        curve(made / f"{kind}-two")[0][-1], rel=1e-3, abs=1e-5
    )


@pytest.mark.slow
def test_a_dead_process_ends_the_run_with_a_sentence_and_a_checkpoint(made):
    out = made / "ranker-three"
    flags = ["--steps", "200000", "--eval-every", "20", "--devices", "2"]
    command = [sys.executable, "-m", "matta_cli", "distill", str(out), *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        until = time.monotonic() + 120
        while not list((out / "run" / "checkpoints").glob("step-*")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.2)
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
        )
        workers = sorted(int(pid) for pid in listed.stdout.split())
        second = [
            pid
            for pid in workers
            if b"RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes().replace(b"_RANK", b"_")
        ]
        os.kill(second[0], signal.SIGKILL)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    [sentence] = [line for line in stderr.splitlines() if line.startswith("Error: ")]
    assert re.search(
        r"Another process of the run has died at step (\d+); .*step-\1 holds what was reached",
        sentence,
    )
    assert "Traceback" not in stderr
    again = distill_here(out, "--resume", "--steps", "5")  # fewer than it has taken
    assert again.exit_code == 1 and "There is nothing to train: --steps is 5" in again.stderr


@pytest.mark.slow
def test_what_every_process_refuses_is_said_once(made):
    done = distill(made / "ranker-two", "--overwrite", "--devices", "2", "--batch-size", "7")
    assert done.returncode == 1 and done.stderr.count("Error: ") == 1, done.stderr
    assert (
        "--batch-size 7 cannot be divided among 2 devices" in done.stderr
        and "Process 1" not in done.stderr
    )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--devices", "0"], "--devices 0 is not possible"),
        (["--devices", str(10**9)], "is not possible: this machine has"),
        (["--shard"], "needs several devices"),
    ],
)
def test_refusals(made, flags, sentence):
    done = distill_here(made / "ranker-two", "--overwrite", *flags)
    assert done.exit_code == 1 and done.stderr.count("Error: ") == 1 and sentence in done.stderr, (
        done.stderr
    )


def test_processes_share_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert processes.local("auto") == "cuda:1" and processes.local("cpu") == "cpu"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert processes.local("cpu") == "cpu" and processes.local("cuda") == "cuda:1"
    # of --devices; others may give each process a GPU of its own
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "matta")
    assert processes.local("cpu") == "cpu"
    with pytest.raises(MattaError, match="--devices 3 is not possible: this machine has 2 GPUs"):
        processes.local("auto")
    with pytest.raises(MattaError, match="cuda:1 is one GPU, and there are several processes"):
        processes.local("cuda:1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # of several machines, perhaps
    assert processes.local("cuda:1") == "cuda:1"


def test_who_sets_precision_in_torchs_newer_way_keeps_it():
    code = (
        "import torch\nfrom matta_cli.devices import device\n"
        "torch.backends.cudnn.conv.fp32_precision = 'ieee'\n"
        "with device.precision('tf32', torch.device('cpu')):\n"
        "    assert torch.backends.cudnn.conv.fp32_precision == 'ieee'\n"
    )
    # torch keeps this for the whole process
    subprocess.run([sys.executable, "-c", code], check=True)
