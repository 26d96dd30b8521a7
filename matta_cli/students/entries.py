"""What a report says of each model: the Teacher, the TA, the base, the Students, their cuts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from matta_cli.errors import MattaError
from matta_cli.files.workspace import Workspace
from matta_cli.measure import cost, generation
from matta_cli.measure.held_out import HeldOut
from matta_cli.models.folders import Reached, load_student
from matta_cli.models.ta import TA
from matta_cli.models.tokenizer import has_tokenizer
from matta_cli.nested.sizes import full_sizes
from matta_cli.progress import Steps
from matta_cli.report.schema import Cost, Generation, ModelEntry, Parity, Program, Role, Timing
from matta_cli.students.student import Written
from matta_cli.training.teacher import load_teacher
from matta_cli.training.teacher_file import is_file

SENTENCES = "sentence_transformers.SentenceTransformer({folder})"
Opened = list[tuple[ModelEntry, nn.Module]]
Times = dict[str, dict[int, Timing]]  # of what, such as decode -> by batch


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
    out: Path,
    say: Steps,
) -> Measured:
    """The models, measured. out: the output folder.

    converted: the TA as it was before the run. students: the entries of those in ``folders``. The
    TA has none of its own where a Student is all of it.
    """
    opened = [*_teacher(held_out, run, out, say), *_ta(run, students), _base(converted)]
    for entry, folder in zip(students, folders, strict=True):
        model = load_student(folder)
        entry.cost = _size(model, folder)
        opened.append((entry, model))
    # at width 1.0 the untrained cut is the base
    cuts = [_cut(student) for student in students if student.width != 1.0]
    dense = {entry.name: model.to(held_out.device).eval() for entry, model in opened}
    say("Measuring latency.")
    how, timed, notes = _generation(held_out, opened, dense)
    for note in notes:
        say.tell(note)
    taken = _forwards(held_out, timed) if how is None else _generated(held_out, timed, how)
    entries = [*(entry for entry, _ in opened), *cuts]
    sizes = {student.name: student.sizes for student in students}
    for entry in entries:
        say(f"Measuring {entry.name}.")
        # a cut is made when its turn comes, and let go; the same shapes cost the same
        of = entry.of or entry.name
        cut = held_out.dense(converted.student(sizes[of])) if entry.of else None
        _measure(entry, dense[of] if cut is None else cut, held_out, taken.get(of, {}))
    return Measured(entries, how, notes)


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


def _teacher(held_out: HeldOut, run: Reached, out: Path, say: Steps) -> Opened:
    recipe = held_out.recipe
    if is_file(recipe.distill.teacher):
        say.tell("The Teacher is a file of outputs: the report goes without it.")
        return []
    if not recipe.distill.teacher:
        return []
    try:
        own = held_out.task, run.ta, out, held_out.device
        teacher, source = load_teacher(recipe.distill, *own, say.tell, run.folder)
    except MattaError as error:
        # the run is over: a Teacher that has gone away must not lose the export
        say.tell(f"The report goes without the Teacher: {error}")
        return []
    entry = ModelEntry("Teacher", Role.TEACHER, cost=_size(teacher, source.beside))
    return [(entry, teacher)]


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
    size = Cost(student.cost.parameters, student.cost.bytes)
    name = f"untrained cut {student.name.removeprefix('width ')}"
    return ModelEntry(name, Role.CUT, student.width, of=student.name, cost=size)


def _generation(
    held_out: HeldOut, opened: Opened, models: Mapping[str, nn.Module]
) -> tuple[Generation | None, Mapping[str, nn.Module], list[str]]:
    """How models are timed that generate, which they are, and what is to be known of that.

    Where another than the Teacher cannot generate, all of them are timed by a forward.
    """
    how = held_out.generation
    if how is None:
        return None, models, []
    prompt, timed, notes = _prompts(held_out, 1, how), dict(models), []
    for entry, _ in opened:
        why = generation.cannot(models[entry.name], prompt)
        cannot = f"cannot generate with a cache ({why})."
        if why and entry.role is Role.TEACHER:
            del timed[entry.name]
            notes.append(f"The Teacher is not timed: it {cannot}")
        elif why:
            return None, models, [f"Times are of a forward: the model {entry.name!r} {cannot}"]
    return how, timed, notes


def _prompts(held_out: HeldOut, rows: int, own: Generation) -> Tensor:
    batch = held_out.first(rows)
    return generation.prompts(batch, rows, own.prompt).to(held_out.device)


def _forwards(held_out: HeldOut, models: Mapping[str, nn.Module]) -> dict[str, Times]:
    """Seconds of a forward of all models, by name and batch size."""
    settings = held_out.recipe.export
    batch = {k: v.to(held_out.device) for k, v in held_out.first(settings.batch_size).items()}
    found: dict[str, Times] = {name: {"latency": {}} for name in models}
    with cost.threads(settings.threads):
        for size in sorted({1, settings.batch_size, 4 * settings.batch_size}):
            taken = cost.latencies(held_out.task, models, cost.repeated(batch, size))
            for name, seconds in taken.items():
                found[name]["latency"][size] = Timing(**seconds)
    return found


def _generated(
    held_out: HeldOut, models: Mapping[str, nn.Module], own: Generation
) -> dict[str, Times]:
    """Seconds until the first token and for each one after it, by name and batch size."""
    settings = held_out.recipe.export
    found: dict[str, Times] = {name: {"prefill": {}, "decode": {}} for name in models}
    with cost.threads(settings.threads):
        for size in sorted({1, settings.batch_size}):
            ids = _prompts(held_out, size, own)
            for name, taken in generation.latencies(models, ids, own.new).items():
                for what, seconds in taken.items():
                    found[name][what][size] = Timing(**seconds)
    return found


def _measure(entry: ModelEntry, model: nn.Module, held_out: HeldOut, times: Times) -> None:
    """Put into an entry what a model costs and how good it is."""
    size = held_out.recipe.export.batch_size
    batch = {k: v.to(held_out.device) for k, v in held_out.first(size).items()}
    for what, by_batch in times.items():
        setattr(entry.cost, what, by_batch)
    entry.cost.macs = cost.macs(held_out.task, model, cost.repeated(batch, 1))
    entry.cost.tokens = cost.tokens(batch)
    whole = cost.repeated(batch, size)
    entry.cost.peak_memory = cost.peak_memory(held_out.task, model, whole)
    held_out.add(entry.name, model)
    entry.metrics = held_out.metrics(entry.name)
