"""Texts with their labels as a split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from matta_cli.data import split
from matta_cli.data.split import Batch
from matta_cli.errors import MattaError
from matta_cli.tasks.scores import members, numbered
from matta_cli.tasks.text_classification.read import Rows
from matta_cli.tasks.texts.encoder import Encoder
from matta_cli.tasks.texts.task import Read, Readers, batch


class Texts:
    """Texts as a split: an example is a query with all its texts, or one text where there are none.

    label: [n] or [n, C]. names: of the model's labels, in its order.
    """

    def __init__(
        self, rows: Rows, label: np.ndarray, encode: Encoder, readers: Readers, names: Sequence[str]
    ) -> None:
        self.label, self.names = label, list(names)
        self.numbers = np.array(rows.number, np.int64)
        self.ids = np.array(rows.id) if rows.id else None
        group = numbered(np.array(rows.query)) if rows.query else None
        self.members = None if group is None else members(group)
        self.read = Read(encode, readers, rows.first, rows.second)

    def __len__(self) -> int:
        return len(self.label) if self.members is None else len(self.members)

    def _of(self, indices: Sequence[int]) -> np.ndarray:
        """The texts of these examples, query by query."""
        if self.members is None:
            return np.asarray(indices, dtype=np.int64)
        return np.concatenate([self.members[i] for i in indices])

    def batch(self, indices: Sequence[int]) -> Batch:
        """The texts of these examples; see ``TextClassification``."""
        texts = self._of(indices)
        made = batch([(self.read, texts.tolist())])
        made["label"] = torch.from_numpy(self.label[texts])
        if self.members is not None:
            chosen = np.array(indices, dtype=np.int64)
            sizes = [len(self.members[i]) for i in chosen]
            made["group"] = torch.from_numpy(np.repeat(np.arange(len(chosen)), sizes))
            made["group_id"] = torch.from_numpy(np.repeat(chosen, sizes))
        return made

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        """One for each text: numbers in the user's data; ids are of the column ``data.id``."""
        texts = self._of(indices)
        if ids:
            if self.ids is None:
                needed = "A Teacher's file with a column 'id' needs the data's own"
                raise MattaError(f"{needed}: name its column in data.id.")
            return self.ids[texts]
        return self.numbers[texts]

    def digest(self) -> str:
        """Over the texts and what their labels are called, whatever their tokens."""
        read = self.read
        texts = [*read.first, *(read.second or ())]
        return split.digest(["\0".join(self.names), *(f"{text}\0" for text in texts), self.numbers])
