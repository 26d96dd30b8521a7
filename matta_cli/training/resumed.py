"""Whether what a run goes on with is what it was begun with."""

from __future__ import annotations

from pathlib import Path

from matta_cli.errors import MattaError
from matta_cli.files.workspace import counters_of
from matta_cli.progress import Listener, Progress
from matta_cli.settings import gone
from matta_cli.settings.recipe import Recipe
from matta_cli.settings.resolve import tomllib
from matta_cli.training.setup import HELD_OUT, Setup
from matta_cli.version import __version__

# settings that may change on the way, and the Teacher, which is known by its digest
_FREE = {"steps", "teacher", "preset", "device", "shard", "compile", "precision", "micro_batch"}
_FREE |= {"checkpoint_activations", "logits", "log_to", "keep", "save_every", "eval_every"}
_FREE |= {"eval_examples", "best", "max_bad_steps", "allow_weak_teacher"}


def check(setup: Setup, last: Path, listen: Listener) -> None:
    """Compare a run with what its checkpoint ``last`` says of itself; say what has changed.

    Raises ``MattaError`` where it has another Teacher now, other training data, or is measured on
    other examples while the best of its checkpoints is looked for.
    """
    stored, data = counters_of(last), setup.recipe.data
    names = {"Teacher": setup.settings.teacher, "training data": data.train}
    names[HELD_OUT] = data.held_out or data.train
    for what, digest in stored.get("made_of", {}).items():
        if setup.made_of.get(what, digest) == digest:
            continue
        since = f"not what the run was begun with (by its digest in {last})"
        now = f"The {what} {names.get(what, '')!r} of now is {since}"
        if what == HELD_OUT and not setup.settings.best:
            listen(Progress(message=f"{now}: what is measured from here on is of other examples."))
            continue
        # a file that is the same gives other examples where others are held out
        chosen = "" if what == "Teacher" else " (and --held-out, and settings of data, if changed)"
        do = f"put back what it was{chosen}, or start again with --overwrite"
        raise MattaError(f"{now}: {do}.")
    wrote = stored.get("matta", __version__)
    if wrote != __version__:
        other = f"{last} was written by matta {wrote}, and this is {__version__}"
        listen(Progress(message=f"{other}: the steps to come may be taken otherwise."))
    if changed := _changed(setup, stored["recipe"]):
        told = "the run is no longer the one that was begun"
        listen(Progress(message=f"It goes on with {', '.join(changed)}: {told}."))


def _changed(setup: Setup, recorded: str) -> list[str]:
    """The settings of the training that are others than those that a checkpoint was made by."""
    before = Recipe()
    try:
        before.update(gone.recorded(tomllib.loads(recorded)), "")
    except (MattaError, ValueError, RecursionError):
        return []  # of another version, which is said
    known = vars(before.distill)
    return [
        f"{name} {value!r} instead of {known[name]!r}"
        for name, value in vars(setup.settings).items()
        if name not in _FREE and value != known[name]
    ]
