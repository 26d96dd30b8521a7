"""What a GGUF file says of its model, and transformers' reader leaves out without a word."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from matta_cli import trust
from matta_cli.errors import MattaError

# how a key ends -> the setting of a configuration that it is, in classes that have it
_SETTINGS = {
    "context_length": "n_positions",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
# Llama 3.1 and later: files have the factors of each frequency, made of these and of one number
_LLAMA3: dict[str, Any] = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3 |= {"original_max_position_embeddings": 8192}
# of the largest Gemmas, by their layers: no key says it
_PRE_ATTENTION = {("gemma2", 46): 144, ("gemma3", 62): 168}


def check(reader: Any, name: str) -> None:
    """Raise ``MattaError`` where a file says that its model has more layers than any.

    reader: gguf's, of the file. name: the user's of it.
    """
    layers = _number(reader, f"{_architecture(reader)}.block_count")
    trust.check_config({"num_hidden_layers": layers}, repr(name))


def completed(config: Any, reader: Any, name: str, instead: str) -> Any:
    """A configuration of transformers, with what the file says besides.

    reader: gguf's, of the file. name: the user's of it; instead: what else can be done. Raises
    ``MattaError`` where the file scales rotary frequencies in a way that is not known here.
    """
    own = config.to_dict()
    architecture = _architecture(reader)
    told = {key: _number(reader, f"{architecture}.{key}") for key in _SETTINGS}
    # 0 says there: none
    found = {s: told[key] for key, s in _SETTINGS.items() if s in own and told[key]}
    changes: dict[str, Any] = {s: value for s, value in found.items() if value != own[s]}
    layers = architecture, own.get("num_hidden_layers")
    if layers in _PRE_ATTENTION:
        changes["query_pre_attn_scalar"] = _PRE_ATTENTION[layers]
    changes |= _rotary(own, found.get("head_dim"), architecture, reader, name, instead)
    return type(config).from_dict({**own, **changes}) if changes else config


def _rotary(
    own: dict[str, Any], head: Any, architecture: str, reader: Any, name: str, instead: str
) -> dict[str, Any]:
    """What changes of a configuration's rotary positions. head: channels, where the file says so.

    Raises ``MattaError`` for what is not known here.
    """
    key = "rope_parameters" if "rope_parameters" in own else "rope_scaling"  # before 5
    known = own.get(key) or {}
    size = head or own.get("head_dim")
    size = size or own.get("hidden_size", 0) // (own.get("num_attention_heads") or 1)
    count = _number(reader, f"{architecture}.rope.dimension_count")
    part = known.get("partial_rotary_factor") or own.get("partial_rotary_factor") or 1.0
    if count and key in own and count != int(size * part):
        raise _refused(name, f"turns {count} of {size} channels by position", instead)
    kind = _text(reader, f"{architecture}.rope.scaling.type")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if any(tensor.startswith("rope_factors") for tensor in tensors):
        kind = kind or "longrope"
    factor = _number(reader, f"{architecture}.rope.scaling.factor")
    if kind == "linear" and factor:
        scaled = {"rope_type": kind, "factor": factor}
        if whole := known.get("full_attention"):  # Gemma 3 scales those of whole attention alone
            return {key: {**known, "full_attention": {**whole, **scaled}}}
        return {key: {**known, **scaled}}
    if kind not in ("", "none", known.get("rope_type", "default")):
        raise _refused(name, f"scales rotary positions ({kind})", instead)
    if "rope_freqs.weight" in tensors and known.get("rope_type", "default") == "default":
        factors = torch.tensor(tensors["rope_freqs.weight"].data, dtype=torch.float64)
        if not factors.eq(1).all():
            base = float((known or own).get("rope_theta", 10000.0))
            if not factors.allclose(_llama3(base, factors), rtol=1e-3):
                raise _refused(name, "scales rotary frequencies (rope_freqs.weight)", instead)
            return {key: {**known, **_LLAMA3, "factor": factors.max().item()}}
    return {}


def _llama3(base: float, like: Tensor) -> Tensor:
    """By what Llama 3.1 divides each frequency, where the longest wave's divisor is as in ``like``.

    base: the wave lengths'. As transformers computes it in ``_compute_llama3_parameters``.
    """
    n = len(like)
    waves = 2 * math.pi * base ** (torch.arange(n, dtype=torch.float64) / n)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    turns = _LLAMA3["original_max_position_embeddings"] / waves
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - smooth) / like.max() + smooth)


def _refused(name: str, does: str, instead: str) -> MattaError:
    return MattaError(f"{name!r} {does}, which transformers' reader leaves out: {instead}.")


def _number(reader: Any, key: str) -> float | int:
    """The number under a key; 0 where there is none."""
    field = reader.fields.get(key)
    values = [] if field is None or len(field.data) != 1 else field.parts[field.data[0]]
    return values[0].item() if len(values) == 1 else 0


def _architecture(reader: Any) -> str:
    return _text(reader, "general.architecture")


def _text(reader: Any, key: str) -> str:
    field = reader.fields.get(key)
    return "" if field is None else bytes(field.parts[field.data[0]]).decode("utf-8", "replace")
