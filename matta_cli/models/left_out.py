"""What ``--trim-vocab`` left out of a tokenizer: kept beside it, so that what it costs is told."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matta_cli.errors import MattaError, said
from matta_cli.files import atomic, reading

NAME = "tokenizer-untrimmed.json.gz"


def write(card: dict[str, Any], folder: Path) -> None:
    """Keep a tokenizer as it was before its tokens were left out; of one that lacks some, nothing
    new.
    """
    if not (folder / NAME).is_file():
        text = json.dumps(card, ensure_ascii=False).encode()
        with atomic.atomic_file(folder / NAME) as temp:
            temp.write_bytes(gzip.compress(text, mtime=0))


class LeftOut:
    """How many tokens of texts were left out.

    counts: of the tokens that the texts had those that were left out, all, and how often something
    is unknown that was not.
    """

    def __init__(self, whole: Any, tokenizer: Any) -> None:
        """whole: what the ``tokenizer`` was, as ``tokenizers`` has it."""
        from tokenizers import Tokenizer

        self.whole = whole
        self.trimmed: Any = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        for own in (self.whole, self.trimmed):
            own.no_truncation()
            own.no_padding()
        known, size = self.trimmed.get_vocab(), self.whole.get_vocab_size()
        self.gone = np.array([self.whole.id_to_token(i) not in known for i in range(size)])
        self.unknown = str(tokenizer.unk_token or "")
        self.counts = [0, 0, 0]

    @classmethod
    def of(cls, folder: Path, tokenizer: Any) -> LeftOut | None:
        """Of the tokenizer in a folder; None where nothing was left out.

        Raises ``MattaError`` where it cannot be read.
        """
        from tokenizers import Tokenizer

        path = folder / NAME
        if not path.is_file() or getattr(tokenizer, "backend_tokenizer", None) is None:
            return None
        try:
            with gzip.open(reading.regular(path)) as file:
                text = file.read(reading.LARGEST).decode()
            return cls(Tokenizer.from_str(text), tokenizer)
        except Exception as error:  # what tokenizers raises has no kind of its own
            hint = "remove it; what --trim-vocab left out is not told then"
            raise MattaError(f"{str(path)!r} is damaged ({said(error)}): {hint}.") from None

    def add(self, texts: Sequence[str]) -> None:
        """Count what texts had."""
        lost = []
        for text, made in zip(
            texts, self.whole.encode_batch(texts, add_special_tokens=False), strict=True
        ):
            gone = int(self.gone[made.ids].sum()) if made.ids else 0
            self.counts[0] += gone
            self.counts[1] += len(made.ids)
            lost += [(text, made.tokens.count(self.unknown))] if gone else []
        now = self.trimmed.encode_batch([text for text, _ in lost], add_special_tokens=False)
        for (_, before), made in zip(lost, now, strict=True):
            self.counts[2] += max(0, made.tokens.count(self.unknown) - before)

    def told(self) -> list[str]:
        """A sentence on what was counted since it was last told; none where nothing is lost."""
        (lost, total, unknown), self.counts = self.counts, [0, 0, 0]
        if not lost:
            return []
        read = "they are read in smaller pieces"
        if unknown >= lost:
            read = f"they are read as {self.unknown}"
        elif unknown:
            read += f", and {unknown:,} times as {self.unknown}"
        what = f"{lost:,} of {total:,} tokens of the texts were left out of the vocabulary"
        return [f"{what} by --trim-vocab: {read}."]
