"""The demo's input: data that installed packages carry, a small base and Teacher trained on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matta_cli.errors import MattaError, extra
from matta_cli.files.workspace import Workspace
from matta_cli.progress import Listener, Progress, quiet
from matta_cli.settings.recipe import Recipe

if TYPE_CHECKING:  # what is wrong is said before torch is imported
    from torch import Tensor, nn

    from matta_cli.tasks.task import Task

SEED = 0


@dataclass(frozen=True)
class Demo:
    """What a demo is of. make: its models and data. steps: of base, Teacher and distillation."""

    what: str
    make: Callable[[Path, Recipe], Models]
    steps: tuple[int, int, int]
    minutes: str


def named(name: str) -> Demo:
    """The demo of an adapter. Raises ``MattaError`` where there is none."""
    if name not in DEMOS:
        raise MattaError(f"There is no demo of {name!r}: choose from {', '.join(DEMOS)}.")
    return DEMOS[name]


@dataclass
class Models:
    """The base and the Teacher of a demo, not trained yet, and how they are trained."""

    base: nn.Module
    teacher: nn.Module
    lr: float
    batch_size: int


def prepare(name: str, out: Path, *, quick: bool = False, listen: Listener = quiet) -> Recipe:
    """Write data, base and Teacher to ``out/demo`` and return the recipe of the three steps.

    Raises ``MattaError`` for an adapter without a demo, or where the package that carries its data
    is missing.
    """
    demo = named(name)
    folder = out / "demo"
    if Workspace(out).ta.exists() and not folder.exists():
        what = "finished work that is no demo's"
        raise MattaError(f"{out} holds {what}: pass --out for another folder.")

    from matta_cli.models import plugins
    from matta_cli.tasks.task import task

    steps = (max(4, n // 10) if quick else n for n in demo.steps)
    base_steps, teacher_steps, run_steps = steps
    folder.mkdir(parents=True, exist_ok=True)
    recipe = Recipe()
    recipe.convert.adapter = name
    recipe.convert.source, recipe.distill.teacher = str(folder / "base"), str(folder / "teacher")
    recipe.distill.steps, recipe.distill.eval_every = run_steps, max(1, run_steps // 4)
    models = demo.make(folder, recipe)
    recipe.distill.batch_size = models.batch_size
    if quick:
        recipe.data.eval_examples, recipe.export.bootstrap = 100, 50
    adapter = plugins.adapter(name)
    own = task(adapter.task, recipe)
    for number, role, model, count in (
        (1, "base", models.base, base_steps),
        (2, "teacher", models.teacher, teacher_steps),
    ):
        what = "the base, which stands for your model" if role == "base" else "a larger Teacher"
        size = f"{sum(p.numel() for p in model.parameters()):,} parameters"
        listen(Progress(message=f"{number} of 5: train {what} ({size}, {count} steps)."))
        _train(model, role, own, folder / "base", count, models, listen)
        (folder / role).mkdir(exist_ok=True)
        adapter.save(model, folder / role)
    return recipe


def _train(
    model: nn.Module, role: str, task: Task, folder: Path, steps: int, how: Models, listen: Listener
) -> None:
    """Plain training on the ground truth: what the user did before meeting matta."""
    import torch

    from matta_cli.data import sampling

    data = task.data(folder, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=how.lr, weight_decay=0.01)
    warmup = max(0.1, 2.5 / steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, how.lr, total_steps=steps, pct_start=warmup
    )
    order: dict[int, Tensor] = {}
    model.train()
    for step in range(steps):
        started = time.perf_counter()
        sampling.seed_step(SEED, step)
        drawn = sampling.indices(SEED, step, how.batch_size, len(data.train), order)
        batch = data.train.batch(drawn)
        loss = task.loss(task.forward(model, batch), batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        per_second = task.items(batch) / (time.perf_counter() - started)
        listen(Progress(step + 1, steps, {role: {"loss": loss.item()}}, per_second, data.unit))
    model.eval()


def _gpt2(folder: Path, recipe: Recipe) -> Models:
    """GPT-2 on the Python language reference, which the standard library carries as text."""
    from pydoc_data.topics import topics

    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    text = "\n\n".join(topics[name].strip() for name in sorted(topics))
    (folder / "python-reference.txt").write_text(text, encoding="utf-8")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    paragraphs = text.split("\n\n")
    bpe.train_from_iterator(paragraphs[: int(0.9 * len(paragraphs))], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    for role in ("base", "teacher"):
        tokenizer.save_pretrained(str(folder / role))

    def model(width: int, layers: int, heads: int) -> nn.Module:
        torch.manual_seed(SEED)
        given: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        given |= {"n_positions": 128, "n_embd": width, "n_layer": layers, "n_head": heads}
        given |= {"vocab_size": bpe.get_vocab_size(), "bos_token_id": 0, "eos_token_id": 0}
        return GPT2LMHeadModel(GPT2Config(**given))

    recipe.data.train = str(folder / "python-reference.txt")
    recipe.distill.lr = 2e-3
    recipe.export.new_tokens = 16  # enough to tell what a token takes
    return Models(model(96, 3, 3), model(144, 3, 6), lr=3e-3, batch_size=16)


def _vit(folder: Path, recipe: Recipe) -> Models:
    """A ViT on scikit-learn's digits: 1,797 scans of handwritten digits, 8 x 8 pixels (UCI)."""
    import numpy as np
    import timm
    import torch

    digits = extra("sklearn.datasets", "The demo of images", "demo").load_digits()
    shuffled = np.random.default_rng(SEED).permutation(len(digits.target))
    images = (digits.images[shuffled] * (255 / 16)).round().astype("uint8")
    np.savez(folder / "digits.npz", images=images, labels=digits.target[shuffled])

    def model(width: int, depth: int, heads: int) -> Any:
        torch.manual_seed(SEED)
        return timm.create_model(
            "vit_tiny_patch16_224",
            img_size=8,
            patch_size=2,
            in_chans=1,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            num_classes=10,
            pretrained_cfg_overlay={"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)},
        )

    recipe.data.train = str(folder / "digits.npz")
    recipe.distill.lr = 2e-3
    return Models(model(48, 3, 3), model(96, 4, 6), lr=2e-3, batch_size=32)


def _ranker(folder: Path, recipe: Recipe) -> Models:
    """A ranker on the RAND Health Insurance Experiment: who will see a doctor, 20,190 years."""
    randhie = extra("statsmodels.datasets.randhie", "The demo of a ranker", "demo")
    import torch
    from matta_adapters.mlp_ranker import Ranker

    table = randhie.load_pandas().data.sample(frac=1, random_state=SEED)
    categorical = ["lncoins", "idp", "physlm", "disea", "hlthg", "hlthf", "hlthp"]
    dense = ["lpi", "fmde"]
    written = table[dense].sub(table[dense].mean()).div(table[dense].std())
    for column in categorical:  # few distinct values each: numbered, for embeddings
        written[column] = table[column].rank(method="dense").astype(int) - 1
    written["visited"] = (table["mdvis"] > 0).astype(int)
    written.to_csv(folder / "health-insurance.csv", index=False)
    fields = [int(written[column].max()) + 1 for column in categorical]

    def model(embedding: int, hidden: tuple[int, ...]) -> nn.Module:
        torch.manual_seed(SEED)
        layers: list[dict[str, Any]] = []
        for width in hidden:
            linear = {"layer": "Linear", "out": width}
            layers += [linear, {"layer": "BatchNorm1d"}, {"layer": "ReLU"}]
        layers.append({"layer": "Linear", "out": 1})
        return Ranker([(f, embedding) for f in fields], len(dense), layers)

    recipe.data.train = str(folder / "health-insurance.csv")
    recipe.data.label, recipe.data.categorical, recipe.data.dense = "visited", categorical, dense
    recipe.distill.lr = 3e-3
    recipe.data.eval_examples = 0  # rows are cheap: all
    return Models(model(8, (32, 16)), model(16, (128, 64)), lr=3e-3, batch_size=256)


DEMOS = {
    "gpt2": Demo("a GPT-2 on the Python language reference", _gpt2, (100, 150, 120), "two minutes"),
    "vit": Demo("a ViT on scans of handwritten digits", _vit, (250, 900, 600), "a minute"),
    "mlp_ranker": Demo(
        "a ranker on a table of visits to doctors", _ranker, (100, 600, 500), "half a minute"
    ),
}
