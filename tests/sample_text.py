"""Text without sense, tokenizers of any text, a template of chats and tables, for the tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

WORDS = ["the", "cat", "sat", "on", "mat", "and", "then", "one", "old", "dog"]
WORDS += ["came home", "to", "sleep by", "warm fire"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prose(lines: int, seed: int = 0) -> str:
    """Lines of 4 to 24 words by chance."""
    generator = np.random.default_rng(seed)
    return "\n".join(
        " ".join(generator.choice(WORDS, size=generator.integers(4, 25))) + " ."
        for _ in range(lines)
    )


def byte_tokenizer(
    texts: Iterable[str], vocabulary: int, end: str = "<|end|>", **more: Any
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of these texts, with one special token, ``end``."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end, **more)


def save_table(path: Path, rows: dict[str, Any]) -> Path:
    """Columns in a file, in the format that its name says."""
    import pandas as pd

    frame = pd.DataFrame(rows)
    if path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path
