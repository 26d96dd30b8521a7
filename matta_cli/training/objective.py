"""One training step: the objective of the recipe (MatTA, arXiv 2505.23337)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from matta_cli.data.split import Batch
from matta_cli.devices.device import precision, products, scaler
from matta_cli.devices.processes import Unit, shard_layers
from matta_cli.errors import MattaError
from matta_cli.losses.targets import Logits, Target, Term
from matta_cli.measure import cost
from matta_cli.models.ta import TA
from matta_cli.nested.exits import Exits, Group
from matta_cli.nested.view import repeated_blocks
from matta_cli.settings.recipe import DistillSettings
from matta_cli.tasks.task import Task
from matta_cli.training.rows import WHOLE, Piece, Rows
from matta_cli.training.teacher import ModelTeacher, Teacher, asks_teacher, head, is_product

# Bytes of one model's logits up to which nothing is gained by making them piece by piece.
_SMALL = 1 << 26

# Bytes of the Teacher's logits, and of the TA's, that are kept for the Students of a step rather
# than made again for each: on CUDA, where a large vocabulary trains, a few per cent of what
# training holds anyway.
_KEPT = {"cuda": 1 << 30}

Values = dict[str, dict[str, Tensor]]  # model -> term -> value


class Step:
    """The gradients of a step as the recipe has it; holds the views of the widths that it trains.

    L = mean over rows of l, of the model that the row goes through: ta_weight l(TA), or
    l(S) + b(t) KD(TA -> S), where l = (1 - teacher_mix) ground truth + teacher_mix
    KD(Teacher -> .), KD alone where there is no ground truth, and b(t) ramps up from zero. With
    ``rows = "all"`` every row goes through all models, and Students count by their mean. The TA's
    logits are a constant as a source, so each model is backpropagated as soon as its loss is known
    and its graph freed. Logits over a large vocabulary never stand whole in memory.
    """

    def __init__(
        self,
        settings: DistillSettings,
        task: Task,
        ta: TA,
        teacher: Teacher | None,
        batch: Batch,
        device: torch.device,
        rows: Rows | None = None,
    ) -> None:
        """batch: the first one, on ``device``, which tells how large logits are; not trained on.

        rows: which go through which models; none: as the settings say. Raises ``MattaError`` where
        the settings ask for what these models do not have.
        """
        self.settings, self.task, self.ta = settings, task, ta
        self.teacher, self.device = teacher, device
        self.rows = rows or Rows(settings, ta)
        self.asks = teacher is not None and asks_teacher(settings, task)
        self.mix = settings.teacher_mix if task.labelled else 1.0
        self.scaler = scaler(settings.precision, device)
        # what runs the TA's models, if it is sharded
        self.unit: Callable[[Callable[[], Any]], Any] = lambda call: call()
        # of every loss, where gradients are averaged over processes rather than summed
        self.scale = 1.0
        one = {name: tensor[:1] for name, tensor in batch.items()}
        large = task.positions(batch) * task.outputs(ta.model) * 4 > _SMALL
        name = self._head(one, large)
        self.chunked = bool(name)
        if self.chunked and isinstance(teacher, ModelTeacher):
            with precision(settings.precision, device):  # as it is called: its weights may be half
                teacher.split_head(one)
        self.models = self._views(name)
        self.exits = {group[0]: self._exits(group, self.models) for group in self.rows.groups}

    def _head(self, one: Batch, large: bool) -> str:
        """The name of the output layer that models are cut off at; empty where logits stay whole.

        one: a batch of one example. large: whether logits are so large that cutting pays.
        """
        settings, ta = self.settings, self.ta
        chunked = settings.logits == "chunked"
        if not chunked and not (large and settings.logits == "auto"):
            return ""
        name = "" if ta.copies else head(ta.model)
        if name:
            view = ta.student(ta.widest).view(head=name).eval()
            training = ta.model.training
            whole = ta.model.eval()
            name = name if is_product(self.task, whole, view, view.output(), one) else ""
            ta.model.train(training)
        if chunked and not name:
            why = "the model's outputs are not those of one last linear layer"
            raise MattaError(f"distill.logits = 'chunked' is not supported here: {why}.")
        return name

    def _views(self, name: str) -> dict[str, Any]:
        """The models that a step runs, cut off at the layer ``name`` if there is one."""
        settings, ta = self.settings, self.ta
        models = {WHOLE: ta.student(ta.widest).view(head=name)}
        for own, width in self.rows.students.items():
            models[own] = ta.student(width).view(head=name)
        if settings.compile:
            # of one code object, which the views of all steps of a process share: beyond it they
            # would run eagerly
            torch._dynamo.config.recompile_limit += 2 * len(models)
        shallower = {name for group in self.rows.groups for name in group[1:]}
        for own, view in models.items():
            if not settings.dropout:
                view.without_dropout()
            if settings.checkpoint_activations and own not in shallower:
                view.recompute()
            if settings.compile and own not in shallower:
                view.compile(backend=settings.compile)
        return models

    def shard(self, processes: int) -> None:
        """Shard the TA and a Teacher that is a model over the processes."""
        self.unit, self.scale = Unit(self.ta.model, self.device), float(processes)
        if isinstance(self.teacher, ModelTeacher):
            body = self.teacher.body
            shard_layers(body, repeated_blocks(body), self.device)

    def _exits(self, group: Group, models: Mapping[str, Any]) -> Exits | None:
        """What lets the others of a group run from the layers of the deepest one on."""
        deepest, *others = group
        if not others:
            return None
        return Exits(self.ta.axes, models[deepest], {name: models[name] for name in others})

    def warm_up(self, parts: Sequence[tuple[Batch, Piece]], over: dict[str, float]) -> int:
        """Take a step, to be forgotten, so that training itself compiles no graph.

        parts: of a step, on the device. over: its ``Task.counts``. Returns how many graphs there
        are.
        """
        for step in (0, self.settings.steps):  # without the TA -> Student term, and with it
            for batch, piece in parts:
                self(batch, piece, step, over)
        for parameter in self.ta.model.parameters():
            parameter.grad = None
        return self.graphs()

    @staticmethod
    def graphs() -> int:
        """Graphs that torch.compile has made in this process."""
        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    @property
    def teaches(self) -> bool:
        """Whether the Students follow the TA."""
        return self.settings.ta_student_weight > 0

    def flops(self, batch: Batch) -> float:
        """Floating-point operations of a step for each example of ``batch``, in matrix products.

        A backward pass is two forward ones. What is computed twice to save memory counts once.
        """
        task, ta = self.task, self.ta
        one = {name: tensor[:1] for name, tensor in batch.items()}
        training, divided = ta.model.training, self.settings.rows == "divided"
        total, taught = 0.0, 0.0  # the latter: rows of Students that do not go through the TA
        asked = 0.0  # rows that go through the Teacher
        for group, share in zip(self.rows.groups, self.rows.shares, strict=True):
            total += 3 * (share if divided else 1.0) * self._macs(group, one)
            taught += share * (WHOLE not in group)
            asked = asked + share * self._asks(group) if divided else max(asked, self._asks(group))
        if self.teaches and (divided or not self.settings.ta_weight):
            total += (taught if divided else 1.0) * cost.macs(
                task, ta.student(ta.widest).view(), one
            )
        ta.model.train(training)
        teacher = self.teacher
        if isinstance(teacher, ModelTeacher):
            with precision(self.settings.precision, self.device):
                total += asked * cost.macs(task, teacher.model, one)
        return 2.0 * total

    def _asks(self, names: Sequence[str]) -> bool:
        """Whether any of these models follows the Teacher."""
        return self.asks and (WHOLE in names or self.settings.students_learn_from != "ta")

    def _macs(self, group: Group, one: Batch) -> int:
        """Multiply-accumulates of one forward of a group."""
        widths = {n: self.ta.widest if n == WHOLE else float(n) for n in group}
        models = {n: self.ta.student(width).view() for n, width in widths.items()}
        exits, total = self._exits(group, models), 0
        for name, model in models.items():
            if exits is not None and name != group[0]:
                exits.enter(name)
            total += cost.macs(self.task, model, one)
        return total

    def ramp(self, step: int) -> float:
        """b(t), the weight of the TA -> Student term at a step."""
        length = self.settings.ramp * self.settings.steps
        return self.settings.ta_student_weight * (min(1.0, step / length) if length > 0 else 1.0)

    def __call__(
        self, batch: Batch, piece: Piece, step: int, over: dict[str, float] | None = None
    ) -> Values:
        """Add the gradients of a batch to the TA's parameters.

        piece: the numbers of the batch's examples, and the models that they go through. over: the
        ``Task.counts`` of the whole step, where the batch is a part of it. Returns every term by
        model, as detached scalars, which are sums over ``over``.
        """
        # of the backward passes, which autocast is not for
        with products(self.settings.precision, self.device):
            return self._gradients(batch, piece, step, over or self.task.counts(batch))

    def _gradients(self, batch: Batch, piece: Piece, step: int, over: dict[str, float]) -> Values:
        settings, weight = self.settings, self.ramp(step)
        names = [name for group in piece.groups for name in group]
        trains, teaches = WHOLE in names, weight > 0 and names != [WHOLE]
        with precision(settings.precision, self.device):
            teacher = self.teacher if self._asks(names) else None
            taught = None if teacher is None else teacher(batch, piece.rows)
            whole = None  # the TA runs only where it learns or teaches
            if trains or teaches:
                with torch.set_grad_enabled(trains):
                    whole = self._logits(WHOLE, batch)
            if self.chunked:
                size = _KEPT.get(self.device.type, 0)
                whole = whole.keep(size) if whole is not None and teaches else whole
                taught = taught.keep(size) if isinstance(taught, Logits) else taught
        source = whole.detach() if whole is not None and teaches else None
        values: Values = {}
        for group in piece.groups:
            sources = taught, source, weight
            values |= self._learn_group(group, whole, batch, piece.among, sources, over)
        return {name: values[name] for name in self.models if name in values}

    def _learn_group(
        self,
        group: Group,
        whole: Logits | None,
        batch: Batch,
        among: Mapping[str, float],
        sources: tuple[Target | None, Logits | None, float],
        over: dict[str, float],
    ) -> Values:
        """Backpropagate the losses of models that share a forward, the deepest one's last.

        whole: the TA's logits, where it has run already. sources: what the Teacher says, what the
        TA says, and the weight of the latter.
        """
        taught, source, weight = sources
        deepest, exits = group[0], self.exits[group[0]]
        with precision(self.settings.precision, self.device):
            first = whole if deepest == WHOLE else self._logits(deepest, batch)
        assert first is not None
        values: Values = {}
        for name in (*group[1:], deepest):
            logits, also = first, []
            if name != deepest and exits is not None:
                exits.enter(name)
                with precision(self.settings.precision, self.device):
                    logits = self._logits(name, batch)
            elif exits is not None:
                also = exits.leave()
            terms = self._own(name, among[name], taught)
            if source is not None and name != WHOLE:
                terms.append(Term("ta", weight / among[name], source))
            values[name] = self._learn(logits, batch, terms, over, also)
        return values

    def _logits(self, name: str, batch: Batch) -> Logits:
        model = self.models[name]
        model.train()

        def run() -> tuple[Tensor | None, ...]:
            out = self.task.forward(model, batch)
            return (out, *model.output()) if self.chunked else (out,)

        return Logits(*self.unit(run))

    def _own(self, name: str, among: float, taught: Target | None) -> list[Term]:
        """The terms of a model's own l(., y, T), their weight divided by ``among``."""
        settings, mix, terms = self.settings, self.mix, []
        weight = (settings.ta_weight if name == WHOLE else 1.0) / among
        if mix < 1:
            terms.append(Term("truth", weight * (1 - mix)))
        if mix > 0 and (name == WHOLE or settings.students_learn_from != "ta"):
            terms.append(Term("teacher", weight * mix, taught))
        return terms

    def _learn(
        self,
        logits: Logits,
        batch: Batch,
        terms: list[Term],
        over: dict[str, float],
        also: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> dict[str, Tensor]:
        """Backpropagate one model's terms. also: tensors of its graph with gradients of others.

        Returns them, and ``loss``: l(., y, T) without weights from outside.
        """
        with precision(self.settings.precision, self.device):
            total, values = self.task.objective(logits, batch, terms, over)
        roots = [self.scaler.scale(total * self.scale), *(tensor for tensor, _ in also)]
        torch.autograd.backward(roots, [None, *(gradient for _, gradient in also)])
        return {**values, "loss": self.loss(values, torch.zeros_like(total.detach()))}

    def loss(self, terms: Mapping[str, Any], zero: Any = 0.0) -> Any:
        """l(., y, T) of a model's terms, without weights from outside."""
        shares = {"truth": 1 - self.mix, "teacher": self.mix}
        return sum((shares[name] * terms[name] for name in terms if name in shares), zero)
