"""Conversations: which tokens are predicted, what is learned of them, what is refused."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)
from typer.testing import CliRunner

from matta_cli.data import find
from matta_cli.errors import MattaError
from matta_cli.files.workspace import Workspace
from matta_cli.losses.targets import Logits, Term
from matta_cli.main import app
from matta_cli.measure import score
from matta_cli.settings.checks import check
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.causal_lm import conversations
from matta_cli.tasks.causal_lm.task import CausalLM
from matta_cli.training.setup import opened
from tests.sample_text import CHATML, byte_tokenizer, prose

# as Llama 2: turns alternate, the assistant's begins with a blank, and nothing opens it
LLAMA2 = (
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant/user.') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TAGGED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
)
# forgets what the assistant said before its last turn, as templates of thinking models do
FORGETS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] != 'assistant' or loop.last %}{{ message['content'] }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# says that there are no thoughts, but in the last turn alone, as Qwen 3's
THINKS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENS = 300
TALK = [
    {"role": "user", "content": "the cat sat"},
    {"role": "assistant", "content": "on the mat"},
    {"role": "user", "content": "and then one"},
    {"role": "assistant", "content": "old dog came home"},
]
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "feed", "arguments": "{}"}}]}


def tokenizer_of(template=CHATML):
    tokenizer = byte_tokenizer([prose(60)], TOKENS - 2)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def gpt2(seed=0, width=16, positions=128):
    torch.manual_seed(seed)
    sizes = {"n_positions": positions, "n_embd": width, "n_head": 2, "n_layer": 2}
    sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(vocab_size=TOKENS, **sizes, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    torch.nn.init.normal_(model.transformer.wte.weight, 0, 0.3)
    return model


def talks(count, seed=0):
    """Conversations of one to three turns, of words by chance."""
    lines, rng = prose(count * 6, seed).splitlines(), np.random.default_rng(seed)
    rows = []
    for k in range(count):
        turns = int(rng.integers(1, 4))
        said = [line[: int(rng.integers(4, 25))].strip() for line in lines[6 * k : 6 * k + 6]]
        messages = [
            {"role": ("user", "assistant")[i % 2], "content": said[i]} for i in range(2 * turns)
        ]
        rows.append({"messages": messages})
    return rows


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(**data):
    found = Recipe()
    found.update({"data": {"sequence_length": 96, **data}}, "test")
    return found


def task_of(tmp_path, rows, template=CHATML, held_out=None, **data):
    """A task, its data, and the folder of its tokenizer."""
    tokenizer_of(template).save_pretrained(tmp_path / "tokenizer")
    path = written(tmp_path / "talk.jsonl", rows)
    held_out = written(tmp_path / "test.jsonl", rows[:1] if held_out is None else held_out)
    task = CausalLM(recipe(train=str(path), held_out=str(held_out), **data))
    return task, task.data(tmp_path / "tokenizer", gpt2())


def shown(batch, row=0):
    """The predicted tokens of an example as text, with | between those that are not neighbours."""
    ids, predicted = batch["input_ids"][row], batch["predicted"][row]
    text, before, tokenizer = "", True, tokenizer_of()
    for token, own in zip(ids.tolist(), predicted.tolist(), strict=True):
        if own:
            text += ("" if before else "|") + tokenizer.decode([token])
        before = own
    return text.removeprefix("|")


@pytest.mark.parametrize(
    "template, expected",
    [
        (CHATML, "on the mat<|im_end|>\n|old dog came home<|im_end|>\n"),
        (LLAMA2, " on the mat <|end|>| old dog came home <|end|>"),
        (TAGGED, "on the mat<|im_end|>|old dog came home<|im_end|>"),
        (THINKS, "on the mat<|im_end|>\n|<think>\n\n</think>\n\nold dog came home<|im_end|>\n"),
    ],
    ids=["chatml", "llama2", "tags", "thinks"],
)
def test_what_the_assistant_says_is_predicted(tmp_path, template, expected):
    """In all of its turns, with the token that ends each."""
    task, data = task_of(tmp_path, [{"messages": TALK}], template)
    batch = data.train.batch([0])
    assert shown(batch) == expected
    # the tokens are those of transformers
    own = batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist()
    stock = tokenizer_of(template)
    assert own == stock(stock.apply_chat_template(TALK, tokenize=False))["input_ids"]
    assert task.counts(batch) == {
        "labels": int(batch["predicted"].sum()),
        "outputs": int(batch["predicted"].sum()),
    }


def test_tools_that_the_assistant_calls_are_predicted(tmp_path):
    writes = CHATML.replace(
        "{{ message['content'] }}",
        "{{ message['content'] }}{% for call in "
        "message.get('tool_calls', []) %}{{ call.function.name }}{% endfor %}",
    )
    _, data = task_of(tmp_path, [{"messages": [TALK[0], {**CALL, "content": None}]}], writes)
    assert shown(data.train.batch([0])) == "feed<|im_end|>\n"


def test_prompts_and_completions(tmp_path):
    """Strings are put together, with the end token; messages go through the template."""
    rows = [{"prompt": "the cat sat", "completion": " on the mat"}]
    _, data = task_of(tmp_path, rows, template=None)
    batch = data.train.batch([0])
    assert shown(batch) == " on the mat<|end|>"
    assert any("'prompt' and 'completion'" in note for note in data.notes)
    rows = [{"prompt": TALK[:3], "completion": TALK[3:]}]
    assert shown(task_of(tmp_path, rows)[1].train.batch([0])) == "old dog came home<|im_end|>\n"
    _, data = task_of(tmp_path, [{"messages": TALK}], train_on="all")
    batch = data.train.batch([0])
    assert int(batch["predicted"].sum()) == int(batch["attention_mask"].sum()) - 1


ALIKE = {
    "sharegpt": {
        "conversations": [
            {"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]}
            for m in TALK
        ]
    },
    "conversation": {"conversation": TALK},
    "parts": {
        "messages": [
            {
                **m,
                "content": [
                    {"type": "text", "text": t} for t in (m["content"][:3], m["content"][3:])
                ],
            }
            for m in TALK
        ]
    },
}


@pytest.mark.parametrize("name", ALIKE)
def test_other_ways_to_write_messages(tmp_path, name):
    """Columns and words of ShareGPT's, and contents in parts of text."""
    batch = task_of(tmp_path, [ALIKE[name]])[1].train.batch([0])
    same = task_of(tmp_path, [{"messages": TALK}])[1].train.batch([0])
    assert all(batch[key].equal(same[key]) for key in same)


@pytest.mark.parametrize("template", [CHATML, LLAMA2, TAGGED, THINKS])
@pytest.mark.parametrize("turn", [1, 3])
def test_turns_of_weight_0_are_not_learned(tmp_path, template, turn):
    """As OpenAI's files mark them; the tokens stay the same."""
    whole = task_of(tmp_path, [{"messages": TALK}], template)[1].train.batch([0])
    talk = [{**m, "weight": int(k != turn)} if k % 2 else m for k, m in enumerate(TALK)]
    rows = [{"messages": talk}, {"messages": [*TALK[:1], {**TALK[1], "weight": 0}]}]
    _, data = task_of(tmp_path, rows, template, held_out=rows[:1])
    batch = data.train.batch([0])
    assert batch["input_ids"].equal(whole["input_ids"])
    both = whole["predicted"][0].int()
    second = (both.diff(prepend=both[:1]) > 0).cumsum(0) == 2
    assert batch["predicted"][0].equal(whole["predicted"][0] & (second if turn == 1 else ~second))
    assert any("1 whose assistant's turns all have weight 0" in note for note in data.notes)
    half = [{"messages": [TALK[0], {**TALK[1], "weight": 0.5}]}]
    with pytest.raises(
        MattaError, match=r"line 1 of weight 0\.5: only 0 \(not to be learned\) and 1"
    ):
        task_of(tmp_path, half, template)


def test_of_completions_only_what_the_assistant_says_is_predicted(tmp_path):
    rows = [{"prompt": TALK[:1], "completion": TALK[1:]}]
    expected = "on the mat<|im_end|>\n|old dog came home<|im_end|>\n"
    assert shown(task_of(tmp_path, rows)[1].train.batch([0])) == expected
    rows = [{"prompt": TALK[:3], "completion": TALK[3:]}]
    assert (
        shown(task_of(tmp_path, rows, TAGGED)[1].train.batch([0])) == "old dog came home<|im_end|>"
    )
    with pytest.raises(MattaError, match="1 without an assistant's turn that answers"):
        task_of(tmp_path, [{"prompt": TALK[:2], "completion": TALK[2:3]}])


def test_columns_that_are_neither_text_nor_conversations_are_refused(tmp_path):
    rows = [{"instruction": "the cat", "output": "sat"}]
    with pytest.raises(
        MattaError, match=r"no column 'text'; it has instruction, output\. .* Those of"
    ):
        task_of(tmp_path, rows)


def stock_losses(model, teacher, tokenizer, messages, temperature):
    """The sums of cross-entropy and divergence of one conversation's completions, by hand."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer(text)["input_ids"]
    targets = []
    for k, message in enumerate(messages):
        if message["role"] == "assistant":
            before = tokenizer.apply_chat_template(
                messages[:k], tokenize=False, add_generation_prompt=True
            )
            until = tokenizer.apply_chat_template(messages[: k + 1], tokenize=False)
            first, last = (len(tokenizer(part)["input_ids"]) for part in (before, until))
            targets += range(first, last)
    with torch.no_grad():
        own = model(torch.tensor([ids])).logits[0].double()
        other = teacher(torch.tensor([ids])).logits[0].double()
    at = torch.tensor(targets) - 1
    truth = F.cross_entropy(own[at], torch.tensor(ids)[at + 1], reduction="sum")
    log_p, log_q = (F.log_softmax(z[at] / temperature, -1) for z in (own, other))
    kl = F.kl_div(log_p, log_q, log_target=True, reduction="sum") * temperature**2
    return truth.item(), kl.item(), len(targets)


def test_losses_and_perplexity_are_those_of_each_conversation_alone(tmp_path):
    """Of stock transformers, without padding, averaged over all tokens of completions."""
    rows = talks(6)
    task, data = task_of(tmp_path, rows, held_out=rows)
    task.recipe.distill.temperature = 2.0
    model, teacher = gpt2(), gpt2(seed=1)
    batch = data.train.batch(range(6))
    logits = task.forward(model, batch).detach().requires_grad_()
    terms = [
        Term("truth", 0.5),
        Term("teacher", 2.0, Logits(task.forward(teacher, batch).detach())),
    ]
    total, values = task.objective(Logits(logits), batch, terms)
    total.backward()
    each = [stock_losses(model, teacher, tokenizer_of(), row["messages"], 2.0) for row in rows]
    truth, kl, count = (sum(column) for column in zip(*each, strict=True))
    assert values["truth"].item() == pytest.approx(truth / count, rel=1e-5)
    assert values["teacher"].item() == pytest.approx(kl / count, rel=1e-4)
    assert (logits.grad.abs().sum(-1) > 0).equal(task.taught(batch))
    # the same in parts, as micro-batches and processes have it
    over = task.counts(batch)
    parts = [data.train.batch([0, 1]), data.train.batch([2, 3, 4, 5])]
    sums = [
        task.objective(Logits(task.forward(model, part)), part, [Term("truth", 1.0)], over)[0]
        for part in parts
    ]
    assert sum(sums).item() == pytest.approx(truth / count, rel=1e-5)
    columns = score.columns(task, model, data.held_out[0], 4, torch.device("cpu"))
    found = task.summarize(columns)
    assert found["perplexity"] == pytest.approx(math.exp(truth / count), rel=1e-5)


SIZES = {"vocab_size": TOKENS, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
SIZES |= {"intermediate_size": 32, "max_position_embeddings": 128, "pad_token_id": None}
GEMMA = {**SIZES, "head_dim": 8, "num_key_value_heads": 2, "sliding_window": 8}
MODELS = {
    "gpt2": gpt2,
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    # windows that are shorter than the conversations
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GEMMA)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SIZES, sliding_window=8)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**(SIZES | {"ffn_dim": 32, "word_embed_proj_dim": 16, "pad_token_id": 1}))
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_nothing(tmp_path, name):
    """A conversation among longer ones has the outputs that it has alone, without padding."""
    task, data = task_of(tmp_path, talks(5))
    torch.manual_seed(0)
    model, batch = MODELS[name]().eval(), data.train.batch(range(5))
    with torch.no_grad():
        padded = task.forward(model, batch)
        for row, mask in enumerate(batch["attention_mask"].bool()):
            alone = model(batch["input_ids"][row][mask][None]).logits[0]
            assert torch.allclose(padded[row][mask], alone, atol=1e-5)
    assert (batch["attention_mask"] == 0).any()


def test_long_conversations_are_cut_and_those_of_prompt_alone_are_left_out(tmp_path):
    long = [{"role": "user", "content": "the cat sat"}]
    long += [{"role": "assistant", "content": "on the mat " * 20}]
    full = [{"role": "user", "content": "the cat sat " * 40}, TALK[1]]
    rows = [{"messages": messages} for messages in (TALK[:2], long, full)]
    _, data = task_of(tmp_path, rows, sequence_length=48)
    assert len(data.train) == 2 and data.train.keys([0, 1]).tolist() == [0, 1]
    batch = data.train.batch([0, 1])
    assert batch["attention_mask"].sum(1).tolist()[1] == 48
    notes = "\n".join(data.notes)
    assert "1 of the conversations were longer than 48 tokens" in notes
    assert "1 whose prompt alone fills 48 tokens (the first: line 3)" in notes


ODD = {
    "no turn": ([TALK[0]], "1 without an assistant's turn"),
    "nothing": (None, "1 without messages"),
    "empty": ([TALK[0], {"role": "assistant", "content": " "}], "1 with an assistant's turn that"),
    "none": ([{"role": "user", "content": None}, TALK[1]], "1 with a message without content"),
    # what the template leaves out would teach to say nothing
    "calls": ([TALK[0], {**CALL, "content": None}], "1 whose tool calls the chat template does"),
    "tool": ([{"role": "tool", "content": "4"}, TALK[1]], "Roles must alternate"),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_rows_are_left_out_and_counted(tmp_path, odd):
    messages, told = ODD[odd]
    rows = [{"messages": TALK}, {"messages": messages}]
    _, data = task_of(tmp_path, rows, LLAMA2)
    assert len(data.train) == 1
    assert any(told in note and "line 2" in note for note in data.notes), data.notes
    with pytest.raises(MattaError, match="holds no conversation to learn or measure: "):
        task_of(tmp_path, [{"messages": messages}], LLAMA2)


WRONG = {
    "text": ("the cat", "'messages' holds text in line 2, not a list of messages"),
    "strings": (["the cat"], "not an object with a role and a content"),
    "no role": ([{"by": "human", "value": "the cat"}], "with a role and a content"),
    "parts": ([{"role": "user", "content": [{"type": "text"}]}], "whose content is a list, not"),
    "number": ([{"role": "user", "content": 7}], "whose content is a number, not text"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_rows_of_another_kind_are_refused(tmp_path, wrong):
    messages, told = WRONG[wrong]
    with pytest.raises(MattaError) as caught:
        task_of(tmp_path, [{"messages": TALK}, {"messages": messages}])
    assert told in str(caught.value) and "talk.jsonl" in str(caught.value)


@pytest.mark.parametrize("value", [0, 7, False])
def test_a_completion_that_is_no_text_is_refused(tmp_path, value):
    rows = [{"prompt": "a", "completion": own} for own in (" b", value)]
    with pytest.raises(MattaError, match=r"hold text and (a number|true or false) in line 2: give"):
        task_of(tmp_path, rows, template=None)


def test_what_no_template_can_tell_is_refused(tmp_path):
    with pytest.raises(MattaError, match="the model's tokenizer has no chat template"):
        task_of(tmp_path, [{"messages": TALK}], template=None)
    with pytest.raises(MattaError, match="makes other text of the first 2 messages of line 1"):
        task_of(tmp_path, [{"messages": TALK}], FORGETS)
    task_of(tmp_path, [{"messages": TALK}], FORGETS, train_on="all")
    with pytest.raises(MattaError, match="text and messages in line 1"):
        task_of(tmp_path, [{"prompt": "the cat", "completion": TALK[1:2]}])
    with pytest.raises(MattaError, match=r"holds text.*both must be of one kind"):
        task_of(tmp_path, [{"messages": TALK}], held_out=[{"text": prose(9)}])
    with pytest.raises(MattaError, match="--train-on 'prompts' is not known: completions, all"):
        check(recipe(train_on="prompts").data)


def test_tokens_to_train_on_are_limited_and_what_is_repeated_is_counted(tmp_path):
    rows = talks(6)
    _, data = task_of(tmp_path, rows, held_out=[rows[3], *talks(2, seed=9)])
    assert any("1 held-out conversations also stand" in note for note in data.notes)
    lengths = data.train.batch(range(6))["attention_mask"].sum(1).tolist()
    _, data = task_of(tmp_path, rows, max_tokens=sum(lengths[:2]) + 1)
    assert len(data.train) == 2


def test_the_last_tenth_is_held_out(tmp_path):
    tokenizer_of().save_pretrained(tmp_path / "tokenizer")
    path = written(tmp_path / "talk.jsonl", talks(20))
    data = CausalLM(recipe(train=str(path))).data(tmp_path / "tokenizer", gpt2())
    assert (len(data.train), len(data.held_out[0])) == (18, 2)
    assert sorted(data.held_out[0].keys([0, 1])) == [18, 19]


def test_other_columns_are_named_and_text_comes_first(tmp_path):
    _, data = task_of(tmp_path, [{"id": 7, "messages": TALK}])
    assert any("columns read: messages; not read: id." in note for note in data.notes)
    _, data = task_of(tmp_path, [{"text": prose(30), "messages": TALK}])
    assert set(data.train.batch([0])) == {"input_ids"}


def test_a_template_writes_the_same_date_each_day(tmp_path):
    dated = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
    _, data = task_of(tmp_path, [{"messages": TALK}], dated)
    text = tokenizer_of().decode(data.train.batch([0])["input_ids"][0])
    assert text.startswith("26 Jul 2024\n<|im_start|>user")


def test_parquet_and_folders(tmp_path):
    """Messages of one shape, as Parquet has them, with None in what a message does not have."""
    folder = tmp_path / "talks"
    folder.mkdir()
    messages = [[*TALK[:1], {**TALK[1], "name": "cat"}], TALK]
    pyarrow.parquet.write_table(pa.table({"messages": messages}), folder / "train.parquet")
    written(folder / "test.jsonl", [{"messages": TALK}])
    tokenizer_of().save_pretrained(tmp_path / "tokenizer")
    task = CausalLM(recipe(train=str(folder)))
    data = task.data(tmp_path / "tokenizer", gpt2())
    assert (len(data.train), len(data.held_out[0])) == (2, 1)
    assert shown(data.train.batch([0])) == "on the mat<|im_end|>\n"


def test_datasets_reads_what_a_folder_of_the_hub_holds(tmp_path, monkeypatch):
    """As a hub id does: the same examples as by matta's own reading of the folder."""
    folder, tokens = tmp_path / "talks", tmp_path / "tokenizer"
    (folder / "data").mkdir(parents=True)
    for part, count in (("train", 6), ("test", 2)):
        table = pa.Table.from_pylist([{"id": 7, **row} for row in talks(count)])
        pyarrow.parquet.write_table(table, folder / "data" / f"{part}-00000-of-00001.parquet")
    files = [f"{{split: {part}, path: data/{part}-*}}" for part in ("train", "test")]
    card = f"configs:\n- config_name: default\n  data_files: [{', '.join(files)}]"
    (folder / "README.md").write_text(f"---\n{card}\n---\n# Talks\n")
    tokenizer_of().save_pretrained(tokens)
    own = CausalLM(recipe(train=str(folder))).data(tokens, gpt2())
    found = find.find
    monkeypatch.setattr(
        find, "find", lambda name, flag: None if name == "it" else found(name, flag)
    )
    opened, cached = datasets.load_dataset, str(tmp_path / "cache")
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, _: opened(str(folder), cache_dir=cached)
    )
    hub = CausalLM(recipe(train="it")).data(tokens, gpt2())
    assert (len(hub.train), len(hub.held_out[0])) == (6, 2)
    assert hub.train.digest() == own.train.digest()
    assert hub.held_out[0].digest() == own.held_out[0].digest()
    assert any("columns read: messages; not read: id." in n for n in hub.notes), hub.notes


def test_large_files_are_read_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MATTA_CACHE", str(tmp_path / "cache"))
    rows = [*talks(8), {"messages": None}]
    small = task_of(tmp_path, rows)[1]
    monkeypatch.setattr(conversations, "_IN_MEMORY", 0)
    first = task_of(tmp_path, rows)[1]
    monkeypatch.setattr(conversations.Chat, "encoded", None)  # is not called again
    task = CausalLM(
        recipe(train=str(tmp_path / "talk.jsonl"), held_out=str(tmp_path / "test.jsonl"))
    )
    again = task.data(tmp_path / "tokenizer", gpt2())
    assert small.train.digest() == first.train.digest() == again.train.digest()
    assert small.notes == first.notes == again.notes


def run(line):
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A base, a Teacher and conversations to train and measure on, in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    for name, model in {"base": gpt2(), "teacher": gpt2(seed=1, width=24)}.items():
        model.save_pretrained(name)
        tokenizer_of().save_pretrained(name)
    written(tmp_path / "talk.jsonl", talks(40))
    written(tmp_path / "test.jsonl", talks(12, seed=1))
    return tmp_path


DATA = "--data talk.jsonl --held-out test.jsonl --sequence-length 128"
RUN = f"{DATA} --steps 4 --batch-size 8 --lr 1e-2 --allow-weak-teacher --widths 0.5,1.0"


def terms(out):
    lines = (out / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["terms"] for line in lines if "terms" in json.loads(line)]


def close(one, other, tolerance):
    for a, b in zip(one, other, strict=True):
        for model, values in a.items():
            assert values == pytest.approx(b[model], rel=tolerance)


def test_a_run_on_conversations(folder):
    """Divided rows, micro-batches, and going on are those of other data."""
    run("convert base --data talk.jsonl --sequence-length 128 --expand 1 --out a")
    shutil.copytree("a", "b")
    run(f"distill --out a --teacher teacher {RUN} --save-every 2")
    run(f"distill --out b --teacher teacher {RUN} --micro-batch 2")
    close(terms(folder / "a"), terms(folder / "b"), 1e-4)
    last = Workspace(folder / "a").checkpoint(4)
    weights = (last / "model.safetensors").read_bytes()
    shutil.rmtree(last)
    run("distill --out a --resume")
    assert (last / "model.safetensors").read_bytes() == weights


def test_compiled_training_makes_no_graph_for_each_length(folder):
    (folder / "compiled.toml").write_text("[distill]\ncompile = 'aot_eager'\n")
    run("convert base --data talk.jsonl --sequence-length 128 --expand 1 --out a")
    shutil.copytree("a", "b")
    run(f"distill --out a --teacher teacher {RUN}")
    run(f"distill --out b --teacher teacher {RUN} --config compiled.toml")
    close(terms(folder / "a"), terms(folder / "b"), 1e-4)
    lines = (folder / "b" / "run" / "metrics.jsonl").read_text().splitlines()
    assert len({json.loads(line)["graphs"] for line in lines}) == 1


def test_eval_measures_completions(folder):
    result = json.loads(
        run(f"eval base --teacher teacher {DATA} --json --bootstrap 20 --batch-size 4").stdout
    )
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    each = [stock_losses(gpt2(), gpt2(), tokenizer_of(), row["messages"], 1.0) for row in rows]
    truth, _, count = (sum(column) for column in zip(*each, strict=True))
    models = {own["name"]: own for own in result["models"]}
    found = models["base"]["metrics"]["perplexity"]["value"]
    assert found == pytest.approx(math.exp(truth / count), rel=1e-4)
    assert 0 <= models["base"]["agreement"]["teacher"]["value"] < 1


def setup_of(teacher, out="a", **distill):
    """What a run of ``out`` with this Teacher works with, and its first step's examples."""
    found = recipe(train="talk.jsonl", held_out="test.jsonl", sequence_length=128)
    found.update({"distill": {"allow_weak_teacher": True, "teacher": teacher, **distill}}, "test")
    return opened(found, Path(out), torch.device("cpu"))


def test_a_file_of_a_teacher_says_what_the_teacher_does(folder):
    """At the positions that are learned, whatever examples are in a batch."""
    run("convert base --data talk.jsonl --sequence-length 128 --expand 1 --out a")
    teach = f"teach --out a --teacher teacher {DATA} --allow-weak-teacher"
    run(f"{teach} --to said --draws 0 --top-k 299")
    run(f"{teach} --to drawn")
    run(f"distill --out a --teacher drawn {RUN} --micro-batch 3")
    model, file = setup_of("teacher"), setup_of("said")
    counts = [
        int(own["positions"].sum()) for own in map(load_file, Path("said").glob("*.safetens*"))
    ]
    assert sum(counts) == file.data.train.size()[1]
    rows = [7, 3, 11]
    batch, logits = file.data.train.batch(rows), None
    values = []
    for setup in (model, file):
        logits = Logits(setup.task.forward(setup.ta.model.eval(), batch).detach())
        terms = [Term("teacher", 1.0, setup.teacher(batch, rows))]
        values.append(setup.task.objective(logits, batch, terms)[1]["teacher"].item())
    assert values[0] == pytest.approx(values[1], rel=1e-3)
    with pytest.raises(MattaError, match="it was made for other examples"):
        written(Path("talk.jsonl"), talks(39))
        setup_of("said")


@pytest.mark.slow
def test_a_report_on_conversations(folder):
    run("convert base --data talk.jsonl --sequence-length 128 --expand 1 --out a")
    run(f"distill --out a --teacher teacher {RUN}")
    run("export --out a --widths 0.5,1.0")
    report = json.loads((folder / "a" / "report.json").read_text())
    assert "conversations' completions" in json.dumps(report)
