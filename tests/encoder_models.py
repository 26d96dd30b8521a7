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


def deberta(head: str = "", **changes) -> nn.Module:
    """As DeBERTa-v3 is."""
    plain = {"relative_attention": True, "position_buckets": 4, "max_relative_positions": -1}
    plain |= {"pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    plain |= {"position_biased_input": False, "type_vocab_size": 0}
    return encoder("deberta-v2", head, **{**plain, **changes})


# The adapter is the first word of a name.
ENCODERS = {
    "bert-sequence": lambda: encoder("bert", "sequence"),
    "bert-token": lambda: encoder("bert", "token", type_vocab_size=1),
    "roberta": lambda: encoder("roberta", pad_token_id=1),
    "roberta-sequence": lambda: encoder("xlm-roberta", "sequence", pad_token_id=1),
    "roberta-token": lambda: encoder("camembert", "token", pad_token_id=1, type_vocab_size=1),
    "electra": lambda: encoder("electra"),
    "electra-sequence": lambda: encoder("electra", "sequence", embedding_size=14),
    "electra-token": lambda: encoder("electra", "token", embedding_size=24),
    "distilbert": lambda: encoder("distilbert"),
    "distilbert-sequence": lambda: encoder("distilbert", "sequence", sinusoidal_pos_embds=True),
    "distilbert-token": lambda: encoder("distilbert", "token"),
    "mpnet": lambda: encoder("mpnet"),
    "mpnet-sequence": lambda: encoder("mpnet", "sequence"),
    "mpnet-token": lambda: encoder("mpnet", "token"),
    "modernbert": lambda: modernbert(),
    "modernbert-sequence": lambda: modernbert("sequence", classifier_pooling="mean"),
    "modernbert-token": lambda: modernbert("token", attention_bias=True, mlp_bias=True),
    "deberta": lambda: deberta(),
    "deberta-sequence": lambda: deberta("sequence"),
    "deberta-token": lambda: deberta("token", share_att_key=False, type_vocab_size=2),
    "deberta-narrow-sequence": lambda: deberta(
        "sequence", embedding_size=14, conv_kernel_size=3, position_biased_input=True
    ),
}


def modernbert(head: str = "", **changes) -> nn.Module:
    """Of four layers, two of which attend to what is near."""
    plain = {"pad_token_id": 0, "num_hidden_layers": 4, "local_attention": 4}
    for name in ("bos", "eos", "cls", "sep"):
        plain[f"{name}_token_id"] = 1
    return encoder("modernbert", head, **{**plain, **changes})


def tokens(model: nn.Module) -> dict[str, torch.Tensor]:
    """Two texts, the second shorter, padded as the model's tokenizer would."""
    config, generator = model.config, torch.Generator().manual_seed(1)
    ids = torch.randint(4, config.vocab_size, (2, 9), generator=generator)
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    ids[mask == 0] = config.pad_token_id or 0
    return {"input_ids": ids, "attention_mask": mask}
