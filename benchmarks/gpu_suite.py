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
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import common
from matta_cli.conversion.convert import convert
from matta_cli.data.split import Batch
from matta_cli.devices.device import peak_flops
from matta_cli.models import plugins
from matta_cli.models.ta import TA
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task
from matta_cli.training.objective import Step
from matta_cli.training.optimizer import make_optimizer
from matta_cli.training.run import distill
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


def tools(name: str, **settings: Any) -> tuple[Recipe, TA, nn.Module, Batch]:
    """A tiny model as TA, a Teacher and a batch."""
    recipe = Recipe()
    recipe.distill.ramp = 0.0
    recipe.update({"distill": {"precision": "fp32", "widths": [0.5, 1.0], **settings}}, "benchmark")
    generator = torch.Generator().manual_seed(2)
    if name == "vit":
        ta, teacher = common.grown(name, common.vit(128, 2)), common.vit(192, 2)
        batch = {
            "image": torch.randn(4, 3, 64, 64, generator=generator),
            "label": torch.randint(100, (4,), generator=generator),
        }
    else:
        ta = common.grown(
            name, common.gpt2(128, 2, 64, 512, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        )
        teacher = common.gpt2(192, 2, 64, 512)
        batch = {"input_ids": torch.randint(512, (4, 64), generator=generator)}
    with torch.no_grad():
        for parameter in ta.model.parameters():  # the new units must have a say
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return recipe, ta, teacher.requires_grad_(False), batch


def to(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def gradients(name: str, device: torch.device, **settings: Any) -> dict[str, Tensor]:
    """A step's gradients of the TA."""
    # dynamo counts the graphs of all steps of a process, and runs eagerly what is too many
    torch._dynamo.reset()
    recipe, ta, teacher, batch = tools(name, **settings)
    ta.model.to(device)
    task = tasks_task.task(ta.adapter.task, recipe)
    step = Step(recipe, task, ta, ModelTeacher(task, teacher.to(device)), device)
    step(to(batch, device), [0, 1, 2, 3], 1)
    return {name: p.grad.double() for name, p in ta.model.named_parameters() if p.grad is not None}


def reference(name: str, device: torch.device) -> dict[str, Tensor]:
    """The same by autograd, all in float64, with the losses written out."""
    recipe, ta, teacher, batch = tools(name)
    settings, batch = recipe.distill, to(batch, device)
    batch |= {"image": batch["image"].double()} if name == "vit" else {}
    ta.model.to(device).double()
    teacher = teacher.to(device).double()
    task = tasks_task.task(ta.adapter.task, recipe)
    tau = settings.temperature

    def kd(z: Tensor, t: Tensor) -> Tensor:
        given = F.log_softmax(t / tau, -1)
        rows = z.shape[:-1].numel()
        return (
            F.kl_div(F.log_softmax(z / tau, -1), given, log_target=True, reduction="sum")
            * tau**2
            / rows
        )

    def truth(z: Tensor) -> Tensor:
        if name == "vit":
            return F.cross_entropy(z, batch["label"])
        return F.cross_entropy(z[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())

    def own(z: Tensor) -> Tensor:
        return (1 - settings.teacher_mix) * truth(z) + settings.teacher_mix * kd(
            z, task.forward(teacher, batch)
        )

    z_ta = task.forward(ta.model, batch)
    total = own(z_ta)
    for width in settings.widths:
        z = task.forward(ta.at(width), batch)
        total = total + (own(z) + settings.ta_student_weight * kd(z, z_ta.detach())) / len(
            settings.widths
        )
    total.backward()
    return {name: p.grad for name, p in ta.model.named_parameters() if p.grad is not None}


@contextmanager
def small_chunks() -> Iterator[None]:
    """Tiny models' logits, too, are made in several pieces."""
    from matta_cli.losses import classes

    names = ("_CHUNK", "_PRODUCT_CHUNK", "_CUDA_CHUNK")
    before = {name: getattr(classes, name) for name in names}
    for name in names:
        setattr(classes, name, 1 << 8)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(classes, name, value)


def gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative error of a tensor, by its norm."""
    assert found.keys() == expected.keys()
    return max(
        float((found[n].cpu() - expected[n].cpu()).norm() / expected[n].norm().cpu())
        for n in expected
    )


def correctness(name: str, device: torch.device, backend: str) -> dict[str, Any]:
    exact = reference(name, device)
    eager = gradients(name, device)
    found = {
        "fp32": (gap(eager, exact), 1e-4),
        "bf16": (gap(gradients(name, device, precision="bf16"), exact), 0.05),
        "tf32": (gap(gradients(name, device, precision="tf32"), exact), 0.01),
        "checkpointed": (gap(gradients(name, device, checkpoint_activations=True), eager), 1e-4),
        "compiled": (gap(gradients(name, device, compile=backend), eager), 1e-4),
    }
    if device.type == "cuda":  # kernels of their own
        found["compiled_bf16"] = (
            gap(gradients(name, device, compile=backend, precision="bf16"), exact),
            0.05,
        )
    with small_chunks():
        found["chunked"] = (gap(gradients(name, device, logits="chunked"), eager), 1e-4)
        found["chunked_bf16"] = (
            gap(gradients(name, device, logits="chunked", precision="bf16"), exact),
            0.05,
        )
    recipe, ta, _, batch = tools(name)
    ta.model.to(device)
    task = tasks_task.task(ta.adapter.task, recipe)
    with torch.no_grad():
        view, dense = (
            task.forward(model, to(batch, device))
            for model in (ta.at(0.5).eval(), ta.student(0.5).dense())
        )
    found["view"] = (float((view - dense).abs().max() / dense.abs().max()), 1e-5)
    return {
        check: {"error": error, "bound": bound, "holds": error <= bound}
        for check, (error, bound) in found.items()
    }


def resumed() -> dict[str, Any]:
    """The losses of a run that is resumed half-way, against those of one that is not. The images
    are noise.
    """
    with tempfile.TemporaryDirectory() as temp:
        out = Path(temp)
        recipe = Recipe()
        generator = np.random.default_rng(0)
        np.savez(
            out / "noise.npz",
            images=generator.integers(256, size=(400, 64, 64, 3), dtype="uint8"),
            labels=np.arange(400) % 100,
        )
        adapter = plugins.adapter("vit")
        for role, width in (("base", 64), ("teacher", 128)):
            (out / role).mkdir()
            adapter.save(common.vit(width, 2), out / role)
        recipe.convert.source, recipe.distill.teacher, recipe.data.train = (
            str(out / n) for n in ("base", "teacher", "noise.npz")
        )
        recipe.convert.adapter, recipe.convert.order = "vit", "none"
        recipe.distill.steps, recipe.distill.save_every, recipe.distill.allow_weak_teacher = (
            8,
            4,
            True,
        )
        recipe.distill.eval_every = 8
        convert(recipe, out)
        last = distill(recipe, out)

        def logged() -> list[float]:
            lines = (out / "run" / "metrics.jsonl").read_text().splitlines()
            return [terms["loss"] for line in lines for terms in json.loads(line)["terms"].values()]

        straight = logged()
        shutil.rmtree(last)
        distill(recipe, out, resume=True)
        error = max(abs(a - b) / abs(a) for a, b in zip(straight, logged(), strict=True))
    return {"error": error, "bound": 1e-3, "holds": error <= 1e-3}


class Speed:
    """The large models, made once, and what they cost in each way of training them."""

    def __init__(self, device: torch.device, toy: bool) -> None:
        sizes = ((64, 2), (128, 2), 64, 512) if toy else ((1024, 24), (1280, 36), 1024, 50257)
        base, larger, self.length, self.vocabulary = sizes
        self.device, self.rounds = device, 3 if toy else 8
        self.ta = common.grown("gpt2", common.gpt2(*base, self.length, self.vocabulary))
        self.ta.model.to(device).train()
        self.teacher = (
            common.gpt2(*larger, self.length, self.vocabulary).to(device).requires_grad_(False)
        )
        self.size = 8  # the batch: halved until it fits

    def __call__(self, parts: bool, **settings: Any) -> dict[str, Any]:
        """A step with and without its optimizer; its parts as stock models, or the same step
        without ``compile``.
        """
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

    def _measure(self, parts: bool, settings: dict[str, Any]) -> dict[str, Any]:
        recipe, ta, cuda = Recipe(), self.ta, self.device.type == "cuda"
        torch._dynamo.reset()
        recipe.distill.ramp = 0.0
        recipe.update({"distill": settings}, "benchmark")
        task = tasks_task.task("causal_lm", recipe)
        ids = torch.randint(
            self.vocabulary, (self.size, self.length), generator=torch.Generator().manual_seed(0)
        )
        batch = {"input_ids": ids.to(self.device)}
        optimizer = make_optimizer(recipe, ta.model, [], self.device)

        def made(own: Recipe) -> Step:
            return Step(own, task, ta, ModelTeacher(task, self.teacher), self.device)

        def gradients(step: Step) -> None:
            step(batch, [], 1)
            ta.model.zero_grad(set_to_none=True)

        def update(step: Step) -> None:
            step(batch, [], 1)
            nn.utils.clip_grad_norm_(ta.model.parameters(), recipe.distill.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        step = made(recipe)
        flops = step.flops(batch) * self.size
        began = time.perf_counter()
        update(step)
        if cuda:
            torch.cuda.synchronize()
        first = time.perf_counter() - began
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        update(step)
        # before anything is there only to compare with
        memory = torch.cuda.max_memory_allocated() if cuda else None
        candidates: dict[str, Callable[[], Any]] = {
            "update": lambda: update(step),
            "gradients": lambda: gradients(step),
        }
        others: dict[str, Callable[[], Any]] = {}
        if recipe.distill.compile:
            plain = copy.deepcopy(recipe)
            plain.distill.compile = ""
            eager = made(plain)
            others = {"eager_update": lambda: update(eager)}
        elif parts:
            others = common.Parts(recipe, task, ta, self.teacher, batch).named()
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


def driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.split()[0]
    except (OSError, subprocess.TimeoutExpired, IndexError):
        return None


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument(
        "--toy",
        action="store_true",
        help="tiny models in the speed part too; always so without CUDA",
    )
    arguments.add_argument(
        "--backend", default="", help="of torch.compile; default: inductor, without CUDA aot_eager"
    )
    arguments.add_argument("--out", type=Path, help="write the result there too")
    options = arguments.parse_args()
    device = common.device()
    toy = options.toy or options.quick or device.type != "cuda"
    registered()
    backend = options.backend or ("inductor" if device.type == "cuda" else "aot_eager")
    began = time.perf_counter()
    found: dict[str, Any] = {}

    def part(name: str, call: Callable[[], dict[str, Any]], most: int) -> None:
        left = int(LIMIT - (time.perf_counter() - began))
        if left < 10:
            found[name] = {"failed": "no time was left"}
            return
        sys.stderr.write(f"{name} ...\n")
        started = time.perf_counter()
        signal.alarm(min(most, left))
        try:
            found[name] = call()
        except Exception as error:  # the other parts still have something to tell
            found[name] = {
                "failed": f"{type(error).__name__}: {error}",
                "where": traceback.format_exc().splitlines()[-4:],
            }
        finally:
            signal.alarm(0)
            sys.stderr.write(f"{name}: {time.perf_counter() - started:.0f} s\n")
            if made:
                made[0].clear()

    def late(*_: Any) -> None:
        raise TimeoutError("it took too long")

    def report() -> None:
        checks = [
            *(c for name in ("gpt2", "vit") for c in found.get(name, {"": None}).values()),
            found.get("resume"),
        ]
        holds = all(isinstance(check, dict) and check.get("holds") for check in checks)
        cuda = (
            {
                "cuda": torch.version.cuda,
                "driver": driver(),
                "capability": list(torch.cuda.get_device_capability()),
            }
            if device.type == "cuda"
            else {}
        )
        card = {
            "toy": toy,
            "backend": backend,
            "holds": holds,
            "seconds": time.perf_counter() - began,
            **cuda,
            **found,
        }
        common.result("gpu_suite", **card)
        if options.out:
            where = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
            text = json.dumps(
                {"benchmark": "gpu_suite", "device": where, "versions": common.versions(), **card},
                indent=1,
            )
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(text + "\n", encoding="utf-8")

    def give_up() -> None:
        """An alarm is heard between two lines of Python only: a kernel or compiler that never
        returns is left behind.
        """
        report()
        os._exit(1)

    made: list[Speed] = []

    def models() -> dict[str, Any]:
        made.append(Speed(device, toy))
        return {"seconds": time.perf_counter() - began}

    signal.signal(signal.SIGALRM, late)
    watch = threading.Timer(LAST, give_up)
    watch.daemon = True
    watch.start()
    part("gpt2", lambda: correctness("gpt2", device, backend), 80)
    part("vit", lambda: correctness("vit", device, backend), 60)
    part("resume", resumed, 40)
    part("models", models, 90)
    if made:
        speed = made[0]
        part("eager", lambda: speed(True), 90)
        part("eager_whole_logits", lambda: speed(False, logits="whole"), 40)
        if toy:  # at full size the logits are large enough to be chunked unasked
            part("eager_chunked_logits", lambda: speed(False, logits="chunked"), 40)
        part("checkpointed", lambda: speed(False, checkpoint_activations=True), 40)
        part("compiled", lambda: speed(False, compile=backend), 300)
    watch.cancel()
    report()


if __name__ == "__main__":
    main()
