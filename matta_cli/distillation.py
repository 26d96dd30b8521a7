"""distill: train the TA and its nested Students in one run, Teacher -> TA -> Student, online (MatTA, arXiv 2505.23337)."""

from __future__ import annotations

import errno
import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from matta_cli import (
    checkpoint,
    devices,
    evaluate,
    losses,
    models,
    optimization,
    registry,
    report,
    sampling,
    supernet,
    teacher_files,
    tracking,
)
from matta_cli.adapter import Sizes
from matta_cli.conversion import TA, load_ta
from matta_cli.data import loader
from matta_cli.devices import World
from matta_cli.errors import Interrupted, MattaError, command
from matta_cli.progress import Listener, Progress, quiet
from matta_cli.recipe import Recipe, run_recipe, tomllib
from matta_cli.step import ModelTeacher, Step, Teacher, asks_teacher
from matta_cli.tasks import Batch, Data, Split, Task
from matta_cli.teacher_files import FileTeacher
from matta_cli.teachers import check_teacher, load_teacher

STATISTICS_BATCHES, STATISTICS_ROWS = 16, 64  # at least so many rows a batch, whatever training uses


def distill(recipe: Recipe, out: Path, *, overwrite: bool = False, resume: bool = False, listen: Listener = quiet) -> Path:
    """Train ``out/ta`` into ``out/run`` by the recipe. Returns the last checkpoint, a TA folder.

    Under torchrun every process calls this; the batch is divided among them, and the first one writes. Raises
    ``MattaError`` for settings that make no sense, a Teacher that does not fit or is at chance, missing data, a
    non-finite loss, a full disk or memory; ``Interrupted`` after Ctrl-C, once the checkpoint is saved.
    """
    device = devices.pick(devices.local(recipe.distill.device))
    with devices.joined(device) as world:
        return _distill(recipe, out, device, world, overwrite, resume, listen if world.first else quiet)


def _distill(
    recipe: Recipe, out: Path, device: torch.device, world: World, overwrite: bool, resume: bool, listen: Listener
) -> Path:
    run = out / "run"
    if world.first:
        _mend(out)
    world.wait()
    last, damaged = checkpoint.newest(run), list[Path]()
    if resume and overwrite:
        raise MattaError("--resume goes on with the run, and --overwrite replaces it: pass one of them.")
    if resume:
        last, damaged = checkpoint.newest_sound(run)
        for path in damaged:
            listen(Progress(message=f"{path} is damaged and is left out."))
        if last is None:
            raise MattaError(f"There is no {'sound ' if damaged else ''}checkpoint in {run} to resume from.")
    if last is not None and not (resume or overwrite):  # what stopped before its first checkpoint is not worth a refusal
        _refuse_stopped(out, last)
        checkpoint.refuse_existing(run, overwrite)
    task, ta, teacher, data = opened(recipe, out, device, world, listen)
    given = teacher.folder if isinstance(teacher, ModelTeacher) else None
    if given is not None and task.name == "causal_lm" and not models.has_tokenizer(out / "ta") and world.first:
        models.copy_companions(given, out / "ta")
    world.wait()
    if resume:
        assert last is not None
        digest = ta.card["lineage"]["digest"]
        ta = load_ta(last)
        refuse_other_ta(digest, ta, last)
    world.wait()
    lock = checkpoint.alone(out, checkpoint.TRAINING) if world.first else nullcontext()
    with lock, _set_aside(run, keep=resume or not world.first):
        world.wait()
        training = Training(recipe, run, task, ta, teacher, data, device, world)
        if resume and last is not None:
            training.load(last)
            training.damaged = set(damaged)
            if world.first:
                _rewind(run / "metrics.jsonl", training.counters.step)
            listen(Progress(message=f"Resuming from step {training.counters.step}{_other_count(last, world)}."))
        with _explained(training):
            return training.run_steps(listen)


def opened(
    recipe: Recipe, out: Path, device: torch.device, world: World, listen: Listener
) -> tuple[Task, TA, ModelTeacher | FileTeacher | None, Data]:
    """What a run works with, checked: the task, the TA as it was converted, the Teacher, the data.

    There is no Teacher where none is named and the recipe has no term for one (``teacher_mix = 0``: labels alone).
    """
    ta = load_ta(out / "ta")
    _check(recipe, ta, world)
    task = registry.task(ta.adapter.task, recipe)
    folder = out / "ta"
    if supernet.has_statistics(ta.model) and min(_parts(recipe, world)) < 2:
        raise MattaError("--batch-size 1 is not possible: the model has BatchNorm, which needs 2 examples or more at a time.")
    if not recipe.distill.teacher and not asks_teacher(recipe.distill, task):
        data = task.data(folder, ta.model)
        listen(Progress(message=f"Data: {data.description}"))
        return task, ta, None, data
    if teacher_files.is_file(recipe.distill.teacher):
        data = task.data(folder, ta.model)
        listen(Progress(message=f"Data: {data.description}"))
        said = FileTeacher(recipe.distill.teacher, task, data, task.outputs(ta.model))
        said.check(recipe)
        return task, ta, said, data
    model, source = load_teacher(recipe, task, ta, device)
    if source.beside is not None and task.name == "causal_lm" and not models.has_tokenizer(folder):
        folder = source.beside  # the same vocabulary, so the Teacher's tokenizer is the model's
    data = task.data(folder, ta.model)
    listen(Progress(message=f"Data: {data.description}"))
    check_teacher(recipe, task, model, task.outputs(ta.model), data.held_out[0], device)
    return task, ta, ModelTeacher(task, model, folder), data


@dataclass
class Counters:
    """What a run has come to, besides its tensors. best: (value, step) of the checkpoint that is kept for its metric."""

    step: int = 0
    seconds: float = 0.0
    bad_in_a_row: int = 0
    bad_steps: int = 0
    best_value: float | None = None
    best_step: int = 0
    loss_scale: dict[str, Any] = field(default_factory=dict)
    processes: int = 1


class Training:
    """A run: the models, the optimizer and the counters, which a checkpoint holds, and the loop over the steps."""

    def __init__(
        self, recipe: Recipe, run: Path, task: Task, ta: TA, teacher: Teacher | None, data: Data, device: torch.device,
        world: World, *, count_flops: bool = False,
    ) -> None:  # fmt: skip
        self.recipe, self.run, self.task, self.ta, self.data = recipe, run, task, ta, data
        self.device, self.world, self.counters = device, world, Counters(processes=world.size)
        if not recipe.distill.shared and not ta.copies:
            ta.copies = {width: ta.student(width) for width in recipe.distill.widths}
        for model in (ta.model, *ta.copies.values()):
            model.to(device)
        self.damaged: set[Path] = set()  # checkpoints of the run that do not count
        self.step = Step(recipe, task, ta, teacher, device)
        first = {name: tensor.to(device) for name, tensor in data.train.batch(self.drawn(0, {})[0]).items()}
        self.peak = devices.peak_flops(device, recipe.distill.precision)
        each = recipe.distill.batch_size // world.size
        self.flops = each * self.step.flops(first) if count_flops or self.peak else None  # of this process, in a step
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
        self.optimizer = optimization.make_optimizer(recipe, ta.model, self.extra, device)
        self.parameters = [p for p in [*ta.model.parameters(), *self.extra] if p.requires_grad]

    @property
    def again(self) -> str:
        """The command that goes on with the run."""
        return command("distill", self.run.parent, "--resume")

    def run_steps(self, listen: Listener) -> Path:
        """Train from where the counters are to the end. Returns the last checkpoint."""
        settings, counters = self.recipe.distill, self.counters
        eval_every = settings.eval_every or max(1, settings.steps // 10)
        save_every = settings.save_every or eval_every
        steps = range(counters.step, settings.steps)
        saved = checkpoint.newest(self.run) if self.world.first else None
        if settings.steps < counters.step:
            raise MattaError(f"There is nothing to train: --steps is {settings.steps}, and the run is at step {counters.step}.")
        if not steps:  # and the settings of a run that is finished stay what they were
            listen(Progress(message=f"The run is finished, at step {counters.step}: nothing was trained, no setting changed."))
            return saved or self.run / "checkpoints" / f"step-{counters.step}"
        began, before = time.perf_counter(), counters.seconds
        graphs = 0
        if settings.compile:
            listen(Progress(message=f"Compiling {len(self.step.models)} graphs, one for each width."))
            first = self.data.train.batch(self.drawn(counters.step, {})[0])
            first = {name: tensor.to(self.device) for name, tensor in first.items()}
            graphs = self.step.warm_up(first)
            listen(Progress(message=f"Compiled in {time.perf_counter() - began:.1f} s."))
        with (
            closing(self.batches(steps)) as stream,
            interruptible() as pressed,
            tracking.Log(self.run, self.recipe, counters.step, self.world.first) as log,
        ):
            for step in steps:
                started = time.perf_counter()
                batches = next(stream)
                waited = time.perf_counter() - started
                record = self.take(step, batches)
                counters.step, counters.seconds = step + 1, before + time.perf_counter() - began
                stop = self._agree(bool(pressed))
                taken = time.perf_counter() - started
                per_second = self.world.size * sum(self.task.items(batch) for batch, _ in batches) / taken
                record |= {f"{self.data.unit}_per_second": per_second, "waiting": waited / taken}
                end = step + 1 == settings.steps
                due = (step + 1) % save_every == 0 or end or stop
                if (step + 1) % eval_every == 0 or end:
                    ta = self._whole()
                    if self.world.first:
                        record["evaluation"] = measure(self.recipe, self.task, ta, self.data, self.device)
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
                log.write(report.plain(record))
                listen(Progress(step + 1, settings.steps, record["terms"], per_second, self.data.unit, waited / taken, used))
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
            listen(Progress(message=f"{counters.bad_steps} of {counters.step} steps were skipped: their loss was not finite."))
        return saved or self.run / "checkpoints" / f"step-{counters.step}"

    def drawn(self, step: int, order: dict[int, Tensor]) -> list[list[int]]:
        """The numbers of this process's examples of a step, ``micro_batch`` at a time. order: a cache."""
        settings = self.recipe.distill
        chosen = self.world.part(sampling.indices(settings.seed, step, settings.batch_size, len(self.data.train), order))
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
        """Train on one step's batches, if its loss and gradients are finite. Returns the log's record."""
        settings, counters, scaler = self.recipe.distill, self.counters, self.step.scaler
        sampling.seed_step(settings.seed, step * self.world.size + self.world.rank)
        self.ta.model.train()
        buffers = [b for model in (self.ta.model, *self.ta.copies.values()) for b in model.buffers()]
        before = [buffer.clone() for buffer in buffers]  # a bad batch must not stay in the statistics
        over = self._counts([batch for batch, _ in batches])
        sums: dict[tuple[str, str], Tensor] = {}
        for batch, rows in batches:
            found = self.step({name: tensor.to(self.device) for name, tensor in batch.items()}, rows, step, over)
            for model, terms in found.items():
                for name, value in terms.items():
                    sums[model, name] = sums[model, name] + value if (model, name) in sums else value
        if not settings.shard:
            self.world.share_gradients(self.parameters)
        values = self.world.total(torch.stack([value.float() for value in sums.values()])).tolist()
        record: dict[str, dict[str, float]] = {model: {} for model, _ in sums}
        for (model, name), value in zip(sums, values, strict=True):
            record[model][name] = value
        scaler.unscale_(self.optimizer)
        norm = float(devices.gathered(nn.utils.clip_grad_norm_(self.parameters, settings.clip or math.inf)))
        if math.isfinite(norm) and all(map(math.isfinite, values)):
            counters.bad_in_a_row = 0
            for group in self.optimizer.param_groups:
                group["lr"] = optimization.learning_rate(self.recipe, step)
            with optimization.untouched(self.ta, self._trained(step), self.optimizer):
                scaler.step(self.optimizer)
        else:
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)
            counters.bad_steps += 1
            # fp16's scale finds its level by overflowing: that is no fault of the run until the scale is used up
            counters.bad_in_a_row += 0 if scaler.is_enabled() and scaler.get_scale() > 1 else 1
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if counters.bad_in_a_row >= settings.max_bad_steps:
            last = checkpoint.newest(self.run)
            raise MattaError(
                f"The loss or its gradient is not finite at step {step}, the last {counters.bad_in_a_row} in a row; "
                f"{f'{last} is kept' if last else 'nothing was saved'}. Try a lower --lr."
            )
        lr = self.optimizer.param_groups[0]["lr"]
        return {
            "step": step + 1, "lr": lr, "terms": record, "ramp": self.step.ramp(step), "gradient_norm": norm,
            "skipped": counters.bad_steps,
        }  # fmt: skip

    def _counts(self, batches: list[Batch]) -> dict[str, float]:
        """What the step's losses are averaged over, on all processes."""
        each = [self.task.counts(batch) for batch in batches]
        total = self.world.total(torch.tensor([[c["labels"], c["outputs"]] for c in each], device=self.device).sum(0))
        return {"labels": float(total[0]), "outputs": float(total[1])}

    def _trained(self, step: int) -> dict[str, int]:
        """The sizes of the TA that had a part in a step: widths nest, so those of the widest."""
        if self.recipe.distill.ta_weight > 0 or self.ta.copies:
            return supernet.full_sizes(self.ta.axes)
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
        if counters.best_value is not None and (value > counters.best_value) != primary.higher:
            return False
        counters.best_value, counters.best_step = value, counters.step
        return True

    def _whole(self) -> TA:
        """The TA; of a sharded one a copy that is not (every process has to ask)."""
        ta = self.ta
        if not self.recipe.distill.shard:
            return ta
        state = {name: devices.gathered(tensor) for name, tensor in ta.model.state_dict().items()}
        model = ta.adapter.build(ta.model, {})
        model.load_state_dict(state)
        return TA(ta.adapter, model.to(self.device), ta.axes, ta.base, ta.card)

    # Checkpoints: a stock TA folder, plus what resuming needs

    def save(self) -> Path | None:
        """Write ``checkpoints/step-N`` whole: the TA as a stock folder, the optimizer's tensors, the counters.

        Every process calls this; the first one writes, and gets the folder.
        """
        ta, counters, recipe = self._whole(), self.counters, self.recipe
        path = self.run / "checkpoints" / f"step-{counters.step}"
        counters.loss_scale = self.step.scaler.state_dict()
        tensors, numbers = optimization.state_of(self.optimizer)
        if self.step.projection is not None:
            tensors["projection"] = self.step.projection.weight.detach().clone()
        if not self.world.first:
            return None
        with checkpoint.atomic_folder(path, overwrite=True) as folder:
            models.save_model(ta.adapter, ta.model, folder)
            models.copy_companions(self.run.parent / "ta", folder)
            card = {
                k: v for k, v in ta.card.items() if k not in ("format", "matta", "adapter", "task", "axes", "base", "lineage")
            }
            more = {**card, "steps": counters.step}
            checkpoint.write_card(folder, ta.adapter, ta.axes, ta.base, ta.card["lineage"], **more)
            for width, model in ta.copies.items():
                target = folder / "unshared" / f"width-{width:g}"
                target.mkdir(parents=True)
                models.save_model(ta.adapter, model, target)
            (folder / "optimizer").mkdir()
            save_file(tensors, str(folder / "optimizer" / "state.safetensors"))
            trainer = json.dumps({**asdict(counters), "optimizer": numbers, "recipe": recipe.text(("distill",))})
            (folder / "trainer.json").write_text(trainer + "\n", encoding="utf-8")
            checkpoint.seal(folder)
        self.damaged.discard(path)
        if recipe.distill.keep:
            sound = [p for p in checkpoint.steps(self.run) if p not in self.damaged]
            passed = [p for p in self.damaged if checkpoint.step_of(p) < counters.step]
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
                raise MattaError(f"{folder} was trained without distill.hidden_weight: leave it out, or start again.")
            with torch.no_grad():
                self.step.projection.weight.copy_(tensors.pop("projection"))
        try:
            optimization.restore(self.optimizer, tensors, stored["optimizer"])
        except (KeyError, RuntimeError):
            raise MattaError(f"{folder} was trained with another optimizer than {self.recipe.distill.optimizer!r}.") from None
        known = {f: stored[f] for f in Counters.__dataclass_fields__ if f in stored}
        self.counters = Counters(**known | {"processes": self.world.size})
        if self.counters.loss_scale:
            self.step.scaler.load_state_dict(self.counters.loss_scale)


def _other_count(last: Path, world: World) -> str:
    """What to say where a run goes on in another number of processes than it was saved by."""
    before = json.loads((last / "trainer.json").read_text(encoding="utf-8")).get("processes", 1)
    if before == world.size:
        return ""
    devices_now = f"{world.size} device{'s' if world.size > 1 else ''}"
    return f", on {devices_now} what ran on {before}: the same batches, sums in another order"


def _parts(recipe: Recipe, world: World) -> set[int]:
    """The numbers of examples that go through the models at a time."""
    each = recipe.distill.batch_size // world.size
    size = recipe.distill.micro_batch or each
    return {min(size, each), each % size or size}


def _refuse_stopped(out: Path, last: Path) -> None:
    """Raise ``MattaError`` if the run whose last checkpoint that is stopped before its end."""
    try:
        wanted = run_recipe(out).distill.steps
    except MattaError:  # what it was to be is not known
        return
    step = checkpoint.step_of(last)
    if step < wanted:
        raise MattaError(
            f"A run in {out / 'run'} has stopped at step {step} of {wanted}; pass --resume to go on with it, or "
            "--overwrite to start again."
        )


@contextmanager
def _explained(training: Training) -> Iterator[None]:
    """Say in a sentence what a run died of: no memory, no disk, another process."""
    settings, counters = training.recipe.distill, training.counters
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MattaError(_out_of_memory(training, str(error))) from None
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        last = checkpoint.newest(training.run)
        what = "The disk is full" if full else f"A file could not be written ({str(error).splitlines()[0]})"
        then = (
            f"{last} is kept: make room there, then go on with `{training.again}`"
            if last
            else ("nothing was saved: make room there, then run the same command again")
        )
        raise MattaError(f"{what} at step {counters.step} of {settings.steps}, in {training.run}; {then}.") from error
    except RuntimeError as error:
        said = str(error)
        if "can't allocate memory" in said:
            raise MattaError(_out_of_memory(training, said)) from None
        if training.world.size > 1 and any(word in said for word in ("Connection", "NCCL", "gloo", "peer")):
            last = training.save() if not settings.shard and training.world.first else checkpoint.newest(training.run)
            raise MattaError(
                f"Another process of the run has died at step {training.counters.step}; {last} holds what was reached: go on "
                f"with `{training.again}`."
            ) from error
        raise


def _out_of_memory(training: Training, said: str) -> str:
    """What took the memory, and what helps."""
    teacher = getattr(training.step.teacher, "model", None)
    weights = sum(p.numel() * p.element_size() for p in training.parameters)
    state = sum(t.numel() * t.element_size() for t in optimization.state_of(training.optimizer)[0].values())
    theirs = sum(p.numel() * p.element_size() for p in teacher.parameters()) if teacher is not None else 0
    settings = training.recipe.distill
    now = settings.micro_batch or settings.batch_size // training.world.size
    help_ = [f"--micro-batch {max(1, now // 2)}"] if now > 1 else []
    help_ += [] if settings.checkpoint_activations else ["--checkpoint-activations"]
    help_ += ["a smaller --sequence-length"] if training.task.name == "causal_lm" else []
    wanted = next((part.strip() for part in said.replace("\n", " ").split(".") if "allocate" in part), "")
    return (
        f"Out of memory on {training.device} at step {training.counters.step}: weights and gradients of the TA take "
        f"{2 * weights / 1e9:.2f} GB, the optimizer {state / 1e9:.2f} GB, the Teacher {theirs / 1e9:.2f} GB, activations of "
        f"{now} examples the rest ({wanted}). Try {' or '.join(help_) or 'a larger device'}."
    )


# Evaluation


def student_for_evaluation(
    task: Task, ta: TA, width: float | Sizes, train: Split, batch_size: int, device: torch.device
) -> nn.Module:
    """A dense copy of a Student, with BatchNorm statistics of its own where it has BatchNorm."""
    student = ta.student(width)
    if supernet.has_statistics(student):
        # drawn at random: the first rows of a file that is sorted would stand for themselves only
        size = min(max(batch_size, STATISTICS_ROWS), len(train))
        drawn = sampling.example_order(0, 0, len(train))[: STATISTICS_BATCHES * size]
        batches = [{k: v.to(device) for k, v in train.batch(part.tolist()).items()} for part in drawn.split(size)]
        if len(batches) > 1 and len(drawn) % size:
            del batches[-1]  # a short batch would weigh as much as a whole one
        supernet.recompute_statistics(student, batches, task.forward)
    return student


def own_statistics(task: Task, ta: TA, width: float | Sizes, train: Split, batch_size: int) -> dict[str, Tensor]:
    """The buffers of a Student where it has BatchNorm, with statistics of its own; else none."""
    if not supernet.has_statistics(ta.model):
        return {}
    return dict(student_for_evaluation(task, ta, width, train, batch_size, torch.device("cpu")).named_buffers())


def measure(recipe: Recipe, task: Task, ta: TA, data: Data, device: torch.device) -> dict[str, dict[str, float]]:
    """The task's metrics of the TA and of each width, by name."""
    size, limit = recipe.distill.micro_batch or recipe.distill.batch_size, recipe.distill.eval_examples
    found: dict[str, dict[str, float]] = {}
    for width in [*sorted(recipe.distill.widths), None]:
        if width is None and f"{ta.widest:g}" in found and not ta.copies and not supernet.has_statistics(ta.model):
            found["TA"] = found[f"{ta.widest:g}"]  # the same model
            continue
        model = ta.model.eval() if width is None else student_for_evaluation(task, ta, width, data.train, size, device)
        tables = [evaluate.columns(task, model, split, size, device, limit) for split in data.held_out]
        found["TA" if width is None else f"{width:g}"] = evaluate.metrics(task, tables)
    return found


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """A list that Ctrl-C and SIGTERM fill, so that a run stops between steps; a second one stops at once, saving nothing.

    Only between steps do weights, BatchNorm statistics, optimizer and log agree on how many steps they hold.
    """
    pressed: list[int] = []

    def handler(number: int, _frame: Any) -> None:
        if number in pressed:  # torchrun sends SIGTERM after a Ctrl-C, and then waits
            raise KeyboardInterrupt
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield pressed
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def _set_aside(run: Path, *, keep: bool) -> Iterator[None]:
    """Move a finished run out of the way; it comes back if its successor stops before the first checkpoint."""
    if not keep and run.exists():
        shutil.rmtree(_old(run), ignore_errors=True)
        run.replace(_old(run))
    try:
        yield
    finally:
        _bring_back(run)
        shutil.rmtree(_old(run), ignore_errors=True)


def _old(run: Path) -> Path:
    """Where a finished run lies until its successor has a checkpoint."""
    return run.with_name(f".{run.name}.old")


def _bring_back(run: Path) -> None:
    """A finished run back in its place, if its successor left no checkpoint."""
    if checkpoint.newest(run) is None and checkpoint.newest(_old(run)) is not None:
        shutil.rmtree(run, ignore_errors=True)
        _old(run).replace(run)


def _mend(out: Path) -> None:
    """Bring back a finished run whose successor was killed. Raises ``MattaError`` while one is training."""
    if checkpoint.newest(out / "run") is None and checkpoint.newest(_old(out / "run")) is not None:
        with checkpoint.alone(out, checkpoint.TRAINING):
            _bring_back(out / "run")


def refuse_other_ta(digest: str, ta: TA, folder: Path) -> None:
    """Raise ``MattaError`` if the TA of a run did not come from the TA that lies beside it now."""
    if ta.card["lineage"]["digest"] != digest:
        raise MattaError(f"{folder} trained another TA than the one that was converted since: distill again with --overwrite.")


@dataclass(frozen=True)
class Reached:
    """What a run has come to: a checkpoint's folder, its TA, its counters, and the recipe that it was trained by."""

    folder: Path
    ta: TA
    counters: dict[str, Any]
    recipe: Recipe


def reached(out: Path, which: str, say: Callable[[str], None] = lambda _: None) -> Reached:
    """The trained TA in ``out``, of the checkpoint that ``export.checkpoint``'s words name. Damaged ones are named by ``say``.

    Raises ``MattaError`` where there is none, or where it trained another TA than the one in ``out/ta``.
    """
    _mend(out)
    last, damaged = checkpoint.chosen(out / "run", which)
    for path in damaged:
        say(f"{path} is damaged and is left out.")
    if last is None:
        raise MattaError(f"There is no trained TA in {out / 'run'}: run `{command('distill', out)}` first.")
    ta = load_ta(last)
    refuse_other_ta(checkpoint.read_card(out / "ta")["lineage"]["digest"], ta, last)
    counters = json.loads((last / "trainer.json").read_text(encoding="utf-8"))
    recipe = Recipe()
    recipe.update(tomllib.loads(counters["recipe"]), str(last))
    return Reached(last, ta, counters, recipe)


def _rewind(log: Path, step: int) -> None:
    """Drop the records after a checkpoint: the steps they tell of are taken again."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            continue  # a line that was cut short by a kill
    checkpoint.atomic_write(log, "".join(kept))


def _check(recipe: Recipe, ta: TA, world: World) -> None:
    """Settings that make no sense, each with a sentence, before anything is loaded."""
    s = recipe.distill
    for name, value in (
        ("steps", s.steps), ("batch-size", s.batch_size), ("lr", s.lr), ("max-bad-steps", s.max_bad_steps),
        ("temperature", s.temperature),
    ):  # fmt: skip
        if not value > 0:
            raise MattaError(f"--{name} {value:g} is not possible: it must be above 0.")
    for name in ("teacher_mix", "ramp", "warmup"):
        if not 0 <= getattr(s, name) <= 1:
            raise MattaError(f"distill.{name} {getattr(s, name):g} is not possible: it is a share from 0 to 1.")
    for name in (
        "student_weight", "ta_weight", "ta_student_weight", "hidden_weight", "weight_decay", "clip", "micro_batch", "keep",
        "save_every", "eval_every", "eval_examples", "relation_weight",
    ):  # fmt: skip
        if not 0 <= getattr(s, name) < math.inf:
            raise MattaError(f"distill.{name} {getattr(s, name):g} is not possible: it must be 0 or more.")
    for name, known in (
        ("ranking_loss", ("pointwise", "pairwise", "listwise")), ("divergence", losses.DIVERGENCES),
        ("students_learn_from", ("both", "ta", "teacher")), ("logits", ("auto", "chunked", "whole")),
        ("precision", devices.PRECISIONS), ("optimizer", optimization.OPTIMIZERS), ("compile", ("", *_backends(s.compile))),
    ):  # fmt: skip
        if getattr(s, name) not in known:
            flag = f"--{name.replace('_', '-')}" if name in ("ranking_loss", "precision", "optimizer") else f"distill.{name}"
            raise MattaError(f"{flag} {getattr(s, name)!r} is not known: {', '.join(k for k in known if k)}.")
    tracking.check(s.log_to)
    if not s.widths:
        raise MattaError("There are no widths to train: name some in distill.widths.")
    for width in s.widths:
        ta.sizes(width)
    if s.students_per_step < 1:
        raise MattaError(f"distill.students_per_step {s.students_per_step} is not possible: a step has 1 Student or more.")
    if s.sampling and (len(s.sampling) != len(s.widths) or not all(0 < w < math.inf for w in s.sampling)):
        raise MattaError(f"distill.sampling {s.sampling} is not possible: it is one number above 0 for each of {s.widths}.")
    if s.best and s.best not in s.widths:
        raise MattaError(f"distill.best {s.best:g} is not one of the widths {', '.join(f'{w:g}' for w in s.widths)}.")
    if s.ta_width:
        ta.sizes(s.ta_width)
        if not s.detach_ta:
            raise MattaError("distill.ta_width is not supported with detach_ta = false: it then teaches at its whole width.")
    own_views = s.hidden_weight or s.logits == "chunked" or s.checkpoint_activations or s.compile or not s.dropout
    if not s.shared and own_views:
        raise MattaError(
            "distill.shared = false is an ablation: hidden_weight, logits = 'chunked', checkpoint_activations, compile and "
            "dropout = false are not supported with it."
        )
    if s.shard and world.size == 1:
        raise MattaError(
            "distill.shard needs several devices: pass --devices 2 or more, start it with torchrun, or pass --no-shard."
        )
    own_way = s.optimizer != "adamw" or not s.shared or not s.detach_ta or s.ta_weight == 0
    if s.shard and (own_way or s.hidden_weight or s.compile):
        raise MattaError(
            "distill.shard is not supported with another optimizer than adamw, with shared = false, detach_ta = false, "
            "ta_weight = 0, hidden_weight or compile."
        )
    check_count(s.batch_size, world.size)
    if s.compile and len(_parts(recipe, world)) > 1:
        raise MattaError(f"--compile needs batches of one size: --micro-batch {s.micro_batch} does not divide the batch.")


def check_count(batch_size: int, devices: int) -> None:
    """Raise ``MattaError`` where a batch cannot be divided among the devices."""
    if batch_size % devices:
        raise MattaError(f"--batch-size {batch_size} cannot be divided among {devices} devices: take a multiple.")


def _backends(wanted: str) -> list[str]:
    """torch.compile's backends, looked up only where one is wanted: that takes a second."""
    return torch._dynamo.list_backends(None) if wanted else []
