"""The models that are compared, opened by what the user typed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from matta_cli.errors import MattaError
from matta_cli.files.card import read_card
from matta_cli.files.workspace import Workspace
from matta_cli.formats import quantized
from matta_cli.measure import cost
from matta_cli.models import load, plugins
from matta_cli.models.folders import load_ta, ta_folder
from matta_cli.models.names import folder_and_width
from matta_cli.models.source import open_source
from matta_cli.models.ta import TA
from matta_cli.models.tokenizer import same_tokens, tokenizer_of
from matta_cli.progress import Say
from matta_cli.tasks.task import Task


@dataclass
class Subject:
    """A model to measure: as it was opened, and as it is called on the data of the first one.

    ta, width: whose Student it is, where it shares a TA's weights. program: what is measured of one
    that is a program of ONNX, whose float Student ``model`` then is.
    """

    name: str
    model: nn.Module
    folder: Path | None
    ta: TA | None = None
    width: float = 0.0
    program: nn.Module | None = None
    fitted: Any = None

    def __post_init__(self) -> None:
        self.fitted = self.model


def students_of(space: Workspace) -> list[str]:
    """What ``eval`` measures unasked: the base, and a family's Students, small to large."""
    folders = space.exported()
    by_size = sorted(folders, key=lambda path: (cost.weight_bytes(path), path.name))
    return [f"{space.ta}@1", *map(str, by_size)] if folders else []


def home(models: Sequence[str], out: Path) -> Path:
    """The output folder whose run's settings hold.

    It is ``out`` if that is one, else that in which the first of the models lies.
    """
    if Workspace(out).ta.is_dir():
        return out
    for text in models:
        path = Path(folder_and_width(text)[0])
        for folder in (path, *list(path.parents)[:5]):
            if Workspace(folder).converted:
                return folder
    return out


def chosen_by(models: Sequence[str]) -> list[str]:
    """The Students among these that were chosen on held-out examples, for a budget."""
    found = []
    for text in models:
        if (Path(text) / "matta.json").exists():
            lineage = read_card(Path(text))["lineage"]
            # until it was written down, a Student without a width was known to have a budget
            if lineage.get("budget", lineage.get("student") and lineage.get("width") is None):
                found.append(text)
    return found


def task_of(names: Sequence[str]) -> str:
    """The task of the first model that says what it is for."""
    for name in names:
        folder = ta_folder(folder_and_width(name)[0])
        if (folder / "matta.json").exists():
            return read_card(folder)["task"]
    for name in names:
        try:
            found = plugins.detect(open_source(name)).task
        except MattaError:
            continue
        if found:
            return found
    open_source(names[0])  # what is not there is said first
    such = "pass --task, such as causal_lm or image_classification"
    raise MattaError(f"It is not known what {names[0]!r} is for: {such}.")


def example_of(names: Sequence[str], out: Path) -> str:
    """How the models are called that a function builds, by the first folder that says so."""
    for name in (*names, str(out)):
        folder = ta_folder(folder_and_width(name)[0])
        if (folder / "matta.json").exists() and (found := read_card(folder).get("example")):
            return found
    return ""


class Opener:
    """Opens models for a task by what the user typed. The Students of one TA share its weights.

    example: how a model that a function builds is called. say: hears what was assumed of them.
    """

    def __init__(
        self, task: Task, device: torch.device, example: str, say: Say = lambda _: None
    ) -> None:
        self.task, self.device, self.example, self.say = task, device, example, say
        self._tas: dict[Path, TA] = {}

    def open(self, name: str) -> Subject:
        """Raises ``MattaError`` where there is no such model, or one for another task."""
        where, width = folder_and_width(name)
        folder = ta_folder(where)
        if width is not None:
            return self._student(name, folder, width)
        card = read_card(folder) if (folder / "matta.json").exists() else {}
        if card and card["lineage"].get("quantized"):
            return self._quantized(name, folder, str(card["lineage"].get("of", "")))
        adapter = plugins.adapter(card["adapter"], folder) if card else None
        model, source = load.load_model(
            name,
            self.task.name,
            adapter=adapter,
            example=self.example,
            say=lambda note: self.say(f"Note: {name!r}: {note}"),
        )
        self.task.notes += source.notes
        return Subject(name, model, folder if card else source.folder)

    def _quantized(self, name: str, folder: Path, of: str) -> Subject:
        """A Student in fewer bits. What a program does not say of itself, its float one does."""
        beside = folder.resolve().parent / Path(of).name
        if not (beside / "matta.json").is_file():
            float_one = f"the float Student that it was made of, {beside}"
            raise MattaError(f"{name!r} is measured beside {float_one}, which is not there.")
        if not quantized.is_program(folder):
            return Subject(name, quantized.opened(folder, None), folder)
        like = self.open(str(beside)).model
        return Subject(name, like, folder, program=quantized.opened(folder, like))

    def _student(self, name: str, folder: Path, width: float) -> Subject:
        if folder not in self._tas:
            self._tas[folder] = load_ta(folder)
            self._tas[folder].model.to(self.device)
        ta = self._tas[folder]
        if ta.adapter.task != self.task.name:
            kinds = f"{ta.adapter.task}, not for {self.task.name}"
            raise MattaError(f"{name!r} is a model for {kinds}.")
        return Subject(name, ta.at(width), folder, ta, width)


def fit(task: Task, subject: Subject, first: Subject) -> None:
    """Make ``subject.fitted``: the model as it is called on the first one's batches.

    Raises ``MattaError`` where the two cannot be measured on the same examples.
    """
    if subject is first:
        subject.fitted = subject.model
        return
    own, other = (tokenizer_of(s.folder) if task.tokens else None for s in (subject, first))
    if own is not None and other is not None and not same_tokens(own, other):
        both = f"{subject.name} and {first.name} have different tokenizers"
        raise MattaError(f"{both}: they cannot be compared on the same tokens.")
    before = len(task.notes)
    try:
        subject.fitted = task.fit_teacher(subject.model, subject.folder, first.model, first.folder)
    except MattaError as error:
        said = str(error)
        length = f"pass --against {subject.name}, whose length is then the one used"
        for words, here in {
            "The Teacher's": "its",
            "The Teacher": "it",
            "the model": first.name,
            " to distil": "",
            "a longer Teacher is needed": length,
        }.items():
            said = said.replace(words, here)
        what = f"{subject.name} cannot be measured on the examples of {first.name}"
        raise MattaError(f"{what}: {said}") from None
    names = {"The Teacher": subject.name, "the Teacher": subject.name, "the model": first.name}
    for at in range(before, len(task.notes)):
        for word, name in names.items():
            task.notes[at] = task.notes[at].replace(word, name)


def run_programs(subjects: Sequence[Subject]) -> None:
    """From here on what is measured of a program is the program.

    Raises ``MattaError`` for one whose float Student had to be fitted to other models.
    """
    for subject in subjects:
        if subject.program is None:
            continue
        if subject.fitted is not subject.model:
            own = "measure it beside models of the same outputs and inputs"
            raise MattaError(f"{subject.name} is a program, which stays as it is: {own}.")
        subject.fitted = subject.program


def level(task: Task, subjects: Sequence[Subject]) -> None:
    """Of vocabularies that are padded over the same tokens, use what all of them have."""
    least = min(task.outputs(subject.fitted) for subject in subjects)
    for subject in subjects:
        if task.outputs(subject.fitted) > least:
            subject.fitted = task.narrowed(subject.fitted, least)
