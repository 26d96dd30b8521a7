"""Tokens that models share: which tokenizers are the same, padded matrices, how documents begin."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import normalizers, processors
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from matta_cli.comparison.compare import Asked, evaluation
from matta_cli.conversion.convert import convert
from matta_cli.errors import MattaError
from matta_cli.losses import classes
from matta_cli.losses.targets import Logits, Sampled, Term
from matta_cli.models.tokenizer import around, same_tokens
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import task as open_task
from matta_cli.tasks.vocabulary import narrowed
from matta_cli.training.setup import opened
from matta_cli.training.teach import teach
from tests.sample_text import byte_tokenizer, prose

TEXT = prose(120)
TOKENS = 290


def gpt2(vocabulary=TOKENS, seed=0, width=16):
    torch.manual_seed(seed)
    sizes = {"n_positions": 32, "n_embd": width, "n_head": 2, "n_layer": 1}
    config = GPT2Config(vocab_size=vocabulary, **sizes, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    torch.nn.init.normal_(model.transformer.wte.weight, 0, 0.3)
    return model


def padded(model, rows=320):
    """The model with rows that nobody trained, and that would show in any loss."""
    model = GPT2LMHeadModel.from_pretrained(model) if isinstance(model, str) else model
    model.resize_token_embeddings(rows, mean_resizing=False)
    torch.nn.init.normal_(model.transformer.wte.weight.data[TOKENS:], 0, 3.0)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of models over one tokenizer, and of one over another."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = byte_tokenizer([TEXT], TOKENS)
    assert len(tokenizer) == TOKENS
    made = {"base": gpt2(), "teacher": gpt2(seed=1, width=24)}
    made |= {"base-padded": padded(gpt2()), "teacher-padded": padded(gpt2(seed=1, width=24))}
    for name, model in made.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    shutil.copytree(folder / "teacher", folder / "other")
    card = json.loads((folder / "other" / "tokenizer.json").read_text())
    names = list(card["model"]["vocab"])
    card["model"]["vocab"] = dict(zip(names, [0, *range(len(names) - 1, 0, -1)], strict=True))
    (folder / "other" / "tokenizer.json").write_text(json.dumps(card))
    made["teacher"].save_pretrained(folder / "bare")
    (folder / "t.txt").write_text(TEXT)
    return folder


def recipe_of(models, teacher="", base="base"):
    recipe = Recipe()
    recipe.convert.source, recipe.data.train = str(models / base), str(models / "t.txt")
    recipe.data.sequence_length, recipe.distill.batch_size = 16, 4
    recipe.distill.teacher, recipe.distill.allow_weak_teacher = str(models / teacher), True
    return recipe


def setup_of(models, tmp_path, teacher, base="base", said=None):
    recipe = recipe_of(models, teacher, base)
    convert(recipe, tmp_path / "o", overwrite=True)
    messages = [] if said is None else said
    device = torch.device("cpu")
    return opened(recipe, tmp_path / "o", device, listen=lambda p: messages.append(p.message))


def test_another_tokenizer_of_the_same_size_is_refused_with_both_named(models, tmp_path):
    with pytest.raises(MattaError, match=r"tokenizer \(.*other\) is another .*\(.*o/ta\)"):
        setup_of(models, tmp_path, "other")
    with pytest.raises(MattaError, match="is another one than the model's"):
        teach(recipe_of(models, "other"), tmp_path / "o", tmp_path / "said")
    asked = Asked([str(models / "base"), str(models / "other")])
    with pytest.raises(MattaError, match="have different tokenizers"):
        evaluation(recipe_of(models), asked, tmp_path / "none")


def test_a_teacher_without_a_tokenizer_is_assumed_to_have_the_models(models, tmp_path):
    said: list[str] = []
    setup_of(models, tmp_path, "bare", said=said)
    assert any("its tokens are assumed to be the model's" in message for message in said)


def test_a_teachers_padding_changes_no_loss_and_no_file(models, tmp_path):
    losses, files = [], []
    for name in ("teacher", "teacher-padded"):
        setup = setup_of(models, tmp_path, name)
        batch = setup.data.train.batch([0, 1])
        target = setup.teacher(batch, [0, 1])
        terms = [Term("truth", 0.1), Term("teacher", 0.9, target)]
        logits = setup.task.forward(setup.ta.model, batch)
        losses.append(setup.task.objective(Logits(logits), batch, terms)[0])
        files.append(teach(recipe_of(models, name), tmp_path / "o", tmp_path / name, k=8))
    assert torch.equal(*losses)
    cards = [json.loads((file / "teacher.json").read_text()) for file in files]
    assert cards[0]["digests"] == cards[1]["digests"] and cards[0]["outputs"] == TOKENS


def test_a_models_padding_is_left_out_where_the_teacher_has_none(models, tmp_path):
    said: list[str] = []
    setup = setup_of(models, tmp_path, "teacher", "base-padded", said)
    assert any("320" in m and f"the first {TOKENS} are used" in m for m in said)
    batch = setup.data.train.batch([0, 1])
    term = [Term("teacher", 1.0, setup.teacher(batch, [0, 1]))]
    logits = setup.task.forward(setup.ta.model, batch)
    assert logits.shape[-1] == 320
    whole = setup.task.objective(Logits(logits), batch, term)[0]
    assert torch.allclose(whole, setup.task.objective(Logits(logits[..., :TOKENS]), batch, term)[0])
    # a file of the same Teacher says the same
    recipe = recipe_of(models, "teacher", "base-padded")
    file = teach(recipe, tmp_path / "o", tmp_path / "said", k=TOKENS - 1)
    recipe.distill.teacher = str(file)
    by_file = opened(recipe, tmp_path / "o", torch.device("cpu"))
    target = by_file.teacher(batch, [0, 1])
    assert isinstance(target, Sampled) and target.classes == TOKENS
    term = [Term("teacher", 1.0, target)]
    assert torch.allclose(setup.task.objective(Logits(logits), batch, term)[0], whole, atol=1e-3)


def test_eval_and_speculative_use_the_common_rows(models, tmp_path):
    recipe = recipe_of(models)
    recipe.data.held_out, recipe.export.bootstrap = recipe.data.train, 2
    names = ["base-padded", "teacher", "teacher-padded", "base"]
    folders = [str(models / name) for name in names]
    asked = Asked(folders, speculative=folders[:2])
    said: list[str] = []
    found = evaluation(recipe, asked, tmp_path / "none", said.append)
    assert any(f"{TOKENS:,} rows in {folders[1]}" in note for note in said)
    perplexity = [m["metrics"]["perplexity"]["value"] for m in found["models"]]
    assert perplexity[1] == pytest.approx(perplexity[2]) and perplexity[0] == pytest.approx(
        perplexity[3]
    )
    assert found["speculative"]["identical"] == 1


@pytest.mark.parametrize("whole", [True, False])
def test_a_narrower_target_is_followed_in_its_classes(whole):
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    target, labels = Logits(torch.randn(5, 7)), torch.tensor([1, 8, 2, 0, 3])
    product = hidden @ weight.T
    logits = Logits(product) if whole else Logits(hidden, weight)
    over = classes.counts(labels)
    terms = [Term("truth", 0.3), Term("teacher", 0.7, target)]
    classes.of_classes(logits, labels, terms, over, 2.0)[0].backward()
    gradients = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    product = hidden @ weight.T
    truth = torch.nn.functional.cross_entropy(product, labels)
    log_p = torch.log_softmax(product[:, :7] / 2, -1)
    log_q = torch.log_softmax(target.hidden / 2, -1)
    (0.3 * truth + 0.7 * 4 * (log_q.exp() * (log_q - log_p)).sum() / 5).backward()
    assert all(
        map(lambda a, b: torch.allclose(a, b, atol=1e-6), gradients, (hidden.grad, weight.grad))
    )


def test_a_narrowed_model_shares_its_weights_and_generates():
    model = padded(gpt2())
    few = narrowed(model, TOKENS)
    ids = torch.arange(8)[None]
    assert torch.equal(few(ids).logits, model(ids).logits[..., :TOKENS])
    assert few.lm_head.weight.data_ptr() == model.lm_head.weight.data_ptr()
    assert model.config.vocab_size == 320 and model.lm_head.weight.shape[0] == 320
    made = few.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert int(made.max()) < TOKENS


def test_which_tokenizers_are_the_same():
    one = byte_tokenizer([TEXT], TOKENS)

    def copy(change=None, **more):
        again = byte_tokenizer([TEXT], TOKENS, **more)
        if change:
            change(again.backend_tokenizer)
        return again

    assert same_tokens(one, copy(lambda b: b.enable_padding(length=9)))
    assert same_tokens(one, copy(model_max_length=7))
    more = copy()
    more.add_tokens(["<|user|>"])
    assert same_tokens(one, more) and same_tokens(more, one)
    lower = copy(lambda b: setattr(b, "normalizer", normalizers.Lowercase()))
    assert not same_tokens(one, lower)
    assert not same_tokens(one, byte_tokenizer([TEXT[::-1]], TOKENS))
    assert not same_tokens(one, byte_tokenizer([TEXT], TOKENS, end="<|other|>"))
    begun = copy(lambda b: setattr(b, "post_processor", BEGIN))
    assert same_tokens(one, begun) and not same_tokens(one, begun, whole=True)


BEGIN = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])


def begun(folder: Path, begin: str, end: str = "<|end|>", **more):
    """A tokenizer in ``folder`` whose call puts a token before each text."""
    tokenizer = byte_tokenizer([TEXT], TOKENS - (begin != "<|end|>"))
    if begin != end:
        tokenizer.add_special_tokens({"bos_token": begin})
    first = tokenizer.convert_tokens_to_ids(begin)
    template = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, first)])
    tokenizer.backend_tokenizer.post_processor = template
    tokenizer.save_pretrained(folder)
    return first


def rows_of(models, folder, text):
    (folder / "h.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in text))
    recipe = recipe_of(models)
    recipe.data.train = recipe.data.held_out = str(folder / "h.jsonl")
    task = open_task("causal_lm", recipe)
    data = task.data(folder, gpt2())
    return task, data, data.train.batch(range(len(data.train)))["input_ids"].flatten()


def test_documents_begin_as_the_tokenizer_begins_them(models, tmp_path):
    documents = [TEXT[:300], TEXT[300:700], TEXT[700:900]]
    shutil.copytree(models / "base", tmp_path, dirs_exist_ok=True)
    first = begun(tmp_path, "<s>")
    task, data, ids = rows_of(models, tmp_path, documents)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert around(tokenizer) == ([first], [])
    assert "these, and documents, begin with <s>" in data.description
    own = tokenizer(documents, add_special_tokens=False)["input_ids"]
    stream = [token for document in own for token in (first, *document, 0)]
    # so do sequences, in a document's midst too, but not twice
    starts = [15 * k + (stream[15 * k] == first) for k in range(len(stream) // 15)]
    assert ids.tolist() == [token for k in starts for token in (first, *stream[k : k + 15])]
    assert starts[0] == 1 and len(starts) > 16
    # nobody has to predict what is always there
    batch = data.train.batch(range(len(data.train)))
    asked = batch["input_ids"][:, 1:] != first
    asked[:, 0] = False  # nor the first of the text, of which nothing is known
    assert task.items(batch) == int(asked.sum()) < asked.numel()
    logits = torch.zeros(*batch["input_ids"].shape, TOKENS)
    assert task.score(logits, batch)["tokens"].sum() == task.items(batch)
    loss = task.loss(logits, batch)
    assert float(loss) == pytest.approx(math.log(TOKENS), rel=1e-5)
    passages = data.held_out[1].batch([0])["input_ids"]
    assert int(passages[0, 0]) == first


def test_an_end_that_is_a_beginning_too_stands_once(models, tmp_path):
    documents = [TEXT[:300], TEXT[300:700]]
    shutil.copytree(models / "base", tmp_path, dirs_exist_ok=True)
    begun(tmp_path, "<|end|>")
    task, _, ids = rows_of(models, tmp_path, documents)
    assert bool((ids[::16] == 0).all()) and task.given == []
    assert int((ids == 0).sum()) == len(ids) // 16 + 1
