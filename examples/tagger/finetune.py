"""A sentence encoder -> a tagger of words, fine-tuned: the model that is made smaller.

Usage: python finetune.py all-MiniLM-L6-v2 data/train.conll base

A plain loop over transformers' own class, as anyone's tagger may have been made: AdamW with a
linear warm-up and decay. A word's tag is learned at its first token.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

BATCH, RATE, WARMUP, STEPS = 32, 3e-4, 0.1, 150

Text = tuple[list[str], list[str]]


def read(path: Path) -> list[Text]:
    """The words and tags of each text of a CoNLL file."""
    texts = path.read_text(encoding="utf-8").strip().split("\n\n")
    rows = [[line.split() for line in text.splitlines()] for text in texts]
    return [([row[0] for row in own], [row[1] for row in own]) for own in rows]


def labels(numbers: list[int], words: list[int | None]) -> list[int]:
    """The label of each token: its word's, at the first one of each word."""
    first = [word is not None and word not in words[:at] for at, word in enumerate(words)]
    return [numbers[w or 0] if new else -100 for w, new in zip(words, first, strict=True)]


def finetuned(encoder: str, texts: list[Text], steps: int) -> tuple[object, object]:
    """The tagger and its tokenizer, after so many steps."""
    torch.manual_seed(0)
    generator = random.Random(0)
    names = dict(enumerate(sorted({tag for _, tags in texts for tag in tags})))
    known = {name: number for number, name in names.items()}
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModelForTokenClassification.from_pretrained(encoder, id2label=names, label2id=known)
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (WARMUP * steps), (steps - step) / steps)
    )
    model.train()
    for step in range(steps):
        drawn = generator.sample(texts, min(BATCH, len(texts)))
        given = tokenizer(
            [words for words, _ in drawn],
            is_split_into_words=True,
            padding=True,
            truncation=True,
            max_length=128,
            return_tensors="pt",
        )
        wanted = [
            labels([known[tag] for tag in tags], given.word_ids(at))
            for at, (_, tags) in enumerate(drawn)
        ]
        loss = model(**given, labels=torch.tensor(wanted)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)
    return model.eval(), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder")
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    given = parser.parse_args()
    for made in finetuned(given.encoder, read(given.data), given.steps):
        made.save_pretrained(given.folder)
    print(f"Wrote {given.folder}.")


if __name__ == "__main__":
    main()
