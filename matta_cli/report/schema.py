"""A report as data: what was measured of each model, and JSON both ways.

``report.json`` and ``search.json`` hold it. Files that an older matta wrote open, too: what they
do not have takes its default, and a number that is none is missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

FORMAT = 1


class Role(str, Enum):
    """What a model is in a report."""

    TEACHER = "teacher"
    TA = "ta"
    BASE = "base"
    STUDENT = "student"
    CUT = "cut"  # a Student's size, cut out of the TA as it was converted
    PLAIN = "plain"  # that cut, distilled by itself
    ALONE = "alone"  # that cut, trained on the labels by itself
    SCRATCH = "scratch"  # fresh weights of that size, distilled by themselves


@dataclass(frozen=True)
class Metric:
    """A measure of quality. ``higher`` says which direction is better; None: neither."""

    name: str
    label: str
    higher: bool | None


@dataclass(frozen=True)
class Interval:
    """A value, and the ends of its 95 % interval where one was measured."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds of a forward: median and 95th percentile."""

    median: float | None = None
    p95: float | None = None


@dataclass
class Cost:
    """What a model costs to serve. latency: by batch. macs: of one example. None: not measured."""

    parameters: int | None = None
    bytes: int | None = None
    macs: int | None = None
    latency: dict[int, Timing] = field(default_factory=dict)
    peak_memory: int | None = None


@dataclass(frozen=True)
class Training:
    """What training took. items: in the report's unit. seconds: of one device."""

    steps: int | None = None
    examples: int | None = None
    items: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Parity:
    """How far a reloaded checkpoint's outputs are from those of the nested view."""

    exact: bool | None = None
    max_difference: float | None = None


@dataclass(frozen=True)
class Program:
    """A program beside a Student's checkpoint: the expression that loads it, and its parity."""

    loader: str
    parity: Parity


@dataclass(frozen=True)
class Searched:
    """What a search says of a Student: what loads it, its sizes in words, where it stands.

    trained: whether all its sizes were trained. chosen_by: its score on the examples that sizes
    are chosen by. guessed_latency: seconds, where latency was not measured.
    """

    loads: str = ""
    shown: str = ""
    trained: bool = True
    front: bool = True
    chosen_by: float | None = None
    guessed_latency: float | None = None


@dataclass
class ModelEntry:
    """One model of a report.

    of: the Student that a cut or a baseline is compared with. folder: below the output folder.
    loader: the expression that loads it. layers: those of the TA that it keeps. curve: (step,
    value of the first metric) during a baseline's training.
    """

    name: str
    role: Role
    width: float | None = None
    of: str | None = None
    folder: str | None = None
    loader: str = ""
    stock: bool = False
    parity: Parity | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    layers: list[int] | None = None
    programs: dict[str, Program] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    metrics: dict[str, Interval] = field(default_factory=dict)
    training: Training | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    searched: Searched | None = None

    def latency(self, batch: int) -> float | None:
        """The median seconds of a forward at a batch size; None where it was not measured."""
        timing = self.cost.latency.get(batch)
        return timing.median if timing is not None else None


@dataclass(frozen=True)
class Pair:
    """Two models on the same examples: what ``a`` gains over ``b`` in a metric.

    A gain above zero is better, whatever the metric's direction. low, high: its 95 % interval.
    margin: the loss that does not count. p_holm: p, corrected for the comparisons of a family.
    """

    a: str
    b: str
    metric: str
    gain: float
    low: float
    high: float
    margin: float
    verdict: str = ""
    p: float | None = None
    p_holm: float | None = None
    test: str = ""


@dataclass(frozen=True)
class AxisStrip:
    """An axis: its size at the base and in the TA, the importance of its units, what is kept.

    importance: means over parts of the axis, the most important first (of layers by number).
    kept: by Student.
    """

    name: str
    kind: str
    base: int
    ta: int
    step: int = 1
    layers: bool = False
    importance: list[float] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """The Student of a budget. limits and used (the share of each limit) by the cost's name."""

    budget: str
    limits: dict[str, float]
    used: dict[str, float]
    model: str
    stock: bool
    trained: bool


@dataclass(frozen=True)
class Machine:
    """What was measured on."""

    name: str = ""
    threads: int | None = None
    torch: str = ""


@dataclass(frozen=True)
class Run:
    """The run that made the Students: its steps, its seconds, its evaluations (step, by model)."""

    steps: int | None = None
    seconds: float | None = None
    curve: list[tuple[int, dict[str, float]]] = field(default_factory=list)


@dataclass
class Report:
    """All that an export, a search or a verdict has to say.

    metrics: the primary one first. costs and choices: of a search. searched: its numbers.
    """

    task: str = ""
    adapter: str = ""
    data: str = ""
    unit: str = ""
    matta: str = ""
    created: str = ""
    device: Machine = field(default_factory=Machine)
    metrics: list[Metric] = field(default_factory=list)
    batch_size: int | None = None
    models: list[ModelEntry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    run: Run | None = None
    axes: list[AxisStrip] = field(default_factory=list)
    margin: float | None = None
    pairs: list[Pair] = field(default_factory=list)
    costs: list[str] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    searched: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    recipe: str = ""

    @property
    def primary(self) -> Metric | None:
        """The metric that verdicts are about; None where nothing was measured."""
        return self.metrics[0] if self.metrics else None

    def of(self, *roles: Role) -> list[ModelEntry]:
        """The models of these roles, in the report's order."""
        return [model for model in self.models if model.role in roles]

    @property
    def students(self) -> list[ModelEntry]:
        """The Students, in the report's order."""
        return self.of(Role.STUDENT)

    def model(self, name: str) -> ModelEntry:
        """The model of that name. Raises ``KeyError`` where there is none."""
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(name)

    def pair(self, a: ModelEntry, b: ModelEntry, metric: Metric) -> Pair | None:
        """The comparison of two models on the same examples, if there is one."""
        wanted = (a.name, b.name, metric.name)
        return next((p for p in self.pairs if (p.a, p.b, p.metric) == wanted), None)

    # JSON

    def to_json(self) -> dict[str, Any]:
        """The report as ``report.json`` (or ``search.json``) has it; NaN becomes null."""
        value: dict[str, Any] = {
            "format": FORMAT,
            "created": self.created,
            "matta": self.matta,
            "task": self.task,
            "adapter": self.adapter,
            "data": self.data,
            "unit": self.unit,
            "device": vars(self.device),
            "metrics": [vars(metric) for metric in self.metrics],
            "batch_size": self.batch_size,
            "models": [_entry_to_json(model) for model in self.models],
            "notes": self.notes,
            "lineage": self.lineage,
            "recipe": self.recipe,
        }
        if self.run is not None:
            curve = [{"step": step, "values": values} for step, values in self.run.curve]
            value["training"] = {**vars(self.run), "curve": curve}
            value["axes"] = [vars(axis) for axis in self.axes]
        if self.margin is not None:
            value |= {"margin": self.margin, "pairs": [vars(pair) for pair in self.pairs]}
        if self.searched:
            choices = [vars(choice) for choice in self.choices]
            value |= {"costs": self.costs, "choices": choices, "search": self.searched}
        return plain(value)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Report:
        """The report that ``to_json`` made this of, in this version of matta or an older one."""
        ran = value.get("training")
        return cls(
            **{k: str(value.get(k) or "") for k in ("task", "adapter", "data", "unit", "matta")},
            created=str(value.get("created") or ""),
            device=_made(Machine, value.get("device")),
            metrics=[_metric(metric) for metric in value.get("metrics") or []],
            batch_size=value.get("batch_size"),
            models=[_entry_from_json(model) for model in value.get("models") or []],
            notes=[str(note) for note in value.get("notes") or []],
            run=None if ran is None else _run(ran),
            axes=[_made(AxisStrip, axis) for axis in value.get("axes") or []],
            margin=finite(value.get("margin")),
            pairs=[pair for found in value.get("pairs") or [] if (pair := _pair(found))],
            costs=list(value.get("costs") or []),
            choices=[_made(Choice, choice) for choice in value.get("choices") or []],
            searched=dict(value.get("search") or {}),
            lineage=dict(value.get("lineage") or {}),
            recipe=str(value.get("recipe") or ""),
        )


def plain(value: Any) -> Any:
    """What JSON can hold: a number that is NaN or infinite is null, and every key is text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def finite(value: Any) -> Any:
    """A number as it is; None where it is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def _made(cls: type, value: Mapping[str, Any] | None) -> Any:
    """An object of those of the values that are its fields."""
    known = cls.__dataclass_fields__  # type: ignore[attr-defined]
    return cls(**{name: item for name, item in (value or {}).items() if name in known})


def _numbers(cls: type, value: Mapping[str, Any] | None) -> Any:
    """The same, where all fields are numbers that may be missing."""
    return _made(cls, {name: finite(item) for name, item in (value or {}).items()})


def _metric(value: Mapping[str, Any]) -> Metric:
    name = str(value["name"])
    return Metric(name, str(value.get("label") or name), value.get("higher"))


def _pair(value: Mapping[str, Any]) -> Pair | None:
    numbers = (finite(value.get(name)) for name in ("gain", "low", "high", "margin"))
    return None if any(number is None for number in numbers) else _made(Pair, value)


def _run(value: Mapping[str, Any]) -> Run:
    curve = [(point["step"], dict(point["values"])) for point in value.get("curve") or []]
    return Run(finite(value.get("steps")), finite(value.get("seconds")), curve)


def _interval(value: Mapping[str, Any]) -> Interval | None:
    middle = finite(value.get("value"))
    ends = [end for end in (finite(value.get("low")), finite(value.get("high"))) if end is not None]
    if middle is None:
        return None
    return Interval(middle, *sorted(ends)) if len(ends) == 2 else Interval(middle)


def _parity(value: Mapping[str, Any] | None) -> Parity | None:
    return (
        None if value is None else Parity(value.get("exact"), finite(value.get("max_difference")))
    )


_OF_COST = ("parameters", "bytes", "macs", "peak_memory")


def _entry_to_json(model: ModelEntry) -> dict[str, Any]:
    value: dict[str, Any] = {
        "name": model.name,
        "role": model.role,
        "width": model.width,
        "folder": model.folder,
        "loader": model.loader,
        "stock": model.stock,
        "parity": None if model.parity is None else vars(model.parity),
        **{name: getattr(model.cost, name) for name in _OF_COST},
        "latency": {str(n): _timing_to_json(t) for n, t in model.cost.latency.items()},
        "metrics": {name: vars(interval) for name, interval in model.metrics.items()},
    }
    if model.of is not None:
        value["of"] = model.of
    if model.role is Role.STUDENT:
        programs = {n: {"loader": p.loader, **vars(p.parity)} for n, p in model.programs.items()}
        value |= {"sizes": model.sizes, "layers": model.layers, "programs": programs}
    if model.training is not None:
        value["training"] = vars(model.training)
    if model.curve:
        value["curve"] = model.curve
    if model.searched is not None:
        value |= vars(model.searched)
    return value


def _timing_to_json(timing: Timing) -> dict[str, float | None]:
    return {name: value for name, value in vars(timing).items() if value is not None}


def _entry_from_json(value: Mapping[str, Any]) -> ModelEntry:
    role = Role(value.get("role") or Role.STUDENT)
    latency = {int(n): _numbers(Timing, t) for n, t in (value.get("latency") or {}).items()}
    programs = value.get("programs") or {}
    metrics = {name: _interval(found or {}) for name, found in (value.get("metrics") or {}).items()}
    training = value.get("training")
    cost = Cost(latency=latency, **{name: finite(value.get(name)) for name in _OF_COST})
    return ModelEntry(
        name=str(value.get("name") or role.value),
        role=role,
        width=finite(value.get("width")),
        of=value.get("of"),
        folder=value.get("folder"),
        loader=str(value.get("loader") or ""),
        stock=bool(value.get("stock")),
        parity=_parity(value.get("parity")),
        sizes=dict(value.get("sizes") or {}),
        layers=value.get("layers"),
        programs={
            n: Program(str(p.get("loader") or ""), _parity(p) or Parity())
            for n, p in programs.items()
        },
        cost=cost,
        metrics={name: found for name, found in metrics.items() if found is not None},
        training=None if training is None else _numbers(Training, training),
        curve=[(step, number) for step, number in value.get("curve") or []],
        searched=_made(Searched, value) if "front" in value else None,
    )


def scored(models: Iterable[ModelEntry], metric: Metric) -> list[tuple[ModelEntry, Interval]]:
    """The models that have a value of a metric, with it."""
    return [(m, m.metrics[metric.name]) for m in models if metric.name in m.metrics]
