"""Nothing foreign runs: every kind of file that matta reads names a canary, which is never run."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import auto_models
import numpy as np
import pytest
import timm
import torch
from PIL import EpsImagePlugin
from sample_text import byte_tokenizer
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

import matta_cli
from matta_cli import trust
from matta_cli.adapter import Source
from matta_cli.errors import MattaError
from matta_cli.files import atomic
from matta_cli.files.workspace import Workspace
from matta_cli.main import app
from matta_cli.models import names, plugins
from matta_cli.models.source import open_source
from matta_cli.models.tokenizer import companions, open_tokenizer
from matta_cli.report.schema import ModelEntry, Report, Role
from matta_cli.settings.recipe import DataSettings
from matta_cli.students import card
from matta_cli.tasks.image_classification import read
from matta_cli.tasks.image_classification.stored import stored as prepared
from matta_cli.tasks.image_classification.tables import Known
from matta_cli.tasks.labels import parted

# a module that tells that it was run, and serves as all that may be asked of one
CANARY = """
from pathlib import Path
Path({mark!r}).touch()
from auto_models import plain_cnn as build
def fn(): import torch; return torch.zeros(2, 1, 8, 8)
from matta_adapters.mlp_ranker import MLPRanker as Adapter
"""
TOML = """
[data]
train = "images.npz"
[distill]
steps = 1
batch_size = 20
allow_weak_teacher = true
[export]
bootstrap = 2
"""


class Touches:
    """What a pickle runs as it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def typed(line: str, answers: str = "y\ny\ny\n"):
    """A command, by a person who says yes to whatever is asked."""
    done = CliRunner().invoke(app, line.split(), input=answers)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def edit(path: Path, change: Callable[[dict], object]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An output folder with all that the commands write, of a model that a function builds."""
    folder = tmp_path_factory.mktemp("trained")
    shadowed(folder, folder / "ran")
    images = np.random.default_rng(0).integers(0, 256, (80, 8, 8), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(80) % 10)
    (folder / "matta.toml").write_text(TOML)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
        typed_here = "convert auto_models:plain_cnn --adapter auto --example auto_models:one_image"
        for line in (typed_here, "distill --teacher auto_models:plain_cnn", "export --widths 1.0"):
            done = typed(line)
            assert done.exit_code == 0, done.output
    assert not (folder / "ran").exists(), "a module of the current folder ran as a library's"
    return folder


@pytest.fixture
def foreign(trained, tmp_path, monkeypatch):
    """A copy of it that came from elsewhere, with a canary wherever modules are looked for."""
    mark = tmp_path / "ran"
    folder = tmp_path / "work"
    shutil.copytree(trained, folder)
    for where in (folder, folder / "shared", folder / "matta-out", tmp_path / "site"):
        where.mkdir(exist_ok=True)
        (where / "evil.py").write_text(CANARY.format(mark=str(mark)))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    yield folder
    sys.modules.pop("evil", None)
    assert not mark.exists(), "it ran"


NAMES = ("evil:build", "shared.evil:build", "os:getcwd", "transformers:pipeline")


# What matta's own files say


@pytest.mark.parametrize("key", ["builder", "example"])
@pytest.mark.parametrize("which", ["ta", "students/width-1", "run/checkpoints/step-1"])
def test_auto_json(foreign, key, which):
    folder = foreign / "matta-out" / which
    for name in (*NAMES, "evil:fn"):
        edit(folder / "auto.json", lambda found, name=name: found.update({key: name}))
        with pytest.raises(MattaError, match=r"is not run|not found here"):
            matta_cli.load_ta(folder)
        with pytest.raises(MattaError, match=r"is not run|not found here"):
            matta_cli.load_student(folder)
        assert typed(f"inspect {folder}").exit_code == 1


@pytest.mark.parametrize(
    ("builder", "arguments"),
    [
        ("timm:create_model", {"model_name": "resnet18", "checkpoint_path": "evil.pth"}),
        ("timm:create_model", {"model_name": "local-dir:evil", "pretrained": True}),
        ("timm:create_model", {"model_name": "hf-hub:a/b", "pretrained": True}),
        ("timm:create_model", {"model_name": "resnet18", "pretrained_cfg_overlay": {"file": "e"}}),
        ("transformers:AutoModel", {"config": {"auto_map": {"AutoModel": "evil.Model"}}}),
        ("transformers:pipeline", {"config": {}}),
        (
            "transformers:TimmWrapperModel",
            {"config": {"architecture": "resnet18", "model_args": {"checkpoint_path": "evil.pth"}}},
        ),
        ("timm:create_model", {"model_name": "resnet18", "pretrained_cfg": {"file": "evil.pth"}}),
        ("transformers:LlamaModel", {"config": {"attn_implementation": "evil/kernel"}}),
    ],
)
def test_arguments_of_a_builder(foreign, tmp_path, builder, arguments):
    torch.save(Touches(tmp_path / "ran"), "evil.pth")
    ta = Path("matta-out/ta")
    edit(ta / "auto.json", lambda found: found.update(builder=builder, arguments=arguments))
    with pytest.raises(MattaError, match=r"from elsewhere|is no model"):
        matta_cli.load_ta(ta)


def test_matta_json(foreign):
    ta = Path("matta-out/ta")
    for name in (f"{foreign}/evil.py:Adapter", "evil.py:Adapter", "evil:Adapter", "os:getcwd"):
        edit(ta / "matta.json", lambda found, name=name: found.update(adapter=name))
        assert typed("inspect").exit_code == typed("eval matta-out/ta@1").exit_code == 1
    edit(ta / "matta.json", lambda found: found.update(adapter="auto", example="evil:fn"))
    done = typed("distill --teacher auto_models:plain_cnn --overwrite")
    assert done.exit_code == 1 and "is not run" in done.output


@pytest.mark.parametrize("which", ["matta.toml", "matta-out/matta.toml"])
def test_a_teacher_in_settings(foreign, which):
    lines = Path(which).read_text() if which == "matta.toml" else TOML
    Path(which).write_text(lines.replace("steps = 1", 'steps = 1\nteacher = "evil:build"'))
    for line in ("distill --overwrite", "teach --to said", "distill --dry-run"):
        done = typed(line)
        assert done.exit_code == 1, done.output
        assert "names evil:build, which is code that nobody has named" in done.output
    done = typed("distill --overwrite --config matta.toml")
    assert done.exit_code == 1


def retaught(out: Path) -> None:
    """Have all that a run left name another Teacher."""
    for path in (out / "run/recipe.toml", out / "students/recipe.toml"):
        text = path.read_text()
        assert 'teacher = "auto_models:plain_cnn"' in text
        path.write_text(text.replace("auto_models:plain_cnn", "evil:build"))
    for trainer in (out / "run/checkpoints").glob("*/trainer.json"):
        edit(trainer, lambda found: found.update(recipe='[distill]\nteacher = "evil:build"\n'))
        (trainer.parent / "SHA256SUMS").unlink()
        atomic.seal(trainer.parent)


def test_a_teacher_in_what_a_run_left(foreign):
    retaught(foreign / "matta-out")
    done = typed("distill --resume --steps 2")
    assert done.exit_code == 1 and "names evil:build" in done.output, done.output
    assert typed("eval").exit_code == 0  # which has no use for it


@pytest.mark.slow
def test_a_report_goes_without_such_a_teacher(foreign):
    retaught(foreign / "matta-out")
    done = typed("export --widths 1.0 --overwrite")
    assert done.exit_code == 0 and "The report goes without the Teacher" in done.output, done.output
    assert "names evil:build" in done.output
    for line in ("report --baselines untrained", "report --baselines plain"):
        typed(line)


@pytest.mark.parametrize("setting", ["source", "adapter", "example"])
def test_convert_by_settings(foreign, setting):
    Path("model.pt").write_bytes(b"")
    torch.save(auto_models.plain_cnn().state_dict(), "model.pt")
    values = {"source": "auto_models:plain_cnn", "adapter": "auto", "example": "1x1x8x8"}
    values[setting] = {"source": "evil:build", "adapter": "evil.py:Adapter", "example": "evil:fn"}[
        setting
    ]
    given = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
    for file in ("matta.toml", "given.toml"):
        Path(file).write_text(f"[convert]\n{given}")
        done = typed(f"convert --out other --config {file}")
        assert done.exit_code == 1 and "is not run" in done.output, done.output
        Path(file).unlink()


def test_report_json_and_search_json(foreign):
    out = Path("matta-out")

    def loads(found):
        for model in found["models"]:
            model["loader"] = "__import__('evil').build({folder.__class__})"

    edit(out / "report.json", loads)
    done = typed("report")
    assert done.exit_code == 0, done.output
    outside = foreign.parent / "outside"
    shutil.copytree(out / "students/width-1", outside)
    (outside / "README.md").write_text("mine")
    for name in ("../../outside", str(outside)):

        def elsewhere(found, name=name):
            next(m for m in found["models"] if m["role"] == "student")["folder"] = name

        edit(out / "report.json", elsewhere)
        assert typed("report").exit_code == 1
    assert (outside / "README.md").read_text() == "mine"


@pytest.mark.parametrize("what", ["width-1/README.md", "width-1"])
def test_a_card_that_is_a_link_takes_no_verdict(foreign, tmp_path, what):
    link, mine = Path("matta-out/students") / what, tmp_path / "mine"
    shutil.move(link, mine)
    link.symlink_to(mine)
    card = mine / "README.md" if mine.is_dir() else mine
    before = card.read_text()
    done = typed("report")
    assert done.exit_code == 1 and f"{link} is a link to {mine}" in done.output, done.output
    assert card.read_text() == before and link.is_symlink()


def test_a_trials_journal_is_no_pickle(foreign, tmp_path):
    pytest.importorskip("optuna")
    folder = Path("matta-out/search")
    folder.mkdir(exist_ok=True)
    evil = pickle.dumps(Touches(tmp_path / "ran"))
    (folder / "trials.jsonl").write_bytes(evil)
    (folder / "trials.jsonl.snapshot").write_bytes(evil)
    CliRunner().invoke(app, ["search", "--target-params", "5k", "--trials", "1", "--examples", "8"])


# What other libraries' files say


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A language model and an encoder in folders, with a tokenizer."""
    folder = tmp_path_factory.mktemp("words")
    torch.manual_seed(0)
    end = "<|endoftext|>"
    tokenizer = byte_tokenizer(["some text", "and more of it"], 300, end, bos_token=end)
    config = GPT2Config(vocab_size=300, n_positions=16, n_embd=32, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(folder / "gpt2")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertModel(BertConfig(vocab_size=300, intermediate_size=32, **small)).save_pretrained(
        folder / "bert"
    )
    for name in ("gpt2", "bert"):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def models(words, tmp_path, monkeypatch):
    """Copies of these, into each of which a canary was put."""
    shutil.copytree(words, tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "ran"
    code = CANARY.format(mark=str(mark))
    for where in (tmp_path, tmp_path / "models/gpt2", tmp_path / "models/bert"):
        for name in ("evil", "modeling_evil", "tokenization_evil"):
            (where / f"{name}.py").write_text(code + "class Evil: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "models"
    sys.modules.pop("evil", None)
    assert not mark.exists(), "it ran"


AUTO_MAP = {
    "AutoConfig": "modeling_evil.Evil",
    "AutoModel": "modeling_evil.Evil",
    "AutoModelForCausalLM": "modeling_evil.Evil",
    "AutoModelForImageClassification": "modeling_evil.Evil",
    "AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"],
}


@pytest.mark.parametrize("kind", ["gpt2", "unheard_of"])
@pytest.mark.parametrize("adapter", ["", " --adapter gpt2", " --adapter auto --example ids=1x4"])
def test_auto_map_of_a_model(models, kind, adapter):
    edit(
        models / "gpt2/config.json",
        lambda found: found.update(auto_map=AUTO_MAP, model_type=kind, custom_generate="evil"),
    )
    done = typed(f"convert models/gpt2 --out out{adapter}")
    assert kind == "gpt2" or done.exit_code == 1
    if kind == "unheard_of":
        edit(
            models / "gpt2/config.json",
            lambda found: found.update(architectures=["AutoModelForCausalLM"]),
        )
        assert typed(f"convert models/gpt2 --out out{adapter}").exit_code == 1


def test_auto_map_of_a_teacher(models):
    from matta_cli.models.load import load_model

    edit(
        models / "gpt2/config.json",
        lambda found: found.update(auto_map=AUTO_MAP, model_type="unheard_of"),
    )
    for task in ("causal_lm", "image_classification"):
        with pytest.raises(MattaError, match="never run"):
            load_model("models/gpt2", task)


def test_auto_map_of_a_tokenizer(models, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\ny\n"))
    path = models / "gpt2/tokenizer_config.json"
    edit(path, lambda found: found.update(auto_map=AUTO_MAP, tokenizer_class="EvilTokenizer"))
    edit(models / "gpt2/config.json", lambda found: found.update(model_type="unheard_of"))
    with pytest.raises(MattaError, match="never run"):
        open_tokenizer(models / "gpt2", "", 300)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation_internal"])
def test_a_kernel_of_the_hub(models, key):
    edit(models / "gpt2/config.json", lambda found: found.update({key: "evil/kernel"}))
    done = typed("convert models/gpt2 --out out")
    assert done.exit_code == 1 and "from elsewhere" in done.output


@pytest.mark.parametrize("key", ["n_layer", "num_labels"])
def test_more_layers_than_any_model_has(models, key):
    """transformers makes them one by one, for ever."""
    edit(models / "gpt2/config.json", lambda found: found.update({key: 10**30}))
    done = typed("convert models/gpt2 --out out")
    assert done.exit_code == 1 and f"sets {key} to 1000" in done.output
    with pytest.raises(MattaError, match="depths to 5000"):
        trust.check_config({"model_args": {"depths": [2, 5000]}}, "It")


@pytest.mark.parametrize("key", ["vocab_file", "merges_file", "fast_tokenizer_files"])
def test_files_of_a_tokenizer_outside(models, key):
    path = models / "gpt2/tokenizer_config.json"
    for name in ("../bert/tokenizer.json", str(models / "bert/tokenizer.json")):
        value = [name] if key == "fast_tokenizer_files" else name
        edit(path, lambda found, value=value: found.update({key: value}))
        done = typed("convert models/gpt2 --out out")
        assert done.exit_code == 1 and "outside of its folder" in done.output, done.output
        with pytest.raises(MattaError, match="outside of its folder"):
            open_tokenizer(models / "gpt2", "", 300)
    edit(path, lambda found: found.update({key: [] if key[0] == "f" else "/not/there"}))
    assert typed("convert models/gpt2 --out out").exit_code == 0


def test_modules_json(models):
    steps = [
        {"idx": 0, "name": "0", "path": "", "type": "evil.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "evil.Pooling"},
    ]
    (models / "bert/1_Pooling").mkdir()
    (models / "bert/1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (models / "bert/modules.json").write_text(json.dumps(steps))
    done = typed("convert models/bert --out out")  # a folder's code is neither run nor guessed at
    assert done.exit_code == 1 and "evil.Transformer" in done.output
    for path in ("../gpt2", str(models / "gpt2")):
        steps[1]["path"] = path
        (models / "bert/modules.json").write_text(json.dumps(steps))
        done = typed("convert models/bert --out elsewhere")
        assert done.exit_code == 1 and "outside of its folder" in done.output


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.ckpt"])
def test_pickles(models, tmp_path, name):
    """In the folders of stock libraries, and alone; in both formats of torch.save."""
    old = name in ("pytorch_model.bin", "model.ckpt")
    holds = {"a": Touches(tmp_path / "ran")}
    timm_folder = tmp_path / "timm"
    timm_folder.mkdir()
    card = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}, "num_classes": 3}
    (timm_folder / "config.json").write_text(json.dumps(card))
    (models / "gpt2/model.safetensors").unlink()
    for folder in (timm_folder, models / "gpt2", tmp_path):
        torch.save(holds, folder / name, _use_new_zipfile_serialization=not old)
        for adapter in ("", " --adapter auto") if name == "pytorch_model.bin" else ("",):
            done = typed(f"convert {folder if folder != tmp_path else name} --out out{adapter}")
            assert done.exit_code == 1, done.output


def test_bin_files_that_hold_tensors_open(models, tmp_path):
    from timm.models import save_for_hf

    model = GPT2LMHeadModel.from_pretrained(models / "gpt2")
    (models / "gpt2/model.safetensors").unlink()
    torch.save(model.state_dict(), models / "gpt2/pytorch_model.bin")
    assert typed("convert models/gpt2 --out words").exit_code == 0
    torch.manual_seed(0)
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 1}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **small)
    save_for_hf(model, str(tmp_path / "timm"), model_args=small, safe_serialization=False)
    done = typed("convert timm --out images")
    assert done.exit_code == 0, done.output


def test_old_timm_reads_no_pickle_either(tmp_path):
    """Whatever a library asks torch for, and whatever the environment says."""
    torch.save(Touches(tmp_path / "ran"), tmp_path / "a.bin")
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with trust.sealed(), pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "a.bin", weights_only=False)
    finally:
        assert os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD") == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert not (tmp_path / "ran").exists()


def test_arrays_of_objects(foreign, tmp_path):
    objects = np.array([Touches(tmp_path / "ran")] * 4, dtype=object)
    np.savez("evil.npz", images=objects, labels=objects)
    assert typed("convert auto_models:plain_cnn --data evil.npz --out o").exit_code == 1
    assert typed("eval matta-out/ta@1 --held-out evil.npz").exit_code == 1


PAINTED = """%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
showpage
%%EOF
"""


def test_an_image_that_is_a_program(foreign, tmp_path, monkeypatch):
    """PIL would have Ghostscript run PostScript, whatever the name of its file."""
    own = tmp_path / "bin"
    own.mkdir()
    (own / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\necho 10.0\n")
    (own / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{own}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    for number in range(10):
        (Path("pictures") / str(number)).mkdir(parents=True)
        (Path("pictures") / str(number) / "0.png").write_text(PAINTED)
    done = typed("eval matta-out/ta@1 --held-out pictures")
    assert done.exit_code == 1 and "10 of 10 images of 'pictures' cannot be read" in done.output
    assert "it is no image of a kind that is read" in done.output


# Text that is rendered, or looked into


ESCAPES = [
    "{{{{ cycler.__init__.__globals__.os.system('touch {mark}') }}}}",
    "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}",
    "{{% set f = strftime_now('%Y') %}}{{{{ lipsum.__globals__['os'].system('touch {mark}') }}}}",
    "{{{{ messages.__class__.__base__.__subclasses__() }}}}",
]


@pytest.mark.parametrize("escape", ESCAPES)
def test_a_chat_template(models, tmp_path, escape):
    """transformers renders it in jinja2's sandbox, and it may only fail there."""
    text = escape.format(mark=tmp_path / "ran")
    (models / "gpt2/chat_template.jinja").write_text(text)
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    Path("chat.jsonl").write_text(f"{json.dumps({'messages': talk})}\n" * 4)
    done = typed("convert models/gpt2 --out out --data chat.jsonl")
    assert done.exit_code == 1 and "the chat template refuses" in done.output, done.output


YAML = "!!python/object/apply:os.system ['touch {mark}']"


@pytest.mark.parametrize("key", ["license", "tags", "base_model"])
def test_the_head_of_a_card(foreign, tmp_path, key):
    student = Path("matta-out/students/width-1")
    head = f"---\n{key}: {YAML.format(mark=tmp_path / 'ran')}\n---\n"
    (student / "README.md").write_text(head)
    done = typed(f"push {student} --to me/it --dry-run --license mit")
    assert done.exit_code == 1 and "no model card that the hub can read" in done.output
    (tmp_path / "README.md").write_text(head)
    assert not any(card._license(str(tmp_path)).values())


def test_what_stands_in_a_card_is_no_template(foreign, tmp_path):
    mark = tmp_path / "ran"
    evil = f"{{{{ cycler.__init__.__globals__.os.system('touch {mark}') }}}}{{% include 'x' %}}"
    report = Report(lineage={"source": evil, "digest": evil, "ta": evil}, recipe=evil, data=evil)
    made = card.text(ModelEntry(evil, Role.STUDENT, 1.0), report, DataSettings(), foreign)
    assert "cycler" in made


def test_a_cell_that_looks_like_a_list(foreign, tmp_path):
    evil = f"[__import__('os').system('touch {tmp_path / 'ran'}')]"
    assert parted([evil, "[1, 2]"], str.isdecimal) == [evil, [1, 2]]


# Paths


def test_weights_of_a_shard_outside(models):
    state = GPT2LMHeadModel.from_pretrained(models / "gpt2").state_dict()
    del state["lm_head.weight"]
    (models / "gpt2/model.safetensors").rename(models / "outside.safetensors")
    index = models / "gpt2/model.safetensors.index.json"
    for name in ("../outside.safetensors", str(models / "outside.safetensors")):
        index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(state, name)}))
        done = typed("convert models/gpt2 --out out")
        assert done.exit_code == 1 and "outside of its folder" in done.output, done.output
    shutil.copy(models / "outside.safetensors", models / "gpt2/one.safetensors")
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(state, "one.safetensors")})
    )
    assert typed("convert models/gpt2 --out out").exit_code == 0


@pytest.mark.parametrize("name", ["vocab.txt", "config.json", "model.safetensors", "merges.txt"])
def test_links_to_elsewhere(models, tmp_path, name):
    (tmp_path / "secret").write_text("secret")
    link = models / "gpt2" / name
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "secret")
    done = typed("convert models/gpt2 --out out")
    assert done.exit_code == 1 and "is a link to" in done.output, done.output
    assert not Path("out").exists()
    if name == "vocab.txt":
        with pytest.raises(MattaError, match="is a link to"):
            companions(models / "gpt2")


def test_links_to_themselves(models):
    link = models / "gpt2/vocab.json"
    link.unlink(missing_ok=True)
    link.symlink_to(link.name)
    done = typed("convert models/gpt2 --out out")
    assert done.exit_code == 1 and f"{link.name} is a link to nothing" in done.output, done.output
    with pytest.raises(MattaError, match="is a link to"):
        atomic.own(link)


@pytest.mark.parametrize("shared", [False, True], ids=["own blobs", "blobs of the cache"])
def test_the_hubs_cache_is_made_of_links(models, tmp_path, shared):
    repository = tmp_path / "hub/models--a--b"
    snapshot = repository / "snapshots/0123"
    blobs = tmp_path / "hub/blobs/ab" if shared else repository / "blobs"
    for folder in (snapshot, blobs, repository / "blobs"):
        folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(sorted((models / "gpt2").glob("*"))):
        shutil.copy(path, blobs / str(number))
        place = blobs / str(number)
        if shared:
            (repository / "blobs" / f"e{number}").symlink_to(place)
            place = repository / "blobs" / f"e{number}"
        (snapshot / path.name).symlink_to(os.path.relpath(place, snapshot))
    assert typed(f"convert {snapshot} --out out").exit_code == 0
    assert (
        Path("out/ta/tokenizer.json").is_file() and not Path("out/ta/tokenizer.json").is_symlink()
    )
    (blobs / "evil").symlink_to("/etc/passwd")
    (snapshot / "vocab.txt").symlink_to(blobs / "evil")
    done = typed(f"convert {snapshot} --out other")
    assert done.exit_code == 1 and "is a link to /etc/passwd" in done.output


def test_a_checkpoint_outside_is_not_the_best(foreign):
    out = foreign / "matta-out"
    shutil.copytree(out / "run/checkpoints/step-1", foreign / "step-9")
    edit(
        out / "run/checkpoints/step-1/trainer.json",
        lambda found: found.update(best_step="0/../../../../step-9"),
    )
    (out / "run/checkpoints/step-0").mkdir()
    (out / "run/checkpoints/step-1/SHA256SUMS").unlink()
    atomic.seal(out / "run/checkpoints/step-1")
    with pytest.raises(MattaError, match=r"best_step is .*step-9', where an int belongs"):
        Workspace(out).trained("best")


def test_links_are_not_written_through(foreign, tmp_path):
    mine = tmp_path / "mine"
    out = Path("matta-out")
    (out / "search").mkdir()
    for link, line in {
        out / ".lock": "distill --resume --steps 2",
        out / "run/metrics.jsonl": "distill --resume --steps 2",
        out / "search/.lock": "search --target-params 5k",
        out / "search/trials.jsonl": "search --target-params 5k",
    }.items():
        mine.write_text("mine")
        link.unlink(missing_ok=True)
        link.symlink_to(mine)
        done = typed(line)
        # or a new file is in its place, or nothing was begun: the Teacher has other weights now
        refused = f"{link} is a link to {mine}", "The Teacher 'auto_models:plain_cnn' of now is not"
        assert any(why in done.output for why in refused) or not link.is_symlink(), done.output
        assert mine.read_text() == "mine"
        link.unlink()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.txt"])
def test_a_folder_in_the_place_of_a_file(models, name):
    (models / "gpt2" / name).unlink(missing_ok=True)
    (models / "gpt2" / name).mkdir()
    done = typed("convert models/gpt2 --out out")
    assert done.exit_code == 1 and f"{name} is a folder, where a file belongs" in done.output


def test_what_is_no_file_is_not_waited_for(models):
    (models / "gpt2/config.json").unlink()
    os.mkfifo(models / "gpt2/config.json")
    done = typed("convert models/gpt2 --out out")
    assert done.exit_code == 1 and "is a pipe or a device" in done.output


def test_an_adapter_of_another_model_is_not_followed(models):
    (models / "gpt2/adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    done = typed("convert models/gpt2 --out out")
    assert done.exit_code == 1 and "merge_and_unload" in done.output


# Processes


def shadowed(folder: Path, mark: Path) -> None:
    """Put canaries by the names of libraries into a folder."""
    for name in ("json", "dataclasses", "torch", "safetensors", "typer", "matta_adapters", "timm"):
        (folder / f"{name}.py").write_text(
            f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        )


def test_modules_of_the_current_folder_are_no_librarys(foreign, tmp_path):
    shadowed(foreign, tmp_path / "ran")
    looks = (
        "import importlib.util, json\nprint(json.__file__)\nfor name in 'torch', 'timm', 'typer':"
    )
    looks += "\n    print(importlib.util.find_spec(name).origin)\nimport matta_cli.main"
    for command in (trust.isolated(looks), [sys.executable, "-m", "matta_cli", "recipe", "show"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert str(foreign) not in done.stdout


@pytest.mark.slow
def test_the_processes_of_a_run_start_so_too(foreign, tmp_path):
    from matta_cli.devices.processes import launch

    shadowed(foreign, tmp_path / "ran")
    assert launch(1, ["inspect", "nowhere"]) == 1
    assert launch(1, ["recipe", "show"]) == 0


def test_what_lies_in_the_current_folder_is_not_installed(foreign, tmp_path, monkeypatch):
    info = Path("evil-1.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[matta.adapters]\nevil = evil:Adapter\n")
    Path("mine.py").write_text("from auto_models import plain_cnn as build\n")
    names.installed.cache_clear()
    try:
        assert open_source("mine:build").builder == "mine:build"
        adapter = plugins.adapter("auto")
        adapter.load(Source("mine", builder="mine:build", example="1x1x8x8"))
        names.installed.cache_clear()
        assert str(foreign) in sys.path and "evil" not in names.origins()
        plugins.adapters()
    finally:
        names.installed.cache_clear()
        sys.modules.pop("mine", None)


# What was typed before


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of the user's own, with a module that builds a model, and a record of its own."""
    monkeypatch.setenv("MATTA_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "own"
    work.mkdir()
    (work / "mine.py").write_text("from auto_models import plain_cnn as build\n")
    monkeypatch.chdir(work)
    return work


def reads(folder: Path) -> None:
    """Have a settings file of ``folder`` name what ``own`` has."""
    folder.mkdir(exist_ok=True)
    trust.found(trust.Read("mine:build", folder / "matta.toml")).check()


def test_what_was_typed_before_may_be_named(own, tmp_path):
    with pytest.raises(MattaError, match=r"nobody has named .* run `matta adapters mine:build`"):
        reads(tmp_path / "other")
    assert typed("adapters mine:build").exit_code == 0
    sys.modules.pop("mine")
    reads(tmp_path / "other")
    reads(own)  # the current folder's own settings


def test_the_same_name_of_another_file_is_not_what_was_typed(own, tmp_path, monkeypatch):
    assert typed("adapters mine:build").exit_code == 0
    sys.modules.pop("mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(own / "mine.py", elsewhere)
    monkeypatch.chdir(elsewhere)
    sys.path[:] = [path for path in sys.path if path != str(own)]
    with pytest.raises(MattaError, match="nobody has named"):
        reads(tmp_path / "other")


def test_what_lies_with_the_folder_is_refused_all_the_same(own):
    (own / "shared").mkdir()
    shutil.move("mine.py", "shared/mine.py")
    name = trust.Read("shared.mine:build", own / "shared/matta.toml")
    assert typed("adapters shared.mine:build").exit_code == 0
    with pytest.raises(MattaError, match="lies with it"):
        trust.found(name).check()
    sys.modules.pop("shared.mine")


@pytest.mark.parametrize("writable", ["cache", "cache/adapters.txt"])
def test_a_record_that_others_can_write_is_no_word_of_the_users(own, tmp_path, writable):
    assert typed("adapters mine:build").exit_code == 0
    sys.modules.pop("mine")
    (tmp_path / writable).chmod(0o777)
    with pytest.raises(MattaError, match="nobody has named"):
        reads(tmp_path / "other")
    (own / "second.py").write_text("from auto_models import plain_cnn as build\n")
    done = typed("adapters second:build")
    assert done.exit_code == 1 and "other users can write to" in done.output
    assert "set MATTA_CACHE to a folder that is yours alone" in done.output


@pytest.mark.skipif(getattr(os, "getuid", lambda: 1)() != 0, reason="needs root")
@pytest.mark.parametrize("of_another", ["cache", "cache/adapters.txt"])
def test_a_record_of_another_owner(own, tmp_path, of_another):
    assert typed("adapters mine:build").exit_code == 0
    sys.modules.pop("mine")
    os.chown(tmp_path / of_another, 12345, 12345)
    with pytest.raises(MattaError, match="nobody has named"):
        reads(tmp_path / "other")


def test_a_record_that_is_a_link(own, tmp_path):
    assert typed("adapters mine:build").exit_code == 0
    sys.modules.pop("mine")
    record = tmp_path / "cache/adapters.txt"
    record.rename(tmp_path / "another")
    record.symlink_to(tmp_path / "another")
    with pytest.raises(MattaError, match="nobody has named"):
        reads(tmp_path / "other")


def test_a_folder_keeps_shapes_of_an_example(trained):
    """What a function gave at convert is written down as shapes."""
    for path in ("auto.json", "matta.json"):
        found = json.loads((trained / "matta-out/ta" / path).read_text())
        assert found["example"] == "2x1x8x8"


def test_text_of_a_file_stays_known_as_such():
    """Through copies, pickles and what settings do with it."""
    import copy

    from matta_cli.settings.recipe import Recipe
    from matta_cli.settings.resolve import of_file

    recipe = Recipe()
    recipe.update(of_file({"distill": {"teacher": "evil:build"}}, Path("a.toml")), "a.toml")
    for one in (recipe, copy.deepcopy(recipe), pickle.loads(pickle.dumps(recipe))):
        assert isinstance(one.distill.teacher, trust.Read)
        assert one.distill.teacher.file == Path("a.toml")
        with pytest.raises(MattaError, match=r"a\.toml names evil:build"):
            open_source(one.distill.teacher)


def test_an_image_of_a_data_set_that_is_a_device():
    import datasets

    rows = {"image": [{"bytes": None, "path": "/dev/null"}], "label": [0]}
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    made = datasets.Dataset.from_dict(rows, features=features)
    found = read._from_hub(made, "it", DataSettings(), Known(1, []))
    with pytest.raises(MattaError, match="'/dev/null' is a pipe or a device"):
        found.content(0)


def test_a_processor_of_images_is_no_other_class(tmp_path, monkeypatch):
    """What its file names is made without arguments, so it is never another thing of a library."""
    made: list[str] = []
    for name in ("Trainer", "ImageProcessor", "_ImageProcessor"):
        monkeypatch.setattr(f"transformers.{name}", lambda n=name: made.append(n), raising=False)
        card = {"image_processor_type": name, "size": 32}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(card))
        assert "are assumed" in prepared(tmp_path, 3, [32, 32]).notes[-1]
    assert made == []
