"""Whatever is wrong with a file, a command ends well or with one sentence."""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
import timm
import torch
from fuzz import attempt
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_cli import gpt2, tokenizer_of
from test_kills import TRAIN, typed
from test_runs import ranker, table

INPUTS = int(os.environ.get("MATTA_FUZZ", "2000"))
LONGEST = 3600  # seconds after which no other input is tried
BEGAN: list[float] = []
OUT = "matta-out"
DISTILL = "distill --overwrite --steps 1 --allow-weak-teacher --batch-size 8"
# files -> the lines that read them
READERS = {
    f"{OUT}/ta/*.json": ["inspect", f"{DISTILL} --teacher teacher.pt", "search --trials 1"],
    f"{OUT}/ta/*.safetensors": ["inspect", f"{DISTILL} --teacher teacher.pt"],
    f"{OUT}/ta/importance/*": ["inspect", "report"],
    f"{OUT}/ta/recipe.toml": ["recipe show", "inspect"],
    f"{OUT}/matta.toml": ["recipe show", f"{DISTILL} --teacher teacher.pt", "report"],
    "matta.toml": ["recipe show", "convert model.pt --out other"],
    f"{OUT}/run/recipe.toml": ["recipe show --ran", "report", "distill --resume --steps 5"],
    f"{OUT}/run/metrics.jsonl": ["report", "distill --resume --steps 5"],
    f"{OUT}/run/checkpoints/step-4/*": [
        "distill --resume --steps 5",
        f"eval {OUT}@0.5",
        "search --trials 1",
        "report",
    ],
    f"{OUT}/run/checkpoints/step-4/optimizer/*": ["distill --resume --steps 5"],
    f"{OUT}/run/checkpoints/step-4/trainer.json": ["distill --resume --steps 5", "report"],
    f"{OUT}/students/*": ["report"],
    f"{OUT}/students/width-0.5/*": [f"eval {OUT}/students/width-0.5", "report"],
    f"{OUT}/report.json": ["report"],
    f"{OUT}/search/trials.jsonl": ["search --trials 2"],
    f"{OUT}/baselines/*/baseline.json": ["report --baselines ground-truth"],
    "said/*": [f"{DISTILL} --teacher said", "teach --teacher teacher.pt --to said --overwrite"],
    "said/teacher.json": [f"{DISTILL} --teacher said", "teach --teacher teacher.pt --to said"],
    "said.parquet": [f"{DISTILL} --teacher said.parquet"],
    "said.jsonl": [f"{DISTILL} --teacher said.jsonl"],
    "said.safetensors": [f"{DISTILL} --teacher said.safetensors"],
    "model.pt": ["convert model.pt --out other", "eval model.pt"],
    "model.safetensors": ["convert model.safetensors --out other"],
    "train.csv": [f"{DISTILL} --teacher teacher.pt"],
    "train.parquet": [f"{DISTILL} --teacher teacher.pt --data train.parquet"],
    "words/*.json": ["convert words --out other --data text.txt", "convert words --out other"],
    "words/model.safetensors": ["convert words --out other"],
    "text.txt": ["convert words --out other --data text.txt"],
    "text.jsonl": ["convert words --out other --data text.jsonl"],
    "images.npz": ["convert pixels --out other --data images.npz"],
    "pixels/*": ["convert pixels --out other --data images.npz", "convert pixels --out other"],
}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with files of every kind that matta reads."""
    import pyarrow as pa
    import pyarrow.parquet

    before, folder = Path.cwd(), tmp_path_factory.mktemp("project")
    os.chdir(folder)
    table(Path("train.csv"), rows=60)
    rows = np.loadtxt("train.csv", delimiter=",", skiprows=1)
    columns = {name: rows[:, i] for i, name in enumerate(("a", "b", "c", "d", "label"))}
    pa.parquet.write_table(pa.table(columns), "train.parquet")
    torch.save(ranker().state_dict(), "model.pt")
    torch.save(ranker(1).state_dict(), "teacher.pt")
    save_file(ranker().state_dict(), "model.safetensors")
    scores = {"row": np.arange(60), "score": rows[:, 0], "temperature": np.ones(60)}
    pa.parquet.write_table(pa.table(scores), "said.parquet")
    lines = (f'{{"row": {n}, "score": {score}}}\n' for n, score in enumerate(rows[:, 0]))
    Path("said.jsonl").write_text("".join(lines))
    score = torch.tensor(rows[:, 0].copy())
    save_file({"row": torch.arange(60), "score": score}, "said.safetensors")
    text = "\n\n".join(f"The {n}th paragraph of a text says what {n * n} is." for n in range(80))
    Path("text.txt").write_text(text)
    Path("text.jsonl").write_text("".join(f'{{"text": "{t}"}}\n' for t in text.split("\n\n")))
    gpt2(320).save_pretrained("words")
    tokenizer_of(text).save_pretrained("words")
    pixels = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=8,
        patch_size=4,
        in_chans=1,
        embed_dim=16,
        depth=1,
        num_heads=2,
        num_classes=3,
        pretrained_cfg_overlay={"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)},
    )
    Path("pixels").mkdir()
    timm.models.save_for_hf(
        pixels,
        "pixels",
        model_args={
            "img_size": 8,
            "patch_size": 4,
            "in_chans": 1,
            "embed_dim": 16,
            "depth": 1,
            "num_heads": 2,
        },
        safe_serialization=True,
    )
    images = np.random.default_rng(0).integers(0, 255, (30, 8, 8)).astype("uint8")
    np.savez("images.npz", images=images, labels=np.arange(30) % 3)
    Path("matta.toml").write_text('[data]\ntrain = "train.csv"\n[export]\nbootstrap = 5\n')
    typed("convert model.pt --expand 2")
    typed(f"distill --teacher teacher.pt --steps 4 --eval-every 2 {TRAIN}")
    typed(f"teach --teacher teacher.pt --to said {TRAIN}")
    typed("search --target-params 60 --trials 2")
    typed("export --widths 0.5,1")
    typed("report --baselines ground-truth")
    os.chdir(before)
    BEGAN.append(time.monotonic())
    return folder


@pytest.mark.slow
@settings(
    max_examples=INPUTS,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 2**32))
def test_whatever_is_wrong_with_a_file_is_said(project, tmp_path_factory, seed):
    if time.monotonic() - BEGAN[-1] < LONGEST:
        copy = tmp_path_factory.mktemp("copy") / "here"
        assert attempt(Random(seed), project, copy, READERS) == ""
