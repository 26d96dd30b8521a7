"""The study's rankers, each taught by boosted trees."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.quality.problem import Make, once
from benchmarks.quality.training import scratch
from matta_cli.settings.recipe import Recipe


def _ranker(fields: list[tuple[int, int]], dense: int, hidden: tuple[int, ...]) -> nn.Module:
    from matta_adapters.mlp_ranker import Ranker

    layers: list[dict[str, Any]] = []
    for width in hidden:
        layers += [{"layer": "Linear", "out": width}, {"layer": "ReLU"}]
    return Ranker(fields, dense, [*layers, {"layer": "Linear", "out": 1}])


def _write_scores(out: Path, scores: Mapping[str, np.ndarray]) -> None:
    for name, values in scores.items():
        own = {"row": torch.arange(len(values)), "score": torch.from_numpy(values).float()}
        save_file(own, str(out / f"{name}.safetensors"))


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
    """What a Teacher knows of a row besides its columns: how its user, film and so on were liked.

    known: the rows that are counted; own: they are the same rows, and each leaves itself out.
    """
    mean, columns = known["label"].mean(), []
    for keys in (["user"], ["item"], ["user", "genre"], ["item", "gender"], ["item", "age_group"]):
        sums = known.groupby(keys)["label"].agg(["sum", "count"]).reset_index()
        joined = rows[keys].merge(sums, on=keys, how="left").fillna(0)
        total, count = joined["sum"].to_numpy(), joined["count"].to_numpy()
        if own:
            total, count = total - rows["label"].to_numpy(), count - 1
        columns += [(total + 5 * mean) / (count + 5), np.log1p(count)]
    return np.stack(columns, 1)


_SIDE = ["age_group", "gender", "occupation", "genre"]


class _MovieLens:
    """The ranker of six columns on MovieLens-100K, and its Teacher."""

    def __init__(self, made: Path, recipe: Recipe) -> None:
        self.made, self.recipe = made, recipe
        self.fields = json.loads((made / "columns.json").read_text(encoding="utf-8"))

    def model(self, embedding: int, hidden: tuple[int, ...], at: int) -> nn.Module:
        torch.manual_seed(at)
        return _ranker([(count, embedding) for count in self.fields.values()], 0, hidden)

    def said(self, known: Any, asked: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What trees and wide rankers, trained on the rows ``known``, say of others.

        That is the mean of their logits.
        """
        from sklearn.ensemble import HistGradientBoostingClassifier

        trees = HistGradientBoostingClassifier(max_iter=200, learning_rate=0.06, random_state=0)
        trees.fit(np.hstack([_statistics(known, known, own=True), known[_SIDE]]), known["label"])
        rankers = [self.model(16, (64, 32), at) for at in (1000, 1001)]
        with TemporaryDirectory() as temp:
            own = copy.deepcopy(self.recipe)
            own.data.train = str(Path(temp) / "known.csv")
            known.to_csv(own.data.train, index=False)
            for model in rankers:
                scratch(own, model, Path(temp) / "model", 1200, 1.6e-2)
        scores = {}
        for name, rows in asked.items():
            columns = torch.from_numpy(rows[list(self.fields)].to_numpy(np.int64))
            with torch.no_grad():
                wide = [model.eval()(categorical=columns).numpy() for model in rankers]
            read = np.hstack([_statistics(rows, known, own=False), rows[_SIDE]])
            scores[name] = np.mean([trees.decision_function(read), *wide], axis=0)
        return scores

    def taught(self, out: Path, genres: int) -> None:
        """Write the Teacher's scores; of each row what is said by those that have not seen it.

        genres: that the Teacher has seen, the first so many.
        """
        import pandas as pd

        train, *others = (
            pd.read_csv(self.made / f"{name}.csv") for name in ("train", "dev", "test")
        )
        folds = np.random.default_rng(0).integers(5, size=len(train))
        scores = np.zeros(len(train))
        for fold in range(5):
            rest, own = train[folds != fold], train[folds == fold]
            scores[folds == fold] = self.said(rest[rest["genre"] < genres], {"": own})[""]
        asked = dict(zip(("dev", "test"), others, strict=True))
        said = self.said(train[train["genre"] < genres], asked)
        _write_scores(out, {"train": scores, **said})


def _cut(made: Path, teacher: Path, few: int, out: Path) -> None:
    """Rows of all times, at equal distances, and what the Teacher says of them."""
    import pandas as pd

    train = pd.read_csv(made / "train.csv")
    at = np.linspace(0, len(train) - 1, few).astype(int)
    train.iloc[at].to_csv(out / "train.csv", index=False)
    _write_scores(out, {"train": load_file(teacher)["score"].numpy()[at]})


ALL = 1 << 30


def movielens(by_time: bool, few: int = 0, genres: int = ALL) -> Make:
    """A ranker of six columns whose Teacher also knows what else was liked before.

    few: rows that the ranker learns from; 0: all. genres: that the Teacher has seen, the first
    so many.
    """

    def tables(source: Path, made: Path) -> None:
        rows = _script("ranker_movielens/prepare.py").prepare(source)
        if not by_time:
            rows = rows.sample(frac=1, random_state=0)
        tenth = len(rows) // 10
        cuts = {"train": rows[: -2 * tenth], "dev": rows[-2 * tenth : -tenth]}
        for name, part in {**cuts, "test": rows[-tenth:]}.items():
            part.to_csv(made / f"{name}.csv", index=False)
        columns = ["user", "item", "age_group", "gender", "occupation", "genre"]
        counts = json.dumps({c: int(rows[c].max()) + 1 for c in columns})
        (made / "columns.json").write_text(counts, encoding="utf-8")

    def make(folder: Path, recipe: Recipe, data: Mapping[str, Path], seed: int) -> None:
        made = once(folder / "data", lambda out: tables(data["ml-100k"], out))
        problem = _MovieLens(made, recipe)
        recipe.data.train, recipe.data.held_out = str(made / "train.csv"), str(made / "dev.csv")
        recipe.data.label, recipe.data.categorical = "label", list(problem.fields)
        own, base = "teacher" if genres == ALL else f"teacher-of-{genres}", f"base-{seed}"
        teacher = once(folder / own, lambda out: problem.taught(out, genres)) / "train.safetensors"
        if few:
            cut = once(folder / f"{own}-few-{few}", lambda out: _cut(made, teacher, few, out))
            recipe.data.train, base = str(cut / "train.csv"), f"{base}-few-{few}"
            recipe.distill.teacher = str(cut / teacher.name)
        else:
            recipe.distill.teacher = str(teacher)

        def build(out: Path) -> None:
            scratch(recipe, problem.model(8, (32, 16), seed), out, 300, 4e-3)

        recipe.convert.source = str(once(folder / base, build))

    return make


def _queries(source: Path, made: Path) -> None:
    """LightGBM's ranking example as tables; of its training queries those from 160 on are dev."""
    import pandas as pd
    from sklearn.datasets import load_svmlight_files

    files = [source / f"rank.{part}" for part in ("train", "test")]
    loaded = load_svmlight_files([str(path) for path in files])
    names = [f"f{i}" for i in range(loaded[0].shape[1])]
    for k, name in enumerate(("train", "test")):
        text = files[k].with_name(f"{files[k].name}.query").read_text()
        sizes = [int(line) for line in text.split()]
        table = pd.DataFrame(loaded[2 * k].toarray(), columns=names)
        table.insert(0, "grade", loaded[2 * k + 1].astype(int))
        table.insert(0, "query", np.repeat(np.arange(len(sizes)), sizes))
        if name == "train":
            table[table["query"] >= 160].to_parquet(made / "dev.parquet")
            table = table[table["query"] < 160]
        table.to_parquet(made / f"{name}.parquet")


def lambdarank(folder: Path, recipe: Recipe, data: Mapping[str, Path], seed: int) -> None:
    """A ranker of 300 dense features on 160 queries; its Teacher is boosted trees."""
    made = once(folder / "data", lambda out: _queries(data["lambdarank"], out))
    recipe.data.train, recipe.data.held_out = str(made / "train.parquet"), str(made / "dev.parquet")
    recipe.data.label, recipe.data.group, recipe.distill.ranking_loss = "grade", "query", "listwise"

    def features(name: str) -> Any:
        import pandas as pd

        return pd.read_parquet(made / f"{name}.parquet")

    def fitted(rows: Any) -> Any:
        from sklearn.ensemble import HistGradientBoostingRegressor

        trees = HistGradientBoostingRegressor(
            max_iter=150, learning_rate=0.05, max_leaf_nodes=8, random_state=0
        )
        return trees.fit(rows.iloc[:, 2:], rows["grade"])

    def taught(out: Path) -> None:
        train = features("train")
        folds = train["query"].to_numpy() % 5
        scores = np.zeros(len(train))
        for fold in range(5):
            own = train[folds == fold].iloc[:, 2:]
            scores[folds == fold] = fitted(train[folds != fold]).predict(own)
        said, trees = {"train": scores}, fitted(train)
        said |= {name: trees.predict(features(name).iloc[:, 2:]) for name in ("dev", "test")}
        _write_scores(out, {name: 2 * values for name, values in said.items()})

    def build(out: Path) -> None:
        torch.manual_seed(seed)
        model = _ranker([], features("train").shape[1] - 2, (32, 16))
        scratch(recipe, model, out, 60, 2e-3)

    recipe.distill.teacher = str(once(folder / "teacher", taught) / "train.safetensors")
    recipe.convert.source = str(once(folder / f"base-{seed}", build))
