"""The contract: all that an adapter author needs to read.

An adapter is what matta knows about one architecture. It says which dimensions of which tensors
shrink together (the axes) and how to build the architecture at other sizes. Everything else (nested
views, importance ordering, growth, training, export, counting) is written once, in the engine, on
top of these axes.

A Student is the dense module that ``sizes`` (axis name -> number of units kept) cut out of a larger
one. Its tensors are prefixes of the larger tensors along every axis.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

Sizes = Mapping[str, int]
PROGRAM = "torch.export.load({folder} + '/student.pt2').module()"  # see ``Adapter.loader``


@dataclass(frozen=True)
class Slice:
    """One dimension of one tensor that shrinks with an axis.

    tensor: name of a parameter or buffer, as in ``model.state_dict()``. Of tied tensors, name one.
    dim: the dimension that shrinks.
    blocks: the axis lies this many times, one after the other, in the dimension (3 for a fused
        q, k, v).
    start: where the first block begins; what lies outside the blocks always stays.
    outgoing: whether this tensor *reads* the axis's units (the weight after the activation) rather
        than producing them. Growth zeroes the outgoing weights of new units, so the function does
        not change; importance weighs by them.
    unit: how many places, one after the other, each unit takes here (4 in the queries, where four
        heads share one key).
    """

    tensor: str
    dim: int
    blocks: int = 1
    start: int = 0
    outgoing: bool = False
    unit: int = 1


@dataclass(frozen=True)
class Axis:
    """One index space that can shrink, such as the hidden units of one block's MLP.

    name: unique in the model; the layer's number belongs in it, once (``mlp.0``). Axes that differ
        in digits only are of one kind.
    size: how many units the model has.
    slices: every place where the units appear.
    step: sizes are whole multiples of this, and units move in groups of it (a head's width, say).
    layers: for the axis of depth: the path of the list whose numbered children are its units
        (``transformer.h``). Its slices then name tensors *within* a layer: those that add the
        layer's result to what passes by it. Growth zeroes them in new layers, which so start as
        the identity; without any, the axis cannot grow.
    order: of such an axis: the layers' numbers, the most important first. A Student keeps the first
        so many of them, in the places that they have in the model. The engine sets it.
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    step: int = 1
    layers: str = ""
    order: tuple[int, ...] = ()

    @classmethod
    def restored(cls, stored: Mapping[str, Any]) -> Axis:
        """The axis that ``dataclasses.asdict`` made this of, by way of JSON.

        Raises ``ValueError``, ``KeyError`` or ``TypeError`` where a file holds something else.
        """
        slices = tuple(Slice(**_typed(Slice, s)) for s in stored["slices"])
        order = tuple(stored.get("order", ()))
        if not all(type(number) is int for number in order):
            raise ValueError(f"the order of {stored['name']!r} is not of numbers")
        return cls(**{**_typed(cls, stored), "slices": slices, "order": order})


def _typed(kind: type, stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a file holds of an axis or a slice, if it is of the types that its fields have."""
    for own in fields(kind):
        known = {"int": int, "str": str, "bool": bool}.get(str(own.type))
        if known and own.name in stored and type(stored[own.name]) is not known:
            raise ValueError(f"{own.name} is {stored[own.name]!r:.60}, and no {known.__name__}")
    return stored


@dataclass(frozen=True)
class Source:
    """What the user brought, already found on disk and opened without unpickling anything.

    One of these holds: ``folder`` (a checkpoint folder of a stock library), ``tensors`` (a bare
    state dict), ``module`` (an opened pickle, only after ``--allow-pickle``), ``builder`` (the
    user's function that makes the model, ``pkg.mod:build``; ``tensors`` are then its weights, if
    any), or none of them: ``name`` is a name that the adapter's own library knows
    (``vit_tiny_patch16_224``) and downloads by itself. ``example`` (the inputs) and ``task`` are
    what the user said of them; ``drop_head``: that a head of another task may be left out.
    ``sizes`` comes with ``tensors`` of matta's own format: ``build`` makes the module that they fit
    from that of ``config``. ``beside``: the folder with the files that belong to the model besides
    its weights (tokenizer); matta takes care of those. ``notes``: what was chosen in opening it, in
    sentences for the user. ``classes``: their names in the model's order, where the file of the
    weights tells them; matta takes care of those, too.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=dict)
    folder: Path | None = None
    tensors: Mapping[str, Tensor] | None = None
    module: nn.Module | None = None
    builder: str = ""
    example: str = ""
    task: str = ""
    drop_head: bool = False
    beside: Path | None = None
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


class Adapter(ABC):
    """What matta knows about one architecture.

    Register a subclass as an entry point of the group ``matta.adapters``.

    name: what users type after ``--adapter``.
    task: the task of the models' outputs: ``causal_lm``, ``image_classification``, ``ranking``,
        ``sentence_embedding``, ``text_classification`` or ``token_classification``; an adapter of
        many kinds of model sets it in ``load``, and may in ``matches``.
    default: the kinds of axes that are nested unless the user names others; empty: all.
    loader: a Python expression, with its imports, that loads a saved folder without matta
        (``{folder}`` stands for the folder, as a literal). ``PROGRAM`` where a ``torch.export``
        program of the model can do it: matta writes that beside each Student. Empty where
        ``matta_cli.load_student`` is the only way.
    example: the shapes of what a model is called with, where ``load`` had ``Source.example``.
    spec: what finds the adapter again; matta sets it.
    notes: what ``load`` and ``axes`` had to assume about the last source, in sentences for the
        user.
    dropped: the parts of the last source that ``load`` left out: none but heads, and these only
        with ``Source.drop_head``.
    """

    name: str = ""
    task: str = ""
    default: tuple[str, ...] = ()
    loader: str = ""
    example: str = ""
    spec: str = ""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.dropped: list[str] = []

    @abstractmethod
    def matches(self, source: Source) -> bool:
        """Whether this adapter can load ``source``. Cheap; never raises on foreign input."""

    @abstractmethod
    def load(self, source: Source) -> nn.Module:
        """The dense model, in float32 on the CPU, in eval mode.

        Raises ``MattaError`` where the source does not fit.
        """

    @abstractmethod
    def axes(self, model: nn.Module) -> list[Axis]:
        """The axes of a dense model. Also works on a model on the meta device."""

    @abstractmethod
    def build(self, model: nn.Module, sizes: Sizes) -> nn.Module:
        """A fresh dense module like ``model`` with these sizes; its weights are arbitrary.

        An axis that is not named keeps its size. With fewer or more layers, ``sizes`` names the
        axes of the layers as the new module numbers them. Must work under
        ``torch.device("meta")`` and leave ``model`` alone.
        """

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Write ``model`` into an existing folder, in the stock library's own format.

        That is safetensors, never pickles. ``load(Source(folder=...))`` reads it back. Not called
        where ``unsupported`` gives a reason.
        """

    def unsupported(self, model: nn.Module) -> str:
        """Why the stock format cannot express this model's sizes; empty where it can.

        It begins with a small letter and has no full stop; ``model`` may be on meta. matta then
        writes a format of its own (see ``Source.sizes``).
        """
        return ""
