"""Baselines are what they say, are trained once, and the verdict on a Student is right where it is
known beforehand.
"""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants
from matta_adapters.mlp_ranker import Ranker
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

from matta_cli import family
from matta_cli.comparison import compare
from matta_cli.conversion.convert import convert
from matta_cli.data import sampling
from matta_cli.errors import Interrupted, MattaError
from matta_cli.family import export
from matta_cli.files import atomic
from matta_cli.files.workspace import Workspace
from matta_cli.measure import intervals
from matta_cli.measure.score import at_a_time
from matta_cli.models.folders import load_student, load_ta
from matta_cli.report import verdicts
from matta_cli.report.schema import Report, Role
from matta_cli.search import run as search
from matta_cli.settings.budget import asked
from matta_cli.settings.recipe import DataSettings, DistillSettings, Recipe
from matta_cli.settings.resolve import resolve
from matta_cli.students import card
from matta_cli.tasks import task as tasks_task
from matta_cli.tasks.ranking.task import Ranking
from matta_cli.training import log, objective, spent
from matta_cli.training.run import distill
from matta_cli.training.start import Starting
from matta_cli.training.teacher import ModelTeacher
from matta_cli.verdict import baselines, judge

STEPS = 60


def ranker(width, seed=0):
    torch.manual_seed(seed)
    return Ranker(
        [], 4, [{"layer": "Linear", "out": width}, {"layer": "ReLU"}, {"layer": "Linear", "out": 1}]
    ).eval()


def settings():
    recipe = Recipe()
    values = {
        "teacher": "teacher.pt",
        "steps": STEPS,
        "batch_size": 64,
        "lr": 0.02,
        "device": "cpu",
        "widths": [0.25, 0.5],
        "eval_every": 30,
    }
    recipe.update(
        {
            "convert": {"source": "model.pt", "expand": 2.0},
            "data": {"train": "train.csv"},
            "distill": values,
        },
        "test",
    )
    recipe.data.eval_examples, recipe.export.widths = 0, [0.25, 0.5]
    recipe.export.bootstrap, recipe.export.margin = 200, 0.02
    return recipe


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run that went well, exported: the Teacher knows what the label is made of."""
    folder = tmp_path_factory.mktemp("verdict")
    random = np.random.default_rng(0)
    x = random.normal(size=(6000, 4))
    label = (x[:, 0] + x[:, 1] - x[:, 2] + random.normal(size=6000) > 0).astype(int)
    lines = [",".join(f"{v:.5f}" for v in row) + f",{y}" for row, y in zip(x, label, strict=True)]
    (folder / "train.csv").write_text("a,b,c,d,label\n" + "\n".join(lines) + "\n")
    teacher = ranker(2)
    with torch.no_grad():  # relu(s) - relu(-s) is s
        teacher.mlp[0].weight.copy_(torch.tensor([[1.0, 1, -1, 0], [-1, -1, 1, 0]]))
        teacher.mlp[2].weight.copy_(torch.tensor([[2.0, -2.0]]))
        for layer in (teacher.mlp[0], teacher.mlp[2]):
            layer.bias.zero_()
    torch.save(teacher.state_dict(), folder / "teacher.pt")
    torch.save(ranker(16, seed=1).state_dict(), folder / "model.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        convert(settings(), Path("out"))
        distill(settings(), Path("out"))
        export(settings(), Path("out"))
        judge.remake(Path("out"), ["untrained", "ground-truth", "plain", "scratch"])
    return folder


@pytest.fixture
def here(exported, tmp_path, monkeypatch):
    shutil.copytree(exported, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return Path("out")


def pair(report, a, b, metric="auc"):
    return next(p for p in report.pairs if (p.a, p.b, p.metric) == (a, b, metric))


def written(out):
    return Report.from_json(json.loads((out / "report.json").read_text()))


def rivals(report):
    """The Students' verdicts against plain distillation, by name."""
    roles = {model.name: model.role for model in report.models}
    primary = report.primary.name
    against = (p for p in report.pairs if p.metric == primary and roles[p.b] is Role.PLAIN)
    return {p.a: p.verdict for p in against if roles[p.a] is Role.STUDENT}


def replace_weights(folder, tensors):
    """Put other weights into a checkpoint, and its sums right again."""
    save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    atomic.seal(folder)


@pytest.mark.slow
def test_a_sabotaged_student_is_called_worse_and_the_others_are_not(here):
    last = Workspace(here).newest()
    tensors = load_file(str(last / "model.safetensors"))
    kept = load_ta(last).sizes(0.5)["hidden.0"]
    assert kept == 8
    # the part that 0.25 does not have
    tensors["mlp.0.weight"][4:kept] = tensors["mlp.0.weight"][4:kept].flip(0, 1)
    tensors["mlp.2.weight"][:, 4:kept] = -3 * tensors["mlp.2.weight"][:, 4:kept].flip(1)
    replace_weights(last, tensors)
    export(settings(), here, overwrite=True)
    result = judge.remake(here)
    found = rivals(result)
    assert found["width 0.5"] == verdicts.WORSE
    assert found["width 0.25"] in (verdicts.BETTER, verdicts.SAME, verdicts.NO_WORSE)
    alarms = result.notes
    assert any("width 0.5 is worse than plain distillation 0.5" in alarm for alarm in alarms)
    assert any("width 0.5 is larger than width 0.25 but worse in AUC" in alarm for alarm in alarms)
    for name in ("report.md", "report.html", "students/width-0.5/README.md"):
        assert "width 0.5 is worse than plain distillation 0.5" in (here / name).read_text()
    judge.remake(here)
    assert (here / "students" / "width-0.5" / "README.md").read_text().count("## Verdict") == 1


def test_an_export_with_settings_of_a_search_that_are_gone_is_judged(here):
    path = Workspace(here).students / "recipe.toml"
    text = path.read_text()
    try:
        path.write_text(text.replace("[search]\n", '[search]\nsizes = "trained"\n'))
        assert 'sizes = "trained"' in path.read_text()
        assert judge.remake(here).students
    finally:
        path.write_text(text)


def test_a_report_with_a_cut_of_no_student_is_damaged(here, tmp_path):
    path, copy = Workspace(here).report, tmp_path / "report.json"
    shutil.copy(path, copy)
    try:
        told = json.loads(path.read_text())
        [cut, *_] = (model for model in told["models"] if model["role"] == "cut")
        cut["of"] = "nobody"
        path.write_text(json.dumps(told))
        with pytest.raises(MattaError, match=r"report\.json is damaged \(KeyError\('nobody'\)\)"):
            judge.remake(here)
    finally:
        shutil.copy(copy, path)


def test_a_good_run_raises_no_alarm(here):
    result = written(here)
    assert len(rivals(result)) == 2
    assert not [note for note in result.notes if "worse" in note]


@pytest.mark.slow
def test_two_copies_of_one_model_are_no_different(here):
    plain = here / "baselines" / "plain-width-0.5"
    student = load_student(here / "students" / "width-0.5")
    replace_weights(Workspace(plain).newest(), student.state_dict())
    found = pair(judge.remake(here), "width 0.5", "plain distillation 0.5")
    assert found.verdict == verdicts.SAME
    assert found.gain == found.low == found.high == 0 and found.p == 1


def test_differences_are_those_of_an_independent_auc(here):
    result = written(here)
    rows = np.loadtxt("train.csv", delimiter=",", skiprows=1)
    held_out = rows[-len(rows) // 10 :]
    inputs, label = torch.tensor(held_out[:, :4], dtype=torch.float32), held_out[:, 4]

    def auc(model):
        with torch.no_grad():
            return roc_auc_score(label, model.mlp(inputs).flatten())

    ours = auc(load_student(here / "students" / "width-0.25"))
    theirs = auc(load_ta(Workspace(here / "baselines" / "plain-width-0.25").newest()).model)
    gain = pair(result, "width 0.25", "plain distillation 0.25").gain
    assert gain == pytest.approx(ours - theirs, abs=1e-6)
    loss = pair(result, "width 0.25", "plain distillation 0.25", "auc_loss")
    assert loss.gain == pytest.approx(ours - theirs, abs=1e-6), "a lower loss is a gain"


def test_plain_is_plain_distillation(here):
    """Written out by hand: the same cut, data order, losses, schedule and optimizer end in the same
    weights.
    """
    recipe, ta = settings().distill, load_ta(here / "ta")
    rows = torch.tensor(
        np.loadtxt("train.csv", delimiter=",", skiprows=1)[:5400], dtype=torch.float32
    )
    teacher = ranker(2)
    teacher.load_state_dict(torch.load("teacher.pt"))
    for kind, mix in (("plain", 0.9), ("ground-truth", 0.0)):
        model = ta.student(0.5).dense().train()
        groups = [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.01},
            {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        ]
        optimizer, order = torch.optim.AdamW(groups, lr=recipe.lr), {}
        for step in range(STEPS):
            some = rows[sampling.indices(recipe.seed, step, 64, len(rows), order)]
            out, label, t = model.mlp(some[:, :4]).flatten(), some[:, 4], recipe.temperature
            with torch.no_grad():
                soft = torch.sigmoid(teacher.mlp(some[:, :4]).flatten() / t)
            cross = torch.nn.functional.binary_cross_entropy_with_logits
            loss = (1 - mix) * cross(out, label)
            if mix:
                least = cross(torch.logit(soft), soft)  # the Teacher's own entropy: constant
                loss = loss + mix * t * t * (cross(out / t, soft) - least)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            warm, decay = max(1, round(0.05 * STEPS)), round(0.2 * STEPS)
            for group in optimizer.param_groups:
                group["lr"] = 0.02 * min((step + 1) / warm, 1, (STEPS - step) / decay)
            optimizer.step()
        got = load_ta(
            Workspace(here / "baselines" / f"{kind}-width-0.5").newest()
        ).model.state_dict()
        for name, tensor in model.state_dict().items():
            assert torch.allclose(got[name], tensor, atol=2e-4), (
                kind,
                name,
                (got[name] - tensor).abs().max(),
            )


def test_scratch_starts_elsewhere_and_the_others_at_the_cut(here):
    cut = load_ta(here / "ta").student(0.25).dense().state_dict()
    for kind in ("plain", "ground-truth", "scratch"):
        start = load_ta(here / "baselines" / f"{kind}-width-0.25" / "ta").model.state_dict()
        same = all(torch.equal(start[name], cut[name]) for name in cut)
        assert same == (kind != "scratch")
        assert {n: t.shape for n, t in start.items()} == {n: t.shape for n, t in cut.items()}


@pytest.mark.slow
def test_finished_baselines_are_reused_and_those_of_another_recipe_made_anew(here):
    weights = {p: p.stat().st_mtime_ns for p in (here / "baselines").rglob("model.safetensors")}
    before = written(here)
    said = []
    again = judge.remake(
        here, ["plain", "ground-truth"], listen=lambda event: said.append(event.message)
    )
    assert {p: p.stat().st_mtime_ns for p in weights} == weights
    assert sum("finished already" in message for message in said) == 4
    assert again.pairs == before.pairs
    recipe = here / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("lr = 0.02", "lr = 0.01"))
    assert not rivals(judge.remake(here)), "baselines of another recipe are no baselines"
    result = judge.remake(here, ["plain"])
    assert len(rivals(result)) == 2 and not result.of(Role.ALONE)
    gains = [pair(r, "width 0.5", "plain distillation 0.5").gain for r in (result, before)]
    assert gains[0] != gains[1]


@pytest.mark.slow
def test_a_stopped_baseline_goes_on_bit_for_bit(here, monkeypatch):
    plain = here / "baselines" / "plain-width-0.5"
    once = (Workspace(plain).newest() / "model.safetensors").read_bytes()
    shutil.rmtree(plain)
    own, calls = objective.Step._learn_group, []

    def pressed(*args):
        calls.append(1)
        if len(calls) == 20:
            signal.raise_signal(signal.SIGINT)
        return own(*args)

    with monkeypatch.context() as patch:
        patch.setattr(objective.Step, "_learn_group", pressed)
        with pytest.raises(Interrupted, match="Go on with `matta report out --baselines plain`"):
            judge.remake(here, ["plain"])
    step = int(Workspace(plain).newest().name.removeprefix("step-"))
    assert 0 < step < STEPS
    judge.remake(here, ["plain"])
    assert (Workspace(plain).newest() / "model.safetensors").read_bytes() == once
    steps = [
        json.loads(line)["step"]
        for line in (plain / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, STEPS + 1))


def test_costs_are_those_of_the_runs(here):
    result = written(here)
    named = {model.name: model for model in result.models}
    trainer = json.loads((Workspace(here).newest() / "trainer.json").read_text())
    seconds = [named[name].training.seconds for name in ("width 0.25", "TA")]
    assert seconds == [trainer["seconds"]] * 2
    for name in ("width 0.5", "plain distillation 0.5", "trained alone 0.5"):
        training = named[name].training
        assert training.examples == training.items == STEPS * 64
    assert named["plain distillation 0.5"].cost == named["width 0.5"].cost
    (axis,) = result.axes
    assert (axis.base, axis.ta, axis.kept["width 0.5"]) == (16, 32, 8)
    assert axis.importance == sorted(axis.importance, reverse=True) and len(axis.importance) == 16


def test_baselines_take_as_many_steps_as_the_students_did(here):
    student = written(here).students[0]
    run = spent.of_run(Workspace(here), "step-30")
    baselines.train(here, ["plain"], [student], run)
    (found,) = baselines.finished(here, [student], run)
    assert found.spent.steps == 30 and found.checkpoint.name == "step-30"
    log = (found.folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(1, 31))
    whole = spent.of_run(Workspace(here))
    assert {other.kind for other in baselines.finished(here, [student], whole)} == {
        "ground-truth",
        "scratch",
    }


def test_a_teacher_that_is_gone_leaves_the_baseline_of_labels(here):
    Path("teacher.pt").unlink()
    shutil.rmtree(here / "baselines")
    result = judge.remake(here, ["ground-truth"])
    assert len(result.of(Role.ALONE)) == 2
    with pytest.raises(MattaError, match=r"teacher\.pt"):
        judge.remake(here, ["plain"])


def test_fresh_weights_are_drawn_by_the_library_itself():
    import timm
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=50, n_positions=8, n_embd=64, n_layer=2, n_head=2, initializer_range=0.05
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(7.0)
    baselines.fresh(model, 0)
    spread = model.transformer.h[0].mlp.c_fc.weight.std().item()
    assert spread == pytest.approx(0.05, rel=0.05)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(model.transformer.ln_f.weight, torch.ones(64))
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=8,
        patch_size=2,
        embed_dim=48,
        depth=1,
        num_heads=3,
        num_classes=10,
    )
    with torch.no_grad():
        for p in vit.parameters():
            p.fill_(7.0)
    baselines.fresh(vit, 0)
    assert all(p.abs().max() <= 1.01 for p in vit.parameters())
    assert 0.01 < vit.blocks[0].mlp.fc1.weight.std() < 0.1


def test_a_half_written_last_line_of_the_log_is_left_out(here):
    """What a machine that lost its power leaves behind."""
    before = log.evaluations(Workspace(here), "auc")
    assert [step for step, _ in before] == [30, 60]
    with Workspace(here).log.open("a", encoding="utf-8") as file:
        file.write('{"step": 61, "evaluation": {"0.2')
    assert log.evaluations(Workspace(here), "auc") == before


@pytest.mark.slow
def test_a_damaged_checkpoint_counts_for_the_baselines_as_for_the_students(here):
    space = Workspace(here)
    assert [path.name for path in space.checkpoints()] == ["step-30", "step-60"]
    weights = space.checkpoint(60) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    result = export(settings(), here, overwrite=True)
    student = result.students[0]
    assert result.run.steps == student.training.steps == 30
    assert student.training.seconds == result.run.seconds > 0
    run = spent.of_run(Workspace(here), "auto")
    assert not baselines.finished(here, [student], run), "those that are there took 60 steps"
    baselines.train(here, ["plain"], [student], run)
    (found,) = baselines.finished(here, [student], run)
    assert found.kind == "plain" and found.spent.steps == 30


@pytest.mark.slow
def test_only_widths_that_no_term_trains_are_called_untrained(here):
    recipe = settings()
    recipe.export.widths = [0.5, 1.0, 2.0]
    notes = export(recipe, here, overwrite=True).notes
    assert [note for note in notes if "never trained" in note] == [
        "Width 1 was never trained (0.25, 0.5, 2 were): train what you export."
    ]
    ta = load_ta(here)
    assert spent.trained_widths(recipe.distill, ta) == [0.25, 0.5, 2.0]
    recipe.distill.ta_weight = 0.0
    assert spent.trained_widths(recipe.distill, ta) == [0.25, 0.5]


@pytest.mark.slow
def test_as_many_examples_are_measured_at_a_time_as_a_device_trains(here, monkeypatch):
    """A GPU that trains, ``micro_batch`` at a time, does not run out of memory when it measures."""
    recipe = settings()
    recipe.distill.micro_batch = 16
    seen, own = [], Ranking.score

    def score(self, logits, batch):
        seen.append(len(logits))
        return own(self, logits, batch)

    monkeypatch.setattr(Ranking, "score", score)
    export(recipe, here, overwrite=True)
    assert set(seen) <= {16, 600 % 16}
    seen.clear()
    judge.remake(here)
    assert set(seen) <= {16, 600 % 16}
    seen.clear()
    search.search(recipe, here, asked(budgets(recipe).export), measured=False)
    assert max(seen) == 16
    seen.clear()
    ta, task = load_ta(here), tasks_task.task("ranking", recipe)
    data = task.data(here / "ta", ta.model)
    recipe.distill.allow_weak_teacher = True  # the TA itself is no good one
    start = Starting(recipe.distill, task, ta, data, torch.device("cpu"))
    start.measured(ModelTeacher(task, ta.model), lambda _: None)
    assert set(seen) <= {16, 200 % 16}


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "expected"),
    [(64, 0, 1, 64), (64, 16, 1, 16), (64, 0, 4, 16), (16, 64, 1, 16), (4, 0, 1, 8), (4, 2, 1, 2)],
)
def test_how_many_examples_are_measured_at_a_time(batch, micro, processes, expected):
    own = DistillSettings()
    own.batch_size, own.micro_batch = batch, micro
    assert at_a_time(own, processes) == expected


def test_a_model_card_is_one_that_the_hub_understands(here):
    model = ModelCard.load(here / "students" / "width-0.5" / "README.md")
    report = written(here)
    entry = report.model("width 0.5")
    said = model.data.to_dict()
    assert said["library_name"] == "matta" and said["pipeline_tag"] == "tabular-classification"
    assert not {"base_model", "datasets", "license"} & said.keys()
    found = {result.metric_type: result for result in model.data.eval_results}
    assert {name: result.metric_value for name, result in found.items()} == {
        metric.name: entry.metrics[metric.name].value for metric in report.metrics
    }
    assert found["auc"].metric_name == "AUC" and found["auc"].dataset_name == report.data
    for words in ("# Student width 0.5", "[distill]", report.lineage["ta"], "## Verdict"):
        assert words in model.text


def test_a_model_card_names_what_came_from_the_hub(here, monkeypatch):
    """What lies in the hub's cache came from there, unless something local has that name."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "hub")
    for folder in ("models--openai--small", "datasets--rows", "models--here"):
        (Path("hub") / folder).mkdir(parents=True)
    report, data = written(here), DataSettings()
    report.lineage["source"], data.train = "hf-hub:openai/small", "rows"
    model = ModelCard(card.text(report.students[0], report, data, here))
    assert (model.data.base_model, model.data.datasets) == ("openai/small", ["rows"])
    assert model.data.eval_results[0].dataset_type == "rows"
    Path("here").mkdir()
    Path("here/README.md").write_text("---\nlicense: mit\n---\n")
    report.lineage["source"], data.train = "here", "a/b/c.csv"
    model = ModelCard(card.text(report.students[0], report, data, here))
    assert (model.data.base_model, model.data.datasets, model.data.license) == (None, None, "mit")
    Path("here/README.md").write_text("---\nlicense: [\n---\n")
    assert ModelCard(card.text(report.students[0], report, data, here)).data.license is None


@pytest.mark.slow
def test_a_report_always_compares_with_the_base_on_the_same_examples(here):
    """At every width, and the TA, also without any baseline; each family is corrected by itself."""
    recipe = settings()
    recipe.export.widths = [0.25, 0.5, 1.0]
    report = export(recipe, here, overwrite=True)
    assert written(here) == report and report.margin == 0.02
    for cut in report.of(Role.CUT):  # of one shape, they cost the same
        assert cut.cost == report.model(str(cut.of)).cost
    auc = [pair for pair in report.pairs if pair.metric == "auc"]
    assert [(pair.a, pair.b) for pair in auc] == [
        ("width 0.25", "untrained cut 0.25"),
        ("width 0.5", "untrained cut 0.5"),
        ("width 0.5", "width 0.25"),
        ("width 1", "width 0.25"),
        ("width 1", "width 0.5"),
        ("width 0.25", "base"),
        ("width 0.5", "base"),
        ("width 1", "base"),
        ("TA", "base"),
    ]
    assert [pair.p_holm for pair in auc[5:8]] == intervals.holm([pair.p for pair in auc[5:8]])
    assert auc[8].p_holm == auc[8].p
    for pair in auc:
        ours, theirs = (report.model(name).metrics["auc"].value for name in (pair.a, pair.b))
        assert pair.gain == pytest.approx(ours - theirs)
        assert pair.margin == pytest.approx(0.02 * theirs) and pair.low <= pair.gain <= pair.high
    before, after = (
        {(pair.a, pair.b, pair.metric): pair.gain for pair in pairs}
        for pairs in (report.pairs, judge.remake(here).pairs)
    )
    assert before.items() <= after.items()
    shutil.rmtree(here / "run" / "checkpoints")
    assert not [pair for pair in judge.remake(here).pairs if pair.a == "TA"]


@pytest.mark.slow
def test_eval_of_an_exported_folder_says_what_its_report_says(here):
    """On the examples and by the margin of the report, without a flag."""
    recipe = settings()
    recipe.export.widths = [0.25, 0.5, 1.0]
    recipe.export.margin, recipe.export.bootstrap = 0.2, 150
    recipe.data.held_out = "other.csv"
    rows = Path("train.csv").read_text().splitlines()
    Path("other.csv").write_text("\n".join([rows[0], *rows[1000:1700]]) + "\n")
    report = export(recipe, here, overwrite=True)
    resolved = resolve({}, here, ran=True, exported=Workspace(here))[0]
    for against, reference in ((f"{here}/ta@1", "base"), (f"{here}/students/width-0.25", None)):
        names = [f"{here}/ta@1", *(str(here / str(one.folder)) for one in report.students)]
        found = compare.evaluation(resolved, compare.Asked(names, against=against), here)
        own = {one["name"]: one["differences"].get("auc") for one in found["models"]}
        for student in report.students:
            said = own[str(here / str(student.folder))]
            if said:
                one = pair(report, student.name, reference or "width 0.25")
                assert (said["value"], said["low"], said["high"]) == (one.gain, one.low, one.high)
                assert said["verdict"] == one.verdict and said["p"] == one.p
    (entry,) = (one for one in found["models"] if one["name"].endswith("ta@1"))
    assert entry["metrics"]["auc"] == vars(report.base.metrics["auc"])
    assert "other.csv" in found["data"] and found["margin"] == 0.2


def test_what_users_typed_is_no_markup_in_a_model_card(here):
    report = written(here)
    report.data = "a|b `c` <img src=x>\n*d* [e](f) # g"
    report.lineage["source"] = "<script>\n# models/`x`"
    report.recipe = 'train = "```"'
    report.students[0].loader = "matta_cli.load_student('```')"
    text = card.text(report.students[0], report, DataSettings(), here)
    shown = r"a\|b \`c\` &lt;img src=x&gt; \*d\* [e\](f) \# g"
    assert f"| measured on | {shown}; intervals are of 95 % |\n" in text
    assert r"a Teaching Assistant of &lt;script&gt; \# models/\`x\`." in text
    for block in (
        "python\nimport matta_cli\n\nmodel = matta_cli.load_student('```')",
        'toml\ntrain = "```"',
    ):
        assert f"````{block}\n````\n" in text
    name = ModelCard(text).data.eval_results[0].dataset_name
    assert name == report.data  # it is the hub that shows this one


def test_the_base_is_no_baseline(here):
    with pytest.raises(MattaError, match="--baselines base is called ground-truth now"):
        judge.remake(here, ["base"])


def budgets(recipe):
    recipe.export.widths, recipe.export.target_params, recipe.search.trials = [], ["40"], 1
    return recipe


def test_students_for_a_budget_are_cut_out_of_the_runs_ta(here, monkeypatch):
    """The search puts its own TA on the device; what is exported is cut on the CPU, from one TA."""
    given = []
    monkeypatch.setattr(family.students, "export", lambda *args, **_: given.extend(args))
    export(budgets(settings()), here, overwrite=True)
    students, run = given[1], given[3]
    assert [student.name for student in students] == ["params-40"]
    assert all(student.ta is run.ta for student in students)


@pytest.mark.slow
def test_eval_leaves_out_what_chose_a_students_sizes(here):
    """Measured on these, it would look too good; its report leaves them out, too."""
    report = export(budgets(settings()), here, overwrite=True)
    (student,) = report.students
    name = str(here / str(student.folder))
    recipe = resolve({}, here, ran=True, exported=Workspace(here))[0]
    whole, half = (
        compare.evaluation(recipe, compare.Asked([name], unchosen=unchosen), here)["models"][0]
        for unchosen in (False, True)
    )
    assert half["metrics"]["auc"] == vars(student.metrics["auc"]) != whole["metrics"]["auc"]
