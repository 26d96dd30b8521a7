"""A Student run on views of the TA's tensors."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from matta_cli.adapter import Adapter, Axis, Sizes
from matta_cli.errors import MattaError
from matta_cli.nested.cut import Cut, tensors_of
from matta_cli.nested.sizes import own_sizes


class StudentView:
    """A Student run on views of a live model, whose own tensors its gradients reach.

    It is called like the model. The dense skeleton lives on the meta device and outside any module
    tree, so wrappers of the model do not see it. Buffers are copies: a narrow forward must not
    write into those of wider ones. The Student's own BatchNorm statistics stand in ``buffers``.
    With ``head``, the name of the linear layer that makes the outputs, that layer is left out: a
    call gives what it reads, and ``output`` the layer's tensors.
    """

    def __init__(
        self,
        adapter: Adapter,
        model: nn.Module,
        axes: Sequence[Axis],
        sizes: Sizes,
        *,
        head: str = "",
    ) -> None:
        self.model, self.head = model, head
        with torch.device("meta"):
            self.skeleton = adapter.build(model, own_sizes(axes, sizes))
        if head:
            self.skeleton.set_submodule(head, nn.Identity())
        self.cut = Cut(axes, sizes, {name: t.shape for name, t in tensors_of(model).items()})
        self.buffers: dict[str, Tensor] = {}
        self.training = model.training
        self.config = getattr(model, "config", None)  # tasks read it off whatever they call
        self.run: Any = _runner(self.skeleton)

    def state(self) -> dict[str, Tensor]:
        """The Student's tensors: parameters are views, buffers copies."""
        out = f"{self.head}." if self.head else "\0"
        state = {}
        for name, parameter in self.model.named_parameters():
            own = self.cut.name(name)
            if own is not None and not name.startswith(out):
                state[own] = self.cut(name, parameter)
        for name, buffer in self.model.named_buffers():
            own = self.cut.name(name)
            if own in self.buffers:
                state[own] = self.buffers[own]
            elif own is not None:
                state[own] = self.cut(name, buffer).clone()
        return state

    def module(self) -> nn.Module:
        """The Student as an ordinary module, in eval mode, whose tensors are these views.

        It serves what calls more than ``forward``, such as ``generate`` of transformers. No
        gradient reaches the model. Copies are buffers, and tensors that are cut into several pieces
        (a fused qkv with fewer heads).
        """
        module = copy.deepcopy(self.skeleton)  # on the meta device: nothing but names and shapes
        state = self.state()
        places: dict[int, list[str]] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            places.setdefault(id(parameter), []).append(name)
        for tied in places.values():
            own = nn.Parameter(state[tied[0]].detach(), requires_grad=False)
            for name in tied:
                where, _, last = name.rpartition(".")
                module.get_submodule(where).register_parameter(last, own)
        for name, _ in list(module.named_buffers()):
            where, _, last = name.rpartition(".")
            module.get_submodule(where)._buffers[last] = state[name]
        return module.eval()

    def output(self) -> tuple[Tensor, Tensor | None]:
        """Weight [outputs, d] and bias [outputs] (or None) of the ``head``, as views."""
        named = dict(self.model.named_parameters(remove_duplicate=False))
        # axes name a tied tensor by its first name
        first = {id(p): name for name, p in self.model.named_parameters()}

        def own(name: str) -> Tensor:
            return self.cut(first[id(named[name])], named[name])

        weight, bias = f"{self.head}.weight", f"{self.head}.bias"
        return own(weight), own(bias) if bias in named else None

    def train(self, mode: bool = True) -> StudentView:
        self.training = mode
        return self

    def eval(self) -> StudentView:
        return self.train(False)

    def without_dropout(self) -> None:
        """Drop nothing, also while training. The model's own settings stay as they are."""
        for module in self.skeleton.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0

    def recompute(self) -> None:
        """Keep no activations inside repeated blocks: the backward pass makes them again.

        Chen et al. 2016, arXiv 1604.06174. Raises ``MattaError`` where there are no such blocks.
        """
        blocks = repeated_blocks(self.skeleton)
        if not blocks:
            what = "Activation checkpointing is not supported for this model"
            raise MattaError(f"{what}: it has no repeated blocks.")
        for block in blocks:
            _recompute(block)

    def compile(self, **options: Any) -> None:
        """Run compiled (``torch.compile``'s options); shapes are fixed.

        Repeated blocks share one graph, which takes as long to compile as one of them; a model
        without any is one graph.
        """
        blocks = repeated_blocks(self.skeleton)
        for block in blocks:
            block.forward = torch.compile(  # type: ignore[method-assign]
                block.forward, dynamic=False, **options
            )
        if not blocks:
            self.run = torch.compile(self.run, dynamic=False, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.skeleton.training != self.training:
            self.skeleton.train(self.training)
        return self.run(self.state(), args, kwargs)


def _runner(skeleton: nn.Module) -> Any:
    def run(state: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        return functional_call(skeleton, state, args, kwargs)

    return run


def without(model: nn.Module, name: str) -> nn.Module:
    """``model`` with an identity for the layer ``name``; it shares all else with ``model``."""
    body = copy.copy(model)
    body._modules = dict(model._modules)
    child, _, rest = name.partition(".")
    setattr(body, child, without(model.get_submodule(child), rest) if rest else nn.Identity())
    return body


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The model's layers: the children of its outermost lists of modules of one class.

    A list has two modules or more, and they have parameters.
    """
    blocks: list[nn.Module] = []
    stack = [model]
    while stack:
        module = stack.pop()
        children = list(module.children())
        is_list = isinstance(module, (nn.ModuleList, nn.Sequential)) and len(children) > 1
        if not is_list or len({type(child) for child in children}) > 1:
            stack += children
        elif any(True for _ in children[0].parameters()):
            blocks += children
    return blocks


def _recompute(block: nn.Module) -> None:
    """Checkpoint a block of a skeleton.

    The tensors of the call are kept for the second pass: by then the skeleton is empty.
    """
    plain = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or not block.training:
            return plain(*args, **kwargs)
        state = dict(block.named_parameters())
        buffers = dict(block.named_buffers())

        def again(*args: Any, **kwargs: Any) -> Any:
            block.forward = plain  # type: ignore[method-assign]
            try:
                return functional_call(block, {**state, **buffers}, args, kwargs)
            finally:
                block.forward = forward  # type: ignore[method-assign]

        return checkpoint(again, *args, use_reentrant=False, **kwargs)

    block.forward = forward  # type: ignore[method-assign]


def materialize(
    adapter: Adapter, model: nn.Module, axes: Sequence[Axis], sizes: Sizes
) -> nn.Module:
    """The same Student as a dense module of its own, in eval mode, on ``model``'s device."""
    view = StudentView(adapter, model, axes, sizes)
    student = adapter.build(model, own_sizes(axes, sizes)).to(next(model.parameters()).device)
    with torch.no_grad():
        targets = tensors_of(student)
        for name, tensor in view.state().items():
            targets[name].copy_(tensor)
    return student.eval()


def _norms(model: nn.Module) -> list[Any]:
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return [norm for norm in norms if norm.track_running_stats]


def has_statistics(model: nn.Module) -> bool:
    """Whether a model carries BatchNorm statistics, which every Student needs of its own."""
    return bool(_norms(model))


def statistics_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's BatchNorm statistics, by the names of its buffers."""
    names = {id(norm): name for name, norm in model.named_modules()}
    return {
        f"{names[id(norm)]}.{buffer}": tensor
        for norm in _norms(model)
        for buffer, tensor in norm.named_buffers()
    }


@torch.no_grad()
def recompute_statistics(model: nn.Module, batches: Sequence[Any], forward: Any) -> None:
    """Set a dense model's BatchNorm statistics to the exact average over ``batches``.

    ``forward(model, batch)`` runs it.
    """
    norms = _norms(model)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    model.eval()  # only the norms train: dropout would disturb the statistics
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain cumulative average
        norm.train()
    for batch in batches:
        forward(model, batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
