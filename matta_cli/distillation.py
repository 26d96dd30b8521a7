"""distill: train the TA and its nested Students in one run, Teacher -> TA -> Student, online (MatTA, arXiv 2505.23337)."""

from __future__ import annotations

import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matta_cli import checkpoint, evaluate, models, registry, sampling, supernet
from matta_cli.conversion import TA, load_ta
from matta_cli.data import loader
from matta_cli.errors import Interrupted, MattaError
from matta_cli.recipe import Recipe
from matta_cli.tasks import Batch, Data, Split, Task

STATISTICS_BATCHES, STATISTICS_ROWS = 16, 64  # at least so many rows a batch, whatever training uses
CHANCE_EXAMPLES = 256


@dataclass
class Progress:
    """What a run tells the outside: called with one of these after every step, and for every message."""

    step: int = 0
    steps: int = 0
    terms: dict[str, dict[str, float]] = field(default_factory=dict)
    per_second: float = 0.0
    unit: str = "items"
    message: str = ""


Listener = Callable[[Progress], None]


def quiet(_: Progress) -> None:
    """A listener that hears nothing."""


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one. Raises ``MattaError`` for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise MattaError(f"Device {name!r} is not available here; pass --device cpu or leave it out.") from None
    return device


@contextmanager
def precision(device: torch.device) -> Iterator[None]:
    """bf16 autocast on CUDA (float32 where the card has no bf16), plain float32 elsewhere."""
    wanted = device.type == "cuda" and torch.cuda.is_bf16_supported()
    with torch.autocast(device.type, torch.bfloat16, enabled=wanted):
        yield


def load_teacher(recipe: Recipe, task: Task, ta: TA, device: torch.device) -> tuple[nn.Module, models.Source]:
    """The frozen Teacher on ``device``. Raises ``MattaError`` if its outputs are not the TA's."""
    name = recipe.distill.teacher
    if not name:
        raise MattaError("No Teacher is named: pass --teacher with a local folder, a hub id, a timm name or a state dict.")
    teacher, source = models.load_model(name, ta.adapter.task)
    try:
        teacher = task.fit_teacher(teacher, source.folder, ta.model)
    except MattaError as error:
        raise MattaError(f"Teacher {name!r}: {error}") from None
    return teacher.to(device).eval().requires_grad_(False), source


def check_teacher(recipe: Recipe, task: Task, teacher: nn.Module, outputs: int, split: Split, device: torch.device) -> None:
    """Refuse a Teacher that does not run on the data, or is no better than guessing on the first examples."""
    try:
        table = evaluate.columns(task, teacher, split, recipe.distill.batch_size, device, CHANCE_EXAMPLES)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:  # whatever its own code makes of it
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MattaError(f"The Teacher {recipe.distill.teacher!r} does not run on this data: {said}.") from error
    sentence = None if recipe.distill.allow_weak_teacher else task.at_chance(table, outputs)
    if sentence:
        raise MattaError(
            f"The Teacher {recipe.distill.teacher!r} is too weak: {sentence.rstrip('.')}. Pass --allow-weak-teacher to go on."
        )


class Step:
    """One training step as the recipe has it; holds the views of the widths that it trains.

    L = ta_weight l(TA) + mean over Students [student_weight l(S) + b(t) KD(TA -> S)], where
    l = (1 - teacher_mix) ground truth + teacher_mix KD(Teacher -> .) and b(t) ramps up from zero.
    The TA's logits are detached as a source, so each term is backpropagated as soon as it is known and its graph freed.
    """

    def __init__(self, recipe: Recipe, task: Task, ta: TA, teacher: nn.Module, device: torch.device) -> None:
        self.settings, self.task, self.ta, self.teacher, self.device = recipe.distill, task, ta, teacher, device
        self.views = {width: ta.at(width) for width in self.settings.widths}

    def ramp(self, step: int) -> float:
        """b(t), the weight of the TA -> Student term at a step."""
        length = self.settings.ramp * self.settings.steps
        return self.settings.ta_student_weight * (min(1.0, step / length) if length > 0 else 1.0)

    def own(self, logits: Tensor, taught: Tensor | None, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """l(., y, T), and its terms."""
        mix, terms, total = self.settings.teacher_mix, {}, logits.new_zeros(())
        if mix < 1:
            terms["truth"] = self.task.loss(logits, batch)
            total = total + (1 - mix) * terms["truth"]
        if taught is not None:
            terms["teacher"] = self.task.distill_loss(logits, taught, batch, self.settings.temperature)
            total = total + mix * terms["teacher"]
        return total, {name: term.detach() for name, term in terms.items()}

    def __call__(self, batch: Batch, step: int) -> dict[str, dict[str, Tensor]]:
        """Add the step's gradients to the TA's parameters. Returns every term by model, as detached scalars."""
        settings, task = self.settings, self.task
        taught: Tensor | None = None
        with precision(self.device):
            if settings.teacher_mix > 0:
                with torch.no_grad():
                    taught = task.forward(self.teacher, batch)
            logits = task.forward(self.ta.model, batch)
            loss, terms = self.own(logits, taught, batch)
        (settings.ta_weight * loss).backward()
        found = {"TA": {**terms, "loss": loss.detach()}}
        source, weight = logits.detach(), self.ramp(step)
        widths = sampling.sandwich(settings.seed, step, settings.widths)
        for width in widths:
            with precision(self.device):
                logits = task.forward(self.views[width].train(), batch)
                loss, terms = self.own(logits, taught, batch)
                total = settings.student_weight * loss
                if weight > 0:
                    terms["ta"] = task.distill_loss(logits, source, batch, settings.temperature)
                    total = total + weight * terms["ta"]
                    terms["ta"] = terms["ta"].detach()
            (total / len(widths)).backward()
            found[f"{width:g}"] = {**terms, "loss": loss.detach()}
        return found


def make_optimizer(recipe: Recipe, model: nn.Module, device: torch.device) -> torch.optim.AdamW:
    """AdamW; vectors (biases, norms) are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": recipe.distill.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.distill.lr, fused=device.type == "cuda" or None)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then cosine down to a tenth of the peak."""
    settings = recipe.distill
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, settings.steps - warmup)
    return settings.lr * (0.55 + 0.45 * math.cos(math.pi * done))


def _norm(parameters: list[nn.Parameter], most: float) -> float:
    """The gradient's norm, clipped in place to ``most`` (0: not clipped)."""
    return float(torch.nn.utils.clip_grad_norm_(parameters, most or math.inf))


# Checkpoints: a stock TA folder, plus what resuming needs


def save_checkpoint(run: Path, ta: TA, optimizer: torch.optim.Optimizer, recipe: Recipe, counters: dict[str, Any]) -> Path:
    """Write ``checkpoints/step-N`` whole: the TA as a stock folder, the optimizer's tensors, and the counters."""
    from safetensors.torch import save_file

    path = run / "checkpoints" / f"step-{counters['step']}"
    with checkpoint.atomic_folder(path, overwrite=True) as folder:
        ta.adapter.save(ta.model, folder)
        models.copy_companions(run.parent / "ta", folder)
        card = {k: v for k, v in ta.card.items() if k not in ("format", "matta", "adapter", "task", "axes", "base", "lineage")}
        checkpoint.write_card(folder, ta.adapter, ta.axes, ta.base, ta.card["lineage"], **{**card, "steps": counters["step"]})
        state = optimizer.state_dict()["state"]
        tensors = {f"{i}.{key}": torch.as_tensor(v).contiguous() for i, s in state.items() for key, v in s.items()}
        (folder / "optimizer").mkdir()
        save_file(tensors, str(folder / "optimizer" / "state.safetensors"))
        trainer = json.dumps({**counters, "recipe": recipe.text(("distill",))})
        (folder / "trainer.json").write_text(trainer + "\n", encoding="utf-8")
        checkpoint.seal(folder)
    return path


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint's optimizer state back. Returns its counters."""
    from safetensors.torch import load_file

    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in load_file(str(folder / "optimizer" / "state.safetensors")).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return json.loads((folder / "trainer.json").read_text(encoding="utf-8"))


# Evaluation


def student_for_evaluation(task: Task, ta: TA, width: float, train: Split, batch_size: int, device: torch.device) -> nn.Module:
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


def measure(recipe: Recipe, task: Task, ta: TA, data: Data, device: torch.device) -> dict[str, dict[str, float]]:
    """The task's metrics of the TA and of each width, by name."""
    size, limit = recipe.distill.batch_size, recipe.distill.eval_examples
    found = {}
    for width in [*sorted(recipe.distill.widths), None]:
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
        if pressed:
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


def distill(recipe: Recipe, out: Path, *, overwrite: bool = False, resume: bool = False, listen: Listener = quiet) -> Path:
    """Train ``out/ta`` into ``out/run`` by the recipe. Returns the last checkpoint, a TA folder.

    Raises ``MattaError`` for settings that make no sense, a Teacher that does not fit or is at chance, missing data, a
    non-finite loss; ``Interrupted`` after Ctrl-C, once the checkpoint is saved.
    """
    settings, run = recipe.distill, out / "run"
    ta = load_ta(out / "ta")
    _check(recipe, ta)
    last = checkpoint.newest(run)
    if resume:
        last, damaged = checkpoint.newest_sound(run)
        for path in damaged:
            listen(Progress(message=f"{path} is damaged and is left out."))
        if last is None:
            raise MattaError(f"There is no {'sound ' if damaged else ''}checkpoint in {run} to resume from.")
    if not resume and last is not None:  # what stopped before its first checkpoint is not worth a refusal
        checkpoint.refuse_existing(run, overwrite)
    device = pick_device(settings.device)
    task = registry.task(ta.adapter.task, recipe)
    teacher, source = load_teacher(recipe, task, ta, device)
    if source.folder is not None and task.name == "causal_lm" and not models.has_tokenizer(out / "ta"):
        models.copy_companions(source.folder, out / "ta")  # the same vocabulary, so the Teacher's tokenizer is the model's
    data = task.data(out / "ta", ta.model)
    listen(Progress(message=f"Data: {data.description}"))
    check_teacher(recipe, task, teacher, task.outputs(ta.model), data.held_out[0], device)

    if supernet.has_statistics(ta.model) and settings.batch_size < 2:
        raise MattaError("--batch-size 1 is not possible: the model has BatchNorm, which needs 2 examples or more.")

    if resume:
        assert last is not None
        digest = ta.card["lineage"]["digest"]
        ta = load_ta(last)
        refuse_other_ta(digest, ta, last)
    with _alone(out), _set_aside(run, keep=resume):
        if resume and last is not None:
            _rewind(run / "metrics.jsonl", json.loads((last / "trainer.json").read_text(encoding="utf-8"))["step"])
        return _train(recipe, run, task, ta, teacher, data, device, last if resume else None, listen)


def _train(
    recipe: Recipe, run: Path, task: Task, ta: TA, teacher: nn.Module, data: Data, device: torch.device,
    last: Path | None, listen: Listener,
) -> Path:  # fmt: skip
    """The loop of ``distill``, from the checkpoint ``last`` on if there is one."""
    settings = recipe.distill
    run.mkdir(parents=True, exist_ok=True)
    checkpoint.atomic_write(run / "recipe.toml", recipe.text())
    ta.model.to(device)
    optimizer = make_optimizer(recipe, ta.model, device)
    done, seconds_before, bad_in_a_row, bad_steps = 0, 0.0, 0, 0
    if last is not None:
        counters = load_optimizer(last, optimizer)
        done, seconds_before = counters["step"], counters["seconds"]
        bad_in_a_row, bad_steps = counters["bad_in_a_row"], counters["bad_steps"]
        listen(Progress(message=f"Resuming from step {done}."))
    step_losses = Step(recipe, task, ta, teacher, device)
    parameters = [p for p in ta.model.parameters() if p.requires_grad]
    eval_every = settings.eval_every or max(1, settings.steps // 10)
    order: dict[int, Tensor] = {}
    count = len(data.train)
    drawn = (sampling.indices(settings.seed, step, settings.batch_size, count, order) for step in range(done, settings.steps))
    batches = loader(data.train, drawn, recipe.data.workers, pin=device.type == "cuda")
    began = time.perf_counter()
    step, saved = done, last
    with closing(batches), interruptible() as pressed, (run / "metrics.jsonl").open("a", encoding="utf-8") as log:
        for step in range(done, settings.steps):
            started = time.perf_counter()
            sampling.seed_step(settings.seed, step)
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in next(batches).items()}
            ta.model.train()
            buffers = [buffer.clone() for buffer in ta.model.buffers()]  # a bad batch must not stay in the statistics
            found = step_losses(batch, step)
            terms = {model: {k: float(v) for k, v in t.items()} for model, t in found.items()}
            norm = _norm(parameters, settings.clip)
            finite = math.isfinite(norm) and all(math.isfinite(v) for t in terms.values() for v in t.values())
            if finite:
                bad_in_a_row = 0
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(recipe, step)
                optimizer.step()
            else:
                bad_in_a_row, bad_steps = bad_in_a_row + 1, bad_steps + 1
                for buffer, before in zip(ta.model.buffers(), buffers, strict=True):
                    buffer.copy_(before)
                if bad_in_a_row >= settings.max_bad_steps:
                    kept = f"{saved} is kept" if saved else "nothing was saved"
                    raise MattaError(
                        f"The loss or its gradient is not finite at step {step}, the last {bad_in_a_row} in a row; {kept}. "
                        "Try a lower --lr."
                    )
            optimizer.zero_grad(set_to_none=True)
            per_second = task.items(batch) / (time.perf_counter() - started)
            record: dict[str, Any] = {"step": step + 1, "lr": optimizer.param_groups[0]["lr"], "terms": terms}
            record |= {"ramp": step_losses.ramp(step), f"{data.unit}_per_second": per_second}
            record |= {"gradient_norm": norm, "skipped": bad_steps}
            if (step + 1) % eval_every == 0 or step + 1 == settings.steps:
                record["evaluation"] = measure(recipe, task, ta, data, device)
            log.write(json.dumps(_plain(record)) + "\n")
            log.flush()
            listen(Progress(step + 1, settings.steps, terms, per_second, data.unit))
            due = settings.save_every and (step + 1) % settings.save_every == 0
            if due or pressed or step + 1 == settings.steps:
                seconds = seconds_before + time.perf_counter() - began
                counters = {"step": step + 1, "seconds": seconds, "bad_in_a_row": bad_in_a_row, "bad_steps": bad_steps}
                saved = save_checkpoint(run, ta, optimizer, recipe, counters)
            if pressed:
                raise Interrupted(
                    f"Stopped at step {step + 1} of {settings.steps}; saved {saved}. Go on with `matta distill --resume`.",
                    128 + pressed[0],
                )
    if saved is None:
        raise MattaError("There is nothing to train: --steps is 0.")
    return saved


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system frees however the process ends. Raises ``MattaError`` if a run holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(str(out / ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise MattaError(f"Another run is training in {out}: wait for it, or take another folder.") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _set_aside(run: Path, *, keep: bool) -> Iterator[None]:
    """Move a finished run out of the way; it comes back if its successor stops before the first checkpoint."""
    old = run.with_name(f".{run.name}.old")
    if not keep and run.exists():
        shutil.rmtree(old, ignore_errors=True)
        run.replace(old)
    try:
        yield
    finally:
        if old.exists() and checkpoint.newest(run) is None and checkpoint.newest(old) is not None:
            shutil.rmtree(run, ignore_errors=True)
            old.replace(run)
        shutil.rmtree(old, ignore_errors=True)


def refuse_other_ta(digest: str, ta: TA, folder: Path) -> None:
    """Raise ``MattaError`` if the TA of a run did not come from the TA that lies beside it now."""
    if ta.card["lineage"]["digest"] != digest:
        raise MattaError(f"{folder} trained another TA than the one that was converted since: distill again with --overwrite.")


def _plain(value: Any) -> Any:
    """A record as JSON has it: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


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


def _check(recipe: Recipe, ta: TA) -> None:
    """Settings that make no sense, each with a sentence, before anything is loaded."""
    s = recipe.distill
    for name, value in (
        ("steps", s.steps),
        ("batch-size", s.batch_size),
        ("lr", s.lr),
        ("max-bad-steps", s.max_bad_steps),
        ("temperature", s.temperature),
    ):
        if not value > 0:
            raise MattaError(f"--{name} {value:g} is not possible: it must be above 0.")
    for name, value in (("teacher_mix", s.teacher_mix), ("ramp", s.ramp), ("warmup", s.warmup)):
        if not 0 <= value <= 1:
            raise MattaError(f"distill.{name} {value:g} is not possible: it is a share from 0 to 1.")
    if s.ranking_loss not in ("pointwise", "pairwise", "listwise"):
        raise MattaError(f"--ranking-loss {s.ranking_loss!r} is not known: pointwise, pairwise or listwise.")
    if not s.widths:
        raise MattaError("There are no widths to train: name some in distill.widths.")
    for width in s.widths:
        ta.sizes(width)
