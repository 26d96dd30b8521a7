"""Baselines: what a Student's size, data and steps come to without nesting, trained by the same
engine.

A Student's untrained cut is made a TA of its own, with one width, and distilled by the run's
recipe: same Teacher, data order, steps and optimizer. There is no other training loop here.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from matta_cli.errors import Interrupted, MattaError
from matta_cli.files import atomic, card
from matta_cli.files.workspace import Workspace, counters_of
from matta_cli.models import save, tokenizer
from matta_cli.models.folders import load_ta, refuse_other_ta
from matta_cli.models.ta import TA
from matta_cli.nested import sizes
from matta_cli.progress import Listener, Progress, quiet
from matta_cli.settings.recipe import Recipe
from matta_cli.settings.resolve import run_recipe
from matta_cli.tasks import task
from matta_cli.training.run import distill
from matta_cli.training.spent import Spent, of_run

CARD = "baseline.json"


# what `--baselines` takes -> what it is; the untrained cut takes no training
KINDS = {
    "untrained": "the cut of the converted TA, as it is",
    "base": "the untrained cut, trained on the labels alone",
    "plain": "the untrained cut, distilled from the Teacher alone",
    "scratch": "a fresh model, distilled from the Teacher alone",
}


TRAINED = ("base", "plain", "scratch")


# what has no part in the weights that a run ends with
_ELSEWHERE = (
    "device",
    "workers",
    "log_to",
    "keep",
    "save_every",
    "eval_every",
    "eval_examples",
    "allow_weak_teacher",
)


@dataclass
class Baseline:
    """A trained baseline of the Student ``name``, and what its training took.

    checkpoint: the one that stands for it, the best where the Students' was chosen so. spent: by
    the whole run.
    """

    name: str
    kind: str
    folder: Path
    checkpoint: Path
    spent: Spent
    batch_size: int


def check(kinds: Sequence[str], margin: float) -> None:
    """Raise ``MattaError`` for a baseline that is not known, or a margin that is no share."""
    for kind in kinds:
        if kind not in KINDS:
            raise MattaError(f"--baselines {kind!r} is not known: {', '.join(KINDS)}.")
    if not 0 <= margin < 1:
        raise MattaError(
            f"--margin {margin:g} is not possible: it is a share of a baseline's value, from 0 to 1."
        )


def settings(recipe: Recipe, kind: str, steps: int, processes: int = 1) -> Recipe:
    """The run's recipe for one model that is not nested: its own loss alone, with or without the
    Teacher.

    processes: of the run; as many examples go through the model at a time as went through each of
    them.
    """
    found = copy.deepcopy(recipe)
    s = found.distill
    s.widths, s.students_per_step, s.sampling = [1.0], 1, []
    s.ta_weight, s.student_weight, s.ta_student_weight, s.ta_width = 0.0, 1.0, 0.0, 0.0
    s.students_learn_from, s.detach_ta, s.shared, s.shard, s.log_to = (
        "teacher",
        True,
        True,
        False,
        [],
    )
    s.steps, s.keep, s.best = steps, 1, 1.0 if s.best else 0.0
    if processes > 1:
        s.micro_batch = min(s.micro_batch or s.batch_size, s.batch_size // processes)
    if kind == "base":
        s.teacher, s.teacher_mix, s.hidden_weight = "", 0.0, 0.0
    return found


def _wanted(
    recipe: Recipe, out: Path, kind: str, student: Mapping[str, Any], run: Spent
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a baseline, and what makes it the same one again, as JSON has it."""
    own = settings(recipe, kind, run.steps, run.processes)
    parts = {name: vars(getattr(own, name)) for name in ("data", "distill")}
    rest = {
        name: {k: v for k, v in table.items() if k not in _ELSEWHERE}
        for name, table in parts.items()
    }
    digest = card.read_card(Workspace(out).ta)["lineage"]["digest"]
    identity = {
        "kind": kind,
        "student": student["name"],
        "sizes": dict(student["sizes"]),
        "ta": digest,
        **rest,
    }
    return own, json.loads(json.dumps(identity))


def folder_of(out: Path, kind: str, student: Mapping[str, Any]) -> Path:
    """Where the baseline of a Student lies: ``out/baselines/plain-width-0.25``."""
    return Workspace(out).baselines / f"{kind}-{Path(student['folder']).name}"


def train(
    out: Path,
    kinds: Sequence[str],
    students: Sequence[Mapping[str, Any]],
    *,
    which: str = "auto",
    device: str = "auto",
    listen: Listener = quiet,
) -> list[str]:
    """Train what is missing of these baselines of ``students`` (entries of a report), in
    ``out/baselines``. Returns notes.

    which: the checkpoint that the Students are of (``export.checkpoint``): baselines take as many
    steps as led to it, and where it was chosen for being the best, they are chosen so as well. One
    that is finished is kept, one that was stopped goes on, one of another recipe or TA is made
    anew. Raises ``MattaError`` as ``distill`` does.
    """
    ta, run = load_ta(Workspace(out).ta), of_run(Workspace(out), which)
    recipe = run_recipe(out)
    recipe.distill.device = device
    labelled = task.task(ta.adapter.task, recipe).labelled
    notes = []
    if "base" in kinds and not labelled:
        notes.append("There is no baseline trained on labels alone: this task has none.")
    wanted = [(s, k) for s in students for k in TRAINED if k in kinds and (k != "base" or labelled)]
    for number, (student, kind) in enumerate(wanted, 1):
        folder = folder_of(out, kind, student)
        own, identity = _wanted(recipe, out, kind, student, run)
        told = f"{folder.name} ({number} of {len(wanted)})"
        if _card(folder) != identity:
            if folder.exists():
                listen(
                    Progress(
                        message=f"{told}: what is there was made by another recipe; it is made anew."
                    )
                )
                shutil.rmtree(folder)
            _prepare(ta, student, kind, folder, out, own.distill.seed)
            atomic.atomic_write(folder / CARD, json.dumps(identity, indent=1) + "\n")
        last, _ = Workspace(folder).sound()
        if last is not None and counters_of(last)["step"] >= run.steps:
            listen(Progress(message=f"{told}: finished already."))
            continue
        listen(
            Progress(
                message=f"{told}: {'going on' if last else 'training'}, {run.steps:,} steps. It is {KINDS[kind]}."
            )
        )
        try:
            distill(own, folder, resume=last is not None, listen=listen)
        except Interrupted as stop:
            command = f"matta report{'' if out == Path('matta-out') else f' {out}'} --baselines {','.join(kinds)}"
            raise Interrupted(
                f"Stopped in {folder}, which is saved. Go on with `{command}`.", stop.code
            ) from None
    return notes


def finished(
    out: Path, students: Sequence[Mapping[str, Any]], which: str = "auto"
) -> list[Baseline]:
    """The baselines of these Students that lie in ``out``, trained to their end from the TA and by
    the recipe there now.
    """
    recipe, run = run_recipe(out), of_run(Workspace(out), which)
    found = []
    for student in students:
        for kind in TRAINED:
            folder = folder_of(out, kind, student)
            if _card(folder) != _wanted(recipe, out, kind, student, run)[1]:
                continue
            last, _ = Workspace(folder).sound()
            took = of_run(Workspace(folder))
            if last is None or took.steps < run.steps:
                continue
            best, _ = Workspace(folder).trained(which if which in ("auto", "best") else "last")
            size = recipe.distill.batch_size
            found.append(Baseline(student["name"], kind, folder, best or last, took, size))
    return found


def load(baseline: Baseline) -> TA:
    """A baseline's model, as the TA of one width that it is. Raises ``MattaError`` if another TA
    was trained there.
    """
    ta = load_ta(baseline.checkpoint)
    refuse_other_ta(
        card.read_card(Workspace(baseline.folder).ta)["lineage"]["digest"], ta, baseline.checkpoint
    )
    return ta


def _card(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _prepare(
    ta: TA, student: Mapping[str, Any], kind: str, folder: Path, out: Path, seed: int
) -> None:
    """Write ``folder/ta``: the Student's untrained cut (or a fresh model of its sizes) as a TA of
    one width.
    """
    model = ta.student(student["sizes"]).dense()
    if kind == "scratch":
        fresh(model, seed)
    axes = sizes.nested_axes(ta.adapter, model, list(sizes.kinds(ta.base)))
    with atomic.atomic_folder(Workspace(folder).ta, overwrite=True) as target:
        save.save_model(ta.adapter, model, target)
        tokenizer.copy_companions(tokenizer.home(Workspace(out).ta), target)
        lineage = {
            "source": ta.card["lineage"]["source"],
            "digest": atomic.digest(target),
            "baseline": kind,
        }
        more = {"example": ta.card["example"]} if ta.card.get("example") else {}
        card.write_card(target, ta.adapter, axes, sizes.full_sizes(axes), lineage, **more)


@torch.no_grad()
def fresh(model: nn.Module, seed: int) -> None:
    """Draw a model's weights anew, as its own library does where it says how (``reset_parameters``,
    ``_init_weights``).

    Other matrices are drawn at a spread of 0.02 (GPT-2's), other biases are zero, other vectors
    one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0x5EED + seed)  # not what the base itself may have been drawn from
        for module in model.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
                continue
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() > 1:
                    parameter.normal_(std=0.02)
                else:
                    parameter.fill_(0.0 if "bias" in name else 1.0)
        own: Any = getattr(model, "_init_weights", None)
        if callable(own):
            model.apply(own)
