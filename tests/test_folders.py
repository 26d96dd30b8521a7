"""Which files of a folder are data, and of which part each is."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_siblings import of_images, picture

from matta_cli.data.folders import data_files, parts


def told(folder: Path, *names: str) -> dict[str, list[str]]:
    """The files by part, of a folder that has these; each holds something else."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text,label\n{name},0\n")
    found, _ = parts(data_files(folder, (".csv", ".txt")))
    return {part: [p.relative_to(folder).as_posix() for p in own] for part, own in found.items()}


@pytest.mark.parametrize(
    "train, other",
    [
        ("mytrain.csv", "mytest.csv"),
        ("traindf.csv", "testdf.csv"),
        ("data_tr.csv", "data_te.csv"),
        ("trn.csv", "tst.csv"),
        ("data_tr_0.csv", "data_ts_0.csv"),
        ("mytrain/a.csv", "mytest/b.csv"),
    ],
)
def test_files_that_are_called_alike_but_for_a_part(tmp_path, train, other):
    assert told(tmp_path, train, other) == {"train": [train], "test": [other]}


@pytest.mark.parametrize(
    "names",
    [
        ("data_de.csv", "data_te.csv", "data_tr.csv"),  # languages
        ("constraint.csv", "contest.csv"),
        ("latest.csv", "other.csv"),
    ],
)
def test_names_that_tell_no_part(tmp_path, names):
    assert told(tmp_path, *names) == {"train": [*names]}


def test_folders_of_images_that_are_called_alike_but_for_a_part(tmp_path):
    for part, count in (("mytrain", 4), ("mytest", 2)):
        for label in ("cat", "dog"):
            for k in range(count):
                picture(tmp_path / part / label / f"{k}.png", k)
    data = of_images(tmp_path, 2, ("cat", "dog"))
    assert len(data.train) == 8 and len(data.held_out[0]) == 4
