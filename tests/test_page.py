"""The report's page in a real browser: light and dark, on a telephone and on a desk, without a
network.
"""

import pytest
from browser import FOUND, Browser
from test_report import judged_report, labelled, named

from matta_cli.report import write
from matta_cli.report.schema import Report

pytestmark = pytest.mark.skipif(FOUND is None, reason="there is no Chromium here")


@pytest.fixture(scope="module")
def browser():
    with Browser() as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    judged, folder = judged_report(), tmp_path_factory.mktemp("page")
    named(judged, "width 0.5")["name"] = long = (
        "width 0.5 of a model whose name is very long indeed"
    )
    for pair in judged["pairs"]:
        pair["a"] = long if pair["a"] == "width 0.5" else pair["a"]
    for model in judged["models"]:
        model["of"] = long if model.get("of") == "width 0.5" else model.get("of")
    labelled(judged, ["joy", "a label whose name is rather long", "fear"])
    write.write(Report.from_json(judged), folder)
    return folder / "report.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_it_fits_and_is_readable(browser, page, width, dark):
    browser.open(page, width, dark)
    assert browser.said() == [] and browser.asked_for() == []
    assert browser.run("document.documentElement.scrollWidth") <= browser.run("innerWidth") == width
    # nothing but the table sticks out of the window
    assert browser.run(OUTSIDE) == []
    light = browser.run(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    )
    ink = browser.run("getComputedStyle(document.body).color.match(/\\d+/g).map(Number)")
    assert (sum(light) < 200) == dark and abs(sum(light) - sum(ink)) > 450
    faint = []  # WCAG 2.1, 1.4.3: text has a contrast of 4.5 or more with what it stands on
    for chosen in (".hint", ".verdict", "td small", "svg .tick", ".tiles span", ".findings li"):
        found = browser.run(f"({CONTRAST})({chosen!r})")
        faint += [(chosen, found)] if found is None or found < 4.5 else []
    assert faint == []
    small = "[...document.querySelectorAll('svg text')].filter(e => e.getClientRects().length)"
    assert browser.run(f"Math.min(...{small}.map(e => e.getBoundingClientRect().height))") >= 11

    chart = "[...document.querySelectorAll('.chart')].filter(e => e.getClientRects().length)"
    assert browser.run(f"{chart}.flatMap({COVERED})") == []


OUTSIDE = """[...document.querySelectorAll('section,header,p,h1,h2,ul,svg,pre')].filter(e => {
  const at = e.getBoundingClientRect();
  const seen = !e.closest('.scroll') && e.getClientRects().length;
  return seen && (at.right > innerWidth + 1 || at.left < 0);
}).map(e => e.outerHTML.slice(0, 80))"""


COVERED = """chart => {
  const texts = [...chart.querySelectorAll('svg .name, svg .tick')];
  const seen = texts.filter(e => e.getClientRects().length);
  const at = e => e.getBoundingClientRect();
  const before = (a, b) => at(a).right <= at(b).left + 1 || at(a).bottom <= at(b).top + 4;
  const covers = (a, b) => a !== b && !before(a, b) && !before(b, a);
  return seen.flatMap(a => seen.filter(b => covers(a, b)).map(b => [a.textContent, b.textContent]));
}"""


CONTRAST = """selector => {
  const element = [...document.querySelectorAll(selector)].find(e => e.getClientRects().length);
  if (!element) return null;
  const style = getComputedStyle(element), numbers = text => text.match(/[\\d.]+/g).map(Number);
  const ink = numbers(element.closest('svg') ? style.fill : style.color);
  let behind = element, ground = [0, 0, 0, 0];
  while (behind && ground[3] === 0) {
    const found = numbers(getComputedStyle(behind).backgroundColor);
    ground = [found[0], found[1], found[2], found.length > 3 ? found[3] : 1];
    behind = behind.parentElement;
  }
  const linear = v => v <= .03928 * 255 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const bright = c => .2126 * linear(c[0]) + .7152 * linear(c[1]) + .0722 * linear(c[2]);
  const [a, b] = [bright(ink), bright(ground)].sort((x, y) => y - x);
  return (a + .05) / (b + .05);
}"""


@pytest.mark.parametrize("width", [400, 1400])
def test_hover_says_what_a_point_is(browser, page, width):
    browser.open(page, width, dark=False)
    assert browser.run("document.getElementById('tip').hidden")
    for label in ("width 0.25, perplexity 25.00", "plain distillation 1, perplexity 18.20"):
        named_so = f"(e.ariaLabel || '').startsWith({label!r}) && e.getClientRects().length"
        point = f"[...document.querySelectorAll('.plot .pt')].find(e => {named_so})"
        browser.run(f"{point}.scrollIntoView({{block: 'center'}})")
        browser.settle()
        x, y = browser.run(
            "(r => [r.x + r.width / 2, r.y + r.height / 2])"
            f"({point}.querySelector('.mark').getBoundingClientRect())"
        )
        browser.move(x, y)
        assert browser.run("document.getElementById('tip').hidden") is False
        assert browser.run("document.getElementById('tip').textContent").startswith(
            label.split(",")[0] + "\nperplexity"
        )
        left, right = browser.run(
            "(r => [r.left, r.right])(document.getElementById('tip').getBoundingClientRect())"
        )
        assert left >= 0 and right <= width
        browser.move(1, 1)
        assert browser.run("document.getElementById('tip').hidden")


def test_the_slider_names_the_best_student_within_the_budget(browser, page):
    browser.open(page, 1400, dark=False)
    answer, limit = (
        "document.getElementById('answer').textContent",
        "document.getElementById('limit').textContent",
    )
    browser.run("document.getElementById('slider').focus()")
    browser.press("Home")
    assert browser.run(answer) == "None: the least that a Student needs is 4.5 M, width 0.25."
    assert (
        browser.run(limit) == "Budget: 3.6 M parameters"
        and browser.run("document.querySelector('.chosen')") is None
    )
    browser.press("End")
    assert browser.run(answer).startswith(
        "width 1: perplexity 18.00 [17.80, 18.20], with 12.3 M. Against plain"
    )
    browser.press("ArrowLeft")
    assert browser.run("document.getElementById('slider').value") == "999"
    pull = "slider.value = v; slider.dispatchEvent(new Event('input')); "
    pull += "return answer.textContent.split(':')[0]"
    seen = browser.run(f"[...new Set(Array.from({{length: 1001}}, (_, v) => {{ {pull} }}))]")
    assert [name[:10] for name in seen] == ["None", "width 0.25", "width 0.5 ", "width 1"]
    assert browser.run(
        "[...document.querySelectorAll('.chosen')].every(e => e.dataset.name === 'width 1')"
    )
    browser.run("document.querySelector('label[for=budget-2]').click()")
    assert browser.run(limit).endswith("ms for one example") and "with 12.3 ms" in browser.run(
        answer
    )


def test_the_axis_of_the_plot_switches(browser, page):
    browser.open(page, 1400, dark=False)
    shown = "[...document.querySelectorAll('.plot')].filter(e => e.getClientRects().length)"
    shown += ".map(e => e.className)"
    assert browser.run(shown) == ["plot plot-0 all"]
    browser.run("document.querySelector('label[for=axis-1]').click()")
    browser.run("document.querySelector('label[for=cuts]').click()")
    assert browser.run(shown) == ["plot plot-1 trained"]


def test_nothing_of_a_chart_touches_the_edge_of_a_telephone(browser, page):
    browser.open(page, 400, dark=False)
    near = """[...document.querySelectorAll('figcaption, .along, .chart text')].filter(e => {
      const range = document.createRange();
      range.selectNodeContents(e);
      const at = range.getBoundingClientRect();
      return e.getClientRects().length && at.width && (at.left < 12 || at.right > innerWidth - 12);
    }).map(e => e.textContent)"""
    for axis in range(3):
        browser.run(f"document.getElementById('axis-{axis}').click()")
        assert browser.run(near) == []
