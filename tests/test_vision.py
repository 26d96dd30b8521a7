"""Image classifiers of transformers: what is opened and what is refused, and why not stock."""

from __future__ import annotations

import json
import re

import pytest
import torch
from matta_adapters.vision import CLIP, BEiT, Dinov2, SigLIP, ViT
from safetensors.torch import load_file
from test_adapters import images, logits
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    DeiTForImageClassificationWithTeacher,
    ViTForMaskedImageModeling,
)

from matta_cli.adapter import Source
from matta_cli.errors import MattaError
from matta_cli.formats import programs
from matta_cli.models import plugins
from matta_cli.models.source import open_source
from matta_cli.nested.sizes import full_sizes, sizes_at
from matta_cli.nested.view import materialize
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import task as open_task


@pytest.mark.parametrize(
    ("kind", "adapter", "sizes", "reason"),
    [
        ("vit", ViT, {"mlp.0": 5}, r"one intermediate_size for all blocks.* \(5, 37\)"),
        ("vit", ViT, {"heads.1": 8}, "one num_attention_heads for all blocks"),
        ("dinov2", Dinov2, {"mlp.0": 24}, r"one mlp_ratio for all blocks.* \(24, 72\)"),
        ("dinov2", Dinov2, {"mlp.0": 36, "mlp.1": 36}, "24 wide has MLPs of a whole multiple"),
        ("dinov2", Dinov2, {"heads.0": 8}, "one num_attention_heads for all blocks"),
        ("clip", CLIP, {"heads.0": 8, "heads.1": 8}, "as many channels in its heads"),
        ("clip", CLIP, {"hidden": 16}, "as many channels in its heads"),
        ("siglip", SigLIP, {"hidden": 8}, "as many channels in its heads"),
    ],
)
def test_what_the_stock_format_cannot_say(kind, adapter, sizes, reason):
    made = adapter()
    model = made.load(Source("m", module=images(kind)))
    assert made.unsupported(model) == ""
    assert re.search(reason, made.unsupported(made.build(model, sizes)))


@pytest.mark.parametrize("kind", ["vit", "deit", "beit", "dinov2", "clip", "siglip"])
def test_a_state_dict_by_the_names_of_any_release(kind, tmp_path):
    model = images(kind)
    model.save_pretrained(tmp_path)
    older = load_file(tmp_path / "model.safetensors")  # which transformers writes by its old names
    config = json.loads((tmp_path / "config.json").read_text())
    batch = {"pixel_values": torch.randn(2, 3, 32, 32)}
    for tensors in (older, model.state_dict()):
        adapter = plugins.detect(Source("m", tensors=tensors))
        with pytest.raises(MattaError, match="heads cannot be told from tensors: pass its config"):
            adapter.load(Source("m.pt", tensors=tensors))
        loaded = adapter.load(Source("m.pt", tensors=tensors, config=config))
        assert torch.equal(logits(loaded, batch), logits(model, batch))
        one = ("fc1.bias", "intermediate.dense.bias")
        lacking = {k: v for k, v in tensors.items() if not k.endswith(one)}
        with pytest.raises(MattaError, match=r"fc1\.bias is missing"):
            adapter.load(Source("m.pt", tensors=lacking, config=config))


@pytest.mark.parametrize("kind", ["vit", "deit", "beit", "dinov2", "clip", "siglip"])
def test_a_model_without_a_head_is_refused(kind, tmp_path):
    model = images(kind)
    AutoModel.from_config(model.config).save_pretrained(tmp_path / "body")
    if kind != "siglip":  # of which transformers itself builds none
        images(kind, num_labels=0).save_pretrained(tmp_path / "none")
    for name in ("body", "none")[: 1 + (kind != "siglip")]:
        source = open_source(str(tmp_path / name))
        with pytest.raises(MattaError, match="no classification head: fine-tune it"):
            plugins.detect(source).load(source)


def test_what_a_checkpoint_has_besides_the_classifier_is_told(tmp_path):
    model = images("vit")
    head = ViTForMaskedImageModeling(model.config)
    model.vit.pooler = AutoModel.from_config(model.config).pooler
    model.save_pretrained(tmp_path)
    adapter = ViT()
    loaded = adapter.load(open_source(str(tmp_path)))
    assert any("left out: vit.pooler.dense.bias" in note for note in adapter.notes)
    batch = {"pixel_values": torch.randn(2, 3, 32, 32)}
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    model.decoder = head.decoder
    model.save_pretrained(tmp_path)
    with pytest.raises(MattaError, match=r"decoder\.0\.bias is not one of its tensors"):
        adapter.load(open_source(str(tmp_path)))


def test_siglips_own_pooling_is_left_out_and_said(tmp_path):
    model = images("siglip")
    count = sum(p.numel() for p in model.vision_model.head.parameters())
    model.save_pretrained(tmp_path / "base")
    adapter = SigLIP()
    loaded = adapter.load(open_source(str(tmp_path / "base")))
    assert f"({count:,} parameters) is left out" in adapter.notes[0]
    adapter.save(loaded, tmp_path)
    stock = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert not hasattr(stock.vision_model, "head")
    batch = {"pixel_values": torch.randn(2, 3, 32, 32)}
    assert torch.equal(logits(stock.eval(), batch), logits(model, batch))
    adapter.load(open_source(str(tmp_path)))
    assert adapter.notes == []


def test_the_two_kinds_of_deit_are_told_apart(tmp_path):
    """By the class that is named, or by the classifiers; each opens what it was."""
    two = images("deit", DeiTForImageClassificationWithTeacher)
    batch = {"pixel_values": torch.randn(2, 3, 32, 32)}
    for model, name in ((two, "deit_distilled"), (images("deit"), "deit")):
        model.save_pretrained(tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        given = Source("m.pt", tensors=model.state_dict(), config=config)
        for source in (open_source(str(tmp_path / name)), Source("m", module=model), given):
            adapter = plugins.detect(source)
            assert adapter.name == name
            assert torch.equal(logits(adapter.load(source), batch), logits(model, batch))


def test_what_is_not_supported_is_refused_by_name(tmp_path):
    shared = images("beit", use_shared_relative_position_bias=True)
    with pytest.raises(MattaError, match="one relative position bias for all blocks"):
        BEiT().load(Source("m", module=shared))
    (tmp_path / "config.json").write_text('{"model_type": "siglip2"}')
    with pytest.raises(MattaError, match=r"any shape \(NaFlex\).*not supported: take one of a fix"):
        plugins.detect(open_source(str(tmp_path))).load(open_source(str(tmp_path)))


def test_what_no_classifier_reads_is_not_trained():
    clip = CLIP().load(Source("m", module=images("clip")))
    frozen = [name for name, p in clip.named_parameters() if not p.requires_grad]
    assert frozen == [f"vision_model.post_layernorm.{kind}" for kind in ("weight", "bias")]
    logits = clip(torch.randn(2, 3, 32, 32)).logits
    logits.sum().backward()
    assert all(p.grad is not None for p in clip.parameters() if p.requires_grad)
    assert all(p.grad is None for name, p in clip.named_parameters() if name in frozen)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "pt2"])
@pytest.mark.parametrize(
    "kind", ["vit", "deit", "beit", "dinov2", "dinov2_with_registers", "clip", "siglip"]
)
def test_programs_of_any_number_of_images(kind, form, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    adapter = plugins.detect(Source("m", module=images(kind)))
    model = adapter.load(Source("m", module=images(kind)))
    axes = adapter.axes(model)
    student = materialize(adapter, model, axes, sizes_at(axes, full_sizes(axes), 0.5)).eval()
    task = open_task("image_classification", Recipe())
    path = tmp_path / "student"
    programs.PROGRAMS[form].write(task, student, task.example(student, 2), path)
    if form == "onnx":
        session = runtime.InferenceSession(str(path))
    else:
        program = torch.export.load(path).module()
    for count in (1, 2, 5):
        image = torch.randn(count, 3, 32, 32)
        expected = logits(student, {"pixel_values": image})
        if form == "onnx":
            made = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
        else:
            made = program(image)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
