"""What the adapters of transformers models share: matching, opening, checking and saving."""

from __future__ import annotations

import copy
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matta_adapters.advice import instead
from matta_adapters.shapes import stored_sizes
from matta_adapters.skeleton import fill, read_config, some
from matta_cli import trust
from matta_cli.adapter import Adapter, Source
from matta_cli.errors import MattaError, said


class Transformers(Adapter):
    """An adapter of models that transformers loads and saves.

    classes: the model types of config.json that it knows, and the class of each.
    kind: what the models are, with an article.
    tensors: names by which a state dict is known; bodies: what each of them may begin with.
    refused: settings of a configuration that cannot be nested -> why, as the end of a sentence.
    """

    default = ("mlp",)
    classes: Mapping[str, str]
    kind: str
    tensors: tuple[str, ...]
    bodies: tuple[str, ...]
    refused: Mapping[str, str]

    def matches(self, source: Source) -> bool:
        if source.folder is not None:
            return read_config(source.folder).get("model_type") in self.classes
        if source.tensors is not None:
            names = set(source.tensors)
            return any(names >= {f"{body}{n}" for n in self.tensors} for body in self.bodies)
        return any(c.__name__ in self.classes.values() for c in type(source.module).__mro__)

    def load(self, source: Source) -> nn.Module:
        self.notes, self.dropped = [], []
        if not self.matches(source):
            why = self._mismatch(source)
            raise MattaError(f"{source.name!r} is not {self.kind}: {why}.{instead(source)}")
        if source.folder is not None:
            model = self._from_folder(source.folder, source)
        elif source.tensors is not None:
            model = self._from_tensors(source.tensors, source)
        else:
            model = copy.deepcopy(source.module)
        for setting, why in self.refused.items():
            if getattr(model.config, setting, None):
                raise MattaError(f"{source.name!r} {why}.")
        return model.cpu().float().eval()

    def _mismatch(self, source: Source) -> str:
        """Why a source does not match, as the end of a sentence."""
        if source.folder is not None:
            given = read_config(source.folder).get("model_type")
            known = " or ".join(map(repr, self.classes))
            if given is None:
                return "its config.json cannot be read, or names no model_type"
            return f"its config.json says model_type {given!r}, not {known}"
        if source.tensors is not None:
            told, there = source.config.get("model_type"), set(source.tensors)
            if told is not None and told not in self.classes:
                return f"--config says model_type {told!r}"
            lacking = [[b + n for n in self.tensors if b + n not in there] for b in self.bodies]
            return f"it has no tensor {min(lacking, key=len)[0]}"
        if source.module is not None:
            return f"it is a {type(source.module).__name__}"
        return "it is neither a folder, nor a state dict, nor a module"

    def _class(self, model_type: str) -> Any:
        """The class of transformers for a model type of ``classes``."""
        import transformers

        return getattr(transformers, self.classes[model_type])

    def save(self, model: Any, folder: Path) -> None:
        with quiet():
            model.save_pretrained(folder)

    @abstractmethod
    def _from_folder(self, folder: Path, source: Source) -> Any:
        """The model in a folder of transformers."""

    @abstractmethod
    def _from_tensors(self, tensors: Mapping[str, Tensor], source: Source) -> Any:
        """The model that a state dict fits."""


class CausalLM(Transformers):
    """An adapter of language models: a body (``transformer.h.0...``) and ``lm_head``.

    embedding: the name of the tensor that the head may be tied to.
    old: the tensors that checkpoints of old releases carry, which hold no weights.
    """

    task = "causal_lm"
    loader = "transformers.AutoModelForCausalLM.from_pretrained({folder})"
    embedding: str
    old: re.Pattern[str]

    def _from_folder(self, folder: Path, source: Source) -> Any:
        whose = (folder / "modules.json").is_file() and not (folder / "matta.json").is_file()
        if whose and not source.task:
            raise MattaError(
                f"{source.name!r} is an encoder of sentences, by its modules.json, and of those "
                "that are decoders there is no task here. `--task causal_lm` takes it as a "
                "language model."
            )
        own = self._class(read_config(folder)["model_type"])
        model, _, _ = opened(own, source, f"a {own.__name__}", "one of its tensors", self.old)
        tied = model.lm_head.weight is model.get_input_embeddings().weight
        if model.config.tie_word_embeddings and not tied:
            # transformers keeps both where they differ; what reads the Students may go by the word
            model.config.tie_word_embeddings = False
            both = f"lm_head.weight is not {self.embedding}, though its config.json ties them"
            self.notes.append(f"{source.name!r}: {both}: both are kept, as transformers does.")
        return model

    def _from_tensors(self, tensors: Mapping[str, Tensor], source: Source) -> Any:
        body, _, embedding_name = self.embedding.partition(".")
        kept = {key: tensor for key, tensor in tensors.items() if not self.old.search(key)}
        whole = (f"{body}.", "lm_head.")
        named = {k if k.startswith(whole) else f"{body}.{k}": t for k, t in kept.items()}
        embedding, head = named.get(self.embedding), named.get("lm_head.weight")
        untied = embedding is not None and head is not None and not _equal(head, embedding)
        model = self._empty(named, untied, source)
        if model.config.tie_word_embeddings and embedding is not None:
            if untied:
                raise MattaError(
                    f"{source.name!r} has a head of its own (lm_head.weight), but --config ties it "
                    f"to {embedding_name}."
                )
            named["lm_head.weight"] = embedding
        model.tie_weights()  # part of the initialisation that was skipped
        if source.sizes:
            return fill(self.build(model, source.sizes), named, source.name)
        widths = stored_sizes(self.axes(model), named, ("mlp.",))
        if len(set(widths.values())) > 1:
            model = self.build(model, widths)
        return fill(model, named, source.name)

    @abstractmethod
    def _empty(self, named: Mapping[str, Tensor], untied: bool, source: Source) -> Any:
        """The model that these tensors fit, without weights. untied: it has a head of its own."""


def _has_weights(folder: Path) -> bool:
    return any(any(folder.glob(kind)) for kind in ("*.safetensors*", "*.bin*"))


def opened(
    kind: Any,
    source: Source,
    what: str,
    own: str,
    others: re.Pattern[str],
    optional: tuple[str, ...] = (),
    config: Any = None,
) -> tuple[Any, list[str], list[str]]:
    """The model of transformers' class ``kind`` in a folder, tensors missing, and not expected.

    what: the model in words; own: what its tensors are. others: what a checkpoint may carry
    besides; optional: how the names begin of those that it need not have. config: of a source that
    is a state dict, whose names may be those of older releases. Raises ``MattaError`` where
    transformers cannot load it, or its tensors are not those of the model.
    """
    folder = None if source.folder is None else str(source.folder)
    if source.folder is not None and not _has_weights(source.folder):
        needed = "beside its config.json: put model.safetensors there, too"
        raise MattaError(f"{source.name!r} holds no weights {needed}.")
    # else transformers 5 rounds float32 weights to what their config.json says
    given: dict[str, Any] = {"torch_dtype": torch.float32}
    given |= {} if folder else {"config": config, "state_dict": dict(source.tensors or {})}
    try:
        with trust.sealed(), quiet():
            # what has another shape is told below: transformers says only that there is some
            model, report = kind.from_pretrained(
                folder, output_loading_info=True, ignore_mismatched_sizes=True, **given
            )
    except Exception as error:  # transformers, its checks and safetensors each raise their own
        # a KeyError says no more than what was looked for
        why = f"{error} is not known to it" if isinstance(error, KeyError) else said(error)
        raise MattaError(f"transformers cannot load {source.name!r}: {why.rstrip('.')}.") from error
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    wrong = [
        f"{key} has shape {list(there)}, not {list(needed)}"
        for key, there, needed in sorted(report["mismatched_keys"])
    ]
    others_shape = {key for key, _, _ in report["mismatched_keys"]}
    missing = [key for key in missing if key not in others_shape]
    wrong += [f"{key} is missing" for key in missing if not key.startswith(optional)]
    wrong += [f"{key} is not {own}" for key in unexpected if not others.search(key)]
    if wrong:
        hint = _behind_a_word(missing, unexpected, source) if folder else ""
        raise MattaError(f"{source.name!r} does not fit {what}: {some(wrong)}.{hint}")
    return model, missing, unexpected


def _behind_a_word(missing: list[str], unexpected: list[str], source: Source) -> str:
    """A sentence where a folder has all that is missing, but with a word before its name."""
    words = {name.partition(".")[0] for name in unexpected}
    if len(words) != 1 or not missing:
        return ""
    word = f"{words.pop()}."
    if not {f"{word}{name}" for name in missing} <= set(unexpected):
        return ""
    assert source.folder is not None
    files = [source.folder / own for own in ("model.safetensors", "pytorch_model.bin")]
    told = f" Its names begin with {word!r}, as a training script's module puts it there: "
    if not (there := [file for file in files if file.is_file()]):
        return f"{told}save the model in it anew."
    config, more = source.folder / "config.json", f"--tokenizer {source.folder} for its other files"
    return f"{told}pass {there[0]} with --config {config}, and {more}."


def empty(config: Callable[[], Any], model: Callable[[Any], Any], failing: str) -> Any:
    """A model of a configuration, without weights: no time goes into random ones.

    Raises ``MattaError`` that begins with ``failing`` where transformers cannot make them.
    """
    try:
        made = config()
        with _no_init():
            return model(made)
    except MattaError:
        raise
    except Exception as error:  # transformers and its checks of configurations raise their own
        raise MattaError(f"{failing}: {said(error)}") from error


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.equal(other)


def _no_init() -> AbstractContextManager[None]:
    """Seconds are saved so for a GPT-2 Medium."""
    from transformers import initialization

    return initialization.no_init_weights()


@contextmanager
def quiet() -> Iterator[None]:
    """transformers draws progress bars and load reports; matta says what was loaded itself."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
