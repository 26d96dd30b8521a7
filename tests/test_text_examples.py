"""The examples of encoders with heads: their scripts read what packages hold, and each runs."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from tests.test_examples import EXAMPLES, run_example
from tests.text_models import WORDS, bert


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as made:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return path


def script(name: str, *arguments: str | Path) -> str:
    run = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout


def reviews(tmp_path: Path, count: int = 120) -> Path:
    """What ``prepare.py`` makes of an archive in an archive, as vaderSentiment's is."""
    ratings = [(k % 3 - 1) * 1.5 for k in range(count)]
    lines = [f"{k}\t{r}\t{WORDS[k % 16]} film, {k}" for k, r in enumerate(ratings)]
    table = {"a/movieReviewSnippets_GroundTruth.txt": "\n".join(lines).encode()}
    inner = archive(tmp_path / "inner.tar.gz", table).read_bytes()
    outer = archive(tmp_path / "v.tar.gz", {"v/more/hutto_ICWSM_2014.tar.gz": inner})
    script("text_classifier/prepare.py", outer, tmp_path / "data")
    return tmp_path / "data"


def addresses(tmp_path: Path, count: int = 120) -> Path:
    row = (
        "<AddressString><Number>{0}</Number> <Street>{1} {1}</Street> <Zip>x</Zip></AddressString>"
    )
    rows = "".join(row.format(k, WORDS[k % 16]) for k in range(count))
    xml = f"<AddressCollection>{rows}</AddressCollection>".encode()
    source = archive(tmp_path / "u.tar.gz", {"u/training/labeled.xml": xml, "u/other.xml": b"<a/>"})
    script("tagger/prepare.py", source, tmp_path / "data")
    return tmp_path / "data"


def test_reviews_are_labelled_by_their_ratings(tmp_path: Path) -> None:
    parts = {}
    for name in ("train", "test"):
        with (reviews(tmp_path) / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            parts[name] = list(csv.DictReader(file))
    every = [row for rows in parts.values() for row in rows]
    assert len(every) == 120 and 4 <= len(parts["test"]) <= 24
    label = {row["text"].rpartition(" ")[2]: row["label"] for row in every}
    assert (label["0"], label["1"], label["2"]) == ("negative", "neutral", "positive")


def test_addresses_become_spans(tmp_path: Path) -> None:
    text = (addresses(tmp_path) / "train.conll").read_text()
    first = text.split("\n\n")[0].splitlines()
    tags = [line.split()[1] for line in first]
    assert tags == ["B-Number", "B-Street", "I-Street", "B-Zip"]
    held_out = (tmp_path / "data" / "test.conll").read_text()
    assert not set(held_out.split("\n\n")) & set(text.split("\n\n"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_classifier", "tagger"])
def test_it_runs(name: str, tmp_path: Path) -> None:
    tagger = name == "tagger"
    if tagger:
        pytest.importorskip("seqeval")
    data = addresses(tmp_path) if tagger else reviews(tmp_path)
    train = data / ("train.conll" if tagger else "train.csv")
    trunk = bert(tmp_path / "encoder", num_hidden_layers=4, max_position_embeddings=128).bert
    trunk.save_pretrained(tmp_path / "encoder")
    script(f"{name}/finetune.py", tmp_path / "encoder", train, tmp_path / "base", "--steps", "2")
    shutil.copytree(tmp_path / "base", tmp_path / "teacher")
    held_out = str(train).replace("train", "test")
    report = run_example(name, tmp_path, train=str(train), held_out=held_out)
    kind = AutoModelForTokenClassification if tagger else AutoModelForSequenceClassification
    student = kind.from_pretrained(tmp_path / "matta-out" / "students" / "width-0.25")
    assert student.config.num_hidden_layers == 2 and student.config.intermediate_size == 10
    assert report["metrics"][0]["name"] == ("f1" if tagger else "accuracy")
    assert all("onnx" in m["programs"] for m in report["models"] if m["role"] == "student")
