"""A report as data: ``report.json`` and ``search.json``, those of an older matta, too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from typing import Any

from matta_cli.report.numbers import finite, plain
from matta_cli.report.stored import Stored
from matta_cli.report.verdicts import judged

FORMAT = 1


class Role(str, Enum):
    """What a model is in a report."""

    TEACHER = "teacher"
    TA = "ta"
    BASE = "base"
    STUDENT = "student"
    QUANTIZED = "quantized"  # a Student, in fewer bits
    CUT = "cut"  # a Student's size, cut out of the TA as it was converted
    PLAIN = "plain"  # that cut, distilled by itself
    ALONE = "alone"  # that cut, trained on the labels by itself
    SCRATCH = "scratch"  # fresh weights of that size, distilled by themselves


@dataclass(frozen=True)
class Metric(Stored):
    """A measure of quality. ``higher`` says which direction is better; None: neither."""

    name: str
    label: str
    higher: bool | None = None

    @property
    def way(self) -> str:
        """An arrow in the direction that is better."""
        return {True: " ↑", False: " ↓", None: ""}[self.higher]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Metric:
        return super().from_json({**value, "label": value.get("label") or value.get("name")})


@dataclass(frozen=True)
class Interval(Stored):
    """A value, and the ends of its 95 % interval where one was measured."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Timing(Stored):
    """Seconds: median and 95th percentile."""

    median: float | None = None
    p95: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_json().items() if value is not None}


@dataclass(frozen=True)
class Generation(Stored):
    """How generating was timed: tokens of the prompt, and tokens that were generated after it."""

    prompt: int
    new: int


@dataclass
class Cost(Stored):
    """What a model costs to serve. macs: of one example, of so many tokens. None: not measured.

    By batch, latency: of a forward. Of a language model, prefill: until the first token; decode:
    for each token after it.
    """

    parameters: int | None = None
    bytes: int | None = None
    macs: int | None = None
    tokens: int | None = None
    latency: dict[int, Timing] = field(default_factory=dict)
    prefill: dict[int, Timing] = field(default_factory=dict)
    decode: dict[int, Timing] = field(default_factory=dict)
    peak_memory: int | None = None


@dataclass(frozen=True)
class Training(Stored):
    """What training took. items: in the report's unit. seconds: of one device."""

    steps: int | None = None
    examples: int | None = None
    items: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Parity(Stored):
    """How far a reloaded checkpoint's outputs are from those of the nested view.

    They are compared in float32, with weights rounded to what is saved: dtype. rounded: in half the
    bits, how far it is then from the view in float32, as a share of the largest output, or None.
    """

    exact: bool | None = None
    max_difference: float | None = None
    dtype: str = "float32"
    rounded: float | None = None


@dataclass(frozen=True)
class Program(Stored):
    """A program beside a Student's checkpoint: the expression that loads it, and its parity."""

    loader: str
    parity: Parity

    def to_json(self) -> dict[str, Any]:
        return {"loader": self.loader, **self.parity.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Program:
        return super().from_json({"parity": value, **value})


@dataclass(frozen=True)
class Searched(Stored):
    """What a search says of a Student: what loads it, its sizes in words, where it stands.

    trained: whether all its sizes were trained. chosen_by: its score where sizes are chosen.
    command: what exports it.
    """

    loads: str = ""
    shown: str = ""
    trained: bool = True
    front: bool = True
    chosen_by: float | None = None
    command: str = ""


@dataclass
class ModelEntry(Stored):
    """One model of a report.

    of: the Student that it is compared with, of a cut, a baseline or one in fewer bits. quantized:
    in which, such as int8. folder: below the output folder. loader: the expression that loads it.
    layers: those of the TA that it keeps. curve: (step, value of the first metric) of a baseline.
    """

    name: str
    role: Role = Role.STUDENT
    width: float | None = None
    of: str | None = None
    quantized: str = ""
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

    def timing(self, batch: int, of: str = "latency") -> Timing:
        """The seconds of a forward at a batch size, or of ``prefill`` or ``decode``, if known."""
        times: dict[int, Timing] = getattr(self.cost, of)
        return times.get(batch, Timing())

    def latency(self, batch: int, of: str = "latency") -> float | None:
        """The median seconds at a batch size; None where they were not measured."""
        return self.timing(batch, of).median

    def measured(self, metric: Metric) -> Interval | None:
        """Its value of a metric if there is one; with both ends of its interval, or none."""
        known = self.metrics.get(metric.name)
        if known is None or not finite(known.value):
            return None
        ends = finite(known.low) and finite(known.high)
        return known if ends else Interval(known.value)

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for name, item in super().to_json().items():
            value |= (item or {}) if name in ("cost", "searched") else {name: item}
        some = ("of", "quantized", "training", "curve", "prefill", "decode", "tokens", "command")
        dropped = {name for name in some if not value.get(name)}
        if self.role is not Role.STUDENT:
            dropped |= {"sizes", "layers", "programs"}
        if self.searched:  # of a search, which writes no programs and does not measure memory
            dropped |= {"programs", "peak_memory"}
        return {name: item for name, item in value.items() if name not in dropped}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelEntry:
        own = {"cost": value, "searched": value if "front" in value else None}
        return super().from_json({**value, **own})


@dataclass(frozen=True)
class Pair(Stored):
    """Two models on the same examples: what ``a`` gains over ``b`` in a metric.

    A gain above zero is better, whatever the metric's direction. low, high: its 95 % interval.
    margin: the loss that does not count. p_holm: p, corrected for the comparisons of a family.
    examples: how many they were. The verdict is made of these numbers, whatever a file says.
    """

    a: str
    b: str
    metric: str
    gain: float
    low: float
    high: float
    margin: float
    p: float | None = None
    p_holm: float | None = None
    test: str = ""
    examples: int | None = None

    @property
    def verdict(self) -> str:
        """What may be said of ``a`` against ``b``: one of ``VERDICTS``."""
        return judged(self.low, self.high, self.margin, self.p, self.examples)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "verdict": self.verdict}


@dataclass(frozen=True)
class AxisStrip(Stored):
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
class Choice(Stored):
    """The Student of a budget, in float or ``quantized``. limits, used (shares) by name."""

    budget: str
    limits: dict[str, float]
    used: dict[str, float]
    model: str
    stock: bool
    trained: bool
    quantized: str = ""


@dataclass(frozen=True)
class Machine(Stored):
    """What was measured on."""

    name: str = ""
    threads: int | None = None
    torch: str = ""


@dataclass(frozen=True)
class Run(Stored):
    """The run that made the Students: its steps, its seconds, its evaluations (step, by model)."""

    steps: int | None = None
    seconds: float | None = None
    curve: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        curve = [{"step": step, "values": plain(values)} for step, values in self.curve]
        return {**super().to_json(), "curve": curve}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Run:
        curve = [(p.get("step"), p.get("values") or {}) for p in value.get("curve") or []]
        return super().from_json({**value, "curve": curve})


def now() -> str:
    """The time in UTC, as reports have it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Report(Stored):
    """All that an export, a search or a verdict has to say.

    metrics: the primary one first. generation: of models timed generating. margin: what share of a
    value may be lost. costs, choices: of a search; searched: its numbers.
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
    generation: Generation | None = None
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

    @property
    def timed(self) -> str:
        """What a model's speed is here: ``decode`` where models generated, else ``latency``."""
        return "decode" if self.generation else "latency"

    def of(self, *roles: Role) -> list[ModelEntry]:
        """The models of these roles, in the report's order."""
        return [model for model in self.models if model.role in roles]

    def by_size(self, *roles: Role) -> list[ModelEntry]:
        """The models of these roles whose parameters are known, the smallest first."""
        sized = [model for model in self.of(*(roles or Role)) if model.cost.parameters is not None]
        return sorted(sized, key=lambda model: model.cost.parameters or 0)

    def scored(self, metric: Metric, *roles: Role) -> list[ModelEntry]:
        """Those of them that have a value of a metric."""
        return [model for model in self.by_size(*roles) if model.measured(metric)]

    @property
    def students(self) -> list[ModelEntry]:
        """The Students, in the report's order."""
        return self.of(Role.STUDENT)

    @property
    def base(self) -> ModelEntry | None:
        """The user's model, if it was measured."""
        return next(iter(self.of(Role.BASE)), None)

    def model(self, name: str) -> ModelEntry:
        """The model of that name. Raises ``KeyError`` where there is none."""
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(name)

    def pair(self, a: ModelEntry, b: ModelEntry, metric: Metric) -> Pair | None:
        """The comparison of two models on the same examples, if there is one with numbers."""
        wanted = (a.name, b.name, metric.name)
        for pair in self.pairs:
            if (pair.a, pair.b, pair.metric) == wanted:
                numbers = (pair.gain, pair.low, pair.high, pair.margin)
                return pair if all(map(math.isfinite, numbers)) else None
        return None

    def to_json(self) -> dict[str, Any]:
        names = {"run": "training", "searched": "search"}
        value = {names.get(name, name): item for name, item in super().to_json().items()}
        dropped = {"training", "axes"} if self.run is None else set()
        dropped |= {"generation"} if self.generation is None else set()
        dropped |= {"margin", "pairs"} if self.margin is None else set()
        dropped |= set() if self.searched else {"costs", "choices", "search"}
        kept = {name: item for name, item in value.items() if name not in dropped}
        return {"format": FORMAT, **kept}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Report:
        named = {"run": value.get("training"), "searched": value.get("search")}
        return super().from_json({**value, **named})
