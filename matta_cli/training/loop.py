"""The loop over the steps, and what a checkpoint holds."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from matta_cli.data import sampling
from matta_cli.data.loader import loader
from matta_cli.data.split import Batch, Data
from matta_cli.devices.device import peak_flops
from matta_cli.devices.processes import World, gathered
from matta_cli.devices.signals import interruptible
from matta_cli.errors import Interrupted, MattaError, command
from matta_cli.files import atomic
from matta_cli.files.card import write_card
from matta_cli.files.workspace import Workspace, step_of
from matta_cli.measure.students import measure
from matta_cli.models import tokenizer
from matta_cli.models.save import save_model
from matta_cli.models.ta import TA, UNSHARED, UnsharedTA
from matta_cli.nested import sizes
from matta_cli.progress import Listener, Progress
from matta_cli.report.numbers import plain
from matta_cli.settings.recipe import DistillSettings, Recipe
from matta_cli.tasks.task import Task
from matta_cli.training import optimizer
from matta_cli.training.log import Log
from matta_cli.training.objective import Step
from matta_cli.training.teacher import Teacher


@dataclass
class Counters:
    """What a run has come to, besides its tensors. best: (value, step) of the checkpoint that is
    kept for its metric.
    """

    step: int = 0
    seconds: float = 0.0
    bad_in_a_row: int = 0
    bad_steps: int = 0
    best_value: float | None = None
    best_step: int = 0
    loss_scale: dict[str, Any] = field(default_factory=dict)
    processes: int = 1


def intervals(settings: DistillSettings) -> tuple[int, int]:
    """The steps between evaluations, and between checkpoints. Both come after the last one, too."""
    eval_every = settings.eval_every or max(1, settings.steps // 10)
    return eval_every, settings.save_every or eval_every


class Training:
    """A run: the models, the optimizer and the counters, which a checkpoint holds, and the loop
    over the steps.
    """

    def __init__(
        self,
        recipe: Recipe,
        space: Workspace,
        task: Task,
        ta: TA,
        teacher: Teacher | None,
        data: Data,
        device: torch.device,
        world: World,
        *,
        count_flops: bool = False,
    ) -> None:
        self.recipe, self.space, self.task, self.ta, self.data = recipe, space, task, ta, data
        self.device, self.world, self.counters = device, world, Counters(processes=world.size)
        if not recipe.distill.shared and not ta.copies:
            ta = self.ta = UnsharedTA.start(ta, recipe.distill.widths)
        for model in (ta.model, *ta.copies.values()):
            model.to(device)
        self.damaged: set[Path] = set()  # checkpoints of the run that do not count
        self.step = Step(recipe, task, ta, teacher, device)
        first = {
            name: tensor.to(device)
            for name, tensor in data.train.batch(self.drawn(0, {})[0]).items()
        }
        self.peak = peak_flops(device, recipe.distill.precision)
        each = recipe.distill.batch_size // world.size
        # of this process, in a step
        self.flops = each * self.step.flops(first) if count_flops or self.peak else None
        self.step.prepare(first)
        if recipe.distill.compile and "group" in first:
            raise MattaError(
                "--compile is not supported for queries: each batch has another number of rows, and needs a graph."
            )
        if recipe.distill.shard:
            self.step.shard(world.size)
        self.extra = [p for model in ta.copies.values() for p in model.parameters()]
        if self.step.projection is not None:
            self.extra += list(self.step.projection.parameters())
        self.optimizer = optimizer.make_optimizer(recipe, ta.model, self.extra, device)
        self.parameters = [p for p in [*ta.model.parameters(), *self.extra] if p.requires_grad]

    @property
    def again(self) -> str:
        """The command that goes on with the run."""
        return command("distill", self.space.root, "--resume")

    def run_steps(self, listen: Listener) -> Path:
        """Train from where the counters are to the end. Returns the last checkpoint."""
        settings, counters = self.recipe.distill, self.counters
        eval_every, save_every = intervals(settings)
        steps = range(counters.step, settings.steps)
        saved = self.space.newest() if self.world.first else None
        if settings.steps < counters.step:
            raise MattaError(
                f"There is nothing to train: --steps is {settings.steps}, and the run is at step {counters.step}."
            )
        if not steps:  # and the settings of a run that is finished stay what they were
            listen(
                Progress(
                    message=f"The run is finished, at step {counters.step}: nothing was trained, no setting changed."
                )
            )
            return saved or self.space.checkpoint(counters.step)
        began, before = time.perf_counter(), counters.seconds
        graphs = 0
        if settings.compile:
            listen(
                Progress(message=f"Compiling {len(self.step.models)} graphs, one for each width.")
            )
            first = self.data.train.batch(self.drawn(counters.step, {})[0])
            first = {name: tensor.to(self.device) for name, tensor in first.items()}
            graphs = self.step.warm_up(first)
            listen(Progress(message=f"Compiled in {time.perf_counter() - began:.1f} s."))
        with (
            closing(self.batches(steps)) as stream,
            interruptible() as pressed,
            Log(self.space, self.recipe, counters.step, self.world.first) as log,
        ):
            for step in steps:
                started = time.perf_counter()
                batches = next(stream)
                waited = time.perf_counter() - started
                record = self.take(step, batches)
                counters.step, counters.seconds = step + 1, before + time.perf_counter() - began
                stop = self._agree(bool(pressed))
                taken = time.perf_counter() - started
                per_second = (
                    self.world.size * sum(self.task.items(batch) for batch, _ in batches) / taken
                )
                record |= {f"{self.data.unit}_per_second": per_second, "waiting": waited / taken}
                end = step + 1 == settings.steps
                due = (step + 1) % save_every == 0 or end or stop
                if (step + 1) % eval_every == 0 or end:
                    ta = self._whole()
                    if self.world.first:
                        record["evaluation"] = measure(
                            self.recipe.distill, self.task, ta, self.data, self.device
                        )
                        due = self._is_best(record["evaluation"]) or due
                    due = self._agree(due)
                if settings.compile:
                    record["graphs"] = self.step.graphs()
                    if record["graphs"] > graphs:
                        graphs = record["graphs"]
                        said = f"A graph was compiled again at step {step + 1}: that is a bug of matta, please report it."
                        listen(Progress(message=said))
                used = self.flops / taken / self.peak if self.flops and self.peak else None
                record |= {} if used is None else {"utilisation": used}
                log.write(plain(record))
                listen(
                    Progress(
                        step + 1,
                        settings.steps,
                        record["terms"],
                        per_second,
                        self.data.unit,
                        waited / taken,
                        used,
                    )
                )
                if due:
                    saved = self.save() or saved
                if stop:
                    self.world.wait()
                    number = pressed[0] if pressed else signal.SIGTERM
                    raise Interrupted(
                        f"Stopped at step {step + 1} of {settings.steps}; saved {saved}. Go on with `{self.again}`.",
                        128 + number,
                    )
            self.world.wait()
        if counters.bad_steps:
            listen(
                Progress(
                    message=f"{counters.bad_steps} of {counters.step} steps were skipped: their loss was not finite."
                )
            )
        return saved or self.space.checkpoint(counters.step)

    def drawn(self, step: int, order: dict[int, Tensor]) -> list[list[int]]:
        """The numbers of this process's examples of a step, ``micro_batch`` at a time. order: a
        cache.
        """
        settings = self.recipe.distill
        chosen = self.world.part(
            sampling.indices(settings.seed, step, settings.batch_size, len(self.data.train), order)
        )
        size = settings.micro_batch or len(chosen)
        return [chosen[start : start + size] for start in range(0, len(chosen), size)]

    def batches(self, steps: Iterable[int]) -> Generator[list[tuple[Batch, list[int]]], None, None]:
        """The batches of each step, with the numbers of their examples."""
        ahead: dict[int, Tensor] = {}
        order: dict[int, Tensor] = {}
        drawn = (part for step in steps for part in self.drawn(step, ahead))
        pin = self.device.type == "cuda"
        with closing(loader(self.data.train, drawn, self.recipe.data.workers, pin=pin)) as batches:
            for step in steps:
                yield [(next(batches), part) for part in self.drawn(step, order)]

    def take(self, step: int, batches: list[tuple[Batch, list[int]]]) -> dict[str, Any]:
        """Train on one step's batches, if its loss and gradients are finite. Returns the log's
        record.
        """
        settings, counters, scaler = self.recipe.distill, self.counters, self.step.scaler
        sampling.seed_step(settings.seed, step * self.world.size + self.world.rank)
        self.ta.model.train()
        buffers = [
            b for model in (self.ta.model, *self.ta.copies.values()) for b in model.buffers()
        ]
        # a bad batch must not stay in the statistics
        before = [buffer.clone() for buffer in buffers]
        over = self._counts([batch for batch, _ in batches])
        sums: dict[tuple[str, str], Tensor] = {}
        for batch, rows in batches:
            found = self.step(
                {name: tensor.to(self.device) for name, tensor in batch.items()}, rows, step, over
            )
            for model, terms in found.items():
                for name, value in terms.items():
                    sums[model, name] = (
                        sums[model, name] + value if (model, name) in sums else value
                    )
        if not settings.shard:
            self.world.share_gradients(self.parameters)
        values = self.world.total(torch.stack([value.float() for value in sums.values()])).tolist()
        record: dict[str, dict[str, float]] = {model: {} for model, _ in sums}
        for (model, name), value in zip(sums, values, strict=True):
            record[model][name] = value
        scaler.unscale_(self.optimizer)
        norm = float(gathered(nn.utils.clip_grad_norm_(self.parameters, settings.clip or math.inf)))
        if math.isfinite(norm) and all(map(math.isfinite, values)):
            counters.bad_in_a_row = 0
            for group in self.optimizer.param_groups:
                group["lr"] = optimizer.learning_rate(self.recipe, step)
            with optimizer.untouched(self.ta, self._trained(step), self.optimizer):
                scaler.step(self.optimizer)
        else:
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)
            counters.bad_steps += 1
            # fp16's scale finds its level by overflowing: that is no fault of the run until the
            # scale is used up
            counters.bad_in_a_row += 0 if scaler.is_enabled() and scaler.get_scale() > 1 else 1
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if counters.bad_in_a_row >= settings.max_bad_steps:
            last = self.space.newest()
            raise MattaError(
                f"The loss or its gradient is not finite at step {step}, the last {counters.bad_in_a_row} in a row; "
                f"{f'{last} is kept' if last else 'nothing was saved'}. Try a lower --lr."
            )
        lr = self.optimizer.param_groups[0]["lr"]
        return {
            "step": step + 1,
            "lr": lr,
            "terms": record,
            "ramp": self.step.ramp(step),
            "gradient_norm": norm,
            "skipped": counters.bad_steps,
        }

    def _counts(self, batches: list[Batch]) -> dict[str, float]:
        """What the step's losses are averaged over, on all processes."""
        each = [self.task.counts(batch) for batch in batches]
        total = self.world.total(
            torch.tensor([[c["labels"], c["outputs"]] for c in each], device=self.device).sum(0)
        )
        return {"labels": float(total[0]), "outputs": float(total[1])}

    def _trained(self, step: int) -> dict[str, int]:
        """The sizes of the TA that had a part in a step: widths nest, so those of the widest."""
        settings = self.recipe.distill
        # what teaches without being detached is taught by its Students
        taught = settings.ta_weight > 0 or (not settings.detach_ta and self.step.ramp(step) > 0)
        if taught or self.ta.copies:
            return sizes.full_sizes(self.ta.axes)
        return self.ta.sizes(max(self.step.widths(step)))

    def _agree(self, pressed: bool) -> bool:
        """Whether any process was asked to stop: all stop after the same step."""
        return bool(self.world.total(torch.tensor(float(pressed), device=self.device)) > 0)

    def _is_best(self, evaluation: dict[str, dict[str, float]]) -> bool:
        """Whether the named width measures better than ever before in this run."""
        width, primary, counters = self.recipe.distill.best, self.task.metrics[0], self.counters
        value = evaluation.get(f"{width:g}", {}).get(primary.name) if width else None
        if value is None or not math.isfinite(value):
            return False
        best = counters.best_value
        if best is not None and not (value > best if primary.higher else value < best):
            return False
        counters.best_value, counters.best_step = value, counters.step
        return True

    def _whole(self) -> TA:
        """The TA; of a sharded one a copy that is not (every process has to ask)."""
        ta = self.ta
        if not self.recipe.distill.shard:
            return ta
        state = {name: gathered(tensor) for name, tensor in ta.model.state_dict().items()}
        model = ta.adapter.build(ta.model, {})
        model.load_state_dict(state)
        return TA(ta.adapter, model.to(self.device), ta.axes, ta.base, ta.card)

    # Checkpoints: a stock TA folder, plus what resuming needs

    def save(self) -> Path | None:
        """Write ``checkpoints/step-N`` whole: the TA as a stock folder, the optimizer's tensors,
        the counters.

        Every process calls this; the first one writes, and gets the folder.
        """
        ta, counters, recipe = self._whole(), self.counters, self.recipe
        path = self.space.checkpoint(counters.step)
        counters.loss_scale = self.step.scaler.state_dict()
        tensors, numbers = optimizer.state_of(self.optimizer)
        if self.step.projection is not None:
            tensors["projection"] = self.step.projection.weight.detach().clone()
        if not self.world.first:
            return None
        with atomic.atomic_folder(path, overwrite=True) as folder:
            save_model(ta.adapter, ta.model, folder)
            tokenizer.copy_companions(self.space.ta, folder)
            card = {
                k: v
                for k, v in ta.card.items()
                if k not in ("format", "matta", "adapter", "task", "axes", "base", "lineage")
            }
            more = {**card, "steps": counters.step}
            write_card(folder, ta.adapter, ta.axes, ta.base, ta.card["lineage"], **more)
            for width, model in ta.copies.items():
                target = folder / UNSHARED / f"width-{width:g}"
                target.mkdir(parents=True)
                save_model(ta.adapter, model, target)
            (folder / "optimizer").mkdir()
            save_file(tensors, str(folder / "optimizer" / "state.safetensors"))
            trainer = json.dumps(
                {**asdict(counters), "optimizer": numbers, "recipe": recipe.text(("distill",))}
            )
            (folder / "trainer.json").write_text(trainer + "\n", encoding="utf-8")
            atomic.seal(folder)
        self.damaged.discard(path)
        if recipe.distill.keep:
            sound = [p for p in self.space.checkpoints() if p not in self.damaged]
            passed = [p for p in self.damaged if step_of(p) < counters.step]
            for old in [*sound[: -recipe.distill.keep], *passed]:
                if old.name != f"step-{counters.best_step}":
                    shutil.rmtree(old, ignore_errors=True)
        return path

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint. The TA's weights have been loaded from it already."""
        stored = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
        tensors = load_file(str(folder / "optimizer" / "state.safetensors"))
        if self.step.projection is not None:
            if "projection" not in tensors:
                raise MattaError(
                    f"{folder} was trained without distill.hidden_weight: leave it out, or start again."
                )
            with torch.no_grad():
                self.step.projection.weight.copy_(tensors.pop("projection"))
        try:
            optimizer.restore(self.optimizer, tensors, stored["optimizer"])
        except (KeyError, RuntimeError):
            raise MattaError(
                f"{folder} was trained with another optimizer than {self.recipe.distill.optimizer!r}."
            ) from None
        known = {f: stored[f] for f in Counters.__dataclass_fields__ if f in stored}
        self.counters = Counters(**known | {"processes": self.world.size})
        if self.counters.loss_scale:
            self.step.scaler.load_state_dict(self.counters.loss_scale)
