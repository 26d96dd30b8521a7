"""Whatever is wrong with a file, a command ends well or with one sentence."""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

import fuzzed
import pytest
from fuzz import attempt
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from matta_cli.data import records, tables, text
from matta_cli.tasks.ranking import libsvm

INPUTS = int(os.environ.get("MATTA_FUZZ", "2000"))
LONGEST = 3600  # seconds after which no other input is tried
BEGAN: list[float] = []


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    fuzzed.project(folder)
    BEGAN.append(time.monotonic())
    return folder


@pytest.mark.slow
def test_every_kind_of_file_that_is_read_is_spoiled(project):
    tried = {path.suffix for pattern in fuzzed.READERS for path in project.glob(pattern)}
    read = {*records.TABLES, *text.READ, *tables.SUFFIXES, *libsvm.SIDECARS}
    assert read - tried == set()
    of_words = {name for name in fuzzed.READERS if name.startswith(("tagged", "reviews"))}
    assert {Path(name).suffix for name in of_words} >= {*records.TABLES, ".conll", ".conllu"}


@pytest.mark.slow
@settings(
    max_examples=INPUTS,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 2**32))
def test_whatever_is_wrong_with_a_file_is_said(project, tmp_path_factory, seed):
    if time.monotonic() - BEGAN[-1] < LONGEST:
        copy = tmp_path_factory.mktemp("copy") / "here"
        assert attempt(Random(seed), project, copy, fuzzed.READERS) == ""
