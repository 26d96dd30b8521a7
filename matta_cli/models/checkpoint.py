"""The state dict in what a training script wrote, by the bare module's names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from matta_cli.errors import MattaError

# where training scripts put an average of the weights, and the weights themselves
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema")
_WRAPPED = ("state_dict", "model", "model_state_dict", "module", "net", "network", "weights")
# what torch.compile, FSDP and activation checkpointing put between the parts of a name
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_COUNTER = "n_averaged"  # of torch's AveragedModel, beside the module that it averages
# under which classes stand beside weights, by name -> number, or the other way round
_NUMBERS = ("class_to_idx", "label2id", "label_to_idx")
_NAMES = (*_NUMBERS, "idx_to_class", "id2label", "classes", "class_names", "label_names")
_DEPTH = 8  # dictionaries within one another


@dataclass(frozen=True)
class Opened:
    """What a file holds: tensors by name, or a module.

    config: what nanoGPT says of its model beside them. notes: what was chosen, for people. classes:
    their names in the model's order, where these are told beside them.
    """

    state: Mapping[str, Tensor] | nn.Module
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


def find(opened: Any, name: str) -> Opened:
    """The state dict, or the module, in what ``torch.load`` gave.

    Of several, an average of the weights comes first, as timm has it. Raises ``MattaError`` where
    there is none, or where it is not known which one is meant.
    """
    notes: list[str] = []
    config: Mapping[str, Any] = {}
    classes: tuple[str, ...] = ()
    for _ in range(_DEPTH):
        if isinstance(opened, nn.Module):
            return Opened(_unwrapped(opened), config, tuple(notes), classes)
        if not isinstance(opened, Mapping):
            what = f"{name!r} holds a {type(opened).__name__}"
            raise MattaError(f"{what}, but a state dict (tensors by name) is needed.")
        if _is_state(opened):
            return Opened(strip_prefixes(_tensors(opened)), config, tuple(notes), classes)
        config, classes = config or _nanogpt(opened), classes or _classes(opened)
        key = _chosen(opened, name, notes)
        if key is None:
            state = strip_prefixes(_with_named_rest(opened, name, notes))
            return Opened(state, config, tuple(notes), classes)
        opened = opened[key]
    raise MattaError(f"{name!r} holds dictionaries within dictionaries, but no state dict.")


def strip_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict by the bare module's names, without what wrappers put into them.

    These are torch.compile, FSDP, activation checkpointing, DDP, DeepSpeed and AveragedModel.
    """
    named: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        for wrapper in _WRAPPERS:
            key = key.replace(wrapper, "")
        named[key] = tensor
    if all(key.startswith("module.") or key == _COUNTER for key in named):
        named.pop(_COUNTER, None)
    while named and all(key.startswith("module.") for key in named):
        named = {key.removeprefix("module."): tensor for key, tensor in named.items()}
    return named


def is_wrapped(names: Collection[str]) -> bool:
    """Whether tensors have the names of a module that is wrapped: ``strip_prefixes`` knows how."""
    inside = any(wrapper in name for name in names for wrapper in _WRAPPERS)
    return bool(names) and (inside or all(name.startswith("module.") for name in names))


def without_prefix(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]] | None:
    """The word with which all names begin (``model.``), and the tensors without it; else None."""
    words = {key.partition(".")[0] for key in tensors}
    if len(words) != 1 or not all("." in key for key in tensors):
        return None
    word = f"{words.pop()}."
    return word, {key.removeprefix(word): tensor for key, tensor in tensors.items()}


def by_word(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors by the first word of their names (``model.``), without it."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        word, dot, rest = key.partition(".")
        found.setdefault(word + dot, {})[rest] = tensor
    return found


def _is_state(value: Any) -> bool:
    """Whether this is tensors by name; extra states of layers are no tensors, and hold none."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    own = [v for key, v in value.items() if not key.endswith("_extra_state")]
    return bool(own) and all(isinstance(v, Tensor) for v in own)


def _tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _holds(value: Any, depth: int = _DEPTH) -> bool:
    """Whether a state dict, or a module, lies in this."""
    if isinstance(value, nn.Module) or _is_state(value):
        return True
    if not isinstance(value, Mapping) or not depth:
        return False
    return any(_holds(value.get(key), depth - 1) for key in (*_AVERAGED, *_WRAPPED))


def _chosen(opened: Mapping[Any, Any], name: str, notes: list[str]) -> str | None:
    """Under which key the model lies; None where the tensors lie among other things."""
    usual = [key for key in (*_AVERAGED, *_WRAPPED) if _holds(opened.get(key))]
    if usual:
        if len(usual) > 1:
            others = ", ".join(map(repr, usual[1:]))
            average = usual[0] in _AVERAGED
            why = "an average of the weights, which timm takes, too" if average else "the usual one"
            other = "save the other alone to take that"
            notes.append(f"{name} holds {usual[0]!r} and {others}: {usual[0]!r} is {why}; {other}.")
        if more := [repr(key) for key in opened if key not in usual and _beside(key, opened[key])]:
            what = f"The weights of {name} are those under {usual[0]!r}"
            notes.append(f"{what}; what {', '.join(more[:4])} holds is left out.")
        return usual[0]
    found = [key for key, value in opened.items() if isinstance(key, str) and _holds(value)]
    found = [key for key in found if not key.startswith("optim")]
    if len(found) > 1:
        several = f"{name!r} holds several state dicts ({', '.join(map(repr, found[:6]))})"
        raise MattaError(f"{several}: save the one that is meant alone, and pass that.")
    if found:
        notes.append(f"The weights of {name} are those under {found[0]!r}.")
        return found[0]
    return None


def _beside(key: Any, value: Any, depth: int = _DEPTH) -> bool:
    """Whether tensors by name lie under a key, such as another average; an optimizer's are none."""
    if not isinstance(value, Mapping) or not depth or re.match("(?i)optim|sched", str(key)):
        return False
    return _is_state(value) or any(_beside(k, own, depth - 1) for k, own in value.items())


def _with_named_rest(opened: Mapping[Any, Any], name: str, notes: list[str]) -> dict[str, Tensor]:
    """Tensors that lie among numbers and words, which are left out."""
    for key, value in opened.items():
        if isinstance(value, Tensor) and not isinstance(key, str):
            raise MattaError(f"{name!r} has a tensor called {key!r}: names of tensors are text.")
    tensors = {key: value for key, value in _tensors(opened).items() if "." in key}
    if not tensors:
        keys = ", ".join(repr(key) for key in list(opened)[:4]) or "nothing"
        what = f"{name!r} holds a dictionary with {keys}"
        raise MattaError(f"{what}, but no state dict (tensors by name).")
    rest = [repr(key) for key in opened if key not in tensors]
    notes.append(f"What is no tensor in {name} is left out: {', '.join(rest[:6])}.")
    return tensors


def _nanogpt(opened: Mapping[Any, Any]) -> dict[str, Any]:
    """What a checkpoint of nanoGPT says of its model, as GPT-2's configuration has it."""
    told = opened.get("model_args")
    names = {"n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd"}
    names |= {"block_size": "n_positions", "vocab_size": "vocab_size"}
    if not isinstance(told, Mapping) or not all(type(told.get(key)) is int for key in names):
        return {}
    end = 50256 if told["vocab_size"] in (50257, 50304) else None  # of GPT-2's own tokens
    ends = {"bos_token_id": end, "eos_token_id": end}
    return {own: told[key] for key, own in names.items()} | ends | {"activation_function": "gelu"}


def _classes(opened: Mapping[Any, Any]) -> tuple[str, ...]:
    """The names of classes that training scripts put beside the weights, in the model's order."""
    for key in _NAMES:
        told = opened.get(key)
        pairs = list(told.items()) if isinstance(told, Mapping) else []
        pairs = list(enumerate(told)) if isinstance(told, (list, tuple)) else pairs
        turned = [(k, name) for name, k in pairs] if key in _NUMBERS else pairs
        # keys of JSON are text
        known = {str(k): name for k, name in turned if isinstance(k, (int, str))}
        names = [known.get(str(k)) for k in range(len(pairs))]
        if all(isinstance(name, str) for name in names) and len({*names}) == len(names) > 1:
            return tuple(map(str, names))
    return ()


def _unwrapped(module: nn.Module) -> nn.Module:
    """The user's own module, without torch.compile's and DDP's wrappers."""
    *_, bare = _within(module)
    return bare


def _within(module: nn.Module) -> Iterator[nn.Module]:
    inner: Any = module
    while isinstance(inner, nn.Module):
        module = inner
        yield module
        inner = getattr(module, "_orig_mod", None)
        if inner is None and type(module).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = module.module
