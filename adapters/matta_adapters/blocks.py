"""Transformers of equal blocks, by the names of their parts: axes, other sizes, what stock can say.

What nests: the hidden units of each block's MLP, the heads of each block, the residual stream, and
the blocks. Heads that share a key and a value stay together, and a head itself is never cut.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import nn

from matta_adapters.shapes import heads_as_wide, makes, one_for_all, reads, there
from matta_adapters.skeleton import skeleton
from matta_adapters.stock import Transformers, empty
from matta_cli.adapter import Axis, Sizes, Slice, Source
from matta_cli.errors import MattaError


class Blocks(Transformers):
    """A transformer whose parts have the names that a subclass gives.

    layers: the path of the blocks. last_norm, norms: those of the residual stream, after the blocks
    and in each; what a model does not have is passed over. In a block, by paths from it: attention,
    the module of that name; qkv, what makes queries, keys and values, one name where they are one
    tensor; out, what reads the heads; up, what makes the MLP's units; down, what reads them.
    interleaved: whether a fused tensor has query, key and value of one head side by side.
    wide: whether the heads together are as wide as the stream, so that the library can load them.
    inner: the configuration's name of the MLP's units.
    """

    layers: str
    last_norm: str
    norms: tuple[str, ...]
    attention: str
    qkv: tuple[str, ...]
    out: str
    up: tuple[str, ...]
    down: str
    refused = {"quantization_config": "is quantized: matta needs the weights that it was made from"}
    interleaved = False
    wide = False
    inner = "intermediate_size"

    def matches(self, source: Source) -> bool:
        other = source.config.get("model_type") not in (None, *self.classes)
        return not (source.tensors is not None and other) and super().matches(source)

    def axes(self, model: Any) -> list[Axis]:
        """mlp.I, heads.I (in channels of the keys, whole heads at a time), hidden, depth."""
        blocks, axes = model.get_submodule(self.layers), []
        stream = [*self._enters(model), *there(model, self.last_norm)]
        for i, block in enumerate(blocks):
            path = f"{self.layers}.{i}"
            up, down = self._mlp(block)
            mlp = makes(model, path, *up, blocks=self._fused(block)) + reads(model, path, down)
            units = block.get_submodule(down).weight.shape[1]
            axes.append(Axis(f"mlp.{i}", units, tuple(mlp)))
            axes.append(self._heads(model, path, block, i))
            for norm in self.norms:
                stream += there(model, f"{path}.{norm}")
            stream += reads(model, path, *self.qkv, *up)
            stream += makes(model, path, self.out, down)
        stream += self._head(model)
        width = blocks[0].get_submodule(down).weight.shape[0]
        axes.append(Axis("hidden", width, tuple(stream), self._step(model)))
        config = self._config(model)
        if self._alike(config):
            own = [name for name, _ in blocks[0].named_parameters()]
            writers = (f"{self.out}.", f"{down}.")
            added = [Slice(name, 0) for name in own if name.startswith(writers)]
            added = added if self._before(config) else []
            axes.append(Axis("depth", len(blocks), tuple(added), layers=self.layers))
        return axes

    def _configured(self, source: Source, untold: str) -> Any:
        """The model of the configuration beside a state dict, without weights.

        Raises ``MattaError`` where there is none; untold: what the tensors then do not tell.
        """
        import transformers

        given = dict(source.config)
        kind = given.pop("model_type", None)
        if kind not in self.classes:
            raise MattaError(
                f"{source.name!r} is a state dict, and its {untold} cannot be told from tensors: "
                f"pass its config.json, whose model_type is {' or '.join(self.classes)}, with "
                "--config."
            )
        return empty(
            lambda: transformers.AutoConfig.for_model(kind, **given),
            self._class(kind),
            f"transformers cannot build a {kind} from --config",
        )

    @abstractmethod
    def _enters(self, model: Any) -> list[Slice]:
        """What makes the residual stream before the blocks."""

    @abstractmethod
    def _head(self, model: Any) -> list[Slice]:
        """What reads the stream after the blocks."""

    def _config(self, model: Any) -> Any:
        """The configuration that says the sizes of the blocks."""
        return model.config

    def _mlp(self, block: Any) -> tuple[tuple[str, ...], str]:
        """What makes a block's hidden units, and what reads them."""
        return self.up, self.down

    def _fused(self, block: Any) -> int:
        """How many times an MLP's units lie in what makes them: a gate may lie with them."""
        (first, *_), last = self._mlp(block)
        up, down = (block.get_submodule(name).weight for name in (first, last))
        return int(up.shape[0] // down.shape[1])

    def _heads(self, model: Any, path: str, block: Any, i: int) -> Axis:
        """Heads are counted in the channels of the keys.

        Each takes along those of the queries that share it.
        """
        given = block.get_submodule(self.qkv[0]).weight.shape[0]
        made = block.get_submodule(self.out).weight.shape[1]
        if self.interleaved:
            shared, size = 1, made
            slices = makes(model, path, *self.qkv, unit=3)
        elif len(self.qkv) == 1:
            size = (given - made) // 2
            shared = made // size
            slices = makes(model, path, *self.qkv, unit=shared)
            keys = makes(model, path, *self.qkv, blocks=2)
            slices += [Slice(s.tensor, s.dim, s.blocks, start=made) for s in keys]
        else:
            size = block.get_submodule(self.qkv[1]).weight.shape[0]
            shared = given // size
            slices = makes(model, path, self.qkv[0], unit=shared)
            slices += makes(model, path, *self.qkv[1:])
        slices += reads(model, path, self.out, unit=shared)
        return Axis(f"heads.{i}", size, tuple(slices), step=self._channels(block))

    def _channels(self, block: Any) -> int:
        """How wide one head is."""
        return int(block.get_submodule(self.attention).head_dim)

    def _step(self, model: Any) -> int:
        """In what steps the stream may shrink, so that the library can load it."""
        if self.wide:
            return self._channels(model.get_submodule(self.layers)[0])
        return 1

    def _alike(self, config: Any) -> bool:
        """Whether all blocks compute alike; else a block's number says how it attends."""
        return len(set(getattr(config, "layer_types", None) or [""])) == 1

    def _before(self, config: Any) -> bool:
        """Whether norms come before what they serve, so that a block can begin as the identity."""
        return True

    def build(self, model: Any, sizes: Sizes) -> nn.Module:
        student = skeleton(self, model, sizes)
        config, blocks = self._config(student), student.get_submodule(self.layers)
        for i, block in enumerate(blocks):
            block.get_submodule(self.attention).layer_idx = i
        config.num_hidden_layers = len(blocks)
        if len(getattr(config, "layer_types", None) or blocks) != len(blocks):
            config.layer_types = [config.layer_types[0]] * len(blocks)
        for name, given in self._sizes(student).items():
            if len(set(given)) == 1 and given[0] not in (0, getattr(config, name)):
                if not self.wide:  # from here on it is not hidden_size / num_attention_heads
                    config.head_dim = self._channels(blocks[0])
                setattr(config, name, given[0])
        self._fit(student)
        return student

    def _fit(self, student: Any) -> None:
        """Set what modules keep of their sizes beside their tensors."""

    def unsupported(self, model: Any) -> str:
        kind, sizes = model.config.model_type, self._sizes(model)
        for name, given in sizes.items():
            if uneven := one_for_all(f"a transformers {kind}", name, given, "different ones"):
                return uneven
        width, heads = sizes["hidden_size"][0], sizes["num_attention_heads"][0]
        if self.wide:
            channels = {heads * self._channels(model.get_submodule(self.layers)[0])}
            return heads_as_wide(f"a transformers {kind}", channels, width)
        return self._uneven(kind, width, heads)

    def _uneven(self, kind: str, width: int, heads: int) -> str:
        """Why the library refuses a stream of this width with so many heads."""
        return ""

    def _sizes(self, model: Any) -> dict[str, list[int]]:
        """What the configuration says once for all blocks -> what it is in each, by the tensors.

        0: what it cannot say.
        """
        blocks, sizes = model.get_submodule(self.layers), {}
        down = [block.get_submodule(self._mlp(block)[1]).weight.shape for block in blocks]
        sizes["hidden_size"], sizes[self.inner] = [down[0][0]], [shape[1] for shape in down]
        made = [block.get_submodule(self.out).weight.shape[1] for block in blocks]
        channels = self._channels(blocks[0])
        sizes["num_attention_heads"] = [size // channels for size in made]
        if hasattr(self._config(model), "num_key_value_heads"):
            sizes["num_key_value_heads"] = [
                self._heads(model, f"{self.layers}.{i}", block, i).size // channels
                for i, block in enumerate(blocks)
            ]
        return sizes
