"""How a run that is told to stop does so between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """A list that Ctrl-C and SIGTERM fill, so that a run can stop between two of its steps.

    Only there do weights, BatchNorm statistics, optimizer and log agree on how many steps they
    hold. A second signal stops at once, and saves nothing.
    """
    pressed: list[int] = []

    def handler(number: int, _frame: Any) -> None:
        if number in pressed:  # torchrun sends SIGTERM after a Ctrl-C, and then waits
            raise KeyboardInterrupt
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield pressed
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
