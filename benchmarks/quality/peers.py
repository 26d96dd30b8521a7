"""Students made by other tools, as their users run them. The study's engine distils what they give,
as it does plain cuts.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.quality.training import of_one
from matta_cli.adapter import Sizes
from matta_cli.data.split import Data
from matta_cli.losses.targets import Logits, Term
from matta_cli.models.ta import TA
from matta_cli.nested.sizes import kinds, nested_axes
from matta_cli.tasks.task import Task

CALIBRATION = 8  # batches of the training data that a criterion sees

_NOTHING = "its fastnas says: The model does not contain any configurable hyperparameters!"

# What a peer does not prune, by problem, in the words of what happened when it was tried.
_REFUSES = {
    "torch-pruning": {
        "lm": "its dependency graph does not see through transformers' Conv1D, of which "
        "GPT-2 is made"
    },
    "modelopt": dict.fromkeys(("lm", "ranker", "ranker_time", "lambdarank", "encoder"), _NOTHING),
}
_PACKAGES = {"torch-pruning": "torch_pruning", "modelopt": "modelopt"}
_WHEELS = {"modelopt": "nvidia-modelopt"}


def refused(problem: str) -> dict[str, str]:
    """The peers that do not prune a problem's model: peer -> why not."""
    return {peer: said[problem] for peer, said in _REFUSES.items() if problem in said}


def installed(peer: str) -> bool:
    return importlib.util.find_spec(_PACKAGES[peer]) is not None


def named(peer: str) -> str:
    """The package of a peer, with its installed version."""
    wheel = _WHEELS.get(peer, peer)
    return f"{wheel} {importlib.metadata.version(wheel)}"


def _base(task: Task, ta: TA, data: Data) -> tuple[Any, list[dict[str, Tensor]]]:
    """The base as a module of its own, and batches of the training data for a peer to judge its
    units by.
    """
    size = min(task.recipe.distill.batch_size, len(data.train))
    starts = [i * (len(data.train) - size) // (CALIBRATION - 1) for i in range(CALIBRATION)]
    return ta.student(1.0).dense(), [
        data.train.batch(range(start, start + size)) for start in starts
    ]


def _whole(ta: TA, base: nn.Module, sizes: Sizes, found: nn.Module) -> TA:
    """What a peer left of the base, in a module of those sizes: anything cut otherwise does not
    fit, and raises.
    """
    student = ta.adapter.build(base, sizes)
    student.load_state_dict(
        {name: tensor.detach().clone() for name, tensor in found.state_dict().items()}
    )
    return of_one(ta.adapter, student.eval(), list(kinds(ta.base)))


def torch_pruning(task: Task, ta: TA, width: float, data: Data) -> TA:
    """The base, cut by torch-pruning to the sizes of a width, as a TA that holds nothing else.

    Which units go is by its ``GroupTaylorImportance`` on training data, or
    ``GroupMagnitudeImportance`` where there is no ground truth. It has the Student's sizes, or
    ``RuntimeError`` is raised.
    """
    import torch_pruning as tp

    base, batches = _base(task, ta, data)
    axes, sizes = nested_axes(ta.adapter, base, list(kinds(ta.base))), ta.sizes(width)
    model = copy.deepcopy(base).requires_grad_(True)
    ratios = {
        model.get_submodule(a.slices[0].tensor.rpartition(".")[0]): 1 - sizes[a.name] / a.size
        for a in axes
    }
    taylor, magnitude = tp.importance.GroupTaylorImportance, tp.importance.GroupMagnitudeImportance

    def forward(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return task.forward(model, batch)

    with warnings.catch_warnings():
        # of parameters that it leaves alone: position embeddings and the like
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            model,
            batches[0],
            taylor() if task.labelled else magnitude(),
            pruning_ratio=0.0,
            pruning_ratio_dict=ratios,
            forward_fn=forward,
            root_module_types=[nn.Linear, nn.Embedding],
            # its defaults are shared
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
            channel_groups={},
        )
        if task.labelled:
            for batch in batches:
                loss: Any = task.objective(
                    Logits(task.forward(model, batch)), batch, [Term("truth", 1.0)]
                )[0]
                loss.backward()
        pruner.step()
    return _whole(ta, base, sizes, model)


def modelopt(task: Task, ta: TA, width: float, data: Data) -> TA:
    """The base, cut by ModelOpt's ``fastnas`` to at most the parameters of a width, as a TA that
    holds nothing else.

    Each block's MLP gets a width of its own, as it finds best by the ground truth of training data.
    """
    import modelopt.torch.prune as mtp

    base, batches = _base(task, ta, data)
    limit = sum(parameter.numel() for parameter in ta.student(width).dense().parameters())

    @torch.no_grad()
    def score(model: nn.Module) -> float:
        return -sum(float(task.loss(task.forward(model, batch), batch)) for batch in batches) / len(
            batches
        )

    # its search prints, and saves where it is told
    with TemporaryDirectory() as temp, redirect_stdout(sys.stderr):
        settings = {
            "score_func": score,
            "verbose": False,
            "checkpoint": str(Path(temp) / "search.pth"),
        }
        settings |= {"data_loader": [batch["image"] for batch in batches]}
        model, _ = mtp.prune(
            copy.deepcopy(base), "fastnas", {"params": limit}, batches[0]["image"], settings
        )
    axes = nested_axes(ta.adapter, base, list(kinds(ta.base)))
    tensors = model.state_dict()
    sizes = {axis.name: tensors[axis.slices[0].tensor].shape[axis.slices[0].dim] for axis in axes}
    return _whole(ta, base, sizes, model)


PRUNE = {"torch-pruning": torch_pruning, "modelopt": modelopt}


def applies(problem: str) -> tuple[str, ...]:
    """The peers that prune a problem's model."""
    return tuple(peer for peer in PRUNE if peer not in refused(problem))
