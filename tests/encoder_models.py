"""Tiny encoders of transformers, alone and with heads, whose weights make a mistake visible."""

from __future__ import annotations

import torch
import transformers
from torch import nn

TINY = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
}
HEADS = {"": "", "sequence": "ForSequenceClassification", "token": "ForTokenClassification"}


def encoder(kind: str, head: str = "", **changes) -> nn.Module:
    """One of a model type; head: what it classifies, ``sequence`` or ``token``; empty: alone."""
    torch.manual_seed(0)
    labels = {} if "id2label" in changes else {"num_labels": 5}
    config = transformers.AutoConfig.for_model(kind, **{**TINY, **labels, **changes})
    auto = getattr(transformers, f"AutoModel{HEADS[head]}")
    model = auto.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
        elif "norm" in name.lower():
            nn.init.normal_(parameter, 1.0, 0.2)
        else:
            # at the library's 0.02 attention is all but uniform
            nn.init.normal_(parameter, std=0.2)
    return model


def tokens(model: nn.Module) -> dict[str, torch.Tensor]:
    """Two texts, the second shorter, padded as the model's tokenizer would."""
    config, generator = model.config, torch.Generator().manual_seed(1)
    ids = torch.randint(4, config.vocab_size, (2, 9), generator=generator)
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    ids[mask == 0] = config.pad_token_id or 0
    return {"input_ids": ids, "attention_mask": mask}
