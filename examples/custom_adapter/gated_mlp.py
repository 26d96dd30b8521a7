"""A small image classifier and its adapter. What nests: the hidden units of each gated block."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from matta_cli.adapter import Adapter, Axis, Sizes, Slice, Source
from matta_cli.errors import MattaError


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate, self.up = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(torch.sigmoid(self.gate(y)) * self.up(y))


class GatedMLP(nn.Module):
    """Classifies grey images of ``side`` x ``side`` pixels; ``hidden``: units of each block."""

    def __init__(self, side: int, width: int, hidden: list[int], num_classes: int) -> None:
        super().__init__()
        self.side = side
        # What the task asks a model for.
        self.num_classes = num_classes
        self.pretrained_cfg = {"input_size": (1, side, side), "mean": (0.5,), "std": (0.5,)}
        self.stem = nn.Linear(side * side, width)
        self.blocks = nn.ModuleList(Block(width, h) for h in hidden)
        self.head = nn.Linear(width, num_classes)

    def config(self) -> dict:
        hidden = [block.up.weight.shape[0] for block in self.blocks]
        return {
            "side": self.side,
            "width": self.stem.weight.shape[0],
            "hidden": hidden,
            "num_classes": self.num_classes,
        }

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image.flatten(1))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class GatedMLPAdapter(Adapter):
    """``GatedMLP``: a folder of ``save``, or a state dict (of square grey images)."""

    name, task = "gated_mlp", "image_classification"

    def matches(self, source: Source) -> bool:
        if source.folder is not None:
            config = source.folder / "config.json"
            if not config.is_file():
                return False
            return json.loads(config.read_text()).get("architecture") == self.name
        needed = {"stem.weight", "blocks.0.gate.weight"}
        return source.tensors is not None and needed <= set(source.tensors)

    def load(self, source: Source) -> nn.Module:
        tensors = source.tensors
        if tensors is None:
            tensors = load_file(source.folder / "model.safetensors")
        blocks = sum(name.endswith(".up.bias") for name in tensors)
        try:
            hidden = [len(tensors[f"blocks.{i}.up.bias"]) for i in range(blocks)]
            width, pixels = tensors["stem.weight"].shape
            model = GatedMLP(round(pixels**0.5), width, hidden, len(tensors["head.bias"]))
            model.load_state_dict(tensors)
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise MattaError(f"{source.name!r} is no GatedMLP: {reason}") from error
        return model.float().eval()

    def axes(self, model: nn.Module) -> list[Axis]:
        found = []
        for i, block in enumerate(model.blocks):
            names = ("gate.weight", "gate.bias", "up.weight", "up.bias")
            slices = [Slice(f"blocks.{i}.{name}", 0) for name in names]
            slices.append(Slice(f"blocks.{i}.down.weight", 1, outgoing=True))
            found.append(Axis(f"mlp.{i}", block.up.weight.shape[0], tuple(slices)))
        return found

    def build(self, model: nn.Module, sizes: Sizes) -> nn.Module:
        config = model.config()
        config["hidden"] = [sizes.get(f"mlp.{i}", size) for i, size in enumerate(config["hidden"])]
        return GatedMLP(**config)

    def save(self, model: nn.Module, folder: Path) -> None:
        config = {"architecture": self.name, **model.config()}
        (folder / "config.json").write_text(json.dumps(config))
        save_file(model.state_dict(), folder / "model.safetensors")
