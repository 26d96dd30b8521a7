"""What the study trains on: real data, and for each task a base and a Teacher, made and cached."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.quality.images import vit
from benchmarks.quality.language import lm, lm_large
from benchmarks.quality.problem import Problem
from benchmarks.quality.rankers import lambdarank, movielens
from matta_cli.settings.recipe import Recipe


def encoder(folder: Path, recipe: Recipe, data: Mapping[str, Path], seed: int) -> None:
    """A pretrained sentence encoder: the TA nests inside it, and it is its own Teacher, frozen."""
    sts = data["stsbenchmark"]
    recipe.convert.source = recipe.distill.teacher = str(data["all-MiniLM-L6-v2"])
    recipe.data.train, recipe.data.held_out = str(sts / "sts-train.csv"), str(sts / "sts-dev.csv")
    recipe.data.eval_examples = 500  # drawn from all genres: to measure takes longer than to train


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem(
            "lm",
            "GPT-2 on WikiText-2",
            "an under-trained Student goes on from a base; related Teacher, a file by "
            "`matta teach`",
            lm,
            "8034c46b",
            ("wikitext-2",),
            "gpt2",
            250,
            16,
            (2e-3, 4e-3, 8e-3, 16e-3),
            ("perplexity", "next_token_accuracy", "last_word_accuracy"),
            quick_examples=200,
        ),
        Problem(
            "lm_large",
            "GPT-2 of 14 M parameters on the Linux kernel's documentation",
            "an under-trained Student goes on from a base; related Teacher of 55 M parameters, "
            "online; bf16 on a GPU",
            lm_large,
            "49fd6854",
            ("linux-doc-6.12",),
            "gpt2",
            600,
            32,
            (5e-4, 1e-3, 2e-3, 4e-3),
            ("perplexity", "next_token_accuracy"),
            distill={"device": "cuda"},
            convert={"order": "none"},
            optimizers=(),
            quick=False,
            only=("plain", "matta", "plain+compute"),
        ),
        Problem(
            "vit",
            "ViT on Fashion-MNIST",
            "little domain data; unrelated Teacher (a convolutional network), a file of logits",
            vit,
            "a46a6df4",
            ("fashion-mnist",),
            "vit",
            400,
            64,
            (2e-3, 4e-3, 8e-3),
            ("top1",),
        ),
        Problem(
            "vit_long",
            "ViT on Fashion-MNIST, at length",
            "little domain data, read 16 times; unrelated Teacher (a convolutional network), a "
            "file of logits",
            vit,
            "a46a6df4",
            ("fashion-mnist",),
            "vit",
            1000,
            64,
            (2e-3, 4e-3),
            ("top1",),
            shares="vit",
            optimizers=(),
            quick=False,
            only=("plain", "matta"),
        ),
        Problem(
            "ranker",
            "Ranker on MovieLens-100K, split at random",
            "unrelated Teacher (boosted trees that read more features, and wide rankers), a file "
            "of scores",
            movielens(False),
            "d9bdc317",
            ("ml-100k",),
            "mlp_ranker",
            1200,
            256,
            (16e-3, 32e-3, 64e-3),
            ("auc_loss",),
            optimizers=("shampoo",),
            quick=False,
        ),
        Problem(
            "ranker_time",
            "Ranker on MovieLens-100K, split by time",
            "each user's latest ratings are held out; "
            "unrelated Teacher (boosted trees that read more features, and wide rankers), a file "
            "of scores",
            movielens(True),
            "d9bdc317",
            ("ml-100k",),
            "mlp_ranker",
            1200,
            256,
            (16e-3, 32e-3, 64e-3),
            ("auc_loss",),
            optimizers=("shampoo",),
        ),
        Problem(
            "lambdarank",
            "Ranker on 160 queries",
            "little domain data; unrelated Teacher (boosted trees), a file of scores",
            lambdarank,
            "d8e900e5",
            ("lambdarank",),
            "mlp_ranker",
            150,
            16,
            (5e-4, 1e-3, 2e-3, 4e-3),
            ("ndcg@10",),
            tuning_seeds=5,
        ),
        Problem(
            "encoder",
            "all-MiniLM-L6-v2 on 500 pairs of the STS benchmark",
            "a pretrained model, compressed; the model itself is the Teacher, so at width 1 there "
            "is nothing but drift to learn; all seeds start from it, and differ in the order of "
            "the data",
            encoder,
            "fbc076a0",
            ("all-MiniLM-L6-v2", "stsbenchmark"),
            "bert",
            30,
            16,
            (6.25e-5, 1.25e-4, 2.5e-4, 5e-4),
            ("spearman",),
            distill={"dropout": False},
            convert={"expand": 1.0},
            widths=(0.25, 0.5, 0.75, 1.0),
            size=0.5,
            bases=False,
            labelled=False,
            optimizers=(),
            quick_examples=100,
            task="sentence_embedding",
            only=(
                "plain",
                "matta",
                "plain+compute",
                "plain@0.25",
                "plain@0.75",
                "plain@1",
                "torch-pruning@0.5",
                "torch-pruning@0.5+compute",
            ),
        ),
    )
}
