"""What may be spent on a Student: limits on parameters, bytes, multiply-accumulates and time."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from matta_cli.errors import MattaError
from matta_cli.settings.convert import ConvertSettings
from matta_cli.settings.recipe import ExportSettings

NEAR = 0.05  # what stays this close below a limit has used it up

_COUNT = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_BYTES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30}
# the micro sign, and the Greek letter in capitals
_SECONDS = {"S": 1.0, "MS": 1e-3, "US": 1e-6, "µS": 1e-6, "ΜS": 1e-6}


@dataclass(frozen=True)
class Limit:
    """Something that can be limited.

    flag: what follows ``--target-``. units: what an amount may be followed by, in capitals, and
    how much that is. written: the units that amounts are written in.
    """

    name: str
    flag: str
    label: str
    units: Mapping[str, float]
    written: tuple[str, ...]
    example: str

    def share(self, text: str) -> float | None:
        """``50%`` as a share of what the base has; None for a text that is no such share.

        Raises ``MattaError`` for one that is not possible.
        """
        parts = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+) ?%", text)
        if parts is None:
            return None
        flag, share = f"--target-{self.flag} {text}", float(parts[1]) / 100
        if self.name in TIMED:
            raise MattaError(f"{flag} is not possible: say it in time, as {self.example}.")
        if not 0 < share < 1:
            raise MattaError(f"{flag} is not possible: it is above 0 and below 100 %.")
        return share

    def amount(self, text: str) -> float:
        """``60M``, ``5ms``, ``200MB`` as a number: of parameters or MACs, seconds, bytes.

        Raises ``MattaError`` for other texts.
        """
        parts = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+) ?([a-zA-Zµμ]*)", text)
        unit = parts[2].upper() if parts else ""
        if parts is None or unit not in self.units or not float(parts[1]) > 0:
            wrong = f"--target-{self.flag} {text!r} is not an amount of {self.label}"
            raise MattaError(f"{wrong}: write it as {self.example}, say.")
        return float(parts[1]) * self.units[unit]

    def rounded_up(self, value: float) -> str:
        """An amount of three digits that is no less, as its flag takes it."""
        units = [(self.units[unit.upper()], unit) for unit in self.written]
        factor, unit = max((one for one in units if one[0] <= value), default=min(units))
        digits = max(0, 2 - math.floor(math.log10(value / factor)))
        rounded = math.ceil(value / factor * 10**digits - 1e-9) / 10**digits
        return f"{rounded:.{digits}f}{unit}"


_COUNTED, _TIMES = ("", "k", "M", "G", "T"), ("s", "ms", "us")
# what is timed: a forward; of a language model the first token after a prompt, and one after that
TIMED = ("latency", "prefill", "decode")
LIMITS = {
    limit.name: limit
    for limit in (
        Limit("parameters", "params", "parameters", _COUNT, _COUNTED, "60M"),
        Limit("latency", "latency", "latency", _SECONDS, _TIMES, "5ms"),
        Limit("prefill", "prefill", "time to the first token", _SECONDS, _TIMES, "100ms"),
        # what --target-latency is of for a language model
        Limit("decode", "latency", "time for a token", _SECONDS, _TIMES, "5ms"),
        Limit("bytes", "memory", "bytes of weights", _BYTES, ("B", "kB", "MB", "GB"), "200MB"),
        Limit("macs", "macs", "MACs", _COUNT, _COUNTED, "3G"),
    )
}


@dataclass(frozen=True)
class Budget:
    """The most that a Student may cost.

    limits: of the names in ``LIMITS`` and their amounts. shares: those that are shares of what the
    base has, which ``of`` makes amounts. name: ``params-60M-latency-5ms``. typed: its flags.
    """

    name: str
    limits: tuple[tuple[str, float], ...]
    shares: tuple[tuple[str, float], ...] = ()
    typed: str = ""

    @property
    def names(self) -> list[str]:
        """What is limited."""
        return [name for name, _ in (*self.limits, *self.shares)]

    def of(self, base: Mapping[str, float]) -> Budget:
        """The same in amounts alone. base: what the base has of whatever shares are of."""
        amounts = tuple((name, base[name] * share) for name, share in self.shares)
        return replace(self, limits=(*self.limits, *amounts), shares=())

    def decoding(self) -> Budget:
        """The same for a model that generates: its latency is the time for a token."""
        own = (("decode" if name == "latency" else name, amount) for name, amount in self.limits)
        return replace(self, limits=tuple(own))

    def used(self, costs: Mapping[str, float]) -> dict[str, float]:
        """The share of each limit that these costs are; above 1 is over it."""
        return {name: costs[name] / amount for name, amount in self.limits}


def parse(targets: Mapping[str, Sequence[str]]) -> list[Budget]:
    """Budgets of the texts given for each limit: the i-th of each make the i-th budget.

    A limit that is given once holds for all of them. Raises ``MattaError`` for a text that is no
    amount, and for limits that are given different numbers of times.
    """
    given = {name: [text.strip() for text in texts] for name, texts in targets.items() if texts}
    count = max((len(texts) for texts in given.values()), default=0)
    for name, texts in given.items():
        if len(texts) not in (1, count):
            most = next(other for other, texts in given.items() if len(texts) == count)
            own, other = LIMITS[name].flag, LIMITS[most].flag
            times = f"--target-{own} is given {len(texts)} times and --target-{other} {count} times"
            raise MattaError(f"{times}: give each once for every budget, or once for all.")
    budgets = []
    for i in range(count):
        pairs = [(LIMITS[name], texts[min(i, len(texts) - 1)]) for name, texts in given.items()]
        shares = {limit.name: limit.share(text) for limit, text in pairs}
        limits = ((own.name, own.amount(text)) for own, text in pairs if shares[own.name] is None)
        part = tuple((name, share) for name, share in shares.items() if share is not None)
        words = [(limit.flag, text.replace(" ", "")) for limit, text in pairs]
        name = "-".join(f"{flag}-{text.replace('%', 'pct')}" for flag, text in words)
        flags = " ".join(f"--target-{flag} {text}" for flag, text in words)
        budgets.append(Budget(name, tuple(limits), part, flags))
    times_given = Counter(budget.name for budget in budgets)
    twice = [name for name, times in times_given.items() if times > 1]
    if twice:
        raise MattaError(f"The budget {twice[0]} is given twice: leave one out.")
    return budgets


def asked(settings: ExportSettings | ConvertSettings) -> list[Budget]:
    """The budgets that a recipe's [export] or [convert] table names."""
    flags = {n: f"target_{limit.flag}" for n, limit in LIMITS.items() if n != "decode"}
    return parse({name: getattr(settings, flag, []) for name, flag in flags.items()})
