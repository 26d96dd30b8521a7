"""How long the models of a report take: side by side, in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from matta_cli.formats.onnx import Session
from matta_cli.measure import cost, generation
from matta_cli.measure.held_out import HeldOut
from matta_cli.report.numbers import in_seconds
from matta_cli.report.schema import Generation, ModelEntry, Role, Timing
from matta_cli.students.quantized import Quantized

Opened = list[tuple[ModelEntry, nn.Module]]
Times = dict[str, dict[int, Timing]]  # of what, such as decode -> by batch


@dataclass(frozen=True)
class Taken:
    """The times of each model by its name.

    generation: how they were timed, where they generate. notes: what is to be known of them.
    """

    by_name: dict[str, Times]
    generation: Generation | None
    notes: list[str]

    def of(self, name: str) -> Times:
        return self.by_name.get(name, {})


def times(
    held_out: HeldOut,
    opened: Opened,
    models: Mapping[str, nn.Module],
    quantized: Sequence[Quantized],
) -> Taken:
    """Time the models, which are ``opened`` and on their device.

    Programs of onnxruntime are timed on a CPU alone, and the float Students beside them in
    onnxruntime, too.
    """
    programs = {name: model for name, model in models.items() if isinstance(model, Session)}
    plain = {name: model for name, model in models.items() if name not in programs}
    float_ones = {_in(one.of.student.name): one.beside for one in quantized if one.beside}
    in_turn: dict[str, nn.Module] = {**programs, **float_ones}
    notes = []
    if in_turn and held_out.device.type != "cpu":
        where = "onnxruntime runs on the CPU here"
        notes.append(f"Quantized Students are not timed: {where}, the others on {held_out.device}.")
        in_turn = {}
    how, timed, said = _generation(held_out, opened, plain)
    if how is None:
        found = _forwards(held_out, {**timed, **in_turn})
    else:
        found = _generated(held_out, timed, how) | _read(held_out, in_turn, how)
    known = float_ones if in_turn else {}
    return Taken(found, how, [*notes, *said, *_beside(held_out, known, quantized, found)])


def _in(name: str) -> str:
    return f"{name} in onnxruntime"


def _beside(
    held_out: HeldOut,
    float_ones: Mapping[str, nn.Module],
    quantized: Sequence[Quantized],
    found: Mapping[str, Times],
) -> list[str]:
    """What the float Students take in the runtime of those in fewer bits."""
    size, notes = held_out.recipe.export.batch_size, []
    for name in float_ones:
        own = [one for one in quantized if _in(one.of.student.name) == name]
        what = next(iter(found[name]))
        taken = {one: found[one][what][size].median for one in (name, *(o.name for o in own))}
        copies = ", ".join(f"{one.name} {in_seconds(taken[one.name])}" for one in own)
        takes = f"In onnxruntime, too, {own[0].of.student.name} takes {in_seconds(taken[name])}"
        notes.append(f"{takes} in float32 ({what}, batch {size}); {copies}.")
    return notes


def _generation(
    held_out: HeldOut, opened: Opened, models: Mapping[str, nn.Module]
) -> tuple[Generation | None, Mapping[str, nn.Module], list[str]]:
    """How models are timed that generate, which they are, and what is to be known of that.

    Where another than the Teacher cannot generate, all of them are timed by a forward.
    """
    how = held_out.generation
    if how is None:
        return None, models, []
    prompt, timed, notes = _prompts(held_out, 1, how), dict(models), []
    for entry, _ in opened:
        if entry.name not in models:
            continue
        why = generation.cannot(models[entry.name], prompt)
        cannot = f"cannot generate with a cache ({why})."
        if why and entry.role is Role.TEACHER:
            del timed[entry.name]
            notes.append(f"The Teacher is not timed: it {cannot}")
        elif why:
            return None, models, [f"Times are of a forward: the model {entry.name!r} {cannot}"]
    return how, timed, notes


def _prompts(held_out: HeldOut, rows: int, own: Generation) -> Tensor:
    batch = held_out.first(rows)
    return generation.prompts(batch, rows, own.prompt).to(held_out.device)


def _forwards(held_out: HeldOut, models: Mapping[str, nn.Module]) -> dict[str, Times]:
    """Seconds of a forward of all models, by name and batch size."""
    settings = held_out.recipe.export
    batch = {k: v.to(held_out.device) for k, v in held_out.first(settings.batch_size).items()}
    found: dict[str, Times] = {name: {"latency": {}} for name in models}
    with cost.threads(settings.threads):
        for size in sorted({1, settings.batch_size, 4 * settings.batch_size}):
            taken = cost.latencies(held_out.task, models, cost.repeated(batch, size))
            for name, seconds in taken.items():
                found[name]["latency"][size] = Timing(**seconds)
    return found


def _generated(
    held_out: HeldOut, models: Mapping[str, nn.Module], own: Generation
) -> dict[str, Times]:
    """Seconds until the first token and for each one after it, by name and batch size."""
    settings = held_out.recipe.export
    found: dict[str, Times] = {name: {"prefill": {}, "decode": {}} for name in models}
    with cost.threads(settings.threads):
        for size in sorted({1, settings.batch_size}):
            ids = _prompts(held_out, size, own)
            for name, taken in generation.latencies(models, ids, own.new).items():
                for what, seconds in taken.items():
                    found[name][what][size] = Timing(**seconds)
    return found


def _read(
    held_out: HeldOut, programs: Mapping[str, nn.Module], own: Generation
) -> dict[str, Times]:
    """Seconds in which programs read a prompt. They keep no cache: each token is a forward."""
    settings = held_out.recipe.export
    found: dict[str, Times] = {name: {"prefill": {}} for name in programs}
    for size in sorted({1, settings.batch_size}) if programs else ():
        batch = {"input_ids": _prompts(held_out, size, own)}
        for name, seconds in cost.latencies(held_out.task, programs, batch).items():
            found[name]["prefill"][size] = Timing(**seconds)
    return found
