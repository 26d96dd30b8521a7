"""Students in fewer bits: which can be, what makes them, what opens them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from matta_cli.data.split import Batch
from matta_cli.errors import MattaError
from matta_cli.formats import onnx, torchao
from matta_cli.formats.programs import PROGRAMS, needs_onnx, save_onnx
from matta_cli.measure.cost import parameters
from matta_cli.models import inside
from matta_cli.settings.quantize import CALIBRATED, INT4, INT8, STATIC
from matta_cli.tasks.task import Task

_ONNX = PROGRAMS["onnx"]


def refuse(kind: str, model: nn.Module, loader: str) -> None:
    """Raise ``MattaError`` where a model cannot be quantized so, or a package for it is missing.

    loader: the expression that loads it in float.
    """
    flag, what = f"--quantize {kind}", type(model).__name__
    if torchao.fits(model, loader):
        torchao.needs(flag)
        if kind == STATIC:
            own = "torchao quantizes weights alone, so there is nothing to calibrate"
            raise MattaError(f"{flag} is not for a {what}: {own}. Pass --quantize int8.")
        if kind == INT4:
            own = "torchao computes with weights of 4 bits on GPUs alone, which is not tried here"
            raise MattaError(f"{flag} is not supported for a {what}: {own}. Pass --quantize int8.")
        return
    needs_onnx(flag)
    if kind != STATIC and of_convolutions(model):
        own = "its weights are those of convolutions, which that leaves as they are"
        raise MattaError(f"{flag} is not for a {what}: {own}. Pass --quantize {STATIC}.")


def of_convolutions(model: nn.Module) -> bool:
    """Whether most of a model's weights are those of convolutions."""
    own = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    return 2 * sum(map(parameters, own)) > parameters(model)


def usual(model: nn.Module) -> str:
    """The kind of 8 bits that is for a model."""
    return STATIC if of_convolutions(model) else INT8


@dataclass
class Maker(AbstractContextManager["Maker"]):
    """Makes one Student's quantized copies, out of one float program where they are programs.

    model: the float Student, as it loads from ``folder`` by ``loader``. probe: a batch of two
    examples or more. calibration: gives the batches that ``CALIBRATED`` kinds are calibrated with.
    """

    task: Task
    model: nn.Module
    folder: Path
    loader: str
    probe: Batch
    calibration: Callable[[], Sequence[Batch]]
    threads: int

    def __post_init__(self) -> None:
        self._temp = tempfile.TemporaryDirectory(prefix="matta-", ignore_cleanup_errors=True)

    def __exit__(self, *_: object) -> None:
        self._temp.cleanup()

    def write(self, kind: str, to: Path) -> str:
        """Write it in fewer bits into a folder; returns the expression that loads it there."""
        if torchao.fits(self.model, self.loader):
            torchao.quantize(self.folder, to)
            return torchao.LOADER
        model, calibrated = self.model, kind in CALIBRATED
        inputs = onnx.inputs_of(self.task, model, self.calibration()) if calibrated else []
        onnx.quantize(kind, self._float, to / _ONNX.file, inputs)
        return _ONNX.loader

    @cached_property
    def beside(self) -> nn.Module | None:
        """The float Student as onnxruntime runs it, if its copies are programs."""
        if torchao.fits(self.model, self.loader):
            return None
        return onnx.Session(self._float, self.model, self.threads)

    @cached_property
    def _float(self) -> Path:
        program = self.folder / _ONNX.file
        if not program.exists():
            program = Path(self._temp.name) / _ONNX.file
            save_onnx(self.task, self.model, self.probe, program)
        return program


def is_program(folder: Path) -> bool:
    """Whether the quantized Student in a folder is a program."""
    return (folder / _ONNX.file).is_file()


def opened(folder: Path, like: nn.Module | None, threads: int = 0) -> nn.Module:
    """The quantized Student in a folder, as it is measured. like: the float one, of a program.

    threads: of a CPU, where it is a program; 0: torch's own number. Raises ``MattaError`` where
    what lies there does not open.
    """
    inside.check(folder)
    if is_program(folder):
        return onnx.Session(folder / _ONNX.file, like, threads)
    torchao.needs(f"{str(folder)!r}")
    return torchao.opened(folder)
