"""Students that other tools cut out of the study's bases: as large as ours, and the base's own
weights.
"""

import importlib.util
from types import SimpleNamespace

import pytest
import timm
import torch

from benchmarks.quality import peers
from benchmarks.quality.arms import arms
from benchmarks.quality.training import of_one
from matta_cli.models import plugins
from matta_cli.nested import sizes
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task


@pytest.fixture
def opened():
    """A task, a ViT as a TA that is no larger, and random images."""
    torch.manual_seed(0)
    model = timm.create_model(
        "test_vit", img_size=16, num_classes=5, embed_dim=12, num_heads=3, depth=2, mlp_ratio=16
    ).eval()
    ta, task = (
        of_one(plugins.adapter("vit"), model, ["mlp"]),
        tasks_task.task("image_classification", Recipe()),
    )
    task.recipe.distill.batch_size = 8
    images, labels = torch.randn(64, 3, 16, 16), torch.randint(5, (64,))

    class Split:
        def __len__(self):
            return len(images)

        def batch(self, rows):
            return {"image": images[list(rows)], "label": labels[list(rows)]}

    return task, ta, SimpleNamespace(train=Split())


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_torch_pruning_leaves_units_of_the_base(opened):
    task, ta, data = opened
    before = {name: tensor.clone() for name, tensor in ta.model.state_dict().items()}
    found = peers.torch_pruning(task, ta, 0.5, data)
    assert count(found.model) == count(ta.student(0.5).dense()) < count(ta.model)
    assert sizes.full_sizes(found.axes) == ta.sizes(0.5)
    for name, weight in found.model.state_dict().items():
        rows = before[name]
        if name.endswith("mlp.fc1.weight"):
            assert all((row == rows).all(1).any() for row in weight)
        elif ".mlp." not in name:
            assert torch.equal(weight, rows)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ta.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("modelopt") is None, reason="needs nvidia-modelopt")
def test_modelopt_stays_within_the_parameters_of_the_student(opened):
    task, ta, data = opened
    found = peers.modelopt(task, ta, 0.5, data)
    assert count(found.model) <= count(ta.student(0.5).dense())
    with torch.no_grad():
        assert task.forward(found.model, data.train.batch(range(4))).shape == (4, 5)


def test_a_peer_is_offered_where_it_applies():
    assert (
        "torch-pruning" in peers.applies("vit") and "Conv1D" in peers.refused("lm")["torch-pruning"]
    )
    assert "fastnas" in peers.refused("encoder")["modelopt"]
    names = [arm.name for arm in arms((0.5, 1.0), 1.0, True, ("torch-pruning",))]
    assert names[-2:] == ["plain@0.5", "torch-pruning@0.5", "torch-pruning@0.5+compute"][-2:]
