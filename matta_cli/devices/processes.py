"""The processes of a run, one for each device.

torchrun starts them, or ``launch`` does, and says in the environment who is who.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from matta_cli.errors import MattaError
from matta_cli.trust import isolated

_BUCKET = 1 << 24  # values that are exchanged at a time
_MAIN = "sys.argv[0] = 'matta'\nfrom matta_cli.main import main\nmain()"  # what they run
_RUN = "matta"  # what ``launch`` calls its processes, in their environment

# FSDP2 warns that a module returns a view, lest it be changed in place: nothing here changes an
# output or a weight's view so
warnings.filterwarnings("ignore", message=".*returned a view tensor")


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
        """Sum gradients over the processes: once a step, after its last backward pass.

        A step has one pass for each model, and DistributedDataParallel would reduce in each.
        """
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        filled = 0
        for gradient in [p.grad for p in parameters if p.grad is not None]:
            bucket.append(gradient)
            filled += gradient.numel()
            if filled >= _BUCKET:
                _reduce(bucket)
                bucket, filled = [], 0
        _reduce(bucket)


ALONE = World()


def _reduce(bucket: list[Tensor]) -> None:
    if not bucket:
        return
    flat = torch.cat([gradient.flatten() for gradient in bucket])
    dist.all_reduce(flat)
    for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
        gradient.copy_(part.view_as(gradient))


class Unit(nn.Module):
    """A model sharded over the processes (FSDP2), whose parameters are whole inside ``forward``.

    One unit for the whole TA, since a Student's views cut across its layers: weights are whole
    while a model runs, and gradients, optimizer state and what lies between are sharded.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model = model
        fully_shard(self, mesh=_mesh(device))

    def forward(self, call: Callable[[], Any]) -> Any:
        """What ``call`` returns, which uses the parameters."""
        return call()


def shard_layers(model: nn.Module, layers: Iterable[nn.Module], device: torch.device) -> None:
    """Shard a model that is called as it is, such as a Teacher: one layer is whole at a time."""
    for module in (*layers, model):
        fully_shard(module, mesh=_mesh(device))


def _mesh(device: torch.device) -> DeviceMesh:
    return init_device_mesh(device.type, (dist.get_world_size(),))


def gathered(tensor: Tensor) -> Tensor:
    """A tensor of a sharded model as a whole one on the CPU; others as they are.

    Every process has to ask.
    """
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def scatter(into: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    if isinstance(into, DTensor):
        whole = distribute_tensor(whole.to(into.device), into.device_mesh, into.placements)
    into.copy_(whole)


def local(name: str) -> str:
    """The device of this process: of ``auto`` and ``cuda`` the GPU of its number on this machine.

    Raises ``MattaError`` where ``launch`` has started more processes than there are GPUs, and for
    one GPU by its number, which several processes of a machine cannot share. Others who start
    several may have given each a GPU of its own, the only one that it sees.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if name.startswith("cuda:") and processes > 1:
        several = "there are several processes: with --device cuda each takes its own"
        raise MattaError(f"--device {name} is one GPU, and {several}.")
    alone = name not in ("auto", "cuda") or "LOCAL_RANK" not in os.environ
    if alone or not torch.cuda.is_available():
        return name
    there = torch.cuda.device_count()
    if processes > there and os.environ.get("TORCHELASTIC_RUN_ID") == _RUN:
        has = f"this machine has {there} GPU{'s' * (there > 1)}"
        raise MattaError(f"--devices {processes} is not possible: {has}.")
    return f"cuda:{int(os.environ['LOCAL_RANK']) % there}"


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The processes that torchrun started (this one alone, where it did not)."""
    named = {"RANK", "MASTER_ADDR"} <= set(os.environ)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not named:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # the others wait while the first one measures
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def launch(count: int, arguments: list[str]) -> int:
    """Run ``matta`` with ``arguments`` in ``count`` processes of this machine.

    This is ``torchrun --standalone --nproc-per-node count``; across machines, torchrun itself
    starts matta. Returns the exit code.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # the processes themselves say what went wrong
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    try:
        with tempfile.TemporaryDirectory() as logs:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=count,
                run_id=_RUN,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                monitor_interval=0.5,
                max_restarts=0,
                logs_specs=DefaultLogsSpecs(log_dir=logs),
            )
            python, *code = isolated(_MAIN)
            elastic_launch(config, python)(*code, *arguments)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return max(codes, key=lambda code: (code > 128, code)) if max(codes) > 0 else 1
    except SignalException as error:
        return 128 + error.sigval
    return 0
