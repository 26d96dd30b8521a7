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
from matta_cli.training.objective import Step
from matta_cli.training.rows import WHOLE, Rows


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


def take(step: Step, batch: Batch, number: int = 0) -> None:
    """The gradients of a step of one batch, all pieces of it."""
    count = len(next(iter(batch.values())))
    over = step.task.counts(batch)
    for piece in step.rows.pieces(range(count), number):
        step(_rows(batch, piece.rows), piece, number, over)


def _rows(batch: Batch, rows: list[int]) -> Batch:
    whole = len(rows) == len(next(iter(batch.values())))
    return batch if whole else {name: tensor[rows] for name, tensor in batch.items()}


class Parts:
    """The parts of a step as plain stock models: Teacher forward, and forward and backward of TA
    and Students, each on its own rows, same losses.
    """

    def __init__(
        self, recipe: Recipe, task: Task, ta: TA, teacher: nn.Module, batch: Batch
    ) -> None:
        self.settings, self.task, self.teacher = recipe.distill, task, teacher
        count = len(next(iter(batch.values())))
        rows = Rows(recipe.distill, ta)
        self.divided = self.settings.rows == "divided"
        self.batches: dict[str, Batch] = {}
        for piece in rows.pieces(range(count), 0):
            for name in (name for group in piece.groups for name in group):
                self.batches[name] = _rows(batch, piece.rows)
        widths = {WHOLE: ta.widest, **rows.students}
        self.models = {name: ta.student(widths[name]).dense().train() for name in self.batches}
        self.ta = self.models.get(WHOLE)
        self.device = next(iter(batch.values())).device
        self.taught: dict[str, Logits] = {}
        self.source: dict[str, Logits] = {}

    def named(self) -> dict[str, Callable[[], None]]:
        """Each part by name, in the order of the step."""
        found = {"teacher_forward": self._teach}
        if self.divided and self.settings.ta_student_weight:
            found["ta_forward"] = self._lead
        return found | {name: lambda name=name: self._learn(name) for name in self.models}

    def _forward(self, model: nn.Module, batch: Batch) -> Logits:
        with torch.no_grad(), precision(self.settings.precision, self.device):
            return Logits(self.task.forward(model, batch))

    def _teach(self) -> None:
        if self.divided:
            self.taught = {n: self._forward(self.teacher, b) for n, b in self.batches.items()}
        else:
            one = self._forward(self.teacher, next(iter(self.batches.values())))
            self.taught = dict.fromkeys(self.batches, one)

    def _lead(self) -> None:
        assert self.ta is not None
        students = {name: own for name, own in self.batches.items() if name != WHOLE}
        self.source = {name: self._forward(self.ta, own) for name, own in students.items()}

    def _learn(self, name: str) -> None:
        mix, batch = self.settings.teacher_mix, self.batches[name]
        terms = [Term("truth", 1 - mix), Term("teacher", mix, self.taught[name])]
        if name != WHOLE and self.settings.ta_student_weight:
            terms.append(Term("ta", self.settings.ta_student_weight, self.source[name]))
        with precision(self.settings.precision, self.device):
            logits = Logits(self.task.forward(self.models[name], batch))
            loss = self.task.objective(logits, batch, terms)[0]
        if name == WHOLE and not self.divided:
            self.source = dict.fromkeys(self.batches, logits.detach())
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
