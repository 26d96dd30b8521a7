"""A folder with files of every kind that matta reads, and the commands that read each of them."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from test_cli import gpt2, tokenizer_of
from test_kills import TRAIN, typed
from test_runs import ranker, table
from text_models import PLAIN, WORDS, bert, gguf_files, labels
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForTokenClassification,
    BertModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

OUT = "matta-out"
_SHORT = "distill --overwrite --steps 1 --allow-weak-teacher --batch-size 8"
DISTILL = f"{_SHORT} --teacher teacher.pt"
PUSH = f"push {OUT}/students/width-0.5 --to me/half --dry-run --license mit"
_TEACH = "teach --teacher teacher.pt --to said --allow-weak-teacher"
_PIXELS = "convert pixels --out other --data"
_TEXT = "convert words --out other --data"
_PAIRS = "convert sentences --out other --data"
_WORDED = f"{_SHORT} --out worded --data text.txt --teacher"
_TRIMMED = f"{_SHORT} --out trimmed --data text.txt --teacher"
_LOGGED = f"{_SHORT} --out worded --data text.txt --config cold.toml"
_PICTURED = f"{_SHORT} --out pictured --data images.npz --teacher"
_PAIRED = f"{_SHORT} --out paired --data pairs.csv --teacher"
_SAID = "--data text.txt --teacher words --allow-weak-teacher"
_LABELLED = "convert labels --out other --data"
_TAGGED = "convert tags --out other --data"
_RANKED = "convert ranks --out other --config ranks.toml --data"
_TABLES = ("csv", "tsv", "jsonl", "json", "parquet")
# files -> the lines that read them
READERS = {
    f"{OUT}/ta/*.json": ["inspect", DISTILL, "search --trials 1"],
    f"{OUT}/ta/*.safetensors": ["inspect", DISTILL],
    f"{OUT}/ta/importance/*": ["inspect", "report"],
    f"{OUT}/ta/recipe.toml": ["recipe show --all", "inspect"],
    f"{OUT}/matta.toml": ["recipe show --all", DISTILL, "report"],
    "matta.toml": ["recipe show --all", "convert model.pt --out other"],
    "other.toml": [
        "recipe show --all --config other.toml",
        "convert model.pt --out other --config other.toml",
    ],
    "ranker.json": [
        "convert model.pt --out other --config ranker.json",
        f"{DISTILL} --teacher-config ranker.json",
    ],
    f"{OUT}/run/recipe.toml": ["recipe show --all --ran", "report", "distill --resume --steps 5"],
    f"{OUT}/run/metrics.jsonl": ["report", "distill --resume --steps 5"],
    f"{OUT}/run/start.json": ["report", "distill --resume --steps 5", "export --overwrite"],
    f"{OUT}/run/checkpoints/step-4/*": [
        "distill --resume --steps 5",
        f"eval {OUT}@0.5",
        "search --trials 1",
        "report",
    ],
    f"{OUT}/run/checkpoints/step-4/optimizer/*": ["distill --resume --steps 5"],
    f"{OUT}/run/checkpoints/step-4/trainer.json": ["distill --resume --steps 5", "report"],
    f"{OUT}/students/*": ["report"],
    f"{OUT}/students/width-0.5/*": [f"eval {OUT}/students/width-0.5", "report", PUSH],
    f"{OUT}/students/width-0.5-int8/*": [f"eval {OUT}/students/width-0.5-int8", "report"],
    f"{OUT}/report.json": ["report"],
    f"{OUT}/search/trials.jsonl": ["search --trials 3 --target-params 60"],
    f"{OUT}/search/*.json": [
        "search --trials 3 --target-params 60",
        "report",
        "export --overwrite",
    ],
    f"{OUT}/baselines/*/baseline.json": ["report --baselines ground-truth"],
    f"{OUT}/baselines/*/*/*.json": ["report --baselines ground-truth"],
    "said/*": [f"{_SHORT} --teacher said", f"{_TEACH} --overwrite"],
    f"{OUT}/run/checkpoints/step-4/SHA256SUMS": ["distill --resume --steps 5", "report"],
    "said/teacher.json": [f"{_SHORT} --teacher said", _TEACH],
    "said.parquet": [f"{_SHORT} --teacher said.parquet"],
    "said.jsonl": [f"{_SHORT} --teacher said.jsonl"],
    "said.safetensors": [f"{_SHORT} --teacher said.safetensors"],
    "model.pt": ["convert model.pt --out other", "eval model.pt", f"{_SHORT} --teacher model.pt"],
    "nested.pt": ["convert nested.pt --out other"],
    "model.safetensors": ["convert model.safetensors --out other"],
    "model.gguf": [
        "convert model.gguf --out other --data text.txt",
        f"{_SHORT} --teacher model.gguf",
    ],
    "whole.gguf": ["convert whole.gguf --out other --order none"],
    **{f"train.{kind}": [f"{DISTILL} --data train.{kind}"] for kind in ("csv", "tsv", "parquet")},
    **{f"train.svm{end}": [f"{DISTILL} --data train.svm"] for end in ("", ".query", ".group")},
    **{f"train.svm.{end}": [f"{DISTILL} --data train.svm.{end}"] for end in ("gz", "bz2")},
    "parts/*": [f"{DISTILL} --data parts"],
    "words/*.json": [f"{_TEXT} text.txt", f"{_WORDED} words"],
    "words/*.jinja": [f"{_TEXT} chat.jsonl"],
    "words/model.safetensors": [f"{_TEXT} text.txt"],
    "shards/*": ["convert shards --out other --data text.txt"],
    "old/*": ["convert old --out other --data text.txt", f"{_TEXT} text.txt --tokenizer old"],
    **{f"text.{kind}": [f"{_TEXT} text.{kind}"] for kind in ("txt", "md", *_TABLES)},
    **{f"chat.{kind}": [f"{_TEXT} chat.{kind}"] for kind in ("jsonl", "json", "parquet")},
    "asked.jsonl": [f"{_TEXT} asked.jsonl"],
    "passages.jsonl": [f"{_WORDED} words --passages passages.jsonl"],
    "logged.jsonl": [f"{_LOGGED} --teacher logged.jsonl"],
    **{f"reviews.{kind}": [f"{_LABELLED} reviews.{kind}"] for kind in _TABLES},
    **{f"several.{kind}": [f"{_LABELLED} several.{kind}"] for kind in ("csv", "jsonl", "parquet")},
    **{f"queries.{kind}": [f"{_RANKED} queries.{kind}"] for kind in ("tsv", "jsonl", "parquet")},
    **{f"tagged.{kind}": [f"{_TAGGED} tagged.{kind}"] for kind in ("jsonl", "json", "parquet")},
    **{f"tagged.{kind}": [f"{_TAGGED} tagged.{kind}"] for kind in ("conll", "conllu", "txt")},
    "labels/*": [f"{_LABELLED} reviews.csv"],
    "tags/*": [f"{_TAGGED} tagged.conll"],
    "album/metadata.csv": [f"{_PIXELS} album"],
    "album/*/*": [f"{_PIXELS} album"],
    "album.parquet": [f"{_PIXELS} album.parquet"],
    "album.jsonl": [f"{_PIXELS} album.jsonl"],
    "images.npz": [f"{_PIXELS} images.npz"],
    "idx/*": [f"{_PIXELS} idx"],
    "pictures/*/*": [f"{_PIXELS} pictures"],
    "pixels/*": [f"{_PIXELS} images.npz", f"{_PICTURED} pixels"],
    "vit/*.json": ["convert vit --out other --data images.npz", f"{_PICTURED} vit"],
    "sentences/**/*": [f"{_PAIRS} pairs.csv", f"{_PAIRED} sentences"],
    **{f"pairs.{kind}": [f"{_PAIRS} pairs.{kind}"] for kind in ("csv", "tsv", "jsonl", "parquet")},
    "sts.csv": [f"{_PAIRS} sts.csv"],
    "sentences.txt": [f"{_PAIRS} sentences.txt"],
    "worded/ta/*.json": ["inspect --out worded", f"{_WORDED} words"],
    "paired/ta/*.json": ["inspect --out paired", f"{_PAIRED} sentences"],
    "pictured/ta/*.json": ["inspect --out pictured", f"{_PICTURED} pixels"],
    "trimmed/ta/*.gz": [f"{_TRIMMED} words"],
    "worded/said/*": [f"{_SHORT} --out worded --data text.txt --teacher worded/said"],
    "traced/ta/*": [
        "inspect --out traced",
        f"{_SHORT} --out traced --data text.txt --teacher words",
    ],
}


def project(folder: Path) -> None:
    """Make it."""
    before = Path.cwd()
    os.chdir(folder)
    _rows()
    _texts()
    _pairs()
    _labels()
    _tags()
    _images()
    Path("matta.toml").write_text('[data]\ntrain = "train.csv"\n[export]\nbootstrap = 5\n')
    shutil.copy("matta.toml", "other.toml")
    Path("cold.toml").write_text("[distill]\ntemperature = 1.0\n")
    Path("ranker.json").write_text('{"activation": "ReLU", "dropout": 0.1}')
    typed("convert model.pt --expand 2")
    typed(f"distill --teacher teacher.pt --steps 4 --eval-every 2 {TRAIN}")
    typed(f"teach --teacher teacher.pt --to said {TRAIN}")
    typed("search --target-params 60 --trials 2")
    typed("export --widths 0.5,1 --quantize int8")
    typed("report --baselines ground-truth")
    for source, out, data in (
        ("words", "worded", "text.txt"),
        ("sentences", "paired", "pairs.csv"),
        ("pixels", "pictured", "images.npz"),
    ):
        typed(f"convert {source} --out {out} --data {data}")
    typed("convert words --out trimmed --data text.txt --trim-vocab")
    _logged()
    typed(
        "teach --out worded --data text.txt --teacher words --to worded/said --allow-weak-teacher"
    )
    typed(
        "convert words --out traced --data text.txt --adapter auto --task causal_lm "
        "--example input_ids=1x8:int64"
    )
    os.chdir(before)


def _rows() -> None:
    import pyarrow as pa
    import pyarrow.parquet

    table(Path("train.csv"), rows=60)
    rows = np.loadtxt("train.csv", delimiter=",", skiprows=1)
    columns = {name: rows[:, i] for i, name in enumerate(("a", "b", "c", "d", "label"))}
    pa.parquet.write_table(pa.table(columns), "train.parquet")
    Path("train.tsv").write_text(Path("train.csv").read_text().replace(",", "\t"))
    Path("parts").mkdir()
    lines = Path("train.csv").read_text().splitlines(keepends=True)
    for part, own in (("train", lines[1:40]), ("test", lines[40:])):
        Path(f"parts/{part}.csv").write_text("".join([lines[0], *own]))
    cells = [" ".join(f"{i}:{value:.5f}" for i, value in enumerate(row[:4], 1)) for row in rows]
    labelled = list(zip([int(row[4]) for row in rows], cells, strict=True))
    Path("train.svm").write_text("".join(f"{label} {own}\n" for label, own in labelled))
    for suffix in (".query", ".group"):
        Path(f"train.svm{suffix}").write_text("6\n" * 10)
    queried = "".join(f"{y} qid:{n // 6} {own}\n" for n, (y, own) in enumerate(labelled)).encode()
    Path("train.svm.gz").write_bytes(gzip.compress(queried))
    Path("train.svm.bz2").write_bytes(bz2.compress(queried))
    state = ranker().state_dict()
    torch.save(state, "model.pt")
    torch.save(ranker(1).state_dict(), "teacher.pt")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, "nested.pt"
    )
    save_file(state, "model.safetensors")
    scores = {"row": np.arange(60), "score": rows[:, 0], "temperature": np.ones(60)}
    pa.parquet.write_table(pa.table(scores), "said.parquet")
    said = (f'{{"row": {n}, "score": {score}}}\n' for n, score in enumerate(rows[:, 0]))
    Path("said.jsonl").write_text("".join(said))
    score = torch.tensor(rows[:, 0].copy())
    save_file({"row": torch.arange(60), "score": score}, "said.safetensors")


def _texts() -> None:

    text = "\n\n".join(f"The {n}th paragraph of a text says what {n * n} is." for n in range(80))
    parts = text.split("\n\n")
    for kind in ("txt", "md"):
        Path(f"text.{kind}").write_text(text)
    tables("text", [{"text": part} for part in parts], *_TABLES)
    said = [[{"role": "user", "content": p}, {"role": "assistant", "content": p}] for p in parts]
    tables("chat", [{"messages": own} for own in said], "jsonl", "json", "parquet")
    tables("asked", [{"prompt": part[:9], "completion": part[9:]} for part in parts], "jsonl")
    tables("passages", [{"text": part} for part in parts[:9]], "jsonl")
    model, tokenizer = gpt2(320), tokenizer_of(text)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    model.save_pretrained("words")
    tokenizer.save_pretrained("words")
    model.save_pretrained("shards", max_shard_size="20KB")
    tokenizer.save_pretrained("shards")
    # as of transformers before 4.33
    model.config.save_pretrained("old")
    torch.save(model.state_dict(), "old/pytorch_model.bin")
    tokenizer.backend_tokenizer.model.save("old")
    Path("old/tokenizer_config.json").write_text(
        '{"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}'
    )
    gguf_files(Path("model.gguf"), Path("whole.gguf"))


def _logged() -> None:
    """What a server would say of the prompts, if both tokens that it names were as likely."""
    typed("teach --out worded --data text.txt --prompts asked_for.jsonl")
    rows = [json.loads(line) for line in Path("asked_for.jsonl").read_text().splitlines()]
    for row in rows:
        said = (
            {str(t): {"logprob": -0.7}, str((t + 1) % 300): {"logprob": -0.7}}
            for t in row["prompt_token_ids"][1:]
        )
        row["prompt_logprobs"] = [None, *said]
    tables("logged", rows, "jsonl")


def _labels() -> None:
    """A classifier of texts, and one that ranks, with texts of each form."""
    bert(Path("labels"), **labels("bad", "good"))
    bert(Path("ranks"), num_labels=1)
    Path("ranks.toml").write_text('[data]\ngroup = "query"\nid = "id"\n')
    random = np.random.default_rng(0)
    said = [" ".join(random.choice(PLAIN, 5)) for _ in range(60)]
    names = ["bad", "good"]
    tables("reviews", [{"text": t, "label": names[n % 2]} for n, t in enumerate(said)], *_TABLES)
    lists = [{"text": t, "label": names[: n % 3]} for n, t in enumerate(said)]
    tables("several", lists, "jsonl", "parquet")
    hot = [{"text": t, "bad": n % 2, "good": int(n % 3 > 0)} for n, t in enumerate(said)]
    tables("several", hot, "csv")
    pairs = zip(said, reversed(said), strict=True)
    asked = [
        {"query": n // 6, "id": n, "sentence1": a, "sentence2": b, "score": n % 3}
        for n, (a, b) in enumerate(pairs)
    ]
    tables("queries", asked, "tsv", "jsonl", "parquet")


def _tags() -> None:
    """A tagger, with words and tags of each form."""
    tags = ("O", "B-GOOD", "I-GOOD")
    bert(Path("tags"), BertForTokenClassification, **labels(*tags))
    rows = [(WORDS[n % 9 : n % 9 + 4], [*tags, "O"]) for n in range(40)]
    listed = [{"tokens": words, "tags": own} for words, own in rows]
    tables("tagged", listed, "jsonl", "json", "parquet")
    both = [list(zip(words, own, strict=True)) for words, own in rows]
    for kind in ("conll", "txt"):
        texts = ("".join(f"{word} {tag}\n" for word, tag in own) for own in both)
        Path(f"tagged.{kind}").write_text("-DOCSTART- O\n\n" + "\n".join(texts))
    lines = ("".join(f"{k}\t{w}\t_\t{t}\n" for k, (w, t) in enumerate(own, 1)) for own in both)
    Path("tagged.conllu").write_text("# text\n" + "\n".join(lines))


def tables(name: str, rows: list[dict[str, Any]], *kinds: str) -> None:
    """Rows as files of these kinds."""
    import pyarrow as pa
    import pyarrow.parquet

    for kind in kinds:
        path, mark = Path(f"{name}.{kind}"), {"csv": ",", "tsv": "\t"}.get(kind)
        if mark:
            lines = [list(rows[0]), *(map(str, row.values()) for row in rows)]
            path.write_text("".join(mark.join(line) + "\n" for line in lines))
        elif kind == "parquet":
            pa.parquet.write_table(pa.Table.from_pylist(rows), path)
        elif kind == "json":
            path.write_text(json.dumps(rows))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _pairs() -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij"]
    words = {word: i for i, word in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    template = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.post_processor = template
    wrapped = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 16}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **wrapped).save_pretrained("sentences")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"intermediate_size": 16, "max_position_embeddings": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes, **more)).save_pretrained("sentences")
    folder = Path("sentences")
    (folder / "1_Pooling").mkdir()
    kinds = ("Transformer", "Pooling")
    modules = [
        {
            "idx": n,
            "name": str(n),
            "path": "1_Pooling" if n else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for n, kind in enumerate(kinds)
    ]
    for name, content in (
        ("modules.json", modules),
        (
            "1_Pooling/config.json",
            {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True},
        ),
        ("sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": False}),
        (
            "config_sentence_transformers.json",
            {"prompts": {"query": "a "}, "similarity_fn_name": "cosine"},
        ),
    ):
        (folder / name).write_text(json.dumps(content))
    random = np.random.default_rng(0)
    said = [[" ".join(random.choice(names[4:], 5)) for _ in range(2)] for _ in range(60)]
    scored = [{"sentence1": a, "sentence2": b, "score": n % 6} for n, (a, b) in enumerate(said)]
    tables("pairs", scored, "csv", "tsv", "jsonl", "parquet")
    Path("sentences.txt").write_text("".join(f"{a}\n" for a, _ in said))
    rows = (f"main\tnews\t2012\t{n}\t{n % 6}\t{a}\t{b}\n" for n, (a, b) in enumerate(said))
    Path("sts.csv").write_text("".join(rows))


def _images() -> None:
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 1}
    sizes |= {"num_heads": 2}
    shown = {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)}
    pixels = timm.create_model(
        "vit_tiny_patch16_224", **sizes, num_classes=3, pretrained_cfg_overlay=shown
    )
    Path("pixels").mkdir()
    timm.models.save_for_hf(pixels, "pixels", model_args=sizes, safe_serialization=True)
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_hidden_layers": 1}
    sizes |= {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    ViTForImageClassification(ViTConfig(**sizes, num_labels=3)).save_pretrained("vit")
    seen = {"size": {"height": 8, "width": 8}, "image_mean": [0.5], "image_std": [0.5]}
    ViTImageProcessor(**seen).save_pretrained("vit")
    images = np.random.default_rng(0).integers(0, 255, (30, 8, 8)).astype("uint8")
    labels = (np.arange(30) % 3).astype("uint8")
    np.savez("images.npz", images=images, labels=labels.astype(int))
    Path("idx").mkdir()
    for part in ("train", "t10k"):
        head = struct.pack(">HBBIII", 0, 8, 3, 30, 8, 8)
        Path(f"idx/{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        content = struct.pack(">HBBI", 0, 8, 1, 30) + labels.tobytes()
        Path(f"idx/{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = Path("pictures") / "abc"[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.{('png', 'jpg')[number % 2]}")
    album = [{"file_name": f"{n % 3}/{n}.png", "label": "abc"[n % 3]} for n in range(30)]
    for n, row in enumerate(album):
        place = Path("album") / row["file_name"]
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[n]).save(place)
    tables("album/metadata", album, "csv")
    listed = [{"path": f"album/{row['file_name']}", "label": row["label"]} for row in album]
    tables("album", listed, "jsonl", "parquet")
