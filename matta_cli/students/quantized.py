"""Students in fewer bits: written beside the float ones, proven, and held to their quality."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from torch import Tensor, nn

from matta_cli.conversion.proof import calibration
from matta_cli.data.split import Batch
from matta_cli.errors import MattaError
from matta_cli.files import atomic
from matta_cli.files.card import read_card, write_card
from matta_cli.files.workspace import Workspace
from matta_cli.formats import quantized
from matta_cli.formats.programs import Listening
from matta_cli.measure import cost
from matta_cli.measure.held_out import HeldOut
from matta_cli.models.folders import Reached, load_student
from matta_cli.models.ta import TA, Student
from matta_cli.models.tokenizer import copy_companions
from matta_cli.progress import Say
from matta_cli.report.claims import against_float
from matta_cli.report.numbers import percent
from matta_cli.report.schema import Cost, ModelEntry, Parity, Report, Role
from matta_cli.report.verdicts import WORSE
from matta_cli.settings.quantize import AUTO
from matta_cli.settings.recipe import ExportSettings
from matta_cli.students.student import PROBED, Written

Calibrate = Callable[[], Sequence[Batch]]

# The share of its float Student's value in the first metric that one may lose. What loses more
# beyond doubt is left out: it is broken rather than small.
LOST = 0.1


@dataclass(frozen=True)
class Quantized:
    """A Student in fewer bits, in a folder of its own.

    kind: how. loader: the expression that loads it, ``{folder}`` stands for the folder. model: as
    it is measured; beside: the float Student in the same runtime, where that is another than
    torch. expected: the outputs of ``model`` on the first ``PROBED`` examples.
    """

    of: Written
    name: str
    kind: str
    folder: Path
    loader: str
    model: nn.Module
    beside: nn.Module | None
    expected: Tensor

    @property
    def loaders(self) -> dict[str, str]:
        return {self.name: self.loader}


def kinds(student: Student, settings: ExportSettings) -> list[str]:
    """How a Student is quantized: as all are, and as it was chosen for a budget."""
    asked = [kind for kind in settings.quantize if kind != AUTO]
    return list(dict.fromkeys([*asked, *([student.quantized] if student.quantized else [])]))


def check(settings: ExportSettings, ta: TA) -> None:
    """Raise ``MattaError`` where Students of a TA cannot be quantized as they are to be."""
    if AUTO in settings.quantize and not settings.target_memory:
        own = "it chooses between float and int8 within that"
        raise MattaError(f"--quantize auto is for --target-memory, and there is none: {own}.")
    if AUTO in settings.quantize and (settings.target_latency or settings.target_prefill):
        own = "what a Student takes in other bits is not searched"
        raise MattaError(f"--quantize auto with a limit on time is not supported: {own}.")
    own = quantized.usual(ta.model)
    for kind in settings.quantize:
        quantized.refuse(own if kind == AUTO else kind, ta.model, ta.adapter.loader)


def calibrating(held_out: HeldOut) -> Calibrate:
    """What gives the batches that all are calibrated with, made when they are first asked for."""
    return cache(partial(calibration, held_out.task, held_out.data.train))


def write(
    one: Written, held_out: HeldOut, run: Reached, batches: Calibrate, say: Say
) -> Iterator[Quantized]:
    """Write a Student in fewer bits, a folder for each kind, beside its own."""
    settings, task = held_out.recipe.export, held_out.task
    wanted = kinds(one.student, settings)
    if not wanted:
        return
    probe, model = held_out.first(PROBED), load_student(one.folder)
    own = (one.folder, one.loader, cost.repeated(probe, 3), batches, settings.threads)
    with quantized.Maker(task, model, *own) as making:
        for kind in wanted:
            chosen = one.student.budget if kind == one.student.quantized else None
            name = chosen.name if chosen else f"{one.student.name} {kind}"
            say(f"Quantizing {name}.")
            folder = one.folder.with_name(name.replace(" ", "-"))
            folder.mkdir()
            copy_companions(run.folder, folder)
            loader = making.write(kind, folder)
            _card(one, name, kind, folder)
            copy = quantized.opened(folder, model, settings.threads)
            expected = Listening(copy).run(task, probe).output
            yield Quantized(one, name, kind, folder, loader, copy, making.beside, expected)


def _card(one: Written, name: str, kind: str, folder: Path) -> None:
    """``matta.json``: that of the float Student, with its own name."""
    card, adapter = read_card(one.folder), one.student.ta.adapter
    lineage = {**card["lineage"], "student": name, "quantized": kind, "of": one.folder.name}
    write_card(folder, adapter, card["axes"], card["base"], lineage)


def entry(one: Quantized, proof: Mapping[str, Parity], space: Workspace) -> ModelEntry:
    """What is known of one before it is measured. space: where it is going to lie."""
    home = space.students / one.folder.name
    difference = (one.expected - one.of.whole).abs().max().item()
    share = difference / max(1.0, one.of.whole.abs().max().item())
    reloaded = proof[one.name]
    return ModelEntry(
        one.name,
        Role.QUANTIZED,
        one.of.student.width,
        of=one.of.student.name,
        quantized=one.kind,
        folder=home.relative_to(space.root).as_posix(),
        loader=one.loader.format(folder=repr(str(home))),
        stock=True,
        parity=Parity(reloaded.exact, reloaded.max_difference, one.kind, share),
        cost=Cost(bytes=cost.weight_bytes(one.folder)),
    )


def drop_broken(report: Report, folders: Mapping[str, Path]) -> list[str]:
    """Take those out of the report, and away, that lose more than ``LOST``; a note on each."""
    notes = []
    for one in against_float(report):
        value = one.other.measured(one.metric)
        if value is None or one.verdict != WORSE or one.pair.high >= -LOST * abs(value.value):
            continue
        name = one.student.name
        report.models.remove(one.student)
        report.pairs = [pair for pair in report.pairs if name not in (pair.a, pair.b)]
        atomic.remove(folders[name])
        most = f"more than {percent(LOST)} of the value"
        notes.append(f"{one.sentence[:-1]}: {most}, so {name} is left out.")
    return notes
