"""Students made by other tools, as their users run them. The study's engine distils what they give, as it does plain cuts."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from typing import Any

from torch import Tensor, nn

from benchmarks.quality.training import of_one
from matta_cli import supernet
from matta_cli.conversion import TA
from matta_cli.losses import Logits, Term
from matta_cli.tasks import Data, Task

CALIBRATION = 8  # batches of the training data that a criterion sees

# What a peer does not prune, by problem, in the words of what happened when it was tried.
_REFUSES = {
    "torch-pruning": {
        "lm": "its dependency graph does not see through transformers' Conv1D, of which GPT-2 is made",
    },
    "modelopt": {},
}
_PACKAGES = {"torch-pruning": "torch_pruning"}


def unavailable(problem: str) -> dict[str, str]:
    """The peers that are not run on a problem: peer -> why not."""
    found = {}
    for peer, package in _PACKAGES.items():
        if problem in _REFUSES[peer]:
            found[peer] = _REFUSES[peer][problem]
        elif importlib.util.find_spec(package) is None:
            found[peer] = "not installed"
    return found


def pruned(task: Task, ta: TA, width: float, data: Data) -> TA:
    """The base, cut by torch-pruning to the sizes of a width, as a TA that holds nothing else.

    Which units go is by its ``GroupTaylorImportance`` on training data, or ``GroupMagnitudeImportance`` where there is no
    ground truth. Raises ``RuntimeError`` where the result has not the sizes of the Student.
    """
    import torch_pruning as tp

    base = ta.student(1.0)
    kinds = list(supernet.kinds(ta.base))
    axes, sizes = supernet.nested_axes(ta.adapter, base, kinds), ta.sizes(width)
    model = copy.deepcopy(base).requires_grad_(True)
    modules: dict[str, nn.Module] = dict(model.named_modules())
    ratios = {modules[a.slices[0].tensor.rpartition(".")[0]]: 1 - sizes[a.name] / a.size for a in axes}
    size = min(task.recipe.distill.batch_size, len(data.train))
    starts = [i * (len(data.train) - size) // (CALIBRATION - 1) for i in range(CALIBRATION)]
    batches = [data.train.batch(range(start, start + size)) for start in starts]

    def forward(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return task.forward(model, batch)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters that it leaves alone: position embeddings and the like
        pruner = tp.pruner.BasePruner(
            model, batches[0], tp.importance.GroupTaylorImportance() if task.labelled else tp.importance.GroupMagnitudeImportance(),
            pruning_ratio=0.0, pruning_ratio_dict=ratios, forward_fn=forward, root_module_types=[nn.Linear, nn.Embedding],
            in_channel_groups={}, out_channel_groups={}, num_heads={}, channel_groups={},  # its defaults are shared by all models
        )  # fmt: skip
        if task.labelled:
            for batch in batches:
                loss: Any = task.objective(Logits(task.forward(model, batch)), batch, [Term("truth", 1.0)])[0]
                loss.backward()
        pruner.step()
    # into a module of the Student's own sizes: one that torch-pruning cut otherwise does not fit
    student = ta.adapter.build(base, sizes)
    student.load_state_dict({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    return of_one(ta.adapter, student.eval(), kinds)


PRUNE = {"torch-pruning": pruned}


def available(problem: str) -> tuple[str, ...]:
    """The peers that are run on a problem."""
    return tuple(peer for peer in PRUNE if peer not in unavailable(problem))
