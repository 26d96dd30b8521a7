"""Milliseconds per text of classifiers, by torch and by onnxruntime, side by side.

Usage: python latency.py data/test.csv base matta-out/students/width-*

Also of taggers, and of a .conll file. Models take turns, on the same texts; each number is the
median of the rounds, for one text and for 32 at a time. A folder without student.onnx is exported
first.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import transformers

SIZES, ROUNDS, TEXTS = (1, 32), 15, 128
Run = Callable[[dict[str, torch.Tensor]], Any]


def texts(path: Path) -> list[str]:
    """The first so many texts of a file."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return [row["text"] for row in csv.DictReader(file)][:TEXTS]
    rows = path.read_text(encoding="utf-8").strip().split("\n\n")
    return [" ".join(line.split()[0] for line in row.splitlines()) for row in rows][:TEXTS]


def opened(folder: Path) -> torch.nn.Module:
    """The model in a folder, by the class that its config names."""
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, kind).from_pretrained(folder).eval()


def session(folder: Path, model: torch.nn.Module, given: dict[str, torch.Tensor]) -> Run:
    """The ONNX program of a folder, or of the model in it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    program = folder / "student.onnx"
    with tempfile.TemporaryDirectory() as temp:
        if not program.is_file():
            program = Path(temp) / "model.onnx"
            sizes = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
            free = dict.fromkeys(given, sizes)
            torch.onnx.export(
                model, (), str(program), kwargs=given, dynamic_shapes=free, dynamo=True
            )
        made = onnxruntime.InferenceSession(program, options)
    names = [own.name for own in made.get_inputs()]
    return lambda batch: made.run(None, {name: batch[name].numpy() for name in names})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    given = parser.parse_args()
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.models[0])
    every, names = texts(given.data), ["input_ids", "attention_mask"]

    def batch(some: list[str]) -> dict[str, torch.Tensor]:
        made = tokenizer(some, padding=True, truncation=True, max_length=64, return_tensors="pt")
        return {name: made[name] for name in names}

    runs: dict[tuple[str, str], Run] = {}
    for folder in given.models:
        model = opened(folder)
        runs[str(folder), "torch"] = lambda batch, model=model: model(**batch)
        runs[str(folder), "onnxruntime"] = session(folder, model, batch(every[:4]))
    print("model\tby\t" + "\t".join(f"ms per text, {size} at a time" for size in SIZES))
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    with torch.inference_mode():
        for size in SIZES:
            batches = [batch(every[i : i + size]) for i in range(0, len(every), size)]
            batches = batches[: max(2, 16 // size)]
            rounds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
            for _ in range(ROUNDS):
                for key, run in runs.items():
                    began = time.perf_counter()
                    for own in batches:
                        run(own)
                    spent = time.perf_counter() - began
                    rounds[key].append(1000 * spent / sum(len(own["input_ids"]) for own in batches))
            for key, spent in rounds.items():
                taken[key].append(statistics.median(spent[1:]))
    for (name, by), values in taken.items():
        print("\t".join([name, by, *(f"{value:.3g}" for value in values)]))


if __name__ == "__main__":
    main()
