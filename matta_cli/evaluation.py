"""eval: any models of one task, measured and compared on the same examples."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from matta_cli import (
    __version__,
    cascade,
    checkpoint,
    comparison,
    cost,
    devices,
    distillation,
    evaluate,
    models,
    registry,
    speculation,
    supernet,
    teacher_files,
)
from matta_cli.conversion import TA, load_ta, ta_folder
from matta_cli.errors import MattaError
from matta_cli.recipe import Recipe
from matta_cli.tasks import Columns, Data, Split, Task
from matta_cli.tokens import tokenizer_digest

_WIDTH = re.compile(r"(.+)@(\d*\.?\d+)")


@dataclass
class Asked:
    """What to measure, in the user's words. Models are folders, hub ids, timm names; a TA's Student is ``FOLDER@WIDTH``.

    models: those compared, the first (or ``against``) with all others. speculative: a small model and a larger one. tasks:
    of lm-evaluation-harness; task_data: local files of their examples; task_limit: examples of each (0: all).
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
class _Subject:
    """A model to measure: as it was opened, and as it is called on the data of the first one."""

    name: str
    model: nn.Module
    folder: Path | None
    ta: TA | None = None
    width: float = 0.0
    fitted: Any = None

    def __post_init__(self) -> None:
        self.fitted = self.model


@dataclass
class _Scored:
    """What a model made of every split: columns, and the answers by which models agree."""

    columns: list[Columns]
    answers: list[Columns]


def students_of(out: Path) -> list[str]:
    """What ``eval`` measures unasked: the base of an output folder, and its exported Students from small to large."""
    folders = [path.parent for path in (out / "students").glob("*/matta.json")]
    by_size = sorted(folders, key=lambda path: (cost.weight_bytes(path), path.name))
    return [f"{out / 'ta'}@1", *map(str, by_size)] if folders else []


def _parts(name: str) -> tuple[str, float | None]:
    """``FOLDER@0.5`` as a folder and a width, where there is such a folder; else the whole, and no width."""
    found = _WIDTH.fullmatch(name)
    return (found[1], float(found[2])) if found and Path(found[1]).is_dir() else (name, None)


def home(models: Sequence[str], out: Path) -> Path:
    """The output folder whose run's settings hold: ``out`` if it is one, else that in which the first of the models lies."""
    if (out / "ta").is_dir():
        return out
    for text in models:
        path = Path(_parts(text)[0])
        for folder in (path, *list(path.parents)[:3]):
            if (folder / "ta" / "matta.json").exists():
                return folder
    return out


def chosen_by(models: Sequence[str]) -> list[str]:
    """The Students among these that were chosen on held-out examples, for a budget."""
    found = []
    for text in models:
        if (Path(text) / "matta.json").exists():
            lineage = checkpoint.read_card(Path(text))["lineage"]
            if lineage.get("student") and lineage.get("width") is None:
                found.append(text)
    return found


def evaluation(recipe: Recipe, asked: Asked, out: Path, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure and compare. Returns what ``matta eval --json`` prints.

    Raises ``MattaError`` where a model cannot be opened or is not of the same task, vocabulary, classes or inputs as the
    first, and where there is no data.
    """
    names = _names(asked, out)
    against = asked.against or names[0]
    task = registry.task(asked.task or _task_of(names), recipe)
    if (asked.tasks or asked.speculative) and task.name != "causal_lm":
        what = "--tasks" if asked.tasks else "--speculative"
        raise MattaError(f"{what} is for language models; these are models for {task.name}.")
    device = devices.pick(recipe.distill.device)
    tas: dict[Path, TA] = {}
    example = _example(names, out) or recipe.convert.example
    subjects = [_opened(name, task, tas, device, example) for name in names]
    first = next(s for s in subjects if s.name == against)
    data: Data | None = None
    if recipe.data.train or recipe.data.held_out or not asked.tasks or asked.cascade or asked.speculative or asked.teacher:
        data = _data(recipe, task, first, subjects, device)
        say(f"Measuring on {data.description}.")
    splits = data.held_out if data is not None else ()  # the harness's tasks bring their own
    others = _references(asked, task, names, first, out, tas, device, example, say) if splits else {}
    for subject in [*subjects, *others.values()]:
        if splits:
            _fit(task, subject, first)
        subject.fitted = subject.fitted.to(device)
    one = splits[0].batch([0]) if splits else task.example(first.model, 1)
    batch = {k: v.to(device) for k, v in one.items()}
    macs = {subject.name: cost.macs(task, subject.fitted, batch) for subject in subjects}
    if asked.cascade:  # what cannot be is said before all is measured
        one_row = evaluate.columns(task, first.fitted, splits[0], 1, device, limit=1)
        there, limit = len(splits[0]), recipe.data.eval_examples
        cascade.check(task, one_row, min(there, limit or there), asked.unsure)
        if len(set(macs.values())) < 2:
            raise MattaError("--cascade needs a smaller model and a larger one; these cost the same.")
    scored: dict[str, _Scored] = {}
    for subject in [*subjects, *others.values()]:
        if subject.name not in scored:  # the TA, or the Teacher, may be one of the models, too
            say(f"Measuring {subject.name}.")
            scored[subject.name] = _score(recipe, task, subject, splits, device)

    resamples = recipe.export.bootstrap
    tables = {name: scored[name].columns for name in names}
    differences = comparison.against(task, tables, against, resamples)
    entries: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        entries[subject.name] = {
            "name": subject.name,
            "parameters": cost.parameters(subject.model),
            "macs": macs[subject.name],
            "metrics": evaluate.intervals(task, tables[subject.name], resamples),
            "differences": differences.get(subject.name, {}),
            "agreement": {
                which: found
                for which, other in others.items()
                if other.name != subject.name
                and (found := _agreement(task, scored[subject.name].answers, scored[other.name].answers, resamples))
            },
        }
    present = {name for entry in entries.values() for name in entry["metrics"]}
    result: dict[str, Any] = {
        "format": 1,
        "matta": __version__,
        "task": task.name,
        "data": data.description if data is not None else "",
        "device": cost.device_card(device),
        "metrics": [{"name": m.name, "label": m.label, "higher": m.higher} for m in task.metrics if m.name in present],
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
        texts = splits[0].batch(range(min(speculation.PROMPTS, len(splits[0]))))["input_ids"].to(device)
        prompts = texts[:, : max(1, min(speculation.PROMPT, texts.shape[1] // 2))]
        found = speculation.measure(small.model, large.model, prompts, speculation.NEW, asked.draft_tokens, speculation.ROUNDS)
        result["speculative"] = {"small": small.name, "large": large.name, **found}
    return result


def _names(asked: Asked, out: Path) -> list[str]:
    """The models, each once. Raises ``MattaError`` for what cannot be meant, before anything is opened."""
    names = list(dict.fromkeys([*asked.models, *asked.speculative]))
    if not names:
        raise MattaError(f"There is nothing to evaluate: name models, or export Students to {out} first.")
    if asked.against and asked.against not in names:
        raise MattaError(f"--against {asked.against!r} is none of the models: {', '.join(names)}.")
    if asked.speculative and (len(asked.speculative) != 2 or len(set(asked.speculative)) != 2):
        raise MattaError("--speculative takes two different models, the one that drafts and the larger one: SMALL,LARGE.")
    if asked.cascade and len(names) < 2:
        raise MattaError("--cascade needs two models or more: a small one, and a larger one that is asked in doubt.")
    if asked.teacher and teacher_files.is_file(asked.teacher):
        raise MattaError(f"--teacher {asked.teacher!r} is a file of outputs, of other examples than these: name a model.")
    if asked.tasks or asked.task_data:
        from matta_cli import harness

        harness.check(asked.tasks, asked.task_data)
    return names


def _score(recipe: Recipe, task: Task, subject: _Subject, splits: Sequence[Split], device: torch.device) -> _Scored:
    size, limit = max(8, recipe.distill.batch_size), recipe.data.eval_examples
    both = [evaluate.columns_and_answers(task, subject.fitted, split, size, device, limit) for split in splits]
    return _Scored([columns for columns, _ in both], [answers for _, answers in both])


def _task_of(names: Sequence[str]) -> str:
    """The task of the first model that says what it is for."""
    for name in names:
        folder = ta_folder(_parts(name)[0])
        if (folder / "matta.json").exists():
            return checkpoint.read_card(folder)["task"]
    for name in names:
        try:
            found = registry.detect(models.open_source(name)).task
        except MattaError:
            continue
        if found:
            return found
    models.open_source(names[0])  # what is not there is said first
    raise MattaError(f"It is not known what {names[0]!r} is for: pass --task, such as causal_lm or image_classification.")


def _example(names: Sequence[str], out: Path) -> str:
    """How the models are called that a function builds, by the first folder that says so."""
    for name in (*names, str(out)):
        folder = ta_folder(_parts(name)[0])
        if (folder / "matta.json").exists() and (found := checkpoint.read_card(folder).get("example")):
            return found
    return ""


def _opened(name: str, task: Task, tas: dict[Path, TA], device: torch.device, example: str) -> _Subject:
    """A model by what the user typed. ``tas``: those that are open, on the device, whose Students share their weights."""
    where, width = _parts(name)
    if width is not None:
        folder = ta_folder(where)
        if folder not in tas:
            tas[folder] = load_ta(folder)
            tas[folder].model.to(device)
        ta = tas[folder]
        if ta.adapter.task != task.name:
            raise MattaError(f"{name!r} is a model for {ta.adapter.task}, not for {task.name}.")
        view = ta.at(width)
        return _Subject(name, view if isinstance(view, nn.Module) else view.module(), folder, ta, width)
    folder = ta_folder(name)
    card = checkpoint.read_card(folder) if (folder / "matta.json").exists() else {}
    adapter = registry.adapter(card["adapter"], folder) if card else None
    model, source = models.load_model(name, task.name, adapter=adapter, example=example)
    return _Subject(name, model, folder if card else source.folder)


def _data(recipe: Recipe, task: Task, first: _Subject, subjects: Sequence[_Subject], device: torch.device) -> Data:
    """The data, opened for the first model; and the Students of a TA with BatchNorm get statistics of their own from it."""
    normed = [s for s in subjects if s.ta is not None and supernet.has_statistics(s.ta.model)]
    data = task.data(first.folder or Path(), first.model, training=bool(normed))
    for s in normed:
        assert s.ta is not None
        s.model = distillation.student_for_evaluation(task, s.ta, s.width, data.train, recipe.distill.batch_size, device)
    return data


def _references(
    asked: Asked, task: Task, names: Sequence[str], first: _Subject, out: Path, tas: dict[Path, TA], device: torch.device,
    example: str, say: Callable[[str], None],
) -> dict[str, _Subject]:  # fmt: skip
    """The TA and the Teacher with which the models are to agree, as far as they are known.

    A TA that nobody named is the one that a model was cut out of, or lies in the output folder; it may not fit.
    """
    widths = [where for where, width in map(_parts, names) if width is not None]
    made_of = [str(Path(name).parents[1]) for name in names if Path(name).parent.name == "students"]
    found: dict[str, _Subject] = {}
    if asked.ta:
        found["ta"] = _opened(asked.ta, task, tas, device, example)
    else:
        there = [name for name in (*made_of, *widths, *names, str(out)) if (ta_folder(name) / "matta.json").exists()]
        near = [name for name in there if not checkpoint.read_card(ta_folder(name))["lineage"].get("student")]
        try:
            for name in near[:1]:
                subject = _opened(name, task, tas, device, example)
                _fit(task, subject, first)
                found["ta"] = subject
        except MattaError as error:
            say(f"Without agreement with the TA in {near[0]}: {error}")
    if "ta" in found:
        say(f"The TA with which models agree or not is {found['ta'].folder}.")
    if asked.teacher:
        found["teacher"] = _opened(asked.teacher, task, tas, device, example)
    return found


def _fit(task: Task, subject: _Subject, first: _Subject) -> None:
    """The model as it is called on the first one's batches."""
    if subject is first:
        return
    digests = [_tokenizer(s.folder) for s in (subject, first)]
    if all(digests) and digests[0] != digests[1]:
        raise MattaError(
            f"{subject.name} and {first.name} have different tokenizers: they cannot be compared on the same tokens."
        )
    try:
        subject.fitted = task.fit_teacher(subject.model, subject.folder, first.model)
    except MattaError as error:
        said = str(error).replace("The Teacher", "it").replace("the model", first.name).replace(" to distil", "")
        said = said.replace("a longer Teacher is needed", f"pass --against {subject.name}, whose length is then the one used")
        raise MattaError(f"{subject.name} cannot be measured on the examples of {first.name}: {said}") from None


def _tokenizer(folder: Path | None) -> str | None:
    if folder is None or not models.has_tokenizer(folder):
        return None
    return tokenizer_digest(models.open_tokenizer(folder, "", sys.maxsize))


def _agreement(task: Task, ours: Sequence[Columns], theirs: Sequence[Columns], resamples: int) -> dict[str, float]:
    """The share of answers that two models have in common, with a bootstrap interval; empty where there are none."""
    for a, b in zip(ours, theirs, strict=True):
        if not a or not b:
            continue
        table = task.agreement(a, b)
        draws = [s["same"].sum() / max(1.0, s["of"].sum()) for (s,) in evaluate.resampled([table], resamples)]
        low, high = np.percentile(draws, [2.5, 97.5])
        value = table["same"].sum() / max(1.0, table["of"].sum())
        return {"value": float(value), "low": float(low), "high": float(high)}
    return {}


def _harness(recipe: Recipe, asked: Asked, subject: _Subject) -> dict[str, Any]:
    from matta_cli import harness

    config: Any = subject.model.config
    tokenizer = models.open_tokenizer(subject.folder or Path(), recipe.convert.tokenizer, int(config.vocab_size))
    return harness.scores(
        subject.model, tokenizer, asked.tasks, asked.task_data, max(8, recipe.distill.batch_size), asked.task_limit
    )


def _compare_tasks(entries: Mapping[str, dict[str, Any]], against: str, resamples: int) -> None:
    """The models' differences in the harness's tasks, put beside their metrics in place of the columns."""
    for name in entries[against]["tasks"]:
        columns = {model: entry["tasks"][name].pop("columns") for model, entry in entries.items()}
        shared = set.intersection(*(set(own) for own in columns.values()))
        tables = {model: [{k: v for k, v in own.items() if k in shared}] for model, own in columns.items()}
        found = comparison.against(comparison.Means(), tables, against, resamples) if shared else {}
        for model, entry in entries.items():
            entry["tasks"][name]["differences"] = found.get(model, {})


def _cascades(
    task: Task, entries: Mapping[str, dict[str, Any]], tables: Mapping[str, list[Columns]], resamples: int, unsure: str
) -> list[dict[str, Any]]:
    """Each smaller model before each larger one."""
    by_cost = sorted(entries.values(), key=lambda e: e["macs"])
    found = []
    for small, large in itertools.combinations(by_cost, 2):
        if small["macs"] < large["macs"]:
            macs = small["macs"], large["macs"]
            own = cascade.curve(task, tables[small["name"]][0], tables[large["name"]][0], macs, resamples, unsure)
            found.append({"models": [small["name"], large["name"]], **own})
    return found
