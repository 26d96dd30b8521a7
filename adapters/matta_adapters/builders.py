"""Where any model comes from, and the function with arguments that makes another like it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from matta_adapters.advice import example_like
from matta_adapters.skeleton import read_config
from matta_adapters.stock import opened
from matta_cli import trust
from matta_cli.adapter import Source
from matta_cli.errors import MattaError, said

_TIMM = "timm:create_model"
# What checkpoints of old releases carry that holds no weights.
_CONSTANTS = re.compile(r"(position_ids|attn\.bias|masked_bias|inv_freq)$")


def found(source: Source) -> tuple[nn.Module, str, dict[str, Any]]:
    """The model of a source, and the builder with its arguments that makes another like it.

    Raises ``MattaError`` where the model cannot be opened, or not be built again.
    """
    name = source.name
    if source.builder:
        return called(source.builder, {}, None), source.builder, {}
    if source.tensors is not None:
        raise MattaError(
            f"{name!r} holds tensors only: name the function that builds the model, and pass them "
            f"with --weights: matta convert my_pkg.models:build --weights {name} --adapter auto "
            f"--example {example_like(source.tensors)}."
        )
    model = copy.deepcopy(source.module) if source.module is not None else _stock(source)
    _without_cache(model)
    builder, arguments = _stock_builder(model)
    if builder == _TIMM and not hasattr(model, "_model_args"):
        arguments = _told(model, source, arguments)
    if not builder:
        raise MattaError(
            f"{name!r} is a {type(model).__name__}, which its checkpoint alone cannot build again: "
            "name the function that builds it, my_pkg.models:build, and pass its state dict with "
            "--weights."
        )
    return model, builder, arguments


def called(builder: str, arguments: Mapping[str, Any], folder: Path | None) -> nn.Module:
    """A fresh model. folder: the folder that names the builder, where that was not the user."""
    library, _, what = builder.partition(":")
    if folder is not None:
        trust.check_config({"model_args": arguments}, f"The builder of {folder}")
    try:
        if builder == _TIMM:
            import timm

            with trust.sealed():
                model = timm.create_model(**arguments)
        elif library == "transformers" and "config" in arguments:
            kind = _kind(what)
            with trust.sealed():
                model = kind(kind.config_class.from_dict(dict(arguments["config"])))
        else:
            model = imported(builder, folder)()
        _without_cache(model)
    except MattaError:
        raise
    except Exception as error:  # it is the user's code that runs
        kind = type(error).__name__
        raise MattaError(f"{builder} does not build: {kind}: {said(error)}") from error
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise MattaError(f"{builder} gives a {kind}, but a torch.nn.Module is needed.")
    return model


def imported(name: str, folder: Path | None = None) -> Any:
    """The function that ``pkg.mod:fn`` names, from what is installed or the current folder.

    A folder may come from anywhere, and must not bring code along that runs: what it names has to
    be what the user named before (see ``matta_cli.trust``).
    """
    code = trust.found(name, folder)
    code.check()
    try:
        build = getattr(code.imported(), code.thing)
    except ModuleNotFoundError as error:
        missing, hint = error.name or code.module, ""
        if code.module.startswith(missing):
            hint = " here (run matta from the folder that holds it, or install it)"
        raise MattaError(
            f"{name} does not import: there is no module {missing!r}{hint}."
        ) from error
    except AttributeError as error:
        raise MattaError(f"{name} does not import: {error}.") from error
    except Exception as error:  # the user's module runs while it is imported
        raise MattaError(f"{name} does not import: {type(error).__name__}: {error}") from error
    if not callable(build):
        raise MattaError(f"{name} is no function, but of type {type(build).__name__}.")
    code.remember()
    return build


def _kind(name: str) -> Any:
    """A class of transformers' models by its name, of which a file may say any."""
    import transformers

    kind = getattr(transformers, name)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise TypeError(f"{name} is no model")
    return kind


def _stock(source: Source) -> nn.Module:
    """A model that timm or transformers loads."""
    folder = source.folder
    config = read_config(folder) if folder is not None else {}
    try:
        if folder is None or "architecture" in config:
            import timm

            where = f"local-dir:{folder}" if folder else source.name
            with trust.sealed():
                return timm.create_model(where, pretrained=True)
        if config.get("architectures"):
            kind = _kind(config["architectures"][0])
            return opened(kind, source, f"a {kind.__name__}", "one of its tensors", _CONSTANTS)[0]
    except MattaError:
        raise
    except Exception as error:  # the stock libraries raise whatever their own dependencies raise
        raise MattaError(f"{source.name!r} cannot be loaded: {said(error)}") from error
    raise MattaError(
        f"{source.name!r} is neither a timm nor a transformers folder (its config.json names no "
        "architecture, and no architectures): name a function, my_pkg.models:build."
    )


def _stock_builder(model: Any) -> tuple[str, dict[str, Any]]:
    """How timm or transformers builds a model like this one; empty for others."""
    library = type(model).__module__.partition(".")[0]
    if library == "transformers" and hasattr(model, "config"):
        config = json.loads(model.config.to_json_string(use_diff=False))
        return f"transformers:{type(model).__name__}", {"config": config}
    architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if library == "timm" and architecture:
        given = {"num_classes": model.num_classes, **getattr(model, "_model_args", {})}
        return _TIMM, {"model_name": architecture, **json.loads(json.dumps(given))}
    return "", {}


def _told(model: Any, source: Source, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a timm model that its folder and its input tell.

    Releases before 1.0.30 do not keep them. Raises ``MattaError`` where they build another model.
    """
    config = read_config(source.folder) if source.folder is not None else {}
    size = model.pretrained_cfg.get("input_size") or ()
    told = {**arguments, **({"in_chans": size[0]} if size else {}), **config.get("model_args", {})}
    again = called(_TIMM, told, None)
    own, other = ({k: v.shape for k, v in m.state_dict().items()} for m in (model, again))
    if own != other or repr(again) != repr(model):  # which shows activations and pooling, too
        raise MattaError(
            f"{source.name!r} was made with arguments that this release of timm does not keep: "
            "install timm 1.0.30 or later, or name a function that builds it, "
            "my_pkg.models:build, and pass its state dict with --weights."
        )
    return told


def _without_cache(model: Any) -> None:
    """Nothing here reads a cache of keys and values, which tracing does not see through."""
    if hasattr(getattr(model, "config", None), "use_cache"):
        model.config.use_cache = False
