"""Tokenizers of kinds that people have: which class opens them, which texts become which tokens."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from matta_cli.errors import MattaError
from matta_cli.models.tokenizer import copy_companions, open_tokenizer
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.causal_lm.task import CausalLM
from tests.sample_text import CHATML, byte_tokenizer, prose

TEXT = "\n".join(prose(20, seed) for seed in range(20))  # more than two pieces of it
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}


def trained(bpe: Tokenizer, vocabulary: int, **more) -> PreTrainedTokenizerFast:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **more)


def blank_first():
    """As Llama 2's: a blank is put before each text, and blanks are letters."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.pre_tokenizer = pre_tokenizers.Split(Regex("▁[^▁]*"), "isolated")  # as the merges have it
    bpe.decoder = decoders.Replace("▁", " ")
    return trained(bpe, 400)


def prefixed():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return trained(bpe, 300)


def joining():
    """As GPT-4's, Qwen's and Llama 3's: a full stop and the line's end are one token."""
    bpe = Tokenizer(models.BPE())
    cut = Regex(r" ?\p{L}+| ?[^\s\p{L}]+[\r\n]*|\s*[\r\n]+|\s+")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(cut, "isolated"), bytes_])
    return trained(bpe, 300)


@pytest.mark.parametrize("make", [blank_first, prefixed, joining])
def test_a_text_in_pieces_is_the_tokens_of_the_whole(tmp_path, make):
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "t.txt").write_text(TEXT)
    recipe = Recipe()
    recipe.data.train = recipe.data.held_out = str(tmp_path / "t.txt")
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SIZES))
    data = CausalLM(recipe).data(tmp_path, model)
    assert data.train.tokens.tolist() == tokenizer(TEXT)["input_ids"]


@pytest.fixture
def qwen(tmp_path):
    """A model whose kind says the class of its tokenizer, which adds a token that it has no row
    for.
    """
    tokenizer = byte_tokenizer([prose(60)], 298, pad_token="<pad>")
    tokenizer.save_pretrained(tmp_path / "qwen")
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **SIZES))
    model.save_pretrained(tmp_path / "qwen")
    return model, tmp_path / "qwen"


def test_a_tokenizer_is_of_the_class_that_transformers_opens_beside_its_model(qwen, tmp_path):
    """Also where the model's configuration is not beside it yet, as while it is converted."""
    model, folder = qwen
    stock = AutoTokenizer.from_pretrained(folder)
    copy_companions(folder, tmp_path)
    own = open_tokenizer(tmp_path, "", 1000, model.config)
    assert type(own) is type(stock)
    assert own.backend_tokenizer.to_str() == stock.backend_tokenizer.to_str()


def test_added_tokens_without_a_row_are_said_and_refused_where_data_has_them(qwen, tmp_path):
    model, folder = qwen
    assert len(AutoTokenizer.from_pretrained(folder)) > model.config.vocab_size
    recipe, task = Recipe(), None
    rows = [
        {"prompt": "the cat", "completion": " sat on the mat"},
        {"prompt": "a", "completion": " b"},
    ]
    for name, text in (("t.txt", prose(60)), ("c.jsonl", "\n".join(map(json.dumps, rows)))):
        (tmp_path / name).write_text(text)
        recipe.data.train = recipe.data.held_out = str(tmp_path / name)
        task = CausalLM(recipe)
        data = task.data(folder, model)
        assert any("has no rows for 1 added tokens, such as <|endoftext|>" in n for n in data.notes)
        batch = data.train.batch([0, 1])
        assert int(batch["input_ids"].max()) < model.config.vocab_size
    (tmp_path / "t.txt").write_text(prose(60) + "<|endoftext|>")
    recipe.data.train = str(tmp_path / "t.txt")
    recipe.data.held_out = str(tmp_path / "t.txt")
    with pytest.raises(MattaError, match="makes the token 299, but the model's vocabulary is 299"):
        CausalLM(recipe).data(folder, model)


def test_padding_without_a_row_is_another_token(tmp_path):
    tokenizer = byte_tokenizer([prose(60)], 290)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path)
    rows = [
        {"prompt": "the cat", "completion": " sat on the mat"},
        {"prompt": "a", "completion": " b"},
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "p.jsonl").write_text('{"text": "the cat sat"}\n{"text": "the old dog came home"}')
    recipe = Recipe()
    recipe.data.train = recipe.data.held_out = str(tmp_path / "c.jsonl")
    recipe.data.passages = str(tmp_path / "p.jsonl")
    model = LlamaForCausalLM(LlamaConfig(vocab_size=290, **SIZES))
    data = CausalLM(recipe).data(tmp_path, model)
    for split in (data.train, data.held_out[1]):
        assert int(split.batch([0, 1])["input_ids"].max()) < 290


def test_several_chat_templates_come_along_and_one_is_the_default(tmp_path):
    tokenizer = byte_tokenizer([prose(60)], 290)
    tokenizer.chat_template = {"rag": CHATML, "tools": CHATML}
    tokenizer.save_pretrained(tmp_path / "a")
    (tmp_path / "b").mkdir()
    copy_companions(tmp_path / "a", tmp_path / "b")
    assert AutoTokenizer.from_pretrained(tmp_path / "b").chat_template == tokenizer.chat_template
    talk = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "cat"}]
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": talk}))
    recipe = Recipe()
    recipe.data.train = recipe.data.held_out = str(tmp_path / "c.jsonl")
    model = LlamaForCausalLM(LlamaConfig(vocab_size=290, **SIZES))
    with pytest.raises(MattaError, match=r"several chat templates \(rag, tools\), and none is"):
        CausalLM(recipe).data(tmp_path / "b", model)
