"""What a run works with, checked before anything is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from matta_cli.data import split
from matta_cli.data.split import Data
from matta_cli.devices.device import half
from matta_cli.devices.processes import ALONE, World
from matta_cli.errors import MattaError
from matta_cli.files.atomic import file_digest
from matta_cli.files.workspace import Workspace
from matta_cli.models import tokenizer
from matta_cli.models.folders import load_ta
from matta_cli.models.save import weights_digest
from matta_cli.models.ta import TA
from matta_cli.nested.view import has_statistics
from matta_cli.progress import Listener, Progress, quiet
from matta_cli.settings import checks
from matta_cli.settings.recipe import DistillSettings, Recipe
from matta_cli.tasks.task import Task
from matta_cli.tasks.task import task as task_named
from matta_cli.training import log, teacher_file
from matta_cli.training import teacher as teachers
from matta_cli.training.file_teacher import FileTeacher
from matta_cli.training.rows import Rows
from matta_cli.training.start import Start, Starting
from matta_cli.training.teacher import ModelTeacher, Teacher

HELD_OUT = "held-out data"  # in ``Setup.made_of``


@dataclass
class Setup:
    """What a run works with, on which device, and beside which other processes.

    ta: as it was converted, until a run that goes on puts its own in its place. teacher: none where
    none is named and no term of the loss asks for one (``teacher_mix = 0``: labels alone).
    made_of: digests of the Teacher, the training data and the held-out examples, by which a run
    that goes on knows them again; only the first process has them.
    companions: what belongs to the TA besides its weights (name -> content): its own files, and of
    a TA without a tokenizer the Teacher's. start: what base and Teacher measured; None of a
    baseline, which has no base.
    """

    recipe: Recipe
    task: Task
    ta: TA
    teacher: Teacher | None
    data: Data
    device: torch.device
    world: World = ALONE
    companions: dict[str, bytes] = field(default_factory=dict)
    start: Start | None = None
    made_of: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> DistillSettings:
        """The settings of the training itself."""
        return self.recipe.distill


def opened(
    recipe: Recipe, out: Path, device: torch.device, world: World = ALONE, listen: Listener = quiet
) -> Setup:
    """What the run of the TA in ``out`` works with.

    Raises ``MattaError`` for settings that make no sense, a Teacher that does not fit or is worse
    than the base, and data that is missing or does not fit.
    """
    settings, folder = recipe.distill, Workspace(out).ta
    ta, home = load_ta(folder), tokenizer.home(folder)
    checks.check(settings)
    _check(settings, ta, world)
    task = task_named(ta.adapter.task, recipe)
    _check_rows(settings, ta, world)
    by_file = bool(settings.teacher) and teacher_file.is_file(settings.teacher)
    model = None
    if not by_file and (settings.teacher or teachers.asks_teacher(settings, task)):
        say = partial(_tell, listen)
        model, source = teachers.load_teacher(settings, task, ta, out, device, say, home)
        if task.name == "causal_lm" and not tokenizer.has_tokenizer(folder) and source.beside:
            home = source.beside  # the same vocabulary, so its tokenizer is the TA's, too
            listen(Progress(message=f"The TA has no tokenizer: the Teacher's is used ({home})."))
    data = task.data(home, ta.model)
    listen(Progress(message=f"Data: {data.description}"))
    for note in data.notes:
        listen(Progress(message=f"Note: {note}"))
    teacher: Teacher | None = None
    made_of, digest = {}, _teacher_digest(settings.teacher, model, by_file)
    if world.first:
        made_of["Teacher"] = digest
        if not recipe.data.streaming:  # of a stream only as much is read as the steps need
            made_of["training data"] = data.train.digest()
            made_of[HELD_OUT] = split.digest([part.digest() for part in data.held_out])
    if model is not None:
        teacher = ModelTeacher(task, model)
    elif by_file:
        teacher = FileTeacher(settings.teacher, task, data, task.outputs(ta.model))
        for note in teacher.notes:
            listen(Progress(message=f"Note: Teacher {settings.teacher!r}: {note}"))
    start = None
    if "baseline" not in ta.card["lineage"]:  # the run that it is compared with has asked
        starting = Starting(settings, task, ta, data, device, world.size)
        itself = teachers.is_base(settings, digest, ta)
        both = "the base and the Teacher" if model is not None and not itself else "the base"
        _tell(listen, f"Measuring {both} on held-out examples, before training.")
        start = starting.measured(teacher, listen, itself=itself)
    if model is not None and (dtype := half(settings.precision, device)) is not None:
        teachers.halve(model, dtype)
    files = tokenizer.companions(folder) | tokenizer.companions(home)
    companions = {name: path.read_bytes() for name, path in files.items()}
    return Setup(recipe, task, ta, teacher, data, device, world, companions, start, made_of)


def _tell(listen: Listener, sentence: str) -> None:
    listen(Progress(message=sentence))


def _teacher_digest(name: str, model: nn.Module | None, by_file: bool) -> str:
    """sha256 of a Teacher's weights, or of what it said; empty without any."""
    if model is not None:
        return weights_digest(model)
    path = Path(name).expanduser()
    return file_digest(path / teacher_file.CARD if path.is_dir() else path) if by_file else ""


def _check_rows(s: DistillSettings, ta: TA, world: World) -> None:
    """Raise ``MattaError`` where some models would get too few rows, or not always as many."""
    rows = Rows(s, ta)
    sizes = rows.sizes(s.batch_size // world.size)
    if has_statistics(ta.model) and any(count < 2 for counts in sizes.values() for count in counts):
        needed = "the model has BatchNorm, which needs 2 examples or more at a time"
        among = f", and {len(rows.groups)} models share them" if s.rows == "divided" else ""
        raise MattaError(f"--batch-size {s.batch_size} is not possible: {needed}{among}.")
    if s.compile and any(len(counts) > 1 for counts in sizes.values()):
        uneven = f"--batch-size {s.batch_size} cannot be divided evenly among {len(rows.groups)}"
        if s.micro_batch:
            uneven = f"--micro-batch {s.micro_batch} does not divide the batch"
        raise MattaError(f"--compile needs batches of one size: {uneven}.")


def check_count(batch_size: int, devices: int) -> None:
    """Raise ``MattaError`` where a batch cannot be divided among the devices."""
    if batch_size % devices:
        among = f"among {devices} devices: take a multiple"
        raise MattaError(f"--batch-size {batch_size} cannot be divided {among}.")


def _check(s: DistillSettings, ta: TA, world: World) -> None:
    """Raise ``MattaError`` for settings that make no sense together, or for this TA."""
    # looked up only where one is wanted: that takes a second
    backends = torch._dynamo.list_backends(None) if s.compile else []
    if s.compile and s.compile not in backends:
        raise MattaError(f"distill.compile {s.compile!r} is not known: {', '.join(backends)}.")
    log.check(s.log_to)
    if s.students_learn_from == "ta" and not s.ta_student_weight:
        nothing = "with distill.ta_student_weight = 0 they would learn nothing of it"
        raise MattaError(f"distill.students_learn_from = 'ta' is not possible: {nothing}.")
    if not s.widths:
        raise MattaError("There are no widths to train: name some in distill.widths.")
    for width in s.widths:
        ta.sizes(width)
    beyond = s.ta_weight > 0 and ta.widest not in s.widths
    whole = len(s.shares) == len(s.widths) + beyond and all(0 < w < math.inf for w in s.shares)
    if s.shares and not whole:
        one = f"it is one number above 0 for each of {s.widths}"
        last = f", and one for the TA of width {ta.widest:g}" if beyond else ""
        raise MattaError(f"distill.shares {s.shares} is not possible: {one}{last}.")
    if s.best and s.best not in s.widths:
        widths = ", ".join(f"{w:g}" for w in s.widths)
        raise MattaError(f"distill.best {s.best:g} is not one of the widths {widths}.")
    views = s.checkpoint_activations or s.compile or not s.dropout
    if not s.shared and (views or s.logits == "chunked"):
        others = "logits = 'chunked', checkpoint_activations, compile and dropout = false"
        raise MattaError(
            f"distill.shared = false is an ablation: {others} are not supported with it."
        )
    if s.shard and world.size == 1:
        ways = "pass --devices 2 or more, start it with torchrun, or pass --no-shard"
        raise MattaError(f"distill.shard needs several devices: {ways}.")
    ablation = not s.shared or s.ta_weight == 0
    if s.shard and (ablation or s.optimizer != "adamw" or s.compile):
        others = "another optimizer than adamw, with shared = false, ta_weight = 0 or compile"
        raise MattaError(f"distill.shard is not supported with {others}.")
    check_count(s.batch_size, world.size)
