"""What is said of a source that an adapter does not know: what it claims is so."""

import json
from pathlib import Path

import pytest
import timm
import torch
from matta_adapters.auto import Auto
from matta_adapters.decoders import Llama
from matta_adapters.encoders import Bert
from matta_adapters.gpt2 import GPT2
from matta_adapters.mlp_ranker import MLPRanker
from matta_adapters.plan import ATTRIBUTE, Plan
from matta_adapters.vit import ViT
from torch import nn
from transformers import BertConfig, BertModel, ViTConfig, ViTForImageClassification

from matta_cli.adapter import Source
from matta_cli.errors import MattaError
from matta_cli.models import plugins
from matta_cli.models.source import open_source


def zeros(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(2, 2) for name in names}


def config(folder: Path, **values: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    return folder


STOCK = "`--adapter auto` takes what timm and transformers build, if it can trace it"
RANKER = "where a ranker's are named embeddings.0.weight, mlp.0.weight"
WEIGHTS = "matta convert my_pkg.models:build --weights m.pt --adapter auto --example"


@pytest.mark.parametrize(
    ("adapter", "tensors", "sentences"),
    [
        (
            MLPRanker,
            zeros("embeddings.0.weight", "mlp.0.weight", "first.0.weight"),
            [f"it has a tensor first.0.weight, {RANKER}", f"{WEIGHTS} 1x16:int64."],
        ),
        (
            MLPRanker,
            zeros("0.weight", "2.weight", "embeddings.0.weight"),
            ["it has 0.weight as an nn.Sequential has, and beside it embeddings.0.weight"],
        ),
        (MLPRanker, zeros("0.bias"), ["it has no weights"]),
        (
            GPT2,
            {"conv.weight": torch.zeros(4, 3, 2, 2)},
            ["it has no tensor transformer.h.0.attn.c_attn.weight", f"{WEIGHTS} 1x3x224x224."],
        ),
        (
            Bert,
            zeros("bert.embeddings.word_embeddings.weight"),
            ["it has no tensor bert.encoder.layer.0.attention.self.query.weight"],
        ),
        (
            Llama,
            zeros("layers.0.self_attn.k_proj.weight", "layers.0.mlp.gate_proj.weight"),
            ["it has no tensor layers.0.mlp.down_proj.weight", f"{WEIGHTS} 1x2."],
        ),
        (
            ViT,
            zeros("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
            ["it has no tensor blocks.0.norm1.weight"],
        ),
    ],
)
def test_what_a_state_dict_lacks_is_what_it_is_said_to_lack(adapter, tensors, sentences):
    with pytest.raises(MattaError) as refused:
        adapter().load(Source("m.pt", tensors=tensors))
    for sentence in ("'m.pt' is not ", *sentences):
        assert sentence in str(refused.value)


@pytest.mark.parametrize("adapter", [Bert, GPT2, Llama, MLPRanker, ViT])
def test_folders_and_modules_are_told_what_they_are(adapter, tmp_path):
    """And to the adapter ``auto`` where that may do."""

    def said(source: Source) -> str:
        with pytest.raises(MattaError) as refused:
            adapter().load(source)
        return str(refused.value)

    bare = said(Source("b", folder=config(tmp_path / "bare", hello=1)))
    assert "its config.json" in bare and "auto" not in bare and "tensor" not in bare
    opt = said(Source("o", folder=config(tmp_path / "opt", model_type="opt", architectures=["O"])))
    assert STOCK in opt and ("'opt'" in opt or adapter in (MLPRanker, ViT))
    resnet = said(Source("r", folder=config(tmp_path / "resnet", architecture="resnet18")))
    assert STOCK in resnet and ("'resnet18'" in resnet or adapter is not ViT)
    lone = said(Source("l", module=nn.Linear(2, 2)))
    assert "it is a Linear" in lone and "auto" not in lone
    assert STOCK in said(Source("t", module=timm.create_model("test_resnet")))


def test_a_model_that_no_adapter_knows_is_told_of_auto(tmp_path):
    folder = config(tmp_path / "b", model_type="bloom", architectures=["BloomForCausalLM"])
    with pytest.raises(MattaError, match="If it can be traced, `--adapter auto` takes it"):
        plugins.detect(open_source(str(folder)))
    with pytest.raises(MattaError, match="by the function that builds it: matta convert"):
        plugins.detect(Source("m.pt", tensors=zeros("a.weight")))


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 2)

    def forward(self, dense, categorical):
        return dense.sum(1) + self.table(categorical).sum((1, 2))


class Plain(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.norm, self.layer = nn.Identity(), layer

    def forward(self, x):
        return self.layer(x)


BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (lambda: BertModel(BertConfig(**BERT, intermediate_size=8)), "input_ids=1x16:int64"),
        (lambda: Plain(nn.Embedding(5, 2)), "1x16:int64"),
        (lambda: Plain(nn.Linear(7, 2)), "1x7"),
        (lambda: Plain(nn.Conv1d(2, 3, 3)), "1x2x128"),
        (lambda: Plain(nn.Conv2d(1, 3, 3)), "1x1x224x224"),
        (lambda: ViTForImageClassification(ViTConfig(**BERT)), "1x3x224x224"),
        (TwoTowers, "dense=1x4,categorical=1x3:int64"),
    ],
)
def test_auto_asks_for_an_example_that_the_model_takes(model, example):
    made = model()
    setattr(made, ATTRIBUTE, Plan("pkg.mod:build", {}, "", ""))
    with pytest.raises(MattaError) as refused:
        Auto().axes(made)
    assert f"--example {example}, say." in str(refused.value)
