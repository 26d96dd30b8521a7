"""Peak memory of a MatTA step at a vocabulary of 50,257, against training the TA alone plus the
Teacher's weights.

A step: Teacher forward, forward and backward of TA and Students, clipping and AdamW, whose state is
there already. TA alone: the same batch through the stock model on its labels, with the logits made
piece by piece as in the step (ta_chunked: the bound is a ratio of 1.15 to it), or whole, with
F.cross_entropy (ta_whole). Each variant runs in a process of its own. On CUDA the peak is the
allocator's; on a CPU it is resident memory less what the process had before it made a model. That
holds what the C library keeps of freed memory too, so in_use tells the same with all of it returned
at once.
"""

from __future__ import annotations

import ctypes
import json
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import common
from matta_cli.losses.targets import Logits, Term
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task
from matta_cli.training.objective import Step
from matta_cli.training.optimizer import make_optimizer
from matta_cli.training.teacher import ModelTeacher

BOUND, VOCABULARY = 1.15, 50257
# (width, layers) of base and Teacher, examples, tokens each
SIZES = {False: ((512, 6), (768, 12), 8, 128), True: ((64, 2), (128, 2), 8, 64)}
BASELINES = ("ta_chunked", "ta_whole")
VARIANTS: dict[str, dict[str, Any]] = {
    "matta": {"logits": "chunked", "rows": "all"},
    "matta_divided": {"logits": "chunked", "rows": "divided"},
    "matta_whole_logits": {"logits": "whole", "rows": "all"},
    "matta_micro_batch_2": {"logits": "chunked", "rows": "all", "micro_batch": 2},
    "matta_checkpoint_activations": {
        "logits": "chunked",
        "rows": "all",
        "checkpoint_activations": True,
    },
}


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{name}:\s+(\d+) kB", text)[0]) * 1024


def _in_use(device: torch.device) -> int:
    """Bytes in use, freed memory returned first."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS")


def one(variant: str, quick: bool) -> dict[str, int]:
    """Bytes of one variant in this process: the step's peak, and what stood before it."""
    device = common.device()
    own, theirs, size, length = SIZES[quick]
    empty = _in_use(device)
    recipe = Recipe()
    recipe.distill.ramp = 0.0
    for name, value in VARIANTS.get(variant, {}).items():
        setattr(recipe.distill, name, value)
    ta = common.grown("gpt2", common.gpt2(*own, length, VOCABULARY))
    ta.model.to(device).train()
    task = tasks_task.task("causal_lm", recipe)
    optimizer = make_optimizer(recipe.distill, ta.model, [], device)
    ids = torch.randint(VOCABULARY, (size, length), generator=torch.Generator().manual_seed(0)).to(
        device
    )
    stock: Any = ta.model

    if variant in BASELINES:

        def gradients() -> None:
            if variant == "ta_whole":
                logits = stock(input_ids=ids, use_cache=False).logits
                F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
                return
            hidden = stock.transformer(input_ids=ids, use_cache=False).last_hidden_state
            batch = {"input_ids": ids}
            task.objective(Logits(hidden, stock.lm_head.weight), batch, [Term("truth", 1.0)])[
                0
            ].backward()
    else:
        teacher = common.gpt2(*theirs, length, VOCABULARY).to(device).requires_grad_(False)
        whole = {"input_ids": ids}
        step = Step(recipe.distill, task, ta, ModelTeacher(task, teacher), whole, device)

        def gradients() -> None:
            common.take(step, {"input_ids": ids})

    def update() -> None:
        gradients()
        torch.nn.utils.clip_grad_norm_(ta.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for parameter in ta.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes its state
    optimizer.zero_grad(set_to_none=True)
    before = _in_use(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    update()
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")
    weights = sum(p.numel() * p.element_size() for p in ta.model.parameters())
    return {"peak": peak - empty, "before_the_step": before - empty, "ta_weights": weights}


def apart(variant: str, quick: bool, environment: dict[str, str] | None = None) -> dict[str, int]:
    """``one`` in a fresh process."""
    words = ["--quick"] if quick else []
    return common.apart("memory", "--variant", variant, *words, environment=environment)


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument(
        "--variant",
        choices=[*BASELINES, *VARIANTS],
        help="measure this one, here (for the benchmark itself)",
    )
    options = arguments.parse_args()
    if options.variant:
        print(json.dumps(one(options.variant, options.quick)))
        return
    found = {variant: apart(variant, options.quick) for variant in (*BASELINES, *VARIANTS)}
    # glibc then maps, and unmaps, every larger piece by itself
    at_once = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    cuda = common.device().type == "cuda"
    in_use = {
        v: found[v] if cuda else apart(v, options.quick, at_once) for v in ("ta_chunked", "matta")
    }
    own, theirs, size, length = SIZES[options.quick]
    with torch.device("meta"):
        teacher = sum(
            p.numel() * p.element_size()
            for p in common.gpt2(*theirs, length, VOCABULARY).parameters()
        )
    ratios = {
        variant: {
            alone: found[variant]["peak"] / (found[alone]["peak"] + teacher) for alone in BASELINES
        }
        for variant in VARIANTS
    }
    ratio = ratios["matta"]["ta_chunked"]
    live = in_use["matta"]["peak"] / (in_use["ta_chunked"]["peak"] + teacher)
    shape = {
        "base": own,
        "teacher": theirs,
        "batch": size,
        "tokens": length,
        "vocabulary": VOCABULARY,
    }
    common.result(
        "memory",
        ratio=ratio,
        bound=BOUND,
        holds=ratio <= BOUND,
        ratios=ratios,
        bytes=found,
        teacher_weights=teacher,
        ratio_in_use=live,
        in_use=in_use,
        shape=shape,
        quick=options.quick,
    )


if __name__ == "__main__":
    main()
