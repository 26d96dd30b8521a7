"""What a checkpoint of a run holds: a stock TA folder, plus what resuming needs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from matta_cli.errors import MattaError
from matta_cli.files import atomic, reading
from matta_cli.files.card import write_card
from matta_cli.files.workspace import Workspace, counters_of, step_of
from matta_cli.models.save import save_model
from matta_cli.models.ta import STATISTICS, TA, UNSHARED
from matta_cli.nested.sizes import full_sizes
from matta_cli.training import state

# what ``write_card`` writes by itself
_OWN = ("format", "matta", "adapter", "task", "axes", "base", "lineage")


@dataclass
class Counters:
    """What a run has come to, besides its tensors.

    seconds: of training, on each of its ``processes``. bad_steps: how many were skipped, and how
    many in a row up to now. best_value, best_step: of the checkpoint that is kept for its metric.
    """

    step: int = 0
    seconds: float = 0.0
    bad_in_a_row: int = 0
    bad_steps: int = 0
    best_value: float | None = None
    best_step: int = 0
    loss_scale: dict[str, Any] = field(default_factory=dict)
    processes: int = 1

    @classmethod
    def stored(cls, checkpoint: Path, processes: int) -> Counters:
        """Those of a checkpoint, for a run that goes on in so many processes."""
        stored = counters_of(checkpoint)
        known = {name: stored[name] for name in cls.__dataclass_fields__ if name in stored}
        return cls(**known | {"processes": processes})


def write(
    path: Path,
    ta: TA,
    widths: Iterable[float],
    companions: dict[str, bytes],
    tensors: dict[str, Tensor],
    trainer: Any,
) -> None:
    """Write a checkpoint whole: the TA as a stock folder, tensors, and ``trainer.json``.

    widths: those whose BatchNorm statistics the TA knows, and the folder keeps. companions: the
    files that belong to the TA besides its weights (tokenizer), by name. tensors: the optimizer's,
    by path.
    """
    with atomic.atomic_folder(path, overwrite=True) as folder:
        whole = ta.student(full_sizes(ta.axes)).statistics
        state = {**ta.model.state_dict(), **whole} if whole else None
        save_model(ta.adapter, ta.model, folder, state)
        if whole:
            (folder / STATISTICS).parent.mkdir()
            nested = {width: ta.student(width).statistics for width in {*widths} - {*ta.copies}}
            own = {f"{w:g}/{k}": v for w, some in nested.items() for k, v in (some or {}).items()}
            save_file({name: one.cpu() for name, one in own.items()}, str(folder / STATISTICS))
        for name, content in companions.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        more = {k: v for k, v in ta.card.items() if k not in _OWN} | {"steps": trainer["step"]}
        write_card(folder, ta.adapter, ta.axes, ta.base, ta.card["lineage"], **more)
        for width in ta.copies:
            target = folder / UNSHARED / f"width-{width:g}"
            target.mkdir(parents=True)
            ta.student(width).save(target)
        (folder / "optimizer").mkdir()
        save_file(tensors, str(folder / "optimizer" / "state.safetensors"))
        (folder / "trainer.json").write_text(json.dumps(trainer) + "\n", encoding="utf-8")
        atomic.seal(folder)


def restore(path: Path, optimizer: torch.optim.Optimizer, name: str) -> None:
    """Put a checkpoint's tensors into a fresh optimizer.

    name: the optimizer's. Raises ``MattaError`` where the checkpoint is of another optimizer.
    """
    again = "go on from another checkpoint"
    tensors = reading.tensors(path / "optimizer" / "state.safetensors", again)
    try:
        state.restore(optimizer, tensors, counters_of(path)["optimizer"])
    except (KeyError, RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        raise MattaError(f"{path} was trained with another optimizer than {name!r}.") from None


def prune(space: Workspace, counters: Counters, keep: int, damaged: Collection[Path]) -> None:
    """Remove the checkpoints that are not among the last ``keep`` (0: none is removed).

    The best one stays, and damaged ones do not count; those that the run has passed go.
    """
    sound = [path for path in space.checkpoints() if path not in damaged]
    passed = [path for path in damaged if step_of(path) < counters.step]
    for old in [*sound[:-keep], *passed] if keep else []:
        if old.name != f"step-{counters.best_step}":
            atomic.remove(old)
