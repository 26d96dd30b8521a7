"""Time of a MatTA step divided by the sum of its parts run on plain stock models.

The parts: Teacher forward, TA forward and backward, and forward and backward of each Student of the
step, each a dense model of its own with the same losses, timed one by one. A round runs the MatTA
step and then the parts; the ratio is the median over rounds. Bound: 1.05. At a vocabulary of 50,257
a step makes its logits piece by piece, on a CPU again for each Student, which the parts do not:
that is what it pays in time for memory, at a size where the output layer is most of the model;
gpt2_50257_whole is the same step with distill.logits = "whole". With --compile, also a compiled
step (inductor) over the eager one, taking turns, after compilation; bound: 1.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks import common
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task
from matta_cli.training.objective import Step
from matta_cli.training.teacher import ModelTeacher

BOUND = 1.05


def measure(
    name: str, vocabulary: int, logits: str, rows: str, quick: bool, compiled: bool
) -> dict[str, Any]:
    """Seconds of a step and of its parts for one architecture."""
    device = common.device()
    width, layers, length, size = (
        (128, 2, 64, 8) if quick else (256, 4, 128, 4 if vocabulary > 1 << 14 else 16)
    )
    make: Any = common.vit if name == "vit" else lambda *a: common.gpt2(*a, vocabulary=vocabulary)
    recipe = Recipe()
    recipe.distill.logits, recipe.distill.rows = logits, rows
    recipe.distill.ramp = 0.0  # every term from the first step on
    ta = common.grown(name, make(width, layers, length))
    ta.model.to(device).train()
    task = tasks_task.task(ta.adapter.task, recipe)
    teacher = make(2 * width, layers, length).to(device).requires_grad_(False)
    batch = {k: v.to(device) for k, v in task.example(ta.model, size).items()}
    if name == "vit":
        batch["label"] = torch.randint(100, (size,), device=device)
    else:  # task.example keeps to 64 tokens
        batch["input_ids"] = torch.randint(vocabulary, (size, length), device=device)
    parts = common.Parts(recipe, task, ta, teacher, batch)

    def run(step: Step) -> None:
        common.take(step, batch)
        ta.model.zero_grad(set_to_none=True)

    eager = Step(recipe.distill, task, ta, ModelTeacher(task, teacher), batch, device)
    taken = common.alternating({"matta": lambda: run(eager), **parts.named()}, 5 if quick else 9)
    pair = taken["matta"], [taken[part] for part in parts.named()]
    found: dict[str, Any] = {
        "medians_s": common.medians(taken),
        "ratio": common.ratio(*pair),
        "ratio_of_fastest": common.least(*pair),
    }
    found |= {"chunked": eager.chunked, "holds": found["ratio"] <= BOUND}
    if compiled:
        recipe.distill.compile = "inductor"
        step = Step(recipe.distill, task, ta, eager.teacher, batch, device)
        started = time.perf_counter()
        run(step)
        found["compilation_s"] = time.perf_counter() - started
        turns = common.alternating(
            {"compiled": lambda: run(step), "eager": lambda: run(eager)}, 5 if quick else 9
        )
        found |= {
            "compiled_s": common.medians(turns),
            "compiled_ratio": common.ratio(turns["compiled"], [turns["eager"]]),
        }
        found["compiled_holds"] = found["compiled_ratio"] <= 1
    return found


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument(
        "--compile", action="store_true", help="also time a compiled step: minutes of compilation"
    )
    options = arguments.parse_args()
    cases = {"gpt2": ("gpt2", 4096, "auto"), "vit": ("vit", 0, "auto")}
    if not options.quick:
        cases |= {
            "gpt2_50257": ("gpt2", 50257, "auto"),
            "gpt2_50257_whole": ("gpt2", 50257, "whole"),
        }
    cases = {
        f"{case}_{rows}": (*given, rows)
        for case, given in cases.items()
        for rows in ("divided", "all")
    }
    found = {case: measure(*given, options.quick, options.compile) for case, given in cases.items()}
    worst = max(case["ratio"] for case in found.values())
    common.result(
        "step_time",
        ratio=worst,
        bound=BOUND,
        holds=worst <= BOUND,
        cases=found,
        quick=options.quick,
    )


if __name__ == "__main__":
    main()
