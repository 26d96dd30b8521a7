"""Baselines: what a Student's size, data and steps come to without nesting, by the same engine.

A Student's untrained cut is made a TA of its own, with one width, and distilled by the run's
recipe: same Teacher, data order, steps and optimizer. There is no other training loop here.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from matta_cli.errors import Interrupted, MattaError, command
from matta_cli.files import atomic, card, reading
from matta_cli.files.workspace import Workspace, counters_of
from matta_cli.models import save, tokenizer
from matta_cli.models.folders import load_ta, refuse_other_ta
from matta_cli.models.ta import TA
from matta_cli.nested import sizes
from matta_cli.progress import Listener, Progress, quiet
from matta_cli.report.schema import ModelEntry
from matta_cli.settings.checks import check_value
from matta_cli.settings.recipe import Recipe
from matta_cli.settings.resolve import run_recipe
from matta_cli.tasks import task
from matta_cli.tasks.unlabelled import Unlabelled
from matta_cli.training import checkpoint
from matta_cli.training.run import distill
from matta_cli.training.spent import Spent, of_run

CARD = "baseline.json"

# what `--baselines` takes -> what it is; the untrained cut takes no training
KINDS = {
    "untrained": "the cut of the converted TA, as it is",
    "ground-truth": "the untrained cut, trained on the labels alone",
    "plain": "the untrained cut, distilled from the Teacher alone",
    "scratch": "a fresh model, distilled from the Teacher alone",
}
_NO_LABELS = "There is no baseline trained on labels alone:"
TRAINED = ("ground-truth", "plain", "scratch")

# what has no part in the weights that a run ends with
_ELSEWHERE = {"device", "workers", "log_to", "keep", "save_every", "eval_every", "eval_examples"}
_ELSEWHERE |= {"allow_weak_teacher"}


@dataclass
class Baseline:
    """A trained baseline of a Student (its name), and what its training took.

    checkpoint: the one that stands for it, the best where the Students' was chosen so. spent: by
    the whole run.
    """

    student: str
    kind: str
    folder: Path
    checkpoint: Path
    spent: Spent


def check(kinds: Sequence[str], margin: float) -> None:
    """Raise ``MattaError`` for a baseline that is not known, or a margin that is no share."""
    for kind in kinds:
        if kind == "base":
            raise MattaError("--baselines base is called ground-truth now: the base is your model.")
        if kind not in KINDS:
            raise MattaError(f"--baselines {kind!r} is not known: {', '.join(KINDS)}.")
    check_value("export.margin", margin)


def settings(recipe: Recipe, steps: int, *, taught: bool = True, processes: int = 1) -> Recipe:
    """The run's recipe for one model that is not nested: its own loss alone.

    taught: by the Teacher, too; else by the ground truth alone. processes: of the run; as many
    examples go through the model at a time as went through each of them.
    """
    found = copy.deepcopy(recipe)
    s = found.distill
    s.widths, s.shares = [1.0], []
    s.ta_weight, s.ta_student_weight, s.students_learn_from = 0.0, 0.0, "both"
    s.shared, s.shard = True, False
    s.log_to, s.steps, s.keep, s.best = [], steps, 1, 1.0 if s.best else 0.0
    if processes > 1:
        s.micro_batch = min(s.micro_batch or s.batch_size, s.batch_size // processes)
    if not taught:
        s.teacher, s.teacher_mix = "", 0.0
    return found


@dataclass
class _Wanted:
    """A baseline to train: where, by which recipe, and what makes it the same one again."""

    student: ModelEntry
    kind: str
    folder: Path
    recipe: Recipe
    identity: dict[str, Any]

    @property
    def there(self) -> bool:
        """Whether what lies in the folder is this one."""
        try:
            return reading.stored(self.folder / CARD, dict[str, Any], "") == self.identity
        except (OSError, MattaError):
            return False


def _wanted(
    out: Path, kinds: Sequence[str], students: Sequence[ModelEntry], run: Spent
) -> Iterator[_Wanted]:
    """These kinds of baselines for each Student. run: what the Students took."""
    recipe = run_recipe(out)
    digest = card.read_card(Workspace(out).ta)["lineage"]["digest"]
    for student in students:
        for kind in kinds:
            taught, processes = kind != "ground-truth", run.processes
            own = settings(recipe, run.steps, taught=taught, processes=processes)
            identity = {"kind": kind, "student": student.name, "sizes": student.sizes, "ta": digest}
            for name, table in (("data", own.data), ("distill", own.distill)):
                identity[name] = {k: v for k, v in vars(table).items() if k not in _ELSEWHERE}
            folder = Workspace(out).baselines / f"{kind}-{Path(str(student.folder)).name}"
            as_json = json.loads(json.dumps(identity))
            yield _Wanted(student, kind, folder, own, as_json)


def train(
    out: Path,
    kinds: Sequence[str],
    students: Sequence[ModelEntry],
    run: Spent,
    *,
    device: str = "auto",
    listen: Listener = quiet,
) -> list[str]:
    """Train what is missing of these baselines of ``students`` in ``out/baselines``.

    run: what the Students took. Baselines take as many steps, and where their checkpoint was chosen
    for being the best, they are chosen so as well. One that is finished is kept, one that was
    stopped goes on, one of another recipe or TA is made anew. Returns notes. Raises ``MattaError``
    as ``distill`` does.
    """
    ta = load_ta(Workspace(out).ta)
    labelled = task.task(ta.adapter.task, run_recipe(out)).labelled
    trained = [k for k in TRAINED if k in kinds and (k != "ground-truth" or labelled)]
    notes = []
    if "ground-truth" in kinds and not labelled:
        notes.append(f"{_NO_LABELS} this task has none.")
    wanted = list(_wanted(out, trained, students, run))
    for number, one in enumerate(wanted, 1):
        if notes and one.kind == "ground-truth":
            continue  # as for the Student before
        told = f"{one.folder.name} ({number} of {len(wanted)})"
        one.recipe.distill.device = device
        if not one.there:
            if one.folder.exists():
                why = "what is there was made by another recipe; it is made anew"
                listen(Progress(message=f"{told}: {why}."))
                atomic.remove(one.folder)
            _prepare(ta, one, out)
        space = Workspace(one.folder)
        last, damaged = space.sound()
        if last is not None and counters_of(last)["step"] >= run.steps:
            counters = checkpoint.Counters.stored(last, 1)  # a kill may have come before that
            checkpoint.prune(space, counters, one.recipe.distill.keep, damaged)
            listen(Progress(message=f"{told}: finished already."))
            continue
        what = f"{'going on' if last else 'training'}, {run.steps:,} steps"
        listen(Progress(message=f"{told}: {what}. It is {KINDS[one.kind]}."))
        try:
            distill(one.recipe, one.folder, resume=last is not None, listen=listen)
        except Unlabelled:
            atomic.remove(one.folder)
            notes.append(f"{_NO_LABELS} the data to train on has none.")
        except Interrupted as stop:
            again = command("report", out, "--baselines", ",".join(kinds))
            saved = f"Stopped in {one.folder}, which is saved"
            raise Interrupted(f"{saved}. Go on with `{again}`.", stop.code) from None
    return notes


def finished(out: Path, students: Sequence[ModelEntry], run: Spent) -> list[Baseline]:
    """The baselines of these Students that are trained to their end, as ``train`` does it.

    They were trained from the TA, and by the recipe, that lie in ``out`` now.
    """
    found = []
    for one in _wanted(out, TRAINED, students, run):
        space = Workspace(one.folder)
        took = of_run(space) if one.there else Spent()
        if took.steps < run.steps:
            continue
        best, _ = space.trained(run.which if run.which in ("auto", "best") else "last")
        if best is not None:
            found.append(Baseline(one.student.name, one.kind, one.folder, best, took))
    return found


def load(baseline: Baseline) -> TA:
    """A baseline's model, as the TA of one width that it is.

    Raises ``MattaError`` if another TA was trained there.
    """
    ta = load_ta(baseline.checkpoint)
    digest = card.read_card(Workspace(baseline.folder).ta)["lineage"]["digest"]
    refuse_other_ta(digest, ta, baseline.checkpoint)
    return ta


def _prepare(ta: TA, wanted: _Wanted, out: Path) -> None:
    """Write the start of a baseline: the Student's untrained cut, or a fresh model of its sizes."""
    model = ta.student(wanted.student.sizes).dense()
    if wanted.kind == "scratch":
        fresh(model, wanted.recipe.distill.seed)
    axes = sizes.nested_axes(ta.adapter, model, list(sizes.kinds(ta.base)))
    with atomic.atomic_folder(Workspace(wanted.folder).ta, overwrite=True) as target:
        save.save_model(ta.adapter, model, target)
        tokenizer.copy_companions(tokenizer.home(Workspace(out).ta), target)
        source, digest = ta.card["lineage"]["source"], atomic.digest(target)
        lineage = {"source": source, "digest": digest, "baseline": wanted.kind}
        more = {"example": ta.card["example"]} if ta.card.get("example") else {}
        card.write_card(target, ta.adapter, axes, sizes.full_sizes(axes), lineage, **more)
    text = json.dumps(wanted.identity, indent=1) + "\n"
    atomic.atomic_write(wanted.folder / CARD, text)


@torch.no_grad()
def fresh(model: nn.Module, seed: int) -> None:
    """Draw a model's weights anew, as its own library does.

    It says how in ``reset_parameters`` and ``_init_weights``. Where it does not, matrices are drawn
    at a spread of 0.02 (GPT-2's), biases are zero, other vectors one.
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
