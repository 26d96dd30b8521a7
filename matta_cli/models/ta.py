"""A TA in memory, and the Students that are cut out of it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli.adapter import Adapter, Axis, Sizes
from matta_cli.errors import MattaError
from matta_cli.models.dtype import DTYPES
from matta_cli.models.save import save_model
from matta_cli.nested.cut import count_parameters
from matta_cli.nested.sizes import depth, full_sizes, kept_layers, kind, kinds, own_sizes, sizes_at
from matta_cli.nested.view import StudentView, has_statistics, materialize
from matta_cli.settings.budget import Budget

# in a TA folder: the scores of each axis as converted, the first unit's first
IMPORTANCE = "importance/scores.safetensors"
# in a checkpoint: the BatchNorm statistics of the trained widths, by width and buffer
STATISTICS = "statistics/widths.safetensors"
UNSHARED = "unshared"  # in a checkpoint: the Students of a run that shares no weights


Key = tuple[tuple[str, int], ...]
_MAKING = threading.Lock()  # modules are made one at a time, whichever threads ask for them


@dataclass(repr=False)
class TA:
    """A Teaching Assistant in memory: the grown model, its axes, and the base's sizes in them.

    statistics: of models with BatchNorm those of Students by their ``key``, where they are known;
    empty: those of the module that it is cut out of.
    """

    adapter: Adapter
    model: nn.Module
    axes: list[Axis]
    base: dict[str, int]
    card: dict[str, Any]
    statistics: dict[Key, dict[str, Tensor]] = field(default_factory=dict, kw_only=True)
    _served: dict[Key, _Served] = field(default_factory=dict, init=False, repr=False)

    def __repr__(self) -> str:
        axes, size = ", ".join(kinds(self.base)), self.student(full_sizes(self.axes)).parameters
        source = self.card.get("lineage", {}).get("source", "a model")
        return f"TA of {source}: {size:,} parameters, width {self.widest:g}, nested along {axes}"

    def _repr_html_(self) -> str:
        """What a notebook shows: a line, and how large the Students of a few widths are."""
        widths = sorted({0.25, 0.5, 1.0, self.widest})
        rows = (f"<tr><td>{w:g}</td><td>{self.student(w).parameters:,}</td></tr>" for w in widths)
        head = "<tr><th>width</th><th>parameters</th></tr>"
        return f"<p>{escape(repr(self))}</p><table>{head}{''.join(rows)}</table>"

    def key(self, sizes: Sizes) -> Key:
        """What tells Students apart: the sizes of layers that are left out do not matter."""
        return tuple(sorted(own_sizes(self.axes, sizes).items()))

    def sizes(self, width: float | Sizes) -> dict[str, int]:
        """The sizes of a width (sizes are their own).

        Raises ``MattaError`` for a width that is not in (0, widest].
        """
        if isinstance(width, Mapping):
            return dict(width)
        if not 0 < width <= self.widest:
            held = f"this TA holds widths above 0 and up to {self.widest:g}"
            raise MattaError(f"Width {width:g} is not possible: {held}.")
        shares = self.card.get("sizes", {}).get(f"{width:g}")
        return sizes_at(self.axes, self.base, width, self.card.get("multiple", 1), shares)

    def lacks_statistics(self, width: float | Sizes) -> bool:
        """Whether a Student has BatchNorm, and what it is to be normalised by is not known."""
        return has_statistics(self.model) and self.student(width).statistics is None

    @property
    def widest(self) -> float:
        """The TA's own width: the most that any axis grew."""
        return max((axis.size / self.base[axis.name] for axis in self.axes), default=1.0)

    def saved_as(self, dtype: str) -> torch.dtype:
        """In what numbers Students are saved by ``export.dtype``; auto: as the base was stored."""
        own = self.card.get("dtype", "float32") if dtype == "auto" else dtype
        return DTYPES.get(own, torch.float32)

    @property
    def copies(self) -> Mapping[float, nn.Module]:
        """Students that share no weights with the TA, by width: none, but in ``UnsharedTA``."""
        return {}

    def student(
        self, width: float | Sizes, name: str = "", budget: Budget | None = None
    ) -> Student:
        """The Student of a width, or of sizes. Raises ``MattaError`` as ``sizes`` does."""
        own = None if isinstance(width, Mapping) else width
        name = name or ("" if own is None else f"width {own:g}")
        return Student(self, name, self.sizes(width), own, budget)

    def at(self, width: float | Sizes) -> Any:
        """The Student of a width, or of sizes, to run: a module in eval mode, without gradients.

        It is of the base's own class and lies on the TA's tensors, so that all widths take the
        memory of one; only what is cut into several pieces (a fused qkv with fewer heads) is a
        copy. The same module comes each time, made anew where the TA's weights have changed or
        moved. Threads may ask for any widths and run them at once. To train one, see
        ``Student.view``.
        """
        student = self.student(width)
        with _MAKING:
            served = self._served.get(student.key)
            if served is None or served.state != _state(served.tensors):
                tensors = [*self.model.parameters(), *self.model.buffers()]
                served = _Served(student.module(), tensors, _state(tensors))
                self._served[student.key] = served
        return served.module


@dataclass(frozen=True)
class _Served:
    """A Student that was made to run, and the TA's tensors as they were then."""

    module: nn.Module
    tensors: Sequence[Tensor]
    state: list[tuple[int, int]]


def _state(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    """Where tensors lie, and how often they were written to."""
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]


@dataclass(frozen=True)
class Student:
    """A dense model that ``sizes`` cut out of a TA, under the name that reports give it.

    width: where its sizes are those of a width. budget: where it was chosen for one. quantized: how
    it was chosen for that, where not in float.
    """

    ta: TA
    name: str
    sizes: dict[str, int]
    width: float | None = None
    budget: Budget | None = None
    quantized: str = ""

    @property
    def folder(self) -> str:
        """What its folder is called."""
        return self.name.replace(" ", "-")

    @property
    def parameters(self) -> int:
        """Its parameters, counted without building it; tied tensors count once."""
        return count_parameters(self.ta.model, self.ta.axes, self.sizes)

    @property
    def key(self) -> Key:
        """What its statistics are known by."""
        return self.ta.key(self.sizes)

    @property
    def statistics(self) -> dict[str, Tensor] | None:
        """Its BatchNorm statistics on the TA's device; None where they are not known."""
        known = self.ta.statistics.get(self.key)
        device = next(self.ta.model.parameters()).device
        return None if known is None else {name: own.to(device) for name, own in known.items()}

    @property
    def layers(self) -> list[int] | None:
        """The numbers of the TA's layers that it keeps; None where depth is not nested."""
        axis = depth(self.ta.axes)
        return None if axis is None else kept_layers(axis, self.sizes[axis.name])

    @property
    def unsupported(self) -> str:
        """Why its stock library cannot load it; empty where it can."""
        adapter = self.ta.adapter
        if not adapter.loader:
            return f"the adapter {adapter.name!r} has no stock library"
        with torch.device("meta"):
            return adapter.unsupported(self.built())

    @property
    def stock(self) -> bool:
        """Whether its stock library can load it."""
        return not self.unsupported

    @property
    def loads(self) -> str:
        """What loads it: the stock library's name, or matta's own function."""
        return self.ta.adapter.loader.partition(".")[0] if self.stock else "matta_cli.load_student"

    def shown(self, *, whole: bool = False) -> str:
        """Its sizes by kind in one line: ``mlp 64 (x12), heads 6x64 (x12), depth 8``.

        whole: the size of each layer, where layers differ.
        """
        steps = {kind(axis.name): axis.step for axis in self.ta.axes}
        parts = []
        for name, found in kinds(own_sizes(self.ta.axes, self.sizes)).items():
            low, high = (_in_steps(n, steps[name]) for n in (min(found), max(found)))
            if whole and low != high:
                parts.append(f"{name} {'-'.join(map(str, found))}")
                continue
            span = low if low == high else f"{low}..{high}"
            parts.append(f"{name} {span} (x{len(found)})" if len(found) > 1 else f"{name} {span}")
        return ", ".join(parts)

    def built(self) -> nn.Module:
        """A dense module of its sizes whose weights are arbitrary."""
        return self.ta.adapter.build(self.ta.model, own_sizes(self.ta.axes, self.sizes))

    def view(self, *, head: str = "") -> Any:
        """The Student on views of the TA's tensors: no copy."""
        ta = self.ta
        view = StudentView(ta.adapter, ta.model, ta.axes, self.sizes, head=head)
        view.buffers = self.statistics or {}
        return view

    def module(self) -> nn.Module:
        """The Student as an ordinary module on the TA's tensors, in eval mode.

        ``StudentView.module`` says which are copies.
        """
        module: nn.Module = self.view().module()
        return module

    def dense(self) -> nn.Module:
        """The Student as a dense module of its own, in eval mode."""
        dense = materialize(self.ta.adapter, self.ta.model, self.ta.axes, self.sizes)
        dense.load_state_dict(self.statistics or {}, strict=False)
        return dense

    def save(
        self,
        folder: Path,
        buffers: Mapping[str, Tensor] | None = None,
        *,
        own: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> str:
        """Write it as ``save_model`` does, tensor by tensor: no second copy is in memory.

        buffers: BatchNorm statistics of its own.
        """
        state = {**self.view().state(), **(buffers or {})}
        return save_model(self.ta.adapter, self.built().to(dtype), folder, state, own=own)


def _in_steps(size: int, step: int) -> str:
    return f"{size // step}x{step}" if step > 1 else str(size)


# The paper's ablation: Students that share no weights with the TA


@dataclass(repr=False)
class UnsharedTA(TA):
    """A TA beside which each Student has weights of its own (``distill.shared = false``)."""

    unshared: dict[float, nn.Module] = field(default_factory=dict)

    @classmethod
    def of(cls, ta: TA, models: Mapping[float, nn.Module]) -> UnsharedTA:
        """``ta`` with these Students."""
        own = ta.adapter, ta.model, ta.axes, ta.base, ta.card
        return cls(*own, dict(models), statistics=ta.statistics)

    @classmethod
    def start(cls, ta: TA, widths: Iterable[float]) -> UnsharedTA:
        """``ta`` with Students that begin as what it would nest."""
        return cls.of(ta, {width: ta.student(width).dense() for width in widths})

    @property
    def copies(self) -> Mapping[float, nn.Module]:
        return self.unshared

    def student(
        self, width: float | Sizes, name: str = "", budget: Budget | None = None
    ) -> Student:
        nested = super().student(width, name, budget)
        if nested.width not in self.unshared:
            return nested
        return UnsharedStudent(self, nested.name, nested.sizes, nested.width, budget)


class UnsharedStudent(Student):
    """A Student with weights of its own."""

    @property
    def key(self) -> Key:
        return (*super().key, (UNSHARED, 1))

    @property
    def model(self) -> nn.Module:
        """Its module, which a run trains."""
        return self.ta.copies[self.width]  # type: ignore[index]

    def view(self, *, head: str = "") -> Any:
        return self.model

    def module(self) -> nn.Module:
        return self.model.eval()

    def dense(self) -> nn.Module:
        dense = copy.deepcopy(self.model).eval()
        dense.load_state_dict(self.statistics or {}, strict=False)
        return dense

    def save(
        self,
        folder: Path,
        buffers: Mapping[str, Tensor] | None = None,
        *,
        own: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> str:
        model = self.dense()
        model.load_state_dict(buffers or {}, strict=False)
        return save_model(self.ta.adapter, model.to(dtype), folder, own=own)
