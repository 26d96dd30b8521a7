"""A folder with files of every kind that matta reads, and the commands that read each of them."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from test_cli import gpt2, tokenizer_of
from test_kills import TRAIN, typed
from test_runs import ranker, table
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
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
_PIXELS = "convert pixels --out other --data"
_TEXT = "convert words --out other --data"
_PAIRS = "convert sentences --out other --data"
_WORDED = f"{_SHORT} --out worded --data text.txt --teacher"
_PICTURED = f"{_SHORT} --out pictured --data images.npz --teacher"
_PAIRED = f"{_SHORT} --out paired --data pairs.csv --teacher"
_SAID = "--data text.txt --teacher words --allow-weak-teacher"
# files -> the lines that read them
READERS = {
    f"{OUT}/ta/*.json": ["inspect", DISTILL, "search --trials 1"],
    f"{OUT}/ta/*.safetensors": ["inspect", DISTILL],
    f"{OUT}/ta/importance/*": ["inspect", "report"],
    f"{OUT}/ta/recipe.toml": ["recipe show", "inspect"],
    f"{OUT}/matta.toml": ["recipe show", DISTILL, "report"],
    "matta.toml": ["recipe show", "convert model.pt --out other"],
    "other.toml": ["recipe show --config other.toml", "convert model.pt --config other.toml"],
    "ranker.json": ["convert model.pt --out other --config ranker.json"],
    f"{OUT}/run/recipe.toml": ["recipe show --ran", "report", "distill --resume --steps 5"],
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
    f"{OUT}/report.json": ["report"],
    f"{OUT}/search/trials.jsonl": ["search --trials 3 --target-params 60"],
    f"{OUT}/search/*.json": ["search --trials 3 --target-params 60", "report", "export"],
    f"{OUT}/baselines/*/baseline.json": ["report --baselines ground-truth"],
    f"{OUT}/baselines/*/*/*.json": ["report --baselines ground-truth"],
    "said/*": [f"{_SHORT} --teacher said", "teach --teacher teacher.pt --to said --overwrite"],
    f"{OUT}/run/checkpoints/step-4/SHA256SUMS": ["distill --resume --steps 5", "report"],
    "said/teacher.json": [f"{_SHORT} --teacher said", "teach --teacher teacher.pt --to said"],
    "said.parquet": [f"{_SHORT} --teacher said.parquet"],
    "said.jsonl": [f"{_SHORT} --teacher said.jsonl"],
    "said.safetensors": [f"{_SHORT} --teacher said.safetensors"],
    "model.pt": ["convert model.pt --out other", "eval model.pt", f"{_SHORT} --teacher model.pt"],
    "nested.pt": ["convert nested.pt --out other", "inspect nested.pt"],
    "model.safetensors": ["convert model.safetensors --out other"],
    "model.gguf": ["convert model.gguf --out other", f"{_SHORT} --teacher model.gguf"],
    "train.csv": [DISTILL],
    "train.parquet": [f"{DISTILL} --data train.parquet"],
    "train.svm*": [f"{DISTILL} --data train.svm", f"{DISTILL} --data train.svm.gz"],
    "words/*.json": [f"{_TEXT} text.txt", "convert words --out other", f"{_WORDED} words"],
    "words/model.safetensors": ["convert words --out other"],
    "text.txt": [f"{_TEXT} text.txt"],
    "text.jsonl": [f"{_TEXT} text.jsonl"],
    "chat.jsonl": [f"{_TEXT} chat.jsonl"],
    "text.parquet": [f"{_TEXT} text.parquet"],
    "images.npz": [f"{_PIXELS} images.npz"],
    "idx/*": [f"{_PIXELS} idx"],
    "pictures/*/*": [f"{_PIXELS} pictures"],
    "pixels/*": [f"{_PIXELS} images.npz", "convert pixels --out other", f"{_PICTURED} pixels"],
    "vit/*.json": ["convert vit --out other --data images.npz", f"{_PICTURED} vit"],
    "sentences/**/*": [
        f"{_PAIRS} pairs.csv",
        "convert sentences --out other",
        f"{_PAIRED} sentences",
    ],
    "pairs.csv": [f"{_PAIRS} pairs.csv"],
    "pairs.tsv": [f"{_PAIRS} pairs.tsv"],
    "worded/ta/*.json": ["inspect --out worded", f"{_WORDED} words"],
    "paired/ta/*.json": ["inspect --out paired", f"{_PAIRED} sentences"],
    "pictured/ta/*.json": ["inspect --out pictured", f"{_PICTURED} pixels"],
    "worded/said/*": [f"{_SHORT} --out worded --data text.txt --teacher worded/said"],
}


def project(folder: Path) -> None:
    """Make it."""
    before = Path.cwd()
    os.chdir(folder)
    _rows()
    _texts()
    _pairs()
    _images()
    Path("matta.toml").write_text('[data]\ntrain = "train.csv"\n[export]\nbootstrap = 5\n')
    shutil.copy("matta.toml", "other.toml")
    Path("ranker.json").write_text('{"activation": "ReLU", "dropout": 0.1}')
    typed("convert model.pt --expand 2")
    typed(f"distill --teacher teacher.pt --steps 4 --eval-every 2 {TRAIN}")
    typed(f"teach --teacher teacher.pt --to said {TRAIN}")
    typed("search --target-params 60 --trials 2")
    typed("export --widths 0.5,1")
    typed("report --baselines ground-truth")
    for source, out, data in (
        ("words", "worded", "text.txt"),
        ("sentences", "paired", "pairs.csv"),
        ("pixels", "pictured", "images.npz"),
    ):
        typed(f"convert {source} --out {out} --data {data}")
    typed(
        "teach --out worded --data text.txt --teacher words --to worded/said --allow-weak-teacher"
    )
    os.chdir(before)


def _rows() -> None:
    import pyarrow as pa
    import pyarrow.parquet

    table(Path("train.csv"), rows=60)
    rows = np.loadtxt("train.csv", delimiter=",", skiprows=1)
    columns = {name: rows[:, i] for i, name in enumerate(("a", "b", "c", "d", "label"))}
    pa.parquet.write_table(pa.table(columns), "train.parquet")
    cells = [" ".join(f"{i}:{value:.5f}" for i, value in enumerate(row[:4], 1)) for row in rows]
    lines = "".join(f"{int(row[4])} {own}\n" for row, own in zip(rows, cells, strict=True))
    Path("train.svm").write_text(lines)
    for suffix in (".query", ".group"):
        Path(f"train.svm{suffix}").write_text("6\n" * 10)
    queried = "".join(
        f"{int(r[4])} qid:{n // 6} {c}\n" for n, (r, c) in enumerate(zip(rows, cells, strict=True))
    )
    Path("train.svm.gz").write_bytes(gzip.compress(queried.encode()))
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
    import pyarrow as pa
    import pyarrow.parquet

    text = "\n\n".join(f"The {n}th paragraph of a text says what {n * n} is." for n in range(80))
    parts = text.split("\n\n")
    Path("text.txt").write_text(text)
    Path("text.jsonl").write_text("".join(f'{{"text": "{part}"}}\n' for part in parts))
    pa.parquet.write_table(pa.table({"text": parts}), "text.parquet")
    said = [[{"role": "user", "content": p}, {"role": "assistant", "content": p}] for p in parts]
    Path("chat.jsonl").write_text("".join(json.dumps({"messages": own}) + "\n" for own in said))
    gpt2(320).save_pretrained("words")
    tokenizer_of(text).save_pretrained("words")
    tensor = b"".join((struct.pack("<Q", 10) + b"token_embd", struct.pack("<IQQIQ", 2, 4, 4, 0, 0)))
    key = struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 4) + b"gpt2"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + key + tensor
    Path("model.gguf").write_bytes(head.ljust(-(-len(head) // 32) * 32, b"\0") + bytes(64))


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
    for path, mark in (("pairs.csv", ","), ("pairs.tsv", "\t")):
        rows = [
            ["sentence1", "sentence2", "score"],
            *([*own, str(n % 6)] for n, own in enumerate(said)),
        ]
        Path(path).write_text("".join(mark.join(row) + "\n" for row in rows))


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
