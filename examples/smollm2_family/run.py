"""Four ways to make three smaller SmolLM2 for a domain, at equal compute.

Usage: python run.py --passages lambada_test.jsonl [--out results] [--steps 1000] [--limit 0]

Arms: `family` trains all Students in one run of divided rows, nested in the original, which is
their Teacher; `domain_ta` does that while the TA learns the domain (0.7 ground truth, 0.3 original)
and the Students follow TA and ground truth; `ground_truth` and `plain` train each Student by
itself, on the text alone or distilled from the original. `--steps` are those of `family`; the
others take as many as cost the same FLOPs. What is finished is not done again: the same command
goes on where it was stopped. Prints a table, and writes OUT/results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from matta_cli import console
from matta_cli.commands.eval_tables import show
from matta_cli.comparison.compare import Asked, evaluation
from matta_cli.conversion.convert import convert
from matta_cli.errors import MattaError
from matta_cli.files.atomic import atomic_write
from matta_cli.files.workspace import Workspace, counters_of
from matta_cli.progress import Listener, Progress
from matta_cli.settings.recipe import Recipe
from matta_cli.settings.resolve import read_toml
from matta_cli.training.plan import plan
from matta_cli.training.run import distill

SETTINGS = Path(__file__).with_name("matta.toml")
HELD_OUT = "data/held_out.jsonl"
ARMS: dict[str, dict[str, Any]] = {
    "family": {"ta_weight": 0.0},
    "domain_ta": {
        "teacher_mix": 0.3,
        "ta_weight": 1.0,
        "students_learn_from": "ta",
        "ta_student_weight": 0.3,
        "ramp": 0.1,
    },
    "ground_truth": {"ta_weight": 0.0, "teacher_mix": 0.0, "teacher": ""},
    "plain": {"ta_weight": 0.0},
}
SEPARATE = ("ground_truth", "plain")  # a run for each Student


def recipe(arm: str, given: argparse.Namespace) -> Recipe:
    """The settings of an arm."""
    found = Recipe()
    found.update(read_toml(SETTINGS), SETTINGS.name)
    found.update({"distill": ARMS[arm]}, arm)
    found.data.sequence_length = given.sequence_length or found.data.sequence_length
    found.distill.batch_size = given.batch_size or found.distill.batch_size
    found.distill.device = given.device
    return found


def folders(arm: str, given: argparse.Namespace) -> dict[float, Path]:
    """Where the run of each width lies."""
    widths = recipe(arm, given).distill.widths
    return {w: given.out / (f"{arm}-{w:g}" if arm in SEPARATE else arm) for w in widths}


def steps(given: argparse.Namespace, base: Path, listen: Listener) -> dict[str, int]:
    """The steps of each run of an arm, whose runs together cost what the family costs.

    Kept in OUT/plan.json, with the FLOPs of a row by which it was found.
    """
    file = given.out / "plan.json"
    asked = [given.steps, given.sequence_length, given.batch_size]
    if file.is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["asked"] != asked:
            begun = f"{given.out} was begun with --steps {kept['asked'][0]}, or other batches"
            raise MattaError(f"{begun}: take another --out.")
        return dict(kept["steps"])
    flops = {}
    for arm in ARMS:
        own = recipe(arm, given)
        own.distill.batch_size, own.distill.micro_batch = 1, 0
        own.data.train = HELD_OUT  # it is short, and what is in it has no part in the count
        own.data.eval_examples = 1  # nor has how good base and Teacher are
        listen(Progress(message=f"Counting the FLOPs of {arm}."))
        flops[arm] = plan(own, base).model_flops_per_step or 1.0
    found = {}
    for arm, each in flops.items():
        runs = len(set(folders(arm, given).values()))
        found[arm] = max(1, round(given.steps * flops["family"] / each / runs))
    kept = {"asked": asked, "flops_of_a_row": flops, "steps": found}
    atomic_write(file, json.dumps(kept, indent=1) + "\n")
    return found


def train(own: Recipe, out: Path, base: Path, listen: Listener) -> None:
    """Train a run to its end, or what is missing of it."""
    space = Workspace(out)
    if not space.ta.is_dir():  # the same files: nothing ever writes into them
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(Workspace(base).ta, out / "ta.part", copy_function=os.link)
        (out / "ta.part").rename(space.ta)
    last, _ = space.sound()
    if last is None or counters_of(last)["step"] < own.distill.steps:
        listen(Progress(message=f"{out.name}: {own.distill.steps:,} steps."))
        distill(own, out, resume=last is not None, listen=listen)


@cache
def reached(out: str) -> dict[str, Any]:
    """What a run had come to at its last sound checkpoint."""
    return counters_of(Workspace(Path(out)).sound()[0])


def measured(given: argparse.Namespace, base: Path) -> dict[str, Any]:
    """The base, the untrained cuts and every arm's Students on the same examples."""
    own = recipe("family", given)
    own.data.held_out, own.data.passages = HELD_OUT, given.passages
    own.data.eval_examples = given.limit
    ta, widths = Workspace(base).ta, own.distill.widths
    arms = {f"{ta}@1": "base", **{f"{ta}@{width:g}": "untrained cut" for width in widths}}
    for arm in given.arms:
        arms |= {f"{out}@{width:g}": arm for width, out in folders(arm, given).items()}
    result = evaluation(own, Asked(list(arms), ta=f"{ta}@1"), base, say=console.say)
    for model in result["models"]:
        out, _, width = model["name"].rpartition("@")
        model |= {"arm": arms[model["name"]], "width": float(width)}
        if arms[model["name"]] in ARMS:
            model |= {"steps": reached(out)["step"], "seconds": reached(out)["seconds"]}
    return result


@console.guarded
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--passages", default="", help="JSONL of LAMBADA's passages")
    parser.add_argument("--steps", type=int, default=1000, help="of the family")
    parser.add_argument("--sequence-length", type=int, default=0, help="0: that of matta.toml")
    parser.add_argument("--batch-size", type=int, default=0, help="0: that of matta.toml")
    parser.add_argument("--limit", type=int, default=0, help="held-out sequences, and passages")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    given = parser.parse_args()
    base = given.out / "base"
    with console.training_progress() as listen:
        if not Workspace(base).ta.is_dir():
            convert(recipe("family", given), base, listen=listen)
        taken = steps(given, base, listen)
        for arm in given.arms:
            runs = {out: width for width, out in folders(arm, given).items()}
            for out, width in runs.items():
                own = recipe(arm, given)
                own.distill.steps = taken[arm]
                if arm in SEPARATE:
                    own.distill.widths = [width]
                train(own, out, base, listen)
    result = measured(given, base)
    atomic_write(given.out / "results.json", json.dumps(result, indent=1) + "\n")
    show(result)


if __name__ == "__main__":
    main()
