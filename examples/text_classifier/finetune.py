"""A sentence encoder -> a classifier of three labels, fine-tuned: the model that is made smaller.

Usage: python finetune.py all-MiniLM-L6-v2 data/train.csv base

A plain loop over transformers' own class, as anyone's classifier may have been made: one pass over
the data, AdamW with a linear warm-up and decay.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

LABELS = ("negative", "neutral", "positive")
BATCH, RATE, WARMUP, LENGTH = 32, 2e-4, 0.1, 64
SORTED = 16  # batches whose texts are sorted by length, so that there is little padding


def batches(rows: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Batches of rows in random order, again and again."""
    generator = random.Random(0)
    while True:
        generator.shuffle(rows)
        found = []
        for start in range(0, len(rows), BATCH * SORTED):
            near = sorted(rows[start : start + BATCH * SORTED], key=lambda row: len(row[0]))
            found += [near[i : i + BATCH] for i in range(0, len(near), BATCH)]
        generator.shuffle(found)
        yield from found


def finetuned(encoder: str, rows: list[tuple[str, str]], steps: int) -> tuple[object, object]:
    """The classifier and its tokenizer, after so many steps."""
    torch.manual_seed(0)
    names = dict(enumerate(LABELS))
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModelForSequenceClassification.from_pretrained(
        encoder, id2label=names, label2id={name: number for number, name in names.items()}
    )
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (WARMUP * steps), (steps - step) / steps)
    )
    model.train()
    for step, drawn in enumerate(itertools.islice(batches(rows), steps)):
        given = tokenizer(
            [text for text, _ in drawn],
            padding=True,
            truncation=True,
            max_length=LENGTH,
            return_tensors="pt",
        )
        labels = torch.tensor([LABELS.index(label) for _, label in drawn])
        loss = model(**given, labels=labels).loss
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
    parser.add_argument("--steps", type=int, default=0, help="0: one pass over the data")
    given = parser.parse_args()
    with given.data.open(newline="", encoding="utf-8") as file:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    steps = given.steps or len(rows) // BATCH
    for made in finetuned(given.encoder, rows, steps):
        made.save_pretrained(given.folder)
    print(f"Wrote {given.folder}.")


if __name__ == "__main__":
    main()
