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
    from it then. distill, convert: changes of the recipe. compute: steps are so many that the arm's
    matrix products are as many as MatTA's. optimizer: where it is not the recipe's own. peer:
    another tool (``peers``) that cuts the base to ``width``, to be trained as ``alone`` has it.
    average: the decay of an average of the TA's weights, which teaches the Students in place of the
    TA. spread: what the new units' incoming weights are multiplied by. rate: what their learning
    rate is multiplied by. share: steps are so many that the arm's matrix products are this share of
    those that separate plain distillations of all widths take. teacher: another one of the
    problem's cache, a folder beside its file of outputs.
    """

    name: str
    label: str
    distill: Mapping[str, Any] = field(default_factory=dict)
    convert: Mapping[str, Any] = field(default_factory=dict)
    alone: str = ""
    width: float = 0.0  # of the Student; 0: the width that the claim is about
    two_stage: bool = False
    compute: bool = False
    optimizer: str = ""
    peer: str = ""
    average: float = 0.0
    spread: float = 0.0  # 0: as they are
    rate: float = 0.0  # 0: that of all others
    share: float = 0.0
    teacher: str = ""
    truth: bool = False  # whether it needs ground truth to learn from

    @property
    def tuned_as(self) -> str:
        """The arm whose learning rate it takes: more steps of the same training are not tuned
        again.
        """
        return self.name.removesuffix("+compute")

    @property
    def is_family(self) -> bool:
        """Whether it trains all widths of the problem, each a result."""
        return not (self.alone or self.two_stage or "widths" in self.distill)


# the optimizers besides AdamW: the paper's, and its successor
NAMES = {"shampoo": "Shampoo", "soap": "SOAP"}
PEER_WIDTH = 0.5  # that other tools prune the base to: below 1, since they make a model smaller
SHARE = 0.4  # of the cost of separate runs, that a family shall cost at most
# the cheapest way to train a family: one width a step, each from the Teacher; the TA, which nobody
# asked for, is left out
CHEAP: dict[str, Any] = {"ta_weight": 0.0, "ta_student_weight": 0.0, "students_per_step": 1}
CHEAP |= {"students_learn_from": "teacher"}
MATFORMER = {"ta_weight": 0.0, "teacher_mix": 0.0, "ta_student_weight": 0.0, "students_per_step": 1}


def arms(
    widths: tuple[float, ...],
    size: float,
    expand: float,
    labelled: bool,
    peers: tuple[str, ...] = (),
    optimizers: tuple[str, ...] = tuple(NAMES),
) -> list[Arm]:
    """The arms of a problem, the reference (plain distillation) first.

    peers: those that apply and are installed. MatTA trains one Student in the TA, of the width that
    the claim is about, as the paper has it; the family trains all widths.
    """
    one = {"widths": [size]}
    matformer = {**MATFORMER, "widths": sorted({*widths, expand})}
    of_all = f"a family of {len(widths)}"
    cheap = f"{of_all}, one a step, {SHARE:g} of the cost"
    more = "MatTA's compute"
    found = [
        Arm("plain", "Teacher → Student (plain distillation)", alone="plain"),
        Arm("base", "base, continued on ground truth", alone="base", truth=True),
        Arm("matta", "MatTA, one Student", one),
        Arm("family", f"MatTA, {of_all}"),
        Arm("family-cheap", cheap, CHEAP, {"expand": 1.0}, share=SHARE),
        Arm("unshared", "MatTA without sharing", {**one, "shared": False}),
        Arm("no-ramp", "MatTA without ramp", {**one, "ramp": 0.0}),
        Arm("attached", "MatTA without detaching", {**one, "detach_ta": False}),
        Arm("no-teacher", "MatTA without Teacher", {**one, "teacher_mix": 0.0}, truth=True),
        Arm("matformer", "MatFormer (nested, no distillation)", matformer, truth=True),
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


def _changes(adapter: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Changes of MatTA with one Student that the search for the recipe tries: distill, convert."""
    follows = {"students_learn_from": "ta", "ta_student_weight": 1.0}
    doubled = {"student_weight": 2.0, "ta_student_weight": 1.0}
    changes: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "TA → Student 0": ({"ta_student_weight": 0.0}, {}),
        "TA → Student 1": ({"ta_student_weight": 1.0}, {}),
        "TA → Student 2": ({"ta_student_weight": 2.0}, {}),
        "ramp 0": ({"ramp": 0.0}, {}),
        "ramp 0.5": ({"ramp": 0.5}, {}),
        "Teacher's share 0.5": ({"teacher_mix": 0.5}, {}),
        "Student's own weight 2": (doubled, {}),
        "Student's own weight 0.5": ({"student_weight": 0.5}, {}),
        "TA's own weight 2": ({"ta_weight": 2.0}, {}),
        "Student follows the TA only": (follows, {}),
        "TA of width 4": ({}, {"expand": 4.0}),
        "units as they come": ({}, {"order": "none"}),
        "reverse KL": ({"divergence": "reverse"}, {}),
        "Muon": ({"optimizer": "muon"}, {}),
        "SOAP": ({"optimizer": "soap"}, {}),
    }
    if adapter == "mlp_ranker":
        del changes["reverse KL"]
    if adapter in ("gpt2", "vit"):
        heads, deeper = ["mlp", "heads"], ["mlp", "depth"]
        changes["TA also of more heads"] = ({}, {"axes": heads})
        changes["TA also deeper"] = ({}, {"axes": deeper})
        changes["TA also of more heads, width 4"] = ({}, {"axes": heads, "expand": 4.0})
    if adapter != "gpt2":  # its file holds what was softened by the default
        changes["temperature 1"] = ({"temperature": 1.0}, {})
        changes["temperature 4"] = ({"temperature": 4.0}, {})
    return changes


_OF_FAMILY: dict[str, dict[str, Any]] = {
    "one Student a step": {"students_per_step": 1},
    "one Student a step, the largest thrice as often": {
        "students_per_step": 1,
        "sampling": [1.0, 1.0, 3.0],
    },
    "two Students a step": {"students_per_step": 2},
    "one Student a step, ramp 0": {"students_per_step": 1, "ramp": 0.0},
    "Students follow the Teacher only": {"students_learn_from": "teacher"},
}


def variants(size: float, adapter: str) -> list[Arm]:
    """What the search for the recipe tries.

    First changes of MatTA with one Student, then changes of the family.
    """
    one = {"widths": [size]}
    found = [Arm("matta", "MatTA, one Student", one)]
    for name, (distill, convert) in _changes(adapter).items():
        found.append(Arm(name, name, {**one, **distill}, convert))
    for decay in (0.9, 0.98):
        name = f"average of the TA's weights, decay {decay:g}"
        found.append(Arm(name, name, one, average=decay))
    for factor in (0.1, 2.0, 4.0):
        name = f"spread of the new units' weights x {factor:g}"
        found.append(Arm(name, name, one, spread=factor))
    for factor in (0.5, 2.0):
        name = f"learning rate of the new units x {factor:g}"
        found.append(Arm(name, name, one, rate=factor))
    for weight in (0.0, 0.1, 1.0) if adapter == "gpt2" else ():
        name = f"Teacher a model, hidden states {weight:g}"
        found.append(Arm(name, name, {**one, "hidden_weight": weight}, teacher="teacher"))
    found.append(Arm("family", "MatTA, a family"))
    return [*found, *(Arm(name, name, distill) for name, distill in _OF_FAMILY.items())]
