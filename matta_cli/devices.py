"""Where a run computes, in which numbers, and with which other processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from matta_cli.errors import MattaError

PRECISIONS = ("auto", "bf16", "fp16", "fp32", "tf32")


def pick(name: str) -> torch.device:
    """``auto`` is CUDA where there is one. Raises ``MattaError`` for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise MattaError(f"Device {name!r} is not available here; pass --device cpu or leave it out.") from None
    return device


def resolved(name: str, device: torch.device) -> str:
    """The precision that ``auto`` stands for: bf16 on a CUDA card that has it, fp16 on one that has not, else fp32."""
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Autocast to bf16 or fp16; tf32 is float32 with matrix products in TensorFloat-32; weights stay float32 in all of them."""
    name = resolved(name, device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else before)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
    try:
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def scaler(name: str, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling, which fp16 needs and nothing else does."""
    return torch.amp.GradScaler(device.type, enabled=resolved(name, device) == "fp16")


# Processes: one per device, started by torchrun, which says in the environment who is who


@dataclass(frozen=True)
class World:
    """The processes of a run. Each takes its part of every batch; all hold the same weights."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def part(self, examples: list[int]) -> list[int]:
        """This process's examples of a step."""
        each = len(examples) // self.size
        return examples[self.rank * each : (self.rank + 1) * each]

    def total(self, values: Tensor) -> Tensor:
        """Values summed over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    def share_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients over the processes.

        Once a step, after its last backward pass: a step has one per model, and DistributedDataParallel would reduce in each.
        """
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        filled = 0
        for gradient in [p.grad for p in parameters if p.grad is not None]:
            bucket.append(gradient)
            filled += gradient.numel()
            if filled > 1 << 24:
                _reduce(bucket)
                bucket, filled = [], 0
        _reduce(bucket)


def _reduce(bucket: list[Tensor]) -> None:
    if not bucket:
        return
    flat = torch.cat([gradient.flatten() for gradient in bucket])
    dist.all_reduce(flat)
    for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
        gradient.copy_(part.view_as(gradient))


def local(name: str) -> str:
    """The device of this process: with ``auto``, each process of a machine takes the GPU of its number."""
    if name == "auto" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return name


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The processes that torchrun started (this one alone, where it did not)."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not {"RANK", "MASTER_ADDR"} <= set(os.environ):
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # the others wait while the first one measures
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
