"""What long work tells the outside while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Progress:
    """What a run tells its listener after every step, and with every message.

    terms: losses by name, by model. waiting: the share of the step's time that went to waiting for
    data. utilisation: the share of the device's peak FLOP/s that the models' own products reach,
    where that is known.
    """

    step: int = 0
    steps: int = 0
    terms: dict[str, dict[str, float]] = field(default_factory=dict)
    per_second: float = 0.0
    unit: str = "items"
    waiting: float = 0.0
    utilisation: float | None = None
    message: str = ""


Listener = Callable[[Progress], None]
Say = Callable[[str], None]  # one sentence for the user


def quiet(_: Progress) -> None:
    """A listener that hears nothing."""
