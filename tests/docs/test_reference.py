"""docs/reference is what docs/make_reference.py makes of the code."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from helpers.processes import PROJECT

from laborllm_dist.tables.scores import SCORE_SCHEMA


@pytest.fixture(scope="module")
def reference() -> Iterator[ModuleType]:
    specification = importlib.util.spec_from_file_location("make_reference", PROJECT / "docs" / "make_reference.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # dataclasses look up the module of a class there
    specification.loader.exec_module(module)
    yield module
    del sys.modules[module.__name__]


def page(name: str) -> str:
    return (PROJECT / "docs" / "reference" / name).read_text()


def test_the_pages_are_what_the_script_makes(reference: ModuleType) -> None:
    assert reference.settings_page() == page("settings.md"), "run python docs/make_reference.py"
    assert reference.tables_page() == page("tables.md"), "run python docs/make_reference.py"


def test_the_settings_page_has_types_defaults_and_meanings() -> None:
    (line,) = re.findall(r"(?m)^\| `batch.global_batch_size` .*$", page("settings.md"))
    assert [cell.strip() for cell in line.split("|")][2:4] == ["whole number from 1 to 1,000,000", "`32`"]
    assert "| `zero.stage` \N{DAGGER} | whole number from 0 to 3 | `2` |" in page("settings.md")
    assert "| `data.corpora.NAME.first_year` | year from 1850 to 2100 or null | `1981` |" in page("settings.md")


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of the tables' rows about settings and columns."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_setting_and_every_column_has_a_meaning() -> None:
    for name in ("settings.md", "tables.md"):
        assert [row[0] for row in rows_of(page(name)) if not row[-1]] == []
    section = page("tables.md").split("## Score table")[1].split("\n## ")[0]
    assert [row[0].strip("`") for row in rows_of(section)] == SCORE_SCHEMA.names
