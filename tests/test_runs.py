"""What a folder of runs must never do: mix two models, lose finished work, or measure the wrong
thing.
"""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from filelock import FileLock
from matta_adapters.mlp_ranker import Ranker
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from matta_cli.conversion.convert import convert
from matta_cli.data import sampling
from matta_cli.errors import MattaError
from matta_cli.family import export
from matta_cli.files import atomic
from matta_cli.files.workspace import Workspace
from matta_cli.measure import cost
from matta_cli.models.folders import load_ta
from matta_cli.report.schema import Metric
from matta_cli.settings.recipe import Recipe
from matta_cli.tasks import task as tasks_task
from matta_cli.tasks.image_classification.examples import Fitted, Preparation
from matta_cli.training import checkpoint, loop, objective, plan
from matta_cli.training.run import distill


def ranker(seed=0, dense=4, norm=False):
    torch.manual_seed(seed)
    layers = [
        {"layer": "Linear", "out": 16},
        *([{"layer": "BatchNorm1d"}] if norm else []),
        {"layer": "ReLU"},
    ]
    return Ranker([], dense, [*layers, {"layer": "Linear", "out": 1}]).eval()


def table(path, rows=400, order=None):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, 4)) + np.array([3.0, 0, 0, 0])
    label = (x[:, 0] + generator.normal(size=rows) > 3).astype(int)
    index = np.argsort(x[:, 0]) if order == "sorted" else np.arange(rows)
    lines = [",".join(f"{v:.5f}" for v in x[i]) + f",{label[i]}" for i in index]
    path.write_text("a,b,c,d,label\n" + "\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table(Path("train.csv"))
    torch.save(ranker().state_dict(), "model.pt")
    torch.save(ranker(1).state_dict(), "teacher.pt")
    return tmp_path


def settings(source="model.pt", **more):
    recipe = Recipe()
    values = {
        "teacher": "teacher.pt",
        "steps": 4,
        "batch_size": 32,
        "allow_weak_teacher": True,
        **more,
    }
    recipe.update(
        {
            "convert": {"source": source, "expand": 2.0},
            "data": {"train": "train.csv"},
            "distill": values,
        },
        "test",
    )
    recipe.export.bootstrap = 5
    return recipe


def test_an_output_folder_stands_for_its_trained_ta(folder):
    convert(settings(), Path("out"))
    before = load_ta("out").model.state_dict()
    last = distill(settings(), Path("out"))
    trained, loaded = load_ta(last).model.state_dict(), load_ta("out").model.state_dict()
    assert all(torch.equal(trained[k], loaded[k]) for k in trained)
    assert any(not torch.equal(before[k], loaded[k]) for k in trained)


def test_a_run_of_another_ta_is_refused(folder):
    convert(settings(), Path("out"))
    distill(settings(), Path("out"))
    torch.save(ranker(5).state_dict(), "other.pt")
    convert(settings("other.pt"), Path("out"), overwrite=True)
    with pytest.raises(MattaError, match="trained another TA"):
        export(settings(), Path("out"))
    with pytest.raises(MattaError, match="trained another TA"):
        distill(settings(steps=8), Path("out"), resume=True)


def test_a_failed_successor_brings_the_finished_run_back(folder):
    convert(settings(), Path("out"))
    last = distill(settings(), Path("out"))
    before = (last / "model.safetensors").read_bytes()
    with pytest.raises(MattaError, match="not finite at step"):
        distill(settings(lr=1e30, clip=0.0, steps=20, save_every=50), Path("out"), overwrite=True)
    assert (last / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in Path("out").iterdir()) == [".lock", "matta.toml", "run", "ta"]


def test_resume_takes_the_log_back_to_its_checkpoint(folder):
    convert(settings(), Path("out"))
    distill(settings(steps=6, save_every=2), Path("out"))
    shutil.rmtree("out/run/checkpoints/step-6")
    log = Path("out/run/metrics.jsonl")
    log.write_text(log.read_text() + '{"step": 7, "te')  # what a kill leaves
    distill(settings(steps=6, save_every=2), Path("out"), resume=True)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_is_named_and_left_out(folder):
    convert(settings(), Path("out"))
    last = distill(settings(steps=6, save_every=2), Path("out"))
    whole = (last / "model.safetensors").read_bytes()
    # as long as before: only a checksum can tell
    (last / "model.safetensors").write_bytes(whole[:-8] + b"\0" * 8)
    said = []
    again = distill(
        settings(steps=6, save_every=2),
        Path("out"),
        resume=True,
        listen=lambda p: said.append(p.message),
    )
    assert any("step-6 is damaged" in message for message in said) and any(
        "from step 4" in message for message in said
    )
    assert (again / "model.safetensors").read_bytes() == whole


def test_a_damaged_checkpoint_does_not_count_among_those_that_are_kept(folder):
    convert(settings(), Path("out"))
    last = distill(settings(steps=8, save_every=2, keep=2), Path("out"))
    (last / "model.safetensors").write_bytes(b"")
    distill(settings(steps=7, save_every=2, keep=2), Path("out"), resume=True)
    assert {p.name for p in last.parent.iterdir()} == {"step-6", "step-7", "step-8"}
    (last.with_name("step-7") / "model.safetensors").write_bytes(b"")
    # from step 6; both damaged ones go
    distill(settings(steps=8, save_every=2, keep=2), Path("out"), resume=True)
    assert {p.name for p in last.parent.iterdir()} == {"step-6", "step-8"}
    assert all(atomic.is_sound(p) for p in last.parent.iterdir())


@pytest.mark.slow
def test_a_copy_of_a_checkpoint_is_none(folder):
    """Only ``step-N`` is one; what somebody has put beside it neither counts nor ends a command."""
    convert(settings(), Path("out"))
    last = distill(settings(steps=6, save_every=2), Path("out"))
    shutil.copytree(last, last.with_name("step-60-backup"))
    shutil.rmtree(last)
    assert Workspace(Path("out")).newest() == last.with_name("step-4")
    assert distill(settings(steps=6, save_every=2), Path("out"), resume=True) == last
    export(settings(), Path("out"))
    assert last.with_name("step-60-backup").is_dir()


def test_two_runs_in_one_folder_are_refused(folder):
    convert(settings(), Path("out"))
    distill(settings(), Path("out"))
    with FileLock("out/.lock"), pytest.raises(MattaError, match="Another run is training in out"):
        distill(settings(steps=8), Path("out"), resume=True)


@pytest.mark.parametrize("ta_weight", [0.0, 1.0])
def test_divided_rows_of_one_width_are_plain_distillation_bit_for_bit(folder, ta_weight):
    """The stock model, its own autograd and torch's AdamW, against a family of one in the base."""
    recipe = settings(steps=5, widths=[1.0], ta_weight=ta_weight, device="cpu")
    recipe.convert.expand = 1.0
    convert(recipe, Path("out"))
    last = distill(recipe, Path("out"))
    student, teacher = load_ta("out/ta").student(1.0).dense().train(), ranker(1)
    own, s = tasks_task.task("ranking", recipe), recipe.distill
    data = own.data(Path("out/ta"), student).train
    matrices = [p for p in student.parameters() if p.dim() > 1]
    vectors = [p for p in student.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": s.weight_decay}]
    adamw = torch.optim.AdamW([*groups, {"params": vectors, "weight_decay": 0.0}], lr=s.lr)
    for step in range(s.steps):
        batch = data.batch(sampling.indices(s.seed, step, s.batch_size, len(data), {}))
        with torch.no_grad():
            soft = torch.sigmoid(own.forward(teacher, batch) / s.temperature)
        scores = own.forward(student, batch)
        entropy = F.binary_cross_entropy_with_logits
        truth, said = entropy(scores, batch["label"]), entropy(scores / s.temperature, soft)
        # of the divergence the entropy of the Teacher has no gradient
        loss = (1 - s.teacher_mix) * truth + s.teacher_mix * s.temperature**2 * said
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), s.clip)
        for group in adamw.param_groups:
            group["lr"] = s.lr * min((step + 1) / 1, (s.steps - step) / 1, 1)
        adamw.step()
        adamw.zero_grad()
    trained = load_ta(last).model.state_dict()
    for name, value in student.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-6, atol=1e-8)
    every = settings(steps=5, widths=[1.0], ta_weight=0.0, rows="all", device="cpu")
    again = load_ta(distill(every, Path("out"), overwrite=True)).model.state_dict()
    assert all(torch.equal(again[name], trained[name]) for name in trained)


def test_a_bad_batch_is_skipped_and_counted(folder, monkeypatch):
    """The gradient of two steps is made infinite: they change nothing, and the run goes on."""
    torch.save(ranker(norm=True).state_dict(), "model.pt")
    convert(settings(), Path("out"))
    every = {"rows": "all"}  # one call for a step
    own, weights = objective.Step.__call__, {}

    def spoilt(self, batch, piece, step, over):
        found = own(self, batch, piece, step, over)
        weights[step] = {k: v.clone() for k, v in self.ta.model.named_parameters()}
        if step in (1, 2):
            next(self.ta.model.parameters()).grad.fill_(float("inf"))
        return found

    monkeypatch.setattr(objective.Step, "__call__", spoilt)
    distill(settings(steps=5, **every), Path("out"))
    log = [json.loads(line) for line in Path("out/run/metrics.jsonl").read_text().splitlines()]
    assert [record["skipped"] for record in log] == [0, 1, 2, 2, 2] and log[1][
        "gradient_norm"
    ] is None
    same = lambda a, b: all(torch.equal(weights[a][k], weights[b][k]) for k in weights[a])  # noqa: E731
    assert same(1, 2) and same(2, 3) and not same(0, 1) and not same(3, 4)
    with pytest.raises(MattaError, match="the last 2 in a row"):
        distill(settings(steps=5, max_bad_steps=2, **every), Path("out"), overwrite=True)


@pytest.mark.slow
def test_twenty_kills_end_where_an_undisturbed_run_ends(folder):
    """SIGKILL at random moments, then --resume, until the run is done: the weights are the same to
    the bit.
    """
    convert(settings(), Path("out"))
    convert(settings(), Path("calm"))
    flags = [
        "--teacher",
        "teacher.pt",
        "--data",
        "train.csv",
        "--steps",
        "4000",
        "--save-every",
        "25",
        "--batch-size",
        "32",
    ]
    run = [sys.executable, "-m", "matta_cli", "distill"]
    subprocess.run([*run, "calm", *flags, "--allow-weak-teacher"], check=True, capture_output=True)
    moments, kills = random.Random(0), 0
    while True:
        started = Workspace(Path("out")).newest() is not None
        more = ["--resume"] if started else [*flags, "--allow-weak-teacher"]
        with subprocess.Popen(
            [*run, "out", *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                assert process.wait(moments.uniform(3, 5) if kills < 20 else None) == 0
                break
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
    weights = [
        Path(name, "run/checkpoints/step-4000/model.safetensors").read_bytes()
        for name in ("out", "calm")
    ]
    assert kills > 0 and weights[0] == weights[1]


@pytest.mark.parametrize(
    ("teacher", "sentence"),
    [
        (ranker(dense=7), "reads 7 dense features, the model 4"),
        (ranker(dense=3), "reads 3 dense features, the model 4"),
    ],
)
def test_a_teacher_of_other_features_is_refused(folder, teacher, sentence):
    torch.save(teacher.state_dict(), "teacher.pt")
    convert(settings(), Path("out"))
    with pytest.raises(MattaError, match=sentence):
        distill(settings(), Path("out"))
    assert not Path("out/run").exists()


def test_batch_norm_needs_two_rows(folder):
    torch.save(ranker(norm=True).state_dict(), "model.pt")
    convert(settings(), Path("out"))
    with pytest.raises(MattaError, match="--batch-size 1"):
        distill(settings(batch_size=1), Path("out"))


@pytest.mark.slow
def test_statistics_do_not_depend_on_the_order_of_a_file(folder):
    """The Student's BatchNorm means, whose inputs are sorted in one of two files, are the data's
    own.
    """
    torch.save(ranker(norm=True).state_dict(), "model.pt")
    table(Path("train.csv"), rows=6000, order="sorted")
    recipe = settings(batch_size=16)
    convert(recipe, Path("out"))
    distill(recipe, Path("out"))
    export(recipe, Path("out"))
    from matta_cli.models.folders import load_student

    student = load_student("out/students/width-1")
    x = torch.tensor(
        np.loadtxt("train.csv", delimiter=",", skiprows=1)[:5400, :4], dtype=torch.float32
    )
    hidden = student.mlp[0](x)
    spread = hidden.std(0)
    assert ((student.mlp[1].running_mean - hidden.mean(0)).abs() < 0.15 * spread).all()


def test_settings_are_rewritten_until_they_are_edited(folder):
    text = lambda: Path("out/matta.toml").read_text()  # noqa: E731
    convert(settings(), Path("out"))
    Path("more.csv").write_text(Path("train.csv").read_text())
    recipe = settings()
    recipe.data.train = "more.csv"
    convert(recipe, Path("out"), overwrite=True)
    assert 'train = "more.csv"' in text()
    Path("out/matta.toml").write_text(text() + "# mine\n")
    done = convert(settings(), Path("out"), overwrite=True)
    assert text().endswith("# mine\n") and any("edited" in note for note in done.notes)


def test_macs_count_attention_whatever_the_kernel():
    config = GPT2Config(vocab_size=64, n_positions=128, n_embd=32, n_layer=1, n_head=2)
    task = tasks_task.task("causal_lm", Recipe())
    counts = {}
    for kernel in ("sdpa", "eager"):
        config._attn_implementation = kernel
        counts[kernel] = cost.macs(
            task, GPT2LMHeadModel(config), {"input_ids": torch.zeros(1, 128, dtype=torch.long)}
        )
    length, width = 128, 32
    matrices = length * (12 * width * width + 64 * width)  # qkv, projection, MLP; and the head
    assert counts["sdpa"] == counts["eager"] == matrices + 2 * length * length * width


def test_a_teacher_gets_images_normalised_as_its_own(tmp_path):
    def vit(mean, std):
        torch.manual_seed(0)
        overlay = {"mean": (mean,) * 3, "std": (std,) * 3, "input_size": (3, 32, 32)}
        return timm.create_model(
            "test_vit", img_size=32, num_classes=10, pretrained_cfg_overlay=overlay
        ).eval()

    model, teacher = vit(0.5, 0.5), vit(0.2, 0.3)
    task = tasks_task.task("image_classification", Recipe())
    fitted = task.fit_teacher(teacher, None, model)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    ours, theirs = (Preparation(tmp_path, m).input(pixels)[None] for m in (model, teacher))
    with torch.no_grad():
        assert isinstance(fitted, Fitted) and torch.allclose(
            fitted(ours), teacher(theirs), atol=1e-5
        )
    assert task.fit_teacher(model, None, model) is model
    larger = timm.create_model("test_vit", img_size=48, num_classes=10)
    with pytest.raises(MattaError, match="3x48x48, the model of 3x32x32"):
        task.fit_teacher(larger, None, model)


def test_the_scale_of_fp16_goes_on_where_it_was(folder, monkeypatch):
    own = objective.Step.__call__

    def spoilt(self, batch, piece, step, over):
        found = own(self, batch, piece, step, over)
        if step == 1:
            next(self.ta.model.parameters()).grad.fill_(float("inf"))
        return found

    monkeypatch.setattr(objective.Step, "__call__", spoilt)
    convert(settings(), Path("out"))
    scales = []
    for steps in (3, 4):
        last = distill(settings(steps=steps, precision="fp16"), Path("out"), resume=steps > 3)
        scales.append(json.loads((last / "trainer.json").read_text())["loss_scale"]["scale"])
    assert scales == [2.0**15, 2.0**15]  # it starts at 2^16, and halves at an overflow


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_exported(folder, monkeypatch):
    """Old checkpoints go, but not the one that measured best; export takes it if not told else."""
    # from the ninth step on the loss is climbed
    monkeypatch.setattr(loop.optimizer, "learning_rate", lambda _, step: 0.05 if step < 8 else -0.1)
    recipe = settings(
        steps=12, save_every=1, eval_every=2, keep=1, best=0.5, lr=0.05, eval_examples=0
    )
    convert(recipe, Path("out"))
    last = distill(recipe, Path("out"))
    log = [json.loads(line) for line in Path("out/run/metrics.jsonl").read_text().splitlines()]
    measured = {r["step"]: r["evaluation"]["0.5"]["auc"] for r in log if "evaluation" in r}
    best = max(measured, key=lambda step: (measured[step], -step))
    names = {f"step-{best}", "step-12"}
    assert {
        p.name for p in Path("out/run/checkpoints").iterdir()
    } == names and last.name == "step-12"
    report = export(recipe, Path("out"))
    assert report.run.steps == best < 12
    assert any(f"Step {best} was the best by the AUC of width 0.5" in note for note in report.notes)
    recipe.export.checkpoint = "last"
    assert export(recipe, Path("out"), overwrite=True).run.steps == 12
    recipe.export.checkpoint = "step-7"
    with pytest.raises(MattaError, match="step-7 is not there; out/run has step-"):
        export(recipe, Path("out"), overwrite=True)


def test_a_ta_without_a_loss_of_its_own_moves_only_where_its_students_are(folder):
    recipe = settings(widths=[0.5], ta_weight=0.0, lr=0.01, weight_decay=0.5)
    convert(recipe, Path("out"))
    before = load_ta("out/ta").model.state_dict()["mlp.0.weight"]  # [32, 4]: the base has 16
    after = load_ta(distill(recipe, Path("out"))).model.state_dict()["mlp.0.weight"]
    assert not torch.equal(before[:8], after[:8])
    assert torch.equal(before[8:], after[8:])


@pytest.mark.parametrize("higher", [True, False])
def test_the_first_of_several_that_measure_alike_is_the_best(folder, higher, monkeypatch):
    """Also where lower is better; and what is no number is never the best."""
    given = iter([[2.0, 2.0, 1.0, 1.0, 3.0], [2.0, float("nan"), 3.0, 3.0, 1.0]][higher])
    monkeypatch.setattr(loop, "measure", lambda *_: {"0.5": {"auc": next(given)}})
    recipe = settings(steps=5, eval_every=1, keep=1, best=0.5)
    convert(recipe, Path("out"))
    metrics = (Metric("auc", "AUC", higher),)
    monkeypatch.setattr("matta_cli.tasks.ranking.task.Ranking.metrics", metrics)
    last = distill(recipe, Path("out"))
    assert json.loads((last / "trainer.json").read_text())["best_step"] == 3
    assert {path.name for path in last.parent.iterdir()} == {"step-3", "step-5"}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"shares": [1.0]}, r"shares \[1.0\] is not possible: .*, and one for the TA of width 2"),
        ({"shares": [1.0, 0.0, 1.0, 1.0]}, r"shares .* is not possible: it is one number above 0"),
        ({"rows": "some"}, "distill.rows 'some' is not known: divided, all"),
        ({"students_learn_from": "teacher"}, "'teacher' is not known: both, ta"),
        (
            {"students_learn_from": "ta", "ta_student_weight": 0.0},
            "with distill.ta_student_weight = 0 they would learn nothing of it",
        ),
        ({"precision": "int8"}, "--precision 'int8' is not known: auto, bf16, fp16, fp32, tf32"),
        ({"optimizer": "sgd"}, "--optimizer 'sgd' is not known: adamw, shampoo, soap, muon"),
        ({"compile": "gcc"}, "distill.compile 'gcc' is not known: "),
        ({"log_to": ["mlflow"]}, "--log-to 'mlflow' is not known: tensorboard, wandb"),
        ({"best": 0.3}, "distill.best 0.3 is not one of the widths 0.25, 0.5, 1"),
        ({"keep": -1}, "distill.keep -1 is not possible"),
        ({"teacher_mix": 1.5}, "teacher_mix 1.5 is not possible"),
        (
            {"checkpoint_activations": True},
            "Activation checkpointing is not supported for this model",
        ),
        ({"logits": "chunked", "shared": False}, "shared = false is an ablation"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(folder, values, sentence):
    convert(settings(), Path("out"))
    with pytest.raises(MattaError, match=sentence):
        distill(settings(**values), Path("out"))
    assert not Path("out/run").exists() or not list(Path("out/run").iterdir())


@pytest.mark.slow
def test_unshared_students_are_saved_resumed_and_exported(folder):
    """The paper's sharing ablation: Students of their own, which start as the TA's cuts."""
    recipe = settings(steps=6, save_every=3, shared=False, lr=0.01)
    convert(recipe, Path("out"))
    last = distill(recipe, Path("out"))
    whole = {p.relative_to(last): p.read_bytes() for p in last.rglob("*.safetensors")}
    assert any("unshared" in str(name) for name in whole)
    shutil.rmtree(last)
    again = distill(recipe, Path("out"), resume=True)
    assert {p.relative_to(again): p.read_bytes() for p in again.rglob("*.safetensors")} == whole
    export(recipe, Path("out"))
    from matta_cli.models.folders import load_student

    student, ta = load_student("out/students/width-0.5").state_dict(), load_ta(again)
    own = ta.copies[0.5].state_dict()
    assert all(torch.equal(student[name], own[name]) for name in own)
    ta.unshared = {}
    cut = ta.student(0.5).dense().state_dict()
    assert any(not torch.equal(student[name], cut[name]) for name in cut)


def test_a_full_memory_says_what_took_it_and_what_helps(folder, monkeypatch):
    recipe = settings()
    recipe.distill.device = "cpu"
    convert(recipe, Path("out"))

    def full(*args):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB."
        )

    monkeypatch.setattr(objective.Step, "__call__", full)
    with pytest.raises(
        MattaError,
        match=r"Out of memory on cpu at step 0: .*Tried to allocate 2.*Try --micro-batch 16",
    ):
        distill(recipe, Path("out"))


def test_a_full_disk_keeps_the_last_checkpoint(folder, monkeypatch):
    convert(settings(), Path("out"))
    own = checkpoint.save_file

    def full(tensors, name):
        if "step-6" in name:
            raise OSError(28, "No space left on device")
        own(tensors, name)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(
        MattaError,
        match=r"The disk is full at step 6 of 8, in out/run; out/run/checkpoints/step-4 is kept",
    ):
        distill(settings(steps=8, save_every=2), Path("out"))
    assert atomic.is_sound(Path("out/run/checkpoints/step-4"))
    assert not [p for p in Path("out/run/checkpoints").iterdir() if p.name.startswith(".")]


def test_tensorboard_has_what_the_log_has(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    convert(settings(), Path("out"))
    distill(settings(log_to=["tensorboard"]), Path("out"))
    board = EventAccumulator("out/run/tensorboard").Reload()
    log = [json.loads(line) for line in Path("out/run/metrics.jsonl").read_text().splitlines()]
    found = [(e.step, e.value) for e in board.Scalars("terms/0.5/loss")]
    assert found == [(r["step"], pytest.approx(r["terms"]["0.5"]["loss"], rel=1e-5)) for r in log]


@pytest.mark.parametrize(
    ("rows", "widths", "graphs"),
    # the TA and the widths; of divided rows the TA also runs without a gradient, to teach
    [("all", [0.25, 0.5, 0.75, 1.0], 5), ("divided", [0.25, 0.5, 1.0], 5)],
)
def test_compiled_training_makes_one_graph_for_each_width_and_no_more(folder, rows, widths, graphs):
    convert(settings(), Path("out"))
    said: list[str] = []
    same = {"steps": 5, "rows": rows, "widths": widths, "ta_student_weight": 0.5}
    recipe = settings(compile="aot_eager", **same)
    distill(settings(**same), Path("out"), overwrite=True)
    log = [
        json.loads(line)["terms"] for line in Path("out/run/metrics.jsonl").read_text().splitlines()
    ]
    before = objective.Step.graphs()
    distill(recipe, Path("out"), overwrite=True, listen=lambda p: said.append(p.message))
    compiled = [json.loads(line) for line in Path("out/run/metrics.jsonl").read_text().splitlines()]
    assert {record["graphs"] - before for record in compiled} == {graphs}
    assert not any("compiled again" in message for message in said)
    for a, b in zip(log, compiled, strict=True):
        assert a.keys() == b["terms"].keys()
        for model in a:
            assert a[model] == pytest.approx(b["terms"][model], rel=1e-4, abs=1e-6)
    recipe.distill.micro_batch = 20 if rows == "all" else 5
    with pytest.raises(MattaError, match=r"--micro-batch \d+ does not divide the batch"):
        distill(recipe, Path("out"), overwrite=True)
    recipe.distill.micro_batch, recipe.distill.batch_size = 0, 30
    if rows == "divided":
        with pytest.raises(MattaError, match="--batch-size 30 cannot be divided evenly among 4"):
            distill(recipe, Path("out"), overwrite=True)


def test_a_graph_that_is_compiled_again_is_reported(folder, monkeypatch):
    convert(settings(), Path("out"))
    said, counted = [], iter([3, 3, 4, 4, 4])
    monkeypatch.setattr(objective.Step, "graphs", staticmethod(lambda: next(counted)))
    distill(settings(compile="aot_eager"), Path("out"), listen=lambda p: said.append(p.message))
    assert [m for m in said if "compiled again" in m] == [
        "A graph was compiled again at step 2: that is a bug of matta, please report it."
    ]


@pytest.mark.slow
def test_a_dry_run_takes_few_parts_of_a_step_and_tells_what_all_of_it_costs(folder, monkeypatch):
    recipe = settings(micro_batch=2, steps=53, eval_every=5, rows="all")
    out = Path("matta-out")
    convert(recipe, out)
    parts = []
    take = loop.Training.take
    monkeypatch.setattr(
        loop.Training, "take", lambda self, step, b: (parts.append(len(b)), take(self, step, b))[1]
    )

    found = plan.plan(recipe, out)
    assert parts == [2, 1, 2, 1, 2, 1, 2]  # of sixteen
    assert found.items_per_step == 32 and found.json()["rows"] == 32 * 53
    whole = plan.plan(settings(steps=50, rows="all"), out)
    assert parts[7:] == [1, 1, 1, 1]
    # each of four models gets eight rows, two at a time: one and two parts of each are timed
    divided = plan.plan(settings(micro_batch=2, steps=50), out)
    assert parts[11:] == [8, 4, 8, 4, 8, 4, 8] and divided.items_per_step == 32
    assert divided.model_flops_per_step < whole.model_flops_per_step
    # after every fifth step; a run of 53 is evaluated at its end besides
    assert whole.evaluations == 10 and found.evaluations == 11
    kept = plan.plan(settings(steps=50, save_every=25, keep=0), out)
    assert kept.disk_bytes == 2 * kept.checkpoint_bytes
    assert found.model_flops == 53 * found.model_flops_per_step > 0
    assert found.model_flops_per_step == whole.model_flops_per_step
    teacher = found.teacher_bytes
    weights = found.ta_bytes + found.gradient_bytes
    assert found.standing_bytes == weights + found.optimizer_bytes + teacher
    lines = dict(plan.rows(found))
    assert lines["model FLOPs in all"].endswith("at 100 TFLOP/s a device")
    assert "with the Teacher" in lines["weights, gradients, optimizer"]
    assert not (out / "run").exists()


@pytest.mark.slow
def test_a_finished_run_comes_back_when_its_successor_was_killed(folder):
    """``distill --overwrite`` has set it aside; without a checkpoint of the new one, it is what
    there is to export.
    """
    convert(settings(), Path("out"))
    last = distill(settings(), Path("out"))
    kept = (last / "model.safetensors").read_bytes()
    for then in (
        lambda: export(settings(), Path("out")),
        lambda: distill(settings(), Path("out"), resume=True),
    ):
        Path("out/run").rename("out/.run.old")
        Path("out/run").mkdir()  # as a kill leaves it
        Path("out/run/metrics.jsonl").write_text("{}\n")
        with (
            FileLock("out/.lock"),
            pytest.raises(MattaError, match="Another run is training in out"),
        ):
            then()
        then()
        assert (last / "model.safetensors").read_bytes() == kept and not Path(
            "out/.run.old"
        ).exists()
    with pytest.raises(MattaError, match="holds finished work; pass --overwrite to replace it"):
        distill(settings(), Path("out"))


def test_what_is_training_is_not_converted_anew(folder):
    convert(settings(), Path("out"))
    distill(settings(), Path("out"))
    before = atomic.digest(Path("out/ta"))
    with FileLock("out/.lock"), pytest.raises(MattaError, match="Another run is training in out"):
        convert(settings(), Path("out"), overwrite=True)
    assert atomic.digest(Path("out/ta")) == before
    done = convert(settings(), Path("out"), overwrite=True)
    assert not any("trained another TA" in note for note in done.notes)  # it is the same one
    again = settings()
    again.convert.expand = 3.0
    done = convert(again, Path("out"), overwrite=True)
    assert any(
        "out/run trained another TA than this one: distill again with --overwrite" in note
        for note in done.notes
    )


def test_a_run_goes_on_only_with_the_data_and_the_teacher_that_it_was_begun_with(folder):
    convert(settings(), Path("out"))
    distill(settings(), Path("out"))
    kept = Path("train.csv").read_text()
    table(Path("train.csv"), rows=410)
    with pytest.raises(MattaError, match=r"training data 'train.csv' of now is not what the run"):
        distill(settings(steps=6), Path("out"), resume=True)
    Path("train.csv").write_text(kept)
    torch.save(ranker(2).state_dict(), "teacher.pt")
    with pytest.raises(MattaError, match=r"Teacher 'teacher.pt' of now is not what the run"):
        distill(settings(steps=6), Path("out"), resume=True)
    torch.save(ranker(1).state_dict(), "teacher.pt")
    told = []
    again = settings(steps=6, seed=3, batch_size=16)
    distill(again, Path("out"), resume=True, listen=lambda event: told.append(event.message))
    assert any("goes on with batch_size 16 instead of 32, seed 3 instead of 0" in t for t in told)
    assert not any("held-out" in t and "of now" in t for t in told)


def test_a_run_that_is_measured_on_other_examples_says_so(folder):
    table(Path("held.csv"), rows=61)

    def own(**more: object) -> Recipe:
        recipe = settings(eval_every=2, **more)
        recipe.data.held_out = "held.csv"
        return recipe

    convert(own(), Path("out"))
    distill(own(best=1.0), Path("out"))
    table(Path("held.csv"), rows=62)
    told = []
    distill(own(steps=6), Path("out"), resume=True, listen=lambda event: told.append(event.message))
    assert any("The held-out data 'held.csv' of now is not what" in t for t in told)
    table(Path("held.csv"), rows=63)
    with pytest.raises(MattaError, match=r"held-out data 'held.csv' of now is not what"):
        distill(own(steps=8, best=1.0), Path("out"), resume=True)
    hint = r"put back what it was \(and --held-out, .* if changed\), or start again"
    with pytest.raises(MattaError, match=f"training data 'train.csv' of now .*: {hint}"):
        distill(settings(steps=8), Path("out"), resume=True)


def test_a_run_knows_again_the_file_that_was_its_teacher(folder):
    convert(settings(), Path("out"))
    scores = {"row": torch.arange(400), "score": torch.linspace(-1, 1, 400)}
    save_file(scores, "said.safetensors")
    distill(settings(teacher="said.safetensors"), Path("out"))
    save_file(scores | {"score": torch.linspace(-1, 2, 400)}, "said.safetensors")
    with pytest.raises(MattaError, match=r"Teacher 'said.safetensors' of now is not what the run"):
        distill(settings(teacher="said.safetensors", steps=6), Path("out"), resume=True)


@pytest.mark.slow
def test_a_ranker_in_the_format_of_matta(folder):
    torch.save(ranker().state_dict(), "a <b>& # name.pt")
    convert(settings("a <b>& # name.pt"), Path("out"))
    assert "of a &lt;b&gt;&amp; \\# name.pt" in Path("out/ta/README.md").read_text()
    distill(settings(), Path("out"))
    wanted = settings()
    wanted.export.format, wanted.export.widths = ["matta"], [0.5]
    report = export(wanted, Path("out"))
    assert report.students[0].parity.exact and not report.students[0].stock


def test_a_ranker_that_takes_dense_features_alone(folder):
    made = settings("auto_models:DenseAlone")
    made.convert.adapter, made.convert.task = "auto", "ranking"
    made.convert.example, made.convert.expand = "dense=3x4", 1.0
    convert(made, Path("out"))
    assert distill(settings(), Path("out")).is_dir()
