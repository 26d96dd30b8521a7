"""``convert --trim-vocab``: a text of kept tokens is what it was, and so is what a model makes."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import pytest
import torch
from encoder_models import encoder
from sample_text import byte_tokenizer
from test_adapters import gpt2
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import matta_cli
from matta_cli.conversion.convert import convert
from matta_cli.errors import MattaError
from matta_cli.family import export
from matta_cli.files.card import read_card
from matta_cli.models import trimming
from matta_cli.models.folders import load_ta
from matta_cli.models.left_out import NAME, LeftOut
from matta_cli.settings.recipe import Recipe
from matta_cli.students.card import left_out
from matta_cli.tasks.causal_lm.task import CausalLM
from matta_cli.training.run import distill

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]
ROLES = {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 3}
PARTS = ["ab", "ra", "ca", "da", "bra", "mo", "lo", "ki", "ta", "in", "ing", "er", "est", "un"]
PARTS += ["re", "is", "ü", "é", "日本", "語", "x1", "23"]


def words(count: int, seed: int = 0) -> list[str]:
    """Words that share parts, as those of a language do."""
    chance = random.Random(seed)
    return ["".join(chance.choices(PARTS, k=chance.randint(1, 4))) for _ in range(count)]


def texts(count: int, seed: int = 0) -> list[str]:
    chance, known = random.Random(seed), words(120)
    return [" ".join(chance.choices(known, k=chance.randint(8, 14))) for _ in range(count)]


def tokenizer(kind: str) -> Tokenizer:
    """One of a kind, trained on some texts; its special tokens begin and end a text."""
    given = {"special_tokens": SPECIAL, "show_progress": False, "vocab_size": 260}
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.train_from_iterator(texts(300), trainers.WordPieceTrainer(**given))
    elif kind.startswith("unigram"):
        made = Tokenizer(models.Unigram())
        made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        made.train_from_iterator(texts(300), trainers.UnigramTrainer(**given, unk_token="<unk>"))
    elif kind == "bpe":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        given |= {"vocab_size": 420, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
        made.train_from_iterator(texts(300), trainers.BpeTrainer(**given))
    else:
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        given |= {"vocab_size": 500, "special_tokens": [*SPECIAL, *BYTES]}
        made.train_from_iterator(texts(300), trainers.BpeTrainer(**given))
    around = [("<s>", 0), ("</s>", 2)]
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=around)
    return made


class Wrapped:
    """A tokenizer as transformers has it, as far as that is needed."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend_tokenizer = backend


def later(made: Tokenizer) -> Tokenizer:
    """The same with its special tokens after some others, as BERT's are; it ends as RoBERTa's."""
    card = json.loads(made.to_str())
    known = [token for token in card["model"]["vocab"] if token not in SPECIAL]
    places = {token: n for n, token in enumerate([*known[:30], *SPECIAL, *known[30:]])}
    card["model"]["vocab"] = places
    for token in card["added_tokens"]:
        token["id"] = places[token["content"]]
    moved = Tokenizer.from_str(json.dumps(card))
    moved.post_processor = processors.RobertaProcessing(("</s>", places["</s>"]), ("<s>", 30))
    moved.enable_padding(pad_id=places["<pad>"], pad_token="<pad>", length=4)
    return moved


KINDS = ["wordpiece", "wordpiece-later", "unigram", "bpe", "bpe-characters"]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_kept_tokens_are_the_same_tokens(kind):
    whole = tokenizer(kind.removesuffix("-later"))
    whole = later(whole) if kind.endswith("-later") else whole
    card = trimming.card_of(Wrapped(whole))
    some = (
        texts(400, seed=1) + words(400, seed=2) + ["".join(words(3, seed)) for seed in range(200)]
    )
    same = 0
    for seed in range(6):
        seen = {i for text in texts(3, seed + 10) for i in whole.encode(text).ids}
        kept = trimming.needed(card, seen)
        new = {old: number for number, old in enumerate(kept)}
        small = Tokenizer.from_str(json.dumps(trimming.trimmed(card, kept)))
        assert small.get_vocab_size() == len(kept) < whole.get_vocab_size()
        assert seen <= new.keys() and all(small.token_to_id(t) is not None for t in SPECIAL)
        for text in some:
            ids = whole.encode(text).ids
            if new.keys() >= set(ids):
                assert small.encode(text).ids == [new[i] for i in ids], text
                same += 1
    assert same > 300
    if kind.startswith("bpe"):  # whatever comes, it is no unknown token
        assert 3 not in small.encode("😀 ñandú").ids or kind == "bpe-characters"
        assert (
            "".join(small.decode(small.encode("abra 😀").ids).split()) == "abra😀" or kind != "bpe"
        )


def test_where_a_model_knows_tokens_by_number_it_knows_them_by_their_new_ones():
    model = encoder("bert", pad_token_id=5)
    assert trimming.special(model) == {5}
    rows = model.embeddings.word_embeddings.weight.detach().clone()
    trimming.keep(model, [2, 5, 9])
    assert torch.equal(model.embeddings.word_embeddings.weight, rows[[2, 5, 9]])
    assert model.config.pad_token_id == model.embeddings.word_embeddings.padding_idx == 1
    # a RoBERTa counts positions from there on: what comes before stays, so that they do
    roberta = encoder("roberta", pad_token_id=3, bos_token_id=None, eos_token_id=[7, 9])
    assert trimming.special(roberta) == {0, 1, 2, 3, 7, 9}
    assert trimming.marks(roberta.config.to_dict(), [3, 7, 9])["eos_token_id"] == [1, 2]


def test_what_is_unknown_stays_as_unlikely():
    """A Unigram prices it by its least likely token: were that gone, another way would be taken."""
    pieces = [("<unk>", 0.0), ("a", -10.0), ("b", -1.0), ("ab", -14.0), ("z", -50.0)]
    whole = Tokenizer(models.Unigram(pieces, 0))
    card = trimming.card_of(Wrapped(whole))
    seen = set(whole.encode("ab").ids)
    assert seen == {1, 2}  # -11, where the one token has -14
    kept = trimming.needed(card, {3})
    assert 4 in kept and 3 in kept
    plain = trimming.trimmed(card, [0, 3, 2])
    small = Tokenizer.from_str(json.dumps(plain))
    assert small.encode("ab").tokens == ["ab"]


def stored(folder: Path, kind: str, cls: str = "PreTrainedTokenizerFast") -> Path:
    """Put a tokenizer into a folder."""
    names = {f"{role}_token": SPECIAL[number] for role, number in ROLES.items()}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer(kind), **names, model_max_length=60)
    made.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": cls}))
    return folder


def recipe(source: Path, data: Path | str, **more) -> Recipe:
    found = Recipe()
    given = {"source": str(source), "trim_vocab": True, "order": "none", **more}
    found.update({"convert": given, "data": {"train": str(data)}}, "test")
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data.txt").write_text("\n".join(texts(12, seed=3)))
    return tmp_path / "data.txt"


@pytest.mark.parametrize(
    ("kind", "cls", "tokens"),
    [
        ("xlm-roberta", "XLMRobertaTokenizer", "unigram"),
        ("roberta", "RobertaTokenizer", "bpe"),
        ("mpnet", "MPNetTokenizer", "wordpiece"),
    ],
)
def test_an_encoder_of_fewer_tokens_gives_what_it_gave(kind, cls, tokens, tmp_path, data):
    """Base, TA and Student by transformers alone: the same tokens, the same outputs bit for bit."""
    base, out = tmp_path / "base", tmp_path / "out"
    size = tokenizer(tokens).get_vocab_size()
    more = {"pad_token_id": 1, "max_position_embeddings": 64}
    encoder(kind, vocab_size=size + 5, **more).save_pretrained(stored_in(base, tokens, cls))
    done = convert(recipe(base, data), out)
    [said] = [note for note in done.notes if "--trim-vocab kept" in note]
    told = left_out(read_card(out / "ta")["lineage"])
    assert f"of its {size + 5:,} tokens, which the data has not (--trim-vocab)" in told
    matta_cli.load_ta(out).student(0.5).save(made(tmp_path / "student"))
    reader, small = (AutoTokenizer.from_pretrained(folder) for folder in (base, out / "ta"))
    assert f"kept {len(small):,} of {size + 5:,} tokens" in said and len(small) < size
    model, trimmed = (AutoModel.from_pretrained(folder).eval() for folder in (base, out / "ta"))
    assert trimmed.config.vocab_size == len(small) and trimmed.config.pad_token_id == 1
    student = AutoModel.from_pretrained(tmp_path / "student")
    assert student.get_input_embeddings().weight.shape == (len(small), 24)
    lines = data.read_text().split("\n")[:8]  # the last are held out, and cut in two
    given = {"return_tensors": "pt", "padding": True}
    batch, now = reader(lines, **given), small(lines, **given)
    for before, after in zip(batch["input_ids"], now["input_ids"], strict=True):
        assert reader.convert_ids_to_tokens(before) == small.convert_ids_to_tokens(after)
    with torch.no_grad():
        assert torch.equal(model(**batch)[0], trimmed(**now)[0])
        assert torch.isfinite(trimmed(**small("😀 never seen", return_tensors="pt"))[0]).all()


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def stored_in(folder: Path, kind: str, cls: str) -> Path:
    return stored(made(folder), kind, cls)


def test_a_language_model_says_the_kept_tokens_as_it_did(tmp_path, data):
    base, out = tmp_path / "base", tmp_path / "out"
    tokens = byte_tokenizer(texts(300), 400)
    gpt2(vocab_size=400, n_positions=32, eos_token_id=0, bos_token_id=0).save_pretrained(base)
    tokens.save_pretrained(base)
    settings = recipe(base, data)
    settings.data.sequence_length = 16
    convert(settings, out)
    small = AutoTokenizer.from_pretrained(out / "ta")
    model, trimmed = (
        AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (base, out / "ta")
    )
    assert trimmed.lm_head.weight is trimmed.transformer.wte.weight
    assert len(small) == trimmed.config.vocab_size < 400
    line = data.read_text().split("\n")[0]
    kept = tokens.convert_tokens_to_ids(small.convert_ids_to_tokens(range(len(small))))
    ids = [torch.tensor([t(line)["input_ids"][:30]]) for t in (tokens, small)]
    with torch.no_grad():
        wanted, found = model(ids[0]).logits[..., kept], trimmed(ids[1]).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_what_later_data_has_lost_is_counted(kind, tmp_path):
    """Of every token that the whole tokenizer makes of a text, whether it is kept."""
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer(kind), unk_token="<unk>")
    card, some, later = trimming.card_of(whole), texts(2, seed=10), [*texts(40, seed=9), "ü é 😀"]
    seen = {i for text in some for i in whole(text)["input_ids"]}
    kept = trimming.needed(card, seen)
    folder = made(tmp_path / "it")
    names = [whole(text, add_special_tokens=False).tokens() for text in later]
    trimming.write(whole, trimming.trimmed(card, kept), folder, kept)
    counter = LeftOut.of(folder, whole)
    counter.add(some)
    assert counter.counts[0] == 0 and counter.told() == []
    counter.add(later)
    known = whole.get_vocab()
    gone = sum(name not in known for own in names for name in own)
    assert counter.counts[:2] == [gone, sum(map(len, names))] and gone > 50
    [said] = counter.told()
    assert f"{gone:,} of {sum(map(len, names)):,} tokens of the texts were left out" in said
    assert ("times as <unk>" in said) == (kind == "wordpiece")
    (folder / NAME).write_bytes(b"\x1f\x8b")
    with pytest.raises(MattaError, match="is damaged"):
        LeftOut.of(folder, whole)


@pytest.mark.slow
def test_a_language_model_of_fewer_tokens_has_a_teacher_of_all(tmp_path, data):
    base, out = tmp_path / "base", tmp_path / "out"
    gpt2(vocab_size=400, n_positions=32, eos_token_id=0, bos_token_id=0).save_pretrained(base)
    byte_tokenizer(texts(300), 400).save_pretrained(base)
    settings = recipe(base, data)
    settings.data.sequence_length = 16
    settings.distill.teacher, settings.distill.steps = str(base), 2
    settings.distill.allow_weak_teacher, settings.distill.device = True, "cpu"
    convert(settings, out)
    said: list[str] = []
    (tmp_path / "later.txt").write_text("\n".join(texts(60, seed=5)))
    settings.data.train = str(tmp_path / "later.txt")
    distill(settings, out, listen=lambda progress: said.append(progress.message or ""))
    size = load_ta(out).model.config.vocab_size
    assert any(f"trimmed out of the Teacher's: {size} of its 400 tokens" in own for own in said)
    [told] = [own for own in said if "were left out of the vocabulary by --trim-vocab" in own]
    assert "read in smaller pieces." in told
    export(settings, out)
    student = AutoModelForCausalLM.from_pretrained(out / "students" / "width-0.5")
    tokens = AutoTokenizer.from_pretrained(out / "students" / "width-0.5")
    assert len(tokens) == student.config.vocab_size == size < 400


def test_a_teacher_is_left_the_models_tokens(tmp_path, data):
    """What a Teacher of all tokens says of the kept ones is what it said."""
    base, out = tmp_path / "base", tmp_path / "out"
    gpt2(vocab_size=400, n_positions=32, eos_token_id=0, bos_token_id=0).save_pretrained(base)
    whole = byte_tokenizer(texts(300), 400)
    whole.save_pretrained(base)
    settings = recipe(base, data)
    settings.data.sequence_length = 16
    convert(settings, out)
    teacher = AutoModelForCausalLM.from_pretrained(base).eval()
    line = data.read_text().split("\n")[0]
    small = AutoTokenizer.from_pretrained(out / "ta")
    kept = trimming.kept_of(small, whole)
    assert kept == whole.convert_tokens_to_ids(small.convert_ids_to_tokens(range(len(small))))
    assert trimming.kept_of(whole, whole) is None
    assert trimming.kept_of(small, byte_tokenizer(texts(300, seed=4), 420)) is None
    more = copy.deepcopy(whole)
    more.add_special_tokens({"additional_special_tokens": ["<more>"]})
    assert trimming.kept_of(small, more) is None, "a token that trimming never leaves out"
    ids = [torch.tensor([t(line)["input_ids"][:30]]) for t in (whole, small)]
    with torch.no_grad():
        wanted = teacher(ids[0]).logits[..., kept]
        fitted = CausalLM(settings).fit_teacher(teacher, base, load_ta(out).model, out / "ta")
        torch.testing.assert_close(fitted(ids[1]).logits, wanted, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_trimmed_is_refused(tmp_path, data):
    base = stored_in(tmp_path / "base", "wordpiece", "BertTokenizer")
    encoder("bert", vocab_size=260).save_pretrained(base)
    with pytest.raises(MattaError, match="pass some with --data"):
        convert(recipe(base, ""), tmp_path / "out")
    file = base / "tokenizer.json"
    whole = json.loads(file.read_text())
    config = json.loads((base / "tokenizer_config.json").read_text())
    fast = {**config, "tokenizer_class": "PreTrainedTokenizerFast"}
    (base / "tokenizer_config.json").write_text(json.dumps(fast))
    ends = json.loads(tokenizer("bpe").to_str())
    ends["model"]["end_of_word_suffix"] = "</w>"
    file.write_text(json.dumps(ends))
    encoder("bert", vocab_size=420).save_pretrained(base)
    with pytest.raises(MattaError, match=r"not possible with this tokenizer \(BPE\): it marks"):
        convert(recipe(base, data), tmp_path / "out")
    # "abc" is unknown, as nothing goes on after its longest beginning, "ab", which then is gone
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "ab", "a", "##bc", "x"]
    whole["model"]["vocab"] = {token: number for number, token in enumerate(pieces)}
    file.write_text(json.dumps(whole))
    encoder("bert", vocab_size=8).save_pretrained(base)
    data.write_text("\n".join(f"{'a ' * i}abc xbc a x a x a x a" for i in range(1, 12)))
    with pytest.raises(MattaError, match="not exact with this tokenizer: some of the"):
        convert(recipe(base, data), tmp_path / "out")
    assert not (tmp_path / "out").exists()
