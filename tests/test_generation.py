"""The time of generating: what is run for it, in reports and in budgets."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import optuna
import pytest
import torch
from sample_text import byte_tokenizer, prose
from test_adapters import ADAPTERS, MODELS, gpt2, made
from test_budgets import held
from torch import nn

from matta_cli.conversion.convert import convert
from matta_cli.errors import MattaError
from matta_cli.family import export
from matta_cli.measure import cost, generation, score
from matta_cli.measure.counts import Counts
from matta_cli.measure.held_out import HeldOut
from matta_cli.models import folders
from matta_cli.models.folders import load_ta
from matta_cli.nested.sizes import nested_axes
from matta_cli.progress import Steps, quiet
from matta_cli.report import page, search_table, story, table, terminal
from matta_cli.report.numbers import count
from matta_cli.report.schema import Generation, Report, Role
from matta_cli.search.latency import Timings
from matta_cli.search.run import search
from matta_cli.search.search import Search
from matta_cli.search.space import Space
from matta_cli.settings.budget import parse
from matta_cli.settings.recipe import ExportSettings, Recipe
from matta_cli.students import entries
from matta_cli.training.run import distill

DECODERS = [name for name in MODELS if ADAPTERS[name.split("-")[0]].task == "causal_lm"]
LEFT_OUT = "is not timed: it cannot generate with a cache"


def uneven(name: str) -> nn.Module:
    """A model whose layers have other numbers of units and of heads each."""
    adapter, model, _ = made(name)
    adapter.spec = ""
    axes = nested_axes(adapter, model, ("mlp", "heads"))
    sizes = {axis.name: axis.size if axis.name.endswith(".0") else axis.step for axis in axes}
    own = {axis.name: axis.size for axis in adapter.axes(model)} | sizes
    torch.manual_seed(0)
    found = adapter.build(model, own)
    for parameter in found.parameters():
        nn.init.normal_(parameter, std=0.2)
    return found.eval()


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("of", [lambda name: made(name)[1], uneven], ids=["stock", "uneven"])
def test_what_is_timed_is_what_generate_does(name, of):
    """The same tokens as transformers' own generating; a forward of all of the prompt, and one of
    each token after it.
    """
    model = of(name)
    ids = torch.randint(97, (3, 6), generator=torch.Generator().manual_seed(1))
    model.generation_config.eos_token_id = None  # nothing ends early here
    given = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, max_new_tokens=8, **given)[:, 6:]
    read: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, given: read.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    tokens, first, rest = generation.generate(model, ids, 7)
    handle.remove()
    assert torch.equal(tokens, expected) and read == [6, *[1] * 7]
    assert first > 0 and rest > 0 and generation.cannot(model, ids[:1]) == ""


class Bigrams(nn.Module):
    """A language model without a cache, and with no settings but the size of its vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(97, 97)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.table(input_ids)


class Forgetful(nn.Module):
    """A model whose cache leaves out where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.model = gpt2()

    def forward(self, input_ids, use_cache=False, cache=None):
        output = self.model(input_ids=input_ids, use_cache=use_cache)
        output.cache = output.get("past_key_values", getattr(output, "cache", None))
        return output


def test_a_model_that_cannot_generate_is_found_out():
    ids = torch.arange(6)[None]
    assert "use_cache" in generation.cannot(Bigrams(), ids)
    assert generation.cannot(Forgetful(), ids).startswith("with the cache it gives other logits")


def test_a_model_that_diverged_can_still_generate():
    model = gpt2()
    nn.init.constant_(model.transformer.ln_f.weight, float("nan"))
    assert generation.cannot(model, torch.arange(6)[None]) == ""


def test_in_half_precision_the_cache_is_found_right():
    model = made("llama-llama")[1].to(torch.bfloat16)
    assert generation.cannot(model, torch.arange(6)[None]) == ""


@pytest.mark.parametrize(
    ("positions", "prompt", "new", "expected"),
    [
        (1024, 0, 32, (128, 32)),
        (16, 0, 32, (8, 8)),
        (2, 0, 32, (1, 1)),
        (140, 128, 32, (128, 12)),
        (None, 0, 32, (128, 32)),
        (None, 4096, 8, (4096, 8)),
    ],
)
def test_prompt_and_tokens_fit_the_positions(positions, prompt, new, expected):
    model = gpt2()
    model.config = type("Config", (), {"max_position_embeddings": positions})()
    settings = ExportSettings(prompt_tokens=prompt, new_tokens=new)
    assert generation.lengths(settings, model) == Generation(*expected)


def test_a_prompt_without_room_is_refused():
    with pytest.raises(MattaError, match=r"export.prompt_tokens 16 .* 16 positions"):
        generation.lengths(ExportSettings(prompt_tokens=16), gpt2())


def test_prompts_are_of_the_text_and_as_many_as_asked_for():
    ids = torch.arange(6).view(2, 3)
    found = generation.prompts({"input_ids": ids}, 5, 7)
    assert found.tolist() == [[0, 1, 2, 0, 1, 2, 0], [3, 4, 5, 3, 4, 5, 3]] * 2 + [
        [0, 1, 2, 0, 1, 2, 0]
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Recipe, Path]:
    """A GPT-2 of four layers, distilled for a few steps."""
    folder = tmp_path_factory.mktemp("generation")
    (folder / "base").mkdir()
    byte_tokenizer([prose(30)], 290).save_pretrained(folder / "base")
    gpt2(vocab_size=290, n_layer=4, n_positions=32).save_pretrained(folder / "base")
    (folder / "text.txt").write_text(prose(200))
    recipe = Recipe()
    recipe.convert.source, recipe.data.train = str(folder / "base"), str(folder / "text.txt")
    recipe.convert.expand, recipe.distill.widths = 1.0, [0.25, 0.5, 1.0]
    recipe.distill.steps, recipe.distill.batch_size, recipe.distill.device = 4, 3, "cpu"
    recipe.distill.teacher, recipe.distill.allow_weak_teacher = str(folder / "base"), True
    recipe.data.eval_examples = recipe.distill.eval_examples = 16
    recipe.search.trials, recipe.export.bootstrap = 4, 20
    convert(recipe, folder / "out")
    distill(recipe, folder / "out")
    return recipe, folder / "out"


def clock(monkeypatch, prefill, decode):
    """A machine on which generating takes so many seconds, by a model's parameters."""

    def latencies(models, ids, new, rounds=30):
        found = {}
        for name, model in models.items():
            size = cost.parameters(model)
            times = {"prefill": prefill(size), **({"decode": decode(size)} if new else {})}
            found[name] = {of: {"median": own, "p95": own} for of, own in times.items()}
        return found

    monkeypatch.setattr(generation, "latencies", latencies)


@pytest.mark.slow
def test_a_report_of_language_models_is_about_generating(trained, monkeypatch):
    """Of one Student by its width, and of one for a budget of both times."""
    recipe, out = copy.deepcopy(trained[0]), trained[1]
    clock(monkeypatch, lambda size: size * 1e-7, lambda size: size * 1e-6)
    recipe.export.widths, recipe.export.batch_size = [0.25], 3
    recipe.export.target_latency, recipe.export.target_prefill = ["1s"], ["2s"]
    report = export(recipe, out, overwrite=True)
    assert report.generation == Generation(16, 16) and report.timed == "decode"
    for model in report.models:
        assert not model.cost.latency
        assert set(model.cost.prefill) == set(model.cost.decode) == {1, 3}
    written = json.loads((out / "report.json").read_text())
    assert Report.from_json(written) == report and written == report.to_json()
    headers, rows = table.rows(report)
    assert [header for header in headers if " b" in header] == [
        "prefill b1 median (p95)",
        "prefill b3 median (p95)",
        "decode b1 median (p95)",
        "decode b3 median (p95)",
        "tokens/s b1",
        "tokens/s b3",
    ]
    student = report.model("width 0.25")
    shown = rows[report.models.index(student)][headers.index("tokens/s b3")]
    assert shown == count(3 / (student.cost.parameters * 1e-6))
    told = story.tell(report)
    assert "a prompt of 16 tokens" in told.reading and "for each of the next 16" in told.reading
    html = page.render(report)
    assert "median time for a generated token, batch 1" in html
    assert "latency, batch" not in html and "latency&nbsp;" not in html
    assert [h for h in terminal.tables(report)[1][0] if h[-1].isdigit()] == [
        "tokens/s b1",
        "tokens/s b3",
        "prefill b1",
    ]
    card = (out / str(student.folder) / "README.md").read_text()
    assert "time for a token, batch 3" in card and "time to the first token, batch 1" in card
    (said,) = [note for note in report.notes if note.startswith("latency-1s-prefill-2s")]
    assert "% of its time for a token and " in said and "% of its time to the first token" in said


def memory():
    return optuna.storages.InMemoryStorage()


def measured(recipe: Recipe, out: Path) -> entries.Measured:
    """Teacher, TA and base, as an export measures them."""
    run = folders.reached(out, "auto")
    held_out = HeldOut.opened(recipe, run.ta, run.folder, 1)
    return entries.models(held_out, run, load_ta(out / "ta"), [], [], [], out, Steps(quiet, 9))


@pytest.mark.slow
def test_models_that_cannot_generate_are_timed_by_a_forward(trained, monkeypatch):
    recipe, out = copy.deepcopy(trained[0]), trained[1]
    recipe.export.batch_size = 2
    monkeypatch.setattr(generation, "step", lambda model, token, cache: 1 / 0)
    found = measured(recipe, out)
    assert found.generation is None
    assert all(set(model.cost.latency) == {1, 2, 8} for model in found.entries)
    (note,) = found.notes
    assert re.fullmatch(r"Times are of a forward: the model '(base|TA)' cannot generate .*", note)
    with pytest.raises(MattaError, match="--target-prefill is not possible: a Student cannot"):
        Search(recipe, out, memory()).run(parse({"prefill": ["1s"]}), quiet)
    run = Search(recipe, out, memory())
    (chosen,) = run.run(parse({"latency": ["10s"]}), quiet)
    assert chosen.budget.names == ["latency"] and "time of a forward here" in run.timings.notes[0]


@pytest.mark.slow
def test_a_teacher_that_cannot_generate_is_left_out(trained, monkeypatch):
    recipe, out = copy.deepcopy(trained[0]), trained[1]
    recipe.distill.teacher_adapter = "gpt2"  # it is told to be another than the base
    clock(monkeypatch, lambda size: size * 1e-7, lambda size: size * 1e-6)
    real, teachers = generation.cannot, []

    def cannot(model, ids):
        teachers.append(model)
        return "it is too old" if len(teachers) == 1 else real(model, ids)

    monkeypatch.setattr(generation, "cannot", cannot)
    found = measured(recipe, out)
    teacher, *others = found.entries
    assert teacher.role is Role.TEACHER and not teacher.cost.decode and not teacher.cost.latency
    assert others and all(set(model.cost.decode) == {1, 8} for model in others)
    assert found.notes == [f"The Teacher {LEFT_OUT} (it is too old)."]


@pytest.mark.slow
def test_a_teacher_that_is_the_base_is_measured_once(trained, monkeypatch):
    """What is said of it is what measuring it by itself says."""
    recipe, out = copy.deepcopy(trained[0]), trained[1]
    clock(monkeypatch, lambda size: size * 1e-7, lambda size: size * 1e-6)
    real, scored = score.columns, []
    monkeypatch.setattr(score, "columns", lambda *own: scored.append(1) or real(*own))
    found = measured(recipe, out)
    entry, base = (next(e for e in found.entries if e.role is r) for r in (Role.TEACHER, Role.BASE))
    once = len(scored)
    assert entry.metrics == base.metrics
    recipe.distill.teacher_adapter = "gpt2"  # as if it were another one
    alone = measured(recipe, out).entries[0]
    assert (len(scored) - once) * 2 == once * 3  # the Teacher, the TA and the base
    alone.cost.peak_memory = entry.cost.peak_memory  # which is never quite the same
    assert (alone.name, alone.cost) == (entry.name, entry.cost)
    for name, metric in alone.metrics.items():
        assert entry.metrics[name].value == pytest.approx(metric.value, rel=1e-4)


def test_budgets_of_time_are_of_a_token_and_of_the_first_one(trained, monkeypatch):
    """--target-latency is the time for a token, --target-prefill that to the first one."""
    recipe, out = copy.deepcopy(trained[0]), trained[1]
    ta = load_ta(out)
    sizes = {width: cost.parameters(ta.student(width).dense()) for width in (0.25, 0.5, 1.0)}
    clock(monkeypatch, lambda size: 1.0, lambda size: size * 1e-6)
    limit = 1.02 * sizes[0.5] * 1e-6 / 0.95
    budgets = parse({"latency": [f"{limit * 1e3:.6f}ms"], "prefill": ["2s"]})
    run = Search(recipe, out, memory())
    (chosen,) = run.run(budgets, quiet)
    assert chosen.budget.names == ["decode", "prefill"]
    own = cost.parameters(chosen.dense())
    assert 0.8 * sizes[0.5] < own <= 1.02 * sizes[0.5]
    assert run.timings.known["decode"].measured[run.key(chosen.sizes)] == own * 1e-6
    assert run.timings.known["prefill"].measured[run.key(chosen.sizes)] == 1.0
    with pytest.raises(MattaError, match=r"time to the first token of 1 s.*--target-prefill"):
        Search(recipe, out, memory()).run(parse({"prefill": ["500ms"]}), quiet)
    with pytest.raises(MattaError, match=r"time for a token of .* ms.*--target-latency"):
        Search(recipe, out, memory()).run(parse({"latency": ["1us"]}), quiet)


def test_a_search_says_what_was_budgeted(trained, monkeypatch):
    recipe, out = trained
    clock(monkeypatch, lambda size: size * 1e-7, lambda size: size * 1e-6)
    found, _ = search(recipe, out, parse({"latency": ["1s"]}))
    assert found.costs == ["decode"] and found.choices[0].limits == {"decode": 1.0}
    assert Report.from_json(json.loads((out / "search" / "search.json").read_text())) == found
    headers, rows = search_table.front_rows(found)
    assert "decode b8" in headers and rows[0][headers.index("decode b8")].endswith("ms")


def test_a_first_token_of_what_generates_nothing_is_refused():
    ta, task = held("mlp_ranker-both")
    example = task.example(ta.model)
    timings = Timings(task, ta, Counts(task, ta, example), example, ExportSettings())
    with pytest.raises(MattaError, match="these are models for ranking, which generate nothing"):
        timings.of(parse({"prefill": ["5ms"]}), Space(ta, [1.0]).uneven())
    (budget,) = timings.of(parse({"latency": ["5ms"]}), Space(ta, [1.0]).uneven())
    assert budget.names == ["latency"] and not timings.notes
