"""What the files beside a model's weights say about its inputs is done, or said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from matta_adapters.encoders import Bert
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BitImageProcessor,
    CLIPImageProcessor,
    DeiTImageProcessor,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from matta_cli.adapter import Source
from matta_cli.conversion.convert import convert
from matta_cli.errors import MattaError
from matta_cli.models.source import open_source
from matta_cli.models.tokenizer import open_tokenizer, two_formats, two_templates
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.image_classification.examples import Preparation
from matta_cli.tasks.sentence_embedding.examples import Sentences
from matta_cli.tasks.task import task as open_task
from matta_cli.tasks.texts.encoder import encoder
from tests.sample_text import WORDS, byte_tokenizer, prose

STEPS = [("Transformer", ""), ("Pooling", "1_Pooling")]
ASKED = ["query:", "One", "one", "dog"]


@pytest.fixture
def encoder_folder(tmp_path):
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS[:10], "query:", "One"]
    words = {word: i for i, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    template = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.post_processor = template
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(words), **sizes, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path)
    return tmp_path


def put(folder, name, **content):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def opened(folder):
    notes: list[str] = []
    model = Bert().load(Source("m", folder=folder))
    made = encoder(folder, model, Recipe(), 512, notes)
    tokens = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(made(["One dog"]).ids)
    return made, tokens, " ".join(notes)


def test_prompts_of_sentence_transformers(encoder_folder):
    name = "config_sentence_transformers.json"
    put(encoder_folder, name, prompts={"query": "query: ", "document": ""})
    _, tokens, notes = opened(encoder_folder)
    assert tokens == ["[CLS]", "One", "dog", "[SEP]"] and "'query' are not used" in notes
    put(encoder_folder, name, prompts={"query": "query: "}, default_prompt_name="query")
    _, tokens, notes = opened(encoder_folder)
    assert tokens == ["[CLS]", "query:", "One", "dog", "[SEP]"] and "'query: '" in notes
    put(encoder_folder, "1_Pooling/config.json", include_prompt=False)
    with pytest.raises(MattaError, match="include_prompt"):
        opened(encoder_folder)


def test_the_encoders_own_card_whatever_it_is_called(encoder_folder):
    put(encoder_folder, "sentence_roberta_config.json", max_seq_length=7, do_lower_case=True)
    made, tokens, _ = opened(encoder_folder)
    assert made.length == 7 and tokens == ["[CLS]", "one", "dog", "[SEP]"]


@pytest.mark.parametrize(("value", "length"), [(7.0, 7), (1e30, 512), (float("nan"), 512)])
def test_a_length_that_is_no_whole_number(encoder_folder, value, length):
    card = json.loads((encoder_folder / "tokenizer_config.json").read_text())
    put(encoder_folder, "tokenizer_config.json", **{**card, "model_max_length": value})
    assert opened(encoder_folder)[0].length == length


def test_what_is_not_done_is_said(encoder_folder):
    assert opened(encoder_folder)[2] == ""
    more = {"similarity_fn_name": "dot", "truncate_dim": 8}
    put(encoder_folder, "config_sentence_transformers.json", **more)
    notes = opened(encoder_folder)[2]
    assert "by dot" in notes and "truncate_dim" in notes


def test_a_length_of_sentences_that_is_no_whole_number(encoder_folder):
    put(encoder_folder, "sentence_bert_config.json", max_seq_length=7.0)
    assert opened(encoder_folder)[0].length == 7
    put(encoder_folder, "sentence_bert_config.json", max_seq_length="7")
    with pytest.raises(MattaError, match=r"max_seq_length '7' in .* is no number of tokens"):
        opened(encoder_folder)


def test_a_step_that_is_code_of_the_folder_is_not_another(encoder_folder):
    """Such as jina's: its name alone says nothing of what it does."""
    steps = [{"type": f"custom_st.{kind}", "path": path} for kind, path in STEPS]
    (encoder_folder / "modules.json").write_text(json.dumps(steps))
    put(encoder_folder, "1_Pooling/config.json", pooling_mode_mean_tokens=True)
    with pytest.raises(MattaError, match=r"is made of custom_st\.Transformer"):
        Bert().load(Source("m", folder=encoder_folder))


def test_what_is_passed_on_is_said(encoder_folder):
    name, harmless = "sentence_bert_config.json", {"model_args": {"add_pooling_layer": False}}
    put(encoder_folder, name, max_seq_length=7, **harmless, tokenizer_args={})
    assert opened(encoder_folder)[2] == ""
    put(encoder_folder, name, tokenizer_args={"padding_side": "left"})
    assert "sentence_bert_config.json sets tokenizer_args, which" in opened(encoder_folder)[2]


@pytest.mark.parametrize(
    ("card", "said"), [(None, "is not there"), ({"pooling_mode_cls_token": False}, "names no way")]
)
def test_a_pooling_that_is_not_there_is_no_mean(encoder_folder, card, said):
    """As where only the files of a folder were copied, and not those of the folders in it."""
    steps = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in STEPS]
    (encoder_folder / "modules.json").write_text(json.dumps(steps))
    if card is not None:
        put(encoder_folder, "1_Pooling/config.json", **card)
    with pytest.raises(MattaError, match=rf"1_Pooling/config.json, which .* {said}"):
        Bert().load(Source("m", folder=encoder_folder))
    put(encoder_folder, "1_Pooling/config.json", pooling_mode_cls_token=True)
    model = Bert().load(Source("m", folder=encoder_folder))
    assert model.config.sentence_pooling == "cls"


def test_a_teacher_reads_sentences_as_its_folder_asks(encoder_folder, tmp_path_factory):
    """It has tokens of its own in each batch, unless they are those of the model."""
    model = Bert().load(Source("m", folder=encoder_folder))
    task = open_task("sentence_embedding", Recipe())
    assert task.fit_teacher(model, encoder_folder, model, encoder_folder) is model
    assert task.notes == []
    home = tmp_path_factory.mktemp("model") / "it"
    shutil.copytree(encoder_folder, home)
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    put(encoder_folder, "config_sentence_transformers.json", **prompts)
    teacher = task.fit_teacher(model, encoder_folder, model, home)
    assert any("its texts begin with 'query: '" in note for note in task.notes)
    encode = task.encoder(home, model, task.notes)
    batch = Sentences({"One dog": 0}, encode, "t", task.readers).batch([0])
    asked = Sentences({"query: One dog": 0}, encode, "t", task.readers).batch([0])
    given = task.forward(teacher, batch)
    torch.testing.assert_close(given, task.forward(model, asked))
    assert not torch.allclose(given, task.forward(model, batch), atol=1e-3)


@pytest.mark.parametrize("value", ["x", [], {"a": 1}, None, -1, 1e308, True])
def test_a_tokenizer_that_opens_is_one_that_reads(tmp_path, value):
    byte_tokenizer([prose(50)], 280).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    told = json.loads(path.read_text()) | {"model_max_length": 512}
    for key in told:
        path.write_text(json.dumps(told | {key: value}))
        try:
            tokenizer = open_tokenizer(tmp_path, "", 10_000)
        except MattaError as error:
            assert "cannot be opened" in str(error)
        else:
            assert tokenizer("a text")["input_ids"]


@pytest.mark.parametrize("trim", [False, True])
def test_a_damaged_tokenizer_is_named_as_the_user_does(tmp_path, monkeypatch, trim):
    """It is read as a copy, in a folder that is gone when that is said."""
    monkeypatch.chdir(tmp_path)
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=300)).save_pretrained("it")
    byte_tokenizer([prose(50)], 280).save_pretrained("it")
    Path("it/tokenizer.json").write_text("")
    Path("text.txt").write_text(prose(50))
    recipe = Recipe()
    recipe.convert.source, recipe.convert.trim_vocab, recipe.data.train = "it", trim, "text.txt"
    with pytest.raises(MattaError, match="The tokenizer in 'it' cannot be opened"):
        convert(recipe, Path("out"))
    assert not Path("out").exists()


def test_two_tokenizers_in_a_folder_are_said(tmp_path):
    byte_tokenizer([prose(50)], 280).save_pretrained(tmp_path)
    assert two_formats(tmp_path) == ""
    known = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    (tmp_path / "vocab.json").write_text(json.dumps(known))
    assert two_formats(tmp_path) == ""  # the same twice
    (tmp_path / "vocab.json").write_text(json.dumps({**known, "more": 999}))
    assert "tokenizer.json is the one that is used" in two_formats(tmp_path)
    (tmp_path / "vocab.json").unlink()
    (tmp_path / "tokenizer.model").touch()
    assert "not tokenizer.model" in two_formats(tmp_path)


def test_two_chat_templates_in_a_folder_are_said(tmp_path):
    tokenizer = byte_tokenizer([prose(50)], 280)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path)
    assert two_templates(tmp_path) == ""
    card = tmp_path / "tokenizer_config.json"
    known = json.loads(card.read_text())
    card.write_text(json.dumps({**known, "chat_template": "{{ messages }}"}))
    assert two_templates(tmp_path) == ""  # the same twice
    card.write_text(json.dumps({**known, "chat_template": "{{ 1 }}"}))
    assert "that of chat_template.jinja is used" in two_templates(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == "{{ messages }}"


PROCESSORS = {
    "squash-bicubic": {"resample": 3, "size": {"height": 32, "width": 32}},
    "nearest": {"resample": 0, "size": {"height": 32, "width": 32}},
    "not-normalised": {"do_normalize": False, "size": {"height": 32, "width": 32}},
    "not-scaled": {
        "do_rescale": False,
        "image_mean": [120.0, 110.0, 100.0],
        "image_std": [60.0, 61.0, 62.0],
        "size": {"height": 32, "width": 32},
    },
    "other-factor": {"rescale_factor": 1 / 127.5, "size": {"height": 32, "width": 32}},
}


SIDE = {"height": 32, "width": 32}


def vit():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"intermediate_size": 16, "image_size": 32, "patch_size": 16, "num_labels": 3}
    return ViTForImageClassification(ViTConfig(**sizes, **more))


def picture(width=70, height=50):
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("how", PROCESSORS)
def test_pixels_are_those_of_the_models_own_processor(tmp_path, how):
    usual = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
    processor = ViTImageProcessor(**{**usual, **PROCESSORS[how]})
    processor.save_pretrained(tmp_path)
    image = picture()
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    prepare = Preparation(tmp_path, vit())
    made = prepare.input(prepare.pixels(image))
    scale = float(expected.max() - expected.min())
    assert (made - expected).abs().mean() < 0.01 * scale and not prepare.notes


def test_an_edge_and_a_crop_are_done(tmp_path):
    card = {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": 32, "resample": 2}
    card |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(card))
    prepare = Preparation(tmp_path, vit())
    image = picture(80, 40)  # whose edge is the one asked for
    middle = np.asarray(image)[4:36, 24:56].transpose(2, 0, 1)
    assert np.array_equal(prepare.pixels(image), middle)


OTHERS = {
    "dinov2": (BitImageProcessor, {"size": {"shortest_edge": 40}, "crop_size": SIDE}),
    "clip": (CLIPImageProcessor, {"size": {"shortest_edge": 32}, "crop_size": SIDE}),
    "siglip": (SiglipImageProcessor, {"size": SIDE}),
    "deit": (DeiTImageProcessor, {"size": {"height": 40, "width": 40}, "crop_size": SIDE}),
    "no resizing": (CLIPImageProcessor, {"do_resize": False, "crop_size": SIDE}),
}


@pytest.mark.parametrize("how", OTHERS)
@pytest.mark.parametrize("size", [(70, 50), (33, 90), (32, 32)])
def test_pixels_are_those_of_other_processors(tmp_path, how, size):
    kind, settings = OTHERS[how]
    processor = kind(**settings)
    processor.save_pretrained(tmp_path)
    image = picture(*size)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    prepare = Preparation(tmp_path, vit())
    made = prepare.input(prepare.pixels(image))
    scale = float(expected.max() - expected.min())
    assert (made - expected).abs().mean() < 0.01 * scale and not prepare.notes


@pytest.mark.parametrize(
    ("kind", "edge"), [("CLIPFeatureExtractor", True), ("DeiTFeatureExtractor", False), ("", True)]
)
def test_a_size_that_is_a_number_is_an_edge_to_some(tmp_path, kind, edge):
    """Files of old releases; CLIP's own are such."""
    card = {"size": 40, "crop_size": 32, "do_center_crop": True, "feature_extractor_type": kind}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(card))
    prepare = Preparation(tmp_path, vit())
    image = picture(80, 40)
    whole = image if edge else image.resize((40, 40), Image.Resampling.BILINEAR)
    left, top = ((side - 32) // 2 for side in whole.size)
    middle = np.asarray(whole.crop((left, top, left + 32, top + 32)), float).transpose(2, 0, 1)
    assert np.abs(prepare.pixels(image) - middle).mean() < 1


def test_a_model_of_any_size_takes_that_of_its_processor(tmp_path):
    """DINOv2's positions are of 518 pixels, and its classifiers read 224."""
    BitImageProcessor(size={"shortest_edge": 32}, crop_size=24).save_pretrained(tmp_path)
    any_size = vit()
    any_size.pretrained_cfg = {"input_size": (3, 32, 32), "fixed_input_size": False}
    prepare = Preparation(tmp_path, any_size)
    assert prepare.shape == (3, 24, 24) and not prepare.notes
    assert "makes images of 24 x 24" in Preparation(tmp_path, vit()).notes[0]


def test_what_a_processor_asks_for_and_is_not_done(tmp_path):
    assert "There is no preprocessor_config.json" in Preparation(tmp_path, vit()).notes[0]
    put(tmp_path, "preprocessor_config.json", size=48)
    assert "makes images of 48 x 48" in Preparation(tmp_path, vit()).notes[0]
    put(tmp_path, "preprocessor_config.json", do_flip_channel_order=True)
    with pytest.raises(MattaError, match="do_flip_channel_order"):
        Preparation(tmp_path, vit())
    put(tmp_path, "preprocessor_config.json", image_mean="half")
    with pytest.raises(MattaError, match="is damaged"):
        Preparation(tmp_path, vit())


@pytest.mark.parametrize("key", ["do_pad", "rescale_offset"])
def test_steps_that_are_not_done_are_refused(tmp_path, key):
    put(tmp_path, "preprocessor_config.json", size=SIDE, **{key: True})
    with pytest.raises(
        MattaError, match=f"^The model's preprocessor_config.json asks for {key}, which"
    ):
        Preparation(tmp_path, vit())


def test_a_processor_of_several_things_says_how_images_are_made(tmp_path):
    own = {"image_processor_type": "ViTImageProcessor", "size": SIDE, "resample": 2}
    given = {**own, "image_mean": [0.1] * 3, "image_std": [0.2] * 3}
    put(tmp_path, "processor_config.json", image_processor=given)
    made = Preparation(tmp_path, vit())
    assert made.mean.flatten().tolist() == pytest.approx([0.1] * 3) and made.notes == []
    put(tmp_path, "preprocessor_config.json", **own, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    assert list(AutoImageProcessor.from_pretrained(tmp_path).image_mean) == [0.1] * 3
    made = Preparation(tmp_path, vit())
    assert made.mean.flatten().tolist() == pytest.approx([0.1] * 3)
    assert "in two files how images are made: processor_config.json is used" in made.notes[0]


def test_a_teacher_whose_images_are_made_otherwise_is_said(tmp_path, monkeypatch):
    ours, theirs, elsewhere = tmp_path / "ours", tmp_path / "theirs", tmp_path / "elsewhere"
    for folder, resample in ((ours, 2), (theirs, 3), (elsewhere, 0)):
        folder.mkdir()
        ViTImageProcessor(resample=resample, size=32).save_pretrained(folder)
    monkeypatch.chdir(elsewhere)  # whose own file is nothing to the model
    model, teacher = vit(), vit()
    task = open_task("image_classification", Recipe())
    assert task.fit_teacher(teacher, theirs, model, ours) is teacher
    assert "bicubic" in task.notes[0] and "bilinear" in task.notes[0]
    assert torch.equal(Preparation(None, model).mean, Preparation(tmp_path, model).mean)


def test_a_model_in_a_folder_below_is_not_another(encoder_folder):
    """As old releases of sentence-transformers lay it out."""
    steps = [{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    (encoder_folder / "modules.json").write_text(json.dumps(steps))
    open_source(str(encoder_folder))
    put(encoder_folder, "0_Transformer/config.json", model_type="bert")
    with pytest.raises(MattaError, match=r"has its model in 0_Transformer, .* and save it anew"):
        open_source(str(encoder_folder))


@pytest.mark.parametrize(
    "key, value, wrong",
    [
        ("interpolation", "cubic", r"made by interpolation 'cubic', .* mend its config.json"),
        ("std", (0.5, 0, 0.5), r"divided by std \[0.5, 0.0, 0.5\]: mend that"),
    ],
)
def test_what_timm_cannot_do_with_images_is_told(key, value, wrong):
    model = timm.create_model("test_vit", num_classes=3)
    model.pretrained_cfg = {**model.pretrained_cfg, key: value}
    with pytest.raises(MattaError, match=wrong):
        Preparation(None, model)
