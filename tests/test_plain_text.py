"""Names are text wherever they are shown: nothing in a name is obeyed, and every character can be seen."""

from __future__ import annotations

import csv
import html
import io
import json
import logging
import re
import warnings
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.font_manager
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from helpers.scores import report_on, write_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from laborllm_dist.careers.corpus_counts import titles_csv
from laborllm_dist.careers.occupations.vocabulary import read_written_vocabulary, write_vocabulary
from laborllm_dist.careers.person_records import CodedTitle
from laborllm_dist.careers.types import OccupationVocabulary
from laborllm_dist.io import console as console_module
from laborllm_dist.io.console_tables import Column, FoldingTable
from laborllm_dist.io.files import write_text
from laborllm_dist.plain_text import from_sheet_cell, markdown_code, markdown_text, sheet_cell, visible
from laborllm_dist.report import figures, fonts
from laborllm_dist.report.write import terminal_tables
from laborllm_dist.store.data_card import SharedPeople, card_markdown

HOSTILE = [
    "two\nlines", "\x1b[31mred\x1b[0m", "bell\x07\x9b2J", "[bold]b[/bold]", "[/x]", "$x_1$", "50 $", "$\\frac{$", "a|b",
    "<b>&amp;</b>", "*a* _b_ `c` ~~d~~ [e](f)", "\\|", "# head", "_base", "=1+1", "turned \u202eround\u2028on", ":smile:",
    "厨师", "طباخ", "повар", "😀", "\udcff",
]  # fmt: skip
UNSEEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_one_line_of_characters_that_can_be_seen(name: str) -> None:
    shown = visible(name)
    assert not UNSEEN.search(shown) and "\n" not in shown
    if not UNSEEN.search(name) and "\n" not in name:
        assert shown == name
    assert visible("a\n\t\x1b\u202e\udcff") == r"a\n\t\x1b\u202e\udcff"


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("width", [40, 200])
def test_a_terminal_s_table_shows_names_as_they_are(name: str, width: int) -> None:
    table = FoldingTable((Column("name", "name"), Column("number", "number")), title=name, box=None)
    table.add_row(name, "1")
    table.add_row(Text(f"{name}\nbelow"), "2")
    screen = io.StringIO()
    Console(width=width, file=screen, force_terminal=False).print(table)
    text = screen.getvalue()
    assert not UNSEEN.search(text.replace("\udcff", ""))
    for part in visible(name).split():
        assert text.count(part) >= 2


@pytest.mark.parametrize("name", [name for name in HOSTILE if "\n" not in name and name != "\udcff"])
def test_a_result_s_line_shows_names_as_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    with console_module.results() as console:
        console.print(f"report: {name}/report.html", soft_wrap=True)
    assert stream.getvalue() == f"report: {visible(name)}/report.html\n"


# Markdown -------------------------------------------------------------------------------------------------------------


def read_markdown(text: str) -> str:
    """Return what CommonMark shows of a text without marks: escapes of punctuation, then entities, are undone."""
    return html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text))


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_shows_names_as_they_are(name: str) -> None:
    text = markdown_text(name)
    assert read_markdown(text) == visible(name)
    bare = re.sub(r"\\[!-/:-@\[-`{-~]", "", text)
    assert not re.search(r"[<>|*`~\[\]$\n]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", bare)
    code = markdown_code(name)
    fence = re.match("`+", code)
    assert fence and fence[0] not in code[len(fence[0]) : -len(fence[0])]
    assert markdown_text("data.name_of_it") == "data.name_of_it"


def card_of(name: str) -> str:
    row = {"code": name, "title": name, "observations": 1}
    values = {
        "survey": name, "people_read": 1, "people": {"all": 1, "train": 1, "validation": 0, "test": 0}, "observations": 1,
        "shares": {"first": 1.0, "moving": 0.0, "staying": 0.0}, "paper": None,
        "years": [{"year": 1990, "observations": 1, "occupations": 1, "reachable": None}], "occupations": [row],
        "left_out": [{"unit": "job", "reason": name, "count": 1, "years": {}}],
        "unmapped_codes": [{"code": name, "reason": name, "count": 1}], "taken_otherwise": [{"what": name, "count": 1}],
        "variables_missing": [name],
    }  # fmt: skip
    shared = SharedPeople(name, name, name, 3)
    pairs = [{"corpora": [shared.one, shared.other], "population": shared.population, "people": shared.num}]
    return card_markdown({"data": name, "corpora": {name: values}, "shared_people": pairs})


@pytest.mark.parametrize("name", HOSTILE)
def test_a_data_card_has_the_same_tables_whatever_the_names(name: str) -> None:
    lines, plain = card_of(name).splitlines(), card_of("plain").splitlines()
    assert len(lines) == len(plain)
    for line, other in zip(lines, plain, strict=True):
        bare = re.sub(r"\\.", "", re.sub(r"(`+).*?\1", "", line))
        assert bare.count("|") == other.count("|")
        assert not re.search(r"[<>]", bare)
        assert line.startswith("#") == other.startswith("#")
    assert read_markdown(lines[plain.index("| plain | plain | 1 |")]) == f"| {visible(name)} | {visible(name)} | 1 |"


# Sheets ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["=1+1", "+a", "-a", "@SUM(A1)", "\tx", "\rx", "'=x", "''+x", "\uff1dx", "=", "-"])
def test_a_cell_of_text_is_no_formula_and_is_read_back(text: str) -> None:
    assert sheet_cell(text) == f"'{text}"
    assert from_sheet_cell(sheet_cell(text)) == text


@pytest.mark.parametrize("text", ["-5", "+1.5", "-1e9", "110", "Cooks", "'tis", "", "a=b", "'", "3-D artists"])
def test_numbers_and_other_texts_are_cells_as_they_are(text: str) -> None:
    assert sheet_cell(text) == text
    assert from_sheet_cell(text) == text


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="'=+-@\t\r1.e a\uff1d", max_size=8))
def test_every_text_is_read_back_from_its_cell(text: str) -> None:
    assert from_sheet_cell(sheet_cell(text)) == text


def test_the_list_of_titles_has_no_formula() -> None:
    titles = Counter(
        {CodedTitle('=HYPERLINK("http://x","y")', "@home", 0.5, "-x"): 3, CodedTitle("Cook", None, 0.0, None): 1}
    )
    rows = list(csv.reader(io.StringIO(titles_csv(titles))))
    assert rows[1] == ['\'=HYPERLINK("http://x","y")', "3", "'@home", "0.50", "'-x"]
    assert rows[2] == ["Cook", "1", "", "0.00", ""]


def test_a_store_s_occupations_are_read_back_and_are_no_formulas(tmp_path: Path) -> None:
    vocabulary = OccupationVocabulary(
        ("-1", "=a", "+b", "'=c", "5"), ("=1+1", "@home", "-work", "'+x", "Cooks, private")
    )
    write_vocabulary(vocabulary, tmp_path / "occupations.csv")
    assert read_written_vocabulary(tmp_path / "occupations.csv") == vocabulary
    cells = list(csv.reader((tmp_path / "occupations.csv").open()))[1:]
    assert [code for code, _ in cells] == ["-1", "'=a", "'+b", "''=c", "5"]
    assert [title for _, title in cells] == ["'=1+1", "'@home", "'-work", "''+x", "Cooks, private"]


# Pages and figures ----------------------------------------------------------------------------------------------------


class Texts(HTMLParser):
    """The texts of a page, each element's own."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags[tag] += 1

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def report_with(folder: Path, name: str, group: str) -> tuple[str, str]:
    """Return page and printed tables of a report with such names; figures are drawn without a warning."""
    write_scores(folder / "scores/test.parquet", name, [1, 2, 2, 3, 2], gender=group)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = report_on(folder)
    screen = io.StringIO()
    Console(width=200, file=screen).print(*terminal_tables(result))
    return result.page.read_text(encoding="utf-8"), screen.getvalue()


def test_a_report_shows_names_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, _ = report_with(tmp_path / "plain", "model", "group")
    for number, name in enumerate(name for name in HOSTILE if name != "\udcff"):
        with caplog.at_level(logging.WARNING):
            page, table = report_with(tmp_path / str(number), name, name)
        assert not caplog.records
        page_texts = Texts(page)
        assert page_texts.tags == Texts(plain).tags
        assert page_texts.texts.count(visible(name)) >= 4  # the sentence, two tables, a group
        assert visible(name) in table
        summary = json.loads((tmp_path / str(number) / "report/summary.json").read_text(encoding="utf-8"))
        assert summary["models"][0]["model"] == name


def test_a_name_that_is_not_utf_8_is_written_as_an_escape(tmp_path: Path) -> None:
    page, table = report_with(tmp_path, "m\udcff", "group")
    assert r"m\udcff" in table
    assert Texts(page).texts.count(r"m\udcff") >= 3
    summary = json.loads((tmp_path / "report/summary.json").read_text(encoding="utf-8"))
    assert summary["models"][0]["model"] == "m\udcff"
    write_text(tmp_path / "t", "a\udcff")
    assert (tmp_path / "t").read_bytes() == rb"a\udcff"


def label_in_figure(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return all texts of the figures of a report on a model and a group of this name."""
    drawn: list[str] = []
    real = figures.render_figure

    def render(figure, *rest):
        drawn.extend(text.get_text() for text in figure.findobj(matplotlib.text.Text))
        assert not any(text.get_parse_math() or text.get_usetex() for text in figure.findobj(matplotlib.text.Text))
        return real(figure, *rest)

    monkeypatch.setattr(figures, "render_figure", render)
    write_scores(folder / "scores/test.parquet", name, [1, 2, 2, 3, 2], gender=name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report_on(folder)
    return drawn


@pytest.mark.parametrize("name", ["$x_1$", "50 $", "_base", "[/x]", "повар", "طباخ", "\x1b[1m"])
def test_figures_hold_names_letter_by_letter(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = label_in_figure(name, tmp_path, monkeypatch)
    assert texts.count(visible(name)) >= 2  # above its dot, and in legends
    assert any(text.startswith(f"{visible(name)}\n") for text in texts)  # the group


@pytest.fixture
def no_other_font(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the fonts that come with matplotlib alone."""
    own = [entry for entry in matplotlib.font_manager.fontManager.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(matplotlib.font_manager.fontManager, "ttflist", own)


def made_font(path: Path, characters: str) -> Path:
    """Write a font in which each of some characters is a square."""
    names = [".notdef", *(f"c{ord(each):x}" for each in characters)]
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 700), (900, 700), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    glyph = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(each): f"c{ord(each):x}" for each in characters})
    builder.setupGlyf(dict.fromkeys(names, glyph))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Made Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.mark.usefixtures("no_other_font")
def test_a_character_that_no_font_has_is_an_escape_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    texts = label_in_figure("A 厨师", tmp_path, monkeypatch)
    assert r"A \u53a8\u5e08" in texts
    (note,) = report_on(tmp_path).notes
    assert note.startswith("figures: no font on this machine has 厨师; escapes such as ") and "\n" not in note
    assert not caplog.records


@pytest.mark.usefixtures("no_other_font")
def test_a_font_of_the_machine_draws_what_the_first_one_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    matplotlib.font_manager.fontManager.addfont(made_font(tmp_path / "made.ttf", "厨师"))
    texts = label_in_figure("A 厨师", tmp_path / "run", monkeypatch)
    assert "A 厨师" in texts
    assert report_on(tmp_path / "run").notes == ()
    assert not caplog.records
    assert fonts.drawable(["A 厨师"]).families == ("DejaVu Sans", "Made Squares")
    assert fonts.drawable(["A é ж ط"]).families == ("DejaVu Sans",)
    partly = fonts.drawable(["厨女"])
    assert (partly.families, partly.undrawn) == (("DejaVu Sans", "Made Squares"), "女")


def test_joiners_that_no_font_has_are_left_out_without_a_note() -> None:
    actual = fonts.drawable(["a\ufe0f\u200db"])
    assert actual.text("a\u200db") in ("ab", "a\u200db")
    assert fonts.note_on("\u200d\ufe0f") is None


def test_long_names_are_cut_in_their_middle_by_their_width() -> None:
    assert figures.shorten("x" * 50, 40) == "x" * 20 + "…" + "x" * 19
    assert figures.shorten("厨" * 30, 40) == "厨" * 10 + "…" + "厨" * 9
    assert figures.shorten("x" * 40, 40) == "x" * 40


def test_large_ticks_are_powers_of_ten() -> None:
    assert [figures.tick_text(value) for value in (0.5, 1000.0, 2e6, 1.5e12)] == ["0.5", "1,000", "2e6", "1.5e12"]
