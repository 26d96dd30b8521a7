"""Causal language models: text -> packed sequences, perplexity, next-token and last-word accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matta_cli.data import find
from matta_cli.data.split import Batch, Columns, Data, sample
from matta_cli.data.text import Paragraphs, Text, batches, cut, first, hub, jsonl, local, pieces
from matta_cli.data.tokens import stored
from matta_cli.errors import MattaError
from matta_cli.losses import classes
from matta_cli.losses.targets import Logits, Term
from matta_cli.models.tokenizer import open_tokenizer, tokenizer_digest
from matta_cli.tasks.causal_lm.examples import Packed, Passages, encode
from matta_cli.tasks.task import Metric, Task

# bytes of text whose tokens are kept in memory; those of more are kept on disk
_IN_MEMORY = 1 << 26


class CausalLM(Task):
    """Next-token prediction. Text is tokenized whole, documents are separated by the end-of-text
    token, and the tokens are cut into sequences without overlap; the rest that fills no sequence is
    dropped. Text is read as a stream; the tokens of 64 MiB of text or more, and all of those that
    are streamed, go through a token file (``matta_cli.data.tokens``).

    Batches of text: ``input_ids`` int64 [B, L]. Batches of passages: ``input_ids`` int64 [B, L],
    padded on the right, and ``target`` bool [B, L], the tokens of the last word.
    """

    name = "causal_lm"
    output = "tokens in its vocabulary"
    alike = "positions with the same likeliest next token"
    metrics = (
        Metric("perplexity", "perplexity", higher=False),
        Metric("next_token_accuracy", "next-token accuracy", higher=True),
        Metric("last_word_accuracy", "last-word accuracy", higher=True),
    )

    def data(self, folder: Path, model: nn.Module, *, training: bool = True) -> Data:
        settings = self.recipe.data
        length = self._length(model)
        tokenizer = self._tokenizer(folder, model)
        train_text, held_out_text = self._texts(training)
        streaming, most = settings.streaming, settings.max_tokens
        # a stream may have no end, so only what is measured is taken from it; else it is a sample
        # of all
        limit = settings.eval_examples * length if streaming else 0
        held_out, texts = self._tokens(tokenizer, held_out_text, model, limit, Paragraphs())
        measured = Packed(held_out, length, held_out_text.name, shorter=True)
        train = measured
        if train_text is not None:
            needed = (
                self.recipe.distill.steps * self.recipe.distill.batch_size * length
                if streaming
                else 0
            )
            limit = min(most or needed, needed) if streaming else most
            train = Packed(
                self._tokens(tokenizer, train_text, model, limit)[0], length, settings.train
            )
        splits = [sample(measured, settings.eval_examples)]
        if settings.passages:
            path = find.find(settings.passages, "--passages")
            if path is None:
                raise MattaError(f"There is no file {settings.passages!r}: check --passages.")
            texts = list(jsonl(path, "text", ""))
        passages = Passages(tokenizer, texts, self._most(model))
        if len(passages):
            splits.append(sample(passages, settings.eval_examples))
        elif settings.passages:
            raise MattaError(
                f"{settings.passages!r} holds no passage that ends in a word after a space: check --passages."
            )
        description = f"{held_out_text.name}: held out {len(splits[0]):,} sequences of {measured.length:,} tokens"
        if train_text is not None:
            size = f"{len(train.tokens):,} tokens, {len(train):,} sequences of {length:,}"
            kept = (
                f", kept in {train.tokens.filename}" if isinstance(train.tokens, np.memmap) else ""
            )
            description = f"{settings.train}: {size}{kept}; {description}"
        return Data(train, tuple(splits), description, "tokens")

    def outputs(self, model: nn.Module) -> int:
        config: Any = model.config
        return int(config.vocab_size)

    def fit_teacher(self, teacher: nn.Module, folder: Path | None, model: nn.Module) -> nn.Module:
        positions = getattr(getattr(teacher, "config", None), "max_position_embeddings", None)
        # the passages may be longer than the sequences
        needed = max(self._length(model), self._most(model))
        if positions and positions < needed:
            raise MattaError(
                f"The Teacher has {positions:,} positions, the model uses {needed:,}: a longer Teacher is needed."
            )
        return super().fit_teacher(teacher, folder, model)

    def forward(self, model: Any, batch: Batch) -> Tensor:
        # HF modules would otherwise build a cache of keys and values that nothing here reads
        options = (
            {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
        )
        output = model(input_ids=batch["input_ids"], **options)
        return getattr(output, "logits", output)

    def example(self, model: nn.Module, size: int = 4) -> Batch:
        generator = torch.Generator().manual_seed(0)
        return {
            "input_ids": torch.randint(
                self.outputs(model), (size, min(self._most(model), 64)), generator=generator
            )
        }

    def counts(self, batch: Batch) -> dict[str, float]:
        """Labels: the tokens that are predicted. Outputs: all positions: a Teacher knows what comes
        after the last one too.
        """
        ids = batch["input_ids"]
        return {"labels": float(ids[:, 1:].numel()), "outputs": float(ids.numel())}

    def objective(
        self,
        logits: Logits,
        batch: Batch,
        terms: Sequence[Term],
        over: dict[str, float] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        # shift the labels, not the logits: those would be copied
        labels = F.pad(batch["input_ids"][:, 1:], (0, 1), value=classes.IGNORED)
        settings = self.recipe.distill
        over = over or self.counts(batch)
        return classes.of_classes(
            logits, labels, terms, over, settings.temperature, settings.divergence
        )

    def items(self, batch: Batch) -> int:
        """Tokens that are predicted."""
        return (
            int(batch["target"].sum()) if "target" in batch else batch["input_ids"][:, 1:].numel()
        )

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Text: ``nll`` (nats, summed over the sequence), ``tokens``, ``correct``. Passages:
        ``last_word`` (0 or 1).
        """
        ids = batch["input_ids"]
        right = logits[:, :-1].argmax(-1) == ids[:, 1:]
        if "target" in batch:
            return {"last_word": (right | ~batch["target"][:, 1:]).all(1).double()}
        nll = [
            F.cross_entropy(row[:-1].float(), own[1:], reduction="none").double().sum()
            # row by row, for the float32 copies of one row only
            for row, own in zip(logits, ids, strict=True)
        ]
        tokens = torch.full((len(ids),), ids.shape[1] - 1, dtype=torch.double, device=ids.device)
        return {"nll": torch.stack(nll), "tokens": tokens, "correct": right.sum(1).double()}

    def right(self, columns: Columns) -> Columns:
        return {"last_word_accuracy": columns["last_word"]} if "last_word" in columns else {}

    def summarize(self, columns: Columns) -> dict[str, float]:
        if "last_word" in columns:
            return {metric: float(right.mean()) for metric, right in self.right(columns).items()}
        tokens = columns["tokens"].sum()
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(columns["nll"].sum() / tokens))
        return {
            "perplexity": perplexity,
            "next_token_accuracy": float(columns["correct"].sum() / tokens),
        }

    def answers(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Text: the likeliest next tokens, int32 [B, L - 1]."""
        return {} if "target" in batch else {"next": logits[:, :-1].argmax(-1).int()}

    def agreement(self, ours: Columns, theirs: Columns) -> Columns:
        same = ours["next"] == theirs["next"]
        return {"same": same.sum(1).astype(float), "of": np.full(len(same), float(same.shape[1]))}

    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        if "nll" not in columns:
            return None
        nll, chance = float(columns["nll"].sum() / columns["tokens"].sum()), math.log(outputs)
        if nll < 0.98 * chance:
            return None
        return f"its held-out loss is {nll:.3f} nats per token, and guessing among {outputs:,} tokens gives {chance:.3f}."

    def _most(self, model: nn.Module) -> int:
        """Tokens of the longest sequence that is used unasked."""
        return min(
            getattr(getattr(model, "config", None), "max_position_embeddings", None) or 1024, 1024
        )

    def _length(self, model: nn.Module) -> int:
        """Tokens per sequence."""
        most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        length = self.recipe.data.sequence_length or self._most(model)
        if most and length > most:
            raise MattaError(
                f"--sequence-length is {length:,}, but the model has {most:,} positions."
            )
        if length < 2:
            raise MattaError(
                f"--sequence-length is {length}, but predicting a token takes 2 or more."
            )
        return length

    def _tokenizer(self, folder: Path, model: nn.Module) -> Any:
        """The tokenizer in the model's folder, else the recipe's."""
        tokenizer = open_tokenizer(folder, self.recipe.convert.tokenizer, self.outputs(model))
        # the text is cut here, so its warning about long text would mislead
        tokenizer.model_max_length = 10**12
        return tokenizer

    def _texts(self, training: bool) -> tuple[Text | None, Text]:
        """Text to train on (None unless ``training``) and to measure on."""
        settings = self.recipe.data
        if settings.max_tokens < 0:
            raise MattaError(
                f"data.max_tokens is {settings.max_tokens}, but it is a number of tokens, or 0."
            )
        if settings.held_out:
            only, own = self._open(settings.held_out, "--held-out", False)
            train = self._open(settings.train, "--data", True)[0] if training else None
            held_out = own or only
        else:
            train, held_out = self._open(settings.train, "--data", training)
            if held_out is None and train is not None:
                train, held_out = first(train) if settings.streaming else cut(train)
        assert held_out is not None
        return (train if training else None), held_out

    def _open(self, text: str, flag: str, training: bool) -> tuple[Text | None, Text | None]:
        """What ``text`` names to train on (None where only the other is asked for, and there), and
        its own held-out split.
        """
        settings = self.recipe.data
        path = find.find(text, flag)
        if path is not None and not (settings.streaming and path.is_dir()):
            if settings.streaming and flag == "--data":
                raise MattaError(
                    f"data.streaming is for datasets of the hub and folders that `datasets` opens, but {text!r} is a file: "
                    "leave data.streaming out (matta never holds the text of a file in memory)."
                )
            return local(path, settings.text, text), None
        if settings.streaming:
            splits, fingerprint = find.hub_stream(str(path or text), settings.config)
        else:
            splits, fingerprint = find.hub_dataset(text, settings.config), ""

        def opened(rows: Any) -> Text:
            split = next(name for name, known in splits.items() if known is rows)
            return hub(rows, settings.text, text, [text, split, fingerprint or rows._fingerprint])

        rows = find.hub_held_out(splits, text, settings.held_out_split)
        held_out = None if rows is None else opened(rows)
        if held_out is not None and not training:
            return None, held_out
        return opened(find.hub_split(splits, text, settings.split)), held_out

    def _tokens(
        self,
        tokenizer: Any,
        text: Text,
        model: nn.Module,
        limit: int,
        seen: Paragraphs | None = None,
    ) -> tuple[np.ndarray, list[str]]:
        """All of a text as one row of tokens [n], at most ``limit`` (0: all), and with ``seen``
        passages of what was read.

        Each document is followed by the end-of-text token if there is one. Tokens are uint16 where
        the vocabulary allows.
        """
        vocabulary = self.outputs(model)
        dtype = "<u2" if vocabulary <= 1 << 16 else "<i4"
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

        def arrays() -> Iterator[np.ndarray]:
            for batch in batches(pieces(text.read())):
                ids: list[int] = []
                for own, (piece, last) in zip(
                    encode(tokenizer, [piece for piece, _ in batch]), batch, strict=True
                ):
                    ids += own + (end if last else [])
                    if seen is not None:
                        seen.add(piece)
                if max(ids, default=0) >= vocabulary:
                    raise MattaError(
                        f"The tokenizer makes the token {max(ids):,}, but the model's vocabulary is {vocabulary:,}: pass the "
                        "model's own with --tokenizer."
                    )
                yield np.array(ids, dtype)

        if text.size is not None and text.size < _IN_MEMORY:
            found = np.concatenate(list(arrays()))[: limit or None]
            return found, seen.passages() if seen is not None else []
        identity = [text.identity, tokenizer_digest(tokenizer), tokenizer.eos_token_id]
        if seen is None:
            return stored(identity, dtype, arrays, dict, limit)[0], []
        # with the limit, on which the passages depend: a longer file would hold others
        found, card = stored(
            [identity, limit], dtype, arrays, lambda: {"passages": seen.passages()}, limit
        )
        return found, card["passages"]
