"""A forward of an exported Student, loaded by its stock library, against a model of the same sizes
that the library builds.

GPT-2 and a ViT, Students of width 0.5 of TAs of width 2, batches of 1 and 8, taking turns in one
run; the ratio is the median over rounds. Bound: 1.02.
"""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import common
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task

BOUND = 1.02


def models(name: str, folder: Path, native: Path) -> tuple[Any, Any]:
    """The Student as its library loads it from the folder, and one that the library builds, saves
    and loads by itself.

    Both come from files: weights that are mapped from one lie in other pages of memory than those
    that were made.
    """
    if name == "gpt2":
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(native)
        return AutoModelForCausalLM.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(
            native
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    given = {"num_classes": config["num_classes"], **config["model_args"]}
    timm.models.save_for_hf(
        timm.create_model(config["architecture"], **given),
        str(native),
        model_args=config["model_args"],
    )
    return tuple(
        timm.create_model(f"local-dir:{path}", pretrained=True) for path in (folder, native)
    )  # type: ignore[return-value]


def main() -> None:
    options = common.parser(__doc__).parse_args()
    width, layers, length = (128, 2, 32) if options.quick else (384, 6, 128)
    rounds = 30 if options.quick else 200
    found: dict[str, Any] = {}
    for name, make in {"gpt2": common.gpt2, "vit": common.vit}.items():
        ta = common.grown(name, make(width, layers, length))
        task = tasks_task.task(ta.adapter.task, Recipe())
        with tempfile.TemporaryDirectory() as temp:
            folder, native = Path(temp) / "student", Path(temp) / "native"
            folder.mkdir()
            ta.student(0.5).save(folder)
            pair = [model.eval().to(common.device()) for model in models(name, folder, native)]
        for size in (1, 8):
            batch = {
                key: tensor.to(common.device())
                for key, tensor in task.example(pair[0], size).items()
            }
            student, own = (partial(task.forward, model, batch) for model in pair)
            with torch.no_grad():
                taken = common.alternating({"student": student, "native": own}, rounds, warmup=5)
            ratio = common.ratio(taken["student"], [taken["native"]])
            found[f"{name}, batch {size}"] = {"medians_s": common.medians(taken), "ratio": ratio}
    worst = max(case["ratio"] for case in found.values())
    common.result(
        "native_latency",
        bound=BOUND,
        ratio=worst,
        holds=worst <= BOUND,
        cases=found,
        quick=options.quick,
    )


if __name__ == "__main__":
    main()
