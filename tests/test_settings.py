"""Settings: what each may be stands with it, and is what errors, help and comments say."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import matta_cli
from matta_cli.commands.options import explained
from matta_cli.commands.recipe import RECIPE
from matta_cli.errors import MattaError
from matta_cli.formats.programs import PROGRAMS
from matta_cli.main import app
from matta_cli.settings import checks
from matta_cli.settings.recipe import SECTIONS, Recipe, about, called, choices
from matta_cli.settings.resolve import resolve, tomllib

NAMES = [
    f"{section}.{field.name}"
    for section in SECTIONS
    for field in dataclasses.fields(SECTIONS[section])
]


def value_of(name: str, recipe: Recipe) -> Any:
    section, key = name.split(".")
    return getattr(getattr(recipe, section), key)


def test_every_default_is_possible() -> None:
    recipe = Recipe()
    for section in SECTIONS:
        checks.check(getattr(recipe, section))


@pytest.mark.parametrize("name", NAMES)
def test_the_text_of_a_setting_is_whole(name: str) -> None:
    known = about(name)
    assert "{" not in known.text and known.source
    assert all(word in known.text for word in known.choices), "its text names every choice"
    default = value_of(name, Recipe())
    assert not known.choices or isinstance(default, list) or default in known.choices


def test_texts_name_choices_and_ranges() -> None:
    assert about("distill.optimizer").text.startswith("adamw, shampoo, soap or muon; where steps")
    precision = "bf16, fp16, fp32 or tf32; auto: bf16 (or fp16) on CUDA, fp32 on a CPU"
    assert about("distill.precision").text == precision
    assert about("distill.log_to").text.startswith("tensorboard, wandb: where the log goes")
    assert about("distill.lr").told == "peak learning rate (above 0)"
    assert about("distill.ramp").told.endswith("from zero (0 to 1)")
    assert about("distill.clip").told == "largest gradient norm; 0: no clipping"


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "convert.expand",
            0.5,
            "--expand 0.5 is not possible: it is the TA's width, from 1.0 to 64.",
        ),
        ("convert.multiple", 0, "convert.multiple 0 is not possible: it must be above 0."),
        ("data.workers", -1, "data.workers -1 is not possible: it must be 0 or more."),
        ("distill.steps", 0, "--steps 0 is not possible: it must be above 0."),
        ("distill.lr", float("nan"), "--lr nan is not possible: it must be finite."),
        ("distill.lr", 1e300, "--lr 1e+300 is not possible: it is too large."),
        (
            "distill.temperature",
            0.0,
            "distill.temperature 0 is not possible: it must be above 0 and at most 10000.",
        ),
        ("distill.clip", float("inf"), "distill.clip inf is not possible: it must be finite."),
        ("distill.ramp", 2.0, "distill.ramp 2 is not possible: it is a share from 0 to 1."),
        ("distill.micro_batch", -1, "--micro-batch -1 is not possible: it must be 0 or more."),
        ("distill.rows", "x", "distill.rows 'x' is not known: divided, all."),
        ("distill.schedule", "x", "distill.schedule 'x' is not known: wsd, cosine."),
        ("distill.optimizer", "sgd", "--optimizer 'sgd' is not known: adamw, shampoo, soap, muon."),
        ("distill.log_to", ["wandb", "x"], "--log-to 'x' is not known: tensorboard, wandb."),
        ("export.batch_size", 0, "--batch 0 is not possible: it must be 1 or more."),
        (
            "export.margin",
            1.0,
            "--margin 1 is not possible: it is a share of a baseline's value, from 0 to 1.",
        ),
        ("search.trials", 0, "--trials 0 is not possible: it must be 1 or more."),
    ],
)
def test_what_a_setting_cannot_be_is_said_in_the_users_names(
    name: str, value: Any, sentence: str
) -> None:
    recipe = Recipe()
    section, key = name.split(".")
    setattr(getattr(recipe, section), key, value)
    with pytest.raises(MattaError) as caught:
        checks.check(getattr(recipe, section))
    assert str(caught.value) == sentence
    assert called(name) in sentence


def test_choices_are_the_words_that_a_setting_takes() -> None:
    assert choices("export.format") == ("stock", "matta", *PROGRAMS)
    assert choices("distill.students_learn_from") == ("both", "ta")
    assert choices("distill.lr") == ()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(), st.lists(st.text()), st.floats())
def test_any_text_comes_back_from_the_toml_that_is_written(
    text: str, texts: list[str], number: float
) -> None:
    recipe = Recipe()
    recipe.data.train, recipe.data.dense, recipe.distill.lr = text, texts, number
    read = tomllib.loads(recipe.text())
    assert read["data"]["train"] == text and read["data"]["dense"] == texts
    assert read["distill"]["lr"] == number or math.isnan(number)


def test_a_path_of_an_emoji_can_be_read_again(tmp_path: Path) -> None:
    recipe = Recipe()
    recipe.update({"data": {"train": "🧪/ü\x7f.txt"}}, "test")
    (tmp_path / "matta.toml").write_text(recipe.text(), encoding="utf-8")
    assert resolve({}, tmp_path)[0].data.train == "🧪/ü\x7f.txt"


def test_a_name_that_is_no_text_is_refused() -> None:
    """A file's name may be bytes that are no UTF-8, which no TOML can hold."""
    name = b"\xff.txt".decode("utf-8", "surrogateescape")
    with pytest.raises(MattaError, match=r"test: data.train is '\\udcff.txt', which is no text"):
        Recipe().update({"data": {"train": name}}, "test")


class Made(str):
    """What every one of the calls may return."""

    ta = None


CALLS = {
    "convert": (
        "matta_cli.conversion.convert.convert",
        lambda data: matta_cli.convert("m", data=data),
    ),
    "distill": ("matta_cli.training.run.distill", lambda data: matta_cli.distill("t", data=data)),
    "teach": ("matta_cli.training.teach.teach", lambda data: matta_cli.teach("t", "to", data=data)),
}


@pytest.mark.parametrize("name", CALLS)
def test_other_data_brings_nothing_along_from_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the configuration of a hub dataset nor held-out data, by keyword as by flag."""
    monkeypatch.chdir(tmp_path)
    recipe = Recipe()
    recipe.data.train, recipe.data.config, recipe.data.held_out = "hub", "wikitext-2", "held.txt"
    Path("matta.toml").write_text(recipe.text(["data"]))
    heard: list[Recipe] = []
    engine, call = CALLS[name]
    monkeypatch.setattr(engine, lambda recipe, *_, **__: heard.append(recipe) or Made("a folder"))
    call("own.txt")
    call(None)
    own, files = (recipe.data for recipe in heard)
    assert (own.train, own.config, own.held_out) == ("own.txt", "", "")
    assert (files.train, files.config, files.held_out) == ("hub", "wikitext-2", "held.txt")


def test_held_out_data_may_be_named_with_other_data(tmp_path: Path) -> None:
    (tmp_path / "matta.toml").write_text('[data]\nheld_out = "old.txt"\nconfig = "c"\n')
    named = {"data": {"train": "own.txt", "held_out": "new.txt", "config": None}}
    data = resolve(named, tmp_path)[0].data
    assert (data.held_out, data.config) == ("new.txt", "")


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("[distill]\nlr = 2020-01-01", "distill.lr is datetime.date"),
        ("[distill]\nwidths = [[1]]", r"distill.widths is \[1\], but a float is needed"),
        ("[distill]\nsteps = 1e3", "distill.steps is 1000.0, but an int is needed"),
        (
            f"[distill]\nsteps = 1{'0' * 400}",
            "distill.steps is a whole number of more than 64 bits",
        ),
        (f"[distill]\nlr = 1{'0' * 400}", "distill.lr is a whole number of more than 64 bits"),
        (f"[distill]\nsteps = 1{'0' * 5000}", "is not valid TOML"),
        (f"[data]\ndense = {'[' * 9000}", "is not valid TOML"),
        ("[[data]]\ntrain = 'x'", r"data is a table of settings, not \[\{"),
        ("data.train.x = 1", r"data.train is \{'x': 1\}, but a str is needed"),
    ],
    ids=range(9),
)
@pytest.mark.parametrize("file", ["matta.toml", "run/recipe.toml"])
def test_what_a_file_cannot_hold_is_said_in_a_sentence(
    tmp_path: Path, file: str, toml: str, sentence: str
) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(toml)
    with pytest.raises(MattaError, match=sentence):
        resolve({}, tmp_path, ran=True)


@pytest.mark.parametrize("toml", ["convert = 5", "[convert]\nexpand = 'x'", "[[convert]]"])
def test_a_damaged_recipe_of_a_ta_is_said_in_a_sentence(tmp_path: Path, toml: str) -> None:
    (tmp_path / "ta").mkdir()
    (tmp_path / "ta" / "recipe.toml").write_text(toml)
    with pytest.raises(MattaError, match=r"ta/recipe.toml: convert"):
        resolve({}, tmp_path)


# flags of a setting's name that are something else: models to compare with, a task to measure
OWN = {
    ("eval", "--teacher"),
    ("eval", "--task"),
    ("eval", "--batch-size"),
    ("teach", "--batch-size"),
}
OWN |= {("distill", "--compile"), ("demo", "--adapter"), ("inspect", "--widths")}


def test_flags_are_named_and_explained_by_their_settings() -> None:
    """And the parameters, by which a command sets them, have the settings' names."""
    seen = set()
    for command, made in typer.main.get_command(app).commands.items():
        for parameter in made.params:
            called_so = {name for name in NAMES if called(name) in parameter.opts}
            if not called_so or (command, parameter.opts[0]) in OWN:
                continue
            seen |= {name for name in called_so if explained(name) == parameter.help}
            assert parameter.help in map(explained, called_so), (command, parameter.opts)
            assert parameter.name in {name.split(".")[1] for name in called_so}
    assert seen == {name for name in NAMES if about(name).flag} - {"distill.compile"}


def test_the_recipe_fits_one_screen_and_has_what_was_set(tmp_path, monkeypatch):
    """All of it is one flag away, and always there as JSON."""
    monkeypatch.chdir(tmp_path)

    def shown(*words: str) -> list[str]:
        done = CliRunner().invoke(app, ["recipe", "show", *words])
        assert done.exit_code == 0, done.stderr
        return [line.partition("\t")[0] for line in done.stdout.splitlines()[1:]]

    assert shown() == [name for name in NAMES if name in RECIPE] and len(RECIPE) < 25
    assert set(RECIPE) < set(NAMES) and shown("--all") == NAMES
    (tmp_path / "matta.toml").write_text('[data]\nscore = "x"\n[distill]\nlr = 0.1\n')
    assert shown("--changed") == ["data.score", "distill.lr"]
    assert set(shown()) == {*RECIPE, "data.score"}
    whole = CliRunner().invoke(app, ["recipe", "show", "--json"]).stdout
    assert [row["setting"] for row in json.loads(whole)] == NAMES
    done = CliRunner().invoke(app, ["recipe", "show", "--all", "--changed"])
    assert done.exit_code == 1 and "pass one of both" in done.stderr
