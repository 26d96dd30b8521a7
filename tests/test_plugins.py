"""Adapters from outside: a package, a file, broken ones, two of one name; who may name code."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import matta_cli
from matta_cli.adapter import Source
from matta_cli.errors import MattaError
from matta_cli.main import app
from matta_cli.models import names, plugins
from matta_cli.testing import check_adapter
from tests.pages import blocks

EXAMPLE = Path(__file__).parents[1] / "examples" / "custom_adapter"
DOCUMENT = Path(__file__).parents[1] / "docs" / "write-an-adapter.md"
BROKEN = "raise RuntimeError('this plug-in\\nis broken')\n"
LINES = (
    "convert model.safetensors --data digits.npz",
    "distill --teacher teacher.safetensors --data digits.npz",
    "export --widths 0.25,0.5,1.0",
)
TOML = """
[distill]
steps = 3
batch_size = 4
allow_weak_teacher = true

[export]
bootstrap = 5
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test vouches for anything on the machine that it runs on."""
    monkeypatch.setenv("MATTA_CACHE", str(tmp_path / "cache"))


def prepare(folder: Path) -> None:
    """A model, a Teacher and images for the example's adapter."""
    sys.path.insert(0, str(EXAMPLE))
    from gated_mlp import GatedMLP

    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    save_file(GatedMLP(8, 12, [16, 8], 10).state_dict(), folder / "model.safetensors")
    save_file(GatedMLP(8, 24, [16], 10).state_dict(), folder / "teacher.safetensors")
    r = np.random.default_rng(0)
    images = r.integers(0, 256, (80, 8, 8), dtype=np.uint8)
    np.savez(folder / "digits.npz", images=images, labels=np.arange(80) % 10)
    (folder / "matta.toml").write_text(TOML)


def run(python: Path | str, folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(python), "-m", "matta_cli", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        check=False,
    )


def plugin(folder: Path, package: str, code: str, **adapters: str) -> None:
    """What pip leaves of a package with one module: the module, and its metadata."""
    folder.mkdir(exist_ok=True)
    (folder / f"{package}.py").write_text(code)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    entries = "".join(f"{name} = {value}\n" for name, value in adapters.items())
    (info / "entry_points.txt").write_text(f"[matta.adapters]\n{entries}")


# The example


def test_example_meets_the_contract():
    sys.path.insert(0, str(EXAMPLE))
    from gated_mlp import GatedMLP, GatedMLPAdapter

    torch.manual_seed(0)
    check_adapter(GatedMLPAdapter(), GatedMLP(5, 7, [9, 6], 4), [torch.randn(3, 1, 5, 5)])


@pytest.mark.slow
def test_example_installed_in_a_clean_environment(tmp_path):
    clean, work = tmp_path / "venv", tmp_path / "work"
    subprocess.run([sys.executable, "-m", "venv", str(clean)], check=True)
    python = clean / "bin" / "python"
    here = {
        sysconfig.get_path("purelib"),
        *site.getsitepackages(),
        *(p for p in sys.path if "site-packages" in p),
    }
    target = next((clean / "lib").glob("python*/site-packages"))
    (target / "torch_and_all.pth").write_text(
        "".join(f"import site; site.addsitedir({p!r})\n" for p in sorted(here))
    )
    source = tmp_path / "custom_adapter"
    shutil.copytree(EXAMPLE, source)
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        str(source),
    ]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "gated_mlp" not in names.origins(), "it is installed there, not here"

    prepare(work)
    assert "gated_mlp:GatedMLPAdapter" in run(python, work, "adapters").stdout
    for line in LINES:
        done = run(python, work, *line.split())
        assert done.returncode == 0, done.stderr
    report = json.loads((work / "matta-out" / "report.json").read_text())
    assert report["adapter"] == "gated_mlp"
    card = json.loads((work / "matta-out" / "students" / "width-0.25" / "matta.json").read_text())
    assert card["adapter"] == "gated_mlp" and [a["size"] for a in card["axes"]] == [4, 2]


# A file


@pytest.fixture
def converted(tmp_path, monkeypatch):
    """A folder with a copy of the example's file, in which it has been named to convert."""
    work = tmp_path / "work"
    prepare(work)
    shutil.copy(EXAMPLE / "gated_mlp.py", work / "mine.py")
    monkeypatch.chdir(work)
    matta_cli.convert("model.safetensors", data="digits.npz", adapter="./mine.py:GatedMLPAdapter")
    return work


@pytest.mark.slow
def test_a_file_does_without_packaging(converted):
    assert (
        json.loads(Path("matta-out/ta/matta.json").read_text())["adapter"]
        == "./mine.py:GatedMLPAdapter"
    )
    matta_cli.distill("teacher.safetensors", data="digits.npz")
    matta_cli.export([0.25, 0.5, 1.0])  # loads each Student again in a process of its own
    student = matta_cli.load_student("matta-out/students/width-0.25")
    assert [block.up.weight.shape[0] for block in student.blocks] == [4, 2]
    assert type(student).__module__.startswith("mine_"), "not the example's own"


def test_the_file_is_found_from_elsewhere_and_after_a_move(converted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert matta_cli.load_ta("work/matta-out").widest == 1
    moved = converted.rename(tmp_path / "moved")
    with pytest.raises(
        MattaError, match=rf"nobody has named.*matta adapters {moved}/mine.py:GatedMLPAdapter"
    ):
        matta_cli.load_ta("moved/matta-out")
    assert (
        run(sys.executable, tmp_path, "adapters", f"{moved}/mine.py:GatedMLPAdapter").returncode
        == 0
    )
    assert matta_cli.load_ta("moved/matta-out").widest == 1
    (moved / "mine.py").unlink()
    with pytest.raises(
        MattaError,
        match=r"moved/matta-out/ta was made with the adapter './mine.py:.*that file is gone",
    ):
        matta_cli.load_ta("moved/matta-out")


def test_a_folder_alone_runs_no_code(converted, monkeypatch):
    """A downloaded folder names a file beside it, or a module: neither is imported."""
    Path("evil.py").write_text("import pathlib; pathlib.Path('ran').touch()\nclass A: pass\n")
    monkeypatch.syspath_prepend(str(converted))
    card = json.loads(Path("matta-out/ta/matta.json").read_text())
    for spec in ("evil.py:A", f"{converted}/evil.py:A", "evil:A"):
        Path("matta-out/ta/matta.json").write_text(json.dumps(card | {"adapter": spec}))
        for load in (matta_cli.load_ta, matta_cli.load_student):
            with pytest.raises(MattaError, match="if you trust it"):
                load("matta-out/ta")
    assert not Path("ran").exists()


def test_a_module_does_too(converted, monkeypatch):
    monkeypatch.syspath_prepend(str(converted))
    matta_cli.convert(
        "model.safetensors", data="digits.npz", adapter="mine:GatedMLPAdapter", overwrite=True
    )
    assert matta_cli.load_ta("matta-out").adapter.spec == "mine:GatedMLPAdapter"


def test_an_edited_file_is_read_again(converted):
    assert matta_cli.load_ta("matta-out").adapter.task == "image_classification"
    first = plugins.adapter("mine.py:GatedMLPAdapter")
    assert type(first) is type(plugins.adapter("./mine.py:GatedMLPAdapter"))
    file = Path("mine.py")
    file.write_text(file.read_text().replace('name, task = "gated_mlp"', 'name, task = "other"'))
    os.utime(file, ns=(1, 1))
    assert plugins.adapter("mine.py:GatedMLPAdapter").name == "other"


ABSTRACT = """from matta_cli.adapter import Adapter
class A(Adapter):
    task = 'ranking'
    def load(self, source): ...
"""


@pytest.mark.parametrize(
    ("code", "spec", "message"),
    [
        ("", "a.py", r"'a.py' is a file: name the class in it too, as in a.py:MyAdapter"),
        ("", "b.py:A", r"no file 'b.py'"),
        ("import nowhere_at_all", "a.py:A", r"'a.py:A' does not import: .*nowhere_at_all"),
        ("def", "a.py:A", r"does not import: SyntaxError"),
        (ABSTRACT, "a.py:B", r"'a.py' has no class 'B'; its adapters: A\."),
        ("class A: pass", "a.py:A", r"no subclass of matta_cli.adapter.Adapter"),
        (ABSTRACT, "a.py:A", r"'a.py:A' lacks axes, build, matches, save\."),
        (ABSTRACT.replace("ranking", "rank"), "a.py:A", "lacks"),
        ("", "no_such_module:A", r"does not import: .*no_such_module"),
    ],
)
def test_what_is_said_of_a_wrong_file(code, spec, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.py").write_text(code)
    with pytest.raises(MattaError, match=message) as caught:
        plugins.adapter(spec)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache" / "adapters.txt").exists(), (
        "nothing is vouched for that did not work"
    )


def test_an_unknown_task_is_named(converted):
    text = Path("mine.py").read_text().replace('"image_classification"', '"images"')
    Path("mine.py").write_text(text)
    with pytest.raises(
        MattaError, match=r"has the task 'images'; there are causal_lm, image_classification"
    ):
        plugins.adapter("mine.py:GatedMLPAdapter")


# Broken packages


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """A function that runs a line in ``work``, where a model lies; what ``plugin`` put into
    ``site`` is installed.
    """
    prepare(tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    sys.path.insert(0, str(tmp_path / "site"))

    def run_line(line: str):
        names.installed.cache_clear()
        return CliRunner().invoke(app, line.split())

    yield run_line
    names.installed.cache_clear()


def test_a_broken_plugin_is_named_and_the_others_work(tmp_path, typed):
    plugin(tmp_path / "site", "breaks", BROKEN, breaks="breaks:Adapter")
    done = typed("adapters")
    assert done.exit_code == 0 and "mlp_ranker" in done.stdout and "breaks" not in done.stdout
    which = "The adapter 'breaks' (breaks:Adapter of breaks 1.0)"
    reason = f"{which} does not import: RuntimeError: this plug-in is broken."
    assert reason in " ".join(done.stderr.split())

    layers = torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
    save_file(torch.nn.Sequential(*layers).state_dict(), "m.safetensors")
    done = typed("convert m.safetensors")
    assert done.exit_code == 0 and f"Note: {reason}" in " ".join(done.stderr.split()), done.stderr
    done = typed("convert m.safetensors --adapter mlp_ranker --overwrite")
    assert done.exit_code == 0 and "broken" not in done.stderr, (
        "who names an adapter is not told of others"
    )
    done = typed("convert m.safetensors --adapter breaks --overwrite")
    assert done.exit_code == 1 and reason in " ".join(done.stderr.split())


def test_two_of_one_name_are_refused_with_both_origins(tmp_path, typed):
    code = (EXAMPLE / "gated_mlp.py").read_text()
    plugin(
        tmp_path / "site", "first", code, twin="first:GatedMLPAdapter", gpt2="first:GatedMLPAdapter"
    )
    plugin(tmp_path / "site", "second", code, twin="second:GatedMLPAdapter")
    done = typed("adapters")
    said = " ".join(done.stderr.split())
    both = "first:GatedMLPAdapter of first 1.0 and second:GatedMLPAdapter of second 1.0"
    assert f"of the name 'twin': {both}." in said
    assert "matta_adapters.gpt2:GPT2 of matta" in said, "a built-in is not replaced in silence"
    assert done.exit_code == 0 and "vit" in done.stdout and "twin" not in done.stdout
    done = typed("convert model.safetensors --adapter twin")
    assert done.exit_code == 1 and "second:GatedMLPAdapter of second 1.0" in " ".join(
        done.stderr.split()
    )


def test_the_entry_points_name_is_the_adapters(tmp_path, typed):
    plugin(
        tmp_path / "site",
        "named",
        (EXAMPLE / "gated_mlp.py").read_text(),
        other_name="named:GatedMLPAdapter",
    )
    done = typed("convert model.safetensors --data digits.npz")
    assert done.exit_code == 0, done.stderr
    assert json.loads(Path("matta-out/ta/matta.json").read_text())["adapter"] == "other_name"


def test_a_plugin_that_fails_when_asked_does_not_stop_the_others(tmp_path, typed):
    code = (EXAMPLE / "gated_mlp.py").read_text()
    asked = "        if source.folder is not None:\n"
    assert asked in code
    plugin(
        tmp_path / "site",
        "raises",
        code.replace(asked, "        raise ValueError\n" + asked, 1),
        raises="raises:GatedMLPAdapter",
    )
    assert "raises" in typed("adapters").stdout
    assert (
        plugins.detect(Source("m", module=torch.nn.Sequential(torch.nn.Linear(2, 1)))).name
        == "mlp_ranker"
    )


# The document


def document() -> dict[str, str]:
    """The files that docs/write-an-adapter.md has its reader write."""
    files: dict[str, str] = {}
    for block in blocks(DOCUMENT.read_text(encoding="utf-8")):
        if block.title is not None:
            before = f"{files[block.title]}\n\n" if block.title in files else ""
            files[block.title] = before + block.text
    return files


@pytest.mark.slow
def test_the_adapter_of_the_document_works_as_printed(tmp_path, monkeypatch):
    """As typed in, but for what takes long: convert stands for the commands after it."""
    files = document()
    assert "range(150)" in files["data.py"]
    files["data.py"] = files["data.py"].replace("range(150)", "range(2)")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for script in ("check.py", "data.py"):
        done = subprocess.run(
            [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    typed = [line for block in blocks(DOCUMENT.read_text("utf-8")) for line in block.commands()]
    [line] = [line for line in typed if line.startswith("matta convert")]
    done = CliRunner().invoke(app, line.split()[1:])
    assert done.exit_code == 0 and "Lossless" in done.stderr, done.stderr


@pytest.mark.slow
def test_the_check_of_the_document_names_what_was_forgotten(tmp_path):
    files = document()
    forgotten = files["my_adapter.py"].replace(', "running_var"]', "]")
    assert forgotten != files["my_adapter.py"]
    (tmp_path / "my_adapter.py").write_text(forgotten)
    (tmp_path / "check.py").write_text(files["check.py"])
    done = subprocess.run(
        [sys.executable, "check.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (
        "AssertionError: build at half size" in done.stderr
        and "norm1.running_var is [3], not [6]" in done.stderr
    )
