"""Kills at every moment at which a process changes something on the disk."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink")
KILLED, FAILED = 77, 78


def killed_at(moment: int, act: Callable[[], Any], below: Path) -> bool:
    """Do something in a process that dies before its so-manyeth change below a folder.

    It dies as by SIGKILL: nothing is flushed, and no ``finally`` runs. Returns whether there were
    that many changes; without, all was done.
    """
    process = os.fork()
    if process == 0:
        left, where = moment, str(below.resolve())

        def count(event: str, args: tuple[Any, ...]) -> None:
            nonlocal left
            if event not in _CHANGES or not isinstance(args[0], (str, os.PathLike)):
                return
            read_only = event == "open" and args[1] in ("r", "rb", None)
            if read_only or not os.path.abspath(args[0]).startswith(where):  # noqa: PTH100
                return
            left -= 1
            if left < 0:
                os._exit(KILLED)

        sys.addaudithook(count)
        try:
            act()
        except BaseException:
            traceback.print_exc()
            os._exit(FAILED)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, KILLED), f"died by itself, with code {code}"
    return code == KILLED


def leftovers(folder: Path) -> list[str]:
    """What is half-written in a folder, and was to be gone."""
    odd = (path for path in folder.rglob("*") if path.name.startswith(".") and path.name != ".lock")
    return [str(path.relative_to(folder)) for path in odd]
