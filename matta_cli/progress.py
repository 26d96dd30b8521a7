"""What long work tells the outside while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Progress:
    """What a run tells its listener after every step, and with every message.

    terms: losses by name, by model. waiting: the share of the step's time that went to waiting for
    data. utilisation: the share of the device's peak FLOP/s that the models' own products reach,
    where that is known. doing: a sentence on what comes now, of work whose steps are not alike.
    """

    step: int = 0
    steps: int = 0
    terms: dict[str, dict[str, float]] = field(default_factory=dict)
    per_second: float = 0.0
    unit: str = "items"
    waiting: float = 0.0
    utilisation: float | None = None
    message: str = ""
    doing: str = ""

    @property
    def speed(self) -> str:
        """How much is done in a second; slow work is not told as none."""
        return f"{self.per_second:,.0f}" if self.per_second >= 10 else f"{self.per_second:.2g}"


Listener = Callable[[Progress], None]
Say = Callable[[str], None]  # one sentence for the user


def quiet(_: Progress) -> None:
    """A listener that hears nothing."""


class Steps:
    """Tells a listener what is done of work of so many steps: called with what comes next.

    Work of more steps than were expected stays at its last one.
    """

    def __init__(self, listen: Listener, expected: int) -> None:
        self.listen, self.expected, self.begun = listen, expected, 0

    def __call__(self, doing: str) -> None:
        done = min(self.begun, self.expected - 1)
        self.begun += 1
        self.listen(Progress(done, self.expected, doing=doing))

    def tell(self, sentence: str) -> None:
        """Something that is to be known, and no step."""
        self.listen(Progress(message=sentence))

    def end(self) -> None:
        """All is done."""
        self.listen(Progress(self.expected, self.expected, doing="Done."))
