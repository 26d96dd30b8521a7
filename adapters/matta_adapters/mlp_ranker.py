"""Embeddings and an MLP that score one row. What nests: the width of each embedding and of each
hidden layer.
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

from matta_adapters.skeleton import fill, read_config, skeleton
from matta_cli.adapter import Adapter, Axis, Sizes, Slice, Source
from matta_cli.errors import MattaError

ARCHITECTURE = "matta_mlp_ranker"
# What a layer between the Linears may be, and the settings that define it; those named here go into
# config.json.
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
_MADE_OF = f"a ranker is made of Linear, {', '.join(_NORMS | _BETWEEN)}"
# {"layer": "Linear", "out": 32}, {"layer": "ReLU"}, ... : what nn.Sequential is made of
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
        self.fields: list[tuple[int, int]] = [
            (int(cardinality), int(width)) for cardinality, width in fields
        ]
        self.dense = dense
        self.embeddings = nn.ModuleList(
            nn.Embedding(cardinality, width) for cardinality, width in self.fields
        )
        width, modules = sum(width for _, width in self.fields) + dense, []
        for layer in layers:
            settings = {key: value for key, value in layer.items() if key not in ("layer", "out")}
            if layer["layer"] == "Linear":
                modules.append(nn.Linear(width, layer["out"], **settings))
                width = layer["out"]
            else:
                modules.append(
                    getattr(nn, layer["layer"])(
                        *((width,) if layer["layer"] in _NORMS else ()), **settings
                    )
                )
        self.mlp = nn.Sequential(*modules)

    def forward(self, dense: Tensor | None = None, categorical: Tensor | None = None) -> Tensor:
        """Scores [rows] of ``dense`` [rows, dense] (float) and ``categorical`` [rows, fields]
        (integers).
        """
        parts = []
        if self.fields:
            if categorical is None:
                raise ValueError(
                    f"This ranker has {len(self.fields)} categorical features, but got none."
                )
            parts = [embedding(categorical[:, k]) for k, embedding in enumerate(self.embeddings)]
        if self.dense:
            if dense is None:
                raise ValueError(f"This ranker has {self.dense} dense features, but got none.")
            parts.append(dense)
        return self.mlp(torch.cat(parts, dim=1)).squeeze(1)

    def layers(self) -> list[Layer]:
        """The MLP as data: ``Ranker(self.fields, self.dense, self.layers())`` has the same layers."""
        return [_describe(module) for module in self.mlp]


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
            mlp = all(re.fullmatch(r"(embeddings|mlp)\.\d+\.\w+", key) for key in source.tensors)
            plain = all(re.fullmatch(r"\d+\.\w+", key) for key in source.tensors)
            return (
                bool(source.tensors)
                and (mlp or plain)
                and any(key.endswith(".weight") for key in source.tensors)
            )
        return isinstance(source.module, (nn.Sequential, Ranker))

    def load(self, source: Source) -> nn.Module:
        self.notes = []
        if not self.matches(source):
            raise MattaError(
                f"{source.name!r} is not an MLP ranker: its tensors are not named embeddings.0.weight, mlp.0.weight, ... "
                "nor 0.weight, 2.weight, ... as in an nn.Sequential."
            )
        if source.folder is not None:
            return self._from_folder(source.folder, source.name)
        if source.tensors is not None:
            return self._from_tensors(source.tensors, source)
        assert source.module is not None
        return _from_module(source.module, source.name)

    def axes(self, model: nn.Module) -> list[Axis]:
        assert isinstance(model, Ranker)
        found: list[Axis] = []
        offset = 0
        for k, (_, width) in enumerate(model.fields):
            read = Slice("mlp.0.weight", 1, start=offset, outgoing=True)
            found.append(Axis(f"embedding.{k}", width, (Slice(f"embeddings.{k}.weight", 1), read)))
            offset += width
        tensors = model.state_dict()
        linear = [n for n, module in enumerate(model.mlp) if isinstance(module, nn.Linear)]
        for i, (first, following) in enumerate(itertools.pairwise(linear)):
            kinds = ("weight", "bias", "running_mean", "running_var")
            names = [f"mlp.{n}.{kind}" for n in range(first, following) for kind in kinds]
            slices = [Slice(name, 0) for name in names if name in tensors]
            slices.append(Slice(f"mlp.{following}.weight", 1, outgoing=True))
            found.append(
                Axis(f"hidden.{i}", tensors[f"mlp.{first}.weight"].shape[0], tuple(slices))
            )
        return found

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

        config = read_config(folder)
        try:
            model = _ranker(config["fields"], config["dense"], config["layers"], name)
            tensors = load_file(str(folder / "model.safetensors"))
        except KeyError as error:
            raise MattaError(f"{folder / 'config.json'} has no {error}.") from None
        except FileNotFoundError:
            raise MattaError(f"There is no model.safetensors in {name!r}.") from None
        except (TypeError, ValueError, SafetensorError) as error:
            raise MattaError(f"{name!r} cannot be read: {error}.") from error
        return fill(model, tensors, name)

    def _from_tensors(self, tensors: Mapping[str, Tensor], source: Source) -> nn.Module:
        """Read the layers off names and shapes. What leaves no tensor (activation, dropout) is
        assumed and noted.
        """
        named = {
            key if key.startswith(("embeddings.", "mlp.")) else f"mlp.{key}": tensor
            for key, tensor in tensors.items()
        }
        unknown = [key for key in source.config if key not in ("activation", "dropout")]
        if unknown:
            raise MattaError(
                f"--config has {unknown[0]!r}, but of a ranker only 'activation' and 'dropout' can be given."
            )
        activation = _named(str(source.config.get("activation", "ReLU")))
        p = source.config.get("dropout", 0.0)
        if not isinstance(p, (int, float)) or not 0 <= p < 1:
            raise MattaError(f"--config says dropout {p!r}; it is a number from 0 up to 1.")

        numbers = sorted({int(key.split(".")[1]) for key in named if key.startswith("mlp.")})
        layers: list[Layer] = []
        renumbered: dict[int, int] = {}
        # an activation is due before the next Linear; the numbering says it comes first
        pending, gap = False, False
        for before, n in zip([-1, *numbers], numbers, strict=False):
            weight = named.get(f"mlp.{n}.weight")
            linear = weight is not None and weight.ndim == 2
            gap = n > before + 1
            if pending and (linear or gap):
                layers += [{"layer": activation}]
                pending = False
            if weight is None or weight.ndim not in (1, 2):
                raise MattaError(
                    f"{source.name!r}: layer {n} is no Linear, BatchNorm1d or LayerNorm (they have a weight)."
                )
            bias = f"mlp.{n}.bias" in named
            if linear:
                if layers and p:
                    layers += [{"layer": "Dropout", "p": float(p)}]
                renumbered[n] = len(layers)
                layers += [
                    {"layer": "Linear", "out": weight.shape[0]} | ({} if bias else {"bias": False})
                ]
                pending = True
            else:
                renumbered[n] = len(layers)
                layers += [
                    {"layer": "BatchNorm1d" if f"mlp.{n}.running_mean" in named else "LayerNorm"}
                ]
                if not bias:
                    raise MattaError(
                        f"{source.name!r}: layer {n} has a weight of one dimension and no bias: it is no norm."
                    )
        if len([layer for layer in layers if layer["layer"] == "Linear"]) > 1:
            if "activation" not in source.config:
                self.notes.append(
                    'The activation is assumed to be ReLU; --config with {"activation": "GELU"} says otherwise.'
                )
            if "dropout" not in source.config:
                self.notes.append(
                    'Dropout is assumed to be 0; --config with {"dropout": 0.1} says otherwise.'
                )
        named = {
            (
                f"mlp.{renumbered[int(key.split('.')[1])]}.{key.split('.')[2]}"
                if key.startswith("mlp.")
                else key
            ): tensor
            for key, tensor in named.items()
        }
        embeddings = [key for key in named if key.startswith("embeddings.")]
        fields = [
            tuple(named[key].shape)
            for key in sorted(embeddings, key=lambda key: int(key.split(".")[1]))
        ]
        if any(len(shape) != 2 for shape in fields) or "mlp.0.weight" not in named:
            raise MattaError(
                f"{source.name!r}: an embedding is a matrix, and the MLP starts with mlp.0.weight."
            )
        dense = named["mlp.0.weight"].shape[-1] - sum(width for _, width in fields)
        if dense < 0:
            raise MattaError(
                f"{source.name!r}: the embeddings are {sum(width for _, width in fields)} wide together, but the first Linear "
                f"reads {named['mlp.0.weight'].shape[-1]} features."
            )
        return fill(_ranker(fields, dense, layers, source.name), named, source.name)


def _from_module(module: nn.Module, name: str) -> nn.Module:
    """A copy of an opened ``nn.Sequential`` as a ranker of dense features only."""
    if isinstance(module, Ranker):
        return copy.deepcopy(module).cpu().float().eval()
    assert isinstance(module, nn.Sequential)
    first = next((layer for layer in module if isinstance(layer, nn.Linear)), None)
    layers = []
    for layer in module:
        try:
            layers.append(_describe(layer))
        except KeyError:
            raise MattaError(f"{name!r} has a {type(layer).__name__}; {_MADE_OF}.") from None
    ranker = _ranker([], first.in_features if first else 0, layers, name)
    return fill(
        ranker, {f"mlp.{key}": tensor.cpu() for key, tensor in module.state_dict().items()}, name
    )


def _ranker(fields: Sequence[Any], dense: int, layers: Sequence[Layer], name: str) -> Ranker:
    if any(layer["layer"] not in ("Linear", *_NORMS, *_BETWEEN) for layer in layers):
        raise MattaError(f"{name!r}: {_MADE_OF}.")
    if not layers or layers[0]["layer"] != "Linear":
        raise MattaError(
            f"{name!r} must start with a Linear (put a norm of the inputs into the data instead)."
        )
    if layers[-1]["layer"] != "Linear":
        raise MattaError(
            f"{name!r} must end with a Linear, not with {layers[-1]['layer']}: matta trains on plain scores."
        )
    if layers[-1]["out"] != 1:
        raise MattaError(f"{name!r} has {layers[-1]['out']} outputs; a ranker has 1, the score.")
    return Ranker(fields, dense, layers)


def _describe(module: nn.Module) -> Layer:
    """A layer as data. Raises ``KeyError`` for layers that a ranker is not made of."""
    kind = type(module).__name__
    if isinstance(module, nn.Linear):
        return {"layer": "Linear", "out": module.out_features} | (
            {} if module.bias is not None else {"bias": False}
        )
    if isinstance(module, (nn.BatchNorm1d, nn.LayerNorm)) and (
        module.weight is None or module.bias is None
    ):
        raise KeyError(kind)
    return {"layer": kind} | {key: getattr(module, key) for key in (_NORMS | _BETWEEN)[kind]}


def _named(activation: str) -> str:
    """The class name of an activation, whatever the case it is written in."""
    known = {name.lower(): name for name in _BETWEEN if name != "Dropout"}
    if activation.lower() not in known:
        raise MattaError(
            f"--config says activation {activation!r}; known: {', '.join(known.values())}."
        )
    return known[activation.lower()]
