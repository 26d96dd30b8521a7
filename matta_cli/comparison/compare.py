"""eval: any models of one task, measured and compared on the same examples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from matta_cli.comparison import speculation
from matta_cli.comparison.cascade import check, curve
from matta_cli.comparison.subjects import (
    Subject,
    example_of,
    fit,
    folder_and_width,
    opened,
    task_of,
)
from matta_cli.data.split import Columns, Data, Split
from matta_cli.devices.device import pick
from matta_cli.errors import MattaError
from matta_cli.files import card
from matta_cli.measure import cost, intervals, score, students
from matta_cli.models.folders import ta_folder
from matta_cli.models.ta import TA
from matta_cli.models.tokenizer import open_tokenizer
from matta_cli.nested import view
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task
from matta_cli.tasks.task import Task
from matta_cli.training import teacher_file
from matta_cli.version import __version__


@dataclass
class Asked:
    """What to measure, in the user's words. Models are folders, hub ids, timm names; a TA's Student
    is ``FOLDER@WIDTH``.

    models: those compared, the first (or ``against``) with all others. speculative: a small model
    and a larger one. tasks: of lm-evaluation-harness; task_data: local files of their examples;
    task_limit: examples of each (0: all).
    """

    models: Sequence[str]
    task: str = ""
    against: str = ""
    ta: str = ""
    teacher: str = ""
    speculative: Sequence[str] = ()
    draft_tokens: int = 5
    cascade: bool = False
    unsure: str = "confidence"
    tasks: Sequence[str] = ()
    task_data: Mapping[str, str] = field(default_factory=dict)
    task_limit: int = 0


@dataclass
class _Scored:
    """What a model made of every split: columns, and the answers by which models agree."""

    columns: list[Columns]
    answers: list[Columns]


def evaluation(
    recipe: Recipe, asked: Asked, out: Path, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Measure and compare. Returns what ``matta eval --json`` prints.

    Raises ``MattaError`` where a model cannot be opened or is not of the same task, vocabulary,
    classes or inputs as the first, and where there is no data.
    """
    names = _names(asked, out)
    against = asked.against or names[0]
    task = tasks_task.task(asked.task or task_of(names), recipe)
    if (asked.tasks or asked.speculative) and task.name != "causal_lm":
        what = "--tasks" if asked.tasks else "--speculative"
        raise MattaError(f"{what} is for language models; these are models for {task.name}.")
    device = pick(recipe.distill.device)
    tas: dict[Path, TA] = {}
    example = example_of(names, out) or recipe.convert.example
    subjects = [opened(name, task, tas, device, example) for name in names]
    first = next(s for s in subjects if s.name == against)
    data: Data | None = None
    if (
        recipe.data.train
        or recipe.data.held_out
        or not asked.tasks
        or asked.cascade
        or asked.speculative
        or asked.teacher
    ):
        data = _data(recipe, task, first, subjects, device)
        say(f"Measuring on {data.description}.")
    splits = data.held_out if data is not None else ()  # the harness's tasks bring their own
    others = (
        _references(asked, task, names, first, out, tas, device, example, say) if splits else {}
    )
    for subject in [*subjects, *others.values()]:
        if splits:
            fit(task, subject, first)
        subject.fitted = subject.fitted.to(device)
    one = splits[0].batch([0]) if splits else task.example(first.model, 1)
    batch = {k: v.to(device) for k, v in one.items()}
    macs = {subject.name: cost.macs(task, subject.fitted, batch) for subject in subjects}
    if asked.cascade:  # what cannot be is said before all is measured
        one_row = score.columns(task, first.fitted, splits[0], 1, device, limit=1)
        there, limit = len(splits[0]), recipe.data.eval_examples
        check(task, one_row, min(there, limit or there), asked.unsure)
        if len(set(macs.values())) < 2:
            raise MattaError(
                "--cascade needs a smaller model and a larger one; these cost the same."
            )
    scored: dict[str, _Scored] = {}
    for subject in [*subjects, *others.values()]:
        if subject.name not in scored:  # the TA, or the Teacher, may be one of the models, too
            say(f"Measuring {subject.name}.")
            scored[subject.name] = _score(recipe, task, subject, splits, device)

    resamples = recipe.export.bootstrap
    tables = {name: scored[name].columns for name in names}
    differences = intervals.against(task, tables, against, resamples)
    entries: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        entries[subject.name] = {
            "name": subject.name,
            "parameters": cost.parameters(subject.model),
            "macs": macs[subject.name],
            "metrics": _intervals(task, tables[subject.name], resamples),
            "differences": differences.get(subject.name, {}),
            "agreement": {
                which: found
                for which, other in others.items()
                if other.name != subject.name
                and (
                    found := _agreement(
                        task, scored[subject.name].answers, scored[other.name].answers, resamples
                    )
                )
            },
        }
    present = {name for entry in entries.values() for name in entry["metrics"]}
    result: dict[str, Any] = {
        "format": 1,
        "matta": __version__,
        "task": task.name,
        "data": data.description if data is not None else "",
        "device": cost.device_card(device),
        "metrics": [
            {"name": m.name, "label": m.label, "higher": m.higher}
            for m in task.metrics
            if m.name in present
        ],
        "against": against,
        "agreement": {"of": task.alike, **{which: other.name for which, other in others.items()}},
        "models": list(entries.values()),
    }
    if asked.tasks:
        for subject in subjects:
            say(f"lm-evaluation-harness: {subject.name}.")
            entries[subject.name]["tasks"] = _harness(recipe, asked, subject)
        _compare_tasks(entries, against, resamples)
    if asked.cascade:
        result["cascade"] = _cascades(task, entries, tables, resamples, asked.unsure)
    if asked.speculative:
        small, large = (next(s for s in subjects if s.name == name) for name in asked.speculative)
        say(f"Generating with {large.name}, alone and with drafts of {small.name}.")
        texts = (
            splits[0].batch(range(min(speculation.PROMPTS, len(splits[0]))))["input_ids"].to(device)
        )
        prompts = texts[:, : max(1, min(speculation.PROMPT, texts.shape[1] // 2))]
        found = speculation.measure(
            small.model,
            large.model,
            prompts,
            speculation.NEW,
            asked.draft_tokens,
            speculation.ROUNDS,
        )
        result["speculative"] = {"small": small.name, "large": large.name, **found}
    return result


def _names(asked: Asked, out: Path) -> list[str]:
    """The models, each once. Raises ``MattaError`` for what cannot be meant, before anything is
    opened.
    """
    names = list(dict.fromkeys([*asked.models, *asked.speculative]))
    if not names:
        raise MattaError(
            f"There is nothing to evaluate: name models, or export Students to {out} first."
        )
    if asked.against and asked.against not in names:
        raise MattaError(f"--against {asked.against!r} is none of the models: {', '.join(names)}.")
    if asked.speculative and (len(asked.speculative) != 2 or len(set(asked.speculative)) != 2):
        raise MattaError(
            "--speculative takes two different models, the one that drafts and the larger one: SMALL,LARGE."
        )
    if asked.cascade and len(names) < 2:
        raise MattaError(
            "--cascade needs two models or more: a small one, and a larger one that is asked in doubt."
        )
    if asked.teacher and teacher_file.is_file(asked.teacher):
        raise MattaError(
            f"--teacher {asked.teacher!r} is a file of outputs, of other examples than these: name a model."
        )
    if asked.tasks or asked.task_data:
        from matta_cli.comparison import harness

        harness.check(asked.tasks, asked.task_data)
    return names


def _score(
    recipe: Recipe, task: Task, subject: Subject, splits: Sequence[Split], device: torch.device
) -> _Scored:
    size, limit = score.at_a_time(recipe.distill), recipe.data.eval_examples
    both = [
        score.columns_and_answers(task, subject.fitted, split, size, device, limit)
        for split in splits
    ]
    return _Scored([columns for columns, _ in both], [answers for _, answers in both])


def _data(
    recipe: Recipe, task: Task, first: Subject, subjects: Sequence[Subject], device: torch.device
) -> Data:
    """The data, opened for the first model; and the Students of a TA with BatchNorm get statistics
    of their own from it.
    """
    normed = [s for s in subjects if s.ta is not None and view.has_statistics(s.ta.model)]
    data = task.data(first.folder or Path(), first.model, training=bool(normed))
    for s in normed:
        assert s.ta is not None
        s.model = students.measurable(
            task, s.ta.student(s.width), data.train, score.at_a_time(recipe.distill), device
        )
    return data


def _references(
    asked: Asked,
    task: Task,
    names: Sequence[str],
    first: Subject,
    out: Path,
    tas: dict[Path, TA],
    device: torch.device,
    example: str,
    say: Callable[[str], None],
) -> dict[str, Subject]:
    """The TA and the Teacher with which the models are to agree, as far as they are known.

    A TA that nobody named is the one that a model was cut out of, or lies in the output folder; it
    may not fit.
    """
    widths = [where for where, width in map(folder_and_width, names) if width is not None]
    made_of = [str(Path(name).parents[1]) for name in names if Path(name).parent.name == "students"]
    found: dict[str, Subject] = {}
    if asked.ta:
        found["ta"] = opened(asked.ta, task, tas, device, example)
    else:
        there = [
            name
            for name in (*made_of, *widths, *names, str(out))
            if (ta_folder(name) / "matta.json").exists()
        ]
        near = [
            name for name in there if not card.read_card(ta_folder(name))["lineage"].get("student")
        ]
        try:
            for name in near[:1]:
                subject = opened(name, task, tas, device, example)
                fit(task, subject, first)
                found["ta"] = subject
        except MattaError as error:
            say(f"Without agreement with the TA in {near[0]}: {error}")
    if "ta" in found:
        say(f"The TA with which models agree or not is {found['ta'].folder}.")
    if asked.teacher:
        found["teacher"] = opened(asked.teacher, task, tas, device, example)
    return found


def _intervals(task: Task, tables: list[Columns], resamples: int) -> dict[str, dict[str, Any]]:
    found = intervals.intervals(task, tables, resamples)
    return {name: vars(interval) for name, interval in found.items()}


def _agreement(
    task: Task, ours: Sequence[Columns], theirs: Sequence[Columns], resamples: int
) -> dict[str, float]:
    """The share of answers that two models have in common, with a bootstrap interval; empty where
    there are none.
    """
    for a, b in zip(ours, theirs, strict=True):
        if not a or not b:
            continue
        table = task.agreement(a, b)
        draws = [
            s["same"].sum() / max(1.0, s["of"].sum()) for s in intervals.resampled(table, resamples)
        ]
        low, high = np.percentile(draws, [2.5, 97.5])
        value = table["same"].sum() / max(1.0, table["of"].sum())
        return {"value": float(value), "low": float(low), "high": float(high)}
    return {}


def _harness(recipe: Recipe, asked: Asked, subject: Subject) -> dict[str, Any]:
    from matta_cli.comparison import harness

    config: Any = subject.model.config
    tokenizer = open_tokenizer(
        subject.folder or Path(), recipe.convert.tokenizer, int(config.vocab_size)
    )
    return harness.scores(
        subject.model,
        tokenizer,
        asked.tasks,
        asked.task_data,
        score.at_a_time(recipe.distill),
        asked.task_limit,
    )


def _compare_tasks(entries: Mapping[str, dict[str, Any]], against: str, resamples: int) -> None:
    """The models' differences in the harness's tasks, put beside their metrics in place of the
    columns.
    """
    for name in entries[against]["tasks"]:
        columns = {model: entry["tasks"][name].pop("columns") for model, entry in entries.items()}
        shared = set.intersection(*(set(own) for own in columns.values()))
        tables = {
            model: [{k: v for k, v in own.items() if k in shared}] for model, own in columns.items()
        }
        found = intervals.against(intervals.Means(), tables, against, resamples) if shared else {}
        for model, entry in entries.items():
            entry["tasks"][name]["differences"] = found.get(model, {})


def _cascades(
    task: Task,
    entries: Mapping[str, dict[str, Any]],
    tables: Mapping[str, list[Columns]],
    resamples: int,
    unsure: str,
) -> list[dict[str, Any]]:
    """Each smaller model before each larger one."""
    by_cost = sorted(entries.values(), key=lambda e: e["macs"])
    found = []
    for small, large in itertools.combinations(by_cost, 2):
        if small["macs"] < large["macs"]:
            macs = small["macs"], large["macs"]
            own = curve(
                task, tables[small["name"]][0], tables[large["name"]][0], macs, resamples, unsure
            )
            found.append({"models": [small["name"], large["name"]], **own})
    return found
