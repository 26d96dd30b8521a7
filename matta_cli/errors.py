"""What matta says to a person when something is wrong."""

from __future__ import annotations

import errno
import importlib
import re
import shlex
from typing import Any


def said(error: Exception) -> str:
    """What an error of another library says, in one line.

    A line that ends in a colon takes the next one along.
    """
    if code := refused_code(error):
        holds = f"its weights are a pickle that holds code ({code}), which is never run"
        return f"{holds}; save_pretrained writes safetensors"
    if "trust_remote_code" in str(error):
        return "it needs code that its folder brings along (auto_map), which is never run"
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def refused_code(error: Exception) -> str:
    """The code that torch refused to run as it opened a pickle; empty where it is another error."""
    found = re.search(r"unsupported global\W+(?:global )?([\w.]+)", str(error), re.IGNORECASE)
    return found[1] if found else ""


def number(error: BaseException) -> int:
    """The system's number (``errno``) of what went wrong; 0 where the error tells of none.

    Libraries in Rust (safetensors, tokenizers) tell it in words.
    """
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else 0


def no_room(error: BaseException) -> bool:
    """Whether the disk is full, the user's share of it is, or a file may be no larger."""
    return number(error) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def command(*words: object) -> str:
    """A command to type, with the default folder and what is empty left out."""
    return shlex.join(["matta", *(str(w) for w in words if str(w) not in ("", "matta-out"))])


def beside(name: str) -> list[str]:
    """The words of a command that name a family beside the first one; none of the first."""
    return ["--name", name] if name else []


def extra(module: str, what: str, name: str) -> Any:
    """A module of a package that an extra of matta brings. what: what it is for, in a sentence.

    Raises ``MattaError`` where it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise  # it is there, and something that it needs is not
        raise MattaError(f"{what} needs the package {package}: {install(name)}.") from None


def install(name: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'matta[{name}]'"


class MattaError(Exception):
    """A sentence for the user: what is wrong, in their own names, and what to do about it.

    The command line prints it on stderr and exits with code 1. From Python it is an ordinary
    exception.
    """


class Interrupted(MattaError):
    """Training was stopped by a signal after its checkpoint had been saved.

    ``code`` is the exit code: 128, and the number of the signal.
    """

    def __init__(self, sentence: str, code: int = 130) -> None:
        super().__init__(sentence)
        self.code = code
