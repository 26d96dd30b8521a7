"""Causal language models: text -> packed sequences, perplexity, next-token and last-word accuracy."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matta_cli import data as common
from matta_cli import losses, models
from matta_cli.errors import MattaError
from matta_cli.losses import Logits, Term
from matta_cli.tasks import Batch, Columns, Data, Metric, Task

_READ = (".txt", ".md", ".jsonl", ".parquet")
_PIECE = 1 << 14  # characters that are tokenized at once: many pieces of one text run in parallel
_PASSAGES = 500  # passages taken from held-out paragraphs
_WORDS = 10  # words of a paragraph that makes a passage


class CausalLM(Task):
    """Next-token prediction. Text is tokenized whole, documents are separated by the end-of-text token, and the tokens are
    cut into sequences without overlap; the rest that fills no sequence is dropped.

    Batches of text: ``input_ids`` int64 [B, L]. Batches of passages: ``input_ids`` int64 [B, L], padded on the right, and
    ``target`` bool [B, L], the tokens of the last word.
    """

    name = "causal_lm"
    output = "tokens in its vocabulary"
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
        held_out_name = settings.held_out or settings.train
        held_out = Packed(_tokens(tokenizer, held_out_text), length, held_out_name, shorter=True)
        train = Packed(_tokens(tokenizer, train_text), length, settings.train) if training else held_out
        splits = [common.sample(held_out, settings.eval_examples)]
        if settings.passages:
            path = common.find(settings.passages, "--passages")
            if path is None:
                raise MattaError(f"There is no file {settings.passages!r}: check --passages.")
            texts = list(_jsonl(path, "text", ""))
        else:
            texts = paragraphs(held_out_text)
        passages = Passages(tokenizer, texts, self._most(model))
        if len(passages):
            splits.append(common.sample(passages, settings.eval_examples))
        elif settings.passages:
            raise MattaError(f"{settings.passages!r} holds no passage that ends in a word after a space: check --passages.")
        description = f"{held_out_name}: held out {len(splits[0]):,} sequences of {held_out.length:,} tokens"
        if training:
            description = (
                f"{settings.train}: {len(train.tokens):,} tokens, {len(train):,} sequences of {length:,}; {description}"
            )
        return Data(train, tuple(splits), description, "tokens")

    def outputs(self, model: nn.Module) -> int:
        config: Any = model.config
        return int(config.vocab_size)

    def fit_teacher(self, teacher: nn.Module, folder: Path | None, model: nn.Module) -> nn.Module:
        positions = getattr(getattr(teacher, "config", None), "max_position_embeddings", None)
        needed = max(self._length(model), self._most(model))  # the passages may be longer than the sequences
        if positions and positions < needed:
            raise MattaError(f"The Teacher has {positions:,} positions, the model uses {needed:,}: a longer Teacher is needed.")
        return super().fit_teacher(teacher, folder, model)

    def forward(self, model: Any, batch: Batch) -> Tensor:
        # HF modules would otherwise build a cache of keys and values that nothing here reads
        options = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
        output = model(input_ids=batch["input_ids"], **options)
        return getattr(output, "logits", output)

    def example(self, model: nn.Module, size: int = 4) -> Batch:
        generator = torch.Generator().manual_seed(0)
        return {"input_ids": torch.randint(self.outputs(model), (size, min(self._most(model), 64)), generator=generator)}

    def counts(self, batch: Batch) -> dict[str, float]:
        """Labels: the tokens that are predicted. Outputs: all positions: a Teacher knows what comes after the last one too."""
        ids = batch["input_ids"]
        return {"labels": float(ids[:, 1:].numel()), "outputs": float(ids.numel())}

    def objective(
        self, logits: Logits, batch: Batch, terms: Sequence[Term], over: dict[str, float] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        # shift the labels, not the logits: those would be copied
        labels = F.pad(batch["input_ids"][:, 1:], (0, 1), value=losses.IGNORED)
        settings = self.recipe.distill
        over = over or self.counts(batch)
        return losses.of_classes(logits, labels, terms, over, settings.temperature, settings.divergence)

    def items(self, batch: Batch) -> int:
        """Tokens that are predicted."""
        return int(batch["target"].sum()) if "target" in batch else batch["input_ids"][:, 1:].numel()

    def score(self, logits: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Text: ``nll`` (nats, summed over the sequence), ``tokens``, ``correct``. Passages: ``last_word`` (0 or 1)."""
        ids = batch["input_ids"]
        right = logits[:, :-1].argmax(-1) == ids[:, 1:]
        if "target" in batch:
            return {"last_word": (right | ~batch["target"][:, 1:]).all(1).double()}
        nll = [
            F.cross_entropy(row[:-1].float(), own[1:], reduction="none").double().sum()
            for row, own in zip(logits, ids, strict=True)  # row by row, for the float32 copies of one row only
        ]
        tokens = torch.full((len(ids),), ids.shape[1] - 1, dtype=torch.double, device=ids.device)
        return {"nll": torch.stack(nll), "tokens": tokens, "correct": right.sum(1).double()}

    def summarize(self, columns: Columns) -> dict[str, float]:
        if "last_word" in columns:
            return {"last_word_accuracy": float(columns["last_word"].mean())}
        tokens = columns["tokens"].sum()
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(columns["nll"].sum() / tokens))
        return {"perplexity": perplexity, "next_token_accuracy": float(columns["correct"].sum() / tokens)}

    def at_chance(self, columns: Columns, outputs: int) -> str | None:
        if "nll" not in columns:
            return None
        nll, chance = float(columns["nll"].sum() / columns["tokens"].sum()), math.log(outputs)
        if nll < 0.98 * chance:
            return None
        return f"its held-out loss is {nll:.3f} nats per token, and guessing among {outputs:,} tokens gives {chance:.3f}."

    def _most(self, model: nn.Module) -> int:
        """Tokens of the longest sequence that is used unasked."""
        return min(getattr(getattr(model, "config", None), "max_position_embeddings", None) or 1024, 1024)

    def _length(self, model: nn.Module) -> int:
        """Tokens per sequence."""
        most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        length = self.recipe.data.sequence_length or self._most(model)
        if most and length > most:
            raise MattaError(f"--sequence-length is {length:,}, but the model has {most:,} positions.")
        if length < 2:
            raise MattaError(f"--sequence-length is {length}, but predicting a token takes 2 or more.")
        return length

    def _tokenizer(self, folder: Path, model: nn.Module) -> Any:
        """The tokenizer in the model's folder, else the recipe's."""
        from transformers import AutoTokenizer

        given = self.recipe.convert.tokenizer
        # without its files, transformers makes up a tokenizer of one token from the model's config.json
        own = models.has_tokenizer(folder)
        if not own and not given:
            raise MattaError(f"There is no tokenizer in {str(folder)!r}: convert again with --tokenizer FOLDER_OR_HUB_ID.")
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder) if own else given)
        except Exception as error:  # transformers raises what its backends raise
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MattaError(
                f"The tokenizer in {str(folder) if own else given!r} cannot be opened: convert again with --tokenizer "
                f"FOLDER_OR_HUB_ID. ({said})"
            ) from error
        if len(tokenizer) < 2:
            where = str(folder) if own else given
            raise MattaError(f"The tokenizer in {where!r} has {len(tokenizer)} tokens: convert again with --tokenizer.")
        if len(tokenizer) > self.outputs(model):
            raise MattaError(
                f"The tokenizer has {len(tokenizer):,} tokens, but the model's vocabulary {self.outputs(model):,}: pass the "
                "model's own with --tokenizer."
            )
        tokenizer.model_max_length = 10**12  # the text is cut here, so its warning about long text would mislead
        return tokenizer

    def _texts(self, training: bool) -> tuple[list[str], list[str]]:
        """Documents to train on (none unless ``training``) and to measure on."""
        settings = self.recipe.data
        if settings.held_out:
            held_out = self._documents(settings.held_out, "--held-out")
            return (self._documents(settings.train, "--data") if training else []), held_out
        path = common.find(settings.train)
        if path is not None:
            return cut(_with_text(_local(path, settings.text), settings.train), settings.train)
        splits = common.hub_dataset(settings.train, settings.config)
        rows = common.hub_held_out(splits, settings.train, settings.held_out_split)
        if rows is not None and not training:
            return [], self._column(rows, settings.train)
        train = self._column(common.hub_split(splits, settings.train, settings.split), settings.train)
        return cut(train, settings.train) if rows is None else (train, self._column(rows, settings.train))

    def _documents(self, text: str, flag: str) -> list[str]:
        """All documents of what ``text`` names."""
        settings = self.recipe.data
        path = common.find(text, flag)
        if path is not None:
            return _with_text(_local(path, settings.text), text)
        splits = common.hub_dataset(text, settings.config)
        rows = common.hub_held_out(splits, text, settings.held_out_split) if flag == "--held-out" else None
        return self._column(rows if rows is not None else common.hub_split(splits, text, settings.split), text)

    def _column(self, rows: Any, name: str) -> list[str]:
        column = self.recipe.data.text
        if column not in rows.column_names:
            raise common.no_column(name, column, "data.text", rows.column_names)
        return _with_text((value for value in rows[column] if value is not None), name)


class Packed:
    """Tokens cut into sequences of ``length``. ``shorter``: too few tokens for one make one shorter sequence."""

    def __init__(self, tokens: np.ndarray, length: int, name: str, *, shorter: bool = False) -> None:
        if shorter:
            length = min(length, len(tokens))
        if len(tokens) < max(2, length):
            raise MattaError(
                f"{name!r} has {len(tokens):,} tokens, too few for a sequence of {max(2, length):,}: pass more text, or a "
                "smaller --sequence-length."
            )
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    def batch(self, indices: Sequence[int]) -> Batch:
        """``input_ids`` int64 [B, L]."""
        rows = self.tokens[: len(self) * self.length].reshape(-1, self.length)
        return {"input_ids": torch.from_numpy(rows[list(indices)].astype(np.int64))}

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        if ids:
            raise common.no_ids("text")
        return np.asarray(indices, dtype=np.int64)

    def digest(self) -> str:
        return common.digest([f"{self.length} {self.tokens.dtype} ", self.tokens])


class Passages:
    """Passages whose last word is to be predicted, as LAMBADA defines it (Paperno et al. 2016, arXiv 1606.06031).

    The last word is what follows the last space; it counts if every one of its tokens is the likeliest given all before it.
    Longer passages than ``length`` tokens lose their beginning. Passages without a space, or whose last word is longer than
    that, are left out.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], length: int) -> None:
        self.rows: list[tuple[np.ndarray, int]] = []  # tokens, and how many of them are the last word
        self.padding = tokenizer.pad_token_id or tokenizer.eos_token_id or 0
        texts = [text for text in texts if text.rpartition(" ")[0].strip()]
        contexts = _encode(tokenizer, [text.rpartition(" ")[0] for text in texts])
        for context, whole in zip(contexts, _encode(tokenizer, texts), strict=True):
            word = len(whole) - len(context)
            if 0 < word < min(length, len(whole)):
                self.rows.append((np.array(whole[-length:], dtype=np.int64), word))

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self, indices: Sequence[int], *, ids: bool = False) -> np.ndarray:
        return np.asarray(indices, dtype=np.int64)

    def digest(self) -> str:
        return common.digest([tokens for tokens, _ in self.rows])

    def batch(self, indices: Sequence[int]) -> Batch:
        """``input_ids`` int64 [B, L] padded on the right (a causal model never looks there), ``target`` bool [B, L]."""
        rows = [self.rows[i] for i in indices]
        ids = torch.full((len(rows), max(len(tokens) for tokens, _ in rows)), self.padding)
        target = torch.zeros_like(ids, dtype=torch.bool)
        for k, (tokens, word) in enumerate(rows):
            ids[k, : len(tokens)] = torch.from_numpy(tokens)
            target[k, len(tokens) - word : len(tokens)] = True
        return {"input_ids": ids, "target": target}


def cut(documents: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """The documents without the last tenth of their text, and that tenth; a document is cut where a line or word ends."""
    total = sum(map(len, documents))
    place = common.last_tenth(total, name, "characters")
    k = 0
    while place >= len(documents[k]):
        place -= len(documents[k])
        k += 1
    breaks = [documents[k].rfind(mark, 0, place + 1) for mark in ("\n", " ")]
    place = next((b for b in breaks if b >= max(0, place - total // 10)), place)  # a fifth at most is held out
    train = [*documents[:k], documents[k][:place]]
    held_out = [documents[k][place:], *documents[k + 1 :]]
    train, held_out = ([document for document in part if document.strip()] for part in (train, held_out))
    if not train or not held_out:
        raise MattaError(f"{name!r} holds too little text to hold some out, so pass --held-out with other text.")
    return train, held_out


def paragraphs(documents: Sequence[str]) -> list[str]:
    """At most 500 passages from the lines of ``documents`` that have ten words or more, evenly spread.

    What follows the last word (a full stop, a quotation mark) is taken off; a passage that then does not end in a word of
    letters is left out.
    """
    found = []
    for document in documents:
        for line in document.splitlines():
            line = re.sub(r"[\W_]+$", "", line).strip()
            word = line.rpartition(" ")[2]
            if len(line.split()) >= _WORDS and re.fullmatch(r"[^\W\d_]+([-'’][^\W\d_]+)*", word):
                found.append(line)
    if len(found) <= _PASSAGES:
        return found
    return [found[i] for i in np.linspace(0, len(found) - 1, _PASSAGES).astype(int)]


def _local(path: Path, column: str) -> Iterator[str]:
    """The documents of a file, or of all files in a folder that can be read, in the order of their paths."""
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.suffix in _READ and p.is_file()):
            yield from _local(file, column)
    elif path.suffix == ".jsonl":
        yield from _jsonl(path, column)
    elif path.suffix == ".parquet":
        table = common.read_table(path)
        if column not in table:
            raise common.no_column(str(path), column, "data.text", list(table))
        yield from (str(value) for value in table[column] if value is not None)
    else:
        try:
            yield path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            raise MattaError(f"{str(path)!r} is not a text file in UTF-8; matta reads {', '.join(_READ)}.") from None


def _jsonl(path: Path, column: str, setting: str = "data.text") -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise MattaError(f"{str(path)!r}, line {number} is not valid JSON: {error}.") from None
                if not isinstance(row, dict) or column not in row:
                    raise common.no_column(f"{path}:{number}", column, setting, list(row) if isinstance(row, dict) else [])
                yield str(row[column])
    except (UnicodeDecodeError, OSError):
        raise MattaError(f"{str(path)!r} cannot be read as JSON lines in UTF-8.") from None


def _with_text(documents: Iterator[str], name: str) -> list[str]:
    found = [document for document in documents if document.strip()]
    if not found:
        raise common.empty(name, f"text ({', '.join(_READ)})")
    return found


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]


def _tokens(tokenizer: Any, documents: Sequence[str]) -> np.ndarray:
    """All documents as one row of tokens, int32 [tokens], each document followed by the end-of-text token if there is one."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    parts: list[np.ndarray] = []
    for pieces in _batched(documents):
        encoded = _encode(tokenizer, [piece for piece, _ in pieces])
        parts += [np.array(ids + (end if last else []), dtype=np.int32) for ids, (_, last) in zip(encoded, pieces, strict=True)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)


def _batched(documents: Sequence[str], characters: int = 1 << 24) -> Iterator[list[tuple[str, bool]]]:
    """Pieces of the documents, and whether each is its document's last, in lists of about ``characters``."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for document in documents:
        start = 0
        while start < len(document):
            # a line's end begins a piece: no tokenizer joins it with the word before it
            match = re.compile(r"(?<=\S)\n").search(document, start + _PIECE)
            end = match.start() if match else len(document)
            batch.append((document[start:end], end == len(document)))
            size, start = size + end - start, end
            if size >= characters:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
