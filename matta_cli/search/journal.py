"""What a search has scored, in a journal of optuna's: a line of JSON for each thing it did."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matta_cli.errors import MattaError, install
from matta_cli.files import reading
from matta_cli.files.atomic import own


def import_optuna() -> Any:
    """The package, which says nothing. Raises ``MattaError`` where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise MattaError(f"Searching sizes needs optuna: {install('search')}.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


class _Held:
    """The lock of a journal that only the holder of its folder's lock opens.

    optuna's own is a link that stays where a process is killed, and that the next one waits for.
    """

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def journal(folder: Path) -> Any:
    """The storage of the search in ``folder``, whose lock is held.

    Raises ``MattaError`` for a journal that is damaged.
    """
    path, kinds = own(folder / "trials.jsonl"), import_optuna().storages.journal
    for left in folder.glob(f"{path.name}.lock*"):  # by a process that took optuna's own lock
        left.unlink()
    if reading.regular(path).is_file():
        _whole_lines(path)
    try:
        return kinds.JournalStorage(kinds.JournalFileBackend(str(path), _Held()))
    except Exception as error:  # whatever replaying its lines runs into
        raise _damaged(path) from error


def trials(storage: Any) -> int:
    """How many trials all studies of a storage have."""
    return sum(storage.get_n_trials(study._study_id) for study in storage.get_all_studies())


def kept_trials(study: Any, fits: Callable[[Any], bool]) -> list[Any]:
    """The trials of a study that has a journal.

    Raises ``MattaError`` where one has no value, or is another than ``fits`` says.
    """
    try:
        found = study.trials
        if all(math.isfinite(trial.value) and fits(trial) for trial in found):
            return found
    except Exception as error:  # whatever optuna and ``fits`` run into
        raise _damaged("The journal of this search, trials.jsonl,") from error
    raise _damaged("The journal of this search, trials.jsonl,")


def _whole_lines(path: Path) -> None:
    """Cut off a last line that a killed process has not finished."""
    with path.open("r+b") as file:
        end = 0
        for line in file:
            if line.endswith(b"\n"):
                end += len(line)
                try:
                    json.loads(line)
                except (ValueError, RecursionError):
                    raise _damaged(path) from None
        file.truncate(end)


def _damaged(path: Path | str) -> MattaError:
    again = "delete it, and the same command scores everything anew"
    return MattaError(f"{path} is damaged: {again}.")
