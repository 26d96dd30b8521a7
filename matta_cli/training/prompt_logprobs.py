"""What a server says about the tokens of prompts, as vLLM writes it: as a Teacher's file.

Each line of JSON has ``row``, the number of a training example, and ``prompt_logprobs``: null, and
for each further token a dictionary from tokens to ``{"logprob": ...}``: the likeliest, and the
token that is there, given those before it. So an entry says what follows the position before its
own, and nobody says what follows the last. ``prompt_token_ids``, where they are there, tell which
tokens were sent. These are log-probabilities at temperature 1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from matta_cli.data import records
from matta_cli.data.split import Split
from matta_cli.errors import MattaError
from matta_cli.files import atomic
from matta_cli.files.workspace import Workspace
from matta_cli.models import tokenizer
from matta_cli.models.folders import load_ta
from matta_cli.progress import Listener, Progress, quiet
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import task as task_named
from matta_cli.training.teacher_file import LOGGED, Ragged, Table

_AT_ONCE = 64  # examples
_NOTHING = -11.0  # the log of what rounding leaves of a whole


def is_logged(path: Path) -> bool:
    """Whether a file's first line holds such log-probabilities."""
    if path.suffix != ".jsonl":
        return False
    _, first = next(records.json_lines(path), (0, None))
    return isinstance(first, dict) and LOGGED in first


def read(path: Path) -> Table:
    """What such a file says. Raises ``MattaError`` at a line that is of another form."""
    rows: list[int] = []
    sent: list[np.ndarray] = []
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for number, line in records.json_lines(path):
        where = f"Teacher {str(path)!r}: line {number:,}"
        if not isinstance(line, dict) or not _whole(line.get("row")):
            raise MattaError(f"{where} has no 'row', the number of a training example.")
        given = line.get(LOGGED)
        if not isinstance(given, list) or len(given) < 2 or given[0] is not None:
            form = "a list of null and a dictionary for each further token"
            raise MattaError(f"{where}: {LOGGED!r} must be {form}, as vLLM writes it.")
        ids = line.get("prompt_token_ids")
        if ids is not None and not (isinstance(ids, list) and all(map(_whole, ids))):
            raise MattaError(f"{where}: 'prompt_token_ids' must be a list of whole numbers.")
        rows.append(int(line["row"]))
        sent.append(np.array([] if ids is None else ids, np.int64))
        found.append(_entries(given[1:], where))
    width = max((index.shape[1] for index, _, _ in found), default=1)
    # repeated, what comes first changes no distribution that it is a part of
    wide = [[_widened(own, width) for own in parts[:2]] for parts in found]
    ends = np.cumsum([len(index) for index, _, _ in found])
    values: dict[str, Any] = {
        "top_index": Ragged(np.concatenate([index for index, _ in wide]), ends),
        "top_logits": Ragged(np.concatenate([logs for _, logs in wide]), ends),
        "rest": Ragged(np.concatenate([rest for _, _, rest in found]), ends),
        "sent": Ragged(np.concatenate(sent), np.cumsum([len(ids) for ids in sent])),
    }
    return Table(np.array(rows), False, values, {"temperature": 1.0, LOGGED: True})


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _entries(entries: list[Any], where: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens int64 [n, k], their log-probabilities [n, k], and the log of what they leave [n].

    Shorter entries repeat their first token.
    """
    pairs: list[list[tuple[int, float]]] = []
    for place, entry in enumerate(entries, 1):
        try:
            pairs.append([(int(token), float(own["logprob"])) for token, own in entry.items()])
        except (AttributeError, KeyError, TypeError, ValueError):
            form = 'not a dictionary of tokens and {"logprob": ...}'
            raise MattaError(f"{where}: entry {place} of {LOGGED!r} is {form}.") from None
        total = sum(np.exp([own for _, own in pairs[-1]]))
        if not 0 < total < 1.001 or not np.isfinite([own for _, own in pairs[-1]]).all():
            odd = f"holds no log-probabilities (their probabilities sum to {total:.3g})"
            raise MattaError(f"{where}: entry {place} of {LOGGED!r} {odd}.")
    width = max(map(len, pairs))
    full = np.array([own + own[:1] * (width - len(own)) for own in pairs], np.float64)
    sums = np.array([np.exp([log for _, log in own]).sum() for own in pairs])
    with np.errstate(divide="ignore"):
        rest = np.log1p(-np.minimum(sums, 1)).astype(np.float32)
    return full[..., 0].astype(np.int32), full[..., 1].astype(np.float32), rest


def _widened(values: np.ndarray, width: int) -> np.ndarray:
    return np.concatenate([values, np.repeat(values[:, :1], width - values.shape[1], 1)], 1)


def mismatch(table: Table, places: np.ndarray, train: Split, outputs: int) -> str:
    """What is wrong with what a file says about the training examples; empty where nothing is.

    places: of each example in the file. outputs: the model's.
    """
    largest = int(table.values["top_index"].values.max(initial=0))
    if largest >= outputs:
        return f"it names the token {largest:,}, but the model's vocabulary is {outputs:,}"
    width, rest = table.values["top_index"].values.shape[1], table.values["rest"].values
    if width < outputs and (rest < _NOTHING).all():
        scaled = "as where a server scales the likeliest tokens up to a whole"
        raw = "let it say them as the model has them (vLLM: --logprobs-mode raw_logprobs)"
        return f"the probabilities of all its positions sum to 1, {scaled}: {raw}"
    for start in range(0, len(places), _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, len(places)))
        for ids, place in zip(_tokens(train, rows), places[start:], strict=False):
            here = np.array([place])
            row, sent = int(table.key[place]), table.values["sent"][here]
            index = table.values["top_index"][here]
            if len(index) != len(ids) - 1:
                counts = f"{len(index) + 1:,} tokens, the training example {len(ids):,}"
                return f"row {row} has {counts}: write the prompts again (`matta teach --prompts`)"
            same = sent == ids if len(sent) == len(ids) else np.zeros(1, bool)
            if not len(sent):
                same = np.append(True, (index == ids[1:, None]).any(1))
            if not same.all():
                at = int((~same).argmax())
                of = "sent" if len(sent) else "among those that it names"
                other = f"the token {int(ids[at])} of the training example is not the one {of}"
                return f"row {row}, position {at}: {other}; is it of this tokenizer and data?"
    return ""


def _tokens(train: Split, rows: range) -> list[np.ndarray]:
    """The tokens of some examples, without padding."""
    batch = train.batch(rows)
    ids = batch["input_ids"].numpy()
    if "attention_mask" not in batch:
        return list(ids)
    lengths = batch["attention_mask"].sum(1).tolist()
    return [own[:length] for own, length in zip(ids, lengths, strict=True)]


def write_prompts(recipe: Recipe, out: Path, to: Path, listen: Listener = quiet) -> int:
    """Write the tokens of each training example of the TA in ``out``, for a server that is asked.

    Lines of JSON with ``row`` and ``prompt_token_ids``. Returns how many there are. Raises
    ``MattaError`` where the task is of no tokens, or the data does not fit.
    """
    folder = Workspace(out).ta
    ta = load_ta(folder)
    task = task_named(ta.adapter.task, recipe)
    if task.name != "causal_lm":
        raise MattaError(f"--prompts is for language models, and this task is {task.name}.")
    data = task.data(tokenizer.home(folder), ta.model)
    for sentence in (f"Data: {data.description}", *(f"Note: {note}" for note in data.notes)):
        listen(Progress(message=sentence))
    count = len(data.train)
    with atomic.atomic_file(to) as temp, temp.open("w", encoding="utf-8") as file:
        for start in range(0, count, _AT_ONCE):
            rows = range(start, min(start + _AT_ONCE, count))
            keys = data.train.keys(rows)
            for key, ids in zip(keys, _tokens(data.train, rows), strict=True):
                line = {"row": int(key), "prompt_token_ids": ids.tolist()}
                file.write(json.dumps(line) + "\n")
    return count
