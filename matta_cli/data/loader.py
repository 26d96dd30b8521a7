"""Batches, in a given order, by any number of processes."""

from __future__ import annotations

import atexit
import signal
from collections.abc import Generator, Iterable, Sequence
from typing import Any

from matta_cli.data.split import Batch, Split
from matta_cli.errors import MattaError


class _Steps:
    """A split as a map-style dataset whose examples are whole steps."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, indices: Sequence[int]) -> Batch | MattaError:
        try:
            return self.split.batch(indices)
        except MattaError as error:
            # raised in a worker it would arrive inside the worker's traceback
            return error


def loader(
    split: Split, drawn: Iterable[Sequence[int]], workers: int = 0, pin: bool = False
) -> Generator[Batch, None, None]:
    """The batches of ``drawn``: one for each of its lists of examples, in its order.

    workers: processes that fetch ahead, two batches each; 0: the calling process, on demand. They
    are forks, which share the split's arrays, and leave signals to the calling process, so that a
    run that is stopped still gets the batch it waits for. pin: batches in page-locked memory.
    ``drawn`` is asked ahead of time, so it must not draw from torch's global generator. Closing
    the generator ends the workers.

    Raises ``MattaError`` at once where ``workers`` is negative or not possible here, and at its
    batch what the split raises, and where a worker dies.
    """
    import multiprocessing

    import torch
    from torch.utils.data import DataLoader

    if workers < 0:
        meant = "a number of processes: 0 (none beside the run's own) or more"
        raise MattaError(f"data.workers is {workers}, but it is {meant}.")
    if workers and "fork" not in multiprocessing.get_all_start_methods():
        cannot = "this system cannot fork processes: set it to 0."
        raise MattaError(f"data.workers is {workers}, but {cannot}")
    steps: Any = _Steps(split)
    order: Any = drawn
    batches = DataLoader(
        steps,
        sampler=order,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_deaf,
        generator=torch.Generator(),  # else the loader would draw its workers' seed from the run's
    )
    return _raising(batches, workers)


def _raising(batches: Iterable[Any], workers: int) -> Generator[Batch, None, None]:
    """The batches; an error among them is raised, and the workers end with the generator."""
    import multiprocessing

    others = set(multiprocessing.active_children())
    fetched: Any = iter(batches)
    own = set(multiprocessing.active_children()) - others

    def end() -> None:
        if own:
            # torch's own way; without it, torch takes the end of a worker for a crash
            fetched._shutdown_workers()
        while own:  # one may wait for a lock that a dead one held
            own.pop().kill()

    # Python's exit would wait for ever for a process that is deaf to its SIGTERM. When the
    # generator is closed there, little may be left of this module, so the name is taken now.
    unregister = atexit.unregister
    atexit.register(end)
    try:
        for batch in fetched:
            if isinstance(batch, MattaError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error) and "is killed by signal" not in str(error):
            raise
        dead = f"One of the {workers} processes that read the data died"
        why = "perhaps for want of memory or of shared memory (/dev/shm)"
        hint = "lower data.workers or --batch-size."
        raise MattaError(f"{dead}, {why}: {hint}") from error
    finally:
        unregister(end)
        end()


def _deaf(_worker: int) -> None:
    """Ignore what the terminal and schedulers send to all processes of a run."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
