"""The ways to train a Student that the study compares. Each is a change of the recipe; one engine trains them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One way to train.

    alone: the baseline (``matta_cli.baselines``) of one model of ``width``, not nested: plain or base. two_stage: a TA of its
    own first, the Student from it then. distill, convert: changes of the recipe. compute: steps are so many that the arm's
    matrix products are as many as MatTA's. optimizer: where it is not the recipe's own. peer: another tool (``peers``) that
    cuts the base to ``width``, to be trained as ``alone`` has it.
    """

    name: str
    label: str
    distill: Mapping[str, Any] = field(default_factory=dict)
    convert: Mapping[str, Any] = field(default_factory=dict)
    alone: str = ""
    width: float = 0.0  # of an arm that is alone; 0: the width that the claim is about
    two_stage: bool = False
    compute: bool = False
    optimizer: str = ""
    peer: str = ""
    truth: bool = False  # whether it needs ground truth to learn from

    @property
    def tuned_as(self) -> str:
        """The arm whose learning rate it takes: more steps of the same training are not tuned again."""
        return self.name.removesuffix("+compute")


OTHER = "soap"  # the optimizer besides AdamW
PEER_WIDTH = 0.5  # that other tools prune the base to: below 1, since they make a model smaller
MATFORMER = {"ta_weight": 0.0, "teacher_mix": 0.0, "ta_student_weight": 0.0, "students_per_step": 1}


def arms(widths: tuple[float, ...], size: float, expand: float, labelled: bool, peers: tuple[str, ...] = ()) -> list[Arm]:
    """The arms of a problem, the reference (plain distillation) first. peers: those that apply and are installed."""
    matformer = {**MATFORMER, "widths": sorted({*widths, expand})}
    found = [
        Arm("plain", "Teacher → Student (plain distillation)", alone="plain"),
        Arm("base", "base, continued on ground truth", alone="base", truth=True),
        Arm("matta", "MatTA"),
        Arm("unshared", "MatTA without sharing", {"shared": False}),
        Arm("no-ramp", "MatTA without ramp", {"ramp": 0.0}),
        Arm("attached", "MatTA without detaching", {"detach_ta": False}),
        Arm("no-teacher", "MatTA without Teacher", {"teacher_mix": 0.0}, truth=True),
        Arm("matformer", "MatFormer (nested, no distillation)", matformer, truth=True),
        Arm("two-stage", "two-stage TA distillation", two_stage=True),
        Arm("plain+compute", "Teacher → Student, MatTA's compute", alone="plain", compute=True),
        Arm("base+compute", "base on ground truth, MatTA's compute", alone="base", compute=True, truth=True),
        Arm("two-stage+compute", "two-stage, MatTA's compute", two_stage=True, compute=True),
        Arm(f"plain/{OTHER}", f"Teacher → Student, {OTHER.upper()}", alone="plain", optimizer=OTHER),
        Arm(f"matta/{OTHER}", f"MatTA, {OTHER.upper()}", optimizer=OTHER),
        Arm(f"unshared/{OTHER}", f"MatTA without sharing, {OTHER.upper()}", {"shared": False}, optimizer=OTHER),
    ]
    found += [
        Arm(f"plain@{width:g}", f"Teacher → Student of width {width:g}", alone="plain", width=width)
        for width in widths
        if width != size
    ]
    for peer in peers:
        name, label = f"{peer}@{PEER_WIDTH:g}", f"{peer} → Student of width {PEER_WIDTH:g}"
        found += [
            Arm(name, label, alone="plain", width=PEER_WIDTH, peer=peer),
            Arm(f"{name}+compute", f"{label}, MatTA's compute", alone="plain", width=PEER_WIDTH, compute=True, peer=peer),
        ]
    return [arm for arm in found if labelled or not arm.truth]
