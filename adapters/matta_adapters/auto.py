"""Any module: axes traced with torch-pruning's dependency graph, verified on the module itself, and
frozen as data.

A model is known by its *builder*, a function without arguments that makes it
(``my_pkg.models:build``), so that a folder holds tensors and JSON only. timm and transformers
models need none of the user's own.
"""

from __future__ import annotations

import copy
import importlib
import json
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.machinery import PathFinder
from inspect import Parameter, Signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from matta_adapters.skeleton import fill, read_config
from matta_adapters.tracing import (
    Found,
    Inputs,
    Repeats,
    built,
    check_traceable,
    nest,
    resized,
    run,
)
from matta_cli.adapter import Adapter, Axis, Sizes, Source
from matta_cli.errors import MattaError, said

_FILE, _PROGRAM = "auto.json", "student.pt2"
_LOADER = f"torch.export.load({{folder}} + '/{_PROGRAM}').module()"
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_SHAPE = re.compile(r"(?:(\w+)=)?(\d+(?:x\d+)*)(?::(\w+))?")
_TASKS = ("causal_lm", "image_classification", "ranking")
_PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
_ATTRIBUTE = "_matta_plan"


@dataclass(frozen=True)
class Plan:
    """How a model was made; it carries this. axes: at its own sizes, None before it was traced.
    whole: the builder's sizes.
    """

    builder: str
    arguments: Mapping[str, Any]
    example: str
    task: str
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    axes: tuple[Axis, ...] | None = None
    repeats: Mapping[str, Repeats] = field(default_factory=dict)
    whole: Mapping[str, int] = field(default_factory=dict)
    exports: bool = False


class Auto(Adapter):
    """Any ``nn.Module`` that torch-pruning can trace: ``pkg.mod:build`` with ``--example``, a timm
    or transformers model.
    """

    name = "auto"

    def matches(self, source: Source) -> bool:
        if source.folder is not None:
            return (source.folder / _FILE).is_file()
        return bool(source.builder)

    def load(self, source: Source) -> nn.Module:
        self.notes = []
        if source.folder is not None and (source.folder / _FILE).is_file():
            return self._from_folder(source.folder, source.name)
        model, builder, arguments = _opened(source)
        if source.builder and source.tensors is not None:
            model = fill(model, _with_ties(model, source.tensors), source.name)
        model = model.cpu().float().eval()
        example = source.example or _own_example(model)
        plan = Plan(builder, arguments, example, source.task)
        if example:
            plan = self._described(model, plan, source.name)
        setattr(model, _ATTRIBUTE, plan)
        _dress(model, plan)
        self.task = plan.task
        return model

    def axes(self, model: nn.Module) -> list[Axis]:
        plan = _plan(model)
        if plan.axes is None:
            if not plan.example:
                raise MattaError(
                    f"{plan.builder}: pass --example, the shapes of the model's inputs: 1x3x224x224, say."
                )
            inputs = _inputs(plan)
            found = nest(model, inputs, plan.builder)
            self._tell(found)
            plan = replace(
                plan,
                axes=tuple(found.axes),
                repeats=found.repeats,
                whole={axis.name: axis.size for axis in found.axes},
                exports=self._exports(model, inputs, plan.builder),
            )
            setattr(model, _ATTRIBUTE, plan)
        self.loader = _LOADER if plan.exports else ""
        assert plan.axes is not None
        return list(plan.axes)

    def build(self, model: nn.Module, sizes: Sizes) -> nn.Module:
        axes, plan = self.axes(model), _plan(model)
        made = built(model, axes, plan.repeats, plan.whole, sizes)
        setattr(made, _ATTRIBUTE, replace(plan, axes=tuple(resized(axes, sizes))))
        return made

    def save(self, model: nn.Module, folder: Path) -> None:
        from safetensors.torch import save_file

        axes, plan = self.axes(model), _plan(model)
        state, first = model.state_dict(), _ties(model)
        tensors = {
            name: state[name].detach().cpu().clone(memory_format=torch.contiguous_format)
            for name in {*first.values()}
        }
        save_file(
            {name: tensors[name] for name in sorted(tensors)},
            str(folder / "model.safetensors"),
            {"format": "pt"},
        )
        written = {"format": 1, **asdict(replace(plan, axes=tuple(axes)))}
        (folder / _FILE).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")

    def export(self, model: nn.Module, folder: Path) -> None:
        """Also a program that runs without matta and without the model's own code."""
        plan = _plan(model)
        if plan.exports:
            torch.export.save(_exported(model, _inputs(plan)), folder / _PROGRAM)

    def _from_folder(self, folder: Path, name: str) -> nn.Module:
        from safetensors.torch import load_file

        plan = _read(folder)
        assert plan.axes is not None
        model = _called(plan.builder, plan.arguments, folder).float()
        sizes = {axis.name: axis.size for axis in plan.axes}
        whole = resized(plan.axes, plan.whole)
        try:
            model = built(model, whole, plan.repeats, plan.whole, sizes)
        except (KeyError, AttributeError, IndexError, RuntimeError) as error:
            raise MattaError(
                f"{name}: {plan.builder} no longer builds the model that was converted ({error}): convert it again."
            ) from error
        model = fill(model, _with_ties(model, load_file(str(folder / "model.safetensors"))), name)
        setattr(model, _ATTRIBUTE, plan)
        _dress(model, plan)
        self.task, self.loader = plan.task, _LOADER if plan.exports else ""
        return model

    def _described(self, model: nn.Module, plan: Plan, name: str) -> Plan:
        """The plan with its task, and with the preprocessing of images. Runs the model once."""
        inputs = _example(plan.example)
        output = check_traceable(copy.deepcopy(model).requires_grad_(True), inputs, name)
        given = inputs.tensors()
        one_image = (
            len(inputs.args) == 1
            and not inputs.kwargs
            and given[0].dim() == 4
            and given[0].is_floating_point()
        )
        task = plan.task or ("image_classification" if one_image and output.dim() == 2 else "")
        if not task:
            raise MattaError(f"{name}: what is this model for? Pass --task ({', '.join(_TASKS)}).")
        plan = replace(plan, task=task)
        _inputs(plan)  # refuses an example that the task does not call the model with
        if task == "image_classification":
            own = getattr(model, "pretrained_cfg", None) or {}
            stated = {key: own[key] for key in _PREPROCESSING if key in own}
            plan = replace(plan, preprocessing={**stated, "input_size": list(given[0].shape[1:])})
            if "mean" not in stated and getattr(model, "config", None) is None:
                self.notes.append(
                    "Images are normalised with ImageNet's mean and standard deviation (assumed): set pretrained_cfg = "
                    "{'mean': ..., 'std': ...} on the model if its training was otherwise."
                )
                plan = replace(plan, preprocessing={**plan.preprocessing, "crop_pct": 1.0})
        return plan

    def _tell(self, found: Found) -> None:
        for reason, names in found.whole.items():
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            self.notes.append(f"Left whole, because {reason}: {', '.join(names[:6])}{more}.")

    def _exports(self, model: nn.Module, inputs: Inputs, name: str) -> bool:
        try:
            _exported(model, inputs)
        except Exception as error:  # torch.export raises what its tracer runs into
            self.notes.append(
                f"{name} does not export ({said(error)[:200]}), so its Students load with matta_cli.load_student and need the "
                "code of the model."
            )
            return False
        return True


def _plan(model: nn.Module) -> Plan:
    plan = getattr(model, _ATTRIBUTE, None)
    if plan is None:
        raise MattaError(
            f"This {type(model).__name__} was not loaded by the adapter 'auto': use Auto().load(source)."
        )
    return plan


# Inputs


def _example(text: str) -> Inputs:
    """The inputs that ``--example`` names: shapes (``1x3x32x32``, ``input_ids=1x16:int64``) or a
    function that gives them.
    """
    if _NAME.fullmatch(text):
        given = _imported(text, None)()
        if isinstance(given, Mapping):
            return Inputs(kwargs=dict(given))
        return Inputs(args=tuple(given) if isinstance(given, (tuple, list)) else (given,))
    inputs, generator = Inputs(), torch.Generator().manual_seed(0)
    for part in text.split(","):
        match = _SHAPE.fullmatch(part.strip())
        dtype = getattr(torch, match[3] or "float32", None) if match else None
        if match is None or not isinstance(dtype, torch.dtype):
            raise MattaError(
                f"--example {text!r} is not understood at {part.strip()!r}: write 1x3x224x224, input_ids=1x16:int64, several "
                "with commas, or the name of a function that gives the inputs (pkg.mod:fn)."
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


def _inputs(plan: Plan) -> Inputs:
    """The example as the task calls the model, two of it. Raises ``MattaError`` where the task has
    no such inputs.
    """
    inputs = _example(plan.example)
    if plan.task == "image_classification" and (len(inputs.args) != 1 or inputs.kwargs):
        raise MattaError(
            f"--example {plan.example!r}: the task image_classification calls a model with one unnamed tensor."
        )
    if plan.task == "causal_lm":
        if len(inputs.args) == 1 and not inputs.kwargs:
            inputs = Inputs(kwargs={"input_ids": inputs.args[0]})
        if inputs.args or set(inputs.kwargs) != {"input_ids"}:
            raise MattaError(
                f"--example {plan.example!r}: the task causal_lm calls a model with input_ids=...:int64 alone."
            )
    if plan.task == "ranking" and (
        inputs.args or not set(inputs.kwargs) <= {"dense", "categorical"}
    ):
        raise MattaError(
            f"--example {plan.example!r}: the task ranking calls a model with dense=... or categorical=...:int64."
        )
    alone = all(t.dim() and len(t) == 1 for t in inputs.tensors())
    # a batch of one is a special case to export
    return inputs.map(lambda t: torch.cat([t, t.flip(-1)])) if alone else inputs


def _own_example(model: nn.Module) -> str:
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    return "x".join(str(n) for n in (1, *size)) if size else ""


class _Outputs(nn.Module):
    """A model that gives its one tensor: an exported program must not need transformers to name its
    outputs.

    Its inputs have names of their own: releases of torch.export differ in how they see free sizes
    in ``**kwargs``.
    """

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model = model

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            return run(model, Inputs(args, kwargs))

        named = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        forward.__signature__ = Signature(named)  # type: ignore[attr-defined]
        self.forward = forward


def _exported(model: nn.Module, inputs: Inputs) -> Any:
    """The model as a program for any number of examples (and of tokens)."""
    given = {f"arg{k}": value for k, value in enumerate(inputs.args)} | inputs.kwargs

    def free(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor):
            return None
        return dict.fromkeys(
            range(1 if tensor.is_floating_point() else min(2, tensor.dim())), torch.export.Dim.AUTO
        )

    shapes = {name: free(value) for name, value in given.items()}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        whole = _Outputs(copy.deepcopy(model).cpu().eval().requires_grad_(False), list(given))
        return torch.export.export(whole, inputs.args, inputs.kwargs, dynamic_shapes=shapes)


# Where a model comes from


def _opened(source: Source) -> tuple[nn.Module, str, dict[str, Any]]:
    """The model of a source, and the builder with its arguments that makes another like it."""
    if source.builder:
        return _called(source.builder, {}, None), source.builder, {}
    if source.tensors is not None:
        raise MattaError(
            f"{source.name!r} holds tensors only: name the function that builds the model, and pass them with --weights: "
            f"matta convert my_pkg.models:build --weights {source.name} --adapter auto --example 1x3x224x224."
        )
    model = copy.deepcopy(source.module) if source.module is not None else _stock(source)
    _without_cache(model)
    builder, arguments = _stock_builder(model)
    if builder.startswith("timm:") and not hasattr(model, "_model_args"):
        arguments = _told(model, source, arguments)
    if not builder:
        raise MattaError(
            f"{source.name!r} is a {type(model).__name__}, which its checkpoint alone cannot build again: name the function "
            "that builds it, my_pkg.models:build, and pass its state dict with --weights."
        )
    return model, builder, arguments


def _stock(source: Source) -> nn.Module:
    """A model that timm or transformers loads."""
    config = read_config(source.folder) if source.folder is not None else {}
    try:
        if source.folder is None or "architecture" in config:
            import timm

            return timm.create_model(
                f"local-dir:{source.folder}" if source.folder else source.name, pretrained=True
            )
        if config.get("architectures"):
            import transformers

            return getattr(transformers, config["architectures"][0]).from_pretrained(
                str(source.folder)
            )
    except Exception as error:  # the stock libraries raise whatever their own dependencies raise
        raise MattaError(f"{source.name!r} cannot be loaded: {said(error)}") from error
    raise MattaError(
        f"{source.name!r} is neither a timm nor a transformers folder: name a function, my_pkg.models:build."
    )


def _stock_builder(model: Any) -> tuple[str, dict[str, Any]]:
    """How timm or transformers builds a model like this one; empty for others."""
    library = type(model).__module__.partition(".")[0]
    if library == "transformers" and hasattr(model, "config"):
        return f"transformers:{type(model).__name__}", {
            "config": json.loads(model.config.to_json_string(use_diff=False))
        }
    architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if library == "timm" and architecture:
        given = {"num_classes": model.num_classes, **getattr(model, "_model_args", {})}
        return "timm:create_model", {"model_name": architecture, **json.loads(json.dumps(given))}
    return "", {}


def _told(model: Any, source: Source, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a timm model, where timm does not keep them (before 1.0.30): those that its
    folder and its input tell.

    Raises ``MattaError`` where they build another model.
    """
    config = read_config(source.folder) if source.folder is not None else {}
    size = model.pretrained_cfg.get("input_size") or ()
    told = {**arguments, **({"in_chans": size[0]} if size else {}), **config.get("model_args", {})}
    again = _called("timm:create_model", told, None)
    alike = {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    if not alike or repr(again) != repr(model):  # which shows activations and pooling, too
        raise MattaError(
            f"{source.name!r} was made with arguments that this release of timm does not keep: install timm 1.0.30 or later, "
            "or name a function that builds it, my_pkg.models:build, and pass its state dict with --weights."
        )
    return told


def _without_cache(model: Any) -> None:
    """Nothing here reads a cache of keys and values, which tracing does not see through."""
    if hasattr(getattr(model, "config", None), "use_cache"):
        model.config.use_cache = False


def _called(builder: str, arguments: Mapping[str, Any], folder: Path | None) -> nn.Module:
    """A fresh model. folder: the folder that names the builder, where that was not the user."""
    library, _, what = builder.partition(":")
    try:
        if library == "timm" and what == "create_model":
            import timm

            model = timm.create_model(**arguments)
        elif library == "transformers" and "config" in arguments:
            import transformers

            kind: Any = getattr(transformers, what)
            if not issubclass(kind, transformers.PreTrainedModel):
                raise TypeError(f"{what} is no model")
            model = kind(kind.config_class.from_dict(dict(arguments["config"])))
        else:
            model = _imported(builder, folder)()
        _without_cache(model)
    except MattaError:
        raise
    except Exception as error:  # it is the user's code that runs
        raise MattaError(
            f"{builder} does not build: {type(error).__name__}: {said(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise MattaError(
            f"{builder} gives a {type(model).__name__}, but a torch.nn.Module is needed."
        )
    return model


def _imported(name: str, folder: Path | None) -> Any:
    """The function that ``pkg.mod:fn`` names, from what is installed or from the current directory.

    A folder may come from anywhere, and must not bring code along that runs: code that lies with it
    is refused, and so is the standard library, none of whose functions builds a model.
    """
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))
    if folder is not None:
        origin, top = _origin(module), _outermost(folder)
        if module.partition(".")[0] in sys.stdlib_module_names or (
            origin is not None and origin.is_relative_to(top)
        ):
            raise MattaError(
                f"{folder} names the builder {name}, which is not the code of a model of yours: it is not run."
            )
    try:
        found = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        missing = error.name or module
        where = (
            "here (run matta from the folder that holds it, or install it)"
            if module.startswith(missing)
            else ""
        )
        raise MattaError(
            f"{name} does not import: there is no module {missing!r} {where}".rstrip() + "."
        ) from error
    except AttributeError as error:
        raise MattaError(f"{name} does not import: {error}.") from error
    except Exception as error:  # the user's module runs while it is imported
        raise MattaError(f"{name} does not import: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise MattaError(f"{name} is no function, but of type {type(found).__name__}.")
    return found


def _origin(module: str) -> Path | None:
    """The file of a module, found without running any of its packages."""
    path: Any = None
    spec = None
    for depth in range(module.count(".") + 1):
        spec = PathFinder.find_spec(".".join(module.split(".")[: depth + 1]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    assert spec is not None
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    return Path(places[0]).resolve() if places else None


def _outermost(folder: Path) -> Path:
    """The folder, or what holds it just below the current directory: all that may have come with
    it.
    """
    folder, here = folder.resolve(), Path.cwd().resolve()
    parts = folder.relative_to(here).parts if folder.is_relative_to(here) else ()
    return here / parts[0] if parts else folder


def _read(folder: Path) -> Plan:
    path = folder / _FILE
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        if read.pop("format") > 1:
            raise MattaError(f"{path} is of a newer format: upgrade matta.")
        axes = tuple(Axis.restored(axis) for axis in read.pop("axes"))
        repeats = {
            name: tuple((m, a, v) for m, a, v in found)
            for name, found in read.pop("repeats").items()
        }
        plan = Plan(**read, axes=axes, repeats=repeats)
        if not _NAME.fullmatch(plan.builder) or set(plan.whole) != {axis.name for axis in axes}:
            raise ValueError("the builder or the sizes are not right")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MattaError(f"{path} is damaged ({error}): convert the model again.") from None
    return plan


# Tensors


def _ties(model: nn.Module) -> dict[str, str]:
    """Every name of the state dict -> the first name of the same tensor."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(t), name) for name, t in model.state_dict(keep_vars=True).items()
    }


def _with_ties(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors``, and for each tied tensor of ``model`` that has only one of its names, the others
    too.
    """
    found = dict(tensors)
    named: dict[str, list[str]] = {}
    for name, first in _ties(model).items():
        named.setdefault(first, []).append(name)
    for names in named.values():
        own = next((tensors[name] for name in names if name in tensors), None)
        if own is not None:
            found |= {name: own for name in names if name not in tensors}
    return found


def _dress(model: Any, plan: Plan) -> None:
    """Set what the task asks a model about, where the model does not say it itself."""
    if not plan.example:
        return
    inputs = _inputs(plan)
    if plan.task == "image_classification":
        model.pretrained_cfg = {
            **(getattr(model, "pretrained_cfg", None) or {}),
            **plan.preprocessing,
        }
        if (
            not isinstance(getattr(model, "num_classes", None), int)
            and getattr(model, "config", None) is None
        ):
            with torch.no_grad():
                model.num_classes = run(model.eval(), inputs).shape[1]
    if plan.task == "causal_lm" and getattr(model, "config", None) is None:
        with torch.no_grad():
            vocabulary = run(model.eval(), inputs).shape[-1]
        model.config = SimpleNamespace(
            vocab_size=vocabulary, max_position_embeddings=inputs.tensors()[0].shape[1]
        )
    if plan.task == "ranking":
        if not hasattr(model, "dense"):
            model.dense = inputs.kwargs["dense"].shape[1] if "dense" in inputs.kwargs else 0
        if "categorical" not in inputs.kwargs:
            model.fields = []
        elif not hasattr(model, "fields"):
            raise MattaError(
                f"{plan.builder}: the task ranking needs the categorical columns of the model: set model.fields, a list of "
                "(cardinality, width), in the builder."
            )
