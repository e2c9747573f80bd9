"""README.md and docs/: short where it must be, and every relative link leads to a file and a heading."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.processes import PROJECT

DOCS = PROJECT / "docs"
PAGES = [PROJECT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")


def relative_links(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = [first or second for first, second in LINK.findall(text)]
    return [link for link in links if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def test_the_readme_stays_an_overview() -> None:
    assert len((PROJECT / "README.md").read_text().splitlines()) <= 220


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in relative_links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: no such file"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link}: no such heading"


def test_the_figure_has_a_light_and_a_dark_version() -> None:
    light, dark = ((DOCS / "figures" / f"data_road_{name}.svg").read_text() for name in ("light", "dark"))
    assert re.sub(r"#[0-9a-f]{6}", "", light) == re.sub(r"#[0-9a-f]{6}", "", dark)
    assert light != dark


def test_the_table_of_facts_names_files_that_exist() -> None:
    section = (DOCS / "architecture.md").read_text().split("## Where to find it")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 25
    for row in rows:
        files = re.findall(r"`([^`]+)`", row.split("|")[2])
        assert files
        for name in files:
            root = PROJECT if name.startswith(("launch/", "conf/")) else PROJECT / "laborllm_dist"
            assert (root / name).is_file(), name


def test_files_that_the_manual_names_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:laborllm_dist|benchmarks|tests|conf)/[\w./-]*)`", page.read_text()):
            if not re.search("NAME|DATE", name):
                assert (PROJECT / name).exists(), f"{page.name}: {name}"


def test_decisions_are_listed_by_date() -> None:
    folder = DOCS / "decisions"
    listed = re.findall(r"(?m)^\| (\d{4}-\d\d-\d\d) \| \[.+\]\((.+)\) \|$", (folder / "index.md").read_text())
    assert [date for date, _ in listed] == sorted(date for date, _ in listed)
    assert all(name.startswith(date) for date, name in listed)
    assert sorted(name for _, name in listed) == sorted(path.name for path in folder.glob("2*.md"))
    for _, name in listed:
        text = (folder / name).read_text()
        assert re.findall(r"(?m)^## (.+)$", text) == ["Choice", "Reasons", "What would change it"], name
