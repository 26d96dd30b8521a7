"""Adapters and tasks, found by entry point: built-ins are declared exactly as an outsider's are.

An adapter may also be named by where its class is, without a package: ``FILE.py:Class`` or
``package.module:Class``. That runs code, so only the user may name it (see ``matta_cli.trust``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from matta_cli import trust
from matta_cli.adapter import Adapter, Source
from matta_cli.errors import MattaError
from matta_cli.files import reading
from matta_cli.models import names
from matta_cli.models.checkpoint import by_word, without_prefix
from matta_cli.models.foreign import layout

# the first words of tensors beside a model that are none of its weights
_NO_MODEL = re.compile(
    r"(?i)(criterion|.*loss.*|.*metric.*|.*(acc|accuracy|auroc|auc|f1|precision|recall|perplexity)"
    r"|(train|val|valid|test)_.*|(ema_)?(decay|num_updates|step)|optim.*|.*scheduler|epoch)\.?$"
)


def load_class(group: str, name: str) -> type:
    """The class of an entry point.

    Raises ``MattaError`` where there is none of the name, or several, or it does not import.
    """
    found = names.entry(group, name)
    word = group.removeprefix("matta.").removesuffix("s")
    try:
        return found.load()
    except Exception as error:
        what = f"The {word} {name!r} ({names.origin(found)})"
        raise MattaError(f"{what} does not import: {_said(error)}.") from error


def adapter(spec: str, folder: Path | None = None) -> Adapter:
    """A fresh adapter by its name, or by where its class is (``FILE.py:Class``, ``pkg.mod:Class``).

    folder: where the ``matta.json`` lies that says so; without it the user does. A relative file is
    looked for in the working directory, and then in the folders above ``folder``, so that a project
    may be moved. Raises ``MattaError`` where there is none, it does not import, is no adapter, or
    only ``folder`` says so.
    """
    where, colon, name = spec.rpartition(":")
    if not colon:
        if spec.endswith(".py"):
            hint = f"name the class in it too, as in {spec}:MyAdapter"
            raise MattaError(f"--adapter {spec!r} is a file: {hint}.")
        made = _made(load_class("matta.adapters", spec), f"The adapter {spec!r}")
        made.name = made.spec = spec
        return made
    code, module = _imported(spec, folder)
    cls = getattr(module, name, None)
    if not isinstance(cls, type):
        classes = {n: c for n, c in vars(module).items() if isinstance(c, type)}
        there = [n for n, c in classes.items() if issubclass(c, Adapter) and c is not Adapter]
        known = ", ".join(there) or "none"
        raise MattaError(f"{where!r} has no class {name!r}; its adapters: {known}.")
    made = _made(cls, f"The adapter {spec!r}")
    made.name, made.spec = made.name or name, spec
    code.remember()
    return made


def trusted(spec: str) -> Adapter | None:
    """The adapter that the user trusts by this name; None for a function that builds models.

    Folders and settings may name it from now on. Raises ``MattaError`` as ``adapter`` does.
    """
    if trust.is_code(spec):
        code, module = _imported(spec, None)
        thing = getattr(module, code.thing, None)
        if callable(thing) and not (isinstance(thing, type) and issubclass(thing, Adapter)):
            code.remember()
            return None
    return adapter(spec)


def _imported(spec: str, folder: Path | None) -> tuple[trust.Code, ModuleType]:
    """What a spec names, and its module."""
    where = spec.rpartition(":")[0]
    code = trust.found(spec, folder)
    if where.endswith(".py") and code.file is None:
        if code.by is None:
            raise MattaError(f"There is no file {where!r} for --adapter {spec!r}.")
        gone = "but that file is gone: put it back, or run where it is"
        raise MattaError(f"{code.by} was made with the adapter {spec!r}, {gone}.")
    code.check(f"the adapter {spec!r}")
    try:
        module = code.imported()
    except Exception as error:
        raise MattaError(f"The adapter {spec!r} does not import: {_said(error)}.") from error
    return code, module


def _made(cls: Any, what: str) -> Adapter:
    if not (isinstance(cls, type) and issubclass(cls, Adapter)):
        raise MattaError(f"{what} is no subclass of matta_cli.adapter.Adapter.")
    if missing := sorted(cls.__abstractmethods__):
        raise MattaError(f"{what} lacks {', '.join(missing)}.")
    # one of many kinds of model sets it in load
    tasks = names.installed("matta.tasks")
    if cls.task and cls.task not in tasks:
        raise MattaError(f"{what} has the task {cls.task!r}; there are {', '.join(tasks)}.")
    try:
        return cls()
    except Exception as error:
        raise MattaError(f"{what} cannot be made: {_said(error)}.") from error


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")


def adapters() -> dict[str, Adapter]:
    """Every installed adapter that imports; of one that does not, ``problems`` says why."""
    return _asked()[0]


def problems() -> list[str]:
    """A sentence about each installed adapter that cannot be used."""
    return _asked()[1]


def _asked() -> tuple[dict[str, Adapter], list[str]]:
    working, broken = {}, []
    for name in names.installed("matta.adapters"):
        try:
            working[name] = adapter(name)
        except MattaError as error:
            broken.append(str(error))
    return working, broken


def knows(adapter: Adapter, source: Source) -> bool:
    """``adapter.matches(source)``; an adapter that fails at the question does not know it."""
    try:
        return adapter.matches(source)
    except Exception:
        return False


def bare(source: Source, among: Iterable[Adapter]) -> Source:
    """``source`` by names that one of these adapters knows, or as it is where none does.

    A training script's own module around the model puts one word before all names (``model.``).
    """
    known = list(among)
    found = _stripped(source, known)
    return found if known_to(known, found) else _among_others(found, known) or source


def known_to(adapters: Iterable[Adapter], source: Source) -> bool:
    """Whether one of these adapters knows a source, or it has no names that could be others."""
    return source.tensors is None or any(knows(adapter, source) for adapter in adapters)


def _stripped(source: Source, known: list[Adapter]) -> Source:
    """``source`` without the words before all names, as many as an adapter needs."""
    while not known_to(known, source):
        shorter = without_prefix(source.tensors or {})
        if shorter is None:
            break
        word, tensors = shorter
        note = f"All names in {source.name} begin with {word!r}, which is left out."
        source = replace(source, tensors=tensors, notes=(*source.notes, note))
    return source


def _among_others(source: Source, known: list[Adapter]) -> Source | None:
    """The model of a training script's module that has tensors of its own, such as a loss's.

    None where none of its parts is one that an adapter knows. Raises ``MattaError`` where several
    are, or what is beside it may be a part of it.
    """
    words = by_word(source.tensors or {})
    parts = {
        word: _stripped(replace(source, tensors=own), known)
        for word, own in words.items()
        if word.endswith(".")
    }
    fitting = {word: part for word, part in parts.items() if known_to(known, part)}
    if not fitting:
        return None
    others = [word for word in words if word not in fitting]
    if len(fitting) > 1 or not all(map(_NO_MODEL.match, others)):
        listed = ", ".join([*fitting, *others][:6])
        save = "save the state dict of the one that is meant alone, and pass that"
        raise MattaError(f"{source.name!r} has tensors of several modules ({listed}): {save}.")
    [(word, found)] = fitting.items()
    listed = ", ".join(map(repr, others))
    note = f"Of {source.name} the tensors under {word!r} are taken; left out: {listed}."
    return replace(found, notes=(*source.notes, note))


def detect(source: Source) -> Adapter:
    """The adapter that knows ``source``. Raises ``MattaError`` where none or several do."""
    working, broken = _asked()
    matching = [a for a in working.values() if knows(a, source)]
    if len(matching) == 1:
        return matching[0]
    several_fit = ", ".join(a.name for a in matching)
    if matching:
        several = f"several adapters fit ({several_fit}); choose one with --adapter"
        raise MattaError(f"{source.name}: {several}.")
    none = "no installed adapter (`matta adapters` lists them) knows this architecture"
    if source.tensors is not None:
        none = f"{none}; {layout(source.tensors)}"
    more = ""
    if source.folder is not None:
        config = reading.record(reading.lenient(source.folder / "config.json"))
        kind = config.get("model_type")
        if config.get("is_encoder_decoder"):
            raise MattaError(
                f"{source.name} is an encoder-decoder ({kind}): these have no task here."
            )
        none = f"{none}, whose config.json says model_type {kind!r}" if kind else none
        inner = reading.record(config.get("text_config")).get("model_type")
        if any(inner in getattr(a, "classes", ()) for a in working.values()):
            more = f"Its text part, a {inner}, can be opened from a folder of its own."
    if source.folder is not None and not (source.folder / "config.json").is_file():
        held = sorted(path.name for path in source.folder.iterdir())[:4]
        none = f"{none}; the folder has no config.json, but {', '.join(held) or 'nothing'}"
    hint = ""
    if "auto" in working and source.tensors is None:
        hint = "If it can be traced, `--adapter auto` takes it."
        file = source.folder / "model.safetensors" if source.folder is not None else Path()
        if file.is_file() and not file.with_name("config.json").is_file():
            hint = f"Pass {file} with --config FILE.json, or --adapter NAME."
    elif "auto" in working:
        hint = (
            "If it can be traced, `auto` takes it by the function that builds it: matta convert "
            f"my_pkg.models:build --weights {source.name} --adapter auto --example SHAPES."
        )
    raise MattaError(" ".join(filter(None, [f"{source.name}: {none}.", *broken, more, hint])))
