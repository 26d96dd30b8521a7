"""A file of what a larger model said about each training example, as the Teacher; and how to write
one.

The larger model may read other features than the TA: all that is shared is the examples. A file is
Parquet, JSONL or safetensors with a key (``row``, or ``id`` where ``data.id`` names that column of
the data) and one of

    label            the Teacher's class, or a ranker's grade probabilities    one per class (soft
    labels), or one number for a ranker logits           one per class (per position and token for
    language models) score            a ranker's logit embedding        of a sentence, of any width
    top_logits       of the k likeliest classes, with top_index, and, if known, rest: the log of the
    others' mass

``top_logits`` and ``rest`` are log-probabilities, up to one constant, of the distribution softened
by ``temperature`` (a column, 1 where there is none), which must be ``distill.temperature``. Without
``rest`` it is what they leave of 1. The file is one of these, or a folder that ``matta teach``
wrote: ``teacher.json`` and shards of safetensors, with logits where there are few outputs (and
embeddings), else with the k likeliest of the softened distribution and the mass of the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from matta_cli.data import sampling
from matta_cli.data.split import Batch, Data
from matta_cli.errors import MattaError
from matta_cli.files import atomic
from matta_cli.losses.targets import Logits, Target, TopK
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import Task

FORMAT = 1


CARD = "teacher.json"


# examples on which the gate measures; of text, whose examples are many predictions, fewer
_CHECKED = 256


_VALUES = ("label", "probabilities", "logits", "score", "embedding", "top_logits")


_KNOWN = {"row", "id", *_VALUES, "top_index", "rest", "temperature"}


def is_file(name: str) -> bool:
    """Whether a Teacher's name is that of such a file, and not of a model."""
    path = Path(name).expanduser()
    if path.is_dir():
        return (path / CARD).exists()
    if path.suffix in (".parquet", ".jsonl"):
        if not path.is_file():
            raise MattaError(f"There is no file {name!r}: check --teacher.")
        return True
    if path.suffix != ".safetensors" or not path.exists():
        return False
    try:
        return bool(_tensor_names(path)) and set(_tensor_names(path)) <= _KNOWN
    except MattaError:
        return False


def _tensor_names(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise MattaError(f"{str(path)!r} cannot be read: {error}.") from None


@dataclass
class Table:
    """What the file holds, in memory or on disk. key: [n] numbers, or names (``by_id``). values:
    name -> [n, ...].
    """

    key: np.ndarray
    by_id: bool
    values: dict[str, Any]
    card: dict[str, Any]


class FileTeacher:
    """A file as the Teacher of a step: what it says about a batch, looked up by the numbers of its
    examples.
    """

    def __init__(self, name: str, task: Task, data: Data, outputs: int) -> None:
        """Open a file for the task's training examples. Raises ``MattaError`` for one that does not
        fit them.
        """
        self.name, self.task, self.outputs, self.train = name, task, outputs, data.train
        path = Path(name).expanduser()
        self.table = _shards(path) if path.is_dir() else _read(path)
        kinds = [kind for kind in _VALUES if kind in self.table.values]
        if len(kinds) != 1:
            found = ", ".join(sorted(self.table.values)) or "none"
            raise self._error(f"it needs one of the columns {', '.join(_VALUES)}; it has {found}")
        self.kind = kinds[0]
        if task.embeds != (self.kind == "embedding"):
            raise self._error(f"its column {self.kind!r} is nothing for the task {task.name}")
        values, first, counted = np.unique(self.table.key, return_index=True, return_counts=True)
        if len(values) < len(self.table.key):
            raise self._error(f"the key {values[counted > 1][0]} occurs {counted.max()} times")
        self.keys, self.places = values, first
        self._check_card()
        self._check_values(self._places(range(len(data.train))))

    def _error(self, sentence: str) -> MattaError:
        return MattaError(f"Teacher {self.name!r}: {sentence}.")

    def _places(self, rows: Sequence[int]) -> np.ndarray:
        """Where in the file the outputs of these examples are."""
        wanted = self.train.keys(rows, ids=self.table.by_id)
        at = np.searchsorted(self.keys, wanted)
        missing = (at == len(self.keys)) | (self.keys[np.minimum(at, len(self.keys) - 1)] != wanted)
        if missing.any():
            raise self._error(
                f"{int(missing.sum()):,} of the {len(wanted):,} training examples are not in it, the first is "
                f"{'id' if self.table.by_id else 'row'} {wanted[missing][0]}"
            )
        return self.places[at]

    def _check_card(self) -> None:
        card, recipe = self.table.card, self.task.recipe
        if self.kind == "top_logits":
            if "top_index" not in self.table.values:
                raise self._error("it has top_logits, but no column top_index")
            given = card.get("temperature", 1.0)
            if given != recipe.distill.temperature:
                raise self._error(
                    f"its likeliest outputs are softened by the temperature {given:g}, but distill.temperature is "
                    f"{recipe.distill.temperature:g}: set that, or make the file again"
                )
        if "data" not in card:
            return
        if card["outputs"] != self.outputs and not self.task.embeds:
            raise self._error(
                f"it was made for {card['outputs']:,} {self.task.output}, the model has {self.outputs:,}"
            )
        if card["data"] != self.train.digest():
            raise self._error(
                f"it was made for other examples ({card['description']}; tokenizer and sequence length included) than those of "
                f"{recipe.data.train!r}: run `matta teach` again"
            )

    def _check_values(self, places: np.ndarray) -> None:
        """Values that no model could have said. What ``matta teach`` wrote was checked then."""
        if "data" in self.table.card:
            return
        for start in range(0, len(places), 4096):
            given = np.asarray(self.table.values[self.kind][places[start : start + 4096]])
            odd = ~np.isfinite(given.astype(np.float64)).reshape(len(given), -1).all(1)
            if odd.any():
                key = self.table.key[places[start + int(odd.argmax())]]
                raise self._error(
                    f"column {self.kind!r} has values that are not finite, at {'id' if self.table.by_id else 'row'} {key} first"
                )
            ranking = self.task.name == "ranking"
            if self.kind == "embedding":
                if given.ndim != 2 or not given.any(1).all():
                    raise self._error(
                        "column 'embedding' needs a list of numbers for each sentence, not all of them zero"
                    )
                continue
            if self.kind == "top_logits":
                self._check_top(
                    given, np.asarray(self.table.values["top_index"][places[start : start + 4096]])
                )
                continue
            if self.kind == "label":
                if self.task.name == "causal_lm":
                    raise self._error(
                        "labels are not supported for language models: the text has them already; give logits"
                    )
                whole = given.astype(np.int64)
                if not ranking and (
                    (whole != given).any() or whole.min() < 0 or whole.max() >= self.outputs
                ):
                    odd = given[(whole != given) | (whole < 0) | (whole >= self.outputs)][0]
                    raise self._error(
                        f"label {odd} is not one of the model's {self.outputs} classes"
                    )
            elif ranking and given.reshape(len(given), -1).shape[1] != 1:
                raise self._error(
                    f"column {self.kind!r} has several numbers for a row, a ranker gives one"
                )
            elif not ranking and (given.ndim < 2 or given.shape[-1] != self.outputs):
                found = given.shape[-1] if given.ndim > 1 else 1
                raise self._error(
                    f"column {self.kind!r} has {found} numbers for an example, the model has {self.outputs} classes"
                )
            elif self.kind == "probabilities":
                total = given if ranking else given.sum(-1)
                if (
                    given.min() < 0 or (total > 1).any()
                    if ranking
                    else (given.min() < 0 or (np.abs(total - 1) > 1e-3).any())
                ):
                    raise self._error(
                        "column 'probabilities' has values that are no probabilities (0 to 1, summing to 1)"
                    )
        given = self.table.values[self.kind][places[: 1 << 16]]
        if self.kind in ("logits", "score") and not np.asarray(given).any():
            raise self._error("all its logits are zero: it holds no trained model's outputs")

    def _check_top(self, given: np.ndarray, index: np.ndarray) -> None:
        if self.task.name == "ranking":
            raise self._error("top_logits are not supported for rankers: give a score")
        if given.shape != index.shape:
            raise self._error("top_logits and top_index are of different sizes")
        low, high, ordered = index.min(), index.max(), np.sort(index, -1)
        if low < 0 or high >= self.outputs or (ordered[..., 1:] == ordered[..., :-1]).any():
            raise self._error(f"top_index must name different classes from 0 to {self.outputs - 1}")

    def __call__(self, batch: Batch, rows: list[int]) -> Target:
        """What the file says about the examples of these numbers, on the batch's device."""
        places, device = self._places(rows), next(iter(batch.values())).device

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(self.table.values[name][places])).to(
                device
            )

        if self.kind == "top_logits":
            known, index = (
                tensor("top_logits").float().flatten(0, -2),
                tensor("top_index").long().flatten(0, -2),
            )
            if "rest" in self.table.values:
                rest = tensor("rest").float().flatten()
                whole = torch.cat([known, rest[:, None]], 1).logsumexp(1)
                return TopK(known - whole[:, None], index, rest - whole)
            return TopK(
                known, index, torch.log1p(-known.double().exp().sum(1).clamp(max=1)).float()
            )
        given = tensor(self.kind)
        if self.kind == "label":
            return given.float() if self.task.name == "ranking" else given.long()
        if self.kind == "probabilities":
            given = given.float()
            return Logits(
                torch.logit(given, 1e-6).flatten()
                if self.task.name == "ranking"
                else given.clamp(min=1e-12).log()
            )
        return Logits(given.float().flatten() if self.task.name == "ranking" else given.float())

    def check(self, recipe: Recipe) -> None:
        """Raise ``MattaError`` if what the file says is no better than guessing on the first
        training examples.
        """
        if recipe.distill.allow_weak_teacher:
            return
        limit = max(1, min(len(self.train), _CHECKED if self.task.name != "causal_lm" else 16))
        found: dict[str, list[np.ndarray]] = {}
        # the first ones may all be of one class
        order = sampling.example_order(0, 0, len(self.train))[:limit].tolist()
        for start in range(0, limit, 8):
            rows = order[start : start + 8]
            batch = self.train.batch(rows)
            for name, values in self.task.score(self._logits(batch, rows), batch).items():
                found.setdefault(name, []).append(values.numpy())
        columns = self.task.gathered({name: np.concatenate(parts) for name, parts in found.items()})
        sentence = self.task.at_chance(columns, self.outputs)
        if sentence:
            said = sentence.rstrip(".")
            raise MattaError(
                f"The Teacher {self.name!r} is too weak: {said}. Pass --allow-weak-teacher to go on."
            )

    def _logits(self, batch: Batch, rows: list[int]) -> Tensor:
        """Whole logits that say the same, for scoring."""
        target = self(batch, rows)
        if isinstance(target, TopK):
            even = torch.full((len(target.rest), self.outputs), -float(np.log(self.outputs)))
            # as it was before it was softened
            whole = target.log_q(slice(None), even) * self.task.recipe.distill.temperature
            return whole.view(len(rows), -1, self.outputs)
        if isinstance(target, Tensor):
            if self.task.name == "ranking":
                return target
            return torch.nn.functional.one_hot(target, self.outputs).float()
        return target.whole()


def _read(path: Path) -> Table:
    """A user's own file."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        values = {
            name: tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
            for name, tensor in load_file(str(path)).items()
        }
    else:
        values = _columns(path)
    if "id" in values and "row" in values:
        raise MattaError(
            f"Teacher {str(path)!r}: it has both a column 'row' and a column 'id': keep one as the key."
        )
    if "id" not in values and "row" not in values:
        raise MattaError(
            f"Teacher {str(path)!r}: it has neither a column 'row', the numbers of the examples, nor 'id'; it has "
            f"{', '.join(values) or 'nothing that is known'}."
        )
    by_id = "id" in values
    key = np.asarray(values.pop("id")).astype(str) if by_id else np.asarray(values.pop("row"))
    if key.dtype.kind not in "iu" and not by_id:
        raise MattaError(f"Teacher {str(path)!r}: column 'row' must hold whole numbers.")
    known = {name: v for name, v in values.items() if name in _KNOWN}
    temperature = np.unique(np.asarray(known.pop("temperature", 1.0)))
    if len(temperature) != 1:
        raise MattaError(
            f"Teacher {str(path)!r}: column 'temperature' must be the same number in every row."
        )
    return Table(key, by_id, known, {"temperature": float(temperature[0])})


def _columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of a Parquet or JSONL file as arrays [n] or [n, ...]. Raises ``MattaError`` for
    lists of unequal lengths.
    """
    import pyarrow as pa
    import pyarrow.json
    import pyarrow.parquet

    try:
        table = (
            pyarrow.parquet.read_table(path)
            if path.suffix == ".parquet"
            else pyarrow.json.read_json(path)
        )
    except (pa.ArrowException, OSError) as error:
        raise MattaError(
            f"Teacher {str(path)!r} cannot be read: {str(error).splitlines()[0]}"
        ) from None
    found = {}
    for name in table.column_names:
        if name not in _KNOWN:
            continue
        column = table[name]
        if column.null_count:
            raise MattaError(
                f"Teacher {str(path)!r}: column {name!r} has {column.null_count} missing values."
            )
        try:
            nested = pa.types.is_nested(column.type)
            found[name] = (
                np.array(column.to_pylist(), dtype=np.float32) if nested else column.to_numpy()
            )
        except ValueError:
            raise MattaError(
                f"Teacher {str(path)!r}: the lists of column {name!r} are of unequal lengths."
            ) from None
    return found


class _Sharded:
    """One tensor that lies in several files, read where it is asked for."""

    def __init__(self, files: list[Any], name: str, starts: np.ndarray) -> None:
        self.files, self.name, self.starts = files, name, starts

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        rows = []
        for place in places:
            shard = int(np.searchsorted(self.starts, place, side="right")) - 1
            at = int(place - self.starts[shard])
            rows.append(self.files[shard].get_slice(self.name)[at : at + 1])
        return torch.cat(rows).numpy()


def _shards(folder: Path) -> Table:
    """A folder of ``matta teach``."""
    from safetensors import SafetensorError, safe_open

    card = read_teacher_card(folder)
    if card is None or not card.get("complete"):
        raise MattaError(
            f"Teacher {str(folder)!r} is not finished: run the `matta teach` that began it again."
        )
    for number, digest in enumerate(card["digests"]):
        if not is_whole(folder / shard_name(number), digest):
            raise MattaError(
                f"Teacher {str(folder)!r} is damaged ({shard_name(number)}): run `matta teach` again."
            )
    try:
        files = [
            safe_open(str(folder / shard_name(i)), framework="pt") for i in range(card["shards"])
        ]
        keys = [f.get_tensor("row").numpy() for f in files]
        names = [name for name in files[0].keys() if name != "row"]  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise MattaError(
            f"Teacher {str(folder)!r} is damaged ({str(error).splitlines()[0]}): run `matta teach` again."
        ) from None
    starts = np.cumsum([0, *(len(key) for key in keys[:-1])])
    return Table(
        np.concatenate(keys), False, {name: _Sharded(files, name, starts) for name in names}, card
    )


def read_teacher_card(folder: Path) -> dict[str, Any] | None:
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        if card["format"] > FORMAT:
            raise MattaError(
                f"{folder / CARD} has format {card['format']}; this matta reads up to {FORMAT}: upgrade matta."
            )
        return card
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise MattaError(
            f"{folder / CARD} is damaged: run `matta teach --overwrite` again."
        ) from None


def is_whole(shard: Path, digest: str) -> bool:
    return shard.exists() and atomic.file_digest(shard) == digest


def shard_name(number: int) -> str:
    return f"shard-{number:05}.safetensors"
