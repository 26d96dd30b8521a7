"""Commands in processes of their own that are stopped at any moment, by any signal."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from kills import leftovers
from test_kills import differing, state

from matta_cli.__main__ import main
from matta_cli.files.workspace import Workspace

LONGEST = 120  # seconds after which a command hangs


@dataclass
class Ended:
    """How a command ended: its exit code, what it said, and how long it took."""

    code: int
    said: str
    seconds: float


def begin(folder: Path, line: str, told: Path, before: Callable[[], Any] = int) -> int:
    """Start a command in a folder, as from a shell; all it says goes to a file.

    before: what its process does first.
    """
    process = os.fork()
    if process:
        return process
    try:
        os.chdir(folder)
        into = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(into, 1)
        os.dup2(into, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before()
        code = 0
        try:
            sys.argv = ["matta", *line.split()]
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    finally:
        os._exit(98)


def end(process: int, told: Path, began: float) -> Ended:
    """Wait for a command, for so long; one that hangs is killed, with code -99."""
    while time.monotonic() - began < LONGEST:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            text = told.read_text(errors="replace")
            return Ended(os.waitstatus_to_exitcode(status), text, time.monotonic() - began)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return Ended(-99, told.read_text(errors="replace"), LONGEST)


def ran(
    folder: Path,
    line: str,
    told: Path,
    after: float = 0,
    by: int = 0,
    before: Callable[[], Any] = int,
) -> Ended:
    """Type a command; with ``by``, stop it by that signal after so many seconds."""
    began = time.monotonic()
    process = begin(folder, line, told, before)
    if by:
        time.sleep(after)
        os.kill(process, by)
    return end(process, told, began)


def again(folder: Path, line: str, told: Path) -> str:
    """Type a stopped command once more, and what it says to type; why it does not end well."""
    done = ran(folder, line, told)
    if "pass --resume to go on with it" in done.said:
        done = ran(folder, f"{line} --resume", told)
    finished = "finished" in done.said and "--overwrite" in done.said
    return "" if done.code == 0 or finished else f"ends with {done.code}: {done.said[-1500:]}"


def stopped(
    start: Path, wanted: Path, line: str, copy: Path, random: Random, seconds: float, by: int
) -> str:
    """Stop a command at a random moment and type it again; why that differs from one undisturbed.

    start: the folder before. wanted: the folder after the command, undisturbed. seconds: how long
    it takes.
    """
    shutil.copytree(start, copy)
    told, after = copy.with_suffix(".said"), random.uniform(0, seconds)
    try:
        done = ran(copy, line, told, after, by)
        why = ""
        if by == signal.SIGINT:
            why = impolite(done)
            if not why and done.code == 130 and leftovers(copy):
                why = f"stopped, and leaves {leftovers(copy)}"
        why = why or again(copy, line, told)
        odd = differing(state(copy), state(wanted)) if not why else []
        if by == signal.SIGINT:  # which saves a checkpoint, for which an older one may have to go
            newest = str(Workspace(wanted / "matta-out").newest())
            saved = (name for name in odd if "/checkpoints/" in name)
            odd = sorted({*odd} - {name for name in saved if newest not in str(wanted / name)})
        if odd:
            why = f"differs in {odd}"
        elif not why and leftovers(copy):
            why = f"leaves {leftovers(copy)}"
        return f"{line!r} stopped after {after:.3f} of {seconds:.3f} s: {why}" if why else ""
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def impolite(done: Ended) -> str:
    """Why that is no way to end at Ctrl-C; empty where it is one: done, or a sentence."""
    lines = done.said.strip().splitlines() or [""]
    if "Traceback" in done.said or "mistake of matta" in done.said:
        return f"a traceback: {done.said[-3000:]}"
    if done.code not in (0, 130):
        return f"ends with {done.code}: {done.said[-1500:]}"
    if done.code and not lines[-1].startswith("matta: "):
        return f"says {lines[-1]!r} last"
    return ""
