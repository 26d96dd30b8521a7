"""Cutting all widths out of a TA and saving them, against copying files of the same bytes."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path

from benchmarks.common import alternating, arguments, result
from benchmarks.step_time import gpt2
from matta_cli import cost, registry, supernet
from matta_cli.conversion import TA


def main() -> None:
    options = arguments(__doc__)
    width, layers = (256, 4) if options.quick else (768, 12)
    adapter = registry.adapter("gpt2")
    base = gpt2(width, layers, 128)
    axes = adapter.axes(base)
    grown = supernet.grow(adapter, base, axes, {a.name: 2 * a.size for a in axes})
    ta = TA(adapter, grown, adapter.axes(grown), {a.name: a.size for a in axes}, {})
    with tempfile.TemporaryDirectory() as temp:
        target, copies = Path(temp) / "students", Path(temp) / "copies"

        def export() -> None:
            for w in (0.25, 0.5, 1.0):
                folder = target / f"width-{w:g}"
                folder.mkdir(parents=True, exist_ok=True)
                adapter.save(ta.student(w), folder)

        export()
        size = sum(cost.weight_bytes(f) for f in target.iterdir())

        def copy() -> None:
            shutil.rmtree(copies, ignore_errors=True)
            shutil.copytree(target, copies)

        taken = alternating({"export": export, "copy": copy}, 3 if options.quick else 7, warmup=1)
    ratio = statistics.median(a / b for a, b in zip(taken["export"], taken["copy"], strict=True))
    result("export_speed", taken, ratio=ratio, bytes=size, quick=options.quick)


if __name__ == "__main__":
    main()
