"""The verdict: every exported Student against its baselines, on the same held-out examples. Remakes
the report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from matta_cli.adapter import Sizes
from matta_cli.data.split import Columns, Data
from matta_cli.devices.device import pick
from matta_cli.errors import MattaError, command
from matta_cli.files import atomic
from matta_cli.files.workspace import Workspace
from matta_cli.measure import intervals, score
from matta_cli.measure.students import measurable
from matta_cli.models.folders import load_student, load_ta
from matta_cli.models.ta import TA
from matta_cli.nested import view
from matta_cli.progress import Listener, quiet
from matta_cli.report import claims, story, write
from matta_cli.report.schema import Report
from matta_cli.settings import budget
from matta_cli.settings.recipe import Recipe
from matta_cli.settings.resolve import read_toml
from matta_cli.tasks import task as tasks_task
from matta_cli.tasks.task import Task
from matta_cli.training import log, spent
from matta_cli.verdict import baselines

Say = Callable[[str], None]


Entry = dict[str, Any]


_COSTS = ("parameters", "macs", "latency", "peak_memory", "bytes")  # the same shapes cost the same


_NAMES = {"base": "trained alone", "plain": "plain distillation", "scratch": "from scratch"}


_ROLES = {"base": "alone", "plain": "plain", "scratch": "scratch"}


_VERDICT = "\n## Verdict\n\n"  # in a Student's model card


# resamples for each comparison made at once: with fewer, Holm's correction could not reach 0.05
_EACH = 50


def remake(
    out: Path,
    kinds: Sequence[str] = (),
    *,
    margin: float | None = None,
    device: str | None = None,
    say: Say = lambda _: None,
    listen: Listener = quiet,
) -> dict[str, Any]:
    """Make ``out/report.*`` anew from what lies in ``out``: the exported Students, and the
    baselines that are finished.

    kinds: baselines (``baselines.KINDS``) to train first, where they are missing. margin: the share
    of a baseline's value that a Student may lose and be no worse. The data are those of the export.
    Returns the report. Raises ``MattaError`` where nothing was exported, or a baseline cannot be
    trained.
    """
    baselines.check(kinds, margin or 0.0)
    result = _exported(out)
    result["notes"] = story.tell(
        Report.from_json(result)
    ).notes  # alarms are sounded anew, if they still hold
    recipe = Recipe()
    where = Workspace(out).students / "recipe.toml"
    recipe.update(read_toml(where), str(where))
    if device is not None:
        recipe.distill.device = device
    if margin is not None:
        recipe.export.margin = margin
    baselines.check(kinds, recipe.export.margin)
    students = [m for m in result["models"] if m["role"] == "student"]
    which = recipe.export.checkpoint
    if any(kind in baselines.TRAINED for kind in kinds):
        notes = baselines.train(
            out, kinds, students, which=which, device=recipe.distill.device, listen=listen
        )
        result["notes"] += [note for note in notes if note not in result["notes"]]
    found = baselines.finished(out, students, which)
    measured = _Measured(recipe, out, say)
    task, data = measured.task, measured.data
    rows = [m for m in result["models"] if m["role"] not in _ROLES.values()]
    for student in students:
        measured.add(student["name"], load_student(out / student["folder"]))
    for entry in rows:
        if entry["role"] == "cut":
            sizes = next(s["sizes"] for s in students if s["name"] == entry["of"])
            measured.add(entry["name"], measured.student(measured.ta, sizes))
        elif entry["role"] == "base" and any(s["width"] == 1.0 for s in students):
            measured.add(entry["name"], measured.student(measured.ta, 1.0))
    primary = next((metric["name"] for metric in result["metrics"]), "")
    for baseline in found:
        student = next(s for s in students if s["name"] == baseline.name)
        name = f"{_NAMES[baseline.kind]} {baseline.name.removeprefix('width ')}"
        measured.add(name, measured.student(baselines.load(baseline), 1.0))
        tables = measured.tables[name]
        rows.append(
            {
                "name": name,
                "role": _ROLES[baseline.kind],
                "of": baseline.name,
                "width": student["width"],
                "folder": None,
                "loader": "",
                "stock": False,
                "parity": None,
                **{key: student[key] for key in _COSTS},
                "metrics": intervals.intervals(task, tables, recipe.export.bootstrap),
                "training": spent.training(task, data, baseline.spent, baseline.batch_size),
                "curve": [
                    [step, values["1"]]
                    for step, values in log.evaluations(Workspace(baseline.folder), primary)
                    if values.get("1") is not None
                ],
            }
        )
    result["models"] = rows
    result["margin"] = recipe.export.margin
    result["pairs"] = _pairs(measured, rows, result["metrics"])
    told = story.tell(Report.from_json(result))
    told.report.notes += told.alarms
    result["notes"] = told.report.notes
    write.write(told.report, out)
    for student in students:
        card = out / student["folder"] / "README.md"
        text = card.read_text(encoding="utf-8").partition(_VERDICT)[0]
        said = [rival.sentence for rival in told.rivals if rival.student.name == student["name"]]
        atomic.atomic_write(card, text + (_VERDICT + said[0] + "\n" if said else ""))
    return result


def _exported(out: Path) -> dict[str, Any]:
    try:
        result = json.loads(Workspace(out).report.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MattaError(
            f"There is no report in {out}: run `{command('export', out)}` first."
        ) from None
    except ValueError as error:
        raise MattaError(
            f"{Workspace(out).report} is damaged ({error}): run `{command('export', out)}` again."
        ) from None
    missing = [
        m["folder"]
        for m in result["models"]
        if m["role"] == "student" and not (out / m["folder"]).is_dir()
    ]
    if missing:
        raise MattaError(f"{out / missing[0]} is gone: run `{command('export', out)}` again.")
    return result


class _Measured:
    """What the models said of the held-out examples, by name."""

    def __init__(self, recipe: Recipe, out: Path, say: Say) -> None:
        self.recipe, self.say = recipe, say
        self.device = pick(recipe.distill.device)
        self.ta = load_ta(Workspace(out).ta)
        self.task: Task = tasks_task.task(self.ta.adapter.task, recipe)
        self.data: Data = self.task.data(
            Workspace(out).ta, self.ta.model, training=view.has_statistics(self.ta.model)
        )
        if budget.asked(recipe):  # as in the export: not on the examples that sizes were chosen by
            chose = score.chooses(self.task, self.ta.model, self.data, torch.device("cpu"))
            self.data = score.reported(self.data, chose)
        processes = spent.of_run(Workspace(out)).processes
        self.size = score.at_a_time(recipe.distill, processes)
        self.tables: dict[str, list[Columns]] = {}

    def add(self, name: str, model: nn.Module) -> None:
        """Score a dense model on every held-out split."""
        self.say(f"Measuring {name}.")
        limit = self.recipe.data.eval_examples
        model = model.to(self.device).eval()
        self.tables[name] = [
            score.columns(self.task, model, split, self.size, self.device, limit)
            for split in self.data.held_out
        ]

    def student(self, ta: TA, which: float | Sizes) -> nn.Module:
        """A dense Student of a TA."""
        cpu = torch.device("cpu")
        return measurable(self.task, ta.student(which), self.data.train, self.size, cpu)


def _pairs(
    measured: _Measured, rows: Sequence[Entry], metrics: Sequence[Entry]
) -> list[dict[str, Any]]:
    """Every comparison that the report makes, of each metric, in families that are corrected
    together (Holm).
    """
    students = [m for m in rows if m["role"] == "student"]
    plain = {m["of"]: m for m in rows if m["role"] == "plain"}
    cuts = {m["of"]: m for m in rows if m["role"] == "cut"}
    bases = [m for m in rows if m["role"] == "base" and m["name"] in measured.tables]
    cuts |= {s["name"]: base for s in students for base in bases if s["width"] == 1.0}
    rest = [m for m in rows if m["role"] in ("alone", "scratch") and m["of"] in plain]
    sized = sorted(students, key=lambda m: m["parameters"])
    families = [
        [(s, plain[s["name"]]) for s in students if s["name"] in plain],
        [(m, plain[m["of"]]) for m in rest],
        [(s, cuts[s["name"]]) for s in students if s["name"] in cuts],
        [
            (large, small)
            for i, large in enumerate(sized)
            for small in sized[:i]
            if small["parameters"] < large["parameters"]
        ],
    ]
    wanted = list(dict.fromkeys((a["name"], b["name"]) for family in families for a, b in family))
    if not wanted:
        return []
    measured.say("Comparing them on the same examples.")
    resamples = max(measured.recipe.export.bootstrap, _EACH * max(map(len, families)))
    every = dict(
        zip(
            wanted,
            intervals.between(measured.task, measured.tables, wanted, resamples),
            strict=True,
        )
    )
    found = []
    for family in families:
        compared = [every[a["name"], b["name"]] for a, b in family]
        for metric in metrics:
            name, sign = metric["name"], 1.0 if metric["higher"] else -1.0
            there = [
                (a, b, one[name])
                for (a, b), one in zip(family, compared, strict=True)
                if name in one
            ]
            for (a, b, difference), p in zip(
                there, intervals.holm([d["p"] for _, _, d in there]), strict=True
            ):
                low, high = sorted((sign * difference["low"], sign * difference["high"]))
                margin = measured.recipe.export.margin * abs(b["metrics"][name]["value"])
                pair = {
                    "a": a["name"],
                    "b": b["name"],
                    "metric": name,
                    "gain": sign * difference["value"] + 0.0,
                    "low": low + 0.0,
                    "high": high + 0.0,
                    "margin": margin,
                    "p": difference["p"],
                    "p_holm": p,
                    "test": difference["test"],
                }
                sure = p < 0.05
                verdict = (
                    claims.judged(low, high, margin, sure)
                    if math.isfinite(pair["gain"])
                    else claims.WIDE
                )
                found.append({**pair, "verdict": verdict})
    return found
