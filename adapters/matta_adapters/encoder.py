"""What adapters of transformers' encoders share: heads, axes, building and opening.

Encoders come alone (for sentence embeddings, also in the folder of sentence-transformers), or with
a head that classifies texts or tokens. What nests: the hidden units of each block's MLP, the heads
of each block, and the blocks; where there is a head, the residual stream as well. Without one it is
the embedding: its channels, in their order, are the output.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matta_adapters.pooling import pooling
from matta_adapters.shapes import (
    heads_as_wide,
    makes,
    module_at,
    one_for_all,
    reads,
    stored_sizes,
    there,
)
from matta_adapters.skeleton import fill, read_config, skeleton, some
from matta_adapters.stock import Transformers, empty, opened
from matta_cli.adapter import Axis, Sizes, Slice, Source
from matta_cli.errors import MattaError

# The heads that are nested with an encoder: how their classes end, and their tasks.
HEADS = {
    "ForSequenceClassification": "text_classification",
    "ForTokenClassification": "token_classification",
}
_ALONE = "sentence_embedding"
# Classes whose heads may have tensors of the same names.
_ALIKE = (*HEADS, "ForMultipleChoice")
_OF_HEADS = {"classifier", "pre_classifier", "pooler", "head"}  # the modules of HEADS
_RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_CONSTANT = re.compile(r"embeddings\.(position_ids|token_type_ids)$")  # of old releases
_POOLER = "pooler."
_DECODER = "is a decoder ({}), and this adapter nests encoders"


class Encoder(Transformers):
    """An encoder whose parts have the names that a subclass gives; its own are BERT's.

    classes: model types, and the classes of their encoders alone. prefix: what the names of an
    encoder's tensors begin with where there is a head; own: the modules of an encoder.
    stream: those that make the residual stream before the blocks, and norms of it beside these;
    layers: the path of the blocks. In a block, by paths from it: attention, the module that counts
    heads; qkv, what makes queries, keys and values; out, what reads the heads; up, what makes the
    MLP's units; down, what reads them; norms, those of the stream. inner: the configuration's name
    of the MLP's units. alike: whether blocks compute alike, so that some may go. What a model does
    not have of the stream, norms and qkv is passed over.
    """

    refused = {key: _DECODER.format(key) for key in ("is_decoder", "add_cross_attention")}
    prefix: str
    own: tuple[str, ...] = ("embeddings", "encoder", "pooler")
    stream: tuple[str, ...] = tuple(
        f"embeddings.{part}"
        for part in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")
    )
    layers = "encoder.layer"
    attention = "attention.self"
    qkv: tuple[str, ...] = tuple(f"attention.self.{part}" for part in ("query", "key", "value"))
    out = "attention.output.dense"
    up: tuple[str, ...] = ("intermediate.dense",)
    down = "output.dense"
    norms: tuple[str, ...] = ("attention.output.LayerNorm", "output.LayerNorm")
    inner = "intermediate_size"
    alike = True

    def matches(self, source: Source) -> bool:
        """Whether it is one of ``classes``; if so, ``task`` is what it says that it is for."""
        told, source = source.config.get("model_type"), _renamed(source)
        if source.module is not None:
            kinds = {_named(kind, end) for kind in self.classes.values() for end in ("", *HEADS)}
            known = any(c.__name__ in kinds for c in type(source.module).__mro__)
        elif source.tensors is not None and told is not None:
            whole = [{f"{body}{n}" for n in self.tensors} for body in (self.prefix, "")]
            known = told in self.classes and any(names <= set(source.tensors) for names in whole)
        else:
            known = super().matches(source)
        head = _head_of(source) if known else ""
        if known and (head or source.tensors is None):
            self.task = HEADS.get("" if _drops(head, source) else head, _ALONE)
        return known

    def load(self, source: Source) -> nn.Module:
        model: Any = super().load(_renamed(source))
        if source.module is not None and _drops(_head(model), source):
            body = self.prefix.removesuffix(".")
            self.dropped = [name for name, _ in model.named_children() if name != body]
            self._note_dropped()
            model = model.base_model
        empty_ones = [name for name in self.stream if _rows(model.base_model, name) == 0]
        if empty_ones:
            raise MattaError(
                f"{source.name!r} has no rows in {empty_ones[0]}: transformers itself cannot run "
                f"such a {model.config.model_type}."
            )
        head = _head(model)
        self.task = HEADS.get(head, _ALONE)
        if source.task not in ("", self.task):
            hint = "; --drop-head gives its encoder alone" if source.task == _ALONE else ""
            is_for = f"is a model for {self.task}, not for {source.task}"
            raise MattaError(f"{source.name!r} {is_for}{hint}.")
        self.loader = f"transformers.AutoModel{head}.from_pretrained({{folder}})"
        return model

    def axes(self, model: Any) -> list[Axis]:
        """mlp.I, heads.I (in channels, whole heads at a time), with a head hidden, and depth."""
        axes, body = [], self._body(model)
        for i, (path, units) in enumerate(zip(self._paths(model), self._units(model), strict=True)):
            fused = model.get_submodule(f"{path}.{self.up[0]}").weight.shape[0] // units
            mlp = makes(model, path, *self.up, blocks=fused) + reads(model, path, self.down)
            axes.append(Axis(f"mlp.{i}", units, tuple(mlp)))
        axes += self._heads(model)
        if body:
            axes.append(self._hidden(model))
        if self.alike:
            # A block's norms come after the sum, so that no block can start as the identity.
            count = len(self._paths(model))
            axes.append(Axis("depth", count, (), layers=body + self.layers))
        return axes

    def _heads(self, model: Any) -> list[Axis]:
        axes, step = [], self._channels(model)
        for i, (path, size) in enumerate(zip(self._paths(model), self._made(model), strict=True)):
            fused = model.get_submodule(f"{path}.{self.qkv[0]}").weight.shape[0] // size
            slices = makes(model, path, *self._qkv(model, path), blocks=fused)
            slices += reads(model, path, self.out)
            axes.append(Axis(f"heads.{i}", size, tuple(slices), step))
        return axes

    def _qkv(self, model: nn.Module, path: str) -> list[str]:
        """What makes the heads of a block, as far as it has that."""
        return [name for name in self.qkv if module_at(model, f"{path}.{name}") is not None]

    def _hidden(self, model: Any) -> Axis:
        """The residual stream, with all that is as wide up to the head's last layer."""
        body, slices = self._body(model), list[Slice]()
        for name in self._stream(model):
            slices += there(model, body + name)
        for path in self._paths(model):
            for norm in self.norms:
                slices += there(model, f"{path}.{norm}")
            slices += reads(model, path, *self._qkv(model, path), *self.up)
            slices += makes(model, path, self.out, self.down)
        *between, last = self._after(model)
        for name in between:
            slices += makes(model, "", name)
            if isinstance(model.get_submodule(name), nn.Linear):
                slices += reads(model, "", name)
        slices += reads(model, "", last)
        return Axis("hidden", self._width(model), tuple(slices), self._channels(model))

    def _stream(self, model: Any) -> tuple[str, ...]:
        """What of ``stream`` is as wide as the stream."""
        return self.stream

    def _after(self, model: nn.Module) -> list[str]:
        """The layers from the last block to the outputs, in their order."""
        body = self._body(model)
        after = [n for n, _ in model.named_modules() if not f"{n}.".startswith(body)]
        after = [n for n, _ in model.named_modules() if n.startswith(body + _POOLER)] + after
        owners = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
        return [name for name in after if name in owners]

    def build(self, model: Any, sizes: Sizes) -> nn.Module:
        student = skeleton(self, model, sizes)
        config, paths = student.config, self._paths(student)
        config.num_hidden_layers = len(paths)
        channels, width = self._channels(student), self._width(student)
        units, made = self._units(student), self._made(student)
        for path, size in zip(paths, made, strict=True):
            self._fit(student.get_submodule(f"{path}.{self.attention}"), size // channels)
        if len(set(units)) == 1:
            setattr(config, self.inner, units[0])
        if set(made) == {width}:  # else the library has no such model
            config.hidden_size, config.num_attention_heads = width, width // channels
        self._repeat(student)
        return student

    def _repeat(self, student: Any) -> None:
        """Set what else repeats the sizes that the configuration has now."""

    def _fit(self, attention: Any, heads: int) -> None:
        """Set what an attention keeps of its sizes beside its tensors."""
        attention.num_attention_heads = heads
        attention.all_head_size = heads * attention.attention_head_size

    def unsupported(self, model: Any) -> str:
        kind = f"a transformers {model.config.model_type}"
        uneven = one_for_all(kind, self.inner, self._units(model))
        return uneven or heads_as_wide(kind, set(self._made(model)), self._width(model))

    # What a model's tensors say of its sizes

    def _body(self, model: Any) -> str:
        """What the names of the encoder's modules begin with: nothing where it is alone."""
        return self.prefix if _head(model) else ""

    def _paths(self, model: Any) -> list[str]:
        """The paths of the blocks."""
        path = self._body(model) + self.layers
        return [f"{path}.{i}" for i in range(len(model.get_submodule(path)))]

    def _channels(self, model: Any) -> int:
        """How wide one head is."""
        attention = model.get_submodule(f"{self._paths(model)[0]}.{self.attention}")
        return int(attention.attention_head_size)

    def _width(self, model: Any) -> int:
        return int(model.get_submodule(f"{self._paths(model)[0]}.{self.down}").weight.shape[0])

    def _units(self, model: Any) -> list[int]:
        """The hidden units of each block's MLP."""
        paths = self._paths(model)
        return [model.get_submodule(f"{path}.{self.down}").weight.shape[1] for path in paths]

    def _made(self, model: Any) -> list[int]:
        """The channels of each block's heads."""
        paths = self._paths(model)
        return [model.get_submodule(f"{path}.{self.out}").weight.shape[1] for path in paths]

    # Opening

    def _from_folder(self, folder: Path, source: Source) -> Any:
        import transformers

        config = read_config(folder)
        head = _declared(config)
        head = "" if _drops(head, source) else head
        kind = _named(self.classes[config["model_type"]], head)
        pooled = "" if head else pooling(folder, source.name, self.notes)
        first = "|".join(map(re.escape, (self.prefix, *(f"{name}." for name in self.own))))
        others = rf"^(?!{first})\w+\.|{_CONSTANT.pattern}"
        others += rf"|^{re.escape(self.prefix + _POOLER)}" if head else ""
        optional = () if head else (_POOLER,)
        words = (f"a {kind}", "one of its tensors")
        model, missing, unexpected = opened(
            getattr(transformers, kind), source, *words, re.compile(others), optional
        )
        if missing:
            model.pooler = None  # transformers made up random weights for it
        self._leave_out(unexpected, source)
        if pooled:
            model.config.sentence_pooling = pooled
        return model

    def _others(self, names: Iterable[str]) -> list[str]:
        """The modules beside an encoder that tensors of these names belong to."""
        first = {name.partition(".")[0] for name in names if "." in name}
        return sorted(first - {self.prefix.removesuffix("."), *self.own})

    def _leave_out(self, names: Iterable[str], source: Source) -> None:
        """Note which heads are left out. Raises ``MattaError`` where the user did not ask for it.

        names: of the tensors that the model does not take.
        """
        self.dropped = self._others(names)
        if self.dropped and not source.drop_head:
            raise MattaError(
                f"{source.name!r} is more than an encoder: it has a head "
                f"({', '.join(self.dropped)}), and by its architectures (in config.json) that is "
                "none that classifies texts or tokens, which alone are nested. To leave it out, "
                "pass --drop-head."
            )
        self._note_dropped()

    def _note_dropped(self) -> None:
        if self.dropped:
            heads = ", ".join(self.dropped)
            self.notes.append(f"The head ({heads}) is left out: the encoder alone is nested.")

    def _from_tensors(self, tensors: Mapping[str, Tensor], source: Source) -> Any:
        import transformers

        named = {key: tensor for key, tensor in tensors.items() if not _CONSTANT.search(key)}
        if not source.drop_head and set(self._others(named)) - _OF_HEADS:
            self._leave_out(named, source)  # which is refused, whatever the configuration
        config, given = self._config(named, source), dict(source.config)
        head = _declared(given) or self._recognised(named, config, source)
        if _drops(head, source):
            head = ""
        others = self._others(named)
        if not head:
            self._leave_out(named, source)
            kept = (key for key in named if key.partition(".")[0] not in others)
            named = {key.removeprefix(self.prefix): named[key] for key in kept}
        kind = _named(self.classes[config.model_type], head)
        failing = f"{source.name!r}: transformers cannot build a model from its --config"
        model = empty(lambda: config, getattr(transformers, kind), failing)
        pooler = self._body(model) + _POOLER
        if not head and "pooler" in self.own and not any(k.startswith(pooler) for k in named):
            model.pooler = None
        if not any(key.startswith(pooler) for key in model.state_dict()):
            named = {key: tensor for key, tensor in named.items() if not key.startswith(pooler)}
        sizes = source.sizes or stored_sizes(self.axes(model), named, ("mlp.", "heads"))
        return fill(self.build(model, sizes), named, source.name)

    def _config(self, named: Mapping[str, Tensor], source: Source) -> Any:
        """The configuration of a state dict."""
        import transformers

        given = dict(source.config) or self._told(named, source.name)
        kind = given.pop("model_type", next(iter(self.classes)))
        failing = f"{source.name!r}: transformers cannot build a {kind} from its --config"
        return empty(lambda: transformers.AutoConfig.for_model(kind, **given), lambda c: c, failing)

    def _told(self, named: Mapping[str, Tensor], name: str) -> dict[str, Any]:
        """The configuration that the shapes tell; what they do not tell goes into the notes."""
        raise MattaError(
            f"{name!r} is a state dict, and not all of a {self.name} can be told from tensors: "
            "pass its config.json with --config."
        )

    def _recognised(self, named: Mapping[str, Tensor], config: Any, source: Source) -> str:
        """The head of a state dict whose configuration does not say which it is.

        Raises ``MattaError`` where more than one fits.
        """
        import transformers

        if not self._others(named):
            return ""
        kind, fitting = self.classes[config.model_type], []
        for head in _ALIKE:
            with torch.device("meta"):
                like = getattr(transformers, _named(kind, head))(config)
            unused = set(named) - set(like.state_dict())
            if set(like.state_dict()) <= set(named) and not self._others(unused):
                fitting.append(head)
        if asked := [head for head in fitting if HEADS.get(head) == source.task]:
            return asked[0]
        if len(fitting) > 1 and not source.drop_head:
            several = some([_named(kind, head) for head in fitting])
            raise MattaError(
                f"{source.name!r} is a state dict with a head that may be of several classes "
                f"({several}): pass a config.json that names it in architectures with --config, or "
                f"say --task {' or '.join(HEADS.values())}."
            )
        return fitting[0] if fitting and fitting[0] in HEADS else ""


def _renamed(source: Source) -> Source:
    """A source with the names that tensors have today: the norms of the first BERTs had others."""
    if source.tensors is None:
        return source
    named = {}
    for key, tensor in source.tensors.items():
        old = next((own for own in _RENAMED if key.endswith(own)), "")
        named[key.removesuffix(old) + _RENAMED.get(old, "")] = tensor
    return replace(source, tensors=named)


def _named(kind: str, head: str) -> str:
    """The class of transformers that is an encoder's with a head; empty: alone."""
    return kind.removesuffix("Model") + (head or "Model")


def _head(model: nn.Module) -> str:
    """The head that a module has, as its class is named; empty: it is an encoder alone."""
    names = [c.__name__ for c in type(model).__mro__]
    return next((head for head in HEADS if any(name.endswith(head) for name in names)), "")


def _declared(config: Mapping[str, Any]) -> str:
    """The head by a configuration's ``architectures``; empty where it is none that is nested."""
    names = config.get("architectures")
    first = str(names[0]) if isinstance(names, list) and names else ""
    return next((head for head in HEADS if first.endswith(head)), "")


def _head_of(source: Source) -> str:
    """The head of a source: of its module, or as the configuration that comes with it says."""
    if source.module is not None:
        return _head(source.module)
    return _declared(source.config if source.folder is None else read_config(source.folder))


def _drops(head: str, source: Source) -> bool:
    """Whether a head is to be left out: where the user says so, and asks for no such task."""
    return bool(head) and source.drop_head and source.task in ("", _ALONE)


def _rows(model: nn.Module, path: str) -> int | None:
    """How many entries an embedding has; None where there is none."""
    found = module_at(model, path)
    return found.num_embeddings if isinstance(found, nn.Embedding) else None
