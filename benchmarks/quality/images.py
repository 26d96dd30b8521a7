"""The study's images: a small ViT, and a convolutional network as its Teacher."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.quality.problem import Make, once
from benchmarks.quality.training import scratch, shorter
from matta_cli.settings.recipe import Recipe


class Convolutions(nn.Module):
    """The ViT's Teacher: an ordinary small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 32), (32, 64), (64, 128)):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * 9, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


IMAGES = 4000  # that the ViT learns from


def _arrays(source: Path, made: Path) -> None:
    """Fashion-MNIST cut into what the ViT learns from, dev, what the Teacher sees, and test."""

    def bytes_of(name: str, header: int) -> np.ndarray:
        path = next(source.rglob(f"{name}*"))
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
            return np.frombuffer(opened.read(), np.uint8, offset=header)

    def part(name: str) -> tuple[np.ndarray, np.ndarray]:
        images = bytes_of(f"{name}-images", 16).reshape(-1, 28, 28)
        return images, bytes_of(f"{name}-labels", 8).astype(np.int64)

    images, labels = part("train")
    order = np.random.default_rng(0).permutation(len(labels))
    train, dev, rest = np.split(order, [IMAGES, IMAGES + 6000])
    for name, chosen in (("train", train), ("dev", dev), ("rest", rest)):
        np.savez(made / f"{name}.npz", images=images[chosen], labels=labels[chosen])
    images, labels = part("t10k")
    np.savez(made / "test.npz", images=images, labels=labels)


def _pixels(stored: Any) -> Tensor:
    return torch.from_numpy(stored["images"]).float()[:, None] / 127.5 - 1


def _taught(made: Path, out: Path, known: int) -> None:
    """Train the Teacher on the images that the ViT does not see; write its logits of the others.

    known: of the first so many classes alone.
    """
    torch.manual_seed(0)
    model, rest = Convolutions(), np.load(made / "rest.npz")
    images, labels = _pixels(rest), torch.from_numpy(rest["labels"])
    images, labels = images[labels < known], labels[labels < known]
    epochs, batch = shorter(3), 128
    steps = epochs * (len(labels) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(epochs):
        for part in torch.randperm(len(labels))[: len(labels) // batch * batch].split(batch):
            F.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()
    for name in ("train", "dev", "test"):
        inputs = _pixels(np.load(made / f"{name}.npz"))
        with torch.no_grad():
            logits = torch.cat([model(part) for part in inputs.split(500)])
        values = {"row": torch.arange(len(logits)), "logits": logits}
        save_file(values, str(out / f"{name}.safetensors"))


def _cut(train: Path, teacher: Path, few: int, out: Path) -> None:
    """The first images, and what the Teacher says of them."""
    stored = np.load(train)
    np.savez(out / "train.npz", images=stored["images"][:few], labels=stored["labels"][:few])
    said = {name: values[:few].clone() for name, values in load_file(teacher).items()}
    save_file(said, str(out / "train.safetensors"))


def vit_of(few: int = IMAGES, known: int = 10) -> Make:
    """A ViT on some images; its Teacher, a convolutional network, has seen all of the others.

    few: images that the ViT learns from. known: classes that the Teacher has seen, the first ones.
    """

    def build(recipe: Recipe, seed: int, out: Path) -> None:
        import timm

        torch.manual_seed(seed)
        model = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=28,
            patch_size=7,
            in_chans=1,
            embed_dim=48,
            depth=3,
            num_heads=3,
            num_classes=10,
            pretrained_cfg_overlay={"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,)},
        )
        scratch(recipe, model, out, 200, 2e-3)

    def make(folder: Path, recipe: Recipe, data: Mapping[str, Path], seed: int) -> None:
        made = once(folder / "data", lambda out: _arrays(data["fashion-mnist"], out))
        train, base = made / "train.npz", f"base-{seed}"
        own = "teacher" if known == 10 else f"teacher-of-{known}"
        teacher = once(folder / own, lambda out: _taught(made, out, known)) / "train.safetensors"
        if few < IMAGES:
            cut = once(folder / f"{own}-few-{few}", lambda out: _cut(train, teacher, few, out))
            train, teacher, base = cut / train.name, cut / teacher.name, f"{base}-few-{few}"
        recipe.data.train, recipe.data.held_out = str(train), str(made / "dev.npz")
        recipe.convert.source = str(once(folder / base, lambda out: build(recipe, seed, out)))
        recipe.distill.teacher = str(teacher)

    return make


vit = vit_of()
