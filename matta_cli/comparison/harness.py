"""Published benchmarks of language models, by lm-evaluation-harness's own task code.

It comes with ``pip install "matta[harness]"``.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from matta_cli.data.records import json_lines
from matta_cli.data.split import Columns
from matta_cli.errors import MattaError, install, said

BOOTSTRAP = 1000  # resamples of the standard errors that have no closed form


def check(tasks: Sequence[str], data: Mapping[str, str]) -> None:
    """Raise ``MattaError`` where the harness, a task of it or a task's file is not there."""
    manager = _manager()
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        there = "`lm-eval ls tasks` lists those there are"
        raise MattaError(f"lm-evaluation-harness has no task {unknown[0]!r}: {there}.")
    for name, path in data.items():
        if name not in tasks:
            those = ", ".join(tasks) or "(none)"
            raise MattaError(f"--task-data names {name!r}, which is none of the --tasks {those}.")
        if not Path(path).is_file():
            raise MattaError(f"There is no file {path!r}: check --task-data.")


def scores(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    data: Mapping[str, str],
    batch_size: int = 8,
    limit: int = 0,
) -> dict[str, dict[str, Any]]:
    """What the harness's tasks make of a model of transformers, by task.

    Of each: its metrics with the harness's standard errors, how many examples they are of, and of
    those metrics that are means the ``columns`` with a number for each example.

    data: local files of a task's examples (JSON lines, with the columns of the task's own data set,
    or for AGIEval's multiple choice those of its repository) in place of the hub's. limit: the
    first so many examples of a task (0: all).

    Raises ``MattaError`` where the model is of no kind that the harness runs, or a task's data
    cannot be had.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        what = f"this one is a {type(model).__name__}"
        raise MattaError(f"lm-evaluation-harness runs models of transformers; {what}.")
    with tempfile.TemporaryDirectory() as temp, _quiet():
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        for name, path in data.items():
            _localize(name, Path(path), Path(temp))
        own: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        try:
            local: dict[str, Any] = TaskManager(include_path=temp, include_defaults=False).load(
                list(data)
            )["tasks"]
            found: Any = simple_evaluate(
                own,
                tasks=[local.get(name, name) for name in tasks],
                limit=limit or None,
                bootstrap_iters=BOOTSTRAP,
                task_manager=_manager(),
            )
        except MattaError:
            raise
        except Exception as error:
            # what a task, its data set and the hub's client raise is open-ended
            offline = "Without the hub, --task-data NAME=FILE gives a task its examples"
            failed = f"lm-evaluation-harness failed at {', '.join(tasks)}: {said(error)}"
            raise MattaError(f"{failed}. {offline}.") from error
    return {
        name: _metrics(result, found["samples"].get(name, []))
        for name, result in found["results"].items()
    }


def _metrics(result: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``acc,none`` and ``acc_stderr,none`` as a value with its standard error."""
    metrics: dict[str, dict[str, float | None]] = {}
    columns: Columns = {}
    for key, value in result.items():
        name, comma, kind = key.partition(",")
        if comma and not name.endswith("_stderr") and isinstance(value, (int, float)):
            error = result.get(f"{name}_stderr,{kind}")
            label = name if kind == "none" else f"{name} ({kind})"
            metrics[label] = {
                "value": float(value),
                "stderr": float(error) if isinstance(error, (int, float)) else None,
            }
            each = [
                s.get(name)
                for s in sorted(samples, key=lambda s: s["doc_id"])
                if s.get("filter", kind) == kind
            ]
            if each and all(isinstance(one, (bool, int, float)) for one in each):
                numbers = np.array(each, dtype=float)
                # else it is put together in another way, as a perplexity is
                if np.isclose(numbers.mean(), value):
                    columns[label] = numbers
    return {
        "metrics": metrics,
        "examples": len({s["doc_id"] for s in samples}) or None,
        "columns": columns,
    }


def _localize(name: str, path: Path, temp: Path) -> None:
    """Put into ``temp`` the harness's task with a file in place of its data set."""
    manager = _manager()
    original = manager.task_index[name].yaml_path if name in manager.all_subtasks else None
    if original is None:
        several = f"{name!r} stands for several tasks; name one of them"
        raise MattaError(f"--task-data {name}=... is not possible: {several}.")
    rows = list(_rows(path))
    if not rows:
        raise MattaError(f"{str(path)!r} holds no examples: check --task-data.")
    written = temp / f"{name}.jsonl"
    written.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own = {
        "include": str(original),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(written)}, "cache_dir": str(temp / "cache")},
        "test_split": "test",
        "validation_split": None,
        "training_split": None,
        "fewshot_split": None,
    }
    (temp / f"{name}.yaml").write_text(json.dumps(own), encoding="utf-8")  # JSON is YAML


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, row in json_lines(path):
        if not isinstance(row, dict):
            raise MattaError(f"{str(path)!r}, line {number} is no JSON object.")
        yield (
            _agieval(row)
            if {"question", "options", "label"} <= row.keys() and "query" not in row
            else row
        )


def _agieval(row: Mapping[str, Any]) -> dict[str, Any]:
    """A question of AGIEval's repository in the form of the harness's data set.

    Source: Zhong et al. 2023, arXiv 2304.06364.
    """
    options = list(row["options"])
    letters = "ABCDEFG"[: len(options)]
    if not options or not row["label"] or any(label not in letters for label in row["label"]):
        answer = f"cannot have the answer {row['label']!r}: check --task-data"
        raise MattaError(f"A question with the options {options} {answer}.")
    question = (
        f"{row.get('passage') or ''}Q: {row['question']} Answer Choices: {' '.join(options)}\n"
    )
    return {
        "query": f"{question}A: Among A through {letters[-1]}, the answer is",
        "choices": options,
        "gold": [letters.index(label) for label in row["label"]],
    }


@functools.cache
def _manager() -> Any:
    try:
        with _quiet():
            import lm_eval.models.huggingface  # noqa: F401  # needs accelerate
            from lm_eval.tasks import TaskManager

            return TaskManager()
    except ImportError as error:
        needs = f"--tasks needs lm-evaluation-harness: {install('harness')}"
        raise MattaError(f"{needs}. ({said(error)})") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's log and bars, nor what git says to it; random numbers stay."""
    before, states = (
        logging.root.manager.disable,
        (random.getstate(), np.random.get_state(), torch.get_rng_state()),
    )
    logging.disable(logging.WARNING)
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
        logging.disable(before)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
