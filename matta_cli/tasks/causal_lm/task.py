"""Causal language models: perplexity, next-token and last-word accuracy of text."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matta_cli.data.split import Batch, Columns, Data, Split, sample
from matta_cli.errors import MattaError
from matta_cli.losses import classes
from matta_cli.losses.targets import Counts, Logits, Losses, Term
from matta_cli.models.left_out import LeftOut
from matta_cli.models.tokenizer import home, open_tokenizer, spare_tokens, tokenizer_of
from matta_cli.models.trimming import keep, kept_of
from matta_cli.report.schema import Metric
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.causal_lm import conversations
from matta_cli.tasks.causal_lm.examples import Packed, Paragraphs, Passages
from matta_cli.tasks.causal_lm.read import frame, notes_on, read_passages, read_text, tokens
from matta_cli.tasks.task import Task, config, excerpt, raw
from matta_cli.tasks.vocabulary import common, narrowed

_CALIBRATION = 8192  # tokens


class CausalLM(Task):
    """Next-token prediction.

    Text is tokenized whole, documents begin and end with what the tokenizer's own call puts there,
    or end with the end-of-text token, and the tokens are cut into sequences without overlap, which
    begin as documents do; the rest that fills no sequence is dropped. Text is read as a stream; the
    tokens of 64 MiB of text or more, and all of those that are streamed, go through a token file
    (``matta_cli.data.tokens``).

    Of conversations each is an example of its own, padded on the right: no attention ever joins
    two, and padding changes nothing before it, since a causal model looks back only. Losses,
    Teachers and metrics are at the tokens to be predicted: completions, or all.

    Batches of text: ``input_ids`` int64 [B, L]. Batches of passages: ``input_ids`` int64 [B, L],
    padded on the right, and ``target`` bool [B, L], the tokens of the last word. Batches of
    conversations: ``input_ids`` and ``attention_mask`` int64 [B, L], and ``predicted`` bool [B, L].
    """

    name = "causal_lm"
    output = "tokens in its vocabulary"
    alike = "positions with the same likeliest next token"
    generates = True
    metrics = (
        Metric("perplexity", "perplexity", higher=False),
        Metric("next_token_accuracy", "next-token accuracy", higher=True),
        Metric("last_word_accuracy", "last-word accuracy", higher=True),
    )

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.tokenizer: Any = None  # the model's, once data was opened
        self.given: list[int] = []  # tokens that begin documents: nobody has to predict them
        self.begun = 0  # how many tokens begin each sequence
        self.longest = 0  # tokens of the longest conversation that is measured
        # whether a Teacher may say what follows a text's last token
        self.last = True

    def data(self, folder: Path, model: nn.Module, *, training: bool = True) -> Data:
        settings = self.recipe.data
        given, size, own = self.recipe.convert.tokenizer, self.outputs(model), model.config
        tokenizer = open_tokenizer(folder, given, size, own, spare=True)
        if spare := spare_tokens(tokenizer, size):
            lacks = f"has no rows for {len(spare):,} added tokens, such as {spare[0]}"
            self.notes.append(f"The model {lacks}: data that holds one is refused.")
        # the text is cut here, so its warning about long text would mislead
        tokenizer.model_max_length = 10**12
        self.tokenizer, self.given, self.begun = tokenizer, [], 0
        self.left_out = LeftOut.of(home(folder), tokenizer)
        if columns := conversations.columns(settings, training):
            return self._conversations(columns, tokenizer, model, training)
        return self._text(tokenizer, model, training)

    def _conversations(
        self, own: tuple[str, ...], tokenizer: Any, model: nn.Module, training: bool
    ) -> Data:
        settings, length = self.recipe.data, self._length(model)
        # graphs are compiled for batches of one length
        fixed = bool(self.recipe.distill.compile)
        read = conversations.Reader(settings, tokenizer, length, self.outputs(model), fixed)
        train, measured = read(own, training)
        self.longest = measured.fixed or measured.longest
        what = "conversations" if settings.train_on == "all" else "conversations' completions"
        size = ""
        if train is not None:
            train = train.first(settings.max_tokens) if settings.max_tokens else train
            count, learned = train.size()
            size = f"{len(train):,} conversations, {count:,} tokens, {learned:,} of them learned"
            read.notes += conversations.repeated(train, measured)
        splits: list[Split] = [sample(measured, settings.eval_examples)]
        if settings.passages:
            splits.append(self._passages(tokenizer, read_passages(settings.passages), model))
        return self.described(train or measured, size, splits, what, "tokens", read.notes)

    def _text(self, tokenizer: Any, model: nn.Module, training: bool) -> Data:
        settings, run = self.recipe.data, self.recipe.distill
        length, vocabulary = self._length(model), self.outputs(model)
        train_text, held_out_text = read_text(settings, training)
        # a stream may have no end, so only what is measured is taken from it; else it is a sample
        # of all
        limit = settings.eval_examples * length if settings.streaming else 0
        some = functools.partial(tokens, sampled=self.sampled, left_out=self.left_out)
        row, own = some(tokenizer, held_out_text, vocabulary, limit, Paragraphs())
        begin, end = frame(tokenizer)
        measured = Packed(row, length, held_out_text.name, begin, shorter=True)
        train, size = measured, ""
        if train_text is not None:
            limit = settings.max_tokens
            if settings.streaming:
                needed = run.steps * run.batch_size * length
                limit = min(limit or needed, needed)
            row, _ = some(tokenizer, train_text, vocabulary, limit)
            train = Packed(row, length, settings.train, begin)
            size = f"{len(row):,} tokens, {len(train):,} sequences of {length:,}"
            size += f", kept in {row.filename}" if isinstance(row, np.memmap) else ""
        splits: list[Split] = [sample(measured, settings.eval_examples)]
        self.given, self.begun = [token for token in begin if token not in end], len(begin)
        given = read_passages(settings.passages) if settings.passages else own
        passages = self._passages(tokenizer, given, model)
        splits += [passages] if len(passages) else []
        what = f"sequences of {measured.length:,} tokens"
        if begin:  # as the tokenizer's own call has it
            what += f" (these, and documents, begin with {tokenizer.decode(begin)})"
        notes = notes_on(train_text, held_out_text)
        return self.described(train, size, splits, what, "tokens", notes)

    def _passages(self, tokenizer: Any, given: Sequence[str], model: nn.Module) -> Split:
        """Passages as a split, which is empty only where nobody named any."""
        settings = self.recipe.data
        passages = Passages(
            tokenizer, given, _most(model), frame(tokenizer)[0], self.outputs(model)
        )
        if settings.passages and not len(passages):
            none = f"{settings.passages!r} holds no passage that ends in a word after a space"
            raise MattaError(f"{none}: check --passages.")
        return sample(passages, settings.eval_examples)

    def first(self, split: Split) -> str:
        batch = split.batch([0])
        ids, there = batch["input_ids"][0], self.present(batch)
        shown = excerpt(self.tokenizer.decode(ids if there is None else ids[there[0]]))
        if "predicted" not in batch:
            return shown
        learned = excerpt(self.tokenizer.decode(ids[batch["predicted"][0]]))
        return f"{shown}, of which {learned} is learned"

    def outputs(self, model: nn.Module) -> int:
        own: Any = model.config
        return int(own.vocab_size)

    def fit_teacher(
        self, teacher: nn.Module, folder: Path | None, model: nn.Module, home: Path | None = None
    ) -> nn.Module:
        """Of a vocabulary that is padded over the same tokens the common part is used; of one that
        the model's was trimmed out of, the tokens that it was left.
        """
        positions = config(teacher, "max_position_embeddings")
        # the passages may be longer than the sequences
        needed = max(self._length(model), _most(model))
        if positions and positions < needed:
            numbers = f"The Teacher has {positions:,} positions, the model uses {needed:,}"
            raise MattaError(f"{numbers}: a longer Teacher is needed.")
        theirs, ours = self.outputs(teacher), self.outputs(model)
        if theirs > ours and self._trimmed(teacher, ours, folder, home):
            return teacher
        shared = common(self, theirs, ours, folder, home)
        return self.narrowed(teacher, shared) if theirs > shared else teacher

    def _trimmed(
        self, teacher: nn.Module, ours: int, folder: Path | None, home: Path | None
    ) -> bool:
        """Leave a Teacher, in place, the tokens that ``--trim-vocab`` left the model, if it did."""
        own, whole = tokenizer_of(home, self.recipe.convert.tokenizer), tokenizer_of(folder)
        kept = None if own is None or whole is None else kept_of(own, whole)
        if kept is None or len(kept) != ours or not hasattr(teacher, "get_input_embeddings"):
            return False
        numbers = f"{ours:,} of its {self.outputs(teacher):,} tokens are used"
        keep(teacher, kept)
        trimmed = "The model's vocabulary was trimmed out of the Teacher's"
        self.notes.append(f"{trimmed}: {numbers}.")
        return True

    def narrowed(self, model: nn.Module, outputs: int) -> nn.Module:
        return narrowed(model, outputs)

    def forward(self, model: Any, batch: Batch) -> Tensor:
        # HF modules would otherwise build a cache of keys and values that nothing here reads
        cached = hasattr(getattr(model, "config", None), "use_cache")
        return raw(model(input_ids=batch["input_ids"], **({"use_cache": False} if cached else {})))

    def logits(self, model: nn.Module, batch: Batch) -> int:
        return batch["input_ids"].numel() * self.outputs(model)

    def positions(self, batch: Batch) -> float:
        return float(batch["input_ids"].numel())

    def present(self, batch: Batch) -> Tensor | None:
        return batch["attention_mask"].bool() if "attention_mask" in batch else None

    def leave_last_out(self) -> None:
        self.last = False

    def taught(self, batch: Batch) -> Tensor | None:
        if "predicted" in batch:
            return F.pad(batch["predicted"][:, 1:], (0, 1))
        if self.last:
            return None
        return F.pad(torch.ones_like(batch["input_ids"][:, 1:], dtype=torch.bool), (0, 1))

    def shortened(self, batch: Batch, share: float) -> Batch:
        length = max(2, int(batch["input_ids"].shape[1] * share))
        return {name: tensor[:, :length] for name, tensor in batch.items()}

    def example(self, model: nn.Module, size: int = 4) -> Batch:
        generator, shape = torch.Generator().manual_seed(0), (size, min(_most(model), 64))
        return {"input_ids": torch.randint(self.outputs(model), shape, generator=generator)}

    def counts(self, batch: Batch) -> Counts:
        """Of text all positions are outputs: a Teacher knows what comes after the last one too."""
        taught = self.taught(batch)
        outputs = self.positions(batch) if taught is None else float(taught.sum())
        return {"labels": float(self.items(batch)), "outputs": outputs}

    def objective(
        self, logits: Logits, batch: Batch, terms: Sequence[Term], over: Counts | None = None
    ) -> Losses:
        # shift the labels, not the logits: those would be copied
        labels = batch["input_ids"][:, 1:].masked_fill(~self._predicted(batch), classes.IGNORED)
        labels = F.pad(labels, (0, 1), value=classes.IGNORED)
        own, over, taught = self.recipe.distill, over or self.counts(batch), self.taught(batch)
        return classes.of_classes(logits, labels, terms, over, own.temperature, own.compile, taught)

    def items(self, batch: Batch) -> int:
        """Tokens that are predicted."""
        if "target" in batch:
            return int(batch["target"].sum())
        return int(self._predicted(batch).sum())

    def calibration(self, one: Batch) -> int:
        """So many sequences as hold 8,192 tokens: eight times as many order units little better."""
        return max(1, min(super().calibration(one), round(_CALIBRATION / one["input_ids"].numel())))

    def _predicted(self, batch: Batch) -> Tensor:
        """Which of the tokens after the first are predicted, bool [B, L - 1]."""
        if "predicted" in batch:
            return batch["predicted"][:, 1:]
        ids = batch["input_ids"]
        predicted = torch.ones_like(ids[:, 1:], dtype=torch.bool)
        for token in self.given:
            predicted &= ids[:, 1:] != token
        predicted[:, : self.begun] = False  # nor the text's first one, which may be in its midst
        return predicted

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Text: ``nll`` (nats, summed), ``tokens``, ``correct``. Passages: ``last_word`` 0 or 1."""
        ids = batch["input_ids"]
        right = logits[:, :-1].argmax(-1) == ids[:, 1:]
        if "target" in batch:
            return {"last_word": (right | ~batch["target"][:, 1:]).all(1).double()}
        counted = self._predicted(batch)
        nll = [
            (F.cross_entropy(row[:-1].float(), own[1:], reduction="none") * count).double().sum()
            # row by row, for the float32 copies of one row only
            for row, own, count in zip(logits, ids, counted, strict=True)
        ]
        correct, predicted = (right & counted).sum(1).double(), counted.sum(1).double()
        return {"nll": torch.stack(nll), "tokens": predicted, "correct": correct}

    def right(self, columns: Columns) -> Columns:
        return {"last_word_accuracy": columns["last_word"]} if "last_word" in columns else {}

    def summarize(self, columns: Columns) -> dict[str, float]:
        if "last_word" in columns:
            return {metric: float(right.mean()) for metric, right in self.right(columns).items()}
        predicted = columns["tokens"].sum()
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(columns["nll"].sum() / predicted))
        accuracy = float(columns["correct"].sum() / predicted)
        return {"perplexity": perplexity, "next_token_accuracy": accuracy}

    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """The likeliest next tokens, int32 [B, L - 1]; of conversations -1 where none counts.

        These have as many columns in all batches. Passages have no answers.
        """
        if "target" in batch:
            return {}
        likeliest = logits[:, :-1].argmax(-1).int()
        if "predicted" in batch:
            likeliest = likeliest.masked_fill(~self._predicted(batch), -1)
            length = batch["input_ids"].shape[1]
            longest = self.longest or length
            likeliest = F.pad(likeliest, (0, max(0, longest - length)), value=-1)[:, : longest - 1]
        return {"next": likeliest}

    def agreement(self, ours: Columns, theirs: Columns) -> Columns:
        own, other = ours["next"], theirs["next"]
        counted = own >= 0
        return {
            "same": ((own == other) & counted).sum(1).astype(float),
            "of": counted.sum(1).astype(float),
        }

    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        if "nll" not in columns:
            return None
        nll, chance = float(columns["nll"].sum() / columns["tokens"].sum()), math.log(outputs)
        if nll < 0.98 * chance:
            return None
        guessing = f"guessing among {outputs:,} tokens gives {chance:.3f}"
        return f"its held-out loss is {nll:.3f} nats per token, and {guessing}."

    def _length(self, model: nn.Module) -> int:
        """Tokens per sequence."""
        positions = config(model, "max_position_embeddings")
        length = self.recipe.data.sequence_length or _most(model)
        if positions and length > positions:
            known = f"the model has {positions:,} positions"
            raise MattaError(f"--sequence-length is {length:,}, but {known}.")
        if length < 2:
            needed = "predicting a token takes 2 or more."
            raise MattaError(f"--sequence-length is {length}, but {needed}")
        return length


def _most(model: nn.Module) -> int:
    """Tokens of the longest sequence that is used unasked."""
    return min(config(model, "max_position_embeddings") or 1024, 1024)
