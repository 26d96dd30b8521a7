"""The loop over the steps of a run."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli.adapter import Sizes
from matta_cli.data import sampling
from matta_cli.data.loader import loader
from matta_cli.data.split import Batch
from matta_cli.devices.device import peak_flops
from matta_cli.devices.processes import gathered
from matta_cli.devices.signals import interruptible
from matta_cli.errors import Interrupted, MattaError, command
from matta_cli.files.workspace import Workspace
from matta_cli.measure.students import measure, settled
from matta_cli.models.ta import TA, UnsharedTA
from matta_cli.nested import sizes
from matta_cli.progress import Listener, Progress
from matta_cli.report.numbers import plain
from matta_cli.settings.recipe import DistillSettings
from matta_cli.training import checkpoint, optimizer
from matta_cli.training.checkpoint import Counters
from matta_cli.training.log import Log
from matta_cli.training.objective import Step
from matta_cli.training.rows import WHOLE, Piece, Rows
from matta_cli.training.setup import Setup
from matta_cli.training.state import state_of
from matta_cli.version import __version__

Parts = list[tuple[Batch, Piece]]  # the batches of a step, and what goes through which models


def intervals(settings: DistillSettings) -> tuple[int, int]:
    """The steps between evaluations, and between checkpoints. Both come after the last one, too."""
    eval_every = settings.eval_every or max(1, settings.steps // 10)
    return eval_every, settings.save_every or eval_every


class Training:
    """A run: the models, the optimizer and the counters, which a checkpoint holds, and the loop."""

    def __init__(self, setup: Setup, space: Workspace, *, count_flops: bool = False) -> None:
        """space: where the run lies. count_flops: also where the device's peak is not known."""
        self.recipe, self.settings, self.space = setup.recipe, setup.settings, space
        self.task, self.data, self.made_of = setup.task, setup.data, setup.made_of
        self.device, self.world, self.companions = setup.device, setup.world, setup.companions
        settings, ta, device = setup.settings, setup.ta, setup.device
        if not settings.shared and not ta.copies:
            ta = UnsharedTA.start(ta, settings.widths)
        self.ta = ta
        self.models = [ta.model, *ta.copies.values()]
        for model in self.models:
            model.to(device)
        self.counters = Counters(processes=self.world.size)
        self.damaged: set[Path] = set()  # checkpoints of the run that do not count
        self.rows = Rows(settings, ta)
        first = self._largest(0)
        if settings.compile and "group" in first:
            why = "each batch has another number of rows, and needs a graph"
            raise MattaError(f"--compile is not supported for queries: {why}.")
        self.step = Step(settings, self.task, ta, setup.teacher, first, device, self.rows)
        self.peak = peak_flops(device, settings.precision)
        # of this process, in a step
        each = settings.batch_size // self.world.size
        self.flops = each * self.step.flops(first) if count_flops or self.peak else None
        if settings.shard:
            self.step.shard(self.world.size)
        extra = [p for model in ta.copies.values() for p in model.parameters()]
        self.optimizer = optimizer.make_optimizer(settings, ta.model, extra, device)
        self.parameters = [p for p in [*ta.model.parameters(), *extra] if p.requires_grad]

    @property
    def again(self) -> str:
        """The command that goes on with the run."""
        return command("distill", self.space.root, "--resume")

    def run_steps(self, listen: Listener) -> Path:
        """Train from where the counters are to the end. Returns the last checkpoint."""
        settings, counters = self.settings, self.counters
        saved = self.space.newest() if self.world.first else None
        if settings.steps < counters.step:
            asked = f"--steps is {settings.steps}, and the run is at step {counters.step}"
            raise MattaError(f"There is nothing to train: {asked}.")
        if settings.steps == counters.step:
            # and the settings of a run that is finished stay what they were
            done = f"The run is finished, at step {counters.step}"
            listen(Progress(message=f"{done}: nothing was trained, no setting changed."))
            if self.world.first:  # a kill may have come before that
                checkpoint.prune(self.space, counters, settings.keep, self.damaged)
            return saved or self.space.checkpoint(counters.step)
        steps = range(counters.step, settings.steps)
        began, before = time.perf_counter(), counters.seconds
        graphs = self._compile(listen) if settings.compile else 0
        with (
            closing(self.batches(steps)) as stream,
            interruptible() as pressed,
            Log(self.space, self.recipe, counters.step, self.world.first) as log,
        ):
            for step in steps:
                started = time.perf_counter()
                parts = next(stream)
                waited = time.perf_counter() - started
                record = self.take(step, parts)
                counters.step, counters.seconds = step + 1, before + time.perf_counter() - began
                stop = self._agree(bool(pressed))
                told = self._progress(record, parts, time.perf_counter() - started, waited)
                record |= {f"{told.unit}_per_second": told.per_second, "waiting": told.waiting}
                due = self._evaluate(record) or stop
                if settings.compile:
                    graphs = self._compiled(record, graphs, listen)
                if told.utilisation is not None:
                    record["utilisation"] = told.utilisation
                log.write(plain(record))
                listen(told)
                if due:
                    saved = self.save() or saved
                if stop:
                    self.world.wait()
                    where = f"Stopped at step {counters.step} of {settings.steps}; saved {saved}"
                    number = pressed[0] if pressed else signal.SIGTERM
                    raise Interrupted(f"{where}. Go on with `{self.again}`.", 128 + number)
            self.world.wait()
        if counters.bad_steps:
            skipped = f"{counters.bad_steps} of {counters.step} steps were skipped"
            listen(Progress(message=f"{skipped}: their loss was not finite."))
        return saved or self.space.checkpoint(counters.step)

    def _progress(
        self, record: dict[str, Any], parts: Parts, taken: float, waited: float
    ) -> Progress:
        """What is told of a step that took so many seconds, some of them waiting for its data."""
        done, steps = self.counters.step, self.settings.steps
        speed = self.world.size * sum(self.task.items(batch) for batch, _ in parts) / taken
        used = self.flops / taken / self.peak if self.flops and self.peak else None
        terms, widest = dict(record["terms"]), f"{self.ta.widest:g}"
        if self.ta.widest in self.settings.widths and WHOLE in terms and widest not in terms:
            terms[widest] = terms.pop(WHOLE)  # as every table calls it
        return Progress(done, steps, terms, speed, self.data.unit, waited / taken, used)

    def _compile(self, listen: Listener) -> int:
        """Compile all graphs before the first step. Returns how many there are."""
        began = time.perf_counter()
        count = f"{len(self.step.models)} graphs, one for each width"
        listen(Progress(message=f"Compiling {count}."))
        pieces = self.drawn(self.counters.step, {})
        parts = [(self._here(self.data.train.batch(piece.rows)), piece) for piece in pieces]
        graphs = self.step.warm_up(parts, self._counts(parts)[0])
        listen(Progress(message=f"Compiled in {time.perf_counter() - began:.1f} s."))
        return graphs

    def _compiled(self, record: dict[str, Any], before: int, listen: Listener) -> int:
        """How many graphs there are after a step, put into its record; more are reported."""
        graphs = record["graphs"] = self.step.graphs()
        if graphs > before:
            again = f"A graph was compiled again at step {self.counters.step}"
            listen(Progress(message=f"{again}: that is a bug of matta, please report it."))
        return max(graphs, before)

    def _evaluate(self, record: dict[str, Any]) -> bool:
        """Measure the models after a step that it is time for, and put that into its record.

        Returns whether to save: it is time for that, or the best yet. Every process has to ask; the
        first one measures.
        """
        step, end = self.counters.step, self.counters.step == self.settings.steps
        eval_every, save_every = intervals(self.settings)
        due = step % save_every == 0 or end
        if step % eval_every and not end:
            return due
        ta = self._whole()
        if self.world.first:
            ta = self._settled(ta)
            record["evaluation"] = measure(
                self.settings, self.task, ta, self.data, self.device, self.world.size
            )
            due = self._is_best(record["evaluation"]) or due
        return self._agree(due)

    def _is_best(self, evaluation: dict[str, dict[str, float]]) -> bool:
        """Whether the named width measures better than ever before in this run."""
        width, primary, counters = self.settings.best, self.task.metrics[0], self.counters
        value = evaluation.get(f"{width:g}", {}).get(primary.name) if width else None
        if value is None or not math.isfinite(value):
            return False
        best = counters.best_value
        if best is not None and not (value > best if primary.higher else value < best):
            return False
        counters.best_value, counters.best_step = value, counters.step
        return True

    def _agree(self, pressed: bool) -> bool:
        """Whether any process says so: all stop, and save, after the same step."""
        return bool(self.world.total(torch.tensor(float(pressed), device=self.device)) > 0)

    def _chosen(self, step: int, order: dict[int, Tensor]) -> list[int]:
        """The numbers of this process's examples of a step. order: a cache."""
        s, count = self.settings, len(self.data.train)
        return self.world.part(sampling.indices(s.seed, step, s.batch_size, count, order))

    def drawn(self, step: int, order: dict[int, Tensor]) -> list[Piece]:
        """This process's examples of a step, as many as go through the same models at a time.

        order: a cache.
        """
        return self.rows.pieces(self._chosen(step, order), step)

    def batches(self, steps: Iterable[int]) -> Generator[Parts, None, None]:
        """The batches of each step, with the numbers of their examples."""
        ahead: dict[int, Tensor] = {}
        order: dict[int, Tensor] = {}
        drawn = (piece.rows for step in steps for piece in self.drawn(step, ahead))
        pin = self.device.type == "cuda"
        with closing(loader(self.data.train, drawn, self.recipe.data.workers, pin=pin)) as batches:
            for step in steps:
                yield [(next(batches), piece) for piece in self.drawn(step, order)]

    def _largest(self, step: int) -> Batch:
        """The largest batch of a step, on the device."""
        largest = max((piece.rows for piece in self.drawn(step, {})), key=len)
        return self._here(self.data.train.batch(largest))

    def _here(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def take(self, step: int, parts: Parts) -> dict[str, Any]:
        """Train on one step's batches, if its loss and gradients are finite.

        Returns the log's record. Raises ``MattaError`` after too many steps in a row that are not.
        """
        settings, counters, scaler = self.settings, self.counters, self.step.scaler
        sampling.seed_step(settings.seed, step * self.world.size + self.world.rank)
        self.ta.model.train()
        terms = self._gradients(step, parts)
        scaler.unscale_(self.optimizer)
        norm = float(gathered(nn.utils.clip_grad_norm_(self.parameters, settings.clip or math.inf)))
        numbers = [norm, *(value for values in terms.values() for value in values.values())]
        if all(map(math.isfinite, numbers)):
            counters.bad_in_a_row = 0
            for group in self.optimizer.param_groups:
                group["lr"] = optimizer.learning_rate(settings, step)
            with optimizer.untouched(self.ta, self._trained(step), self.optimizer):
                scaler.step(self.optimizer)
        else:
            counters.bad_steps += 1
            # fp16's scale finds its level by overflowing: that is no fault of the run until the
            # scale is used up
            counters.bad_in_a_row += 0 if scaler.is_enabled() and scaler.get_scale() > 1 else 1
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if counters.bad_in_a_row >= settings.max_bad_steps:
            self._give_up(step)
        rest = {"ramp": self.step.ramp(step), "gradient_norm": norm, "skipped": counters.bad_steps}
        lr = self.optimizer.param_groups[0]["lr"]
        return {"step": step + 1, "lr": lr, "terms": terms, **rest}

    def _gradients(self, step: int, parts: Parts) -> dict[str, dict[str, float]]:
        """Add up the gradients of a step's batches, on all processes; return the terms by model."""
        over, own = self._counts(parts)
        sums: dict[tuple[str, str], Tensor] = {}
        for batch, piece in parts:
            for model, terms in self.step(self._here(batch), piece, step, over).items():
                for name, value in terms.items():
                    key = model, name
                    sums[key] = sums[key] + value if key in sums else value
        if not self.settings.shard:
            self.world.share_gradients(self.parameters)
        values = self.world.total(torch.stack([value.float() for value in sums.values()])).tolist()
        record: dict[str, dict[str, float]] = {}
        for (model, name), value in zip(sums, values, strict=True):
            record.setdefault(model, {})[name] = value
        return {model: self._shown(terms, over, own[model]) for model, terms in record.items()}

    def _shown(
        self, terms: dict[str, float], over: dict[str, float], own: dict[str, float]
    ) -> dict[str, float]:
        """A model's terms as means over the rows that went through it, ``own``, for the log."""
        if own == over:
            return terms
        found = {}
        for name, value in terms.items():
            kind = "labels" if name == "truth" else "outputs"
            found[name] = value * over[kind] / own[kind] if own[kind] else value
        return {**found, "loss": self.step.loss(found)}

    def _counts(self, parts: Parts) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """What the losses of a step are averaged over, on all processes, and of each model."""
        each = [(self.task.counts(batch), piece) for batch, piece in parts]
        rows = torch.zeros(1 + len(self.step.models), 2, dtype=torch.float64)
        place = {name: number for number, name in enumerate(self.step.models, 1)}
        for counts, piece in each:
            there = [place[name] for group in piece.groups for name in group]
            rows[[0, *there]] += torch.tensor([counts["labels"], counts["outputs"]])
        total = self.world.total(rows.to(self.device, torch.float32)).tolist()
        pairs = [{"labels": labels, "outputs": outputs} for labels, outputs in total]
        return pairs[0], {name: pairs[number] for name, number in place.items()}

    def _trained(self, step: int) -> Sizes:
        """The sizes of the TA that had a part in a step: widths nest, so those of the widest."""
        names = self.rows.models(self.settings.batch_size // self.world.size, step)
        if WHOLE in names:
            return sizes.full_sizes(self.ta.axes)
        return self.ta.sizes(max(float(name) for name in names))

    def _give_up(self, step: int) -> None:
        last, bad = self.space.newest(), self.counters.bad_in_a_row
        raise MattaError(
            f"The loss or its gradient is not finite at step {step}, the last {bad} in a row; "
            f"{f'{last} is kept' if last else 'nothing was saved'}. Try a lower --lr."
        )

    def _whole(self) -> TA:
        """The TA; of a sharded one a copy that is not (every process has to ask)."""
        ta = self.ta
        if not self.settings.shard:
            return ta
        state = {name: gathered(tensor) for name, tensor in ta.model.state_dict().items()}
        model = ta.adapter.build(ta.model, {})
        model.load_state_dict(state)
        return TA(ta.adapter, model.to(self.device), ta.axes, ta.base, ta.card)

    def _settled(self, ta: TA) -> TA:
        """The TA with the BatchNorm statistics of all that is measured and saved of it."""
        return settled(self.task, ta, self.settings.widths, self.data.train, self.device)

    def save(self) -> Path | None:
        """Write a checkpoint, whole, and remove those that are not kept.

        Every process calls this; the first one writes, and gets the folder.
        """
        ta, counters, space = self._whole(), self.counters, self.space
        counters.loss_scale = self.step.scaler.state_dict()
        tensors, numbers = state_of(self.optimizer)
        if not self.world.first:
            return None
        ta, path = self._settled(ta), space.checkpoint(counters.step)
        trainer = {
            **asdict(counters),
            "optimizer": numbers,
            "recipe": self.recipe.text(["distill"]),
            "made_of": self.made_of,
            "matta": __version__,
        }
        checkpoint.write(path, ta, self.settings.widths, self.companions, tensors, trainer)
        self.damaged.discard(path)
        checkpoint.prune(space, counters, self.settings.keep, self.damaged)
        return path

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint. The TA's weights have been loaded from it already."""
        checkpoint.restore(folder, self.optimizer, self.settings.optimizer)
        self.counters = Counters.stored(folder, self.world.size)
        if self.counters.loss_scale:
            self.step.scaler.load_state_dict(self.counters.loss_scale)
