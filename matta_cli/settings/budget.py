"""What may be spent on a Student: limits on parameters, bytes, multiply-accumulates and latency."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matta_cli.errors import MattaError
from matta_cli.settings.recipe import Recipe

NEAR = 0.05  # a cost this close below its limit is a budget used up


_COUNT = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


_BYTES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30}


# the micro sign, and the Greek letter in capitals
_SECONDS = {"S": 1.0, "MS": 1e-3, "US": 1e-6, "µS": 1e-6, "ΜS": 1e-6}


@dataclass(frozen=True)
class Cost:
    """A kind of cost that can be limited. ``flag``: what follows ``--target-``."""

    name: str
    flag: str
    label: str
    units: Mapping[str, float]
    example: str


COSTS = {
    c.name: c
    for c in (
        Cost("parameters", "params", "parameters", _COUNT, "60M"),
        Cost("latency", "latency", "latency", _SECONDS, "5ms"),
        Cost("bytes", "memory", "bytes of weights", _BYTES, "200MB"),
        Cost("macs", "macs", "MACs", _COUNT, "3G"),
    )
}


@dataclass(frozen=True)
class Budget:
    """The most that a Student may cost. limits: (name of a cost, its limit); name:
    ``params-60M-latency-5ms``.
    """

    name: str
    limits: tuple[tuple[str, float], ...]

    def used(self, costs: Mapping[str, float]) -> dict[str, float]:
        """The share of each limit that these costs are; above 1 is over it."""
        return {cost: costs[cost] / limit for cost, limit in self.limits}


def parse(targets: Mapping[str, Sequence[str]]) -> list[Budget]:
    """Budgets of the texts given for each cost: the i-th of each make the i-th budget, one given
    once holds for all.

    Raises ``MattaError`` for a text that is no amount, and for costs that are given different
    numbers of times.
    """
    given = {name: [text.strip() for text in texts] for name, texts in targets.items() if texts}
    count = max((len(texts) for texts in given.values()), default=0)
    for name, texts in given.items():
        if len(texts) not in (1, count):
            other = next(n for n, found in given.items() if len(found) == count)
            raise MattaError(
                f"--target-{COSTS[name].flag} is given {len(texts)} times and --target-{COSTS[other].flag} {count} times: give "
                "each once for every budget, or once for all."
            )
    found = []
    for i in range(count):
        chosen = {name: texts[i if len(texts) > 1 else 0] for name, texts in given.items()}
        limits = tuple((name, amount(name, text)) for name, text in chosen.items())
        found.append(
            Budget(
                "-".join(f"{COSTS[n].flag}-{text.replace(' ', '')}" for n, text in chosen.items()),
                limits,
            )
        )
    names = Counter(budget.name for budget in found)
    twice = [name for name, times in names.items() if times > 1]
    if twice:
        raise MattaError(f"The budget {twice[0]} is given twice: leave one out.")
    return found


def asked(recipe: Recipe) -> list[Budget]:
    """The budgets that a recipe's [export] table names."""
    return parse(
        {name: getattr(recipe.export, f"target_{cost.flag}") for name, cost in COSTS.items()}
    )


def amount(name: str, text: str) -> float:
    """``60M``, ``5ms``, ``200MB`` as a number: of parameters or MACs, seconds, bytes. Raises
    ``MattaError`` for other texts.
    """
    cost = COSTS[name]
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+) ?([a-zA-Zµμ]*)", text)
    unit = found[2].upper() if found else ""
    if found is None or unit not in cost.units or not float(found[1]) > 0:
        raise MattaError(
            f"--target-{cost.flag} {text!r} is not an amount of {cost.label}: write it as {cost.example}, say."
        )
    return float(found[1]) * cost.units[unit]
