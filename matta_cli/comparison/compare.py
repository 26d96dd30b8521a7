"""eval: any models of one task, measured and compared on the same examples."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from matta_cli.comparison import cascade, references, speculation
from matta_cli.comparison.subjects import (
    Opener,
    Subject,
    example_of,
    fit,
    level,
    run_programs,
    task_of,
)
from matta_cli.data.split import Columns, Data, Split
from matta_cli.devices.device import pick
from matta_cli.errors import MattaError
from matta_cli.files.workspace import Workspace
from matta_cli.measure import cost, intervals, pairs, score, students
from matta_cli.models.tokenizer import open_tokenizer
from matta_cli.progress import Say
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task
from matta_cli.tasks.task import Task
from matta_cli.training import teacher_file
from matta_cli.version import __version__


@dataclass
class Asked:
    """What to measure, in the user's words.

    models: those compared, the first (or ``against``) with all others; folders, hub ids, timm
    names, and ``FOLDER@WIDTH`` for a Student of a TA. speculative: a small model and a larger one.
    tasks: of lm-evaluation-harness; task_data: local files of their examples; task_limit: examples
    of each (0: all). unchosen: leave out the half of the held-out examples that sizes are chosen
    by, as the report on such Students does.
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
    unchosen: bool = False

    @property
    def references(self) -> dict[str, str]:
        """The TA and the Teacher with which the models are to agree, where the user named them."""
        return {which: name for which, name in (("ta", self.ta), ("teacher", self.teacher)) if name}


@dataclass
class _Scored:
    """What a model made of every split: columns, and the answers by which models agree."""

    columns: list[Columns]
    answers: list[Columns]


def evaluation(
    recipe: Recipe, asked: Asked, out: Path, say: Say = lambda _: None
) -> dict[str, Any]:
    """Measure and compare. Returns what ``matta eval --json`` prints.

    Raises ``MattaError`` where a model cannot be opened or is not of the same task, vocabulary,
    classes or inputs as the first, and where there is no data.
    """
    names = _names(asked, out)
    task = tasks_task.task(asked.task or task_of(names), recipe)
    if (asked.tasks or asked.speculative) and task.name != "causal_lm":
        what = "--tasks" if asked.tasks else "--speculative"
        raise MattaError(f"{what} is for language models; these are models for {task.name}.")
    device = pick(recipe.distill.device)
    opener = Opener(task, device, example_of(names, out) or recipe.convert.example, say)
    subjects = _opened(asked, opener, names)
    first = next(s for s in subjects if s.name == (asked.against or names[0]))
    others = {which: opener.open(name) for which, name in asked.references.items()}
    data: Data | None = None
    splits: Sequence[Split] = ()
    if _needs_data(recipe, asked):
        data = _data(recipe, task, first, [*subjects, *others.values()], device)
        if asked.unchosen:
            data = score.reported(data, score.chooses(task, first.model, data, device))
        splits = data.held_out
        say(f"Measuring on {data.description}.")
        for note in data.notes:
            say(f"Note: {note}")
        for subject in [*subjects, *others.values()]:
            fit(task, subject, first)
        level(task, [*subjects, *others.values()])
        if "ta" not in others:
            others = references.near(opener, names, first, out, say) | others
        if "ta" in others:
            say(f"The TA with which models agree or not is {others['ta'].folder}.")
    everyone = [*subjects, *others.values()]
    _ready(task, everyone, device, say)
    one = _example(task, first, splits, recipe.export.batch_size, device)
    macs = {s.name: cost.macs(task, s.model if s.program else s.fitted, one) for s in subjects}
    if asked.cascade:  # what cannot be is said before all is measured
        _check_cascade(recipe, task, first, splits, macs, asked.unsure, device)
    scored: dict[str, _Scored] = {}
    for subject in everyone:
        if subject.name not in scored:  # the TA, or the Teacher, may be one of the models, too
            say(f"Measuring {subject.name}.")
            scored[subject.name] = _score(recipe, task, subject, splits, device)
    entries = _entries(recipe, task, subjects, others, first.name, macs, scored)
    result = _result(recipe, task, data, device, first.name, others, entries, one)
    if asked.tasks:
        _add_tasks(recipe, asked, subjects, entries, first.name, say)
    if asked.cascade:
        tables = {name: scored[name].columns for name in names}
        result["cascade"] = _cascades(task, entries, tables, recipe.export.bootstrap, asked.unsure)
    if asked.speculative:
        small, large = (next(s for s in subjects if s.name == name) for name in asked.speculative)
        say(f"Generating with {large.name}, alone and with drafts of {small.name}.")
        prompts = speculation.prompts(splits[0]).to(device)
        found = speculation.measure(small.fitted, large.fitted, prompts, draft=asked.draft_tokens)
        result["speculative"] = {"small": small.name, "large": large.name, **found}
    return result


def _opened(asked: Asked, opener: Opener, names: Sequence[str]) -> list[Subject]:
    """The models. Raises ``MattaError`` where a program is to do what it cannot."""
    subjects = [opener.open(name) for name in names]
    programs = [subject.name for subject in subjects if subject.program is not None]
    if programs and (asked.tasks or asked.speculative):
        what = "--tasks" if asked.tasks else "--speculative"
        own = f"{programs[0]} is a program of ONNX, which does not generate"
        raise MattaError(f"{what} is not possible: {own}. Name its float Student.")
    return subjects


def _ready(task: Task, everyone: Sequence[Subject], device: torch.device, say: Say) -> None:
    """Say what had to be assumed of the models, and bring them to the device."""
    for note in dict.fromkeys(task.notes):
        say(note)
    for subject in everyone:
        subject.fitted = subject.fitted.to(device)
    run_programs(everyone)


def _needs_data(recipe: Recipe, asked: Asked) -> bool:
    """Whether models are measured on data of their own; the harness's tasks bring theirs."""
    given = recipe.data.train or recipe.data.held_out
    wanted = asked.cascade or asked.speculative or asked.ta or asked.teacher
    return bool(given or wanted or not asked.tasks)


def _names(asked: Asked, out: Path) -> list[str]:
    """The models, each once, before anything is opened.

    Raises ``MattaError`` for what cannot be meant.
    """
    names = list(dict.fromkeys([*asked.models, *asked.speculative]))
    if not names:
        raise Workspace(out).nothing_to_evaluate()
    if asked.against and asked.against not in names:
        raise MattaError(f"--against {asked.against!r} is none of the models: {', '.join(names)}.")
    if asked.speculative and (len(asked.speculative) != 2 or len(set(asked.speculative)) != 2):
        two = "the one that drafts and the larger one: SMALL,LARGE"
        raise MattaError(f"--speculative takes two different models, {two}.")
    if asked.cascade and len(names) < 2:
        two = "a small one, and a larger one that is asked in doubt"
        raise MattaError(f"--cascade needs two models or more: {two}.")
    if asked.teacher and teacher_file.is_file(asked.teacher):
        why = "is a file of outputs, of other examples than these: name a model"
        raise MattaError(f"--teacher {asked.teacher!r} {why}.")
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
    """The data, opened for the first model.

    Students of a TA with BatchNorm whose statistics it does not know get them from the data that
    the TA was trained on.
    """
    normed = [s for s in subjects if s.ta is not None and s.ta.lacks_statistics(s.width)]
    data = task.data(first.folder or Path(), first.model, training=bool(normed))
    for s in normed:
        assert s.ta is not None
        s.model = students.measurable(task, s.ta.student(s.width), data.train, device)
    return data


def _example(
    task: Task, first: Subject, splits: Sequence[Split], size: int, device: torch.device
) -> dict[str, Tensor]:
    """The one example that MACs are counted on: as the report has it, out of a batch of ``size``,
    whose texts are as long as the longest.
    """
    some = range(min(size, len(splits[0]))) if splits else ()
    one = splits[0].batch(some) if splits else task.example(first.model, 1)
    # of a query, whose rows come together, one row
    return {k: v.to(device) for k, v in cost.repeated(one, 1).items()}


def _check_cascade(
    recipe: Recipe,
    task: Task,
    first: Subject,
    splits: Sequence[Split],
    macs: Mapping[str, int],
    unsure: str,
    device: torch.device,
) -> None:
    one_row = score.columns(task, first.fitted, splits[0], 1, device, limit=1)
    there, limit = len(splits[0]), recipe.data.eval_examples
    cascade.check(task, one_row, min(there, limit or there), unsure)
    if len(set(macs.values())) < 2:
        raise MattaError("--cascade needs a smaller model and a larger one; these cost the same.")


def _entries(
    recipe: Recipe,
    task: Task,
    subjects: Sequence[Subject],
    others: Mapping[str, Subject],
    against: str,
    macs: Mapping[str, int],
    scored: Mapping[str, _Scored],
) -> dict[str, dict[str, Any]]:
    """Each model's cost, metrics, differences and agreement, by its name."""
    resamples = recipe.export.bootstrap
    tables = {subject.name: scored[subject.name].columns for subject in subjects}
    differences = pairs.against(task, task.metrics, tables, against, recipe.export)
    entries: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        name = subject.name
        own = scored[name].answers
        agreement = {
            which: references.agreement(task, own, scored[other.name].answers, resamples)
            for which, other in others.items()
            if other.name != name
        }
        metrics = intervals.intervals(task, tables[name], resamples)
        entries[name] = {
            "name": name,
            "parameters": cost.parameters(subject.model),
            "macs": macs[name],
            "metrics": {metric: vars(interval) for metric, interval in metrics.items()},
            "differences": differences.get(name, {}),
            "agreement": {which: found for which, found in agreement.items() if found},
        }
    return entries


def _result(
    recipe: Recipe,
    task: Task,
    data: Data | None,
    device: torch.device,
    against: str,
    others: Mapping[str, Subject],
    entries: Mapping[str, dict[str, Any]],
    one: Mapping[str, Tensor],
) -> dict[str, Any]:
    models = list(entries.values())
    present = {name for model in models for name in model["metrics"]}
    metrics = [m for m in task.metrics if m.name in present]
    return {
        "format": 1,
        "matta": __version__,
        "task": task.name,
        "data": data.description if data is not None else "",
        "device": cost.device_card(device),
        "tokens": cost.tokens(one),
        "metrics": [{"name": m.name, "label": m.label, "higher": m.higher} for m in metrics],
        "against": against,
        "margin": recipe.export.margin,
        "agreement": {"of": task.alike, **{which: other.name for which, other in others.items()}},
        "models": models,
    }


def _add_tasks(
    recipe: Recipe,
    asked: Asked,
    subjects: Sequence[Subject],
    entries: Mapping[str, dict[str, Any]],
    against: str,
    say: Say,
) -> None:
    """Put what the harness's tasks make of each model beside its metrics."""
    from matta_cli.comparison import harness

    for subject in subjects:
        say(f"lm-evaluation-harness: {subject.name}.")
        config: Any = subject.model.config
        tokenizer = open_tokenizer(
            subject.folder or Path(),
            recipe.convert.tokenizer,
            int(config.vocab_size),
            config,
            spare=True,
        )
        size = score.at_a_time(recipe.distill)
        entries[subject.name]["tasks"] = harness.scores(
            subject.model, tokenizer, asked.tasks, asked.task_data, size, asked.task_limit
        )
    _compare_tasks(entries, against, recipe.export.bootstrap)


def _compare_tasks(entries: Mapping[str, dict[str, Any]], against: str, resamples: int) -> None:
    """Put the models' differences in the harness's tasks in place of the columns."""
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
            own = cascade.curve(
                task, tables[small["name"]][0], tables[large["name"]][0], macs, resamples, unsure
            )
            found.append({"models": [small["name"], large["name"]], **own})
    return found
