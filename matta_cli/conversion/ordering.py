"""In which order the units of a base are put."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor, nn

from matta_cli.adapter import Adapter, Axis
from matta_cli.conversion.proof import as_many_as_fit
from matta_cli.losses.targets import Logits, Term
from matta_cli.nested import grow
from matta_cli.nested.importance import activation, by_gradient, magnitude, removal
from matta_cli.progress import Listener, Progress, quiet
from matta_cli.tasks.task import Task

REMOVAL_BYTES = 1 << 28  # of the base's outputs, against which removals are measured
REMOVED = 128  # groups of an axis, each of which costs a forward


def importance(
    task: Task,
    adapter: Adapter,
    model: nn.Module,
    axes: Sequence[Axis],
    order: str,
    batches: Sequence[dict[str, Tensor]],
    listen: Listener = quiet,
) -> dict[str, Tensor]:
    """The score of each group of units by ``order``, as in recipes: axis -> float32 [size / step].

    It is empty for ``none``, and has no layers for ``prefix``. ``activation`` says little of
    layers, and of channels that a norm spans, since all of them change when one goes: those are
    scored by what the outputs lose without them, where they are ``REMOVED`` groups or fewer.
    """
    if order == "none":
        return {}
    if order == "prefix":
        axes = [axis for axis in axes if not axis.layers]
        order = "activation" if batches else "magnitude"
    if order == "magnitude":
        return magnitude(model, axes)
    if order == "activation":
        some = [axis for axis in axes if axis.layers or not grow.growable(model, axis)]
        some = [axis for axis in some if axis.size // axis.step <= REMOVED]
        rest = [axis for axis in axes if axis not in some]
        few = as_many_as_fit(task, model, batches, REMOVAL_BYTES) if some else []
        steps = (len(batches) if rest else 0) + sum(axis.size // axis.step for axis in some)
        listen(Progress(message="Putting the units in order, by what the data make of them."))
        started, done = time.perf_counter(), 0

        def tick() -> None:
            nonlocal done
            done += 1
            speed = done / (time.perf_counter() - started)
            listen(Progress(done, steps, per_second=speed, unit="forwards"))

        def counted(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            tick()
            return task.forward(model, batch)

        scores = activation(model, rest, batches, counted, task.present) if rest else {}
        measures = (task.forward, task.distill_loss, tick)
        return scores | removal(adapter, model, axes, some, few, *measures)

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return task.objective(Logits(task.forward(model, batch)), batch, [Term("truth", 1.0)])[0]

    return by_gradient(model, axes, batches, loss, second=order == "hessian")
