"""One Student on its way out: cut, saved, with the programs that were asked for beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli.adapter import PROGRAM
from matta_cli.errors import MattaError
from matta_cli.files.card import write_card
from matta_cli.formats.programs import PROGRAMS, Listening, needs_onnx
from matta_cli.measure.cost import repeated
from matta_cli.measure.held_out import HeldOut
from matta_cli.measure.students import own_statistics
from matta_cli.models.folders import Reached, load_student
from matta_cli.models.ta import Student
from matta_cli.models.tokenizer import copy_companions
from matta_cli.nested.sizes import full_sizes, kinds, nested_axes
from matta_cli.progress import Say
from matta_cli.settings import checks
from matta_cli.settings.recipe import ExportSettings

OWN = "matta_cli.load_student({folder})"  # what loads matta's own format
PROBED = 4  # examples whose outputs a Student must give again


def check(settings: ExportSettings) -> None:
    """Raise ``MattaError`` for formats and types that are not known, or do not go together.

    So it does where a package that a format needs is missing.
    """
    checks.check(settings)
    if {"stock", "matta"} <= set(settings.format):
        one = "a Student's folder holds one checkpoint"
        raise MattaError(f"--format stock,matta is not possible: {one}.")
    programs = [name for name in settings.format if name in PROGRAMS]
    if programs and settings.dtype not in ("auto", "float32"):
        both = f"--format {programs[0]} with --dtype {settings.dtype}"
        raise MattaError(f"{both} is not supported: programs are written in float32.")
    if "onnx" in programs:
        needs_onnx("--format onnx")


@dataclass(frozen=True)
class Written:
    """A Student in its folder.

    loader: the expression that loads its checkpoint; programs: those that load the programs beside
    it; ``{folder}`` stands for the folder. expected: the outputs of the nested view on the first
    ``PROBED`` examples, which what is loaded must give again, its weights rounded to ``dtype``;
    whole: those of the view as it is.
    """

    student: Student
    folder: Path
    stock: bool
    loader: str
    programs: dict[str, str]
    expected: Tensor
    whole: Tensor
    dtype: str

    @property
    def loaders(self) -> dict[str, str]:
        """The checkpoint and the programs, by the names that errors give them."""
        beside = {f"{self.student.name} as {name}": text for name, text in self.programs.items()}
        return {self.student.name: self.loader, **beside}


def write(
    student: Student,
    folder: Path,
    held_out: HeldOut,
    run: Reached,
    lineage: Mapping[str, Any],
    say: Say,
) -> Written:
    """Write a Student into the new ``folder``, from views: no second copy is in memory.

    Raises ``MattaError`` where it was to be a stock checkpoint and cannot be one.
    """
    task, adapter, settings = held_out.task, student.ta.adapter, held_out.recipe.export
    own, dtype = "matta" in settings.format, student.ta.saved_as(settings.dtype)
    buffers = own_statistics(task, student, held_out.data.train)
    view, reason = _viewed(student, buffers), student.unsupported
    if reason and "stock" in settings.format:
        instead = "Without --format stock it is saved in matta's own format"
        raise MattaError(f"{student.name} cannot be a stock checkpoint: {reason}. {instead}.")
    stock = not reason and not own
    folder.mkdir()
    student.save(folder, buffers, own=own, dtype=dtype)
    copy_companions(run.folder, folder)
    with torch.device("meta"):
        axes = nested_axes(adapter, student.built(), list(kinds(student.ta.base)))
    budget = student.budget and student.budget.name
    made_of = {**lineage, "student": student.name, "width": student.width, "budget": budget}
    write_card(folder, adapter, axes, full_sizes(axes), made_of)
    probe = held_out.first(PROBED)
    formats = {name: PROGRAMS[name] for name in settings.format if name in PROGRAMS}
    beside = dict(formats)
    if stock and adapter.loader == PROGRAM:
        beside["pt2"] = PROGRAMS["pt2"]
    for program in beside.values():
        say(f"Writing {program.file} of {student.name}.")
        program.write(task, load_student(folder), repeated(probe, 3), folder / program.file)
    whole = expected = Listening(view).run(task, probe).output
    if dtype is not torch.float32:
        expected = Listening(_rounded(student, buffers, dtype)).run(task, probe).output
    programs = {name: program.loader for name, program in formats.items()}
    loader, kept = adapter.loader if stock else OWN, str(dtype).removeprefix("torch.")
    return Written(student, folder, stock, loader, programs, expected, whole, kept)


def _viewed(student: Student, buffers: Mapping[str, Tensor]) -> Any:
    """The Student as it is called, with the statistics that are kept of it."""
    view = student.view().eval()
    if isinstance(view, nn.Module):  # weights of its own, which are saved with these statistics
        view.load_state_dict(buffers, strict=False)
    else:
        view.buffers = buffers
    return view


def _rounded(student: Student, buffers: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """The Student with the digits that are kept of its weights, in float32."""
    dense = student.dense()
    dense.load_state_dict(buffers, strict=False)
    # what is no part of the state dict, such as rotary frequencies, is not rounded by saving
    for tensor in dense.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype).float()
    return dense
