"""teach: run a Teacher once, and write down what it says."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from matta_cli.devices.device import pick, precision, resolved
from matta_cli.devices.signals import interruptible
from matta_cli.errors import Interrupted, MattaError
from matta_cli.files import atomic
from matta_cli.losses import classes
from matta_cli.losses.targets import Logits
from matta_cli.models import save
from matta_cli.progress import Listener, Progress, quiet
from matta_cli.settings.recipe import Recipe
from matta_cli.training import packed, teacher_file
from matta_cli.training.setup import Setup, opened
from matta_cli.training.state import size_of
from matta_cli.training.teacher import ModelTeacher

EXACT = 64  # outputs up to which all logits are written
TOP = 24  # of more: the likeliest that are written
BYTES = 192  # for what is drawn of the others at a position
_SMALL = 1 << 16  # outputs that a number of two bytes tells apart
_SHARD = 1 << 26  # bytes of a shard, about
_FEW = 8  # examples that tell how large they are


def teach(
    recipe: Recipe,
    out: Path,
    to: Path,
    *,
    k: int = TOP,
    draws: int | None = None,
    overwrite: bool = False,
    listen: Listener = quiet,
) -> Path:
    """Write what the Teacher says about the training examples of the TA in ``out`` to ``to``.

    Embeddings, and up to 64 outputs: all numbers, float32. More: of each position the ``k``
    likeliest outputs of the distribution softened by ``distill.temperature``, and as many
    ``draws`` of the others (None: as 192 bytes hold), in proportion to their probabilities: on
    average, what is learned from them is what the whole distribution teaches (arXiv 2503.16870).
    With 0, the mass of the rest: what is lost is how it is spread. Stopped at any moment, it goes
    on from the last whole shard. Raises ``MattaError`` as ``distill`` does; ``Interrupted`` after
    Ctrl-C.
    """
    name = recipe.distill.teacher
    if teacher_file.is_file(name):
        instead = "name the model that makes them"
        raise MattaError(f"--teacher {name!r} is a file of outputs already: {instead}.")
    if k < 1:
        raise MattaError(f"--top-k {k} is not possible: it is 1 or more.")
    if draws is not None and draws < 0:
        raise MattaError(f"--draws {draws} is not possible: it is 0 or more.")
    setup = opened(recipe, out, pick(recipe.distill.device), listen=listen)
    if not isinstance(setup.teacher, ModelTeacher):
        needed = "pass --teacher with the model whose outputs shall be written"
        raise MattaError(f"No Teacher is named: {needed}.")
    kept = "the held-out ones are for measuring, and are not taught"
    asked = f"The Teacher is asked about {len(setup.data.train):,} training examples; {kept}."
    listen(Progress(message=asked))
    dictation = Dictation.of(setup, setup.teacher, k, draws)
    identity = dictation.identity()
    card = _begun(to, identity, overwrite) or {**identity, **dictation.shards()}
    _write_card(to, card)
    with atomic.alone(to, "Another `matta teach` is writing"), interruptible() as pressed:
        for number in range(card["shards"]):
            known = card["digests"][number : number + 1]
            path = to / teacher_file.shard_name(number)
            if not known or not teacher_file.is_whole(path, known[0]):
                tensors = dictation.shard(number, card, listen, pressed)
                with atomic.atomic_file(path) as temp:
                    save_file(tensors, str(temp))
                card["digests"][number : number + 1] = [atomic.file_digest(path)]
                _write_card(to, card)
    _write_card(to, {**card, "complete": True})
    return to


def _write_card(to: Path, card: dict[str, Any]) -> None:
    atomic.atomic_write(to / teacher_file.CARD, json.dumps(card, indent=1) + "\n")


def _begun(to: Path, identity: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The card of what was begun in ``to`` and goes on; None where it begins now.

    Raises ``MattaError`` where something else, or what is finished, would be lost.
    """
    atomic.sweep(to)
    card = teacher_file.read_teacher_card(to)
    if card is not None and not overwrite:
        if {name: card.get(name) for name in identity} != identity:
            what = "what another Teacher, data or setting gave"
            raise MattaError(f"{to} holds {what}: pass --overwrite, or another --to.")
        if card["complete"]:
            instead = "pass --overwrite to make it again, or --to for another folder"
            raise MattaError(f"{to} is finished; {instead}.")
        return card
    if card is None and to.exists() and any(path.name != ".lock" for path in to.iterdir()):
        what = "nothing that `matta teach` wrote: pass --to with another folder"
        raise MattaError(f"{to} is not empty, and {what}.")
    # the card goes last: a kill leaves no shards of which nobody knows whose they are
    for old in [*to.glob("shard-*.safetensors"), to / teacher_file.CARD] if card else []:
        old.unlink()
    return None


@dataclass(frozen=True)
class Dictation:
    """A Teacher, and what is written of what it says.

    outputs: their number. exact: whether all of them are written, or the ``k`` likeliest and so
    many ``draws`` of the others.
    """

    setup: Setup
    teacher: ModelTeacher
    outputs: int
    k: int
    draws: int
    exact: bool

    @classmethod
    def of(cls, setup: Setup, teacher: ModelTeacher, k: int, draws: int | None) -> Dictation:
        """All outputs are written where there are few, or they are no classes of which one is."""
        task = setup.task
        outputs = task.outputs(teacher.model)
        exact = task.embeds or task.reading != "classes" or outputs <= max(EXACT, k)
        if draws is None:
            draws = packed.most(outputs, BYTES)
        return cls(setup, teacher, outputs, k, 0 if exact else draws, exact)

    def identity(self) -> dict[str, Any]:
        """What makes a folder the same one again."""
        setup, settings = self.setup, self.setup.settings
        return {
            "format": teacher_file.FORMAT,
            "task": setup.task.name,
            "teacher": settings.teacher,
            "weights": save.weights_digest(self.teacher.model),
            "outputs": self.outputs,
            "k": None if self.exact else self.k,
            "draws": self.draws,
            "temperature": None if self.exact else settings.temperature,
            "data": setup.data.train.digest(),
            "description": setup.data.description,
            "examples": len(setup.data.train),
            "precision": resolved(settings.precision, setup.device),
        }

    def shards(self) -> dict[str, Any]:
        """How the examples are divided into files, none of which is written yet."""
        examples = len(self.setup.data.train)
        few = list(range(min(_FEW, examples)))
        size = max(1, _SHARD // max(1, size_of(self.said(few).values()) // len(few)))
        count = -(-examples // size)
        return {"per_shard": size, "shards": count, "digests": [], "complete": False}

    def shard(
        self, number: int, card: dict[str, Any], listen: Listener, pressed: list[int]
    ) -> dict[str, Tensor]:
        """What is said about the examples of a shard; ``Interrupted`` once a signal was caught."""
        settings, total, each = self.setup.settings, len(self.setup.data.train), card["per_shard"]
        size = max(1, settings.micro_batch or settings.batch_size)
        stop = min((number + 1) * each, total)
        parts: list[dict[str, Tensor]] = []
        for start in range(number * each, stop, size):
            began = time.perf_counter()
            rows = list(range(start, min(start + size, stop)))
            parts.append(self.said(rows))
            speed = len(rows) / (time.perf_counter() - began)
            listen(Progress(rows[-1] + 1, total, {}, speed, "examples"))
            if pressed:
                done = f"{number} of {card['shards']} shards; the same command goes on from there"
                raise Interrupted(f"Stopped after {done}.", 128 + pressed[0])
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @torch.no_grad()
    def said(self, rows: list[int]) -> dict[str, Tensor]:
        """What the Teacher says about some examples, as a shard has it.

        row: int64 [n]; the others [n, ...]. Where not all positions are learned, only these are
        there, one after the other, and positions, int64 [n], says how many of each example.
        """
        setup, settings, split = self.setup, self.setup.settings, self.setup.data.train
        batch = {name: tensor.to(setup.device) for name, tensor in split.batch(rows).items()}
        with precision(settings.precision, setup.device):
            logits: Logits = self.teacher(batch, rows)
        keys = torch.from_numpy(np.asarray(split.keys(rows), dtype=np.int64))
        if not torch.isfinite(logits.hidden).all():
            what = f"says what is not finite about example {rows[0]} or one near it"
            raise MattaError(f"The Teacher {settings.teacher!r} {what}.")
        taught = setup.task.taught(batch)
        head, some = {"row": keys}, None
        if taught is not None:
            head[teacher_file.POSITIONS] = taught.sum(1).cpu()
            some = taught.flatten().nonzero().flatten()
        if self.exact:
            name, whole = "embedding" if setup.task.embeds else "logits", logits.whole().float()
            return {**head, name: (whole if some is None else whole.flatten(0, -2)[some]).cpu()}
        prepared, start = logits.prepared(), _start(settings.seed, rows, logits.count)
        parts: list[dict[str, Tensor]] = []
        for here in classes.chunks(prepared, rows=some):
            log_q = torch.log_softmax(prepared.part(here) / settings.temperature, -1)
            at = here if isinstance(here, slice) else here.cpu()
            parts.append(self._kept(log_q, start[at].to(log_q.device)))
        shape = logits.hidden.shape[:-1] if some is None else some.shape
        said = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {**head, **{n: t.view(*shape, *t.shape[1:]) for n, t in said.items()}}

    def _kept(self, log_q: Tensor, start: Tensor) -> dict[str, Tensor]:
        """What is written of some positions' log-probabilities [n, outputs]."""
        known, index = log_q.topk(self.k)
        top = {"top_logits": known.cpu(), "top_index": self._numbers(index)}
        if not self.draws:
            rest = log_q.scatter_(1, index, -torch.inf).logsumexp(-1)
            return {**top, "rest": rest.cpu()}
        q = log_q.exp()
        entropy = -(q * log_q.clamp(min=-1e4)).sum(1)
        drawn = draw(q.scatter_(1, index, 0.0), self.draws, start)
        # Half the bits: what rounding changes is less than drawing does, and evens out as well.
        top["top_logits"] = top["top_logits"].half()
        few = packed.pack(drawn, self.outputs).cpu()
        return {**top, teacher_file.PACKED: few, "entropy": entropy.cpu()}

    def _numbers(self, index: Tensor) -> Tensor:
        """Numbers of outputs in as few bytes as tell them apart, without a sign."""
        if self.outputs > _SMALL:
            return index.int().cpu()
        return torch.from_numpy(index.cpu().numpy().astype(np.uint16))


def draw(mass: Tensor, count: int, start: Tensor) -> Tensor:
    """So many classes of each row, in proportion to ``mass`` [n, classes]; int64 [n, count].

    They are drawn at equal distances of the mass from a random start, float64 [n] from 0 to 1:
    each class as often as it should be on average, and never more than one time off.
    """
    sums = mass.double().cumsum(1)
    places = (torch.arange(count, device=mass.device) + start[:, None]) / count
    found = torch.searchsorted(sums, (places * sums[:, -1:]).contiguous(), right=True)
    return found.clamp_(max=mass.shape[1] - 1)


def _start(seed: int, rows: list[int], count: int) -> Tensor:
    """Where the draws of some examples start, float64 [count]: the same each time for the same."""
    number = np.random.SeedSequence([seed, *rows]).generate_state(1)[0]
    generator = torch.Generator().manual_seed(int(number))
    return torch.rand(count, generator=generator, dtype=torch.float64)
