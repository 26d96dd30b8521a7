"""A Teacher that is a file beside the Teacher itself: what a language model's family loses by it.

The family of ``benchmarks.family`` (GPT-2 on WikiText-2, rows divided, its best learning rate), by
the model; by a file of ``matta teach`` as it is by default; and by one of as many bytes with the
likeliest outputs alone. Paired seeds. One line of JSON: by how many per cent of perplexity each
width is better by a file than by the model (below 0: worse), for each seed, and bytes a token.

    python -m benchmarks.family.teacher_file --data FOLDER            # a quarter of an hour
    python -m benchmarks.family.teacher_file --data FOLDER --quick    # two minutes

"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.family.__main__ import RESULTS, best_rate
from benchmarks.family.cells import CONVERTED, PROBLEMS, SHARED, WIDTHS
from benchmarks.quality.problem import test_of
from benchmarks.quality.study import Store
from benchmarks.quality.training import Run, changed, measured
from matta_cli.conversion.convert import convert
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import task as open_task
from matta_cli.training.setup import opened
from matta_cli.training.teach import TOP, teach

FILES: dict[str, tuple[int, int | None]] = {
    "drawn": (TOP, None),
    "likeliest": (48, 0),
}  # 292 bytes each
SHORT = 0.1  # of the steps, with --quick


def bytes_of(folder: Path, tokens: int) -> float:
    """What a file takes for each token."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / tokens


def perplexities(recipe: Recipe, out: Path, steps: int) -> dict[str, float]:
    """Train a family, and measure it on test data: width -> perplexity."""
    setup = opened(recipe, out, common.device())
    test = replace(recipe, data=replace(recipe.data, held_out=test_of(recipe)))
    task = open_task(setup.task.name, test)
    splits = {"test": task.data(out / "ta", setup.ta.model, training=False).held_out}
    recipe.distill.steps = steps
    Run(recipe, setup.task, setup.ta, setup.teacher, setup.data)()
    found = {w: measured(setup.task, setup.ta, w, setup.data, splits)["test"] for w in WIDTHS}
    return {f"{width:g}": metrics["perplexity"] for width, metrics in found.items()}


def one(seed: int, steps: int, rate: float, options: Any) -> dict[str, Any]:
    """A seed: the family by the model, and by each file."""
    problem = PROBLEMS["lm"]
    given = problem.recipe(options.cache, problem.data(options.data), seed, quick=options.quick)
    given.distill.lr, given.distill.allow_weak_teacher = rate, True
    recipe = changed(given, convert=CONVERTED, distill=SHARED)
    found: dict[str, Any] = {"bytes": {}, "perplexity": {}}
    with tempfile.TemporaryDirectory() as temp:
        out = Path(temp) / "out"
        convert(recipe, out)
        found["perplexity"]["model"] = perplexities(changed(recipe), out, steps)
        for name, (k, draws) in FILES.items():
            file = teach(recipe, out, Path(temp) / name, k=k, draws=draws)
            by_file = changed(recipe, distill={"teacher": str(file)})
            setup = opened(by_file, out, common.device())
            tokens = sum(setup.data.train.batch([i])["input_ids"].numel() for i in range(8)) / 8
            found["bytes"][name] = round(bytes_of(file, int(tokens * len(setup.data.train))))
            found["perplexity"][name] = perplexities(by_file, out, steps)
    return found


def gains_of(name: str, width: str, seeds: list[dict[str, Any]]) -> list[float]:
    """By how many per cent of perplexity a width is better by a file than by the model."""
    pairs = [(own["perplexity"][name][width], own["perplexity"]["model"][width]) for own in seeds]
    return [round(100 * (1 - by_file / by_model), 2) for by_file, by_model in pairs]


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument("--data", type=Path, action="append", required=True)
    arguments.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "matta-lm")
    arguments.add_argument("--seeds", type=int, default=3)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    rate, _ = best_rate(PROBLEMS["lm"], "divided", "short", Store(RESULTS))
    steps = round(400 * (SHORT if options.quick else 1))
    seeds = [
        one(seed, steps, rate, options) for seed in range(1 if options.quick else options.seeds)
    ]
    gains = {name: {f"{w:g}": gains_of(name, f"{w:g}", seeds) for w in WIDTHS} for name in FILES}
    common.result("teacher_file", steps=steps, rate=rate, bytes=seeds[0]["bytes"], gains=gains)


if __name__ == "__main__":
    main()
