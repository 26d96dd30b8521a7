"""A Teacher that is a file: the same lessons as from the model, and no file that does not fit."""

import copy
import json
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from matta_adapters.mlp_ranker import Ranker
from safetensors.torch import load_file, save_file
from sample_text import byte_tokenizer
from typer.testing import CliRunner

from matta_cli.adapter import Source
from matta_cli.api import judge
from matta_cli.comparison.compare import Asked, evaluation
from matta_cli.conversion.convert import convert
from matta_cli.data.split import Data
from matta_cli.errors import Interrupted, MattaError
from matta_cli.family import export
from matta_cli.files import atomic
from matta_cli.files.workspace import Workspace
from matta_cli.main import app
from matta_cli.models import plugins
from matta_cli.models.ta import TA
from matta_cli.nested.sizes import full_sizes
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task
from matta_cli.training import packed, teacher_file
from matta_cli.training import teach as training_teach
from matta_cli.training.quality import quality
from matta_cli.training.run import distill
from matta_cli.training.start import EXAMPLES, Start, Starting
from matta_cli.training.teach import Dictation, teach
from matta_cli.training.teacher import ModelTeacher


def ranker(seed=0, classes=1):
    torch.manual_seed(seed)
    return Ranker(
        [],
        4,
        [{"layer": "Linear", "out": 16}, {"layer": "ReLU"}, {"layer": "Linear", "out": classes}],
    ).eval()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(50), generator.integers(3, 9, 50))
    x = generator.normal(size=(len(group), 4))
    label = (x[:, 0] + generator.normal(size=len(group)) > 0).astype(int)
    columns = {name: x[:, i].astype(np.float32) for i, name in enumerate("abcd")}
    names = np.array([f"r{i}" for i in range(len(group))])
    pa.parquet.write_table(
        pa.table({**columns, "label": label, "query": group, "name": names}), "train.parquet"
    )
    torch.save(ranker().state_dict(), "model.pt")
    torch.save(ranker(1).state_dict(), "teacher.pt")
    return tmp_path


def settings(teacher="teacher.pt", data=None, **more):
    recipe = Recipe()
    values = {
        "teacher": teacher,
        "steps": 4,
        "batch_size": 8,
        "allow_weak_teacher": True,
        "device": "cpu",
        **more,
    }
    table = {"train": "train.parquet", "dense": ["a", "b", "c", "d"], **(data or {})}
    recipe.update({"convert": {"source": "model.pt"}, "data": table, "distill": values}, "test")
    recipe.export.bootstrap = 5
    return recipe


def weights(out):
    return Path(out, "run/checkpoints/step-4/model.safetensors").read_bytes()


def losses_of(out):
    return [
        json.loads(line)["terms"]
        for line in Path(out, "run/metrics.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize(
    "loss",
    [*(pytest.param(x, marks=pytest.mark.slow) for x in ("pointwise", "pairwise")), "listwise"],
)
def test_a_ranker_learns_the_same_from_the_file_as_from_the_model(folder, loss):
    """Queries hold several rows, and the last tenth of them is held out."""
    more = {"data": {"group": "query"}, "ranking_loss": loss}
    convert(settings(**more), Path("out"))
    distill(settings(**more), Path("out"))
    once = weights("out")
    teach(settings(**more), Path("out"), Path("said"))
    distill(settings("said", **more), Path("out"), overwrite=True)
    assert weights("out") == once


@pytest.mark.slow
def test_a_report_goes_without_a_teacher_that_is_a_file(folder):
    convert(settings(), Path("out"))
    teach(settings(), Path("out"), Path("said"))
    distill(settings("said"), Path("out"))
    said = []
    export(settings("said"), Path("out"), listen=lambda event: said.append(event.message))
    assert any("report goes without" in line for line in said)


def test_held_out_examples_are_not_taught(folder):
    """They are a tenth of the data, or what --held-out names; then all of the data is taught."""
    whole = pa.parquet.read_table("train.parquet")
    pa.parquet.write_table(whole.slice(0, 20), "other.parquet")
    convert(settings(), Path("out"))
    rows = whole.num_rows
    for held_out, taught in (("", rows - rows // 10), ("other.parquet", rows)):
        events = []
        recipe = settings(data={"held_out": held_out})
        teach(recipe, Path("out"), Path("said"), overwrite=True, listen=events.append)
        assert load_file("said/shard-00000.safetensors")["row"].tolist() == [*range(taught)]
        said = [event.message for event in events]
        told = [line for line in said if line.startswith("The Teacher is asked about")]
        assert len(told) == 1 and f"{taught} training examples; the held-out" in told[0]


def test_the_file_does_not_depend_on_the_order_of_its_rows(folder):
    convert(settings(), Path("out"))
    teach(settings(), Path("out"), Path("said"))
    distill(settings("said"), Path("out"))
    once = weights("out")
    said = load_file("said/shard-00000.safetensors")
    order = torch.randperm(len(said["row"]), generator=torch.Generator().manual_seed(0))
    rows = {"row": said["row"][order].numpy(), "score": said["logits"].flatten()[order].numpy()}
    pa.parquet.write_table(pa.table(rows), "said.parquet")
    distill(settings("said.parquet"), Path("out"), overwrite=True)
    assert weights("out") == once
    # ids that are whole numbers are no row numbers
    numbers = pa.parquet.read_table("train.parquet")
    numbers = numbers.append_column("number", pa.array([1000 - i for i in range(numbers.num_rows)]))
    pa.parquet.write_table(numbers, "train.parquet")
    pa.parquet.write_table(
        pa.table({"id": 1000 - rows["row"], "score": rows["score"]}), "numbers.parquet"
    )
    distill(settings("numbers.parquet", data={"id": "number"}), Path("out"), overwrite=True)
    assert weights("out") == once
    names = {"id": [f"r{row}" for row in rows["row"]], "score": rows["score"].tolist()}
    with Path("said.jsonl").open("w") as file:
        file.writelines(
            json.dumps({"id": i, "score": s}) + "\n" for i, s in zip(*names.values(), strict=True)
        )
    distill(settings("said.jsonl", data={"id": "name"}), Path("out"), overwrite=True)
    assert weights("out") == once
    with pytest.raises(MattaError, match=r"name its column in data\.id"):
        distill(settings("said.jsonl"), Path("out"), overwrite=True)


def test_lines_of_json_are_read_as_they_stand(tmp_path):
    path, names = tmp_path / "said.jsonl", ["2020-01-01", "2020-01-02"]
    rows = [{"id": name, "logits": [0.123456789] * 100_000} for name in names]
    path.write_text("\ufeff" + "".join(json.dumps(row) + "\n" for row in rows))
    said = teacher_file.read(path)
    assert said.key.tolist() == names and said.values["logits"].shape == (2, 100_000)


def test_numbers_beyond_float32_are_refused(folder):
    convert(settings(), Path("out"))
    count = pa.parquet.read_table("train.parquet").num_rows
    rows = {"row": range(count), "score": [1e39, *[0.5] * (count - 1)]}
    pa.parquet.write_table(pa.table(rows), "said.parquet")
    with pytest.raises(MattaError, match="column 'score' has values that are not finite, at row 0"):
        distill(settings("said.parquet"), Path("out"))


def text_folder(tmp_path, monkeypatch):
    """A GPT-2 of 300 tokens, and two Teachers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    monkeypatch.chdir(tmp_path)
    words = np.random.default_rng(0).choice(
        ["one", "two", "three", "four", "red", "blue", "tea", "milk"], 3000
    )
    Path("text.txt").write_text(" ".join(words))
    tokenizer = byte_tokenizer([" ".join(words)], 30_000)
    for name, seed in (("base", 0), ("teacher", 1)):
        torch.manual_seed(seed)
        size = len(tokenizer)
        config = GPT2Config(
            vocab_size=size,
            n_positions=32,
            n_embd=16,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        GPT2LMHeadModel(config).save_pretrained(name)
        tokenizer.save_pretrained(name)
    recipe = Recipe()
    recipe.convert.source, recipe.data.train, recipe.data.sequence_length = "base", "text.txt", 16
    recipe.distill.teacher, recipe.distill.allow_weak_teacher, recipe.distill.device = (
        "teacher",
        True,
        "cpu",
    )
    recipe.distill.steps, recipe.distill.batch_size, recipe.distill.micro_batch = 4, 8, 3
    convert(recipe, Path("out"))
    return recipe, size


def test_a_language_model_learns_from_the_likeliest_outputs(tmp_path, monkeypatch):
    """All outputs: the same losses as from the model. 64 of them: nearly. The temperature is the
    file's.
    """
    recipe, size = text_folder(tmp_path, monkeypatch)
    distill(recipe, Path("out"))
    expected = losses_of("out")
    teach(recipe, Path("out"), Path("all"), k=size - 1, draws=0)
    teach(recipe, Path("out"), Path("some"), k=64, draws=0)
    assert set(load_file("some/shard-00000.safetensors")) == {
        "row",
        "top_logits",
        "top_index",
        "rest",
    }
    gaps = {}
    for name in ("all", "some"):
        recipe.distill.teacher = name
        distill(recipe, Path("out"), overwrite=True)
        found = losses_of("out")
        gaps[name] = [
            abs(a[m]["teacher"] - b[m]["teacher"])
            for a, b in zip(expected, found, strict=True)
            for m in a
        ]
    assert max(gaps["all"]) < 1e-5 and 1e-4 < max(gaps["some"]) < 0.1
    recipe.distill.temperature = 1.0
    with pytest.raises(
        MattaError, match=r"softened by the temperature 2, but distill\.temperature is 1"
    ):
        distill(recipe, Path("out"), overwrite=True)
    recipe.distill.temperature, recipe.data.sequence_length = 2.0, 8
    with pytest.raises(MattaError, match="made for other examples"):
        distill(recipe, Path("out"), overwrite=True)


def test_what_is_drawn_of_a_language_model_is_kept_in_few_bytes_and_again_the_same(
    tmp_path, monkeypatch
):
    recipe, size = text_folder(tmp_path, monkeypatch)
    from transformers import GPT2LMHeadModel

    teacher = GPT2LMHeadModel.from_pretrained("teacher")
    teacher.transformer.ln_f.weight.data.mul_(20)  # a Teacher that is sure of much
    teacher.save_pretrained("teacher")
    distill(recipe, Path("out"))
    expected = losses_of("out")
    teach(recipe, Path("out"), Path("said"))
    said = load_file("said/shard-00000.safetensors")
    assert set(said) == {"row", "top_logits", "top_index", "packed", "entropy"}
    tokens = said["packed"].shape[:-1].numel()
    taken = sum(t.numel() * t.element_size() for name, t in said.items() if name != "row")
    draws = json.loads(Path("said/teacher.json").read_text())["draws"]
    assert taken / tokens == 24 * 4 + packed.size(draws, size) + 4 <= 292 and draws > 96
    teach(recipe, Path("out"), Path("again"))
    assert Path("again/shard-00000.safetensors").read_bytes() == (
        Path("said/shard-00000.safetensors").read_bytes()
    )
    recipe.distill.teacher = "said"
    distill(recipe, Path("out"), overwrite=True)
    for a, b in zip(expected, losses_of("out"), strict=True):
        for model in a:
            assert a[model]["teacher"] == pytest.approx(b[model]["teacher"], rel=0.05)


@pytest.mark.parametrize("classes", [2, 65, 1024, 50257, 151936])
@pytest.mark.parametrize("count", [1, 7, 148, 512])
def test_packed_numbers_are_all_there_again(classes, count):
    """Those of each row, also one several times, in the bytes that were said."""
    numbers = torch.randint(classes, (9, count), generator=torch.Generator().manual_seed(count))
    numbers[0], numbers[1] = 0, classes - 1
    written = packed.pack(numbers, classes)
    assert written.dtype == torch.uint8 and written.shape == (9, packed.size(count, classes))
    assert torch.equal(packed.unpack(written, count, classes), numbers.sort(1).values)


def test_as_many_numbers_as_some_bytes_hold():
    """Two bits, and those that tell neighbours apart, of each; as plain numbers 96 would fit."""
    for classes, count in ((50257, 148), (1024, 512), (100, 100)):
        assert packed.most(classes, 192) == count and packed.size(count, classes) <= 192
    assert packed.size(149, 50257) > 192
    assert packed.most(50257, 1) == 1


def test_bytes_that_nobody_packed_are_refused():
    written = packed.pack(torch.arange(0, 300, 3).expand(4, -1), 1000)
    for spoiled, what in (
        (written[:, 1:], "bytes in place of"),
        (written | 1 << 7, "not 100 numbers"),
        (written & 0, "not 100 numbers"),
    ):
        with pytest.raises(ValueError, match=what):
            packed.unpack(spoiled, 100, 1000)
    with pytest.raises(ValueError, match="none of 290"):
        packed.unpack(packed.pack(torch.full((1, 3), 295), 296), 3, 290)


@pytest.mark.parametrize("then", ["train", pytest.param("measure", marks=pytest.mark.slow)])
def test_a_run_leaves_the_ta_as_it_was_converted(tmp_path, monkeypatch, then):
    """A model without a tokenizer learns with its Teacher's: checkpoints hold it, all find it."""
    recipe, size = text_folder(tmp_path, monkeypatch)
    for path in Path("base").glob("*token*"):
        path.unlink()
    convert(recipe, Path("out"), overwrite=True)
    before = {path: path.read_bytes() for path in Path("out/ta").rglob("*") if path.is_file()}
    recipe.distill.save_every = 2
    last = distill(recipe, Path("out"))
    if then == "train":
        shutil.rmtree(last)
        distill(recipe, Path("out"), resume=True)
        teach(recipe, Path("out"), Path("said"), k=size - 1)
        recipe.distill.teacher = "said"
        shutil.rmtree("teacher")  # from here on there is no Teacher to bring the tokenizer
        assert distill(recipe, Path("out"), overwrite=True) == last
        held = [last]
    else:
        export(recipe, Path("out"))
        judge(["ground-truth"], "out")
        done = CliRunner(env={"CI": "1"}).invoke(app, ["eval", "--out", "out"])
        assert done.exit_code == 0, done.stderr
        held = [Path("out/students/width-0.5"), Path("out/baselines/ground-truth-width-0.5/ta")]
    assert all((folder / "tokenizer.json").exists() for folder in held)
    after = {path: path.read_bytes() for path in Path("out/ta").rglob("*") if path.is_file()}
    assert after == before and not any("token" in path.name for path in after)


@pytest.fixture
def images(tmp_path, monkeypatch):
    import timm

    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    labels = np.arange(80) % 4
    pixels = (generator.integers(0, 60, (80, 16, 16, 3)) + 40 * labels[:, None, None, None]).astype(
        np.uint8
    )
    np.savez("images.npz", images=pixels, labels=labels)
    for seed, name in enumerate(("base", "teacher")):
        torch.manual_seed(seed)
        vit = timm.create_model(
            "test_vit",
            img_size=16,
            num_classes=4,
            pretrained_cfg_overlay={"input_size": (3, 16, 16)},
        )
        vit.pretrained_cfg |= {"num_classes": 4, "label_names": list("abcd")}
        Path(name).mkdir()
        plugins.adapter("vit").save(vit, Path(name))
    recipe = Recipe()
    recipe.convert.source, recipe.data.train = "base", "images.npz"
    recipe.distill.teacher, recipe.distill.allow_weak_teacher, recipe.distill.device = (
        "teacher",
        True,
        "cpu",
    )
    recipe.distill.steps, recipe.distill.batch_size = 4, 8
    convert(recipe, Path("out"))
    return recipe, labels


def test_a_teacher_of_other_normalisation_and_order_is_written_down_and_measured(images):
    """It is the base, on images normalised otherwise, and with its classes in another order."""
    recipe, _ = images
    base = plugins.adapter("vit").load(Source("base", folder=Path("base")))
    twin, order = copy.deepcopy(base), [2, 0, 3, 1]
    weight, bias = base.patch_embed.proj.weight, base.patch_embed.proj.bias
    own = {**base.pretrained_cfg, "label_names": [list("abcd")[k] for k in order]}
    moved = [(m - 0.2) / s for m, s in zip(own["mean"], own["std"], strict=True)]
    own["mean"] = (0.2,) * 3
    with torch.no_grad():
        shift = (weight * torch.tensor(moved)[:, None, None]).sum((1, 2, 3))
        twin.patch_embed.proj.bias.copy_(bias - shift)
        twin.head.weight.copy_(base.head.weight[order])
        twin.head.bias.copy_(base.head.bias[order])
    twin.pretrained_cfg = own
    Path("twin").mkdir()
    plugins.adapter("vit").save(twin, Path("twin"))
    recipe.distill.teacher, recipe.export.bootstrap = "twin", 10
    teach(recipe, Path("out"), Path("said"))
    said = load_file("said/shard-00000.safetensors")
    pixels = torch.from_numpy(np.load("images.npz")["images"][said["row"]]).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = base((pixels / 255 - 0.5) / 0.5)
    assert expected.std() > 0.01 and torch.allclose(said["logits"], expected, atol=1e-4)
    found = evaluation(recipe, Asked(["base", "twin"]), Path("out"))["models"]
    one, other = ({name: v["value"] for name, v in m["metrics"].items()} for m in found)
    assert one == pytest.approx(other, abs=1e-4)


def test_labels_and_soft_labels_of_images(images):
    """Soft labels are the softmax of logits: the same run. Labels: cross-entropy. Rows are numbers
    in the user's file.
    """
    recipe, labels = images
    distill(recipe, Path("out"))
    expected = losses_of("out")
    teach(recipe, Path("out"), Path("said"))
    said = load_file("said/shard-00000.safetensors")
    save_file({"row": said["row"], "probabilities": said["logits"].softmax(-1)}, "soft.safetensors")
    recipe.distill.teacher = "soft.safetensors"
    distill(recipe, Path("out"), overwrite=True)
    for a, b in zip(expected, losses_of("out"), strict=True):
        for model in a:
            assert a[model] == pytest.approx(b[model], rel=1e-3, abs=1e-5)
    # of 4: the fourth is what they leave of 1
    log_q, index = (said["logits"] / 2).log_softmax(-1).topk(3)
    columns = {
        "row": said["row"].tolist(),
        "top_logits": log_q.tolist(),
        "top_index": index.tolist(),
    }
    pa.parquet.write_table(
        pa.table({**columns, "temperature": [2.0] * len(said["row"])}), "top.parquet"
    )
    recipe.distill.teacher = "top.parquet"
    distill(recipe, Path("out"), overwrite=True)
    for a, b in zip(expected, losses_of("out"), strict=True):
        for model in a:
            assert a[model] == pytest.approx(b[model], rel=1e-3, abs=1e-5)
    pa.parquet.write_table(pa.table({"row": np.arange(80), "label": labels}), "labels.parquet")
    # they are right: not at chance
    recipe.distill.teacher, recipe.distill.allow_weak_teacher = "labels.parquet", False
    distill(recipe, Path("out"), overwrite=True)
    for terms in losses_of("out"):
        assert terms["TA"]["teacher"] == pytest.approx(terms["TA"]["truth"], rel=1e-5)
    pa.parquet.write_table(
        pa.table({"row": np.arange(80), "label": (labels + 1) % 4}), "labels.parquet"
    )
    with pytest.raises(
        MattaError, match=r"labels.parquet' is too weak: its top-1 accuracy is 0.0000 on 72 images"
    ):
        distill(recipe, Path("out"), overwrite=True)


def table(**columns):
    return pa.table({name: list(values) for name, values in columns.items()})


BAD = {
    "80 classes": (
        lambda n: table(row=range(n), logits=[[1.0] * 80] * n),
        "has 80 numbers for an example, the model has 4",
    ),
    "class 4": (
        lambda n: table(row=range(n), label=[4] * n),
        "label 4 is not one of the model's 4 classes",
    ),
    "class 0.5": (
        lambda n: table(row=range(n), label=[0.5] * n),
        "label 0.5 is not one of the model's 4 classes",
    ),
    "twice": (lambda n: table(row=[0, *range(n)], label=[1] * (n + 1)), "the key 0 occurs 2 times"),
    "missing": (
        lambda n: table(row=range(5, n), label=[1] * (n - 5)),
        "5 of the 72 training examples are not in it, the first",
    ),
    "nan": (
        lambda n: table(row=range(n), logits=[[float("nan")] * 4] * n),
        "'logits' has values that are not finite, at row 0 first",
    ),
    "one inf": (
        lambda n: table(
            row=range(n),
            logits=[*[[1.0] * 4] * 7, [1.0, float("inf"), 1.0, 1.0], *[[1.0] * 4] * (n - 8)],
        ),
        "not finite, at row 7 first",
    ),
    "not one": (
        lambda n: table(row=range(n), probabilities=[[0.5] * 4] * n),
        "values that are no probabilities",
    ),
    "zero": (lambda n: table(row=range(n), logits=[[0.0] * 4] * n), "all its logits are zero"),
    "nothing": (
        lambda n: table(row=range(n), other=[1] * n),
        "it needs one of the columns label, probabilities",
    ),
    "two": (
        lambda n: table(row=range(n), label=[1] * n, logits=[[1.0] * 4] * n),
        "it needs one of the columns",
    ),
    "null": (
        lambda n: table(row=range(n), label=[None, *[1] * (n - 1)]),
        "column 'label' has 1 missing values",
    ),
    "ragged": (
        lambda n: table(row=range(n), logits=[[1.0], *[[1.0] * 4] * (n - 1)]),
        "of unequal lengths",
    ),
    "ids": (
        lambda n: table(id=[str(i) for i in range(n)], label=[1] * n),
        "column 'id' is not supported for images that are",
    ),
    "no index": (
        lambda n: table(row=range(n), top_logits=[[0.0]] * n),
        "it has top_logits, but no column top_index",
    ),
    "index": (
        lambda n: table(
            row=range(n),
            top_logits=[[-1.0, -1.0]] * n,
            top_index=[[1, 1]] * n,
            temperature=[2.0] * n,
        ),
        "top_index must name different classes from 0 to 3",
    ),
    "cold": (
        lambda n: table(row=range(n), top_logits=[[-1.0]] * n, top_index=[[1]] * n),
        r"softened by the temperature 1, but distill\.temperature is 2",
    ),
    "no file": (None, "There is no file 'said.parquet': check --teacher"),
    "no key": (
        lambda n: table(label=[1] * n),
        "neither a column 'row', the numbers of the examples, nor 'id'; it has label",
    ),
    "both": (
        lambda n: table(id=range(n), row=range(n), label=[1] * n),
        "both a column 'row' and a column 'id'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_does_not_fit_is_refused(images, case):
    recipe, _ = images
    make, sentence = BAD[case]
    if make:
        pa.parquet.write_table(make(80), "said.parquet")
    recipe.distill.teacher = "said.parquet"
    with pytest.raises(MattaError, match=sentence):
        distill(recipe, Path("out"))
    assert not Path("out/run").exists()


def test_teach_goes_on_from_the_last_whole_shard(images, monkeypatch):
    recipe, _ = images
    teach(recipe, Path("out"), Path("once"))
    monkeypatch.setattr(training_teach, "_SHARD", 16 * 4 * 4)  # 16 images of 4 logits, about
    said, calls = Dictation.said, []

    def pressed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGINT)
        return said(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Dictation, "said", pressed)
        with pytest.raises(Interrupted, match=r"after \d of \d+ shards; the same command goes on"):
            teach(recipe, Path("out"), Path("said"))
    whole = sorted(p.name for p in Path("said").glob("shard-*"))
    assert whole and not json.loads(Path("said/teacher.json").read_text())["complete"]
    assert {p.name for p in Path("said").glob(".*")} <= {".lock"}, "a temporary file was left"
    with pytest.raises(MattaError, match="is not finished"):
        recipe.distill.teacher = "said"
        distill(recipe, Path("out"))
    recipe.distill.teacher = "teacher"
    before = {name: Path("said", name).stat().st_mtime_ns for name in whole}
    teach(recipe, Path("out"), Path("said"))
    assert {name: Path("said", name).stat().st_mtime_ns for name in whole} == before
    shards = [load_file(p) for p in sorted(Path("said").glob("shard-*"))]
    once = load_file("once/shard-00000.safetensors")
    assert len(shards) > 3
    for name in once:
        torch.testing.assert_close(torch.cat([shard[name] for shard in shards]), once[name])
    with pytest.raises(MattaError, match="said is finished"):
        teach(recipe, Path("out"), Path("said"))
    recipe.distill.teacher = "base"
    with pytest.raises(MattaError, match="said holds what another Teacher"):
        teach(recipe, Path("out"), Path("said"))
    with pytest.raises(MattaError, match="out is not empty, and nothing that `matta teach` wrote"):
        teach(recipe, Path("out"), Path("out"))
    shutil.copy("said/shard-00002.safetensors", "said/shard-00001.safetensors")
    recipe.distill.teacher = "said"
    with pytest.raises(MattaError, match=r"is damaged \(shard-00001"):
        distill(recipe, Path("out"))
    card = json.loads(Path("said/teacher.json").read_text())
    for change in (lambda t: t[:0], lambda t: t[..., None], lambda t: t[1:]):
        own = {k: change(t) if k == "logits" else t for k, t in shards[1].items()}
        save_file({k: t.contiguous() for k, t in own.items()}, "said/shard-00001.safetensors")
        card["digests"][1] = atomic.file_digest(Path("said/shard-00001.safetensors"))
        Path("said/teacher.json").write_text(json.dumps(card))
        with pytest.raises(MattaError, match=r"is damaged \(shard-00001.*: logits has the shape"):
            distill(recipe, Path("out"))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda model: next(model.parameters()).data.fill_(float("nan")), "holds NaN or infinity"),
        (
            lambda model: [p.data.zero_() for p in model.parameters() if p.dim() > 1],
            "all its weight matrices are zero",
        ),
    ],
)
def test_a_broken_teacher_is_refused(folder, spoil, sentence):
    convert(settings(), Path("out"))
    teacher = ranker(1)
    spoil(teacher)
    torch.save(teacher.state_dict(), "teacher.pt")
    with pytest.raises(MattaError, match=sentence):
        distill(settings(), Path("out"))


def sure(column, gain=1.0):
    """A ranker whose score is one column: what the labels depend on, or chance."""
    model = ranker()
    with torch.no_grad():
        model.mlp[0].weight.zero_()[0, column], model.mlp[0].bias.fill_(9.0)[1:] = gain, 0.0
        model.mlp[2].weight.zero_()[0, 0] = 1.0
    return model


def starting(recipe, model, limit=0):
    """What measures before a run, on the training rows."""
    task = tasks_task.task("ranking", recipe)
    adapter = plugins.adapter("mlp_ranker")
    axes = adapter.axes(model)
    ta = TA(adapter, model, axes, full_sizes(axes), {"lineage": {"source": "model.pt"}})
    split = task.data(Path(), model).train
    data = Data(split, (split,), "", "rows")
    recipe.distill.eval_examples = limit or recipe.distill.eval_examples
    return Starting(recipe.distill, task, ta, data, torch.device("cpu")), task, split


@pytest.mark.parametrize("micro", [0, 3])
def test_a_teacher_is_run_before_the_run(folder, micro):
    """On enough examples to tell it from guessing, as many at a time as are trained; one that fails
    is refused, also where it may be weak.
    """
    recipe = settings(allow_weak_teacher=True, micro_batch=micro)
    start, task, split = starting(recipe, ranker(), limit=4)
    good, seen = sure(0), []
    good.register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
    start.measured(ModelTeacher(task, good), lambda _: None)
    assert sum(seen) == min(len(split), EXAMPLES) + 4 and max(seen) == (micro or 8)
    seen.clear()
    found = start.measured(ModelTeacher(task, good), lambda _: None, itself=True)
    assert not seen and found.values["Teacher"] == found.values["base"], "it is the base"
    wide = Ranker([], 5, [{"layer": "Linear", "out": 1}])
    with pytest.raises(MattaError, match=r"The Teacher 'teacher\.pt' does not run on this data"):
        start.measured(ModelTeacher(task, wide), lambda _: None)


def test_a_teacher_is_measured_beside_the_base(folder):
    """By the difference on the same examples: a better one is said, a worse one is refused, or
    where it may be weak warned of. What may be chance is a warning. The base itself is no worse.
    """
    noisy = sure(0)
    with torch.no_grad():
        noisy.mlp[0].weight[0, 1] = 2.0

    before: list[str] = []

    def told(base, teacher, weak=False):
        start, task, _ = starting(settings(allow_weak_teacher=weak), base)
        before.clear()
        found = start.measured(ModelTeacher(task, teacher), lambda p: before.append(p.message))
        return " ".join(before), found

    said, found = told(noisy, sure(0))
    assert "Before training, on 200 held-out examples, AUC: the base has" in said
    assert "WARNING" not in said and found.examples == 200
    assert found.values["Teacher"]["auc"] > found.values["base"]["auc"] + 0.02
    assert f"{found.values['base']['auc']:.4g} and the Teacher" in said
    with pytest.raises(MattaError, match=r"'teacher.pt' is worse than the base: on 200 held-out"):
        told(sure(0), noisy)
    assert before == [], "the error says it"
    said, _ = told(sure(0), noisy, weak=True)
    assert "WARNING: the Teacher 'teacher.pt' is worse than the base" in said
    with torch.no_grad():
        noisy.mlp[0].weight[0, 1] = 0.5
    said, _ = told(sure(0), noisy)  # within the interval
    assert "WARNING: the Teacher 'teacher.pt' measures worse than the base, which may be" in said
    said, _ = told(sure(0), sure(0, 1 + 1e-6))
    assert "WARNING" not in said
    with pytest.raises(MattaError, match="is too weak: its AUC is"):
        told(ranker(), sure(1))
    said, _ = told(sure(0), sure(1), weak=True)
    assert "WARNING: the Teacher 'teacher.pt' only guesses: its AUC is" in said


def test_a_teachers_file_is_measured_beside_the_base_on_what_it_knows(folder):
    """On training examples, which the base may know better: it is warned of, not refused."""
    torch.save(sure(0).state_dict(), "model.pt")
    labels = pyarrow.parquet.read_table("train.parquet")["label"].to_numpy()
    noise = np.random.default_rng(1).normal(size=len(labels))
    rows = {"row": np.arange(len(labels)), "score": labels + 1.5 * noise}
    pa.parquet.write_table(pa.table(rows), "said.parquet")
    convert(settings(), Path("out"))
    recipe, said = settings("said.parquet", allow_weak_teacher=False), []
    distill(recipe, Path("out"), listen=lambda p: said.append(p.message))
    said = " ".join(said)
    assert "training examples, AUC: the base has" in said and "WARNING: the Teacher" in said
    assert list(Start.of(Workspace(Path("out"))).values) == ["base"]


def typed(line):
    return CliRunner(env={"CI": "1", "COLUMNS": "200"}).invoke(app, shlex.split(line))


def test_what_was_assumed_of_a_teacher_is_said_and_can_be_said_otherwise(folder):
    """As it is of the base; with the Teacher's own flags, which its report knows, too."""
    Path("matta.toml").write_text(
        '[data]\ntrain = "train.parquet"\ndense = ["a", "b", "c", "d"]\n'
        "[distill]\nsteps = 2\nbatch_size = 8\nallow_weak_teacher = true\n[export]\nbootstrap = 5\n"
    )
    assert typed("convert model.pt").exit_code == 0
    done = typed("distill --teacher teacher.pt")
    assumed = "Note: Teacher 'teacher.pt': The activation is assumed to be ReLU; --teacher-config"
    assert done.exit_code == 0 and assumed in done.stderr
    relu = json.loads(Path("matta-out/run/start.json").read_text())["values"]["Teacher"]["auc"]
    Path("teacher.json").write_text('{"activation": "Tanh", "dropout": 0.0}')
    more = "--teacher-config teacher.json --teacher-adapter mlp_ranker"
    done = typed(f"distill --overwrite --teacher teacher.pt {more}")
    assert done.exit_code == 0 and "assumed" not in done.stderr
    tanh = json.loads(Path("matta-out/run/start.json").read_text())["values"]["Teacher"]["auc"]
    assert tanh != relu
    done = typed("export --widths 1.0 --json")
    report = {model["name"]: model for model in json.loads(done.stdout)["models"]}
    assert report["Teacher"]["metrics"]["auc"]["value"] == pytest.approx(tanh, abs=1e-6)
    assert "assumed" not in done.stderr
    done = typed("distill --overwrite --teacher teacher.pt --teacher-adapter gpt2")
    assert done.exit_code == 1 and "is not a GPT-2" in done.stderr
    done = typed("distill --overwrite --teacher teacher.pt --teacher-config gone.json")
    assert done.exit_code == 1 and "There is no file 'gone.json'" in done.stderr


def test_a_teachers_adapter_that_a_file_names_is_code_that_does_not_run(folder, monkeypatch):
    """Unless the user has named it before."""
    monkeypatch.setenv("MATTA_CACHE", str(folder / "cache"))
    Path("evil.py").write_text(
        "from pathlib import Path\nPath('ran').touch()\n"
        "from matta_adapters.mlp_ranker import MLPRanker\nclass Evil(MLPRanker):\n    pass\n"
    )
    convert(settings(), Path("out"))
    with pytest.raises(MattaError, match="nobody has named on this machine"):
        distill(settings(teacher_adapter="evil.py:Evil"), Path("out"))
    assert not Path("ran").exists()
    more = "--teacher-adapter evil.py:Evil --data train.parquet"
    Path("out/matta.toml").write_text(
        '[data]\ndense = ["a", "b", "c", "d"]\n[distill]\nsteps = 2\nallow_weak_teacher = true\n'
    )
    assert typed(f"distill out --teacher teacher.pt {more}").exit_code == 0
    assert Path("ran").exists()


def test_without_a_teacher_the_model_itself_is_named(folder):
    """With a command that works as it is."""
    data = {"train": "train.parquet", "dense": ["a", "b", "c", "d"]}
    Path("matta.toml").write_text(
        f"[data]\ntrain = {data['train']!r}\ndense = {data['dense']}\n[distill]\nsteps = 2\n"
    )
    Path("a model").mkdir()
    torch.save(sure(0).state_dict(), "a model/model.pt")
    assert typed("convert 'a model/model.pt'").exit_code == 0
    done = typed("distill")
    assert done.exit_code == 1 and "which is a Teacher of its smaller Students" in done.stderr
    line = done.stderr.split("`")[1]
    assert line == "matta distill --teacher 'a model/model.pt'"
    done = typed(line.removeprefix("matta "))
    assert done.exit_code == 0, done.stderr
    assert (
        "WARNING" not in done.stderr and ": the base, which is the Teacher, too, has" in done.stderr
    )
    header, *rows = [row.split("\t") for row in done.stdout.splitlines()]
    assert header == ["model", "AUC ↑"]
    assert [row[0] for row in rows] == ["base", "Teacher", "width 0.25", "width 0.5", "width 1"]
    assert rows[0][1] == rows[1][1]
    torch.save(sure(0, 2.0).state_dict(), "a model/model.pt")  # the same name, and another model
    done = typed(f"{line.removeprefix('matta ')} --overwrite")
    assert done.exit_code == 0 and "and the Teacher" in done.stderr, done.stderr


def test_a_run_ends_with_how_good_its_models_are(folder):
    """As its last evaluation found them: nothing is measured twice. Wider TAs have a row."""
    convert(settings(), Path("out"))
    recipe = settings(widths=[0.5], eval_every=2)
    distill(recipe, Path("out"))
    found = quality(Path("out"))
    last = json.loads(Path("out/run/metrics.jsonl").read_text().splitlines()[-1])["evaluation"]
    values = {"TA": last["TA"]["auc"], "width 0.5": last["0.5"]["auc"]}
    assert found.values == {**Start.of(Workspace(Path("out"))).of_metric("auc"), **values}
    assert list(found.values) == ["base", "Teacher", "TA", "width 0.5"]
    distill(recipe, Path("out"), resume=True)  # of a finished run, too
    assert quality(Path("out")) == found
