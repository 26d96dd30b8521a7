"""The ways to train a Student that the study compares: changes of the recipe, for one engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One way to train.

    alone: one model of ``width`` that is not nested (``matta_cli.verdict.baselines``): plain, from
    the Teacher, or ground-truth, on the labels alone. two_stage: a TA of its own first, the Student
    from it then. distill: changes of the recipe. compute: steps are so many that the arm's matrix
    products are as many as MatTA's. optimizer: where it is not the recipe's own. peer: another tool
    (``peers``) that cuts the base to ``width``, to be trained as ``alone`` has it. truth: whether
    it needs ground truth to learn from.
    """

    name: str
    label: str
    distill: Mapping[str, Any] = field(default_factory=dict)
    alone: str = ""
    width: float = 0.0  # of the Student; 0: the width that the claim is about
    two_stage: bool = False
    compute: bool = False
    optimizer: str = ""
    peer: str = ""
    truth: bool = False

    @property
    def tuned_as(self) -> str:
        """The arm whose learning rate it takes: more steps of the same training are not tuned
        again.
        """
        return self.name.removesuffix("+compute")


# the optimizers besides AdamW: the paper's, and its successor
NAMES = {"shampoo": "Shampoo", "soap": "SOAP"}
PEER_WIDTH = 0.5  # that other tools prune the base to: below 1, since they make a model smaller


def arms(
    widths: tuple[float, ...],
    size: float,
    labelled: bool,
    peers: tuple[str, ...] = (),
    optimizers: tuple[str, ...] = tuple(NAMES),
) -> list[Arm]:
    """The arms of a problem, the reference (plain distillation) first.

    peers: those that apply and are installed. MatTA trains one Student in the TA, of the width that
    the claim is about, as the paper has it.
    """
    one, more = {"widths": [size]}, "MatTA's compute"
    found = [
        Arm("plain", "Teacher → Student (plain distillation)", alone="plain"),
        Arm("base", "base, continued on ground truth", alone="base", truth=True),
        Arm("matta", "MatTA, one Student", one),
        Arm("unshared", "MatTA without sharing", {**one, "shared": False}),
        Arm("no-ramp", "MatTA without ramp", {**one, "ramp": 0.0}),
        Arm("no-teacher", "MatTA without Teacher", {**one, "teacher_mix": 0.0}, truth=True),
        Arm("two-stage", "two-stage TA distillation", two_stage=True),
        Arm("plain+compute", f"Teacher → Student, {more}", alone="plain", compute=True),
    ]
    said = f"base on ground truth, {more}"
    found.append(Arm("base+compute", said, alone="base", compute=True, truth=True))
    found.append(Arm("two-stage+compute", f"two-stage, {more}", two_stage=True, compute=True))
    for other in optimizers:
        found += _by_optimizer(other, one)
    for width in widths:
        if width != size:
            said = f"Teacher → Student of width {width:g}"
            found.append(Arm(f"plain@{width:g}", said, alone="plain", width=width))
    found += _beside_peers(size, peers)
    return [arm for arm in found if labelled or not arm.truth]


def _by_optimizer(other: str, one: Mapping[str, Any]) -> list[Arm]:
    said, unshared = NAMES[other], {**one, "shared": False}
    without = f"MatTA without sharing, {said}"
    return [
        Arm(f"plain/{other}", f"Teacher → Student, {said}", alone="plain", optimizer=other),
        Arm(f"matta/{other}", f"MatTA, {said}", one, optimizer=other),
        Arm(f"unshared/{other}", without, unshared, optimizer=other),
    ]


def _beside_peers(size: float, peers: tuple[str, ...]) -> list[Arm]:
    """Other tools at a smaller width, and what they are compared with there."""
    found, at, wide = [], f"@{PEER_WIDTH:g}", f"of width {PEER_WIDTH:g}"
    alone = Arm("", "", alone="plain", width=PEER_WIDTH)
    if peers and size != PEER_WIDTH:
        own = {"widths": [PEER_WIDTH]}
        found.append(Arm(f"matta{at}", f"MatTA, one Student {wide}", own, width=PEER_WIDTH))
        said = f"Teacher → Student {wide}, MatTA's compute"
        found.append(replace(alone, name=f"plain{at}+compute", label=said, compute=True))
    for peer in peers:
        name, said = f"{peer}{at}", f"{peer}, distilled, {wide}"
        found.append(replace(alone, name=name, label=said, peer=peer))
        name, said = f"{name}+compute", f"{said}, MatTA's compute"
        found.append(replace(alone, name=name, label=said, peer=peer, compute=True))
    return found
