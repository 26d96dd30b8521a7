"""teach: run a Teacher once, and write down what it says."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from matta_cli.data.split import Split
from matta_cli.devices import device as devices_device
from matta_cli.devices.device import pick, resolved
from matta_cli.errors import Interrupted, MattaError
from matta_cli.files import atomic
from matta_cli.losses import classes
from matta_cli.losses.targets import Logits
from matta_cli.models import save
from matta_cli.progress import Progress
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import Task
from matta_cli.training.teacher_file import (
    CARD,
    FORMAT,
    FileTeacher,
    is_file,
    is_whole,
    read_teacher_card,
    shard_name,
)

EXACT = 64  # outputs up to which all logits are written


_SHARD = 1 << 26  # bytes of a shard, about


def teach(
    recipe: Recipe,
    out: Path,
    to: Path,
    *,
    k: int = 64,
    overwrite: bool = False,
    listen: Callable[[Any], None] = lambda _: None,
) -> Path:
    """Run the Teacher once over the training examples of the TA in ``out``, and write what it says
    to the folder ``to``.

    Embeddings, and up to 64 outputs: all numbers, float32. More: of each position the ``k``
    likeliest outputs of the distribution softened by ``distill.temperature``, and the mass of the
    rest: what is lost is how the rest is spread. Stopped at any moment, it goes on from the last
    whole shard. Raises ``MattaError`` as ``distill`` does; ``Interrupted`` after Ctrl-C.
    """
    from safetensors.torch import save_file

    from matta_cli.devices.processes import World
    from matta_cli.devices.signals import interruptible
    from matta_cli.training.setup import opened

    if is_file(recipe.distill.teacher):
        raise MattaError(
            f"--teacher {recipe.distill.teacher!r} is a file of outputs already: name the model that makes them."
        )
    if k < 1:
        raise MattaError(f"--top-k {k} is not possible: it is 1 or more.")
    device = pick(recipe.distill.device)
    task, ta, teacher, data = opened(recipe, out, device, World(), listen)
    if teacher is None:
        raise MattaError(
            "No Teacher is named: pass --teacher with the model whose outputs shall be written."
        )
    assert not isinstance(teacher, FileTeacher)
    outputs = task.outputs(ta.model) if not task.embeds else task.outputs(teacher.model)
    exact = task.embeds or outputs <= max(EXACT, k)
    precision = resolved(recipe.distill.precision, device)
    identity = {
        "format": FORMAT,
        "task": task.name,
        "teacher": recipe.distill.teacher,
        "weights": save.weights_digest(teacher.model),
        "outputs": outputs,
        "k": None if exact else k,
        "temperature": None if exact else recipe.distill.temperature,
        "data": data.train.digest(),
        "description": data.description,
        "examples": len(data.train),
        "precision": precision,
    }
    card = read_teacher_card(to)
    if card is not None and not overwrite:
        if {name: card.get(name) for name in identity} != identity:
            raise MattaError(
                f"{to} holds what another Teacher, data or setting gave: pass --overwrite, or another --to."
            )
        if card["complete"]:
            raise MattaError(
                f"{to} is finished; pass --overwrite to make it again, or --to for another folder."
            )
    elif to.exists() and any(to.iterdir()):
        if card is None:
            raise MattaError(
                f"{to} is not empty, and nothing that `matta teach` wrote: pass --to with another folder."
            )
        for old in [to / CARD, *to.glob("shard-*.safetensors")]:
            old.unlink()
        card = None
    size = max(1, recipe.distill.micro_batch or recipe.distill.batch_size)
    if card is None:
        first = _said(task, teacher, data.train, [0], device, recipe, k, exact)
        each = sum(t.numel() * t.element_size() for t in first.values())
        per_shard = max(1, _SHARD // max(1, each))
        card = {
            **identity,
            "per_shard": per_shard,
            "shards": -(-len(data.train) // per_shard),
            "digests": [],
            "complete": False,
        }
        atomic.atomic_write(to / CARD, json.dumps(card, indent=1) + "\n")
    per_shard = card["per_shard"]
    with atomic.alone(to, "Another `matta teach` is writing"), interruptible() as pressed:
        for number in range(card["shards"]):
            rows = range(number * per_shard, min((number + 1) * per_shard, len(data.train)))
            path = to / shard_name(number)
            known = card["digests"][number] if number < len(card["digests"]) else ""
            if not known or not is_whole(path, known):
                parts: list[dict[str, Tensor]] = []
                for start in range(rows.start, rows.stop, size):
                    began = time.perf_counter()
                    chosen = list(range(start, min(start + size, rows.stop)))
                    parts.append(_said(task, teacher, data.train, chosen, device, recipe, k, exact))
                    seconds = time.perf_counter() - began
                    listen(
                        Progress(
                            chosen[-1] + 1, len(data.train), {}, len(chosen) / seconds, "examples"
                        )
                    )
                    if pressed:
                        raise Interrupted(
                            f"Stopped after {number} of {card['shards']} shards; the same command goes on from there.",
                            128 + pressed[0],
                        )
                with atomic.atomic_file(path) as temp:
                    save_file(
                        {name: torch.cat([part[name] for part in parts]) for name in parts[0]},
                        str(temp),
                    )
                card["digests"][number : number + 1] = [atomic.file_digest(path)]
                atomic.atomic_write(to / CARD, json.dumps(card, indent=1) + "\n")
    atomic.atomic_write(to / CARD, json.dumps({**card, "complete": True}, indent=1) + "\n")
    return to


@torch.no_grad()
def _said(
    task: Task,
    teacher: Any,
    split: Split,
    rows: list[int],
    device: torch.device,
    recipe: Recipe,
    k: int,
    exact: bool,
) -> dict[str, Tensor]:
    """What the Teacher says about some examples, as a shard has it. row: int64 [n]; the others [n,
    ...].
    """
    batch = {name: tensor.to(device) for name, tensor in split.batch(rows).items()}
    with devices_device.precision(recipe.distill.precision, device):
        logits: Logits = teacher(batch, rows)
    keys = torch.from_numpy(np.asarray(split.keys(rows), dtype=np.int64))
    if not torch.isfinite(logits.hidden).all():
        raise MattaError(
            f"The Teacher {recipe.distill.teacher!r} says what is not finite about example {rows[0]} or one near it."
        )
    if exact:
        return {"row": keys, "embedding" if task.embeds else "logits": logits.whole().float().cpu()}
    prepared, temperature = logits.prepared(), recipe.distill.temperature
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for here in classes.chunks(prepared):
        log_q = torch.log_softmax(prepared.part(here) / temperature, -1)
        known, index = log_q.topk(k)
        rest = log_q.scatter_(1, index, -torch.inf).logsumexp(-1)
        parts.append((known.cpu(), index.int().cpu(), rest.cpu()))
    shape = logits.hidden.shape[:-1]
    known, index, rest = (torch.cat(part) for part in zip(*parts, strict=True))
    return {
        "row": keys,
        "top_logits": known.view(*shape, k),
        "top_index": index.view(*shape, k),
        "rest": rest.view(shape),
    }
