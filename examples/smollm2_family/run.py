"""Four ways to make three smaller SmolLM2 for a domain, at equal compute.

Usage: python run.py --out results --passages lambada.jsonl [--steps 1000] [--limit 0]

Arms: `ground_truth` and `plain` train each Student by itself, on the text alone or distilled from
the frozen original; `family` trains them in one run of divided rows, nested in the original;
`domain_ta` does that while the TA learns the domain (0.7 ground truth, 0.3 original) and the
Students follow TA and ground truth. `--steps` are those of `family`; the others take as many as
cost the same FLOPs, which `matta distill --dry-run` counts. What is finished is not done again: the
same command goes on where it was stopped. Writes OUT/results.json, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from matta_cli.settings.recipe import Recipe
from matta_cli.settings.resolve import read_toml

HERE = Path(__file__).parent
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


def matta(*arguments: object) -> str:
    """Run a command of matta; what it tells goes on to the terminal. Returns its stdout."""
    command = [sys.executable, "-m", "matta_cli", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    return done.stdout


def settings(out: Path, arm: str, widths: list[float], given: argparse.Namespace) -> Path:
    """The recipe of an arm, as a file in its folder."""
    recipe = Recipe()
    recipe.update(read_toml(HERE / "matta.toml"), "matta.toml")
    recipe.update({"distill": ARMS[arm]}, arm)
    recipe.distill.widths = recipe.export.widths = widths
    recipe.distill.device, recipe.data.passages = given.device, given.passages
    recipe.data.eval_examples = given.limit
    recipe.distill.allow_weak_teacher = True  # the original does not know the domain
    out.mkdir(parents=True, exist_ok=True)
    file = out / "arm.toml"
    file.write_text(recipe.text(), encoding="utf-8")
    return file


def flops(out: Path, file: Path) -> float:
    """The FLOPs of a step of an arm."""
    counted = matta("distill", out, "--config", file, "--steps", 1, "--dry-run", "--json")
    return float(json.loads(counted)["model_flops_per_step"])


def trained(out: Path, file: Path, steps: int) -> dict[str, Any]:
    """Train, export and measure an arm's run, or what is missing of that. Returns the report."""
    report = out / "report.json"
    if not report.is_file():
        begun = any((out / "run" / "checkpoints").glob("step-*"))
        how = ["--resume"] if begun else ["--overwrite"]
        matta("distill", out, "--config", file, "--steps", steps, *how)
        matta("export", out, "--config", file, "--overwrite", "--json")
    return json.loads(report.read_text(encoding="utf-8"))


def row(arm: str, report: dict[str, Any], model: dict[str, Any], length: int) -> dict[str, Any]:
    """A line of the results: what a model is worth, and what it costs."""
    batch = str(report["batch_size"])
    seconds = model["latency"].get(batch, {}).get("median")
    took = report["training"] if model["role"] == "student" else {}
    return {
        "arm": arm,
        "model": model["name"],
        **model["metrics"],
        "parameters": model["parameters"],
        "bytes": model["bytes"],
        "tokens_per_second": round(int(batch) * length / seconds) if seconds else None,
        "steps": took.get("steps"),
        "seconds": took.get("seconds"),
        "device": report["device"]["name"],
    }


def arm_runs(given: argparse.Namespace, widths: list[float]) -> list[tuple[str, Path, Path]]:
    """Each run: its arm, its folder, its recipe. The TA is converted once."""
    first = given.out / "family"
    runs = []
    for arm in given.arms:
        for own in [[width] for width in widths] if arm in SEPARATE else [widths]:
            out = given.out / (f"{arm}-{own[0]:g}" if arm in SEPARATE else arm)
            runs.append((arm, out, settings(out, arm, own, given)))
    if not (first / "ta").is_dir():
        file = settings(first, "family", widths, given)
        matta("convert", "base", "--out", first, "--config", file)
    for _, out, _ in runs:
        if not (out / "ta").is_dir():
            shutil.copytree(first / "ta", out / "ta.part", dirs_exist_ok=True)
            (out / "ta.part").rename(out / "ta")
    return runs


def plan(
    given: argparse.Namespace, runs: list[tuple[str, Path, Path]], parts: int
) -> dict[str, int]:
    """The steps of each run, by its folder: as many as cost what the family costs."""
    file = given.out / "plan.json"
    known = json.loads(file.read_text()) if file.is_file() else {"asked": given.steps}
    if known["asked"] != given.steps:
        sys.exit(f"{given.out} was begun with --steps {known['asked']}: take another --out.")
    first = given.out / "family"
    for arm, out, own in runs:
        if out.name in known:
            continue
        if "flops" not in known:
            widths = read_toml(HERE / "matta.toml")["distill"]["widths"]
            known["flops"] = flops(first, settings(first, "family", widths, given))
        share = given.steps / parts if arm in SEPARATE else given.steps
        each = known["flops"] if arm == "family" else flops(out, own)
        known[out.name] = max(1, round(share * known["flops"] / each))
        file.write_text(json.dumps(known, indent=1) + "\n")
    return known


def table(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    metrics = [name for name in rows[0] if isinstance(rows[0][name], dict)]
    costs = ("parameters", "bytes", "tokens_per_second", "steps")
    lines = [["arm", "model", *metrics, *(name.replace("_", " ") for name in costs)]]
    lines.append(["---"] * len(lines[0]))
    for one in rows:
        known = [one.get(name) or {} for name in metrics]
        values = [
            f"{m['value']:.4g} ({m['low']:.4g} to {m['high']:.4g})"
            if m.get("low") is not None
            else "-"
            for m in known
        ]
        shown = [f"{one[name]:,}" if one[name] is not None else "-" for name in costs]
        lines.append([one["arm"], one["model"], *values, *shown])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--passages", default="", help="JSONL of LAMBADA's passages")
    parser.add_argument("--steps", type=int, default=1000, help="of the family")
    parser.add_argument("--limit", type=int, default=0, help="held-out sequences, and passages")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    given = parser.parse_args()
    example = read_toml(HERE / "matta.toml")
    widths, length = example["distill"]["widths"], example["data"]["sequence_length"]
    runs = arm_runs(given, widths)
    steps = plan(given, runs, len(widths))
    rows: list[dict[str, Any]] = []
    for arm, out, file in runs:
        report = trained(out, file, steps[out.name])
        for model in report["models"]:
            beside = model["role"] in ("base", "cut") and any(
                r["model"] == model["name"] for r in rows
            )
            if model["role"] in ("base", "cut", "student") and not beside:
                own = arm if model["role"] == "student" else "-"
                rows.append(row(own, report, model, length))
        kept = json.dumps(rows, indent=1) + "\n"
        (given.out / "results.json").write_text(kept, encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
