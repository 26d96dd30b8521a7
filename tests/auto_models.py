"""Builders of tiny models, as users write them: ``matta convert auto_models:plain_cnn --adapter auto ...``."""

from __future__ import annotations

import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM


def trained(model: nn.Module) -> nn.Module:
    """``model`` with no tensor left as libraries initialise it: zeros in a head would hide what is wrong before it."""
    torch.manual_seed(0)
    for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        if name.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 2.0)
        elif name.endswith("running_mean") or (tensor.dim() == 1 and name.endswith("bias")):
            nn.init.normal_(tensor, std=0.2)
        elif tensor.dim() == 1 and name.endswith(("weight", "gamma")):
            nn.init.normal_(tensor, 1.0, 0.2)
        elif tensor.dim() > 1 and tensor.is_floating_point() and not tensor.any():
            nn.init.normal_(tensor, std=0.1)
    return model.eval()


def resnet18() -> nn.Module:
    return timm.create_model("resnet18", num_classes=7)


def mobilenet() -> nn.Module:
    return timm.create_model("mobilenetv3_small_050", num_classes=7)


def convnext() -> nn.Module:
    return timm.create_model("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), num_classes=7)


def mixer() -> nn.Module:
    return MlpMixer(img_size=32, patch_size=8, embed_dim=24, num_blocks=2, num_classes=7)


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=64, num_heads=4, depth=2, num_classes=7
    )


def bert() -> nn.Module:
    config = BertConfig(
        hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=40, vocab_size=50,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def llama() -> nn.Module:
    config = LlamaConfig(
        hidden_size=32, num_attention_heads=8, num_key_value_heads=2, num_hidden_layers=2, intermediate_size=40,
        vocab_size=50, max_position_embeddings=16, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


class TwoTowers(nn.Module):
    """A recommender: a user and an item, each through its tower; the score is their dot product."""

    fields = [(11, 8), (13, 8)]

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(11, 8), nn.Embedding(13, 8)
        self.left = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6))
        self.right = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6))

    def forward(self, categorical: torch.Tensor, dense: torch.Tensor | None = None) -> torch.Tensor:
        user, item = self.left(self.user(categorical[:, 0])), self.right(self.item(categorical[:, 1]))
        return (user * item).sum(-1)


class PlainCNN(nn.Module):
    """Convolutions, BatchNorm, a residual, and a head."""

    def __init__(self, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(width, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.back = nn.Sequential(nn.Conv2d(24, width, 3, padding=1), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(x + self.back(self.inner(x)))
        return self.head(x.mean((2, 3)))


def plain_cnn() -> nn.Module:
    return PlainCNN()


class Flattened(nn.Module):
    """Its second convolution is flattened by a constant: that one cannot be nested, the others can."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3)
        self.hidden, self.head = nn.Linear(12 * 4 * 4, 20), nn.Linear(20, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.head(F.relu(self.hidden(x.reshape(-1, 192))))


def flattened() -> nn.Module:
    return Flattened()
