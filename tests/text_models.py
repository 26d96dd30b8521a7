"""Tiny tokenizers and classifiers of texts, of two families that share no token."""

from __future__ import annotations

import importlib.util
import shutil
import struct
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

GOOD = ["good", "great", "fine", "lovely"]
BAD = ["bad", "awful", "poor", "sad"]
PLAIN = ["the", "film", "book", "was", "very", "and", "plot", "it"]
WORDS = sorted((*GOOD, *BAD, *PLAIN))

_SIZES = {
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "initializer_range": 0.3,
}


def _tokenizer(vocabulary: list[str], single: str, pair: str, **more: Any) -> Any:
    numbers = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=more["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, numbers[token]) for token in (more["cls_token"], more["sep_token"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=ends
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=24, **more)


def bert_tokenizer(words: list[str] = WORDS) -> Any:
    return _tokenizer(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words],
        "[CLS] $A [SEP]",
        "[CLS] $A [SEP] $B:1 [SEP]:1",
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def roberta_tokenizer(words: list[str] = WORDS) -> Any:
    return _tokenizer(
        ["<s>", "<pad>", "</s>", "<unk>", *reversed(words)],
        "<s> $A </s>",
        "<s> $A </s> </s> $B </s>",
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )


def labels(*names: str) -> dict[str, Any]:
    """The names of a config's labels, in their order."""
    return {"id2label": dict(enumerate(names)), "label2id": {n: k for k, n in enumerate(names)}}


def bert(folder: Path, head: Any = BertForSequenceClassification, **changes: Any) -> Any:
    """A BERT that classifies texts, or tokens, saved in a folder with its tokenizer."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS) + 4, "max_position_embeddings": 32}
    model = head(BertConfig(**{**_SIZES, **sizes, **changes})).eval()
    model.save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    return model


def roberta(folder: Path, head: Any = RobertaForSequenceClassification, **changes: Any) -> Any:
    """A RoBERTa that classifies texts, or tokens, saved in a folder with its tokenizer."""
    torch.manual_seed(1)
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
    sizes = {"vocab_size": len(WORDS) + 4, "max_position_embeddings": 34}
    model = head(RobertaConfig(**{**_SIZES, **special, **sizes, **changes})).eval()
    model.save_pretrained(folder)
    roberta_tokenizer().save_pretrained(folder)
    return model


def gguf_files(path: Path, whole: Path) -> None:
    """The beginning of a GGUF file, and a whole one where the extra gguf is installed."""
    tensor = b"".join((struct.pack("<Q", 10) + b"token_embd", struct.pack("<IQQIQ", 2, 4, 4, 0, 0)))
    key = struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 4) + b"gpt2"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + key + tensor
    path.write_bytes(head.ljust(-(-len(head) // 32) * 32, b"\0") + bytes(64))
    if any(importlib.util.find_spec(name) is None for name in ("gguf", "accelerate")):
        shutil.copyfile(path, whole)
        return
    from test_quantized import llama, write_gguf

    write_gguf(whole, llama())
