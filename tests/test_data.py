"""Data as streams: token files, hub datasets on demand, workers.

What is read must not depend on how it is read.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sample_text import byte_tokenizer, prose
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from matta_cli.conversion.convert import convert
from matta_cli.conversion.proof import probe
from matta_cli.data import find, lines
from matta_cli.data import text as data_text
from matta_cli.data.loader import loader
from matta_cli.data.text import Text, cut, hub, local
from matta_cli.errors import MattaError
from matta_cli.files import cache as files_cache
from matta_cli.models.folders import load_ta
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.causal_lm import examples, read
from matta_cli.tasks.causal_lm.examples import Paragraphs
from matta_cli.tasks.causal_lm.task import CausalLM
from matta_cli.tasks.image_classification.examples import Images, Source
from matta_cli.tasks.image_classification.task import ImageClassification
from matta_cli.tasks.ranking.task import Ranking
from matta_cli.training.run import distill


def save_tokenizer(folder: Path, vocabulary: int) -> Path:
    byte_tokenizer([prose(100, 1)], vocabulary).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"), 300)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and no text that is too small for it."""
    monkeypatch.setenv("MATTA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(read, "_IN_MEMORY", 0)
    return tmp_path / "cache" / "tokens"


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32, "vocab_size": 300}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()


def recipe(**data: object) -> Recipe:
    found = Recipe()
    distill = {key: data.pop(key) for key in ("steps", "batch_size") if key in data}
    found.update({"data": {"sequence_length": 16, **data}, "distill": distill}, "test")
    return found


def opened(folder: Path, **data: object):
    """The tokens to train on, those held out, and the passages, as a run gets them."""
    found = CausalLM(recipe(**data)).data(folder, gpt2())
    passages = found.held_out[1].whole.rows if len(found.held_out) > 1 else []
    return found.train.tokens, found.held_out[0].whole.tokens, [row.tolist() for row, _ in passages]


def stored(cache: Path) -> list[Path]:
    """The token files; two numbers are kept beside them, of lines that stand in both texts."""
    if not cache.exists():
        return []
    cards = [path / "card.json" for path in sorted(cache.iterdir()) if path.is_dir()]
    return [card.parent for card in cards if '"dtype": "<i8"' not in card.read_text()]


def corpus(folder: Path) -> tuple[str, list[str]]:
    """A folder of documents in all formats, and these documents."""
    import pyarrow as pa
    import pyarrow.parquet

    folder.mkdir()
    long = (
        prose(1500, 2).replace(" .\n", " .\r\n", 3).replace("dog .\n", "dog ." + 40 * "\n")
        + "\n\n  \n"
        + prose(2, 9)
        + "\n"
    )
    rows = ["one more\n\n dog", " \n ", "home", prose(30, 3), ""]
    (folder / "a.txt").write_bytes(long.encode())
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    (folder / "blank.md").write_text("\n \n")
    table = pa.table({"n": list(range(600)), "text": [None, *(prose(1, k) for k in range(599))]})
    pyarrow.parquet.write_table(table, folder / "c.parquet", row_group_size=100)
    texts = [long.replace("\r\n", "\n"), *rows, *table["text"].to_pylist()[1:]]
    return str(folder), [text for text in texts if text.strip()]


def cut_whole(documents: list[str]) -> tuple[list[str], list[str]]:
    """The last tenth, computed on documents that are all in memory."""
    total = sum(map(len, documents))
    place, k = total - total // 10, 0
    while place >= len(documents[k]):
        place, k = place - len(documents[k]), k + 1
    breaks = [documents[k].rfind(mark, 0, place + 1) for mark in ("\n", " ")]
    place = next((b for b in breaks if b >= max(0, place - total // 10)), place)
    parts = [*documents[:k], documents[k][:place]], [documents[k][place:], *documents[k + 1 :]]
    return tuple([document for document in part if document.strip()] for part in parts)


@pytest.mark.parametrize("chunk", [1 << 20, 37])
@pytest.mark.parametrize("on_disk", [False, True])
def test_the_tokens_are_those_of_the_whole_text(
    tmp_path, tokenizer_folder, cache, monkeypatch, chunk, on_disk
):
    monkeypatch.setattr(data_text, "_CHUNK", chunk)
    monkeypatch.setattr(data_text, "_PIECE", 500)
    monkeypatch.setattr(data_text, "_BATCH", 5000)
    if not on_disk:
        monkeypatch.setattr(read, "_IN_MEMORY", 1 << 30)
    name, documents = corpus(tmp_path / "corpus")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    parts = cut_whole(documents)
    expected = [
        [t for document in part for t in [*tokenizer(document)["input_ids"], 0]] for part in parts
    ]
    train, held_out, passages = opened(tokenizer_folder, train=name)
    assert train.tolist() == expected[0] and held_out.tolist() == expected[1] and len(passages) > 30
    assert isinstance(train, np.memmap) is on_disk and len(stored(cache)) == 2 * on_disk
    assert opened(tokenizer_folder, train=name, max_tokens=100)[0].tolist() == expected[0][:100]


@pytest.mark.parametrize("sizes", [[100], [1, 1, 98], [89, 1, 10], [90, 10], [30, 61, 9], [3] * 7])
@pytest.mark.parametrize("characters", ["xxxxxxxx ", "x\n", "x", "xxxxxxxxxxxx\nx "])
def test_the_last_tenth_begins_where_it_does_in_memory(sizes, characters):
    generator = np.random.default_rng(0)
    for _ in range(20):
        documents = ["".join(generator.choice(list(characters), size=size)) + "y" for size in sizes]
        chunks = [
            (document[k : k + 4], k + 4 >= len(document))
            for document in documents
            for k in range(0, len(document), 4)
        ]
        parts = cut(Text("it", [], None, lambda chunks=chunks: iter(chunks)))
        for part, expected in zip(parts, cut_whole(documents), strict=True):
            found = "".join(chunk + "|" * last for chunk, last in part.read())
            assert found == "".join(document + "|" for document in expected)


def test_text_without_lines_is_cut_before_words(monkeypatch):
    monkeypatch.setattr(data_text, "_PIECE", 50)
    monkeypatch.setattr(data_text, "_LONGEST", 100)
    for document in (
        prose(40).replace("\n", " "),
        "x" * 350,
        prose(9),
        prose(30).replace("\n", 30 * "\n"),
    ):
        cuts = []
        for size in (1, 64, 1000):
            chunks = [(document[k : k + size], False) for k in range(0, len(document), size)]
            cuts.append(list(data_text.pieces([*chunks, ("", True)])))
        assert cuts[0] == cuts[1] == cuts[2]
        pieces = [piece for piece, _ in cuts[0]]
        assert "".join(pieces) == document and max(map(len, pieces)) <= 100
        assert [last for _, last in cuts[0]] == [False] * (len(pieces) - 1) + [True]
        assert "x" in document or all(piece[0] in " \n" for piece in pieces[1:])
        if "\n\n" in document:  # a tokenizer may have a token for several lines' ends
            assert not any(piece[-1] == "\n" for piece in pieces)


def test_passages_of_endless_text_are_spread_over_it(monkeypatch):
    monkeypatch.setattr(examples, "_CANDIDATES", 600)
    seen = Paragraphs()
    for k in range(5000):
        seen.add("one two three four five six seven eight nine " + "abcdefghij"[k // 500] + ".")
    found = [passage[-1] for passage in seen.passages()]
    assert len(found) <= 500 and len(seen.lines) <= 600
    counts = [found.count(letter) for letter in "abcdefghij"]
    assert min(counts) >= 0.8 * max(counts) and found == sorted(found)
    few = Paragraphs()
    few.add("word " * 10000)
    assert len(few.passages()[0]) < 1 << 14


def test_a_hub_dataset_reads_alike_whole_and_streamed(tmp_path):
    name = dataset(tmp_path / "data", train=600)
    (tmp_path / "data" / "train.jsonl").open("a").write(
        '\n{"n": 1, "text": null}\n{"n": 2, "text": " "}\n{"n": 3, "text": "end"}'
    )
    # datasets opens a local folder with the same call
    whole = hub(find.hub_dataset(name)["train"], "text", name, [])
    streamed = hub(find.hub_stream(name)[0]["train"], "text", name, [])
    expected = [(f"train {k} {prose(1, k)}", True) for k in range(600)] + [("end", True)]
    assert (
        list(whole.read())
        == list(whole.read())
        == list(streamed.read())
        == list(streamed.read())
        == expected
    )
    assert streamed.size is None and 20_000 < whole.size < 200_000


@pytest.mark.parametrize("name", [f"pipe{end}" for end in ("", ".csv", ".parquet", ".npz")])
def test_a_pipe_is_refused(tmp_path, tokenizer_folder, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(MattaError, match=r"is a pipe or a device.*save it to a file"):
        opened(tokenizer_folder, train=str(tmp_path / name))
    with pytest.raises(MattaError, match="is a pipe or a device"):
        lines.encoding(tmp_path / name)


@pytest.fixture
def book(tmp_path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(prose(300))
    return path


def test_text_is_tokenized_once(book, tokenizer_folder, cache, monkeypatch):
    first = opened(tokenizer_folder, train=str(book))
    # the tokenizer's content counts, not its folder
    copy = shutil.copytree(tokenizer_folder, book.parent / "checkpoint")
    monkeypatch.setattr(read, "pieces", None)
    again = opened(copy, train=str(book))
    assert (
        all(np.array_equal(a, b) for a, b in zip(first[:2], again[:2], strict=True))
        and first[2] == again[2]
    )
    assert first[0].dtype == np.uint16 and not first[0].flags.writeable
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_another_text_or_tokenizer_is_tokenized_anew(book, tokenizer_folder, tmp_path, cache):
    before = opened(tokenizer_folder, train=str(book))[0].tolist()
    status = book.stat()
    text = book.read_text()
    book.write_text("dog" + text[3:])  # as long as it was
    os.utime(book, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    after = opened(tokenizer_folder, train=str(book))[0].tolist()
    assert after != before and len(stored(cache)) == 4
    other = save_tokenizer(tmp_path / "other", 290)
    assert opened(other, train=str(book))[0].tolist() != after and len(stored(cache)) == 6


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone", "card", "foreign"])
def test_a_damaged_token_file_is_made_again(book, tokenizer_folder, cache, damage):
    train, held_out, passages = opened(tokenizer_folder, train=str(book))
    expected = train.tolist(), held_out.tolist(), passages
    for folder in stored(cache):
        path = folder / "tokens.bin"
        content = bytearray(path.read_bytes())
        if damage == "truncated":
            path.write_bytes(content[:-2])
        elif damage == "flipped":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        elif damage == "gone":
            path.unlink()
        elif damage == "card":
            (folder / "card.json").write_text((folder / "card.json").read_text()[:50])
        else:
            card = json.loads((folder / "card.json").read_text())
            card["identity"]["of"] = "another text"
            card["crc32"] = zlib.crc32(bytes(len(content)))
            (folder / "card.json").write_text(json.dumps(card))
            path.write_bytes(bytes(len(content)))
    found = opened(tokenizer_folder, train=str(book))
    assert (found[0].tolist(), found[1].tolist(), found[2]) == expected and len(stored(cache)) == 2


def test_a_failure_leaves_no_token_file(book, tokenizer_folder, cache, monkeypatch):
    rows = book.parent / "rows.jsonl"
    rows.write_text(json.dumps({"text": prose(9)}) + "\n{broken\n")
    with pytest.raises(MattaError, match=r"rows.jsonl', line 2 is not valid JSON"):
        opened(tokenizer_folder, train=str(rows), held_out=str(book))
    assert len(stored(cache)) == 1 and not list(cache.glob(".*"))
    (book.parent / "file").write_text("")
    monkeypatch.setenv("MATTA_CACHE", str(book.parent / "file"))
    with pytest.raises(
        MattaError, match=r"tokens cannot be kept in .*set MATTA_CACHE to a folder with room"
    ):
        opened(tokenizer_folder, train=str(book))


def test_a_token_outside_the_vocabulary_is_refused(book, tokenizer_folder, cache):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    whole = local([book], "text", str(book))
    small = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=290))
    with pytest.raises(
        MattaError, match=r"makes the token 29\d, but the model's vocabulary is 290"
    ):
        read.tokens(tokenizer, whole, small.config.vocab_size, 0)
    assert not stored(cache)


@pytest.mark.slow
def test_a_large_corpus_takes_little_memory(tmp_path, tokenizer_folder):
    """The peak of a process that opens 100 MB of text, above that of one that opens almost none."""
    script = """
import resource, sys
from pathlib import Path
import test_data
task = test_data.CausalLM(test_data.recipe(train=sys.argv[1]))
train = task.data(Path(sys.argv[2]), test_data.gpt2()).train
for start in range(0, len(train), 4096):
    train.batch([start])
unit = 1 if sys.platform == "darwin" else 1024
print(len(train), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit)
"""
    peaks = {}
    for megabytes in (1, 100):
        block = prose(12000, megabytes)[:1_000_000]
        path = tmp_path / f"{megabytes}.txt"
        with path.open("w") as file:
            for _ in range(megabytes):
                file.write(block + "\n")
        environment = {
            **os.environ,
            "MATTA_CACHE": str(tmp_path / "cache"),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        command = [sys.executable, "-c", script, str(path), str(tokenizer_folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        sequences, peaks[megabytes] = map(int, done.stdout.split())
        assert sequences > megabytes * 10_000
    assert peaks[100] - peaks[1] < 50, peaks


def dataset(folder: Path, **splits: int) -> str:
    """A folder that ``datasets`` opens: JSONL rows, each told by the number in its text."""
    folder.mkdir(exist_ok=True)
    for name, count in splits.items():
        rows = [json.dumps({"n": k, "text": f"{name} {k} {prose(1, k)}"}) for k in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    return str(folder)


def test_streaming_takes_what_the_run_needs(tmp_path, tokenizer_folder, cache, monkeypatch):
    name = dataset(tmp_path / "data", train=700, validation=300)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    whole = {
        split: [
            t
            for k in range(count)
            for t in [*tokenizer(f"{split} {k} {prose(1, k)}")["input_ids"], 0]
        ]
        for split, count in (("train", 700), ("validation", 300))
    }
    settings = {"train": name, "streaming": True, "steps": 5, "batch_size": 4, "eval_examples": 7}
    train, held_out, passages = opened(tokenizer_folder, **settings)
    assert (
        train.tolist() == whole["train"][: 5 * 4 * 16]
        and held_out.tolist() == whole["validation"][: 7 * 16]
    )
    assert passages and opened(tokenizer_folder, **settings)[2] == passages
    assert opened(tokenizer_folder, **settings, max_tokens=50)[0].tolist() == whole["train"][:50]
    assert opened(tokenizer_folder, **settings, max_tokens=10**6)[0].tolist() == train.tolist()
    with monkeypatch.context() as patch:
        patch.setattr(read, "pieces", None)
        # from the cache, as on --resume
        assert opened(tokenizer_folder, **settings)[0].tolist() == train.tolist()
    assert (
        opened(tokenizer_folder, **settings | {"steps": 9})[0].tolist()
        == whole["train"][: 9 * 4 * 16]
    )
    settings["steps"] = 10**6
    assert opened(tokenizer_folder, **settings)[0].tolist() == whole["train"]  # there is no more
    assert len(stored(cache)) == 2
    description = CausalLM(recipe(**settings)).data(tokenizer_folder, gpt2()).description
    assert f"{len(whole['train']):,} tokens" in description and str(cache) in description


def test_a_sample_of_a_long_text_is_stretches_of_its_tokens_from_all_over(
    tmp_path, tokenizer_folder, monkeypatch
):
    monkeypatch.setattr(read, "_SAMPLE", 10_000)
    monkeypatch.setattr(data_text, "_BATCH", 2000)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    documents = [f"number {k} {prose(1, k)}" for k in range(1000)]
    file = tmp_path / "long.jsonl"
    file.write_text("\n".join(json.dumps({"text": document}) for document in documents))

    def made(**options: bool) -> tuple[list[str], Text]:
        text = local([file], "text", "it")
        row, _ = read.tokens(tokenizer, text, 300, 0, **options)
        return tokenizer.decode(row.tolist()).split("<|end|>"), text

    whole, text = made()
    some, sampled = made(sampled=True)
    places = [whole.index(document) for document in some]
    jumps = [(b - a) for a, b in itertools.pairwise(places[:-1]) if b != a + 1]
    assert whole[:-1] == documents and len(some) < len(whole) / 3 and places == sorted(places)
    assert 3 <= len(jumps) < 8 and max(jumps) < 1.5 * min(jumps) and places[-2] > 700
    assert sampled.tally.files == text.tally.files  # all of it was read
    assert made(sampled=True)[0] == some

    monkeypatch.setattr(read, "_SAMPLE", 10**6)
    assert made(sampled=True)[0] == whole


def test_convert_makes_tokens_of_a_sample_alone(tmp_path, tokenizer_folder, monkeypatch):
    monkeypatch.setattr(read, "_SAMPLE", 10_000)
    monkeypatch.setattr(data_text, "_PIECE", 500)
    monkeypatch.setattr(data_text, "_BATCH", 2000)
    train = tmp_path / "long.txt"
    train.write_text(prose(1000))
    base = gpt2()
    task = CausalLM(recipe(train=str(train), sequence_length=16))
    ta = SimpleNamespace(model=base)
    characters = []
    encode = read.encode

    def counted(tokenizer, texts):
        characters.append(sum(map(len, texts)))
        return encode(tokenizer, texts)

    monkeypatch.setattr(read, "encode", counted)
    assert probe(task, ta, tokenizer_folder, [])
    assert sum(characters) < 0.6 * len(prose(1000)), "the part to train on and the held-out part"
    characters.clear()
    task.data(tokenizer_folder, base)
    assert sum(characters) == len(prose(1000)), "what is trained on is all of it"


def test_streaming_reads_no_further_than_needed(tokenizer_folder, cache):
    drawn = []

    def endless():
        for k in itertools.count():
            drawn.append(k)
            yield prose(20, k % 50), True

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    text = Text("it", ["endless"], None, endless)
    found, passages = read.tokens(tokenizer, text, 300, 5000, Paragraphs())
    assert len(found) == 5000 and len(drawn) * 1000 < 3 << 20 and passages


def test_streaming_without_a_held_out_split(tmp_path, tokenizer_folder, cache):
    name = dataset(tmp_path / "data", train=1100)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    train, held_out, _ = opened(tokenizer_folder, train=name, streaming=True, eval_examples=0)
    assert tokenizer.decode(train[:100].tolist()).startswith("train 1000 ") and len(train) > 500
    documents = tokenizer.decode(held_out.tolist()).split("<|end|>")
    assert (
        documents[0].startswith("train 0 ")
        and documents[999].startswith("train 999 ")
        and documents[1000:] == [""]
    )
    few = dataset(tmp_path / "few", train=1000)
    with pytest.raises(
        MattaError, match=r"first 1,000 documents are held out, and it has no more.*--held-out"
    ):
        opened(tokenizer_folder, train=few, streaming=True)
    train, held_out, _ = opened(tokenizer_folder, train=name, held_out=few, streaming=True)
    assert tokenizer.decode(train[:100].tolist()).startswith("train 0 ")


def test_a_changed_stream_is_read_anew(tmp_path, tokenizer_folder, cache):
    settings = {"train": dataset(tmp_path / "data", train=20, test=20), "streaming": True}
    before = opened(tokenizer_folder, **settings)[0].tolist()
    path = tmp_path / "data" / "train.jsonl"
    status = path.stat()
    path.write_text(path.read_text().replace("train 0", "train 9"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert opened(tokenizer_folder, **settings)[0].tolist() != before


def test_streaming_errors(tmp_path, tokenizer_folder, cache, book):
    name = dataset(tmp_path / "data", train=20, test=20)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "train.jsonl").write_text('{"text": "x"}\n' * 20 + "{")
    for settings, sentence in [
        ({"train": name, "text": "body"}, "has no column 'body'; it has n, text. Set data.text"),
        ({"train": name, "split": "dev"}, "has no split 'dev'"),
        ({"train": str(book)}, r"book.txt' is a file: leave data.streaming out"),
        ({"train": "nobody/nothing"}, "Could not reach 'nobody/nothing'"),
        ({"train": str(broken)}, "(Reading .*broken' from the hub failed|cannot be opened)"),
        ({"train": name, "max_tokens": -1}, "data.max_tokens is -1"),
    ]:
        with pytest.raises(MattaError, match=sentence):
            opened(tokenizer_folder, streaming=True, **settings)
    for kind, what in ((ImageClassification, "images"), (Ranking, "ranking")):
        with pytest.raises(
            MattaError, match=f"data.streaming is not supported for {what}: leave it out"
        ):
            kind(recipe(train=name, streaming=True)).data(tmp_path, torch.nn.Linear(1, 1))


class Numbers:
    """A split that tells which process fetched what."""

    def __init__(self, fail: str = "") -> None:
        self.fail = fail

    def __len__(self) -> int:
        return 100

    def batch(self, indices):
        if 13 in indices and self.fail == "sentence":
            raise MattaError("Image 13 of 'mine' cannot be read: it is a poem.")
        if 13 in indices and self.fail == "death":
            os._exit(1)
        if 13 in indices and self.fail == "bug":
            raise ZeroDivisionError("a bug")
        if 13 in indices and self.fail == "signal":
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)
        return {"i": torch.tensor(list(indices)), "process": torch.tensor(os.getpid())}


DRAWN = [[3, 1], [13, 2, 9], [99], *([k, k + 1] for k in range(20, 40)), [3, 1]]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_come_in_the_order_drawn(workers):
    torch.manual_seed(5)
    found = list(loader(Numbers(), (drawn for drawn in DRAWN), workers))
    expected = torch.rand(1, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.rand(1), expected)  # what a run draws is its own
    assert [batch["i"].tolist() for batch in found] == DRAWN
    processes = {int(batch["process"]) for batch in found}
    assert len(processes) == max(1, workers) and (os.getpid() in processes) is (workers == 0)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_workers_sentence_arrives_as_it_is(workers):
    batches = loader(Numbers("sentence"), DRAWN, workers)
    assert next(batches)["i"].tolist() == [3, 1]
    with pytest.raises(MattaError) as caught:
        next(batches)
    assert (
        str(caught.value) == "Image 13 of 'mine' cannot be read: it is a poem."
        and type(caught.value) is MattaError
    )


def test_what_workers_die_of():
    with pytest.raises(
        MattaError, match=r"One of the 2 processes that read the data died.*lower data.workers"
    ):
        list(loader(Numbers("death"), DRAWN, 2))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(loader(Numbers("bug"), DRAWN, 2))
    # the run itself decides when to stop
    assert len(list(loader(Numbers("signal"), DRAWN, 2))) == len(DRAWN)
    with pytest.raises(MattaError, match=r"data.workers is -1, but"):
        loader(Numbers(), DRAWN, -1)


def test_closing_ends_the_workers():
    batches = loader(Numbers(), DRAWN, 2)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_an_open_loader_does_not_hang_the_exit():
    script = "import test_data as t; kept = t.loader(t.Numbers(), t.DRAWN, 2); next(kept)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_workers_share_the_pixels_that_are_kept(tmp_path):
    class Prepare:
        shape = (1, 2, 2)

        def pixels(self, image):
            (tmp_path / f"{image}-{os.getpid()}").touch()
            return np.full(self.shape, image, dtype=np.uint8)

        def input(self, pixels):
            return torch.from_numpy(pixels).float()

    images = Images(Source(np.arange(20), lambda i: i), Prepare(), "mine")
    drawn = [[k, k + 1] for k in range(0, 20, 2)]
    for order in (drawn, drawn[::-1], drawn[1:]):
        for batch, indices in zip(loader(images, order, 2), order, strict=True):
            assert batch["image"][:, 0, 0, 0].tolist() == batch["label"].tolist() == indices
    assert images.known.all() and images.kept[:, 0, 0, 0].tolist() == list(range(20))
    assert len(list(tmp_path.iterdir())) == 20  # each was prepared once, in a worker
    assert not list(tmp_path.glob(f"*-{os.getpid()}"))


def test_a_streamed_run_with_workers_resumes_bit_for_bit(
    tmp_path, tokenizer_folder, cache, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name, model in (("model", gpt2()), ("teacher", gpt2(1))):
        model.save_pretrained(tmp_path / name)
        shutil.copytree(tokenizer_folder, tmp_path / name, dirs_exist_ok=True)
    name = dataset(tmp_path / "data", train=60, test=20)
    settings = recipe(train=name, streaming=True, eval_examples=4, steps=4, batch_size=4)
    values = {
        "teacher": "teacher",
        "save_every": 2,
        "widths": [0.5, 1.0],
        "device": "cpu",
        "allow_weak_teacher": True,
    }
    settings.update({"distill": values, "convert": {"source": "model"}}, "test")
    convert(settings, Path("plain"))
    shutil.copytree("plain", "workers")
    plain = load_ta(distill(settings, Path("plain"))).model.state_dict()
    settings.data.workers = 2
    last = distill(settings, Path("workers"))
    assert last.name == "step-4"
    shutil.rmtree(last)
    before = len(stored(cache))
    resumed = load_ta(distill(settings, Path("workers"), resume=True)).model.state_dict()
    assert all(torch.equal(plain[name], resumed[name]) for name in plain)
    assert len(stored(cache)) == before and not multiprocessing.active_children()


def test_the_cache_is_where_it_is_said_to_be(monkeypatch):
    monkeypatch.setenv("MATTA_CACHE", "/x")
    assert files_cache.cache() == Path("/x/tokens")
    monkeypatch.delenv("MATTA_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert files_cache.cache() == Path.home() / ".cache" / "matta" / "tokens"
