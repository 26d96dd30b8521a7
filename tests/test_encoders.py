"""Encoders of transformers with and without a head: how they are opened, cut and saved.

The contract of their adapters is in test_adapters.py.
"""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from encoder_models import HEADS, encoder, tokens
from matta_adapters.encoders import Bert
from safetensors.torch import load_file, save_file

from matta_cli.adapter import Source
from matta_cli.errors import MattaError
from matta_cli.models.load import load_model
from matta_cli.nested.view import materialize
from matta_cli.tasks.task import raw

TASKS = {"sequence": "text_classification", "token": "token_classification"}
NAMES = {"no": 0, "perhaps": 1, "yes": 2}
LABELS = {"id2label": {i: name for name, i in NAMES.items()}, "label2id": NAMES}


def outputs(model, batch):
    with torch.no_grad():
        return raw(model(**batch))


@pytest.mark.parametrize("head", TASKS)
@pytest.mark.parametrize("problem", [None, "multi_label_classification", "regression"])
def test_a_head_is_kept_with_its_labels(head, problem, tmp_path):
    model = encoder("bert", head, **LABELS, problem_type=problem)
    model.save_pretrained(tmp_path / "base")
    adapter = Bert()
    loaded = adapter.load(Source("b", folder=tmp_path / "base"))
    assert adapter.task == TASKS[head] and adapter.notes == [] and adapter.dropped == []
    batch = tokens(model)
    assert torch.equal(outputs(loaded, batch), outputs(model, batch))
    small = {"mlp.0": 9, "mlp.1": 9, "heads.0": 16, "heads.1": 16, "hidden": 16, "depth": 1}
    student = materialize(adapter, loaded, adapter.axes(loaded), small)
    (tmp_path / "student").mkdir()
    assert not adapter.unsupported(student)
    adapter.save(student, tmp_path / "student")
    loader = f"transformers.AutoModel{HEADS[head]}.from_pretrained({{folder}})"
    assert adapter.loader == loader
    stock = getattr(transformers, f"AutoModel{HEADS[head]}").from_pretrained(tmp_path / "student")
    assert type(stock) is type(model) and stock.config.problem_type == problem
    assert {"id2label": stock.config.id2label, "label2id": stock.config.label2id} == LABELS
    assert torch.equal(outputs(stock, batch), outputs(student, batch))


@pytest.mark.parametrize("head", TASKS)
def test_a_head_is_left_out_if_asked(head, tmp_path):
    model = encoder("bert", head)
    model.save_pretrained(tmp_path)
    task = TASKS[head]
    for source in (
        Source("b", folder=tmp_path, drop_head=True),
        Source("b", tensors=model.state_dict(), config=model.config.to_dict(), drop_head=True),
        Source("b", module=model, drop_head=True),
    ):
        adapter = Bert()
        alone = adapter.load(source)
        assert adapter.task == "sentence_embedding" and adapter.dropped[-1] == "classifier"
        batch = tokens(model)
        assert torch.equal(outputs(alone, batch), outputs(model.bert, batch))
    wrong = f"'b' is a model for {task}, not for sentence_embedding; --drop-head"
    with pytest.raises(MattaError, match=wrong):
        Bert().load(Source("b", folder=tmp_path, task="sentence_embedding"))


@pytest.mark.parametrize(
    ("head", "lost"),
    [
        ("sequence", "classifier.bias"),
        ("sequence", "bert.pooler.dense.weight"),
        ("token", "classifier.weight"),
    ],
)
def test_a_head_without_its_weights_is_refused(head, lost, tmp_path):
    """transformers would draw them by chance."""
    encoder("bert", head).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    for source in Source("b", folder=tmp_path), Source("b", tensors=tensors, config=config):
        with pytest.raises(MattaError, match=f"does not fit.*{lost} is missing"):
            Bert().load(source)


def test_an_old_pooler_that_a_tagger_does_not_use_is_passed_over(tmp_path):
    model = encoder("bert", "token")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors |= {"bert.pooler.dense.weight": torch.ones(24, 24)}
    tensors |= {"bert.pooler.dense.bias": torch.ones(24)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    batch, config = tokens(model), json.loads((tmp_path / "config.json").read_text())
    for source in Source("b", folder=tmp_path), Source("b", tensors=tensors, config=config):
        loaded = Bert().load(source)
        assert torch.equal(outputs(loaded, batch), outputs(model, batch))


def test_the_head_of_a_state_dict_is_known_where_its_names_say_so():
    """Those of a tagger do; a pooler may be that of texts, of choices, or one that is not used."""
    model = encoder("bert", "token", hidden_size=64, num_attention_heads=1)
    adapter, batch = Bert(), tokens(model)
    loaded = adapter.load(Source("b.pt", tensors=model.state_dict()))
    assert adapter.task == "token_classification" and loaded.config.num_labels == 5
    assert torch.equal(outputs(loaded, batch), outputs(model, batch))
    model = encoder("bert", "sequence", hidden_size=64, num_attention_heads=1)
    with pytest.raises(
        MattaError, match=r"several classes \(BertForSequenceClassification; .*--task"
    ):
        adapter.load(Source("b.pt", tensors=model.state_dict()))
    given = {"tensors": model.state_dict()}
    loaded = adapter.load(Source("b.pt", **given, task="text_classification"))
    assert adapter.task == "text_classification"
    assert torch.equal(outputs(loaded, batch), outputs(model, batch))
    config = model.config.to_dict() | {"architectures": ["BertForSequenceClassification"]}
    adapter.load(Source("b.pt", **given, config=config))
    assert adapter.task == "text_classification"


def test_a_head_that_no_architectures_names_is_not_guessed(tmp_path):
    encoder("bert", "sequence").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for names in None, [], ["BertModel"], ["BertForMultipleChoice"], 3:
        (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": names}))
        with pytest.raises(
            MattaError, match=r"has a head \(classifier\), and by its architectures"
        ):
            Bert().load(Source("b", folder=tmp_path))


def test_a_teacher_keeps_the_head_of_the_task(tmp_path):
    model, said = encoder("bert", "sequence"), []
    model.save_pretrained(tmp_path)
    teacher, _ = load_model(str(tmp_path), "text_classification", say=said.append)
    assert type(teacher) is type(model) and said == []
    teacher, _ = load_model(str(tmp_path), "sentence_embedding", say=said.append)
    assert type(teacher).__name__ == "BertModel" and "(classifier) is left out" in said[-1]
    with pytest.raises(MattaError, match="is a model for text_classification, not for token"):
        load_model(str(tmp_path), "token_classification")


def test_the_tiny_models_have_the_heads_that_are_named():
    assert set(HEADS) - {""} == set(TASKS)
