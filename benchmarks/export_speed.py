"""Cutting all widths out of a TA and saving them, against copying files of the same bytes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from benchmarks import common
from matta_cli.measure import cost


def main() -> None:
    options = common.parser(__doc__).parse_args()
    width, layers = (256, 4) if options.quick else (768, 12)
    ta = common.grown("gpt2", common.gpt2(width, layers, 128))
    with tempfile.TemporaryDirectory() as temp:
        target, copies = Path(temp) / "students", Path(temp) / "copies"

        def export() -> None:
            for w in (0.25, 0.5, 1.0):
                folder = target / f"width-{w:g}"
                folder.mkdir(parents=True, exist_ok=True)
                ta.student(w).save(folder)

        export()
        size = sum(cost.weight_bytes(f) for f in target.iterdir())

        def copy() -> None:
            shutil.rmtree(copies, ignore_errors=True)
            shutil.copytree(target, copies)

        taken = common.alternating(
            {"export": export, "copy": copy}, 3 if options.quick else 7, warmup=1
        )
    ratio = common.ratio(taken["export"], [taken["copy"]])
    common.result(
        "export_speed",
        medians_s=common.medians(taken),
        ratio=ratio,
        bytes=size,
        quick=options.quick,
    )


if __name__ == "__main__":
    main()
