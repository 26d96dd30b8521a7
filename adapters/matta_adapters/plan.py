"""How a model of any kind was made, and where its units lie: what its folder keeps as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from matta_adapters.calls import Inputs, run
from matta_adapters.trial import Repeats
from matta_cli.adapter import Axis
from matta_cli.errors import MattaError, said
from matta_cli.trust import is_code

FILE = "auto.json"
ATTRIBUTE = "_matta_plan"
_KINDS: Mapping[str, Any] = {
    **dict.fromkeys(("builder", "example", "task"), str),
    **dict.fromkeys(("arguments", "preprocessing", "whole"), dict),
    "exports": bool,
}


@dataclass(frozen=True)
class Plan:
    """How a model was made; the model carries it.

    example: shapes. given: the inputs themselves, where a function gave them; they are not kept.
    axes: at its own sizes, None before it was traced. repeats: axis -> attributes that repeat its
    size. whole: the sizes that the builder gives. exports: whether it can be a program.
    """

    builder: str
    arguments: Mapping[str, Any]
    example: str
    task: str
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    axes: tuple[Axis, ...] | None = None
    repeats: Mapping[str, Repeats] = field(default_factory=dict)
    whole: Mapping[str, int] = field(default_factory=dict)
    exports: bool = False
    given: Inputs | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Plan:
        """The plan that a model carries."""
        plan = getattr(model, ATTRIBUTE, None)
        if plan is None:
            kind = type(model).__name__
            raise MattaError(
                f"This {kind} was not loaded by the adapter 'auto': use Auto().load(source)."
            )
        return plan

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """The plan in a folder. Raises ``MattaError`` where it is damaged, or of a newer format."""
        path = folder / FILE
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored.pop("format") > 1:
                raise MattaError(f"{path} is of a newer format: upgrade matta.")
            axes = tuple(Axis.restored(axis) for axis in stored.pop("axes"))
            repeats = {}
            for name, places in stored.pop("repeats").items():
                repeats[name] = tuple((m, a, v) for m, a, v in places)
            for name, kind in _KINDS.items():
                if not isinstance(stored[name], kind):
                    raise ValueError(f"{name} is {stored[name]!r:.60}")
            plan = cls(**stored, axes=axes, repeats=repeats, given=None)
            if not is_code(plan.builder) or set(plan.whole) != {a.name for a in axes}:
                raise ValueError("the builder or the sizes are not right")
            if is_code(plan.example):
                raise ValueError("its example is no shapes, but a function, which is not run")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MattaError(f"{path} is damaged ({error}): convert the model again.") from None
        return plan

    def check(self, model: nn.Module, inputs: Inputs | None, folder: Path) -> None:
        """Raise ``MattaError`` where a plan that was read is not that of the model it made.

        Its units lie where the model has none, or the model does not run on the inputs, if there
        are any.
        """
        why, state = "", model.state_dict()
        for axis in self.axes or ():
            for own in axis.slices if not axis.layers else ():
                shape = tuple(state[own.tensor].shape) if own.tensor in state else ()
                room = shape[own.dim] if 0 <= own.dim < len(shape) else 0
                units = axis.size * own.blocks * own.unit
                if min(own.blocks, own.unit) < 1 or not 0 <= own.start <= room - units:
                    why = f"{axis.name!r} does not fit {own.tensor!r}"
        if not why and inputs is not None:
            try:
                with torch.no_grad():
                    run(model.eval(), inputs)
            except Exception as error:  # whatever the code of a model makes of its arguments
                why = f"{self.builder} makes a model that does not run: {said(error)[:200]}"
        if why:
            raise MattaError(f"{folder / FILE} is damaged ({why}): convert the model again.")
