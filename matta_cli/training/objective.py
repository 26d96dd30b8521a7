"""One training step: the objective of the recipe (MatTA, arXiv 2505.23337)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matta_cli.data import sampling
from matta_cli.data.split import Batch
from matta_cli.devices.device import precision, products, scaler
from matta_cli.devices.processes import Unit, shard_layers
from matta_cli.errors import MattaError
from matta_cli.losses.targets import Logits, Target, Term
from matta_cli.measure import cost
from matta_cli.models.ta import TA
from matta_cli.nested.view import repeated_blocks
from matta_cli.settings.recipe import DistillSettings
from matta_cli.tasks.task import Task
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

    L = ta_weight l(TA) + mean over Students [student_weight l(S) + b(t) KD(TA -> S)], where
    l = (1 - teacher_mix) ground truth + teacher_mix KD(Teacher -> .), KD alone where there is no
    ground truth, and b(t) ramps up from zero. The TA's logits are detached as a source (unless the
    recipe says otherwise), so each model is backpropagated as soon as its loss is known and its
    graph freed. Logits over a large vocabulary never stand whole in memory.
    """

    def __init__(
        self,
        settings: DistillSettings,
        task: Task,
        ta: TA,
        teacher: Teacher | None,
        batch: Batch,
        device: torch.device,
    ) -> None:
        """batch: the first one, on ``device``, which tells how large logits are; not trained on.

        Raises ``MattaError`` where the settings ask for what these models do not have.
        """
        self.settings, self.task, self.ta = settings, task, ta
        self.teacher, self.device = teacher, device
        self.asks = teacher is not None and asks_teacher(settings, task)
        self.mix = settings.teacher_mix if task.labelled else 1.0
        self.scaler = scaler(settings.precision, device)
        # what runs the TA's models, if it is sharded
        self.unit: Callable[[Callable[[], Any]], Any] = lambda call: call()
        # of every loss, where gradients are averaged over processes rather than summed
        self.scale = 1.0
        one = {name: tensor[:1] for name, tensor in batch.items()}
        large = task.counts(batch)["outputs"] * task.outputs(ta.model) * 4 > _SMALL
        name = self._head(one, large)
        self.chunked = bool(name)
        if self.chunked and isinstance(teacher, ModelTeacher):
            teacher.split_head(one)
        self.models = self._views(name)
        self.projection = self._projection() if settings.hidden_weight > 0 else None

    def _head(self, one: Batch, large: bool) -> str:
        """The name of the output layer that models are cut off at; empty where logits stay whole.

        one: a batch of one example. large: whether logits are so large that cutting pays.
        """
        settings, ta = self.settings, self.ta
        setting = "distill.hidden_weight" if settings.hidden_weight > 0 else ""
        setting = "distill.logits = 'chunked'" if settings.logits == "chunked" else setting
        if not setting and not (large and settings.logits == "auto"):
            return ""
        name = "" if ta.copies else head(ta.model)
        if name:
            view, training = ta.at(ta.widest, head=name).eval(), ta.model.training
            whole = ta.model.eval()
            name = name if is_product(self.task, whole, view, view.output(), one) else ""
            ta.model.train(training)
        if setting and not name:
            why = "the model's outputs are not those of one last linear layer"
            raise MattaError(f"{setting} is not supported here: {why}.")
        return name

    def _views(self, name: str) -> dict[str, Any]:
        """The models that a step runs, cut off at the layer ``name`` if there is one."""
        settings, ta = self.settings, self.ta
        models = {"TA": ta.at(ta.widest, head=name, live=True)}
        models |= {f"{width:g}": ta.at(width, head=name) for width in settings.widths}
        if settings.ta_width and settings.ta_width != ta.widest:
            models["teaching"] = ta.at(settings.ta_width, head=name)
        if settings.compile:
            # of one code object, which the views of all steps of a process share: beyond it they
            # would run eagerly
            torch._dynamo.config.recompile_limit += 2 * len(models)
        for view in models.values():
            if not settings.dropout:
                view.without_dropout()
            if settings.checkpoint_activations:
                view.recompute()
            if settings.compile:
                view.compile(backend=settings.compile)
        return models

    def _projection(self) -> nn.Linear:
        """The map from the TA's last hidden states to the Teacher's, which is learned."""
        teacher = self.teacher
        if not isinstance(teacher, ModelTeacher) or teacher.output is None:
            needed = "a Teacher that is a model with a last linear layer"
            raise MattaError(f"distill.hidden_weight needs {needed}.")
        theirs, ours = teacher.output[0].shape[1], self.models["TA"].output()[0].shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            return nn.Linear(ours, theirs, bias=False).to(self.device)

    def shard(self, processes: int) -> None:
        """Shard the TA and a Teacher that is a model over the processes."""
        self.unit, self.scale = Unit(self.ta.model, self.device), float(processes)
        if isinstance(self.teacher, ModelTeacher):
            body = self.teacher.body
            shard_layers(body, repeated_blocks(body), self.device)

    def warm_up(self, batch: Batch) -> int:
        """Compile every model's graph on ``batch``, so that training compiles none.

        Returns how many there are.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self.ta.model.buffers()]
        for name in self.models:
            with precision(self.settings.precision, self.device):
                self._logits(name, batch).hidden.float().sum().backward()
        for parameter in self.ta.model.parameters():
            parameter.grad = None
        for buffer, before in buffers:
            buffer.copy_(before)
        return self.graphs()

    @staticmethod
    def graphs() -> int:
        """Graphs that torch.compile has made in this process."""
        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    def flops(self, batch: Batch) -> float:
        """Floating-point operations of a step for each example of ``batch``, in matrix products.

        A backward pass is two forward ones. What is computed twice to save memory counts once.
        """
        task, ta, one = self.task, self.ta, {name: tensor[:1] for name, tensor in batch.items()}
        macs = {width: cost.macs(task, ta.at(width), one) for width in self.settings.widths}
        trained = sum(macs[width] for step in range(100) for width in self.widths(step)) / 100
        if self.settings.ta_weight > 0:
            training = ta.model.training
            trained += cost.macs(task, ta.model, one)
            ta.model.train(training)
        teacher = self.teacher
        taught = cost.macs(task, teacher.model, one) if isinstance(teacher, ModelTeacher) else 0
        return 2.0 * (taught + 3 * trained)

    def ramp(self, step: int) -> float:
        """b(t), the weight of the TA -> Student term at a step."""
        if self.settings.students_learn_from == "teacher":
            return 0.0
        length = self.settings.ramp * self.settings.steps
        return self.settings.ta_student_weight * (min(1.0, step / length) if length > 0 else 1.0)

    def widths(self, step: int) -> list[float]:
        """The Students of a step. One as wide as the TA is the TA, which is trained already."""
        s = self.settings
        drawn = sampling.students(s.seed, step, s.widths, s.students_per_step, s.sampling)
        if self.ta.copies or s.ta_weight == 0:
            return drawn
        return [width for width in drawn if width < self.ta.widest] or drawn

    def __call__(
        self, batch: Batch, rows: list[int], step: int, over: dict[str, float] | None = None
    ) -> Values:
        """Add the gradients of a batch to the TA's parameters.

        rows: the numbers of the batch's examples. over: the ``Task.counts`` of the whole step,
        where the batch is a part of it. Returns every term by model, as detached scalars.
        """
        # of the backward passes, which autocast is not for
        with products(self.settings.precision, self.device):
            return self._gradients(batch, rows, step, over or self.task.counts(batch))

    def _gradients(
        self, batch: Batch, rows: list[int], step: int, over: dict[str, float]
    ) -> Values:
        settings, weight = self.settings, self.ramp(step)
        trains, detach = settings.ta_weight > 0, settings.detach_ta
        teaches = weight > 0 and "teaching" not in self.models
        with precision(settings.precision, self.device):
            taught = self.teacher(batch, rows) if self.asks and self.teacher is not None else None
            given = None  # the TA runs only where it learns or teaches
            if trains or teaches:
                with torch.set_grad_enabled(trains or not detach):
                    given = self._logits("TA", batch)
            leaf = given
            if given is not None and not detach:
                # what reaches it from here and from the Students goes through the TA in one pass
                leaf = Logits(given.hidden.detach().requires_grad_(), given.weight, given.bias)
            if self.chunked:
                size = _KEPT.get(self.device.type, 0)
                leaf = leaf.keep(size) if leaf is not None and teaches else leaf
                taught = taught.keep(size) if isinstance(taught, Logits) else taught
        values: Values = {}
        if trains:
            assert leaf is not None
            terms = self._own(settings.ta_weight, taught)
            values["TA"] = self._learn(leaf, batch, terms, taught, over)
        source = leaf.detach() if leaf is not None and detach else leaf
        if weight > 0 and not teaches:
            with torch.no_grad(), precision(settings.precision, self.device):
                source = self._logits("teaching", batch)
        widths = self.widths(step)
        for width in widths:
            terms = self._own(settings.student_weight / len(widths), taught, student=True)
            if weight > 0:
                terms.append(Term("ta", weight / len(widths), source))
            with precision(settings.precision, self.device):
                logits = self._logits(f"{width:g}", batch)
            values[f"{width:g}"] = self._learn(logits, batch, terms, taught, over)
        if not detach and given is not None and leaf is not None and leaf.hidden.grad is not None:
            given.hidden.backward(leaf.hidden.grad)
        return values

    def _logits(self, name: str, batch: Batch) -> Logits:
        model = self.models[name]
        model.train()

        def run() -> tuple[Tensor | None, ...]:
            out = self.task.forward(model, batch)
            return (out, *model.output()) if self.chunked else (out,)

        return Logits(*self.unit(run))

    def _own(self, weight: float, taught: Target | None, *, student: bool = False) -> list[Term]:
        """The terms of ``weight`` x l(., y, T)."""
        mix, terms = self.mix, []
        if mix < 1:
            terms.append(Term("truth", weight * (1 - mix)))
        if mix > 0 and not (student and self.settings.students_learn_from == "ta"):
            terms.append(Term("teacher", weight * mix, taught))
        return terms

    def _learn(
        self,
        logits: Logits,
        batch: Batch,
        terms: list[Term],
        taught: Target | None,
        over: dict[str, float],
    ) -> dict[str, Tensor]:
        """Backpropagate one model's terms.

        Returns them, and ``loss``: l(., y, T) without weights from outside.
        """
        weight = self.settings.hidden_weight
        with precision(self.settings.precision, self.device):
            total, values = self.task.objective(logits, batch, terms, over)
            if weight > 0:
                share = self.task.counts(batch)["outputs"] / over["outputs"]
                gap = self._hidden(logits, taught) * share
                own = sum(term.weight for term in terms if term.name != "ta") or 1.0
                total = total + weight * own * gap
                values["hidden"] = gap.detach()
        self.scaler.scale(total * self.scale).backward()
        shares = {"truth": 1 - self.mix, "teacher": self.mix}
        parts = (shares[name] * value for name, value in values.items() if name in shares)
        return {**values, "loss": sum(parts, torch.zeros_like(total.detach()))}

    def _hidden(self, logits: Logits, taught: Target | None) -> Tensor:
        """Squared distance of the projected last hidden states from the Teacher's.

        It is relative to the Teacher's size.
        """
        assert self.projection is not None and isinstance(taught, Logits)
        own, theirs = logits.hidden.float(), taught.hidden.float()
        projected = F.linear(own, self.projection.weight[:, : own.shape[-1]])
        return (projected - theirs).square().mean() / theirs.square().mean().clamp(min=1e-12)
