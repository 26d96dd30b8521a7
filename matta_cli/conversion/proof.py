"""The proof that width 1.0 of a TA is the base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli.data.split import Batch, Split
from matta_cli.errors import MattaError
from matta_cli.models.ta import TA
from matta_cli.models.tokenizer import has_tokenizer
from matta_cli.tasks.task import Task

CALIBRATION_BATCHES = 8  # or more, where the user's batches are smaller
BY_LABELS = ("taylor", "hessian")  # orders of units
PROOF_BYTES = 1 << 26  # of the base's outputs, which are kept to compare


def probe(task: Task, ta: TA, folder: Path, notes: list[str]) -> list[Batch] | None:
    """Batches of the user's data for calibration and proof, or None where no data is named.

    What there is to say of the data goes to the ``notes``.
    """
    if not task.recipe.data.train:
        return None
    if task.name == "causal_lm" and not task.recipe.convert.tokenizer and not has_tokenizer(folder):
        return None  # a bare state dict brings no tokenizer; `matta distill` takes the Teacher's
    task.unmeasured = task.recipe.convert.order not in BY_LABELS
    task.sampled = True
    data = task.data(folder, ta.model)
    task.sampled = False
    notes.extend(data.notes)
    if data.unlabelled and not task.unmeasured:
        order = f"--order {task.recipe.convert.order} goes by the labels"
        raise MattaError(f"{order}, which some of the data lacks: choose --order activation.")
    return calibration(task, data.train)


def calibration(task: Task, train: Split) -> list[Batch]:
    """Batches from all over the training data: as many examples as ``task.calibration`` says."""
    examples = min(task.calibration(train.batch([0])), len(train))
    size = min(task.recipe.distill.batch_size, -(-examples // CALIBRATION_BATCHES))
    count = min(-(-examples // size), len(train) // size)
    spread = torch.linspace(0, len(train) - size, count).long().tolist()
    return [train.batch(range(start, start + size)) for start in spread]


Proof = list[tuple[dict[str, Tensor], Tensor]]  # inputs, and what the base makes of them


@torch.no_grad()
def prove(task: Task, base: nn.Module, batches: Sequence[dict[str, Tensor]]) -> Proof:
    """Examples of the batches with the base's outputs: ``PROOF_BYTES`` of these, one at least.

    Raises ``MattaError`` for outputs that are not finite.
    """
    proof: Proof = []
    for batch in as_many_as_fit(task, base, batches, PROOF_BYTES):
        if len(next(iter(batch.values()))) == 1:  # which may be more than fits
            share = PROOF_BYTES / (4 * task.logits(base, batch))
            batch = task.shortened(batch, share) if share < 1 else batch
        outputs = task.forward(base, batch).clone()
        if not torch.isfinite(outputs).all():
            why = "its weights hold NaN or infinity"
            raise MattaError(f"The model's outputs are not finite: {why}.")
        proof.append((batch, outputs))
    return proof


@torch.no_grad()
def as_many_as_fit(
    task: Task, model: nn.Module, batches: Sequence[dict[str, Tensor]], room: float
) -> list[dict[str, Tensor]]:
    """As many examples of the batches as have ``room`` bytes of outputs, one at least."""
    few = []
    each = task.logits(model, {name: tensor[:1] for name, tensor in batches[0].items()}) * 4
    for batch in batches:
        count = max(1, min(len(next(iter(batch.values()))), int(room / each)))
        few.append({name: tensor[:count] for name, tensor in batch.items()})
        room -= count * each
        if room < each:
            break
    return few


@torch.no_grad()
def largest_difference(task: Task, student: Any, proof: Proof) -> float:
    """The largest difference of outputs from the base's, relative to its largest output."""
    worst, scale = 0.0, 1e-12
    for batch, expected in proof:
        worst = max(worst, (expected - task.forward(student, dict(batch))).abs().max().item())
        scale = max(scale, expected.abs().max().item())
    return worst / scale
