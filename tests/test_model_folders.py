"""A model's folder is opened as its own library opens it, or what it is instead is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from matta_adapters.decoders import Llama
from matta_adapters.encoders import Bert
from safetensors.torch import load_file, save_file
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from matta_cli.adapter import Source
from matta_cli.comparison import speculation
from matta_cli.conversion.convert import convert
from matta_cli.errors import MattaError
from matta_cli.models import plugins
from matta_cli.models.dtype import stored_dtype
from matta_cli.models.load import load_model, opened
from matta_cli.models.source import open_source
from matta_cli.settings.recipe import DataSettings, Recipe
from matta_cli.tasks.task import task
from tests.encoder_models import encoder
from tests.text_models import bert


def put(folder: Path, name: str = "config.json", **changes: object) -> None:
    known = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps({**known, **changes}))


def renamed(folder: Path, how) -> None:
    """Write a folder's weights anew, each under the name and with the values that ``how`` gives."""
    file = folder / "model.safetensors"
    named = dict(how(name, tensor) for name, tensor in load_file(file).items())
    save_file({name: tensor.contiguous() for name, tensor in named.items()}, file, {"format": "pt"})


def llama(folder: Path, **changes: object) -> LlamaForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 40}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, **changes))
    model.save_pretrained(folder)
    return model


def test_weights_are_not_rounded_to_what_config_json_says(tmp_path):
    """As transformers 5 does: what is stored counts, of Teachers that no adapter knows, too."""
    model = llama(tmp_path / "it")
    bloom = BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=40))
    bloom.save_pretrained(tmp_path / "other")
    for name in ("it", "other"):
        put(tmp_path / name, dtype="bfloat16", torch_dtype="bfloat16")
    found = Llama().load(open_source(str(tmp_path / "it")))
    assert torch.equal(found.lm_head.weight, model.lm_head.weight)
    teacher, _ = load_model(str(tmp_path / "other"), "causal_lm")
    own = bloom.transformer.h[0].mlp.dense_h_to_4h.weight
    assert torch.equal(teacher.transformer.h[0].mlp.dense_h_to_4h.weight, own)


@pytest.mark.parametrize("word", ["_orig_mod.", "module.", "module._orig_mod."])
def test_names_of_wrapped_modules_in_a_folder(tmp_path, word):
    """As a Trainer leaves them that saved a compiled model: libraries draw all weights anew."""
    model = encoder("bert", "sequence")
    model.save_pretrained(tmp_path)
    renamed(tmp_path, lambda name, tensor: (word + name, tensor))
    source = open_source(str(tmp_path))
    assert source.beside == tmp_path and "a module that was wrapped" in source.notes[0]
    found = opened(Bert(), source).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def test_a_bin_file_of_a_folder_that_no_library_opens_as_it_is(tmp_path):
    model = encoder("bert", "sequence")
    model.save_pretrained(tmp_path)
    state, path = model.state_dict(), tmp_path / "pytorch_model.bin"
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, path)
    assert open_source(str(tmp_path)).folder == tmp_path
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    for held in (wrapped, {"state_dict": state, "epoch": 3}):
        torch.save(held, path)
        found = opened(Bert(), open_source(str(tmp_path))).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    torch.save({name: tensor.to(torch.int8) for name, tensor in state.items()}, path)
    with pytest.raises(MattaError, match="is quantized"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("fsdp_0/.metadata", "fsdp_0/__0_0.distcp"), r"dcp_to_torch_save\('.*fsdp_0', 'model.pt'"),
        ((".metadata", "__0_0.distcp"), "sharded checkpoint of FSDP"),
        (("latest_checkpointed_iteration.txt",), "checkpoint of Megatron"),
    ],
)
def test_sharded_checkpoints_in_a_folder_are_told(tmp_path, files, said):
    put(tmp_path, model_type="bert")
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(MattaError, match=said):
        open_source(str(tmp_path))


def test_a_word_before_the_names_in_a_folder(tmp_path):
    encoder("bert", "sequence").save_pretrained(tmp_path)
    renamed(tmp_path, lambda name, tensor: (f"model.{name}", tensor))
    with pytest.raises(MattaError, match=r"names begin with 'model.', .*: pass .* with --config"):
        Bert().load(open_source(str(tmp_path)))
    file = tmp_path / "model.safetensors"
    torch.save(load_file(file), tmp_path / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(MattaError, match=r"pass .*pytorch_model\.bin with --config .*config.json"):
        Bert().load(open_source(str(tmp_path)))
    both = open_source(str(tmp_path / "pytorch_model.bin"), model_config=tmp_path / "config.json")
    assert isinstance(opened(Bert(), plugins.bare(both, [Bert()])), torch.nn.Module)


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_weights_of_eight_bits_without_a_word_on_how(tmp_path, kind):
    encoder("bert", "sequence").save_pretrained(tmp_path)
    renamed(tmp_path, lambda name, t: (name, t.to(kind) if t.dim() > 1 else t))
    with pytest.raises(MattaError, match="no quantization_config says how: matta needs"):
        open_source(str(tmp_path))


def test_an_encoder_of_sentences_that_is_a_decoder(tmp_path):
    """Such as Qwen3-Embedding: it is not silently a language model."""
    llama(tmp_path, tie_word_embeddings=True)
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(MattaError, match="is an encoder of sentences"):
        Llama().load(Source("m", folder=tmp_path))
    assert Llama().load(Source("m", folder=tmp_path, task="causal_lm"))
    put(tmp_path, "matta.json")  # a TA of it
    assert Llama().load(Source("m", folder=tmp_path))


def test_a_model_of_another_task_than_was_asked_for(tmp_path):
    llama(tmp_path / "it")
    recipe = Recipe()
    recipe.convert.source, recipe.convert.task = str(tmp_path / "it"), "text_classification"
    with pytest.raises(MattaError, match="is a model for causal_lm, not for text_classification"):
        convert(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


OTHER_WAYS = [
    {"num_beams": 3},
    {"stop_strings": ["a"]},
    {"forced_eos_token_id": 2},
    {"guidance_scale": 1.5},
    {"return_dict_in_generate": True},
    {"max_time": 1e-9},
]


@pytest.mark.parametrize("said", OTHER_WAYS, ids=lambda said: next(iter(said)))
def test_drafts_are_checked_greedily_whatever_a_folder_says(tmp_path, said):
    small = llama(tmp_path / "small", initializer_range=0.3).eval()
    llama(tmp_path / "large", initializer_range=0.3)
    put(tmp_path / "large", "generation_config.json", eos_token_id=None, **said)
    large = opened(Llama(), open_source(str(tmp_path / "large")))
    before, wanted = large.generation_config, torch.tensor([[3, 4, 5]])
    found = speculation.measure(small, large, wanted, new=3, draft=2, rounds=1)
    assert found["new_tokens"] == 3 and found["identical"] == 1.0 and found["acceptance"] >= 0
    assert large.generation_config is before
    with torch.no_grad():
        for _ in range(3):
            likeliest = large(input_ids=wanted).logits[:, -1:].argmax(-1)
            wanted = torch.cat([wanted, likeliest], 1)
    with speculation._plainly(small, large, 2):
        got, _ = speculation._generate(large, wanted[:, :3], 3, assistant_model=small)
    assert torch.equal(got, wanted)


def test_files_of_weights_that_no_library_opens(tmp_path):
    """An average, or the same in other numbers: they are said, and say nothing of the model."""
    llama(tmp_path)
    assert open_source(str(tmp_path)).notes == ()
    for name in ("ema.safetensors", "model.fp16.safetensors"):
        save_file({"a": torch.zeros(99_999, dtype=torch.float16)}, tmp_path / name)
    (tmp_path / "optimizer.pt").touch()
    source = open_source(str(tmp_path))
    assert "(ema.safetensors, model.fp16.safetensors): model.safetensors is" in source.notes[0]
    assert stored_dtype(source) == "float32"


def test_a_shard_that_no_index_names_is_none_of_the_model(tmp_path):
    model = llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    old = tmp_path / "model-00009-of-00009.safetensors"
    save_file({"lm_head.weight": torch.zeros(99_999, dtype=torch.int8)}, old)
    source = open_source(str(tmp_path))
    assert stored_dtype(source) == "float32" and len(list(tmp_path.glob("model-*"))) > 2
    assert torch.equal(Llama().load(source).lm_head.weight, model.lm_head.weight)
    index = "model.safetensors.index.json"
    put(tmp_path, index, weight_map={"lm_head.weight": "odd.safetensors"})
    (tmp_path / "odd.safetensors").write_bytes(b"no tensors")
    with pytest.raises(MattaError, match=r"odd\.safetensors is damaged"):
        open_source(str(tmp_path))


def test_the_latest_checkpoint_of_a_trainer_is_named(tmp_path):
    for step in (500, 1000):
        llama(tmp_path / f"checkpoint-{step}")
    with pytest.raises(MattaError, match=r"checkpoint-500, .*1000\): pass .*checkpoint-1000 say"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "said"),
    [("IA3", "merge_and_unload"), ("PROMPT_TUNING", "cannot be merged"), ("", "such as LoRA")],
)
def test_adapters_of_peft_are_told_what_they_are(tmp_path, kind, said):
    put(tmp_path, "adapter_config.json", peft_type=kind)
    with pytest.raises(MattaError, match=said):
        open_source(str(tmp_path))
    llama(tmp_path)  # as it is saved where an adapter was merged
    if kind != "PROMPT_TUNING":
        with pytest.raises(MattaError, match=r"are merged, take adapter_config.json out"):
            open_source(str(tmp_path))


@pytest.mark.parametrize("architecture", ["test_vit", "test_convnext"])
def test_a_classifier_that_timm_would_draw_by_chance(tmp_path, architecture):
    model = timm.create_model(architecture, num_classes=3)
    given = {"num_classes": 3}
    timm.models.save_for_hf(model, str(tmp_path), model_args=given, safe_serialization=True)
    found, _ = load_model(str(tmp_path), "image_classification")
    names = [name for name in model.state_dict() if name.startswith("head")]
    assert all(torch.equal(found.state_dict()[n], model.state_dict()[n]) for n in names)
    put(tmp_path, num_classes=5)  # and ViT, which has an adapter, has its own way in
    with pytest.raises(MattaError, match=r"says num_classes 5 and, .* 3: timm would draw"):
        load_model(str(tmp_path), "image_classification")


@pytest.mark.parametrize("numbers", [(1, 2), (0, 5)])
def test_labels_that_are_numbered_otherwise(tmp_path, numbers):
    model = bert(tmp_path, id2label=dict(zip(numbers, ("bad", "good"), strict=True)))
    data = tmp_path / "a.csv"
    data.write_text("text,label\n" + "the film,good\nthe book,bad\n" * 9)
    made = task("text_classification", Recipe(data=DataSettings(str(data))))
    with pytest.raises(MattaError, match=r"id2label .* has the numbers .*; a model's are 0 to 1"):
        made.data(tmp_path, model)


def test_what_lies_beside_a_models_weights_in_a_checkpoint(tmp_path):
    """Another average of them, under whatever name, is said; what an optimizer keeps is none."""
    state = llama(tmp_path / "it").state_dict()
    other = {name: tensor + 1 for name, tensor in state.items()}
    optimizer = {"state": {name: {"exp_avg": tensor} for name, tensor in state.items()}}
    for beside in ({"ema": {"decay": 0.9, "shadow": other}}, {"averaged_model": other}):
        torch.save({"model": state, "optimizer": optimizer, **beside}, tmp_path / "a.pt")
        (note,) = open_source(str(tmp_path / "a.pt")).notes
        assert note.endswith(f"under 'model'; what {next(iter(beside))!r} holds is left out.")
    torch.save({"model": state, "optimizer": optimizer, "epoch": 3}, tmp_path / "a.pt")
    assert open_source(str(tmp_path / "a.pt")).notes == ()
    averaged = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"n_averaged": torch.tensor(3), **averaged}, tmp_path / "a.pt")
    source = open_source(str(tmp_path / "a.pt"))
    assert source.tensors is not None and source.tensors.keys() == state.keys()
    whole = {name: tensor.long() for name, tensor in state.items()}
    torch.save(whole, tmp_path / "a.pt")
    with pytest.raises(MattaError, match="is quantized"):
        open_source(str(tmp_path / "a.pt"))


@pytest.mark.parametrize("kind", ["text_classification", "image_classification"])
def test_a_teacher_whose_answers_are_of_another_kind(tmp_path, kind):
    """Any number of labels, or numbers: as many outputs, and not what the model says by them."""
    several, one = "multi_label_classification", "single_label_classification"
    for ours, theirs, said in (
        (one, several, "must be alike"),
        (several, one, "must be alike"),
        (None, "regression", "must be alike"),
        (None, several, "does not say"),
        (None, one, ""),
        (several, several, ""),
        (one, None, ""),
    ):
        models = []
        for name, problem in (("ours", ours), ("theirs", theirs)):
            if kind == "text_classification":
                bert(tmp_path / name, num_labels=3, problem_type=problem)
            else:
                sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
                sizes |= {"hidden_size": 16, "intermediate_size": 16, "patch_size": 16}
                config = ViTConfig(**sizes, num_labels=3, problem_type=problem)
                ViTForImageClassification(config).save_pretrained(tmp_path / name)
            models.append(load_model(str(tmp_path / name), kind)[0])
        made = task(kind, Recipe())
        try:
            made.fit_teacher(models[1], tmp_path / "theirs", models[0], tmp_path / "ours")
            found = " ".join(note for note in made.notes if "problem_type" in note)
        except MattaError as error:
            found = str(error)
        assert (said in found) if said else not found, (ours, theirs, found)


def test_two_labels_of_one_name_are_said(tmp_path):
    model = bert(tmp_path, id2label={0: "good", 1: "good", 2: "bad"})
    data = tmp_path / "a.csv"
    data.write_text("text,label\n" + "the film,0\nthe book,1\nthe plot,2\n" * 9)
    made = task("text_classification", Recipe(data=DataSettings(str(data))))
    found = made.data(tmp_path, model)
    assert any("are called 'good': its labels" in n for n in (*found.notes, *made.notes))
    data.write_text("text,label\n" + "the film,good\nthe book,bad\n" * 9)
    with pytest.raises(MattaError, match="give numbers from 0 to 2"):
        made.data(tmp_path, model)
