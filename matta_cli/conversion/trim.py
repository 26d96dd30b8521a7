"""``--trim-vocab``: of all tokens those that the user's data has, before anything nests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from matta_cli.adapter import PROGRAM, Adapter, Source
from matta_cli.conversion.proof import Proof, as_many_as_fit, largest_difference
from matta_cli.data.split import Batch, Data
from matta_cli.errors import MattaError
from matta_cli.files import atomic
from matta_cli.measure.cost import parameters
from matta_cli.models import trimming
from matta_cli.models.tokenizer import copy_companions, open_tokenizer
from matta_cli.tasks.task import Task

_AT_ONCE = 256  # examples
_PROOF_BYTES = 1 << 24  # of outputs that are compared


@dataclass(frozen=True)
class Trimmed:
    """What was done: the source with the new tokenizer beside it, how many tokens of how many were
    kept, and a note for people.
    """

    source: Source
    kept: int
    size: int
    note: str


def trim(task: Task, adapter: Adapter, base: Any, source: Source, folder: Path) -> Trimmed:
    """Leave ``base`` the tokens of the task's data, in place.

    folder: an empty one, which takes the files that belong to the model, with the tokenizer of
    fewer tokens among them. Raises ``MattaError`` where there is no data or no tokenizer, it cannot
    be trimmed, or the data would be other tokens afterwards or other outputs come of them.
    """
    settings = task.recipe
    if not settings.data.train:
        raise MattaError("--trim-vocab keeps the tokens that the data has: pass some with --data.")
    if getattr(base, "config", None) is None or not hasattr(base, "get_input_embeddings"):
        raise _no_tokens(source.name)
    if adapter.loader in ("", PROGRAM):  # no stock format, whose config.json says how many
        raise MattaError(f"--trim-vocab is not possible with the adapter {adapter.name!r}.")
    if source.beside is not None:
        copy_companions(source.beside, folder)
    size = len(base.get_input_embeddings().weight)
    with atomic.called(settings.convert.tokenizer or source.name, folder):
        tokenizer = open_tokenizer(folder, settings.convert.tokenizer, size)
    card = trimming.card_of(tokenizer)
    task.unmeasured = True
    data = task.data(folder, base)
    tokens = {
        int(token) for batch in _batches(data) for token in _tokens(batch, source.name).unique()
    }
    kept = [n for n in trimming.needed(card, tokens | trimming.special(base)) if n < size]
    some = data.train.batch(range(min(len(data.train), _AT_ONCE)))
    batch = as_many_as_fit(task, base, [some], _PROOF_BYTES)[0]
    before = _outputs(task, base, batch, kept)
    was = parameters(base)
    trimming.write(tokenizer, trimming.trimmed(card, kept), folder, kept)
    trimming.keep(base, kept)
    again = task.data(folder, base)
    _prove_tokens(data, again, kept)
    _prove_outputs(task, base, [(again.train.batch(range(len(batch["input_ids"]))), before)])
    left = parameters(base)
    note = (
        f"--trim-vocab kept {len(kept):,} of {size:,} tokens (those of the data, what they are "
        f"made of, and special ones), and so {left:,} of {was:,} parameters ({left / was:.0%})."
    )
    return Trimmed(replace(source, beside=folder), len(kept), size, note)


def _prove_tokens(data: Data, again: Data, kept: Sequence[int]) -> None:
    """Raise ``MattaError`` where the data, read again, is other tokens than it was."""
    new = np.full(max(kept) + 1, -1)
    new[kept] = np.arange(len(kept))
    for i, (old, now) in enumerate(zip(_batches(data), _batches(again), strict=True)):
        if not np.array_equal(new[old["input_ids"].numpy()], now["input_ids"].numpy()):
            where = f"examples {i * _AT_ONCE + 1:,} to {i * _AT_ONCE + len(now['input_ids']):,}"
            raise MattaError(
                f"--trim-vocab is not exact with this tokenizer: some of the {where} of the data "
                "become other tokens without those that are left out. Convert without it."
            )


def _prove_outputs(task: Task, base: nn.Module, proof: Proof) -> None:
    """Raise ``MattaError`` where a model's outputs are other ones than they were."""
    difference = largest_difference(task, base, proof)
    if difference > task.recipe.convert.tolerance:
        raise MattaError(
            f"--trim-vocab changes the model's outputs by {difference:.1e} (relative): it does "
            "more with its tokens than embed them. Convert without it."
        )


@torch.no_grad()
def _outputs(task: Task, base: Any, batch: Batch, kept: list[int]) -> torch.Tensor:
    """A model's outputs; of one whose outputs are tokens, those of the ones that are kept."""
    outputs = task.forward(base, batch)
    return outputs if base.get_output_embeddings() is None else outputs[..., kept]


def _batches(data: Data) -> Iterator[Batch]:
    """All examples of all splits."""
    for split in (data.train, *data.held_out):
        for start in range(0, len(split), _AT_ONCE):
            yield split.batch(range(start, min(start + _AT_ONCE, len(split))))


def _tokens(batch: Batch, name: str) -> torch.Tensor:
    if "input_ids" not in batch:
        raise _no_tokens(name)
    return batch["input_ids"]


def _no_tokens(name: str) -> MattaError:
    return MattaError(f"--trim-vocab is for models that read tokens, which {name!r} does not.")
