"""Heads, residual stream and depth from convert to export, and what ``matta inspect`` says."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch_pruning as tp
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from matta_cli.adapter import Axis, Slice
from matta_cli.conversion import inspect
from matta_cli.conversion.convert import convert, parse_sizes
from matta_cli.conversion.ordering import importance
from matta_cli.errors import MattaError
from matta_cli.family import export
from matta_cli.main import app
from matta_cli.models import load, plugins, source
from matta_cli.models.folders import load_student, load_ta
from matta_cli.nested import importance as nested_importance
from matta_cli.nested.importance import activation, by_gradient, magnitude, removal
from matta_cli.nested.sizes import full_sizes, kinds, own_sizes, sizes_at
from matta_cli.nested.view import materialize
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task
from matta_cli.training.run import distill


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A ViT of four blocks, its Teacher, and images."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    np.savez("images.npz", images=images, labels=np.arange(60) % 5)
    for seed, name in enumerate(("base", "teacher")):
        torch.manual_seed(seed)
        model = timm.create_model(
            "test_vit",
            img_size=32,
            num_classes=5,
            embed_dim=32,
            num_heads=4,
            depth=4,
            pretrained_cfg_overlay={"input_size": (3, 32, 32)},
        )
        Path(name).mkdir()
        plugins.adapter("vit").save(model, Path(name))
    return tmp_path


def settings(**more):
    recipe = Recipe()
    given = {"source": "base", "axes": ["mlp", "heads", "hidden", "depth"], "expand": 2.0, **more}
    distilled = {
        "teacher": "teacher",
        "steps": 3,
        "batch_size": 8,
        "allow_weak_teacher": True,
        "device": "cpu",
    }
    recipe.update({"convert": given, "data": {"train": "images.npz"}, "distill": distilled}, "test")
    recipe.export.bootstrap = 5
    return recipe


@pytest.mark.parametrize(
    "order", ["activation", "taylor", "hessian", "magnitude", "none", "prefix"]
)
def test_all_axes_grow_and_are_ordered(folder, order):
    done = convert(settings(order=order), Path("out"))
    assert done.order == order and done.difference < 1e-5
    assert any("matta's own format" in note for note in done.notes) and any(
        "hidden cannot grow" in note for note in done.notes
    )
    ta = load_ta("out")
    depth = next(axis for axis in ta.axes if axis.layers)
    assert depth.size == 8 and ta.base["depth"] == 4 and ta.widest == 2
    if order in ("none", "prefix"):
        assert depth.order == tuple(range(8))
        scores = load_file("out/ta/importance/scores.safetensors") if order == "prefix" else {}
        assert ("mlp.0" in scores) == (order == "prefix") and "depth" not in scores
    else:
        # first and last; what has grown comes last
        assert set(depth.order[:2]) == {0, 3} and depth.order[4:] == (4, 5, 6, 7)
    assert ta.student(1.0).layers == [0, 1, 2, 3]


@pytest.mark.slow
def test_all_axes_from_convert_to_export(folder):
    recipe = settings(order="taylor")
    ta = convert(recipe, Path("out")).ta
    distill(recipe, Path("out"))
    report = export(recipe, Path("out"))
    entry, kept = report.model("width 0.5"), ta.student(0.5).layers
    assert entry.layers == kept and len(kept) == 2 and entry.stock
    said = f"Width 0.5 keeps layers {inspect.numbers(kept)} of the base's"
    assert any(said in note for note in report.notes)
    student = timm.create_model("local-dir:out/students/width-0.5", pretrained=True)
    assert (
        len(student.blocks) == 2
        and student.embed_dim == 16
        and student.blocks[0].attn.num_heads == 2
    )
    trained = load_ta("out")
    view = trained.at(0.5)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(student.eval()(x), view(x), atol=1e-6)


@pytest.mark.slow
def test_heads_alone_are_saved_in_our_own_format(folder):
    recipe = settings(axes=["heads"], expand=1.0)
    convert(recipe, Path("out"))
    distill(recipe, Path("out"))
    report = export(recipe, Path("out"))
    half = report.model("width 0.5")
    assert not half.stock and half.loader.startswith("matta_cli.load_student")
    teacher, _ = load.load_model("out", "image_classification")  # the TA in it, also as a Teacher
    assert [block.attn.num_heads for block in teacher.blocks] == [4] * 4
    student = load_student("out/students/width-0.5")
    assert [block.attn.num_heads for block in student.blocks] == [2] * 4 and student.embed_dim == 32
    Path("out/students/width-0.5/preprocessor_config.json").write_text("{}")
    again = settings(axes=["heads"], expand=1.0, source="out/students/width-0.5")
    assert convert(again, Path("again")).ta.base == {f"heads.{i}": 16 for i in range(4)}
    assert Path("again/ta/preprocessor_config.json").exists()  # what belongs to a model goes along


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            {"axes": ["mlp", "head"]},
            "--axes 'head' is not an axis of this model; it has mlp, heads, hidden, depth.",
        ),
        ({"sizes": ["0.5 depth=1"]}, "is not understood: write it as"),
        (
            {"sizes": ["0.5: width=0.5"]},
            "'width' is not nested here; mlp, heads, hidden, depth are.",
        ),
        ({"sizes": ["1.0: depth=0.5"]}, "is not possible: a width is below 1"),
        ({"sizes": ["0.5: depth=0"]}, "is not possible: a width is below 1"),
        (
            {"order": "random"},
            "--order 'random' is not known: auto, activation, taylor, hessian, magnitude, none, "
            "prefix.",
        ),
    ],
)
def test_refusals(folder, more, sentence):
    with pytest.raises(MattaError) as caught:
        convert(settings(**more), Path("out"))
    assert sentence in str(caught.value) and not Path("out/ta").exists()


def test_fixed_sizes_of_a_width(folder):
    """Pairs of depth and width, as Starbucks has them: the user's choice, kept with the TA."""
    assert parse_sizes(["0.25: depth=0.5 mlp=1", "0.5:depth=0.75"], ["depth", "mlp"]) == {
        "0.25": {"depth": 0.5, "mlp": 1.0},
        "0.5": {"depth": 0.75},
    }
    convert(settings(sizes=["0.5: depth=0.75 mlp=1"], expand=1.0), Path("out"))
    ta = load_ta("out")
    own = kinds(own_sizes(ta.axes, ta.sizes(0.5)))
    assert own == {"mlp": [ta.base["mlp.0"]] * 3, "heads": [16] * 3, "hidden": [16], "depth": [3]}
    assert kinds(own_sizes(ta.axes, ta.sizes(0.25)))["depth"] == [1]


def test_inspect(folder, tmp_path):
    convert(settings(order="magnitude"), Path("out"))
    run = CliRunner()
    found = json.loads(run.invoke(app, ["inspect", "out", "--widths", "0.5", "--json"]).stdout)
    ta = load_ta("out")
    assert [a["kind"] for a in found["axes"]] == ["mlp", "heads", "hidden", "depth"]
    assert [a["grows"] for a in found["axes"]] == [True, True, False, True]
    for row in found["widths"]:
        assert row["parameters"] == sum(
            p.numel() for p in ta.student(row["width"]).dense().parameters()
        )
    assert [(row["width"], row["stock"]) for row in found["widths"]] == [
        (0.5, True),
        (1.0, True),
        (2.0, False),
    ]
    base = ta.adapter.load(source.open_source("base"))
    scores = magnitude(base, ta.adapter.axes(base))
    for name, shown in found["importance"].items():
        expected = scores[name] if name == "depth" else scores[name].sort(descending=True).values
        assert shown == pytest.approx(expected.tolist(), rel=1e-5)
    table = run.invoke(app, ["inspect", "out"]).stdout
    refused = run.invoke(app, ["inspect", "out", "--widths", "7"])
    assert (
        refused.exit_code == 1
        and "Width 7 is not possible: this TA holds widths above 0 and up to 2" in refused.stderr
    )
    assert "heads.3" in table and "█" in table and "load_student" in table


def test_picture_and_numbers():
    assert inspect.picture([4.0, 2.0, 0.0]) == "█▅▁" and inspect.picture([0.0, 0.0]) == "▁▁"
    assert len(inspect.picture([1.0] * 100, columns=10)) == 10
    assert inspect.numbers([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


@pytest.mark.parametrize("second", [False, True])
def test_gradient_scores_are_torch_prunings(second):
    """On an MLP without biases, where its group scores and ours mean the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 12, bias=False), nn.ReLU(), nn.Linear(12, 3, bias=False))
    axis = Axis("mlp", 12, (Slice("0.weight", 0), Slice("2.weight", 1, outgoing=True)))
    x, y = torch.randn(40, 7), torch.randint(3, (40,))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch), y)

    own = by_gradient(model, [axis], [x], loss, second=second)["mlp"]
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    group = graph.get_pruning_group(model[0], tp.prune_linear_out_channels, list(range(12)))
    if second:
        criterion = tp.importance.GroupHessianImportance(group_reduction="sum", normalizer=None)
        criterion.zero_grad()
        loss(model, x).backward()
        criterion.accumulate_grad(model)
        theirs = criterion(group) / 2
    else:
        criterion = tp.importance.GroupTaylorImportance(
            group_reduction="sum", normalizer=None, multivariable=True
        )
        loss(model, x).backward()
        theirs = criterion(group)
    assert torch.allclose(own, theirs, rtol=1e-4)


def divergence(out, of, _batch):
    """KL in float64, from the whole model's predictions to a Student's."""
    mine, its = (torch.log_softmax(logits.double(), -1) for logits in (out, of))
    return (its.exp() * (its - mine)).sum(-1).mean()


def test_layers_are_scored_by_what_the_outputs_lose_without_them():
    torch.manual_seed(0)
    config = {
        "vocab_size": 31,
        "n_embd": 24,
        "n_head": 3,
        "n_positions": 8,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    model = GPT2LMHeadModel(GPT2Config(**config, n_layer=4, initializer_range=0.2)).eval()
    adapter = plugins.adapter("gpt2")
    axes = adapter.axes(model)
    axis = next(axis for axis in axes if axis.layers)
    ids = [torch.randint(31, (2, 8)) for _ in range(2)]
    idle = model.transformer.h[2]
    for writer in (idle.attn.c_proj, idle.mlp.c_proj):  # a layer that adds nothing
        nn.init.zeros_(writer.weight)
        nn.init.zeros_(writer.bias)
    before = copy.deepcopy(model.state_dict())

    def forward(m, x):
        return m(x, use_cache=False).logits

    def loss(m, x):
        return nn.functional.cross_entropy(m(x).logits.flatten(0, 1), x.flatten())

    losses = removal(adapter, model, axes, [axis], ids, forward, divergence)["depth"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for k in range(4):
        shorter = copy.deepcopy(model)
        del shorter.transformer.h[k]
        with torch.no_grad():
            expected = sum(divergence(forward(shorter, x), forward(model, x), x) for x in ids) / 2
        assert losses[k] == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    for scores in (
        losses,
        magnitude(model, [axis])["depth"],
        by_gradient(model, [axis], ids, loss, second=False)["depth"],
        by_gradient(model, [axis], ids, loss, second=True)["depth"],
    ):
        assert (
            scores.argmin() == 2
            and scores[2] == pytest.approx(0, abs=1e-6)
            and (scores[[0, 1, 3]] > 1e-6).all()
        )
        assert (
            nested_importance.order(scores, layers=True)[:2].tolist() == [0, 3]
            and nested_importance.order(scores, layers=True)[3] == 2
        )
    whole = replace(axis, slices=())  # what a layer adds is not known: all that it has
    squares = [
        sum(p.square().sum() for p in block.parameters()).sqrt().item()
        for block in model.transformer.h
    ]
    assert magnitude(model, [whole])["depth"].tolist() == pytest.approx(squares, rel=1e-5)


def test_the_residual_stream_is_scored_by_what_the_outputs_lose_without_a_group():
    torch.manual_seed(0)
    model = timm.create_model(
        "test_vit", img_size=16, num_classes=5, embed_dim=12, num_heads=3, depth=2
    ).eval()
    adapter = plugins.adapter("vit")
    axes = adapter.axes(model)
    axis = next(axis for axis in axes if axis.name == "hidden")
    assert axis.step == 4
    x = torch.randn(6, 3, 16, 16)
    found = removal(adapter, model, axes, [axis], [x], lambda m, batch: m(batch), divergence)[
        "hidden"
    ]
    for group in range(3):
        kept = [i for i in range(12) if i // 4 != group]
        smaller = adapter.build(model, {"hidden": 8}).eval()
        state = dict(model.state_dict())
        for place in axis.slices:
            state[place.tensor] = state[place.tensor].index_select(place.dim, torch.tensor(kept))
        smaller.load_state_dict(state)
        with torch.no_grad():
            assert found[group] == pytest.approx(
                divergence(smaller(x), model(x), x).item(), rel=1e-4, abs=1e-7
            )
    heads = next(axis for axis in axes if axis.name == "heads.0")
    task = tasks_task.task("image_classification", settings())
    images = {"image": x, "label": torch.zeros(6, dtype=torch.long)}
    chosen = importance(task, adapter, model, axes, "activation", [images])
    assert chosen["hidden"].argsort().tolist() == found.argsort().tolist()
    assert torch.equal(
        chosen["heads.0"], activation(model, [heads], [images], task.forward)["heads.0"]
    )


def test_a_gpt2_student_of_all_axes_is_the_stock_one(tmp_path):
    adapter = plugins.adapter("gpt2")
    torch.manual_seed(0)
    config = {"vocab_size": 31, "n_positions": 8, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**config, n_embd=24, n_head=3, n_layer=3)).eval()
    axes = [replace(axis, order=(2, 0, 1)) if axis.layers else axis for axis in adapter.axes(model)]
    sizes = sizes_at(axes, full_sizes(axes), 0.67)
    student = materialize(adapter, model, axes, sizes)
    adapter.save(student, tmp_path)
    stock = GPT2LMHeadModel(GPT2Config(**config, n_embd=16, n_head=2, n_layer=2, n_inner=64)).eval()
    stock.load_state_dict(AutoModelForCausalLM.from_pretrained(tmp_path).state_dict())
    ids = torch.randint(31, (2, 8))
    with torch.no_grad():
        assert torch.equal(stock(ids).logits, student(ids).logits)
    assert torch.equal(stock.transformer.h[1].ln_1.weight, model.transformer.h[2].ln_1.weight[:16])
