"""Any module: axes traced with torch-pruning's graph, verified on the module, and frozen as data.

A model is known by its *builder*, a function without arguments that makes it
(``my_pkg.models:build``), so that a folder holds tensors and JSON only. timm and transformers
models need none of the user's own.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from matta_adapters.advice import example_for
from matta_adapters.builders import called, found, imported
from matta_adapters.calls import Inputs, checked_output, output_of, run
from matta_adapters.plan import ATTRIBUTE, FILE, Plan
from matta_adapters.skeleton import as_named, fill
from matta_adapters.tracing import nest, resized
from matta_adapters.trial import built
from matta_cli.adapter import PROGRAM, Adapter, Axis, Sizes, Source
from matta_cli.errors import MattaError, said
from matta_cli.trust import is_code

_SHAPE = re.compile(r"(?:(\w+)=)?(\d+(?:x\d+)*)(?::(\w+))?")
_TEXT = "input_ids=1x16:int64"  # what a language model of transformers is called with
_PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


def _speaks(model: Any) -> bool:
    """Whether a model of transformers goes on with the text that it is given."""
    writes = getattr(model, "can_generate", None)
    return bool(writes and writes() and not model.config.is_encoder_decoder)


class Auto(Adapter):
    """Any ``nn.Module`` that torch-pruning can trace: ``pkg.mod:build`` with ``--example``, a timm
    or transformers model.
    """

    name = "auto"

    def matches(self, source: Source) -> bool:
        if source.folder is not None:
            return (source.folder / FILE).is_file()
        return bool(source.builder)

    def load(self, source: Source) -> nn.Module:
        self.notes = []
        if source.folder is not None and (source.folder / FILE).is_file():
            return self._from_folder(source.folder, source.name)
        model, builder, arguments = found(source)
        if source.builder and source.tensors is not None:
            named = as_named(model.state_dict(), source.tensors)
            model = fill(model, _with_ties(model, named), source.name)
        model = model.cpu().float().eval()
        size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
        example = source.example or ("x".join(map(str, (1, *size))) if size else "")
        task = source.task
        if not (example or source.builder) and _speaks(model):
            example, task = _TEXT, task or "causal_lm"
            self.notes.append(
                f"Taken as a language model that is called with {_TEXT} (--task and --example say "
                "otherwise)."
            )
        plan = Plan(builder, arguments, example, task)
        if example:
            plan = self._described(model, plan, source.name)
        setattr(model, ATTRIBUTE, plan)
        _dress(model, plan)
        self.task = plan.task
        return model

    def axes(self, model: nn.Module) -> list[Axis]:
        plan = Plan.of(model)
        if plan.axes is None:
            plan = self._traced(model, plan)
            setattr(model, ATTRIBUTE, plan)
        self.loader = PROGRAM if plan.exports else ""
        assert plan.axes is not None
        return list(plan.axes)

    def build(self, model: nn.Module, sizes: Sizes) -> nn.Module:
        axes, plan = self.axes(model), Plan.of(model)
        made = built(model, axes, plan.repeats, sizes, plan.whole)
        setattr(made, ATTRIBUTE, replace(plan, axes=tuple(resized(axes, sizes))))
        return made

    def save(self, model: nn.Module, folder: Path) -> None:
        from safetensors.torch import save_file

        axes, state = self.axes(model), model.state_dict()
        tensors = {}
        for name in sorted({*_ties(model).values()}):
            own = state[name].detach().cpu()
            tensors[name] = own.clone(memory_format=torch.contiguous_format)
        save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})
        written = {"format": 1, **asdict(replace(Plan.of(model), axes=tuple(axes), given=None))}
        del written["given"]
        (folder / FILE).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")

    def _from_folder(self, folder: Path, name: str) -> nn.Module:
        from safetensors.torch import load_file

        plan = Plan.read(folder)
        assert plan.axes is not None
        model = called(plan.builder, plan.arguments, folder).float()
        sizes = {axis.name: axis.size for axis in plan.axes}
        try:
            model = built(model, resized(plan.axes, plan.whole), plan.repeats, sizes)
        except (KeyError, AttributeError, IndexError, RuntimeError) as error:
            raise MattaError(
                f"{name}: {plan.builder} no longer builds the model that was converted ({error}): "
                "convert it again."
            ) from error
        model = fill(model, _with_ties(model, load_file(str(folder / "model.safetensors"))), name)
        setattr(model, ATTRIBUTE, plan)
        plan.check(model, _inputs(plan) if plan.example else None, folder)
        _dress(model, plan)
        self.task, self.loader = plan.task, PROGRAM if plan.exports else ""
        return model

    def _described(self, model: nn.Module, plan: Plan, name: str) -> Plan:
        """The plan with its task, and with the preprocessing of images. Runs the model once."""
        if is_code(plan.example):
            inputs = _given(plan.example)
            plan = replace(plan, example=_shapes(inputs, plan.example), given=inputs)
        self.example, inputs = plan.example, plan.given or _example(plan.example)
        output = checked_output(copy.deepcopy(model).requires_grad_(True), inputs, name)
        given, alone = inputs.tensors(), len(inputs.args) == 1 and not inputs.kwargs
        image = alone and given[0].dim() == 4 and given[0].is_floating_point() and output.dim() == 2
        task = plan.task or ("image_classification" if image else "")
        if not task:
            tasks = sorted({one.name for one in entry_points(group="matta.tasks")})
            raise MattaError(f"{name}: what is this model for? Pass --task ({', '.join(tasks)}).")
        plan = replace(plan, task=task)
        _inputs(plan)  # refuses an example that the task does not call the model with
        if task != "image_classification":
            return plan
        own = getattr(model, "pretrained_cfg", None) or {}
        known = {key: own[key] for key in _PREPROCESSING if key in own}
        known["input_size"] = list(given[0].shape[1:])
        if "mean" not in known and getattr(model, "config", None) is None:
            self.notes.append(
                "Images are normalised with ImageNet's mean and standard deviation (assumed): set "
                "pretrained_cfg = {'mean': ..., 'std': ...} on the model if its training was "
                "otherwise."
            )
            known["crop_pct"] = 1.0
        return replace(plan, preprocessing=known)

    def _traced(self, model: nn.Module, plan: Plan) -> Plan:
        """The plan with the model's axes, and whether it exports; what was left whole is noted."""
        if not plan.example:
            raise MattaError(
                f"{plan.builder}: pass --example, the shapes of the model's inputs; by its first "
                f"layer and its forward, --example {example_for(model)}, say."
            )
        inputs = _inputs(plan)
        nested = nest(model, inputs, plan.builder)
        for reason, names in nested.whole.items():
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            self.notes.append(f"Left whole, because {reason}: {', '.join(names[:6])}{more}.")
        try:
            _export(model, inputs)
            exports = True
        except Exception as error:  # torch.export raises what its tracer runs into
            exports = False
            self.notes.append(
                f"{plan.builder} does not export ({said(error)[:200]}), so its Students load with "
                "matta_cli.load_student and need the code of the model."
            )
        whole = {axis.name: axis.size for axis in nested.axes}
        axes = tuple(nested.axes)
        return replace(plan, axes=axes, repeats=nested.repeats, whole=whole, exports=exports)


def _example(text: str) -> Inputs:
    """Inputs of the shapes that ``--example`` names: ``1x3x32x32``, ``input_ids=1x16:int64``."""
    inputs, generator = Inputs(), torch.Generator().manual_seed(0)
    for part in map(str.strip, text.split(",")):
        match = _SHAPE.fullmatch(part)
        dtype = getattr(torch, match[3] or "float32", None) if match else None
        if match is None or not isinstance(dtype, torch.dtype):
            raise MattaError(
                f"--example {text!r} is not understood at {part!r}: write 1x3x224x224, "
                "input_ids=1x16:int64, several with commas, or the name of a function that gives "
                "the inputs (pkg.mod:fn)."
            )
        shape = [int(n) for n in match[2].split("x")]
        if dtype.is_floating_point:
            tensor = torch.randn(shape, generator=generator).to(dtype)
        else:  # 0 and 1 are in every vocabulary
            tensor = torch.randint(2, shape, generator=generator).to(dtype)
        if match[1]:
            inputs.kwargs[match[1]] = tensor
        elif inputs.kwargs:
            raise MattaError(
                f"--example {text!r}: inputs without a name come before those with one."
            )
        else:
            inputs.args = (*inputs.args, tensor)
    return inputs


def _given(function: str) -> Inputs:
    """The inputs that the user's function gives."""
    given = imported(function)()
    if isinstance(given, Mapping):
        return Inputs(kwargs=dict(given))
    return Inputs(args=tuple(given) if isinstance(given, (tuple, list)) else (given,))


def _shapes(inputs: Inputs, function: str) -> str:
    """The shapes of inputs, as ``_example`` reads them: what a folder keeps of a function."""
    named = [("", value) for value in inputs.args]
    named += [(f"{name}=", value) for name, value in inputs.kwargs.items()]
    parts = []
    for name, value in named:
        if not isinstance(value, Tensor) or not value.dim():
            what = f"{name}{type(value).__name__}"
            raise MattaError(f"--example {function}: a tensor of sizes is needed, not {what}.")
        dtype = str(value.dtype).removeprefix("torch.")
        shape = "x".join(map(str, value.shape))
        parts.append(f"{name}{shape}" + ("" if dtype == "float32" else f":{dtype}"))
    return ",".join(parts)


def _inputs(plan: Plan) -> Inputs:
    """The example as the task calls the model, two of it.

    Raises ``MattaError`` where the task has no such inputs.
    """
    inputs, task, wanted = plan.given or _example(plan.example), plan.task, ""
    alone = len(inputs.args) == 1 and not inputs.kwargs
    if task == "image_classification" and not alone:
        wanted = "one unnamed tensor"
    if task == "causal_lm":
        if alone:
            inputs = Inputs(kwargs={"input_ids": inputs.args[0]})
        if inputs.args or set(inputs.kwargs) != {"input_ids"}:
            wanted = "input_ids=...:int64 alone"
    if task == "ranking" and (inputs.args or not {"dense", "categorical"} >= set(inputs.kwargs)):
        wanted = "dense=... or categorical=...:int64"
    if wanted:
        raise MattaError(
            f"--example {plan.example!r}: the task {task} calls a model with {wanted}. "
            "Give the module a forward that takes that."
        )
    # A batch of one is a special case to torch.export.
    one = all(t.dim() and len(t) == 1 for t in inputs.tensors())
    return inputs.map(lambda t: torch.cat([t, t.flip(-1)])) if one else inputs


def _export(model: nn.Module, inputs: Inputs) -> None:
    """Make a program of the model, for any number of examples and of tokens, to see if it can be.

    Raises whatever torch.export does where it cannot.
    """
    whole: Any = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    forward = whole.forward

    @functools.wraps(forward)
    def tensor_alone(*args: Any, **kwargs: Any) -> Tensor:
        return output_of(forward(*args, **kwargs))

    def free(tensor: Tensor) -> dict[int, Any]:
        dims = 1 if tensor.is_floating_point() else min(2, tensor.dim())
        return dict.fromkeys(range(dims), torch.export.Dim.AUTO)

    whole.forward = tensor_alone
    given = inspect.signature(forward).bind(*inputs.args, **inputs.kwargs).arguments
    shapes = {name: free(t) if isinstance(t, Tensor) else None for name, t in given.items()}
    # Releases of torch.export differ in how they see free sizes in *args and **kwargs.
    named = not any(isinstance(value, (tuple, dict)) for value in given.values())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.export.export(
            whole, inputs.args, inputs.kwargs, dynamic_shapes=shapes if named else None
        )


def _ties(model: nn.Module) -> dict[str, str]:
    """Every name of the state dict -> the first name of the same tensor."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}


def _with_ties(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors``, and those that a tied tensor of ``model`` has under another of its names."""
    ties, values = _ties(model), dict(tensors)
    known: dict[str, Tensor] = {}
    for name, first in ties.items():
        if name in tensors:
            known.setdefault(first, tensors[name])
    for name, first in ties.items():
        if first in known:
            values.setdefault(name, known[first])
    return values


def _dress(model: Any, plan: Plan) -> None:
    """Set what the task asks a model about, where the model does not say it itself."""
    if not plan.example:
        return
    inputs = _inputs(plan)
    bare = getattr(model, "config", None) is None
    if plan.task == "image_classification":
        own = getattr(model, "pretrained_cfg", None) or {}
        model.pretrained_cfg = {**own, **plan.preprocessing}
        if bare and not isinstance(getattr(model, "num_classes", None), int):
            with torch.no_grad():
                model.num_classes = run(model.eval(), inputs).shape[1]
    if plan.task == "causal_lm" and bare:
        with torch.no_grad():
            vocabulary, length = run(model.eval(), inputs).shape[-1], inputs.tensors()[0].shape[1]
        model.config = SimpleNamespace(vocab_size=vocabulary, max_position_embeddings=length)
    if plan.task == "ranking":
        if isinstance(getattr(model, "dense", None), nn.Module):
            raise MattaError(
                f"{plan.builder}: the task ranking reads how many dense features there are in "
                "model.dense, which is a layer here: give that layer another name."
            )
        if not hasattr(model, "dense"):
            model.dense = inputs.kwargs["dense"].shape[1] if "dense" in inputs.kwargs else 0
        if "categorical" not in inputs.kwargs:
            model.fields = []
        elif not hasattr(model, "fields"):
            raise MattaError(
                f"{plan.builder}: the task ranking needs the categorical columns of the model: set "
                "model.fields, a list of (cardinality, width), in the builder."
            )
