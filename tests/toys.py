"""What the pages of docs/ say that their reader has, at toy size, under the names they use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from matta_adapters.mlp_ranker import Ranker
from matta_adapters.vit import ViT
from PIL import Image
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from tests.sample_text import CHATML, byte_tokenizer, prose

# settings that make a run short; random Teachers teach nothing, so they are let pass
SETTINGS: dict[str, dict[str, Any]] = {
    "data": {"eval_examples": 24},
    "distill": {"steps": 4, "batch_size": 8, "allow_weak_teacher": True},
    "export": {"bootstrap": 5, "batch_size": 2, "new_tokens": 2},
    "search": {"trials": 2},
}
CNN = """from torch import nn


def build(width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 3),
    )


def build_large():
    return build(16)
"""


def lay(folder: Path) -> None:
    """Write all of it into ``folder``."""
    for maker in (_language, _encoder, _images, _ranker, _module):
        torch.manual_seed(0)
        maker(folder)


def _language(folder: Path) -> None:
    (folder / "train.txt").write_text(prose(300))
    (folder / "test.txt").write_text(prose(60, seed=1))
    tokenizer = byte_tokenizer([prose(60)], 298, bos_token="<|end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    for name, width in (("gpt2", 64), ("gpt2-large", 128)):
        sizes = {"n_positions": 64, "n_embd": width, "n_layer": 2, "n_head": width // 64}
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=300, **sizes, **ends))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        if name == "gpt2":
            torch.save(model.state_dict(), folder / "model.pt")
    for name, width in (("my-llm", 32), ("my-llm-large", 48)):
        sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 3}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
        config = LlamaConfig(vocab_size=300, max_position_embeddings=64, **sizes, **ends)
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    lines = prose(240, seed=2).splitlines()
    rows = [
        {"messages": [_said("user", asked), _said("assistant", answer)]}
        for asked, answer in zip(lines[::2], lines[1::2], strict=True)
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text[:20]}


def _encoder(folder: Path) -> None:
    lines = list(dict.fromkeys(prose(300, seed=3).splitlines()))
    (folder / "sentences.txt").write_text("\n".join(lines))
    words = sorted({word for line in lines for word in line.split()})
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tokenizer = BertTokenizerFast(vocab=str(vocabulary))
    labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    for name, width, kind, more in (
        ("my-encoder", 24, BertModel, {}),
        ("my-encoder-large", 48, BertModel, {}),
        ("my-classifier", 24, BertForSequenceClassification, labels),
    ):
        config = BertConfig(
            vocab_size=5 + len(words),
            hidden_size=width,
            num_attention_heads=3,
            num_hidden_layers=2,
            intermediate_size=64,
            max_position_embeddings=32,
            initializer_range=0.3,
            **more,
        )
        kind(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    vocabulary.unlink()
    for name, texts in (("train.csv", lines[:200]), ("test.csv", lines[200:])):
        rows = [(text, "good" if "cat" in text else "bad") for text in texts]
        pd.DataFrame(rows, columns=["text", "label"]).to_csv(folder / name, index=False)
    pairs = [
        (a, b, float(k % 6)) for k, (a, b) in enumerate(zip(lines[:60], lines[60:120], strict=True))
    ]
    table = pd.DataFrame(pairs, columns=["sentence1", "sentence2", "score"])
    table.to_csv(folder / "pairs.csv", index=False)


def _images(folder: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("cat", "dog", "horse"):
        (folder / "photos" / name).mkdir(parents=True)
        for k in range(20):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{k}.png")
    for name, width in (("my-vit", 16), ("my-vit-large", 32)):
        model: Any = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=16,
            patch_size=8,
            num_classes=3,
            embed_dim=width,
            depth=2,
            num_heads=2,
            pretrained_cfg_overlay={"input_size": (3, 16, 16)},
        )
        (folder / name).mkdir()
        ViT().save(model, folder / name)


def _ranker(folder: Path) -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame({"user": random.integers(0, 30, 400), "item": random.integers(0, 20, 400)})
    table["price"] = random.normal(size=400).round(3)
    table["clicked"] = (table["user"] % 3 == table["item"] % 3).astype(int)
    table.to_csv(folder / "clicks.csv", index=False)
    for name, width in (("ranker", 8), ("ranker-large", 16)):
        layers = [{"layer": "Linear", "out": 4 * width}, {"layer": "ReLU"}]
        model = Ranker([(30, width), (20, width)], 1, [*layers, {"layer": "Linear", "out": 1}])
        torch.save(model.state_dict(), folder / f"{name}.pt")


def _module(folder: Path) -> None:
    (folder / "my_pkg").mkdir()
    (folder / "my_pkg" / "__init__.py").touch()
    (folder / "my_pkg" / "models.py").write_text(CNN)
    space: dict[str, Any] = {}
    exec(CNN, space)
    torch.save(space["build"]().state_dict(), folder / "my_model.pt")
