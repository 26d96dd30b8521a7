"""What a folder of sentence-transformers does after its encoder: how tokens become one vector."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matta_adapters.skeleton import read_config
from matta_cli.errors import MattaError

# The modules of sentence-transformers after which an encoder is all there is.
_LIBRARY = "sentence_transformers."
_STEPS = ("Transformer", "Pooling", "Normalize")


def pooling(folder: Path, name: str, notes: list[str]) -> str:
    """What makes one embedding of a sentence's tokens: ``cls``, or empty for the mean.

    name: the user's of the folder. notes: takes what had to be assumed. Raises ``MattaError`` where
    a folder of sentence-transformers does more than an encoder, such pooling and a norm.
    """
    known = str(read_config(folder).get("sentence_pooling", ""))
    listed = folder / "modules.json"
    try:
        steps = json.loads(listed.read_text(encoding="utf-8"))
        paths = {step["type"].rpartition(".")[2]: Path(step["path"]) for step in steps}
    except OSError:
        if not known:
            notes.append(
                "An embedding is the mean over a sentence's tokens "
                "(assumed: there is no modules.json)."
            )
        return known
    except (ValueError, KeyError, TypeError, AttributeError):
        raise MattaError(f"{str(listed)!r} is damaged: it lists no modules.") from None
    if own := [step["type"] for step in steps if not step["type"].startswith(_LIBRARY)]:
        raise MattaError(
            f"{name!r} is made of {own[0]}, by its modules.json, which is code of its own and is "
            "not run: what it does to sentences is not known."
        )
    if others := sorted(paths.keys() - set(_STEPS)):
        raise MattaError(
            f"{name!r} ends in {', '.join(others)}, which is not supported: "
            f"only {', '.join(_STEPS)}."
        )
    where = folder / paths.get("Pooling", Path("1_Pooling"))
    mode = _mode(read_config(where))
    if not mode:
        card = where / "config.json"
        what = "names no way to pool" if card.is_file() else "is not there"
        raise MattaError(
            f"{name!r} is an encoder of sentences, by its modules.json, but "
            f"{where.name}/config.json, which says how tokens become one vector, {what}: put it "
            "there as its author has it."
        )
    if mode not in ("mean", "cls"):
        raise MattaError(
            f"{name!r} pools by {mode}, which is not supported: "
            "only the mean over tokens, or the first one."
        )
    return "cls" if mode == "cls" else ""


def _mode(config: Mapping[str, Any]) -> str:
    """What a Pooling of sentence-transformers does; several modes with a plus between them."""
    modes = config.get("pooling_mode") or [
        key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for key, used in config.items()
        if key.startswith("pooling_mode_") and used
    ]
    return modes if isinstance(modes, str) else "+".join(modes)
