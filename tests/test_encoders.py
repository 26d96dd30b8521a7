"""Encoders of transformers with and without a head: how they are opened, cut and saved.

The contract of their adapters is in test_adapters.py.
"""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from encoder_models import ENCODERS, HEADS, encoder, tokens
from matta_adapters.encoders import Bert
from safetensors.torch import load_file, save_file

from matta_cli.adapter import Source
from matta_cli.errors import MattaError
from matta_cli.formats.programs import save_onnx
from matta_cli.models import plugins
from matta_cli.models.load import load_model
from matta_cli.models.source import open_source
from matta_cli.nested.sizes import full_sizes, kind, sizes_at
from matta_cli.nested.view import StudentView, materialize
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import raw
from matta_cli.tasks.task import task as open_task

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


def test_a_stock_teachers_head_is_of_the_task(tmp_path):
    """The tensors of a classifier of texts may have the names of one of tokens."""
    config = transformers.MobileBertConfig(
        vocab_size=20, hidden_size=8, embedding_size=8, num_attention_heads=1, num_hidden_layers=1
    )
    model = transformers.MobileBertForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    assert type(load_model(str(tmp_path), "text_classification")[0]) is type(model)
    wrong = "is a MobileBertForSequenceClassification, not a model for token_classification"
    with pytest.raises(MattaError, match=wrong):
        load_model(str(tmp_path), "token_classification")


CLASSIFIERS = [name for name in ENCODERS if name.rpartition("-")[2] in TASKS]
# what configurations call the sizes, where it is not as BERT's
OWN_WORDS = {"intermediate_size": {"distilbert": "hidden_dim"}}


def first(tensor, shape, blocks):
    """The first places of each dimension; of each of several blocks in the first dimension."""
    if blocks > 1:
        parts = tensor.unflatten(0, (blocks, -1))
        return first(parts, [blocks, shape[0] // blocks, *shape[1:]], 1).flatten(0, 1)
    for dim, size in enumerate(shape):
        tensor = tensor.narrow(dim, 0, size)
    return tensor


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_student_is_the_librarys_smaller_model_of_the_first_units(name):
    """Which tensor is cut where is told by shapes alone here: those of a smaller configuration."""
    whole = ENCODERS[name]()
    config, adapter = whole.config.to_dict(), plugins.adapter(name.partition("-")[0])
    inner = OWN_WORDS["intermediate_size"].get(whole.config.model_type, "intermediate_size")
    words = type(whole.config).attribute_map
    layers = whole.config.num_hidden_layers if "modern" in name else 1
    small = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": layers}
    config |= {words.get(word, word): size for word, size in small.items()} | {inner: 9}
    config |= {"pooler_hidden_size": 16} if "pooler_hidden_size" in config else {}
    if config.get("embedding_size") == 24:
        config["embedding_size"] = 16
    stock = type(whole)(type(whole.config)(**config)).eval()
    fused = {"Wqkv.weight": 3, "Wqkv.bias": 3, "Wi.weight": 2, "Wi.bias": 2}
    own = whole.state_dict()
    with torch.no_grad():
        for key, tensor in stock.state_dict().items():
            blocks = next((n for end, n in fused.items() if key.endswith(end)), 1)
            tensor.copy_(first(own[key], tensor.shape, blocks))
    axes, batch = adapter.axes(whole), tokens(whole)
    kept = {"mlp": 9, "hidden": 16, "depth": layers, "heads": 2 if "mpnet" in name else 16}
    sizes = {axis.name: kept[kind(axis.name)] for axis in axes}
    view = StudentView(adapter, whole, axes, sizes).eval()
    assert torch.equal(outputs(view, batch), outputs(stock, batch))
    assert not torch.allclose(outputs(stock, batch), outputs(whole, batch), atol=1e-2)


@pytest.mark.parametrize("name", ENCODERS)
def test_one_adapter_alone_knows_an_encoder(name, tmp_path):
    model, adapter = ENCODERS[name](), name.partition("-")[0]
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for source in (
        open_source(str(tmp_path)),
        Source("t", tensors=model.state_dict(), config=config),
        Source("m", module=model),
    ):
        [known] = [a for a in plugins.adapters().values() if a.matches(source)]
        assert known.name == adapter
        if source.tensors is None:
            assert known.task == TASKS.get(name.rpartition("-")[2], "sentence_embedding")
        loaded = plugins.adapter(adapter).load(source)
        assert torch.equal(outputs(loaded, tokens(model)), outputs(model, tokens(model)))
    if name.endswith("-sequence") and adapter != "bert":
        with pytest.raises(MattaError, match=r"pass its config\.json with --config"):
            plugins.detect(Source("t.pt", tensors=model.state_dict())).load(
                Source("t.pt", tensors=model.state_dict())
            )


@pytest.mark.parametrize(
    "kind", ["roberta", "electra", "distilbert", "mpnet", "modernbert", "deberta-v2"]
)
def test_a_head_that_fills_gaps_is_left_out_only_if_asked(kind, tmp_path):
    name = "deberta" if kind == "deberta-v2" else kind
    whole = transformers.AutoModelForMaskedLM.from_config(ENCODERS[name]().config).eval()
    whole.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    tensors = {"tensors": whole.state_dict(), "config": config}
    for source in {"folder": tmp_path}, tensors:
        with pytest.raises(MattaError, match=r"is more than an encoder.*pass --drop-head"):
            plugins.adapter(name).load(Source("m", **source))
        adapter = plugins.adapter(name)
        alone = adapter.load(Source("m", **source, drop_head=True))
        assert adapter.dropped and adapter.task == "sentence_embedding"
        batch = tokens(whole)
        assert torch.equal(outputs(alone, batch), outputs(whole.base_model, batch))
        assert getattr(alone, "pooler", None) is None  # rather than one with random weights


@pytest.mark.parametrize("name", ["roberta", "distilbert", "mpnet", "deberta"])
def test_a_number_is_the_one_output(name, tmp_path):
    """``num_labels`` 1: regression, and rerankers."""
    kind = "deberta-v2" if name == "deberta" else name
    model = encoder(kind, "sequence", num_labels=1, pad_token_id=1)
    model.save_pretrained(tmp_path)
    adapter = plugins.adapter(name)
    loaded = adapter.load(Source("m", folder=tmp_path))
    student = materialize(adapter, loaded, adapter.axes(loaded), {"mlp.0": 9, "mlp.1": 9})
    assert outputs(student, tokens(model)).shape == (2, 1) and student.config.num_labels == 1


def test_what_is_no_such_encoder_is_told_so(tmp_path):
    """ALBERT's blocks are all one: the adapter ``auto`` takes it. BERT needs types of tokens."""
    albert = transformers.AlbertConfig(
        vocab_size=20, hidden_size=8, embedding_size=4, num_attention_heads=1, intermediate_size=9
    )
    transformers.AlbertModel(albert).save_pretrained(tmp_path)
    with pytest.raises(MattaError, match=r"model_type 'albert'.*--adapter auto"):
        plugins.detect(open_source(str(tmp_path)))
    with pytest.raises(MattaError, match=r"no rows in embeddings.token_type_embeddings"):
        Bert().load(Source("t", module=encoder("bert", type_vocab_size=0)))
    roberta = encoder("roberta", is_decoder=True)
    with pytest.raises(MattaError, match="is a decoder"):
        plugins.adapter("roberta").load(Source("t", module=roberta))


def test_the_tiny_models_have_the_heads_that_are_named():
    assert set(HEADS) - {""} == set(TASKS)


# each with a head for texts, and those of which attention is told something with one for words
SERVED = [name for name in ENCODERS if name.endswith("-sequence")]
SERVED += ["modernbert-token", "deberta-token"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVED)
def test_an_onnx_program_takes_texts_of_any_number_and_length(name, tmp_path):
    """Of a Student at half of everything, longer and shorter ones than it was traced with."""
    runtime = pytest.importorskip("onnxruntime")
    model = ENCODERS[name]()
    adapter = plugins.detect(Source("m", module=model))
    model = adapter.load(Source("m", module=model))
    axes = adapter.axes(model)
    student = materialize(adapter, model, axes, sizes_at(axes, full_sizes(axes), 0.5)).eval()
    task = open_task(adapter.task, Recipe())
    path = tmp_path / "student.onnx"
    save_onnx(task, student, task.example(student, 3), path)
    session = runtime.InferenceSession(str(path))
    positions = student.config.max_position_embeddings
    most = min(16, positions - (2 if adapter.name in ("roberta", "mpnet") else 0))
    for count, length in ((1, 3), (2, most), (5, 7)):
        ids = torch.randint(4, student.config.vocab_size, (count, length))
        mask = (torch.arange(length) < torch.arange(length, 0, -1)[:count, None]).long()
        batch = {"input_ids": ids.masked_fill(mask == 0, student.config.pad_token_id or 0)}
        batch["attention_mask"] = mask
        given = {own.name for own in session.get_inputs()}
        assert given >= batch.keys()
        there = {key: batch.get(key, torch.zeros_like(ids)).numpy() for key in given}
        made = torch.from_numpy(session.run(None, there)[0])
        with torch.no_grad():
            expected = raw(student(**batch))
        if name.endswith("-token"):  # what stands at padding is nobody's
            made, expected = made[mask == 1], expected[mask == 1]
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
