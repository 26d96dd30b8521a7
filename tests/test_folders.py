"""Which files of a folder are data, and of which part each is."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_siblings import of_images, picture

from matta_cli.data import find
from matta_cli.data.folders import data_files, parts
from matta_cli.errors import MattaError
from matta_cli.settings.recipe import DataSettings


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


def test_what_is_no_data_is_known_by_its_name(tmp_path):
    none = ("LICENSE_MIT.txt", "readme.txt", "README.roboflow.txt", "changes.txt", "NOTICE.txt")
    for name in (*none, "security_matters.txt", "changes_of_heart.txt", "notice-1.txt"):
        (tmp_path / name).write_text(name)
    found = data_files(tmp_path, (".txt",))
    assert sorted(path.name for path in found.left_out) == sorted(none)


def test_which_of_two_parts_is_measured_on_is_said(tmp_path):
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{name},0\n")
        picture(tmp_path / "images" / name / "cat" / "0.png", 3)
        picture(tmp_path / "images" / name / "dog" / "0.png", 9)
    _, notes = parts(data_files(tmp_path, (".csv",)))
    told = "; measured on is validation (else data.held_out_split)."
    assert notes[-1].endswith(f"train 1, validation 1, test 1{told}")
    assert of_images(tmp_path / "images", 2).notes[0].endswith(told)
    (tmp_path / "val.csv").unlink()
    (tmp_path / "train.csv").unlink()
    with pytest.raises(
        MattaError, match=r"no split 'train'; it has test: name one of these in dat"
    ):
        found, _ = parts(data_files(tmp_path, (".csv",)))
        find.hub_parts(found, "x", DataSettings(), True, len)


def test_what_other_programs_leave_is_no_data(tmp_path):
    own = ("train.csv", "~$train.csv", "train.csv.old", "lost+found/a.csv", "part-1.csv")
    for name in own:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if name == "part-1.csv" else "text,label\na,0\n")
    found = data_files(tmp_path, (".csv",))
    assert [path.name for path in found.files] == ["train.csv"]
    assert [path.name for path in found.left_out] == ["part-1.csv"]  # as Spark writes none


def test_files_of_which_some_are_missing_are_said(tmp_path):
    for name in ("train-00000-of-00003", "train-00002-of-00003", "test-00000-of-00001"):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{name},0\n")
    [note] = data_files(tmp_path, (".csv",)).note()
    assert note.endswith("of the 3 files of 'train' only 2 are here.")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "3-of-5-stars.csv").write_text("text,label\na,0\n")
    assert not data_files(tmp_path / "other", (".csv",)).note()


def test_a_title_in_capitals_is_no_licence(tmp_path):
    for name in ("NOTICE TO QUIT", "LICENSE_MIT", "README first"):
        (tmp_path / f"{name}.txt").write_text(name)
    [own] = data_files(tmp_path, (".txt",)).files
    assert own.stem == "NOTICE TO QUIT"


def test_what_the_names_of_folders_say_of_rows_is_not_read_and_said(tmp_path):
    for k, name in enumerate(("split=train/year=2020/a.csv", "split=train/year=2021/a.csv")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(f"text,label\n{k},0\n")
    [note] = data_files(tmp_path, (".csv",)).note()
    assert "say of rows is not read (year=2020, year=2021): put it into a column" in note


def test_folders_of_images_that_are_called_alike_but_for_a_part(tmp_path):
    for part, count in (("mytrain", 4), ("mytest", 2)):
        for label in ("cat", "dog"):
            for k in range(count):
                picture(tmp_path / part / label / f"{k}.png", k)
    data = of_images(tmp_path, 2, ("cat", "dog"))
    assert len(data.train) == 8 and len(data.held_out[0]) == 4


@pytest.mark.parametrize("form", ["Fold{}/{}.txt", "{1}_fold{0}.csv", "a/{1}-fold-{0}.csv"])
def test_several_folds_are_not_mixed(tmp_path, form):
    names = [form.format(k, part) for k in (1, 2) for part in ("train", "test")]
    with pytest.raises(MattaError, match=r"has 2 folds, and what one tests on the others train on"):
        told(tmp_path / "both", *names)
    assert told(tmp_path / "one", *names[:2]) == {"train": names[:1], "test": names[1:2]}
    alone = told(tmp_path / "alone", *(f"fold{k}.csv" for k in (1, 2)))
    assert alone == {"train": ["fold1.csv", "fold2.csv"]}


def test_files_that_are_held_out_for_a_word_among_others_are_named(tmp_path):
    for name in ("Jane Austen", "Val Kilmer", "test"):
        (tmp_path / f"{name}.txt").write_text(name)
    *_, note = parts(data_files(tmp_path, (".txt",)))[1]
    assert "tell: train 1, validation 1 (Val Kilmer.txt), test 1; measured on" in note
