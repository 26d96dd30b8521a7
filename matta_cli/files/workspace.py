"""The output folder of a run: where the TA, the checkpoints, the Students and the report lie."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matta_cli.errors import MattaError
from matta_cli.files import atomic
from matta_cli.files.atomic import is_sound


def steps(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, oldest first."""
    found = [p for p in (run / "checkpoints").glob("step-*") if p.is_dir()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(path.name.removeprefix("step-"))


def newest(run: Path) -> Path | None:
    """The last checkpoint of a run, or None."""
    return next((p for p in reversed(steps(run)) if (p / "trainer.json").exists()), None)


def newest_sound(run: Path) -> tuple[Path | None, list[Path]]:
    """The last checkpoint of a run that is as it was written, and the damaged ones after it."""
    damaged: list[Path] = []
    for path in reversed(steps(run)):
        if is_sound(path):
            return path, damaged
        damaged.append(path)
    return None, damaged


def chosen(run: Path, which: str) -> tuple[Path | None, list[Path]]:
    """A sound checkpoint of a run by ``export.checkpoint``'s words, and damaged ones that were
    passed over.

    Raises ``MattaError`` where the one that was asked for is not there or is damaged.
    """
    last, damaged = newest_sound(run)
    if last is None or which == "last":
        return last, damaged
    best = json.loads((last / "trainer.json").read_text(encoding="utf-8")).get("best_step", 0)
    name = which if which.startswith("step-") else f"step-{best}"
    if which == "auto" and not best:
        return last, damaged
    if which not in ("auto", "best") and not which.removeprefix("step-").isdigit():
        raise MattaError(f"--checkpoint {which!r} is not known: best, last or step-N.")
    if which == "best" and not best:
        raise MattaError(f"{run} kept no best checkpoint: `matta distill --best WIDTH` does.")
    path = run / "checkpoints" / name
    if is_sound(path):
        return path, damaged
    if which == "auto":
        return last, [*damaged, path]
    raise MattaError(
        f"{path} is {'damaged' if path.exists() else 'not there'}; {run} has {', '.join(p.name for p in steps(run))}."
    )


def current_ta(out: Path) -> Path:
    """The TA that an output folder stands for: the last checkpoint of its run, else the TA as it
    was converted.
    """
    return newest(out / "run") or out / "ta"


@contextmanager
def set_aside(run: Path, *, keep: bool) -> Iterator[None]:
    """Move a finished run out of the way; it comes back if its successor stops before the first
    checkpoint.
    """
    if not keep and run.exists():
        shutil.rmtree(_old(run), ignore_errors=True)
        run.replace(_old(run))
    try:
        yield
    finally:
        _bring_back(run)
        shutil.rmtree(_old(run), ignore_errors=True)


def _old(run: Path) -> Path:
    """Where a finished run lies until its successor has a checkpoint."""
    return run.with_name(f".{run.name}.old")


def _bring_back(run: Path) -> None:
    """A finished run back in its place, if its successor left no checkpoint."""
    if newest(run) is None and newest(_old(run)) is not None:
        shutil.rmtree(run, ignore_errors=True)
        _old(run).replace(run)


def mend(out: Path) -> None:
    """Bring back a finished run whose successor was killed. Raises ``MattaError`` while one is
    training.
    """
    if newest(out / "run") is None and newest(_old(out / "run")) is not None:
        with atomic.alone(out, atomic.TRAINING):
            _bring_back(out / "run")
