"""The study's language models: GPT-2 of two sizes, made from scratch."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.quality.problem import once
from benchmarks.quality.training import scratch
from matta_cli.conversion.convert import convert
from matta_cli.settings.recipe import Recipe
from matta_cli.training.teach import teach

SPECIAL = "<|endoftext|>"


def model(width: int, layers: int, heads: int, vocabulary: int, positions: int) -> nn.Module:
    """A GPT-2 without dropout, its weights drawn from torch's generator."""
    from transformers import GPT2Config, GPT2LMHeadModel

    off: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    off |= {"bos_token_id": 0, "eos_token_id": 0, "n_positions": positions}
    config = GPT2Config(vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=heads, **off)
    return GPT2LMHeadModel(config)


def _tokenizer(backend: Any, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=SPECIAL, bos_token=SPECIAL
    )
    tokenizer.save_pretrained(str(folder))


def _halves(source: Path) -> tuple[str, str]:
    """The articles of WikiText's test file, every second one in each half."""
    articles: list[str] = []
    for part in source.read_text(encoding="utf-8").split("\n = "):
        if part.startswith("= ") and articles:
            # " = = Section = = " belongs to the article before it
            articles[-1] += "\n = " + part
        else:
            articles.append("\n = " + part if articles else part)
    return "".join(articles[0::2]), "".join(articles[1::2])


def lm(folder: Path, recipe: Recipe, data: Mapping[str, Path], seed: int) -> None:
    """A GPT-2 with a vocabulary of its own; the test articles are halved into dev and test."""
    wikitext = data["wikitext-2"]

    def texts(made: Path) -> None:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        train = (wikitext / "valid.txt").read_text(encoding="utf-8")
        dev, test = _halves(wikitext / "test.txt")
        for name, text in (("train", train), ("dev", dev), ("test", test)):
            (made / f"{name}.txt").write_text(text, encoding="utf-8")
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=1024,
            special_tokens=[SPECIAL],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train([str(made / "train.txt")], trainer)
        _tokenizer(bpe, made / "tokenizer")

    text = once(folder / "data", texts)
    recipe.data.train, recipe.data.sequence_length = str(text / "train.txt"), 64

    def trained(
        sizes: tuple[int, int, int], at: int, steps: int, rate: float
    ) -> Callable[[Path], None]:
        # drawn now: making the Teacher draws from the same generator
        torch.manual_seed(at)
        built = model(*sizes, 1024, 256)

        def make(made: Path) -> None:
            shutil.copytree(text / "tokenizer", made, dirs_exist_ok=True)
            scratch(recipe, built, made, steps, rate)

        return make

    teacher = once(folder / "teacher", trained((192, 4, 6), 1000, 900, 2e-3))
    base = once(folder / f"base-{seed}", trained((64, 3, 4), seed, 250, 4e-3))
    recipe.convert.source, recipe.distill.teacher = str(base), str(teacher)
    recipe.data.held_out, recipe.data.eval_examples = str(text / "dev.txt"), 800

    def said(out: Path) -> None:
        with TemporaryDirectory() as temp:
            convert(recipe, Path(temp))
            teach(recipe, Path(temp), out)

    recipe.distill.teacher = str(once(folder / "said", said))


def lm_large(folder: Path, recipe: Recipe, data: Mapping[str, Path], seed: int) -> None:
    """A GPT-2 of 14 million parameters, whose Teacher answers as the training goes.

    Every 20th file is held out.
    """
    vocabulary, length = 8192, 256

    def texts(made: Path) -> None:
        from tokenizers import ByteLevelBPETokenizer

        files = sorted(data["linux-doc-6.12"].rglob("*.rst.gz"))
        files = [file for file in files if "translations" not in file.parts]
        kept: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
        for k, at in enumerate(np.random.default_rng(0).permutation(len(files))):
            text = gzip.decompress(files[at].read_bytes()).decode("utf-8", "replace")
            kept[{0: "dev", 20: "test"}.get(k % 40, "train")].append(text)
        for name, parts in kept.items():
            (made / f"{name}.txt").write_text("\n\n".join(parts), encoding="utf-8")
        bpe = ByteLevelBPETokenizer()
        bpe.train_from_iterator(
            kept["train"], vocabulary, special_tokens=[SPECIAL], show_progress=False
        )
        _tokenizer(bpe._tokenizer, made / "tokenizer")

    text = once(folder / "data", texts)
    recipe.data.train, recipe.data.held_out = str(text / "train.txt"), str(text / "dev.txt")
    recipe.data.sequence_length, recipe.data.eval_examples = length, 800

    def trained(
        sizes: tuple[int, int, int], at: int, steps: int, rate: float
    ) -> Callable[[Path], None]:
        def make(made: Path) -> None:
            torch.manual_seed(at)
            built = model(*sizes, vocabulary, length)
            shutil.copytree(text / "tokenizer", made, dirs_exist_ok=True)
            scratch(recipe, built, made, steps, rate)

        return make

    teacher = once(folder / "teacher", trained((640, 10, 10), 1000, 2000, 1e-3))
    base = once(folder / f"base-{seed}", trained((384, 6, 6), seed, 250, 2e-3))
    recipe.distill.teacher, recipe.convert.source = str(teacher), str(base)
