"""What the benchmarks share: models of a size, timing in turns, and the result line."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

import matta_cli


def arguments(doc: str | None) -> argparse.Namespace:
    """``--quick``; the explanation goes to stderr."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--quick", action="store_true", help="fewer rounds on smaller models")
    parsed = parser.parse_args()
    sys.stderr.write(f"{(doc or '').strip()}\n")
    return parsed


def alternating(candidates: dict[str, Callable[[], Any]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each candidate, taking turns, so that drift of the machine hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + rounds):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warmup:
                taken[name].append(time.perf_counter() - started)
    return taken


def result(name: str, taken: dict[str, list[float]], **more: Any) -> None:
    """The result as one line of JSON."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    versions = {"matta": matta_cli.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    medians = {k: statistics.median(v) for k, v in taken.items()}
    card = {"benchmark": name, "device": device, "threads": torch.get_num_threads(), "versions": versions, "medians_s": medians}
    print(json.dumps({**card, **more}))
