"""Data files as people have them: what is read is what is there, and what is not is said.

Everything goes through a task's ``data``, as a run does.
"""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from sample_text import byte_tokenizer, prose
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizerFast, GPT2Config, GPT2LMHeadModel

from matta_cli.data import tables
from matta_cli.errors import MattaError
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.causal_lm.task import CausalLM
from matta_cli.tasks.ranking.task import Ranking
from matta_cli.tasks.sentence_embedding.task import SentenceEmbedding

DOCUMENTS = [prose(3, seed).strip() for seed in range(40)]


def recipe(**data: Any) -> Recipe:
    found = Recipe()
    distill = {"ranking_loss": data.pop("ranking_loss")} if "ranking_loss" in data else {}
    found.update({"data": data, "distill": distill}, "test")
    return found


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer([prose(100, 1)], 300).save_pretrained(folder)
    return folder


def gpt2() -> nn.Module:
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32, "vocab_size": 300}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()


def of_text(tokenizer: Path, train: Path, **data: Any) -> Any:
    return CausalLM(recipe(train=str(train), sequence_length=16, **data)).data(tokenizer, gpt2())


def tokens(data: Any) -> list[int]:
    return [*data.train.tokens.tolist(), *data.held_out[0].whole.tokens.tolist()]


def said(data: Any) -> str:
    return " ".join(data.notes)


@pytest.fixture(scope="module")
def expected(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    path = tmp_path_factory.mktemp("plain") / "plain.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return tokens(of_text(tokenizer, path))


def csv_of(texts: list[Any]) -> str:
    cells = ['"' + str(text).replace('"', '""') + '"' for text in texts]
    return "id,text\n" + "".join(f"{k},{cell}\n" for k, cell in enumerate(cells))


LINES = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS)
FORMS = {
    "lines.jsonl": LINES,
    "upper.JSONL": LINES,
    "lines.json": LINES,
    "crlf.jsonl": LINES.replace("\n", "\r\n"),
    "appended.jsonl": "".join("\ufeff" + line for line in LINES.splitlines(True)),
    "array.json": json.dumps([{"text": text} for text in DOCUMENTS], indent=1),
    "columns.json": json.dumps({"text": DOCUMENTS, "n": [*range(len(DOCUMENTS))]}),
    "pandas.json": json.dumps({"text": {str(k): text for k, text in enumerate(DOCUMENTS)}}),
    "table.csv": csv_of(DOCUMENTS),
    "table.tsv": csv_of(DOCUMENTS).replace(",", "\t", 1).replace('"', "").replace(",", "\t"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", [*FORMS, "text.txt"])
def test_text_is_the_same_in_every_form(
    tokenizer: Path, tmp_path: Path, expected: list[int], name: str, encoding: str
) -> None:
    documents = [text.replace("\n", " ").replace(",", ";") for text in DOCUMENTS]
    content = FORMS.get(name, "\n".join(DOCUMENTS))
    if name == "table.tsv":  # no line's end nor tab in a cell
        content = "id\ttext\n" + "".join(f"{k}\t{text}\n" for k, text in enumerate(documents))
    (tmp_path / name).write_text(content, encoding=encoding, newline="")
    found = tokens(of_text(tokenizer, tmp_path / name))
    if name in ("table.tsv", "text.txt"):
        plain = tmp_path / "plain.jsonl"
        texts = documents if name == "table.tsv" else ["\n".join(DOCUMENTS)]
        plain.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        assert found == tokens(of_text(tokenizer, plain))
    else:
        assert found == expected


def test_what_has_no_text_is_counted(tokenizer: Path, tmp_path: Path, expected: list[int]) -> None:
    texts = [t for text in DOCUMENTS for t in (text, None, " ")]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "holes.jsonl").write_text(lines)
    pa.parquet.write_table(pa.table({"text": texts}), tmp_path / "holes.parquet")
    for name in ("holes.jsonl", "holes.parquet"):
        data = of_text(tokenizer, tmp_path / name)
        assert len(tokens(data)) == len(expected)
        assert "120 rows read of 120, 80 of them without text and left out" in said(data)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "chat.jsonl",
            '{"text": "x"}\n{"text": [{"role": "user"}]}\n',
            "a list in line 2.*chat by",
        ),
        (
            "n.jsonl",
            '{"text": "x"}\n{"text": 7}\n',
            r"'text' of .*n.jsonl' holds a number in line 2",
        ),
        ("b.json", '[{"text": "x"}, {"text": true}]', "holds true or false in row 2"),
        ("s.jsonl", '{"text": "\\ud800 x"}\n', "half of a character in line 1"),
        ("list.json", '["a", "b"]', "row 1 is no object"),
        ("squad.json", '{"version": 1, "data": [{"text": "x"}]}', "neither a list of objects"),
        ("nul.txt", "one\ntwo\0\n", "NUL byte in line 2"),
        ("nul.jsonl", '{"text": "a"}\n{"text": "\0"}\n', "NUL byte in line 2"),
        ("nul.csv", "text\na\nb\0\n", "NUL byte in line 3"),
        ("latin.csv", b"text\ncaf\xe9\n", "not a text file in UTF-8"),
        ("rows.log", "some text\n", "rows.log' is of no kind that is known as text"),
        ("text.txt.gz", "some text\n", "is packed: unpack it"),
        ("ragged.csv", "a,text\n1,x\n2\n3,y,z\n", "2 rows have another .* in line 3, 1: mend"),
        ("ragged.tsv", "a\ttext\n1\tx\ty\n", "1 rows have another .* in line 2, 3: mend"),
        ("open.csv", 'a,text\n1,x\n2,"y\n3,z\n', "the row that begins in line 3 is not valid CSV"),
        ("merged.csv", 'a,text\n1,"x\n2,"y\n3,z\n', "begins in line 2 is not valid CSV"),
        ("semicolons.csv", "a;text\n1;x\n", "cells seem to be parted by ';'"),
        ("twice.csv", "text,text\n1,x\n", "several columns 'text'"),
        ("empty.csv", "", "empty.csv' holds no rows"),
        ("long.json", '[{"text": ' + "1" * 5000 + "}]", "number too long"),
    ],
)
def test_what_is_no_text_is_refused(
    tokenizer: Path, tmp_path: Path, name: str, content: str | bytes, sentence: str
) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(MattaError, match=sentence):
        of_text(tokenizer, tmp_path / name)


@pytest.mark.parametrize("values", [[b"x"], [["x"]], [{"a": "x"}], [1], [1.5]])
def test_columns_of_parquet_that_hold_no_text_are_refused(
    tokenizer: Path, tmp_path: Path, values: list[Any]
) -> None:
    pa.parquet.write_table(pa.table({"text": values * 9}), tmp_path / "t.parquet")
    with pytest.raises(MattaError, match=r"Column 'text' of .*t.parquet' holds .* in row 1"):
        of_text(tokenizer, tmp_path / "t.parquet")


def clone(folder: Path, **parts: list[str]) -> Path:
    """A folder as a clone of a hub dataset: Parquet by part, a card, what programs leave behind."""
    (folder / "data").mkdir(parents=True)
    for name, texts in parts.items():
        file = folder / "data" / f"{name}-00000-of-00001.parquet"
        pa.parquet.write_table(pa.table({"text": texts}), file)
    (folder / "README.md").write_text("# A card of the data\n" * 20)
    (folder / "LICENSE.txt").write_text("Permission is hereby granted\n" * 20)
    (folder / "dataset_infos.json").write_text('{"default": {}}')
    for hidden in (".git", ".cache", ".ipynb_checkpoints", "__MACOSX"):
        (folder / hidden).mkdir()
        (folder / hidden / "copy.txt").write_text("hidden away\n" * 50)
    (folder / "._train.txt").write_bytes(b"\0\5\x16\7")
    return folder


def test_a_folder_has_parts_and_only_data_is_read(tokenizer: Path, tmp_path: Path) -> None:
    kinds = {"train": DOCUMENTS[:24], "validation": DOCUMENTS[24:30], "test": DOCUMENTS[30:]}
    folder = clone(tmp_path / "ds", **kinds)
    data = of_text(tokenizer, folder)
    for part, own in (("train", data.train.tokens), ("validation", data.held_out[0].whole.tokens)):
        path = tmp_path / f"{part}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in kinds[part]))
        alone = of_text(tokenizer, path, held_out=str(path))
        assert own.tolist() == alone.train.tokens.tolist()
    assert "README.md" in said(data) and "train 1, validation 1, test 1" in said(data)
    test = of_text(tokenizer, folder, held_out_split="test")
    assert test.held_out[0].whole.tokens.tolist() != data.held_out[0].whole.tokens.tolist()


@pytest.mark.parametrize("word", ["val", "dev", "valid", "eval", "holdout"])
def test_parts_are_known_by_many_words(tokenizer: Path, tmp_path: Path, word: str) -> None:
    for name, texts in (("a", DOCUMENTS[:30]), (f"wiki.{word}", DOCUMENTS[30:])):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    (tmp_path / "contest.txt").write_text("\n".join(DOCUMENTS[:3]))  # no part's word
    data = of_text(tokenizer, tmp_path)
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"text": "\n".join(DOCUMENTS[30:])}))
    alone = of_text(tokenizer, path, held_out=str(path))
    assert data.held_out[0].whole.tokens.tolist() == alone.train.tokens.tolist()


def test_what_is_held_out_alone_is_not_trained_on(tokenizer: Path, tmp_path: Path) -> None:
    for name in ("valid", "test"):
        (tmp_path / f"{name}.txt").write_text("\n".join(DOCUMENTS))
    with pytest.raises(MattaError, match="has no split 'train'; it has validation, test"):
        of_text(tokenizer, tmp_path)


def test_held_out_lines_that_are_trained_on_are_counted(tokenizer: Path, tmp_path: Path) -> None:
    train, held_out = tmp_path / "a.txt", tmp_path / "b.txt"
    train.write_text("\n".join(f"line number {k} of the first text" for k in range(60)))
    held_out.write_text("\n".join(f"line number {k} of the first text" for k in range(50, 80)))
    data = of_text(tokenizer, train, held_out=str(held_out))
    assert "10 held-out lines also stand in the text to train on, of 30" in said(data)
    held_out.write_text("\n".join(f"line number {k} of another text" for k in range(60)))
    assert "held-out lines" not in said(of_text(tokenizer, train, held_out=str(held_out)))


def test_a_source_is_named_once(tokenizer: Path, tmp_path: Path) -> None:
    train, held_out = tmp_path / "a.txt", tmp_path / "b.txt"
    for path in (train, held_out):
        path.write_text("\n".join(DOCUMENTS))
    told = of_text(tokenizer, train).description
    assert told.startswith(f"{train}: ") and told.count(str(train)) == 1 and "; held out " in told
    told = of_text(tokenizer, train, held_out=str(held_out)).description
    assert told.startswith(f"{train}: ") and f"; {held_out}: held out " in told


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("bert")
    words = sorted({*" ".join(DOCUMENTS).split(), *"0123456789", "##0", '"'})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32,
    )  # fmt: off
    return folder, BertModel(config, add_pooling_layer=False).eval()


def of_sentences(bert: tuple[Path, nn.Module], train: Path, **data: Any) -> Any:
    return SentenceEmbedding(recipe(train=str(train), **data)).data(*bert)


def test_a_quotation_mark_ends_no_row_of_tabs(bert: tuple[Path, nn.Module], tmp_path: Path) -> None:
    texts = [f"{'' if k % 5 else chr(34)}{prose(1, k).strip()} {k}" for k in range(100)]
    rows = "".join(f"{k}\t{text}\n" for k, text in enumerate(texts))
    (tmp_path / "one.tsv").write_text("id\ttext\n" + rows)
    data = of_sentences(bert, tmp_path / "one.tsv")
    assert len(data.train) == 90 and "100 rows read of 101 lines" in said(data)
    pairs = "".join(f"{a}\t{b}\t{k}\n" for k, (a, b) in enumerate(pairwise(texts)))
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\tscore\n" + pairs)
    measured = of_sentences(bert, tmp_path / "one.tsv", held_out=str(tmp_path / "pairs.tsv"))
    assert len(measured.held_out[0]) == 99
    assert "100 held-out sentences also stand in the data to train on, of 100" in said(measured)


def test_pairs_with_holes(bert: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"

    def pairs(**changes: Any) -> Path:
        texts = [prose(1, k).strip() for k in range(31)]
        rows = [
            {"sentence1": a, "sentence2": b, "score": k} for k, (a, b) in enumerate(pairwise(texts))
        ]
        rows[4] |= changes
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    data = of_sentences(bert, pairs(sentence2=None), held_out=str(path))
    assert len(data.held_out[0]) == 29 and "1 rows without one of both texts" in said(data)
    for changes, sentence in (
        ({"score": None}, "1 of the scores of .* missing or not finite, the first that of pair 5"),
        ({"score": "high"}, r"'score' of .* does not hold numbers: line 5 has 'high'"),
        ({"sentence1": ["x"]}, "holds a list in line 5"),
    ):
        with pytest.raises(MattaError, match=sentence):
            of_sentences(bert, pairs(**changes), held_out=str(path))


class Scorer(nn.Module):
    """A ranker with the attributes that the task reads."""

    def __init__(self, fields: list[tuple[int, int]], dense: int) -> None:
        super().__init__()
        self.fields, self.dense = fields, dense


def of_rows(train: Path, model: nn.Module | None = None, **data: Any) -> Any:
    return Ranking(recipe(train=str(train), **data)).data(train.parent, model or Scorer([], 2))


def table(**changes: list[Any]) -> dict[str, list[Any]]:
    values: dict[str, list[Any]] = {"label": [k % 2 for k in range(60)]}
    values |= {"a": [k / 7 for k in range(60)], "b": [*range(60)]}
    return values | {"user": [k // 6 for k in range(60)]} | changes


def written(path: Path, values: dict[str, list[Any]], **options: Any) -> Path:
    import pandas as pd

    frame = pd.DataFrame({name: pd.Series(own, dtype=object) for name, own in values.items()})
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.table(values), path)
    else:
        frame.to_csv(path, index=False, **options)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_tables_are_read_whole(tmp_path: Path, encoding: str, newline: str) -> None:
    titles = [f'a "title"{newline}of, two lines {k}' * (400 if k == 30 else 1) for k in range(60)]
    path = written(
        tmp_path / "t.csv", table(title=titles), encoding=encoding, lineterminator=newline
    )
    data = of_rows(path, group="user")
    batch = data.train.batch(range(len(data.train)))
    assert batch["dense"][:, 1].tolist() == [*range(54)] and len(data.train) == 9
    assert "60 rows read of" in said(data)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("block", [1 << 22, 7])
def test_lines_are_counted_by_all_of_their_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newline: str, block: int
) -> None:
    monkeypatch.setattr(tables, "_SCAN", block)
    path = written(tmp_path / "t.csv", table(), lineterminator=newline)
    assert "60 rows read of 61 lines" in said(of_rows(path, group="user"))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"user": [None, *range(59)]}, "'user'.* misses values, 1 in all, the first in row 1"),
        ({"name": ["x", None, None, *"y" * 57]}, "'name'.* 2 in all, the first in row 2"),
        (
            {"b": [0, (1 << 24) + 1, *range(58)]},
            "float32 would round, 1 in all, the first in row 2",
        ),
        ({"a": [1e300, *[1.0] * 59]}, "too large for float32, 1 in all, the first in row 1"),
        ({"a": [1.0, float("inf"), *[1.0] * 58]}, "not finite, 1 in all, the first in row 2"),
    ],
)
def test_holes_and_losses_in_tables_are_refused(
    tmp_path: Path, suffix: str, changes: dict[str, list[Any]], sentence: str
) -> None:
    path = written(tmp_path / f"t{suffix}", {"name": [*map(str, range(60))], **table(**changes)})
    with pytest.raises(MattaError, match=sentence):
        of_rows(path, group="user", id="name", dense=["a", "b"])


def test_names_stay_what_they_are(tmp_path: Path) -> None:
    """Not numbers that float64 merges, nor numbers without their leading zeros."""
    large = [(1 << 53) + k // 6 for k in range(60)]
    ids = [f"00{k}" for k in range(60)]
    for suffix in (".csv", ".parquet"):
        path = written(tmp_path / f"t{suffix}", table(user=large, name=ids))
        data = of_rows(path, group="user", id="name", dense=["a", "b"])
        assert len(data.train) == 9 and data.train.keys([0], ids=True).tolist() == ids[:6]
    merged = table(user=[float(value) for value in large])
    with pytest.raises(MattaError, match=r"'user'.*rounded to decimals, 60 in all"):
        of_rows(written(tmp_path / "f.parquet", merged), group="user")
    whole = table(user=[float(k // 6) for k in range(60)])
    assert len(of_rows(written(tmp_path / "w.parquet", whole), group="user").train) == 9


@pytest.mark.parametrize("value", [1 << 40, 10**19, -1, 1e300])
def test_categories_beyond_the_table_are_refused(tmp_path: Path, value: float) -> None:
    kind = pa.uint64() if value == 10**19 else None
    values: dict[str, Any] = dict(table())
    values["b"] = pa.array([value, *[0] * 59], type=kind)
    pa.parquet.write_table(pa.table(values), tmp_path / "t.parquet")
    with pytest.raises(MattaError, match=f"has the value {value:.0f}.*, but the model knows 9"):
        of_rows(tmp_path / "t.parquet", Scorer([(9, 2)], 1), categorical=["b"], dense=["a"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("label,a,b\n1,2,3\n0,1\n", "1 rows have another number of cells.* in line 3, 2"),
        ("label;a;b\n1;2;3\n", "cells seem to be parted by ';'"),
        ('label,a,b,t\n1,2,3,"x\n0,2,3,"y\n', "begins in line 2 is not valid CSV"),
        ("label,a,b\n1,2,3\n0,1\0,2\n", "NUL byte in line 3"),
        ("label,a,b\n1,2,2020-01-01\n0,1,2020-01-02\n", "gives 1 .*'b' holds no numbers"),
    ],
)
def test_tables_that_are_not_what_they_seem(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(MattaError, match=sentence):
        of_rows(tmp_path / "t.csv")


def libsvm(first: int = 1, rows: int = 12, query: bool = False) -> str:
    lines = []
    for k in range(rows):
        qid = f"qid:{k // 3} " if query else ""
        lines.append(f"{k % 2} {qid}{first}:{k + 1} {first + 1}:0.5")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("suffix", [".query", ".group"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_sizes_of_queries_beside_libsvm(tmp_path: Path, suffix: str, mark: str) -> None:
    path = tmp_path / "rank.train"
    path.write_text(mark + libsvm())
    path.with_name("rank.train" + suffix).write_text(mark + "3\n4\n5\n")
    data = of_rows(path, ranking_loss="pairwise")
    assert len(data.train) == 2 and f"rank.train{suffix}' says which rows" in said(data)
    assert "columns are taken to count from 1, as none has the number 0" in said(data)
    path.write_text(libsvm(0))
    assert "columns are taken to count from 0, as one has" in said(of_rows(path))
    for sizes, sentence in (("3\n4\n", "counts 7 rows, but"), ("3\nx\n9\n", "line 2 does not")):
        path.with_name("rank.train" + suffix).write_text(sizes)
        with pytest.raises(MattaError, match=sentence):
            of_rows(path)
    path.with_name("rank.train" + suffix).write_text("3\n4\n5\n")
    other = {".query": ".group", ".group": ".query"}[suffix]
    path.with_name("rank.train" + other).write_text("6\n6\n")
    with pytest.raises(MattaError, match="differ: keep one"):
        of_rows(path)


def test_queries_that_are_said_twice_in_libsvm(tmp_path: Path) -> None:
    path = tmp_path / "rank.train"
    path.write_text(libsvm(query=True))
    path.with_name("rank.train.query").write_text("3\n3\n3\n3\n")
    assert len(of_rows(path, ranking_loss="pairwise").train) == 3
    path.with_name("rank.train.query").write_text("1\n11\n")
    with pytest.raises(MattaError, match=r"rank.train': its qid and '.*\.query' differ: keep one"):
        of_rows(path)


def test_a_damaged_archive_of_libsvm(tmp_path: Path) -> None:
    packed = gzip.compress(libsvm(rows=400).encode())
    (tmp_path / "rank.gz").write_bytes(packed[:200] + b"\xff\xfe\x80" + packed[200:])
    with pytest.raises(MattaError, match=r"rank.gz': not LibSVM"):
        of_rows(tmp_path / "rank.gz")


def test_labels_beyond_float32_in_libsvm(tmp_path: Path) -> None:
    (tmp_path / "rank.train").write_text(libsvm().replace("0 1:1 ", "1e39 1:1 ", 1))
    with pytest.raises(MattaError, match="labels that are missing or not finite, in 1 rows"):
        of_rows(tmp_path / "rank.train")


def test_queries_with_holes_in_libsvm(tmp_path: Path) -> None:
    lines = libsvm(query=True).splitlines()
    lines[4] = lines[4].replace("qid:1 ", "")
    (tmp_path / "rank.train").write_text("# a comment\n" + "\n".join(lines))
    with pytest.raises(MattaError, match="1 rows without a qid, the first in line 6"):
        of_rows(tmp_path / "rank.train")
    (tmp_path / "rank.train").write_text(libsvm().replace("0 1:1 ", "nan 1:1 ", 1))
    with pytest.raises(MattaError, match="labels that are missing or not finite, in 1 rows"):
        of_rows(tmp_path / "rank.train")


def test_folders_of_tables(tmp_path: Path) -> None:
    for folder, suffix in (("tables", ".csv"), ("svm", ".txt")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "README.md").write_text("# Rows\n")
        for part, rows in (("train", 12), ("vali", 9), ("test", 6)):
            path = tmp_path / folder / f"{part}{suffix}"
            if suffix == ".csv":
                written(path, {name: own[:rows] for name, own in table().items()})
            else:
                path.write_text(libsvm(rows=rows, query=True))
        data = of_rows(tmp_path / folder, dense=["a", "b"], group="user")
        assert len(data.train.label) == 12 and len(data.held_out[0].whole.label) == 9
        assert "9 held-out rows also stand in the data to train on, of 9" in said(data)


def test_shards_are_one_table(tmp_path: Path) -> None:
    whole = table()
    (tmp_path / "rows").mkdir()
    for k in range(3):
        part = {name: own[20 * k : 20 * k + 20] for name, own in whole.items()}
        written(tmp_path / "rows" / f"part-{k}.parquet", part)
    data = of_rows(tmp_path / "rows", dense=["a", "b"], group="user")
    alone = of_rows(written(tmp_path / "t.csv", whole), dense=["a", "b"], group="user")
    assert np.array_equal(data.train.dense, alone.train.dense)
    assert np.array_equal(data.train.group, alone.train.group)


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_columns_without_a_name_may_be_several(
    tokenizer: Path, tmp_path: Path, ending: str
) -> None:
    """As spreadsheets write them."""
    mark = {"csv": ",", "tsv": "\t"}[ending]
    rows = [["", "text", "", ""], *(["", f"line {k}", "", ""] for k in range(9))]
    (tmp_path / f"a.{ending}").write_text("".join(mark.join(row) + "\n" for row in rows))
    of_text(tokenizer, tmp_path / f"a.{ending}")
