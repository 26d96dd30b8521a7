"""export: trained TA -> Students as ordinary dense checkpoints, each past the parity gate, and the
report on them.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from matta_cli.adapter import Adapter, Sizes
from matta_cli.conversion import inspect
from matta_cli.data.split import Batch, Data
from matta_cli.devices.device import pick
from matta_cli.errors import MattaError
from matta_cli.files import atomic, card
from matta_cli.files.workspace import Workspace
from matta_cli.measure import cost, intervals, score
from matta_cli.measure.students import measurable, own_statistics
from matta_cli.models import save, tokenizer
from matta_cli.models.folders import load_student, load_ta, reached
from matta_cli.models.ta import TA
from matta_cli.nested.sizes import full_sizes, kinds, nested_axes, own_sizes
from matta_cli.nested.view import has_statistics
from matta_cli.progress import Listener, quiet
from matta_cli.report import numbers, search_table, story, write
from matta_cli.search.run import check, search
from matta_cli.settings.budget import asked
from matta_cli.settings.recipe import Recipe
from matta_cli.settings.resolve import run_recipe
from matta_cli.students.programs import PROGRAMS, Listening, call_names
from matta_cli.tasks import task as tasks_task
from matta_cli.tasks.task import Task
from matta_cli.training import log, spent, teacher_file
from matta_cli.training.teacher import load_teacher
from matta_cli.version import __version__

Say = Callable[[str], None]


FORMATS = ("stock", "matta", *PROGRAMS)


DTYPES = ("float32", "bfloat16", "float16")


# Run with `python -c` in a fresh process: loads each folder as its user would, and runs it on the
# same inputs.
_RELOAD = """
import json, sys
{imports}
import torch
from safetensors.torch import load_file, save_file
job = json.load(sys.stdin)
torch.set_num_threads(job["threads"])
inputs = load_file(job["inputs"])
outputs = {{}}
for name, folder in job["folders"].items():
    model = {loader}
    args, kwargs = [inputs[k] for k in job["args"]], {{k: inputs[k] for k in job["kwargs"]}}
    if hasattr(model, "get_inputs"):  # onnxruntime
        names = [i.name for i in model.get_inputs()]
        given = dict(zip([n for n in names if n not in kwargs], args)) | kwargs
        out = torch.from_numpy(model.run(None, {{k: v.numpy() for k, v in given.items()}})[0])
    else:
        if not isinstance(model, torch.fx.GraphModule):  # an exported program is in eval mode for good
            model.eval().float()  # weights may be kept in half the bits; they are compared in float32
        with torch.no_grad():
            out = model(*args, **kwargs)
    outputs[name] = getattr(out, "logits", getattr(out, "last_hidden_state", out)).contiguous()
save_file(outputs, job["outputs"])
"""


@dataclass(frozen=True)
class _Wanted:
    """A Student to export: of a width, or of the sizes that a budget led to."""

    name: str
    which: float | Sizes
    width: float | None

    @property
    def folder(self) -> str:
        return self.name.replace(" ", "-")


@dataclass
class _Cut:
    """One Student on its way out: the outputs of the nested view, which it must give again, and
    what loads it.
    """

    wanted: _Wanted
    expected: torch.Tensor
    stock: bool
    loader: str
    programs: dict[str, str]  # what loads each of them


def export(
    recipe: Recipe,
    out: Path,
    *,
    overwrite: bool = False,
    say: Say = lambda _: None,
    listen: Listener = quiet,
) -> dict[str, Any]:
    """Cut Students of the recipe's widths and budgets out of the trained TA into ``out/students``;
    write ``out/report.*``.

    Returns the report (``report.json``). Raises ``MattaError`` for widths that the TA does not
    hold, budgets that are not possible, a Student that does not reload to the view's outputs, or
    missing data.
    """
    widths, targets = sorted(set(recipe.export.widths)), asked(recipe)
    formats, dtype = _formats(recipe)
    own = "matta" in formats
    if targets:
        check(recipe)
    base_ta = load_ta(Workspace(out).ta)
    if not widths and not targets:
        raise MattaError("There are no widths to export: pass --widths 0.25,0.5,1.0, say.")
    for width in widths:
        base_ta.sizes(width)
    sizes = {width: tuple(base_ta.sizes(width).values()) for width in widths}
    for a, b in itertools.pairwise(widths):
        if sizes[a] == sizes[b]:
            raise MattaError(
                f"Widths {a:g} and {b:g} give the same Student at this TA's sizes: leave one out."
            )
    atomic.refuse_existing(Workspace(out).students, overwrite)
    run = reached(out, recipe.export.checkpoint, say)
    last, ta, trained, used = run.folder, run.ta, run.counters, run.recipe
    known = spent.trained_widths(used.distill, ta)
    menu = ", ".join(f"{w:g}" for w in known)
    notes = [
        f"Width {w:g} was never trained ({menu} were): train what you export."
        for w in widths
        if w not in known
    ]
    for width in widths:
        kept = ta.student(width).layers
        if kept is not None and width != 1.0:
            notes.append(f"Width {width:g} keeps layers {inspect.numbers(kept)} of the base's.")
    if trained.get("best_step") == trained["step"]:
        value, metric = (
            trained["best_value"],
            tasks_task.task(ta.adapter.task, recipe).metrics[0].label,
        )
        notes.append(
            f"Step {trained['step']} was the best by the {metric} of width {used.distill.best:g} during training ({value:.4g})."
        )
    elif trained["step"] < used.distill.steps:
        notes.append(f"The run stopped at step {trained['step']} of {used.distill.steps}.")
    say(f"Found the TA of step {trained['step']} in {last}.")
    wanted = [_Wanted(f"width {width:g}", width, width) for width in widths]
    if targets:
        found, chosen = search(recipe, out, targets, measured=False, listen=listen)
        wanted += [_Wanted(one.budget.name, one.sizes, one.width) for one in chosen]
        notes += [*search_table.choices(found), *found["notes"]]
    device = pick(recipe.distill.device)
    size = score.at_a_time(recipe.distill, trained.get("processes", 1))
    task = tasks_task.task(ta.adapter.task, recipe)
    data = task.data(last, ta.model, training=has_statistics(ta.model))
    if targets:  # what is reported is measured on other examples than sizes were chosen by
        data = score.reported(data, score.chooses(task, ta.model, data, torch.device("cpu")))
    probe = data.held_out[0].batch(range(min(4, len(data.held_out[0]))))

    cuts, lineage = [], {**ta.card["lineage"], "ta": atomic.digest(last)}
    with atomic.atomic_folder(Workspace(out).students, overwrite=overwrite) as folder:
        for one in wanted:  # one by one, from views: no second copy of the weights is in memory
            view = ta.at(one.which).eval()
            buffers = own_statistics(task, ta.student(one.which), data.train, size)
            if isinstance(view, nn.Module):
                # a Student that shares no weights, in the ablation of that
                view.load_state_dict(buffers, strict=False)
            else:
                view.buffers = buffers
            if dtype is not torch.float32:
                view = ta.student(one.which).dense()
                view.load_state_dict(buffers, strict=False)
                view = view.to(dtype).float()  # what is kept of the weights
            reason = ta.student(one.which).unsupported
            stock = not own and not reason
            loader = ta.adapter.loader if stock else "matta_cli.load_student({folder})"
            if not stock and "stock" in formats:
                raise MattaError(
                    f"{one.name} cannot be a stock checkpoint: {reason}. Without --format stock it is saved in "
                    "matta's own format."
                )
            target = folder / one.folder
            _save(ta, one, buffers, target, last, lineage, own=own, dtype=dtype)
            for name in formats:
                if name in PROGRAMS and not (target / PROGRAMS[name][0]).exists():
                    say(f"Writing {PROGRAMS[name][0]} of {one.name}.")
                    PROGRAMS[name][1](
                        task,
                        load_student(target),
                        cost.repeated(probe, 3),
                        target / PROGRAMS[name][0],
                    )
            written = {name: PROGRAMS[name][2] for name in formats if name in PROGRAMS}
            cuts.append(_Cut(one, Listening(view).run(task, probe).output, stock, loader, written))
        say("Reloading every Student in a fresh process.")
        parity = _parity(ta, cuts, folder, probe, task)
        entries = _measure(
            recipe, task, data, ta, base_ta, cuts, folder, out, last, parity, device, say, size
        )
        for budget in targets:
            entry = next(e for e in entries if e["name"] == budget.name)
            taken = entry["latency"][str(recipe.export.batch_size)]["median"]
            limit = dict(budget.limits).get("latency", taken)
            if taken > limit:
                over = f"{numbers.in_seconds(taken)} instead of {numbers.in_seconds(limit)}"
                notes.append(
                    f"{budget.name}: measured once more for this report, its latency is over the limit: {over}."
                )
        result = _report(recipe, task, data, ta, entries, notes, out, device, trained, lineage)
        for cut in cuts:
            entry = next(e for e in entries if e["name"] == cut.wanted.name)
            atomic.atomic_write(
                folder / cut.wanted.folder / "README.md", _model_card(entry, result)
            )
        atomic.atomic_write(folder / "recipe.toml", recipe.text())
        # before the Students appear: what fails here leaves none without their report
        write.write(result, out)
    return result


def _formats(recipe: Recipe) -> tuple[list[str], torch.dtype]:
    """The formats and the type of the weights. Raises ``MattaError`` for what is not known or does
    not go together.
    """
    formats, dtype = list(dict.fromkeys(recipe.export.format)), recipe.export.dtype
    for name in formats:
        if name not in FORMATS:
            raise MattaError(f"--format {name!r} is not known: {', '.join(FORMATS)}.")
    if {"stock", "matta"} <= set(formats):
        raise MattaError(
            "--format stock,matta is not possible: a Student's folder holds one checkpoint."
        )
    if dtype not in DTYPES:
        raise MattaError(f"--dtype {dtype!r} is not known: {', '.join(DTYPES)}.")
    programs = [name for name in formats if name in PROGRAMS]
    if programs and dtype != "float32":
        raise MattaError(
            f"--format {programs[0]} with --dtype {dtype} is not supported: programs are written in float32."
        )
    return formats, getattr(torch, dtype)


def _save(
    ta: TA,
    one: _Wanted,
    buffers: dict[str, torch.Tensor],
    folder: Path,
    last: Path,
    lineage: dict[str, Any],
    *,
    own: bool,
    dtype: torch.dtype,
) -> None:
    folder.mkdir()
    reason = ta.student(one.which).save(folder, buffers, own=own, dtype=dtype)
    tokenizer.copy_companions(last, folder)
    with torch.device("meta"):
        student = ta.adapter.build(ta.model, own_sizes(ta.axes, ta.sizes(one.which)))
    axes = nested_axes(ta.adapter, student, list(kinds(ta.base)))
    lineage = {**lineage, "student": one.name, "width": one.width}
    card.write_card(folder, ta.adapter, axes, full_sizes(axes), lineage)
    if not reason and not own and type(ta.adapter).export is not Adapter.export:
        ta.adapter.export(load_student(folder), folder)


def _parity(
    ta: TA, cuts: list[_Cut], folder: Path, probe: Batch, task: Task
) -> dict[str, dict[str, Any]]:
    """Reload every folder through its loader in a fresh process; compare with the nested views'
    outputs.
    """
    from safetensors.torch import load_file, save_file

    names = call_names(task, ta.model, probe)
    reloaded: dict[str, torch.Tensor] = {}
    by_loader: dict[str, dict[str, str]] = {}
    for cut in cuts:
        where = str(folder / cut.wanted.folder)
        by_loader.setdefault(cut.loader, {})[cut.wanted.name] = where
        for name, loader in cut.programs.items():
            by_loader.setdefault(loader, {})[f"{cut.wanted.name} as {name}"] = where
    with tempfile.TemporaryDirectory() as temp:
        inputs, outputs = Path(temp) / "inputs.safetensors", Path(temp) / "outputs.safetensors"
        save_file(
            {
                k: probe[v].contiguous()
                for k, v in {**dict(_numbered(names[0])), **names[1]}.items()
            },
            str(inputs),
        )
        for loader, some in by_loader.items():
            job = {
                "inputs": str(inputs),
                "outputs": str(outputs),
                "threads": torch.get_num_threads(),
                "folders": some,
                "args": [k for k, _ in _numbered(names[0])],
                "kwargs": list(names[1]),
            }
            code = _RELOAD.format(
                imports=f"import {loader.partition('.')[0]}", loader=loader.format(folder="folder")
            )
            done = subprocess.run(
                [sys.executable, "-c", code], input=json.dumps(job), capture_output=True, text=True
            )
            if done.returncode != 0:
                raise MattaError(
                    f"A Student does not load with {loader}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
                )
            reloaded |= load_file(str(outputs))
    expected = {cut.wanted.name: cut.expected for cut in cuts}
    expected |= {
        f"{cut.wanted.name} as {name}": cut.expected for cut in cuts for name in cut.programs
    }
    found = {}
    for name, want in expected.items():
        got = reloaded[name]
        if got.shape != want.shape:
            raise MattaError(
                f"{name} reloads to outputs of shape {list(got.shape)}, not {list(want.shape)}."
            )
        difference = (got - want).abs().max().item()
        if not difference <= 1e-4 * max(1.0, want.abs().max().item()):
            raise MattaError(
                f"{name}, reloaded, differs from the nested view by {difference:.1e}: not exported."
            )
        found[name] = {"exact": torch.equal(got, want), "max_difference": difference}
    return found


def _numbered(names: list[str]) -> list[tuple[str, str]]:
    """Positional inputs by number, so that they can be saved by name."""
    return [(f"arg{i}", name) for i, name in enumerate(names)]


def _measure(
    recipe: Recipe,
    task: Task,
    data: Data,
    ta: TA,
    base_ta: TA,
    cuts: list[_Cut],
    folder: Path,
    out: Path,
    last: Path,
    parity: dict[str, dict[str, Any]],
    device: torch.device,
    say: Say,
    size: int,
) -> list[dict[str, Any]]:
    """One entry of the report per model: Teacher, TA, base, Students, and their untrained cuts."""
    entries: list[dict[str, Any]] = []
    dense: dict[str, nn.Module] = {}

    def add(
        name: str,
        role: str,
        model: nn.Module,
        width: float | None = None,
        where: Path | None = None,
        **more: Any,
    ) -> None:
        dense[name] = model.to(device).eval()
        weights = cost.weight_bytes(where) if where is not None else 0
        entries.append(
            {
                "name": name,
                "role": role,
                "width": width,
                "folder": None,
                "loader": "",
                "stock": False,
                "parity": None,
                "parameters": cost.parameters(model),
                "bytes": weights or None,
                **more,
            }
        )

    if teacher_file.is_file(recipe.distill.teacher):
        say("The Teacher is a file of outputs: the report goes without it.")
    elif recipe.distill.teacher:
        try:
            teacher, source = load_teacher(recipe, task, ta, device)
            add("Teacher", "teacher", teacher, None, source.beside)
        except MattaError as error:
            # the run is over: a Teacher that has gone away must not lose the export
            say(f"The report goes without the Teacher: {error}")
    add("TA", "ta", ta.model, ta.widest, last)
    with tempfile.TemporaryDirectory() as temp:
        base = base_ta.student(1.0).dense()
        save.save_model(base_ta.adapter, base, Path(temp))
        add("base", "base", base, 1.0, Path(temp))
    for cut in cuts:
        student, where = cut.wanted, f"students/{cut.wanted.folder}"
        shown = cut.loader.format(folder=repr(str(out / where)))
        add(
            student.name,
            "student",
            load_student(folder / student.folder),
            student.width,
            folder / student.folder,
            folder=where,
            loader=shown,
            stock=cut.stock,
            parity=parity[student.name],
            sizes=ta.sizes(student.which),
            layers=ta.student(student.which).layers,
            programs={
                name: {
                    "loader": loader.format(folder=repr(str(out / where))),
                    **parity[f"{student.name} as {name}"],
                }
                for name, loader in cut.programs.items()
            },
        )
    # 1.0 is the base
    for trained in [
        entry for entry in entries if entry["role"] == "student" and entry["width"] != 1.0
    ]:
        entries.append(
            {
                "name": f"untrained cut {trained['name'].removeprefix('width ')}",
                "role": "cut",
                "width": trained["width"],
                "folder": None,
                "loader": "",
                "stock": False,
                "parity": None,
                "parameters": trained["parameters"],
                "bytes": trained["bytes"],
                "of": trained["name"],
            }
        )

    example = data.held_out[0].batch(range(min(recipe.export.batch_size, len(data.held_out[0]))))
    inputs = {name: tensor.to(device) for name, tensor in example.items()}
    say("Measuring latency.")
    batches = sorted({1, recipe.export.batch_size, 4 * recipe.export.batch_size})
    with cost.threads(recipe.export.threads):
        taken = {n: cost.latencies(task, dense, cost.repeated(inputs, n)) for n in batches}
    one = cost.repeated(inputs, 1)
    for entry in entries:
        name = entry["name"]
        say(f"Measuring {name}.")
        # made when its turn comes, and let go; the same shapes cost the same
        if entry["role"] == "cut":
            which = next(cut.wanted.which for cut in cuts if cut.wanted.name == entry["of"])
            model = measurable(
                task, base_ta.student(which), data.train, size, torch.device("cpu")
            ).to(device)
            timed_as = entry["of"]
        else:
            model, timed_as = dense[name], name
        entry["latency"] = {str(n): taken[n][timed_as] for n in batches}
        entry["macs"] = cost.macs(task, model, one)
        entry["peak_memory"] = cost.peak_memory(
            task, model, cost.repeated(inputs, recipe.export.batch_size)
        )
        tables = [
            score.columns(task, model, split, size, device, recipe.data.eval_examples)
            for split in data.held_out
        ]
        entry["metrics"] = intervals.intervals(task, tables, recipe.export.bootstrap)
    return entries


def _report(
    recipe: Recipe,
    task: Task,
    data: Data,
    ta: TA,
    entries: list[dict[str, Any]],
    notes: list[str],
    out: Path,
    device: torch.device,
    trained: dict[str, Any],
    lineage: dict[str, Any],
) -> dict[str, Any]:
    with cost.threads(recipe.export.threads):
        machine = cost.device_card(device)
    present = {name for entry in entries for name in entry["metrics"]}
    # a report says what is better
    metrics = [m for m in task.metrics if m.name in present and m.higher is not None]
    primary = metrics[0].name if metrics else ""
    curve = [
        {"step": step, "values": values}
        for step, values in log.evaluations(Workspace(out), primary)
    ]
    took = spent.of_run(Workspace(out), recipe.export.checkpoint)
    training = spent.training(task, data, took, run_recipe(out).distill.batch_size)
    for entry in entries:
        if entry["role"] in ("student", "ta"):
            entry["training"] = training
    students = {entry["name"]: entry["sizes"] for entry in entries if entry["role"] == "student"}
    result = {
        "format": 1,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "matta": __version__,
        "task": task.name,
        "adapter": ta.adapter.name,
        "data": data.description,
        "unit": data.unit,
        "device": machine,
        "metrics": [{"name": m.name, "label": m.label, "higher": m.higher} for m in metrics],
        "batch_size": recipe.export.batch_size,
        "models": entries,
        "notes": notes,
        "training": {"steps": trained["step"], "seconds": trained["seconds"], "curve": curve},
        "axes": [vars(strip) for strip in inspect.strips(ta, Workspace(out).ta, students)],
        "lineage": lineage,
        "recipe": recipe.text(),
    }
    result["notes"] = [*notes, *story.alarms(result)]
    return result


def _model_card(entry: dict[str, Any], result: dict[str, Any]) -> str:
    """README.md of one Student: what it is cut from, how good it is, what it costs, how to load it,
    how it was made.
    """
    lineage = result["lineage"]
    lines = [f"# Student {entry['name']}", ""]
    lines += [
        f"Cut by matta {result['matta']} out of a Teaching Assistant of {lineage['source']}.",
        "",
        "```python",
    ]
    loaders = [entry["loader"], *(made["loader"] for made in entry["programs"].values())]
    for loader in loaders:
        lines += [f"import {loader.partition('.')[0]}", f"model = {loader}", ""]
    lines[-1:] = ["```", "", "| | |", "|---|---|"]
    rows = [("parameters", f"{entry['parameters']:,}"), ("MACs per example", f"{entry['macs']:,}")]
    rows += [("bytes of weights", f"{entry['bytes']:,}")] if entry["bytes"] else []
    for size, taken in entry["latency"].items():
        rows.append(
            (
                f"latency, batch {size}, median (95th percentile)",
                f"{taken['median']:.4g} s ({taken['p95']:.4g} s)",
            )
        )
    for metric in result["metrics"]:
        value = entry["metrics"].get(metric["name"])
        if value:
            rows.append(
                (
                    metric["label"],
                    f"{value['value']:.4g} (95 %: {value['low']:.4g} to {value['high']:.4g})",
                )
            )
    machine = result["device"]
    rows += [
        ("measured on", result["data"]),
        ("by", f"{machine['name']}, {machine['threads']} threads, torch {machine['torch']}"),
    ]
    rows += [
        ("weights of the model that was converted", lineage["digest"]),
        ("weights of the trained TA", lineage["ta"]),
    ]
    lines += [f"| {name} | {value} |" for name, value in rows]
    lines += [
        "",
        "<details><summary>The recipe</summary>",
        "",
        "```toml",
        result["recipe"].strip(),
        "```",
        "",
        "</details>",
        "",
    ]
    return "\n".join(lines)
