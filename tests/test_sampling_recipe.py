"""What a step draws, and where settings come from."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch

from matta_cli.data.sampling import division, example_order, indices, seed_step
from matta_cli.errors import MattaError
from matta_cli.settings import gone
from matta_cli.settings.presets import PRESETS
from matta_cli.settings.recipe import Recipe
from matta_cli.settings.resolve import read_toml, resolve, tomllib
from matta_cli.training.optimizer import learning_rate


@pytest.mark.parametrize(("count", "batch"), [(10, 5), (10, 3), (7, 7), (5, 12), (1, 4)])
def test_every_example_once_per_epoch(count, batch):
    order: dict[int, torch.Tensor] = {}
    drawn = [i for step in range(3 * count) for i in indices(4, step, batch, count, order)]
    epochs = [drawn[e * count : (e + 1) * count] for e in range(len(drawn) // count)]
    assert len(epochs) >= 3
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count > 5:
        assert len({tuple(epoch) for epoch in epochs}) > 1, "every epoch has an order of its own"


def test_a_resumed_run_draws_what_it_would_have_drawn():
    order: dict[int, torch.Tensor] = {}
    straight = [indices(3, step, 4, 11, order) for step in range(20)]
    for start in (1, 7, 19):
        resumed: dict[int, torch.Tensor] = {}
        assert [indices(3, step, 4, 11, resumed) for step in range(start, 20)] == straight[start:]
    assert straight != [indices(5, step, 4, 11, {}) for step in range(20)]


def test_cache_of_orders_stays_small():
    order: dict[int, torch.Tensor] = {}
    for step in range(50):
        indices(0, step, 3, 7, order)
    assert len(order) == 1


def test_seeds_and_epochs_do_not_share_orders():
    orders = {
        tuple(example_order(seed, epoch, 20).tolist()) for seed in range(5) for epoch in range(5)
    }
    assert len(orders) == 25


@pytest.mark.parametrize("shares", [[1.0], [0.5, 0.5], [1 / 3] * 3, [0.7, 0.2, 0.1], [0.25] * 4])
@pytest.mark.parametrize("count", [1, 2, 12, 13])
def test_rows_are_divided_whole_and_right_on_average(shares, count):
    drawn = [division(1, step, count, shares) for step in range(3000)]
    for counts, share in zip(zip(*drawn, strict=True), shares, strict=True):
        exact = share * count
        assert {math.floor(exact + 1e-9), math.ceil(exact - 1e-9)} >= set(counts)
        assert sum(counts) / len(counts) == pytest.approx(exact, abs=0.05)
    assert {sum(counts) for counts in drawn} == {count}
    assert drawn[:9] == [division(1, step, count, shares) for step in range(9)]


def test_drawing_leaves_the_global_generators_alone():
    random.seed(0)
    torch.manual_seed(0)
    before = random.getstate(), torch.get_rng_state()
    division(1, 2, 5, [0.25] * 4)
    indices(1, 2, 3, 10, {})
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def test_seed_step_depends_on_seed_and_step_only():
    def drawn(seed: int, step: int) -> tuple[float, float]:
        seed_step(seed, step)
        return random.random(), torch.rand(1).item()

    first = drawn(2, 5)
    drawn(9, 9)
    assert drawn(2, 5) == first
    assert len({drawn(seed, step) for seed in range(3) for step in range(3)}) == 9


def test_round_trip(tmp_path):
    recipe = Recipe()
    recipe.convert.source, recipe.convert.expand = 'C:\\odd "name"\twith\nlines', 1.5
    recipe.data.categorical, recipe.data.text = ["a", "b # no comment", "ü"], "[text]"
    recipe.distill.lr, recipe.distill.widths, recipe.distill.allow_weak_teacher = (
        1e-05,
        [0.1, 1.0, 2.0],
        True,
    )
    recipe.distill.lr = 1e-30
    recipe.export.batch_size = 1
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.text(header="two\n\nlines"), encoding="utf-8")
    again = Recipe()
    again.update(read_toml(path), "file")
    assert again == recipe and again != Recipe()
    assert again.text() == recipe.text()


def test_text_documents_every_setting():
    for line in Recipe().text().splitlines():
        assert not line or line.startswith("[") or len(line.partition("# ")[2]) > 5, line


def test_recipes_do_not_share_lists():
    Recipe().distill.widths.append(9.0)
    assert 9.0 not in Recipe().distill.widths


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    return tmp_path


def test_precedence(here):
    (here / "out" / "matta.toml").write_text("[distill]\nsteps = 1\nlr = 1.0\nseed = 1\nclip = 9\n")
    (here / "matta.toml").write_text("[distill]\nsteps = 2\nlr = 2.0\n")
    recipe, read = resolve({"distill": {"steps": 3, "seed": None}}, Path("out"))
    settings = recipe.distill
    assert (settings.steps, settings.lr, settings.seed, settings.clip) == (3, 2.0, 1, 9.0)
    assert settings.batch_size == Recipe().distill.batch_size
    assert read == [Path("out/matta.toml"), Path("matta.toml")]


def test_config_takes_the_place_of_the_file_here(here):
    (here / "out" / "matta.toml").write_text("[distill]\nsteps = 1\nlr = 1.0\nseed = 1\n")
    (here / "matta.toml").write_text("[distill]\nsteps = 2\nlr = 2.0\nclip = 2.0\n")
    (here / "other.toml").write_text("[distill]\nsteps = 4\n")
    recipe, read = resolve({}, Path("out"), Path("other.toml"))
    assert (recipe.distill.steps, recipe.distill.lr, recipe.distill.clip) == (4, 1.0, 1.0)
    assert read == [Path("out/matta.toml"), Path("other.toml")]


def test_no_files_give_the_defaults(here):
    assert resolve({"distill": {"steps": None}}, Path("out")) == (Recipe(), [])
    with pytest.raises(MattaError, match=r"no configuration file 'none\.toml'"):
        resolve({}, Path("out"), Path("none.toml"))


def test_output_folder_here_is_read_once(here):
    (here / "matta.toml").write_text("[export]\nbootstrap = 3\n")
    recipe, read = resolve({}, Path())
    assert recipe.export.bootstrap == 3 and read == [Path("matta.toml")]


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (
            "[distill]\nstep = 3",
            r"matta.toml: \[distill\] has no setting 'step' \(did you mean 'steps'\?\)",
        ),
        (
            "[distil]\nsteps = 3",
            r"matta.toml: there is no table \[distil\] \(did you mean 'distill'\?\)",
        ),
        ("[zzz]\nsteps = 3", r"there is no table \[zzz\]; known: convert, data, distill, export"),
        ("steps = 3", r"there is no table \[steps\]"),
        ("distill = 3", r"distill is a table of settings, not 3: put them below \[distill\]"),
        ('[distill]\nsteps = "3"', r"matta.toml: distill.steps is '3', but an int is needed"),
        ("[distill]\nsteps = 3.5", r"distill.steps is 3.5, but an int"),
        ("[distill]\nsteps = true", r"distill.steps is True, but an int"),
        ("[distill]\nlr = true", r"distill.lr is True, but a float"),
        ("[distill]\nallow_weak_teacher = 1", r"distill.allow_weak_teacher is 1, but a bool"),
        ("[distill]\nwidths = 0.5", r"distill.widths is 0.5, but a list"),
        ('[distill]\nwidths = [0.5, "1"]', r"distill.widths is '1', but a float"),
        ('[data]\ncategorical = "a"', r"data.categorical is 'a', but a list"),
        ("[distill\nsteps = 3", r"matta.toml is not valid TOML"),
    ],
)
def test_refusals(here, toml, message):
    (here / "matta.toml").write_text(toml)
    with pytest.raises(MattaError, match=message):
        resolve({}, Path("out"))


def test_whole_numbers_pass_for_floats(here):
    (here / "matta.toml").write_text("[distill]\nlr = 1\nwidths = [1, 2]\n")
    settings = resolve({}, Path("out"))[0].distill
    assert settings.lr == 1.0 and isinstance(settings.lr, float)
    assert all(isinstance(width, float) for width in settings.widths)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    recipe = Recipe()
    recipe.update({"distill": {"lr": 0.2, "steps": 100, "warmup": 0.1}}, "test")
    recipe.distill.schedule = "cosine"
    rates = [learning_rate(recipe.distill, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.02 * (k + 1) for k in range(10)])
    # halfway: (1 + 0.1) / 2 of the peak
    assert rates[10] == pytest.approx(0.2) and rates[55] == pytest.approx(0.11)
    assert 0.02 < rates[-1] < 0.021 and rates[10:] == sorted(rates[10:], reverse=True)


def test_the_learning_rate_stays_and_falls_in_a_line_at_last():
    recipe = Recipe()
    recipe.update({"distill": {"lr": 0.2, "steps": 100, "warmup": 0.1, "decay": 0.4}}, "test")
    rates = [learning_rate(recipe.distill, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.02 * (k + 1) for k in range(10)])
    assert rates[10:61] == [0.2] * 51
    assert rates[60:] == pytest.approx([0.2 - 0.005 * k for k in range(40)])


def test_settings_that_are_gone_say_what_there_is_instead():
    recipe = Recipe()
    recipe.update({"distill": {"students_per_step": 3, "divergence": "forward", "lr": 0.5}}, "it")
    assert recipe.distill.lr == 0.5
    sentence = r"it: the setting distill.divergence is gone, it is the forward KL.*: take it out"
    with pytest.raises(MattaError, match=sentence):
        recipe.update({"distill": {"divergence": "reverse"}}, "it")


def test_an_older_run_is_what_it_was(tmp_path, monkeypatch):
    """Its recipe has no word for how rows were divided, nor for the schedule."""
    monkeypatch.chdir(tmp_path)
    Path("out/run").mkdir(parents=True)
    old = "[distill]\nsteps = 7\nstudents_learn_from = 'teacher'\nstudents_per_step = 1\n"
    Path("out/run/recipe.toml").write_text(old)
    recipe, _ = resolve({}, Path("out"), ran=True)
    own = recipe.distill
    assert (own.steps, own.rows, own.schedule) == (7, "all", "cosine")
    assert (own.students_learn_from, own.ta_student_weight) == ("both", 0.0)
    with pytest.raises(MattaError, match="students_per_step = 1, which is gone: export it as it"):
        gone.refuse_to_go_on(read_toml(Path("out/run/recipe.toml")), "it")
    Path("out/run/recipe.toml").write_text(Recipe().text(["data", "distill"]))
    recipe, _ = resolve({}, Path("out"), ran=True)
    assert recipe.distill == Recipe().distill


def test_a_preset_stands_below_files_and_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paper = PRESETS["paper"].values
    recipe, _ = resolve({"distill": {"preset": "paper"}}, None)
    for section, values in paper.items():
        assert {k: getattr(getattr(recipe, section), k) for k in values} == dict(values)
    Path("matta.toml").write_text("[distill]\npreset = 'paper'\nramp = 0.7\n")
    recipe, _ = resolve({"distill": {"schedule": "wsd"}}, None)
    own = recipe.distill
    assert (own.rows, own.ramp, own.schedule, own.preset) == ("all", 0.7, "wsd", "paper")
    assert recipe.convert.expand == paper["convert"]["expand"]
    with pytest.raises(MattaError, match="--preset 'x' is not known: default, paper"):
        resolve({"distill": {"preset": "x"}}, None)


def test_what_is_left_to_edit_says_nothing_of_defaults():
    """So another default of a later version, or a preset, has its say."""
    recipe = Recipe()
    recipe.distill.lr = 0.25
    left, again = recipe.text(["data", "distill"], to_edit=True), Recipe()
    values = tomllib.loads(left)
    assert values == {"data": {}, "distill": {"lr": 0.25}}
    again.update(values, "it")
    assert again.distill == recipe.distill and '# rows = "' in left
