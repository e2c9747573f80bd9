"""The pages of a report in Chromium: nothing fetched, no error, nothing wider than the window, and axe finds no fault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.browser import AXE, CHROMIUM, MISSING, Browser, open_browser
from helpers.runs import write_run
from helpers.scores import report_on, step, write_metrics, write_scores, write_titles

from laborllm_dist.config.evaluation import StateWords
from laborllm_dist.report.write import ReportResult

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING.format("Chromium"))
PAGES, WIDTHS = ("report", "careers"), (375, 1280)
LONG = "A model whose name is long, with_underscores_and_no_space_to_break_it_at_for_a_while <b> & $x$"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> ReportResult:
    """Give a report with every section, and the page of single careers."""
    runs = tmp_path_factory.mktemp("pages")
    run, *refits = (write_run(runs / name, seed) for name, seed in (("run", None), ("refit_1", 1), ("refit_2", 2)))
    models = {"test": "llm", "test.long": LONG, "test.marginal": "marginal", "test.truth": "truth"}
    halvings = {"llm": [1, 2, 2, 3, 2], "truth": [1, 1, 2, 1, 1], LONG: [2, 2, 2, 2, 3], "marginal": [30, 3, 3, 3, 3]}
    for file, model in models.items():
        for place, each in enumerate((run, *refits)):
            write_scores(each / f"scores/{file}.parquet", model, [place / 4 + number for number in halvings[model]])
    for file, model in (("test_titles", "llm"), ("test_titles.long", LONG)):
        write_titles(run / f"scores/{file}.parquet", model, weights=f"w-{model}")
    measured = {"validation_nats_per_token": 3.5, "validation_nats_per_title": 7.0}
    write_metrics(run, [step(1, 5.0, 10), step(2, 4.0, 30, **measured), step(3, 3.0, 20)])
    return report_on(
        run, num_careers=3, states=StateWords(unemployed=("3",)), figure_formats=(), refits=tuple(map(str, refits))
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Give a browser for all tests of this file."""
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def page_of(result: ReportResult, name: str) -> Path:
    return result.page.with_name(f"{name}.html")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fetches_nothing_reports_no_error_and_fits_the_window(
    browser: Browser, result: ReportResult, name: str, width: int
) -> None:
    page = page_of(result, name)
    browser.load(page, width=width)
    browser.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert browser.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    assert (browser.requests(), browser.errors()) == ([page.as_uri()], [])


def test_all_figures_are_drawn_whole_and_follow_a_dark_screen(browser: Browser, result: ReportResult) -> None:
    # The colors along the four edges, two pixels inside: a label that is cut off would be among them.
    edges = """[...new Set([...document.images].flatMap((image) => {
      const [width, height] = [image.naturalWidth, image.naturalHeight];
      const canvas = Object.assign(document.createElement("canvas"), { width, height });
      const context = canvas.getContext("2d");
      context.drawImage(image, 0, 0);
      const [across, down] = [width - 4, height - 4];
      const areas = [[2, 2, across, 1], [2, down + 1, across, 1], [2, 2, 1, down], [across + 1, 2, 1, down]];
      const bytes = areas.flatMap((area) => [...context.getImageData(...area).data]);
      return bytes.flatMap((red, place) => place % 4 ? [] : `${red} ${bytes[place + 1]} ${bytes[place + 2]}`);
    }))]"""
    grounds = {}
    for dark in (False, True):
        browser.load(result.page, width=375, dark=dark)
        sizes = browser.evaluate("[...document.images].map((each) => each.complete && each.naturalWidth)")
        # Perplexity, differences, four groupings, AUC, calibration of four outcomes, training.
        assert len(sizes) == 12 and all(size > 100 for size in sizes)
        grounds[dark] = browser.evaluate(edges)
    assert grounds[False] == ["255 255 255"]
    assert grounds[True][0] == f"{0x14} {0x17} {0x1B}"  # others differ by rounding


@pytest.mark.skipif(not AXE.is_file(), reason=MISSING.format("axe-core"))
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_violation(browser: Browser, result: ReportResult, name: str, width: int, dark: bool) -> None:
    browser.load(page_of(result, name), width=width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    browser.evaluate(AXE.read_text(encoding="utf-8"))
    tags = '["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]'
    run = f"axe.run(document, {{resultTypes: ['violations'], runOnly: {tags}}})"
    shown = ".then(({violations}) => violations.map(({id, nodes}) => [id, nodes.slice(0, 3).map((node) => node.html)]))"
    assert browser.evaluate(run + shown) == []


def test_enter_on_a_heading_sorts_numbers_as_numbers(browser: Browser, result: ReportResult) -> None:
    browser.load(result.page, width=1280)
    column = """[...document.querySelectorAll("#models tbody tr")].map((row) => row.cells[1].textContent.trim())"""
    heading = "document.querySelectorAll('#models thead th')[1]"
    given = browser.evaluate(column)
    browser.evaluate(f"{heading}.querySelector('button').focus()")
    orders = []
    for _ in range(3):
        browser.press("Enter")
        orders.append((browser.evaluate(f"{heading}.ariaSort"), browser.evaluate(column)))
    by_number = sorted(given, key=lambda text: float(text.replace(",", "")))
    assert by_number != sorted(given)  # 311.127 comes before 4.000 as text
    assert orders == [("ascending", by_number), ("descending", by_number[::-1]), (None, given)]


def test_a_click_sorts_text_with_numbers_in_it_by_these(browser: Browser, result: ReportResult) -> None:
    browser.load(result.page, width=1280)
    browser.evaluate("""document.querySelector("tbody").innerHTML =
      ["n 10", "n 9", "", "n 100"].map((text) => `<tr><th>${text}</th><td></td></tr>`).join("")""")
    script = (Path(__file__).parents[2] / "laborllm_dist/report/templates/tables.js").read_text()
    browser.evaluate(f"document.querySelector('thead button').replaceWith('Name'); {{ {script} }}")
    browser.evaluate("document.querySelector('thead button').click()")
    cells = browser.evaluate(
        "[...document.querySelectorAll('table')[0].tBodies[0].rows].map((row) => row.innerText.trim())"
    )
    assert cells == ["n 9", "n 10", "n 100", ""]


def test_a_page_without_script_shows_everything(browser: Browser, result: ReportResult) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.load(page_of(result, "careers"), width=1280)
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    shown = "[...document.querySelectorAll('.career, .prediction')].filter((each) => each.checkVisibility()).length"
    assert browser.evaluate(shown) == 3 + 5 * 4  # three people; five observations of four models
    assert browser.evaluate("document.querySelector('.picker').checkVisibility()") is False


def test_a_person_and_a_model_are_picked(browser: Browser, result: ReportResult) -> None:
    browser.load(page_of(result, "careers"), width=1280)
    shown = """JSON.stringify([
      [...document.querySelectorAll(".career")].filter((each) => each.checkVisibility()).map((each) => each.id),
      [...new Set([...document.querySelectorAll(".prediction")].filter((each) => each.checkVisibility())
        .map((each) => each.dataset.model))], location.hash])"""
    assert json.loads(browser.evaluate(shown)) == [["person-1"], ["0"], ""]
    browser.evaluate("document.getElementById('next').focus()")
    browser.press("Enter")
    assert json.loads(browser.evaluate(shown)) == [["person-2"], ["0"], "#person-2"]
    pick = (
        "const model = document.getElementById('model'); model.value = 'all'; model.dispatchEvent(new Event('change'))"
    )
    browser.evaluate(f"{{ {pick} }}")
    assert json.loads(browser.evaluate(shown)) == [["person-2"], ["0", "1", "2", "3"], "#person-2"]
    browser.evaluate("location.hash = '#person-3'")
    browser.evaluate("new Promise((done) => setTimeout(done, 50))")
    assert json.loads(browser.evaluate(shown))[0] == ["person-3"]
    assert browser.errors() == []
