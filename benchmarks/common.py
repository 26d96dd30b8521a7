"""What the benchmarks share: models of a size, a step and its parts, timing in turns, and the
result line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
import transformers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import matta_cli
from matta_cli.data.split import Batch
from matta_cli.devices.device import precision
from matta_cli.losses.targets import Logits, Term
from matta_cli.models import plugins
from matta_cli.models.ta import TA
from matta_cli.nested import grow, sizes
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import Task


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with ``--quick``; the explanation goes to stderr."""
    sys.stderr.write(f"{(doc or '').strip()}\n")
    found = argparse.ArgumentParser(description=doc)
    found.add_argument("--quick", action="store_true", help="fewer rounds on smaller models")
    return found


def apart(benchmark: str, *words: str, environment: Mapping[str, str] | None = None) -> Any:
    """What a benchmark prints last, as JSON, in a fresh process with these words."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{benchmark}", *words],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
    )
    return json.loads(done.stdout.splitlines()[-1])


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpt2(width: int, layers: int, length: int, vocabulary: int = 4096, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    heads = max(1, width // 64)
    given = GPT2Config(
        vocab_size=vocabulary,
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        bos_token_id=0,
        eos_token_id=0,
        **config,
    )
    return GPT2LMHeadModel(given).eval()


def vit(width: int, layers: int, _length: int = 0) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=64,
        patch_size=8,
        embed_dim=width,
        depth=layers,
        num_heads=max(1, width // 64),
        num_classes=100,
        pretrained_cfg_overlay={"input_size": (3, 64, 64)},
    ).eval()


def grown(name: str, base: nn.Module, expand: int = 2) -> TA:
    """A base as the TA of an adapter, ``expand`` times as wide."""
    adapter = plugins.adapter(name)
    axes = sizes.nested_axes(adapter, base)
    model = grow.grow(adapter, base, axes, {a.name: expand * a.size for a in axes})
    return TA(adapter, model, sizes.nested_axes(adapter, model), {a.name: a.size for a in axes}, {})


class Parts:
    """The parts of a step as plain stock models: Teacher forward, and forward and backward of TA
    and Students, same losses.
    """

    def __init__(
        self, recipe: Recipe, task: Task, ta: TA, teacher: nn.Module, batch: Batch
    ) -> None:
        self.settings, self.task, self.teacher, self.batch = recipe.distill, task, teacher, batch
        self.models = {"ta": ta.student(ta.widest).dense().train()}
        self.models |= {
            f"student_{width:g}": ta.student(width).dense().train()
            for width in self.settings.widths
        }
        self.device = next(iter(batch.values())).device
        self.taught = self.source = Logits(torch.empty(0))

    def named(self) -> dict[str, Callable[[], None]]:
        """Each part by name, in the order of the step."""
        return {"teacher_forward": self._teach} | {
            name: lambda name=name: self._learn(name) for name in self.models
        }

    def _teach(self) -> None:
        with torch.no_grad(), precision(self.settings.precision, self.device):
            self.taught = Logits(self.task.forward(self.teacher, self.batch))

    def _learn(self, name: str) -> None:
        mix = self.settings.teacher_mix
        terms = [Term("truth", 1 - mix), Term("teacher", mix, self.taught)]
        if name != "ta":
            terms.append(Term("ta", self.settings.ta_student_weight, self.source))
        with precision(self.settings.precision, self.device):
            logits = Logits(self.task.forward(self.models[name], self.batch))
            loss = self.task.objective(logits, self.batch, terms)[0]
        if name == "ta":
            self.source = logits.detach()
        loss.backward()
        self.models[name].zero_grad(set_to_none=True)


def alternating(
    candidates: dict[str, Callable[[], Any]], rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each candidate, taking turns, so that drift of the machine hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + rounds):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warmup:
                taken[name].append(time.perf_counter() - started)
    return taken


def medians(taken: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def ratio(over: list[float], under: list[list[float]]) -> float:
    """The median over rounds of one candidate's seconds by the sum of others' in the same round."""
    return statistics.median(a / sum(b) for a, *b in zip(over, *under, strict=True))


def least(over: list[float], under: list[list[float]]) -> float:
    """The same of each candidate's fastest round: what is left of a ratio where others use the
    machine as well.
    """
    return min(over) / sum(map(min, under))


def versions() -> dict[str, str]:
    """Of what was measured."""
    modules = {"matta": matta_cli, "torch": torch, "transformers": transformers, "timm": timm}
    return {name: str(module.__version__) for name, module in modules.items()}


def where() -> str:
    """The device by its name."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def result(name: str, **more: Any) -> None:
    """The result as one line of JSON."""
    card = {
        "benchmark": name,
        "device": where(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    print(json.dumps({**card, **more}), flush=True)
