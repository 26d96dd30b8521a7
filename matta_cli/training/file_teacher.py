"""A file of what a larger model said, as the Teacher of a step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from matta_cli.data import sampling
from matta_cli.data.split import Batch, Columns, Data, Part
from matta_cli.errors import MattaError
from matta_cli.losses.targets import Logits, Sampled, Target, TopK
from matta_cli.tasks.task import Task
from matta_cli.training import packed, prompt_logprobs
from matta_cli.training.teacher_file import LOGGED, PACKED, VALUES, read

# examples on which the gate measures; of text, whose examples are many predictions, fewer
_CHECKED, _CHECKED_TEXTS = 256, 16
_SHARES = 1e-3  # how far from 1 probabilities may sum to


class FileTeacher:
    """What a file says about a batch, looked up by the numbers of its examples."""

    def __init__(self, name: str, task: Task, data: Data, outputs: int) -> None:
        """Open a file for the task's training examples.

        outputs: the model's. Raises ``MattaError`` for a file that does not fit them.
        """
        self.name, self.task, self.outputs, self.train = name, task, outputs, data.train
        self.temperature = task.recipe.distill.temperature
        self.notes: list[str] = []
        # whether outputs stand alone: scores of rows, or several labels of each
        self.alone = task.reading != "classes"
        self.single = self.alone and outputs == 1
        path = Path(name).expanduser()
        self.logged = prompt_logprobs.is_logged(path)
        self.table = prompt_logprobs.read(path) if self.logged else read(path)
        if self.logged and task.name != "causal_lm":
            raise self._error(f"{LOGGED} are of language models, and the task is {task.name}")
        self.by = "id" if self.table.by_id else "row"
        kinds = [kind for kind in VALUES if kind in self.table.values]
        if len(kinds) != 1:
            has = ", ".join(sorted(self.table.values)) or "none"
            raise self._error(f"it needs one of the columns {', '.join(VALUES)}; it has {has}")
        self.kind = kinds[0]
        if task.embeds != (self.kind == "embedding"):
            raise self._error(f"its column {self.kind!r} is nothing for the task {task.name}")
        keys, places, counted = np.unique(self.table.key, return_index=True, return_counts=True)
        if len(keys) < len(self.table.key):
            raise self._error(f"the key {keys[counted > 1][0]} occurs {counted.max()} times")
        self.keys, self.places = keys, places
        self._check_card()
        self.known = min(outputs, int(self.table.card.get("outputs", outputs)))
        places = self._places(range(len(data.train)))
        self._check_once(places)
        self._check_values(places)

    def _error(self, sentence: str) -> MattaError:
        return MattaError(f"Teacher {self.name!r}: {sentence}.")

    def _places(self, rows: Sequence[int]) -> np.ndarray:
        """Where in the file the outputs of these examples are."""
        wanted = self.train.keys(rows, ids=self.table.by_id)
        at = np.searchsorted(self.keys, wanted)
        missing = (at == len(self.keys)) | (self.keys[np.minimum(at, len(self.keys) - 1)] != wanted)
        if missing.any():
            count = f"{int(missing.sum()):,} of the {len(wanted):,} training examples"
            first = f"the first is {self.by} {wanted[missing][0]}"
            raise self._error(f"{count} are not in it, {first}")
        return self.places[at]

    def _check_once(self, places: np.ndarray) -> None:
        """Refuse ids that several examples have: what is said of one would be said of all."""
        if self.table.by_id and (twice := places[np.bincount(places)[places] > 1]).size:
            same = f"{len(twice):,} of the training examples share an id with others"
            first = f"the first is {self.table.key[twice[0]]}"
            raise self._error(f"{same}, {first}: give each example its own in data.id")

    def _check_card(self) -> None:
        """Refuse a file that was made for another temperature, other outputs or other examples."""
        card, wanted = self.table.card, self.temperature
        if self.kind == "top_logits":
            if "top_index" not in self.table.values:
                raise self._error("it has top_logits, but no column top_index")
            given = card.get("temperature", 1.0)
            if given != wanted:
                softened = f"its likeliest outputs are softened by the temperature {given:g}"
                instead = f"distill.temperature is {wanted:g}: set that, or make the file again"
                raise self._error(f"{softened}, but {instead}")
        if "data" not in card:
            return
        known = int(card["outputs"])
        # of a vocabulary that is padded beyond the Teacher's the common tokens are followed
        padded = self.task.name == "causal_lm" and known < self.outputs
        if known != self.outputs and not self.task.embeds and not padded:
            made = f"it was made for {card['outputs']:,} {self.task.output}"
            raise self._error(f"{made}, the model has {self.outputs:,}")
        if card["data"] != self.train.digest():
            how = "tokenizer and sequence length included" if self.task.tokens else "in their order"
            what = f"{card['description']}; {how}"
            those = f"those of {self.task.recipe.data.train!r}: run `matta teach` again"
            raise self._error(f"it was made for other examples ({what}) than {those}")

    def _check_values(self, places: np.ndarray) -> None:
        """Refuse values that no model could have said."""
        if "data" in self.table.card:  # ``matta teach`` checked what it wrote
            return
        if self.logged:
            if sentence := prompt_logprobs.mismatch(self.table, places, self.train, self.outputs):
                raise self._error(sentence)
            self.task.leave_last_out()
            return
        if self.task.taught(self.train.batch([0])) is not None:
            ways = f"what `matta teach` writes, or lines of JSON with {LOGGED}"
            raise self._error(f"of conversations a Teacher's file is {ways}")
        values, likely = self.table.values[self.kind], True
        for start in range(0, len(places), 4096):
            here = places[start : start + 4096]
            given = np.asarray(values[here])
            with np.errstate(over="ignore"):
                numbers = given.astype(np.float32)
            odd = ~np.isfinite(numbers).reshape(len(given), -1).all(1)
            if odd.any():
                first = f"at {self.by} {self.table.key[here[odd.argmax()]]} first"
                raise self._error(f"column {self.kind!r} has values that are not finite, {first}")
            if sentence := self._wrong(given, here):
                raise self._error(sentence)
            likely = likely and self._likely(numbers)
        if self.kind in ("logits", "score") and not np.asarray(values[places[: 1 << 16]]).any():
            raise self._error("all its logits are zero: it holds no trained model's outputs")
        if likely and self.kind == "logits":
            sums = "lie between 0 and 1" if self.alone else "are shares of 1 in each row"
            rename = "call the column 'probabilities'"
            raise self._error(f"column 'logits' holds probabilities (they {sums}): {rename}")
        if likely and self.kind == "score" and self.task.reading == "odds":
            told = "all its scores lie between 0 and 1, but a score is a logit"
            self.notes.append(f"{told}: call the column 'probabilities' if that is what they are.")

    def _likely(self, given: np.ndarray) -> bool:
        """Whether these numbers are all such as probabilities are."""
        if given.min() < 0 or given.max() > 1:
            return False
        return self.alone or bool((np.abs(given.sum(-1) - 1) < _SHARES).all())

    def _wrong(self, given: np.ndarray, places: np.ndarray) -> str:
        """What is wrong with these values, [n, ...] at ``places``; empty where nothing is."""
        one = self.kind == "label" and not self.alone
        most = 1 if one else 3 if self.task.name == "causal_lm" else 2
        if given.ndim > most:
            what = "one number" if one else "one list of numbers"
            return f"column {self.kind!r} has the shape {list(given.shape)}: give each row {what}"
        if self.kind == "embedding":
            fine = given.ndim == 2 and given.any(1).all()
            needed = "a list of numbers for each sentence, not all of them zero"
            return "" if fine else f"column 'embedding' needs {needed}"
        if self.kind == "top_logits":
            return self._wrong_top(given, np.asarray(self.table.values["top_index"][places]))
        if self.kind == "label":
            return self._wrong_label(given)
        return self._wrong_count(given) or self._wrong_probability(given)

    def _wrong_count(self, given: np.ndarray) -> str:
        column = f"column {self.kind!r}"
        if self.single:
            several = f"{column} has several numbers for a row, the model gives one"
            return several if given.size != len(given) else ""
        if given.ndim < 2 or given.shape[-1] != self.outputs:
            count = given.shape[-1] if given.ndim > 1 else 1
            has = f"the model has {self.outputs} classes"
            return f"{column} has {count} numbers for an example, {has}"
        return ""

    def _wrong_probability(self, given: np.ndarray) -> str:
        if self.kind != "probabilities":
            return ""
        column = f"column {self.kind!r}"
        if self.task.reading == "values":
            return f"{column} is nothing for a model of values: give a score"
        high = given > 1 if self.alone else np.abs(given.sum(-1) - 1) > _SHARES
        if given.min() < 0 or high.any():
            sums = "" if self.alone else ", summing to 1"
            return f"{column} has values that are no probabilities (0 to 1{sums})"
        return ""

    def _wrong_label(self, given: np.ndarray) -> str:
        if self.task.name == "causal_lm":
            instead = "the text has them already; give logits"
            return f"labels are not supported for language models: {instead}"
        if self.alone:
            return self._wrong_count(given)
        whole = given.astype(np.int64)
        odd = (whole != given) | (whole < 0) | (whole >= self.outputs)
        if not odd.any():
            return ""
        return f"label {given[odd][0]} is not one of the model's {self.outputs} classes"

    def _wrong_top(self, given: np.ndarray, index: np.ndarray) -> str:
        if self.alone:
            return "top_logits are of classes, one of which is right: give logits or a score"
        if given.shape != index.shape:
            return "top_logits and top_index are of different sizes"
        if ("drawn" in self.table.values) != ("entropy" in self.table.values):
            return "drawn and entropy belong together: it has one of them"
        low, high, ordered = index.min(), index.max(), np.sort(index, -1)
        if not {"rest", "entropy"} & self.table.values.keys():
            with np.errstate(over="ignore"):
                sums = np.exp(given.astype(np.float64)).sum(-1)
            if (sums > 1 + 10 * _SHARES).any():
                given_sum = f"their probabilities sum to {sums.max():.3g}"
                return f"top_logits without a column rest are log-probabilities, but {given_sum}"
        if low < 0 or high >= self.outputs or (ordered[..., 1:] == ordered[..., :-1]).any():
            return f"top_index must name different classes from 0 to {self.outputs - 1}"
        return ""

    def __call__(self, batch: Batch, rows: list[int]) -> Target:
        """What the file says about the examples of these numbers, on the batch's device."""
        places, device = self._places(rows), next(iter(batch.values())).device

        def tensor(name: str) -> Tensor:
            values = np.asarray(self.table.values[name][places])
            signed = values.astype(np.int32) if values.dtype == np.uint16 else values
            given = torch.from_numpy(np.ascontiguousarray(signed)).to(device)
            given = self._unpacked(given) if name == PACKED else given
            return self._placed(given, batch) if self.logged or self.table.ragged else given

        given = tensor(self.kind)
        if self.kind == "top_logits":
            known, index = given.float().flatten(0, -2), tensor("top_index").long().flatten(0, -2)
            if "entropy" in self.table.values:
                name = PACKED if PACKED in self.table.values else "drawn"
                drawn, entropy = tensor(name).long(), tensor("entropy").float()
                return Sampled(known, index, drawn.flatten(0, -2), entropy.flatten(), self.known)
            if self.logged:  # of all tokens as they are, and some of them are named twice
                return TopK(known, index, tensor("rest").flatten(), self.known)
            if "rest" in self.table.values:
                rest = tensor("rest").float().flatten()
                whole = torch.cat([known, rest[:, None]], 1).logsumexp(1)
                return TopK(known - whole[:, None], index, rest - whole, self.known)
            left = torch.log1p(-known.double().exp().sum(1).clamp(max=1))
            return TopK(known, index, left.float(), self.known)
        if self.kind == "label":
            return self._shaped(given.float()) if self.alone else given.long()
        given = given.float()
        if self.kind == "probabilities":
            given = torch.logit(given, 1e-6) if self.alone else given.clamp(min=1e-12).log()
        return Logits(self._shaped(given))

    def _unpacked(self, values: Tensor) -> Tensor:
        """The numbers of what was drawn, [..., draws], of their bytes [..., bytes]."""
        card, shape = self.table.card, values.shape[:-1]
        try:
            numbers = packed.unpack(values.flatten(0, -2), card["draws"], card["outputs"])
        except ValueError as error:
            raise self._error(f"it is damaged ({error}): run `matta teach` again") from None
        return numbers.view(*shape, card["draws"])

    def _shaped(self, values: Tensor) -> Tensor:
        """One number of each row without a dimension of its own, as models give scores."""
        return values.flatten() if self.single else values

    def _placed(self, values: Tensor, batch: Batch) -> Tensor:
        """Values of some positions [n, ...] as [B, L, ...], zero where nothing is known.

        They are those that are learned, or, of what a server said, all but each example's last.
        """
        known = self.task.taught(batch)
        present = self.task.present(batch) if self.logged else None
        if present is not None:
            known = pad(present[:, 1:], (0, 1))
        assert known is not None
        whole = values.new_zeros(*known.shape, *values.shape[1:])
        whole[known] = values
        return whole

    def sample(self) -> Part:
        """Some training examples: of all, since the first ones may all be of one class."""
        limit = _CHECKED_TEXTS if self.task.name == "causal_lm" else _CHECKED
        return Part(self.train, sampling.example_order(0, 0, len(self.train))[:limit].tolist())

    def columns(self, sample: Part) -> Columns:
        """What the task scores of what the file says about these examples."""
        order = [int(number) for number in sample.indices]
        columns: dict[str, list[np.ndarray]] = {}
        for start in range(0, len(order), 8):
            rows = order[start : start + 8]
            batch = self.train.batch(rows)
            for name, values in self.task.score(self._logits(batch, rows), batch).items():
                columns.setdefault(name, []).append(values.numpy())
        whole = {name: np.concatenate(parts) for name, parts in columns.items()}
        return self.task.gathered(whole)

    def _logits(self, batch: Batch, rows: list[int]) -> Tensor:
        """Whole logits that say the same, for scoring."""
        target = self(batch, rows)
        if isinstance(target, Sampled):  # what was not drawn is not impossible
            target = target.spread()
        if isinstance(target, TopK):
            even = torch.full((len(target.rest), self.known), -float(np.log(self.known)))
            # as it was before it was softened
            whole = target.log_q(slice(None), even) * self.temperature
            texts = self.task.name == "causal_lm"
            return whole.view(len(rows), -1, self.known) if texts else whole
        if isinstance(target, Tensor):
            return target if self.alone else one_hot(target, self.outputs).float()
        return target.whole()
