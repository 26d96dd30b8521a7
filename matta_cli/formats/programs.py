"""Students as programs: they run without matta and without their architecture's library."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import inspect
import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli.adapter import PROGRAM
from matta_cli.data.split import Batch
from matta_cli.errors import MattaError, install, said
from matta_cli.tasks.task import Task, raw

OUTPUT = "output"  # what an ONNX program calls its one result


class Listening:
    """A model that keeps what a task calls it with, and the tensor that it answers."""

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, getattr(model, "config", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        answer = self.model(*args, **kwargs)
        self.args, self.kwargs, self.output = args, kwargs, raw(answer)
        return answer

    @torch.no_grad()
    def run(self, task: Task, batch: Batch) -> Listening:
        task.forward(self, batch)
        return self


def call_names(task: Task, model: Any, probe: Batch) -> tuple[list[str], dict[str, str]]:
    """Which tensors of a batch the task passes to a model: by position, and by keyword."""
    heard = Listening(model).run(task, probe)
    by_id = {id(tensor): name for name, tensor in probe.items()}
    named = {key: by_id[id(value)] for key, value in heard.kwargs.items() if id(value) in by_id}
    return [by_id[id(value)] for value in heard.args if id(value) in by_id], named


class _Outputs(nn.Module):
    """A model that gives its one tensor: a program must not need transformers to name it."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model = model

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            return raw(model(*args, **kwargs))

        # torch.export's guards do not find their way into **kwargs, nor do free sizes in some of
        # its releases
        named = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        forward.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
        self.forward = forward


def program(task: Task, model: nn.Module, batch: Batch) -> torch.export.ExportedProgram:
    """The model as a program for any number of examples, and of tokens where there are some.

    batch: two examples at least, since a size of one is taken for a constant. Raises ``MattaError``
    where torch.export cannot trace the model.
    """
    whole = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    config: Any = getattr(whole, "config", None)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # a cache of keys and values is no tensor
    args, kwargs = call_names(task, whole, batch)
    by_position = {name: batch[name] for name in args}
    by_name = {key: batch[name] for key, name in kwargs.items()}
    given = by_position | by_name

    def free(tensor: Tensor) -> dict[int, Any]:
        dims = range(1 if tensor.is_floating_point() else min(2, tensor.dim()))
        return {dim: torch.export.Dim.AUTO for dim in dims if tensor.shape[dim] > 1}

    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            shapes = {name: free(tensor) for name, tensor in given.items()}
            inputs, answers = tuple(by_position.values()), _Outputs(whole, list(given))
            return torch.export.export(answers, inputs, by_name, dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises what its tracer runs into
        what = f"A {type(model).__name__} cannot be exported as a program"
        raise MattaError(f"{what}: {said(error)[:300]}") from error


def save_pt2(task: Task, model: nn.Module, batch: Batch, path: Path) -> None:
    """Write ``torch.export``'s program. See ``program``."""
    torch.export.save(program(task, model, batch), path)


def needs_onnx(what: str) -> None:
    """Raise ``MattaError`` where what ``what`` needs is not installed."""
    names = ("onnx", "onnxscript", "onnxruntime")
    if any(importlib.util.find_spec(name) is None for name in names):
        needs = f"{what} needs onnx, onnxscript and onnxruntime"
        raise MattaError(f"{needs}: {install('onnx')}.")


def save_onnx(task: Task, model: nn.Module, batch: Batch, path: Path) -> None:
    """Write an ONNX program: inputs as ``call_names`` has them, one result ``OUTPUT``.

    See ``program``.
    """
    args, kwargs = call_names(task, model, batch)
    traced = program(task, model, batch)
    names: dict[str, Any] = {"input_names": [*args, *kwargs], "output_names": [OUTPUT]}
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        # it tells of its steps
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            made: Any = torch.onnx.export(traced, (), dynamo=True, verbose=False, **names)
            for node in made.model.graph.all_nodes():
                node.metadata_props.clear()  # where in whose files on this machine it was traced
            made.save(str(path))
    except Exception as error:  # it raises whatever operator it has no translation for
        what = f"A {type(model).__name__} cannot be written as ONNX"
        raise MattaError(f"{what}: {said(error)[:300]}") from error
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class Format:
    """A kind of program beside a Student's checkpoint: its file, what writes it, what loads it."""

    file: str
    write: Callable[[Task, nn.Module, Batch, Path], None]
    loader: str


_ONNX = "onnxruntime.InferenceSession({folder} + '/student.onnx')"

PROGRAMS = {
    "pt2": Format("student.pt2", save_pt2, PROGRAM),
    "onnx": Format("student.onnx", save_onnx, _ONNX),
}
