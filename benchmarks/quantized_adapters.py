"""Each adapter's Student in 8 bits beside its float one: quality, bytes and latency.

For each adapter one toy model (those of benchmarks.support, two layers, weights drawn by chance)
whose half is trained on the labels of a small task: scikit-learn's digits, which topic twenty words
of Python's reference are of, that reference as text. Then one export with --quantize, in the kind
of 8 bits that is for such a model. The ranker is that of benchmarks.quantized (--data names a
folder that holds the LambdaRank example). The table goes to stderr; its times are of the processor.
That nothing breaks is seen here, and no more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import save_for_hf

import matta_cli
from benchmarks import common, quantized, support
from benchmarks.quality.problem import Missing
from benchmarks.quantized import BATCH, rows
from matta_cli.conversion.convert import convert
from matta_cli.family import export
from matta_cli.files.workspace import Workspace
from matta_cli.formats.quantized import opened, usual
from matta_cli.measure.cost import device_card, in_turns, threads
from matta_cli.models import plugins
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.task import Task, task
from matta_cli.training.run import distill

WIDTHS = [0.5]
VOCABULARY, WORDS, TOKENS, SIDE = 512, 20, 48, 32
TOPICS = ("compound", "specialnames", "types", "string-methods")
TEXTS = {"vocab_size": VOCABULARY, "num_labels": len(TOPICS), "max_position_embeddings": TOKENS + 4}
# adapter: how its model is made
IMAGES = {
    "vit": support.image("vit_tiny_patch16_224", **support.VIT),
    "vit_transformers": support.like_vit("vit"),
    "deit": support.like_vit("deit", "DeiTForImageClassification"),
    "deit_distilled": support.like_vit("deit", "DeiTForImageClassificationWithTeacher"),
    "beit": support.like_vit("beit", use_relative_position_bias=True),
    "dinov2": support.like_vit("dinov2"),
    "dinov2_with_registers": support.like_vit("dinov2_with_registers"),
    "clip": support.like_vit("clip"),
    "siglip": support.like_vit("siglip"),
    "auto": support.image("test_resnet"),
}
CLASSIFIERS = {
    "bert": support.classifier("bert", **TEXTS),
    "roberta": support.classifier("roberta", **TEXTS),
    "distilbert": support.classifier("distilbert", **TEXTS),
    "electra": support.classifier("electra", **TEXTS),
    "mpnet": support.classifier("mpnet", **TEXTS),
    "modernbert": support.classifier("modernbert", **support.SPECIAL, **TEXTS),
    "deberta": support.classifier("deberta-v2", **support.DEBERTA, **TEXTS),
}
LANGUAGE = {
    "gpt2": lambda: support.gpt2(vocab_size=VOCABULARY, n_positions=TOKENS),
    "llama": support.like_llama("llama", vocab_size=VOCABULARY),
    "gemma": support.like_llama("gemma3_text", vocab_size=VOCABULARY),
    "phi3": support.like_llama("phi3", vocab_size=VOCABULARY),
    "gpt_neox": support.like_llama("gpt_neox", vocab_size=VOCABULARY),
    "opt": lambda: support.opt(vocab_size=VOCABULARY),
}
RANKER = "mlp_ranker"
EVERY = (*IMAGES, *CLASSIFIERS, *LANGUAGE, RANKER)


def digits(folder: Path, recipe: Recipe) -> None:
    """Scans of handwritten digits, four times as large."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images = (found.images[order] * (255 / 16)).round().astype("uint8")
    images = images.repeat(SIDE // 8, axis=1).repeat(SIDE // 8, axis=2)
    for name, part in (("train", slice(400, None)), ("test", slice(400))):
        np.savez(folder / f"{name}.npz", images=images[part], labels=found.target[order][part])
    recipe.data.train, recipe.data.held_out = str(folder / "train.npz"), str(folder / "test.npz")


def topics(folder: Path, recipe: Recipe) -> None:
    """Twenty words of a topic of Python's reference, every fourth of which is held out."""
    from pydoc_data.topics import topics as found

    parts: dict[str, list[str]] = {"train": ["label\ttext"], "test": ["label\ttext"]}
    for number, name in enumerate(TOPICS):
        words = found[name].split()
        for k, start in enumerate(range(0, len(words) - WORDS, WORDS)):
            text = " ".join(words[start : start + WORDS])
            parts["train" if k % 4 else "test"].append(f"{number}\t{text}")
    for name, lines in parts.items():
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe.data.train, recipe.data.held_out = str(folder / "train.tsv"), str(folder / "test.tsv")


def reference(folder: Path, recipe: Recipe) -> None:
    """Python's reference as text."""
    from pydoc_data.topics import topics as found

    text = "\n\n".join(found[name].strip() for name in sorted(found))
    (folder / "reference.txt").write_text(text, encoding="utf-8")
    recipe.data.train, recipe.data.sequence_length = str(folder / "reference.txt"), TOKENS
    recipe.data.eval_examples, recipe.export.new_tokens = 300, 8


def tokenizer(folder: Path) -> None:
    """One of 512 tokens, which begins no text with a token of its own."""
    from pydoc_data.topics import topics as found

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator(
        list(found.values()),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<end>", "<pad>"],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    named = {"eos_token": "<end>", "bos_token": "<end>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=own, model_max_length=TOKENS, **named).save_pretrained(
        str(folder)
    )


KINDS = ((IMAGES, digits, 300), (CLASSIFIERS, topics, 300), (LANGUAGE, reference, 300))


def base(name: str, folder: Path) -> None:
    """A toy model with weights drawn by chance, as its library saves it."""
    torch.manual_seed(0)
    model = {**IMAGES, **CLASSIFIERS, **LANGUAGE}[name]()
    folder.mkdir()
    if name == "auto":  # which saves programs; its model here is one of timm
        save_for_hf(model, str(folder), model_config={"num_classes": 10})
    else:
        plugins.adapter(name).save(model, folder)
    if name not in IMAGES:
        tokenizer(folder)


def processor_time(own: Task, folder: Path, kind: str) -> list[float]:
    """Seconds that a forward keeps one thread busy, of the float Student and of its copy.

    Others may use the machine meanwhile: they take no processor time of this process.
    """
    student = matta_cli.load_student(str(folder)).eval()
    copy = opened(folder.with_name(f"{folder.name}-{kind}"), student, threads=1)
    batch = own.example(student, BATCH)

    def forward(model: Any) -> float:
        started = time.process_time()
        own.forward(model, batch)
        return time.process_time() - started

    with torch.no_grad(), threads(1):
        runs = {which: partial(forward, m) for which, m in (("float", student), (kind, copy))}
        return [statistics.median(taken) for taken in in_turns(runs, 50).values()]


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One adapter's run, and its export."""
    recipe, own = Recipe(), Recipe().distill
    with tempfile.TemporaryDirectory(prefix="matta-quantized-") as temp:
        folder, out = Path(temp), Path(temp) / "out"
        data, steps = next((how, n) for models, how, n in KINDS if name in models)
        base(name, folder / "base")
        data(folder, recipe)
        recipe.convert.adapter, recipe.convert.source = name, str(folder / "base")
        own = recipe.distill
        own.teacher, own.teacher_mix, own.allow_weak_teacher = recipe.convert.source, 0.0, True
        own.steps = options.steps or (max(4, steps // 20) if options.quick else steps)
        own.lr, own.batch_size, own.widths, own.device = 3e-3, 32, WIDTHS, "cpu"
        recipe.convert.order, recipe.export.widths = "none", WIDTHS
        recipe.export.batch_size, recipe.export.bootstrap = BATCH, 300
        ta = convert(recipe, out).ta
        recipe.export.quantize = [usual(ta.model)]
        distill(recipe, out)
        report = export(recipe, out)
        kind = recipe.export.quantize[0]
        student = Workspace(out).students / "width-0.5"
        taken = processor_time(task(ta.adapter.task, recipe), student, kind)
    return {
        "processor_seconds": taken,
        "metric": report.metrics[0].label,
        "steps": own.steps,
        "held_out": report.data.rpartition("held out ")[2],
        "models": rows(report),
    }


def ranker(options: argparse.Namespace) -> dict[str, Any]:
    """The same of the ranker, as benchmarks.quantized runs it."""
    given = {**vars(options), "quantize": "int8", "examples": 0}
    with tempfile.TemporaryDirectory(prefix="matta-quantized-") as temp:
        return quantized.measure("lambdarank", Path(temp), argparse.Namespace(**given))


def table(found: dict[str, Any]) -> str:
    """What was measured, for people: a row for each quantized Student."""
    head = (
        "adapter | metric | Student | bytes | of it | float | difference | verdict | float | 8 bits"
    )
    lines = [f"| {head} |", "|---" * 10 + "|"]
    for name, own in found.items():
        floats = {model["model"]: model for model in own["models"]}
        for model in own["models"]:
            of = floats.get(model["model"].rpartition(" ")[0])
            if not model["gain"] or of is None:
                continue
            (value, *_), (gain, low, high) = of["value"], model["gain"]
            taken = own.get("processor_seconds") or [m["seconds"].get(BATCH) for m in (of, model)]
            cells = [name, own["metric"], model["model"], f"{of['bytes'] / 1e3:.0f} kB"]
            cells += [f"{model['bytes'] / of['bytes']:.2f}", f"{value:.4g}"]
            cells += [f"{gain:+.3g} [{low:+.3g}, {high:+.3g}]", model["verdict"]]
            cells += [f"{1e3 * one:.2f} ms" for one in taken]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    arguments = common.parser(__doc__)
    arguments.add_argument("--data", type=Path, action="append", default=[])
    arguments.add_argument("--adapters", default=",".join(EVERY))
    arguments.add_argument("--steps", type=int, default=0, help="of each run; 0: enough to learn")
    options = arguments.parse_args()
    found: dict[str, Any] = {}
    for name in options.adapters.split(","):
        sys.stderr.write(f"{name}\n")
        try:
            found[name] = ranker(options) if name == RANKER else measure(name, options)
        except Missing as error:
            sys.stderr.write(f"{name} is left out: {error}.\n")
            continue
        sys.stderr.write(f"{table({name: found[name]})}\n")
    sys.stderr.write(f"{table(found)}\n")
    processor = device_card(common.device())["name"]
    common.result("quantized_adapters", processor=processor, adapters=found, quick=options.quick)


if __name__ == "__main__":
    main()
