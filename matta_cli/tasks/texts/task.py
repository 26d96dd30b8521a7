"""What the tasks have in common whose models read texts, each by its own tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from matta_cli.data.split import Batch, Split
from matta_cli.errors import MattaError
from matta_cli.models.tokenizer import has_tokenizer
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.class_names import order_of
from matta_cli.tasks.task import Task, config, excerpt, raw
from matta_cli.tasks.texts.encoder import INPUTS, Encoder, Tokens, config_of, encoder, positions
from matta_cli.tasks.vocabulary import common

T = TypeVar("T")


class Readers:
    """How each model reads the texts of a batch.

    A batch has what the model reads that the data was opened for, and under names with a prefix
    what others read that have tokens of their own. encoders: by that prefix.
    """

    def __init__(self) -> None:
        self.encoders: dict[str, Encoder] = {}

    def prefix(self, encode: Encoder) -> str:
        """The prefix under which a batch has what this encoder makes."""
        for prefix, known in self.encoders.items():
            if known.length == encode.length and not known.differs(encode):
                return prefix
        prefix = f"{len(self.encoders) + 1}."
        self.encoders[prefix] = encode
        return prefix

    def made(self, known: dict[str, T], make: Callable[[Encoder], T]) -> dict[str, T]:
        """What is ``known`` by prefix, with what is made for each encoder that it lacks."""
        for prefix, encode in self.encoders.items():
            if prefix not in known:
                known[prefix] = make(encode)
        return known


class Read:
    """Texts, or pairs, as each model that reads them has them.

    They become a model's tokens when a batch of that model's is first asked for.
    """

    def __init__(
        self,
        encode: Encoder,
        readers: Readers,
        first: Sequence[str],
        second: Sequence[str] | None = None,
    ) -> None:
        self.encode, self.readers, self.first, self.second = encode, readers, first, second
        self.own = encode(first, second)
        self.others: dict[str, Tokens] = {}
        self.foreign()

    def foreign(self) -> dict[str, Tokens]:
        """The tokens of every other model, by its prefix."""
        return self.readers.made(self.others, lambda encode: encode(self.first, self.second))

    def cut(self) -> int:
        """How many texts are longer than the model reads."""
        return self.encode.cut(self.own, self.first, self.second)


def batch(parts: Sequence[tuple[Read, Sequence[int]]]) -> Batch:
    """What every model reads of some texts of each of the parts, which have the same readers."""
    first = parts[0][0]
    made = first.encode.batch([(part.own, some) for part, some in parts])
    for prefix, encode in first.readers.encoders.items():
        own = encode.batch([(part.foreign()[prefix], some) for part, some in parts])
        made |= {prefix + name: tensor for name, tensor in own.items()}
    return made


class Fitted(nn.Module):
    """A model that is called on another one's batches.

    reads: the prefix of its own inputs in them. order: of its outputs, those that are the other
    one's, in the other one's order; None: as they are.
    """

    order: Tensor | None

    def __init__(self, model: nn.Module, reads: str = "", order: Sequence[int] = ()) -> None:
        super().__init__()
        self.model, self.reads = model, reads
        self.config: Any = getattr(model, "config", None)
        self.register_buffer("order", torch.tensor(order) if order else None, persistent=False)

    def forward(self, **inputs: Any) -> Tensor:
        made = raw(self.model(**inputs))
        return made if self.order is None else made[..., self.order]


class TextTask(Task):
    """A task whose outputs say something of texts, and nothing of their tokens.

    So a Teacher of any architecture will do, and any tokenizer: each model gets its own tokens of
    the same texts.

    Batches: ``input_ids`` int64 [B, L] and ``attention_mask`` int64 [B, L], padded on the right,
    and of pairs, if the model is told which text a token is of, ``token_type_ids`` int64 [B, L].
    """

    tokens = False
    longest = 512  # tokens of a text, where nothing says less

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.readers = Readers()
        self.tokenizer: Any = None  # the model's own, once data was opened

    def encoder(
        self, folder: Path, model: nn.Module, notes: list[str], *, guest: bool = False
    ) -> Encoder:
        """How a model reads texts; see ``texts.encoder.encoder``."""
        made = encoder(folder, model, self.recipe, self.longest, notes, guest=guest)
        if not guest:
            self.left_out, self.tokenizer = made.left_out, made.tokenizer
        return made

    def fit_tokens(
        self, teacher: nn.Module, folder: Path | None, model: nn.Module, home: Path | None
    ) -> nn.Module:
        """The Teacher as it must be called on the model's batches: on its own tokens, if need be.

        Raises ``MattaError`` where it brings no tokenizer, and its vocabulary is not the model's.
        """
        if folder is None or not has_tokenizer(folder):
            theirs, ours = (int(config_of(m).vocab_size) for m in (teacher, model))
            common(self, theirs, ours, folder, home)
            needed = self.recipe.data.sequence_length or min(self.longest, positions(model))
            if positions(teacher) < needed:
                numbers = f"The Teacher has {positions(teacher):,} positions"
                both = f"{numbers}, the model uses {needed:,}"
                raise MattaError(f"{both}: set --sequence-length.")
            return teacher
        given = self.encoder(home or Path(), model, [])  # its notes are said with the data
        notes: list[str] = []
        reads = self.encoder(folder, teacher, notes, guest=True)
        why = given.differs(reads)
        if not why:
            return teacher
        self.notes += [*notes, f"The Teacher reads its own tokens of each text: {why} ({folder})."]
        return Fitted(teacher, self.readers.prefix(reads))

    def first(self, split: Split) -> str:
        return self.shown(split.batch([0]))

    def shown(self, batch: Batch) -> str:
        """The tokens of the first text of a batch, as text."""
        return excerpt(self.tokenizer.decode(batch["input_ids"][0][self.present(batch)[0]]))

    def inputs(self, model: Any, batch: Batch) -> Batch:
        """What a model is called with, of a batch."""
        reads = getattr(model, "reads", "")
        return {name: batch[reads + name] for name in INPUTS if reads + name in batch}

    def example(self, model: nn.Module, size: int = 4) -> Batch:
        config, generator = config_of(model), torch.Generator().manual_seed(0)
        length = min(positions(model), 32)
        ids = torch.randint(int(config.vocab_size), (size, length), generator=generator)
        mask = torch.arange(length) < torch.arange(length, 0, -1)[:size, None]
        return {"input_ids": ids, "attention_mask": mask.long()}

    def present(self, batch: Batch) -> Tensor:
        return batch["attention_mask"].bool()


class LabelTask(TextTask):
    """A task whose models give logits of labels, which each names as it likes.

    models: what they are called, for people.
    """

    models: str

    def outputs(self, model: nn.Module) -> int:
        count = config(model, "num_labels")
        if count is None:
            needed = f"{self.models} are models of transformers, whose config has num_labels"
            raise MattaError(f"{needed}: a {type(model).__name__} has none.")
        return int(count)

    def fit_teacher(
        self, teacher: nn.Module, folder: Path | None, model: nn.Module, home: Path | None = None
    ) -> nn.Module:
        """The Teacher on its own tokens, its outputs in the model's order."""
        super().fit_teacher(teacher, folder, model, home)
        order = order_of(teacher, model, self.output, self.notes)
        self.refuse_other(teacher, model)
        read = self.fit_tokens(teacher, folder, model, home)
        return Fitted(teacher, getattr(read, "reads", ""), order) if order else read

    def refuse_other(self, teacher: nn.Module, model: nn.Module) -> None:
        """Raise ``MattaError`` where a Teacher of as many outputs says something else by them."""
