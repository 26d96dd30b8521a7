"""The gate: what was written, loaded in a fresh process, gives the outputs of the nested view."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from matta_cli import trust
from matta_cli.data.split import Batch
from matta_cli.errors import MattaError
from matta_cli.formats.programs import call_names
from matta_cli.report.schema import Parity
from matta_cli.students.quantized import Quantized
from matta_cli.students.student import Written
from matta_cli.tasks.task import Task

NEAR = 1e-4  # the largest difference from the view, as a share of its largest output

# The same where weights have half the bits and are computed with as they are: each layer rounds.
ROUNDED = {"bfloat16": 0.1, "float16": 0.02}

# The same of quantized ones, from what was measured: where a thread more or less rounds a sum
# otherwise, a value may come to the next of its 256 steps.
STEPPED = 0.05

# Run in a fresh process, once for all Students and programs.
_RELOAD = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
job = json.load(sys.stdin)
torch.set_num_threads(job["threads"])
inputs = load_file(job["inputs"])
args, kwargs = [inputs[k] for k in job["args"]], {k: inputs[k] for k in job["kwargs"]}
outputs = {}
tensor_of = lambda out: getattr(out, "logits", getattr(out, "last_hidden_state", out))

def run(name, model):  # weights of half the bits: as they are, and then in float32
    if half := getattr(torch, job["dtypes"].get(name, ""), None):
        model.eval()
        for tensor in model.state_dict(keep_vars=True).values():
            tensor.data = tensor.data.to(half) if tensor.is_floating_point() else tensor.data
        fit = lambda t: t.to(half) if t.is_floating_point() else t
        try:
            with torch.no_grad():
                out = model(*map(fit, args), **{k: fit(v) for k, v in kwargs.items()})
            outputs["own " + name] = tensor_of(out).float().contiguous()
        except (RuntimeError, NotImplementedError):
            pass  # not every operator is there for every type on a CPU
    if hasattr(model, "get_inputs"):  # onnxruntime
        names = [i.name for i in model.get_inputs()]
        given = dict(zip([n for n in names if n not in kwargs], args)) | kwargs
        out = torch.from_numpy(model.run(None, {k: v.numpy() for k, v in given.items()})[0])
    else:
        if not isinstance(model, torch.fx.GraphModule):  # a program is in eval mode for good
            model.eval()
            if not getattr(model, "is_quantized", False):
                model.float()  # weights of half the bits are compared in float32
        with torch.no_grad():
            out = model(*args, **kwargs)
    outputs[name] = tensor_of(out).float().contiguous()
"""

# What loads each folder as its user would; the line that it prints says what was tried last.
_OPEN = """
print({said!r}, flush=True)
import {module}
for name, folder in job["folders"][{at}].items():
    run(name, {loader})
"""

_SAVE = """
save_file(outputs, job["outputs"])
"""


def proven(
    students: Sequence[Written],
    quantized: Sequence[Quantized],
    task: Task,
    model: nn.Module,
    probe: Batch,
) -> dict[str, Parity]:
    """How far each reloaded checkpoint and program is from its view, by the names of ``loaders``.

    Quantized ones are compared with what is going to be measured of them. model: the TA, by which
    it is known what the task passes to a model. What stands at padding is not compared: where a
    position sees nothing else, attention has no one right answer. Raises ``MattaError`` for what
    does not load, or gives other outputs.
    """
    found, there = {}, task.present(probe)
    reloaded = _reloaded(students, quantized, task, model, probe)
    for one in quantized:
        near = max(STEPPED, ROUNDED.get(one.of.dtype, 0.0))  # it computes in what it is saved in
        found[one.name] = _parity(one.name, reloaded[one.name], one.expected, there, near)
    for written in students:
        for name in written.loaders:
            found[name] = _parity(name, reloaded[name], written.expected, there)
        name, own = written.student.name, reloaded.get(f"own {written.student.name}")
        if written.dtype in ROUNDED:
            rounded = None if own is None else _rounded(name, own, written)
            found[name] = replace(found[name], dtype=written.dtype, rounded=rounded)
    return found


def _parity(
    name: str, got: Tensor, expected: Tensor, there: Tensor | None, near: float = NEAR
) -> Parity:
    if got.shape != expected.shape:
        shapes = f"{list(got.shape)}, not {list(expected.shape)}"
        raise MattaError(f"{name} reloads to outputs of shape {shapes}.")
    if there is not None and got.ndim == 3 and got.shape[:2] == there.shape:
        got, expected = got[there], expected[there]
    difference = (got - expected).abs().max().item()
    if not difference <= near * max(1.0, expected.abs().max().item()):
        much = f"gives other outputs than before, by {difference:.1e}"
        raise MattaError(f"{name}, reloaded, {much}: not exported.")
    return Parity(torch.equal(got, expected), difference)


def _rounded(name: str, got: Tensor, written: Written) -> float:
    """How far what is computed in a Student's own type is from its view in float32.

    It is a share of the largest output. Raises ``MattaError`` where that is too far.
    """
    largest = max(1.0, written.whole.abs().max().item())
    share = (got - written.whole).abs().max().item() / largest
    if not share <= ROUNDED[written.dtype]:
        much = f"differs from the nested view by {share:.1%} of the largest output"
        instead = "save it with --dtype float32, or --dtype bfloat16 where numbers are large"
        raise MattaError(f"{name}, computed in {written.dtype}, {much}: {instead}.")
    return share


def _reloaded(
    students: Sequence[Written],
    quantized: Sequence[Quantized],
    task: Task,
    model: nn.Module,
    probe: Batch,
) -> dict[str, Tensor]:
    """The outputs of all checkpoints and programs, by a fresh process."""
    by_loader: dict[str, dict[str, str]] = {}
    written = [*((one.folder, one.loaders) for one in students)]
    for folder, loaders in [*written, *((one.folder, one.loaders) for one in quantized)]:
        for name, loader in loaders.items():
            by_loader.setdefault(loader, {})[name] = str(folder)
    # ours last: what is stock loads where matta was never imported
    order = sorted(by_loader, key=lambda loader: _module(loader) == __package__.partition(".")[0])
    positional, keyword = call_names(task, model, probe)
    args = {f"arg{i}": name for i, name in enumerate(positional)}
    with tempfile.TemporaryDirectory() as temp:
        inputs, answers = Path(temp) / "inputs.safetensors", Path(temp) / "outputs.safetensors"
        given = {key: probe[name].contiguous() for key, name in {**args, **keyword}.items()}
        save_file(given, str(inputs))
        job = {"inputs": str(inputs), "outputs": str(answers), "threads": torch.get_num_threads()}
        job |= {"folders": [by_loader[loader] for loader in order]}
        job |= {"args": list(args), "kwargs": list(keyword)}
        job |= {"dtypes": {one.student.name: one.dtype for one in students if one.dtype in ROUNDED}}
        _run(order, json.dumps(job))
        return load_file(str(answers))


def _module(loader: str) -> str:
    return loader.partition(".")[0]


def _run(loaders: Sequence[str], job: str) -> None:
    """Load and run what each loader loads, in a process of its own."""
    code = [_RELOAD]
    for at, loader in enumerate(loaders):
        how = loader.format(folder="folder")
        code.append(_OPEN.format(said=loader, module=_module(loader), at=at, loader=how))
    isolated = trust.isolated("".join([*code, _SAVE]))
    done = subprocess.run(isolated, input=job, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        tried = next((line for line in reversed(done.stdout.splitlines()) if line in loaders), None)
        raise MattaError(f"A Student does not load with {tried or 'torch'}: {said}")
