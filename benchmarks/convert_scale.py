"""Converting and exporting checkpoints of the size of GPT-2 Large and XL (random weights): memory,
and time against a copy.

convert: how far resident memory rises, over the TA's bytes (bound: 1.3), by magnitude, MLPs grown
to 2x. export: what cutting out and writing a Student of width 0.5 adds to the loaded TA, over the
Student's bytes. Each runs in a process of its own; time is against copying as many bytes as were
written. --quick: GPT-2 (small).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks import common
from matta_cli.conversion import convert
from matta_cli.measure import cost
from matta_cli.models.folders import load_ta
from matta_cli.settings.recipe import Recipe

SIZES = {"gpt2": (768, 12), "gpt2-large": (1280, 36), "gpt2-xl": (1600, 48)}
BOUND = 1.3


def make(size: str, folder: Path) -> None:
    """A checkpoint folder as transformers has it, its tensors written one by one."""
    width, layers = SIZES[size]
    with torch.device("meta"):
        model: Any = common.gpt2(width, layers, 1024, vocabulary=50257)
    folder.mkdir()
    model.config.save_pretrained(folder)
    names = [name for name in model.state_dict() if name != "lm_head.weight"]
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.empty(model.state_dict()[name].shape, device="cpu") for name in names}
    for name, tensor in tensors.items():
        tensor.fill_(1.0) if ".ln_" in name and "weight" in name else tensor.normal_(
            std=0.02, generator=generator
        )
    save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})


def watched(job: str, *words: str) -> dict[str, Any]:
    """A job in a fresh process: its seconds, its peak, and what stood before."""
    # glibc then maps, and unmaps, every larger piece by itself: what is measured is what is in use
    own = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    return common.apart("convert_scale", "--job", job, *words, environment=own)


def run(job: str, source: Path, out: Path) -> dict[str, Any]:
    if job == "export":
        ta = load_ta(out)
        for parameter in ta.model.parameters():
            parameter.sum()  # it is mapped from its file: now it is in memory
    before = _resident()
    with cost.peak(torch.device("cpu")) as peak:
        started = time.perf_counter()
        if job == "convert":
            recipe = Recipe()
            recipe.update({"convert": {"source": str(source), "order": "magnitude"}}, "benchmark")
            convert.convert(recipe, out)
        else:
            (out / "student").mkdir()
            ta.student(0.5).save(out / "student")
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "added": (peak.bytes or 0) - before}


def _resident() -> int:
    return int(re.findall(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def copied(folder: Path, to: Path) -> float:
    """Seconds to copy a folder's weight files, written through to the disk as ours are."""
    to.mkdir()
    started = time.perf_counter()
    for file in folder.glob("*.safetensors"):
        shutil.copyfile(file, to / file.name)
        with (to / file.name).open("rb") as written:
            os.fsync(written.fileno())
    return time.perf_counter() - started


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument(
        "--job",
        nargs=3,
        metavar=("JOB", "SOURCE", "OUT"),
        help="one job, here (for the benchmark itself)",
    )
    arguments.add_argument(
        "--sizes", nargs="+", choices=list(SIZES), default=["gpt2-large", "gpt2-xl"]
    )
    options = arguments.parse_args()
    if options.job:
        job, source, out = options.job
        print(json.dumps(run(job, Path(source), Path(out))))
        return
    found: dict[str, Any] = {}
    for size in ["gpt2"] if options.quick else options.sizes:
        with tempfile.TemporaryDirectory() as temp:
            source, out = Path(temp) / "base", Path(temp) / "out"
            make(size, source)
            converted = watched("convert", str(source), str(out))
            written = cost.weight_bytes(out / "ta")
            copy = copied(out / "ta", Path(temp) / "copy")
            exported = watched("export", str(source), str(out))
            half = cost.weight_bytes(out / "student")
            copy_half = copied(out / "student", Path(temp) / "copy-half")
        ratio = converted["added"] / written
        found[size] = {
            "ta_bytes": written,
            "convert": converted,
            "convert_memory_ratio": ratio,
            "holds": ratio <= BOUND,
            "convert_over_copy": converted["seconds"] / copy,
            "student_bytes": half,
            "export": exported,
            "export_memory_ratio": exported["added"] / half,
            "export_over_copy": exported["seconds"] / copy_half,
        }
    common.result(
        "convert_scale",
        bound=BOUND,
        cases=found,
        holds=all(c["holds"] for c in found.values()),
        quick=options.quick,
    )


if __name__ == "__main__":
    main()
