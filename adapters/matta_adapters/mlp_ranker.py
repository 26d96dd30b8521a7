"""Embeddings and an MLP that score one row.

What nests: the width of each embedding and of each hidden layer.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matta_adapters.advice import instead
from matta_adapters.skeleton import fill, read_config, skeleton
from matta_cli.adapter import Adapter, Axis, Sizes, Slice, Source
from matta_cli.errors import MattaError

ARCHITECTURE = "matta_mlp_ranker"
# What a layer between the Linears may be, and the settings of it that go into config.json.
_NORMS: dict[str, tuple[str, ...]] = {"BatchNorm1d": ("eps", "momentum"), "LayerNorm": ("eps",)}
_BETWEEN: dict[str, tuple[str, ...]] = {
    "ReLU": (),
    "ReLU6": (),
    "GELU": ("approximate",),
    "SiLU": (),
    "Mish": (),
    "Hardswish": (),
    "Tanh": (),
    "Sigmoid": (),
    "Softplus": ("beta", "threshold"),
    "LeakyReLU": ("negative_slope",),
    "ELU": ("alpha",),
    "SELU": (),
    "Identity": (),
    "Dropout": ("p",),
}
_KINDS = _NORMS | _BETWEEN
_MADE_OF = f"a ranker is made of Linear, {', '.join(_KINDS)}"
_NAMED, _PLAIN = re.compile(r"(embeddings|mlp)\.\d+\.\w+"), re.compile(r"\d+\.\w+")
# {"layer": "Linear", "out": 32}, {"layer": "ReLU"}, ... : what nn.Sequential is made of.
Layer = dict[str, Any]


class Ranker(nn.Module):
    """Scores rows of categorical and dense features.

    fields: (cardinality, embedding width) of each categorical feature, in the order of the columns.
    dense: how many dense features there are. The first Linear reads the embeddings, in order, and
    then these.
    layers: the MLP, ending in a Linear with one output.
    """

    def __init__(
        self, fields: Sequence[tuple[int, int]], dense: int, layers: Sequence[Layer]
    ) -> None:
        super().__init__()
        self.fields = [(int(cardinality), int(width)) for cardinality, width in fields]
        self.dense = dense
        self.embeddings = nn.ModuleList(nn.Embedding(*field) for field in self.fields)
        width, modules = sum(width for _, width in self.fields) + dense, []
        for layer in layers:
            settings = {key: value for key, value in layer.items() if key not in ("layer", "out")}
            kind = layer["layer"]
            if kind == "Linear":
                modules.append(nn.Linear(width, layer["out"], **settings))
                width = layer["out"]
            else:
                sizes = (width,) if kind in _NORMS else ()
                modules.append(getattr(nn, kind)(*sizes, **settings))
        self.mlp = nn.Sequential(*modules)

    def forward(self, dense: Tensor | None = None, categorical: Tensor | None = None) -> Tensor:
        """Scores [rows] of ``dense`` [rows, dense] and ``categorical`` [rows, fields]."""
        parts = []
        if self.fields:
            if categorical is None:
                count = len(self.fields)
                raise ValueError(f"This ranker has {count} categorical features, but got none.")
            parts = [embedding(categorical[:, k]) for k, embedding in enumerate(self.embeddings)]
        if self.dense:
            if dense is None:
                raise ValueError(f"This ranker has {self.dense} dense features, but got none.")
            parts.append(dense)
        return self.mlp(torch.cat(parts, dim=1)).squeeze(1)

    def layers(self) -> list[Layer]:
        """The MLP as data: ``Ranker(fields, dense, layers())`` has the same layers."""
        return [_described(module) for module in self.mlp]


class MLPRanker(Adapter):
    """Rankers: matta's own folder, a state dict (``embeddings.K.weight``, ``mlp.N.weight``), or an
    ``nn.Sequential``.
    """

    name = "mlp_ranker"
    task = "ranking"
    loader = ""

    def matches(self, source: Source) -> bool:
        if source.folder is not None:
            return read_config(source.folder).get("architecture") == ARCHITECTURE
        if source.tensors is not None:
            names = list(source.tensors)
            named = all(map(_NAMED.fullmatch, names)) or all(map(_PLAIN.fullmatch, names))
            return named and any(name.endswith(".weight") for name in names)
        return isinstance(source.module, (nn.Sequential, Ranker))

    def load(self, source: Source) -> nn.Module:
        self.notes = []
        if not self.matches(source):
            why = _mismatch(source)
            raise MattaError(f"{source.name!r} is not an MLP ranker: {why}.{instead(source)}")
        if source.folder is not None:
            return self._from_folder(source.folder, source.name)
        if source.tensors is not None and source.sizes:  # matta's own format
            small = self._described(source.config, source.name)
            return fill(self.build(small, source.sizes), source.tensors, source.name)
        if source.tensors is not None:
            return self._from_tensors(source.tensors, source)
        assert source.module is not None
        return _from_module(source.module, source.name)

    def axes(self, model: nn.Module) -> list[Axis]:
        """embedding.K, hidden.I."""
        assert isinstance(model, Ranker)
        axes: list[Axis] = []
        offset = 0
        for k, (_, width) in enumerate(model.fields):
            read = Slice("mlp.0.weight", 1, start=offset, outgoing=True)
            axes.append(Axis(f"embedding.{k}", width, (Slice(f"embeddings.{k}.weight", 1), read)))
            offset += width
        tensors = model.state_dict()
        linear = [n for n, module in enumerate(model.mlp) if isinstance(module, nn.Linear)]
        kinds = ("weight", "bias", "running_mean", "running_var")
        for i, (first, following) in enumerate(itertools.pairwise(linear)):
            names = [f"mlp.{n}.{kind}" for n in range(first, following) for kind in kinds]
            slices = [Slice(name, 0) for name in names if name in tensors]
            slices.append(Slice(f"mlp.{following}.weight", 1, outgoing=True))
            size = tensors[f"mlp.{first}.weight"].shape[0]
            axes.append(Axis(f"hidden.{i}", size, tuple(slices)))
        return axes

    def build(self, model: nn.Module, sizes: Sizes) -> nn.Module:
        assert isinstance(model, Ranker)
        student = skeleton(self, model, sizes)
        student.fields = [(e.num_embeddings, e.embedding_dim) for e in student.embeddings]
        return student

    def save(self, model: nn.Module, folder: Path) -> None:
        from safetensors.torch import save_file

        assert isinstance(model, Ranker)
        config = {
            "architecture": ARCHITECTURE,
            "fields": model.fields,
            "dense": model.dense,
            "layers": model.layers(),
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})

    def _from_folder(self, folder: Path, name: str) -> nn.Module:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        model = self._described(read_config(folder), name)
        try:
            tensors = load_file(str(folder / "model.safetensors"))
        except FileNotFoundError:
            raise MattaError(f"There is no model.safetensors in {name!r}.") from None
        except (TypeError, ValueError, SafetensorError) as error:
            raise MattaError(f"{name!r} cannot be read: {error}.") from error
        return fill(model, tensors, name)

    def _described(self, config: Mapping[str, Any], name: str) -> Ranker:
        """The ranker that a ``config.json`` describes; its weights are arbitrary."""
        try:
            return _ranker(config["fields"], config["dense"], config["layers"], name)
        except KeyError as error:
            raise MattaError(f"The config.json of {name!r} has no {error}.") from None
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise MattaError(f"The config.json of {name!r} is no ranker's: {error}.") from error

    def _from_tensors(self, tensors: Mapping[str, Tensor], source: Source) -> nn.Module:
        """Read the layers off names and shapes.

        What leaves no tensor (activation, dropout) is assumed and noted.
        """
        name = source.name
        activation, dropout = _settings(source.config)
        whole = ("embeddings.", "mlp.")
        named = {key if key.startswith(whole) else f"mlp.{key}": t for key, t in tensors.items()}
        mlp = {key: tensor for key, tensor in named.items() if key.startswith("mlp.")}
        layers, state = _layers_of(mlp, activation, dropout, name)
        if len([layer for layer in layers if layer["layer"] == "Linear"]) > 1:
            if "activation" not in source.config:
                self.notes.append(
                    "The activation is assumed to be ReLU; "
                    '--config with {"activation": "GELU"} says otherwise.'
                )
            if "dropout" not in source.config:
                self.notes.append(
                    'Dropout is assumed to be 0; --config with {"dropout": 0.1} says otherwise.'
                )
        embeddings = {key: tensor for key, tensor in named.items() if key not in mlp}
        order = sorted(embeddings, key=lambda key: int(key.split(".")[1]))
        fields = [tuple(embeddings[key].shape) for key in order]
        for key in order:
            if embeddings[key].ndim != 2 or not key.endswith(".weight"):
                shape = list(embeddings[key].shape)
                raise MattaError(
                    f"{name!r}: an embedding is one matrix, and {key} has shape {shape}."
                )
        if not state:
            raise MattaError(f"{name!r} has embeddings, but no layers (mlp.0.weight, ...).")
        wide, read = sum(width for _, width in fields), state["mlp.0.weight"].shape[-1]
        if read < wide:
            raise MattaError(
                f"{name!r}: the embeddings are {wide} wide together, but the first Linear reads "
                f"{read} features."
            )
        return fill(_ranker(fields, read - wide, layers, name), {**embeddings, **state}, name)


def _mismatch(source: Source) -> str:
    """Why a source does not match, as the end of a sentence."""
    if source.folder is not None:
        return f"its config.json has no architecture {ARCHITECTURE!r}"
    if source.tensors is None:
        kind = "a function" if source.module is None else f"a {type(source.module).__name__}"
        return f"it is {kind}, not a state dict or an nn.Sequential"
    names = list(source.tensors)
    if not any(name.endswith(".weight") for name in names):
        return "it has no weights"
    plain = [name for name in names if _PLAIN.fullmatch(name)]
    odd = [name for name in names if not _NAMED.fullmatch(name)]
    if plain and odd:
        odd = [name for name in names if not _PLAIN.fullmatch(name)]
        return f"it has {plain[0]} as an nn.Sequential has, and beside it {odd[0]}"
    forms = "embeddings.0.weight, mlp.0.weight and the like, or 0.weight, 2.weight, ..."
    return f"it has a tensor {odd[0]}, where a ranker's are named {forms}"


def _settings(config: Mapping[str, Any]) -> tuple[str, float]:
    """The activation and the dropout that ``--config`` gives; without it ReLU and none."""
    unknown = [key for key in config if key not in ("activation", "dropout")]
    if unknown:
        raise MattaError(
            f"--config has {unknown[0]!r}, but of a ranker only 'activation' and 'dropout' "
            "can be given."
        )
    activation, dropout = str(config.get("activation", "ReLU")), config.get("dropout", 0.0)
    known = {kind.lower(): kind for kind in _BETWEEN if kind != "Dropout"}
    if activation.lower() not in known:
        raise MattaError(
            f"--config says activation {activation!r}; known: {', '.join(known.values())}."
        )
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise MattaError(f"--config says dropout {dropout!r}; it is a number from 0 up to 1.")
    return known[activation.lower()], float(dropout)


def _layers_of(
    tensors: Mapping[str, Tensor], activation: str, dropout: float, name: str
) -> tuple[list[Layer], dict[str, Tensor]]:
    """The layers of an MLP with these tensors, and these by the numbers that the layers have."""
    parts: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        _, number, kind = key.split(".")
        parts.setdefault(int(number), {})[kind] = tensor
    layers: list[Layer] = []
    state: dict[str, Tensor] = {}
    # An activation is due before the next Linear; a gap in the numbers says that it comes earlier.
    due, before = False, -1
    for n, own in sorted(parts.items()):
        weight, bias = own.get("weight"), "bias" in own
        linear = weight is not None and weight.ndim == 2
        if due and (linear or n > before + 1):
            layers.append({"layer": activation})
            due = False
        if weight is None or weight.ndim not in (1, 2):
            what = "no weight" if weight is None else f"a weight of shape {list(weight.shape)}"
            raise MattaError(
                f"{name!r}: layer {n} has {what}: it is no Linear, BatchNorm1d or LayerNorm."
            )
        if not linear and not bias:
            raise MattaError(
                f"{name!r}: layer {n} has a weight of one dimension and no bias: it is neither a "
                "BatchNorm1d nor a LayerNorm as a ranker has them."
            )
        if linear and layers and dropout:
            layers.append({"layer": "Dropout", "p": dropout})
        state |= {f"mlp.{len(layers)}.{kind}": tensor for kind, tensor in own.items()}
        if linear:
            layers.append({"layer": "Linear", "out": weight.shape[0], **_bias(bias)})
            due = True
        else:
            layers.append({"layer": "BatchNorm1d" if "running_mean" in own else "LayerNorm"})
        before = n
    return layers, state


def _from_module(module: nn.Module, name: str) -> nn.Module:
    """A copy of an opened ``nn.Sequential`` as a ranker of dense features only."""
    if isinstance(module, Ranker):
        return copy.deepcopy(module).cpu().float().eval()
    assert isinstance(module, nn.Sequential)
    layers = []
    for layer in module:
        try:
            layers.append(_described(layer))
        except KeyError:
            raise MattaError(f"{name!r} has a {type(layer).__name__}; {_MADE_OF}.") from None
    dense = next((layer.in_features for layer in module if isinstance(layer, nn.Linear)), 0)
    tensors = {f"mlp.{key}": tensor.cpu() for key, tensor in module.state_dict().items()}
    return fill(_ranker([], dense, layers, name), tensors, name)


def _ranker(fields: Sequence[Any], dense: int, layers: Sequence[Layer], name: str) -> Ranker:
    kinds = [layer["layer"] for layer in layers]
    if not {"Linear", *_KINDS} >= set(kinds):
        raise MattaError(f"{name!r}: {_MADE_OF}.")
    if not kinds or kinds[0] != "Linear":
        raise MattaError(
            f"{name!r} must start with a Linear (put a norm of the inputs into the data instead)."
        )
    if kinds[-1] != "Linear":
        raise MattaError(
            f"{name!r} must end with a Linear, not with {kinds[-1]}: matta trains on plain scores."
        )
    if layers[-1]["out"] != 1:
        raise MattaError(f"{name!r} has {layers[-1]['out']} outputs; a ranker has 1, the score.")
    return Ranker(fields, dense, layers)


def _described(module: nn.Module) -> Layer:
    """A layer as data. Raises ``KeyError`` for layers that a ranker is not made of."""
    kind, tensors = type(module).__name__, dict(module.named_parameters())
    if isinstance(module, nn.Linear):
        return {"layer": "Linear", "out": module.out_features, **_bias("bias" in tensors)}
    if kind in _NORMS and tensors.keys() != {"weight", "bias"}:
        raise KeyError(kind)
    return {"layer": kind} | {key: getattr(module, key) for key in _KINDS[kind]}


def _bias(there: bool) -> Layer:
    return {} if there else {"bias": False}
