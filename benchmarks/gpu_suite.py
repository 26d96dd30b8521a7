"""One command for one CUDA GPU, under eight minutes, no network: is it correct there, and how fast.

Correctness, on tiny models: gradients in bf16 against float64 autograd; compiled, chunked and checkpointed against plain; a
Student's view against the dense Student; a run that is resumed against one that is not. Speed, with GPT-2 Medium as the
base, a TA twice as wide and a Teacher of GPT-2 Large's size (random weights: they cost the same): the time of a step over that
of its parts as stock models, tokens per second, model FLOPs utilisation, peak memory. Without CUDA it runs at toy size.
Every part has a time limit; one that fails or runs out of time says so, and the others go on.
"""

from __future__ import annotations

import copy
import json
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import common
from matta_cli import demo, devices, optimization, registry
from matta_cli.conversion import TA, convert
from matta_cli.distillation import distill
from matta_cli.recipe import Recipe
from matta_cli.step import ModelTeacher, Step

LIMIT = 460  # seconds in all


def tools(**settings: Any) -> tuple[Recipe, TA, nn.Module, dict[str, Tensor]]:
    """A tiny GPT-2 as TA, a Teacher and a batch."""
    recipe = Recipe()
    recipe.distill.ramp = 0.0
    recipe.update({"distill": {"precision": "fp32", **settings}}, "benchmark")
    ta = common.grown("gpt2", common.gpt2(128, 2, 64, 512, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    with torch.no_grad():
        for parameter in ta.model.parameters():  # the new units must have a say
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    teacher = common.gpt2(192, 2, 64, 512).requires_grad_(False)
    batch = {"input_ids": torch.randint(512, (4, 64), generator=torch.Generator().manual_seed(2))}
    return recipe, ta, teacher, batch


def gradients(device: torch.device, **settings: Any) -> dict[str, Tensor]:
    """A step's gradients of the TA."""
    recipe, ta, teacher, batch = tools(**settings)
    ta.model.to(device)
    task = registry.task("causal_lm", recipe)
    step = Step(recipe, task, ta, ModelTeacher(task, teacher.to(device)), device)
    step({name: tensor.to(device) for name, tensor in batch.items()}, [0, 1, 2, 3], 1)
    return {name: p.grad.double() for name, p in ta.model.named_parameters() if p.grad is not None}


def reference(device: torch.device) -> dict[str, Tensor]:
    """The same by autograd on stock modules, all in float64."""
    recipe, ta, teacher, batch = tools()
    settings, ids = recipe.distill, batch["input_ids"].to(device)
    ta.model.to(device).double()
    teacher = teacher.to(device).double()
    tau = settings.temperature

    def kd(z: Tensor, t: Tensor) -> Tensor:
        given = F.log_softmax(t / tau, -1)
        return F.kl_div(F.log_softmax(z / tau, -1), given, log_target=True, reduction="sum") * tau**2 / ids.numel()

    def own(z: Tensor) -> Tensor:
        truth = F.cross_entropy(z[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        return (1 - settings.teacher_mix) * truth + settings.teacher_mix * kd(z, teacher(ids).logits)

    z_ta = ta.model(ids).logits
    total = own(z_ta)
    for width in settings.widths:
        z = ta.at(width)(input_ids=ids).logits
        total = total + (own(z) + settings.ta_student_weight * kd(z, z_ta.detach())) / len(settings.widths)
    total.backward()
    return {name: p.grad for name, p in ta.model.named_parameters() if p.grad is not None}


def gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative error of a tensor, by its norm."""
    assert found.keys() == expected.keys()
    return max(float((found[n].cpu() - expected[n].cpu()).norm() / expected[n].norm().cpu()) for n in expected)


def correctness(device: torch.device, backend: str) -> dict[str, Any]:
    exact = reference(device)
    found = {
        "fp32": (gap(gradients(device), exact), 1e-4),
        "bf16": (gap(gradients(device, precision="bf16"), exact), 0.05),
        "tf32": (gap(gradients(device, precision="tf32"), exact), 0.01),
        "chunked": (gap(gradients(device, logits="chunked"), exact), 1e-4),
        "checkpointed": (gap(gradients(device, checkpoint_activations=True), exact), 1e-4),
        "compiled": (gap(gradients(device, compile=backend), exact), 1e-4),
    }
    _, ta, _, batch = tools()
    ta.model.to(device)
    ids = batch["input_ids"].to(device)
    with torch.no_grad():
        view, dense = ta.at(0.5).eval()(input_ids=ids).logits, ta.student(0.5)(ids).logits
    found["view"] = (float((view - dense).abs().max() / dense.abs().max()), 1e-5)
    return {name: {"error": error, "bound": bound, "holds": error <= bound} for name, (error, bound) in found.items()}


def resumed() -> dict[str, Any]:
    """The losses of a run that is resumed half-way, against those of one that is not."""
    with tempfile.TemporaryDirectory() as temp:
        out = Path(temp)
        recipe = demo.prepare("vit", out, quick=True)
        recipe.distill.steps, recipe.distill.save_every, recipe.distill.allow_weak_teacher = 8, 4, True
        convert(recipe, out)
        last = distill(recipe, out)

        def losses() -> list[float]:
            lines = (out / "run" / "metrics.jsonl").read_text().splitlines()
            return [terms["loss"] for line in lines for terms in json.loads(line)["terms"].values()]

        straight = losses()
        shutil.rmtree(last)
        distill(recipe, out, resume=True)
        error = max(abs(a - b) / abs(a) for a, b in zip(straight, losses(), strict=True))
    return {"error": error, "bound": 1e-3, "holds": error <= 1e-3}


def twin(model: nn.Module) -> nn.Module:
    """A model of the same layers: the step takes the Teacher's last one off."""
    found = copy.copy(model)
    found._modules = dict(model._modules)
    return found


def speed(device: torch.device, toy: bool, rounds: int, **settings: Any) -> dict[str, Any]:
    """A step with its optimizer, and its parts as stock models."""
    sizes = ((64, 2), (128, 2), 64, 512) if toy else ((1024, 24), (1280, 36), 1024, 50257)
    base, larger, length, vocabulary = sizes
    recipe = Recipe()
    recipe.distill.ramp = 0.0
    recipe.update({"distill": settings}, "benchmark")
    ta = common.grown("gpt2", common.gpt2(*base, length, vocabulary))
    ta.model.to(device).train()
    teacher = common.gpt2(*larger, length, vocabulary).to(device).requires_grad_(False)
    task = registry.task("causal_lm", recipe)
    compiled = bool(recipe.distill.compile)
    for size in (8, 4, 2, 1):
        ids = torch.randint(vocabulary, (size, length), generator=torch.Generator().manual_seed(0), dtype=torch.long)
        batch = {"input_ids": ids.to(device)}
        try:
            parts = None if compiled else common.Parts(recipe, task, ta, teacher, batch)
            step = Step(recipe, task, ta, ModelTeacher(task, twin(teacher)), device)
            flops = step.flops(batch) * size
            optimizer = optimization.make_optimizer(recipe, ta.model, [], device)

            def take(step: Step = step, optimizer: Any = optimizer, batch: dict[str, Tensor] = batch) -> None:
                step(batch, [], 1)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            candidates: dict[str, Callable[[], Any]] = {"step": take}
            if parts is not None:
                candidates |= parts.named()
            began = time.perf_counter()
            take()
            first = time.perf_counter() - began
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            take()
            memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
            taken = common.alternating(candidates, rounds, warmup=1)
        except torch.OutOfMemoryError:
            ta.model.zero_grad(set_to_none=True)
            parts = step = optimizer = None
            torch.cuda.empty_cache()
            continue
        middle = common.medians(taken)
        peak = devices.peak_flops(device, recipe.distill.precision)
        found = {
            "batch": size, "first_step_s": first, "median_s": middle, "tokens_per_s": size * length / middle["step"],
            "model_flops": flops, "utilisation": flops / middle["step"] / peak if peak else None, "peak_memory": memory,
            "chunked": step.chunked,
        }  # fmt: skip
        if parts is not None:
            names = [name for name in taken if name != "step"]
            rows = zip(taken["step"], *(taken[name] for name in names), strict=True)
            found["ratio"] = statistics.median(whole / sum(rest) for whole, *rest in rows)
        return found
    raise MemoryError("not even one sequence fits")


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument("--toy", action="store_true", help="tiny models in the speed part too; always so without CUDA")
    arguments.add_argument("--backend", default="", help="of torch.compile; default: inductor, without CUDA aot_eager")
    arguments.add_argument("--out", type=Path, help="write the result there too")
    options = arguments.parse_args()
    device = common.device()
    toy = options.toy or options.quick or device.type != "cuda"
    backend = options.backend or ("inductor" if device.type == "cuda" else "aot_eager")
    began = time.perf_counter()
    found: dict[str, Any] = {}

    def part(name: str, call: Callable[[], dict[str, Any]], most: int) -> None:
        left = int(LIMIT - (time.perf_counter() - began))
        if left < 10:
            found[name] = {"failed": "no time was left"}
            return
        sys.stderr.write(f"{name} ...\n")
        signal.alarm(min(most, left))
        try:
            found[name] = call()
        except Exception as error:  # the other parts still have something to tell
            found[name] = {"failed": f"{type(error).__name__}: {error}", "where": traceback.format_exc().splitlines()[-4:]}
        finally:
            signal.alarm(0)
            if device.type == "cuda":
                torch.cuda.empty_cache()

    def late(*_: Any) -> None:
        raise TimeoutError("it took too long")

    signal.signal(signal.SIGALRM, late)
    rounds = 3 if toy else 8
    part("correctness", lambda: correctness(device, backend), 120)
    part("resume", resumed, 60)
    part("eager", lambda: speed(device, toy, rounds), 90)
    part("eager_whole_logits", lambda: speed(device, toy, rounds, logits="whole"), 60)
    if toy:  # at full size the logits are large enough to be chunked unasked
        part("eager_chunked_logits", lambda: speed(device, toy, rounds, logits="chunked"), 60)
    part("checkpointed", lambda: speed(device, toy, rounds, checkpoint_activations=True), 60)
    part("compiled", lambda: speed(device, toy, rounds, compile=backend), 300)
    checks = [*found["correctness"].values(), found["resume"]]
    holds = all(isinstance(check, dict) and check.get("holds") for check in checks)
    cuda = {"cuda": torch.version.cuda, "capability": list(torch.cuda.get_device_capability())} if device.type == "cuda" else {}
    card = {"toy": toy, "holds": holds, "seconds": time.perf_counter() - began, **cuda, **found}
    common.result("gpu_suite", **card)
    if options.out:
        where = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
        text = json.dumps({"benchmark": "gpu_suite", "device": where, "versions": common.versions(), **card}, indent=1)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
