"""What the adapters of transformers models share: loading a folder, and doing so in silence."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from matta_adapters.skeleton import some
from matta_cli.adapter import Source
from matta_cli.errors import MattaError, said


def from_folder(cls: Any, source: Source, old_buffers: re.Pattern[str]) -> nn.Module:
    """The model of transformers' class ``cls`` in a checkpoint folder, float32.

    Raises ``MattaError`` where tensors are missing, or unknown and not ``old_buffers``, which old
    checkpoints carry.
    """
    loaded, report = opened(cls, source)
    wrong = [f"{key} is missing" for key in sorted(report["missing_keys"])]
    wrong += [
        f"{key} is not one of its tensors"
        for key in sorted(report["unexpected_keys"])
        if not old_buffers.search(key)
    ]
    if wrong:
        raise MattaError(f"{source.name!r} does not fit a {cls.__name__}: {some(wrong)}.")
    return loaded.float()


def opened(cls: Any, source: Source) -> tuple[Any, Any]:
    """What transformers makes of a checkpoint folder, and its report: the tensors that were
    missing, and those not expected.
    """
    try:
        with quiet():
            return cls.from_pretrained(str(source.folder), output_loading_info=True)
    except Exception as error:  # transformers, its checks and safetensors each raise their own
        raise MattaError(f"transformers cannot load {source.name!r}: {said(error)}") from error


def built(
    source: Source, config: Callable[[], Any], model: Callable[[Any], Any]
) -> tuple[Any, Any]:
    """A config and the model of it, without weights. Raises ``MattaError`` where transformers
    cannot make them.
    """
    try:
        made = config()
        with no_init():
            return made, model(made)
    except MattaError:
        raise
    except Exception as error:  # transformers and its checks of configurations raise their own
        raise MattaError(
            f"{source.name!r}: transformers cannot build a model from its --config: {said(error)}"
        ) from error


def no_init() -> AbstractContextManager[None]:
    """No time for random weights that are about to be overwritten (seconds for a GPT-2 Medium)."""
    try:
        where = importlib.import_module("transformers.initialization")
    except ImportError:  # before transformers 5
        where = importlib.import_module("transformers.modeling_utils")
    return where.no_init_weights()


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
