"""The pages that people read: what they say to type works, and what they point to is there."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests import toys
from tests.pages import PAGES, ROOT, Block, Reader, blocks, extras, fenced

FAST = {"teacher-files"}  # typed by make test; the others by make test-all
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKED = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
LINKED += [*PAGES, *sorted((ROOT / "examples").glob("*/README.md"))]


@pytest.fixture(scope="module")
def had(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    toys.lay(folder)
    return folder


@pytest.fixture
def reader(had: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "here"
    shutil.copytree(had, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    yield Reader(folder)
    for name, module in list(sys.modules.items()):  # the next reader has another module of the name
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def pages():
    for page in PAGES:
        if any(block.kind in ("bash", "python") for block in blocks(page.read_text("utf-8"))):
            marks = () if page.stem in FAST else pytest.mark.slow
            yield pytest.param(page, id=page.stem, marks=marks)


@pytest.mark.parametrize("page", pages())
def test_a_page_can_be_typed_in(page: Path, reader: Reader) -> None:
    for block in blocks(page.read_text(encoding="utf-8")):
        reader.type(block)


def test_what_a_page_types_is_run_and_its_failures_are_seen(reader: Reader) -> None:
    text = (
        "```bash\nmatta recipe show  # a note\npython -c 'print(6 * 7)' | cat\n```\n"
        '```python title="a.py"\nx = 1\n```\n\n```python title="a.py"\ny = 2\n```\n'
        "```python\nimport a; z = a.x + a.y\n```\n"
        "```toml\n[distill]\nsteps = 3\n```\n"
        "<!-- not run: it is wrong -->\n```bash\nmatta nonsense\n```\n"
        "```bash\npip install 'matta[search]'\n```\n"
        "So:\n\n    matta recipe show --changed\n\n    python -c 'print(123 * 2)'\n\nAnd on.\n"
    )
    found = blocks(text)
    assert [block.reason for block in found] == [None] * 5 + ["it is wrong", None, None]
    for block in found:
        reader.type(block)
    assert "distill.steps" in reader.said and "42" in reader.said
    assert "246" in reader.said
    assert "steps = 3\n" in (reader.folder / "matta.toml").read_text()
    wrong = ("matta nonsense", "false | cat", "pip install 'matta[nonsense]'", "python no.py")
    for line in wrong:
        with pytest.raises(AssertionError):
            reader.type(Block("bash", None, line, None))
    with pytest.raises(ZeroDivisionError):
        reader.type(Block("python", None, "1 / 0", None))
    assert extras(["pip", "install", "matta[a,b-c]"]) == ["a", "b-c"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_nothing_of_a_page_is_left_out_without_a_reason(page: Path) -> None:
    text = fenced(page.read_text(encoding="utf-8"))
    found = blocks(text)
    assert text.count("```") == 2 * len(found), "a fence that is no block"
    assert {block.kind for block in found} <= {"bash", "python", "toml", "text"}
    marked = [block.reason for block in found if block.reason is not None]
    assert len(marked) == text.count("<!-- not run") and all(marked), "a mark before no block"
    assert not re.findall(r"^(?: {4}|\t)(?:matta|python|pip) .*", text, re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


def broken(page: Path, text: str) -> list[str]:
    """The links of a page within the project that lead nowhere."""
    wrong = []
    for target in re.findall(
        r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    ):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        sound = other.exists() and other.is_relative_to(ROOT)
        if sound and anchor:
            sound = anchor in anchors(text if other == page else other.read_text("utf-8"))
        if not sound:
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    assert broken(page, page.read_text(encoding="utf-8")) == []


def test_a_link_that_leads_nowhere_is_seen() -> None:
    text = "# A b\n[1](#a-b) [2](#none) [3](docs/none.md) [4](docs/index.md#none) [5](LICENSE)"
    assert broken(ROOT / "README.md", text) == ["#none", "docs/none.md", "docs/index.md#none"]


# The README


def test_the_readme_is_short_and_has_the_lines() -> None:
    assert len(README.splitlines()) <= 140
    lines = [command for block in blocks(README) for command in block.commands()]
    assert [line for line in lines if line.startswith("matta")] == [
        "matta convert model.pt --adapter gpt2",
        "matta distill --teacher gpt2-large",
        "matta export --widths 0.25,0.5,1.0",
    ]
    makefile = (ROOT / "Makefile").read_text()
    made = [line.split()[1] for line in lines if line.startswith("make")]
    assert made == ["demo", "test"] and all(f"\n{name}:" in makefile for name in made)
    assert re.search(r"!\[[^\]]{20,}\]\(docs/[\w.]+\)", README)  # one picture, and what it shows


def test_the_numbers_of_the_readme_are_those_of_the_study() -> None:
    """Each row of its table is a row of docs/results.md, under the heading of that task."""
    rows = [line for line in README.splitlines() if line.count("|") == 9 and "[" in line]
    assert len(rows) >= 6
    study = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for row in rows:
        task, steps, seeds, seconds, *gains = [cell.strip() for cell in row.split("|")[1:-1]]
        name = task.partition(":")[0]
        part, *_ = [  # the regimes of the same task stand below it
            part
            for part in study.split("\n### ")
            if part.startswith(name) and f": {steps} steps a separate run, {seeds} seeds" in part
        ]
        [family] = [x for x in part.splitlines() if x.startswith("| a family, rows divided |")]
        assert family == f"| a family, rows divided | 0.40 | {seconds} | {' | '.join(gains)} |"
