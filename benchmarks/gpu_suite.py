"""One command for one CUDA GPU, under eight minutes, no network: is it correct there, and how fast.

Correctness, on tiny models: gradients in bf16 against float64 autograd; compiled, chunked and
checkpointed against plain; a Student's view against the dense Student; a run that is resumed
against one that is not. Speed, with GPT-2 Medium as the base, a TA twice as wide and a Teacher of
GPT-2 Large's size (random weights: they cost the same): the time of a step's gradients over that of
its parts as stock models; and of whole steps (clipping and optimizer too) tokens per second, model
FLOPs utilisation, peak memory, compiled over eager. Without CUDA it runs at toy size. Every part
has a time limit; one that fails or runs out of time says so, and the others go on.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import common
from benchmarks.gpu_checks import correctness, resumed
from matta_cli.data.split import Batch
from matta_cli.devices.device import peak_flops
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task
from matta_cli.tasks.task import Task
from matta_cli.training.objective import Step
from matta_cli.training.optimizer import make_optimizer
from matta_cli.training.teacher import ModelTeacher

# seconds until which parts may run, and after which what there is is printed, come what may
LIMIT, LAST = 450, 470


def registered() -> None:
    """Adapters and tasks are found by entry point; where matta is not installed, those of its
    source are declared.
    """
    if entry_points(group="matta.adapters"):
        return
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    tables = re.findall(r'\[project\.entry-points\."(matta\.\w+)"\]\n((?:\w+ = "[^"]+"\n)+)', text)
    folder = Path(tempfile.mkdtemp()) / "matta-0.dist-info"
    folder.mkdir()
    folder.joinpath("METADATA").write_text(
        "Metadata-Version: 2.1\nName: matta\nVersion: 0\n", encoding="utf-8"
    )
    lines = [f"[{group}]\n{entries.replace(chr(34), '')}" for group, entries in tables]
    folder.joinpath("entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    sys.path += [str(folder.parent), str(Path(__file__).parents[1] / "adapters")]


# parts of the names of operators whose work is matrix products
_PRODUCTS = ("mm", "matmul", "attention", "linear", "convolution")


class Speed:
    """The large models, made once, and what they cost in each way of training them."""

    def __init__(self, device: torch.device, toy: bool) -> None:
        sizes = ((64, 2), (128, 2), 64, 512) if toy else ((1024, 24), (1280, 36), 1024, 50257)
        base, larger, self.length, self.vocabulary = sizes
        self.device, self.rounds = device, 3 if toy else 8
        self.ta = common.grown("gpt2", common.gpt2(*base, self.length, self.vocabulary))
        self.ta.model.to(device).train()
        teacher = common.gpt2(*larger, self.length, self.vocabulary)
        self.teacher = teacher.to(device).requires_grad_(False)
        self.size = 8  # the batch: halved until it fits

    def __call__(self, parts: bool, **settings: Any) -> dict[str, Any]:
        """A step with and without its optimizer, beside its parts or the step without compile."""
        while True:
            try:
                return self._measure(parts, settings)
            except torch.OutOfMemoryError:
                if self.size == 1:
                    raise
                self.size //= 2
            self.clear()  # here, where the error no longer holds on to what it came from

    def clear(self) -> None:
        self.ta.model.zero_grad(set_to_none=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def fill(self) -> dict[str, Any]:
        """Batches of twice the size, as long as they fit and are faster by the token.

        The parts after this one take the fastest.
        """
        speeds: dict[int, float] = {}
        fastest, most = self.size, 16 if self.device.type != "cuda" else 512
        while self.size <= most:
            size = self.size
            found = self(False)
            self.clear()
            speeds[self.size] = found["tokens_per_s"]
            if self.size < size or speeds[size] < 1.03 * speeds.get(fastest, 0.0):
                break
            fastest, self.size = size, 2 * size
        self.size = max(speeds, key=lambda size: speeds[size])
        return {"tokens_per_s": speeds, "batch": self.size}

    def profile(self, **settings: Any) -> dict[str, Any]:
        """Where the time of a step goes: shares of a step's wall time.

        products: matrix products and attention, the losses' too. other: all else that computes.
        losses, optimizer: all that is done in them. idle: when the device computes nothing.
        """
        recipe, task, batch, optimizer = self._setting(settings)
        objective = task.objective

        def named(*given: Any) -> Any:
            with record_function("losses"):
                return objective(*given)

        task.objective = named  # type: ignore[method-assign]
        step = self._step(recipe, task, batch)
        self._update(step, batch, optimizer)
        cuda = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        with profile(activities=activities) as watched:
            began = time.perf_counter()
            for _ in range(self.rounds):
                self._update(step, batch, optimizer)
            if cuda:
                torch.cuda.synchronize()
            wall = time.perf_counter() - began
        own, whole = ("self_device_time_total", "device_time_total")
        if not cuda:
            own, whole = ("self_cpu_time_total", "cpu_time_total")
        events = watched.key_averages()
        ranges = {"losses": 0.0, "optimizer": 0.0}
        products = other = 0.0
        for event in events:
            name, seconds = event.key, getattr(event, own) / 1e6
            if name == "losses" or name.startswith("Optimizer.step"):
                kind = "losses" if name == "losses" else "optimizer"
                ranges[kind] += getattr(event, whole) / 1e6
            if any(part in name for part in _PRODUCTS):
                products += seconds
            elif name.startswith("aten::"):
                other += seconds
        shares = {"products": products, "other": other, **ranges}
        found = {name: seconds / wall for name, seconds in shares.items()}
        idle = max(0.0, 1 - found["products"] - found["other"])
        return {**found, "idle": idle, "seconds": wall / self.rounds}

    def _setting(self, settings: dict[str, Any]) -> tuple[Recipe, Task, Batch, Any]:
        """What a step is made of, and an optimizer."""
        recipe = Recipe()
        recipe.distill.ramp = 0.0
        recipe.update({"distill": settings}, "benchmark")
        task = tasks_task.task("causal_lm", recipe)
        shape, generator = (self.size, self.length), torch.Generator().manual_seed(0)
        ids = torch.randint(self.vocabulary, shape, generator=generator)
        optimizer = make_optimizer(recipe.distill, self.ta.model, [], self.device)
        return recipe, task, {"input_ids": ids.to(self.device)}, optimizer

    def _update(self, step: Step, batch: Batch, optimizer: Any) -> None:
        common.take(step, batch, 1)
        nn.utils.clip_grad_norm_(self.ta.model.parameters(), step.settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _step(self, recipe: Recipe, task: Task, batch: Batch) -> Step:
        teacher = ModelTeacher(task, self.teacher)
        return Step(recipe.distill, task, self.ta, teacher, batch, self.device)

    def _measure(self, parts: bool, settings: dict[str, Any]) -> dict[str, Any]:
        torch._dynamo.reset()
        recipe, task, batch, optimizer = self._setting(settings)

        def gradients(step: Step) -> None:
            common.take(step, batch, 1)
            self.ta.model.zero_grad(set_to_none=True)

        def update(step: Step) -> None:
            self._update(step, batch, optimizer)

        step = self._step(recipe, task, batch)
        flops = step.flops(batch) * self.size
        first, memory = self._first(lambda: update(step))
        candidates: dict[str, Callable[[], Any]] = {
            "update": lambda: update(step),
            "gradients": lambda: gradients(step),
        }
        others: dict[str, Callable[[], Any]] = {}
        if recipe.distill.compile:
            plain = copy.deepcopy(recipe)
            plain.distill.compile = ""
            eager = self._step(plain, task, batch)
            others = {"eager_update": lambda: update(eager)}
        elif parts:
            others = common.Parts(recipe, task, self.ta, self.teacher, batch).named()
        taken = common.alternating({**candidates, **others}, self.rounds, warmup=1)
        middle = common.medians(taken)
        peak = peak_flops(self.device, recipe.distill.precision)
        found = {
            "batch": self.size,
            "first_step_s": first,
            "median_s": middle,
            "tokens_per_s": self.size * self.length / middle["update"],
            "model_flops": flops,
            "utilisation": flops / middle["update"] / peak if peak else None,
            "peak_memory": memory,
            "chunked": step.chunked,
        }
        if others:
            own = "update" if recipe.distill.compile else "gradients"
            found["ratio"] = common.ratio(taken[own], [taken[name] for name in others])
            found["of"] = f"{own} over {' + '.join(others)}"
        return found

    def _first(self, update: Callable[[], None]) -> tuple[float, int | None]:
        """The seconds of the first step, and the peak memory of the next one.

        That is before anything is there only to compare with.
        """
        cuda = self.device.type == "cuda"
        began = time.perf_counter()
        update()
        if cuda:
            torch.cuda.synchronize()
        first = time.perf_counter() - began
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        update()
        return first, torch.cuda.max_memory_allocated() if cuda else None


def driver() -> str | None:
    """The version of the GPU's driver; None where nothing tells it."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.split()[0]
    except (OSError, subprocess.TimeoutExpired, IndexError):
        return None


class Suite:
    """The parts of the suite, each within its time, and what they came to."""

    def __init__(self, options: Any, device: torch.device) -> None:
        self.out, self.device = options.out, device
        cuda = device.type == "cuda"
        self.toy = options.toy or options.quick or not cuda
        self.backend = options.backend or ("inductor" if cuda else "aot_eager")
        self.began = time.perf_counter()
        self.found: dict[str, Any] = {}
        self.speed: Speed | None = None

    def part(self, name: str, call: Callable[[], dict[str, Any]], most: int) -> None:
        """Run one part, in ``most`` seconds or what is left; what fails is told with the rest."""
        left = int(LIMIT - (time.perf_counter() - self.began))
        if left < 10:
            self.found[name] = {"failed": "no time was left"}
            return
        sys.stderr.write(f"{name} ...\n")
        started = time.perf_counter()
        signal.alarm(min(most, left))
        try:
            self.found[name] = call()
        except Exception as error:  # the other parts still have something to tell
            where = traceback.format_exc().splitlines()[-4:]
            failed = f"{type(error).__name__}: {error}"
            self.found[name] = {"failed": failed, "where": where}
        finally:
            signal.alarm(0)
            sys.stderr.write(f"{name}: {time.perf_counter() - started:.0f} s\n")
            if self.speed is not None:
                self.speed.clear()

    def models(self) -> dict[str, Any]:
        """Make the large models, which the parts on speed share."""
        self.speed = Speed(self.device, self.toy)
        return {"seconds": time.perf_counter() - self.began}

    def run(self) -> None:
        """All parts, in turn."""
        device, backend = self.device, self.backend
        self.part("gpt2", lambda: correctness("gpt2", device, backend), 80)
        self.part("vit", lambda: correctness("vit", device, backend), 60)
        self.part("resume", resumed, 40)
        self.part("models", self.models, 90)
        speed = self.speed
        if speed is None:
            return
        self.part("fill", speed.fill, 90)
        self.part("eager", lambda: speed(True), 90)
        self.part("profile", speed.profile, 40)
        self.part("eager_whole_logits", lambda: speed(False, logits="whole"), 40)
        if self.toy:  # at full size the logits are large enough to be chunked unasked
            self.part("eager_chunked_logits", lambda: speed(False, logits="chunked"), 40)
        self.part("checkpointed", lambda: speed(False, checkpoint_activations=True), 40)
        self.part("compiled", lambda: speed(False, compile=backend), 300)

    def report(self) -> None:
        """Print what was found, and write it where that was asked for."""
        of_models = [self.found.get(name, {"": None}) for name in ("gpt2", "vit")]
        checks = [check for each in of_models for check in each.values()]
        checks.append(self.found.get("resume"))
        holds = all(isinstance(check, dict) and check.get("holds") for check in checks)
        seconds = time.perf_counter() - self.began
        card = {"toy": self.toy, "backend": self.backend, "holds": holds, "seconds": seconds}
        where = "cpu"
        if self.device.type == "cuda":
            where = torch.cuda.get_device_name()
            capability = list(torch.cuda.get_device_capability())
            card |= {"cuda": torch.version.cuda, "driver": driver(), "capability": capability}
        card |= self.found
        common.result("gpu_suite", **card)
        if self.out:
            head = {"benchmark": "gpu_suite", "device": where, "versions": common.versions()}
            self.out.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({**head, **card}, indent=1)
            self.out.write_text(text + "\n", encoding="utf-8")

    def give_up(self) -> None:
        """Leave what never returns behind: an alarm is heard between two lines of Python only."""
        self.report()
        os._exit(1)


def _late(*_: Any) -> None:
    raise TimeoutError("it took too long")


def main() -> None:
    arguments = common.parser(__doc__)
    add = arguments.add_argument
    said = "tiny models in the speed part too; always so without CUDA"
    add("--toy", action="store_true", help=said)
    said = "of torch.compile; default: inductor, without CUDA aot_eager"
    add("--backend", default="", help=said)
    add("--out", type=Path, help="write the result there too")
    suite = Suite(arguments.parse_args(), common.device())
    registered()
    signal.signal(signal.SIGALRM, _late)
    watch = threading.Timer(LAST, suite.give_up)
    watch.daemon = True
    watch.start()
    suite.run()
    watch.cancel()
    suite.report()


if __name__ == "__main__":
    main()
