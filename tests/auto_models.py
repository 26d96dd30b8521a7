"""Builders of tiny models, as users write them.

``matta convert auto_models:plain_cnn --adapter auto ...`` calls one.
"""

from __future__ import annotations

import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from timm.models.regnet import RegNet, RegNetCfg
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM


def trained(model: nn.Module) -> nn.Module:
    """``model`` with no tensor left as libraries initialise it.

    Zeros in a head would hide what is wrong before it.
    """
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
    return timm.create_model(
        "convnext_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), num_classes=7
    )


def swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
        num_classes=7,
    )


def efficientnet() -> nn.Module:
    return timm.create_model("test_efficientnet", num_classes=7)


def regnet() -> nn.Module:
    """With groups of four channels, and squeeze and excitation."""
    config = RegNetCfg(depth=8, w0=8, wa=8.0, wm=2.0, group_size=4, se_ratio=1.0)
    return RegNet(config, num_classes=7)


def mixer() -> nn.Module:
    return MlpMixer(img_size=32, patch_size=8, embed_dim=24, num_blocks=2, num_classes=7)


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=64,
        num_heads=4,
        depth=2,
        num_classes=7,
    )


def bert() -> nn.Module:
    config = BertConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=2,
        intermediate_size=40,
        vocab_size=50,
        max_position_embeddings=16,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


def llama() -> nn.Module:
    config = LlamaConfig(
        hidden_size=32,
        num_attention_heads=8,
        num_key_value_heads=2,
        num_hidden_layers=2,
        intermediate_size=40,
        vocab_size=50,
        max_position_embeddings=16,
        use_cache=False,
    )
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
        user, item = (
            self.left(self.user(categorical[:, 0])),
            self.right(self.item(categorical[:, 1])),
        )
        return (user * item).sum(-1)


class DenseAlone(nn.Module):
    """A ranker whose forward takes no categorical columns."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, dense: torch.Tensor) -> torch.Tensor:
        return self.mlp(dense).squeeze(1)


class PlainCNN(nn.Module):
    """Convolutions, BatchNorm, a residual, and a head."""

    def __init__(self, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.inner = nn.Sequential(
            nn.Conv2d(width, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()
        )
        self.back = nn.Sequential(nn.Conv2d(24, width, 3, padding=1), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.relu(x + self.back(self.inner(x)))
        return self.head(x.mean((2, 3)))


def plain_cnn() -> nn.Module:
    return PlainCNN()


class Flattened(nn.Module):
    """Its second convolution is flattened by a constant: that one alone cannot be nested."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3)
        self.hidden, self.head = nn.Linear(12 * 4 * 4, 20), nn.Linear(20, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.head(F.relu(self.hidden(x.reshape(-1, 192))))


def flattened() -> nn.Module:
    return Flattened()


def sequential() -> nn.Module:
    """Its layers have numbers for names."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def tied_llama() -> nn.Module:
    model = llama()
    return LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "tie_word_embeddings": True}))


class FusedBlock(nn.Module):
    """A gated MLP whose gate and value are one layer, after an attention whose q, k, v are."""

    def __init__(self, width: int = 16, heads: int = 2, hidden: int = 20) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, -1)
        x = x + self.out(mixed)
        return x + self.down(F.glu(self.up(x)))


class FusedLM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(31, 16), FusedBlock(), nn.Linear(16, 31)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.embed(input_ids)))


def fused() -> nn.Module:
    return FusedLM()


class Concatenated(nn.Module):
    """Two branches side by side: the second one's units lie after the first one's in what reads."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(3, 12, 3),
            nn.Conv2d(20, 6, 3),
        )
        self.last = nn.Linear(6, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(
            F.relu(self.head(F.relu(torch.cat([self.left(x), self.right(x)], 1)))).mean((2, 3))
        )


def concatenated() -> nn.Module:
    return Concatenated()


class Grouped(nn.Module):
    """A convolution in groups (not one per channel) and a GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12)
        self.second, self.third, self.head = (
            nn.Conv2d(12, 8, 3),
            nn.Conv2d(8, 8, 3, groups=2),
            nn.Linear(8, 7),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.head(F.relu(self.third(F.relu(self.second(x)))).mean((2, 3)))


def grouped() -> nn.Module:
    return Grouped()


class OwnNorm(nn.Module):
    """Divides by the length over the channels, in a class that says nothing of norms.

    New units would change it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.normalize(self.first(x), dim=1)
        return self.head(F.relu(self.second(x)).mean((2, 3)))


def own_norm() -> nn.Module:
    return OwnNorm()


class Placed(nn.Module):
    """Weighs its hidden units by their place.

    Any prefix of them is a model; any other order is another function.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        places = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)
        return self.head(F.relu(self.second(x * places[:, None, None])).mean((2, 3)))


def placed() -> nn.Module:
    return Placed()


class Cut(nn.Module):
    """Its body runs without a graph."""

    def __init__(self, all_of_it: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.all_of_it = nn.Conv2d(3, 8, 3), nn.Linear(8, 7), all_of_it
        self.more = nn.Linear(7, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.body(x)
        x = self.head(F.relu(x).mean((2, 3)))
        return self.more(F.gelu(x.detach() if self.all_of_it else x))


def half_cut() -> nn.Module:
    return Cut()


def cut() -> nn.Module:
    model = Cut(all_of_it=True)
    model.more.forward = lambda x: F.linear(x, model.more.weight.detach())
    return model


def not_a_module() -> dict:
    return {}


def broken() -> nn.Module:
    raise RuntimeError("no such file: weights.bin")


def one_image() -> torch.Tensor:
    return torch.zeros(2, 1, 8, 8)


def two_images() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


not_a_function = 3
