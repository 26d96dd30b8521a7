"""One setting: its default, what it is, where that comes from, and what it may be."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MATTA, OURS = "MatTA, arXiv 2505.23337", "our choice"
SHARE: dict[str, Any] = {"most": 1, "rule": "it is a share from 0 to 1"}


@dataclass(frozen=True)
class About:
    """All that is known of a setting, for the checks, the flags' help and a recipe's comments.

    doc: what it is; ``{choices}`` in it stands for the words that it takes. source: where its
    default comes from. choices: each word, and what it means where the doc does not say. several:
    its value is a list. flag: whether the command line has a flag for it; called: where that is
    called otherwise. least, above, most, below: the range of a number. rule: the range in the words
    of an error, where it has words of its own.
    """

    doc: str
    source: str
    choices: Mapping[str, str]
    several: bool
    flag: bool = False
    called: str = ""
    least: float = 0
    above: float | None = None
    most: float | None = None
    below: float | None = None
    rule: str = ""

    @property
    def text(self) -> str:
        """What it is, with its choices: ``bf16 or fp32; auto: bf16 where there is a GPU``."""
        plain = [word for word, what in self.choices.items() if not what]
        told = [f"{word}: {what}" for word, what in self.choices.items() if what]
        told.sort(key=lambda one: one.startswith("auto:"))  # it stands for one of the others
        if plain and not self.several:
            plain[-2:] = [" or ".join(plain[-2:])]
        listed = "; ".join([", ".join(plain), *told] if plain else told)
        return self.doc.replace("{choices}", listed)

    @property
    def told(self) -> str:
        """The text and the range; that nothing is below zero goes without saying."""
        return self.text if self.range == "0 or more" else f"{self.text} ({self.range})"

    @property
    def range(self) -> str:
        """The range of a number in words."""
        high = self.most if self.below is None else self.below
        if self.above is not None:
            return f"above {self.above:g}" + (f" and at most {high:g}" if high is not None else "")
        return f"{self.least:g} or more" if high is None else f"{self.least:g} to {high:g}"

    def holds(self, number: float) -> bool:
        """Whether a number lies in the range."""
        lows = (self.least, operator.ge), (self.above, operator.gt)
        highs = (self.most, operator.le), (self.below, operator.lt)
        return all(on(number, end) for end, on in (*lows, *highs) if end is not None)


def setting(default: Any, doc: str, source: str = OURS, *, choices: str = "", **more: Any) -> Any:
    """A field of a table of settings. The rest: see ``About``.

    choices: words, or words and what they mean: ``fp32 | auto: bf16 where there is a GPU``.
    """
    listed = [choice.partition(": ") for choice in choices.split(" | ")] if choices else []
    words = {word: what for word, _, what in listed}
    several = isinstance(default, list)
    metadata = {"about": About(doc, source, words, several, **more)}
    if several:
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def flag(default: Any, doc: str, source: str = OURS, **more: Any) -> Any:
    """A setting that the command line has a flag for: of its name, or as it is ``called``."""
    return setting(default, doc, source, flag=True, **more)
