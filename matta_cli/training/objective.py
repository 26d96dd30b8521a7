"""One training step: the objective of the recipe, Teacher -> TA -> Students (MatTA, arXiv
2505.23337).
"""

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
from matta_cli.nested.view import StudentView, repeated_blocks
from matta_cli.settings.recipe import Recipe
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

    L = ta_weight l(TA) + mean over Students [student_weight l(S) + b(t) KD(TA -> S)], where l = (1
    - teacher_mix) ground truth + teacher_mix KD(Teacher -> .), KD alone where there is no ground
    truth, and b(t) ramps up from zero. The TA's logits are detached as a source (unless the recipe
    says otherwise), so each model is backpropagated as soon as its loss is known and its graph
    freed. Logits over a large vocabulary never stand whole in memory.
    """

    def __init__(
        self, recipe: Recipe, task: Task, ta: TA, teacher: Teacher | None, device: torch.device
    ) -> None:
        self.settings, self.task, self.ta, self.teacher, self.device = (
            recipe.distill,
            task,
            ta,
            teacher,
            device,
        )
        self.mix = recipe.distill.teacher_mix if task.labelled else 1.0
        self.scaler = scaler(recipe.distill.precision, device)
        self.models: dict[str, Any] = {}
        self.chunked = False
        self.projection: nn.Linear | None = None
        # what runs the TA's models, if it is sharded
        self.unit: Callable[[Callable[[], Any]], Any] = lambda call: call()
        # of every loss, where gradients are averaged over processes rather than summed
        self.scale = 1.0

    def shard(self, processes: int) -> None:
        """Shard the TA and a Teacher that is a model over the processes."""
        self.unit, self.scale = Unit(self.ta.model, self.device), float(processes)
        if isinstance(self.teacher, ModelTeacher):
            model = self.teacher.model
            shard_layers(model, repeated_blocks(model), self.device)

    def prepare(self, batch: Batch) -> None:
        """Build the views, once; ``batch`` is the first one: it tells how large the logits are, and
        is never trained on.
        """
        settings, task, ta = self.settings, self.task, self.ta
        one = {name: tensor[:1] for name, tensor in batch.items()}
        outputs = task.outputs(ta.model)
        size = task.counts(batch)["outputs"] * outputs * 4
        wanted = (
            settings.logits == "chunked"
            or (settings.logits == "auto" and size > _SMALL)
            or settings.hidden_weight > 0
        )
        name = head(ta.model) if wanted and settings.shared else ""
        if name:
            probe = ta.at(ta.widest, head=name).eval()
            training = ta.model.training
            whole = ta.model.eval()
            name = name if is_product(task, whole, probe, probe.output(), one) else ""
            ta.model.train(training)
        if wanted and not name and (settings.logits == "chunked" or settings.hidden_weight > 0):
            what = (
                "distill.logits = 'chunked'"
                if settings.logits == "chunked"
                else "distill.hidden_weight"
            )
            raise MattaError(
                f"{what} is not supported here: the model's outputs are not those of one last linear layer."
            )
        self.chunked = bool(name)
        split = False
        if name and isinstance(self.teacher, ModelTeacher):
            split = self.teacher.output is not None or self.teacher.split_head(one)
        self.models = {"TA": ta.at(ta.widest, head=name, live=True)}
        self.models |= {f"{width:g}": ta.at(width, head=name) for width in settings.widths}
        if settings.ta_width and settings.ta_width != ta.widest:
            self.models["teaching"] = ta.at(settings.ta_width, head=name)
        views = [model for model in self.models.values() if isinstance(model, StudentView)]
        if not settings.dropout:
            for view in views:
                view.without_dropout()
        if settings.checkpoint_activations:
            for view in views:
                view.recompute()
        if settings.compile:
            # of one code object, which the views of all steps of a process share: beyond it they
            # would run eagerly
            torch._dynamo.config.recompile_limit += 2 * len(views)
            for view in views:
                view.compile(backend=settings.compile)
        if settings.hidden_weight > 0 and self.projection is None:
            if not split:
                raise MattaError(
                    "distill.hidden_weight needs a Teacher that is a model with a last linear layer."
                )
            assert isinstance(self.teacher, ModelTeacher) and self.teacher.output is not None
            theirs, ours = self.teacher.output[0].shape[1], self.models["TA"].output()[0].shape[1]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.seed)
                self.projection = nn.Linear(ours, theirs, bias=False).to(self.device)

    def warm_up(self, batch: Batch) -> int:
        """Compile every model's graph on ``batch``, so that training compiles none. Returns how
        many there are.
        """
        buffers = [(b, b.clone()) for b in self.ta.model.buffers()]
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
        """Floating-point operations of a step for each example of ``batch``, in matrix products;
        before ``prepare``.

        A backward pass is two forward ones. What is computed twice to save memory counts once.
        """
        settings, one = self.settings, {name: tensor[:1] for name, tensor in batch.items()}
        macs = {f"{w:g}": cost.macs(self.task, self.ta.at(w), one) for w in settings.widths}
        students = [macs[f"{w:g}"] for step in range(100) for w in self.widths(step)]
        training = self.ta.model.training
        trained = (cost.macs(self.task, self.ta.model, one) if settings.ta_weight > 0 else 0) + sum(
            students
        ) / 100
        self.ta.model.train(training)
        teacher = (
            cost.macs(self.task, self.teacher.model, one)
            if isinstance(self.teacher, ModelTeacher)
            else 0
        )
        return 2.0 * (teacher + 3 * trained)

    def ramp(self, step: int) -> float:
        """b(t), the weight of the TA -> Student term at a step."""
        if self.settings.students_learn_from == "teacher":
            return 0.0
        length = self.settings.ramp * self.settings.steps
        return self.settings.ta_student_weight * (min(1.0, step / length) if length > 0 else 1.0)

    def widths(self, step: int) -> list[float]:
        """The Students of a step. One as wide as the TA is the TA, which is trained already."""
        settings = self.settings
        drawn = sampling.students(
            settings.seed, step, settings.widths, settings.students_per_step, settings.sampling
        )
        if not settings.shared or settings.ta_weight == 0:
            return drawn
        return [width for width in drawn if width < self.ta.widest] or drawn

    def __call__(
        self, batch: Batch, rows: list[int], step: int, over: dict[str, float] | None = None
    ) -> Values:
        """Add the gradients of a batch to the TA's parameters. Returns every term by model, as
        detached scalars.

        rows: the numbers of the batch's examples. over: the ``Task.counts`` of the whole step,
        where the batch is a part of it.
        """
        # of the backward passes, which autocast is not for
        with products(self.settings.precision, self.device):
            return self._gradients(batch, rows, step, over)

    def _gradients(
        self, batch: Batch, rows: list[int], step: int, over: dict[str, float] | None
    ) -> Values:
        settings = self.settings
        if not self.models:
            self.prepare(batch)
        over = over or self.task.counts(batch)
        weight = self.ramp(step)
        trains = settings.ta_weight > 0
        with precision(settings.precision, self.device):
            taught = (
                self.teacher(batch, rows)
                if self.teacher is not None and asks_teacher(settings, self.task)
                else None
            )
            given = None  # the TA runs only where it learns or teaches
            if trains or (weight > 0 and "teaching" not in self.models):
                with torch.set_grad_enabled(trains or not settings.detach_ta):
                    given = self._logits("TA", batch)
        leaf = given
        if given is not None and not settings.detach_ta:
            # a leaf: what reaches it from here and from the Students goes through the TA in one
            # pass
            leaf = Logits(given.hidden.detach().requires_grad_(), given.weight, given.bias)
        if self.chunked:
            size = _KEPT.get(self.device.type, 0)
            with precision(settings.precision, self.device):
                leaf = (
                    leaf.keep(size)
                    if leaf is not None and weight > 0 and "teaching" not in self.models
                    else leaf
                )
                taught = taught.keep(size) if isinstance(taught, Logits) else taught
        found: Values = {"TA": {}}
        if trains:
            assert leaf is not None
            found["TA"] = self._learn(
                leaf, batch, self._own(settings.ta_weight, taught), taught, over
            )
        source = leaf.detach() if leaf is not None and settings.detach_ta else leaf
        if "teaching" in self.models and weight > 0:
            with torch.no_grad(), precision(settings.precision, self.device):
                source = self._logits("teaching", batch)
        widths = self.widths(step)
        for width in widths:
            terms = self._own(settings.student_weight / len(widths), taught, student=True)
            if weight > 0:
                terms.append(Term("ta", weight / len(widths), source))
            with precision(settings.precision, self.device):
                logits = self._logits(f"{width:g}", batch)
            found[f"{width:g}"] = self._learn(logits, batch, terms, taught, over)
        if (
            not settings.detach_ta
            and given is not None
            and leaf is not None
            and leaf.hidden.grad is not None
        ):
            given.hidden.backward(leaf.hidden.grad)
        return found

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
        """Backpropagate one model's terms. Returns them, and ``loss``: l(., y, T) without weights
        from outside.
        """
        settings = self.settings
        with precision(settings.precision, self.device):
            total, values = self.task.objective(logits, batch, terms, over)
            if settings.hidden_weight > 0:
                gap = self._hidden(logits, taught) * (
                    self.task.counts(batch)["outputs"] / over["outputs"]
                )
                total = (
                    total
                    + settings.hidden_weight
                    * (sum(t.weight for t in terms if t.name != "ta") or 1.0)
                    * gap
                )
                values["hidden"] = gap.detach()
        self.scaler.scale(total * self.scale).backward()
        shares = {"truth": 1 - self.mix, "teacher": self.mix}
        return {
            **values,
            "loss": sum(
                (shares[n] * v for n, v in values.items() if n in shares),
                torch.zeros_like(total.detach()),
            ),
        }

    def _hidden(self, logits: Logits, taught: Target | None) -> Tensor:
        """Squared distance of the projected last hidden states from the Teacher's, relative to the
        Teacher's size.
        """
        assert self.projection is not None and isinstance(taught, Logits)
        own, theirs = logits.hidden.float(), taught.hidden.float()
        projected = F.linear(own, self.projection.weight[:, : own.shape[-1]])
        return (projected - theirs).square().mean() / theirs.square().mean().clamp(min=1e-12)
