"""What a report says of each model: the Teacher, the TA, the base, the Students, their cuts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from matta_cli.errors import MattaError
from matta_cli.files.workspace import Workspace
from matta_cli.measure import cost
from matta_cli.measure.held_out import HeldOut
from matta_cli.models.folders import Reached, load_student
from matta_cli.models.save import weights_digest
from matta_cli.models.ta import TA
from matta_cli.models.tokenizer import has_tokenizer
from matta_cli.nested.sizes import full_sizes
from matta_cli.progress import Steps
from matta_cli.report.schema import Cost, Generation, ModelEntry, Parity, Program, Role
from matta_cli.students.quantized import Quantized
from matta_cli.students.student import Written
from matta_cli.students.times import Opened, Times, times
from matta_cli.training.teacher import is_base, load_teacher
from matta_cli.training.teacher_file import is_file

SENTENCES = "sentence_transformers.SentenceTransformer({folder})"


@dataclass(frozen=True)
class Measured:
    """One entry for each model of a report.

    generation: how they were timed, where they generate. notes: what is to be known of their times.
    """

    entries: list[ModelEntry]
    generation: Generation | None
    notes: list[str]


def models(
    held_out: HeldOut,
    run: Reached,
    converted: TA,
    students: Sequence[ModelEntry],
    folders: Sequence[Path],
    quantized: Sequence[tuple[ModelEntry, Quantized]],
    out: Path,
    say: Steps,
) -> Measured:
    """The models, measured. out: the output folder.

    converted: the TA as it was before the run. students: the entries of those in ``folders``. The
    TA has none of its own where a Student is all of it.
    """
    base, (teacher, itself) = _base(converted), _teacher(held_out, run, converted, out, say)
    opened = [*teacher, *_ta(run, students), base]
    for entry, folder in zip(students, folders, strict=True):
        model = load_student(folder)
        entry.cost = _size(model, folder)
        opened.append((entry, model))
        opened += [(copy, one.model) for copy, one in quantized if copy.of == entry.name]
    # at width 1.0 the untrained cut is the base
    cuts = [_cut(student) for student in students if student.width != 1.0]
    twin = teacher[0][0] if itself else None  # what is measured of the base is said of it, too
    dense = {e.name: model.to(held_out.device).eval() for e, model in opened if e is not twin}
    say("Measuring latency.")
    taken = times(held_out, opened, dense, [one for _, one in quantized])
    for note in taken.notes:
        say.tell(note)
    entries = [*(entry for entry, _ in opened), *cuts]
    sizes = {student.name: student.sizes for student in students}
    for entry in entries:
        if entry is twin:
            say("The Teacher is the base, which is measured once.")
            continue
        say(f"Measuring {entry.name}.")
        if entry.role is Role.CUT:  # made when its turn comes, and let go; it costs the same
            held_out.add(entry.name, held_out.dense(converted.student(sizes[str(entry.of)])))
            entry.cost = next(student.cost for student in students if student.name == entry.of)
            entry.metrics = held_out.metrics(entry.name)
        else:
            _measure(entry, dense[entry.name], held_out, taken.of(entry.name))
    if twin is not None:
        twin.cost = replace(base[0].cost, bytes=twin.cost.bytes)
        twin.metrics = held_out.again(twin.name, base[0].name)
    for copy, one in quantized:  # the same products of the same lengths
        of = one.of.student.name
        same = next(entry.cost for entry in students if entry.name == of)
        copy.cost.parameters, copy.cost.macs = same.parameters, same.macs
    return Measured(entries, taken.generation, taken.notes)


def student_entry(
    written: Written, proof: Mapping[str, Parity], space: Workspace, of: str
) -> ModelEntry:
    """What is known of a written Student before it is measured.

    space: where it is going to lie. of: the task's name.
    """
    student = written.student
    home = space.students / student.folder
    where, name = repr(str(home)), student.name
    return ModelEntry(
        name,
        Role.STUDENT,
        student.width,
        folder=home.relative_to(space.root).as_posix(),
        loader=_shown(written, of).format(folder=where),
        stock=written.stock,
        parity=proof[name],
        sizes=student.sizes,
        layers=student.layers,
        programs={
            program: Program(loader.format(folder=where), proof[f"{name} as {program}"])
            for program, loader in written.programs.items()
        },
    )


def _shown(written: Written, of: str) -> str:
    """What loads a Student as its users do: encoders of sentences with pooling and tokenizer."""
    sentences = of == "sentence_embedding" and written.stock and has_tokenizer(written.folder)
    return SENTENCES if sentences else written.loader


def _size(model: nn.Module, folder: Path | None) -> Cost:
    """A model's parameters, and the bytes of its weights where they lie in a folder."""
    size = cost.weight_bytes(folder) if folder is not None else 0
    return Cost(cost.parameters(model), size or None)


def _teacher(
    held_out: HeldOut, run: Reached, converted: TA, out: Path, say: Steps
) -> tuple[Opened, bool]:
    """The Teacher, if there is one that answers, and whether it is the base itself."""
    recipe = held_out.recipe
    if is_file(recipe.distill.teacher):
        say.tell("The Teacher is a file of outputs: the report goes without it.")
        return [], False
    if not recipe.distill.teacher:
        return [], False
    try:
        own = held_out.task, run.ta, out, held_out.device
        teacher, source = load_teacher(recipe.distill, *own, say.tell, run.folder)
    except MattaError as error:
        # the run is over: a Teacher that has gone away must not lose the export
        say.tell(f"The report goes without the Teacher: {error}")
        return [], False
    entry = ModelEntry("Teacher", Role.TEACHER, cost=_size(teacher, source.beside))
    return [(entry, teacher)], is_base(recipe.distill, weights_digest(teacher), converted)


def _ta(run: Reached, students: Sequence[ModelEntry]) -> Opened:
    ta, whole = run.ta, full_sizes(run.ta.axes)
    if not ta.copies and any(student.sizes == whole for student in students):
        return []
    entry = ModelEntry("TA", Role.TA, ta.widest, cost=_size(ta.model, run.folder))
    return [(entry, ta.model)]


def _base(converted: TA) -> tuple[ModelEntry, nn.Module]:
    whole = converted.student(1.0)
    base = whole.dense()
    with tempfile.TemporaryDirectory() as temp:
        whole.save(Path(temp), dtype=converted.saved_as("auto"))  # as its user has it
        return ModelEntry("base", Role.BASE, 1.0, cost=_size(base, Path(temp))), base


def _cut(student: ModelEntry) -> ModelEntry:
    name = f"untrained cut {student.name.removeprefix('width ')}"
    return ModelEntry(name, Role.CUT, student.width, of=student.name)


def _measure(entry: ModelEntry, model: nn.Module, held_out: HeldOut, taken: Times) -> None:
    """Put into an entry what a model costs and how good it is."""
    size = held_out.recipe.export.batch_size
    batch = {k: v.to(held_out.device) for k, v in held_out.first(size).items()}
    for what, by_batch in taken.items():
        setattr(entry.cost, what, by_batch)
    entry.cost.tokens = cost.tokens(batch)
    if entry.role is not Role.QUANTIZED:
        entry.cost.macs = cost.macs(held_out.task, model, cost.repeated(batch, 1))
        whole = cost.repeated(batch, size)
        entry.cost.peak_memory = cost.peak_memory(held_out.task, model, whole)
    held_out.add(entry.name, model)
    entry.metrics = held_out.metrics(entry.name)
