"""What a run died of, in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

from matta_cli.errors import MattaError, no_room
from matta_cli.training.loop import Training
from matta_cli.training.state import size_of, state_of
from matta_cli.training.teacher import ModelTeacher


@contextmanager
def explained(training: Training) -> Iterator[None]:
    """Within, a run that dies of no memory, no disk or another process says so (``MattaError``)."""
    settings, counters, space = training.settings, training.counters, training.space
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MattaError(_out_of_memory(training, str(error))) from None
    except (OSError, SafetensorError) as error:
        failed = f"A file could not be written ({str(error).splitlines()[0]})"
        what = "The disk is full" if no_room(error) else failed
        last = space.newest()
        then = f"{last} is kept: make room there, then go on with `{training.again}`"
        nothing = "nothing was saved: make room there, then run the same command again"
        where = f"at step {counters.step} of {settings.steps}, in {space.run}"
        raise MattaError(f"{what} {where}; {then if last else nothing}.") from error
    except RuntimeError as error:
        said = str(error)
        if "can't allocate memory" in said:
            raise MattaError(_out_of_memory(training, said)) from None
        words = ("Connection", "NCCL", "gloo", "peer")
        if training.world.size == 1 or not any(word in said for word in words):
            raise
        alone = training.world.first and not settings.shard
        last = training.save() if alone else space.newest()
        died = f"Another process of the run has died at step {counters.step}"
        then = f"{last} holds what was reached: go on with `{training.again}`"
        raise MattaError(f"{died}; {then}.") from error


def _out_of_memory(training: Training, said: str) -> str:
    """What took the memory, and what helps."""
    settings, teacher = training.settings, training.step.teacher
    weights = size_of(training.parameters) / 1e9
    state = size_of(state_of(training.optimizer)[0].values()) / 1e9
    frozen = teacher.model.parameters() if isinstance(teacher, ModelTeacher) else ()
    theirs = size_of(frozen) / 1e9
    now = settings.micro_batch or settings.batch_size // training.world.size
    ways = [f"--micro-batch {max(1, now // 2)}"] if now > 1 else []
    ways += [] if settings.checkpoint_activations else ["--checkpoint-activations"]
    ways += ["a smaller --sequence-length"] if training.task.name == "causal_lm" else []
    sentences = (part.strip() for part in said.replace("\n", " ").split("."))
    wanted = next((part for part in sentences if "allocate" in part), "")
    return (
        f"Out of memory on {training.device} at step {training.counters.step}: weights and "
        f"gradients of the TA take {2 * weights:.2f} GB, the optimizer {state:.2f} GB, the Teacher "
        f"{theirs:.2f} GB, activations of {now} examples the rest ({wanted}). "
        f"Try {' or '.join(ways) or 'a larger device'}."
    )
