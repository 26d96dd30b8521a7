"""Which code runs: what this user named on this machine, and nothing that a file brings along.

Code is named as ``pkg.mod:thing`` or ``FILE.py:thing``. What a person types (an argument, a flag, a
keyword of the Python API) runs, and is written down with the file that it stands for. What a file
says (``Read``) runs where the same name was typed before and still stands for the same file; never
where that lies with the folder that names it, and nothing of the standard library.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from matta_cli.errors import MattaError, command

_SOURCE = re.compile(r"(hf[-_]hub|local-dir):")  # before what timm opens
# what libraries make one by one -> the most that a model could have
_COUNTED = (
    (re.compile(r"(^|_)n?_?(layers?|experts)$|^depths?$"), 4096),
    (re.compile(r"^num_(labels|classes)$"), 1 << 24),
)
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


BESIDE: set[str] = set()  # folders of code that the user named, in sys.path


def is_code(text: str) -> bool:
    """Whether a text has the form of a name of code in a module, ``pkg.mod:thing``."""
    return bool(_NAME.fullmatch(text))


class Read(str):
    """A text that ``file`` says, where a name of code may stand."""

    file: Path

    def __new__(cls, text: str, file: Path) -> Read:
        made = super().__new__(cls, text)
        made.file = file
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Read, (str(self), self.file)


@dataclass(frozen=True)
class Code:
    """What a name of code stands for, found without running anything.

    module: where it is no file (``pkg.mod``). file: what would run; None where there is none. by:
    the file or folder that names it; None where a person does. here: whether only the current
    folder has it.
    """

    name: str
    module: str
    thing: str
    file: Path | None
    by: Path | None
    here: bool = False

    @property
    def key(self) -> str:
        """How a person names the same from anywhere."""
        return f"{self.module or self.file}:{self.thing}"

    def check(self, what: str = "") -> None:
        """Raise ``MattaError`` where a file names it, and may not."""
        if self.by is None:
            return
        names = f"{self.by} names {what or self.name}"
        if self.module.partition(".")[0] in sys.stdlib_module_names:
            raise MattaError(f"{names}, which is of Python and builds no model: it is not run.")
        if self.file is not None and self._lies_with():
            raise MattaError(f"{names}, which lies with it and is no code of yours: it is not run.")
        if self.file is None:
            hint = "run matta from the folder that holds it, or install it"
            raise MattaError(f"{names}, which is not found here: {hint}.")
        if self._line not in recorded():
            raise MattaError(
                f"{names}, which is code that nobody has named on this machine: it is not run; if "
                f"you trust it, run `{command('adapters', self.key)}` and then this again."
            )

    def imported(self) -> ModuleType:
        """Its module. Raises whatever that raises while it is imported."""
        if not self.module:
            assert self.file is not None
            return _module(self.file, self.file.stat().st_mtime_ns)
        if self.here:
            _importable(Path.cwd())
        return importlib.import_module(self.module)

    def remember(self) -> None:
        """Write down that a person named it.

        Raises ``MattaError`` where that cannot be kept, or could be forged.
        """
        if self.by is None:
            _record(self._line)

    @property
    def _line(self) -> str:
        return f"{self.key}\t{self.file}" if self.module else self.key

    def _lies_with(self) -> bool:
        """Whether it is of the folder that names it, or came into the current folder with that."""
        assert self.by is not None and self.file is not None
        folder = (self.by if self.by.is_dir() else self.by.parent).resolve()
        here = Path.cwd().resolve()
        if folder == here:
            return False  # the user works here
        if self.module and folder.is_relative_to(here):
            folder = here / folder.relative_to(here).parts[0]
        return self.file.is_relative_to(folder)


def found(name: str, folder: Path | None = None) -> Code:
    """What a name stands for. folder: the folder that names it, where no person does.

    A relative file is looked for in the current folder, and then in those above ``folder``, so that
    a project may be moved.
    """
    by = name.file if isinstance(name, Read) else folder
    where, _, thing = str(name).rpartition(":")
    if where.endswith(".py"):
        above = [] if by is None else list(by.resolve().parents)
        paths = (base / Path(where).expanduser() for base in (Path(), *above))
        file = next((path.resolve() for path in paths if path.is_file()), None)
        return Code(str(name), "", thing, file, by)
    origin, here = _origin(where)
    return Code(str(name), where, thing, origin, by, here)


def _origin(module: str) -> tuple[Path | None, bool]:
    """The file of a module, and whether only the current folder has it. Runs no package."""
    if module in sys.modules:
        file = getattr(sys.modules[module], "__file__", None)
        return (Path(file).resolve() if file else None), False
    importlib.invalidate_caches()
    names, path, here = module.split("."), None, False
    spec: ModuleSpec | None = None
    for depth in range(len(names)):
        name = ".".join(names[: depth + 1])
        if depth and path is None:
            return None, here  # no package
        spec = _spec(name, path)
        if spec is None and not depth:
            spec = PathFinder.find_spec(name, [str(Path.cwd())])
            here = spec is not None
        if spec is None:
            return None, here
        path = spec.submodule_search_locations
    assert spec is not None
    places = [spec.origin] if spec.has_location and spec.origin else list(path or [])
    return (Path(places[0]).resolve() if places else None), here


def _spec(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """What any importer knows of a module, such as that of an editable installation."""
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    specs = (find(name, path) for find in finders if find is not None)
    return next((spec for spec in specs if spec is not None), None)


def _importable(folder: Path) -> None:
    """Let code that the user named import what lies beside it."""
    if str(folder) not in sys.path:
        # last, so that a file there takes no installed package's place
        sys.path.append(str(folder))
        BESIDE.add(str(folder))


@cache
def _module(path: Path, modified: int) -> ModuleType:
    """A file as a module, which may import what lies beside it.

    It is imported once for each version of the file, or classes would differ.
    """
    _importable(path.parent)
    name = f"{path.stem}_{hashlib.sha256(f'{path}{modified}'.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    # dataclasses look their module up there
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


# The record of what was typed


def home() -> Path:
    """The folder in which matta keeps things of this user."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "matta"
    return Path(os.environ.get("MATTA_CACHE") or usual).expanduser()


def made_home() -> Path:
    """The same folder, which only this user can write to if it was not there."""
    home().parent.mkdir(parents=True, exist_ok=True)
    home().mkdir(mode=0o755, exist_ok=True)
    return home()


def recorded() -> list[str]:
    """What was typed on this machine; nothing where others could have written it."""
    file = home() / "adapters.txt"
    if _forgeable(file):
        return []
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []


def _record(line: str) -> None:
    if line in recorded():
        return
    file = home() / "adapters.txt"
    try:
        made_home()
        if wrong := _forgeable(file):
            raise MattaError(
                f"What you name as your code is kept in {file}, but {wrong}: run `chmod go-w` on "
                "it, or set MATTA_CACHE to a folder that is yours alone."
            )
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(file, flags, 0o600), "a", encoding="utf-8") as opened:
            opened.write(line + "\n")
    except OSError as error:
        what = f"{file} cannot be written ({error.strerror})"
        raise MattaError(f"{what}: set MATTA_CACHE to a folder of yours.") from error


def _forgeable(file: Path) -> str:
    """Why a file could be another user's word; empty where it could not, or is not there."""
    if not hasattr(os, "getuid"):
        return ""
    for path in (file.parent, file):
        try:
            status = path.stat() if path == file.parent else path.lstat()
        except OSError:
            continue
        if status.st_uid != os.getuid():
            return f"{path} belongs to another user"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"other users can write to {path}"
        if path == file and not stat.S_ISREG(status.st_mode):
            return f"{path} is no regular file"
    return ""


# What stock libraries would run by themselves


@contextmanager
def sealed() -> Iterator[None]:
    """Stock libraries open files in here: pickles as tensors alone, and no code of a folder's.

    torch's own switch holds for each of its callers, whichever release of which library that is.
    """
    forced, never = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in (forced, never)}
    os.environ[forced] = "1"
    dynamic: Any = None
    if "transformers" in sys.modules:
        dynamic = importlib.import_module("transformers.dynamic_module_utils")
        seconds = getattr(dynamic, "TIME_OUT_REMOTE_CODE", 15)
        dynamic.TIME_OUT_REMOTE_CODE = 0  # else it asks whether to run it
    try:
        yield
    finally:
        del os.environ[forced]
        os.environ.update({name: value for name, value in before.items() if value is not None})
        if dynamic is not None:
            dynamic.TIME_OUT_REMOTE_CODE = seconds


def check_config(config: Any, said: str) -> None:
    """Raise ``MattaError`` where a stock library would open other files, or code, by a config.

    And where it would make parts of a model one by one without end. said: whose configuration it
    is, in the error.
    """
    waiting = [config]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        for key, value in node.items() if isinstance(node, Mapping) else ():
            waiting.append(value)
            _refuse_endless(str(key), value, said)
            words = [value] if isinstance(value, str) else []
            if isinstance(value, Mapping):
                words = [word for word in value.values() if isinstance(word, str)]
            if "attn_implementation" in str(key) or "experts_implementation" in str(key):
                wrong = [word for word in words if "/" in word]  # a kernel of the hub
            elif key in ("architecture", "backbone", "model_name"):
                wrong = [word for word in words if _SOURCE.match(word)]
            elif key == "model_args" and isinstance(value, Mapping):  # of timm.create_model
                wrong = [
                    name for name in value if str(name).startswith(("pretrained", "cache_dir"))
                ]
            else:
                wrong = words if key == "checkpoint_path" else []
            if wrong:
                raise MattaError(
                    f"{said} sets {key} to {wrong[0]!r}, which is code or a file from elsewhere: "
                    "it is not opened; take it out."
                )


def _refuse_endless(key: str, value: Any, said: str) -> None:
    for pattern, most in _COUNTED:
        numbers = value if isinstance(value, list) else [value]
        many = [own for own in numbers if isinstance(own, int) and own > most]
        if many and pattern.search(key):
            has = "more than any model has: put the right number there"
            raise MattaError(f"{said} sets {key} to {many[0]!r:.60}, {has}.")


def isolated(code: str) -> list[str]:
    """The command of a process of its own for Python code.

    ``python -c`` looks for modules in the current folder first: a json.py there would run. (``-P``
    does without since Python 3.11 only.)
    """
    own = str(Path(__file__).resolve().parents[1])
    start = f"import sys; sys.path[:] = filter(None, sys.path); sys.path.append({own!r})"
    return [sys.executable, "-c", f"{start}\n{code}"]
