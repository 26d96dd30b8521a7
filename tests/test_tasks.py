"""Losses and tasks on tiny real data and models, against independent references."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sample_text import byte_tokenizer, prose
from torch import nn

from matta_cli.data import find
from matta_cli.data.split import sample
from matta_cli.data.text import Text, cut
from matta_cli.errors import MattaError
from matta_cli.losses import classes as losses_classes
from matta_cli.losses import targets
from matta_cli.losses.classes import IGNORED, counts, of_classes
from matta_cli.losses.rows import (
    listwise,
    listwise_distill,
    pairwise,
    pairwise_distill,
    pointwise,
    pointwise_distill,
)
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks.causal_lm.examples import Paragraphs
from matta_cli.tasks.causal_lm.task import CausalLM
from matta_cli.tasks.image_classification.task import ImageClassification
from matta_cli.tasks.ranking.task import Ranking


def recipe(**data: object) -> Recipe:
    found = Recipe()
    distill = {"ranking_loss": data.pop("ranking_loss")} if "ranking_loss" in data else {}
    found.update({"data": data, "distill": distill}, "test")
    return found


def columns(task, model, split, size=3):
    gathered: dict[str, list[np.ndarray]] = {}
    with torch.no_grad():
        for start in range(0, len(split), size):
            batch = split.batch(range(start, min(start + size, len(split))))
            for name, values in task.score(task.forward(model, batch), batch).items():
                assert values.ndim == 1
                gathered.setdefault(name, []).append(values.numpy())
    return {name: np.concatenate(parts) for name, parts in gathered.items()}


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(s, t, tau):
    over = {"labels": 1.0, "outputs": float(s.shape[:-1].numel())}
    term = targets.Term("teacher", 1.0, targets.Logits(t))
    return of_classes(targets.Logits(s), torch.zeros(s.shape[:-1]), [term], over, tau)[0]


@pytest.mark.parametrize("chunk", [1 << 24, 16])
def test_kl_is_the_closed_form_and_its_gradient(chunk, monkeypatch):
    monkeypatch.setattr(losses_classes, "_CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    s, t = (3 * torch.randn(2, 5, 7, generator=generator) for _ in range(2))
    s.requires_grad_()
    tau = 3.0
    p, q = softmax(s.detach().double().numpy() / tau), softmax(t.double().numpy() / tau)
    loss = kl(s, t, tau)
    loss.backward()
    assert loss.item() == pytest.approx(tau**2 * (q * np.log(q / p)).sum(-1).mean(), rel=1e-5)
    np.testing.assert_allclose(s.grad.numpy(), tau * (p - q) / 10, atol=1e-6)
    assert kl(s, s.detach(), tau).item() == pytest.approx(0, abs=1e-6)
    assert kl(s.bfloat16(), t.bfloat16(), tau).dtype is torch.float32


@pytest.mark.parametrize("chunk", [1 << 24, 16])
def test_cross_entropy_skips_ignored_labels(chunk, monkeypatch):
    monkeypatch.setattr(losses_classes, "_CHUNK", chunk)
    s = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.randint(0, 7, (3, 4), generator=torch.Generator().manual_seed(1))
    labels[:, -1] = IGNORED
    over = counts(labels)
    loss, _ = of_classes(targets.Logits(s), labels, [targets.Term("truth", 1.0)], over, 1.0)
    (gradient,) = torch.autograd.grad(loss, s)
    reference = nn.functional.cross_entropy(s[:, :-1].reshape(-1, 7), labels[:, :-1].reshape(-1))
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(gradient, torch.autograd.grad(reference, s)[0])


SCORES = torch.tensor([0.3, -1.2, 2.0, 0.7, 0.1, -0.4, 1.5])
TEACHER = torch.tensor([1.3, -0.2, 0.5, 2.0, -1.0, 0.0, 0.9])
GRADES = torch.tensor([2.0, 0.0, 1.0, 0.0, 1.0, 0.0, 3.0])
GROUP = torch.tensor([0, 1, 0, 1, 2, 0, 1])  # not contiguous; the last one is a group of one row


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def bernoulli(q: float, p: float) -> float:
    return q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))


def pairs():
    return [(i, j) for i in range(7) for j in range(i + 1, 7) if GROUP[i] == GROUP[j]]


def test_pointwise():
    reference = np.sum(
        [
            -math.log(sigmoid(s if g > 0 else -s))
            for s, g in zip(SCORES.tolist(), GRADES.tolist(), strict=True)
        ]
    )
    assert pointwise(SCORES, GRADES).item() == pytest.approx(reference, rel=1e-5)
    assert pointwise(SCORES, torch.where(GRADES > 0, 1, -1)).item() == pytest.approx(
        reference, rel=1e-5
    )
    tau = 2.0
    soft = [
        bernoulli(sigmoid(t / tau), sigmoid(s / tau))
        for s, t in zip(SCORES.tolist(), TEACHER.tolist(), strict=True)
    ]
    assert pointwise_distill(SCORES, TEACHER, tau).item() == pytest.approx(
        tau**2 * np.sum(soft), rel=1e-5
    )


def test_pairwise():
    s, t, g, tau = SCORES.tolist(), TEACHER.tolist(), GRADES.tolist(), 2.0
    hard = [
        -math.log(sigmoid((s[i] - s[j]) * (1 if g[i] > g[j] else -1)))
        for i, j in pairs()
        if g[i] != g[j]
    ]
    assert pairwise(SCORES, GRADES, GROUP).item() == pytest.approx(np.sum(hard), rel=1e-5)
    soft = [
        bernoulli(sigmoid((t[i] - t[j]) / tau), sigmoid((s[i] - s[j]) / tau)) for i, j in pairs()
    ]
    assert pairwise_distill(SCORES, TEACHER, GROUP, tau).item() == pytest.approx(
        tau**2 * np.sum(soft), rel=1e-5
    )


def test_listwise():
    s, t, g, tau = (
        x.double().numpy() if isinstance(x, torch.Tensor) else x
        for x in (SCORES, TEACHER, GRADES, 2.0)
    )
    members = [np.flatnonzero(GROUP.numpy() == k) for k in range(3)]
    hard = [-(softmax(g[m]) * np.log(softmax(s[m]))).sum() for m in members]
    assert listwise(SCORES, GRADES, GROUP).item() == pytest.approx(np.sum(hard), rel=1e-5)
    soft = [
        (softmax(t[m] / tau) * np.log(softmax(t[m] / tau) / softmax(s[m] / tau))).sum()
        for m in members
    ]
    assert listwise_distill(SCORES, TEACHER, GROUP, tau).item() == pytest.approx(
        tau**2 * np.sum(soft), rel=1e-5
    )


def test_ranking_losses_have_gradients_even_without_pairs():
    alone = torch.arange(7)
    for loss in (pairwise, listwise):
        scores = SCORES.clone().requires_grad_()
        loss(scores, GRADES, alone).backward()
        assert scores.grad is not None and not scores.grad.any()
    scores = SCORES.clone().requires_grad_()
    pairwise_distill(scores, TEACHER, alone, 2.0).backward()
    assert not scores.grad.any()


def test_sample_is_fixed_and_spread(tmp_path):
    class Numbers:
        def __len__(self):
            return 1000

        def batch(self, indices):
            return {"i": torch.tensor(list(indices))}

    first, again = (sample(Numbers(), 100).batch(range(100))["i"] for _ in range(2))
    assert torch.equal(first, again) and first.unique().numel() == 100
    assert 350 < first[:50].float().mean() < 650
    assert sample(Numbers(), 0).batch(range(1000))["i"].sort().values.tolist() == list(range(1000))


def test_hub(tmp_path):
    rows = "\n".join(json.dumps({"text": f"line {i}"}) for i in range(5))
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(rows)
    splits = find.hub_dataset(str(tmp_path))  # datasets opens a local folder with the same call
    assert find.hub_split(splits, "it", "train", "")["text"][0] == "line 0"
    assert find.hub_held_out(splits, "it", "") is splits["test"]
    with pytest.raises(MattaError, match="has no split 'dev'; it has t"):
        find.hub_split(splits, "it", "dev", "data.split")
    with pytest.raises(
        MattaError, match=r"Could not reach 'nobody/nothing'.*--data with a local file or folder"
    ):
        find.hub_dataset("nobody/nothing")


def test_find_says_what_is_missing(tmp_path):
    assert find.find("owner/name") is None
    for text in ("./none", "none.txt", str(tmp_path / "none")):
        with pytest.raises(MattaError, match="There is no file or folder"):
            find.find(text)
    with pytest.raises(MattaError, match="pass --data with a file"):
        find.find("")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer([prose(100, 1)], 300).save_pretrained(folder)
    return folder


def text_of(*documents: str) -> Text:
    return Text("it", [], None, lambda: ((document, True) for document in documents))


def documents(text: Text) -> list[str]:
    found, parts = [], []
    for chunk, last in text.read():
        parts.append(chunk)
        if last:
            found.append("".join(parts))
            parts = []
    assert not parts
    return found


def gpt2(vocabulary: int = 300) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=1,
        n_embd=32,
        n_head=2,
        n_positions=64,
        vocab_size=vocabulary,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def test_causal_lm_packs_everything_in_order(tmp_path, tokenizer_folder):
    from transformers import AutoTokenizer

    (tmp_path / "train" / "sub").mkdir(parents=True)
    long = prose(3000, 2)  # longer than the pieces that are tokenized at once
    (tmp_path / "train" / "a.txt").write_text(long)
    (tmp_path / "train" / "sub" / "b.jsonl").write_text(
        json.dumps({"text": "one more\n\n dog"}) + "\n" + json.dumps({"text": "home"})
    )
    (tmp_path / "train" / "ignored.bin").write_text("x")
    held_out = tmp_path / "held.md"
    held_out.write_text(prose(30, 3))
    tmp_path = tmp_path / "train"
    task = CausalLM(recipe(train=str(tmp_path), held_out=str(held_out), sequence_length=16))
    data = task.data(tokenizer_folder, gpt2())
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    whole = [
        token
        for text in (long, "one more\n\n dog", "home")
        for token in [*tokenizer(text)["input_ids"], 0]
    ]
    batch = data.train.batch(range(len(data.train)))
    assert batch["input_ids"].dtype is torch.int64
    assert batch["input_ids"].flatten().tolist() == whole[: len(whole) // 16 * 16]
    assert task.items(batch) == len(data.train) * 15 and data.unit == "tokens"
    assert str(tmp_path) in data.description and f"{len(whole):,} tokens" in data.description


def test_causal_lm_agrees_with_transformers(tmp_path, tokenizer_folder):
    path = tmp_path / "text.txt"
    path.write_text(prose(200))
    task, model = CausalLM(recipe(train=str(path), sequence_length=32)), gpt2()
    data = task.data(tokenizer_folder, model)
    batch = data.train.batch([0, 3, 5])
    logits = task.forward(model, batch)
    reference = model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
    torch.testing.assert_close(task.loss(logits, batch), reference)
    assert task.distill_loss(logits, logits.detach(), batch).item() == pytest.approx(0, abs=1e-6)
    assert task.outputs(model) == 300

    text = data.held_out[0]
    nll, right, count = 0.0, 0, 0
    for i in range(len(text)):
        ids = text.batch([i])["input_ids"][0]
        p = softmax(model(input_ids=ids[None]).logits[0].double().detach().numpy())
        nll -= sum(math.log(p[k, ids[k + 1]]) for k in range(len(ids) - 1))
        right += sum(int(p[k].argmax() == ids[k + 1]) for k in range(len(ids) - 1))
        count += len(ids) - 1
    table = columns(task, model, text)
    found = task.summarize(table)
    assert found["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-5)
    assert found["next_token_accuracy"] == pytest.approx(right / count)
    assert "last_word_accuracy" not in found
    sentence = task.at_chance(table, 300)  # a random model
    assert sentence is not None and "5.704" in sentence and f"{nll / count:.3f}" in sentence
    assert task.at_chance({**table, "nll": table["nll"] / 2}, 300) is None
    assert task.at_chance({**table, "nll": table["nll"] * np.nan}, 300) is not None


@pytest.mark.parametrize("given", [True, False])
def test_last_word_is_a_greedy_loop(tmp_path, tokenizer_folder, given):
    from transformers import AutoTokenizer

    path, passages = tmp_path / "text.txt", tmp_path / "passages.jsonl"
    path.write_text(prose(600))
    texts = [prose(1, seed).rstrip(" .") for seed in range(40)] + [
        "word",
        " ".join([*["the mat"] * 50, "warm fire"]),
    ]
    passages.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    model = gpt2()
    torch.manual_seed(1)
    task = CausalLM(
        recipe(train=str(path), passages=str(passages) if given else "", eval_examples=0)
    )
    data = task.data(tokenizer_folder, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)  # so that some last words are right
    for step in range(60):
        batch = data.train.batch([i % len(data.train) for i in range(step * 4, step * 4 + 4)])
        optimizer.zero_grad()
        task.loss(task.forward(model, batch), batch).backward()
        optimizer.step()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    if not given:
        seen = Paragraphs()
        for text in documents(cut(text_of(path.read_text()))[1]):
            seen.add(text)
        texts = seen.passages()
        assert len(texts) > 20 and not any(text.endswith((".", " ")) for text in texts)
    expected = []
    for text in texts:
        context, space, word = text.rpartition(" ")
        if not space:
            continue
        ids, wanted = tokenizer(context)["input_ids"], tokenizer(" " + word)["input_ids"]
        ids = ids[-(64 - len(wanted)) :]  # the model has 64 positions
        right = True
        for token in wanted:
            right &= int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids = [*ids, token]
        expected.append(right)
    found = columns(task, model, data.held_out[1].whole)
    assert found["last_word"].astype(bool).tolist() == expected and 0 < sum(expected) < len(
        expected
    )
    assert task.summarize(found) == {"last_word_accuracy": pytest.approx(np.mean(expected))}
    assert task.at_chance(found, 300) is None
    batch = data.held_out[1].batch([0, 1])
    assert task.items(batch) == int(batch["target"].sum()) > 0


def test_cut_holds_out_a_tenth_and_loses_nothing():
    whole = [prose(50, k) for k in range(7)]
    train, held_out = map(documents, cut(text_of(*whole)))
    assert "".join(train + held_out) == "".join(whole)
    total = sum(map(len, whole))
    assert 0.1 <= sum(map(len, held_out)) / total < 0.2 and held_out[0].startswith("\n")
    with pytest.raises(MattaError, match="--held-out"):
        documents(cut(text_of("x"))[0])


def test_causal_lm_errors(tmp_path, tokenizer_folder):
    path, empty = tmp_path / "text.txt", tmp_path / "empty.txt"
    path.write_text(prose(50))
    empty.write_text(" \n")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"body": "x"}\n')
    for settings, folder, vocabulary, sentence in [
        ({"train": ""}, tokenizer_folder, 300, "There is no data: pass --data"),
        ({"train": str(path)}, tmp_path, 300, "There is no tokenizer in .*--tokenizer"),
        (
            {"train": str(path)},
            tokenizer_folder,
            299,
            "tokenizer has 300 tokens, but the model's vocabulary 299",
        ),
        ({"train": str(empty)}, tokenizer_folder, 300, "holds no text"),
        (
            {"train": str(rows)},
            tokenizer_folder,
            300,
            "has no column 'text'; it has body. Set data.text",
        ),
        (
            {"train": str(path), "sequence_length": 65},
            tokenizer_folder,
            300,
            "is 65, but the model has 64 positions",
        ),
        ({"train": str(rows), "text": "body"}, tokenizer_folder, 300, "pass --held-out"),
        (
            {"train": str(path), "held_out": str(path), "passages": str(rows)},
            tokenizer_folder,
            300,
            "no column 'text'; it has b",
        ),
    ]:
        with pytest.raises(MattaError, match=sentence):
            CausalLM(recipe(**settings)).data(folder, gpt2(vocabulary))
    (tmp_path / "bare").mkdir()
    # transformers would make up a tokenizer of one token here
    gpt2().config.save_pretrained(tmp_path / "bare")
    with pytest.raises(MattaError, match="no tokenizer"):
        CausalLM(recipe(train=str(path))).data(tmp_path / "bare", gpt2())


def test_parquet_text_and_evaluation_only(tmp_path, tokenizer_folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "held.parquet"
    pq.write_table(pa.table({"body": [prose(20), prose(20, 1)]}), path)
    data = CausalLM(recipe(held_out=str(path), text="body", eval_examples=2)).data(
        tokenizer_folder, gpt2(), training=False
    )
    assert [len(split) for split in data.held_out] == [2, 2]


def vit(classes: int = 6, channels: int = 1) -> nn.Module:
    import timm

    torch.manual_seed(0)
    return timm.create_model(
        "test_vit", num_classes=classes, img_size=28, patch_size=14, in_chans=channels
    ).eval()


def write_idx(folder: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    header = bytes([0, 0, 8, 3]) + np.array(images.shape, dtype=">u4").tobytes()
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz", "wb") as file:
        file.write(header + images.tobytes())
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(
        bytes([0, 0, 8, 1]) + np.array(len(labels), dtype=">u4").tobytes() + labels.tobytes()
    )


def pictures(count: int, seed: int = 0, side: int = 28) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, side, side), dtype=np.uint8), (
        np.arange(count) % 6
    ).astype(np.uint8)


def test_idx_files(tmp_path):
    from torchvision.datasets.mnist import read_label_file

    images, labels = pictures(24)
    write_idx(tmp_path, "train", images, labels)
    write_idx(tmp_path, "t10k", images[:12], labels[:12])
    assert read_label_file(str(tmp_path / "train-labels-idx1-ubyte")).tolist() == labels.tolist()
    task, model = ImageClassification(recipe(train=str(tmp_path))), vit()
    data = task.data(tmp_path, model)
    for _ in range(2):  # prepared, then kept
        batch = data.train.batch([5, 2, 5])
        reference = (torch.from_numpy(images[[5, 2, 5]]).float() / 255 - 0.5) / 0.5
        torch.testing.assert_close(batch["image"], reference[:, None])
        assert batch["label"].tolist() == [5, 2, 5]
    assert len(data.held_out[0]) == 12 and data.unit == "images" and task.items(batch) == 3
    logits = task.forward(model, batch)
    torch.testing.assert_close(
        task.loss(logits, batch), nn.functional.cross_entropy(logits, batch["label"])
    )
    assert task.distill_loss(logits, logits.detach(), batch).item() == pytest.approx(0, abs=1e-6)

    from sklearn.metrics import top_k_accuracy_score

    held_out = data.held_out[0].batch(range(12))
    table = columns(task, model, data.held_out[0])
    scores = model(held_out["image"]).detach().numpy()
    found = task.summarize(table)
    for k in (1, 5):
        assert found[f"top{k}"] == pytest.approx(
            top_k_accuracy_score(held_out["label"], scores, k=k, labels=range(6))
        )


def test_images_at_chance_and_few_classes():
    task = ImageClassification(recipe())
    label = torch.arange(500) % 5
    logits = torch.nn.functional.one_hot(label, 5).float()
    table = {name: values.numpy() for name, values in task.score(logits, {"label": label}).items()}
    assert task.summarize(table)["top1"] == 1.0 and "top5" not in task.summarize(table)
    assert task.at_chance(table, 5) is None
    table = {
        name: values.numpy()
        for name, values in task.score(torch.ones(500, 5), {"label": label}).items()
    }
    assert "0.2000 on 500 images, and guessing among 5 classes gives 0.2000" in task.at_chance(
        table, 5
    )
    table = {
        name: values.numpy()
        for name, values in task.score(logits * torch.nan, {"label": label}).items()
    }
    assert "500 of its 500 outputs are not finite" in task.at_chance(table, 5)


@pytest.mark.parametrize("nested", [True, False])
def test_image_folder_is_what_timm_prepares(tmp_path, nested):
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config

    colours = np.random.default_rng(0).integers(0, 256, (40, 50, 60, 3), dtype=np.uint8)
    for i, pixels in enumerate(colours):
        folder = (
            tmp_path / ("val" if i % 4 == 0 else "train") / f"class{i % 2}"
            if nested
            else tmp_path / f"class{i % 2}"
        )
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    model = vit(classes=2, channels=3)
    if nested:
        for i in (1, 3):  # val has both classes
            Image.fromarray(colours[i]).save(
                (tmp_path / "val" / "class1").mkdir(exist_ok=True)
                or tmp_path / "val" / "class1" / f"{i}.png"
            )
    data = ImageClassification(recipe(train=str(tmp_path))).data(tmp_path, model)
    assert (len(data.train), len(data.held_out[0])) == ((30, 12) if nested else (36, 4))
    transform = create_transform(
        **{**resolve_model_data_config(model), "input_size": (3, 28, 28)}, is_training=False
    )
    batch = data.train.batch([0])
    torch.testing.assert_close(
        batch["image"][0], transform(Image.fromarray(colours[2 if nested else 0]))
    )
    held_out = data.held_out[0].batch(range(len(data.held_out[0])))
    assert set(held_out["label"].tolist()) == {0, 1}


def test_image_errors(tmp_path):
    images, labels = pictures(24)
    arrays = {
        "good": (images, labels),
        "float": (images / 255, labels),
        "short": (images, labels[:3]),
        "high": (images, labels + 4),
        "low": (images, labels % 3),
    }
    for name, (x, y) in arrays.items():
        np.savez(tmp_path / f"{name}.npz", images=x, labels=y)
    np.savez(tmp_path / "other.npz", x=images)
    (tmp_path / "none").mkdir()
    (tmp_path / "broken.npz").write_text("x")
    (tmp_path / "empty.npz").touch()
    np.savez_compressed(tmp_path / "flipped.npz", images=images, labels=labels)
    packed = bytearray((tmp_path / "flipped.npz").read_bytes())
    packed[200:203] = b"\xff\xff\xff"
    (tmp_path / "flipped.npz").write_bytes(packed)
    np.savez(tmp_path / "object.npz", images=images, labels=np.array([None] * 24))
    model = vit()
    for name, sentence in [
        ("float.npz", r"are float64 \[24, 28, 28\]; uint8"),
        ("short.npz", r"one whole number for each of the 24 images"),
        ("high.npz", "has 10 classes, but the model has 6"),
        ("low.npz", "has 3 classes, but the model has 6"),
        ("other.npz", "has no array 'images'; it has x"),
        *(
            (f"{name}.npz", f"{name}.npz' cannot be read: it is damaged, no .npz")
            for name in ("broken", "empty", "object", "flipped")
        ),
        ("none", "holds no images"),
        ("missing.npz", "There is no file or folder"),
    ]:
        with pytest.raises(MattaError, match=sentence):
            ImageClassification(recipe(train=str(tmp_path / name))).data(tmp_path, model)
    good = str(tmp_path / "good.npz")
    data = ImageClassification(recipe(held_out=str(tmp_path / "low.npz"))).data(
        tmp_path, model, training=False
    )
    assert len(data.held_out[0]) == 24  # a sample to measure on may lack classes
    assert (
        len(
            ImageClassification(recipe(train=good, eval_examples=1))
            .data(tmp_path, model)
            .held_out[0]
        )
        == 1
    )


def test_large_image_sets_are_not_kept(tmp_path, monkeypatch):
    from matta_cli.tasks.image_classification import examples

    images, labels = pictures(24)
    np.savez(tmp_path / "it.npz", images=images, labels=labels)
    task = ImageClassification(recipe(train=str(tmp_path / "it.npz")))
    kept = task.data(tmp_path, vit()).train.batch(range(20))
    monkeypatch.setattr(examples, "_IN_MEMORY", 0)
    read = task.data(tmp_path, vit()).train.batch(range(20))
    assert torch.equal(kept["image"], read["image"]) and torch.equal(kept["label"], read["label"])


class Scorer(nn.Module):
    """A ranker with the attributes that the task reads."""

    def __init__(self, fields: list[tuple[int, int]], dense: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fields, self.dense = fields, dense
        self.embeddings = nn.ModuleList(nn.Embedding(*field) for field in fields)
        self.out = nn.Linear(sum(width for _, width in fields) + dense, 1)

    def forward(self, dense=None, categorical=None):
        parts = [embedding(categorical[:, k]) for k, embedding in enumerate(self.embeddings)]
        return self.out(torch.cat([*parts, *([] if dense is None else [dense])], 1)).squeeze(1)


def write_libsvm(
    path: Path, *, qid: bool, base: int = 1, rows: int = 60, columns: int = 4, seed: int = 0
):
    generator = np.random.default_rng(seed)
    x = generator.random((rows, columns)).round(3) + 0.001
    y = generator.integers(0, 4, rows)
    query = np.sort(generator.integers(0, 6, rows)) * 10
    lines = [
        f"{y[i]} "
        + (f"qid:{query[i]} " if qid else "")
        + " ".join(f"{k + base}:{x[i, k]:.3f}" for k in range(columns))
        for i in range(rows)
    ]
    path.write_text("\n".join(lines) + "\n")
    if not qid:
        sizes = np.bincount(query)
        path.with_name(path.name + ".query").write_text(
            "\n".join(str(n) for n in sizes if n) + "\n"
        )
    return x.astype(np.float32), y, query


@pytest.mark.parametrize("qid", [True, False])
@pytest.mark.parametrize("base", [0, 1])
def test_libsvm_queries(tmp_path, qid, base):
    x, y, query = write_libsvm(tmp_path / "rank.train", qid=qid, base=base)
    x2, y2, query2 = write_libsvm(tmp_path / "rank.test", qid=qid, base=base, columns=3, seed=1)
    model = Scorer([], 5)
    settings = recipe(
        train=str(tmp_path / "rank.train"), held_out=str(tmp_path / "rank.test"), eval_examples=0
    )
    task = Ranking(settings)
    data = task.data(tmp_path, model)
    queries = np.unique(query)
    assert len(data.train) == len(queries) and data.unit == "rows"
    batch = data.train.batch([2, 0])
    rows = np.concatenate([np.flatnonzero(query == queries[k]) for k in (2, 0)])
    np.testing.assert_allclose(batch["dense"][:, :4], x[rows], atol=1e-6)
    assert not batch["dense"][:, 4:].any() and "categorical" not in batch
    assert batch["label"].tolist() == y[rows].tolist()
    assert (
        batch["group_id"].unique().tolist() == [0, 2]
        and batch["group"][0] == 0
        and batch["group"][-1] == 1
    )
    assert task.items(batch) == len(rows)

    from sklearn.metrics import ndcg_score, roc_auc_score

    table = columns(task, model, data.held_out[0], 2)
    found = task.summarize(table)
    scores = model(torch.from_numpy(np.pad(x2, ((0, 0), (0, 2))))).detach().numpy()
    auc = roc_auc_score(y2 > 0, scores)
    each = [query2 == q for q in np.unique(query2)]
    ndcg = [
        ndcg_score([2.0 ** y2[m] - 1], [scores[m]], k=10)
        for m in each
        if y2[m].any() and m.sum() > 1
    ]
    assert found == {
        "auc": pytest.approx(auc),
        "auc_loss": pytest.approx(1 - auc),
        "ndcg@10": pytest.approx(np.mean(ndcg)),
        "calibration": pytest.approx((1 / (1 + np.exp(-scores))).sum() / (y2 > 0).sum(), rel=1e-5),
        "ece": found["ece"],
    }
    twice = {name: np.concatenate([values, values]) for name, values in table.items()}
    assert task.summarize(twice) == pytest.approx(found)
    assert np.unique(table["group"]).size == len(each)
    only = task.data(tmp_path, model, training=False)
    assert torch.equal(only.held_out[0].batch([0])["dense"], data.held_out[0].batch([0])["dense"])


def test_libsvm_of_the_home_folder_counts_columns_alike(tmp_path, monkeypatch):
    """Only the training file says that columns count from 0, also where it is not trained on."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_libsvm(tmp_path / "rank.train", qid=True, base=0)
    (tmp_path / "rank.test").write_text("1 qid:1 2:0.5\n0 qid:1 3:0.25\n")
    task = Ranking(recipe(train="~/rank.train", held_out="~/rank.test", eval_examples=0))
    for training in (True, False):
        data = task.data(tmp_path, Scorer([], 4), training=training)
        dense = data.held_out[0].batch([0])["dense"].tolist()
        assert dense == [[0, 0, 0.5, 0], [0, 0, 0, 0.25]]


@pytest.mark.parametrize("kind", ["pointwise", "pairwise", "listwise"])
def test_ranking_losses_are_chosen_by_the_recipe(tmp_path, kind):
    write_libsvm(tmp_path / "rank.train", qid=True)
    task, model = (
        Ranking(recipe(train=str(tmp_path / "rank.train"), ranking_loss=kind)),
        Scorer([], 4),
    )
    batch = task.data(tmp_path, model).train.batch([0, 1, 2])
    scores = task.forward(model, batch)
    group = () if kind == "pointwise" else (batch["group"],)
    torch.testing.assert_close(
        task.loss(scores, batch),
        globals()[kind](scores, batch["label"], *group) / task.counts(batch)["labels"],
    )
    assert task.distill_loss(scores, scores.detach(), batch).item() == pytest.approx(0, abs=1e-6)
    assert task.distill_loss(scores, -scores.detach(), batch).item() > 0
    assert task.outputs(model) == 1


def table_file(folder: Path, suffix: str = ".csv", **changes: list) -> str:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    generator = np.random.default_rng(0)
    values = {
        "label": (np.arange(60) % 2).tolist(),
        "user": [f"u{k}" for k in np.arange(60) // 5],
        "item": generator.integers(0, 9, 60).tolist(),
        "age": generator.random(60).tolist(),
        "price": generator.integers(1, 50, 60).tolist(),
    } | changes
    path = folder / f"rows{suffix}"
    (pyarrow.parquet.write_table if suffix == ".parquet" else pyarrow.csv.write_csv)(
        pa.table(values), path
    )
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("dense", [[], ["price", "age"]])
def test_tables(tmp_path, suffix, dense):
    import pandas as pd

    path = table_file(tmp_path, suffix)
    model = Scorer([(9, 3)], 2)
    task = Ranking(recipe(train=path, categorical=["item"], dense=dense, group="user"))
    data = task.data(tmp_path, model)
    assert len(data.train) == 11 and len(data.held_out[0]) == 1
    batch = data.train.batch([1])
    stored = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
    assert batch["categorical"][:, 0].tolist() == stored["item"][5:10].tolist()
    expected = np.stack([stored[name][5:10] for name in dense or ["age", "price"]], 1)
    np.testing.assert_allclose(batch["dense"], expected, rtol=1e-6)
    assert task.forward(model, batch).shape == (5,)
    alone = Ranking(recipe(train=path, categorical=["item"], dense=dense)).data(tmp_path, model)
    assert len(alone.train) == 54 and "group" not in alone.train.batch([0])
    assert set(columns(task, model, alone.held_out[0])) == {"score", "label"}
    no_dense = Ranking(recipe(train=path, categorical=["item"])).data(tmp_path, Scorer([(9, 3)], 0))
    assert "dense" not in no_dense.train.batch([0])


def test_table_errors(tmp_path):
    good = {"categorical": ["item"], "group": "user"}
    for number, (settings, changes, sentence) in enumerate(
        [
            ({}, {}, "has 1 embeddings, but data.categorical names 0"),
            (
                good | {"categorical": ["thing"]},
                {},
                "no column 'thing'; it has label.*Set data.categorical",
            ),
            (
                good | {"categorical": ["user"]},
                {},
                "'user'.*text such as 'u0': encode it as whole numbers 0..8, as your",
            ),
            (
                good,
                {"item": [9] * 60},
                "'item'.*has the value 9, but the model knows 9, 60 in all, .* in row 1: encode",
            ),
            (good, {"item": [-1] * 60}, "has the value -1"),
            (good, {"item": [0.5] * 60}, "no whole numbers"),
            (
                good,
                {"age": ["old", *["1"] * 59]},
                r"gives 1 \(price; 'age' holds text such as 'old' and is left out\)",
            ),
            (good, {"label": ["1", "yes"] * 30}, "'label'.*text such as 'yes', but"),
            (
                good,
                {"more": [1] * 60},
                r"reads 2 dense features, but .* gives 3 \(age, price, more\)",
            ),
            (
                good | {"dense": ["age", "user"]},
                {},
                "'user'.*text such as 'u0', but dense features",
            ),
            (
                good,
                {"age": [None] + [1.0] * 59},
                "'age'.* misses values, or has some not finite, 1 in all",
            ),
            (good, {"label": [1] * 60}, "have only labels above 0: AUC needs both"),
            (
                {"categorical": ["item"], "ranking_loss": "listwise"},
                {},
                "listwise loss compares rows of a query",
            ),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(MattaError, match=sentence):
            Ranking(recipe(train=table_file(folder, **changes), **settings)).data(
                folder, Scorer([(9, 3)], 2)
            )
    for text, sentence in (
        ("a,b,b,label\n1,2,3,1\n", "has several columns 'b'"),
        ("a,b,label\n", "t.csv' holds no rows"),
        ("a,b, label\n1,2,1\n", "no column 'label'; it has a, b, ' label'. Set data.label"),
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(MattaError, match=sentence):
            Ranking(recipe(train=str(tmp_path / "t.csv"))).data(tmp_path, Scorer([], 2))
    import pyarrow as pa
    import pyarrow.parquet

    pa.parquet.write_table(
        pa.table({"a": ["1", "2"], "b": [1, 2], "label": [1, 0]}), tmp_path / "t.parquet"
    )
    with pytest.raises(
        MattaError, match=r"gives 1 \(b; 'a' holds text such as '1' and is left out\)"
    ):
        Ranking(recipe(train=str(tmp_path / "t.parquet"))).data(tmp_path, Scorer([], 2))


def test_libsvm_errors(tmp_path):
    path = tmp_path / "rank.train"
    write_libsvm(path, qid=False)
    for model, sentence in [
        (Scorer([], 3), "has 4 columns, but the model reads 3 dense features"),
        (Scorer([(3, 2)], 4), "has 1 embeddings, but LibSVM files hold dense features only"),
        (nn.Linear(4, 1), "Linear has none"),
    ]:
        with pytest.raises(MattaError, match=sentence):
            Ranking(recipe(train=str(path))).data(tmp_path, model)
    path.with_name("rank.train.query").write_text("3\n4\n")
    with pytest.raises(MattaError, match=r"counts 7 rows, but .* has 60"):
        Ranking(recipe(train=str(path))).data(tmp_path, Scorer([], 4))
    path.write_text("hello world\n")
    with pytest.raises(MattaError, match="not LibSVM"):
        Ranking(recipe(train=str(path))).data(tmp_path, Scorer([], 4))
    path.write_text("")
    with pytest.raises(MattaError, match="holds no rows"):
        Ranking(recipe(train=str(path))).data(tmp_path, Scorer([], 4))


def test_ranking_at_chance():
    task = Ranking(recipe())
    label = np.arange(400) % 2
    noise = np.random.default_rng(0).random(400)
    assert task.at_chance({"score": label + 0.5 * noise, "label": label}, 1) is None
    assert "guessing gives 0.5" in task.at_chance({"score": np.zeros(400), "label": label}, 1)
    assert "400 of its 400 scores" in task.at_chance({"score": noise * np.nan, "label": label}, 1)
