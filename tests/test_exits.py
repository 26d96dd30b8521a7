"""Depths that share a forward are what each by itself would be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import test_adapters
import torch

from matta_cli.adapter import Source
from matta_cli.models import plugins
from matta_cli.models.ta import TA
from matta_cli.nested import exits, sizes
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task
from matta_cli.training import rows
from matta_cli.training.objective import Step
from matta_cli.training.teacher import ModelTeacher

LAYERS = 4
MODELS = {
    "gpt2": lambda: test_adapters.gpt2(n_layer=LAYERS),
    "llama": lambda: test_adapters.llama("qwen3", num_hidden_layers=LAYERS),
    "vit": lambda: test_adapters.vit(depth=LAYERS),
    "bert": lambda: test_adapters.bert(num_hidden_layers=LAYERS),
}
WIDTHS = [0.25, 0.5, 0.75, 1.0]


def tools(name, axes=("depth",), order=(), shares=None, **settings):
    """A recipe, its task, a TA that is the base itself, a Teacher and a batch of four."""
    recipe = Recipe()
    recipe.update(
        {
            "distill": {
                "widths": WIDTHS,
                "ramp": 0.0,
                "ta_student_weight": 0.5,
                "dropout": False,
                **settings,
            }
        },
        "test",
    )
    adapter = plugins.adapter(name)
    model = adapter.load(Source(name, module=MODELS[name]()))
    found = sizes.nested_axes(adapter, model, list(axes))
    found = [replace(axis, order=order) if axis.layers else axis for axis in found]
    card = {"sizes": shares or {}}
    ta = TA(adapter, model, found, sizes.full_sizes(found), card)
    task = tasks_task.task(adapter.task, recipe)
    if name == "vit":
        batch = {"image": torch.randn(4, 3, 32, 32), "label": torch.tensor([0, 3, 6, 2])}
    else:
        batch = task.example(model, 4)
    teacher = MODELS[name]()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.3)
    return recipe, task, ta, ModelTeacher(task, teacher.requires_grad_(False)), batch


def made(found):
    recipe, task, ta, teacher, batch = found
    return Step(recipe.distill, task, ta, teacher, batch, torch.device("cpu"))


def gradients(found, step=None):
    """The gradients of a step, its terms, and the step."""
    recipe, task, ta, teacher, batch = found
    step = step or made(found)
    terms: dict = {}
    over = task.counts(batch)
    for piece in step.rows.pieces(range(4), 5):
        part = {key: tensor[piece.rows] for key, tensor in batch.items()}
        for model, own in step(part, piece, 5, over).items():
            for name, value in own.items():
                terms[model, name] = terms.get((model, name), 0.0) + float(value)
    return {n: p.grad for n, p in ta.model.named_parameters() if p.grad is not None}, terms, step


def apart(monkeypatch):
    monkeypatch.setattr(rows, "groups", lambda axes, models: [(name,) for name in models])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ta_weight", [0.0, 1.0])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"logits": "chunked"},
        {"checkpoint_activations": True},
        pytest.param({"compile": "aot_eager"}, marks=pytest.mark.slow),
    ],
)
def test_one_forward_gives_the_gradients_of_several(name, ta_weight, more, monkeypatch):
    if name == "bert" and more.get("logits"):
        pytest.skip("an encoder's hidden states are its outputs")
    settings = {"rows": "all", "ta_weight": ta_weight, "logits": "whole", **more}
    calls: list[int] = []
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        apart(patch)
        own = {**settings, "checkpoint_activations": False, "compile": ""}
        expected, terms, _ = gradients(tools(name, **own))
    torch.manual_seed(0)
    block = sizes.depth(tools(name)[2].axes).layers + ".0"
    found = tools(name, **settings)
    step = made(found)
    inside = found[2].model.get_submodule(f"{block}.{'output' if name == 'bert' else 'mlp'}")
    count = lambda module, _: calls.append(1) if type(module) is type(inside) else None  # noqa: E731
    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    given, said, _ = gradients(found, step)
    hook.remove()
    assert [len(group) for group in step.rows.groups] == [4]
    # those of the Teacher, of the deepest model (again where none is kept), and of a TA that only
    # teaches
    passes = 2 + (ta_weight == 0) + bool(more.get("checkpoint_activations"))
    assert more.get("compile") or len(calls) == LAYERS * passes
    assert said == pytest.approx(terms, rel=1e-4, abs=1e-6)
    assert given.keys() == expected.keys()
    for key in given:
        torch.testing.assert_close(given[key], expected[key], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_divided_rows_go_through_all_depths_of_a_forward(name, monkeypatch):
    """Each depth's loss has its share of the weight: the mean over widths of the whole batch."""
    quiet = {"ta_student_weight": 0.0}
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        apart(patch)
        every = {"rows": "all", "ta_weight": 0.0, **quiet}
        expected, _, _ = gradients(tools(name, **every))
    torch.manual_seed(0)
    given, terms, step = gradients(tools(name, rows="divided", **quiet))
    assert step.rows.groups == [("TA", "0.75", "0.5", "0.25")]
    assert {model for model, _ in terms} == {"TA", "0.75", "0.5", "0.25"}
    for key in given:
        torch.testing.assert_close(given[key], expected[key], rtol=1e-3, atol=1e-6)


def test_an_exit_of_each_widths_forward():
    """Two widths of the MLPs, each at two depths: two forwards."""
    shares = {f"{w:g}": {"depth": d, "mlp": m} for w, d, m in ((0.25, 0.5, 0.5), (0.5, 1.0, 0.5))}
    shares["0.75"] = {"depth": 0.5, "mlp": 1.0}
    found = tools("gpt2", ("depth", "mlp"), shares=shares)
    recipe, _, ta, *_ = found
    split = rows.Rows(recipe.distill, ta)
    assert split.groups == [("TA", "0.75"), ("0.5", "0.25")] and split.shares == [0.5, 0.5]
    pieces = split.pieces(range(8), 0)
    assert [len(piece.rows) for piece in pieces] == [4, 4]
    assert pieces[0].among["TA"] == pieces[0].among["0.75"] == 2


@pytest.mark.parametrize(
    ("order", "groups"),
    [
        ((), [("TA", "0.75", "0.5", "0.25")]),
        # the layer that the shallowest keeps is the last one of the model
        ((3, 0, 1, 2), [("TA",), ("0.25",), ("0.5",), ("0.75",)]),
        # what 0.75 keeps are the layers 0, 1 and 3: not the first three; 0.5 keeps 0 and 3
        ((0, 3, 1, 2), [("TA", "0.25"), ("0.5",), ("0.75",)]),
    ],
)
def test_only_first_layers_share_a_forward(order, groups):
    recipe, _, ta, *_ = tools("gpt2", order=order)
    assert rows.Rows(recipe.distill, ta).groups == groups


def test_a_step_of_depths_costs_one_forward():
    """FLOPs: of four separate runs each has its own forward of trunk and Teacher."""
    recipe, task, ta, teacher, batch = tools("gpt2", ta_student_weight=0.0)
    step = Step(recipe.distill, task, ta, teacher, batch, torch.device("cpu"))
    whole = step.flops(batch)
    alone = 0.0
    for width in WIDTHS:
        own = TA(ta.adapter, ta.student(width).dense(), [], {}, {})
        recipe.distill.widths, recipe.distill.ta_weight = [1.0], 0.0
        one = Step(recipe.distill, task, own, teacher, batch, torch.device("cpu"))
        alone += one.flops(batch)
    assert 0.25 < whole / alone < 0.4


def test_exits_need_layers():
    axes = [axis for axis in tools("gpt2", ("mlp",))[2].axes if not axis.layers]
    assert exits.groups(axes, {"a": {}, "b": {}}) == [("a",), ("b",)]
