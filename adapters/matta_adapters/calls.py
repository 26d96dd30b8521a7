"""How a model of any kind is called on an example, and which models cannot be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from matta_cli.errors import MattaError, said


@dataclass
class Inputs:
    """How a model is called: positional and keyword tensors."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The inputs with every tensor changed."""

        def one(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        return Inputs(tuple(map(one, self.args)), {k: one(v) for k, v in self.kwargs.items()})

    @property
    def shown(self) -> str:
        """The shapes as ``--example`` has them: ``1x3x32x32``, ``input_ids=1x16``."""
        named = [("", t) for t in self.args] + [(f"{k}=", t) for k, t in self.kwargs.items()]
        parts = [(k, "x".join(map(str, t.shape))) for k, t in named if isinstance(t, Tensor)]
        return ",".join(f"{name}{shape}" for name, shape in parts)

    def tensors(self) -> list[Tensor]:
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)]


def output_of(given: Any) -> Tensor:
    """The one tensor that a model gives. Raises ``MattaError`` where there is none."""
    output = getattr(given, "logits", given)
    if not isinstance(output, Tensor):
        raise MattaError(
            f"The model gives a {type(given).__name__}; "
            "a tensor, or something with .logits, is needed."
        )
    return output


def run(model: nn.Module, inputs: Inputs, state: Mapping[str, Tensor] | None = None) -> Tensor:
    """What a model gives for the inputs, with its own tensors or with those of ``state``."""
    if state is None:
        return output_of(model(*inputs.args, **inputs.kwargs))
    return output_of(functional_call(model, dict(state), inputs.args, inputs.kwargs))


class _Watch:
    """Follows a run: which modules it is in, and which of them cut the graph of gradients."""

    def __init__(self, model: nn.Module) -> None:
        self.inside: list[tuple[str, nn.Module]] = []
        self.cutting: list[tuple[str, nn.Module]] = []
        self.handles: list[Any] = []
        for path, module in model.named_modules():
            self.handles.append(module.register_forward_pre_hook(self._entering(path)))
            self.handles.append(module.register_forward_hook(self._left))

    def _entering(self, path: str) -> Any:
        return lambda module, _inputs: self.inside.append((path, module))

    def _left(self, module: nn.Module, given: Any, output: Any) -> None:
        place = self.inside.pop()
        tensors = [t for t in given if isinstance(t, Tensor)]
        flows = any(t.requires_grad for t in tensors)
        flows = flows or (bool(tensors) and any(True for _ in module.parameters()))
        number = isinstance(output, Tensor) and output.is_floating_point()
        if flows and number and not output.requires_grad:
            self.cutting.append(place)

    def stop(self) -> None:
        for handle in self.handles:
            handle.remove()


def checked_output(model: nn.Module, inputs: Inputs, name: str) -> Tensor:
    """The model's output, with its graph of gradients.

    Raises ``MattaError`` with the module that fails, or that cuts the graph.
    """
    watch = _Watch(model)
    try:
        with torch.enable_grad():
            output = run(model, inputs)
    except MattaError:
        raise
    except Exception as error:  # it is the user's code that runs
        where = f"in {shown(*watch.inside[-1])}" if watch.inside else "before its first layer"
        raise MattaError(
            f"{name}: the model does not run on its example ({inputs.shown}): {said(error)} "
            f"({where}). --example says how it is called."
        ) from error
    finally:
        watch.stop()
    if not output.requires_grad:
        paths = [path for path, _ in watch.cutting]
        inner = [p for p in watch.cutting if not any(inside(path, p[0]) for path in paths)]
        where = shown(*inner[-1]) if inner else shown("", model)
        raise MattaError(
            f"{name}: {where} cannot be traced: its output is cut from the graph (detach, no_grad, "
            "or an integer); write an adapter for this model (CONTRIBUTING.md)."
        )
    if not torch.isfinite(output).all():
        raise MattaError(f"{name}: the model's outputs on {inputs.shown} are not finite.")
    return output


def inside(path: str, outer: str) -> bool:
    """Whether the module at ``path`` is a part of that at ``outer``, and not it itself."""
    return path != outer and (not outer or path.startswith(f"{outer}."))


def shown(path: str, module: nn.Module) -> str:
    """A module as users read it: ``layers.0.fc (Linear)``."""
    return f"{path} ({type(module).__name__})" if path else type(module).__name__
