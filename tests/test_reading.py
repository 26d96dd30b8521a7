"""What a file holds instead of what it should is one sentence; what has no end is not read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import optuna
import pytest
import torch
from safetensors.torch import save_file

from matta_cli.data.tables import Table
from matta_cli.errors import MattaError
from matta_cli.files import atomic, reading
from matta_cli.files.card import read_card
from matta_cli.files.workspace import Workspace, counters_of
from matta_cli.models.source import open_source, read_json
from matta_cli.report.schema import Report
from matta_cli.search.journal import journal, kept_trials
from matta_cli.settings.resolve import read_toml
from matta_cli.tasks.texts.stored import Stored, stored
from matta_cli.training.log import evaluations
from matta_cli.training.teacher_file import is_file, read, read_teacher_card

AXIS = {"name": "mlp.0", "size": 4, "slices": [{"tensor": "w", "dim": 0}]}
LINEAGE = {"source": "model.pt", "digest": "sha256:0"}
CARD = {
    "format": 1,
    "adapter": "gpt2",
    "task": "causal_lm",
    "axes": [AXIS],
    "base": {"mlp.0": 2},
    "lineage": LINEAGE,
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"adapter": None}, "adapter is None, where a str belongs"),
        ({"lineage": {"source": "x"}}, "lineage.digest is missing"),
        ({"axes": [{**AXIS, "slices": 3}]}, r"axes\[0\].slices is 3, where a list belongs"),
        ({"base": {"mlp.0": True}}, r"base\['mlp.0'\] is True, where an int belongs"),
        ({"base": {"mlp.0": 10**30}}, "is no number that can be"),
        ({"base": {"mlp.0": 5}}, "the sizes of 'mlp.0'"),
        ({"axes": [{**AXIS, "order": [0, 0]}]}, "the order of 'mlp.0'"),
        ({"difference": float("nan")}, "difference is no number"),
        ({"format": 99}, "has format 99; this matta reads up to 1: upgrade"),
    ],
)
def test_a_card_names_the_field_that_is_wrong(tmp_path, change, sentence):
    (tmp_path / "matta.json").write_text(json.dumps(CARD))
    assert read_card(tmp_path)["axes"][0].size == 4
    (tmp_path / "matta.json").write_text(json.dumps(CARD | change))
    with pytest.raises(MattaError, match=sentence):
        read_card(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5_000, '{"a": 1', "\ufeff{"])
def test_json_that_is_none(tmp_path, text):
    for name in ("matta.json", "trainer.json", "teacher.json"):
        (tmp_path / name).write_text(text)
    for reader in (read_card, counters_of, read_teacher_card):
        with pytest.raises(MattaError, match="is damaged"):
            reader(tmp_path)
    with pytest.raises(MattaError):
        read_json(tmp_path / "matta.json")


def test_a_byte_order_mark_begins_what_some_editors_save(tmp_path):
    for name, text in (("matta.json", json.dumps(CARD)), ("a.toml", "[data]\ntrain = 'b'\n")):
        (tmp_path / name).write_text(f"\ufeff{text}")
    assert read_card(tmp_path)["axes"][0].size == 4
    assert read_toml(tmp_path / "a.toml") == {"data": {"train": "b"}}


def test_toml_that_is_none(tmp_path):
    for text in ("a = " + "[" * 50_000, "a = " + "9" * 5_000, "a"):
        (tmp_path / "matta.toml").write_text(text)
        with pytest.raises(MattaError, match="is not valid TOML"):
            read_toml(tmp_path / "matta.toml")


@pytest.mark.parametrize("endless", ["pipe", "device"])
def test_what_has_no_end_is_not_opened(tmp_path, endless):
    path = tmp_path / "config.json"
    if endless == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    for reader in (reading.text, read_json, read_toml, lambda path: open_source(str(path.parent))):
        with pytest.raises(MattaError, match="is a pipe or a device"):
            reader(path)
    (tmp_path / "SHA256SUMS").write_text(f"00  {path.name}\n")
    assert not atomic.is_sound(tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    path.rename(tmp_path / "SHA256SUMS")
    assert not atomic.is_sound(tmp_path)


def state() -> dict:
    return {"0.weight": torch.ones(4, 2), "0.bias": torch.ones(4)}


def itself() -> dict:
    state: dict = {"epoch": 3}
    state["model"] = state
    return state


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (itself, "holds a dict"),
        (lambda: {7: torch.ones(2)}, "a tensor called 7"),
        (lambda: {**state(), "0.bias": torch.ones(4).to_sparse()}, "'0.bias' is sparse"),
        (
            lambda: {
                **state(),
                "0.bias": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
            },
            "'0.bias' is quantised",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_state_dicts_that_are_none(tmp_path, made, sentence):
    torch.save(made(), tmp_path / "model.pt")
    with pytest.raises(MattaError, match=sentence):
        open_source(str(tmp_path / "model.pt"))


def test_a_log_that_was_cut_or_is_no_text_loses_its_lines_alone(tmp_path):
    space = Workspace(tmp_path)
    space.run.mkdir()
    good = b'{"step": 2, "evaluation": {"TA": {"auc": 0.5}, "1": 3}}\n'
    odd = b'\xff\xfe\n12\nnull\n[]\n{"evaluation": 1, "step": 3}\n' + b"[" * 100_000 + b"\n"
    space.log.write_bytes(good + odd + good[:30])
    assert evaluations(space, "auc") == [(2, {"TA": 0.5}), (3, {})]


def test_teacher_files_that_are_none(tmp_path):
    path = tmp_path / "said.safetensors"
    save_file({"row": torch.arange(3), "score": torch.tensor(1.0)}, path)
    with pytest.raises(MattaError, match="columns are not of one length"):
        read(path)
    import pyarrow as pa
    import pyarrow.parquet

    decimal = pa.array([1, 2]).cast(pa.decimal128(38, 2))
    pa.parquet.write_table(pa.table({"row": [0, 1], "score": decimal}), tmp_path / "said.parquet")
    with pytest.raises(MattaError, match="column 'score' holds no numbers"):
        read(tmp_path / "said.parquet")


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("top_logits", [{"a": 1}, {"a": 1}], "column 'top_logits' holds lists of no numbers"),
        ("top_logits", [["a"], ["b"]], "column 'top_logits' are of unequal lengths, or hold no"),
        ("id", [b"\xff", b"\xfe"], "column 'id' must hold text or numbers, not bytes"),
    ],
)
def test_a_teachers_columns_of_other_kinds(tmp_path, name, values, sentence):
    import pyarrow as pa
    import pyarrow.parquet

    columns = {} if name == "id" else {"row": [0, 1]}
    table = pa.table({**columns, name: pa.array(values), "score": [0.5, 1.0]})
    pa.parquet.write_table(table, tmp_path / "said.parquet")
    with pytest.raises(MattaError, match=sentence):
        read(tmp_path / "said.parquet")


def test_a_teachers_file_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "said.safetensors")
    with pytest.raises(MattaError, match="is a pipe or a device"):
        is_file(str(tmp_path / "said.safetensors"))


def test_names_in_large_binary_columns(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table({"query": pa.array([b"\xff", b"a"], pa.large_binary())})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(MattaError, match="holds large_binary, but names are text"):
        Table([tmp_path / "a.parquet"], ["query"]).keys("query")


def test_a_journal_that_was_cut_goes_on_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "trials.jsonl"
    path.write_text('{"op_code":')
    os.symlink(path.name, f"{path}.lock")  # noqa: PTH211
    journal(tmp_path)
    assert path.read_text() == "" and not os.path.lexists(f"{path}.lock")
    for text in ("{}\n", "[\n", '{"op_code": "x"}\n'):
        path.write_text(text)
        with pytest.raises(MattaError, match="is damaged: delete it, and the same command scores"):
            journal(tmp_path)


@pytest.mark.parametrize(
    ("value", "key", "ahead"),
    [(None, "a", 0), (1e999, "a", 0), (1, [], 0), (1, None, 0), (1, "a", None), (1, "a", 9)],
)
def test_a_trial_that_no_search_has_written_is_damage(tmp_path, value, key, ahead):
    study = optuna.create_study(storage=journal(tmp_path))
    low_to_high = optuna.distributions.FloatDistribution(0.0, 10.0)
    params = {} if ahead is None else {"x": float(ahead)}
    trial = optuna.trial.create_trial(
        value=0.0 if value is None else value,
        params=params,
        distributions=dict.fromkeys(params, low_to_high),
        user_attrs={} if key is None else {"key": key},
    )
    study.add_trial(trial)
    if value is None:
        path = tmp_path / "trials.jsonl"
        path.write_text(path.read_text().replace('"value":0.0', '"value":null'))
    again = optuna.load_study(study_name=study.study_name, storage=journal(tmp_path))

    def fits(one):
        return isinstance(one.user_attrs["key"], str) and 0 <= one.params["x"] <= 2

    with pytest.raises(MattaError, match="is damaged: delete it, and the same command scores"):
        kept_trials(again, fits)


def test_a_report_of_other_types_opens_with_what_it_has():
    report = Report.from_json({"device": 1e308, "models": [3, {"name": "a"}], "metrics": {"a": 1}})
    assert [model.name for model in report.models] == ["a"] and report.device.name == ""


def test_a_run_without_a_checkpoint_goes(tmp_path):
    space = Workspace(tmp_path)
    space.run.mkdir()
    space.log.write_text("{}\n")
    (Path(space.run) / "checkpoints" / "step-abc").mkdir(parents=True)
    with pytest.raises(OSError, match="died"), space.set_aside(keep=False):
        space.run.mkdir()
        raise OSError("died in its first step")
    assert not space.run.exists()


@pytest.mark.parametrize("content", [b"[" * 100_000, b"{", b"\xff\xfe{}", None])
def test_what_can_be_done_without_is_none_where_it_cannot_be_read(tmp_path, content):
    """Each of the files that lie beside a model, say: a sentence on it would be in the way."""
    path = tmp_path / "sentence_bert_config.json"
    if content is not None:
        path.write_bytes(content)
    assert reading.lenient(path) is None
    assert stored(tmp_path) == Stored()
