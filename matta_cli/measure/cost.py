"""What a model costs: parameters, MACs, latency, memory, all measured on the machine at hand."""

from __future__ import annotations

import ctypes
import gc
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from matta_cli.data.split import Batch
from matta_cli.tasks.task import Task

T = TypeVar("T")

ROUNDS, WARMUP = 30, 3
FEWEST, LONGEST = 5, 60.0  # rounds that are taken in any case; seconds after which none begins


def parameters(model: nn.Module) -> int:
    """Parameters; tied tensors count once."""
    return sum(p.numel() for p in model.parameters())


def macs(task: Task, model: Any, batch: Batch) -> int:
    """Multiply-accumulates of one forward on ``batch``: half of torch's FLOP count.

    It counts matrix products and convolutions. model: a module, or a view of one.
    """
    module = model if isinstance(model, nn.Module) else model.model
    trained = [p for p in module.parameters() if p.requires_grad]
    # torch's counter looks for the gradients of a module's inputs, which no_grad leaves without
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        # fused attention kernels of the CPU have no entry in torch's table of FLOPs; the plain one
        # is made of matrix products
        plain = sdpa_kernel(SDPBackend.MATH)
        with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
            task.forward(model.eval(), batch)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return counter.get_total_flops() // 2


def tokens(batch: Mapping[str, Tensor]) -> int | None:
    """How many tokens each example of a batch takes, with those that pad it; None without any."""
    ids = batch.get("input_ids")
    return None if ids is None else ids.shape[1]


def repeated(batch: Mapping[str, Tensor], size: int) -> Batch:
    """A batch of exactly ``size`` examples, repeating those given."""
    return {name: torch.cat([t] * -(-size // len(t)))[:size] for name, t in batch.items()}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads of the CPU meanwhile; 0: as many as it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def now(device: torch.device) -> float:
    """The time in seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def in_turns(runs: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each gives in so many rounds, in which all take their turn, after some to warm up.

    Drift then hits all alike. Where ``rounds`` would take longer than a minute it stops earlier,
    after five of them at the least.
    """
    found: dict[str, list[T]] = {name: [] for name in runs}
    began = time.perf_counter()
    for turn in range(WARMUP + rounds):
        if turn >= WARMUP + FEWEST and time.perf_counter() - began > LONGEST:
            break
        for name, run in runs.items():
            one = run()
            if turn >= WARMUP:
                found[name].append(one)
    return found


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """``median`` and 95th percentile ``p95``."""
    taken = torch.tensor(seconds, dtype=torch.float64)
    return {"median": taken.median().item(), "p95": taken.quantile(0.95).item()}


def latencies(
    task: Task, candidates: Mapping[str, nn.Module], batch: Batch, rounds: int = ROUNDS
) -> dict[str, dict[str, float]]:
    """Seconds per forward of each model, warmed up: their ``spread``."""
    device = next(iter(batch.values())).device

    def forward(model: nn.Module) -> float:
        started = now(device)
        task.forward(model, batch)
        return now(device) - started

    with torch.no_grad():
        runs = {name: partial(forward, model) for name, model in candidates.items()}
        return {name: spread(taken) for name, taken in in_turns(runs, rounds).items()}


@dataclass
class Peak:
    """The most memory in use at once, and what was in use before, in bytes; None: unknown.

    It is that of the device on CUDA, of the process elsewhere.
    """

    before: int = 0
    bytes: int | None = None


@contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """Watch the memory while something runs; the answer is there afterwards."""
    watched = Peak()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        watched.before = torch.cuda.memory_allocated(device)
        yield watched
        watched.bytes = torch.cuda.max_memory_allocated(device)
        return
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        watched.before = _status("VmRSS")
    except OSError:
        yield watched
        return
    yield watched
    watched.bytes = _status("VmHWM")


def peak_memory(task: Task, model: nn.Module, batch: Batch) -> int | None:
    """Bytes of the weights plus the most that a forward on ``batch`` adds; None: unknown.

    On CUDA that is the allocator's peak; on Linux the rise of the process's peak resident memory,
    freed memory returned first.
    """
    weights = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    with torch.no_grad(), peak(next(iter(batch.values())).device) as watched:
        task.forward(model, batch)
    return None if watched.bytes is None else weights + max(0, watched.bytes - watched.before)


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{name}:\s+(\d+) kB", text)[0]) * 1024


def weight_bytes(folder: Path) -> int:
    """Bytes of a folder's weight files, or of the program that it holds without any."""
    files = [*folder.glob("*.safetensors")] or folder.glob("*.onnx")
    return sum(file.stat().st_size for file in files)


def device_card(device: torch.device) -> dict[str, Any]:
    """What was measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {"name": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _processor() -> str:
    try:
        found = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = []
    return f"CPU {found[0]}" if found else f"CPU {platform.processor() or platform.machine()}"
