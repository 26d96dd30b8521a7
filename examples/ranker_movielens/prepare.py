"""MovieLens-100K -> one CSV of integer columns: user, item, age_group, gender, occupation, genre,
label (rating >= 4).

Usage: python prepare.py ml-100k ratings.csv

Reads GroupLens's own files (u.data, u.user, u.item) or the atomic files of RecBole (ml-100k.inter,
.user, .item). Rows are ordered by how far they lie in their user's history, so the last tenth,
which matta holds out, has the latest ratings of every user with ten or more.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

AGES = [18, 25, 35, 45, 50, 56]  # where the groups of MovieLens-1M begin
GENRES = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
CATEGORICAL = ["user", "item", "age_group", "gender", "occupation", "genre"]


def read_grouplens(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    ratings = pd.read_csv(
        folder / "u.data", sep="\t", names=["user", "item", "rating", "timestamp"]
    )
    users = pd.read_csv(
        folder / "u.user", sep="|", names=["user", "age", "gender", "occupation", "zip"]
    )
    columns = ["item", "title", "release", "video_release", "url", *GENRES]
    items = pd.read_csv(folder / "u.item", sep="|", names=columns, quoting=3, encoding="latin-1")
    items["genre"] = items[GENRES].idxmax(axis=1)  # the first of its genres
    return ratings, users, items


def read_recbole(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    def read(suffix: str) -> pd.DataFrame:
        table = pd.read_csv(next(folder.glob(f"*.{suffix}")), sep="\t", quoting=3, encoding="utf-8")
        # "user_id:token" -> "user_id"
        return table.rename(columns=lambda name: name.partition(":")[0])

    names = {"user_id": "user", "item_id": "item"}
    ratings, users, items = (
        read(suffix).rename(columns=names) for suffix in ("inter", "user", "item")
    )
    items["genre"] = items["class"].fillna("unknown").str.split().str[0]
    return ratings, users, items


def prepare(folder: Path) -> pd.DataFrame:
    if (folder / "u.data").exists():
        ratings, users, items = read_grouplens(folder)
    elif any(folder.glob("*.inter")):
        ratings, users, items = read_recbole(folder)
    else:
        raise SystemExit(f"There is neither u.data nor a .inter file in {str(folder)!r}.")
    users["age_group"] = pd.cut(users["age"], [-1, *(age - 1 for age in AGES), 200], labels=False)
    for table, columns in ((users, ["gender", "occupation"]), (items, ["genre"])):
        for column in columns:
            table[column] = table[column].rank(method="dense").astype(int) - 1
    users["user_code"] = users["user"].rank(method="dense").astype(int) - 1
    items["item_code"] = items["item"].rank(method="dense").astype(int) - 1
    rows = (
        ratings.merge(users, on="user")
        .merge(items, on="item")
        .sort_values(["user", "timestamp", "item"])
    )
    history = rows.groupby("user")["item"]
    rows["position"] = history.cumcount() / history.transform("size")
    rows = rows.sort_values(["position", "user"], kind="stable")
    rows["label"] = (rows["rating"] >= 4).astype(int)
    rows = rows.drop(columns=["user", "item"]).rename(
        columns={"user_code": "user", "item_code": "item"}
    )
    return rows[[*CATEGORICAL, "label"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "folder",
        type=Path,
        help="folder with u.data, u.user, u.item, or ml-100k.inter, .user, .item",
    )
    parser.add_argument("output", type=Path, help="CSV to write")
    arguments = parser.parse_args()
    rows = prepare(arguments.folder)
    rows.to_csv(arguments.output, index=False)
    print(f"Wrote {len(rows):,} rows to {arguments.output}; {rows['label'].mean():.1%} are liked.")
    print(
        "Values per column:",
        ", ".join(f"{column} {rows[column].max() + 1:,}" for column in CATEGORICAL),
    )


if __name__ == "__main__":
    main()
