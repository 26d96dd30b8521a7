"""Students in fewer bits beside their float ones: quality, bytes and latency, in one run of each.

For each problem of the study (its data, base and Teacher; --data names folders that hold the data)
one run, and one export of two widths with --quantize, measured on the test split. Latencies are
taken in turns on this machine: of the float Student in torch, and as a program in onnxruntime, too,
since the quantized ones run there. verdict: against the float Student, by the margin of a report.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.quality.problem import Missing, test_of
from benchmarks.quality.problems import PROBLEMS
from matta_cli.conversion.convert import convert
from matta_cli.family import export
from matta_cli.measure.cost import device_card
from matta_cli.report.claims import against_float
from matta_cli.report.schema import ModelEntry, Report, Role
from matta_cli.training.run import distill

USUAL, KINDS, WIDTHS = ("ranker", "vit", "encoder"), ("int8", "int8-static", "int4"), [0.5, 1.0]
BATCH = 8


def rows(report: Report) -> list[dict[str, Any]]:
    """What a report says of each Student and its quantized ones."""
    metric = report.metrics[0]
    verdicts = {one.student.name: one for one in against_float(report)}

    def row(model: ModelEntry) -> dict[str, Any]:
        value, one = model.metrics[metric.name], verdicts.get(model.name)
        gain = [one.pair.gain, one.pair.low, one.pair.high] if one else None
        return {
            "model": model.name,
            "bytes": model.cost.bytes,
            "value": [value.value, value.low, value.high],
            "gain": gain,
            "verdict": one.verdict if one else None,
            "seconds": {batch: time.median for batch, time in model.cost.latency.items()},
        }

    return [row(model) for model in report.of(Role.STUDENT, Role.QUANTIZED)]


def measure(name: str, cache: Path, options: Any) -> dict[str, Any]:
    """One run of a problem, and its export."""
    problem, quick = PROBLEMS[name], options.quick
    recipe = problem.recipe(cache, problem.data(options.data), 0, quick=quick)
    recipe.distill.lr, recipe.distill.widths = problem.middle, WIDTHS
    recipe.distill.steps = options.steps or recipe.distill.steps
    recipe.distill.allow_weak_teacher, own = True, recipe.export
    own.widths, own.quantize, own.batch_size = WIDTHS, options.quantize.split(","), BATCH
    recipe.data.eval_examples = options.examples or (200 if quick else 0)
    with tempfile.TemporaryDirectory() as temp:
        out = Path(temp)
        convert(recipe, out)
        distill(recipe, out)
        recipe.data.held_out, recipe.distill.teacher = test_of(recipe), ""
        report = export(recipe, out)
    metric = report.metrics[0]
    beside = [note for note in report.notes if note.startswith("In onnxruntime")]
    told = {"title": problem.title, "metric": metric.label, "higher_is_better": metric.higher}
    told["steps"] = recipe.distill.steps
    told["held_out"] = report.data.rpartition("held out ")[2]
    return {**told, "models": rows(report), "in_onnxruntime": beside}


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument("--data", type=Path, action="append", default=[])
    arguments.add_argument("--problems", default=",".join(USUAL))
    arguments.add_argument("--steps", type=int, default=0, help="of each run; 0: the study's")
    arguments.add_argument("--examples", type=int, default=0, help="measured on; 0: all")
    arguments.add_argument("--quantize", default=",".join(KINDS))
    arguments.add_argument("--cache", type=Path, help="keep bases and Teachers here")
    options = arguments.parse_args()
    cache = options.cache or Path(tempfile.mkdtemp(prefix="matta-quantized-"))
    found = {}
    try:
        for name in options.problems.split(","):
            try:
                found[name] = measure(name, cache, options)
            except Missing as error:
                sys.stderr.write(f"{name} is left out: {error}.\n")
    finally:
        if options.cache is None:
            shutil.rmtree(cache, ignore_errors=True)
    processor = device_card(common.device())["name"]
    common.result("quantized", processor=processor, problems=found, quick=options.quick)


if __name__ == "__main__":
    main()
